/* checkpoint.c: everything a run needs to go on, in one safetensors file written atomically. */
#include "base/json.h"
#include "train/trainer.h"
#include "model/b158.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char schema[] = "chimera-checkpoint-5";

/* Numbers of the run state, by name, so that saving and loading cannot drift apart. */
struct integer_field {
    const char *name;
    size_t offset;
};
#define COUNT(metric, tap, logarithm) {#metric "_count", offsetof(chm_run_state, shown.metric.count)},
#define SUM(metric, tap, logarithm)   {#metric "_sum", offsetof(chm_run_state, shown.metric.sum)},
/* clang-format off */
static const struct integer_field integers[] = {
    {"step", offsetof(chm_run_state, step)},
    {"steps", offsetof(chm_run_state, steps)},
    {"settled", offsetof(chm_run_state, settled)},
    {"applied", offsetof(chm_run_state, applied)},
    {"skipped", offsetof(chm_run_state, skipped)},
    {"skipped_in_a_row", offsetof(chm_run_state, skipped_in_a_row)},
    {"log_bytes", offsetof(chm_run_state, log_bytes)},
    {"loss_targets", offsetof(chm_run_state, loss_targets)},
    {"reported", offsetof(chm_run_state, reported)},
    {"loop_rows", offsetof(chm_run_state, depth.rows)},
    {"loop_passes", offsetof(chm_run_state, depth.sum)},
    CHM_TAP_METRICS(COUNT)
};
static const struct integer_field reals[] = {
    {"loss", offsetof(chm_run_state, loss)},
    {"gradient_norm", offsetof(chm_run_state, gradient_norm)},
    {"frozen", offsetof(chm_run_state, frozen)},
    {"reported_loss", offsetof(chm_run_state, reported_loss)},
    {"seconds", offsetof(chm_run_state, seconds)},
    {"rate", offsetof(chm_run_state, rate)},
    {"budget", offsetof(chm_run_state, budget)},
    {"closing", offsetof(chm_run_state, closing)},
    CHM_TAP_METRICS(SUM)
};
/* clang-format on */
#undef COUNT
#undef SUM
enum { META_MOST = 10 + CHM_ARRAY_COUNT(integers) + CHM_ARRAY_COUNT(reals), FIELD = 40 };

/* "bytes:hash" of every file */
static char *data_text(const chm_trainer *t) {
    chm_string s = {0};
    for (int64_t i = 0; i < t->corpus.files; i++)
        chm_string_add(&s, "%s%" PRId64 ":%016" PRIx64, i ? " " : "", t->corpus.file_bytes[i], t->corpus.file_hash[i]);
    if (s.failed) chm_string_finish(&s);
    return s.text;
}

/* Of the metadata but the hash itself, which is written last. */
static uint64_t meta_hash(const char *const *key, const char *const *value, int count, uint64_t hash) {
    for (int i = 0; i < count; i++) {
        if (strcmp(key[i], "hash") == 0) continue;
        hash = chm_hash64_seed(key[i], strlen(key[i]) + 1, hash);
        hash = chm_hash64_seed(value[i], strlen(value[i]) + 1, hash);
    }
    return hash;
}

