/*
 * The short causal convolution. It needs no recurrence: a row's output depends on its own input and on those of at most
 * taps - 1 ancestors, found through the topology or, before the pass's first row, in the stream's history of inputs.
 */
#include "graph/context.h"
#include <string.h>

enum { ROW_PIECE = 64 };

struct conv_job {
    chm_context *c;
    chm_tensor *x, *past, *y; /* past: the inputs that taps >= 1 see; x itself but on read passes */
    const chm_state_item *item;
    chm_param *param;
    int64_t taps, width;
    float *weight;     /* [taps][width] */
    float *history;    /* [slots][taps - 1][width], newest first, as it was before the pass */
    chm_logged *first; /* of the pass that wrote: its history serves the read passes too */
    float *dx, *dpast, *dweight, *dhistory;
};

/* Where the input `lag` rows before `row` lies: a row's, a history's, or nowhere (before the document). */
static bool source(const struct conv_job *j, int64_t row, int64_t lag, int64_t *at, int64_t *before) {
    const chm_rows *rows = &j->c->rows;
    *at = *before = -1;
    if (lag > rows->position[row]) return false;
    for (int64_t i = 0; i < lag; i++) {
        const int32_t p = rows->parent[row];
        if (p < 0) {
            *before = (int64_t)~p * (j->taps - 1) + lag - i - 1;
            return true;
        }
        row = p;
    }
    *at = row;
    return true;
}

static void conv_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct conv_job *j = arg;
    const int64_t width = j->width;
    for (int64_t r = begin; r < end; r++) {
        float *y = j->y->data + r * width;
        const float *x = j->x->data + r * width;
        for (int64_t i = 0; i < width; i++) y[i] = j->weight[i] * x[i];
        for (int64_t lag = 1; lag < j->taps; lag++) {
            int64_t at, before;
            if (!source(j, r, lag, &at, &before)) continue;
            const float *w = j->weight + lag * width;
            const float *u = at >= 0 ? j->past->data + at * width : j->history + before * width;
            for (int64_t i = 0; i < width; i++) y[i] += w[i] * u[i];
        }
    }
}

/* The history after a path of `count` rows (path NULL: first, first + 1, ...). Oldest lag first, so that what is still
 * needed of the old history is not overwritten. */
static void push_history(const struct conv_job *j, uint8_t *blob, const int32_t *path, int64_t first, int64_t count) {
    const int64_t heads = j->item->heads, per_head = j->width / heads;
    const int64_t position = j->c->rows.position[path ? path[count - 1] : first + count - 1];
    for (int64_t h = 0; h < heads; h++) {
        float *to = (float *)(void *)(blob + j->item->offset + (size_t)h * j->item->head_bytes);
        for (int64_t lag = j->taps - 2; lag >= 0; lag--) {
            float *entry = to + lag * per_head;
            if (lag > position)
                memset(entry, 0, (size_t)per_head * sizeof(float));
            else if (lag >= count)
                memcpy(entry, to + (lag - count) * per_head, (size_t)per_head * sizeof(float));
            else {
                const int64_t row = path ? path[count - 1 - lag] : first + count - 1 - lag;
                memcpy(entry, j->past->data + row * j->width + h * per_head, (size_t)per_head * sizeof(float));
            }
        }
    }
}

int chm_conv_replay(chm_context *c, const chm_logged *l, const int32_t *rows, int64_t count, chm_stream_state *s) {
    struct conv_job j = {.c = c, .past = l->in[0], .item = &c->layout->item[l->state[0]], .width = l->in[0]->width};
    j.taps = j.item->shape[0] + 1;
    push_history(&j, s->blob, rows, 0, count);
    return CHM_OK;
}

/* A row gathers its gradient from the rows after it, so pieces of rows share nothing but the weights' gradient, which
 * each sums for itself. In training the rows of a slot are one run, and a row `lag` later sees this one unless its
 * document began in between. */
