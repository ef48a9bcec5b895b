/*
 * declared.c: stated numbers beside computed ones, and values of a card that contradict each other. Nothing here knows
 * a particular card: every line follows from the values it names.
 */
#include "model/declared.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double megabyte = 1e6;
static const double agreement = 0.01; /* stated numbers are rounded */

static bool close_to(double a, double b) { return fabs(a - b) <= agreement * fmax(fabs(a), fabs(b)) + 1e-12; }

/* ---- numbers ---- */

struct numbers {
    const chm_card *card;
    const chm_figures *f;
    chm_table *out;
};

static void number_cell(chm_table *t, double v) {
    if (isnan(v))
        chm_table_cell(t, "%s", "");
    else if (v == rint(v) && fabs(v) < 1e15)
        chm_table_cell(t, "%.0f", v);
    else
        chm_table_cell(t, "%.4g", v);
}

/* One line. verdict NULL: whether they agree. */
static void line(const struct numbers *n, const char *key, double stated, double computed, const char *unit,
                 const char *verdict, const char *format, ...) CHM_PRINTF(7, 8);
static void line(const struct numbers *n, const char *key, double stated, double computed, const char *unit,
                 const char *verdict, const char *format, ...) {
    char note[512];
    va_list args;
    va_start(args, format);
    vsnprintf(note, sizeof note, format, args);
    va_end(args);
    chm_table_cell(n->out, "%s", key);
    number_cell(n->out, stated);
    number_cell(n->out, computed);
    chm_table_cell(n->out, "%s", unit);
    chm_table_cell(n->out, "%s", verdict ? verdict : close_to(stated, computed) ? "agrees" : "differs");
    chm_table_cell(n->out, "%s", note);
}

static double get(const chm_card *card, const char *key) { return chm_card_number(card, key, NAN); }

/* Parameters that one token meets in `passes` passes of the loop, without the head. */
static double active(const chm_figures *f, double passes) {
    return (double)f->base.parameters + (double)f->experts_active + (passes - 1) * (double)f->looped;
}

/* The inner width of an expert that would give the stated total, and whether that is a whole number of groups. */
static void expert_note(const struct numbers *n, double stated, char *note, size_t bytes) {
    const chm_model_config *m = chm_card_model(n->card);
    double layers[CHM_MAX_LAYERS];
    const int count = chm_card_numbers(n->card, "backbone.moe.layers", layers, CHM_MAX_LAYERS);
    const double routed = get(n->card, "backbone.moe.n_routed_experts");
    const double all = routed + get(n->card, "backbone.moe.n_shared_experts");
    const double routers = count * routed * (double)(m->width + 1);
    const double width = (stated - routers) / (count * all * 3 * (double)m->width);
    const double round = 64 * rint(width / 64), given = get(n->card, "backbone.moe.moe_intermediate_size");
    snprintf(note, bytes, "%d layers x %.0f experts x 3 x %lld x %.0f, and routers", count, all, (long long)m->width,
             given);
    const size_t length = strlen(note);
    if (round > 0 && round != given && close_to(width, round))
        snprintf(note + length, bytes - length, "; moe_intermediate_size %.0f would give the stated number", round);
}

static void expert_numbers(const struct numbers *n) {
    const double total = get(n->card, "backbone.moe.total_params"), stated = get(n->card, "params.moe_total");
    const double few = get(n->card, "backbone.moe.active_params_per_tok");
    const double chosen = get(n->card, "backbone.moe.num_experts_per_tok");
    const double routed = get(n->card, "backbone.moe.n_routed_experts");
    char note[512];
    if (!chm_card_on(n->card, "backbone.moe.enabled")) return;
    if (!isnan(total)) {
        expert_note(n, total, note, sizeof note);
        line(n, "backbone.moe.total_params", total, (double)n->f->experts.parameters, "parameters", NULL, "%s", note);
    }
    if (!isnan(few)) {
        const double guess = total * chosen / routed;
        snprintf(note, sizeof note, "%.0f chosen and %.0f shared experts a layer, and routers", chosen,
                 get(n->card, "backbone.moe.n_shared_experts"));
        if (close_to(guess, few) && !close_to(few, (double)n->f->experts_active))
            snprintf(note + strlen(note), sizeof note - strlen(note),
                     "; the stated number is total_params x %.0f/%.0f, which forgets the shared expert", chosen,
                     routed);
        line(n, "backbone.moe.active_params_per_tok", few, (double)n->f->experts_active, "parameters", NULL, "%s",
             note);
    }
    if (!isnan(stated)) {
        expert_note(n, stated, note, sizeof note);
        line(n, "params.moe_total", stated, (double)n->f->experts.parameters, "parameters", NULL, "%s", note);
    }
}

