/*
 * test_o200k.c: the o200k tokenizer with rank files made up here: splitting, merging against the obvious slow way,
 * cuts, refusals, damaged files. test_o200k_reference.c holds it against the public implementation.
 */
#include "tokenizer_help.h"

/* ---- rank files ---- */

static void add_base64(chm_string *s, const uint8_t *bytes, size_t n) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        const uint32_t word =
            (uint32_t)bytes[i] << 16 | (i + 1 < n ? (uint32_t)bytes[i + 1] << 8 : 0) | (i + 2 < n ? bytes[i + 2] : 0);
        const char four[4] = {digit[word >> 18], digit[word >> 12 & 63], i + 1 < n ? digit[word >> 6 & 63] : '=',
                              i + 2 < n ? digit[word & 63] : '='};
        chm_string_add_bytes(s, four, 4);
    }
}

struct ranks {
    chm_string file;
    uint32_t count;
    uint8_t *bytes[4000]; /* of each rank */
    size_t length[4000];
};

static bool add_token(struct ranks *r, const void *bytes, size_t n) {
    for (uint32_t i = 0; i < r->count; i++)
        if (r->length[i] == n && memcmp(r->bytes[i], bytes, n) == 0) return false;
    assert_true(r->count < CHM_ARRAY_COUNT(r->bytes));
    r->bytes[r->count] = memcpy(chm_alloc(n), bytes, n);
    r->length[r->count] = n;
    add_base64(&r->file, bytes, n);
    chm_string_add(&r->file, " %u\n", r->count++);
    return true;
}

/* The 256 bytes, in an order of its own as in the published files. */
static struct ranks *new_ranks(void) {
    struct ranks *r = chm_alloc(sizeof *r);
    for (int i = 0; i < 256; i++) {
        const uint8_t byte = (uint8_t)(i * 7 + 33);
        assert_true(add_token(r, &byte, 1));
    }
    return r;
}

static void drop_ranks(struct ranks *r) {
    for (uint32_t i = 0; i < r->count; i++) chm_free(r->bytes[i]);
    chm_string_finish(&r->file);
    chm_free(r);
}

static int set_up(void **state) {
    (void)state;
    return open_plugin("o200k");
}

static int tear_down(void **state) {
    (void)state;
    chm_registry_finish(&registry);
    return 0;
}

/* ---- the layout of ids ---- */

static void specials_follow_the_ranks(void **state) {
    (void)state;
    struct ranks *r = new_ranks();
    void *self = instance(r->file.text, r->file.length);
    const int32_t n = (int32_t)r->count;
    assert_int_equal(ops->vocab_size(self), n + 75); /* 199,998 ranks make 200,073 */
    assert_int_equal(ops->end_of_text(self), n + 1);
    static const struct {
        int32_t at;
        const char *name;
    } known[] = {{1, "<|endoftext|>"}, {20, "<|endofprompt|>"}, {21, "<|system|>"},  {26, "<|think|>"},
                 {27, "<|/think|>"},   {59, "<|/recall|>"},     {60, "<|pad|>"},     {62, "<|sep|>"},
                 {63, "<|image|>"},    {73, "<|summary|>"},     {74, "<|/summary|>"}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(known); i++)
        assert_string_equal(ops->special(self, n + known[i].at), known[i].name);
    int specials = 0;
    for (int32_t id = 0; id < n + 75; id++) {
        const bool special = ops->special(self, id) != NULL;
        specials += special;
        assert_int_equal(ops->decode(self, id, NULL, 0), id < n ? 1 : 0);
        assert_false(special && id < n);
    }
    assert_int_equal(specials, 56);
    assert_int_equal(ops->decode(self, n + 75, NULL, 0), -1);
    assert_int_equal(ops->decode(self, -1, NULL, 0), -1);
    assert_true(ops->properties(self) & CHM_TOKENIZER_LOSSLESS);
    /* names in a text are text */
    const struct tokens t = encode(self, "<|endoftext|>", 13);
    assert_int_equal(t.count, 13);
    assert_decodes_to(self, &t, "<|endoftext|>", 13);
    chm_free(t.id);
    drop(self);
    drop_ranks(r);
}

