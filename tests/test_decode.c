/*
 * test_decode.c: the sampler against exact probabilities, streams against themselves read another way, generation over
 * threads and backends, the account that check and bench give.
 */
#include "decode/sampler.h"
#include "hybrid_card.h"
#include "model/stream.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static char scratch[4096], card_path[4200], model_path[4200], *plugin_path;

#define GENERATION                                                                                                     \
    ",\n \"generation\": {\"temperature\": 0.7, \"top_p\": 0.9, \"repetition_penalty\": 1.1, \"max_new_tokens\": 12}"

static const char card_text[] =
    "{\"model_type\": \"chimera51\", \"token_ids\": [256, 257], \"hidden_size\": 64, \"intermediate_size\": 192,\n"
    " \"num_hidden_layers\": %d, \"num_heads\": 2, \"head_dim\": 32, \"initializer_range\": 0.3, \"vocab_size\": 258,\n"
    " \"quantization\": {\"method\": \"bitnet\", \"embedding\": \"int8\"},\n"
    " \"backbone\": {\"layer_pattern\": \"%s\"}, \"gated_deltanet\": {\"state_size\": 32},\n"
    " \"tokenizer\": {\"type\": \"bytes\"}" GENERATION "%s}\n";
/* Tests run on three models: a plain one, one whose middle layers are looped, with tokens that leave early, and one of
 * all kinds of layers, with experts and looped as well. */
static enum { PLAIN, LOOPED, HYBRID } kind;
static const char loop_text[] = ", \"looping\": {\"prelude\": [0, 0], \"loop\": [1, 2], \"coda\": [3, 3], "
                                "\"loop_default\": 4, \"adaptive_exit_threshold\": 0.3}";
static int layers(void) { return kind == HYBRID ? 9 : kind == LOOPED ? 4 : 2; }
static const char *generation_line(void) { return kind == HYBRID ? "card.json:13" : "card.json:6"; }

static chm_runtime *open_runtime(int threads, const char *backend) {
    const chm_runtime_options options = {
        .size = sizeof options, .threads = threads, .plugin_path = plugin_path, .backend = backend, .verbosity = -1};
    chm_runtime *r = NULL;
    if (chm_runtime_create(&options, &r) != CHM_OK) fail_msg("%s", chm_error());
    return r;
}

static bool has_backend(const char *name) {
    const struct chm_registry_options options = {.plugin_path = plugin_path};
    chm_registry r;
    assert_int_equal(chm_registry_init(&r, &options), CHM_OK);
    const bool found = chm_registry_find(&r, CHM_KIND_BACKEND, name) != NULL;
    chm_registry_finish(&r);
    return found;
}

static chm_model *open_model_with(chm_runtime *r, const char *set) {
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set_count = set != NULL, .set = &set};
    chm_model *m = NULL;
    if (chm_open(r, model_path, &overlay, true, &m) != CHM_OK) fail_msg("%s", chm_error());
    return m;
}
static chm_model *open_model(chm_runtime *r) { return open_model_with(r, NULL); }

static int set_up(void **state) {
    (void)state;
    unsetenv("CHIMERA_PLUGIN_PATH");
    unsetenv("CHIMERA_BACKEND");
    unsetenv("CHIMERA_CPU_MASK");
    unsetenv("CHIMERA_THREADS");
    snprintf(scratch, sizeof scratch, "%s/tests/decode test XXXXXX", getenv("CHM_BUILD_ROOT"));
    if (!mkdtemp(scratch)) return -1;
    const char *root = getenv("CHM_BUILD_ROOT");
    plugin_path = chm_format("%s/plugins/backends:%s/plugins/layers:%s/plugins/tokenizers:%s/tests/emulated", root,
                             root, root, root);
    snprintf(card_path, sizeof card_path, "%s/card.json", scratch);
    snprintf(model_path, sizeof model_path, "%s/model.b158", scratch);
    FILE *f = fopen(card_path, "w");
    if (!f) return -1;
    const int written = kind == HYBRID ? fprintf(f, HYBRID_CARD, 64, 32, "bitnet", "int8",
                                                 ", \"loop_default\": 4, \"adaptive_exit_threshold\": 0.3", GENERATION)
                                       : fprintf(f, card_text, layers(), kind == LOOPED ? "gd attn" : "gd",
                                                 kind == LOOPED ? loop_text : "");
    if (fclose(f) != 0 || written < 0) return -1;
    chm_runtime *r = open_runtime(2, NULL);
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1};
    const int status = chm_init_model(r, card_path, &overlay, 5, model_path);
    if (status != CHM_OK) fprintf(stderr, "%s\n", chm_error());
    chm_runtime_destroy(r);
    return status;
}

static int tear_down(void **state) {
    (void)state;
    char *command = chm_format("rm -rf '%s'", scratch);
    const int bad = system(command);
    chm_free(command);
    chm_free(plugin_path);
    return bad;
}

/* ---- the sampler ------------------------------------------------------------------------------------------------- */

static const chm_sampling plain = {
    .size = sizeof plain, .temperature = 1, .top_p = 1, .repeat_penalty = 1, .repeat_last = 8, .seed = 11};

struct option {
    double p;
    int32_t id;
};

static int likeliest_first(const void *a, const void *b) {
    const struct option *x = a, *y = b;
    return x->p != y->p ? (x->p < y->p) - (x->p > y->p) : (x->id > y->id) - (x->id < y->id);
}

/* The same filters written plainly in f64, by sorting everything. */
static void expected(const chm_sampling *o, const float *logits, int n, const int32_t *recent, int recents,
                     const bool *masked, double *p) {
    struct option *v = calloc((size_t)n, sizeof *v);
    double sum = 0;
    int left = 0;
    for (int i = 0; i < n; i++) {
        double l = logits[i];
        bool seen = false;
        for (int k = 0; k < recents; k++) seen |= recent[k] == i;
        if (seen) l = l > 0 ? l / o->repeat_penalty : l * o->repeat_penalty;
        p[i] = 0;
        if (!masked || !masked[i]) v[left++] = (struct option){exp(l / o->temperature), i};
    }
    qsort(v, (size_t)left, sizeof *v, likeliest_first);
    int kept = o->top_k > 0 && o->top_k < left ? o->top_k : left;
    for (int i = 0; i < kept; i++) sum += v[i].p;
    if (o->top_p < 1) {
        double run = 0;
        int i = 0;
        while (i < kept && (i == 0 || run < o->top_p * sum)) run += v[i++].p;
        kept = i;
    }
    for (int i = kept; i-- > 1;)
        if (v[i].p < o->min_p * v[0].p) kept = i;
    sum = 0;
    for (int i = 0; i < kept; i++) sum += v[i].p;
    for (int i = 0; i < kept; i++) p[v[i].id] = v[i].p / sum;
    free(v);
}

static void test_logits(uint32_t stream, int n, float spread, float *out) {
    chm_normals(3, CHM_RANDOM_TEST, stream, n, out);
    for (int i = 0; i < n; i++) out[i] *= spread;
}

