/* forecast.c: what a run will need and how long it will take, measured before it starts. */
#include "train/trainer.h"

#include <stdlib.h>
#include <string.h>

enum { PROBE_ROWS = 64, MOST_SAMPLES = 512 };

/* ---- memory ---- */

static const char *amount(double bytes, char text[32]) {
    if (bytes < 1e6)
        snprintf(text, 32, "%.0f kB", bytes / 1e3);
    else if (bytes < 1e9)
        snprintf(text, 32, "%.1f MB", bytes / 1e6);
    else
        snprintf(text, 32, "%.2f GB", bytes / 1e9);
    return text;
}

static const char *duration(double seconds, char text[32]) {
    if (seconds < 120)
        snprintf(text, 32, "%.0f s", seconds);
    else if (seconds < 7200)
        snprintf(text, 32, "%.0f min", seconds / 60);
    else if (seconds < 172800)
        snprintf(text, 32, "%.1f h", seconds / 3600);
    else
        snprintf(text, 32, "%.1f days", seconds / 86400);
    return text;
}

/* Bytes of the parts that are known without running anything. */
struct parts {
    uint64_t weights, gradients, optimiser, streams, data;
};

static struct parts known_parts(const chm_trainer *t) {
    struct parts p = {0};
    const int64_t group = t->model->config->weight_group;
    for (int i = 0; i < t->model->params; i++) {
        const chm_param *q = t->model->param[i];
        const uint64_t bytes = (uint64_t)q->count * sizeof(float);
        const bool gradients = t->config->mezo.samples == 0;
        p.weights += bytes;
        if (gradients) p.gradients += bytes;
        if (q->format != CHM_FORMAT_F32)
            p.weights +=
                (gradients ? bytes : 0) + chm_param_code_bytes(q, CHM_ENCODING_T2) + chm_param_scale_bytes(q, group);
    }
    p.optimiser = chm_optimiser_bytes(t);
    if (t->batch.carry > 1) p.streams = (uint64_t)t->batch.streams * t->model->layout.bytes;
    /* Tokens of a file are mapped, and the system may let go of them. Until it is known: a token a byte. */
    if (t->corpus.tokens == 0 && t->options->shards == NULL && t->data.bytes <= CHM_CORPUS_IN_MEMORY)
        p.data = (uint64_t)t->data.bytes * sizeof(int32_t);
    else if (t->corpus.memory != NULL)
        p.data = (uint64_t)t->corpus.tokens * (t->corpus.narrow ? 2 : 4);
    return p;
}

int chm_train_check_memory(chm_trainer *t) {
    char a[32], b[32];
    const uint64_t free_bytes = chm_available_memory(false);
    const struct parts p = known_parts(t);
    const uint64_t need = p.weights + p.gradients + p.optimiser + p.streams + p.data;
    if (free_bytes == 0 || need <= free_bytes) return CHM_OK;
    return chm_fail(
        CHM_E_MEMORY,
        "training %s needs %s for weights, gradients, optimiser, streams and data, and this machine has %s free: "
        "train a smaller card, or lower training.phases.pretrain.batch_tokens",
        t->options->card, amount((double)need, a), amount((double)free_bytes, b));
}

/* ---- time ---- */

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median, or the mean without the slowest twentieth when that is more: on a busy machine the slow passes count too.
 */
static double typical(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_size);
    const int kept = n - n / 20;
    double mean = 0;
    for (int i = 0; i < kept; i++) mean += x[i] / kept;
    return CHM_MAX(mean, n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]));
}

static bool stopped(const chm_trainer *t) { return t->options->stop != NULL && *t->options->stop != 0; }

