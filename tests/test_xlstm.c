/*
 * test_xlstm.c: mLSTM and sLSTM against public implementations and an f64 oracle, with gates and keys at their
 * extremes; the generated layer tests, which must fail for broken kernels; what a card may not ask for.
 */
#include "graph/context.h"
#include "layer_help.h"
#include "model/stream.h"
#include "reference/ref_xlstm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static int set_up(void **state) {
    (void)state;
    return layer_set_up("xlstm");
}

static const char *out_file(void) {
    static char path[4200];
    snprintf(path, sizeof path, "%s/out.safetensors", scratch);
    return path;
}

static int tear_down(void **state) {
    (void)state;
    unlink(out_file());
    rmdir(scratch);
    chm_free(plugin_path);
    return 0;
}

/* ---- the layer against golden files ---- */

static const char *const golden_layers[] = {"xlstm_mlstm", "xlstm_carried", "xlstm_slstm", "xlstm_slstm_carried"};

/* C and n are kept over e^m, and the steps add up m in f32: its last bit, at 8, is worth 1e-6 of C, which C has and m
 * has not. What is compared is the memory, e^m C; m itself has its own comparison. */
static void restate(const struct file *got, const struct file *golden, const char *result, float *value, int64_t n) {
    if (strcmp(result, "final.memory") != 0 && strcmp(result, "final.normaliser") != 0) return;
    int64_t heads;
    const float *m = floats(got, "final.stabiliser", &heads), *want = floats(golden, "final.stabiliser", NULL);
    for (int64_t i = 0; i < n; i++) {
        const int64_t h = i / (n / heads);
        value[i] = (float)((double)value[i] * exp((double)m[h] - (double)want[h]));
    }
}

static void test_golden_layers(void **state) {
    (void)state;
    for (size_t g = 0; g < CHM_ARRAY_COUNT(golden_layers); g++)
        expect_golden("xlstm", golden_layers[g], out_file(), (struct golden_bounds){1e-6, 5e-6, restate});
}

static void test_same_bytes(void **state) {
    (void)state;
    for (size_t g = 0; g < CHM_ARRAY_COUNT(golden_layers); g++)
        expect_same_bytes("xlstm", golden_layers[g], out_file());
}

/* ---- the recurrences against the oracle, one head at a time ---- */

/* A layer's recurrence, caught in the log of a pass over one row. */
struct caught {
    chm_layer_alone layer;
    chm_context *context;
    chm_stream_state stream;
    const chm_recurrence *recurrence;
    const void *self;
};

static void catch_recurrence(struct caught *c, chm_runtime *r, const char *const *sets, uint32_t count) {
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = count, .set = sets, .no_environment = 1};
    const chm_layer_options options = {.size = sizeof options, .plugin = "xlstm", .overlay = &overlay};
    const int32_t parent = ~0;
    const int64_t position = 0;
    const chm_rows row = {1, &parent, &position};
    memset(c, 0, sizeof *c);
    if (chm_layer_alone_open(&c->layer, r, &options, NULL, 0, 0, true)) fail_msg("%s", chm_error());
    const chm_model *m = c->layer.model;
    assert_int_equal(chm_model_randomise(c->layer.model, 1), CHM_OK);
    assert_int_equal(chm_model_quantise(c->layer.model, &r->kernels.kernels, r->pool), CHM_OK);
    assert_int_equal(chm_context_create(&r->kernels.kernels, r->pool, &m->layout, 1e-6f, &c->context), CHM_OK);
    assert_int_equal(chm_stream_init(&c->stream, &m->layout), CHM_OK);
    chm_stream_state *streams[] = {&c->stream};
    float *x = calloc((size_t)m->config->width, sizeof *x);
    assert_non_null(x);
    assert_int_equal(chm_context_begin(c->context, &row, streams, 1, 0), CHM_OK);
    if (!chm_layer_alone_forward(&c->layer, c->context, chm_input(c->context, 1, m->config->width, x, 0)))
        fail_msg("%d", chm_context_status(c->context));
    for (const chm_logged *l = c->context->log; l && !c->recurrence; l = l->next) {
        c->recurrence = l->recurrence;
        c->self = l->layer;
    }
    assert_non_null(c->recurrence);
    free(x);
}

static void release(struct caught *c) {
    chm_stream_finish(&c->stream);
    chm_context_destroy(c->context);
    chm_layer_alone_close(&c->layer);
}

