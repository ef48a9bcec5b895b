/*
 * The safetensors reader on arbitrary bytes. With -DCHM_LIBFUZZER and clang's -fsanitize=fuzzer it is a libFuzzer
 * target; otherwise main() makes the same mutations on every machine: `fuzz_safetensors [RUNS [SEED]]`, or files to
 * try.
 */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    chm_safetensors *s = NULL;
    if (chm_safetensors_parse("fuzz", data, bytes, &s)) {
        if (s) abort();
        return 0;
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
    return 0;
}

#ifndef CHM_LIBFUZZER
static const char *const headers[] = {
    "{}",
    "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}",
    "{\"__metadata__\":{\"format\":\"x\",\"n\":\"1\"},\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
    "\"_pad.0\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[3,8]},"
    "\"s\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[8,16]}}   ",
};
/* What a mutation may splice in: the words of the format and numbers at the edges. */
static const char *const words[] = {
    "{",
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
    "1e9",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"__metadata__\"",
    "\"BF16\"",
    "\\u0000",
    "null",
    "\xff",
    "[[[[[[[[",
};

static uint64_t below(uint64_t seed, uint64_t run, uint32_t draw, uint64_t bound) {
    return chm_below_at(seed, CHM_RANDOM_TEST, draw, run, bound);
}

static void try_copy(const uint8_t *data, size_t bytes) {
    uint8_t *exact = malloc(bytes ? bytes : 1); /* exactly its size: a read past the end is seen */
    if (!exact) abort();
    memcpy(exact, data, bytes);
    LLVMFuzzerTestOneInput(exact, bytes);
    free(exact);
}

int main(int argc, char **argv) {
    char *end = NULL;
    uint64_t runs = argc > 1 ? strtoull(argv[1], &end, 10) : 20000, seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    if (argc > 1 && *end) {
        for (int i = 1; i < argc; i++) {
            char *text;
            size_t bytes;
            if (chm_read_file(argv[i], 1 << 28, &text, &bytes)) return fprintf(stderr, "%s\n", chm_error()), 1;
            try_copy((uint8_t *)text, bytes);
            chm_free(text);
        }
        return 0;
    }
    for (uint64_t run = 0; run < runs; run++) {
        uint8_t data[4096] = {0};
        uint32_t draw = 0;
        const char *header = headers[below(seed, run, draw++, CHM_ARRAY_COUNT(headers))];
        size_t n = strlen(header), bytes = 8 + n + (n > 2 ? 16 : 0);
        memcpy(data + 8, header, n);
        uint64_t changes = below(seed, run, draw++, 6);
        bool mend = below(seed, run, draw++, 8) != 0; /* usually the length fits, so that the header is looked at */
        for (uint64_t c = 0; c < changes && bytes < sizeof data - 64; c++) {
            size_t at = 8 + (size_t)below(seed, run, draw++, n + 1);
            switch (below(seed, run, draw++, 4)) {
            case 0:
                data[at] ^= (uint8_t)(1u << below(seed, run, draw++, 8));
                break;
            case 1:
                data[at] = (uint8_t)('0' + below(seed, run, draw++, 10));
                break;
            case 2: { /* a word in */
                const char *word = words[below(seed, run, draw++, CHM_ARRAY_COUNT(words))];
                size_t length = strlen(word);
                memmove(data + at + length, data + at, bytes - CHM_MIN(at, bytes));
                memcpy(data + at, word, length);
                n += length;
                bytes += length;
                break;
            }
            default: { /* bytes out */
                size_t length = (size_t)below(seed, run, draw++, 8);
                length = CHM_MIN(length, 8 + n - at);
                memmove(data + at, data + at + length, bytes - at - length);
                n -= length;
                bytes -= length;
            }
            }
        }
        uint64_t length = mend ? n : below(seed, run, draw++, 300);
        for (int i = 0; i < 8; i++) data[i] = (uint8_t)(length >> 8 * i);
        if (below(seed, run, draw++, 8) == 0) bytes = (size_t)below(seed, run, draw++, bytes + 1);
        try_copy(data, bytes);
    }
    printf("%llu inputs, no failure\n", (unsigned long long)runs);
    return 0;
}
#endif