static void distribution_is_the_formula(void **state) {
    (void)state;
    enum { VOCAB = 300 };
    chm_runtime *r = open_runtime(1, "scalar");
    static const struct {
        double temperature, top_p, min_p, penalty;
        int32_t top_k;
    } settings[] = {{1, 1, 0, 1, 0},    {0.7, 1, 0, 1, 0},         {1, 1, 0, 1, 17},      {1, 0.8, 0, 1, 0},
                    {1, 1, 0.1, 1, 0},  {0.8, 0.9, 0.05, 1.2, 40}, {2, 0.5, 0, 1.5, 100}, {1, 1, 1, 1, 0},
                    {1, 0.01, 0, 1, 0}, {1, 1, 0, 0.5, 0},         {1, 1, 0, 1, 1},       {3, 0.99, 0.3, 2, 299}};
    float logits[VOCAB];
    double p[VOCAB], q[VOCAB];
    bool masked[VOCAB] = {0};
    masked[0] = masked[VOCAB - 1] = masked[133] = true;
    for (size_t s = 0; s < CHM_ARRAY_COUNT(settings); s++)
        for (uint32_t round = 0; round < 5; round++) {
            chm_sampling o = plain;
            chm_sampler sampler;
            o.temperature = settings[s].temperature;
            o.top_p = settings[s].top_p;
            o.min_p = settings[s].min_p;
            o.top_k = settings[s].top_k;
            o.repeat_penalty = settings[s].penalty;
            test_logits(round, VOCAB, 3, logits);
            assert_int_equal(chm_sampler_init(&sampler, &r->kernels.kernels, &o, VOCAB), CHM_OK);
            for (int i = 0; i < VOCAB; i++)
                if (masked[i]) chm_sampler_mask(&sampler, i);
            /* more than repeat_last, one of them twice: only the last 8 count */
            static const int32_t text[] = {9, 40, 41, 9, 77, 78, 79, 9, 81, 82, 83};
            for (size_t i = 0; i < CHM_ARRAY_COUNT(text); i++) chm_sampler_saw(&sampler, text[i]);
            assert_int_equal(chm_sampler_distribution(&sampler, logits, p), CHM_OK);
            expected(&o, logits, VOCAB, text + 3, 8, masked, q);
            double sum = 0;
            for (int i = 0; i < VOCAB; i++) {
                sum += p[i];
                /* exp in f32 is good to about 1e-7 of itself; at a cut that may not move a token in or out */
                if (fabs(p[i] - q[i]) > 2e-6) fail_msg("setting %zu, token %d: %.9g, not %.9g", s, i, p[i], q[i]);
                assert_true((p[i] > 0) == (q[i] > 0) || q[i] < 1e-12);
            }
            assert_true(fabs(sum - 1) < 1e-12);
            chm_sampler_finish(&sampler);
        }
    chm_runtime_destroy(r);
}

/* Counts of 60,000 draws: chi-square below the 1 - 1e-5 quantile (Wilson and Hilferty, z = 4.2649). Fixed seeds. */
static void draws_follow_the_distribution(void **state) {
    (void)state;
    enum { VOCAB = 40, DRAWS = 60000 };
    chm_runtime *r = open_runtime(1, NULL);
    float logits[VOCAB];
    double p[VOCAB];
    for (int set = 0; set < 4; set++) {
        chm_sampling o = plain;
        chm_sampler sampler;
        int64_t count[VOCAB] = {0};
        if (set == 1) o.temperature = 0.6;
        if (set == 2) o.top_k = 9;
        if (set == 3) o.top_p = 0.85, o.min_p = 0.02;
        o.seed = 100 + (uint64_t)set;
        test_logits(50 + (uint32_t)set, VOCAB, 0.9f, logits);
        expected(&o, logits, VOCAB, NULL, 0, NULL, p);
        assert_int_equal(chm_sampler_init(&sampler, &r->kernels.kernels, &o, VOCAB), CHM_OK);
        for (int64_t i = 0; i < DRAWS; i++) {
            int32_t id = -1;
            assert_int_equal(chm_sampler_draw(&sampler, logits, i, &id), CHM_OK);
            assert_in_range(id, 0, VOCAB - 1);
            count[id]++;
        }
        double chi = 0;
        int cells = 0;
        for (int i = 0; i < VOCAB; i++) {
            if (p[i] == 0) {
                assert_int_equal(count[i], 0);
                continue;
            }
            const double want = p[i] * DRAWS;
            if (want < 5) fail_msg("set %d: %.2f expected of token %d, too few for the test", set, want, i);
            chi += ((double)count[i] - want) * ((double)count[i] - want) / want;
            cells++;
        }
        const double d = cells - 1, w = 1 - 2 / (9 * d) + 4.2649 * sqrt(2 / (9 * d));
        if (chi > d * w * w * w) fail_msg("set %d: chi-square %.1f over %d cells", set, chi, cells);
        chm_sampler_finish(&sampler);
    }
    chm_runtime_destroy(r);
}

static int draw_once(const struct chm_kernels *k, const chm_sampling *o, const float *logits, int n, int32_t *id) {
    chm_sampler sampler;
    int status = chm_sampler_init(&sampler, k, o, n);
    if (status != CHM_OK) return status;
    status = chm_sampler_draw(&sampler, logits, 3, id);
    chm_sampler_finish(&sampler);
    return status;
}

static void hostile_numbers_are_refused(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(1, NULL);
    const struct chm_kernels *k = &r->kernels.kernels;
    float logits[6] = {0, 2, 1, 2, -1, 2};
    int32_t id = -1;
    chm_sampling o = plain;
    o.temperature = 0;
    assert_int_equal(draw_once(k, &o, logits, 6, &id), CHM_OK);
    assert_int_equal(id, 1); /* the lowest of the three that tie */
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(bad); i++)
        for (double t = 0; t < 2; t++) {
            o.temperature = t;
            logits[4] = bad[i];
            assert_int_equal(draw_once(k, &o, logits, 6, &id), CHM_E_DATA);
            assert_non_null(strstr(chm_error(), "token 4"));
        }
    /* the largest finite logits, the smallest temperature: still a token */
    const float huge[4] = {-3.4e38f, 3.4e38f, 3.3e38f, 0};
    for (double t = 1e-300; t < 200; t *= 1e100) {
        o = plain;
        o.temperature = CHM_MIN(t, 100);
        o.top_p = 0.9;
        assert_int_equal(draw_once(k, &o, huge, 4, &id), CHM_OK);
        assert_int_equal(id, 1);
    }
    const chm_sampling wrong[] = {
        {.size = sizeof o, .temperature = -1, .top_p = 1, .repeat_penalty = 1},
        {.size = sizeof o, .temperature = NAN, .top_p = 1, .repeat_penalty = 1},
        {.size = sizeof o, .temperature = 1, .top_p = 0, .repeat_penalty = 1},
        {.size = sizeof o, .temperature = 1, .top_p = NAN, .repeat_penalty = 1},
        {.size = sizeof o, .temperature = 1, .top_p = 1.5, .repeat_penalty = 1},
        {.size = sizeof o, .temperature = 1, .top_p = 1, .min_p = 2, .repeat_penalty = 1},
        {.size = sizeof o, .temperature = 1, .top_p = 1, .repeat_penalty = 0},
        {.size = sizeof o, .temperature = 1, .top_p = 1, .repeat_penalty = INFINITY},
        {.size = sizeof o, .temperature = 1, .top_p = 1, .repeat_penalty = 1, .top_k = -1},
        {.size = sizeof o, .temperature = 1, .top_p = 1, .repeat_penalty = 1, .repeat_last = -1},
        {.size = 4, .temperature = 1, .top_p = 1, .repeat_penalty = 1},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(wrong); i++)
        assert_int_equal(draw_once(k, &wrong[i], huge, 4, &id), CHM_E_CONFIG);
    chm_sampler sampler;
    assert_int_equal(chm_sampler_init(&sampler, k, &plain, 4), CHM_OK);
    for (int i = -1; i < 5; i++) chm_sampler_mask(&sampler, i);
    assert_int_equal(chm_sampler_draw(&sampler, huge, 0, &id), CHM_E_CONFIG);
    chm_sampler_finish(&sampler);
    chm_runtime_destroy(r);
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */

