/*
 * test_moe.c: the mixture of experts against a public implementation and an f64 oracle; what it learns without a
 * gradient; training that stops and goes on; and the second file that a model with experts has.
 */
#include "layer_help.h"
#include "model/b158.h"
#include "reference/ref_moe.h"

#include <ftw.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static const char card_text[] =
    "{\n"
    "  \"token_ids\": [256, 257], \"hidden_size\": 32, \"intermediate_size\": 64, \"num_hidden_layers\": 2,\n"
    "  \"num_heads\": 2, \"head_dim\": 16, \"vocab_size\": 258, \"initializer_range\": 0.08,\n"
    "  \"quantization\": {\"method\": \"bitnet\", \"embedding\": \"int8\"},\n"
    "  \"backbone\": {\"layer_pattern\": \"GD\",\n"
    "    \"moe\": {\"layers\": [1], \"n_routed_experts\": 5, \"moe_intermediate_size\": 192, \"bias_rate\": 0.01}},\n"
    "  \"tokenizer\": {\"type\": \"bytes\"},\n"
    "  \"training\": {\"phases\": [{\"name\": \"pretrain\", \"tokens\": 7680, \"seq_len\": 32, \"batch_tokens\": 256,\n"
    "    \"micro_tokens\": 128, \"lr\": 0.01, \"warmup_steps\": 3, \"seed\": 7}]},\n"
    "  \"diagnostics\": {\"report_interval_tokens\": 256}\n"
    "}\n";

/* ---- helpers ---- */

static const char *made(const char *name) {
    static char path[8][4400];
    static int turn;
    turn = (turn + 1) % 8;
    snprintf(path[turn], sizeof path[turn], "%s/%s", scratch, name);
    return path[turn];
}

static void write_text(const char *path, const char *text, size_t bytes) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static char *slurp(const char *path, size_t *bytes) {
    char *text = NULL;
    if (chm_read_file(path, UINT64_C(1) << 30, &text, bytes)) fail_msg("%s", chm_error());
    return text;
}

static void same_files(const char *a, const char *b) {
    size_t m, n;
    char *x = slurp(a, &m), *y = slurp(b, &n);
    assert_int_equal(m, n);
    assert_memory_equal(x, y, m);
    chm_free(x);
    chm_free(y);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
    (void)st, (void)type, (void)walk;
    return remove(path);
}
static void remove_tree(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static int set_up(void **state) {
    (void)state;
    if (layer_set_up("moe")) return -1;
    write_text(made("card.json"), card_text, sizeof card_text - 1);
    char *text = malloc(20000);
    assert_non_null(text);
    for (uint64_t i = 0; i < 20000; i++) {
        static const char letters[] = "the cat sat on a mat.\n";
        text[i] = letters[(i + chm_below_at(1, CHM_RANDOM_TEST, 1, i / 9, 22)) % 22];
    }
    write_text(made("words.txt"), text, 20000);
    free(text);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    remove_tree(scratch);
    chm_free(plugin_path);
    return 0;
}

static void must(int status) {
    if (status != CHM_OK) fail_msg("status %d: %s", status, chm_error());
}

static void refused(int status, int expected, const char *const *words) {
    if (status != expected) fail_msg("status %d, expected %d: %s", status, expected, status ? chm_error() : "");
    for (; *words; words++)
        if (!strstr(chm_error(), *words)) fail_msg("'%s' is not in: %s", *words, chm_error());
}
#define REFUSED(call, status, ...) refused(call, status, (const char *const[]){__VA_ARGS__, NULL})

/* ---- one layer, in our hands ---- */

struct alone {
    chm_layer_alone layer;
    chm_context *context;
    chm_runtime *runtime;
    float *choice, *weight; /* what the taps saw, [rows][chosen] */
    int64_t count;
};

static chm_tensor *listen(void *user, chm_graph *g, const char *name, chm_tensor *x) {
    struct alone *a = user;
    (void)g;
    float **to = !strcmp(name, "moe.choice") ? &a->choice : !strcmp(name, "moe.weight") ? &a->weight : NULL;
    if (!to) return x;
    a->count = x->rows * x->width;
    free(*to);
    *to = malloc((size_t)a->count * sizeof **to);
    assert_non_null(*to);
    memcpy(*to, x->data, (size_t)a->count * sizeof **to);
    return x;
}

static void open_alone(struct alone *a, chm_runtime *r, int64_t width, const char *const *sets, uint32_t count) {
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = count, .set = sets, .no_environment = 1};
    const chm_layer_options options = {.size = sizeof options, .plugin = "moe", .overlay = &overlay};
    *a = (struct alone){.runtime = r};
    must(chm_layer_alone_open(&a->layer, r, &options, NULL, width, 1 / sqrt((double)width), true));
    must(chm_model_randomise(a->layer.model, 1));
    must(chm_context_create(&r->kernels.kernels, r->pool, &a->layer.model->layout, 1e-6f, &a->context));
    chm_context_on_tap(a->context, listen, a);
}

static void close_alone(struct alone *a) {
    free(a->choice);
    free(a->weight);
    chm_context_destroy(a->context);
    chm_layer_alone_close(&a->layer);
}

static chm_param *param(const struct alone *a, const char *name) {
    for (int i = 0; i < a->layer.params; i++)
        if (!strcmp(chm_layer_alone_name(&a->layer, a->layer.param[i]->name), name)) return a->layer.param[i];
    fail_msg("no parameter %s", name);
    return NULL;
}

