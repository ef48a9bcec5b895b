/*
 * sgd: gradient descent with momentum, w = w - lr (decay w + u), where with m = momentum m + g the step u is m, or in
 * Nesterov's form g + momentum m. That is torch.optim.SGD without dampening, but that the decay is decoupled, as
 * AdamW's is. Without momentum nothing is kept.
 */
#include <chimera/plugin.h>

struct sgd {
    double momentum;
    bool nesterov;
};

static const struct chm_option options[] = {
    {.name = "momentum",
     .type = CHM_OPT_FLOAT,
     .offset = offsetof(struct sgd, momentum),
     .def = "0.9",
     .max = 0.9999999,
     .doc = "Part of the last step that goes on; 0: none, and nothing is kept."},
    {.name = "nesterov",
     .type = CHM_OPT_BOOL,
     .offset = offsetof(struct sgd, nesterov),
     .def = "false",
     .doc = "Nesterov's form: the gradient is added to its momentum once more."},
};

static int sgd_arrays(const void *self, const struct chm_optimiser_param *p) {
    (void)p;
    return ((const struct sgd *)self)->momentum > 0;
}

static void sgd_step(const void *self, const struct chm_optimiser_step *s) {
    const struct sgd *o = self;
    const float momentum = (float)o->momentum, scale = (float)s->gradient_scale;
    const float lr = (float)s->lr, decay = (float)s->weight_decay;
    float *restrict w = s->value, *restrict m = s->state[0];
    const float *restrict g = s->gradient;
    for (int64_t i = 0; i < s->count; i++) {
        float by = g[i] * scale;
        if (m) {
            m[i] = momentum * m[i] + by;
            by = o->nesterov ? by + momentum * m[i] : m[i];
        }
        w[i] -= lr * (decay * w[i] + by);
    }
}

static const struct chm_optimiser_ops ops = {.size = sizeof ops, .arrays = sgd_arrays, .step = sgd_step};

CHM_PLUGIN(sgd, .kind = CHM_KIND_OPTIMISER, .section = "training.sgd", .aliases = "SGD", .version = "1.0.0",
           .licence = "Apache-2.0", .summary = "gradient descent with momentum", CHM_OPTIONS(options),
           .instance_size = sizeof(struct sgd), .ops = &ops);
