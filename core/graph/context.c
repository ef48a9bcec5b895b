/*
 * A pass: its rows planned once, its tensors in one arena, its operators on one tape.
 */
#include "graph/context.h"
#include <stdarg.h>
#include <string.h>

void *chm_refuse(chm_context *c, int status, const char *format, ...) {
    if (c->status == CHM_OK) {
        va_list args;
        va_start(args, format);
        vsnprintf(c->error, sizeof c->error, format, args);
        va_end(args);
        c->status = status;
    }
    return NULL;
}

void *chm_take(chm_context *c, size_t bytes) {
    void *p = chm_arena_take(&c->arena, bytes);
    return p ? p : chm_refuse(c, CHM_E_MEMORY, "%s", chm_error());
}

void *chm_take_zero(chm_context *c, size_t bytes) {
    void *p = chm_arena_zero(&c->arena, bytes);
    return p ? p : chm_refuse(c, CHM_E_MEMORY, "%s", chm_error());
}

chm_tensor *chm_tensor_new(chm_context *c, int64_t rows, int64_t width) {
    if (rows < 0 || width < 1 || (width > 0 && rows > INT64_MAX / 8 / width))
        return chm_refuse(c, CHM_E_INTERNAL, "a tensor of %lld x %lld was asked for", (long long)rows,
                          (long long)width);
    chm_tensor *t = chm_take_zero(c, sizeof *t);
    if (!t) return NULL;
    t->rows = rows;
    t->width = width;
    t->data = chm_take(c, (size_t)(rows * width) * sizeof(float));
    return t->data ? t : NULL;
}

chm_node *chm_record(chm_context *c, chm_tensor *out, chm_tensor *const *in, int inputs, chm_param *param,
                     void (*backward)(chm_context *, chm_node *)) {
    if (!c->train || c->unrecorded || !out) return NULL;
    bool wanted = param && param->grad;
    for (int i = 0; i < inputs; i++) wanted = wanted || (in[i]->flags & CHM_TENSOR_GRAD);
    if (!wanted) return NULL;
    chm_node *n = chm_take_zero(c, sizeof *n);
    if (!n) return NULL;
    n->out = out;
    n->inputs = inputs;
    for (int i = 0; i < inputs; i++) n->in[i] = in[i];
    n->param = param;
    n->backward = backward;
    n->previous = c->tape;
    c->tape = n;
    out->flags |= CHM_TENSOR_GRAD;
    return n;
}

static void zero_floats(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    memset((float *)arg + begin, 0, (size_t)(end - begin) * sizeof(float));
}

float *chm_grad(chm_context *c, chm_tensor *t) {
    if (!(t->flags & CHM_TENSOR_GRAD)) return NULL;
    if (t->grad) return t->grad;
    const int64_t count = t->rows * t->width;
    const size_t bytes = (size_t)count * sizeof(float);
    chm_spare **at = &c->spare;
    while (*at && (*at)->bytes != bytes) at = &(*at)->next;
    if (*at) {
        t->grad = (float *)(void *)*at;
        *at = (*at)->next;
    } else {
        t->grad = chm_take(c, bytes);
    }
    /* together: left to one thread, clearing was the longest that the others waited for */
    if (t->grad) chm_spread(c, count, 16384, 0.25, zero_floats, t->grad);
    return t->grad;
}

/* In a reverse sweep nothing reads an output's gradient after its operator's turn. */
static void spare_grad(chm_context *c, chm_tensor *t) {
    const size_t bytes = (size_t)(t->rows * t->width) * sizeof(float);
    if (bytes < sizeof(chm_spare)) return;
    chm_spare *s = (chm_spare *)(void *)t->grad;
    s->bytes = bytes;
    s->next = c->spare;
    c->spare = s;
    t->grad = NULL;
}

int chm_need_scratch(chm_context *c, size_t bytes) {
    if (bytes <= c->scratch_bytes) return CHM_OK;
    for (int i = 0; i < chm_pool_threads(c->pool); i++) {
        uint8_t *p = chm_alloc_aligned(bytes);
        if (!p) {
            chm_refuse(c, CHM_E_MEMORY, "%s", chm_error());
            return CHM_E_MEMORY;
        }
        chm_free(c->scratch[i]);
        c->scratch[i] = p;
    }
    c->scratch_bytes = bytes;
    return CHM_OK;
}

void chm_spread(chm_context *c, int64_t count, int64_t grain, double cost, chm_body body, void *arg) {
    /* Waking a worker costs a few microseconds; below about twenty it is cheaper to stay alone. Which way is taken
     * changes nothing in the result. Pieces keep their size, since a body may keep partial sums per piece. */
    if (!c->pool || chm_pool_threads(c->pool) == 1 || (double)count * cost < 20000.0) {
        for (int64_t i = 0; i < count; i += grain) body(arg, i, CHM_MIN(i + grain, count), 0);
        return;
    }
    chm_parallel(c->pool, count, grain, body, arg);
}

