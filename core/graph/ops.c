/*
 * The host's operators: forward at once, gradient rule on the tape. Pieces of parallel work have fixed sizes, so that
 * sums over rows come out the same for any number of threads.
 */
#include "graph/context.h"
#include "graph/encoding.h"
#include <math.h>
#include <string.h>

enum {
    ROW_PIECE = 64,      /* rows of a matrix product, and of partial sums of weight gradients */
    OUT_PIECE = 64,      /* outputs of a weight gradient */
    ELEMENT_PIECE = 8192 /* numbers of an elementwise operator */
};

/* ---- linear ---- */

struct linear_job {
    chm_context *c;
    chm_param *w;
    chm_tensor *x, *y;
    chm_quantised_rows *q;
    bool by_rows;
    float *dx;
    const float *weight, *input;
};

static void quantise_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct linear_job *j = arg;
    const struct chm_activation *a = &j->q->activation;
    j->c->kernels->quantise(
        j->x->data + begin * j->x->width, end - begin, j->x->width, (int8_t *)(uintptr_t)a->q + begin * a->blocks * 64,
        (float *)(uintptr_t)a->scale + begin * a->blocks, (int32_t *)(uintptr_t)a->sum + begin * a->blocks);
}

static struct chm_activation activation_rows(const struct chm_activation *a, int64_t begin, int64_t end) {
    return (struct chm_activation){.q = a->q + begin * a->blocks * 64,
                                   .scale = a->scale + begin * a->blocks,
                                   .sum = a->sum + begin * a->blocks,
                                   .rows = end - begin,
                                   .blocks = a->blocks};
}

/* Linears that read the same tensor share its int8 form. */
static chm_quantised_rows *quantised(chm_context *c, chm_tensor *x) {
    if (x->host) return x->host;
    chm_quantised_rows *q = chm_take_zero(c, sizeof *q);
    if (!q) return NULL;
    const int64_t blocks = (x->width + 63) / 64;
    q->activation = (struct chm_activation){.q = chm_take(c, (size_t)(x->rows * blocks * 64)),
                                            .scale = chm_take(c, (size_t)(x->rows * blocks) * sizeof(float)),
                                            .sum = chm_take(c, (size_t)(x->rows * blocks) * sizeof(int32_t)),
                                            .rows = x->rows,
                                            .blocks = blocks};
    if (c->status) return NULL;
    struct linear_job job = {.c = c, .x = x, .q = q};
    chm_spread(c, x->rows, ROW_PIECE, (double)x->width * 0.2, quantise_rows, &job);
    x->host = q;
    return q;
}

static void linear_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct linear_job *j = arg;
    const struct chm_kernels *k = j->c->kernels;
    const chm_param *w = j->w;
    const int64_t r0 = j->by_rows ? begin : 0, r1 = j->by_rows ? end : j->x->rows;
    float *y = j->y->data + r0 * j->y->width;
    switch (w->format) {
    case CHM_FORMAT_TERNARY: {
        const struct chm_activation a = activation_rows(&j->q->activation, r0, r1);
        chm_ternary_kernel(k, w->ternary.encoding)(&w->ternary, j->by_rows ? 0 : begin,
                                                   j->by_rows ? chm_ternary_tiles(w->out) : end, &a, y, j->y->width);
        break;
    }
    case CHM_FORMAT_INT8: {
        const struct chm_activation a = activation_rows(&j->q->activation, r0, r1);
        k->int8_matmul(&w->int8, j->by_rows ? 0 : begin, j->by_rows ? w->out : end, &a, y, j->y->width);
        break;
    }
    case CHM_FORMAT_F32:
        k->f32_matmul(w->value, j->by_rows ? 0 : begin, j->by_rows ? w->out : end, w->in, j->x->data + r0 * j->x->width,
                      r1 - r0, y, j->y->width);
        break;
    }
}

static void linear_dequantise(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct linear_job *j = arg;
    const struct chm_activation a = activation_rows(&j->q->activation, begin, end);
    j->c->kernels->dequantise(&a, j->x->width, j->q->dequant + begin * j->x->width);
}

/* c[m][in] += op(a) b, a with rows of `out`: in f32 where the forward pass was, else as the gradient of a rounding
 * needs */
static void linear_product(const struct linear_job *j, bool ta, int64_t m, int64_t k, const float *a, const float *b,
                           float *c) {
    const chm_param *w = j->w;
    if (w->format == CHM_FORMAT_F32)
        j->c->kernels->sgemm(ta, false, m, w->in, k, a, w->out, b, w->in, 1, c, w->in);
    else
        j->c->kernels->gradient_matmul(ta, m, w->in, k, a, w->out, b, w->in, c, w->in);
}

static void linear_backward_x(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct linear_job *j = arg;
    const chm_param *w = j->w;
    linear_product(j, false, end - begin, w->out, j->y->grad + begin * w->out, j->weight, j->dx + begin * w->in);
}

