/*
 * bench.c: how fast a model reads and writes here, and how near that is to what memory allows.
 *
 * bytes_per_token counts what a token makes the CPU touch: every packed parameter it runs through (layers in the loop
 * as often as the loop goes; of the experts those it chooses), one row of the embedding, and the state. A prompt shares
 * the parameters among the rows of a pass, which together choose every expert. bandwidth_fraction compares that with
 * the read rate of a buffer larger than the last cache, measured in the same run; a model that fits in the cache may
 * well exceed 1.
 */
#include "model/stream.h"
#include "model/declared.h"
#include "model/json.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- read bandwidth ---------------------------------------------------------------------------------------------- */

typedef struct bandwidth_job {
    const uint64_t *word;
    uint64_t *sum; /* [workers * 8], so that no compiler drops the reads */
} bandwidth_job;

enum { BANDWIDTH_PIECE = 1 << 17 }; /* words: 1 MiB */

static void fill_words(void *arg, int64_t begin, int64_t end, int worker) {
    uint64_t *word = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) word[i] = (uint64_t)i * UINT64_C(0x9e3779b97f4a7c15);
}

static void read_words(void *arg, int64_t begin, int64_t end, int worker) {
    const bandwidth_job *job = arg;
    uint64_t sum[8] = {0};
    for (int64_t i = begin; i + 8 <= end; i += 8)
        for (int k = 0; k < 8; k++) sum[k] += job->word[i + k];
    for (int k = 0; k < 8; k++) job->sum[worker * 8 + k] += sum[k];
}

/* Bytes a second, the best of three sweeps; and the size of the buffer swept. */
static int measure_bandwidth(chm_pool *pool, double *rate, size_t *buffer_bytes) {
    long cache = -1, pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
#ifdef _SC_LEVEL3_CACHE_SIZE
    cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    if (cache <= 0) cache = 32L << 20;
    /* twice the cache, at most a quarter of the memory */
    size_t bytes = CHM_MAX((size_t)cache * 2, (size_t)64 << 20);
    if (pages > 0 && page > 0) bytes = CHM_MIN(bytes, (size_t)pages / 4 * (size_t)page);
    bytes = CHM_MAX(bytes & ~(size_t)((1 << 20) - 1), (size_t)1 << 20);
    const int64_t words = (int64_t)(bytes / 8);
    const int threads = chm_pool_threads(pool);
    uint64_t *word = chm_alloc_aligned(bytes);
    uint64_t *sum = chm_alloc_aligned((size_t)threads * 8 * sizeof(*sum));
    if (word == NULL || sum == NULL) {
        chm_free(word);
        chm_free(sum);
        return CHM_E_MEMORY;
    }
    chm_parallel(pool, words, BANDWIDTH_PIECE, fill_words, word);
    bandwidth_job job = {.word = word, .sum = sum};
    *rate = 0;
    for (int sweep = 0; sweep < 3; sweep++) {
        const double start = chm_now();
        chm_parallel(pool, words, BANDWIDTH_PIECE, read_words, &job);
        const double seconds = chm_now() - start;
        *rate = CHM_MAX(*rate, (double)bytes / CHM_MAX(seconds, 1e-9));
    }
    volatile uint64_t keep = sum[0];
    (void)keep;
    *buffer_bytes = bytes;
    chm_free(word);
    chm_free(sum);
    return CHM_OK;
}

/* ---- bytes a token touches --------------------------------------------------------------------------------------- */

static size_t param_bytes(const chm_model *m, const chm_param *p) {
    if (p->format == CHM_FORMAT_F32) return (size_t)p->count * sizeof(float);
    return chm_param_code_bytes(p, p->ternary.encoding) + chm_param_scale_bytes(p, m->config->weight_group);
}

typedef struct traffic {
    double layers; /* parameters of layers and norms, once a pass */
    double idle;   /* of these, the experts that one token does not choose */
    double head;   /* the output matrix, once for every pass that wants logits */
    double row;    /* one row of the embedding */
    double state;  /* read for every token */
} traffic;

