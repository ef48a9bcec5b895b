/* test_data.c: which files are read, what is in them, which documents are held out, and files of tokens. */
#include "model/runtime.h"
#include "train/train.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
/* after the standard headers */
#include <cmocka.h>
#ifdef CHM_HAVE_ZSTD
#include <zstd.h>
#endif

enum { END = 256 };

static char folder[256]; /* of this process's files, and where it works */
static chm_runtime *runtime;
static const struct chm_tokenizer_ops *bytes;
static void *self;

/* ---- helpers ---- */

static void must(int status) {
    if (status != CHM_OK) fail_msg("status %d: %s", status, chm_error());
}

static void refused(int status, int expected, const char *needle) {
    if (status != expected || strstr(chm_error(), needle) == NULL)
        fail_msg("expected status %d with '%s', got %d: %s", expected, needle, status, chm_error());
}

static void write_file(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    if (f == NULL) fail_msg("%s: %s", path, strerror(errno));
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}
static void write_text(const char *path, const char *text) { write_file(path, text, strlen(text)); }

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
    (void)st, (void)type, (void)walk;
    return remove(path);
}
static void remove_tree(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static int set_up(void **state) {
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/chimera-data-XXXXXX", base && *base ? base : "/tmp");
    const chm_runtime_options o = {.size = sizeof o, .threads = 1, .verbosity = -1};
    if (mkdtemp(folder) == NULL || chm_runtime_create(&o, &runtime) != CHM_OK || chdir(folder) != 0) return -1;
    const struct chm_plugin *p = chm_registry_find(&runtime->registry, CHM_KIND_TOKENIZER, "bytes");
    if (p == NULL) return -1;
    bytes = p->ops;
    self = calloc(1, p->instance_size + 1);
    return self != NULL ? bytes->init(self, chm_host_services(), NULL, 0) : -1;
}

static int tear_down(void **state) {
    (void)state;
    if (bytes->finish) bytes->finish(self);
    free(self);
    chm_runtime_destroy(runtime);
    remove_tree(folder);
    return 0;
}

/* ---- files ---- */

/* The files of some words, with blanks between. */
static const char *found(const char *const *words, uint32_t count, const char *except) {
    static char list[4096];
    chm_sources s;
    size_t n = 0;
    must(chm_sources_find(&s, words, count, except));
    list[0] = '\0';
    for (uint32_t i = 0; i < s.count; i++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", i ? " " : "", s.path[i]);
    chm_sources_finish(&s);
    return list;
}
#define FOUND(...)                                                                                                     \
    found((const char *const[]){__VA_ARGS__}, CHM_ARRAY_COUNT(((const char *const[]){__VA_ARGS__})), NULL)

static void nothing(const char *word, int status, const char *needle) {
    chm_sources s;
    refused(chm_sources_find(&s, &word, 1, NULL), status, needle);
    assert_null(s.path);
}

static void files(void **state) {
    (void)state;
    mkdir("t", 0777), mkdir("t/b", 0777), mkdir("t/b/c", 0777), mkdir("t/.h", 0777), mkdir("t/none", 0777);
    static const char *const texts[] = {"t/z.txt",   "t/a.txt",    "t/b/x.md",  "t/b/c/y.txt",
                                        "t/.hidden", "t/.h/x.txt", "t/b-1.txt", "t/o[1].txt"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(texts); i++) write_text(texts[i], texts[i]);
    write_text("t/empty.txt", "");
    assert_int_equal(mkfifo("t/pipe.txt", 0666), 0);
    assert_int_equal(symlink("../../t", "t/b/circle"), 0);
    assert_int_equal(symlink("a.txt", "t/link.txt"), 0);
    static const char all[] = "t/a.txt t/b-1.txt t/b/c/y.txt t/b/x.md t/link.txt t/o[1].txt t/z.txt";
    assert_string_equal(FOUND("t"), all);
    assert_string_equal(FOUND("t/"), all);
    assert_string_equal(FOUND("t/**"), all);
    assert_string_equal(FOUND("t/z.txt", "t/b", "t/z.txt"), "t/z.txt t/b/c/y.txt t/b/x.md t/z.txt");
    assert_string_equal(FOUND("t/*.txt"), "t/a.txt t/b-1.txt t/link.txt t/o[1].txt t/z.txt");
    assert_string_equal(FOUND("t/[a-c]*"), "t/a.txt t/b-1.txt t/b/c/y.txt t/b/x.md"); /* a directory, with all of it */
    assert_string_equal(FOUND("t/?.txt"), "t/a.txt t/z.txt");
    assert_string_equal(FOUND("**/*.txt"), "t/a.txt t/b-1.txt t/b/c/y.txt t/link.txt t/o[1].txt t/z.txt");
    assert_string_equal(FOUND("t/**/**/y.txt"), "t/b/c/y.txt");
    assert_string_equal(FOUND("*/b/*/y.txt"), "t/b/c/y.txt");
    assert_string_equal(FOUND("t/o[1].txt"), "t/o[1].txt"); /* a name before it is a pattern */
    assert_string_equal(FOUND("t/.hidden"), "t/.hidden");
    assert_string_equal(FOUND("t/.*/x.txt"), "t/.h/x.txt");
    char pattern[300];
    snprintf(pattern, sizeof pattern, "%s/t/**/y.t?t", folder);
    assert_string_equal(FOUND(pattern) + strlen(folder), "/t/b/c/y.txt");
    /* the run directory */
    static const char *const below = "t", *const match = "t/**/*.txt";
    assert_string_equal(found(&below, 1, "t/b"), "t/a.txt t/b-1.txt t/link.txt t/o[1].txt t/z.txt");
    assert_string_equal(found(&match, 1, "t/b/c"), "t/a.txt t/b-1.txt t/link.txt t/o[1].txt t/z.txt");
    nothing("t/none", CHM_E_DATA, "t/none: this directory holds no text");
    nothing("t/q*", CHM_E_DATA, "t/q*: no file has such a name");
    nothing("t/pipe*", CHM_E_DATA, "no file has such a name");
    /* what is named is not judged here */
    assert_string_equal(FOUND("t/empty.txt", "t/pipe.txt", "gone"), "t/empty.txt t/pipe.txt gone");
    /* what cannot be read is no silence */
    assert_int_equal(symlink("nowhere", "t/b/gone"), 0);
    nothing("t", CHM_E_DATA, "t/b/gone: a link that leads to nothing readable");
    assert_int_equal(unlink("t/b/gone"), 0);
    if (geteuid() != 0) {
        assert_int_equal(chmod("t/b", 0), 0);
        nothing("t", CHM_E_DATA, "t/b: cannot open the directory");
        assert_int_equal(chmod("t/b", 0777), 0);
        assert_int_equal(chmod("t/b/x.md", 0), 0);
        chm_contents in;
        refused(chm_contents_open(&in, "t/b/x.md", false), CHM_E_DATA, "t/b/x.md: cannot open");
    }
    refused(chm_sources_find(&(chm_sources){0}, NULL, 0, NULL), CHM_E_CONFIG, "no data");
}

/* ---- contents ---- */

static void text_of(char *text, size_t n, uint32_t key) {
    for (size_t i = 0; i < n; i++)
        text[i] = "abcdefghij klmno\n"[chm_below_at(9, CHM_RANDOM_TEST, key, i, i % 7 ? 17 : 4)];
}

#ifdef CHM_HAVE_ZSTD
/* All of a file by reads of `some`; < 0: as it failed. */
static int64_t read_all(const char *path, char *to, size_t room, size_t some) {
    chm_contents in;
    if (chm_contents_open(&in, path, true) != CHM_OK) return -1;
    int64_t n = 0, got;
    while ((got = chm_contents_read(&in, to + n, CHM_MIN(some, room - (size_t)n))) > 0) n += got;
    if (got == 0) assert_true(chm_contents_hash(&in) == chm_hash64(to, (size_t)n));
    if (got == 0) assert_int_equal(in.bytes, n);
    chm_contents_close(&in);
    return got < 0 ? -1 : n;
}
#endif

static void packed(void **state) {
    (void)state;
#ifdef CHM_HAVE_ZSTD
    enum { SIZE = 700000 };
    char *text = malloc(SIZE), *back = malloc(SIZE + 1);
    const size_t bound = ZSTD_compressBound(SIZE);
    uint8_t *pack = malloc(2 * bound);
    assert_true(text && back && pack);
    text_of(text, SIZE, 1);
    /* two frames, one after the other */
    size_t n = ZSTD_compress(pack, bound, text, 300000, 3);
    n += ZSTD_compress(pack + n, bound, text + 300000, SIZE - 300000, 3);
    write_file("two.zst", pack, n);
    static const size_t some[] = {1000, 65536, SIZE + 1};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(some); k++) {
        assert_int_equal(read_all("two.zst", back, SIZE + 1, some[k]), SIZE);
        assert_memory_equal(back, text, SIZE);
    }
    /* cut anywhere but between the frames; flipped anywhere: some sentence, or other bytes, and no crash */
    const size_t first = ZSTD_findFrameCompressedSize(pack, n);
    for (size_t cut = 1; cut < n; cut += 1 + n / 200) {
        write_file("cut.zst", pack, cut);
        if (cut == first) continue;
        assert_int_equal(read_all("cut.zst", back, SIZE + 1, 65536), -1);
        assert_non_null(strstr(chm_error(), "cut.zst: "));
        pack[cut] ^= 0x10;
        write_file("cut.zst", pack, n);
        (void)read_all("cut.zst", back, SIZE + 1, 65536);
        pack[cut] ^= 0x10;
    }
    write_text("junk.zst", "this is no packed file");
    assert_int_equal(read_all("junk.zst", back, SIZE + 1, 1000), -1);
    assert_non_null(strstr(chm_error(), "cannot be unpacked"));
    n = ZSTD_compress(pack, bound, text, 0, 3);
    write_file("nothing.zst", pack, n);
    chm_text t;
    must(chm_text_open(&t, "nothing.zst", bytes, self, &(chm_corpus_rules){0}, 0, false));
    assert_int_equal(chm_text_next(&t), -1);
    assert_non_null(strstr(chm_error(), "nothing.zst: is empty"));
    chm_text_close(&t);
    free(text);
    free(back);
    free(pack);
#else
    chm_contents in;
    write_text("some.zst", "anything");
    refused(chm_contents_open(&in, "some.zst", false), CHM_E_DATA, "cannot unpack .zst");
    assert_null(in.path);
#endif
}

/* ---- documents ---- */

/* The documents of a file, each in brackets; NULL: it was refused. */
static const char *documents(const char *path, const chm_corpus_rules *rules, int64_t limit) {
    static char list[1 << 16];
    int32_t id[7];
    chm_text t;
    size_t n = 0;
    int more;
    must(chm_text_open(&t, path, bytes, self, rules, limit, false));
    list[0] = '\0';
    while ((more = chm_text_next(&t)) > 0) {
        int64_t got;
        list[n++] = '[';
        assert_int_equal(chm_text_take(&t, id, 1), 1);
        assert_int_equal(id[0], END);
        while ((got = chm_text_take(&t, id, CHM_ARRAY_COUNT(id))) > 0)
            for (int64_t i = 0; i < got; i++) list[n++] = (char)id[i];
        assert_int_equal(got, 0);
        list[n++] = ']';
        list[n] = '\0';
        assert_true(n < sizeof list - 10000);
    }
    if (more == 0 && rules->part == CHM_PART_ALL && limit > 0) assert_in_range(t.bytes, 0, limit);
    chm_text_close(&t);
    return more == 0 ? list : NULL;
}

static void bad_object(const char *text, const char *needle) {
    write_text("bad.jsonl", text);
    if (documents("bad.jsonl", &(chm_corpus_rules){0}, 0) != NULL) fail_msg("accepted: %s", text);
    refused(CHM_E_DATA, CHM_E_DATA, needle);
}

static void objects(void **state) {
    (void)state;
    const chm_corpus_rules plain = {0}, by_line = {.lines = true}, other = {.text_field = "body"};
    write_text("o.jsonl",
               "{\"text\": \"one\\ntwo\", \"n\": 1}\n\n{\"n\": {}, \"text\": \"\\u00e4\", \"body\": \"B\"}\r\n"
               "{\"text\": \"\"}\n\r\n{\"text\":\"last\"}");
    assert_string_equal(documents("o.jsonl", &plain, 0), "[one\ntwo][\xc3\xa4][last]");
    assert_string_equal(documents("o.jsonl", &by_line, 0), "[one\ntwo][\xc3\xa4][last]");
    assert_string_equal(documents("o.jsonl", &plain, 7), "[one\ntwo]");
    assert_string_equal(documents("o.jsonl", &plain, 5), "[one\nt]");
    assert_string_equal(documents("o.jsonl", &plain, 10), "[one\ntwo][\xc3\xa4][l]");
    assert_null(documents("o.jsonl", &other, 0));
    refused(CHM_E_DATA, CHM_E_DATA, "o.jsonl:1: \"body\" is missing");
    bad_object("{\"text\":\"a\"}\n\n{\"text\":3}\n", "bad.jsonl:3: \"text\" is no string");
    bad_object("{\"text\":\"a\"}\n{\"text\":\"b\"\n", "bad.jsonl:2: no JSON");
    bad_object("[\"text\"]\n", "bad.jsonl:1: no object");
    bad_object("\"text\"\n", "bad.jsonl:1: no object");
    bad_object("{\"text\":\"\xff\"}\n", "bad.jsonl:1: no JSON");
    bad_object("{\"text\":\"a\",\"text\":\"b\"}\n", "bad.jsonl:1: no JSON");
    bad_object("plain text\n", "bad.jsonl:1: no JSON");
    /* what is no UTF-8 is text all the same where it is not JSON */
    write_text("raw.txt", "\xff\xfe\n\x80");
    assert_string_equal(documents("raw.txt", &plain, 0), "[\xff\xfe\n\x80]");
    assert_string_equal(documents("raw.txt", &by_line, 0), "[\xff\xfe][\x80]");
    /* a document that fills pieces */
    enum { LONG = 300000 };
    char *text = malloc(LONG + 100);
    assert_non_null(text);
    size_t n = (size_t)sprintf(text, "{\"text\": \"");
    for (int i = 0; i < LONG; i++) text[n++] = "abc d"[i % 5];
    n += (size_t)sprintf(text + n, "\"}\n{\"text\": \"end\"}\n");
    write_file("long.jsonl", text, n);
    chm_corpus c;
    const char *file = "long.jsonl";
    const chm_corpus_request q = {.files = &file, .count = 1, .tokenizer = bytes, .tokenizer_self = self};
    must(chm_corpus_survey(&c, &q));
    must(chm_corpus_load(&c, &q));
    assert_int_equal(c.documents, 2);
    assert_int_equal(c.tokens, LONG + 1 + 4);
    for (int i = 0; i < LONG; i++) assert_int_equal(chm_corpus_token(&c, i + 1), "abc d"[i % 5]);
    chm_corpus_finish(&c);
    free(text);
    /* a line without an end takes no memory without end: 10 GB of it, on no disk */
    const int fd = open("sparse.jsonl", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    const bool room = ftruncate(fd, (off_t)10 << 30) == 0;
    close(fd);
    if (room) {
        assert_null(documents("sparse.jsonl", &plain, 0));
        refused(CHM_E_DATA, CHM_E_DATA, "sparse.jsonl:1: this line is longer than 64 MiB");
    }
    assert_int_equal(unlink("sparse.jsonl"), 0);
}

/* ---- held-out documents ---- */

enum { DOCUMENTS = 300 };

/* Document d begins with a text of its own; some are longer than what is looked at, and many share a beginning. */
static size_t document_text(int d, char *text) {
    size_t n = (size_t)sprintf(text, "%d is the number ", d * 7);
    const size_t length = d % 10 == 0 ? 5000 + (size_t)d : 20;
    while (n < length) text[n++] = 'x';
    text[n] = '\0';
    return n;
}

static void holdout(void **state) {
    (void)state;
    static char text[6000], kept[1 << 16], held[1 << 16], jsonl_held[1 << 16];
    FILE *lines = fopen("h.txt", "wb"), *json = fopen("h.jsonl", "wb"), *back = fopen("back.txt", "wb");
    assert_true(lines && json && back);
    for (int d = 0; d < DOCUMENTS; d++) {
        document_text(d, text);
        fprintf(lines, "%s%.4500s\n", d % 50 == 7 ? "\n\n" : "", text);
        fprintf(json, "{\"text\": \"%.4500s\"}\n", text);
        document_text(DOCUMENTS - 1 - d, text);
        fprintf(back, "%.4500s\n", text);
    }
    assert_int_equal(fclose(lines) | fclose(json) | fclose(back), 0);
    int count = -1;
    static const double share[] = {0.05, 0.3, 0.9};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(share); k++) {
        chm_corpus_rules rules = {.lines = true, .holdout = share[k], .part = CHM_PART_HELD};
        int64_t skipped = 0, taken = 0, taken_bytes = 0, skipped_bytes = 0, of_held = 0;
        const char *file = "h.txt";
        for (int part = CHM_PART_KEPT; part <= CHM_PART_HELD; part++) {
            rules.part = (enum chm_part)part;
            chm_corpus c;
            const chm_corpus_request q = {
                .files = &file, .count = 1, .tokenizer = bytes, .tokenizer_self = self, .rules = rules};
            must(chm_corpus_survey(&c, &q));
            must(chm_corpus_load(&c, &q));
            assert_int_equal(c.documents + c.held_documents, DOCUMENTS);
            assert_int_equal(c.bytes + c.held_bytes, c.source_bytes);
            if (part == CHM_PART_HELD) {
                assert_int_equal(c.documents, skipped);
                assert_int_equal(c.held_documents, taken);
                assert_int_equal(c.bytes, skipped_bytes);
                assert_int_equal(c.held_bytes, taken_bytes);
                of_held = c.documents;
            }
            taken = c.documents;
            skipped = c.held_documents;
            taken_bytes = c.bytes;
            skipped_bytes = c.held_bytes;
            chm_corpus_finish(&c);
        }
        /* about the share, and more of a larger one */
        assert_true(of_held > count);
        assert_in_range(of_held, (int64_t)(share[k] * DOCUMENTS * 0.6), (int64_t)(share[k] * DOCUMENTS * 1.6) + 1);
        count = (int)of_held;
    }
    /* the same ones whatever form they are in; the others are the rest */
    chm_corpus_rules rules = {.lines = true, .holdout = 0.03, .part = CHM_PART_HELD};
    strcpy(held, documents("h.txt", &rules, 0));
    assert_true(strlen(held) > 20);
    strcpy(jsonl_held, documents("h.jsonl", &rules, 0));
    assert_string_equal(held, jsonl_held);
    const char *turned = documents("back.txt", &rules, 0);
    assert_int_equal(strlen(turned), strlen(held));
    for (char *d = held, *end; *d != '\0'; d = end + 1) {
        static char one[6000];
        end = strchr(d, ']');
        assert_non_null(end);
        assert_true((size_t)(end - d) < sizeof one - 2);
        memcpy(one, d, (size_t)(end + 1 - d));
        one[end + 1 - d] = '\0';
        assert_non_null(strstr(turned, one));
    }
    /* files one by one */
    rules.lines = false;
    kept[0] = '\0';
    for (int d = 0; d < DOCUMENTS; d++) {
        document_text(d, text);
        text[4500] = '\0';
        write_text("one.txt", text);
        strcat(kept, documents("one.txt", &rules, 0));
    }
    assert_string_equal(kept, held);
    /* nothing on one of the sides */
    const char *file = "one.txt";
    rules.part = CHM_PART_KEPT;
    chm_corpus c;
    const chm_corpus_request q = {
        .files = &file, .count = 1, .tokenizer = bytes, .tokenizer_self = self, .rules = rules};
    must(chm_corpus_survey(&c, &q));
    refused(chm_corpus_load(&c, &q), CHM_E_DATA, "of 1 document leaves nothing to ");
    assert_null(c.file_bytes);
}

/* ---- files of tokens ---- */

static char said[4096];
static void hear(void *user, const char *sentence) {
    (void)user;
    snprintf(said + strlen(said), sizeof said - strlen(said), "%s\n", sentence);
}

static const char *corpus_files[] = {"c/a.txt", "c/b.jsonl", "c/c.txt"};
static chm_corpus_request request(const char *directory) {
    return (chm_corpus_request){.files = corpus_files,
                                .count = CHM_ARRAY_COUNT(corpus_files),
                                .tokenizer = bytes,
                                .tokenizer_self = self,
                                .tokenizer_hash = 77,
                                .directory = directory,
                                .always = directory != NULL,
                                .say = hear};
}

static void load(chm_corpus *c, const chm_corpus_request *q) {
    said[0] = '\0';
    must(chm_corpus_survey(c, q));
    must(chm_corpus_load(c, q));
}

static void same_corpus(const chm_corpus *a, const chm_corpus *b) {
    assert_int_equal(a->tokens, b->tokens);
    assert_int_equal(a->documents, b->documents);
    assert_int_equal(a->longest, b->longest);
    assert_int_equal(a->targets, b->targets);
    assert_int_equal(a->bytes, b->bytes);
    assert_true(a->hash == b->hash);
    assert_memory_equal(a->document, b->document, (size_t)(a->documents + 1) * sizeof *a->document);
    for (int64_t i = 0; i < a->tokens; i++) assert_int_equal(chm_corpus_token(a, i), chm_corpus_token(b, i));
}

static void make_corpus_files(void) {
    char text[4000];
    mkdir("c", 0777);
    text_of(text, sizeof text, 5);
    write_file("c/a.txt", text, 3001);
    text_of(text, sizeof text, 6);
    write_file("c/c.txt", text, sizeof text);
    write_text("c/b.jsonl", "{\"text\":\"first\"}\n{\"text\":\"second\"}\n");
}

static uint8_t *slurp(const char *path, size_t *n) {
    char *text = NULL;
    must(chm_read_file(path, 1 << 24, &text, n));
    uint8_t *copy = malloc(*n + 1); /* exactly as long, and aligned */
    assert_non_null(copy);
    memcpy(copy, text, *n);
    chm_free(text);
    return copy;
}

static void shards(void **state) {
    (void)state;
    make_corpus_files();
    chm_corpus plain, c;
    const chm_corpus_request in_memory = request(NULL), q = request("sh/deep");
    load(&plain, &in_memory);
    assert_null(plain.file);
    assert_true(plain.narrow);
    assert_int_equal(plain.documents, 4);
    assert_int_equal(plain.document[1], 3002);
    load(&c, &q);
    assert_non_null(strstr(said, "made into tokens once"));
    assert_non_null(c.file);
    same_corpus(&plain, &c);
    char *path = strdup(c.file);
    chm_corpus_finish(&c);
    /* found again */
    struct stat st, then;
    assert_int_equal(stat(path, &then), 0);
    load(&c, &q);
    assert_non_null(strstr(said, "tokens from "));
    assert_string_equal(c.file, path);
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_ino == then.st_ino && st.st_mtim.tv_nsec == then.st_mtim.tv_nsec);
    same_corpus(&plain, &c);
    chm_corpus_finish(&c);
    /* other data, another tokenizer, other rules: other files */
    chm_corpus_request other = q;
    other.tokenizer_hash = 78;
    load(&c, &other);
    assert_string_not_equal(c.file, path);
    chm_corpus_finish(&c);
    other = q;
    other.rules.lines = true;
    load(&c, &other);
    assert_string_not_equal(c.file, path);
    assert_true(c.documents > plain.documents);
    chm_corpus_finish(&c);
    other = q;
    other.count = 2;
    load(&c, &other);
    assert_string_not_equal(c.file, path);
    chm_corpus_finish(&c);
    char *text = (char *)slurp("c/a.txt", &(size_t){0});
    text[17] ^= 1;
    write_file("c/a.txt", text, 3001);
    load(&c, &q);
    assert_string_not_equal(c.file, path);
    chm_corpus_finish(&c);
    text[17] ^= 1;
    write_file("c/a.txt", text, 3001);
    free(text);
    /* damaged, cut, another's: made anew, never read */
    size_t n;
    uint8_t *image = slurp(path, &n);
    for (int way = 0; way < 4; way++) {
        if (way == 0) image[200] ^= 4;
        write_file(path, way == 2 ? (const void *)"" : image, way == 1 ? n - 8 : way == 2 ? 0 : way == 3 ? 100 : n);
        if (way == 0) image[200] ^= 4;
        load(&c, &q);
        assert_non_null(strstr(said, "it is made anew"));
        same_corpus(&plain, &c);
        chm_corpus_finish(&c);
        load(&c, &q);
        assert_non_null(strstr(said, "tokens from "));
        chm_corpus_finish(&c);
    }
    /* a file of the same name that is a directory, and a directory that is a file */
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0777), 0);
    must(chm_corpus_survey(&c, &q));
    refused(chm_corpus_load(&c, &q), CHM_E_DATA, "is a directory");
    const chm_corpus_request bad = request("c/a.txt");
    must(chm_corpus_survey(&c, &bad));
    refused(chm_corpus_load(&c, &bad), CHM_E_DATA, "c/a.txt");
    /* stopped on the way: nothing is left */
    const int stop = 1;
    other = request("sh/stopped");
    must(chm_corpus_survey(&c, &other));
    other.stop = &stop;
    refused(chm_corpus_load(&c, &other), CHM_E_INTERRUPTED, "stopped");
    assert_int_equal(rmdir("sh/stopped"), 0);
    chm_corpus_finish(&plain);
    free(image);
    free(path);
}

