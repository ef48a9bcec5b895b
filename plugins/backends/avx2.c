/*
 * avx2.c: the backend for x86 with AVX2. Most slots are portable.h compiled for 256-bit vectors; the products and the
 * quantiser are written with intrinsics. All of it gives scalar's bytes: integer dots are exact, and every float result
 * goes through the same operations in the same order.
 */
#include "avx2_products.h"
#include "avx2_train.h"

/* ---- Quantise ---------------------------------------------------------------------------------------------------- */

ALWAYS_INLINE void quantise_block(const float *v, int8_t *q, float *scale, int32_t *sum) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i top = _mm256_setzero_si256();
    __m256 x[8];
    UNROLL for (int i = 0; i < 8; i++) {
        x[i] = _mm256_loadu_ps(v + 8 * i);
        top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(x[i]), magnitude));
    }
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1));
    const uint32_t bits = (uint32_t)_mm_cvtsi128_si32(most);
    const float absmax = portable_float(bits);
    if (bits >= 0x7f800000u || absmax < PORTABLE_ABSMAX_MIN) {
        _mm256_storeu_si256((__m256i *)q, _mm256_setzero_si256());
        _mm256_storeu_si256((__m256i *)(q + 32), _mm256_setzero_si256());
        *scale = bits >= 0x7f800000u ? NAN : 0.0f;
        *sum = 0;
        return;
    }
    const __m256 inverse = _mm256_set1_ps(127.0f / absmax);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i total = _mm256_setzero_si256();
    UNROLL for (int h = 0; h < 2; h++) {
        __m256i n[4];
        UNROLL for (int i = 0; i < 4; i++) {
            n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[4 * h + i], inverse)); /* nearest, ties to even */
            total = _mm256_add_epi32(total, n[i]);
        }
        const __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        _mm256_storeu_si256((__m256i *)(q + 32 * h), _mm256_permutevar8x32_epi32(p, order));
    }
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    *scale = absmax / 127.0f;
    *sum = _mm_cvtsi128_si32(t);
}

static void quantise(const float *x, int64_t rows, int64_t width, int8_t *q, float *scale, int32_t *sum) {
    const int64_t blocks = portable_blocks(width);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t b = 0; b < blocks; b++) {
            const float *v = x + row * width + 64 * b;
            const int64_t n = portable_min(64, width - 64 * b), at = row * blocks + b;
            float padded[64];
            if (n < 64) {
                memset(padded, 0, sizeof padded);
                memcpy(padded, v, (size_t)n * sizeof *v);
                v = padded;
            }
            quantise_block(v, q + 64 * at, scale + at, sum + at);
        }
    }
}

/* ---- Ternarise --------------------------------------------------------------------------------------------------- */

/* 8 trits, as -1, 0, 1, of w * (1/scale) */
ALWAYS_INLINE __m256i trits(__m256 w, __m256 inverse) {
    const __m256 t = _mm256_mul_ps(w, inverse);
    const __m256 above = _mm256_cmp_ps(t, _mm256_set1_ps(0.5f), _CMP_GT_OQ);
    const __m256 below = _mm256_cmp_ps(t, _mm256_set1_ps(-0.5f), _CMP_LT_OQ);
    return _mm256_sub_epi32(_mm256_castps_si256(below), _mm256_castps_si256(above));
}

/* 64 weights to codes 0..2, and to trit * scale */
ALWAYS_INLINE void ternarise_block(const float *w, float scale, uint8_t *code, float *dequant) {
    const __m256 inverse = _mm256_set1_ps(1.0f / scale), factor = _mm256_set1_ps(scale);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    UNROLL for (int h = 0; h < 2; h++) {
        __m256i t[4];
        UNROLL for (int i = 0; i < 4; i++) {
            t[i] = trits(_mm256_loadu_ps(w + 32 * h + 8 * i), inverse);
            if (dequant != NULL)
                _mm256_storeu_ps(dequant + 32 * h + 8 * i, _mm256_mul_ps(_mm256_cvtepi32_ps(t[i]), factor));
        }
        const __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(t[0], t[1]), _mm256_packs_epi32(t[2], t[3]));
        const __m256i c = _mm256_add_epi8(_mm256_permutevar8x32_epi32(p, order), _mm256_set1_epi8(1));
        _mm256_storeu_si256((__m256i *)(code + 32 * h), c);
    }
}