static int effective_line(void *user, const char *key, const char *value, const char *origin) {
    const struct numbers *n = user;
    static const char before[] = "params.effective_", after[] = "loops";
    (void)origin;
    if (strncmp(key, before, sizeof before - 1) != 0) return 0;
    char *end;
    const double passes = strtod(key + sizeof before - 1, &end), stated = strtod(value, NULL);
    if (strcmp(end, after) != 0 || passes < 1) return 0;
    /* two stated depths fix a straight line, and with it the depth of one pass */
    const double first = get(n->card, "params.effective_2loops"), last = get(n->card, "params.effective_6loops");
    const double one = first - (last - first) / 4;
    char note[256];
    snprintf(note, sizeof note, "%.0f passes over the loop's %lld parameters", passes, (long long)n->f->looped);
    if (!isnan(one) && !close_to(one, active(n->f, 1)))
        snprintf(note + strlen(note), sizeof note - strlen(note), "; the stated pair means %.4g for one pass", one);
    line(n, key, stated, active(n->f, passes), "parameters", NULL, "%s", note);
    return 0;
}

static void parameter_numbers(const struct numbers *n) {
    const chm_figures *f = n->f;
    const double base = get(n->card, "params.base"), all = get(n->card, "params.physical");
    const double once = get(n->card, "params.active_per_token");
    const double few = get(n->card, "backbone.moe.active_params_per_tok"), experts = get(n->card, "params.moe_total");
    const double with = (double)(f->base.parameters + f->embedding.parameters);
    const double physical = with + (double)f->experts.parameters;
    if (!isnan(base))
        line(n, "params.base", base, (double)f->base.parameters, "parameters", close_to(base, with) ? "agrees" : NULL,
             "without the embedding; with it %.0f", with);
    if (!isnan(all))
        line(n, "params.physical", all, physical, "parameters", NULL, "base, experts and embedding%s",
             close_to(base + experts, all) && !close_to(all, physical) ? "; the stated number is base + moe_total"
                                                                       : "");
    if (!isnan(once)) {
        char note[256] = "one pass, without the embedding";
        for (int k = 1; k <= 8; k++)
            if (fabs(base + k * few - once) < 0.002 * once) {
                snprintf(note + strlen(note), sizeof note - strlen(note),
                         "; the stated number is base + %d x active_params_per_tok", k);
                break;
            }
        line(n, "params.active_per_token", once, active(f, 1), "parameters", NULL, "%s", note);
    }
    chm_card_each(n->card, effective_line, (void *)(uintptr_t)n);
}

/* ---- megabytes ---- */

enum { MOST_ROWS = 64 };

double chm_budget_row(const chm_card *card, const char *name) {
    double values[MOST_ROWS];
    const int count = chm_card_numbers(card, "memory_budget_mb._vals", values, MOST_ROWS);
    const char *at = chm_card_get(card, "memory_budget_mb._keys", NULL);
    const size_t length = strlen(name);
    for (int i = 0; at && i < CHM_MIN(count, MOST_ROWS); i++) {
        at = strchr(at, '"');
        if (!at) break;
        const char *end = strchr(++at, '"');
        if (!end) break;
        if ((size_t)(end - at) == length && !strncmp(at, name, length)) return values[i];
        at = end + 1;
    }
    return NAN;
}

/* The size of the tier of a name, or NAN. */
static double tier(const chm_card *card, const char *name) {
    char key[64], quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", name);
    for (int i = 0; i < MOST_ROWS; i++) {
        snprintf(key, sizeof key, "context_tiers.%d.name", i);
        const char *text = chm_card_get(card, key, NULL);
        if (!text) break;
        if (strcmp(text, quoted) != 0) continue;
        snprintf(key, sizeof key, "context_tiers.%d.mb", i);
        return get(card, key);
    }
    return NAN;
}

struct sum {
    const char *prefix, *suffix;
    double total, largest;
    int count;
};

