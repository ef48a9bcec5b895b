/* avx512_vnni.c: the products of the avx512 backend for CPUs with the byte dot product (AVX512-VNNI). */
#define AVX512_VNNI
#include "avx512_products.h"

const struct chm_backend_level chm_avx512_vnni = {
    .size = sizeof(struct chm_backend_level),
    .name = AVX512_VNNI_NAME,
    .cpu = AVX512_VNNI_CPU,
    .kernels = {.size = sizeof(struct chm_kernels), .t2_matmul = t2_matmul, .int8_matmul = int8_matmul},
};
