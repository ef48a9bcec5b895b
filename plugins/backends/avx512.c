/*
 * avx512.c: the backend for x86 with AVX-512 (F, BW, DQ, VL). A 512-bit register is the 16 lanes of the numeric
 * contract, so most slots are portable.h compiled for it; what moves codes and bytes is written with intrinsics. All of
 * it gives scalar's bytes: integer dots are exact, and every float result goes through the same operations in the same
 * order, none of them fused.
 */
#include "avx512_products.h"
#include "avx512_train.h"

/* ---- Quantise ---------------------------------------------------------------------------------------------------- */

ALWAYS_INLINE void quantise_block(const __m512 x[4], int8_t *q, float *scale, int32_t *sum) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i top = _mm512_and_si512(_mm512_castps_si512(x[0]), magnitude);
    UNROLL for (int i = 1; i < 4; i++) top =
        _mm512_max_epu32(top, _mm512_and_si512(_mm512_castps_si512(x[i]), magnitude));
    const __m256i half = _mm256_max_epu32(_mm512_castsi512_si256(top), _mm512_extracti64x4_epi64(top, 1));
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1));
    const uint32_t bits = (uint32_t)_mm_cvtsi128_si32(most);
    const float absmax = portable_float(bits);
    if (bits >= 0x7f800000u || absmax < PORTABLE_ABSMAX_MIN) {
        _mm512_storeu_si512(q, _mm512_setzero_si512());
        *scale = bits >= 0x7f800000u ? NAN : 0.0f;
        *sum = 0;
        return;
    }
    const __m512 inverse = _mm512_set1_ps(127.0f / absmax);
    __m512i n[4];
    UNROLL for (int i = 0; i < 4; i++) n[i] = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse)); /* ties to even */
    /* packing works in quarters of a register: quarter l gets dword l of n[0], n[1], n[2], n[3] */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i p = _mm512_packs_epi16(_mm512_packs_epi32(n[0], n[1]), _mm512_packs_epi32(n[2], n[3]));
    _mm512_storeu_si512(q, _mm512_permutexvar_epi32(order, p));
    const __m512i all = _mm512_add_epi32(_mm512_add_epi32(n[0], n[1]), _mm512_add_epi32(n[2], n[3]));
    const __m256i t = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    __m128i total = _mm_add_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
    total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0x4e));
    total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0xb1));
    *scale = absmax / 127.0f;
    *sum = _mm_cvtsi128_si32(total);
}

static void quantise(const float *x, int64_t rows, int64_t width, int8_t *q, float *scale, int32_t *sum) {
    const int64_t blocks = portable_blocks(width);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t b = 0; b < blocks; b++) {
            const float *v = x + row * width + 64 * b;
            const int64_t n = width - 64 * b, at = row * blocks + b;
            __m512 block[4];
            if (n >= 64)
                UNROLL for (int i = 0; i < 4; i++) block[i] = _mm512_loadu_ps(v + 16 * i);
            else /* what pads is zero */
                UNROLL for (int i = 0; i < 4; i++) block[i] =
                    n > 16 * i ? _mm512_maskz_loadu_ps(lanes(n - 16 * i), v + 16 * i) : _mm512_setzero_ps();
            quantise_block(block, q + 64 * at, scale + at, sum + at);
        }
}

/* ---- Ternarise --------------------------------------------------------------------------------------------------- */

/* n <= 64 weights to codes 0..2 (1 where there are none), and to trit * scale */
ALWAYS_INLINE __m512i ternarise_block(const float *w, int64_t n, float scale, float *dequant) {
    const __m512 inverse = _mm512_set1_ps(1.0f / scale), factor = _mm512_set1_ps(scale);
    const __m512 half = _mm512_set1_ps(0.5f), minus_half = _mm512_set1_ps(-0.5f);
    uint64_t above = 0, below = 0;
    UNROLL for (int i = 0; i < 4; i++) {
        if (n <= 16 * i) continue;
        const __mmask16 real = lanes(n - 16 * i);
        const __m512 t = _mm512_mul_ps(_mm512_maskz_loadu_ps(real, w + 16 * i), inverse);
        const __mmask16 up = _mm512_cmp_ps_mask(t, half, _CMP_GT_OQ);
        const __mmask16 down = _mm512_cmp_ps_mask(t, minus_half, _CMP_LT_OQ);
        above |= (uint64_t)up << 16 * i;
        below |= (uint64_t)down << 16 * i;
        if (dequant != NULL) {
            const __m512 trit =
                _mm512_mask_blend_ps(down, _mm512_maskz_mov_ps(up, _mm512_set1_ps(1.0f)), _mm512_set1_ps(-1.0f));
            _mm512_mask_storeu_ps(dequant + 16 * i, real, _mm512_mul_ps(trit, factor));
        }
    }
    const __m512i code = _mm512_mask_blend_epi8((__mmask64)above, _mm512_set1_epi8(1), _mm512_set1_epi8(2));
    return _mm512_mask_blend_epi8((__mmask64)below, code, _mm512_setzero_si512());
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
            const bool whole = b + 4 <= blocks;
            const int fields = whole ? 4 : 1;
            __m512i packed[16]; /* of a row: 16 steps of four bytes, four fields in each */
            for (int r = 0; r < 16; r++) {
                const int64_t row = 16 * tile + r;
                packed[r] = _mm512_set1_epi8(0x55);
                if (row >= out) continue;
                __m512i code[4];
                for (int f = 0; f < fields; f++) {
                    const int64_t first = 64 * (b + f), n = portable_min(64, in - first);
                    const uint8_t *group_scale = record + 64 + 16 * (first / group);
                    code[f] = ternarise_block(w + row * in + first, n, (float)group_scale[r] * row_scale[r],
                                              dequant != NULL ? dequant + row * in + first : NULL);
                }
                /* a block by itself has its quarters as fields: of them only the first 16 bytes count */
                for (int f = fields; f < 4; f++)
                    code[f] = _mm512_castsi128_si512(f == 1   ? _mm512_extracti32x4_epi32(code[0], 1)
                                                     : f == 2 ? _mm512_extracti32x4_epi32(code[0], 2)
                                                              : _mm512_extracti32x4_epi32(code[0], 3));
                /* codes are at most 2: no bit crosses into the next byte */
                const __m512i low = _mm512_or_si512(code[0], _mm512_slli_epi16(code[1], 2));
                const __m512i high = _mm512_or_si512(code[2], _mm512_slli_epi16(code[3], 2));
                packed[r] = _mm512_or_si512(low, _mm512_slli_epi16(high, 4));
            }
            transpose16(packed);
            for (int j = 0; j < 4 * fields; j++) _mm512_storeu_si512(to + 64 * j, packed[j]);
            to += 256 * fields;
            b += fields;
        }
    }
}

