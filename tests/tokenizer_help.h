/* tokenizer_help.h: tokenizer plugins of the build, opened and tried; shared by their tests. */
#ifndef TOKENIZER_HELP_H
#define TOKENIZER_HELP_H

#include "model/runtime.h"
#include "train/train.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <setjmp.h>
#include <cmocka.h>

struct tokens {
    int32_t *id;
    int64_t count;
};

static chm_registry registry;
static const struct chm_plugin *plugin;
static const struct chm_tokenizer_ops *ops;

static inline int open_plugin(const char *name) {
    char *path = chm_format("%s/plugins/tokenizers", getenv("CHM_BUILD_ROOT"));
    const struct chm_registry_options options = {.plugin_path = path};
    const int status = chm_registry_init(&registry, &options);
    chm_free(path);
    if (status != CHM_OK || (plugin = chm_registry_find(&registry, CHM_KIND_TOKENIZER, name)) == NULL) {
        fprintf(stderr, "%s\n", chm_error());
        return -1;
    }
    ops = plugin->ops;
    return 0;
}

/* An instance of these bytes, which must outlive it; NULL: refused. */
static inline void *try_instance(const void *data, size_t bytes) {
    void *self = chm_alloc(plugin->instance_size);
    if (self == NULL || ops->init(self, chm_host_services(), data, bytes) == CHM_OK) return self;
    chm_free(self);
    return NULL;
}

static inline void *instance(const void *data, size_t bytes) {
    void *self = try_instance(data, bytes);
    if (self == NULL) fail_msg("%s", chm_error());
    return self;
}

static inline void drop(void *self) {
    if (self != NULL) ops->finish(self);
    chm_free(self);
}

static inline struct tokens encode(const void *self, const void *text, size_t bytes) {
    struct tokens t = {.count = ops->encode(self, text, bytes, NULL, 0)};
    if (t.count < 0) fail_msg("%s", chm_error());
    t.id = chm_alloc(((size_t)t.count + 1) * sizeof *t.id);
    assert_int_equal(ops->encode(self, text, bytes, t.id, (size_t)t.count), t.count);
    return t;
}

/* The bytes of the tokens are those of the text. */
static inline void assert_decodes_to(const void *self, const struct tokens *t, const void *text, size_t bytes) {
    size_t at = 0;
    uint8_t small[8192];
    for (int64_t i = 0; i < t->count; i++) {
        const int64_t n = ops->decode(self, t->id[i], small, sizeof small);
        assert_in_range(n, 0, sizeof small);
        assert_true(at + (size_t)n <= bytes);
        assert_memory_equal(small, (const uint8_t *)text + at, n);
        at += (size_t)n;
    }
    assert_int_equal(at, bytes);
}

static inline void assert_same_tokens(const struct tokens *a, const struct tokens *b) {
    assert_int_equal(a->count, b->count);
    if (a->count > 0) assert_memory_equal(a->id, b->id, (size_t)a->count * sizeof *a->id);
}

static inline uint64_t below(uint64_t bound, uint32_t a, uint64_t b) {
    return chm_below_at(11, CHM_RANDOM_TEST, a, b, bound);
}

/* A text of `n` words drawn from a NULL-terminated list; returns its bytes. */
static inline size_t random_text(const char *const *words, uint32_t run, size_t n, char *out, size_t room) {
    size_t count = 0, bytes = 0;
    while (words[count]) count++;
    for (size_t i = 0; i < n; i++) {
        const char *word = words[below(count, run, i)];
        if (bytes + strlen(word) > room) break;
        memcpy(out + bytes, word, strlen(word));
        bytes += strlen(word);
    }
    return bytes;
}

/* Cuts of every beginning of the text leave the tokens of the whole as they are; returns how many there were. */
static inline int assert_cuts_are_safe(const void *self, const char *text, size_t bytes) {
    const struct tokens whole = encode(self, text, bytes);
    int cuts = 0;
    for (size_t n = 1; n <= bytes; n++) {
        char *exact = malloc(n); /* a look past what there is would be seen */
        memcpy(exact, text, n);
        const size_t at = ops->cut(self, (const uint8_t *)exact, n);
        free(exact);
        assert_true(at <= n);
        if (at == 0) continue;
        cuts++;
        struct tokens a = encode(self, text, at), b = encode(self, text + at, bytes - at);
        a.id = chm_realloc(a.id, (size_t)(a.count + b.count + 1) * sizeof *a.id);
        memcpy(a.id + a.count, b.id, (size_t)b.count * sizeof *b.id);
        a.count += b.count;
        if (a.count != whole.count || memcmp(a.id, whole.id, (size_t)a.count * sizeof *a.id) != 0)
            fail_msg("cut at %zu of %zu, from %zu known bytes: other tokens in \"%.*s\"", at, bytes, n, (int)bytes,
                     text);
        chm_free(a.id);
        chm_free(b.id);
    }
    chm_free(whole.id);
    return cuts;
}

/* What training and evaluation read of a file, piece by piece, is the encoding of the whole. */
static inline void assert_streams_as_whole(const void *self, const char *text, size_t bytes) {
    char path[64];
    snprintf(path, sizeof path, "test_%s.tmp%d.txt", plugin->name, (int)getpid()); /* tests run side by side */
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
    const struct tokens whole = encode(self, text, bytes);
    chm_text t;
    assert_int_equal(chm_text_open(&t, path, ops, self, &(chm_corpus_rules){.lines = false}, 0, false), CHM_OK);
    assert_int_equal(chm_text_next(&t), 1);
    int32_t some[1000];
    int64_t n, at = -1; /* the first is the end-of-text mark */
    while ((n = chm_text_take(&t, some, 1000)) > 0) {
        if (at < 0) assert_int_equal(some[0], ops->end_of_text(self));
        const int64_t skip = at < 0;
        at += skip;
        assert_true(at + n - skip <= whole.count);
        assert_memory_equal(some + skip, whole.id + at, (size_t)(n - skip) * sizeof *some);
        at += n - skip;
    }
    assert_int_equal(n, 0);
    assert_int_equal(at, whole.count);
    chm_text_close(&t);
    chm_free(whole.id);
    unlink(path);
}

/* 10,000 changes of one byte: refused with one sentence, or opened and then fit for use. Returns how many opened. */
static inline int change_single_bytes(const uint8_t *data, size_t bytes, const char *text, bool lossless) {
    int opened = 0;
    for (uint64_t run = 0; run < 10000; run++) {
        uint8_t *copy = malloc(bytes);
        memcpy(copy, data, bytes);
        const size_t at = (size_t)below(bytes, 101, run);
        copy[at] = (uint8_t)(copy[at] + 1 + below(255, 102, run));
        void *self = try_instance(copy, bytes);
        if (self == NULL) {
            const char *said = chm_error();
            if (strlen(said) < 10 || strchr(said, '\n')) fail_msg("byte %zu changed: said \"%s\"", at, said);
        } else {
            opened++;
            const int64_t n = ops->encode(self, (const uint8_t *)text, strlen(text), NULL, 0);
            assert_true(n >= 0 || chm_error()[0]);
            if (n >= 0) {
                const struct tokens t = encode(self, text, strlen(text));
                if (lossless) assert_decodes_to(self, &t, text, strlen(text));
                chm_free(t.id);
            }
            drop(self);
        }
        free(copy);
    }
    return opened;
}

#endif
