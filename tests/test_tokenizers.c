/* test_tokenizers.c: tokenizers through the registry, as a model uses them. */
#include "model/runtime.h"

#include <stdlib.h>
#include <string.h>
#include <setjmp.h>
#include <cmocka.h>

static chm_registry registry;
static const struct chm_tokenizer_ops *ops;
static void *self;

static int set_up(void **state) {
    (void)state;
    char *path = chm_format("%s/plugins/tokenizers", getenv("CHM_BUILD_ROOT"));
    const struct chm_registry_options options = {.plugin_path = path};
    const int status = chm_registry_init(&registry, &options);
    chm_free(path);
    if (status != CHM_OK) return -1;
    const struct chm_plugin *plugin = chm_registry_find(&registry, CHM_KIND_TOKENIZER, "bytes");
    if (plugin == NULL) {
        fprintf(stderr, "%s\n", chm_error());
        return -1;
    }
    ops = plugin->ops;
    self = chm_alloc(plugin->instance_size);
    return self && ops->init(self, chm_host_services(), NULL, 0) == CHM_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    if (ops->finish) ops->finish(self);
    chm_free(self);
    chm_registry_finish(&registry);
    return 0;
}

static void ids_are_bytes_and_two_specials(void **state) {
    (void)state;
    uint8_t out[4] = {0};
    assert_int_equal(ops->vocab_size(self), 258);
    assert_int_equal(ops->end_of_text(self), 256);
    assert_true(ops->splits_anywhere);
    for (int id = 0; id < 256; id++) {
        assert_int_equal(ops->decode(self, id, out, sizeof out), 1);
        assert_int_equal(out[0], id);
    }
    assert_int_equal(ops->decode(self, 256, out, sizeof out), 0);
    assert_int_equal(ops->decode(self, 257, out, sizeof out), 0);
    assert_int_equal(ops->decode(self, 258, out, sizeof out), -1);
    assert_int_equal(ops->decode(self, -1, out, sizeof out), -1);
}

/* Any bytes come back: random ones hold every kind of broken UTF-8. */
static void random_bytes_round_trip(void **state) {
    (void)state;
    enum { MOST = 3000 };
    uint8_t text[MOST], back[MOST];
    int32_t ids[MOST];
    for (uint32_t round = 0; round < 200; round++) {
        const size_t n = (size_t)chm_below_at(7, CHM_RANDOM_TEST, round, 0, MOST);
        for (size_t i = 0; i < n; i++) text[i] = (uint8_t)chm_below_at(7, CHM_RANDOM_TEST, round, i + 1, 256);
        assert_int_equal(ops->encode(self, text, n, NULL, 0), n); /* counting writes nothing */
        assert_int_equal(ops->encode(self, text, n, ids, MOST), n);
        size_t at = 0;
        for (size_t i = 0; i < n; i++) {
            const int64_t length = ops->decode(self, ids[i], back + at, MOST - at);
            assert_in_range(length, 1, 1);
            at += (size_t)length;
        }
        assert_int_equal(at, n);
        assert_memory_equal(text, back, n);
    }
}

static void a_short_buffer_is_not_overrun(void **state) {
    (void)state;
    int32_t ids[4] = {-7, -7, -7, -7};
    uint8_t guard[2] = {1, 2};
    assert_int_equal(ops->encode(self, (const uint8_t *)"abcdef", 6, ids, 3), 6);
    assert_int_equal(ids[2], 'c');
    assert_int_equal(ids[3], -7);
    assert_int_equal(ops->decode(self, 'a', guard, 0), 1);
    assert_int_equal(guard[0], 1);
}

static void a_file_is_refused(void **state) {
    (void)state;
    void *other = chm_alloc(64);
    assert_int_equal(ops->init(other, chm_host_services(), "merges", 6), CHM_E_CONFIG);
    assert_non_null(strstr(chm_error(), "reads no file"));
    chm_free(other);
}

/* ---- whole characters ---- */

/* However a text comes in pieces, what goes out is whole characters and, with what is flushed, the text. */
static void only_whole_characters_pass(void **state) {
    (void)state;
    static const char text[] =
        "a\xc3\xa9\xe6\xbc\xa2\xf0\x9f\x98\x80z\xff\xc3(\xe2\x82 \xed\xa0\x80\xf4\x90\xc0\xaf\xf0\x9f\x98";
    const size_t n = sizeof text - 1;
    for (uint32_t run = 0; run < 500; run++) {
        chm_utf8 u = {.count = 0};
        uint8_t out[64], some[16];
        size_t at = 0, done = 0;
        while (at < n) {
            size_t step = run == 0 ? 1 : 1 + (size_t)chm_below_at(3, CHM_RANDOM_TEST, run, at, 9);
            if (step > n - at) step = n - at;
            const size_t got = chm_utf8_take(&u, text + at, step, some);
            memcpy(out + done, some, got);
            done += got;
            at += step;
            assert_int_equal(done + u.count, at);
            assert_int_equal(chm_utf8_unfinished(out, done), 0);
        }
        assert_int_equal(u.count, 3); /* the last character lacks a byte */
        done += chm_utf8_flush(&u, out + done);
        assert_int_equal(u.count, 0);
        assert_int_equal(done, n);
        assert_memory_equal(out, text, n);
    }
    static const struct {
        const char *text;
        size_t unfinished;
    } ends[] = {{"", 0},
                {"a", 0},
                {"\xc3", 1},
                {"\xc3\xa9", 0},
                {"\xe6\xbc", 2},
                {"\xe6", 1},
                {"\xf0\x9f\x98", 3},
                {"\xf5", 0},
                {"\xc1", 0},
                {"\xa9", 0},
                {"\xe0\x80", 0},
                {"\xed\xa0", 0},
                {"\xf4\x90", 0},
                {"\xa9\xa9\xa9\xa9", 0},
                {"\xff\xe6\xbc", 2}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(ends); i++)
        assert_int_equal(chm_utf8_unfinished(ends[i].text, strlen(ends[i].text)), ends[i].unfinished);
}

/* A tokenizer that says nothing of cuts is cut after newlines. */
static void pieces_end_after_newlines(void **state) {
    (void)state;
    const struct chm_tokenizer_ops silent = {.size = sizeof silent};
    assert_int_equal(chm_tokenizer_cut(&silent, NULL, (const uint8_t *)"a\nb\nc", 5), 4);
    assert_int_equal(chm_tokenizer_cut(&silent, NULL, (const uint8_t *)"abc", 3), 0);
    assert_int_equal(chm_tokenizer_cut(ops, self, (const uint8_t *)"abc", 3), 3);
    assert_int_equal(chm_tokenizer_cut_anyhow((const uint8_t *)"ab\xe6\xbc", 4), 2);
    assert_int_equal(chm_tokenizer_cut_anyhow((const uint8_t *)"\xe6\xbc", 2), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_bytes_and_two_specials), cmocka_unit_test(random_bytes_round_trip),
        cmocka_unit_test(a_short_buffer_is_not_overrun),  cmocka_unit_test(a_file_is_refused),
        cmocka_unit_test(only_whole_characters_pass),     cmocka_unit_test(pieces_end_after_newlines),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
