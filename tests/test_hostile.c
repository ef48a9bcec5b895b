/*
 * test_hostile.c: memory that runs out at every place, files that are damaged, cut or absurd, clocks that go back. What
 * is wanted each time: one sentence and a status, or the right result; no crash, and nothing that was there is lost.
 *
 * CHM_TEST_FULL=1 fails every allocation of every path; else the long paths are sampled, the same places each time.
 */
#include "config/card.h"
#include "model/b158.h"
#include "model/runtime.h"
#include "train/train.h"

#include <ftw.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
/* after the standard headers */
#include <cmocka.h>

static char folder[256]; /* of this process's files */
static chm_runtime *runtime;
static bool full;

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

static bool exists(const char *path) { return access(path, F_OK) == 0; }

static void write_file(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static char *slurp(const char *path, size_t *size) {
    char *text = NULL;
    if (chm_read_file(path, UINT64_C(1) << 30, &text, size) != CHM_OK) fail_msg("%s", chm_error());
    return text;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
    (void)st, (void)type, (void)walk;
    return remove(path);
}
static void remove_tree(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static void must(int status) {
    if (status != CHM_OK) fail_msg("status %d: %s", status, chm_error());
}

/* One sentence, fit for a terminal. */
static void said_well(const char *what) {
    const char *said = chm_error();
    if (strlen(said) < 10) fail_msg("%s: said only \"%s\"", what, said);
    for (const char *c = said; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) fail_msg("%s: control bytes in \"%s\"", what, said);
}

/* The name and the hash of a file, so that results can be compared. */
static void add_file(chm_string *s, const char *path) {
    size_t n;
    char *data = slurp(path, &n);
    chm_string_add(s, "%s: %zu bytes, %016" PRIx64 "\n", strrchr(path, '/') + 1, n, chm_hash64(data, n));
    chm_free(data);
}

static const char card_text[] =
    "{\"token_ids\": [256, 257], \"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": 1,\n"
    " \"num_heads\": 2, \"head_dim\": 16, \"vocab_size\": 258,\n"
    " \"quantization\": {\"method\": \"bitnet\", \"embedding\": \"int8\"},\n"
    " \"backbone\": {\"layer_pattern\": \"GD\", \"layer_aliases\": {\"GD\": \"gated_deltanet\"}},\n"
    " \"gated_deltanet\": {\"state_size\": 16, \"chunk_size\": 16}, \"tokenizer\": {\"type\": \"bytes\"},\n"
    " \"generation\": {\"temperature\": 0.8, \"max_new_tokens\": 4},\n"
    " \"training\": {\"phases\": [{\"name\": \"pretrain\", \"tokens\": 128, \"seq_len\": 16, \"batch_tokens\": 64,\n"
    "   \"micro_tokens\": 32, \"carry_segments\": 2, \"lr\": 0.01, \"schedule\": \"cosine_warmup\",\n"
    "   \"warmup_steps\": 1, \"seed\": 7}]},\n"
    " \"diagnostics\": {\"report_interval_tokens\": 64}}\n";
static const char ini_text[] = "; an overlay\n[training.pretrain]\nlr = 0.02\n[gd]\nchunk_size = 32\n";
static const chm_overlay bare = {.size = sizeof bare, .no_environment = 1};

/* Ranks of the 256 bytes and of some pairs. */
static void write_ranks(const char *path) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    chm_string s = {0};
    for (unsigned i = 0; i < 256; i++) chm_string_add(&s, "%c%c== %u\n", digit[i >> 2], digit[(i & 3) << 4], i);
    for (unsigned i = 0; i < 100; i++) { /* 'a' to 't', then 'a' to 'e' */
        const unsigned two = (97 + i / 5) << 8 | (97 + i % 5);
        chm_string_add(&s, "%c%c%c= %u\n", digit[two >> 10], digit[two >> 4 & 63], digit[(two & 15) << 2], 256 + i);
    }
    assert_false(s.failed);
    write_file(path, s.text, s.length);
    chm_string_finish(&s);
}

/* What `chimera layer mlp` reads: four rows, and the layer's parameters. */
static void write_layer_file(const char *path) {
    enum { ROWS = 4, WIDTH = 48, INNER = 80 };
    static float number[INNER * WIDTH];
    chm_normals(3, CHM_RANDOM_TEST, 2, CHM_ARRAY_COUNT(number), number);
    const chm_st_tensor tensor[] = {
        {"x", CHM_ST_F32, 2, {ROWS, WIDTH}, (const uint8_t *)number, ROWS * WIDTH * 4},
        {"dy", CHM_ST_F32, 2, {ROWS, WIDTH}, (const uint8_t *)number, ROWS * WIDTH * 4},
        {"params.gate", CHM_ST_F32, 2, {INNER, WIDTH}, (const uint8_t *)number, INNER * WIDTH * 4},
        {"params.up", CHM_ST_F32, 2, {INNER, WIDTH}, (const uint8_t *)number, INNER * WIDTH * 4},
        {"params.down", CHM_ST_F32, 2, {WIDTH, INNER}, (const uint8_t *)number, INNER * WIDTH * 4},
        {"params.down_norm", CHM_ST_F32, 1, {INNER}, (const uint8_t *)number, INNER * 4},
    };
    const char *const keys[] = {"num_heads", "head_dim", "position"}, *const values[] = {"3", "16", "0"};
    must(chm_safetensors_write(path, tensor, CHM_ARRAY_COUNT(tensor), keys, values, 3, false));
}

static int set_up(void **state) {
    (void)state;
    const char *base = getenv("TMPDIR"), *more = getenv("CHM_TEST_FULL");
    full = more && *more && strcmp(more, "0") != 0;
    /* hundreds of runs that sync their files: in memory where that can be */
    if (!base || !*base) base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof folder, "%s/chimera-hostile-XXXXXX", base);
    if (mkdtemp(folder) == NULL) return -1;
    const chm_runtime_options options = {.size = sizeof options, .threads = 1, .verbosity = -1};
    if (chm_runtime_create(&options, &runtime) != CHM_OK) {
        print_error("%s\n", chm_error());
        return -1;
    }
    write_file(in_folder("card.json"), card_text, sizeof card_text - 1);
    write_file(in_folder("over.ini"), ini_text, sizeof ini_text - 1);
    chm_string words = {0};
    static const char *const word[] = {"the ", "cat ", "sat ", "on ", "a ", "mat", ".\n", "and "};
    for (uint64_t i = 0; i < 400; i++)
        chm_string_add(&words, "%s", word[chm_below_at(1, CHM_RANDOM_TEST, 1, i, CHM_ARRAY_COUNT(word))]);
    write_file(in_folder("words.txt"), words.text, words.length);
    write_file(in_folder("held.txt"), words.text, 150);
    chm_string_finish(&words);
    write_ranks(in_folder("ranks.tiktoken"));
    write_layer_file(in_folder("layer.safetensors"));
    if (chm_init_model(runtime, in_folder("card.json"), &bare, 5, in_folder("model.b158")) != CHM_OK) {
        print_error("%s\n", chm_error());
        return -1;
    }
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    chm_runtime_destroy(runtime);
    remove_tree(folder);
    return 0;
}