/* One head: floats in, and per backend what comes out of the step and the chunk form with one later question. */
enum { MOST_IN = 5, MOST_STATES = 3, ASKS = 2 };

struct head_case {
    int64_t rows, d;
    int inputs, states, question;
    bool fresh; /* a document's start: nobody asks for the gradient of that state */
    int64_t width[MOST_IN], state_size[MOST_STATES], param_size;
    float *in[MOST_IN], *ask, *state[MOST_STATES], *dout[ASKS], *dstate[MOST_STATES], *param;
};

enum {
    OUT,
    OUT_READ,
    STATE,
    DIN = STATE + MOST_STATES,
    DASK = DIN + MOST_IN,
    DSTATE,
    DPARAM = DSTATE + MOST_STATES,
    PARTS
};
static const char *const mlstm_parts[PARTS] = {"h",  "h of a read", "C",      "n",    "m",   "dq",  "dk",
                                               "dv", "dlog_i",      "dlog_f", "dask", "dC0", "dn0", "dm0"};
static const char *const slstm_parts[PARTS] = {"h",  "h of a read", "cell", NULL,    NULL, "di", "df", "dz",
                                               "do", NULL,          "dask", "dcell", NULL, NULL, "dR"};

static int64_t part_count(const struct head_case *h, int part) {
    if (part == OUT || part == OUT_READ) return h->rows * h->d;
    if (part < DIN) return part - STATE < h->states ? h->state_size[part - STATE] : 0;
    if (part < DASK) return part - DIN < h->inputs ? h->rows * h->width[part - DIN] : 0;
    if (part == DASK) return h->rows * h->width[h->question];
    if (part < DPARAM) return part - DSTATE < h->states ? h->state_size[part - DSTATE] : 0;
    return h->param_size;
}

static float *space(int64_t n) {
    float *p = chm_alloc_aligned((size_t)(n > 0 ? n : 1) * sizeof *p);
    assert_non_null(p);
    memset(p, 0, (size_t)(n > 0 ? n : 1) * sizeof *p);
    return p;
}

static float *normals(uint64_t seed, int64_t n, double size) {
    float *p = space(n);
    chm_normals(seed, CHM_RANDOM_TEST, 3, n, p);
    for (int64_t i = 0; i < n; i++) p[i] = (float)(size * (double)p[i]);
    return p;
}

static double *widen(const float *from, int64_t n) {
    double *to = calloc((size_t)n + 1, sizeof *to);
    assert_non_null(to);
    for (int64_t i = 0; from && i < n; i++) to[i] = (double)from[i];
    return to;
}

static void head_of(const struct head_case *h, const struct caught *c, const struct chm_kernels *kernels,
                    chm_head *head) {
    *head =
        (chm_head){.layer = c->self, .kernels = kernels, .heads = 1, .rows = 1, .out_width = h->d, .out_stride = h->d};
    for (int i = 0; i < h->inputs; i++) head->in_width[i] = head->in_stride[i] = h->width[i];
    head->param[0] = h->param;
    head->param_count[0] = h->param_size;
}

static void rows_at(const struct head_case *h, float *const *from, int64_t t, float **to) {
    for (int i = 0; i < h->inputs; i++) to[i] = from[i] ? from[i] + t * h->width[i] : NULL;
}

static void states_of(const struct head_case *h, float *const *from, float *const *to) {
    for (int i = 0; i < h->states; i++) memcpy(to[i], from[i], (size_t)h->state_size[i] * sizeof(float));
}

static void by_step(const struct head_case *h, const struct caught *c, const struct chm_kernels *k, float *out[PARTS]) {
    chm_head head;
    head_of(h, c, k, &head);
    head.scratch = space((int64_t)(c->recurrence->scratch_bytes(&head) / sizeof(float)) + 1);
    states_of(h, h->state, out + STATE);
    for (int64_t t = 0; t < h->rows; t++) {
        float *in[MOST_IN];
        rows_at(h, h->in, t, in);
        head.position = t;
        c->recurrence->step(&head, (void *const *)(out + STATE), (const float *const *)in, out[OUT] + t * h->d);
        in[h->question] = h->ask + t * h->width[h->question];
        c->recurrence->read(&head, (void *const *)(out + STATE), (const float *const *)in, out[OUT_READ] + t * h->d);
    }
    chm_free(head.scratch);
}