static chm_tensor *forward(struct alone *a, const float *x, int64_t rows, int64_t width, bool train, chm_tensor **in) {
    static int32_t parent[4096];
    static int64_t position[4096];
    for (int64_t r = 0; r < rows; r++) {
        parent[r] = r ? (int32_t)(r - 1) : ~0;
        position[r] = r;
    }
    static chm_rows plan;
    plan = (chm_rows){rows, parent, position};
    must(chm_context_begin(a->context, &plan, NULL, 1, train ? CHM_PASS_TRAIN : 0));
    *in = chm_input(a->context, rows, width, x, train ? CHM_TENSOR_GRAD : 0);
    chm_tensor *y = chm_layer_alone_forward(&a->layer, a->context, *in);
    if (!y) must(chm_context_status(a->context));
    return y;
}

/* ---- the oracle, with room for all it gives ---- */

enum { MOST_EXPERTS = 24 };

struct oracle {
    struct ref_moe r;
    double *gate[MOST_EXPERTS], *up[MOST_EXPERTS], *down[MOST_EXPERTS], *norm[MOST_EXPERTS];
    double *dgate[MOST_EXPERTS], *dup[MOST_EXPERTS], *ddown[MOST_EXPERTS], *dnorm[MOST_EXPERTS];
    void *kept[16 + 8 * MOST_EXPERTS];
    int keeps;
};

static double *keep(struct oracle *o, const float *from, int64_t n) {
    double *to = calloc((size_t)n + 1, sizeof *to);
    assert_non_null(to);
    for (int64_t i = 0; from && i < n; i++) to[i] = (double)from[i];
    return o->kept[o->keeps++] = to;
}

/* The sizes of o->r are given; `find` looks a parameter up by name, NULL: there is none. */
static void run_oracle(struct oracle *o, const float *(*find)(void *from, const char *name), void *from, const float *x,
                       const float *dy) {
    struct ref_moe *r = &o->r;
    const int64_t matrix = r->inner * r->width, cells = r->rows * r->width;
    char name[64];
    const bool normed = find(from, "down_norm_0") != NULL;
    for (int64_t e = 0; e < r->routed + r->shared; e++) {
        static const char *const parts[] = {"gate", "up", "down", "down_norm"};
        double **const value[] = {o->gate, o->up, o->down, o->norm},
                       **const grad[] = {o->dgate, o->dup, o->ddown, o->dnorm};
        for (int p = 0; p < 3 + normed; p++) {
            snprintf(name, sizeof name, "%s_%lld", parts[p], (long long)e);
            value[p][e] = keep(o, find(from, name), p == 3 ? r->inner : matrix);
            grad[p][e] = keep(o, NULL, p == 3 ? r->inner : matrix);
        }
    }
    r->router = keep(o, find(from, "router"), r->routed * r->width);
    r->bias = keep(o, find(from, "router_bias"), r->routed);
    r->drouter = keep(o, NULL, r->routed * r->width);
    r->gate = (const double *const *)o->gate;
    r->up = (const double *const *)o->up;
    r->down = (const double *const *)o->down;
    r->norm = normed ? (const double *const *)o->norm : NULL;
    r->dgate = o->dgate;
    r->dup = o->dup;
    r->ddown = o->ddown;
    r->dnorm = o->dnorm;
    r->x = keep(o, x, cells);
    r->dy = keep(o, dy, cells);
    r->y = keep(o, NULL, cells);
    r->dx = keep(o, NULL, cells);
    r->weight = keep(o, NULL, r->rows * r->chosen);
    r->choice = o->kept[o->keeps++] = calloc((size_t)(r->rows * r->chosen), sizeof *r->choice);
    assert_non_null(r->choice);
    ref_moe_run(r);
}

static void free_oracle(struct oracle *o) {
    while (o->keeps > 0) free(o->kept[--o->keeps]);
}

/* rms(a - want) / rms(want); where nothing is wanted, whether there is anything */
static double off(const float *a, const double *want, int64_t n) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        error += ((double)a[i] - want[i]) * ((double)a[i] - want[i]);
        size += want[i] * want[i];
    }
    if (!isfinite(error)) return INFINITY;
    return error == 0 ? 0 : size > 0 ? sqrt(error / size) : INFINITY;
}

/* ---- against the public implementation ---- */

static const char *const golden[] = {"moe_deepseek", "moe_many"};

static void test_golden(void **state) {
    (void)state;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(golden); i++) {
        expect_golden("moe", golden[i], made("out.safetensors"), (struct golden_bounds){1e-6, 1e-6, NULL});
        expect_same_bytes("moe", golden[i], made("out.safetensors"));
    }
}

static const float *find_in_file(void *from, const char *name) {
    const struct file *f = from;
    char full[96];
    snprintf(full, sizeof full, "params.%s", name);
    return chm_safetensors_find(f->st, full) ? floats(f, full, NULL) : NULL;
}

static int64_t stated(const struct file *f, const char *key) {
    const char *text = chm_safetensors_meta(f->st, key);
    assert_non_null(text);
    return strtoll(text, NULL, 10);
}

