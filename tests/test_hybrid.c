/*
 * test_hybrid.c: the gradient of a whole model of every kind of layer, with experts and inside the loop: the loss of
 * training against its differences, for every parameter tensor there is, as a whole and entry by entry.
 *
 * Differences need a smooth function. Nothing is quantised; sk runs with `smooth` (its signs pass gradients straight
 * through, which is no derivative: test_sk holds that rule to f64); which experts a row goes to is held, as in the
 * generated tests of layers, since the gradient is that of the weights and of the experts and not of the choice. What
 * kinks are left, the largest of two gates in xlstm among them, are points: a difference that steps over one is made
 * again with a shorter step. The biases of routers have no gradient by design.
 *
 * And the same models as `chimera init` makes them, straight to packed forms, against the way of training.
 */
#include "hybrid_card.h"
#include "layer_help.h"

/* Sanitizers are after threads and memory and not after numbers: every eighth parameter will do, or sixteenth. */
#if defined(__SANITIZE_THREAD__)
enum { EVERY = 16 };
#elif defined(__SANITIZE_ADDRESS__)
enum { EVERY = 8 };
#else
enum { EVERY = 1 };
#endif

static chm_runtime *runtime;

static int set_up(void **state) {
    (void)state;
    if (layer_set_up("hybrid")) return -1;
    runtime = open_runtime(2, NULL);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    chm_runtime_destroy(runtime);
    chm_free(plugin_path);
    return rmdir(scratch);
}

static void must(int status) {
    if (status) fail_msg("%s", chm_error());
}

/* As it begins, but off the constants at which it begins: some gradients are zero there. */
static chm_model *make_model(const char *const *set, size_t sets) {
    char *text = chm_format(HYBRID_CARD, 32, 16, "none", "f32", ", \"backward_truncation\": \"none\"", "");
    const struct chm_card_options options = {.registry = &runtime->registry, .set = set, .set_count = sets};
    chm_card *card = NULL;
    chm_model *m = NULL;
    must(chm_card_parse("card.json", text, strlen(text), &options, &card));
    must(chm_model_create(card, &runtime->registry, &m));
    must(chm_model_allocate(m));
    must(chm_model_randomise(m, 3));
    for (int i = 0; i < m->params; i++) {
        chm_param *p = m->param[i];
        for (int64_t k = 0; p->init.kind == CHM_INIT_CONSTANT && k < p->count; k++)
            p->value[k] += 0.6f * ((float)chm_uniform_at(6, CHM_RANDOM_TEST, (uint32_t)i, (uint64_t)k) - 0.5f);
    }
    must(chm_model_quantise(m, &runtime->kernels.kernels, runtime->pool));
    chm_free(text);
    return m;
}

/* ---- the loss ---- */

enum { T = 14, STREAMS = 2, MOST_CHOICES = 64, CHOSEN = 2 };

struct held {
    float choice[MOST_CHOICES][STREAMS * T * CHOSEN];
    int choices, next;
    bool holding;
};

/* A chm_tap_hook: what is recorded first comes again in every later pass. */
static chm_tensor *hold_choices(void *user, chm_graph *g, const char *name, chm_tensor *x) {
    struct held *h = user;
    (void)g;
    if (strcmp(name, "moe.choice") != 0) return x;
    assert_int_equal(x->rows * x->width, STREAMS * T * CHOSEN);
    if (!h->holding) {
        assert_true(h->choices < MOST_CHOICES);
        memcpy(h->choice[h->choices++], x->data, sizeof h->choice[0]);
    } else {
        assert_true(h->next < h->choices);
        memcpy(x->data, h->choice[h->next++], sizeof h->choice[0]);
    }
    return x;
}

