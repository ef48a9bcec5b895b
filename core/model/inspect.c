/* inspect.c: `chimera inspect`. */
#include "model/report.h"
#include "base/json.h"
#include "base/table.h"
#include "graph/encoding.h"
#include "model/b158.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum part { PART_EMBEDDING, PART_MIXERS, PART_FFNS, PART_NORMS, PART_LOOP, PART_OTHER, PARTS };
static const char *const part_names[] = {"embedding", "mixers", "ffns", "norms", "loop", "other"};

/* A parameter of a .b158, or a tensor of another file. */
struct item {
    chm_param param; /* of a .b158: name, format, shape, and where it lies */
    const char *name, *encoding;
    int64_t weights;
    uint64_t bytes;
    double zeros; /* share of the weights, NaN: not known */
    enum part part;
    const chm_st_tensor *tensor[2];
    const char *hash[2]; /* of each tensor, as the file states it; NULL: it does not */
    int tensors;
    bool expert; /* in the second file */
};

struct report {
    const char *path;
    const chm_safetensors *file;
    const uint8_t *start; /* of the file */
    uint64_t bytes;       /* of the file */
    chm_experts experts;  /* the second file, of a model that has one */
    struct item *item;
    int items;
    bool ours; /* a .b158 */
    bool verified;
    const chm_model *model; /* NULL: not opened */
    const char *problem;    /* why not; NULL: not tried */
};

/* ---- what the file says of its parameters ---- */

/* The parts of chimera check: norms are those of the residual stream, a layer's own are the layer's. */
static enum part part_of(const char *name) {
    const char *last = strrchr(name, '.');
    last = last ? last + 1 : name;
    if (!strcmp(last, "mixer_norm") || !strcmp(last, "ffn_norm") || !strcmp(name, "final_norm")) return PART_NORMS;
    if (!strcmp(name, "embedding") || !strcmp(name, "head")) return PART_EMBEDDING;
    if (!strncmp(name, "loop.", 5)) return PART_LOOP;
    if (strstr(name, ".mixer.")) return PART_MIXERS;
    if (strstr(name, ".ffn.")) return PART_FFNS;
    return PART_OTHER;
}

/* The share of a parameter's weights that are 0. */
static double zeros_of(const chm_param *p) {
    int64_t zeros = 0;
    if (p->count == 0) return NAN;
    if (p->format == CHM_FORMAT_TERNARY) {
        zeros = chm_ternary_zeros(&p->ternary);
    } else if (p->format == CHM_FORMAT_INT8) {
        const int64_t stride = p->int8.blocks * 64;
        for (int64_t o = 0; o < p->out; o++)
            for (int64_t i = 0; i < p->in; i++) zeros += p->int8.q[o * stride + i] == 0;
    } else {
        for (int64_t i = 0; i < p->count; i++) zeros += p->value[i] == 0;
    }
    return (double)CHM_MAX(zeros, 0) / (double)p->count;
}

/* The parameters of one file, after those already there. */
static int read_file(struct report *r, const char *path, const chm_safetensors *file, bool expert, bool verify) {
    const int before = r->items;
    int64_t group = 0;
    int status = CHM_OK;
    chm_param **list = chm_alloc((size_t)file->metas * sizeof *list);
    if (!list) return CHM_E_MEMORY;
    for (int i = 0; i < file->metas; i++) {
        if (!chm_b158_is_encoding(file->meta_key[i])) continue;
        struct item *item = &r->item[r->items];
        status = chm_b158_describe(path, file, i, &item->param, &group);
        if (status) goto out;
        item->name = item->param.name;
        item->expert = expert;
        list[r->items++ - before] = &item->param;
    }
    status = chm_b158_bind(path, file, list, r->items - before, group, verify);
    if (status) goto out;
    for (int i = before; i < r->items; i++) {
        static const char *const suffix[][2] = {[CHM_FORMAT_F32] = {"", NULL},
                                                [CHM_FORMAT_TERNARY] = {".codes", ".scales"},
                                                [CHM_FORMAT_INT8] = {".q", ".scale"}};
        struct item *item = &r->item[i];
        for (int j = 0; j < 2 && suffix[item->param.format][j]; j++) {
            char *name = chm_format("%s%s", item->name, suffix[item->param.format][j]);
            if (!name) {
                status = CHM_E_MEMORY;
                goto out;
            }
            item->tensor[item->tensors] = chm_safetensors_find(file, name);
            item->bytes += item->tensor[item->tensors++]->bytes;
            chm_free(name);
        }
        item->encoding = chm_b158_form(&item->param);
        item->weights = item->param.count;
        item->zeros = zeros_of(&item->param);
        item->part = part_of(item->name);
    }
out:
    chm_free(list);
    return status;
}

