/*
 * layer_test.c: the tests that follow from the contract of a layer, generated for any layer plugin.
 *
 * The layer gets random parameters and rows, and a state that it reached itself by reading rows before. "bytes" tests
 * want equality bit for bit and run in the card's arithmetic as well as in f32; the others compare numbers and run in
 * f32, since int8 rounding turns one last bit into a step.
 */
#include "model/json.h"
#include "model/layer_alone.h"
#include <assert.h>
#include <math.h>
#include <string.h>

enum {
    WARM_ROWS = 19, /* read before the tests to reach a state */
    STREAMS = 4,    /* of the batch and thread tests */
    TREE_ROWS = 32, /* most of a tree */
    TREES = 16,
    MOST_TREES = 1000000,
    MOST_ROWS = 4096,
    MOST_SPLITS = 128,
    DIRECTIONS = 6,
    SWEEP = 17, /* steps of a sweep */
    SEED = 20221
};

/* Relative to the rms of a tensor. Fourth-order differences: with half a per cent the rounding of f32 outputs and
 * the truncation both stay below 3e-4 of a derivative in most layers. Where they do not, a sweep over steps of
 * longest_step / 2^i decides. */
static const double difference_step = 0.005, longest_step = 0.08;
/* A difference in doubt by more than this part of the derivative judges nothing but what is out of all doubt. */
static const double most_doubt = 0.05;
static const double chunk_tolerance = 2e-5, causality_tolerance = 1e-6, gradient_tolerance = 2e-3;

struct subject {
    const char *mode; /* the arithmetic: "f32", "bitnet" */
    chm_layer_alone layer;
    chm_context *context;
    chm_stream_state warm; /* where every test starts */
    bool trains, reads, reads_chunk;
    char why_not_train[256], why_not_read[256];
};

struct result {
    char name[96];
    const char *mode, *status; /* "pass", "FAIL", "skip", "report" */
    double error, tolerance;   /* NaN: a yes-or-no test */
    char note[384];
};

struct layer_test {
    chm_runtime *runtime;
    const chm_layer_options *options;
    struct subject *s; /* under test */
    int64_t rows, width;
    float *x, *other;   /* [STREAMS * rows][width] */
    float *y, *y2, *y3; /* as many */
    int32_t *parent;    /* [STREAMS * rows] */
    int64_t *position;
    chm_stream_state stream[STREAMS], copy[STREAMS], reference;
    chm_stream_state node[TREE_ROWS]; /* after each row of a tree */
    float *reference_y;               /* [rows][width]: rows fed by step from the warm state */
    chm_arena arena;
    struct result *result;
    int results, capacity, failed, run;
};

/* ---- results ---- */

static const struct {
    const char *test, *hint;
} hints[] = {
    {"read: gradient", "chunk_read_backward gives the gradient of the questions, chunk_backward adds what every read's "
                       "output owes to the writes"},
    {"read: chunk", "chunk_read and read disagree: the same state after each row, asked the new question"},
    {"split", "a row's result depends on which rows shared its pass: look for state kept outside the declared states, "
              "and for a step that reads more than its own row"},
    {"threads", "sums depend on who computed them: keep partial sums per row block or head, never per thread, and "
                "nothing in static variables"},
    {"batch", "streams of one pass influence each other: a layer may keep nothing between rows but its states"},
    {"taped", "the step used while a tape is open gives other bytes than the step of inference"},
    {"chunk", "chunk and step disagree: compare the two formulas on few rows, then what chunk leaves in the state"},
    {"carry", "a second segment does not continue where the first ended: what chunk leaves in the state"},
    {"causality", "a row sees later rows: look for masks that are off by one and for operators that mix rows"},
    {"gradient", "the backward pass is not the derivative of the forward pass: check the rule of what is named, and "
                 "that gradients are added, not assigned"},
    {"fork", "a copied stream is not independent: state outside the declared states"},
    {"tree", "a row of a tree saw a row that is not its ancestor: step may read its own row and the state only"},
    {"rewind", "trying rows changed the stream: state outside the declared states"},
    {"accept", "replaying accepted rows gives another state than feeding them: step must do the same when `out` is "
               "NULL"},
    {"read", "read asks the state after the row, with the arithmetic of step and without writing"},
    {"reset", "a document's first row sees what came before it: clear nothing by a decay of zero, and honour the "
              "position"},
    {"memory", "something allocates in every pass"},
};

static const char *hint_of(const char *name) {
    for (size_t i = 0; i < CHM_ARRAY_COUNT(hints); i++)
        if (!strncmp(name, hints[i].test, strlen(hints[i].test))) return hints[i].hint;
    return "";
}

static struct result *add(struct layer_test *t, const char *status, double error, double tolerance, const char *name) {
    if (t->results == t->capacity) {
        const int capacity = t->capacity ? 2 * t->capacity : 32;
        struct result *more = chm_realloc(t->result, (size_t)capacity * sizeof *more);
        if (!more) return NULL;
        t->result = more;
        t->capacity = capacity;
    }
    struct result *r = &t->result[t->results++];
    *r = (struct result){.mode = t->s->mode, .status = status, .error = error, .tolerance = tolerance};
    snprintf(r->name, sizeof r->name, "%s", name);
    t->run += !strcmp(status, "pass") || !strcmp(status, "FAIL");
    if (!strcmp(status, "FAIL")) {
        t->failed++;
        snprintf(r->note, sizeof r->note, "%s", hint_of(name));
    }
    return r;
}

/* What was seen goes before the hint, where there is one. */
static void note_first(struct result *r, const char *seen) {
    char hint[sizeof r->note];
    memcpy(hint, r->note, sizeof hint);
    snprintf(r->note, sizeof r->note, "%.120s%s%.250s", seen, *hint ? "; " : "", hint);
}

/* A yes-or-no test. `where`: what was seen, when the answer is no. */
static int same(struct layer_test *t, const char *name, bool yes, const char *where) {
    struct result *r = add(t, yes ? "pass" : "FAIL", NAN, NAN, name);
    if (!r) return CHM_E_MEMORY;
    if (!yes && *where) note_first(r, where);
    return CHM_OK;
}

static int within(struct layer_test *t, const char *name, double error, double tolerance) {
    if (t->options->tolerance > 0) tolerance = t->options->tolerance;
    struct result *r = add(t, error <= tolerance ? "pass" : "FAIL", error, tolerance, name);
    if (!r) return CHM_E_MEMORY;
    if (!isfinite(error)) note_first(r, "what came out is no number, or zero where it should not be");
    return CHM_OK;
}

static int skip(struct layer_test *t, const char *name, const char *why) {
    struct result *r = add(t, "skip", NAN, NAN, name);
    if (r) snprintf(r->note, sizeof r->note, "%s", why);
    return r ? CHM_OK : CHM_E_MEMORY;
}

/* rms(a - b) / rms(b); infinite where a is no number or b is zero and a is not */
static double relative(const float *a, const float *b, int64_t n) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        error += d * d;
        size += (double)b[i] * (double)b[i];
    }
    if (!isfinite(error) || !isfinite(size)) return INFINITY;
    return error == 0 ? 0 : size > 0 ? sqrt(error / size) : INFINITY;
}

/* The first row in which the two differ, or -1. */
static int64_t first_difference(const struct layer_test *t, const float *a, const float *b, int64_t rows) {
    for (int64_t r = 0; r < rows; r++)
        if (memcmp(a + r * t->width, b + r * t->width, (size_t)t->width * sizeof(float)) != 0) return r;
    return -1;
}

static bool same_state(const chm_stream_state *a, const chm_stream_state *b) {
    return !memcmp(a->blob, b->blob, a->layout->bytes);
}

/* Error of the f32 states; anything else must be equal. */
static double state_error(const struct layer_test *t, const chm_stream_state *a, const chm_stream_state *b) {
    const chm_layer_alone *l = &t->s->layer;
    double worst = 0;
    for (int i = 0; i < l->states; i++) {
        const chm_state_item *item = &l->state[i];
        const size_t bytes = item->head_bytes * (size_t)item->heads;
        const uint8_t *from = a->blob + item->offset, *to = b->blob + item->offset;
        double error = 0;
        if (item->type == CHM_F32) /* padding is zero in both */
            error = relative((const float *)(const void *)from, (const float *)(const void *)to,
                             (int64_t)(bytes / sizeof(float)));
        else if (memcmp(from, to, bytes) != 0)
            error = INFINITY;
        worst = error > worst ? error : worst;
    }
    return worst;
}

