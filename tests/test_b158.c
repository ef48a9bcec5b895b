/* The .b158 format: what is packed comes back, from C and from tools/b158.py, and nothing damaged is taken. */
#include "reference/ref_kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "model/b158.h"
#include "model/report.h"

#include <float.h>
#include <inttypes.h>
#include <jansson.h>
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

/* One weight of a tile of T2. */
static void set_t2(uint8_t *tile, int64_t in, int64_t r, int64_t i, int trit) {
    const int64_t blocks = (in + 63) / 64, b = i / 64, whole = blocks / 4 * 4, j = i % 64 / 4;
    const int64_t f = b < whole ? b % 4 : j / 4;
    uint8_t *byte = tile + (b < whole ? b / 4 * 1024 + j * 64 : b * 256 + j % 4 * 64) + r * 4 + i % 4;
    *byte = (uint8_t)((*byte & ~(3u << 2 * f)) | (unsigned)(trit + 1) << 2 * f);
}

static void make(matrix *m, const char *name, enum chm_format format, int rank, const int64_t *shape, int64_t group,
                 uint32_t key) {
    chm_param *p = &m->param;
    uint64_t at = 0;
    const int32_t stored = p->stored;
    memset(m, 0, sizeof *m);
    p->stored = stored;
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
        const int64_t tiles = chm_ternary_tiles(out), code_stride = chm_ternary_code_stride(CHM_ENCODING_T2, in),
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
                int trit = (int)draw(key, at++, 3) - 1;
                if (p->stored == CHM_ENCODING_SHERRY) trit = i % 4 == (o + i / 4) % 4 ? 0 : trit < 1 ? -1 : 1;
                set_t2(m->codes + o / 16 * code_stride, in, o % 16, i, trit);
                u8 = scales[64 + 16 * (i / group) + o % 16];
                m->expected[o * in + i] = (float)trit * ((float)u8 * row);
            }
        }
        p->ternary = (struct chm_ternary){m->codes, m->scales, out, in, group, CHM_ENCODING_T2, 0};
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
    float row;
    memcpy(&row, scales + o % 16 * 4, sizeof row);
    return (float)ref_trit(w, o, i) * ((float)scales[64 + 16 * (i / w->group) + o % 16] * row);
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
        matrix m[40] = {0};
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
        float row[300];
        for (int i = 0; i < n; i++)
            for (int64_t o = 0; o < copy[i].out; o++) {
                const float *want = m[i].expected + o * copy[i].in;
                assert_true(copy[i].in <= 300);
                chm_param_row(&copy[i], o, row);
                for (int64_t k = 0; k < copy[i].in; k++) {
                    const float got = weight(&copy[i], o, k);
                    if (got != want[k] || row[k] != want[k])
                        fail_msg("%s[%d][%d]: %g and %g, expected %g", copy[i].name, (int)o, (int)k, got, row[k],
                                 want[k]);
                }
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
    matrix m[9] = {0};
    chm_param *param[9];
    chm_st_tensor tensor[9] = {0};
    make_small(m, param);
    make(&m[3], "one", CHM_FORMAT_TERNARY, 2, (const int64_t[]){1, 1}, 64, 4);
    make(&m[4], "wide", CHM_FORMAT_TERNARY, 2, (const int64_t[]){33, 257}, 64, 5);
    m[7].param.stored = CHM_ENCODING_T5;
    make(&m[7], "five", CHM_FORMAT_TERNARY, 2, (const int64_t[]){35, 833}, 64, 8);
    m[8].param.stored = CHM_ENCODING_SHERRY;
    make(&m[8], "sparse", CHM_FORMAT_TERNARY, 2, (const int64_t[]){19, 318}, 64, 9);
    make(&m[5], "even", CHM_FORMAT_INT8, 2, (const int64_t[]){16, 192}, 64, 6);
    make(&m[6], "gain", CHM_FORMAT_F32, 1, (const int64_t[]){9}, 64, 7);
    for (int i = 0; i < 9; i++) {
        param[i] = &m[i].param;
        tensor[i] = (chm_st_tensor){.name = param[i]->name, .dtype = CHM_ST_F32, .rank = param[i]->rank};
        memcpy(tensor[i].shape, param[i]->shape, sizeof param[i]->shape);
        tensor[i].data = (const uint8_t *)m[i].expected;
        tensor[i].bytes = (uint64_t)param[i]->count * 4;
    }
    assert_int_equal(chm_b158_write(scratch, param, 9, card, NULL, 0), CHM_OK);
    assert_int_equal(chm_safetensors_write(expected, tensor, 9, NULL, NULL, 0, false), CHM_OK);
    setenv("PYTHONDONTWRITEBYTECODE", "1", 1);
    setenv("B158_MODEL", scratch, 1);
    setenv("B158_EXPECTED", expected, 1);
    int status = system("cd \"$PWD\" && python3 -c '\n"
                        "import os, sys\n"
                        "sys.path.insert(0, os.environ[\"CHM_SOURCE_ROOT\"] + \"/tools\")\n"
                        "import b158\n"
                        "got = b158.decode(os.environ[\"B158_MODEL\"])\n"
                        "want, _ = b158.read_safetensors(os.environ[\"B158_EXPECTED\"])\n"
                        "assert sorted(got) == sorted(want) and len(got) == 9, sorted(got)\n"
                        "for name, w in want.items():\n"
                        "    g = got[name]\n"
                        "    assert g.dtype == w.dtype and g.shape == w.shape and (g == w).all(), name\n"
                        "'");
    assert_int_equal(status, 0);
    status = system("python3 \"$CHM_SOURCE_ROOT/tools/b158.py\" \"$B158_MODEL\" test_b158.tmp.npz >test_b158.tmp.txt &&"
                    "grep -q 'wide *(33, 257) *rms' test_b158.tmp.txt && test -s test_b158.tmp.npz");
    assert_int_equal(status, 0);
    for (int i = 0; i < 9; i++) drop(&m[i]);
    unlink("test_b158.tmp.npz");
    unlink("test_b158.tmp.txt");
    unlink(expected);
    unlink(scratch);
}

