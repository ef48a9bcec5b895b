/*
 * safetensors.c: reading and writing safetensors files: a u64 header length, a JSON header, the tensors' bytes.
 * https://github.com/huggingface/safetensors#format
 *
 * A header comes from strangers, so nothing of it is believed: every tensor must be of a known type, as long as its
 * shape says, and begin where the one before it ended, from the first byte after the header to the last of the file.
 */
#include "base/json.h"
#include "model/b158.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* HEADER_LIMIT: ten times what the largest files need; as JSON it may take forty times that of memory. */
enum { HEADER_LIMIT = 16 << 20, MAX_RANK = 8, ALIGNMENT = 64 };

#define EXPECTED "expected a safetensors file (a .b158 is one): the header's length in 8 bytes, a JSON header, tensors"

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [CHM_ST_U8] = {"U8", 1},   [CHM_ST_I8] = {"I8", 1},   [CHM_ST_F32] = {"F32", 4},
    [CHM_ST_F64] = {"F64", 8}, [CHM_ST_I32] = {"I32", 4}, [CHM_ST_I64] = {"I64", 8},
    [CHM_ST_U64] = {"U64", 8}, [CHM_ST_F16] = {"F16", 2}, [CHM_ST_BF16] = {"BF16", 2},
};
#define DTYPE_NAMES "U8, I8, F32, F64, I32, I64, U64, F16, BF16"

const char *chm_st_dtype_name(enum chm_st_dtype type) { return dtypes[type].name; }
size_t chm_st_dtype_bytes(enum chm_st_dtype type) { return dtypes[type].bytes; }

chm_quoted chm_quote(const char *name) {
    chm_quoted q;
    size_t n = 0;
    for (; n < 80 && name[n]; n++) {
        unsigned char c = (unsigned char)name[n];
        q.text[n] = c < 32 || c > 126 ? '?' : (char)c;
    }
    if (name[n]) {
        memcpy(q.text + n, "...", 3);
        n += 3;
    }
    q.text[n] = 0;
    return q;
}

void chm_st_shape_text(const chm_st_tensor *t, char *text, size_t n) {
    size_t at = 0;
    if (n > 0) text[0] = 0;
    for (int i = 0; i <= t->rank && at < n; i++) {
        int wrote = i < t->rank ? snprintf(text + at, n - at, "%s%" PRId64, i ? ", " : "[", t->shape[i])
                                : snprintf(text + at, n - at, "%s", t->rank ? "]" : "[]");
        if (wrote < 0) return;
        at += (size_t)wrote;
    }
}

/* What the public struct stands in. */
struct reader {
    chm_safetensors file;
    json_t *root; /* names and metadata are its strings */
    int *by_name; /* tensor numbers, names ascending */
};

bool chm_b158_is_padding(const char *tensor_name) { return !strncmp(tensor_name, "_pad.", 5); }

/* ---- reading ---- */

