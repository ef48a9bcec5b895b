/* test_train.c: data, schedules, training, checkpoints and evaluation. */
#include "model/runtime.h"
#include "train/train.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
/* after the standard headers */
#include <cmocka.h>

static char folder[256]; /* of this process's files */
static chm_runtime *one, *two;

static const char tiny_card[] =
    "{\n"
    "  \"token_ids\": [256, 257],\n"
    "  \"hidden_size\": 32,\n"
    "  \"intermediate_size\": 64,\n"
    "  \"num_hidden_layers\": 2,\n"
    "  \"num_heads\": 2,\n"
    "  \"head_dim\": 16,\n"
    "  \"vocab_size\": 258,\n"
    "  \"quantization\": {\"method\": \"bitnet\", \"embedding\": \"int8\"},\n"
    "  \"backbone\": {\"layer_pattern\": \"GD\", \"layer_aliases\": {\"GD\": \"gated_deltanet\"}},\n"
    "  \"gated_deltanet\": {\"state_size\": 16, \"chunk_size\": 16},\n"
    "  \"tokenizer\": {\"type\": \"bytes\"},\n"
    "  \"training\": {\n"
    "    \"phases\": [\n"
    "      {\n"
    "        \"name\": \"pretrain\",\n"
    "        \"tokens\": 7680,\n"
    "        \"seq_len\": 32,\n"
    "        \"batch_tokens\": 256,\n"
    "        \"micro_tokens\": 128,\n"
    "        \"carry_segments\": 3,\n"
    "        \"lr\": 0.01,\n"
    "        \"schedule\": \"cosine_warmup\",\n"
    "        \"warmup_steps\": 3,\n"
    "        \"seed\": 7\n"
    "      }\n"
    "    ]\n"
    "  },\n"
    "  \"diagnostics\": {\"report_interval_tokens\": 256}\n"
    "}\n";

/* ---- helpers ---- */

/* A path in the folder, the same pointer for the same name. */
static const char *in_folder(const char *name) {
    static char path[64][512];
    static int used;
    char wanted[512];
    snprintf(wanted, sizeof wanted, "%s/%s", folder, name);
    for (int i = 0; i < used; i++)
        if (strcmp(path[i], wanted) == 0) return path[i];
    assert_in_range(used, 0, 63);
    return strcpy(path[used++], wanted);
}

static void write_file(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

__attribute__((noinline)) static char *slurp(const char *path, size_t *size) {
    char *text = NULL;
    if (chm_read_file(path, UINT64_C(1) << 30, &text, size) != CHM_OK) fail_msg("%s", chm_error());
    return text;
}

static void same_files(const char *a, const char *b) {
    size_t m, n;
    char *x = slurp(a, &m), *y = slurp(b, &n);
    assert_int_equal(m, n);
    assert_memory_equal(x, y, m);
    chm_free(x);
    chm_free(y);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
    (void)st, (void)type, (void)walk;
    return remove(path);
}
static void remove_tree(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

/* Words in random order: enough structure that a model learns something at once. */
static void write_words(const char *path, size_t bytes, uint32_t key) {
    static const char *const word[] = {"the ", "cat ", "sat ",  "on ", "a ",  "mat",
                                       ".\n",  "and ", "then ", "it ", "ran "};
    char *text = malloc(bytes + 16);
    assert_non_null(text);
    size_t n = 0;
    for (uint64_t i = 0; n < bytes; i++) {
        const char *w = word[chm_below_at(1, CHM_RANDOM_TEST, key, i, CHM_ARRAY_COUNT(word))];
        memcpy(text + n, w, strlen(w));
        n += strlen(w);
    }
    write_file(path, text, bytes);
    free(text);
}

static void must(int status) {
    if (status != CHM_OK) fail_msg("status %d: %s", status, chm_error());
}

static void refused(int status, int expected, const char *needle) {
    if (status != expected || strstr(chm_error(), needle) == NULL)
        fail_msg("expected status %d with '%s', got %d: %s", expected, needle, status, chm_error());
}

/* The run described by a few words; what is not named comes from here. */
typedef struct plan {
    const char *out, *data, *validation;
    const char *const *set;
    uint32_t sets;
    double seconds;
    int64_t tokens;
    bool resume, dry_run;
    chm_runtime *runtime;
    int64_t stop_at; /* step after which to stop; -1: none */
} plan;

typedef struct watch {
    volatile int stop;
    int64_t stop_at;
    char said[16384];
} watch;

static void on_progress(void *user, const chm_progress *p) {
    watch *w = user;
    if (p->message != NULL) {
        const size_t n = strlen(w->said);
        snprintf(w->said + n, sizeof w->said - n, "%s\n", p->message);
    }
    const bool number = p->message == NULL || isfinite(p->validation_bits_per_byte);
    if (number && w->stop_at >= 0 && p->step >= w->stop_at) w->stop = 1;
}

static watch last; /* of the latest run */

static int train(const plan *p, chm_train_result *result) {
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = p->set, .set_count = p->sets};
    const char *data = p->data ? p->data : in_folder("words.txt");
    memset(&last, 0, sizeof last);
    last.stop_at = p->stop_at;
    const chm_train_options options = {
        .size = sizeof options,
        .card = in_folder("tiny.json"),
        .overlay = &overlay,
        .data = &data,
        .data_count = 1,
        .validation = p->validation ? &p->validation : NULL,
        .validation_count = p->validation ? 1 : 0,
        .out = p->out,
        .seconds = p->seconds,
        .tokens = p->tokens,
        .resume = p->resume,
        .dry_run = p->dry_run,
        .progress = on_progress,
        .user = &last,
        .stop = &last.stop,
    };
    *result = (chm_train_result){.size = sizeof *result};
    return chm_train(p->runtime ? p->runtime : one, &options, result);
}

/* The report lines of a log without what depends on time. */
static char *reports(const char *out, int *count) {
    char path[600];
    size_t n;
    chm_string kept = {0};
    snprintf(path, sizeof path, "%s/log.jsonl", out);
    char *text = slurp(path, &n), *save = NULL;
    *count = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        assert_non_null(strstr(line, "\"schema_version\":1"));
        if (strstr(line, "\"event\":\"report\"") == NULL) continue;
        char *end = strstr(line, ",\"tokens_per_second\"");
        assert_non_null(end);
        chm_string_add(&kept, "%.*s\n", (int)(end - line), line);
        (*count)++;
    }
    chm_free(text);
    assert_false(kept.failed);
    return kept.text;
}