/* ---- memory ---- */

static void calm(void) { chm_alloc_fail_after(-1); }

/*
 * Something that allocates. It calms the allocator before it looks at what came of it, and says what that is.
 */
struct path {
    const char *name;
    int (*run)(chm_string *result);
    void (*before)(void);             /* each attempt; NULL: nothing */
    int (*again)(chm_string *result); /* after a failure; NULL: run */
    long most;                        /* places that fail unless all are asked for; 0: all of them */
};

static void sweep(const struct path *p) {
    chm_string expected = {0};
    /* twice: what is made once for the process is not made again */
    for (int i = 0; i < 2; i++) {
        chm_string_finish(&expected);
        if (p->before) p->before();
        must(p->run(&expected));
    }
    assert_true(expected.length > 0 && !expected.failed);
    if (p->before) p->before();
    const uint64_t before = chm_alloc_count();
    chm_string got = {0};
    must(p->run(&got));
    const long all = (long)(chm_alloc_count() - before);
    assert_string_equal(got.text, expected.text);
    const long step = p->most > 0 && !full ? 1 + all / p->most : 1;
    long failed = 0, without = 0;
    for (int once = 0; once < 2; once++)
        for (long n = once; n < all; n += step) {
            char place[160];
            snprintf(place, sizeof place, "%s: allocation %ld of %ld%s", p->name, n, all, once ? " alone" : "");
            chm_string_finish(&got);
            if (p->before) p->before();
            (void)chm_fail(CHM_OK, "-");
            (once ? chm_alloc_fail_once : chm_alloc_fail_after)(n);
            int status = p->run(&got);
            calm();
            if (status == CHM_OK) {
                /* what it was wanted for could be done without */
                without++;
                if (!got.text || strcmp(got.text, expected.text) != 0)
                    fail_msg("%s: another result:\n%s\nexpected:\n%s", place, got.text ? got.text : "", expected.text);
                continue;
            }
            if (status != CHM_E_MEMORY) fail_msg("%s: status %d: %s", place, status, chm_error());
            said_well(place);
            failed++;
            chm_string_finish(&got);
            status = (p->again ? p->again : p->run)(&got);
            if (status != CHM_OK) fail_msg("%s, then: status %d: %s", place, status, chm_error());
            if (strcmp(got.text, expected.text) != 0)
                fail_msg("%s, then: another result:\n%s\nexpected:\n%s", place, got.text, expected.text);
        }
    print_message("%s: %ld allocations, %ld failed, %ld done without\n", p->name, all, failed, without);
    assert_true(failed > 0 && without * 4 <= failed);
    chm_string_finish(&expected);
    chm_string_finish(&got);
}

