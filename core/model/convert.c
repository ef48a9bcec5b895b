/* convert.c: `chimera convert`: model files between the encodings of ternary codes, to plain safetensors and back. */
#include "base/json.h"
#include "model/b158.h"
#include "model/stream.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Parameters of another's checkpoint that nothing says more about. */
enum { IMPORT_GROUP = 128 };

struct job {
    chm_runtime *runtime;
    const chm_convert_options *options;
    chm_convert_result *result;
    const char *in, *out;
    int32_t encoding; /* wanted; -1: as it is */
    enum chm_import import;
    chm_arena arena; /* of names, and of what is made here */
    chm_map map;
    chm_safetensors *file;
    chm_experts experts;
    chm_model *model; /* of --card or overrides: its parameters are those below; NULL: the file says what it holds */
    chm_tokenizer tokenizer;
    chm_param **param;
    int params;
    const char *card;
    chm_b158_note *note; /* with room for two more */
    int notes;
};

/* ---- reading ---- */

static const char *keep(struct job *j, const char *before, const char *after) {
    const size_t n = strlen(before) + strlen(after) + 1;
    char *text = chm_arena_take(&j->arena, n);
    if (text) snprintf(text, n, "%s%s", before, after);
    return text;
}

static chm_param *new_param(struct job *j) {
    chm_param *p = chm_arena_zero(&j->arena, sizeof *p);
    if (p) j->param[j->params++] = p;
    return p;
}

static int make_room(struct job *j, int params, int notes) {
    j->param = chm_arena_take(&j->arena, ((size_t)params + 1) * sizeof *j->param);
    j->note = chm_arena_take(&j->arena, ((size_t)notes + 2) * sizeof *j->note);
    return j->param && j->note ? CHM_OK : CHM_E_MEMORY;
}

/* What the metadata says besides what every file says anew. */
static void keep_notes(struct job *j, const chm_safetensors *file) {
    static const char *const anew[] = {"format",    "format_version",   "parameters", "embedding_parameters", "card",
                                       "card_hash", CHM_ST_HEADER_HASH, "experts",    "experts_hash",         "part"};
    for (int i = 0; i < file->metas; i++) {
        const char *key = file->meta_key[i];
        bool known = chm_b158_is_encoding(key) || !strncmp(key, "hash.", 5) || !strncmp(key, "part.", 5);
        for (size_t k = 0; k < CHM_ARRAY_COUNT(anew); k++) known = known || !strcmp(key, anew[k]);
        if (!known) j->note[j->notes++] = (chm_b158_note){key, file->meta_value[i]};
    }
}

/* Every parameter of one of our files, each byte of which is checked on the way. */
static int take_ours(struct job *j, const char *path, const chm_safetensors *file, bool expert) {
    const int before = j->params;
    int64_t group = 0;
    for (int i = 0; i < file->metas; i++) {
        if (!chm_b158_is_encoding(file->meta_key[i])) continue;
        chm_param *p = new_param(j);
        if (!p) return CHM_E_MEMORY;
        const int status = chm_b158_describe(path, file, i, p, &group);
        if (status) return status;
        p->expert = expert;
    }
    return chm_b158_bind(path, file, j->param + before, j->params - before, group, true);
}

static json_t *quantization_of(const char *card, json_t **whole) {
    *whole = card ? chm_json_load(card, strlen(card), NULL) : NULL;
    return json_object_get(*whole, "quantization");
}

/* Overrides may not say another thing of how weights were trained, nor how codes are stored. */
static int check_overrides(struct job *j) {
    char *text = chm_card_json(j->model->card);
    json_t *was, *is, *before = quantization_of(j->card, &was), *after = quantization_of(text, &is);
    const char *key;
    json_t *value;
    int status = text && was && is ? CHM_OK : CHM_E_MEMORY;
    json_object_foreach(after, key, value) {
        if (status || !strcmp(key, "hgf_correction") || json_equal(value, json_object_get(before, key))) continue;
        status = chm_fail(CHM_E_CONFIG,
                          "%s: overrides cannot change quantization.%s, which says how the weights were trained; how "
                          "codes are stored is for --encoding",
                          j->in, key);
    }
    json_decref(was);
    json_decref(is);
    chm_free(text);
    return status;
}

