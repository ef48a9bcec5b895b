/*
 * base.h: what every room stands on: errors, log, memory, arenas, random numbers, hashing, files, threads.
 * Internal to libchimera.
 */
#ifndef CHM_BASE_H
#define CHM_BASE_H

#include <chimera/tensor.h>
#include <chimera/plugin.h>
#include <stdarg.h>
#include <stdio.h>

#define CHM_ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define CHM_PRINTF(f, a)   __attribute__((format(printf, f, a)))
#define CHM_MIN(a, b)      ((a) < (b) ? (a) : (b))
#define CHM_MAX(a, b)      ((a) > (b) ? (a) : (b))

/* Bytes up to the next cache line: how everything aligned is laid out. */
static inline size_t chm_align64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* ---- errors: one sentence per thread, kept until the next failure ---- */
/* Records "format" as this thread's sentence and returns status. Arguments may come from anywhere: what a terminal
 * would obey, a newline too, becomes '?' (chm_printable). */
int chm_fail(int status, const char *format, ...) CHM_PRINTF(2, 3);
/* The same, with what the system says (errno) at the end: CHM_E_MEMORY where that is memory, else CHM_E_DATA. */
int chm_fail_system(const char *format, ...) CHM_PRINTF(1, 2);
/* The same for several problems, a line each. */
int chm_fail_lines(int status, const char *format, ...) CHM_PRINTF(2, 3);
/* Puts "prefix: " before the sentence already recorded; returns status. */
int chm_fail_prefix(int status, const char *format, ...) CHM_PRINTF(2, 3);
const char *chm_error(void); /* public, chimera.h */
/* As vsnprintf; of what does not fit the middle is left out, not the end, where the reason stands. */
void chm_fit(char *text, size_t room, const char *format, va_list args);
/* For a callee that can only say that it failed: CHM_E_MEMORY when the last sentence was recorded with that status,
 * else `otherwise`. */
int chm_failed(int otherwise);

/* ---- log: stderr, one line a message; level from chm_log_set_level (default INFO) ---- */
void chm_log_set_level(enum chm_log_level level);
/* Where lines go instead, without "chimera: " and the newline; NULL: stderr. */
typedef void (*chm_log_writer)(const char *line);
void chm_log_to(chm_log_writer writer);
void chm_log(enum chm_log_level level, const char *format, ...) CHM_PRINTF(2, 3);

/* ---- memory: every allocation of libchimera goes through these, so that tests can fail each in turn ---- */
/* What is larger than all that is available is refused: the system would grant it, and end the process later. */
void *chm_alloc(size_t bytes);            /* zeroed; sets the error sentence and returns NULL */
enum { CHM_HUGE_FROM = 8 << 20 };         /* bytes from which memory and mapped files ask for pages of 2 MiB */
void *chm_alloc_aligned(size_t bytes);    /* zeroed, 64-byte aligned; release with chm_free */
void *chm_realloc(void *p, size_t bytes); /* not for aligned blocks; new bytes undefined */
char *chm_strdup(const char *s);
char *chm_format(const char *format, ...) CHM_PRINTF(1, 2); /* malloc'd string or NULL */
void chm_free(void *p);
/* Test hooks: after n more allocations succeed, the next one fails (and those after it; or it alone); -1 turns it off.
 */
void chm_alloc_fail_after(long n);
void chm_alloc_fail_once(long n);
/* Number of allocations made so far (any thread). */
uint64_t chm_alloc_count(void);

/* Bytes this process may still take: MemAvailable, or less under a control group's limit; 0: unknown. With `swap` what
 * may be swapped out is counted too. */
uint64_t chm_available_memory(bool swap);
/* Test hook: pretend that this much is available; 0 turns it off. */
void chm_available_memory_pretend(uint64_t bytes);

/* ---- arena: bump allocation, 64-byte aligned, freed all at once; keeps its blocks on reset ---- */
typedef struct chm_arena {
    struct chm_arena_block *first, *current;
    size_t used, peak, reserved; /* bytes */
    size_t limit;                /* 0: none; more is refused with a sentence */
} chm_arena;
void chm_arena_init(chm_arena *a);
void *chm_arena_take(chm_arena *a, size_t bytes); /* contents undefined; NULL when out of memory */
void *chm_arena_zero(chm_arena *a, size_t bytes); /* zeroed */
/* Where it stands, and back there: what was taken in between is gone, and its memory is kept for what comes next. */
typedef struct chm_arena_mark {
    struct chm_arena_block *block;
    size_t block_used, used;
} chm_arena_mark;
chm_arena_mark chm_arena_here(const chm_arena *a);
void chm_arena_back(chm_arena *a, chm_arena_mark mark);
void chm_arena_reset(chm_arena *a); /* keeps the memory for the next pass */
void chm_arena_finish(chm_arena *a);

/* ---- growing strings ---- */
typedef struct chm_string {
    char *text; /* NUL-terminated once anything was added; NULL before */
    size_t length, capacity;
    bool failed; /* out of memory on the way; the text is short */
} chm_string;
void chm_string_add(chm_string *s, const char *format, ...) CHM_PRINTF(2, 3);
void chm_string_add_bytes(chm_string *s, const void *bytes, size_t n);
void chm_string_finish(chm_string *s);
int chm_utf8_length(const char *text); /* bytes of the UTF-8 character at text; 0: there is none */
/* In place: control characters and what is not UTF-8 become '?', with `lines` newlines stay. */
void chm_printable(char *text, bool lines);

