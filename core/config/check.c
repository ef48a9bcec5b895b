/* check.c: what several values say together: the layer table, the structs the runtime reads, contradictions. */
#include "config/card_internal.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading checked values ---- */

static chm_value *good(const chm_card *card, const char *path) {
    chm_value *v = chm_card_find(card, path);
    return v && !v->invalid && v->type != CHM_VALUE_NULL ? v : NULL;
}

static bool whole(const chm_card *card, const char *path, int64_t *out) {
    const chm_value *v = good(card, path);
    if (!v || v->type != CHM_VALUE_INT) return false;
    *out = v->integer;
    return true;
}

static bool number_of(const chm_value *v, double *out) {
    if (!v || (v->type != CHM_VALUE_INT && v->type != CHM_VALUE_REAL)) return false;
    *out = v->type == CHM_VALUE_INT ? (double)v->integer : v->real;
    return true;
}

static bool number(const chm_card *card, const char *path, double *out) { return number_of(good(card, path), out); }

static const char *word(const chm_card *card, const char *path) {
    const chm_value *v = good(card, path);
    return v && v->type == CHM_VALUE_STRING ? v->text : NULL;
}

static bool says(const chm_card *card, const char *path, const char *value) {
    const char *text = word(card, path);
    return text && strcmp(text, value) == 0;
}

static bool is_on(const chm_card *card, const char *path) {
    const chm_value *v = good(card, path);
    return v && v->type == CHM_VALUE_BOOL && v->boolean;
}

static chm_value *list_of(const chm_card *card, const char *path) {
    chm_value *v = good(card, path);
    return v && v->type == CHM_VALUE_ARRAY ? v : NULL;
}

static int64_t item(const chm_value *list, int64_t i) {
    const chm_value *v = list->first;
    for (; v && i > 0; i--) v = v->next;
    return v && v->type == CHM_VALUE_INT ? v->integer : -1;
}

static double sum_of(const chm_value *list) {
    double sum = 0, x;
    for (const chm_value *v = list->first; v; v = v->next)
        if (number_of(v, &x)) sum += x;
    return sum;
}

/* Where a contradicted value stands, to name it in the other's sentence: " (card.json:12)". */
static const char *place(const chm_card *card, const char *path, char *text, size_t n) {
    const chm_value *v = chm_card_find(card, path);
    text[0] = 0;
    if (v && v->line > 0)
        snprintf(text, n, " (%s:%d)", v->origin, v->line);
    else if (v && v->origin)
        snprintf(text, n, " (%s)", v->origin);
    return text;
}

/* ---- layers ---- */

/* The planned layer a name stands for, or NULL. */
static const char *planned_layer(const char *name) {
    size_t n;
    const struct chm_planned_layer *planned = chm_planned_layers(&n);
    for (size_t i = 0; i < n; i++)
        if (strcmp(planned[i].name, name) == 0 || chm_has_word(planned[i].aliases, ' ', name, false))
            return planned[i].name;
    return NULL;
}

/* Plugin name of a layer, by name or alias; loaded plugins first. NULL: no such layer. */
static const char *layer_name(const chm_card *card, const char *name) {
    const struct chm_plugin *p = chm_find_plugin(card->registry, CHM_KIND_LAYER, name, false);
    return p ? p->name : planned_layer(name);
}

/* Words for "did you mean": the card's aliases (when wanted), loaded layers, planned ones. */
static const char *nearest_layer(chm_card *card, const char *name, const chm_value *aliases) {
    const char *list[512];
    char *words[160];
    size_t n = 0, word_lists = 0, planned_count;
    if (aliases)
        for (const chm_value *v = aliases->first; v && n < 128; v = v->next)
            if (v->key && strcmp(v->key, "§") != 0) list[n++] = v->key;
    const struct chm_plugin *p;
    for (size_t i = 0; (p = chm_registry_at(card->registry, CHM_KIND_LAYER, i)) != NULL && i < 100; i++) {
        list[n++] = p->name;
        if (p->aliases) words[word_lists++] = chm_arena_string(&card->arena, p->aliases, strlen(p->aliases));
    }
    const struct chm_planned_layer *planned = chm_planned_layers(&planned_count);
    for (size_t i = 0; i < planned_count; i++) {
        list[n++] = planned[i].name;
        words[word_lists++] = chm_arena_string(&card->arena, planned[i].aliases, strlen(planned[i].aliases));
    }
    for (size_t i = 0; i < word_lists; i++) {
        if (!words[i]) card->starved = true;
        for (char *c = words[i]; c && *c && n < CHM_ARRAY_COUNT(list) - 1;) {
            list[n++] = c;
            c = strchr(c, ' ');
            if (c) *c++ = 0;
        }
    }
    list[n] = NULL;
    return chm_nearest(name, list);
}

struct pattern {
    char *name[CHM_MAX_LAYERS];
    int64_t count;
};

static void split_pattern(chm_card *card, const chm_value *v, struct pattern *p) {
    p->count = 0;
    char *c = chm_arena_string(&card->arena, v->text, strlen(v->text));
    if (!c) {
        card->starved = true;
        return;
    }
    while (*c) {
        c += strspn(c, " \t\r\n");
        if (!*c) break;
        if (p->count == CHM_MAX_LAYERS) {
            chm_card_problem(card, v, "more than %d names", CHM_MAX_LAYERS);
            p->count = 0;
            return;
        }
        p->name[p->count++] = c;
        c += strcspn(c, " \t\r\n");
        if (*c) *c++ = 0;
    }
    if (p->count == 0) chm_card_problem(card, v, "names no layer");
}

/* "GD, XM, TM" of a pattern, each name once */
static int64_t distinct(const struct pattern *p, const char **names) {
    int64_t n = 0;
    for (int64_t i = 0; i < p->count; i++) {
        int64_t j = 0;
        while (j < n && strcmp(names[j], p->name[i]) != 0) j++;
        if (j == n) names[n++] = p->name[i];
    }
    return n;
}

static void check_aliases(chm_card *card, const chm_value *aliases) {
    for (const chm_value *v = aliases->first; v; v = v->next) {
        if (v->type != CHM_VALUE_STRING || strcmp(v->key, "§") == 0 || layer_name(card, v->text)) continue;
        const char *nearest = nearest_layer(card, v->text, NULL);
        if (nearest)
            chm_card_problem(card, v, "no layer plugin '%s' (did you mean '%s'?)", v->text, nearest);
        else
            chm_card_problem(card, v, "no layer plugin '%s'; `chimera plugins list` shows those there are", v->text);
    }
}

