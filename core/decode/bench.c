/*
 * bench.c: how fast models read and write here, and how near that is to what the machine allows.
 *
 * What is counted for a token: every packed parameter it runs through is read (layers in the loop as often as the loop
 * goes; of the experts those it chooses), one row of the embedding, and the state. The rows of a pass share the
 * parameters; of the experts they read those that some row chooses, on average when every choice is as likely.
 * bandwidth_fraction compares that with the read rate of a buffer larger than the last cache, compute_fraction the
 * products with what the ternary kernel does from the cache, both measured in the same run. A model that fits in the
 * cache may well exceed 1.
 */
#include "decode/bench.h"
#include "model/declared.h"
#include <math.h>
#include <string.h>

enum { REPEATS_MAX = 1000, ROWS_MOST = 32, LEAST_PASSES = 4 };

chm_measured chm_measure(const double *value, int n) {
    chm_measured m = {0};
    for (int i = 0; i < n; i++) m.mean += value[i] / n;
    for (int i = 0; i < n; i++) m.deviation += (value[i] - m.mean) * (value[i] - m.mean);
    m.deviation = n > 1 ? sqrt(m.deviation / (n - 1)) : 0;
    return m;
}

/* ---- what a token takes ------------------------------------------------------------------------------------------ */

static size_t param_bytes(const chm_model *m, const chm_param *p) {
    if (p->format == CHM_FORMAT_F32) return (size_t)p->count * sizeof(float);
    return chm_param_code_bytes(p, p->ternary.encoding) + chm_param_scale_bytes(p, m->config->weight_group);
}

/* Bytes and products of one token, when `rows` of them, on average, share a pass of so many loops; a `share` of the
 * passes wants logits, of `wanted` rows each. */
static void count_work(const chm_model *m, int loops, double rows, double share, double wanted, chm_bench_row *out) {
    const double routed = chm_card_number(m->card, "backbone.moe.n_routed_experts", 1);
    const double shared = chm_card_number(m->card, "backbone.moe.n_shared_experts", 0);
    const double chosen = chm_card_number(m->card, "backbone.moe.num_experts_per_tok", 1);
    const double read = routed * (1 - pow(1 - chosen / routed, rows));
    out->bytes = (double)m->layout.bytes;
    out->products = 0;
    for (int i = 0; i < m->params; i++) {
        const chm_param *p = m->param[i];
        const double bytes = (double)param_bytes(m, p), count = p->format == CHM_FORMAT_F32 ? 0 : (double)p->count;
        if (p->role == CHM_ROLE_EMBEDDING) { /* the table, the output matrix, or both in one */
            if (p == m->embedding) out->bytes += bytes / (double)p->out;
            if (p != m->head) continue;
            out->bytes += share * bytes / rows;
            out->products += share * wanted * count / rows;
            continue;
        }
        const double times = p->layer >= 0 && m->config->in_loop[p->layer] ? (double)CHM_MAX(loops, 1) : 1;
        out->bytes += times * bytes / rows * (p->expert ? (read + shared) / (routed + shared) : 1);
        out->products += times * count * (p->expert ? (chosen + shared) / (routed + shared) : 1);
    }
}

/* ---- the runs ---------------------------------------------------------------------------------------------------- */

/* A model with what its runs need. */
typedef struct runner {
    chm_stream *stream; /* what a prompt is read into, and what every other run starts from */
    chm_context *context;
    chm_stream_state *state, **states; /* [ROWS_MOST], those that rows asked for */
    int64_t count;
    double *peak; /* [repeats] */
} runner;

static int open_states(runner *w, const chm_model *m, int64_t rows) {
    w->state = chm_alloc((size_t)rows * sizeof(*w->state));
    w->states = chm_alloc((size_t)rows * sizeof(*w->states));
    if (w->state == NULL || w->states == NULL) return CHM_E_MEMORY;
    for (; w->count < rows; w->count++) {
        const int status = chm_stream_init(&w->state[w->count], &m->layout);
        if (status != CHM_OK) return status;
        w->states[w->count] = &w->state[w->count];
    }
    return CHM_OK;
}

