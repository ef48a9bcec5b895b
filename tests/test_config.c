/* test_config.c: model cards: the schema, its errors with line and path, overlays, and running out of memory. */
#include "config/card_internal.h"
#include "config/ini.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

/* ---- plugins to resolve cards with: descriptors only, so that nothing here depends on what is built ---- */

struct gd {
    int64_t state_size, chunk_size, value_expand, short_conv;
    bool chunkwise, output_gate, allow_neg_eigval, efla;
};
static const struct chm_option gd_options[] = {
    {"formulation", CHM_OPT_STRING, CHM_OPTION_CHECKED, NULL, 0, 0, NULL, "update rule", 0, 0},
    {"alpha_gate", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "data_dependent_scalar", 0, 0, "data_dependent_scalar", "", 0, 0},
    {"beta_gate", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "data_dependent_scalar", 0, 0, "data_dependent_scalar", "", 0, 0},
    {"state_size", CHM_OPT_INT, offsetof(struct gd, state_size), "0", 0, 256, NULL, "", 0, 0},
    {"chunkwise_parallel", CHM_OPT_BOOL, offsetof(struct gd, chunkwise), "true", 0, 0, NULL, "", 0, 0},
    {"chunk_size", CHM_OPT_INT, offsetof(struct gd, chunk_size), "256", 1, 4096, NULL, "", 0, 0},
    {"key_norm", CHM_OPT_ENUM, CHM_OPTION_CHECKED, "l2", 0, 0, "l2", "", 0, 0},
    {"value_expand", CHM_OPT_INT, offsetof(struct gd, value_expand), "1", 1, 4, NULL, "", 0, 0},
    {"output_gate", CHM_OPT_BOOL, offsetof(struct gd, output_gate), "true", 0, 0, NULL, "", 0, 0},
    {"short_conv", CHM_OPT_INT, offsetof(struct gd, short_conv), "4", 0, 8, NULL, "", 0, 0},
    {"allow_neg_eigval", CHM_OPT_BOOL, offsetof(struct gd, allow_neg_eigval), "false", 0, 0, NULL, "", 0, 0},
    {"efla", CHM_OPT_BOOL, offsetof(struct gd, efla), "false", 0, 0, NULL, "", 0, 0},
};

/* One option of every type. */
struct all {
    bool flag;
    int64_t whole;
    double real;
    int32_t word;
    const char *text;
    struct chm_int_list wholes;
    struct chm_float_list reals;
    struct chm_string_list words;
};
static const struct chm_option all_options[] = {
    {"flag", CHM_OPT_BOOL, offsetof(struct all, flag), "true", 0, 0, NULL, "", 0, 0},
    {"whole", CHM_OPT_INT, offsetof(struct all, whole), "7", 1, 1e12, NULL, "", 0, 0},
    {"real", CHM_OPT_FLOAT, offsetof(struct all, real), "0.5", 0, 1, NULL, "", 0, 0},
    {"word", CHM_OPT_ENUM, offsetof(struct all, word), "slow", 0, 0, "slow|fast", "", 0, 0},
    {"text", CHM_OPT_STRING, offsetof(struct all, text), "some text", 0, 0, NULL, "", 0, 0},
    {"wholes", CHM_OPT_INT_LIST, offsetof(struct all, wholes), "[1, 2]", 0, 9, NULL, "", 1, 3},
    {"reals", CHM_OPT_FLOAT_LIST, offsetof(struct all, reals), "[0.5]", 0, 0, NULL, "", 0, 0},
    {"words", CHM_OPT_STRING_LIST, offsetof(struct all, words), "[a]", 0, 0, "a|b|c", "", 0, 0},
};

#define PLUGIN(kind_, name_)                                                                                           \
    .magic = CHM_MAGIC, .abi = CHM_ABI, .size = sizeof(struct chm_plugin), .kind = kind_, .name = name_
static const struct chm_plugin plugin_gd = {PLUGIN(CHM_KIND_LAYER, "gd"), .section = "gated_deltanet",
                                            .aliases = "GD gated_deltanet", CHM_OPTIONS(gd_options),
                                            .instance_size = sizeof(struct gd)};
static const struct chm_plugin plugin_all = {PLUGIN(CHM_KIND_LAYER, "all"), .section = "all_types", .aliases = "ALL",
                                             CHM_OPTIONS(all_options), .instance_size = sizeof(struct all)};
static const struct chm_plugin plugin_mlp = {PLUGIN(CHM_KIND_LAYER, "mlp")};
static const struct chm_plugin plugin_bytes = {PLUGIN(CHM_KIND_TOKENIZER, "bytes")};

static struct chm_plugin_file plugin_files[] = {
    {.plugin = &plugin_gd}, {.plugin = &plugin_all}, {.plugin = &plugin_mlp}, {.plugin = &plugin_bytes}};
static chm_registry registry = {.files = plugin_files, .file_count = CHM_ARRAY_COUNT(plugin_files)};
static chm_registry empty_registry;

/* ---- cards ---- */

static char *seed_text, *plain_text;
static size_t seed_bytes, plain_bytes;

static void read_card(const char *name, char **text, size_t *bytes) {
    const char *root = getenv("CHM_SOURCE_ROOT");
    char *path = chm_format("%s/etc/%s", root ? root : ".", name);
    assert_non_null(path);
    if (chm_read_file(path, 1 << 20, text, bytes)) fail_msg("%s", chm_error());
    chm_free(path);
}

static int read_cards(void **state) {
    (void)state;
    read_card("chimera-5.1.json", &seed_text, &seed_bytes);
    read_card("chimera-shakespeare.json", &plain_text, &plain_bytes);
    return 0;
}

static int free_cards(void **state) {
    (void)state;
    chm_free(seed_text);
    chm_free(plain_text);
    return 0;
}

/* A card from text, with up to four settings. */
static int parse_set(const char *text, chm_card **card, const char *const *set, size_t count) {
    struct chm_card_options options = {.registry = &registry, .set = set, .set_count = count};
    return chm_card_parse("card.json", text, strlen(text), &options, card);
}

static chm_card *load(const char *text) {
    chm_card *card = NULL;
    if (parse_set(text, &card, NULL, 0)) fail_msg("%s", chm_error());
    return card;
}

static void assert_refused(const char *text, const char *sentence) {
    chm_card *card = (chm_card *)1;
    int status = parse_set(text, &card, NULL, 0);
    assert_int_equal(status, CHM_E_CONFIG);
    assert_null(card);
    assert_string_equal(chm_error(), sentence);
}

static void assert_value(const chm_card *card, const char *key, const char *value, const char *origin) {
    const char *from = "?", *is = chm_card_get(card, key, &from);
    if (!value) {
        assert_null(is);
        assert_null(from);
        return;
    }
    assert_non_null(is);
    assert_string_equal(is, value);
    assert_string_equal(from, origin);
}

