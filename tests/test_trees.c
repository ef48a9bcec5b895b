/*
 * test_trees.c: trees of guesses of random shape over every kind of layer and over a model of all of them: what every
 * row gives, and the state that an accepted path leaves, are the bytes of decoding token by token. 10,000 trees in all.
 */
#include "hybrid_card.h"
#include "layer_help.h"
#include "model/stream.h"

/* Sanitizers, which are after threads and memory and not after the shapes, see a part of them. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { LAYER_TREES = 4, MODEL_TREES = 30, ALL_TREES = 332 };
#else
enum { LAYER_TREES = 132, MODEL_TREES = 512, ALL_TREES = 10000 };
#endif

static chm_runtime *runtime;
static long long trees_run, rows_run;

static int set_up(void **state) {
    (void)state;
    if (layer_set_up("trees")) return -1;
    runtime = open_runtime(2, NULL);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    chm_runtime_destroy(runtime);
    chm_free(plugin_path);
    return rmdir(scratch);
}

/* ---- layers ------------------------------------------------------------------------------------------------------ */

/* What the two tests of trees ran in one arithmetic: "N trees, N rows" are the notes of their first lines. */
static void add_up(const char *report, long long trees) {
    static const char *const names[] = {"tree: rows against their paths", "read: tree against paths"};
    long long seen = 0;
    for (const char *line = report; line; line = strchr(line + 1, '\n'))
        for (size_t i = 0; i < CHM_ARRAY_COUNT(names); i++) {
            const char *name = strstr(line, names[i]), *note = name ? strstr(name, "\"note\": \"") : NULL;
            const char *end = strchr(line + 1, '\n');
            long long n = 0, rows = 0;
            if (!note || (end && note > end)) continue;
            assert_int_equal(sscanf(note + 9, "%lld trees, %lld rows", &n, &rows), 2);
            assert_int_equal(n, trees);
            seen += n;
            rows_run += rows;
        }
    assert_int_equal(seen, 4 * trees); /* once and looped, in f32 and in the card's arithmetic */
    trees_run += seen;
}

static void layers_try_trees(void **state) {
    (void)state;
    static const struct {
        const char *plugin, *sets[5];
        uint32_t count;
    } kinds[] = {
        {"gd", {NULL}, 0},
        {"gd", {"gd.allow_neg_eigval=true", "gd.value_expand=2", "num_heads=2"}, 3},
        {"gd", {"gd.efla=true", "gd.short_conv=2", "gd.output_gate=false"}, 3},
        {"xlstm", {NULL}, 0},
        {"xlstm", {"xlstm.forget=exp", "xlstm.igate_bias=0"}, 2},
        {"xlstm", {"xlstm.variant=slstm"}, 1},
        {"titans", {NULL}, 0},
        {"titans", {"head_dim=7", "titans.chunk=5", "titans.local_window_size=10", "titans.segment_carry=0.5"}, 4},
        {"titans", {"titans.update=before", "titans.retrieve=current", "titans.chunk=4"}, 3},
        {"titans", {"titans.update=before", "titans.retrieve=none", "titans.chunk=1"}, 3},
        {"titans", {"titans.core=window_softmax", "titans.local_window_size=16"}, 2},
        {"sk", {"sk.sketch_bits=1024"}, 1},
        {"sk", {"sk.sketch_bits=2048", "sk.efla=true", "num_heads=2"}, 3},
        {"attn", {"attn.window=7", "attn.num_kv_heads=1"}, 2},
        {"attn", {"attn.window=40", "attn.rope=false", "num_heads=2"}, 3},
        {"mlp", {NULL}, 0},
        {"moe", {"moe.n_routed_experts=6", "moe.moe_intermediate_size=40"}, 2},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(kinds); i++) {
        const chm_layer_options options = {.plugin = kinds[i].plugin, .trees = LAYER_TREES, .only = "tree"};
        int status;
        char *report = report_with(runtime, options, kinds[i].sets, kinds[i].count, &status);
        if (status) fail_msg("%s, case %zu: %s", kinds[i].plugin, i, chm_error());
        add_up(report, LAYER_TREES);
        free(report);
    }
}

/* ---- the whole model --------------------------------------------------------------------------------------------- */

enum { MOST = 32, VOCAB = 258 };

static int64_t below(uint64_t tree, uint64_t draw, int64_t n) {
    return (int64_t)chm_below_at(7, CHM_RANDOM_TEST, 1, tree * 256 + draw, (uint64_t)n);
}

static void must(int status) {
    if (status) fail_msg("%s", chm_error());
}

static chm_model *make_model(const char *loop) {
    char *text = chm_format(HYBRID_CARD, 32, 16, "bitnet", "int8", loop, "");
    const struct chm_card_options options = {.registry = &runtime->registry};
    chm_card *card = NULL;
    chm_model *m = NULL;
    must(chm_card_parse("card.json", text, strlen(text), &options, &card));
    must(chm_model_create(card, &runtime->registry, &m));
    must(chm_model_allocate(m));
    must(chm_model_randomise(m, 3));
    must(chm_model_quantise(m, &runtime->kernels.kernels, runtime->pool));
    chm_free(text);
    return m;
}

