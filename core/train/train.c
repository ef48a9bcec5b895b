/* train.c: chm_train(): a run from its card to its packed model. */
#include "train/trainer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PASS_ROWS = 512,          /* rows run at once unless the card says; the fastest of 128..4096 for small cards */
    PASS_LOGITS = 64 << 20,   /* and its logits within this many bytes */
    FIRST_VALIDATION = 32768, /* bytes that the validation before training reads */
    LEAST_REPORTS = 50,       /* of a run */
};
/* Of a budget in seconds: the least that its speed is measured over, and what a first look may take. */
static const double measured_share = 0.03, glance_share = 0.005;
static const double budget_margin = 0.99; /* of what is left: better a little early than late */

/* ---- putting together ---- */

static int check_options(const chm_train_options *o, const chm_train_result *result) {
    if (o->size != sizeof *o || (result != NULL && result->size != sizeof *result))
        return chm_fail(CHM_E_CONFIG,
                        "chm_train_options and _result have size %u and %u, this library expects %zu and %zu", o->size,
                        result ? result->size : 0, sizeof *o, sizeof *result);
    if (o->card == NULL) return chm_fail(CHM_E_CONFIG, "no card: name the model card to train");
    if (o->out == NULL && !o->dry_run)
        return chm_fail(CHM_E_CONFIG, "no run directory: name the directory that the run is kept in");
    if (o->data_count == 0) return chm_fail(CHM_E_CONFIG, "no data: name at least one file of text");
    if (o->seconds != 0 && o->tokens != 0)
        return chm_fail(CHM_E_CONFIG, "a budget in seconds and one in tokens: give one of them");
    if (!(o->seconds >= 0) || !isfinite(o->seconds) || o->tokens < 0 || (double)o->tokens > CHM_TRAIN_TOKENS_MAX)
        return chm_fail(CHM_E_CONFIG, "a budget is a positive number of seconds or of tokens, at most %g of these",
                        CHM_TRAIN_TOKENS_MAX);
    if (!(o->checkpoint_seconds >= 0))
        return chm_fail(CHM_E_CONFIG, "the interval between checkpoints is a positive number of seconds");
    return CHM_OK;
}

static int load_card(chm_trainer *t) {
    const chm_overlay *overlay = t->options->overlay;
    const struct chm_card_options how = {
        .registry = &t->runtime->registry,
        .ini = overlay ? overlay->ini : NULL,
        .ini_count = overlay ? overlay->ini_count : 0,
        .set = overlay ? overlay->set : NULL,
        .set_count = overlay ? overlay->set_count : 0,
        .read_environment = overlay == NULL || !overlay->no_environment,
    };
    chm_card *card = NULL;
    int status = chm_card_load(t->options->card, &how, &card);
    if (status != CHM_OK) return status;
    if ((status = chm_model_create(card, &t->runtime->registry, &t->model)) != CHM_OK) return status;
    t->card = chm_card_json(t->model->card);
    if (t->card == NULL) return CHM_E_MEMORY;
    t->card_hash = chm_hash64(t->card, strlen(t->card));
    t->config = chm_card_train(t->model->card);
    if (t->config == NULL || t->config->seq_len < 1 || t->config->batch_tokens < 1)
        return chm_fail(CHM_E_CONFIG, "%s: training.phases has no phase 'pretrain' with seq_len and batch_tokens",
                        t->options->card);
    if ((status = chm_optimiser_open(t)) != CHM_OK) return status;
    status = chm_tokenizer_open(&t->tokenizer, &t->runtime->registry, t->model->card);
    if (status != CHM_OK) return chm_fail_prefix(status, "%s", t->options->card);
    t->model->made_with = &t->tokenizer;
    chm_card_say_unused(t->model->card);
    return CHM_OK;
}