/* The text with the first `from` replaced; freed with chm_free. */
static char *replaced(const char *text, const char *from, const char *to) {
    const char *at = strstr(text, from);
    if (!at) fail_msg("the card has no %s", from);
    return chm_format("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}

/* ---- the seed card ---- */

static void seed_structs(void **state) {
    (void)state;
    chm_card *card = load(seed_text);
    const chm_model_config *m = chm_card_model(card);
    assert_int_equal(m->width, 2560);
    assert_int_equal(m->ffn_width, 6912);
    assert_int_equal(m->layers, 28);
    assert_int_equal(m->heads, 40);
    assert_int_equal(m->head_dim, 64);
    assert_int_equal(m->vocab, 200073);
    assert_true(m->norm_eps == 1e-6 && m->init_range == 0.006);
    assert_true(m->norm_before_linear && m->tie_embeddings);
    assert_int_equal(m->quant, CHM_QUANT_BITNET);
    assert_int_equal(m->embedding, CHM_EMBED_TERNARY);
    assert_int_equal(m->weight_group, 128);
    assert_int_equal(m->activation_block, 64);
    assert_int_equal(m->effective_depth, 48); /* 8 + 2 x 20 */
    assert_string_equal(m->tokenizer, "o200k");
    assert_string_equal(m->tokenizer_file, "chimera51_tokenizer.model");
    assert_int_equal(m->eos, 199999);
    assert_int_equal(m->pad, 200058);
    static const char *const pattern[] = {"gd", "xlstm", "gd", "titans", "gd", "xlstm", "gd", "sk"};
    for (int64_t i = 0; i < 28; i++) {
        assert_string_equal(m->mixer[i], pattern[i % 8]);
        assert_string_equal(m->ffn[i], i % 4 == 3 ? "moe" : "mlp");
        assert_int_equal(m->in_loop[i], i >= 4 && i <= 23);
    }
    const chm_train_config *t = chm_card_train(card);
    assert_string_equal(t->name, "pretrain");
    assert_int_equal(t->tokens, 2000000000000);
    assert_int_equal(t->seq_len, 4096);
    assert_int_equal(t->batch_tokens, 4000000);
    assert_int_equal(t->micro_tokens, 0);
    assert_int_equal(t->carry, 1);
    assert_true(t->lr == 3e-4 && t->weight_decay == 0.1 && t->grad_clip == 1.0 && t->min_lr_ratio == 0.1);
    assert_true(t->beta1 == 0.9 && t->beta2 == 0.95 && t->adam_eps == 1e-8);
    assert_int_equal(t->schedule, CHM_SCHEDULE_COSINE);
    assert_int_equal(t->warmup_steps, 2000);
    assert_int_equal(t->seed, 1);
    assert_int_equal(t->report_interval_tokens, 256);

    assert_value(card, "hidden_size", "2560", "card.json:16");
    assert_value(card, "gated_deltanet.chunk_size", "256", "card.json:155");
    assert_value(card, "gd.chunk_size", "256", "card.json:155");
    assert_value(card, "training.pretrain.lr", "0.0003", "card.json:571");
    assert_value(card, "training.phases[0].lr", "0.0003", "card.json:571");
    assert_value(card, "training.phases.dpo.beta", "0.1", "card.json:620");
    assert_value(card, "params.base", "2300000000", "card.json:802");
    assert_value(card, "context_tiers.span_trace.entries", "32768", "card.json:749");
    assert_value(card, "§.r0", "\"2412.06464\"", "card.json:32");
    assert_value(card, "backbone.layer_aliases.XM", "\"xlstm_m\"", "card.json:108");
    assert_value(card, "quantization.embedding", "\"ternary\"", "default");
    assert_value(card, "gd.short_conv", "4", "default");
    assert_value(card, "tokenizer.type", "\"o200k\"", "default");
    assert_value(card, "backbone", NULL, NULL);
    assert_value(card, "hidden_size.x", NULL, NULL);
    assert_value(card, "nothing", NULL, NULL);
    chm_card_destroy(card);
}

static void seed_unbuilt(void **state) {
    (void)state;
    static const char *const expected[] = {
        "backbone.layer_pattern: 7 of 28 layers need the layer plugin 'xlstm', which is not loaded",
        "backbone.layer_pattern: 4 of 28 layers need the layer plugin 'titans', which is not loaded",
        "backbone.layer_pattern: 3 of 28 layers need the layer plugin 'sk', which is not loaded",
        "xlstm: layer plugin not built yet; checked, not used",
        "modes: decoder not built yet; checked, not used",
        "training.phases.1: training of kind ctx_extend not built yet; checked, not used",
        "context_tiers: memory plugins not built yet; checked, not used",
        "tokenizer.type: the tokenizer plugin 'o200k' is not loaded; checked, not used",
    };
    chm_card *card = load(seed_text);
    const char *const *list = chm_card_unbuilt(card);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(expected); i++) {
        bool found = false;
        for (size_t j = 0; list[j]; j++) found = found || strcmp(list[j], expected[i]) == 0;
        if (!found) fail_msg("not reported: %s", expected[i]);
    }
    for (size_t j = 0; list[j]; j++)
        if (strncmp(list[j], "gated_deltanet", 14) == 0) fail_msg("gated_deltanet is built");
    chm_card_destroy(card);

    card = load(plain_text);
    assert_null(chm_card_unbuilt(card)[0]);
    chm_card_destroy(card);

    const char *set = "xlstm.variant=sLSTM"; /* nothing built listens to that */
    if (parse_set(plain_text, &card, &set, 1)) fail_msg("%s", chm_error());
    assert_string_equal(chm_card_unbuilt(card)[0], "xlstm: layer plugin not built yet; checked, not used");
    assert_null(chm_card_unbuilt(card)[1]);
    chm_card_destroy(card);
}

/* What is on, not built and would change numbers makes no model; what only would be used elsewhere is named. */
static void switched_on(void **state) {
    (void)state;
    static const char *const sets[] = {"training.distillation_init.enabled=true", "byte_level.enabled=true"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(sets); i++) {
        chm_card *card = NULL;
        if (parse_set(plain_text, &card, &sets[i], 1)) fail_msg("%s", chm_error());
        assert_int_equal(chm_card_buildable(card), CHM_E_CONFIG);
        char *off = chm_format("--set %.*sfalse makes", (int)(strchr(sets[i], '=') + 1 - sets[i]), sets[i]);
        if (!strstr(chm_error(), off)) fail_msg("no %s in: %s", off, chm_error());
        chm_free(off);
        assert_null(chm_card_unused(card));
        chm_card_destroy(card);
    }
    static const char *const others[] = {"multimodal.enabled=true", "diagnostics.telemetry=false",
                                         "generation.stream=false",
                                         "diagnostics.metrics=[rollback_count, gd_beta_mean]"};
    chm_card *card = NULL;
    if (parse_set(plain_text, &card, others, 4)) fail_msg("%s", chm_error());
    assert_int_equal(chm_card_buildable(card), CHM_OK);
    assert_string_equal(chm_card_unused(card),
                        "multimodal, diagnostics.telemetry, generation.stream, diagnostics.metrics (in part)");
    static const char *const expected[] = {
        "multimodal: encoder plugins not built yet; checked, not used",
        "diagnostics.telemetry: false is not read yet; log.jsonl is the record of a run and is written all the same",
        "generation.stream: false is not read yet; text is written as it comes all the same",
        "diagnostics.metrics: not measured yet: rollback_count"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(expected); i++) assert_string_equal(chm_card_unbuilt(card)[i], expected[i]);
    assert_true(chm_card_wants_metric(card, "gd_beta_mean") && !chm_card_wants_metric(card, "gd_alpha_mean"));
    chm_card_destroy(card);
}

static void plain_structs(void **state) {
    (void)state;
    chm_card *card = load(plain_text);
    const chm_model_config *m = chm_card_model(card);
    assert_int_equal(m->width, 128);
    assert_int_equal(m->layers, 3);
    assert_int_equal(m->effective_depth, 3);
    assert_int_equal(m->embedding, CHM_EMBED_INT8);
    assert_int_equal(m->vocab, 258);
    assert_string_equal(m->tokenizer, "bytes");
    assert_null(m->tokenizer_file);
    assert_int_equal(m->eos, 256);
    assert_int_equal(m->pad, 257);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(m->mixer[i], "gd");
        assert_string_equal(m->ffn[i], "mlp");
        assert_false(m->in_loop[i]);
    }
    assert_true(chm_card_train(card)->lr > 0);
    assert_true(chm_card_train(card)->batch_tokens >= chm_card_train(card)->seq_len);
    chm_card_destroy(card);
}

/* The fewest keys a card can have. */
static const char smallest[] = "{\n"
                               "  \"hidden_size\": 64,\n"
                               "  \"intermediate_size\": 128,\n"
                               "  \"num_hidden_layers\": 3,\n"
                               "  \"num_heads\": 2,\n"
                               "  \"head_dim\": 32,\n"
                               "  \"vocab_size\": 258,\n"
                               "  \"backbone\": {\"layer_pattern\": \"GD gd\"}\n"
                               "}\n";

static void smallest_card(void **state) {
    (void)state;
    chm_card *card = load(smallest);
    const chm_model_config *m = chm_card_model(card);
    for (int i = 0; i < 3; i++) assert_string_equal(m->mixer[i], "gd");
    assert_int_equal(m->eos, 256);
    assert_int_equal(m->pad, 257);
    assert_string_equal(m->tokenizer, "bytes");
    assert_int_equal(m->weight_group, 128);
    assert_value(card, "token_ids", "[256, 257]", "default");
    assert_value(card, "gd.state_size", "32", "default"); /* head_dim */
    assert_value(card, "training.pretrain.schedule", "\"cosine_warmup\"", "default");
    assert_value(card, "generation.temperature", "0.7", "default");
    assert_value(card, "xlstm.variant", NULL, NULL); /* not in the card */
    assert_int_equal(chm_card_train(card)->batch_tokens, 4096);
    assert_true(chm_card_train(card)->beta2 == 0.95);
    assert_null(chm_card_unbuilt(card)[0]);
    chm_card_destroy(card);
}

/* ---- one sentence per class of error ---- */

struct mistake {
    const char *from, *to; /* replaced in the card */
    const char *sentence;
};

static void check_mistakes(const char *text, const struct mistake *list, size_t count) {
    for (size_t i = 0; i < count; i++) {
        char *wrong = replaced(text, list[i].from, list[i].to);
        assert_refused(wrong, list[i].sentence);
        chm_free(wrong);
    }
}

