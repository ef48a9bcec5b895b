/*
 * Models of the sentencepiece tokenizer (plugins/tokenizers/sentencepiece.cc, linked in) on arbitrary bytes: what is
 * accepted must encode and decode, and give any bytes back where it says that it does.
 */
#include "fuzz.h"

extern const struct chm_plugin CHM_PLUGIN_SYMBOL(sentencepiece);

static char sentence[1024];

static int refuse(int status, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(sentence, sizeof sentence, format, list);
    va_end(list);
    return status;
}

static void *take(size_t bytes) { return calloc(1, bytes ? bytes : 1); }

static const struct chm_host host = {.size = sizeof host, .alloc = take, .free = free, .fail = refuse};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const uint8_t text[] =
        "the  cat's\n\n123 \xf0\x9f\x98\x80\xff aaaabbbb \xe2\x96\x81\xe2\x96 \xef\xac\x81\xcc\x81 the\tend<0x0A>";
    const struct chm_tokenizer_ops *ops = CHM_PLUGIN_SYMBOL(sentencepiece).ops;
    void *self = take(CHM_PLUGIN_SYMBOL(sentencepiece).instance_size);
    int32_t ids[4 * sizeof text];
    sentence[0] = '\0';
    if (ops->init(self, &host, data, bytes) != CHM_OK) {
        CHECK(strlen(sentence) > 10);
        for (const char *c = sentence; *c; c++) CHECK((unsigned char)*c >= 0x20);
        free(self);
        return 0;
    }
    const int32_t vocab = ops->vocab_size(self), end = ops->end_of_text(self);
    CHECK(vocab > 0 && end < vocab && ops->cut(self, text, sizeof text) <= sizeof text);
    const int64_t n = ops->encode(self, text, sizeof text, ids, CHM_ARRAY_COUNT(ids));
    CHECK(n >= -1);
    if (n < 0) CHECK(strlen(sentence) > 10);
    chm_string back = {0};
    for (int64_t i = 0; i < n && i < (int64_t)CHM_ARRAY_COUNT(ids); i++) {
        uint8_t piece[64];
        CHECK(ids[i] >= 0 && ids[i] < vocab);
        const int64_t length = ops->decode(self, ids[i], piece, sizeof piece);
        CHECK(length >= 0 && length <= 3 * 4096);
        chm_string_add_bytes(&back, piece, (size_t)CHM_MIN(length, (int64_t)sizeof piece));
    }
    if (ops->properties(self) & CHM_TOKENIZER_LOSSLESS)
        CHECK(n > 0 && back.length == sizeof text && memcmp(back.text, text, sizeof text) == 0);
    for (int32_t id = -1; id <= CHM_MIN(vocab, 1000); id++) {
        const char *special = ops->special(self, id);
        CHECK(!special || (id >= 0 && id < vocab && *special));
    }
    CHECK(ops->decode(self, vocab, NULL, 0) < 0 && ops->decode(self, -1, NULL, 0) < 0);
    chm_string_finish(&back);
    ops->finish(self);
    free(self);
    return 0;
}

/* ---- seeds: two that are trained here, and one by hand with a normaliser's table ---- */

static const uint8_t *next(void *user, size_t *bytes) {
    static const char *const lines[] = {"the cat sat on the mat", "the hat of that cat is flat",
                                        "a fat rat ate the bat's oats 123"};
    size_t *at = user;
    if (*at == CHM_ARRAY_COUNT(lines)) return NULL;
    *bytes = strlen(lines[*at]);
    return (const uint8_t *)lines[(*at)++];
}

static chm_string *trained;

static int keep(void *user, const void *data, size_t bytes) {
    (void)user;
    chm_string_add_bytes(trained, data, bytes);
    return CHM_OK;
}

static void add_field(chm_string *s, char tag, const void *data, size_t bytes) {
    CHECK(bytes < 1 << 14);
    const char head[] = {tag, (char)(bytes % 128 | 128), (char)(bytes / 128)};
    chm_string_add_bytes(s, head, sizeof head);
    chm_string_add_bytes(s, data, bytes);
}

/* damaged: its normaliser would jump out of its table at once */
static void by_hand(chm_string *seed, bool damaged) {
    static const char *const pieces[] = {"<unk>", "<s>", "</s>", "t", "h", "e", "th", "the", "\xe2\x96\x81", "a"};
    chm_string s = {0};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(pieces); i++) {
        add_field(&s, 0x0a, pieces[i], strlen(pieces[i]));
        chm_string_add_bytes(&s, "\x15\0\0\x80\xbf\x18", 6); /* score -1, and the type */
        chm_string_add_bytes(&s, i == 0 ? "\2" : i < 3 ? "\3" : "\1", 1);
        add_field(seed, 0x0a, s.text, s.length);
        chm_string_finish(&s);
    }
    add_field(seed, 0x12, "\x18\2", 2); /* BPE */
    uint8_t table[4 + 4 * 512 + 4] = {0};
    table[1] = 8;                                                      /* 2048 bytes of nodes */
    table[4 + 2] = 4;                                                  /* the children of the first begin at 256 */
    for (int i = 0; i < 512; i++) table[4 + 4 * i + 0] = i ? 0xff : 0; /* a label that is not the byte asked for */
    static const uint8_t far[4] = {0, 6, 0xfc, 0xff};
    if (damaged) memcpy(table + 4, far, sizeof far);
    add_field(&s, 0x12, table, sizeof table);
    chm_string_add_bytes(&s, "\x18\1\x20\1\x28\1", 6);
    add_field(seed, 0x1a, s.text, s.length);
    chm_string_finish(&s);
}

static bool make(size_t i, chm_string *seed) {
    static chm_string kept[2];
    if (i > 3) return false;
    if (i > 1) {
        by_hand(seed, i == 3);
        return true;
    }
    if (!kept[i].length) { /* the same every time, and slow */
        bool failed = false;
        size_t at = 0;
        const struct chm_tokenizer_training training = {.size = sizeof training,
                                                        .vocab = i ? 283 : 300,
                                                        .method = i ? "unigram" : "bpe",
                                                        .user = &at,
                                                        .next = next,
                                                        .write = keep,
                                                        .failed = &failed};
        trained = &kept[i];
        const struct chm_tokenizer_ops *ops = CHM_PLUGIN_SYMBOL(sentencepiece).ops;
        if (ops->train(&host, &training) != CHM_OK) {
            fprintf(stderr, "%s\n", sentence);
            abort();
        }
    }
    chm_string_add_bytes(seed, kept[i].text, kept[i].length);
    return true;
}

static const char *const words[] = {
    "\x0a\x03", "\x12",         "\x1a", "\x15", "\x18", "\x2a", "\xff\xff\xff\xff\x0f", "\x01", "\x06", "\x80",
    "<0x41>",   "\xe2\x96\x81", "\xff", "\x20", "\x28", NULL};
static const struct fuzz fuzz = {.make = make, .words = words, .runs = 5000};