static void plan_batches(chm_trainer *t) {
    const chm_train_config *c = t->config;
    t->batch = (chm_batch){
        .corpus = &t->corpus,
        .seed = c->seed,
        .streams = CHM_MAX(c->batch_tokens / c->seq_len, 1),
        .rows = c->seq_len,
        .carry = CHM_MAX(c->carry, 1),
    };
    int64_t rows = c->micro_tokens;
    if (rows <= 0) {
        rows = PASS_LOGITS / (int64_t)sizeof(float) / CHM_MAX(t->model->config->vocab, 1);
        rows = CHM_MIN(rows, PASS_ROWS);
    }
    t->micro = CHM_MIN(CHM_MAX(rows / c->seq_len, 1), t->batch.streams);
}

int chm_train_allocate(chm_trainer *t) {
    const chm_model *m = t->model;
    const int64_t rows = t->micro * t->batch.rows;
    int status = t->config->mezo.samples > 0 ? chm_model_allocate_forward(t->model) : chm_model_allocate(t->model);
    if (status == CHM_OK) status = chm_optimiser_allocate(t);
    if (status != CHM_OK) return status;
    t->parent = chm_alloc((size_t)rows * sizeof *t->parent);
    t->id = chm_alloc((size_t)rows * sizeof *t->id);
    t->target = chm_alloc((size_t)rows * sizeof *t->target);
    t->position = chm_alloc((size_t)rows * sizeof *t->position);
    t->pick = chm_alloc((size_t)t->batch.streams * sizeof *t->pick);
    t->depth = chm_alloc((size_t)t->batch.streams * sizeof *t->depth);
    if (t->parent == NULL || t->id == NULL || t->target == NULL || t->position == NULL || t->pick == NULL ||
        t->depth == NULL)
        return CHM_E_MEMORY;
    if (t->batch.carry > 1) {
        t->stream = chm_alloc((size_t)t->batch.streams * sizeof *t->stream);
        t->slot = chm_alloc((size_t)t->micro * sizeof *t->slot);
        if (t->stream == NULL || t->slot == NULL) return CHM_E_MEMORY;
        for (int64_t s = 0; s < t->batch.streams; s++)
            if ((status = chm_stream_init(&t->stream[s], &m->layout)) != CHM_OK) return status;
    }
    t->exact_kernels = chm_kernels_used(t->runtime);
    t->training_kernels = chm_kernels_training(t->runtime);
    if (t->exact_kernels == NULL || t->training_kernels == NULL) return CHM_E_MEMORY;
    status = chm_context_create(t->kernels, t->pool, &m->layout, (float)m->config->norm_eps, &t->context);
    if (status != CHM_OK) return status;
    /* without a way back there is nothing to compute again, and forgetting is free */
    chm_context_recompute(t->context, t->config->gradient_checkpointing || t->mezo != NULL);
    chm_train_watch(t);
    return CHM_OK;
}

/* ---- the data ---- */

/* The files that are read, before anything else is done with them. */
static int find_data(chm_trainer *t) {
    const chm_train_options *o = t->options;
    if (o->validation_count > 0 && t->config->holdout > 0)
        return chm_fail(CHM_E_CONFIG,
                        "a text to validate on is named, and training.holdout = %g takes one from the data: give one "
                        "of them (--set training.holdout=0)",
                        t->config->holdout);
    t->validates = o->validation_count > 0 || t->config->holdout > 0;
    int status = chm_sources_find(&t->data, o->data, o->data_count, o->out);
    if (status == CHM_OK && o->validation_count > 0)
        status = chm_sources_find(&t->validation, o->validation, o->validation_count, o->out);
    for (uint32_t i = 0; i < t->validation.count && status == CHM_OK; i++) {
        chm_contents in = {0};
        status = chm_contents_open(&in, t->validation.path[i], false);
        chm_contents_close(&in);
    }
    return status;
}

static void say(void *user, const char *sentence) { chm_train_message(user, "%s", sentence); }

static int lock_directory(chm_trainer *t);