static void mistakes_small(void **state) {
    (void)state;
    static const struct mistake list[] = {
        {"\"hidden_size\": 64", "\"hidden_sise\": 64",
         "card.json:2: hidden_sise: unknown key in a model card (did you mean 'hidden_size'?)\n"
         "card.json:1: hidden_size: missing; Width of the residual stream; num_heads x head_dim."},
        {"\"hidden_size\": 64", "\"hidden_size\": \"wide\"",
         "card.json:2: hidden_size: expected integer 1..65536, got \"wide\""},
        {"\"hidden_size\": 64", "\"hidden_size\": 64.5",
         "card.json:2: hidden_size: expected integer 1..65536, got 64.5"},
        {"\"hidden_size\": 64", "\"hidden_size\": null",
         "card.json:2: hidden_size: expected integer 1..65536, got null"},
        {"\"hidden_size\": 64", "\"hidden_size\": \"64\"",
         "card.json:2: hidden_size: expected integer 1..65536, got \"64\""},
        {"\"num_heads\": 2", "\"num_heads\": 0", "card.json:5: num_heads: expected integer 1..1024, got 0"},
        {"\"num_heads\": 2", "\"num_heads\": 3",
         "card.json:2: hidden_size: 64, but num_heads (card.json:5) x head_dim is 3 x 32 = 96"},
        {"GD gd", "GD XN", "card.json:8: backbone.layer_pattern: no layer 'XN' (did you mean 'XM'?)"},
        {"GD gd", "GD quadratic",
         "card.json:8: backbone.layer_pattern: no layer 'quadratic'; `chimera plugins list` shows those there are"},
        {"GD gd", "  ", "card.json:8: backbone.layer_pattern: names no layer"},
        {"GD gd", "GD GD GD GD",
         "card.json:8: backbone.layer_pattern: 4 names, but num_hidden_layers is 3 (card.json:4)"},
        {"\"GD gd\"", "[\"GD\"]", "card.json:8: backbone.layer_pattern: expected text, got [\"GD\"]"},
        {"{\"layer_pattern\": \"GD gd\"}", "{}",
         "card.json:8: backbone.layer_pattern: missing; Mixers from the first layer up, separated by spaces: "
         "layer_aliases, or layer plugins. Repeated to num_hidden_layers."},
        {"{\"layer_pattern\": \"GD gd\"}", "7", "card.json:8: backbone: expected an object { ... }, got 7"},
        {"\"GD gd\"}", "\"GD gd\", \"layer_pattern_repeat\": 2}",
         "card.json:8: backbone.layer_pattern_repeat: 2 x 2 names give 4 layers, but num_hidden_layers is 3 "
         "(card.json:4)"},
        {"\"GD gd\"}", "\"GD gd\", \"layer_counts\": {\"GD\": 1, \"gd\": 1}}",
         "card.json:8: backbone.layer_counts.GD: 1, but the pattern gives 2 over 3 layers"},
        {"\"GD gd\"}", "\"GD gd\", \"layer_counts\": {\"GD\": 2}}",
         "card.json:8: backbone.layer_counts: does not count 'gd', of which the pattern gives 1"},
        {"\"GD gd\"}", "\"GD gd\", \"layer_counts\": {\"GD\": 2, \"gd\": 1, \"GDX\": 3}}",
         "card.json:8: backbone.layer_counts.GDX: no layer 'GDX' in the pattern (did you mean 'GD'?)"},
        {"\"GD gd\"}", "\"GD gd\", \"layer_aliases\": {\"XX\": \"xlstn\"}}",
         "card.json:8: backbone.layer_aliases.XX: no layer plugin 'xlstn' (did you mean 'xlstm'?)"},
        {"\"GD gd\"}", "\"GD gd\", \"moe\": {\"layers\": [0, 3]}}",
         "card.json:8: backbone.moe.layers: layer 3 is not among layers 0..2"},
        {"\"GD gd\"}", "\"GD gd\", \"moe\": {\"layers\": [2, 1]}}",
         "card.json:8: backbone.moe.layers: layer 1 stands after 2; give each once, in order"},
        {"\"GD gd\"}", "\"GD gd\", \"moe\": {}}",
         "card.json:8: backbone.moe: enabled, but `layers` does not say which layers"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"token_ids\": [256, 258]",
         "card.json:7: token_ids: token 258, but vocab_size is 258 (card.json:7)"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"token_ids\": [0, 1]",
         "card.json:7: token_ids: [0, 1]; the bytes tokenizer has [256, 257]"},
        {"\"vocab_size\": 258", "\"vocab_size\": 100",
         "card.json: token_ids: token 257, but vocab_size is 100 (card.json:7)"},
        {"\"vocab_size\": 258", "\"vocab_size\": 9999",
         "card.json:1: token_ids: missing; end-of-text and padding token of tokenizer 'o200k'"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"token_ids\": [256]",
         "card.json:7: token_ids: expected list of 2 integers 0..16777215, got [256]"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"tokenizer\": {\"type\": \"byte\"}",
         "card.json:7: tokenizer.type: no tokenizer 'byte' (did you mean 'bytes'?)"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"quantization\": {\"method\": \"bitnett\"}",
         "card.json:7: quantization.method: expected one of bitnet, none, got \"bitnett\" (did you mean 'bitnet'?)"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"quantization\": {\"group_size\": 100}",
         "card.json:7: quantization.group_size: 100 is not a multiple of 64"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"quantization\": {\"weight_values\": [1, 0, -1]}",
         "card.json:7: quantization.weight_values: a ternary weight is -1, 0 or 1: expected [-1, 0, 1]"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"gated_deltanet\": {\"chunk_size\": 5000}",
         "card.json:7: gated_deltanet.chunk_size: expected integer 1..4096, got 5000"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"gated_deltanet\": {\"chunksize\": 5}",
         "card.json:7: gated_deltanet.chunksize: unknown key in gated_deltanet (did you mean 'chunk_size'?)"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"gated_deltanet\": {\"state_size\": 64}",
         "card.json:7: gated_deltanet.state_size: 64, but head_dim is 32 (card.json:6)"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"gated_deltanet\": {\"§\": 7}",
         "card.json:7: gated_deltanet.§: expected text or a list of texts, got 7"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"efla\": {\"on\": true}",
         "card.json:7: efla.on: unknown key in efla, which has enabled, target_layers"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"training\": {\"phases\": {}}",
         "card.json:7: training.phases: expected a list of objects, got {}"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"training\": {\"phases\": [3]}",
         "card.json:7: training.phases.0: expected an object { ... }, got 3"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"training\": {\"phases\": [{\"stages\": [[1, \"x\"]]}]}",
         "card.json:7: training.phases.0.stages: unknown key in training.phases.0, which has name, kind, tokens, data, "
         "seq_len, batch_tokens, micro_tokens, carry_segments, optimizer, lr, min_lr_ratio, schedule, warmup_steps, "
         "decay_fraction, stage_split, stage2_lr, stage2_weight_decay, weight_decay, grad_clip, beta1, beta2, eps, "
         "ternary, seed"},
        {"\"vocab_size\": 258",
         "\"vocab_size\": 258, \"training\": {\"phases\": [{\"kind\": \"ctx_extend\", \"stages\": [[1, 2]]}]}",
         "card.json:7: training.phases.0.stages.0: expected [integer 1..1e+18, main] or [integer 1..1e+18, integer "
         "1..1e+09, number 0..10], got [1, 2]"},
        {"\"vocab_size\": 258",
         "\"vocab_size\": 258, \"training\": {\"phases\": [{\"kind\": \"ctx_extend\", \"stages\": [[9, 5, -1e300]]}]}",
         "card.json:7: training.phases.0.stages.0: expected [integer 1..1e+18, main] or [integer 1..1e+18, integer "
         "1..1e+09, number 0..10], got [9, 5, -1e300]"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"training\": {\"phases\": [{\"seed\": 9007199254740993}]}",
         "card.json:7: training.phases.0.seed: expected integer 0..9.007199255e+15, got 9007199254740993"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"training\": {\"phases\": [{\"seq_len\": 9000}]}",
         "card.json: training.phases.0.batch_tokens: 4096, less than one segment of seq_len 9000"},
        {"\"vocab_size\": 258",
         "\"vocab_size\": 258, \"training\": {\"phases\": [{\"warmup_steps\": 100, \"tokens\": \"0.4M\"}]}",
         "card.json:7: training.phases.0.warmup_steps: 100 steps of 4096 tokens are the whole budget of 400000 tokens "
         "or more"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"training\": {\"phases\": [{\"tokens\": \"4k\"}]}",
         "card.json:7: training.phases.0.tokens: expected integer 1..1e+18, got \"4k\""},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"training\": {\"phases\": [{}, {\"name\": \"pretrain\"}]}",
         "card.json:7: training.phases.1.name: two phases are called 'pretrain'"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"max_position_embeddings\": 100",
         "card.json: training.phases.0.seq_len: 256, more than max_position_embeddings, which is 100"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"looping\": {}",
         "card.json:7: looping: enabled, but `prelude` is missing"},
        {"\"vocab_size\": 258",
         "\"vocab_size\": 258, \"looping\": {\"prelude\": [0, 0], \"loop\": [2, 2], \"coda\": [2, 2]}",
         "card.json:7: looping.loop: layers 2..2; expected 1..N: prelude, loop and coda follow one another and end at "
         "layer 2"},
        {"\"vocab_size\": 258",
         "\"vocab_size\": 258, \"looping\": {\"prelude\": [0, 0], \"loop\": [1, 1], \"coda\": [2, 3]}",
         "card.json:7: looping.coda: layers 2..3; expected 2..N: prelude, loop and coda follow one another and end at "
         "layer 2"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"looping\": {\"enabled\": false, \"loop_default\": 9}",
         "card.json:7: looping.loop_default: 9 passes, outside loop_range 1..6"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"looping\": {\"enabled\": false, \"loop_range\": [3, 2]}",
         "card.json:7: looping.loop_range: from 3 to 2 passes is no range"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"context_tiers\": [{\"name\": \"span_trace\", \"gb\": 3}]",
         "card.json:7: context_tiers.0.gb: unknown key in context_tiers.0 (did you mean 'mb'?)"},
        {"\"vocab_size\": 258", "\"vocab_size\": 258, \"context_tiers\": [{\"name\": \"span_trice\"}]",
         "card.json:7: context_tiers.0.name: expected one of recent_ring, braid_state, semantic_memory, "
         "ttt_compressed, span_trace, episodic_cases, got \"span_trice\" (did you mean 'span_trace'?)"},
        {"\"vocab_size\": 258",
         "\"vocab_size\": 258, \"context_tiers\": [{\"name\": \"span_trace\"}, {\"name\": \"span_trace\"}]",
         "card.json:7: context_tiers.1.name: two tiers are called 'span_trace'"},
        {"\"vocab_size\": 258",
         "\"vocab_size\": 258, \"P3_ternary_compute\": {\"realistic_performance\": {\"a\": {\"b\": 3}}}",
         "card.json:7: P3_ternary_compute.realistic_performance.a.b: expected text, a list of texts, or an object of "
         "such, got 3"},
        {"\"vocab_size\": 258",
         "\"vocab_size\": 258, \"P3_ternary_compute\": {\"implemented_optimizations\": {\"a\": \"x\"}}",
         "card.json:7: P3_ternary_compute.implemented_optimizations.a: expected an object { ... }, got \"x\""},
    };
    check_mistakes(smallest, list, CHM_ARRAY_COUNT(list));
}