int chm_train_checkpoint_save(chm_trainer *t) {
    const chm_model *m = t->model;
    const int64_t streams = t->stream != NULL ? t->batch.streams : 0;
    const int most = (1 + CHM_OPTIMISER_ARRAYS) * m->params + (streams ? (int)streams + 1 : 0);
    chm_st_tensor *tensor = NULL;
    chm_arena arena;
    int64_t *position = NULL;
    char *data = data_text(t), field[META_MOST][FIELD];
    const char *key[META_MOST], *value[META_MOST];
    int n = 0, metas = 0, status = CHM_OK;
    const double begun = chm_now();
    chm_arena_init(&arena);
    tensor = chm_alloc((size_t)most * sizeof *tensor);
    position = chm_alloc((size_t)(streams + 1) * sizeof *position);
    if (data == NULL || tensor == NULL || position == NULL) {
        status = chm_fail(CHM_E_MEMORY, "out of memory for %s", t->checkpoint_path);
        goto out;
    }
    t->run.seconds = chm_train_seconds(t);
    for (int k = 0; k <= CHM_OPTIMISER_ARRAYS; k++)
        for (int i = 0; i < m->params; i++) {
            const chm_param *p = m->param[i];
            if (k > chm_optimiser_arrays(t, i)) continue;
            const char *kept = k == 0 ? "value" : chm_optimiser_array_name(t, i, k - 1);
            chm_st_tensor *s = &tensor[n++];
            const size_t length = strlen(kept) + 1 + strlen(p->name) + 1;
            char *name = chm_arena_take(&arena, length);
            if (name == NULL) {
                status = CHM_E_MEMORY;
                goto out;
            }
            snprintf(name, length, "%s/%s", kept, p->name);
            s->name = name;
            s->dtype = CHM_ST_F32;
            s->rank = p->rank;
            for (int d = 0; d < p->rank; d++) s->shape[d] = p->shape[d];
            s->data = (const uint8_t *)(k == 0 ? p->value : t->state[i].array[k - 1]);
            s->bytes = (uint64_t)p->count * sizeof(float);
        }
    for (int64_t i = 0; i < streams; i++) {
        chm_st_tensor *s = &tensor[n++];
        char *name = chm_arena_take(&arena, 32);
        if (name == NULL) {
            status = CHM_E_MEMORY;
            goto out;
        }
        snprintf(name, 32, "stream/%" PRId64, i);
        s->name = name;
        s->dtype = CHM_ST_U8;
        s->rank = 1;
        s->shape[0] = (int64_t)m->layout.bytes;
        s->data = t->stream[i].blob;
        s->bytes = m->layout.bytes;
        position[i] = t->stream[i].position;
    }
    if (streams) {
        chm_st_tensor *s = &tensor[n++];
        s->name = "stream/position";
        s->dtype = CHM_ST_I64;
        s->rank = 1;
        s->shape[0] = streams;
        s->data = (const uint8_t *)position;
        s->bytes = (uint64_t)streams * sizeof *position;
    }
    snprintf(field[metas], FIELD, "%016" PRIx64, t->tokenizer.hash);
    key[metas] = "tokenizer_hash", value[metas] = field[metas];
    metas++;
    key[metas] = "schema", value[metas++] = schema;
    key[metas] = "version", value[metas++] = chm_version();
    key[metas] = "card", value[metas++] = t->card;
    key[metas] = "data", value[metas++] = data;
    key[metas] = "training_kernels", value[metas++] = t->training_kernels;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(integers); i++) {
        snprintf(field[metas], FIELD, "%" PRId64, *(const int64_t *)((const char *)&t->run + integers[i].offset));
        key[metas] = integers[i].name, value[metas] = field[metas];
        metas++;
    }
    for (size_t i = 0; i < CHM_ARRAY_COUNT(reals); i++) {
        /* hexadecimal: every bit of it */
        snprintf(field[metas], FIELD, "%a", *(const double *)((const char *)&t->run + reals[i].offset));
        key[metas] = reals[i].name, value[metas] = field[metas];
        metas++;
    }
    uint64_t hash = 0;
    for (int i = 0; i < n; i++) hash = chm_hash64_seed(tensor[i].data, tensor[i].bytes, hash);
    hash = meta_hash(key, value, metas, hash);
    snprintf(field[metas], FIELD, "%016" PRIx64, hash);
    key[metas] = "hash", value[metas] = field[metas];
    metas++;
    /* the log must not be behind a checkpoint that survives a power cut */
    if (t->log != NULL) (void)!fdatasync(fileno(t->log));
    status = chm_safetensors_write(t->checkpoint_path, tensor, n, key, value, metas, true);
    t->checkpoint_cost = chm_now() - begun;
out:
    chm_arena_finish(&arena);
    chm_free(tensor);
    chm_free(position);
    chm_free(data);
    return status;
}

/* ---- reading ---- */

static char *dump(const json_t *value) {
    return json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(10));
}

/* The first place where two cards differ, as "a.b[1]: the run has X, the card now Y". Returns whether one was found, or
 * memory ran out (out->failed). */
static bool first_difference(const char *path, const json_t *then, const json_t *now, chm_string *out) {
    if (json_is_object(then) && json_is_object(now)) {
        const char *key;
        json_t *value;
        for (int side = 0; side < 2; side++) {
            json_object_foreach((json_t *)(side ? now : then), key, value) {
                if (side && json_object_get(then, key) != NULL) continue;
                char *inner = chm_format("%s%s%s", path, *path ? "." : "", key);
                if (inner == NULL) return out->failed = true;
                const json_t *other = json_object_get(side ? then : now, key);
                const bool found =
                    side ? first_difference(inner, other, value, out) : first_difference(inner, value, other, out);
                chm_free(inner);
                if (found) return true;
            }
        }
        return false;
    }
    if (json_is_array(then) && json_is_array(now) && json_array_size(then) == json_array_size(now)) {
        for (size_t i = 0; i < json_array_size(then); i++) {
            char *inner = chm_format("%s[%zu]", path, i);
            if (inner == NULL) return out->failed = true;
            const bool found = first_difference(inner, json_array_get(then, i), json_array_get(now, i), out);
            chm_free(inner);
            if (found) return true;
        }
        return false;
    }
    if (then != NULL && now != NULL && json_equal((json_t *)then, (json_t *)now)) return false;
    char *a = then ? dump(then) : NULL, *b = now ? dump(now) : NULL;
    chm_string_add(out, "%s: the run has %.80s, the card now %.80s", path, a ? a : "nothing", b ? b : "nothing");
    chm_free(a);
    chm_free(b);
    return true;
}

