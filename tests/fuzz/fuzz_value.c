/*
 * The values of options: the first byte says of what kind, the rest is the text, as a card, --set or an environment
 * variable give it. Also counts ("4M") and lists of CPU features (--cpu-mask).
 */
#include "plugin/registry.h"
#include "fuzz.h"

struct instance {
    bool flag;
    int64_t whole;
    double real;
    int32_t word;
    const char *text, *chosen;
    struct chm_int_list wholes;
    struct chm_float_list reals;
    struct chm_string_list words, two;
};
static const struct chm_option table[] = {
    {"flag", CHM_OPT_BOOL, offsetof(struct instance, flag), "true", 0, 0, NULL, "", 0, 0},
    {"whole", CHM_OPT_INT, offsetof(struct instance, whole), "1", -5, 4096, NULL, "", 0, 0},
    {"real", CHM_OPT_FLOAT, offsetof(struct instance, real), "0.5", -1, 1, NULL, "", 0, 0},
    {"word", CHM_OPT_ENUM, offsetof(struct instance, word), "l2", 0, 0, "l2|none", "", 0, 0},
    {"text", CHM_OPT_STRING, offsetof(struct instance, text), NULL, 0, 0, NULL, "", 0, 0},
    {"chosen", CHM_OPT_STRING, offsetof(struct instance, chosen), "a", 0, 0, "a|b b", "", 0, 0},
    {"wholes", CHM_OPT_INT_LIST, offsetof(struct instance, wholes), "[1]", 0, 9, NULL, "", 1, 4},
    {"reals", CHM_OPT_FLOAT_LIST, offsetof(struct instance, reals), "[]", 0, 0, NULL, "", 0, 0},
    {"words", CHM_OPT_STRING_LIST, offsetof(struct instance, words), NULL, 0, 0, NULL, "", 0, 0},
    {"two", CHM_OPT_STRING_LIST, offsetof(struct instance, two), "[x, y]", 0, 0, "x|y", "", 2, 2},
};

static void try_option(const struct chm_option *o, const char *text) {
    struct instance v = {0};
    chm_arena arena;
    chm_arena_init(&arena);
    const int status = chm_option_parse(o, text, &v, &arena);
    CHECK(chm_option_parse(o, text, NULL, NULL) == status); /* only checked, it is the same */
    if (status) {
        CHECK(status == CHM_E_CONFIG && strncmp(chm_error(), o->name, strlen(o->name)) == 0);
    } else {
        CHECK(v.whole >= -5 && v.whole <= 4096 && v.real >= -1 && v.real <= 1 && v.word >= 0 && v.word <= 1);
        CHECK(!v.chosen || strcmp(v.chosen, "a") == 0 || strcmp(v.chosen, "b b") == 0);
        for (int64_t i = 0; i < v.wholes.count; i++) CHECK(v.wholes.item[i] >= 0 && v.wholes.item[i] <= 9);
        for (int64_t i = 0; i < v.reals.count; i++) CHECK(v.reals.item[i] - v.reals.item[i] == 0);
        for (int64_t i = 0; i < v.words.count; i++) CHECK(strlen(v.words.item[i]) <= strlen(text));
        CHECK(v.wholes.count <= 4 && (v.two.count == 0 || v.two.count == 2));
    }
    chm_arena_finish(&arena);
}

static void try_count(const char *text) {
    int64_t n = 0, again = 0;
    if (chm_parse_count(text, &n)) return;
    char *written = chm_format("%lld", (long long)n);
    CHECK(written && chm_parse_count(written, &again) == CHM_OK && again == n);
    chm_free(written);
}

static void try_mask(const char *text) {
    uint64_t mask = 0, again = 0;
    char names[512];
    if (chm_cpu_mask(text, &mask)) {
        CHECK(strstr(chm_error(), "no CPU feature '") != NULL);
        return;
    }
    if (mask == ~(uint64_t)0) return; /* all: also those without a name */
    chm_cpu_names(mask, names, sizeof names);
    CHECK(chm_cpu_mask(names, &again) == CHM_OK && again == mask);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes == 0) return 0;
    char *text = chm_format("%.*s", (int)(bytes - 1), (const char *)data + 1);
    CHECK(text != NULL);
    const size_t kind = data[0] - (size_t)'0';
    if (kind < CHM_ARRAY_COUNT(table))
        try_option(&table[kind], text);
    else if (data[0] == 'c')
        try_count(text);
    else
        try_mask(text);
    chm_free(text);
    return 0;
}

static const char *const seeds[] = {"0true",
                                    "1 4096",
                                    "1\"4M\"",
                                    "2-1e-3",
                                    "3\"l2\"",
                                    "4\"a \\u00e9 \\\" b\"",
                                    "4plain words ",
                                    "5b b",
                                    "6[1, 2, 9]",
                                    "7[1.5, -2e10, .5]",
                                    "8[\"a, b\", c d, \"\"]",
                                    "9x, y",
                                    "c4M",
                                    "c-1.25B",
                                    "c9223372T",
                                    "mavx2,fma",
                                    "mavx512 avx512_vnni",
                                    "mall",
                                    NULL};
static const char *const words[] = {
    "[",  "]",    ",",    "\"",  "\\",   "\\u0000",  "e9",   "-",  "+",    ".", "M",
    "T",  "null", "true", "0x1", "inf",  "nan",      " ",    "\t", "\xff", "x", "9223372036854775807",
    "[[", "avx2", "fma",  "all", "bmi2", "amx_int8", "neon", NULL};
static const struct fuzz fuzz = {.seeds = seeds, .words = words, .runs = 50000};