/* What a file that is no safetensors file seems to be, or NULL. */
static const char *foreign(const uint8_t *data, uint64_t bytes) {
    static const struct {
        const char *magic;
        size_t bytes;
        const char *what;
    } known[] = {
        {"GGUF", 4, "a GGUF file"},
        {"PK\003\004", 4, "a ZIP archive (a PyTorch checkpoint or .npz?)"},
        {"\x93NUMPY", 6, "a NumPy .npy file"},
        {"\177ELF", 4, "a program or plugin"},
        {"\x89HDF", 4, "an HDF5 file"},
        {"\x1f\x8b", 2, "a gzip file"},
        {"version https://git-lfs", 23, "a Git LFS pointer, not the file itself"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(known); i++)
        if (bytes >= known[i].bytes && !memcmp(data, known[i].magic, known[i].bytes)) return known[i].what;
    uint64_t at = 0;
    while (at < bytes && (data[at] == ' ' || data[at] == '\t' || data[at] == '\n' || data[at] == '\r')) at++;
    if (at < bytes && (data[at] == '{' || data[at] == '[')) return "JSON text (a model card?)";
    for (at = 0; at < bytes && at < 256; at++) {
        const uint8_t c = data[at];
        if ((c < 32 && c != '\t' && c != '\n' && c != '\r') || c == 127 || c >= 0xf8) return NULL; /* no UTF-8 text */
    }
    return "plain text";
}

static int read_length(const char *name, const uint8_t *data, uint64_t bytes, uint64_t *header) {
    if (bytes == 0) return chm_fail(CHM_E_DATA, "%s: the file is empty; " EXPECTED, name);
    uint64_t n = 0;
    for (int i = 7; i >= 0 && bytes >= 8; i--) n = n << 8 | data[i];
    if (bytes >= 8 && n >= 2 && n <= HEADER_LIMIT && n <= bytes - 8) {
        *header = n;
        return CHM_OK;
    }
    const char *what = foreign(data, bytes);
    if (what) return chm_fail(CHM_E_DATA, "%s: this is %s; " EXPECTED, name, what);
    if (bytes < 8) return chm_fail(CHM_E_DATA, "%s: the file has only %" PRIu64 " bytes; " EXPECTED, name, bytes);
    if (n > HEADER_LIMIT || n < 2)
        return chm_fail(CHM_E_DATA,
                        "%s: the first 8 bytes give a header of %" PRIu64 " bytes, outside 2..%d; " EXPECTED, name, n,
                        (int)HEADER_LIMIT);
    return chm_fail(CHM_E_DATA,
                    "%s: the header should have %" PRIu64 " bytes, the file has %" PRIu64
                    " after the length: it was cut short",
                    name, n, bytes - 8);
}

/* A member of a tensor's entry that must be there. */
static json_t *member(const char *name, const char *tensor, json_t *entry, const char *key, json_type type,
                      const char *what) {
    json_t *value = json_object_get(entry, key);
    if (value && json_typeof(value) == type) return value;
    chm_fail(CHM_E_DATA, "%s: tensor '%s': %s %s, expected %s", name, chm_quote(tensor).text, key,
             value ? "is of another type" : "is missing", what);
    return NULL;
}

static int read_tensor(const char *name, const char *key, json_t *entry, const uint8_t *data, uint64_t bytes,
                       chm_st_tensor *t) {
    t->name = key;
    const chm_quoted q = chm_quote(key);
    if (!json_is_object(entry))
        return chm_fail(CHM_E_DATA, "%s: tensor '%s': expected an object of dtype, shape and data_offsets", name,
                        q.text);
    json_t *dtype = member(name, key, entry, "dtype", JSON_STRING, "one of " DTYPE_NAMES);
    if (!dtype) return CHM_E_DATA;
    size_t type = 0;
    while (type < CHM_ARRAY_COUNT(dtypes) && strcmp(json_string_value(dtype), dtypes[type].name)) type++;
    if (type == CHM_ARRAY_COUNT(dtypes))
        return chm_fail(CHM_E_DATA, "%s: tensor '%s': dtype '%s' is not read here, expected one of " DTYPE_NAMES, name,
                        q.text, chm_quote(json_string_value(dtype)).text);
    t->dtype = (enum chm_st_dtype)type;

    json_t *shape = member(name, key, entry, "shape", JSON_ARRAY, "a list of at most 8 sizes");
    if (!shape) return CHM_E_DATA;
    if (json_array_size(shape) > MAX_RANK)
        return chm_fail(CHM_E_DATA, "%s: tensor '%s': shape has %zu sizes, expected at most %d", name, q.text,
                        json_array_size(shape), (int)MAX_RANK);
    uint64_t needed = dtypes[type].bytes;
    t->rank = (int)json_array_size(shape);
    for (int i = 0; i < t->rank; i++) {
        json_t *size = json_array_get(shape, (size_t)i);
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return chm_fail(CHM_E_DATA, "%s: tensor '%s': shape[%d] is no size, expected an integer from 0", name,
                            q.text, i);
        t->shape[i] = (int64_t)json_integer_value(size);
        if (__builtin_mul_overflow(needed, (uint64_t)t->shape[i], &needed))
            return chm_fail(CHM_E_DATA, "%s: tensor '%s': its shape is larger than 64 bits can count", name, q.text);
    }

    json_t *offsets = member(name, key, entry, "data_offsets", JSON_ARRAY, "[begin, end] in bytes");
    if (!offsets) return CHM_E_DATA;
    json_t *from = json_array_get(offsets, 0), *to = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(from) || !json_is_integer(to) ||
        json_integer_value(from) < 0 || json_integer_value(to) < 0)
        return chm_fail(CHM_E_DATA, "%s: tensor '%s': data_offsets must be two integers from 0, [begin, end]", name,
                        q.text);
    uint64_t begin = (uint64_t)json_integer_value(from), end = (uint64_t)json_integer_value(to);
    if (begin > end)
        return chm_fail(CHM_E_DATA, "%s: tensor '%s': data_offsets end (%" PRIu64 ") before they begin (%" PRIu64 ")",
                        name, q.text, end, begin);
    if (end > bytes)
        return chm_fail(CHM_E_DATA,
                        "%s: tensor '%s' ends at byte %" PRIu64 " of the data, of which the file has %" PRIu64
                        ": it was cut short or its header is damaged",
                        name, q.text, end, bytes);
    if (end - begin != needed) {
        char text[200];
        chm_st_shape_text(t, text, sizeof text);
        return chm_fail(CHM_E_DATA, "%s: tensor '%s': data_offsets hold %" PRIu64 " bytes, but %s %s needs %" PRIu64,
                        name, q.text, end - begin, dtypes[type].name, text, needed);
    }
    t->data = data + begin;
    t->bytes = end - begin;
    return CHM_OK;
}

