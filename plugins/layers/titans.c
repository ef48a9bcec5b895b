/*
 * titans: memory as context (arXiv:2501.00663). Per head a two-layer memory M(u) = u + silu(u W1) W2 learns while it
 * reads: the error of M on a token's key and value is its surprise, surprise gathers momentum, and what was learnt is
 * forgotten at a rate of the token's own. What the memory says to a token's query, the tokens of the segment and 64
 * learned slots are its context; the context's answer y is what the memory learns next and is asked about.
 *
 * Departures from the paper, which has no public code: the context is read by a decayed outer product that is cleared
 * at every segment's edge instead of softmax (core = window_softmax: softmax over a sliding window of tokens), and the
 * memory's gradient is taken at the weights of the last multiple of `chunk` tokens. The state is the deviation of W1
 * and W2 from what was trained, so forgetting leads back there, and the rows of the chunk so far; a chunk is folded
 * into the weights when the next one begins, so that a question asked again after any row finds the memory it met.
 */
#include <chimera/plugin.h>
#include <math.h>
#include <string.h>

enum { CORE_DECAY, CORE_WINDOW };
enum { UPDATE_AFTER, UPDATE_BEFORE };
enum { RETRIEVE_ANCHOR, RETRIEVE_CURRENT, RETRIEVE_NONE };

/* columns of the recurrence's output, head by head: y, the memory's answer, the surprise */
enum part_of_output { PART_Y, PART_MEMORY, PART_SURPRISE, PARTS };
struct part {
    int64_t first, width, group;
};

struct titans {
    /* options */
    int64_t slots, window, chunk, short_conv;
    double segment_carry;
    int32_t core, update, retrieve;
    /* from the host */
    int64_t heads, dim;
    float eps;
    bool norm_before_linear;
    struct part part[PARTS];
    chm_param *q, *k, *v, *o, *conv[3], *gamma, *A_log, *dt_bias, *eta, *eta_bias, *alpha, *alpha_bias, *theta,
        *theta_bias, *tau, *maps, *w1, *w2, *p_k, *p_v, *y_norm, *w_m, *b_m, *o_norm;
    int conv_state[3], memory[4], rings[2];
};

/* ---- the memory: inputs, parameters and states of its recurrence ---- */

enum { IN_Q, IN_K, IN_V, IN_LOG_GAMMA, IN_ETA, IN_ALPHA, IN_THETA, IN_CONTEXT, INPUTS };
enum { PARAM_MAPS, PARAM_W1, PARAM_W2, PARAMS };
/* of maps; each is what is added to the identity */
enum { MAP_KEY, MAP_VALUE, MAP_KAPPA, MAP_NU, MAP_RHO, MAPS };
/* fast: deviations of W1 and W2, then their momenta, at the chunk's beginning. log: of each row of the chunk so far its
 * key kappa, the gradient delta at the hidden layer, the hidden layer p and the error e: the loss has the gradients
 * kappa^T delta and p^T e. gates: momentum, step size and forgetting of the same rows */
enum { STATE_FAST, STATE_CORE, STATE_LOG, STATE_GATES, STATES };
enum { LOG_KEY, LOG_DELTA, LOG_HIDDEN, LOG_ERROR, LOG_PARTS };
enum { GATE_ETA, GATE_THETA, GATE_ALPHA, GATES };

/* Rows of its chunk that a token at this position finds in the log; a full log is folded before anything else. */
static int64_t rows_before(int64_t position, int64_t chunk) { return position ? (position - 1) % chunk + 1 : 0; }

/* What is left of the core when this position begins a segment. */
static float kept(const struct titans *t, int64_t position) {
    return position % t->window ? 1.0f : (float)t->segment_carry;
}

static double square_sum(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

/* The step shrinks with momentum, which adds steps up, with the chunk, whose gradients are stale, and with the hidden
 * layer, whose square bounds the curvature: a repeated key then stays stable. */
static double step_shrink(const struct titans *t, const float *hidden) {
    return 1 / ((double)t->chunk * (1 + square_sum(hidden, t->dim)));
}

/* silu's slope at z, sigma = sigmoid(z) */
static float slope(float z, float sigma) { return sigma * (1 + z * (1 - sigma)); }
static float slope_slope(float z, float sigma) { return sigma * (1 - sigma) * (2 + z * (1 - 2 * sigma)); }

/* Weights of the rows in the memory after each row, and of the state before them (index 0): the momentum after row t is
 * sum_i J[t][i] (-theta_i gradient_i) with J[t][0] of the old momentum, the deviation D[t] old + sum_i K[t][i] ... the
 * same. Products of gates only: nothing is divided, so gates may be 0. [rows + 1][rows + 1], above the diagonal unset.
 */
struct weights {
    double *J, *K, *D;
};

static void weigh_rows(const struct weights *w, int64_t rows, const float *gates, int64_t chunk) {
    const int64_t n = rows + 1;
    w->J[0] = w->D[0] = 1;
    w->K[0] = 0;
    for (int64_t t = 1; t <= rows; t++) {
        const double eta = (double)gates[GATE_ETA * chunk + t - 1];
        const double omega = 1 - (double)gates[GATE_ALPHA * chunk + t - 1];
        double *J = w->J + t * n, *K = w->K + t * n;
        for (int64_t i = 0; i < t; i++) {
            J[i] = eta * J[i - n];
            K[i] = omega * K[i - n] + J[i];
        }
        J[t] = K[t] = 1;
        w->D[t] = omega * w->D[t - 1];
    }
}

/* The rows of a whole chunk go into the deviations and momenta. `exact`: in the order and rounding of inference. */
static void fold(const struct titans *t, const struct chm_kernels *k, const struct weights *w, float *fast, float *log,
                 float *gates, float *scaled, bool exact) {
    const int64_t d = t->dim, rows = t->chunk, n = rows + 1;
    weigh_rows(w, rows, gates, rows);
    const double *J = w->J + rows * n, *K = w->K + rows * n;
    const float keep = (float)w->D[rows], carry = (float)K[0], momentum = (float)J[0];
    for (int layer = 0; layer < 2; layer++) {
        const float *x = log + (layer ? LOG_HIDDEN : LOG_KEY) * rows * d;
        const float *y = log + (layer ? LOG_ERROR : LOG_DELTA) * rows * d;
        float *deviation = fast + layer * d * d, *gathered = fast + (2 + layer) * d * d;
        for (int64_t i = 0; i < d * d; i++) {
            deviation[i] = keep * deviation[i] + carry * gathered[i];
            gathered[i] = momentum * gathered[i];
        }
        for (int which = 0; which < 2; which++) {
            float *to = which ? gathered : deviation;
            for (int64_t r = 0; r < rows; r++) {
                const float by = -(float)((which ? J : K)[r + 1] * (double)gates[GATE_THETA * rows + r]);
                for (int64_t i = 0; i < d; i++) scaled[r * d + i] = by * x[r * d + i];
                if (exact) k->outer_step(to, d, d, scaled + r * d, scaled + r * d, y + r * d, 1, 1, NULL);
            }
            if (!exact) k->block_matmul(d, d, rows, scaled, 1, d, y, d, to, d, 1);
        }
    }
    memset(log, 0, (size_t)(LOG_PARTS * rows * d) * sizeof *log);
    memset(gates, 0, (size_t)(GATES * rows) * sizeof *gates);
}

/* Memory by pieces; with base NULL only their sum is counted. */
struct room {
    float *base;
    size_t used;
};
static float *take(struct room *r, int64_t floats) {
    float *at = r->base ? r->base + r->used : NULL;
    r->used += ((size_t)floats + 15) & ~(size_t)15;
    return at;
}
static double *take_doubles(struct room *r, int64_t n) { return (double *)(void *)take(r, 2 * n); }
static void take_weights(struct room *r, struct weights *w, int64_t rows) {
    w->J = take_doubles(r, (rows + 1) * (rows + 1));
    w->K = take_doubles(r, (rows + 1) * (rows + 1));
    w->D = take_doubles(r, rows + 1);
}

/* ---- one row: exact kernels, and plain C in a fixed order ---- */

struct row {
    const struct titans *t;
    const struct chm_kernels *k;
    const float *maps, *w1, *w2;
    float *fast, *core, *log, *gates;
    float *a1, *a2, *h, *key, *value, *z, *hidden, *sum, *other, *y, *nu, *rho, *coefficient, *scaled;
    struct weights weights;
};

static void row_room(struct row *w, struct room *r, const struct titans *t) {
    const int64_t d = t->dim;
    float **const vectors[] = {&w->h,   &w->key,   &w->value, &w->z,  &w->hidden,
                               &w->sum, &w->other, &w->y,     &w->nu, &w->rho};
    w->a1 = take(r, d * d);
    w->a2 = take(r, d * d);
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) *vectors[i] = take(r, d);
    w->coefficient = take(r, t->chunk);
    w->scaled = take(r, t->chunk * d);
    take_weights(r, &w->weights, t->chunk);
}

static void begin_row(struct row *w, const chm_head *h, void *const *state) {
    struct room r = {.base = h->scratch};
    w->t = h->layer;
    w->k = h->kernels;
    w->maps = h->param[PARAM_MAPS];
    w->w1 = h->param[PARAM_W1];
    w->w2 = h->param[PARAM_W2];
    w->fast = state[STATE_FAST];
    w->core = state[STATE_CORE];
    w->log = state[STATE_LOG];
    w->gates = state[STATE_GATES];
    row_room(w, &r, w->t);
}

static float *log_row(const struct row *w, int part, int64_t row) {
    return w->log + (part * w->t->chunk + row) * w->t->dim;
}

static void times(const struct row *w, const float *matrix, const float *u, float *out) {
    w->k->delta_read(matrix, w->t->dim, w->t->dim, u, 1, out);
}

static void mapped(const struct row *w, int map, const float *u, float *out) {
    times(w, w->maps + map * w->t->dim * w->t->dim, u, out);
    for (int64_t i = 0; i < w->t->dim; i++) out[i] = u[i] + out[i];
}

static void mapped_unit(const struct row *w, int map, const float *u, float *out) {
    mapped(w, map, u, w->sum);
    w->k->l2norm(w->sum, 1, w->t->dim, 1e-6f, out, NULL);
}

/* The surprise of a token, as row n of the log. */
static void learn_row(const struct row *w, int64_t n, const float *key, const float *value, const float *const *in) {
    const struct titans *t = w->t;
    const int64_t d = t->dim;
    float *kappa = log_row(w, LOG_KEY, n), *delta = log_row(w, LOG_DELTA, n), *hidden = log_row(w, LOG_HIDDEN, n);
    float *error = log_row(w, LOG_ERROR, n);
    mapped_unit(w, MAP_KAPPA, key, kappa);
    mapped(w, MAP_NU, value, w->nu);
    times(w, w->a1, kappa, w->z);
    w->k->unary(CHM_SILU, w->z, d, hidden);
    times(w, w->a2, hidden, error);
    for (int64_t i = 0; i < d; i++) error[i] = kappa[i] + error[i] - w->nu[i];
    w->k->f32_matmul(w->a2, 0, d, d, error, 1, delta, d);
    w->k->unary(CHM_SIGMOID, w->z, d, w->other);
    for (int64_t i = 0; i < d; i++) delta[i] = delta[i] * slope(w->z[i], w->other[i]);
    const double eta = (double)in[IN_ETA][0];
    w->gates[GATE_ETA * t->chunk + n] = in[IN_ETA][0];
    w->gates[GATE_THETA * t->chunk + n] = (float)((double)in[IN_THETA][0] * (1 - eta) * step_shrink(t, hidden));
    w->gates[GATE_ALPHA * t->chunk + n] = in[IN_ALPHA][0];
}

