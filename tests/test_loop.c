/*
 * test_loop.c: the layer loop alone against its formula and the public implementation, then in whole small models:
 * gradients of every parameter by finite differences, depth, truncation, states per pass. What holds of any model
 * (splits, trees, resuming) is tested of looped ones in test_decode.c and test_train.c.
 */
#include "model/loop.h"
#include "layer_help.h"

#include <math.h>

static chm_runtime *runtime;

static int set_up(void **state) {
    (void)state;
    if (layer_set_up("loop")) return -1;
    runtime = open_runtime(2, NULL);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    chm_runtime_destroy(runtime);
    chm_free(plugin_path);
    return rmdir(scratch);
}

/* ---- models ---- */

static chm_card *make_card(const char *text) {
    const struct chm_card_options options = {.registry = &runtime->registry};
    chm_card *card = NULL;
    if (chm_card_parse("card.json", text, strlen(text), &options, &card)) fail_msg("%s", chm_error());
    return card;
}

/* %s: quantization.method, the pattern, what `looping` has besides */
static const char form[] =
    "{\"token_ids\": [256, 257], \"hidden_size\": 32, \"intermediate_size\": 48,\n"
    " \"num_hidden_layers\": 4, \"num_heads\": 2, \"head_dim\": 16, \"initializer_range\": 0.2,\n"
    " \"vocab_size\": 258, \"quantization\": {\"method\": \"%s\", \"embedding\": \"int8\"},\n"
    " \"backbone\": {\"layer_pattern\": \"%s\"}, \"gated_deltanet\": {\"state_size\": 16},\n"
    " \"tokenizer\": {\"type\": \"bytes\"}%s}\n";
#define LOOP(more) ", \"looping\": {\"prelude\": [0, 0], \"loop\": [1, 2], \"coda\": [3, 3]" more "}"

static chm_model *make_model(const char *method, const char *pattern, const char *loop) {
    char *text = chm_format(form, method, pattern, loop);
    chm_model *m = NULL;
    if (chm_model_create(make_card(text), &runtime->registry, &m) || chm_model_allocate(m) ||
        chm_model_randomise(m, 3) || chm_model_quantise(m, &runtime->kernels.kernels, runtime->pool))
        fail_msg("%s", chm_error());
    chm_free(text);
    return m;
}

static chm_context *make_context(const chm_model *m) {
    chm_context *c = NULL;
    if (chm_context_create(&runtime->kernels.kernels, runtime->pool, &m->layout, 1e-6f, &c))
        fail_msg("%s", chm_error());
    return c;
}

static chm_param *param(const chm_model *m, const char *name) {
    for (int i = 0; i < m->params; i++)
        if (!strcmp(m->param[i]->name, name)) return m->param[i];
    fail_msg("no parameter %s", name);
    return NULL;
}

/* ---- the system between the passes ---- */

static chm_tensor *as_they_are(const chm_model *m, chm_context *c, int pass, chm_tensor *x) {
    (void)m;
    (void)c;
    (void)pass;
    return x;
}

enum { ROWS = 5, WIDTH = 24, PASSES = 6 };

/* A model that is nothing but a loop of no layers, as wide as the golden vectors. */
struct alone {
    struct chm_loop_config loop;
    chm_model_config config;
    chm_model model;
    chm_param param[4];
    chm_context *context;
};

static void open_alone(struct alone *a, const struct file *f, bool euler) {
    static const char *const names[] = {NULL, "A_log", "dt_bias", "B"};
    static const chm_state_layout none;
    memset(a, 0, sizeof *a);
    a->config.loop = (struct chm_loop_config){
        .enabled = true, .least = 1, .most = PASSES, .passes = 2, .exit_threshold = 0, .euler = euler};
    a->model.config = &a->config;
    a->model.loop = (chm_loop){&a->config.loop, &a->param[0], &a->param[1], &a->param[2], &a->param[3]};
    for (int i = 0; i < 4; i++) {
        chm_param *p = &a->param[i];
        *p = (chm_param){.role = CHM_ROLE_NORM, .rank = 1, .shape = {WIDTH}, .count = WIDTH, .out = WIDTH, .in = 1};
        p->value = chm_alloc_aligned(WIDTH * sizeof(float));
        p->grad = chm_alloc_aligned(WIDTH * sizeof(float));
        for (int k = 0; k < WIDTH; k++) p->value[k] = names[i] ? floats(f, names[i], NULL)[k] : 1;
    }
    if (chm_context_create(&runtime->kernels.kernels, runtime->pool, &none, 0, &a->context))
        fail_msg("%s", chm_error());
}