static void close_runner(runner *w) {
    for (int64_t i = 0; i < w->count; i++) chm_stream_finish(&w->state[i]);
    chm_free(w->state);
    chm_free(w->states);
    chm_free(w->peak);
    chm_context_destroy(w->context);
    chm_stream_close(w->stream);
}

/* `passes` passes, each of one token of every one of `row->rows` streams, all wanting logits. */
static int decode_rows(runner *w, const chm_bench_row *row, const int32_t *ids, int64_t passes, double *rate) {
    chm_model *m = row->subject->model;
    int32_t parent[ROWS_MOST], id[ROWS_MOST];
    int64_t position[ROWS_MOST];
    chm_depth depth = {.passes = row->loops, .whole = true}; /* every token the same work */
    for (int64_t i = 0; i < row->rows; i++) {
        chm_stream_copy(&w->state[i], &w->stream->state);
        parent[i] = ~(int32_t)i;
    }
    const double start = chm_now();
    for (int64_t pass = 0; pass < passes; pass++) {
        for (int64_t i = 0; i < row->rows; i++) {
            position[i] = w->stream->state.position + pass;
            id[i] = ids[pass * row->rows + i];
        }
        const chm_rows rows = {.count = row->rows, .parent = parent, .position = position};
        int status = chm_context_begin(w->context, &rows, w->states, (int)row->rows, CHM_PASS_COMMIT);
        if (status == CHM_OK) {
            chm_model_forward(m, w->context, id, NULL, NULL, &depth);
            status = chm_context_status(w->context);
        }
        if (status != CHM_OK) return status;
    }
    *rate = (double)(passes * row->rows) / CHM_MAX(chm_now() - start, 1e-9);
    return CHM_OK;
}

static int read_prompt(runner *w, const chm_bench_row *row, const int32_t *ids, double *rate) {
    const float *logits = NULL;
    chm_stream_restart(w->stream);
    w->stream->depth = (chm_depth){.passes = row->loops, .whole = true};
    const double start = chm_now();
    const int status = chm_stream_feed(w->stream, ids, row->tokens, &logits);
    *rate = (double)row->tokens / CHM_MAX(chm_now() - start, 1e-9);
    return status;
}

/* ---- what is run ------------------------------------------------------------------------------------------------- */

typedef struct plan {
    int64_t prefill, decode, most;
} plan;

static chm_bench_row *add_row(chm_bench_run *b, const chm_bench_subject *s, const char *name, int loops, int64_t rows,
                              int64_t tokens) {
    chm_bench_row *row = &b->row[b->rows++];
    *row = (chm_bench_row){.subject = s, .name = name, .loops = loops, .rows = rows, .tokens = tokens};
    count_work(s->model, loops, (double)rows, 1, (double)rows, row);
    return row;
}

/* A prompt, one stream at every depth, several streams at the card's. */
static void plan_rows(chm_bench_run *b, const chm_bench_subject *s, const plan *p) {
    static const int depths[] = {1, 2, 4};
    const struct chm_loop_config *loop = &s->model->config->loop;
    const int usual = loop->enabled ? (int)loop->passes : 0;
    const int64_t passes = (p->prefill + CHM_PASS_ROWS - 1) / CHM_PASS_ROWS, rows = CHM_MIN(p->prefill, CHM_PASS_ROWS);
    chm_bench_row *prompt = add_row(b, s, "prefill", usual, rows, p->prefill);
    count_work(s->model, usual, (double)p->prefill / (double)passes, 1.0 / (double)passes, 1, prompt);
    bool seen = !loop->enabled;
    if (!loop->enabled) add_row(b, s, "decode", 0, 1, p->decode);
    for (size_t i = 0; loop->enabled && i < CHM_ARRAY_COUNT(depths); i++) {
        if (depths[i] > usual && !seen) add_row(b, s, "decode", usual, 1, p->decode);
        seen = seen || depths[i] >= usual;
        if (depths[i] >= loop->least && depths[i] <= loop->most) add_row(b, s, "decode", depths[i], 1, p->decode);
    }
    if (!seen) add_row(b, s, "decode", usual, 1, p->decode);
    for (int64_t n = 2; n <= p->most; n *= 2)
        add_row(b, s, "streams", usual, n, n * CHM_MAX(p->decode / n, (int64_t)LEAST_PASSES));
}

