/*
 * test_sentencepiece.c: the sentencepiece tokenizer: training, lossless text, cuts, damaged models, models that carry
 * it; and its tokens against the library's own spm_encode, where that is installed (else the test counts as skipped).
 */
#include "tokenizer_help.h"

#include <sys/wait.h>

enum { SKIPPED = 77, VOCAB = 700 };
static chm_runtime *runtime;
static char *readme; /* text to train on: real prose and code of the repository */
static size_t readme_bytes;
static char *model, *unigram;
static size_t model_bytes, unigram_bytes;
static bool skipped;

static const char *source(const char *name) {
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("CHM_SOURCE_ROOT"), name);
    return path;
}

static int learn(const char *method, int32_t vocab, const char *data, const char *out) {
    const chm_tokenizer_train_options o = {
        .size = sizeof o, .data_count = 1, .data = &data, .out = out, .method = method, .vocab = vocab};
    return chm_tokenizer_train(runtime, &o);
}

static void must(int status) {
    if (status != CHM_OK) fail_msg("%s", chm_error());
}

static void refused(int status, int expected, const char *said) {
    if (status != expected || !strstr(chm_error(), said))
        fail_msg("status %d (expected %d) and \"%s\" (expected \"%s\")", status, expected, chm_error(), said);
}

static int set_up(void **state) {
    (void)state;
    if (open_plugin("sentencepiece") != 0) return -1;
    char *path = chm_format("%s/plugins/tokenizers:%s/plugins/layers:%s/plugins/backends", getenv("CHM_BUILD_ROOT"),
                            getenv("CHM_BUILD_ROOT"), getenv("CHM_BUILD_ROOT"));
    const chm_runtime_options options = {.size = sizeof options, .threads = 1, .plugin_path = path, .verbosity = -1};
    int status = chm_runtime_create(&options, &runtime);
    chm_free(path);
    if (status == CHM_OK) status = chm_read_file(source("docs/reference.md"), 1 << 24, &readme, &readme_bytes);
    if (status == CHM_OK) status = learn(NULL, VOCAB, source("docs/reference.md"), "test_sp.tmp.model");
    if (status == CHM_OK) status = learn("unigram", VOCAB, source("docs/reference.md"), "test_sp.tmp.unigram.model");
    if (status == CHM_OK) status = chm_read_file("test_sp.tmp.model", 1 << 24, &model, &model_bytes);
    if (status == CHM_OK) status = chm_read_file("test_sp.tmp.unigram.model", 1 << 24, &unigram, &unigram_bytes);
    if (status != CHM_OK) fprintf(stderr, "%s\n", chm_error());
    return status == CHM_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    chm_registry_finish(&registry);
    chm_runtime_destroy(runtime);
    chm_free(readme);
    chm_free(model);
    chm_free(unigram);
    unlink("test_sp.tmp.model");
    unlink("test_sp.tmp.unigram.model");
    return 0;
}

static const char everything[] =
    "a\tb\n\n  two   spaces \xe2\x96\x81 mark <s> </s> <unk> <0x0A> <|endoftext|> <|pad|>\r\n"
    "\xf0\x9f\x98\x80 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7 e\xcc\x81 \xc3\xa9 \xe6\xbc\xa2"
    "\xe5\xad\x97 1234 \xff\xfe\xc3 \xe2\x96 \xed\xa0\x80\n   \t end ";