static int run_runtime(chm_string *result) {
    chm_runtime *r = NULL;
    const chm_runtime_options options = {.size = sizeof options, .threads = 2, .verbosity = -1};
    const int status = chm_runtime_create(&options, &r);
    calm();
    if (status != CHM_OK) return status;
    const struct chm_plugin *p;
    for (size_t i = 0; (p = chm_registry_at(&r->registry, 0, i)); i++) chm_string_add(result, "%s ", p->name);
    chm_runtime_destroy(r);
    return status;
}

static int run_card(chm_string *result) {
    const char *ini[] = {in_folder("over.ini")}, *set[] = {"training.pretrain.lr=0.03", "training.pretrain.tokens=2M"};
    const struct chm_card_options options = {.registry = &runtime->registry,
                                             .ini = ini,
                                             .ini_count = 1,
                                             .set = set,
                                             .set_count = 2,
                                             .read_environment = true};
    chm_card *card = NULL;
    char *json = NULL;
    int status = chm_card_load(in_folder("card.json"), &options, &card);
    if (status == CHM_OK) json = chm_card_json(card);
    if (status == CHM_OK && !json) status = CHM_E_MEMORY;
    calm();
    if (status == CHM_OK) chm_string_add(result, "%s", json);
    chm_free(json);
    chm_card_destroy(card);
    return status;
}

static int run_init(chm_string *result) {
    const int status = chm_init_model(runtime, in_folder("card.json"), &bare, 5, in_folder("new.b158"));
    calm();
    if (status == CHM_OK) add_file(result, in_folder("new.b158"));
    return status;
}

static int run_open(chm_string *result) {
    chm_model *m = NULL;
    const int status = chm_open(runtime, in_folder("model.b158"), &bare, true, &m);
    calm();
    if (status == CHM_OK) chm_string_add(result, "%d ids, %d parameters", chm_vocab(m), m->params);
    chm_close(m);
    return status;
}

static int keep_ids(void *user, const int32_t *ids, int64_t n) {
    chm_string *s = user;
    for (int64_t i = 0; i < n; i++) chm_string_add(s, "%d ", ids[i]);
    return 0;
}