/* File order; of tensors that begin together all but the last are empty. */
static int by_place(const void *a, const void *b) {
    const chm_st_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int check_places(const char *name, const chm_safetensors *s, const uint8_t *data, uint64_t bytes) {
    uint64_t at = 0;
    for (int i = 0; i < s->count; i++) {
        const chm_st_tensor *t = &s->tensor[i];
        uint64_t begin = (uint64_t)(t->data - data);
        if (begin < at)
            return chm_fail(CHM_E_DATA,
                            "%s: tensor '%s' begins at byte %" PRIu64 ", inside '%s', which ends at %" PRIu64, name,
                            chm_quote(t->name).text, begin, chm_quote(s->tensor[i - 1].name).text, at);
        if (begin > at)
            return chm_fail(CHM_E_DATA,
                            "%s: tensor '%s' begins at byte %" PRIu64 ", expected %" PRIu64
                            ": tensors must follow each other without a gap",
                            name, chm_quote(t->name).text, begin, at);
        at = begin + t->bytes;
    }
    if (at != bytes)
        return chm_fail(CHM_E_DATA, "%s: %" PRIu64 " bytes follow the last tensor, expected the file to end there",
                        name, bytes - at);
    return CHM_OK;
}

/* An index sorted by name, by heap sort: qsort has no way to hand a comparison the table. */
static void sift(int *index, const chm_st_tensor *t, int root, int n) {
    for (int child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && strcmp(t[index[child]].name, t[index[child + 1]].name) < 0) child++;
        if (strcmp(t[index[root]].name, t[index[child]].name) >= 0) return;
        int swap = index[root];
        index[root] = index[child];
        index[child] = swap;
    }
}

static void sort_names(int *index, const chm_st_tensor *t, int n) {
    for (int i = 0; i < n; i++) index[i] = i;
    for (int i = n / 2 - 1; i >= 0; i--) sift(index, t, i, n);
    for (int i = n - 1; i > 0; i--) {
        int swap = index[0];
        index[0] = index[i];
        index[i] = swap;
        sift(index, t, 0, i);
    }
}

