/* The .b158 format: what is packed comes back, from C and from tools/b158.py, and nothing damaged is taken. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/b158.h"

#include <chimera/chimera.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const scratch = "test_b158.tmp.b158";
static const char *const card = "{\n  \"model\": \"a test, \\u00e9\"\n}\n";

/* ---- parameters made by hand, packed by the layout as plugin.h states it ---- */

typedef struct matrix {
    chm_param param;
    float *expected; /* [out][in] as the file must give it back */
    uint8_t *codes, *scales;
    int8_t *q;
    float *scale, *value;
} matrix;

static void *blank(size_t bytes) {
    void *p = chm_alloc_aligned(bytes);
    assert_non_null(p);
    return p;
}

static uint64_t draw(uint32_t key, uint64_t position, uint64_t bound) {
    return chm_below_at(7, CHM_RANDOM_TEST, key, position, bound);
}

static void make(matrix *m, const char *name, enum chm_format format, int rank, const int64_t *shape, int64_t group,
                 uint32_t key) {
    chm_param *p = &m->param;
    uint64_t at = 0;
    memset(m, 0, sizeof *m);
    p->name = chm_strdup(name);
    p->format = format;
    p->role = format == CHM_FORMAT_INT8 ? CHM_ROLE_EMBEDDING : CHM_ROLE_TERNARY;
    p->rank = rank;
    p->count = 1;
    for (int i = 0; i < rank; i++) {
        p->shape[i] = shape[i];
        p->count *= shape[i];
    }
    p->out = rank ? shape[0] : 1;
    p->in = p->count / p->out;
    const int64_t out = p->out, in = p->in;
    m->expected = blank((size_t)p->count * sizeof(float));
    if (format == CHM_FORMAT_F32) {
        m->value = blank((size_t)p->count * sizeof(float));
        for (int64_t i = 0; i < p->count; i++)
            m->value[i] = m->expected[i] = (float)((double)draw(key, at++, 2001) - 1000) / 512;
        p->value = m->value;
    } else if (format == CHM_FORMAT_INT8) {
        const int64_t blocks = (in + 63) / 64;
        m->q = blank((size_t)(out * blocks * 64));
        m->scale = blank((size_t)out * sizeof(float));
        for (int64_t o = 0; o < out; o++) {
            m->scale[o] = (float)draw(key, at++, 1000) / 7919;
            for (int64_t i = 0; i < in; i++) {
                m->q[o * blocks * 64 + i] = (int8_t)((int)draw(key, at++, 255) - 127);
                m->expected[o * in + i] = (float)m->q[o * blocks * 64 + i] * m->scale[o];
            }
        }
        p->int8 = (struct chm_int8_matrix){m->q, m->scale, out, in, blocks};
    } else {
        const int64_t tiles = chm_ternary_tiles(out), code_stride = chm_ternary_superblocks(in) * 1024,
                      stride = chm_ternary_scale_stride(in, group), groups = chm_ternary_groups(in, group);
        m->codes = blank((size_t)(tiles * code_stride));
        m->scales = blank((size_t)(tiles * stride));
        memset(m->codes, 0x55, (size_t)(tiles * code_stride));
        for (int64_t o = 0; o < out; o++) {
            uint8_t *scales = m->scales + o / 16 * stride, u8 = 0;
            const float row = (float)(1 + draw(key, at++, 5000)) / 131071;
            memcpy(scales + o % 16 * 4, &row, sizeof row);
            for (int64_t g = 0; g < groups; g++) scales[64 + 16 * g + o % 16] = (uint8_t)draw(key, at++, 256);
            for (int64_t i = 0; i < in; i++) {
                const int trit = (int)draw(key, at++, 3) - 1;
                const int64_t s = i / 256, f = i % 256 / 64, j = i % 64 / 4;
                uint8_t *byte = m->codes + o / 16 * code_stride + s * 1024 + j * 64 + o % 16 * 4 + i % 4;
                *byte = (uint8_t)((*byte & ~(3u << 2 * f)) | (unsigned)(trit + 1) << 2 * f);
                u8 = scales[64 + 16 * (i / group) + o % 16];
                m->expected[o * in + i] = (float)trit * ((float)u8 * row);
            }
        }
        p->ternary = (struct chm_ternary){m->codes, m->scales, out, in, group};
    }
}