/* A number of the first line of a log that has `event`. */
static double logged(const char *out, const char *event, const char *name) {
    char path[600], key[80];
    size_t n;
    snprintf(path, sizeof path, "%s/log.jsonl", out);
    char *text = slurp(path, &n);
    snprintf(key, sizeof key, "\"event\":\"%s\"", event);
    char *at = strstr(text, key);
    assert_non_null(at);
    snprintf(key, sizeof key, "\"%s\":", name);
    at = strstr(at, key);
    assert_non_null(at);
    const double x = strtod(at + strlen(key), NULL);
    chm_free(text);
    return x;
}

static int set_up(void **state) {
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/chimera-train-XXXXXX", base && *base ? base : "/tmp");
    if (mkdtemp(folder) == NULL) return -1;
    const chm_runtime_options a = {.size = sizeof a, .threads = 1, .verbosity = -1};
    const chm_runtime_options b = {.size = sizeof b, .threads = 2, .verbosity = -1};
    if (chm_runtime_create(&a, &one) != CHM_OK || chm_runtime_create(&b, &two) != CHM_OK) {
        print_error("%s\n", chm_error());
        return -1;
    }
    write_file(in_folder("tiny.json"), tiny_card, sizeof tiny_card - 1);
    write_words(in_folder("words.txt"), 20000, 1);
    write_words(in_folder("held.txt"), 3001, 2);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    chm_runtime_destroy(one);
    chm_runtime_destroy(two);
    remove_tree(folder);
    return 0;
}

/* ---- schedules ---- */

static double rate(const chm_train_config *c, int64_t step, int64_t steps, double *decay) {
    double lr, wd;
    chm_schedule_at(c, step, steps, &lr, &wd);
    if (decay) *decay = wd;
    return lr;
}

static void schedules(void **state) {
    (void)state;
    chm_train_config c = {.lr = 1, .min_lr_ratio = 0.1, .weight_decay = 0.2, .warmup_steps = 10};
    double wd;
    c.schedule = CHM_SCHEDULE_COSINE;
    assert_float_equal(rate(&c, 0, 110, &wd), 0.1, 1e-12);
    assert_float_equal(wd, 0.2, 0);
    assert_float_equal(rate(&c, 9, 110, NULL), 1.0, 1e-12);
    assert_float_equal(rate(&c, 10, 110, NULL), 1.0, 1e-12);
    assert_float_equal(rate(&c, 60, 110, NULL), 0.55, 1e-12);
    assert_float_equal(rate(&c, 110, 110, NULL), 0.1, 1e-12);
    /* a short run: a fifth of it is warm-up, not all */
    assert_float_equal(rate(&c, 0, 10, NULL), 0.5, 1e-12);
    assert_float_equal(rate(&c, 2, 10, NULL), 1.0, 1e-12);
    assert_float_equal(rate(&c, 0, 1, NULL), 1.0, 1e-12);
    c.schedule = CHM_SCHEDULE_LINEAR;
    assert_float_equal(rate(&c, 60, 110, NULL), 0.55, 1e-12);
    assert_float_equal(rate(&c, 35, 110, NULL), 0.775, 1e-12);
    c.schedule = CHM_SCHEDULE_CONSTANT;
    assert_float_equal(rate(&c, 109, 110, NULL), 1.0, 0);
    c.schedule = CHM_SCHEDULE_WSD;
    c.decay_fraction = 0.2;
    assert_float_equal(rate(&c, 79, 100, NULL), 1.0, 0);
    assert_float_equal(rate(&c, 90, 100, NULL), 0.55, 1e-12);
    c.schedule = CHM_SCHEDULE_TWO_STAGE;
    c.stage_split = 0.5;
    c.stage2_lr = 0.3;
    c.stage2_weight_decay = 0;
    c.warmup_steps = 0;
    assert_float_equal(rate(&c, 0, 100, &wd), 1.0, 1e-12);
    assert_float_equal(wd, 0.2, 0);
    assert_float_equal(rate(&c, 49, 100, &wd), 0.51, 1e-12);
    assert_float_equal(wd, 0.2, 0);
    assert_float_equal(rate(&c, 50, 100, &wd), 0.3, 1e-12);
    assert_float_equal(wd, 0, 0);
    assert_float_equal(rate(&c, 100, 100, NULL), 0.03, 1e-12);
}

/* Before the step it names, a longer run has the same rates; from there on, some longer run has others. */
static void free_steps(void **state) {
    (void)state;
    static const int64_t lengths[] = {1, 7, 49, 50, 51, 99, 100, 101, 173};
    for (int schedule = 0; schedule <= CHM_SCHEDULE_CONSTANT; schedule++) {
        const chm_train_config c = {.lr = 1,
                                    .min_lr_ratio = 0.1,
                                    .warmup_steps = 10,
                                    .decay_fraction = 0.3,
                                    .stage_split = 0.5,
                                    .stage2_lr = 0.3,
                                    .schedule = schedule};
        for (size_t i = 0; i < CHM_ARRAY_COUNT(lengths); i++) {
            const int64_t steps = lengths[i], settled = chm_schedule_free(&c, steps);
            assert_in_range(settled, 0, steps);
            bool differs = settled == steps;
            for (int64_t longer = steps; longer < 3 * steps; longer++) {
                for (int64_t s = 0; s < settled; s++)
                    assert_float_equal(rate(&c, s, steps, NULL), rate(&c, s, longer, NULL), 0);
                assert_true(chm_schedule_free(&c, longer) >= settled);
                /* a cosine begins at the peak whatever its length */
                for (int64_t s = settled; s < CHM_MIN(settled + 2, steps); s++)
                    differs = differs || rate(&c, s, steps, NULL) != rate(&c, s, longer, NULL);
            }
            assert_true(differs || steps < 5);
        }
    }
}

/* ---- text ---- */

/* A tokenizer whose tokens depend on their neighbours: two equal bytes are one token, though never newlines. */
static int32_t pair_end(const void *self) { return *(const int32_t *)self; }
static int64_t pair_encode(const void *self, const uint8_t *text, size_t bytes, int32_t *ids, size_t cap) {
    (void)self;
    size_t n = 0;
    for (size_t i = 0; i < bytes; n++) {
        const bool two_of_it = i + 1 < bytes && text[i] == text[i + 1] && text[i] != '\n';
        if (n < cap) ids[n] = text[i] + (two_of_it ? 256 : 0);
        i += two_of_it ? 2 : 1;
    }
    return (int64_t)n;
}
static const struct chm_tokenizer_ops pair_ops = {
    .size = sizeof pair_ops, .end_of_text = pair_end, .encode = pair_encode, .splits_anywhere = false};

