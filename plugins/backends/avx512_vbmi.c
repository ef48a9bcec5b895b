/* avx512_vbmi.c: the products of the avx512 backend that take codes apart with permutations of bytes (AVX512-VBMI). */
#define AVX512_VNNI
#define AVX512_VBMI
#include "avx512_ternary.h"

TERNARY_KERNEL(t5, CHM_ENCODING_T5)
TERNARY_KERNEL(sherry, CHM_ENCODING_SHERRY)

const struct chm_backend_level chm_avx512_vbmi = {
    .size = sizeof(struct chm_backend_level),
    .name = AVX512_VBMI_NAME,
    .cpu = AVX512_VBMI_CPU,
    .kernels = {.size = sizeof(struct chm_kernels), .t5_matmul = t5_matmul, .sherry_matmul = sherry_matmul},
};
