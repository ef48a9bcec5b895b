/*
 * Windows over rings: a row reads the last entries of its own past. Entries of this pass are found through the
 * topology, older ones in the stream's ring; the stream moves on once every row has been read, so rows and heads are
 * independent of each other.
 *
 * Training works on whole chains, document by document. What the streams held is copied first, because a later loop
 * pass and the way back look at it after the streams may have moved on. Gradients of entries add up from every pass
 * over them.
 */
#include "graph/context.h"
#include <string.h>

/* What a pass keeps of the rings it met, and of one look at them. */
struct look {
    chm_tensor *ask[CHM_MAX_INPUTS];
    /* training: of the pass that wrote */
    int64_t *before[CHM_MAX_RINGS];        /* [chains]: entries carried into a chain */
    int64_t *carried_first[CHM_MAX_RINGS]; /* [chains]: where they begin in carried, in rows */
    float *carried[CHM_MAX_RINGS];         /* [...][heads * width] */
    float *dcarried[CHM_MAX_RINGS];        /* the same; NULL: not wanted */
    int64_t carried_rows[CHM_MAX_RINGS];
    /* training: of this pass */
    size_t saved_bytes; /* per row, head after head within a chain */
    size_t *saved_first;
    uint8_t *saved;
};

struct look_job {
    chm_context *c;
    const chm_logged *write; /* whose entries are seen */
    const struct look *kept; /* of that */
    struct look *look;       /* of this pass */
    chm_tensor *out;
    size_t list_bytes; /* of the entry lists in a worker's scratch */
    float *dask[CHM_MAX_INPUTS], *drows[CHM_MAX_RINGS];
    const float *dout;
};

static const chm_state_item *ring_of(const chm_context *c, const chm_logged *l, uint32_t i) {
    return &c->layout->item[l->state[i]];
}

static void fill_head(const struct look_job *j, int64_t head, chm_head *h) {
    const chm_logged *l = j->write;
    const chm_window *w = l->window;
    memset(h, 0, sizeof *h);
    h->layer = l->layer;
    h->kernels = j->c->kernels;
    h->head = head;
    h->heads = l->heads;
    h->rows = 1;
    for (uint32_t i = 0; i < w->n_asks + w->n_rings; i++) {
        const chm_tensor *t = i < w->n_asks ? j->look->ask[i] : l->in[i - w->n_asks];
        h->in_width[i] = t->width / l->heads;
        h->in_stride[i] = t->width;
    }
    h->out_width = l->out_width;
    h->out_stride = l->out_width * l->heads;
}

/* ---- one row ---- */

/* The entries that `row` sees, oldest first, from the row itself backwards. */
static int64_t list_entries(const struct look_job *j, uint32_t ring, int64_t head, int32_t row, const float **entry) {
    const chm_context *c = j->c;
    const chm_state_item *item = ring_of(c, j->write, ring);
    const chm_tensor *in = j->write->in[ring];
    const int64_t width = item->shape[1], entries = item->shape[0], position = c->rows.position[row];
    const int64_t count = CHM_MIN(position + 1, entries);
    int64_t at = count - 1;
    for (; at >= 0; at--) {
        entry[at] = in->data + row * in->width + head * width;
        row = c->rows.parent[row];
        if (row < 0) break;
    }
    if (--at < 0) return count;
    const int64_t last = position - (count - 1 - at); /* of the newest entry in the ring that is seen */
    const uint8_t *blob = c->streams[~row]->blob;     /* check_call() has seen that it is there */
    const float *base = (const float *)(const void *)(blob + item->offset + (size_t)head * item->head_bytes);
    int64_t slot = last % entries;
    for (; at >= 0; at--) {
        entry[at] = base + slot * width;
        slot = slot ? slot - 1 : entries - 1;
    }
    return count;
}