static int add_number(void *user, const char *key, const char *value, const char *origin) {
    struct sum *s = user;
    (void)origin;
    const size_t length = strlen(key), tail = strlen(s->suffix);
    if (strncmp(key, s->prefix, strlen(s->prefix)) != 0 || length < tail || strcmp(key + length - tail, s->suffix) != 0)
        return 0;
    char *end;
    const double v = strtod(value, &end);
    if (end != value && !*end) {
        s->total += v;
        s->largest = fmax(s->largest, v);
    }
    s->count++;
    return 0;
}

static struct sum sum_of(const chm_card *card, const char *prefix, const char *suffix) {
    struct sum s = {.prefix = prefix, .suffix = suffix};
    chm_card_each(card, add_number, &s);
    return s;
}

static void megabytes(const struct numbers *n, const char *key, double stated, double computed, const char *note) {
    if (!isnan(stated) && !isnan(computed)) line(n, key, stated, computed, "MB", NULL, "%s", note);
}

static void memory_numbers(const struct numbers *n) {
    const chm_card *card = n->card;
    const chm_figures *f = n->f;
    const double bits = get(card, "quantization.weight_bits"), weights = chm_budget_row(card, "ternary_weights");
    const double experts = chm_budget_row(card, "moe_experts"), streams = get(card, "deployment.max_streams");
    const double each = get(card, "braid_state.per_stream_mb"), total = get(card, "memory_budget_mb.total");
    const double ceiling = get(card, "memory_budget_mb.growth_ceiling");
    char note[256];
    snprintf(note, sizeof note, "%lld ternary weights x weight_bits / 8; a .b158 has %.0f MB of codes, scales and f32",
             (long long)f->base.ternary, (double)f->base.bytes / megabyte);
    megabytes(n, "memory_budget_mb ternary_weights", weights, (double)f->base.ternary * bits / 8 / megabyte, note);
    snprintf(note, sizeof note, "%lld ternary weights x weight_bits / 8; a .b158 has %.0f MB",
             (long long)f->experts.ternary, (double)f->experts.bytes / megabyte);
    megabytes(n, "memory_budget_mb moe_experts", experts, (double)f->experts.ternary * bits / 8 / megabyte, note);
    snprintf(note, sizeof note, "base, experts and embedding as a .b158 stores them%s",
             close_to(get(card, "params.weight_mb"), weights + experts)
                 ? "; the stated number is ternary_weights + moe_experts of the budget"
                 : "");
    megabytes(n, "params.weight_mb", get(card, "params.weight_mb"),
              (double)(f->base.bytes + f->experts.bytes + f->embedding.bytes) / megabyte, note);

    /* the same thing stated twice */
    static const struct {
        const char *row, *key;
    } twice[] = {{"span_bank", "span_inference.bank_memory_mb"},
                 {"grammar", "grammar.storage_mb"},
                 {"semantic_mem", "semantic_memory.memory_mb"}};
    char name[96];
    for (size_t i = 0; i < CHM_ARRAY_COUNT(twice); i++) {
        snprintf(name, sizeof name, "memory_budget_mb %s", twice[i].row);
        megabytes(n, name, chm_budget_row(card, twice[i].row), get(card, twice[i].key), twice[i].key);
    }
    megabytes(n, "memory_budget_mb episodic", chm_budget_row(card, "episodic"),
              get(card, "self_evolution.tier2.episodic_cases.max_cases") *
                  get(card, "self_evolution.tier2.episodic_cases.case_bytes") / 1048576,
              "max_cases x case_bytes, in MiB");
    snprintf(note, sizeof note, "deployment.max_streams %.0f x braid_state.per_stream_mb %.0f", streams, each);
    megabytes(n, "memory_budget_mb braid", chm_budget_row(card, "braid"), streams * each, note);
    snprintf(note, sizeof note, "f32 state of the layers of one stream%s",
             f->planned ? ", those not built as described" : "");
    megabytes(n, "braid_state.per_stream_mb", each, (double)f->state_bytes / megabyte, note);
    megabytes(n, "deployment.per_stream_mb", get(card, "deployment.per_stream_mb"), each, "braid_state.per_stream_mb");
    static const struct {
        const char *name, *key;
    } tiers[] = {{"braid_state", "braid_state.per_stream_mb"}, {"semantic_memory", "semantic_memory.memory_mb"}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(tiers); i++) {
        snprintf(name, sizeof name, "context_tiers %s", tiers[i].name);
        megabytes(n, name, tier(card, tiers[i].name), get(card, tiers[i].key), tiers[i].key);
    }

    double values[MOST_ROWS], sum = 0;
    const int rows = chm_card_numbers(card, "memory_budget_mb._vals", values, MOST_ROWS);
    for (int i = 0; i < CHM_MIN(rows, MOST_ROWS); i++) sum += values[i];
    if (rows) {
        megabytes(n, "memory_budget_mb.total", total, sum, "sum of _vals");
        megabytes(n, "params.total_mb", get(card, "params.total_mb"), sum, "sum of memory_budget_mb._vals");
    }
    const struct sum growth = sum_of(card, "self_evolution.safety.max_growth_mb.", "");
    if (growth.count) megabytes(n, "memory_budget_mb.growth_ceiling", ceiling, growth.total, "sum of max_growth_mb");
    megabytes(n, "memory_budget_mb.max_with_growth", get(card, "memory_budget_mb.max_with_growth"), total + ceiling,
              "total + growth_ceiling");
    snprintf(note, sizeof note, "8192 - total; with growth %.0f", 8192 - total - ceiling);
    megabytes(n, "memory_budget_mb.headroom_8gb", get(card, "memory_budget_mb.headroom_8gb"), 8192 - total, note);
}