/* ---- passes ---- */

struct pass {
    const float *x[2]; /* the rows of each loop pass */
    int passes;        /* 0 or 1: outside a loop; 2: looped */
    int64_t rows;
    const int32_t *parent; /* NULL: equal chains, one a slot, from the slots' positions */
    const int64_t *position;
    chm_stream_state *const *streams;
    int slots;
    uint32_t flags;
    uint8_t *const *gradients;
    chm_tensor *in[2], *y[2]; /* out, until the next pass */
};

static int run_in(struct layer_test *t, struct pass *p, chm_context *c) {
    const int64_t each = p->rows / p->slots;
    chm_rows rows = {p->rows, p->parent, p->position};
    if (!p->parent) {
        for (int64_t r = 0; r < p->rows; r++) {
            t->parent[r] = r % each ? (int32_t)(r - 1) : ~(int32_t)(r / each);
            t->position[r] = p->streams[r / each]->position + r % each;
        }
        rows.parent = t->parent;
        rows.position = t->position;
    }
    int status = chm_context_begin(c, &rows, p->streams, p->slots, p->flags);
    if (status) return status;
    if (p->gradients) chm_context_state_gradients(c, p->gradients);
    const int passes = CHM_MAX(p->passes, 1);
    for (int i = 0; i < passes; i++) {
        if (passes > 1) chm_context_loop(c, i + 1);
        p->in[i] = chm_input(c, p->rows, t->width, p->x[i] ? p->x[i] : p->x[0],
                             p->flags & CHM_PASS_TRAIN ? CHM_TENSOR_GRAD : 0);
        p->y[i] = chm_layer_alone_forward(&t->s->layer, c, p->in[i]);
        if (!p->y[i]) return chm_context_status(c);
    }
    if (passes > 1) chm_context_loop(c, 0);
    status = chm_context_status(c);
    if (!p->parent && (p->flags & (CHM_PASS_COMMIT | CHM_PASS_CARRY)))
        for (int s = 0; s < p->slots; s++) p->streams[s]->position += each;
    return status;
}

static int run(struct layer_test *t, struct pass *p) { return run_in(t, p, t->s->context); }

/* Rows of one stream, which moves on; y and y2 (NULL: not wanted) get the outputs of the loop passes. */
static int feed(struct layer_test *t, chm_stream_state *stream, const float *x, const float *x2, int64_t rows,
                uint32_t flags, float *y, float *y2) {
    if (!rows) return CHM_OK;
    chm_stream_state *streams[] = {stream};
    struct pass p = {.x = {x, x2}, .passes = x2 ? 2 : 1, .rows = rows, .streams = streams, .slots = 1, .flags = flags};
    const int status = run(t, &p);
    if (status) return status;
    const size_t bytes = (size_t)(rows * t->width) * sizeof(float);
    if (y) memcpy(y, p.y[0]->data, bytes);
    if (y2 && p.y[1]) memcpy(y2, p.y[1]->data, bytes);
    return CHM_OK;
}

static chm_stream_state *restart(struct layer_test *t, chm_stream_state *s) {
    chm_stream_copy(s, &t->s->warm);
    return s;
}

static const float *row(const struct layer_test *t, const float *x, int64_t r) { return x + r * t->width; }

/* ---- tests: equality of bytes ---- */

static int test_split(struct layer_test *t) {
    const int64_t T = t->rows, every = (T + MOST_SPLITS - 1) / MOST_SPLITS;
    char where[128] = "";
    bool yes = true;
    for (int64_t at = 1; at < T && yes; at += every) {
        chm_stream_state *s = restart(t, &t->stream[0]);
        int status = feed(t, s, t->x, NULL, at, CHM_PASS_COMMIT, t->y, NULL);
        if (!status) status = feed(t, s, row(t, t->x, at), NULL, T - at, CHM_PASS_COMMIT, t->y + at * t->width, NULL);
        if (status) return status;
        const int64_t r = first_difference(t, t->y, t->reference_y, T);
        yes = r < 0 && same_state(s, &t->reference);
        if (r >= 0)
            snprintf(where, sizeof where, "split before row %lld: row %lld differs", (long long)at, (long long)r);
        else if (!yes)
            snprintf(where, sizeof where, "split before row %lld: the final state differs", (long long)at);
    }
    int status = same(t, every > 1 ? "split: 128 points" : "split: every point", yes, where);
    if (status) return status;
    chm_stream_state *s = restart(t, &t->stream[0]);
    for (int64_t r = 0; r < T && !status; r++)
        status = feed(t, s, row(t, t->x, r), NULL, 1, CHM_PASS_COMMIT, t->y + r * t->width, NULL);
    if (status) return status;
    const int64_t r = first_difference(t, t->y, t->reference_y, T);
    if (r >= 0) snprintf(where, sizeof where, "row %lld differs", (long long)r);
    return same(t, "split: row by row", r < 0 && same_state(s, &t->reference),
                r < 0 ? "the final state differs" : where);
}

/* Several streams in one pass against each alone. */
static int test_batch(struct layer_test *t) {
    chm_stream_state *streams[STREAMS];
    for (int s = 0; s < STREAMS; s++) {
        streams[s] = restart(t, &t->stream[s]);
        restart(t, &t->copy[s]);
    }
    struct pass p = {
        .x = {t->other}, .rows = STREAMS * t->rows, .streams = streams, .slots = STREAMS, .flags = CHM_PASS_COMMIT};
    int status = run(t, &p);
    if (status) return status;
    memcpy(t->y, p.y[0]->data, (size_t)(p.rows * t->width) * sizeof(float));
    bool yes = true;
    char where[128] = "";
    for (int s = 0; s < STREAMS && yes; s++) {
        const int64_t at = s * t->rows;
        status = feed(t, &t->copy[s], row(t, t->other, at), NULL, t->rows, CHM_PASS_COMMIT, t->y2, NULL);
        if (status) return status;
        const int64_t r = first_difference(t, row(t, t->y, at), t->y2, t->rows);
        yes = r < 0 && same_state(&t->stream[s], &t->copy[s]);
        if (!yes) snprintf(where, sizeof where, "stream %d: %s", s, r < 0 ? "the state differs" : "a row differs");
    }
    return same(t, "batch: streams in one pass", yes, where);
}

/* dy, then the gradients of everything; NULL dy: of the second loop pass only, and so on. */
static int backward(struct layer_test *t, struct pass *p, chm_context *c, const float *const dy[2]) {
    chm_graph *g = chm_context_graph(c);
    for (int i = 0; i < t->s->layer.params; i++) {
        chm_param *w = t->s->layer.param[i];
        if (w->grad) memset(w->grad, 0, (size_t)w->count * sizeof(float));
    }
    for (int i = 0; i < CHM_MAX(p->passes, 1); i++) {
        float *to = g->ops->grad(g, p->y[i]);
        if (to && dy[i]) memcpy(to, dy[i], (size_t)(p->rows * t->width) * sizeof(float));
    }
    return chm_backward(c);
}

/* Everything a training pass and an inference pass give, hashed. */
static int fingerprint(struct layer_test *t, chm_context *c, uint64_t out[2]) {
    chm_stream_state *streams[STREAMS];
    for (int step = 1; step >= 0; step--) {
        if (!step && !t->s->trains) break;
        for (int s = 0; s < STREAMS; s++) streams[s] = restart(t, &t->stream[s]);
        chm_model_clear_tallies(t->s->layer.model);
        struct pass p = {.x = {t->other},
                         .rows = STREAMS * t->rows,
                         .streams = streams,
                         .slots = STREAMS,
                         .flags = step ? CHM_PASS_COMMIT : CHM_PASS_TRAIN | CHM_PASS_CARRY};
        int status = run_in(t, &p, c);
        if (status) return status;
        const size_t bytes = (size_t)(p.rows * t->width) * sizeof(float);
        uint64_t h = chm_hash64(p.y[0]->data, bytes);
        for (int s = 0; s < STREAMS; s++) h = chm_hash64_seed(streams[s]->blob, streams[s]->layout->bytes, h);
        if (!step) {
            const float *const dy[2] = {t->x, NULL};
            status = backward(t, &p, c, dy);
            if (status) return status;
            if (p.in[0]->grad) h = chm_hash64_seed(p.in[0]->grad, bytes, h);
            for (int i = 0; i < t->s->layer.params; i++) {
                const chm_param *w = t->s->layer.param[i];
                const float *added = w->grad ? w->grad : w->tally;
                h = chm_hash64_seed(added, (size_t)w->count * sizeof(float), h);
            }
        }
        out[step] = h;
    }
    return CHM_OK;
}