static int read_b158(struct report *r, bool verify) {
    int status = chm_b158_check(r->path, r->file);
    if (!status) status = chm_experts_open(r->path, r->file, &r->experts);
    if (status) return status;
    const int second = r->experts.file ? r->experts.file->metas : 0;
    r->item = chm_alloc((size_t)(r->file->metas + second) * sizeof *r->item);
    if (!r->item) return CHM_E_MEMORY;
    status = read_file(r, r->path, r->file, false, verify);
    if (!status && second) status = read_file(r, r->experts.path, r->experts.file, true, verify);
    r->verified = verify;
    return status;
}

static int read_plain(struct report *r) {
    r->item = chm_alloc((size_t)r->file->count * sizeof *r->item);
    if (!r->item) return CHM_E_MEMORY;
    for (int i = 0; i < r->file->count; i++) {
        const chm_st_tensor *t = &r->file->tensor[i];
        if (chm_b158_is_padding(t->name)) continue;
        struct item *item = &r->item[r->items++];
        item->name = t->name;
        item->encoding = chm_st_dtype_name(t->dtype);
        item->tensor[0] = t;
        item->tensors = 1;
        item->bytes = t->bytes;
        item->weights = (int64_t)(t->bytes / chm_st_dtype_bytes(t->dtype));
        item->zeros = NAN;
        item->part = part_of(t->name);
        item->param.rank = t->rank;
    }
    return CHM_OK;
}

static void totals(const struct report *r, int part /* PARTS: all */, int64_t *weights, uint64_t *bytes) {
    *weights = 0;
    *bytes = 0;
    for (int i = 0; i < r->items; i++) {
        if (part != PARTS && (int)r->item[i].part != part) continue;
        *weights += r->item[i].weights;
        *bytes += r->item[i].bytes;
    }
}

static double bits_per_weight(int64_t weights, uint64_t bytes) {
    return weights ? 8.0 * (double)bytes / (double)weights : 0;
}

static void shape_text(const struct report *r, const struct item *item, char *text, size_t n) {
    chm_st_tensor t = *item->tensor[0];
    if (r->ours) {
        t.rank = item->param.rank;
        memcpy(t.shape, item->param.shape, sizeof item->param.shape);
    }
    chm_st_shape_text(&t, text, n);
}

static int find_hashes(const struct report *r) {
    for (int i = 0; i < r->items; i++)
        for (int k = 0; k < r->item[i].tensors; k++) {
            char *key = chm_format("hash.%s", r->item[i].tensor[k]->name);
            if (!key) return CHM_E_MEMORY;
            r->item[i].hash[k] = chm_safetensors_meta(r->item[i].expert ? r->experts.file : r->file, key);
            chm_free(key);
        }
    return CHM_OK;
}

/* "gd x8" or "gd x3, xlstm, gd" */
static void print_pattern(const chm_model_config *c, FILE *out) {
    for (int64_t i = 0, next; i < c->layers; i = next) {
        for (next = i + 1; next < c->layers && !strcmp(c->mixer[i], c->mixer[next]);) next++;
        fprintf(out, "%s%s", i ? ", " : "", c->mixer[i]);
        if (next - i > 1) fprintf(out, " x%" PRId64, next - i);
    }
}

