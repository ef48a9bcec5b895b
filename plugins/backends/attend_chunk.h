/*
 * attend_chunk.h: softmax attention of many rows over a window, forward and backward, in tiles of 64 rows x 64 entries
 * with the running maximum and sum of arXiv:2205.14135. Nothing as long as the window is ever kept.
 *
 * The including file defines, before the #include:
 *   ATTEND_NAME(x)  a prefix for the functions below
 *   ATTEND_GEMM(m, n, k, a, row, col, b, ldb, c, ldc, add)   as portable_gemm()
 *
 * Row r sees entries before + r - window + 1 .. before + r. With s = scale q.k, l = log(sum e^s), P = e^(s - l):
 *   O = P V;   dP = dO V^T;   dS = P (dP - rowsum(dO O));   dQ = scale dS K;   dK = scale dS^T Q;   dV = P^T dO
 */
#ifndef ATTEND_NAME
#error "define ATTEND_NAME and ATTEND_GEMM first"
#endif

enum { ATTEND_TILE = 64 };

/* One tile: rows row0.. of the queries and `n` entries from `entry`, all in one of the two arrays. */
struct attend_tile {
    int64_t row0, rows, entry, n;
    const float *k, *v;
    int64_t offset; /* of the entries in their array, in rows: where their gradients are */
    bool carried;   /* which array */
};

/* The next tile of a block of rows; starts with t->n = 0. False: no more. */
static inline bool attend_next(const struct chm_attend *a, struct attend_tile *t) {
    const int64_t first = a->before + t->row0 - a->window + 1, end = a->before + t->row0 + t->rows;
    int64_t at = t->n ? t->entry + t->n : first > 0 ? first : 0;
    if (at >= end) return false;
    t->entry = at;
    t->carried = at < a->before;
    t->n = portable_min(ATTEND_TILE, (t->carried ? portable_min(a->before, end) : end) - at);
    t->offset = t->carried ? at : at - a->before;
    t->k = (t->carried ? a->k_before : a->k) + t->offset * a->ks;
    t->v = (t->carried ? a->v_before : a->v) + t->offset * a->vs;
    return true;
}

/* columns of the tile that row i sees: [*low, return) */
static inline int64_t attend_seen(const struct chm_attend *a, const struct attend_tile *t, int64_t i, int64_t *low) {
    const int64_t newest = a->before + t->row0 + i - t->entry, oldest = newest - a->window + 1;
    *low = oldest < 0 ? 0 : oldest > t->n ? t->n : oldest;
    const int64_t high = newest < 0 ? 0 : newest >= t->n ? t->n : newest + 1;
    return high < *low ? *low : high;
}

static inline float *attend_take(float **scratch, int64_t n) {
    float *p = *scratch;
    *scratch += (n + 15) & ~(int64_t)15;
    return p;
}

/* to[width][ATTEND_TILE] = from[rows][width]^T */
static inline void attend_transpose(int64_t rows, int64_t width, const float *from, int64_t ld, float *to) {
    for (int64_t i0 = 0; i0 < rows; i0 += 8)
        for (int64_t j = 0; j < width; j++)
            for (int64_t i = i0; i < portable_min(rows, i0 + 8); i++) to[j * ATTEND_TILE + i] = from[i * ld + j];
}