static int test_threads(struct layer_test *t) {
    uint64_t hash[4][2] = {{0}};
    int status = CHM_OK;
    for (int threads = 1; threads <= 4 && !status; threads++) {
        chm_pool *pool = NULL;
        chm_context *c = NULL;
        const chm_model *m = t->s->layer.model;
        status = chm_pool_create(threads, &pool);
        if (!status)
            status = chm_context_create(&t->runtime->kernels.kernels, pool, &m->layout, (float)m->config->norm_eps, &c);
        if (!status) status = fingerprint(t, c, hash[threads - 1]);
        chm_context_destroy(c);
        chm_pool_destroy(pool);
    }
    if (status) return status;
    for (int step = 1; step >= 0 && !status; step--) {
        char where[64] = "";
        if (!step && !t->s->trains) break;
        for (int i = 1; i < 4; i++)
            if (hash[i][step] != hash[0][step]) snprintf(where, sizeof where, "%d threads differ from one", i + 1);
        status = same(t, step ? "threads: 1..4, step" : "threads: 1..4, chunk and gradients", !*where, where);
    }
    return status;
}

static int test_fork(struct layer_test *t) {
    const int64_t T = t->rows, at = T / 3;
    chm_stream_state *a = restart(t, &t->stream[0]), *b = &t->stream[1];
    int status = feed(t, a, t->x, NULL, at, CHM_PASS_COMMIT, t->y, NULL);
    chm_stream_copy(b, a);
    memcpy(t->y2, t->y, (size_t)(at * t->width) * sizeof(float));
    /* in turns, so that anything shared between the two shows */
    for (int64_t r = at; r < T && !status; r++) {
        status = feed(t, a, row(t, t->x, r), NULL, 1, CHM_PASS_COMMIT, t->y + r * t->width, NULL);
        if (!status) status = feed(t, b, row(t, t->other, r), NULL, 1, CHM_PASS_COMMIT, t->y2 + r * t->width, NULL);
    }
    chm_stream_state *alone = restart(t, &t->copy[0]);
    if (!status) status = feed(t, alone, t->x, NULL, at, CHM_PASS_COMMIT, t->y3, NULL);
    if (!status)
        status = feed(t, alone, row(t, t->other, at), NULL, T - at, CHM_PASS_COMMIT, t->y3 + at * t->width, NULL);
    if (status) return status;
    const bool first = first_difference(t, t->y, t->reference_y, T) < 0 && same_state(a, &t->reference);
    const bool second = first_difference(t, t->y2, t->y3, T) < 0 && same_state(b, alone);
    return same(t, "fork", first && second, first ? "the fork differs from a run of its own" : "the original differs");
}

/* Rows tried over the two streams of the tree tests, in the order they are run. */
struct tree {
    int64_t rows;
    int32_t parent[TREE_ROWS]; /* a row, or ~stream */
    int64_t position[TREE_ROWS], depth[TREE_ROWS];
    int stream[TREE_ROWS];
};

static int64_t tree_below(uint64_t tree, uint64_t draw, int64_t n) {
    return (int64_t)chm_below_at(SEED, CHM_RANDOM_TEST, 99, tree * 256 + draw, (uint64_t)n);
}

/* 1 to 32 rows: chains, fans, and what lies between. */
static void draw_tree(struct tree *tree, uint64_t number, chm_stream_state *const streams[2]) {
    const int64_t bushy = tree_below(number, 1, 5); /* 0: a chain, 4: any earlier row may be the parent */
    tree->rows = 1 + tree_below(number, 0, TREE_ROWS);
    for (int64_t r = 0; r < tree->rows; r++) {
        const uint64_t draw = 16 + 4 * (uint64_t)r;
        int64_t from = r - 1;
        if (r == 0 || tree_below(number, draw, 4) < bushy) from = tree_below(number, draw + 1, r + 2) - 2;
        if (bushy == 3 && tree_below(number, draw + 2, 2)) from = -1 - tree_below(number, draw + 3, 2);
        tree->stream[r] = from < 0 ? (int)(-1 - from) : tree->stream[from];
        tree->parent[r] = from < 0 ? ~tree->stream[r] : (int32_t)from;
        tree->depth[r] = from < 0 ? 1 : tree->depth[from] + 1;
        tree->position[r] = streams[tree->stream[r]]->position + tree->depth[r] - 1;
    }
}

/* Trees over two streams, each tried in one pass: every row as it is when decoded after its parent, one row at a time;
 * nothing moves; then a path of each stream, or nothing, is accepted, and both go on from there. The next tree stands
 * where the last one left the streams, after a few rows more, or on a new document. */
static int test_tree(struct layer_test *t, int passes) {
    static const char *const names[3][2] = {{"tree: rows against their paths", "read: tree against paths"},
                                            {"rewind: rows tried and forgotten", "read: rewind"},
                                            {"accept: a path of the tree", "read: accept"}};
    const int64_t trees = t->options->trees ? t->options->trees : TREES, made = STREAMS * t->rows, width = t->width;
    chm_stream_state *streams[2] = {restart(t, &t->stream[0]), restart(t, &t->stream[1])};
    chm_stream_state *before[2] = {&t->copy[0], &t->copy[1]};
    bool unmoved = true;
    char where[96] = "", wrong[96] = "", seen[96];
    int64_t rows = 0;
    for (int64_t i = 0; i < trees; i++) {
        const uint64_t number = (uint64_t)i;
        struct tree tree;
        int32_t path[TREE_ROWS];
        for (int s = 0; s < 2; s++) {
            const int64_t fresh = tree_below(number, 2 + (uint64_t)s, 8), n = tree_below(number, 4 + (uint64_t)s, 8);
            if (fresh == 0) {
                chm_stream_reset(streams[s]);
                streams[s]->position = 0;
            } else if (fresh == 1)
                restart(t, streams[s]);
            const int64_t at = tree_below(number, 6 + (uint64_t)s, made - n + 1);
            const int status = feed(t, streams[s], row(t, t->x, at), passes > 1 ? row(t, t->other, at) : NULL, n,
                                    CHM_PASS_COMMIT, NULL, NULL);
            if (status) return status;
            chm_stream_copy(before[s], streams[s]);
        }
        draw_tree(&tree, number, streams);
        rows += tree.rows;
        const int64_t at = tree_below(number, 8, made - tree.rows + 1);
        const float *x = row(t, t->x, at), *x2 = passes > 1 ? row(t, t->other, at) : NULL;
        struct pass p = {.x = {x, x2},
                         .passes = passes,
                         .rows = tree.rows,
                         .parent = tree.parent,
                         .position = tree.position,
                         .streams = streams,
                         .slots = 2};
        int status = run(t, &p);
        if (status) return status;
        for (int k = 0; k < passes; k++)
            memcpy(k ? t->y2 : t->y, p.y[k]->data, (size_t)(tree.rows * width) * sizeof(float));
        for (int s = 0; s < 2; s++) unmoved = unmoved && same_state(streams[s], before[s]);
        /* accept while the pass is there; -1: nothing */
        int64_t accepted[2];
        for (int s = 0; s < 2; s++) {
            accepted[s] = tree_below(number, 9 + (uint64_t)s, tree.rows + 1) - 1;
            if (accepted[s] < 0 || tree.stream[accepted[s]] != s) {
                accepted[s] = -1;
                continue;
            }
            const int64_t n = tree.depth[accepted[s]];
            for (int64_t r = accepted[s], k = n - 1; k >= 0; k--, r = tree.parent[r]) path[k] = (int32_t)r;
            status = chm_accept(t->s->context, path, n);
            if (status) return status;
            streams[s]->position += n;
        }
        for (int64_t r = 0; r < tree.rows; r++) {
            const int32_t parent = tree.parent[r];
            chm_stream_copy(&t->node[r], parent < 0 ? before[~parent] : &t->node[parent]);
            status =
                feed(t, &t->node[r], row(t, x, r), x2 ? row(t, x2, r) : NULL, 1, CHM_PASS_COMMIT, t->y3, t->y3 + width);
            if (status) return status;
            for (int k = 0; k < passes && !*where; k++)
                if (first_difference(t, row(t, k ? t->y2 : t->y, r), t->y3 + k * width, 1) >= 0)
                    snprintf(where, sizeof where, "tree %lld: row %lld of %lld, at depth %lld, differs", (long long)i,
                             (long long)r, (long long)tree.rows, (long long)tree.depth[r]);
        }
        for (int s = 0; s < 2; s++) {
            chm_stream_state *plain = accepted[s] < 0 ? before[s] : &t->node[accepted[s]];
            bool equal = same_state(streams[s], plain) && streams[s]->position == plain->position;
            status = feed(t, streams[s], row(t, t->x, s), NULL, 2, CHM_PASS_COMMIT, t->y, NULL);
            if (!status) status = feed(t, plain, row(t, t->x, s), NULL, 2, CHM_PASS_COMMIT, t->y2, NULL);
            if (status) return status;
            equal = equal && first_difference(t, t->y, t->y2, 2) < 0 && same_state(streams[s], plain);
            if (!equal && !*wrong)
                snprintf(wrong, sizeof wrong, "tree %lld: stream %d after its row %lld", (long long)i, s,
                         (long long)accepted[s]);
        }
    }
    snprintf(seen, sizeof seen, "%lld trees, %lld rows", (long long)trees, (long long)rows);
    int status = same(t, names[0][passes - 1], !*where, where);
    if (!status && !*where) snprintf(t->result[t->results - 1].note, sizeof t->result->note, "%s", seen);
    if (!status) status = same(t, names[1][passes - 1], unmoved, "");
    if (!status) status = same(t, names[2][passes - 1], !*wrong, wrong);
    return status;
}

