/*
 * test_gd.c: gated DeltaNet against public implementations and an f64 oracle; the layer runner and the generated layer
 * tests, which must pass for sound layers and must fail for broken ones.
 */
#include "../plugins/layers/gated_delta.h"
#include "layer_help.h"
#include "reference/ref_gd.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static int set_up(void **state) {
    (void)state;
    return layer_set_up("gd");
}

static int tear_down(void **state) {
    (void)state;
    char path[4200];
    static const char *const made[] = {"in.safetensors", "out.safetensors"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(made); i++) {
        snprintf(path, sizeof path, "%s/%s", scratch, made[i]);
        unlink(path);
    }
    rmdir(scratch);
    chm_free(plugin_path);
    return 0;
}

static const char *made(const char *name) {
    static char path[2][4200];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", scratch, name);
    return path[turn];
}

/* ---- files ---- */

static void open_golden(struct file *f, const char *name, char path[4096]) {
    snprintf(path, 4096, "%s/tests/golden/%s.safetensors", getenv("CHM_SOURCE_ROOT"), name);
    open_file(f, path);
}
static int64_t number(const struct file *f, const char *key) {
    const char *text = chm_safetensors_meta(f->st, key);
    assert_non_null(text);
    return strtoll(text, NULL, 10);
}

/* "rms error / rms of each tensor, f32 arithmetic: 1e-5" */
static double tolerance(const struct file *f) {
    const char *text = chm_safetensors_meta(f->st, "tolerance");
    assert_non_null(text);
    const double v = strtod(strrchr(text, ':') + 1, NULL);
    assert_true(v > 0 && v < 1e-3);
    return v;
}

static double relative(const float *a, const double *b, const float *c, int64_t n) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        const double want = b ? b[i] : (double)c[i], d = (double)a[i] - want;
        error += d * d;
        size += want * want;
    }
    if (!isfinite(error)) return INFINITY;
    return error == 0 ? 0 : size > 0 ? sqrt(error / size) : INFINITY;
}

/* ---- the layer against golden files ---- */

static const char *const golden_layers[] = {"gd_qwen3next", "gd_qwen3next_d64", "gd_full", "gd_efla"};

/* Of a layer: what comes out and stays is that of the recurrence; gradients are what is left of longer sums, in gd_efla
 * above all those of the decay, whose head with keys 97 long keeps nothing for long. */
static double layer_bound(const char *golden, const char *result) {
    static const char *const decay[] = {"grad.a", "grad.A_log", "grad.dt_bias"};
    if (!strcmp(result, "y") || !strncmp(result, "final.", 6)) return 2e-6;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(decay) && !strcmp(golden, "gd_efla"); i++)
        if (!strcmp(result, decay[i])) return 2e-5;
    return 5e-6;
}

static void run_layer(chm_runtime *r, const char *in, bool step, bool grad) {
    static const char *const sets[] = {"quantization.method=none"};
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = 1, .set = sets, .no_environment = 1};
    const chm_layer_options options = {.size = sizeof options,
                                       .plugin = "gd",
                                       .overlay = &overlay,
                                       .in = in,
                                       .out = made("out.safetensors"),
                                       .grad = grad,
                                       .step = step};
    if (chm_layer_run(r, &options)) fail_msg("%s", chm_error());
}

static void test_golden_layers(void **state) {
    (void)state;
    char path[4096];
    for (size_t b = 0; b < CHM_ARRAY_COUNT(backends); b++) {
        chm_runtime *r = try_runtime(backends[b], 2);
        if (!r) continue;
        for (size_t g = 0; g < CHM_ARRAY_COUNT(golden_layers); g++)
            for (int step = 0; step < 2; step++) {
                struct file golden, got, plain;
                double y_error = 0, final = 0, gradient = 0; /* the last two: worst of several tensors */
                int compared = 0;
                open_golden(&golden, golden_layers[g], path);
                run_layer(r, path, step, true);
                open_file(&got, made("out.safetensors"));
                for (int i = 0; i < golden.st->count; i++) {
                    const chm_st_tensor *want = &golden.st->tensor[i];
                    if (!is_result(want->name)) continue;
                    int64_t n, m;
                    const float *a = floats(&got, want->name, &n), *c = floats(&golden, want->name, &m);
                    assert_int_equal(n, m);
                    const double error = relative(a, NULL, c, n);
                    if (!(error <= layer_bound(golden_layers[g], want->name)))
                        fail_msg("%s, %s, %s: %s is off by %.2g", golden_layers[g], step ? "step" : "chunk",
                                 backends[b], want->name, error);
                    double *of = !strcmp(want->name, "y")            ? &y_error
                                 : !strncmp(want->name, "final.", 6) ? &final
                                                                     : &gradient;
                    *of = error > *of ? error : *of;
                    compared++;
                }
                /* every result is in the golden file, but for the initial state's gradient where there was none */
                assert_int_equal(compared, got.st->count);
                print_message("%-17s %-5s %-8s y %.1e, final state %.1e, worst gradient %.1e\n", golden_layers[g],
                              step ? "step" : "chunk", backends[b], y_error, final, gradient);
                /* without gradients: the inference path, the same bytes */
                int64_t n;
                const float *y = floats(&got, "y", &n);
                float *copy = malloc((size_t)n * sizeof *copy);
                assert_non_null(copy);
                memcpy(copy, y, (size_t)n * sizeof *copy);
                close_file(&got);
                run_layer(r, path, step, false);
                open_file(&plain, made("out.safetensors"));
                assert_memory_equal(copy, floats(&plain, "y", NULL), (size_t)n * sizeof *copy);
                assert_null(chm_safetensors_find(plain.st, "dx"));
                free(copy);
                close_file(&plain);
                close_file(&golden);
            }
        chm_runtime_destroy(r);
    }
}

/* ---- the oracle against golden files ---- */

static double *widen(const float *from, int64_t n) {
    double *to = calloc((size_t)n + 1, sizeof *to);
    assert_non_null(to);
    for (int64_t i = 0; from && i < n; i++) to[i] = (double)from[i];
    return to;
}

static void expect_close(const struct file *golden, const char *prefix, const char *name, const double *got,
                         double bound) {
    char full[96];
    int64_t n;
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const float *want = floats(golden, full, &n);
    const double error = relative(want, got, NULL, n);
    if (!(error <= bound)) fail_msg("%s: the oracle is off by %.2g", full, error);
}

/* Golden values were rounded to f32 once: 6e-8 at most. */
static const double rounded_once = 1e-7;