static void check_counts(chm_card *card, const chm_value *counts, const struct pattern *p, int64_t layers) {
    const char *names[CHM_MAX_LAYERS + 1];
    int64_t n = distinct(p, names);
    names[n] = NULL;
    for (const chm_value *v = counts->first; v; v = v->next) {
        if (v->type != CHM_VALUE_INT || v->invalid) continue;
        int64_t there = 0;
        for (int64_t i = 0; i < layers; i++) there += strcmp(p->name[i % p->count], v->key) == 0;
        const char *nearest = there ? NULL : chm_nearest(v->key, names);
        if (there == v->integer) continue;
        if (nearest)
            chm_card_problem(card, v, "no layer '%s' in the pattern (did you mean '%s'?)", v->key, nearest);
        else
            chm_card_problem(card, v, "%lld, but the pattern gives %lld over %lld layers", (long long)v->integer,
                             (long long)there, (long long)layers);
    }
    for (int64_t i = 0; i < n; i++)
        if (!chm_value_member(counts, names[i])) {
            int64_t there = 0;
            for (int64_t l = 0; l < layers; l++) there += strcmp(p->name[l % p->count], names[i]) == 0;
            if (there > 0)
                chm_card_problem(card, counts, "does not count '%s', of which the pattern gives %lld", names[i],
                                 (long long)there);
        }
}

static void resolve_layers(chm_card *card) {
    chm_model_config *m = &card->model;
    chm_value *pattern = good(card, "backbone.layer_pattern");
    chm_value *aliases = good(card, "backbone.layer_aliases");
    chm_value *repeat = good(card, "backbone.layer_pattern_repeat");
    chm_value *counts = good(card, "backbone.layer_counts");
    int64_t layers = 0;
    bool counted = whole(card, "num_hidden_layers", &layers);
    if (aliases && aliases->type == CHM_VALUE_OBJECT) check_aliases(card, aliases);
    if (!pattern) return;

    struct pattern p;
    split_pattern(card, pattern, &p);
    if (p.count == 0) return;
    const char *names[CHM_MAX_LAYERS];
    int64_t n = distinct(&p, names);
    bool known = true;
    for (int64_t i = 0; i < n; i++) {
        const chm_value *alias = aliases ? chm_value_member(aliases, names[i]) : NULL;
        if (alias || layer_name(card, names[i])) continue;
        known = false;
        const char *nearest = nearest_layer(card, names[i], aliases);
        const struct chm_plugin *other = chm_registry_other_kind(card->registry, CHM_KIND_LAYER, names[i]);
        if (other)
            chm_card_problem(card, pattern, "no layer '%s': '%s' is %s", names[i], names[i],
                             chm_kind_one((enum chm_kind)other->kind));
        else if (nearest)
            chm_card_problem(card, pattern, "no layer '%s' (did you mean '%s'?)", names[i], nearest);
        else
            chm_card_problem(card, pattern, "no layer '%s'; `chimera plugins list` shows those there are", names[i]);
    }
    if (!counted) return;
    char where[160];
    double times;
    if (repeat && number_of(repeat, &times)) {
        double gives = times * (double)p.count;
        if (fabs(gives - (double)layers) > 1e-6)
            chm_card_problem(card, repeat, "%g x %lld names give %g layers, but num_hidden_layers is %lld%s", times,
                             (long long)p.count, gives, (long long)layers,
                             place(card, "num_hidden_layers", where, sizeof where));
    } else if (layers < p.count) {
        chm_card_problem(card, pattern, "%lld names, but num_hidden_layers is %lld%s", (long long)p.count,
                         (long long)layers, place(card, "num_hidden_layers", where, sizeof where));
    }
    if (known && counts && counts->type == CHM_VALUE_OBJECT) check_counts(card, counts, &p, layers);

    for (int64_t i = 0; known && i < layers && i < CHM_MAX_LAYERS; i++) {
        const char *name = p.name[i % p.count];
        const chm_value *alias = aliases ? chm_value_member(aliases, name) : NULL;
        if (alias && alias->type == CHM_VALUE_STRING) name = alias->text;
        m->mixer[i] = layer_name(card, name);
        m->ffn[i] = "mlp";
    }
}

/* ---- feed-forward and loop ---- */

static void resolve_moe(chm_card *card) {
    int64_t layers = 0, experts, chosen;
    if (card->one_layer || !is_on(card, "backbone.moe.enabled") || !whole(card, "num_hidden_layers", &layers)) return;
    chm_value *list = list_of(card, "backbone.moe.layers");
    if (!list) {
        if (!chm_card_find(card, "backbone.moe.layers"))
            chm_card_problem(card, chm_card_find(card, "backbone.moe"),
                             "enabled, but `layers` does not say which layers");
        return;
    }
    int64_t before = -1;
    for (const chm_value *v = list->first; v; v = v->next) {
        if (v->integer >= layers)
            chm_card_problem(card, list, "layer %lld is not among layers 0..%lld", (long long)v->integer,
                             (long long)layers - 1);
        else if (v->integer <= before)
            chm_card_problem(card, list, "layer %lld stands after %lld; give each once, in order",
                             (long long)v->integer, (long long)before);
        else
            card->model.ffn[v->integer] = "moe";
        before = v->integer;
    }
    if (whole(card, "backbone.moe.n_routed_experts", &experts) &&
        whole(card, "backbone.moe.num_experts_per_tok", &chosen) && chosen > experts)
        chm_card_problem(card, chm_card_find(card, "backbone.moe.num_experts_per_tok"), "%lld of only %lld experts",
                         (long long)chosen, (long long)experts);
}