static void drop(matrix *m) {
    chm_free(m->param.name);
    chm_free(m->expected);
    chm_free(m->codes);
    chm_free(m->scales);
    chm_free(m->q);
    chm_free(m->scale);
    chm_free(m->value);
}

/* What a bound parameter gives back, read from wherever it points to. */
static float weight(const chm_param *p, int64_t o, int64_t i) {
    if (p->format == CHM_FORMAT_F32) return p->value[o * p->in + i];
    if (p->format == CHM_FORMAT_INT8) return (float)p->int8.q[o * p->int8.blocks * 64 + i] * p->int8.scale[o];
    const struct chm_ternary *w = &p->ternary;
    const uint8_t *scales = w->scales + o / 16 * chm_ternary_scale_stride(w->in, w->group);
    const uint8_t byte = w->codes[o / 16 * chm_ternary_superblocks(w->in) * 1024 + i / 256 * 1024 + i % 64 / 4 * 64 +
                                  o % 16 * 4 + i % 4];
    float row;
    memcpy(&row, scales + o % 16 * 4, sizeof row);
    return (float)((byte >> 2 * (i % 256 / 64) & 3) - 1) * ((float)scales[64 + 16 * (i / w->group) + o % 16] * row);
}

static chm_param unbound(const chm_param *p) {
    chm_param u = *p;
    memset(&u.ternary, 0, sizeof u.ternary);
    memset(&u.int8, 0, sizeof u.int8);
    u.value = NULL;
    return u;
}

/* A small file with one parameter of each format. */
enum { SMALL = 3 };
static void make_small(matrix *m, chm_param **param) {
    make(&m[0], "layers.0.mixer.q", CHM_FORMAT_TERNARY, 2, (const int64_t[]){17, 65}, 64, 1);
    make(&m[1], "embedding", CHM_FORMAT_INT8, 2, (const int64_t[]){3, 70}, 64, 2);
    make(&m[2], "layers.0.mixer.taps", CHM_FORMAT_F32, 2, (const int64_t[]){5, 4}, 64, 3);
    for (int i = 0; i < SMALL; i++) param[i] = &m[i].param;
}

static uint8_t *load(const char *path, size_t *bytes) {
    char *text;
    assert_int_equal(chm_read_file(path, 1 << 28, &text, bytes), CHM_OK);
    uint8_t *data = NULL; /* exactly its size and on 64 bytes, as a map is */
    assert_int_equal(posix_memalign((void **)&data, 64, *bytes ? *bytes : 1), 0);
    memcpy(data, text, *bytes);
    chm_free(text);
    return data;
}

/* Opens bytes as a model of these parameters; on success reads every weight. */
static int try_bytes(const uint8_t *data, size_t bytes, chm_param *const *declared, int params, int64_t group,
                     bool verify) {
    chm_safetensors *s = NULL;
    chm_param copy[64], *list[64];
    assert_true(params <= 64);
    for (int i = 0; i < params; i++) {
        copy[i] = unbound(declared[i]);
        list[i] = &copy[i];
    }
    chm_fail(CHM_OK, "no sentence");
    int status = chm_safetensors_parse("m.b158", data, bytes, &s);
    if (!status) status = chm_b158_check("m.b158", s);
    if (!status) status = chm_b158_bind("m.b158", s, list, params, group, verify);
    volatile float sum = 0;
    for (int i = 0; i < params && !status; i++)
        for (int64_t o = 0; o < copy[i].out; o++)
            for (int64_t n = 0; n < copy[i].in; n++) sum = sum + weight(&copy[i], o, n);
    chm_safetensors_destroy(s);
    if (status && strncmp(chm_error(), "m.b158: ", 8)) fail_msg("'%s' does not name the file", chm_error());
    return status;
}

