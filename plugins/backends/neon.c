/*
 * neon.c: the backend for 64-bit ARM. Every such CPU has these vectors, so scalar is already compiled for them and
 * keeps the slots whose loops compilers vectorise; here are the others, written with intrinsics. All of it gives
 * scalar's bytes: integer dots are exact, and every float result goes through the same operations in the same order.
 */
#include "neon_products.h"

/* ---- Quantise ---------------------------------------------------------------------------------------------------- */

ALWAYS_INLINE void quantise_block(const float *v, int8_t *q, float *scale, int32_t *sum) {
    const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
    uint32x4_t top = vdupq_n_u32(0);
    float32x4_t x[16];
    UNROLL for (int i = 0; i < 16; i++) {
        x[i] = vld1q_f32(v + 4 * i);
        top = vmaxq_u32(top, vandq_u32(vreinterpretq_u32_f32(x[i]), magnitude));
    }
    const uint32_t bits = vmaxvq_u32(top);
    const float absmax = portable_float(bits);
    if (bits >= 0x7f800000u || absmax < PORTABLE_ABSMAX_MIN) {
        memset(q, 0, 64);
        *scale = bits >= 0x7f800000u ? NAN : 0.0f;
        *sum = 0;
        return;
    }
    const float inverse = 127.0f / absmax;
    int32x4_t total = vdupq_n_s32(0);
    UNROLL for (int h = 0; h < 4; h++) {
        int32x4_t n[4];
        UNROLL for (int i = 0; i < 4; i++) {
            n[i] = vcvtnq_s32_f32(vmulq_n_f32(x[4 * h + i], inverse)); /* nearest, ties to even */
            total = vaddq_s32(total, n[i]);
        }
        const int16x8_t low = vcombine_s16(vmovn_s32(n[0]), vmovn_s32(n[1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(n[2]), vmovn_s32(n[3]));
        vst1q_s8(q + 16 * h, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
    *scale = absmax / 127.0f;
    *sum = vaddvq_s32(total);
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

static const struct chm_backend_level *const levels[] = {&chm_neon_dotprod};

static const struct chm_backend_ops neon_ops = {
    .size = sizeof(struct chm_backend_ops),
    .rank = 200,
    .kernels = {.size = sizeof(struct chm_kernels),
                .quantise = quantise,
                .t2_matmul = t2_matmul,
                .int8_matmul = int8_matmul,
                .t5_matmul = t5_matmul,
                .sherry_matmul = sherry_matmul},
    .level_count = sizeof levels / sizeof levels[0],
    .levels = levels,
};

CHM_PLUGIN(neon, .kind = CHM_KIND_BACKEND, .version = "1.0.0", .licence = "Apache-2.0",
           .summary = "Kernels for 64-bit ARM; with DotProd its byte dot products", .cpu = CHM_CPU_NEON,
           .ops = &neon_ops);
