/*
 * Recurrences: step over any topology, chunks for training, replay of accepted rows, read passes of a loop.
 *
 * Work is split by (root, head) or (slot, head). Heads share nothing, so every split gives the same bytes; gradients of
 * parameters are summed per slot first and then in slot order.
 */
#include "graph/context.h"
#include <assert.h>
#include <string.h>

struct recur_job {
    chm_context *c;
    chm_logged *l;          /* what is written or was logged */
    chm_tensor *const *ask; /* read pass: this pass's inputs */
    chm_tensor *out;
    size_t state_bytes; /* of one head: all its states, each padded */
    size_t level_bytes;
    /* replay */
    const int32_t *path;
    int64_t path_count;
    chm_stream_state *stream;
    /* backward */
    float *din[CHM_MAX_INPUTS], *dparam[CHM_MAX_PARAMS];
    const float *dout;
};

static void fill_head(const chm_context *c, const chm_logged *l, int64_t head, chm_head *h) {
    memset(h, 0, sizeof *h);
    h->layer = l->layer;
    h->kernels = c->kernels;
    h->head = head;
    h->heads = l->heads;
    h->rows = 1;
    for (uint32_t i = 0; i < l->recurrence->n_inputs; i++) {
        h->in_width[i] = l->in[i]->width / l->heads;
        h->in_stride[i] = l->in[i]->width;
    }
    h->out_width = l->out_width;
    h->out_stride = l->out_width * l->heads;
    for (uint32_t i = 0; i < l->recurrence->n_params; i++) {
        h->param_count[i] = l->param[i]->count / l->heads;
        h->param[i] = l->param[i]->value + head * h->param_count[i];
    }
}

static void row_inputs(const chm_logged *l, chm_tensor *const *from, int64_t head, int64_t row, const float **in) {
    for (uint32_t i = 0; i < l->recurrence->n_inputs; i++) {
        const int64_t width = l->in[i]->width / l->heads;
        in[i] = from[i]->data + row * from[i]->width + head * width;
    }
}

static const chm_state_item *item_of(const chm_context *c, const chm_logged *l, uint32_t i) {
    return &c->layout->item[l->state[i]];
}

/* Pointers to this head's states inside a packed copy, and copies to and from a stream. */
static void scratch_states(const chm_context *c, const chm_logged *l, uint8_t *base, void **state) {
    for (uint32_t i = 0; i < l->recurrence->n_states; i++) {
        state[i] = base;
        base += item_of(c, l, i)->head_bytes;
    }
}

static void blob_states(const chm_context *c, const chm_logged *l, uint8_t *blob, int64_t head, void **state) {
    for (uint32_t i = 0; i < l->recurrence->n_states; i++) {
        const chm_state_item *item = item_of(c, l, i);
        state[i] = blob + item->offset + (size_t)head * item->head_bytes;
    }
}

static void load_states(const chm_context *c, const chm_logged *l, const chm_stream_state *s, int64_t head,
                        uint8_t *base) {
    for (uint32_t i = 0; i < l->recurrence->n_states; i++) {
        const chm_state_item *item = item_of(c, l, i);
        if (s)
            memcpy(base, s->blob + item->offset + (size_t)head * item->head_bytes, item->head_bytes);
        else
            memset(base, 0, item->head_bytes);
        base += item->head_bytes;
    }
}

static void clear_states(const chm_context *c, const chm_logged *l, void *const *state) {
    for (uint32_t i = 0; i < l->recurrence->n_states; i++) memset(state[i], 0, item_of(c, l, i)->head_bytes);
}

static size_t head_state_bytes(const chm_context *c, const chm_logged *l) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < l->recurrence->n_states; i++) bytes += item_of(c, l, i)->head_bytes;
    return bytes;
}

static size_t plugin_scratch(const chm_context *c, const chm_logged *l, int64_t rows) {
    if (!l->recurrence->scratch_bytes) return 64;
    chm_head h;
    fill_head(c, l, 0, &h);
    h.rows = rows;
    return chm_align64(l->recurrence->scratch_bytes(&h)) + 64;
}

static int64_t chunk_limit(const chm_logged *l) {
    const int64_t rows = l->recurrence->chunk_rows ? l->recurrence->chunk_rows(l->layer) : 64;
    return rows < 1 ? 1 : rows;
}

/* ---- step ---- */