/* Replaces text of equal length wherever it stands in the header, whose hash is put right. */
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
    chm_safetensors_seal(data, 8 + data[0] + 256 * (size_t)data[1]);
}

static void test_refusals(void **state) {
    (void)state;
    matrix m[SMALL] = {0}, other = {0};
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
    EDITED("\"format_version\":\"2\"", "\"format_version\":\"1\"", "format_version '1'", "reads version 2");
    EDITED("\"card\":", "\"cara\":", "lacks card");
    EDITED("\"card_hash\":", "\"card_hasp\":", "lacks card_hash");
    EDITED("a test, ", "a text, ", "the card in the file is damaged", "--set");
    EDITED("\"header_hash\":", "\"header_hasp\":", "the header of the file is damaged");
    memcpy(data, good, bytes);
    ((char *)memmem(data, bytes, "hash.embedding.q\":\"", 19))[19] ^= 1; /* nothing that a default load would look at */
    SAYS(try_bytes(data, bytes, param, SMALL, 64, false), "the header of the file is damaged");
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
    static const float unsound[] = {NAN, INFINITY, -1, FLT_MAX, 1.4e36f};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(unsound); i++) {
        float kept;
        memcpy(&kept, m[0].scales + 8, sizeof kept);
        memcpy(m[0].scales + 8, &unsound[i], sizeof kept);
        WRITTEN(false, "'layers.0.mixer.q.scales'", "row 2", "a number 0..1.32923e+36");
        memcpy(m[0].scales + 8, &kept, sizeof kept);
        kept = m[1].scale[1];
        m[1].scale[1] = unsound[i];
        WRITTEN(false, "'embedding.scale'", "row 1", "a number 0..1.32923e+36");
        m[1].scale[1] = kept;
    }
    m[0].codes[40] |= 0xc0;
    WRITTEN(true, "'layers.0.mixer.q.codes'", "byte 40", "no codes of t2 make");
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
    matrix m[SMALL] = {0};
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
    matrix m[SMALL] = {0};
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
    chm_safetensors *s = NULL;
    assert_int_equal(chm_safetensors_parse("m.b158", good, bytes, &s), CHM_OK);
    for (size_t at = 0; at < bytes; at++) {
        /* Every byte of the header in ten ways (its length in all), every byte of the data in one. */
        const unsigned step = at < 8 ? 1 : at < header ? 24 : 255;
        bool checked = at < header; /* by a default load: the header and scales */
        for (int i = 0; i < s->count; i++)
            checked = checked || (strstr(s->tensor[i].name, ".scale") && at >= (size_t)(s->tensor[i].data - good) &&
                                  at < (size_t)(s->tensor[i].data - good) + s->tensor[i].bytes);
        for (unsigned by = 1 + (unsigned)draw(9, at, at < 8 ? 1 : 23); by < 256; by += step, changes++) {
            data[at] = (uint8_t)(good[at] ^ by);
            const int opened = try_bytes(data, bytes, param, SMALL, 64, false);
            if (opened ? opened != CHM_E_DATA : checked) fail_msg("byte %zu changed by %u: status %d", at, by, opened);
            refused += opened != CHM_OK;
            if (try_bytes(data, bytes, param, SMALL, 64, true) != CHM_E_DATA)
                fail_msg("byte %zu changed by %u and verified", at, by);
        }
        data[at] = good[at];
    }
    assert_true(changes >= 10000 && refused > 0 && refused < changes);
    chm_safetensors_destroy(s);
    free(good);
    free(data);
    for (int i = 0; i < SMALL; i++) drop(&m[i]);
    unlink(scratch);
}