/* Each bit of an image, each length of it, and numbers that lie under right hashes. */
static void damaged(void **state) {
    (void)state;
    make_corpus_files();
    chm_corpus c;
    const chm_corpus_request q = request("dam");
    load(&c, &q);
    size_t n;
    uint8_t *image = slurp(c.file, &n);
    const int64_t tokens = c.tokens, count = c.documents;
    uint64_t key;
    memcpy(&key, image + 8, sizeof key);
    chm_corpus_finish(&c);
    must(chm_corpus_read(&c, "x", image, n, key, 258));
    refused(chm_corpus_read(&c, "x", image, n, key + 1, 258), CHM_E_DATA, "x: holds the tokens of other data");
    refused(chm_corpus_read(&c, "x", image, n, key, 50), CHM_E_DATA, "out of range");
    for (size_t bit = 0; bit < 8 * n; bit += bit < 8 * 128 ? 1 : 97) {
        image[bit / 8] ^= (uint8_t)(1 << bit % 8);
        refused(chm_corpus_read(&c, "x", image, n, key, 258), CHM_E_DATA, "x: ");
        image[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t cut = 0; cut < n; cut += cut < 200 || cut + 200 > n ? 1 : 61) {
        uint8_t *exact = malloc(cut + 1);
        assert_non_null(exact);
        memcpy(exact, image, cut);
        refused(chm_corpus_read(&c, "x", exact, cut, key, 258), CHM_E_DATA, "x: ");
        free(exact);
    }
    /* whoever can write hashes as well */
    const size_t from = 128 + chm_align64((size_t)tokens * 2);
    assert_int_equal(n, from + ((size_t)count + 1) * 8);
    const struct {
        size_t at;
        int64_t value;
    } lies[] = {
        {16, 3},
        {16, 4},
        {16, 0},
        {24, -1},
        {24, INT64_MAX},
        {24, INT64_MIN},
        {24, tokens + 1},
        {32, -1},
        {32, count + 1},
        {32, INT64_MAX},
        {32, 0},
        {40, -1},
        {48, -5},
        {56, INT64_MIN},
        {from, 1},
        {from, -1},
        {from + 8, 0},
        {from + 8, -7},
        {from + 8, INT64_MAX},
        {from + 16, tokens + 1},
        {from + 8 * (size_t)count, tokens - 1},
        {128, 258},
        {128, 65535},
        {128, -1},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(lies); i++) {
        uint8_t *lie = malloc(n);
        assert_non_null(lie);
        memcpy(lie, image, n);
        memcpy(lie + lies[i].at, &lies[i].value, 8);
        const uint64_t contents = chm_hash64(lie + 128, n - 128);
        memcpy(lie + 64, &contents, 8);
        const uint64_t head = chm_hash64(lie, 120);
        memcpy(lie + 120, &head, 8);
        memset(&c, 0, sizeof c);
        if (chm_corpus_read(&c, "x", lie, n, key, 258) == CHM_OK)
            fail_msg("%lld at %zu was believed", (long long)lies[i].value, lies[i].at);
        free(lie);
    }
    free(image);
}

/* More text than there is memory for, which is on no disk: its tokens are mapped. */
static void large(void **state) {
    (void)state;
    const char *file = "large.txt";
    const int64_t size = CHM_CORPUS_IN_MEMORY + 4096;
    const int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, size), 0);
    assert_int_equal(pwrite(fd, "the end", 7, size - 7), 7);
    close(fd);
    const chm_corpus_request q = {
        .files = &file, .count = 1, .tokenizer = bytes, .tokenizer_self = self, .directory = "large"};
    chm_corpus_request nameless = q;
    nameless.directory = NULL;
    chm_corpus c;
    chm_available_memory_pretend(4 << 20);
    must(chm_corpus_survey(&c, &q));
    assert_true(chm_corpus_is_kept(&c, &q));
    must(chm_corpus_load(&c, &q));
    assert_int_equal(c.tokens, size + 1);
    assert_int_equal(chm_corpus_token(&c, size), 'd');
    assert_non_null(c.file);
    chm_corpus_finish(&c);
    must(chm_corpus_survey(&c, &nameless));
    must(chm_corpus_load(&c, &nameless));
    assert_int_equal(chm_corpus_token(&c, size), 'd');
    assert_null(c.file);
    assert_null(c.memory);
    chm_corpus_finish(&c);
    chm_available_memory_pretend(0);
    remove_tree("large");
    unlink(file);
}