/* ---- text, Markdown, CSV ---- */

static int print_items(const struct report *r, FILE *out, chm_output format) {
    char shape[220];
    chm_table t;
    chm_table_init(&t);
    chm_table_column(&t, r->ours ? "parameter" : "tensor");
    chm_table_column(&t, "shape");
    chm_table_column(&t, r->ours ? "encoding" : "dtype");
    chm_table_column(&t, "#weights");
    chm_table_column(&t, "#bytes");
    if (r->ours) {
        chm_table_column(&t, "#bits_per_weight");
        chm_table_column(&t, "#zeros");
        chm_table_column(&t, "hashes");
    }
    for (int i = 0; i < r->items; i++) {
        const struct item *item = &r->item[i];
        shape_text(r, item, shape, sizeof shape);
        chm_table_cell(&t, "%s", chm_quote(item->name).text);
        chm_table_cell(&t, "%s", shape);
        chm_table_cell(&t, "%s", item->encoding);
        chm_table_cell(&t, "%" PRId64, item->weights);
        chm_table_cell(&t, "%" PRIu64, item->bytes);
        if (!r->ours) continue;
        chm_table_cell(&t, "%.3f", bits_per_weight(item->weights, item->bytes));
        if (isnan(item->zeros))
            chm_table_cell(&t, "%s", "");
        else
            chm_table_cell(&t, "%.4f", item->zeros);
        const char *first = item->hash[0], *second = item->hash[1];
        chm_table_cell(&t, "%s%s%s", first ? chm_quote(first).text : "-", item->tensors > 1 ? " " : "",
                       item->tensors > 1 ? (second ? chm_quote(second).text : "-") : "");
    }
    int status = chm_table_print(&t, format, out);
    chm_table_finish(&t);
    return status;
}

static int print_parts(const struct report *r, FILE *out, chm_output format) {
    int64_t weights;
    uint64_t bytes;
    chm_table t;
    chm_table_init(&t);
    chm_table_column(&t, "part");
    chm_table_column(&t, "#weights");
    chm_table_column(&t, "#bytes");
    chm_table_column(&t, "#bits_per_weight");
    for (int part = 0; part <= PARTS; part++) {
        totals(r, part, &weights, &bytes);
        if (part < PARTS && !weights) continue;
        chm_table_cell(&t, "%s", part < PARTS ? part_names[part] : "total");
        chm_table_cell(&t, "%" PRId64, weights);
        chm_table_cell(&t, "%" PRIu64, bytes);
        chm_table_cell(&t, "%.3f", bits_per_weight(weights, bytes));
    }
    int status = chm_table_print(&t, format, out);
    chm_table_finish(&t);
    return status;
}

static void print_head(const struct report *r, FILE *out, bool md) {
    int64_t weights;
    uint64_t bytes;
    const char *item = md ? "- " : "";
    totals(r, PARTS, &weights, &bytes);
    fprintf(out, md ? "# %s\n\n" : "%s\n", r->path);
    fprintf(out, "%sformat: %s, %" PRIu64 " bytes%s\n", item,
            r->ours ? CHM_B158_FORMAT " " CHM_B158_VERSION : "safetensors", r->bytes,
            r->ours && chm_experts_is_part(r->file) ? ", the experts of a model" : "");
    if (r->experts.file) fprintf(out, "%sexperts: %s, %" PRIu64 " bytes\n", item, r->experts.path, r->experts.map.size);
    fprintf(out, "%s%s: %d, %" PRId64 " weights, %.3f bits per weight\n", item, r->ours ? "parameters" : "tensors",
            r->items, weights, bits_per_weight(weights, bytes));
    if (r->model) {
        const chm_model_config *c = r->model->config;
        fprintf(out, "%scard: width %" PRId64 ", ffn %" PRId64 ", %" PRId64 " layers (", item, c->width, c->ffn_width,
                c->layers);
        print_pattern(c, out);
        fprintf(out, "), %" PRId64 " heads of %" PRId64 ", vocabulary %" PRId64 ", tokenizer %s\n", c->heads,
                c->head_dim, c->vocab, c->tokenizer ? c->tokenizer : "none");
    }
    for (int i = 0; r->ours && i < r->file->metas; i++)
        if (!strncmp(r->file->meta_key[i], "trained.", 8))
            fprintf(out, "%s%s: %s\n", item, chm_quote(r->file->meta_key[i]).text,
                    chm_quote(r->file->meta_value[i]).text);
    if (r->ours) fprintf(out, "%schecked: %s\n", item, r->verified ? "every byte" : "header and scales");
    if (r->problem) fprintf(out, "%scannot be opened here: %s\n", item, r->problem);
    fputc('\n', out);
}

