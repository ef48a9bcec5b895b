/*
 * moe: a mixture of SwiGLU experts as the feed-forward. Every row goes through the shared experts and through a few of
 * the routed ones, those whose score sigmoid(x W_router) plus a bias is highest; what they give is added up with the
 * scores, without the bias, over their sum (arXiv:2412.19437). No loss asks for balance: after every step the bias of
 * an expert that was chosen too seldom rises and that of one chosen too often falls (arXiv:2408.15664).
 *
 * The rows are sorted by expert, so that each matrix meets all of its rows in one product. A row's result depends on
 * nothing but the row: its experts are added in the order of their numbers.
 */
#include <chimera/plugin.h>
#include <stdio.h>

enum { MOST_ROUTED = 1024, MOST_SHARED = 64, MOST_CHOSEN = 64 };

struct expert {
    chm_param *gate, *up, *down, *down_norm;
};

struct moe {
    /* options */
    int64_t routed, shared, chosen, inner;
    double bias_rate;
    /* from the host */
    chm_param *router, *bias;
    struct expert expert[MOST_ROUTED + MOST_SHARED]; /* the routed ones, then the shared */
};

/* ---- which experts: row r's numbers, rising, from its scores ---- */

struct choosing {
    int64_t experts, chosen;
    const float *bias;
};

static void choose_rows(const void *self, int64_t rows, const int64_t *width, const float *const *in, int64_t out_width,
                        float *out) {
    const struct choosing *how = self;
    int32_t best[MOST_CHOSEN] = {0};
    float value[MOST_CHOSEN];
    for (int64_t r = 0; r < rows; r++) {
        const float *score = in[0] + r * width[0];
        int64_t count = 0;
        /* from the best down; of equal ones the lower number stays ahead */
        for (int64_t e = 0; e < how->experts; e++) {
            const float v = score[e] + how->bias[e];
            if (count > 0 && count == how->chosen && !(v > value[count - 1])) continue;
            int64_t at = count < how->chosen ? count++ : count - 1;
            for (; at > 0 && v > value[at - 1]; at--) {
                value[at] = value[at - 1];
                best[at] = best[at - 1];
            }
            value[at] = v;
            best[at] = (int32_t)e;
        }
        for (int64_t i = 0; i < out_width; i++) { /* insertion sort by number */
            int64_t at = i;
            for (; at > 0 && out[r * out_width + at - 1] > (float)best[i]; at--)
                out[r * out_width + at] = out[r * out_width + at - 1];
            out[r * out_width + at] = (float)best[i];
        }
    }
}

/* A choice is a constant: neither the scores nor the bias learn through it. */
static void choose_backward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                            int64_t out_width, const float *out, const float *dout, float *const *din) {
    (void)self, (void)rows, (void)width, (void)in, (void)out_width, (void)out, (void)dout, (void)din;
}

static const chm_operator choose = {
    .size = sizeof choose, .n_inputs = 1, .name = "moe.choose", .forward = choose_rows, .backward = choose_backward};

/* ---- how much of each: the chosen scores over their sum ---- */

static float sum_of(const float *score, const float *choice, int64_t chosen) {
    float sum = 0;
    for (int64_t i = 0; i < chosen; i++) sum += score[(int64_t)choice[i]];
    return sum + 1e-20f;
}

static void weigh_rows(const void *self, int64_t rows, const int64_t *width, const float *const *in, int64_t out_width,
                       float *out) {
    (void)self;
    for (int64_t r = 0; r < rows; r++) {
        const float *score = in[0] + r * width[0], *choice = in[1] + r * width[1];
        const float sum = sum_of(score, choice, out_width);
        for (int64_t i = 0; i < out_width; i++) out[r * out_width + i] = score[(int64_t)choice[i]] / sum;
    }
}

static void weigh_backward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                           int64_t out_width, const float *out, const float *dout, float *const *din) {
    (void)self;
    for (int64_t r = 0; r < rows && din[0]; r++) {
        const float *choice = in[1] + r * width[1], *w = out + r * out_width, *dw = dout + r * out_width;
        const float sum = sum_of(in[0] + r * width[0], choice, out_width);
        float along = 0;
        for (int64_t i = 0; i < out_width; i++) along += w[i] * dw[i];
        for (int64_t i = 0; i < out_width; i++) din[0][r * width[0] + (int64_t)choice[i]] += (dw[i] - along) / sum;
    }
}

