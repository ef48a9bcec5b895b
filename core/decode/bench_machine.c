/* bench_machine.c: how fast memory is read here, how fast the ternary kernel can be, and how much is resident. */
#include "decode/bench.h"
#include "graph/encoding.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- read bandwidth ---------------------------------------------------------------------------------------------- */

enum { PIECE = 1 << 17 /* words: 1 MiB */, AHEAD = 512 /* words: 4 KiB */ };

static void fill_words(void *arg, int64_t begin, int64_t end, int worker) {
    uint64_t *word = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) word[i] = (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15);
}

/* Plain loads, a cache line at a time, and a prefetch as the kernels have them. */
static void read_words(void *arg, int64_t begin, int64_t end, int worker) {
    const chm_memory_reader *r = arg;
    uint64_t sum[8] = {0};
    for (int64_t i = begin; i + 8 <= end; i += 8) {
        __builtin_prefetch(r->word + CHM_MIN(i + AHEAD, end - 8));
        for (int k = 0; k < 8; k++) sum[k] += r->word[i + k];
    }
    for (int k = 0; k < 8; k++) r->sum[worker * 8 + k] += sum[k]; /* so that no compiler drops the reads */
}

int chm_memory_reader_init(chm_memory_reader *r, chm_pool *pool, uint64_t model) {
    enum { LEAST = 1 << 28, MOST = 1 << 30, MIB = 1 << 20 };
    long cache = -1;
#ifdef _SC_LEVEL3_CACHE_SIZE
    cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    uint64_t bytes = CHM_MAX(CHM_MIN(model, (uint64_t)MOST), (uint64_t)LEAST);
    if (cache > 0) bytes = CHM_MAX(bytes, CHM_MIN(3 * (uint64_t)cache, (uint64_t)MOST));
    const uint64_t available = chm_available_memory(false);
    if (available > 0) bytes = CHM_MIN(bytes, available / 4);
    bytes = CHM_MAX(bytes & ~(uint64_t)(MIB - 1), (uint64_t)MIB);
    *r = (chm_memory_reader){.pool = pool, .bytes = (size_t)bytes};
    r->word = chm_alloc_aligned(r->bytes);
    r->sum = chm_alloc_aligned((size_t)chm_pool_threads(pool) * 8 * sizeof(*r->sum));
    if (r->word == NULL || r->sum == NULL) {
        chm_memory_reader_finish(r);
        return CHM_E_MEMORY;
    }
    chm_parallel(pool, (int64_t)(r->bytes / 8), PIECE, fill_words, r->word);
    return CHM_OK;
}

void chm_memory_reader_finish(chm_memory_reader *r) {
    chm_free(r->word);
    chm_free(r->sum);
    memset(r, 0, sizeof(*r));
}

double chm_memory_read(chm_memory_reader *r) {
    double best = 0;
    for (int sweep = 0; sweep < 2; sweep++) {
        const double start = chm_now();
        chm_parallel(r->pool, (int64_t)(r->bytes / 8), PIECE, read_words, r);
        best = CHM_MAX(best, (double)r->bytes / CHM_MAX(chm_now() - start, 1e-9));
    }
    return best;
}

/* ---- the kernel at its best -------------------------------------------------------------------------------------- */

enum { PEAK_ROWS = 64, PEAK_CODES = 1 << 17 /* bytes of codes a thread reads again and again */, PIECES = 8 };

typedef struct peak_job {
    chm_ternary_product product;
    const struct chm_ternary *w;
    struct chm_activation x;
    float *y; /* [workers][PEAK_ROWS][16 * tiles] */
    int64_t tiles, calls;
} peak_job;

static void multiply(void *arg, int64_t begin, int64_t end, int worker) {
    const peak_job *job = arg;
    const int64_t ldy = 16 * job->tiles;
    for (int64_t n = begin * job->calls; n < end * job->calls; n++)
        job->product(job->w, 0, job->tiles, &job->x, job->y + worker * PEAK_ROWS * ldy, ldy);
}

const chm_param *chm_bench_matrix(const chm_model *m) {
    for (int i = 0; i < m->params; i++)
        if (m->param[i]->format == CHM_FORMAT_TERNARY && m->param[i]->role == CHM_ROLE_TERNARY) return m->param[i];
    return NULL;
}

int chm_kernel_peak(chm_runtime *r, const chm_model *m, double *rate) {
    const chm_param *p = chm_bench_matrix(m);
    const int threads = chm_pool_threads(r->pool);
    *rate = 0;
    if (p == NULL) return CHM_OK;
    struct chm_ternary w = p->ternary;
    const int64_t stride = chm_ternary_code_stride(w.encoding, w.in), blocks = chm_ternary_blocks(w.in);
    peak_job job = {.product = chm_ternary_kernel(&r->kernels.kernels, w.encoding), .w = &w, .calls = 1};
    job.tiles = CHM_MAX(CHM_MIN(w.out / 16, PEAK_CODES / stride), 1);
    w.out = CHM_MIN(w.out, 16 * job.tiles);
    float *x = chm_alloc_aligned((size_t)(PEAK_ROWS * w.in) * sizeof(*x));
    int8_t *q = chm_alloc_aligned((size_t)(PEAK_ROWS * blocks * 64));
    float *scale = chm_alloc_aligned((size_t)(PEAK_ROWS * blocks) * sizeof(*scale));
    int32_t *sum = chm_alloc_aligned((size_t)(PEAK_ROWS * blocks) * sizeof(*sum));
    job.y = chm_alloc_aligned((size_t)(threads * PEAK_ROWS * 16 * job.tiles) * sizeof(*job.y));
    const bool room = x && q && scale && sum && job.y;
    if (room) {
        chm_normals(1, CHM_RANDOM_TEST, 0, PEAK_ROWS * w.in, x);
        r->kernels.kernels.quantise(x, PEAK_ROWS, w.in, q, scale, sum);
        job.x = (struct chm_activation){.q = q, .scale = scale, .sum = sum, .rows = PEAK_ROWS, .blocks = blocks};
        double start = chm_now();
        multiply(&job, 0, 1, 0);
        job.calls = (int64_t)(2e-3 / CHM_MAX(chm_now() - start, 1e-6)) + 1; /* pieces of some milliseconds */
        start = chm_now();
        chm_parallel(r->pool, PIECES * threads, 1, multiply, &job);
        *rate = (double)(PIECES * threads * job.calls * PEAK_ROWS * w.out * w.in) / CHM_MAX(chm_now() - start, 1e-9);
    }
    chm_free(x);
    chm_free(q);
    chm_free(scale);
    chm_free(sum);
    chm_free(job.y);
    return room ? CHM_OK : CHM_E_MEMORY;
}

/* ---- what is resident -------------------------------------------------------------------------------------------- */

void chm_resident(uint64_t *mapped, uint64_t *own) {
    char line[256];
    *mapped = *own = 0;
    FILE *f = fopen("/proc/self/status", "re");
    if (f == NULL) return;
    while (fgets(line, sizeof(line), f) != NULL) {
        if (!strncmp(line, "RssAnon:", 8)) *own = strtoull(line + 8, NULL, 10) * 1024;
        if (!strncmp(line, "RssFile:", 8)) *mapped = strtoull(line + 8, NULL, 10) * 1024;
    }
    fclose(f);
}
