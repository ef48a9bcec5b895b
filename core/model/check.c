/* check.c: what a card means before anything is allocated: layer table, parameters, bytes; and untrained models. */
#include "model/stream.h"
#include "model/declared.h"
#include "model/json.h"
#include <string.h>

/* ---- counting what a plugin declares ----------------------------------------------------------------------------- */

typedef chm_part_size part_size;

static void add_size(part_size *to, const part_size *from) {
    to->parameters += from->parameters;
    to->norms += from->norms;
    to->ternary += from->ternary;
    to->bytes += from->bytes;
}

typedef struct counting {
    chm_declare declare; /* first: what the plugin holds */
    const chm_model_config *config;
    chm_arena arena; /* the handles given out */
    part_size size;
    size_t state_bytes;
    int states;
    int status;
    bool corrected; /* the layer's ternary linears have a product of low rank beside them */
} counting;

static size_t stored_bytes(const chm_model_config *config, enum chm_role role, int64_t out, int64_t in) {
    chm_param p = {.role = role, .rank = 2, .shape = {out, in}, .count = out * in, .out = out, .in = in};
    p.format = CHM_FORMAT_F32;
    if (config->quant == CHM_QUANT_BITNET) {
        const bool table = role == CHM_ROLE_EMBEDDING;
        if (role == CHM_ROLE_TERNARY || (table && config->embedding == CHM_EMBED_TERNARY))
            p.format = CHM_FORMAT_TERNARY;
        if (table && config->embedding == CHM_EMBED_INT8) p.format = CHM_FORMAT_INT8;
    }
    if (p.format == CHM_FORMAT_F32) return (size_t)p.count * sizeof(float);
    if (p.format == CHM_FORMAT_INT8) return (size_t)p.count + (size_t)out * sizeof(float); /* a scale a row */
    p.ternary.out = out;
    p.ternary.in = in;
    p.ternary.group = config->weight_group;
    return chm_param_code_bytes(&p, config->encoding) + chm_param_scale_bytes(&p, config->weight_group);
}

static int count_fail(chm_declare *d, const char *format, ...) {
    counting *c = (counting *)(void *)d;
    char line[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    return c->status = chm_fail(CHM_E_CONFIG, "%s", line);
}

static chm_param *count_param(chm_declare *d, const char *name, enum chm_role role, chm_init init, int rank,
                              const int64_t *shape) {
    counting *c = (counting *)(void *)d;
    if (c->status != CHM_OK) return NULL;
    if (rank < 1 || rank > 4) {
        count_fail(d, "parameter '%s' has rank %d: 1..4", name, rank);
        return NULL;
    }
    int64_t count = 1;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 1 || __builtin_mul_overflow(count, shape[i], &count)) {
            count_fail(d, "parameter '%s': its dimension %d is %lld", name, i, (long long)shape[i]);
            return NULL;
        }
    }
    chm_param *p = chm_arena_zero(&c->arena, sizeof(*p));
    if (p == NULL) {
        c->status = CHM_E_MEMORY;
        return NULL;
    }
    p->role = role;
    p->init = init;
    p->rank = rank;
    memcpy(p->shape, shape, (size_t)rank * sizeof(*shape));
    p->count = count;
    p->out = shape[0];
    p->in = count / shape[0];
    c->size.parameters += count;
    if (role == CHM_ROLE_NORM) c->size.norms += count;
    if (role == CHM_ROLE_TERNARY) c->size.ternary += count;
    c->size.bytes += stored_bytes(c->config, role, p->out, p->in);
    if (role == CHM_ROLE_TERNARY && c->corrected) { /* int8 in blocks of 64, a scale a row; and the gate */
        const int64_t low = c->config->hgf_rank;
        const int64_t packed = low * chm_ternary_blocks(p->in) * 64 + p->out * chm_ternary_blocks(low) * 64;
        const int64_t plain = low * (p->in + p->out);
        c->size.parameters += plain + 1;
        c->size.bytes += (size_t)(c->config->quant == CHM_QUANT_BITNET ? packed + 4 * (low + p->out) : 4 * plain) + 4;
    }
    return p;
}