static const chm_operator weigh = {
    .size = sizeof weigh, .n_inputs = 2, .name = "moe.weigh", .forward = weigh_rows, .backward = weigh_backward};

/* ---- the layer ---- */

static int moe_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    struct moe *m = self;
    char name[64];
    if (m->chosen > m->routed)
        return d->ops->fail(d, "num_experts_per_tok is %lld, of only %lld experts", (long long)m->chosen,
                            (long long)m->routed);
    m->router = chm_declare_matrix(d, "router", CHM_ROLE_FULL, chm_normal(0), m->routed, info->width);
    m->bias = chm_declare_vector(d, "router_bias", CHM_ROLE_OWN, chm_constant(0), m->routed);
    for (int64_t e = 0; e < m->routed + m->shared; e++) {
        struct expert *x = &m->expert[e];
        snprintf(name, sizeof name, "gate_%lld", (long long)e);
        x->gate = chm_declare_matrix(d, name, CHM_ROLE_TERNARY, chm_normal(0), m->inner, info->width);
        snprintf(name, sizeof name, "up_%lld", (long long)e);
        x->up = chm_declare_matrix(d, name, CHM_ROLE_TERNARY, chm_normal(0), m->inner, info->width);
        snprintf(name, sizeof name, "down_%lld", (long long)e);
        x->down = chm_declare_matrix(d, name, CHM_ROLE_TERNARY, chm_residual(), info->width, m->inner);
        snprintf(name, sizeof name, "down_norm_%lld", (long long)e);
        if (info->norm_before_linear)
            x->down_norm = chm_declare_vector(d, name, CHM_ROLE_NORM, chm_constant(1), m->inner);
    }
    return CHM_OK;
}

static chm_tensor *through(const struct expert *e, chm_graph *g, chm_tensor *x, const char *tap) {
    chm_tensor *h = chm_swiglu(g, chm_linear(g, x, e->gate), chm_linear(g, x, e->up));
    if (e->down_norm) h = chm_rmsnorm(g, h, e->down_norm, 0);
    if (tap) h = chm_tap(g, tap, h);
    return chm_linear(g, h, e->down);
}

static chm_tensor *moe_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct moe *m = self;
    const int64_t experts = m->routed, chosen = m->chosen;
    const chm_tensor *bias = chm_param_tensor(g, m->bias);
    struct choosing *how = chm_memory(g, sizeof *how);
    if (!bias || !how) return NULL;
    *how = (struct choosing){experts, chosen, bias->data};
    chm_tensor *score = chm_tap(g, "moe.score", chm_sigmoid(g, chm_linear(g, x, m->router)));
    chm_tensor *const scores[] = {score};
    chm_tensor *choice = chm_tap(g, "moe.choice", chm_apply(g, &choose, how, scores, chosen));
    chm_tensor *const both[] = {score, choice};
    chm_tensor *weight = chm_tap(g, "moe.weight", chm_apply(g, &weigh, how, both, chosen));
    if (!weight) return NULL;

    /* a stable counting sort: the rows of each expert, in order, and which of their choices it is */
    const int64_t slots = x->rows * chosen;
    int64_t *first = chm_memory(g, (size_t)(experts + 1) * sizeof *first);
    int64_t *next = chm_memory(g, (size_t)experts * sizeof *next);
    int32_t *row = chm_memory(g, (size_t)slots * sizeof *row);
    int32_t *column = chm_memory(g, (size_t)slots * sizeof *column);
    chm_tensor **part = chm_memory(g, (size_t)experts * sizeof(chm_tensor *));
    if (!first || !next || !row || !column || !part) return NULL;
    for (int64_t e = 0; e <= experts; e++) first[e] = 0;
    for (int64_t i = 0; i < slots; i++) first[(int64_t)choice->data[i] + 1]++;
    for (int64_t e = 0; e < experts; e++) {
        first[e + 1] += first[e];
        next[e] = first[e];
    }
    for (int64_t i = 0; i < slots; i++) {
        const int64_t at = next[(int64_t)choice->data[i]]++;
        row[at] = (int32_t)(i / chosen);
        column[at] = (int32_t)(i % chosen);
    }
    float *load = chm_tally(g, m->bias);
    for (int64_t e = 0; load && e < experts; e++) load[e] += (float)(first[e + 1] - first[e]);

    chm_tensor *y = NULL;
    for (int64_t e = experts; e < experts + m->shared; e++) {
        chm_tensor *s = through(&m->expert[e], g, x, "moe.shared.w_down.in");
        y = y ? chm_add(g, y, s) : s;
    }
    int64_t parts = 0;
    for (int64_t e = 0; e < experts; e++) {
        const int64_t rows = first[e + 1] - first[e];
        if (rows) part[parts++] = through(&m->expert[e], g, chm_gather_rows(g, x, row + first[e], rows), NULL);
    }
    return chm_scatter_rows(g, y, part, parts, row, weight, column);
}

