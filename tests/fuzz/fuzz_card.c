/* The model card reader on arbitrary bytes: what it accepts must come out as a card that reads back the same. */
#include "config/card.h"
#include "fuzz.h"

struct instance {
    bool flag;
    int64_t whole;
    double real;
    int32_t word;
    const char *text;
    struct chm_int_list wholes;
    struct chm_string_list words;
};
static const struct chm_option table[] = {
    {"output_gate", CHM_OPT_BOOL, offsetof(struct instance, flag), "true", 0, 0, NULL, "", 0, 0},
    {"chunk_size", CHM_OPT_INT, offsetof(struct instance, whole), "256", 1, 4096, NULL, "", 0, 0},
    {"scale", CHM_OPT_FLOAT, offsetof(struct instance, real), "0.5", -1, 1, NULL, "", 0, 0},
    {"key_norm", CHM_OPT_ENUM, offsetof(struct instance, word), "l2", 0, 0, "l2|none", "", 0, 0},
    {"formulation", CHM_OPT_STRING, offsetof(struct instance, text), NULL, 0, 0, NULL, "", 0, 0},
    {"taps", CHM_OPT_INT_LIST, offsetof(struct instance, wholes), "[1, 2]", 0, 9, NULL, "", 1, 4},
    {"names", CHM_OPT_STRING_LIST, offsetof(struct instance, words), NULL, 0, 0, NULL, "", 0, 0},
};
static const struct chm_plugin plugin = {.magic = CHM_MAGIC,
                                         .abi = CHM_ABI,
                                         .size = sizeof(struct chm_plugin),
                                         .kind = CHM_KIND_LAYER,
                                         .name = "gd",
                                         .section = "gated_deltanet",
                                         .aliases = "GD gated_deltanet",
                                         CHM_OPTIONS(table),
                                         .instance_size = sizeof(struct instance)};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct chm_plugin_file file = {.plugin = &plugin};
    chm_registry registry = {.files = &file, .file_count = 1};
    struct chm_card_options options = {.registry = &registry};
    chm_card *card = NULL, *again = NULL;
    int status = chm_card_parse("fuzz", (const char *)data, bytes, &options, &card);
    if (status) {
        /* a refusal says where, and leaves nothing */
        if (card || status != CHM_E_CONFIG || strncmp(chm_error(), "fuzz", 4) != 0) abort();
        return 0;
    }
    const chm_model_config *m = chm_card_model(card);
    if (m->layers < 1 || m->layers > CHM_MAX_LAYERS || m->heads * m->head_dim != m->width) abort();
    for (int64_t i = 0; i < m->layers; i++)
        if (!m->mixer[i] || !m->ffn[i]) abort();
    struct instance instance = {0};
    chm_arena arena;
    chm_arena_init(&arena);
    if (chm_card_plugin_options(card, &plugin, &instance, &arena)) abort();
    if (instance.whole < 1 || instance.whole > 4096 || instance.wholes.count < 1 || instance.wholes.count > 4) abort();
    chm_arena_finish(&arena);

    char *once = chm_card_json(card);
    if (!once || chm_card_parse("again", once, strlen(once), &options, &again)) {
        fprintf(stderr, "%s\n", chm_error());
        abort();
    }
    char *twice = chm_card_json(again);
    if (!twice || strcmp(once, twice) != 0) abort();
    chm_string listing = {0};
    if (chm_card_resolved(card, &listing)) abort();
    chm_string_finish(&listing);
    chm_free(once);
    chm_free(twice);
    chm_card_destroy(again);
    chm_card_destroy(card);
    return 0;
}

#define SHAPE                                                                                                          \
    "\"hidden_size\": 64,\n\"intermediate_size\": 128,\n\"num_hidden_layers\": 6,\n\"num_heads\": 2,\n"                \
    "\"head_dim\": 32,\n\"vocab_size\": 258,\n"

static const char *const seeds[] = {
    "{" SHAPE "\"backbone\": {\"layer_pattern\": \"GD\"}}",
    "{" SHAPE "\"§\": {\"r0\": \"2412.06464\"},\n\"quantization\": {\"weight_values\": [-1, 0, 1], \"§\": [\"r5\"]},\n"
    "\"backbone\": {\"layer_pattern\": \"GD XM TM\", \"layer_pattern_repeat\": 2.0,\n"
    "\"layer_aliases\": {\"XM\": \"xlstm_m\"}, \"layer_counts\": {\"GD\": 2, \"XM\": 2, \"TM\": 2},\n"
    "\"moe\": {\"layers\": [1, 5], \"total_params\": \"350M\"}},\n"
    "\"looping\": {\"prelude\": [0, 0], \"loop\": [1, 4], \"coda\": [5, 5], \"loop_range\": [1, 6]}}",
    "{" SHAPE "\"token_ids\": [256, 257],\n\"backbone\": {\"layer_pattern\": \"GD\"},\n"
    "\"gated_deltanet\": {\"chunk_size\": 64, \"output_gate\": false, \"scale\": 0.25, \"key_norm\": \"none\",\n"
    "\"formulation\": \"a \\\"b\\\" \\u00e9\", \"taps\": [1, 2, 3], \"names\": [\"x\", \"y, z\"], \"§\": \"r0\"},\n"
    "\"tsp_knot\": {\"energy_terms\": {\"debt\": [0.3, \"x\"]}},\n\"modes\": {\"fast\": {\"loops\": 1}},\n"
    "\"training\": {\"phases\": [{\"name\": \"pretrain\", \"tokens\": \"2T\", \"data\": [\"a\"], \"lr\": 1e-3},\n"
    "{\"name\": \"ctx_extend\", \"stages\": [[4096, \"main\"], [16384, 10, 1e-5]]}, {\"kind\": \"sft\"}]},\n"
    "\"context_tiers\": [{\"name\": \"x\", \"mb\": 3}], \"P3_ternary_compute\": {\"a\": {\"b\": [\"c\"]}}}",
    NULL,
};
static const char *const words[] = {"{",
                                    "}",
                                    "[",
                                    "]",
                                    ",",
                                    ":",
                                    "\"",
                                    "\\",
                                    "\\u0000",
                                    "null",
                                    "true",
                                    "-1",
                                    "1e400",
                                    "0.1",
                                    "9999999999",
                                    "\"4M\"",
                                    "\xff",
                                    "\xc3\xa9",
                                    "\n",
                                    "\"§\": 1,",
                                    "[[[[",
                                    "\"x\": {},",
                                    "GD ",
                                    "XM ",
                                    "\"enabled\": true,",
                                    "18446744073709551616",
                                    NULL};
static const struct fuzz fuzz = {.seeds = seeds, .words = words, .runs = 5000};