static void by_chunk(const struct head_case *h, const struct caught *c, const struct chm_kernels *k, int64_t limit,
                     float *out[PARTS]) {
    const chm_recurrence *r = c->recurrence;
    const int64_t chunks = (h->rows + limit - 1) / limit;
    chm_head head;
    head_of(h, c, k, &head);
    head.rows = r->chunk_rows(c->self);
    head.scratch = space((int64_t)(r->scratch_bytes(&head) / sizeof(float)));
    float *(*start)[MOST_STATES] = calloc((size_t)chunks, sizeof *start);
    assert_non_null(start);
    states_of(h, h->state, out + STATE);
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t t = i * limit;
        float *in[MOST_IN], *ask[MOST_IN] = {0};
        rows_at(h, h->in, t, in);
        ask[h->question] = h->ask + t * h->width[h->question];
        head.rows = CHM_MIN(limit, h->rows - t);
        for (int s = 0; s < h->states; s++) start[i][s] = space(h->state_size[s]);
        states_of(h, out + STATE, start[i]);
        r->chunk(&head, (void *const *)(out + STATE), (const float *const *)in, out[OUT] + t * h->d);
        r->chunk_read(&head, (void *const *)start[i], (const float *const *)in, (const float *const *)ask,
                      out[OUT_READ] + t * h->d);
    }
    states_of(h, h->dstate, out + DSTATE);
    for (int64_t i = chunks - 1; i >= 0; i--) {
        const int64_t t = i * limit;
        float *in[MOST_IN], *ask[MOST_IN] = {0}, *dask[MOST_IN] = {0}, *din[MOST_IN];
        rows_at(h, h->in, t, in);
        rows_at(h, out + DIN, t, din);
        ask[h->question] = h->ask + t * h->width[h->question];
        dask[h->question] = out[DASK] + t * h->width[h->question];
        head.rows = CHM_MIN(limit, h->rows - t);
        r->chunk_read_backward(&head, (void *const *)start[i], (const float *const *)in, (const float *const *)ask,
                               h->dout[1] + t * h->d, dask);
        const float *const *asks[] = {(const float *const *)ask}, *douts[] = {h->dout[1] + t * h->d};
        chm_chunk_grad grad = {.dout = h->dout[0] + t * h->d, .n_reads = 1, .read_in = asks, .read_dout = douts};
        for (int k_in = 0; k_in < h->inputs; k_in++) grad.din[k_in] = din[k_in];
        for (int s = 0; s < h->states; s++) grad.dstate[s] = out[DSTATE + s];
        grad.dparam[0] = h->param_size ? out[DPARAM] : NULL;
        r->chunk_backward(&head, (void *const *)start[i], (const float *const *)in, &grad);
        for (int s = 0; s < h->states; s++) chm_free(start[i][s]);
    }
    free(start);
    chm_free(head.scratch);
}

static double error_of(const float *a, const double *want, int64_t n) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        error += ((double)a[i] - want[i]) * ((double)a[i] - want[i]);
        size += want[i] * want[i];
    }
    if (!isfinite(error)) return INFINITY;
    return error == 0 ? 0 : size > 0 ? sqrt(error / size) : INFINITY;
}

static void oracle_mlstm(const struct head_case *h, double *want[PARTS]) {
    double *in[MOST_IN], *state[MOST_STATES], *dstate[MOST_STATES], *ask = widen(h->ask, h->rows * h->d);
    double *dout[ASKS] = {widen(h->dout[0], h->rows * h->d), widen(h->dout[1], h->rows * h->d)};
    for (int i = 0; i < MOST_IN; i++) in[i] = widen(h->in[i], h->rows * h->width[i]);
    for (int i = 0; i < MOST_STATES; i++) {
        state[i] = widen(h->state[i], h->state_size[i]);
        dstate[i] = widen(h->dstate[i], h->state_size[i]);
    }
    const struct ref_mlstm r = {.rows = h->rows,
                                .d = h->d,
                                .asks = ASKS,
                                .q = {in[0], ask},
                                .k = in[1],
                                .v = in[2],
                                .log_i = in[3],
                                .log_f = in[4],
                                .C0 = state[0],
                                .n0 = state[1],
                                .m0 = state[2],
                                .h = {want[OUT], want[OUT_READ]},
                                .C = want[STATE],
                                .n = want[STATE + 1],
                                .m = want[STATE + 2],
                                .dh = {dout[0], dout[1]},
                                .dC = dstate[0],
                                .dn = dstate[1],
                                .dm = dstate[2],
                                .dq = {want[DIN], want[DASK]},
                                .dk = want[DIN + 1],
                                .dv = want[DIN + 2],
                                .dlog_i = want[DIN + 3],
                                .dlog_f = want[DIN + 4],
                                .dC0 = want[DSTATE],
                                .dn0 = want[DSTATE + 1],
                                .dm0 = want[DSTATE + 2]};
    ref_mlstm_forward(&r);
    ref_mlstm_backward(&r);
    for (int i = 0; i < MOST_IN; i++) free(in[i]);
    for (int i = 0; i < MOST_STATES; i++) {
        free(state[i]);
        free(dstate[i]);
    }
    free(ask);
    free(dout[0]);
    free(dout[1]);
}

