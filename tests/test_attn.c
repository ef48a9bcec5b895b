/*
 * test_attn.c: the attention layer against public implementations; the generated layer tests for windows of every
 * relation to a segment; rotary positions; documents in a batch; whole models; and windows over several rings of their
 * own, sound and broken.
 */
#include "layer_help.h"
#include "model/stream.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static int set_up(void **state) {
    (void)state;
    return layer_set_up("attn");
}

static const char *const made_files[] = {"out.safetensors", "card.json", "model.b158"};

static const char *made(int file) {
    static char path[3][4200];
    snprintf(path[file], sizeof path[file], "%s/%s", scratch, made_files[file]);
    return path[file];
}
enum { OUT, CARD, MODEL };

static int tear_down(void **state) {
    (void)state;
    for (int i = 0; i < (int)CHM_ARRAY_COUNT(made_files); i++) unlink(made(i));
    rmdir(scratch);
    chm_free(plugin_path);
    return 0;
}

/* ---- the layer against golden files ---- */

static const char *const golden_layers[] = {"attn_qwen3", "attn_llama", "attn_carried"};

static void test_golden_layers(void **state) {
    (void)state;
    for (size_t g = 0; g < CHM_ARRAY_COUNT(golden_layers); g++)
        expect_golden("attn", golden_layers[g], made(OUT), (struct golden_bounds){1e-5, 1e-5, NULL});
}

static void test_same_bytes(void **state) {
    (void)state;
    for (size_t g = 0; g < CHM_ARRAY_COUNT(golden_layers); g++) expect_same_bytes("attn", golden_layers[g], made(OUT));
}

/* ---- the generated tests ---- */

static void expect_pass(const char *report, const char *what) {
    static const char *const both[] = {"split",
                                       "batch",
                                       "threads: 1..4, step",
                                       "fork",
                                       "tree",
                                       "rewind",
                                       "accept",
                                       "reset",
                                       "memory",
                                       "read: split",
                                       "read: the same question",
                                       "causality: step",
                                       "read: accept",
                                       "taped step against step"};
    static const char *const once[] = {"chunk against step: output",
                                       "chunk against step: state",
                                       "carry",
                                       "causality: chunk",
                                       "read: chunk against step",
                                       "gradient: rows x",
                                       "read: gradient: rows x of the second pass",
                                       "reset: no gradient crosses it"};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(both); k++) {
        if (!says(report, both[k], "f32", "pass")) fail_msg("%s: no '%s' in f32", what, both[k]);
        if (!says(report, both[k], "bitnet", "pass")) fail_msg("%s: no '%s' in bitnet", what, both[k]);
    }
    for (size_t k = 0; k < CHM_ARRAY_COUNT(once); k++)
        if (!says(report, once[k], "f32", "pass")) fail_msg("%s: no '%s'", what, once[k]);
}

static void test_layers_pass(void **state) {
    (void)state;
    /* the layer test reads 19 rows first, then a segment: windows inside it, around it, and never full */
    static const struct {
        const char *sets[5];
        uint32_t count;
        int64_t rows;
    } cases[] = {
        {{NULL}, 0, 33},
        {{"attn.window=2"}, 1, 33},
        {{"attn.window=7", "attn.num_heads=4", "attn.num_kv_heads=2", "attn.rotary_dim=6"}, 4, 40},
        {{"attn.window=19", "attn.qk_norm=false"}, 2, 33},
        {{"attn.window=33", "attn.rope=false", "rms_norm_before_every_linear=false"}, 3, 33},
        {{"attn.window=52", "attn.num_kv_heads=1", "attn.rope_theta=100"}, 3, 33},
        {{"attn.window=64", "num_heads=2", "head_dim=32"}, 3, 150},
        {{"attn.window=70", "attn.head_dim=10"}, 2, 130},
    };
    chm_runtime *r = open_runtime(2, NULL);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        int status;
        char what[32], *report = report_of(r, "attn", cases[i].sets, cases[i].count, cases[i].rows, &status);
        if (status) fail_msg("case %zu: %s", i, chm_error());
        snprintf(what, sizeof what, "case %zu", i);
        expect_pass(report, what);
        if (!says(report, "gradient: state keys", "f32", "pass")) fail_msg("%s: no gradient of the ring", what);
        free(report);
    }
    chm_runtime_destroy(r);
}