static void conv_backward_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct conv_job *j = arg;
    const int64_t width = j->width;
    float *dw = j->dweight + begin / ROW_PIECE * j->taps * width;
    for (int64_t r = begin; r < end; r++) {
        const float *x = j->x->data + r * width, *past = j->past->data + r * width;
        for (int64_t lag = 0; lag < j->taps; lag++) {
            const int64_t later = r + lag;
            if (later >= j->x->rows || lag > j->c->rows.position[later] || (lag && j->c->rows.parent[later] < 0)) break;
            const float *u = lag ? past : x, *dy = j->y->grad + later * width, *w = j->weight + lag * width;
            float *to = lag ? j->dpast : j->dx, *sum = dw + lag * width;
            for (int64_t i = 0; i < width; i++) sum[i] += u[i] * dy[i];
            if (!to) continue;
            to += r * width;
            for (int64_t i = 0; i < width; i++) to[i] += w[i] * dy[i];
        }
    }
}

/* What the first rows of every slot saw of the history before the pass. */
static void conv_backward_history(const struct conv_job *j) {
    const chm_rows *rows = &j->c->rows;
    const int64_t width = j->width;
    for (int64_t r = 0; r < rows->count; r++) {
        if (rows->parent[r] >= 0) continue;
        for (int64_t row = r; row < rows->count && row < r + j->taps - 1; row++) {
            if (row > r && rows->parent[row] < 0) break;
            const float *dy = j->y->grad + row * width;
            for (int64_t lag = row - r + 1; lag < j->taps; lag++) {
                int64_t at, before;
                if (!source(j, row, lag, &at, &before) || before < 0) continue;
                const float *w = j->weight + lag * width, *u = j->history + before * width;
                for (int64_t i = 0; i < width; i++) j->dweight[lag * width + i] += u[i] * dy[i];
                for (int64_t i = 0; j->dhistory && i < width; i++) j->dhistory[before * width + i] += w[i] * dy[i];
            }
        }
    }
}

/* Gradients of the history after the pass reach the inputs it was made of; those of the history before it are stored.
 */
static void history_gradients(chm_context *c, const struct conv_job *j) {
    const int64_t heads = j->item->heads, per_head = j->width / heads, lags = j->taps - 1;
    for (int slot = 0; slot < c->slots; slot++) {
        if (!c->state_grad[slot]) continue;
        int64_t last = -1, count = 0;
        for (int64_t i = 0; i < c->chains; i++)
            if (c->chain[i].slot == slot) {
                last = c->chain[i].first + c->chain[i].count - 1;
                count += c->chain[i].count;
            }
        if (last < 0) continue;
        for (int64_t h = 0; h < heads; h++) {
            float *blob = (float *)(void *)(c->state_grad[slot] + j->item->offset + (size_t)h * j->item->head_bytes);
            for (int64_t lag = 0; lag < lags; lag++) {
                if (lag > c->rows.position[last]) continue;
                float *to = lag < count ? (j->dpast ? j->dpast + (last - lag) * j->width : NULL)
                                        : j->dhistory + (slot * lags + lag - count) * j->width;
                for (int64_t i = 0; to && i < per_head; i++) to[h * per_head + i] += blob[lag * per_head + i];
            }
        }
        for (int64_t h = 0; h < heads; h++) {
            float *blob = (float *)(void *)(c->state_grad[slot] + j->item->offset + (size_t)h * j->item->head_bytes);
            for (int64_t lag = 0; lag < lags; lag++)
                memcpy(blob + lag * per_head, j->dhistory + (slot * lags + lag) * j->width + h * per_head,
                       (size_t)per_head * sizeof(float));
        }
    }
}

static void conv_backward(chm_context *c, chm_node *n) {
    struct conv_job *j = n->data;
    j->dx = chm_grad(c, j->x);
    j->dpast = j->past == j->x ? j->dx : chm_grad(c, j->past);
    const int64_t size = j->taps * j->width, pieces = (j->x->rows + ROW_PIECE - 1) / ROW_PIECE;
    j->dweight = chm_take_zero(c, (size_t)(pieces * size) * sizeof(float));
    if (c->state_grad) {
        /* read passes come first in the reverse sweep; the pass that wrote stores the sum */
        if (!j->first->dhistory) j->first->dhistory = chm_take_zero(c, (size_t)(c->slots * size) * sizeof(float));
        j->dhistory = j->first->dhistory;
        if (j->past != j->x) chm_grad(c, j->first->out); /* so that it runs even if nothing used its own output */
    }
    if (c->status) return;
    chm_spread(c, j->x->rows, ROW_PIECE, (double)size * 0.5, conv_backward_rows, j);
    conv_backward_history(j);
    if (j->dhistory && j->past == j->x) history_gradients(c, j);
    if (!j->param->grad) return;
    for (int64_t p = 1; p < pieces; p++)
        for (int64_t i = 0; i < size; i++) j->dweight[i] += j->dweight[p * size + i];
    for (int64_t lag = 0; lag < j->taps; lag++)
        for (int64_t i = 0; i < j->width; i++) j->param->grad[i * j->taps + lag] += j->dweight[lag * j->width + i];
}

