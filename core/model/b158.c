/* b158.c: packed parameters in a safetensors file, written and mapped (b158.h says how they lie there). */
#include "model/b158.h"
#include "graph/encoding.h"

#include <assert.h>
#include <float.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { INT8_BLOCK = 64, ALIGNMENT = 64, HASH_TEXT = 17, ENCODING_TEXT = 120 };

/* ---- how a parameter lies in the file ---- */

/* One tensor of a parameter. */
struct piece {
    const char *suffix;
    enum chm_st_dtype dtype;
    int rank;
    int64_t shape[8];
};

/* The tensors of a parameter, at most two; returns how many. */
static int pieces_of(const chm_param *p, int32_t encoding, int64_t group, struct piece piece[2]) {
    memset(piece, 0, 2 * sizeof *piece);
    switch (p->format) {
    case CHM_FORMAT_TERNARY: {
        const int64_t tiles = chm_ternary_tiles(p->out);
        piece[0] = (struct piece){".codes", CHM_ST_U8, 2, {tiles, chm_ternary_code_stride(encoding, p->in)}};
        piece[1] = (struct piece){".scales", CHM_ST_U8, 2, {tiles, chm_ternary_scale_stride(p->in, group)}};
        return 2;
    }
    case CHM_FORMAT_INT8:
        piece[0] = (struct piece){".q", CHM_ST_I8, 2, {p->out, (p->in + INT8_BLOCK - 1) / INT8_BLOCK * INT8_BLOCK}};
        piece[1] = (struct piece){".scale", CHM_ST_F32, 1, {p->out}};
        return 2;
    case CHM_FORMAT_F32:
        break;
    }
    piece[0] = (struct piece){"", CHM_ST_F32, p->rank, {0}};
    memcpy(piece[0].shape, p->shape, sizeof p->shape);
    return 1;
}

static void encoding_of(const chm_param *p, int32_t encoding, int64_t group, char text[ENCODING_TEXT]) {
    switch (p->format) {
    case CHM_FORMAT_TERNARY:
        snprintf(text, ENCODING_TEXT, "%s;out=%" PRId64 ";in=%" PRId64 ";group=%" PRId64, chm_encoding_name(encoding),
                 p->out, p->in, group);
        return;
    case CHM_FORMAT_INT8:
        snprintf(text, ENCODING_TEXT, "i8;out=%" PRId64 ";in=%" PRId64 ";block=%d", p->out, p->in, (int)INT8_BLOCK);
        return;
    case CHM_FORMAT_F32:
        break;
    }
    snprintf(text, ENCODING_TEXT, "f32");
}

static void hash_text(const void *data, uint64_t bytes, char text[HASH_TEXT]) {
    snprintf(text, HASH_TEXT, "%016" PRIx64, chm_hash64(data, (size_t)bytes));
}

const char *chm_b158_encoding(chm_arena *arena, const chm_param *p) {
    char *text = chm_arena_take(arena, ENCODING_TEXT);
    if (text) encoding_of(p, p->stored, p->ternary.group, text);
    return text;
}

/* ---- writing ---- */

/* Text that lives as long as the arena; NULL when out of memory. */
static const char *keep(chm_arena *arena, const char *format, ...) CHM_PRINTF(2, 3);
static const char *keep(chm_arena *arena, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : chm_arena_take(arena, (size_t)n + 1);
    if (!text) return NULL;
    va_start(args, format);
    vsnprintf(text, (size_t)n + 1, format, args);
    va_end(args);
    return text;
}

int chm_b158_unfit(const char *path, const char *param, const struct chm_misfit *misfit) {
    return chm_fail(CHM_E_DATA,
                    "%s: parameter '%s' cannot be stored as sherry: of row %" PRId64 " the four weights from %" PRId64
                    " on, and %" PRId64
                    " other fours, have not exactly one zero; train with quantization.sherry_mode.enabled, "
                    "or convert with --lossy",
                    path, param, misfit->row, misfit->input, misfit->quads - 1);
}

