/*
 * loop.c: layers that run several times per token (arXiv:2604.12946). Between the passes the residual stream decays and
 * the input enters again, as a linear system held constant over a step: x <- A x + B e, e the norm of what the prelude
 * made, A = e^(-delta a) and B = (1 - A) / a times a gain, per column, with delta, a > 0 by construction.
 */
#include "model/loop.h"

#include <math.h>
#include <string.h>

enum { LANES = 16 };

/* delta * a is at least this, so that A is below the card's bound, and at most 1 - 1e-4: 1 itself is not stable. */
static float least_exponent(const struct chm_loop_config *config) {
    const bool bounded = config->bound > 0 && config->bound < 1;
    return fmaxf(bounded ? (float)(-chm_natural_log(config->bound) * (1 + 1e-5)) : 0.0f, 1e-4f);
}

int chm_loop_declare(chm_model *m, chm_param *(*add)(void *user, const char *name, chm_init init), void *user) {
    chm_loop *loop = &m->loop;
    loop->config = &m->config->loop;
    if (!loop->config->enabled) return CHM_OK;
    loop->norm = add(user, "loop.norm", chm_constant(1));
    /* a = 1 and A = sqrt(1/5), as published: delta = softplus(dt_bias) = ln(5) / 2 */
    loop->A_log = add(user, "loop.A_log", chm_constant(0));
    loop->dt_bias = add(user, "loop.dt_bias", chm_constant(0.21266f));
    loop->gain = add(user, "loop.B", chm_constant(1));
    return loop->norm && loop->A_log && loop->dt_bias && loop->gain ? CHM_OK : CHM_E_MEMORY;
}

/* ---- the system's two coefficients ---- */

/* 1 - e^-u for u > 0, A = e^-u at hand: where that cancels, its series */
static float one_minus(float u, float A) {
    if (u > 0.25f) return 1.0f - A;
    float sum = 0;
    for (int n = 8; n >= 1; n--) sum = u / (float)n * (1.0f - sum);
    return sum;
}

/* inputs: A_log, delta, B; output: A, then B's coefficient, side by side */
struct coefficients {
    const struct chm_kernels *kernels;
    bool euler;
    float least; /* least_exponent() */
};

static void coefficients_forward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                                 int64_t out_width, float *out) {
    const struct coefficients *s = self;
    (void)rows; /* one: these are parameters */
    (void)out_width;
    for (int64_t i = 0; i < width[0]; i++) {
        float a, A;
        s->kernels->unary(CHM_EXP, &in[0][i], 1, &a);
        const float u = fmaxf(in[1][i] * a, s->least), negative = -u;
        s->kernels->unary(CHM_EXP, &negative, 1, &A);
        out[i] = A;
        out[width[0] + i] = (s->euler ? in[1][i] : one_minus(u, A) / a) * in[2][i];
    }
}

static void coefficients_backward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                                  int64_t out_width, const float *out, const float *dout, float *const *din) {
    const struct coefficients *s = self;
    (void)rows;
    (void)out_width;
    for (int64_t i = 0; i < width[0]; i++) {
        const double a = exp((double)in[0][i]), delta = in[1][i], free_u = delta * a, A = out[i];
        const bool held = free_u < s->least;
        const double u = held ? s->least : free_u, gain = s->euler ? delta : -expm1(-u) / a;
        const double dA = dout[i], dgain = (double)dout[width[0] + i] * in[2][i];
        double du = -A * dA, ddelta = 0, da = 0;
        if (s->euler)
            ddelta += dgain;
        else {
            du += A / a * dgain;
            da -= gain / a * dgain;
        }
        if (!held) {
            ddelta += du * a;
            da += du * delta;
        }
        if (din[0]) din[0][i] += (float)(da * a);
        if (din[1]) din[1][i] += (float)ddelta;
        if (din[2]) din[2][i] += (float)((double)dout[width[0] + i] * gain);
    }
}

static const chm_operator zero_order_hold = {.size = sizeof zero_order_hold,
                                             .n_inputs = 3,
                                             .name = "zero_order_hold",
                                             .forward = coefficients_forward,
                                             .backward = coefficients_backward};

/* What every pass of one forward adds; tensors of the pass. */
struct entry {
    chm_tensor *e, *decay, *added; /* [rows, width], [1, width], [rows, width] */
};

static void begin(const chm_loop *loop, chm_context *c, struct entry *entry, chm_tensor *x) {
    chm_graph *g = chm_context_graph(c);
    struct coefficients *self = chm_context_take(c, sizeof *self);
    memset(entry, 0, sizeof *entry);
    if (!self) return;
    *self = (struct coefficients){g->ops->kernels(g), loop->config->euler, least_exponent(loop->config)};
    chm_tensor *delta = chm_softplus(g, chm_param_tensor(g, loop->dt_bias));
    chm_tensor *const in[] = {chm_param_tensor(g, loop->A_log), delta, chm_param_tensor(g, loop->gain)};
    const int64_t width = loop->A_log->count;
    chm_tensor *both = chm_apply(g, &zero_order_hold, self, in, 2 * width);
    entry->decay = chm_slice(g, both, 0, width);
    entry->e = chm_rmsnorm(g, x, loop->norm, 0);
    entry->added = chm_mul(g, entry->e, chm_slice(g, both, width, width));
}