/* ---- random: Philox4x32-10, counter-based (Salmon et al., SC11). A stream is (seed, purpose, a); position b ---- */
enum chm_purpose {
    CHM_RANDOM_INIT = 1,
    CHM_RANDOM_DATA,
    CHM_RANDOM_SAMPLE,
    CHM_RANDOM_TEST,
    CHM_RANDOM_LOOP,
    CHM_RANDOM_TASK,
    CHM_RANDOM_DIRECTION,
    CHM_RANDOM_REVIVE
};
void chm_philox(uint64_t seed, uint32_t purpose, uint32_t a, uint64_t b, uint32_t out[4]);
double chm_uniform_at(uint64_t seed, uint32_t purpose, uint32_t a, uint64_t b);                 /* in (0,1), 53 bits */
uint64_t chm_below_at(uint64_t seed, uint32_t purpose, uint32_t a, uint64_t b, uint64_t bound); /* in [0,bound) */
/* n normals N(0,1), positions 0..n-1 of the stream; own log/cos so that every machine gets the same bytes */
void chm_normals(uint64_t seed, uint32_t purpose, uint32_t a, int64_t n, float *out);
/* the same, positions first .. first + n - 1 */
void chm_normals_from(uint64_t seed, uint32_t purpose, uint32_t a, int64_t first, int64_t n, float *out);
double chm_natural_log(double x); /* of x > 0, the same bits everywhere; error below 1e-15 */

/* ---- hashing: XXH3 ---- */
uint64_t chm_hash64(const void *data, size_t bytes);
uint64_t chm_hash64_seed(const void *data, size_t bytes, uint64_t seed);
/* The same as chm_hash64() of all pieces as one; chm_free()d. NULL: out of memory. */
typedef struct chm_hasher chm_hasher;
chm_hasher *chm_hasher_create(void);
void chm_hasher_add(chm_hasher *h, const void *data, size_t bytes);
uint64_t chm_hasher_end(const chm_hasher *h);

/* ---- names ---- */
/* The nearest of a NULL-terminated list, or NULL when none is near (edit distance, case-insensitive). */
const char *chm_nearest(const char *name, const char *const *list);
size_t chm_edit_distance(const char *a, const char *b);

/* ---- files ---- */
typedef struct chm_map {
    const uint8_t *data;
    uint64_t size;
    void *mapping; /* private */
} chm_map;
int chm_map_open(chm_map *m, const char *path); /* read-only mmap of a regular file; an empty file has data NULL */
int chm_map_descriptor(chm_map *m, int fd, const char *name); /* the same of an open file, which stays open */
void chm_map_close(chm_map *m);
int chm_read_file(const char *path, uint64_t limit, char **text, size_t *size); /* NUL-terminated; caller chm_free()s */
/* Atomic writing: bytes go to PATH.tmp-PID, commit fsyncs and renames; abandon removes the temporary. That of a process
 * that was killed is removed by whoever writes PATH next. */
typedef struct chm_writer {
    FILE *file;
    char *path, *temporary;
} chm_writer;
int chm_writer_open(chm_writer *w, const char *path);
int chm_writer_write(chm_writer *w, const void *data, size_t bytes);
int chm_writer_sync(chm_writer *w); /* all of it on disk, not yet under its name: commit will only rename */
int chm_writer_commit(chm_writer *w);
void chm_writer_abandon(chm_writer *w);                               /* fine after commit */
int chm_write_file(const char *path, const void *data, size_t bytes); /* all of it, through a chm_writer */
/* Removes such files of processes that are gone; with `alone`, which says that nobody else can be writing PATH now, of
 * all. */
void chm_writer_clear(const char *path, bool alone);
bool chm_same_file(const char *a, const char *b); /* both exist and are one file, links followed */
int chm_make_directory(const char *path);         /* with parents; existing is fine */

/* ---- time ---- */
double chm_now(void);        /* monotonic seconds */
uint64_t chm_peak_rss(void); /* bytes, this process */

/* ---- threads: a pool of n - 1 workers and the caller ---- */
typedef struct chm_pool chm_pool;
int chm_pool_create(int threads, chm_pool **out); /* 1..256 */
void chm_pool_destroy(chm_pool *pool);
int chm_pool_threads(const chm_pool *pool); /* NULL pool: 1 */
/*
 * Runs body(arg, begin, end, worker) over [0, count) in pieces of at most `grain`, handed out dynamically; worker is
 * 0 .. threads-1. Returns when all are done. Which worker gets which piece is not fixed, pieces are: [i*grain, ...).
 * Not re-entrant: a body must not call it on the same pool.
 */
typedef void (*chm_body)(void *arg, int64_t begin, int64_t end, int worker);
void chm_parallel(chm_pool *pool, int64_t count, int64_t grain, chm_body body, void *arg);
int chm_cpu_count(void); /* CPUs this process may use */

#endif