static const chm_corpus_rules plain = {.lines = false};

static void text_in_pieces(void **state) {
    (void)state;
    const int32_t mark = 999;
    const size_t bytes = 300000;
    char *text = malloc(bytes);
    int32_t *whole = malloc(bytes * sizeof *whole), *got = malloc((bytes + 1000) * sizeof *got);
    assert_non_null(text);
    assert_non_null(whole);
    assert_non_null(got);
    /* lines of very different lengths, one longer than a piece */
    for (size_t i = 0; i < bytes; i++) text[i] = (i < 100000 ? i % 777 == 0 : i > 250000 && i % 3 == 0) ? '\n' : 'a';
    const int64_t tokens = pair_encode(NULL, (const uint8_t *)text, bytes, whole, bytes);
    write_file(in_folder("lines.txt"), text, bytes);
    static const int64_t takes[] = {1000, 65536, 1 << 19};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(takes); k++) {
        chm_text t;
        must(chm_text_open(&t, in_folder("lines.txt"), &pair_ops, &mark, &plain, 0, true));
        int64_t n = 0, some;
        assert_int_equal(chm_text_next(&t), 1);
        while ((some = chm_text_take(&t, got + n, CHM_MIN(takes[k], (int64_t)bytes + 1000 - n))) > 0) n += some;
        assert_int_equal(some, 0);
        assert_int_equal(n, tokens + 1);
        assert_int_equal(got[0], mark);
        assert_memory_equal(got + 1, whole, (size_t)tokens * sizeof *whole);
        assert_int_equal(chm_text_next(&t), 0);
        assert_int_equal(t.bytes, bytes);
        assert_true(chm_contents_hash(&t.in) == chm_hash64(text, bytes));
        chm_text_close(&t);
    }
    /* no mark, and a limit */
    const int32_t none = -1;
    chm_text t;
    must(chm_text_open(&t, in_folder("lines.txt"), &pair_ops, &none, &plain, 777, false));
    assert_int_equal(chm_text_next(&t), 1);
    assert_int_equal(chm_text_take(&t, got, 1000), 1 + 776 / 2);
    chm_text_close(&t);
    free(text);
    free(whole);
    free(got);
}

static void refused_files(void **state) {
    (void)state;
    const int32_t mark = 0;
    chm_text t;
    refused(chm_text_open(&t, in_folder("nowhere.txt"), &pair_ops, &mark, &plain, 0, false), CHM_E_DATA,
            "nowhere.txt: cannot open");
    refused(chm_text_open(&t, folder, &pair_ops, &mark, &plain, 0, false), CHM_E_DATA, "is a directory");
    write_file(in_folder("empty.txt"), "", 0);
    refused(chm_text_open(&t, in_folder("empty.txt"), &pair_ops, &mark, &plain, 0, false), CHM_E_DATA,
            "empty.txt: is empty");
    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    refused(chm_text_open(&t, in_folder("pipe"), &pair_ops, &mark, &plain, 0, false), CHM_E_DATA, "not a regular file");
    chm_train_result result;
    refused(train(&(plan){.out = in_folder("none"), .data = in_folder("empty.txt"), .stop_at = -1}, &result),
            CHM_E_DATA, "empty.txt: is empty");
    refused(train(&(plan){.out = in_folder("none"), .validation = in_folder("nowhere.txt"), .stop_at = -1}, &result),
            CHM_E_DATA, "nowhere.txt: cannot open");
    assert_int_equal(access(in_folder("none"), F_OK), -1); /* refused before anything was made */
}

static void corpora(void **state) {
    (void)state;
    write_file(in_folder("a.txt"), "ab\xff", 3);
    write_file(in_folder("b.txt"), "c", 1);
    const char *files[] = {in_folder("a.txt"), in_folder("b.txt")};
    const struct chm_plugin *bytes = chm_registry_find(&one->registry, CHM_KIND_TOKENIZER, "bytes");
    if (bytes == NULL) fail_msg("%s", chm_error());
    void *self = calloc(1, bytes->instance_size + 1);
    const struct chm_tokenizer_ops *ops = bytes->ops;
    must(ops->init(self, chm_host_services(), NULL, 0));
    const int32_t eos = ops->end_of_text(self);
    chm_corpus c;
    const chm_corpus_request request = {
        .files = files, .count = 2, .tokenizer = ops, .tokenizer_self = self, .rules = plain};
    must(chm_corpus_survey(&c, &request));
    must(chm_corpus_load(&c, &request));
    const int32_t expected[] = {eos, 'a', 'b', 255, eos, 'c'};
    assert_int_equal(c.tokens, 6);
    for (int i = 0; i < 6; i++) assert_int_equal(chm_corpus_token(&c, i), expected[i]);
    assert_int_equal(c.documents, 2);
    assert_int_equal(c.document[1], 4);
    assert_int_equal(c.document[2], 6);
    assert_int_equal(c.bytes, 4);
    assert_true(c.marked);
    const uint64_t hash = c.hash;
    chm_corpus_finish(&c);
    files[0] = files[1];
    must(chm_corpus_survey(&c, &request));
    must(chm_corpus_load(&c, &request));
    assert_true(c.hash != hash);
    chm_corpus_finish(&c);
    if (ops->finish) ops->finish(self);
    free(self);
}

/* ---- order of the data ---- */

enum { TOKENS = 1000 };

static void make_corpus(chm_corpus *c, int32_t *token, int64_t *document, bool marked) {
    for (int32_t i = 0; i < TOKENS; i++) token[i] = i;
    document[0] = 0;
    document[1] = 300;
    document[2] = 301; /* a document of one token */
    document[3] = TOKENS;
    *c = (chm_corpus){.token = token, .tokens = TOKENS, .document = document, .documents = 3, .marked = marked};
}