static void anything_comes_back(void **state) {
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        void *self = instance(kind ? unigram : model, kind ? unigram_bytes : model_bytes);
        assert_int_equal(ops->vocab_size(self), VOCAB);
        assert_int_equal(ops->end_of_text(self), 1);
        assert_string_equal(ops->special(self, 1), "<|endoftext|>");
        assert_string_equal(ops->special(self, 2), "<|pad|>");
        assert_null(ops->special(self, 0));
        assert_null(ops->special(self, 3));
        assert_int_equal(ops->properties(self), CHM_TOKENIZER_LOSSLESS);
        assert_int_equal(ops->decode(self, VOCAB, NULL, 0), -1);
        assert_int_equal(ops->decode(self, -1, NULL, 0), -1);
        struct tokens t = encode(self, everything, sizeof everything); /* with its NUL */
        assert_decodes_to(self, &t, everything, sizeof everything);
        for (int64_t i = 0; i < t.count; i++) assert_null(ops->special(self, t.id[i]));
        chm_free(t.id);
        t = encode(self, readme, readme_bytes);
        assert_decodes_to(self, &t, readme, readme_bytes);
        assert_true((size_t)t.count * 2 < readme_bytes); /* it has learnt something */
        chm_free(t.id);
        t = encode(self, "", 0);
        assert_int_equal(t.count, 0);
        chm_free(t.id);
        uint8_t text[2000];
        for (uint32_t run = 0; run < 50; run++) {
            const size_t n = (size_t)below(sizeof text, 1, run);
            for (size_t i = 0; i < n; i++) text[i] = (uint8_t)below(run % 2 ? 256 : 128, 2 + run, i);
            t = encode(self, text, n);
            assert_decodes_to(self, &t, text, n);
            chm_free(t.id);
        }
        drop(self);
    }
}

static void training_repeats_itself(void **state) {
    (void)state;
    char *again;
    size_t bytes;
    for (int kind = 0; kind < 2; kind++) {
        must(learn(kind ? "unigram" : "bpe", VOCAB, source("docs/reference.md"), "test_sp.tmp.again.model"));
        must(chm_read_file("test_sp.tmp.again.model", 1 << 24, &again, &bytes));
        assert_int_equal(bytes, kind ? unigram_bytes : model_bytes);
        assert_memory_equal(again, kind ? unigram : model, bytes);
        chm_free(again);
    }
    unlink("test_sp.tmp.again.model");
}

static void training_is_refused(void **state) {
    (void)state;
    const char *out = "test_sp.tmp.none.model";
    refused(learn(NULL, 270, source("docs/reference.md"), out), CHM_E_CONFIG, "Vocabulary size is smaller than");
    assert_null(strstr(chm_error(), "--"));
    refused(learn(NULL, 1000000, source("docs/reference.md"), out), CHM_E_CONFIG, "Vocabulary size too high");
    refused(learn("wordpiece", 500, source("docs/reference.md"), out), CHM_E_CONFIG, "there are bpe and unigram");
    refused(learn(NULL, 500, "nowhere.txt", out), CHM_E_DATA, "nowhere.txt: cannot open");
    refused(learn(NULL, 500, "/dev/null", out), CHM_E_DATA, "every line is empty");
    refused(learn(NULL, 1, source("docs/reference.md"), out), CHM_E_CONFIG, "2..");
    assert_int_equal(access(out, F_OK), -1);
    refused(learn(NULL, 500, "test_sp.tmp.model", "test_sp.tmp.model"), CHM_E_CONFIG, "would replace the text");
}

static void cuts_change_no_token(void **state) {
    (void)state;
    static const char *const words[] = {"the",
                                        "chimera",
                                        "a",
                                        "rows",
                                        " ",
                                        "  ",
                                        "\n",
                                        "\n\n",
                                        "\t",
                                        ",",
                                        ".",
                                        "12",
                                        "`",
                                        "-",
                                        "\xc3\xa9",
                                        "\xe6\xbc\xa2",
                                        "\xff",
                                        "\xe2\x96\x81",
                                        "\xf0\x9f\x98\x80",
                                        "|",
                                        NULL};
    char text[160];
    for (int kind = 0; kind < 2; kind++) {
        void *self = instance(kind ? unigram : model, kind ? unigram_bytes : model_bytes);
        int cuts = 0;
        for (uint32_t run = 0; run < 150; run++) {
            const size_t n = random_text(words, 50 + run, 30, text, sizeof text);
            cuts += assert_cuts_are_safe(self, text, n);
        }
        assert_true(cuts > 3000);
        const size_t bytes = 200000;
        char *large = chm_alloc(bytes);
        size_t n = random_text(words, 7, 70000, large, bytes);
        assert_streams_as_whole(self, large, n);
        assert_streams_as_whole(self, readme, readme_bytes);
        chm_free(large);
        drop(self);
    }
}

