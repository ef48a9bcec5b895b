/*
 * xlstm: the two cells of xLSTM (arXiv:2405.04517), in the block of xLSTM-7B (arXiv:2503.13427).
 *
 * mLSTM: a matrix memory per head, C_t = f_t C_{t-1} + i_t k_t^T v_t and n_t = f_t n_{t-1} + i_t k_t with an
 * exponential input gate, read by h_t = s q_t C_t / max(|s q_t n_t|, 1), s = 1 / sqrt(d). Both are kept times e^-m,
 * where m is the largest logarithm of a weight inside, so nothing overflows. sLSTM: a scalar memory per unit with the
 * same gates, which also see the output of the row before through a matrix of each head; rows cannot be taken together,
 * so it trains row by row.
 */
#include <chimera/plugin.h>
#include <math.h>
#include <string.h>

enum { MLSTM, SLSTM };
enum { FORGET_SIGMOID, FORGET_EXP };
enum { ROWS = 64, BLOCK = 16 }; /* most rows of a chunk; rows of a block of the triangular products */

struct xlstm {
    /* options */
    int32_t variant, forget;
    double gate_cap, igate_bias;
    int64_t short_conv;
    bool exponential_gating, covariance_update;
    /* from the host */
    int64_t heads, dim;
    bool norm_before_linear;
    chm_param *q, *k, *v, *og, *o, *i, *f, *i_bias, *f_bias, *head_norm, *o_norm;
    chm_param *z, *r, *z_bias, *og_bias, *conv, *conv_norm; /* sLSTM */
    int state[3], conv_state;
};

/* Added to the denominator, as in the public kernels. */
static const float epsilon = 1e-6f;

static float absolute(float x) { return x < 0 ? -x : x; }

static float *take(float **scratch, int64_t n) {
    float *p = *scratch;
    *scratch += (n + 15) & ~(int64_t)15;
    return p;
}

static int64_t padded(int64_t n) { return (n + 15) & ~(int64_t)15; }

/* Sixteen sums, so that the order is fixed and a compiler may still use vectors. */
static float dot(const float *a, const float *b, int64_t n) {
    float s[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++) s[l] += a[i + l] * b[i + l];
    for (int l = 0; i + l < n; l++) s[l] += a[i + l] * b[i + l];
    for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; l++) s[l] += s[l + half];
    return s[0];
}

static float total(const float *a, int64_t n) {
    float s[16] = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int l = 0; l < 16; l++) s[l] += a[i + l];
    for (int l = 0; i + l < n; l++) s[l] += a[i + l];
    for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; l++) s[l] += s[l + half];
    return s[0];
}

static int64_t chunk_rows(const void *layer) {
    (void)layer;
    return ROWS;
}

/* ---- mLSTM: inputs q, k, v, log of the input gate, log of the forget gate; states C [d][d], n [d], m [1] ---- */

enum { Q, K, V, INPUT, FORGET };

static float query_scale(const chm_head *h) { return 1.0f / sqrtf((float)h->in_width[Q]); }

/* max(|den|, e^-m) + epsilon */
static float denominator(float den, float floor) {
    const float a = absolute(den);
    return (a > floor ? a : floor) + epsilon;
}

static void divide(float *out, int64_t n, float by) {
    for (int64_t j = 0; j < n; j++) out[j] = out[j] / by;
}

static void mlstm_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    const int64_t d = h->in_width[K];
    float *n = state[1], *m = state[2], *key = h->scratch;
    const float input = in[INPUT][0], forget = in[FORGET][0], kept = forget + *m;
    const float m_new = kept > input ? kept : input;
    /* (m - m_new) is exact where the memory is kept, so what rounding took from m is given back to C and n */
    const float logs[3] = {(*m - m_new) + forget, input - m_new, -m_new};
    float weight[3];
    h->kernels->unary(CHM_EXP, logs, 3, weight);
    *m = m_new;
    for (int64_t i = 0; i < d; i++) {
        key[i] = weight[1] * in[K][i];
        n[i] = n[i] * weight[0] + key[i];
    }
    h->kernels->outer_step(state[0], d, h->in_width[V], in[Q], key, in[V], weight[0], query_scale(h), out);
    if (out) divide(out, h->out_width, denominator(query_scale(h) * dot(in[Q], n, d), weight[2]));
}

static void mlstm_read(const chm_head *h, void *const *state, const float *const *in, float *out) {
    const float *n = state[1], minus = -*(const float *)state[2];
    float floor;
    h->kernels->unary(CHM_EXP, &minus, 1, &floor);
    h->kernels->delta_read(state[0], h->in_width[K], h->in_width[V], in[Q], query_scale(h), out);
    divide(out, h->out_width, denominator(query_scale(h) * dot(in[Q], n, h->in_width[K]), floor));
}

/*
 * The chunk form. With b_i the sum of log f up to row i, u_i = log i_i - b_i and mu_i = max(m_0, u_1 .. u_i), the
 * stabiliser is m_i = b_i + mu_i and row j weighs e^(u_j - mu_i) <= 1 in row i, the state before it e^(m_0 - mu_i):
 *   A_ij = s (q_i . k_j) e^(u_j - mu_i), j <= i;   num = s e^(m_0 - mu) QC_0 + A V;   den likewise with n_0 and ones
 *   C' = e^(m_0 - mu') C_0 + sum_j e^(u_j - mu') k_j^T v_j,   mu' = m' - b_last, m' as it is stored
 * b, u and mu are f64; only differences are rounded to f32.
 */
struct mlstm_gates {
    double u[ROWS], mu[ROWS];
    int64_t from[ROWS]; /* the row that mu_i is of; -1: m_0 */
    float before[ROWS], floor[ROWS], write[ROWS], kept, m;
};