/* The oracle gives what they give, and chooses what they choose. */
static void test_oracle(void **state) {
    (void)state;
    char path[4096], name[96];
    struct file choices;
    golden_path("moe_choice", path);
    open_file(&choices, path);
    for (size_t g = 0; g < CHM_ARRAY_COUNT(golden); g++) {
        struct file f;
        int64_t n;
        golden_path(golden[g], path);
        open_file(&f, path);
        struct oracle o = {.r = {.width = stated(&f, "hidden_size"),
                                 .routed = stated(&f, "n_routed_experts"),
                                 .shared = stated(&f, "n_shared_experts"),
                                 .chosen = stated(&f, "num_experts_per_tok"),
                                 .inner = stated(&f, "moe_intermediate_size"),
                                 .eps = 1e-6}};
        const float *x = floats(&f, "x", &n);
        o.r.rows = n / o.r.width;
        run_oracle(&o, find_in_file, &f, x, floats(&f, "dy", NULL));
        assert_true(off(floats(&f, "y", NULL), o.r.y, n) < 1e-7);
        assert_true(off(floats(&f, "dx", NULL), o.r.dx, n) < 1e-7);
        assert_true(off(floats(&f, "grad.router", NULL), o.r.drouter, o.r.routed * o.r.width) < 1e-7);
        for (int64_t e = 0; e < o.r.routed + o.r.shared; e++) {
            const double *const grad[] = {o.dgate[e], o.dup[e], o.ddown[e]};
            static const char *const parts[] = {"gate", "up", "down"};
            for (int p = 0; p < 3; p++) {
                snprintf(name, sizeof name, "grad.%s_%lld", parts[p], (long long)e);
                if (!(off(floats(&f, name, NULL), grad[p], o.r.inner * o.r.width) < 1e-7)) fail_msg("%s", name);
            }
        }
        /* and the plugin */
        char set[5][64];
        const char *sets[5];
        static const char *const keys[] = {"n_routed_experts", "n_shared_experts", "num_experts_per_tok",
                                           "moe_intermediate_size"};
        for (int k = 0; k < 4; k++) {
            snprintf(set[k], sizeof set[k], "moe.%s=%lld", keys[k], (long long)stated(&f, keys[k]));
            sets[k] = set[k];
        }
        sets[4] = "rms_norm_before_every_linear=false";
        struct alone a;
        chm_tensor *in;
        chm_runtime *r = open_runtime(1, NULL);
        open_alone(&a, r, o.r.width, sets, 5);
        for (int p = 0; p < a.layer.params; p++) {
            chm_param *w = a.layer.param[p];
            const float *value = find_in_file(&f, chm_layer_alone_name(&a.layer, w->name));
            assert_non_null(value);
            memcpy(w->value, value, (size_t)w->count * sizeof *value);
        }
        forward(&a, x, o.r.rows, o.r.width, false, &in);
        snprintf(name, sizeof name, "%s.choice", golden[g]);
        const chm_st_tensor *t = chm_safetensors_find(choices.st, name);
        assert_non_null(t);
        assert_int_equal(a.count, o.r.rows * o.r.chosen);
        double worst = 0;
        snprintf(name, sizeof name, "%s.weight", golden[g]);
        const float *weight = floats(&choices, name, &n);
        assert_int_equal(n, a.count);
        for (int64_t i = 0; i < n; i++) {
            int64_t want;
            memcpy(&want, t->data + (size_t)i * sizeof want, sizeof want);
            assert_int_equal(o.r.choice[i], want);
            assert_true(a.choice[i] == (float)want);
            assert_true(fabs(o.r.weight[i] - (double)weight[i]) < 1e-7);
            worst = fmax(worst, fabs((double)a.weight[i] - (double)weight[i]));
        }
        print_message("%s: %lld choices the same, weights off by %.1e at most\n", golden[g], (long long)n, worst);
        assert_true(worst < 1e-6);
        close_alone(&a);
        chm_runtime_destroy(r);
        free_oracle(&o);
        close_file(&f);
    }
    close_file(&choices);
}

/* ---- extremes, against the oracle ---- */

static const float *find_in_layer(void *from, const char *name) {
    const struct alone *a = from;
    for (int i = 0; i < a->layer.params; i++)
        if (!strcmp(chm_layer_alone_name(&a->layer, a->layer.param[i]->name), name)) return a->layer.param[i]->value;
    return NULL;
}

enum edge { PLAIN, TIES, SATURATED, VANISHING, CROWDED };