/* ---- tests ---- */

static void test_round_trip(void **state) {
    (void)state;
    static const int64_t outs[] = {1, 16, 17}, ins[] = {1, 64, 65, 192, 257};
    static const int64_t shape4[] = {3, 1, 2, 5}, shape1[] = {7}, shape3[] = {4, 3, 19};
    for (int64_t group = 64; group <= 128; group += 64) {
        matrix m[40];
        chm_param *param[40], copy[40], *list[40];
        int n = 0;
        char name[64];
        for (size_t o = 0; o < CHM_ARRAY_COUNT(outs); o++) {
            for (size_t i = 0; i < CHM_ARRAY_COUNT(ins); i++) {
                const int64_t shape[] = {outs[o], ins[i]};
                snprintf(name, sizeof name, "t.%" PRId64 ".%" PRId64, outs[o], ins[i]);
                make(&m[n], name, CHM_FORMAT_TERNARY, 2, shape, group, (uint32_t)n);
                n++;
                snprintf(name, sizeof name, "i.%" PRId64 ".%" PRId64, outs[o], ins[i]);
                make(&m[n], name, CHM_FORMAT_INT8, 2, shape, group, (uint32_t)n);
                n++;
            }
        }
        make(&m[n++], "f4", CHM_FORMAT_F32, 4, shape4, group, 100);
        make(&m[n++], "f1", CHM_FORMAT_F32, 1, shape1, group, 101);
        make(&m[n++], "t3", CHM_FORMAT_TERNARY, 3, shape3, group, 102);
        int64_t total = 0, embedding = 0;
        for (int i = 0; i < n; i++) {
            param[i] = &m[i].param;
            total += m[i].param.count;
            if (m[i].param.role == CHM_ROLE_EMBEDDING) embedding += m[i].param.count;
        }
        const chm_b158_note notes[] = {{"tokenizer", "bytes"}, {"trained.tokens", "123"}};
        if (chm_b158_write(scratch, param, n, card, notes, 2)) fail_msg("%s", chm_error());

        chm_map map;
        chm_safetensors *s = NULL;
        assert_int_equal(chm_map_open(&map, scratch), CHM_OK);
        assert_int_equal(chm_safetensors_parse(scratch, map.data, map.size, &s), CHM_OK);
        assert_int_equal(chm_b158_check(scratch, s), CHM_OK);
        assert_string_equal(chm_safetensors_meta(s, "card"), card);
        assert_string_equal(chm_safetensors_meta(s, "trained.tokens"), "123");
        assert_string_equal(chm_safetensors_meta(s, "tokenizer"), "bytes");
        snprintf(name, sizeof name, "%" PRId64, total);
        assert_string_equal(chm_safetensors_meta(s, "parameters"), name);
        snprintf(name, sizeof name, "%" PRId64, embedding);
        assert_string_equal(chm_safetensors_meta(s, "embedding_parameters"), name);
        uint64_t before = UINT64_MAX; /* largest first, each on 64 bytes */
        for (int i = 0; i < s->count; i++) {
            if (chm_b158_is_padding(s->tensor[i].name)) continue;
            assert_int_equal((s->tensor[i].data - map.data) % 64, 0);
            assert_true(s->tensor[i].bytes <= before);
            before = s->tensor[i].bytes;
        }
        for (int i = 0; i < n; i++) {
            copy[i] = unbound(param[i]);
            list[i] = &copy[i];
        }
        for (int verify = 0; verify <= 1; verify++)
            if (chm_b158_bind(scratch, s, list, n, group, verify)) fail_msg("%s", chm_error());
        for (int i = 0; i < n; i++)
            for (int64_t o = 0; o < copy[i].out; o++)
                for (int64_t k = 0; k < copy[i].in; k++) {
                    const float got = weight(&copy[i], o, k), want = m[i].expected[o * copy[i].in + k];
                    if (got != want) fail_msg("%s[%d][%d]: %g, expected %g", copy[i].name, (int)o, (int)k, got, want);
                }
        chm_safetensors_destroy(s);
        chm_map_close(&map);
        /* Written again from the same parameters, it is the same file. */
        size_t first_bytes, second_bytes;
        uint8_t *first = load(scratch, &first_bytes), *second;
        assert_int_equal(chm_b158_write(scratch, param, n, card, notes, 2), CHM_OK);
        second = load(scratch, &second_bytes);
        assert_int_equal(first_bytes, second_bytes);
        assert_memory_equal(first, second, first_bytes);
        free(first);
        free(second);
        for (int i = 0; i < n; i++) drop(&m[i]);
    }
    unlink(scratch);
}