static void order_of_data(void **state) {
    (void)state;
    int32_t token[TOKENS], id[16], target[16], again[16];
    int64_t document[4], position[16];
    chm_corpus c;
    for (int marked = 0; marked < 2; marked++) {
        make_corpus(&c, token, document, marked);
        const chm_batch b = {.corpus = &c, .seed = 3, .streams = 5, .rows = 16, .carry = 3};
        int seen[TOKENS] = {0}, fresh[3] = {0};
        int64_t next[5], at[5];
        for (int64_t step = 0; step < 60; step++) {
            int64_t targets = 0;
            int jumps = 0;
            for (int64_t s = 0; s < b.streams; s++) {
                chm_batch_segment(&b, step, s, id, target, position);
                const bool begins = id[0] == 0 || id[0] == 300 || id[0] == 301;
                const bool jumped = step == 0 || id[0] != next[s] || (position[0] == 0 && !begins);
                if (jumped) assert_int_equal(position[0], 0);
                jumps += jumped;
                /* a stream goes on where it stopped, except at the beginning of its runs */
                if (!jumped) {
                    assert_int_equal(id[0], next[s]);
                    assert_true(position[0] == at[s] || begins);
                }
                for (int r = 0; r < 16; r++) {
                    const int32_t follows = (id[r] + 1) % TOKENS;
                    const bool begins = follows == 0 || follows == 300 || follows == 301;
                    assert_in_range(id[r], 0, TOKENS - 1);
                    seen[id[r]]++;
                    assert_int_equal(target[r], begins && !marked ? -1 : follows);
                    targets += target[r] >= 0;
                    if (id[r] == 0 || id[r] == 300 || id[r] == 301) assert_int_equal(position[r], 0);
                    if (r > 0) {
                        assert_int_equal(id[r], (id[r - 1] + 1) % TOKENS);
                        if (position[r] != 0) assert_int_equal(position[r], position[r - 1] + 1);
                    }
                }
                next[s] = (id[15] + 1) % TOKENS;
                at[s] = position[15] + 1;
                if (step >= 3) fresh[step % 3] += jumped;
            }
            assert_int_equal(chm_batch_targets(&b, step), targets);
            if (step > 0) assert_in_range(jumps, 0, 3); /* staggered */
        }
        for (int k = 0; k < 3; k++) assert_true(fresh[k] > 0);
        /* 4800 tokens read of 1000: an epoch reads everything about once */
        for (int i = 0; i < TOKENS; i++) assert_in_range(seen[i], 2, 9);
        /* a pure function: asked out of order it says the same */
        chm_batch_segment(&b, 17, 2, id, target, position);
        chm_batch_segment(&b, 3, 1, again, target, position);
        chm_batch_segment(&b, 17, 2, again, target, position);
        assert_memory_equal(id, again, sizeof id);
        chm_batch other = b;
        other.seed = 4;
        chm_batch_segment(&other, 17, 2, again, target, position);
        assert_memory_not_equal(id, again, sizeof id);
    }
    /* a corpus shorter than a segment goes round */
    int32_t few[3] = {7, 8, 9};
    int64_t ends[2] = {0, 3};
    const chm_corpus small = {.token = few, .tokens = 3, .document = ends, .documents = 1, .marked = true};
    const chm_batch b = {.corpus = &small, .seed = 1, .streams = 1, .rows = 16, .carry = 1};
    chm_batch_segment(&b, 0, 0, id, target, position);
    assert_int_equal(position[0], 0);
    for (int r = 1; r < 16; r++) {
        assert_int_equal(id[r], 7 + (id[r - 1] - 7 + 1) % 3);
        if (id[r] == 7) assert_int_equal(position[r], 0);
    }
}

/* ---- runs ---- */

static void learns(void **state) {
    (void)state;
    chm_train_result result;
    must(train(&(plan){.out = in_folder("learn"), .validation = in_folder("held.txt"), .stop_at = -1}, &result));
    assert_true(result.finished);
    assert_int_equal(result.steps, 30);
    assert_int_equal(result.tokens, 7680);
    assert_true(result.parameters > 258 * 32);
    /* text of eleven words: from 8 bits a byte to well under the 4.2 of its letters */
    const double first = logged(in_folder("learn"), "report", "bits_per_byte");
    const double held = logged(in_folder("learn"), "validation", "bits_per_byte");
    assert_true(first > 6 && held > 6);
    assert_true(result.validation_bits_per_byte < 4.0);
    assert_true(result.loss < 4.0 * log(2.0));
    assert_non_null(strstr(last.said, "parameters"));
    assert_non_null(strstr(last.said, "memory: weights"));
    assert_non_null(strstr(last.said, "30 steps of 256 tokens"));
    assert_string_equal(result.model, in_folder("learn/model.b158"));
    size_t n;
    char *card = slurp(in_folder("learn/card.json"), &n);
    assert_non_null(strstr(card, "carry_segments"));
    chm_free(card);

    /* the last validation is chm_eval of the packed file, to the last bit */
    chm_model *m = NULL;
    must(chm_open(one, in_folder("learn/model.b158"), NULL, true, &m));
    const char *held_out = in_folder("held.txt");
    const chm_eval_options eval = {.size = sizeof eval, .data = &held_out, .data_count = 1};
    chm_eval_result score = {.size = sizeof score};
    must(chm_eval(two, m, &eval, &score));
    assert_int_equal(score.tokens, 3001);
    assert_int_equal(score.bytes, 3001);
    assert_memory_equal(&score.bits_per_byte, &result.validation_bits_per_byte, sizeof(double));
    chm_close(m);

    /* a finished run can be asked again */
    chm_train_result repeat;
    must(train(&(plan){.out = in_folder("learn"), .validation = in_folder("held.txt"), .resume = true, .stop_at = -1},
               &repeat));
    assert_int_equal(repeat.steps, 30);
    assert_memory_equal(&repeat.validation_bits_per_byte, &result.validation_bits_per_byte, sizeof(double));
}