static void close_alone(struct alone *a) {
    for (int i = 0; i < 4; i++) {
        chm_free(a->param[i].value);
        chm_free(a->param[i].grad);
    }
    chm_context_destroy(a->context);
}

/* Rows whose rms is 1: then the norm before the loop leaves them as they are. */
static void unit_rows(float *x, const float *from) {
    for (int r = 0; r < ROWS; r++) {
        double sum = 0;
        for (int i = 0; i < WIDTH; i++) sum += (double)from[r * WIDTH + i] * from[r * WIDTH + i];
        for (int i = 0; i < WIDTH; i++) x[r * WIDTH + i] = (float)(from[r * WIDTH + i] / sqrt(sum / WIDTH));
    }
}

/* `passes` passes over x; dy NULL: no gradient */
static void drive(struct alone *a, const float *x, int passes, const float *dy, float *y, float *dx) {
    int32_t parent[ROWS];
    int64_t position[ROWS];
    for (int r = 0; r < ROWS; r++) {
        parent[r] = r - 1;
        position[r] = r;
    }
    parent[0] = ~0;
    const chm_rows rows = {ROWS, parent, position};
    assert_int_equal(chm_context_begin(a->context, &rows, NULL, 1, CHM_PASS_TRAIN), CHM_OK);
    chm_graph *g = chm_context_graph(a->context);
    chm_tensor *in = chm_input(a->context, ROWS, WIDTH, x, CHM_TENSOR_GRAD);
    chm_depth depth = {.passes = passes};
    chm_tensor *out = chm_loop_forward(&a->model, a->context, in, &depth, as_they_are);
    if (!out) fail_msg("%d", chm_context_status(a->context));
    assert_int_equal(depth.rows, ROWS);
    assert_int_equal(depth.sum, ROWS * passes);
    memcpy(y, out->data, ROWS * WIDTH * sizeof *y);
    if (!dy) return;
    for (int i = 0; i < 4; i++) memset(a->param[i].grad, 0, WIDTH * sizeof(float));
    memcpy(g->ops->grad(g, out), dy, ROWS * WIDTH * sizeof *dy);
    assert_int_equal(chm_backward(a->context), CHM_OK);
    memcpy(dx, in->grad, ROWS * WIDTH * sizeof *dx);
}

static void equals_the_public_loop(void **state) {
    (void)state;
    char path[4096], name[16];
    snprintf(path, sizeof path, "%s/tests/golden/loop_parcae.safetensors", getenv("CHM_SOURCE_ROOT"));
    struct file f;
    open_file(&f, path);
    struct alone a;
    open_alone(&a, &f, true);
    float x[ROWS * WIDTH], y[ROWS * WIDTH];
    /* The vectors enter as they are; here a norm comes first. It is linear in each row, and so is everything after. */
    unit_rows(x, floats(&f, "e", NULL));
    for (int passes = 1; passes <= PASSES; passes++) {
        drive(&a, x, passes, NULL, y, NULL);
        snprintf(name, sizeof name, "x%d", passes);
        const float *want = floats(&f, name, NULL), *e = floats(&f, "e", NULL);
        double error = 0, size = 0;
        for (int i = 0; i < ROWS * WIDTH; i++) {
            const double w = (double)want[i] * x[i] / e[i];
            error += (y[i] - w) * (y[i] - w);
            size += w * w;
        }
        if (!(sqrt(error / size) < 1e-6)) fail_msg("%d passes: off by %.2g", passes, sqrt(error / size));
    }
    close_alone(&a);
    close_file(&f);
}

/* The same in f64 from the definition, for both gains. */
static void formula(const struct alone *a, const double *e, int passes, double *y) {
    for (int i = 0; i < WIDTH; i++) {
        const double delta = log1p(exp((double)a->param[2].value[i])), rate = exp((double)a->param[1].value[i]);
        const double u = fmax(delta * rate, 1e-4), A = exp(-u);
        const double B = (a->config.loop.euler ? delta : -expm1(-u) / rate) * a->param[3].value[i];
        for (int r = 0; r < ROWS; r++) {
            double x = e[r * WIDTH + i];
            for (int p = 0; p < passes; p++) x = A * x + B * e[r * WIDTH + i];
            y[r * WIDTH + i] = x;
        }
    }
}