static void look_items(void *arg, int64_t begin, int64_t end, int worker) {
    const struct look_job *j = arg;
    const chm_context *c = j->c;
    const chm_logged *l = j->write;
    for (int64_t item = begin; item < end; item++) {
        const int64_t row = item / l->heads, head = item % l->heads;
        const float *ask[CHM_MAX_INPUTS], *const *entry[CHM_MAX_RINGS];
        const float **list = (const float **)(void *)c->scratch[worker];
        int64_t count[CHM_MAX_RINGS];
        chm_head h;
        fill_head(j, head, &h);
        h.position = c->rows.position[row];
        h.scratch = c->scratch[worker] + j->list_bytes;
        for (uint32_t i = 0; i < l->window->n_asks; i++)
            ask[i] = j->look->ask[i]->data + row * h.in_stride[i] + head * h.in_width[i];
        for (uint32_t i = 0; i < l->window->n_rings; i++) {
            entry[i] = list;
            count[i] = list_entries(j, i, head, (int32_t)row, list);
            list += ring_of(c, l, i)->shape[0];
        }
        l->window->look(&h, ask, count, entry, j->out->data + row * h.out_stride + head * l->out_width);
    }
}

/* ---- the streams move on ---- */

/* Appends a path of rows (path NULL: first, first + 1, ...), of which only those of its last document stay. */
static void push_entries(const chm_context *c, const chm_logged *l, uint8_t *blob, const int32_t *path, int64_t first,
                         int64_t count) {
    const int64_t last = c->rows.position[path ? path[count - 1] : first + count - 1];
    for (uint32_t i = 0; i < l->window->n_rings; i++) {
        const chm_state_item *item = ring_of(c, l, i);
        const int64_t entries = item->shape[0], width = item->shape[1];
        /* a document that began on the way starts with an empty ring */
        if (last < count) memset(blob + item->offset, 0, item->head_bytes * (size_t)item->heads);
        const int64_t kept = CHM_MIN(CHM_MIN(count, last + 1), entries);
        for (int64_t k = count - kept; k < count; k++) {
            const int64_t row = path ? path[k] : first + k;
            const float *from = l->in[i]->data + row * l->in[i]->width;
            uint8_t *to = blob + item->offset + (size_t)(c->rows.position[row] % entries * width) * sizeof(float);
            for (int64_t head = 0; head < l->heads; head++)
                memcpy(to + (size_t)head * item->head_bytes, from + head * width, (size_t)width * sizeof(float));
        }
    }
}

int chm_window_replay(chm_context *c, const chm_logged *l, const int32_t *rows, int64_t count, chm_stream_state *s) {
    push_entries(c, l, s->blob, rows, 0, count);
    return CHM_OK;
}

/* ---- training ---- */

/* Copies what the chains will see of the streams. */
static int carry(chm_context *c, const chm_logged *l, struct look *look) {
    for (uint32_t i = 0; i < l->window->n_rings; i++) {
        const chm_state_item *item = ring_of(c, l, i);
        const int64_t entries = item->shape[0], width = item->shape[1];
        look->before[i] = chm_take_zero(c, (size_t)(c->chains + 1) * sizeof(int64_t));
        look->carried_first[i] = chm_take_zero(c, (size_t)(c->chains + 1) * sizeof(int64_t));
        if (c->status) return c->status;
        int64_t rows = 0;
        for (int64_t k = 0; k < c->chains; k++) {
            const chm_chain *chain = &c->chain[k];
            look->carried_first[i][k] = rows;
            if (!chain->fresh && c->streams && c->streams[chain->slot])
                look->before[i][k] = CHM_MIN(chain->position, entries - 1);
            rows += look->before[i][k];
        }
        look->carried_rows[i] = rows;
        look->carried[i] = chm_take(c, (size_t)(rows * l->heads * width + 1) * sizeof(float));
        if (c->status) return c->status;
        for (int64_t k = 0; k < c->chains; k++) {
            const int64_t position = c->chain[k].position, before = look->before[i][k];
            for (int64_t e = 0; e < before; e++) {
                const int64_t slot = (position - before + e) % entries;
                const uint8_t *from = c->streams[c->chain[k].slot]->blob + item->offset;
                float *to = look->carried[i] + (look->carried_first[i][k] + e) * l->heads * width;
                for (int64_t head = 0; head < l->heads; head++)
                    memcpy(to + head * width,
                           from + (size_t)head * item->head_bytes + (size_t)(slot * width) * sizeof(float),
                           (size_t)width * sizeof(float));
            }
        }
    }
    return CHM_OK;
}