static traffic model_traffic(const chm_model *m) {
    traffic t = {0};
    const int64_t loops = m->config->loop.enabled ? m->config->loop.passes : 1;
    const double routed = chm_card_number(m->card, "backbone.moe.n_routed_experts", 1);
    const double all = routed + chm_card_number(m->card, "backbone.moe.n_shared_experts", 0);
    const double idle = (routed - chm_card_number(m->card, "backbone.moe.num_experts_per_tok", 1)) / all;
    for (int i = 0; i < m->params; i++) {
        const chm_param *p = m->param[i];
        if (p->role == CHM_ROLE_EMBEDDING) { /* the table, the output matrix, or both in one */
            if (p == m->embedding) t.row = (double)param_bytes(m, p) / (double)p->out;
            if (p != m->embedding || m->config->tie_embeddings) t.head = (double)param_bytes(m, p);
        } else {
            const bool looped = p->layer >= 0 && m->config->in_loop[p->layer];
            const double bytes = (double)param_bytes(m, p) * (double)(looped ? loops : 1);
            t.layers += bytes;
            if (p->expert) t.idle += bytes * idle;
        }
    }
    t.state = (double)m->layout.bytes;
    return t;
}

/* ---- the runs ---------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n) {
    qsort(v, (size_t)n, sizeof(*v), by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

typedef struct bench_row {
    const char *name;
    int64_t tokens;
    double rate, slowest, fastest, bytes, fraction;
} bench_row;

/* Those that inference runs. */
static void write_kernels(const chm_runtime *r, FILE *out) {
    bool first = true;
    putc('{', out);
    for (size_t i = 0; i < r->kernels.slots; i++) {
        if (!r->kernels.exact[i]) continue;
        if (!first) fputs(", ", out);
        first = false;
        chm_json_string(out, r->kernels.slot[i]);
        fputs(": ", out);
        chm_json_string(out, r->kernels.backend[i] ? r->kernels.backend[i] : "none");
    }
    putc('}', out);
}

static int write_report(chm_runtime *r, const chm_model *m, const bench_row *rows, int count, int repeats,
                        double bandwidth, size_t buffer, chm_output format, FILE *out) {
    chm_table t;
    chm_table_init(&t);
    chm_table_column(&t, "name");
    chm_table_column(&t, "#tokens");
    chm_table_column(&t, "#tokens_per_second");
    chm_table_column(&t, "#slowest");
    chm_table_column(&t, "#fastest");
    chm_table_column(&t, "#bytes_per_token");
    chm_table_column(&t, "#bandwidth_fraction");
    /* a file of one table has no other place for them; elsewhere they stand below */
    if (format == CHM_OUTPUT_CSV) chm_table_column(&t, "kernels");
    int status = CHM_OK;
    char *used = chm_kernels_used(r);
    if (used == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }
    if (format == CHM_OUTPUT_JSON) {
        fputs("{\n  \"schema_version\": 1,\n  \"model\": ", out);
        chm_json_string(out, m->path ? m->path : "");
        fprintf(out, ",\n  \"threads\": %d,\n  \"repeats\": %d,\n", r->threads, repeats);
        fprintf(out, "  \"read_bytes_per_second\": %.6g,\n  \"read_buffer_bytes\": %zu,\n", bandwidth, buffer);
        fprintf(out, "  \"state_bytes\": %zu,\n  \"kernels\": ", m->layout.bytes);
        write_kernels(r, out);
        fputs(",\n  \"rows\": [", out);
        for (int i = 0; i < count; i++) {
            fprintf(out,
                    "%s\n    {\"name\": \"%s\", \"tokens\": %lld, \"tokens_per_second\": %.6g, \"slowest\": %.6g, "
                    "\"fastest\": %.6g, \"bytes_per_token\": %.0f, \"bandwidth_fraction\": %.6g, \"kernels\": ",
                    i ? "," : "", rows[i].name, (long long)rows[i].tokens, rows[i].rate, rows[i].slowest,
                    rows[i].fastest, rows[i].bytes, rows[i].fraction);
            write_kernels(r, out);
            putc('}', out);
        }
        fputs("\n  ]\n}\n", out);
    } else {
        for (int i = 0; i < count; i++) {
            chm_table_cell(&t, "%s", rows[i].name);
            chm_table_cell(&t, "%lld", (long long)rows[i].tokens);
            chm_table_cell(&t, "%.1f", rows[i].rate);
            chm_table_cell(&t, "%.1f", rows[i].slowest);
            chm_table_cell(&t, "%.1f", rows[i].fastest);
            chm_table_cell(&t, "%.0f", rows[i].bytes);
            chm_table_cell(&t, "%.4f", rows[i].fraction);
            if (format == CHM_OUTPUT_CSV) chm_table_cell(&t, "%s", used);
        }
        status = chm_table_print(&t, format, out);
        if (status == CHM_OK && format != CHM_OUTPUT_CSV)
            fprintf(out, "\n%d threads, median of %d; memory reads %.2f GB/s here (%zu MiB buffer); kernels: %s\n",
                    r->threads, repeats, bandwidth / 1e9, buffer >> 20, used);
    }
    if (status == CHM_OK) status = chm_report_end(out);
out:
    chm_table_finish(&t);
    chm_text_free(used);
    return status;
}

