/* cell.c: one cell of a study: trained, then scored and measured from its packed file. */
#include "train/ablate/ablate.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RESULT_SCHEMA = 1, LEAST_DECODED = 32, MOST_DECODED = 4096 };
static const double decode_seconds = 0.1;

typedef struct cell_run {
    chm_runtime *runtime;
    const char *directory;
    json_t *manifest;
    const json_t *cell; /* of the manifest */
    const char *name;
    char *out; /* DIR/cells/NAME */
    int lock;
    const volatile int *stop;
    chm_train_result trained;
    int train_status;
    double decode; /* tokens a second */
    int64_t state_bytes, packed_bytes;
    json_t *scores;
} cell_run;

/* Seventeen digits or null: JSON has no NaN. */
static json_t *number(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static int lock_cell(cell_run *c) {
    char *path = chm_format("%s/cell.lock", c->out);
    int status = path == NULL ? CHM_E_MEMORY : chm_make_directory(c->out);
    if (status == CHM_OK && (c->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666)) < 0)
        status = chm_fail_system("%s: cannot write", path);
    if (status == CHM_OK && flock(c->lock, LOCK_EX | LOCK_NB) != 0)
        status = errno == EWOULDBLOCK
                     ? chm_fail(CHM_E_CONFIG, "%s: another process runs this cell (it holds %s)", c->out, path)
                     : chm_fail_system("%s: cannot lock", path);
    chm_free(path);
    return status;
}

/* ---- may it join the others? ---- */

static int check_build(const cell_run *c) {
    uint64_t build;
    char text[20];
    const char *commit = chm_json_word(c->manifest, "commit"), *there = chm_json_word(c->manifest, "build");
    if (strcmp(commit, chm_commit()) != 0)
        return chm_fail(CHM_E_CONFIG,
                        "%s: its cells are of commit %s, this is %s; results of both do not go into one table: name "
                        "another --out",
                        c->directory, commit, chm_commit());
    const int status = chm_build_hash(c->runtime, &build);
    if (status != CHM_OK) return status;
    snprintf(text, sizeof text, "%016" PRIx64, build);
    if (there == NULL || strcmp(there, text) != 0)
        return chm_fail(CHM_E_CONFIG,
                        "%s: its cells are of another build of commit %s (library or plugins differ); results of both "
                        "do not go into one table: name another --out",
                        c->directory, commit);
    return CHM_OK;
}

static int check_card(const cell_run *c, const chm_overlay *overlay) {
    const struct chm_card_options how = {
        .registry = &c->runtime->registry, .set = overlay->set, .set_count = overlay->set_count};
    chm_card *card = NULL;
    char hash[20];
    const char *path = chm_json_word(c->manifest, "card");
    int status = chm_card_load(path, &how, &card);
    if (status != CHM_OK) return status;
    char *text = chm_card_json(card);
    chm_card_destroy(card);
    if (text == NULL) return CHM_E_MEMORY;
    snprintf(hash, sizeof hash, "%016" PRIx64, chm_hash64(text, strlen(text)));
    chm_free(text);
    if (strcmp(hash, chm_json_word(c->cell, "config_hash")) == 0) return CHM_OK;
    return chm_fail(CHM_E_CONFIG, "%s: the card was changed since %s was begun; put it back, or name another --out",
                    path, c->directory);
}