static void test_out_of_memory(void **state) {
    (void)state;
    matrix m[SMALL] = {0};
    chm_param *param[SMALL];
    size_t bytes;
    make_small(m, param);
    unlink(scratch);
    int status = CHM_E_MEMORY;
    for (long n = 0; status; n++) {
        chm_alloc_fail_after(n);
        status = chm_b158_write(scratch, param, SMALL, card, NULL, 0);
        chm_alloc_fail_after(-1);
        assert_true((status == CHM_OK || status == CHM_E_MEMORY) && n < 10000 && (n > 0 || status));
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
        assert_true((status == CHM_OK || status == CHM_E_MEMORY) && n < 10000 && (n > 0 || status));
    }
    free(good);
    for (int i = 0; i < SMALL; i++) drop(&m[i]);
    unlink(scratch);
}

/* ---- whole models ---- */

static chm_registry registry;

static const char *const small_card =
    "{\"model_type\": \"chimera51\", \"token_ids\": [256, 257], \"hidden_size\": 64, \"intermediate_size\": 96,\n"
    " \"num_hidden_layers\": 2, \"num_heads\": 1, \"head_dim\": 64, \"vocab_size\": 258,\n"
    " \"quantization\": {\"method\": \"bitnet\", \"group_size\": 128, \"embedding\": \"int8\"},\n"
    " \"backbone\": {\"layer_pattern\": \"GD\", \"layer_aliases\": {\"GD\": \"gated_deltanet\"},\n"
    "              \"layer_counts\": {\"GD\": 2}},\n"
    " \"tokenizer\": {\"type\": \"bytes\"}, \"generation\": {\"temperature\": 0.8}}\n";

/* Trits by the sign and size of a weight, under one scale: a stand-in for the real kernel, whose rule is not at issue.
 */
static void ternarise(const float *w, int64_t out, int64_t in, int64_t group, bool sparse, int64_t tile0, int64_t tile1,
                      uint8_t *codes, uint8_t *scales, float *dequant) {
    const int64_t stride = chm_ternary_scale_stride(in, group);
    const int64_t code_stride = chm_ternary_code_stride(CHM_ENCODING_T2, in);
    assert_false(sparse);
    const float scale = 0.0078125f;
    memset(codes + tile0 * code_stride, 0x55, (size_t)((tile1 - tile0) * code_stride));
    for (int64_t o = tile0 * 16; o < CHM_MIN(tile1 * 16, out); o++) {
        memcpy(scales + o / 16 * stride + o % 16 * 4, &scale, sizeof scale);
        for (int64_t g = 0; g < chm_ternary_groups(in, group); g++) scales[o / 16 * stride + 64 + 16 * g + o % 16] = 2;
        for (int64_t i = 0; i < in; i++) {
            const int trit = w[o * in + i] > 0.01f ? 1 : w[o * in + i] < -0.01f ? -1 : 0;
            set_t2(codes + o / 16 * code_stride, in, o % 16, i, trit);
            if (dequant) dequant[o * in + i] = (float)trit * 2 * scale;
        }
    }
}