/* ---- f32 products ------------------------------------------------------------------------------------------------ */

/* four sums in 16 lanes each, folded 8, 4, 2, 1 apart */
ALWAYS_INLINE __m128 fold4(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 two = _mm512_add_ps(four, _mm512_shuffle_ps(four, four, 0x4e));
    const __m512 one = _mm512_add_ps(two, _mm512_shuffle_ps(two, two, 0xb1));
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    return _mm_castsi128_ps(_mm512_castsi512_si128(_mm512_permutexvar_epi32(first, _mm512_castps_si512(one))));
}

ALWAYS_INLINE void f32_step(const float *w, const float *x, int64_t in, __m512 s[4][4], const int rows, const int outs,
                            const bool whole, __mmask16 real) {
    __m512 v[4];
    UNROLL for (int r = 0; r < rows; r++) v[r] = load(x + r * in, whole, real);
    UNROLL for (int o = 0; o < outs; o++) {
        const __m512 u = load(w + o * in, whole, real);
        UNROLL for (int r = 0; r < rows; r++) s[r][o] = _mm512_add_ps(s[r][o], _mm512_mul_ps(v[r], u));
    }
}

/* rows x outs sums at once. Masked lanes add a zero, which leaves a sum that began at +0 as it was. */
ALWAYS_INLINE void f32_block(const float *w, const float *x, int64_t in, float *y, int64_t ldy, const int rows,
                             const int outs) {
    __m512 s[4][4];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int o = 0; o < 4; o++) s[r][o] = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= in; i += 16) f32_step(w + i, x + i, in, s, rows, outs, true, 0xffff);
    if (i < in) f32_step(w + i, x + i, in, s, rows, outs, false, lanes(in - i));
    UNROLL for (int r = 0; r < rows; r++) {
        const __m128 all = fold4(s[r][0], s[r][1], s[r][2], s[r][3]);
        if (outs == 4)
            _mm_storeu_ps(y + r * ldy, all);
        else
            _mm_store_ss(y + r * ldy, all);
    }
}

static void f32_matmul(const float *w, int64_t out0, int64_t out1, int64_t in, const float *x, int64_t rows, float *y,
                       int64_t ldy) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        int64_t o = out0;
        for (; o + 4 <= out1; o += 4) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 4, 4);
        for (; o < out1; o++) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 4, 1);
    }
    for (; row < rows; row++) {
        int64_t o = out0;
        for (; o + 4 <= out1; o += 4) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 1, 4);
        for (; o < out1; o++) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 1, 1);
    }
}

/* ---- The delta rule, one row -------------------------------------------------------------------------------------
 *
 * As portable_delta_step(), 64 value columns at a time. The decayed state is made twice, once for k S and once for the
 * update, instead of being stored in between: the same product rounds to the same number.
 */

