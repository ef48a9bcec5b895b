/*
 * neon.h: what the sources of the neon backend share.
 */
#ifndef CHM_BACKENDS_NEON_H
#define CHM_BACKENDS_NEON_H

#include "portable.h"

#include <arm_neon.h>

/* Constant arguments decide how these are unrolled, so they must be inlined whatever the compiler thinks of it. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* The level for CPUs with the byte dot product, neon_dotprod.c */
extern const struct chm_backend_level chm_neon_dotprod;

#endif