/* ---- counts that follow from other keys ---- */

static int rate_line(void *user, const char *key, const char *value, const char *origin) {
    const struct numbers *n = user;
    static const char before[] = "modes.", after[] = ".tps";
    (void)origin;
    const size_t length = strlen(key);
    if (strncmp(key, before, sizeof before - 1) != 0 || length < sizeof after ||
        strcmp(key + length - (sizeof after - 1), after) != 0)
        return 0;
    char other[128];
    const int stem = (int)(length - (sizeof after - 1));
    snprintf(other, sizeof other, "%.*s.neural_hz", stem, key);
    const double hertz = get(n->card, other);
    snprintf(other, sizeof other, "%.*s.span_avg", stem, key);
    const double rate = hertz * get(n->card, other);
    if (!isnan(rate)) line(n, key, strtod(value, NULL), rate, "tokens/s", NULL, "neural_hz x span_avg");
    return 0;
}

static void other_numbers(const struct numbers *n) {
    const chm_card *card = n->card;
    double list[MOST_ROWS], sum = 0;
    const int sources = chm_card_numbers(card, "span_inference.candidate_sources", list, MOST_ROWS);
    for (int i = 0; i < CHM_MIN(sources, MOST_ROWS); i++) sum += list[i];
    const double candidates = get(card, "span_inference.candidates_fast");
    if (sources && !isnan(candidates))
        line(n, "span_inference.candidates_fast", candidates, sum, "spans", NULL, "sum of candidate_sources");
    chm_card_each(card, rate_line, (void *)(uintptr_t)n);
    const double mechanisms = get(card, "self_evolution.num_mechanisms");
    const struct sum tiers = sum_of(card, "self_evolution.tier", ".enabled");
    if (!isnan(mechanisms))
        line(n, "self_evolution.num_mechanisms", mechanisms, tiers.count, "mechanisms", NULL, "sections in the tiers");
    const double slots = get(card, "braid_state.debt_ledger_slots"), most = get(card, "debt_ledger.max_outstanding");
    if (!isnan(slots) && !isnan(most))
        line(n, "braid_state.debt_ledger_slots", slots, most, "slots", NULL, "debt_ledger.max_outstanding");
    const double bits = get(card, "semantic_memory.vector_bits");
    if (!isnan(bits) && chm_card_numbers(card, "braid_state.semantic_sketch", list, 1))
        line(n, "semantic_memory.vector_bits", bits, list[0], "bits", NULL, "braid_state.semantic_sketch");
}

void chm_declared_numbers(const chm_card *card, const chm_figures *f, chm_table *out) {
    const struct numbers n = {card, f, out};
    chm_table_column(out, "key");
    chm_table_column(out, "#declared");
    chm_table_column(out, "#computed");
    chm_table_column(out, "unit");
    chm_table_column(out, "verdict");
    chm_table_column(out, "note");
    expert_numbers(&n);
    parameter_numbers(&n);
    memory_numbers(&n);
    other_numbers(&n);
}

