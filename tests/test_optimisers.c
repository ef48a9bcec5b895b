/* test_optimisers.c: every optimiser's step against f64, MeZO against the gradient, and runs of all of them. */
#include "reference/ref_optimisers.h"
#include "model/runtime.h"
#include "train/trainer.h"

#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
/* after the standard headers */
#include <cmocka.h>

static char folder[256];
static chm_runtime *one, *two;

/* A hidden width that leaves the last pieces short, and matrices that are wide, tall and square. */
static const char card_text[] =
    "{\"token_ids\": [256, 257], \"hidden_size\": 48, \"intermediate_size\": 80, \"num_hidden_layers\": 2,\n"
    "  \"num_heads\": 2, \"head_dim\": 24, \"vocab_size\": 258, \"initializer_range\": 0.05,\n"
    "  \"quantization\": {\"method\": \"bitnet\", \"embedding\": \"int8\"},\n"
    "  \"backbone\": {\"layer_pattern\": \"gd\"}, \"gated_deltanet\": {\"state_size\": 24, \"chunk_size\": 16},\n"
    "  \"tokenizer\": {\"type\": \"bytes\"},\n"
    "  \"training\": {\"phases\": [{\"name\": \"pretrain\", \"seq_len\": 32, \"batch_tokens\": 256, \"lr\": 0.01,\n"
    "    \"micro_tokens\": 128, \"carry_segments\": 3, \"warmup_steps\": 2, \"seed\": 7}]},\n"
    "  \"diagnostics\": {\"report_interval_tokens\": 256}}\n";

/* ---- helpers ---- */

static const char *in_folder(const char *name) {
    static char path[32][512];
    static int used;
    char wanted[512];
    snprintf(wanted, sizeof wanted, "%s/%s", folder, name);
    for (int i = 0; i < used; i++)
        if (strcmp(path[i], wanted) == 0) return path[i];
    assert_in_range(used, 0, 31);
    return strcpy(path[used++], wanted);
}

static void must(int status) {
    if (status != CHM_OK) fail_msg("status %d: %s", status, chm_error());
}

static void refused(int status, int expected, const char *needle) {
    if (status != expected || strstr(chm_error(), needle) == NULL)
        fail_msg("expected status %d with '%s', got %d: %s", expected, needle, status, chm_error());
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
    (void)st, (void)type, (void)walk;
    return remove(path);
}