/* u through one matrix of the memory after n rows: trained + D deviation + c momentum - what the rows add */
static void through_memory(const struct row *w, int layer, int64_t n, const float *u, float *out) {
    const struct titans *t = w->t;
    const int64_t d = t->dim;
    const double *K = w->weights.K + n * (n + 1);
    const float keep = (float)w->weights.D[n], carry = (float)K[0];
    times(w, layer ? w->w2 : w->w1, u, out);
    times(w, w->fast + layer * d * d, u, w->sum);
    times(w, w->fast + (2 + layer) * d * d, u, w->other);
    for (int64_t i = 0; i < d; i++) out[i] = out[i] + keep * w->sum[i] + carry * w->other[i];
    w->k->f32_matmul(log_row(w, layer ? LOG_HIDDEN : LOG_KEY, 0), 0, n, d, u, 1, w->coefficient, n);
    for (int64_t i = 0; i < n; i++)
        w->coefficient[i] *= (float)(K[i + 1] * (double)w->gates[GATE_THETA * t->chunk + i]);
    w->k->delta_read(log_row(w, layer ? LOG_ERROR : LOG_DELTA, 0), n, d, w->coefficient, 1, w->sum);
    for (int64_t i = 0; i < d; i++) out[i] = out[i] - w->sum[i];
}

/* The memory after n rows, asked with u. */
static void ask_row(const struct row *w, int64_t n, const float *u, float *m) {
    mapped_unit(w, MAP_RHO, u, w->rho);
    weigh_rows(&w->weights, n, w->gates, w->t->chunk);
    through_memory(w, 0, n, w->rho, w->z);
    w->k->unary(CHM_SILU, w->z, w->t->dim, w->hidden);
    through_memory(w, 1, n, w->hidden, m);
    for (int64_t i = 0; i < w->t->dim; i++) m[i] = w->rho[i] + m[i];
}

/* Squared norm of the gradient that row n of the log stands for. */
static float surprise_of(const float *log, int64_t n, int64_t chunk, int64_t d) {
    double part[LOG_PARTS];
    for (int i = 0; i < LOG_PARTS; i++) part[i] = square_sum(log + (i * chunk + n) * d, d);
    return (float)(part[LOG_KEY] * part[LOG_DELTA] + part[LOG_HIDDEN] * part[LOG_ERROR]);
}

static void finish_row(const struct row *w, const float *o, const float *context) {
    for (int64_t i = 0; i < w->t->dim; i++) w->sum[i] = o[i] + context[i];
    w->k->rmsnorm(w->sum, 1, w->t->dim, w->t->eps, NULL, 1, w->y, NULL);
}

static void write_row(const struct row *w, int64_t n, const float *m, float *out) {
    const int64_t d = w->t->dim;
    memcpy(out, w->y, (size_t)d * sizeof *out);
    memcpy(out + d, m, (size_t)d * sizeof *out);
    out[2 * d] = surprise_of(w->log, n, w->t->chunk, d);
}

static float query_scale(const struct titans *t) { return 1.0f / sqrtf((float)t->dim); }

static void titans_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    struct row w;
    begin_row(&w, h, state);
    const struct titans *t = w.t;
    const int64_t d = t->dim;
    int64_t n = rows_before(h->position, t->chunk);
    if (n == t->chunk) {
        fold(t, w.k, &w.weights, w.fast, w.log, w.gates, w.scaled, true);
        n = 0;
    }
    for (int64_t i = 0; i < d * d; i++) w.a1[i] = w.w1[i] + w.fast[i];
    for (int64_t i = 0; i < d * d; i++) w.a2[i] = w.w2[i] + w.fast[d * d + i];
    const float *q = in[IN_Q], *m = w.value;
    if (t->update == UPDATE_BEFORE) {
        learn_row(&w, n, in[IN_K], in[IN_V], in);
        ask_row(&w, n + 1, q, w.value);
    }
    if (t->retrieve == RETRIEVE_CURRENT)
        memcpy(w.h, w.value, (size_t)d * sizeof(float));
    else if (t->retrieve == RETRIEVE_ANCHOR) {
        times(&w, w.a1, q, w.z);
        w.k->unary(CHM_SILU, w.z, d, w.hidden);
        times(&w, w.a2, w.hidden, w.h);
        for (int64_t i = 0; i < d; i++) w.h[i] = q[i] + w.h[i];
    }
    /* the core: the token, then what the memory said to it; the last write asks */
    const bool tokens = t->core == CORE_DECAY, context = t->retrieve != RETRIEVE_NONE;
    const float scale = query_scale(t);
    float decay, *o = w.other;
    w.k->unary(CHM_EXP, in[IN_LOG_GAMMA], 1, &decay);
    decay *= kept(t, h->position);
    memset(o, 0, (size_t)d * sizeof(float));
    if (tokens) w.k->outer_step(w.core, d, d, q, in[IN_K], in[IN_V], decay, scale, context ? NULL : o);
    if (context) {
        mapped_unit(&w, MAP_KEY, w.h, w.key);
        mapped(&w, MAP_VALUE, w.h, w.nu);
        w.k->outer_step(w.core, d, d, q, w.key, w.nu, tokens ? 1 : decay, scale, o);
    }
    finish_row(&w, o, in[IN_CONTEXT]);
    if (t->update == UPDATE_AFTER) {
        learn_row(&w, n, w.y, w.y, in);
        if (out) ask_row(&w, n + 1, w.y, w.value);
    }
    if (out) write_row(&w, n, m, out);
}

static void titans_read(const chm_head *h, void *const *state, const float *const *in, float *out) {
    struct row w;
    begin_row(&w, h, state);
    const struct titans *t = w.t;
    const int64_t n = h->position % t->chunk;
    memset(w.other, 0, (size_t)t->dim * sizeof(float));
    if (t->core == CORE_DECAY || t->retrieve != RETRIEVE_NONE)
        w.k->delta_read(w.core, t->dim, t->dim, in[IN_Q], query_scale(t), w.other);
    finish_row(&w, w.other, in[IN_CONTEXT]);
    ask_row(&w, n + 1, t->update == UPDATE_BEFORE ? in[IN_Q] : w.y, w.value);
    write_row(&w, n, w.value, out);
}

/* ---- many rows: a chunk of the recurrence is up to MOST_SEGMENTS chunks of the memory, here called segments ---- */

enum { MOST_SEGMENTS = 16, MOST_ROWS = 64 };

static int64_t titans_chunk_rows(const void *layer) {
    const struct titans *t = layer;
    const int64_t segments = MOST_ROWS / t->chunk;
    return t->chunk * (segments < MOST_SEGMENTS ? segments : MOST_SEGMENTS);
}

/* Where a segment begins, and its rows; `fast` and `core` are those before its new rows, the log gets them. */
struct segment {
    int64_t first, rows, before; /* in the chunk; new ones; those found in the log */
    int64_t position;            /* of the first new row */
    float *fast, *core, *log, *gates;
};

/* One set of questions to a segment, and what its gradient needs. [rows][d] but for: */
struct ask {
    float *q, *context;
    float *o, *y, *rstd;      /* before and after the norm; [rows] */
    float *seen, *score;      /* q times the core before the segment; [rows][2 rows]: scores, decayed and scaled */
    float *raw, *rho, *rnorm; /* [rows] */
    float *z, *hidden, *m;
    float *from_fast[2], *from_momentum[2]; /* products with deviations and momenta, by layer */
    float *dots[2];                         /* [rows][before + rows]: with keys and hidden layers of the log */
};

struct work {
    const struct titans *t;
    const struct chm_kernels *k;
    int64_t d;
    const float *maps, *w1, *w2;
    struct weights weights;
    float *a1, *a2, *scaled, *left, *right; /* left and right: of products with a transpose */
    /* a segment's rows, [rows][d] but for: */
    float *k_in, *v_in;
    float *hz, *hidden, *h, *key_raw, *key_rnorm; /* the memory's word; hidden: silu(hz) */
    float *keys, *values;                         /* [2 rows][d]: of the tokens, then of the memory's words */
    float *kappa_raw, *kappa_rnorm, *z, *back;    /* back: error times A2^T */
    float *grown, *last, *gamma;                  /* e^g, e^(g_last - g), [rows][rows] e^(g_i - g_j) */
    float *theta;                                 /* [rows][before + rows]: K times step size */
    double *g;
    int64_t parts; /* of keys and values: 0, 1 or 2 */
    struct ask ask, again;
    float *temporary[4]; /* [rows] of 2 d, or of before + rows */
};

static void ask_room(struct ask *a, struct room *r, int64_t rows, int64_t d) {
    float **const full[] = {&a->q,
                            &a->context,
                            &a->o,
                            &a->y,
                            &a->seen,
                            &a->raw,
                            &a->rho,
                            &a->z,
                            &a->hidden,
                            &a->m,
                            &a->from_fast[0],
                            &a->from_fast[1],
                            &a->from_momentum[0],
                            &a->from_momentum[1]};
    for (size_t i = 0; i < sizeof full / sizeof *full; i++) *full[i] = take(r, rows * d);
    a->rstd = take(r, rows);
    a->rnorm = take(r, rows);
    a->score = take(r, 2 * rows * rows);
    for (int i = 0; i < 2; i++) a->dots[i] = take(r, rows * rows);
}

/* What run_segment() leaves of a segment. */
static void segment_room(struct work *w, struct room *r) {
    const int64_t d = w->d, rows = w->t->chunk;
    float **const full[] = {&w->k_in, &w->v_in, &w->hz, &w->hidden, &w->h, &w->key_raw, &w->kappa_raw, &w->z, &w->back};
    take_weights(r, &w->weights, rows);
    for (size_t i = 0; i < sizeof full / sizeof *full; i++) *full[i] = take(r, rows * d);
    w->key_rnorm = take(r, rows);
    w->kappa_rnorm = take(r, rows);
    w->keys = take(r, 2 * rows * d);
    w->values = take(r, 2 * rows * d);
    w->grown = take(r, rows);
    w->last = take(r, rows);
    w->gamma = take(r, rows * rows);
    w->theta = take(r, rows * rows);
    w->g = take_doubles(r, rows);
    ask_room(&w->ask, r, rows, d);
}

static void work_room(struct work *w, struct room *r, const chm_head *h) {
    const struct titans *t = w->t = h->layer;
    const int64_t d = w->d = t->dim, rows = t->chunk;
    const int64_t longest = 2 * (d > rows ? d : rows);
    w->k = h->kernels;
    w->maps = h->param[PARAM_MAPS];
    w->w1 = h->param[PARAM_W1];
    w->w2 = h->param[PARAM_W2];
    w->a1 = take(r, d * d);
    w->a2 = take(r, d * d);
    w->left = take(r, (2 * rows + d) * (2 * rows + d));
    w->right = take(r, (2 * rows + d) * (2 * rows + d));
    w->parts = (t->core == CORE_DECAY) + (t->retrieve != RETRIEVE_NONE);
    ask_room(&w->again, r, rows, d);
    w->scaled = take(r, rows * longest);
    for (int i = 0; i < 4; i++) w->temporary[i] = take(r, rows * longest);
    segment_room(w, r);
}