static void stop_and_resume(void **state) {
    (void)state;
    /* carry 1 and 3, and with a loop of drawn depth; stops at several steps, of which some lie inside a run of segments
     */
    static const char *const variants[][6] = {
        {"training.phases.pretrain.carry_segments=1"},
        {"training.phases.pretrain.carry_segments=3"},
        {"training.phases.pretrain.carry_segments=3", "num_hidden_layers=3", "looping.prelude=[0,0]",
         "looping.loop=[1,1]", "looping.coda=[2,2]", "looping.enabled=true"},
    };
    for (size_t k = 0; k < CHM_ARRAY_COUNT(variants); k++) {
        const uint32_t sets = variants[k][1] ? 6 : 1;
        chm_train_result result;
        int count, same;
        remove_tree(in_folder("whole"));
        const plan whole = {
            .out = in_folder("whole"), .tokens = 12 * 256, .set = variants[k], .sets = sets, .stop_at = -1};
        must(train(&whole, &result));
        char *expected = reports(in_folder("whole"), &count);
        assert_int_equal(count, 12);
        static const int64_t stops[] = {0, 1, 2, 5, 11};
        for (size_t i = 0; i < CHM_ARRAY_COUNT(stops); i++) {
            remove_tree(in_folder("parts"));
            plan parts = whole;
            parts.out = in_folder("parts");
            parts.stop_at = stops[i];
            if (stops[i] == 0) parts.validation = in_folder("held.txt"); /* its report comes before the first step */
            refused(train(&parts, &result), CHM_E_INTERRUPTED, "everything is saved");
            assert_false(result.finished);
            assert_int_equal(result.steps, stops[i]);
            assert_int_equal(access(in_folder("parts/model.b158"), R_OK), 0);
            parts.resume = true;
            /* and once more on the way */
            parts.stop_at = stops[i] + 3;
            if (stops[i] + 3 < 12) refused(train(&parts, &result), CHM_E_INTERRUPTED, "everything is saved");
            parts.stop_at = -1;
            must(train(&parts, &result));
            assert_true(result.finished);
            same_files(in_folder("whole/model.b158"), in_folder("parts/model.b158"));
            char *got = reports(in_folder("parts"), &same);
            assert_string_equal(got, expected);
            chm_free(got);
        }
        chm_free(expected);
    }
}

static void threads(void **state) {
    (void)state;
    chm_train_result result;
    int count;
    plan p = {.out = in_folder("threads1"), .tokens = 8 * 256, .stop_at = -1};
    must(train(&p, &result));
    p.out = in_folder("threads2");
    p.runtime = two;
    must(train(&p, &result));
    same_files(in_folder("threads1/model.b158"), in_folder("threads2/model.b158"));
    char *a = reports(in_folder("threads1"), &count), *b = reports(in_folder("threads2"), &count);
    assert_string_equal(a, b);
    chm_free(a);
    chm_free(b);
}

static void budget_in_seconds(void **state) {
    (void)state;
    chm_train_result result, again;
    static const char *const line[] = {"training.phases.pretrain.schedule=linear",
                                       "training.phases.pretrain.warmup_steps=0"};
    plan p = {.out = in_folder("seconds"), .seconds = 1, .stop_at = -1, .set = line, .sets = 2};
    must(train(&p, &result));
    assert_int_equal(logged(in_folder("seconds"), "budget", "steps"), result.steps);
    assert_non_null(strstr(last.said, "is the same run"));
    /* the calibration left no trace, and the number it found is the run */
    p.out = in_folder("tokens");
    p.seconds = 0;
    p.tokens = result.tokens;
    must(train(&p, &again));
    assert_int_equal(again.steps, result.steps);
    same_files(in_folder("seconds/model.b158"), in_folder("tokens/model.b158"));
    /* frozen: a resumed run keeps the number whatever the clock says */
    remove_tree(in_folder("seconds"));
    p.out = in_folder("seconds");
    p.seconds = 1;
    p.tokens = 0;
    p.validation = in_folder("held.txt");
    p.stop_at = 0; /* a slow machine may have budgeted one step only */
    refused(train(&p, &result), CHM_E_INTERRUPTED, "everything is saved");
    const int64_t steps = (int64_t)logged(in_folder("seconds"), "budget", "steps");
    p.resume = true;
    p.seconds = 1000;
    p.stop_at = -1;
    refused(train(&p, &result), CHM_E_CONFIG, "was begun for 1 s, not 1000");
    p.seconds = 1;
    must(train(&p, &result));
    assert_int_equal(result.steps, steps);
    p.seconds = 0;
    p.tokens = (steps + 1) * 256;
    refused(train(&p, &result), CHM_E_CONFIG, "begun for");
    p.seconds = 1;
    refused(train(&p, &result), CHM_E_CONFIG, "give one of them");
}

/* A schedule that is flat at first leaves the number open until it falls; what was trained by then stands. */
static void budget_settled_late(void **state) {
    (void)state;
    static const char *const flat[] = {
        "training.phases.pretrain.schedule=wsd", "training.phases.pretrain.decay_fraction=0.5",
        "training.phases.pretrain.warmup_steps=0", "training.phases.pretrain.carry_segments=1"};
    chm_train_result result, again;
    plan p = {.out = in_folder("late"), .seconds = 2, .stop_at = 1, .set = flat, .sets = 4};
    refused(train(&p, &result), CHM_E_INTERRUPTED, "everything is saved");
    assert_non_null(strstr(last.said, "the number is settled near step"));
    assert_null(strstr(last.said, "is the same run"));
    p.resume = true;
    p.seconds = 0;
    p.tokens = 256;
    refused(train(&p, &again), CHM_E_CONFIG, "begun for 2 s");
    p.tokens = 0;
    p.stop_at = -1;
    must(train(&p, &result));
    assert_non_null(strstr(last.said, "is the same run"));
    assert_int_equal(logged(in_folder("late"), "budget", "steps"), result.steps);
    assert_true(logged(in_folder("late"), "budget", "step") >= 1);
    assert_int_equal(logged(in_folder("late"), "end", "step"), result.steps);
    p.out = in_folder("early");
    p.resume = false;
    p.tokens = result.tokens;
    must(train(&p, &again));
    same_files(in_folder("late/model.b158"), in_folder("early/model.b158"));
}

/* Killed before the budget was in steps: it begins again and keeps its seconds. */
static void budget_killed_early(void **state) {
    (void)state;
    static const char *const line[] = {"training.phases.pretrain.schedule=linear",
                                       "training.phases.pretrain.warmup_steps=0"};
    chm_train_result result;
    for (int before_checkpoint = 0; before_checkpoint < 2; before_checkpoint++) {
        const char *out = in_folder(before_checkpoint ? "killed-first" : "killed-later");
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            chm_runtime *own;
            const chm_runtime_options options = {.size = sizeof options, .threads = 1, .verbosity = -1};
            const plan p = {.out = out, .seconds = 1e5, .stop_at = -1, .set = line, .sets = 2};
            if (chm_runtime_create(&options, &own) != CHM_OK) _exit(1);
            plan q = p;
            q.runtime = own;
            (void)train(&q, &result);
            _exit(0);
        }
        /* the rehearsal takes 3 % of the budget: long after either file is there */
        const char *wanted =
            before_checkpoint ? in_folder("killed-first/lock") : in_folder("killed-later/checkpoint.safetensors");
        while (access(wanted, F_OK) != 0) usleep(2000);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        plan p = {.out = out, .resume = true, .stop_at = -1, .set = line, .sets = 2, .dry_run = false};
        if (before_checkpoint) {
            p.tokens = 512;
            must(train(&p, &result));
            assert_int_equal(result.steps, 2);
            continue;
        }
        p.seconds = 5;
        refused(train(&p, &result), CHM_E_CONFIG, "was begun for 100000 s, not 5");
        p.seconds = 0;
        p.tokens = 512;
        refused(train(&p, &result), CHM_E_CONFIG, "begun for 100000 s");
    }
}

