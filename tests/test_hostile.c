/*
 * test_hostile.c: memory that runs out at every place, files that are damaged, cut or absurd, clocks that go back. What
 * is wanted each time: one sentence and a status, or the right result; no crash, and nothing that was there is lost.
 *
 * CHM_TEST_FULL=1 fails every allocation of every path; else the long paths are sampled, the same places each time.
 */
#include "base/json.h"
#include "config/card.h"
#include "model/b158.h"
#include "model/runtime.h"
#include "train/train.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
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

/* Under the sanitizers a place takes ten times as long: a third of them there, the plain builds have more. */
#ifdef __SANITIZE_ADDRESS__
enum { SPARING = 3 };
#else
enum { SPARING = 1 };
#endif

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
    int refused;                      /* the status it is to have, its sentence being the result; CHM_OK: none */
};

static int attempt(const struct path *p, int (*run)(chm_string *result), chm_string *result) {
    chm_string_finish(result);
    const int status = run(result);
    calm();
    if (p->refused == CHM_OK || status != p->refused) return status;
    chm_string_add(result, "%s", chm_error());
    return CHM_OK;
}

static void sweep(const struct path *p) {
    chm_string expected = {0};
    /* twice: what is made once for the process is not made again */
    for (int i = 0; i < 2; i++) {
        if (p->before) p->before();
        must(attempt(p, p->run, &expected));
    }
    assert_true(expected.length > 0 && !expected.failed);
    if (p->before) p->before();
    const uint64_t before = chm_alloc_count();
    chm_string got = {0};
    must(attempt(p, p->run, &got));
    const long all = (long)(chm_alloc_count() - before);
    assert_string_equal(got.text, expected.text);
    const long step = p->most > 0 && !full ? 1 + all / (p->most / SPARING) : 1;
    long failed = 0, without = 0;
    for (int once = 0; once < 2; once++)
        for (long n = once; n < all; n += step) {
            char place[160];
            snprintf(place, sizeof place, "%s: allocation %ld of %ld%s", p->name, n, all, once ? " alone" : "");
            if (p->before) p->before();
            (void)chm_fail(CHM_OK, "-");
            (once ? chm_alloc_fail_once : chm_alloc_fail_after)(n);
            int status = attempt(p, p->run, &got);
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
            status = attempt(p, p->again ? p->again : p->run, &got);
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

static int convert(const char *in, const char *out, const char *encoding, chm_string *result) {
    const chm_convert_options options = {.size = sizeof options, .encoding = encoding, .lossy = true, .overlay = &bare};
    const int status = chm_convert(runtime, in_folder(in), in_folder(out), &options, NULL);
    calm();
    if (status == CHM_OK) add_file(result, in_folder(out));
    return status;
}
static int run_convert(chm_string *result) { return convert("model.b158", "other.b158", "sherry", result); }
static int run_convert_plain(chm_string *result) { return convert("model.b158", "plain.safetensors", NULL, result); }
static int run_convert_back(chm_string *result) { return convert("plain.safetensors", "other.b158", NULL, result); }

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

/* Rows tried as a tree, and one of its paths taken. */
static int run_tree(chm_string *result) {
    static const int32_t ids[] = {256, 'T', 'h', 'e', ' ', 'c', 'd'}, parent[] = {-1, 0, 1, 1, 3}, taken[] = {0, 1, 3};
    chm_model *m = NULL;
    chm_stream *s = NULL;
    const float *last = NULL;
    float *logits = malloc(5 * 258 * sizeof *logits);
    assert_non_null(logits);
    int status = chm_open(runtime, in_folder("model.b158"), &bare, false, &m);
    if (status == CHM_OK) status = chm_stream_open(runtime, m, &s);
    if (status == CHM_OK) status = chm_stream_feed(s, ids, 2, NULL);
    if (status == CHM_OK) status = chm_stream_try(s, ids + 2, parent, 5, logits);
    if (status == CHM_OK) status = chm_stream_accept(s, taken, 3);
    if (status == CHM_OK) status = chm_stream_feed(s, ids, 1, &last);
    calm();
    if (status == CHM_OK)
        chm_string_add(result, "%016" PRIx64 " %016" PRIx64, chm_hash64(logits, 5 * 258 * sizeof *logits),
                       chm_hash64(last, 258 * sizeof *last));
    free(logits);
    chm_stream_close(s);
    chm_close(m);
    return status;
}

/* A card with many problems. */
static int run_bad_card(chm_string *result) {
    const char *set[] = {"gd.chunksize=1", "trainning.lr=1", "hidden_size=big"};
    const struct chm_card_options options = {.registry = &runtime->registry, .set = set, .set_count = 3};
    chm_card *card = NULL;
    (void)result;
    return chm_card_load(in_folder("card.json"), &options, &card);
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

static const chm_overlay *trained_with = &bare;

static int train_steps(const char *out, bool resume, chm_string *result) {
    stop = 0;
    const char *data = in_folder("words.txt"), *held = in_folder("held.txt");
    const chm_train_options options = {
        .size = sizeof options,
        .card = in_folder("card.json"),
        .overlay = trained_with,
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

/* With another card than the run was begun with, which is told after long comparison. */
static int run_resume_otherwise(chm_string *result) {
    const char *set = "training.pretrain.lr=0.03", *data = in_folder("words.txt");
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = &set, .set_count = 1};
    const chm_train_options options = {.size = sizeof options,
                                       .card = in_folder("card.json"),
                                       .overlay = &overlay,
                                       .data = &data,
                                       .data_count = 1,
                                       .out = in_folder("run"),
                                       .resume = true};
    (void)result;
    return chm_train(runtime, &options, NULL);
}

/* ---- a study ---- */

static const char study_text[] =
    "[study]\ncard = card.json\ndata = words.txt\nheld_out = 0.2\nseeds = 1, 2\ntokens = 128\n"
    "match = parameters\n[variant gd]\nunchanged = true\n"
    "[variant attn]\nbackbone.layer_pattern = attn\n"
    "[grid]\ntraining.pretrain.lr = 0.01, 0.02\n";

/* What it would run; with `slurm` it is begun. */
static int look_at_study(bool begin, chm_string *result) {
    const char *command = "chimera";
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    const chm_ablate_options options = {.size = sizeof options,
                                        .study = in_folder("study.ini"),
                                        .out = in_folder("study"),
                                        .command = &command,
                                        .command_count = 1,
                                        .dry_run = !begin,
                                        .slurm = begin};
    const int status = chm_ablate(runtime, &options, CHM_OUTPUT_TEXT, out);
    calm();
    assert_int_equal(fclose(out), 0);
    if (status == CHM_OK && result) chm_string_add(result, "%s", text);
    free(text);
    return status;
}
static int run_study_plan(chm_string *result) { return look_at_study(false, result); }
static void no_study(void) { remove_tree(in_folder("study")); }
static int run_study_begin(chm_string *result) {
    const int status = look_at_study(true, result);
    if (status != CHM_OK) return status;
    add_file(result, in_folder("study/manifest.json"));
    add_file(result, in_folder("study/study.ini"));
    add_file(result, in_folder("study/data/held-out-1.txt"));
    return status;
}
static void a_study(void) {
    no_study();
    must(look_at_study(true, NULL));
}
static int run_cell(chm_string *result) {
    const int status = chm_ablate_cell(runtime, in_folder("study"), 0, NULL, NULL, NULL);
    calm();
    if (status != CHM_OK) return status;
    add_file(result, in_folder("study/cells/gd-g1-s1/model.b158"));
    assert_true(exists(in_folder("study/cells/gd-g1-s1/result.json")));
    assert_false(exists(in_folder("study/cells/gd-g1-s1/failed.json")));
    return status;
}
static int run_study_report(chm_string *result) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    const int status = chm_report(in_folder("study"), CHM_OUTPUT_JSON, out);
    calm();
    assert_int_equal(fclose(out), 0);
    if (status == CHM_OK) {
        chm_string_add(result, "%s", text);
        add_file(result, in_folder("study/results.csv"));
        add_file(result, in_folder("study/report.md"));
        add_file(result, in_folder("study/report.html"));
    }
    free(text);
    return status;
}

static void no_memory_in_a_study(void **state) {
    (void)state;
    char *path = chm_strdup(getenv("PATH") ? getenv("PATH") : "");
    assert_non_null(path);
    write_file(in_folder("study.ini"), study_text, sizeof study_text - 1);
    sweep(&(struct path){.name = "study", .run = run_study_plan, .most = 60});
    sweep(&(struct path){.name = "study begun", .run = run_study_begin, .before = no_study, .most = 60});
    sweep(&(struct path){.name = "cell", .run = run_cell, .before = a_study, .most = 40});
    must(chm_ablate_cell(runtime, in_folder("study"), 1, NULL, NULL, NULL));
    must(chm_ablate_cell(runtime, in_folder("study"), 2, NULL, NULL, NULL));
    setenv("PATH", folder, 1); /* drawings are another program's */
    sweep(&(struct path){.name = "report of a study", .run = run_study_report, .most = 100});
    setenv("PATH", path, 1);
    chm_free(path);
}

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
    sweep(&(struct path){.name = "tree", .run = run_tree, .most = 200});
    sweep(&(struct path){.name = "bad card", .run = run_bad_card, .most = 200, .refused = CHM_E_CONFIG});
    sweep(&(struct path){.name = "ranks", .run = run_ranks});
    sweep(&(struct path){.name = "layer", .run = run_layer, .most = 200});
    sweep(&(struct path){.name = "convert", .run = run_convert, .most = 100});
    sweep(&(struct path){.name = "convert to plain", .run = run_convert_plain, .most = 100});
    sweep(&(struct path){.name = "convert back", .run = run_convert_back, .most = 100});
}

static void no_memory_in_training(void **state) {
    (void)state;
    sweep(&(struct path){.name = "train", .run = run_train, .before = no_run, .again = run_train_again, .most = 100});
    sweep(&(struct path){.name = "resume", .run = run_resume, .before = half_a_run, .most = 100});
    half_a_run();
    sweep(&(struct path){
        .name = "resume with another card", .run = run_resume_otherwise, .most = 400, .refused = CHM_E_CONFIG});
    static const char *const others[][3] = {
        {"train with Muon", "training.pretrain.optimizer=Muon", "training.gradient_checkpointing=true"},
        {"train with MeZO", "training.pretrain.optimizer=MeZO", "training.mezo.skip_zeros=true"}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(others); i++) {
        const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = &others[i][1], .set_count = 2};
        trained_with = &overlay;
        sweep(&(struct path){
            .name = others[i][0], .run = run_train, .before = no_run, .again = run_train_again, .most = 100});
        trained_with = &bare;
    }
}

/* ---- damaged files ---- */

static uint64_t draw(uint32_t key, uint64_t position, uint64_t bound) {
    return chm_below_at(13, CHM_RANDOM_TEST, key, position, bound);
}

/* What reads a file, and how it may end. */
struct reader {
    const char *name;
    const char *file; /* a sound one */
    int (*use)(const char *path);
    void (*before)(void); /* each use; NULL: nothing */
    bool ends_anywhere;   /* a beginning of it may be sound too */
};

static int use_and_look(const struct reader *r, const char *what, size_t at) {
    char place[160];
    snprintf(place, sizeof place, "%s, %s %zu", r->name, what, at);
    (void)chm_fail(CHM_OK, "-");
    const int status = r->use(in_folder("damaged"));
    if (status == CHM_OK) return status;
    /* a card may ask for another plugin, or for more than there is */
    if (status != CHM_E_DATA && status != CHM_E_CONFIG && status != CHM_E_PLUGIN)
        fail_msg("%s: status %d: %s", place, status, chm_error());
    if (strstr(r->name, "card") == NULL && strstr(r->name, "ini") == NULL) said_well(place);
    if (strlen(chm_error()) < 10) fail_msg("%s: said \"%s\"", place, chm_error());
    return status;
}

/* `changes` bytes changed, one at a time. */
static void change_bytes(const struct reader *r, uint64_t changes) {
    size_t bytes;
    long refused = 0;
    char *good = slurp(r->file, &bytes);
    for (uint64_t run = 0; run < changes; run++) {
        if (r->before) r->before();
        const size_t at = (size_t)draw(1, run, bytes);
        const char was = good[at];
        good[at] = (char)(was + (char)(1 + draw(2, run, 255)));
        write_file(in_folder("damaged"), good, bytes);
        refused += use_and_look(r, "changed at byte", at) != CHM_OK;
        good[at] = was;
    }
    print_message("%s: %ld of %" PRIu64 " changed bytes refused\n", r->name, refused, changes);
    assert_true(refused > 0);
    chm_free(good);
}

/* Cut at every 4 KiB, and at some places between. */
static void cut(const struct reader *r) {
    size_t bytes;
    char *good = slurp(r->file, &bytes);
    for (size_t n = 0, next; n < bytes; n = next) {
        const size_t small = bytes < 4096 ? 13 : 1777;
        next = CHM_MIN((n / 4096 + 1) * 4096, (n / small + 1) * small);
        if (r->before) r->before();
        write_file(in_folder("damaged"), good, n);
        if (use_and_look(r, "cut at", n) == CHM_OK && !r->ends_anywhere)
            fail_msg("%s: taken although cut at %zu of %zu", r->name, n, bytes);
    }
    /* and whole it is sound */
    if (r->before) r->before();
    write_file(in_folder("damaged"), good, bytes);
    must(r->use(in_folder("damaged")));
    chm_free(good);
}

static int use_card(const char *path) {
    const struct chm_card_options options = {.registry = &runtime->registry};
    chm_card *card = NULL;
    chm_model *m = NULL;
    int status = chm_card_load(path, &options, &card);
    if (status == CHM_OK) status = chm_model_create(card, &runtime->registry, &m);
    chm_model_destroy(m);
    return status;
}

static int use_ini(const char *path) {
    const struct chm_card_options options = {.registry = &runtime->registry, .ini = &path, .ini_count = 1};
    chm_card *card = NULL;
    const int status = chm_card_load(in_folder("card.json"), &options, &card);
    chm_card_destroy(card);
    return status;
}

static int use_model(const char *path) {
    static const int32_t ids[] = {256, 't', 'h', 'e'};
    chm_model *m = NULL;
    chm_stream *s = NULL;
    const float *logits = NULL;
    int status = chm_open(runtime, path, &bare, false, &m);
    if (status == CHM_OK) status = chm_stream_open(runtime, m, &s);
    if (status == CHM_OK) status = chm_stream_feed(s, ids, 4, &logits);
    chm_stream_close(s);
    chm_close(m);
    return status;
}

static int use_layer(const char *path) {
    const chm_layer_options options = {
        .size = sizeof options, .plugin = "mlp", .overlay = &bare, .in = path, .out = "/dev/null", .grad = true};
    return chm_layer_run(runtime, &options);
}

static int use_ranks(const char *path) {
    chm_tokenizer *t = NULL;
    const int status = chm_tokenizer_create(runtime, path, "o200k", &bare, &t);
    chm_tokenizer_destroy(t);
    return status;
}

/* A checkpoint is refused and stays as it is, or gives the run's bytes. */
static int use_checkpoint(const char *path) {
    static char *expected;
    chm_string got = {0};
    size_t bytes, after;
    if (!expected) {
        half_a_run();
        must(run_resume(&got));
        expected = got.text;
        got = (chm_string){0};
        half_a_run();
    }
    char *damaged = slurp(path, &bytes);
    write_file(in_folder("run/checkpoint.safetensors"), damaged, bytes);
    const int status = run_resume(&got);
    if (status == CHM_OK) {
        assert_string_equal(got.text, expected);
    } else {
        char *left = slurp(in_folder("run/checkpoint.safetensors"), &after);
        assert_int_equal(after, bytes);
        if (bytes) assert_memory_equal(left, damaged, bytes);
        chm_free(left);
    }
    chm_string_finish(&got);
    chm_free(damaged);
    return status;
}

static bool have(enum chm_kind kind, const char *name) {
    return chm_registry_find(&runtime->registry, kind, name) != NULL;
}

static void damaged_files(void **state) {
    (void)state;
    half_a_run();
    const struct reader readers[] = {
        {.name = "card", .file = in_folder("card.json"), .use = use_card},
        {.name = "ini", .file = in_folder("over.ini"), .use = use_ini, .ends_anywhere = true},
        {.name = "model", .file = in_folder("model.b158"), .use = use_model},
        {.name = "layer file", .file = in_folder("layer.safetensors"), .use = use_layer},
        {.name = "rank file", .file = in_folder("ranks.tiktoken"), .use = use_ranks, .ends_anywhere = true},
        {.name = "checkpoint",
         .file = in_folder("half/checkpoint.safetensors"),
         .use = use_checkpoint,
         .before = half_a_run},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(readers); i++) {
        const struct reader *r = &readers[i];
        if (r->use == use_ranks) {
            /* changed bytes of these, and of sentencepiece models, are the matter of their own tests */
            if (have(CHM_KIND_TOKENIZER, "o200k")) cut(r);
            continue;
        }
        cut(r);
        change_bytes(r, r->before && !full ? 500 : 10000);
    }
}

/* One byte of `path`, which is the model or its experts, changed at a time, in the file itself. */
static void change_bytes_of(const char *model, const char *path, uint64_t changes) {
    const struct chm_card_options options = {.registry = &runtime->registry};
    size_t bytes;
    char *good = slurp(path, &bytes);
    chm_safetensors *file = NULL;
    must(chm_safetensors_parse(path, (const uint8_t *)good, bytes, &file));
    const int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    long refused_open = 0, in_header = 0, in_scales = 0;
    for (uint64_t run = 0; run < changes; run++) {
        /* half of them where a default load looks: the header is an eighth of the file, scales are less */
        size_t at = (size_t)draw(21, run, run % 4 == 0 ? file->header_bytes : bytes);
        if (run % 4 == 1) {
            int i = (int)draw(22, run, (uint64_t)file->count);
            while (!strstr(file->tensor[i].name, ".scale")) i = (i + 1) % file->count;
            at = (size_t)(file->tensor[i].data - (const uint8_t *)good) + (size_t)draw(23, run, file->tensor[i].bytes);
        }
        const uint8_t *place = (const uint8_t *)good + at;
        const bool header = at < file->header_bytes;
        bool scales = false;
        for (int i = 0; i < file->count; i++)
            scales = scales || (strstr(file->tensor[i].name, ".scale") && place >= file->tensor[i].data &&
                                place < file->tensor[i].data + file->tensor[i].bytes);
        const char now = (char)(good[at] + (char)(1 + draw(24, run, 255)));
        assert_int_equal(pwrite(fd, &now, 1, (off_t)at), 1);
        chm_model *m = NULL;
        int status = chm_model_open(model, &runtime->registry, &options, false, &m);
        if (status == CHM_OK ? header || scales : status != CHM_E_DATA)
            fail_msg("byte %zu changed: status %d: %s", at, status, chm_error());
        if (status != CHM_OK) said_well("a changed byte");
        refused_open += status != CHM_OK;
        in_header += header;
        in_scales += scales;
        chm_model_destroy(m);
        if (status == CHM_OK && run % 16 == 2) status = use_model(model);
        if (status != CHM_OK && status != CHM_E_DATA) fail_msg("byte %zu changed and run: %s", at, chm_error());
        status = chm_model_open(model, &runtime->registry, &options, true, &m);
        if (status != CHM_E_DATA) fail_msg("byte %zu changed and verified: status %d", at, status);
        assert_int_equal(pwrite(fd, &good[at], 1, (off_t)at), 1);
    }
    print_message("%s: %ld of %" PRIu64 " changed bytes refused on opening (%ld in the header, %ld in scales), all by "
                  "--verify\n",
                  strrchr(path, '/') + 1, refused_open, changes, in_header, in_scales);
    assert_true(in_header > 0 && in_scales > 0 && refused_open < (long)changes);
    must(use_model(model));
    assert_int_equal(close(fd), 0);
    chm_safetensors_destroy(file);
    chm_free(good);
}

/* Of a model of every kind of layer: always found by a check of every byte, in header and scales by opening it, and
 * elsewhere what opens runs. */
static void changed_byte_of_a_model(void **state) {
    (void)state;
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
    const uint64_t changes = full ? 10000 : 300;
#else
    const uint64_t changes = full ? 10000 : 1500;
#endif
    const char *root = getenv("CHM_SOURCE_ROOT"), *model = in_folder("nano.b158");
    char card[512];
    snprintf(card, sizeof card, "%s/etc/chimera-nano.json", root ? root : "..");
    must(chm_init_model(runtime, card, &bare, 5, model));
    change_bytes_of(model, model, changes);
    change_bytes_of(model, in_folder("nano_experts.b158"), changes / 5);
}

/* Text that becomes shorter while it is read. */
static void shorten(void *user, int64_t done, int64_t total) {
    (void)done, (void)total;
    assert_int_equal(truncate(user, 1000), 0);
}

static void text_cut_while_read(void **state) {
    (void)state;
    chm_model *m = NULL;
    const char *path = in_folder("long.txt");
    enum { BYTES = 150000 };
    char *text = chm_alloc(BYTES);
    memset(text, 'a', BYTES);
    write_file(path, text, BYTES);
    chm_free(text);
    must(chm_open(runtime, in_folder("model.b158"), &bare, false, &m));
    const chm_eval_options options = {.size = sizeof options,
                                      .data = &path,
                                      .data_count = 1,
                                      .split = 1000,
                                      .progress = shorten,
                                      .user = (void *)(uintptr_t)path};
    chm_eval_result result = {.size = sizeof result};
    assert_int_equal(chm_eval(runtime, m, &options, &result), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "became shorter while it was read"));
    chm_close(m);
}