/* C[m][n] = A[m][k] B[k][n], C + A B or C - A B (add 0, 1, -1); everything here is dense */
static void product(const struct work *w, int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c,
                    int add) {
    w->k->block_matmul(m, n, k, a, k, 1, b, n, c, n, add);
}
/* A is [k][m] */
static void product_left(const struct work *w, int64_t m, int64_t n, int64_t k, const float *a, const float *b,
                         float *c, int add) {
    w->k->block_matmul(m, n, k, a, 1, m, b, n, c, n, add);
}

static void transpose(int64_t rows, int64_t columns, const float *from, float *to) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) to[c * rows + r] = from[r * columns + c];
}

/* B is [n][k]: the smaller operand is turned, B, or A and the result */
static void product_right(const struct work *w, int64_t m, int64_t n, int64_t k, const float *a, const float *b,
                          float *c, int add) {
    if (n <= m || n * k <= m * (n + k)) {
        transpose(n, k, b, w->left);
        w->k->block_matmul(m, n, k, a, k, 1, w->left, n, c, n, add);
        return;
    }
    transpose(m, k, a, w->left);
    w->k->block_matmul(n, m, k, b, k, 1, w->left, m, w->right, m, 0);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            const float v = w->right[j * m + i];
            c[i * n + j] = add == 0 ? v : add > 0 ? c[i * n + j] + v : c[i * n + j] - v;
        }
}

static void gather(float *to, const float *from, int64_t stride, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; r++) memcpy(to + r * width, from + r * stride, (size_t)width * sizeof *to);
}
static void scatter_add(float *to, int64_t stride, const float *from, int64_t rows, int64_t width) {
    for (int64_t r = 0; to && r < rows; r++)
        for (int64_t i = 0; i < width; i++) to[r * stride + i] += from[r * width + i];
}

static void scale_rows(int64_t rows, int64_t width, const float *by, const float *x, float *out) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) out[r * width + i] = by[r] * x[r * width + i];
}

static const float *map_of(const struct work *w, int map) { return w->maps + map * w->d * w->d; }

static void mapped_rows(const struct work *w, int64_t rows, int map, const float *u, float *out) {
    memcpy(out, u, (size_t)(rows * w->d) * sizeof *out);
    product(w, rows, w->d, w->d, u, map_of(w, map), out, 1);
}

static void add_weights(const struct work *w, const float *fast) {
    for (int64_t i = 0; i < w->d * w->d; i++) w->a1[i] = w->w1[i] + fast[i];
    for (int64_t i = 0; i < w->d * w->d; i++) w->a2[i] = w->w2[i] + fast[w->d * w->d + i];
}

/* ---- forward ---- */

static float *segment_row(const struct work *w, const struct segment *s, int part, int64_t row) {
    return s->log + (part * w->t->chunk + row) * w->d;
}

static void learn_rows(struct work *w, const struct segment *s, const float *keys, const float *values,
                       const chm_head *h, const float *const *in) {
    const struct titans *t = w->t;
    const int64_t d = w->d, rows = s->rows, chunk = t->chunk;
    float *kappa = segment_row(w, s, LOG_KEY, s->before), *delta = segment_row(w, s, LOG_DELTA, s->before);
    float *hidden = segment_row(w, s, LOG_HIDDEN, s->before), *error = segment_row(w, s, LOG_ERROR, s->before);
    mapped_rows(w, rows, MAP_KAPPA, keys, w->kappa_raw);
    w->k->l2norm(w->kappa_raw, rows, d, 1e-6f, kappa, w->kappa_rnorm);
    mapped_rows(w, rows, MAP_NU, values, w->temporary[0]);
    product(w, rows, d, d, kappa, w->a1, w->z, 0);
    w->k->unary(CHM_SILU, w->z, rows * d, hidden);
    for (int64_t i = 0; i < rows * d; i++) error[i] = kappa[i] - w->temporary[0][i];
    product(w, rows, d, d, hidden, w->a2, error, 1);
    product_right(w, rows, d, d, error, w->a2, w->back, 0);
    w->k->unary(CHM_SIGMOID, w->z, rows * d, w->temporary[0]);
    for (int64_t i = 0; i < rows * d; i++) delta[i] = w->back[i] * slope(w->z[i], w->temporary[0][i]);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t row = s->first + r;
        const float eta = in[IN_ETA][row * h->in_stride[IN_ETA]];
        const double theta = (double)in[IN_THETA][row * h->in_stride[IN_THETA]];
        s->gates[GATE_ETA * chunk + s->before + r] = eta;
        s->gates[GATE_THETA * chunk + s->before + r] =
            (float)(theta * (1 - (double)eta) * step_shrink(t, hidden + r * d));
        s->gates[GATE_ALPHA * chunk + s->before + r] = in[IN_ALPHA][row * h->in_stride[IN_ALPHA]];
    }
    const int64_t total = s->before + rows, n = total + 1;
    weigh_rows(&w->weights, total, s->gates, chunk);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < total; i++)
            w->theta[r * total + i] =
                i > s->before + r
                    ? 0
                    : (float)(w->weights.K[(s->before + r + 1) * n + i + 1] * (double)s->gates[GATE_THETA * chunk + i]);
}

/* Through one matrix of the memory as it is after each row. */
static void through_rows(struct work *w, const struct segment *s, struct ask *a, int layer, const float *u,
                         float *out) {
    const int64_t d = w->d, rows = s->rows, total = s->before + rows;
    const float *fast = s->fast + layer * d * d, *momentum = s->fast + (2 + layer) * d * d;
    product(w, rows, d, d, u, fast, a->from_fast[layer], 0);
    product(w, rows, d, d, u, momentum, a->from_momentum[layer], 0);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = s->before + r + 1;
        const float keep = (float)w->weights.D[at], carry = (float)w->weights.K[at * (total + 1)];
        for (int64_t i = r * d; i < (r + 1) * d; i++)
            out[i] = keep * a->from_fast[layer][i] + carry * a->from_momentum[layer][i];
    }
    product(w, rows, d, d, u, layer ? w->w2 : w->w1, out, 1);
    product_right(w, rows, total, d, u, segment_row(w, s, layer ? LOG_HIDDEN : LOG_KEY, 0), a->dots[layer], 0);
    for (int64_t i = 0; i < rows * total; i++) w->scaled[i] = a->dots[layer][i] * w->theta[i];
    product(w, rows, d, total, w->scaled, segment_row(w, s, layer ? LOG_ERROR : LOG_DELTA, 0), out, -1);
}

static void ask_memory(struct work *w, const struct segment *s, struct ask *a) {
    const int64_t n = s->rows * w->d;
    mapped_rows(w, s->rows, MAP_RHO, w->t->update == UPDATE_BEFORE ? a->q : a->y, a->raw);
    w->k->l2norm(a->raw, s->rows, w->d, 1e-6f, a->rho, a->rnorm);
    through_rows(w, s, a, 0, a->rho, a->z);
    w->k->unary(CHM_SILU, a->z, n, a->hidden);
    through_rows(w, s, a, 1, a->hidden, a->m);
    for (int64_t i = 0; i < n; i++) a->m[i] += a->rho[i];
}

static void ask_core(struct work *w, const struct segment *s, struct ask *a) {
    const int64_t d = w->d, rows = s->rows, columns = w->parts * rows;
    const float scale = query_scale(w->t);
    memcpy(a->o, a->context, (size_t)(rows * d) * sizeof(float));
    if (w->parts) {
        product(w, rows, d, d, a->q, s->core, a->seen, 0);
        product_right(w, rows, columns, d, a->q, w->keys, a->score, 0);
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t i = 0; i < d; i++) a->o[r * d + i] += scale * w->grown[r] * a->seen[r * d + i];
            for (int64_t c = 0; c < columns; c++) a->score[r * columns + c] *= scale * w->gamma[r * rows + c % rows];
        }
        product(w, rows, d, columns, a->score, w->values, a->o, 1);
    }
    w->k->rmsnorm(a->o, rows, d, w->t->eps, NULL, 1, a->y, a->rstd);
}

/* e^(g_i - g_j) of the rows' summed log decays: sums in f64, only differences are rounded. */
static void decays(struct work *w, const struct segment *s, const chm_head *h, const float *log_gamma) {
    const int64_t rows = s->rows, stride = h->in_stride[IN_LOG_GAMMA];
    double sum = 0;
    for (int64_t r = 0; r < rows; r++) w->g[r] = sum += (double)log_gamma[(s->first + r) * stride];
    for (int64_t r = 0; r < rows; r++) {
        w->grown[r] = (float)w->g[r];
        w->last[r] = (float)(sum - w->g[r]);
        for (int64_t c = 0; c < rows; c++) w->gamma[r * rows + c] = c > r ? 0 : (float)(w->g[r] - w->g[c]);
    }
    w->k->unary(CHM_EXP, w->grown, rows, w->grown);
    w->k->unary(CHM_EXP, w->last, rows, w->last);
    w->k->unary(CHM_EXP, w->gamma, rows * rows, w->gamma);
    const float keep = s->before ? 1 : kept(w->t, s->position);
    for (int64_t r = 0; r < rows; r++) {
        w->grown[r] *= keep;
        for (int64_t c = r + 1; c < rows; c++) w->gamma[r * rows + c] = 0;
    }
}

/* Everything the new rows of a segment write, into the log and into keys and values; what they ask, too. `answer`: the
 * memory's answer is wanted where nothing depends on it. */
static void run_segment(struct work *w, const struct segment *s, const chm_head *h, const float *const *in,
                        bool answer) {
    const struct titans *t = w->t;
    const int64_t d = w->d, rows = s->rows;
    struct ask *a = &w->ask;
    if (!rows) {
        weigh_rows(&w->weights, s->before, s->gates, t->chunk);
        return;
    }
    add_weights(w, s->fast);
    gather(a->q, in[IN_Q] + s->first * h->in_stride[IN_Q], h->in_stride[IN_Q], rows, d);
    gather(a->context, in[IN_CONTEXT] + s->first * h->in_stride[IN_CONTEXT], h->in_stride[IN_CONTEXT], rows, d);
    gather(w->k_in, in[IN_K] + s->first * h->in_stride[IN_K], h->in_stride[IN_K], rows, d);
    gather(w->v_in, in[IN_V] + s->first * h->in_stride[IN_V], h->in_stride[IN_V], rows, d);
    if (t->update == UPDATE_BEFORE) {
        learn_rows(w, s, w->k_in, w->v_in, h, in);
        if (answer || t->retrieve == RETRIEVE_CURRENT) ask_memory(w, s, a);
    }
    if (t->retrieve == RETRIEVE_ANCHOR) {
        product(w, rows, d, d, a->q, w->a1, w->hz, 0);
        w->k->unary(CHM_SILU, w->hz, rows * d, w->hidden);
        memcpy(w->h, a->q, (size_t)(rows * d) * sizeof(float));
        product(w, rows, d, d, w->hidden, w->a2, w->h, 1);
    } else if (t->retrieve == RETRIEVE_CURRENT)
        memcpy(w->h, a->m, (size_t)(rows * d) * sizeof(float));
    decays(w, s, h, in[IN_LOG_GAMMA]);
    const int64_t words = t->core == CORE_DECAY ? rows * d : 0; /* where the memory's begin */
    memcpy(w->keys, w->k_in, (size_t)words * sizeof(float));
    memcpy(w->values, w->v_in, (size_t)words * sizeof(float));
    if (t->retrieve != RETRIEVE_NONE) {
        mapped_rows(w, rows, MAP_KEY, w->h, w->key_raw);
        w->k->l2norm(w->key_raw, rows, d, 1e-6f, w->keys + words, w->key_rnorm);
        mapped_rows(w, rows, MAP_VALUE, w->h, w->values + words);
    }
    ask_core(w, s, a);
    if (t->update == UPDATE_AFTER) {
        learn_rows(w, s, a->y, a->y, h, in);
        if (answer) ask_memory(w, s, a);
    }
}

