/* test_tasks.c: synthetic tasks, documents that are lines, and losses and scores of answers alone. */
#include "model/runtime.h"
#include "train/train.h"

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
static chm_runtime *runtime;

static const char card_text[] =
    "{\n"
    "  \"token_ids\": [256, 257], \"hidden_size\": 32, \"intermediate_size\": 64, \"num_hidden_layers\": 3,\n"
    "  \"num_heads\": 2, \"head_dim\": 16, \"vocab_size\": 258, \"initializer_range\": 0.1,\n"
    "  \"quantization\": {\"method\": \"bitnet\", \"embedding\": \"int8\"},\n"
    "  \"backbone\": {\"layer_pattern\": \"gd xlstm titans\"},\n"
    "  \"tokenizer\": {\"type\": \"bytes\"},\n"
    "  \"training\": {\"documents\": \"line\", \"loss_on\": \"answers\", \"phases\": [{\n"
    "    \"name\": \"pretrain\", \"tokens\": 8192, \"seq_len\": 64, \"batch_tokens\": 256, \"lr\": 0.01, \"seed\": "
    "7}]}\n"
    "}\n";

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

static void write_text(const char *name, const char *text) {
    FILE *f = fopen(in_folder(name), "wb");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void must(int status) {
    if (status != CHM_OK) fail_msg("status %d: %s", status, chm_error());
}

static void refused(int status, int expected, const char *needle) {
    if (status != expected || strstr(chm_error(), needle) == NULL)
        fail_msg("expected status %d with '%s', got %d: %s", expected, needle, status, chm_error());
}

__attribute__((noinline)) static char *slurp(const char *path, size_t *size) {
    char *text = NULL;
    if (chm_read_file(path, UINT64_C(1) << 30, &text, size) != CHM_OK) fail_msg("%s", chm_error());
    return text;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
    (void)st, (void)type, (void)walk;
    return remove(path);
}

static int set_up(void **state) {
    (void)state;
    const chm_runtime_options options = {.size = sizeof options, .threads = 2};
    snprintf(folder, sizeof folder, "/tmp/chimera-tasks-XXXXXX");
    if (mkdtemp(folder) == NULL) return -1;
    write_text("card.json", card_text);
    return chm_runtime_create(&options, &runtime);
}

static int tear_down(void **state) {
    (void)state;
    chm_runtime_destroy(runtime);
    return nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- the tasks ---- */

static chm_task_options task(chm_task which, int64_t documents, int64_t least, int64_t most) {
    return (chm_task_options){.size = sizeof(chm_task_options),
                              .task = which,
                              .out = in_folder("task.txt"),
                              .seed = 3,
                              .documents = documents,
                              .least = least,
                              .most = most,
                              .rebound = 0.5,
                              .queries = 3,
                              .alphabet = 26};
}

/* The answer by the definition, from the bits alone. */
static void bits(void **state) {
    (void)state;
    for (int majority = 0; majority < 2; majority++) {
        chm_task_options o = task(majority ? CHM_TASK_MAJORITY : CHM_TASK_PARITY, 3000, 1, 20);
        size_t bytes;
        must(chm_task_write(&o));
        char *text = slurp(o.out, &bytes), *save = NULL;
        int count[21] = {0}, answers[2] = {0}, documents = 0;
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save), documents++) {
            const size_t n = strspn(line, "01");
            int sum = 0;
            assert_in_range(n, 1, 20);
            count[n]++;
            for (size_t i = 0; i < n; i++) sum += line[i] == '1' ? 1 : majority ? -1 : 0;
            assert_true(!majority || sum != 0);
            const char expected[] = {'=', (char)('0' + (majority ? sum > 0 : sum & 1)), '\0'};
            assert_string_equal(line + n, expected);
            answers[expected[1] - '0']++;
        }
        assert_int_equal(documents, 3000);
        for (int n = 1; n <= 20; n++) assert_in_range(count[n], 90, 220); /* 150 each, give or take 5 sigma */
        assert_in_range(answers[0], 1350, 1650);
        chm_free(text);
    }
}