static int compare_cards(const chm_trainer *t, const char *then) {
    if (then != NULL && strcmp(then, t->card) == 0) return CHM_OK;
    chm_string what = {0};
    json_t *a = then ? chm_json_load(then, strlen(then), NULL) : NULL;
    bool starved = then && chm_json_starved();
    json_t *b = chm_json_load(t->card, strlen(t->card), NULL);
    if (a == NULL || b == NULL || !first_difference("", a, b, &what)) chm_string_add(&what, "the card differs");
    starved = starved || chm_json_starved() || what.failed;
    const int status =
        starved ? chm_fail(CHM_E_MEMORY, "%s: out of memory while its card is compared", t->checkpoint_path)
                : chm_fail(CHM_E_CONFIG,
                           "%s: cannot resume with another card: %s; give the card and settings the run was begun "
                           "with, or another --out",
                           t->checkpoint_path, what.text);
    json_decref(a);
    json_decref(b);
    chm_string_finish(&what);
    return status;
}

static int compare_data(const chm_trainer *t, const char *then) {
    char *now = data_text(t);
    int status = CHM_OK;
    if (now == NULL) return chm_fail(CHM_E_MEMORY, "out of memory while the data are compared");
    if (then == NULL || strcmp(then, now) != 0) {
        /* the first file that differs */
        int64_t i = 0, files = then != NULL && *then ? 1 : 0;
        for (const char *c = then; c != NULL && *c; c++) files += *c == ' ';
        const char *a = then, *b = now;
        while (a != NULL && *a && *b && strcspn(a, " ") == strcspn(b, " ") && !strncmp(a, b, strcspn(a, " "))) {
            i++;
            a += strcspn(a, " ");
            b += strcspn(b, " ");
            a += *a == ' ';
            b += *b == ' ';
        }
        const bool beyond = i >= t->corpus.files; /* those there are now are where the run's began */
        if (files != t->corpus.files)
            status = chm_fail(CHM_E_CONFIG,
                              "%s: cannot resume with other data: the run has %lld files, now there are %lld, %s %s; "
                              "give the same files in the same order, or another --out",
                              t->checkpoint_path, (long long)files, (long long)t->corpus.files,
                              beyond ? "and more followed" : "of which the first that differs is",
                              t->data.path[beyond ? t->corpus.files - 1 : i]);
        else
            status = chm_fail(
                CHM_E_CONFIG,
                "%s: cannot resume with other data: %s is not the file the run was begun with (%lld bytes "
                "now, %lld then%s); give the same files in the same order, or another --out",
                t->checkpoint_path, t->data.path[i], (long long)t->corpus.file_bytes[i], a ? strtoll(a, NULL, 10) : 0LL,
                a && strtoll(a, NULL, 10) == t->corpus.file_bytes[i] ? ", other contents" : "");
    }
    chm_free(now);
    return status;
}

static int load_tensor(const chm_trainer *t, const chm_safetensors *file, const char *name, enum chm_st_dtype dtype,
                       void *to, uint64_t bytes) {
    const chm_st_tensor *s = chm_safetensors_find(file, name);
    if (s == NULL) return chm_fail(CHM_E_DATA, "%s: has no tensor '%s'", t->checkpoint_path, name);
    if (s->dtype != dtype || s->bytes != bytes)
        return chm_fail(CHM_E_DATA, "%s: tensor '%s' has %" PRIu64 " bytes, %" PRIu64 " were expected",
                        t->checkpoint_path, name, s->bytes, bytes);
    memcpy(to, s->data, bytes);
    return CHM_OK;
}

/* Can a run have come to these numbers? All integers are 0 or more. */
static bool sound_state(const chm_trainer *t) {
    const chm_run_state *r = &t->run;
    const int64_t per_step = t->batch.streams * t->batch.rows;
    const double least_real = fmin(fmin(r->seconds, r->budget), fmin(r->closing, r->rate));
    return r->step <= r->steps && (double)r->steps <= CHM_TRAIN_TOKENS_MAX / (double)per_step + 1 &&
           r->applied <= r->step && r->skipped <= r->step && r->skipped_in_a_row <= r->skipped &&
           r->reported <= r->step && r->loss_targets <= r->step * per_step && r->settled <= 1 && least_real >= 0 &&
           isfinite(r->seconds + r->budget + r->closing + r->rate);
}