/* Opened and one token read: before anything else takes memory. */
static int first_token(const chm_bench_subject *s, runner *w, chm_bench_start *start) {
    const chm_model *m = s->model;
    const float *logits = NULL;
    const int32_t id = 0;
    const double begun = chm_now();
    int status = chm_stream_open(s->runtime, s->model, &w->stream);
    if (status == CHM_OK) status = chm_stream_feed(w->stream, &id, 1, &logits);
    if (status != CHM_OK) return status;
    *start = (chm_bench_start){.seconds = m->open_seconds + chm_now() - begun,
                               .files = m->map.size + m->experts_map.size,
                               .experts = m->experts_map.size,
                               .pass = chm_context_bytes(w->stream->context)};
    chm_resident(&start->mapped, &start->own);
    return CHM_OK;
}

static int run(chm_bench_run *b, runner *runners, const int32_t *ids, double *bandwidth, chm_memory_reader *memory) {
    int status = CHM_OK;
    /* round -1 warms caches and arenas up and is not counted; every round has every kind of work once */
    for (int round = -1; round < b->repeats; round++) {
        const double speed = chm_memory_read(memory);
        if (round >= 0) bandwidth[round] = speed;
        for (int i = 0; i < b->rows; i++) {
            chm_bench_row *row = &b->row[i];
            runner *w = &runners[row->subject - b->subject];
            double rate = 0, peak = 0;
            if (!strcmp(row->name, "prefill")) {
                if ((status = chm_kernel_peak(row->subject->runtime, row->subject->model, &peak)) != CHM_OK)
                    return status;
                if (round >= 0) w->peak[round] = peak;
                status = read_prompt(w, row, ids, &rate);
            } else {
                status = decode_rows(w, row, ids, row->tokens / row->rows, &rate);
            }
            if (status != CHM_OK) return status;
            if (round >= 0) row->rate[round] = rate;
        }
    }
    return CHM_OK;
}