/* A log that was cut goes on with a line of its own. */
static void log_cut(void **state) {
    (void)state;
    size_t bytes;
    half_a_run();
    char *log = slurp(in_folder("run/log.jsonl"), &bytes);
    for (size_t n = 0; n < bytes; n += 1 + bytes / 7) {
        half_a_run();
        write_file(in_folder("run/log.jsonl"), log, n);
        if (n == 0) assert_int_equal(unlink(in_folder("run/log.jsonl")), 0);
        must(run_resume(NULL));
        size_t after;
        char *text = slurp(in_folder("run/log.jsonl"), &after), *save = NULL;
        assert_true(after > 0 && text[after - 1] == '\n');
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
            if (strncmp(line, "{\"schema_version\":1,", 20) != 0 || line[strlen(line) - 1] != '}' ||
                strstr(line + 1, "{"))
                fail_msg("log cut at %zu: line '%s'", n, line);
        chm_free(text);
    }
    chm_free(log);
}

/* A run that ended between its first checkpoint and its card writes the card when it goes on; what a killed one was
 * writing is cleared away, and nothing else. */
static void what_a_killed_run_left(void **state) {
    (void)state;
    chm_string expected = {0}, got = {0};
    half_a_run();
    must(run_resume(&expected));
    half_a_run();
    assert_int_equal(unlink(in_folder("run/card.json")), 0);
    write_file(in_folder("run/checkpoint.safetensors.tmp-123"), "x", 1);
    write_file(in_folder("run/model.b158.tmp-4"), "x", 1);
    write_file(in_folder("run/model.b158.tmp-mine"), "x", 1);
    write_file(in_folder("run/notes.tmp-5"), "x", 1);
    write_file(in_folder("run/corpus-0123456789abcdef.tokens.tmp-6"), "x", 1);
    write_file(in_folder("run/corpus-0123456789abcdef.tokens"), "x", 1);
    must(run_resume(&got));
    assert_string_equal(got.text, expected.text);
    assert_false(exists(in_folder("run/checkpoint.safetensors.tmp-123")));
    assert_false(exists(in_folder("run/model.b158.tmp-4")));
    assert_true(exists(in_folder("run/model.b158.tmp-mine")));
    assert_true(exists(in_folder("run/notes.tmp-5")));
    assert_false(exists(in_folder("run/corpus-0123456789abcdef.tokens.tmp-6")));
    assert_true(exists(in_folder("run/corpus-0123456789abcdef.tokens")));
    chm_string_finish(&expected);
    chm_string_finish(&got);
}

