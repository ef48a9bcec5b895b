/*
 * gd: gated DeltaNet (arXiv:2412.06464). Per head a 64 x 64 memory S[key][value], decayed, then corrected towards the
 * new value: S_t = alpha_t (I - beta_t k_t^T k_t) S_{t-1} + beta_t k_t^T v_t, read by o_t = q_t S_t / sqrt(d). Around
 * it what the paper's block has: a short convolution and SiLU on q, k and v, l2-normalised q and k, and a gated norm on
 * the way out.
 */
#include <chimera/plugin.h>
#include <math.h>

struct gd {
    /* options */
    int64_t state_size, chunk_size, value_expand, short_conv;
    bool chunkwise, output_gate, allow_neg_eigval;
    /* from the host */
    int64_t heads, dk, dv;
    bool norm_before_linear;
    chm_param *q, *k, *v, *g, *o, *a, *b, *A_log, *dt_bias, *conv_q, *conv_k, *conv_v, *head_norm, *o_norm;
    int memory, state_q, state_k, state_v;
};

/* ---- recurrence: inputs q, k, v, log_alpha, beta ---- */

static float query_scale(const chm_head *h) { return 1.0f / sqrtf((float)h->in_width[0]); }

static void gd_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    h->kernels->delta_step(state[0], h->in_width[1], h->in_width[2], in[0], in[1], in[2], in[3][0], in[4][0],
                           query_scale(h), out);
}

static void gd_read(const chm_head *h, void *const *state, const float *const *in, float *out) {
    h->kernels->delta_read(state[0], h->in_width[1], h->in_width[2], in[0], query_scale(h), out);
}

/* The chunk kernels take at most 64 rows; a chunk is one such block, so the state is kept every chunk_rows rows. */
static int64_t gd_chunk_rows(const void *layer) {
    const struct gd *gd = layer;
    return !gd->chunkwise ? 1 : gd->chunk_size < 64 ? gd->chunk_size : 64;
}

static size_t gd_scratch(const chm_head *h) {
    return chm_delta_scratch(h->in_width[1], h->in_width[2]) * sizeof(float);
}

static void gd_chunk(const chm_head *h, void *const *state, const float *const *in, float *out) {
    h->kernels->delta_chunk(state[0], h->in_width[1], h->in_width[2], h->rows, in[0], h->in_stride[0], in[1],
                            h->in_stride[1], in[2], h->in_stride[2], in[3], in[4], h->in_stride[3], query_scale(h), out,
                            h->out_stride, h->scratch);
}

static void gd_chunk_read(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                          float *out) {
    h->kernels->delta_chunk_read(state[0], h->in_width[1], h->in_width[2], h->rows, ask[0], h->in_stride[0], in[1],
                                 h->in_stride[1], in[2], h->in_stride[2], in[3], in[4], h->in_stride[3], query_scale(h),
                                 out, h->out_stride, h->scratch);
}

static void gd_read_backward(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                             const float *dout, float *const *dask) {
    h->kernels->delta_chunk_backward(state[0], h->in_width[1], h->in_width[2], h->rows, 1, ask, h->in_stride[0], in[1],
                                     h->in_stride[1], in[2], h->in_stride[2], in[3], in[4], h->in_stride[3],
                                     query_scale(h), &dout, h->out_stride, dask, NULL, NULL, NULL, NULL, NULL,
                                     h->scratch);
}

static void gd_chunk_backward(const chm_head *h, void *const *state, const float *const *in,
                              const chm_chunk_grad *grad) {
    const float *q[17] = {in[0]}, *dout[17] = {grad->dout};
    float *dq[17] = {grad->din[0]}; /* the reads had theirs in gd_read_backward */
    for (uint32_t p = 0; p < grad->n_reads; p++) {
        q[p + 1] = grad->read_in[p][0];
        dout[p + 1] = grad->read_dout[p];
    }
    h->kernels->delta_chunk_backward(state[0], h->in_width[1], h->in_width[2], h->rows, 1 + (int)grad->n_reads, q,
                                     h->in_stride[0], in[1], h->in_stride[1], in[2], h->in_stride[2], in[3], in[4],
                                     h->in_stride[3], query_scale(h), dout, h->out_stride, dq, grad->din[1],
                                     grad->din[2], grad->din[3], grad->din[4], grad->dstate[0], h->scratch);
}

static const chm_recurrence gated_delta = {
    .size = sizeof(chm_recurrence),
    .n_inputs = 5,
    .n_states = 1,
    .read_inputs = 1,
    .name = "gated_delta",
    .step = gd_step,
    .read = gd_read,
    .chunk_rows = gd_chunk_rows,
    .scratch_bytes = gd_scratch,
    .chunk = gd_chunk,
    .chunk_read = gd_chunk_read,
    .chunk_read_backward = gd_read_backward,
    .chunk_backward = gd_chunk_backward,
};

/* ---- the layer ---- */

/* ln A, A ~ U(0, 16), kept off zero: decay rates from "remembers" to "forgets at once". */
static void fill_A_log(const double *uniform, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = (float)log(fmax(16.0 * uniform[i], 1e-3));
}

/* softplus(dt_bias) is log-uniform in [0.001, 0.1]. */
static void fill_dt_bias(const double *uniform, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        const double dt = exp(uniform[i] * (log(0.1) - log(0.001)) + log(0.001));
        out[i] = (float)(dt + log(-expm1(-dt)));
    }
}