/* A document begins inside a segment, over a state of poison. */
static int test_reset(struct layer_test *t) {
    const int64_t T = t->rows, at = T / 3;
    const size_t bytes = t->s->layer.model->layout.bytes;
    int status = CHM_OK;
    for (int chunk = 0; chunk < 1 + t->s->trains && !status; chunk++) {
        const uint32_t flags = chunk ? CHM_PASS_TRAIN | CHM_PASS_CARRY : CHM_PASS_COMMIT;
        chm_stream_state *fresh = &t->copy[0], *poisoned = &t->copy[1], *joined = restart(t, &t->stream[0]);
        chm_stream_reset(fresh);
        chm_stream_reset(poisoned);
        memset(poisoned->blob, 0xff, bytes); /* NaN in every float */
        status = feed(t, fresh, row(t, t->x, at), NULL, T - at, flags, t->y2 + at * t->width, NULL);
        if (!status) status = feed(t, poisoned, row(t, t->x, at), NULL, T - at, flags, t->y3 + at * t->width, NULL);
        if (status) return status;
        bool yes = first_difference(t, row(t, t->y2, at), row(t, t->y3, at), T - at) < 0;
        status = same(t, chunk ? "reset: chunk, over poison" : "reset: over poison", yes, "");
        if (status) return status;
        for (int64_t r = 0; r < T; r++) {
            t->parent[r] = r ? (int32_t)(r - 1) : ~0;
            t->position[r] = r < at ? joined->position + r : r - at;
        }
        chm_stream_state *streams[] = {joined};
        struct pass p = {.x = {t->x},
                         .rows = T,
                         .parent = t->parent,
                         .position = t->position,
                         .streams = streams,
                         .slots = 1,
                         .flags = flags};
        status = run(t, &p);
        if (status) return status;
        memcpy(t->y, p.y[0]->data, (size_t)(T * t->width) * sizeof(float));
        if (!chunk) {
            const int64_t r = first_difference(t, row(t, t->y, at), row(t, t->y2, at), T - at);
            status = same(t, "reset: inside a segment",
                          r < 0 && first_difference(t, t->y, t->reference_y, at) < 0 && same_state(joined, fresh), "");
            continue;
        }
        const double after = relative(row(t, t->y, at), row(t, t->y2, at), (T - at) * t->width);
        status =
            within(t, "reset: chunk, inside a segment", CHM_MAX(after, state_error(t, joined, fresh)), chunk_tolerance);
        if (status) return status;
        /* no gradient crosses the boundary */
        memset(t->y3, 0, (size_t)(at * t->width) * sizeof(float));
        memcpy(t->y3 + at * t->width, row(t, t->other, at), (size_t)((T - at) * t->width) * sizeof(float));
        const float *const dy[2] = {t->y3, NULL};
        status = backward(t, &p, t->s->context, dy);
        if (status) return status;
        bool zero = true;
        for (int64_t i = 0; p.in[0]->grad && i < at * t->width; i++) zero = zero && p.in[0]->grad[i] == 0;
        status = same(t, "reset: no gradient crosses it", zero, "");
    }
    return status;
}

static int test_memory(struct layer_test *t) {
    uint64_t before = 0;
    int status = CHM_OK;
    const float *const dy[2] = {t->other, NULL};
    for (int round = 0; round < 4 && !status; round++) {
        if (round == 1) before = chm_alloc_count();
        chm_stream_state *s = restart(t, &t->stream[0]);
        for (int64_t r = 0; r < 8 && !status; r++)
            status = feed(t, s, row(t, t->x, r), NULL, 1, CHM_PASS_COMMIT, NULL, NULL);
        if (status || !t->s->trains) continue;
        chm_stream_state *streams[] = {s};
        struct pass p = {
            .x = {t->x}, .rows = t->rows, .streams = streams, .slots = 1, .flags = CHM_PASS_TRAIN | CHM_PASS_CARRY};
        status = run(t, &p);
        if (!status) status = backward(t, &p, t->s->context, dy);
    }
    if (status) return status;
    const uint64_t made = chm_alloc_count() - before;
    char where[64];
    snprintf(where, sizeof where, "%llu allocations in 3 rounds", (unsigned long long)made);
    return same(t, "memory: no allocation after the first pass", made == 0, where);
}

/* ---- tests: numbers ---- */

static int test_chunk(struct layer_test *t) {
    if (!t->s->trains) return skip(t, "chunk against step", t->s->why_not_train);
    const int64_t n = t->rows * t->width;
    const bool plain = !strcmp(t->s->mode, "f32");
    chm_stream_state *s = restart(t, &t->stream[0]);
    int status = feed(t, s, t->x, NULL, t->rows, CHM_PASS_TRAIN | CHM_PASS_CARRY, t->y, NULL);
    if (status) return status;
    const double output = relative(t->y, t->reference_y, n), state = state_error(t, s, &t->reference);
    if (plain) {
        status = within(t, "chunk against step: output", output, chunk_tolerance);
        if (!status) status = within(t, "chunk against step: state", state, chunk_tolerance);
    } else {
        struct result *r = add(t, "report", output, NAN, "chunk against step: output");
        if (!r || !(r = add(t, "report", state, NAN, "chunk against step: state"))) return CHM_E_MEMORY;
        snprintf(r->note, sizeof r->note, "int8 rounding turns one last bit into a step: no tolerance");
    }
    s = restart(t, &t->stream[0]);
    if (!status) status = feed(t, s, t->x, NULL, t->rows, CHM_PASS_TRAIN | CHM_PASS_CARRY | CHM_PASS_STEP, t->y, NULL);
    if (status) return status;
    return same(t, "taped step against step",
                first_difference(t, t->y, t->reference_y, t->rows) < 0 && same_state(s, &t->reference), "");
}

static int test_carry(struct layer_test *t) {
    if (!t->s->trains) return skip(t, "carry: two segments", t->s->why_not_train);
    const int64_t at = t->rows / 2;
    const uint32_t flags = CHM_PASS_TRAIN | CHM_PASS_CARRY;
    chm_stream_state *whole = restart(t, &t->stream[0]), *s = restart(t, &t->stream[1]);
    int status = feed(t, whole, t->x, NULL, t->rows, flags, t->y, NULL);
    if (!status) status = feed(t, s, t->x, NULL, at, flags, t->y2, NULL);
    if (!status) status = feed(t, s, row(t, t->x, at), NULL, t->rows - at, flags, t->y2 + at * t->width, NULL);
    if (status) return status;
    const double output = relative(t->y2, t->y, t->rows * t->width), state = state_error(t, s, whole);
    return within(t, "carry: two segments", CHM_MAX(output, state), chunk_tolerance);
}