static void ternarise(const float *w, int64_t out, int64_t in, int64_t group, bool sparse, int64_t tile0, int64_t tile1,
                      uint8_t *codes, uint8_t *scales, float *dequant) {
    const int64_t blocks = chm_ternary_blocks(in), stride = chm_ternary_scale_stride(in, group);
    if (sparse) {
        portable_ternarise(w, out, in, group, sparse, tile0, tile1, codes, scales, dequant);
        return;
    }
    for (int64_t tile = tile0; tile < tile1; tile++) {
        uint8_t *record = scales + tile * stride, *to = codes + tile * 256 * blocks;
        float row_scale[16];
        portable_measure_tile(w, out, in, group, false, tile, record, row_scale);
        for (int64_t b = 0; b < blocks;) {
            const int fields = b + 4 <= blocks ? 4 : 1;
            uint32_t packed[16][16]; /* [row][step]: four fields of four bytes */
            for (int r = 0; r < 16; r++) {
                const int64_t row = 16 * tile + r;
                uint8_t code[4][64];
                memset(code, 1, sizeof code);
                for (int f = 0; f < fields && row < out; f++) {
                    const int64_t first = 64 * (b + f), n = portable_min(64, in - first), block = first / group;
                    const float scale = (float)record[64 + 16 * block + r] * row_scale[r];
                    const float *v = w + row * in + first;
                    float *d = dequant != NULL ? dequant + row * in + first : NULL;
                    if (n == 64) {
                        ternarise_block(v, scale, code[f], d);
                    } else { /* what pads is zero and becomes code 1 */
                        float padded[64] = {0}, out64[64];
                        memcpy(padded, v, (size_t)n * sizeof *v);
                        ternarise_block(padded, scale, code[f], out64);
                        if (d != NULL) memcpy(d, out64, (size_t)n * sizeof *d);
                    }
                }
                /* a block by itself has its quarters as fields: of them only the first 16 bytes count */
                if (fields == 1)
                    for (int f = 1; f < 4; f++) memcpy(code[f], code[0] + 16 * f, 16);
                UNROLL for (int h = 0; h < 2; h++) {
                    __m256i c = _mm256_loadu_si256((const __m256i *)(code[0] + 32 * h));
                    UNROLL for (int f = 1; f < 4; f++) /* codes are at most 2: no bit crosses into the next byte */
                        c = _mm256_or_si256(
                            c, _mm256_slli_epi16(_mm256_loadu_si256((const __m256i *)(code[f] + 32 * h)), 2 * f));
                    _mm256_storeu_si256((__m256i *)(packed[r] + 8 * h), c);
                }
            }
            for (int j = 0; j < 4 * fields; j++)
                for (int r = 0; r < 16; r++) memcpy(to + 64 * j + 4 * r, &packed[r][j], 4);
            to += 256 * fields;
            b += fields;
        }
    }
}

/* ---- f32 products ------------------------------------------------------------------------------------------------ */

ALWAYS_INLINE float fold(__m256 a, __m256 b) {
    const __m256 eight = _mm256_add_ps(a, b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* lanes 0..n-1 */
ALWAYS_INLINE __m256i lane_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* rows x outs sums at once, 16 lanes each. Masked lanes add a zero, which leaves a sum that began at +0 as it was. */
ALWAYS_INLINE void f32_block(const float *w, const float *x, int64_t in, float *y, int64_t ldy, const int rows,
                             const int outs) {
    __m256 s[3][4][2];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int o = 0; o < outs; o++) s[r][o][0] = s[r][o][1] =
        _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= in; i += 16) UNROLL for (int l = 0; l < 2; l++) {
            __m256 v[3];
            UNROLL for (int r = 0; r < rows; r++) v[r] = _mm256_loadu_ps(x + r * in + i + 8 * l);
            UNROLL for (int o = 0; o < outs; o++) {
                const __m256 u = _mm256_loadu_ps(w + o * in + i + 8 * l);
                UNROLL for (int r = 0; r < rows; r++) s[r][o][l] = _mm256_add_ps(s[r][o][l], _mm256_mul_ps(v[r], u));
            }
        }
    if (i < in) UNROLL for (int l = 0; l < 2; l++) {
            const __m256i mask = lane_mask(in - i - 8 * l);
            UNROLL for (int o = 0; o < outs; o++) {
                const __m256 u = _mm256_maskload_ps(w + o * in + i + 8 * l, mask);
                UNROLL for (int r = 0; r < rows; r++) s[r][o][l] =
                    _mm256_add_ps(s[r][o][l], _mm256_mul_ps(_mm256_maskload_ps(x + r * in + i + 8 * l, mask), u));
            }
        }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int o = 0; o < outs; o++) y[r * ldy + o] =
        fold(s[r][o][0], s[r][o][1]);
}

static void f32_matmul(const float *w, int64_t out0, int64_t out1, int64_t in, const float *x, int64_t rows, float *y,
                       int64_t ldy) {
    int64_t row = 0;
    for (; row + 3 <= rows; row += 3) {
        int64_t o = out0;
        for (; o + 2 <= out1; o += 2) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 3, 2);
        if (o < out1) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 3, 1);
    }
    for (; row < rows; row++) {
        int64_t o = out0;
        for (; o + 4 <= out1; o += 4) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 1, 4);
        for (; o < out1; o++) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 1, 1);
    }
}

/* ---- Attention, one row ------------------------------------------------------------------------------------------ */