/* ---- memory that runs out ---- */

static int everything(const char *directory) {
    static const char *const words[] = {"c", "c/*.jsonl"};
    chm_sources s = {0};
    chm_corpus c = {0};
    int status = chm_sources_find(&s, words, 2, NULL);
    chm_corpus_request q = request(directory);
    q.files = (const char *const *)s.path;
    q.count = s.count;
    q.rules = (chm_corpus_rules){.holdout = 0.5, .part = CHM_PART_KEPT};
    if (status == CHM_OK) status = chm_corpus_survey(&c, &q);
    if (status == CHM_OK) status = chm_corpus_load(&c, &q);
    chm_corpus_finish(&c);
    chm_sources_finish(&s);
    return status;
}

static void memory(void **state) {
    (void)state;
    make_corpus_files();
    for (int i = 0; i < 20; i++) { /* so that both sides have some */
        char path[40], text[40];
        snprintf(path, sizeof path, "c/more%d.txt", i);
        snprintf(text, sizeof text, "%d more", i);
        write_text(path, text);
    }
#ifdef CHM_HAVE_ZSTD
    char pack[200];
    write_file("c/p.jsonl.zst", pack, ZSTD_compress(pack, sizeof pack, "{\"text\":\"packed\"}", 17, 3));
#endif
    for (int kept = 0; kept < 2; kept++)
        for (long n = 0;; n++) {
            remove_tree("mem");
            (n % 2 ? chm_alloc_fail_once : chm_alloc_fail_after)(n / 2);
            const int status = everything(kept ? "mem" : NULL);
            chm_alloc_fail_after(-1);
            if (n % 2 == 0 && status == CHM_OK) {
                assert_true(n > 20);
                break;
            }
            if (status != CHM_OK && status != CHM_E_MEMORY) fail_msg("%ld: status %d: %s", n, status, chm_error());
            if (kept && status != CHM_OK) { /* nothing half-written, and the next one works */
                must(everything("mem"));
            }
        }
}

