/*
 * avx2_train.c: training kernels with AVX2 and fused multiply-add. They need only agree with scalar within the
 * tolerance tests/checkkernels states; no kernel of inference may live here.
 */
#include "avx2_train.h"
#include "portable.h"

#include <immintrin.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* ---- Small matrix products ---------------------------------------------------------------------------------------
 * 6 x 16 results in 12 registers, two vectors of B and one broadcast of A at a time. */

enum { MR = 6, NR = 16 };

ALWAYS_INLINE __m256i lane_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* mr rows and n columns; `whole`: n is 16 */
ALWAYS_INLINE void gemm_tile(int64_t n, int64_t k, const float *a, int64_t row, int64_t col, const float *b,
                             int64_t ldb, float *c, int64_t ldc, int add, const int mr, const int whole) {
    const __m256i m0 = lane_mask(n), m1 = lane_mask(n - 8);
    __m256 acc[MR][2];
    UNROLL for (int i = 0; i < mr; i++) acc[i][0] = acc[i][1] = _mm256_setzero_ps();
    for (int64_t p = 0; p < k; p++) {
        const __m256 b0 = whole ? _mm256_loadu_ps(b) : _mm256_maskload_ps(b, m0);
        const __m256 b1 = whole ? _mm256_loadu_ps(b + 8) : _mm256_maskload_ps(b + 8, m1);
        UNROLL for (int i = 0; i < mr; i++) {
            const __m256 v = _mm256_broadcast_ss(a + i * row);
            acc[i][0] = _mm256_fmadd_ps(v, b0, acc[i][0]);
            acc[i][1] = _mm256_fmadd_ps(v, b1, acc[i][1]);
        }
        a += col;
        b += ldb;
    }
    UNROLL for (int i = 0; i < mr; i++) {
        float *to = c + i * ldc;
        UNROLL for (int h = 0; h < 2; h++) {
            const __m256i m = h == 0 ? m0 : m1;
            __m256 v = acc[i][h];
            if (add != 0) {
                const __m256 old = whole ? _mm256_loadu_ps(to + 8 * h) : _mm256_maskload_ps(to + 8 * h, m);
                v = add > 0 ? _mm256_add_ps(old, v) : _mm256_sub_ps(old, v);
            }
            if (whole)
                _mm256_storeu_ps(to + 8 * h, v);
            else
                _mm256_maskstore_ps(to + 8 * h, m, v);
        }
    }
}

ALWAYS_INLINE void gemm_columns(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col,
                                const float *b, int64_t ldb, float *c, int64_t ldc, int add, const int whole) {
    int64_t i = 0;
    for (; i + MR <= m; i += MR) gemm_tile(n, k, a + i * row, row, col, b, ldb, c + i * ldc, ldc, add, MR, whole);
    a += i * row;
    c += i * ldc;
    switch (m - i) {
    case 1:
        gemm_tile(n, k, a, row, col, b, ldb, c, ldc, add, 1, whole);
        break;
    case 2:
        gemm_tile(n, k, a, row, col, b, ldb, c, ldc, add, 2, whole);
        break;
    case 3:
        gemm_tile(n, k, a, row, col, b, ldb, c, ldc, add, 3, whole);
        break;
    case 4:
        gemm_tile(n, k, a, row, col, b, ldb, c, ldc, add, 4, whole);
        break;
    case 5:
        gemm_tile(n, k, a, row, col, b, ldb, c, ldc, add, 5, whole);
        break;
    default:
        break;
    }
}

/* as portable_gemm() */
static void gemm(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col, const float *b, int64_t ldb,
                 float *c, int64_t ldc, int add) {
    int64_t j = 0;
    for (; j + NR <= n; j += NR) gemm_columns(m, NR, k, a, row, col, b + j, ldb, c + j, ldc, add, 1);
    if (j < n) gemm_columns(m, n - j, k, a, row, col, b + j, ldb, c + j, ldc, add, 0);
}

void chm_avx2_block_matmul(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col, const float *b,
                           int64_t ldb, float *c, int64_t ldc, int add) {
    gemm(m, n, k, a, row, col, b, ldb, c, ldc, add);
}

/* ---- The delta rule in chunks ------------------------------------------------------------------------------------ */

#define DELTA_NAME(x) avx2_##x
#define DELTA_BLOCK   MR
#define DELTA_GEMM    gemm
#include "delta_chunk.h"

void chm_avx2_delta_chunk(float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs, const float *k,
                          int64_t ks, const float *v, int64_t vs, const float *log_alpha, const float *beta, int64_t gs,
                          float scale, float *o, int64_t os, float *scratch) {
    avx2_delta_chunk(S, dk, dv, rows, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, o, os, scratch);
}

void chm_avx2_delta_chunk_read(const float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs,
                               const float *k, int64_t ks, const float *v, int64_t vs, const float *log_alpha,
                               const float *beta, int64_t gs, float scale, float *o, int64_t os, float *scratch) {
    avx2_delta_chunk_read(S, dk, dv, rows, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, o, os, scratch);
}

void chm_avx2_delta_chunk_backward(const float *S, int64_t dk, int64_t dv, int64_t rows, int n_ask,
                                   const float *const *q, int64_t qs, const float *k, int64_t ks, const float *v,
                                   int64_t vs, const float *log_alpha, const float *beta, int64_t gs, float scale,
                                   const float *const *do_, int64_t os, float *const *dq, float *dk_, float *dv_,
                                   float *dlog_alpha, float *dbeta, float *dS, float *scratch) {
    avx2_delta_chunk_backward(S, dk, dv, rows, n_ask, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, do_, os, dq, dk_,
                              dv_, dlog_alpha, dbeta, dS, scratch);
}

/* ---- Attention over a window ------------------------------------------------------------------------------------- */

#define ATTEND_NAME(x) avx2_##x
#define ATTEND_GEMM    gemm
#include "attend_chunk.h"

void chm_avx2_attend_chunk(const struct chm_attend *a, float *o, float *lse, float *scratch) {
    avx2_attend_chunk(a, o, lse, scratch);
}

void chm_avx2_attend_chunk_backward(const struct chm_attend *a, const float *o, const float *lse, const float *dout,
                                    float *dq, float *dk_before, float *dk_, float *dv_before, float *dv_,
                                    float *scratch) {
    avx2_attend_chunk_backward(a, o, lse, dout, dq, dk_before, dk_, dv_before, dv_, scratch);
}