/* ---- rotary positions ---- */

static void test_rope(void **state) {
    (void)state;
    static const int64_t positions[] = {0, 1, 2, 3, 6, 50, 511, 4096, 100000, 4194303, 1000000007};
    static const double thetas[] = {1, 100, 10000, 500000, 1e8};
    enum { ROWS = CHM_ARRAY_COUNT(positions), GROUP = 14, ROTARY = 10, WIDTH = 2 * GROUP };
    const chm_state_layout layout = {0};
    chm_runtime *r = open_runtime(1, "scalar");
    chm_context *c = NULL;
    assert_int_equal(chm_context_create(&r->kernels.kernels, r->pool, &layout, 1e-6f, &c), CHM_OK);
    float x[ROWS * WIDTH];
    int32_t parent[ROWS];
    chm_stream_state none = {0}, *streams[] = {&none};
    none.layout = &layout;
    for (int i = 0; i < ROWS; i++) parent[i] = i ? i - 1 : ~0;
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = (float)(i * 37 % 19) - 9;
    const chm_rows rows = {ROWS, parent, positions};
    for (size_t t = 0; t < CHM_ARRAY_COUNT(thetas); t++) {
        assert_int_equal(chm_context_begin(c, &rows, streams, 1, 0), CHM_OK);
        chm_tensor *in = chm_input(c, ROWS, WIDTH, x, 0);
        chm_tensor *y = chm_rope(chm_context_graph(c), in, GROUP, ROTARY, thetas[t]);
        if (!y) fail_msg("theta %g: %d", thetas[t], chm_context_status(c));
        for (int row = 0; row < ROWS; row++)
            for (int g = 0; g < 2; g++)
                for (int i = 0; i < GROUP; i++) {
                    const float *from = x + row * WIDTH + g * GROUP, got = y->data[row * WIDTH + g * GROUP + i];
                    const int pair = i % (ROTARY / 2);
                    const long double angle =
                        (long double)positions[row] * powl((long double)thetas[t], -(long double)pair / (ROTARY / 2));
                    const double cosine = (double)cosl(angle), sine = (double)sinl(angle);
                    const double want = i >= ROTARY      ? (double)from[i]
                                        : i < ROTARY / 2 ? (double)from[pair] * cosine - (double)from[pair + 5] * sine
                                                         : (double)from[pair + 5] * cosine + (double)from[pair] * sine;
                    if (i >= ROTARY) assert_true(got == from[i]);
                    /* f32 of numbers up to 9, and f64 angles of up to 1e9 */
                    if (!(fabs((double)got - want) < 2e-6))
                        fail_msg("theta %g, position %lld, column %d: %.9g, not %.9g", thetas[t],
                                 (long long)positions[row], i, (double)got, want);
                }
    }
    static const struct {
        int64_t group, rotary;
        double theta;
    } wrong[] = {{14, 9, 100}, {14, 16, 100}, {14, 0, 100}, {13, 10, 100}, {14, 10, 0.5}, {14, 10, NAN}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(wrong); i++) {
        assert_int_equal(chm_context_begin(c, &rows, streams, 1, 0), CHM_OK);
        chm_tensor *in = chm_input(c, ROWS, WIDTH, x, 0);
        assert_null(chm_rope(chm_context_graph(c), in, wrong[i].group, wrong[i].rotary, wrong[i].theta));
        assert_int_equal(chm_context_status(c), CHM_E_CONFIG);
        assert_non_null(strstr(chm_error(), "rotary positions on"));
    }
    chm_context_destroy(c);
    chm_runtime_destroy(r);
}

