/* The safetensors reader and writer: what goes in comes out, and every unsound file is refused with its sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/b158.h"

#include <chimera/chimera.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *scratch = "test_safetensors.tmp.safetensors";

/* A file from a header and data, in a block of exactly its size so that the sanitizers see a read past its end. */
static uint8_t *make_file(const char *header, const void *data, size_t bytes, size_t *size) {
    size_t n = strlen(header);
    uint8_t *file = malloc(8 + n + bytes);
    assert_non_null(file);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)n >> 8 * i);
    memcpy(file + 8, header, n);
    if (bytes) memcpy(file + 8 + n, data, bytes);
    *size = 8 + n + bytes;
    return file;
}

static void refuse_bytes(const uint8_t *data, size_t bytes, const char *const *words) {
    uint8_t *exact = malloc(bytes ? bytes : 1);
    chm_safetensors *s = (chm_safetensors *)&s;
    assert_non_null(exact);
    if (bytes) memcpy(exact, data, bytes);
    chm_fail(CHM_OK, "no sentence");
    int status = chm_safetensors_parse("file.st", bytes ? exact : NULL, bytes, &s);
    free(exact);
    if (status != CHM_E_DATA) fail_msg("status %d, expected a refusal with '%s'", status, words[0]);
    assert_null(s);
    assert_non_null(strstr(chm_error(), "file.st: "));
    for (; *words; words++)
        if (!strstr(chm_error(), *words)) fail_msg("'%s' does not say '%s'", chm_error(), *words);
}

#define REFUSE(header, bytes, ...) refuse_header(header, bytes, (const char *const[]){__VA_ARGS__, NULL})
static void refuse_header(const char *header, size_t data, const char *const *words) {
    static const uint8_t zeros[256];
    size_t size;
    uint8_t *file = make_file(header, zeros, data, &size);
    refuse_bytes(file, size, words);
    free(file);
}

static chm_safetensors *accept_header(const char *header, const void *data, size_t bytes, uint8_t **file) {
    size_t size;
    chm_safetensors *s = NULL;
    *file = make_file(header, data, bytes, &size);
    if (chm_safetensors_parse("file.st", *file, size, &s)) fail_msg("refused: %s", chm_error());
    assert_non_null(s);
    return s;
}

static void test_reads(void **state) {
    (void)state;
    const uint8_t data[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    uint8_t *file;
    /* Header order is not file order; an empty tensor and a scalar; spaces after the header. */
    chm_safetensors *s = accept_header("{\"b\":{\"dtype\":\"I8\",\"shape\":[2,2],\"data_offsets\":[8,12]},"
                                       "\"__metadata__\":{\"k\":\"v\",\"\\u00e9\":\"\"},"
                                       "\"e\":{\"dtype\":\"F32\",\"shape\":[7,0],\"data_offsets\":[8,8]},"
                                       "\"s\":{\"dtype\":\"U64\",\"shape\":[],\"data_offsets\":[0,8]}}  ",
                                       data, sizeof data, &file);
    assert_int_equal(s->count, 3);
    assert_string_equal(s->tensor[0].name, "s");
    assert_string_equal(s->tensor[1].name, "e");
    assert_string_equal(s->tensor[2].name, "b");
    const chm_st_tensor *b = chm_safetensors_find(s, "b");
    assert_ptr_equal(b, &s->tensor[2]);
    assert_int_equal(b->dtype, CHM_ST_I8);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[1], 2);
    assert_int_equal(b->bytes, 4);
    assert_memory_equal(b->data, data + 8, 4);
    assert_int_equal(chm_safetensors_find(s, "s")->rank, 0);
    assert_int_equal(chm_safetensors_find(s, "e")->bytes, 0);
    assert_null(chm_safetensors_find(s, "c"));
    assert_null(chm_safetensors_find(s, ""));
    assert_int_equal(s->metas, 2);
    assert_string_equal(s->meta_key[0], "k");
    assert_string_equal(chm_safetensors_meta(s, "k"), "v");
    assert_string_equal(chm_safetensors_meta(s, "\xc3\xa9"), "");
    assert_null(chm_safetensors_meta(s, "x"));
    chm_safetensors_destroy(s);
    free(file);

    s = accept_header("{}", NULL, 0, &file); /* the reference reader takes a file without tensors too */
    assert_int_equal(s->count, 0);
    assert_null(chm_safetensors_find(s, "b"));
    assert_null(chm_safetensors_meta(s, "k"));
    chm_safetensors_destroy(s);
    free(file);
    chm_safetensors_destroy(NULL);
}