static chm_model *make_model(const char *const *set, size_t sets) {
    const struct chm_kernels kernels = {.size = sizeof kernels, .ternarise = ternarise};
    const struct chm_card_options options = {.registry = &registry, .set = set, .set_count = sets};
    chm_card *loaded = NULL;
    chm_model *m = NULL;
    if (chm_card_parse("small.json", small_card, strlen(small_card), &options, &loaded) ||
        chm_model_create(loaded, &registry, &m) || chm_model_allocate(m) || chm_model_randomise(m, 5) ||
        chm_model_quantise(m, &kernels, NULL))
        fail_msg("%s", chm_error());
    return m;
}

static int open_set(const char *path, const char *set, bool verify, chm_model **m) {
    const char *const list[] = {set};
    const struct chm_card_options options = {.registry = &registry, .set = list, .set_count = set ? 1 : 0};
    chm_fail(CHM_OK, "no sentence");
    *m = (chm_model *)m;
    int status = chm_model_open(path, &registry, &options, verify, m);
    if (status) assert_null(*m);
    return status;
}

static void refuse_open(const char *path, const char *set, const char *word, const char *word2) {
    chm_model *m;
    assert_int_not_equal(open_set(path, set, false, &m), CHM_OK);
    if (!strstr(chm_error(), word) || !strstr(chm_error(), word2))
        fail_msg("'%s' does not say '%s' and '%s'", chm_error(), word, word2);
}

static void test_model(void **state) {
    (void)state;
    static const char *const forms[] = {"quantization.embedding=int8", "quantization.embedding=ternary",
                                        "quantization.embedding=f32", "quantization.method=none"};
    for (size_t form = 0; form < CHM_ARRAY_COUNT(forms); form++) {
        chm_model *m = make_model(&forms[form], 1), *r;
        float want[200], got[200];
        if (chm_model_save(m, scratch)) fail_msg("%s", chm_error());
        for (int verify = 0; verify <= 1; verify++) {
            if (open_set(scratch, NULL, verify, &r)) fail_msg("%s", chm_error());
            assert_int_equal(r->params, m->params);
            assert_string_equal(r->path, scratch);
            assert_false(r->trainable);
            for (int i = 0; i < m->params; i++) {
                assert_string_equal(r->param[i]->name, m->param[i]->name);
                assert_int_equal(r->param[i]->format, m->param[i]->format);
                assert_null(r->param[i]->grad);
                assert_true(m->param[i]->in <= 200);
                for (int64_t o = 0; o < m->param[i]->out; o++) {
                    chm_param_row(m->param[i], o, want);
                    chm_param_row(r->param[i], o, got);
                    assert_memory_equal(got, want, (size_t)m->param[i]->in * sizeof(float));
                    for (int64_t k = 0; k < m->param[i]->in && m->param[i]->dequant; k++)
                        assert_true(got[k] == m->param[i]->dequant[o * m->param[i]->in + k]);
                }
            }
            chm_model_destroy(r);
        }
        chm_model_destroy(m);
    }
    unlink(scratch);
}