/* ---- findings ---- */

static void found(chm_table *out, const char *keys, const char *format, ...) CHM_PRINTF(3, 4);
static void found(chm_table *out, const char *keys, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    chm_table_cell(out, "%s", keys);
    chm_table_cell(out, "%s", text);
}

static bool has_layer(const chm_model_config *m, const char *name) {
    for (int64_t i = 0; i < m->layers; i++)
        if (!strcmp(m->mixer[i], name)) return true;
    return false;
}

/* A default is nobody's claim. */
static bool stated(const chm_card *card, const char *key) {
    const char *origin = "default";
    return chm_card_get(card, key, &origin) && strcmp(origin, "default") != 0;
}

static void weight_findings(const chm_card *card, const chm_figures *f, chm_table *out) {
    const chm_model_config *m = chm_card_model(card);
    static const struct {
        const char *row, *parameters;
    } sizes[] = {{"ternary_weights", "params.base"}, {"moe_experts", "params.moe_total"}};
    const double least = log2(3);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(sizes); i++) {
        const double bits = chm_budget_row(card, sizes[i].row) * megabyte * 8 / get(card, sizes[i].parameters);
        char keys[96];
        snprintf(keys, sizeof keys, "memory_budget_mb %s, %s", sizes[i].row, sizes[i].parameters);
        if (bits < least && m->quant == CHM_QUANT_BITNET)
            found(out, keys, "%.2f bits a weight, below the %.3f that a choice of three needs", bits, least);
    }
    if (chm_card_numbers(card, "memory_budget_mb._vals", NULL, 0) &&
        !chm_card_says(card, "memory_budget_mb._keys", "embed"))
        found(
            out, "memory_budget_mb._keys",
            "no row for the embedding: %lld numbers, %.0f MB in bfloat16, %.0f MB as quantization.embedding %s stores "
            "them",
            (long long)f->embedding.parameters, (double)f->embedding.parameters * 2 / megabyte,
            (double)f->embedding.bytes / megabyte, chm_card_get(card, "quantization.embedding", NULL));
    const double widths[] = {(double)m->width, (double)m->ffn_width,
                             chm_card_on(card, "backbone.moe.enabled") ? get(card, "backbone.moe.moe_intermediate_size")
                                                                       : NAN};
    static const char *const names[] = {"hidden_size", "intermediate_size", "backbone.moe.moe_intermediate_size"};
    for (int i = 0; i < 3 && m->quant == CHM_QUANT_BITNET; i++) {
        const double group = (double)m->weight_group, rest = fmod(widths[i], group);
        char keys[128];
        snprintf(keys, sizeof keys, "%s, quantization.group_size", names[i]);
        if (widths[i] > group && rest > 0)
            found(out, keys,
                  "%.0f inputs are %.4g groups of %.0f: the last group of a row has %.0f inputs and a scale of "
                  "its own",
                  widths[i], widths[i] / group, group, rest);
    }
    if (stated(card, "quantization.runtime_kernel") &&
        chm_card_says(card, "quantization.runtime_kernel", "bitnet_cpp") &&
        (chm_card_says(card, "quantization.activation_method", "block") ||
         chm_card_says(card, "quantization.weight_scale", "group")))
        found(out, "quantization.runtime_kernel, activation_method, weight_scale",
              "bitnet.cpp's kernels have one activation scale a row and one weight scale a matrix; blocks of %lld and "
              "groups of %lld need other kernels",
              (long long)m->activation_block, (long long)m->weight_group);
}

/* What a card that writes a layer's formulas down leaves open nevertheless. */
static void open_findings(const chm_card *card, chm_table *out) {
    const chm_model_config *m = chm_card_model(card);
    const bool titans = has_layer(m, "titans") && stated(card, "titans.surprise_formula");
    const bool gd = has_layer(m, "gd") && stated(card, "gated_deltanet.formulation");
    if (titans && !stated(card, "titans.chunk"))
        found(out, "titans.surprise_formula, titans.chunk",
              "chunk, width of the memory and scale of theta are open: gradients are taken over %s tokens at the same "
              "weights, matrices are %lld wide, theta is divided by the chunk and by 1 + |key|^2",
              chm_card_get(card, "titans.chunk", NULL), (long long)m->head_dim);
    if (gd && !stated(card, "gated_deltanet.short_conv"))
        found(out, "gated_deltanet.formulation, gated_deltanet.short_conv",
              "a convolution before the rule is open: queries, keys and values pass a causal one of %s taps",
              chm_card_get(card, "gated_deltanet.short_conv", NULL));
}