static void advance_core(struct work *w, const struct segment *s, float *core) {
    const int64_t d = w->d, rows = s->rows;
    if (!rows || !w->parts) return;
    for (int64_t i = 0; i < d * d; i++) core[i] *= w->grown[rows - 1];
    for (int64_t p = 0; p < w->parts; p++) {
        scale_rows(rows, d, w->last, w->keys + p * rows * d, w->scaled);
        product_left(w, d, d, rows, w->scaled, w->values + p * rows * d, core, 1);
    }
}

/* Questions of a later pass to rows that were written: `again` is theirs. */
static void ask_again(struct work *w, const struct segment *s, const chm_head *h, const float *const *question) {
    struct ask *a = &w->again;
    gather(a->q, question[IN_Q] + s->first * h->in_stride[IN_Q], h->in_stride[IN_Q], s->rows, w->d);
    gather(a->context, question[IN_CONTEXT] + s->first * h->in_stride[IN_CONTEXT], h->in_stride[IN_CONTEXT], s->rows,
           w->d);
    ask_core(w, s, a);
    ask_memory(w, s, a);
}

static void write_rows(const struct work *w, const struct segment *s, const struct ask *a, const chm_head *h,
                       float *out) {
    const int64_t d = w->d;
    for (int64_t r = 0; r < s->rows; r++) {
        float *to = out + (s->first + r) * h->out_stride;
        memcpy(to, a->y + r * d, (size_t)d * sizeof *to);
        memcpy(to + d, a->m + r * d, (size_t)d * sizeof *to);
        to[2 * d] = surprise_of(s->log, s->before + r, w->t->chunk, d);
    }
}

/* All rows of a chunk, the state in place; question NULL: those that the rows asked themselves. */
static void run_chunk(struct work *w, const chm_head *h, void *const *state, const float *const *in,
                      const float *const *question, float *out) {
    const int64_t chunk = w->t->chunk;
    struct segment s = {
        .fast = state[STATE_FAST], .core = state[STATE_CORE], .log = state[STATE_LOG], .gates = state[STATE_GATES]};
    for (; s.first < h->rows; s.first += s.rows) {
        s.position = h->position + s.first;
        s.before = rows_before(s.position, chunk);
        if (s.before == chunk) {
            fold(w->t, w->k, &w->weights, s.fast, s.log, s.gates, w->scaled, false);
            s.before = 0;
        }
        s.rows = h->rows - s.first < chunk - s.before ? h->rows - s.first : chunk - s.before;
        run_segment(w, &s, h, in, !question);
        if (question) ask_again(w, &s, h, question);
        write_rows(w, &s, question ? &w->again : &w->ask, h, out);
        advance_core(w, &s, s.core);
    }
}

static void titans_chunk(const chm_head *h, void *const *state, const float *const *in, float *out) {
    struct work w;
    struct room r = {.base = h->scratch};
    work_room(&w, &r, h);
    run_chunk(&w, h, state, in, NULL, out);
}

static int64_t state_floats(const struct titans *t, int which) {
    const int64_t d = t->dim;
    const int64_t floats[] = {4 * d * d, d * d, LOG_PARTS * t->chunk * d, GATES * t->chunk};
    return floats[which];
}

static void copied_states(const struct titans *t, struct room *r, void *const *from, void **to) {
    for (int i = 0; i < STATES; i++) {
        const int64_t n = state_floats(t, i);
        to[i] = take(r, n);
        if (to[i] && from) memcpy(to[i], from[i], (size_t)n * sizeof(float));
    }
}

static void titans_chunk_read(const chm_head *h, void *const *state, const float *const *in,
                              const float *const *question, float *out) {
    struct work w;
    struct room r = {.base = h->scratch};
    void *own[STATES];
    work_room(&w, &r, h);
    copied_states(w.t, &r, state, own);
    run_chunk(&w, h, own, in, question, out);
}

/* ---- backward ---- */

/* Gradients of a segment while its questions are gone through. */
struct back {
    float *maps, *w1, *w2;         /* of parameters; sinks where not wanted */
    float *fast, *core;            /* in: after the segment; out: before it */
    float *log, *gates;            /* as the state's, of the rows in the segment's log */
    float *keys, *values, *h;      /* of the core's writes; of the memory's word */
    double *g, *J, *K, *D, *theta; /* J, K: [total + 1]^2 */
    float *a1, *a2;                /* of the anchor */
    float *dq, *dy, *dm, *dk, *dv; /* [rows][d]: of one set of questions; of key and value inputs */
    float *dhidden;
    float *sink; /* for all parameters, where a read pass wants none */
};

static void back_room(struct back *b, struct room *r, const struct titans *t) {
    const int64_t d = t->dim, rows = t->chunk, n = rows + 1;
    float **const full[] = {&b->h, &b->dq, &b->dy, &b->dm, &b->dk, &b->dv, &b->dhidden};
    for (size_t i = 0; i < sizeof full / sizeof *full; i++) *full[i] = take(r, rows * d);
    b->a1 = take(r, d * d);
    b->a2 = take(r, d * d);
    b->log = take(r, LOG_PARTS * rows * d);
    b->gates = take(r, GATES * rows);
    b->keys = take(r, 2 * rows * d);
    b->values = take(r, 2 * rows * d);
    b->g = take_doubles(r, rows);
    b->J = take_doubles(r, n * n);
    b->K = take_doubles(r, n * n);
    b->D = take_doubles(r, n);
    b->theta = take_doubles(r, rows);
    b->sink = take(r, (MAPS + 2) * d * d);
}

static float *back_row(const struct work *w, const struct back *b, int part, int64_t row) {
    return b->log + (part * w->t->chunk + row) * w->d;
}

static double dot(const float *a, const float *b, int64_t n) {
    enum { LANES = 8 }; /* sums that do not wait for one another */
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += (double)a[i + j] * (double)b[i + j];
    for (; i < n; i++) sum += (double)a[i] * (double)b[i];
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

/* dx += of x + x B, db += */
static void mapped_backward(const struct work *w, struct back *b, int64_t rows, int map, const float *x,
                            const float *dout, float *dx) {
    for (int64_t i = 0; i < rows * w->d; i++) dx[i] += dout[i];
    product_right(w, rows, w->d, w->d, dout, map_of(w, map), dx, 1);
    product_left(w, w->d, w->d, rows, x, dout, b->maps + map * w->d * w->d, 1);
}

/* through an l2 norm as well */
static void mapped_unit_backward(const struct work *w, struct back *b, int64_t rows, int map, const float *x,
                                 const float *unit, const float *rnorm, const float *dunit, float *dx) {
    float *draw = w->temporary[3];
    memset(draw, 0, (size_t)(rows * w->d) * sizeof *draw);
    w->k->l2norm_backward(unit, rows, w->d, rnorm, dunit, draw);
    mapped_backward(w, b, rows, map, x, draw, dx);
}

/* through_rows() backwards: du += */
static void through_backward(struct work *w, const struct segment *s, struct back *b, const struct ask *a, int layer,
                             const float *u, const float *dout, float *du) {
    const int64_t d = w->d, rows = s->rows, total = s->before + rows, n = total + 1;
    const int x = layer ? LOG_HIDDEN : LOG_KEY, y = layer ? LOG_ERROR : LOG_DELTA;
    float *scaled = w->temporary[0], *both = w->temporary[1], *given = w->temporary[2];
    product_right(w, rows, total, d, dout, segment_row(w, s, y, 0), given, 0);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = s->before + r + 1;
        for (int64_t i = 0; i < at; i++) {
            const double v = -(double)a->dots[layer][r * total + i] * (double)given[r * total + i];
            b->theta[i] += v * w->weights.K[at * n + i + 1];
            b->K[at * n + i + 1] += v * (double)s->gates[GATE_THETA * w->t->chunk + i];
        }
        b->D[at] += dot(a->from_fast[layer] + r * d, dout + r * d, d);
        b->K[at * n] += dot(a->from_momentum[layer] + r * d, dout + r * d, d);
    }
    for (int64_t i = 0; i < rows * total; i++) given[i] *= w->theta[i];
    for (int64_t i = 0; i < rows * total; i++) both[i] = a->dots[layer][i] * w->theta[i];
    product(w, rows, d, total, given, segment_row(w, s, x, 0), du, -1);
    product_left(w, total, d, rows, given, u, back_row(w, b, x, 0), -1);
    product_left(w, total, d, rows, both, dout, back_row(w, b, y, 0), -1);
    product_right(w, rows, d, d, dout, layer ? w->w2 : w->w1, du, 1);
    product_left(w, d, d, rows, u, dout, layer ? b->w2 : b->w1, 1);
    for (int which = 0; which < 2; which++) {
        const int64_t at = (2 * which + layer) * d * d;
        for (int64_t r = 0; r < rows; r++) {
            const int64_t row = s->before + r + 1;
            const float by = (float)(which ? w->weights.K[row * n] : w->weights.D[row]);
            for (int64_t i = r * d; i < (r + 1) * d; i++) scaled[i] = by * dout[i];
        }
        product_right(w, rows, d, d, scaled, s->fast + at, du, 1);
        product_left(w, d, d, rows, u, scaled, b->fast + at, 1);
    }
}

/* b->dm: gradient of the answer; that of what was asked, y or q, is added to `dsource` */
static void memory_backward(struct work *w, const struct segment *s, struct back *b, const struct ask *a,
                            float *dsource) {
    const int64_t n = s->rows * w->d;
    memset(b->dhidden, 0, (size_t)n * sizeof(float));
    through_backward(w, s, b, a, 1, a->hidden, b->dm, b->dhidden);
    w->k->unary(CHM_SIGMOID, a->z, n, w->temporary[0]);
    for (int64_t i = 0; i < n; i++) b->dhidden[i] *= slope(a->z[i], w->temporary[0][i]);
    through_backward(w, s, b, a, 0, a->rho, b->dhidden, b->dm); /* dm is the residual's part already */
    mapped_unit_backward(w, b, s->rows, MAP_RHO, w->t->update == UPDATE_BEFORE ? a->q : a->y, a->rho, a->rnorm, b->dm,
                         dsource);
}

