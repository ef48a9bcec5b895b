/*
 * delta_chunk.h: the gated delta rule over up to 64 rows at once (arXiv:2412.06464), forward, read and backward.
 *
 * The including file defines, before the #include:
 *   DELTA_NAME(x)   a prefix for the functions below
 *   DELTA_BLOCK     rows of a block of the triangular products
 *   DELTA_GEMM(m, n, k, a, row, col, b, ldb, c, ldc, add)   as portable_gemm()
 *
 * With g = cumsum(log_alpha), G_ij = e^(g_i - g_j) for i >= j and 0 above, e_i = e^(g_i), r_i = e^(g_last - g_i):
 *   L = strict_tril(beta_i (k_i . k_j) G_ij);   (I + L) U = beta (V - e KS)
 *   P = scale * tril(Q K^T . G);   O = scale * e QS + P U;   S' = e^(g_last) S + (r K)^T U
 * The sums g are kept in f64 and only differences are rounded to f32; e^(g_i) e^(-g_j) would overflow.
 */
#ifndef DELTA_NAME
#error "define DELTA_NAME, DELTA_BLOCK and DELTA_GEMM first"
#endif

enum { DELTA_ROWS = 64 };

/* Scratch, all leading dimensions padded to 8 floats. chm_delta_scratch() has room for 8 matrices rows x rows, 6 rows x
 * (dk + dv), 2 dk x dv; fewer are used, which pays for the padding. */
struct delta_gates {
    double sum[DELTA_ROWS];
    float e[DELTA_ROWS], r[DELTA_ROWS], beta[DELTA_ROWS];
    float last; /* e^(g_last) */
};

static inline int64_t delta_pad(int64_t n) { return (n + 7) & ~(int64_t)7; }

static inline float *delta_take(float **scratch, int64_t n) {
    float *p = *scratch;
    *scratch += (n + 15) & ~(int64_t)15;
    return p;
}

/* gates and G, zero above the diagonal */
static inline void delta_decay(struct delta_gates *gates, int64_t rows, const float *log_alpha, const float *beta,
                               int64_t gs, float *G) {
    double sum = 0.0;
    for (int64_t i = 0; i < rows; i++) {
        sum += (double)log_alpha[i * gs];
        gates->sum[i] = sum;
        gates->beta[i] = beta[i * gs];
    }
    for (int64_t i = 0; i < rows; i++) {
        gates->e[i] = portable_exp((float)gates->sum[i]);
        gates->r[i] = portable_exp((float)(sum - gates->sum[i]));
    }
    gates->last = portable_exp((float)sum);
    for (int64_t i = 0; i < rows; i++) {
        float *row = G + i * DELTA_ROWS;
        const double gi = gates->sum[i];
        for (int64_t j = 0; j <= i; j++) row[j] = portable_exp((float)(gi - gates->sum[j]));
        for (int64_t j = i + 1; j < rows; j++) row[j] = 0.0f;
    }
}

/* to[n][m] = from[m][n]^T */
static inline void delta_transpose(int64_t m, int64_t n, const float *from, int64_t ld, float *to, int64_t ldt) {
    for (int64_t i0 = 0; i0 < m; i0 += 8)
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = i0; i < portable_min(m, i0 + 8); i++) to[j * ldt + i] = from[i * ld + j];
}
#ifndef DELTA_TRANSPOSE
#define DELTA_TRANSPOSE delta_transpose
#endif

/* lower triangle of C = A B, A[rows][k], B[k][rows] */
static inline void delta_product_lower(int64_t rows, int64_t k, const float *a, int64_t lda, const float *b,
                                       int64_t ldb, float *c) {
    for (int64_t i = 0; i < rows; i += DELTA_BLOCK) {
        const int64_t m = portable_min(DELTA_BLOCK, rows - i);
        DELTA_GEMM(m, i + m, k, a + i * lda, lda, 1, b, ldb, c + i * DELTA_ROWS, DELTA_ROWS, 0);
    }
}

/* C (+)= T B, T lower triangular with zeros above the diagonal, B[rows][n] */
static inline void delta_lower_times(int64_t rows, int64_t n, const float *t, const float *b, int64_t ldb, float *c,
                                     int64_t ldc, int add) {
    for (int64_t i = 0; i < rows; i += DELTA_BLOCK) {
        const int64_t m = portable_min(DELTA_BLOCK, rows - i);
        DELTA_GEMM(m, n, i + m, t + i * DELTA_ROWS, DELTA_ROWS, 1, b, ldb, c + i * ldc, ldc, add);
    }
}