/* The files of a list of the manifest, those called `name` (NULL: all), whole paths; looked at when `check`. */
static int collect_files(const cell_run *c, const char *key, const char *name, bool check, chm_arena *arena,
                         const char ***out, uint32_t *count) {
    const json_t *list = json_object_get(c->manifest, key);
    const char **files = chm_arena_take(arena, json_array_size(list) * sizeof *files);
    *count = 0;
    *out = files;
    if (files == NULL) return CHM_E_MEMORY;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *m = json_array_get(list, i);
        const char *path = chm_json_word(m, "path"), *wanted = chm_json_word(m, "hash");
        if (name != NULL && strcmp(name, chm_json_word(m, "name")) != 0) continue;
        char *whole = path[0] == '/' ? chm_strdup(path) : chm_format("%s/%s", c->directory, path);
        char *kept = whole != NULL ? chm_arena_take(arena, strlen(whole) + 1) : NULL;
        if (kept != NULL) strcpy(kept, whole);
        chm_free(whole);
        if (kept == NULL) return CHM_E_MEMORY;
        files[(*count)++] = kept;
        if (!check) continue;
        int64_t bytes;
        uint64_t hash;
        char text[20];
        const int status = chm_material_look(kept, &bytes, &hash);
        if (status != CHM_OK) return status;
        snprintf(text, sizeof text, "%016" PRIx64, hash);
        if (wanted == NULL || strcmp(wanted, text) != 0)
            return chm_fail(CHM_E_CONFIG, "%s: was changed since %s was begun; put it back, or name another --out",
                            kept, c->directory);
    }
    return CHM_OK;
}

/* ---- training ---- */

static bool holds(const cell_run *c, const char *file) {
    struct stat st;
    char *path = chm_format("%s/%s", c->out, file);
    const bool there = path != NULL && stat(path, &st) == 0;
    chm_free(path);
    return there;
}

static int train(cell_run *c, const chm_overlay *overlay, const char *const *data, uint32_t data_count,
                 void (*progress)(void *user, const chm_progress *p), void *user) {
    const json_t *study = json_object_get(c->manifest, "study");
    const double seconds = chm_json_number(study, "seconds"),
                 every = chm_json_number(c->manifest, "checkpoint_seconds");
    const chm_train_options o = {
        .size = sizeof o,
        .data_count = data_count,
        .card = chm_json_word(c->manifest, "card"),
        .overlay = overlay,
        .data = data,
        .out = c->out,
        .seconds = seconds > 0 ? seconds : 0,
        .tokens = seconds > 0 ? 0 : (int64_t)chm_json_number(c->cell, "tokens"),
        /* killed before it wrote anything but its lock it begins again */
        .resume = holds(c, "lock") || holds(c, "checkpoint.safetensors") || holds(c, "log.jsonl"),
        .checkpoint_seconds = every > 0 ? every : 0,
        .progress = progress,
        .user = user,
        .stop = c->stop,
    };
    c->trained = (chm_train_result){.size = sizeof c->trained};
    return chm_train(c->runtime, &o, &c->trained);
}

/* ---- measuring ---- */

static void add_bytes(const char *path, int64_t *bytes) {
    struct stat st;
    if (path != NULL && stat(path, &st) == 0) *bytes += (int64_t)st.st_size;
}

/* One stream, token by token; which tokens does not matter to the time. */
static int measure_decoding(cell_run *c, chm_model *m) {
    chm_stream *s = NULL;
    int status = chm_stream_open(c->runtime, m, &s);
    if (status != CHM_OK) return status;
    c->state_bytes = (int64_t)chm_stream_bytes(s);
    const double begun = chm_now();
    int n = 0;
    while (status == CHM_OK && n < MOST_DECODED && (n < LEAST_DECODED || chm_now() - begun < decode_seconds)) {
        const float *logits;
        const int32_t id = (int32_t)(n * 7 % CHM_MIN(chm_vocab(m), 256));
        status = chm_stream_feed(s, &id, 1, &logits);
        n++;
    }
    c->decode = (double)n / (chm_now() - begun);
    chm_stream_close(s);
    return status;
}