/* ---- absurd JSON ---- */

static char *repeat(const char *head, const char *unit, size_t count, const char *tail) {
    const size_t a = strlen(head), b = strlen(unit), c = strlen(tail);
    char *text = chm_alloc(a + b * count + c + 1);
    assert_non_null(text);
    memcpy(text, head, a);
    for (size_t i = 0; i < count; i++) memcpy(text + a + i * b, unit, b);
    memcpy(text + a + b * count, tail, c + 1);
    return text;
}

static void refused(int status, int expected, const char *needle) {
    if (status != expected || strstr(chm_error(), needle) == NULL)
        fail_msg("expected status %d with '%s', got %d: %.300s", expected, needle, status, chm_error());
}

static void refuse_card(const char *text, const char *needle) {
    const struct chm_card_options options = {.registry = &runtime->registry};
    chm_card *card = NULL;
    refused(chm_card_parse("card.json", text, strlen(text), &options, &card), CHM_E_CONFIG, needle);
    assert_null(card);
}

static void refuse_set(const char *set, const char *needle) {
    const struct chm_card_options options = {.registry = &runtime->registry, .set = &set, .set_count = 1};
    chm_card *card = NULL;
    refused(chm_card_load(in_folder("card.json"), &options, &card), CHM_E_CONFIG, needle);
    assert_null(card);
}