static int count_state(chm_declare *d, const char *name, enum chm_dtype type, int64_t heads, int rank,
                       const int64_t *shape) {
    counting *c = (counting *)(void *)d;
    if (c->status != CHM_OK) return -1;
    size_t elements = 1;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0 || __builtin_mul_overflow(elements, (size_t)shape[i], &elements)) {
            count_fail(d, "state '%s': its dimension %d is %lld", name, i, (long long)shape[i]);
            return -1;
        }
    }
    c->state_bytes += (size_t)heads * chm_align64(elements * chm_dtype_bytes(type));
    return c->states++;
}

static int count_ring(chm_declare *d, const char *name, int64_t heads, int64_t entries, int64_t width) {
    return count_state(d, name, CHM_F32, heads, 2, (const int64_t[]){entries, width});
}

static const struct chm_declare_ops counting_ops = {
    .size = sizeof(counting_ops), .param = count_param, .state = count_state, .fail = count_fail, .ring = count_ring};

/* What the plugin of layer `layer` declares under this card. *built is false when there is no such plugin: then it is
 * counts nothing. */
static int count_layer(const chm_runtime *r, const chm_card *card, bool mixer, int layer, part_size *size,
                       size_t *state_bytes, bool *built) {
    const chm_model_config *config = chm_card_model(card);
    const char *name = mixer ? config->mixer[layer] : config->ffn[layer];
    const struct chm_plugin *plugin = chm_registry_find(&r->registry, CHM_KIND_LAYER, name);
    *size = (part_size){0};
    *state_bytes = 0;
    *built = plugin != NULL;
    counting c = {
        .declare = {.ops = &counting_ops}, .config = config, .corrected = config->hgf_rank > 0 && config->hgf[layer]};
    chm_arena_init(&c.arena);
    const chm_layer_info info = {.size = sizeof(info),
                                 .layer = layer,
                                 .layers = (int32_t)config->layers,
                                 .width = config->width,
                                 .ffn_width = config->ffn_width,
                                 .heads = config->heads,
                                 .head_dim = config->head_dim,
                                 .norm_eps = (float)config->norm_eps,
                                 .norm_before_linear = config->norm_before_linear,
                                 .in_loop = config->in_loop[layer]};
    int status = CHM_OK;
    if (plugin != NULL) {
        const struct chm_layer_ops *ops = plugin->ops;
        void *self = chm_arena_zero(&c.arena, plugin->instance_size ? plugin->instance_size : 1);
        status = self ? CHM_OK : CHM_E_MEMORY;
        if (status == CHM_OK)
            status = mixer ? chm_card_mixer_options(card, layer, plugin, self, &c.arena)
                           : chm_card_plugin_options(card, plugin, self, &c.arena);
        if (status == CHM_OK && ops->declare(self, &c.declare, &info) != 0)
            status = c.status != CHM_OK ? c.status : chm_fail(CHM_E_PLUGIN, "its declare failed and gave no reason");
    }
    if (status == CHM_OK) status = c.status;
    if (status != CHM_OK) status = chm_fail_prefix(status, "layer %d, plugin '%s'", layer, name);
    *size = c.size;
    *state_bytes = c.state_bytes;
    chm_arena_finish(&c.arena);
    return status;
}

/* ---- the report -------------------------------------------------------------------------------------------------- */

enum check_part { PART_EMBEDDING, PART_MIXERS, PART_FFNS, PART_NORMS, PART_LOOP, PART_COUNT };
static const char *const part_name[PART_COUNT] = {"embedding", "mixers", "ffns", "norms", "loop"};

typedef struct check_report {
    chm_table layers, parts, values, numbers, findings;
    chm_figures figures;
    part_size part[PART_COUNT], total;
    size_t state_bytes;
    int missing_mixers, missing_ffns;
    chm_string obstacle; /* why no model can be made of it; empty: it can */
} check_report;

/* Whether the model could be built: asked of the very code that would. */
/* Whether the card's tokenizer is there and opens. */
static int check_tokenizer(const chm_runtime *r, const chm_card *card) {
    chm_tokenizer tokenizer = {0};
    const int status = chm_tokenizer_open(&tokenizer, &r->registry, card);
    chm_tokenizer_close(&tokenizer);
    return status;
}