/* b->dy: gradient of y. b->dq +=; the context's is left in temporary[0] */
static void core_backward(struct work *w, const struct segment *s, struct back *b, const struct ask *a) {
    const int64_t d = w->d, rows = s->rows, columns = w->parts * rows;
    const float scale = query_scale(w->t);
    float *d_o = w->temporary[0], *scaled = w->temporary[1], *dscore = w->temporary[2];
    memset(d_o, 0, (size_t)(rows * d) * sizeof *d_o);
    w->k->rmsnorm_backward(a->o, rows, d, NULL, 1, a->rstd, b->dy, d_o, NULL);
    if (!w->parts) return;
    product_right(w, rows, columns, d, d_o, w->values, dscore, 0);
    product_left(w, columns, d, rows, a->score, d_o, b->values, 1);
    for (int64_t r = 0; r < rows; r++) {
        const float by = scale * w->grown[r];
        for (int64_t i = 0; i < d; i++) scaled[r * d + i] = by * d_o[r * d + i];
        b->g[r] += (double)by * dot(a->seen + r * d, d_o + r * d, d);
        for (int64_t c = 0; c < columns; c++) {
            const double v = (double)dscore[r * columns + c] * (double)a->score[r * columns + c];
            b->g[r] += v;
            b->g[c % rows] -= v;
            dscore[r * columns + c] *= scale * w->gamma[r * rows + c % rows];
        }
    }
    product(w, rows, d, columns, dscore, w->keys, b->dq, 1);
    product_left(w, columns, d, rows, dscore, a->q, b->keys, 1);
    product_right(w, rows, d, d, scaled, s->core, b->dq, 1);
    product_left(w, d, d, rows, a->q, scaled, b->core, 1);
}

/* advance_core() backwards: b->core becomes the gradient of the core before the rows */
static void advance_backward(struct work *w, const struct segment *s, struct back *b) {
    const int64_t d = w->d, rows = s->rows;
    memset(b->g, 0, (size_t)rows * sizeof *b->g);
    memset(b->keys, 0, (size_t)(w->parts * rows * d) * sizeof(float));
    memset(b->values, 0, (size_t)(w->parts * rows * d) * sizeof(float));
    if (!w->parts) return;
    b->g[rows - 1] += (double)w->grown[rows - 1] * dot(s->core, b->core, d * d);
    for (int64_t p = 0; p < w->parts; p++) {
        const float *keys = w->keys + p * rows * d, *values = w->values + p * rows * d;
        float *from = w->temporary[0];
        scale_rows(rows, d, w->last, keys, w->temporary[1]);
        product(w, rows, d, d, w->temporary[1], b->core, b->values + p * rows * d, 1);
        product_right(w, rows, d, d, values, b->core, from, 0);
        for (int64_t r = 0; r < rows; r++) {
            const double v = (double)w->last[r] * dot(keys + r * d, from + r * d, d);
            b->g[rows - 1] += v;
            b->g[r] -= v;
            for (int64_t i = r * d; i < (r + 1) * d; i++) b->keys[p * rows * d + i] += w->last[r] * from[i];
        }
    }
    for (int64_t i = 0; i < d * d; i++) b->core[i] *= w->grown[rows - 1];
}

/* fold() backwards: b->fast becomes the gradient of deviations and momenta before it */
static void fold_backward(struct work *w, const struct segment *s, struct back *b) {
    const int64_t d = w->d, rows = w->t->chunk, n = rows + 1;
    const double *J = w->weights.J + rows * n, *K = w->weights.K + rows * n;
    const float keep = (float)w->weights.D[rows], carry = (float)K[0], momentum = (float)J[0];
    const float *theta = s->gates + GATE_THETA * rows;
    for (int layer = 0; layer < 2; layer++) {
        const int x = layer ? LOG_HIDDEN : LOG_KEY, y = layer ? LOG_ERROR : LOG_DELTA;
        const float *deviation = s->fast + layer * d * d, *gathered = s->fast + (2 + layer) * d * d;
        float *ddeviation = b->fast + layer * d * d, *dgathered = b->fast + (2 + layer) * d * d;
        for (int which = 0; which < 2; which++) {
            const float *from = which ? dgathered : ddeviation;
            const double *weight = which ? J : K;
            double *dweight = (which ? b->J : b->K) + rows * n;
            float *dx = w->temporary[0], *dy = w->temporary[1];
            product_right(w, rows, d, d, segment_row(w, s, y, 0), from, dx, 0);
            product(w, rows, d, d, segment_row(w, s, x, 0), from, dy, 0);
            for (int64_t r = 0; r < rows; r++) {
                const double v = -dot(dx + r * d, segment_row(w, s, x, r), d);
                const float by = -(float)(weight[r + 1] * (double)theta[r]);
                b->theta[r] += v * weight[r + 1];
                dweight[r + 1] += v * (double)theta[r];
                for (int64_t i = 0; i < d; i++) back_row(w, b, x, r)[i] += by * dx[r * d + i];
                for (int64_t i = 0; i < d; i++) back_row(w, b, y, r)[i] += by * dy[r * d + i];
            }
        }
        b->D[rows] += dot(deviation, ddeviation, d * d);
        b->K[rows * n] += dot(gathered, ddeviation, d * d);
        b->J[rows * n] += dot(gathered, dgathered, d * d);
        for (int64_t i = 0; i < d * d; i++) {
            dgathered[i] = carry * ddeviation[i] + momentum * dgathered[i];
            ddeviation[i] = keep * ddeviation[i];
        }
    }
}

/* weigh_rows() backwards: the gates of all rows of the log */
static void weights_backward(const struct work *w, const struct segment *s, struct back *b) {
    const int64_t chunk = w->t->chunk, total = s->before + s->rows, n = total + 1;
    for (int64_t t = total; t >= 1; t--) {
        const double eta = (double)s->gates[GATE_ETA * chunk + t - 1];
        const double omega = 1 - (double)s->gates[GATE_ALPHA * chunk + t - 1];
        double *J = b->J + t * n, *K = b->K + t * n, deta = 0, domega = b->D[t] * w->weights.D[t - 1];
        for (int64_t i = 0; i < t; i++) {
            J[i] += K[i];
            deta += J[i] * w->weights.J[(t - 1) * n + i];
            domega += K[i] * w->weights.K[(t - 1) * n + i];
            J[i - n] += eta * J[i];
            K[i - n] += omega * K[i];
        }
        b->D[t - 1] += omega * b->D[t];
        b->gates[GATE_ETA * chunk + t - 1] += (float)deta;
        b->gates[GATE_ALPHA * chunk + t - 1] -= (float)domega;
        b->gates[GATE_THETA * chunk + t - 1] += (float)b->theta[t - 1];
    }
}

/* learn_rows() backwards: the inputs' gates, and b->dk, b->dv of what key and value were made from */
static void learn_backward(struct work *w, const struct segment *s, struct back *b, const float *keys,
                           const float *values, const chm_head *h, const float *const *in, float *const *din,
                           float *dkeys, float *dvalues) {
    const struct titans *t = w->t;
    const int64_t d = w->d, rows = s->rows, chunk = t->chunk, first = s->before;
    const float *kappa = segment_row(w, s, LOG_KEY, first), *hidden = segment_row(w, s, LOG_HIDDEN, first);
    const float *error = segment_row(w, s, LOG_ERROR, first);
    float *dkappa = back_row(w, b, LOG_KEY, first), *ddelta = back_row(w, b, LOG_DELTA, first);
    float *dhidden = back_row(w, b, LOG_HIDDEN, first), *derror = back_row(w, b, LOG_ERROR, first);
    float *sigma = w->temporary[0], *psi = w->temporary[1], *dz = w->temporary[2];
    for (int64_t r = 0; r < rows; r++) {
        const int64_t row = s->first + r, at = first + r;
        const double shrink = step_shrink(t, hidden + r * d), dtheta = (double)b->gates[GATE_THETA * chunk + at];
        const double eta = (double)s->gates[GATE_ETA * chunk + at];
        const double theta = (double)in[IN_THETA][row * h->in_stride[IN_THETA]];
        if (din[IN_THETA]) din[IN_THETA][row * h->in_stride[IN_THETA]] += (float)(dtheta * (1 - eta) * shrink);
        if (din[IN_ETA])
            din[IN_ETA][row * h->in_stride[IN_ETA]] +=
                (float)((double)b->gates[GATE_ETA * chunk + at] - dtheta * theta * shrink);
        if (din[IN_ALPHA]) din[IN_ALPHA][row * h->in_stride[IN_ALPHA]] += b->gates[GATE_ALPHA * chunk + at];
        const float by = (float)(-2 * dtheta * theta * (1 - eta) * shrink * shrink * (double)chunk);
        for (int64_t i = 0; i < d; i++) dhidden[r * d + i] += by * hidden[r * d + i];
    }
    w->k->unary(CHM_SIGMOID, w->z, rows * d, sigma);
    for (int64_t i = 0; i < rows * d; i++) {
        psi[i] = ddelta[i] * slope(w->z[i], sigma[i]);
        dz[i] = ddelta[i] * w->back[i] * slope_slope(w->z[i], sigma[i]);
    }
    product(w, rows, d, d, psi, w->a2, derror, 1);
    product_left(w, d, d, rows, psi, error, b->a2, 1);
    product_left(w, d, d, rows, hidden, derror, b->a2, 1);
    product_right(w, rows, d, d, derror, w->a2, dhidden, 1);
    for (int64_t i = 0; i < rows * d; i++) {
        dz[i] += dhidden[i] * slope(w->z[i], sigma[i]);
        dkappa[i] += derror[i];
        derror[i] = -derror[i]; /* of nu from here on */
    }
    product_right(w, rows, d, d, dz, w->a1, dkappa, 1);
    product_left(w, d, d, rows, kappa, dz, b->a1, 1);
    mapped_unit_backward(w, b, rows, MAP_KAPPA, keys, kappa, w->kappa_rnorm, dkappa, dkeys);
    mapped_backward(w, b, rows, MAP_NU, values, derror, dvalues);
}

/* The core's writes back to what was written: tokens to b->dk and b->dv, the memory's word to b->h. */
static void writes_backward(struct work *w, const struct segment *s, struct back *b) {
    const int64_t d = w->d, rows = s->rows, words = w->t->core == CORE_DECAY ? rows * d : 0;
    for (int64_t i = 0; i < words; i++) {
        b->dk[i] += b->keys[i];
        b->dv[i] += b->values[i];
    }
    if (w->t->retrieve == RETRIEVE_NONE) return;
    memset(b->h, 0, (size_t)(rows * d) * sizeof(float));
    mapped_unit_backward(w, b, rows, MAP_KEY, w->h, w->keys + words, w->key_rnorm, b->keys + words, b->h);
    mapped_backward(w, b, rows, MAP_VALUE, w->h, b->values + words, b->h);
    if (w->t->retrieve == RETRIEVE_CURRENT) {
        for (int64_t i = 0; i < rows * d; i++) b->dm[i] += b->h[i];
        return;
    }
    float *dz = w->temporary[0], *sigma = w->temporary[1];
    product_left(w, d, d, rows, w->hidden, b->h, b->a2, 1);
    product_right(w, rows, d, d, b->h, w->a2, dz, 0);
    w->k->unary(CHM_SIGMOID, w->hz, rows * d, sigma);
    for (int64_t i = 0; i < rows * d; i++) {
        dz[i] *= slope(w->hz[i], sigma[i]);
        b->dq[i] += b->h[i];
    }
    product_right(w, rows, d, d, dz, w->a1, b->dq, 1);
    product_left(w, d, d, rows, w->ask.q, dz, b->a1, 1);
}

static void gather_output(const struct work *w, const struct segment *s, const chm_head *h, const float *dout,
                          struct back *b) {
    gather(b->dy, dout + s->first * h->out_stride, h->out_stride, s->rows, w->d);
    gather(b->dm, dout + s->first * h->out_stride + w->d, h->out_stride, s->rows, w->d);
}