static void test_extremes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        enum edge edge;
        int64_t rows, width, routed, shared, chosen, inner;
        bool norm;
    } cases[] = {
        {"one row", PLAIN, 1, 33, 5, 1, 2, 70, true},
        {"4096 rows", PLAIN, 4096, 16, 4, 1, 2, 8, true},
        {"no shared expert, no norm", PLAIN, 150, 33, 7, 0, 3, 70, false},
        {"every expert chosen", PLAIN, 70, 24, 4, 2, 4, 65, true},
        {"one expert", PLAIN, 20, 24, 1, 1, 1, 20, true},
        {"experts of width one, none shared", PLAIN, 77, 48, 3, 0, 2, 1, true},
        {"equal scores: the lower numbers", TIES, 50, 24, 6, 1, 3, 20, true},
        {"scores of 0 and 1", SATURATED, 90, 24, 6, 1, 2, 20, true},
        {"scores that vanish: the shared expert alone", VANISHING, 40, 24, 6, 1, 2, 20, true},
        {"all rows to the same two", CROWDED, 300, 24, 16, 1, 2, 20, true},
    };
    chm_runtime *r = open_runtime(2, NULL);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        const int64_t n = cases[i].rows * cases[i].width;
        char set[5][64];
        const char *const sets[] = {set[0], set[1], set[2], set[3], set[4]};
        snprintf(set[0], 64, "moe.n_routed_experts=%lld", (long long)cases[i].routed);
        snprintf(set[1], 64, "moe.n_shared_experts=%lld", (long long)cases[i].shared);
        snprintf(set[2], 64, "moe.num_experts_per_tok=%lld", (long long)cases[i].chosen);
        snprintf(set[3], 64, "moe.moe_intermediate_size=%lld", (long long)cases[i].inner);
        snprintf(set[4], 64, "rms_norm_before_every_linear=%s", cases[i].norm ? "true" : "false");
        struct alone a;
        open_alone(&a, r, cases[i].width, sets, 5);
        chm_param *router = param(&a, "router"), *bias = param(&a, "router_bias");
        float *x = chm_alloc_aligned((size_t)n * sizeof *x), *dy = chm_alloc_aligned((size_t)n * sizeof *dy);
        chm_normals(i, CHM_RANDOM_TEST, 1, n, x);
        chm_normals(i, CHM_RANDOM_TEST, 2, n, dy);
        chm_normals(i, CHM_RANDOM_TEST, 3, bias->count, bias->value);
        for (int64_t e = 0; e < bias->count; e++) bias->value[e] *= cases[i].edge == PLAIN ? 0.1f : 0;
        for (int64_t k = 0; k < router->count; k++)
            router->value[k] *= cases[i].edge == TIES || cases[i].edge == VANISHING ? 0
                                : cases[i].edge == SATURATED                        ? 1e7f
                                                                                    : 1;
        if (cases[i].edge == VANISHING) { /* a first column that pulls every score below what f32 can hold */
            for (int64_t t = 0; t < cases[i].rows; t++) x[t * cases[i].width] = 1;
            for (int64_t e = 0; e < cases[i].routed; e++) router->value[e * cases[i].width] = -300;
        }
        if (cases[i].edge == CROWDED) bias->value[3] = bias->value[9] = 10;
        struct oracle o = {.r = {.rows = cases[i].rows,
                                 .width = cases[i].width,
                                 .routed = cases[i].routed,
                                 .shared = cases[i].shared,
                                 .chosen = cases[i].chosen,
                                 .inner = cases[i].inner,
                                 .eps = 1e-6}};
        run_oracle(&o, find_in_layer, &a, x, dy);
        chm_tensor *in, *y = forward(&a, x, cases[i].rows, cases[i].width, true, &in);
        double error = off(y->data, o.r.y, n), worst = 0;
        for (int64_t k = 0; k < a.count; k++) assert_true(a.choice[k] == (float)o.r.choice[k]);
        for (int64_t k = 0; cases[i].edge == TIES && k < a.count; k++)
            assert_true(a.choice[k] == (float)(k % cases[i].chosen));
        float *load = param(&a, "router_bias")->tally, counted[MOST_EXPERTS] = {0};
        for (int64_t k = 0; k < a.count; k++) counted[(int)a.choice[k]]++;
        assert_memory_equal(load, counted, (size_t)cases[i].routed * sizeof *load);
        chm_graph *g = chm_context_graph(a.context);
        memcpy(g->ops->grad(g, y), dy, (size_t)n * sizeof *dy);
        must(chm_backward(a.context));
        worst = off(in->grad, o.r.dx, n);
        if (cases[i].edge != VANISHING && cases[i].edge != SATURATED)
            worst = fmax(worst, off(router->grad, o.r.drouter, router->count));
        for (int64_t k = 0; k < router->count; k++) assert_true(isfinite(router->grad[k]));
        for (int64_t e = 0; e < cases[i].routed + cases[i].shared; e++) {
            static const char *const parts[] = {"gate", "up", "down", "down_norm"};
            const double *const grad[] = {o.dgate[e], o.dup[e], o.ddown[e], o.dnorm[e]};
            const bool runs = e >= cases[i].routed || counted[e] > 0;
            for (int p = 0; p < 3 + cases[i].norm; p++) {
                char name[64];
                snprintf(name, sizeof name, "%s_%lld", parts[p], (long long)e);
                const chm_param *w = param(&a, name);
                if (cases[i].edge != VANISHING || e >= cases[i].routed)
                    worst = fmax(worst, off(w->grad, grad[p], w->count));
                for (int64_t k = 0; !runs && k < w->count; k++) assert_true(w->grad[k] == 0);
            }
        }
        print_message("%-44s y %.1e, gradients %.1e\n", cases[i].name, error, worst);
        /* the derivative of a norm over one number is what is left of 1 - 1 */
        if (!(error < 1e-6 && worst < (cases[i].inner == 1 ? 1e-4 : 3e-6)))
            fail_msg("%s: y %.2g, gradients %.2g", cases[i].name, error, worst);
        free_oracle(&o);
        chm_free(x);
        chm_free(dy);
        close_alone(&a);
    }
    chm_runtime_destroy(r);
}

/* ---- the generated tests ---- */