enum { TEXT = 200, VOCAB = 258 };

static void test_text(int32_t *ids) {
    ids[0] = 256;
    for (int i = 1; i < TEXT; i++) ids[i] = (int32_t)chm_below_at(1, CHM_RANDOM_TEST, 9, (uint64_t)i, 256);
}

static float *read_all(chm_runtime *r, chm_model *m, const int32_t *ids) {
    float *logits = chm_alloc(TEXT * VOCAB * sizeof *logits);
    chm_stream *s = NULL;
    assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
    if (chm_stream_feed_all(s, ids, TEXT, logits) != CHM_OK) fail_msg("%s", chm_error());
    assert_int_equal(chm_stream_position(s), TEXT);
    chm_stream_close(s);
    return logits;
}

/* What is compared with must be alive: logits that differ from row to row and depend on the row before. */
static void assert_alive(const float *logits) {
    int changes = 0;
    for (int i = 1; i < TEXT; i++) changes += memcmp(logits + (i - 1) * VOCAB, logits + i * VOCAB, 4 * VOCAB) != 0;
    assert_int_equal(changes, TEXT - 1);
    for (int i = 0; i < TEXT * VOCAB; i++) assert_true(isfinite(logits[i]));
}

/* As read_all(), at most `most` rows at a time. */
static float *read_in_pieces(chm_runtime *r, chm_model *m, const int32_t *ids, int64_t most) {
    float *logits = chm_alloc(TEXT * VOCAB * sizeof *logits);
    chm_stream *s = NULL;
    assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
    for (int64_t at = 0; at < TEXT; at += most)
        if (chm_stream_feed_all(s, ids + at, CHM_MIN(most, TEXT - at), logits + at * VOCAB) != CHM_OK)
            fail_msg("%s", chm_error());
    chm_stream_close(s);
    return logits;
}

/* Every backend and every level of it, and what older CPUs would take by themselves. */
static void threads_and_backends_give_the_same_bytes(void **state) {
    (void)state;
    static const struct {
        const char *backend, *mask;
    } machines[] = {
        {"scalar", ""},
        {"avx2", ""},
        {"avx2", "avx_vnni"},
        {"avx512", ""},
        {"avx512", "avx512_vnni"},
        {"neon", ""},
        {"neon", "dotprod"},
#ifndef __SANITIZE_THREAD__ /* no other threads, and slow */
        {"avx512_emulated", ""},
        {"avx2_emulated", ""},
        {"amx_emulated", ""},
        {NULL, "avx512"},
        {NULL, "avx2"},
        {NULL, "all"},
#endif
    };
    /* rows a product has: one, few, and enough for every blocking of the kernels */
    static const int64_t most[] = {TEXT, 1, 3, 18};
    int32_t ids[TEXT];
    test_text(ids);
    float *first = NULL;
    int runs = 0;
    for (size_t b = 0; b < CHM_ARRAY_COUNT(machines); b++) {
        if (machines[b].backend && !has_backend(machines[b].backend)) {
            print_message("SKIPPED: this machine or build has no backend '%s'\n", machines[b].backend);
            continue;
        }
        setenv("CHIMERA_CPU_MASK", machines[b].mask, 1);
        for (int threads = 1; threads <= 4; threads++) {
            chm_runtime *r = open_runtime(threads, machines[b].backend);
            chm_model *m = open_model(r);
            float *logits = read_in_pieces(r, m, ids, most[(threads + (int)b) % 4]);
            if (first == NULL) {
                first = logits;
                assert_alive(first);
            } else {
                assert_memory_equal(first, logits, TEXT * VOCAB * sizeof *logits);
                chm_free(logits);
            }
            chm_close(m);
            chm_runtime_destroy(r);
            runs++;
        }
        unsetenv("CHIMERA_CPU_MASK");
    }
    assert_true(runs >= (CHM_ARRAY_COUNT(machines) > 7 ? 16 : 4)); /* scalar, and what is chosen under each mask */
    chm_free(first);
}

/* The same weights in every encoding that holds them, on backends that have a kernel for it and on those that repack.
 */
static void encodings_give_the_same_bytes(void **state) {
    (void)state;
    static const char *const models[] = {"quantization.hgf_correction.enabled=false",
                                         "quantization.sherry_mode.enabled=true",
                                         "quantization.hgf_correction.enabled=true"};
    static const char *const encodings[] = {"quantization.encoding=t2", "quantization.encoding=t5",
                                            "quantization.encoding=sherry"};
    static const char *const backends[] = {"scalar", "avx2", "avx512", "avx512_emulated", "amx_emulated", "neon"};
    char *path = chm_format("%s/encoded.b158", scratch);
    int32_t ids[TEXT];
    test_text(ids);
    for (size_t k = 0; k < CHM_ARRAY_COUNT(models); k++) {
        float *first = NULL;
        for (size_t e = 0; e < CHM_ARRAY_COUNT(encodings); e++) {
            if (k != 1 && e == 2) continue;
            const char *set[] = {models[k], encodings[e]};
            const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set_count = 2, .set = set};
            chm_runtime *maker = open_runtime(2, NULL);
            if (chm_init_model(maker, card_path, &overlay, 5, path)) fail_msg("%s", chm_error());
            chm_runtime_destroy(maker);
            for (size_t b = 0; b < CHM_ARRAY_COUNT(backends); b++) {
                const chm_overlay none = {.size = sizeof none, .no_environment = 1};
                chm_model *m = NULL;
                if (!has_backend(backends[b])) continue;
                chm_runtime *r = open_runtime(1 + (int)b % 2, backends[b]);
                if (chm_open(r, path, &none, true, &m)) fail_msg("%s", chm_error());
                float *logits = read_in_pieces(r, m, ids, b % 2 ? 1 : 7);
                if (first == NULL) {
                    first = logits;
                    assert_alive(first);
                } else {
                    assert_memory_equal(first, logits, TEXT * VOCAB * sizeof *logits);
                    chm_free(logits);
                }
                chm_close(m);
                chm_runtime_destroy(r);
            }
        }
        chm_free(first);
    }
    chm_free(path);
}