/* Gradients of a later pass's questions, and what they owe to the writes. */
static void again_backward(struct work *w, const struct segment *s, struct back *b, const chm_head *h,
                           const float *const *question, const float *dout, float *const *dquestion) {
    const int64_t n = s->rows * w->d;
    ask_again(w, s, h, question);
    gather_output(w, s, h, dout, b);
    memset(b->dq, 0, (size_t)n * sizeof(float));
    memory_backward(w, s, b, &w->again, w->t->update == UPDATE_BEFORE ? b->dq : b->dy);
    core_backward(w, s, b, &w->again);
    if (!dquestion) return;
    const int64_t q = s->first * h->in_stride[IN_Q], context = s->first * h->in_stride[IN_CONTEXT];
    if (dquestion[IN_Q]) scatter_add(dquestion[IN_Q] + q, h->in_stride[IN_Q], b->dq, s->rows, w->d);
    if (dquestion[IN_CONTEXT])
        scatter_add(dquestion[IN_CONTEXT] + context, h->in_stride[IN_CONTEXT], w->temporary[0], s->rows, w->d);
}

static void clear_weights(const struct segment *s, struct back *b) {
    const int64_t total = s->before + s->rows, n = total + 1;
    memset(b->J, 0, (size_t)(n * n) * sizeof(double));
    memset(b->K, 0, (size_t)(n * n) * sizeof(double));
    memset(b->D, 0, (size_t)n * sizeof(double));
    memset(b->theta, 0, (size_t)total * sizeof(double));
}

static void segment_backward(struct work *w, const struct segment *s, struct back *b, bool folded, const chm_head *h,
                             const float *const *in, const chm_chunk_grad *grad) {
    const struct titans *t = w->t;
    const int64_t d = w->d, rows = s->rows, n = rows * d;
    clear_weights(s, b);
    if (folded) fold_backward(w, s, b);
    if (!rows) {
        weights_backward(w, s, b);
        return;
    }
    add_weights(w, s->fast);
    memset(b->a1, 0, (size_t)(d * d) * sizeof(float));
    memset(b->a2, 0, (size_t)(d * d) * sizeof(float));
    memset(b->dk, 0, (size_t)n * sizeof(float));
    memset(b->dv, 0, (size_t)n * sizeof(float));
    advance_backward(w, s, b);
    for (uint32_t p = 0; p < grad->n_reads; p++) again_backward(w, s, b, h, grad->read_in[p], grad->read_dout[p], NULL);
    gather_output(w, s, h, grad->dout, b);
    memset(b->dq, 0, (size_t)n * sizeof(float));
    if (t->update == UPDATE_AFTER) {
        memory_backward(w, s, b, &w->ask, b->dy);
        weights_backward(w, s, b);
        learn_backward(w, s, b, w->ask.y, w->ask.y, h, in, grad->din, b->dy, b->dy);
    }
    core_backward(w, s, b, &w->ask);
    if (grad->din[IN_CONTEXT])
        scatter_add(grad->din[IN_CONTEXT] + s->first * h->in_stride[IN_CONTEXT], h->in_stride[IN_CONTEXT],
                    w->temporary[0], rows, d);
    writes_backward(w, s, b);
    if (t->update == UPDATE_BEFORE) {
        memory_backward(w, s, b, &w->ask, b->dq);
        weights_backward(w, s, b);
        learn_backward(w, s, b, w->k_in, w->v_in, h, in, grad->din, b->dk, b->dv);
    }
    /* the anchor is what was trained plus the deviation */
    for (int64_t i = 0; i < d * d; i++) {
        b->w1[i] += b->a1[i];
        b->w2[i] += b->a2[i];
        b->fast[i] += b->a1[i];
        b->fast[d * d + i] += b->a2[i];
    }
    const struct {
        int input;
        const float *from;
    } given[] = {{IN_Q, b->dq}, {IN_K, b->dk}, {IN_V, b->dv}};
    for (int i = 0; i < 3; i++) {
        const int64_t stride = h->in_stride[given[i].input];
        if (grad->din[given[i].input])
            scatter_add(grad->din[given[i].input] + s->first * stride, stride, given[i].from, rows, d);
    }
    double sum = 0;
    for (int64_t r = rows - 1; r >= 0 && grad->din[IN_LOG_GAMMA]; r--)
        grad->din[IN_LOG_GAMMA][(s->first + r) * h->in_stride[IN_LOG_GAMMA]] += (float)(sum += b->g[r]);
}

/* The segments of a chunk, each with copies of the states before it, its log filled, and what it computed. Works share
 * what no segment leaves to another. */
struct segments {
    struct segment of[MOST_SEGMENTS + 2];
    struct work work[MOST_SEGMENTS + 2];
    int64_t count;
};

static void segments_room(struct segments *all, struct room *r, const struct work *shared) {
    const struct titans *t = shared->t;
    for (int64_t i = 0; i < titans_chunk_rows(t) / t->chunk + 1; i++) {
        void *state[STATES];
        copied_states(t, r, NULL, state);
        all->of[i].fast = state[STATE_FAST];
        all->of[i].core = state[STATE_CORE];
        all->of[i].log = state[STATE_LOG];
        all->of[i].gates = state[STATE_GATES];
        all->work[i] = *shared;
        if (i) segment_room(&all->work[i], r);
    }
}

/* `answer` as run_segment() takes it */
static void find_segments(struct segments *all, const chm_head *h, void *const *state, const float *const *in,
                          bool answer) {
    const struct titans *t = h->layer;
    const int64_t chunk = t->chunk;
    const float *from[STATES];
    for (int i = 0; i < STATES; i++) from[i] = state[i];
    all->count = 0;
    for (int64_t first = 0; first < h->rows; all->count++) {
        struct segment *s = &all->of[all->count];
        float *const to[STATES] = {s->fast, s->core, s->log, s->gates};
        for (int i = 0; i < STATES; i++) memcpy(to[i], from[i], (size_t)state_floats(t, i) * sizeof(float));
        s->first = first;
        s->position = h->position + first;
        if (all->count) { /* the one before was whole */
            struct work *last = &all->work[all->count - 1];
            advance_core(last, s - 1, s->core);
            fold(t, h->kernels, &last->weights, s->fast, s->log, s->gates, last->scaled, false);
        }
        s->before = all->count ? 0 : rows_before(s->position, chunk);
        s->rows = h->rows - first < chunk - s->before ? h->rows - first : chunk - s->before;
        first += s->rows;
        run_segment(&all->work[all->count], s, h, in, answer);
        for (int i = 0; i < STATES; i++) from[i] = to[i];
    }
}

static void backward_room(struct work *w, struct back *b, struct segments *all, struct room *r, const chm_head *h) {
    work_room(w, r, h);
    back_room(b, r, w->t);
    segments_room(all, r, w);
}

static size_t titans_scratch(const chm_head *h) {
    struct work w;
    struct back b;
    struct segments all;
    struct row row;
    struct room r = {0}, alone = {0};
    row_room(&row, &alone, h->layer);
    if (h->rows > 1 || titans_chunk_rows(h->layer) == 1) {
        backward_room(&w, &b, &all, &r, h);
        void *own[STATES];
        copied_states(h->layer, &r, NULL, own);
    }
    return (r.used > alone.used ? r.used : alone.used) * sizeof(float);
}

static void sinks(struct back *b, int64_t d) {
    memset(b->sink, 0, (size_t)((MAPS + 2) * d * d) * sizeof(float));
    b->maps = b->sink;
    b->w1 = b->sink + MAPS * d * d;
    b->w2 = b->w1 + d * d;
}

/* The reads' part of the gradient that their own questions need; the rest has its turn in titans_chunk_backward. */
static void titans_read_backward(const chm_head *h, void *const *state, const float *const *in,
                                 const float *const *question, const float *dout, float *const *dquestion) {
    struct work w;
    struct back b;
    struct segments all;
    struct room r = {.base = h->scratch};
    void *unused[STATES];
    backward_room(&w, &b, &all, &r, h);
    copied_states(w.t, &r, state, unused); /* gradients that nobody asks for */
    b.fast = unused[STATE_FAST];
    b.core = unused[STATE_CORE];
    sinks(&b, w.d);
    find_segments(&all, h, state, in, false);
    for (int64_t i = 0; i < all.count; i++) {
        const struct segment *s = &all.of[i];
        if (!s->rows) continue;
        clear_weights(s, &b);
        memset(b.log, 0, (size_t)(LOG_PARTS * w.t->chunk * w.d) * sizeof(float));
        memset(b.gates, 0, (size_t)(GATES * w.t->chunk) * sizeof(float));
        advance_backward(&all.work[i], s, &b);
        again_backward(&all.work[i], s, &b, h, question, dout, dquestion);
    }
}

static void titans_chunk_backward(const chm_head *h, void *const *state, const float *const *in,
                                  const chm_chunk_grad *grad) {
    struct work w;
    struct back b;
    struct segments all;
    struct room r = {.base = h->scratch};
    backward_room(&w, &b, &all, &r, h);
    const int64_t d = w.d, chunk = w.t->chunk;
    float *dlog = grad->dstate[STATE_LOG], *dgates = grad->dstate[STATE_GATES];
    sinks(&b, d);
    if (grad->dparam[PARAM_MAPS]) b.maps = grad->dparam[PARAM_MAPS];
    if (grad->dparam[PARAM_W1]) b.w1 = grad->dparam[PARAM_W1];
    if (grad->dparam[PARAM_W2]) b.w2 = grad->dparam[PARAM_W2];
    b.fast = grad->dstate[STATE_FAST];
    b.core = grad->dstate[STATE_CORE];
    find_segments(&all, h, state, in, true);
    for (int64_t i = all.count - 1; i >= 0; i--) {
        const struct segment *s = &all.of[i];
        const bool last = i == all.count - 1;
        const int64_t total = s->before + s->rows;
        memset(b.log, 0, (size_t)(LOG_PARTS * chunk * d) * sizeof(float));
        memset(b.gates, 0, (size_t)(GATES * chunk) * sizeof(float));
        /* the log after the chunk holds the last segment's rows; before it, only rows of the first that were there */
        for (int part = 0; part < LOG_PARTS && last; part++) {
            float *rows = dlog + part * chunk * d;
            memcpy(b.log + part * chunk * d, rows, (size_t)(total * d) * sizeof(float));
            memset(rows, 0, (size_t)((i ? chunk : total) * d) * sizeof(float));
        }
        for (int gate = 0; gate < GATES && last; gate++) {
            float *rows = dgates + gate * chunk;
            memcpy(b.gates + gate * chunk, rows, (size_t)total * sizeof(float));
            memset(rows, 0, (size_t)(i ? chunk : total) * sizeof(float));
        }
        segment_backward(&all.work[i], s, &b, !last, h, in, grad);
        if (i) continue;
        for (int part = 0; part < LOG_PARTS; part++)
            memcpy(dlog + part * chunk * d, b.log + part * chunk * d, (size_t)(s->before * d) * sizeof(float));
        for (int gate = 0; gate < GATES; gate++)
            memcpy(dgates + gate * chunk, b.gates + gate * chunk, (size_t)s->before * sizeof(float));
    }
}