static void layer_findings(const chm_card *card, chm_table *out) {
    const chm_model_config *m = chm_card_model(card);
    const bool titans = has_layer(m, "titans"), attention = has_layer(m, "attn");
    if (chm_card_says(card, "backbone.type", "no_attention") &&
        (attention || (titans && chm_card_says(card, "titans.memory_type", "MAC"))))
        found(out, attention ? "backbone.type, backbone.layer_pattern" : "backbone.type, titans.memory_type",
              attention ? "no attention, but the pattern has attn"
                        : "no attention, but memory as context is published as attention over memory and segment");
    const double positions = stated(card, "max_position_embeddings") ? get(card, "max_position_embeddings") : NAN;
    if (!isnan(positions) && !attention)
        found(out, "max_position_embeddings", "%.0f, but no layer of the pattern embeds positions: a label", positions);
    double stage[64];
    const int count = CHM_MIN(chm_card_numbers(card, "training.phases.ctx_extend.stages", stage, 64), 64);
    double longest = 0;
    for (int i = 0; i < count; i++) longest = fmax(longest, stage[i]);
    if (positions > longest && longest > 0)
        found(out, "max_position_embeddings, training.phases.ctx_extend.stages",
              "%.0f positions, but no phase trains on more than %.0f", positions, longest);
    if (chm_card_get(card, "efla.target_layers", NULL) && chm_card_says(card, "gated_deltanet.key_norm", "l2"))
        found(out, "efla.target_layers, gated_deltanet.key_norm",
              "keys of length one would make the exact step a map of beta to 1 - e^-beta: there keys stay raw%s",
              chm_card_on(card, "efla.enabled") ? "" : " (off in this card)");
    double sketch[1] = {0};
    const double slot = get(card, "braid_state.entity_table.slot_bits");
    if (chm_card_numbers(card, "braid_state.semantic_sketch", sketch, 1) && slot != sketch[0] && slot > 0 &&
        chm_card_says(card, "braid_state.entity_table.binding", "xor"))
        found(out, "braid_state.semantic_sketch, braid_state.entity_table.slot_bits",
              "xor needs equal widths: %.0f bits and %.0f bits%s", sketch[0], slot,
              fmod(sketch[0], slot) == 0 ? "; a slot must be repeated" : "");
    const double own = get(card, "tsp_knot.sketch_bits");
    if (sketch[0] > 0 && own > 0 && own != sketch[0])
        found(out, "tsp_knot.sketch_bits, braid_state.semantic_sketch",
              "%.0f bits and %.0f: the sketch of layer sk is what a stream exports", own, sketch[0]);
    const double flips = get(card, "tsp_knot.relaxation_phase2_flip_fraction") * sketch[0];
    if (flips > 0 && flips != rint(flips))
        found(out, "tsp_knot.relaxation_phase2_flip_fraction, braid_state.semantic_sketch",
              "%.2f bits: a flip is whole, so %.0f", flips, floor(flips));
}

/* Whether the mixers of layers with experts stand nowhere else: then no run can tell what either of them does. */
static void expert_findings(const chm_card *card, chm_table *out) {
    const chm_model_config *m = chm_card_model(card);
    int64_t sparse = 0;
    for (int64_t i = 0; i < m->layers; i++) {
        sparse += !strcmp(m->ffn[i], "moe");
        for (int64_t j = 0; j < m->layers; j++)
            if (!strcmp(m->mixer[i], m->mixer[j]) && strcmp(m->ffn[i], m->ffn[j]) != 0) return;
    }
    if (sparse && sparse < m->layers)
        found(out, "backbone.moe.layers, backbone.layer_pattern",
              "the layers with experts are all the layers of their mixers: what experts do and what those mixers do "
              "cannot be told apart");
}