static void chain_rings(const struct look_job *j, int64_t chain, int64_t head, chm_ring_rows *ring) {
    const chm_logged *l = j->write;
    for (uint32_t i = 0; i < l->window->n_rings; i++) {
        const chm_state_item *item = ring_of(j->c, l, i);
        const int64_t width = item->shape[1], stride = l->heads * width;
        const int64_t carried = j->kept->carried_first[i][chain] * stride + head * width;
        const int64_t rows = j->c->chain[chain].first * stride + head * width;
        ring[i] = (chm_ring_rows){.entries = item->shape[0],
                                  .width = width,
                                  .before = j->kept->before[i][chain],
                                  .stride = stride,
                                  .carried = j->kept->carried[i] + carried,
                                  .rows = l->in[i]->data + rows,
                                  .dcarried = j->kept->dcarried[i] ? j->kept->dcarried[i] + carried : NULL,
                                  .drows = j->drows[i] ? j->drows[i] + rows : NULL};
    }
}

/* What a kernel is handed for an item, a chain and a head of it. Returns the chain. */
static const chm_chain *item_head(const struct look_job *j, int64_t item, int worker, chm_head *h, const float **ask,
                                  chm_ring_rows *ring) {
    const int64_t chain = item / j->write->heads, head = item % j->write->heads;
    const chm_chain *ch = &j->c->chain[chain];
    fill_head(j, head, h);
    h->scratch = j->c->scratch[worker] + j->list_bytes;
    h->rows = ch->count;
    h->position = ch->position;
    if (j->look->saved)
        h->saved = j->look->saved + j->look->saved_first[chain] +
                   (size_t)head * ((j->look->saved_first[chain + 1] - j->look->saved_first[chain]) / (size_t)h->heads);
    for (uint32_t i = 0; i < j->write->window->n_asks; i++)
        ask[i] = j->look->ask[i]->data + ch->first * h->in_stride[i] + head * h->in_width[i];
    chain_rings(j, chain, head, ring);
    return ch;
}

static void chunk_items(void *arg, int64_t begin, int64_t end, int worker) {
    const struct look_job *j = arg;
    const chm_logged *l = j->write;
    for (int64_t item = begin; item < end; item++) {
        const float *ask[CHM_MAX_INPUTS];
        chm_ring_rows ring[CHM_MAX_RINGS];
        chm_head h;
        const chm_chain *chain = item_head(j, item, worker, &h, ask, ring);
        l->window->chunk(&h, ask, ring, j->out->data + chain->first * h.out_stride + h.head * l->out_width);
    }
}

/* Row by row, as inference does it, over the same rows and copies. */
static void step_items(void *arg, int64_t begin, int64_t end, int worker) {
    const struct look_job *j = arg;
    const chm_context *c = j->c;
    const chm_logged *l = j->write;
    for (int64_t item = begin; item < end; item++) {
        const float *ask[CHM_MAX_INPUTS], *const *entry[CHM_MAX_RINGS];
        const float **const lists = (const float **)(void *)c->scratch[worker];
        chm_ring_rows ring[CHM_MAX_RINGS];
        int64_t count[CHM_MAX_RINGS];
        chm_head h;
        const chm_chain *chain = item_head(j, item, worker, &h, ask, ring);
        h.rows = 1;
        h.saved = NULL;
        for (int64_t r = 0; r < chain->count; r++, h.position++) {
            const float **list = lists;
            for (uint32_t i = 0; i < l->window->n_rings; i++) {
                const int64_t newest = ring[i].before + r, oldest = CHM_MAX(newest - ring[i].entries + 1, 0);
                entry[i] = list;
                count[i] = newest - oldest + 1;
                for (int64_t e = oldest; e <= newest; e++)
                    *list++ = e < ring[i].before ? ring[i].carried + e * ring[i].stride
                                                 : ring[i].rows + (e - ring[i].before) * ring[i].stride;
            }
            l->window->look(&h, ask, count, entry,
                            j->out->data + (chain->first + r) * h.out_stride + h.head * l->out_width);
            for (uint32_t i = 0; i < l->window->n_asks; i++) ask[i] += h.in_stride[i];
        }
    }
}