/* ---- documents in a batch ---- */

/* Two slots of three documents each against every document alone: outputs, and the gradient of the rows. */
static void test_documents(void **state) {
    (void)state;
    enum { ROWS = 90, SLOTS = 2 };
    static const int64_t lengths[SLOTS][3] = {{20, 1, 69}, {64, 6, 20}};
    const char *const sets[] = {"attn.window=11", "attn.num_kv_heads=1", "quantization.method=none"};
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = 3, .set = sets, .no_environment = 1};
    const chm_layer_options options = {.size = sizeof options, .plugin = "attn", .overlay = &overlay};
    chm_runtime *r = open_runtime(2, NULL);
    chm_layer_alone l;
    if (chm_layer_alone_open(&l, r, &options, NULL, 0, 0.2, true)) fail_msg("%s", chm_error());
    assert_int_equal(chm_model_randomise(l.model, 5), CHM_OK);
    assert_int_equal(chm_model_quantise(l.model, &r->kernels.kernels, r->pool), CHM_OK);
    const int64_t width = l.model->config->width, n = SLOTS * ROWS * width;
    chm_context *c = NULL;
    assert_int_equal(chm_context_create(&r->kernels.kernels, r->pool, &l.model->layout, 1e-6f, &c), CHM_OK);
    float *x = malloc((size_t)n * 4), *dy = malloc((size_t)n * 4), *y = malloc((size_t)n * 4),
          *dx = malloc((size_t)n * 4);
    int32_t parent[SLOTS * ROWS];
    int64_t position[SLOTS * ROWS];
    chm_normals(1, CHM_RANDOM_TEST, 1, n, x);
    chm_normals(1, CHM_RANDOM_TEST, 2, n, dy);
    int64_t row = 0;
    for (int s = 0; s < SLOTS; s++)
        for (int d = 0; d < 3; d++)
            for (int64_t i = 0; i < lengths[s][d]; i++, row++) {
                parent[row] = d || i ? (int32_t)row - 1 : ~s;
                position[row] = i;
            }
    assert_int_equal(row, SLOTS * ROWS);
    chm_graph *g = chm_context_graph(c);
    const chm_rows all = {SLOTS * ROWS, parent, position};
    assert_int_equal(chm_context_begin(c, &all, NULL, SLOTS, CHM_PASS_TRAIN), CHM_OK);
    chm_tensor *in = chm_input(c, SLOTS * ROWS, width, x, CHM_TENSOR_GRAD), *out = chm_layer_alone_forward(&l, c, in);
    if (!out) fail_msg("%d %s", chm_context_status(c), chm_error());
    memcpy(g->ops->grad(g, out), dy, (size_t)n * 4);
    assert_int_equal(chm_backward(c), CHM_OK);
    memcpy(y, out->data, (size_t)n * 4);
    memcpy(dx, in->grad, (size_t)n * 4);
    int64_t first = 0;
    for (int s = 0; s < SLOTS; s++)
        for (int d = 0; d < 3; d++) {
            const int64_t count = lengths[s][d];
            for (int64_t i = 0; i < count; i++) {
                parent[i] = i ? (int32_t)i - 1 : ~0;
                position[i] = i;
            }
            const chm_rows one = {count, parent, position};
            assert_int_equal(chm_context_begin(c, &one, NULL, 1, CHM_PASS_TRAIN), CHM_OK);
            in = chm_input(c, count, width, x + first * width, CHM_TENSOR_GRAD);
            out = chm_layer_alone_forward(&l, c, in);
            assert_non_null(out);
            memcpy(g->ops->grad(g, out), dy + first * width, (size_t)(count * width) * 4);
            assert_int_equal(chm_backward(c), CHM_OK);
            assert_true(relative_error(out->data, y + first * width, count * width) < 1e-6);
            assert_true(relative_error(in->grad, dx + first * width, count * width) < 2e-6);
            first += count;
        }
    free(x), free(y), free(dy), free(dx);
    chm_context_destroy(c);
    chm_layer_alone_close(&l);
    chm_runtime_destroy(r);
}

