/*
 * test_graph.c: every operator's gradient against differences, in odd shapes and with every broadcast; the topology of
 * rows against plain loops; what is refused, and with which sentence; memory reused from pass to pass.
 */
#include "model/runtime.h"
#include <chimera/chimera.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <cmocka.h>

static chm_runtime *runtime;
static char *plugin_path;

static int set_up(void **state) {
    (void)state;
    unsetenv("CHIMERA_PLUGIN_PATH");
    unsetenv("CHIMERA_BACKEND");
    const char *root = getenv("CHM_BUILD_ROOT");
    plugin_path = chm_format("%s/plugins/backends", root);
    const chm_runtime_options options = {
        .size = sizeof options, .threads = 2, .plugin_path = plugin_path, .verbosity = -1};
    if (chm_runtime_create(&options, &runtime)) fail_msg("%s", chm_error());
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    chm_runtime_destroy(runtime);
    chm_free(plugin_path);
    return 0;
}

static const float eps = 1e-6f;

static chm_context *make_context_of(const struct chm_kernels *kernels, const chm_state_layout *layout) {
    chm_context *c = NULL;
    if (chm_context_create(kernels, runtime->pool, layout, eps, &c)) fail_msg("%s", chm_error());
    return c;
}
static chm_context *make_context(const chm_state_layout *layout) {
    return make_context_of(&runtime->kernels.kernels, layout);
}

/* ---- parameters and states, as a model would declare them ---- */

static void make_param(chm_param *p, int rank, const int64_t *shape, uint32_t stream) {
    static char name[] = "part.w";
    *p = (chm_param){.name = name, .role = CHM_ROLE_FULL, .rank = rank, .count = 1};
    for (int i = 0; i < rank; i++) p->count *= p->shape[i] = shape[i];
    p->out = shape[0];
    p->in = p->count / p->out;
    p->value = chm_alloc_aligned((size_t)p->count * sizeof(float));
    p->grad = chm_alloc_aligned((size_t)p->count * sizeof(float));
    assert_non_null(p->value);
    assert_non_null(p->grad);
    chm_normals(5, CHM_RANDOM_TEST, stream, p->count, p->value);
}
static void free_param(chm_param *p) {
    chm_free(p->value);
    chm_free(p->grad);
    memset(p, 0, sizeof *p);
}

struct states {
    chm_state_layout layout;
    chm_state_item item[2];
};
static void add_state(struct states *s, int64_t heads, int64_t rows, int64_t columns) {
    static char name[] = "part.state";
    chm_state_item *item = &s->item[s->layout.count++];
    *item = (chm_state_item){.name = name, .type = CHM_F32, .heads = heads, .rank = rows ? 2 : 1};
    item->shape[0] = rows ? rows : columns;
    item->shape[1] = columns;
    item->elements = rows ? rows * columns : columns;
    item->head_bytes = ((size_t)item->elements * sizeof(float) + 63) & ~(size_t)63;
    item->offset = s->layout.bytes;
    s->layout.bytes += item->head_bytes * (size_t)heads;
    s->layout.item = s->item;
}

/* ---- gradients by differences ---- */

enum { MOST_LEAVES = 6, DIRECTIONS = 4 };

struct op_case {
    const char *name;
    chm_tensor *(*build)(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option);
    int option;
    int64_t in[3][2];    /* shapes; 0: no more */
    int64_t param[2][2]; /* shapes; second 0: a vector */
    float scale;         /* of the inputs; 0: 1 */
};

static chm_tensor *build_linear(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)option;
    return chm_linear(g, in[0], p[0]);
}
static chm_tensor *build_param(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    chm_tensor *t = chm_param_tensor(g, p[0]);
    return option == 0 ? chm_add(g, in[0], t) : option == 1 ? chm_mul(g, t, in[0]) : chm_mul(g, in[0], chm_exp(g, t));
}
static chm_tensor *build_rmsnorm(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    return chm_rmsnorm(g, in[0], p[0], option);
}
static chm_tensor *build_l2norm(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p;
    return chm_l2norm(g, in[0], option);
}
static chm_tensor *build_unary(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p;
    return chm_unary(g, (enum chm_unary)option, in[0]);
}
static chm_tensor *build_add(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p, (void)option;
    return chm_add(g, in[0], in[1]);
}
static chm_tensor *build_mul(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p, (void)option;
    return chm_mul(g, in[0], in[1]);
}
static chm_tensor *build_twice(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p;
    chm_tensor *x = in[0];
    if (option == 0) return chm_mul(g, x, x);
    if (option == 1) return chm_add(g, chm_add(g, x, x), chm_mul(g, x, chm_sigmoid(g, x)));
    return chm_concat(g, (chm_tensor *[]){x, chm_tanh(g, x), x}, 3);
}
static chm_tensor *build_affine(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p, (void)option;
    return chm_affine(g, in[0], -1.7f, 0.3f);
}
static chm_tensor *build_swiglu(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p, (void)option;
    return chm_swiglu(g, in[0], in[1]);
}
static chm_tensor *build_concat(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p, (void)option;
    return chm_concat(g, in, 3);
}
static chm_tensor *build_slice(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p;
    chm_tensor *a = chm_slice(g, in[0], option, 3);
    return chm_mul(g, a, chm_slice(g, in[0], 0, 3)); /* overlapping: gradients add up */
}
/* Rows 3 i mod rows: some twice, some never. */
static chm_tensor *build_gather(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p;
    int32_t *row = chm_memory(g, (size_t)option * sizeof *row);
    for (int i = 0; row && i < option; i++) row[i] = (int32_t)(3 * i % in[0]->rows);
    return row ? chm_gather_rows(g, in[0], row, option) : NULL;
}
/* Option 0: base, weights and rows; 1: no base; 2: no weights. The parts: none, all rows, all backwards, none, and the
 * first and the last row in turns. */
static chm_tensor *build_scatter(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p;
    chm_tensor *base = option == 1 ? NULL : in[0], *weight = option == 2 ? NULL : in[option == 1 ? 0 : 1];
    chm_tensor *x = in[option ? 1 : 2];
    const int32_t rows = (int32_t)x->rows, most = 3 * rows + 1;
    int32_t *row = chm_memory(g, (size_t)most * sizeof *row), *column = chm_memory(g, (size_t)most * sizeof *column);
    if (!row || !column) return NULL;
    for (int32_t i = 0; i < most; i++) {
        row[i] = i < rows ? i : i < 2 * rows ? 2 * rows - 1 - i : (i % 2 ? rows - 1 : 0);
        column[i] = weight ? (int32_t)(i % weight->width) : 0;
    }
    chm_tensor *const part[] = {chm_gather_rows(g, x, row, 0), chm_gather_rows(g, x, row, rows),
                                chm_gather_rows(g, x, row + rows, rows), chm_silu(g, chm_gather_rows(g, x, row, 0)),
                                chm_silu(g, chm_gather_rows(g, x, row + 2 * rows, rows + 1))};
    return chm_scatter_rows(g, base, part, CHM_ARRAY_COUNT(part), row, weight, column);
}
static void square_sum(const void *self, int64_t rows, const int64_t *width, const float *const *in, int64_t out_width,
                       float *out) {
    (void)self, (void)out_width;
    for (int64_t r = 0; r < rows; r++) {
        out[r] = 0;
        for (int64_t i = 0; i < width[0]; i++) out[r] += in[0][r * width[0] + i] * in[0][r * width[0] + i];
        out[r] *= in[1][r * width[1]];
    }
}
static void square_sum_backward(const void *self, int64_t rows, const int64_t *width, const float *const *in,
                                int64_t out_width, const float *out, const float *dout, float *const *din) {
    (void)self, (void)out_width;
    for (int64_t r = 0; r < rows; r++) {
        const float factor = in[1][r * width[1]];
        for (int64_t i = 0; din[0] && i < width[0]; i++)
            din[0][r * width[0] + i] += dout[r] * 2 * factor * in[0][r * width[0] + i];
        if (din[1]) din[1][r * width[1]] += factor != 0 ? dout[r] * out[r] / factor : 0;
    }
}
static const chm_operator squares = {
    .size = sizeof squares, .n_inputs = 2, .name = "squares", .forward = square_sum, .backward = square_sum_backward};