static int run_tokenizer(const char *source, chm_string *result) {
    chm_tokenizer *t = NULL;
    FILE *in = fopen(in_folder("held.txt"), "rb");
    assert_non_null(in);
    int status = chm_tokenizer_create(runtime, source, NULL, &bare, &t);
    if (status == CHM_OK) status = chm_tokenizer_encode(t, in, "held.txt", true, keep_ids, result);
    calm();
    if (status == CHM_OK && result->failed) status = CHM_E_MEMORY; /* this test's own */
    chm_tokenizer_destroy(t);
    fclose(in);
    return status;
}
static int run_ranks(chm_string *result) { return run_tokenizer(in_folder("ranks.tiktoken"), result); }

static int run_eval(chm_string *result) {
    chm_model *m = NULL;
    const char *data = in_folder("held.txt");
    const chm_eval_options options = {
        .size = sizeof options, .data = &data, .data_count = 1, .logits = in_folder("logits.f32")};
    chm_eval_result score = {.size = sizeof score};
    int status = chm_open(runtime, in_folder("model.b158"), &bare, false, &m);
    if (status == CHM_OK) status = chm_eval(runtime, m, &options, &score);
    calm();
    if (status == CHM_OK) {
        chm_string_add(result, "%a bits a byte, %" PRId64 " bytes\n", score.bits_per_byte, score.bytes);
        add_file(result, options.logits);
    }
    chm_close(m);
    return status;
}

static int keep_text(void *user, const void *text, size_t bytes) {
    chm_string_add_bytes(user, text, bytes);
    return 0;
}

static int run_generate(chm_string *result) {
    chm_model *m = NULL;
    chm_stream *s = NULL, *fork = NULL;
    int status = chm_open(runtime, in_folder("model.b158"), &bare, false, &m);
    if (status == CHM_OK) status = chm_stream_open(runtime, m, &s);
    if (status == CHM_OK) status = chm_generate(s, "The cat", 7, 9, NULL, keep_text, result, NULL);
    if (status == CHM_OK) status = chm_stream_fork(s, &fork);
    if (status == CHM_OK) status = chm_generate(fork, " and", 4, 5, NULL, keep_text, result, NULL);
    calm();
    if (status == CHM_OK && result->failed) status = CHM_E_MEMORY; /* this test's own */
    chm_stream_close(fork);
    chm_stream_close(s);
    chm_close(m);
    return status;
}

/* Every report that does not measure time. */
enum { REPORTS = 7 };
static int report;
static chm_output report_format;

static int run_report(chm_string *result) {
    char *text = NULL;
    size_t bytes;
    chm_tokenizer *t = NULL;
    const char *data = in_folder("held.txt");
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    int status = CHM_OK;
    switch (report) {
    case 0:
        status = chm_doctor(runtime, report_format, out);
        break;
    case 1:
        status = chm_plugins_list(runtime, NULL, report_format, out);
        break;
    case 2:
        status = chm_plugins_show(runtime, "gd", report_format, out);
        break;
    case 3:
        status = chm_check(runtime, in_folder("card.json"), &bare, true, report_format, out);
        break;
    case 4:
        status = chm_inspect(runtime, in_folder("model.b158"), true, report_format, out);
        break;
    case 5:
        status = chm_inspect(runtime, in_folder("layer.safetensors"), false, report_format, out);
        break;
    default:
        status = chm_tokenizer_create(runtime, in_folder("model.b158"), NULL, &bare, &t);
        if (status == CHM_OK) status = chm_tokenizer_show(t, &data, 1, report_format, out);
        break;
    }
    calm();
    chm_tokenizer_destroy(t);
    fclose(out);
    if (status == CHM_OK) chm_string_add(result, "%s", text);
    free(text);
    return status;
}

static void no_memory_for_reports(void **state) {
    (void)state;
    for (report = 0; report < REPORTS; report++)
        for (report_format = CHM_OUTPUT_TEXT; report_format <= CHM_OUTPUT_MD; report_format++) {
            char name[40];
            snprintf(name, sizeof name, "report %d, format %d", report, (int)report_format);
            sweep(&(struct path){.name = name, .run = run_report, .most = 40});
        }
}

static int run_layer(chm_string *result) {
    const char *plain = "quantization.method=none";
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = &plain, .set_count = 1};
    const chm_layer_options options = {.size = sizeof options,
                                       .plugin = "mlp",
                                       .overlay = &overlay,
                                       .in = in_folder("layer.safetensors"),
                                       .out = in_folder("layer-out.safetensors"),
                                       .grad = true};
    const int status = chm_layer_run(runtime, &options);
    calm();
    if (status == CHM_OK) add_file(result, options.out);
    return status;
}