static void test_every_dtype(void **state) {
    (void)state;
    static const uint8_t zeros[24];
    static const char *const names[] = {"U8", "I8", "F32", "F64", "I32", "I64", "U64", "F16", "BF16"};
    static const size_t sizes[] = {1, 1, 4, 8, 4, 8, 8, 2, 2};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(names); i++) {
        char header[200];
        uint8_t *file;
        snprintf(header, sizeof header, "{\"t\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%zu]}}", names[i],
                 3 * sizes[i]);
        chm_safetensors *s = accept_header(header, zeros, 3 * sizes[i], &file);
        assert_string_equal(chm_st_dtype_name(s->tensor[0].dtype), names[i]);
        assert_int_equal(chm_st_dtype_bytes(s->tensor[0].dtype), sizes[i]);
        chm_safetensors_destroy(s);
        free(file);
        snprintf(header, sizeof header, "{\"t\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%zu]}}", names[i],
                 3 * sizes[i] - 1);
        REFUSE(header, 3 * sizes[i] - 1, "'t'", names[i], "[3] needs");
    }
}

static void test_refuses_headers(void **state) {
    (void)state;
#define T(name, dtype, shape, offsets)                                                                                 \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
    REFUSE("[]", 0, "does not begin with '{'", "expected a safetensors file");
    REFUSE("xy", 0, "does not begin with '{'");
    REFUSE("{\"a\":", 0, "not sound JSON", "byte");
    REFUSE("{} {}", 0, "not sound JSON");
    REFUSE("{\"a\":\"\\u0000\"}", 0, "not sound JSON");
    REFUSE("{\"\xff\":1}", 0, "not sound JSON");
    REFUSE("{" T("a", "U8", "[1]", "[0,1]") "," T("a", "U8", "[1]", "[1,2]") "}", 2, "duplicate", "a");
    REFUSE("{\"__metadata__\":[]}", 0, "__metadata__ must be an object");
    REFUSE("{\"__metadata__\":{\"k\":1}}", 0, "__metadata__: 'k' must be a string");
    REFUSE("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate");
    REFUSE("{\"a\":1}", 0, "tensor 'a'", "expected an object");
    REFUSE("{\"a\":{}}", 0, "tensor 'a'", "dtype is missing", "one of U8");
    REFUSE("{\"a\":{\"dtype\":3}}", 0, "tensor 'a'", "dtype is of another type");
    REFUSE("{" T("a", "F8", "[1]", "[0,1]") "}", 1, "tensor 'a'", "dtype 'F8'", "BF16");
    REFUSE("{" T("a", "U8", "1", "[0,1]") "}", 1, "tensor 'a'", "shape is of another type");
    REFUSE("{" T("a", "U8", "[-1]", "[0,1]") "}", 1, "tensor 'a'", "shape[0]", "integer from 0");
    REFUSE("{" T("a", "U8", "[1,1.0]", "[0,1]") "}", 1, "tensor 'a'", "shape[1]");
    REFUSE("{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "tensor 'a'", "9 sizes", "at most 8");
    REFUSE("{" T("a", "F64", "[4611686018427387904]", "[0,0]") "}", 0, "tensor 'a'", "64 bits");
    REFUSE("{" T("a", "U8", "[4294967296,4294967296,0]", "[0,0]") "}", 0, "tensor 'a'", "64 bits");
    REFUSE("{" T("a", "U8", "[99999999999999999999]", "[0,0]") "}", 0, "not sound JSON", "integer");
    REFUSE("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "tensor 'a'", "data_offsets is missing");
    REFUSE("{" T("a", "U8", "[1]", "[0]") "}", 1, "tensor 'a'", "two integers");
    REFUSE("{" T("a", "U8", "[1]", "[0,1,1]") "}", 1, "tensor 'a'", "two integers");
    REFUSE("{" T("a", "U8", "[1]", "[-1,0]") "}", 1, "tensor 'a'", "two integers");
    REFUSE("{" T("a", "U8", "[1]", "[\"0\",1]") "}", 1, "tensor 'a'", "two integers");
    REFUSE("{" T("a", "U8", "[1]", "[1,0]") "}", 1, "tensor 'a'", "before they begin");
    REFUSE("{" T("a", "U8", "[2]", "[0,2]") "}", 1, "tensor 'a' ends at byte 2", "has 1", "cut short");
    REFUSE("{" T("a", "U8", "[1]", "[9223372036854775806,9223372036854775807]") "}", 1, "tensor 'a'", "cut short");
    REFUSE("{" T("a", "F32", "[2,3]", "[0,23]") "}", 23, "hold 23 bytes", "F32 [2, 3] needs 24");
    REFUSE("{" T("a", "F32", "[]", "[0,3]") "}", 3, "hold 3 bytes", "F32 [] needs 4");
    REFUSE("{" T("a", "U8", "[1]", "[1,2]") "}", 2, "tensor 'a' begins at byte 1, expected 0", "gap");
    REFUSE("{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[3,5]") "}", 5, "'b'", "expected 2", "gap");
    REFUSE("{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[1,3]") "}", 3, "'b'", "inside 'a'");
    REFUSE("{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[0,2]") "}", 2, "'b'", "inside 'a'");
    REFUSE("{" T("a", "U8", "[2]", "[0,2]") "," T("e", "U8", "[0]", "[1,1]") "}", 2, "'e'", "inside 'a'");
    REFUSE("{" T("a", "U8", "[2]", "[0,2]") "}", 5, "3 bytes follow the last tensor");
    REFUSE("{}", 1, "1 bytes follow");
    /* A name of a stranger does not reach the terminal raw, nor at any length. */
    REFUSE("{\"\\u001b[2J\\u009b\":1}", 0,
           "'?[2J?"
           "?'");
    char header[300] = "{\"";
    memset(header + 2, 'n', 200);
    strcpy(header + 202, "\":1}");
    REFUSE(header, 0, "nnn...'");