static int test_causality(struct layer_test *t) {
    const int64_t T = t->rows, every = CHM_MAX(T / 12, 1);
    const size_t bytes = (size_t)(T * t->width) * sizeof(float);
    char where[96] = "";
    double worst = 0;
    int status = CHM_OK;
    if (t->s->trains) status = feed(t, restart(t, &t->stream[0]), t->x, NULL, T, CHM_PASS_TRAIN, t->y2, NULL);
    for (int64_t at = 1; at < T && !status; at += every) {
        float *x = t->y3;
        memcpy(x, t->x, bytes);
        for (int64_t i = 0; i < t->width; i++) x[at * t->width + i] = 3 * t->other[i] + 1;
        status = feed(t, restart(t, &t->stream[0]), x, NULL, T, CHM_PASS_COMMIT, t->y, NULL);
        if (status) return status;
        const int64_t r = first_difference(t, t->y, t->reference_y, at);
        if (r >= 0 && !*where)
            snprintf(where, sizeof where, "changing row %lld changes row %lld", (long long)at, (long long)r);
        if (!t->s->trains) continue;
        status = feed(t, restart(t, &t->stream[0]), x, NULL, T, CHM_PASS_TRAIN, t->y, NULL);
        const double error = relative(t->y, t->y2, at * t->width);
        worst = error > worst ? error : worst;
    }
    if (!status) status = same(t, "causality: step", !*where, where);
    if (!status && t->s->trains && !strcmp(t->s->mode, "f32"))
        status = within(t, "causality: chunk", worst, causality_tolerance);
    return status;
}

/* ---- tests: gradients by differences ---- */

/* Something that can be moved: the rows, a parameter, a state. */
struct leaf {
    const char *kind, *name;
    float *value;                /* [parts][size], `stride` floats from part to part */
    int64_t parts, size, stride; /* a state has a part a head */
    float *gradient;             /* dense [parts * size] */
    float *base;                 /* dense copy of value */
    double scale;                /* rms */
};

struct differences {
    struct layer_test *t;
    int passes;
    struct leaf *leaf;
    int leaves;
    float *x[2];              /* the rows of each pass, moved */
    float *dy[2];             /* weights of the projection */
    float *dstate;            /* a blob of weights */
    chm_stream_state *origin; /* moved */
    float *along;             /* direction, dense, of the largest group */
    /* what comparisons decided where the derivative is taken, in the order of the taps: between such places a layer is
     * smooth, and a difference across one says nothing */
    struct held {
        float *value;
        int64_t count;
    } * held;
    int choices, capacity, next;
    bool holding; /* they are put back, no longer recorded */
    double
        grain; /* what rounding the outputs and states of the last pass to f32, and nothing before, does to the sum */
};

/* A chm_tap_hook. */
static chm_tensor *hold_choices(void *user, chm_graph *g, const char *name, chm_tensor *x) {
    static const char ending[] = ".choice";
    struct differences *d = user;
    chm_arena *arena = &d->t->arena;
    const int64_t count = x->rows * x->width;
    const size_t bytes = (size_t)count * sizeof(float), length = strlen(name), tail = sizeof ending - 1;
    (void)g;
    if (length < tail || strcmp(name + length - tail, ending) != 0) return x;
    if (!d->holding) {
        if (d->choices == d->capacity) {
            struct held *more = chm_arena_zero(arena, (size_t)(2 * d->capacity + 8) * sizeof *more);
            if (!more) return NULL;
            if (d->choices) memcpy(more, d->held, (size_t)d->choices * sizeof *more);
            d->held = more;
            d->capacity = 2 * d->capacity + 8;
        }
        float *copy = chm_arena_take(arena, bytes);
        if (!copy) return NULL;
        memcpy(copy, x->data, bytes);
        d->held[d->choices++] = (struct held){copy, count};
    } else if (d->next < d->choices && d->held[d->next].count == count) {
        memcpy(x->data, d->held[d->next++].value, bytes);
    }
    return x;
}

static int evaluate(struct differences *d, double *out) {
    struct layer_test *t = d->t;
    const chm_layer_alone *l = &t->s->layer;
    chm_stream_state *s = &t->stream[1], *streams[] = {s};
    chm_stream_copy(s, d->origin);
    d->next = 0;
    struct pass p = {.x = {d->x[0], d->x[1]},
                     .passes = d->passes,
                     .rows = t->rows,
                     .streams = streams,
                     .slots = 1,
                     .flags = CHM_PASS_TRAIN | CHM_PASS_CARRY};
    const int status = run(t, &p);
    if (status) return status;
    double sum = 0, squares = 0;
    for (int k = 0; k < d->passes; k++)
        for (int64_t i = 0; i < t->rows * t->width; i++) {
            const double part = (double)d->dy[k][i] * (double)p.y[k]->data[i];
            sum += part;
            squares += part * part;
        }
    const float *blob = (const float *)(const void *)s->blob;
    for (int i = 0; i < l->states; i++) {
        const chm_state_item *item = &l->state[i];
        if (item->type != CHM_F32) continue;
        const size_t from = item->offset / sizeof(float), n = item->head_bytes * (size_t)item->heads / sizeof(float);
        for (size_t k = from; k < from + n; k++) {
            if (d->dstate[k] == 0) continue;
            const double part = (double)d->dstate[k] * (double)blob[k];
            sum += part;
            squares += part * part;
        }
    }
    *out = sum;
    d->grain = sqrt(squares) * 0x1p-24;
    return CHM_OK;
}

static void move(struct leaf *leaf, const float *along, double by) {
    for (int64_t p = 0; p < leaf->parts; p++)
        for (int64_t i = 0; i < leaf->size; i++) {
            const int64_t k = p * leaf->size + i;
            leaf->value[p * leaf->stride + i] =
                along ? (float)((double)leaf->base[k] + by * leaf->scale * (double)along[k]) : leaf->base[k];
        }
}

/* What the sum gains between a step against the direction and one along it. */
static int gain(struct differences *d, struct leaf *leaf, double step, double *out) {
    double ahead = 0, behind = 0;
    move(leaf, d->along, step);
    int status = evaluate(d, &ahead);
    if (status) return status;
    move(leaf, d->along, -step);
    status = evaluate(d, &behind);
    *out = ahead - behind;
    return status;
}

/* The derivative along one direction: as the layer has it, and by a difference that may be wrong by `doubt`. */
struct slope {
    double layer, difference, doubt;
};

/* Of a fixed step, and with the layer's */
static int quick_slope(struct differences *d, struct leaf *leaf, struct slope *slope) {
    double once, twice;
    int status = gain(d, leaf, difference_step, &once);
    if (!status) status = gain(d, leaf, 2 * difference_step, &twice);
    if (status) return status;
    *slope = (struct slope){.difference = (8 * once - twice) / (12 * difference_step)};
    for (int64_t i = 0; i < leaf->parts * leaf->size; i++)
        slope->layer += (double)leaf->gradient[i] * (double)d->along[i] * leaf->scale;
    return CHM_OK;
}

/*
 * Of the step whose difference is least in doubt. Its doubt is what the next longer step says otherwise, which is how
 * much the long ones bend around curves and across kinks; what any shorter one says otherwise, beyond its rounding; and
 * its own rounding. How much rounding there is the shortest steps show, which differ by nothing else; but not those
 * that differ by less than the grain, where nothing moved at all. The layer's own gradient has no part in the choice.
 */