/* A safetensors file of this header and `bytes` of data. */
static void write_header(const char *path, const char *header, size_t bytes) {
    const size_t n = strlen(header);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    for (int i = 0; i < 8; i++) fputc((int)(n >> 8 * i & 255), f);
    assert_int_equal(fwrite(header, 1, n, f), n);
    for (size_t i = 0; i < bytes; i++) fputc(0, f);
    assert_int_equal(fclose(f), 0);
}

static void refuse_header(const char *header, const char *needle) {
    static const char *const readers[] = {"open", "layer", "inspect", "tokenizer"};
    const char *path = in_folder("absurd.safetensors");
    write_header(path, header, 0);
    chm_model *m = NULL;
    chm_tokenizer *t = NULL;
    FILE *out = fopen("/dev/null", "w");
    assert_non_null(out);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(readers); i++) {
        const int status = i == 0   ? chm_open(runtime, path, &bare, true, &m)
                           : i == 1 ? use_layer(path)
                           : i == 2 ? chm_inspect(runtime, path, false, CHM_OUTPUT_JSON, out)
                                    : chm_tokenizer_create(runtime, path, NULL, &bare, &t);
        refused(status, CHM_E_DATA, needle);
        said_well(readers[i]);
    }
    fclose(out);
}

static void absurd_json(void **state) {
    (void)state;
    enum { DEEP = 1000000, HUGE_TEXT = 100000000 };
    char *text;
    static const char *const unit[] = {"[", "{\"a\":", "[[],"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(unit); i++) {
        text = repeat("{\"hidden_size\": ", unit[i], DEEP / strlen(unit[i]), "");
        refuse_card(text, "card.json:1: brackets nest more than 64 levels deep");
        chm_free(text);
        text = repeat("hidden_size=", unit[i], DEEP, "");
        refuse_set(text, "--set: hidden_size: expected integer");
        chm_free(text);
        text = repeat("training.pretrain=", unit[i], DEEP, "");
        refuse_set(text, "--set: training.pretrain: a section, not a value");
        chm_free(text);
        text = repeat("{\"x\": ", unit[i], DEEP / strlen(unit[i]), "");
        refuse_header(text, "the header is not sound JSON");
        chm_free(text);
    }
    text = repeat("{\"§\": \"", "x", HUGE_TEXT, "\"}");
    refuse_card(text, "bytes; a model card has at most 1048576");
    refuse_header(text, "outside 2..16777216");
    write_file(in_folder("huge.json"), text, strlen(text));
    chm_free(text);
    const struct chm_card_options options = {.registry = &runtime->registry};
    chm_card *card = NULL;
    refused(chm_card_load(in_folder("huge.json"), &options, &card), CHM_E_DATA, "longer than the 1048576 bytes");
    text = repeat("hidden_size=", "7", HUGE_TEXT, "");
    refuse_set(text, "--set: hidden_size: expected integer");
    chm_free(text);
    text = repeat("", "a.", HUGE_TEXT / 2, "b=1");
    refuse_set(text, "is no key");
    chm_free(text);
    /* many small things: each was looked up among all the others */
    text = repeat("{\"a\": 1", ", \"a\": 1", 90000, "}");
    refuse_card(text, "card.json:1: more than 10000 values up to here");
    chm_free(text);
    chm_string keys = {0}, ini = {0};
    for (int i = 0; i < 9000; i++) chm_string_add(&keys, "%s\"k%d\": 1", i ? ", " : "{", i);
    chm_string_add(&keys, "}");
    refuse_card(keys.text, "more problems");
    for (int i = 0; i < 10001; i++) chm_string_add(&ini, "k%d=1\n", i);
    write_file(in_folder("many.ini"), ini.text, ini.length);
    refused(use_ini(in_folder("many.ini")), CHM_E_CONFIG, "more problems");
    const char **sets = chm_alloc(10001 * sizeof *sets);
    for (int i = 0; i < 10001; i++) sets[i] = "a=1";
    const struct chm_card_options many = {.registry = &runtime->registry, .set = sets, .set_count = 10001};
    refused(chm_card_load(in_folder("card.json"), &many, &card), CHM_E_CONFIG, "--set: given 10001 times");
    chm_free(sets);
    chm_string_finish(&keys);
    chm_string_finish(&ini);
    /* in the metadata of a model, and of a layer's file */
    text = repeat("{\"hidden_size\": ", "[", DEEP, "");
    must(chm_b158_write(in_folder("absurd.b158"), NULL, 0, text, NULL, 0));
    chm_model *m = NULL;
    refused(chm_open(runtime, in_folder("absurd.b158"), &bare, false, &m), CHM_E_CONFIG, "brackets nest more than");
    const char *key = "num_heads", *value = text + 16;
    static const float x[48];
    const chm_st_tensor tensor = {"x", CHM_ST_F32, 2, {1, 48}, (const uint8_t *)x, sizeof x};
    must(chm_safetensors_write(in_folder("absurd.safetensors"), &tensor, 1, &key, &value, 1, false));
    refused(use_layer(in_folder("absurd.safetensors")), CHM_E_CONFIG, "num_heads: expected integer");
    chm_free(text);
    /* a header full of what takes the most memory; as large as one may be it takes 700 MB */
    text = repeat("{\"x\": [", "[],", full ? 5500000 : 1000000, "[]]}");
    refuse_header(text, "tensor 'x': expected an object of dtype");
    chm_free(text);
    /* words of every length around those that a buffer holds, in every place, while memory runs out */
    for (size_t n = 1; n < 70; n++)
        for (int place = 0; place < 6; place++) {
            static const char *const head[] = {"{\"a\":", "{\"", "{\"a\":\"", "[\"", "", "{\"a\":1}"},
                                     *const tail[] = {",\"b\":1}", "\":1}", "\t\"}", "\x01\"]", " ", ""};
            text = repeat(head[place], place == 1 || place == 2 ? "x" : "7", n, tail[place]);
            for (long fails = 0; fails < 60; fails++) {
                (fails % 2 ? chm_alloc_fail_once : chm_alloc_fail_after)(fails / 2);
                json_t *json = chm_json_load(text, strlen(text), NULL);
                calm();
                json_decref(json);
            }
            chm_free(text);
        }
}