static void a_prompt_may_be_split_anywhere(void **state) {
    (void)state;
    int32_t ids[TEXT];
    test_text(ids);
    chm_runtime *r = open_runtime(2, NULL);
    chm_model *m = open_model(r);
    float *whole = read_all(r, m, ids), *parts = chm_alloc(TEXT * VOCAB * sizeof *parts);
    chm_stream *s = NULL;
    assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
    for (uint32_t round = 0; round < 12; round++) {
        chm_stream_restart(s);
        const uint64_t most = round == 0 ? 1 : round == 1 ? 64 : round == 2 ? 65 : 1 + 12 * round;
        for (int64_t at = 0, piece = 0; at < TEXT; piece++) {
            int64_t n = 1 + (int64_t)chm_below_at(2, CHM_RANDOM_TEST, round, (uint64_t)piece, most);
            n = CHM_MIN(n, TEXT - at);
            const float *last = NULL;
            if (piece % 2) {
                assert_int_equal(chm_stream_feed(s, ids + at, n, &last), CHM_OK);
                assert_memory_equal(last, whole + (at + n - 1) * VOCAB, VOCAB * sizeof *last);
            } else {
                assert_int_equal(chm_stream_feed_all(s, ids + at, n, parts + at * VOCAB), CHM_OK);
                assert_memory_equal(parts + at * VOCAB, whole + at * VOCAB, (size_t)n * VOCAB * sizeof *parts);
            }
            at += n;
        }
    }
    /* without logits in between, and nothing read at all */
    const float *last = NULL;
    chm_stream_restart(s);
    assert_int_equal(chm_stream_feed(s, ids, TEXT - 1, NULL), CHM_OK);
    assert_int_equal(chm_stream_feed(s, ids, 0, &last), CHM_E_CONFIG);
    assert_int_equal(chm_stream_feed(s, ids + TEXT - 1, 1, &last), CHM_OK);
    assert_memory_equal(last, whole + (TEXT - 1) * VOCAB, VOCAB * sizeof *last);
    assert_int_equal(chm_stream_feed(s, ids, 0, &last), CHM_OK);
    assert_memory_equal(last, whole + (TEXT - 1) * VOCAB, VOCAB * sizeof *last);
    chm_stream_close(s);
    chm_free(whole);
    chm_free(parts);
    chm_close(m);
    chm_runtime_destroy(r);
}

/* A token changes nothing before it, and something where it stands; where tokens leave the loop one by one, and where
 * all stay for as long. */
static void no_token_sees_a_later_one(void **state) {
    (void)state;
    static const char *const depths[] = {NULL, "looping.adaptive_exit_threshold=0"};
    static const int at[] = {1, 2, 15, 16, 17, 31, 32, 63, 64, 100, 149, TEXT - 1};
    int32_t ids[TEXT];
    test_text(ids);
    chm_runtime *r = open_runtime(2, NULL);
    float *before = NULL;
    for (size_t d = 0; d < (kind == PLAIN ? 1 : CHM_ARRAY_COUNT(depths)); d++) {
        chm_model *m = open_model_with(r, depths[d]);
        float *whole = read_all(r, m, ids);
        if (d > 0) assert_true(memcmp(whole, before, TEXT * VOCAB * sizeof *whole) != 0);
        for (size_t i = 0; i < CHM_ARRAY_COUNT(at); i++) {
            const int32_t kept = ids[at[i]];
            ids[at[i]] = (kept + 1) % 256;
            float *other = read_all(r, m, ids);
            ids[at[i]] = kept;
            assert_memory_equal(other, whole, (size_t)at[i] * VOCAB * sizeof *whole);
            assert_true(memcmp(other + at[i] * VOCAB, whole + at[i] * VOCAB, VOCAB * sizeof *whole) != 0);
            chm_free(other);
        }
        chm_free(before);
        before = whole;
        chm_close(m);
    }
    chm_free(before);
    chm_runtime_destroy(r);
}

/* Streams that stand at different places, in one pass and each alone: a run of rows each, so many that experts and
 * heads meet in all ways. */
static void streams_share_a_pass(void **state) {
    (void)state;
    enum { STREAMS = 4, ROWS = 90 };
    static const int64_t read[STREAMS] = {0, 7, 33, 70}, rows[STREAMS] = {20, 1, 37, 32};
    int32_t ids[TEXT], id[ROWS], parent[ROWS];
    int64_t position[ROWS];
    test_text(ids);
    for (int threads = 1; threads <= 4; threads++) {
        chm_runtime *r = open_runtime(threads, NULL);
        chm_model *m = open_model(r);
        chm_context *c = NULL;
        chm_stream *alone[STREAMS];
        chm_stream_state together[STREAMS], *slots[STREAMS];
        float *logits = chm_alloc(ROWS * VOCAB * sizeof *logits);
        assert_non_null(logits);
        assert_int_equal(chm_context_create(&r->kernels.kernels, r->pool, &m->layout, (float)m->config->norm_eps, &c),
                         CHM_OK);
        int64_t n = 0;
        for (int s = 0; s < STREAMS; s++) {
            assert_int_equal(chm_stream_open(r, m, &alone[s]), CHM_OK);
            assert_int_equal(chm_stream_feed(alone[s], ids + s, read[s], NULL), CHM_OK);
            assert_int_equal(chm_stream_init(&together[s], &m->layout), CHM_OK);
            chm_stream_copy(&together[s], &alone[s]->state);
            slots[s] = &together[s];
            for (int64_t i = 0; i < rows[s]; i++, n++) {
                id[n] = ids[s + read[s] + i];
                parent[n] = i ? (int32_t)(n - 1) : ~(int32_t)s;
                position[n] = read[s] + i;
            }
        }
        assert_int_equal(n, ROWS);
        const chm_rows pass = {n, parent, position};
        chm_depth depth = {0};
        assert_int_equal(chm_context_begin(c, &pass, slots, STREAMS, CHM_PASS_COMMIT), CHM_OK);
        const chm_tensor *y = chm_model_forward(m, c, id, NULL, NULL, &depth);
        if (chm_context_status(c)) fail_msg("%s", chm_error());
        int64_t passes = 0;
        for (int s = 0, at = 0; s < STREAMS; at += (int)rows[s++]) {
            const int64_t so_far = alone[s]->depth.sum;
            assert_int_equal(chm_stream_feed_all(alone[s], id + at, rows[s], logits), CHM_OK);
            passes += alone[s]->depth.sum - so_far;
            for (int64_t i = 0; i < rows[s]; i++)
                assert_memory_equal(y->data + (at + i) * y->width, logits + i * VOCAB, VOCAB * sizeof *logits);
            assert_memory_equal(together[s].blob, alone[s]->state.blob, m->layout.bytes);
            chm_stream_finish(&together[s]);
            chm_stream_close(alone[s]);
        }
        /* each row took as many passes as it took alone; some left the loop early, and some did not */
        assert_int_equal(depth.sum, passes);
        assert_true(kind == PLAIN || (passes > 2 * n && passes < m->config->loop.passes * n));
        chm_context_destroy(c);
        chm_free(logits);
        chm_close(m);
        chm_runtime_destroy(r);
    }
}

/* Two forks read in turns, against each reading alone. */
static void forks_go_their_own_ways(void **state) {
    (void)state;
    enum { COMMON = 41 };
    int32_t ids[TEXT], other[TEXT];
    test_text(ids);
    for (int i = 0; i < TEXT; i++) other[i] = i < COMMON ? ids[i] : ids[TEXT - 1 - i + COMMON];
    chm_runtime *r = open_runtime(2, NULL);
    chm_model *m = open_model(r);
    float *first = read_all(r, m, ids), *second = read_all(r, m, other);
    chm_stream *s = NULL, *fork = NULL;
    const float *logits = NULL;
    assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
    assert_int_equal(chm_stream_feed(s, ids, COMMON, NULL), CHM_OK);
    assert_int_equal(chm_stream_fork(s, &fork), CHM_OK);
    for (int i = COMMON; i < TEXT; i++) {
        assert_int_equal(chm_stream_feed(s, ids + i, 1, &logits), CHM_OK);
        assert_memory_equal(logits, first + i * VOCAB, VOCAB * sizeof *logits);
        assert_int_equal(chm_stream_feed(fork, other + i, 1, &logits), CHM_OK);
        assert_memory_equal(logits, second + i * VOCAB, VOCAB * sizeof *logits);
    }
    chm_stream_close(fork);
    chm_stream_close(s);
    chm_free(first);
    chm_free(second);
    chm_close(m);
    chm_runtime_destroy(r);
}

