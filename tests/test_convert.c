/*
 * test_convert.c: model files in another form, and back to the byte; what cannot be without loss is refused by name,
 * and with `lossy` counted; ternary checkpoints of others.
 */
#include "model/b158.h"
#include "model/runtime.h"

#include <chimera/chimera.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
/* after the standard headers */
#include <cmocka.h>

static chm_runtime *runtime;
static char folder[64], card[512];
static const chm_overlay bare = {.size = sizeof bare, .no_environment = 1};

/* The same pointer for the same name. */
static const char *in_folder(const char *name) {
    static char path[64][128];
    char wanted[128];
    int i = 0;
    snprintf(wanted, sizeof wanted, "%s/%s", folder, name);
    for (; path[i][0]; i++)
        if (!strcmp(path[i], wanted)) return path[i];
    assert_in_range(i, 0, 62);
    return strcpy(path[i], wanted);
}

static void must(int status) {
    if (status) fail_msg("status %d: %s", status, chm_error());
}

static int convert(const char *in, const char *out, const char *encoding, const char *import, bool lossy,
                   chm_convert_result *result) {
    const chm_convert_options o = {
        .size = sizeof o, .encoding = encoding, .import = import, .lossy = lossy, .overlay = &bare};
    if (result) *result = (chm_convert_result){.size = sizeof *result};
    return chm_convert(runtime, in_folder(in), in_folder(out), &o, result);
}

static void refused(int status, int expected, const char *a, const char *b) {
    if (status != expected) fail_msg("status %d, expected %d: %s", status, expected, chm_error());
    if (!strstr(chm_error(), a) || !strstr(chm_error(), b))
        fail_msg("'%s' does not say '%s' and '%s'", chm_error(), a, b);
}

static bool same_files(const char *a, const char *b) {
    char *text[2];
    size_t n[2];
    must(chm_read_file(in_folder(a), 1 << 30, &text[0], &n[0]));
    must(chm_read_file(in_folder(b), 1 << 30, &text[1], &n[1]));
    const bool same = n[0] == n[1] && !memcmp(text[0], text[1], n[0]);
    chm_free(text[0]);
    chm_free(text[1]);
    return same;
}
static void assert_same(const char *a, const char *b) {
    if (!same_files(a, b)) fail_msg("%s and %s differ", a, b);
}

struct opened {
    chm_map map;
    chm_safetensors *file;
};
static struct opened open_file(const char *name) {
    struct opened o;
    must(chm_map_open(&o.map, in_folder(name)));
    must(chm_safetensors_parse(name, o.map.data, o.map.size, &o.file));
    return o;
}
static void close_file(struct opened *o) {
    chm_safetensors_destroy(o->file);
    chm_map_close(&o->map);
}
static const float *floats(const struct opened *o, const char *name) {
    const chm_st_tensor *t = chm_safetensors_find(o->file, name);
    if (!t) fail_msg("no tensor '%s'", name);
    assert_int_equal(t->dtype, CHM_ST_F32);
    return (const float *)(const void *)t->data;
}

/* ---- our own files ---- */

static void encodings(void **state) {
    (void)state;
    chm_convert_result r;
    must(convert("nano.b158", "two.b158", "t2", NULL, false, &r));
    assert_true(r.weights > 2000000 && r.unfit == 0 && r.quantised == 0);
    assert_false(same_files("nano.b158", "two.b158"));
    must(convert("two.b158", "back/nano.b158", "t5", NULL, false, NULL));
    assert_same("nano.b158", "back/nano.b158");
    assert_same("nano_experts.b158", "back/nano_experts.b158");
    /* as it is: the same file again */
    must(convert("two.b158", "back/two.b158", NULL, NULL, false, NULL));
    assert_same("two.b158", "back/two.b158");
    /* the logits of both are those of one model */
    const int32_t ids[] = {256, 't', 'h', 'e'};
    float first[300] = {0};
    for (int i = 0; i < 2; i++) {
        chm_model *m = NULL;
        chm_stream *s = NULL;
        const float *logits;
        must(chm_open(runtime, in_folder(i ? "two.b158" : "nano.b158"), &bare, true, &m));
        must(chm_stream_open(runtime, m, &s));
        must(chm_stream_feed(s, ids, 4, &logits));
        if (i)
            assert_memory_equal(logits, first, sizeof(float) * (size_t)chm_vocab(m));
        else
            memcpy(first, logits, sizeof(float) * (size_t)chm_vocab(m));
        chm_stream_close(s);
        chm_close(m);
    }
}