static void equals_its_formula_and_differences(void **state) {
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/golden/loop_parcae.safetensors", getenv("CHM_SOURCE_ROOT"));
    struct file f;
    open_file(&f, path);
    for (int euler = 0; euler < 2; euler++)
        for (int passes = 1; passes <= 3; passes += 2) {
            struct alone a;
            open_alone(&a, &f, euler);
            float x[ROWS * WIDTH], y[ROWS * WIDTH], dy[ROWS * WIDTH], dx[ROWS * WIDTH];
            double e[ROWS * WIDTH], want[ROWS * WIDTH], plus[ROWS * WIDTH], minus[ROWS * WIDTH];
            unit_rows(x, floats(&f, "e", NULL));
            for (int i = 0; i < ROWS * WIDTH; i++) e[i] = x[i];
            chm_normals(8, CHM_RANDOM_TEST, 1, ROWS * WIDTH, dy);
            drive(&a, x, passes, dy, y, dx);
            formula(&a, e, passes, want);
            double error = 0, size = 0;
            for (int i = 0; i < ROWS * WIDTH; i++) {
                error += (y[i] - want[i]) * (y[i] - want[i]);
                size += want[i] * want[i];
            }
            if (!(sqrt(error / size) < 5e-7)) fail_msg("%d passes: off by %.2g", passes, sqrt(error / size));
            for (int p = 1; p < 4; p++)
                for (int i = 0; i < WIDTH; i++) {
                    float *w = &a.param[p].value[i];
                    const float kept = *w, step = 0x1p-10f;
                    *w = kept + step;
                    formula(&a, e, passes, plus);
                    *w = kept - step;
                    formula(&a, e, passes, minus);
                    const double width = (double)(kept + step) - (double)(kept - step);
                    *w = kept;
                    double slope = 0, scale = 1e-3;
                    for (int r = 0; r < ROWS; r++) {
                        const double part = dy[r * WIDTH + i] * (plus[r * WIDTH + i] - minus[r * WIDTH + i]) / width;
                        slope += part;
                        scale += fabs(part);
                    }
                    if (!(fabs(a.param[p].grad[i] - slope) < 2e-5 * scale))
                        fail_msg("parameter %d, column %d, %d passes: %.8g, not %.8g", p, i, passes,
                                 (double)a.param[p].grad[i], slope);
                }
            close_alone(&a);
        }
    close_file(&f);
}

static void decay_stays_below_one(void **state) {
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/golden/loop_parcae.safetensors", getenv("CHM_SOURCE_ROOT"));
    struct file f;
    open_file(&f, path);
    struct alone a;
    open_alone(&a, &f, false);
    /* softplus(-80) * e^-80 underflows: the bound holds it, and no gradient asks for more */
    for (int i = 0; i < WIDTH; i++) a.param[1].value[i] = a.param[2].value[i] = -80;
    float x[ROWS * WIDTH], y[ROWS * WIDTH], dx[ROWS * WIDTH];
    unit_rows(x, floats(&f, "e", NULL));
    drive(&a, x, 6, x, y, dx);
    assert_true(chm_loop_radius(&a.model.loop) < 1);
    assert_true(chm_loop_radius(&a.model.loop) > 1 - 1.01e-4);
    for (int i = 0; i < WIDTH; i++) assert_true(a.param[1].value[i] == -80 && isfinite(a.param[2].grad[i]));
    close_alone(&a);
    close_file(&f);
}

/* ---- how many passes ---- */

static void depth_is_drawn_and_cut(void **state) {
    (void)state;
    const struct chm_loop_config drawn = {
        .enabled = true, .least = 1, .most = 6, .passes = 2, .stochastic = true, .mean = 2};
    struct chm_loop_config fixed = drawn, none = drawn;
    fixed.stochastic = false;
    none.enabled = false;
    int count[8] = {0};
    enum { DRAWS = 40000 };
    double sum = 0;
    for (int i = 0; i < DRAWS; i++) {
        const int r = chm_loop_depth(&drawn, 1, i / 16, i % 16);
        assert_int_equal(r, chm_loop_depth(&drawn, 1, i / 16, i % 16));
        assert_in_range(r, 1, 6);
        count[r]++;
        sum += r;
        assert_int_equal(chm_loop_depth(&fixed, 1, i, 0), 2);
        assert_int_equal(chm_loop_depth(&none, 1, i, 0), 1);
    }
    /* Poisson(2) held to 1..6: P(1) = 3 e^-2, mean 2.13; five deviations of the mean of 40,000 */
    assert_true(fabs(count[1] / (double)DRAWS - 3 * exp(-2)) < 5 * 0.5 / 200);
    assert_true(fabs(sum / DRAWS - 2.1267) < 5 * 1.25 / 200);
    assert_true(count[6] > 0);
    /* the first pass and the later half */
    static const char *const kept[] = {"", "1", "11", "111", "1011", "10111", "100111"};
    for (int passes = 1; passes <= 6; passes++)
        for (int p = 1; p <= passes; p++) {
            assert_int_equal(chm_loop_kept(p, passes, true), kept[passes][p - 1] == '1');
            assert_true(chm_loop_kept(p, passes, false));
        }
}