#undef T
}

static void test_refuses_foreign(void **state) {
    (void)state;
#define FOREIGN(bytes, ...)                                                                                            \
    refuse_bytes((const uint8_t *)(bytes), sizeof(bytes) - 1,                                                          \
                 (const char *const[]){"expected a safetensors file", __VA_ARGS__, NULL})
    refuse_bytes(NULL, 0, (const char *const[]){"the file is empty", "expected a safetensors file", NULL});
    FOREIGN("abc\001", "only 4 bytes");
    FOREIGN("GGUF\003\0\0\0\1\0\0\0\0\0\0\0", "a GGUF file");
    FOREIGN("{\n  \"chimera\": \"5.1\"\n}", "JSON text");
    FOREIGN("{}", "JSON text");
    FOREIGN("Once upon a time there was", "plain text");
    FOREIGN("PK\003\004aaaaaaaaaa", "a ZIP archive");
    FOREIGN("\177ELF\2\1\1\0\0\0\0\0", "a program");
    FOREIGN("\1\0\0\0\0\0\0\0{}", "a header of 1 bytes, outside 2..16777216");
    FOREIGN("\1\0\0\1\0\0\0\0{}", "a header of 16777217 bytes, outside");
    FOREIGN("\377\377\377\377\377\377\377\377{}", "a header of 18446744073709551615 bytes, outside");
    refuse_bytes((const uint8_t *)"\3\0\0\0\0\0\0\0{}", 10, (const char *const[]){"should have 3", "cut short", NULL});
#undef FOREIGN
}

static const chm_st_tensor example[] = {
    {.name = "w", .dtype = CHM_ST_F32, .rank = 2, .shape = {3, 5}, .bytes = 60},
    {.name = "layers.0.mixer.q", .dtype = CHM_ST_U8, .rank = 1, .shape = {64}, .bytes = 64},
    {.name = "empty", .dtype = CHM_ST_F64, .rank = 2, .shape = {0, 4}, .bytes = 0},
    {.name = "scalar", .dtype = CHM_ST_I64, .bytes = 8},
    {.name = "a \"b\" \\ \xc3\xa9\n", .dtype = CHM_ST_BF16, .rank = 3, .shape = {1, 7, 1}, .bytes = 14},
    {.name = "tail", .dtype = CHM_ST_I8, .rank = 1, .shape = {1}, .bytes = 1},
};
enum { EXAMPLES = CHM_ARRAY_COUNT(example) };