/* C (+)= T^T B */
static inline void delta_upper_times(int64_t rows, int64_t n, const float *t, const float *b, int64_t ldb, float *c,
                                     int64_t ldc, int add) {
    for (int64_t i = 0; i < rows; i += DELTA_BLOCK) {
        const int64_t m = portable_min(DELTA_BLOCK, rows - i);
        DELTA_GEMM(m, n, rows - i, t + i * DELTA_ROWS + i, 1, DELTA_ROWS, b + i * ldb, ldb, c + i * ldc, ldc, add);
    }
}

/* (I + L) X = X in place, L strictly lower */
static inline void delta_solve(int64_t rows, int64_t n, const float *L, float *x, int64_t ld) {
    for (int64_t i0 = 0; i0 < rows; i0 += DELTA_BLOCK) {
        const int64_t end = portable_min(rows, i0 + DELTA_BLOCK);
        if (i0 > 0) DELTA_GEMM(end - i0, n, i0, L + i0 * DELTA_ROWS, DELTA_ROWS, 1, x, ld, x + i0 * ld, ld, -1);
        for (int64_t i = i0 + 1; i < end; i++) {
            float *restrict to = x + i * ld;
            for (int64_t j = i0; j < i; j++) {
                const float *restrict from = x + j * ld;
                const float l = L[i * DELTA_ROWS + j];
                for (int64_t c = 0; c < n; c++) to[c] -= l * from[c];
            }
        }
    }
}

/* (I + L)^T X = X in place */
static inline void delta_solve_transposed(int64_t rows, int64_t n, const float *L, float *x, int64_t ld) {
    for (int64_t i0 = (rows - 1) / DELTA_BLOCK * DELTA_BLOCK; i0 >= 0; i0 -= DELTA_BLOCK) {
        const int64_t end = portable_min(rows, i0 + DELTA_BLOCK);
        if (end < rows)
            DELTA_GEMM(end - i0, n, rows - end, L + end * DELTA_ROWS + i0, 1, DELTA_ROWS, x + end * ld, ld, x + i0 * ld,
                       ld, -1);
        for (int64_t i = end - 2; i >= i0; i--) {
            float *restrict to = x + i * ld;
            for (int64_t j = i + 1; j < end; j++) {
                const float *restrict from = x + j * ld;
                const float l = L[j * DELTA_ROWS + i];
                for (int64_t c = 0; c < n; c++) to[c] -= l * from[c];
            }
        }
    }
}

/* A (k_i . k_j) becomes L: beta_i A_ij G_ij below the diagonal, zero on and above */
static inline void delta_make_lower(int64_t rows, const struct delta_gates *gates, const float *G, const float *A,
                                    float *L) {
    for (int64_t i = 0; i < rows; i++) {
        const float b = gates->beta[i];
        const float *a = A + i * DELTA_ROWS, *g = G + i * DELTA_ROWS;
        float *l = L + i * DELTA_ROWS;
        for (int64_t j = 0; j < i; j++) l[j] = b * (a[j] * g[j]);
        for (int64_t j = i; j < rows; j++) l[j] = 0.0f;
    }
}

/* lower triangle of P scaled by c G, zero above */
static inline void delta_mask(int64_t rows, float c, const float *G, float *P) {
    for (int64_t i = 0; i < rows; i++) {
        float *p = P + i * DELTA_ROWS;
        const float *g = G + i * DELTA_ROWS;
        for (int64_t j = 0; j <= i; j++) p[j] = c * (p[j] * g[j]);
        for (int64_t j = i + 1; j < rows; j++) p[j] = 0.0f;
    }
}

/* to[i] = factor[i] * c * from[i] */
static inline void delta_scale_rows(int64_t rows, int64_t n, const float *factor, float c, const float *from,
                                    int64_t ld, float *to, int64_t ldt) {
    for (int64_t i = 0; i < rows; i++) {
        const float f = factor[i] * c;
        for (int64_t j = 0; j < n; j++) to[i * ldt + j] = f * from[i * ld + j];
    }
}

static inline void delta_copy_rows(int64_t rows, int64_t n, const float *from, int64_t ld, float *to, int64_t ldt) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * ldt, from + i * ld, (size_t)n * sizeof *to);
}