static void mlstm_gates(const chm_head *h, float m0, const float *const *in, struct mlstm_gates *g) {
    double b = 0, mu = (double)m0;
    int64_t from = -1;
    for (int64_t i = 0; i < h->rows; i++) {
        b += (double)in[FORGET][i * h->in_stride[FORGET]];
        g->u[i] = (double)in[INPUT][i * h->in_stride[INPUT]] - b;
        if (g->u[i] > mu) {
            mu = g->u[i];
            from = i;
        }
        g->mu[i] = mu;
        g->from[i] = from;
        g->before[i] = (float)((double)m0 - mu);
        g->floor[i] = (float)-(b + mu);
    }
    g->m = (float)(b + mu);
    mu = (double)g->m - b;
    for (int64_t i = 0; i < h->rows; i++) g->write[i] = (float)(g->u[i] - mu);
    g->kept = (float)((double)m0 - mu);
    h->kernels->unary(CHM_EXP, g->before, h->rows, g->before);
    h->kernels->unary(CHM_EXP, g->floor, h->rows, g->floor);
    h->kernels->unary(CHM_EXP, g->write, h->rows, g->write);
    h->kernels->unary(CHM_EXP, &g->kept, 1, &g->kept);
}

/* D_ij = e^(u_j - mu_i), j <= i */
static void mlstm_weights(const chm_head *h, const struct mlstm_gates *g, float *D) {
    for (int64_t i = 0; i < h->rows; i++) {
        float *row = D + i * ROWS;
        for (int64_t j = 0; j <= i; j++) row[j] = (float)(g->u[j] - g->mu[i]);
        h->kernels->unary(CHM_EXP, row, i + 1, row);
    }
}

static void pack(int64_t rows, int64_t n, const float *from, int64_t stride, float *to, int64_t ld) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * ld, from + i * stride, (size_t)n * sizeof *to);
}

/* to[n][m] = from[m][n]^T */
static void transpose(int64_t m, int64_t n, const float *from, int64_t ld, float *to, int64_t ldt) {
    for (int64_t i0 = 0; i0 < m; i0 += 8)
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = i0; i < m && i < i0 + 8; i++) to[j * ldt + i] = from[i * ld + j];
}

static void scale_rows(int64_t rows, int64_t n, float c, const float *factor, const float *from, float *to,
                       int64_t ld) {
    for (int64_t i = 0; i < rows; i++) {
        const float f = c * factor[i];
        for (int64_t j = 0; j < n; j++) to[i * ld + j] = f * from[i * ld + j];
    }
}

/* zeros of row i above the diagonal, as far as its block */
static void clear_above(int64_t i, int64_t rows, float *row) {
    for (int64_t j = i + 1; j < rows && j % BLOCK; j++) row[j] = 0;
}

/* the lower triangle of C = A B in blocks, A [rows][k], B [k][rows] */
static void product_lower(const chm_head *h, int64_t k, const float *a, int64_t lda, const float *b, float *c) {
    for (int64_t i = 0; i < h->rows; i += BLOCK) {
        const int64_t m = h->rows - i < BLOCK ? h->rows - i : BLOCK;
        h->kernels->block_matmul(m, i + m, k, a + i * lda, lda, 1, b, ROWS, c + i * ROWS, ROWS, 0);
    }
}

/* C += T B, T lower triangular with zeros above the diagonal in its blocks, B [rows][n] */
static void lower_times(const chm_head *h, int64_t n, const float *t, const float *b, float *c, int64_t ld) {
    for (int64_t i = 0; i < h->rows; i += BLOCK) {
        const int64_t m = h->rows - i < BLOCK ? h->rows - i : BLOCK;
        h->kernels->block_matmul(m, n, i + m, t + i * ROWS, ROWS, 1, b, ld, c + i * ld, ld, 1);
    }
}

/* C += T^T B */
static void upper_times(const chm_head *h, int64_t n, const float *t, const float *b, float *c, int64_t ld) {
    for (int64_t i = 0; i < h->rows; i += BLOCK) {
        const int64_t m = h->rows - i < BLOCK ? h->rows - i : BLOCK;
        h->kernels->block_matmul(m, n, h->rows - i, t + i * ROWS + i, 1, ROWS, b + i * ld, ld, c + i * ld, ld, 1);
    }
}

/* A = s (Q K^T) D in place of S, and den; Q packed */
static void mlstm_scores(const chm_head *h, const struct mlstm_gates *g, const float *D, const float *q, int64_t ld,
                         const float *KT, const float *n0, float *A, float *den) {
    const int64_t d = h->in_width[K];
    const float s = query_scale(h);
    product_lower(h, d, q, ld, KT, A);
    for (int64_t i = 0; i < h->rows; i++) {
        float *a = A + i * ROWS;
        const float *weight = D + i * ROWS;
        for (int64_t j = 0; j <= i; j++) a[j] = s * (a[j] * weight[j]);
        clear_above(i, h->rows, a);
        den[i] = s * g->before[i] * dot(q + i * ld, n0, d) + total(a, i + 1);
    }
}

static size_t mlstm_scratch(const chm_head *h) {
    const int64_t d = padded(h->in_width[K]);
    if (h->rows == 1) return (size_t)d * sizeof(float); /* step; a chunk of one row never asks for less than 64 */
    return (size_t)(3 * ROWS * ROWS + 9 * ROWS * d + 2 * d * ROWS + 2 * d * d + 16 * ROWS) * sizeof(float);
}