static void bindings(void **state) {
    (void)state;
    static const double share[] = {0, 0.5, 0.75};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(share); k++) {
        chm_task_options o = task(CHM_TASK_MQAR, 1000, 12, 24);
        o.rebound = share[k];
        size_t bytes;
        must(chm_task_write(&o));
        char *text = slurp(o.out, &bytes), *save = NULL;
        int64_t stale = 0, queries = 0;
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
            char first[26] = {0}, latest[26] = {0};
            int64_t n = 0, again = 0;
            for (; *line != ' '; line += 2, n++) {
                assert_in_range(line[0], 'a', 'z');
                assert_in_range(line[1], 'A', 'Z');
                const int key = line[0] - 'a';
                assert_true(line[1] != latest[key]); /* bound again it has another value */
                again += latest[key] != 0;
                if (latest[key] == 0) first[key] = line[1];
                latest[key] = line[1];
            }
            assert_in_range(n, 12, 24);
            assert_int_equal(again, (int64_t)(share[k] * (double)n));
            bool asked[26] = {0};
            int64_t here = 0;
            for (line++; *line; line += 3, here++) {
                const int key = line[0] - 'a';
                assert_in_range(key, 0, 25);
                assert_int_equal(line[1], '=');
                assert_int_equal(line[2], latest[key]);
                assert_false(asked[key]);
                asked[key] = true;
                stale += first[key] != latest[key];
            }
            assert_int_equal(here, 3);
            queries += here;
        }
        assert_int_equal(queries, 3000);
        assert_true(share[k] == 0 ? stale == 0 : stale > 900); /* what the rebound share is there for */
        chm_free(text);
    }
}

/* A document is a function of (options, seed, index). */
static void documents_are_functions(void **state) {
    (void)state;
    for (int which = CHM_TASK_MQAR; which <= CHM_TASK_MAJORITY; which++) {
        chm_task_options o = task((chm_task)which, 50, 12, 24);
        size_t few, many, other;
        must(chm_task_write(&o));
        char *a = slurp(o.out, &few);
        o.documents = 200;
        must(chm_task_write(&o));
        char *b = slurp(o.out, &many);
        assert_true(many > few);
        assert_memory_equal(a, b, few);
        o.seed = 4;
        must(chm_task_write(&o));
        char *c = slurp(o.out, &other);
        assert_true(other != many || memcmp(b, c, many) != 0);
        chm_free(a);
        chm_free(b);
        chm_free(c);
    }
}

static void refused_tasks(void **state) {
    (void)state;
    chm_task_options o = task(CHM_TASK_PARITY, 0, 1, 2);
    refused(chm_task_write(&o), CHM_E_CONFIG, "0 documents");
    o = task(CHM_TASK_PARITY, 1, 9, 8);
    refused(chm_task_write(&o), CHM_E_CONFIG, "the least length 9 is above the greatest, 8");
    o = task(CHM_TASK_PARITY, 1, 0, 8);
    refused(chm_task_write(&o), CHM_E_CONFIG, "lengths 0..8");
    o = task(CHM_TASK_MAJORITY, 1, 1, CHM_TASK_LENGTH_MAX + 1);
    refused(chm_task_write(&o), CHM_E_CONFIG, "expected some of 1..");
    o = task(CHM_TASK_MQAR, 1, 53, 53);
    refused(chm_task_write(&o), CHM_E_CONFIG, "need 27 keys, and the alphabet has 26");
    o = task(CHM_TASK_MQAR, 1, 4, 8);
    refused(chm_task_write(&o), CHM_E_CONFIG, "4 bindings has 2 distinct keys");
    o = task(CHM_TASK_MQAR, 1, 4, 8);
    o.rebound = (double)NAN;
    refused(chm_task_write(&o), CHM_E_CONFIG, "expected 0..1");
    o = task(CHM_TASK_MQAR, 1, 4, 8);
    o.alphabet = 27;
    refused(chm_task_write(&o), CHM_E_CONFIG, "an alphabet of 27");
    o = task((chm_task)3, 1, 4, 8);
    refused(chm_task_write(&o), CHM_E_CONFIG, "no task 3");
    o.size = 1;
    refused(chm_task_write(&o), CHM_E_CONFIG, "size 1");
    o = task(CHM_TASK_PARITY, 1, 4, 8);
    o.out = in_folder("nowhere/task.txt");
    refused(chm_task_write(&o), CHM_E_DATA, "nowhere");
    o = task(CHM_TASK_PARITY, 1000, 4, 8);
    const int stop = 1;
    o.stop = &stop;
    o.out = in_folder("stopped.txt");
    refused(chm_task_write(&o), CHM_E_INTERRUPTED, "nothing is kept");
    assert_int_equal(access(o.out, F_OK), -1);
}

