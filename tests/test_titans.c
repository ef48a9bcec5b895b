/*
 * test_titans.c: the Titans layer against its definition in f64 (golden files, and a reference head by head whose
 * derivatives are exact), one update against titans-pytorch; the extremes of its gates; the generated layer tests,
 * which must pass, and must fail when something is broken; the surprise that others may listen to.
 */
#include "../plugins/layers/titans.c" /* its recurrences are driven directly */

#include "layer_help.h"
#include "reference/ref_titans.h"

static int set_up(void **state) {
    (void)state;
    return layer_set_up("titans");
}

static const char *made(void) {
    static char path[4200];
    snprintf(path, sizeof path, "%s/out.safetensors", scratch);
    return path;
}

static int tear_down(void **state) {
    (void)state;
    unlink(made());
    rmdir(scratch);
    chm_free(plugin_path);
    return 0;
}

/* rms of the error over rms of what is wanted */
static double relative(const float *got, const double *want, int64_t n) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        error += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        size += want[i] * want[i];
    }
    if (!isfinite(error)) return INFINITY;
    return error == 0 ? 0 : size > 0 ? sqrt(error / size) : INFINITY;
}

static double *widen(const float *from, int64_t n) {
    double *to = calloc((size_t)n + 1, sizeof *to);
    assert_non_null(to);
    for (int64_t i = 0; from && i < n; i++) to[i] = (double)from[i];
    return to;
}

static void open_golden(struct file *f, const char *name, char path[4096]) {
    snprintf(path, 4096, "%s/tests/golden/%s.safetensors", getenv("CHM_SOURCE_ROOT"), name);
    open_file(f, path);
}

/* ---- the layer against golden files ---- */

static const char *const golden_layers[] = {"titans_after", "titans_before", "titans_window"};

static void run_layer(chm_runtime *r, const char *in, bool step, bool grad, bool plain) {
    static const char *const sets[] = {"quantization.method=none"};
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = plain, .set = sets, .no_environment = 1};
    const chm_layer_options run = {.size = sizeof run,
                                   .plugin = "titans",
                                   .overlay = &overlay,
                                   .in = in,
                                   .out = made(),
                                   .grad = grad,
                                   .step = step};
    if (chm_layer_run(r, &run)) fail_msg("%s", chm_error());
}

static void test_golden_layers(void **state) {
    (void)state;
    /* of gradients; f32 arithmetic of torch is off by 2e-6 in the same program. Those of what comes before the norms of
     * q and k, and of tau, are what is left of larger sums. */
    static const double tolerance = 3e-6;
    char path[4096];
    for (size_t b = 0; b < CHM_ARRAY_COUNT(backends); b++) {
        chm_runtime *r = try_runtime(backends[b], 2);
        if (!r) continue;
        for (size_t g = 0; g < CHM_ARRAY_COUNT(golden_layers); g++)
            for (int step = 0; step < 2; step++) {
                struct file golden, got;
                double worst = 0, output = 0;
                int compared = 0;
                open_golden(&golden, golden_layers[g], path);
                run_layer(r, path, step, true, true);
                open_file(&got, made());
                for (int i = 0; i < golden.st->count; i++) {
                    const chm_st_tensor *want = &golden.st->tensor[i];
                    if (!is_result(want->name) || !chm_safetensors_find(got.st, want->name)) continue;
                    int64_t n, m;
                    const float *a = floats(&got, want->name, &n), *c = floats(&golden, want->name, &m);
                    assert_int_equal(n, m);
                    double *wide = widen(c, n);
                    const double error = relative(a, wide, n);
                    free(wide);
                    if (!(error <= tolerance))
                        fail_msg("%s, %s, %s: %s is off by %.2g", golden_layers[g], step ? "step" : "chunk",
                                 backends[b], want->name, error);
                    worst = error > worst ? error : worst;
                    if (!strcmp(want->name, "y") || !strncmp(want->name, "final.", 6))
                        output = error > output ? error : output;
                    compared++;
                }
                if (!(output <= 1e-6)) fail_msg("%s: an output is off by %.2g", golden_layers[g], output);
                assert_int_equal(compared, got.st->count);
                print_message("%-13s %-5s %-8s %d tensors: outputs %.1e, gradients %.1e\n", golden_layers[g],
                              step ? "step" : "chunk", backends[b], compared, output, worst);
                close_file(&got);
                close_file(&golden);
            }
        chm_runtime_destroy(r);
    }
}