static void backward_items(void *arg, int64_t begin, int64_t end, int worker) {
    const struct look_job *j = arg;
    const chm_logged *l = j->write;
    for (int64_t item = begin; item < end; item++) {
        const float *ask[CHM_MAX_INPUTS];
        float *dask[CHM_MAX_INPUTS] = {0};
        chm_ring_rows ring[CHM_MAX_RINGS];
        chm_head h;
        const chm_chain *chain = item_head(j, item, worker, &h, ask, ring);
        for (uint32_t i = 0; i < l->window->n_asks; i++)
            if (j->dask[i]) dask[i] = j->dask[i] + (ask[i] - j->look->ask[i]->data);
        const int64_t at = chain->first * h.out_stride + h.head * l->out_width;
        l->window->chunk_backward(&h, ask, ring, j->out->data + at, j->dout + at, dask);
    }
}

/* The gradient of the rings after the pass reaches the entries it wrote; that of the rings before it is stored: what
 * was overwritten counts only as far as it was seen. */
static void ring_gradients(chm_context *c, const struct look_job *j) {
    const chm_logged *l = j->write;
    for (uint32_t i = 0; i < l->window->n_rings; i++) {
        const chm_state_item *item = ring_of(c, l, i);
        const int64_t entries = item->shape[0], width = item->shape[1], stride = l->heads * width;
        for (int slot = 0; slot < c->slots; slot++) {
            if (!c->state_grad[slot]) continue;
            int64_t opening = -1, closing = -1;
            for (int64_t k = 0; k < c->chains; k++)
                if (c->chain[k].slot == slot) {
                    if (opening < 0) opening = k;
                    closing = k;
                }
            if (closing < 0) continue;
            const chm_chain *end = &c->chain[closing], *begin = &c->chain[opening];
            uint8_t *blob = c->state_grad[slot] + item->offset;
            for (int64_t r = CHM_MAX(end->count - entries, 0); r < end->count; r++)
                for (int64_t head = 0; head < l->heads; head++) {
                    float *from = (float *)(void *)(blob + (size_t)head * item->head_bytes) +
                                  (end->position + r) % entries * width;
                    float *to = j->drows[i] ? j->drows[i] + (end->first + r) * stride + head * width : NULL;
                    for (int64_t e = 0; e < width; e++) {
                        if (to) to[e] += from[e];
                        from[e] = 0;
                    }
                }
            if (end->fresh) memset(blob, 0, item->head_bytes * (size_t)item->heads);
            for (int64_t e = 0; e < j->kept->before[i][opening]; e++)
                for (int64_t head = 0; head < l->heads; head++) {
                    const int64_t position = begin->position - j->kept->before[i][opening] + e;
                    float *to = (float *)(void *)(blob + (size_t)head * item->head_bytes) + position % entries * width;
                    const float *from =
                        j->kept->dcarried[i] + (j->kept->carried_first[i][opening] + e) * stride + head * width;
                    for (int64_t k = 0; k < width; k++) to[k] += from[k];
                }
        }
    }
}

