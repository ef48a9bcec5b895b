/*
 * avx512.h: what the sources of the avx512 backend share. A build with CHM_AVX512_EMULATED takes the intrinsics from
 * the header of that name instead of the compiler, so that tests can run them on a CPU without AVX-512.
 */
#ifndef CHM_BACKENDS_AVX512_H
#define CHM_BACKENDS_AVX512_H

#include "portable.h"

#if defined(CHM_AVX512_EMULATED)
#include CHM_AVX512_EMULATED
#else
#include <immintrin.h>
#define AVX512_NAME      avx512
#define AVX512_RANK      500
#define AVX512_CPU       CHM_CPU_AVX512
#define AVX512_VNNI_NAME "avx512_vnni"
#define AVX512_VNNI_CPU  CHM_CPU_AVX512_VNNI
#define AVX512_VBMI_NAME "avx512_vbmi"
#define AVX512_VBMI_CPU  (CHM_CPU_AVX512_VNNI | CHM_CPU_AVX512_VBMI)
#define AVX512_BF16_NAME "avx512_bf16"
#define AVX512_BF16_CPU  CHM_CPU_AVX512_BF16
#define BF16_OF(v)       ((__m512bh)(v)) /* the same bits */
#define BF16_BITS(v)     ((__m512i)(v))
/* Keeps a running sum running: gcc would collect the terms of an unrolled integer sum, spill them all and add them up
 * in the end. */
#define KEEP(v)          __asm__("" : "+v"(v))
/* sum + the dot of four bytes in each lane, `four` the same four everywhere, from memory: gcc 12 would load them into a
 * register first, and copy every sum it keeps. */
#define DOT_BROADCAST(sum, codes, four)                                                                                \
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*(const int32_t *)(const void *)(four)))
/* Constant arguments decide how the functions of these sources are unrolled. */
#if defined(__clang__)
#define UNROLL  _Pragma("clang loop unroll(full)")
#define UNROLL4 _Pragma("clang loop unroll_count(4)")
#else
#define UNROLL  _Pragma("GCC unroll 16")
#define UNROLL4 _Pragma("GCC unroll 4")
#endif
#endif

/* They must be inlined whatever the compiler thinks of it. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* The level for CPUs with the byte dot product, avx512_vnni.c */
extern const struct chm_backend_level chm_avx512_vnni;
/* with that and permutations of bytes, avx512_vbmi.c */
extern const struct chm_backend_level chm_avx512_vbmi;
/* and with the bf16 dot product, avx512_bf16.c */
extern const struct chm_backend_level chm_avx512_bf16;

/* the lowest n of 16 lanes */
ALWAYS_INLINE __mmask16 lanes(int64_t n) { return (__mmask16)(n >= 16 ? 0xffff : (1 << n) - 1); }

/* 16 floats, or those in `m`; the compilers do not see that a mask is all ones */
ALWAYS_INLINE __m512 load(const float *p, const bool whole, __mmask16 m) {
    return whole ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(m, p);
}
ALWAYS_INLINE void store(float *p, const bool whole, __mmask16 m, __m512 v) {
    if (whole)
        _mm512_storeu_ps(p, v);
    else
        _mm512_mask_storeu_ps(p, m, v);
}

/* 16 x 16 dwords: column j of the rows becomes v[j] */
ALWAYS_INLINE void transpose16(__m512i v[16]) {
    __m512i t[16], u[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) { /* quarter l of u[i + c]: column 4l + c of rows i..i+3 */
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    UNROLL for (int c = 0; c < 4; c++) {
        const __m512i a = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x88), b = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xdd);
        const __m512i d = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x88);
        const __m512i e = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xdd);
        v[c] = _mm512_shuffle_i32x4(a, d, 0x88);
        v[4 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
        v[8 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
        v[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
    }
}

#endif