/* With overrides a file is read as the model that they make of it. */
static int read_overridden(struct job *j) {
    struct chm_card_options options;
    int status = chm_card_options_from(j->runtime, j->options->overlay, &options);
    if (!status) status = chm_model_open(j->in, &j->runtime->registry, &options, true, &j->model);
    if (!status) status = check_overrides(j);
    if (status) return status;
    j->param = j->model->param;
    j->params = j->model->params;
    for (int i = 0; i < j->file->metas; i++) j->result->left_out += chm_b158_is_encoding(j->file->meta_key[i]);
    for (int i = 0; j->experts.file && i < j->experts.file->metas; i++)
        j->result->left_out += chm_b158_is_encoding(j->experts.file->meta_key[i]);
    j->result->left_out -= j->params;
    if (j->result->left_out && !j->options->lossy)
        return chm_fail(
            CHM_E_CONFIG,
            "%s: without its low-rank corrections (quantization.hgf_correction) %d trained parameters are lost; "
            "--lossy leaves them out",
            j->in, j->result->left_out);
    char *card = chm_card_json(j->model->card);
    j->card = card ? keep(j, card, "") : NULL;
    chm_free(card);
    return j->card ? CHM_OK : CHM_E_MEMORY;
}

static bool is_overridden(const chm_overlay *o) { return o && (o->ini_count || o->set_count); }

static int read_ours(struct job *j) {
    int status = chm_b158_check(j->in, j->file);
    if (!status && j->options->card)
        status =
            chm_fail(CHM_E_CONFIG, "%s: a .b158 has its card inside; --card is for plain safetensors files", j->in);
    if (!status && j->import)
        status = chm_fail(CHM_E_CONFIG, "%s: is a .b158, and --import is for the checkpoints of others", j->in);
    if (!status && chm_experts_is_part(j->file))
        status = chm_fail(CHM_E_DATA,
                          "%s: holds the experts of a model, not the model; name the file that was written beside it, "
                          "and both are converted",
                          j->in);
    if (!status) status = chm_experts_open(j->in, j->file, &j->experts);
    const chm_safetensors *second = j->experts.file;
    if (!status) status = make_room(j, j->file->metas + (second ? second->metas : 0), j->file->metas);
    if (status) return status;
    j->card = chm_safetensors_meta(j->file, "card");
    keep_notes(j, j->file);
    if (is_overridden(j->options->overlay)) return read_overridden(j);
    status = take_ours(j, j->in, j->file, false);
    return !status && second ? take_ours(j, j->experts.path, second, true) : status;
}

/* A name of tensors that linear layers have: "...q_proj.weight", and not the table or its way back. */
static bool is_linear(const char *name) {
    static const char ending[] = ".weight";
    const size_t n = strlen(name), tail = sizeof ending - 1;
    return n > tail && !strcmp(name + n - tail, ending) && !strstr(name, "embed") && !strstr(name, "lm_head");
}

/* Also of one that is called so and holds numbers: those are not left out. */
static bool is_padding(const chm_st_tensor *t) { return chm_b158_is_padding(t->name) && t->dtype == CHM_ST_U8; }