static void refused_runs(void **state) {
    (void)state;
    chm_train_result result;
    plan p = {.out = in_folder("kept"), .tokens = 6 * 256, .stop_at = 3};
    plan q = p;
    q.tokens = INT64_MAX;
    refused(train(&q, &result), CHM_E_CONFIG, "at most 1e+18");
    q.tokens = p.tokens;
    q.resume = true;
    refused(train(&q, &result), CHM_E_CONFIG, "holds no run to resume");
    assert_int_equal(access(in_folder("kept"), F_OK), -1);
    refused(train(&p, &result), CHM_E_INTERRUPTED, "everything is saved");
    refused(train(&p, &result), CHM_E_CONFIG,
            "already holds a run (checkpoint.safetensors); go on with it by --resume");
    /* what differs is named */
    const char *rate = "training.phases.pretrain.lr=0.02";
    q.set = &rate;
    q.sets = 1;
    refused(train(&q, &result), CHM_E_CONFIG, "lr: the run has 0.01, the card now 0.02");
    q.sets = 0;
    write_words(in_folder("other.txt"), 20000, 9);
    q.data = in_folder("other.txt");
    refused(train(&q, &result), CHM_E_CONFIG, "other contents");
    write_words(in_folder("other.txt"), 19000, 1);
    refused(train(&q, &result), CHM_E_CONFIG,
            "other.txt is not the file the run was begun with (19000 bytes now, 20000");
    q.data = NULL;
    /* two at once */
    const int lock = open(in_folder("kept/lock"), O_RDWR);
    assert_true(lock >= 0);
    assert_int_equal(flock(lock, LOCK_EX | LOCK_NB), 0);
    refused(train(&q, &result), CHM_E_CONFIG, "another process is training there");
    close(lock);
    /* a short checkpoint is refused by name */
    size_t n;
    char *good = slurp(in_folder("kept/checkpoint.safetensors"), &n);
    write_file(in_folder("kept/checkpoint.safetensors"), good, n - 100);
    refused(train(&q, &result), CHM_E_DATA, "checkpoint.safetensors");
    write_file(in_folder("kept/checkpoint.safetensors"), good, n);
    q.stop_at = -1;
    must(train(&q, &result));
    chm_free(good);
}

static void memory_and_forecast(void **state) {
    (void)state;
    chm_train_result result;
    plan p = {.out = in_folder("dry"), .dry_run = true, .stop_at = -1};
    must(train(&p, &result));
    assert_int_equal(access(in_folder("dry"), F_OK), -1);
    assert_int_equal(result.steps, 30);
    assert_false(result.finished);
    assert_non_null(strstr(last.said, "30 steps"));
    p.dry_run = false;
    chm_available_memory_pretend(100000);
    refused(train(&p, &result), CHM_E_MEMORY, "needs");
    /* enough for the weights, not for a pass */
    chm_available_memory_pretend(1500000);
    refused(train(&p, &result), CHM_E_MEMORY, "a training pass of 128 rows needs about");
    chm_available_memory_pretend(0);
    assert_true(chm_available_memory(false) > 0);
    assert_int_equal(access(in_folder("dry/log.jsonl"), F_OK), -1);
}

/* Gives a checkpoint the hash of what it now holds. */
static void mend_hash(char *bytes, size_t n) {
    chm_safetensors *file = NULL;
    must(chm_safetensors_parse("checkpoint", (uint8_t *)bytes, n, &file));
    uint64_t hash = 0;
    for (int i = 0; i < file->count; i++)
        if (strncmp(file->tensor[i].name, "_pad", 4) != 0)
            hash = chm_hash64_seed(file->tensor[i].data, file->tensor[i].bytes, hash);
    for (int i = 0; i < file->metas; i++) {
        if (strcmp(file->meta_key[i], "hash") == 0) continue;
        hash = chm_hash64_seed(file->meta_key[i], strlen(file->meta_key[i]) + 1, hash);
        hash = chm_hash64_seed(file->meta_value[i], strlen(file->meta_value[i]) + 1, hash);
    }
    char *was = memmem(bytes, n, chm_safetensors_meta(file, "hash"), 16), now[17];
    assert_non_null(was);
    snprintf(now, sizeof now, "%016llx", (unsigned long long)hash);
    memcpy(was, now, 16);
    chm_safetensors_destroy(file);
}

/* Numbers that no run has come to are refused, whatever the hash says. */
static void contradicting_counts(void **state) {
    (void)state;
    static const struct {
        const char *is, *becomes; /* of one length: the header's stays */
    } wrong[] = {{"\"step\":\"2\"", "\"step\":\"5\""},
                 {"\"steps\":\"4\"", "\"steps\":\"1\""},
                 {"\"applied\":\"2\"", "\"applied\":\"3\""},
                 {"\"skipped\":\"0\"", "\"skipped\":\"7\""},
                 {"\"budget\":\"0x0p+0\"", "\"budget\":\"-0x1p2\""},
                 {"\"settled\":\"1\"", "\"settled\":\"2\""}};
    chm_train_result result;
    plan p = {.out = in_folder("counts"), .tokens = 4 * 256, .stop_at = 2};
    refused(train(&p, &result), CHM_E_INTERRUPTED, "everything is saved");
    size_t n;
    char *bytes = slurp(in_folder("counts/checkpoint.safetensors"), &n), *copy = malloc(n);
    assert_non_null(copy);
    p.resume = true;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(wrong); i++) {
        memcpy(copy, bytes, n);
        char *at = memmem(copy, n, wrong[i].is, strlen(wrong[i].is));
        if (!at) fail_msg("no %s in the checkpoint", wrong[i].is);
        memcpy(at, wrong[i].becomes, strlen(wrong[i].becomes));
        mend_hash(copy, n);
        write_file(in_folder("counts/checkpoint.safetensors"), copy, n);
        refused(train(&p, &result), CHM_E_DATA, "contradict each other");
    }
    free(copy);
    chm_free(bytes);
}