static void fill_example(chm_st_tensor *t, uint8_t *data) {
    memcpy(t, example, sizeof example);
    for (int i = 0; i < EXAMPLES; i++) {
        t[i].data = data;
        for (uint64_t b = 0; b < t[i].bytes; b++) *data++ = (uint8_t)(b * 7 + (uint64_t)i);
    }
}

static void test_round_trip(void **state) {
    (void)state;
    static const char *const keys[] = {"format", "note"}, *const values[] = {"x", "two\nlines \xe2\x82\xac"};
    chm_st_tensor t[EXAMPLES];
    uint8_t data[256];
    fill_example(t, data);
    for (int align = 0; align <= 1; align++) {
        chm_map map;
        chm_safetensors *s;
        if (chm_safetensors_write(scratch, t, EXAMPLES, keys, values, 2, align)) fail_msg("%s", chm_error());
        assert_int_equal(chm_map_open(&map, scratch), CHM_OK);
        if (chm_safetensors_parse(scratch, map.data, map.size, &s)) fail_msg("%s", chm_error());
        assert_string_equal(chm_safetensors_meta(s, "note"), values[1]);
        int next = 0;
        for (int i = 0; i < s->count; i++) {
            const chm_st_tensor *r = &s->tensor[i];
            if (align) assert_int_equal((r->data - map.data) % 64 == 0 || chm_b158_is_padding(r->name), 1);
            if (chm_b158_is_padding(r->name)) {
                assert_true(align && r->dtype == CHM_ST_U8 && r->bytes < 64);
                for (uint64_t b = 0; b < r->bytes; b++) assert_int_equal(r->data[b], 0);
                continue;
            }
            assert_true(next < EXAMPLES);
            assert_string_equal(r->name, t[next].name); /* in the order given */
            assert_int_equal(r->dtype, t[next].dtype);
            assert_int_equal(r->rank, t[next].rank);
            assert_memory_equal(r->shape, t[next].shape, sizeof r->shape);
            assert_int_equal(r->bytes, t[next].bytes);
            if (r->bytes) assert_memory_equal(r->data, t[next].data, r->bytes);
            next++;
        }
        assert_int_equal(next, EXAMPLES);
        assert_int_equal((s->tensor[0].data - map.data) % (align ? 64 : 8), 0);
        chm_safetensors_destroy(s);
        chm_map_close(&map);
    }
    /* no tensors, no metadata */
    chm_map map;
    chm_safetensors *s;
    assert_int_equal(chm_safetensors_write(scratch, NULL, 0, NULL, NULL, 0, true), CHM_OK);
    assert_int_equal(chm_map_open(&map, scratch), CHM_OK);
    assert_int_equal(chm_safetensors_parse(scratch, map.data, map.size, &s), CHM_OK);
    assert_int_equal(s->count, 0);
    chm_safetensors_destroy(s);
    chm_map_close(&map);
    unlink(scratch);
}

static void test_writer_refuses(void **state) {
    (void)state;
    static const char *const twice[] = {"k", "k"}, *const bad[] = {"k", "\xff"};
    chm_st_tensor t[2] = {
        {.name = "a", .dtype = CHM_ST_U8, .rank = 1, .shape = {2}, .bytes = 2, .data = (uint8_t *)"ab"}};
    unlink(scratch);
#define NO(count, keys, values, metas, words)                                                                          \
    do {                                                                                                               \
        assert_int_not_equal(chm_safetensors_write(scratch, t, count, keys, values, metas, true), CHM_OK);             \
        if (!strstr(chm_error(), words)) fail_msg("'%s' does not say '%s'", chm_error(), words);                       \
        assert_int_not_equal(access(scratch, F_OK), 0);                                                                \
    } while (0)
    t[1] = t[0];
    NO(2, NULL, NULL, 0, "'a' is taken");
    t[1].name = "__metadata__";
    NO(2, NULL, NULL, 0, "is taken");
    t[1].name = "\xff";
    NO(2, NULL, NULL, 0, "not UTF-8");
    t[1].name = "b";
    t[1].bytes = 3;
    NO(2, NULL, NULL, 0, "its shape needs 2");
    t[1].shape[0] = -2;
    NO(2, NULL, NULL, 0, "no sound shape");
    t[1].rank = 9;
    NO(2, NULL, NULL, 0, "no sound rank");
    NO(1, twice, twice, 2, "'k' is there twice");
    NO(1, bad + 1, bad, 1, "not UTF-8");
    NO(1, bad, bad + 1, 1, "not UTF-8");
#undef NO
    assert_int_equal(chm_safetensors_write("no-such-directory/x", t, 1, NULL, NULL, 0, true), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "no-such-directory/x"));
    assert_int_equal(chm_safetensors_write("/dev/full", t, 1, NULL, NULL, 0, true), CHM_E_DATA);
}