/* What a checkpoint of others holds, by its tensors. */
static int describe_others(struct job *j) {
    for (int i = 0; i < j->file->count; i++) {
        const chm_st_tensor *t = &j->file->tensor[i];
        const size_t n = strlen(t->name), tail = strlen("_scale");
        if (is_padding(t)) continue;
        if (j->import != CHM_IMPORT_ABSMEAN && n > tail && !strcmp(t->name + n - tail, "_scale")) {
            char *of = chm_format("%.*s", (int)(n - tail), t->name);
            if (!of) return CHM_E_MEMORY;
            const chm_st_tensor *packed = chm_safetensors_find(j->file, of);
            chm_free(of);
            if (packed && packed->dtype == CHM_ST_U8) continue;
        }
        if (t->rank > 4)
            return chm_fail(CHM_E_DATA, "%s: tensor '%s' has %d dimensions, expected at most 4", j->in,
                            chm_quote(t->name).text, t->rank);
        chm_param *p = new_param(j);
        if (!p) return CHM_E_MEMORY;
        const bool packed = t->dtype == CHM_ST_U8;
        const bool ternary = packed || (j->import == CHM_IMPORT_ABSMEAN && t->rank == 2 && is_linear(t->name));
        p->name = (char *)(uintptr_t)t->name;
        p->format = ternary ? CHM_FORMAT_TERNARY : CHM_FORMAT_F32;
        p->role = CHM_ROLE_FULL;
        p->rank = t->rank;
        memcpy(p->shape, t->shape, sizeof p->shape);
        if (packed && t->rank > 0) p->shape[0] *= 4; /* read_tensor() has seen that the bytes of this are countable */
        p->count = 1;
        for (int d = 0; d < p->rank; d++) p->count *= p->shape[d];
        if (p->count == 0 || p->count > INT64_MAX / 64)
            return chm_fail(CHM_E_DATA, "%s: tensor '%s' is empty", j->in, chm_quote(t->name).text);
        p->out = p->rank ? p->shape[0] : 1;
        p->in = p->count / p->out;
        p->ternary.group = IMPORT_GROUP;
        p->stored = CHM_ENCODING_T5;
    }
    bool any = false;
    for (int i = 0; i < j->params; i++) any = any || j->param[i]->format == CHM_FORMAT_TERNARY;
    if (any) return CHM_OK;
    if (j->import == CHM_IMPORT_ABSMEAN)
        return chm_fail(CHM_E_DATA, "%s: no tensor is called as linear layers are, '....weight' of two dimensions",
                        j->in);
    return chm_fail(CHM_E_DATA,
                    "%s: no tensor is packed (U8 'X' with 'X_scale'); master weights are read with --import absmean",
                    j->in);
}

/* What a plain file that convert wrote says of itself. */
static int describe_plain(struct job *j) {
    int64_t group = 0;
    for (int i = 0; i < j->file->metas; i++) {
        if (!chm_b158_is_encoding(j->file->meta_key[i])) continue;
        chm_param *p = new_param(j);
        if (!p) return CHM_E_MEMORY;
        const int status = chm_b158_describe(j->in, j->file, i, p, &group);
        if (status) return status;
        char *part = chm_format("part.%s", p->name);
        if (!part) return CHM_E_MEMORY;
        p->expert = chm_safetensors_meta(j->file, part) != NULL;
        chm_free(part);
    }
    if (j->params && j->card) return CHM_OK;
    return chm_fail(CHM_E_DATA,
                    "%s: does not say what its tensors are; name the card of the model with --card, or say with "
                    "--import that it is a checkpoint of others",
                    j->in);
}

static int declare_by_card(struct job *j) {
    struct chm_card_options options;
    chm_card *card = NULL;
    int status = chm_card_options_from(j->runtime, j->options->overlay, &options);
    if (!status) status = chm_card_load(j->options->card, &options, &card);
    if (!status) status = chm_model_create(card, &j->runtime->registry, &j->model);
    if (!status) status = chm_tokenizer_open(&j->tokenizer, &j->runtime->registry, j->model->card);
    if (status) return chm_fail_prefix(status, "%s", j->options->card);
    j->model->made_with = &j->tokenizer;
    j->param = j->model->param;
    j->params = j->model->params;
    return CHM_OK;
}

/* A plain file: what its tensors are is said by the card, by the file or by --import. */
static int read_plain(struct job *j) {
    struct chm_floats floats = {.path = j->in,
                                .file = j->file,
                                .import = j->import,
                                .lossy = j->options->lossy,
                                .kernels = &j->runtime->kernels.kernels,
                                .pool = j->runtime->pool,
                                .arena = &j->arena};
    int status = make_room(j, j->file->count + j->file->metas, j->file->metas);
    if (status) return status;
    keep_notes(j, j->file);
    j->card = chm_safetensors_meta(j->file, "card");
    if (j->options->card)
        status = declare_by_card(j);
    else if (j->import)
        status = describe_others(j);
    else
        status = describe_plain(j);
    if (j->import && !j->options->card) {
        j->card = "{}"; /* of no model: such a file is listed and converted, not run */
        j->notes = 0;
    }
    if (!status && j->options->lossy) status = chm_runtime_ready(j->runtime);
    if (status) return status;
    floats.used = chm_arena_zero(&j->arena, (size_t)j->file->count * sizeof *floats.used);
    if (!floats.used) return CHM_E_MEMORY;
    for (int i = 0; i < j->params && !status; i++) status = chm_floats_take(&floats, j->param[i]);
    for (int i = 0; i < j->file->count && !status; i++) {
        const chm_st_tensor *t = &j->file->tensor[i];
        if (!floats.used[i] && !is_padding(t) && strcmp(t->name, CHM_B158_TOKENIZER) != 0)
            status = chm_fail(CHM_E_DATA, "%s: tensor '%s' belongs to no parameter of the %s", j->in,
                              chm_quote(t->name).text, j->model ? "card" : "model");
    }
    j->result->quantised = floats.quantised;
    j->result->rescaled = floats.rescaled;
    j->result->rms_error = floats.squares > 0 ? sqrt(floats.squared_error / floats.squares) : 0;
    return status;
}

