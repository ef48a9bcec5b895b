/* log.c: what a run says: log.jsonl, and the messages and numbers handed to the caller. */
#include "base/json.h"
#include "model/loop.h"
#include "train/trainer.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LOG_SCHEMA = 1 };

double chm_train_seconds(const chm_trainer *t) { return t->resumed_seconds + chm_now() - t->started; }

double chm_train_bits_per_byte(const chm_trainer *t, double nats_per_token) {
    /* an answer is one byte */
    if (t->corpus.answers_only) return nats_per_token / log(2.0);
    const int64_t predicted = t->corpus.tokens - (t->corpus.marked ? t->corpus.documents : 0);
    return nats_per_token / log(2.0) * (double)predicted / (double)t->corpus.bytes;
}

static chm_progress progress_base(const chm_trainer *t) {
    const int64_t per_step = t->batch.streams * t->batch.rows;
    chm_progress p = {
        .size = sizeof p,
        .step = t->run.step,
        .tokens = t->run.step * per_step,
        .total_tokens = t->run.steps * per_step,
        .loss = NAN,
        .bits_per_byte = NAN,
        .learning_rate = NAN,
        .gradient_norm = NAN,
        .tokens_per_second = NAN,
        .seconds = chm_train_seconds(t),
        .eta_seconds = NAN,
        .validation_bits_per_byte = NAN,
    };
    return p;
}

void chm_train_message(const chm_trainer *t, const char *format, ...) {
    char text[1024];
    va_list args;
    if (t->options->progress == NULL) return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    chm_progress p = progress_base(t);
    p.message = text;
    t->options->progress(t->options->user, &p);
}

int chm_train_log_line(chm_trainer *t, const chm_string *line) {
    if (line->failed || line->text == NULL)
        return chm_fail(CHM_E_MEMORY, "out of memory for a line of %s", t->log_path);
    if (fwrite(line->text, 1, line->length, t->log) != line->length || fputc('\n', t->log) == EOF ||
        fflush(t->log) != 0)
        return chm_fail_system("%s: cannot write", t->log_path);
    t->run.log_bytes += (int64_t)line->length + 1;
    return CHM_OK;
}

static int finish_line(chm_trainer *t, chm_string *line) {
    chm_string_add(line, "}");
    const int status = chm_train_log_line(t, line);
    chm_string_finish(line);
    return status;
}

static void begin_line(const chm_trainer *t, chm_string *line, const char *event) {
    chm_string_add(line, "{\"schema_version\":%d,\"event\":\"%s\",\"step\":%lld,\"tokens\":%lld", LOG_SCHEMA, event,
                   (long long)t->run.step, (long long)(t->run.step * t->batch.streams * t->batch.rows));
}

/* JSON has no NaN */
static void add_number(chm_string *line, const char *name, double x) {
    if (isfinite(x))
        chm_string_add(line, ",\"%s\":%.10g", name, x);
    else
        chm_string_add(line, ",\"%s\":null", name);
}

static int write_header(chm_trainer *t) {
    char card[20], data[20], *text = NULL;
    int status = CHM_OK;
    chm_string line = {0};
    int64_t parameters = 0, embedding = 0;
    chm_model_parameter_count(t->model, &parameters, &embedding);
    snprintf(card, sizeof card, "%016llx", (unsigned long long)t->card_hash);
    snprintf(data, sizeof data, "%016llx", (unsigned long long)t->corpus.hash);
    const int64_t per_step = t->batch.streams * t->batch.rows;
    chm_json_begin();
    json_t *header = json_pack(
        "{s:i s:s s:s s:s s:I s:s s:I s:I s:I s:I s:I s:I s:I s:i s:s s:s}", "schema_version", LOG_SCHEMA, "event",
        "start", "version", chm_version(), "card_hash", card, "seed", (json_int_t)t->config->seed, "data_hash", data,
        "data_files", (json_int_t)t->corpus.files, "data_bytes", (json_int_t)t->corpus.bytes, "data_tokens",
        (json_int_t)t->corpus.tokens, "parameters", (json_int_t)parameters, "tokens_per_step", (json_int_t)per_step,
        "rows_per_pass", (json_int_t)(t->micro * t->batch.rows), "carry", (json_int_t)t->batch.carry, "threads",
        t->runtime->threads, "kernels", t->exact_kernels, "training_kernels", t->training_kernels);
    if (header != NULL) text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (text == NULL) return chm_fail(CHM_E_MEMORY, "out of memory for the header of %s", t->log_path);
    chm_string_add(&line, "%s", text);
    chm_free(text);
    status = chm_train_log_line(t, &line);
    chm_string_finish(&line);
    return status;
}