static void linear_backward_w(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct linear_job *j = arg;
    const chm_param *w = j->w;
    linear_product(j, true, end - begin, j->y->rows, j->y->grad + begin, j->input, w->grad + begin * w->in);
}

/* Straight-through: the gradient passes the rounding of weights and activations as if it were not there
 * (arXiv:1308.3432), but the products use what the forward pass used. */
static void linear_backward(chm_context *c, chm_node *n) {
    chm_tensor *x = n->in[0];
    chm_param *w = n->param;
    struct linear_job job = {.c = c, .w = w, .x = x, .y = n->out, .q = x->host};
    const double cost = (double)w->out * (double)w->in / 40.0;
    const bool packed = w->format != CHM_FORMAT_F32;
    job.weight = packed ? w->dequant : w->value;
    job.dx = chm_grad(c, x);
    if (c->status) return;
    if (job.dx) chm_spread(c, x->rows, 4 * ROW_PIECE, cost, linear_backward_x, &job);
    if (!w->grad) return;
    job.input = x->data;
    if (packed) {
        if (!job.q->dequant) {
            job.q->dequant = chm_take(c, (size_t)(x->rows * x->width) * sizeof(float));
            if (c->status) return;
            chm_spread(c, x->rows, ROW_PIECE, (double)x->width * 0.2, linear_dequantise, &job);
        }
        job.input = job.q->dequant;
    }
    chm_spread(c, w->out, OUT_PIECE, (double)x->rows * (double)w->in / 40.0, linear_backward_w, &job);
}

static chm_tensor *linear_alone(chm_graph *g, chm_tensor *x, chm_param *w) {
    chm_context *c = chm_context_of(g);
    if (!x || !w) return chm_refuse(c, CHM_E_INTERNAL, "%s: linear without input or parameter", c->part);
    if (x->width != w->in)
        return chm_refuse(c, CHM_E_CONFIG, "%s: linear reads %lld columns, its input has %lld", w->name,
                          (long long)w->in, (long long)x->width);
    chm_tensor *y = chm_tensor_new(c, x->rows, w->out);
    if (!y) return NULL;
    struct linear_job job = {.c = c, .w = w, .x = x, .y = y};
    if (w->format != CHM_FORMAT_F32 && !(job.q = quantised(c, x))) return NULL;
    /* Many rows: each worker takes rows and all outputs. Few: each takes outputs. The bytes are the same. */
    job.by_rows = x->rows >= 2 * ROW_PIECE;
    const double cost = (double)w->out * (double)w->in * (w->format == CHM_FORMAT_F32 ? 0.06 : 0.02);
    if (job.by_rows)
        chm_spread(c, x->rows, ROW_PIECE, cost, linear_forward, &job);
    else if (w->format == CHM_FORMAT_TERNARY) {
        const int64_t tiles = chm_ternary_tiles(w->out), threads = chm_pool_threads(c->pool);
        chm_spread(c, tiles, CHM_MAX(tiles / (2 * threads), 1), cost * (double)x->rows / (double)tiles, linear_forward,
                   &job);
    } else
        chm_spread(c, w->out, 32, cost * (double)x->rows / (double)w->out, linear_forward, &job);
    chm_tensor *in[] = {x};
    chm_record(c, y, in, 1, w, linear_backward);
    return y;
}

/* ---- some outputs of a linear ---- */

enum { UNIT = 16 }; /* outputs that are computed together: a tile of a ternary matrix */

struct some_job {
    struct linear_job linear;
    const int32_t *id;
    int64_t ids, units;
    const int64_t *first; /* [units]: the first id of each unit that has any, in order */
};

/* Runs of units are one call; what they give besides the ids is taken back. */
static void some_forward(void *arg, int64_t begin, int64_t end, int worker) {
    const struct some_job *j = arg;
    const struct linear_job *l = &j->linear;
    const int64_t out = l->w->out, each = l->w->format == CHM_FORMAT_TERNARY ? 1 : UNIT;
    for (int64_t u = begin; u < end;) {
        const int64_t unit = j->id[j->first[u]] / UNIT;
        int64_t n = 1;
        while (u + n < end && j->id[j->first[u + n]] / UNIT == unit + n) n++;
        linear_forward((void *)(uintptr_t)l, unit * each, CHM_MIN((unit + n) * each, each == 1 ? unit + n : out),
                       worker);
        const int64_t last = u + n < j->units ? j->first[u + n] : j->ids, to = CHM_MIN((unit + n) * UNIT, out);
        int64_t next = j->first[u];
        for (int64_t o = unit * UNIT; o < to; o++) {
            if (next < last && j->id[next] == o)
                next++;
            else
                for (int64_t r = 0; r < l->y->rows; r++) l->y->data[r * out + o] = -INFINITY;
        }
        u += n;
    }
}