/* Outputs of the questions q, and the state moved on where `advance` is set. */
static void mlstm_rows(const chm_head *h, void *const *state, const float *const *in, const float *q, float *out,
                       bool advance) {
    const int64_t rows = h->rows, d = h->in_width[K], ld = padded(d);
    float *scratch = h->scratch, *C = state[0], *n = state[1], *m = state[2];
    float *D = take(&scratch, ROWS * ROWS), *A = take(&scratch, ROWS * ROWS), *KT = take(&scratch, d * ROWS);
    float *P = take(&scratch, ROWS * ld), *key = take(&scratch, ROWS * ld), *value = take(&scratch, ROWS * ld);
    float *O = take(&scratch, ROWS * ld), den[ROWS];
    struct mlstm_gates g;
    mlstm_gates(h, *m, in, &g);
    mlstm_weights(h, &g, D);
    pack(rows, d, q, h->in_stride[Q], P, ld);
    pack(rows, d, in[K], h->in_stride[K], key, ld);
    pack(rows, d, in[V], h->in_stride[V], value, ld);
    transpose(rows, d, key, ld, KT, ROWS);
    mlstm_scores(h, &g, D, P, ld, KT, n, A, den);
    h->kernels->block_matmul(rows, d, d, P, ld, 1, C, d, O, ld, 0);
    scale_rows(rows, d, query_scale(h), g.before, O, O, ld);
    lower_times(h, d, A, value, O, ld);
    for (int64_t i = 0; i < rows; i++) {
        const float part = 1 / denominator(den[i], g.floor[i]);
        for (int64_t j = 0; j < d; j++) out[i * h->out_stride + j] = part * O[i * ld + j];
    }
    if (!advance) return;
    scale_rows(rows, d, 1, g.write, key, key, ld);
    for (int64_t i = 0; i < d * d; i++) C[i] *= g.kept;
    h->kernels->block_matmul(d, d, rows, key, 1, ld, value, ld, C, d, 1);
    for (int64_t j = 0; j < d; j++) n[j] *= g.kept;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < d; j++) n[j] += key[i * ld + j];
    *m = g.m;
}

static void mlstm_chunk(const chm_head *h, void *const *state, const float *const *in, float *out) {
    mlstm_rows(h, state, in, in[Q], out, true);
}

static void mlstm_chunk_read(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                             float *out) {
    mlstm_rows(h, state, in, ask[Q], out, false);
}

/*
 * The gradient, exact also in m: what leaves a segment is C, n and m, and their gradients may be anything. N is the
 * denominator with epsilon, x = dh . h, and each question set adds
 *   dnum = dh / N;   dden = -x sign(den) / N where |den| > e^-m, else 0;   P = dnum V^T;   T = dnum C_0^T
 *   G = s D (P + dden);   dQ = G K + s e^(m_0 - mu) (T + dden n_0);   dK += G^T Q;   dV += A^T dnum
 *   dC_0 += (s e^(m_0 - mu) Q)^T dnum;   dn_0 likewise with dden
 *   dmu_i -= x epsilon / N;   db_i += x e^-m / N where the floor e^-m is the denominator
 * (x comes from P and T, so num is not computed again), and the state behind the rows
 *   dK += w (V dC'^T + dn');   dV += (w K) dC';   dC_0 += e^(m_0 - mu') dC';   dmu' = dm' - <C', dC'> - <n', dn'>
 * Then du_j = k_j . dk_j, and what mu is owed goes to the row it is of, or to m_0. Everything else of m_0 is
 * <C_0, dC_0> + <n_0, dn_0>. b goes down in every u: dlog i = du, dlog f_t = sum over i >= t of db_i - du_i, with dm'
 * to the last b.
 */
struct mlstm_back {
    const chm_head *h;
    struct mlstm_gates g;
    int64_t d, ld;
    const float *C, *n;
    float *D, *A, *P, *KT, *VT, *CT, *key, *value, *ask, *dnum, *T, *move, *DK, *DV;
    double dmu[ROWS], db[ROWS];
};

static void mlstm_back_begin(struct mlstm_back *b, const chm_head *h, void *const *state, const float *const *in) {
    const int64_t d = h->in_width[K], ld = padded(d);
    float *scratch = h->scratch;
    b->h = h;
    b->d = d;
    b->ld = ld;
    b->C = state[0];
    b->n = state[1];
    float **const square[] = {&b->D, &b->A, &b->P},
                  **const flat[] = {&b->key, &b->value, &b->ask, &b->dnum, &b->T, &b->move, &b->DK, &b->DV};
    for (size_t i = 0; i < sizeof square / sizeof *square; i++) *square[i] = take(&scratch, ROWS * ROWS);
    for (size_t i = 0; i < sizeof flat / sizeof *flat; i++) *flat[i] = take(&scratch, ROWS * ld);
    b->KT = take(&scratch, d * ROWS);
    b->VT = take(&scratch, d * ROWS);
    b->CT = take(&scratch, d * ld);
    mlstm_gates(h, *(const float *)state[2], in, &b->g);
    mlstm_weights(h, &b->g, b->D);
    pack(h->rows, d, in[K], h->in_stride[K], b->key, ld);
    pack(h->rows, d, in[V], h->in_stride[V], b->value, ld);
    transpose(h->rows, d, b->key, ld, b->KT, ROWS);
    transpose(h->rows, d, b->value, ld, b->VT, ROWS);
    for (int64_t i = 0; i < ROWS; i++) b->dmu[i] = b->db[i] = 0;
}

static void add_rows(int64_t rows, int64_t n, const float *from, int64_t ld, float *to, int64_t stride) {
    for (int64_t i = 0; to && i < rows; i++)
        for (int64_t j = 0; j < n; j++) to[i * stride + j] += from[i * ld + j];
}

