/*
 * mlp: SwiGLU feed-forward, y = W_down norm(silu(x W_gate) * (x W_up)) (arXiv:2002.05202), with the norm before W_down
 * that ternary linears want (arXiv:2505.08823).
 */
#include <chimera/plugin.h>

struct mlp {
    chm_param *gate, *up, *down, *down_norm;
};

static int mlp_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    struct mlp *m = self;
    m->gate = chm_declare_matrix(d, "gate", CHM_ROLE_TERNARY, chm_normal(0), info->ffn_width, info->width);
    m->up = chm_declare_matrix(d, "up", CHM_ROLE_TERNARY, chm_normal(0), info->ffn_width, info->width);
    m->down = chm_declare_matrix(d, "down", CHM_ROLE_TERNARY, chm_residual(), info->width, info->ffn_width);
    if (info->norm_before_linear)
        m->down_norm = chm_declare_vector(d, "down_norm", CHM_ROLE_NORM, chm_constant(1), info->ffn_width);
    return CHM_OK;
}

static chm_tensor *mlp_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct mlp *m = self;
    chm_tensor *h = chm_swiglu(g, chm_linear(g, x, m->gate), chm_linear(g, x, m->up));
    if (m->down_norm) h = chm_rmsnorm(g, h, m->down_norm, 0);
    return chm_linear(g, chm_tap(g, "mlp.w_down.in", h), m->down);
}

static const struct chm_layer_ops ops = {.size = sizeof ops, .declare = mlp_declare, .forward = mlp_forward};

CHM_PLUGIN(mlp, .kind = CHM_KIND_LAYER, .version = "1.0.0", .licence = "Apache-2.0",
           .summary = "SwiGLU feed-forward (arXiv:2002.05202)", .instance_size = sizeof(struct mlp), .ops = &ops);