static void test_oracle_layers(void **state) {
    (void)state;
    char path[4096], name[64];
    for (size_t g = 0; g < CHM_ARRAY_COUNT(golden_layers); g++) {
        struct file golden;
        open_golden(&golden, golden_layers[g], path);
        const bool full = !strcmp(chm_safetensors_meta(golden.st, "rms_norm_before_every_linear"), "true");
        const bool exact = chm_safetensors_meta(golden.st, "efla") != NULL;
        struct ref_gd r = {.width = number(&golden, "hidden_size"),
                           .heads = number(&golden, "num_heads"),
                           .dk = number(&golden, "head_dim"),
                           .taps = number(&golden, "short_conv"),
                           .neg_eigval = !strcmp(chm_safetensors_meta(golden.st, "allow_neg_eigval"), "true"),
                           .eps = strtod(chm_safetensors_meta(golden.st, "rms_norm_eps"), NULL)};
        int64_t n;
        const float *x = floats(&golden, "x", &n);
        r.dv = r.dk * number(&golden, "value_expand");
        r.rows = n / r.width;
        double *freed[64];
        int frees = 0;
#define KEEP(expression) (freed[frees++] = (expression))
        r.x = KEEP(widen(x, n));
        r.dy = KEEP(widen(floats(&golden, "dy", NULL), n));
        r.y = KEEP(widen(NULL, n));
        r.dx = KEEP(widen(NULL, n));
        for (enum ref_gd_param p = 0; p < REF_PARAMS; p++) {
            if ((p == REF_O_NORM && !full) || (p == REF_B_BIAS && !exact)) continue;
            snprintf(name, sizeof name, "params.%s", ref_gd_param_name[p]);
            const float *value = floats(&golden, name, &n);
            assert_int_equal(n, ref_gd_param_count(&r, p));
            r.param[p] = KEEP(widen(value, n));
            r.grad[p] = KEEP(widen(NULL, n));
        }
        for (enum ref_gd_state s = 0; s < REF_STATES; s++) {
            n = ref_gd_state_count(&r, s);
            snprintf(name, sizeof name, "state.%s", ref_gd_state_name[s]);
            r.state[s] = KEEP(widen(full ? floats(&golden, name, NULL) : NULL, n));
            snprintf(name, sizeof name, "dstate.%s", ref_gd_state_name[s]);
            r.dfinal[s] = KEEP(widen(full ? floats(&golden, name, NULL) : NULL, n));
            r.final[s] = KEEP(widen(NULL, n));
            r.dstate[s] = KEEP(widen(NULL, n));
        }
        ref_gd_run(&r);
        expect_close(&golden, "", "y", r.y, rounded_once);
        expect_close(&golden, "", "dx", r.dx, rounded_once);
        for (enum ref_gd_param p = 0; p < REF_PARAMS; p++)
            if (r.param[p]) expect_close(&golden, "grad.", ref_gd_param_name[p], r.grad[p], rounded_once);
        for (enum ref_gd_state s = 0; s < REF_STATES; s++) {
            expect_close(&golden, "final.", ref_gd_state_name[s], r.final[s], rounded_once);
            if (full) expect_close(&golden, "gradstate.", ref_gd_state_name[s], r.dstate[s], rounded_once);
        }
        while (frees > 0) free(freed[--frees]);
        close_file(&golden);
    }
}

/* ---- the recurrence: kernels against the oracle, one head at a time ---- */

enum { D_Q, D_K, D_V, D_LOG_ALPHA, D_BETA, D_STATE, D_O, D_FINAL, D_COUNT };
static const char *const part_name[D_COUNT] = {"dq", "dk", "dv", "dlog_alpha", "dbeta", "dS0", "o", "S"};

struct head_case {
    int64_t rows, dk, dv;
    float *q, *k, *v, *log_alpha, *beta, *S0, *d_o, *dS;
};

static int64_t part_count(const struct head_case *h, int part) {
    switch (part) {
    case D_Q:
    case D_K:
        return h->rows * h->dk;
    case D_V:
    case D_O:
        return h->rows * h->dv;
    case D_LOG_ALPHA:
    case D_BETA:
        return h->rows;
    default:
        return h->dk * h->dv;
    }
}

static void *space(size_t bytes) {
    void *p = chm_alloc_aligned(bytes ? bytes : 1);
    assert_non_null(p);
    return p;
}

/* beta: in f64 (NULL: the case's own) */
static void oracle_of(const struct head_case *h, const double *beta, double *out[D_COUNT]) {
    const int64_t T = h->rows, S = h->dk * h->dv;
    double *in[] = {widen(h->q, T * h->dk), widen(h->k, T * h->dk), widen(h->v, T * h->dv),   widen(h->log_alpha, T),
                    widen(h->beta, T),      widen(h->S0, S),        widen(h->d_o, T * h->dv), widen(h->dS, S)};
    if (beta) memcpy(in[4], beta, (size_t)T * sizeof *beta);
    for (int i = 0; i < D_COUNT; i++) out[i] = widen(NULL, part_count(h, i));
    const struct ref_delta r = {.rows = T,
                                .dk = h->dk,
                                .dv = h->dv,
                                .scale = 1 / sqrt((double)h->dk),
                                .q = in[0],
                                .k = in[1],
                                .v = in[2],
                                .log_alpha = in[3],
                                .beta = in[4],
                                .S0 = in[5],
                                .d_o = in[6],
                                .dS = in[7],
                                .o = out[D_O],
                                .S = out[D_FINAL],
                                .dq = out[D_Q],
                                .dk_ = out[D_K],
                                .dv_ = out[D_V],
                                .dlog_alpha = out[D_LOG_ALPHA],
                                .dbeta = out[D_BETA],
                                .dS0 = out[D_STATE]};
    ref_delta_forward(&r);
    ref_delta_backward(&r);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(in); i++) free(in[i]);
}

static void oracle(const struct head_case *h, double *out[D_COUNT]) { oracle_of(h, NULL, out); }

/* The same through a backend's kernels: chunks of at most `limit` rows, gradients chunk by chunk from the last. */
static void through_kernels(const struct chm_kernels *k, const struct head_case *h, int64_t limit, float *out[D_COUNT],
                            float *step_o, float *step_S) {
    const int64_t T = h->rows, dk = h->dk, dv = h->dv, size = dk * dv, chunks = (T + limit - 1) / limit;
    const float scale = 1.0f / sqrtf((float)dk);
    float *scratch_floats = space(chm_delta_scratch(dk, dv) * sizeof(float));
    float *starts = space((size_t)(chunks * size) * sizeof(float));
    memcpy(step_S, h->S0, (size_t)size * sizeof(float));
    for (int64_t t = 0; t < T; t++)
        k->delta_step(step_S, dk, dv, h->q + t * dk, h->k + t * dk, h->v + t * dv, h->log_alpha[t], h->beta[t], scale,
                      step_o + t * dv);
    float *S = out[D_FINAL];
    memcpy(S, h->S0, (size_t)size * sizeof(float));
    for (int64_t c = 0; c < chunks; c++) {
        const int64_t t = c * limit, rows = CHM_MIN(limit, T - t);
        memcpy(starts + c * size, S, (size_t)size * sizeof(float));
        k->delta_chunk(S, dk, dv, rows, h->q + t * dk, dk, h->k + t * dk, dk, h->v + t * dv, dv, h->log_alpha + t,
                       h->beta + t, 1, scale, out[D_O] + t * dv, dv, scratch_floats);
    }
    memcpy(out[D_STATE], h->dS, (size_t)size * sizeof(float));
    for (int i = 0; i < D_STATE; i++) memset(out[i], 0, (size_t)part_count(h, i) * sizeof(float));
    for (int64_t c = chunks - 1; c >= 0; c--) {
        const int64_t t = c * limit, rows = CHM_MIN(limit, T - t);
        const float *q = h->q + t * dk, *d_o = h->d_o + t * dv;
        float *dq = out[D_Q] + t * dk;
        k->delta_chunk_backward(starts + c * size, dk, dv, rows, 1, &q, dk, h->k + t * dk, dk, h->v + t * dv, dv,
                                h->log_alpha + t, h->beta + t, 1, scale, &d_o, dv, &dq, out[D_K] + t * dk,
                                out[D_V] + t * dv, out[D_LOG_ALPHA] + t, out[D_BETA] + t, out[D_STATE], scratch_floats);
    }
    chm_free(scratch_floats);
    chm_free(starts);
}

static double rms(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum / (double)n);
}

