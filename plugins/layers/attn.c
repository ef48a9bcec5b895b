/*
 * attn: causal softmax attention over a sliding window (arXiv:1706.03762, arXiv:2004.05150), the control against which
 * memories are measured. Query heads share key and value heads in groups (arXiv:2305.13245), positions are rotary
 * (arXiv:2104.09864), queries and keys are normalised per head (arXiv:2302.05442). The keys and values a row may look
 * back on are two rings of fixed size, so the state does not grow with the text.
 */
#include <chimera/plugin.h>
#include <math.h>

struct attn {
    /* options */
    int64_t num_heads, num_kv_heads, head_dim, window, rotary_dim;
    double rope_theta;
    bool rope, qk_norm;
    /* resolved */
    int64_t heads, kv_heads, dim, rotary;
    bool norm_before_linear;
    chm_param *q, *k, *v, *o, *q_norm, *k_norm, *o_norm;
    int rings[2]; /* keys, values */
};

/* ---- the window: one head of it is a key and value head with the queries that share it ---- */

static float score_scale(const struct attn *a) { return 1.0f / sqrtf((float)a->dim); }

static size_t attn_scratch(const chm_head *h) {
    const struct attn *a = h->layer;
    const size_t row = (size_t)a->window, chunk = chm_attend_scratch(a->dim, a->dim);
    return (row > chunk ? row : chunk) * sizeof(float);
}

static void attn_look(const chm_head *h, const float *const *ask, const int64_t *count,
                      const float *const *const *entry, float *out) {
    const struct attn *a = h->layer;
    for (int64_t i = 0; i < h->out_width; i += a->dim)
        h->kernels->attend(ask[0] + i, entry[0], entry[1], count[0], a->dim, a->dim, score_scale(a), h->scratch,
                           out + i);
}

/* log-sum-exp of every row and query head */
static size_t attn_saved(const chm_head *h) {
    const struct attn *a = h->layer;
    return (size_t)(h->rows * (h->out_width / a->dim)) * sizeof(float);
}

/* What the kernels take, for the query head that begins at column `i` of this head's. */
static struct chm_attend rows_of(const chm_head *h, const float *const *ask, const chm_ring_rows *ring, int64_t i) {
    const struct attn *a = h->layer;
    return (struct chm_attend){.rows = h->rows,
                               .before = ring[0].before,
                               .window = a->window,
                               .dk = a->dim,
                               .dv = a->dim,
                               .q = ask[0] + i,
                               .k_before = ring[0].carried,
                               .k = ring[0].rows,
                               .v_before = ring[1].carried,
                               .v = ring[1].rows,
                               .qs = h->in_stride[0],
                               .ks = ring[0].stride,
                               .vs = ring[1].stride,
                               .os = h->out_stride,
                               .scale = score_scale(a)};
}

static void attn_chunk(const chm_head *h, const float *const *ask, const chm_ring_rows *ring, float *out) {
    const struct attn *a = h->layer;
    float *lse = h->saved;
    for (int64_t i = 0; i < h->out_width; i += a->dim, lse += h->rows) {
        const struct chm_attend rows = rows_of(h, ask, ring, i);
        h->kernels->attend_chunk(&rows, out + i, lse, h->scratch);
    }
}

static void attn_chunk_backward(const chm_head *h, const float *const *ask, const chm_ring_rows *ring, const float *out,
                                const float *dout, float *const *dask) {
    const struct attn *a = h->layer;
    const float *lse = h->saved;
    for (int64_t i = 0; i < h->out_width; i += a->dim, lse += h->rows) {
        const struct chm_attend rows = rows_of(h, ask, ring, i);
        h->kernels->attend_chunk_backward(&rows, out + i, lse, dout + i, dask[0] ? dask[0] + i : NULL, ring[0].dcarried,
                                          ring[0].drows, ring[1].dcarried, ring[1].drows, h->scratch);
    }
}

static const chm_window attention = {
    .size = sizeof(chm_window),
    .n_asks = 1,
    .n_rings = 2,
    .name = "attention",
    .scratch_bytes = attn_scratch,
    .look = attn_look,
    .saved_bytes = attn_saved,
    .chunk = attn_chunk,
    .chunk_backward = attn_chunk_backward,
};

/* ---- the layer ---- */