/* Mean loss of two documents as a step of training has it, in nats; backward: and the gradients. */
static double loss_of(chm_model *m, chm_context *c, struct held *h, int passes, bool backward) {
    int32_t parent[STREAMS * T], id[STREAMS * T], target[STREAMS * T];
    int64_t position[STREAMS * T], counted;
    for (int i = 0; i < STREAMS * T; i++) {
        parent[i] = i % T ? i - 1 : ~(i / T);
        position[i] = i % T;
        id[i] = (int32_t)chm_below_at(2, CHM_RANDOM_TEST, 1, (uint64_t)i, 256);
        target[i] = (int32_t)chm_below_at(2, CHM_RANDOM_TEST, 1, (uint64_t)i + 1, 256);
    }
    const chm_rows rows = {STREAMS * T, parent, position};
    chm_depth depth = {.passes = passes, .whole = true};
    double loss = NAN;
    h->next = 0;
    must(chm_context_begin(c, &rows, NULL, STREAMS, CHM_PASS_TRAIN));
    chm_tensor *logits = chm_model_forward(m, c, id, NULL, NULL, &depth);
    must(chm_context_status(c));
    must(chm_cross_entropy(c, logits, target, 258, 1.0f / (STREAMS * T), &loss, &counted));
    if (backward) must(chm_backward(c));
    return loss / (STREAMS * T);
}

/* ---- differences ---- */

struct subject {
    chm_model *m;
    chm_context *c;
    struct held *held;
    int passes, flat; /* parameters without a gradient */
};

/* How far the slope along `way` (NULL: entry `at` alone) is from the difference, over `scale`: the best of some steps,
 * from one whose differences stand well above the rounding of f32 on. */
static double off(const struct subject *s, chm_param *p, const float *kept, const float *way, int64_t at, double first,
                  double slope, double scale, double enough) {
    double best = INFINITY;
    const int64_t begin = way ? 0 : at, end = way ? p->count : at + 1;
    for (double h = first; h > first / 200 && best > enough; h /= 2.5) {
        static const double steps[] = {1, -1, 2, -2};
        double loss[4];
        for (int k = 0; k < 4; k++) {
            for (int64_t e = begin; e < end; e++)
                p->value[e] = (float)((double)kept[e] + steps[k] * h * (way ? (double)way[e] : 1));
            loss[k] = loss_of(s->m, s->c, s->held, s->passes, false);
        }
        memcpy(p->value + begin, kept + begin, (size_t)(end - begin) * sizeof *kept);
        const double found = (8 * (loss[0] - loss[1]) - (loss[2] - loss[3])) / (12 * h);
        best = fmin(best, fabs(found - slope) / scale);
    }
    return best;
}