static void oracle_slstm(const struct head_case *h, bool exponential, double *want[PARTS]) {
    const int64_t n = h->rows * h->d;
    double *in[4], *S = widen(h->state[0], 5 * h->d), *dS = widen(h->dstate[0], 5 * h->d), *ask = widen(h->ask, n);
    double *R = widen(h->param, h->param_size), *dout[ASKS] = {widen(h->dout[0], n), widen(h->dout[1], n)};
    for (int i = 0; i < 4; i++) in[i] = widen(h->in[i], n);
    const struct ref_slstm r = {.rows = h->rows,
                                .d = h->d,
                                .asks = ASKS,
                                .exponential = exponential,
                                .in = {in[0], in[1], in[2], in[3]},
                                .ask = {in[3], ask},
                                .R = R,
                                .S0 = S,
                                .h = {want[OUT], want[OUT_READ]},
                                .S = want[STATE],
                                .dh = {dout[0], dout[1]},
                                .dS = dS,
                                .din = {want[DIN], want[DIN + 1], want[DIN + 2], want[DIN + 3]},
                                .dask = {NULL, want[DASK]},
                                .dR = want[DPARAM],
                                .dS0 = want[DSTATE]};
    ref_slstm_forward(&r);
    ref_slstm_backward(&r);
    for (int i = 0; i < 4; i++) free(in[i]);
    free(S);
    free(dS);
    free(ask);
    free(R);
    free(dout[0]);
    free(dout[1]);
}

static double rms(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum / (double)n);
}

/* Both forms on every backend, chunks of several lengths. */
static void compare_case(const char *name, const struct head_case *h, const char *const *parts, const char *const *sets,
                         uint32_t count, double *const want[PARTS], double forward, double state, double gradient) {
    static const int64_t limits[] = {64, 17, 1};
    for (size_t b = 0; b < CHM_ARRAY_COUNT(backends); b++) {
        chm_runtime *r = try_runtime(backends[b], 1);
        if (!r) continue;
        struct caught c;
        catch_recurrence(&c, r, sets, count);
        for (int form = -1; form < (int)CHM_ARRAY_COUNT(limits); form++) {
            float *out[PARTS];
            enum { H, STATES, GRADIENTS, KINDS };
            double worst[KINDS] = {0};
            const char *of[KINDS] = {"", "", ""};
            for (int i = 0; i < PARTS; i++) out[i] = space(part_count(h, i));
            if (form < 0)
                by_step(h, &c, &r->kernels.kernels, out);
            else
                by_chunk(h, &c, &r->kernels.kernels, limits[form], out);
            const double lost = h->inputs == 5 ? exp((double)out[STATE + 2][0] - want[STATE + 2][0]) : 1; /* restate */
            for (int i = STATE; i < STATE + 2; i++)
                for (int64_t k = 0; k < part_count(h, i); k++) out[i][k] = (float)(lost * (double)out[i][k]);
            for (int i = 0; i < (form < 0 ? DIN : PARTS); i++) {
                const int kind = i < STATE ? H : i < DIN ? STATES : GRADIENTS;
                double error = error_of(out[i], want[i], part_count(h, i));
                if (h->fresh && i >= DSTATE && i < DPARAM) continue;
                /* a gate's gradient is what is left of sums as large as k . dk: where all is forgotten, nothing */
                const bool gate = h->inputs == 5 && (i == DIN + 3 || i == DIN + 4 || i == DSTATE + 2);
                if (gate && isfinite(error)) {
                    const double left = rms(want[i], part_count(h, i)),
                                 sums = 0.1 * sqrt((double)h->d) * rms(want[DIN + 1], part_count(h, DIN + 1));
                    if (left < sums) error *= left / sums;
                }
                if (!(error <= worst[kind])) {
                    worst[kind] = error;
                    of[kind] = parts[i];
                }
            }
            print_message("%-34s %-8s %2lld: %.1e %s, states %.1e %s, gradients %.1e %s\n", name, backends[b],
                          form < 0 ? 0LL : (long long)limits[form], worst[H], of[H], worst[STATES], of[STATES],
                          worst[GRADIENTS], of[GRADIENTS]);
            const double bounds[KINDS] = {forward, state, gradient};
            for (int i = 0; i < KINDS; i++)
                if (!(worst[i] <= bounds[i])) fail_msg("%s, %s: %s is off by %.2g", name, backends[b], of[i], worst[i]);
            for (int i = 0; i < PARTS; i++) chm_free(out[i]);
        }
        release(&c);
        chm_runtime_destroy(r);
    }
}