static int load_data(chm_trainer *t) {
    const chm_train_options *o = t->options;
    const chm_corpus_request request = {
        .files = (const char *const *)t->data.path,
        .count = t->data.count,
        .tokenizer = t->tokenizer.ops,
        .tokenizer_self = t->tokenizer.self,
        .tokenizer_hash = t->tokenizer.hash,
        .rules = chm_corpus_rules_of(t->config, CHM_PART_KEPT),
        .directory = o->shards != NULL ? o->shards
                     : o->dry_run      ? NULL
                                       : o->out,
        .always = o->shards != NULL,
        .say = say,
        .user = t,
        .stop = o->stop,
    };
    int status = chm_corpus_survey(&t->corpus, &request);
    /* a file of tokens in the run directory is written by whoever holds that */
    if (status == CHM_OK && o->shards == NULL && chm_corpus_is_kept(&t->corpus, &request)) status = lock_directory(t);
    return status == CHM_OK ? chm_corpus_load(&t->corpus, &request) : status;
}

/* ---- the run directory ---- */

static bool exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

static int name_files(chm_trainer *t) {
    const char *out = t->options->out;
    t->log_path = chm_format("%s/log.jsonl", out);
    t->checkpoint_path = chm_format("%s/checkpoint.safetensors", out);
    t->model_path = chm_format("%s/model.b158", out);
    t->card_path = chm_format("%s/card.json", out);
    t->lock_path = chm_format("%s/lock", out);
    if (t->tokenizer.file != NULL) {
        const char *name = chm_card_model(t->model->card)->tokenizer_file, *last = strrchr(name, '/');
        if ((t->tokenizer_path = chm_format("%s/%s", out, last ? last + 1 : name)) == NULL) return CHM_E_MEMORY;
    }
    if (t->lock_path == NULL || t->log_path == NULL || t->checkpoint_path == NULL || t->model_path == NULL ||
        t->card_path == NULL)
        return CHM_E_MEMORY;
    return CHM_OK;
}

/* What a new run writes in place of nothing that it reads. */
static int check_replaced(const chm_trainer *t) {
    const chm_train_options *o = t->options;
    const struct {
        const char *const *path;
        uint32_t count;
    } read[] = {{&o->card, 1},
                {(const char *const *)t->data.path, t->data.count},
                {(const char *const *)t->validation.path, t->validation.count},
                {o->overlay ? o->overlay->ini : NULL, o->overlay ? o->overlay->ini_count : 0}};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(read); k++)
        for (uint32_t i = 0; i < read[k].count; i++)
            if (chm_same_file(t->card_path, read[k].path[i]) ||
                (t->tokenizer_path != NULL && chm_same_file(t->tokenizer_path, read[k].path[i])))
                return chm_fail(CHM_E_CONFIG, "%s: the run would replace it in %s, and it is read: name another --out",
                                read[k].path[i], o->out);
    return CHM_OK;
}

/* Is there a run, and should there be? Changes nothing on disk. `resume` becomes whether a checkpoint is there to load.
 */
static int check_directory(const chm_trainer *t, bool *resume) {
    const char *out = t->options->out;
    const bool checkpoint = exists(t->checkpoint_path), log = exists(t->log_path);
    *resume = t->options->resume && checkpoint;
    if (t->options->resume) {
        /* stopped before its first checkpoint it left its lock, and begins again */
        if (!checkpoint && !log && !exists(t->lock_path))
            return chm_fail(CHM_E_CONFIG, "%s: holds no run to resume; leave --resume out to begin one there", out);
        return *resume ? CHM_OK : check_replaced(t);
    }
    const char *holds = checkpoint              ? "checkpoint.safetensors"
                        : log                   ? "log.jsonl"
                        : exists(t->model_path) ? "model.b158"
                        : exists(t->card_path)  ? "card.json"
                                                : NULL;
    if (holds != NULL && (checkpoint || log || exists(t->lock_path)))
        return chm_fail(CHM_E_CONFIG, "%s: already holds a run (%s); go on with it by --resume, or name another --out",
                        out, holds);
    const int status = check_replaced(t);
    if (status == CHM_OK && holds != NULL)
        return chm_fail(CHM_E_CONFIG,
                        "%s: already holds a %s, which the run would replace; name another --out, or move it away", out,
                        holds);
    return status;
}