/* The NumPy decoder gives the same numbers, bit for bit. */
static void test_python(void **state) {
    (void)state;
    const char *root = getenv("CHM_SOURCE_ROOT");
    if (!root || system("python3 -c 'import numpy' >/dev/null 2>&1")) {
        fprintf(stderr, "SKIP: tools/b158.py is not tested: %s\n",
                root ? "no python3 with numpy" : "no CHM_SOURCE_ROOT");
        skip();
    }
    static const char *const expected = "test_b158.tmp.safetensors";
    matrix m[7];
    chm_param *param[7];
    chm_st_tensor tensor[7] = {0};
    make_small(m, param);
    make(&m[3], "one", CHM_FORMAT_TERNARY, 2, (const int64_t[]){1, 1}, 64, 4);
    make(&m[4], "wide", CHM_FORMAT_TERNARY, 2, (const int64_t[]){33, 257}, 64, 5);
    make(&m[5], "even", CHM_FORMAT_INT8, 2, (const int64_t[]){16, 192}, 64, 6);
    make(&m[6], "gain", CHM_FORMAT_F32, 1, (const int64_t[]){9}, 64, 7);
    for (int i = 0; i < 7; i++) {
        param[i] = &m[i].param;
        tensor[i] = (chm_st_tensor){.name = param[i]->name, .dtype = CHM_ST_F32, .rank = param[i]->rank};
        memcpy(tensor[i].shape, param[i]->shape, sizeof param[i]->shape);
        tensor[i].data = (const uint8_t *)m[i].expected;
        tensor[i].bytes = (uint64_t)param[i]->count * 4;
    }
    assert_int_equal(chm_b158_write(scratch, param, 7, card, NULL, 0), CHM_OK);
    assert_int_equal(chm_safetensors_write(expected, tensor, 7, NULL, NULL, 0, false), CHM_OK);
    setenv("PYTHONDONTWRITEBYTECODE", "1", 1);
    setenv("B158_MODEL", scratch, 1);
    setenv("B158_EXPECTED", expected, 1);
    int status = system("cd \"$PWD\" && python3 -c '\n"
                        "import os, sys\n"
                        "sys.path.insert(0, os.environ[\"CHM_SOURCE_ROOT\"] + \"/tools\")\n"
                        "import b158\n"
                        "got = b158.decode(os.environ[\"B158_MODEL\"])\n"
                        "want, _ = b158.read_safetensors(os.environ[\"B158_EXPECTED\"])\n"
                        "assert sorted(got) == sorted(want) and len(got) == 7, sorted(got)\n"
                        "for name, w in want.items():\n"
                        "    g = got[name]\n"
                        "    assert g.dtype == w.dtype and g.shape == w.shape and (g == w).all(), name\n"
                        "'");
    assert_int_equal(status, 0);
    status = system("python3 \"$CHM_SOURCE_ROOT/tools/b158.py\" \"$B158_MODEL\" test_b158.tmp.npz >test_b158.tmp.txt &&"
                    "grep -q 'wide *(33, 257) *rms' test_b158.tmp.txt && test -s test_b158.tmp.npz");
    assert_int_equal(status, 0);
    for (int i = 0; i < 7; i++) drop(&m[i]);
    unlink("test_b158.tmp.npz");
    unlink("test_b158.tmp.txt");
    unlink(expected);
    unlink(scratch);
}