/* One set of questions; dC, dn NULL: only dq is wanted. b->CT holds C_0^T. */
static void mlstm_back_ask(struct mlstm_back *b, const float *q, const float *dout, float *dq, float *dC, float *dn) {
    const chm_head *h = b->h;
    const int64_t rows = h->rows, d = b->d, ld = b->ld;
    const float s = query_scale(h);
    float den[ROWS], dden[ROWS];
    pack(rows, d, q, h->in_stride[Q], b->ask, ld);
    mlstm_scores(h, &b->g, b->D, b->ask, ld, b->KT, b->n, b->A, den);
    for (int64_t i = 0; i < rows; i++) {
        const float part = 1 / denominator(den[i], b->g.floor[i]);
        for (int64_t j = 0; j < d; j++) b->dnum[i * ld + j] = part * dout[i * h->out_stride + j];
    }
    product_lower(h, d, b->dnum, ld, b->VT, b->P);
    h->kernels->block_matmul(rows, d, d, b->dnum, ld, 1, b->CT, ld, b->T, ld, 0);
    for (int64_t i = 0; i < rows; i++) {
        const float floor = b->g.floor[i], by = denominator(den[i], floor);
        const bool active = absolute(den[i]) > floor;
        float *p = b->P + i * ROWS;
        const float *weight = b->D + i * ROWS;
        const float before = s * b->g.before[i];
        const float x = before * dot(b->ask + i * ld, b->T + i * ld, d) + dot(b->A + i * ROWS, p, i + 1);
        dden[i] = active ? (den[i] < 0 ? x : -x) / by : 0;
        b->dmu[i] -= (double)x * (double)(epsilon / by);
        if (!active) b->db[i] += (double)x * (double)(floor / by);
        for (int64_t j = 0; j <= i; j++) p[j] = s * weight[j] * (p[j] + dden[i]);
        clear_above(i, rows, p);
        for (int64_t j = 0; j < d; j++) b->T[i * ld + j] = before * (b->T[i * ld + j] + dden[i] * b->n[j]);
    }
    if (dq) {
        lower_times(h, d, b->P, b->key, b->T, ld);
        add_rows(rows, d, b->T, ld, dq, h->in_stride[Q]);
    }
    if (!dC) return;
    upper_times(h, d, b->P, b->ask, b->DK, ld);
    upper_times(h, d, b->A, b->dnum, b->DV, ld);
    scale_rows(rows, d, s, b->g.before, b->ask, b->move, ld);
    h->kernels->block_matmul(d, d, rows, b->move, 1, ld, b->dnum, ld, dC, d, 1);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < d; j++) dn[j] += dden[i] * b->move[i * ld + j];
}

static void mlstm_read_backward(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                                const float *dout, float *const *dask) {
    struct mlstm_back b;
    mlstm_back_begin(&b, h, state, in);
    transpose(b.d, b.d, b.C, b.d, b.CT, b.ld);
    mlstm_back_ask(&b, ask[Q], dout, dask[Q], NULL, NULL);
}

static double inner(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i += ROWS) sum += (double)dot(a + i, b + i, n - i < ROWS ? n - i : ROWS);
    return sum;
}

static void mlstm_chunk_backward(const chm_head *h, void *const *state, const float *const *in,
                                 const chm_chunk_grad *grad) {
    const int64_t rows = h->rows;
    float *dC = grad->dstate[0], *dn = grad->dstate[1], *dm = grad->dstate[2];
    struct mlstm_back b;
    mlstm_back_begin(&b, h, state, in);
    const int64_t d = b.d, ld = b.ld;

    /* through the state behind the rows */
    transpose(d, d, dC, d, b.CT, ld);
    h->kernels->block_matmul(rows, d, d, b.value, ld, 1, b.CT, ld, b.DK, ld, 0);
    scale_rows(rows, d, 1, b.g.write, b.key, b.move, ld);
    h->kernels->block_matmul(rows, d, d, b.move, ld, 1, dC, d, b.DV, ld, 0);
    double owed = (double)*dm - (double)b.g.kept * (inner(b.C, dC, d * d) + inner(b.n, dn, d));
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < d; j++) b.DK[i * ld + j] = b.g.write[i] * (b.DK[i * ld + j] + dn[j]);
        owed -= (double)dot(b.key + i * ld, b.DK + i * ld, d);
    }
    b.dmu[rows - 1] = owed;
    b.db[rows - 1] = (double)*dm;
    for (int64_t i = 0; i < d * d; i++) dC[i] *= b.g.kept;
    for (int64_t i = 0; i < d; i++) dn[i] *= b.g.kept;

    /* through the outputs; later passes had their own questions' gradients in mlstm_read_backward */
    transpose(d, d, b.C, d, b.CT, ld);
    mlstm_back_ask(&b, in[Q], grad->dout, grad->din[Q], dC, dn);
    for (uint32_t p = 0; p < grad->n_reads; p++)
        mlstm_back_ask(&b, grad->read_in[p][Q], grad->read_dout[p], NULL, dC, dn);

    /* through the gates */
    double du[ROWS], dm0 = inner(b.C, dC, d * d) + inner(b.n, dn, d), sum = 0;
    for (int64_t i = 0; i < rows; i++) du[i] = (double)dot(b.key + i * ld, b.DK + i * ld, d);
    for (int64_t i = 0; i < rows; i++) *(b.g.from[i] < 0 ? &dm0 : &du[b.g.from[i]]) += b.dmu[i];
    for (int64_t i = rows - 1; i >= 0; i--) {
        sum += b.db[i] - du[i];
        if (grad->din[INPUT]) grad->din[INPUT][i * h->in_stride[INPUT]] += (float)du[i];
        if (grad->din[FORGET]) grad->din[FORGET][i * h->in_stride[FORGET]] += (float)sum;
    }
    *dm = (float)dm0;
    add_rows(rows, d, b.DK, ld, grad->din[K], h->in_stride[K]);
    add_rows(rows, d, b.DV, ld, grad->din[V], h->in_stride[V]);
}

static const chm_recurrence mlstm = {
    .size = sizeof(chm_recurrence),
    .n_inputs = 5,
    .n_states = 3,
    .read_inputs = 1u << Q,
    .name = "mlstm",
    .step = mlstm_step,
    .read = mlstm_read,
    .chunk_rows = chunk_rows,
    .scratch_bytes = mlstm_scratch,
    .chunk = mlstm_chunk,
    .chunk_read = mlstm_chunk_read,
    .chunk_read_backward = mlstm_read_backward,
    .chunk_backward = mlstm_chunk_backward,
};

/* ---- sLSTM: inputs i, f, z, o before their functions; parameter R [4][d][d]; one state of five rows ---- */

enum { I, F, Z, O, GATES };
/* PAST is R_o h of the row before: a later question needs it, and h has been overwritten by then */
enum { HIDDEN, CELL, NORM, MAX, PAST, CELLS };
/* what a row leaves for its gradient, each d floats; WINS: 1 where m is that of the input gate */
enum { T_HIDDEN, T_CELL, T_NORM, T_CELL_NEW, T_NORM_NEW, T_I, T_F, T_Z, T_O, T_SLOPE, T_WINS, T_PAST, TRACE };