static void trees_equal_plain_reading(void **state) {
    (void)state;
    enum { ROWS = 40 };
    int32_t ids[TEXT], tree[ROWS], parent[ROWS];
    test_text(ids);
    chm_runtime *r = open_runtime(2, NULL);
    chm_model *m = open_model(r);
    chm_stream *s = NULL, *fork = NULL;
    float *logits = chm_alloc(ROWS * VOCAB * sizeof *logits);
    assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
    for (uint32_t round = 0; round < 8; round++) {
        /* the first tree grows from an empty document */
        if (round > 0) assert_int_equal(chm_stream_feed(s, ids + round * 20, 20, NULL), CHM_OK);
        const int64_t position = chm_stream_position(s);
        for (int i = 0; i < ROWS; i++) {
            tree[i] = (int32_t)chm_below_at(4, CHM_RANDOM_TEST, round, (uint64_t)i, 256);
            /* long chains and wide fans alike */
            parent[i] = i == 0 ? -1
                        : (int32_t)chm_below_at(5, CHM_RANDOM_TEST, round, (uint64_t)i, 3)
                            ? i - 1
                            : (int32_t)chm_below_at(6, CHM_RANDOM_TEST, round, (uint64_t)i, (uint64_t)i + 1) - 1;
        }
        uint8_t *before = chm_alloc(m->layout.bytes);
        memcpy(before, s->state.blob, m->layout.bytes);
        if (chm_stream_try(s, tree, parent, ROWS, logits) != CHM_OK) fail_msg("%s", chm_error());
        assert_memory_equal(before, s->state.blob, m->layout.bytes);
        chm_free(before);
        assert_int_equal(chm_stream_position(s), position);
        /* every row as reading its path plainly gives it */
        for (int i = 0; i < ROWS; i++) {
            int32_t path[ROWS], n = 0;
            for (int k = i; k >= 0; k = parent[k]) path[n++] = tree[k];
            for (int a = 0, b = n - 1; a < b; a++, b--) {
                const int32_t t = path[a];
                path[a] = path[b];
                path[b] = t;
            }
            const float *plainly = NULL;
            assert_int_equal(chm_stream_fork(s, &fork), CHM_OK);
            assert_int_equal(chm_stream_feed(fork, path, n, &plainly), CHM_OK);
            assert_memory_equal(plainly, logits + i * VOCAB, VOCAB * sizeof *logits);
            chm_stream_close(fork);
        }
        /* accepted rows leave the state that reading them leaves */
        int32_t rows[ROWS], accepted = 0, chain[ROWS];
        for (int i = ROWS - 1; i >= 0; i = parent[i]) chain[accepted++] = i;
        for (int i = 0; i < accepted; i++) rows[i] = chain[accepted - 1 - i];
        if (round % 4 == 3) accepted = 0;
        if (round % 4 == 2) accepted = 1;
        int32_t text[ROWS];
        for (int i = 0; i < accepted; i++) text[i] = tree[rows[i]];
        assert_int_equal(chm_stream_fork(s, &fork), CHM_OK);
        assert_int_equal(chm_stream_feed(fork, text, accepted, NULL), CHM_OK);
        if (chm_stream_accept(s, rows, accepted) != CHM_OK) fail_msg("%s", chm_error());
        assert_int_equal(chm_stream_position(s), position + accepted);
        assert_int_equal(chm_stream_position(fork), position + accepted);
        assert_memory_equal(s->state.blob, fork->state.blob, m->layout.bytes);
        const float *a = NULL, *b = NULL;
        assert_int_equal(chm_stream_feed(s, ids, 30, &a), CHM_OK);
        assert_int_equal(chm_stream_feed(fork, ids, 30, &b), CHM_OK);
        assert_memory_equal(a, b, VOCAB * sizeof *a);
        chm_stream_close(fork);
    }
    /* what is no tree, no path, no token */
    const int32_t forward[2] = {-1, 1}, far[1] = {1}, broken[2] = {0, 2}, two[2] = {1, 2}, fan[3] = {-1, 0, 0};
    const int32_t foreign[1] = {VOCAB}, negative[1] = {-1};
    assert_int_equal(chm_stream_try(s, tree, forward, 2, logits), CHM_E_CONFIG);
    assert_int_equal(chm_stream_accept(s, far, 1), CHM_E_CONFIG);
    assert_int_equal(chm_stream_try(s, tree, fan, 0, logits), CHM_E_CONFIG);
    assert_int_equal(chm_stream_try(s, tree, fan, 3, logits), CHM_OK);
    assert_int_equal(chm_stream_accept(s, two, 2), CHM_E_CONFIG);
    assert_int_equal(chm_stream_accept(s, broken, -1), CHM_E_CONFIG);
    assert_int_equal(chm_stream_accept(s, broken, 2), CHM_OK);
    assert_int_equal(chm_stream_accept(s, broken, 2), CHM_E_CONFIG); /* the tree is gone */
    assert_int_equal(chm_stream_feed(s, foreign, 1, NULL), CHM_E_DATA);
    assert_int_equal(chm_stream_feed(s, negative, 1, NULL), CHM_E_DATA);
    chm_stream_close(s);
    chm_free(logits);
    chm_close(m);
    chm_runtime_destroy(r);
}