/* ---- what is read is not written over ---- */

static char logged[2000];
static void keep_log(const char *line) {
    const size_t n = strlen(logged);
    snprintf(logged + n, sizeof logged - n, "%s\n", line);
}

static void nothing_read_is_replaced(void **state) {
    (void)state;
    const char *in = in_folder("in.safetensors"), *link_path = in_folder("link.safetensors");
    write_layer_file(in);
    assert_int_equal(symlink(in, link_path), 0);
    chm_string before = {0}, after = {0};
    add_file(&before, in);
    chm_layer_options options = {.size = sizeof options, .plugin = "mlp", .overlay = &bare, .in = in, .out = in};
    refused(chm_layer_run(runtime, &options), CHM_E_CONFIG, "would replace the file that is read");
    options.out = link_path;
    refused(chm_layer_run(runtime, &options), CHM_E_CONFIG, "would replace the file that is read");
    add_file(&after, in);
    assert_string_equal(after.text, before.text);
    chm_string_finish(&before);
    chm_string_finish(&after);

    /* a run in the folder of its own card */
    no_run();
    assert_int_equal(mkdir(in_folder("run"), 0777), 0);
    write_file(in_folder("run/card.json"), card_text, sizeof card_text - 1);
    const char *card = in_folder("run/card.json"), *data = in_folder("words.txt");
    chm_train_options train = {
        .size = sizeof train, .card = card, .overlay = &bare, .data = &data, .data_count = 1, .out = in_folder("run")};
    refused(chm_train(runtime, &train, NULL), CHM_E_CONFIG, "would replace it in");
    size_t n;
    char *text = slurp(card, &n);
    assert_int_equal(n, sizeof card_text - 1);
    assert_memory_equal(text, card_text, n);
    chm_free(text);
    /* another card or model there, of no run that could go on */
    train.card = in_folder("card.json");
    refused(chm_train(runtime, &train, NULL), CHM_E_CONFIG, "already holds a card.json, which the run would replace");
    write_file(in_folder("run/model.b158"), "mine", 4);
    refused(chm_train(runtime, &train, NULL), CHM_E_CONFIG, "already holds a model.b158, which the run would replace");
    text = slurp(card, &n);
    assert_int_equal(n, sizeof card_text - 1);
    chm_free(text);
    no_run();
    const char *ini = in_folder("over.ini");
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .ini = &ini, .ini_count = 1};
    refused(chm_init_model(runtime, in_folder("card.json"), &overlay, 1, ini), CHM_E_CONFIG, "would replace the card");
}