chm_tensor *chm_linear_some(chm_context *c, chm_tensor *x, chm_param *w, const int32_t *id, int64_t ids) {
    if (!x || !w) return chm_refuse(c, CHM_E_INTERNAL, "%s: linear without input or parameter", c->part);
    if (x->width != w->in || c->train)
        return chm_refuse(c, CHM_E_INTERNAL, "%s: some outputs of a linear that reads %lld columns, from %lld%s",
                          w->name, (long long)w->in, (long long)x->width, c->train ? ", in training" : "");
    chm_tensor *y = chm_tensor_new(c, x->rows, w->out);
    int64_t *first = chm_take(c, (size_t)CHM_MIN(ids, w->out / UNIT + 1) * sizeof *first);
    if (!y || !first) return NULL;
    struct some_job job = {.linear = {.c = c, .w = w, .x = x, .y = y}, .id = id, .ids = ids, .first = first};
    if (w->format != CHM_FORMAT_F32 && !(job.linear.q = quantised(c, x))) return NULL;
    for (int64_t i = 0; i < ids; i++) {
        if (id[i] < 0 || id[i] >= w->out || (i && id[i] <= id[i - 1]))
            return chm_refuse(c, CHM_E_INTERNAL, "%s: output %d of 0..%lld wanted out of order", w->name, id[i],
                              (long long)w->out - 1);
        if (!i || id[i] / UNIT != id[i - 1] / UNIT) first[job.units++] = i;
    }
    for (int64_t i = 0; i < x->rows * w->out; i++) y->data[i] = -INFINITY;
    const double cost = UNIT * (double)w->in * (w->format == CHM_FORMAT_F32 ? 0.06 : 0.02) * (double)x->rows;
    chm_spread(c, job.units, CHM_MAX(job.units / (4 * chm_pool_threads(c->pool)), 1), cost, some_forward, &job);
    return y;
}

/* ---- parameters as tensors ---- */

static chm_tensor *op_param(chm_graph *g, chm_param *p) {
    chm_context *c = chm_context_of(g);
    if (!p || !p->value) return chm_refuse(c, CHM_E_INTERNAL, "%s: only f32 parameters are tensors", p ? p->name : "?");
    chm_tensor *t = chm_take_zero(c, sizeof *t);
    if (!t) return NULL;
    t->rows = 1;
    t->width = p->count;
    t->data = p->value;
    if (c->train && p->grad) {
        t->grad = p->grad;
        t->flags = CHM_TENSOR_GRAD;
    }
    return t;
}

/* ---- norms ---- */

struct norm_job {
    chm_context *c;
    chm_tensor *x, *y;
    const float *weight;
    int64_t group, weight_rows;
    float *rstd, *dx, *partial;
};

static void rmsnorm_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct norm_job *j = arg;
    const int64_t groups = j->x->width / j->group;
    j->c->kernels->rmsnorm(j->x->data + begin * j->x->width, (end - begin) * groups, j->group, j->c->norm_eps,
                           j->weight, j->weight_rows, j->y->data + begin * j->x->width, j->rstd + begin * groups);
}

static void rmsnorm_backward_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct norm_job *j = arg;
    const int64_t groups = j->x->width / j->group, size = j->weight_rows * j->group;
    j->c->kernels->rmsnorm_backward(j->x->data + begin * j->x->width, (end - begin) * groups, j->group, j->weight,
                                    j->weight_rows, j->rstd + begin * groups, j->y->grad + begin * j->x->width,
                                    j->dx + begin * j->x->width,
                                    j->partial ? j->partial + begin / ROW_PIECE * size : NULL);
}

static void rmsnorm_backward(chm_context *c, chm_node *n) {
    struct norm_job *j = n->data;
    const int64_t pieces = (j->x->rows + ROW_PIECE - 1) / ROW_PIECE, size = j->weight_rows * j->group;
    j->dx = chm_grad(c, j->x);
    /* an input that wants no gradient still has a weight that does */
    if (!j->dx) j->dx = chm_take(c, (size_t)(j->x->rows * j->x->width) * sizeof(float));
    float *const sum = n->param ? n->param->grad : NULL;
    if (sum) j->partial = chm_take_zero(c, (size_t)(pieces * size) * sizeof(float));
    if (c->status) return;
    chm_spread(c, j->x->rows, ROW_PIECE, (double)j->x->width * 0.5, rmsnorm_backward_rows, j);
    if (sum)
        for (int64_t p = 0; p < pieces; p++)
            for (int64_t i = 0; i < size; i++) sum[i] += j->partial[p * size + i];
}