/* The bytes of inference do not depend on backend or threads. */
static void test_same_bytes(void **state) {
    (void)state;
    char path[4096];
    for (size_t g = 0; g < CHM_ARRAY_COUNT(golden_layers); g++)
        for (int plain = 0; plain < 2; plain++) {
            uint64_t first = 0;
            bool have = false;
            for (size_t b = 0; b < CHM_ARRAY_COUNT(backends); b++)
                for (int threads = 1; threads <= 4; threads += 3) {
                    chm_runtime *r = try_runtime(backends[b], threads);
                    if (!r) continue;
                    struct file got, golden;
                    open_golden(&golden, golden_layers[g], path);
                    run_layer(r, path, true, false, plain);
                    open_file(&got, made());
                    uint64_t hash = 0;
                    for (int i = 0; i < got.st->count; i++)
                        hash = chm_hash64_seed(got.st->tensor[i].data, got.st->tensor[i].bytes, hash);
                    if (have && hash != first)
                        fail_msg("%s: %s with %d threads gives other bytes", golden_layers[g], backends[b], threads);
                    first = hash;
                    have = true;
                    close_file(&got);
                    close_file(&golden);
                    chm_runtime_destroy(r);
                }
        }
}

/* ---- one update of a public implementation ---- */

static ref_number *numbers(const struct file *f, const char *name) {
    int64_t n;
    const float *from = floats(f, name, &n);
    ref_number *to = calloc((size_t)n, sizeof *to);
    assert_non_null(to);
    for (int64_t i = 0; i < n; i++) to[i] = (double)from[i];
    return to;
}

/* titans-pytorch's NeuralMemory, whose weights are our deviations where nothing was trained */
static void test_published_update(void **state) {
    (void)state;
    char path[4096];
    struct file f;
    open_golden(&f, "titans_update", path);
    static const char *const names[] = {"kappa", "nu", "a1", "a2", "s1", "s2", "gates"};
    static const char *const finals[] = {"final.a1", "final.a2", "final.s1", "final.s2"};
    ref_number *in[CHM_ARRAY_COUNT(names)], delta[64], p[64], e[64];
    int64_t d, n;
    floats(&f, "kappa", &d);
    assert_true(d <= 64);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(names); i++) in[i] = numbers(&f, names[i]);
    ref_titans_gradient(d, in[0], in[1], in[2], in[3], delta, p, e);
    ref_titans_update(d, in[0], delta, in[6][0], in[6][1], in[6][2], in[4], in[2]);
    ref_titans_update(d, p, e, in[6][0], in[6][1], in[6][2], in[5], in[3]);
    for (int i = 0; i < 4; i++) {
        const float *want = floats(&f, finals[i], &n);
        double error = 0, size = 0;
        for (int64_t k = 0; k < n; k++) {
            error += pow(creal(in[2 + i][k]) - (double)want[k], 2);
            size += pow((double)want[k], 2);
        }
        /* golden values were rounded to f32 once */
        if (!(sqrt(error / size) < 1e-7)) fail_msg("%s is off by %.2g", finals[i], sqrt(error / size));
    }
    for (size_t i = 0; i < CHM_ARRAY_COUNT(names); i++) free(in[i]);
    close_file(&f);
}

/* ---- the recurrence against the reference, one head at a time ---- */

struct head_case {
    const char *name;
    int64_t rows, d, chunk, window, position;
    int32_t core, update, retrieve;
    double carry;
    bool reads;
    double output, gradient; /* bounds; gradient 0: none is computed, < 0: along directions only, bound -gradient */
    void (*edge)(struct head_case *c, float *const *in);
    uint64_t seed;
};

/* what the plugin is given and what it gives; leaves as the reference counts them, then a second pass's questions */
enum { AGAIN_Q = REF_LEAVES, AGAIN_CONTEXT, LEAVES };

static const char *const leaf_name[LEAVES] = {"q",     "k",       "v",     "log_gamma", "eta",          "alpha",
                                              "theta", "context", "maps",  "w1",        "w2",           "fast",
                                              "core",  "log",     "gates", "again q",   "again context"};

static struct ref_titans shape_of(const struct head_case *c) {
    static const char letters[] = "acn";
    return (struct ref_titans){.rows = c->rows,
                               .d = c->d,
                               .chunk = c->chunk,
                               .segment = c->window,
                               .position = c->position,
                               .tokens = c->core == CORE_DECAY,
                               .before = c->update == UPDATE_BEFORE,
                               .retrieve = letters[c->retrieve],
                               .carry = c->carry,
                               .eps = 1e-6};
}

static int64_t leaf_count(const struct head_case *c, int leaf) {
    const struct ref_titans r = shape_of(c);
    return ref_titans_count(&r, leaf < REF_LEAVES ? leaf : leaf == AGAIN_Q ? REF_Q : REF_CONTEXT);
}

static void *space(size_t bytes) {
    void *p = chm_alloc_aligned(bytes ? bytes : 1);
    assert_non_null(p);
    memset(p, 0, bytes);
    return p;
}
static float *float_space(int64_t n) { return space((size_t)n * sizeof(float)); }

static void unit_rows(float *x, int64_t rows, int64_t d) {
    for (int64_t r = 0; r < rows; r++) {
        const double size = sqrt(square_sum(x + r * d, d) + 1e-6);
        for (int64_t i = 0; i < d; i++) x[r * d + i] = (float)((double)x[r * d + i] / size);
    }
}