static void mistakes_seed(void **state) {
    (void)state;
    static const struct mistake list[] = {
        {"\"total\": 2524", "\"total\": 2525",
         "card.json:668: memory_budget_mb.total: 2525, but memory_budget_mb._vals adds up to 2524\n"
         "card.json:671: memory_budget_mb.max_with_growth: 3174, but total + growth_ceiling is 3175"},
        {"      410,\n", "",
         "card.json:654: memory_budget_mb._vals: 11 items, but memory_budget_mb._keys has 12 (card.json:640)\n"
         "card.json:667: memory_budget_mb.total: 2524, but memory_budget_mb._vals adds up to 2114"},
        {"      \"cache_hits\",\n", "",
         "card.json:218: span_inference.candidate_sources: 4 items, but span_inference.candidate_source_keys has 3 "
         "(card.json:224)"},
        {"\"candidates_fast\": 192", "\"candidates_fast\": 200",
         "card.json:230: span_inference.candidates_fast: 200, but span_inference.candidate_sources adds up to 192"},
        {"      0.35\n", "      0.35, 1\n",
         "card.json:261: span_inference.scoring_weights_fast: 6 items, but span_inference.scoring_keys has 5 "
         "(card.json:254)"},
        {"\"render_queue_max\": 2048", "\"render_queue_max\": 20",
         "card.json:251: span_inference.render_queue_target: 256, more than span_inference.render_queue_max, which is "
         "20 (card.json:252)"},
        {"    \"memory_size_per_head\": [\n      64,", "    \"memory_size_per_head\": [\n      32,",
         "card.json:167: xlstm.memory_size_per_head: 32, but head_dim is 64 (card.json:20)"},
        {"\"out\": 2560", "\"out\": 1280",
         "card.json:770: multimodal.vision.out: 1280, but hidden_size is 2560 (card.json:16)"},
        {"      2560,\n      \"float32\"", "      2048,\n      \"float32\"",
         "card.json:501: braid_state.continuous_hidden: 2048, but hidden_size is 2560 (card.json:16)"},
        {"          13,\n          23", "          13,\n          28",
         "card.json:415: self_evolution.tier1.ttt.target_layers: layer 28 is not among layers 0..27"},
        {"\"loops\": 4,\n      \"audit\": 1.0\n    }\n  },\n  \"generation\"",
         "\"loops\": 7,\n      \"audit\": 1.0\n    }\n  },\n  \"generation\"",
         "card.json:545: modes.reasoning.loops: 7 passes, outside looping.loop_range 1..6"},
        {"\"kv_growth_per_token\": 0", "\"kv_growth_per_token\": 4",
         "card.json:524: braid_state.kv_growth_per_token: 4, but recurrent state does not grow: expected 0"},
        {"\"state_file\": \"chimera51_evolution.state\"", "\"state_file\": \"x\"",
         "card.json:497: self_evolution.safety.state_file: 'x', but files.evolution is 'chimera51_evolution.state'"},
        {"\"enabled\": false,\n    \"target_layers\": \"SK\"", "\"enabled\": true,\n    \"target_layers\": \"SX\"",
         "card.json:161: efla.target_layers: no layer 'SX' in the pattern (did you mean 'SK'?)"},
        {"\"enabled\": false,\n    \"target_layers\": \"SK\"", "\"enabled\": true,\n    \"target_layers\": \"GD 28\"",
         "card.json:161: efla.target_layers: layer 28 is not among layers 0..27"},
        {"\"layer_pattern_repeat\": 3.5", "\"layer_pattern_repeat\": 3.25",
         "card.json:105: backbone.layer_pattern_repeat: 3.25 x 8 names give 26 layers, but num_hidden_layers is 28 "
         "(card.json:18)"},
        {"\"XM\": 7", "\"XM\": 6",
         "card.json:114: backbone.layer_counts.XM: 6, but the pattern gives 7 over 28 layers"},
        {"\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 17",
         "card.json:138: backbone.moe.num_experts_per_tok: 17 of only 16 experts"},
        {"            16384,\n            10000", "            4096,\n            10000",
         "card.json:589: training.phases.1.stages.1: segments of 4096 after 4096; lengths must grow"},
        {"\"markdown\",", "\"markdwn\",",
         "card.json:303: grammar.modes: expected list of at most 64 from: plain_text, dialogue, markdown, json, "
         "python, "
         "javascript, sql, math_latex, shell, got \"markdwn\" (did you mean 'markdown'?)"},
        {"\"markdown\",", "\"json\",", "card.json:303: grammar.modes: names 'json' twice"},
        {"\"memory_coherence\"", "\"memory_coherance\"",
         "card.json:279: tsp_knot.energy_terms.memory_coherance: unknown key in tsp_knot.energy_terms (did you mean "
         "'memory_coherence'?)"},
        {"\"low\": {", "\"lwo\": {",
         "card.json:377: entropy_valve.levels.lwo: unknown key in entropy_valve.levels (did you mean 'low'?)"},
        {"        1.0,\n        \"embedding_inner_product\"", "        1e300,\n        \"embedding_inner_product\"",
         "card.json:275: tsp_knot.energy_terms.autoregressive: expected [number 0..1000, embedding_inner_product] "
         "or number 0..1000, got [1e300, \"embedding_inner_product\"]"},
        {"\"fst_transition_cost\"", "\"zzz\"",
         "card.json:287: tsp_knot.energy_terms.grammar: expected [number 0..1000, fst_transition_cost] or "
         "number 0..1000, got [0.4, \"zzz\"]"},
        {"      2560,\n      \"int8\"", "      2560,\n      \"int9\"",
         "card.json:505: braid_state.fast_hidden: expected [integer 1..65536, float32 or float16 or bfloat16 or int8], "
         "got [2560, \"int9\"]"},
        {"          13,\n          23", "          13,\n          13",
         "card.json:415: self_evolution.tier1.ttt.target_layers: layer 13 stands after 13; give each once, in order"},
        {"\"vector_bits\": 8192", "\"vector_bits\": 4096",
         "card.json:509: braid_state.semantic_sketch: 8192, but semantic_memory.vector_bits is 4096 (card.json:335)\n"
         "card.json:336: semantic_memory.vector_storage: 'uint64_x128', but 4096 bits are uint64_x64"},
        {"\"moe_experts\",", "\"moe_expert\",",
         "card.json:640: memory_budget_mb._keys: expected list of at most 64 from: ternary_weights, moe_experts, "
         "embedding, span_bank, grammar, semantic_mem, episodic, guidelines, braid, activations, render_queue, "
         "evolution, runtime_os, got \"moe_expert\" (did you mean 'moe_experts'?)"},
    };
    check_mistakes(seed_text, list, CHM_ARRAY_COUNT(list));
}

/* Layers of the exact step, by name and by number; others keep what their plugin's section says. */
static void exact_step(void **state) {
    (void)state;
    static const char text[] = "{\"hidden_size\": 64, \"intermediate_size\": 96, \"num_hidden_layers\": 5,\n"
                               "\"num_heads\": 2, \"head_dim\": 32, \"vocab_size\": 258,\n"
                               "\"backbone\": {\"layer_pattern\": \"A B C\",\n"
                               "\"layer_aliases\": {\"A\": \"gd\", \"B\": \"ALL\", \"C\": \"GD\"}},\n"
                               "\"efla\": {\"enabled\": true, \"target_layers\": \"C 3\"}}";
    static const bool expected[] = {false, false, true, true, false};
    chm_card *card = load(text);
    chm_arena arena;
    chm_arena_init(&arena);
    for (int i = 0; i < 5; i++) {
        struct gd gd = {.efla = false};
        assert_int_equal(chm_card_model(card)->efla[i], expected[i]);
        if (i % 3 == 1) continue;
        if (chm_card_mixer_options(card, i, &plugin_gd, &gd, &arena)) fail_msg("%s", chm_error());
        assert_int_equal(gd.efla, expected[i]);
        assert_int_equal(gd.chunk_size, 256);
    }
    chm_arena_finish(&arena);
    chm_card_destroy(card);
    static const struct mistake list[] = {
        {"\"C 3\"", "\"C B A\"",
         "card.json:5: efla.target_layers: 'B' is layer 1, and its plugin 'all' has no option efla: no exact step"},
        {"\"C 3\"", "\"4\"",
         "card.json:5: efla.target_layers: '4' is layer 4, and its plugin 'all' has no option efla: no exact step"},
        {"\"C 3\"", "\"5\"", "card.json:5: efla.target_layers: layer 5 is not among layers 0..4"},
    };
    check_mistakes(text, list, CHM_ARRAY_COUNT(list));
    char *off = replaced(text, "true, \"target_layers\": \"C 3\"", "false, \"target_layers\": \"B\"");
    card = load(off);
    for (int i = 0; i < 5; i++) assert_false(chm_card_model(card)->efla[i]);
    chm_card_destroy(card);
    chm_free(off);
}

