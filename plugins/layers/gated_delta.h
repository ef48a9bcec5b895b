/*
 * gated_delta.h: the gated delta rule (arXiv:2412.06464) with all that stands around it from x to the output
 * projection. The layer gd is this and nothing else; sk begins with it.
 *
 * Per head a memory S[key][value], decayed, then corrected towards the new value: S_t = alpha_t (I - beta_t k_t^T k_t)
 * S_{t-1} + beta_t k_t^T v_t, read by o_t = q_t S_t / sqrt(d). Before it a short convolution and SiLU on q, k and v,
 * l2-normalised q and k; after it a gated norm.
 */
#ifndef GATED_DELTA_H
#define GATED_DELTA_H

#include <chimera/plugin.h>
#include <math.h>

struct gated_delta {
    /* options */
    int64_t chunk_size, value_expand, short_conv;
    bool chunkwise, output_gate, allow_neg_eigval, efla;
    /* from the host */
    int64_t heads, dk, dv;
    bool norm_before_linear;
    chm_param *q, *k, *v, *g, *o, *a, *b, *b_bias, *A_log, *dt_bias, *conv_q, *conv_k, *conv_v, *head_norm, *o_norm;
    int memory, state_q, state_k, state_v;
};

/* ---- recurrence: inputs q, k, v, log_alpha, beta ---- */

static inline float gated_delta_scale(const chm_head *h) { return 1.0f / sqrtf((float)h->in_width[0]); }

static inline void gated_delta_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    h->kernels->delta_step(state[0], h->in_width[1], h->in_width[2], in[0], in[1], in[2], in[3][0], in[4][0],
                           gated_delta_scale(h), out);
}

static inline void gated_delta_read(const chm_head *h, void *const *state, const float *const *in, float *out) {
    h->kernels->delta_read(state[0], h->in_width[1], h->in_width[2], in[0], gated_delta_scale(h), out);
}

/* The chunk kernels take at most 64 rows; a chunk is one such block, so the state is kept every chunk_rows rows. */
static inline int64_t gated_delta_chunk_rows(const void *layer) {
    const struct gated_delta *gd = layer;
    return !gd->chunkwise ? 1 : gd->chunk_size < 64 ? gd->chunk_size : 64;
}

static inline size_t gated_delta_scratch(const chm_head *h) {
    return chm_delta_scratch(h->in_width[1], h->in_width[2]) * sizeof(float);
}

static inline void gated_delta_chunk(const chm_head *h, void *const *state, const float *const *in, float *out) {
    h->kernels->delta_chunk(state[0], h->in_width[1], h->in_width[2], h->rows, in[0], h->in_stride[0], in[1],
                            h->in_stride[1], in[2], h->in_stride[2], in[3], in[4], h->in_stride[3],
                            gated_delta_scale(h), out, h->out_stride, h->scratch);
}

static inline void gated_delta_chunk_read(const chm_head *h, void *const *state, const float *const *in,
                                          const float *const *ask, float *out) {
    h->kernels->delta_chunk_read(state[0], h->in_width[1], h->in_width[2], h->rows, ask[0], h->in_stride[0], in[1],
                                 h->in_stride[1], in[2], h->in_stride[2], in[3], in[4], h->in_stride[3],
                                 gated_delta_scale(h), out, h->out_stride, h->scratch);
}

static inline void gated_delta_read_backward(const chm_head *h, void *const *state, const float *const *in,
                                             const float *const *ask, const float *dout, float *const *dask) {
    h->kernels->delta_chunk_backward(state[0], h->in_width[1], h->in_width[2], h->rows, 1, ask, h->in_stride[0], in[1],
                                     h->in_stride[1], in[2], h->in_stride[2], in[3], in[4], h->in_stride[3],
                                     gated_delta_scale(h), &dout, h->out_stride, dask, NULL, NULL, NULL, NULL, NULL,
                                     h->scratch);
}

static inline void gated_delta_chunk_backward(const chm_head *h, void *const *state, const float *const *in,
                                              const chm_chunk_grad *grad) {
    const float *q[17] = {in[0]}, *dout[17] = {grad->dout};
    float *dq[17] = {grad->din[0]}; /* the reads had theirs in gated_delta_read_backward */
    for (uint32_t p = 0; p < grad->n_reads; p++) {
        q[p + 1] = grad->read_in[p][0];
        dout[p + 1] = grad->read_dout[p];
    }
    h->kernels->delta_chunk_backward(state[0], h->in_width[1], h->in_width[2], h->rows, 1 + (int)grad->n_reads, q,
                                     h->in_stride[0], in[1], h->in_stride[1], in[2], h->in_stride[2], in[3], in[4],
                                     h->in_stride[3], gated_delta_scale(h), dout, h->out_stride, dq, grad->din[1],
                                     grad->din[2], grad->din[3], grad->din[4], grad->dstate[0], h->scratch);
}

