/*
 * planned.c: what layers will declare that a card may name already but that are not built. A card's arithmetic can then
 * be checked today; as soon as the plugin is there, its own declaration counts.
 */
#include "model/declared.h"
#include <stdlib.h>
#include <string.h>

/* ---- reading a resolved card ---- */

double chm_card_number(const chm_card *card, const char *key, double otherwise) {
    const char *text = chm_card_get(card, key, NULL);
    if (!text) return otherwise;
    char *end;
    const double v = strtod(text, &end);
    return end == text || *end ? otherwise : v;
}

int chm_card_numbers(const chm_card *card, const char *key, double *out, int cap) {
    const char *at = chm_card_get(card, key, NULL);
    int count = 0;
    while (at && *at) {
        if (*at == '"') { /* texts may stand between: [8192, "uint64_x128"] */
            for (at++; *at && *at != '"'; at++) at += *at == '\\' && at[1];
            at += *at == '"';
            continue;
        }
        char *end;
        const double v = strtod(at, &end);
        if (end == at) {
            at++;
            continue;
        }
        if (count < cap) out[count] = v;
        count++;
        at = end;
    }
    return count;
}

bool chm_card_on(const chm_card *card, const char *key) {
    const char *text = chm_card_get(card, key, NULL);
    return text && !strcmp(text, "true");
}

bool chm_card_says(const chm_card *card, const char *key, const char *word) {
    const char *text = chm_card_get(card, key, NULL);
    return text && strstr(text, word);
}

/* ---- pieces ---- */

static void matrices(chm_declare *d, const char *const *names, int count, int64_t out, int64_t in) {
    for (int i = 0; i < count; i++) chm_declare_matrix(d, names[i], CHM_ROLE_TERNARY, chm_normal(0), out, in);
}

static void gates(chm_declare *d, const char *const *names, int count, int64_t heads, int64_t width, bool bias) {
    char name[64];
    for (int i = 0; i < count; i++) {
        chm_declare_matrix(d, names[i], CHM_ROLE_FULL, chm_normal(0), heads, width);
        if (!bias) continue;
        snprintf(name, sizeof name, "%s_bias", names[i]);
        chm_declare_vector(d, name, CHM_ROLE_NORM, chm_constant(0), heads);
    }
}

static void convolutions(chm_declare *d, int64_t heads, int64_t width) {
    static const char *const names[] = {"conv_q", "conv_k", "conv_v"};
    for (int i = 0; i < 3; i++) {
        chm_declare_matrix(d, names[i], CHM_ROLE_FULL, chm_uniform(-0.5f, 0.5f), width, 4);
        chm_declare_conv_state(d, names[i], heads, width, 4);
    }
}

static void vector(chm_declare *d, const char *name, enum chm_role role, int64_t n) {
    chm_declare_vector(d, name, role, chm_constant(1), n);
}

static void before_output(chm_declare *d, const chm_layer_info *info, int64_t width) {
    if (info->norm_before_linear) vector(d, "o_norm", CHM_ROLE_NORM, width);
}

/* ---- layers ---- */

/* span-knot: gated DeltaNet and an encoder and decoder of sketch bits, with three mosaics of earlier sketches */
static void span_knot(const chm_card *card, chm_declare *d, const chm_layer_info *info) {
    static const char *const linears[] = {"q", "k", "v", "g"}, *const gate[] = {"a", "b"};
    const int64_t inner = info->heads * info->head_dim, dim = info->head_dim;
    double sketch[2] = {8192};
    chm_card_numbers(card, "braid_state.semantic_sketch", sketch, 1);
    const int64_t bits = sketch[0] >= 64 ? (int64_t)sketch[0] : 64, words = bits / 64;
    matrices(d, linears, 4, inner, info->width);
    matrices(d, (const char *const[]){"o"}, 1, info->width, inner);
    convolutions(d, info->heads, inner);
    gates(d, gate, 2, info->heads, info->width, false);
    vector(d, "A_log", CHM_ROLE_NORM, info->heads);
    vector(d, "dt_bias", CHM_ROLE_NORM, info->heads);
    vector(d, "head_norm", CHM_ROLE_NORM, dim);
    before_output(d, info, inner);
    matrices(d, (const char *const[]){"encode"}, 1, bits, info->width);
    matrices(d, (const char *const[]){"decode"}, 1, info->width, bits);
    vector(d, "gamma", CHM_ROLE_FULL, info->width);
    if (info->norm_before_linear) vector(d, "sketch_norm", CHM_ROLE_NORM, info->width);
    chm_declare_state(d, "memory", CHM_F32, info->heads, 2, (const int64_t[]){dim, dim});
    chm_declare_state(d, "mosaics", CHM_U64, 1, 2, (const int64_t[]){3, words});
}

bool chm_planned_declare(const chm_card *card, const char *name, chm_declare *d, const chm_layer_info *info) {
    static const struct {
        const char *name;
        void (*declare)(const chm_card *card, chm_declare *d, const chm_layer_info *info);
    } planned[] = {{"sk", span_knot}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(planned); i++)
        if (!strcmp(planned[i].name, name)) {
            planned[i].declare(card, d, info);
            return true;
        }
    return false;
}