static void finish_case(struct head_case *h, double *want[PARTS]) {
    for (int i = 0; i < MOST_IN; i++) chm_free(h->in[i]);
    for (int i = 0; i < MOST_STATES; i++) {
        chm_free(h->state[i]);
        chm_free(h->dstate[i]);
    }
    chm_free(h->ask);
    chm_free(h->dout[0]);
    chm_free(h->dout[1]);
    chm_free(h->param);
    for (int i = 0; i < PARTS; i++) free(want[i]);
}

static void want_space(const struct head_case *h, double *want[PARTS]) {
    for (int i = 0; i < PARTS; i++) want[i] = widen(NULL, part_count(h, i));
}

static double log_sigmoid(double x) { return x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x)); }

static void test_mlstm_extremes(void **state) {
    (void)state;
    enum gates {
        TAME,
        BEGINS,
        WILD,
        ALL_FORGOTTEN,
        NOTHING_FORGOTTEN,
        NOTHING_WRITTEN,
        GROWS,
        ZERO_KEYS,
        ZERO_QUERIES,
        NARROW,
        WIDE,
        CONSTANT
    };
    static const struct {
        const char *name;
        enum gates gates;
        int64_t rows, d;
        bool fresh;
        double forward, state, gradient;
    } cases[] = {
        {"tame gates", TAME, 200, 64, false, 5e-6, 1e-6, 1e-5},
        {"input gates as they begin", BEGINS, 150, 64, true, 1e-6, 1e-6, 2e-6},
        {"gates at their caps", WILD, 200, 64, false, 1e-5, 1e-6, 2e-5},
        {"everything forgotten", ALL_FORGOTTEN, 100, 16, false, 1e-6, 1e-6, 4e-5},
        {"nothing forgotten", NOTHING_FORGOTTEN, 150, 33, false, 5e-6, 1e-6, 4e-5},
        {"nothing written", NOTHING_WRITTEN, 100, 24, false, 1e-6, 3e-6, 4e-5},
        {"forget gates above one", GROWS, 150, 32, false, 2e-6, 1e-6, 5e-6},
        {"keys of zero", ZERO_KEYS, 100, 16, false, 5e-6, 1e-6, 2e-5},
        {"questions of zero", ZERO_QUERIES, 100, 16, false, 5e-6, 1e-6, 2e-5},
        {"input gates at the narrowest cap", NARROW, 77, 16, false, 1e-6, 1e-6, 1e-5},
        /* a floor of e^-60 lets the denominator come near zero, where h has few digits */
        {"input gates at the widest cap", WIDE, 77, 16, false, 5e-4, 1e-6, 5e-4},
        {"one row", TAME, 1, 64, false, 1e-6, 1e-6, 1e-6},
        {"width one", TAME, 65, 1, false, 1e-6, 1e-6, 2e-6},
        /* C is C times the same f32 factor 4096 times, so its rounding adds up */
        {"4096 rows, gates as they begin", CONSTANT, 4096, 16, true, 2e-5, 2e-5, 5e-5},
        {"4096 rows", TAME, 4096, 16, true, 5e-6, 1e-6, 1e-5},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        const int64_t T = cases[i].rows, d = cases[i].d;
        const uint64_t seed = 100 * (i + 1);
        struct head_case h = {.rows = T,
                              .d = d,
                              .inputs = 5,
                              .states = 3,
                              .fresh = cases[i].fresh,
                              .width = {d, d, d, 1, 1},
                              .state_size = {d * d, d, 1},
                              .ask = normals(seed, T * d, 1),
                              .dout = {normals(seed + 1, T * d, 1), normals(seed + 2, T * d, 1)}};
        for (int a = 0; a < 5; a++) h.in[a] = normals(seed + 3 + (uint64_t)a, T * h.width[a], 1);
        for (int s = 0; s < 3; s++) {
            h.state[s] = normals(seed + 10 + (uint64_t)s, h.state_size[s], cases[i].fresh ? 0 : 1);
            h.dstate[s] = normals(seed + 20 + (uint64_t)s, h.state_size[s], 1);
        }
        for (int64_t t = 0; t < T; t++) {
            float *input = &h.in[3][t], *forget = &h.in[4][t];
            *forget = (float)log_sigmoid(4 + (double)*forget);
            switch (cases[i].gates) {
            case TAME:
                break;
            case BEGINS:
                *input -= 10;
                break;
            case WILD:
                *input = *input < 0 ? -15 : 15;
                *forget = (float)log_sigmoid(t % 7 == 3 ? -15 : 15);
                break;
            case ALL_FORGOTTEN:
                *forget = -15;
                break;
            case NOTHING_FORGOTTEN:
                *forget = 0;
                break;
            case NOTHING_WRITTEN:
                *input = -60;
                break;
            case GROWS:
                *forget = t % 3 ? -1.5f : 2;
                break;
            case NARROW:
                *input = -1;
                *forget = (float)log_sigmoid(tanh((double)h.in[3][t]));
                break;
            case WIDE:
                *input = (float)(60 * tanh(60 + (double)*input / 60));
                break;
            case CONSTANT: /* the same rounding in every row adds up */
                *input = -10;
                *forget = (float)log_sigmoid(6);
                break;
            case ZERO_KEYS:
                for (int64_t j = 0; j < d; j++) h.in[1][t * d + j] = t % 3 ? 0 : h.in[1][t * d + j];
                break;
            case ZERO_QUERIES:
                for (int64_t j = 0; j < d; j++) h.in[0][t * d + j] = t % 3 ? 0 : h.in[0][t * d + j];
                break;
            }
        }
        double *want[PARTS];
        char set[32];
        snprintf(set, sizeof set, "head_dim=%lld", (long long)d);
        const char *const sets[] = {set};
        want_space(&h, want);
        oracle_mlstm(&h, want);
        compare_case(cases[i].name, &h, mlstm_parts, sets, 1, want, cases[i].forward, cases[i].state,
                     cases[i].gradient);
        finish_case(&h, want);
    }
}