/* ---- splitting ---- */

/* Texts in the pieces that the public pattern cuts them into. When every piece is a token, and every two neighbours
 * together, the tokens are the pieces. */
static const char *const pieces[][12] = {
    {"Hello", " world", "!", NULL},
    {"don't", " WE'LL", " I", "'x", NULL},
    {"it's", "'s", NULL},
    {"\xc5\xbf'\xc5\xbf", " x", NULL}, /* the long s is an s in lower case */
    {"camel", "Case", "XMLHttp", "Request", NULL},
    {"123", "456", "7", " ", "890", "x", "12", NULL},
    {"a", " ", " b", "  ", " c", NULL},
    {"tab", "\t", "\ttab", "\t", "(", NULL},
    {"x", " \n \n", "  ", " y", NULL},
    {"end", "  \r\n", "next", "\n\n", " ", NULL},
    {"}\n\n/", "*", NULL},
    {"a", "();\n\n//\n", "b", NULL},
    {"path", "/to", "/file", "...", " ", NULL},
    {"\xe2\x80\x83", "\xe2\x80\x83wide", NULL},
    {"x", "\xe1\xa0\x8e", NULL}, /* U+180E is no white space */
    {"caf\xc3\xa9", " na\xc3\xafve", " e\xcc\x81t\xc3\xa9", NULL},
    {"\xe6\xbc\xa2\xe5\xad\x97", "\xe3\x80\x82\xe3\x81\x8b\xe3\x81\xaa", NULL},
    {"\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7", " \xf0\x9f\x98\x80!!\n", NULL},
    {"\xd9\xa1\xd9\xa2\xd9\xa3", "\xd9\xa4", NULL},
    {"ok", "\xff\xfe", "ok", "\xc3", NULL}, /* no UTF-8: pieces by themselves */
    {"  ", "\xe2\x82", NULL},
};

static void splits_as_the_public_pattern(void **state) {
    (void)state;
    for (size_t row = 0; row < CHM_ARRAY_COUNT(pieces); row++) {
        struct ranks *r = new_ranks();
        chm_string text = {0};
        for (size_t i = 0; pieces[row][i]; i++) {
            add_token(r, pieces[row][i], strlen(pieces[row][i]));
            chm_string_add_bytes(&text, pieces[row][i], strlen(pieces[row][i]));
        }
        for (size_t i = 0; pieces[row][i + 1]; i++) {
            char *both = chm_format("%s%s", pieces[row][i], pieces[row][i + 1]);
            add_token(r, both, strlen(both));
            chm_free(both);
        }
        void *self = instance(r->file.text, r->file.length);
        const struct tokens t = encode(self, text.text, text.length);
        for (int64_t i = 0; i < t.count || pieces[row][i]; i++) {
            const char *piece = pieces[row][i];
            const uint32_t rank = (uint32_t)(i < t.count ? t.id[i] : 0);
            if (i == t.count || !piece || r->length[rank] != strlen(piece) ||
                memcmp(piece, r->bytes[rank], strlen(piece)) != 0)
                fail_msg("row %zu: piece %d is not \"%s\"", row, (int)i, piece ? piece : "(the end)");
        }
        chm_free(t.id);
        drop(self);
        chm_string_finish(&text);
        drop_ranks(r);
    }
}

/* ---- merging ---- */