/* ---- whole models ---- */

enum { T = 24, STREAMS = 2 };

/* Mean loss of two documents, in nats; backward: gradients too */
static double loss_of(chm_model *m, chm_context *c, int passes, bool backward) {
    int32_t parent[STREAMS * T], id[STREAMS * T], target[STREAMS * T];
    int64_t position[STREAMS * T], counted;
    for (int i = 0; i < STREAMS * T; i++) {
        parent[i] = i % T ? i - 1 : ~(i / T);
        position[i] = i % T;
        id[i] = (int32_t)chm_below_at(2, CHM_RANDOM_TEST, 1, (uint64_t)i, 256);
        target[i] = (int32_t)chm_below_at(2, CHM_RANDOM_TEST, 1, (uint64_t)i + 1, 256);
    }
    const chm_rows rows = {STREAMS * T, parent, position};
    chm_depth depth = {.passes = passes};
    double loss = NAN;
    assert_int_equal(chm_context_begin(c, &rows, NULL, STREAMS, CHM_PASS_TRAIN), CHM_OK);
    chm_tensor *logits = chm_model_forward(m, c, id, NULL, NULL, &depth);
    if (chm_context_status(c) || chm_cross_entropy(c, logits, target, 258, 1.0f / (STREAMS * T), &loss, &counted))
        fail_msg("%s", chm_error());
    if (backward && chm_backward(c)) fail_msg("%s", chm_error());
    return loss / (STREAMS * T);
}

static void clear_gradients(chm_model *m) {
    for (int i = 0; i < m->params; i++) memset(m->param[i]->grad, 0, (size_t)m->param[i]->count * sizeof(float));
}

/* Every parameter along its gradient and along random signs. */
static void gradients_are_slopes(void **state) {
    (void)state;
    static const char *const patterns[] = {"gd", "gd attn"};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(patterns); k++)
        for (int passes = 1; passes <= 4; passes++) {
            chm_model *m = make_model("none", patterns[k], LOOP(", \"backward_truncation\": \"none\""));
            chm_context *c = make_context(m);
            /* away from the start, where one pass is e whatever the decay is */
            for (int i = 0; i < 3; i++) {
                chm_param *p = i == 0 ? m->loop.A_log : i == 1 ? m->loop.dt_bias : m->loop.gain;
                for (int64_t e = 0; e < p->count; e++)
                    p->value[e] += 0.5f * (float)chm_uniform_at(6, CHM_RANDOM_TEST, (uint32_t)i, (uint64_t)e);
            }
            clear_gradients(m);
            loss_of(m, c, passes, true);
            for (int i = 0; i < m->params; i++)
                for (int along = 0; along < 2; along++) {
                    chm_param *p = m->param[i];
                    float *kept = chm_alloc((size_t)p->count * sizeof *kept), *way = chm_alloc((size_t)p->count * 4);
                    double norm = 0, slope = 0;
                    memcpy(kept, p->value, (size_t)p->count * sizeof *kept);
                    for (int64_t e = 0; e < p->count; e++) norm += (double)p->grad[e] * p->grad[e];
                    norm = sqrt(norm);
                    if (!(norm > 1e-9)) fail_msg("%s has no gradient", p->name);
                    for (int64_t e = 0; e < p->count; e++) {
                        const bool up = chm_uniform_at(5, CHM_RANDOM_TEST, (uint32_t)i, (uint64_t)e) < 0.5;
                        way[e] = along ? (up ? 1.0f : -1.0f) / sqrtf((float)p->count) : (float)(p->grad[e] / norm);
                        slope += (double)way[e] * p->grad[e];
                    }
                    /* a step that moves the loss well above the rounding of f32 */
                    double best = INFINITY;
                    for (float h = 0.08f; h > 2e-4f && best > 0.002; h *= 0.5f) {
                        double at[2];
                        for (int side = 0; side < 2; side++) {
                            for (int64_t e = 0; e < p->count; e++) p->value[e] = kept[e] + (side ? -h : h) * way[e];
                            at[side] = loss_of(m, c, passes, false);
                        }
                        const double found = (at[0] - at[1]) / (2 * (double)h);
                        best = fmin(best, fabs(found - slope) / (norm + 1e-3));
                    }
                    if (!(best < 0.01))
                        fail_msg("%s, %s, %d passes: the slope is off by %.3g of the gradient", patterns[k], p->name,
                                 passes, best);
                    memcpy(p->value, kept, (size_t)p->count * sizeof *kept);
                    chm_free(kept);
                    chm_free(way);
                }
            chm_context_destroy(c);
            chm_model_destroy(m);
        }
}