static chm_tensor *build_apply(chm_graph *g, chm_tensor *const *in, chm_param *const *p, int option) {
    (void)p, (void)option;
    return chm_apply(g, &squares, NULL, in, 1);
}

static const struct op_case cases[] = {
    {"linear", build_linear, 0, {{5, 7}}, {{3, 7}}, 0},
    {"linear, one row", build_linear, 0, {{1, 70}}, {{65, 70}}, 0},
    {"linear, many rows", build_linear, 0, {{150, 33}}, {{17, 33}}, 0},
    {"linear to one column", build_linear, 0, {{9, 5}}, {{1, 5}}, 0},
    {"x + parameter", build_param, 0, {{6, 11}}, {{11, 0}}, 0},
    {"parameter * x", build_param, 1, {{6, 11}}, {{11, 0}}, 0},
    {"x * exp(parameter), one number", build_param, 2, {{6, 4}}, {{1, 0}}, 0},
    {"x * exp(parameter), one a head", build_param, 2, {{70, 12}}, {{3, 0}}, 0},
    {"rmsnorm", build_rmsnorm, 0, {{7, 13}}, {{13, 0}}, 0},
    {"rmsnorm without weight", build_rmsnorm, 0, {{70, 5}}, {{0, 0}}, 0},
    {"rmsnorm in groups, one weight", build_rmsnorm, 4, {{130, 12}}, {{4, 0}}, 0},
    {"rmsnorm in groups, weight for each", build_rmsnorm, 4, {{9, 12}}, {{12, 0}}, 0},
    {"rmsnorm of small numbers", build_rmsnorm, 0, {{9, 12}}, {{12, 0}}, 1e-3f},
    {"l2norm", build_l2norm, 0, {{7, 9}}, {{0, 0}}, 0},
    {"l2norm in groups", build_l2norm, 3, {{70, 9}}, {{0, 0}}, 0},
    {"l2norm of small numbers", build_l2norm, 3, {{7, 9}}, {{0, 0}}, 1e-3f},
    {"silu", build_unary, CHM_SILU, {{9, 11}}, {{0, 0}}, 3},
    {"sigmoid", build_unary, CHM_SIGMOID, {{9, 11}}, {{0, 0}}, 3},
    {"tanh", build_unary, CHM_TANH, {{9, 11}}, {{0, 0}}, 0},
    {"exp", build_unary, CHM_EXP, {{9, 11}}, {{0, 0}}, 0},
    {"softplus", build_unary, CHM_SOFTPLUS, {{9, 11}}, {{0, 0}}, 5},
    {"log sigmoid", build_unary, CHM_LOG_SIGMOID, {{9, 11}}, {{0, 0}}, 5},
    {"relu squared", build_unary, CHM_RELU2, {{9, 11}}, {{0, 0}}, 0},
    {"silu of many", build_unary, CHM_SILU, {{300, 31}}, {{0, 0}}, 0},
    {"add", build_add, 0, {{5, 6}, {5, 6}}, {{0, 0}}, 0},
    {"add one row", build_add, 0, {{70, 6}, {1, 6}}, {{0, 0}}, 0},
    {"add to one row", build_add, 0, {{1, 6}, {70, 6}}, {{0, 0}}, 0},
    {"add one column a head", build_add, 0, {{70, 6}, {70, 2}}, {{0, 0}}, 0},
    {"add one row, one column a head", build_add, 0, {{7, 6}, {1, 3}}, {{0, 0}}, 0},
    {"mul", build_mul, 0, {{5, 6}, {5, 6}}, {{0, 0}}, 0},
    {"mul by one row", build_mul, 0, {{70, 6}, {1, 6}}, {{0, 0}}, 0},
    {"mul of one row", build_mul, 0, {{1, 6}, {70, 6}}, {{0, 0}}, 0},
    {"mul by one column a head", build_mul, 0, {{70, 6}, {70, 2}}, {{0, 0}}, 0},
    {"mul by one number", build_mul, 0, {{7, 6}, {1, 1}}, {{0, 0}}, 0},
    {"mul of one row by one row", build_mul, 0, {{1, 6}, {1, 3}}, {{0, 0}}, 0},
    {"x * x", build_twice, 0, {{5, 7}}, {{0, 0}}, 0},
    {"x + x + x sigmoid(x)", build_twice, 1, {{5, 7}}, {{0, 0}}, 0},
    {"[x, tanh(x), x]", build_twice, 2, {{5, 7}}, {{0, 0}}, 0},
    {"affine", build_affine, 0, {{5, 7}}, {{0, 0}}, 0},
    {"swiglu", build_swiglu, 0, {{5, 7}, {5, 7}}, {{0, 0}}, 0},
    {"swiglu of many", build_swiglu, 0, {{300, 31}, {300, 31}}, {{0, 0}}, 0},
    {"concat", build_concat, 0, {{5, 1}, {5, 7}, {5, 3}}, {{0, 0}}, 0},
    {"slice", build_slice, 2, {{5, 7}}, {{0, 0}}, 0},
    {"gather", build_gather, 7, {{5, 6}}, {{0, 0}}, 0},
    {"gather of many", build_gather, 150, {{70, 130}}, {{0, 0}}, 0},
    {"scatter", build_scatter, 0, {{9, 5}, {9, 3}, {9, 5}}, {{0, 0}}, 0},
    {"scatter of many", build_scatter, 0, {{70, 130}, {70, 2}, {70, 130}}, {{0, 0}}, 0},
    {"scatter without base", build_scatter, 1, {{9, 3}, {9, 5}}, {{0, 0}}, 0},
    {"scatter without weights", build_scatter, 2, {{9, 5}, {9, 5}}, {{0, 0}}, 0},
    {"an operator of one's own", build_apply, 0, {{70, 7}, {70, 1}}, {{0, 0}}, 0},
};

struct leaf {
    float *value, *base, *gradient, *along;
    int64_t count;
    double scale;
};

struct subject {
    const struct op_case *op;
    chm_context *context;
    chm_param param[2];
    struct leaf leaf[MOST_LEAVES];
    int inputs, params;
    float *weight; /* of the projection, as large as the output */
    int64_t outputs;
};

static float *array(int64_t n) {
    float *p = chm_alloc_aligned((size_t)(n ? n : 1) * sizeof *p);
    assert_non_null(p);
    return p;
}

static chm_tensor *pass(struct subject *s, chm_tensor *in[3]) {
    const struct op_case *op = s->op;
    static int32_t parent[512];
    static int64_t position[512];
    const int64_t rows = CHM_MAX(op->in[0][0], op->in[1][0]);
    for (int64_t r = 0; r < rows; r++) {
        parent[r] = r ? (int32_t)(r - 1) : ~0;
        position[r] = r;
    }
    const chm_rows plan = {rows, parent, position};
    chm_param *p[2] = {s->params > 0 ? &s->param[0] : NULL, s->params > 1 ? &s->param[1] : NULL};
    assert_int_equal(chm_context_begin(s->context, &plan, NULL, 1, CHM_PASS_TRAIN), CHM_OK);
    chm_context_enter(s->context, 0, "part", 0);
    for (int i = 0; i < s->inputs; i++)
        in[i] = chm_input(s->context, op->in[i][0], op->in[i][1], s->leaf[i].value, CHM_TENSOR_GRAD);
    chm_tensor *y = op->build(chm_context_graph(s->context), in, p, op->option);
    if (!y) {
        chm_context_status(s->context);
        fail_msg("%s: %s", op->name, chm_error());
    }
    return y;
}

static double project(struct subject *s) {
    chm_tensor *in[3];
    const chm_tensor *y = pass(s, in);
    double sum = 0;
    for (int64_t i = 0; i < s->outputs; i++) sum += (double)s->weight[i] * (double)y->data[i];
    return sum;
}

