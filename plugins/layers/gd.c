/* gd: gated DeltaNet (arXiv:2412.06464), as gated_delta.h describes it. */
#include "gated_delta.h"

struct gd {
    struct gated_delta core; /* first: what the recurrence is handed */
    int64_t state_size;
};

static int gd_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    struct gd *gd = self;
    if (gd->state_size && gd->state_size != info->head_dim)
        return d->ops->fail(d, "gated_deltanet.state_size is %lld, but head_dim is %lld: they are the same number here",
                            (long long)gd->state_size, (long long)info->head_dim);
    return gated_delta_declare(&gd->core, d, info);
}

static chm_tensor *gd_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct gd *gd = self;
    return gated_delta_forward(&gd->core, g, x);
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
    {"key_norm", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "l2", 0, 0, "l2",
     "normalisation of queries and keys; under efla of queries alone", 0, 0},
    GATED_DELTA_OPTIONS(offsetof(struct gd, core)),
};

static const struct chm_layer_ops ops = {.size = sizeof ops, .declare = gd_declare, .forward = gd_forward};

CHM_PLUGIN(gd, .kind = CHM_KIND_LAYER, .section = "gated_deltanet", .aliases = "GD gated_deltanet", .version = "1.0.0",
           .licence = "Apache-2.0", .summary = "gated DeltaNet: decayed delta-rule memory (arXiv:2412.06464)",
           CHM_OPTIONS(options), .instance_size = sizeof(struct gd), .ops = &ops);
