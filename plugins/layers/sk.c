/*
 * sk: span-knot, a gated delta rule whose output also says what it means in a sketch of bits. z = RMSNorm(y) W_enc, its
 * signs are the sketch; earlier sketches stand in three mosaics of periods 8, 32 and 128, and the sketch is relaxed
 * towards the nearest in at most three rounds that flip few bits each, under an energy that never rises. What comes
 * back is y + gamma (b W_dec) / sqrt(n). The gradient passes b as if it were h wherever |h| <= 1.
 *
 * The mosaics keep signs before relaxation, so rows relax independently. The energy's terms for binding, grammar and
 * debt need what only a provider in the host could know; this host has none and they are zero, which `chimera check`
 * says.
 */
#include "gated_delta.h"
#include "sketch.h"

struct sk {
    struct gated_delta core; /* first: what its recurrence is handed */
    /* options */
    int64_t bits, rounds;
    double own, memory, flip_fraction, exit;
    bool smooth;
    /* resolved */
    struct sketch_rule rule;
    chm_param *encode, *decode, *gamma, *sketch_norm;
    int states[2]; /* mosaics, and what the last row replaced in them */
};

/* ---- the mosaics that a row sees: those through the row before ----
 *
 * In: z. Out: the mosaics' bits, in the bytes of 3 n / 32 floats. States begin at zero and mosaics with a pattern, so
 * the states are kept xor that pattern. `replaced` lets a later loop pass see the mosaics as they were before its row.
 */

static void show(uint8_t *to, const uint8_t *mosaics, int64_t bytes) {
    memcpy(to, mosaics, (size_t)bytes);
    sketch_xor_pattern(to, 0, bytes);
}

static void mosaic_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    uint8_t *mosaics = state[0], *replaced = state[1];
    const int64_t bits = h->in_width[0];
    if (out) show((uint8_t *)out, mosaics, SKETCH_MOSAICS * bits / 8);
    for (int m = 0; m < SKETCH_MOSAICS; m++) {
        int64_t bytes;
        const int64_t at = sketch_block(m, bits, h->position, &bytes), first = at % (bits / 8);
        memcpy(replaced, mosaics + at, (size_t)bytes);
        replaced += bytes;
        sketch_signs(in[0] + 8 * first, 8 * bytes, mosaics + at);
        sketch_xor_pattern(mosaics + at, at, bytes);
    }
}

static void mosaic_read(const chm_head *h, void *const *state, const float *const *in, float *out) {
    (void)in;
    const uint8_t *replaced = state[1];
    uint8_t *to = (uint8_t *)out;
    const int64_t bits = h->in_width[0];
    show(to, state[0], SKETCH_MOSAICS * bits / 8);
    for (int m = 0; m < SKETCH_MOSAICS; m++) {
        int64_t bytes;
        const int64_t at = sketch_block(m, bits, h->position, &bytes);
        memcpy(to + at, replaced, (size_t)bytes);
        sketch_xor_pattern(to + at, at, bytes);
        replaced += bytes;
    }
}

static void mosaic_chunk(const chm_head *h, void *const *state, const float *const *in, float *out) {
    chm_head row = *h;
    for (int64_t r = 0; r < h->rows; r++, row.position++)
        mosaic_step(&row, state, (const float *const[]){in[0] + r * h->in_stride[0]}, out + r * h->out_stride);
}

static size_t mosaic_scratch(const chm_head *h) {
    return (size_t)(SKETCH_MOSAICS * h->in_width[0] / 8 + sketch_replaced_bytes(h->in_width[0]));
}

static void mosaic_chunk_read(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                              float *out) {
    (void)ask; /* the bits of the first pass stay */
    const int64_t bytes = SKETCH_MOSAICS * h->in_width[0] / 8;
    uint8_t *copy = h->scratch;
    memcpy(copy, state[0], (size_t)bytes);
    mosaic_chunk(h, (void *const[]){copy, copy + bytes}, in, out);
}

/* Bits have no gradient. */
static void mosaic_chunk_read_backward(const chm_head *h, void *const *state, const float *const *in,
                                       const float *const *ask, const float *dout, float *const *dask) {
    (void)h, (void)state, (void)in, (void)ask, (void)dout, (void)dask;
}
static void mosaic_chunk_backward(const chm_head *h, void *const *state, const float *const *in,
                                  const chm_chunk_grad *grad) {
    (void)h, (void)state, (void)in, (void)grad;
}

