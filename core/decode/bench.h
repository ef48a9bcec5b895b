/*
 * bench.h: what the files of `chimera bench` share: bench.c runs the models, bench_machine.c measures what the machine
 * could do at best, bench_report.c writes it down.
 */
#ifndef CHM_BENCH_H
#define CHM_BENCH_H

#include "base/json.h"
#include "model/stream.h"

/* Mean and sample standard deviation of a number measured several times. */
typedef struct chm_measured {
    double mean, deviation;
} chm_measured;
chm_measured chm_measure(const double *value, int n);

/* One kind of work of one model. */
typedef struct chm_bench_row {
    const chm_bench_subject *subject;
    const char *name;       /* "prefill", "decode", "streams" */
    int loops;              /* passes of the loop; 0: the model has none */
    int64_t rows, tokens;   /* of one pass; of one repeat */
    double *rate;           /* [repeats] tokens a second */
    double bytes, products; /* of one token: read from memory; packed weights times numbers, each with its sum */
    double peak;            /* products a second of the kernel at its best; 0: not known */
    chm_measured speed;
    double bytes_per_second, bandwidth_fraction, compute_fraction; /* < 0: not known */
} chm_bench_row;

/* What the first model took before anything else was measured. */
typedef struct chm_bench_start {
    double seconds;                       /* opened and one token read */
    uint64_t mapped, own, files, experts; /* bytes resident in file mappings and else; of the model's files */
    size_t pass;                          /* of what a pass keeps while it runs, logits too */
} chm_bench_start;

typedef struct chm_bench_run {
    const chm_bench_subject *subject;
    uint32_t subjects;
    int repeats;
    chm_bench_row *row;
    int rows;
    chm_measured bandwidth; /* bytes a second */
    size_t buffer;          /* bytes read over for it */
    chm_bench_start start;
    const char *compare; /* a report to compare with, and what is in it; NULL: none */
    json_t *other;
} chm_bench_run;

/* ---- bench_machine.c ---- */
typedef struct chm_memory_reader {
    uint64_t *word, *sum; /* [bytes / 8]; [workers * 8] */
    size_t bytes;
    chm_pool *pool;
} chm_memory_reader;
/* As large as `model` bytes, but more than the last cache can help with and no more than the machine can spare. */
int chm_memory_reader_init(chm_memory_reader *r, chm_pool *pool, uint64_t model);
void chm_memory_reader_finish(chm_memory_reader *r);
double chm_memory_read(chm_memory_reader *r); /* bytes a second, all threads, the better of two sweeps */
/* Products a second of the model's ternary kernel over many rows with its weights in the cache, all
 * threads; *rate 0: the model has no ternary layers. */
int chm_kernel_peak(chm_runtime *r, const chm_model *m, double *rate);
/* The first ternary matrix of a layer; NULL: there is none. */
const chm_param *chm_bench_matrix(const chm_model *m);
void chm_resident(uint64_t *mapped, uint64_t *own); /* bytes of this process, 0: not known */

/* ---- bench_report.c ---- */
int chm_bench_load(const char *path, json_t **out); /* an earlier report, its rows as we write them; json_decref it */
int chm_bench_comparable(const chm_bench_run *b);   /* does any row of `other` go with one that is planned? */
int chm_bench_report(const chm_bench_run *b, chm_output format, FILE *out);

#endif