static void write_bytes(const char *path, const uint8_t *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static void saved_streams_go_on(void **state) {
    (void)state;
    int32_t ids[TEXT];
    char path[4200], other[4200];
    test_text(ids);
    snprintf(path, sizeof path, "%s/a.stream", scratch);
    snprintf(other, sizeof other, "%s/b.stream", scratch);
    chm_runtime *r = open_runtime(2, NULL);
    chm_model *m = open_model(r);
    chm_stream *s = NULL, *t = NULL;
    size_t bytes = 0;
    for (int cut = 0; cut <= 90; cut += 45) {
        const float *a = NULL, *b = NULL;
        assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
        assert_int_equal(chm_stream_feed(s, ids, cut, cut ? &a : NULL), CHM_OK);
        if (chm_stream_save(s, path)) fail_msg("%s", chm_error());
        if (chm_stream_load(r, m, path, &t)) fail_msg("%s", chm_error());
        assert_int_equal(chm_stream_position(t), cut);
        assert_memory_equal(s->state.blob, t->state.blob, m->layout.bytes);
        assert_int_equal(s->have_logits, t->have_logits);
        if (s->have_logits) assert_memory_equal(s->logits, t->logits, VOCAB * sizeof(float));
        assert_int_equal(chm_stream_feed(s, ids + cut, 60, &a), CHM_OK);
        assert_int_equal(chm_stream_feed(t, ids + cut, 60, &b), CHM_OK);
        assert_memory_equal(a, b, VOCAB * sizeof(float));
        chm_stream_close(s);
        chm_stream_close(t);
        chm_map file;
        assert_int_equal(chm_map_open(&file, path), CHM_OK);
        assert_true(bytes == 0 || bytes == file.size); /* one size, however much was read */
        bytes = file.size;
        chm_map_close(&file);
    }
    /* cut short anywhere, changed anywhere: refused by name, and nothing half-loads */
    uint8_t *data = chm_alloc(bytes);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(data, 1, bytes, f), bytes);
    fclose(f);
    for (size_t n = 0; n < bytes; n += 4096) {
        write_bytes(other, data, n);
        assert_int_equal(chm_stream_load(r, m, other, &t), CHM_E_DATA);
        assert_non_null(strstr(chm_error(), "b.stream"));
        assert_null(t);
    }
    int refused = 0;
    for (uint64_t i = 0; i < 400; i++) {
        /* half of them in the header, which is short */
        const size_t at = (size_t)chm_below_at(12, CHM_RANDOM_TEST, 1, i, i % 2 ? bytes : CHM_MIN(bytes, 4096));
        const uint8_t kept = data[at];
        data[at] ^= (uint8_t)(1 << chm_below_at(12, CHM_RANDOM_TEST, 2, i, 8));
        write_bytes(other, data, bytes);
        const int status = chm_stream_load(r, m, other, &t);
        data[at] = kept;
        refused += status != CHM_OK;
        if (status == CHM_OK) { /* what pads means nothing */
            assert_int_equal(chm_stream_load(r, m, path, &s), CHM_OK);
            assert_memory_equal(s->state.blob, t->state.blob, m->layout.bytes);
            assert_int_equal(chm_stream_position(s), chm_stream_position(t));
            chm_stream_close(s);
            chm_stream_close(t);
        }
    }
    assert_true(refused > 350);
    /* of another model */
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1};
    snprintf(other, sizeof other, "%s/other.b158", scratch);
    assert_int_equal(chm_init_model(r, card_path, &overlay, 6, other), CHM_OK);
    chm_model *stranger = NULL;
    assert_int_equal(chm_open(r, other, &overlay, false, &stranger), CHM_OK);
    assert_int_equal(chm_stream_load(r, stranger, path, &t), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "of another model"));
    /* and of this one under an override that makes it another; how it is used is nobody's business */
    chm_model *changed = open_model_with(r, "rms_norm_eps=1e-3"), *used = open_model_with(r, "generation.top_p=0.5");
    assert_int_equal(chm_stream_load(r, changed, path, &t), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "other overrides"));
    assert_int_equal(chm_stream_load(r, used, path, &t), CHM_OK);
    chm_stream_close(t);
    chm_close(used);
    chm_close(changed);
    assert_int_equal(chm_stream_copy_file(path, path), CHM_E_CONFIG);
    assert_int_equal(chm_stream_copy_file(other, path), CHM_E_DATA);
    assert_int_equal(chm_stream_load(r, m, path, &t), CHM_OK);
    assert_int_equal(chm_stream_save(t, "/nowhere/at/all.stream"), CHM_E_DATA);
    chm_stream_close(t);
    chm_close(stranger);
    chm_free(data);
    chm_close(m);
    chm_runtime_destroy(r);
}

static int draw_of(void *user, const void *text, size_t bytes) {
    chm_string_add_bytes(user, text, bytes);
    return 0;
}

/* Lists of one id, of neighbours in a tile, of the last tile, which is not full, and of most of the vocabulary: for
 * every form of the output matrix the logits of the list are those of the whole, in any way of asking for them. */
static void allowed_ids_have_their_logits(void **state) {
    (void)state;
    enum { N = 70, MOST = 258 };
    static const char *const forms[] = {"quantization.embedding=int8", "quantization.embedding=ternary",
                                        "quantization.embedding=f32"};
    int32_t ids[TEXT], list[5][MOST] = {{65}, {34, 33, 40, 32}, {257, 200, 256}, {7, 7, 250, 7}};
    int64_t count[5] = {1, 4, 3, 4, 0};
    for (int32_t id = 257; id >= 0; id--)
        if (id % 37) list[4][count[4]++] = id;
    test_text(ids);
    char path[5000];
    snprintf(path, sizeof path, "%s/form.b158", scratch);
    for (size_t form = 0; form < CHM_ARRAY_COUNT(forms); form++)
        for (int threads = 1; threads <= 3; threads += 2) {
            chm_runtime *r = open_runtime(threads, NULL);
            const chm_overlay overlay = {
                .size = sizeof overlay, .no_environment = 1, .set_count = 1, .set = &forms[form]};
            chm_model *m = NULL;
            chm_stream *s = NULL, *fork = NULL;
            const float *some = NULL;
            float *whole = chm_alloc(2 * N * VOCAB * sizeof *whole), *few = whole + N * VOCAB;
            assert_non_null(whole);
            assert_int_equal(chm_init_model(r, card_path, &overlay, 5, path), CHM_OK);
            assert_int_equal(chm_open(r, path, &overlay, true, &m), CHM_OK);
            assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
            assert_int_equal(chm_stream_feed_all(s, ids, N, whole), CHM_OK);
            for (size_t k = 0; k < CHM_ARRAY_COUNT(list); k++) {
                bool allowed[VOCAB] = {false};
                for (int64_t i = 0; i < count[k]; i++) allowed[list[k][i]] = true;
                chm_stream_restart(s);
                assert_int_equal(chm_stream_allow(s, list[k], count[k]), CHM_OK);
                assert_int_equal(chm_stream_feed_all(s, ids, N - 2, few), CHM_OK);
                assert_int_equal(chm_stream_fork(s, &fork), CHM_OK);
                assert_int_equal(chm_stream_feed(fork, ids + N - 2, 1, &some), CHM_OK);
                memcpy(few + (N - 2) * VOCAB, some, VOCAB * sizeof *some);
                assert_int_equal(chm_stream_try(fork, ids + N - 1, (const int32_t[]){-1}, 1, few + (N - 1) * VOCAB),
                                 CHM_OK);
                for (int64_t i = 0; i < N * VOCAB; i++) {
                    const float want = allowed[i % VOCAB] ? whole[i] : -INFINITY;
                    assert_memory_equal(&few[i], &want, sizeof want);
                }
                chm_stream_close(fork);
                /* what is written is of the list, and nothing else */
                const chm_sampling hot = {.size = sizeof hot, .temperature = 3, .top_p = 1, .repeat_penalty = 1};
                chm_string text = {0};
                assert_int_equal(chm_generate(s, "", 0, 40, &hot, draw_of, &text, NULL), CHM_OK);
                for (size_t i = 0; i < text.length; i++) assert_true(allowed[(uint8_t)text.text[i]]);
                if (k == 0) assert_int_equal(text.length, 40);
                chm_string_finish(&text);
            }
            chm_stream_restart(s);
            assert_int_equal(chm_stream_allow(s, NULL, 0), CHM_OK);
            assert_int_equal(chm_stream_feed_all(s, ids, N, few), CHM_OK);
            assert_memory_equal(few, whole, N * VOCAB * sizeof *few);
            assert_int_equal(chm_stream_allow(s, (const int32_t[]){3, VOCAB}, 2), CHM_E_DATA);
            assert_int_equal(chm_stream_allow(s, (const int32_t[]){-1}, 1), CHM_E_DATA);
            assert_int_equal(chm_stream_allow(s, (const int32_t[]){3}, -5), CHM_E_CONFIG);
            assert_non_null(strstr(chm_error(), "-5 tokens to allow"));
            chm_free(whole);
            chm_stream_close(s);
            chm_close(m);
            chm_runtime_destroy(r);
        }
}