static void draw(struct head_case *c, float *in[LEAVES]) {
    static const float size[LEAVES] = {1, 1, 1, 1, 1, 1, 1, 0.5f, 0.2f, 0.5f, 0.2f, 0.2f, 0.4f, 0.5f, 0.5f, 1.0f, 0.5f};
    for (int i = 0; i < LEAVES; i++) {
        const int64_t n = leaf_count(c, i);
        in[i] = float_space(n);
        chm_normals(71 + c->seed, CHM_RANDOM_TEST, (uint32_t)i, n, in[i]);
        for (int64_t k = 0; k < n; k++) in[i][k] *= size[i];
    }
    unit_rows(in[REF_Q], c->rows, c->d);
    unit_rows(in[REF_K], c->rows, c->d);
    unit_rows(in[AGAIN_Q], c->rows, c->d);
    for (int64_t t = 0; t < c->rows; t++) {
        in[REF_LOG_GAMMA][t] = -0.1f * fabsf(in[REF_LOG_GAMMA][t]);
        in[REF_ETA][t] = 1 / (1 + expf(-2 - in[REF_ETA][t]));
        in[REF_ALPHA][t] = 1 / (1 + expf(3 - in[REF_ALPHA][t]));
        in[REF_THETA][t] = 1 / (1 + expf(-1 - in[REF_THETA][t]));
    }
    const int64_t before = rows_before(c->position, c->chunk), chunk = c->chunk;
    for (int64_t row = 0; row < chunk; row++)
        for (int g = 0; g < GATES; g++) {
            float *at = in[REF_GATES] + g * chunk + row;
            *at = (g == GATE_THETA ? 0.02f : 1) / (1 + expf(-*at));
            if (row >= before) *at = 0;
        }
    for (int part = 0; part < LOG_PARTS; part++)
        for (int64_t i = before * c->d; i < chunk * c->d; i++) in[REF_LOG][part * chunk * c->d + i] = 0;
    for (int leaf = REF_FAST; leaf <= REF_CORE && !c->position; leaf++)
        memset(in[leaf], 0, (size_t)leaf_count(c, leaf) * sizeof(float));
    if (c->edge) c->edge(c, in);
}

/* Everything computed: y, m, surprise, of the second pass y, m, then the states. */
enum { OUT_Y, OUT_M, OUT_SURPRISE, OUT_AGAIN_Y, OUT_AGAIN_M, OUT_FAST, OUT_CORE, OUT_LOG, OUT_GATES, OUTS };
static const char *const out_name[OUTS] = {
    "y", "m", "surprise", "y of a second pass", "m of a second pass", "fast", "core", "log", "gates"};

static int64_t out_count(const struct head_case *c, int out) {
    return out == OUT_SURPRISE ? c->rows : out < OUT_FAST ? c->rows * c->d : leaf_count(c, REF_FAST + out - OUT_FAST);
}

static ref_number *ref_space(int64_t n) { return space((size_t)n * sizeof(ref_number)); }

struct oracle {
    struct ref_titans r;
    ref_number *in[LEAVES], *out[OUTS];
};

static void open_oracle(struct oracle *o, const struct head_case *c, float *const in[LEAVES]) {
    o->r = shape_of(c);
    for (int i = 0; i < LEAVES; i++) {
        o->in[i] = ref_space(leaf_count(c, i));
        for (int64_t k = 0; k < leaf_count(c, i); k++) o->in[i][k] = (double)in[i][k];
        if (i < REF_LEAVES) o->r.in[i] = o->in[i];
    }
    for (int i = 0; i < OUTS; i++) o->out[i] = ref_space(out_count(c, i));
    if (c->reads) {
        o->r.again_q = o->in[AGAIN_Q];
        o->r.again_context = o->in[AGAIN_CONTEXT];
    }
    o->r.y = o->out[OUT_Y];
    o->r.m = o->out[OUT_M];
    o->r.surprise = o->out[OUT_SURPRISE];
    o->r.again_y = o->out[OUT_AGAIN_Y];
    o->r.again_m = o->out[OUT_AGAIN_M];
    for (int i = 0; i < STATES; i++) o->r.state[i] = o->out[OUT_FAST + i];
}

static void close_oracle(struct oracle *o) {
    for (int i = 0; i < LEAVES; i++) chm_free(o->in[i]);
    for (int i = 0; i < OUTS; i++) chm_free(o->out[i]);
}

/* derivative of sum(weight * output) where the leaves have imaginary parts of 1e-100 times a direction */
static double slope_of(struct oracle *o, const struct head_case *c, float *const weight[OUTS]) {
    double sum = 0;
    ref_titans_run(&o->r);
    for (int i = 0; i < OUTS; i++)
        for (int64_t k = 0; weight[i] && k < out_count(c, i); k++)
            sum += (double)weight[i][k] * cimag(o->out[i][k]) * 1e100;
    return sum;
}

struct plugin_run {
    float *out[OUTS], *gradient[LEAVES];
};