ALWAYS_INLINE void step_strip(float *S, int64_t dk, int64_t dv, float decay, const float *k, const float *q,
                              const float *v, float beta, float scale, float *o, const int vectors, const bool whole,
                              __mmask16 m) {
    const __m512 a = _mm512_set1_ps(decay);
    __m512 sum[4], u[4];
    UNROLL for (int n = 0; n < vectors; n++) sum[n] = _mm512_setzero_ps();
    for (int64_t i = 0; i < dk; i++) {
        const __m512 ki = _mm512_set1_ps(k[i]);
        UNROLL for (int n = 0; n < vectors; n++) {
            const __m512 d = _mm512_mul_ps(load(S + i * dv + 16 * n, whole, m), a);
            sum[n] = _mm512_add_ps(sum[n], _mm512_mul_ps(ki, d));
        }
    }
    UNROLL for (int n = 0; n < vectors; n++) {
        u[n] = _mm512_mul_ps(_mm512_set1_ps(beta), _mm512_sub_ps(load(v + 16 * n, whole, m), sum[n]));
        sum[n] = _mm512_setzero_ps();
    }
    for (int64_t i = 0; i < dk; i++) {
        const __m512 ki = _mm512_set1_ps(k[i]), qi = _mm512_set1_ps(q[i]);
        UNROLL for (int n = 0; n < vectors; n++) {
            float *at = S + i * dv + 16 * n;
            const __m512 d = _mm512_add_ps(_mm512_mul_ps(load(at, whole, m), a), _mm512_mul_ps(ki, u[n]));
            store(at, whole, m, d);
            sum[n] = _mm512_add_ps(sum[n], _mm512_mul_ps(qi, d));
        }
    }
    if (o == NULL) return;
    UNROLL for (int n = 0; n < vectors; n++) store(o + 16 * n, whole, m, _mm512_mul_ps(_mm512_set1_ps(scale), sum[n]));
}

static void delta_step(float *S, int64_t dk, int64_t dv, const float *q, const float *k, const float *v,
                       float log_alpha, float beta, float scale, float *o) {
    const float a = portable_exp(log_alpha);
    const float *ask = o != NULL ? q : k; /* without a question the sums are made and not used */
    int64_t j = 0;
    for (; j + 64 <= dv; j += 64)
        step_strip(S + j, dk, dv, a, k, ask, v + j, beta, scale, o != NULL ? o + j : NULL, 4, true, 0xffff);
    for (; j + 32 <= dv; j += 32)
        step_strip(S + j, dk, dv, a, k, ask, v + j, beta, scale, o != NULL ? o + j : NULL, 2, true, 0xffff);
    for (; j < dv; j += 16)
        step_strip(S + j, dk, dv, a, k, ask, v + j, beta, scale, o != NULL ? o + j : NULL, 1, false, lanes(dv - j));
}

ALWAYS_INLINE void read_strip(const float *S, int64_t dk, int64_t dv, const float *q, float scale, float *o,
                              const int vectors, const bool whole, __mmask16 m) {
    __m512 sum[4];
    UNROLL for (int n = 0; n < vectors; n++) sum[n] = _mm512_setzero_ps();
    for (int64_t i = 0; i < dk; i++) {
        const __m512 qi = _mm512_set1_ps(q[i]);
        UNROLL for (int n = 0; n < vectors; n++) sum[n] =
            _mm512_add_ps(sum[n], _mm512_mul_ps(qi, load(S + i * dv + 16 * n, whole, m)));
    }
    UNROLL for (int n = 0; n < vectors; n++) store(o + 16 * n, whole, m, _mm512_mul_ps(_mm512_set1_ps(scale), sum[n]));
}

static void delta_read(const float *S, int64_t dk, int64_t dv, const float *q, float scale, float *o) {
    int64_t j = 0;
    for (; j + 64 <= dv; j += 64) read_strip(S + j, dk, dv, q, scale, o + j, 4, true, 0xffff);
    for (; j + 32 <= dv; j += 32) read_strip(S + j, dk, dv, q, scale, o + j, 2, true, 0xffff);
    for (; j < dv; j += 16) read_strip(S + j, dk, dv, q, scale, o + j, 1, false, lanes(dv - j));
}

static const struct chm_backend_level *const levels[] = {&chm_avx512_vbmi, &chm_avx512_vnni, &chm_avx512_bf16};

static const struct chm_backend_ops avx512_ops = {
    .size = sizeof(struct chm_backend_ops),
    .rank = AVX512_RANK,
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
            .delta_step = delta_step,
            .delta_read = delta_read,
            .ternarise = ternarise,
            .dequantise = portable_dequantise,
            .unary_backward = portable_unary_backward,
            .swiglu_backward = portable_swiglu_backward,
            .rmsnorm_backward = portable_rmsnorm_backward,
            .l2norm_backward = portable_l2norm_backward,
            .softmax_xent = portable_softmax_xent,
            .adamw = portable_adamw,
            .delta_chunk = chm_avx512_delta_chunk,
            .delta_chunk_read = chm_avx512_delta_chunk_read,
            .delta_chunk_backward = chm_avx512_delta_chunk_backward,
            .outer_step = portable_outer_step,
            .block_matmul = chm_avx512_block_matmul,
        },
    .level_count = sizeof levels / sizeof levels[0],
    .levels = levels,
};

#define PLUGIN(...) CHM_PLUGIN(__VA_ARGS__) /* the name may be a macro */
PLUGIN(AVX512_NAME, .kind = CHM_KIND_BACKEND, .version = "1.0.0", .licence = "Apache-2.0",
       .summary = "Kernels for x86 with AVX-512; with VNNI and BF16 their dot products", .cpu = AVX512_CPU,
       .ops = &avx512_ops);