static void shift(struct leaf *leaf, double by) {
    for (int64_t i = 0; i < leaf->count; i++)
        leaf->value[i] = (float)((double)leaf->base[i] + by * leaf->scale * (double)leaf->along[i]);
}

static double gradient_error(struct subject *s, struct leaf *leaf) {
    static const double steps[] = {1, -1, 2, -2}, h = 0.006;
    double wrong = 0, size = 0;
    for (uint64_t k = 0; k < DIRECTIONS; k++) {
        double value[4], slope = 0;
        chm_normals(k, CHM_RANDOM_TEST, 90, leaf->count, leaf->along);
        for (int e = 0; e < 4; e++) {
            shift(leaf, steps[e] * h);
            value[e] = project(s);
        }
        shift(leaf, 0);
        for (int64_t i = 0; i < leaf->count; i++) slope += (double)leaf->gradient[i] * (double)leaf->along[i];
        slope *= leaf->scale;
        const double difference = (8 * (value[0] - value[1]) - (value[2] - value[3])) / (12 * h);
        wrong += (difference - slope) * (difference - slope);
        size += difference * difference;
    }
    return isfinite(wrong) && size > 0 ? sqrt(wrong / size) : INFINITY;
}

static void test_gradients(void **state) {
    (void)state;
    static const chm_state_layout none;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        struct subject s = {.op = &cases[i], .context = make_context(&none)};
        chm_tensor *in[3];
        while (s.inputs < 3 && s.op->in[s.inputs][0]) s.inputs++;
        while (s.params < 2 && s.op->param[s.params][0]) s.params++;
        for (int l = 0; l < s.inputs + s.params; l++) {
            struct leaf *leaf = &s.leaf[l];
            if (l < s.inputs) {
                leaf->count = s.op->in[l][0] * s.op->in[l][1];
                leaf->value = array(leaf->count);
                chm_normals(i, CHM_RANDOM_TEST, (uint32_t)l, leaf->count, leaf->value);
                for (int64_t k = 0; k < leaf->count; k++) leaf->value[k] *= s.op->scale > 0 ? s.op->scale : 1;
            } else {
                const int64_t *shape = s.op->param[l - s.inputs];
                make_param(&s.param[l - s.inputs], shape[1] ? 2 : 1, shape, 50 + (uint32_t)l);
                leaf->count = s.param[l - s.inputs].count;
                leaf->value = s.param[l - s.inputs].value;
            }
            leaf->base = array(leaf->count);
            leaf->gradient = array(leaf->count);
            leaf->along = array(leaf->count);
            memcpy(leaf->base, leaf->value, (size_t)leaf->count * sizeof(float));
            for (int64_t k = 0; k < leaf->count; k++)
                leaf->scale += (double)leaf->base[k] * (double)leaf->base[k] / (double)leaf->count;
            leaf->scale = sqrt(leaf->scale);
        }
        chm_tensor *y = pass(&s, in);
        chm_graph *g = chm_context_graph(s.context);
        s.outputs = y->rows * y->width;
        s.weight = array(s.outputs);
        chm_normals(i, CHM_RANDOM_TEST, 80, s.outputs, s.weight);
        float *dy = g->ops->grad(g, y);
        assert_non_null(dy);
        memcpy(dy, s.weight, (size_t)s.outputs * sizeof(float));
        assert_int_equal(chm_backward(s.context), CHM_OK);
        for (int l = 0; l < s.inputs + s.params; l++) {
            const float *from = l < s.inputs ? in[l]->grad : s.param[l - s.inputs].grad;
            assert_non_null(from);
            memcpy(s.leaf[l].gradient, from, (size_t)s.leaf[l].count * sizeof(float));
        }
        double worst = 0;
        for (int l = 0; l < s.inputs + s.params; l++) {
            const double error = gradient_error(&s, &s.leaf[l]);
            if (!(error <= 2e-3))
                fail_msg("%s: %s %d: off by %.2g", s.op->name, l < s.inputs ? "input" : "parameter", l, error);
            worst = error > worst ? error : worst;
            /* the test can fail: 2 % more is seen */
            for (int64_t k = 0; k < s.leaf[l].count; k++) s.leaf[l].gradient[k] *= 1.02f;
            assert_true(gradient_error(&s, &s.leaf[l]) > 1e-2);
        }
        print_message("%-36s %.1e\n", s.op->name, worst);
        for (int l = 0; l < s.inputs + s.params; l++) {
            if (l < s.inputs) chm_free(s.leaf[l].value);
            chm_free(s.leaf[l].base);
            chm_free(s.leaf[l].gradient);
            chm_free(s.leaf[l].along);
        }
        for (int p = 0; p < s.params; p++) free_param(&s.param[p]);
        chm_free(s.weight);
        chm_context_destroy(s.context);
    }
}

/* Every order of adding gives other bytes; here it is base, then parts, then rows, on any number of threads. */
static void test_rows(void **state) {
    (void)state;
    enum { ROWS = 300, WIDE = 200, TIMES = 5, PIECES = TIMES + 1 };
    static const chm_state_layout none;
    static int32_t parent[ROWS], row[TIMES * ROWS], column[TIMES * ROWS];
    static int64_t position[ROWS];
    float *x = array(ROWS * WIDE), *w = array(ROWS * 2), *want = array(ROWS * WIDE), *dx = array(ROWS * WIDE);
    float *dw = array(ROWS * 2);
    chm_normals(1, CHM_RANDOM_TEST, 1, ROWS * WIDE, x);
    chm_normals(1, CHM_RANDOM_TEST, 2, ROWS * 2, w);
    for (int r = 0; r < ROWS; r++) {
        parent[r] = r ? r - 1 : ~0;
        position[r] = r;
    }
    for (uint64_t i = 0; i < TIMES * ROWS; i++) {
        row[i] = (int32_t)chm_below_at(1, CHM_RANDOM_TEST, 3, i, ROWS / 2);
        column[i] = (int32_t)(i % 2);
    }
    memcpy(want, x, ROWS * WIDE * sizeof *want);
    for (int i = 0; i < TIMES * ROWS; i++)
        for (int k = 0; k < WIDE; k++) {
            const float product = w[2 * row[i] + column[i]] * x[row[i] * WIDE + k];
            want[row[i] * WIDE + k] += product;
        }
    for (int threads = 1; threads <= 4; threads++) {
        chm_pool *pool = NULL;
        chm_context *c = NULL;
        assert_int_equal(chm_pool_create(threads, &pool), CHM_OK);
        assert_int_equal(chm_context_create(&runtime->kernels.kernels, pool, &none, eps, &c), CHM_OK);
        const chm_rows plan = {ROWS, parent, position};
        assert_int_equal(chm_context_begin(c, &plan, NULL, 1, CHM_PASS_TRAIN), CHM_OK);
        chm_graph *g = chm_context_graph(c);
        chm_tensor *in = chm_input(c, ROWS, WIDE, x, CHM_TENSOR_GRAD);
        chm_tensor *weight = chm_input(c, ROWS, 2, w, CHM_TENSOR_GRAD), *part[PIECES];
        for (int p = 0, at = 0; p < PIECES; p++) {
            const int rows = p == 2 ? 0 : ROWS;
            part[p] = chm_gather_rows(g, in, row + at, rows);
            at += rows;
        }
        chm_tensor *y = chm_scatter_rows(g, in, part, PIECES, row, weight, column);
        if (!y) fail_msg("%s", chm_error());
        assert_memory_equal(y->data, want, ROWS * WIDE * sizeof *want);
        memcpy(g->ops->grad(g, y), x, ROWS * WIDE * sizeof *x);
        assert_int_equal(chm_backward(c), CHM_OK);
        if (threads == 1) {
            memcpy(dx, in->grad, ROWS * WIDE * sizeof *dx);
            memcpy(dw, weight->grad, ROWS * 2 * sizeof *dw);
        }
        assert_memory_equal(in->grad, dx, ROWS * WIDE * sizeof *dx);
        assert_memory_equal(weight->grad, dw, ROWS * 2 * sizeof *dw);
        chm_context_destroy(c);
        chm_pool_destroy(pool);
    }
    float *const all[] = {x, w, want, dx, dw};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(all); i++) chm_free(all[i]);
}