int chm_safetensors_parse(const char *name, const uint8_t *data, uint64_t bytes, chm_safetensors **out) {
    struct reader *r = NULL;
    uint64_t header = 0;
    json_error_t error;
    *out = NULL;
    int status = read_length(name, data, bytes, &header);
    if (status) return status;
    if (data[8] != '{') return chm_fail(CHM_E_DATA, "%s: the header does not begin with '{'; " EXPECTED, name);
    r = chm_alloc(sizeof *r);
    if (!r) return CHM_E_MEMORY;
    chm_safetensors *s = &r->file;
    s->owned = r;
    s->header = data;
    s->header_bytes = 8 + header;

    r->root = chm_json_load((const char *)data + 8, (size_t)header, &error);
    if (!r->root) {
        if (chm_json_starved())
            status = chm_fail(CHM_E_MEMORY, "%s: out of memory reading the header of %" PRIu64 " bytes", name, header);
        else
            status = chm_fail(CHM_E_DATA, "%s: the header is not sound JSON: byte %d: %s", name, error.position,
                              chm_quote(error.text).text);
        goto out;
    }
    /* A literal other than an object cannot begin with '{', so root is one. */
    const uint8_t *base = data + 8 + header;
    const uint64_t left = bytes - 8 - header;
    size_t entries = json_object_size(r->root), metas = 0;
    json_t *meta = json_object_get(r->root, "__metadata__");
    if (meta) {
        if (!json_is_object(meta)) {
            status = chm_fail(CHM_E_DATA, "%s: __metadata__ must be an object of strings", name);
            goto out;
        }
        metas = json_object_size(meta);
        entries--;
    }
    s->tensor = chm_alloc(entries * sizeof *s->tensor);
    r->by_name = chm_alloc(entries * sizeof *r->by_name);
    const char **keys = chm_alloc(metas * sizeof *keys), **values = chm_alloc(metas * sizeof *values);
    s->meta_key = keys;
    s->meta_value = values;
    if (!s->tensor || !r->by_name || !keys || !values) {
        status = CHM_E_MEMORY;
        goto out;
    }

    const char *key;
    json_t *value;
    json_object_foreach(meta, key, value) {
        if (!json_is_string(value)) {
            status = chm_fail(CHM_E_DATA, "%s: __metadata__: '%s' must be a string", name, chm_quote(key).text);
            goto out;
        }
        keys[s->metas] = key;
        values[s->metas++] = json_string_value(value);
    }
    json_object_foreach(r->root, key, value) {
        if (value == meta) continue;
        status = read_tensor(name, key, value, base, left, &s->tensor[s->count]);
        if (status) goto out;
        s->count++;
    }
    if (s->count) qsort(s->tensor, (size_t)s->count, sizeof *s->tensor, by_place);
    status = check_places(name, s, base, left);
    if (status) goto out;
    sort_names(r->by_name, s->tensor, s->count);
    *out = s;
out:
    if (status) chm_safetensors_destroy(s);
    return status;
}

void chm_safetensors_destroy(chm_safetensors *s) {
    if (!s) return;
    struct reader *r = s->owned;
    chm_free(s->tensor);
    chm_free((void *)s->meta_key);
    chm_free((void *)s->meta_value);
    chm_free(r->by_name);
    json_decref(r->root);
    chm_free(r);
}