/* The bytes of a file up to its last newline: what a cut left of a line is no line. 0 when it cannot be read. */
static int64_t whole_lines(const char *path) {
    int64_t bytes = 0, whole = 0;
    FILE *f = fopen(path, "rbe");
    for (int c; f != NULL && (c = getc(f)) != EOF;) {
        bytes++;
        if (c == '\n') whole = bytes;
    }
    if (f != NULL) fclose(f);
    return whole;
}

void chm_train_compare_kernels(const chm_trainer *t, const char *then) {
    const char *now = t->training_kernels;
    if (then == NULL || strcmp(then, now) == 0) return;
    /* the same slots in the same order, unless another version wrote it */
    while (*now && *then) {
        const size_t n = strcspn(now, " "), m = strcspn(then, " ");
        if (n != m || strncmp(now, then, n) != 0) break;
        now += n + (now[n] == ' ');
        then += m + (then[m] == ' ');
    }
    chm_train_message(
        t,
        "the run was trained with the kernel %.*s, now it is %.*s: from here on its bytes may differ from "
        "those of a run that never stopped",
        (int)strcspn(then, " "), then, (int)strcspn(now, " "), now);
}

int chm_train_log_open(chm_trainer *t, bool resume) {
    struct stat st;
    chm_string line = {0};
    if (!resume || t->run.log_bytes == 0) {
        t->run.log_bytes = 0;
        t->log = fopen(t->log_path, "wbe");
        if (t->log == NULL) return chm_fail_system("%s: cannot write", t->log_path);
        return write_header(t);
    }
    const bool there = stat(t->log_path, &st) == 0;
    if (!there || st.st_size < t->run.log_bytes) {
        chm_train_message(t,
                          "%s is missing or shorter than the checkpoint knows it; going on behind its last whole line",
                          t->log_path);
        t->run.log_bytes = whole_lines(t->log_path);
    }
    if (there && truncate(t->log_path, (off_t)t->run.log_bytes) != 0)
        return chm_fail_system("%s: cannot cut back to the checkpoint", t->log_path);
    t->log = fopen(t->log_path, "abe");
    if (t->log == NULL) return chm_fail_system("%s: cannot write", t->log_path);
    begin_line(t, &line, "resume");
    /* names of plugins are plain words */
    chm_string_add(&line, ",\"threads\":%d,\"kernels\":\"%s\",\"training_kernels\":\"%s\"", t->runtime->threads,
                   t->exact_kernels, t->training_kernels);
    return finish_line(t, &line);
}

void chm_train_metric(void *trainer, const char *part, const char *name, int64_t count, const float *value) {
    chm_trainer *t = trainer;
    chm_string *s = &t->metrics;
    chm_string_add(s, "%s\"%s.%s\":%s", s->length > 0 ? "," : "", part, name, count == 1 ? "" : "[");
    for (int64_t i = 0; i < count; i++)
        if (isfinite(value[i]))
            chm_string_add(s, "%s%.7g", i ? "," : "", (double)value[i]);
        else
            chm_string_add(s, "%snull", i ? "," : "");
    if (count != 1) chm_string_add(s, "]");
    if (strcmp(name, "moe.max_violation") == 0) {
        t->violation += (double)value[0];
        t->mixtures++;
    }
}

/* What the layers said of the step just taken; most say nothing. */
static int log_metrics(chm_trainer *t) {
    chm_string line = {0};
    if (t->metrics.failed) return chm_fail(CHM_E_MEMORY, "out of memory for a line of %s", t->log_path);
    if (t->metrics.length == 0) return CHM_OK;
    begin_line(t, &line, "layers");
    chm_string_add(&line, ",\"values\":{%s}", t->metrics.text);
    chm_string_finish(&t->metrics);
    return finish_line(t, &line);
}

/* What the process has in memory now, in 10^6 bytes; NaN where that is not said. */
static double resident_megabytes(void) {
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL) return NAN;
    const bool read = fscanf(f, "%*s %ld", &pages) == 1;
    fclose(f);
    return read ? (double)pages * (double)sysconf(_SC_PAGESIZE) / 1e6 : NAN;
}