/* A parameter of the layer's own: no gradient, and a tally in passes that train. */
static void test_tally(void **state) {
    (void)state;
    static const chm_state_layout none;
    chm_context *c = make_context(&none);
    chm_graph *g = chm_context_graph(c);
    chm_param p;
    make_param(&p, 1, (int64_t[]){6}, 1);
    p.role = CHM_ROLE_OWN;
    p.tally = p.grad;
    p.grad = NULL;
    static const int32_t parent[2] = {~0, 0};
    static const int64_t position[2] = {0, 1};
    const chm_rows plan = {2, parent, position};
    assert_int_equal(chm_context_begin(c, &plan, NULL, 1, 0), CHM_OK);
    assert_null(chm_tally(g, &p));
    assert_int_equal(chm_context_begin(c, &plan, NULL, 1, CHM_PASS_TRAIN), CHM_OK);
    assert_ptr_equal(chm_tally(g, &p), p.tally);
    chm_tensor *x = chm_input(c, 2, 6, p.value, CHM_TENSOR_GRAD), *y = chm_mul(g, x, chm_param_tensor(g, &p));
    assert_non_null(y);
    g->ops->grad(g, y)[0] = 1;
    assert_int_equal(chm_backward(c), CHM_OK);
    assert_true(x->grad[0] == p.value[0]);
    for (int i = 0; i < 6; i++) assert_true(p.tally[i] == 0);
    p.grad = p.tally;
    free_param(&p);
    chm_context_destroy(c);
}

/* ---- packed linears: straight through, with what the forward pass used ---- */

static void pack(chm_param *p, enum chm_format format) {
    p->role = CHM_ROLE_TERNARY;
    p->format = format;
    p->ternary.out = p->int8.out = p->out;
    p->ternary.in = p->int8.in = p->in;
    p->ternary.group = 128;
    p->int8.blocks = (p->in + 63) / 64;
    void *codes = chm_alloc_aligned(chm_param_code_bytes(p, CHM_ENCODING_T2)),
         *scales = chm_alloc_aligned(chm_param_scale_bytes(p, 128));
    assert_non_null(codes);
    assert_non_null(scales);
    p->dequant = array(p->count);
    if (format == CHM_FORMAT_TERNARY) {
        p->ternary.codes = codes;
        p->ternary.scales = scales;
    } else {
        p->int8.q = codes;
        p->int8.scale = scales;
    }
    assert_int_equal(chm_param_quantise(p, &runtime->kernels.kernels, runtime->pool), CHM_OK);
}

/* gradient_matmul without its leave to round */
static void exact_gradient_matmul(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                                  int64_t ldb, float *c, int64_t ldc) {
    runtime->kernels.kernels.sgemm(ta, false, m, n, k, a, lda, b, ldb, 1, c, ldc);
}

static void check_packed_linear(const struct chm_kernels *kernels, double gradient_tolerance) {
    static const int64_t shapes[][3] = {{5, 70, 19}, {1, 64, 16}, {150, 200, 33}, {7, 3, 1}}; /* rows, in, out */
    static const chm_state_layout none;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(shapes); i++)
        for (int format = CHM_FORMAT_TERNARY; format <= CHM_FORMAT_INT8; format++) {
            const int64_t rows = shapes[i][0], n = shapes[i][1], out = shapes[i][2], blocks = (n + 63) / 64;
            chm_context *c = make_context_of(kernels, &none);
            chm_param p;
            make_param(&p, 2, (int64_t[]){out, n}, 7);
            pack(&p, (enum chm_format)format);
            int32_t *parent = calloc((size_t)rows, sizeof *parent);
            int64_t *position = calloc((size_t)rows, sizeof *position);
            assert_non_null(parent);
            assert_non_null(position);
            for (int64_t r = 0; r < rows; r++) {
                parent[r] = r ? (int32_t)(r - 1) : ~0;
                position[r] = r;
            }
            float *x = array(rows * n), *seen = array(rows * blocks * 64);
            chm_normals(i, CHM_RANDOM_TEST, 3, rows * n, x);
            /* what the product sees of x: quantised and back */
            for (int64_t r = 0; r < rows; r++)
                for (int64_t b = 0; b < blocks; b++) {
                    float top = 0;
                    for (int64_t k = 64 * b; k < CHM_MIN(64 * b + 64, n); k++) top = fmaxf(top, fabsf(x[r * n + k]));
                    for (int64_t k = 64 * b; k < CHM_MIN(64 * b + 64, n); k++)
                        seen[r * n + k] = rintf(x[r * n + k] * (127.0f / top)) * (top / 127.0f);
                }
            const chm_rows plan = {rows, parent, position};
            assert_int_equal(chm_context_begin(c, &plan, NULL, 1, CHM_PASS_TRAIN), CHM_OK);
            chm_context_enter(c, 0, "part", 0);
            chm_graph *g = chm_context_graph(c);
            chm_tensor *in = chm_input(c, rows, n, x, CHM_TENSOR_GRAD), *y = chm_linear(g, in, &p);
            assert_non_null(y);
            float *dy = array(rows * out), *set = g->ops->grad(g, y);
            assert_non_null(set);
            chm_normals(i, CHM_RANDOM_TEST, 4, rows * out, dy);
            memcpy(set, dy, (size_t)(rows * out) * sizeof *dy); /* the sweep reuses the buffer */
            assert_int_equal(chm_backward(c), CHM_OK);
            double error[3] = {0}, size[3] = {0};
            for (int64_t r = 0; r < rows; r++)
                for (int64_t o = 0; o < out; o++) {
                    double want = 0;
                    for (int64_t k = 0; k < n; k++) want += (double)seen[r * n + k] * (double)p.dequant[o * n + k];
                    error[0] += pow((double)y->data[r * out + o] - want, 2);
                    size[0] += want * want;
                }
            for (int64_t r = 0; r < rows; r++)
                for (int64_t k = 0; k < n; k++) {
                    double want = 0;
                    for (int64_t o = 0; o < out; o++) want += (double)dy[r * out + o] * (double)p.dequant[o * n + k];
                    error[1] += pow((double)in->grad[r * n + k] - want, 2);
                    size[1] += want * want;
                }
            for (int64_t o = 0; o < out; o++)
                for (int64_t k = 0; k < n; k++) {
                    double want = 0;
                    for (int64_t r = 0; r < rows; r++) want += (double)dy[r * out + o] * (double)seen[r * n + k];
                    error[2] += pow((double)p.grad[o * n + k] - want, 2);
                    size[2] += want * want;
                }
            for (int e = 0; e < 3; e++) {
                static const char *const what[] = {"y", "dx", "dw"};
                if (!(sqrt(error[e] / size[e]) < (e ? gradient_tolerance : 1e-6)))
                    fail_msg("%s of shape %zu, format %d: off by %.2g", what[e], i, format, sqrt(error[e] / size[e]));
            }
            chm_free(format == CHM_FORMAT_TERNARY ? (void *)(uintptr_t)p.ternary.codes : (void *)(uintptr_t)p.int8.q);
            chm_free(format == CHM_FORMAT_TERNARY ? (void *)(uintptr_t)p.ternary.scales
                                                  : (void *)(uintptr_t)p.int8.scale);
            chm_free(p.dequant);
            free_param(&p);
            chm_free(x);
            chm_free(dy);
            chm_free(seen);
            free(parent);
            free(position);
            chm_context_destroy(c);
        }
}

static void test_packed_linear(void **state) {
    (void)state;
    struct chm_kernels exact = runtime->kernels.kernels;
    exact.gradient_matmul = exact_gradient_matmul;
    check_packed_linear(&exact, 1e-6);
    check_packed_linear(&runtime->kernels.kernels, 0x1p-8); /* bf16 rounds by up to 2^-8, evenly spread */
}