int chm_context_create(const struct chm_kernels *kernels, chm_pool *pool, const chm_state_layout *layout,
                       float norm_eps, chm_context **out) {
    *out = NULL;
    chm_context *c = chm_alloc(sizeof *c);
    if (!c) return CHM_E_MEMORY;
    c->graph.ops = &chm_graph_table;
    c->kernels = kernels;
    c->pool = pool;
    c->layout = layout;
    c->norm_eps = norm_eps;
    chm_arena_init(&c->arena);
    c->scratch = chm_alloc((size_t)chm_pool_threads(pool) * sizeof *c->scratch);
    if (!c->scratch) {
        chm_context_destroy(c);
        return CHM_E_MEMORY;
    }
    *out = c;
    return CHM_OK;
}

void chm_context_destroy(chm_context *c) {
    if (!c) return;
    if (c->scratch)
        for (int i = 0; i < chm_pool_threads(c->pool); i++) chm_free(c->scratch[i]);
    chm_free(c->scratch);
    chm_arena_finish(&c->arena);
    chm_free(c);
}

chm_graph *chm_context_graph(chm_context *c) { return &c->graph; }

void chm_context_on_tap(chm_context *c, chm_tap_hook hook, void *user) {
    c->tap = hook;
    c->tap_user = user;
}

int64_t chm_context_rows(const chm_context *c) { return c->rows.count; }

bool chm_context_trains(const chm_context *c) { return c->train; }

void chm_context_record(chm_context *c, bool on) { c->unrecorded = !on; }

void chm_context_recompute(chm_context *c, bool on) { c->recompute = on; }

void *chm_context_take(chm_context *c, size_t bytes) { return chm_take(c, bytes); }

size_t chm_context_bytes(const chm_context *c) { return c->arena.peak; }

int chm_context_status(chm_context *c) { return c->status == CHM_OK ? CHM_OK : chm_fail(c->status, "%s", c->error); }

/* ---- planning the rows ---- */

static int plan_training(chm_context *c) {
    const chm_rows *rows = &c->rows;
    c->chain = chm_take(c, (size_t)(rows->count + 1) * sizeof *c->chain);
    if (!c->chain) return c->status;
    int slot = -1;
    for (int64_t r = 0; r < rows->count; r++) {
        const bool from_slot = rows->parent[r] < 0;
        if (from_slot) {
            if (~rows->parent[r] != slot + 1) {
                chm_refuse(c, CHM_E_INTERNAL, "training rows must lie slot after slot: row %lld", (long long)r);
                return c->status;
            }
            slot++;
        } else if (rows->parent[r] != r - 1) {
            chm_refuse(c, CHM_E_INTERNAL, "training rows must be chains: row %lld", (long long)r);
            return c->status;
        }
        if (from_slot || rows->position[r] == 0) {
            c->chain[c->chains++] =
                (chm_chain){.first = r, .position = rows->position[r], .slot = slot, .fresh = rows->position[r] == 0};
        }
        c->chain[c->chains - 1].count++;
    }
    if (slot + 1 != c->slots && rows->count > 0)
        chm_refuse(c, CHM_E_INTERNAL, "%d slots were announced, the rows use %d", c->slots, slot + 1);
    return c->status;
}

/* Depth-first order with one saved state per branching ancestor: a row either continues from the row before it in the
 * order, or starts from its slot's committed state, or from a saved level. */