/* m' = max(log f + m, i); c = f c + i z; n = f n + i; h = o c / n. Where n is 0 nothing has been written: m' is i.
 * work: 8 d floats */
static void slstm_row(const chm_head *h, float *s, const float *const *in, float *work, float *trace) {
    const struct xlstm *l = h->layer;
    const struct chm_kernels *kernels = h->kernels;
    const int64_t d = h->in_width[I];
    float *raw = work, *log_f = work + GATES * d, *m = s + MAX * d;
    kernels->f32_matmul(h->param[0], 0, GATES * d, d, s + HIDDEN * d, 1, raw, GATES * d);
    memcpy(s + PAST * d, raw + O * d, (size_t)d * sizeof *s);
    for (int g = 0; g < GATES; g++)
        for (int64_t j = 0; j < d; j++) raw[g * d + j] = in[g][j] + raw[g * d + j];
    if (trace) {
        memcpy(trace + T_HIDDEN * d, s + HIDDEN * d, (size_t)d * sizeof *s);
        memcpy(trace + T_CELL * d, s + CELL * d, (size_t)d * sizeof *s);
        memcpy(trace + T_NORM * d, s + NORM * d, (size_t)d * sizeof *s);
        memcpy(trace + T_PAST * d, s + PAST * d, (size_t)d * sizeof *s);
        for (int64_t j = 0; j < d; j++) trace[T_SLOPE * d + j] = -raw[F * d + j];
        kernels->unary(CHM_SIGMOID, trace + T_SLOPE * d, d, trace + T_SLOPE * d);
        for (int64_t j = 0; j < d && l->forget == FORGET_EXP; j++) trace[T_SLOPE * d + j] = 1;
    }
    if (l->forget == FORGET_SIGMOID)
        kernels->unary(CHM_LOG_SIGMOID, raw + F * d, d, log_f);
    else
        memcpy(log_f, raw + F * d, (size_t)d * sizeof *log_f);
    for (int64_t j = 0; j < d; j++) {
        const bool empty = s[NORM * d + j] == 0;
        const float i = raw[I * d + j], kept = log_f[j] + m[j];
        const bool wins = empty || !(kept > i);
        const float m_new = wins ? i : kept;
        raw[F * d + j] = empty ? -200 : (m[j] - m_new) + log_f[j]; /* e^-200 is 0 */
        raw[I * d + j] = i - m_new;
        m[j] = m_new;
        if (trace) trace[T_WINS * d + j] = wins ? 1 : 0;
    }
    kernels->unary(CHM_EXP, raw, 2 * d, raw); /* I and F lie together */
    kernels->unary(CHM_TANH, raw + Z * d, d, raw + Z * d);
    kernels->unary(CHM_SIGMOID, raw + O * d, d, raw + O * d);
    for (int64_t j = 0; j < d; j++) {
        const float i = raw[I * d + j], f = raw[F * d + j];
        float *c = &s[CELL * d + j], *n = &s[NORM * d + j];
        *c = f * *c + i * raw[Z * d + j];
        *n = f * *n + i;
        s[HIDDEN * d + j] = raw[O * d + j] * (*c / *n);
    }
    if (!trace) return;
    memcpy(trace + T_CELL_NEW * d, s + CELL * d, (size_t)d * sizeof *s);
    memcpy(trace + T_NORM_NEW * d, s + NORM * d, (size_t)d * sizeof *s);
    memcpy(trace + T_I * d, raw, (size_t)(GATES * d) * sizeof *s); /* T_I, T_F, T_Z, T_O */
}

static void slstm_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    float *s = state[0];
    slstm_row(h, s, in, h->scratch, NULL);
    if (out) memcpy(out, s, (size_t)h->out_width * sizeof *out);
}

/* out = sigmoid(o + past) c / n */
static void slstm_ask(const chm_head *h, const float *past, const float *c, const float *n, const float *o,
                      float *out) {
    for (int64_t j = 0; j < h->out_width; j++) out[j] = o[j] + past[j];
    h->kernels->unary(CHM_SIGMOID, out, h->out_width, out);
    for (int64_t j = 0; j < h->out_width; j++) out[j] = out[j] * (c[j] / n[j]);
}

static void slstm_read(const chm_head *h, void *const *state, const float *const *in, float *out) {
    const float *s = state[0];
    const int64_t d = h->in_width[I];
    slstm_ask(h, s + PAST * d, s + CELL * d, s + NORM * d, in[O], out);
}

static size_t slstm_scratch(const chm_head *h) {
    const int64_t d = padded(h->in_width[I]);
    if (h->rows == 1) return (size_t)(2 * GATES * d) * sizeof(float);
    return (size_t)(2 * GATES * d + 16 * d + ROWS * d * (TRACE + GATES + 1)) * sizeof(float);
}

/* All rows of a chunk from a copy of its first state; returns the traces. */
static float *slstm_walk(const chm_head *h, void *const *state, const float *const *in, float **scratch) {
    const int64_t d = h->in_width[I];
    float *work = take(scratch, 2 * GATES * d), *s = take(scratch, CELLS * d), *trace = take(scratch, ROWS * TRACE * d);
    memcpy(s, state[0], (size_t)(CELLS * d) * sizeof *s);
    for (int64_t t = 0; t < h->rows; t++) {
        const float *row[GATES];
        for (int g = 0; g < GATES; g++) row[g] = in[g] + t * h->in_stride[g];
        slstm_row(h, s, row, work, trace + t * TRACE * d);
    }
    return trace;
}

static void slstm_chunk(const chm_head *h, void *const *state, const float *const *in, float *out) {
    float *s = state[0];
    for (int64_t t = 0; t < h->rows; t++) {
        const float *row[GATES];
        for (int g = 0; g < GATES; g++) row[g] = in[g] + t * h->in_stride[g];
        slstm_row(h, s, row, h->scratch, NULL);
        memcpy(out + t * h->out_stride, s, (size_t)h->out_width * sizeof *out);
    }
}