/* ---- the host's two ends ---- */

static void test_embedding_and_loss(void **state) {
    (void)state;
    enum { ROWS = 9, VOCAB = 7, WIDTH = 5 };
    static const chm_state_layout none;
    static const int32_t ids[ROWS] = {3, 0, 6, 3, 3, 1, 5, 6, 0}, target[ROWS] = {0, 6, -1, 2, 2, -1, 4, 1, 3};
    int32_t parent[ROWS];
    int64_t position[ROWS];
    chm_param table, head;
    make_param(&table, 2, (int64_t[]){VOCAB, WIDTH}, 1);
    make_param(&head, 2, (int64_t[]){VOCAB, WIDTH}, 2);
    for (int r = 0; r < ROWS; r++) {
        parent[r] = r ? r - 1 : ~0;
        position[r] = r;
    }
    const chm_rows plan = {ROWS, parent, position};
    chm_context *c = make_context(&none);
    chm_graph *g = chm_context_graph(c);
    double loss = 0, value[2];
    int64_t counted;
    for (int backward = 1; backward >= 0; backward--)
        for (int64_t k = 0; k < (backward ? 1 : 2 * VOCAB * WIDTH); k++) {
            chm_param *p = k < VOCAB * WIDTH ? &table : &head;
            float *at = &p->value[k % (VOCAB * WIDTH)], before = *at;
            for (int e = 0; e < (backward ? 1 : 2); e++) {
                if (!backward) *at = before + (e ? -0.02f : 0.02f);
                assert_int_equal(chm_context_begin(c, &plan, NULL, 1, CHM_PASS_TRAIN), CHM_OK);
                chm_context_enter(c, 0, "part", 0);
                chm_tensor *logits = chm_linear(g, chm_embed(c, &table, ids, ROWS), &head);
                assert_non_null(logits);
                assert_int_equal(chm_cross_entropy(c, logits, target, VOCAB, 0.5f, &loss, &counted), CHM_OK);
                assert_int_equal(counted, 7);
                value[e] = loss;
            }
            *at = before;
            if (backward)
                assert_int_equal(chm_backward(c), CHM_OK);
            else /* the gradient is scaled by 0.5, the loss is a sum */
                assert_true(fabs(0.5 * (value[0] - value[1]) / 0.04 - (double)p->grad[k % (VOCAB * WIDTH)]) < 2e-3);
        }
    /* a row of the table that nobody read keeps no gradient, one read three times has the sum */
    for (int i = 0; i < WIDTH; i++) assert_true(table.grad[2 * WIDTH + i] == 0 && table.grad[4 * WIDTH + i] == 0);
    static const int32_t unknown[] = {0, VOCAB};
    assert_null(chm_embed(c, &table, unknown, 2));
    assert_int_equal(chm_context_status(c), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "token 7 is not in the vocabulary of 7"));
    chm_context_destroy(c);
    free_param(&table);
    free_param(&head);
}

/* ---- topology: a convolution and a scan against plain loops ---- */

enum { WIDTH = 6, HEADS = 2, TAPS = 3, LAGS = TAPS - 1, TREE = 40, SLOTS = 3 };

struct topology {
    struct states states;
    chm_param taps;
    chm_context *context;
    chm_stream_state stream[SLOTS];
    chm_stream_state *streams[SLOTS];
    float x[TREE * WIDTH], decay[TREE * WIDTH];
    int32_t parent[TREE];
    int64_t position[TREE];
};

static void open_topology(struct topology *t) {
    memset(t, 0, sizeof *t);
    add_state(&t->states, HEADS, LAGS, WIDTH / HEADS);
    add_state(&t->states, HEADS, 0, WIDTH / HEADS);
    make_param(&t->taps, 2, (int64_t[]){WIDTH, TAPS}, 11);
    t->context = make_context(&t->states.layout);
    chm_normals(1, CHM_RANDOM_TEST, 1, TREE * WIDTH, t->x);
    chm_normals(1, CHM_RANDOM_TEST, 2, TREE * WIDTH, t->decay);
    for (int s = 0; s < SLOTS; s++) {
        assert_int_equal(chm_stream_init(&t->stream[s], &t->states.layout), CHM_OK);
        t->streams[s] = &t->stream[s];
        t->stream[s].position = 100 + s;
        for (int i = 0; i < 2; i++) {
            const chm_state_item *item = &t->states.item[i];
            for (int64_t h = 0; h < HEADS; h++)
                chm_normals((uint64_t)s, CHM_RANDOM_TEST, (uint32_t)(20 + 2 * i + h), item->elements,
                            (float *)(void *)(t->stream[s].blob + item->offset + (size_t)h * item->head_bytes));
        }
    }
}

static void close_topology(struct topology *t) {
    for (int s = 0; s < SLOTS; s++) chm_stream_finish(&t->stream[s]);
    chm_context_destroy(t->context);
    free_param(&t->taps);
}

/* scan(decay, conv(x)) over the rows given */
static chm_tensor *run_topology(struct topology *t, int64_t rows, uint32_t flags, float *conv) {
    const chm_rows plan = {rows, t->parent, t->position};
    if (chm_context_begin(t->context, &plan, t->streams, SLOTS, flags)) return NULL;
    chm_graph *g = chm_context_graph(t->context);
    chm_context_enter(t->context, 0, "part", 0);
    chm_tensor *x = chm_input(t->context, rows, WIDTH, t->x, 0);
    chm_tensor *mixed = chm_short_conv(g, x, &t->taps, 0);
    if (mixed && conv) memcpy(conv, mixed->data, (size_t)(rows * WIDTH) * sizeof(float));
    return chm_diag_scan(g, chm_input(t->context, rows, WIDTH, t->decay, 0), mixed, 1);
}

static float *state_at(chm_stream_state *s, int item, int64_t head) {
    const chm_state_item *i = &s->layout->item[item];
    return (float *)(void *)(s->blob + i->offset + (size_t)head * i->head_bytes);
}

/* One row by the definition, moving `s`. */
static void plain_row(const struct topology *t, chm_stream_state *s, int64_t row, bool fresh, float *conv, float *out) {
    if (fresh) memset(s->blob, 0, s->layout->bytes);
    for (int64_t c = 0; c < WIDTH; c++) {
        float *history = state_at(s, 0, c / (WIDTH / HEADS)) + c % (WIDTH / HEADS);
        float *h = state_at(s, 1, c / (WIDTH / HEADS)) + c % (WIDTH / HEADS);
        float sum = t->taps.value[c * TAPS] * t->x[row * WIDTH + c];
        for (int64_t lag = 1; lag < TAPS; lag++)
            sum += t->taps.value[c * TAPS + lag] * history[(lag - 1) * (WIDTH / HEADS)];
        for (int64_t lag = LAGS - 1; lag > 0; lag--)
            history[lag * (WIDTH / HEADS)] = history[(lag - 1) * (WIDTH / HEADS)];
        history[0] = t->x[row * WIDTH + c];
        *h = t->decay[row * WIDTH + c] * *h + sum;
        conv[c] = sum;
        out[c] = *h;
    }
}

static void plain_path(const struct topology *t, chm_stream_state *s, int64_t row, float *conv, float *out) {
    if (t->parent[row] < 0)
        chm_stream_copy(s, t->streams[~t->parent[row]]);
    else
        plain_path(t, s, t->parent[row], conv, out);
    plain_row(t, s, row, t->position[row] == 0, conv, out);
}

static void expect_near(const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabsf(a[i] - b[i]) <= 1e-5f * (1 + fabsf(b[i]))))
            fail_msg("%lld: %g, expected %g", (long long)i, (double)a[i], (double)b[i]);
}