/* The definition: of all neighbours whose union is a token merge the one of the lowest rank, the leftmost first. */
static int64_t slow_merge(const struct ranks *r, const uint8_t *s, size_t n, int32_t *ids) {
    size_t *start = chm_alloc((n + 1) * sizeof *start), parts = n;
    for (size_t i = 0; i <= n; i++) start[i] = i;
    for (;;) {
        size_t best = SIZE_MAX;
        uint32_t lowest = UINT32_MAX;
        for (size_t i = 0; i + 1 < parts; i++)
            for (uint32_t k = 0; k < r->count && k < lowest; k++)
                if (r->length[k] == start[i + 2] - start[i] && memcmp(r->bytes[k], s + start[i], r->length[k]) == 0) {
                    lowest = k;
                    best = i;
                }
        if (best == SIZE_MAX) break;
        memmove(&start[best + 1], &start[best + 2], (parts - best - 1) * sizeof *start);
        parts--;
    }
    for (size_t i = 0; i < parts; i++)
        for (uint32_t k = 0; k < r->count; k++)
            if (r->length[k] == start[i + 1] - start[i] && memcmp(r->bytes[k], s + start[i], r->length[k]) == 0)
                ids[i] = (int32_t)k;
    chm_free(start);
    return (int64_t)parts;
}

/* Tokens of a few letters, each the union of two that were there before, as a training would leave them. */
static struct ranks *letters(uint32_t run, uint32_t tokens) {
    struct ranks *r = new_ranks();
    for (uint64_t draw = 0; r->count < 256 + tokens; draw++) {
        uint8_t both[64];
        size_t n = 0;
        for (uint64_t k = 0; k < 2; k++) {
            const uint64_t pick = below(r->count - 256 + 3, run, 2 * draw + k);
            if (pick < 3) {
                both[n++] = (uint8_t)('a' + pick);
            } else if (r->length[253 + pick] < 30) {
                memcpy(both + n, r->bytes[253 + pick], r->length[253 + pick]);
                n += r->length[253 + pick];
            }
        }
        if (n > 1) add_token(r, both, n);
    }
    return r;
}

static void merges_as_the_slow_way(void **state) {
    (void)state;
    uint8_t text[600];
    int32_t slow[600], fast[600];
    for (uint32_t run = 0; run < 12; run++) {
        struct ranks *r = letters(run, 40 + 10 * run);
        void *self = instance(r->file.text, r->file.length);
        for (uint32_t k = 0; k < 60; k++) {
            /* one piece: small letters. 48 bytes is where the heap begins */
            const size_t n = k < 55 ? 1 + k : 100 + (size_t)below(500, 200 + run, k);
            const uint64_t kinds = 1 + k % 3;
            for (size_t i = 0; i < n; i++) text[i] = (uint8_t)('a' + below(kinds, 300 + run, k * 1000 + i));
            bool whole = false; /* a piece that is a token is that token, however it would merge */
            for (uint32_t i = 0; i < r->count; i++) whole |= r->length[i] == n && memcmp(r->bytes[i], text, n) == 0;
            const int64_t expected = whole ? 1 : slow_merge(r, text, n, slow);
            assert_int_equal(ops->encode(self, text, n, fast, 600), expected);
            if (whole)
                assert_int_equal(ops->decode(self, fast[0], NULL, 0), n);
            else
                assert_memory_equal(slow, fast, (size_t)expected * sizeof *fast);
        }
        drop(self);
        drop_ranks(r);
    }
}

/* A megabyte of one piece must not take its square. */
static void long_pieces_end(void **state) {
    (void)state;
    struct ranks *r = letters(3, 100);
    void *self = instance(r->file.text, r->file.length);
    const size_t n = 1 << 20;
    char *text = chm_alloc(n);
    for (int kind = 0; kind < 5; kind++) {
        static const char *const of[] = {"a", "ab", "A", " ", "\xff"};
        for (size_t i = 0; i < n; i++) text[i] = of[kind][i % strlen(of[kind])];
        const struct tokens t = encode(self, text, n);
        assert_decodes_to(self, &t, text, n);
        chm_free(t.id);
    }
    chm_free(text);
    drop(self);
    drop_ranks(r);
}