/* ---- names ---- */

/* Does a tensor of this parameter, as files hold it, have this ending? */
static bool has_part(const chm_param *p, const char *ending) {
    if (p->format == CHM_FORMAT_TERNARY) return !strcmp(ending, ".codes") || !strcmp(ending, ".scales");
    return p->format == CHM_FORMAT_INT8 && (!strcmp(ending, ".q") || !strcmp(ending, ".scale"));
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(chm_param *const *)a)->name, (*(chm_param *const *)b)->name);
}

/* A file of others may call its tensors as they like, but what is written here holds more than they do. */
static int check_names(const struct job *j) {
    int status = CHM_OK;
    chm_param **sorted = chm_alloc(((size_t)j->params + 1) * sizeof(chm_param *));
    if (!sorted) return CHM_E_MEMORY;
    for (int i = 0; i < j->params; i++) sorted[i] = j->param[i];
    qsort(sorted, (size_t)j->params, sizeof(chm_param *), by_name);
    for (int i = 0; i < j->params && !status; i++) {
        const char *name = sorted[i]->name;
        if (!strcmp(name, CHM_B158_TOKENIZER) || chm_b158_is_padding(name))
            status = chm_fail(CHM_E_DATA,
                              "%s: tensor '%s' is called as a .b158 calls what is no parameter (the tokenizer's file, "
                              "padding); give it another name",
                              j->in, chm_quote(name).text);
        /* names that begin with this one follow it at once */
        for (int k = i + 1; k < j->params && !status && !strncmp(sorted[k]->name, name, strlen(name)); k++)
            if (has_part(sorted[i], sorted[k]->name + strlen(name)))
                status = chm_fail(CHM_E_DATA,
                                  "%s: tensor '%s' is called as a part of what '%s' is stored in; give one of them "
                                  "another name",
                                  j->in, chm_quote(sorted[k]->name).text, chm_quote(name).text);
    }
    chm_free(sorted);
    return status;
}

/* The card goes into the model as it is; what no model can be opened with is refused while its file is at hand. */
static int check_card(const struct job *j) {
    json_error_t error;
    if (j->model) return CHM_OK;
    json_t *card = chm_json_load(j->card, strlen(j->card), &error);
    const bool json = card != NULL, object = json_is_object(card);
    json_decref(card);
    if (object) return CHM_OK;
    if (!json && chm_json_starved()) return chm_fail(CHM_E_MEMORY, "%s: out of memory reading the card inside", j->in);
    return chm_fail(CHM_E_DATA,
                    "%s: the card in __metadata__ is no JSON object%s%s; name the card of the model with --card", j->in,
                    json ? "" : ": ", json ? "" : chm_quote(error.text).text);
}

/* ---- encodings ---- */

struct repacking {
    const struct chm_ternary *from;
    int32_t encoding;
    uint8_t *to;
    struct chm_misfit *misfit; /* [workers] */
};

static void repack_tiles(void *arg, int64_t begin, int64_t end, int worker) {
    const struct repacking *r = arg;
    chm_ternary_repack(r->from, r->encoding, begin, end, r->to, &r->misfit[worker]);
}

/* Tiles are 16 rows, and each worker goes through its own from the first on. */
static bool earlier(const struct chm_misfit *a, const struct chm_misfit *b) {
    return b->quads == 0 || a->row / 16 < b->row / 16;
}