/* The codes of a ternary parameter in the encoding of the file, which the arena keeps where they are made here. */
static int stored_codes(const char *path, chm_arena *arena, const chm_param *p, const void **out) {
    const struct chm_ternary *w = &p->ternary;
    const int64_t tiles = chm_ternary_tiles(w->out);
    struct chm_misfit misfit = {0};
    *out = w->codes;
    if (!w->codes || w->encoding == p->stored) return CHM_OK;
    uint8_t *codes = chm_arena_take(arena, (size_t)(tiles * chm_ternary_code_stride(p->stored, w->in)));
    if (!codes) return CHM_E_MEMORY;
    chm_ternary_repack(w, p->stored, 0, tiles, codes, &misfit);
    *out = codes;
    return misfit.quads ? chm_b158_unfit(path, p->name, &misfit) : CHM_OK;
}

/* Where the bytes of a piece are. */
static int stored(const char *path, chm_arena *arena, const chm_param *p, int piece, const void **out) {
    switch (p->format) {
    case CHM_FORMAT_TERNARY:
        if (piece == 0) return stored_codes(path, arena, p, out);
        *out = p->ternary.scales;
        return CHM_OK;
    case CHM_FORMAT_INT8:
        *out = piece == 0 ? (const void *)p->int8.q : p->int8.scale;
        return CHM_OK;
    case CHM_FORMAT_F32:
        break;
    }
    *out = p->value;
    return CHM_OK;
}

struct entry {
    chm_st_tensor tensor;
    int order;
};

static int largest_first(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->tensor.bytes != y->tensor.bytes) return x->tensor.bytes > y->tensor.bytes ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

struct metadata {
    const char **key, **value;
    int count;
    bool failed; /* a key or value could not be kept */
};

static void add_meta(struct metadata *m, const char *key, const char *value) {
    m->failed = m->failed || !key || !value;
    m->key[m->count] = key;
    m->value[m->count++] = value;
}

int chm_b158_write(const char *path, chm_param *const *param, int params, const char *card_json,
                   const chm_b158_note *note, int notes) {
    return chm_b158_write_with(path, param, params, card_json, note, notes, NULL, 0);
}

uint64_t chm_b158_fingerprint(const char *const *key, const char *const *value, int count) {
    uint64_t sum = 0; /* of hashes, so that the order in which a reader lists them does not matter */
    for (int i = 0; i < count; i++)
        if (!strncmp(key[i], "hash.", 5) || !strncmp(key[i], "encoding.", 9))
            sum += chm_hash64_seed(value[i], strlen(value[i]), chm_hash64(key[i], strlen(key[i])));
    return sum;
}

int chm_b158_write_with(const char *path, chm_param *const *param, int params, const char *card_json,
                        const chm_b158_note *note, int notes, const void *tokenizer, uint64_t tokenizer_bytes) {
    chm_writer writer;
    const int status =
        chm_b158_begin(&writer, path, param, params, card_json, note, notes, tokenizer, tokenizer_bytes, NULL);
    return status ? status : chm_writer_commit(&writer);
}

