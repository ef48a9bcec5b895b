/*
 * avx512_bf16.c: the products of the backward pass for CPUs with the bf16 dot product (AVX512-BF16). Operands are
 * rounded to bf16, nearest even; products and sums are f32. For training only: inference never rounds to bf16.
 */
#include "avx512.h"

/*
 * C += op(A) B in blocks of DEPTH x COLUMNS of B and ROWS x DEPTH of A, which are packed as bf16 into this thread's
 * stack (160 KB, of which one strip of B, 16 KB, is what the innermost loop comes back to). A dword holds two
 * neighbours in depth, so that one instruction multiplies and adds both.
 */
enum { DEPTH = 256, COLUMNS = 256, ROWS = 64, STRIP = 32, BLOCK = 8 };

struct packed {
    uint32_t b[COLUMNS / STRIP][DEPTH / 2][STRIP]; /* [strip][pair][column] */
    uint32_t a[ROWS][DEPTH / 2];                   /* [row][pair] */
} __attribute__((aligned(64)));

/* 16 columns of two rows, as dwords (first, second) */
ALWAYS_INLINE __m512i pairs(__m512 first, __m512 second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, BF16_BITS(_mm512_cvtne2ps_pbh(second, first)));
}

/* `depth` rows of n columns; what pads is zero */
static void pack_columns(const float *b, int64_t ldb, int64_t depth, int64_t n, struct packed *p) {
    for (int64_t strip = 0; strip * STRIP < n; strip++)
        for (int64_t d = 0; d < depth; d += 2)
            for (int h = 0; h < STRIP / 16; h++) {
                const int64_t column = strip * STRIP + 16 * h;
                const __mmask16 real = column < n ? lanes(n - column) : 0;
                const float *at = b + d * ldb + (real ? column : 0);
                const __m512 first = _mm512_maskz_loadu_ps(real, at);
                const __m512 second = d + 1 < depth ? _mm512_maskz_loadu_ps(real, at + ldb) : _mm512_setzero_ps();
                _mm512_storeu_si512(&p->b[strip][d / 2][16 * h], pairs(first, second));
            }
}

/* m rows of `depth` numbers, or of a matrix that lies transposed: lda is then from one of the depth to the next */
static void pack_rows(bool transposed, const float *a, int64_t lda, int64_t depth, int64_t m, struct packed *p) {
    if (!transposed) {
        for (int64_t i = 0; i < m; i++)
            for (int64_t d = 0; d < depth; d += 32) {
                const float *at = a + i * lda + d;
                const __m512 low = _mm512_maskz_loadu_ps(lanes(depth - d), at);
                const __m512 high =
                    depth - d > 16 ? _mm512_maskz_loadu_ps(lanes(depth - d - 16), at + 16) : _mm512_setzero_ps();
                _mm512_storeu_si512(&p->a[i][d / 2], BF16_BITS(_mm512_cvtne2ps_pbh(high, low)));
            }
        return;
    }
    for (int64_t i = 0; i < m; i += 16)
        for (int64_t d = 0; d < depth; d += 32) { /* 16 rows x 16 pairs, turned round in registers */
            __m512i v[16];
            const __mmask16 real = lanes(m - i);
            UNROLL for (int j = 0; j < 16; j++) {
                const float *at = a + (d + 2 * j) * lda + i;
                const __m512 first = d + 2 * j < depth ? _mm512_maskz_loadu_ps(real, at) : _mm512_setzero_ps();
                const __m512 second =
                    d + 2 * j + 1 < depth ? _mm512_maskz_loadu_ps(real, at + lda) : _mm512_setzero_ps();
                v[j] = pairs(first, second);
            }
            transpose16(v);
            UNROLL for (int j = 0; j < 16; j++) _mm512_storeu_si512(&p->a[i + j][d / 2], v[j]);
        }
}

/* `rows` x 32 results, of their columns those in the masks */
ALWAYS_INLINE void tile(const uint32_t (*a)[DEPTH / 2], const uint32_t (*b)[STRIP], int64_t pairs_deep, float *c,
                        int64_t ldc, const int rows, const bool whole, __mmask16 left, __mmask16 right) {
    __m512 acc[BLOCK][2];
    UNROLL for (int i = 0; i < rows; i++) {
        acc[i][0] = load(c + i * ldc, whole, left);
        acc[i][1] = whole || right ? load(c + i * ldc + 16, whole, right) : _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < pairs_deep; d++) {
        const __m512i b0 = _mm512_loadu_si512(b[d]), b1 = _mm512_loadu_si512(b[d] + 16);
        UNROLL for (int i = 0; i < rows; i++) {
            const __m512i ai = _mm512_set1_epi32((int32_t)a[i][d]);
            acc[i][0] = _mm512_dpbf16_ps(acc[i][0], BF16_OF(ai), BF16_OF(b0));
            acc[i][1] = _mm512_dpbf16_ps(acc[i][1], BF16_OF(ai), BF16_OF(b1));
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        store(c + i * ldc, whole, left, acc[i][0]);
        if (whole || right) store(c + i * ldc + 16, whole, right, acc[i][1]);
    }
}

ALWAYS_INLINE void strip_rows(const struct packed *p, int64_t strip, int64_t deep, int64_t m, float *c, int64_t ldc,
                              const bool whole, __mmask16 left, __mmask16 right) {
    int64_t i = 0;
    for (; i + BLOCK <= m; i += BLOCK) tile(p->a + i, p->b[strip], deep, c + i * ldc, ldc, BLOCK, whole, left, right);
    for (; i + 2 <= m; i += 2) tile(p->a + i, p->b[strip], deep, c + i * ldc, ldc, 2, whole, left, right);
    for (; i < m; i++) tile(p->a + i, p->b[strip], deep, c + i * ldc, ldc, 1, whole, left, right);
}

static void gradient_matmul(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                            int64_t ldb, float *c, int64_t ldc) {
    struct packed p;
    for (int64_t d = 0; d < k; d += DEPTH)
        for (int64_t j = 0; j < n; j += COLUMNS) {
            const int64_t depth = portable_min(DEPTH, k - d), columns = portable_min(COLUMNS, n - j);
            pack_columns(b + d * ldb + j, ldb, depth, columns, &p);
            for (int64_t i = 0; i < m; i += ROWS) {
                const int64_t rows = portable_min(ROWS, m - i);
                pack_rows(ta, ta ? a + d * lda + i : a + i * lda + d, lda, depth, rows, &p);
                for (int64_t s = 0; s * STRIP < columns; s++) {
                    const int64_t left = columns - s * STRIP;
                    float *to = c + i * ldc + j + s * STRIP;
                    if (left >= STRIP)
                        strip_rows(&p, s, (depth + 1) / 2, rows, to, ldc, true, 0xffff, 0xffff);
                    else
                        strip_rows(&p, s, (depth + 1) / 2, rows, to, ldc, false, lanes(left),
                                   left > 16 ? lanes(left - 16) : 0);
                }
            }
        }
}

const struct chm_backend_level chm_avx512_bf16 = {
    .size = sizeof(struct chm_backend_level),
    .name = AVX512_BF16_NAME,
    .cpu = AVX512_BF16_CPU,
    .kernels = {.size = sizeof(struct chm_kernels), .gradient_matmul = gradient_matmul},
};