static void step_items(void *arg, int64_t begin, int64_t end, int worker) {
    const struct recur_job *j = arg;
    const chm_context *c = j->c;
    const chm_logged *l = j->l;
    const chm_recurrence *r = l->recurrence;
    const bool in_place = (c->flags & CHM_PASS_COMMIT) && !c->loop && !j->ask;
    for (int64_t item = begin; item < end; item++) {
        const chm_root *root = &c->root[item / l->heads];
        const int64_t head = item % l->heads;
        chm_stream_state *stream = c->streams ? c->streams[root->slot] : NULL;
        uint8_t *const work = c->scratch[worker], *const levels = work + j->state_bytes;
        void *state[CHM_MAX_STATES];
        chm_head h;
        fill_head(c, l, head, &h);
        h.scratch = levels + (size_t)c->levels * j->state_bytes;
        const bool direct = in_place && stream;
        if (direct)
            blob_states(c, l, stream->blob, head, state);
        else
            scratch_states(c, l, work, state);
        for (int64_t i = root->first; i < root->first + root->count; i++) {
            const int32_t row = c->order[i];
            if (c->from[row] == CHM_FROM_SLOT && !direct)
                load_states(c, l, stream, head, work);
            else if (c->from[row] >= 0)
                memcpy(work, levels + (size_t)c->from[row] * j->state_bytes, j->state_bytes);
            h.position = c->rows.position[row];
            if (h.position == 0) clear_states(c, l, state);
            const float *in[CHM_MAX_INPUTS];
            float *out = j->out->data + row * j->out->width + head * l->out_width;
            row_inputs(l, l->in, head, row, in);
            r->step(&h, state, in, j->ask ? NULL : out);
            if (j->ask) {
                const float *ask[CHM_MAX_INPUTS];
                row_inputs(l, j->ask, head, row, ask);
                for (uint32_t k = 0; k < r->n_inputs; k++)
                    if (r->read_inputs >> k & 1) in[k] = ask[k];
                r->read(&h, state, in, out);
            }
            if (c->save[row] >= 0) memcpy(levels + (size_t)c->save[row] * j->state_bytes, work, j->state_bytes);
        }
    }
}

static void step_pass(chm_context *c, chm_logged *l, chm_tensor *const *ask, chm_tensor *out) {
    struct recur_job job = {.c = c, .l = l, .ask = ask, .out = out, .state_bytes = head_state_bytes(c, l)};
    if (chm_need_scratch(c, job.state_bytes * (size_t)(c->levels + 1) + plugin_scratch(c, l, 1))) return;
    const double cost = (double)job.state_bytes / 4 * 0.2 * (double)c->rows.count / (double)CHM_MAX(c->roots, 1);
    chm_spread(c, c->roots * l->heads, 1, cost, step_items, &job);
}

static void replay_items(void *arg, int64_t begin, int64_t end, int worker) {
    const struct recur_job *j = arg;
    const chm_context *c = j->c;
    const chm_logged *l = j->l;
    for (int64_t head = begin; head < end; head++) {
        void *state[CHM_MAX_STATES];
        chm_head h;
        fill_head(c, l, head, &h);
        h.scratch = c->scratch[worker];
        blob_states(c, l, j->stream->blob, head, state);
        for (int64_t i = 0; i < j->path_count; i++) {
            const float *in[CHM_MAX_INPUTS];
            h.position = c->rows.position[j->path[i]];
            if (h.position == 0) clear_states(c, l, state);
            row_inputs(l, l->in, head, j->path[i], in);
            l->recurrence->step(&h, state, in, NULL);
        }
    }
}

static int replay(chm_context *c, chm_logged *l, const int32_t *path, int64_t count, chm_stream_state *s) {
    if (l->window) return chm_window_replay(c, l, path, count, s);
    if (!l->recurrence) return chm_conv_replay(c, l, path, count, s);
    struct recur_job job = {.c = c, .l = l, .path = path, .path_count = count, .stream = s};
    if (chm_need_scratch(c, plugin_scratch(c, l, 1))) return c->status;
    chm_spread(c, l->heads, 1, (double)head_state_bytes(c, l) / 4 * 0.2 * (double)count, replay_items, &job);
    return CHM_OK;
}