/* Largest errors over output, state and gradients; every one must stay below its bound. */
static void compare_kernels(const struct chm_kernels *k, const char *what, const struct head_case *h, int64_t limit,
                            double *const want[D_COUNT], double forward_bound, double gradient_bound) {
    float *out[D_COUNT], *step_o = space((size_t)part_count(h, D_O) * sizeof(float)),
                         *step_S = space((size_t)part_count(h, D_FINAL) * sizeof(float));
    double worst = 0, worst_gradient = 0, worst_step;
    for (int i = 0; i < D_COUNT; i++) out[i] = space((size_t)part_count(h, i) * sizeof(float));
    through_kernels(k, h, limit, out, step_o, step_S);
    for (int i = 0; i < D_COUNT; i++) {
        const bool gradient = i < D_O;
        double error = relative(out[i], want[i], NULL, part_count(h, i));
        /* a gate's gradient is what is left of sums about as large as beta's: where everything is forgotten, nothing */
        if (i == D_LOG_ALPHA && isfinite(error)) {
            const double left = rms(want[D_LOG_ALPHA], h->rows), sums = rms(want[D_BETA], h->rows);
            if (left < 1e-3 * sums) error *= left / (1e-3 * sums);
        }
        if (!(error <= (gradient ? gradient_bound : forward_bound)))
            fail_msg("%s, chunks of %lld: %s is off by %.2g", what, (long long)limit, part_name[i], error);
        if (gradient && error > worst_gradient) worst_gradient = error;
        if (!gradient && error > worst) worst = error;
    }
    worst_step = relative(step_o, want[D_O], NULL, part_count(h, D_O));
    const double state = relative(step_S, want[D_FINAL], NULL, part_count(h, D_FINAL));
    if (state > worst_step) worst_step = state;
    if (!(worst_step <= forward_bound)) fail_msg("%s: step is off by %.2g", what, worst_step);
    print_message("%-44s chunks of %2lld: step %.1e, chunk %.1e, gradients %.1e\n", what, (long long)limit, worst_step,
                  worst, worst_gradient);
    for (int i = 0; i < D_COUNT; i++) chm_free(out[i]);
    chm_free(step_o);
    chm_free(step_S);
}

static void each_backend(const char *what, const struct head_case *h, double *const want[D_COUNT], double forward_bound,
                         double gradient_bound) {
    static const int64_t limits[] = {64, 17, 1};
    char name[96];
    for (size_t b = 0; b < CHM_ARRAY_COUNT(backends); b++) {
        chm_runtime *r = try_runtime(backends[b], 2);
        if (!r) continue;
        snprintf(name, sizeof name, "%s, %s", what, backends[b]);
        for (size_t i = 0; i < CHM_ARRAY_COUNT(limits); i++)
            compare_kernels(&r->kernels.kernels, name, h, limits[i], want, forward_bound, gradient_bound);
        chm_runtime_destroy(r);
    }
}

static void free_case(struct head_case *h) {
    float *all[] = {h->q, h->k, h->v, h->log_alpha, h->beta, h->S0, h->d_o, h->dS};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(all); i++) chm_free(all[i]);
}

/* columns of one head out of [rows][heads][n], or a state's [heads][n] */
static float *head_of(const float *from, int64_t rows, int64_t heads, int64_t n, int64_t head) {
    float *to = space((size_t)(rows * n) * sizeof(float));
    for (int64_t t = 0; t < rows; t++) memcpy(to + t * n, from + (t * heads + head) * n, (size_t)n * sizeof(float));
    return to;
}

static void test_golden_recurrence(void **state) {
    (void)state;
    static const char *const names[] = {"gd_recurrence", "gd_recurrence_negeig"};
    static const char *const parts[D_COUNT] = {"dq", "dk",          "dv", "dlog_alpha", "dbeta", "gradstate.memory",
                                               "o",  "final.memory"};
    char path[4096], what[96];
    for (size_t g = 0; g < CHM_ARRAY_COUNT(names); g++) {
        struct file golden;
        open_golden(&golden, names[g], path);
        const int64_t H = number(&golden, "num_heads"), dk = number(&golden, "head_dim");
        const int64_t dv = dk * number(&golden, "value_expand");
        int64_t n;
        floats(&golden, "log_alpha", &n);
        const int64_t T = n / H;
        for (int64_t head = 0; head < H; head++) {
            struct head_case h = {.rows = T, .dk = dk, .dv = dv};
            h.q = head_of(floats(&golden, "q", NULL), T, H, dk, head);
            h.k = head_of(floats(&golden, "k", NULL), T, H, dk, head);
            h.v = head_of(floats(&golden, "v", NULL), T, H, dv, head);
            h.log_alpha = head_of(floats(&golden, "log_alpha", NULL), T, H, 1, head);
            h.beta = head_of(floats(&golden, "beta", NULL), T, H, 1, head);
            h.S0 = head_of(floats(&golden, "state.memory", NULL), 1, H, dk * dv, head);
            h.d_o = head_of(floats(&golden, "do", NULL), T, H, dv, head);
            h.dS = head_of(floats(&golden, "dstate.memory", NULL), 1, H, dk * dv, head);
            double *computed[D_COUNT], *want[D_COUNT];
            oracle(&h, computed);
            for (int i = 0; i < D_COUNT; i++) {
                const bool matrix = i == D_STATE || i == D_FINAL;
                const int64_t count = part_count(&h, i), rows = matrix ? 1 : T;
                float *published = head_of(floats(&golden, parts[i], NULL), rows, H, count / rows, head);
                const double error = relative(published, computed[i], NULL, count);
                if (!(error <= rounded_once)) fail_msg("%s: the oracle's %s is off by %.2g", names[g], parts[i], error);
                want[i] = widen(published, count);
                chm_free(published);
            }
            snprintf(what, sizeof what, "%s head %lld", names[g], (long long)head);
            each_backend(what, &h, want, tolerance(&golden), tolerance(&golden));
            for (int i = 0; i < D_COUNT; i++) {
                free(computed[i]);
                free(want[i]);
            }
            free_case(&h);
        }
        close_file(&golden);
    }
}