static void reading_allocates_nothing_once_warm(void **state) {
    (void)state;
    int32_t ids[TEXT];
    test_text(ids);
    chm_runtime *r = open_runtime(2, NULL);
    chm_model *m = open_model(r);
    chm_stream *s = NULL;
    const float *logits = NULL;
    assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
    assert_int_equal(chm_stream_feed(s, ids, TEXT, &logits), CHM_OK);
    assert_int_equal(chm_stream_feed(s, ids, 1, &logits), CHM_OK);
    const uint64_t before = chm_alloc_count();
    for (int i = 0; i < 100; i++) assert_int_equal(chm_stream_feed(s, ids + i, 1, &logits), CHM_OK);
    assert_int_equal(chm_alloc_count() - before, 0);
    /* so does generating: as many allocations for 80 tokens as for 5 */
    chm_sampling o = plain;
    o.repeat_penalty = 1.2;
    o.top_p = 0.9;
    chm_generate_result result = {.size = sizeof result};
    const uint64_t a = chm_alloc_count();
    assert_int_equal(chm_generate(s, "ab", 2, 5, &o, NULL, NULL, &result), CHM_OK);
    const uint64_t b = chm_alloc_count();
    assert_int_equal(chm_generate(s, "ab", 2, 80, &o, NULL, NULL, &result), CHM_OK);
    assert_int_equal(chm_alloc_count() - b, b - a);
    chm_stream_close(s);
    chm_close(m);
    chm_runtime_destroy(r);
}

/* ---- generation -------------------------------------------------------------------------------------------------- */

struct caught {
    uint8_t text[1024];
    size_t bytes, stop_at;
};

static int catch_text(void *user, const void *text, size_t bytes) {
    struct caught *c = user;
    assert_true(c->bytes + bytes <= sizeof c->text);
    memcpy(c->text + c->bytes, text, bytes);
    c->bytes += bytes;
    return c->stop_at && c->bytes >= c->stop_at;
}

static void write_text(chm_runtime *r, chm_model *m, uint64_t seed, int64_t n, struct caught *c) {
    chm_stream *s = NULL;
    chm_sampling o = plain;
    chm_generate_result result = {.size = sizeof result};
    memset(c, 0, sizeof *c);
    o.seed = seed;
    o.top_k = 50;
    o.repeat_penalty = 1.1;
    assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
    if (chm_generate(s, "once", 4, n, &o, catch_text, c, &result) != CHM_OK) fail_msg("%s", chm_error());
    assert_int_equal(result.prompt_tokens, 5);
    assert_int_equal(result.tokens, c->bytes);
    assert_true(result.ended || result.tokens == n);
    assert_int_equal(chm_stream_position(s), 5 + result.tokens);
    chm_stream_close(s);
}

static void a_seed_writes_one_text(void **state) {
    (void)state;
    struct caught first, again, other;
    chm_runtime *r = open_runtime(1, "scalar");
    chm_model *m = open_model(r);
    write_text(r, m, 7, 60, &first);
    write_text(r, m, 8, 60, &other);
    assert_true(first.bytes > 0);
    assert_true(first.bytes != other.bytes || memcmp(first.text, other.text, first.bytes) != 0);
    chm_close(m);
    chm_runtime_destroy(r);
    for (int threads = 1; threads <= 4; threads++) {
        r = open_runtime(threads, threads % 2 && has_backend("avx2") ? "avx2" : NULL);
        m = open_model(r);
        write_text(r, m, 7, 60, &again);
        assert_int_equal(first.bytes, again.bytes);
        assert_memory_equal(first.text, again.text, first.bytes);
        chm_close(m);
        chm_runtime_destroy(r);
    }
}

static void generation_keeps_its_word(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(2, NULL);
    chm_model *m = open_model(r);
    chm_stream *s = NULL, *fork = NULL;
    chm_sampling o = {0};
    struct caught c = {0}, d = {0};
    chm_generate_result result = {.size = sizeof result};
    chm_sampling_defaults(m, &o);
    assert_int_equal(o.size, sizeof o);
    assert_true(o.temperature == 0.7 && o.top_p == 0.9 && o.repeat_penalty == 1.1);
    assert_int_equal(o.top_k, 0);
    assert_int_equal(chm_stream_open(r, m, &s), CHM_OK);
    /* no prompt: a document that begins; 0 tokens: the card's 12 */
    o.temperature = 1;
    assert_int_equal(chm_generate(s, NULL, 0, 0, &o, catch_text, &c, &result), CHM_OK);
    assert_int_equal(result.prompt_tokens, 1);
    assert_true(result.tokens == 12 || result.ended);
    /* going on in two calls is going on in one: the draw depends on the position alone */
    chm_stream_restart(s);
    o.repeat_penalty = 1; /* which otherwise looks back on what this call fed */
    assert_int_equal(chm_stream_fork(s, &fork), CHM_OK);
    c.bytes = d.bytes = 0;
    assert_int_equal(chm_generate(s, "x", 1, 20, &o, catch_text, &c, &result), CHM_OK);
    if (!result.ended) {
        assert_int_equal(chm_generate(fork, "x", 1, 9, &o, catch_text, &d, &result), CHM_OK);
        assert_int_equal(chm_generate(fork, NULL, 0, 11, &o, catch_text, &d, &result), CHM_OK);
        assert_int_equal(result.prompt_tokens, 0);
        assert_int_equal(c.bytes, d.bytes);
        assert_memory_equal(c.text, d.text, c.bytes);
    }
    /* the caller may stop it */
    chm_stream_restart(s);
    c.bytes = 0;
    c.stop_at = 3;
    assert_int_equal(chm_generate(s, "x", 1, 20, &o, catch_text, &c, &result), CHM_OK);
    assert_true(c.bytes == 3 || result.ended);
    /* and must give sizes and numbers that make sense */
    result.size = 1;
    assert_int_equal(chm_generate(s, "x", 1, 20, &o, NULL, NULL, &result), CHM_E_CONFIG);
    assert_int_equal(chm_generate(s, "x", 1, -1, &o, NULL, NULL, NULL), CHM_E_CONFIG);
    o.temperature = NAN;
    assert_int_equal(chm_generate(s, "x", 1, 1, &o, NULL, NULL, NULL), CHM_E_CONFIG);
    chm_stream_close(fork);
    chm_stream_close(s);
    chm_close(m);
    chm_runtime_destroy(r);
}

/* ---- accounts ---------------------------------------------------------------------------------------------------- */

static json_t *report(int (*write)(chm_runtime *, chm_model *, FILE *), chm_runtime *r, chm_model *m) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    if (write(r, m, f) != CHM_OK) fail_msg("%s", chm_error());
    fclose(f);
    json_error_t error;
    json_t *json = json_loads(text, 0, &error);
    if (!json) fail_msg("line %d: %s in %s", error.line, error.text, text);
    free(text);
    return json;
}

static int write_check(chm_runtime *r, chm_model *m, FILE *f) {
    (void)m;
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1};
    return chm_check(r, card_path, &overlay, true, CHM_OUTPUT_JSON, f);
}

static int write_bench(chm_runtime *r, chm_model *m, FILE *f) {
    const chm_bench_options o = {.size = sizeof o, .repeats = 1, .prefill_tokens = 100, .decode_tokens = 3};
    const chm_bench_subject subject = {r, m};
    return chm_bench(&subject, 1, &o, CHM_OUTPUT_JSON, f);
}