static void damaged_models_are_refused_or_work(void **state) {
    (void)state;
    const int opened = change_single_bytes((const uint8_t *)model, model_bytes, everything, false);
    assert_in_range(opened, 1, 9990);
    void *self;
    for (size_t n = 0; n < model_bytes; n += 61) {
        char *copy = malloc(n + 1);
        memcpy(copy, model, n);
        if ((self = try_instance(copy, n)) != NULL) drop(self);
        free(copy);
    }
    assert_null(try_instance("", 0));
    assert_non_null(strstr(chm_error(), "needs a model"));
    assert_null(try_instance("IQ== 0\nIg== 1\n", 14));
    assert_non_null(strstr(chm_error(), "not a sound sentencepiece model"));
}

/* Spelled in bytes, a space is the mark that stands for it: such a model does not give every text back. */
static void without_a_space_it_is_not_lossless(void **state) {
    (void)state;
    static const char piece[] = "\x0a\x03\xe2\x96\x81\x15"; /* the mark alone, and its score */
    char *other = chm_alloc(model_bytes);
    assert_non_null(other);
    memcpy(other, model, model_bytes);
    char *at = memmem(other, model_bytes, piece, sizeof piece - 1);
    assert_non_null(at);
    at[4]++; /* now it is U+2582 */
    void *self = instance(other, model_bytes);
    assert_int_equal(ops->properties(self) & CHM_TOKENIZER_LOSSLESS, 0);
    drop(self);
    chm_free(other);
}

/* ---- models that carry their tokenizer ---- */

static int init_model(const char *file, const char *vocab, const char *ids, const char *out) {
    char tokenizer[200], vocabulary[64], special[64];
    snprintf(tokenizer, sizeof tokenizer, "files.tokenizer=%s", file);
    snprintf(vocabulary, sizeof vocabulary, "vocab_size=%s", vocab);
    snprintf(special, sizeof special, "token_ids=%s", ids);
    const char *const set[] = {tokenizer, vocabulary, special, "tokenizer.type=sentencepiece", "num_hidden_layers=1"};
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = set, .set_count = 5};
    return chm_init_model(runtime, source("etc/chimera-shakespeare.json"), &overlay, 1, out);
}