static void write_file(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static void same_files(const char *a, const char *b) {
    char *x, *y;
    size_t m, n;
    must(chm_read_file(a, UINT64_C(1) << 30, &x, &m));
    must(chm_read_file(b, UINT64_C(1) << 30, &y, &n));
    assert_int_equal(m, n);
    assert_memory_equal(x, y, m);
    chm_free(x);
    chm_free(y);
}

static int set_up(void **state) {
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/chimera-optimisers-XXXXXX", base && *base ? base : "/tmp");
    if (mkdtemp(folder) == NULL) return -1;
    const chm_runtime_options a = {.size = sizeof a, .threads = 1, .verbosity = -1};
    const chm_runtime_options b = {.size = sizeof b, .threads = 2, .verbosity = -1};
    if (chm_runtime_create(&a, &one) != CHM_OK || chm_runtime_create(&b, &two) != CHM_OK) {
        print_error("%s\n", chm_error());
        return -1;
    }
    char text[8000];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = "etaoin shrdlu\n"[chm_below_at(1, CHM_RANDOM_TEST, 0, i / 2 * 2, 14)];
    write_file(in_folder("card.json"), card_text, sizeof card_text - 1);
    write_file(in_folder("text.txt"), text, sizeof text);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    chm_runtime_destroy(one);
    chm_runtime_destroy(two);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}

/* A trainer that stands before a step, with a card and what it was told besides; the corpus is one text. */
typedef struct bench {
    chm_trainer t;
    chm_train_options options;
    int32_t token[400];
    int64_t document[2];
} bench;

static void open_bench(bench *b, chm_runtime *r, const char *const *set, uint32_t sets) {
    const struct chm_card_options how = {.registry = &r->registry, .set = set, .set_count = sets};
    chm_card *card = NULL;
    memset(b, 0, sizeof *b);
    must(chm_card_load(in_folder("card.json"), &how, &card));
    chm_trainer *t = &b->t;
    *t = (chm_trainer){
        .runtime = r, .kernels = &r->kernels.kernels, .pool = r->pool, .options = &b->options, .lock = -1};
    must(chm_model_create(card, &r->registry, &t->model));
    t->config = chm_card_train(t->model->card);
    must(chm_optimiser_open(t));
    for (size_t i = 0; i < CHM_ARRAY_COUNT(b->token); i++)
        b->token[i] = (int32_t)chm_below_at(3, CHM_RANDOM_TEST, 0, i, 40) + 60;
    b->document[1] = (int64_t)CHM_ARRAY_COUNT(b->token);
    t->corpus = (chm_corpus){.token = b->token,
                             .tokens = b->document[1],
                             .document = b->document,
                             .documents = 1,
                             .longest = b->document[1]};
    t->batch = (chm_batch){.corpus = &t->corpus, .seed = 7, .streams = 8, .rows = 32, .carry = t->config->carry};
    t->micro = 4;
    must(chm_train_allocate(t));
    must(chm_model_randomise(t->model, 5));
    must(chm_model_quantise(t->model, t->kernels, t->pool));
}

static void close_bench(bench *b) {
    b->t.corpus = (chm_corpus){0}; /* not a loaded one */
    chm_train_release(&b->t);
}

/* ---- steps against f64 ---- */

static void normals(uint32_t key, uint32_t stream, int64_t n, float *out) {
    chm_normals(key, CHM_RANDOM_TEST, stream, n, out);
}

enum rule { ADAMW, SGD, MUON };
static const struct {
    enum rule rule;
    double momentum;
    bool nesterov;
    int64_t iterations;
    const char *set[5];
    uint32_t sets;
    double tolerance; /* of a parameter's largest weight */
} steps[] = {
    {ADAMW, 0, false, 0, {"training.phases.pretrain.optimizer=AdamW"}, 1, 1e-5},
    {SGD, 0.9, false, 0, {"training.phases.pretrain.optimizer=SGD"}, 1, 1e-5},
    {SGD, 0.9, true, 0, {"training.phases.pretrain.optimizer=SGD", "training.sgd.nesterov=true"}, 2, 1e-5},
    {SGD, 0, false, 0, {"training.phases.pretrain.optimizer=SGD", "training.sgd.momentum=0"}, 2, 1e-5},
    {MUON, 0.95, true, 5, {"training.phases.pretrain.optimizer=Muon"}, 1, 1e-4},
    {MUON,
     0.8,
     false,
     3,
     {"training.phases.pretrain.optimizer=Muon", "training.muon.momentum=0.8", "training.muon.nesterov=false",
      "training.muon.iterations=3"},
     4,
     1e-4},
};

/* Five steps with rates that change, and one that is only rehearsed. */
static void steps_against_f64(void **state) {
    (void)state;
    bench b;
    for (size_t k = 0; k < CHM_ARRAY_COUNT(steps); k++) {
        open_bench(&b, k % 2 ? two : one, steps[k].set, steps[k].sets);
        chm_trainer *t = &b.t;
        const chm_train_config *c = t->config;
        int moved_by_muon = 0;
        double *ref[128][3];
        assert_in_range(t->model->params, 1, 128);
        for (int i = 0; i < t->model->params; i++) {
            const chm_param *p = t->model->param[i];
            for (int a = 0; a < 3; a++) assert_non_null(ref[i][a] = calloc((size_t)p->count, sizeof(double)));
            for (int64_t j = 0; j < p->count; j++) ref[i][0][j] = (double)p->value[j];
        }
        chm_optimiser_clear(t);
        for (int64_t step = 1; step <= 5; step++) {
            const double lr = 0.01 / (double)step, decay = step == 3 ? 0 : 0.1, gscale = step == 2 ? 0.25 : 1;
            for (int i = 0; i < t->model->params; i++) {
                const chm_param *p = t->model->param[i];
                if (p->role == CHM_ROLE_OWN) continue;
                normals((uint32_t)step, (uint32_t)i, p->count, p->grad);
                double *g = malloc((size_t)p->count * sizeof *g);
                assert_non_null(g);
                for (int64_t j = 0; j < p->count; j++) g[j] = gscale * (double)p->grad[j];
                const double d = p->decay ? decay : 0;
                const bool matrix = p->role == CHM_ROLE_TERNARY && p->rank == 2;
                if (steps[k].rule == MUON && matrix) {
                    moved_by_muon++;
                    ref_muon(ref[i][0], g, ref[i][1], p->out, p->in, lr, steps[k].momentum, steps[k].nesterov,
                             steps[k].iterations, d);
                } else if (steps[k].rule == SGD) {
                    ref_sgd(ref[i][0], g, steps[k].momentum > 0 ? ref[i][1] : NULL, p->count, lr, steps[k].momentum,
                            steps[k].nesterov, d);
                } else {
                    ref_adamw(ref[i][0], g, ref[i][1], ref[i][2], p->count, lr, c->beta1, c->beta2, c->adam_eps, d,
                              step);
                }
                free(g);
            }
            chm_optimiser_update(t, (float)gscale, lr, decay, step, false);
        }
        assert_int_equal(moved_by_muon > 0, steps[k].rule == MUON);
        for (int i = 0; i < t->model->params; i++) {
            const chm_param *p = t->model->param[i];
            float *before = malloc((size_t)p->count * sizeof *before);
            assert_non_null(before);
            double worst = 0, largest = 1e-9;
            for (int64_t j = 0; j < p->count; j++) {
                worst = fmax(worst, fabs((double)p->value[j] - ref[i][0][j]));
                largest = fmax(largest, fabs(ref[i][0][j]));
                if (p->grad) assert_true(p->grad[j] == 0);
            }
            if (!(worst <= steps[k].tolerance * largest))
                fail_msg("case %zu, %s: off by %g where weights reach %g", k, p->name, worst, largest);
            /* a rehearsal moves no weight */
            memcpy(before, p->value, (size_t)p->count * sizeof *before);
            if (p->grad) normals(9, (uint32_t)i, p->count, p->grad);
            chm_optimiser_update(t, 1, 0.1, 0.1, 6, true);
            assert_memory_equal(before, p->value, (size_t)p->count * sizeof *before);
            free(before);
            for (int a = 0; a < 3; a++) free(ref[i][a]);
        }
        close_bench(&b);
    }
}

/* Newton and Schulz bring every singular value of a step near 1, whatever those of the gradient are. */
static void muon_is_orthogonal(void **state) {
    (void)state;
    bench b;
    open_bench(&b, one, steps[4].set, steps[4].sets);
    chm_trainer *t = &b.t;
    int seen = 0;
    for (int i = 0; i < t->model->params; i++) {
        chm_param *p = t->model->param[i];
        if (p->role != CHM_ROLE_TERNARY || p->rank != 2) continue;
        normals(2, (uint32_t)i, p->count, p->grad);
        memset(p->value, 0, (size_t)p->count * sizeof *p->value);
        seen++;
    }
    assert_true(seen > 4);
    chm_optimiser_clear(t);
    chm_optimiser_update(t, 1, 1, 0, 1, false);
    for (int i = 0; i < t->model->params; i++) {
        const chm_param *p = t->model->param[i];
        if (p->role != CHM_ROLE_TERNARY || p->rank != 2) continue;
        const int64_t rows = CHM_MIN(p->out, p->in), columns = CHM_MAX(p->out, p->in);
        double *x = malloc((size_t)p->count * sizeof *x), value[128];
        assert_non_null(x);
        assert_in_range(rows, 1, 128);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < columns; j++)
                x[r * columns + j] = (double)p->value[p->out > p->in ? j * p->in + r : r * p->in + j];
        ref_singular_values(x, rows, columns, value);
        int near = 0;
        for (int64_t r = 0; r < rows; r++) {
            const double s = value[r] / (0.2 * sqrt((double)columns));
            assert_true(s < 1.3);
            near += s > 0.6;
        }
        /* those of a square matrix reach down to where five iterations do not lift them all the way */
        assert_true(near >= rows * 9 / 10);
        free(x);
    }
    close_bench(&b);
}