static void unread_metadata_is_named(void **state) {
    (void)state;
    static float number[160 * 16];
    const char *path = in_folder("meta.safetensors");
    const uint8_t *data = (const uint8_t *)number;
    const chm_st_tensor tensor[] = {{"x", CHM_ST_F32, 2, {2, 16}, data, 2 * 16 * 4},
                                    {"params.gate", CHM_ST_F32, 2, {80, 16}, data, 80 * 16 * 4},
                                    {"params.up", CHM_ST_F32, 2, {80, 16}, data, 80 * 16 * 4},
                                    {"params.down", CHM_ST_F32, 2, {16, 80}, data, 80 * 16 * 4},
                                    {"params.down_norm", CHM_ST_F32, 1, {80}, data, 80 * 4}};
    static const char *const keys[] = {"num_heads", "head_dim", "head_dmi", "so\033urce", "format", "mode"};
    static const char *const values[] = {"1", "16", "8", "a note", "pt", "step"};
    must(chm_safetensors_write(path, tensor, CHM_ARRAY_COUNT(tensor), keys, values, CHM_ARRAY_COUNT(keys), false));
    const chm_layer_options options = {
        .size = sizeof options, .plugin = "mlp", .overlay = &bare, .in = path, .out = "/dev/null"};
    logged[0] = 0;
    chm_log_to(keep_log);
    chm_log_set_level(CHM_LOG_INFO);
    const int status = chm_layer_run(runtime, &options);
    chm_log_set_level(CHM_LOG_ERROR);
    chm_log_to(NULL);
    must(status);
    if (!strstr(logged,
                "meta.safetensors: metadata that is not read: 'head_dmi' (did you mean 'head_dim'?), 'so?urce'\n"))
        fail_msg("said '%s'", logged);
    /* a number that is none is named too */
    static const char *const bad[] = {"1", "-"};
    must(chm_safetensors_write(path, tensor, CHM_ARRAY_COUNT(tensor), keys, bad, 2, false));
    refused(chm_layer_run(runtime, &options), CHM_E_CONFIG, "head_dim: expected integer");
}