static void resolve_loop(chm_card *card) {
    chm_model_config *m = &card->model;
    int64_t layers = 0, passes = 0;
    bool counted = whole(card, "num_hidden_layers", &layers);
    m->effective_depth = layers;
    chm_value *range = list_of(card, "looping.loop_range");
    if (range && range->count == 2 && item(range, 0) > item(range, 1)) {
        chm_card_problem(card, range, "from %lld to %lld passes is no range", (long long)item(range, 0),
                         (long long)item(range, 1));
        range = NULL;
    }
    if (whole(card, "looping.loop_default", &passes) && range && (passes < item(range, 0) || passes > item(range, 1)))
        chm_card_problem(card, chm_card_find(card, "looping.loop_default"),
                         "%lld passes, outside loop_range %lld..%lld", (long long)passes, (long long)item(range, 0),
                         (long long)item(range, 1));
    if (!is_on(card, "looping.enabled") || !counted) return;

    static const char *const parts[] = {"looping.prelude", "looping.loop", "looping.coda"};
    int64_t next = 0;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(parts); i++) {
        chm_value *part = list_of(card, parts[i]);
        if (!part) {
            if (!chm_card_find(card, parts[i]))
                chm_card_problem(card, chm_card_find(card, "looping"), "enabled, but `%s` is missing", parts[i] + 8);
            return;
        }
        if (item(part, 0) != next || item(part, 1) < item(part, 0) || item(part, 1) >= layers) {
            chm_card_problem(
                card, part,
                "layers %lld..%lld; expected %lld..N: prelude, loop and coda follow one another and end at "
                "layer %lld",
                (long long)item(part, 0), (long long)item(part, 1), (long long)next, (long long)layers - 1);
            return;
        }
        next = item(part, 1) + 1;
    }
    if (next != layers) {
        chm_card_problem(card, chm_card_find(card, parts[2]), "ends at layer %lld, but the last layer is %lld",
                         (long long)next - 1, (long long)layers - 1);
        return;
    }
    const chm_value *loop = list_of(card, "looping.loop");
    for (int64_t i = item(loop, 0); i <= item(loop, 1); i++) m->in_loop[i] = true;
    m->loop = (struct chm_loop_config){.enabled = true,
                                       .first = item(loop, 0),
                                       .last = item(loop, 1),
                                       .least = range ? item(range, 0) : 1,
                                       .most = range ? item(range, 1) : passes,
                                       .passes = passes};
    number(card, "looping.adaptive_exit_threshold", &m->loop.exit_threshold);
    number(card, "looping.depth_mean", &m->loop.mean);
    number(card, "looping.spectral_radius_bound", &m->loop.bound);
    m->loop.stochastic = says(card, "looping.depth_selection", "stochastic_per_sequence");
    m->loop.truncate = says(card, "looping.backward_truncation", "half");
    m->loop.per_pass = says(card, "looping.state", "per_pass");
    m->loop.euler = says(card, "looping.gain", "euler");
    m->effective_depth = layers + (item(loop, 1) - item(loop, 0) + 1) * (passes - 1);
}

/* ---- the structs ---- */

static void resolve_tokenizer(chm_card *card) {
    chm_model_config *m = &card->model;
    chm_value *section = chm_card_find(card, "tokenizer"), *type = chm_card_find(card, "tokenizer.type");
    bool sized = whole(card, "vocab_size", &m->vocab);
    if (!type && section && section->type == CHM_VALUE_OBJECT && sized) {
        const char *name = m->vocab <= 258 ? "bytes" : "o200k";
        type = chm_card_add(card, section, "type", CHM_VALUE_STRING);
        if (!type) return;
        type->text = name;
    }
    m->tokenizer = word(card, "tokenizer.type");
    m->tokenizer_file = word(card, "files.tokenizer");
    if (!m->tokenizer) return;
    const struct chm_plugin *p = chm_find_plugin(card->registry, CHM_KIND_TOKENIZER, m->tokenizer, false);
    const char *const *planned = chm_planned_tokenizers();
    bool known = p != NULL;
    for (size_t i = 0; planned[i]; i++) known = known || strcmp(planned[i], m->tokenizer) == 0;
    if (p) m->tokenizer = p->name;
    if (!known) {
        const char *nearest = chm_nearest(m->tokenizer, planned);
        if (nearest)
            chm_card_problem(card, type, "no tokenizer '%s' (did you mean '%s'?)", m->tokenizer, nearest);
        else
            chm_card_problem(card, type, "no tokenizer '%s'; `chimera plugins list` shows those there are",
                             m->tokenizer);
    }
    bool bytes = strcmp(m->tokenizer, "bytes") == 0;
    chm_value *ids = chm_card_find(card, "token_ids");
    if (!ids && bytes) {
        ids = chm_card_add(card, card->root, "token_ids", CHM_VALUE_ARRAY);
        for (int64_t id = 256; ids && id < 258; id++) {
            chm_value *v = chm_value_new(CHM_VALUE_INT, &card->arena);
            if (!v) {
                card->starved = true;
                return;
            }
            v->integer = id;
            chm_value_append(ids, v);
        }
    }
    char where[160];
    if (!ids) {
        if (known)
            chm_card_problem_at(card, card->name, 1, "token_ids",
                                "missing; end-of-text and padding token of tokenizer '%s'", m->tokenizer);
    } else if (!ids->invalid && ids->type == CHM_VALUE_ARRAY && ids->count == 2) {
        m->eos = (int32_t)item(ids, 0);
        m->pad = (int32_t)item(ids, 1);
        int32_t most = CHM_MAX(m->eos, m->pad);
        if (sized && most >= m->vocab)
            chm_card_problem(card, ids, "token %d, but vocab_size is %lld%s", most, (long long)m->vocab,
                             place(card, "vocab_size", where, sizeof where));
        else if (bytes && (m->eos != 256 || m->pad != 257))
            chm_card_problem(card, ids, "[%d, %d]; the bytes tokenizer has [256, 257]", m->eos, m->pad);
    }
}

static int32_t choice_of(const chm_value *v) {
    const char *c = v && v->option ? v->option->choices : NULL;
    for (int32_t i = 0; c; i++) {
        const char *end = strchr(c, '|');
        size_t n = end ? (size_t)(end - c) : strlen(c);
        if (v->type == CHM_VALUE_STRING && strlen(v->text) == n && strncmp(c, v->text, n) == 0) return i;
        c = end ? end + 1 : NULL;
    }
    return 0;
}

