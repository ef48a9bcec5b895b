/*
 * fuzz.h: what the fuzzers share. Each includes this, has LLVMFuzzerTestOneInput() and ends with its `fuzz`.
 *
 * With -DCHM_LIBFUZZER and clang's -fsanitize=fuzzer a fuzzer is a libFuzzer target, which `--seeds DIR WORDS` makes
 * write its seeds into DIR and its words as a dictionary. Otherwise main() makes the same mutations of the seeds on
 * every machine: `fuzz_NAME [RUNS [SEED]]`, or tries files: `fuzz_NAME FILE...`.
 */
#ifndef CHM_FUZZ_H
#define CHM_FUZZ_H

#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* An assertion that says where, also while stderr is another stream. */
#define CHECK(sound) ((sound) ? (void)0 : fuzz_broken(__FILE__, __LINE__, #sound))
__attribute__((noreturn, unused)) static void fuzz_broken(const char *file, int line, const char *what) {
    dprintf(STDERR_FILENO, "%s:%d: not so: %s (last sentence: %s)\n", file, line, what, chm_error());
    abort();
}

struct fuzz {
    const char *const *seeds;                 /* texts, NULL-terminated; NULL: none */
    bool (*make)(size_t i, chm_string *seed); /* further seeds, of any bytes; false past the last. NULL: none */
    const char *const *words;                 /* what a mutation may splice in, NULL-terminated */
    uint64_t runs;
};
static const struct fuzz fuzz;

static bool fuzz_seed(const struct fuzz *f, size_t i, chm_string *s) {
    for (const char *const *text = f->seeds; text && *text; text++)
        if (i-- == 0) {
            chm_string_add_bytes(s, *text, strlen(*text));
            return true;
        }
    return f->make && f->make(i, s);
}

#ifdef CHM_LIBFUZZER
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void fuzz_write(const char *path, const void *data, size_t bytes) {
    FILE *out = fopen(path, "wb");
    if (!out || fwrite(data, 1, bytes, out) != bytes || fclose(out)) {
        perror(path);
        exit(1);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const struct fuzz *f = &fuzz;
    if (*argc != 4 || strcmp((*argv)[1], "--seeds") != 0) return 0;
    chm_string s = {0}, words = {0};
    char path[4096];
    for (size_t i = 0; fuzz_seed(f, i, &s); i++) {
        snprintf(path, sizeof path, "%s/seed-%zu", (*argv)[2], i);
        fuzz_write(path, s.text, s.length);
        chm_string_finish(&s);
    }
    for (const char *const *word = f->words; *word; word++) {
        chm_string_add(&words, "\"");
        for (const char *c = *word; *c; c++) chm_string_add(&words, "\\x%02x", (unsigned char)*c);
        chm_string_add(&words, "\"\n");
    }
    fuzz_write((*argv)[3], words.text, words.length);
    chm_string_finish(&words);
    exit(0);
}

#else

static void fuzz_one(const char *data, size_t bytes) {
    uint8_t *exact = malloc(bytes ? bytes : 1); /* exactly its size: a read past the end is seen */
    if (!exact) abort();
    if (bytes) memcpy(exact, data, bytes);
    LLVMFuzzerTestOneInput(exact, bytes);
    free(exact);
}

/* Changes the seed in s as run `run` does. */
static void fuzz_mutate(const struct fuzz *f, uint64_t seed, uint64_t run, chm_string *s) {
    uint32_t draw = 1;
    size_t word_count = 0;
    while (f->words[word_count]) word_count++;
/* draws each time it is written: never inside a macro that repeats its argument */
#define BELOW(bound) ((size_t)chm_below_at(seed, CHM_RANDOM_TEST, draw++, run, (uint64_t)(bound)))
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
        case 3: { /* a piece again, elsewhere */
            size_t n = 1 + BELOW(CHM_MIN(60, s->length - at));
            size_t from = BELOW(s->length - n + 1);
            memmove(s->text + at, s->text + from, n);
            break;
        }
        default: { /* a word in */
            const char *word = f->words[BELOW(word_count)];
            size_t n = strlen(word), old = s->length;
            chm_string_add_bytes(s, word, n);
            if (s->failed) return;
            memmove(s->text + at + n, s->text + at, old - at);
            memmove(s->text + at, word, n);
        }
        }
    }
    if (BELOW(16) == 0 && s->length > 0) s->length = BELOW(s->length);
#undef BELOW
}

int main(int argc, char **argv) {
    const struct fuzz *f = &fuzz;
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
    size_t seeds = 0;
    for (chm_string s = {0}; fuzz_seed(f, seeds, &s); seeds++) {
        fuzz_one(s.text, s.length);
        chm_string_finish(&s);
    }
    for (uint64_t run = 0; run < runs; run++) {
        chm_string s = {0};
        fuzz_seed(f, (size_t)chm_below_at(seed, CHM_RANDOM_TEST, 0, run, seeds), &s);
        fuzz_mutate(f, seed, run, &s);
        if (s.failed) abort();
        fuzz_one(s.text, s.length);
        chm_string_finish(&s);
    }
    printf("%llu inputs, no failure\n", (unsigned long long)runs);
    return 0;
}
#endif
#endif