static int attn_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    struct attn *a = self;
    const int64_t width = info->width;
    a->heads = a->num_heads ? a->num_heads : info->heads;
    a->kv_heads = a->num_kv_heads ? a->num_kv_heads : a->heads;
    a->dim = a->head_dim ? a->head_dim : info->head_dim;
    a->rotary = a->rotary_dim ? a->rotary_dim : a->dim;
    a->norm_before_linear = info->norm_before_linear;
    if (a->heads % a->kv_heads)
        return d->ops->fail(d, "attention.num_kv_heads is %lld, which does not divide the %lld heads",
                            (long long)a->kv_heads, (long long)a->heads);
    if (a->rope && (a->rotary % 2 || a->rotary > a->dim))
        return d->ops->fail(
            d, "attention.rotary_dim is %lld: an even number up to the head's width, %lld, or rope = false",
            (long long)a->rotary, (long long)a->dim);
    const int64_t q_width = a->heads * a->dim, kv_width = a->kv_heads * a->dim;
    a->q = chm_declare_matrix(d, "q", CHM_ROLE_TERNARY, chm_normal(0), q_width, width);
    a->k = chm_declare_matrix(d, "k", CHM_ROLE_TERNARY, chm_normal(0), kv_width, width);
    a->v = chm_declare_matrix(d, "v", CHM_ROLE_TERNARY, chm_normal(0), kv_width, width);
    a->o = chm_declare_matrix(d, "o", CHM_ROLE_TERNARY, chm_residual(), width, q_width);
    if (a->qk_norm) {
        a->q_norm = chm_declare_vector(d, "q_norm", CHM_ROLE_NORM, chm_constant(1), a->dim);
        a->k_norm = chm_declare_vector(d, "k_norm", CHM_ROLE_NORM, chm_constant(1), a->dim);
    }
    if (a->norm_before_linear) a->o_norm = chm_declare_vector(d, "o_norm", CHM_ROLE_NORM, chm_constant(1), q_width);
    a->rings[0] = chm_declare_ring(d, "keys", a->kv_heads, a->window, a->dim);
    a->rings[1] = chm_declare_ring(d, "values", a->kv_heads, a->window, a->dim);
    return CHM_OK;
}

static chm_tensor *placed(const struct attn *a, chm_graph *g, chm_tensor *x, chm_param *norm) {
    if (a->qk_norm) x = chm_rmsnorm(g, x, norm, a->dim);
    return a->rope ? chm_rope(g, x, a->dim, a->rotary, a->rope_theta) : x;
}

static chm_tensor *attn_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct attn *a = self;
    chm_tensor *q = placed(a, g, chm_linear(g, x, a->q), a->q_norm);
    chm_tensor *k = placed(a, g, chm_linear(g, x, a->k), a->k_norm);
    chm_tensor *const ask[] = {q}, *const entry[] = {k, chm_linear(g, x, a->v)};
    chm_tensor *y = chm_look(g, &attention, a, ask, entry, a->rings, a->kv_heads, a->heads / a->kv_heads * a->dim);
    if (a->norm_before_linear) y = chm_rmsnorm(g, y, a->o_norm, 0);
    return chm_linear(g, y, a->o);
}

static const struct chm_option options[] = {
    {"window", CHM_OPT_INT, offsetof(struct attn, window), "512", 2, 1048576, NULL,
     "rows a row may look back on, its own included; the state holds that many keys and values", 0, 0},
    {"num_heads", CHM_OPT_INT, offsetof(struct attn, num_heads), "0", 0, 65536, NULL,
     "query heads; 0: the card's num_heads", 0, 0},
    {"num_kv_heads", CHM_OPT_INT, offsetof(struct attn, num_kv_heads), "0", 0, 65536, NULL,
     "key and value heads, each shared by equally many query heads (arXiv:2305.13245); 0: as many as query heads", 0,
     0},
    {"head_dim", CHM_OPT_INT, offsetof(struct attn, head_dim), "0", 0, 1024, NULL,
     "width of a head; 0: the card's head_dim", 0, 0},
    {"rope", CHM_OPT_BOOL, offsetof(struct attn, rope), "true", 0, 0, NULL,
     "turn queries and keys by their position (arXiv:2104.09864); false: the order inside the window is not known", 0,
     0},
    {"rope_theta", CHM_OPT_FLOAT, offsetof(struct attn, rope_theta), "10000", 1, 1e12, NULL,
     "slowest turn: column pair i of r turns by position * theta^(-i/r)", 0, 0},
    {"rotary_dim", CHM_OPT_INT, offsetof(struct attn, rotary_dim), "0", 0, 1024, NULL,
     "columns of a head that turn, the first ones; even; 0: all", 0, 0},
    {"qk_norm", CHM_OPT_BOOL, offsetof(struct attn, qk_norm), "true", 0, 0, NULL,
     "RMSNorm of every query and key head (arXiv:2302.05442)", 0, 0},
};

static const struct chm_layer_ops ops = {.size = sizeof ops, .declare = attn_declare, .forward = attn_forward};

CHM_PLUGIN(attn, .kind = CHM_KIND_LAYER, .section = "attention", .aliases = "AT attention", .version = "1.0.0",
           .licence = "Apache-2.0",
           .summary = "softmax attention over a sliding window, for comparison (arXiv:1706.03762)",
           CHM_OPTIONS(options), .instance_size = sizeof(struct attn), .ops = &ops);