/* Gates and keys at the edges, where forms that multiply e^g by e^-g overflow and forms that solve lose digits. */
static void test_extremes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t rows, dk, dv;
        double forward, gradient;
    } cases[] = {
        {"log_alpha -30 on some rows", 200, 64, 64, 2e-6, 2e-6},
        {"log_alpha -30 on every row", 70, 16, 24, 2e-6, 2e-6},
        {"log_alpha 0, beta 1: nothing forgotten", 130, 33, 17, 5e-6, 1e-5},
        {"beta 0: nothing written", 100, 16, 16, 2e-6, 2e-6},
        {"beta 2, log_alpha 0: reflections", 130, 64, 64, 5e-6, 1e-5},
        {"near-equal keys, beta 1", 192, 64, 64, 5e-6, 2e-5},
        {"near-equal keys, beta 2", 192, 32, 64, 1e-5, 4e-5},
        {"one row", 1, 64, 64, 2e-6, 2e-6},
        {"width one", 65, 1, 1, 2e-6, 1e-5}, /* the gradient of the state is a single number */
        {"gates of exactly 0", 150, 24, 33, 2e-6, 2e-6},
        {"keys of no length", 150, 33, 24, 2e-6, 5e-6},
        {"4096 rows", 4096, 40, 24, 5e-6, 1e-5},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        const int64_t T = cases[i].rows, dk = cases[i].dk, dv = cases[i].dv;
        struct head_case h = {.rows = T, .dk = dk, .dv = dv};
        float **arrays[] = {&h.q, &h.k, &h.v, &h.log_alpha, &h.beta, &h.S0, &h.d_o, &h.dS};
        const int64_t counts[] = {T * dk, T * dk, T * dv, T, T, dk * dv, T * dv, dk * dv};
        for (uint32_t a = 0; a < CHM_ARRAY_COUNT(arrays); a++) {
            *arrays[a] = space((size_t)counts[a] * sizeof(float));
            chm_normals(17 + i, CHM_RANDOM_TEST, a, counts[a], *arrays[a]);
        }
        const bool near = strstr(cases[i].name, "near-equal") != NULL;
        for (int64_t t = 0; t < T; t++) {
            double q = 1e-6, k = 1e-6;
            for (int64_t c = 0; c < dk; c++) {
                if (near) h.k[t * dk + c] = h.k[c] + (t ? 1e-3f * h.k[t * dk + c] : 0);
                q += (double)h.q[t * dk + c] * (double)h.q[t * dk + c];
                k += (double)h.k[t * dk + c] * (double)h.k[t * dk + c];
            }
            /* near-equal keys are made from row 0's, which is normalised last */
            for (int64_t c = 0; c < dk; c++) {
                h.q[t * dk + c] = (float)((double)h.q[t * dk + c] / sqrt(q));
                if (!near || t) h.k[t * dk + c] = (float)((double)h.k[t * dk + c] / sqrt(k));
            }
            const double u = chm_uniform_at(3, CHM_RANDOM_TEST, 70, (uint64_t)t);
            h.log_alpha[t] = (float)(-0.05 * u);
            h.beta[t] = (float)u;
            switch (i) {
            case 0:
                if (t % 20 == 7 || t % 64 == 63 || t % 64 == 0) h.log_alpha[t] = -30;
                break;
            case 1:
                h.log_alpha[t] = -30;
                break;
            case 2:
                h.log_alpha[t] = 0;
                h.beta[t] = 1;
                break;
            case 3:
                h.beta[t] = 0;
                break;
            case 4:
                h.log_alpha[t] = 0;
                h.beta[t] = 2;
                break;
            case 5:
                h.beta[t] = 1;
                break;
            case 6:
                h.beta[t] = 2;
                break;
            case 9:
                if (t % 3 == 1) h.log_alpha[t] = -1e4f;
                if (t % 5 == 2) h.beta[t] = 0;
                break;
            case 10:
                for (int64_t c = 0; t % 3 && c < dk; c++) h.k[t * dk + c] = 0;
                break;
            default:
                break;
            }
        }
        if (near) {
            double k = 0;
            for (int64_t c = 0; c < dk; c++) k += (double)h.k[c] * (double)h.k[c];
            for (int64_t c = 0; c < dk; c++) h.k[c] = (float)((double)h.k[c] / sqrt(k));
        }
        double *want[D_COUNT];
        oracle(&h, want);
        each_backend(cases[i].name, &h, want, cases[i].forward, cases[i].gradient);
        for (int p = 0; p < D_COUNT; p++) free(want[p]);
        free_case(&h);
    }
}

/* ---- the exact step ---- */

/* One step against the exponential of the flow it solves, and the slopes of its gain against the reference's. */
static void test_exact_step(void **state) {
    (void)state;
    enum { DK = 16, DV = 8 };
    static const double betas[] = {0, 1e-6, 0.3, 1}, lengths[] = {0, 1e-30, 1e-3, 0.01, 0.0316, 0.3, 1, 3, 10, 100};
    double worst = 0, worst_slope = 0;
    for (uint64_t b = 0; b < CHM_ARRAY_COUNT(betas); b++)
        for (uint64_t l = 0; l < CHM_ARRAY_COUNT(lengths); l++) {
            double k[DK], v[DV], S[DK * DV], want[DK * DV], raw = 0, error = 0, size = 0;
            for (uint64_t i = 0; i < DK * DV; i++)
                want[i] = S[i] = chm_uniform_at(5, CHM_RANDOM_TEST, 1, b * 4096 + l * 256 + i) - 0.5;
            for (uint64_t i = 0; i < DV; i++)
                v[i] = chm_uniform_at(5, CHM_RANDOM_TEST, 2, b * 4096 + l * 256 + i) - 0.5;
            for (uint64_t i = 0; i < DK; i++) {
                k[i] = chm_uniform_at(5, CHM_RANDOM_TEST, 3, b * 4096 + l * 256 + i) - 0.5;
                raw += k[i] * k[i];
            }
            double square = 0;
            for (int i = 0; i < DK; i++) {
                k[i] *= lengths[l] / sqrt(raw);
                square += k[i] * k[i];
            }
            double slope[2], by_beta, by_square;
            const double c = efla_gain(betas[b], square, &by_beta, &by_square);
            ref_efla(betas[b], square, slope);
            worst_slope = fmax(worst_slope, fabs(by_beta - slope[0]));
            if (slope[1] != 0) worst_slope = fmax(worst_slope, fabs(by_square / slope[1] - 1));
            ref_efla_flow(DK, DV, betas[b], k, v, want);
            for (int j = 0; j < DV; j++) {
                double seen = 0;
                for (int i = 0; i < DK; i++) seen += k[i] * S[i * DV + j];
                for (int i = 0; i < DK; i++) {
                    const double got = S[i * DV + j] + k[i] * c * (v[j] - seen), d = got - want[i * DV + j];
                    error += d * d;
                    size += want[i * DV + j] * want[i * DV + j];
                }
            }
            worst = fmax(worst, sqrt(error / size));
        }
    print_message("one step against the exponential: %.1e, slopes of the gain: %.1e\n", worst, worst_slope);
    assert_true(worst <= 1e-12);
    assert_true(worst_slope <= 1e-9);
    assert_true(efla_gain(1, 1e300, NULL, NULL) == 1e-300 && efla_gain(0.5, 0, NULL, NULL) == 0.5);
}

/* 4096 rows with keys of every length through the kernels of every backend, and the gradients of gain and key
 * together. */