/* Replaces text of equal length wherever it stands in the header. */
static void edit(uint8_t *data, size_t bytes, const char *from, const char *to) {
    const size_t n = strlen(from);
    int edits = 0;
    assert_int_equal(n, strlen(to));
    for (size_t i = 8; i + n <= bytes; i++)
        if (!memcmp(data + i, from, n)) {
            memcpy(data + i, to, n);
            edits++;
        }
    if (!edits) fail_msg("the file has no '%s'", from);
}

static void test_refusals(void **state) {
    (void)state;
    matrix m[SMALL], other;
    chm_param *param[SMALL + 1];
    size_t bytes;
    make_small(m, param);
    assert_int_equal(chm_b158_write(scratch, param, SMALL, card, NULL, 0), CHM_OK);
    uint8_t *good = load(scratch, &bytes), *data = load(scratch, &bytes);
    assert_int_equal(try_bytes(good, bytes, param, SMALL, 64, true), CHM_OK);

#define SAYS(status, ...)                                                                                              \
    do {                                                                                                               \
        static const char *const words[] = {__VA_ARGS__};                                                              \
        assert_int_equal(status, CHM_E_DATA);                                                                          \
        for (size_t w_ = 0; w_ < CHM_ARRAY_COUNT(words); w_++)                                                         \
            if (!strstr(chm_error(), words[w_])) fail_msg("'%s' does not say '%s'", chm_error(), words[w_]);           \
    } while (0)
#define EDITED(from, to, ...)                                                                                          \
    do {                                                                                                               \
        memcpy(data, good, bytes);                                                                                     \
        edit(data, bytes, from, to);                                                                                   \
        SAYS(try_bytes(data, bytes, param, SMALL, 64, false), __VA_ARGS__);                                            \
    } while (0)
    EDITED("chimera.b158", "chimera.b999", "no model of ours", "chimera train");
    EDITED("\"format_version\":\"1\"", "\"format_version\":\"2\"", "format_version '2'", "reads version 1");
    EDITED("\"card\":", "\"cara\":", "lacks card");
    EDITED("\"card_hash\":", "\"card_hasp\":", "lacks card_hash");
    EDITED("a test, ", "a text, ", "the card in the file is damaged", "--set");
    EDITED("encoding.embedding", "encoding.embeddint", "parameter 'embedding'", "not in the file", "i8;out=3;in=70");
    EDITED("i8;out=3;in=70", "i8;out=3;in=71", "'embedding'", "stored as 'i8;out=3;in=71;block=64'", "i8;out=3;in=70");
    EDITED("\"embedding.scale\":{", "\"embedding.scalf\":{", "'embedding.scale' is missing", "F32 [3]");
    EDITED("\"dtype\":\"F32\",\"shape\":[5,4]", "\"dtype\":\"I32\",\"shape\":[5,4]",
           "'layers.0.mixer.taps' is I32 [5, 4]", "expected F32 [5, 4]");
    EDITED("\"shape\":[5,4]", "\"shape\":[4,5]", "'layers.0.mixer.taps' is F32 [4, 5]", "expected F32 [5, 4]");
    EDITED("\"_pad.0\"", "\"spad.0\"", "tensor 'spad.0' belongs to no parameter");
    EDITED("\"parameters\":\"", "\"parametert\":\"", "'' parameters", "hold 1335");
    /* One parameter fewer or more than the card has; another group; another format. */
    SAYS(try_bytes(good, bytes, param, SMALL - 1, 64, false), "'layers.0.mixer.taps' belongs to no parameter");
    SAYS(try_bytes(good, bytes, param, SMALL, 128, false), "'layers.0.mixer.q' is stored as", "group=128");
    make(&other, "layers.0.mixer.k", CHM_FORMAT_TERNARY, 2, (const int64_t[]){17, 65}, 64, 1);
    param[SMALL] = &other.param;
    SAYS(try_bytes(good, bytes, param, SMALL + 1, 64, false), "'layers.0.mixer.k', which the card asks for");
    drop(&other);
    m[0].param.format = CHM_FORMAT_F32;
    SAYS(try_bytes(good, bytes, param, SMALL, 64, false), "stored as 't2;out=17;in=65;group=64'", "ask for 'f32'",
         "ini");
    m[0].param.format = CHM_FORMAT_TERNARY;

    /* Scales and codes that no writer makes, with hashes that fit. */
#define WRITTEN(verify, ...)                                                                                           \
    do {                                                                                                               \
        size_t n_;                                                                                                     \
        assert_int_equal(chm_b158_write(scratch, param, SMALL, card, NULL, 0), CHM_OK);                                \
        uint8_t *bad = load(scratch, &n_);                                                                             \
        SAYS(try_bytes(bad, n_, param, SMALL, 64, verify), __VA_ARGS__);                                               \
        free(bad);                                                                                                     \
    } while (0)
    static const float unsound[] = {NAN, INFINITY, -1, FLT_MAX};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(unsound); i++) {
        float kept;
        memcpy(&kept, m[0].scales + 8, sizeof kept);
        memcpy(m[0].scales + 8, &unsound[i], sizeof kept);
        WRITTEN(false, "'layers.0.mixer.q.scales'", "row 2", "finite number from 0");
        memcpy(m[0].scales + 8, &kept, sizeof kept);
        kept = m[1].scale[1];
        m[1].scale[1] = unsound[i];
        WRITTEN(false, "'embedding.scale'", "row 1", "finite number from 0");
        m[1].scale[1] = kept;
    }
    m[0].codes[40] |= 0xc0;
    WRITTEN(true, "'layers.0.mixer.q.codes'", "byte 40", "code 3");
    m[0].codes[40] = 0x55;
    m[1].q[9] = -128;
    WRITTEN(true, "'embedding.q'", "number 9", "-127..127");
    m[1].q[9] = 0;
    m[2].value[3] = NAN;
    WRITTEN(true, "'layers.0.mixer.taps'", "number 3", "finite");
    m[2].value[3] = 0;

    /* Two parameters of one name, and one that was never packed. */
    param[SMALL] = param[0];
    assert_int_equal(chm_b158_write(scratch, param, SMALL + 1, card, NULL, 0), CHM_E_INTERNAL);
    const uint8_t *codes = m[0].param.ternary.codes;
    m[0].param.ternary.codes = NULL;
    assert_int_equal(chm_b158_write(scratch, param, SMALL, card, NULL, 0), CHM_E_INTERNAL);
    assert_non_null(strstr(chm_error(), "'layers.0.mixer.q' was never quantised"));
    m[0].param.ternary.codes = codes;

    /* The same tensors written without alignment, as another tool would. */
    chm_safetensors *s;
    assert_int_equal(chm_safetensors_parse("m.b158", good, bytes, &s), CHM_OK);
    assert_int_equal(
        chm_safetensors_write(scratch, s->tensor + 1, s->count - 1, s->meta_key, s->meta_value, s->metas, false),
        CHM_OK);
    chm_safetensors_destroy(s);
    size_t moved_bytes;
    uint8_t *moved = load(scratch, &moved_bytes);
    assert_int_equal(try_bytes(moved, moved_bytes, param, SMALL, 64, false), CHM_E_DATA);
    free(moved);

    free(good);
    free(data);
    for (int i = 0; i < SMALL; i++) drop(&m[i]);
    unlink(scratch);
}