static const chm_recurrence memory = {
    .size = sizeof(chm_recurrence),
    .n_inputs = INPUTS,
    .n_states = STATES,
    .n_params = PARAMS,
    .read_inputs = 1u << IN_Q | 1u << IN_CONTEXT,
    .flags = CHM_REC_ALIGNED,
    .name = "titans",
    .step = titans_step,
    .read = titans_read,
    .chunk_rows = titans_chunk_rows,
    .scratch_bytes = titans_scratch,
    .chunk = titans_chunk,
    .chunk_read = titans_chunk_read,
    .chunk_read_backward = titans_read_backward,
    .chunk_backward = titans_chunk_backward,
};

/* ---- persistent slots: softmax(tau q P_k^T) P_v, a recurrence without a state because its parameters are a head's ---
 */

enum { SLOT_KEYS, SLOT_VALUES, SLOT_TAU };

static size_t slots_scratch(const chm_head *h) {
    const struct titans *t = h->layer;
    const size_t n = (size_t)t->slots, rows = MOST_ROWS, d = (size_t)t->dim;
    return n * (2 * sizeof(const float *) + sizeof(float)) + (3 * rows * n + 4 * (n + rows) * d) * sizeof(float) + 1024;
}

static void slots_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    const struct titans *t = h->layer;
    const float **keys = h->scratch, **values = keys + t->slots;
    (void)state;
    if (!out) return;
    for (int64_t i = 0; i < t->slots; i++) {
        keys[i] = h->param[SLOT_KEYS] + i * t->dim;
        values[i] = h->param[SLOT_VALUES] + i * t->dim;
    }
    h->kernels->attend(in[0], keys, values, t->slots, t->dim, t->dim, h->param[SLOT_TAU][0],
                       (float *)(void *)(values + t->slots), out);
}

struct slots {
    float *q, *turned, *score, *weight, *out, *back;
};

static void slots_weights(const chm_head *h, const float *q, struct slots *s) {
    const struct titans *t = h->layer;
    const int64_t d = t->dim, n = t->slots, rows = h->rows;
    struct room r = {.base = h->scratch};
    s->score = take(&r, rows * n);
    s->weight = take(&r, rows * n);
    s->back = take(&r, rows * n);
    s->q = take(&r, rows * d);
    s->out = take(&r, rows * d);
    s->turned = take(&r, n * d);
    gather(s->q, q, h->in_stride[0], rows, d);
    transpose(n, d, h->param[SLOT_KEYS], s->turned);
    h->kernels->block_matmul(rows, n, d, s->q, d, 1, s->turned, n, s->score, n, 0);
    for (int64_t i = 0; i < rows; i++) {
        const float *score = s->score + i * n;
        float *weight = s->weight + i * n, most = -INFINITY, sum = 0;
        for (int64_t e = 0; e < n; e++) {
            weight[e] = h->param[SLOT_TAU][0] * score[e];
            most = weight[e] > most ? weight[e] : most;
        }
        for (int64_t e = 0; e < n; e++) weight[e] -= most;
        h->kernels->unary(CHM_EXP, weight, n, weight);
        for (int64_t e = 0; e < n; e++) sum += weight[e];
        for (int64_t e = 0; e < n; e++) weight[e] /= sum;
    }
}

static void slots_ask(const chm_head *h, const float *q, float *out) {
    const struct titans *t = h->layer;
    struct slots s;
    slots_weights(h, q, &s);
    h->kernels->block_matmul(h->rows, t->dim, t->slots, s.weight, t->slots, 1, h->param[SLOT_VALUES], t->dim, out,
                             h->out_stride, 0);
}

static void slots_chunk(const chm_head *h, void *const *state, const float *const *in, float *out) {
    (void)state;
    slots_ask(h, in[0], out);
}
static void slots_chunk_read(const chm_head *h, void *const *state, const float *const *in,
                             const float *const *question, float *out) {
    (void)state, (void)in;
    slots_ask(h, question[0], out);
}

static void slots_back(const chm_head *h, const float *q, const float *dout, float *dq, float *const *dparam) {
    const struct titans *t = h->layer;
    const int64_t d = t->dim, n = t->slots, rows = h->rows;
    const float tau = h->param[SLOT_TAU][0];
    struct slots s;
    slots_weights(h, q, &s);
    gather(s.out, dout, h->out_stride, rows, d);
    transpose(n, d, h->param[SLOT_VALUES], s.turned);
    h->kernels->block_matmul(rows, n, d, s.out, d, 1, s.turned, n, s.back, n, 0);
    double dtau = 0;
    for (int64_t i = 0; i < rows; i++) {
        float *back = s.back + i * n;
        const float mean = (float)dot(back, s.weight + i * n, n);
        for (int64_t e = 0; e < n; e++) back[e] = s.weight[i * n + e] * (back[e] - mean);
        dtau += dot(back, s.score + i * n, n);
        for (int64_t e = 0; e < n; e++) back[e] *= tau;
    }
    if (dq) h->kernels->block_matmul(rows, d, n, s.back, n, 1, h->param[SLOT_KEYS], d, dq, h->in_stride[0], 1);
    if (!dparam) return;
    if (dparam[SLOT_KEYS]) h->kernels->block_matmul(n, d, rows, s.back, 1, n, s.q, d, dparam[SLOT_KEYS], d, 1);
    if (dparam[SLOT_VALUES]) h->kernels->block_matmul(n, d, rows, s.weight, 1, n, s.out, d, dparam[SLOT_VALUES], d, 1);
    if (dparam[SLOT_TAU]) dparam[SLOT_TAU][0] += (float)dtau;
}

static void slots_read_backward(const chm_head *h, void *const *state, const float *const *in,
                                const float *const *question, const float *dout, float *const *dquestion) {
    (void)state, (void)in;
    slots_back(h, question[0], dout, dquestion[0], NULL);
}

static void slots_chunk_backward(const chm_head *h, void *const *state, const float *const *in,
                                 const chm_chunk_grad *grad) {
    (void)state;
    slots_back(h, in[0], grad->dout, grad->din[0], grad->dparam);
    for (uint32_t p = 0; p < grad->n_reads; p++)
        slots_back(h, grad->read_in[p][0], grad->read_dout[p], NULL, grad->dparam);
}

static const chm_recurrence persistent = {
    .size = sizeof(chm_recurrence),
    .n_inputs = 1,
    .n_params = 3,
    .read_inputs = 1,
    .name = "titans_slots",
    .step = slots_step,
    .read = slots_step,
    .scratch_bytes = slots_scratch,
    .chunk = slots_chunk,
    .chunk_read = slots_chunk_read,
    .chunk_read_backward = slots_read_backward,
    .chunk_backward = slots_chunk_backward,
};

/* ---- the window of core = window_softmax: queries arrive multiplied by tau ---- */

static size_t window_scratch(const chm_head *h) {
    const struct titans *t = h->layer;
    const size_t row = (size_t)t->window, chunk = chm_attend_scratch(t->dim, t->dim);
    return (row > chunk ? row : chunk) * sizeof(float);
}

static void window_look(const chm_head *h, const float *const *ask, const int64_t *count,
                        const float *const *const *entry, float *out) {
    const int64_t d = h->out_width;
    h->kernels->attend(ask[0], entry[0], entry[1], count[0], d, d, 1, h->scratch, out);
}

static size_t window_saved(const chm_head *h) { return (size_t)h->rows * sizeof(float); }

static struct chm_attend window_rows(const chm_head *h, const float *const *ask, const chm_ring_rows *ring) {
    return (struct chm_attend){.rows = h->rows,
                               .before = ring[0].before,
                               .window = ring[0].entries,
                               .dk = h->out_width,
                               .dv = h->out_width,
                               .q = ask[0],
                               .k_before = ring[0].carried,
                               .k = ring[0].rows,
                               .v_before = ring[1].carried,
                               .v = ring[1].rows,
                               .qs = h->in_stride[0],
                               .ks = ring[0].stride,
                               .vs = ring[1].stride,
                               .os = h->out_stride,
                               .scale = 1};
}

static void window_chunk(const chm_head *h, const float *const *ask, const chm_ring_rows *ring, float *out) {
    const struct chm_attend rows = window_rows(h, ask, ring);
    h->kernels->attend_chunk(&rows, out, h->saved, h->scratch);
}

static void window_backward(const chm_head *h, const float *const *ask, const chm_ring_rows *ring, const float *out,
                            const float *dout, float *const *dask) {
    const struct chm_attend rows = window_rows(h, ask, ring);
    h->kernels->attend_chunk_backward(&rows, out, h->saved, dout, dask[0], ring[0].dcarried, ring[0].drows,
                                      ring[1].dcarried, ring[1].drows, h->scratch);
}

static const chm_window window = {
    .size = sizeof(chm_window),
    .n_asks = 1,
    .n_rings = 2,
    .name = "titans_window",
    .scratch_bytes = window_scratch,
    .look = window_look,
    .saved_bytes = window_saved,
    .chunk = window_chunk,
    .chunk_backward = window_backward,
};

/* ---- columns of the recurrence's output ---- */

static void part_forward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                         int64_t out_width, float *out) {
    const struct part *p = self;
    const float *from = in[0] + p->first;
    for (int64_t i = 0; i < rows * width[0] / p->group; i++)
        memcpy(out + i * p->width, from + i * p->group, (size_t)p->width * sizeof *out);
    (void)out_width;
}

static void part_backward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                          int64_t out_width, const float *out, const float *dout, float *const *din) {
    const struct part *p = self;
    (void)in, (void)out, (void)out_width;
    if (din[0]) scatter_add(din[0] + p->first, p->group, dout, rows * width[0] / p->group, p->width);
}

static const chm_operator part_of = {.size = sizeof(chm_operator),
                                     .n_inputs = 1,
                                     .name = "titans_part",
                                     .forward = part_forward,
                                     .backward = part_backward};

/* ---- the layer ---- */

/* ln A, A ~ U(0, 16), kept off zero, and dt_bias of rates log-uniform in [0.001, 0.1]: as gated DeltaNet's decay. */
static void fill_A_log(const double *uniform, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = (float)log(fmax(16.0 * uniform[i], 1e-3));
}
static void fill_dt_bias(const double *uniform, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        const double dt = exp(uniform[i] * (log(0.1) - log(0.001)) + log(0.001));
        out[i] = (float)(dt + log(-expm1(-dt)));
    }
}

