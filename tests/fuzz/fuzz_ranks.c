/* The reader of rank files (plugins/tokenizers/o200k.c, linked in) on arbitrary bytes: alone, and after the 256 lines
 * that every rank file has; what it accepts must encode and give back. */
#include "base/base.h"
#include "fuzz.h"

extern const struct chm_plugin CHM_PLUGIN_SYMBOL(o200k);

static char sentence[1024];

static int refuse(int status, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(sentence, sizeof sentence, format, list);
    va_end(list);
    return status;
}

static void *take(size_t bytes) { return calloc(1, bytes ? bytes : 1); }

static void try_file(const uint8_t *data, size_t bytes) {
    static const struct chm_host host = {.size = sizeof host, .alloc = take, .free = free, .fail = refuse};
    static const uint8_t text[] =
        "the  rank's\n\n123 \xf0\x9f\x98\x80\xff aaaabbbbccccaaaabbbbccccaaaabbbbccccaaaabbbbcccc";
    const struct chm_tokenizer_ops *ops = CHM_PLUGIN_SYMBOL(o200k).ops;
    void *self = take(CHM_PLUGIN_SYMBOL(o200k).instance_size);
    int32_t ids[sizeof text];
    uint8_t back[sizeof text];
    sentence[0] = '\0';
    if (ops->init(self, &host, data, bytes) != CHM_OK) {
        if (strlen(sentence) < 10) abort();
        free(self);
        return;
    }
    const int64_t n = ops->encode(self, text, sizeof text, ids, sizeof text);
    size_t at = 0;
    if (n < 1 || n > (int64_t)sizeof text) abort();
    for (int64_t i = 0; i < n; i++) {
        const int64_t length = ops->decode(self, ids[i], back + at, sizeof back - at);
        if (length < 1 || at + (size_t)length > sizeof back) abort();
        at += (size_t)length;
    }
    if (at != sizeof text || memcmp(text, back, at) != 0) abort();
    const size_t cut = ops->cut(self, text, sizeof text);
    if (cut > sizeof text) abort();
    ops->finish(self);
    free(self);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    try_file(data, bytes);
    chm_string s = {0};
    for (unsigned i = 0; i < 256; i++) chm_string_add(&s, "%c%c== %u\n", digit[i >> 2], digit[(i & 3) << 4], i);
    chm_string_add_bytes(&s, data, bytes);
    if (s.failed) abort();
    uint8_t *exact = malloc(s.length); /* a read past the end is seen */
    memcpy(exact, s.text, s.length);
    try_file(exact, s.length);
    free(exact);
    chm_string_finish(&s);
    return 0;
}

static const char *const seeds[] = {
    "YWE= 256\nYWFhYQ== 257\nYmI= 258\n",
    "dGhl 256\nICB0aGU= 257\n\nMTIz 258\n8J+YgA== 259\n",
    "YWI= 257\nYWJj 256\n",
    "IQ== 0\nIg== 1\nIw== 2\n",
    NULL,
};
static const char *const words[] = {"==",         "=",  " ",    "\n",   "\r\n", "256", "257",
                                    "4294967295", "-1", "YWE=", "\xff", "0",    NULL};
static const struct fuzz fuzz = {.seeds = seeds, .words = words, .runs = 2000};