static int find_obstacle(const chm_runtime *r, const char *path, const struct chm_card_options *options,
                         check_report *c) {
    chm_card *card = NULL;
    chm_model *m = NULL;
    int status = chm_card_load(path, options, &card);
    if (status != CHM_OK) return status;
    status = chm_model_create(card, &r->registry, &m);
    if (status == CHM_OK) status = check_tokenizer(r, m->card);
    chm_model_destroy(m);
    if (status == CHM_E_MEMORY) return status;
    if (status != CHM_OK) chm_string_add(&c->obstacle, "%s", chm_error());
    return CHM_OK;
}

int64_t chm_experts_skipped(const chm_card *card) {
    const double routed = chm_card_number(card, "backbone.moe.n_routed_experts", 0);
    const double chosen = chm_card_number(card, "backbone.moe.num_experts_per_tok", 0);
    const double inner = chm_card_number(card, "backbone.moe.moe_intermediate_size", 0);
    return (int64_t)((routed - chosen) * 3 * inner) * chm_card_model(card)->width;
}

/* Experts apart, their norms with the rest. What one token skips are the experts it does not choose. */
static void count_figures(const chm_card *card, int layer, const part_size *mixer, const part_size *ffn,
                          const part_size *norm, chm_figures *f) {
    const chm_model_config *config = chm_card_model(card);
    int64_t once = mixer->parameters + 2 * norm->parameters + ffn->parameters;
    add_size(&f->base, mixer);
    for (int k = 0; k < 2; k++) add_size(&f->base, norm);
    if (strcmp(config->ffn[layer], "moe") != 0) {
        add_size(&f->base, ffn);
    } else {
        const size_t norm_bytes = (size_t)ffn->norms * sizeof(float);
        add_size(&f->base, &(part_size){ffn->norms, ffn->norms, 0, norm_bytes});
        add_size(&f->experts, &(part_size){ffn->parameters - ffn->norms, 0, ffn->ternary, ffn->bytes - norm_bytes});
        const int64_t skipped = chm_experts_skipped(card);
        f->experts_active += ffn->parameters - ffn->norms - skipped;
        once -= skipped;
    }
    if (config->in_loop[layer]) f->looped += once;
}

static int collect_layers(const chm_runtime *r, const chm_card *card, check_report *c) {
    const chm_model_config *config = chm_card_model(card);
    chm_table *t = &c->layers;
    chm_table_column(t, "#layer");
    chm_table_column(t, "mixer");
    chm_table_column(t, "ffn");
    chm_table_column(t, "loop");
    chm_table_column(t, "#parameters");
    chm_table_column(t, "#bytes");
    chm_table_column(t, "#state_bytes");
    chm_table_column(t, "status");
    const part_size norm = {config->width, config->width, 0, (size_t)config->width * sizeof(float)};
    chm_figures *f = &c->figures;
    for (int i = 0; i < config->layers; i++) {
        part_size mixer, ffn;
        size_t mixer_state, ffn_state;
        bool mixer_built, ffn_built;
        int status = count_layer(r, card, true, i, &mixer, &mixer_state, &mixer_built);
        if (status == CHM_OK) status = count_layer(r, card, false, i, &ffn, &ffn_state, &ffn_built);
        if (status != CHM_OK) return status;
        count_figures(card, i, &mixer, &ffn, &norm, f);
        f->state_bytes += mixer_state + ffn_state;
        f->planned += !mixer_built + !ffn_built;
        if (mixer_built) {
            add_size(&c->part[PART_MIXERS], &mixer);
            c->state_bytes += mixer_state;
        }
        if (ffn_built) {
            add_size(&c->part[PART_FFNS], &ffn);
            c->state_bytes += ffn_state;
        }
        for (int k = 0; k < 2; k++) add_size(&c->part[PART_NORMS], &norm);
        c->missing_mixers += !mixer_built;
        c->missing_ffns += !ffn_built;
        chm_table_cell(t, "%d", i);
        chm_table_cell(t, "%s", config->mixer[i]);
        chm_table_cell(t, "%s", config->ffn[i]);
        chm_table_cell(t, "%s", config->in_loop[i] ? "yes" : "no");
        if (mixer_built && ffn_built) {
            chm_table_cell(t, "%lld", (long long)(mixer.parameters + ffn.parameters + 2 * norm.parameters));
            chm_table_cell(t, "%zu", mixer.bytes + ffn.bytes + 2 * norm.bytes);
            chm_table_cell(t, "%zu", mixer_state + ffn_state);
            chm_table_cell(t, "built");
        } else {
            for (int k = 0; k < 3; k++) chm_table_cell(t, "%s", "");
            chm_table_cell(t, "not built: %s%s%s", mixer_built ? "" : config->mixer[i],
                           !mixer_built && !ffn_built ? ", " : "", ffn_built ? "" : config->ffn[i]);
        }
    }
    add_size(&c->part[PART_NORMS], &norm); /* the final one */
    add_size(&f->base, &norm);
    /* a norm before the loop, and decay, step and gain of every column */
    const int64_t loop = config->loop.enabled ? 4 * config->width : 0;
    c->part[PART_LOOP] = (part_size){loop, loop, 0, (size_t)loop * sizeof(float)};
    add_size(&f->base, &c->part[PART_LOOP]);
    f->looped += loop;
    /* tied: one matrix reads and writes */
    const int64_t tables = config->tie_embeddings ? 1 : 2;
    c->part[PART_EMBEDDING].parameters = tables * config->vocab * config->width;
    c->part[PART_EMBEDDING].bytes =
        (size_t)tables * stored_bytes(config, CHM_ROLE_EMBEDDING, config->vocab, config->width);
    f->embedding = c->part[PART_EMBEDDING];
    for (int i = 0; i < PART_COUNT; i++) add_size(&c->total, &c->part[i]);
    return CHM_OK;
}