/* What a killed run was writing: nobody else is writing here, now that the directory is locked. */
static void remove_unfinished(const chm_trainer *t) {
    const char *const path[] = {t->checkpoint_path, t->model_path, t->card_path, t->tokenizer_path};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(path); i++)
        if (path[i] != NULL) chm_writer_clear(path[i], true);
    /* files of tokens go by the hash of their data, which may be other data now */
    DIR *directory = opendir(t->options->out);
    struct dirent *entry;
    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        const char *name = entry->d_name, *dot = strstr(name, ".tokens.tmp-");
        if (dot == NULL || strncmp(name, "corpus-", 7) != 0) continue;
        char *whole = chm_format("%s/%.*s.tokens", t->options->out, (int)(dot - name), name);
        if (whole != NULL) chm_writer_clear(whole, true);
        chm_free(whole);
    }
    if (directory != NULL) closedir(directory);
}

static int lock_directory(chm_trainer *t) {
    int status = chm_make_directory(t->options->out);
    if (status != CHM_OK) return status;
    const char *path = t->lock_path;
    t->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (t->lock < 0)
        status = chm_fail_system("%s: cannot write", path);
    else if (flock(t->lock, LOCK_EX | LOCK_NB) != 0)
        status = errno == EWOULDBLOCK
                     ? chm_fail(CHM_E_CONFIG,
                                "%s: another process is training there (it holds %s); wait for it, or name "
                                "another --out",
                                t->options->out, path)
                     : chm_fail_system("%s: cannot lock", path);
    if (status == CHM_OK) remove_unfinished(t);
    return status;
}

static int write_file(const char *path, const void *data, size_t bytes, const char *end) {
    chm_writer w;
    int status = chm_writer_open(&w, path);
    if (status != CHM_OK) return status;
    status = chm_writer_write(&w, data, bytes);
    if (status == CHM_OK && *end) status = chm_writer_write(&w, end, strlen(end));
    if (status == CHM_OK) return chm_writer_commit(&w);
    chm_writer_abandon(&w);
    return status;
}

/* The card, and beside it the file of its tokenizer: together they are all that a run needs besides its data. */
static int write_card(const chm_trainer *t) {
    const size_t n = strlen(t->card);
    if (t->tokenizer_path != NULL && !chm_same_file(t->tokenizer_path, t->tokenizer.name)) {
        const int status = write_file(t->tokenizer_path, t->tokenizer.file, t->tokenizer.file_bytes, "");
        if (status != CHM_OK) return status;
    }
    return write_file(t->card_path, t->card, n, n > 0 && t->card[n - 1] != '\n' ? "\n" : "");
}

/* ---- validation and saving ---- */

static int validate(chm_trainer *t, int64_t limit, chm_score *score) {
    const chm_sources *held = t->config->holdout > 0 ? &t->data : &t->validation;
    const chm_score_request request = {
        .model = t->model,
        .kernels = t->kernels,
        .pool = t->pool,
        .tokenizer = t->tokenizer.ops,
        .tokenizer_self = t->tokenizer.self,
        .files = (const char *const *)held->path,
        .count = held->count,
        .limit_bytes = limit,
        .expected_bytes = t->corpus.held_bytes,
        .rules = chm_corpus_rules_of(t->config, t->config->holdout > 0 ? CHM_PART_HELD : CHM_PART_ALL),
        .stop = t->options->stop,
    };
    int status = chm_model_quantise(t->model, t->kernels, t->pool);
    if (status != CHM_OK) return status;
    return chm_score_files(&request, score);
}

/* Seconds of a step: of those this session took, once they are enough to tell, else as it was known before. */
static double pace(const chm_trainer *t) {
    enum { PACE_STEPS = 16 };
    const int64_t here = t->stepping_since > 0 ? t->run.step - t->first_step : 0;
    if (here < PACE_STEPS) return (double)(t->batch.streams * t->batch.rows) / t->run.rate;
    return (chm_now() - t->stepping_since) / (double)here;
}