/* The rows that a pass starts with; x: those the pass before ended with. The first starts from e. */
static chm_tensor *enter(const struct entry *entry, chm_context *c, chm_tensor *x) {
    chm_graph *g = chm_context_graph(c);
    return chm_add(g, chm_mul(g, x ? x : entry->e, entry->decay), entry->added);
}

double chm_loop_radius(const chm_loop *loop) {
    const double least = least_exponent(loop->config);
    double most = 0;
    for (int64_t i = 0; i < loop->A_log->count; i++) {
        const double b = loop->dt_bias->value[i], delta = b > 20 ? b : log1p(exp(b));
        most = fmax(most, exp(-fmax(delta * exp((double)loop->A_log->value[i]), least)));
    }
    return most;
}

/* ---- how deep ---- */

/* Whether a row has settled: |now - before| < threshold * |now|. Sums in f64 over 16 lanes. */
static bool settled(const float *now, const float *before, int64_t width, double threshold) {
    double moved[LANES] = {0}, size[LANES] = {0};
    for (int64_t i = 0; i < width; i++) {
        const double d = (double)now[i] - (double)before[i];
        moved[i % LANES] += d * d;
        size[i % LANES] += (double)now[i] * (double)now[i];
    }
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int i = 0; i < n; i++) {
            moved[i] += moved[i + n];
            size[i] += size[i + n];
        }
    return moved[0] < threshold * threshold * size[0];
}

/* Marks the rows that moved less than the threshold in this pass; those that were marked before keep what they had.
 * Returns how many are not marked. */
static int64_t settle(const chm_loop *loop, chm_tensor *now, const chm_tensor *before, bool *done) {
    int64_t open = 0;
    for (int64_t r = 0; r < now->rows; r++) {
        float *row = now->data + r * now->width;
        const float *old = before->data + r * now->width;
        if (done[r]) /* stays what it was when it left */
            memcpy(row, old, (size_t)now->width * sizeof *row);
        else if (settled(row, old, now->width, loop->config->exit_threshold))
            done[r] = true;
        open += !done[r];
    }
    return open;
}

bool chm_loop_kept(int pass, int passes, bool truncate) {
    return !truncate || pass == 1 || pass > passes - (passes + 1) / 2;
}

chm_tensor *chm_loop_forward(const chm_model *m, chm_context *c, chm_tensor *x, chm_depth *depth,
                             chm_tensor *(*layers)(const chm_model *m, chm_context *c, int pass, chm_tensor *x)) {
    const struct chm_loop_config *config = &m->config->loop;
    const int passes = depth && depth->passes > 0 ? depth->passes : (int)config->passes;
    /* a token that stops early would leave holes in the states of later passes, where they have their own */
    const bool early = !(depth && depth->whole) && !config->per_pass && !chm_context_trains(c);
    const int64_t rows = chm_context_rows(c);
    struct entry entry;
    chm_context_enter(c, -1, "loop", 0);
    begin(&m->loop, c, &entry, x);
    bool *done = chm_context_take(c, (size_t)rows * sizeof *done);
    if (!done) return NULL;
    memset(done, 0, (size_t)rows * sizeof *done);
    int64_t open = rows, sum = 0;
    x = NULL;
    for (int pass = 1; pass <= passes && open > 0; pass++) {
        chm_tensor *before = x;
        chm_context_record(c, chm_loop_kept(pass, passes, config->truncate));
        if (!config->per_pass) chm_context_loop(c, pass);
        sum += open;
        x = layers(m, c, pass, enter(&entry, c, x));
        if (!x) break;
        if (early && pass > 1) open = settle(&m->loop, x, before, done);
    }
    chm_context_record(c, true);
    chm_context_loop(c, 0);
    if (depth) {
        depth->rows += rows;
        depth->sum += sum;
    }
    return x;
}

int chm_loop_depth(const struct chm_loop_config *config, uint64_t seed, int64_t step, int64_t stream) {
    if (!config->enabled) return 1;
    if (!config->stochastic) return (int)config->passes;
    /* Poisson by inversion, held to the range */
    const double u = chm_uniform_at(seed, CHM_RANDOM_LOOP, (uint32_t)stream, (uint64_t)step);
    double term = exp(-config->mean), sum = term;
    int k = 0;
    while (u > sum && k < config->most) {
        term *= config->mean / ++k;
        sum += term;
    }
    return (int)CHM_MIN(CHM_MAX(k, config->least), config->most);
}