static int repack(struct job *j, chm_param *p) {
    const int64_t tiles = chm_ternary_tiles(p->out);
    const int workers = chm_pool_threads(j->runtime->pool);
    struct chm_misfit all = {0};
    struct repacking r = {.from = &p->ternary, .encoding = p->stored};
    r.to = chm_arena_take(&j->arena, (size_t)(tiles * chm_ternary_code_stride(p->stored, p->in)));
    r.misfit = chm_arena_zero(&j->arena, (size_t)workers * sizeof *r.misfit);
    if (!r.to || !r.misfit) return CHM_E_MEMORY;
    chm_parallel(j->runtime->pool, tiles, 16, repack_tiles, &r);
    for (int i = 0; i < workers; i++) {
        const struct chm_misfit *m = &r.misfit[i];
        if (m->quads && earlier(m, &all)) {
            all.row = m->row;
            all.input = m->input;
        }
        all.quads += m->quads;
        all.weights += m->weights;
    }
    if (all.quads && !j->options->lossy) return chm_b158_unfit(j->in, p->name, &all);
    if (p->stored == CHM_ENCODING_SHERRY) j->result->fours += p->out * ((p->in + 3) / 4);
    j->result->unfit += all.quads;
    j->result->changed += all.weights;
    p->ternary.codes = r.to;
    p->ternary.encoding = p->stored;
    return CHM_OK;
}

/* ---- writing ---- */

/* Writes a parameter as F32, some rows at a time. */
struct rows {
    const chm_param *p;
    int64_t first;
    float *out;
};

static void decode_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct rows *r = arg;
    for (int64_t i = begin; i < end; i++) chm_param_row(r->p, r->first + i, r->out + i * r->p->in);
}

/* What a plain file is written from. */
struct plain {
    chm_st_tensor *tensor;
    const chm_param **param; /* of each tensor */
    chm_pool *pool;
};

static int produce(void *user, const chm_st_tensor *t, chm_writer *writer) {
    const struct plain *plain = user;
    const chm_param *p = plain->param[t - plain->tensor];
    const int64_t at_once = CHM_MAX(1, CHM_MIN(p->out, (1 << 20) / p->in));
    struct rows r = {.p = p};
    int status = CHM_OK;
    if (!(r.out = chm_alloc((size_t)(at_once * p->in) * sizeof *r.out))) return CHM_E_MEMORY;
    for (; r.first < p->out && !status; r.first += at_once) {
        const int64_t n = CHM_MIN(at_once, p->out - r.first);
        chm_parallel(plain->pool, n, 8, decode_rows, &r);
        status = chm_writer_write(writer, r.out, (size_t)(n * p->in) * sizeof *r.out);
    }
    chm_free(r.out);
    return status;
}

/* A weight of scale 0 is 0 whatever its code: the code would not come back. Its row; -1: there is none. */
static int64_t hidden_code(const chm_param *p) {
    for (int64_t o = 0; o < p->out; o++) {
        if (p->format == CHM_FORMAT_INT8) {
            for (int64_t i = 0; p->int8.scale[o] == 0 && i < p->in; i++)
                if (p->int8.q[o * p->int8.blocks * 64 + i]) return o;
            continue;
        }
        const struct chm_ternary *w = &p->ternary;
        const uint8_t *scales = w->scales + o / 16 * chm_ternary_scale_stride(w->in, w->group);
        float row_scale;
        memcpy(&row_scale, scales + 4 * (o % 16), sizeof row_scale);
        for (int64_t b = 0; b < chm_ternary_blocks(w->in); b++) {
            uint8_t code[64];
            const int64_t group = 64 * b / w->group;
            if ((float)scales[64 + 16 * group + o % 16] * row_scale != 0) continue;
            chm_ternary_codes(w, o, 64 * b, 64, code);
            for (int64_t i = 0; i < CHM_MIN(64, w->in - 64 * b); i++)
                if (code[i] != 1) return o;
        }
    }
    return -1;
}