static int plan_steps(chm_context *c) {
    const chm_rows *rows = &c->rows;
    const size_t n = (size_t)rows->count;
    c->order = chm_take(c, n * sizeof(int32_t));
    c->from = chm_take(c, n * sizeof(int32_t));
    c->save = chm_take(c, n * sizeof(int32_t));
    c->root = chm_take(c, n * sizeof *c->root);
    int32_t *child = chm_take(c, n * sizeof(int32_t));   /* first child */
    int32_t *sibling = chm_take(c, n * sizeof(int32_t)); /* next child of the same parent */
    int32_t *children = chm_take_zero(c, n * sizeof(int32_t));
    int32_t *level = chm_take(c, n * sizeof(int32_t));
    int32_t *stack = chm_take(c, (n + 1) * sizeof(int32_t));
    if (c->status) return c->status;
    for (size_t r = 0; r < n; r++) child[r] = sibling[r] = -1;
    for (int64_t r = rows->count - 1; r >= 0; r--) {
        const int32_t p = rows->parent[r];
        if (p >= r || (p < 0 && ~p >= c->slots)) {
            chm_refuse(c, CHM_E_INTERNAL, "row %lld has parent %d, which does not come before it", (long long)r,
                       (int)p);
            return c->status;
        }
        if (p < 0) continue;
        sibling[r] = child[p];
        child[p] = (int32_t)r;
        children[p]++;
    }
    int64_t done = 0;
    for (int64_t r = 0; r < rows->count; r++) {
        if (rows->parent[r] >= 0) continue;
        chm_root *root = &c->root[c->roots++];
        root->first = done;
        root->slot = ~rows->parent[r];
        int top = 0;
        stack[top++] = (int32_t)r;
        level[r] = 0;
        while (top > 0) {
            const int32_t row = stack[--top];
            const int32_t parent = rows->parent[row];
            c->order[done] = row;
            c->from[row] = parent < 0                                           ? CHM_FROM_SLOT
                           : done > root->first && c->order[done - 1] == parent ? CHM_FROM_PREVIOUS
                                                                                : level[parent];
            c->save[row] = children[row] > 1 ? level[row] : -1;
            done++;
            c->levels = CHM_MAX(c->levels, children[row] > 1 ? level[row] + 1 : 0);
            /* children in rising order come off the stack first to last */
            int pushed = 0;
            for (int32_t k = child[row]; k >= 0; k = sibling[k]) {
                level[k] = level[row] + (children[row] > 1);
                stack[top + pushed++] = k;
            }
            for (int i = 0; i < pushed / 2; i++) {
                const int32_t t = stack[top + i];
                stack[top + i] = stack[top + pushed - 1 - i];
                stack[top + pushed - 1 - i] = t;
            }
            top += pushed;
        }
        root->count = done - root->first;
    }
    if (c->flags & CHM_PASS_COMMIT) {
        uint8_t *seen = chm_take_zero(c, (size_t)c->slots + 1);
        if (!seen) return c->status;
        for (int64_t i = 0; i < c->roots; i++)
            if (c->levels > 0 || seen[c->root[i].slot]++) {
                chm_refuse(c, CHM_E_INTERNAL, "rows to commit must be one chain per stream");
                return c->status;
            }
    }
    return CHM_OK;
}

int chm_context_begin(chm_context *c, const chm_rows *rows, chm_stream_state *const *streams, int slots,
                      uint32_t flags) {
    chm_arena_reset(&c->arena);
    c->rows = *rows;
    c->streams = streams;
    c->slots = slots;
    c->flags = flags;
    c->train = flags & CHM_PASS_TRAIN;
    c->unrecorded = c->again = false;
    c->status = CHM_OK;
    c->error[0] = 0;
    c->tape = NULL;
    c->spare = NULL;
    c->turns = NULL;
    c->log = NULL;
    c->log_end = &c->log;
    c->layer = c->first_state = c->ordinal = c->loop = 0;
    c->part = "";
    c->chains = c->roots = 0;
    c->state_grad = NULL;
    c->levels = 0;
    if (c->train)
        plan_training(c);
    else
        plan_steps(c);
    return chm_context_status(c);
}

void chm_context_state_gradients(chm_context *c, uint8_t *const *blob) { c->state_grad = blob; }

void chm_context_enter(chm_context *c, int layer, const char *part, int first_state) {
    c->layer = layer;
    c->part = part;
    c->first_state = first_state;
    c->ordinal = 0;
}

chm_tensor *chm_input(chm_context *c, int64_t rows, int64_t width, const float *data, uint32_t flags) {
    chm_tensor *t = chm_tensor_new(c, rows, width);
    if (!t) return NULL;
    const size_t bytes = (size_t)(t->rows * t->width) * sizeof(float);
    if (data)
        memcpy(t->data, data, bytes);
    else
        memset(t->data, 0, bytes);
    t->flags = flags;
    return t;
}

void chm_run_tape(chm_context *c) {
    for (chm_node *n = c->tape; n && c->status == CHM_OK; n = n->previous) {
        if (!n->out->grad) continue;
        n->backward(c, n);
        if (!n->keep_grad) spare_grad(c, n->out);
    }
}

int chm_backward(chm_context *c) {
    chm_run_tape(c);
    return chm_context_status(c);
}

/* ---- the log of stateful operators ---- */

chm_logged *chm_log_find(chm_context *c) {
    for (chm_logged *l = c->log; l; l = l->next)
        if (!l->write && l->layer_index == c->layer && l->ordinal == c->ordinal && !strcmp(l->part, c->part)) return l;
    return NULL;
}

chm_logged *chm_log_add(chm_context *c) {
    chm_logged *l = chm_take_zero(c, sizeof *l);
    if (!l) return NULL;
    l->layer_index = c->layer;
    l->ordinal = c->ordinal++;
    l->part = c->part;
    *c->log_end = l;
    c->log_end = &l->next;
    return l;
}