static int64_t part_of(json_t *parts, const char *name, const char *key) {
    size_t i;
    json_t *part;
    json_array_foreach(parts, i, part) if (strcmp(json_string_value(json_object_get(part, "part")), name) ==
                                           0) return json_integer_value(json_object_get(part, key));
    fail_msg("no part '%s'", name);
    return 0;
}

static size_t stored(const chm_param *p) {
    if (p->format == CHM_FORMAT_F32) return (size_t)p->count * sizeof(float);
    return chm_param_code_bytes(p, p->stored) + chm_param_scale_bytes(p, p->ternary.group);
}

static size_t without_padding(const chm_param *p) {
    return p->format == CHM_FORMAT_INT8 ? (size_t)p->count + (size_t)p->out * sizeof(float) : stored(p);
}

static void check_agrees_with_the_model(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(1, NULL);
    chm_model *m = open_model(r);
    json_t *json = report(write_check, r, m), *parts = json_object_get(json, "parts");
    int64_t total = 0, embedding = 0;
    size_t bytes = 0;
    assert_int_equal(chm_model_parameter_count(m, &total, &embedding), CHM_OK);
    for (int i = 0; i < m->params; i++) bytes += without_padding(m->param[i]);
    assert_int_equal(json_integer_value(json_object_get(json, "parameters")), total);
    assert_int_equal(json_integer_value(json_object_get(json, "bytes")), bytes);
    assert_int_equal(json_integer_value(json_object_get(json, "state_bytes")), m->layout.bytes);
    assert_true(json_is_true(json_object_get(json, "usable")));
    assert_int_equal(part_of(parts, "embedding", "parameters"), embedding);
    assert_int_equal(part_of(parts, "norms", "parameters"), (2 * layers() + 1) * 64);
    assert_int_equal(part_of(parts, "total", "parameters"), total);
    assert_int_equal(json_array_size(json_object_get(json, "layers")), layers());
    assert_true(json_array_size(json_object_get(json, "resolved")) > 50);
    size_t i, found = 0;
    json_t *value;
    json_array_foreach(json_object_get(json, "resolved"), i, value) {
        if (strcmp(json_string_value(json_object_get(value, "key")), "generation.top_p") != 0) continue;
        found++;
        assert_true(json_number_value(json_object_get(value, "value")) == 0.9);
        assert_non_null(strstr(json_string_value(json_object_get(value, "origin")), generation_line()));
    }
    assert_int_equal(found, 1);
    json_decref(json);
    chm_close(m);
    chm_runtime_destroy(r);
}

/* What one of `rows` tokens of a pass reads: weights that it shares with the others, its state and its embedding. */
static double bytes_read(const chm_model *m, int64_t loops, double rows, double passes_with_logits) {
    const double table = (double)stored(m->embedding);
    double bytes = (double)m->layout.bytes + table / VOCAB + passes_with_logits * table / rows;
    for (int i = 0; i < m->params; i++) {
        const chm_param *p = m->param[i];
        if (p == m->embedding) continue;
        const double often = p->layer >= 0 && m->config->in_loop[p->layer] ? (double)loops : 1;
        /* 4 experts and a shared one: of the four each token chooses two, and so leaves one with chance 1/2 */
        const double part = p->expert ? (4 * (1 - pow(0.5, rows)) + 1) / 5 : 1;
        bytes += (double)stored(p) * often * part / rows;
    }
    return bytes;
}

static void bench_counts_every_byte(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(2, NULL);
    chm_model *m = open_model(r);
    json_t *json = report(write_bench, r, m), *rows = json_object_get(json, "rows"), *one;
    const double rate = json_number_value(json_object_get(json, "read_bytes_per_second"));
    const double peak = json_number_value(
        json_object_get(json_array_get(json_object_get(json, "models"), 0), "peak_products_per_second"));
    static const char *const names[2][9] = {
        {"prefill", "decode", "streams", "streams", "streams", "streams", "streams"},
        {"prefill", "decode", "decode", "decode", "streams", "streams", "streams", "streams", "streams"}};
    static const int64_t shape[2][9][2] = {/* loops, rows */
                                           {{0, 64}, {0, 1}, {0, 2}, {0, 4}, {0, 8}, {0, 16}, {0, 32}},
                                           {{4, 64}, {1, 1}, {2, 1}, {4, 1}, {4, 2}, {4, 4}, {4, 8}, {4, 16}, {4, 32}}};
    const int looped = m->config->loop.enabled;
    const int64_t usual = m->config->loop.passes;
    assert_true(rate > 0 && peak > 0);
    assert_int_equal(json_array_size(rows), looped ? 9 : 7);
    size_t i;
    json_array_foreach(rows, i, one) {
        const int64_t loops = json_integer_value(json_object_get(one, "loops"));
        const int64_t n = json_integer_value(json_object_get(one, "rows"));
        const double speed = json_number_value(json_object_get(one, "tokens_per_second"));
        assert_string_equal(json_string_value(json_object_get(one, "name")), names[looped][i]);
        assert_int_equal(loops, shape[looped][i][0] == 4 ? usual : shape[looped][i][0]);
        assert_int_equal(n, shape[looped][i][1]);
        /* 100 tokens are two passes, of which one gives logits */
        const double want = i ? bytes_read(m, loops, (double)n, 1) : bytes_read(m, loops, 50, 0.5);
        assert_true(fabs(json_number_value(json_object_get(one, "bytes_per_token")) - want) <= 0.5);
        assert_true(speed > 0);
        const double fraction = json_number_value(json_object_get(one, "bandwidth_fraction"));
        assert_true(fabs(fraction - want * speed / rate) <= 1e-3 * fraction); /* printed to six digits */
        assert_true(json_number_value(json_object_get(one, "compute_fraction")) > 0);
    }
    json_decref(json);
    chm_close(m);
    chm_runtime_destroy(r);
}

int main(void) {
    const struct CMUnitTest sampler[] = {
        cmocka_unit_test(distribution_is_the_formula),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(hostile_numbers_are_refused),
    };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_and_backends_give_the_same_bytes),
        cmocka_unit_test(encodings_give_the_same_bytes),
        cmocka_unit_test(a_prompt_may_be_split_anywhere),
        cmocka_unit_test(no_token_sees_a_later_one),
        cmocka_unit_test(streams_share_a_pass),
        cmocka_unit_test(forks_go_their_own_ways),
        cmocka_unit_test(trees_equal_plain_reading),
        cmocka_unit_test(saved_streams_go_on),
        cmocka_unit_test(allowed_ids_have_their_logits),
        cmocka_unit_test(reading_allocates_nothing_once_warm),
        cmocka_unit_test(a_seed_writes_one_text),
        cmocka_unit_test(generation_keeps_its_word),
        cmocka_unit_test(check_agrees_with_the_model),
        cmocka_unit_test(bench_counts_every_byte),
    };
    int failed = cmocka_run_group_tests_name("sampler", sampler, set_up, tear_down);
    failed += cmocka_run_group_tests_name("plain", tests, set_up, tear_down);
    kind = LOOPED;
    failed += cmocka_run_group_tests_name("looped", tests, set_up, tear_down);
    kind = HYBRID;
    return failed + cmocka_run_group_tests_name("hybrid", tests, set_up, tear_down);
}