/* Random forests, documents that begin inside them included; then a path accepted. */
static void test_trees(void **state) {
    (void)state;
    struct topology t;
    open_topology(&t);
    float conv[TREE * WIDTH], want_conv[WIDTH], want[WIDTH];
    chm_stream_state s, before;
    assert_int_equal(chm_stream_init(&s, &t.states.layout), CHM_OK);
    assert_int_equal(chm_stream_init(&before, &t.states.layout), CHM_OK);
    for (uint64_t round = 0; round < 40; round++) {
        const int64_t rows = 1 + (int64_t)chm_below_at(2, CHM_RANDOM_TEST, 1, round, TREE);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t pick =
                (int64_t)chm_below_at(round, CHM_RANDOM_TEST, 2, (uint64_t)r, (uint64_t)(r + SLOTS)) - SLOTS;
            t.parent[r] = (int32_t)pick; /* -SLOTS .. r - 1; the negative ones are ~slot */
            t.position[r] = pick < 0 ? t.streams[~pick]->position : t.position[pick] + 1;
            if (chm_below_at(round, CHM_RANDOM_TEST, 3, (uint64_t)r, 9) == 0) t.position[r] = 0;
        }
        chm_stream_copy(&before, t.streams[0]);
        chm_tensor *y = run_topology(&t, rows, 0, conv);
        if (!y) fail_msg("%s", chm_error());
        for (int64_t r = 0; r < rows; r++) {
            plain_path(&t, &s, r, want_conv, want);
            expect_near(conv + r * WIDTH, want_conv, WIDTH);
            expect_near(y->data + r * WIDTH, want, WIDTH);
        }
        assert_memory_equal(before.blob, t.streams[0]->blob, t.states.layout.bytes);
        /* accept the path to the last row */
        int32_t path[TREE];
        int64_t n = 0;
        for (int32_t r = (int32_t)rows - 1; r >= 0; r = t.parent[r]) path[n++] = r;
        for (int64_t i = 0; i < n / 2; i++) {
            const int32_t swap = path[i];
            path[i] = path[n - 1 - i];
            path[n - 1 - i] = swap;
        }
        const int slot = ~t.parent[path[0]];
        plain_path(&t, &s, rows - 1, want_conv, want);
        assert_int_equal(chm_accept(t.context, path, n), CHM_OK);
        for (int64_t h = 0; h < HEADS; h++) {
            expect_near(state_at(t.streams[slot], 0, h), state_at(&s, 0, h), LAGS * WIDTH / HEADS);
            expect_near(state_at(t.streams[slot], 1, h), state_at(&s, 1, h), WIDTH / HEADS);
        }
        t.streams[slot]->position = t.position[rows - 1] + 1;
        /* what is no path */
        if (n > 1) {
            assert_int_equal(chm_accept(t.context, path + 1, n - 1), CHM_E_INTERNAL);
            assert_non_null(strstr(chm_error(), "does not continue the accepted path"));
        }
    }
    chm_stream_finish(&s);
    chm_stream_finish(&before);
    close_topology(&t);
}

/* Chains committed, several streams in one pass, in training too. */
static void test_chains(void **state) {
    (void)state;
    static const uint32_t flags[] = {CHM_PASS_COMMIT, CHM_PASS_TRAIN | CHM_PASS_CARRY,
                                     CHM_PASS_TRAIN | CHM_PASS_CARRY | CHM_PASS_STEP};
    static const int64_t lengths[SLOTS] = {1, 20, 7};
    for (size_t f = 0; f < CHM_ARRAY_COUNT(flags); f++) {
        struct topology t;
        open_topology(&t);
        chm_stream_state want[SLOTS];
        int64_t rows = 0;
        for (int s = 0; s < SLOTS; s++) {
            assert_int_equal(chm_stream_init(&want[s], &t.states.layout), CHM_OK);
            for (int64_t i = 0; i < lengths[s]; i++, rows++) {
                t.parent[rows] = i ? (int32_t)(rows - 1) : ~s;
                t.position[rows] = s == 1 && i >= 5 ? i - 5 : t.streams[s]->position + i; /* a document begins */
            }
        }
        float conv[WIDTH], out[TREE * WIDTH];
        for (int64_t r = 0; r < rows; r++) {
            static int slot;
            if (t.parent[r] < 0) {
                slot = ~t.parent[r];
                chm_stream_copy(&want[slot], t.streams[slot]);
            }
            plain_row(&t, &want[slot], r, t.position[r] == 0, conv, out + r * WIDTH);
        }
        const chm_tensor *y = run_topology(&t, rows, flags[f], NULL);
        if (!y) fail_msg("%s", chm_error());
        expect_near(y->data, out, rows * WIDTH);
        for (int s = 0; s < SLOTS; s++) {
            for (int64_t h = 0; h < HEADS; h++) {
                expect_near(state_at(t.streams[s], 0, h), state_at(&want[s], 0, h), LAGS * WIDTH / HEADS);
                expect_near(state_at(t.streams[s], 1, h), state_at(&want[s], 1, h), WIDTH / HEADS);
            }
            chm_stream_finish(&want[s]);
        }
        close_topology(&t);
    }
}

/* ---- recurrences with parameters of every head, without a state, in aligned chunks ---- */

enum { HEAD_WIDTH = 3, ALIGNED_ROWS = 8 };

/* out = in * w, w this head's */
static void weigh(const chm_head *h, const float *in, float *out) {
    assert_int_equal(h->param_count[0], HEAD_WIDTH);
    if (h->rows > 1) assert_true(h->position / ALIGNED_ROWS == (h->position + h->rows - 1) / ALIGNED_ROWS);
    for (int64_t r = 0; out && r < h->rows; r++)
        for (int64_t i = 0; i < HEAD_WIDTH; i++)
            out[r * h->out_stride + i] = in[r * h->in_stride[0] + i] * h->param[0][i];
}
static void weigh_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    (void)state;
    weigh(h, in[0], out);
}
static void weigh_read(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                       float *out) {
    (void)state, (void)in;
    weigh(h, ask[0], out);
}
static void weigh_read_backward(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                                const float *dout, float *const *dask) {
    (void)state, (void)in, (void)ask;
    for (int64_t r = 0; dask[0] && r < h->rows; r++)
        for (int64_t i = 0; i < HEAD_WIDTH; i++)
            dask[0][r * h->in_stride[0] + i] += dout[r * h->out_stride + i] * h->param[0][i];
}
static void weigh_backward(const chm_head *h, void *const *state, const float *const *in, const chm_chunk_grad *grad) {
    weigh_read_backward(h, state, in, in, grad->dout, grad->din);
    for (uint32_t p = 0; p <= grad->n_reads; p++) {
        const float *x = p ? grad->read_in[p - 1][0] : in[0], *dy = p ? grad->read_dout[p - 1] : grad->dout;
        for (int64_t r = 0; r < h->rows; r++)
            for (int64_t i = 0; i < HEAD_WIDTH; i++)
                grad->dparam[0][i] += dy[r * h->out_stride + i] * x[r * h->in_stride[0] + i];
    }
}
static int64_t weigh_rows(const void *layer) {
    (void)layer;
    return ALIGNED_ROWS;
}
static const chm_recurrence weighing = {.size = sizeof weighing,
                                        .n_inputs = 1,
                                        .n_params = 1,
                                        .read_inputs = 1,
                                        .flags = CHM_REC_ALIGNED,
                                        .name = "weighing",
                                        .step = weigh_step,
                                        .read = weigh_step,
                                        .chunk_rows = weigh_rows,
                                        .chunk = weigh_step,
                                        .chunk_read = weigh_read,
                                        .chunk_read_backward = weigh_read_backward,
                                        .chunk_backward = weigh_backward};

