/*
 * stream_file.c: streams saved and loaded. A file is a safetensors file of one size for each model, whatever was read:
 * a tensor for every state, [heads, shape...], and `logits`, those of the last token; in __metadata__ the position, the
 * hash of the model's weights and card, what the card says a stream takes, and a hash of all of it.
 */
#include "base/json.h"
#include "base/table.h"
#include "model/b158.h"
#include "model/json.h"
#include "model/stream.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char schema[] = "chimera-stream-2";
enum { FIELD = 24, SAID = 4 };
static const char *const said_key[SAID] = {"model", "position", "has_logits", "stated_bytes"};

/* What of the card, as it is now, decides which numbers a model makes: all but what says how it is trained and used. */
static int card_hash(const chm_model *m, uint64_t *hash) {
    static const char *const besides[] = {"generation", "training", "diagnostics", "deployment", "modes", "files"};
    char *text = chm_card_json(m->card);
    json_t *card = text ? chm_json_load(text, strlen(text), NULL) : NULL;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(besides); i++) json_object_del(card, besides[i]);
    /* a stream may go on at another depth */
    json_object_del(json_object_get(card, "looping"), "loop_default");
    json_object_del(json_object_get(card, "looping"), "adaptive_exit_threshold");
    char *rest = card ? json_dumps(card, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
    if (rest) *hash = chm_hash64_seed(rest, strlen(rest), *hash);
    const int status = rest && !chm_json_starved() ? CHM_OK : CHM_E_MEMORY;
    chm_free(rest);
    json_decref(card);
    chm_free(text);
    return status;
}

/* Hash of the hashes of everything in the model's files, and of the card with its overrides. */
static int model_hash(const chm_model *m, char text[FIELD]) {
    if (!m->file) return chm_fail(CHM_E_CONFIG, "a stream of a model that was not opened from a file cannot be saved");
    uint64_t hash = 0;
    for (int i = 0; i < m->file->metas; i++) {
        const char *key = m->file->meta_key[i], *value = m->file->meta_value[i];
        if (strncmp(key, "hash.", 5) && strcmp(key, "experts_hash")) continue;
        hash = chm_hash64_seed(key, strlen(key) + 1, hash);
        hash = chm_hash64_seed(value, strlen(value) + 1, hash);
    }
    const int status = card_hash(m, &hash);
    snprintf(text, FIELD, "%016" PRIx64, hash);
    return status;
}

/* Over the tensors in file order, and what the metadata says besides. */
static void content_hash(const chm_st_tensor *tensor, int count, const char *const said[SAID], char text[FIELD]) {
    uint64_t hash = 0;
    for (int i = 0; i < SAID; i++) hash = chm_hash64_seed(said[i], strlen(said[i]) + 1, hash);
    for (int i = 0; i < count; i++) {
        if (chm_b158_is_padding(tensor[i].name)) continue;
        hash = chm_hash64_seed(tensor[i].name, strlen(tensor[i].name) + 1, hash);
        hash = chm_hash64_seed(tensor[i].data, (size_t)tensor[i].bytes, hash);
    }
    snprintf(text, FIELD, "%016" PRIx64, hash);
}

static enum chm_st_dtype dtype_of(const chm_state_item *item) {
    return item->type == CHM_F64 ? CHM_ST_F64 : item->type == CHM_U64 ? CHM_ST_U64 : CHM_ST_F32;
}

/* The tensor that a state is in the file; no data yet. */
static void describe(const chm_state_item *item, chm_st_tensor *t) {
    *t = (chm_st_tensor){.name = item->name, .dtype = dtype_of(item), .rank = item->rank + 1};
    t->shape[0] = item->heads;
    memcpy(t->shape + 1, item->shape, (size_t)item->rank * sizeof *item->shape);
    t->bytes = (uint64_t)(item->heads * item->elements) * chm_dtype_bytes(item->type);
}

/* Heads lie side by side in the file and padded in the blob. */
static void copy_state(const chm_state_item *item, uint8_t *blob, uint8_t *packed, bool save) {
    const size_t bytes = (size_t)item->elements * chm_dtype_bytes(item->type);
    for (int64_t h = 0; h < item->heads; h++) {
        uint8_t *head = blob + item->offset + (size_t)h * item->head_bytes;
        if (save)
            memcpy(packed + (size_t)h * bytes, head, bytes);
        else
            memcpy(head, packed + (size_t)h * bytes, bytes);
    }
}