static chm_tensor *op_rmsnorm(chm_graph *g, chm_tensor *x, chm_param *w, int64_t group) {
    chm_context *c = chm_context_of(g);
    if (!x) return NULL;
    if (!group) group = x->width;
    if (group < 1 || x->width % group || (w && w->count != group && w->count != x->width))
        return chm_refuse(c, CHM_E_CONFIG, "%s: rmsnorm of width %lld in groups of %lld with %lld weights", c->part,
                          (long long)x->width, (long long)group, (long long)(w ? w->count : 0));
    struct norm_job *j = chm_take_zero(c, sizeof *j);
    chm_tensor *y = chm_tensor_new(c, x->rows, x->width);
    if (!y || !j) return NULL;
    *j = (struct norm_job){.c = c, .x = x, .y = y, .weight = w ? w->value : NULL, .group = group};
    j->weight_rows = w ? w->count / group : 1;
    j->rstd = chm_take(c, (size_t)(x->rows * (x->width / group)) * sizeof(float));
    if (!j->rstd) return NULL;
    chm_spread(c, x->rows, ROW_PIECE, (double)x->width * 0.3, rmsnorm_forward, j);
    chm_tensor *in[] = {x};
    chm_node *n = chm_record(c, y, in, 1, w, rmsnorm_backward);
    if (n) n->data = j;
    return y;
}

static void l2norm_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct norm_job *j = arg;
    const int64_t groups = j->x->width / j->group;
    j->c->kernels->l2norm(j->x->data + begin * j->x->width, (end - begin) * groups, j->group, 1e-6f,
                          j->y->data + begin * j->x->width, j->rstd + begin * groups);
}

static void l2norm_backward_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct norm_job *j = arg;
    const int64_t groups = j->x->width / j->group, at = begin * j->x->width;
    j->c->kernels->l2norm_backward(j->y->data + at, (end - begin) * groups, j->group, j->rstd + begin * groups,
                                   j->y->grad + at, j->dx + at);
}

static void l2norm_backward(chm_context *c, chm_node *n) {
    struct norm_job *j = n->data;
    j->dx = chm_grad(c, j->x);
    if (j->dx) chm_spread(c, j->x->rows, ROW_PIECE, (double)j->x->width * 0.5, l2norm_backward_rows, j);
}

static chm_tensor *op_l2norm(chm_graph *g, chm_tensor *x, int64_t group) {
    chm_context *c = chm_context_of(g);
    if (!x) return NULL;
    if (!group) group = x->width;
    if (group < 1 || x->width % group)
        return chm_refuse(c, CHM_E_CONFIG, "%s: l2norm of width %lld in groups of %lld", c->part, (long long)x->width,
                          (long long)group);
    struct norm_job *j = chm_take_zero(c, sizeof *j);
    chm_tensor *y = chm_tensor_new(c, x->rows, x->width);
    if (!y || !j) return NULL;
    *j = (struct norm_job){.c = c, .x = x, .y = y, .group = group};
    j->rstd = chm_take(c, (size_t)(x->rows * (x->width / group)) * sizeof(float));
    if (!j->rstd) return NULL;
    chm_spread(c, x->rows, ROW_PIECE, (double)x->width * 0.3, l2norm_forward, j);
    chm_tensor *in[] = {x};
    chm_node *n = chm_record(c, y, in, 1, NULL, l2norm_backward);
    if (n) n->data = j;
    return y;
}

/* ---- elementwise ---- */

struct element_job {
    chm_context *c;
    chm_tensor *a, *b, *y;
    enum chm_unary op;
    float scale, offset;
    int64_t first, repeat; /* slice: first column; broadcast: columns of a per column of b */
    float *da, *db;
};

static struct element_job *element_job(chm_context *c, chm_tensor *a, chm_tensor *b, chm_tensor **y, int64_t width) {
    struct element_job *j = chm_take_zero(c, sizeof *j);
    *y = chm_tensor_new(c, a->rows, width);
    if (!j || !*y) return NULL;
    j->c = c;
    j->a = a;
    j->b = b;
    j->y = *y;
    return j;
}

static void unary_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct element_job *j = arg;
    j->c->kernels->unary(j->op, j->a->data + begin, end - begin, j->y->data + begin);
}

static void unary_backward_part(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct element_job *j = arg;
    j->c->kernels->unary_backward(j->op, j->a->data + begin, j->y->data + begin, j->y->grad + begin, end - begin,
                                  j->da + begin);
}

static void unary_backward(chm_context *c, chm_node *n) {
    struct element_job *j = n->data;
    j->da = chm_grad(c, j->a);
    if (j->da) chm_spread(c, j->a->rows * j->a->width, ELEMENT_PIECE, 1.5, unary_backward_part, j);
}

static chm_tensor *op_unary(chm_graph *g, enum chm_unary op, chm_tensor *x) {
    chm_context *c = chm_context_of(g);
    if (!x) return NULL;
    if ((int)op < 0 || op >= CHM_UNARY_COUNT)
        return chm_refuse(c, CHM_E_INTERNAL, "%s: no unary function %d", c->part, op);
    chm_tensor *y;
    struct element_job *j = element_job(c, x, NULL, &y, x->width);
    if (!j) return NULL;
    j->op = op;
    chm_spread(c, x->rows * x->width, ELEMENT_PIECE, 1.5, unary_forward, j);
    chm_node *n = chm_record(c, y, &x, 1, NULL, unary_backward);
    if (n) n->data = j;
    return y;
}