/* ---- weights near zero ---- */

static void deep_zeros_stay(void **state) {
    (void)state;
    for (int muon = 0; muon < 2; muon++) {
        const char *set[] = {"training.deep_zero_mask=true", "quantization.embedding=ternary",
                             muon ? "training.phases.pretrain.optimizer=Muon"
                                  : "training.phases.pretrain.optimizer=AdamW"};
        bench b;
        open_bench(&b, muon ? two : one, set, 3);
        chm_trainer *t = &b.t;
        int64_t still = 0, all = 0, wrong = 0;
        for (int i = 0; i < t->model->params; i++)
            if (t->model->param[i]->grad) normals(2, (uint32_t)i, t->model->param[i]->count, t->model->param[i]->grad);
        float *before[128];
        for (int i = 0; i < t->model->params; i++) {
            const chm_param *p = t->model->param[i];
            before[i] = malloc((size_t)p->count * sizeof(float));
            assert_non_null(before[i]);
            memcpy(before[i], p->value, (size_t)p->count * sizeof(float));
        }
        chm_optimiser_clear(t);
        chm_optimiser_mask(t);
        for (int i = 0; i < t->model->params; i++) {
            const chm_param *p = t->model->param[i];
            for (int64_t j = 0; p->grad && j < p->count; j++)
                if (p->format != CHM_FORMAT_TERNARY) assert_true(p->grad[j] != 0);
        }
        chm_optimiser_update(t, 1, 0.01, 0.1, 1, false);
        for (int i = 0; i < t->model->params; i++) {
            const chm_param *p = t->model->param[i];
            for (int64_t j = 0; p->format == CHM_FORMAT_TERNARY && j < p->count; j++) {
                /* the scale of its group, from the weights as they were */
                const int64_t row = j / p->in, group = j % p->in / p->ternary.group;
                const int64_t from = group * p->ternary.group, to = CHM_MIN(from + p->ternary.group, p->in);
                double scale = 0;
                for (int64_t x = from; x < to; x++)
                    scale += fabs((double)before[i][row * p->in + x]) / (double)(to - from);
                const double ratio = fabs((double)before[i][j]) / scale;
                const bool stood = before[i][j] == p->value[j];
                all++;
                still += stood;
                /* stored scales are rounded to 8 bits of the largest of a row */
                if (ratio < 0.295) wrong += !stood;
                if (ratio > 0.305) wrong += stood;
            }
            free(before[i]);
        }
        assert_int_equal(wrong, 0);
        assert_float_equal(t->run.frozen, (double)still / (double)all, 1e-12);
        assert_true(t->run.frozen > 0.15 && t->run.frozen < 0.23); /* of normal weights: 0.189 */
        close_bench(&b);
    }
}