static int measure(cell_run *c, chm_arena *arena) {
    chm_model *m = NULL;
    const chm_overlay none = {.size = sizeof none, .no_environment = 1};
    char *path = chm_format("%s/model.b158", c->out);
    int status = path == NULL ? CHM_E_MEMORY : chm_open(c->runtime, path, &none, false, &m);
    chm_free(path);
    if (status != CHM_OK) return status;
    add_bytes(m->path, &c->packed_bytes);
    add_bytes(m->experts_path, &c->packed_bytes);
    const json_t *list = json_object_get(c->manifest, "scores");
    for (size_t i = 0; i < json_array_size(list) && status == CHM_OK; i++) {
        const char *name = chm_json_word(json_array_get(list, i), "name"), **files;
        bool before = false; /* its files were scored together with the first of them */
        for (size_t k = 0; k < i; k++) before |= strcmp(name, chm_json_word(json_array_get(list, k), "name")) == 0;
        if (before) continue;
        chm_eval_options o = {.size = sizeof o, .stop = c->stop};
        chm_eval_result r = {.size = sizeof r};
        status = collect_files(c, "scores", name, false, arena, &files, &o.data_count);
        o.data = files;
        if (status == CHM_OK) status = chm_eval(c->runtime, m, &o, &r);
        if (status != CHM_OK && c->train_status == CHM_E_VERDICT && status != CHM_E_INTERRUPTED &&
            status != CHM_E_MEMORY) {
            /* no number is what a diverged model has to say */
            r.bits_per_byte = NAN;
            status = CHM_OK;
        }
        if (status != CHM_OK) break;
        chm_json_begin();
        json_t *x = json_object();
        (void)json_object_set_new(x, "name", json_string(name));
        (void)json_object_set_new(x, "bits_per_byte", number(r.bits_per_byte));
        (void)json_object_set_new(x, "bytes", json_integer(r.bytes));
        (void)json_object_set_new(x, "answers", json_integer(r.answers));
        (void)json_object_set_new(x, "accuracy", number(r.answers > 0 ? (double)r.right / (double)r.answers : NAN));
        (void)json_array_append_new(c->scores, x);
        if (chm_json_starved()) status = chm_fail(CHM_E_MEMORY, "%s: out of memory", c->out);
    }
    if (status == CHM_OK) status = measure_decoding(c, m);
    chm_close(m);
    return status;
}

static int write_result(const cell_run *c, const char *message) {
    chm_cell_log log;
    char *path = chm_format("%s/result.json", c->out), *log_path = chm_format("%s/log.jsonl", c->out);
    int status = path == NULL || log_path == NULL ? CHM_E_MEMORY : chm_cell_log_read(log_path, &log);
    if (status != CHM_OK) goto out;
    const double rate = log.tokens_per_second;
    chm_cell_log_finish(&log);
    char *cpu = chm_cpu_model(), *kernels = chm_kernels_used(c->runtime), *training = chm_kernels_training(c->runtime);
    chm_json_begin();
    json_t *r = json_object();
#define PUT(key, value) (void)json_object_set_new(r, key, value)
    PUT("schema_version", json_integer(RESULT_SCHEMA));
    PUT("cell", json_string(c->name));
    PUT("status", json_string(c->train_status == CHM_E_VERDICT ? "diverged" : "finished"));
    PUT("message", chm_json_text(message));
    PUT("config_hash", json_string(chm_json_word(c->cell, "config_hash")));
    PUT("commit", json_string(chm_commit()));
    PUT("parameters", json_integer(c->trained.parameters));
    PUT("active_parameters", json_real(chm_json_number(c->cell, "active_parameters")));
    PUT("state_bytes", json_integer(c->state_bytes));
    PUT("packed_bytes", json_integer(c->packed_bytes));
    PUT("steps", json_integer(c->trained.steps));
    PUT("tokens", json_integer(c->trained.tokens));
    PUT("flops", json_real((double)c->trained.tokens * chm_json_number(c->cell, "flops_per_token")));
    PUT("loss", number(c->trained.loss));
    PUT("scores", json_deep_copy(c->scores));
    PUT("seconds", json_real(c->trained.seconds));
    PUT("training_tokens_per_second", number(rate));
    PUT("decode_tokens_per_second", number(c->decode));
    PUT("peak_bytes", json_integer((json_int_t)chm_peak_rss()));
    PUT("threads", json_integer(chm_runtime_threads(c->runtime)));
    PUT("cpu", chm_json_text(cpu));
    PUT("kernels", chm_json_text(kernels));
    PUT("training_kernels", chm_json_text(training));
#undef PUT
    const bool named = cpu != NULL && kernels != NULL && training != NULL;
    chm_free(cpu);
    chm_text_free(kernels);
    chm_text_free(training);
    status =
        !named || chm_json_starved() ? chm_fail(CHM_E_MEMORY, "out of memory for %s", path) : chm_json_save(r, path);
    json_decref(r);
out:
    chm_free(path);
    chm_free(log_path);
    return status;
}