int chm_accept(chm_context *c, const int32_t *rows, int64_t count) {
    if (c->status) return chm_context_status(c);
    if (c->train || (c->flags & CHM_PASS_COMMIT))
        return chm_fail(CHM_E_INTERNAL, "only rows of a pass that tries can be accepted");
    if (count == 0) return CHM_OK;
    int32_t before = -1;
    for (int64_t i = 0; i < count; i++) {
        const int32_t row = rows[i];
        if (row < 0 || row >= c->rows.count || (i == 0 ? c->rows.parent[row] >= 0 : c->rows.parent[row] != before))
            return chm_fail(CHM_E_INTERNAL, "row %d does not continue the accepted path", row);
        before = row;
    }
    chm_stream_state *s = c->streams[~c->rows.parent[rows[0]]];
    for (chm_logged *l = c->log; l; l = l->next)
        if (!l->write && replay(c, l, rows, count, s)) return chm_context_status(c);
    return CHM_OK;
}

void chm_context_loop(chm_context *c, int pass) {
    /* Leaving a loop: the rows are final now, so what its first pass wrote goes into the streams. */
    if (!pass && c->loop && (c->flags & CHM_PASS_COMMIT) && c->status == CHM_OK)
        for (chm_logged *l = c->log; l; l = l->next)
            for (int64_t i = 0; l->looped && !l->write && i < c->roots; i++)
                replay(c, l, c->order + c->root[i].first, c->root[i].count, c->streams[c->root[i].slot]);
    c->loop = pass;
}

/* ---- chunks ---- */

static int plan_chunks(chm_context *c, chm_logged *l) {
    const int64_t limit = chunk_limit(l);
    const bool aligned = l->recurrence->flags & CHM_REC_ALIGNED;
    int64_t most = 0;
    for (int64_t i = 0; i < c->chains; i++) most += c->chain[i].count / limit + 2;
    l->chunk_first = chm_take(c, (size_t)most * sizeof(int64_t));
    l->chunk_rows = chm_take(c, (size_t)most * sizeof(int64_t));
    l->chunk_fresh = chm_take(c, (size_t)most * sizeof(bool));
    l->slot_chunk = chm_take_zero(c, (size_t)(c->slots + 1) * sizeof(int64_t));
    if (c->status) return c->status;
    for (int64_t i = 0; i < c->chains; i++) {
        const chm_chain *chain = &c->chain[i];
        for (int64_t done = 0; done < chain->count;) {
            int64_t rows = CHM_MIN(limit, chain->count - done);
            if (aligned) rows = CHM_MIN(rows, limit - (chain->position + done) % limit);
            l->chunk_first[l->chunks] = chain->first + done;
            l->chunk_rows[l->chunks] = rows;
            l->chunk_fresh[l->chunks] = done == 0 && chain->fresh;
            l->chunks++;
            done += rows;
        }
        l->slot_chunk[chain->slot + 1] = l->chunks;
    }
    l->start_bytes = head_state_bytes(c, l);
    l->start = chm_take(c, (size_t)(l->chunks * l->heads) * l->start_bytes);
    if (l->recurrence->saved_bytes) {
        chm_head h;
        fill_head(c, l, 0, &h);
        h.rows = limit;
        l->saved_bytes = chm_align64(l->recurrence->saved_bytes(&h));
        l->saved = chm_take(c, (size_t)(l->chunks * l->heads) * l->saved_bytes);
    }
    return c->status;
}

static void chunk_head(const chm_context *c, const chm_logged *l, int64_t head, int64_t chunk, chm_head *h) {
    h->rows = l->chunk_rows[chunk];
    h->position = c->rows.position[l->chunk_first[chunk]];
    h->saved = l->saved ? l->saved + (size_t)(chunk * l->heads + head) * l->saved_bytes : NULL;
}

static uint8_t *chunk_start(const chm_logged *l, int64_t head, int64_t chunk) {
    return l->start + (size_t)(chunk * l->heads + head) * l->start_bytes;
}