int chm_train_checkpoint_load(chm_trainer *t) {
    const chm_model *m = t->model;
    chm_map map = {0};
    chm_safetensors *file = NULL;
    int64_t *position = NULL;
    char name[512];
    int status = chm_map_open(&map, t->checkpoint_path);
    if (status != CHM_OK) return status;
    if ((status = chm_safetensors_parse(t->checkpoint_path, map.data, map.size, &file)) != CHM_OK) goto out;
    const char *text = chm_safetensors_meta(file, "schema");
    if (text == NULL || strcmp(text, schema) != 0) {
        status = chm_fail(CHM_E_DATA, "%s: is %s, not a %s", t->checkpoint_path, text ? text : "no checkpoint", schema);
        goto out;
    }
    uint64_t hash = 0;
    for (int i = 0; i < file->count; i++)
        if (!chm_b158_is_padding(file->tensor[i].name))
            hash = chm_hash64_seed(file->tensor[i].data, file->tensor[i].bytes, hash);
    hash = meta_hash(file->meta_key, file->meta_value, file->metas, hash);
    snprintf(name, sizeof name, "%016" PRIx64, hash);
    text = chm_safetensors_meta(file, "hash");
    if (text == NULL || strcmp(text, name) != 0) {
        status = chm_fail(CHM_E_DATA,
                          "%s: its contents do not have the hash that was written with them: the file is "
                          "damaged; begin again in another --out",
                          t->checkpoint_path);
        goto out;
    }
    if ((status = compare_cards(t, chm_safetensors_meta(file, "card"))) != CHM_OK) goto out;
    text = chm_safetensors_meta(file, "tokenizer_hash");
    snprintf(name, sizeof name, "%016" PRIx64, t->tokenizer.hash);
    if (text != NULL && strcmp(text, name) != 0) {
        status =
            chm_fail(CHM_E_CONFIG,
                     "%s: cannot resume with another tokenizer: the run has one of hash %.16s, that of %s is %s; "
                     "give the file the run was begun with, or another --out",
                     t->checkpoint_path, text, t->tokenizer.name ? t->tokenizer.name : t->tokenizer.plugin->name, name);
        goto out;
    }
    if ((status = compare_data(t, chm_safetensors_meta(file, "data"))) != CHM_OK) goto out;
    chm_train_compare_kernels(t, chm_safetensors_meta(file, "training_kernels"));
    for (size_t i = 0; i < CHM_ARRAY_COUNT(integers) + CHM_ARRAY_COUNT(reals); i++) {
        const bool real = i >= CHM_ARRAY_COUNT(integers);
        const struct integer_field *f = real ? &reals[i - CHM_ARRAY_COUNT(integers)] : &integers[i];
        char *end = NULL, *to = (char *)&t->run + f->offset;
        text = chm_safetensors_meta(file, f->name);
        errno = 0;
        if (text != NULL && real)
            *(double *)(void *)to = strtod(text, &end);
        else if (text != NULL)
            *(int64_t *)(void *)to = strtoll(text, &end, 10);
        if (text == NULL || end == text || *end != '\0' || (!real && (errno != 0 || *(int64_t *)(void *)to < 0))) {
            status = chm_fail(CHM_E_DATA, "%s: '%s' is '%s', not a number", t->checkpoint_path, f->name,
                              text ? text : "missing");
            goto out;
        }
    }
    if (!sound_state(t)) {
        status = chm_fail(CHM_E_DATA,
                          "%s: the numbers of its run contradict each other (it stands at step %" PRId64 " of %" PRId64
                          "): the file is damaged; begin again in another --out",
                          t->checkpoint_path, t->run.step, t->run.steps);
        goto out;
    }
    for (int i = 0; i < m->params; i++) {
        chm_param *p = m->param[i];
        const uint64_t bytes = (uint64_t)p->count * sizeof(float);
        snprintf(name, sizeof name, "value/%s", p->name);
        if ((status = load_tensor(t, file, name, CHM_ST_F32, p->value, bytes)) != CHM_OK) goto out;
        for (int k = 0; k < chm_optimiser_arrays(t, i); k++) {
            snprintf(name, sizeof name, "%s/%s", chm_optimiser_array_name(t, i, k), p->name);
            if ((status = load_tensor(t, file, name, CHM_ST_F32, t->state[i].array[k], bytes)) != CHM_OK) goto out;
        }
    }
    if (t->stream != NULL) {
        position = chm_alloc((size_t)t->batch.streams * sizeof *position);
        if (position == NULL) {
            status = CHM_E_MEMORY;
            goto out;
        }
        status = load_tensor(t, file, "stream/position", CHM_ST_I64, position,
                             (uint64_t)t->batch.streams * sizeof *position);
        for (int64_t i = 0; status == CHM_OK && i < t->batch.streams; i++) {
            snprintf(name, sizeof name, "stream/%" PRId64, i);
            status = load_tensor(t, file, name, CHM_ST_U8, t->stream[i].blob, m->layout.bytes);
            t->stream[i].position = position[i];
        }
    }
out:
    chm_free(position);
    chm_safetensors_destroy(file);
    chm_map_close(&map);
    return status;
}