/* ---- whole models ---- */

static const char card[] =
    "{\"model_type\": \"chimera51\", \"token_ids\": [256, 257], \"hidden_size\": 64, \"intermediate_size\": 96,"
    " \"num_hidden_layers\": 4, \"num_heads\": 2, \"head_dim\": 32, \"vocab_size\": 258, \"initializer_range\": 0.1,"
    " \"quantization\": {\"method\": \"bitnet\", \"embedding\": \"int8\"},"
    " \"backbone\": {\"layer_pattern\": \"attn GD\"}, \"attention\": {\"window\": 21, \"num_kv_heads\": 1},"
    " \"tokenizer\": {\"type\": \"bytes\"}}";

/* Logits of a text, however it is fed, tried or forked: 200 tokens over windows of 21. */
static void test_models(void **state) {
    (void)state;
    enum { N = 200, VOCAB = 258 };
    FILE *f = fopen(made(CARD), "w");
    assert_non_null(f);
    fputs(card, f);
    fclose(f);
    int32_t ids[N], parent[64], path[64];
    for (int i = 0; i < N; i++) ids[i] = i * i * 31 % 256;
    float *first = malloc(N * VOCAB * sizeof *first), *got = malloc(N * VOCAB * sizeof *got);
    assert_non_null(first);
    assert_non_null(got);
    bool have = false;
    for (size_t b = 0; b < 2; b++)
        for (int threads = 1; threads <= 4; threads++) {
            chm_runtime *r = try_runtime(backends[b], threads);
            if (!r) continue;
            chm_model *m = NULL;
            chm_stream *s = NULL, *fork = NULL;
            if (!have && chm_init_model(r, made(CARD), NULL, 7, made(MODEL))) fail_msg("%s", chm_error());
            if (chm_open(r, made(MODEL), NULL, true, &m) || chm_stream_open(r, m, &s)) fail_msg("%s", chm_error());
            /* two rings of 21 x 1 head x 32 in two of the four layers */
            assert_true(chm_stream_bytes(s) > 2 * 2 * 21 * 32 * sizeof(float));
            if (!have) assert_int_equal(chm_stream_feed_all(s, ids, N, first), CHM_OK);
            have = true;
            static const int pieces[][3] = {{200, 200, 200}, {1, 1, 1}, {7, 64, 3}, {21, 20, 22}};
            for (size_t p = 0; p < CHM_ARRAY_COUNT(pieces); p++) {
                chm_stream_restart(s);
                for (int at = 0, k = 0; at < N; k++) {
                    const int n = CHM_MIN(pieces[p][k % 3], N - at);
                    assert_int_equal(chm_stream_feed_all(s, ids + at, n, got + at * VOCAB), CHM_OK);
                    at += n;
                }
                assert_memory_equal(got, first, N * VOCAB * sizeof *got);
            }
            /* a tree beside a comb of wrong guesses, then its path accepted; a fork goes on alone */
            chm_stream_restart(s);
            const int base = 50, depth = 32;
            assert_int_equal(chm_stream_feed(s, ids, base, NULL), CHM_OK);
            assert_int_equal(chm_stream_fork(s, &fork), CHM_OK);
            int32_t tree[64];
            for (int i = 0; i < 2 * depth; i++) {
                tree[i] = i % 2 ? (ids[base + i / 2] + 1) % 256 : ids[base + i / 2];
                parent[i] = i < 2 ? -1 : i - 2 - i % 2;
                if (i % 2 == 0) path[i / 2] = i;
            }
            assert_int_equal(chm_stream_try(s, tree, parent, 2 * depth, got), CHM_OK);
            for (int i = 0; i < depth; i++)
                assert_memory_equal(got + 2 * i * VOCAB, first + (base + i) * VOCAB, VOCAB * sizeof *got);
            assert_int_equal(chm_stream_accept(s, path, depth), CHM_OK);
            assert_int_equal(chm_stream_feed_all(s, ids + base + depth, N - base - depth, got), CHM_OK);
            assert_memory_equal(got, first + (base + depth) * VOCAB, (size_t)(N - base - depth) * VOCAB * sizeof *got);
            assert_int_equal(chm_stream_feed_all(fork, ids + base, N - base, got), CHM_OK);
            assert_memory_equal(got, first + base * VOCAB, (size_t)(N - base) * VOCAB * sizeof *got);
            chm_stream_close(fork);
            chm_stream_close(s);
            chm_close(m);
            chm_runtime_destroy(r);
        }
    free(first);
    free(got);
}