static void test_model_overrides(void **state) {
    (void)state;
    chm_model *m = make_model(NULL, 0), *r;
    const char *origin;
    assert_int_equal(chm_model_save(m, scratch), CHM_OK);
    if (open_set(scratch, "generation.temperature=0.5", false, &r)) fail_msg("%s", chm_error());
    assert_string_equal(chm_card_get(r->card, "generation.temperature", &origin), "0.5");
    chm_model_destroy(r);
    refuse_open(scratch, "intermediate_size=128", "'layers.0.ffn.gate' is stored as 't5;out=96;in=64;group=128'",
                "ask for 't5;out=128;in=64;group=128'");
    refuse_open(scratch, "quantization.embedding=f32", "'embedding' is stored as 'i8;", "ask for 'f32'");
    refuse_open(scratch, "quantization.method=none", "is stored as", "cannot change the form");
    refuse_open(scratch, "generation.temperture=0.5", "temperture", "temperature");

    /* What is known of the training is kept when an opened model is saved again, unless it is said anew. */
    const chm_b158_note notes[] = {{"trained.tokens", "1000"}, {"trained.data", "some text"}}, bad = {"format", "x"};
    assert_int_equal(chm_b158_save(m, scratch, notes, 2), CHM_OK);
    assert_int_equal(open_set(scratch, NULL, true, &r), CHM_OK);
    assert_string_equal(chm_safetensors_meta(r->file, "trained.tokens"), "1000");
    assert_string_equal(chm_safetensors_meta(r->file, "tokenizer"), "bytes");
    const chm_b158_note more = {"trained.tokens", "2000"};
    assert_int_equal(chm_b158_save(r, "test_b158.tmp2.b158", &more, 1), CHM_OK);
    chm_model_destroy(r);
    assert_int_equal(open_set("test_b158.tmp2.b158", NULL, true, &r), CHM_OK);
    assert_string_equal(chm_safetensors_meta(r->file, "trained.tokens"), "2000");
    assert_string_equal(chm_safetensors_meta(r->file, "trained.data"), "some text");
    /* Saved over itself: the map keeps the old file. */
    assert_int_equal(chm_b158_save(r, "test_b158.tmp2.b158", NULL, 0), CHM_OK);
    chm_model_destroy(r);
    assert_int_equal(open_set("test_b158.tmp2.b158", NULL, true, &r), CHM_OK);
    assert_string_equal(chm_safetensors_meta(r->file, "trained.tokens"), "2000");
    chm_model_destroy(r);
    assert_int_equal(chm_b158_save(m, scratch, &bad, 1), CHM_E_INTERNAL);
    chm_model_destroy(m);
    unlink("test_b158.tmp2.b158");
    unlink(scratch);
}

static void write_bytes(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static void test_model_foreign(void **state) {
    (void)state;
    refuse_open("no-such-file.b158", NULL, "no-such-file.b158", "No such file");
    refuse_open("/", NULL, "/: ", "not a regular file");
    write_bytes(scratch, "", 0);
    refuse_open(scratch, NULL, scratch, "empty");
    write_bytes(scratch, "GGUF\3\0\0\0\0\0\0\0", 12);
    refuse_open(scratch, NULL, "a GGUF file", "expected a safetensors file");
    write_bytes(scratch, small_card, strlen(small_card));
    refuse_open(scratch, NULL, "JSON text (a model card?)", ".b158");
    write_bytes(scratch, "\2\0\0\0\0\0\0\0{}", 10);
    refuse_open(scratch, NULL, "no model of ours", "chimera.b158");

    chm_model *m = make_model(NULL, 0), *r;
    assert_int_equal(chm_model_save(m, scratch), CHM_OK);
    size_t bytes;
    uint8_t *good = load(scratch, &bytes);
    for (size_t n = bytes - 1; n > 0; n = n > 4096 ? n - 1999 : n / 2) {
        write_bytes(scratch, good, n);
        refuse_open(scratch, NULL, scratch, "");
    }
    good[bytes - 1] ^= 4;
    write_bytes(scratch, good, bytes);
    assert_int_equal(open_set(scratch, NULL, true, &r), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "is damaged"));

    /* A card that is no card, with a hash that fits. */
    assert_int_equal(chm_b158_write(scratch, m->param, m->params, "{\"hidden_sise\": 3}", NULL, 0), CHM_OK);
    refuse_open(scratch, NULL, "the card inside", "hidden_size");
    free(good);
    chm_model_destroy(m);
    unlink(scratch);
}