static void truncation_spares_the_writers(void **state) {
    (void)state;
    static const char *const writers[] = {"layers.1.mixer.k", "layers.1.mixer.conv_v", "layers.2.mixer.b"};
    chm_model *half = make_model("none", "gd", LOOP("")),
              *whole = make_model("none", "gd", LOOP(", \"backward_truncation\": \"none\""));
    chm_context *c = make_context(half), *d = make_context(whole);
    for (int passes = 1; passes <= 6; passes++) {
        clear_gradients(half);
        clear_gradients(whole);
        assert_true(loss_of(half, c, passes, true) == loss_of(whole, d, passes, true)); /* forward is the same */
        for (size_t i = 0; i < CHM_ARRAY_COUNT(writers); i++) {
            const chm_param *a = param(half, writers[i]), *b = param(whole, writers[i]);
            double norm = 0;
            for (int64_t e = 0; e < a->count; e++) norm += fabs((double)a->grad[e]);
            assert_true(norm > 1e-6);
            const int same = memcmp(a->grad, b->grad, (size_t)a->count * sizeof(float)) == 0;
            assert_int_equal(same, passes <= 3);
        }
    }
    chm_context_destroy(c);
    chm_context_destroy(d);
    chm_model_destroy(half);
    chm_model_destroy(whole);
}

/* At the start B = a = 1, so one pass begins with A e + (1 - A) e: the plain stack with a norm where the loop begins.
 */
static void one_pass_is_the_plain_stack(void **state) {
    (void)state;
    chm_model *looped = make_model("bitnet", "gd", LOOP("")), *plain = make_model("bitnet", "gd", "");
    /* what writes to the residual starts smaller in a deeper stack */
    for (int i = 0; i < plain->params; i++)
        memcpy(plain->param[i]->value, param(looped, plain->param[i]->name)->value,
               (size_t)plain->param[i]->count * sizeof(float));
    assert_int_equal(chm_model_quantise(plain, &runtime->kernels.kernels, runtime->pool), CHM_OK);
    chm_context *c = make_context(looped);
    int32_t parent[T], id[T];
    int64_t position[T];
    float other[T * 258];
    for (int i = 0; i < T; i++) {
        parent[i] = i ? i - 1 : ~0;
        position[i] = i;
        id[i] = (int32_t)chm_below_at(2, CHM_RANDOM_TEST, 1, (uint64_t)i, 256);
    }
    const chm_rows rows = {T, parent, position};
    chm_depth depth = {.passes = 1};
    assert_int_equal(chm_context_begin(c, &rows, NULL, 1, 0), CHM_OK);
    chm_tensor *y = chm_model_forward(looped, c, id, NULL, NULL, &depth);
    if (!y) fail_msg("%d: %s", chm_context_status(c), chm_error());
    memcpy(other, y->data, sizeof other);
    /* the plain stack by hand: embedding, layer 0, the norm, layers 1 to 3 */
    chm_graph *g = chm_context_graph(c);
    assert_int_equal(chm_context_begin(c, &rows, NULL, 1, 0), CHM_OK);
    chm_context_enter(c, -1, "embedding", 0);
    chm_tensor *x = chm_embed(c, plain->embedding, id, T);
    for (int i = 0; i < 4; i++) {
        if (i == 1) x = chm_rmsnorm(g, x, looped->loop.norm, 0);
        for (int k = 0; k < 2; k++) {
            const chm_layer *l = k ? &plain->ffn[i] : &plain->mixer[i];
            chm_context_enter(c, i, l->part, l->first_state);
            x = chm_add(g, x, l->ops->forward(l->self, g, chm_rmsnorm(g, x, l->norm, 0)));
        }
    }
    y = chm_linear(g, chm_rmsnorm(g, x, plain->final_norm, 0), plain->head);
    assert_non_null(y);
    /* int8 activations make an ulp in a row into a step of a code */
    double error = 0, size = 0;
    for (int i = 0; i < T * 258; i++) {
        error += pow((double)y->data[i] - other[i], 2);
        size += pow((double)other[i], 2);
    }
    if (!(sqrt(error / size) < 1e-2)) fail_msg("off by %.2g", sqrt(error / size));
    chm_context_destroy(c);
    chm_model_destroy(looped);
    chm_model_destroy(plain);
}

