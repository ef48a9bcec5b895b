/*
 * avx512_emulated.h: the intrinsics of plugins/backends/avx512*.c for CPUs without AVX-512, from SIMDe (Debian:
 * libsimde-dev), and those that its version 0.7.4 lacks from the loops below. For tests only: it shows what the kernels
 * compute, not what instructions the compiler makes of them.
 */
#ifndef CHM_TESTS_AVX512_EMULATED_H
#define CHM_TESTS_AVX512_EMULATED_H

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wunknown-warning-option"
#pragma GCC diagnostic ignored "-Wpedantic"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>
#include <immintrin.h>

#define AVX512_NAME                     avx512_emulated
#define AVX512_RANK                     (-1) /* never chosen unless it is forced */
#define AVX512_CPU                      (CHM_CPU_AVX2 | CHM_CPU_FMA)
#define AVX512_VNNI_NAME                "avx512_vnni_emulated"
#define AVX512_VNNI_CPU                 0
#define AVX512_VBMI_NAME                "avx512_vbmi_emulated"
#define AVX512_VBMI_CPU                 0
#define AVX512_BF16_NAME                "avx512_bf16_emulated"
#define AVX512_BF16_CPU                 0
#define BF16_OF(v)                      (v)
#define BF16_BITS(v)                    (v)
#define KEEP(v)                         ((void)0)
#define DOT_BROADCAST(sum, codes, four) ((sum) = _mm512_dpbusd_epi32(sum, codes, broadcast4(four)))
#define UNROLL                          /* slow to compile */
#define UNROLL4

#define EMULATED static inline __attribute__((always_inline))

typedef union emulated512 {
    simde__m512 f;
    simde__m512i i;
    float f32[16];
    int32_t i32[16];
    uint16_t u16[32];
    simde__m256 f256[2];
} emulated512;

EMULATED simde__m256 emulated_extractf32x8_ps(simde__m512 a, int half) {
    const emulated512 v = {.f = a};
    return v.f256[half];
}
/* nearest, ties to even, in the rounding mode that programs start with */
EMULATED simde__m512i emulated_cvtps_epi32(simde__m512 a) {
    const emulated512 v = {.f = a};
    emulated512 r;
    for (int l = 0; l < 16; l++) r.i32[l] = (int32_t)__builtin_nearbyintf(v.f32[l]);
    return r.i;
}
EMULATED simde__m512 emulated_cvtepi32_ps(simde__m512i a) {
    const emulated512 v = {.i = a};
    emulated512 r;
    for (int l = 0; l < 16; l++) r.f32[l] = (float)v.i32[l];
    return r.f;
}
EMULATED simde__m512i emulated_cvtepu8_epi32(__m128i a) {
    uint8_t bytes[16];
    emulated512 r;
    __builtin_memcpy(bytes, &a, sizeof bytes);
    for (int l = 0; l < 16; l++) r.i32[l] = bytes[l];
    return r.i;
}
EMULATED simde__m512i emulated_srai_epi32(simde__m512i a, int bits) {
    const emulated512 v = {.i = a};
    emulated512 r;
    for (int l = 0; l < 16; l++) r.i32[l] = v.i32[l] >> bits;
    return r.i;
}
/* What a mask leaves out is not touched: nothing is read or written there. */
EMULATED simde__m512 emulated_maskz_loadu_ps(uint16_t mask, const float *p) {
    emulated512 r;
    for (int l = 0; l < 16; l++) {
        r.f32[l] = 0.0f;
        if (mask >> l & 1) __builtin_memcpy(&r.f32[l], p + l, sizeof *p);
    }
    return r.f;
}
EMULATED void emulated_mask_storeu_ps(float *p, uint16_t mask, simde__m512 a) {
    const emulated512 v = {.f = a};
    for (int l = 0; l < 16; l++)
        if (mask >> l & 1) __builtin_memcpy(p + l, &v.f32[l], sizeof *p);
}