/* Along the gradient, along random signs, and some entries alone: the largest gradient and others at random. */
static double check(struct subject *s, uint32_t number, chm_param *p) {
    enum { ENTRIES = 3 };
    /* the first step moves the loss by some thousandths, far above its rounding in f32 (1e-7 of it), if that much can
     */
    static const double enough = 3e-3, tolerance = 1e-2, moved = 5e-3;
    /* gradients smaller than this are held to tolerance * least: the loss shows no more of them */
    static const double least = 4e-5;
    const size_t bytes = (size_t)p->count * sizeof(float);
    float *kept = chm_alloc(bytes), *way = chm_alloc(bytes);
    assert_true(kept && way);
    memcpy(kept, p->value, bytes);
    double norm = 0, size = 0, worst = 0;
    int64_t largest = 0;
    for (int64_t e = 0; e < p->count; e++) {
        norm += (double)p->grad[e] * (double)p->grad[e];
        size += (double)kept[e] * (double)kept[e];
        if (fabsf(p->grad[e]) > fabsf(p->grad[largest])) largest = e;
    }
    norm = sqrt(norm);
    const double rms = norm / sqrt((double)p->count), typical = fmax(sqrt(size / (double)p->count), 0.5);
    s->flat += norm < 1e-7;
    for (int along = 0; along < 2; along++) {
        double slope = 0;
        for (int64_t e = 0; e < p->count; e++) {
            const bool up = chm_uniform_at(5, CHM_RANDOM_TEST, number, (uint64_t)e) < 0.5;
            way[e] =
                along ? (up ? 1.0f : -1.0f) / sqrtf((float)p->count) : (float)((double)p->grad[e] / fmax(norm, 1e-30));
            slope += (double)way[e] * (double)p->grad[e];
        }
        const double error = off(s, p, kept, way, 0, fmin(typical, moved / norm), slope, fmax(norm, least), enough);
        worst = fmax(worst, error);
        if (!(error < tolerance))
            fail_msg("%s, %d passes: the slope along %s is off by %.3g of the gradient", p->name, s->passes,
                     along ? "random signs" : "the gradient", error);
    }
    for (int i = 0; i < ENTRIES; i++) {
        const int64_t e =
            i ? (int64_t)chm_below_at(9, CHM_RANDOM_TEST, number, (uint64_t)i, (uint64_t)p->count) : largest;
        const double slope = p->grad[e], scale = fmax(fmax(fabs(slope), rms), least);
        const double error = off(s, p, kept, NULL, e, fmin(typical, moved / scale), slope, scale, enough);
        worst = fmax(worst, error);
        if (!(error < tolerance))
            fail_msg("%s[%lld], %d passes: the gradient is %.5g and off by %.3g of it, or of the tensor's rms %.5g",
                     p->name, (long long)e, s->passes, slope, error, rms);
    }
    chm_free(kept);
    chm_free(way);
    return worst;
}

static void every_parameter_has_its_slope(void **state) {
    (void)state;
    static const char *const mlstm[] = {"tsp_knot.smooth=true", "initializer_range=0.1", "titans.chunk=4"};
    static const char *const slstm[] = {"tsp_knot.smooth=true",
                                        "initializer_range=0.1",
                                        "titans.chunk=4",
                                        "xlstm.variant=slstm",
                                        "gated_deltanet.allow_neg_eigval=true",
                                        "titans.update=before"};
    static const char *const corrected[] = {"tsp_knot.smooth=true", "initializer_range=0.1", "titans.chunk=4",
                                            "quantization.hgf_correction.enabled=true",
                                            "quantization.hgf_correction.rank=3"};
    static const struct {
        const char *name;
        const char *const *set;
        size_t sets;
        int passes, flat;
        const char *only; /* parameters whose name has this */
    } cases[] = {
        {"the card's", mlstm, 3, 3, 0, ""},
        /* in a new document all that sLSTM remembers is an average, which no constant of its input gates moves: the
         * biases of two layers */
        {"variants", slstm, 6, 2, 2, ""},
        {"with products of low rank", corrected, 5, 2, 0, "_hgf_"},
    };
    for (size_t k = 0; k < CHM_ARRAY_COUNT(cases); k++) {
        struct held *held = chm_alloc(sizeof *held);
        assert_non_null(held);
        struct subject s = {.m = make_model(cases[k].set, cases[k].sets), .held = held, .passes = cases[k].passes};
        must(chm_context_create(&runtime->kernels.kernels, runtime->pool, &s.m->layout, 1e-6f, &s.c));
        chm_context_on_tap(s.c, hold_choices, held);
        for (int i = 0; i < s.m->params; i++)
            if (s.m->param[i]->grad) memset(s.m->param[i]->grad, 0, (size_t)s.m->param[i]->count * sizeof(float));
        loss_of(s.m, s.c, held, s.passes, true);
        assert_int_equal(held->choices, 2 * s.passes);
        held->holding = true;
        double worst = 0;
        const char *where = "";
        int checked = 0;
        for (int i = 0; i < s.m->params; i++) {
            chm_param *p = s.m->param[i];
            if (p->role == CHM_ROLE_OWN) {
                assert_null(p->grad);
                continue;
            }
            if (i % EVERY || !strstr(p->name, cases[k].only)) continue;
            const double error = check(&s, (uint32_t)i, p);
            checked++;
            if (error <= worst) continue;
            worst = error;
            where = p->name;
        }
        assert_true(EVERY > 1 || s.flat == cases[k].flat);
        assert_true(checked > 10);
        print_message("%s: %d parameters, %d passes, worst %.1e (%s)\n", cases[k].name, checked, s.passes, worst,
                      where);
        chm_context_destroy(s.c);
        chm_model_destroy(s.m);
        chm_free(held);
    }
}