/* ---- inspect ---- */

static char *inspect(const char *path, const chm_registry *with, bool verify, chm_output format, int *status) {
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    *status = chm_report_inspect(path, with, verify, out, format);
    fclose(out);
    return text;
}

static void inspect_says(const char *path, const chm_registry *with, bool verify, chm_output format,
                         const char *const *words) {
    int status;
    char *text = inspect(path, with, verify, format, &status);
    if (status) fail_msg("%s", chm_error());
    for (; *words; words++)
        if (!strstr(text, *words)) fail_msg("the report does not say '%s':\n%s", *words, text);
    free(text);
}
#define INSPECT(with, verify, format, ...)                                                                             \
    inspect_says(scratch, with, verify, format, (const char *const[]){__VA_ARGS__, NULL})

static void test_inspect(void **state) {
    (void)state;
    chm_model *m = make_model(NULL, 0);
    const chm_b158_note note = {"trained.tokens", "1000"};
    int status;
    assert_int_equal(chm_b158_save(m, scratch, &note, 1), CHM_OK);
    INSPECT(&registry, false, CHM_OUTPUT_TEXT, "chimera.b158 2", "2 layers (gd x2)", "vocabulary 258, tokenizer bytes",
            "trained.tokens: 1000", "header and scales", "layers.1.mixer.q", "[258, 64]  i8          16512", "total");
    INSPECT(NULL, true, CHM_OUTPUT_TEXT, "every byte", "layers.1.ffn.down");
    INSPECT(&registry, true, CHM_OUTPUT_MD, "| parameter | shape |", "| layers.0.ffn.gate | [96, 64] | t5 | 6144 |");
    INSPECT(NULL, false, CHM_OUTPUT_CSV, "parameter,shape,encoding,weights,bytes,bits_per_weight,zeros,hashes\n",
            "layers.0.ffn.gate,\"[96, 64]\",t5,6144,2016,2.625,"); /* 64 inputs fill a quarter of a superblock */

    char *text = inspect(scratch, &registry, true, CHM_OUTPUT_JSON, &status);
    assert_int_equal(status, CHM_OK);
    json_t *root = json_loads(text, 0, NULL);
    assert_non_null(root);
    free(text);
    assert_true(json_is_true(json_object_get(root, "verified")) && json_is_true(json_object_get(root, "opens")));
    json_t *items = json_object_get(root, "parameters");
    assert_int_equal(json_array_size(items), m->params);
    int64_t weights, embedding, packed = 0;
    for (int i = 0; i < m->params; i++) { /* the share of zeros, counted from the weights as they come back */
        const chm_param *p = m->param[i];
        json_t *item = json_array_get(items, (size_t)i);
        float row[200];
        int64_t zeros = 0;
        assert_string_equal(json_string_value(json_object_get(item, "name")), p->name);
        for (int64_t o = 0; o < p->out; o++) {
            chm_param_row(p, o, row);
            for (int64_t k = 0; k < p->in; k++) zeros += row[k] == 0;
        }
        const double share = json_real_value(json_object_get(item, "zeros"));
        assert_true(fabs(share - (double)zeros / (double)p->count) < 1e-9);
        packed += p->format == CHM_FORMAT_TERNARY && zeros > 0;
    }
    assert_true(packed > 0);
    chm_model_parameter_count(m, &weights, &embedding);
    json_t *total = json_object_get(root, "total"), *parts = json_object_get(root, "parts");
    assert_int_equal(json_integer_value(json_object_get(total, "weights")), weights);
    int64_t sum = 0;
    for (size_t i = 0; i < json_array_size(parts); i++)
        sum += json_integer_value(json_object_get(json_array_get(parts, i), "weights"));
    assert_int_equal(sum, weights);
    json_decref(root);

    /* A registry without the layer's plugin: the file is sound, and that it cannot run here is said. */
    const chm_registry none = {0};
    INSPECT(&none, true, CHM_OUTPUT_TEXT, "cannot be opened here: ", "layers.1.mixer.q");

    /* Damage, and a file of someone else's. */
    size_t bytes;
    uint8_t *data = load(scratch, &bytes);
    data[bytes - 1] ^= 1;
    write_bytes(scratch, data, bytes);
    text = inspect(scratch, NULL, true, CHM_OUTPUT_TEXT, &status);
    assert_int_equal(status, CHM_E_DATA);
    assert_string_equal(text, "");
    assert_non_null(strstr(chm_error(), "is damaged"));
    free(text);
    free(data);
    const float x[6] = {1, 2, 3, 4, 5, 6};
    const chm_st_tensor plain = {
        .name = "x", .dtype = CHM_ST_F32, .rank = 2, .shape = {2, 3}, .bytes = 24, .data = (const uint8_t *)x};
    assert_int_equal(chm_safetensors_write(scratch, &plain, 1, NULL, NULL, 0, false), CHM_OK);
    INSPECT(&registry, false, CHM_OUTPUT_TEXT, "format: safetensors", "tensors: 1, 6 weights", "[2, 3]", "F32");
    INSPECT(&registry, false, CHM_OUTPUT_JSON, "\"name\": \"x\"", "\"opens\": null");
    text = inspect(scratch, NULL, true, CHM_OUTPUT_TEXT, &status);
    assert_int_equal(status, CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "nothing to verify"));
    free(text);
    text = inspect("/", NULL, false, CHM_OUTPUT_TEXT, &status);
    assert_int_equal(status, CHM_E_DATA);
    free(text);
    chm_model_destroy(m);
    unlink(scratch);
}