static void collect_parts(const chm_model_config *config, check_report *c) {
    chm_table *t = &c->parts;
    chm_table_column(t, "part");
    chm_table_column(t, "#parameters");
    chm_table_column(t, "#bytes");
    chm_table_column(t, "status");
    for (int i = 0; i <= PART_COUNT; i++) {
        const part_size *p = i < PART_COUNT ? &c->part[i] : &c->total;
        if (i == PART_LOOP && !config->loop.enabled) continue;
        int missing = i == PART_MIXERS ? c->missing_mixers : i == PART_FFNS ? c->missing_ffns : 0;
        if (i == PART_COUNT) missing = c->missing_mixers + c->missing_ffns;
        chm_table_cell(t, "%s", i < PART_COUNT ? part_name[i] : "total");
        chm_table_cell(t, "%lld", (long long)p->parameters);
        chm_table_cell(t, "%zu", p->bytes);
        if (missing)
            chm_table_cell(t, "without %d of %lld not built", missing,
                           (long long)config->layers * (i == PART_COUNT ? 2 : 1));
        else
            chm_table_cell(t, "built");
    }
}

static int value_row(void *user, const char *key, const char *value, const char *origin) {
    chm_table *t = user;
    chm_table_cell(t, "%s", key);
    chm_table_cell(t, "%s", value);
    chm_table_cell(t, "%s", origin);
    return CHM_OK;
}

/* Values are JSON already, so a JSON report takes them bare. */
static int collect_values(const chm_card *card, chm_output format, check_report *c) {
    chm_table *t = &c->values;
    chm_table_column(t, "key");
    chm_table_column(t, format == CHM_OUTPUT_JSON ? "#value" : "value");
    chm_table_column(t, "origin");
    return chm_card_each(card, value_row, t);
}

static void write_count(FILE *out, int64_t n) {
    char digits[32];
    const int length = snprintf(digits, sizeof(digits), "%lld", (long long)n);
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0) putc(',', out);
        putc(digits[i], out);
    }
}

static void heading(FILE *out, chm_output format, const char *text) {
    fprintf(out, format == CHM_OUTPUT_MD ? "\n## %s\n\n" : "\n%s\n", text);
}