static void resolve_model(chm_card *card) {
    chm_model_config *m = &card->model;
    whole(card, "hidden_size", &m->width);
    whole(card, "intermediate_size", &m->ffn_width);
    whole(card, "num_hidden_layers", &m->layers);
    whole(card, "num_heads", &m->heads);
    whole(card, "head_dim", &m->head_dim);
    number(card, "rms_norm_eps", &m->norm_eps);
    number(card, "initializer_range", &m->init_range);
    m->norm_before_linear = is_on(card, "rms_norm_before_every_linear");
    m->tie_embeddings = is_on(card, "tie_word_embeddings");
    m->weights_file = word(card, "files.weights");
    m->experts_file = word(card, "files.moe");
    m->quant = (enum chm_quant_method)choice_of(good(card, "quantization.method"));
    m->embedding = (enum chm_embedding)choice_of(good(card, "quantization.embedding"));
    m->sparse = is_on(card, "quantization.sherry_mode.enabled");
    if (is_on(card, "quantization.hgf_correction.enabled")) {
        whole(card, "quantization.hgf_correction.rank", &m->hgf_rank);
        number(card, "quantization.hgf_correction.gate", &m->hgf_gate);
    }
    const chm_value *corrected = list_of(card, "quantization.hgf_correction.layers");
    for (int64_t i = 0; i < CHM_MAX_LAYERS; i++) m->hgf[i] = !corrected || !corrected->first;
    for (const chm_value *v = corrected ? corrected->first : NULL; v; v = v->next)
        if (v->type == CHM_VALUE_INT && v->integer >= 0 && v->integer < m->layers)
            m->hgf[v->integer] = true;
        else if (v->type == CHM_VALUE_INT)
            chm_card_problem(card, v, "there is no layer %lld: layers are 0..%lld", (long long)v->integer,
                             (long long)m->layers - 1);
    const chm_value *encoding = good(card, "quantization.encoding"); /* auto, then as in enum chm_encoding */
    const int32_t choice = choice_of(encoding);
    m->encoding = choice > 0 ? choice - 1 : m->sparse ? CHM_ENCODING_SHERRY : CHM_ENCODING_T5;
    if (m->encoding == CHM_ENCODING_SHERRY && !m->sparse)
        chm_card_problem(card, encoding,
                         "sherry has one zero in every four weights, which only training with "
                         "quantization.sherry_mode.enabled makes: turn that on, or convert a trained model "
                         "(`chimera convert`)");
    if (m->sparse && m->quant != CHM_QUANT_BITNET)
        chm_card_problem(card, chm_card_find(card, "quantization.sherry_mode.enabled"),
                         "quantization.method none has no ternary weights for it: turn it off");
    whole(card, "quantization.group_size", &m->weight_group);
    whole(card, "quantization.activation_block_size", &m->activation_block);
}

/* The phase `train` runs: the first of kind pretrain. */
static chm_value *pretrain_phase(const chm_card *card) {
    chm_value *phases = list_of(card, "training.phases");
    for (chm_value *v = phases ? phases->first : NULL; v; v = v->next)
        if (v->type == CHM_VALUE_OBJECT && v->row && strcmp(v->row->path, "training.phases.pretrain") == 0) return v;
    return NULL;
}

static chm_value *phase_value(const chm_value *phase, const char *key) {
    chm_value *v = phase ? chm_value_member(phase, key) : NULL;
    return v && !v->invalid ? v : NULL;
}

static int64_t phase_whole(const chm_value *phase, const char *key) {
    const chm_value *v = phase_value(phase, key);
    return v && v->type == CHM_VALUE_INT ? v->integer : 0;
}

static double phase_number(const chm_value *phase, const char *key) {
    double x = 0;
    number_of(phase_value(phase, key), &x);
    return x;
}

static void resolve_mezo(chm_card *card) {
    struct chm_mezo_config *z = &card->train.mezo;
    chm_value *training = chm_card_find(card, "training");
    if (!training || training->type != CHM_VALUE_OBJECT) return;
    chm_value *section = chm_value_member(training, "mezo");
    if (!section && !(section = chm_card_add(card, training, "mezo", CHM_VALUE_OBJECT))) return;
    if (section->type != CHM_VALUE_OBJECT) return;
    chm_card_fill(card, section);
    number(card, "training.mezo.epsilon", &z->epsilon);
    number(card, "training.mezo.ternary_epsilon", &z->ternary_epsilon);
    number(card, "training.mezo.revive", &z->revive);
    whole(card, "training.mezo.samples", &z->samples);
    z->signs = says(card, "training.mezo.directions", "signs");
    z->unpacked = says(card, "training.mezo.parameters", "unpacked");
    z->skip_zeros = is_on(card, "training.mezo.skip_zeros");
    if (z->skip_zeros && z->unpacked)
        chm_card_problem(card, chm_card_find(card, "training.mezo.skip_zeros"),
                         "training.mezo.parameters is unpacked, so ternary weights are left alone already");
    if (card->train.deep_zero_mask)
        chm_card_problem(card, chm_card_find(card, "training.deep_zero_mask"),
                         "masks gradients, and MeZO has none: see training.mezo.skip_zeros");
}

static void resolve_optimiser(chm_card *card, chm_value *name) {
    static const char *const own[] = {"AdamW", "MeZO"};
    const char *names[64];
    size_t n = 0;
    chm_train_config *t = &card->train;
    t->deep_zero_mask = is_on(card, "training.deep_zero_mask");
    t->gradient_checkpointing = is_on(card, "training.gradient_checkpointing");
    if (!name || name->type != CHM_VALUE_STRING || strcmp(name->text, own[0]) == 0) return;
    if (strcmp(name->text, own[1]) == 0) {
        resolve_mezo(card);
        return;
    }
    t->optimiser = chm_find_plugin(card->registry, CHM_KIND_OPTIMISER, name->text, false);
    if (t->optimiser) {
        const char *path = t->optimiser->section;
        chm_value *section =
            path && t->optimiser->option_count ? chm_card_section(card, path, CHM_LOCATE_CREATE) : NULL;
        if (section && section->plugin == t->optimiser && section->type == CHM_VALUE_OBJECT)
            chm_card_fill(card, section);
        return;
    }
    if (card->trained) return;
    /* by the names that cards spell */
    const struct chm_plugin *p;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(own); i++) names[n++] = own[i];
    for (size_t i = 0; (p = chm_registry_at(card->registry, CHM_KIND_OPTIMISER, i)) != NULL && n < 62; i++)
        names[n++] = p->aliases && !strchr(p->aliases, ' ') ? p->aliases : p->name;
    names[n] = NULL;
    const char *nearest = chm_nearest(name->text, names);
    if (nearest)
        chm_card_problem(card, name, "no optimiser '%s' (did you mean '%s'?)", name->text, nearest);
    else
        chm_card_problem(card, name, "no optimiser '%s': there are AdamW, MeZO and those of `chimera plugins list`",
                         name->text);
}