/* Three slots, one of them with two documents, in two loop passes; each head sees its own part of the parameter. */
static void test_head_parameters(void **state) {
    (void)state;
    enum { N = 3 * 20, H = 5, W = H * HEAD_WIDTH };
    const chm_state_layout none = {0};
    chm_context *c = make_context(&none);
    chm_param p;
    make_param(&p, 2, (int64_t[]){H, HEAD_WIDTH}, 3);
    float x[2][N * W], dy[2][N * W];
    for (int k = 0; k < 2; k++) {
        chm_normals(1, CHM_RANDOM_TEST, (uint32_t)k, N * W, x[k]);
        chm_normals(2, CHM_RANDOM_TEST, (uint32_t)k, N * W, dy[k]);
    }
    int32_t parent[N];
    int64_t position[N];
    for (int i = 0; i < N; i++) {
        parent[i] = i % 20 ? i - 1 : ~(i / 20);
        position[i] = i / 20 == 1 && i % 20 >= 6 ? i % 20 - 6 : i % 20 + (i / 20 == 2 ? 5 : 0);
    }
    const chm_rows rows = {N, parent, position};
    chm_graph *g = chm_context_graph(c);
    chm_param *const params[] = {&p};
    memset(p.grad, 0, (size_t)p.count * sizeof(float));
    assert_int_equal(chm_context_begin(c, &rows, NULL, 3, CHM_PASS_TRAIN), CHM_OK);
    for (int k = 0; k < 2; k++) {
        chm_context_loop(c, k + 1);
        chm_context_enter(c, 0, "layers.0.mixer", 0);
        chm_tensor *in = chm_input(c, N, W, x[k], CHM_TENSOR_GRAD);
        chm_tensor *y = chm_recur(g, &weighing, NULL, &in, params, NULL, H, HEAD_WIDTH);
        if (!y) fail_msg("%d %s", chm_context_status(c), chm_error());
        for (int i = 0; i < N * W; i++) assert_true(y->data[i] == x[k][i] * p.value[i % W]);
        memcpy(g->ops->grad(g, y), dy[k], sizeof dy[k]);
    }
    chm_context_loop(c, 0);
    assert_int_equal(chm_backward(c), CHM_OK);
    for (int i = 0; i < W; i++) {
        double want = 0;
        for (int k = 0; k < 2; k++)
            for (int r = 0; r < N; r++) want += (double)x[k][r * W + i] * (double)dy[k][r * W + i];
        assert_true(fabs((double)p.grad[i] - want) < 1e-4);
    }
    chm_context_destroy(c);
    free_param(&p);
}

/* ---- what is refused ---- */

static int32_t two_parents[2] = {~0, 0};
static int64_t two_positions[2] = {0, 1};

static void begin_two(chm_context *c, uint32_t flags) {
    const chm_rows plan = {2, two_parents, two_positions};
    assert_int_equal(chm_context_begin(c, &plan, NULL, 1, flags), CHM_OK);
    chm_context_enter(c, 0, "layers.0.mixer", 0);
}

static void expect_sentence(chm_context *c, const chm_tensor *y, int status, const char *words) {
    assert_null(y);
    /* a failed operator's NULL goes through everything after it, and the first sentence stays */
    chm_graph *g = chm_context_graph(c);
    assert_null(chm_silu(g, chm_add(g, NULL, NULL)));
    chm_input(c, -1, 3, NULL, 0);
    assert_int_equal(chm_context_status(c), status);
    if (!strstr(chm_error(), words)) fail_msg("'%s' does not say '%s'", chm_error(), words);
}
#define REFUSED(call, status, words)                                                                                   \
    do {                                                                                                               \
        begin_two(c, CHM_PASS_TRAIN);                                                                                  \
        chm_tensor *x = chm_input(c, 2, 6, NULL, CHM_TENSOR_GRAD), *z = chm_input(c, 2, 5, NULL, 0);                   \
        (void)x, (void)z;                                                                                              \
        expect_sentence(c, (call), status, words);                                                                     \
    } while (0)

static void no_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    (void)h, (void)state, (void)in, (void)out;
}

static void test_refused_operators(void **state) {
    (void)state;
    struct states s = {0};
    add_state(&s, 2, LAGS, 3);
    add_state(&s, 2, 0, 3);
    chm_context *c = make_context(&s.layout);
    chm_graph *g = chm_context_graph(c);
    chm_param w, v, taps;
    make_param(&w, 2, (int64_t[]){4, 5}, 1);
    make_param(&v, 1, (int64_t[]){4}, 2);
    make_param(&taps, 2, (int64_t[]){6, TAPS}, 3);
    const chm_operator no_backward = {.size = sizeof no_backward, .n_inputs = 1, .name = "odd", .forward = square_sum};
    const chm_operator nothing = {.size = sizeof nothing, .n_inputs = 1, .name = "nothing"};
    const chm_recurrence stepping = {.size = sizeof stepping, .n_inputs = 1, .name = "stepping", .step = no_step};
    const chm_recurrence empty = {.size = sizeof empty, .n_inputs = 1, .name = "empty"};

    REFUSED(chm_linear(g, x, &w), CHM_E_CONFIG, "part.w: linear reads 5 columns, its input has 6");
    REFUSED(chm_linear(g, NULL, &w), CHM_E_INTERNAL, "layers.0.mixer: linear without input or parameter");
    REFUSED(chm_rmsnorm(g, x, &v, 0), CHM_E_CONFIG, "rmsnorm of width 6 in groups of 6 with 4 weights");
    REFUSED(chm_rmsnorm(g, x, NULL, 4), CHM_E_CONFIG, "rmsnorm of width 6 in groups of 4");
    REFUSED(chm_l2norm(g, x, 4), CHM_E_CONFIG, "l2norm of width 6 in groups of 4");
    REFUSED(chm_unary(g, CHM_UNARY_COUNT, x), CHM_E_INTERNAL, "no unary function");
    REFUSED(chm_add(g, x, z), CHM_E_CONFIG, "cannot add [2, 6] and [2, 5]");
    REFUSED(chm_mul(g, z, x), CHM_E_CONFIG, "cannot multiply [2, 5] and [2, 6]");
    REFUSED(chm_mul(g, x, chm_input(c, 3, 6, NULL, 0)), CHM_E_CONFIG, "cannot multiply [2, 6] and [3, 6]");
    REFUSED(chm_swiglu(g, x, z), CHM_E_CONFIG, "swiglu of 6 and 5 columns");
    REFUSED(chm_concat(g, (chm_tensor *[]){x, chm_input(c, 1, 6, NULL, 0)}, 2), CHM_E_CONFIG, "concat of unequal rows");
    REFUSED(chm_concat(g, &x, 0), CHM_E_INTERNAL, "concat of 0 tensors");
    REFUSED(chm_slice(g, x, 4, 3), CHM_E_CONFIG, "slice 4..7 of 6 columns");
    REFUSED(chm_slice(g, x, -1, 3), CHM_E_CONFIG, "slice -1..2 of 6 columns");
    REFUSED(chm_short_conv(g, z, &taps, 0), CHM_E_PLUGIN, "chm_declare_conv_state()");
    REFUSED(chm_short_conv(g, x, &taps, 1), CHM_E_PLUGIN, "chm_declare_conv_state()");
    REFUSED(chm_short_conv(g, x, &taps, 7), CHM_E_PLUGIN, "chm_declare_conv_state()");
    REFUSED(chm_diag_scan(g, x, z, 1), CHM_E_PLUGIN, "a diagonal scan of 5 columns needs as many decays");
    REFUSED(chm_apply(g, &no_backward, NULL, &x, 1), CHM_E_PLUGIN, "operator odd has no backward");
    REFUSED(chm_apply(g, &nothing, NULL, &x, 1), CHM_E_PLUGIN, "an operator without forward");
    REFUSED(chm_recur(g, &stepping, NULL, &x, NULL, NULL, 2, 3), CHM_E_PLUGIN,
            "stepping has no chunk form and cannot be trained");
    REFUSED(chm_recur(g, &empty, NULL, &x, NULL, NULL, 2, 3), CHM_E_PLUGIN, "without step, inputs or heads");
    REFUSED(chm_recur(g, &stepping, NULL, &z, NULL, NULL, 2, 3), CHM_E_CONFIG,
            "stepping: input 0 is [2, 5], the pass has 2 rows and 2 heads");

    static const int32_t rows[] = {0, 2, -1, 1, 0, 1}, columns[] = {0, 6, -1, 1, 0, 0};
    REFUSED(chm_gather_rows(g, x, rows, 2), CHM_E_PLUGIN, "layers.0.mixer: gather_rows names row 2 of 2");
    REFUSED(chm_gather_rows(g, x, rows + 2, 1), CHM_E_PLUGIN, "gather_rows names row -1 of 2");
    REFUSED(chm_gather_rows(g, x, NULL, 1), CHM_E_PLUGIN, "gather_rows of 1 rows and no list");
    REFUSED(chm_scatter_rows(g, x, &x, 1, rows, NULL, NULL), CHM_E_PLUGIN, "scatter_rows names row 2 of 2");
    REFUSED(chm_scatter_rows(g, NULL, &x, 1, rows + 4, x, columns), CHM_E_PLUGIN,
            "scatter_rows names column 6 of 6 weights");
    REFUSED(chm_scatter_rows(g, NULL, &x, 1, rows + 4, x, columns + 2), CHM_E_PLUGIN, "names column -1 of 6 weights");
    REFUSED(chm_scatter_rows(g, NULL, &x, 1, rows + 4, NULL, NULL), CHM_E_PLUGIN, "needs a part, and a base");
    REFUSED(chm_scatter_rows(g, x, NULL, 0, rows, NULL, NULL), CHM_E_PLUGIN, "needs a part, and a base");
    REFUSED(chm_scatter_rows(g, x, &x, 1, rows + 4, chm_input(c, 1, 1, NULL, 0), columns), CHM_E_PLUGIN,
            "weights with as many rows");
    REFUSED(chm_scatter_rows(g, x, (chm_tensor *[]){x, z}, 2, rows, NULL, NULL), CHM_E_CONFIG,
            "scatter_rows of 5 columns among 6");

    /* in a loop */
    begin_two(c, 0);
    chm_context_loop(c, 2);
    expect_sentence(c, chm_short_conv(g, chm_input(c, 2, 6, NULL, 0), &taps, 0), CHM_E_PLUGIN,
                    "was not called in the first loop pass");
    begin_two(c, 0);
    chm_context_loop(c, 1);
    chm_tensor *x = chm_input(c, 2, 6, NULL, 0);
    expect_sentence(c, chm_recur(g, &stepping, NULL, &x, NULL, NULL, 2, 3), CHM_E_PLUGIN,
                    "stepping has no read form and cannot stand inside a loop");
    chm_context_loop(c, 0);
    free_param(&w);
    free_param(&v);
    free_param(&taps);
    chm_context_destroy(c);
}