/* The plugin's recurrence as the host drives it: aligned chunks, gradients from the last. */
static void through_plugin(const struct chm_kernels *k, const struct head_case *c, float *const in[LEAVES], bool step,
                           float *const weight[OUTS], struct plugin_run *run) {
    const int64_t d = c->d, T = c->rows, width = 2 * d + 1;
    const struct titans t = {.window = c->window,
                             .chunk = c->chunk,
                             .segment_carry = c->carry,
                             .core = c->core,
                             .update = c->update,
                             .retrieve = c->retrieve,
                             .heads = 1,
                             .dim = d,
                             .eps = 1e-6f};
    chm_head h = {.layer = &t, .kernels = k, .heads = 1, .out_width = width, .out_stride = width};
    for (int i = 0; i < INPUTS; i++) h.in_width[i] = h.in_stride[i] = leaf_count(c, i) / T;
    for (int i = 0; i < PARAMS; i++) h.param[i] = in[REF_MAPS + i];
    const int64_t limit = memory.chunk_rows(&t), most = T / limit + 2;
    h.rows = limit;
    h.scratch = space(memory.scratch_bytes(&h));
    float *all = float_space(T * width), *again = float_space(T * width);
    void *state[STATES], **starts = space((size_t)(most * STATES) * sizeof *starts);
    for (int i = 0; i < STATES; i++) {
        state[i] = run->out[OUT_FAST + i];
        memcpy(state[i], in[REF_FAST + i], (size_t)leaf_count(c, REF_FAST + i) * sizeof(float));
    }
    const float *row[INPUTS], *ask[INPUTS] = {0};
    int64_t first[4200], rows[4200], chunks = 0;
    assert_true(most <= 4200);
    for (int64_t done = 0; done < T; done += rows[chunks++]) {
        first[chunks] = done;
        rows[chunks] = CHM_MIN(T - done, limit - (c->position + done) % limit);
        h.position = c->position + done;
        h.rows = rows[chunks];
        for (int i = 0; i < INPUTS; i++) row[i] = in[i] + done * h.in_stride[i];
        ask[IN_Q] = in[AGAIN_Q] + done * d;
        ask[IN_CONTEXT] = in[AGAIN_CONTEXT] + done * d;
        for (int i = 0; i < STATES; i++) {
            starts[chunks * STATES + i] = float_space(leaf_count(c, REF_FAST + i));
            memcpy(starts[chunks * STATES + i], state[i], (size_t)leaf_count(c, REF_FAST + i) * sizeof(float));
        }
        if (!step) {
            if (c->reads) memory.chunk_read(&h, starts + chunks * STATES, row, ask, again + done * width);
            memory.chunk(&h, state, row, all + done * width);
            continue;
        }
        for (int64_t r = 0; r < rows[chunks]; r++, h.position++) {
            h.rows = 1;
            memory.step(&h, state, row, all + (done + r) * width);
            const float *mixed_in[INPUTS];
            for (int i = 0; i < INPUTS; i++) mixed_in[i] = ask[i] ? ask[i] : row[i];
            if (c->reads) memory.read(&h, state, mixed_in, again + (done + r) * width);
            for (int i = 0; i < INPUTS; i++) row[i] += h.in_stride[i];
            ask[IN_Q] += d;
            ask[IN_CONTEXT] += d;
        }
    }
    for (int64_t r = 0; r < T; r++) {
        memcpy(run->out[OUT_Y] + r * d, all + r * width, (size_t)d * sizeof(float));
        memcpy(run->out[OUT_M] + r * d, all + r * width + d, (size_t)d * sizeof(float));
        run->out[OUT_SURPRISE][r] = all[r * width + 2 * d];
        memcpy(run->out[OUT_AGAIN_Y] + r * d, again + r * width, (size_t)d * sizeof(float));
        memcpy(run->out[OUT_AGAIN_M] + r * d, again + r * width + d, (size_t)d * sizeof(float));
    }
    for (int64_t k2 = chunks - 1; k2 >= 0 && weight; k2--) {
        const int64_t done = first[k2];
        float *dout = float_space(rows[k2] * width), *dagain = float_space(rows[k2] * width);
        for (int64_t r = 0; r < rows[k2]; r++) {
            memcpy(dout + r * width, weight[OUT_Y] + (done + r) * d, (size_t)d * sizeof(float));
            memcpy(dout + r * width + d, weight[OUT_M] + (done + r) * d, (size_t)d * sizeof(float));
            if (!c->reads) continue;
            memcpy(dagain + r * width, weight[OUT_AGAIN_Y] + (done + r) * d, (size_t)d * sizeof(float));
            memcpy(dagain + r * width + d, weight[OUT_AGAIN_M] + (done + r) * d, (size_t)d * sizeof(float));
        }
        h.position = c->position + done;
        h.rows = rows[k2];
        chm_chunk_grad grad = {.dout = dout, .n_reads = c->reads};
        const float *const *asks[] = {ask}, *const douts[] = {dagain};
        grad.read_in = asks;
        grad.read_dout = douts;
        for (int i = 0; i < INPUTS; i++) row[i] = in[i] + done * h.in_stride[i];
        for (int i = 0; i < INPUTS; i++) grad.din[i] = run->gradient[i] + done * h.in_stride[i];
        for (int i = 0; i < PARAMS; i++) grad.dparam[i] = run->gradient[REF_MAPS + i];
        for (int i = 0; i < STATES; i++) {
            grad.dstate[i] = run->gradient[REF_FAST + i];
            if (k2 == chunks - 1)
                memcpy(grad.dstate[i], weight[OUT_FAST + i], (size_t)leaf_count(c, REF_FAST + i) * sizeof(float));
        }
        ask[IN_Q] = in[AGAIN_Q] + done * d;
        ask[IN_CONTEXT] = in[AGAIN_CONTEXT] + done * d;
        float *dask[INPUTS] = {0};
        dask[IN_Q] = run->gradient[AGAIN_Q] + done * d;
        dask[IN_CONTEXT] = run->gradient[AGAIN_CONTEXT] + done * d;
        if (c->reads) memory.chunk_read_backward(&h, starts + k2 * STATES, row, ask, dagain, dask);
        memory.chunk_backward(&h, starts + k2 * STATES, row, &grad);
        chm_free(dout);
        chm_free(dagain);
    }
    for (int64_t i = 0; i < chunks * STATES; i++) chm_free(starts[i]);
    chm_free(starts);
    chm_free(all);
    chm_free(again);
    chm_free(h.scratch);
}