static void slstm_chunk_read(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                             float *out) {
    const int64_t d = h->in_width[I];
    float *scratch = h->scratch;
    const float *trace = slstm_walk(h, state, in, &scratch);
    for (int64_t t = 0; t < h->rows; t++, trace += TRACE * d)
        slstm_ask(h, trace + T_PAST * d, trace + T_CELL_NEW * d, trace + T_NORM_NEW * d, ask[O] + t * h->in_stride[O],
                  out + t * h->out_stride);
}

/* The gradient of a question asked after the row: its own in dask, and what it owes to past, c and n. */
static void slstm_ask_backward(const chm_head *h, const float *trace, const float *o, const float *dout, float *gate,
                               float *dask, float *dpast, float *dc, float *dn) {
    const int64_t d = h->in_width[I];
    const float *c = trace + T_CELL_NEW * d, *n = trace + T_NORM_NEW * d;
    for (int64_t j = 0; j < d; j++) gate[j] = o[j] + trace[T_PAST * d + j];
    h->kernels->unary(CHM_SIGMOID, gate, d, gate);
    for (int64_t j = 0; j < d; j++) {
        const float slope = dout[j] * (c[j] / n[j]) * (gate[j] * (1 - gate[j]));
        if (dask) dask[j] += slope;
        if (!dpast) continue;
        dpast[j] += slope;
        dc[j] += dout[j] * gate[j] / n[j];
        dn[j] -= dout[j] * gate[j] * (c[j] / n[j]) / n[j];
    }
}

static void slstm_read_backward(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                                const float *dout, float *const *dask) {
    const int64_t d = h->in_width[I];
    float *scratch = h->scratch;
    const float *trace = slstm_walk(h, state, in, &scratch);
    float *gate = take(&scratch, d);
    for (int64_t t = 0; t < h->rows; t++, trace += TRACE * d)
        slstm_ask_backward(h, trace, ask[O] + t * h->in_stride[O], dout + t * h->out_stride, gate,
                           dask[O] ? dask[O] + t * h->in_stride[O] : NULL, NULL, NULL, NULL);
}

/* Rows from the last; ds holds the gradient of the state after the row, then before it. m is a variable like c and n:
 * c and n are stored times e^-m, so F = e^(log f + m - m') and I = e^(i - m') both owe to m'. */
static void slstm_chunk_backward(const chm_head *h, void *const *state, const float *const *in,
                                 const chm_chunk_grad *grad) {
    const int64_t d = h->in_width[I], rows = h->rows;
    float *scratch = h->scratch, *ds = grad->dstate[0];
    const float *traces = slstm_walk(h, state, in, &scratch);
    float *draws = take(&scratch, ROWS * GATES * d), *hidden = take(&scratch, ROWS * d), *gate = take(&scratch, d);
    float *dh = ds + HIDDEN * d, *dc = ds + CELL * d, *dn = ds + NORM * d, *dm = ds + MAX * d, *dpast = ds + PAST * d;
    for (int64_t t = rows - 1; t >= 0; t--) {
        const float *trace = traces + t * TRACE * d, *dout = grad->dout + t * h->out_stride;
        float *draw = draws + t * GATES * d;
        for (uint32_t p = 0; p < grad->n_reads; p++)
            slstm_ask_backward(h, trace, grad->read_in[p][O] + t * h->in_stride[O],
                               grad->read_dout[p] + t * h->out_stride, gate, NULL, dpast, dc, dn);
        for (int64_t j = 0; j < d; j++) {
            const float c = trace[T_CELL_NEW * d + j], n = trace[T_NORM_NEW * d + j], i = trace[T_I * d + j],
                        f = trace[T_F * d + j], z = trace[T_Z * d + j], o = trace[T_O * d + j], out = dout[j] + dh[j];
            const bool wins = trace[T_WINS * d + j] != 0;
            dc[j] += out * o / n;
            dn[j] -= out * o * (c / n) / n;
            const float df = f * (dc[j] * trace[T_CELL * d + j] + dn[j] * trace[T_NORM * d + j]);
            const float di = i * (dc[j] * z + dn[j]), owed = dm[j] - df - di;
            draw[I * d + j] = di + (wins ? owed : 0);
            draw[F * d + j] = (df + (wins ? 0 : owed)) * trace[T_SLOPE * d + j];
            draw[Z * d + j] = dc[j] * i * (1 - z * z);
            draw[O * d + j] = out * (c / n) * (o * (1 - o));
            dm[j] = df + (wins ? 0 : owed);
            dc[j] *= f;
            dn[j] *= f;
        }
        for (int g = 0; g < GATES; g++)
            for (int64_t j = 0; grad->din[g] && j < d; j++) grad->din[g][t * h->in_stride[g] + j] += draw[g * d + j];
        for (int64_t j = 0; j < d; j++) {
            draw[O * d + j] += dpast[j]; /* later questions see R_o h, not this pass's o */
            dpast[j] = 0;
        }
        h->kernels->block_matmul(1, d, GATES * d, draw, GATES * d, 1, h->param[0], d, dh, d, 0);
        memcpy(hidden + t * d, trace + T_HIDDEN * d, (size_t)d * sizeof *hidden);
    }
    if (grad->dparam[0])
        h->kernels->block_matmul(GATES * d, d, rows, draws, 1, GATES * d, hidden, d, grad->dparam[0], d, 1);
}

static const chm_recurrence slstm = {
    .size = sizeof(chm_recurrence),
    .n_inputs = GATES,
    .n_states = 1,
    .n_params = 1,
    .read_inputs = 1u << O,
    .name = "slstm",
    .step = slstm_step,
    .read = slstm_read,
    .chunk_rows = chunk_rows,
    .scratch_bytes = slstm_scratch,
    .chunk = slstm_chunk,
    .chunk_read = slstm_chunk_read,
    .chunk_read_backward = slstm_read_backward,
    .chunk_backward = slstm_chunk_backward,
};

/* ---- the layer ---- */