/* ---- MeZO ---- */

static const char *const smooth[] = {"training.phases.pretrain.optimizer=MeZO", "quantization.method=none",
                                     "quantization.embedding=f32", "training.mezo.epsilon=0.00003",
                                     "training.phases.pretrain.carry_segments=1"};

/* The derivative that two passes measure is that of the analytic gradient, and its root mean square the gradient's
 * norm. */
static void slope_is_the_gradient(void **state) {
    (void)state;
    enum { DIRECTIONS = 200 };
    bench with, without;
    for (int signs = 0; signs < 2; signs++) {
        const char *set[] = {smooth[0], smooth[1],
                             smooth[2], smooth[3],
                             smooth[4], signs ? "training.mezo.directions=signs" : "training.mezo.directions=normal"};
        const char *adam[] = {smooth[1], smooth[2], smooth[4]};
        open_bench(&without, two, set, 6);
        open_bench(&with, two, adam, 3);
        chm_trainer *t = &without.t, *g = &with.t;
        const int64_t all = chm_batch_targets(&g->batch, 0);
        double loss, squares = 0, norm, error = 0, size = 0;
        int64_t counted;
        chm_train_plan(g, 0);
        for (int64_t s = 0, n; s < g->batch.streams; s += n) {
            n = chm_train_group(g, s);
            must(chm_train_micro(g, 0, s, n, g->batch.rows, 1.0f / (float)all, &loss, &counted));
        }
        norm = chm_optimiser_norm(g);
        for (int i = 0; i < DIRECTIONS; i++) {
            double measured, expected = 0;
            t->config = chm_card_train(t->model->card);
            chm_train_config c = *t->config; /* another seed: another direction at the same step */
            c.seed = 100 + (uint64_t)i;
            t->config = &c;
            chm_train_plan(t, 0);
            must(chm_mezo_passes(t, all, &loss, &counted, &measured));
            const double sign = chm_mezo_slope(t, 0) < 0 ? -1 : 1;
            chm_mezo_undo(t);
            for (int p = 0; p < t->model->params; p++) {
                const chm_param *q = g->model->param[p];
                float *z = malloc((size_t)q->count * sizeof *z);
                assert_non_null(z);
                chm_mezo_direction(t, 0, t->model->param[p], 0, q->count, z);
                for (int64_t j = 0; j < q->count; j++) {
                    expected += (double)q->grad[j] * (double)z[j];
                    if (signs) assert_true(z[j] == 1 || z[j] == -1);
                }
                free(z);
            }
            error += (sign * measured - expected) * (sign * measured - expected);
            size += expected * expected;
            squares += measured * measured;
            t->config = chm_card_train(t->model->card);
        }
        const double off = sqrt(error / size), rms = sqrt(squares / DIRECTIONS) / norm;
        if (!(off < 0.005)) fail_msg("the measured slopes are off by %g", off);
        /* of 200 normal numbers: a deviation of 5 % */
        if (!(rms > 0.8 && rms < 1.2)) fail_msg("the slopes' root mean square is %g of the gradient's norm", rms);
        close_bench(&with);
        close_bench(&without);
    }
}