/* Terms of the energy that sk minimises whose operand only a provider in the host has, of which there is none. */
static void energy_findings(const chm_card *card, chm_table *out) {
    static const struct {
        const char *term, *provider;
    } terms[] = {
        {"binding_fidelity", "a memory's entities"},
        {"grammar", "a grammar's state"},
        {"debt", "a ledger of obligations"},
    };
    if (!has_layer(chm_card_model(card), "sk")) return;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(terms); i++) {
        char keys[96];
        double weight[1] = {1};
        snprintf(keys, sizeof keys, "tsp_knot.energy_terms.%s", terms[i].term);
        chm_card_numbers(card, keys, weight, 1);
        if (weight[0] != 0)
            found(out, keys, "the term needs %s, which no plugin provides: it counts as zero, in training and running",
                  terms[i].provider);
    }
}

static void loop_findings(const chm_card *card, chm_table *out) {
    if (!chm_card_on(card, "looping.enabled")) return;
    double range[2] = {0}, loop[2] = {0};
    chm_card_numbers(card, "looping.loop_range", range, 2);
    chm_card_numbers(card, "looping.loop", loop, 2);
    if (get(card, "looping.spectral_radius_bound") >= 1)
        found(out, "looping.spectral_radius_bound",
              "%g: a loop is stable only strictly below 1; every decay is held to 0.9999",
              get(card, "looping.spectral_radius_bound"));
    if (chm_card_says(card, "looping.backward_truncation", "half") && range[1] >= 2)
        found(out, "looping.backward_truncation",
              "half would cut the first pass from the gradient, which alone writes state: what layers %.0f..%.0f write "
              "would never be learnt; so the first pass is kept beside the later half",
              loop[0], loop[1]);
    struct sum modes = sum_of(card, "modes.", ".loops"), levels = sum_of(card, "entropy_valve.levels.", ".loops");
    const double most = fmax(modes.largest, levels.largest);
    if (modes.count + levels.count && most < range[1])
        found(out, "looping.loop_range, modes, entropy_valve.levels",
              "trained for up to %.0f passes, but nothing asks for more than %.0f", range[1], most);
}

static void adaptation_findings(const chm_card *card, chm_table *out) {
    const chm_model_config *m = chm_card_model(card);
    static const char section[] = "self_evolution.tier1.ttt";
    double target[CHM_MAX_LAYERS];
    const int count = CHM_MIN(chm_card_numbers(card, "self_evolution.tier1.ttt.target_layers", target, CHM_MAX_LAYERS),
                              CHM_MAX_LAYERS);
    if (!count || !chm_card_on(card, "self_evolution.tier1.ttt.enabled")) return;
    double bytes = 0;
    char looped[96] = "";
    for (int i = 0; i < count; i++) {
        const int64_t layer = (int64_t)target[i];
        if (layer < 0 || layer >= m->layers) continue;
        const bool experts = !strcmp(m->ffn[layer], "moe");
        if (experts && chm_card_says(card, "self_evolution.tier1.ttt.target_param", "mlp"))
            found(out, "self_evolution.tier1.ttt.target_layers, backbone.moe.layers",
                  "layer %lld (%s) has experts instead of the mlp whose w_down is named", (long long)layer,
                  m->mixer[layer]);
        const double inner = experts ? get(card, "backbone.moe.moe_intermediate_size") : (double)m->ffn_width;
        bytes += inner * (double)m->width * sizeof(float);
        if (m->in_loop[layer])
            snprintf(looped + strlen(looped), sizeof looped - strlen(looped), "%s%lld", *looped ? ", " : "",
                     (long long)layer);
    }
    if (*looped)
        found(out, "self_evolution.tier1.ttt.target_layers, looping.loop",
              "layers %s run once a pass of the loop: one learnt weight is applied several times a token", looped);
    const double room = tier(card, "ttt_compressed");
    char keys[128];
    snprintf(keys, sizeof keys, "context_tiers ttt_compressed, %s.update_scope", section);
    if (chm_card_says(card, "self_evolution.tier1.ttt.update_scope", "full") && bytes / megabyte > room)
        found(out, keys, "full f32 changes take %.1f MB, %.0f MB are set aside", bytes / megabyte, room);
}

void chm_declared_findings(const chm_card *card, const chm_figures *f, chm_table *out) {
    chm_table_column(out, "keys");
    chm_table_column(out, "finding");
    weight_findings(card, f, out);
    layer_findings(card, out);
    open_findings(card, out);
    expert_findings(card, out);
    energy_findings(card, out);
    loop_findings(card, out);
    adaptation_findings(card, out);
}