/* ---- whole runs ---- */

static const char card[] =
    "{\"token_ids\": [256, 257], \"hidden_size\": 32, \"intermediate_size\": 48, \"num_hidden_layers\": 1,\n"
    " \"num_heads\": 2, \"head_dim\": 16, \"vocab_size\": 258,\n"
    " \"quantization\": {\"method\": \"bitnet\", \"embedding\": \"int8\"},\n"
    " \"backbone\": {\"layer_pattern\": \"GD\", \"layer_aliases\": {\"GD\": \"gated_deltanet\"}},\n"
    " \"gated_deltanet\": {\"state_size\": 16, \"chunk_size\": 16}, \"tokenizer\": {\"type\": \"bytes\"},\n"
    " \"training\": {\"holdout\": 0.3, \"phases\": [{\"name\": \"pretrain\", \"tokens\": 1280, \"seq_len\": 16,\n"
    "   \"batch_tokens\": 128, \"micro_tokens\": 64, \"carry_segments\": 2, \"lr\": 0.01, \"seed\": 7}]},\n"
    " \"diagnostics\": {\"report_interval_tokens\": 128}}\n";

static struct {
    volatile int stop;
    int64_t stop_at;
    char said[8192];
} run;

static void on_progress(void *user, const chm_progress *p) {
    (void)user;
    if (p->message != NULL)
        snprintf(run.said + strlen(run.said), sizeof run.said - strlen(run.said), "%s\n", p->message);
    if (run.stop_at >= 0 && p->step >= run.stop_at) run.stop = 1;
}