static void sherry(void **state) {
    (void)state;
    chm_convert_result r;
    refused(convert("nano.b158", "no.b158", "sherry", NULL, false, NULL), CHM_E_DATA, "'layers.0.mixer.q'", "--lossy");
    assert_int_equal(access(in_folder("no.b158"), F_OK), -1);
    must(convert("nano.b158", "sherry.b158", "sherry", NULL, true, &r));
    assert_true(r.fours > 400000 && r.unfit > r.fours / 4 && r.unfit < r.fours && r.changed >= r.unfit &&
                r.changed <= 3 * r.unfit);
    /* once it is sherry, it goes anywhere and comes back */
    must(convert("sherry.b158", "two.b158", "t2", NULL, false, NULL));
    must(convert("two.b158", "back/sherry.b158", "sherry", NULL, false, &r));
    assert_true(r.unfit == 0 && r.changed == 0);
    assert_same("sherry.b158", "back/sherry.b158");
    assert_same("sherry_experts.b158", "back/sherry_experts.b158");
    must(convert("sherry.b158", "sherry.safetensors", NULL, NULL, false, NULL));
    must(convert("sherry.safetensors", "back/sherry.b158", NULL, NULL, false, NULL));
    assert_same("sherry.b158", "back/sherry.b158");
    assert_same("sherry_experts.b158", "back/sherry_experts.b158");

    /* how many weights were changed, counted from what is in the files */
    must(convert("nano.b158", "nano.safetensors", NULL, NULL, false, NULL));
    struct opened a = open_file("nano.safetensors"), b = open_file("sherry.safetensors");
    int64_t changed = 0;
    for (int i = 0; i < a.file->count; i++) {
        const chm_st_tensor *t = &a.file->tensor[i];
        if (t->dtype != CHM_ST_F32 || t->rank != 2) continue;
        const float *x = floats(&a, t->name), *y = floats(&b, t->name);
        for (uint64_t n = 0; n < t->bytes / 4; n++) changed += x[n] != y[n];
    }
    must(convert("nano.b158", "sherry.b158", "sherry", NULL, true, &r));
    assert_int_equal(changed, r.changed);
    close_file(&a);
    close_file(&b);
}

/* Bits per weight, scales included. */
static void bits_per_weight(void **state) {
    (void)state;
    static const struct {
        const char *file, *encoding, *line;
    } of[] = {{"two.b158", "t2", "layers.0.mixer.q,\"[128, 128]\",t2,16384,4736,2.312,"},
              {"five.b158", "t5", "layers.0.mixer.q,\"[128, 128]\",t5,16384,4736,2.312,"}, /* no superblock of five */
              {"sherry.b158", "sherry", "layers.0.mixer.q,\"[128, 128]\",sherry,16384,3200,1.562,"},
              {"sherry.b158", "sherry", "embedding,\"[258, 128]\",i8,33024,34056,8.250,"},
              {"sherry.b158", "sherry", "layers.0.mixer_norm,[128],f32,128,512,32.000,"}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(of); i++) {
        char *text = NULL;
        size_t n;
        FILE *out = open_memstream(&text, &n);
        must(convert("nano.b158", of[i].file, of[i].encoding, NULL, true, NULL));
        must(chm_inspect(runtime, in_folder(of[i].file), true, CHM_OUTPUT_CSV, out));
        fclose(out);
        if (!strstr(text, of[i].line)) fail_msg("no '%s' in\n%s", of[i].line, text);
        free(text);
    }
}

/* The plain file again, without the tensors whose names end so, and with one number changed. */
static void edited(const char *from, const char *to, const char *without, const char *name, float number) {
    struct opened o = open_file(from);
    chm_st_tensor *tensor = chm_alloc((size_t)o.file->count * sizeof *tensor);
    float *changed = NULL;
    int n = 0;
    for (int i = 0; i < o.file->count; i++) {
        const chm_st_tensor *t = &o.file->tensor[i];
        const size_t length = strlen(t->name), tail = without ? strlen(without) : 0;
        if (without && length >= tail && !strcmp(t->name + length - tail, without)) continue;
        tensor[n] = *t;
        if (name && !strcmp(t->name, name)) {
            changed = chm_alloc(t->bytes);
            memcpy(changed, t->data, t->bytes);
            changed[3] = number;
            tensor[n].data = (const uint8_t *)changed;
        }
        n++;
    }
    assert_true(n > 0 && (!name || changed));
    must(chm_safetensors_write(in_folder(to), tensor, n, o.file->meta_key, o.file->meta_value, o.file->metas, false));
    chm_free(changed);
    chm_free(tensor);
    close_file(&o);
}