/* Options that are members of an object in the section: [weight, how], of which the option is the weight. */
static void options_in_objects(void **state) {
    (void)state;
    struct knot {
        double debt, grammar;
        int64_t rounds;
    } knot;
    static const struct chm_option knot_options[] = {
        {"energy_terms.debt", CHM_OPT_FLOAT, offsetof(struct knot, debt), "0.3", 0, 10, NULL, "", 0, 0},
        {"energy_terms.grammar", CHM_OPT_FLOAT, offsetof(struct knot, grammar), "0.4", 0, 10, NULL, "", 0, 0},
        {"relaxation_phase2_max_iters", CHM_OPT_INT, offsetof(struct knot, rounds), "3", 0, 64, NULL, "", 0, 0},
    };
    static const struct chm_plugin plugin_knot = {PLUGIN(CHM_KIND_LAYER, "sk"), .section = "tsp_knot",
                                                  CHM_OPTIONS(knot_options), .instance_size = sizeof(struct knot)};
    static struct chm_plugin_file files[] = {
        {.plugin = &plugin_knot}, {.plugin = &plugin_mlp}, {.plugin = &plugin_bytes}};
    static const chm_registry knots = {.files = files, .file_count = CHM_ARRAY_COUNT(files)};
    static const char text[] = "{\"hidden_size\": 64, \"intermediate_size\": 96, \"num_hidden_layers\": 1,\n"
                               "\"num_heads\": 2, \"head_dim\": 32, \"vocab_size\": 258,\n"
                               "\"backbone\": {\"layer_pattern\": \"sk\"},\n"
                               "\"tsp_knot\": {\"energy_terms\": {\n\"debt\": [1.5, \"obligation_delta\"]}}}";
    static const char *const bare = "{\"hidden_size\": 64, \"intermediate_size\": 96, \"num_hidden_layers\": 1, "
                                    "\"num_heads\": 2, \"head_dim\": 32, \"vocab_size\": 258, "
                                    "\"backbone\": {\"layer_pattern\": \"sk\"}}";
    static const struct {
        const char *text, *set;
        double debt, grammar;
    } good[] = {
        {text, "_v=1", 1.5, 0.4},
        {bare, "_v=1", 0.3, 0.4},
        {bare, "tsp_knot.energy_terms.grammar=[2, \"fst_transition_cost\"]", 0.3, 2},
        {text, "sk.energy_terms.debt=[0, \"obligation_delta\"]", 0, 0.4},
        {text, "sk.energy_terms.debt=0.25", 0.25, 0.4},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(good); i++) {
        struct chm_card_options options = {.registry = &knots, .set = &good[i].set, .set_count = 1};
        chm_card *card = NULL;
        chm_arena arena;
        chm_arena_init(&arena);
        if (chm_card_parse("card.json", good[i].text, strlen(good[i].text), &options, &card))
            fail_msg("%s", chm_error());
        if (chm_card_plugin_options(card, &plugin_knot, &knot, &arena)) fail_msg("%s", chm_error());
        assert_true(knot.debt == good[i].debt && knot.grammar == good[i].grammar && knot.rounds == 3);
        assert_value(card, "tsp_knot.relaxation_phase2_max_iters", "3", "default");
        chm_arena_finish(&arena);
        chm_card_destroy(card);
    }
    static const struct {
        const char *find, *replace, *sentence;
    } bad[] = {
        {"obligation_delta", "guess",
         "card.json:5: tsp_knot.energy_terms.debt: expected [number 0..1000, obligation_delta] or number "
         "0..1000, got [1.5, \"guess\"]"},
        {"\"debt\"", "\"dept\"",
         "card.json:5: tsp_knot.energy_terms.dept: unknown key in tsp_knot.energy_terms (did you mean 'debt'?)"},
        {"energy_terms", "energy_term",
         "card.json:4: tsp_knot.energy_term: unknown key in tsp_knot (did you mean "
         "'energy_terms'?)"},
        {"1.5, ", "",
         "card.json:5: tsp_knot.energy_terms.debt: expected [number 0..1000, obligation_delta] or number "
         "0..1000, got [\"obligation_delta\"]"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(bad); i++) {
        struct chm_card_options options = {.registry = &knots};
        chm_card *card = NULL;
        char *wrong = replaced(text, bad[i].find, bad[i].replace);
        assert_int_equal(chm_card_parse("card.json", wrong, strlen(wrong), &options, &card), CHM_E_CONFIG);
        assert_string_equal(chm_error(), bad[i].sentence);
        chm_free(wrong);
    }
    /* a range is looked at when the plugin gets its options */
    char *wrong = replaced(text, "1.5", "11");
    struct chm_card_options options = {.registry = &knots};
    chm_card *card = NULL;
    chm_arena arena;
    chm_arena_init(&arena);
    assert_int_equal(chm_card_parse("card.json", wrong, strlen(wrong), &options, &card), CHM_OK);
    assert_int_equal(chm_card_plugin_options(card, &plugin_knot, &knot, &arena), CHM_E_CONFIG);
    assert_string_equal(chm_error(), "card.json:5: energy_terms.debt: '11' is not accepted: expected number 0..10");
    chm_arena_finish(&arena);
    chm_card_destroy(card);
    chm_free(wrong);
}

static void mistakes_of_syntax(void **state) {
    (void)state;
    assert_refused("", "card.json:1: nothing in it; a model card is a JSON object");
    assert_refused("\n\n [1]", "card.json:3: a model card is a JSON object and begins with '{'");
    assert_refused("{\"a\": 1,\n\n}", "card.json:3: not valid JSON: string or '}' expected near '}'");
    assert_refused("{\"a\": 1,\n\"a\": 2}", "card.json:2: duplicate object key near '\"a\"'; a key may be given once");
    assert_refused("{}\n\n{}",
                   "card.json:3: something follows the card's closing brace (end of file expected near '{')");
    assert_refused("{\"a\":\n \"\xff\"}", "card.json:2: not UTF-8 text (unable to decode byte 0xff near '\"')");
    assert_refused("\xef\xbb\xbf{}", "card.json:1: begins with a byte order mark; save it as UTF-8 without one");
    assert_refused("{\"a\": \"\\u0000\"}",
                   "card.json:1: not valid JSON: \\u0000 is not allowed without JSON_ALLOW_NUL near '\"\\u0000\"'");

    chm_string deep = {0};
    chm_string_add(&deep, "{\"\\\"[[[\":\n");
    for (int i = 0; i < 64; i++) chm_string_add(&deep, "[");
    assert_refused(deep.text, "card.json:2: brackets nest more than 64 levels deep");
    chm_string_finish(&deep);

    chm_card *card = NULL;
    struct chm_card_options options = {.registry = &registry};
    char *big = chm_alloc((1 << 20) + 1);
    assert_non_null(big);
    memset(big, ' ', (1 << 20) + 1);
    assert_int_equal(chm_card_parse("card.json", big, (1 << 20) + 1, &options, &card), CHM_E_CONFIG);
    assert_string_equal(chm_error(), "card.json: 1048577 bytes; a model card has at most 1048576");
    chm_free(big);
    assert_int_equal(chm_card_parse("card.json", "{\"a\":1}\0", 8, &options, &card), CHM_E_CONFIG);
    assert_int_equal(chm_card_load("/nonexistent/card.json", &options, &card), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "/nonexistent/card.json: no such file"));
}

static void many_problems(void **state) {
    (void)state;
    chm_string text = {0};
    chm_string_add(&text, "{\n");
    for (int i = 0; i < 30; i++) chm_string_add(&text, "\"zz%d\": 1,\n", i);
    chm_string_add(&text, "%s", smallest + 2);
    chm_card *card;
    assert_int_equal(parse_set(text.text, &card, NULL, 0), CHM_E_CONFIG);
    int lines = 1;
    for (const char *c = chm_error(); *c; c++) lines += *c == '\n';
    assert_int_equal(lines, 21);
    assert_non_null(strstr(chm_error(), "\ncard.json: 10 more problems"));
    assert_non_null(strstr(chm_error(), "card.json:21: zz19: unknown key in a model card"));
    chm_string_finish(&text);
}

/* Without the plugin that owns a section its shape is still checked, and the card still resolves. */
static void no_plugins(void **state) {
    (void)state;
    struct chm_card_options options = {.registry = &empty_registry};
    chm_card *card = NULL;
    if (chm_card_parse("card.json", plain_text, plain_bytes, &options, &card)) {
        /* numbers are no documentation */
        assert_non_null(strstr(chm_error(), "gated_deltanet.state_size: expected text"));
    } else {
        fail_msg("options nobody can check were accepted");
    }
    assert_int_equal(chm_card_parse("card.json", smallest, strlen(smallest), &options, &card), CHM_OK);
    assert_string_equal(chm_card_model(card)->mixer[0], "gd");
    assert_string_equal(chm_card_unbuilt(card)[0],
                        "backbone.layer_pattern: 3 of 3 layers need the layer plugin 'gd', which is not loaded");
    chm_card_destroy(card);
}

/* ---- every scalar of the seed card, turned into another type ---- */

struct scan {
    const char *at;
    int line;
    char path[256];
    int key_line;  /* where the key of the value at hand stands */
    int list_line; /* where the innermost list begins; 0: in none */
    int tried;
};

static void scan_space(struct scan *s) {
    for (; *s->at && strchr(" \t\r\n", *s->at); s->at++) s->line += *s->at == '\n';
}

static size_t token(const char *at) {
    if (*at != '"') return strcspn(at, ",]} \r\n");
    size_t n = 1;
    while (at[n] != '"') n += at[n] == '\\' ? 2 : 1;
    return n + 1;
}

static void try_mutation(struct scan *s, size_t length) {
    const char *wrong = *s->at == '"' ? "true" : "\"@wrong@\""; /* "4M" is a number too */
    char *text = chm_format("%.*s%s%s", (int)(s->at - seed_text), seed_text, wrong, s->at + length);
    assert_non_null(text);
    chm_card *card = NULL;
    if (parse_set(text, &card, NULL, 0) != CHM_E_CONFIG) fail_msg("%s: %s was accepted", s->path, wrong);
    /* "card.json:LINE: PATH: ...": the line of the key, or of the list inside; the path, or that of its list */
    int line = 0, used = 0;
    char path[256] = "";
    if (sscanf(chm_error(), "card.json:%d: %255[^: ]: %n", &line, path, &used) != 2 || used == 0)
        fail_msg("%s: refused without place: %s", s->path, chm_error());
    size_t n = strlen(path);
    if (strncmp(s->path, path, n) != 0 || (s->path[n] != 0 && s->path[n] != '.'))
        fail_msg("%s: refused for another key: %s", s->path, chm_error());
    if (line != s->key_line && line != s->list_line) fail_msg("%s: line %d: %s", s->path, s->key_line, chm_error());
    if (!strstr(chm_error() + used, "true") && !strstr(chm_error() + used, "@wrong@"))
        fail_msg("%s: the value is not shown: %s", s->path, chm_error());
    s->tried++;
    chm_free(text);
}