/* ---- no room ---- */

static void limit_files(rlim_t bytes) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void no_unfinished_file(const char *directory) {
    DIR *d = opendir(directory);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (strstr(e->d_name, ".tmp-")) fail_msg("%s/%s was left behind", directory, e->d_name);
    closedir(d);
}

/* Files may have so many bytes and no more: what a full disk is to a writer, at every place. */
static void no_room(void **state) {
    (void)state;
    chm_string expected = {0}, got = {0};
    size_t bytes;
    half_a_run();
    must(run_resume(&expected));
    char *checkpoint = slurp(in_folder("half/checkpoint.safetensors"), &bytes);
    const struct sigaction ignore = {.sa_handler = SIG_IGN};
    struct sigaction was;
    assert_int_equal(sigaction(SIGXFSZ, &ignore, &was), 0);
    int failed = 0;
    for (size_t room = 0; room < bytes; room += 1 + bytes / 23) {
        half_a_run();
        limit_files(room);
        int status = run_resume(NULL);
        limit_files(RLIM_INFINITY);
        refused(status, CHM_E_DATA, "cannot write: File too large");
        said_well("no room");
        no_unfinished_file(in_folder("run"));
        size_t after;
        char *left = slurp(in_folder("run/checkpoint.safetensors"), &after);
        assert_int_equal(after, bytes);
        assert_memory_equal(left, checkpoint, bytes);
        chm_free(left);
        chm_string_finish(&got);
        must(run_resume(&got));
        assert_string_equal(got.text, expected.text);
        failed++;
    }
    assert_true(failed > 10);

    /* everything else that writes a file: the old one stays */
    static const size_t rooms[] = {0, 1000, 8192};
    for (int writer = 0; writer < 3; writer++)
        for (size_t i = 0; i < CHM_ARRAY_COUNT(rooms); i++) {
            static const char *const written[] = {"new.b158", "logits.f32", "layer-out.safetensors"};
            int (*const run[])(chm_string *) = {run_init, run_eval, run_layer};
            chm_string_finish(&expected);
            chm_string_finish(&got);
            must(run[writer](&expected));
            limit_files(rooms[i]);
            const int status = run[writer](NULL);
            limit_files(RLIM_INFINITY);
            refused(status, CHM_E_DATA, "File too large");
            no_unfinished_file(folder);
            chm_string was_there = {0};
            add_file(&was_there, in_folder(written[writer]));
            if (!strstr(expected.text, was_there.text)) fail_msg("%s is another", written[writer]);
            chm_string_finish(&was_there);
        }
    assert_int_equal(sigaction(SIGXFSZ, &was, NULL), 0);

    /* killed in the middle of a write */
    chm_string_finish(&expected);
    half_a_run();
    must(run_resume(&expected));
    for (size_t room = 1; room < bytes; room += 1 + bytes / 11) {
        half_a_run();
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            const struct rlimit none = {0, 0};
            (void)setrlimit(RLIMIT_CORE, &none);
            (void)signal(SIGXFSZ, SIG_DFL);
            limit_files(room);
            _exit(run_resume(NULL) == CHM_OK ? 0 : 1);
        }
        int how;
        assert_int_equal(waitpid(child, &how, 0), child);
        assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGXFSZ);
        chm_string_finish(&got);
        must(run_resume(&got));
        assert_string_equal(got.text, expected.text);
        no_unfinished_file(in_folder("run"));
    }
    chm_string_finish(&expected);
    chm_string_finish(&got);
    chm_free(checkpoint);
}