chm_tensor *chm_op_short_conv(chm_graph *g, chm_tensor *x, chm_param *taps, int state) {
    chm_context *c = chm_context_of(g);
    if (!x) return NULL;
    const int at = c->first_state + state;
    const int64_t count = taps ? taps->in : 0;
    if (!taps || !taps->value || taps->out != x->width || x->rows != c->rows.count || state < 0 ||
        at >= c->layout->count || c->layout->item[at].layer != c->layer || c->layout->item[at].rank != 2 ||
        c->layout->item[at].ring || c->layout->item[at].shape[0] != count - 1 ||
        c->layout->item[at].heads * c->layout->item[at].shape[1] != x->width)
        return chm_refuse(c, CHM_E_PLUGIN,
                          "%s: a short convolution of %lld columns needs taps [width, n] and the state "
                          "of chm_declare_conv_state() for them",
                          c->part, (long long)x->width);
    chm_logged *write = c->loop > 1 ? chm_log_find(c) : NULL;
    if (c->loop > 1 && !write)
        return chm_refuse(c, CHM_E_PLUGIN, "%s: a short convolution was not called in the first loop pass", c->part);
    chm_logged *l = chm_log_add(c);
    struct conv_job *j = chm_take_zero(c, sizeof *j);
    chm_tensor *y = chm_tensor_new(c, x->rows, x->width);
    if (!l || !j || !y) return NULL;
    l->in[0] = x;
    l->state[0] = at;
    l->looped = c->loop > 0;
    l->write = write;
    l->out = y;
    *j = (struct conv_job){.c = c,
                           .first = write ? write : l,
                           .x = x,
                           .past = write ? write->in[0] : x,
                           .y = y,
                           .item = &c->layout->item[at],
                           .param = taps,
                           .taps = count,
                           .width = x->width};
    const int64_t lags = count - 1, heads = j->item->heads, per_head = x->width / heads;
    j->weight = chm_take(c, (size_t)(count * x->width) * sizeof(float));
    /* A read pass must not look at the streams: the first pass may have moved them on already. */
    l->history = write ? write->history : chm_take_zero(c, (size_t)(c->slots * lags * x->width + 1) * sizeof(float));
    j->history = l->history;
    if (c->status) return NULL;
    for (int64_t lag = 0; lag < count; lag++)
        for (int64_t i = 0; i < x->width; i++) j->weight[lag * x->width + i] = taps->value[i * count + lag];
    for (int slot = 0; slot < c->slots && c->streams && !write; slot++)
        for (int64_t h = 0; h < heads && c->streams[slot]; h++) {
            const uint8_t *from = c->streams[slot]->blob + j->item->offset + (size_t)h * j->item->head_bytes;
            for (int64_t lag = 0; lag < lags; lag++)
                memcpy(j->history + (slot * lags + lag) * x->width + h * per_head,
                       from + (size_t)(lag * per_head) * sizeof(float), (size_t)per_head * sizeof(float));
        }
    chm_spread(c, x->rows, 64, (double)(x->width * count) * 0.2, conv_rows, j);
    /* The stream moves on where rows are final; inside a loop that is when the loop is left. */
    if (c->streams && !write && !c->loop && (c->flags & CHM_PASS_COMMIT))
        for (int64_t i = 0; i < c->roots; i++)
            push_history(j, c->streams[c->root[i].slot]->blob, c->order + c->root[i].first, 0, c->root[i].count);
    if (c->streams && !write && c->train && (c->flags & CHM_PASS_CARRY))
        for (int64_t i = 0; i < c->chains; i++)
            push_history(j, c->streams[c->chain[i].slot]->blob, NULL, c->chain[i].first, c->chain[i].count);
    chm_tensor *in[] = {x, j->past};
    chm_node *n = chm_record(c, y, in, 2, taps, conv_backward);
    if (n) n->data = j;
    return y;
}