static inline float attend_largest(const float *x, int64_t n, float top) {
    for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

/* x[low, high) = e^(scale x - shift), zero elsewhere in [0, n); returns the sum */
static inline float attend_weights(float *x, int64_t low, int64_t high, int64_t n, float scale, float shift) {
    float s[PORTABLE_LANES] = {0};
    for (int64_t i = 0; i < low; i++) x[i] = 0.0f;
    for (int64_t i = low; i < high; i++) x[i] = portable_exp(scale * x[i] - shift);
    for (int64_t i = high; i < n; i++) x[i] = 0.0f;
    int64_t i = 0;
    for (; i + PORTABLE_LANES <= n; i += PORTABLE_LANES)
        for (int l = 0; l < PORTABLE_LANES; l++) s[l] += x[i + l];
    for (int l = 0; i + l < n; l++) s[l] += x[i + l];
    return portable_fold(s);
}

static void ATTEND_NAME(attend_chunk)(const struct chm_attend *a, float *o, float *lse, float *scratch) {
    float *S = attend_take(&scratch, ATTEND_TILE * ATTEND_TILE), *KT = attend_take(&scratch, ATTEND_TILE * a->dk);
    float top[ATTEND_TILE], sum[ATTEND_TILE];
    for (int64_t row0 = 0; row0 < a->rows; row0 += ATTEND_TILE) {
        const int64_t rows = portable_min(ATTEND_TILE, a->rows - row0);
        struct attend_tile t = {.row0 = row0, .rows = rows};
        float *out = o + row0 * a->os;
        for (int64_t i = 0; i < rows; i++) {
            top[i] = -INFINITY;
            sum[i] = 0.0f;
            memset(out + i * a->os, 0, (size_t)a->dv * sizeof *out);
        }
        while (attend_next(a, &t)) {
            attend_transpose(t.n, a->dk, t.k, a->ks, KT);
            ATTEND_GEMM(rows, t.n, a->dk, a->q + row0 * a->qs, a->qs, 1, KT, ATTEND_TILE, S, ATTEND_TILE, 0);
            for (int64_t i = 0; i < rows; i++) {
                float *s = S + i * ATTEND_TILE, *to = out + i * a->os;
                int64_t low;
                const int64_t high = attend_seen(a, &t, i, &low);
                if (low == high) {
                    memset(s, 0, (size_t)t.n * sizeof *s);
                    continue;
                }
                const float most = attend_largest(s + low, high - low, -INFINITY) * a->scale;
                if (most > top[i]) {
                    const float keep = portable_exp(top[i] - most);
                    sum[i] *= keep;
                    for (int64_t j = 0; j < a->dv; j++) to[j] *= keep;
                    top[i] = most;
                }
                sum[i] += attend_weights(s, low, high, t.n, a->scale, top[i]);
            }
            ATTEND_GEMM(rows, a->dv, t.n, S, ATTEND_TILE, 1, t.v, a->vs, out, a->os, 1);
        }
        for (int64_t i = 0; i < rows; i++) {
            const float factor = 1.0f / sum[i];
            for (int64_t j = 0; j < a->dv; j++) out[i * a->os + j] *= factor;
            lse[row0 + i] = top[i] + portable_log(sum[i]);
        }
    }
}

static void ATTEND_NAME(attend_chunk_backward)(const struct chm_attend *a, const float *o, const float *lse,
                                               const float *dout, float *dq, float *dk_before, float *dk_,
                                               float *dv_before, float *dv_, float *scratch) {
    float *P = attend_take(&scratch, ATTEND_TILE * ATTEND_TILE), *D = attend_take(&scratch, ATTEND_TILE * ATTEND_TILE);
    float *KT = attend_take(&scratch, ATTEND_TILE * a->dk), *VT = attend_take(&scratch, ATTEND_TILE * a->dv);
    float along[ATTEND_TILE]; /* rowsum(dO O) */
    for (int64_t row0 = 0; row0 < a->rows; row0 += ATTEND_TILE) {
        struct attend_tile t = {.row0 = row0, .rows = portable_min(ATTEND_TILE, a->rows - row0)};
        const float *q = a->q + row0 * a->qs, *g = dout + row0 * a->os;
        for (int64_t i = 0; i < t.rows; i++) along[i] = portable_dot(g + i * a->os, o + (row0 + i) * a->os, a->dv);
        while (attend_next(a, &t)) {
            attend_transpose(t.n, a->dk, t.k, a->ks, KT);
            attend_transpose(t.n, a->dv, t.v, a->vs, VT);
            ATTEND_GEMM(t.rows, t.n, a->dk, q, a->qs, 1, KT, ATTEND_TILE, P, ATTEND_TILE, 0);
            ATTEND_GEMM(t.rows, t.n, a->dv, g, a->os, 1, VT, ATTEND_TILE, D, ATTEND_TILE, 0);
            for (int64_t i = 0; i < t.rows; i++) {
                float *p = P + i * ATTEND_TILE, *d = D + i * ATTEND_TILE;
                int64_t low;
                const int64_t high = attend_seen(a, &t, i, &low);
                attend_weights(p, low, high, t.n, a->scale, lse[row0 + i]);
                for (int64_t j = 0; j < t.n; j++) d[j] = a->scale * (p[j] * (d[j] - along[i]));
            }
            float *dk = t.carried ? dk_before : dk_, *dv = t.carried ? dv_before : dv_;
            if (dq != NULL) ATTEND_GEMM(t.rows, a->dk, t.n, D, ATTEND_TILE, 1, t.k, a->ks, dq + row0 * a->qs, a->qs, 1);
            if (dk != NULL)
                ATTEND_GEMM(t.n, a->dk, t.rows, D, 1, ATTEND_TILE, q, a->qs, dk + t.offset * a->ks, a->ks, 1);
            if (dv != NULL)
                ATTEND_GEMM(t.n, a->dv, t.rows, P, 1, ATTEND_TILE, g, a->os, dv + t.offset * a->vs, a->vs, 1);
        }
    }
}