static void check_outputs(const char *what, const struct head_case *c, const struct oracle *o,
                          const struct plugin_run *run, double *worst) {
    for (int i = 0; i < OUTS; i++) {
        const int64_t n = out_count(c, i);
        if (!c->reads && (i == OUT_AGAIN_Y || i == OUT_AGAIN_M)) continue;
        double *want = widen(NULL, n);
        for (int64_t k = 0; k < n; k++) want[k] = creal(o->out[i][k]);
        const double error = relative(run->out[i], want, n);
        free(want);
        /* a sum of squares, with four parts that each have the error of an output */
        if (!(error <= c->output * (i == OUT_SURPRISE ? 4 : 1)))
            fail_msg("%s, %s: %s is off by %.2g", c->name, what, out_name[i], error);
        *worst = error > *worst ? error : *worst;
    }
}

/* Directions along which the gradient of a leaf is compared: every element, or on large cases three at random. */
static int64_t directions(const struct head_case *c, int leaf) {
    if (c->gradient == 0 || (!c->reads && leaf >= REF_LEAVES)) return 0;
    return c->gradient > 0 ? leaf_count(c, leaf) : 3;
}

static void direction(const struct head_case *c, int leaf, int64_t turn, float *along) {
    const int64_t n = leaf_count(c, leaf);
    if (c->gradient < 0) {
        chm_normals(5, CHM_RANDOM_TEST, (uint32_t)(100 + 3 * leaf + turn), n, along);
        return;
    }
    memset(along, 0, (size_t)n * sizeof *along);
    along[turn] = 1;
}

static double *slopes(const struct head_case *c, struct oracle *o, float *const weight[OUTS], int leaf) {
    const int64_t n = leaf_count(c, leaf);
    double *want = widen(NULL, directions(c, leaf));
    float *along = float_space(n);
    for (int64_t turn = 0; turn < directions(c, leaf); turn++) {
        direction(c, leaf, turn, along);
        for (int64_t k = 0; k < n; k++) o->in[leaf][k] = creal(o->in[leaf][k]) + (double)along[k] * 1e-100 * I;
        want[turn] = slope_of(o, c, weight);
    }
    for (int64_t k = 0; k < n; k++) o->in[leaf][k] = creal(o->in[leaf][k]);
    chm_free(along);
    return want;
}

static double check_gradients(const char *what, const struct head_case *c, double *const want[LEAVES],
                              const struct plugin_run *run) {
    double worst = 0, sums = 0;
    for (int leaf = 0; leaf < LEAVES; leaf++) {
        const int64_t n = leaf_count(c, leaf);
        double error = 0, size = 0;
        float *along = float_space(n);
        for (int64_t turn = 0; turn < directions(c, leaf); turn++) {
            direction(c, leaf, turn, along);
            const double got = dot(run->gradient[leaf], along, n);
            error += (got - want[leaf][turn]) * (got - want[leaf][turn]);
            size += want[leaf][turn] * want[leaf][turn];
        }
        chm_free(along);
        /* the decay's gradient is what is left of sums as large as the query's: where all is forgotten, nothing */
        if (leaf == REF_Q) sums = size;
        if (leaf == REF_LOG_GAMMA) size = fmax(size, 1e-6 * sums);
        error = error == 0 ? 0 : sqrt(error / size);
        if (!(error <= fabs(c->gradient)))
            fail_msg("%s, %s: the gradient of %s is off by %.2g", c->name, what, leaf_name[leaf], error);
        worst = error > worst ? error : worst;
    }
    return worst;
}