/* No gradients, nothing kept, no tape; and the weights are back where they were, as far as f32 leads. */
static void memory_of_inference(void **state) {
    (void)state;
    bench mezo, adam;
    const char *set[] = {"training.phases.pretrain.optimizer=MeZO"};
    open_bench(&mezo, one, set, 1);
    open_bench(&adam, one, NULL, 0);
    chm_trainer *t = &mezo.t, *g = &adam.t;
    double loss, norm;
    int64_t counted;
    for (int i = 0; i < t->model->params; i++) {
        assert_null(t->model->param[i]->grad);
        assert_null(t->model->param[i]->dequant);
        assert_int_equal(chm_optimiser_arrays(t, i), 0);
        assert_int_equal(chm_optimiser_arrays(g, i), 2);
    }
    assert_int_equal(chm_optimiser_bytes(t), 0);
    assert_true(chm_optimiser_bytes(g) > 0);
    chm_train_plan(t, 0);
    chm_train_plan(g, 0);
    must(chm_train_micro(g, 0, 0, 4, 32, 1, &loss, &counted));
    must(chm_mezo_passes(t, 256, &loss, &counted, &norm));
    assert_true(norm > 0 && isfinite(norm));
    /* an inference pass over as many rows, in a context of its own */
    chm_context *plain;
    must(chm_context_create(t->kernels, t->pool, &t->model->layout, 1e-6f, &plain));
    const chm_rows rows = {.count = 128, .parent = t->parent, .position = t->position};
    must(chm_context_begin(plain, &rows, t->slot, 4, CHM_PASS_COMMIT));
    assert_non_null(chm_model_forward(t->model, plain, t->id, NULL, NULL, NULL));
    print_message("bytes of a pass: %zu of inference, %zu of MeZO, %zu of AdamW\n", chm_context_bytes(plain),
                  chm_context_bytes(t->context), chm_context_bytes(g->context));
    assert_true(chm_context_bytes(t->context) < chm_context_bytes(plain));
    assert_true(chm_context_bytes(t->context) < chm_context_bytes(g->context) / 2);
    chm_context_destroy(plain);
    chm_mezo_undo(t);
    for (int i = 0; i < t->model->params; i++)
        for (int64_t j = 0; j < t->model->param[i]->count; j++) {
            const double was = (double)g->model->param[i]->value[j], is = (double)t->model->param[i]->value[j];
            assert_true(fabs(is - was) <= 4e-7 * (fabs(was) + 0.01));
        }
    close_bench(&mezo);
    close_bench(&adam);
}