static void test_layer(void **state) {
    (void)state;
    static const struct {
        const char *sets[5];
        uint32_t count;
        int64_t rows;
    } cases[] = {
        {{"moe.n_routed_experts=6", "moe.moe_intermediate_size=40"}, 2, 0},
        {{"moe.n_routed_experts=5", "moe.num_experts_per_tok=3", "moe.moe_intermediate_size=70",
          "moe.n_shared_experts=0", "head_dim=33"},
         5,
         30},
        {{"moe.n_routed_experts=3", "moe.n_shared_experts=2", "moe.moe_intermediate_size=192",
          "rms_norm_before_every_linear=false"},
         4,
         40},
        /* a norm over one number has the curvature of a sign: the fixed step of the differences is too long for it */
        {{"moe.n_routed_experts=3", "moe.n_shared_experts=0", "moe.moe_intermediate_size=1"}, 3, 0},
    };
    chm_runtime *r = open_runtime(2, NULL);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        int status;
        char *report = report_of(r, "moe", cases[i].sets, cases[i].count, cases[i].rows, &status);
        if (status) fail_msg("case %zu: %s", i, chm_error());
        static const char *const both[] = {"split",          "batch",  "threads: 1..4, chunk and gradients",
                                           "tree",           "memory", "read: the same question",
                                           "causality: step"};
        for (size_t k = 0; k < CHM_ARRAY_COUNT(both); k++) {
            if (!says(report, both[k], "f32", "pass")) fail_msg("case %zu: no '%s' in f32", i, both[k]);
            if (!says(report, both[k], "bitnet", "pass")) fail_msg("case %zu: no '%s' in bitnet", i, both[k]);
        }
        assert_true(says(report, "gradient: parameter router", "f32", "pass"));
        assert_true(says(report, "gradient: rows x", "f32", "pass"));
        assert_null(strstr(report, "router_bias")); /* it has no gradient */
        free(report);
    }
    chm_runtime_destroy(r);
}

/* A gradient of the scores that is wrong is seen, with choices held and without help from them; and one of the norm
 * where only short steps of the difference tell. */
static struct chm_kernels real;
static void add_more(float *dx, const float *before, int64_t n) {
    for (int64_t i = 0; i < n; i++) dx[i] = before[i] + 1.02f * (dx[i] - before[i]);
}
static float *copy_of(const float *from, int64_t n) {
    float *to = malloc((size_t)n * sizeof *to);
    assert_non_null(to);
    memcpy(to, from, (size_t)n * sizeof *to);
    return to;
}
static void broken_unary(enum chm_unary op, const float *x, const float *y, const float *dy, int64_t n, float *dx) {
    float *before = copy_of(dx, n);
    real.unary_backward(op, x, y, dy, n, dx);
    if (op == CHM_SIGMOID) add_more(dx, before, n);
    free(before);
}
static void broken_norm(const float *x, int64_t n, int64_t width, const float *weight, int64_t weight_rows,
                        const float *rstd, const float *dy, float *dx, float *dweight) {
    float *before = copy_of(dx, n * width);
    real.rmsnorm_backward(x, n, width, weight, weight_rows, rstd, dy, dx, dweight);
    add_more(dx, before, n * width);
    free(before);
}

static void test_broken(void **state) {
    (void)state;
    static const char *const sets[] = {"moe.n_routed_experts=4", "moe.moe_intermediate_size=20"};
    static const char *const narrow[] = {"moe.n_routed_experts=3", "moe.n_shared_experts=0",
                                         "moe.moe_intermediate_size=1"};
    chm_runtime *r = open_runtime(1, NULL);
    real = r->kernels.kernels;
    r->kernels.kernels.unary_backward = broken_unary;
    int status;
    char *report = report_of(r, "moe", sets, 2, 33, &status);
    assert_int_equal(status, CHM_E_VERDICT);
    assert_true(says(report, "gradient: parameter router", "f32", "FAIL"));
    assert_true(says(report, "gradient: parameter down_0", "f32", "pass"));
    free(report);
    r->kernels.kernels = real;
    r->kernels.kernels.rmsnorm_backward = broken_norm;
    report = report_of(r, "moe", narrow, 3, 0, &status);
    assert_int_equal(status, CHM_E_VERDICT);
    assert_true(says(report, "gradient: rows x", "f32", "FAIL"));
    assert_true(says(report, "gradient: parameter gate_2", "f32", "FAIL"));
    assert_true(says(report, "gradient: parameter router", "f32", "pass"));
    free(report);
    chm_runtime_destroy(r);
}

/* ---- what is learnt without a gradient ---- */

struct heard {
    chm_after_step step;
    char names[128];
    float load[8], violation;
};

static void hear(const chm_after_step *s, const char *name, int64_t count, const float *value) {
    struct heard *h = (struct heard *)(uintptr_t)s;
    strcat(strcat(h->names, name), " ");
    if (count == 1)
        h->violation = value[0];
    else
        memcpy(h->load, value, (size_t)count * sizeof *value);
}