static void models_carry_their_tokenizer(void **state) {
    (void)state;
    chm_model *m = NULL;
    chm_tokenizer *inside, *beside;
    const char *out = "test_sp.tmp.b158";
    refused(init_model("test_sp.tmp.model", "500", "[1, 2]", out), CHM_E_CONFIG, "set it to at least 700");
    refused(init_model("test_sp.tmp.model", "700", "[0, 2]", out), CHM_E_CONFIG, "set token_ids to [1, P]");
    refused(init_model("nowhere.model", "700", "[1, 2]", out), CHM_E_DATA, "nowhere.model");
    refused(init_model("/dev/null", "700", "[1, 2]", out), CHM_E_DATA, "/dev/null");
    must(init_model("test_sp.tmp.model", "700", "[1, 2]", out));
    assert_int_equal(rename("test_sp.tmp.model", "test_sp.tmp.elsewhere.model"), 0);
    const chm_overlay plain = {.size = sizeof plain, .no_environment = 1};
    must(chm_open(runtime, out, &plain, true, &m)); /* nothing is needed beside it */
    int32_t ids[64];
    assert_in_range(chm_encode(m, "the rows", 8, ids, 64), 1, 8);
    assert_int_equal(chm_end_of_text(m), 1);
    /* saved again, it still has it */
    must(chm_model_save(m, "test_sp.tmp.2.b158"));
    chm_close(m);
    must(chm_open(runtime, "test_sp.tmp.2.b158", &plain, true, &m));
    chm_close(m);
    must(chm_tokenizer_create(runtime, out, NULL, &plain, &inside));
    must(chm_tokenizer_create(runtime, "test_sp.tmp.elsewhere.model", NULL, NULL, &beside));
    assert_true(inside->hash == beside->hash);
    chm_tokenizer_destroy(inside);
    char this_hash[32], other_hash[32];
    snprintf(this_hash, sizeof this_hash, "%016llx", (unsigned long long)beside->hash);
    chm_tokenizer_destroy(beside);
    must(chm_tokenizer_create(runtime, "test_sp.tmp.unigram.model", NULL, NULL, &beside));
    snprintf(other_hash, sizeof other_hash, "%016llx", (unsigned long long)beside->hash);
    chm_tokenizer_destroy(beside);
    /* the same file by name is fine, another is refused with both hashes */
    const char *same = "files.tokenizer=test_sp.tmp.elsewhere.model",
               *other = "files.tokenizer=test_sp.tmp.unigram.model";
    const chm_overlay with_same = {.size = sizeof plain, .no_environment = 1, .set = &same, .set_count = 1};
    const chm_overlay with_other = {.size = sizeof plain, .no_environment = 1, .set = &other, .set_count = 1};
    must(chm_open(runtime, out, &with_same, false, &m));
    chm_close(m);
    refused(chm_open(runtime, out, &with_other, false, &m), CHM_E_DATA, this_hash);
    assert_non_null(strstr(chm_error(), other_hash));
    assert_non_null(strstr(chm_error(), "test_sp.tmp.unigram.model"));
    assert_int_equal(rename("test_sp.tmp.elsewhere.model", "test_sp.tmp.model"), 0);
    unlink(out);
    unlink("test_sp.tmp.2.b158");
}

/* Trained, scored and run by a card; the run's folder has all that the card names. */
static void trains_and_runs(void **state) {
    (void)state;
    const char *set[] = {
        "files.tokenizer=test_sp.tmp.model",  "vocab_size=704",      "token_ids=[1, 2]",
        "tokenizer.type=sentencepiece",       "num_hidden_layers=1", "training.phases.pretrain.batch_tokens=256",
        "training.phases.pretrain.seq_len=64"};
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = set, .set_count = 7};
    const char *text = source("README.md");
    char data[4096];
    snprintf(data, sizeof data, "%s", text);
    const char *files[] = {data};
    char card[4096];
    snprintf(card, sizeof card, "%s", source("etc/chimera-shakespeare.json"));
    const chm_train_options o = {.size = sizeof o,
                                 .data_count = 1,
                                 .data = files,
                                 .validation_count = 1,
                                 .validation = files,
                                 .card = card,
                                 .overlay = &overlay,
                                 .out = "test_sp.tmp.run",
                                 .tokens = 1024};
    chm_train_result result = {.size = sizeof result};
    assert_int_equal(system("rm -rf test_sp.tmp.run"), 0);
    must(chm_train(runtime, &o, &result));
    const chm_overlay plain = {.size = sizeof plain, .no_environment = 1};
    chm_model *m;
    must(chm_open(runtime, "test_sp.tmp.run/model.b158", &plain, true, &m));
    chm_eval_options e = {.size = sizeof e, .data_count = 1, .data = files};
    chm_eval_result scored = {.size = sizeof scored}, again = {.size = sizeof again};
    must(chm_eval(runtime, m, &e, &scored));
    assert_true(scored.bits_per_byte == result.validation_bits_per_byte);
    e.split = 17;
    must(chm_eval(runtime, m, &e, &again));
    assert_true(scored.nats == again.nats);
    char *whole;
    size_t bytes;
    must(chm_read_file(data, 1 << 24, &whole, &bytes));
    assert_int_equal(scored.bytes, bytes);
    assert_int_equal(scored.tokens, chm_encode(m, whole, bytes, NULL, 0)); /* streamed as the whole */
    chm_free(whole);
    chm_close(m);
    chm_tokenizer *t;
    must(chm_tokenizer_create(runtime, "test_sp.tmp.run/card.json", NULL, &plain, &t));
    chm_tokenizer_destroy(t);
    /* another tokenizer under the same name does not resume it */
    assert_int_equal(rename("test_sp.tmp.model", "test_sp.tmp.kept"), 0);
    assert_int_equal(rename("test_sp.tmp.unigram.model", "test_sp.tmp.model"), 0);
    chm_train_options r = o;
    r.resume = true;
    r.tokens = 0;
    refused(chm_train(runtime, &r, &result), CHM_E_CONFIG, "cannot resume with another tokenizer");
    assert_int_equal(rename("test_sp.tmp.model", "test_sp.tmp.unigram.model"), 0);
    assert_int_equal(rename("test_sp.tmp.kept", "test_sp.tmp.model"), 0);
    assert_int_equal(system("rm -rf test_sp.tmp.run"), 0);
}