int chm_b158_begin(chm_writer *writer, const char *path, chm_param *const *param, int params, const char *card_json,
                   const chm_b158_note *note, int notes, const void *tokenizer, uint64_t tokenizer_bytes,
                   uint64_t *fingerprint) {
    chm_arena arena;
    chm_arena_init(&arena);
    int status = CHM_OK, tensors = 0;
    int64_t total = 0, embedding = 0;
    char hash[HASH_TEXT];
    const size_t most = 8 + 3 * (size_t)params + (size_t)notes;
    struct entry *entry = chm_alloc((2 * (size_t)params + 1) * sizeof *entry);
    chm_st_tensor *tensor = chm_alloc((2 * (size_t)params + 1) * sizeof *tensor);
    struct metadata meta = {chm_alloc(most * sizeof *meta.key), chm_alloc(most * sizeof *meta.value), 0, false};
    if (!entry || !tensor || !meta.key || !meta.value) {
        status = CHM_E_MEMORY;
        goto out;
    }
    for (int i = 0; i < params; i++) {
        const chm_param *p = param[i];
        struct piece piece[2];
        const int pieces = pieces_of(p, p->stored, p->ternary.group, piece);
        total += p->count;
        if (p->role == CHM_ROLE_EMBEDDING) embedding += p->count;
        for (int j = 0; j < pieces; j++, tensors++) {
            chm_st_tensor *t = &entry[tensors].tensor;
            t->name = keep(&arena, "%s%s", p->name, piece[j].suffix);
            if (!t->name) {
                status = CHM_E_MEMORY;
                goto out;
            }
            t->dtype = piece[j].dtype;
            t->rank = piece[j].rank;
            memcpy(t->shape, piece[j].shape, sizeof t->shape);
            const void *data;
            status = stored(path, &arena, p, j, &data);
            if (status) goto out;
            t->data = data;
            t->bytes = chm_st_dtype_bytes(t->dtype);
            for (int d = 0; d < t->rank; d++) t->bytes *= (uint64_t)t->shape[d];
            entry[tensors].order = tensors;
            if (!t->data) {
                status = chm_fail(CHM_E_INTERNAL, "%s: parameter '%s' was never %s", path, p->name,
                                  p->format == CHM_FORMAT_F32 ? "given a value" : "quantised");
                goto out;
            }
        }
    }
    if (tokenizer) {
        entry[tensors].tensor = (chm_st_tensor){.name = CHM_B158_TOKENIZER,
                                                .dtype = CHM_ST_U8,
                                                .rank = 1,
                                                .shape = {(int64_t)tokenizer_bytes},
                                                .data = tokenizer,
                                                .bytes = tokenizer_bytes};
        entry[tensors].order = tensors;
        tensors++;
    }
    if (tensors) qsort(entry, (size_t)tensors, sizeof *entry, largest_first);

    add_meta(&meta, "format", CHM_B158_FORMAT);
    add_meta(&meta, "format_version", CHM_B158_VERSION);
    add_meta(&meta, "parameters", keep(&arena, "%" PRId64, total));
    add_meta(&meta, "embedding_parameters", keep(&arena, "%" PRId64, embedding));
    for (int i = 0; i < notes; i++) add_meta(&meta, note[i].key, note[i].value);
    for (int i = 0; i < params; i++)
        add_meta(&meta, keep(&arena, "encoding.%s", param[i]->name), chm_b158_encoding(&arena, param[i]));
    for (int i = 0; i < tensors; i++) {
        tensor[i] = entry[i].tensor;
        hash_text(tensor[i].data, tensor[i].bytes, hash);
        add_meta(&meta, keep(&arena, "hash.%s", tensor[i].name), keep(&arena, "%s", hash));
    }
    hash_text(card_json, strlen(card_json), hash);
    add_meta(&meta, "card_hash", keep(&arena, "%s", hash));
    add_meta(&meta, "card", card_json);
    add_meta(&meta, CHM_ST_HEADER_HASH, "................");
    if (meta.failed) {
        status = CHM_E_MEMORY;
        goto out;
    }
    if (fingerprint) *fingerprint = chm_b158_fingerprint(meta.key, meta.value, meta.count);
    status = chm_safetensors_begin(writer, path, tensor, tensors, meta.key, meta.value, meta.count, true);
out:
    chm_free(entry);
    chm_free(tensor);
    chm_free((void *)meta.key);
    chm_free((void *)meta.value);
    chm_arena_finish(&arena);
    return status;
}

/* ---- reading ---- */