static void resolve_train(chm_card *card) {
    chm_train_config *t = &card->train;
    const chm_value *phase = pretrain_phase(card);
    const chm_value *name = phase_value(phase, "name");
    t->name = name && name->type == CHM_VALUE_STRING ? name->text : "pretrain";
    t->tokens = phase_whole(phase, "tokens");
    t->seq_len = phase_whole(phase, "seq_len");
    t->batch_tokens = phase_whole(phase, "batch_tokens");
    t->micro_tokens = phase_whole(phase, "micro_tokens");
    t->carry = phase_whole(phase, "carry_segments");
    t->lr = phase_number(phase, "lr");
    t->min_lr_ratio = phase_number(phase, "min_lr_ratio");
    t->weight_decay = phase_number(phase, "weight_decay");
    t->grad_clip = phase_number(phase, "grad_clip");
    t->beta1 = phase_number(phase, "beta1");
    t->beta2 = phase_number(phase, "beta2");
    t->adam_eps = phase_number(phase, "eps");
    resolve_optimiser(card, phase_value(phase, "optimizer"));
    t->schedule = (enum chm_schedule)choice_of(phase_value(phase, "schedule"));
    t->warmup_steps = phase_whole(phase, "warmup_steps");
    t->decay_fraction = phase_number(phase, "decay_fraction");
    t->stage_split = phase_number(phase, "stage_split");
    t->stage2_lr = phase_number(phase, "stage2_lr");
    t->stage2_weight_decay = phase_number(phase, "stage2_weight_decay");
    t->seed = (uint64_t)phase_whole(phase, "seed");
    whole(card, "diagnostics.report_interval_tokens", &t->report_interval_tokens);
    t->line_documents = choice_of(good(card, "training.documents")) == 1;
    t->answers_only = choice_of(good(card, "training.loss_on")) == 1;
    t->text_field = word(card, "training.text_field");
    number(card, "training.holdout", &t->holdout);
    if (t->answers_only && card->model.tokenizer && strcmp(card->model.tokenizer, "bytes") != 0)
        chm_card_problem(card, chm_card_find(card, "training.loss_on"),
                         "\"answers\" are bytes behind a '=', and the tokens of tokenizer '%s' hold several: set "
                         "tokenizer.type to bytes, or this to \"all\"",
                         card->model.tokenizer);
}

void chm_card_resolve(chm_card *card) {
    resolve_model(card);
    resolve_tokenizer(card);
    resolve_layers(card);
    resolve_moe(card);
    resolve_loop(card);
    resolve_train(card);
}

/* ---- contradictions ---- */

/* Two values that must be equal when both are given; charged to `path`. */
static void must_equal(chm_card *card, const char *path, int64_t is, const char *other) {
    int64_t want;
    char where[160];
    if (whole(card, other, &want) && is != want)
        chm_card_problem(card, chm_card_find(card, path), "%lld, but %s is %lld%s", (long long)is, other,
                         (long long)want, place(card, other, where, sizeof where));
}

static void equal(chm_card *card, const char *path, const char *other) {
    int64_t is;
    if (whole(card, path, &is)) must_equal(card, path, is, other);
}

/* first item of a tuple */
static void first_equal(chm_card *card, const char *path, const char *other) {
    const chm_value *v = list_of(card, path);
    if (v && v->count > 0) must_equal(card, path, item(v, 0), other);
}

static void at_most(chm_card *card, const char *path, const char *other) {
    int64_t is, most;
    char where[160];
    if (whole(card, path, &is) && whole(card, other, &most) && is > most)
        chm_card_problem(card, chm_card_find(card, path), "%lld, more than %s, which is %lld%s", (long long)is, other,
                         (long long)most, place(card, other, where, sizeof where));
}

static void same_length(chm_card *card, const char *path, const char *other) {
    const chm_value *a = list_of(card, path), *b = list_of(card, other);
    char where[160];
    if (a && b && a->count != b->count)
        chm_card_problem(card, a, "%lld items, but %s has %lld%s", (long long)a->count, other, (long long)b->count,
                         place(card, other, where, sizeof where));
    else if (!a != !b && !chm_card_find(card, a ? other : path))
        chm_card_problem(card, a ? a : b, "given without %s", a ? other : path);
}

static void is_sum_of(chm_card *card, const char *path, const char *list) {
    const chm_value *v = list_of(card, list);
    int64_t is;
    if (v && whole(card, path, &is) && (double)is != sum_of(v))
        chm_card_problem(card, chm_card_find(card, path), "%lld, but %s adds up to %.0f", (long long)is, list,
                         sum_of(v));
}

/* Storage of that many bits: uint64_xN. */
static void check_words(chm_card *card, const chm_value *storage, int64_t bits) {
    char want[40];
    if (!storage) return;
    if (bits % 64 != 0) {
        chm_card_problem(card, storage, "%lld bits are not a whole number of words of 64", (long long)bits);
        return;
    }
    snprintf(want, sizeof want, "uint64_x%lld", (long long)(bits / 64));
    if (storage->type == CHM_VALUE_STRING && strcmp(storage->text, want) != 0)
        chm_card_problem(card, storage, "'%.40s', but %lld bits are %s", storage->text, (long long)bits, want);
}