/* ---- JSON ---- */

static void put(json_t *object, const char *key, json_t *value) { json_object_set_new(object, key, value); }

static json_t *total_json(const char *name, int64_t weights, uint64_t bytes) {
    json_t *o = json_object();
    if (name) put(o, "name", chm_json_text(name));
    put(o, "weights", json_integer(weights));
    put(o, "bytes", json_integer((json_int_t)bytes));
    put(o, "bits_per_weight", json_real(bits_per_weight(weights, bytes)));
    return o;
}

static json_t *shape_json(const int64_t *shape, int rank) {
    json_t *array = json_array();
    for (int i = 0; i < rank; i++) json_array_append_new(array, json_integer(shape[i]));
    return array;
}

static json_t *item_json(const struct report *r, const struct item *item) {
    json_t *o = total_json(item->name, item->weights, item->bytes), *tensors = json_array();
    put(o, "shape", shape_json(r->ours ? item->param.shape : item->tensor[0]->shape, item->param.rank));
    put(o, "encoding", chm_json_text(item->encoding));
    if (item->expert) put(o, "file", chm_json_text(r->experts.path));
    put(o, "part", chm_json_text(part_names[item->part]));
    put(o, "zeros", isnan(item->zeros) ? json_null() : json_real(item->zeros));
    for (int i = 0; i < item->tensors; i++) {
        const chm_st_tensor *t = item->tensor[i];
        json_t *tensor = json_object();
        put(tensor, "name", chm_json_text(t->name));
        put(tensor, "dtype", chm_json_text(chm_st_dtype_name(t->dtype)));
        put(tensor, "shape", shape_json(t->shape, t->rank));
        put(tensor, "offset", json_integer((json_int_t)(t->data - (item->expert ? r->experts.map.data : r->start))));
        put(tensor, "bytes", json_integer((json_int_t)t->bytes));
        put(tensor, "hash", chm_json_text(item->hash[i]));
        json_array_append_new(tensors, tensor);
    }
    put(o, "tensors", tensors);
    return o;
}