/* The whole of an update in f64, and with zeros skipped: those stand to the byte. */
static void mezo_update(void **state) {
    (void)state;
    static const struct {
        const char *set[6];
        uint32_t sets;
        double least, most; /* share of the zeros of ternary matrices that move */
    } cases[] = {
        {{"training.mezo.samples=1"}, 1, 1, 1},
        {{"training.mezo.samples=3", "training.mezo.directions=signs"}, 2, 1, 1},
        {{"training.mezo.skip_zeros=true", "training.mezo.revive=0"}, 2, 0, 0},
        {{"training.mezo.skip_zeros=true", "training.mezo.revive=0.25", "training.mezo.samples=2"}, 3, 0.23, 0.27},
        {{"training.mezo.skip_zeros=true", "training.mezo.revive=1"}, 2, 1, 1},
        {{"training.mezo.parameters=unpacked"}, 1, 0, 0},
    };
    for (size_t k = 0; k < CHM_ARRAY_COUNT(cases); k++) {
        const char *set[8] = {"training.phases.pretrain.optimizer=MeZO"};
        bench b;
        for (uint32_t i = 0; i < cases[k].sets; i++) set[i + 1] = cases[k].set[i];
        open_bench(&b, two, set, cases[k].sets + 1);
        chm_trainer *t = &b.t;
        const struct chm_mezo_config *c = &t->config->mezo;
        const double lr = 0.03, decay = 0.1, gscale = 0.5;
        double loss, norm, squares = 0;
        int64_t counted, zeros = 0, moved = 0;
        float *before[128];
        uint8_t *zero[128];
        for (int i = 0; i < t->model->params; i++) {
            const chm_param *p = t->model->param[i];
            before[i] = malloc((size_t)p->count * sizeof(float));
            zero[i] = calloc((size_t)p->count, 1);
            assert_true(before[i] && zero[i]);
            memcpy(before[i], p->value, (size_t)p->count * sizeof(float));
            for (int64_t r = 0; p->format == CHM_FORMAT_TERNARY && r < p->out; r++) {
                float row[512];
                chm_param_row(p, r, row);
                for (int64_t j = 0; j < p->in; j++) zero[i][r * p->in + j] = row[j] == 0;
            }
        }
        t->run.step = 4;
        chm_train_plan(t, 4);
        must(chm_mezo_passes(t, chm_batch_targets(&t->batch, 4), &loss, &counted, &norm));
        assert_int_equal(counted, chm_batch_targets(&t->batch, 4));
        assert_true(loss / (double)counted > 4 && loss / (double)counted < 7);
        for (int64_t s = 0; s < c->samples; s++) squares += chm_mezo_slope(t, s) * chm_mezo_slope(t, s);
        assert_float_equal(norm, sqrt(squares / (double)c->samples) / c->epsilon, 1e-9 * norm);
        chm_mezo_update(t, gscale, lr, decay);
        for (int i = 0; i < t->model->params; i++) {
            const chm_param *p = t->model->param[i];
            double e = c->epsilon, mean = 0;
            for (int64_t j = 0; j < p->count; j++) mean += fabs((double)before[i][j]) / (double)p->count;
            if (p->format == CHM_FORMAT_TERNARY) e = c->ternary_epsilon * mean;
            double *w = malloc((size_t)p->count * sizeof *w);
            float *z = malloc((size_t)p->count * sizeof *z);
            assert_true(w && z);
            for (int64_t j = 0; j < p->count; j++) w[j] = (double)before[i][j] * (1 - (p->decay ? lr * decay : 0));
            for (int64_t s = 0; s < c->samples; s++) {
                chm_mezo_direction(t, s, p, 0, p->count, z);
                for (int64_t j = 0; j < p->count; j++)
                    w[j] -= lr * gscale / (double)c->samples * chm_mezo_slope(t, s) / e * (double)z[j];
            }
            for (int64_t j = 0; j < p->count; j++) {
                const bool stood = memcmp(&before[i][j], &p->value[j], sizeof(float)) == 0;
                const bool left =
                    (c->unpacked && p->format != CHM_FORMAT_F32) || (c->skip_zeros && c->revive == 0 && zero[i][j]);
                if (zero[i][j]) {
                    zeros++;
                    moved += !stood;
                }
                if (left)
                    assert_true(stood);
                else if (!(zero[i][j] && c->skip_zeros && stood) &&
                         !(fabs((double)p->value[j] - w[j]) <= 2e-6 * (fabs(w[j]) + 0.02)))
                    fail_msg("case %zu, %s[%lld]: %.9g, expected %.9g", k, p->name, (long long)j, (double)p->value[j],
                             w[j]);
            }
            free(w);
            free(z);
            free(before[i]);
            free(zero[i]);
        }
        assert_true(zeros > 5000);
        const double share = (double)moved / (double)zeros;
        if (!(share >= cases[k].least - 1e-3 && share <= cases[k].most))
            fail_msg("case %zu: %g of the zeros moved", k, share);
        if (c->skip_zeros)
            assert_true(t->run.frozen >= 0.2 * (1 - c->revive) && t->run.frozen <= 0.4 * (1 - c->revive));
        close_bench(&b);
    }
}

/* ---- gradient checkpointing ---- */

/* The same gradients, tallies, states and loss to the byte, over passes that carry states, of every kind of layer; and
 * less memory, but for what is in a loop. */