static int write_check(const chm_card *card, check_report *c, bool resolved, chm_output format, FILE *out) {
    const char *path = chm_card_name(card);
    const chm_model_config *config = chm_card_model(card);
    const char *const *unbuilt = chm_card_unbuilt(card);
    const bool complete = c->missing_mixers + c->missing_ffns == 0, usable = c->obstacle.text == NULL;
    int status = CHM_OK;
    if (format == CHM_OUTPUT_CSV) { /* one table a file: the values when asked for, else the layers */
        status = chm_table_print(resolved ? &c->values : &c->layers, format, out);
        return status == CHM_OK ? chm_report_end(out) : status;
    }
    if (format == CHM_OUTPUT_JSON) {
        fputs("{\n  \"schema_version\": 1,\n  \"card\": ", out);
        chm_json_string(out, path);
        fprintf(out, ",\n  \"valid\": true,\n  \"usable\": %s,\n  \"obstacle\": ", usable ? "true" : "false");
        if (usable)
            fputs("null", out);
        else
            chm_json_string(out, c->obstacle.text);
        fputs(",\n", out);
        fprintf(out, "  \"parameters\": %lld,\n  \"bytes\": %zu,\n  \"state_bytes\": %zu,\n",
                (long long)c->total.parameters, c->total.bytes, c->state_bytes);
        fputs("  \"parts\": ", out);
        status = chm_table_json(&c->parts, 2, out);
        fputs(",\n  \"declared\": ", out);
        if (status == CHM_OK) status = chm_table_json(&c->numbers, 2, out);
        fputs(",\n  \"findings\": ", out);
        if (status == CHM_OK) status = chm_table_json(&c->findings, 2, out);
        fputs(",\n  \"layers\": ", out);
        if (status == CHM_OK) status = chm_table_json(&c->layers, 2, out);
        fputs(",\n  \"unbuilt\": [", out);
        for (int i = 0; unbuilt && unbuilt[i]; i++) {
            fputs(i ? ",\n    " : "\n    ", out);
            chm_json_string(out, unbuilt[i]);
        }
        fputs(unbuilt && unbuilt[0] ? "\n  ]" : "]", out);
        if (resolved) {
            fputs(",\n  \"resolved\": ", out);
            if (status == CHM_OK) status = chm_table_json(&c->values, 2, out);
        }
        fputs("\n}\n", out);
        return status == CHM_OK ? chm_report_end(out) : status;
    }
    if (format == CHM_OUTPUT_MD) fputs("# ", out);
    if (usable)
        fprintf(out, "%s: valid; it can be trained and run", path);
    else
        fprintf(out, "%s: valid, but it cannot be trained or run yet: %s", path, c->obstacle.text);
    fprintf(out, "\n%s%lld layers, width %lld, %lld heads of %lld, vocabulary %lld (%s)\n",
            format == CHM_OUTPUT_MD ? "\n" : "", (long long)config->layers, (long long)config->width,
            (long long)config->heads, (long long)config->head_dim, (long long)config->vocab, config->tokenizer);
    write_count(out, c->total.parameters);
    fputs(complete ? " parameters, " : " parameters in the parts that are built, ", out);
    write_count(out, (int64_t)c->total.bytes);
    fputs(" bytes of weights in a file, ", out);
    write_count(out, (int64_t)c->state_bytes);
    fputs(" bytes of state a stream\n", out);
    heading(out, format, "Parameters and bytes");
    status = chm_table_print(&c->parts, format, out);
    heading(out, format, "Layers");
    if (status == CHM_OK) status = chm_table_print(&c->layers, format, out);
    if (c->numbers.count) {
        heading(out, format,
                c->figures.planned ? "Declared and computed; what is not built is counted as it is described"
                                   : "Declared and computed");
        if (status == CHM_OK) status = chm_table_print(&c->numbers, format, out);
    }
    if (c->findings.count) {
        heading(out, format, "Values that do not go together, or are left open");
        if (status == CHM_OK) status = chm_table_print(&c->findings, format, out);
    }
    if (unbuilt && unbuilt[0]) {
        heading(out, format, "Checked, but not built or not used: these change nothing");
        for (int i = 0; unbuilt[i]; i++) fprintf(out, format == CHM_OUTPUT_MD ? "- %s\n" : "  %s\n", unbuilt[i]);
    }
    if (resolved) {
        heading(out, format, "Values");
        if (status == CHM_OK) status = chm_table_print(&c->values, format, out);
    }
    return status == CHM_OK ? chm_report_end(out) : status;
}

