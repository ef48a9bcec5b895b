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

/* mLSTM (arXiv:2405.04517): a matrix memory per head with its normaliser and stabiliser */
static void xlstm(const chm_card *card, chm_declare *d, const chm_layer_info *info) {
    static const char *const linears[] = {"q", "k", "v", "og"}, *const gate[] = {"i", "f"};
    const int64_t inner = info->heads * info->head_dim, dim = info->head_dim;
    (void)card;
    matrices(d, linears, 4, inner, info->width);
    matrices(d, (const char *const[]){"o"}, 1, info->width, inner);
    gates(d, gate, 2, info->heads, info->width, true);
    vector(d, "head_norm", CHM_ROLE_NORM, inner);
    before_output(d, info, inner);
    chm_declare_state(d, "memory", CHM_F32, info->heads, 2, (const int64_t[]){dim, dim + 1});
    chm_declare_state(d, "stabiliser", CHM_F32, info->heads, 1, (const int64_t[]){1});
}

/* Titans, memory as context (arXiv:2501.00663): a decayed core, a two-layer memory learnt at run time, slots */
static void titans(const chm_card *card, chm_declare *d, const chm_layer_info *info) {
    static const char *const linears[] = {"q", "k", "v"};
    static const char *const maps[] = {"b_k", "b_v", "b_kappa", "b_nu", "b_rho", "w1", "w2"};
    static const char *const gate[] = {"eta", "alpha", "theta"}, *const fast[] = {"delta1", "delta2", "s1", "s2"};
    const int64_t inner = info->heads * info->head_dim, dim = info->head_dim;
    const int64_t slots = (int64_t)chm_card_number(card, "titans.persistent_memory_slots", 64);
    const int64_t square[] = {info->heads, dim, dim}, kept[] = {info->heads, slots, dim};
    matrices(d, linears, 3, inner, info->width);
    matrices(d, (const char *const[]){"o"}, 1, info->width, inner);
    convolutions(d, info->heads, inner);
    gates(d, (const char *const[]){"gamma"}, 1, info->heads, info->width, false);
    vector(d, "A_log", CHM_ROLE_NORM, info->heads);
    vector(d, "dt_bias", CHM_ROLE_NORM, info->heads);
    gates(d, gate, 3, info->heads, info->width, true);
    vector(d, "tau", CHM_ROLE_NORM, info->heads);
    for (int i = 0; i < 7; i++) chm_declare_param(d, maps[i], CHM_ROLE_FULL, chm_normal(0), 3, square);
    chm_declare_param(d, "p_k", CHM_ROLE_FULL, chm_normal(0), 3, kept);
    chm_declare_param(d, "p_v", CHM_ROLE_FULL, chm_normal(0), 3, kept);
    vector(d, "y_norm", CHM_ROLE_NORM, dim);
    vector(d, "w_m", CHM_ROLE_NORM, dim);
    vector(d, "b_m", CHM_ROLE_NORM, dim);
    before_output(d, info, inner);
    for (int i = 0; i < 4; i++) chm_declare_state(d, fast[i], CHM_F32, info->heads, 2, square + 1);
    chm_declare_state(d, "core", CHM_F32, info->heads, 2, square + 1);
    /* rows of an unfinished chunk of 16: four vectors and three gates each */
    chm_declare_state(d, "log", CHM_F32, info->heads, 2, (const int64_t[]){15, 4 * dim + 3});
}

/* A mixture of SwiGLU experts with a balancing bias (arXiv:2408.15664) */
static void experts(const chm_card *card, chm_declare *d, const chm_layer_info *info) {
    const int64_t routed = (int64_t)chm_card_number(card, "backbone.moe.n_routed_experts", 16);
    const int64_t all = routed + (int64_t)chm_card_number(card, "backbone.moe.n_shared_experts", 1);
    const int64_t inner = (int64_t)chm_card_number(card, "backbone.moe.moe_intermediate_size", 1728);
    char name[64];
    chm_declare_matrix(d, "router", CHM_ROLE_FULL, chm_normal(0), routed, info->width);
    vector(d, "router_bias", CHM_ROLE_FULL, routed);
    for (int64_t e = 0; e < all; e++) {
        static const char *const names[] = {"gate", "up"};
        for (int i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "%s_%lld", names[i], (long long)e);
            chm_declare_matrix(d, name, CHM_ROLE_TERNARY, chm_normal(0), inner, info->width);
        }
        snprintf(name, sizeof name, "down_%lld", (long long)e);
        chm_declare_matrix(d, name, CHM_ROLE_TERNARY, chm_residual(), info->width, inner);
        snprintf(name, sizeof name, "down_norm_%lld", (long long)e);
        if (info->norm_before_linear) vector(d, name, CHM_ROLE_NORM, inner);
    }
}

bool chm_planned_declare(const chm_card *card, const char *name, chm_declare *d, const chm_layer_info *info) {
    static const struct {
        const char *name;
        void (*declare)(const chm_card *card, chm_declare *d, const chm_layer_info *info);
    } planned[] = {{"xlstm", xlstm}, {"titans", titans}, {"moe", experts}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(planned); i++)
        if (!strcmp(planned[i].name, name)) {
            planned[i].declare(card, d, info);
            return true;
        }
    return false;
}

/* A norm before the loop, and decay, step and input gain of every column (arXiv:2604.12946) */
int64_t chm_planned_loop(const chm_card *card) {
    return chm_card_on(card, "looping.enabled") ? 4 * chm_card_model(card)->width : 0;
}