/* ---- training ---- */

static int64_t stop_after_step; /* 0: no step */
static volatile int stop;

static void on_progress(void *user, const chm_progress *p) {
    (void)user;
    if (stop_after_step > 0 && p->message == NULL && p->step >= stop_after_step) stop = 1;
}

static int train_steps(const char *out, bool resume, chm_string *result) {
    stop = 0;
    const char *data = in_folder("words.txt"), *held = in_folder("held.txt");
    const chm_train_options options = {
        .size = sizeof options,
        .card = in_folder("card.json"),
        .overlay = &bare,
        .data = &data,
        .data_count = 1,
        .validation = &held,
        .validation_count = 1,
        .out = out,
        .resume = resume,
        .progress = on_progress,
        .stop = &stop,
    };
    chm_train_result r = {.size = sizeof r};
    const int status = chm_train(runtime, &options, &r);
    calm();
    if (status == CHM_OK && result) {
        char path[600];
        snprintf(path, sizeof path, "%s/model.b158", out);
        add_file(result, path);
        snprintf(path, sizeof path, "%s/card.json", out);
        add_file(result, path);
        chm_string_add(result, "%a held out\n", r.validation_bits_per_byte);
    }
    return status;
}

static void no_run(void) { remove_tree(in_folder("run")); }
static int run_train(chm_string *result) { return train_steps(in_folder("run"), false, result); }
/* What a failed attempt left is gone on with as a user would. */
static int run_train_again(chm_string *result) {
    const bool begun = exists(in_folder("run/lock"));
    return train_steps(in_folder("run"), begun, result);
}

/* A run that stands after its first step of two. */
static void half_a_run(void) {
    static const char *const files[][2] = {{"half/checkpoint.safetensors", "run/checkpoint.safetensors"},
                                           {"half/log.jsonl", "run/log.jsonl"},
                                           {"half/model.b158", "run/model.b158"},
                                           {"half/card.json", "run/card.json"},
                                           {"half/lock", "run/lock"}};
    if (!exists(in_folder("half"))) {
        stop_after_step = 1;
        assert_int_equal(train_steps(in_folder("half"), false, NULL), CHM_E_INTERRUPTED);
        stop_after_step = 0;
    }
    no_run();
    assert_int_equal(mkdir(in_folder("run"), 0777), 0);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(files); i++) {
        size_t n;
        char *data = slurp(in_folder(files[i][0]), &n);
        write_file(in_folder(files[i][1]), data, n);
        chm_free(data);
    }
}
static int run_resume(chm_string *result) { return train_steps(in_folder("run"), true, result); }

static void no_memory(void **state) {
    (void)state;
    setenv("CHIMERA_GD__CHUNK_SIZE", "8", 1);
    sweep(&(struct path){.name = "card", .run = run_card, .most = 400});
    unsetenv("CHIMERA_GD__CHUNK_SIZE");
    sweep(&(struct path){.name = "runtime", .run = run_runtime});
    sweep(&(struct path){.name = "init", .run = run_init, .most = 200});
    sweep(&(struct path){.name = "open", .run = run_open, .most = 400});
    sweep(&(struct path){.name = "eval", .run = run_eval, .most = 200});
    sweep(&(struct path){.name = "generate", .run = run_generate, .most = 200});
    sweep(&(struct path){.name = "ranks", .run = run_ranks});
    sweep(&(struct path){.name = "layer", .run = run_layer, .most = 200});
}

static void no_memory_in_training(void **state) {
    (void)state;
    sweep(&(struct path){.name = "train", .run = run_train, .before = no_run, .again = run_train_again, .most = 100});
    sweep(&(struct path){.name = "resume", .run = run_resume, .before = half_a_run, .most = 100});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_memory),
        cmocka_unit_test(no_memory_for_reports),
        cmocka_unit_test(no_memory_in_training),
    };
    return cmocka_run_group_tests_name("hostile", tests, set_up, tear_down);
}