/* The plain file again, with one entry of its metadata changed or added. */
static void told(const char *from, const char *to, const char *key, const char *value) {
    struct opened o = open_file(from);
    const char **keys = chm_alloc(((size_t)o.file->metas + 1) * sizeof *keys);
    const char **values = chm_alloc(((size_t)o.file->metas + 1) * sizeof *values);
    int n = 0;
    for (int i = 0; i < o.file->metas; i++) {
        if (!strcmp(o.file->meta_key[i], key)) continue;
        keys[n] = o.file->meta_key[i];
        values[n++] = o.file->meta_value[i];
    }
    keys[n] = key;
    values[n++] = value;
    must(chm_safetensors_write(in_folder(to), o.file->tensor, o.file->count, keys, values, n, false));
    chm_free(keys);
    chm_free(values);
    close_file(&o);
}

static void plain(void **state) {
    (void)state;
    chm_convert_result r;
    const char *matrix = "layers.0.mixer.q";
    must(convert("nano.b158", "nano.safetensors", NULL, NULL, false, NULL));
    must(convert("nano.safetensors", "back/nano.b158", NULL, NULL, false, &r));
    assert_true(r.quantised == 0 && r.rescaled == 0);
    assert_same("nano.b158", "back/nano.b158");
    assert_same("nano_experts.b158", "back/nano_experts.b158");
    /* what another program says in the metadata is not taken for what only a second file says */
    told("nano.safetensors", "told.safetensors", "part", "experts");
    must(convert("told.safetensors", "back/nano.b158", NULL, NULL, false, NULL));
    assert_same("nano.b158", "back/nano.b158");
    must(convert("nano.safetensors", "back/nano.b158", "t2", NULL, false, NULL));
    must(convert("nano.b158", "nano2.b158", "t2", NULL, false, NULL));
    struct opened two = open_file("back/nano.b158");
    assert_string_equal(chm_safetensors_meta(two.file, "encoding.layers.0.mixer.q"), "t2;out=128;in=128;group=128");
    close_file(&two);
    /* by the card instead of by what the file says */
    const chm_convert_options by_card = {.size = sizeof by_card, .card = card, .overlay = &bare};
    must(chm_convert(runtime, in_folder("nano.safetensors"), in_folder("back/nano.b158"), &by_card, NULL));
    assert_same("nano.b158", "back/nano.b158");
    assert_same("nano_experts.b158", "back/nano_experts.b158");
    refused(chm_convert(runtime, in_folder("nano.b158"), in_folder("no.b158"), &by_card, NULL), CHM_E_CONFIG, "--card",
            "card inside");

    static const char *const no_cards[] = {"{", "", "[]", "3"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(no_cards); i++) {
        told("nano.safetensors", "told.safetensors", "card", no_cards[i]);
        refused(convert("told.safetensors", "no.b158", NULL, NULL, false, NULL), CHM_E_DATA, "card in __metadata__",
                "no JSON object");
        must(chm_convert(runtime, in_folder("told.safetensors"), in_folder("back/nano.b158"), &by_card, NULL));
        assert_same("nano.b158", "back/nano.b158");
    }

    /* what the model holds, from its own reader */
    chm_model *m = NULL;
    must(chm_open(runtime, in_folder("nano.b158"), &bare, true, &m));
    struct opened o = open_file("nano.safetensors");
    for (int i = 0; i < m->params; i++) {
        const chm_param *p = m->param[i];
        const float *have = floats(&o, p->name);
        float *row = chm_alloc((size_t)p->in * sizeof *row);
        for (int64_t n = 0; n < p->out; n++) {
            chm_param_row(p, n, row);
            assert_memory_equal(row, have + n * p->in, sizeof(float) * (size_t)p->in);
        }
        chm_free(row);
    }
    close_file(&o);
    chm_close(m);

    /* scales that went missing are found: other bytes may come of it, the same weights always */
    edited("nano.safetensors", "bare.safetensors", ".scales", NULL, 0);
    must(convert("bare.safetensors", "bare.b158", NULL, NULL, false, &r));
    assert_true(r.quantised == 0 && r.rescaled == 0);
    must(convert("bare.b158", "bare2.safetensors", NULL, NULL, false, NULL));
    struct opened a = open_file("nano.safetensors"), b = open_file("bare2.safetensors");
    for (int i = 0; i < a.file->count; i++) {
        const chm_st_tensor *t = &a.file->tensor[i];
        if (t->dtype == CHM_ST_F32) assert_memory_equal(t->data, floats(&b, t->name), t->bytes);
    }
    /* a weight that is no trit times its group's scale */
    const float odd = floats(&a, matrix)[3] != 0 ? floats(&a, matrix)[3] * 1.5f : 0.3f;
    close_file(&a);
    close_file(&b);
    edited("nano.safetensors", "odd.safetensors", NULL, matrix, odd);
    refused(convert("odd.safetensors", "no.b158", NULL, NULL, false, NULL), CHM_E_DATA, matrix, "row 0");
    must(convert("odd.safetensors", "odd.b158", NULL, NULL, true, &r));
    assert_int_equal(r.quantised, 1);
    assert_true(r.rms_error > 0 && r.rms_error < 1);
    edited("nano.safetensors", "odd.safetensors", NULL, matrix, NAN);
    refused(convert("odd.safetensors", "no.b158", NULL, NULL, true, NULL), CHM_E_DATA, matrix, "finite");
    edited("nano.safetensors", "odd.safetensors", NULL, "embedding", 0.123456f);
    refused(convert("odd.safetensors", "no.b158", NULL, NULL, false, NULL), CHM_E_DATA, "'embedding'", "int8");
    /* scales that do not fit their weights are not believed, and how many matrices have such is told */
    static const struct {
        const char *scales, *weights;
        float number;
        uint64_t count;
    } unfit[] = {{"embedding.scale", "embedding", 1.0f, 258 * 128},
                 {"layers.0.mixer.q.scales", "layers.0.mixer.q", NAN, 128 * 128},
                 {"layers.0.mixer.q.scales", "layers.0.mixer.q", 3e38f, 128 * 128}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(unfit); i++) {
        edited("nano.safetensors", "odd.safetensors", NULL, unfit[i].scales, unfit[i].number);
        must(convert("odd.safetensors", "odd.b158", NULL, NULL, false, &r));
        assert_true(r.quantised == 0 && r.rescaled == 1);
        must(convert("odd.b158", "odd2.safetensors", NULL, NULL, false, NULL));
        a = open_file("nano.safetensors"), b = open_file("odd2.safetensors");
        assert_memory_equal(floats(&a, unfit[i].weights), floats(&b, unfit[i].weights), unfit[i].count * sizeof(float));
        close_file(&a);
        close_file(&b);
    }
    edited("nano.safetensors", "odd.safetensors", matrix, NULL, 0);
    refused(convert("odd.safetensors", "no.b158", NULL, NULL, false, NULL), CHM_E_DATA, matrix, "");
    assert_int_equal(access(in_folder("no.b158"), F_OK), -1);
}