/* Encodings of a stranger's file are numbers to be believed only when its tensors bear them out. */
static void test_inspect_encodings(void **state) {
    (void)state;
    matrix m[SMALL] = {0};
    chm_param *param[SMALL];
    size_t bytes;
    int status;
    make_small(m, param);
    assert_int_equal(chm_b158_write(scratch, param, SMALL, card, NULL, 0), CHM_OK);
    uint8_t *good = load(scratch, &bytes), *data = load(scratch, &bytes);
    static const char *const edits[][3] = {
        {"t2;out=17;in=65;group=64", "t2;out=17;in=65;group=65", "has the encoding"},
        {"t2;out=17;in=65;group=64", "t2;out=17;in=99999999999", "has the encoding"},
        {"t2;out=17;in=65;group=64", "t9;out=17;in=65;group=64", "this Chimera reads"},
        {"t2;out=17;in=65;group=64", "t2;out=-7;in=65;group=64", "has the encoding"},
        {"t2;out=17;in=65;group=64", "t2;out=97;in=65;group=64", "expected U8 [7, 512]"},
        {"t2;out=17;in=65;group=64", "t2;out=17;in=00;group=64", "has the encoding"},
        {"i8;out=3;in=70;block=64", "i8;out=3;in=70;block=65", "cannot change"},
        {"i8;out=3;in=70;block=64", "i8;out=3;in=7;block=064 ", "has the encoding"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(edits); i++) {
        if (strlen(edits[i][0]) != strlen(edits[i][1])) continue;
        memcpy(data, good, bytes);
        edit(data, bytes, edits[i][0], edits[i][1]);
        write_bytes(scratch, data, bytes);
        free(inspect(scratch, NULL, false, CHM_OUTPUT_TEXT, &status));
        assert_int_equal(status, CHM_E_DATA);
        if (!strstr(chm_error(), edits[i][2])) fail_msg("'%s' does not say '%s'", chm_error(), edits[i][2]);
    }
    free(good);
    free(data);
    for (int i = 0; i < SMALL; i++) drop(&m[i]);
    unlink(scratch);
}

static int find_plugins(void **state) {
    (void)state;
    const struct chm_registry_options options = {0};
    return chm_registry_init(&registry, &options);
}

static int drop_plugins(void **state) {
    (void)state;
    chm_registry_finish(&registry);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_python),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_misaligned),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_model_overrides),
        cmocka_unit_test(test_model_foreign),
        cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_inspect_encodings),
    };
    return cmocka_run_group_tests(tests, find_plugins, drop_plugins);
}
