/*
 * avx2_train.h: the training kernels of the avx2 backend. They are compiled apart with fused multiply-add, which the
 * kernels of inference must not use.
 */
#ifndef CHM_BACKENDS_AVX2_TRAIN_H
#define CHM_BACKENDS_AVX2_TRAIN_H

#include <chimera/plugin.h>

void chm_avx2_delta_chunk(float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs, const float *k,
                          int64_t ks, const float *v, int64_t vs, const float *log_alpha, const float *beta, int64_t gs,
                          float scale, float *o, int64_t os, float *scratch);
void chm_avx2_delta_chunk_read(const float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs,
                               const float *k, int64_t ks, const float *v, int64_t vs, const float *log_alpha,
                               const float *beta, int64_t gs, float scale, float *o, int64_t os, float *scratch);
void chm_avx2_delta_chunk_backward(const float *S, int64_t dk, int64_t dv, int64_t rows, int n_ask,
                                   const float *const *q, int64_t qs, const float *k, int64_t ks, const float *v,
                                   int64_t vs, const float *log_alpha, const float *beta, int64_t gs, float scale,
                                   const float *const *do_, int64_t os, float *const *dq, float *dk_, float *dv_,
                                   float *dlog_alpha, float *dbeta, float *dS, float *scratch);
void chm_avx2_attend_chunk(const struct chm_attend *a, float *o, float *lse, float *scratch);
void chm_avx2_attend_chunk_backward(const struct chm_attend *a, const float *o, const float *lse, const float *dout,
                                    float *dq, float *dk_before, float *dk_, float *dv_before, float *dv_,
                                    float *scratch);
void chm_avx2_block_matmul(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col, const float *b,
                           int64_t ldb, float *c, int64_t ldc, int add);

#endif