/* weight[e] = scale * q.k[e] for `count` entries at once, 16 lanes each; q is loaded once for all */
ALWAYS_INLINE void attend_dots(const float *q, const float *const *k, int64_t dk, float scale, float *weight,
                               const int count) {
    __m256 s[4][2];
    UNROLL for (int e = 0; e < count; e++) s[e][0] = s[e][1] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= dk; i += 16) UNROLL for (int l = 0; l < 2; l++) {
            const __m256 u = _mm256_loadu_ps(q + i + 8 * l);
            UNROLL for (int e = 0; e < count; e++) s[e][l] =
                _mm256_add_ps(s[e][l], _mm256_mul_ps(u, _mm256_loadu_ps(k[e] + i + 8 * l)));
        }
    if (i < dk) UNROLL for (int l = 0; l < 2; l++) {
            const __m256i mask = lane_mask(dk - i - 8 * l);
            const __m256 u = _mm256_maskload_ps(q + i + 8 * l, mask);
            UNROLL for (int e = 0; e < count; e++) s[e][l] =
                _mm256_add_ps(s[e][l], _mm256_mul_ps(u, _mm256_maskload_ps(k[e] + i + 8 * l, mask)));
        }
    UNROLL for (int e = 0; e < count; e++) weight[e] = scale * fold(s[e][0], s[e][1]);
}

/* 64 value columns have their sums in 8 registers */
ALWAYS_INLINE void attend_columns(const float *weight, const float *const *v, int64_t n, int64_t first, float factor,
                                  float *o, const int vectors) {
    __m256 s[8];
    UNROLL for (int j = 0; j < vectors; j++) s[j] = _mm256_setzero_ps();
    for (int64_t e = 0; e < n; e++) {
        const __m256 w = _mm256_broadcast_ss(weight + e);
        const float *from = v[e] + first;
        UNROLL for (int j = 0; j < vectors; j++) s[j] =
            _mm256_add_ps(s[j], _mm256_mul_ps(w, _mm256_loadu_ps(from + 8 * j)));
    }
    UNROLL for (int j = 0; j < vectors; j++)
        _mm256_storeu_ps(o + first + 8 * j, _mm256_mul_ps(s[j], _mm256_set1_ps(factor)));
}

static void attend(const float *q, const float *const *k, const float *const *v, int64_t n, int64_t dk, int64_t dv,
                   float scale, float *weight, float *o) {
    int64_t e = 0;
    for (; e + 4 <= n; e += 4) attend_dots(q, k + e, dk, scale, weight + e, 4);
    for (; e < n; e++) attend_dots(q, k + e, dk, scale, weight + e, 1);
    const float factor = 1.0f / portable_softmax_weights(weight, n);
    int64_t j = 0;
    for (; j + 64 <= dv; j += 64) attend_columns(weight, v, n, j, factor, o, 8);
    for (; j + 16 <= dv; j += 16) attend_columns(weight, v, n, j, factor, o, 2);
    if (j < dv) portable_weighted_sum(weight, v, n, j, (int)(dv - j), factor, o);
}

static const struct chm_backend_level *const levels[] = {&chm_avx_vnni};

static const struct chm_backend_ops avx2_ops = {
    .size = sizeof(struct chm_backend_ops),
    .rank = AVX2_RANK,
    .kernels =
        {
            .size = sizeof(struct chm_kernels),
            .quantise = quantise,
            .t2_matmul = t2_matmul,
            .int8_matmul = int8_matmul,
            .f32_matmul = f32_matmul,
            .rmsnorm = portable_rmsnorm,
            .l2norm = portable_l2norm,
            .unary = portable_unary,
            .swiglu = portable_swiglu,
            .logsumexp = portable_logsumexp,
            .delta_step = portable_delta_step,
            .delta_read = portable_delta_read,
            .ternarise = ternarise,
            .dequantise = portable_dequantise,
            .unary_backward = portable_unary_backward,
            .swiglu_backward = portable_swiglu_backward,
            .rmsnorm_backward = portable_rmsnorm_backward,
            .l2norm_backward = portable_l2norm_backward,
            .softmax_xent = portable_softmax_xent,
            .adamw = portable_adamw,
            .delta_chunk = chm_avx2_delta_chunk,
            .delta_chunk_read = chm_avx2_delta_chunk_read,
            .delta_chunk_backward = chm_avx2_delta_chunk_backward,
            .attend = attend,
            .attend_chunk = chm_avx2_attend_chunk,
            .attend_chunk_backward = chm_avx2_attend_chunk_backward,
            .outer_step = portable_outer_step,
            .block_matmul = chm_avx2_block_matmul,
        },
    .level_count = sizeof levels / sizeof levels[0],
    .levels = levels,
};

#define PLUGIN(...) CHM_PLUGIN(__VA_ARGS__) /* the name may be a macro */
PLUGIN(AVX2_NAME, .kind = CHM_KIND_BACKEND, .version = "1.0.0", .licence = "Apache-2.0",
       .summary = "Kernels for x86 with AVX2; with AVX-VNNI its byte dot products", .cpu = CHM_CPU_AVX2 | CHM_CPU_FMA,
       .ops = &avx2_ops);