/* ---- spm_encode ---- */

static void tokens_are_those_of_spm_encode(void **state) {
    (void)state;
    if (system("spm_encode --help >/dev/null 2>&1") == -1 || system("command -v spm_encode >/dev/null") != 0) {
        printf("SKIPPED: spm_encode is not installed (package sentencepiece)\n");
        skipped = true;
        return;
    }
    static const char *const texts[] = {"docs/reference.md", "README.md", "core/model/b158.c", "etc/chimera-5.1.json"};
    int64_t compared = 0;
    for (int kind = 0; kind < 2; kind++) {
        void *self = instance(kind ? unigram : model, kind ? unigram_bytes : model_bytes);
        for (size_t i = 0; i < CHM_ARRAY_COUNT(texts); i++) {
            char *command = chm_format("spm_encode --model=%s --output_format=id < '%s'",
                                       kind ? "test_sp.tmp.unigram.model" : "test_sp.tmp.model", source(texts[i]));
            FILE *pipe = popen(command, "r"), *file = fopen(source(texts[i]), "rb");
            char *line = NULL, *ids = NULL;
            size_t room = 0, ids_room = 0;
            ssize_t n;
            assert_non_null(pipe);
            assert_non_null(file);
            while ((n = getline(&line, &room, file)) > 0) {
                if (line[n - 1] == '\n') n--;
                assert_true(getline(&ids, &ids_room, pipe) > 0);
                const struct tokens t = encode(self, line, (size_t)n);
                char *at = ids;
                for (int64_t k = 0; k < t.count; k++) {
                    if (strtol(at, &at, 10) != t.id[k])
                        fail_msg("%s: \"%.*s\": token %d", texts[i], (int)n, line, (int)k);
                    compared++;
                }
                assert_int_equal(strspn(at, " \n"), strlen(at));
                chm_free(t.id);
            }
            free(line);
            free(ids);
            fclose(file);
            assert_int_equal(pclose(pipe), 0);
            chm_free(command);
        }
        drop(self);
    }
    printf("%lld tokens compared with spm_encode\n", (long long)compared);
    assert_true(compared > 50000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(anything_comes_back),
        cmocka_unit_test(training_repeats_itself),
        cmocka_unit_test(training_is_refused),
        cmocka_unit_test(cuts_change_no_token),
        cmocka_unit_test(damaged_models_are_refused_or_work),
        cmocka_unit_test(without_a_space_it_is_not_lossless),
        cmocka_unit_test(models_carry_their_tokenizer),
        cmocka_unit_test(trains_and_runs),
        cmocka_unit_test(tokens_are_those_of_spm_encode),
    };
    const int failed = cmocka_run_group_tests(tests, set_up, tear_down);
    return failed ? 1 : skipped ? SKIPPED : 0;
}