static const chm_recurrence gated_delta_rule = {
    .size = sizeof(chm_recurrence),
    .n_inputs = 5,
    .n_states = 1,
    .read_inputs = 1,
    .name = "gated_delta",
    .step = gated_delta_step,
    .read = gated_delta_read,
    .chunk_rows = gated_delta_chunk_rows,
    .scratch_bytes = gated_delta_scratch,
    .chunk = gated_delta_chunk,
    .chunk_read = gated_delta_chunk_read,
    .chunk_read_backward = gated_delta_read_backward,
    .chunk_backward = gated_delta_chunk_backward,
};

/* ---- the exact step (arXiv:2512.12602) ----
 *
 * The delta rule is one Euler step of dS/dtau = k^T (v - k S). Held for a time beta and solved exactly it is S' = S +
 * c k^T (v - k S) with c = (1 - e^(-beta lambda)) / lambda, lambda = |k|^2: the same rule with c for beta, whatever the
 * length of k, and stable for all of them since 1 - c lambda = e^(-beta lambda). So the kernels get raw keys and c;
 * no key is divided by its length, and a zero key writes nothing because it is zero.
 */

/* 1 - e^-x for x >= 0, to the last bits of a double, by sums and products alone: the same bytes on every machine. */
static inline double efla_rise(double x) {
    if (!(x < 40)) return 1;
    const int halvings = (int)(x * 1.4426950408889634 + 0.5);
    /* e^-x = 2^-halvings e^r, |r| <= ln(2) / 2; ln 2 in two parts, so that r is exact */
    const double r = (halvings * 0x1.62e42feep-1 - x) + halvings * 1.9082149292705877e-10;
    double sum = 0;
    for (int n = 16; n > 0; n--) sum = (1 + sum) * r / n; /* e^r - 1 */
    double part = 1;
    for (int i = 0; i < halvings; i++) part *= 0.5;
    return (1 - part) - part * sum;
}

/* c, and for the way back dc/dbeta and dc/dlambda. Below 0.001 by the series of (1 - e^-x) / x. */
static inline double efla_gain(double beta, double lambda, double *by_beta, double *by_lambda) {
    const double x = beta * lambda, rise = efla_rise(x);
    const bool small = x < 1e-3;
    if (by_beta) {
        *by_beta = 1 - rise;
        *by_lambda = small ? -beta * beta * (0.5 - x * (1.0 / 3 - x * (0.125 - x / 30)))
                           : -(rise * (1 + x) - x) / lambda / lambda;
    }
    return small ? beta * (1 - x * (0.5 - x * (1.0 / 6 - x / 24))) : rise / lambda;
}

static inline double efla_length2(const float *k, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)k[i] * (double)k[i];
    return sum;
}

/* inputs k [heads * dk] and beta [heads], output c [heads] */
static inline void efla_forward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                                int64_t heads, float *out) {
    (void)self;
    const int64_t dk = width[0] / heads;
    for (int64_t i = 0; i < rows * heads; i++)
        out[i] = (float)efla_gain((double)in[1][i], efla_length2(in[0] + i * dk, dk), NULL, NULL);
}

static inline void efla_backward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                                 int64_t heads, const float *out, const float *dout, float *const *din) {
    (void)self, (void)out;
    const int64_t dk = width[0] / heads;
    for (int64_t i = 0; i < rows * heads; i++) {
        const float *k = in[0] + i * dk;
        double by_beta, by_lambda;
        efla_gain((double)in[1][i], efla_length2(k, dk), &by_beta, &by_lambda);
        if (din[1]) din[1][i] += (float)((double)dout[i] * by_beta);
        const double d = 2 * (double)dout[i] * by_lambda;
        for (int64_t j = 0; din[0] && j < dk; j++) din[0][i * dk + j] += (float)(d * (double)k[j]);
    }
}

static const chm_operator efla_operator = {
    .size = sizeof(chm_operator), .n_inputs = 2, .name = "efla", .forward = efla_forward, .backward = efla_backward};

/* ---- the layer ---- */

/* ln A, A ~ U(0, 16), kept off zero: decay rates from "remembers" to "forgets at once". */
static inline void gated_delta_fill_A_log(const double *uniform, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = (float)log(fmax(16.0 * uniform[i], 1e-3));
}