static void test_misaligned(void **state) {
    (void)state;
    matrix m[SMALL];
    chm_param *param[SMALL];
    size_t bytes;
    make_small(m, param);
    assert_int_equal(chm_b158_write(scratch, param, SMALL, card, NULL, 0), CHM_OK);
    uint8_t *good = load(scratch, &bytes), *moved = NULL;
    assert_int_equal(posix_memalign((void **)&moved, 64, bytes + 4), 0);
    memcpy(moved + 4, good, bytes);
    assert_int_equal(try_bytes(moved + 4, bytes, param, SMALL, 64, false), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "does not begin on a multiple of 64 bytes"));
    free(good);
    free(moved);
    for (int i = 0; i < SMALL; i++) drop(&m[i]);
    unlink(scratch);
}

static void test_damage(void **state) {
    (void)state;
    matrix m[SMALL];
    chm_param *param[SMALL];
    size_t bytes;
    make_small(m, param);
    assert_int_equal(chm_b158_write(scratch, param, SMALL, card, NULL, 0), CHM_OK);
    uint8_t *good = load(scratch, &bytes);
    for (size_t n = 0; n < bytes; n++) { /* cut at every byte */
        uint8_t *cut = NULL;
        assert_int_equal(posix_memalign((void **)&cut, 64, n ? n : 1), 0);
        memcpy(cut, good, n);
        if (try_bytes(cut, n, param, SMALL, 64, false) != CHM_E_DATA) fail_msg("taken when cut to %zu bytes", n);
        free(cut);
    }
    const size_t header = 8 + good[0] + 256 * (size_t)good[1];
    size_t changes = 0, refused = 0;
    uint8_t *data = load(scratch, &bytes);
    for (size_t at = 0; at < bytes; at++) {
        /* Every byte of the header in ten ways (its length in all), every byte of the data in one. */
        const unsigned step = at < 8 ? 1 : at < header ? 24 : 255;
        for (unsigned by = 1 + (unsigned)draw(9, at, at < 8 ? 1 : 23); by < 256; by += step, changes++) {
            data[at] = (uint8_t)(good[at] ^ by);
            if (try_bytes(data, bytes, param, SMALL, 64, false)) refused++;
            const int status = try_bytes(data, bytes, param, SMALL, 64, true);
            if (at >= header && status != CHM_E_DATA) fail_msg("byte %zu changed by %u and verified", at, by);
            assert_true(status == CHM_OK || status == CHM_E_DATA);
        }
        data[at] = good[at];
    }
    assert_true(changes >= 10000 && refused > 0 && refused < changes);
    free(good);
    free(data);
    for (int i = 0; i < SMALL; i++) drop(&m[i]);
    unlink(scratch);
}