static void test_exact_rows(void **state) {
    (void)state;
    enum { T = 4096, DK = 64, DV = 64 };
    struct head_case h = {.rows = T, .dk = DK, .dv = DV};
    float **arrays[] = {&h.q, &h.k, &h.v, &h.log_alpha, &h.beta, &h.S0, &h.d_o, &h.dS};
    const int64_t counts[] = {T * DK, T * DK, T * DV, T, T, DK * DV, T * DV, DK * DV};
    for (uint32_t a = 0; a < CHM_ARRAY_COUNT(arrays); a++) {
        *arrays[a] = space((size_t)counts[a] * sizeof(float));
        chm_normals(29, CHM_RANDOM_TEST, a, counts[a], *arrays[a]);
    }
    float *beta = space(T * sizeof(float));
    for (int64_t t = 0; t < T; t++) {
        double q = 0, k = 0;
        for (int i = 0; i < DK; i++) {
            q += (double)h.q[t * DK + i] * (double)h.q[t * DK + i];
            k += (double)h.k[t * DK + i] * (double)h.k[t * DK + i];
        }
        const double length = pow(10, 5 * chm_uniform_at(3, CHM_RANDOM_TEST, 71, (uint64_t)t) - 3);
        for (int i = 0; i < DK; i++) {
            h.q[t * DK + i] = (float)((double)h.q[t * DK + i] / sqrt(q));
            h.k[t * DK + i] = t % 50 == 7 ? 0 : (float)((double)h.k[t * DK + i] / sqrt(k) * length);
        }
        const double u = chm_uniform_at(3, CHM_RANDOM_TEST, 70, (uint64_t)t);
        h.log_alpha[t] = (float)(-0.02 * u);
        beta[t] = t % 31 == 3 ? 0 : t % 31 == 4 ? 1 : (float)u;
    }
    const float *const in[] = {h.k, beta};
    efla_forward(NULL, T, (const int64_t[]){DK, 1}, in, 1, h.beta);
    /* the oracle's gains are its own, in f64 */
    double *want[D_COUNT], *gain = widen(NULL, T), error = 0;
    for (int64_t t = 0; t < T; t++) {
        double square = 0;
        for (int i = 0; i < DK; i++) square += (double)h.k[t * DK + i] * (double)h.k[t * DK + i];
        gain[t] = ref_efla((double)beta[t], square, NULL);
        if (gain[t] > 0) error = fmax(error, fabs((double)h.beta[t] / gain[t] - 1));
    }
    print_message("gain, largest relative error in f32: %.1e\n", error);
    assert_true(error <= 1.3e-7);
    oracle_of(&h, gain, want);
    free(gain);
    each_backend("exact step, |k| 1e-3..1e2, beta 0..1", &h, want, 2e-6, 1e-5);
    /* what the operator makes of a gradient of its gains */
    float *din[] = {space(T * DK * sizeof(float)), space(T * sizeof(float))}, *d = space(T * sizeof(float));
    memset(din[0], 0, T * DK * sizeof(float));
    memset(din[1], 0, T * sizeof(float));
    for (int64_t t = 0; t < T; t++) d[t] = (float)want[D_BETA][t];
    efla_backward(NULL, T, (const int64_t[]){DK, 1}, in, 1, h.beta, d, din);
    double *dk = widen(NULL, T * DK), *dbeta = widen(NULL, T);
    for (int64_t t = 0; t < T; t++) {
        double square = 0, slope[2];
        for (int i = 0; i < DK; i++) square += (double)h.k[t * DK + i] * (double)h.k[t * DK + i];
        ref_efla((double)beta[t], square, slope);
        dbeta[t] = (double)d[t] * slope[0];
        for (int i = 0; i < DK; i++) dk[t * DK + i] = 2 * (double)d[t] * slope[1] * (double)h.k[t * DK + i];
    }
    assert_true(relative(din[0], dk, NULL, T * DK) <= 1e-6);
    assert_true(relative(din[1], dbeta, NULL, T) <= 1e-6);
    free(dk);
    free(dbeta);
    chm_free(din[0]);
    chm_free(din[1]);
    chm_free(d);
    chm_free(beta);
    for (int p = 0; p < D_COUNT; p++) free(want[p]);
    free_case(&h);
}

static const double *doubles(const struct file *f, const char *name) {
    const chm_st_tensor *t = chm_safetensors_find(f->st, name);
    if (!t || t->dtype != CHM_ST_F64) fail_msg("no f64 tensor %s", name);
    return (const double *)(const void *)t->data;
}

/* 2048 rows of the loop that the authors of EFLA published, and of the exponential of the flow: the oracle against
 * both, the kernels of every backend against the public result. */
static void test_public_exact_rows(void **state) {
    (void)state;
    char path[4096];
    struct file golden;
    open_golden(&golden, "gd_efla_public", path);
    const int64_t d = number(&golden, "head_dim"), T = number(&golden, "rows");
    struct head_case h = {.rows = T, .dk = d, .dv = d};
    float **arrays[] = {&h.q, &h.k, &h.v, &h.log_alpha, &h.beta, &h.S0, &h.d_o, &h.dS};
    const int64_t counts[] = {T * d, T * d, T * d, T, T, d * d, T * d, d * d};
    for (uint32_t a = 0; a < CHM_ARRAY_COUNT(arrays); a++) {
        *arrays[a] = space((size_t)counts[a] * sizeof(float));
        chm_normals(31, CHM_RANDOM_TEST, a, counts[a], *arrays[a]);
    }
    memset(h.log_alpha, 0, (size_t)T * sizeof(float));
    memset(h.S0, 0, (size_t)(d * d) * sizeof(float));
    memcpy(h.k, floats(&golden, "k", NULL), (size_t)(T * d) * sizeof(float));
    memcpy(h.v, floats(&golden, "v", NULL), (size_t)(T * d) * sizeof(float));
    memcpy(h.q + (T - 1) * d, floats(&golden, "q", NULL), (size_t)d * sizeof(float));
    const float *beta = floats(&golden, "beta", NULL), *const in[] = {h.k, beta};
    double *gain = widen(NULL, T), *want[D_COUNT];
    for (int64_t t = 0; t < T; t++) {
        double square = 0;
        for (int64_t i = 0; i < d; i++) square += (double)h.k[t * d + i] * (double)h.k[t * d + i];
        gain[t] = ref_efla((double)beta[t], square, NULL);
    }
    oracle_of(&h, gain, want);
    const double *public = doubles(&golden, "final.memory"), *answer = doubles(&golden, "o");
    double length = 0, exact = 0, loop = 0, asked = 0, size = 0, answers = 0;
    for (int64_t i = 0; i < d; i++) length += (double)h.q[(T - 1) * d + i] * (double)h.q[(T - 1) * d + i];
    for (int64_t i = 0; i < d * d; i++) {
        exact += pow(want[D_FINAL][i] - doubles(&golden, "exact.memory")[i], 2);
        loop += pow(want[D_FINAL][i] - public[i], 2);
        size += public[i] * public[i];
    }
    for (int64_t i = 0; i < d; i++) {
        asked += pow(sqrt((double)d / length) * want[D_O][(T - 1) * d + i] - answer[i], 2);
        answers += answer[i] * answer[i];
    }
    exact = sqrt(exact / size);
    loop = sqrt(loop / size);
    asked = sqrt(asked / answers);
    print_message("the oracle against the exponential %.1e, the public loop %.1e, its answer %.1e\n", exact, loop,
                  asked);
    assert_true(exact <= 1e-12);
    assert_true(loop <= 2e-7 && asked <= 2e-7); /* the loop divides by lambda + 1e-6 */
    memcpy(want[D_FINAL], public, (size_t)(d * d) * sizeof *public);
    efla_forward(NULL, T, (const int64_t[]){d, 1}, in, 1, h.beta);
    each_backend("the public loop of EFLA", &h, want, 2e-6, 2e-6);
    free(gain);
    for (int i = 0; i < D_COUNT; i++) free(want[i]);
    free_case(&h);
    close_file(&golden);
}

/* ---- the generated tests ---- */

static void test_layers_pass(void **state) {
    (void)state;
    static const struct {
        const char *plugin;
        const char *sets[4];
        uint32_t count;
        int64_t rows;
    } cases[] = {
        {"gd", {NULL}, 0, 0},
        {"gd", {"gd.value_expand=2", "gd.allow_neg_eigval=true", "num_heads=2", "head_dim=32"}, 4, 40},
        {"gd", {"gd.short_conv=0", "gd.output_gate=false", "rms_norm_before_every_linear=false"}, 3, 70},
        {"gd", {"gd.chunk_size=7", "gd.short_conv=1"}, 2, 30},
        {"gd", {"gd.chunkwise_parallel=false"}, 1, 30},
        {"gd", {"gd.efla=true"}, 1, 0},
        {"gd", {"efla.enabled=true", "efla.target_layers=gd", "gd.value_expand=2", "gd.short_conv=0"}, 4, 30},
        {"mlp", {"intermediate_size=100"}, 1, 0},
    };
    chm_runtime *r = open_runtime(2, NULL);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        int status;
        char *report = report_of(r, cases[i].plugin, cases[i].sets, cases[i].count, cases[i].rows, &status);
        if (status) fail_msg("case %zu: %s", i, chm_error());
        static const char *const both[] = {"split",
                                           "batch",
                                           "threads: 1..4, step",
                                           "fork",
                                           "tree",
                                           "rewind",
                                           "accept",
                                           "reset",
                                           "memory",
                                           "read: the same question",
                                           "read: split",
                                           "causality: step",
                                           "taped step against step"};
        for (size_t k = 0; k < CHM_ARRAY_COUNT(both); k++) {
            if (!says(report, both[k], "f32", "pass")) fail_msg("case %zu: no '%s' in f32", i, both[k]);
            if (!says(report, both[k], "bitnet", "pass")) fail_msg("case %zu: no '%s' in bitnet", i, both[k]);
        }
        static const char *const once[] = {"chunk against step: output", "carry",
                                           "causality: chunk",           "read: chunk against step",
                                           "gradient: rows x",           "read: gradient: rows x of the second pass"};
        for (size_t k = 0; k < CHM_ARRAY_COUNT(once); k++)
            if (!says(report, once[k], "f32", "pass")) fail_msg("case %zu: no '%s'", i, once[k]);
        assert_false(says(report, "split", "f32", "FAIL"));
        free(report);
    }
    chm_runtime_destroy(r);
}