/* to bf16, nearest even: `low` becomes the lower half of the register */
EMULATED simde__m512i emulated_cvtne2ps_pbh(simde__m512 high, simde__m512 low) {
    const emulated512 part[2] = {{.f = low}, {.f = high}};
    emulated512 r;
    for (int l = 0; l < 32; l++) {
        const uint32_t bits = (uint32_t)part[l / 16].i32[l % 16];
        const bool nan = (bits & 0x7fffffff) > 0x7f800000;
        r.u16[l] = (uint16_t)(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return r.i;
}
EMULATED simde__m512 emulated_dpbf16_ps(simde__m512 sum, simde__m512i a, simde__m512i b) {
    const emulated512 x = {.i = a}, y = {.i = b};
    emulated512 r = {.f = sum};
    for (int l = 0; l < 16; l++)
        for (int h = 1; h >= 0; h--) {
            emulated512 p;
            p.i32[0] = (int32_t)((uint32_t)x.u16[2 * l + h] << 16);
            p.i32[1] = (int32_t)((uint32_t)y.u16[2 * l + h] << 16);
            r.f32[l] += p.f32[0] * p.f32[1];
        }
    return r.f;
}
EMULATED simde__m512i emulated_permutexvar_epi16(simde__m512i order, simde__m512i a) {
    const emulated512 o = {.i = order}, v = {.i = a};
    emulated512 r;
    for (int l = 0; l < 32; l++) r.u16[l] = v.u16[o.u16[l] & 31];
    return r.i;
}

/* SIMDe's own, but as calls: inlined hundreds of times they take minutes to compile. */
#define CALLED static __attribute__((noinline, unused))
CALLED simde__m512i emulated_dpbusd_epi32(simde__m512i sum, simde__m512i a, simde__m512i b) {
    return simde_mm512_dpbusd_epi32(sum, a, b);
}
CALLED simde__m512i emulated_maddubs_epi16(simde__m512i a, simde__m512i b) { return simde_mm512_maddubs_epi16(a, b); }
CALLED simde__m512i emulated_madd_epi16(simde__m512i a, simde__m512i b) { return simde_mm512_madd_epi16(a, b); }

/* NOLINTBEGIN(bugprone-reserved-identifier): these are the intrinsics' own names, which avx512.c calls */
#undef _mm512_dpbusd_epi32
#undef _mm512_maddubs_epi16
#undef _mm512_madd_epi16 /* an alias of the masked form there */
#define _mm512_dpbusd_epi32(sum, a, b) emulated_dpbusd_epi32(sum, a, b)
#define _mm512_maddubs_epi16(a, b)     emulated_maddubs_epi16(a, b)
#define _mm512_madd_epi16(a, b)        emulated_madd_epi16(a, b)
#undef _mm512_shuffle_f32x4 /* no alias there */
#define _mm512_shuffle_f32x4(a, b, quarters) simde_mm512_shuffle_f32x4(a, b, quarters)
#undef _mm512_cvtne2ps_pbh
#undef _mm512_dpbf16_ps
#undef _mm512_permutexvar_epi16
#define _mm512_cvtne2ps_pbh(high, low)     emulated_cvtne2ps_pbh(high, low)
#define _mm512_dpbf16_ps(sum, a, b)        emulated_dpbf16_ps(sum, a, b)
#define _mm512_permutexvar_epi16(order, a) emulated_permutexvar_epi16(order, a)
#undef _mm512_extractf32x8_ps
#undef _mm512_cvtps_epi32
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtepu8_epi32
#undef _mm512_srai_epi32
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#define _mm512_extractf32x8_ps(a, half)   emulated_extractf32x8_ps(a, half)
#define _mm512_cvtps_epi32(a)             emulated_cvtps_epi32(a)
#define _mm512_cvtepi32_ps(a)             emulated_cvtepi32_ps(a)
#define _mm512_cvtepu8_epi32(a)           emulated_cvtepu8_epi32(a)
#define _mm512_srai_epi32(a, bits)        emulated_srai_epi32(a, bits)
#define _mm512_maskz_loadu_ps(mask, p)    emulated_maskz_loadu_ps(mask, p)
#define _mm512_mask_storeu_ps(p, mask, a) emulated_mask_storeu_ps(p, mask, a)
/* NOLINTEND(bugprone-reserved-identifier) */

#pragma GCC diagnostic pop
#endif