static int print_json(const struct report *r, FILE *out) {
    int64_t weights;
    uint64_t bytes;
    totals(r, PARTS, &weights, &bytes);
    chm_json_begin();
    json_t *root = json_object(), *parts = json_array(), *items = json_array();
    put(root, "schema_version", json_integer(1));
    put(root, "path", chm_json_text(r->path));
    put(root, "format", chm_json_text(r->ours ? CHM_B158_FORMAT : "safetensors"));
    put(root, "format_version", r->ours ? chm_json_text(CHM_B158_VERSION) : json_null());
    put(root, "file_bytes", json_integer((json_int_t)r->bytes));
    put(root, "experts", r->experts.file ? chm_json_text(r->experts.path) : json_null());
    put(root, "experts_bytes", r->experts.file ? json_integer((json_int_t)r->experts.map.size) : json_null());
    put(root, "verified", json_boolean(r->verified));
    put(root, "opens", r->model || r->problem ? json_boolean(r->model != NULL) : json_null());
    put(root, "problem", chm_json_text(r->problem));
    put(root, "total", total_json(NULL, weights, bytes));
    if (r->model) {
        const chm_model_config *c = r->model->config;
        json_t *card = json_object(), *layers = json_array();
        put(card, "width", json_integer(c->width));
        put(card, "ffn_width", json_integer(c->ffn_width));
        put(card, "heads", json_integer(c->heads));
        put(card, "head_dim", json_integer(c->head_dim));
        put(card, "vocab", json_integer(c->vocab));
        put(card, "tokenizer", chm_json_text(c->tokenizer));
        for (int64_t i = 0; i < c->layers; i++) json_array_append_new(layers, chm_json_text(c->mixer[i]));
        put(card, "layers", layers);
        put(root, "card", card);
    }
    json_t *metadata = json_object(); /* the card has its own verb, hashes and encodings stand with their tensors */
    for (int i = 0; i < r->file->metas; i++) {
        const char *key = r->file->meta_key[i];
        if (r->ours && (!strcmp(key, "card") || !strncmp(key, "hash.", 5) || !strncmp(key, "encoding.", 9))) continue;
        put(metadata, key, chm_json_text(r->file->meta_value[i]));
    }
    put(root, "metadata", metadata);
    for (int part = 0; part < PARTS; part++) {
        totals(r, part, &weights, &bytes);
        if (weights) json_array_append_new(parts, total_json(part_names[part], weights, bytes));
    }
    put(root, "parts", parts);
    for (int i = 0; i < r->items; i++) json_array_append_new(items, item_json(r, &r->item[i]));
    put(root, r->ours ? "parameters" : "tensors", items);
    return chm_json_print(root, r->path, out);
}

/* ---- the report ---- */

int chm_report_inspect(const char *path, const chm_registry *registry, bool verify, FILE *out, chm_output format) {
    chm_map map = {0};
    chm_safetensors *file = NULL;
    chm_model *model = NULL;
    char *problem = NULL;
    struct report r = {.path = path};
    int status = chm_map_open(&map, path);
    if (status) return status;
    status = chm_safetensors_parse(path, map.data, map.size, &file);
    if (status) goto out;
    r.file = file;
    r.start = map.data;
    r.bytes = map.size;
    const char *kind = chm_safetensors_meta(file, "format");
    r.ours = kind && !strcmp(kind, CHM_B158_FORMAT);
    if (r.ours) {
        status = read_b158(&r, verify);
        if (!status && registry && !chm_experts_is_part(file)) {
            const struct chm_card_options options = {.registry = registry};
            const int opened = chm_model_open(path, registry, &options, false, &model);
            if (opened == CHM_E_MEMORY) status = opened;
            if (opened && !status) {
                problem = chm_strdup(chm_error());
                if (!problem) status = CHM_E_MEMORY;
            }
            r.model = model;
            r.problem = problem;
        }
    } else if (verify) {
        status = chm_fail(CHM_E_DATA,
                          "%s: there is nothing to verify: it is no .b158, and other safetensors files carry "
                          "no hashes",
                          path);
    } else {
        status = read_plain(&r);
    }
    if (!status) status = find_hashes(&r);
    if (status) goto out;
    switch (format) {
    case CHM_OUTPUT_JSON:
        status = print_json(&r, out);
        break;
    case CHM_OUTPUT_CSV:
        status = print_items(&r, out, format);
        break;
    default:
        print_head(&r, out, format == CHM_OUTPUT_MD);
        status = print_parts(&r, out, format);
        fputc('\n', out);
        if (!status) status = print_items(&r, out, format);
    }
out:
    chm_model_destroy(model);
    chm_free(problem);
    chm_free(r.item);
    chm_experts_close(&r.experts);
    chm_safetensors_destroy(file);
    chm_map_close(&map);
    return status;
}