static int write_plain(struct job *j) {
    const size_t most = 2 * (size_t)j->params + 1, more = 2 * (size_t)j->params + (size_t)j->notes + 1;
    chm_st_tensor *tensor = chm_arena_zero(&j->arena, most * sizeof *tensor);
    const chm_param **param = chm_arena_zero(&j->arena, most * sizeof *param);
    struct plain plain = {tensor, param, j->runtime->pool};
    const char **key = chm_arena_take(&j->arena, more * sizeof *key);
    const char **value = chm_arena_take(&j->arena, more * sizeof *value);
    int tensors = 0, metas = 0;
    if (!tensor || !param || !key || !value) return CHM_E_MEMORY;
    for (int i = 0; i < j->notes; i++) {
        key[metas] = j->note[i].key;
        value[metas++] = j->note[i].value;
    }
    for (int i = 0; i < j->params; i++) {
        const chm_param *p = j->param[i];
        const bool ternary = p->format == CHM_FORMAT_TERNARY, packed = p->format != CHM_FORMAT_F32;
        const int64_t hidden = packed && !j->options->lossy ? hidden_code(p) : -1;
        if (hidden >= 0)
            return chm_fail(CHM_E_DATA,
                            "%s: parameter '%s': row %" PRId64 " has codes under a scale of 0, which would not come "
                            "back; --lossy makes them 0",
                            j->in, chm_quote(p->name).text, hidden);
        param[tensors] = p;
        chm_st_tensor *t = &tensor[tensors++];
        *t = (chm_st_tensor){.name = p->name, .dtype = CHM_ST_F32, .rank = p->rank};
        memcpy(t->shape, p->shape, sizeof p->shape);
        t->bytes = 4 * (uint64_t)p->count;
        if (!packed) t->data = (const uint8_t *)p->value;
        key[metas] = keep(j, "encoding.", p->name);
        value[metas++] = chm_b158_encoding(&j->arena, p);
        if (p->expert) {
            key[metas] = keep(j, "part.", p->name);
            value[metas++] = "experts";
        }
        if (!packed) continue;
        const chm_st_tensor *whole = t;
        t = &tensor[tensors++];
        t->name = keep(j, whole->name, ternary ? ".scales" : ".scale");
        t->dtype = ternary ? CHM_ST_U8 : CHM_ST_F32;
        t->rank = ternary ? 2 : 1;
        t->shape[0] = ternary ? chm_ternary_tiles(p->out) : p->out;
        t->shape[1] = ternary ? chm_ternary_scale_stride(p->in, p->ternary.group) : 1;
        t->data = ternary ? p->ternary.scales : (const uint8_t *)p->int8.scale;
        t->bytes = (uint64_t)(t->shape[0] * t->shape[1]) * chm_st_dtype_bytes(t->dtype);
        if (!t->name) return CHM_E_MEMORY;
    }
    for (int i = 0; i < metas; i++)
        if (!key[i] || !value[i]) return CHM_E_MEMORY;
    key[metas] = "card";
    value[metas++] = j->card;
    const chm_st_tensor *tokenizer = chm_safetensors_find(j->file, CHM_B158_TOKENIZER);
    if (tokenizer && !j->import) tensor[tensors++] = *tokenizer;
    return chm_safetensors_write_made(j->out, tensor, tensors, key, value, metas, produce, &plain);
}

static int write_ours(struct job *j) {
    const chm_st_tensor *tokenizer = j->import ? NULL : chm_safetensors_find(j->file, CHM_B158_TOKENIZER);
    const uint8_t *data = tokenizer ? tokenizer->data : NULL;
    const uint64_t bytes = tokenizer ? tokenizer->bytes : 0;
    bool experts = false;
    for (int i = 0; i < j->params; i++) experts = experts || j->param[i]->expert;
    if (!experts) return chm_b158_write_with(j->out, j->param, j->params, j->card, j->note, j->notes, data, bytes);
    json_t *card = chm_json_load(j->card, strlen(j->card), NULL);
    const json_t *files = json_object_get(card, "files");
    const struct chm_experts_names names = {json_string_value(json_object_get(files, "weights")),
                                            json_string_value(json_object_get(files, "moe")), j->experts.path};
    const int status =
        card || !chm_json_starved()
            ? chm_experts_save(&names, j->out, j->param, j->params, j->card, j->note, j->notes, data, bytes)
            : chm_fail(CHM_E_MEMORY, "%s: out of memory reading the card inside", j->in);
    json_decref(card);
    return status;
}

/* With a card the file is written as of a model of that card; what is known of its training stays. */
static int write_model(struct job *j) {
    int notes = 0;
    if (j->model->file) return chm_b158_save(j->model, j->out, NULL, 0); /* which knows its notes itself */
    for (int i = 0; i < j->notes; i++)
        if (!strncmp(j->note[i].key, "trained.", 8)) j->note[notes++] = j->note[i];
    return chm_b158_save(j->model, j->out, j->note, notes);
}

/* ---- the whole ---- */