static void refusals(void **state) {
    (void)state;
    refused(convert("nano.b158", "nano.bin", NULL, NULL, false, NULL), CHM_E_CONFIG, "nano.bin", ".safetensors");
    refused(convert("nano.b158", "nano.b158", "t2", NULL, false, NULL), CHM_E_CONFIG, "would replace the file", "");
    refused(convert("nano.b158", "nano_experts.b158", "t2", NULL, false, NULL), CHM_E_CONFIG, "would replace",
            "experts of");
    refused(convert("nano.b158", "x.b158", "q4", NULL, false, NULL), CHM_E_CONFIG, "'q4'", "t2, t5 or sherry");
    refused(convert("nano.b158", "x.safetensors", "t2", NULL, false, NULL), CHM_E_CONFIG, "--encoding", "plain");
    refused(convert("nano.b158", "x.b158", NULL, "absmean", false, NULL), CHM_E_CONFIG, "--import", "others");
    refused(convert("nano_experts.b158", "x.b158", "t2", NULL, false, NULL), CHM_E_DATA, "holds the experts", "both");
    /* a card that gives the experts one name whatever the model is called */
    refused(convert("named.b158", "x.b158", "t2", NULL, false, NULL), CHM_E_CONFIG, "its experts would replace",
            "directory");
    must(convert("named.b158", "back/x.b158", "t2", NULL, false, NULL));
    assert_int_equal(access(in_folder("back/the_experts.b158"), F_OK), 0);
    /* every byte is read, so damage is seen */
    char *text;
    size_t n;
    must(chm_read_file(in_folder("nano.b158"), 1 << 30, &text, &n));
    text[n / 2] ^= 4;
    FILE *f = fopen(in_folder("damaged.b158"), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    chm_free(text);
    refused(convert("damaged.b158", "x.safetensors", NULL, NULL, false, NULL), CHM_E_DATA, "damaged.b158",
            "is damaged");
}

/* ---- checkpoints of others ---- */

enum { OUT = 48, IN = 200, SPARSE_IN = 128 };
static int trit_at(int64_t o, int64_t i) {
    return (int)chm_below_at(5, CHM_RANDOM_TEST, 9, (uint64_t)(o * IN + i), 3) - 1;
}
/* One zero in every four. */
static int sparse_at(int64_t o, int64_t i) {
    const uint64_t zero = chm_below_at(6, CHM_RANDOM_TEST, 9, (uint64_t)(o * SPARSE_IN + i / 4 * 4), 4);
    if (zero == (uint64_t)(i % 4)) return 0;
    return chm_below_at(7, CHM_RANDOM_TEST, 9, (uint64_t)(o * SPARSE_IN + i), 2) ? 1 : -1;
}

static uint16_t bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    assert_int_equal(bits & 0xffff, 0); /* numbers chosen so that nothing is rounded */
    return (uint16_t)(bits >> 16);
}