int chm_b158_check(const char *name, const chm_safetensors *file) {
    const char *format = chm_safetensors_meta(file, "format"), *version = chm_safetensors_meta(file, "format_version");
    if (!format || strcmp(format, CHM_B158_FORMAT))
        return chm_fail(CHM_E_DATA,
                        "%s: a safetensors file but no model of ours: expected __metadata__ with format "
                        "'" CHM_B158_FORMAT "' (`chimera train` and `chimera init` write such files)",
                        name);
    if (!version || strcmp(version, CHM_B158_VERSION))
        return chm_fail(CHM_E_DATA, "%s: a .b158 of format_version '%s'; this Chimera reads version " CHM_B158_VERSION,
                        name, version ? chm_quote(version).text : "");
    const char *card = chm_safetensors_meta(file, "card"), *expected = chm_safetensors_meta(file, "card_hash");
    if (!card || !expected)
        return chm_fail(CHM_E_DATA, "%s: __metadata__ lacks %s, expected the model's card and its hash", name,
                        card ? "card_hash" : "card");
    char hash[HASH_TEXT];
    hash_text(card, strlen(card), hash);
    if (strcmp(hash, expected))
        return chm_fail(CHM_E_DATA,
                        "%s: the card in the file is damaged or was edited: its hash is %s, expected %s (run-time keys "
                        "are changed with --set or an ini file)",
                        name, hash, chm_quote(expected).text);
    if (!chm_safetensors_sealed(file))
        return chm_fail(CHM_E_DATA,
                        "%s: the header of the file is damaged or was edited: its hash is not what " CHM_ST_HEADER_HASH
                        " in __metadata__ says",
                        name);
    return CHM_OK;
}

int chm_b158_verify_tensor(const char *name, const chm_safetensors *file, const chm_st_tensor *t) {
    if (chm_b158_is_padding(t->name)) {
        for (uint64_t i = 0; i < t->bytes; i++)
            if (t->data[i])
                return chm_fail(CHM_E_DATA,
                                "%s: tensor '%s': byte %" PRIu64 " is %u, expected zeros: the file is damaged", name,
                                chm_quote(t->name).text, i, t->data[i]);
        return CHM_OK;
    }
    char hash[HASH_TEXT];
    char *key = chm_format("hash.%s", t->name);
    if (!key) return CHM_E_MEMORY;
    const char *expected = chm_safetensors_meta(file, key);
    chm_free(key);
    if (!expected)
        return chm_fail(CHM_E_DATA, "%s: tensor '%s' has no hash in __metadata__, so it cannot be verified", name,
                        chm_quote(t->name).text);
    hash_text(t->data, t->bytes, hash);
    if (strcmp(hash, expected))
        return chm_fail(CHM_E_DATA, "%s: tensor '%s' is damaged: its hash is %s, expected %s", name,
                        chm_quote(t->name).text, hash, chm_quote(expected).text);
    return CHM_OK;
}

static int check_ternary(const char *name, const chm_param *p, bool verify) {
    const struct chm_ternary *w = &p->ternary;
    const int64_t tiles = chm_ternary_tiles(w->out), stride = chm_ternary_scale_stride(w->in, w->group);
    for (int64_t tile = 0; tile < tiles; tile++) {
        float scale[16];
        memcpy(scale, w->scales + tile * stride, sizeof scale);
        for (int r = 0; r < 16; r++)
            if (!chm_b158_sane_scale(scale[r]))
                return chm_fail(CHM_E_DATA,
                                "%s: tensor '%s.scales': the scale of row %" PRId64
                                " is %g, expected a number 0..%g: the file is damaged",
                                name, p->name, tile * 16 + r, (double)scale[r], (double)CHM_B158_SCALE_MAX);
    }
    const int64_t wrong = verify ? chm_ternary_unsound(w, 0, tiles) : -1;
    if (wrong >= 0)
        return chm_fail(CHM_E_DATA, "%s: tensor '%s.codes': byte %" PRId64 " is 0x%02x, which no codes of %s make",
                        name, p->name, wrong, w->codes[wrong], chm_encoding_name(w->encoding));
    return CHM_OK;
}