static int gd_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    struct gd *gd = self;
    const int64_t width = info->width, heads = info->heads, dk = info->head_dim, dv = dk * gd->value_expand;
    if (gd->state_size && gd->state_size != dk)
        return d->ops->fail(d, "gated_deltanet.state_size is %lld, but head_dim is %lld: they are the same number here",
                            (long long)gd->state_size, (long long)dk);
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
    gd->A_log = chm_declare_vector(d, "A_log", CHM_ROLE_NORM, chm_custom(fill_A_log), heads);
    gd->dt_bias = chm_declare_vector(d, "dt_bias", CHM_ROLE_NORM, chm_custom(fill_dt_bias), heads);
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

static chm_tensor *mixed(const struct gd *gd, chm_graph *g, chm_tensor *x, chm_param *w, chm_param *taps, int state) {
    x = chm_linear(g, x, w);
    if (gd->short_conv) x = chm_short_conv(g, x, taps, state);
    return chm_silu(g, x);
}

static chm_tensor *gd_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct gd *gd = self;
    chm_tensor *q = chm_l2norm(g, mixed(gd, g, x, gd->q, gd->conv_q, gd->state_q), gd->dk);
    chm_tensor *k = chm_l2norm(g, mixed(gd, g, x, gd->k, gd->conv_k, gd->state_k), gd->dk);
    chm_tensor *v = mixed(gd, g, x, gd->v, gd->conv_v, gd->state_v);
    chm_tensor *dt = chm_softplus(g, chm_add(g, chm_linear(g, x, gd->a), chm_param_tensor(g, gd->dt_bias)));
    chm_tensor *A = chm_exp(g, chm_param_tensor(g, gd->A_log));
    chm_tensor *log_alpha = chm_mul(g, dt, chm_affine(g, A, -1, 0));
    chm_tensor *beta = chm_sigmoid(g, chm_linear(g, x, gd->b));
    if (gd->allow_neg_eigval) beta = chm_affine(g, beta, 2, 0); /* arXiv:2411.12537 */
    log_alpha = chm_tap(g, "gd.log_alpha", log_alpha);
    beta = chm_tap(g, "gd.beta", beta);
    chm_tensor *const in[] = {q, k, v, log_alpha, beta};
    chm_tensor *y = chm_recur(g, &gated_delta, gd, in, NULL, &gd->memory, gd->heads, gd->dv);
    y = chm_rmsnorm(g, y, gd->head_norm, gd->dv);
    if (gd->output_gate) y = chm_swiglu(g, chm_linear(g, x, gd->g), y);
    if (gd->norm_before_linear) y = chm_rmsnorm(g, y, gd->o_norm, 0);
    return chm_linear(g, y, gd->o);
}

static const struct chm_option options[] = {
    {"formulation", CHM_OPT_STRING, CHM_OPTION_CHECKED, "\"\"", 0, 0, NULL,
     "the update rule spelled out; documentation only", 0, 0},
    {"alpha_gate", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "data_dependent_scalar", 0, 0, "data_dependent_scalar",
     "decay gate: one scalar per head and token", 0, 0},
    {"beta_gate", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "data_dependent_scalar", 0, 0, "data_dependent_scalar",
     "write gate: one scalar per head and token", 0, 0},
    {"state_size", CHM_OPT_INT, offsetof(struct gd, state_size), "0", 0, 256, NULL,
     "rows of a head's memory; 0 or head_dim", 0, 0},
    {"chunkwise_parallel", CHM_OPT_BOOL, offsetof(struct gd, chunkwise), "true", 0, 0, NULL,
     "train with the chunk form; false: row by row", 0, 0},
    {"chunk_size", CHM_OPT_INT, offsetof(struct gd, chunk_size), "256", 1, 4096, NULL,
     "most rows of a training chunk; solved in blocks of at most 64", 0, 0},
    {"key_norm", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "l2", 0, 0, "l2", "normalisation of queries and keys", 0, 0},
    {"value_expand", CHM_OPT_INT, offsetof(struct gd, value_expand), "1", 1, 4, NULL,
     "value width of a head, in head_dim", 0, 0},
    {"output_gate", CHM_OPT_BOOL, offsetof(struct gd, output_gate), "true", 0, 0, NULL,
     "multiply the normalised output by silu(x W_g)", 0, 0},
    {"short_conv", CHM_OPT_INT, offsetof(struct gd, short_conv), "4", 0, 8, NULL,
     "taps of the causal convolution on q, k and v; 0: none", 0, 0},
    {"allow_neg_eigval", CHM_OPT_BOOL, offsetof(struct gd, allow_neg_eigval), "false", 0, 0, NULL,
     "beta in (0, 2) instead of (0, 1): the transition may have negative eigenvalues (arXiv:2411.12537)", 0, 0},
};

static const struct chm_layer_ops ops = {.size = sizeof ops, .declare = gd_declare, .forward = gd_forward};

CHM_PLUGIN(gd, .kind = CHM_KIND_LAYER, .section = "gated_deltanet", .aliases = "GD gated_deltanet", .version = "1.0.0",
           .licence = "Apache-2.0", .summary = "gated DeltaNet: decayed delta-rule memory (arXiv:2412.06464)",
           CHM_OPTIONS(options), .instance_size = sizeof(struct gd), .ops = &ops);