/* ---- kernels with one thing wrong ---- */

static struct chm_kernels real;
static int broken; /* which of the gradients is scaled */

static void scale_added(float *after, const float *before, int64_t rows, int64_t columns, int64_t stride) {
    for (int64_t t = 0; t < rows; t++)
        for (int64_t c = 0; c < columns; c++) {
            const float b = before[t * columns + c];
            after[t * stride + c] = b + 1.02f * (after[t * stride + c] - b);
        }
}

static void broken_backward(const float *S, int64_t dk, int64_t dv, int64_t rows, int n_ask, const float *const *q,
                            int64_t qs, const float *k, int64_t ks, const float *v, int64_t vs, const float *log_alpha,
                            const float *beta, int64_t gs, float scale, const float *const *do_, int64_t os,
                            float *const *dq, float *dk_, float *dv_, float *dlog_alpha, float *dbeta, float *dS,
                            float *scratch_floats) {
    float *const target[] = {dq[0], dk_, dv_, dlog_alpha, dbeta, dS};
    const int64_t columns[] = {dk, dk, dv, 1, 1, dk * dv}, strides[] = {qs, ks, vs, gs, gs, dk * dv};
    const int64_t count = broken == D_STATE ? 1 : rows;
    float *before = NULL, *to = target[broken];
    if (to) {
        before = space((size_t)(count * columns[broken]) * sizeof(float));
        if (broken != D_STATE) /* dS is replaced, the others are added to */
            for (int64_t t = 0; t < count; t++)
                memcpy(before + t * columns[broken], to + t * strides[broken], (size_t)columns[broken] * sizeof(float));
    }
    real.delta_chunk_backward(S, dk, dv, rows, n_ask, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, do_, os, dq, dk_,
                              dv_, dlog_alpha, dbeta, dS, scratch_floats);
    if (to) scale_added(to, before, count, columns[broken], strides[broken]);
    chm_free(before);
}

static void broken_read(const float *S, int64_t dk, int64_t dv, const float *q, float scale, float *o) {
    real.delta_read(S, dk, dv, q, scale, o);
    o[0] *= 1.001f; /* one column: the norm after it would hide a common factor */
}

static void broken_chunk(float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs, const float *k,
                         int64_t ks, const float *v, int64_t vs, const float *log_alpha, const float *beta, int64_t gs,
                         float scale, float *o, int64_t os, float *scratch_floats) {
    real.delta_chunk(S, dk, dv, rows, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, o, os, scratch_floats);
    for (int64_t t = 0; t < rows; t++) o[t * os] *= 1.001f;
}

static void broken_chunk_read(const float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs,
                              const float *k, int64_t ks, const float *v, int64_t vs, const float *log_alpha,
                              const float *beta, int64_t gs, float scale, float *o, int64_t os, float *scratch_floats) {
    real.delta_chunk_read(S, dk, dv, rows, q, qs, k, ks, v, vs, log_alpha, beta, gs, scale, o, os, scratch_floats);
    for (int64_t t = 0; t < rows; t++) o[t * os] *= 1.001f;
}

/* Rows that are only replayed are forgotten. */
static void broken_replay(float *S, int64_t dk, int64_t dv, const float *q, const float *k, const float *v,
                          float log_alpha, float beta, float scale, float *o) {
    if (o) real.delta_step(S, dk, dv, q, k, v, log_alpha, beta, scale, o);
}

/* A state of its own, shared by all streams. */
static void broken_step(float *S, int64_t dk, int64_t dv, const float *q, const float *k, const float *v,
                        float log_alpha, float beta, float scale, float *o) {
    static _Atomic unsigned calls;
    real.delta_step(S, dk, dv, q, k, v, log_alpha, beta, scale, o);
    if (o && atomic_fetch_add(&calls, 1) % 13 == 5) o[0] += 1e-3f;
}

static void broken_rmsnorm(const float *x, int64_t n, int64_t width, const float *weight, int64_t weight_rows,
                           const float *rstd, const float *dy, float *dx, float *dweight) {
    float *before = NULL;
    const int64_t count = weight_rows * width;
    if (dweight) {
        before = space((size_t)count * sizeof(float));
        memcpy(before, dweight, (size_t)count * sizeof(float));
    }
    real.rmsnorm_backward(x, n, width, weight, weight_rows, rstd, dy, dx, dweight);
    if (dweight) scale_added(dweight, before, 1, count, count);
    chm_free(before);
}

static void expect_failures(chm_runtime *r, const char *what, const char *const *names, const char *passes) {
    int status;
    char *report = report_of(r, "gd", NULL, 0, 33, &status);
    if (status != CHM_E_VERDICT) fail_msg("%s: status %d, expected the verdict", what, status);
    for (; *names; names++) {
        if (!says(report, *names, "f32", "FAIL")) fail_msg("%s was not caught by '%s'", what, *names);
        print_message("%-40s caught by '%s'\n", what, *names);
    }
    if (passes && !says(report, passes, "f32", "pass")) fail_msg("%s: '%s' should pass", what, passes);
    assert_non_null(strstr(chm_error(), "layer gd: "));
    assert_non_null(strstr(chm_error(), "tests failed, first '"));
    free(report);
}
#define EXPECT(what, passes, ...) expect_failures(r, what, (const char *const[]){__VA_ARGS__, NULL}, passes)

static void test_broken_kernels(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(1, NULL);
    struct chm_kernels *k = &r->kernels.kernels;
    real = *k;
    static const struct {
        int part;
        const char *what, *caught, *fine;
    } gradients[] = {
        {D_Q, "dq times 1.02", "gradient: parameter q", "gradient: parameter v"},
        {D_K, "dk times 1.02", "gradient: parameter k", "gradient: parameter v"},
        {D_V, "dv times 1.02", "gradient: parameter v", "gradient: parameter q"},
        {D_LOG_ALPHA, "dlog_alpha times 1.02", "gradient: parameter A_log", "gradient: parameter b"},
        {D_BETA, "dbeta times 1.02", "gradient: parameter b", "gradient: parameter k"},
        {D_STATE, "dS times 1.02", "gradient: state memory", "gradient: parameter q"},
    };
    k->delta_chunk_backward = broken_backward;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(gradients); i++) {
        broken = gradients[i].part;
        EXPECT(gradients[i].what, gradients[i].fine, gradients[i].caught);
    }
    *k = real;
    k->rmsnorm_backward = broken_rmsnorm;
    EXPECT("gradient of a norm's weight times 1.02", "gradient: parameter q", "gradient: parameter o_norm",
           "gradient: parameter head_norm");
    *k = real;
    k->delta_read = broken_read;
    EXPECT("a column of read times 1.001", "split", "read: the same question", "read: chunk against step");
    *k = real;
    k->delta_chunk = broken_chunk;
    EXPECT("a column of chunk times 1.001", "split", "chunk against step: output");
    *k = real;
    k->delta_chunk_read = broken_chunk_read;
    EXPECT("a column of chunk_read times 1.001", "chunk against step: output", "read: chunk against step");
    *k = real;
    k->delta_step = broken_replay;
    EXPECT("replayed rows forgotten", "split", "accept");
    *k = real;
    k->delta_step = broken_step;
    EXPECT("a static counter in step", NULL, "split", "fork", "tree");
    chm_runtime_destroy(r);
}