static void check_shape(chm_card *card) {
    int64_t width, heads, dim, group, zero;
    char where[160];
    if (!card->one_layer && whole(card, "hidden_size", &width) && whole(card, "num_heads", &heads) &&
        whole(card, "head_dim", &dim) && heads * dim != width)
        chm_card_problem(card, chm_card_find(card, "hidden_size"),
                         "%lld, but num_heads%s x head_dim is %lld x %lld = %lld", (long long)width,
                         place(card, "num_heads", where, sizeof where), (long long)heads, (long long)dim,
                         (long long)(heads * dim));
    if (whole(card, "quantization.group_size", &group) && group % 64 != 0)
        chm_card_problem(card, chm_card_find(card, "quantization.group_size"), "%lld is not a multiple of 64",
                         (long long)group);
    const chm_value *values = list_of(card, "quantization.weight_values");
    if (values && (item(values, 0) != -1 || item(values, 1) != 0 || item(values, 2) != 1))
        chm_card_problem(card, values, "a ternary weight is -1, 0 or 1: expected [-1, 0, 1]");
    if (whole(card, "braid_state.kv_growth_per_token", &zero) && zero != 0)
        chm_card_problem(card, chm_card_find(card, "braid_state.kv_growth_per_token"),
                         "%lld, but recurrent state does not grow: expected 0", (long long)zero);
    int64_t state;
    if (whole(card, "gated_deltanet.state_size", &state) && state != 0) /* 0: head_dim */
        must_equal(card, "gated_deltanet.state_size", state, "head_dim");
    const chm_value *memory = list_of(card, "xlstm.memory_size_per_head");
    for (int64_t i = 0; memory && i < memory->count; i++)
        if (whole(card, "head_dim", &dim) && item(memory, i) != dim) {
            chm_card_problem(card, memory, "%lld, but head_dim is %lld%s", (long long)item(memory, i), (long long)dim,
                             place(card, "head_dim", where, sizeof where));
            break;
        }
    first_equal(card, "braid_state.continuous_hidden", "hidden_size");
    first_equal(card, "braid_state.fast_hidden", "hidden_size");
    first_equal(card, "braid_state.semantic_sketch", "semantic_memory.vector_bits");
    int64_t bits;
    const chm_value *sketch = list_of(card, "braid_state.semantic_sketch");
    if (whole(card, "semantic_memory.vector_bits", &bits))
        check_words(card, good(card, "semantic_memory.vector_storage"), bits);
    if (sketch && sketch->first) check_words(card, sketch->first->next, item(sketch, 0));
    equal(card, "multimodal.vision.out", "hidden_size");
    equal(card, "multimodal.audio.out", "hidden_size");
}

static void check_lists(chm_card *card) {
    int64_t total, growth, most;
    same_length(card, "memory_budget_mb._vals", "memory_budget_mb._keys");
    same_length(card, "span_inference.candidate_sources", "span_inference.candidate_source_keys");
    same_length(card, "span_inference.scoring_weights_fast", "span_inference.scoring_keys");
    is_sum_of(card, "memory_budget_mb.total", "memory_budget_mb._vals");
    is_sum_of(card, "span_inference.candidates_fast", "span_inference.candidate_sources");
    if (whole(card, "memory_budget_mb.total", &total) && whole(card, "memory_budget_mb.growth_ceiling", &growth) &&
        whole(card, "memory_budget_mb.max_with_growth", &most) && most != total + growth)
        chm_card_problem(card, chm_card_find(card, "memory_budget_mb.max_with_growth"),
                         "%lld, but total + growth_ceiling is %lld", (long long)most, (long long)(total + growth));
    at_most(card, "span_inference.render_queue_target", "span_inference.render_queue_max");
    double mean;
    int64_t longest;
    if (number(card, "span_inference.bank_avg_tokens", &mean) &&
        whole(card, "span_inference.bank_max_tokens", &longest) && mean > (double)longest)
        chm_card_problem(card, chm_card_find(card, "span_inference.bank_avg_tokens"),
                         "%g, more than span_inference.bank_max_tokens, which is %lld", mean, (long long)longest);
    at_most(card, "debt_ledger.max_outstanding", "braid_state.debt_ledger_slots");
    equal(card, "deployment.per_stream_mb", "braid_state.per_stream_mb");

    int64_t layers;
    const chm_value *targets = list_of(card, "self_evolution.tier1.ttt.target_layers");
    if (targets && whole(card, "num_hidden_layers", &layers)) {
        for (const chm_value *v = targets->first, *before = NULL; v; before = v, v = v->next) {
            if (v->integer >= layers)
                chm_card_problem(card, targets, "layer %lld is not among layers 0..%lld", (long long)v->integer,
                                 (long long)layers - 1);
            else if (before && v->integer <= before->integer)
                chm_card_problem(card, targets, "layer %lld stands after %lld; give each once, in order",
                                 (long long)v->integer, (long long)before->integer);
        }
    }
    const chm_value *tiers = list_of(card, "context_tiers");
    for (const chm_value *v = tiers ? tiers->first : NULL; v; v = v->next)
        for (const chm_value *w = tiers->first; w != v; w = w->next) {
            const chm_value *a = v->type == CHM_VALUE_OBJECT ? chm_value_member(v, "name") : NULL;
            const chm_value *b = w->type == CHM_VALUE_OBJECT ? chm_value_member(w, "name") : NULL;
            if (a && b && a->type == CHM_VALUE_STRING && b->type == CHM_VALUE_STRING && !strcmp(a->text, b->text))
                chm_card_problem(card, a, "two tiers are called '%s'", a->text);
        }
    const char *experts = word(card, "files.moe"), *weights = word(card, "files.weights");
    if (experts && (!*experts || strchr(experts, '/') || !strcmp(experts, ".") || !strcmp(experts, "..")))
        chm_card_problem(card, chm_card_find(card, "files.moe"),
                         "'%s' is no name of a file: the experts lie beside the weights, so give it without '/'",
                         experts);
    else if (experts && weights && !strcmp(experts, weights))
        chm_card_problem(card, chm_card_find(card, "files.moe"), "'%s' is files.weights too; the two are two files",
                         experts);
    const char *state = word(card, "self_evolution.safety.state_file"), *file = word(card, "files.evolution");
    if (state && file && strcmp(state, file) != 0)
        chm_card_problem(card, chm_card_find(card, "self_evolution.safety.state_file"),
                         "'%s', but files.evolution is '%s'", state, file);
}

/* Settings per mode or level ask for passes the loop allows. */
static void check_loops_of(chm_card *card, const char *map) {
    const chm_value *range = list_of(card, "looping.loop_range"), *v = good(card, map);
    if (!range || range->count != 2 || !v || v->type != CHM_VALUE_OBJECT || !is_on(card, "looping.enabled")) return;
    for (const chm_value *level = v->first; level; level = level->next) {
        const chm_value *loops = level->type == CHM_VALUE_OBJECT ? chm_value_member(level, "loops") : NULL;
        if (loops && loops->type == CHM_VALUE_INT && !loops->invalid &&
            (loops->integer < item(range, 0) || loops->integer > item(range, 1)))
            chm_card_problem(card, loops, "%lld passes, outside looping.loop_range %lld..%lld",
                             (long long)loops->integer, (long long)item(range, 0), (long long)item(range, 1));
    }
}