static int titans_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    struct titans *t = self;
    const int64_t width = info->width, heads = info->heads, dim = info->head_dim, inner = heads * dim;
    if (t->window % t->chunk)
        return d->ops->fail(d, "titans.local_window_size is %lld, which chunks of titans.chunk = %lld do not fill",
                            (long long)t->window, (long long)t->chunk);
    if (t->retrieve == RETRIEVE_CURRENT && t->update == UPDATE_AFTER)
        return d->ops->fail(d, "titans.retrieve = current asks the memory after the token's update: that needs "
                               "titans.update = before (with titans.chunk = 1, anchor is the memory before it)");
    t->heads = heads;
    t->dim = dim;
    t->eps = info->norm_eps;
    t->norm_before_linear = info->norm_before_linear;
    t->part[PART_Y] = (struct part){0, dim, 2 * dim + 1};
    t->part[PART_MEMORY] = (struct part){dim, dim, 2 * dim + 1};
    t->part[PART_SURPRISE] = (struct part){2 * dim, 1, 2 * dim + 1};
    t->q = chm_declare_matrix(d, "q", CHM_ROLE_TERNARY, chm_normal(0), inner, width);
    t->k = chm_declare_matrix(d, "k", CHM_ROLE_TERNARY, chm_normal(0), inner, width);
    t->v = chm_declare_matrix(d, "v", CHM_ROLE_TERNARY, chm_normal(0), inner, width);
    t->o = chm_declare_matrix(d, "o", CHM_ROLE_TERNARY, chm_residual(), width, inner);
    static const char *const conv[] = {"conv_q", "conv_k", "conv_v"};
    for (int i = 0; i < 3 && t->short_conv; i++) {
        t->conv[i] = chm_declare_matrix(d, conv[i], CHM_ROLE_FULL, chm_uniform(-0.5f, 0.5f), inner, t->short_conv);
        t->conv_state[i] = chm_declare_conv_state(d, conv[i], heads, inner, t->short_conv);
    }
    t->gamma = chm_declare_matrix(d, "gamma", CHM_ROLE_FULL, chm_normal(0), heads, width);
    t->A_log = chm_declare_vector(d, "A_log", CHM_ROLE_NORM, chm_custom(fill_A_log), heads);
    t->dt_bias = chm_declare_vector(d, "dt_bias", CHM_ROLE_NORM, chm_custom(fill_dt_bias), heads);
    t->eta = chm_declare_matrix(d, "eta", CHM_ROLE_FULL, chm_normal(0), heads, width);
    t->eta_bias = chm_declare_vector(d, "eta_bias", CHM_ROLE_NORM, chm_constant(2.2f), heads);
    t->alpha = chm_declare_matrix(d, "alpha", CHM_ROLE_FULL, chm_normal(0), heads, width);
    t->alpha_bias = chm_declare_vector(d, "alpha_bias", CHM_ROLE_NORM, chm_constant(-5), heads);
    t->theta = chm_declare_matrix(d, "theta", CHM_ROLE_FULL, chm_normal(0), heads, width);
    t->theta_bias = chm_declare_vector(d, "theta_bias", CHM_ROLE_NORM, chm_constant(0), heads);
    const int64_t maps[] = {heads, MAPS, dim, dim}, square[] = {heads, dim, dim}, kept_rows[] = {heads, t->slots, dim};
    t->maps = chm_declare_param(d, "maps", CHM_ROLE_FULL, chm_normal(0.02f), 4, maps);
    t->w1 = chm_declare_param(d, "w1", CHM_ROLE_FULL, chm_normal(2 / sqrtf((float)dim)), 3, square);
    t->w2 = chm_declare_param(d, "w2", CHM_ROLE_FULL, chm_constant(0), 3, square);
    if (t->slots || t->core == CORE_WINDOW)
        t->tau = chm_declare_vector(d, "tau", CHM_ROLE_NORM, chm_constant(8), heads);
    if (t->slots) {
        t->p_k = chm_declare_param(d, "p_k", CHM_ROLE_FULL, chm_normal(0.02f), 3, kept_rows);
        t->p_v = chm_declare_param(d, "p_v", CHM_ROLE_FULL, chm_normal(0.02f), 3, kept_rows);
    }
    t->y_norm = chm_declare_vector(d, "y_norm", CHM_ROLE_NORM, chm_constant(1), dim);
    t->w_m = chm_declare_vector(d, "w_m", CHM_ROLE_NORM, chm_constant(1), dim);
    t->b_m = chm_declare_vector(d, "b_m", CHM_ROLE_NORM, chm_constant(0), dim);
    if (t->norm_before_linear) t->o_norm = chm_declare_vector(d, "o_norm", CHM_ROLE_NORM, chm_constant(1), inner);
    t->memory[STATE_FAST] = chm_declare_state(d, "fast", CHM_F32, heads, 3, (int64_t[]){4, dim, dim});
    t->memory[STATE_CORE] = chm_declare_state(d, "core", CHM_F32, heads, 2, (int64_t[]){dim, dim});
    t->memory[STATE_LOG] = chm_declare_state(d, "log", CHM_F32, heads, 3, (int64_t[]){LOG_PARTS, t->chunk, dim});
    t->memory[STATE_GATES] = chm_declare_state(d, "gates", CHM_F32, heads, 2, (int64_t[]){GATES, t->chunk});
    if (t->core == CORE_WINDOW) {
        t->rings[0] = chm_declare_ring(d, "keys", heads, t->window, dim);
        t->rings[1] = chm_declare_ring(d, "values", heads, t->window, dim);
    }
    return CHM_OK;
}

static chm_tensor *mixed(const struct titans *t, chm_graph *g, chm_tensor *x, chm_param *w, int which) {
    x = chm_linear(g, x, w);
    if (t->short_conv) x = chm_short_conv(g, x, t->conv[which], t->conv_state[which]);
    return chm_silu(g, x);
}

static chm_tensor *gate(chm_graph *g, chm_tensor *x, chm_param *w, chm_param *bias, const char *name) {
    return chm_tap(g, name, chm_sigmoid(g, chm_add(g, chm_linear(g, x, w), chm_param_tensor(g, bias))));
}

/* [1, n] of one head, for all of them */
static chm_tensor *each_head(chm_graph *g, chm_tensor *x, int64_t heads) {
    if (heads == 1) return x;
    chm_tensor *half = each_head(g, x, heads / 2), *const parts[] = {half, half, x};
    return chm_concat(g, parts, 2 + (int)(heads % 2));
}

static chm_tensor *titans_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct titans *t = self;
    const int64_t heads = t->heads, dim = t->dim;
    chm_tensor *q = chm_l2norm(g, mixed(t, g, x, t->q, 0), dim);
    chm_tensor *k = chm_l2norm(g, mixed(t, g, x, t->k, 1), dim);
    chm_tensor *v = mixed(t, g, x, t->v, 2);
    chm_tensor *dt = chm_softplus(g, chm_add(g, chm_linear(g, x, t->gamma), chm_param_tensor(g, t->dt_bias)));
    chm_tensor *A = chm_exp(g, chm_param_tensor(g, t->A_log));
    chm_tensor *log_gamma = chm_tap(g, "titans.log_gamma", chm_mul(g, dt, chm_affine(g, A, -1, 0)));
    chm_tensor *context = NULL;
    if (t->slots) {
        chm_param *const params[] = {t->p_k, t->p_v, t->tau};
        context = chm_recur(g, &persistent, t, &q, params, NULL, heads, dim);
    }
    if (t->core == CORE_WINDOW) {
        chm_tensor *sharp = chm_mul(g, q, chm_param_tensor(g, t->tau)), *const entry[] = {k, v};
        chm_tensor *seen = chm_look(g, &window, t, &sharp, entry, t->rings, heads, dim);
        context = t->slots ? chm_add(g, context, seen) : seen;
    } else if (!t->slots)
        context = chm_affine(g, q, 0, 0);
    chm_tensor *const in[INPUTS] = {q,
                                    k,
                                    v,
                                    log_gamma,
                                    gate(g, x, t->eta, t->eta_bias, "titans.eta"),
                                    gate(g, x, t->alpha, t->alpha_bias, "titans.alpha"),
                                    gate(g, x, t->theta, t->theta_bias, "titans.theta"),
                                    context};
    chm_param *const params[] = {t->maps, t->w1, t->w2};
    chm_tensor *all = chm_recur(g, &memory, t, in, params, t->memory, heads, t->part[0].group);
    chm_tensor *y = chm_apply(g, &part_of, &t->part[PART_Y], &all, heads * dim);
    chm_tensor *m = chm_apply(g, &part_of, &t->part[PART_MEMORY], &all, heads * dim);
    chm_tap(g, "titans.surprise", chm_apply(g, &part_of, &t->part[PART_SURPRISE], &all, heads));
    y = chm_mul(g, y, each_head(g, chm_param_tensor(g, t->y_norm), heads));
    m = chm_add(g, chm_rmsnorm(g, m, t->w_m, dim), each_head(g, chm_param_tensor(g, t->b_m), heads));
    y = chm_mul(g, y, chm_sigmoid(g, m));
    if (t->norm_before_linear) y = chm_rmsnorm(g, y, t->o_norm, 0);
    return chm_linear(g, y, t->o);
}

static const struct chm_option options[] = {
    {"memory_type", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "MAC", 0, 0, "MAC", "memory as context", 0, 0},
    {"memory_depth", CHM_OPT_INT, CHM_OPTION_CHECKED, "2", 2, 2, NULL, "matrices of the memory", 0, 0},
    {"surprise_metric", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "gradient_with_momentum", 0, 0, "gradient_with_momentum",
     "what is learnt: the memory's gradient on the token's key and value, gathered with momentum", 0, 0},
    {"surprise_formula", CHM_OPT_STRING, CHM_OPTION_CHECKED,
     ""
     "",
     0, 0, NULL, "the momentum spelled out; documentation only", 0, 0},
    {"forgetting_formula", CHM_OPT_STRING, CHM_OPTION_CHECKED,
     ""
     "",
     0, 0, NULL, "the update spelled out; documentation only. Here it holds for the deviation from the trained weights",
     0, 0},
    {"persistent_memory_slots", CHM_OPT_INT, offsetof(struct titans, slots), "64", 0, 4096, NULL,
     "learned keys and values that every token reads by softmax", 0, 0},
    {"local_window_size", CHM_OPT_INT, offsetof(struct titans, window), "1024", 1, 1048576, NULL,
     "tokens of a segment, whose edge clears the core, or of the window with core = window_softmax; a multiple of "
     "chunk",
     0, 0},
    {"core", CHM_OPT_ENUM, offsetof(struct titans, core), "decay", 0, 0, "decay|window_softmax",
     "how a token reads its segment: a decayed outer product of keys and values; or, as published, softmax, here over "
     "the last local_window_size tokens (what the memory says is then the decayed part)",
     0, 0},
    {"chunk", CHM_OPT_INT, offsetof(struct titans, chunk), "16", 1, 64, NULL,
     "tokens whose gradients are taken at the same weights; 1: every token at its own (titans-pytorch: its chunk_size; "
     "16 is that of arXiv:2407.04620)",
     0, 0},
    {"update", CHM_OPT_ENUM, offsetof(struct titans, update), "after", 0, 0, "after|before",
     "the memory learns the context's answer (arXiv:2501.00663, section 4.1), or the token before the context is read "
     "(as titans-pytorch does)",
     0, 0},
    {"retrieve", CHM_OPT_ENUM, offsetof(struct titans, retrieve), "anchor", 0, 0, "anchor|current|none",
     "what speaks to the context: the memory of the chunk's beginning; after this token (needs update = before, as in "
     "titans-pytorch); nothing, so that the memory is a gate only",
     0, 0},
    {"segment_carry", CHM_OPT_FLOAT, offsetof(struct titans, segment_carry), "0", 0, 1, NULL,
     "what is left of the core at a segment's edge; 0: the segments of the paper, 1: no edge", 0, 0},
    {"short_conv", CHM_OPT_INT, offsetof(struct titans, short_conv), "4", 0, 8, NULL,
     "taps of the causal convolution on q, k and v; 0: none", 0, 0},
};

static const struct chm_layer_ops ops = {.size = sizeof ops, .declare = titans_declare, .forward = titans_forward};

CHM_PLUGIN(titans, .kind = CHM_KIND_LAYER, .section = "titans", .aliases = "TM titans_mac", .version = "1.0.0",
           .licence = "Apache-2.0", .summary = "Titans, memory as context: a memory that learns (arXiv:2501.00663)",
           CHM_OPTIONS(options), .instance_size = sizeof(struct titans), .ops = &ops);
