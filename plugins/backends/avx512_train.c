/*
 * avx512_train.c: training kernels with AVX-512 and fused multiply-add. They need only agree with scalar within the
 * tolerance tests/checkkernels states; no kernel of inference may live here. Nothing is rounded to bf16: its 8 bits are
 * four orders of magnitude above that tolerance. What may be rounded so is a slot of its own, in avx512_bf16.c.
 */
#include "avx512_train.h"
#include "avx512.h"

/* ---- Small matrix products ---------------------------------------------------------------------------------------
 * 8 x 32 results in 16 registers, two vectors of B and one broadcast of A at a time. */

enum { MR = 8, NR = 32 };

/* mr rows and `vectors` x 16 columns, of the last vector those in `m` unless it is `whole` */
ALWAYS_INLINE void gemm_tile(int64_t k, const float *a, int64_t row, int64_t col, const float *b, int64_t ldb, float *c,
                             int64_t ldc, int add, const int mr, const int vectors, const bool whole, __mmask16 m) {
    __m512 acc[MR][2];
    UNROLL for (int i = 0; i < mr; i++) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
    for (int64_t p = 0; p < k; p++) {
        __m512 v[2];
        UNROLL for (int h = 0; h < vectors; h++) v[h] = load(b + 16 * h, whole || h < vectors - 1, m);
        UNROLL for (int i = 0; i < mr; i++) {
            const __m512 ai = _mm512_set1_ps(a[i * row]);
            UNROLL for (int h = 0; h < vectors; h++) acc[i][h] = _mm512_fmadd_ps(ai, v[h], acc[i][h]);
        }
        a += col;
        b += ldb;
    }
    UNROLL for (int i = 0; i < mr; i++) UNROLL for (int h = 0; h < vectors; h++) {
        float *to = c + i * ldc + 16 * h;
        __m512 v = acc[i][h];
        if (add != 0) {
            const __m512 old = load(to, whole || h < vectors - 1, m);
            v = add > 0 ? _mm512_add_ps(old, v) : _mm512_sub_ps(old, v);
        }
        store(to, whole || h < vectors - 1, m, v);
    }
}

ALWAYS_INLINE void gemm_columns(int64_t m, int64_t k, const float *a, int64_t row, int64_t col, const float *b,
                                int64_t ldb, float *c, int64_t ldc, int add, const int vectors, const bool whole,
                                __mmask16 last) {
    int64_t i = 0;
    for (; i + MR <= m; i += MR)
        gemm_tile(k, a + i * row, row, col, b, ldb, c + i * ldc, ldc, add, MR, vectors, whole, last);
    for (; i + 4 <= m; i += 4)
        gemm_tile(k, a + i * row, row, col, b, ldb, c + i * ldc, ldc, add, 4, vectors, whole, last);
    for (; i < m; i++) gemm_tile(k, a + i * row, row, col, b, ldb, c + i * ldc, ldc, add, 1, vectors, whole, last);
}

/* as portable_gemm() */
static void gemm(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col, const float *b, int64_t ldb,
                 float *c, int64_t ldc, int add) {
    int64_t j = 0;
    for (; j + NR <= n; j += NR) gemm_columns(m, k, a, row, col, b + j, ldb, c + j, ldc, add, 2, true, 0xffff);
    if (j + 16 < n)
        gemm_columns(m, k, a, row, col, b + j, ldb, c + j, ldc, add, 2, false, lanes(n - j - 16));
    else if (j < n)
        gemm_columns(m, k, a, row, col, b + j, ldb, c + j, ldc, add, 1, false, lanes(n - j));
}

void chm_avx512_block_matmul(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col, const float *b,
                             int64_t ldb, float *c, int64_t ldc, int add) {
    gemm(m, n, k, a, row, col, b, ldb, c, ldc, add);
}

/* ---- The delta rule in chunks ------------------------------------------------------------------------------------ */

#define DELTA_NAME(x) avx512_##x
#define DELTA_BLOCK   MR
#define DELTA_GEMM    gemm
#include "delta_chunk.h"

void chm_avx512_delta_chunk(float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs, const float *k,
                            int64_t ks, const float *v, int64_t vs, const float *log_alpha, const float *beta,
                            int64_t gs, float scale, float *o, int64_t os, float *scratch) {
    avx512_delta_chunk(S, dk, dv, rows, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, o, os, scratch);
}

void chm_avx512_delta_chunk_read(const float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs,
                                 const float *k, int64_t ks, const float *v, int64_t vs, const float *log_alpha,
                                 const float *beta, int64_t gs, float scale, float *o, int64_t os, float *scratch) {
    avx512_delta_chunk_read(S, dk, dv, rows, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, o, os, scratch);
}

void chm_avx512_delta_chunk_backward(const float *S, int64_t dk, int64_t dv, int64_t rows, int n_ask,
                                     const float *const *q, int64_t qs, const float *k, int64_t ks, const float *v,
                                     int64_t vs, const float *log_alpha, const float *beta, int64_t gs, float scale,
                                     const float *const *do_, int64_t os, float *const *dq, float *dk_, float *dv_,
                                     float *dlog_alpha, float *dbeta, float *dS, float *scratch) {
    avx512_delta_chunk_backward(S, dk, dv, rows, n_ask, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, do_, os, dq,
                                dk_, dv_, dlog_alpha, dbeta, dS, scratch);
}
