/*
 * scalar.c: the backend for any CPU. It fills every slot and is the definition of right; the compiler vectorises it for
 * the baseline of the build.
 */
#include "portable.h"

#define DELTA_NAME(x) scalar_##x
#define DELTA_BLOCK   PORTABLE_MR
#define DELTA_GEMM    portable_gemm
#include "delta_chunk.h"

#define ATTEND_NAME(x) scalar_##x
#define ATTEND_GEMM    portable_gemm
#include "attend_chunk.h"

static const struct chm_backend_ops scalar_ops = {
    .size = sizeof(struct chm_backend_ops),
    .rank = 0,
    .kernels =
        {
            .size = sizeof(struct chm_kernels),
            .quantise = portable_quantise,
            .t2_matmul = portable_t2_matmul,
            .int8_matmul = portable_int8_matmul,
            .f32_matmul = portable_f32_matmul,
            .rmsnorm = portable_rmsnorm,
            .l2norm = portable_l2norm,
            .unary = portable_unary,
            .swiglu = portable_swiglu,
            .logsumexp = portable_logsumexp,
            .delta_step = portable_delta_step,
            .delta_read = portable_delta_read,
            .sgemm = portable_sgemm,
            .ternarise = portable_ternarise,
            .dequantise = portable_dequantise,
            .unary_backward = portable_unary_backward,
            .swiglu_backward = portable_swiglu_backward,
            .rmsnorm_backward = portable_rmsnorm_backward,
            .l2norm_backward = portable_l2norm_backward,
            .softmax_xent = portable_softmax_xent,
            .adamw = portable_adamw,
            .delta_chunk = scalar_delta_chunk,
            .delta_chunk_read = scalar_delta_chunk_read,
            .delta_chunk_backward = scalar_delta_chunk_backward,
            .attend = portable_attend,
            .attend_chunk = scalar_attend_chunk,
            .attend_chunk_backward = scalar_attend_chunk_backward,
            .gradient_matmul = portable_gradient_matmul,
            .outer_step = portable_outer_step,
            .block_matmul = portable_gemm,
            .t5_matmul = portable_t5_matmul,
            .sherry_matmul = portable_sherry_matmul,
        },
};

CHM_PLUGIN(scalar, .kind = CHM_KIND_BACKEND, .version = "1.0.0", .licence = "Apache-2.0",
           .summary = "Every kernel in portable C, for any CPU; the definition of right", .ops = &scalar_ops);