static void scan_value(struct scan *s);

static void scan_inside(struct scan *s, const char *name, int key_line) {
    size_t length = strlen(s->path);
    int before = s->key_line;
    snprintf(s->path + length, sizeof s->path - length, "%s%s", length ? "." : "", name);
    s->key_line = key_line;
    scan_value(s);
    s->path[length] = 0;
    s->key_line = before;
}

static void scan_value(struct scan *s) {
    scan_space(s);
    if (*s->at == '{') {
        s->at++;
        for (scan_space(s); *s->at != '}'; scan_space(s)) {
            char name[128];
            size_t n = token(s->at);
            snprintf(name, sizeof name, "%.*s", (int)n - 2, s->at + 1);
            int line = s->line;
            s->at += n;
            scan_space(s);
            s->at++; /* : */
            scan_inside(s, name, line);
            scan_space(s);
            if (*s->at == ',') s->at++;
        }
        s->at++;
    } else if (*s->at == '[') {
        int before = s->list_line, i = 0;
        s->list_line = s->line;
        s->at++;
        for (scan_space(s); *s->at != ']'; scan_space(s)) {
            char name[16];
            snprintf(name, sizeof name, "%d", i++);
            scan_inside(s, name, s->key_line);
            scan_space(s);
            if (*s->at == ',') s->at++;
        }
        s->at++;
        s->list_line = before;
    } else {
        size_t n = token(s->at);
        try_mutation(s, n);
        s->at += n;
    }
}

static void every_scalar(void **state) {
    (void)state;
    struct scan s = {.at = seed_text, .line = 1};
    scan_value(&s);
    assert_int_equal(s.tried, 642); /* scalars of the seed card */
}

/* ---- an unknown key in every object of the seed card ---- */

static void every_section(void **state) {
    (void)state;
    int line = 1, tried = 0;
    bool quoted = false;
    for (const char *c = seed_text; *c; c++) {
        line += *c == '\n';
        if (*c == '\\' && quoted)
            c++;
        else if (*c == '"')
            quoted = !quoted;
        if (quoted || *c != '{') continue;
        char *text = chm_format("%.*s\"zz_unknown\": 1,%s", (int)(c + 1 - seed_text), seed_text, c + 1);
        chm_card *card;
        if (parse_set(text, &card, NULL, 0) != CHM_E_CONFIG) fail_msg("line %d: an unknown key was accepted", line);
        int at = 0;
        if (sscanf(chm_error(), "card.json:%d: ", &at) != 1 || at != line || !strstr(chm_error(), "zz_unknown: "))
            fail_msg("line %d: %s", line, chm_error());
        chm_free(text);
        tried++;
    }
    assert_int_equal(tried, 93); /* objects of the seed card */
}

/* ---- overlays ---- */

static char directory[256];

static char *write_file(const char *name, const char *text) {
    char *path = chm_format("%s/%s", directory, name);
    FILE *f = path ? fopen(path, "w") : NULL;
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
    return path;
}

static int make_directory(void **state) {
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%s/chm-config-XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(directory) ? 0 : -1;
}

static int remove_directory(void **state) {
    (void)state;
    static const char *const names[] = {"card.json", "a.ini", "b.ini"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(names); i++) {
        char *path = chm_format("%s/%s", directory, names[i]);
        if (path) unlink(path);
        chm_free(path);
    }
    unsetenv("CHIMERA_GD__CHUNK_SIZE");
    return rmdir(directory);
}

static void order_of_overlays(void **state) {
    (void)state;
    char *path = write_file("card.json", smallest);
    char *a = write_file("a.ini", "; first\n"
                                  "hidden_act = swiglu\n"
                                  "[gd]\n"
                                  "chunk_size = 1 ; of the ini\n"
                                  "value_expand=2\n"
                                  "  short_conv: 2\r\n"
                                  "[training.pretrain]\n"
                                  "lr = 0.25\n"
                                  "tokens = 20M\n"
                                  "schedule = wsd\n");
    char *b = write_file("b.ini", "gated_deltanet.value_expand = 3\ntraining.phases.0.lr = 0.125\n");
    const char *ini[] = {a, b};
    const char *set[] = {"gd.short_conv=8",
                         "gd.short_conv=0",
                         "quantization.weight_values=-1, 0, 1",
                         "_name_or_path=\"quoted \\u00e9\"",
                         "backbone.layer_aliases.NEW=gd",
                         "backbone.layer_pattern=NEW GD"};
    struct chm_card_options options = {.registry = &registry,
                                       .ini = ini,
                                       .ini_count = 2,
                                       .set = set,
                                       .set_count = CHM_ARRAY_COUNT(set),
                                       .read_environment = true};
    setenv("CHIMERA_GD__CHUNK_SIZE", "16", 1);
    setenv("CHIMERA_BACKEND", "scalar", 1);
    setenv("CHIMERA__V", "7", 1);
    setenv("CHIMERA_TRAINING__PRETRAIN__WEIGHT_DECAY", "0.5", 1);
    chm_card *card = NULL;
    int status = chm_card_load(path, &options, &card);
    unsetenv("CHIMERA_GD__CHUNK_SIZE");
    unsetenv("CHIMERA_BACKEND");
    unsetenv("CHIMERA__V");
    unsetenv("CHIMERA_TRAINING__PRETRAIN__WEIGHT_DECAY");
    if (status) fail_msg("%s", chm_error());
    char *line = chm_format("%s:5", a);
    assert_value(card, "gd.chunk_size", "16", "CHIMERA_GD__CHUNK_SIZE");
    chm_free(line);
    line = chm_format("%s:1", b);
    assert_value(card, "gated_deltanet.value_expand", "3", line);
    chm_free(line);
    assert_value(card, "gd.short_conv", "0", "--set");
    line = chm_format("%s:2", b);
    assert_value(card, "training.pretrain.lr", "0.125", line);
    chm_free(line);
    line = chm_format("%s:9", a);
    assert_value(card, "training.pretrain.tokens", "20000000", line);
    chm_free(line);
    assert_value(card, "_v", "\"7\"", "CHIMERA__V");
    assert_value(card, "_name_or_path", "\"quoted \xc3\xa9\"", "--set");
    assert_value(card, "quantization.weight_values", "[-1, 0, 1]", "--set");
    const chm_train_config *t = chm_card_train(card);
    assert_true(t->lr == 0.125 && t->weight_decay == 0.5 && t->tokens == 20000000);
    assert_int_equal(t->schedule, CHM_SCHEDULE_WSD);
    assert_string_equal(chm_card_model(card)->mixer[0], "gd");
    struct gd gd;
    chm_arena arena;
    chm_arena_init(&arena);
    assert_int_equal(chm_card_plugin_options(card, &plugin_gd, &gd, &arena), CHM_OK);
    assert_int_equal(gd.chunk_size, 16);
    assert_int_equal(gd.value_expand, 3);
    assert_int_equal(gd.short_conv, 0);
    assert_int_equal(gd.state_size, 32);
    assert_true(gd.output_gate && gd.chunkwise && !gd.allow_neg_eigval);
    chm_arena_finish(&arena);
    chm_card_destroy(card);
    chm_free(path);
    chm_free(a);
    chm_free(b);
}