/* ---- lines as documents ---- */

/* Pairs of a letter are one token, so that a text may not be cut between two of them. */
static int32_t pair_end(const void *self) {
    (void)self;
    return 999;
}
static int64_t pair_encode(const void *self, const uint8_t *text, size_t bytes, int32_t *ids, size_t cap) {
    (void)self;
    size_t n = 0;
    for (size_t i = 0; i < bytes; n++) {
        const bool two_of_it = i + 1 < bytes && text[i] == text[i + 1];
        if (n < cap) ids[n] = text[i] + (two_of_it ? 256 : 0);
        i += two_of_it ? 2 : 1;
    }
    return (int64_t)n;
}
static const struct chm_tokenizer_ops pair_ops = {
    .size = sizeof pair_ops, .end_of_text = pair_end, .encode = pair_encode, .splits_anywhere = false};

static void lines(void **state) {
    (void)state;
    /* empty ones, one that fills pieces and has spaces to cut at, and none behind the last */
    enum { LONG = 200000 };
    char *text = malloc(LONG + 100);
    assert_non_null(text);
    size_t n = (size_t)sprintf(text, "\n\naab\nc\n\n");
    const size_t long_at = n;
    for (int i = 0; i < LONG; i++) text[n++] = i % 100 == 99 ? ' ' : 'x';
    n += (size_t)sprintf(text + n, "\nlast");
    FILE *f = fopen(in_folder("lines.txt"), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    int32_t *whole = malloc(LONG * sizeof *whole), *got = malloc(LONG * sizeof *got);
    assert_non_null(whole);
    assert_non_null(got);
    static const int64_t takes[] = {1, 1000, LONG};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(takes); k++) {
        const struct {
            const char *text;
            size_t bytes;
        } expected[] = {{"aab", 3}, {"c", 1}, {text + long_at, LONG}, {"last", 4}};
        chm_text t;
        must(chm_text_open(&t, in_folder("lines.txt"), &pair_ops, NULL, &(chm_corpus_rules){.lines = true}, 0, false));
        for (size_t d = 0; d < CHM_ARRAY_COUNT(expected); d++) {
            int64_t have = 0, some;
            assert_int_equal(chm_text_next(&t), 1);
            while ((some = chm_text_take(&t, got + have, CHM_MIN(takes[k], LONG - have))) > 0) have += some;
            assert_int_equal(some, 0);
            const int64_t tokens = pair_encode(NULL, (const uint8_t *)expected[d].text, expected[d].bytes, whole, LONG);
            assert_int_equal(got[0], 999);
            assert_int_equal(have, tokens + 1);
            assert_memory_equal(got + 1, whole, (size_t)tokens * sizeof *whole);
        }
        assert_int_equal(chm_text_next(&t), 0);
        assert_int_equal(t.bytes, (int64_t)n);
        chm_text_close(&t);
    }
    free(text);
    free(whole);
    free(got);
}

/* The bytes tokenizer and a corpus of one file. */
static const struct chm_plugin *bytes_plugin(void) {
    const struct chm_plugin *p = chm_registry_find(&runtime->registry, CHM_KIND_TOKENIZER, "bytes");
    if (p == NULL) fail_msg("%s", chm_error());
    return p;
}