#define PROJ   "model.layers.0.self_attn.q_proj.weight"
#define SPARSE "model.layers.0.mlp.up_proj.weight"
#define NORM   "model.norm.weight"
static const float scale_dense = 1.2265625f, scale_sparse = 0.5f;

/* As BitNet checkpoints are packed: row r is bits 2(r / rows) and up of row r % rows. */
static void write_checkpoint(const char *name, bool with_scale, int damage) {
    static uint8_t dense[OUT / 4][IN], sparse[OUT / 4][SPARSE_IN];
    uint16_t scale[2] = {bf16(scale_dense), bf16(scale_sparse)}, norm[IN];
    memset(dense, 0, sizeof dense);
    memset(sparse, 0, sizeof sparse);
    for (int r = 0; r < OUT; r++) {
        for (int i = 0; i < IN; i++)
            dense[r % (OUT / 4)][i] = (uint8_t)(dense[r % (OUT / 4)][i] | (trit_at(r, i) + 1) << 2 * (r / (OUT / 4)));
        for (int i = 0; i < SPARSE_IN; i++)
            sparse[r % (OUT / 4)][i] =
                (uint8_t)(sparse[r % (OUT / 4)][i] | (sparse_at(r, i) + 1) << 2 * (r / (OUT / 4)));
    }
    if (damage) dense[3][7] |= 0x0c;
    for (int i = 0; i < IN; i++) norm[i] = bf16((float)(i - 100) / 128);
    const chm_st_tensor tensor[] = {
        {.name = PROJ, .dtype = CHM_ST_U8, .rank = 2, .shape = {OUT / 4, IN}, .data = dense[0], .bytes = sizeof dense},
        {.name = SPARSE,
         .dtype = CHM_ST_U8,
         .rank = 2,
         .shape = {OUT / 4, SPARSE_IN},
         .data = sparse[0],
         .bytes = sizeof sparse},
        {.name = NORM, .dtype = CHM_ST_BF16, .rank = 1, .shape = {IN}, .data = (uint8_t *)norm, .bytes = sizeof norm},
        {.name = SPARSE "_scale",
         .dtype = CHM_ST_BF16,
         .rank = 1,
         .shape = {1},
         .data = (uint8_t *)&scale[1],
         .bytes = 2},
        {.name = PROJ "_scale",
         .dtype = CHM_ST_BF16,
         .rank = 1,
         .shape = {1},
         .data = (uint8_t *)&scale[0],
         .bytes = 2},
    };
    const char *const key[] = {"format"}, *const value[] = {"pt"};
    must(chm_safetensors_write(in_folder(name), tensor, with_scale ? 5 : 4, key, value, 1, false));
}