static int swept_slope(struct differences *d, struct leaf *leaf, struct slope *slope) {
    enum { SHORTEST = 4 };
    double gained[SWEEP], difference[SWEEP], step[SWEEP], rounding = 0;
    for (int i = 0; i < SWEEP; i++) {
        step[i] = longest_step / (double)(1 << i);
        const int status = gain(d, leaf, step[i], &gained[i]);
        if (status) return status;
        difference[i] = i ? (8 * gained[i] - gained[i - 1]) / (12 * step[i]) : 0;
    }
    int steps = SWEEP;
    for (; steps > SHORTEST; steps--) {
        rounding = 0;
        for (int i = steps - SHORTEST; i < steps; i++)
            rounding = fmax(rounding, fabs(difference[i] - difference[CHM_MAX(i - 1, 1)]) * step[i]);
        if (!(rounding < d->grain)) break;
    }
    rounding = fmax(rounding, d->grain);
    slope->doubt = INFINITY;
    for (int i = 2; i < steps; i++) {
        double doubt = fmax(fabs(difference[i] - difference[i - 1]), rounding / step[i]);
        for (int j = i + 1; j < steps; j++)
            doubt = fmax(doubt, fabs(difference[i] - difference[j]) - 3 * rounding / step[j]);
        if (!(doubt < slope->doubt)) continue;
        slope->doubt = doubt;
        slope->difference = difference[i];
    }
    return CHM_OK;
}

struct agreement {
    double error; /* rms of what no doubt explains over the rms of the derivatives */
    int judged;   /* directions along which the difference is good enough to see a wrong gradient */
};

static int compare_leaf(struct differences *d, int index, struct agreement *found) {
    struct leaf *leaf = &d->leaf[index];
    const int64_t n = leaf->parts * leaf->size;
    const uint32_t stream = 100 + (uint32_t)index;
    struct slope slope[DIRECTIONS] = {{0}};
    *found = (struct agreement){0};
    for (int sweep = 0; sweep < 2; sweep++) {
        double wrong = 0, size = 0;
        int status = CHM_OK, judged = 0;
        for (int k = 0; k < DIRECTIONS && !status; k++) {
            chm_normals(SEED + (uint64_t)k, CHM_RANDOM_TEST, stream, n, d->along);
            status = sweep ? swept_slope(d, leaf, &slope[k]) : quick_slope(d, leaf, &slope[k]);
            size += slope[k].difference * slope[k].difference / DIRECTIONS;
        }
        move(leaf, NULL, 0);
        if (status) return status;
        size = sqrt(size);
        for (int k = 0; k < DIRECTIONS; k++) {
            const bool judges = size > 0 && slope[k].doubt <= most_doubt * size;
            const double apart = fabs(slope[k].layer - slope[k].difference),
                         beyond = apart - (judges ? 3 : 10) * slope[k].doubt;
            judged += judges;
            /* what is no number is wrong */
            if (!(beyond <= 0)) wrong += beyond * beyond / DIRECTIONS;
        }
        found->judged = judged;
        found->error = !isfinite(wrong) ? INFINITY : size > 0 ? sqrt(wrong) / size : wrong > 0 ? INFINITY : 0;
        if (found->error <= gradient_tolerance) break;
    }
    return CHM_OK;
}

static double rms(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return n ? sqrt(sum / (double)n) : 0;
}

static int add_leaf(struct differences *d, const char *kind, const char *name, float *value, int64_t parts,
                    int64_t size, int64_t stride) {
    struct leaf *leaf = &d->leaf[d->leaves++];
    const size_t bytes = (size_t)(parts * size) * sizeof(float);
    *leaf = (struct leaf){.kind = kind, .name = name, .value = value, .parts = parts, .size = size, .stride = stride};
    leaf->base = chm_arena_take(&d->t->arena, bytes);
    leaf->gradient = chm_arena_zero(&d->t->arena, bytes);
    if (!leaf->base || !leaf->gradient) return CHM_E_MEMORY;
    for (int64_t p = 0; p < parts; p++) memcpy(leaf->base + p * size, value + p * stride, (size_t)size * sizeof(float));
    leaf->scale = rms(leaf->base, parts * size);
    if (leaf->scale == 0) leaf->scale = 1;
    return CHM_OK;
}

static float *copy_floats(struct layer_test *t, const float *from, int64_t n) {
    float *p = chm_arena_take(&t->arena, (size_t)n * sizeof *p);
    if (p) memcpy(p, from, (size_t)n * sizeof *p);
    return p;
}

/* The projection weighs every output alike: a tensor's weights are normals over its rms. */
static int weigh(struct differences *d) {
    struct layer_test *t = d->t;
    const chm_layer_alone *l = &t->s->layer;
    const int64_t n = t->rows * t->width;
    const size_t bytes = l->model->layout.bytes;
    chm_stream_state *s = restart(t, &t->stream[1]);
    int status =
        feed(t, s, d->x[0], d->passes > 1 ? d->x[1] : NULL, t->rows, CHM_PASS_TRAIN | CHM_PASS_CARRY, t->y, t->y2);
    if (status) return status;
    for (int k = 0; k < d->passes; k++) {
        const double size = rms(k ? t->y2 : t->y, n);
        if (!(d->dy[k] = chm_arena_take(&t->arena, (size_t)n * sizeof(float)))) return CHM_E_MEMORY;
        chm_normals(SEED, CHM_RANDOM_TEST, 40 + (uint32_t)k, n, d->dy[k]);
        for (int64_t i = 0; i < n; i++) d->dy[k][i] = (float)((double)d->dy[k][i] / (size > 0 ? size : 1));
    }
    if (!(d->dstate = chm_arena_zero(&t->arena, bytes + 64))) return CHM_E_MEMORY;
    for (int i = 0; i < l->states; i++) {
        const chm_state_item *item = &l->state[i];
        if (item->type != CHM_F32) continue;
        const int64_t stride = (int64_t)(item->head_bytes / sizeof(float));
        const float *from = (const float *)(const void *)(s->blob + item->offset);
        double size = rms(from, stride * item->heads) * sqrt((double)stride / (double)CHM_MAX(item->elements, 1));
        if (!(size > 0)) size = 1;
        for (int64_t h = 0; h < item->heads; h++) {
            float *to = d->dstate + item->offset / sizeof(float) + h * stride;
            chm_normals(SEED + (uint64_t)h, CHM_RANDOM_TEST, 50 + (uint32_t)i, item->elements, to);
            for (int64_t k = 0; k < item->elements; k++) to[k] = (float)((double)to[k] / size);
        }
    }
    return CHM_OK;
}

static int prepare_differences(struct differences *d, struct layer_test *t, int passes) {
    const chm_layer_alone *l = &t->s->layer;
    const int64_t n = t->rows * t->width;
    *d = (struct differences){.t = t, .passes = passes, .origin = &t->stream[0]};
    d->leaf = chm_arena_zero(&t->arena, (size_t)(2 + l->params + l->states) * sizeof *d->leaf);
    d->x[0] = copy_floats(t, t->x, n);
    d->x[1] = copy_floats(t, t->other, n);
    if (!d->leaf || !d->x[0] || !d->x[1]) return CHM_E_MEMORY;
    restart(t, d->origin);
    chm_context_on_tap(t->s->context, hold_choices, d);
    int status = weigh(d);
    if (status) return status;
    d->holding = true;
    status = add_leaf(d, "rows", "x", d->x[0], 1, n, n);
    if (!status && passes > 1) status = add_leaf(d, "rows", "x of the second pass", d->x[1], 1, n, n);
    for (int i = 0; i < l->params && !status; i++)
        if (l->param[i]->grad)
            status = add_leaf(d, "parameter", chm_layer_alone_name(l, l->param[i]->name), l->param[i]->value, 1,
                              l->param[i]->count, l->param[i]->count);
    for (int i = 0; i < l->states && !status; i++)
        if (l->state[i].type == CHM_F32)
            status = add_leaf(d, "state", chm_layer_alone_name(l, l->state[i].name),
                              (float *)(void *)(d->origin->blob + l->state[i].offset), l->state[i].heads,
                              l->state[i].elements, (int64_t)(l->state[i].head_bytes / sizeof(float)));
    int64_t most = 0;
    for (int i = 0; i < d->leaves; i++) most += d->leaf[i].parts * d->leaf[i].size;
    d->along = chm_arena_take(&t->arena, (size_t)most * sizeof(float));
    return status ? status : d->along ? CHM_OK : CHM_E_MEMORY;
}