static bool ends_with(const char *text, const char *ending) {
    const size_t n = strlen(text), tail = strlen(ending);
    return n > tail && !strcmp(text + n - tail, ending);
}

static int check_options(struct job *j, bool plain_out) {
    static const char *const imports[] = {"autobitlinear", "bitlinear", "absmean"};
    const chm_convert_options *o = j->options;
    j->encoding = -1;
    if (!plain_out && !ends_with(j->out, ".b158"))
        return chm_fail(CHM_E_CONFIG,
                        "%s: the name of what is written ends in .b158 or .safetensors, and so says which", j->out);
    if (o->encoding && (j->encoding = chm_encoding_find(o->encoding, strlen(o->encoding))) < 0)
        return chm_fail(CHM_E_CONFIG, "encoding '%s': expected t2, t5 or sherry", o->encoding);
    if (plain_out && o->encoding)
        return chm_fail(CHM_E_CONFIG, "%s: a plain file has no encoding; leave --encoding out, or write a .b158",
                        j->out);
    for (size_t i = 0; o->import && i < CHM_ARRAY_COUNT(imports); i++)
        if (!strcmp(o->import, imports[i])) j->import = (enum chm_import)(i + 1);
    if (o->import && !j->import)
        return chm_fail(CHM_E_CONFIG, "import '%s': expected autobitlinear, bitlinear or absmean", o->import);
    if (chm_same_file(j->in, j->out) || (o->card && chm_same_file(o->card, j->out)))
        return chm_fail(CHM_E_CONFIG, "%s: would replace the file that is read; give it another name", j->out);
    return CHM_OK;
}

int chm_convert(chm_runtime *r, const char *in, const char *out, const chm_convert_options *options,
                chm_convert_result *result) {
    static const chm_convert_options none = {.size = sizeof none};
    chm_convert_result unwanted = {.size = sizeof unwanted};
    if (!options) options = &none;
    if (!result) result = &unwanted;
    if (options->size != sizeof *options || result->size != sizeof *result)
        return chm_fail(CHM_E_CONFIG,
                        "chm_convert_options has size %u and chm_convert_result %u, this library expects "
                        "%zu and %zu",
                        options->size, result->size, sizeof *options, sizeof *result);
    *result = (chm_convert_result){.size = sizeof *result};
    struct job j = {.runtime = r, .options = options, .result = result, .in = in, .out = out};
    const bool plain_out = ends_with(out, ".safetensors");
    bool ternary = false;
    int status = check_options(&j, plain_out);
    if (status) return status;
    chm_arena_init(&j.arena);
    status = chm_map_open(&j.map, in);
    if (!status) status = chm_safetensors_parse(in, j.map.data, j.map.size, &j.file);
    if (status) goto out;
    const char *format = chm_safetensors_meta(j.file, "format");
    status = format && !strcmp(format, CHM_B158_FORMAT) ? read_ours(&j) : read_plain(&j);
    if (!status) status = check_names(&j);
    if (!status) status = check_card(&j);
    if (!status && j.experts.path && chm_same_file(j.experts.path, out))
        status = chm_fail(CHM_E_CONFIG, "%s: would replace the experts of %s; give it another name", out, in);
    for (int i = 0; i < j.params && !status; i++) {
        chm_param *p = j.param[i];
        result->weights += p->count;
        if (p->format != CHM_FORMAT_TERNARY) continue;
        ternary = true;
        if (j.encoding >= 0) p->stored = j.encoding;
        if (!plain_out && p->ternary.encoding != p->stored) status = repack(&j, p);
    }
    result->parameters = j.params;
    if (!status && j.encoding >= 0 && !ternary)
        status = chm_fail(CHM_E_CONFIG, "%s: no parameter is ternary, so no codes could be stored as %s", in,
                          options->encoding);
    if (!status) status = plain_out ? write_plain(&j) : j.model ? write_model(&j) : write_ours(&j);
out:
    if (j.model) {
        for (int i = 0; i < j.params; i++) j.param[i]->value = NULL; /* the arena's or the mapping's, as all else */
        chm_tokenizer_close(&j.tokenizer);
        chm_model_destroy(j.model);
    }
    chm_experts_close(&j.experts);
    chm_safetensors_destroy(j.file);
    chm_map_close(&j.map);
    chm_arena_finish(&j.arena);
    return status;
}