static void test_bias(void **state) {
    (void)state;
    static const char *const sets[] = {"moe.n_routed_experts=5", "moe.moe_intermediate_size=16"};
    chm_runtime *r = open_runtime(1, NULL);
    struct alone a;
    open_alone(&a, r, 16, sets, 2);
    chm_param *bias = param(&a, "router_bias");
    assert_null(bias->grad);
    const float tally[] = {10, 0, 4, 4, 2};
    float value[] = {0.5f, 0, -0.25f, 0, 0};
    struct heard h = {
        .step = {.size = sizeof h.step, .param = bias, .count = 5, .value = value, .tally = tally, .report = hear}};
    a.layer.layer->ops->after_step(a.layer.layer->self, &h.step);
    /* mean 4: down, up, stays, stays, up; what they have in common, +1/5 of a step, is taken out */
    static const double moved[] = {-1.2, 0.8, -0.2, -0.2, 0.8};
    static const float start[] = {0.5f, 0, -0.25f, 0, 0};
    double sum = 0;
    for (int e = 0; e < 5; e++) {
        if (!(fabs((double)value[e] - (double)start[e] - 1e-3 * moved[e]) < 1e-7)) fail_msg("bias %d", e);
        sum += (double)value[e] - (double)start[e];
    }
    assert_true(fabs(sum) < 1e-7);
    assert_string_equal(h.names, "moe.load moe.max_violation ");
    assert_true(h.violation == 1.5f);
    assert_memory_equal(h.load, tally, sizeof tally);
    /* a step without a row moves nothing and says nothing */
    const float nothing[5] = {0}, kept[] = {value[0], value[1], value[2], value[3], value[4]};
    h.step.tally = nothing;
    h.names[0] = 0;
    a.layer.layer->ops->after_step(a.layer.layer->self, &h.step);
    assert_memory_equal(value, kept, sizeof kept);
    assert_string_equal(h.names, "");
    /* passes that train add up, others do not */
    float x[8 * 16];
    chm_normals(1, CHM_RANDOM_TEST, 1, 8 * 16, x);
    chm_tensor *in;
    for (int pass = 0; pass < 3; pass++) forward(&a, x, 8, 16, pass != 1, &in);
    float counted[5] = {0};
    for (int i = 0; i < 16; i++) counted[(int)a.choice[i]] += 2;
    assert_memory_equal(bias->tally, counted, sizeof counted);
    close_alone(&a);
    chm_runtime_destroy(r);
}

/* ---- training ---- */

struct watch {
    volatile int stop;
    int64_t at;
};

static void on_progress(void *user, const chm_progress *p) {
    struct watch *w = user;
    if (!p->message && w->at >= 0 && p->step >= w->at) w->stop = 1;
}

static int train(chm_runtime *r, const char *out, int64_t tokens, bool resume, int64_t stop_at, const char *set) {
    struct watch w = {.at = stop_at};
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = &set, .set_count = set ? 1 : 0};
    const char *data = made("words.txt");
    const chm_train_options options = {.size = sizeof options,
                                       .card = made("card.json"),
                                       .overlay = &overlay,
                                       .data = &data,
                                       .data_count = 1,
                                       .out = out,
                                       .tokens = tokens,
                                       .resume = resume,
                                       .progress = on_progress,
                                       .user = &w,
                                       .stop = &w.stop};
    return chm_train(r, &options, NULL);
}

/* The events of a name in a run's log, without what depends on time. */
static char *events(const char *out, const char *name) {
    char path[4600], key[64];
    size_t n;
    chm_string kept = {0};
    snprintf(path, sizeof path, "%s/log.jsonl", out);
    snprintf(key, sizeof key, "\"event\":\"%s\"", name);
    char *text = slurp(path, &n), *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        if (strstr(line, key)) chm_string_add(&kept, "%s\n", line);
    chm_free(text);
    assert_false(kept.failed);
    return kept.text;
}

static const chm_st_tensor *bias_of(struct file *f, const char *path) {
    open_file(f, path);
    const chm_st_tensor *t = chm_safetensors_find(f->st, "layers.1.ffn.router_bias");
    assert_non_null(t);
    return t;
}

static void test_training(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(2, NULL), *one = open_runtime(1, NULL);
    char whole[4400], parts[4400], path[4600], other[4600];
    snprintf(whole, sizeof whole, "%s", made("whole"));
    snprintf(parts, sizeof parts, "%s", made("parts"));
    must(train(r, whole, 12 * 256, false, -1, NULL));
    char *layers = events(whole, "layers");
    assert_non_null(layers);
    assert_non_null(strstr(layers, "\"layers.1.ffn.moe.load\":["));
    assert_non_null(strstr(layers, "\"layers.1.ffn.moe.max_violation\":"));
    /* 256 tokens choose two each: all of them are in a line, although they came in two passes */
    double sum = 0;
    char *at = strstr(layers, "load\":[") + 7;
    for (int e = 0; e < 5; e++) sum += strtod(at, &at), at++;
    assert_true(sum == 512);
    /* stopped and gone on, twice, on another number of threads: the same bytes and the same lines */
    static const int64_t stops[] = {1, 7};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(stops); i++) {
        remove_tree(parts);
        assert_int_equal(train(one, parts, 12 * 256, false, stops[i], NULL), CHM_E_INTERRUPTED);
        assert_int_equal(train(r, parts, 12 * 256, true, stops[i] + 3, NULL), CHM_E_INTERRUPTED);
        must(train(one, parts, 12 * 256, true, -1, NULL));
        static const char *const files[] = {"model.b158", "model_experts.b158"};
        for (int k = 0; k < 2; k++) {
            snprintf(path, sizeof path, "%s/%s", whole, files[k]);
            snprintf(other, sizeof other, "%s/%s", parts, files[k]);
            same_files(path, other);
        }
        char *again = events(parts, "layers");
        assert_string_equal(again, layers);
        chm_free(again);
    }
    chm_free(layers);
    /* one step: the bias has moved by its rate and no more, however the step is cut into passes; and AdamW, which
     * would move it by the learning rate, has left it alone */
    static const char *const cuts[] = {"training.phases.pretrain.micro_tokens=32",
                                       "training.phases.pretrain.micro_tokens=256"};
    float first[5] = {0};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cuts); i++) {
        struct file f;
        remove_tree(parts);
        must(train(r, parts, 256, false, -1, cuts[i]));
        snprintf(path, sizeof path, "%s/model.b158", parts);
        const chm_st_tensor *t = bias_of(&f, path);
        float bias[5];
        memcpy(bias, t->data, sizeof bias);
        bool moved = false;
        for (int e = 0; e < 5; e++) {
            moved = moved || bias[e] != 0;
            assert_true(fabsf(bias[e]) <= 0.02f);
        }
        assert_true(moved);
        if (i) assert_memory_equal(bias, first, sizeof bias);
        memcpy(first, bias, sizeof bias);
        close_file(&f);
    }
    /* rate 0: no balance is sought */
    struct file f;
    remove_tree(parts);
    must(train(r, parts, 512, false, -1, "moe.bias_rate=0"));
    snprintf(path, sizeof path, "%s/model.b158", parts);
    const chm_st_tensor *t = bias_of(&f, path);
    for (size_t i = 0; i < t->bytes; i++) assert_int_equal(t->data[i], 0);
    close_file(&f);
    remove_tree(parts);
    remove_tree(whole);
    chm_runtime_destroy(one);
    chm_runtime_destroy(r);
}