static void random_bytes_round_trip(void **state) {
    (void)state;
    struct ranks *r = letters(5, 50);
    void *self = instance(r->file.text, r->file.length);
    uint8_t text[3000];
    for (uint32_t run = 0; run < 200; run++) {
        const size_t n = (size_t)below(sizeof text, 400, run);
        for (size_t i = 0; i < n; i++) text[i] = (uint8_t)below(run % 2 ? 256 : 128, 401 + run, i);
        const struct tokens t = encode(self, text, n);
        assert_decodes_to(self, &t, text, n);
        chm_free(t.id);
    }
    drop(self);
    drop_ranks(r);
}

/* ---- cuts ---- */

static const char *const hard[] = {"a",
                                   "b",
                                   "don't",
                                   "'s",
                                   "Z",
                                   " ",
                                   "  ",
                                   "\n",
                                   "\r\n",
                                   "\t",
                                   "/",
                                   "//",
                                   "(",
                                   ";",
                                   "1",
                                   "234",
                                   "\xc3\xa9",
                                   "\xe6\xbc\xa2",
                                   "\xe3\x80\x80",
                                   "\xc2\xa0",
                                   "\xe2\x80\x83",
                                   "\xcc\x81",
                                   "\xff",
                                   "\xc3",
                                   "\xf0\x9f\x98\x80",
                                   NULL};

/* Tokens that reach over every kind of border, so that a wrong cut shows. */
static struct ranks *borders(void) {
    struct ranks *r = new_ranks();
    char text[64];
    for (uint32_t run = 0; run < 3000 && r->count < 2500; run++) {
        const size_t n = random_text(hard, 500 + run, 2 + run % 3, text, sizeof text);
        for (size_t part = 2; part <= n; part++) add_token(r, text, part);
    }
    return r;
}

static void cuts_change_no_token(void **state) {
    (void)state;
    static const char *const dense[] = {"1",    "(", "\xe6\xbc\xa2", "\xe3\x81\x8b", "\xe3\x80\x80", "\t", " ",
                                        "\xff", NULL};
    struct ranks *r = borders();
    void *self = instance(r->file.text, r->file.length);
    char text[160];
    int cuts = 0, dense_cuts = 0;
    for (uint32_t run = 0; run < 400; run++) {
        size_t n = random_text(hard, 9000 + run, 30, text, sizeof text);
        cuts += assert_cuts_are_safe(self, text, n);
        /* neither lines nor words: only the pattern itself can tell */
        n = random_text(dense, 9500 + run, 30, text, sizeof text);
        dense_cuts += assert_cuts_are_safe(self, text, n);
    }
    assert_true(cuts > 5000);
    assert_true(dense_cuts > 5000);
    const size_t bytes = 400000;
    char *large = chm_alloc(bytes);
    size_t n = random_text(hard, 77, 200000, large, bytes);
    assert_true(n > 200000);
    assert_streams_as_whole(self, large, n);
    n = random_text(dense, 78, 200000, large, bytes);
    assert_streams_as_whole(self, large, n);
    chm_free(large);
    drop(self);
    drop_ranks(r);
}

/* ---- refusals ---- */

static void refuse(const char *text, size_t bytes, const char *said) {
    void *self = try_instance(text, bytes);
    if (self != NULL || strstr(chm_error(), said) == NULL)
        fail_msg("expected \"%s\", got: %s", said, self ? "success" : chm_error());
}

