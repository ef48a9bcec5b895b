/*
 * avx2_vnni.c: the products of the avx2 backend for CPUs with the byte dot product but without AVX-512 (AVX-VNNI). A
 * build with CHM_AVX_VNNI_EMULATED makes the dot product of older instructions.
 */
#define AVX_VNNI
#include "avx2.h"

#if defined(CHM_AVX_VNNI_EMULATED)
/* maddubs would saturate: the two halves of each pair apart */
ALWAYS_INLINE __m256i byte_dot(__m256i sum, __m256i u, __m256i s) {
    const __m256i one = _mm256_set1_epi16(1), even = _mm256_set1_epi16(0xff);
    const __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(u, even), s);
    const __m256i b = _mm256_maddubs_epi16(_mm256_andnot_si256(even, u), s);
    return _mm256_add_epi32(sum, _mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one)));
}
#define BYTE_DOT(sum, u, s) byte_dot(sum, u, s)
#else
#define BYTE_DOT(sum, u, s) _mm256_dpbusd_avx_epi32(sum, u, s)
#endif
#include "avx2_products.h"

const struct chm_backend_level chm_avx_vnni = {
    .size = sizeof(struct chm_backend_level),
    .name = AVX_VNNI_NAME,
    .cpu = AVX_VNNI_CPU,
    .kernels = {.size = sizeof(struct chm_kernels), .t2_matmul = t2_matmul, .int8_matmul = int8_matmul},
};