static void run_case(struct head_case *c) {
    float *in[LEAVES], *weight[OUTS] = {0};
    double *want[LEAVES];
    struct oracle o;
    draw(c, in);
    open_oracle(&o, c, in);
    for (int i = 0; i < OUTS; i++) {
        if (i == OUT_SURPRISE || (!c->reads && (i == OUT_AGAIN_Y || i == OUT_AGAIN_M))) continue;
        weight[i] = float_space(out_count(c, i));
        chm_normals(72, CHM_RANDOM_TEST, (uint32_t)i, out_count(c, i), weight[i]);
    }
    for (int i = 0; i < LEAVES; i++) want[i] = slopes(c, &o, weight, i);
    ref_titans_run(&o.r);
    for (size_t b = 0; b < 2; b++) { /* openblas has nothing that is used here */
        chm_runtime *r = try_runtime(backends[b], 1);
        if (!r) continue;
        struct plugin_run run[2];
        double worst[2] = {0, 0}, gradient = 0;
        for (int step = 0; step < 2; step++) {
            for (int i = 0; i < OUTS; i++) run[step].out[i] = float_space(out_count(c, i));
            for (int i = 0; i < LEAVES; i++) run[step].gradient[i] = float_space(leaf_count(c, i));
            through_plugin(&r->kernels.kernels, c, in, step, step || c->gradient == 0 ? NULL : weight, &run[step]);
            check_outputs(step ? "step" : "chunk", c, &o, &run[step], &worst[step]);
        }
        if (c->gradient != 0) gradient = check_gradients(backends[b], c, want, &run[0]);
        print_message("%-46s %-8s chunk %.1e, step %.1e, gradients %.1e\n", c->name, backends[b], worst[0], worst[1],
                      gradient);
        for (int step = 0; step < 2; step++) {
            for (int i = 0; i < OUTS; i++) chm_free(run[step].out[i]);
            for (int i = 0; i < LEAVES; i++) chm_free(run[step].gradient[i]);
        }
        chm_runtime_destroy(r);
    }
    close_oracle(&o);
    for (int i = 0; i < LEAVES; i++) {
        chm_free(in[i]);
        free(want[i]);
    }
    for (int i = 0; i < OUTS; i++) chm_free(weight[i]);
}

static void gates_at_edges(struct head_case *c, float *const *in) {
    for (int64_t t = 0; t < c->rows; t++) {
        in[REF_ETA][t] = t % 3 == 0 ? 1 : t % 3 == 1 ? 0 : in[REF_ETA][t];
        in[REF_ALPHA][t] = t % 5 == 0 ? 1 : t % 5 == 1 ? 0 : in[REF_ALPHA][t];
        in[REF_THETA][t] = t % 7 == 0 ? 1 : t % 7 == 1 ? 0 : in[REF_THETA][t];
        in[REF_LOG_GAMMA][t] = t % 4 == 0 ? 0 : t % 4 == 1 ? -30 : t % 11 == 2 ? -1e4f : in[REF_LOG_GAMMA][t];
    }
}
static void nothing_forgotten(struct head_case *c, float *const *in) {
    for (int64_t t = 0; t < c->rows; t++) in[REF_ALPHA][t] = in[REF_LOG_GAMMA][t] = 0;
}
static void all_forgotten(struct head_case *c, float *const *in) {
    for (int64_t t = 0; t < c->rows; t++) {
        in[REF_ALPHA][t] = 1;
        in[REF_ETA][t] = 0;
        in[REF_LOG_GAMMA][t] = -30;
    }
}
/* keys of no length, and a memory that was never trained */
static void zero_keys(struct head_case *c, float *const *in) {
    for (int64_t t = 0; t < c->rows; t += 3) {
        memset(in[REF_K] + t * c->d, 0, (size_t)c->d * sizeof(float));
        memset(in[REF_Q] + t * c->d, 0, (size_t)c->d * sizeof(float));
    }
    memset(in[REF_W2], 0, (size_t)(c->d * c->d) * sizeof(float));
}
/* the same token again and again, the largest steps: where stale gradients would run away */
static void repeated(struct head_case *c, float *const *in) {
    for (int64_t t = 1; t < c->rows; t++) {
        memcpy(in[REF_K] + t * c->d, in[REF_K], (size_t)c->d * sizeof(float));
        memcpy(in[REF_V] + t * c->d, in[REF_V], (size_t)c->d * sizeof(float));
        in[REF_THETA][t] = 1;
        in[REF_ALPHA][t] = 0;
    }
}