static void test_slstm_extremes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t rows, d;
        bool exponential, fresh;
        double gates, forward, state, gradient;
    } cases[] = {
        {"tame gates, from nothing", 100, 64, false, true, 1, 1e-6, 1e-6, 1e-6},
        {"tame gates, carried", 70, 33, false, false, 1, 1e-6, 1e-6, 1e-6},
        {"exponential forget gates", 100, 16, true, false, 1, 1e-6, 1e-6, 6e-6},
        {"wild gates", 100, 16, false, false, 30, 1e-6, 1e-6, 2e-6},
        {"one row", 1, 16, false, true, 1, 1e-6, 1e-6, 1e-6},
        {"width one", 65, 1, false, true, 1, 1e-6, 1e-6, 2e-6},
        {"4096 rows", 4096, 8, false, true, 2, 1e-6, 1e-6, 2e-5},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        const int64_t T = cases[i].rows, d = cases[i].d;
        const uint64_t seed = 7000 + 100 * i;
        struct head_case h = {.rows = T,
                              .d = d,
                              .inputs = 4,
                              .states = 1,
                              .fresh = cases[i].fresh,
                              .question = 3,
                              .width = {d, d, d, d},
                              .state_size = {5 * d},
                              .param_size = 4 * d * d,
                              .ask = normals(seed, T * d, 1),
                              .dout = {normals(seed + 1, T * d, 1), normals(seed + 2, T * d, 1)}};
        for (int a = 0; a < 4; a++) h.in[a] = normals(seed + 3 + (uint64_t)a, T * d, a < 2 ? cases[i].gates : 1);
        h.state[0] = normals(seed + 10, 5 * d, cases[i].fresh ? 0 : 1);
        for (int64_t j = 2 * d; j < 3 * d && !cases[i].fresh; j++) /* n: a sum of weights, the largest 1 */
            h.state[0][j] = 1 + fabsf(h.state[0][j]);
        h.dstate[0] = normals(seed + 20, 5 * d, 1);
        for (int64_t j = 0; j < d && cases[i].fresh; j++) h.dstate[0][2 * d + j] = 0;
        h.param = normals(seed + 30, 4 * d * d, 1 / sqrt((double)d));
        double *want[PARTS];
        char set[32];
        snprintf(set, sizeof set, "head_dim=%lld", (long long)d);
        const char *const sets[] = {set, "xlstm.variant=sLSTM", "xlstm.short_conv=0",
                                    cases[i].exponential ? "xlstm.forget=exp" : "xlstm.forget=sigmoid"};
        want_space(&h, want);
        oracle_slstm(&h, cases[i].exponential, want);
        compare_case(cases[i].name, &h, slstm_parts, sets, 4, want, cases[i].forward, cases[i].state,
                     cases[i].gradient);
        finish_case(&h, want);
    }
}