static int check_int8(const char *name, const chm_param *p, bool verify) {
    const struct chm_int8_matrix *w = &p->int8;
    for (int64_t o = 0; o < w->out; o++)
        if (!chm_b158_sane_scale(w->scale[o]))
            return chm_fail(CHM_E_DATA,
                            "%s: tensor '%s.scale': the scale of row %" PRId64
                            " is %g, expected a number 0..%g: the file is damaged",
                            name, p->name, o, (double)w->scale[o], (double)CHM_B158_SCALE_MAX);
    const int64_t bytes = verify ? w->out * w->blocks * INT8_BLOCK : 0;
    for (int64_t i = 0; i < bytes; i++)
        if (w->q[i] == INT8_MIN)
            return chm_fail(CHM_E_DATA, "%s: tensor '%s.q': number %" PRId64 " is -128; expected -127..127", name,
                            p->name, i);
    return CHM_OK;
}

static int check_f32(const char *name, const chm_param *p, bool verify) {
    for (int64_t i = 0; verify && i < p->count; i++)
        if (!(p->value[i] >= -FLT_MAX && p->value[i] <= FLT_MAX))
            return chm_fail(CHM_E_DATA, "%s: tensor '%s': number %" PRId64 " is %g, expected finite numbers", name,
                            p->name, i, (double)p->value[i]);
    return CHM_OK;
}

/* The tensor of a piece, if it is there and as it must be. */
static int find_piece(const char *name, const chm_safetensors *file, const chm_param *p, const struct piece *piece,
                      const chm_st_tensor **out) {
    char have[220], want[220];
    chm_st_tensor wanted = {.dtype = piece->dtype, .rank = piece->rank};
    memcpy(wanted.shape, piece->shape, sizeof wanted.shape);
    chm_st_shape_text(&wanted, want, sizeof want);
    char *key = chm_format("%s%s", p->name, piece->suffix);
    if (!key) return CHM_E_MEMORY;
    const chm_st_tensor *t = chm_safetensors_find(file, key);
    chm_free(key);
    if (!t)
        return chm_fail(CHM_E_DATA, "%s: tensor '%s%s' is missing, expected %s %s", name, p->name, piece->suffix,
                        chm_st_dtype_name(piece->dtype), want);
    chm_st_shape_text(t, have, sizeof have);
    if (t->dtype != piece->dtype || strcmp(have, want))
        return chm_fail(CHM_E_DATA, "%s: tensor '%s' is %s %s, expected %s %s", name, t->name,
                        chm_st_dtype_name(t->dtype), have, chm_st_dtype_name(piece->dtype), want);
    if ((uintptr_t)t->data % ALIGNMENT)
        return chm_fail(
            CHM_E_DATA,
            "%s: tensor '%s' does not begin on a multiple of %d bytes, as every tensor of a .b158 does (was "
            "the file written by another tool?)",
            name, t->name, (int)ALIGNMENT);
    *out = t;
    return CHM_OK;
}