static int load(chm_corpus *c, const char *file, bool of_lines, bool answers_only) {
    const struct chm_plugin *p = bytes_plugin();
    const struct chm_tokenizer_ops *ops = p->ops;
    void *self = calloc(1, p->instance_size + 1);
    must(ops->init(self, chm_host_services(), NULL, 0));
    const chm_corpus_request request = {.files = &file,
                                        .count = 1,
                                        .tokenizer = ops,
                                        .tokenizer_self = self,
                                        .rules = {.lines = of_lines, .answers_only = answers_only}};
    int status = chm_corpus_survey(c, &request);
    if (status == CHM_OK) status = chm_corpus_load(c, &request);
    if (ops->finish) ops->finish(self);
    free(self);
    return status;
}

static void corpora(void **state) {
    (void)state;
    enum { END = 256 };
    chm_corpus c;
    write_text("few.txt", "ab=c\n\n=\nd=e=f");
    must(load(&c, in_folder("few.txt"), true, true));
    const int32_t expected[] = {END, 'a', 'b', '=', 'c', END, '=', END, 'd', '=', 'e', '=', 'f'};
    assert_int_equal(c.tokens, CHM_ARRAY_COUNT(expected));
    for (size_t i = 0; i < CHM_ARRAY_COUNT(expected); i++)
        assert_int_equal(chm_corpus_token(&c, (int64_t)i), expected[i]);
    assert_int_equal(c.documents, 3);
    assert_int_equal(c.document[1], 5);
    assert_int_equal(c.document[2], 7);
    assert_int_equal(c.document[3], 13);
    assert_int_equal(c.files, 1);
    assert_int_equal(c.bytes, 13);
    assert_int_equal(c.longest, 6);
    assert_int_equal(c.targets, 3); /* what follows the line of a lone '=' is no answer */
    chm_corpus_finish(&c);
    must(load(&c, in_folder("few.txt"), false, false));
    assert_int_equal(c.documents, 1);
    assert_int_equal(c.targets, 14); /* every byte, and the mark behind them */
    chm_corpus_finish(&c);
    write_text("none.txt", "ab\n=\n");
    refused(load(&c, in_folder("none.txt"), true, true), CHM_E_DATA, "none.txt: no byte follows a '='");
    write_text("empty.txt", "\n\n\n");
    refused(load(&c, in_folder("empty.txt"), true, false), CHM_E_DATA, "empty.txt");
}

static void order(void **state) {
    (void)state;
    chm_task_options o = task(CHM_TASK_MQAR, 200, 8, 16);
    chm_corpus c;
    must(chm_task_write(&o));
    must(load(&c, o.out, true, true));
    const chm_batch b = {.corpus = &c, .seed = 5, .streams = 4, .rows = 128, .carry = 1};
    int32_t id[128], target[128];
    int64_t position[128], asked = 0;
    const int64_t steps = 10 * c.tokens / (b.streams * b.rows);
    for (int64_t step = 0; step < steps; step++) {
        int64_t targets = 0;
        for (int64_t s = 0; s < b.streams; s++) {
            chm_batch_segment(&b, step, s, id, target, position);
            assert_int_equal(id[0], 256); /* a segment begins with a document */
            for (int r = 0; r < 128; r++) {
                assert_int_equal(position[r], id[r] == 256 ? 0 : position[r - 1] + 1);
                if (id[r] == '=')
                    assert_in_range(target[r], 'A', 'Z');
                else
                    assert_int_equal(target[r], -1);
                if (r + 1 < 128 && target[r] >= 0) assert_int_equal(id[r + 1], target[r]);
                targets += target[r] >= 0;
            }
        }
        assert_int_equal(chm_batch_targets(&b, step), targets);
        asked += targets;
    }
    /* 36 to 52 tokens a document and 128 a segment: most answers are reached */
    assert_true(asked > steps * b.streams * 3);
    chm_corpus_finish(&c);
}

/* ---- losses and scores ---- */

