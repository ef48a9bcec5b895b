/* The safetensors reader on arbitrary bytes: as they are, and with a length that fits their header. */
#include "model/model.h"
#include "fuzz.h"
#include "mend.h"

static void try_file(const uint8_t *data, size_t bytes) {
    chm_safetensors *s = NULL;
    if (chm_safetensors_parse("fuzz", data, bytes, &s)) {
        if (s || strncmp(chm_error(), "fuzz: ", 6) != 0) abort();
        return;
    }
    /* What was accepted must hold: every byte inside the file, one after the other, every name found again. */
    volatile uint8_t sum = 0;
    const uint8_t *at = s->count ? s->tensor[0].data : NULL;
    for (int i = 0; i < s->count; i++) {
        const chm_st_tensor *t = &s->tensor[i];
        if (t->data != at || t->rank < 0 || t->rank > 8) abort();
        for (uint64_t b = 0; b < t->bytes; b++) sum = (uint8_t)(sum + t->data[b]);
        at += t->bytes;
        if (chm_safetensors_find(s, t->name) != t) abort();
    }
    if (s->count && at != data + bytes) abort();
    for (int i = 0; i < s->metas; i++)
        if (chm_safetensors_meta(s, s->meta_key[i]) != s->meta_value[i]) abort();
    chm_safetensors_destroy(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    chm_string mended = {0};
    try_file(data, bytes);
    if (mend_header(data, bytes, &mended)) {
        uint8_t *exact = malloc(mended.length); /* a read past the end is seen */
        if (!exact) abort();
        memcpy(exact, mended.text, mended.length);
        try_file(exact, mended.length);
        free(exact);
    }
    chm_string_finish(&mended);
    return 0;
}

static bool make(size_t i, chm_string *seed) {
    static const char *const headers[] = {
        "{}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}",
        "{\"__metadata__\":{\"format\":\"x\",\"n\":\"1\"},\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":"
        "[0,3]},\"_pad.0\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[3,8]},"
        "\"s\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[8,16]}}   ",
    };
    if (i >= CHM_ARRAY_COUNT(headers)) return false;
    const uint8_t length[8] = {(uint8_t)strlen(headers[i]), (uint8_t)(strlen(headers[i]) >> 8)};
    chm_string_add_bytes(seed, length, sizeof length);
    chm_string_add_bytes(seed, headers[i], strlen(headers[i]));
    if (i > 0) chm_string_add_bytes(seed, "0123456789abcdef", 16);
    return true;
}

/* The words of the format and numbers at the edges. */
static const char *const words[] = {"{",
                                    "}",
                                    "[",
                                    "]",
                                    ",",
                                    ":",
                                    "\"",
                                    "0",
                                    "-1",
                                    "16",
                                    "18446744073709551615",
                                    "9223372036854775807",
                                    "9223372036854775808",
                                    "1e3",
                                    "\"dtype\"",
                                    "\"shape\"",
                                    "\"data_offsets\"",
                                    "\"__metadata__\"",
                                    "\"BF16\"",
                                    "\\u0000",
                                    "null",
                                    "\xff",
                                    "[[[[[[[[",
                                    NULL};
static const struct fuzz fuzz = {.make = make, .words = words, .runs = 20000};