/* The model and the checkpoint, as they are after the last whole step. */
static int save(chm_trainer *t) {
    const double begun = chm_now();
    if (t->run.rate > 0) t->run.rate = (double)(t->batch.streams * t->batch.rows) / pace(t);
    int status = chm_model_quantise(t->model, t->kernels, t->pool);
    if (status == CHM_OK) status = chm_model_save(t->model, t->model_path);
    if (status == CHM_OK) status = chm_train_checkpoint_save(t);
    t->checkpoint_cost = chm_now() - begun;
    return status;
}

/* ---- the run ---- */

static bool stopped(const chm_trainer *t) { return t->options->stop != NULL && *t->options->stop != 0; }

static double checkpoint_interval(const chm_trainer *t) {
    return t->options->checkpoint_seconds > 0 ? t->options->checkpoint_seconds : 60;
}

static int64_t steps_of_tokens(const chm_trainer *t, int64_t tokens) {
    const int64_t per_step = t->batch.streams * t->batch.rows;
    return tokens / per_step + (tokens % per_step != 0);
}

static void say_budget(const chm_trainer *t) {
    const long long tokens = (long long)(t->run.steps * t->batch.streams * t->batch.rows);
    chm_train_message(t, "budget: %.0f s are %lld steps, %lld tokens; --tokens %lld is the same run", t->run.budget,
                      (long long)t->run.steps, tokens, tokens);
}

/* How many steps a budget in seconds has room for, those taken included; `each` is the time of one. */
static int64_t affordable(const chm_trainer *t, double each) {
    const double left = (t->run.budget - chm_train_seconds(t) - t->run.closing) * budget_margin;
    const double most = CHM_TRAIN_TOKENS_MAX / (double)(t->batch.streams * t->batch.rows) - (double)t->run.step;
    const int64_t more = left > each ? (int64_t)CHM_MIN(left / each, CHM_MAX(most, 0)) : 0;
    return CHM_MAX(t->run.step + more, 1);
}

/*
 * Turns a budget in seconds into steps as late as the schedule lets it: the pace of real steps, over as much of the run
 * as can be, foretells better than any rehearsal. No step taken so far depended on the number.
 */
static int settle(chm_trainer *t) {
    chm_run_state *r = &t->run;
    if (r->settled) return CHM_OK;
    r->steps = affordable(t, pace(t));
    while (chm_schedule_free(t->config, r->steps) < r->step) r->steps++;
    if (chm_schedule_free(t->config, r->steps) > r->step) return CHM_OK;
    r->settled = 1;
    say_budget(t);
    const int status = chm_train_log_budget(t);
    /* what was said is on disk; but none amid skipped steps: the last good state stays */
    return status == CHM_OK && r->skipped_in_a_row == 0 ? chm_train_checkpoint_save(t) : status;
}