/* The bias of an expert moves by bias_rate towards the load that all should have; what all biases have in common
 * chooses nothing and is taken out. */
static void moe_after_step(const void *self, const chm_after_step *s) {
    const struct moe *m = self;
    double total = 0, most = 0, common = 0;
    for (int64_t e = 0; e < s->count; e++) {
        total += (double)s->tally[e];
        if ((double)s->tally[e] > most) most = (double)s->tally[e];
    }
    const double mean = total / (double)s->count;
    if (!(total > 0)) return;
    for (int64_t e = 0; e < s->count; e++)
        common += (((double)s->tally[e] < mean) - ((double)s->tally[e] > mean)) / (double)s->count;
    for (int64_t e = 0; e < s->count; e++) {
        const double towards = ((double)s->tally[e] < mean) - ((double)s->tally[e] > mean);
        s->value[e] += (float)(m->bias_rate * (towards - common));
    }
    const float violation = (float)((most - mean) / mean);
    s->report(s, "moe.load", s->count, s->tally);
    s->report(s, "moe.max_violation", 1, &violation);
}

static const struct chm_option options[] = {
    {"enabled", CHM_OPT_BOOL, CHM_OPTION_CHECKED, "true", 0, 0, NULL, "on or off", 0, 0},
    {"layers", CHM_OPT_INT_LIST, CHM_OPTION_CHECKED, NULL, 0, 255, NULL,
     "layers whose feed-forward is a mixture of experts, from 0", 0, 256},
    {"n_routed_experts", CHM_OPT_INT, offsetof(struct moe, routed), "16", 1, MOST_ROUTED, NULL,
     "experts to choose from", 0, 0},
    {"n_shared_experts", CHM_OPT_INT, offsetof(struct moe, shared), "1", 0, MOST_SHARED, NULL,
     "experts that every token visits, not weighed", 0, 0},
    {"num_experts_per_tok", CHM_OPT_INT, offsetof(struct moe, chosen), "2", 1, MOST_CHOSEN, NULL,
     "experts chosen for a token, by score plus bias", 0, 0},
    {"moe_intermediate_size", CHM_OPT_INT, offsetof(struct moe, inner), "1728", 1, 262144, NULL,
     "inner width of one expert", 0, 0},
    {"routing", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "noaux_bias", 0, 0, "noaux_bias",
     "balance by a bias on the choice, without a loss of its own (arXiv:2408.15664)", 0, 0},
    {"bias_rate", CHM_OPT_FLOAT, offsetof(struct moe, bias_rate), "0.001", 0, 1, NULL,
     "how far a bias moves after a step; 0: the choice is left to the scores", 0, 0},
    {"total_params", CHM_OPT_INT, CHM_OPTION_CHECKED, NULL, 0, 1e18, NULL,
     "stated number of parameters; the computed one is reported", 0, 0},
    {"active_params_per_tok", CHM_OPT_INT, CHM_OPTION_CHECKED, NULL, 0, 1e18, NULL,
     "stated number of parameters that a token meets; the computed one is reported", 0, 0},
};

static const struct chm_layer_ops ops = {
    .size = sizeof ops, .declare = moe_declare, .forward = moe_forward, .after_step = moe_after_step};

CHM_PLUGIN(moe, .kind = CHM_KIND_LAYER, .section = "backbone.moe", .aliases = "MOE", .version = "1.0.0",
           .licence = "Apache-2.0", .summary = "mixture of SwiGLU experts, balanced by a bias (arXiv:2408.15664)",
           CHM_OPTIONS(options), .instance_size = sizeof(struct moe), .ops = &ops);