static void mistakes_of_set(void **state) {
    (void)state;
    static const struct {
        const char *set, *sentence;
    } list[] = {
        {"noequals", "--set: 'noequals' is not KEY=VALUE"},
        {"=1", "--set: '=1' is not KEY=VALUE"},
        {"a..b=1", "--set: 'a..b' is no key; keys are names with dots between"},
        {"hiden_size=1", "--set: hiden_size: no key 'hiden_size' in a model card (did you mean 'hidden_size'?)"},
        {"gd.chunksize=1",
         "--set: gd.chunksize: no key 'chunksize' in gated_deltanet (did you mean 'gated_deltanet.chunk_size'?)"},
        {"gd.chunk_size=0", "--set: gated_deltanet.chunk_size: expected integer 1..4096, got 0"},
        {"gd.chunk_size=many", "--set: gated_deltanet.chunk_size: expected integer 1..4096, got \"many\""},
        {"gd.output_gate=yes", "--set: gated_deltanet.output_gate: expected true or false, got \"yes\""},
        {"training.pretrian.lr=1", "--set: training.pretrian.lr: no key 'pretrian' in training (did you mean "
                                   "'training.pretrain'?)"},
        {"training.phases[3].lr=1", "--set: training.phases[3].lr: no key '3' in training.phases, which has pretrain"},
        {"training=1", "--set: training: a section, not a value; set one of its keys"},
        {"training.phases=1", "--set: training.phases: a section, not a value; set one of its keys"},
        {"hidden_size.x=1", "--set: hidden_size.x: hidden_size is a value and has no keys"},
        {"_v=\xff", "--set: _v: the value is not UTF-8 text"},
        {"token_ids=1,2,3", "--set: token_ids: expected list of 2 integers 0..16777215, got [1, 2, 3]"},
        {"quantization.embedding=int4",
         "--set: quantization.embedding: expected one of ternary, int8, f32, got \"int4\" (did you mean 'int8'?)"},
        {"efla.x=1", "--set: efla.x: no key 'x' in efla, which has enabled, target_layers"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(list); i++) {
        chm_card *card = NULL;
        assert_int_equal(parse_set(plain_text, &card, &list[i].set, 1), CHM_E_CONFIG);
        /* unknown keys leave nothing behind; values that do not fit are reported once */
        char first[600];
        snprintf(first, sizeof first, "%.*s", (int)strcspn(chm_error(), "\n"), chm_error());
        assert_string_equal(first, list[i].sentence);
    }
}

static void mistakes_of_variables(void **state) {
    (void)state;
    static const struct {
        const char *name, *value, *sentence;
    } list[] = {
        {"CHIMERA_BACKND", "scalar",
         "CHIMERA_BACKND: no key 'BACKND' in a model card (did you mean 'CHIMERA_BACKEND'?)"},
        {"CHIMERA_HIDEN_SIZE", "1",
         "CHIMERA_HIDEN_SIZE: no key 'HIDEN_SIZE' in a model card (did you mean 'CHIMERA_HIDDEN_SIZE'?)"},
        {"CHIMERA_GD__CHUNKSIZE", "1",
         "CHIMERA_GD__CHUNKSIZE: no key 'CHUNKSIZE' in gated_deltanet (did you mean "
         "'CHIMERA_GATED_DELTANET__CHUNK_SIZE'?)"},
        {"CHIMERA_GATED_DELTANET__CHUNK_SIZE", "0",
         "CHIMERA_GATED_DELTANET__CHUNK_SIZE: gated_deltanet.chunk_size: expected integer 1..4096, got 0"},
        {"CHIMERA_TRAINING", "0", "CHIMERA_TRAINING: a section, not a value; set one of its keys"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(list); i++) {
        struct chm_card_options options = {.registry = &registry, .read_environment = true};
        chm_card *card = NULL;
        setenv(list[i].name, list[i].value, 1);
        int status = chm_card_parse("card.json", plain_text, plain_bytes, &options, &card);
        unsetenv(list[i].name);
        assert_int_equal(status, CHM_E_CONFIG);
        assert_string_equal(chm_error(), list[i].sentence);
    }
    struct chm_card_options options = {.registry = &registry, .read_environment = true};
    chm_card *card = NULL;
    setenv("CHIMERA_GD__CHUNK_SIZE", "1", 1);
    setenv("CHIMERA_GATED_DELTANET__CHUNK_SIZE", "2", 1);
    int status = chm_card_parse("card.json", plain_text, plain_bytes, &options, &card);
    options.read_environment = false;
    int without = chm_card_parse("card.json", plain_text, plain_bytes, &options, &card);
    unsetenv("CHIMERA_GD__CHUNK_SIZE");
    unsetenv("CHIMERA_GATED_DELTANET__CHUNK_SIZE");
    assert_int_equal(status, CHM_E_CONFIG);
    assert_int_equal(without, CHM_OK);
    assert_string_equal(chm_error(), "CHIMERA_GD__CHUNK_SIZE: already set by CHIMERA_GATED_DELTANET__CHUNK_SIZE");
    chm_card_destroy(card);
}

static void mistakes_of_ini(void **state) {
    (void)state;
    static const struct {
        const char *text, *sentence; /* after the name of the file */
    } list[] = {
        {"[gd]\nchunksize = 1\n",
         ":2: gd.chunksize: no key 'chunksize' in gated_deltanet (did you mean 'gated_deltanet.chunk_size'?)"},
        {"\n\n[gd]\nchunk_size = 0\n", ":4: gated_deltanet.chunk_size: expected integer 1..4096, got 0"},
        {"[gd]\nchunk_size = 1\ngated_deltanet.chunk_size = 2\n",
         ":3: gd.gated_deltanet.chunk_size: no key 'gated_deltanet' in gated_deltanet, which has formulation, "
         "alpha_gate, beta_gate, state_size, chunkwise_parallel, chunk_size, key_norm, value_expand, output_gate, "
         "short_conv, allow_neg_eigval, efla"},
        {"gd.chunk_size = 1\ngated_deltanet.chunk_size = 2\n", ":2: gated_deltanet.chunk_size: already set on line 1"},
        {"[gd\n", ":1: expected [section] or key = value"},
        {"[gd]\nno value\n", ":2: expected [section] or key = value"},
        {"[a_section_name_that_is_much_longer_than_any_that_a_card_has]\n",
         ":1: section name of 59 characters; at most 49"},
        {"_v = \xc3(\n", ":1: _v: the value is not UTF-8 text"},
        {"_v\xc3( = 1\n", ":1: the key is not UTF-8 text"},
        /* nothing that a terminal would obey */
        {"hid\033x\a_\xc2\x9bwidth = 1\n", ":1: hid?x?_?width: no key 'hid?x?_?width' in a model card"},
        {"[g\033c]\nx = 1\n", ":2: g?c.x: no key 'g?c' in a model card"},
        {"hidden_size = a\tb\n", ":1: hidden_size: expected integer 1..65536, got \"a\\tb\""},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(list); i++) {
        char *path = write_file("a.ini", list[i].text);
        const char *ini = path;
        struct chm_card_options options = {.registry = &registry, .ini = &ini, .ini_count = 1};
        chm_card *card = NULL;
        assert_int_equal(chm_card_parse("card.json", plain_text, plain_bytes, &options, &card), CHM_E_CONFIG);
        assert_true(strncmp(chm_error(), path, strlen(path)) == 0);
        assert_string_equal(chm_error() + strlen(path), list[i].sentence);
        chm_free(path);
    }
    char *text = chm_format("[gd]\n_v = %0300d\n", 0), *path = write_file("a.ini", text);
    const char *ini = path;
    struct chm_card_options options = {.registry = &registry, .ini = &ini, .ini_count = 1};
    chm_card *card = NULL;
    assert_int_equal(chm_card_parse("card.json", plain_text, plain_bytes, &options, &card), CHM_E_CONFIG);
    assert_non_null(strstr(chm_error(), ":2: line of 305 characters; at most"));
    ini = "/nonexistent/x.ini";
    assert_int_equal(chm_card_parse("card.json", plain_text, plain_bytes, &options, &card), CHM_E_DATA);
    chm_free(path);
    chm_free(text);
    assert_int_equal(chm_ini_parse("x.ini", "a\0b", 3, NULL, NULL), CHM_E_CONFIG);
}

static void shipped_files(void **state) {
    (void)state;
    const char *root = getenv("CHM_SOURCE_ROOT");
    char *ini = chm_format("%s/etc/chimera.ini", root ? root : ".");
    static const char *const cards[] = {"chimera-shakespeare.json"}; /* the others have options that plugins bring */
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cards); i++) {
        char *path = chm_format("%s/etc/%s", root ? root : ".", cards[i]);
        const char *list = ini;
        struct chm_card_options options = {.registry = &registry, .ini = &list, .ini_count = 1};
        chm_card *card = NULL;
        if (chm_card_load(path, &options, &card)) fail_msg("%s", chm_error());
        const char *origin;
        assert_non_null(chm_card_get(card, "gd.chunk_size", &origin));
        assert_non_null(strstr(origin, "chimera.ini:"));
        chm_card_destroy(card);
        chm_free(path);
    }
    chm_free(ini);
}

/* ---- what comes out ---- */

static void all_option_types(void **state) {
    (void)state;
    char *text = replaced(smallest, "\"GD gd\"}",
                          "\"ALL GD\"},\n\"all_types\": {\"whole\": \"4M\", \"word\": \"fast\", "
                          "\"text\": \"a \\\"b\\\", c\", \"wholes\": [9], \"reals\": [1, 2.5], "
                          "\"words\": [\"c\", \"a\"], \"§\": [\"x\"]}");
    chm_card *card = load(text);
    struct all all;
    chm_arena arena;
    chm_arena_init(&arena);
    memset(&all, 0, sizeof all);
    if (chm_card_plugin_options(card, &plugin_all, &all, &arena)) fail_msg("%s", chm_error());
    assert_true(all.flag);
    assert_int_equal(all.whole, 4000000);
    assert_true(all.real == 0.5);
    assert_int_equal(all.word, 1);
    assert_string_equal(all.text, "a \"b\", c");
    assert_int_equal(all.wholes.count, 1);
    assert_int_equal(all.wholes.item[0], 9);
    assert_int_equal(all.reals.count, 2);
    assert_true(all.reals.item[0] == 1 && all.reals.item[1] == 2.5);
    assert_int_equal(all.words.count, 2);
    assert_string_equal(all.words.item[0], "c");
    chm_card_destroy(card);
    chm_free(text);

    /* no section: defaults */
    card = load(smallest);
    memset(&all, 0, sizeof all);
    assert_int_equal(chm_card_plugin_options(card, &plugin_all, &all, &arena), CHM_OK);
    assert_int_equal(all.whole, 7);
    assert_string_equal(all.text, "some text");
    assert_int_equal(all.wholes.count, 2);
    chm_card_destroy(card);
    chm_arena_finish(&arena);
}