/* Measures, settles the number of steps if it can be now, and says what is going to happen. */
static int begin(chm_trainer *t) {
    const chm_train_options *o = t->options;
    /* begun again after it ended before its budget was settled: that budget still holds */
    const double seconds = o->seconds > 0 || o->tokens > 0 ? o->seconds : t->run.budget;
    double step_seconds = 0, validation_seconds = 0;
    int status;
    if ((status = chm_model_randomise(t->model, t->config->seed)) != CHM_OK) return status;
    chm_score first = {0};
    if (t->validates) {
        const double begun = chm_now();
        if ((status = validate(t, o->dry_run ? FIRST_VALIDATION / 16 : FIRST_VALIDATION, &first)) != CHM_OK)
            return status != CHM_E_INTERRUPTED
                       ? status
                       : chm_fail(status, "stopped while the held-out text was scored, before the "
                                          "first step; begin by --resume");
        validation_seconds = (chm_now() - begun) * (double)first.total_bytes / (double)first.bytes;
    }
    if ((status = chm_train_calibrate(t, seconds * glance_share, &step_seconds)) != CHM_OK) return status;
    const int64_t per_step = t->batch.streams * t->batch.rows;
    t->run.budget = seconds;
    t->run.settled = seconds == 0;
    t->run.reported_loss = NAN;
    t->run.gradient_norm = NAN;
    t->run.steps = seconds > 0 ? 0 : steps_of_tokens(t, o->tokens > 0 ? o->tokens : t->config->tokens);
    if (!o->dry_run) {
        /* What a checkpoint costs is part of the budget. Killed before that is in steps, this one says 0. */
        if ((status = save(t)) != CHM_OK) return status;
    }
    t->run.closing = validation_seconds + t->checkpoint_cost;
    if (seconds > 0) {
        t->run.steps = affordable(t, step_seconds);
        const int64_t free_steps = chm_schedule_free(t->config, t->run.steps);
        t->run.settled = (double)free_steps * step_seconds < seconds * measured_share;
        if (t->run.settled) {
            status = chm_train_calibrate(t, seconds * measured_share, &step_seconds);
            if (status != CHM_OK) return status;
            t->run.closing += t->checkpoint_cost; /* of the checkpoint below */
            t->run.steps = affordable(t, step_seconds * (1 + t->checkpoint_cost / checkpoint_interval(t)));
            say_budget(t);
            if (t->run.steps == 1)
                chm_train_message(t,
                                  "the budget of %.0f s has room for no more than one step of %.1f s; %.0f s of it are "
                                  "for the held-out text",
                                  seconds, step_seconds, validation_seconds);
        } else {
            chm_train_message(t,
                              "budget: %.0f s are about %lld steps; the number is settled near step %lld, before which "
                              "no learning rate depends on it",
                              seconds, (long long)t->run.steps, (long long)free_steps);
        }
    }
    t->run.rate = (double)per_step / step_seconds;
    chm_train_forecast(t, step_seconds, t->run.closing + chm_now() - t->started);
    if (o->dry_run) return CHM_OK;
    if ((status = write_card(t)) != CHM_OK) return status;
    if ((status = chm_train_log_open(t, false)) != CHM_OK) return status;
    if (t->run.settled && (status = chm_train_log_budget(t)) != CHM_OK) return status;
    if (t->validates && (status = chm_train_log_validation(t, &first)) != CHM_OK) return status;
    /* the budget is on disk before the first step */
    return chm_train_checkpoint_save(t);
}

static int go_on(chm_trainer *t) {
    int status = chm_train_checkpoint_load(t);
    if (status != CHM_OK) return status;
    if (t->options->seconds > 0 && t->options->seconds != t->run.budget)
        return t->run.budget > 0
                   ? chm_fail(
                         CHM_E_CONFIG,
                         "%s: this run was begun for %g s, not %g; resume it without --seconds, or begin another --out",
                         t->options->out, t->run.budget, t->options->seconds)
                   : chm_fail(
                         CHM_E_CONFIG,
                         "%s: this run was begun for %lld tokens; resume it without --seconds, or begin another --out",
                         t->options->out, (long long)(t->run.steps * t->batch.streams * t->batch.rows));
    if (t->options->tokens > 0 && !t->run.settled)
        return chm_fail(CHM_E_CONFIG,
                        "%s: this run was begun for %.0f s; resume it without --tokens, or begin another --out",
                        t->options->out, t->run.budget);
    if (t->run.steps == 0) return begin(t); /* it ended before its budget was in steps */
    if (t->options->tokens > 0 && steps_of_tokens(t, t->options->tokens) != t->run.steps)
        return chm_fail(CHM_E_CONFIG,
                        "%s: this run was begun for %lld tokens, which its learning rates follow; resume it without "
                        "--tokens, or begin another --out",
                        t->options->out, (long long)(t->run.steps * t->batch.streams * t->batch.rows));
    /* ended between its first checkpoint and its card */
    if (!exists(t->card_path) && (status = write_card(t)) != CHM_OK) return status;
    t->resumed_seconds = t->run.seconds;
    chm_train_message(t, "resuming %s at step %lld of %s%lld", t->options->out, (long long)t->run.step,
                      t->run.settled ? "" : "about ", (long long)t->run.steps);
    return chm_train_log_open(t, true);
}