/* A model ready to be trained. */
static chm_model *fresh_model(void) {
    const struct chm_card_options how = {.registry = &runtime->registry};
    chm_card *card = NULL;
    chm_model *m = NULL;
    must(chm_card_load(in_folder("card.json"), &how, &card));
    must(chm_model_create(card, &runtime->registry, &m));
    must(chm_model_allocate(m));
    must(chm_model_randomise(m, 11));
    must(chm_model_quantise(m, &runtime->kernels.kernels, runtime->pool));
    return m;
}

enum { ROWS = 64 };

/* A training pass over one segment; logits then have their gradient where they stood. */
static chm_tensor *pass(chm_model *m, chm_context *c, const int32_t *id, const int64_t *position) {
    int32_t parent[ROWS];
    for (int r = 0; r < ROWS; r++) parent[r] = r == 0 ? ~0 : r - 1;
    const chm_rows rows = {.count = ROWS, .parent = parent, .position = position};
    chm_depth depth = {.passes = 1, .whole = true};
    must(chm_context_begin(c, &rows, NULL, 1, CHM_PASS_TRAIN));
    chm_tensor *logits = chm_model_forward(m, c, id, NULL, NULL, &depth);
    must(chm_context_status(c));
    assert_non_null(logits);
    return logits;
}

/* Rows that are no answers have no gradient; those that are, have one. */
static void masks(void **state) {
    (void)state;
    chm_task_options o = task(CHM_TASK_MQAR, 50, 8, 10);
    chm_corpus corpus;
    must(chm_task_write(&o));
    must(load(&corpus, o.out, true, true));
    chm_model *m = fresh_model();
    chm_context *c = NULL;
    must(chm_context_create(&runtime->kernels.kernels, runtime->pool, &m->layout, 1e-6f, &c));
    const chm_batch b = {.corpus = &corpus, .seed = 5, .streams = 1, .rows = ROWS, .carry = 1};
    int32_t id[ROWS], target[ROWS];
    int64_t position[ROWS], counted, answers = 0;
    double loss;
    chm_batch_segment(&b, 0, 0, id, target, position);
    chm_tensor *logits = pass(m, c, id, position);
    must(chm_cross_entropy(c, logits, target, m->config->vocab, 1, &loss, &counted));
    for (int r = 0; r < ROWS; r++) {
        double sum = 0;
        for (int64_t i = 0; i < m->config->vocab; i++) sum += fabs((double)logits->grad[r * logits->width + i]);
        if (id[r] == '=')
            assert_true(sum > 0.5); /* 2 (1 - p) of an untrained model */
        else
            assert_true(sum == 0);
        answers += id[r] == '=';
    }
    assert_true(answers > 0);
    assert_int_equal(counted, answers);
    chm_context_destroy(c);
    chm_model_destroy(m);
    chm_corpus_finish(&corpus);
}

/* What a document's rows say does not depend on the document before it: in training, where both are in one segment. */
static void fresh_in_training(void **state) {
    (void)state;
    chm_model *m = fresh_model();
    chm_context *c = NULL;
    must(chm_context_create(&runtime->kernels.kernels, runtime->pool, &m->layout, 1e-6f, &c));
    int32_t id[2][ROWS];
    int64_t position[ROWS];
    enum { SECOND = 21 };
    for (int k = 0; k < 2; k++)
        for (int r = 0; r < ROWS; r++) {
            id[k][r] = r == 0 || r == SECOND ? 256 : r < SECOND ? 'a' + (r * (3 + k)) % 26 : 'A' + r % 26;
            position[r] = r < SECOND ? r : r - SECOND;
        }
    float *kept = NULL;
    for (int k = 0; k < 2; k++) {
        const chm_tensor *logits = pass(m, c, id[k], position);
        const size_t first = (size_t)(SECOND * logits->width), all = (size_t)(ROWS * logits->width);
        if (k == 0) {
            kept = malloc(all * sizeof *kept);
            assert_non_null(kept);
            memcpy(kept, logits->data, all * sizeof *kept);
        } else {
            assert_memory_not_equal(kept, logits->data, first * sizeof *kept);
            assert_memory_equal(kept + first, logits->data + first, (all - first) * sizeof *kept);
        }
    }
    free(kept);
    chm_context_destroy(c);
    chm_model_destroy(m);
}