/* Cut anywhere, the file is refused; changed anywhere in its header, it is refused or every tensor lies inside it. */
static void test_damage(void **state) {
    (void)state;
    chm_st_tensor t[EXAMPLES];
    uint8_t data[256];
    char *text;
    size_t size;
    fill_example(t, data);
    assert_int_equal(chm_safetensors_write(scratch, t, EXAMPLES, NULL, NULL, 0, true), CHM_OK);
    assert_int_equal(chm_read_file(scratch, 1 << 20, &text, &size), CHM_OK);
    for (size_t n = 0; n < size; n++) refuse_bytes((uint8_t *)text, n, (const char *const[]){"", NULL});

    size_t header = 8 + (uint8_t)text[0] + 256 * (size_t)(uint8_t)text[1], refused = 0, tried = 0;
    uint8_t *file = malloc(size);
    assert_non_null(file);
    for (size_t at = 0; at < header; at++) {
        for (unsigned change = 1; change < 256; change += at < 16 ? 1 : 6) {
            chm_safetensors *s;
            memcpy(file, text, size);
            file[at] ^= (uint8_t)change;
            tried++;
            if (chm_safetensors_parse("file.st", file, size, &s)) {
                assert_null(s);
                refused++;
                continue;
            }
            uint64_t at_byte = 0;
            for (int i = 0; i < s->count; i++) {
                assert_true(s->tensor[i].data >= file + 8);
                assert_true(s->tensor[i].data + s->tensor[i].bytes <= file + size);
                assert_ptr_equal(chm_safetensors_find(s, s->tensor[i].name), &s->tensor[i]);
                at_byte += s->tensor[i].bytes;
            }
            assert_true(at_byte <= size);
            chm_safetensors_destroy(s);
        }
    }
    assert_true(tried > 10000 && refused > tried / 2 && refused < tried);
    free(file);
    chm_free(text);
    unlink(scratch);
}

/* However early memory ends, both ways end with a status and nothing is left behind. */
static void test_out_of_memory(void **state) {
    (void)state;
    chm_st_tensor t[EXAMPLES];
    uint8_t data[256], *file;
    size_t size;
    fill_example(t, data);
    file = make_file("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"__metadata__\":{\"k\":\"v\"}}",
                     "x", 1, &size);
    int status = CHM_E_MEMORY;
    for (long n = 0; status; n++) {
        chm_safetensors *s = NULL;
        chm_alloc_fail_after(n);
        status = chm_safetensors_parse("file.st", file, size, &s);
        chm_alloc_fail_after(-1);
        assert_true(status == CHM_OK || status == CHM_E_MEMORY);
        assert_true(n < 10000 && (n > 0 || status));
        chm_safetensors_destroy(s);
    }
    free(file);
    unlink(scratch);
    status = CHM_E_MEMORY;
    for (long n = 0; status; n++) {
        chm_alloc_fail_after(n);
        status = chm_safetensors_write(scratch, t, EXAMPLES, NULL, NULL, 0, true);
        chm_alloc_fail_after(-1);
        assert_true(status == CHM_OK || status == CHM_E_MEMORY);
        assert_true(n < 10000 && (n > 0 || status));
        assert_int_equal(access(scratch, F_OK) == 0, status == CHM_OK);
    }
    unlink(scratch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),           cmocka_unit_test(test_every_dtype),
        cmocka_unit_test(test_refuses_headers), cmocka_unit_test(test_refuses_foreign),
        cmocka_unit_test(test_round_trip),      cmocka_unit_test(test_writer_refuses),
        cmocka_unit_test(test_damage),          cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