/* ---- windows of one's own: three rings of unequal length and width ---- */

enum own_kind {
    OWN_SOUND,
    OWN_FAR,       /* looks one entry further back than there is: at the next row's, in truth */
    OWN_STATIC,    /* remembers in a variable */
    OWN_LOST,      /* chunk_backward forgets what was carried in */
    OWN_NO_CHUNK,  /* cannot be trained */
    OWN_STATE,     /* hands a plain state where a ring is wanted */
    OWN_NARROW,    /* entries of another width than the ring's */
    OWN_RECURRENCE /* hands a ring to a recurrence */
};
static enum own_kind own_kind;

enum { RINGS = 3 };
static const int64_t own_entries[RINGS] = {3, 8, 30}, own_width[RINGS] = {2, 1, 4};

struct own {
    chm_param *ask, *entry[RINGS], *out;
    int ring[RINGS], plain;
};

/* out[j] = sum over rings i and entries e (0: the newest) of ask[j] * entry_i[e][j mod width_i] / (e + 1) */
static void own_look(const chm_head *h, const float *const *ask, const int64_t *count, const float *const *const *entry,
                     float *out) {
    static float kept;
    for (int64_t j = 0; j < h->out_width; j++) {
        double sum = 0;
        for (int i = 0; i < RINGS; i++)
            for (int64_t e = 0; e < count[i]; e++)
                sum += (double)entry[i][count[i] - 1 - e][j % own_width[i]] / (double)(e + 1);
        out[j] = ask[0][j] * (float)sum + (own_kind == OWN_STATIC ? 0.01f * kept : 0);
    }
    if (h->head == 0) kept = ask[0][0];
}

static void own_chunk(const chm_head *h, const float *const *ask, const chm_ring_rows *ring, float *out) {
    for (int64_t r = 0; r < h->rows; r++) {
        for (int64_t j = 0; j < h->out_width; j++) {
            double sum = 0;
            for (int i = 0; i < RINGS; i++) {
                const chm_ring_rows *w = &ring[i];
                const int64_t newest = w->before + r,
                              end = own_kind == OWN_FAR && r + 1 < h->rows ? newest + 1 : newest;
                for (int64_t n = CHM_MAX(newest - w->entries + 1, 0); n <= end; n++) {
                    const float *from =
                        n < w->before ? w->carried + n * w->stride : w->rows + (n - w->before) * w->stride;
                    sum += (double)from[j % w->width] / (double)(llabs(newest - n) + 1);
                }
            }
            out[r * h->out_stride + j] = ask[0][r * h->in_stride[0] + j] * (float)sum;
        }
    }
}

static void own_backward(const chm_head *h, const float *const *ask, const chm_ring_rows *ring, const float *out,
                         const float *dout, float *const *dask) {
    (void)out;
    for (int64_t r = 0; r < h->rows; r++)
        for (int64_t j = 0; j < h->out_width; j++) {
            const float dy = dout[r * h->out_stride + j], q = ask[0][r * h->in_stride[0] + j];
            double sum = 0;
            for (int i = 0; i < RINGS; i++) {
                const chm_ring_rows *w = &ring[i];
                const int64_t newest = w->before + r;
                for (int64_t n = CHM_MAX(newest - w->entries + 1, 0); n <= newest; n++) {
                    const bool old = n < w->before;
                    const int64_t at = (old ? n : n - w->before) * w->stride + j % w->width;
                    float *to = old ? w->dcarried : w->drows;
                    sum += (double)(old ? w->carried : w->rows)[at] / (double)(newest - n + 1);
                    if (to && !(old && own_kind == OWN_LOST)) to[at] += dy * q / (float)(newest - n + 1);
                }
            }
            if (dask[0]) dask[0][r * h->in_stride[0] + j] += dy * (float)sum;
        }
}

