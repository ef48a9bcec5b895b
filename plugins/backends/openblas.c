/*
 * openblas.c: matrix products for training by OpenBLAS. Training only: its summation order depends on the CPU and the
 * library, which inference does not allow.
 */
#include <chimera/plugin.h>

#include <cblas.h>
#include <stdatomic.h>

enum { UNTOUCHED, BEING_SET, SET };
static atomic_int setting = UNTOUCHED;

/* The host brings its own threads and calls from several at once; more inside each call would only get in the way. The
 * first caller sets it and the others wait, for it must not change under a running product. */
static void one_thread(void) {
    int expected = UNTOUCHED;
    if (atomic_load_explicit(&setting, memory_order_acquire) == SET) return;
    if (atomic_compare_exchange_strong(&setting, &expected, BEING_SET)) {
        openblas_set_num_threads(1);
        atomic_store_explicit(&setting, SET, memory_order_release);
    } else {
        while (atomic_load_explicit(&setting, memory_order_acquire) != SET) continue;
    }
}

static void sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                  int64_t ldb, float beta, float *c, int64_t ldc) {
    one_thread();
    if (m <= 0 || n <= 0) return;
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (blasint)m, (blasint)n,
                (blasint)k, 1.0f, a, (blasint)lda, b, (blasint)ldb, beta, c, (blasint)ldc);
}

static void gradient_matmul(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                            int64_t ldb, float *c, int64_t ldc) {
    sgemm(ta, false, m, n, k, a, lda, b, ldb, 1.0f, c, ldc);
}

static const struct chm_backend_ops openblas_ops = {
    .size = sizeof(struct chm_backend_ops),
    .rank = 100,
    .kernels = {.size = sizeof(struct chm_kernels), .sgemm = sgemm, .gradient_matmul = gradient_matmul},
};

CHM_PLUGIN(openblas, .kind = CHM_KIND_BACKEND, .version = "1.0.0", .licence = "Apache-2.0",
           .summary = "Matrix products for training by OpenBLAS", .ops = &openblas_ops);