/* The weights of a container, decoded by another conversion. */
static void assert_weights(const char *container, float dense, float sparse) {
    must(convert(container, "plain.safetensors", NULL, NULL, false, NULL));
    struct opened o = open_file("plain.safetensors");
    const float *w = floats(&o, PROJ), *s = floats(&o, SPARSE), *n = floats(&o, NORM);
    for (int r = 0; r < OUT; r++) {
        for (int i = 0; i < IN; i++) assert_true(w[r * IN + i] == (float)trit_at(r, i) * dense);
        for (int i = 0; i < SPARSE_IN; i++) assert_true(s[r * SPARSE_IN + i] == (float)sparse_at(r, i) * sparse);
    }
    for (int i = 0; i < IN; i++) assert_true(n[i] == (float)(i - 100) / 128);
    close_file(&o);
}

static void packed(void **state) {
    (void)state;
    write_checkpoint("bitnet.safetensors", true, 0);
    refused(convert("bitnet.safetensors", "no.b158", NULL, NULL, false, NULL), CHM_E_DATA, "--import", "--card");
    must(convert("bitnet.safetensors", "bitnet.b158", NULL, "autobitlinear", false, NULL));
    assert_weights("bitnet.b158", scale_dense, scale_sparse);
    /* into every encoding without loss, and back */
    must(convert("bitnet.b158", "two.b158", "t2", NULL, false, NULL));
    must(convert("two.b158", "back/bitnet.b158", "t5", NULL, false, NULL));
    assert_same("bitnet.b158", "back/bitnet.b158");
    must(convert("bitnet.b158", "plain.safetensors", NULL, NULL, false, NULL));
    must(convert("plain.safetensors", "back/bitnet.b158", NULL, NULL, false, NULL));
    assert_same("bitnet.b158", "back/bitnet.b158");
    must(convert("bitnet.safetensors", "plain.safetensors", NULL, "autobitlinear", false, NULL));
    must(convert("plain.safetensors", "back/bitnet.b158", NULL, NULL, false, NULL));
    assert_same("bitnet.b158", "back/bitnet.b158");
    refused(convert("bitnet.b158", "no.b158", "sherry", NULL, false, NULL), CHM_E_DATA, PROJ, "--lossy");
    /* the scale that divides */
    must(convert("bitnet.safetensors", "divided.b158", "t2", "bitlinear", false, NULL));
    assert_weights("divided.b158", 1 / scale_dense, 1 / scale_sparse);
    /* listed and verified, and no model */
    char *report = NULL;
    size_t n;
    FILE *out = open_memstream(&report, &n);
    must(chm_inspect(runtime, in_folder("bitnet.b158"), true, CHM_OUTPUT_TEXT, out));
    fclose(out);
    if (!strstr(report, PROJ) || !strstr(report, "[48, 200]") || !strstr(report, "cannot be opened here"))
        fail_msg("inspect says:\n%s", report);
    free(report);
    chm_model *m = NULL;
    assert_int_not_equal(chm_open(runtime, in_folder("bitnet.b158"), &bare, false, &m), CHM_OK);

    write_checkpoint("bad.safetensors", true, 1);
    refused(convert("bad.safetensors", "no.b158", NULL, "autobitlinear", false, NULL), CHM_E_DATA, PROJ, "code 3");
    write_checkpoint("bad.safetensors", false, 0);
    refused(convert("bad.safetensors", "no.b158", NULL, "autobitlinear", false, NULL), CHM_E_DATA, PROJ "_scale",
            "one number");
    refused(convert("bitnet.safetensors", "no.b158", NULL, "absmean", false, NULL), CHM_E_DATA, PROJ, "U8");
    assert_int_equal(access(in_folder("no.b158"), F_OK), -1);
}

/* A packed matrix `a`, and a vector that is called `name`; with `told` what they are is said as a plain file of ours
 * says it. */