/* sigmoid(3) .. sigmoid(6), whatever the function */
static chm_init forget_bias(const struct xlstm *l) {
    return l->forget == FORGET_EXP ? chm_linspace(-0.0485873f, -0.0024757f) : chm_linspace(3, 6);
}

static int declare_mlstm(struct xlstm *l, chm_declare *d, int64_t width) {
    const int64_t inner_width = l->heads * l->dim;
    l->q = chm_declare_matrix(d, "q", CHM_ROLE_TERNARY, chm_normal(0), inner_width, width);
    l->k = chm_declare_matrix(d, "k", CHM_ROLE_TERNARY, chm_normal(0), inner_width, width);
    l->v = chm_declare_matrix(d, "v", CHM_ROLE_TERNARY, chm_normal(0), inner_width, width);
    l->og = chm_declare_matrix(d, "og", CHM_ROLE_TERNARY, chm_normal(0), inner_width, width);
    l->i = chm_declare_matrix(d, "i", CHM_ROLE_FULL, chm_constant(0), l->heads, width);
    l->f = chm_declare_matrix(d, "f", CHM_ROLE_FULL, chm_constant(0), l->heads, width);
    l->i_bias = chm_declare_vector(d, "i_bias", CHM_ROLE_NORM, chm_constant((float)l->igate_bias), l->heads);
    l->f_bias = chm_declare_vector(d, "f_bias", CHM_ROLE_NORM, forget_bias(l), l->heads);
    l->state[0] = chm_declare_state(d, "memory", CHM_F32, l->heads, 2, (int64_t[]){l->dim, l->dim});
    l->state[1] = chm_declare_state(d, "normaliser", CHM_F32, l->heads, 1, &l->dim);
    l->state[2] = chm_declare_state(d, "stabiliser", CHM_F32, l->heads, 1, (int64_t[]){1});
    return CHM_OK;
}

static int declare_slstm(struct xlstm *l, chm_declare *d, const chm_layer_info *info) {
    const int64_t inner_width = l->heads * l->dim, width = info->width, taps = l->short_conv;
    const float depth = info->layers > 1 ? (float)info->layer / (float)(info->layers - 1) : 0;
    if (taps && width % l->heads)
        return d->ops->fail(d, "xlstm.short_conv needs hidden_size to be a multiple of num_heads; 0: no convolution");
    l->i = chm_declare_matrix(d, "i", CHM_ROLE_TERNARY, chm_normal(0), inner_width, width);
    l->f = chm_declare_matrix(d, "f", CHM_ROLE_TERNARY, chm_normal(0), inner_width, width);
    l->z = chm_declare_matrix(d, "z", CHM_ROLE_TERNARY, chm_normal(0), inner_width, width);
    l->og = chm_declare_matrix(d, "og", CHM_ROLE_TERNARY, chm_normal(0), inner_width, width);
    l->i_bias = chm_declare_vector(d, "i_bias", CHM_ROLE_NORM, chm_constant(0), inner_width);
    /* an exponential begins where nothing grows */
    l->f_bias = chm_declare_vector(
        d, "f_bias", CHM_ROLE_NORM,
        l->forget == FORGET_EXP ? chm_linspace(0, -7) : chm_forget_spread(0.3f + 1.3f * depth, l->dim), inner_width);
    l->z_bias = chm_declare_vector(d, "z_bias", CHM_ROLE_NORM, chm_constant(0), inner_width);
    l->og_bias = chm_declare_vector(d, "og_bias", CHM_ROLE_NORM, chm_constant(0), inner_width);
    l->r = chm_declare_param(d, "r", CHM_ROLE_FULL, chm_constant(0), 4, (int64_t[]){l->heads, GATES, l->dim, l->dim});
    if (taps) {
        l->conv = chm_declare_matrix(d, "conv", CHM_ROLE_FULL, chm_uniform(-0.5f, 0.5f), width, taps);
        l->conv_state = chm_declare_conv_state(d, "conv", l->heads, width, taps);
        if (l->norm_before_linear)
            l->conv_norm = chm_declare_vector(d, "conv_norm", CHM_ROLE_NORM, chm_constant(1), width);
    }
    l->state[0] = chm_declare_state(d, "cell", CHM_F32, l->heads, 2, (int64_t[]){CELLS, l->dim});
    return CHM_OK;
}

static int xlstm_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    struct xlstm *l = self;
    l->variant %= 2; /* both spellings */
    if (!l->exponential_gating)
        return d->ops->fail(d,
                            "xlstm.exponential_gating is false, but the input gate of xLSTM is an exponential; for a "
                            "memory with bounded gates take the layer gd");
    if (!l->covariance_update && l->variant == MLSTM)
        return d->ops->fail(d, "xlstm.covariance_update is false, but the memory of mLSTM is a sum of outer products; "
                               "xlstm.variant sLSTM has scalar memories");
    l->heads = info->heads;
    l->dim = info->head_dim;
    l->norm_before_linear = info->norm_before_linear;
    const int64_t inner_width = l->heads * l->dim;
    const int status = l->variant == SLSTM ? declare_slstm(l, d, info) : declare_mlstm(l, d, info->width);
    if (status) return status;
    l->o = chm_declare_matrix(d, "o", CHM_ROLE_TERNARY, chm_residual(), info->width, inner_width);
    l->head_norm = chm_declare_vector(d, "head_norm", CHM_ROLE_NORM, chm_constant(1), inner_width);
    if (l->norm_before_linear) l->o_norm = chm_declare_vector(d, "o_norm", CHM_ROLE_NORM, chm_constant(1), inner_width);
    return CHM_OK;
}

/* Each head less its mean: with the RMS norm behind it, a layer norm without bias. */
static void centre(const void *self, int64_t rows, const int64_t *width, const float *const *in, int64_t out_width,
                   float *out) {
    const int64_t d = ((const struct xlstm *)self)->dim;
    (void)out_width;
    for (int64_t at = 0; at < rows * width[0]; at += d) {
        float sum = 0;
        for (int64_t j = 0; j < d; j++) sum += in[0][at + j];
        const float mean = sum / (float)d;
        for (int64_t j = 0; j < d; j++) out[at + j] = in[0][at + j] - mean;
    }
}