static void test_recurrence(void **state) {
    (void)state;
    /* name, rows, d, chunk, window, position, core, update, retrieve, carry, reads, bounds, edge */
    static struct head_case cases[] = {
        {"after, anchor, in a chunk's middle, twice", 37, 5, 16, 32, 21, 0, 0, 0, 0, true, 1e-6, 3e-6, NULL, 0},
        {"after, anchor, at an edge", 20, 6, 8, 8, 16, 0, 0, 0, 0, true, 1e-6, 3e-6, NULL, 1},
        {"after, nothing retrieved, core carried", 29, 5, 4, 8, 2, 0, 0, RETRIEVE_NONE, 0.5, true, 1e-6, 3e-6, NULL, 2},
        {"before, current", 33, 5, 7, 14, 3, 0, 1, RETRIEVE_CURRENT, 0, true, 1e-6, 3e-6, NULL, 3},
        {"before, anchor", 33, 5, 7, 14, 0, 0, 1, 0, 1, true, 1e-6, 3e-6, NULL, 4},
        {"before, nothing retrieved", 26, 4, 8, 16, 9, 0, 1, RETRIEVE_NONE, 0, true, 1e-6, 3e-6, NULL, 5},
        {"a window's core: the memory's words only", 30, 5, 8, 16, 11, CORE_WINDOW, 0, 0, 0, true, 1e-6, 3e-6, NULL, 6},
        {"chunks of one", 24, 5, 1, 8, 5, 0, 0, 0, 0, true, 3e-6, 3e-5, NULL, 7},
        {"chunks of one, width 16", 17, 16, 1, 1024, 19, 0, 0, 0, 0, true, 3e-6, -3e-5, NULL, 20},
        {"chunks of 64, few rows", 9, 5, 64, 64, 70, 0, 0, 0, 0, true, 1e-6, 3e-6, NULL, 8},
        {"one row, the first", 1, 5, 16, 32, 0, 0, 0, 0, 0, true, 1e-6, 3e-6, NULL, 9},
        {"width three", 20, 3, 4, 8, 0, 0, 0, 0, 0, false, 2e-6, 1e-5, NULL, 10},
        {"gates at 0 and 1", 40, 5, 16, 32, 3, 0, 0, 0, 0, true, 2e-6, 1e-5, gates_at_edges, 11},
        {"gates at 0 and 1, before", 40, 5, 8, 16, 3, 0, 1, RETRIEVE_CURRENT, 0, true, 2e-6, 1e-5, gates_at_edges, 12},
        {"nothing forgotten", 40, 5, 8, 64, 0, 0, 0, 0, 1, true, 2e-6, 1e-5, nothing_forgotten, 13},
        {"all forgotten", 30, 5, 8, 16, 3, 0, 0, 0, 0, true, 2e-6, 1e-5, all_forgotten, 14},
        {"keys of no length, W2 = 0, before", 30, 5, 8, 16, 0, 0, 1, 0, 0, true, 2e-6, 1e-5, zero_keys, 15},
        {"width 64, two segments", 70, 64, 16, 64, 5, 0, 0, 0, 0, true, 1e-6, -3e-6, NULL, 16},
        {"width 20, chunks of 64", 100, 20, 64, 128, 30, 0, 0, 0, 0, true, 1e-6, -3e-6, NULL, 17},
        {"the same token, largest steps", 300, 12, 16, 1024, 0, 0, 1, 0, 0, false, 1e-5, 0, repeated, 18},
        {"4096 rows", 4096, 8, 16, 1024, 0, 0, 0, 0, 0, false, 2e-6, 0, NULL, 19},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) run_case(&cases[i]);
}

/* ---- the generated tests ---- */

static void test_layers_pass(void **state) {
    (void)state;
    static const struct {
        const char *sets[5];
        uint32_t count;
        int64_t rows;
    } cases[] = {
        {{NULL}, 0, 40},
        {{"num_heads=2", "head_dim=7", "titans.chunk=5", "titans.local_window_size=20", "titans.segment_carry=0.5"},
         5,
         30},
        {{"num_heads=2", "head_dim=12", "titans.update=before", "titans.retrieve=current", "titans.short_conv=0"},
         5,
         24},
        {{"num_heads=2", "head_dim=12", "titans.core=window_softmax", "titans.local_window_size=16"}, 4, 24},
        {{"num_heads=1", "titans.core=window_softmax", "titans.persistent_memory_slots=0", "titans.retrieve=none",
          "titans.update=before"},
         5,
         20},
        {{"titans.chunk=1"}, 1, 17},
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
                                       "read: tree against paths",
                                       "causality: step",
                                       "taped step against step"};
    static const char *const once[] = {"chunk against step: output", "carry",
                                       "causality: chunk",           "read: chunk against step",
                                       "gradient: rows x",           "read: gradient: rows x of the second pass",
                                       "gradient: state log",        "gradient: parameter maps"};
    chm_runtime *r = open_runtime(2, NULL);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        int status;
        char *report = report_of(r, "titans", cases[i].sets, cases[i].count, cases[i].rows, &status);
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

static struct chm_kernels real;

static void broken_outer(float *S, int64_t dk, int64_t dv, const float *q, const float *k, const float *v, float decay,
                         float scale, float *o) {
    real.outer_step(S, dk, dv, q, k, v, decay, scale, o);
    S[0] *= 1.001f;
}
static void broken_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col, const float *b,
                           int64_t ldb, float *c, int64_t ldc, int add) {
    real.block_matmul(m, n, k, a, row, col, b, ldb, c, ldc, add);
    c[0] *= 1.05f;
}
static void broken_l2norm(const float *y, int64_t n, int64_t width, const float *rnorm, const float *dy, float *dx) {
    real.l2norm_backward(y, n, width, rnorm, dy, dx);
    for (int64_t i = 0; i < n * width; i++) dx[i] *= 1.02f;
}

