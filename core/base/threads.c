/*
 * threads.c: a pool for many short jobs.
 *
 * A job is open from the moment its state word is published until the caller finds no piece left. A worker joins an
 * open job by adding one to `active` in that word, so the caller waits for those who joined and for nobody who slept
 * through it: on shared cores a worker that the system does not run costs nothing. Workers and the caller spin for some
 * tens of microseconds, about the gap between two layers of a small model, and sleep after that.
 */
#include "base/base.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ __volatile__("yield")
#else
#define RELAX() ((void)0)
#endif

enum { MOST_THREADS = 256, SPIN_MICROSECONDS = 40 };

/* state: job number << 32 | OPEN | workers in it */
#define OPEN   ((uint64_t)1 << 31)
#define ACTIVE (OPEN - 1)

struct worker {
    struct chm_pool *pool;
    pthread_t thread;
    int number;
};

struct chm_pool {
    int threads;
    struct worker *workers; /* threads - 1 */

    _Alignas(64) atomic_uint_fast64_t state;
    atomic_bool stop;
    atomic_int sleepers;    /* workers in, or about to be in, pthread_cond_wait */
    atomic_bool in_waiting; /* the caller is, in the same way */

    /* The job; written while nobody is in it, read after joining. */
    chm_body body;
    void *arg;
    int64_t count, grain;
    uint64_t number;

    _Alignas(64) atomic_int_fast64_t next; /* piece to hand out */

    _Alignas(64) pthread_mutex_t mutex;
    pthread_cond_t start, done;
};

static void run_pieces(struct chm_pool *pool, int worker) {
    const int64_t pieces = (pool->count + pool->grain - 1) / pool->grain;
    for (;;) {
        int64_t piece = (int64_t)atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (piece >= pieces) return;
        int64_t begin = piece * pool->grain;
        pool->body(pool->arg, begin, CHM_MIN(begin + pool->grain, pool->count), worker);
    }
}

/* Whether `ready` came true within the spinning time. */
#define SPIN_UNTIL(ready)                                                                                              \
    __extension__({                                                                                                    \
        bool came = false;                                                                                             \
        double end = 0;                                                                                                \
        for (unsigned turn = 0; !(came = (ready)); turn++) {                                                           \
            RELAX();                                                                                                   \
            if (turn % 64 != 63) continue;                                                                             \
            double now = chm_now();                                                                                    \
            if (end == 0) end = now + SPIN_MICROSECONDS * 1e-6;                                                        \
            if (now > end) break;                                                                                      \
        }                                                                                                              \
        came;                                                                                                          \
    })

/* A job this worker has not seen, or the end. */
static bool news(struct chm_pool *pool, uint64_t seen) {
    return atomic_load(&pool->state) >> 32 != seen || atomic_load(&pool->stop);
}

static void *work(void *arg) {
    struct worker *self = arg;
    struct chm_pool *pool = self->pool;
    uint64_t seen = 0;
    while (!atomic_load(&pool->stop)) {
        if (!SPIN_UNTIL(news(pool, seen))) {
            pthread_mutex_lock(&pool->mutex);
            /* Counted before looking again: the caller publishes the job before it looks for sleepers. */
            atomic_fetch_add(&pool->sleepers, 1);
            while (!news(pool, seen)) pthread_cond_wait(&pool->start, &pool->mutex);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->mutex);
        }
        uint64_t state = atomic_load(&pool->state);
        while ((state & OPEN) && !atomic_compare_exchange_weak(&pool->state, &state, state + 1)) {}
        seen = state >> 32;
        if (!(state & OPEN)) continue; /* it was over before this worker came */
        run_pieces(pool, self->number);
        state = atomic_fetch_sub(&pool->state, 1) - 1;
        if (!(state & ACTIVE) && atomic_load(&pool->in_waiting)) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
    return NULL;
}

int chm_pool_create(int threads, chm_pool **out) {
    *out = NULL;
    if (threads < 1 || threads > MOST_THREADS)
        return chm_fail(CHM_E_CONFIG, "%d threads: a pool has 1..%d", threads, MOST_THREADS);
    struct chm_pool *pool = chm_alloc_aligned(sizeof *pool);
    if (!pool) return CHM_E_MEMORY;
    pool->workers = chm_alloc((size_t)threads * sizeof *pool->workers);
    if (!pool->workers) {
        chm_free(pool);
        return CHM_E_MEMORY;
    }
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->start, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->threads = 1;
    for (int i = 1; i < threads; i++) {
        struct worker *w = &pool->workers[i - 1];
        w->pool = pool;
        w->number = i;
        int error = pthread_create(&w->thread, NULL, work, w);
        if (error) {
            chm_fail(CHM_E_MEMORY, "cannot start thread %d of %d: %s", i + 1, threads, strerror(error));
            chm_pool_destroy(pool);
            return CHM_E_MEMORY;
        }
        pool->threads++;
    }
    *out = pool;
    return CHM_OK;
}

void chm_pool_destroy(chm_pool *pool) {
    if (!pool) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->stop, true);
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i - 1].thread, NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->start);
    pthread_mutex_destroy(&pool->mutex);
    chm_free(pool->workers);
    chm_free(pool);
}

int chm_pool_threads(const chm_pool *pool) { return pool ? pool->threads : 1; }

void chm_parallel(chm_pool *pool, int64_t count, int64_t grain, chm_body body, void *arg) {
    if (count <= 0) return;
    if (grain < 1) grain = 1;
    if (!pool || pool->threads == 1 || count <= grain) {
        for (int64_t begin = 0; begin < count; begin += grain) body(arg, begin, CHM_MIN(begin + grain, count), 0);
        return;
    }
    pool->body = body;
    pool->arg = arg;
    pool->count = count;
    pool->grain = grain;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    pool->number = (pool->number + 1) & 0xffffffffu;
    atomic_store(&pool->state, pool->number << 32 | OPEN);

    /* Wake as many as there is work for; whoever sleeps on misses nothing but work. */
    int64_t helpers = CHM_MIN((count + grain - 1) / grain, (int64_t)pool->threads) - 1;
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->mutex);
        for (int64_t i = 0; i < helpers; i++) pthread_cond_signal(&pool->start);
        pthread_mutex_unlock(&pool->mutex);
    }

    run_pieces(pool, 0);
    uint64_t state = atomic_fetch_and(&pool->state, ~OPEN) & ~OPEN;
    if (!(state & ACTIVE)) return;
    if (SPIN_UNTIL(!(atomic_load(&pool->state) & ACTIVE))) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->in_waiting, true);
    while (atomic_load(&pool->state) & ACTIVE) pthread_cond_wait(&pool->done, &pool->mutex);
    atomic_store(&pool->in_waiting, false);
    pthread_mutex_unlock(&pool->mutex);
}

/* The CPUs in our affinity mask, or fewer where a control group grants less time than that. */
int chm_cpu_count(void) {
    cpu_set_t set;
    int cpus = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        long long quota, period;
        if (fscanf(f, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
            long long granted = (quota + period - 1) / period;
            if (granted < cpus) cpus = (int)granted;
        }
        fclose(f);
    }
    return CHM_MAX(1, CHM_MIN(cpus, (int)MOST_THREADS));
}