/* ---- models that have learnt nothing ---- */

static chm_model *declare_model(int width, const char *embedding, const char *const *set, size_t sets) {
    char *text = chm_format(HYBRID_CARD, width, width / 2, "bitnet", embedding, "", "");
    const struct chm_card_options options = {.registry = &runtime->registry, .set = set, .set_count = sets};
    chm_card *card = NULL;
    chm_model *m = NULL;
    must(chm_card_parse("card.json", text, strlen(text), &options, &card));
    must(chm_model_create(card, &runtime->registry, &m));
    chm_free(text);
    return m;
}

static void same_files(const char *a, const char *b) {
    chm_map x = {0}, y = {0};
    must(chm_map_open(&x, a));
    must(chm_map_open(&y, b));
    if (x.size != y.size || memcmp(x.data, y.data, x.size) != 0) fail_msg("%s and %s differ", a, b);
    chm_map_close(&x);
    chm_map_close(&y);
}

/* Widths that fill neither a tile nor a block, one with and one without whole superblocks of every encoding. */
static void packed_at_once_is_packed_as_in_training(void **state) {
    (void)state;
    static const struct {
        int width;
        const char *embedding, *set[2];
    } form[] = {
        {72, "int8", {"quantization.encoding=t5", "head_dim=36"}},
        {72, "ternary", {"quantization.encoding=t2", "quantization.group_size=64"}},
        {392, "ternary", {"quantization.encoding=t5", "tie_word_embeddings=false"}},
        {392, "f32", {"quantization.encoding=t2", "tie_word_embeddings=false"}},
        {392, "int8", {"quantization.sherry_mode.enabled=true", "quantization.encoding=sherry"}},
        {72, "ternary", {"quantization.sherry_mode.enabled=true", "quantization.encoding=t5"}},
        {72, "ternary", {"quantization.method=none", "tie_word_embeddings=false"}},
    };
    char *path[2], *experts[2], *folder[2];
    for (int way = 0; way < 2;
         way++) { /* the name of the experts is in the model: folders, not names, tell them apart */
        folder[way] = chm_format("%s/%s", scratch, way ? "slow" : "fast");
        path[way] = chm_format("%s/m.b158", folder[way]);
        experts[way] = chm_format("%s/m_experts.b158", folder[way]);
        must(chm_make_directory(folder[way]));
    }
    for (size_t i = 0; i < CHM_ARRAY_COUNT(form); i++) {
        for (int way = 0; way < 2; way++) {
            chm_model *m = declare_model(form[i].width, form[i].embedding, form[i].set, 2);
            if (way) {
                must(chm_model_allocate(m));
                must(chm_model_randomise(m, 3 + i));
                must(chm_model_quantise(m, &runtime->kernels.kernels, NULL));
            } else {
                must(chm_model_init(m, 3 + i, &runtime->kernels.kernels, runtime->pool));
            }
            must(chm_model_save(m, path[way]));
            chm_model_destroy(m);
        }
        same_files(path[0], path[1]);
        same_files(experts[0], experts[1]);
    }
    for (int way = 0; way < 2; way++) {
        unlink(path[way]);
        unlink(experts[way]);
        rmdir(folder[way]);
        chm_free(path[way]);
        chm_free(experts[way]);
        chm_free(folder[way]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(packed_at_once_is_packed_as_in_training),
                                       cmocka_unit_test(every_parameter_has_its_slope)};
    return cmocka_run_group_tests_name("hybrid", tests, set_up, tear_down);
}