/* U from its right-hand side: U = beta (V - e KS), then the solve; KS is given in U */
static inline void delta_updates(int64_t rows, int64_t dv, const struct delta_gates *gates, const float *v, int64_t vs,
                                 const float *KS, const float *L, float *U, int64_t ld) {
    for (int64_t i = 0; i < rows; i++) {
        const float b = gates->beta[i], e = gates->e[i];
        for (int64_t j = 0; j < dv; j++) U[i * ld + j] = b * (v[i * vs + j] - e * KS[i * ld + j]);
    }
    delta_solve(rows, dv, L, U, ld);
}

static inline void delta_outputs(const float *S, int64_t dk, int64_t dv, int64_t rows, const struct delta_gates *gates,
                                 const float *G, const float *q, int64_t qs, const float *KT, const float *U,
                                 int64_t ldv, float scale, float *P, float *o, int64_t os) {
    DELTA_GEMM(rows, dv, dk, q, qs, 1, S, dv, o, os, 0);
    delta_scale_rows(rows, dv, gates->e, scale, o, os, o, os);
    delta_product_lower(rows, dk, q, qs, KT, DELTA_ROWS, P);
    delta_mask(rows, scale, G, P);
    delta_lower_times(rows, dv, P, U, ldv, o, os, 1);
}

static inline void delta_forward(float *advance, const float *S, int64_t dk, int64_t dv, int64_t rows, const float *q,
                                 int64_t qs, const float *k, int64_t ks, const float *v, int64_t vs,
                                 const float *log_alpha, const float *beta, int64_t gs, float scale, float *o,
                                 int64_t os, float *scratch) {
    if (rows <= 0) return;
    const int64_t ldk = delta_pad(dk), ldv = delta_pad(dv);
    struct delta_gates gates;
    float *G = delta_take(&scratch, DELTA_ROWS * DELTA_ROWS), *L = delta_take(&scratch, DELTA_ROWS * DELTA_ROWS);
    float *P = delta_take(&scratch, DELTA_ROWS * DELTA_ROWS), *KT = delta_take(&scratch, dk * DELTA_ROWS);
    float *U = delta_take(&scratch, DELTA_ROWS * ldv), *rK = delta_take(&scratch, DELTA_ROWS * ldk);

    delta_decay(&gates, rows, log_alpha, beta, gs, G);
    DELTA_TRANSPOSE(rows, dk, k, ks, KT, DELTA_ROWS);
    delta_product_lower(rows, dk, k, ks, KT, DELTA_ROWS, P);
    delta_make_lower(rows, &gates, G, P, L);
    DELTA_GEMM(rows, dv, dk, k, ks, 1, S, dv, U, ldv, 0);
    delta_updates(rows, dv, &gates, v, vs, U, L, U, ldv);
    if (o != NULL) delta_outputs(S, dk, dv, rows, &gates, G, q, qs, KT, U, ldv, scale, P, o, os);
    if (advance != NULL) {
        delta_scale_rows(rows, dk, gates.r, 1.0f, k, ks, rK, ldk);
        for (int64_t i = 0; i < dk * dv; i++) advance[i] *= gates.last;
        DELTA_GEMM(dk, dv, rows, rK, 1, ldk, U, ldv, advance, dv, 1);
    }
}

static void DELTA_NAME(delta_chunk)(float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs,
                                    const float *k, int64_t ks, const float *v, int64_t vs, const float *log_alpha,
                                    const float *beta, int64_t gs, float scale, float *o, int64_t os, float *scratch) {
    delta_forward(S, S, dk, dv, rows, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, o, os, scratch);
}

static void DELTA_NAME(delta_chunk_read)(const float *S, int64_t dk, int64_t dv, int64_t rows, const float *q,
                                         int64_t qs, const float *k, int64_t ks, const float *v, int64_t vs,
                                         const float *log_alpha, const float *beta, int64_t gs, float scale, float *o,
                                         int64_t os, float *scratch) {
    delta_forward(NULL, S, dk, dv, rows, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, o, os, scratch);
}

static inline float delta_dot(const float *a, const float *b, int64_t n) { return portable_dot(a, b, n); }