const chm_st_tensor *chm_safetensors_find(const chm_safetensors *s, const char *name) {
    const int *index = ((const struct reader *)s->owned)->by_name;
    for (int low = 0, high = s->count; low < high;) {
        int middle = low + (high - low) / 2, order = strcmp(name, s->tensor[index[middle]].name);
        if (order == 0) return &s->tensor[index[middle]];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const char *chm_safetensors_meta(const chm_safetensors *s, const char *key) {
    json_t *meta = json_object_get(((const struct reader *)s->owned)->root, "__metadata__");
    return json_string_value(json_object_get(meta, key));
}

/* ---- the hash of a header ---- */

/* Where its 16 digits stand; 0: it has none. In a JSON text no quote within a string looks like these. */
static size_t place_of_hash(const uint8_t *header, uint64_t bytes) {
    static const char before[] = "\"" CHM_ST_HEADER_HASH "\":\"";
    const size_t n = sizeof before - 1;
    for (uint64_t at = 8; at + n + 17 <= bytes; at++) {
        const uint8_t *quote = memchr(header + at, '"', (size_t)(bytes - n - 17 - at) + 1);
        if (!quote) return 0;
        at = (uint64_t)(quote - header);
        if (!memcmp(quote, before, n) && quote[n + 16] == '"') return (size_t)at + n;
    }
    return 0;
}

/* Of all of it but those digits. */
static void hash_header(const uint8_t *header, uint64_t bytes, size_t at, char text[17]) {
    const uint64_t first = chm_hash64(header, at);
    snprintf(text, 17, "%016" PRIx64, chm_hash64_seed(header + at + 16, (size_t)bytes - at - 16, first));
}

bool chm_safetensors_sealed(const chm_safetensors *s) {
    char text[17];
    const size_t at = place_of_hash(s->header, s->header_bytes);
    if (at) hash_header(s->header, s->header_bytes, at, text);
    return at && !memcmp(s->header + at, text, 16);
}

void chm_safetensors_seal(uint8_t *header, uint64_t bytes) {
    char text[17];
    const size_t at = place_of_hash(header, bytes);
    if (!at) return;
    hash_header(header, bytes, at, text);
    memcpy(header + at, text, 16);
}

/* ---- writing ---- */

static int add_text(const char *buffer, size_t n, void *string) {
    chm_string_add_bytes(string, buffer, n);
    return ((chm_string *)string)->failed ? -1 : 0;
}

static int memory(const char *path) { return chm_fail(CHM_E_MEMORY, "%s: out of memory writing the header", path); }

/* Why jansson would not take this text. */
static int refused(const char *path, const char *what, const char *text) {
    if (chm_json_starved()) return memory(path);
    return chm_fail(CHM_E_INTERNAL, "%s: %s '%s' is not UTF-8", path, what, chm_quote(text).text);
}

/* Adds one tensor to the header; *at moves past its bytes. */
static int add_entry(const char *path, json_t *root, const char *name, const chm_st_tensor *t, uint64_t *at) {
    uint64_t needed = 0, end = 0;
    if (t->rank < 0 || t->rank > MAX_RANK || (unsigned)t->dtype >= CHM_ARRAY_COUNT(dtypes))
        return chm_fail(CHM_E_INTERNAL, "%s: tensor '%s' has no sound rank or dtype", path, chm_quote(name).text);
    needed = dtypes[t->dtype].bytes;
    for (int i = 0; i < t->rank; i++)
        if (t->shape[i] < 0 || __builtin_mul_overflow(needed, (uint64_t)t->shape[i], &needed))
            return chm_fail(CHM_E_INTERNAL, "%s: tensor '%s' has no sound shape", path, chm_quote(name).text);
    if (needed != t->bytes || __builtin_add_overflow(*at, needed, &end) || end > INT64_MAX)
        return chm_fail(CHM_E_INTERNAL, "%s: tensor '%s' has %" PRIu64 " bytes, its shape needs %" PRIu64, path,
                        chm_quote(name).text, t->bytes, needed);
    if (!strcmp(name, "__metadata__") || json_object_get(root, name))
        return chm_fail(CHM_E_INTERNAL, "%s: tensor name '%s' is taken", path, chm_quote(name).text);

    json_t *entry = json_pack("{s:s, s:[], s:[I, I]}", "dtype", dtypes[t->dtype].name, "shape", "data_offsets",
                              (json_int_t)*at, (json_int_t)end);
    if (!entry) return memory(path);
    json_t *shape = json_object_get(entry, "shape");
    for (int i = 0; i < t->rank; i++) {
        if (json_array_append_new(shape, json_integer(t->shape[i]))) {
            json_decref(entry);
            return memory(path);
        }
    }
    if (json_object_set_new(root, name, entry)) return refused(path, "tensor name", name);
    *at = end;
    return CHM_OK;
}

/* The zeros that bring byte `at` of the data to the next multiple of 64. */
static int64_t padding(uint64_t at) { return (int64_t)((ALIGNMENT - at % ALIGNMENT) % ALIGNMENT); }

static int begin(chm_writer *writer, const char *path, const chm_st_tensor *tensor, int count,
                 const char *const *meta_key, const char *const *meta_value, int metas, bool align,
                 chm_st_produce produce, void *user) {
    static const uint8_t zeros[ALIGNMENT];
    chm_string text = {0};
    uint64_t at = 0;
    int status = CHM_OK;
    memset(writer, 0, sizeof *writer);
    chm_json_begin();
    json_t *root = json_object(), *meta = NULL;
    if (!root) return memory(path);
    if (metas) {
        meta = json_object();
        if (!meta || json_object_set_new(root, "__metadata__", meta)) {
            status = memory(path);
            goto out;
        }
    }
    for (int i = 0; i < metas; i++) {
        if (json_object_get(meta, meta_key[i])) {
            status =
                chm_fail(CHM_E_INTERNAL, "%s: __metadata__ key '%s' is there twice", path, chm_quote(meta_key[i]).text);
            goto out;
        }
        if (json_object_set_new(meta, meta_key[i], json_string(meta_value[i]))) {
            status = refused(path, "__metadata__", meta_key[i]);
            goto out;
        }
    }
    for (int i = 0, pads = 0; i < count; i++) {
        status = add_entry(path, root, tensor[i].name, &tensor[i], &at);
        if (status) goto out;
        if (align && i + 1 < count && padding(at)) {
            char name[32];
            snprintf(name, sizeof name, "_pad.%d", pads++);
            const chm_st_tensor pad = {
                .dtype = CHM_ST_U8, .rank = 1, .shape = {padding(at)}, .bytes = (uint64_t)padding(at)};
            status = add_entry(path, root, name, &pad, &at);
            if (status) goto out;
        }
    }
    chm_string_add_bytes(&text, zeros, 8); /* the length, once it is known */
    if (json_dump_callback(root, add_text, &text, JSON_COMPACT)) {
        status = memory(path);
        goto out;
    }
    /* The data begins on a multiple of 8, or of 64; the format allows spaces after the header. */
    const size_t multiple = align ? ALIGNMENT : 8;
    while (text.length % multiple && !text.failed) chm_string_add_bytes(&text, " ", 1);
    if (text.failed) {
        status = memory(path);
        goto out;
    }
    if (text.length - 8 > HEADER_LIMIT) {
        status = chm_fail(CHM_E_DATA, "%s: the header would have %zu bytes, readers take at most %d", path,
                          text.length - 8, (int)HEADER_LIMIT);
        goto out;
    }
    for (int i = 0; i < 8; i++) text.text[i] = (char)((uint64_t)(text.length - 8) >> 8 * i);
    chm_safetensors_seal((uint8_t *)text.text, text.length);
    status = chm_writer_open(writer, path);
    if (status) goto out;
    status = chm_writer_write(writer, text.text, text.length);
    at = 0;
    for (int i = 0; i < count && !status; i++) {
        status = produce && !tensor[i].data ? produce(user, &tensor[i], writer)
                                            : chm_writer_write(writer, tensor[i].data, (size_t)tensor[i].bytes);
        at += tensor[i].bytes;
        if (align && i + 1 < count && !status) {
            status = chm_writer_write(writer, zeros, (size_t)padding(at));
            at += (uint64_t)padding(at);
        }
    }
out:
    if (status) chm_writer_abandon(writer);
    chm_string_finish(&text);
    json_decref(root);
    return status;
}

int chm_safetensors_begin(chm_writer *writer, const char *path, const chm_st_tensor *tensor, int count,
                          const char *const *meta_key, const char *const *meta_value, int metas, bool align) {
    return begin(writer, path, tensor, count, meta_key, meta_value, metas, align, NULL, NULL);
}

int chm_safetensors_write(const char *path, const chm_st_tensor *tensor, int count, const char *const *meta_key,
                          const char *const *meta_value, int metas, bool align) {
    chm_writer writer;
    const int status = chm_safetensors_begin(&writer, path, tensor, count, meta_key, meta_value, metas, align);
    return status ? status : chm_writer_commit(&writer);
}

int chm_safetensors_write_made(const char *path, const chm_st_tensor *tensor, int count, const char *const *meta_key,
                               const char *const *meta_value, int metas, chm_st_produce produce, void *user) {
    chm_writer writer;
    const int status = begin(&writer, path, tensor, count, meta_key, meta_value, metas, false, produce, user);
    return status ? status : chm_writer_commit(&writer);
}