static int run(chm_trainer *t) {
    chm_run_state *r = &t->run;
    const int64_t per_step = t->batch.streams * t->batch.rows;
    /* the card's interval, but a short run is not left without a word */
    const int64_t interval =
        CHM_MAX(CHM_MIN(t->config->report_interval_tokens, r->steps * per_step / LEAST_REPORTS), 1);
    double saved_at = chm_now(), lr = 0, unused;
    int status;
    t->last_report_at = t->stepping_since = saved_at;
    t->last_report_step = t->first_step = r->step;
    chm_schedule_at(t->config, CHM_MAX(r->step - 1, 0), r->steps, &lr, &unused);
    while ((status = settle(t)) == CHM_OK && r->step < r->steps) {
        if (stopped(t)) {
            if ((status = save(t)) != CHM_OK) return status;
            return chm_fail(CHM_E_INTERRUPTED,
                            "stopped after step %lld of %s%lld, everything is saved; go on by --resume",
                            (long long)r->step, r->settled ? "" : "about ", (long long)r->steps);
        }
        const bool report = (r->step + 1) * per_step / interval != r->step * per_step / interval;
        t->metrics_wanted = report || r->step + 1 == r->steps;
        if ((status = chm_train_step(t, &lr)) != CHM_OK) return status;
        if (r->skipped_in_a_row >= CHM_MOST_SKIPPED)
            return chm_fail(CHM_E_VERDICT,
                            "%d steps in a row had a gradient or loss that is not finite, up to step %lld; the run "
                            "stopped and %s is the last good state: begin again with a lower "
                            "training.phases.pretrain.lr (now %g) or "
                            "grad_clip (now %g)",
                            CHM_MOST_SKIPPED, (long long)r->step, t->checkpoint_path, t->config->lr,
                            t->config->grad_clip);
        if (report && (status = chm_train_report(t, lr)) != CHM_OK) return status;
        /* none amid skipped steps: the last good state stays */
        if (chm_now() - saved_at >= checkpoint_interval(t) && r->skipped_in_a_row == 0 && r->step < r->steps) {
            if ((status = save(t)) != CHM_OK) return status;
            saved_at = chm_now();
            chm_train_message(t, "checkpoint at step %lld", (long long)r->step);
        }
    }
    if (status == CHM_OK && r->reported < r->step) status = chm_train_report(t, lr);
    return status == CHM_OK ? save(t) : status;
}

/* Whether the run is done, but its numbers are not those of a model that learnt. */
static bool diverged(const chm_trainer *t) {
    return !isfinite(t->run.reported_loss) || t->run.skipped * 2 > t->run.step;
}

static int finish(chm_trainer *t, chm_train_result *result) {
    int status;
    if (t->validates) {
        chm_score score;
        status = validate(t, 0, &score);
        if (status == CHM_E_INTERRUPTED)
            return chm_fail(status,
                            "stopped while the held-out text was scored; the model is trained and saved, --resume "
                            "scores it");
        if (status != CHM_OK && !diverged(t)) return status; /* else that has a sentence below */
        if (status == CHM_OK) {
            result->validation_bits_per_byte = score.bits_per_byte;
            if ((status = chm_train_log_validation(t, &score)) != CHM_OK) return status;
        }
    }
    if ((status = chm_train_log_end(t)) != CHM_OK || !diverged(t)) return status;
    char loss[64] = "not finite";
    if (isfinite(t->run.reported_loss)) snprintf(loss, sizeof loss, "%.4f", t->run.reported_loss);
    return chm_fail(
        CHM_E_VERDICT,
        "the run diverged: %lld of %lld steps were skipped and the last reported loss is %s; %s is saved all "
        "the same: begin again with a lower training.phases.pretrain.lr (now %g) or grad_clip (now %g)",
        (long long)t->run.skipped, (long long)t->run.step, loss, t->model_path, t->config->lr, t->config->grad_clip);
}