/* A run whose gradients are not finite stops and keeps its last good checkpoint; one that ends before that is saved and
 * called what it is. */
static void not_finite(void **state) {
    const bool brief = *state != NULL;
    chm_train_result result;
    remove_tree(in_folder("nan"));
    plan p = {.out = in_folder("nan"), .tokens = (brief ? 20 : 100) * 256, .stop_at = 2};
    refused(train(&p, &result), CHM_E_INTERRUPTED, "everything is saved");
    /* poison one latent of the checkpoint */
    size_t n;
    char *bytes = slurp(in_folder("nan/checkpoint.safetensors"), &n);
    chm_safetensors *file = NULL;
    must(chm_safetensors_parse("checkpoint", (uint8_t *)bytes, n, &file));
    bool done = false;
    for (int i = 0; i < file->count && !done; i++) {
        if (strncmp(file->tensor[i].name, "value/", 6) != 0 || strstr(file->tensor[i].name, "norm") == NULL) continue;
        const float nan = NAN;
        memcpy((uint8_t *)(uintptr_t)file->tensor[i].data, &nan, sizeof nan);
        done = true;
    }
    assert_true(done);
    write_file(in_folder("nan/checkpoint.safetensors"), bytes, n);
    p.resume = true;
    p.stop_at = -1;
    refused(train(&p, &result), CHM_E_DATA, "do not have the hash");
    mend_hash(bytes, n); /* as if training itself had come to this */
    chm_safetensors_destroy(file);
    write_file(in_folder("nan/checkpoint.safetensors"), bytes, n);
    if (brief) {
        refused(train(&p, &result), CHM_E_VERDICT,
                "diverged: 18 of 20 steps were skipped and the last reported loss is not");
        assert_true(result.finished);
        assert_int_equal(logged(in_folder("nan"), "end", "skipped"), 18);
        assert_int_equal(access(in_folder("nan/model.b158"), R_OK), 0);
        chm_free(bytes);
        return;
    }
    refused(train(&p, &result), CHM_E_VERDICT, "50 steps in a row");
    size_t m;
    char *after = slurp(in_folder("nan/checkpoint.safetensors"), &m);
    assert_int_equal(m, n);
    assert_memory_equal(after, bytes, n);
    assert_int_equal(logged(in_folder("nan"), "skip", "skipped"), 1);
    chm_free(after);
    chm_free(bytes);
}

/* What layers show is averaged into the reports, and a stop in between changes nothing. */
static void metrics(void **state) {
    (void)state;
    static const char *const set[] = {
        "diagnostics.metrics=[gd_alpha_mean, gd_beta_mean, xlstm_input_log_mean, xlstm_forget_mean, titans_alpha_mean, "
        "titans_eta_mean, titans_theta_mean, titans_gamma_mean, titans_surprise_mean, sk_flips_mean, sk_bit_balance, "
        "moe_expert_load_balance, memory_mb]",
        "diagnostics.report_interval_tokens=768",
        "num_hidden_layers=4",
        "backbone.layer_pattern=gd xlstm titans sk",
        "tsp_knot.sketch_bits=1024",
        "backbone.moe.enabled=true",
        "backbone.moe.layers=[3]",
        "backbone.moe.n_routed_experts=4",
        "backbone.moe.moe_intermediate_size=64"};
    chm_train_result result;
    int count;
    plan p = {.out = in_folder("metrics"), .tokens = 6 * 256, .set = set, .sets = CHM_ARRAY_COUNT(set), .stop_at = -1};
    must(train(&p, &result));
    char *expected = reports(in_folder("metrics"), &count);
    static const struct {
        const char *name;
        double least, most;
    } expect[] = {{"gd_alpha_mean", 0.01, 0.999},
                  {"gd_beta_mean", 0.01, 0.99},
                  {"xlstm_input_log_mean", -9, -8.5},
                  {"xlstm_forget_mean", 0.01, 0.999},
                  {"titans_alpha_mean", 1e-4, 0.99},
                  {"titans_eta_mean", 0.01, 0.99},
                  {"titans_theta_mean", 1e-4, 0.99},
                  {"titans_gamma_mean", 0.01, 0.999},
                  {"titans_surprise_mean", 1e-9, 1e6},
                  {"sk_flips_mean", 0, 3 * 20.48},
                  {"sk_bit_balance", -0.2, 0.2},
                  {"moe_expert_load_balance", 0, 3},
                  {"memory_mb", 1, 1e5}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(expect); i++) {
        const double x = logged(in_folder("metrics"), "report", expect[i].name);
        if (!(x >= expect[i].least && x <= expect[i].most)) fail_msg("%s is %g", expect[i].name, x);
    }
    remove_tree(in_folder("metrics"));
    p.validation = in_folder("held.txt");
    p.stop_at = 0; /* before the first step, then amid the run */
    refused(train(&p, &result), CHM_E_INTERRUPTED, "everything is saved");
    p.resume = true;
    p.validation = NULL;
    p.stop_at = 1;
    (void)train(&p, &result);
    p.stop_at = -1;
    must(train(&p, &result));
    char *got = reports(in_folder("metrics"), &count);
    assert_string_equal(got, expected);
    chm_free(got);
    chm_free(expected);
    remove_tree(in_folder("metrics"));
    p = (plan){.out = in_folder("metrics"), .tokens = 256, .stop_at = -1};
    must(train(&p, &result));
    got = reports(in_folder("metrics"), &count);
    assert_null(strstr(got, "gd_alpha_mean"));
    chm_free(got);
}