static void affine_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct element_job *j = arg;
    for (int64_t i = begin; i < end; i++) j->y->data[i] = j->a->data[i] * j->scale + j->offset;
}

static void affine_backward(chm_context *c, chm_node *n) {
    struct element_job *j = n->data;
    float *da = chm_grad(c, j->a);
    if (!da) return;
    for (int64_t i = 0; i < j->a->rows * j->a->width; i++) da[i] += j->y->grad[i] * j->scale;
}

static chm_tensor *op_affine(chm_graph *g, chm_tensor *x, float scale, float offset) {
    chm_context *c = chm_context_of(g);
    if (!x) return NULL;
    chm_tensor *y;
    struct element_job *j = element_job(c, x, NULL, &y, x->width);
    if (!j) return NULL;
    j->scale = scale;
    j->offset = offset;
    chm_spread(c, x->rows * x->width, ELEMENT_PIECE, 0.3, affine_forward, j);
    chm_node *n = chm_record(c, y, &x, 1, NULL, affine_backward);
    if (n) n->data = j;
    return y;
}

static void swiglu_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct element_job *j = arg;
    j->c->kernels->swiglu(j->a->data + begin, j->b->data + begin, end - begin, j->y->data + begin);
}

static void swiglu_backward_part(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct element_job *j = arg;
    j->c->kernels->swiglu_backward(j->a->data + begin, j->b->data + begin, j->y->grad + begin, end - begin,
                                   j->da + begin, j->db + begin);
}

static void swiglu_backward(chm_context *c, chm_node *n) {
    struct element_job *j = n->data;
    const int64_t count = j->a->rows * j->a->width;
    j->da = chm_grad(c, j->a);
    j->db = chm_grad(c, j->b);
    if (!j->da) j->da = chm_take(c, (size_t)count * sizeof(float));
    if (!j->db) j->db = chm_take(c, (size_t)count * sizeof(float));
    if (c->status == CHM_OK) chm_spread(c, count, ELEMENT_PIECE, 2, swiglu_backward_part, j);
}

static chm_tensor *op_swiglu(chm_graph *g, chm_tensor *gate, chm_tensor *up) {
    chm_context *c = chm_context_of(g);
    if (!gate || !up) return NULL;
    if (gate->rows != up->rows || gate->width != up->width)
        return chm_refuse(c, CHM_E_CONFIG, "%s: swiglu of %lld and %lld columns", c->part, (long long)gate->width,
                          (long long)up->width);
    chm_tensor *y;
    struct element_job *j = element_job(c, gate, up, &y, gate->width);
    if (!j) return NULL;
    chm_spread(c, gate->rows * gate->width, ELEMENT_PIECE, 2, swiglu_forward, j);
    chm_tensor *in[] = {gate, up};
    chm_node *n = chm_record(c, y, in, 2, NULL, swiglu_backward);
    if (n) n->data = j;
    return y;
}

/* b is as wide as a, or one row for all, or one column for `repeat` neighbouring columns of a */
static bool broadcasts(const chm_tensor *a, const chm_tensor *b, int64_t *repeat) {
    if ((b->rows != a->rows && b->rows != 1) || b->width < 1 || a->width % b->width) return false;
    *repeat = a->width / b->width;
    return true;
}

static void binary_forward(const struct element_job *j, int64_t begin, int64_t end, bool multiply) {
    const int64_t width = j->a->width, repeat = j->repeat;
    for (int64_t r = begin; r < end; r++) {
        const float *a = j->a->data + r * width, *b = j->b->data + (j->b->rows == 1 ? 0 : r * j->b->width);
        float *y = j->y->data + r * width;
        if (repeat == 1) {
            if (multiply)
                for (int64_t i = 0; i < width; i++) y[i] = a[i] * b[i];
            else
                for (int64_t i = 0; i < width; i++) y[i] = a[i] + b[i];
            continue;
        }
        for (int64_t k = 0; k < j->b->width; k++)
            for (int64_t i = k * repeat; i < (k + 1) * repeat; i++) y[i] = multiply ? a[i] * b[k] : a[i] + b[k];
    }
}

static void add_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    binary_forward(arg, begin, end, false);
}

static void mul_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    binary_forward(arg, begin, end, true);
}