int chm_bench(const chm_bench_subject *subject, uint32_t subjects, const chm_bench_options *options, chm_output format,
              FILE *out) {
    static const chm_bench_options none = {.size = sizeof(none)};
    if (options == NULL) options = &none;
    if (options->size != sizeof(*options))
        return chm_fail(CHM_E_CONFIG, "chm_bench_options has size %u, this library expects %zu", options->size,
                        sizeof(*options));
    chm_bench_run b = {.subject = subject, .subjects = subjects, .compare = options->compare};
    b.repeats = options->repeats ? options->repeats : 5;
    const plan p = {.prefill = options->prefill_tokens ? options->prefill_tokens : 256,
                    .decode = options->decode_tokens ? options->decode_tokens : 64,
                    .most = options->streams ? options->streams : ROWS_MOST};
    if (b.repeats < 1 || b.repeats > REPEATS_MAX)
        return chm_fail(CHM_E_CONFIG, "%d repeats: 1..%d", b.repeats, REPEATS_MAX);
    if (p.prefill < 1 || p.decode < 1)
        return chm_fail(CHM_E_CONFIG, "%lld tokens to read and %lld to write: at least 1 of each", (long long)p.prefill,
                        (long long)p.decode);
    if (p.most < 1 || p.most > ROWS_MOST)
        return chm_fail(CHM_E_CONFIG, "%lld streams in one pass: 1..%d", (long long)p.most, ROWS_MOST);
    if (subjects < 1) return chm_fail(CHM_E_CONFIG, "no model to measure: give at least one");
    const int64_t longest = CHM_MAX(CHM_MAX(p.prefill, p.decode), p.most * (int64_t)LEAST_PASSES);

    enum { KINDS = 12 }; /* a prompt, four depths and five numbers of streams are fewer */
    chm_memory_reader memory = {0};
    uint64_t largest = 0, known = UINT64_MAX;
    int status = CHM_E_MEMORY;
    runner *runners = chm_alloc(subjects * sizeof(*runners));
    double *rates = chm_alloc((size_t)subjects * KINDS * (size_t)b.repeats * sizeof(*rates));
    double *bandwidth = chm_alloc((size_t)b.repeats * sizeof(*bandwidth));
    int32_t *ids = chm_alloc((size_t)longest * sizeof(*ids));
    b.row = chm_alloc((size_t)subjects * KINDS * sizeof(*b.row));
    if (runners == NULL || rates == NULL || bandwidth == NULL || ids == NULL || b.row == NULL) goto out;
    if (b.compare && (status = chm_bench_load(b.compare, &b.other)) != CHM_OK) goto out;
    for (uint32_t i = 0; i < subjects; i++) {
        const chm_bench_subject *s = &subject[i];
        const chm_model *m = s->model;
        chm_bench_start start;
        if ((status = first_token(s, &runners[i], &start)) != CHM_OK) goto out;
        if (i == 0) b.start = start;
        largest = CHM_MAX(largest, start.files);
        known = CHM_MIN(known, (uint64_t)m->tokenizer->ops->vocab_size(m->tokenizer->self));
        plan_rows(&b, s, &p);
        runners[i].peak = chm_alloc((size_t)b.repeats * sizeof(*runners[i].peak));
        status = runners[i].peak ? open_states(&runners[i], m, p.most) : CHM_E_MEMORY;
        if (status == CHM_OK)
            status = chm_context_create(&s->runtime->kernels.kernels, s->runtime->pool, &m->layout,
                                        (float)m->config->norm_eps, &runners[i].context);
        if (status != CHM_OK) goto out;
    }
    if (b.other && (status = chm_bench_comparable(&b)) != CHM_OK) goto out;
    for (int i = 0; i < b.rows; i++) b.row[i].rate = rates + (size_t)i * (size_t)b.repeats;
    for (int64_t i = 0; i < longest; i++) ids[i] = (int32_t)chm_below_at(1, CHM_RANDOM_TEST, 0, (uint64_t)i, known);
    if ((status = chm_memory_reader_init(&memory, subject[0].runtime->pool, largest)) != CHM_OK) goto out;
    b.buffer = memory.bytes;
    if ((status = run(&b, runners, ids, bandwidth, &memory)) != CHM_OK) goto out;
    b.bandwidth = chm_measure(bandwidth, b.repeats);
    for (int i = 0; i < b.rows; i++) {
        chm_bench_row *row = &b.row[i];
        row->speed = chm_measure(row->rate, b.repeats);
        row->peak = chm_measure(runners[row->subject - subject].peak, b.repeats).mean;
        row->bytes_per_second = row->bytes * row->speed.mean;
        row->bandwidth_fraction = row->bytes_per_second / b.bandwidth.mean;
        row->compute_fraction = row->peak > 0 ? row->products * row->speed.mean / row->peak : -1;
    }
    status = chm_bench_report(&b, format, out);
out:
    for (uint32_t i = 0; runners && i < subjects; i++) close_runner(&runners[i]);
    chm_memory_reader_finish(&memory);
    chm_free(runners);
    chm_free(rates);
    chm_free(bandwidth);
    chm_free(ids);
    chm_free(b.row);
    json_decref(b.other);
    return status;
}