int chm_train_report(chm_trainer *t, double lr) {
    chm_run_state *run = &t->run;
    chm_string line = {0};
    const double now = chm_now(), interval = now - t->last_report_at;
    const int64_t per_step = t->batch.streams * t->batch.rows;
    chm_progress p = progress_base(t);
    /* every step of the interval skipped: no loss */
    p.loss = run->loss_targets > 0 ? run->loss / (double)run->loss_targets : NAN;
    p.bits_per_byte = chm_train_bits_per_byte(t, p.loss);
    p.learning_rate = lr;
    p.gradient_norm = run->gradient_norm;
    p.tokens_per_second = interval > 0 ? (double)((run->step - t->last_report_step) * per_step) / interval : NAN;
    p.eta_seconds = (double)((run->steps - run->step) * per_step) / p.tokens_per_second;
    begin_line(t, &line, "report");
    add_number(&line, "loss", p.loss);
    add_number(&line, "bits_per_byte", p.bits_per_byte);
    add_number(&line, "lr", lr);
    add_number(&line, "grad_norm", p.gradient_norm);
    chm_string_add(&line, ",\"skipped\":%lld", (long long)run->skipped);
    if (t->config->deep_zero_mask || t->config->mezo.skip_zeros) add_number(&line, "frozen_fraction", run->frozen);
    if (t->model->config->loop.enabled) {
        add_number(&line, "loop_count_mean", (double)run->depth.sum / (double)CHM_MAX(run->depth.rows, 1));
        add_number(&line, "loop_spectral_radius", chm_loop_radius(&t->model->loop));
    }
    if (t->mixtures > 0 && chm_card_wants_metric(t->model->card, "moe_expert_load_balance"))
        add_number(&line, "moe_expert_load_balance", t->violation / t->mixtures);
#define MEAN(metric, tap, logarithm)                                                                                   \
    if (run->shown.metric.count > 0 && chm_card_wants_metric(t->model->card, #metric))                                 \
        add_number(&line, #metric, run->shown.metric.sum / (double)run->shown.metric.count);
    CHM_TAP_METRICS(MEAN)
#undef MEAN
    add_number(&line, "tokens_per_second", p.tokens_per_second);
    add_number(&line, "seconds", p.seconds);
    if (chm_card_wants_metric(t->model->card, "memory_mb")) add_number(&line, "memory_mb", resident_megabytes());
    int status = finish_line(t, &line);
    if (status == CHM_OK) status = log_metrics(t);
    run->reported_loss = p.loss;
    run->reported = run->step;
    run->loss = 0;
    run->loss_targets = 0;
    run->depth = (chm_depth){0};
    memset(&run->shown, 0, sizeof run->shown);
    t->last_report_at = now;
    t->last_report_step = run->step;
    if (t->options->progress != NULL) t->options->progress(t->options->user, &p);
    return status;
}

int chm_train_log_skip(chm_trainer *t) {
    chm_string line = {0};
    begin_line(t, &line, "skip");
    chm_string_add(&line, ",\"reason\":\"the gradient or the loss is not finite\",\"skipped\":%lld",
                   (long long)t->run.skipped);
    if (t->run.skipped_in_a_row == 1)
        chm_train_message(t, "step %lld skipped: its gradient or loss is not finite", (long long)t->run.step);
    return finish_line(t, &line);
}

int chm_train_log_budget(chm_trainer *t) {
    chm_string line = {0};
    begin_line(t, &line, "budget");
    chm_string_add(&line, ",\"steps\":%lld,\"total_tokens\":%lld", (long long)t->run.steps,
                   (long long)(t->run.steps * t->batch.streams * t->batch.rows));
    add_number(&line, "seconds", chm_train_seconds(t));
    return finish_line(t, &line);
}

int chm_train_log_validation(chm_trainer *t, const chm_score *score) {
    chm_string line = {0};
    chm_progress p = progress_base(t);
    char text[160];
    snprintf(text, sizeof text, "held out, %s: %.4f bits per byte over %lld bytes",
             t->run.step > 0 ? "after training" : "before training", score->bits_per_byte, (long long)score->bytes);
    p.validation_bits_per_byte = score->bits_per_byte;
    p.message = text;
    begin_line(t, &line, "validation");
    chm_string_add(&line, ",\"bits_per_byte\":%.17g,\"nats\":%.17g,\"bytes\":%lld,\"predictions\":%lld",
                   score->bits_per_byte, score->nats, (long long)score->bytes, (long long)score->tokens);
    add_number(&line, "seconds", p.seconds);
    const int status = finish_line(t, &line);
    if (t->options->progress != NULL) t->options->progress(t->options->user, &p);
    return status;
}

int chm_train_log_end(chm_trainer *t) {
    chm_string line = {0};
    begin_line(t, &line, "end");
    chm_string_add(&line, ",\"skipped\":%lld", (long long)t->run.skipped);
    add_number(&line, "seconds", chm_train_seconds(t));
    return finish_line(t, &line);
}