static void chunk_items(void *arg, int64_t begin, int64_t end, int worker) {
    const struct recur_job *j = arg;
    const chm_context *c = j->c;
    const chm_logged *l = j->l;
    for (int64_t item = begin; item < end; item++) {
        const int64_t slot = item / l->heads, head = item % l->heads;
        uint8_t *const work = c->scratch[worker];
        void *state[CHM_MAX_STATES];
        chm_head h;
        fill_head(c, l, head, &h);
        h.scratch = work + j->state_bytes;
        scratch_states(c, l, work, state);
        load_states(c, l, c->streams ? c->streams[slot] : NULL, head, work);
        for (int64_t k = l->slot_chunk[slot]; k < l->slot_chunk[slot + 1]; k++) {
            const float *in[CHM_MAX_INPUTS];
            const int64_t row = l->chunk_first[k];
            float *out = j->out->data + row * j->out->width + head * l->out_width;
            if (l->chunk_fresh[k]) clear_states(c, l, state);
            memcpy(chunk_start(l, head, k), work, l->start_bytes);
            chunk_head(c, l, head, k, &h);
            row_inputs(l, l->in, head, row, in);
            if (!(c->flags & CHM_PASS_STEP)) {
                l->recurrence->chunk(&h, state, in, out);
                continue;
            }
            const int64_t rows = h.rows;
            for (int64_t i = 0; i < rows; i++, h.position++, out += h.out_stride) {
                h.rows = 1;
                row_inputs(l, l->in, head, row + i, in);
                l->recurrence->step(&h, state, in, out);
            }
        }
        if ((c->flags & CHM_PASS_CARRY) && c->streams) {
            void *to[CHM_MAX_STATES];
            blob_states(c, l, c->streams[slot]->blob, head, to);
            for (uint32_t i = 0; i < l->recurrence->n_states; i++)
                memcpy(to[i], state[i], item_of(c, l, i)->head_bytes);
        }
    }
}

static void chunk_read_items(void *arg, int64_t begin, int64_t end, int worker) {
    const struct recur_job *j = arg;
    const chm_context *c = j->c;
    const chm_logged *l = j->l;
    for (int64_t item = begin; item < end; item++) {
        const int64_t k = item / l->heads, head = item % l->heads, row = l->chunk_first[k];
        void *state[CHM_MAX_STATES];
        const float *in[CHM_MAX_INPUTS], *ask[CHM_MAX_INPUTS];
        chm_head h;
        fill_head(c, l, head, &h);
        h.scratch = c->scratch[worker];
        chunk_head(c, l, head, k, &h);
        scratch_states(c, l, chunk_start(l, head, k), state);
        row_inputs(l, l->in, head, row, in);
        row_inputs(l, j->ask, head, row, ask);
        for (uint32_t i = 0; i < l->recurrence->n_inputs; i++)
            if (!(l->recurrence->read_inputs >> i & 1)) ask[i] = NULL;
        if (j->dout) {
            float *dask[CHM_MAX_INPUTS] = {0};
            for (uint32_t i = 0; i < l->recurrence->n_inputs; i++)
                if (ask[i] && j->din[i]) dask[i] = j->din[i] + (ask[i] - j->ask[i]->data);
            l->recurrence->chunk_read_backward(&h, state, in, ask, j->dout + row * h.out_stride + head * l->out_width,
                                               dask);
        } else
            l->recurrence->chunk_read(&h, state, in, ask, j->out->data + row * h.out_stride + head * l->out_width);
    }
}

/* ---- backward ---- */

static void backward_items(void *arg, int64_t begin, int64_t end, int worker) {
    const struct recur_job *j = arg;
    const chm_context *c = j->c;
    const chm_logged *l = j->l;
    const chm_recurrence *r = l->recurrence;
    for (int64_t item = begin; item < end; item++) {
        const int64_t slot = item / l->heads, head = item % l->heads;
        uint8_t *const work = c->scratch[worker];
        void *gradient[CHM_MAX_STATES] = {0};
        chm_head h;
        fill_head(c, l, head, &h);
        h.scratch = work + j->state_bytes;
        scratch_states(c, l, work, gradient);
        memset(work, 0, j->state_bytes);
        if (c->state_grad && c->state_grad[slot]) {
            void *from[CHM_MAX_STATES] = {0};
            blob_states(c, l, c->state_grad[slot], head, from);
            for (uint32_t i = 0; i < r->n_states; i++) {
                assert(gradient[i] && from[i]);
                memcpy(gradient[i], from[i], item_of(c, l, i)->head_bytes);
            }
        }
        for (int64_t k = l->slot_chunk[slot + 1] - 1; k >= l->slot_chunk[slot]; k--) {
            void *state[CHM_MAX_STATES];
            const float *in[CHM_MAX_INPUTS] = {0};
            const float *ask[16][CHM_MAX_INPUTS], *const *asks[16], *ask_dout[16];
            const int64_t row = l->chunk_first[k];
            chm_chunk_grad grad = {.dout = j->dout + row * h.out_stride + head * l->out_width};
            chunk_head(c, l, head, k, &h);
            scratch_states(c, l, chunk_start(l, head, k), state);
            row_inputs(l, l->in, head, row, in);
            for (uint32_t i = 0; i < r->n_inputs; i++)
                if (j->din[i]) grad.din[i] = j->din[i] + (in[i] - l->in[i]->data);
            for (uint32_t i = 0; i < r->n_params; i++)
                if (j->dparam[i]) grad.dparam[i] = j->dparam[i] + slot * l->param[i]->count + head * h.param_count[i];
            for (uint32_t i = 0; i < r->n_states; i++)
                grad.dstate[i] = item_of(c, l, i)->type == CHM_F32 ? gradient[i] : NULL;
            for (int p = 0; p < l->reads; p++) {
                row_inputs(l, l->read[p]->in, head, row, ask[p]);
                for (uint32_t i = 0; i < r->n_inputs; i++)
                    if (!(r->read_inputs >> i & 1)) ask[p][i] = NULL;
                asks[p] = ask[p];
                ask_dout[p] = l->read_dout[p] + row * h.out_stride + head * l->out_width;
            }
            grad.n_reads = (uint32_t)l->reads;
            grad.read_in = asks;
            grad.read_dout = ask_dout;
            r->chunk_backward(&h, state, in, &grad);
            if (l->chunk_fresh[k]) memset(work, 0, j->state_bytes); /* a document's first state is a constant */
        }
        if (c->state_grad && c->state_grad[slot]) {
            void *to[CHM_MAX_STATES] = {0};
            blob_states(c, l, c->state_grad[slot], head, to);
            for (uint32_t i = 0; i < r->n_states; i++) {
                assert(to[i] && gradient[i]);
                memcpy(to[i], gradient[i], item_of(c, l, i)->head_bytes);
            }
        }
    }
}

