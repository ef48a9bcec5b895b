/*
 * bytes: every byte is a token. Ids 0..255 are the bytes, 256 ends (and begins) a text, 257 pads. Any bytes at all,
 * valid UTF-8 or not, come back as they were.
 */
#include <chimera/plugin.h>

enum { BYTES_END = 256, BYTES_PAD = 257, BYTES_VOCAB = 258 };

struct bytes_tokenizer {
    bool ready;
};

static int bytes_init(void *self, const struct chm_host *host, const void *data, size_t bytes) {
    struct bytes_tokenizer *t = self;
    (void)data;
    if (bytes > 0)
        return host->fail(CHM_E_CONFIG, "tokenizer 'bytes' reads no file: take files.tokenizer out of the card");
    t->ready = true;
    return CHM_OK;
}

static int32_t bytes_vocab_size(const void *self) {
    (void)self;
    return BYTES_VOCAB;
}

static int32_t bytes_end_of_text(const void *self) {
    (void)self;
    return BYTES_END;
}

static int64_t bytes_encode(const void *self, const uint8_t *text, size_t bytes, int32_t *ids, size_t cap) {
    (void)self;
    const size_t n = bytes < cap ? bytes : cap;
    for (size_t i = 0; i < n; i++) ids[i] = text[i];
    return (int64_t)bytes;
}

static int64_t bytes_decode(const void *self, int32_t id, uint8_t *out, size_t cap) {
    (void)self;
    if (id < 0 || id >= BYTES_VOCAB) return -1;
    if (id >= BYTES_END) return 0;
    if (cap > 0) out[0] = (uint8_t)id;
    return 1;
}

static const struct chm_tokenizer_ops bytes_ops = {
    .size = sizeof(struct chm_tokenizer_ops),
    .init = bytes_init,
    .vocab_size = bytes_vocab_size,
    .end_of_text = bytes_end_of_text,
    .encode = bytes_encode,
    .decode = bytes_decode,
    .splits_anywhere = true,
};

CHM_PLUGIN(bytes, .kind = CHM_KIND_TOKENIZER, .version = "1.0.0", .licence = "Apache-2.0",
           .summary = "every byte a token: 256 bytes, end of text 256, padding 257",
           .instance_size = sizeof(struct bytes_tokenizer), .ops = &bytes_ops);