int chm_check(chm_runtime *r, const char *path, const chm_overlay *overlay, bool resolved, chm_output format,
              FILE *out) {
    struct chm_card_options options;
    chm_card *card = NULL;
    check_report c;
    memset(&c, 0, sizeof(c));
    int status = chm_card_options_from(r, overlay, &options);
    if (status != CHM_OK) return status;
    if ((status = chm_card_load(path, &options, &card)) != CHM_OK) return status;
    if ((status = collect_layers(r, card, &c)) != CHM_OK) {
        status = chm_fail_prefix(status, "%s", path);
        goto out;
    }
    collect_parts(chm_card_model(card), &c);
    chm_declared_numbers(card, &c.figures, &c.numbers);
    chm_declared_findings(card, &c.figures, &c.findings);
    if ((status = find_obstacle(r, path, &options, &c)) != CHM_OK) goto out;
    if (resolved && (status = collect_values(card, format, &c)) != CHM_OK) goto out;
    status = write_check(card, &c, resolved, format, out);
out:
    chm_table_finish(&c.layers);
    chm_table_finish(&c.parts);
    chm_table_finish(&c.values);
    chm_table_finish(&c.numbers);
    chm_table_finish(&c.findings);
    chm_string_finish(&c.obstacle);
    chm_card_destroy(card);
    return status;
}

int chm_init_model(chm_runtime *r, const char *card_path, const chm_overlay *overlay, uint64_t seed, const char *path) {
    struct chm_card_options options;
    chm_card *card = NULL;
    chm_model *m = NULL;
    chm_tokenizer tokenizer = {0};
    int status = chm_runtime_ready(r);
    if (status == CHM_OK) status = chm_card_options_from(r, overlay, &options);
    if (status != CHM_OK) return status;
    const size_t length = strlen(path), tail = strlen(".safetensors");
    if (length >= tail && strcmp(path + length - tail, ".safetensors") == 0)
        return chm_fail(CHM_E_CONFIG,
                        "%s: a model is written as a .b158, and `chimera convert` makes plain .safetensors files of "
                        "such; give it another name",
                        path);
    bool read = chm_same_file(card_path, path);
    for (size_t i = 0; i < options.ini_count; i++) read = read || chm_same_file(options.ini[i], path);
    if (read)
        return chm_fail(CHM_E_CONFIG, "%s: the model would replace the card it is made of; give it another name", path);
    if ((status = chm_card_load(card_path, &options, &card)) != CHM_OK) return status;
    if ((status = chm_model_create(card, &r->registry, &m)) != CHM_OK) return chm_fail_prefix(status, "%s", card_path);
    if ((status = chm_tokenizer_open(&tokenizer, &r->registry, m->card)) != CHM_OK) {
        chm_fail_prefix(status, "%s", card_path);
        goto out;
    }
    m->made_with = &tokenizer;
    if (tokenizer.name != NULL && chm_same_file(tokenizer.name, path)) {
        status = chm_fail(CHM_E_CONFIG, "%s: the model would replace its tokenizer; give it another name", path);
        goto out;
    }
    if ((status = chm_model_init(m, seed, &r->kernels.kernels, r->pool)) != CHM_OK) goto out;
    status = chm_model_save(m, path);
out:
    chm_tokenizer_close(&tokenizer);
    chm_model_destroy(m);
    return status;
}

int chm_weights_name(chm_runtime *r, const char *card_path, const chm_overlay *overlay, char **out) {
    struct chm_card_options options;
    chm_card *card = NULL;
    *out = NULL;
    int status = chm_card_options_from(r, overlay, &options);
    if (status == CHM_OK) status = chm_card_load(card_path, &options, &card);
    if (status != CHM_OK) return status;
    const char *name = chm_card_model(card)->weights_file;
    if (name == NULL)
        status = chm_fail(CHM_E_CONFIG, "%s: has no name for the model (files.weights); give one with -o MODEL.b158",
                          card_path);
    else if ((*out = chm_strdup(name)) == NULL)
        status = CHM_E_MEMORY;
    chm_card_destroy(card);
    return status;
}