static void recur_backward(chm_context *c, chm_node *n) {
    chm_logged *l = n->data;
    const chm_recurrence *r = l->recurrence;
    struct recur_job job = {.c = c, .l = l, .dout = n->out->grad, .state_bytes = l->start_bytes};
    for (uint32_t i = 0; i < r->n_inputs; i++) job.din[i] = chm_grad(c, l->in[i]);
    for (uint32_t i = 0; i < r->n_params; i++)
        if (l->param[i]->grad)
            job.dparam[i] = chm_take_zero(c, (size_t)(c->slots * l->param[i]->count) * sizeof(float));
    if (c->status || chm_need_scratch(c, job.state_bytes + plugin_scratch(c, l, chunk_limit(l)))) return;
    chm_spread(c, c->slots * l->heads, 1, 1e6, backward_items, &job);
    for (uint32_t i = 0; i < r->n_params; i++)
        for (int64_t s = 0; job.dparam[i] && s < c->slots; s++)
            for (int64_t e = 0; e < l->param[i]->count; e++)
                l->param[i]->grad[e] += job.dparam[i][s * l->param[i]->count + e];
}

/* A read pass: its questions get their gradient now, what flows to the writes waits for the write pass, whose turn in
 * the reverse sweep comes after every read's. */
static void read_backward(chm_context *c, chm_node *n) {
    chm_logged *read = n->data, *l = read->write;
    const chm_recurrence *r = l->recurrence;
    struct recur_job job = {.c = c, .l = l, .ask = read->in, .dout = n->out->grad};
    for (uint32_t i = 0; i < r->n_inputs; i++)
        if (r->read_inputs >> i & 1) job.din[i] = chm_grad(c, read->in[i]);
    /* the write pass must run even if nothing used its own output */
    if (l->out) chm_grad(c, l->out);
    if (c->status || chm_need_scratch(c, plugin_scratch(c, l, chunk_limit(l)))) return;
    chm_spread(c, l->chunks * l->heads, 1, 1e5, chunk_read_items, &job);
    n->keep_grad = true; /* the write pass reads it when its turn comes */
    l->read[l->reads] = read;
    l->read_dout[l->reads++] = n->out->grad;
}

/* ---- the operator ---- */