static void write_named(const char *path, const char *name, float scale, bool told) {
    static const uint8_t codes[4][64];
    static const float weight[16][64], number[6] = {1, 2, 3, 4, 5, 6};
    char key[64];
    snprintf(key, sizeof key, "encoding.%s", name);
    const char *const keys[] = {"card", "encoding.a", key}, *const values[] = {"{}", "t5;out=16;in=64;group=64", "f32"};
    const chm_st_tensor packed = {"a", CHM_ST_U8, 2, {4, 64}, codes[0], sizeof codes};
    const chm_st_tensor plain = {"a", CHM_ST_F32, 2, {16, 64}, (const uint8_t *)weight[0], sizeof weight};
    const chm_st_tensor tensor[] = {told ? plain : packed,
                                    {name, CHM_ST_F32, 1, {6}, (const uint8_t *)number, sizeof number},
                                    {"a_scale", CHM_ST_F32, 1, {1}, (const uint8_t *)&scale, sizeof scale}};
    must(chm_safetensors_write(in_folder(path), tensor, told ? 2 : 3, keys, values, told ? 3 : 0, false));
}

/* A scale is multiplied by up to 255: finite is not enough. */
static void scales_of_others(void **state) {
    (void)state;
    static const float unfit[] = {3e38f, 1.4e36f, 0, -1, NAN};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(unfit); i++) {
        write_named("scaled.safetensors", "b", unfit[i], false);
        refused(convert("scaled.safetensors", "no.b158", NULL, "autobitlinear", false, NULL), CHM_E_DATA, "'a_scale'",
                "above 0 and at most 1.32923e+36");
    }
    write_named("scaled.safetensors", "b", 1.3e36f, false);
    must(convert("scaled.safetensors", "scaled.b158", NULL, "autobitlinear", false, NULL));
    must(convert("scaled.b158", "plain.safetensors", NULL, NULL, false, NULL));
}

/* Names of others that mean something here are refused, and not found to be there twice while they are written. */
static void names_of_others(void **state) {
    (void)state;
    static const char *const taken[] = {"a.codes", "a.scales", "tokenizer.file", "_pad.0"};
    static const char *const said[] = {"'a' is stored in", "'a' is stored in", "the tokenizer's file", "padding"};
    char quoted[32];
    for (size_t i = 0; i < CHM_ARRAY_COUNT(taken); i++) {
        snprintf(quoted, sizeof quoted, "tensor '%s'", taken[i]);
        write_named("named.safetensors", taken[i], 1, false);
        refused(convert("named.safetensors", "no.b158", NULL, "autobitlinear", false, NULL), CHM_E_DATA, quoted,
                said[i]);
        refused(convert("named.safetensors", "no.safetensors", NULL, "bitlinear", false, NULL), CHM_E_DATA, quoted,
                said[i]);
    }
    write_named("named.safetensors", "a.codes", 1, true);
    refused(convert("named.safetensors", "no.b158", NULL, NULL, false, NULL), CHM_E_DATA, "tensor 'a.codes'",
            "'a' is stored in");
    assert_int_equal(access(in_folder("no.b158"), F_OK), -1);
    assert_int_equal(access(in_folder("no.safetensors"), F_OK), -1);
    /* and those that do not are taken, to the end of the way */
    static const char *const free_names[] = {"a.q", "a.codes.x", "A.codes", "tokenizer.files", "codes"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(free_names); i++) {
        write_named("named.safetensors", free_names[i], 1, false);
        must(convert("named.safetensors", "named_a.b158", NULL, "autobitlinear", false, NULL));
        must(convert("named_a.b158", "plain.safetensors", NULL, NULL, false, NULL));
        must(convert("plain.safetensors", "back/named_a.b158", NULL, NULL, false, NULL));
        assert_same("named_a.b158", "back/named_a.b158");
    }
}

/* A matrix that fits sherry goes through all three encodings. */
static void packed_sparse(void **state) {
    (void)state;
    write_checkpoint("bitnet.safetensors", true, 0);
    edited("bitnet.safetensors", "one.safetensors", "q_proj.weight", NULL, 0);
    edited("one.safetensors", "sparse.safetensors", "q_proj.weight_scale", NULL, 0);
    must(convert("sparse.safetensors", "five.b158", NULL, "autobitlinear", false, NULL));
    must(convert("five.b158", "third.b158", "sherry", NULL, false, NULL));
    must(convert("third.b158", "two.b158", "t2", NULL, false, NULL));
    must(convert("two.b158", "back/third.b158", "sherry", NULL, false, NULL));
    assert_same("third.b158", "back/third.b158");
    must(convert("two.b158", "back/five.b158", "t5", NULL, false, NULL));
    assert_same("five.b158", "back/five.b158");
    must(convert("third.b158", "plain.safetensors", NULL, NULL, false, NULL));
    must(convert("plain.safetensors", "back/third.b158", NULL, NULL, false, NULL));
    assert_same("third.b158", "back/third.b158");
}