int chm_train_calibrate(chm_trainer *t, double seconds, double *step_seconds) {
    const chm_batch *b = &t->batch;
    double loss, pass_time[MOST_SAMPLES], rest_time[2], begun, looped = 0;
    int64_t targets, step = 0, first = 0, streams = 0;
    int status, samples = 0;
    const float scale = 1.0f / (float)(b->streams * b->rows);
    char x[32], y[32];

    if ((status = chm_model_quantise(t->model, t->kernels, t->pool)) != CHM_OK) return status;
    /* A short pass first, so that a pass that would not fit is refused before it is tried. */
    const int64_t few = CHM_MIN(b->rows, PROBE_ROWS), all = t->micro * b->rows;
    chm_train_plan(t, 0);
    if ((status = chm_train_micro(t, 0, b->streams - 1, 1, few, scale, &loss, &targets)) != CHM_OK) return status;
    const double guess = (double)chm_context_bytes(t->context) * (double)all / (double)few;
    const uint64_t free_bytes = chm_available_memory(false);
    if (all > few && free_bytes != 0 && guess > (double)free_bytes) {
        return chm_fail(CHM_E_MEMORY,
                        "a training pass of %lld rows needs about %s and this machine has %s free: lower "
                        "training.phases.pretrain.micro_tokens%s",
                        (long long)all, amount(guess, x), amount((double)free_bytes, y),
                        t->micro == 1 ? " and training.phases.pretrain.seq_len" : "");
    }
    /* Warm up once, then time whole passes and what comes once a step. */
    if ((status = chm_train_micro(t, 0, 0, chm_train_group(t, 0), b->rows, scale, &loss, &targets)) != CHM_OK)
        return status;
    begun = chm_now();
    while (samples < MOST_SAMPLES && (samples < 3 || chm_now() - begun < seconds) && !stopped(t)) {
        const int64_t count = chm_train_group(t, first);
        const double at = chm_now();
        status = chm_train_micro(t, step, first, count, b->rows, scale, &loss, &targets);
        if (status != CHM_OK) return status;
        pass_time[samples++] = (chm_now() - at) * (double)t->micro / (double)count;
        streams += count;
        looped += chm_now() - at;
        if ((first += count) == b->streams) {
            first = 0;
            chm_train_plan(t, ++step);
        }
    }
    for (int i = 0; i < 2; i++) {
        const double at = chm_now();
        for (int64_t k = 0; k < (t->mezo ? 2 * t->config->mezo.samples + 1 : 1); k++)
            if ((status = chm_model_quantise(t->model, t->kernels, t->pool)) != CHM_OK) return status;
        if (t->mezo)
            chm_mezo_rehearse(t);
        else {
            (void)chm_optimiser_norm(t);
            chm_optimiser_update(t, 1, 0, 0, 1, true);
        }
        rest_time[i] = chm_now() - at;
    }
    chm_train_clear_all(t);
    if (stopped(t)) /* what was measured by then is too little to settle a budget on */
        return chm_fail(CHM_E_INTERRUPTED,
                        "stopped while the speed was measured, before the first step; begin by --resume");
    /* Passes of several depths of the loop have no typical time, only a mean. */
    const double stream_seconds =
        t->model->config->loop.enabled ? looped / (double)streams : typical(pass_time, samples) / (double)t->micro;
    const double rounds = t->mezo ? 2 * (double)t->config->mezo.samples : 1; /* of passes in a step */
    *step_seconds = stream_seconds * (double)b->streams * rounds + CHM_MIN(rest_time[0], rest_time[1]);
    return CHM_OK;
}

void chm_train_forecast(chm_trainer *t, double step_seconds, double other_seconds) {
    char a[32], b[32], c[32], d[32], e[32], f[32];
    const struct parts p = known_parts(t);
    const uint64_t passes = chm_context_bytes(t->context);
    const uint64_t total = p.weights + p.gradients + p.optimiser + p.streams + p.data + passes;
    const int64_t per_step = t->batch.streams * t->batch.rows;
    int64_t parameters = 0, embedding = 0;
    chm_model_parameter_count(t->model, &parameters, &embedding);
    chm_train_message(t,
                      "model: %lld parameters (%lld of them the embedding); data: %lld bytes, %lld tokens in %lld %s, "
                      "%lld document%s",
                      (long long)parameters, (long long)embedding, (long long)t->corpus.bytes,
                      (long long)t->corpus.tokens, (long long)t->corpus.files, t->corpus.files == 1 ? "file" : "files",
                      (long long)t->corpus.documents, t->corpus.documents == 1 ? "" : "s");
    if (t->config->holdout > 0)
        chm_train_message(t, "held out: %lld document%s of %lld bytes", (long long)t->corpus.held_documents,
                          t->corpus.held_documents == 1 ? "" : "s", (long long)t->corpus.held_bytes);
    chm_train_message(t, "memory: weights %s, gradients %s, optimiser %s, passes %s, streams and data %s; %s in all",
                      amount((double)p.weights, a), amount((double)p.gradients, b), amount((double)p.optimiser, c),
                      amount((double)passes, d), amount((double)(p.streams + p.data), e), amount((double)total, f));
    chm_train_message(
        t,
        "run: %lld step%s of %lld tokens (%lld streams of %lld, %lld rows a pass), %lld tokens, %.2f times "
        "the data; about %.0f tokens/s, %s in all",
        (long long)t->run.steps, t->run.steps == 1 ? "" : "s", (long long)per_step, (long long)t->batch.streams,
        (long long)t->batch.rows, (long long)(t->micro * t->batch.rows), (long long)(t->run.steps * per_step),
        (double)(t->run.steps * per_step) / (double)t->corpus.tokens, (double)per_step / step_seconds,
        duration((double)t->run.steps * step_seconds + other_seconds, a));
}