void chm_cell_note_failure(const char *directory, const char *name, const char *message) {
    char *path = chm_format("%s/cells/%s/failed.json", directory, name);
    if (path == NULL) return;
    if (message == NULL) {
        unlink(path);
    } else {
        chm_json_begin();
        json_t *x = json_object();
        (void)json_object_set_new(x, "message", chm_json_text(message));
        (void)chm_json_save(x, path); /* it is told anyway */
        json_decref(x);
    }
    chm_free(path);
}

int chm_ablate_cell(chm_runtime *r, const char *directory, int64_t index,
                    void (*progress)(void *user, const chm_progress *p), void *user, const volatile int *stop) {
    cell_run c = {.runtime = r, .directory = directory, .lock = -1, .stop = stop};
    chm_arena arena;
    chm_arena_init(&arena);
    char *message = NULL;
    bool ours = false;
    int status = chm_manifest_load(directory, &c.manifest);
    if (status != CHM_OK) goto out;
    const json_t *cells = json_object_get(c.manifest, "cells");
    if (index < 0 || (size_t)index >= json_array_size(cells)) {
        status = chm_fail(CHM_E_CONFIG, "%s: no cell %lld: the study has 0..%lld", directory, (long long)index,
                          (long long)json_array_size(cells) - 1);
        goto out;
    }
    c.cell = json_array_get(cells, (size_t)index);
    c.name = chm_json_word(c.cell, "name");
    c.out = chm_format("%s/cells/%s", directory, c.name);
    c.scores = json_array();
    if (c.out == NULL || c.scores == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }
    if ((status = lock_cell(&c)) != CHM_OK) goto out;
    ours = true;
    json_t *done = NULL;
    status = chm_cell_result(directory, c.name, &done);
    json_decref(done);
    if (status != CHM_OK || done != NULL) goto out;
    if ((status = check_build(&c)) != CHM_OK) goto out;
    const json_t *sets = json_object_get(c.cell, "set");
    const char **set = chm_arena_take(&arena, (json_array_size(sets) + 1) * sizeof *set), **data, **scores;
    uint32_t data_count, score_count;
    if (set == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }
    chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = set};
    for (size_t i = 0; i < json_array_size(sets); i++) {
        const char *text = json_string_value(json_array_get(sets, i));
        if (text != NULL) set[overlay.set_count++] = text;
    }
    if ((status = check_card(&c, &overlay)) != CHM_OK) goto out;
    if ((status = collect_files(&c, "data", NULL, true, &arena, &data, &data_count)) != CHM_OK) goto out;
    if ((status = collect_files(&c, "scores", NULL, true, &arena, &scores, &score_count)) != CHM_OK) goto out;
    c.train_status = train(&c, &overlay, data, data_count, progress, user);
    status = c.train_status == CHM_E_VERDICT ? CHM_OK : c.train_status;
    if (c.train_status == CHM_E_VERDICT) message = chm_strdup(chm_error());
    if (status == CHM_OK) status = measure(&c, &arena);
    if (status == CHM_OK) status = write_result(&c, message);
out:
    if (ours && status != CHM_E_INTERRUPTED)
        chm_cell_note_failure(directory, c.name, status == CHM_OK ? NULL : chm_error());
    if (c.lock >= 0) close(c.lock);
    json_decref(c.scores);
    json_decref(c.manifest);
    chm_free(message);
    chm_free(c.out);
    chm_arena_finish(&arena);
    return status;
}