/* Gradient of a, and of b where each row has its own. */
static void binary_backward_rows(const struct element_job *j, int64_t begin, int64_t end, bool multiply) {
    const int64_t width = j->a->width, repeat = j->repeat;
    const bool own_row = j->b->rows == j->a->rows;
    for (int64_t r = begin; r < end; r++) {
        const float *dy = j->y->grad + r * width, *a = j->a->data + r * width;
        const float *b = j->b->data + (j->b->rows == 1 ? 0 : r * j->b->width);
        if (j->da) {
            float *da = j->da + r * width;
            if (!multiply)
                for (int64_t i = 0; i < width; i++) da[i] += dy[i];
            else if (repeat == 1)
                for (int64_t i = 0; i < width; i++) da[i] += dy[i] * b[i];
            else
                for (int64_t k = 0; k < j->b->width; k++)
                    for (int64_t i = k * repeat; i < (k + 1) * repeat; i++) da[i] += dy[i] * b[k];
        }
        if (j->db && own_row) {
            float *db = j->db + r * j->b->width;
            if (repeat == 1) {
                if (multiply)
                    for (int64_t i = 0; i < width; i++) db[i] += dy[i] * a[i];
                else
                    for (int64_t i = 0; i < width; i++) db[i] += dy[i];
                continue;
            }
            for (int64_t k = 0; k < j->b->width; k++) {
                float sum = 0;
                for (int64_t i = k * repeat; i < (k + 1) * repeat; i++) sum += multiply ? dy[i] * a[i] : dy[i];
                db[k] += sum;
            }
        }
    }
}

static void add_backward_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    binary_backward_rows(arg, begin, end, false);
}

static void mul_backward_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    binary_backward_rows(arg, begin, end, true);
}

static void binary_backward(chm_context *c, struct element_job *j, bool multiply) {
    j->da = chm_grad(c, j->a);
    j->db = chm_grad(c, j->b);
    if (c->status) return;
    chm_spread(c, j->a->rows, ROW_PIECE, (double)j->a->width * 0.5, multiply ? mul_backward_rows : add_backward_rows,
               j);
    if (!j->db || j->b->rows == j->a->rows) return;
    for (int64_t r = 0; r < j->a->rows; r++) {
        const float *dy = j->y->grad + r * j->a->width, *a = j->a->data + r * j->a->width;
        for (int64_t i = 0; i < j->a->width; i++) j->db[i / j->repeat] += multiply ? dy[i] * a[i] : dy[i];
    }
}

static void add_backward(chm_context *c, chm_node *n) { binary_backward(c, n->data, false); }
static void mul_backward(chm_context *c, chm_node *n) { binary_backward(c, n->data, true); }

static chm_tensor *binary(chm_graph *g, chm_tensor *a, chm_tensor *b, bool multiply) {
    chm_context *c = chm_context_of(g);
    if (!a || !b) return NULL;
    if (a->rows == 1 && b->rows > 1) {
        chm_tensor *t = a;
        a = b;
        b = t;
    }
    int64_t repeat;
    if (!broadcasts(a, b, &repeat))
        return chm_refuse(c, CHM_E_CONFIG, "%s: cannot %s [%lld, %lld] and [%lld, %lld]", c->part,
                          multiply ? "multiply" : "add", (long long)a->rows, (long long)a->width, (long long)b->rows,
                          (long long)b->width);
    chm_tensor *y;
    struct element_job *j = element_job(c, a, b, &y, a->width);
    if (!j) return NULL;
    j->repeat = repeat;
    chm_spread(c, a->rows, ROW_PIECE, (double)a->width * 0.3, multiply ? mul_forward : add_forward, j);
    chm_tensor *in[] = {a, b};
    chm_node *n = chm_record(c, y, in, 2, NULL, multiply ? mul_backward : add_backward);
    if (n) n->data = j;
    return y;
}

static chm_tensor *op_add(chm_graph *g, chm_tensor *a, chm_tensor *b) { return binary(g, a, b, false); }
static chm_tensor *op_mul(chm_graph *g, chm_tensor *a, chm_tensor *b) { return binary(g, a, b, true); }

/* y + gate * (B (A x)), from the same int8 form of x */
static chm_tensor *op_linear(chm_graph *g, chm_tensor *x, chm_param *w) {
    chm_tensor *y = linear_alone(g, x, w);
    if (!y || !w->correction[0]) return y;
    chm_tensor *low = linear_alone(g, x, w->correction[0]);
    chm_tensor *more = low ? linear_alone(g, low, w->correction[1]) : NULL;
    return more ? op_add(g, y, op_mul(g, more, op_param(g, w->correction[2]))) : NULL;
}

/* ---- columns ---- */

static void concat_backward(chm_context *c, chm_node *n) {
    int64_t first = 0;
    for (int i = 0; i < n->inputs; i++) {
        chm_tensor *x = n->in[i];
        float *dx = chm_grad(c, x);
        if (c->status) return;
        for (int64_t r = 0; dx && r < x->rows; r++)
            for (int64_t k = 0; k < x->width; k++) dx[r * x->width + k] += n->out->grad[r * n->out->width + first + k];
        first += x->width;
    }
}