/* ---- the generated tests ---- */

static void test_layers_pass(void **state) {
    (void)state;
    static const struct {
        const char *sets[5];
        uint32_t count;
        int64_t rows;
    } cases[] = {
        {{NULL}, 0, 0},
        {{"num_heads=2", "head_dim=64", "rms_norm_before_every_linear=false"}, 3, 150},
        {{"xlstm.igate_bias=0"}, 1, 0},
        {{"xlstm.forget=exp", "xlstm.gate_cap=5", "xlstm.igate_bias=-4"}, 3, 20},
        {{"xlstm.gate_cap=1"}, 1, 0}, /* saturated: nothing depends on the input gate */
        {{"xlstm.gate_cap=60", "xlstm.igate_bias=60"}, 2, 0},
        {{"xlstm.variant=sLSTM"}, 1, 0},
        {{"xlstm.variant=slstm", "xlstm.short_conv=0", "head_dim=10", "rms_norm_before_every_linear=false"}, 4, 12},
    };
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
    static const char *const once[] = {"chunk against step: output",
                                       "chunk against step: state",
                                       "carry",
                                       "causality: chunk",
                                       "read: chunk against step",
                                       "gradient: rows x",
                                       "read: gradient: rows x of the second pass"};
    chm_runtime *r = open_runtime(2, NULL);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        int status;
        char *report = report_of(r, "xlstm", cases[i].sets, cases[i].count, cases[i].rows, &status);
        if (status) fail_msg("case %zu: %s", i, chm_error());
        for (size_t k = 0; k < CHM_ARRAY_COUNT(both); k++) {
            if (!says(report, both[k], "f32", "pass")) fail_msg("case %zu: no '%s' in f32", i, both[k]);
            if (!says(report, both[k], "bitnet", "pass")) fail_msg("case %zu: no '%s' in bitnet", i, both[k]);
        }
        for (size_t k = 0; k < CHM_ARRAY_COUNT(once); k++)
            if (!says(report, once[k], "f32", "pass")) fail_msg("case %zu: no '%s'", i, once[k]);
        free(report);
    }
    chm_runtime_destroy(r);
}

/* ---- kernels with one thing wrong ---- */

static struct chm_kernels real;

/* Rows that are only replayed are forgotten. */
static void broken_step(float *S, int64_t dk, int64_t dv, const float *q, const float *k, const float *v, float decay,
                        float scale, float *o) {
    if (o) real.outer_step(S, dk, dv, q, k, v, decay, scale, o);
}

static void broken_read(const float *S, int64_t dk, int64_t dv, const float *q, float scale, float *o) {
    real.delta_read(S, dk, dv, q, scale, o);
    o[0] *= 1.001f; /* one column: the norm after it would hide a common factor */
}

/* What is added to something is too large in the first column. */
static float excess = 1.02f;
static void broken_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col, const float *b,
                           int64_t ldb, float *c, int64_t ldc, int add) {
    if (add <= 0) {
        real.block_matmul(m, n, k, a, row, col, b, ldb, c, ldc, add);
        return;
    }
    for (int64_t i = 0; i < m; i++) {
        const float before = c[i * ldc];
        real.block_matmul(1, n, k, a + i * row, row, col, b, ldb, c + i * ldc, ldc, add);
        c[i * ldc] = before + excess * (c[i * ldc] - before);
    }
}

static void broken_matrix(const float *w, int64_t out0, int64_t out1, int64_t in, const float *x, int64_t rows,
                          float *y, int64_t ldy) {
    static int calls;
    real.f32_matmul(w, out0, out1, in, x, rows, y, ldy);
    if (++calls % 13 == 5) y[0] += 1e-2f;
}