static void test_refused_rows(void **state) {
    (void)state;
    static const struct {
        int32_t parent[3];
        int64_t rows;
        int slots;
        uint32_t flags;
        const char *words;
    } plans[] = {
        {{~0, 1, 0}, 3, 1, 0, "row 1 has parent 1, which does not come before it"},
        {{2, ~0, 0}, 3, 1, 0, "row 0 has parent 2"},
        {{~0, ~1, 0}, 3, 1, 0, "row 1 has parent -2"},
        {{~0, 0, 0}, 3, 1, CHM_PASS_COMMIT, "one chain per stream"},
        {{~0, ~0, 1}, 3, 1, CHM_PASS_COMMIT, "one chain per stream"},
        {{~0, 0, 0}, 3, 1, CHM_PASS_TRAIN, "training rows must be chains: row 2"},
        {{~1, 0, 1}, 3, 2, CHM_PASS_TRAIN, "slot after slot: row 0"},
        {{~0, 0, 1}, 3, 2, CHM_PASS_TRAIN, "2 slots were announced, the rows use 1"},
    };
    static const chm_state_layout none;
    static const int64_t position[3] = {0, 1, 2};
    chm_context *c = make_context(&none);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(plans); i++) {
        const chm_rows rows = {plans[i].rows, plans[i].parent, position};
        assert_int_equal(chm_context_begin(c, &rows, NULL, plans[i].slots, plans[i].flags), CHM_E_INTERNAL);
        if (!strstr(chm_error(), plans[i].words)) fail_msg("plan %zu: %s", i, chm_error());
    }
    /* only what was tried can be accepted */
    begin_two(c, CHM_PASS_COMMIT);
    assert_int_equal(chm_accept(c, two_parents, 1), CHM_E_INTERNAL);
    assert_non_null(strstr(chm_error(), "only rows of a pass that tries"));
    /* a sound pass after all that */
    begin_two(c, CHM_PASS_TRAIN);
    assert_non_null(chm_silu(chm_context_graph(c), chm_input(c, 2, 6, NULL, 0)));
    assert_int_equal(chm_context_status(c), CHM_OK);
    chm_context_destroy(c);
}

/* ---- taps and memory ---- */

static chm_tensor *double_it(void *user, chm_graph *g, const char *name, chm_tensor *x) {
    int *seen = user;
    if (strcmp(name, "here") != 0) return x;
    ++*seen;
    return chm_affine(g, x, 2, 0);
}

static void test_taps(void **state) {
    (void)state;
    static const chm_state_layout none;
    static const float value[12] = {1, 2, 3};
    chm_context *c = make_context(&none);
    chm_graph *g = chm_context_graph(c);
    int seen = 0;
    begin_two(c, 0);
    chm_tensor *x = chm_input(c, 2, 6, value, 0);
    assert_ptr_equal(chm_tap(g, "here", x), x);
    assert_null(chm_tap(g, "here", NULL));
    chm_context_on_tap(c, double_it, &seen);
    const chm_tensor *y = chm_tap(g, "here", x);
    assert_int_equal(seen, 1);
    assert_true(y->data[1] == 4);
    assert_ptr_equal(chm_tap(g, "there", x), x);
    assert_null(chm_tap(g, "here", NULL));
    assert_int_equal(seen, 1);
    chm_context_destroy(c);
}

static void test_memory(void **state) {
    (void)state;
    struct topology t;
    open_topology(&t);
    uint64_t made = 0;
    size_t bytes = 0;
    for (int round = 0; round < 20; round++) {
        for (int64_t rows = 1; rows <= TREE; rows += 13) {
            for (int64_t r = 0; r < rows; r++) {
                t.parent[r] = r ? (int32_t)((r - 1) / 2) : ~0;
                t.position[r] = t.parent[r] < 0 ? 100 : t.position[t.parent[r]] + 1;
            }
            assert_non_null(run_topology(&t, rows, 0, NULL));
        }
        if (round == 0) {
            made = chm_alloc_count();
            bytes = chm_context_bytes(t.context);
        }
    }
    assert_int_equal(chm_alloc_count(), made);
    assert_int_equal(chm_context_bytes(t.context), bytes);
    close_topology(&t);
}

/* Out of memory at any allocation of a first pass: a sentence, and the next pass is sound. */
static void test_out_of_memory(void **state) {
    (void)state;
    bool done = false;
    for (long n = 0; !done; n++) {
        struct topology t;
        open_topology(&t);
        t.parent[0] = ~0;
        t.parent[1] = t.parent[2] = 0;
        t.position[0] = 100;
        t.position[1] = t.position[2] = 101;
        chm_alloc_fail_after(n);
        const chm_tensor *y = run_topology(&t, 3, 0, NULL);
        chm_alloc_fail_after(-1);
        done = y != NULL;
        if (!done) assert_int_equal(chm_context_status(t.context), CHM_E_MEMORY);
        assert_non_null(run_topology(&t, 3, 0, NULL));
        assert_true(n < 100);
        close_topology(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_tally),
        cmocka_unit_test(test_packed_linear),
        cmocka_unit_test(test_embedding_and_loss),
        cmocka_unit_test(test_trees),
        cmocka_unit_test(test_head_parameters),
        cmocka_unit_test(test_chains),
        cmocka_unit_test(test_refused_operators),
        cmocka_unit_test(test_refused_rows),
        cmocka_unit_test(test_taps),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests_name("graph", tests, set_up, tear_down);
}