/* What a killed session leaves: a log cut amid a line, and files half written. */
static void leftovers(void **state) {
    (void)state;
    chm_train_result result;
    plan p = {.out = in_folder("cut"), .tokens = 6 * 256, .stop_at = 3};
    refused(train(&p, &result), CHM_E_INTERRUPTED, "everything is saved");
    size_t n;
    char *text = slurp(in_folder("cut/log.jsonl"), &n);
    write_file(in_folder("cut/log.jsonl"), text, n - 30);
    chm_free(text);
    char ours[600], theirs[600];
    snprintf(ours, sizeof ours, "%s/checkpoint.safetensors.tmp-%ld", p.out, (long)getppid());
    snprintf(theirs, sizeof theirs, "%s/notes.tmp-%ld", p.out, (long)getppid());
    write_file(ours, "x", 1);
    write_file(theirs, "x", 1);
    p.resume = true;
    p.stop_at = -1;
    must(train(&p, &result));
    assert_non_null(strstr(last.said, "behind its last whole line"));
    text = slurp(in_folder("cut/log.jsonl"), &n);
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        if (line[0] != '{' || line[strlen(line) - 1] != '}' || strchr(line + 1, '{'))
            fail_msg("a broken line: %s", line);
    chm_free(text);
    assert_int_equal(access(ours, F_OK), -1);
    assert_int_equal(access(theirs, F_OK), 0);
}

/* Other kernels on the way: not refused, but said and on record. */
static void other_kernels(void **state) {
    (void)state;
    chm_train_result result;
    chm_runtime *plain;
    const chm_runtime_options options = {.size = sizeof options, .threads = 1, .verbosity = -1, .backend = "scalar"};
    must(chm_runtime_create(&options, &plain));
    plan p = {.out = in_folder("kernels"), .tokens = 6 * 256, .stop_at = 3};
    char *then = chm_kernels_training(one), *now = chm_kernels_training(plain);
    assert_true(then && now);
    refused(train(&p, &result), CHM_E_INTERRUPTED, "everything is saved");
    p.resume = true;
    p.stop_at = 4;
    refused(train(&p, &result), CHM_E_INTERRUPTED, "everything is saved");
    assert_null(strstr(last.said, "was trained with the kernel"));
    p.stop_at = -1;
    p.runtime = plain;
    must(train(&p, &result));
    size_t n;
    char *text = slurp(in_folder("kernels/log.jsonl"), &n);
    assert_non_null(strstr(text, then)); /* start */
    assert_non_null(strstr(text, now));  /* resume */
    chm_free(text);
    const bool same = strcmp(then, now) == 0; /* a machine with nothing but scalar */
    if (!same) assert_non_null(strstr(last.said, "=scalar: from here on its bytes may differ"));
    if (same) assert_null(strstr(last.said, "from here on"));
    chm_text_free(then);
    chm_text_free(now);
    chm_runtime_destroy(plain);
}

/* ---- evaluation ---- */

static void score(chm_model *m, const char *file, int64_t split, const char *logits, chm_runtime *r, chm_score *out) {
    chm_tokenizer tokenizer;
    must(chm_tokenizer_open(&tokenizer, &r->registry, m->card));
    FILE *f = logits ? fopen(logits, "wb") : NULL;
    const chm_score_request request = {
        .model = m,
        .kernels = &r->kernels.kernels,
        .pool = r->pool,
        .tokenizer = tokenizer.ops,
        .tokenizer_self = tokenizer.self,
        .files = &file,
        .count = 1,
        .split = split,
        .logits = f,
    };
    must(chm_score_files(&request, out));
    if (f) fclose(f);
    chm_tokenizer_close(&tokenizer);
}

static void evaluation(void **state) {
    (void)state;
    chm_model *m = NULL;
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1};
    must(chm_init_model(one, in_folder("tiny.json"), &overlay, 5, in_folder("fresh.b158")));
    must(chm_open(one, in_folder("fresh.b158"), NULL, true, &m));
    chm_score first, other;
    score(m, in_folder("held.txt"), 0, in_folder("logits"), one, &first);
    assert_int_equal(first.tokens, 3001);
    struct stat st;
    assert_int_equal(stat(in_folder("logits"), &st), 0);
    assert_int_equal(st.st_size, 3001 * 258 * 4);
    static const int64_t splits[] = {1, 7, 64, 1000};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(splits); i++) {
        score(m, in_folder("held.txt"), splits[i], in_folder("logits2"), i % 2 ? one : two, &other);
        assert_memory_equal(&first.nats, &other.nats, sizeof(double));
        same_files(in_folder("logits"), in_folder("logits2"));
    }
    /* the same memory for a hundred times the text */
    write_words(in_folder("short.txt"), 10000, 3);
    write_words(in_folder("long.txt"), 1000000, 3);
    score(m, in_folder("short.txt"), 0, NULL, two, &first);
    score(m, in_folder("long.txt"), 0, NULL, two, &other);
    assert_int_equal(other.tokens, 1000000);
    assert_int_equal(first.arena_bytes, other.arena_bytes);
    /* files are documents of their own: the sum of their scores; a limit cuts */
    chm_score a, b;
    score(m, in_folder("a.txt"), 0, NULL, one, &a);
    score(m, in_folder("b.txt"), 0, NULL, one, &b);
    const char *files[] = {in_folder("a.txt"), in_folder("b.txt")};
    chm_eval_options eval = {.size = sizeof eval, .data = files, .data_count = 2};
    chm_eval_result both = {.size = sizeof both};
    must(chm_eval(one, m, &eval, &both));
    assert_int_equal(both.tokens, 4);
    assert_float_equal(both.nats, a.nats + b.nats, 1e-9);
    eval.limit_bytes = 2;
    must(chm_eval(one, m, &eval, &both));
    assert_int_equal(both.bytes, 2);
    const int stop = 1;
    eval.stop = &stop;
    refused(chm_eval(one, m, &eval, &both), CHM_E_INTERRUPTED, "stopped");
    chm_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schedules),
        cmocka_unit_test(text_in_pieces),
        cmocka_unit_test(refused_files),
        cmocka_unit_test(corpora),
        cmocka_unit_test(order_of_data),
        cmocka_unit_test(learns),
        cmocka_unit_test(stop_and_resume),
        cmocka_unit_test(threads),
        cmocka_unit_test(budget_in_seconds),
        cmocka_unit_test(budget_settled_late),
        cmocka_unit_test(budget_killed_early),
        cmocka_unit_test(free_steps),
        cmocka_unit_test(refused_runs),
        cmocka_unit_test(contradicting_counts),
        cmocka_unit_test(not_finite),
        cmocka_unit_test_prestate(not_finite, (void *)1),
        cmocka_unit_test(metrics),
        cmocka_unit_test(leftovers),
        cmocka_unit_test(other_kernels),
        cmocka_unit_test(memory_and_forecast),
        cmocka_unit_test(evaluation),
    };
    return cmocka_run_group_tests_name("train", tests, set_up, tear_down);
}