static chm_tensor *op_concat(chm_graph *g, chm_tensor *const *parts, int count) {
    chm_context *c = chm_context_of(g);
    int64_t width = 0;
    if (count < 1 || count > CHM_NODE_INPUTS)
        return chm_refuse(c, CHM_E_INTERNAL, "%s: concat of %d tensors", c->part, count);
    for (int i = 0; i < count; i++) {
        if (!parts[i]) return NULL;
        if (parts[i]->rows != parts[0]->rows) return chm_refuse(c, CHM_E_CONFIG, "%s: concat of unequal rows", c->part);
        width += parts[i]->width;
    }
    chm_tensor *y = chm_tensor_new(c, parts[0]->rows, width);
    if (!y) return NULL;
    for (int64_t r = 0; r < y->rows; r++) {
        float *to = y->data + r * width;
        for (int i = 0; i < count; i++) {
            memcpy(to, parts[i]->data + r * parts[i]->width, (size_t)parts[i]->width * sizeof(float));
            to += parts[i]->width;
        }
    }
    chm_record(c, y, parts, count, NULL, concat_backward);
    return y;
}

static void slice_backward(chm_context *c, chm_node *n) {
    const struct element_job *j = n->data;
    float *dx = chm_grad(c, j->a);
    if (!dx) return;
    for (int64_t r = 0; r < j->y->rows; r++)
        for (int64_t k = 0; k < j->y->width; k++) dx[r * j->a->width + j->first + k] += j->y->grad[r * j->y->width + k];
}

static chm_tensor *op_slice(chm_graph *g, chm_tensor *x, int64_t first, int64_t width) {
    chm_context *c = chm_context_of(g);
    if (!x) return NULL;
    if (first < 0 || width < 1 || first + width > x->width)
        return chm_refuse(c, CHM_E_CONFIG, "%s: slice %lld..%lld of %lld columns", c->part, (long long)first,
                          (long long)(first + width), (long long)x->width);
    chm_tensor *y;
    struct element_job *j = element_job(c, x, NULL, &y, width);
    if (!j) return NULL;
    j->first = first;
    for (int64_t r = 0; r < x->rows; r++)
        memcpy(y->data + r * width, x->data + r * x->width + first, (size_t)width * sizeof(float));
    chm_node *n = chm_record(c, y, &x, 1, NULL, slice_backward);
    if (n) n->data = j;
    return y;
}

/* ---- operators of a plugin ---- */

struct apply_job {
    const chm_operator *op;
    const void *self;
    chm_node node; /* inputs and output, also when nothing is recorded */
    int64_t width[CHM_NODE_INPUTS];
    float *din[CHM_NODE_INPUTS];
};

static void apply_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct apply_job *j = arg;
    const float *in[CHM_NODE_INPUTS];
    for (int i = 0; i < j->node.inputs; i++) in[i] = j->node.in[i]->data + begin * j->width[i];
    j->op->forward(j->self, end - begin, j->width, in, j->node.out->width,
                   j->node.out->data + begin * j->node.out->width);
}

static void apply_backward_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct apply_job *j = arg;
    const float *in[CHM_NODE_INPUTS];
    float *din[CHM_NODE_INPUTS];
    const int64_t at = begin * j->node.out->width;
    for (int i = 0; i < j->node.inputs; i++) {
        in[i] = j->node.in[i]->data + begin * j->width[i];
        din[i] = j->din[i] ? j->din[i] + begin * j->width[i] : NULL;
    }
    j->op->backward(j->self, end - begin, j->width, in, j->node.out->width, j->node.out->data + at,
                    j->node.out->grad + at, din);
}

static void apply_backward(chm_context *c, chm_node *n) {
    struct apply_job *j = n->data;
    for (int i = 0; i < n->inputs; i++) j->din[i] = chm_grad(c, n->in[i]);
    if (c->status == CHM_OK) chm_spread(c, n->out->rows, ROW_PIECE, (double)n->out->width * 4, apply_backward_rows, j);
}

static chm_tensor *op_apply(chm_graph *g, const chm_operator *op, const void *self, chm_tensor *const *in,
                            int64_t out_width) {
    chm_context *c = chm_context_of(g);
    if (!op || op->size < sizeof *op || !op->forward || op->n_inputs < 1 || op->n_inputs > CHM_NODE_INPUTS)
        return chm_refuse(c, CHM_E_PLUGIN, "%s: an operator without forward, or with no or too many inputs", c->part);
    for (uint32_t i = 0; i < op->n_inputs; i++) {
        if (!in[i]) return NULL;
        if (in[i]->rows != in[0]->rows) return chm_refuse(c, CHM_E_CONFIG, "%s: %s of unequal rows", c->part, op->name);
    }
    if (c->train && !op->backward)
        return chm_refuse(c, CHM_E_PLUGIN, "%s: operator %s has no backward and cannot be trained through", c->part,
                          op->name);
    struct apply_job *j = chm_take_zero(c, sizeof *j);
    chm_tensor *y = chm_tensor_new(c, in[0]->rows, out_width);
    if (!j || !y) return NULL;
    j->op = op;
    j->self = self;
    j->node.out = y;
    j->node.inputs = (int)op->n_inputs;
    for (uint32_t i = 0; i < op->n_inputs; i++) {
        j->node.in[i] = in[i];
        j->width[i] = in[i]->width;
    }
    chm_spread(c, y->rows, ROW_PIECE, (double)out_width * 4, apply_forward, j);
    chm_node *n = chm_record(c, y, in, (int)op->n_inputs, NULL, apply_backward);
    if (n) n->data = j;
    return y;
}