int chm_bench(chm_runtime *r, chm_model *m, const chm_bench_options *options, chm_output format, FILE *out) {
    static const chm_bench_options none = {.size = sizeof(none)};
    enum { REPEATS_MAX = 1000 };
    if (options == NULL) options = &none;
    if (options->size != sizeof(*options))
        return chm_fail(CHM_E_CONFIG, "chm_bench_options has size %u, this library expects %zu", options->size,
                        sizeof(*options));
    const int repeats = options->repeats ? options->repeats : 5;
    const int64_t prefill = options->prefill_tokens ? options->prefill_tokens : 256;
    const int64_t decode = options->decode_tokens ? options->decode_tokens : 64;
    if (repeats < 1 || repeats > REPEATS_MAX) return chm_fail(CHM_E_CONFIG, "%d repeats: 1..%d", repeats, REPEATS_MAX);
    if (prefill < 1 || decode < 1)
        return chm_fail(CHM_E_CONFIG, "%lld tokens to read and %lld to write: at least 1 of each", (long long)prefill,
                        (long long)decode);

    chm_stream *s = NULL;
    double *rate[2] = {NULL, NULL}, bandwidth = 0;
    size_t buffer = 0;
    int32_t *ids = NULL;
    int status = chm_stream_open(r, m, &s);
    if (status != CHM_OK) goto out;
    s->depth.whole = true; /* every token the same work */
    rate[0] = chm_alloc((size_t)repeats * sizeof(double));
    rate[1] = chm_alloc((size_t)repeats * sizeof(double));
    ids = chm_alloc((size_t)CHM_MAX(prefill, decode) * sizeof(*ids));
    if (rate[0] == NULL || rate[1] == NULL || ids == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }
    if ((status = measure_bandwidth(r->pool, &bandwidth, &buffer)) != CHM_OK) goto out;

    const uint64_t known = (uint64_t)m->tokenizer->ops->vocab_size(m->tokenizer->self);
    for (int64_t i = 0; i < CHM_MAX(prefill, decode); i++)
        ids[i] = (int32_t)chm_below_at(1, CHM_RANDOM_TEST, 0, (uint64_t)i, known);
    const float *logits = NULL;
    /* round -1 warms caches and arenas up and is not counted */
    for (int round = -1; round < repeats; round++) {
        chm_stream_restart(s);
        double start = chm_now();
        if ((status = chm_stream_feed(s, ids, prefill, &logits)) != CHM_OK) goto out;
        if (round >= 0) rate[0][round] = (double)prefill / CHM_MAX(chm_now() - start, 1e-9);
        start = chm_now();
        for (int64_t i = 0; i < decode; i++)
            if ((status = chm_stream_feed(s, &ids[i], 1, &logits)) != CHM_OK) goto out;
        if (round >= 0) rate[1][round] = (double)decode / CHM_MAX(chm_now() - start, 1e-9);
    }

    const traffic t = model_traffic(m);
    const int64_t passes = (prefill + CHM_PASS_ROWS - 1) / CHM_PASS_ROWS;
    bench_row rows[2] = {{.name = "prefill", .tokens = prefill}, {.name = "decode", .tokens = decode}};
    rows[0].bytes = (t.layers * (double)passes + t.head) / (double)prefill + t.row + t.state;
    rows[1].bytes = t.layers - t.idle + t.head + t.row + t.state;
    for (int i = 0; i < 2; i++) {
        rows[i].rate = median(rate[i], repeats);
        rows[i].slowest = rate[i][0];
        rows[i].fastest = rate[i][repeats - 1];
        rows[i].fraction = rows[i].bytes * rows[i].rate / bandwidth;
    }
    status = write_report(r, m, rows, 2, repeats, bandwidth, buffer, format, out);
out:
    chm_free(ids);
    chm_free(rate[0]);
    chm_free(rate[1]);
    chm_stream_close(s);
    return status;
}
