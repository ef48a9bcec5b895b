/*
 * avx512_products.h: the ternary product of T2 and the int8 product with 512-bit vectors. Included twice: by avx512.c,
 * and by avx512_vnni.c with AVX512_VNNI defined.
 */
#include "avx512_ternary.h"

TERNARY_KERNEL(t2, CHM_ENCODING_T2)

/* ---- int8 products -----------------------------------------------------------------------------------------------
 *
 * One operand must be unsigned. With the dot product it is the weight + 128, and 128 times the sum of the activations
 * is subtracted; without it |w| times a that carries the sign of w, of which two products of 127 * 127 fit int16.
 */

struct weight {
    __m512i bytes;
    __mmask64 negative;
};

ALWAYS_INLINE struct weight take_weight(__m512i w) {
#if defined(AVX512_VNNI)
    return (struct weight){_mm512_xor_si512(w, _mm512_set1_epi8(-128)), 0};
#else
    return (struct weight){_mm512_abs_epi8(w), _mm512_movepi8_mask(w)};
#endif
}

ALWAYS_INLINE __m512i multiply_weight(__m512i sum, struct weight w, __m512i a) {
#if defined(AVX512_VNNI)
    return _mm512_dpbusd_epi32(sum, w.bytes, a);
#else
    const __m512i b = _mm512_mask_sub_epi8(a, w.negative, _mm512_setzero_si512(), a);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w.bytes, b), _mm512_set1_epi16(1)));
#endif
}

ALWAYS_INLINE __m512i finish_dot(__m512i sum, int32_t activations) {
#if defined(AVX512_VNNI)
    return _mm512_sub_epi32(sum, _mm512_set1_epi32(128 * activations));
#else
    (void)activations;
    return sum;
#endif
}

/* sums of 16 vectors of 16 int32, one in each lane */
ALWAYS_INLINE __m512i sum_lanes(const __m512i v[16]) {
    __m512i a[8], b[4];
    UNROLL for (int i = 0; i < 8; i++) a[i] =
        _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    UNROLL for (int i = 0; i < 4; i++) b[i] =
        _mm512_add_epi32(_mm512_unpacklo_epi64(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
    const __m512i c = _mm512_add_epi32(_mm512_shuffle_i32x4(b[0], b[1], 0x88), _mm512_shuffle_i32x4(b[0], b[1], 0xdd));
    const __m512i d = _mm512_add_epi32(_mm512_shuffle_i32x4(b[2], b[3], 0x88), _mm512_shuffle_i32x4(b[2], b[3], 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xdd));
}

/* 16 outputs of few rows: a dot product of 64 bytes each, summed across */
static void int8_few(const int8_t *const w[16], __m512 weight_scale, int64_t blocks, const struct chm_activation *x,
                     float *y, int64_t ldy, __mmask16 columns) {
    for (int64_t row = 0; row < x->rows; row++) {
        __m512 acc = _mm512_setzero_ps();
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t at = row * x->blocks + b;
            const __m512i a = _mm512_loadu_si512(x->q + 64 * at);
            __m512i dot[16];
            UNROLL for (int i = 0; i < 16; i++) dot[i] =
                multiply_weight(_mm512_setzero_si512(), take_weight(_mm512_loadu_si512(w[i] + 64 * b)), a);
            acc = apply_block(acc, finish_dot(sum_lanes(dot), x->sum[at]), x->scale[at], weight_scale);
        }
        _mm512_mask_storeu_ps(y + row * ldy, columns, acc);
    }
}

/* `rows` rows times a block of 16 outputs x 64 inputs turned over: step j holds inputs 4j..4j+3 of each output */
ALWAYS_INLINE void int8_rows(const __m512i turned[16], __m512 weight_scale, const struct chm_activation *x,
                             int64_t row0, int64_t block, float (*to)[16], const int rows) {
    __m512i sum[4][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    UNROLL4 for (int j = 0; j < 16; j += 2) UNROLL for (int s = 0; s < 2; s++) {
        const struct weight w = take_weight(turned[j + s]);
        UNROLL for (int r = 0; r < rows; r++) {
            const int8_t *q = x->q + 64 * ((row0 + r) * x->blocks + block);
            sum[r][s] = multiply_weight(sum[r][s], w, broadcast4(q + 4 * (j + s)));
            KEEP(sum[r][s]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        const int64_t at = (row0 + r) * x->blocks + block;
        const __m512i dot = finish_dot(_mm512_add_epi32(sum[r][0], sum[r][1]), x->sum[at]);
        _mm512_storeu_ps(to[r], apply_block(_mm512_loadu_ps(to[r]), dot, x->scale[at], weight_scale));
    }
}

enum { INT8_ROWS = 64 }; /* whose results wait in a buffer */

static void int8_many(const int8_t *const w[16], __m512 weight_scale, int64_t blocks, const struct chm_activation *x,
                      float *y, int64_t ldy, __mmask16 columns) {
    float acc[INT8_ROWS][16];
    for (int64_t row0 = 0; row0 < x->rows; row0 += INT8_ROWS) {
        const int64_t rows = portable_min(INT8_ROWS, x->rows - row0);
        memset(acc, 0, (size_t)rows * sizeof acc[0]);
        for (int64_t b = 0; b < blocks; b++) {
            __m512i turned[16];
            UNROLL for (int i = 0; i < 16; i++) turned[i] = _mm512_loadu_si512(w[i] + 64 * b);
            transpose16(turned);
            int64_t r = 0;
            for (; r + 4 <= rows; r += 4) int8_rows(turned, weight_scale, x, row0 + r, b, acc + r, 4);
            for (; r < rows; r++) int8_rows(turned, weight_scale, x, row0 + r, b, acc + r, 1);
        }
        for (int64_t r = 0; r < rows; r++)
            _mm512_mask_storeu_ps(y + (row0 + r) * ldy, columns, _mm512_loadu_ps(acc[r]));
    }
}

static void int8_matmul(const struct chm_int8_matrix *w, int64_t out0, int64_t out1, const struct chm_activation *x,
                        float *y, int64_t ldy) {
    for (int64_t o = out0; o < out1; o += 16) {
        const __mmask16 columns = lanes(out1 - o);
        const int8_t *p[16];
        for (int i = 0; i < 16; i++) p[i] = w->q + (o + portable_min(i, out1 - o - 1)) * w->blocks * 64;
        const __m512 weight_scale = _mm512_maskz_loadu_ps(columns, w->scale + o);
        if (x->rows < 4)
            int8_few(p, weight_scale, w->blocks, x, y + o, ldy, columns);
        else
            int8_many(p, weight_scale, w->blocks, x, y + o, ldy, columns);
    }
}
