/* value.c: JSON text to a tree with lines, and back. */
#include "config/value.h"
#include "base/json.h"
#include <string.h>

/* ---- making values ---- */

char *chm_arena_string(chm_arena *arena, const char *text, size_t length) {
    char *copy = chm_arena_take(arena, length + 1);
    if (copy) {
        if (length > 0) memcpy(copy, text, length);
        copy[length] = 0;
    }
    return copy;
}

chm_value *chm_value_new(enum chm_value_type type, chm_arena *arena) {
    chm_value *v = chm_arena_zero(arena, sizeof *v);
    if (v) v->type = type;
    return v;
}

chm_value *chm_value_string(const char *text, size_t length, chm_arena *arena) {
    chm_value *v = chm_value_new(CHM_VALUE_STRING, arena);
    if (!v) return NULL;
    v->text = chm_arena_string(arena, text, length);
    return v->text ? v : NULL;
}

void chm_value_append(chm_value *parent, chm_value *child) {
    child->parent = parent;
    child->next = NULL;
    if (parent->last)
        parent->last->next = child;
    else
        parent->first = child;
    parent->last = child;
    parent->count++;
}

void chm_value_assign(chm_value *to, const chm_value *from) {
    to->type = from->type;
    to->first = from->first;
    to->last = from->last;
    to->count = from->count;
    to->invalid = false;
    switch (from->type) {
    case CHM_VALUE_BOOL:
        to->boolean = from->boolean;
        break;
    case CHM_VALUE_INT:
        to->integer = from->integer;
        break;
    case CHM_VALUE_REAL:
        to->real = from->real;
        break;
    case CHM_VALUE_STRING:
        to->text = from->text;
        break;
    default:
        break;
    }
    for (chm_value *child = to->first; child; child = child->next) child->parent = to;
}

chm_value *chm_value_member(const chm_value *object, const char *key) {
    if (object->type == CHM_VALUE_OBJECT)
        for (chm_value *child = object->first; child; child = child->next)
            if (strcmp(child->key, key) == 0) return child;
    return NULL;
}

/* ---- JSON in ---- */

/* A cursor over text jansson has accepted, so it only has to find where values begin. */
struct walk {
    const char *at, *end;
    const char *name;
    chm_arena *arena;
    int line;
};

static void skip_space(struct walk *w) {
    for (; w->at < w->end; w->at++) {
        if (*w->at == '\n')
            w->line++;
        else if (*w->at != ' ' && *w->at != '\t' && *w->at != '\r')
            return;
    }
}

/* Past one punctuation mark or scalar. */
static void skip_token(struct walk *w) {
    skip_space(w);
    if (w->at == w->end) return;
    if (*w->at == '"') {
        for (w->at++; w->at < w->end && *w->at != '"'; w->at++)
            if (*w->at == '\\') w->at++;
        w->at = w->at < w->end ? w->at + 1 : w->end;
    } else if (strchr("{}[],:", *w->at)) {
        w->at++;
    } else {
        while (w->at < w->end && !strchr("{}[],: \t\r\n", *w->at)) w->at++;
    }
}

/* The value at the cursor; jansson keeps keys in the order written, so tree and text are walked side by side. `w` NULL:
 * the text is not a file. */