static const chm_window own_window = {.size = sizeof own_window,
                                      .n_asks = 1,
                                      .n_rings = RINGS,
                                      .name = "own",
                                      .look = own_look,
                                      .chunk = own_chunk,
                                      .chunk_backward = own_backward};
static const chm_window own_untrained = {
    .size = sizeof own_untrained, .n_asks = 1, .n_rings = RINGS, .name = "own", .look = own_look};

static void nothing_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    (void)state;
    for (int64_t i = 0; out && i < h->out_width; i++) out[i] = in[0][i];
}
static const chm_recurrence nothing = {
    .size = sizeof nothing, .n_inputs = 1, .n_states = 1, .name = "nothing", .step = nothing_step};

static int own_declare(void *self, chm_declare *d, const chm_layer_info *info) {
    static const char *const names[RINGS][2] = {{"w0", "short_ring"}, {"w1", "ring"}, {"w2", "long_ring"}};
    struct own *o = self;
    o->ask = chm_declare_matrix(d, "ask", CHM_ROLE_FULL, chm_normal(0), 2 * 8, info->width);
    for (int i = 0; i < RINGS; i++) {
        o->entry[i] = chm_declare_matrix(d, names[i][0], CHM_ROLE_FULL, chm_normal(0), 2 * own_width[i], info->width);
        o->ring[i] = chm_declare_ring(d, names[i][1], 2, own_entries[i], own_width[i]);
    }
    o->plain = chm_declare_state(d, "plain", CHM_F32, 2, 2, (const int64_t[]){own_entries[0], own_width[0]});
    o->out = chm_declare_matrix(d, "out", CHM_ROLE_FULL, chm_normal(0), info->width, 2 * 8);
    return CHM_OK;
}

static chm_tensor *own_forward(const void *self, chm_graph *g, chm_tensor *x) {
    const struct own *o = self;
    chm_tensor *ask = chm_linear(g, x, o->ask), *entry[RINGS];
    int rings[RINGS];
    for (int i = 0; i < RINGS; i++) {
        entry[i] = chm_linear(g, x, o->entry[own_kind == OWN_NARROW ? 0 : i]);
        rings[i] = own_kind == OWN_STATE && i == 0 ? o->plain : o->ring[i];
    }
    chm_tensor *y = own_kind == OWN_RECURRENCE ? chm_recur(g, &nothing, o, &ask, NULL, &o->ring[0], 2, 8)
                                               : chm_look(g, own_kind == OWN_NO_CHUNK ? &own_untrained : &own_window, o,
                                                          &ask, entry, rings, 2, 8);
    return chm_linear(g, y, o->out);
}

static const struct chm_layer_ops own_ops = {.size = sizeof own_ops, .declare = own_declare, .forward = own_forward};
static const struct chm_plugin own_plugin = {.magic = CHM_MAGIC,
                                             .abi = CHM_ABI,
                                             .size = sizeof own_plugin,
                                             .kind = CHM_KIND_LAYER,
                                             .name = "own",
                                             .version = "1.0.0",
                                             .licence = "Apache-2.0",
                                             .summary = "three rings",
                                             .instance_size = sizeof(struct own),
                                             .ops = &own_ops};