static void computed_again(void **state) {
    (void)state;
    static const char *const layers[] = {"num_hidden_layers=6",
                                         "backbone.layer_pattern=gd xlstm titans sk attn gd",
                                         "tsp_knot.sketch_bits=1024",
                                         "titans.local_window_size=32",
                                         "backbone.moe.enabled=true",
                                         "backbone.moe.layers=[1, 3]",
                                         "backbone.moe.n_routed_experts=4",
                                         "backbone.moe.moe_intermediate_size=32",
                                         "diagnostics.metrics=[gd_beta_mean]"};
    static const char *const loop[] = {"looping.enabled=true", "looping.prelude=[0,1]", "looping.loop=[2,3]",
                                       "looping.coda=[4,5]"};
    enum { LAYERS = CHM_ARRAY_COUNT(layers), LOOP = CHM_ARRAY_COUNT(loop) };
    for (int k = 0; k < 3; k++) {
        const bool looped = k == 1;
        const char *set[LAYERS + LOOP + 1];
        uint32_t sets = 0;
        bench b[2];
        double loss[2];
        int64_t counted;
        for (uint32_t i = 0; i < LAYERS; i++) set[sets++] = layers[i];
        for (uint32_t i = 0; i < LOOP && looped; i++) set[sets++] = loop[i];
        if (k == 2) set[sets++] = "training.phases.pretrain.carry_segments=1";
        set[sets] = "training.gradient_checkpointing=true";
        open_bench(&b[0], one, set, sets);
        open_bench(&b[1], two, set, sets + 1);
        for (int64_t step = 0; step < 3; step++)
            for (int at = 0; at < 2; at++) {
                chm_train_plan(&b[at].t, step);
                for (int64_t s = 0, n; s < 8; s += n) {
                    n = chm_train_group(&b[at].t, s);
                    must(chm_train_micro(&b[at].t, step, s, n, 32, 0.01f, &loss[at], &counted));
                }
            }
        assert_memory_equal(&loss[0], &loss[1], sizeof loss[0]);
        const chm_model *m[] = {b[0].t.model, b[1].t.model};
        int tallies = 0;
        for (int i = 0; i < m[0]->params; i++) {
            const size_t bytes = (size_t)m[0]->param[i]->count * sizeof(float);
            const bool own = m[0]->param[i]->grad == NULL;
            const float *x = own ? m[0]->param[i]->tally : m[0]->param[i]->grad;
            const float *y = own ? m[1]->param[i]->tally : m[1]->param[i]->grad;
            tallies += own && x[0] > 0;
            if (memcmp(x, y, bytes) != 0) fail_msg("%s differs", m[0]->param[i]->name);
        }
        assert_int_equal(tallies, 2);
        for (int s = 0; s < 8 && b[0].t.stream != NULL; s++)
            assert_memory_equal(b[0].t.stream[s].blob, b[1].t.stream[s].blob, m[0]->layout.bytes);
        assert_true(b[0].t.run.shown.gd_beta_mean.count > 0);
        assert_int_equal(b[0].t.run.shown.gd_beta_mean.count, b[1].t.run.shown.gd_beta_mean.count);
        const size_t plain = chm_context_bytes(b[0].t.context), less = chm_context_bytes(b[1].t.context);
        print_message("%s: bytes of a pass: %zu, computed again %zu\n", looped ? "loop" : "no loop", plain, less);
        assert_true(less < plain * (looped ? 95 : 60) / 100);
        close_bench(&b[0]);
        close_bench(&b[1]);
    }
}

/* ---- whole runs ---- */

static volatile int stop;
static int64_t stop_at;

static void on_progress(void *user, const chm_progress *p) {
    (void)user;
    if (p->message == NULL && stop_at >= 0 && p->step >= stop_at) stop = 1;
}

static int train(chm_runtime *r, const char *out, const char *const *set, uint32_t sets, bool resume, int64_t until) {
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = set, .set_count = sets};
    const char *data = in_folder("text.txt");
    stop = 0;
    stop_at = until;
    const chm_train_options options = {
        .size = sizeof options,
        .card = in_folder("card.json"),
        .overlay = &overlay,
        .data = &data,
        .data_count = 1,
        .out = out,
        .tokens = 7 * 256,
        .resume = resume,
        .progress = on_progress,
        .stop = &stop,
    };
    return chm_train(r, &options, NULL);
}

static const char *const runs[][6] = {
    {"training.phases.pretrain.optimizer=AdamW", "training.deep_zero_mask=true"},
    {"training.phases.pretrain.optimizer=SGD", "training.sgd.nesterov=true"},
    {"training.phases.pretrain.optimizer=SGD", "training.sgd.momentum=0"},
    {"training.phases.pretrain.optimizer=Muon"},
    {"training.phases.pretrain.optimizer=Muon", "training.deep_zero_mask=true"},
    {"training.phases.pretrain.optimizer=MeZO"},
    {"training.phases.pretrain.optimizer=MeZO", "training.mezo.samples=2", "training.mezo.skip_zeros=true",
     "training.mezo.directions=signs", "training.phases.pretrain.carry_segments=1"},
    {"training.phases.pretrain.optimizer=MeZO", "num_hidden_layers=3", "looping.prelude=[0,0]", "looping.loop=[1,1]",
     "looping.coda=[2,2]", "looping.enabled=true"},
    {"training.gradient_checkpointing=true"},
};