static int bind_param(const char *name, const chm_safetensors *file, chm_param *p, int64_t group, bool verify,
                      bool *used) {
    struct piece piece[2];
    const chm_st_tensor *t[2] = {NULL, NULL};
    char want[ENCODING_TEXT];
    int32_t encoding = p->stored;
    char *key = chm_format("encoding.%s", p->name);
    if (!key) return CHM_E_MEMORY;
    const char *have = chm_safetensors_meta(file, key);
    chm_free(key);
    if (have && p->format == CHM_FORMAT_TERNARY) { /* any will do: the weights are the same */
        const int32_t found = chm_encoding_find(have, strcspn(have, ";"));
        if (found >= 0) encoding = found;
    }
    const int pieces = pieces_of(p, encoding, group, piece);
    encoding_of(p, encoding, group, want);
    if (!have)
        return chm_fail(CHM_E_DATA, "%s: parameter '%s', which the card asks for, is not in the file (expected '%s')",
                        name, p->name, want);
    if (strcmp(have, want))
        return chm_fail(CHM_E_DATA,
                        "%s: parameter '%s' is stored as '%s', but the card and its overrides ask for '%s': --set, ini "
                        "and CHIMERA_* cannot change the form of trained weights",
                        name, p->name, chm_quote(have).text, want);
    for (int i = 0; i < pieces; i++) {
        int status = find_piece(name, file, p, &piece[i], &t[i]);
        assert(status || t[i]);
        /* scales are few, and one that is wrong spoils a whole group */
        const bool scales = p->format != CHM_FORMAT_F32 && i == 1;
        if (!status && (verify || scales)) status = chm_b158_verify_tensor(name, file, t[i]);
        if (!status && used[t[i] - file->tensor])
            status =
                chm_fail(CHM_E_DATA, "%s: tensor '%s' belongs to two parameters", name, chm_quote(t[i]->name).text);
        if (status) return status;
        used[t[i] - file->tensor] = true;
    }
    switch (p->format) {
    case CHM_FORMAT_TERNARY:
        p->ternary = (struct chm_ternary){t[0]->data, t[1]->data, p->out, p->in, group, encoding, 0};
        p->stored = encoding;
        return check_ternary(name, p, verify);
    case CHM_FORMAT_INT8:
        p->int8 = (struct chm_int8_matrix){(const int8_t *)t[0]->data, (const float *)t[1]->data, p->out, p->in,
                                           piece[0].shape[1] / INT8_BLOCK};
        return check_int8(name, p, verify);
    case CHM_FORMAT_F32:
        break;
    }
    p->value = (float *)(uintptr_t)t[0]->data; /* read-only: nothing writes to a model that is not trainable */
    return check_f32(name, p, verify);
}

/* ";key=N" with N in 1..2^31-1 */
static bool read_field(const char **at, const char *key, int64_t *value) {
    const size_t n = strlen(key);
    if (strncmp(*at, key, n)) return false;
    const char *c = *at + n;
    for (*value = 0; *c >= '0' && *c <= '9' && *value <= INT32_MAX; c++) *value = *value * 10 + (*c - '0');
    *at = c;
    return *value >= 1 && *value <= INT32_MAX;
}

bool chm_b158_is_encoding(const char *key) { return !strncmp(key, "encoding.", 9); }

int chm_b158_describe(const char *path, const chm_safetensors *file, int meta, chm_param *p, int64_t *group) {
    const char *name = file->meta_key[meta] + 9, *text = file->meta_value[meta], *at;
    int64_t number = 0;
    p->name = (char *)(uintptr_t)name; /* borrowed, never written */
    p->role = !strcmp(name, "embedding") || !strcmp(name, "head") ? CHM_ROLE_EMBEDDING : CHM_ROLE_FULL;
    if (!strcmp(text, "f32")) {
        const chm_st_tensor *t = chm_safetensors_find(file, name);
        p->format = CHM_FORMAT_F32;
        if (!t || t->rank > (int)CHM_ARRAY_COUNT(p->shape))
            return chm_fail(CHM_E_DATA, "%s: parameter '%s' should be a tensor F32 of 0 to 4 sizes", path,
                            chm_quote(name).text);
        p->rank = t->rank;
        memcpy(p->shape, t->shape, sizeof p->shape);
        p->count = (int64_t)(t->bytes / chm_st_dtype_bytes(t->dtype));
        p->out = p->rank ? p->shape[0] : 1;
        p->in = p->out ? p->count / p->out : 0;
        return CHM_OK;
    }
    bool sound = false;
    const size_t length = strcspn(text, ";");
    const int32_t encoding = chm_encoding_find(text, length);
    at = text + length;
    if (encoding >= 0) {
        p->stored = encoding;
        p->format = CHM_FORMAT_TERNARY;
        sound = read_field(&at, ";out=", &p->out) && read_field(&at, ";in=", &p->in) &&
                read_field(&at, ";group=", &number) && !*at && number % 64 == 0;
        if (sound && *group && number != *group)
            return chm_fail(CHM_E_DATA, "%s: parameter '%s' has groups of %" PRId64 ", others of %" PRId64, path,
                            chm_quote(name).text, number, *group);
        if (sound) *group = number;
    } else if (!strncmp(text, "i8", 2)) {
        p->format = CHM_FORMAT_INT8;
        sound = read_field(&at, ";out=", &p->out) && read_field(&at, ";in=", &p->in) &&
                read_field(&at, ";block=", &number) && !*at;
    }
    if (!sound)
        return chm_fail(
            CHM_E_DATA,
            "%s: parameter '%s' has the encoding '%s'; this Chimera reads 't5;out=O;in=I;group=G' (or t2, sherry), "
            "'i8;out=O;in=I;block=64' and 'f32'",
            path, chm_quote(name).text, chm_quote(text).text);
    p->rank = 2;
    p->shape[0] = p->out;
    p->shape[1] = p->in;
    p->count = p->out * p->in;
    p->ternary.group = *group;
    return CHM_OK;
}