/* ---- layers with one thing wrong ---- */

enum bad_kind { BAD_FORWARD_LOOKING, BAD_MEMORY, BAD_NO_CHUNK, BAD_SILENT, BAD_WIDTH };

struct bad_layer {
    chm_param *w;
    int state;
};

static enum bad_kind bad_kind;

static int bad_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    struct bad_layer *l = self;
    l->w = chm_declare_matrix(d, "w", CHM_ROLE_FULL, chm_normal(0), info->width, info->width);
    l->state = chm_declare_state(d, "sum", CHM_F32, 1, 1, &info->width);
    return CHM_OK;
}

/* Looks at the row after its own. */
static void look_forward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                         int64_t out_width, float *out) {
    (void)self;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < out_width; i++)
            out[r * out_width + i] =
                in[0][r * width[0] + i] + (r + 1 < rows ? 0.5f * in[0][(r + 1) * width[0] + i] : 0);
}
static void look_backward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                          int64_t out_width, const float *out, const float *dout, float *const *din) {
    (void)self, (void)in, (void)out;
    for (int64_t r = 0; r < rows && din[0]; r++)
        for (int64_t i = 0; i < out_width; i++) {
            din[0][r * width[0] + i] += dout[r * out_width + i];
            if (r + 1 < rows) din[0][(r + 1) * width[0] + i] += 0.5f * dout[r * out_width + i];
        }
}
static const chm_operator looking = {
    .size = sizeof looking, .n_inputs = 1, .name = "look", .forward = look_forward, .backward = look_backward};

/* Adds its rows up, and remembers the last row of whoever came before in a variable of its own. */
static void add_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    static float kept;
    float *s = state[0];
    for (int64_t i = 0; i < h->out_width; i++) s[i] = 0.9f * s[i] + in[0][i];
    for (int64_t i = 0; out && i < h->out_width; i++) out[i] = s[i] + (bad_kind == BAD_MEMORY ? 0.1f * kept : 0);
    if (h->head == 0) kept = in[0][0];
}
static const chm_recurrence adding = {
    .size = sizeof adding, .n_inputs = 1, .n_states = 1, .name = "adding", .step = add_step};

static chm_tensor *bad_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct bad_layer *l = self;
    x = chm_linear(g, x, l->w);
    switch (bad_kind) {
    case BAD_FORWARD_LOOKING:
        return x ? chm_apply(g, &looking, l, &x, x->width) : NULL;
    case BAD_SILENT:
        return NULL;
    case BAD_WIDTH:
        return chm_slice(g, x, 0, 2);
    default:
        return x ? chm_recur(g, &adding, l, &x, NULL, &l->state, 1, x->width) : NULL;
    }
}

static const struct chm_layer_ops bad_ops = {.size = sizeof bad_ops, .declare = bad_declare, .forward = bad_forward};
static const struct chm_plugin bad_plugin = {.magic = CHM_MAGIC,
                                             .abi = CHM_ABI,
                                             .size = sizeof bad_plugin,
                                             .kind = CHM_KIND_LAYER,
                                             .name = "bad",
                                             .version = "1.0.0",
                                             .licence = "Apache-2.0",
                                             .summary = "a layer with a mistake",
                                             .instance_size = sizeof(struct bad_layer),
                                             .ops = &bad_ops};

static void test_broken_layers(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(1, NULL);
    struct chm_plugin_file *loaded = r->registry.files;
    struct chm_plugin_file *files = malloc((r->registry.file_count + 1) * sizeof *files);
    assert_non_null(files);
    memcpy(files, loaded, r->registry.file_count * sizeof *files);
    files[r->registry.file_count++] = (struct chm_plugin_file){.plugin = &bad_plugin, .origin = "built in"};
    r->registry.files = files;
    int status;
    char *report;

    bad_kind = BAD_FORWARD_LOOKING;
    report = report_of(r, "bad", NULL, 0, 20, &status);
    assert_int_equal(status, CHM_E_VERDICT);
    assert_true(says(report, "split", "f32", "FAIL"));
    assert_true(says(report, "causality: step", "f32", "FAIL"));
    assert_true(says(report, "causality: chunk", "f32", "FAIL"));
    assert_true(says(report, "tree", "f32", "FAIL"));
    assert_true(says(report, "gradient: rows x", "f32", "pass"));
    assert_non_null(strstr(chm_error(), "kept outside the declared states"));
    free(report);

    bad_kind = BAD_MEMORY;
    report = report_of(r, "bad", NULL, 0, 20, &status);
    assert_int_equal(status, CHM_E_VERDICT);
    assert_true(says(report, "fork", "f32", "FAIL"));
    assert_true(says(report, "tree", "f32", "FAIL"));
    free(report);

    /* no chunk and no read: sound for inference, and the report says what is missing */
    bad_kind = BAD_NO_CHUNK;
    report = report_of(r, "bad", NULL, 0, 20, &status);
    if (status) fail_msg("%s", chm_error());
    assert_true(says(report, "split", "f32", "pass"));
    assert_true(says(report, "chunk against step", "f32", "skip"));
    assert_true(says(report, "gradient", "f32", "skip"));
    assert_true(says(report, "read", "f32", "skip"));
    assert_non_null(strstr(report, "has no chunk form and cannot be trained"));
    assert_non_null(strstr(report, "has no read form and cannot stand inside a loop"));
    free(report);

    bad_kind = BAD_SILENT;
    report = report_of(r, "bad", NULL, 0, 20, &status);
    assert_int_equal(status, CHM_E_PLUGIN);
    assert_non_null(strstr(chm_error(), "returned nothing and said nothing"));
    free(report);
    bad_kind = BAD_WIDTH;
    report = report_of(r, "bad", NULL, 0, 20, &status);
    assert_int_equal(status, CHM_E_PLUGIN);
    assert_non_null(strstr(chm_error(), "plugin bad returned [19, 2] for [19, 48]"));
    free(report);

    r->registry.files = loaded;
    r->registry.file_count--;
    free(files);
    chm_runtime_destroy(r);
}

/* ---- what is refused ---- */

struct edit {
    const char *drop, *add;  /* tensor names */
    int64_t shape[3];        /* of the one added */
    const char *key, *value; /* metadata replaced or added */
    bool whole_numbers;      /* it is I64, else F32 */
    bool grad;
    int status;
    const char *words[2];
};