/* The resolved card, loaded again, is the same card. */
static void json_round_trip(void **state) {
    (void)state;
    const char *texts[] = {seed_text, plain_text, smallest};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(texts); i++) {
        chm_card *card = load(texts[i]);
        char *once = chm_card_json(card);
        assert_non_null(once);
        chm_card *again = load(once);
        char *twice = chm_card_json(again);
        assert_string_equal(once, twice);
        assert_true(memcmp(chm_card_train(card), chm_card_train(again), offsetof(chm_train_config, tokens)) != 0 ||
                    chm_card_train(card) != chm_card_train(again));
        assert_true(chm_card_train(card)->lr == chm_card_train(again)->lr);
        assert_int_equal(chm_card_model(card)->effective_depth, chm_card_model(again)->effective_depth);
        chm_free(once);
        chm_free(twice);
        chm_card_destroy(card);
        chm_card_destroy(again);
    }
    /* keys stay in the card's order, overrides are in */
    const char *set[] = {"hidden_size=128", "num_heads=4"};
    chm_card *card = NULL;
    if (parse_set(smallest, &card, set, 2)) fail_msg("%s", chm_error());
    char *json = chm_card_json(card);
    assert_int_equal(strncmp(json, "{\n  \"hidden_size\": 128,\n  \"intermediate_size\": 128,\n", 51), 0);
    chm_free(json);
    chm_card_destroy(card);
}

static void resolved_listing(void **state) {
    (void)state;
    const char *set = "gd.chunk_size=32";
    chm_card *card = NULL;
    if (parse_set(smallest, &card, &set, 1)) fail_msg("%s", chm_error());
    chm_string out = {0};
    assert_int_equal(chm_card_resolved(card, &out), CHM_OK);
    assert_int_equal(strncmp(out.text, "hidden_size ", 12), 0);
    static const char *const keys[][2] = {{"\nvocab_size ", "  card.json:7\n"},
                                          {"\ngated_deltanet.chunk_size ", "  --set\n"},
                                          {"\ntraining.phases.0.lr ", "  default\n"}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(keys); i++) {
        const char *at = strstr(out.text, keys[i][0]);
        assert_non_null(at);
        const char *end = strchr(at + 1, '\n');
        size_t n = strlen(keys[i][1]);
        assert_int_equal(strncmp(end + 1 - n, keys[i][1], n), 0);
    }
    chm_string_finish(&out);
    chm_card_destroy(card);
}

static void numbers_read_back(void **state) {
    (void)state;
    static const struct {
        double x;
        const char *text;
    } list[] = {{0.1, "0.1"},   {1, "1.0"},         {1e-6, "1e-6"},  {1e300, "1e300"}, {1.0 / 3, "0.3333333333333333"},
                {-0.0, "-0.0"}, {5e-324, "5e-324"}, {3e-4, "0.0003"}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(list); i++) {
        chm_string s = {0};
        assert_true(chm_value_number(list[i].x, &s));
        double back = strtod(s.text, NULL);
        assert_memory_equal(&back, &list[i].x, sizeof back);
        if (i != 6) assert_string_equal(s.text, list[i].text);
        chm_string_finish(&s);
    }
}

/* ---- the schema itself ---- */

static void schema_is_sound(void **state) {
    (void)state;
    size_t n;
    const struct chm_schema_row *rows = chm_schema(&n);
    for (size_t i = 0; i < n; i++) {
        const struct chm_schema_row *row = &rows[i];
        if (!row->option.doc || !row->option.doc[0]) fail_msg("%s has no sentence", row->path);
        if (row->shape == CHM_SHAPE_VALUE && row->option.def &&
            chm_option_parse(&row->option, row->option.def, NULL, NULL))
            fail_msg("default of %s: %s", row->path, chm_error());
        if ((row->shape == CHM_SHAPE_TUPLE || row->shape == CHM_SHAPE_TUPLES) && !row->tuple)
            fail_msg("%s has no item types", row->path);
        if (row->shape == CHM_SHAPE_VALUE && row->option.type == CHM_OPT_ENUM && !row->option.choices)
            fail_msg("%s has no choices", row->path);
        const char *dot = strrchr(row->path, '.');
        bool parent = !dot;
        for (size_t j = 0; j < n; j++) {
            if (j != i && strcmp(rows[j].path, row->path) == 0) fail_msg("%s stands twice", row->path);
            if (dot && strlen(rows[j].path) == (size_t)(dot - row->path) &&
                strncmp(rows[j].path, row->path, (size_t)(dot - row->path)) == 0)
                parent = rows[j].shape != CHM_SHAPE_VALUE;
        }
        if (!parent) fail_msg("%s stands under nothing", row->path);
    }
}

/* ---- hostile input ---- */

static void random_mutations(void **state) {
    (void)state;
    int accepted = 0, refused = 0;
    for (uint64_t run = 0; run < 3000; run++) {
        char *text = chm_alloc(plain_bytes + 1);
        assert_non_null(text);
        memcpy(text, plain_text, plain_bytes);
        uint64_t changes = 1 + chm_below_at(7, CHM_RANDOM_TEST, 0, run, 3);
        for (uint32_t c = 0; c < changes; c++) {
            size_t at = (size_t)chm_below_at(7, CHM_RANDOM_TEST, 3 * c + 1, run, plain_bytes);
            text[at] = chm_below_at(7, CHM_RANDOM_TEST, 3 * c + 2, run, 2)
                           ? (char)chm_below_at(7, CHM_RANDOM_TEST, 3 * c + 3, run, 256)
                           : "0123456789{}[]\",:"[chm_below_at(7, CHM_RANDOM_TEST, 3 * c + 3, run, 17)];
        }
        struct chm_card_options options = {.registry = &registry};
        chm_card *card = NULL;
        int status = chm_card_parse("card.json", text, plain_bytes, &options, &card);
        if (status == CHM_OK) {
            accepted++;
            char *json = chm_card_json(card);
            chm_card *again = load(json);
            chm_card_destroy(again);
            chm_free(json);
        } else {
            assert_int_equal(status, CHM_E_CONFIG);
            assert_null(card);
            assert_int_equal(strncmp(chm_error(), "card.json", 9), 0);
            refused++;
        }
        chm_card_destroy(card);
        chm_free(text);
    }
    if (accepted < 50 || refused < 1000) fail_msg("%d accepted, %d refused", accepted, refused);
}

/* Every allocation fails once; the card is either whole or not there. */
static void out_of_memory(void **state) {
    (void)state;
    char *a = write_file("a.ini", "[gd]\nchunk_size = 1\n[training.pretrain]\nlr = 0.25\n");
    const char *ini[] = {a};
    const char *set[] = {"gd.short_conv=2", "quantization.weight_values=-1, 0, 1"};
    struct chm_card_options options = {
        .registry = &registry, .ini = ini, .ini_count = 1, .set = set, .set_count = 2, .read_environment = true};
    setenv("CHIMERA_GD__CHUNK_SIZE", "16", 1);
    char *wrong = replaced(smallest, "64", "\"wide\"");
    const char *texts[] = {smallest, wrong};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(texts); i++) {
        bool done = false;
        for (long n = 0; !done && n < 100000; n++) {
            chm_card *card = NULL;
            char *json = NULL;
            chm_string out = {0};
            struct gd gd;
            chm_arena arena;
            chm_arena_init(&arena);
            chm_alloc_fail_after(n);
            int status = chm_card_parse("card.json", texts[i], strlen(texts[i]), &options, &card);
            if (status == CHM_OK) status = chm_card_resolved(card, &out);
            if (status == CHM_OK) status = chm_card_plugin_options(card, &plugin_gd, &gd, &arena);
            if (status == CHM_OK) {
                json = chm_card_json(card);
                if (!json) status = CHM_E_MEMORY;
            }
            chm_arena_finish(&arena);
            chm_alloc_fail_after(-1);
            if (status != CHM_E_MEMORY) {
                if (status != (i == 0 ? CHM_OK : CHM_E_CONFIG))
                    fail_msg("after %ld allocations: status %d, %s", n, status, chm_error());
                assert_true(n > 100);
                done = true;
            }
            chm_string_finish(&out);
            chm_free(json);
            chm_card_destroy(card);
        }
        assert_true(done);
    }
    unsetenv("CHIMERA_GD__CHUNK_SIZE");
    chm_free(wrong);
    chm_free(a);
}

static void destroy_nothing(void **state) {
    (void)state;
    chm_card_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(seed_structs),
        cmocka_unit_test(seed_unbuilt),
        cmocka_unit_test(switched_on),
        cmocka_unit_test(plain_structs),
        cmocka_unit_test(smallest_card),
        cmocka_unit_test(mistakes_small),
        cmocka_unit_test(mistakes_seed),
        cmocka_unit_test(exact_step),
        cmocka_unit_test(options_in_objects),
        cmocka_unit_test(mistakes_of_syntax),
        cmocka_unit_test(many_problems),
        cmocka_unit_test(no_plugins),
        cmocka_unit_test(every_scalar),
        cmocka_unit_test(every_section),
        cmocka_unit_test_setup_teardown(order_of_overlays, make_directory, remove_directory),
        cmocka_unit_test(mistakes_of_set),
        cmocka_unit_test(mistakes_of_variables),
        cmocka_unit_test_setup_teardown(mistakes_of_ini, make_directory, remove_directory),
        cmocka_unit_test(shipped_files),
        cmocka_unit_test(all_option_types),
        cmocka_unit_test(json_round_trip),
        cmocka_unit_test(resolved_listing),
        cmocka_unit_test(numbers_read_back),
        cmocka_unit_test(schema_is_sound),
        cmocka_unit_test(random_mutations),
        cmocka_unit_test_setup_teardown(out_of_memory, make_directory, remove_directory),
        cmocka_unit_test(destroy_nothing),
    };
    /* what the caller's environment sets is no part of these tests */
    for (char **e = environ; *e;) {
        char name[128];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
        if (strncmp(name, "CHIMERA_", 8) == 0 && unsetenv(name) == 0)
            e = environ; /* it has moved */
        else
            e++;
    }
    return cmocka_run_group_tests(tests, read_cards, free_cards);
}