static void look_backward(chm_context *c, chm_node *n) {
    chm_logged *l = n->data;
    const chm_logged *write = l->write ? l->write : l;
    const chm_window *w = write->window;
    struct look *kept = write->detail;
    struct look_job job = {
        .c = c, .write = write, .kept = kept, .look = l->detail, .out = n->out, .dout = n->out->grad};
    for (uint32_t i = 0; i < w->n_asks; i++) job.dask[i] = chm_grad(c, job.look->ask[i]);
    for (uint32_t i = 0; i < w->n_rings; i++) {
        job.drows[i] = chm_grad(c, write->in[i]);
        if (c->state_grad && !kept->dcarried[i])
            kept->dcarried[i] = chm_take_zero(
                c, (size_t)(kept->carried_rows[i] * write->heads * ring_of(c, write, i)->shape[1] + 1) * sizeof(float));
    }
    /* the pass that wrote settles the rings' gradient, even if nothing used its own output */
    if (l->write && c->state_grad && write->out) chm_grad(c, write->out);
    if (c->status) return;
    chm_spread(c, c->chains * write->heads, 1, 1e6, backward_items, &job);
    if (!l->write && c->state_grad) ring_gradients(c, &job);
}

/* ---- the operator ---- */

static int check_call(chm_context *c, const chm_window *w, chm_tensor *const *ask, chm_tensor *const *entry,
                      const int *rings, int64_t heads, int64_t out_width) {
    if (!w || w->size < sizeof *w || !w->look || w->n_asks < 1 || w->n_rings < 1 || w->n_rings > CHM_MAX_RINGS ||
        w->n_asks + w->n_rings > CHM_MAX_INPUTS || heads < 1 || out_width < 1) {
        chm_refuse(c, CHM_E_PLUGIN, "%s: a window without look, questions, rings or heads", c->part);
        return c->status;
    }
    for (uint32_t i = 0; i < w->n_asks + w->n_rings; i++) {
        const chm_tensor *t = i < w->n_asks ? ask[i] : entry[i - w->n_asks];
        if (!t) return CHM_E_INTERNAL;
        if (t->rows == c->rows.count && t->width % heads == 0) continue;
        chm_refuse(c, CHM_E_CONFIG, "%s: %s: input %u is [%lld, %lld], the pass has %lld rows and %lld heads", c->part,
                   w->name, i, (long long)t->rows, (long long)t->width, (long long)c->rows.count, (long long)heads);
        return c->status;
    }
    for (uint32_t i = 0; i < w->n_rings; i++) {
        const int at = rings ? c->first_state + rings[i] : -1;
        const chm_state_item *item = at >= 0 && rings[i] >= 0 && at < c->layout->count ? &c->layout->item[at] : NULL;
        if (item && item->layer == c->layer && item->ring && item->heads == heads &&
            item->shape[1] * heads == entry[i]->width)
            continue;
        chm_refuse(c, CHM_E_PLUGIN,
                   "%s: %s: entry %u has no ring of %lld heads of %lld numbers: declare it with "
                   "chm_declare_ring()",
                   c->part, w->name, i, (long long)heads, (long long)(entry[i]->width / heads));
        return c->status;
    }
    if (c->train && (!w->chunk || !w->chunk_backward)) {
        chm_refuse(c, CHM_E_PLUGIN, "%s: %s has no chunk form and cannot be trained", c->part, w->name);
        return c->status;
    }
    for (int64_t r = 0; r < c->rows.count && !c->train; r++)
        if (c->rows.parent[r] < 0 && c->rows.position[r] > 0 && !(c->streams && c->streams[~c->rows.parent[r]])) {
            chm_refuse(c, CHM_E_INTERNAL, "%s: row %lld continues a document and has no stream", c->part, (long long)r);
            return c->status;
        }
    return CHM_OK;
}

static int save_room(chm_context *c, const struct look_job *job, const chm_window *w) {
    struct look *look = job->look;
    if (!w->saved_bytes) return CHM_OK;
    size_t bytes = 0;
    look->saved_first = chm_take(c, (size_t)(c->chains + 1) * sizeof *look->saved_first);
    if (!look->saved_first) return c->status;
    chm_head h;
    fill_head(job, 0, &h);
    for (int64_t k = 0; k < c->chains; k++) {
        look->saved_first[k] = bytes;
        h.rows = c->chain[k].count;
        bytes += chm_align64(w->saved_bytes(&h)) * (size_t)h.heads;
    }
    look->saved_first[c->chains] = bytes;
    look->saved = chm_take(c, bytes + 64);
    return c->status;
}