int chm_stream_save(const chm_stream *s, const char *path) {
    if (s->broken) return chm_fail(CHM_E_CONFIG, "a stream whose last pass failed cannot be saved: restart it");
    const char *const read[] = {s->model->path, s->model->experts_path};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(read); i++)
        if (read[i] && chm_same_file(path, read[i]))
            return chm_fail(CHM_E_CONFIG, "%s: the stream would replace the %s, which is read; give it another name",
                            path, i ? "model's experts" : "model");
    const chm_state_layout *layout = &s->model->layout;
    char model[FIELD], position[FIELD], stated[FIELD], hash[FIELD];
    int status = model_hash(s->model, model);
    if (status) return status;
    chm_arena arena;
    chm_arena_init(&arena);
    chm_st_tensor *tensor = chm_arena_zero(&arena, (size_t)(layout->count + 1) * sizeof *tensor);
    if (!tensor) goto memory;
    for (int i = 0; i < layout->count; i++) {
        describe(&layout->item[i], &tensor[i]);
        uint8_t *packed = chm_arena_take(&arena, CHM_MAX((size_t)tensor[i].bytes, 1u));
        if (!packed) goto memory;
        copy_state(&layout->item[i], s->state.blob, packed, true);
        tensor[i].data = packed;
    }
    chm_st_tensor *logits = &tensor[layout->count];
    const int64_t vocab = s->model->config->vocab;
    *logits = (chm_st_tensor){.name = "logits", .dtype = CHM_ST_F32, .rank = 1, .shape = {vocab}};
    logits->bytes = (uint64_t)vocab * sizeof(float);
    logits->data = (const uint8_t *)s->logits;
    if (!s->have_logits && !(logits->data = chm_arena_zero(&arena, (size_t)logits->bytes))) goto memory;
    snprintf(position, sizeof position, "%019" PRId64, s->state.position);
    snprintf(stated, sizeof stated, "%019" PRIu64, (uint64_t)chm_stream_stated_bytes(s));
    const char *const said[SAID] = {model, position, s->have_logits ? "1" : "0", stated};
    content_hash(tensor, layout->count + 1, said, hash);
    const char *key[SAID + 2] = {"schema", "hash"}, *value[SAID + 2] = {schema, hash};
    memcpy(key + 2, said_key, sizeof said_key);
    memcpy(value + 2, said, sizeof said);
    status = chm_safetensors_write(path, tensor, layout->count + 1, key, value, CHM_ARRAY_COUNT(key), true);
    chm_arena_finish(&arena);
    return status;
memory:
    chm_arena_finish(&arena);
    return chm_fail(CHM_E_MEMORY, "out of memory for %s", path);
}

/* A stream's file, checked as far as it goes without its model. */
struct stream_file {
    chm_map map;
    chm_safetensors *st;
    const char *model;
    int64_t position;
    uint64_t stated_bytes; /* by the card; 0: it says nothing */
    bool has_logits;
};

static void close_file(struct stream_file *f) {
    chm_safetensors_destroy(f->st);
    chm_map_close(&f->map);
}

static int open_file(struct stream_file *f, const char *path) {
    char hash[FIELD], *end;
    memset(f, 0, sizeof *f);
    int status = chm_map_open(&f->map, path);
    if (!status) status = chm_safetensors_parse(path, f->map.data, f->map.size, &f->st);
    if (status) return status;
    const char *is = chm_safetensors_meta(f->st, "schema"), *expected = chm_safetensors_meta(f->st, "hash");
    const char *said[SAID];
    bool whole = is && !strcmp(is, schema) && expected;
    for (int i = 0; i < SAID; i++) whole &= (said[i] = chm_safetensors_meta(f->st, said_key[i])) != NULL;
    if (!whole)
        return chm_fail(CHM_E_DATA, "%s: not a saved stream: its __metadata__ lacks the schema %s or what goes with it",
                        path, schema);
    content_hash(f->st->tensor, f->st->count, said, hash);
    if (strcmp(hash, expected))
        return chm_fail(CHM_E_DATA, "%s: damaged or edited: its hash is %s, expected %s", path, hash,
                        chm_quote(expected).text);
    f->model = said[0];
    f->position = (int64_t)strtoll(said[1], &end, 10);
    if (*end || f->position < 0) return chm_fail(CHM_E_DATA, "%s: its position is no number", path);
    f->has_logits = !strcmp(said[2], "1");
    f->stated_bytes = (uint64_t)strtoull(said[3], &end, 10);
    if (*end) return chm_fail(CHM_E_DATA, "%s: its stated_bytes are no number", path);
    return CHM_OK;
}