/* One backward pass: every leaf's gradient. */
static int differentiate(struct differences *d) {
    struct layer_test *t = d->t;
    const chm_layer_alone *l = &t->s->layer;
    chm_stream_state *s = &t->stream[1], *streams[] = {s};
    chm_stream_copy(s, d->origin);
    uint8_t *blob = chm_arena_zero(&t->arena, l->model->layout.bytes + 64), *gradients[] = {blob};
    if (!blob) return CHM_E_MEMORY;
    d->next = 0;
    memcpy(blob, d->dstate, l->model->layout.bytes);
    struct pass p = {.x = {d->x[0], d->x[1]},
                     .passes = d->passes,
                     .rows = t->rows,
                     .streams = streams,
                     .slots = 1,
                     .flags = CHM_PASS_TRAIN | CHM_PASS_CARRY,
                     .gradients = gradients};
    int status = run(t, &p);
    if (!status) status = backward(t, &p, t->s->context, (const float *const *)d->dy);
    if (status) return status;
    int at = 0;
    const size_t bytes = (size_t)(t->rows * t->width) * sizeof(float);
    for (int k = 0; k < d->passes; k++, at++)
        if (p.in[k]->grad) memcpy(d->leaf[at].gradient, p.in[k]->grad, bytes);
    for (int i = 0; i < l->params; i++)
        if (l->param[i]->grad)
            memcpy(d->leaf[at++].gradient, l->param[i]->grad, (size_t)l->param[i]->count * sizeof(float));
    for (int i = 0; i < l->states; i++) {
        const chm_state_item *item = &l->state[i];
        if (item->type != CHM_F32) continue;
        for (int64_t h = 0; h < item->heads; h++)
            memcpy(d->leaf[at].gradient + h * item->elements, blob + item->offset + (size_t)h * item->head_bytes,
                   (size_t)item->elements * sizeof(float));
        at++;
    }
    return CHM_OK;
}

static int test_gradients(struct layer_test *t, int passes) {
    const char *what = passes > 1 ? "read: gradient" : "gradient";
    if (!t->s->trains) return skip(t, what, t->s->why_not_train);
    struct differences d;
    int status = prepare_differences(&d, t, passes);
    if (!status) status = differentiate(&d);
    for (int i = 0; i < d.leaves && !status; i++) {
        char name[96];
        struct agreement found;
        if (d.leaf[i].parts * d.leaf[i].size == 0) continue;
        snprintf(name, sizeof name, "%s: %s %s", what, d.leaf[i].kind, d.leaf[i].name);
        status = compare_leaf(&d, i, &found);
        if (status) break;
        if (!found.judged && found.error <= gradient_tolerance) {
            status = skip(t, name,
                          "no difference judges it: it moves the results by less than their rounding, or not at all");
            continue;
        }
        status = within(t, name, found.error, gradient_tolerance);
        if (!status && found.judged < DIRECTIONS) {
            char seen[64];
            snprintf(seen, sizeof seen, "judged along %d of %d directions", found.judged, DIRECTIONS);
            note_first(&t->result[t->results - 1], seen);
        }
    }
    for (int i = 0; i < d.leaves; i++) move(&d.leaf[i], NULL, 0); /* parameters are the layer's: put them back */
    chm_context_on_tap(t->s->context, NULL, NULL);
    return status;
}

/* ---- tests: later passes of a loop ---- */

static int test_read(struct layer_test *t) {
    const int64_t T = t->rows, n = T * t->width;
    if (!t->s->reads) return skip(t, "read", t->s->why_not_read);
    chm_stream_state *s = restart(t, &t->stream[0]);
    int status = feed(t, s, t->x, t->x, T, CHM_PASS_COMMIT, t->y, t->y2);
    if (status) return status;
    status = same(t, "read: the same question", first_difference(t, t->y2, t->y, T) < 0, "");
    if (!status)
        status = same(t, "read: writes nothing",
                      first_difference(t, t->y, t->reference_y, T) < 0 && same_state(s, &t->reference), "");
    /* a looped segment split in two */
    const int64_t at = T / 3;
    float *whole = t->y3, *whole2 = t->y3 + n;
    if (!status) status = feed(t, restart(t, s), t->x, t->other, T, CHM_PASS_COMMIT, whole, whole2);
    restart(t, s);
    if (!status) status = feed(t, s, t->x, t->other, at, CHM_PASS_COMMIT, t->y, t->y2);
    if (!status)
        status = feed(t, s, row(t, t->x, at), row(t, t->other, at), T - at, CHM_PASS_COMMIT, t->y + at * t->width,
                      t->y2 + at * t->width);
    if (status) return status;
    status = same(t, "read: split",
                  first_difference(t, t->y, whole, T) < 0 && first_difference(t, t->y2, whole2, T) < 0 &&
                      same_state(s, &t->reference),
                  "");
    if (status || strcmp(t->s->mode, "f32") != 0) return status;
    if (!t->s->reads_chunk) return skip(t, "read: chunk against step", t->s->why_not_read);
    status = feed(t, restart(t, s), t->x, t->other, T, CHM_PASS_COMMIT, whole, whole2);
    if (!status) status = feed(t, restart(t, s), t->x, t->other, T, CHM_PASS_TRAIN | CHM_PASS_CARRY, t->y, t->y2);
    if (!status)
        status = within(t, "read: chunk against step", CHM_MAX(relative(t->y, whole, n), relative(t->y2, whole2, n)),
                        chunk_tolerance);
    if (!status) status = within(t, "read: chunk, state", state_error(t, s, &t->reference), chunk_tolerance);
    return status ? status : test_gradients(t, 2);
}

/* ---- all of them ---- */

static int probe(struct layer_test *t, struct subject *s) {
    int status = feed(t, restart(t, &t->stream[0]), t->x, NULL, t->rows, CHM_PASS_TRAIN, NULL, NULL);
    s->trains = !status;
    if (status) {
        if (status != CHM_E_PLUGIN) return status;
        snprintf(s->why_not_train, sizeof s->why_not_train, "%s", chm_error());
    }
    status = feed(t, restart(t, &t->stream[0]), t->x, t->x, t->rows, CHM_PASS_COMMIT, NULL, NULL);
    s->reads = !status;
    if (status) {
        if (status != CHM_E_PLUGIN) return status;
        snprintf(s->why_not_read, sizeof s->why_not_read, "%s", chm_error());
    }
    if (!s->reads || !s->trains) return CHM_OK;
    status = feed(t, restart(t, &t->stream[0]), t->x, t->x, t->rows, CHM_PASS_TRAIN, NULL, NULL);
    s->reads_chunk = !status;
    if (status && status == CHM_E_PLUGIN) snprintf(s->why_not_read, sizeof s->why_not_read, "%s", chm_error());
    return status == CHM_E_PLUGIN ? CHM_OK : status;
}

/* Random parameters, off the values at which a constant initialiser leaves gradients zero, and where a layer starts
 * them small of its own accord large enough that differences in f32 show what hangs on them. */
static int randomise(struct layer_test *t, struct subject *s) {
    int status = chm_model_randomise(s->layer.model, SEED);
    for (int i = 0; i < s->layer.params && !status; i++) {
        chm_param *p = s->layer.param[i];
        const float range = 1 / sqrtf((float)p->shape[p->rank - 1]), small = p->init.a;
        if (p->init.kind == CHM_INIT_NORMAL && small > 0 && small < range)
            for (int64_t k = 0; k < p->count; k++) p->value[k] *= range / small;
        if (p->init.kind != CHM_INIT_CONSTANT && p->init.kind != CHM_INIT_LINSPACE) continue;
        float *noise = chm_alloc((size_t)p->count * sizeof *noise);
        if (!noise) return CHM_E_MEMORY;
        chm_normals(SEED, CHM_RANDOM_TEST, 1000 + (uint32_t)i, p->count, noise);
        /* the step of a difference is a part of the rms, so a bias of zero wants one that is worth a step */
        const bool bias =
            p->rank == 1 && p->init.kind == CHM_INIT_CONSTANT && p->init.a == 0 && p->role != CHM_ROLE_OWN;
        const float size = bias ? 0.5f : 0.1f;
        for (int64_t k = 0; k < p->count; k++) p->value[k] += size * noise[k];
        chm_free(noise);
    }
    return status ? status : chm_model_quantise(s->layer.model, &t->runtime->kernels.kernels, t->runtime->pool);
}