static chm_value *convert(const json_t *json, struct walk *w, chm_arena *arena) {
    if (w) skip_space(w);
    chm_value *v = chm_value_new(CHM_VALUE_NULL, arena);
    if (!v) return NULL;
    if (w) {
        v->origin = w->name;
        v->line = w->line;
    }
    switch (json_typeof(json)) {
    case JSON_NULL:
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        v->type = CHM_VALUE_BOOL;
        v->boolean = json_is_true(json);
        break;
    case JSON_INTEGER:
        v->type = CHM_VALUE_INT;
        v->integer = json_integer_value(json);
        break;
    case JSON_REAL:
        v->type = CHM_VALUE_REAL;
        v->real = json_real_value(json);
        break;
    case JSON_STRING:
        v->type = CHM_VALUE_STRING;
        v->text = chm_arena_string(arena, json_string_value(json), json_string_length(json));
        if (!v->text) return NULL;
        break;
    case JSON_ARRAY:
        v->type = CHM_VALUE_ARRAY;
        if (w) skip_token(w); /* [ */
        for (size_t i = 0; i < json_array_size(json); i++) {
            if (w && i > 0) skip_token(w); /* , */
            chm_value *child = convert(json_array_get(json, i), w, arena);
            if (!child) return NULL;
            chm_value_append(v, child);
        }
        if (w) skip_token(w); /* ] */
        return v;
    case JSON_OBJECT: {
        v->type = CHM_VALUE_OBJECT;
        if (w) skip_token(w); /* { */
        const char *key;
        json_t *item;
        /* the iterator wants a plain pointer but changes nothing */
        json_t *object = (json_t *)(uintptr_t)json;
        bool first = true;
        json_object_foreach(object, key, item) {
            if (w && !first) skip_token(w); /* , */
            first = false;
            int line = 0;
            if (w) {
                skip_space(w);
                line = w->line; /* a problem is shown where the key stands */
                skip_token(w);  /* "key" */
                skip_token(w);  /* : */
            }
            chm_value *child = convert(item, w, arena);
            if (!child) return NULL;
            child->line = line;
            child->key = chm_arena_string(arena, key, strlen(key));
            if (!child->key) return NULL;
            chm_value_append(v, child);
        }
        if (w) skip_token(w); /* } */
        return v;
    }
    }
    if (w) skip_token(w);
    return v;
}

/* Refuses, with `name` or (NULL) without a sentence, what nobody means by a card: jansson would recurse as deep as its
 * brackets nest, and every value takes a hundred times the room of its text. */
static bool absurd(const char *name, const char *text, size_t bytes) {
    int depth = 0, line = 1, values = 1;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (c == '\n') line++;
        if (quoted) {
            if (c == '\\')
                i++;
            else if (c == '"')
                quoted = false;
            continue;
        }
        if (c == '"') quoted = true;
        if (c == '[' || c == '{') depth++;
        if (c == ']' || c == '}') depth--;
        if (c == '[' || c == '{' || c == ',') values++;
        if (depth <= CHM_CARD_MAX_DEPTH && values <= CHM_CARD_MAX_VALUES) continue;
        if (name && depth > CHM_CARD_MAX_DEPTH)
            chm_fail(CHM_E_CONFIG, "%s:%d: brackets nest more than %d levels deep", name, line, CHM_CARD_MAX_DEPTH);
        else if (name)
            chm_fail(CHM_E_CONFIG, "%s:%d: more than %d values up to here; a model card has at most that many", name,
                     line, CHM_CARD_MAX_VALUES);
        return true;
    }
    return false;
}

int chm_value_parse(const char *name, const char *text, size_t bytes, chm_arena *arena, chm_value **out) {
    *out = NULL;
    if (bytes > CHM_CARD_MAX_BYTES)
        return chm_fail(CHM_E_CONFIG, "%s: %zu bytes; a model card has at most %d", name, bytes, CHM_CARD_MAX_BYTES);
    if (bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        return chm_fail(CHM_E_CONFIG, "%s:1: begins with a byte order mark; save it as UTF-8 without one", name);
    if (absurd(name, text, bytes)) return CHM_E_CONFIG;
    const char *first = text, *end = text + bytes;
    int line = 1;
    for (; first < end && strchr(" \t\r\n", *first); first++) line += *first == '\n';
    if (first == end) return chm_fail(CHM_E_CONFIG, "%s:%d: nothing in it; a model card is a JSON object", name, line);
    if (*first != '{')
        return chm_fail(CHM_E_CONFIG, "%s:%d: a model card is a JSON object and begins with '{'", name, line);
    json_error_t error;
    json_t *json = chm_json_load(text, bytes, &error);
    if (!json) {
        if (chm_json_starved()) return CHM_E_MEMORY;
        int at = error.line > 0 ? error.line : 1;
        if (json_error_code(&error) == json_error_invalid_utf8)
            return chm_fail(CHM_E_CONFIG, "%s:%d: not UTF-8 text (%s)", name, at, error.text);
        if (json_error_code(&error) == json_error_duplicate_key)
            return chm_fail(CHM_E_CONFIG, "%s:%d: %s; a key may be given once", name, at, error.text);
        if (json_error_code(&error) == json_error_end_of_input_expected)
            return chm_fail(CHM_E_CONFIG, "%s:%d: something follows the card's closing brace (%s)", name, at,
                            error.text);
        return chm_fail(CHM_E_CONFIG, "%s:%d: not valid JSON: %s", name, at, error.text);
    }
    struct walk w = {.at = text, .end = end, .name = name, .arena = arena, .line = 1};
    *out = convert(json, &w, arena);
    json_decref(json);
    return *out ? CHM_OK : CHM_E_MEMORY;
}

chm_value *chm_value_scalar(const char *text, chm_arena *arena, bool *failed) {
    size_t bytes = strlen(text);
    if (bytes > CHM_CARD_MAX_BYTES || absurd(NULL, text, bytes)) return NULL;
    json_t *json = chm_json_load(text, bytes, NULL);
    if (!json) {
        *failed = *failed || chm_json_starved();
        return NULL;
    }
    chm_value *v = convert(json, NULL, arena);
    if (!v) *failed = true;
    json_decref(json);
    return v;
}

/* ---- out ---- */

void chm_value_path(const chm_value *v, chm_string *out) {
    if (!v->parent) return;
    chm_value_path(v->parent, out);
    if (v->parent->parent) chm_string_add(out, ".");
    if (v->key) {
        chm_string_add(out, "%s", v->key);
        return;
    }
    int64_t i = 0;
    for (const chm_value *sibling = v->parent->first; sibling != v; sibling = sibling->next) i++;
    chm_string_add(out, "%lld", (long long)i);
}

bool chm_value_number(double x, chm_string *out) {
    chm_json_begin();
    bool done = false;
    json_t *number = json_real(x);
    for (int digits = 15; number && digits <= 17 && !done; digits++) {
        /* jansson writes a point whatever the locale says */
        char *text = json_dumps(number, JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits));
        json_t *back = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
        if (back && (digits == 17 || json_number_value(back) == x)) {
            chm_string_add(out, "%s", text);
            done = true;
        }
        json_decref(back);
        chm_free(text);
        if (chm_json_starved()) break;
    }
    json_decref(number);
    if (!done) out->failed = true;
    return done;
}