/* ---- clocks ---- */

static atomic_long set_back; /* seconds that the wall clock was set back by; a day more each time it is read */
static atomic_int wall_clock_read;

/* These stand in for the C library's, for everything in this process. */
int clock_gettime(clockid_t clock, struct timespec *t) {
    const long status = syscall(SYS_clock_gettime, clock, t);
    const bool wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI;
    if (status == 0 && wall && set_back > 0) {
        atomic_fetch_add(&wall_clock_read, 1);
        t->tv_sec -= atomic_fetch_add(&set_back, 86400);
    }
    return (int)status;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    const int status = clock_gettime(CLOCK_REALTIME, &now);
    *t = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return status;
}
time_t time(time_t *t) {
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}

/* The seconds of every line of a log that has them go forward, from 0 to `most`. */
static void assert_forward(const char *path, double most) {
    size_t n;
    double before = 0;
    int found = 0;
    char *text = slurp(path, &n);
    for (const char *at = text; (at = strstr(at, "\"seconds\":")) != NULL; found++) {
        const double seconds = strtod(at += 10, NULL);
        if (!(seconds >= before && seconds <= most)) fail_msg("%s: %g s after %g s", path, seconds, before);
        before = seconds;
    }
    assert_true(found >= 3);
    chm_free(text);
}

static void make_it_tomorrow(const char *path) {
    struct timespec t[2];
    assert_int_equal(syscall(SYS_clock_gettime, CLOCK_REALTIME, &t[0]), 0);
    t[0].tv_sec += 10 * 365 * 86400L;
    t[1] = t[0];
    if (utimensat(AT_FDCWD, path, t, 0) != 0) fail_msg("%s: %s", path, strerror(errno));
}

static void clock_set_back(void **state) {
    (void)state;
    static const char *const files[] = {"run/checkpoint.safetensors",
                                        "run/log.jsonl",
                                        "run/model.b158",
                                        "run/card.json",
                                        "run/lock",
                                        "card.json",
                                        "words.txt",
                                        "held.txt",
                                        "run"};
    chm_string expected = {0}, got = {0};
    struct timespec a, b;
    half_a_run();
    must(run_resume(&expected));
    half_a_run();
    for (size_t i = 0; i < CHM_ARRAY_COUNT(files); i++) make_it_tomorrow(in_folder(files[i]));
    set_back = 86400;
    assert_int_equal(clock_gettime(CLOCK_REALTIME, &a), 0);
    assert_int_equal(clock_gettime(CLOCK_REALTIME, &b), 0);
    assert_true(b.tv_sec < a.tv_sec); /* the stand-in stands in */
    must(run_resume(&got));
    assert_string_equal(got.text, expected.text);
    assert_forward(in_folder("run/log.jsonl"), 3600);

    /* a budget in seconds is of those that passed */
    no_run();
    const char *line = "training.phases.pretrain.schedule=linear", *data = in_folder("words.txt");
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set = &line, .set_count = 1};
    const chm_train_options options = {.size = sizeof options,
                                       .card = in_folder("card.json"),
                                       .overlay = &overlay,
                                       .data = &data,
                                       .data_count = 1,
                                       .out = in_folder("run"),
                                       .seconds = 0.5};
    chm_train_result result = {.size = sizeof result};
    must(chm_train(runtime, &options, &result));
    set_back = 0;
    assert_true(result.finished && result.steps >= 1 && result.seconds > 0 && result.seconds < 3600);
    assert_forward(in_folder("run/log.jsonl"), 3600);
    chm_string_finish(&expected);
    chm_string_finish(&got);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_memory),
        cmocka_unit_test(no_memory_for_reports),
        cmocka_unit_test(no_memory_in_a_study),
        cmocka_unit_test(no_memory_in_training),
        cmocka_unit_test(damaged_files),
        cmocka_unit_test(changed_byte_of_a_model),
        cmocka_unit_test(text_cut_while_read),
        cmocka_unit_test(log_cut),
        cmocka_unit_test(what_a_killed_run_left),
        cmocka_unit_test(absurd_json),
        cmocka_unit_test(nothing_read_is_replaced),
        cmocka_unit_test(unread_metadata_is_named),
        cmocka_unit_test(no_room),
        cmocka_unit_test(clock_set_back),
    };
    return cmocka_run_group_tests_name("hostile", tests, set_up, tear_down);
}