/* softplus(dt_bias) is log-uniform in [0.001, 0.1]. */
static inline void gated_delta_fill_dt_bias(const double *uniform, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        const double dt = exp(uniform[i] * (log(0.1) - log(0.001)) + log(0.001));
        out[i] = (float)(dt + log(-expm1(-dt)));
    }
}

static inline int gated_delta_declare(struct gated_delta *gd, chm_declare *d, const chm_layer_info *info) {
    const int64_t width = info->width, heads = info->heads, dk = info->head_dim, dv = dk * gd->value_expand;
    if (gd->efla && gd->allow_neg_eigval)
        return d->ops->fail(d,
                            "efla and allow_neg_eigval exclude each other: the exact step has no negative eigenvalues");
    gd->heads = heads;
    gd->dk = dk;
    gd->dv = dv;
    gd->norm_before_linear = info->norm_before_linear;
    gd->q = chm_declare_matrix(d, "q", CHM_ROLE_TERNARY, chm_normal(0), heads * dk, width);
    gd->k = chm_declare_matrix(d, "k", CHM_ROLE_TERNARY, chm_normal(0), heads * dk, width);
    gd->v = chm_declare_matrix(d, "v", CHM_ROLE_TERNARY, chm_normal(0), heads * dv, width);
    if (gd->output_gate) gd->g = chm_declare_matrix(d, "g", CHM_ROLE_TERNARY, chm_normal(0), heads * dv, width);
    gd->o = chm_declare_matrix(d, "o", CHM_ROLE_TERNARY, chm_residual(), width, heads * dv);
    gd->a = chm_declare_matrix(d, "a", CHM_ROLE_FULL, chm_normal(0), heads, width);
    gd->b = chm_declare_matrix(d, "b", CHM_ROLE_FULL, chm_normal(0), heads, width);
    /* raw keys are long: writing begins cautiously */
    if (gd->efla) gd->b_bias = chm_declare_vector(d, "b_bias", CHM_ROLE_NORM, chm_constant(-2), heads);
    gd->A_log = chm_declare_vector(d, "A_log", CHM_ROLE_NORM, chm_custom(gated_delta_fill_A_log), heads);
    gd->dt_bias = chm_declare_vector(d, "dt_bias", CHM_ROLE_NORM, chm_custom(gated_delta_fill_dt_bias), heads);
    gd->memory = chm_declare_state(d, "memory", CHM_F32, heads, 2, (int64_t[]){dk, dv});
    if (gd->short_conv) {
        const int64_t n = gd->short_conv;
        gd->conv_q = chm_declare_matrix(d, "conv_q", CHM_ROLE_FULL, chm_uniform(-0.5f, 0.5f), heads * dk, n);
        gd->conv_k = chm_declare_matrix(d, "conv_k", CHM_ROLE_FULL, chm_uniform(-0.5f, 0.5f), heads * dk, n);
        gd->conv_v = chm_declare_matrix(d, "conv_v", CHM_ROLE_FULL, chm_uniform(-0.5f, 0.5f), heads * dv, n);
        gd->state_q = chm_declare_conv_state(d, "conv_q", heads, heads * dk, n);
        gd->state_k = chm_declare_conv_state(d, "conv_k", heads, heads * dk, n);
        gd->state_v = chm_declare_conv_state(d, "conv_v", heads, heads * dv, n);
    }
    gd->head_norm = chm_declare_vector(d, "head_norm", CHM_ROLE_NORM, chm_constant(1), dv);
    if (gd->norm_before_linear)
        gd->o_norm = chm_declare_vector(d, "o_norm", CHM_ROLE_NORM, chm_constant(1), heads * dv);
    return CHM_OK;
}

static inline chm_tensor *gated_delta_mixed(const struct gated_delta *gd, chm_graph *g, chm_tensor *x, chm_param *w,
                                            chm_param *taps, int state) {
    x = chm_linear(g, x, w);
    if (gd->short_conv) x = chm_short_conv(g, x, taps, state);
    return chm_silu(g, x);
}