static void test_own_windows(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(2, NULL);
    struct chm_plugin_file *loaded = r->registry.files;
    struct chm_plugin_file *files = malloc((r->registry.file_count + 1) * sizeof *files);
    assert_non_null(files);
    memcpy(files, loaded, r->registry.file_count * sizeof *files);
    files[r->registry.file_count++] = (struct chm_plugin_file){.plugin = &own_plugin, .origin = "built in"};
    r->registry.files = files;
    int status;
    char *report;

    own_kind = OWN_SOUND;
    report = report_of(r, "own", NULL, 0, 40, &status);
    if (status) fail_msg("%s", chm_error());
    expect_pass(report, "three rings");
    assert_true(says(report, "gradient: state long_ring", "f32", "pass"));
    assert_true(says(report, "read: gradient: state short_ring", "f32", "pass"));
    free(report);

    static const struct {
        enum own_kind kind;
        const char *caught[3], *passes;
    } broken[] = {
        {OWN_FAR, {"chunk against step: output", "causality: chunk"}, "split"},
        {OWN_STATIC, {"split", "fork", "tree"}, "gradient: rows x"},
        {OWN_LOST, {"gradient: state long_ring", "read: gradient: state ring"}, "gradient: rows x"},
    };
    chm_runtime *alone = r;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(broken); i++) {
        own_kind = broken[i].kind;
        report = report_of(alone, "own", NULL, 0, 40, &status);
        assert_int_equal(status, CHM_E_VERDICT);
        for (int k = 0; k < 3 && broken[i].caught[k]; k++)
            if (!says(report, broken[i].caught[k], "f32", "FAIL"))
                fail_msg("mistake %zu was not caught by '%s'", i, broken[i].caught[k]);
        if (!says(report, broken[i].passes, "f32", "pass"))
            fail_msg("mistake %zu: '%s' should pass", i, broken[i].passes);
        free(report);
    }
    own_kind = OWN_NO_CHUNK;
    report = report_of(r, "own", NULL, 0, 40, &status);
    if (status) fail_msg("%s", chm_error());
    assert_true(says(report, "tree", "f32", "pass"));
    assert_true(says(report, "gradient", "f32", "skip"));
    assert_non_null(strstr(report, "has no chunk form and cannot be trained"));
    free(report);

    static const struct {
        enum own_kind kind;
        const char *words;
    } refused[] = {
        {OWN_STATE, "entry 0 has no ring of 2 heads of 2 numbers"},
        {OWN_NARROW, "entry 1 has no ring of 2 heads of 2 numbers"},
        {OWN_RECURRENCE, "state 0 is not one of this layer's with 2 heads"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(refused); i++) {
        own_kind = refused[i].kind;
        report = report_of(r, "own", NULL, 0, 40, &status);
        assert_int_equal(status, CHM_E_PLUGIN);
        if (!strstr(chm_error(), refused[i].words)) fail_msg("%s", chm_error());
        free(report);
    }
    r->registry.files = loaded;
    r->registry.file_count--;
    free(files);
    chm_runtime_destroy(r);
}

/* ---- options ---- */

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *set, *words;
    } cases[] = {
        {"attn.num_kv_heads=2", "attention.num_kv_heads is 2, which does not divide the 3 heads"},
        {"attn.rotary_dim=7", "attention.rotary_dim is 7: an even number up to the head's width, 16"},
        {"attn.rotary_dim=18", "attention.rotary_dim is 18"},
        {"attn.window=1", "attention.window: expected integer 2..1048576, got 1"},
        {"attn.windov=5", "did you mean 'attention.window'"},
    };
    chm_runtime *r = open_runtime(1, NULL);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        int status;
        char *report = report_of(r, "attn", &cases[i].set, 1, 20, &status);
        assert_int_equal(status, CHM_E_CONFIG);
        if (!strstr(chm_error(), cases[i].words)) fail_msg("%s: %s", cases[i].set, chm_error());
        free(report);
    }
    chm_runtime_destroy(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_layers), cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_layers_pass),
        cmocka_unit_test(test_rope),          cmocka_unit_test(test_documents),  cmocka_unit_test(test_models),
        cmocka_unit_test(test_own_windows),   cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