static void test_out_of_memory(void **state) {
    (void)state;
    matrix m[SMALL];
    chm_param *param[SMALL];
    size_t bytes;
    make_small(m, param);
    unlink(scratch);
    int status = CHM_E_MEMORY;
    for (long n = 0; status; n++) {
        chm_alloc_fail_after(n);
        status = chm_b158_write(scratch, param, SMALL, card, NULL, 0);
        chm_alloc_fail_after(-1);
        assert_true((status == CHM_OK || status == CHM_E_MEMORY) && n < 200 && (n > 0 || status));
        assert_int_equal(access(scratch, F_OK) == 0, status == CHM_OK);
    }
    uint8_t *good = load(scratch, &bytes);
    status = CHM_E_MEMORY;
    for (long n = 0; status; n++) {
        chm_safetensors *s = NULL;
        chm_param copy[SMALL], *list[SMALL];
        for (int i = 0; i < SMALL; i++) {
            copy[i] = unbound(param[i]);
            list[i] = &copy[i];
        }
        chm_alloc_fail_after(n);
        status = chm_safetensors_parse("m.b158", good, bytes, &s);
        if (!status) status = chm_b158_check("m.b158", s);
        if (!status) status = chm_b158_bind("m.b158", s, list, SMALL, 64, true);
        chm_alloc_fail_after(-1);
        chm_safetensors_destroy(s);
        assert_true((status == CHM_OK || status == CHM_E_MEMORY) && n < 200 && (n > 0 || status));
    }
    free(good);
    for (int i = 0; i < SMALL; i++) drop(&m[i]);
    unlink(scratch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_python), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_misaligned), cmocka_unit_test(test_damage), cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