static inline chm_tensor *gated_delta_forward(const struct gated_delta *gd, chm_graph *g, chm_tensor *x) {
    chm_tensor *q = chm_l2norm(g, gated_delta_mixed(gd, g, x, gd->q, gd->conv_q, gd->state_q), gd->dk);
    chm_tensor *k = gated_delta_mixed(gd, g, x, gd->k, gd->conv_k, gd->state_k);
    if (!gd->efla) k = chm_l2norm(g, k, gd->dk);
    chm_tensor *v = gated_delta_mixed(gd, g, x, gd->v, gd->conv_v, gd->state_v);
    chm_tensor *dt = chm_softplus(g, chm_add(g, chm_linear(g, x, gd->a), chm_param_tensor(g, gd->dt_bias)));
    chm_tensor *A = chm_exp(g, chm_param_tensor(g, gd->A_log));
    chm_tensor *log_alpha = chm_mul(g, dt, chm_affine(g, A, -1, 0));
    chm_tensor *beta = chm_linear(g, x, gd->b);
    if (gd->efla) beta = chm_add(g, beta, chm_param_tensor(g, gd->b_bias));
    beta = chm_sigmoid(g, beta);
    if (gd->allow_neg_eigval) beta = chm_affine(g, beta, 2, 0); /* arXiv:2411.12537 */
    log_alpha = chm_tap(g, "gd.log_alpha", log_alpha);
    beta = chm_tap(g, "gd.beta", beta);
    if (gd->efla) beta = chm_apply(g, &efla_operator, gd, (chm_tensor *const[]){k, beta}, gd->heads);
    chm_tensor *const in[] = {q, k, v, log_alpha, beta};
    chm_tensor *y = chm_recur(g, &gated_delta_rule, gd, in, NULL, &gd->memory, gd->heads, gd->dv);
    y = chm_rmsnorm(g, y, gd->head_norm, gd->dv);
    if (gd->output_gate) y = chm_swiglu(g, chm_linear(g, x, gd->g), y);
    if (gd->norm_before_linear) y = chm_rmsnorm(g, y, gd->o_norm, 0);
    return chm_linear(g, y, gd->o);
}

/* Rows of an option table; `at`: where in the instance the struct gated_delta lies. */
#define GATED_DELTA_OPTION(at, field) ((at) + offsetof(struct gated_delta, field))
#define GATED_DELTA_OPTIONS(at)                                                                                        \
    {"chunkwise_parallel",                                                                                             \
     CHM_OPT_BOOL,                                                                                                     \
     GATED_DELTA_OPTION(at, chunkwise),                                                                                \
     "true",                                                                                                           \
     0,                                                                                                                \
     0,                                                                                                                \
     NULL,                                                                                                             \
     "train with the chunk form; false: row by row",                                                                   \
     0,                                                                                                                \
     0},                                                                                                               \
        {"chunk_size",                                                                                                 \
         CHM_OPT_INT,                                                                                                  \
         GATED_DELTA_OPTION(at, chunk_size),                                                                           \
         "256",                                                                                                        \
         1,                                                                                                            \
         4096,                                                                                                         \
         NULL,                                                                                                         \
         "most rows of a training chunk; solved in blocks of at most 64",                                              \
         0,                                                                                                            \
         0},                                                                                                           \
        {"value_expand",                                                                                               \
         CHM_OPT_INT,                                                                                                  \
         GATED_DELTA_OPTION(at, value_expand),                                                                         \
         "1",                                                                                                          \
         1,                                                                                                            \
         4,                                                                                                            \
         NULL,                                                                                                         \
         "value width of a head, in head_dim",                                                                         \
         0,                                                                                                            \
         0},                                                                                                           \
        {"output_gate",                                                                                                \
         CHM_OPT_BOOL,                                                                                                 \
         GATED_DELTA_OPTION(at, output_gate),                                                                          \
         "true",                                                                                                       \
         0,                                                                                                            \
         0,                                                                                                            \
         NULL,                                                                                                         \
         "multiply the normalised output by silu(x W_g)",                                                              \
         0,                                                                                                            \
         0},                                                                                                           \
        {"short_conv",                                                                                                 \
         CHM_OPT_INT,                                                                                                  \
         GATED_DELTA_OPTION(at, short_conv),                                                                           \
         "4",                                                                                                          \
         0,                                                                                                            \
         8,                                                                                                            \
         NULL,                                                                                                         \
         "taps of the causal convolution on q, k and v; 0: none",                                                      \
         0,                                                                                                            \
         0},                                                                                                           \
        {"allow_neg_eigval",                                                                                           \
         CHM_OPT_BOOL,                                                                                                 \
         GATED_DELTA_OPTION(at, allow_neg_eigval),                                                                     \
         "false",                                                                                                      \
         0,                                                                                                            \
         0,                                                                                                            \
         NULL,                                                                                                         \
         "beta in (0, 2) instead of (0, 1): the transition may have negative eigenvalues (arXiv:2411.12537)",          \
         0,                                                                                                            \
         0},                                                                                                           \
    {                                                                                                                  \
        "efla", CHM_OPT_BOOL, GATED_DELTA_OPTION(at, efla), "false", 0, 0, NULL,                                       \
            "solve the delta rule exactly, with raw keys (arXiv:2512.12602); the card's section efla turns it on by "  \
            "name",                                                                                                    \
            0, 0                                                                                                       \
    }

#endif
