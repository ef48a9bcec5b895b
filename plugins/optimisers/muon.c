/*
 * muon: Muon (K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024) for ternary matrices:
 *
 *   m = momentum m + g;  u = g + momentum m (Nesterov) or m
 *   X = u / |u|, then `iterations` times X = a X + b (X X') X + c (X X')^2 X with a, b, c = 3.4445, -4.7750, 2.0315,
 * which brings every singular value near 1 w = w - lr (decay w + 0.2 sqrt(max(out, in)) X)
 *
 * The last factor is that of arXiv:2502.16982: a step is then about as long as one of AdamW, so that one learning rate
 * and one decay serve the matrices and the rest, which is AdamW's. Products are f32.
 */
#include <chimera/plugin.h>

#include <math.h>

struct muon {
    double momentum;
    bool nesterov;
    int64_t iterations;
};

static const struct chm_option options[] = {
    {.name = "momentum",
     .type = CHM_OPT_FLOAT,
     .offset = offsetof(struct muon, momentum),
     .def = "0.95",
     .max = 0.9999999,
     .doc = "Part of the last gradients that goes on."},
    {.name = "nesterov",
     .type = CHM_OPT_BOOL,
     .offset = offsetof(struct muon, nesterov),
     .def = "true",
     .doc = "Nesterov's form: the gradient is added to its momentum once more."},
    {.name = "iterations",
     .type = CHM_OPT_INT,
     .offset = offsetof(struct muon, iterations),
     .def = "5",
     .min = 3,
     .max = 5,
     .doc = "Newton-Schulz iterations of a step."},
};

static bool muon_takes(const void *self, const struct chm_optimiser_param *p) {
    (void)self;
    return p->role == CHM_ROLE_TERNARY && p->rank == 2 && p->out > 1 && p->in > 1;
}

static int muon_arrays(const void *self, const struct chm_optimiser_param *p) {
    (void)self;
    (void)p;
    return 1;
}

static int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

/* X once more, and two squares of the shorter side */
static size_t muon_scratch(const void *self, const struct chm_optimiser_param *p) {
    const int64_t side = p->out < p->in ? p->out : p->in;
    (void)self;
    return (size_t)(padded(p->out * p->in) + 2 * padded(side * side));
}

static void muon_step(const void *self, const struct chm_optimiser_step *s) {
    static const float a = 3.4445f, b = -4.7750f, c = 2.0315f;
    const struct muon *o = self;
    const int64_t out = s->param->out, in = s->param->in, n = out * in, side = out < in ? out : in;
    const bool tall = out > in;
    const float mu = (float)o->momentum, g = (float)s->gradient_scale;
    float *x = s->gradient, *next = s->scratch, *gram = next + padded(n), *square = gram + padded(side * side);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const float by = x[i] * g;
        s->state[0][i] = mu * s->state[0][i] + by;
        x[i] = o->nesterov ? by + mu * s->state[0][i] : s->state[0][i];
        sum += (double)x[i] * (double)x[i];
    }
    const float inverse = (float)(1 / (sqrt(sum) + 1e-7));
    for (int64_t i = 0; i < n; i++) x[i] *= inverse;
    for (int64_t turn = 0; turn < o->iterations; turn++) {
        /* the smaller of X X' and X' X: the same polynomial from the other side */
        s->kernels->sgemm(tall, !tall, side, side, tall ? out : in, x, in, x, in, 0, gram, side);
        s->kernels->sgemm(false, false, side, side, side, gram, side, gram, side, 0, square, side);
        for (int64_t i = 0; i < side * side; i++) gram[i] = b * gram[i] + c * square[i];
        for (int64_t i = 0; i < n; i++) next[i] = a * x[i];
        if (tall)
            s->kernels->sgemm(false, false, out, in, in, x, in, gram, in, 1, next, in);
        else
            s->kernels->sgemm(false, false, out, in, out, gram, out, x, in, 1, next, in);
        float *was = x;
        x = next;
        next = was;
    }
    const float scale = 0.2f * sqrtf((float)(tall ? out : in)), lr = (float)s->lr, decay = (float)s->weight_decay;
    for (int64_t i = 0; i < n; i++) s->value[i] -= lr * (decay * s->value[i] + scale * x[i]);
}

static const struct chm_optimiser_ops ops = {.size = sizeof ops,
                                             .whole = true,
                                             .takes = muon_takes,
                                             .arrays = muon_arrays,
                                             .scratch = muon_scratch,
                                             .step = muon_step};

CHM_PLUGIN(muon, .kind = CHM_KIND_OPTIMISER, .section = "training.muon", .aliases = "Muon", .version = "1.0.0",
           .licence = "Apache-2.0", .summary = "orthogonalised momentum for ternary matrices", CHM_OPTIONS(options),
           .instance_size = sizeof(struct muon), .ops = &ops);