static const chm_recurrence mosaic = {
    .size = sizeof(chm_recurrence),
    .n_inputs = 1,
    .n_states = 2,
    .name = "mosaic",
    .step = mosaic_step,
    .read = mosaic_read,
    .scratch_bytes = mosaic_scratch,
    .chunk = mosaic_chunk,
    .chunk_read = mosaic_chunk_read,
    .chunk_read_backward = mosaic_chunk_read_backward,
    .chunk_backward = mosaic_chunk_backward,
};

/* ---- relaxation: in z [n] and mosaics, out b [n] as +-1 and three numbers ---- */

enum { OUT_FLIPS, OUT_BALANCE, OUT_MOSAIC, OUT_NUMBERS };

static void relax_forward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                          int64_t out_width, float *out) {
    const struct sketch_rule *rule = &((const struct sk *)self)->rule;
    const int64_t n = rule->bits;
    for (int64_t r = 0; r < rows; r++, out += out_width) {
        const float *z = in[0] + r * width[0];
        uint8_t first[SKETCH_MOST / 8], b[SKETCH_MOST / 8], none[SKETCH_MOST / 8];
        static const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
        sketch_signs(z, n, first);
        memcpy(b, first, (size_t)(n / 8));
        memset(none, 0, (size_t)(n / 8));
        const int used = sketch_relax(rule, z, (const uint8_t *)(in[1] + r * width[1]), b, out);
        for (int64_t i = 0; i < n; i += 8) sketch_times(ones, b[i / 8], out + i);
        out[n + OUT_FLIPS] = (float)sketch_distance(b, first, n);
        out[n + OUT_BALANCE] = (float)(2 * sketch_distance(b, none, n) - n) / (float)n;
        out[n + OUT_MOSAIC] = (float)used;
    }
}

static void relax_backward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                           int64_t out_width, const float *out, const float *dout, float *const *din) {
    const struct sketch_rule *rule = &((const struct sk *)self)->rule;
    const int64_t n = rule->bits;
    for (int64_t r = 0; r < rows && din[0]; r++, out += out_width, dout += out_width) {
        const float *z = in[0] + r * width[0];
        float *dz = din[0] + r * width[0];
        const int used = (int)out[n + OUT_MOSAIC];
        const uint8_t *m = (const uint8_t *)(in[1] + r * width[1]) + (used < 0 ? 0 : used) * (n / 8);
        const float pull = used < 0 ? 0 : 0.5f * rule->memory;
        const float pulls[8] = {pull, pull, pull, pull, pull, pull, pull, pull};
        for (int64_t i = 0; i < n; i += 8) {
            float h[8];
            uint32_t passes[8]; /* dout or 0, chosen without a branch: which it will be nobody can foresee */
            sketch_times(pulls, m[i / 8], h);
            memcpy(passes, dout + i, sizeof passes);
            for (int j = 0; j < 8; j++) passes[j] &= -(uint32_t)(fabsf(rule->own * z[i + j] + h[j]) <= 1);
            memcpy(h, passes, sizeof h);
            for (int j = 0; j < 8; j++) dz[i + j] += h[j];
        }
    }
}

static const chm_operator relax = {
    .size = sizeof(chm_operator), .n_inputs = 2, .name = "relax", .forward = relax_forward, .backward = relax_backward};

/* ---- the layer ---- */

static int sk_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    struct sk *sk = self;
    const int64_t n = sk->bits, width = info->width;
    if (n % SKETCH_STEP)
        return d->ops->fail(d,
                            "tsp_knot.sketch_bits is %lld: a multiple of %d, so that every block of a mosaic is whole "
                            "bytes and every sketch whole words",
                            (long long)n, SKETCH_STEP);
    sk->rule = (struct sketch_rule){.bits = n,
                                    .rounds = sk->rounds,
                                    .flips = (int64_t)(sk->flip_fraction * (double)n + 1e-6),
                                    .own = (float)sk->own,
                                    .memory = (float)sk->memory,
                                    .exit = sk->exit};
    const int status = gated_delta_declare(&sk->core, d, info);
    if (status) return status;
    sk->encode = chm_declare_matrix(d, "encode", CHM_ROLE_TERNARY, chm_normal(0), n, width);
    sk->decode = chm_declare_matrix(d, "decode", CHM_ROLE_TERNARY, chm_normal(0), width, n);
    sk->gamma = chm_declare_vector(d, "gamma", CHM_ROLE_FULL, chm_constant(0.1f), width);
    if (info->norm_before_linear)
        sk->sketch_norm = chm_declare_vector(d, "sketch_norm", CHM_ROLE_NORM, chm_constant(1), width);
    sk->states[0] = chm_declare_state(d, "mosaics", CHM_U64, 1, 2, (const int64_t[]){SKETCH_MOSAICS, n / 64});
    const int64_t words = (sketch_replaced_bytes(n) + 7) / 8;
    sk->states[1] = chm_declare_state(d, "replaced", CHM_U64, 1, 1, &words);
    return CHM_OK;
}

