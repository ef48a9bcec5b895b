/* neon_dotprod.c: the products of the neon backend for CPUs with the byte dot product (ARMv8.2 DotProd). */
#define NEON_DOTPROD
#include "neon_products.h"

const struct chm_backend_level chm_neon_dotprod = {
    .size = sizeof(struct chm_backend_level),
    .name = "neon_dotprod",
    .cpu = CHM_CPU_DOTPROD,
    .kernels = {.size = sizeof(struct chm_kernels),
                .t2_matmul = t2_matmul,
                .int8_matmul = int8_matmul,
                .t5_matmul = t5_matmul,
                .sherry_matmul = sherry_matmul},
};