static void centre_backward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                            int64_t out_width, const float *out, const float *dout, float *const *din) {
    const int64_t d = ((const struct xlstm *)self)->dim;
    (void)in, (void)out_width, (void)out;
    for (int64_t at = 0; din[0] && at < rows * width[0]; at += d) {
        float sum = 0;
        for (int64_t j = 0; j < d; j++) sum += dout[at + j];
        const float mean = sum / (float)d;
        for (int64_t j = 0; j < d; j++) din[0][at + j] += dout[at + j] - mean;
    }
}

static const chm_operator centring = {
    .size = sizeof centring, .n_inputs = 1, .name = "centre", .forward = centre, .backward = centre_backward};

static chm_tensor *biased(chm_graph *g, chm_tensor *x, chm_param *w, chm_param *bias) {
    return chm_add(g, chm_linear(g, x, w), chm_param_tensor(g, bias));
}

static chm_tensor *capped(const struct xlstm *l, chm_graph *g, chm_tensor *x) {
    const float cap = (float)l->gate_cap;
    return chm_affine(g, chm_tanh(g, chm_affine(g, x, 1 / cap, 0)), cap, 0);
}

static chm_tensor *forward_mlstm(const struct xlstm *l, chm_graph *g, chm_tensor *x) {
    chm_tensor *input = capped(l, g, biased(g, x, l->i, l->i_bias));
    chm_tensor *forget = capped(l, g, biased(g, x, l->f, l->f_bias));
    if (l->forget == FORGET_SIGMOID) forget = chm_unary(g, CHM_LOG_SIGMOID, forget);
    input = chm_tap(g, "xlstm.input", input); /* both are logarithms */
    forget = chm_tap(g, "xlstm.forget", forget);
    chm_tensor *const in[] = {chm_linear(g, x, l->q), chm_linear(g, x, l->k), chm_linear(g, x, l->v), input, forget};
    return chm_recur(g, &mlstm, l, in, NULL, l->state, l->heads, l->dim);
}

static chm_tensor *forward_slstm(const struct xlstm *l, chm_graph *g, chm_tensor *x) {
    chm_tensor *mixed = x;
    if (l->short_conv) mixed = chm_silu(g, chm_short_conv(g, x, l->conv, l->conv_state));
    if (l->conv_norm) mixed = chm_rmsnorm(g, mixed, l->conv_norm, 0);
    chm_tensor *const in[] = {biased(g, mixed, l->i, l->i_bias), biased(g, mixed, l->f, l->f_bias),
                              biased(g, x, l->z, l->z_bias), biased(g, x, l->og, l->og_bias)};
    return chm_recur(g, &slstm, l, in, &l->r, l->state, l->heads, l->dim);
}

static chm_tensor *xlstm_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct xlstm *l = self;
    chm_tensor *y = l->variant == SLSTM ? forward_slstm(l, g, x) : forward_mlstm(l, g, x);
    y = chm_apply(g, &centring, l, &y, l->heads * l->dim);
    y = chm_rmsnorm(g, y, l->head_norm, l->dim);
    if (l->variant == MLSTM) y = chm_mul(g, y, chm_sigmoid(g, chm_linear(g, x, l->og)));
    if (l->norm_before_linear) y = chm_rmsnorm(g, y, l->o_norm, 0);
    return chm_linear(g, y, l->o);
}

static const struct chm_option options[] = {
    {"variant", CHM_OPT_ENUM, offsetof(struct xlstm, variant), "mLSTM", 0, 0, "mLSTM|sLSTM|mlstm|slstm",
     "matrix memory of a head, or scalar memories with recurrent gates, which train row by row", 0, 0},
    {"exponential_gating", CHM_OPT_BOOL, offsetof(struct xlstm, exponential_gating), "true", 0, 0, NULL,
     "exponential input gate; it has no other", 0, 0},
    {"memory_size_per_head", CHM_OPT_INT_LIST, CHM_OPTION_CHECKED, NULL, 1, 1024, NULL,
     "keys and values of a head's memory: head_dim, head_dim", 2, 2},
    {"covariance_update", CHM_OPT_BOOL, offsetof(struct xlstm, covariance_update), "true", 0, 0, NULL,
     "memory written by outer products of key and value; mLSTM has no other", 0, 0},
    {"normalizer_state", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "max_stabilized", 0, 0, "max_stabilized",
     "memory and normaliser are kept over e^m, m the largest logarithm of a weight in them", 0, 0},
    {"gate_cap", CHM_OPT_FLOAT, offsetof(struct xlstm, gate_cap), "15", 1, 60, NULL,
     "mLSTM: both gates pass cap tanh(x / cap) before their functions, which bounds the normaliser", 0, 0},
    {"igate_bias", CHM_OPT_FLOAT, offsetof(struct xlstm, igate_bias), "-10", -60, 60, NULL,
     "mLSTM: initial bias of the input gate", 0, 0},
    {"forget", CHM_OPT_ENUM, offsetof(struct xlstm, forget), "sigmoid", 0, 0, "sigmoid|exp",
     "function of the forget gate", 0, 0},
    {"short_conv", CHM_OPT_INT, offsetof(struct xlstm, short_conv), "4", 0, 8, NULL,
     "sLSTM: taps of the causal convolution and SiLU before the input and forget gates; 0: none", 0, 0},
};

static const struct chm_layer_ops ops = {.size = sizeof ops, .declare = xlstm_declare, .forward = xlstm_forward};

CHM_PLUGIN(xlstm, .kind = CHM_KIND_LAYER, .section = "xlstm", .aliases = "XM xlstm_m", .version = "1.0.0",
           .licence = "Apache-2.0",
           .summary = "xLSTM: matrix or scalar memories with exponential gates (arXiv:2405.04517)",
           CHM_OPTIONS(options), .instance_size = sizeof(struct xlstm), .ops = &ops);