static void master_weights(void **state) {
    (void)state;
    enum { N = 64 * 130 };
    static float value[N];
    static uint16_t stored[N];
    double sum = 0;
    chm_normals(4, CHM_RANDOM_TEST, 3, N, value);
    for (int i = 0; i < N; i++) {
        memcpy(&stored[i], (uint8_t *)&value[i] + 2, 2); /* cut to bf16 */
        const uint32_t bits = (uint32_t)stored[i] << 16;
        memcpy(&value[i], &bits, 4);
        sum += fabs((double)value[i]);
    }
    const chm_st_tensor tensor[] = {{.name = "a.q_proj.weight",
                                     .dtype = CHM_ST_BF16,
                                     .rank = 2,
                                     .shape = {64, 130},
                                     .data = (uint8_t *)stored,
                                     .bytes = 2 * N},
                                    {.name = "embed_tokens.weight",
                                     .dtype = CHM_ST_F32,
                                     .rank = 2,
                                     .shape = {64, 130},
                                     .data = (uint8_t *)value,
                                     .bytes = 4 * N}};
    must(chm_safetensors_write(in_folder("master.safetensors"), tensor, 2, NULL, NULL, 0, false));
    must(convert("master.safetensors", "master.b158", NULL, "absmean", false, NULL));
    must(convert("master.b158", "plain.safetensors", NULL, NULL, false, NULL));
    struct opened o = open_file("plain.safetensors");
    const float *w = floats(&o, "a.q_proj.weight"), mean = (float)(sum / N);
    assert_memory_equal(floats(&o, "embed_tokens.weight"), value, sizeof value);
    float size = 0;
    for (int i = 0; i < N; i++) {
        size = fmaxf(size, fabsf(w[i]));
        const float want = fminf(fmaxf(rintf(value[i] * (1 / mean)), -1), 1);
        if (w[i] != 0 ? want != (w[i] > 0 ? 1 : -1) : want != 0) fail_msg("weight %d: %g of %g", i, w[i], value[i]);
        assert_true(w[i] == 0 || fabsf(w[i]) == size);
    }
    uint32_t bits;
    memcpy(&bits, &size, sizeof bits);
    assert_int_equal(bits & 0xffff, 0); /* a number of bf16, as near the mean as these are */
    assert_true(fabsf(size / mean - 1) <= 1.0f / 256);
    close_file(&o);
    refused(convert("master.safetensors", "no.b158", NULL, "bitlinear", false, NULL), CHM_E_DATA, "no tensor is packed",
            "absmean");
}

static int set_up(void **state) {
    (void)state;
    const char *root = getenv("CHM_SOURCE_ROOT");
    const chm_runtime_options options = {.size = sizeof options, .threads = 2, .verbosity = -1};
    snprintf(folder, sizeof folder, "/tmp/chimera-convert-XXXXXX");
    snprintf(card, sizeof card, "%s/etc/chimera-nano.json", root ? root : ".");
    if (!mkdtemp(folder) || mkdir(in_folder("back"), 0777) || chm_runtime_create(&options, &runtime)) return -1;
    const char *const set[] = {"files.moe=the_experts.b158"};
    const chm_overlay named = {.size = sizeof named, .no_environment = 1, .set = set, .set_count = 1};
    if (chm_init_model(runtime, card, &bare, 5, in_folder("nano.b158")) ||
        chm_init_model(runtime, card, &named, 5, in_folder("named.b158"))) {
        print_error("%s\n", chm_error());
        return -1;
    }
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char command[128];
    chm_runtime_destroy(runtime);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encodings),       cmocka_unit_test(sherry),
        cmocka_unit_test(bits_per_weight), cmocka_unit_test(plain),
        cmocka_unit_test(refusals),        cmocka_unit_test(packed),
        cmocka_unit_test(packed_sparse),   cmocka_unit_test(master_weights),
        cmocka_unit_test(names_of_others), cmocka_unit_test(scales_of_others),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