static int fill_stream(const struct stream_file *f, const char *path, chm_stream *s) {
    const chm_state_layout *layout = &s->model->layout;
    char model[FIELD];
    int status = model_hash(s->model, model);
    if (status) return status;
    if (strcmp(model, f->model))
        return chm_fail(CHM_E_DATA,
                        "%s: a stream of another model, or of this one under other overrides of its card: its weights "
                        "and card have the hash %s, those of %s have %s",
                        path, chm_quote(f->model).text, s->model->path ? s->model->path : "the model", model);
    int ours = 0;
    for (int i = 0; i < f->st->count; i++) ours += !chm_b158_is_padding(f->st->tensor[i].name);
    for (int i = 0; i <= layout->count; i++) {
        chm_st_tensor want = {.name = "logits", .dtype = CHM_ST_F32, .rank = 1, .shape = {s->model->config->vocab}};
        if (i < layout->count) describe(&layout->item[i], &want);
        const chm_st_tensor *t = chm_safetensors_find(f->st, want.name);
        if (!t || t->dtype != want.dtype || t->rank != want.rank || ours != layout->count + 1 ||
            memcmp(t->shape, want.shape, (size_t)want.rank * sizeof *want.shape))
            return chm_fail(CHM_E_DATA,
                            "%s: its states are not those of this model ('%s'): was a run-time key of the "
                            "card, as looping.state, another?",
                            path, want.name);
        if (i < layout->count)
            copy_state(&layout->item[i], s->state.blob, (uint8_t *)(uintptr_t)t->data, false);
        else
            memcpy(s->logits, t->data, (size_t)t->bytes);
    }
    s->state.position = f->position;
    s->have_logits = f->has_logits;
    return CHM_OK;
}

int chm_stream_load(chm_runtime *r, chm_model *m, const char *path, chm_stream **out) {
    struct stream_file f;
    chm_stream *s = NULL;
    *out = NULL;
    int status = open_file(&f, path);
    if (!status) status = chm_stream_open(r, m, &s);
    if (!status) status = fill_stream(&f, path, s);
    close_file(&f);
    if (status) {
        chm_stream_close(s);
        return status;
    }
    *out = s;
    return CHM_OK;
}

int chm_stream_copy_file(const char *from, const char *to) {
    struct stream_file f;
    int status = open_file(&f, from);
    if (!status && chm_same_file(from, to))
        status = chm_fail(CHM_E_CONFIG, "%s: the copy would replace the stream itself; give it another name", to);
    if (!status) status = chm_write_file(to, f.map.data, f.map.size);
    close_file(&f);
    return status;
}

int chm_stream_show(const char *path, chm_output format, FILE *out) {
    struct stream_file f;
    chm_table t;
    char shape[160];
    uint64_t bytes = 0;
    int status = open_file(&f, path);
    if (status) {
        close_file(&f);
        return status;
    }
    chm_table_init(&t);
    static const char *const head[] = {"state", "type", "shape", "#bytes"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(head); i++) chm_table_column(&t, head[i]);
    for (int i = 0; i < f.st->count; i++) {
        const chm_st_tensor *x = &f.st->tensor[i];
        if (chm_b158_is_padding(x->name)) continue;
        chm_st_shape_text(x, shape, sizeof shape);
        chm_table_cell(&t, "%s", x->name);
        chm_table_cell(&t, "%s", x->dtype == CHM_ST_F64 ? "f64" : x->dtype == CHM_ST_U64 ? "bits" : "f32");
        chm_table_cell(&t, "%s", shape);
        chm_table_cell(&t, "%" PRIu64, x->bytes);
        /* as they lie in memory, each head aligned: what a running stream takes */
        const uint64_t heads = (uint64_t)CHM_MAX(x->shape[0], 1);
        if (strcmp(x->name, "logits")) bytes += heads * chm_align64((size_t)(x->bytes / heads));
    }
    if (format == CHM_OUTPUT_JSON) {
        fputs("{\"schema_version\": 1, \"path\": ", out);
        chm_json_string(out, path);
        fprintf(out, ", \"position\": %" PRId64 ", \"model_hash\": ", f.position);
        chm_json_string(out, f.model);
        fprintf(out, ", \"state_bytes\": %" PRIu64 ", \"stated_bytes\": ", bytes);
        if (f.stated_bytes)
            fprintf(out, "%" PRIu64, f.stated_bytes);
        else
            fputs("null", out);
        fprintf(out, ", \"file_bytes\": %" PRIu64 ",\n \"states\": ", (uint64_t)f.map.size);
        status = chm_table_json(&t, 1, out);
        fputs("}\n", out);
    } else {
        if (format == CHM_OUTPUT_TEXT) {
            fprintf(out, "%s: a stream after %" PRId64 " tokens, of the model %s\n%" PRIu64 " bytes of state", path,
                    f.position, f.model, bytes);
            if (f.stated_bytes) fprintf(out, " (its card says %g MB a stream)", (double)f.stated_bytes / 1e6);
            fprintf(out, ", %" PRIu64 " in the file\n\n", (uint64_t)f.map.size);
        }
        status = chm_table_print(&t, format, out);
    }
    chm_table_finish(&t);
    close_file(&f);
    return status ? status : chm_report_end(out);
}