/*
 * The gradient, by hand from the forms above (a: question sets; sums over them where a appears on the right only):
 *   dU = sum_a P_a^T dO_a + (r K) dS';  Y = (I + L)^-T dU;  dV = beta Y;  dL = -strict_tril(Y U^T);
 *   dP_a = tril(dO_a U^T);  Xp_a = scale dP_a . G;  X = dL . beta G;  T_a = dO_a S^T
 *   dQ_a = Xp_a K + scale e T_a;   dbeta = rowsum(Y (V - e KS)) + rowsum(dL . K K^T . G)
 *   dK = (X + X^T) K + sum_a Xp_a^T Q_a - (beta e Y) S^T + r W,  W = U dS'^T
 *   dS = sum_a (scale e Q_a)^T dO_a + e^(g_last) dS' - (beta e K)^T Y
 *   N = dL . L + sum_a dP_a . P_a;  w = r rowsum(K W)
 *   dg = rowsum N - colsum N - beta e rowsum(Y KS) + sum_a scale e rowsum(Q_a T_a) - w;
 *   dg_last += sum w + e^(g_last) <S, dS'>;  dlog_alpha_t = sum of dg_i, i >= t
 */
static void DELTA_NAME(delta_chunk_backward)(const float *S, int64_t dk, int64_t dv, int64_t rows, int n_ask,
                                             const float *const *q, int64_t qs, const float *k, int64_t ks,
                                             const float *v, int64_t vs, const float *log_alpha, const float *beta,
                                             int64_t gs, float scale, const float *const *do_, int64_t os,
                                             float *const *dq, float *dk_, float *dv_, float *dlog_alpha, float *dbeta,
                                             float *dS, float *scratch) {
    if (rows <= 0) return;
    enum { R = DELTA_ROWS };
    const int64_t ldk = delta_pad(dk), ldv = delta_pad(dv);
    struct delta_gates gates;
    float *G = delta_take(&scratch, R * R), *A = delta_take(&scratch, R * R), *L = delta_take(&scratch, R * R);
    float *P = delta_take(&scratch, R * R), *D = delta_take(&scratch, R * R);
    float *KT = delta_take(&scratch, dk * R), *K = delta_take(&scratch, R * ldk), *Q = delta_take(&scratch, R * ldk);
    float *T = delta_take(&scratch, R * ldk), *M = delta_take(&scratch, R * ldk);
    float *KS = delta_take(&scratch, R * ldv), *U = delta_take(&scratch, R * ldv), *UT = delta_take(&scratch, dv * R);
    float *Y = delta_take(&scratch, R * ldv), *dO = delta_take(&scratch, R * ldv);
    float *ST = delta_take(&scratch, dv * ldk), *dST = delta_take(&scratch, dv * ldk);
    float factor[R];
    double dg[R], decayed = 0.0; /* decayed: sum w + e^(g_last) <S, dS'> */

    /* what the forward pass knew */
    delta_decay(&gates, rows, log_alpha, beta, gs, G);
    delta_copy_rows(rows, dk, k, ks, K, ldk);
    DELTA_TRANSPOSE(rows, dk, k, ks, KT, R);
    delta_product_lower(rows, dk, K, ldk, KT, R, A);
    delta_make_lower(rows, &gates, G, A, L);
    DELTA_GEMM(rows, dv, dk, K, ldk, 1, S, dv, KS, ldv, 0);
    delta_updates(rows, dv, &gates, v, vs, KS, L, U, ldv);
    DELTA_TRANSPOSE(rows, dv, U, ldv, UT, R);
    DELTA_TRANSPOSE(dk, dv, S, dv, ST, ldk);
    for (int64_t i = 0; i < rows; i++) dg[i] = 0.0;

    /* through the state after the rows */
    if (dS != NULL) {
        delta_scale_rows(rows, dk, gates.r, 1.0f, K, ldk, M, ldk);
        DELTA_GEMM(rows, dv, dk, M, ldk, 1, dS, dv, Y, ldv, 0);
        DELTA_TRANSPOSE(dk, dv, dS, dv, dST, ldk);
        DELTA_GEMM(rows, dk, dv, U, ldv, 1, dST, ldk, T, ldk, 0);
        for (int64_t i = 0; i < rows; i++) {
            const double w = (double)gates.r[i] * (double)delta_dot(K + i * ldk, T + i * ldk, dk);
            dg[i] -= w;
            decayed += w;
        }
        if (dk_ != NULL)
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < dk; j++) dk_[i * ks + j] += gates.r[i] * T[i * ldk + j];
        decayed += (double)gates.last * (double)delta_dot(S, dS, dk * dv);
        for (int64_t i = 0; i < dk * dv; i++) dS[i] *= gates.last;
    } else {
        for (int64_t i = 0; i < rows * ldv; i++) Y[i] = 0.0f;
    }

    /* through the outputs */
    for (int a = 0; a < n_ask; a++) {
        delta_copy_rows(rows, dk, q[a], qs, Q, ldk);
        delta_copy_rows(rows, dv, do_[a], os, dO, ldv);
        delta_product_lower(rows, dk, Q, ldk, KT, R, P);
        delta_mask(rows, scale, G, P);
        delta_upper_times(rows, dv, P, dO, ldv, Y, ldv, 1);
        delta_product_lower(rows, dv, dO, ldv, UT, R, D);
        for (int64_t i = 0; i < rows; i++) { /* N, then Xp in D */
            float *d = D + i * R;
            const float *p = P + i * R, *g = G + i * R;
            float s = 0.0f;
            for (int64_t j = 0; j < i; j++) {
                const float n = d[j] * p[j];
                dg[j] -= (double)n;
                s += n;
            }
            dg[i] += (double)s;
            for (int64_t j = 0; j <= i; j++) d[j] = scale * (d[j] * g[j]);
            for (int64_t j = i + 1; j < rows; j++) d[j] = 0.0f;
        }
        DELTA_GEMM(rows, dk, dv, dO, ldv, 1, ST, ldk, T, ldk, 0);
        for (int64_t i = 0; i < rows; i++) {
            const float f = scale * gates.e[i];
            dg[i] += (double)f * (double)delta_dot(Q + i * ldk, T + i * ldk, dk);
            if (dq[a] != NULL)
                for (int64_t j = 0; j < dk; j++) dq[a][i * qs + j] += f * T[i * ldk + j];
        }
        if (dq[a] != NULL) delta_lower_times(rows, dk, D, K, ldk, dq[a], qs, 1);
        if (dk_ != NULL) delta_upper_times(rows, dk, D, Q, ldk, dk_, ks, 1);
        if (dS != NULL) {
            delta_scale_rows(rows, dk, gates.e, scale, Q, ldk, M, ldk);
            DELTA_GEMM(dk, dv, rows, M, 1, ldk, dO, ldv, dS, dv, 1);
        }
    }

    /* through the updates */
    delta_solve_transposed(rows, dv, L, Y, ldv);
    if (dv_ != NULL)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < dv; j++) dv_[i * vs + j] += gates.beta[i] * Y[i * ldv + j];
    delta_product_lower(rows, dv, Y, ldv, UT, R, D);
    for (int64_t i = 0; i < rows; i++) { /* -dL in D becomes X = dL . beta G */
        float *d = D + i * R;
        const float *g = G + i * R, *l = L + i * R, *kk = A + i * R, b = gates.beta[i];
        float s = 0.0f, t = 0.0f;
        for (int64_t j = 0; j < i; j++) {
            const float n = -d[j] * l[j];
            dg[j] -= (double)n;
            s += n;
            t -= d[j] * (kk[j] * g[j]);
        }
        const float y_ks = delta_dot(Y + i * ldv, KS + i * ldv, dv);
        dg[i] += (double)s - (double)(b * gates.e[i]) * (double)y_ks;
        if (dbeta != NULL) dbeta[i * gs] += t + (delta_dot(Y + i * ldv, v + i * vs, dv) - gates.e[i] * y_ks);
        for (int64_t j = 0; j < i; j++) d[j] = -(b * (d[j] * g[j]));
        for (int64_t j = i; j < rows; j++) d[j] = 0.0f;
        factor[i] = b * gates.e[i];
    }
    if (dk_ != NULL) {
        delta_lower_times(rows, dk, D, K, ldk, dk_, ks, 1);
        delta_upper_times(rows, dk, D, K, ldk, dk_, ks, 1);
        delta_scale_rows(rows, dv, factor, 1.0f, Y, ldv, dO, ldv);
        DELTA_GEMM(rows, dk, dv, dO, ldv, 1, ST, ldk, dk_, ks, -1);
    }
    if (dS != NULL) {
        delta_scale_rows(rows, dk, factor, 1.0f, K, ldk, M, ldk);
        DELTA_GEMM(dk, dv, rows, M, 1, ldk, Y, ldv, dS, dv, -1);
    }
    if (dlog_alpha != NULL) {
        double sum = decayed;
        for (int64_t i = rows - 1; i >= 0; i--) {
            sum += dg[i];
            dlog_alpha[i * gs] += (float)sum;
        }
    }
}
