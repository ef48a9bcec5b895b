/*
 * Data of arbitrary bytes: as text, as lines, as .jsonl, as .zst of these (core/train/text.c), and as a file of tokens
 * whose hashes are right (core/train/corpus.c), of which a step is read.
 */
#include "runtime.h"
#include "train/data.h"

static char folder[64];
static char *named[4];
static const struct chm_tokenizer_ops *ops;
static void *self;

static void clean_up(void) {
    fuzz_folder_gone(folder);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(named); i++) chm_free(named[i]);
    free(self);
}

static void prepare(void) {
    static const char *const names[] = {"data.txt", "data.jsonl", "data.txt.zst", "data.jsonl.zst"};
    if (folder[0]) return;
    (void)fuzz_runtime();
    fuzz_folder(folder);
    const struct chm_plugin *p = &CHM_PLUGIN_SYMBOL(bytes);
    ops = p->ops;
    self = calloc(1, p->instance_size + 1);
    CHECK(self && ops->init(self, chm_host_services(), NULL, 0) == CHM_OK);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(names); i++)
        CHECK((named[i] = chm_format("%s/%s", folder, names[i])) != NULL);
    atexit(clean_up);
}

/* Documents of a part, their bytes, and a hash of all; < 0: refused. */
static int64_t documents(const char *path, const chm_corpus_rules *rules, int64_t *bytes) {
    chm_text t;
    int32_t id[5];
    int64_t count = 0, got;
    int more;
    if (chm_text_open(&t, path, ops, self, rules, 0, false) != CHM_OK) return -1;
    while ((more = chm_text_next(&t)) > 0) {
        int64_t n = 0;
        while ((got = chm_text_take(&t, id, CHM_ARRAY_COUNT(id))) > 0)
            for (int64_t i = 0; i < got; i++, n++) CHECK(n == 0 ? id[i] == 256 : id[i] >= 0 && id[i] < 256);
        CHECK(got == 0 && n > 1 && t.bytes + t.skipped_bytes >= n - 1);
        count++;
    }
    *bytes = t.bytes;
    chm_text_close(&t);
    return more < 0 ? -1 : count;
}

static void try_text(const uint8_t *data, size_t size) {
    for (size_t i = 0; i < CHM_ARRAY_COUNT(named); i++) {
        FILE *f = fopen(named[i], "wb");
        CHECK(f && fwrite(data, 1, size, f) == size && fclose(f) == 0);
        for (int lines = 0; lines < 2; lines++) {
            int64_t all = 0, kept = 0, held = 0;
            chm_corpus_rules rules = {.lines = lines != 0};
            const int64_t whole = documents(named[i], &rules, &all);
            if (whole < 0) CHECK(strncmp(chm_error(), named[i], strlen(named[i])) == 0);
            if (whole >= 0 && i == 0) CHECK(all == (int64_t)size);
            rules.holdout = 0.5;
            rules.part = CHM_PART_KEPT;
            const int64_t some = documents(named[i], &rules, &kept);
            rules.part = CHM_PART_HELD;
            const int64_t others = documents(named[i], &rules, &held);
            if (whole < 0) {
                CHECK(some < 0 && others < 0);
                continue;
            }
            CHECK(some + others == whole);
            /* empty lines before the first document are counted with either part */
            CHECK(kept + held >= all && kept + held <= 2 * all);
        }
        unlink(named[i]);
    }
}

static void try_tokens(const uint8_t *data, size_t size) {
    enum { HEAD = 128, ROWS = 9 };
    if (size < HEAD) return;
    uint8_t *image = malloc(size);
    CHECK(image != NULL);
    memcpy(image, data, size);
    const uint64_t contents = chm_hash64(image + HEAD, size - HEAD);
    memcpy(image + 64, &contents, sizeof contents);
    const uint64_t hash = chm_hash64(image, HEAD - 8);
    memcpy(image + HEAD - 8, &hash, sizeof hash);
    uint64_t key;
    memcpy(&key, image + 8, sizeof key);
    chm_corpus c = {.marked = true};
    if (chm_corpus_read(&c, "fuzz", image, size, key, 258) == CHM_OK && c.tokens > 1) {
        const chm_batch b = {.corpus = &c, .seed = 1, .streams = 2, .rows = ROWS, .carry = 2};
        int32_t id[ROWS], target[ROWS];
        int64_t position[ROWS];
        for (int64_t step = 0; step < 3; step++) {
            chm_batch_segment(&b, step, 1, id, target, position);
            for (int r = 0; r < ROWS; r++) CHECK(id[r] >= 0 && id[r] < 258 && target[r] < 258 && position[r] >= 0);
        }
    } else {
        CHECK(c.tokens <= 1 || strncmp(chm_error(), "fuzz: ", 6) == 0);
    }
    free(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    prepare();
    try_text(data, bytes);
    try_tokens(data, bytes);
    return 0;
}

static bool make(size_t i, chm_string *seed) {
    prepare();
    if (i == 0) { /* a small file of tokens, as it is written */
        static const char text[] = "one\ntwo\n\nthree\n";
        char *path = fuzz_write_in(folder, "seed.txt", text, strlen(text));
        const chm_corpus_request q = {.files = (const char *const *)&path,
                                      .count = 1,
                                      .tokenizer = ops,
                                      .tokenizer_self = self,
                                      .rules = {.lines = true}};
        chm_corpus c;
        CHECK(chm_corpus_survey(&c, &q) == CHM_OK && chm_corpus_load(&c, &q) == CHM_OK && c.memory != NULL);
        const size_t size = (size_t)((const uint8_t *)(c.document + c.documents + 1) - c.memory);
        chm_string_add_bytes(seed, c.memory, size);
        chm_corpus_finish(&c);
        unlink(path);
        chm_free(path);
        return true;
    }
    /* "{"text":"ab"}\n" packed by zstd, without a checksum */
    static const uint8_t packed[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x0e, 0x71, 0x00, 0x00, '{', '"', 't',
                                     'e',  'x',  't',  '"',  ':',  '"',  'a',  'b',  '"',  '}', '\n'};
    if (i == 1) chm_string_add_bytes(seed, packed, sizeof packed);
    return i == 1;
}

static const char *const seeds[] = {
    "{\"text\": \"one\"}\n\n{\"text\": \"two\\n\\u00e4\", \"n\": [1, {}]}\r\n{\"text\": \"\"}\n",
    "plain\n\nlines\nof text", "\n\n", NULL};
static const char *const words[] = {
    "{\"text\":", "\"text\"",           "\"", "{", "}", "\n", "\n\n", "\r\n", "\\u0000", "\\ud800", "null", "\xff",
    "\xc3\xa4",   "{\"text\":\"x\"}\n", NULL};
static const struct fuzz fuzz = {.seeds = seeds, .make = make, .words = words, .runs = 2500};