/* The generated tests find mistakes in this layer, too. */
static void test_mistakes_are_found(void **state) {
    (void)state;
    chm_runtime *r = open_runtime(1, NULL);
    struct chm_kernels *k = &r->kernels.kernels;
    real = *k;
    for (int mistake = 0; mistake < 3; mistake++) {
        static const char *const caught[] = {"chunk against step: state", "chunk against step: output",
                                             "gradient: parameter maps"};
        int status;
        *k = real;
        if (mistake == 0) k->outer_step = broken_outer;
        if (mistake == 1) k->block_matmul = broken_product;
        if (mistake == 2) k->l2norm_backward = broken_l2norm;
        const char *const sets[] = {"num_heads=1", "titans.chunk=4", "titans.persistent_memory_slots=3"};
        char *report = report_of(r, "titans", sets, CHM_ARRAY_COUNT(sets), 16, &status);
        assert_int_equal(status, CHM_E_VERDICT);
        if (!says(report, caught[mistake], "f32", "FAIL"))
            fail_msg("mistake %d was not caught by '%s'", mistake, caught[mistake]);
        free(report);
    }
    *k = real;
    chm_runtime_destroy(r);
}

/* ---- the tap, and options ---- */

static int surprises;

static chm_tensor *listen(void *user, chm_graph *g, const char *name, chm_tensor *x) {
    (void)user, (void)g;
    if (strcmp(name, "titans.surprise") == 0) {
        assert_int_equal(x->rows, 20);
        assert_int_equal(x->width, 3);
        for (int64_t i = 0; i < x->rows * x->width; i++) assert_true(x->data[i] > 0 && isfinite(x->data[i]));
        surprises++;
    }
    return x;
}

static void test_surprise(void **state) {
    (void)state;
    enum { ROWS = 20 };
    const chm_layer_options how = {.size = sizeof how, .plugin = "titans"};
    chm_runtime *r = open_runtime(1, NULL);
    chm_layer_alone l;
    if (chm_layer_alone_open(&l, r, &how, NULL, 0, 0.2, true)) fail_msg("%s", chm_error());
    assert_int_equal(chm_model_randomise(l.model, 5), CHM_OK);
    assert_int_equal(chm_model_quantise(l.model, &r->kernels.kernels, r->pool), CHM_OK);
    chm_context *c = NULL;
    assert_int_equal(chm_context_create(&r->kernels.kernels, r->pool, &l.model->layout, 1e-6f, &c), CHM_OK);
    const int64_t width = l.model->config->width;
    float *x = float_space(ROWS * width);
    chm_normals(1, CHM_RANDOM_TEST, 1, ROWS * width, x);
    int32_t parent[ROWS];
    int64_t position[ROWS];
    for (int i = 0; i < ROWS; i++) {
        parent[i] = i ? i - 1 : ~0;
        position[i] = i;
    }
    const chm_rows rows = {ROWS, parent, position};
    chm_context_on_tap(c, listen, NULL);
    assert_int_equal(chm_context_begin(c, &rows, NULL, 1, CHM_PASS_TRAIN), CHM_OK);
    if (!chm_layer_alone_forward(&l, c, chm_input(c, ROWS, width, x, 0))) fail_msg("%d", chm_context_status(c));
    assert_int_equal(surprises, 1);
    chm_free(x);
    chm_context_destroy(c);
    chm_layer_alone_close(&l);
    chm_runtime_destroy(r);
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *set, *words;
    } cases[] = {
        {"titans.chunk=10", "titans.local_window_size is 1024, which chunks of titans.chunk = 10 do not fill"},
        {"titans.chunk=65", "titans.chunk: expected integer 1..64, got 65"},
        {"titans.retrieve=current", "titans.retrieve = current asks the memory after the token's update"},
        {"titans.core=softmax", "titans.core"},
        {"titans.memory_depth=3", "titans.memory_depth"},
        {"titans.chunks=4", "did you mean 'titans.chunk'"},
    };
    chm_runtime *r = open_runtime(1, NULL);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        int status;
        char *report = report_of(r, "titans", &cases[i].set, 1, 20, &status);
        assert_int_equal(status, CHM_E_CONFIG);
        if (!strstr(chm_error(), cases[i].words)) fail_msg("%s: %s", cases[i].set, chm_error());
        free(report);
    }
    chm_runtime_destroy(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_update), cmocka_unit_test(test_recurrence),
        cmocka_unit_test(test_golden_layers),    cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_layers_pass),      cmocka_unit_test(test_mistakes_are_found),
        cmocka_unit_test(test_surprise),         cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("titans", tests, set_up, tear_down);
}