static void copy_stream(chm_stream *to, const chm_stream *from) {
    chm_stream_restart(to);
    chm_stream_copy(&to->state, &from->state);
}

static void expect_same_stream(const chm_stream *a, const chm_stream *b, int64_t tree) {
    assert_int_equal(chm_stream_position(a), chm_stream_position(b));
    if (memcmp(a->state.blob, b->state.blob, a->model->layout.bytes) != 0)
        fail_msg("tree %lld: states differ", (long long)tree);
}

static void models_try_trees(void **state) {
    (void)state;
    static const struct {
        const char *loop;
        int passes;
        bool early;
    } cases[] = {
        {", \"loop_default\": 3, \"adaptive_exit_threshold\": 0", 3, false},
        {", \"loop_default\": 4, \"adaptive_exit_threshold\": 0.3", 4, true},
    };
    for (size_t k = 0; k < CHM_ARRAY_COUNT(cases); k++) {
        chm_model *m = make_model(cases[k].loop);
        chm_stream *s, *before, *node[MOST];
        must(chm_stream_open(runtime, m, &s));
        must(chm_stream_open(runtime, m, &before));
        for (int i = 0; i < MOST; i++) must(chm_stream_open(runtime, m, &node[i]));
        float *logits = chm_alloc(MOST * VOCAB * sizeof *logits);
        assert_non_null(logits);
        int64_t depth_of_trees = 0, depth_of_rows = 0, rows = 0;
        for (int64_t i = 0; i < MODEL_TREES; i++) {
            const uint64_t tree = (uint64_t)i;
            int32_t id[MOST], parent[MOST], path[MOST], prompt[8];
            /* a new document now and then, a few tokens more else; the tree may come first of all */
            if (below(tree, 0, 8) == 0) chm_stream_restart(s);
            const int64_t n = 1 + below(tree, 1, MOST), read = below(tree, 2, 8), bushy = below(tree, 3, 5);
            for (int64_t r = 0; r < read; r++) prompt[r] = (int32_t)below(tree, 4 + (uint64_t)r, 256);
            must(chm_stream_feed(s, prompt, read, NULL));
            for (int64_t r = 0; r < n; r++) {
                id[r] = (int32_t)below(tree, 32 + 4 * (uint64_t)r, 256);
                parent[r] = (int32_t)(r - 1);
                if (below(tree, 33 + 4 * (uint64_t)r, 4) < bushy)
                    parent[r] = (int32_t)below(tree, 34 + 4 * (uint64_t)r, r + 1) - 1;
            }
            copy_stream(before, s);
            s->depth.sum = 0;
            if (chm_stream_try(s, id, parent, n, logits)) fail_msg("%s", chm_error());
            depth_of_trees += s->depth.sum;
            expect_same_stream(s, before, i);
            for (int64_t r = 0; r < n; r++) {
                const float *plain;
                copy_stream(node[r], parent[r] < 0 ? before : node[parent[r]]);
                node[r]->depth.sum = 0;
                must(chm_stream_feed(node[r], &id[r], 1, &plain));
                depth_of_rows += node[r]->depth.sum;
                if (memcmp(plain, logits + r * VOCAB, VOCAB * sizeof *plain) != 0)
                    fail_msg("tree %lld: row %lld of %lld differs", (long long)i, (long long)r, (long long)n);
            }
            /* any path, or nothing */
            const int64_t last = below(tree, 12, n + 1) - 1;
            int64_t length = 0;
            for (int64_t r = last; r >= 0; r = parent[r]) length++;
            for (int64_t r = last, at = length; at-- > 0; r = parent[r]) path[at] = (int32_t)r;
            must(chm_stream_accept(s, path, length));
            chm_stream *plain = last < 0 ? before : node[last];
            expect_same_stream(s, plain, i);
            /* and on from there */
            const float *a, *b;
            must(chm_stream_feed(s, id, 1, &a));
            must(chm_stream_feed(plain, id, 1, &b));
            assert_memory_equal(a, b, VOCAB * sizeof *a);
            expect_same_stream(s, plain, i);
            rows += n;
        }
        trees_run += MODEL_TREES;
        rows_run += rows;
        /* each row took as many passes as it took alone; where rows may leave early some do, and some do not */
        assert_int_equal(depth_of_trees, depth_of_rows);
        if (cases[k].early)
            assert_true(depth_of_rows > 2 * rows && depth_of_rows < cases[k].passes * rows);
        else
            assert_int_equal(depth_of_rows, cases[k].passes * rows);
        chm_free(logits);
        for (int i = 0; i < MOST; i++) chm_stream_close(node[i]);
        chm_stream_close(before);
        chm_stream_close(s);
        chm_model_destroy(m);
    }
    print_message("%lld trees, %lld rows\n", trees_run, rows_run);
    assert_int_equal(trees_run, ALL_TREES);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_try_trees),
        cmocka_unit_test(models_try_trees),
    };
    return cmocka_run_group_tests_name("trees", tests, set_up, tear_down);
}