static void bad_files_are_refused_by_line(void **state) {
    (void)state;
    struct ranks *r = new_ranks();
    add_token(r, "ab", 2);
    static const struct {
        const char *line, *said;
    } last[] = {
        {"YWI= 257\n", ":258: the same token as in line 257"},
        {"YWJj 256\n", ":258: rank 256 was given in line 257"},
        {"YWJj 300\n", ":258: rank 300, but 258 tokens have the ranks 0..257: one is missing"},
        {"YWJj 99999999999999999999\n", ":258: the rank after"},
        {"YW?j 257\n", ":258: the 4 characters before the space are no base64"},
        {"YWJ 257\n", ":258: the 3 characters before"},
        {"YWJ= 257\n", ":258: the 4 characters before"}, /* bits after the end of the token */
        {"==== 257\n", ":258: the 4 characters before"},
        {" 257\n", ":258: the 0 characters before"},
        {"YWJj\n", ":258: expected a token in base64, a space and its rank"},
        {"YWJj \n", ":258: the rank after the space is no whole number"},
        {"YWJj -1\n", ":258: the rank after"},
        {"YWJj 257 \n", ":258: the rank after"},
        {"YWJj 257\r\n", ":258: the rank after"},
        {"YWJj 257", ":258: the last line does not end: the file was cut short"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(last); i++) {
        char *text = chm_format("%s%s", r->file.text, last[i].line);
        refuse(text, strlen(text), last[i].said);
        assert_non_null(strstr(chm_error(), "; take the file as it was published"));
        chm_free(text);
    }
    /* blank lines are none */
    char *text = chm_format("\n%s\n\nYWJj 257\n\n", r->file.text);
    void *self = instance(text, strlen(text));
    assert_int_equal(ops->vocab_size(self), 258 + 75);
    drop(self);
    chm_free(text);
    /* a byte is missing: another token took its line */
    const char *line = strchr(r->file.text, '\n') + 1;
    text = chm_format("eHl6 0\n%s", line);
    refuse(text, strlen(text), ":257: the end, and no token is the byte 0x21 alone");
    chm_free(text);
    refuse("\n\n", 2, "there is no line with a token");
    refuse("", 0, "needs a rank file");
    static const char model[] = "\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02";
    refuse(model, sizeof model - 1, "looks like a sentencepiece model");
    drop_ranks(r);
}

static void damaged_files_are_refused_or_work(void **state) {
    (void)state;
    struct ranks *r = letters(9, 60);
    const int opened = change_single_bytes((const uint8_t *)r->file.text, r->file.length,
                                           "abcabba don't  stop 123\n\xff\xf0\x9f\x98\x80", true);
    assert_in_range(opened, 1, 9000); /* a letter of base64 may make another token that was not there */
    /* cut short anywhere: all but the last line's rank is noticed by itself */
    for (size_t n = 0; n < r->file.length; n += 7) {
        char *copy = malloc(n + 1);
        memcpy(copy, r->file.text, n);
        void *self = try_instance(copy, n);
        if (self != NULL) assert_int_equal(copy[n - 1], '\n');
        drop(self);
        free(copy);
    }
    drop_ranks(r);
}

static void allocations_may_fail(void **state) {
    (void)state;
    struct ranks *r = letters(2, 30);
    void *self = NULL;
    for (long n = 0; n < 200 && self == NULL; n++) {
        void *memory = chm_alloc(plugin->instance_size);
        chm_alloc_fail_after(n);
        const int status = ops->init(memory, chm_host_services(), r->file.text, r->file.length);
        chm_alloc_fail_after(-1);
        if (status == CHM_OK)
            self = memory;
        else
            chm_free(memory);
    }
    assert_non_null(self);
    char text[200];
    memset(text, 'b', sizeof text);
    for (long n = 0;; n++) {
        chm_alloc_fail_after(n);
        const int64_t count = ops->encode(self, (const uint8_t *)text, sizeof text, NULL, 0);
        chm_alloc_fail_after(-1);
        if (count > 0) break;
        assert_true(n < 50);
    }
    drop(self);
    drop_ranks(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(specials_follow_the_ranks),     cmocka_unit_test(splits_as_the_public_pattern),
        cmocka_unit_test(merges_as_the_slow_way),        cmocka_unit_test(long_pieces_end),
        cmocka_unit_test(random_bytes_round_trip),       cmocka_unit_test(cuts_change_no_token),
        cmocka_unit_test(bad_files_are_refused_by_line), cmocka_unit_test(damaged_files_are_refused_or_work),
        cmocka_unit_test(allocations_may_fail),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