/* A token leaves when it has settled, whatever its neighbours do; what is left of the loop is not felt by it. */
static void tokens_leave_one_by_one(void **state) {
    (void)state;
    enum { MOST = 6 };
    chm_model *m = make_model("bitnet", "gd", LOOP(", \"loop_default\": 6, \"adaptive_exit_threshold\": 0.1"));
    chm_context *c = make_context(m);
    int32_t parent[T], id[T];
    int64_t position[T];
    float whole[T * 258], alone[T * 258];
    for (int i = 0; i < T; i++) {
        parent[i] = i ? i - 1 : ~0;
        position[i] = i;
        id[i] = (int32_t)chm_below_at(2, CHM_RANDOM_TEST, 1, (uint64_t)i, 256);
    }
    chm_rows rows = {T, parent, position};
    chm_depth depth = {0}, each = {0}, full = {.whole = true};
    assert_int_equal(chm_context_begin(c, &rows, NULL, 1, 0), CHM_OK);
    memcpy(whole, chm_model_forward(m, c, id, NULL, NULL, &depth)->data, sizeof whole);
    chm_stream_state stream, *streams[] = {&stream};
    assert_int_equal(chm_stream_init(&stream, &m->layout), CHM_OK);
    bool shallow = false, deep = false;
    for (int i = 0; i < T; i++) {
        const int32_t from = ~0;
        const int64_t at = i, before = each.sum;
        const chm_rows one = {1, &from, &at};
        assert_int_equal(chm_context_begin(c, &one, streams, 1, CHM_PASS_COMMIT), CHM_OK);
        memcpy(alone + i * 258, chm_model_forward(m, c, id + i, NULL, NULL, &each)->data, 258 * sizeof(float));
        assert_in_range(each.sum - before, 2, MOST);
        shallow |= each.sum - before < MOST;
        deep |= each.sum - before > 2;
    }
    assert_true(shallow && deep); /* the threshold tells them apart */
    assert_int_equal(depth.sum, each.sum);
    assert_int_equal(depth.rows, T);
    assert_memory_equal(whole, alone, sizeof whole);
    assert_int_equal(chm_context_begin(c, &rows, NULL, 1, 0), CHM_OK);
    assert_true(memcmp(whole, chm_model_forward(m, c, id, NULL, NULL, &full)->data, sizeof whole) != 0);
    assert_int_equal(full.sum, T * MOST);
    chm_stream_finish(&stream);
    chm_context_destroy(c);
    chm_model_destroy(m);
}

/* The ablation: a state for every pass, none read by another. */
static void passes_may_have_states_of_their_own(void **state) {
    (void)state;
    chm_model *shared = make_model("none", "gd", LOOP("")),
              *own = make_model("none", "gd", LOOP(", \"state\": \"per_pass\""));
    chm_context *c = make_context(own);
    assert_int_equal(own->layout.bytes, shared->layout.bytes / 4 * (2 + 2 * 6)); /* 2 of 4 layers, up to 6 passes */
    clear_gradients(own);
    const double loss = loss_of(own, c, 3, true);
    assert_true(isfinite(loss));
    chm_context *d = make_context(shared);
    assert_true(loss != loss_of(shared, d, 3, false));
    chm_context_destroy(c);
    chm_context_destroy(d);
    chm_model_destroy(shared);
    chm_model_destroy(own);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_public_loop),
        cmocka_unit_test(equals_its_formula_and_differences),
        cmocka_unit_test(decay_stays_below_one),
        cmocka_unit_test(depth_is_drawn_and_cut),
        cmocka_unit_test(gradients_are_slopes),
        cmocka_unit_test(truncation_spares_the_writers),
        cmocka_unit_test(one_pass_is_the_plain_stack),
        cmocka_unit_test(tokens_leave_one_by_one),
        cmocka_unit_test(passes_may_have_states_of_their_own),
    };
    return cmocka_run_group_tests_name("loop", tests, set_up, tear_down);
}