/* chm_eval of the untrained model over `file`; *logits: what it wrote. */
static void eval(const char *file, const char *const *set, uint32_t sets, chm_eval_result *result, char **logits,
                 size_t *bytes) {
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = set, .set_count = sets};
    chm_model *m = NULL;
    if (access(in_folder("model.b158"), F_OK) != 0)
        must(chm_init_model(runtime, in_folder("card.json"), &overlay, 5, in_folder("model.b158")));
    must(chm_open(runtime, in_folder("model.b158"), &overlay, false, &m));
    const chm_eval_options o = {
        .size = sizeof o, .data = &file, .data_count = 1, .logits = in_folder("logits.f32"), .split = 7};
    *result = (chm_eval_result){.size = sizeof *result};
    must(chm_eval(runtime, m, &o, result));
    chm_close(m);
    *logits = slurp(in_folder("logits.f32"), bytes);
}

/* The same by the inference path, across lines. */
static void fresh_in_evaluation(void **state) {
    (void)state;
    enum { ROW = 258 * sizeof(float) };
    chm_eval_result result;
    char *alone, *behind;
    size_t n, all;
    write_text("alone.txt", "gHa=b\n");
    write_text("behind.txt", "some other text z=y\n\ngHa=b");
    eval(in_folder("alone.txt"), NULL, 0, &result, &alone, &n);
    assert_int_equal(n, 6 * ROW); /* five bytes and the line's end */
    eval(in_folder("behind.txt"), NULL, 0, &result, &behind, &all);
    assert_int_equal(result.documents, 2);
    assert_int_equal(all, (20 + 6) * ROW);
    assert_memory_equal(behind + all - n, alone, n);
    chm_free(behind);
    /* as one document they are not */
    eval(in_folder("behind.txt"), (const char *const[]){"training.documents=file"}, 1, &result, &behind, &all);
    assert_int_equal(result.documents, 1);
    assert_memory_not_equal(behind + all - 5 * ROW, alone, 5 * ROW);
    chm_free(behind);
    chm_free(alone);
}

/* Accuracy and bits, again from the logits. */
static void scores(void **state) {
    (void)state;
    enum { VOCAB = 258 };
    static const int64_t most[] = {1, 2, 4, 8, 16, 32, 64};
    chm_task_options o = task(CHM_TASK_PARITY, 300, 1, 60);
    chm_eval_result r;
    size_t bytes, text_bytes;
    char *logits;
    must(chm_task_write(&o));
    eval(o.out, NULL, 0, &r, &logits, &bytes);
    char *text = slurp(o.out, &text_bytes);
    const float *row = (const float *)(const void *)logits;
    int64_t answers[7] = {0}, right[7] = {0}, all = 0, all_right = 0, length = 0;
    double nats = 0;
    assert_int_equal(bytes, text_bytes * VOCAB * sizeof(float)); /* a mark for every newline */
    for (size_t i = 0; i < text_bytes; i++, row += VOCAB) {
        /* this row foretells byte i */
        if (i > 0 && text[i - 1] == '=') {
            double sum = 0;
            int best = 0, k = 0;
            for (int v = 0; v < VOCAB; v++) {
                sum += exp((double)row[v] - (double)row[(unsigned char)text[i]]);
                if (row[v] > row[best]) best = v;
            }
            while (most[k] < length) k++;
            answers[k]++;
            right[k] += best == text[i];
            all_right += best == text[i];
            all++;
            nats += log(sum);
        }
        length = text[i] == '\n' ? 0 : length + (text[i] != '=');
    }
    assert_int_equal(all, 300);
    assert_int_equal(r.answers, all);
    assert_int_equal(r.right, all_right);
    assert_int_equal(r.documents, 300);
    assert_int_equal(r.bytes, (int64_t)text_bytes);
    assert_true(fabs(r.nats - nats) < 1e-4 * nats);
    assert_true(fabs(r.bits_per_byte - nats / log(2.0) / 300) < 1e-4);
    int64_t sum = 0;
    for (int k = 0; k < CHM_EVAL_LENGTHS; k++) sum += r.length[k].answers;
    assert_int_equal(sum, all);
    for (int k = 0; k < 7; k++) {
        assert_int_equal(r.length[k].answers, answers[k]);
        assert_int_equal(r.length[k].right, right[k]);
    }
    chm_free(logits);
    chm_free(text);
    /* all bytes count: no answers are reported, and the bytes are the file's */
    chm_eval_result whole;
    eval(o.out, (const char *const[]){"training.loss_on=all"}, 1, &whole, &logits, &bytes);
    assert_int_equal(whole.answers, 0);
    assert_true(fabs(whole.bits_per_byte - whole.nats / log(2.0) / (double)whole.bytes) < 1e-12);
    assert_true(whole.nats > r.nats);
    chm_free(logits);
}