/* The layer's switch for the exact step: an option `efla` of its plugin. NULL: it has none, or is not loaded. */
static const struct chm_option *efla_option(const chm_card *card, int64_t layer, const struct chm_plugin **plugin) {
    const char *name = card->model.mixer[layer];
    *plugin = name ? chm_find_plugin(card->registry, CHM_KIND_LAYER, name, false) : NULL;
    const struct chm_option *o = *plugin ? chm_option_find((*plugin)->options, (*plugin)->option_count, "efla") : NULL;
    return o && o->type == CHM_OPT_BOOL && o->offset != CHM_OPTION_CHECKED ? o : NULL;
}

static void add_efla(chm_card *card, const chm_value *targets, int64_t layer, const char *word) {
    const struct chm_plugin *plugin;
    if (efla_option(card, layer, &plugin))
        card->model.efla[layer] = true;
    else if (plugin)
        chm_card_problem(card, targets, "'%s' is layer %lld, and its plugin '%s' has no option efla: no exact step",
                         word, (long long)layer, plugin->name);
}

static void check_efla(chm_card *card) {
    const chm_value *targets = good(card, "efla.target_layers"), *pattern = good(card, "backbone.layer_pattern");
    if (!is_on(card, "efla.enabled") || !targets || !pattern || targets->type != CHM_VALUE_STRING) return;
    struct pattern want, have;
    split_pattern(card, targets, &want);
    split_pattern(card, pattern, &have);
    const char *names[CHM_MAX_LAYERS + 1];
    names[distinct(&have, names)] = NULL;
    const int64_t layers = card->model.layers;
    for (int64_t i = 0; i < want.count; i++) {
        bool there = false;
        if (!want.name[i][strspn(want.name[i], "0123456789")]) {
            const long long layer = strtoll(want.name[i], NULL, 10);
            if (layer < layers)
                add_efla(card, targets, layer, want.name[i]);
            else
                chm_card_problem(card, targets, "layer %s is not among layers 0..%lld", want.name[i],
                                 (long long)layers - 1);
            continue;
        }
        for (size_t j = 0; names[j]; j++) there = there || strcmp(names[j], want.name[i]) == 0;
        const char *nearest = there ? NULL : chm_nearest(want.name[i], names);
        const int problems = card->problem_count; /* one is enough for all layers of a name */
        for (int64_t j = 0; there && j < layers && card->problem_count == problems; j++)
            if (strcmp(have.name[j % have.count], want.name[i]) == 0) add_efla(card, targets, j, want.name[i]);
        if (!there && nearest)
            chm_card_problem(card, targets, "no layer '%s' in the pattern (did you mean '%s'?)", want.name[i], nearest);
        else if (!there)
            chm_card_problem(card, targets, "no layer '%s' in the pattern", want.name[i]);
    }
}

static void check_phase(chm_card *card, const chm_value *phase) {
    chm_value *length = phase_value(phase, "seq_len"), *batch = phase_value(phase, "batch_tokens");
    chm_value *warmup = phase_value(phase, "warmup_steps");
    int64_t rows = phase_whole(phase, "seq_len"), tokens = phase_whole(phase, "batch_tokens"), longest;
    int64_t budget = phase_whole(phase, "tokens"), steps = phase_whole(phase, "warmup_steps");
    if (length && batch && tokens < rows)
        chm_card_problem(card, batch, "%lld, less than one segment of seq_len %lld", (long long)tokens,
                         (long long)rows);
    if (length && whole(card, "max_position_embeddings", &longest) && rows > longest)
        chm_card_problem(card, length, "%lld, more than max_position_embeddings, which is %lld", (long long)rows,
                         (long long)longest);
    if (warmup && batch && steps > 0 && (double)steps * (double)tokens >= (double)budget && budget > 0)
        chm_card_problem(card, warmup, "%lld steps of %lld tokens are the whole budget of %lld tokens or more",
                         (long long)steps, (long long)tokens, (long long)budget);
}

static void check_stages(chm_card *card, const chm_value *phase) {
    const chm_value *stages = phase_value(phase, "stages");
    int64_t before = 0, longest;
    if (!stages || stages->type != CHM_VALUE_ARRAY) return;
    for (const chm_value *stage = stages->first; stage; stage = stage->next) {
        if (stage->invalid || stage->type != CHM_VALUE_ARRAY) continue;
        int64_t length = item(stage, 0);
        if (length <= before)
            chm_card_problem(card, stage, "segments of %lld after %lld; lengths must grow", (long long)length,
                             (long long)before);
        if (whole(card, "max_position_embeddings", &longest) && length > longest)
            chm_card_problem(card, stage, "segments of %lld, more than max_position_embeddings, which is %lld",
                             (long long)length, (long long)longest);
        before = length;
    }
}

static void check_phases(chm_card *card) {
    const chm_value *phases = list_of(card, "training.phases");
    if (!phases) return;
    if (!phases->first)
        chm_card_problem(card, phases,
                         "is empty; leave it out for one phase with default values, or list one of kind "
                         "pretrain");
    for (const chm_value *v = phases->first; v; v = v->next) {
        if (v->type != CHM_VALUE_OBJECT) continue;
        check_phase(card, v);
        check_stages(card, v);
        const chm_value *name = phase_value(v, "name");
        for (const chm_value *w = phases->first; name && name->type == CHM_VALUE_STRING && w != v; w = w->next) {
            const chm_value *other = w->type == CHM_VALUE_OBJECT ? phase_value(w, "name") : NULL;
            if (other && other->type == CHM_VALUE_STRING && strcmp(other->text, name->text) == 0) {
                chm_card_problem(card, name, "two phases are called '%s'", name->text);
                break;
            }
        }
    }
}

void chm_card_contradictions(chm_card *card) {
    check_shape(card);
    check_lists(card);
    check_loops_of(card, "modes");
    check_loops_of(card, "entropy_valve.levels");
    check_efla(card);
    check_phases(card);
}

/* ---- what is not built ---- */

#define WORD(metric, tap, logarithm) "|" #metric
const char chm_measured_metrics[] = "loop_count_mean|memory_mb|moe_expert_load_balance" CHM_TAP_METRICS(WORD);
#undef WORD

static void add_unbuilt(chm_card *card, size_t *count, const char *format, ...) CHM_PRINTF(3, 4);
static void add_unbuilt(chm_card *card, size_t *count, const char *format, ...) {
    char text[700];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t rows;
    chm_schema(&rows);
    if (*count >= rows + CHM_MAX_LAYERS) return;
    card->unbuilt[*count] = chm_arena_string(&card->arena, text, strlen(text));
    if (!card->unbuilt[*count])
        card->starved = true;
    else
        ++*count;
}