/* ---- two files ---- */

static int init(chm_runtime *r, const char *path, uint64_t seed, const char *const *set, uint32_t sets) {
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = set, .set_count = sets};
    return chm_init_model(r, made("card.json"), &overlay, seed, path);
}

static int open_model(chm_runtime *r, const char *path, bool verify) {
    static const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1};
    chm_model *m = NULL;
    const int status = chm_open(r, path, &overlay, verify, &m);
    chm_close(m);
    return status;
}

static int inspect(chm_runtime *r, const char *path, char **report) {
    size_t n;
    FILE *out = open_memstream(report, &n);
    assert_non_null(out);
    const int status = chm_inspect(r, path, true, CHM_OUTPUT_JSON, out);
    fclose(out);
    return status;
}

static void test_files(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(1, NULL);
    char m[4400], e[4400], other[4400], spare[4400], *report = NULL;
    remove_tree(made("files"));
    must(chm_make_directory(made("files/elsewhere")));
    snprintf(m, sizeof m, "%s", made("files/m.b158"));
    snprintf(e, sizeof e, "%s", made("files/m_experts.b158"));
    snprintf(other, sizeof other, "%s", made("files/other.b158"));
    snprintf(spare, sizeof spare, "%s", made("files/spare"));
    must(init(r, m, 1, NULL, 0));
    must(init(r, other, 2, NULL, 0));
    must(open_model(r, m, false));
    must(open_model(r, m, true));
    /* a stream is saved over neither */
    chm_model *opened = NULL;
    chm_stream *stream = NULL;
    must(chm_open(r, m, NULL, false, &opened));
    must(chm_stream_open(r, opened, &stream));
    REFUSED(chm_stream_save(stream, m), CHM_E_CONFIG, m, "would replace the model, which is read");
    REFUSED(chm_stream_save(stream, e), CHM_E_CONFIG, e, "would replace the model's experts");
    chm_stream_close(stream);
    chm_close(opened);
    must(open_model(r, m, true));
    /* what lies where: matrices of experts there, everything else here */
    struct file f;
    open_file(&f, e);
    assert_int_equal(f.st->count, 2 * 3 * 6);
    assert_non_null(chm_safetensors_find(f.st, "layers.1.ffn.down_5.codes"));
    /* 192 inputs are a group of 128 and one of 64 with a scale of its own */
    const chm_st_tensor *scales = chm_safetensors_find(f.st, "layers.1.ffn.down_5.scales");
    assert_non_null(scales);
    assert_int_equal(scales->shape[1], 64 + 16 * 2);
    close_file(&f);
    open_file(&f, m);
    assert_non_null(chm_safetensors_find(f.st, "layers.1.ffn.router"));
    assert_non_null(chm_safetensors_find(f.st, "layers.1.ffn.down_norm_5"));
    assert_null(chm_safetensors_find(f.st, "layers.1.ffn.down_5.codes"));
    assert_string_equal(chm_safetensors_meta(f.st, "experts"), "m_experts.b158");
    close_file(&f);
    must(inspect(r, m, &report));
    assert_non_null(strstr(report, "\"experts\": \""));
    assert_non_null(strstr(report, "\"layers.1.ffn.down_5\""));
    assert_non_null(strstr(report, "\"opens\": true"));
    free(report);
    must(inspect(r, e, &report));
    assert_non_null(strstr(report, "\"layers.1.ffn.down_5\""));
    assert_null(strstr(report, "\"layers.1.ffn.router\""));
    free(report);
    /* a link to the model finds them beside the model */
    assert_int_equal(symlink(m, made("files/elsewhere/link.b158")), 0);
    must(open_model(r, made("files/elsewhere/link.b158"), false));
    must(init(r, made("files/elsewhere/link.b158"), 1, NULL, 0));
    must(open_model(r, m, true));
    assert_int_equal(access(made("files/elsewhere/link_experts.b158"), F_OK), -1);

    /* the format's other description reads both */
    if (system("python3 -c 'import numpy' 2>/dev/null") == 0) {
        setenv("MOE_MODEL", m, 1);
        assert_int_equal(
            system("python3 \"$CHM_SOURCE_ROOT/tools/b158.py\" \"$MOE_MODEL\" >\"$MOE_MODEL.txt\" && grep -q "
                   "'layers.1.ffn.down_5 *(32, 192)' \"$MOE_MODEL.txt\" && grep -q 'layers.1.ffn.router ' "
                   "\"$MOE_MODEL.txt\""),
            0);
    } else {
        print_message("SKIP: tools/b158.py is not tested: no numpy\n");
    }

    /* the wrong one of the two */
    REFUSED(open_model(r, e, false), CHM_E_DATA, e, "holds the experts of a model", "beside it");
    /* missing */
    assert_int_equal(rename(e, spare), 0);
    REFUSED(open_model(r, m, false), CHM_E_DATA, m, e, "is not there", "beside each other");
    REFUSED(inspect(r, m, &report), CHM_E_DATA, m, e, "is not there");
    free(report);
    /* another model's, and no experts at all */
    assert_int_equal(link(made("files/other_experts.b158"), e), 0);
    REFUSED(open_model(r, m, false), CHM_E_DATA, m, e, "not the file that was written with it",
            "of another model or another time", "chimera init");
    unlink(e);
    assert_int_equal(link(other, e), 0);
    REFUSED(open_model(r, m, false), CHM_E_DATA, e, "it holds no experts");
    REFUSED(init(r, m, 1, NULL, 0), CHM_E_DATA, e, "holds something else", "move it away");
    unlink(e);
    /* cut short, and no safetensors file */
    size_t n;
    char *bytes = slurp(spare, &n);
    write_text(e, bytes, n - 100);
    REFUSED(open_model(r, m, false), CHM_E_DATA, m, e, "cut short", "copy both files anew");
    write_text(e, bytes, 5);
    REFUSED(open_model(r, m, false), CHM_E_DATA, m, e, "cannot be read");
    /* a byte of the codes, which come first, changed: seen when every byte is asked for */
    uint64_t header;
    memcpy(&header, bytes, sizeof header);
    bytes[8 + header + 40] ^= 1;
    write_text(e, bytes, n);
    must(open_model(r, m, false));
    REFUSED(open_model(r, m, true), CHM_E_DATA, e, "is damaged");
    REFUSED(inspect(r, m, &report), CHM_E_DATA, e, "is damaged");
    free(report);
    chm_free(bytes);
    unlink(e);
    assert_int_equal(rename(spare, e), 0);
    must(open_model(r, m, true));

    /* names from the card: beside a model called as the card says, else after the model */
    const char *const named[] = {"files.weights=m.b158", "files.moe=mixture.b158"};
    must(init(r, m, 3, named, 2));
    assert_int_equal(access(made("files/mixture.b158"), R_OK), 0);
    must(open_model(r, m, true));
    must(init(r, made("files/n.b158"), 3, named, 2));
    assert_int_equal(access(made("files/n_experts.b158"), R_OK), 0);
    must(init(r, made("files/n.b158"), 3, named + 1, 1));
    must(open_model(r, made("files/n.b158"), true));
    const char *const same = "files.moe=m.b158", *const place = "files.moe=a/b.b158";
    REFUSED(init(r, m, 1, &same, 1), CHM_E_CONFIG, m, "files.moe");
    REFUSED(init(r, m, 1, &place, 1), CHM_E_CONFIG, "files.moe", "without '/'");
    const char *const twice[] = {"files.weights=m.b158", "files.moe=m.b158"};
    REFUSED(init(r, m, 1, twice, 2), CHM_E_CONFIG, "files.moe", "two files");
    REFUSED(init(r, "/dev/null", 1, NULL, 0), CHM_E_DATA, "/dev/null", "no regular file");
    remove_tree(made("files"));
    chm_runtime_destroy(r);
}