chm_tensor *chm_op_look(chm_graph *g, const chm_window *w, const void *layer, chm_tensor *const *ask,
                        chm_tensor *const *entry, const int *rings, int64_t heads, int64_t out_width) {
    chm_context *c = chm_context_of(g);
    if (check_call(c, w, ask, entry, rings, heads, out_width)) return NULL;
    chm_logged *write = c->loop > 1 ? chm_log_find(c) : NULL;
    if (c->loop > 1 && (!write || write->window != w))
        return chm_refuse(c, CHM_E_PLUGIN, "%s: %s was not called in the first loop pass", c->part, w->name);
    chm_tensor *out = chm_tensor_new(c, c->rows.count, heads * out_width);
    chm_logged *l = chm_log_add(c);
    struct look *look = chm_take_zero(c, sizeof *look);
    if (!out || !l || !look) return NULL;
    l->window = w;
    l->layer = layer;
    l->heads = heads;
    l->out_width = out_width;
    l->out = out;
    l->looped = c->loop > 0;
    l->write = write;
    l->detail = look;
    for (uint32_t i = 0; i < w->n_asks; i++) look->ask[i] = ask[i];
    for (uint32_t i = 0; i < w->n_rings; i++) {
        l->in[i] = write ? write->in[i] : entry[i];
        l->state[i] = c->first_state + rings[i];
    }
    struct look_job job = {
        .c = c, .write = write ? write : l, .kept = write ? write->detail : look, .look = look, .out = out};
    double seen = 0; /* floats a row reads */
    for (uint32_t i = 0; i < w->n_rings; i++) {
        const chm_state_item *item = ring_of(c, l, i);
        job.list_bytes += (size_t)item->shape[0] * sizeof(float *);
        seen += (double)(item->shape[0] * item->shape[1]);
    }
    job.list_bytes = chm_align64(job.list_bytes);
    chm_head h;
    fill_head(&job, 0, &h);
    if (chm_need_scratch(c, job.list_bytes + (w->scratch_bytes ? w->scratch_bytes(&h) : 0) + 64)) return NULL;
    if (!c->train) {
        chm_spread(c, c->rows.count * heads, 1, seen * 0.2, look_items, &job);
    } else {
        if (!write && carry(c, l, look)) return NULL;
        if (save_room(c, &job, w)) return NULL;
        chm_spread(c, c->chains * heads, 1, 1e6, chunk_items, &job);
        if (c->flags & CHM_PASS_STEP) chm_spread(c, c->chains * heads, 1, 1e6, step_items, &job);
    }
    if (c->status) return NULL;
    /* The streams move on where rows are final; inside a loop that is when the loop is left. */
    if (c->streams && !write && !c->loop && (c->flags & CHM_PASS_COMMIT))
        for (int64_t i = 0; i < c->roots; i++)
            push_entries(c, l, c->streams[c->root[i].slot]->blob, c->order + c->root[i].first, 0, c->root[i].count);
    if (c->streams && !write && c->train && (c->flags & CHM_PASS_CARRY))
        for (int64_t i = 0; i < c->chains; i++)
            push_entries(c, l, c->streams[c->chain[i].slot]->blob, NULL, c->chain[i].first, c->chain[i].count);
    chm_tensor *in[CHM_MAX_INPUTS];
    for (uint32_t i = 0; i < w->n_asks; i++) in[i] = ask[i];
    for (uint32_t i = 0; i < w->n_rings; i++) in[w->n_asks + i] = l->in[i];
    chm_node *n = chm_record(c, out, in, (int)(w->n_asks + w->n_rings), NULL, look_backward);
    if (n) n->data = l;
    return out;
}