static chm_tensor *sketch(const struct sk *sk, chm_graph *g, chm_tensor *z) {
    const int64_t n = sk->bits;
    if (sk->smooth) return chm_tanh(g, z);
    chm_tensor *seen = chm_recur(g, &mosaic, sk, &z, NULL, sk->states, 1, SKETCH_MOSAICS * n / 32);
    chm_tensor *out = chm_apply(g, &relax, sk, (chm_tensor *const[]){z, seen}, n + OUT_NUMBERS);
    chm_tap(g, "sk.flips", chm_slice(g, out, n + OUT_FLIPS, 1));
    chm_tap(g, "sk.balance", chm_slice(g, out, n + OUT_BALANCE, 1));
    return chm_tap(g, "sk.bits", chm_slice(g, out, 0, n));
}

static chm_tensor *sk_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct sk *sk = self;
    chm_tensor *y = gated_delta_forward(&sk->core, g, x);
    chm_tensor *z = chm_linear(g, chm_rmsnorm(g, y, sk->sketch_norm, 0), sk->encode);
    chm_tensor *b = sketch(sk, g, chm_tap(g, "sk.z", chm_rmsnorm(g, z, NULL, 0)));
    chm_tensor *back = chm_affine(g, chm_linear(g, b, sk->decode), 1 / sqrtf((float)sk->bits), 0);
    return chm_add(g, y, chm_mul(g, back, chm_param_tensor(g, sk->gamma)));
}

static const struct chm_option options[] = {
    {"energy_terms.autoregressive", CHM_OPT_FLOAT, offsetof(struct sk, own), "1.0", 0, 1000, NULL,
     "weight of the sketch's agreement with z", 0, 0},
    {"energy_terms.memory_coherence", CHM_OPT_FLOAT, offsetof(struct sk, memory), "0.3", 0, 1000, NULL,
     "weight of the distance to the nearest mosaic of earlier sketches", 0, 0},
    {"energy_terms.binding_fidelity", CHM_OPT_FLOAT, CHM_OPTION_CHECKED, "0.2", 0, 1000, NULL,
     "weight of the distance to bound entities; nothing provides them yet: the term is zero", 0, 0},
    {"energy_terms.grammar", CHM_OPT_FLOAT, CHM_OPTION_CHECKED, "0.4", 0, 1000, NULL,
     "weight of the distance to what a grammar allows; nothing provides it yet: the term is zero", 0, 0},
    {"energy_terms.debt", CHM_OPT_FLOAT, CHM_OPTION_CHECKED, "0.3", 0, 1000, NULL,
     "weight of the distance to outstanding obligations; nothing provides them yet: the term is zero", 0, 0},
    {"relaxation_phase1", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "gated_deltanet_update", 0, 0, "gated_deltanet_update",
     "what comes before relaxation", 0, 0},
    {"relaxation_phase2_max_iters", CHM_OPT_INT, offsetof(struct sk, rounds), "3", 0, 64, NULL,
     "most rounds of relaxation", 0, 0},
    {"relaxation_phase2_flip_fraction", CHM_OPT_FLOAT, offsetof(struct sk, flip_fraction), "0.02", 0, 1, NULL,
     "part of the bits that a round may flip, rounded down", 0, 0},
    {"early_exit_delta_e", CHM_OPT_FLOAT, offsetof(struct sk, exit), "0.0001", 0, 1e6, NULL,
     "a round that lowers the energy by less is the last", 0, 0},
    {"sketch_bits", CHM_OPT_INT, offsetof(struct sk, bits), "8192", SKETCH_STEP, SKETCH_MOST, NULL,
     "bits of a sketch, a multiple of 1024", 0, 0},
    {"smooth", CHM_OPT_BOOL, offsetof(struct sk, smooth), "false", 0, 0, NULL,
     "tanh instead of bits, and neither mosaics nor relaxation: for finite differences; set by the f32 part of "
     "`chimera layer test`",
     0, 0},
    GATED_DELTA_OPTIONS(offsetof(struct sk, core)),
};

static const struct chm_layer_ops ops = {.size = sizeof ops, .declare = sk_declare, .forward = sk_forward};

CHM_PLUGIN(sk, .kind = CHM_KIND_LAYER, .section = "tsp_knot", .aliases = "SK tsp_span_knot tsp_knot",
           .version = "1.0.0", .licence = "Apache-2.0",
           .summary = "span-knot: gated DeltaNet and a relaxed sketch of bits", CHM_OPTIONS(options),
           .instance_size = sizeof(struct sk), .ops = &ops);