static int prepare(struct layer_test *t) {
    struct subject *s = t->s;
    const chm_model *m = s->layer.model;
    const size_t floats = (size_t)(STREAMS * t->rows * t->width);
    int status = randomise(t, s);
    if (!status)
        status = chm_context_create(&t->runtime->kernels.kernels, t->runtime->pool, &m->layout,
                                    (float)m->config->norm_eps, &s->context);
    if (!status) status = chm_stream_init(&s->warm, &m->layout);
    for (int i = 0; i < STREAMS && !status; i++) {
        status = chm_stream_init(&t->stream[i], &m->layout);
        if (!status) status = chm_stream_init(&t->copy[i], &m->layout);
    }
    for (int i = 0; i < TREE_ROWS && !status; i++) status = chm_stream_init(&t->node[i], &m->layout);
    if (!status) status = chm_stream_init(&t->reference, &m->layout);
    if (status) return status;
    float **arrays[] = {&t->x, &t->other, &t->y, &t->y2, &t->y3, &t->reference_y};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(arrays); i++)
        if (!(*arrays[i] = chm_arena_zero(&t->arena, floats * sizeof(float)))) return CHM_E_MEMORY;
    t->parent = chm_arena_take(&t->arena, (size_t)(STREAMS * t->rows) * sizeof *t->parent);
    t->position = chm_arena_take(&t->arena, (size_t)(STREAMS * t->rows) * sizeof *t->position);
    if (!t->parent || !t->position) return CHM_E_MEMORY;
    chm_normals(SEED, CHM_RANDOM_TEST, 1, (int64_t)floats, t->x);
    chm_normals(SEED, CHM_RANDOM_TEST, 2, (int64_t)floats, t->other);
    status = feed(t, &s->warm, t->other, NULL, CHM_MIN(WARM_ROWS, t->rows), CHM_PASS_COMMIT, NULL, NULL);
    if (!status)
        status = feed(t, restart(t, &t->reference), t->x, NULL, t->rows, CHM_PASS_COMMIT, t->reference_y, NULL);
    return status ? status : probe(t, s);
}

static void finish(struct layer_test *t) {
    struct subject *s = t->s;
    chm_stream_finish(&s->warm);
    for (int i = 0; i < STREAMS; i++) {
        chm_stream_finish(&t->stream[i]);
        chm_stream_finish(&t->copy[i]);
    }
    for (int i = 0; i < TREE_ROWS; i++) chm_stream_finish(&t->node[i]);
    chm_stream_finish(&t->reference);
    chm_context_destroy(s->context);
    chm_layer_alone_close(&s->layer);
    chm_arena_reset(&t->arena);
    memset(s, 0, sizeof *s);
}

static int trees(struct layer_test *t) {
    const int status = test_tree(t, 1);
    return status || !t->s->reads ? status : test_tree(t, 2);
}
static int gradients_once(struct layer_test *t) { return test_gradients(t, 1); }

static const struct {
    const char *name;
    int (*run)(struct layer_test *t);
    bool plain_only;
} tests[] = {
    {"split", test_split, false},   {"batch", test_batch, false}, {"threads", test_threads, false},
    {"fork", test_fork, false},     {"tree", trees, false},       {"reset", test_reset, false},
    {"memory", test_memory, false}, {"chunk", test_chunk, false}, {"causality", test_causality, false},
    {"carry", test_carry, true},    {"read", test_read, false},   {"gradient", gradients_once, true},
};

static bool is_test(const char *name) {
    for (size_t i = 0; i < CHM_ARRAY_COUNT(tests); i++)
        if (!strcmp(tests[i].name, name)) return true;
    return false;
}

static int test_subject(struct layer_test *t) {
    int status = prepare(t);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(tests) && !status; i++) {
        if (tests[i].plain_only && strcmp(t->s->mode, "f32") != 0) continue;
        if (t->options->only && strcmp(t->options->only, tests[i].name) != 0) continue;
        status = tests[i].run(t);
        /* a plugin that fails in one test has failed that test; the others still say something */
        if (status && status != CHM_E_MEMORY) {
            struct result *r = add(t, "FAIL", NAN, NAN, tests[i].name);
            status = r ? CHM_OK : CHM_E_MEMORY;
            if (r) snprintf(r->note, sizeof r->note, "%s", chm_error());
        }
    }
    return status;
}

/* ---- the report ---- */

static void number_cell(chm_table *table, double v) {
    if (isfinite(v))
        chm_table_cell(table, "%.3g", v);
    else
        chm_table_cell(table, "%s", "");
}

static int write_report(const struct layer_test *t, chm_output format, FILE *out) {
    static const char *const heads[] = {"name", "mode", "status", "#error", "#tolerance", "note"};
    chm_table table;
    chm_table_init(&table);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(heads); i++) chm_table_column(&table, heads[i]);
    for (int i = 0; i < t->results; i++) {
        const struct result *r = &t->result[i];
        chm_table_cell(&table, "%s", r->name);
        chm_table_cell(&table, "%s", r->mode);
        chm_table_cell(&table, "%s", r->status);
        number_cell(&table, r->error);
        number_cell(&table, r->tolerance);
        chm_table_cell(&table, "%s", r->note);
    }
    int status;
    if (format == CHM_OUTPUT_JSON) {
        fprintf(out, "{\n  \"schema_version\": 1,\n  \"plugin\": ");
        chm_json_string(out, t->options->plugin);
        fprintf(out, ",\n  \"tests\": %d,\n  \"failed\": %d,\n  \"rows\": ", t->run, t->failed);
        status = chm_table_json(&table, 2, out);
        fprintf(out, "\n}\n");
        if (!status) status = chm_report_end(out);
    } else
        status = chm_table_print(&table, format, out);
    chm_table_finish(&table);
    return status;
}

static int verdict(const struct layer_test *t) {
    if (!t->failed) return CHM_OK;
    const struct result *first = t->result;
    while (strcmp(first->status, "FAIL") != 0) first++;
    return chm_fail(CHM_E_VERDICT, "layer %s: %d of %d tests failed, first '%s' [%s]%s%s", t->options->plugin,
                    t->failed, t->run, first->name, first->mode, *first->note ? ": " : "", first->note);
}

int chm_layer_test(chm_runtime *r, const chm_layer_options *options, chm_output format, FILE *out) {
    struct subject subject = {0};
    struct layer_test t = {.runtime = r, .options = options, .s = &subject, .rows = 77};
    chm_arena_init(&t.arena);
    int status = CHM_OK;
    if (options->size == sizeof *options) {
        if (options->rows) t.rows = options->rows;
        if (t.rows < 8 || t.rows > MOST_ROWS)
            return chm_fail(CHM_E_CONFIG, "%lld rows: a layer is tested with 8..%d", (long long)t.rows, MOST_ROWS);
        if (!(options->tolerance >= 0))
            return chm_fail(CHM_E_CONFIG, "a tolerance is a positive number, or 0 for each test's own");
        if (options->trees < 0 || options->trees > MOST_TREES)
            return chm_fail(CHM_E_CONFIG, "%lld trees: 1..%d, or 0 for %d", (long long)options->trees, MOST_TREES,
                            TREES);
        if (options->only && !is_test(options->only)) {
            chm_string names = {0};
            for (size_t i = 0; i < CHM_ARRAY_COUNT(tests); i++)
                chm_string_add(&names, "%s%s", i ? ", " : "", tests[i].name);
            status = chm_fail(CHM_E_CONFIG, "no test of a layer is called '%s': %s", options->only,
                              names.failed ? "out of memory" : names.text);
            chm_string_finish(&names);
            return status;
        }
    }
    /* f32 first, then the card's own arithmetic unless that is the same */
    for (int plain = 1; plain >= 0 && !status; plain--) {
        status = chm_layer_alone_open(&subject.layer, r, options, NULL, 0, 0, plain);
        if (status) break;
        const chm_model_config *config = subject.layer.model->config;
        t.width = config->width;
        /* linears that keep the size of what they read, so that nothing tested is lost below an epsilon */
        const double range = 1 / sqrt((double)t.width);
        chm_layer_alone_close(&subject.layer);
        status = chm_layer_alone_open(&subject.layer, r, options, NULL, t.width, range, plain);
        if (status) break;
        config = subject.layer.model->config;
        if (!plain && config->quant == CHM_QUANT_NONE) break;
        subject.mode = config->quant == CHM_QUANT_NONE ? "f32" : "bitnet";
        status = test_subject(&t);
        finish(&t);
    }
    finish(&t);
    if (!status) status = write_report(&t, format, out);
    if (!status) status = verdict(&t);
    chm_free(t.result);
    chm_arena_finish(&t.arena);
    return status;
}