static int train(const char *out, const char *data, const char *validation, const char *set, chm_train_result *result) {
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = &set, .set_count = set != NULL};
    const chm_train_options o = {.size = sizeof o,
                                 .card = in_folder("card.json"),
                                 .overlay = &overlay,
                                 .data = &data,
                                 .data_count = 1,
                                 .validation = &validation,
                                 .validation_count = validation != NULL,
                                 .out = out};
    *result = (chm_train_result){.size = sizeof *result};
    return chm_train(runtime, &o, result);
}

/* One value is the answer to everything: learnt from the answers alone, and nothing else is. */
static void learns_answers(void **state) {
    (void)state;
    chm_train_result result;
    char text[4000];
    size_t n = 0;
    for (int i = 0; i < 120; i++)
        n += (size_t)sprintf(text + n, "%c%c%c=Q\n", 'a' + i % 26, 'a' + i * 7 % 26, 'a' + i * 11 % 26);
    write_text("same.txt", text);
    must(train(in_folder("run"), in_folder("same.txt"), in_folder("same.txt"), NULL, &result));
    assert_true(result.finished);
    assert_true(result.validation_bits_per_byte < 0.5); /* 8 at first */
    chm_model *m = NULL;
    must(chm_open(runtime, result.model, NULL, false, &m));
    const char *file = in_folder("same.txt");
    const chm_eval_options o = {.size = sizeof o, .data = &file, .data_count = 1};
    chm_eval_result r = {.size = sizeof r};
    must(chm_eval(runtime, m, &o, &r));
    assert_int_equal(r.right, 120);
    assert_true(r.bits_per_byte == result.validation_bits_per_byte);
    chm_close(m);
    /* and over all bytes it is still about as bad as an untrained one */
    const char *const all[] = {"training.loss_on=all"};
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = all, .set_count = 1};
    must(chm_open(runtime, result.model, &overlay, false, &m));
    must(chm_eval(runtime, m, &o, &r));
    assert_true(r.bits_per_byte > 5);
    chm_close(m);
    refused(train(in_folder("long"), in_folder("same.txt"), NULL, "training.phases.pretrain.seq_len=5", &result),
            CHM_E_DATA, "a line makes 6 tokens");
    refused(train(in_folder("words"), in_folder("card.json"), NULL, NULL, &result), CHM_E_DATA, "no byte follows");
    refused(train(in_folder("other"), in_folder("same.txt"), NULL, "training.loss_on=answer", &result), CHM_E_CONFIG,
            "answers");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits),
        cmocka_unit_test(bindings),
        cmocka_unit_test(documents_are_functions),
        cmocka_unit_test(refused_tasks),
        cmocka_unit_test(lines),
        cmocka_unit_test(corpora),
        cmocka_unit_test(order),
        cmocka_unit_test(masks),
        cmocka_unit_test(fresh_in_training),
        cmocka_unit_test(fresh_in_evaluation),
        cmocka_unit_test(scores),
        cmocka_unit_test(learns_answers),
    };
    return cmocka_run_group_tests_name("tasks", tests, set_up, tear_down);
}