static void write_edited(const struct file *from, const struct edit *e) {
    static const float zeros[1 << 16];
    chm_st_tensor *tensors = calloc((size_t)from->st->count + 1, sizeof *tensors);
    const char *keys[32], *values[32];
    int n = 0, metas = 0;
    assert_non_null(tensors);
    for (int i = 0; i < from->st->count; i++)
        if (!e->drop || strcmp(from->st->tensor[i].name, e->drop) != 0) tensors[n++] = from->st->tensor[i];
    if (e->add) {
        chm_st_tensor *t = &tensors[n++];
        *t = (chm_st_tensor){
            .name = e->add, .dtype = e->whole_numbers ? CHM_ST_I64 : CHM_ST_F32, .data = (const uint8_t *)zeros};
        uint64_t count = 1;
        for (; t->rank < 3 && e->shape[t->rank]; t->rank++) {
            t->shape[t->rank] = e->shape[t->rank];
            count *= (uint64_t)e->shape[t->rank];
        }
        t->bytes = count * (e->whole_numbers ? 8 : 4);
        assert_true(t->bytes <= sizeof zeros);
    }
    for (int i = 0; i < from->st->metas && metas < 30; i++) {
        if (e->key && !strcmp(from->st->meta_key[i], e->key)) continue;
        keys[metas] = from->st->meta_key[i];
        values[metas++] = from->st->meta_value[i];
    }
    if (e->key && e->value) {
        keys[metas] = e->key;
        values[metas++] = e->value;
    }
    if (chm_safetensors_write(made("in.safetensors"), tensors, n, keys, values, metas, false))
        fail_msg("%s", chm_error());
    free(tensors);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct edit edits[] = {
        {.drop = "x", .status = CHM_E_DATA, .words = {"'x' [rows, width] is missing"}},
        {.drop = "params.q", .status = CHM_E_DATA, .words = {"'params.q' [48, 12] is missing", "layer gd"}},
        {.add = "params.conv_w",
         .shape = {4},
         .status = CHM_E_DATA,
         .words = {"no 'parameter' for 'params.conv_w'", "did you mean 'params.conv_"}},
        {.add = "state.memori", .shape = {4}, .status = CHM_E_DATA, .words = {"state.memori", "'state.memory'"}},
        {.add = "weights", .shape = {4}, .status = CHM_E_DATA, .words = {"'weights' is no tensor of a layer file"}},
        {.drop = "params.a",
         .add = "params.a",
         .shape = {12, 3},
         .status = CHM_E_DATA,
         .words = {"'params.a' is F32 [12, 3], expected [3, 12]"}},
        {.drop = "params.a",
         .add = "params.a",
         .shape = {3, 12},
         .whole_numbers = true,
         .status = CHM_E_DATA,
         .words = {"expected F32 or F64"}},
        {.drop = "dy", .grad = true, .status = CHM_E_DATA, .words = {"gradients need 'dy'"}},
        {.drop = "dy", .add = "dy", .shape = {3, 12}, .status = CHM_E_DATA, .words = {"expected [150, 12]"}},
        {.add = "state.memory", .shape = {3, 16}, .status = CHM_E_DATA, .words = {"expected [3, 16, 16]"}},
        {.key = "num_heads", .value = "0", .status = CHM_E_CONFIG, .words = {"num_heads"}},
        {.key = "head_dim", .value = "many", .status = CHM_E_CONFIG, .words = {"head_dim"}},
        {.key = "position", .value = "first", .status = CHM_E_DATA, .words = {"metadata position 'first'"}},
        {.key = "position",
         .value = "9223372036854775800",
         .status = CHM_E_DATA,
         .words = {"metadata position '9223372036854775800'"}},
        {.key = "position",
         .value = "9007199254740993",
         .status = CHM_E_DATA,
         .words = {"metadata position 9007199254740993", "at most 2^52"}},
    };
    chm_runtime *r = open_runtime(1, "scalar");
    struct file golden;
    char path[4096];
    open_golden(&golden, "gd_qwen3next", path);
    chm_layer_options options = {.size = sizeof options, .plugin = "gd", .out = made("out.safetensors")};
    char in[4200];
    snprintf(in, sizeof in, "%s", made("in.safetensors"));
    options.in = in;
    char out[4200];
    snprintf(out, sizeof out, "%s", made("out.safetensors"));
    options.out = out;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(edits); i++) {
        const struct edit *e = &edits[i];
        write_edited(&golden, e);
        options.grad = e->grad;
        const int status = chm_layer_run(r, &options);
        if (status != e->status) fail_msg("edit %zu: status %d: %s", i, status, chm_error());
        for (int w = 0; w < 2 && e->words[w]; w++)
            if (!strstr(chm_error(), e->words[w]))
                fail_msg("edit %zu: '%s' is not in: %s", i, e->words[w], chm_error());
    }
    /* the card's own arithmetic is the default: ternary results are not those of the golden file */
    options.in = path;
    options.grad = false;
    if (chm_layer_run(r, &options)) fail_msg("%s", chm_error());
    struct file got;
    open_file(&got, out);
    int64_t n;
    const float *y = floats(&got, "y", &n);
    assert_true(relative(y, NULL, floats(&golden, "y", NULL), n) > 0.01);
    assert_string_equal(chm_safetensors_meta(got.st, "quantization.method"), "bitnet");
    close_file(&got);
    /* --set wins over the file */
    static const char *const sets[] = {"hidden_size=24"};
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = 1, .set = sets, .no_environment = 1};
    options.overlay = &overlay;
    assert_int_equal(chm_layer_run(r, &options), CHM_E_CONFIG);
    assert_non_null(strstr(chm_error(), "hidden_size is 24, but the layer's input has 12 columns"));
    options.overlay = NULL;
    options.plugin = "gdd";
    assert_int_equal(chm_layer_run(r, &options), CHM_E_PLUGIN);
    assert_non_null(strstr(chm_error(), "'gd'"));
    options.plugin = "gd";
    options.in = "/nowhere/x.safetensors";
    assert_int_equal(chm_layer_run(r, &options), CHM_E_DATA);
    chm_layer_options rows = {.size = sizeof rows, .plugin = "gd", .rows = 3};
    assert_int_equal(chm_layer_test(r, &rows, CHM_OUTPUT_TEXT, stdout), CHM_E_CONFIG);
    close_file(&golden);
    chm_runtime_destroy(r);
}

/* Out of memory at each allocation in turn: the sentence, no crash, nothing left behind (the sanitizers look). */
static void test_out_of_memory(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(1, "scalar");
    char in[4096], out[4200];
    struct file golden;
    open_golden(&golden, "gd_full", in);
    close_file(&golden);
    snprintf(out, sizeof out, "%s", made("out.safetensors"));
    const chm_layer_options options = {
        .size = sizeof options, .plugin = "gd", .in = in, .out = out, .grad = true, .rows = 8};
    int status = CHM_E_MEMORY;
    long n = 0;
    for (; status == CHM_E_MEMORY; n++) {
        chm_alloc_fail_after(n);
        status = chm_layer_run(r, &options);
        chm_alloc_fail_after(-1);
        assert_true(n < 10000);
    }
    if (status) fail_msg("allocation %ld: status %d: %s", n, status, chm_error());
    FILE *sink = fopen("/dev/null", "w");
    assert_non_null(sink);
    for (n = 0; n < 400; n += 1 + n / 3) {
        chm_alloc_fail_after(n);
        status = chm_layer_test(r, &options, CHM_OUTPUT_TEXT, sink);
        chm_alloc_fail_after(-1);
        if (status != CHM_E_MEMORY && status != CHM_OK)
            fail_msg("allocation %ld: status %d: %s", n, status, chm_error());
        if (!status) break;
    }
    fclose(sink);
    chm_runtime_destroy(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oracle_layers),     cmocka_unit_test(test_golden_layers),
        cmocka_unit_test(test_golden_recurrence), cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_exact_step),        cmocka_unit_test(test_exact_rows),
        cmocka_unit_test(test_public_exact_rows), cmocka_unit_test(test_layers_pass),
        cmocka_unit_test(test_broken_kernels),    cmocka_unit_test(test_broken_layers),
        cmocka_unit_test(test_refusals),          cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests_name("gd", tests, set_up, tear_down);
}