static int train(const char *out, const char *data, const char *shards_in, int64_t stop_at, bool resume,
                 chm_train_result *result) {
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = true};
    const char *words[] = {data};
    memset(&run, 0, sizeof run);
    run.stop_at = stop_at;
    const chm_train_options o = {.size = sizeof o,
                                 .card = "card.json",
                                 .overlay = &overlay,
                                 .data_count = 1,
                                 .data = words,
                                 .out = out,
                                 .shards = shards_in,
                                 .resume = resume,
                                 .progress = on_progress,
                                 .stop = &run.stop};
    *result = (chm_train_result){.size = sizeof *result};
    return chm_train(runtime, &o, result);
}

static void same_file(const char *a, const char *b) {
    size_t m, n;
    uint8_t *x = slurp(a, &m), *y = slurp(b, &n);
    assert_int_equal(m, n);
    assert_memory_equal(x, y, m);
    free(x);
    free(y);
}

static void runs(void **state) {
    (void)state;
    char path[64], text[600];
    chm_train_result result, again;
    write_text("card.json", card);
    mkdir("d", 0777);
    for (int i = 0; i < 12; i++) {
        snprintf(path, sizeof path, "d/%02d.txt", i);
        text_of(text, sizeof text, (uint32_t)i + 40);
        write_file(path, text, sizeof text - 10 * (size_t)i);
    }
    /* the same bytes with tokens in memory and in a file, there and stopped */
    must(train("plain", "d", NULL, -1, false, &result));
    must(train("kept", "d", "tokens", -1, false, &again));
    same_file("plain/model.b158", "kept/model.b158");
    assert_non_null(strstr(run.said, "held out: "));
    assert_true(result.validation_bits_per_byte == again.validation_bits_per_byte);
    refused(train("stopped", "d", "tokens", 4, false, &again), CHM_E_INTERRUPTED, "stopped after step");
    must(train("stopped", "d/*.txt", "elsewhere", -1, true, &again));
    same_file("plain/model.b158", "stopped/model.b158");
    /* the held-out documents, and no others, to the last bit */
    chm_model *m = NULL;
    const char *words[] = {"d"};
    must(chm_open(runtime, "plain/model.b158", NULL, false, &m));
    chm_eval_options eval = {.size = sizeof eval, .data_count = 1, .data = words, .holdout = true};
    chm_eval_result part = {.size = sizeof part}, whole = {.size = sizeof whole};
    must(chm_eval(runtime, m, &eval, &part));
    assert_true(part.bits_per_byte == result.validation_bits_per_byte);
    eval.holdout = false;
    must(chm_eval(runtime, m, &eval, &whole));
    assert_int_equal(whole.documents, 12);
    assert_in_range(part.documents, 1, 11);
    chm_close(m);
    const chm_overlay none = {.size = sizeof none,
                              .no_environment = true,
                              .set_count = 1,
                              .set = (const char *const[]){"training.holdout=0"}};
    must(chm_open(runtime, "plain/model.b158", &none, false, &m));
    eval.holdout = true;
    refused(chm_eval(runtime, m, &eval, &part), CHM_E_CONFIG, "holds out nothing");
    chm_close(m);
    /* other data are named */
    refused(train("more", "d", NULL, 4, false, &again), CHM_E_INTERRUPTED, "stopped");
    write_text("d/05a.txt", "one more");
    refused(train("more", "d", NULL, -1, true, &again), CHM_E_CONFIG,
            "the run has 12 files, now there are 13, of which the first that differs is d/05a.txt");
    assert_int_equal(unlink("d/05a.txt"), 0);
    assert_int_equal(rename("d/11.txt", "gone"), 0);
    refused(train("more", "d", NULL, -1, true, &again), CHM_E_CONFIG, "and more followed d/10.txt");
    assert_int_equal(rename("gone", "d/11.txt"), 0);
    snprintf(path, sizeof path, "d/%02d.txt", 3);
    size_t n;
    uint8_t *third = slurp(path, &n);
    third[n - 1] ^= 1;
    write_file(path, third, n);
    refused(train("more", "d", NULL, -1, true, &again), CHM_E_CONFIG,
            "d/03.txt is not the file the run was begun with");
    third[n - 1] ^= 1;
    write_file(path, third, n);
    free(third);
    must(train("more", "d", NULL, -1, true, &again));
    same_file("plain/model.b158", "more/model.b158");
    /* a run within its data is not among them */
    must(train("d/run", "d", NULL, 4, false, &again) == CHM_E_INTERRUPTED ? CHM_OK : CHM_E_INTERNAL);
    must(train("d/run", "d", NULL, -1, true, &again));
    same_file("plain/model.b158", "d/run/model.b158");
    /* refused before anything is made */
    refused(train("none", "d/03.txt", NULL, -1, false, &again), CHM_E_DATA, "of 1 document leaves nothing to ");
    assert_int_equal(access("none", F_OK), -1);
    refused(train("none", "nothing-*", NULL, -1, false, &again), CHM_E_DATA, "nothing-*: no file");
    assert_int_equal(access("none", F_OK), -1);
}

/* Names too short for an ending are read no further than they go. */
static void which_names_are_objects(void **state) {
    (void)state;
    static const struct {
        const char *path;
        bool objects;
    } name[] = {{"a.jsonl", true}, {"a.jsonl.zst", true},  {".jsonl", false}, {".zst", false}, {"abc.zst", false},
                {"jsonl", false},  {"a.jsonl.txt", false}, {"a.txt", false},  {"", false}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(name); i++) {
        char *path = chm_strdup(name[i].path); /* by itself, so that a sanitizer sees what is beside it */
        assert_int_equal(chm_contents_are_objects(path), name[i].objects);
        chm_free(path);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(which_names_are_objects),
        cmocka_unit_test(files),
        cmocka_unit_test(packed),
        cmocka_unit_test(objects),
        cmocka_unit_test(holdout),
        cmocka_unit_test(shards),
        cmocka_unit_test(damaged),
        cmocka_unit_test(large),
        cmocka_unit_test(memory),
        cmocka_unit_test(runs),
    };
    return cmocka_run_group_tests_name("data", tests, set_up, tear_down);
}