static int check_call(chm_context *c, const chm_recurrence *r, chm_tensor *const *in, chm_param *const *params,
                      const int *states, int64_t heads, int64_t out_width) {
    if (!r || r->size < sizeof *r || !r->step || r->n_inputs < 1 || r->n_inputs > CHM_MAX_INPUTS ||
        r->n_states > CHM_MAX_STATES || r->n_params > CHM_MAX_PARAMS || heads < 1 || out_width < 1) {
        chm_refuse(c, CHM_E_PLUGIN, "%s: a recurrence without step, inputs or heads", c->part);
        return c->status;
    }
    for (uint32_t i = 0; i < r->n_inputs; i++)
        if (!in[i])
            return CHM_E_INTERNAL;
        else if (in[i]->rows != c->rows.count || in[i]->width % heads) {
            chm_refuse(c, CHM_E_CONFIG, "%s: %s: input %u is [%lld, %lld], the pass has %lld rows and %lld heads",
                       c->part, r->name, i, (long long)in[i]->rows, (long long)in[i]->width, (long long)c->rows.count,
                       (long long)heads);
            return c->status;
        }
    for (uint32_t i = 0; i < r->n_params; i++)
        if (!params || !params[i] || !params[i]->value || params[i]->count % heads) {
            chm_refuse(c, CHM_E_CONFIG, "%s: %s: parameter %u does not split into %lld heads", c->part, r->name, i,
                       (long long)heads);
            return c->status;
        }
    for (uint32_t i = 0; i < r->n_states; i++) {
        const int at = states ? c->first_state + states[i] : -1;
        if (at < 0 || states[i] < 0 || at >= c->layout->count || c->layout->item[at].layer != c->layer ||
            c->layout->item[at].heads != heads || c->layout->item[at].ring) {
            chm_refuse(c, CHM_E_PLUGIN, "%s: %s: state %u is not one of this layer's with %lld heads", c->part, r->name,
                       i, (long long)heads);
            return c->status;
        }
    }
    if (c->train && (!r->chunk || !r->chunk_backward)) {
        chm_refuse(c, CHM_E_PLUGIN, "%s: %s has no chunk form and cannot be trained", c->part, r->name);
        return c->status;
    }
    if (c->loop && (!r->read || (c->train && (!r->chunk_read || !r->chunk_read_backward)))) {
        chm_refuse(c, CHM_E_PLUGIN, "%s: %s has no read form and cannot stand inside a loop", c->part, r->name);
        return c->status;
    }
    return CHM_OK;
}

chm_tensor *chm_op_recur(chm_graph *g, const chm_recurrence *r, const void *layer, chm_tensor *const *in,
                         chm_param *const *params, const int *states, int64_t heads, int64_t out_width) {
    chm_context *c = chm_context_of(g);
    if (check_call(c, r, in, params, states, heads, out_width)) return NULL;
    chm_tensor *out = chm_tensor_new(c, c->rows.count, heads * out_width);
    chm_logged *write = c->loop > 1 ? chm_log_find(c) : NULL;
    if (c->loop > 1 && (!write || write->recurrence != r))
        return chm_refuse(c, CHM_E_PLUGIN, "%s: %s was not called in the first loop pass", c->part, r->name);
    chm_logged *l = chm_log_add(c);
    if (!out || !l) return NULL;
    l->recurrence = r;
    l->layer = layer;
    l->heads = heads;
    l->out_width = out_width;
    l->out = out;
    l->looped = c->loop > 0;
    l->write = write;
    for (uint32_t i = 0; i < r->n_inputs; i++) l->in[i] = in[i];
    for (uint32_t i = 0; i < r->n_params; i++) l->param[i] = params[i];
    for (uint32_t i = 0; i < r->n_states; i++) l->state[i] = c->first_state + states[i];

    struct recur_job job = {.c = c, .l = write ? write : l, .out = out};
    if (!c->train)
        step_pass(c, job.l, write ? l->in : NULL, out);
    else if (write) {
        if (write->reads_planned++ == 16) return chm_refuse(c, CHM_E_CONFIG, "%s: more than 16 read passes", c->part);
        job.ask = l->in;
        if (chm_need_scratch(c, plugin_scratch(c, write, chunk_limit(write)))) return NULL;
        chm_spread(c, write->chunks * heads, 1, 1e5, chunk_read_items, &job);
    } else {
        if (plan_chunks(c, l)) return NULL;
        job.state_bytes = l->start_bytes;
        if (chm_need_scratch(c, job.state_bytes + plugin_scratch(c, l, chunk_limit(l)))) return NULL;
        chm_spread(c, c->slots * heads, 1, 1e6, chunk_items, &job);
    }
    if (c->status) return NULL;
    chm_param *with_grad = NULL;
    for (uint32_t i = 0; i < r->n_params; i++)
        if (params[i]->grad) with_grad = params[i];
    chm_node *n = chm_record(c, out, in, (int)r->n_inputs, with_grad, write ? read_backward : recur_backward);
    if (n) n->data = l;
    return out;
}
