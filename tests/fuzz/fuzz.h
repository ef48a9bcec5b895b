/*
 * mutate.h: main() of the text fuzzers when they are no libFuzzer targets: the same mutations of a few seed texts on
 * every machine, `fuzz_NAME [RUNS [SEED]]`, or files to try, `fuzz_NAME FILE...`.
 */
#ifndef CHM_FUZZ_MUTATE_H
#define CHM_FUZZ_MUTATE_H

#include "base/base.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

struct fuzz_text {
    const char *const *seeds; /* NULL-terminated */
    const char *const *words; /* what a mutation may splice in, NULL-terminated */
    uint64_t runs;
};

static void fuzz_one(const char *data, size_t bytes) {
    uint8_t *exact = malloc(bytes ? bytes : 1); /* exactly its size: a read past the end is seen */
    if (!exact) abort();
    if (bytes) memcpy(exact, data, bytes);
    LLVMFuzzerTestOneInput(exact, bytes);
    free(exact);
}

static size_t fuzz_count(const char *const *list) {
    size_t n = 0;
    while (list[n]) n++;
    return n;
}

/* One mutated text of run `run` into s. */
static void fuzz_mutate(const struct fuzz_text *f, uint64_t seed, uint64_t run, chm_string *s) {
    uint32_t draw = 0;
/* draws each time it is written: never inside a macro that repeats its argument */
#define BELOW(bound) ((size_t)chm_below_at(seed, CHM_RANDOM_TEST, draw++, run, (uint64_t)(bound)))
    const char *text = f->seeds[BELOW(fuzz_count(f->seeds))];
    chm_string_add_bytes(s, text, strlen(text));
    for (size_t c = BELOW(6); c > 0 && s->length > 0 && !s->failed; c--) {
        size_t at = BELOW(s->length);
        switch (BELOW(5)) {
        case 0:
            s->text[at] = (char)((unsigned char)s->text[at] ^ (1u << BELOW(8)));
            break;
        case 1:
            s->text[at] = (char)('0' + BELOW(10));
            break;
        case 2: { /* bytes out */
            size_t n = 1 + BELOW(CHM_MIN(20, s->length - at));
            memmove(s->text + at, s->text + at + n, s->length - at - n);
            s->length -= n;
            break;
        }
        case 3: { /* a piece of the text again, elsewhere */
            size_t n = 1 + BELOW(CHM_MIN(60, s->length - at));
            size_t from = BELOW(s->length - n + 1);
            memmove(s->text + at, s->text + from, n);
            break;
        }
        default: { /* a word in */
            const char *word = f->words[BELOW(fuzz_count(f->words))];
            size_t n = strlen(word), old = s->length;
            chm_string_add_bytes(s, word, n);
            if (s->failed) return;
            memmove(s->text + at + n, s->text + at, old - at);
            memcpy(s->text + at, word, n);
        }
        }
    }
    if (BELOW(16) == 0 && s->length > 0) s->length = BELOW(s->length);
#undef BELOW
}

static int fuzz_main(const struct fuzz_text *f, int argc, char **argv) {
    char *end = NULL;
    uint64_t runs = argc > 1 ? strtoull(argv[1], &end, 10) : f->runs, seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    if (argc > 1 && *end) {
        for (int i = 1; i < argc; i++) {
            char *text;
            size_t bytes;
            if (chm_read_file(argv[i], 1 << 28, &text, &bytes)) return fprintf(stderr, "%s\n", chm_error()), 1;
            fuzz_one(text, bytes);
            chm_free(text);
        }
        return 0;
    }
    for (const char *const *text = f->seeds; *text; text++) fuzz_one(*text, strlen(*text));
    for (uint64_t run = 0; run < runs; run++) {
        chm_string s = {0};
        fuzz_mutate(f, seed, run, &s);
        if (s.failed) abort();
        fuzz_one(s.text, s.length);
        chm_string_finish(&s);
    }
    printf("%llu inputs, no failure\n", (unsigned long long)runs);
    return 0;
}

#endif