static void expect_failures(chm_runtime *r, const char *what, bool slstm, const char *const *names) {
    static const char *const sets[] = {"xlstm.variant=sLSTM"};
    int status;
    char *report = report_of(r, "xlstm", sets, slstm, 20, &status);
    if (status != CHM_E_VERDICT) fail_msg("%s: status %d, expected the verdict", what, status);
    for (; *names; names++)
        if (!says(report, *names, "f32", "FAIL")) fail_msg("%s was not caught by '%s'", what, *names);
    free(report);
}
#define EXPECT(what, slstm, ...) expect_failures(r, what, slstm, (const char *const[]){__VA_ARGS__, NULL})

static void test_broken_kernels(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(1, NULL);
    struct chm_kernels *k = &r->kernels.kernels;
    real = *k;
    k->outer_step = broken_step;
    EXPECT("replayed rows forgotten", false, "accept");
    *k = real;
    k->delta_read = broken_read;
    EXPECT("a column of read times 1.001", false, "read: the same question", "read: chunk against step");
    *k = real;
    k->block_matmul = broken_product;
    EXPECT("sums of the chunk form", false, "chunk against step: output", "chunk against step: state",
           "gradient: parameter q", "gradient: parameter k", "gradient: parameter v", "gradient: state memory");
    excess = 1.1f; /* of many columns, whose differences are less exact */
    EXPECT("the gradient of R", true, "gradient: parameter r");
    *k = real;
    k->f32_matmul = broken_matrix;
    EXPECT("a static counter in R h", true, "split", "fork");
    chm_runtime_destroy(r);
}

/* ---- what a card says ---- */

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *sets[3];
        uint32_t count;
        int status;
        const char *words;
    } cases[] = {
        {{"xlstm.exponential_gating=false"}, 1, CHM_E_CONFIG, "xlstm.exponential_gating is false"},
        {{"xlstm.covariance_update=false"}, 1, CHM_E_CONFIG, "xlstm.covariance_update is false"},
        {{"xlstm.variant=gLSTM"}, 1, CHM_E_CONFIG, "mLSTM"},
        {{"xlstm.gate_cap=0"}, 1, CHM_E_CONFIG, "xlstm.gate_cap"},
        {{"xlstm.memory_size_per_head=[32, 32]"}, 1, CHM_E_CONFIG, "head_dim is 16"},
        {{"xlstm.variant=sLSTM", "hidden_size=50"}, 2, CHM_E_CONFIG, "hidden_size"},
    };
    chm_runtime *r = open_runtime(1, "scalar");
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        int status;
        free(report_of(r, "xlstm", cases[i].sets, cases[i].count, 8, &status));
        assert_int_equal(status, cases[i].status);
        if (!strstr(chm_error(), cases[i].words))
            fail_msg("case %zu: '%s' is not in: %s", i, cases[i].words, chm_error());
    }
    chm_runtime_destroy(r);
}

static const chm_param *param_of(const struct caught *c, const char *name) {
    for (int i = 0; i < c->layer.params; i++)
        if (!strcmp(chm_layer_alone_name(&c->layer, c->layer.param[i]->name), name)) return c->layer.param[i];
    fail_msg("no parameter %s", name);
    return NULL;
}

/* What a layer begins with. One layer alone is the first of its stack: exponent 0.3. */
static void test_begins(void **state) {
    (void)state;
    static const char *const slstm[] = {"xlstm.variant=sLSTM"};
    chm_runtime *r = open_runtime(1, "scalar");
    struct caught c;
    catch_recurrence(&c, r, slstm, 1);
    const chm_param *f = param_of(&c, "f_bias");
    assert_int_equal(f->count, 48);
    for (int64_t i = 0; i < 48; i++)
        assert_true(fabs((double)f->value[i] - (5 - 12 * pow((double)(i % 16) / 15, 0.3))) < 1e-5);
    assert_true(param_of(&c, "r")->value[5] == 0 && param_of(&c, "i_bias")->value[3] == 0);
    release(&c);
    catch_recurrence(&c, r, NULL, 0);
    f = param_of(&c, "f_bias");
    assert_true(f->value[0] == 3 && f->value[1] == 4.5f && f->value[2] == 6);
    assert_true(param_of(&c, "i_bias")->value[1] == -10 && param_of(&c, "i")->value[7] == 0);
    release(&c);
    chm_runtime_destroy(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_layers),  cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_mlstm_extremes), cmocka_unit_test(test_slstm_extremes),
        cmocka_unit_test(test_layers_pass),    cmocka_unit_test(test_broken_kernels),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_begins),
    };
    return cmocka_run_group_tests_name("xlstm", tests, set_up, tear_down);
}