void chm_train_release(chm_trainer *t) {
    if (t->log != NULL) fclose(t->log);
    if (t->lock >= 0) close(t->lock); /* and with it the lock */
    for (int64_t s = 0; t->stream != NULL && s < t->batch.streams; s++)
        if (t->stream[s].blob != NULL) chm_stream_finish(&t->stream[s]);
    chm_free(t->stream);
    chm_free(t->slot);
    chm_optimiser_finish(t);
    chm_free(t->parent);
    chm_free(t->id);
    chm_free(t->target);
    chm_free(t->position);
    chm_free(t->pick);
    chm_free(t->depth);
    chm_context_destroy(t->context);
    chm_corpus_finish(&t->corpus);
    chm_sources_finish(&t->data);
    chm_sources_finish(&t->validation);
    chm_tokenizer_close(&t->tokenizer);
    chm_model_destroy(t->model);
    chm_string_finish(&t->metrics);
    chm_free(t->card);
    chm_text_free(t->exact_kernels);
    chm_text_free(t->training_kernels);
    chm_free(t->log_path);
    chm_free(t->checkpoint_path);
    chm_free(t->model_path);
    chm_free(t->card_path);
    chm_free(t->lock_path);
    chm_free(t->tokenizer_path);
}

int chm_train(chm_runtime *r, const chm_train_options *options, chm_train_result *result) {
    chm_train_result unwanted = {.size = sizeof unwanted};
    bool resume = false;
    int status = check_options(options, result);
    if (status != CHM_OK) return status;
    if (result == NULL) result = &unwanted;
    chm_trainer t = {
        .runtime = r,
        .kernels = &r->kernels.kernels,
        .pool = r->pool,
        .options = options,
        .lock = -1,
        .started = chm_now(),
    };
    *result = (chm_train_result){.size = sizeof *result, .loss = NAN, .validation_bits_per_byte = NAN};
    if ((status = load_card(&t)) != CHM_OK) goto out;
    plan_batches(&t);
    if ((status = find_data(&t)) != CHM_OK) goto out;
    if (!options->dry_run) {
        if ((status = name_files(&t)) != CHM_OK) goto out;
        if ((status = check_directory(&t, &resume)) != CHM_OK) goto out;
    }
    if ((status = chm_train_check_memory(&t)) != CHM_OK) goto out;
    if ((status = load_data(&t)) != CHM_OK) goto out;
    const int64_t run_tokens = t.batch.rows * t.batch.carry;
    if (t.config->line_documents && t.config->answers_only && t.corpus.longest > run_tokens) {
        /* its answers would be asked for without its beginning */
        status =
            chm_fail(CHM_E_DATA,
                     "%s: a line makes %lld tokens, and answers need all of it within seq_len x carry_segments = "
                     "%lld: set training.phases.pretrain.seq_len=%lld",
                     t.data.path[0], (long long)t.corpus.longest, (long long)run_tokens, (long long)t.corpus.longest);
        goto out;
    }
    if ((status = chm_train_allocate(&t)) != CHM_OK) goto out;
    if (!options->dry_run) {
        if (t.lock < 0 && (status = lock_directory(&t)) != CHM_OK) goto out;
        /* once more, now that nobody else can be at it */
        if ((status = check_directory(&t, &resume)) != CHM_OK) goto out;
        snprintf(result->model, sizeof result->model, "%s", t.model_path);
    }
    status = resume ? go_on(&t) : begin(&t);
    if (status != CHM_OK) goto out;
    if (!options->dry_run) {
        bool whole = false;
        if ((status = run(&t)) == CHM_OK) {
            status = finish(&t, result);
            whole = status == CHM_OK || status == CHM_E_VERDICT;
        }
        result->finished = whole;
    }
    int64_t embedding = 0;
    chm_model_parameter_count(t.model, &result->parameters, &embedding);
    result->steps = options->dry_run ? t.run.steps : t.run.step;
    result->tokens = result->steps * t.batch.streams * t.batch.rows;
    result->loss = t.run.reported_loss;
    result->seconds = chm_train_seconds(&t);
out:
    chm_train_release(&t);
    return status;
}
