/*
 * avx2.h: what the sources of the avx2 backend share.
 */
#ifndef CHM_BACKENDS_AVX2_H
#define CHM_BACKENDS_AVX2_H

#include "portable.h"

#include <immintrin.h>

/* Constant arguments decide how these are unrolled, so they must be inlined whatever the compiler thinks of it. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Keeps a running sum running: gcc would collect the terms of an unrolled integer sum, spill them all and add them up
 * in the end. */
#define KEEP(v) __asm__("" : "+x"(v))

/* A build with CHM_AVX_VNNI_EMULATED is for tests: a backend of another name, whose level runs on any CPU with AVX2. */
#if defined(CHM_AVX_VNNI_EMULATED)
#define AVX2_NAME     avx2_emulated
#define AVX2_RANK     (-1) /* never chosen unless it is forced */
#define AVX_VNNI_NAME "avx_vnni_emulated"
#define AVX_VNNI_CPU  0
#else
#define AVX2_NAME     avx2
#define AVX2_RANK     200
#define AVX_VNNI_NAME "avx_vnni"
#define AVX_VNNI_CPU  CHM_CPU_AVX_VNNI
#endif

/* The level for CPUs with the byte dot product in its 256-bit form, avx2_vnni.c */
extern const struct chm_backend_level chm_avx_vnni;

#endif