/* On one thread at once, and on two in three sittings: the same model, and a checkpoint of the same tensors. */
static void same_bytes(void **state) {
    (void)state;
    for (size_t k = 0; k < CHM_ARRAY_COUNT(runs); k++) {
        uint32_t sets = 0;
        while (sets < 6 && runs[k][sets]) sets++;
        nftw(in_folder("whole"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
        nftw(in_folder("parts"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
        must(train(one, in_folder("whole"), runs[k], sets, false, -1));
        refused(train(two, in_folder("parts"), runs[k], sets, false, 2), CHM_E_INTERRUPTED, "everything is saved");
        refused(train(two, in_folder("parts"), runs[k], sets, true, 5), CHM_E_INTERRUPTED, "everything is saved");
        /* with another optimiser it is refused by name */
        const char *others_set[7];
        memcpy(others_set, runs[k], sets * sizeof *others_set);
        others_set[sets] =
            k == 3 || k == 4 ? "training.phases.pretrain.optimizer=SGD" : "training.phases.pretrain.optimizer=Muon";
        refused(train(one, in_folder("parts"), others_set, sets + 1, true, -1), CHM_E_CONFIG,
                "optimizer: the run has \"");
        must(train(two, in_folder("parts"), runs[k], sets, true, -1));
        same_files(in_folder("whole/model.b158"), in_folder("parts/model.b158"));

        /* a checkpoint has the weights and what its optimiser keeps, no more */
        chm_map map[2];
        chm_safetensors *file[2];
        int weights = 0, first = 0, second = 0, others = 0;
        const char *paths[] = {in_folder("whole/checkpoint.safetensors"), in_folder("parts/checkpoint.safetensors")};
        for (int i = 0; i < 2; i++) {
            must(chm_map_open(&map[i], paths[i]));
            must(chm_safetensors_parse(paths[i], map[i].data, map[i].size, &file[i]));
        }
        assert_int_equal(file[0]->count, file[1]->count);
        for (int i = 0; i < file[0]->count; i++) {
            const chm_st_tensor *a = &file[0]->tensor[i], *b = &file[1]->tensor[i];
            assert_string_equal(a->name, b->name);
            assert_int_equal(a->bytes, b->bytes);
            assert_memory_equal(a->data, b->data, a->bytes);
            weights += strncmp(a->name, "value/", 6) == 0;
            first += strncmp(a->name, "adam_m/", 7) == 0 || strncmp(a->name, "state_0/", 8) == 0;
            second += strncmp(a->name, "adam_v/", 7) == 0;
            others += strncmp(a->name, "state_1/", 8) == 0;
        }
        const bool mezo = k >= 5 && k <= 7, plain = k == 2, sgd = k == 1;
        assert_int_equal(first, mezo || plain ? 0 : weights);
        if (k == 0 || k == 8) assert_int_equal(second, weights);
        if (k == 3) assert_true(second > 0 && second < weights);
        if (mezo || plain || sgd) assert_int_equal(second, 0);
        assert_int_equal(others, 0);
        for (int i = 0; i < 2; i++) {
            chm_safetensors_destroy(file[i]);
            chm_map_close(&map[i]);
        }
    }
}

/* What a card may say of optimisers, and what it may not. */
static void refused_cards(void **state) {
    (void)state;
    static const struct {
        const char *set[3], *sentence;
    } wrong[] = {
        {{"training.phases.pretrain.optimizer=Mouon"}, "no optimiser 'Mouon' (did you mean 'Muon'?)"},
        {{"training.phases.pretrain.optimizer=Zeus"}, "no optimiser 'Zeus': there are AdamW, MeZO and those of"},
        {{"training.phases.pretrain.optimizer=gd"}, "no optimiser 'gd'"},
        {{"training.muon.iterations=9"}, "training.muon.iterations: expected integer 3..5, got 9"},
        {{"training.mezo.directions=sign"}, "did you mean 'signs'?"},
        {{"training.phases.pretrain.optimizer=MeZO", "training.deep_zero_mask=true"},
         "masks gradients, and MeZO has none"},
        {{"training.phases.pretrain.optimizer=MeZO", "training.mezo.skip_zeros=true",
          "training.mezo.parameters=unpacked"},
         "ternary weights are left alone already"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(wrong); i++) {
        uint32_t sets = 0;
        while (sets < 3 && wrong[i].set[sets]) sets++;
        refused(train(one, in_folder("none"), wrong[i].set, sets, false, -1), CHM_E_CONFIG, wrong[i].sentence);
        assert_int_equal(access(in_folder("none"), F_OK), -1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_against_f64),   cmocka_unit_test(muon_is_orthogonal),
        cmocka_unit_test(deep_zeros_stay),     cmocka_unit_test(slope_is_the_gradient),
        cmocka_unit_test(memory_of_inference), cmocka_unit_test(mezo_update),
        cmocka_unit_test(computed_again),      cmocka_unit_test(same_bytes),
        cmocka_unit_test(refused_cards),
    };
    return cmocka_run_group_tests_name("optimisers", tests, set_up, tear_down);
}