/* Out of memory, or a place that cannot be written, at any point: the old pair stays whole, or the new one is. */
static void test_interrupted_save(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(1, NULL);
    char m[4400];
    remove_tree(made("save"));
    must(chm_make_directory(made("save")));
    snprintf(m, sizeof m, "%s", made("save/m.b158"));
    must(init(r, m, 1, NULL, 0));
    int status = CHM_E_MEMORY;
    for (long n = 0; status == CHM_E_MEMORY; n += 1 + n / 8) {
        chm_alloc_fail_after(n);
        status = init(r, m, 2 + (uint64_t)n, NULL, 0);
        chm_alloc_fail_after(-1);
        must(open_model(r, m, true));
        assert_true(n < 100000);
    }
    must(status);
    /* the model cannot be written: neither are its experts */
    size_t before, after;
    char *old = slurp(made("save/m_experts.b158"), &before);
    char blocked[4500];
    snprintf(blocked, sizeof blocked, "%s.tmp-%ld", m, (long)getpid());
    must(chm_make_directory(blocked));
    assert_int_not_equal(init(r, m, 1, NULL, 0), CHM_OK);
    char *now = slurp(made("save/m_experts.b158"), &after);
    assert_int_equal(before, after);
    assert_memory_equal(old, now, before);
    must(open_model(r, m, true));
    chm_free(old);
    chm_free(now);
    remove_tree(made("save"));
    chm_runtime_destroy(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle),   cmocka_unit_test(test_golden), cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_layer),    cmocka_unit_test(test_broken), cmocka_unit_test(test_bias),
        cmocka_unit_test(test_training), cmocka_unit_test(test_files),  cmocka_unit_test(test_interrupted_save),
    };
    return cmocka_run_group_tests_name("moe", tests, set_up, tear_down);
}