static chm_tensor *op_tap(chm_graph *g, const char *name, chm_tensor *x) {
    chm_context *c = chm_context_of(g);
    return c->tap && x && !c->again ? c->tap(c->tap_user, g, name, x) : x;
}

static float *op_grad(chm_graph *g, chm_tensor *x) { return chm_grad(chm_context_of(g), x); }
static const struct chm_kernels *op_kernels(chm_graph *g) { return chm_context_of(g)->kernels; }
static void *op_memory(chm_graph *g, size_t bytes) { return chm_take(chm_context_of(g), bytes); }
static float *op_tally(chm_graph *g, chm_param *p) {
    const chm_context *c = chm_context_of(g);
    return c->train && !c->again && p ? p->tally : NULL;
}

/* ---- the host's own two ends: embedding and loss ---- */

struct embed_job {
    const int32_t *ids;
    int64_t first;
};

static void embed_backward(chm_context *c, chm_node *n) {
    (void)c;
    const struct embed_job *j = n->data;
    const int64_t width = n->out->width;
    for (int64_t r = 0; r < n->out->rows; r++) {
        float *to = n->param->grad + j->ids[r] * width;
        const float *dy = n->out->grad + r * width;
        for (int64_t i = 0; i < width; i++) to[i] += dy[i];
    }
}

chm_tensor *chm_embed(chm_context *c, chm_param *table, const int32_t *ids, int64_t rows) {
    chm_tensor *y = chm_tensor_new(c, rows, table->in);
    struct embed_job *j = chm_take_zero(c, sizeof *j);
    int32_t *copy = chm_take(c, (size_t)rows * sizeof *copy);
    if (!y || !j || !copy) return NULL;
    for (int64_t r = 0; r < rows; r++) {
        if (ids[r] < 0 || ids[r] >= table->out)
            return chm_refuse(c, CHM_E_DATA, "token %d is not in the vocabulary of %lld", ids[r],
                              (long long)table->out);
        copy[r] = ids[r];
        chm_param_row(table, ids[r], y->data + r * table->in);
    }
    j->ids = copy;
    chm_node *n = chm_record(c, y, NULL, 0, table, embed_backward);
    if (n) n->data = j;
    return y;
}

struct loss_job {
    chm_context *c;
    chm_tensor *logits;
    const int32_t *target;
    int64_t vocab;
    float scale, *loss;
};

static void loss_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct loss_job *j = arg;
    j->c->kernels->softmax_xent(j->logits->data + begin * j->logits->width, end - begin, j->vocab, j->logits->width,
                                j->target + begin, j->scale, j->loss + begin);
}

int chm_cross_entropy(chm_context *c, chm_tensor *logits, const int32_t *target, int64_t vocab, float scale,
                      double *loss_sum, int64_t *counted) {
    *loss_sum = 0;
    *counted = 0;
    if (!logits) return chm_context_status(c);
    struct loss_job job = {c, logits, target, vocab, scale, NULL};
    job.loss = chm_take(c, (size_t)logits->rows * sizeof(float));
    if (!job.loss) return chm_context_status(c);
    /* softmax_xent leaves the gradient where the logits were; nothing reads the logits again. */
    chm_spread(c, logits->rows, 16, (double)vocab * 2, loss_rows, &job);
    logits->grad = logits->data;
    for (int64_t r = 0; r < logits->rows; r++) {
        if (target[r] < 0) continue;
        *loss_sum += (double)job.loss[r];
        ++*counted;
    }
    return CHM_OK;
}

const struct chm_graph_ops chm_graph_table = {
    .size = sizeof(struct chm_graph_ops),
    .linear = op_linear,
    .param = op_param,
    .rmsnorm = op_rmsnorm,
    .l2norm = op_l2norm,
    .unary = op_unary,
    .add = op_add,
    .mul = op_mul,
    .affine = op_affine,
    .swiglu = op_swiglu,
    .concat = op_concat,
    .slice = op_slice,
    .short_conv = chm_op_short_conv,
    .diag_scan = chm_op_diag_scan,
    .recur = chm_op_recur,
    .apply = op_apply,
    .tap = op_tap,
    .grad = op_grad,
    .kernels = op_kernels,
    .look = chm_op_look,
    .rope = chm_op_rope,
    .memory = op_memory,
    .gather_rows = chm_op_gather_rows,
    .scatter_rows = chm_op_scatter_rows,
    .tally = op_tally,
};