const char *chm_b158_form(const chm_param *p) {
    return p->format == CHM_FORMAT_TERNARY ? chm_encoding_name(p->stored) : p->format == CHM_FORMAT_INT8 ? "i8" : "f32";
}

static bool is_among(chm_param *const *param, int params, const char *name, size_t n) {
    for (int i = 0; i < params; i++)
        if (!strncmp(param[i]->name, name, n) && !param[i]->name[n]) return true;
    return false;
}

/* Whether a name is that of a low-rank correction of one of these linears, which the card does without. */
static bool is_unused_correction(chm_param *const *param, int params, const char *name) {
    static const char *const suffix[] = {"_hgf_a", "_hgf_b", "_hgf_gate"};
    const size_t n = strlen(name);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(suffix); i++) {
        const size_t tail = strlen(suffix[i]);
        if (n > tail && !strcmp(name + n - tail, suffix[i]))
            return is_among(param, params, name, n - tail) && !is_among(param, params, name, n);
    }
    return false;
}

/* Corrections that the card's overrides turn off are checked like all else, and not used. */
static int leave_out(const char *path, const chm_safetensors *file, chm_param *const *param, int params, int64_t group,
                     bool verify, bool *used, int64_t *total) {
    for (int i = 0; i < file->metas; i++) {
        const char *key = file->meta_key[i];
        chm_param p = {0};
        if (!chm_b158_is_encoding(key) || !is_unused_correction(param, params, key + 9)) continue;
        int status = chm_b158_describe(path, file, i, &p, &group);
        if (!status) status = bind_param(path, file, &p, group, verify, used);
        if (status) return status;
        *total += p.count;
    }
    return CHM_OK;
}

int chm_b158_bind(const char *name, const chm_safetensors *file, chm_param *const *param, int params, int64_t group,
                  bool verify) {
    int status = CHM_OK;
    int64_t total = 0;
    char text[32];
    bool *used = chm_alloc((size_t)file->count * sizeof *used);
    if (!used) return CHM_E_MEMORY;
    for (int i = 0; i < params; i++) {
        status = bind_param(name, file, param[i], group, verify, used);
        if (status) goto out;
        total += param[i]->count; /* no more than the file has room for */
    }
    if ((status = leave_out(name, file, param, params, group, verify, used, &total))) goto out;
    for (int i = 0; i < file->count; i++) {
        const chm_st_tensor *t = &file->tensor[i];
        if (used[i]) continue;
        const bool known = chm_b158_is_padding(t->name) || !strcmp(t->name, CHM_B158_TOKENIZER);
        if (!known || t->dtype != CHM_ST_U8) {
            status = chm_fail(CHM_E_DATA, "%s: tensor '%s' belongs to no parameter of the card", name,
                              chm_quote(t->name).text);
            goto out;
        }
        status = verify ? chm_b158_verify_tensor(name, file, t) : CHM_OK;
        if (status) goto out;
    }
    const char *stated = chm_safetensors_meta(file, "parameters");
    snprintf(text, sizeof text, "%" PRId64, total);
    if (!stated || strcmp(stated, text))
        status = chm_fail(CHM_E_DATA, "%s: __metadata__ says '%s' parameters, its tensors hold %s: the file is damaged",
                          name, stated ? chm_quote(stated).text : "", text);
out:
    chm_free(used);
    return status;
}