/* Whether the card or an overlay says anything of it. */
static bool is_given(const chm_value *v) {
    if (v->line > 0 || strcmp(v->origin, "default") != 0) return true;
    if (v->type == CHM_VALUE_OBJECT)
        for (const chm_value *child = v->first; child; child = child->next)
            if (is_given(child)) return true;
    return false;
}

static void add_unused(chm_card *card, const char *key) {
    chm_string_add(&card->unused, "%s%s", card->unused.length ? ", " : "", key);
    if (card->unused.failed) card->starved = true;
}

/* Single values that nothing reads yet, where that makes a difference. */
static void list_unread(chm_card *card, size_t *count) {
    static const struct {
        const char *key, *why;
    } list[] = {{"diagnostics.telemetry", "log.jsonl is the record of a run and is written all the same"},
                {"generation.stream", "text is written as it comes all the same"}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(list); i++) {
        const chm_value *v = good(card, list[i].key);
        if (!v || v->type != CHM_VALUE_BOOL || v->boolean) continue;
        add_unbuilt(card, count, "%s: false is not read yet; %s", list[i].key, list[i].why);
        add_unused(card, list[i].key);
    }
    const chm_value *metrics = list_of(card, "diagnostics.metrics");
    if (!metrics) return;
    chm_string names = {0};
    for (const chm_value *v = metrics->first; v; v = v->next)
        if (!chm_has_word(chm_measured_metrics, '|', v->text, false))
            chm_string_add(&names, "%s%s", names.length ? ", " : "", v->text);
    if (names.failed) card->starved = true;
    if (names.text) {
        add_unbuilt(card, count, "diagnostics.metrics: not measured yet: %s", names.text);
        add_unused(card, "diagnostics.metrics (in part)");
    }
    chm_string_finish(&names);
}

/* Whether somebody said so for this very run. */
static bool is_overridden(const chm_value *v) {
    if (strcmp(v->origin, "--set") == 0 || strncmp(v->origin, "CHIMERA_", 8) == 0) return true;
    for (const chm_value *child = v->type == CHM_VALUE_OBJECT ? v->first : NULL; child; child = child->next)
        if (is_overridden(child)) return true;
    return false;
}

/* Options of layers that are set and no layer of the card has. Those of the card itself or an ini file may be there for
 * another pattern. */
static void list_idle(chm_card *card, size_t *count) {
    const chm_model_config *m = &card->model;
    for (const chm_value *v = card->root->first; v; v = v->next) {
        if (!v->plugin || v->plugin->kind != CHM_KIND_LAYER || !is_overridden(v)) continue;
        bool used = card->one_layer;
        for (int64_t i = 0; i < m->layers && !used; i++)
            used = (m->mixer[i] && strcmp(m->mixer[i], v->plugin->name) == 0) ||
                   (m->ffn[i] && strcmp(m->ffn[i], v->plugin->name) == 0);
        if (used) continue;
        add_unbuilt(card, count, "%s: no layer of this card is %s; checked, not used", v->key, v->plugin->name);
    }
    const chm_value *training = chm_card_find(card, "training");
    for (const chm_value *v = training && training->type == CHM_VALUE_OBJECT ? training->first : NULL; v; v = v->next) {
        const bool plugin = v->plugin && v->plugin->kind == CHM_KIND_OPTIMISER && v->plugin != card->train.optimiser;
        const bool mezo = strcmp(v->key, "mezo") == 0 && card->train.mezo.samples == 0;
        if ((plugin || mezo) && is_overridden(v))
            add_unbuilt(card, count, "training.%s: training.phases has another optimizer; checked, not used", v->key);
    }
}

static void walk_unbuilt(chm_card *card, const chm_value *v, size_t *count) {
    if (v->row && v->row->planned && !v->plugin && is_given(v)) {
        chm_string path = {0};
        chm_value_path(v, &path);
        if (path.failed) card->starved = true;
        const chm_value *enabled = chm_value_member(v, "enabled");
        bool off = enabled && enabled->type == CHM_VALUE_BOOL && !enabled->boolean;
        const bool needed = (v->row->flags & CHM_ROW_NUMBERS) && enabled && !off;
        add_unbuilt(card, count, "%s: %s not built yet; checked, %s", path.text ? path.text : "", v->row->planned,
                    off      ? "and off in this card"
                    : needed ? "and no model is made of a card that has it on"
                             : "not used");
        if (needed && !card->missing) card->missing = enabled;
        if (!needed && !off) add_unused(card, path.text ? path.text : "");
        chm_string_finish(&path);
    }
    bool inside = v->type == CHM_VALUE_OBJECT || (v->row && v->row->shape == CHM_SHAPE_PHASES);
    for (const chm_value *child = v->first; inside && child; child = child->next) walk_unbuilt(card, child, count);
}

void chm_card_list_unbuilt(chm_card *card) {
    size_t rows, count = 0;
    chm_schema(&rows);
    card->unbuilt = chm_arena_zero(&card->arena, (rows + CHM_MAX_LAYERS + 1) * sizeof *card->unbuilt);
    if (!card->unbuilt) {
        card->starved = true;
        return;
    }
    const chm_model_config *m = &card->model;
    for (int64_t i = 0; i < m->layers; i++) {
        const char *name = m->mixer[i];
        int64_t n = 0, first = i;
        for (int64_t j = 0; j < m->layers; j++)
            if (name && m->mixer[j] && strcmp(m->mixer[j], name) == 0) {
                first = CHM_MIN(first, j);
                n++;
            }
        if (name && first == i && !chm_find_plugin(card->registry, CHM_KIND_LAYER, name, false))
            add_unbuilt(card, &count,
                        "backbone.layer_pattern: %lld of %lld layers need the layer plugin '%s', which is not loaded",
                        (long long)n, (long long)m->layers, name);
    }
    walk_unbuilt(card, card->root, &count);
    list_unread(card, &count);
    list_idle(card, &count);
    if (m->tokenizer && !chm_find_plugin(card->registry, CHM_KIND_TOKENIZER, m->tokenizer, false))
        add_unbuilt(card, &count, "tokenizer.type: the tokenizer plugin '%s' is not loaded; checked, not used",
                    m->tokenizer);
}