static void write_text(const char *text, chm_string *out) {
    chm_string_add_bytes(out, "\"", 1);
    for (const char *run = text; *run;) {
        size_t n = 0;
        while ((unsigned char)run[n] >= 0x20 && run[n] != '"' && run[n] != '\\' && run[n] != 0x7f) n++;
        chm_string_add_bytes(out, run, n);
        run += n;
        if (!*run) break;
        switch (*run) {
        case '"':
            chm_string_add(out, "\\\"");
            break;
        case '\\':
            chm_string_add(out, "\\\\");
            break;
        case '\n':
            chm_string_add(out, "\\n");
            break;
        case '\t':
            chm_string_add(out, "\\t");
            break;
        case '\r':
            chm_string_add(out, "\\r");
            break;
        default:
            chm_string_add(out, "\\u%04x", (unsigned char)*run);
            break;
        }
        run++;
    }
    chm_string_add_bytes(out, "\"", 1);
}

static void new_line(int indent, chm_string *out) {
    if (indent >= 0) chm_string_add(out, "\n%*s", indent, "");
}

void chm_value_write(const chm_value *v, int indent, chm_string *out) {
    switch (v->type) {
    case CHM_VALUE_NULL:
        chm_string_add(out, "null");
        return;
    case CHM_VALUE_BOOL:
        chm_string_add(out, v->boolean ? "true" : "false");
        return;
    case CHM_VALUE_INT:
        chm_string_add(out, "%lld", (long long)v->integer);
        return;
    case CHM_VALUE_REAL:
        chm_value_number(v->real, out);
        return;
    case CHM_VALUE_STRING:
        write_text(v->text, out);
        return;
    case CHM_VALUE_ARRAY:
    case CHM_VALUE_OBJECT:
        break;
    }
    bool object = v->type == CHM_VALUE_OBJECT;
    /* lists of plain values stay on one line */
    bool spread = indent >= 0 && v->first && (object || v->first->first);
    chm_string_add(out, object ? "{" : "[");
    for (const chm_value *child = v->first; child; child = child->next) {
        if (spread) new_line(indent + 2, out);
        if (child->key) {
            write_text(child->key, out);
            chm_string_add(out, ": ");
        }
        chm_value_write(child, spread ? indent + 2 : -1, out);
        if (child->next) chm_string_add(out, spread ? "," : ", ");
    }
    if (spread) new_line(indent, out);
    chm_string_add(out, object ? "}" : "]");
}
