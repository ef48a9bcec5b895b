/* tree.c: a card's values against the schema: which row describes a value, whether it fits, what is missing. */
#include "config/card_internal.h"
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- problems ---- */

static size_t begin_problem(chm_card *card, const char *origin, int line, const char *path) {
    chm_string *s = &card->problems;
    if (s->length > 0) chm_string_add(s, "\n");
    const size_t begin = s->length;
    if (line > 0)
        chm_string_add(s, "%s:%d: ", origin, line);
    else
        chm_string_add(s, "%s: ", origin);
    if (path) chm_string_add(s, strlen(path) > 200 ? "%.200s...: " : "%s: ", path);
    return begin;
}

/* Keys and values are anybody's: each problem stays one line, and nothing in it moves a cursor. */
static void end_problem(chm_card *card, size_t begin, const char *format, va_list args) {
    char text[1200];
    chm_fit(text, sizeof text, format, args);
    chm_string_add(&card->problems, "%s", text);
    if (card->problems.failed) return;
    chm_printable(card->problems.text + begin, false);
    card->problems.length = strlen(card->problems.text);
}

void chm_card_problem_at(chm_card *card, const char *origin, int line, const char *path, const char *format, ...) {
    if (card->problem_count++ >= CHM_MAX_PROBLEMS) return;
    const size_t begin = begin_problem(card, origin, line, path);
    va_list args;
    va_start(args, format);
    end_problem(card, begin, format, args);
    va_end(args);
}

void chm_card_problem(chm_card *card, const chm_value *v, const char *format, ...) {
    if (card->problem_count++ >= CHM_MAX_PROBLEMS) return;
    chm_string path = {0};
    chm_value_path(v, &path);
    if (path.failed) card->starved = true;
    bool ours = !v->origin || (v->line == 0 && strcmp(v->origin, "default") == 0);
    const size_t begin =
        begin_problem(card, ours ? card->name : v->origin, v->line, path.length > 0 ? path.text : NULL);
    va_list args;
    va_start(args, format);
    end_problem(card, begin, format, args);
    va_end(args);
    chm_string_finish(&path);
}

/* The value as JSON in at most about 60 bytes, for a sentence. */
static const char *quote(chm_card *card, const chm_value *v, char *text, size_t n) {
    chm_string s = {0};
    chm_value_write(v, -1, &s);
    if (s.failed || !s.text) {
        card->starved = true;
        text[0] = 0;
    } else if (s.length < n) {
        memcpy(text, s.text, s.length + 1);
    } else {
        size_t cut = n - 4;
        while (cut > 0 && ((unsigned char)s.text[cut] & 0xc0) == 0x80) cut--; /* not inside a character */
        memcpy(text, s.text, cut);
        memcpy(text + cut, "...", 4);
    }
    chm_string_finish(&s);
    return text;
}

/* ---- names ---- */

bool chm_has_word(const char *list, char separator, const char *word, bool any_case) {
    size_t n = strlen(word);
    for (const char *c = list; c && n > 0;) {
        const char *end = strchr(c, separator);
        size_t length = end ? (size_t)(end - c) : strlen(c);
        if (length == n && (any_case ? strncasecmp(c, word, n) : strncmp(c, word, n)) == 0) return true;
        c = end ? end + 1 : NULL;
    }
    return false;
}

const struct chm_plugin *chm_find_plugin(const chm_registry *r, enum chm_kind kind, const char *name, bool any_case) {
    const struct chm_plugin *p;
    for (size_t i = 0; (p = chm_registry_at(r, kind, i)) != NULL; i++)
        if ((any_case ? strcasecmp(p->name, name) : strcmp(p->name, name)) == 0 ||
            chm_has_word(p->aliases, ' ', name, any_case))
            return p;
    return NULL;
}

static const struct chm_plugin *plugin_of_section(const chm_card *card, const char *where, const char *key) {
    char path[256];
    int n = where[0] ? snprintf(path, sizeof path, "%s.%s", where, key) : snprintf(path, sizeof path, "%s", key);
    if (n < 0 || (size_t)n >= sizeof path) return NULL;
    return chm_registry_section(card->registry, path);
}

/* The name of a plugin's section below `where`, or NULL. */
static const char *section_name(const struct chm_plugin *p, const char *where) {
    if (!p->section) return NULL;
    size_t n = strlen(where);
    const char *name = p->section;
    if (n > 0) {
        if (strncmp(name, where, n) != 0 || name[n] != '.') return NULL;
        name += n + 1;
    }
    return strchr(name, '.') ? NULL : name;
}

void chm_card_say_names(chm_card *card, const char *const *names, chm_string *out) {
    for (size_t i = 0; names[i]; i++) {
        if (out->length > 300) {
            chm_string_add(out, ", ...");
            break;
        }
        chm_string_add(out, "%s%s", i ? ", " : "", names[i]);
    }
    if (out->failed) card->starved = true;
}

/* The list whose items may be named below `at`: itself, or the phases of training. */
static const chm_value *named_items(const chm_value *at) {
    if (at->row && strcmp(at->row->path, "training") == 0) at = chm_value_member(at, "phases");
    bool items = at && at->type == CHM_VALUE_ARRAY && at->row &&
                 (at->row->shape == CHM_SHAPE_ITEMS || at->row->shape == CHM_SHAPE_PHASES);
    return items ? at : NULL;
}

const char *const *chm_card_names(chm_card *card, const chm_value *at) {
    const chm_value *items = named_items(at);
    size_t capacity = 0, n = 0;
    chm_schema(&capacity);
    const struct chm_plugin *p;
    for (size_t i = 0; chm_registry_at(card->registry, 0, i) != NULL; i++) capacity += 2;
    if (at->plugin) capacity += at->plugin->option_count;
    capacity += (size_t)at->count + (items ? (size_t)items->count : 0) + 1;
    const char **list = chm_arena_take(&card->arena, capacity * sizeof *list);
    if (!list) {
        card->starved = true;
        return NULL;
    }
    if (at->plugin) {
        for (uint32_t i = 0; i < at->plugin->option_count; i++)
            if (!strchr(at->plugin->options[i].name, '.')) list[n++] = at->plugin->options[i].name;
        const struct chm_schema_row *row;
        size_t cursor = 0;
        while ((row = chm_schema_next(at->plugin->section, &cursor)) != NULL)
            if (row->shape == CHM_SHAPE_SECTION) list[n++] = chm_schema_name(row);
    } else if (at->where) {
        const struct chm_schema_row *row;
        size_t cursor = 0;
        while ((row = chm_schema_next(at->where, &cursor)) != NULL) list[n++] = chm_schema_name(row);
        for (size_t i = 0; (p = chm_registry_at(card->registry, 0, i)) != NULL; i++) {
            const char *name = section_name(p, at->where);
            if (name) list[n++] = name;
            if (!at->parent && p->section) list[n++] = p->name;
        }
        if (at->row && at->row->shape == CHM_SHAPE_MAP)
            for (const chm_value *child = at->first; child; child = child->next)
                if (child->key) list[n++] = child->key;
    }
    for (const chm_value *item = items ? items->first : NULL; item; item = item->next) {
        const chm_value *name = chm_value_member(item, "name");
        if (name && name->type == CHM_VALUE_STRING) list[n++] = name->text;
    }
    list[n] = NULL;
    return list;
}

/* ---- rows ---- */

static const char *phase_kind(const chm_value *phase) {
    static const char *const keys[] = {"kind", "name"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(keys); i++) {
        const chm_value *v = chm_value_member(phase, keys[i]);
        if (v && v->type == CHM_VALUE_STRING && strcmp(v->text, "*") != 0 &&
            chm_schema_key("training.phases", v->text) && strcmp(v->text, "§") != 0)
            return v->text;
    }
    return "pretrain";
}

static void annotate_child(chm_card *card, chm_value *object, chm_value *child) {
    child->row = NULL;
    child->option = NULL;
    child->plugin = NULL;
    child->where = NULL;
    if (strcmp(child->key, "§") == 0) {
        child->row = chm_schema_key("", "§");
    } else if (object->plugin) {
        child->option = chm_option_find(object->plugin->options, object->plugin->option_count, child->key);
        /* options "a.b" are members of an object a, whose shape the schema knows */
        const struct chm_schema_row *row = child->option ? NULL : chm_schema_key(object->plugin->section, child->key);
        if (row && row->shape == CHM_SHAPE_SECTION) {
            child->row = row;
            child->where = row->path;
        }
    } else if (object->where) {
        child->row = chm_schema_key(object->where, child->key);
        child->plugin = plugin_of_section(card, object->where, child->key);
        if (!child->plugin && child->row) {
            if (child->row->shape == CHM_SHAPE_VALUE) child->option = &child->row->option;
            if (child->row->shape == CHM_SHAPE_SECTION || child->row->shape == CHM_SHAPE_MAP)
                child->where = child->row->path;
        }
    }
}

void chm_card_annotate(chm_card *card, chm_value *v) {
    if (!v->parent) v->where = "";
    if (v->type == CHM_VALUE_OBJECT) {
        for (chm_value *child = v->first; child; child = child->next) {
            annotate_child(card, v, child);
            chm_card_annotate(card, child);
        }
    } else if (v->type == CHM_VALUE_ARRAY && v->row &&
               (v->row->shape == CHM_SHAPE_ITEMS || v->row->shape == CHM_SHAPE_PHASES)) {
        for (chm_value *item = v->first; item; item = item->next) {
            item->row = chm_schema_key(v->row->path, v->row->shape == CHM_SHAPE_PHASES ? phase_kind(item) : "*");
            item->where = item->row ? item->row->path : NULL;
            chm_card_annotate(card, item);
        }
    }
}

/* ---- checking ---- */

static bool in_range(const struct chm_option *o, double x) {
    return (o->min == 0 && o->max == 0) || (x >= o->min && x <= o->max);
}

/* As integers: 2^53 + 1 is no double. */
static bool whole_in(double min, double max, int64_t x) {
    static const double most = 9223372036854775807.0; /* 2^63 */
    return (min < -most || x >= (int64_t)min) && (max >= most || x <= (int64_t)max);
}

/* "4M", as a string: a whole number with a unit. Becomes an integer. */
static bool read_count(chm_value *v) {
    int64_t n;
    if (v->type != CHM_VALUE_STRING || !*v->text || !strchr("MBT", v->text[strlen(v->text) - 1]) ||
        chm_parse_count(v->text, &n))
        return false;
    v->type = CHM_VALUE_INT;
    v->integer = n;
    return true;
}

static bool fits_int(const struct chm_option *o, chm_value *v) {
    if (v->type != CHM_VALUE_INT && !read_count(v)) return false;
    return (o->min == 0 && o->max == 0) || whole_in(o->min, o->max, v->integer);
}

static bool fits_float(const struct chm_option *o, const chm_value *v) {
    if (v->type == CHM_VALUE_INT) return in_range(o, (double)v->integer);
    return v->type == CHM_VALUE_REAL && in_range(o, v->real);
}

static bool fits_word(const struct chm_option *o, const chm_value *v) {
    return v->type == CHM_VALUE_STRING && (!o->choices || chm_has_word(o->choices, '|', v->text, false));
}

/* Whether v is what o accepts; *wrong gets the word that is not. */
static bool fits(const struct chm_option *o, chm_value *v, const chm_value **wrong) {
    *wrong = v;
    switch (o->type) {
    case CHM_OPT_BOOL:
        return v->type == CHM_VALUE_BOOL;
    case CHM_OPT_INT:
        return fits_int(o, v);
    case CHM_OPT_FLOAT:
        return fits_float(o, v);
    case CHM_OPT_ENUM:
    case CHM_OPT_STRING:
        return fits_word(o, v);
    case CHM_OPT_INT_LIST:
    case CHM_OPT_FLOAT_LIST:
    case CHM_OPT_STRING_LIST:
        break;
    }
    if (v->type != CHM_VALUE_ARRAY) return false;
    for (chm_value *item = v->first; item; item = item->next) {
        *wrong = item;
        bool good = o->type == CHM_OPT_INT_LIST     ? fits_int(o, item)
                    : o->type == CHM_OPT_FLOAT_LIST ? fits_float(o, item)
                                                    : fits_word(o, item);
        if (!good) return false;
    }
    *wrong = v;
    if (o->list_min > 0 && v->count < o->list_min) return false;
    return o->list_max <= 0 || v->count <= o->list_max;
}

/* A list that chooses among words names each once. */
static void check_once(chm_card *card, chm_value *v) {
    for (const chm_value *item = v->first; item; item = item->next)
        for (const chm_value *before = v->first; before != item; before = before->next)
            if (strcmp(before->text, item->text) == 0) {
                v->invalid = true;
                chm_card_problem(card, v, "names '%s' twice", item->text);
                return;
            }
}

static void check_option(chm_card *card, chm_value *v, const struct chm_option *o) {
    const chm_value *wrong;
    if (fits(o, v, &wrong)) {
        if (o->type == CHM_OPT_STRING_LIST && o->choices) check_once(card, v);
        return;
    }
    v->invalid = true;
    char accepts[700], got[64];
    chm_option_accepts(o, accepts, sizeof accepts);
    quote(card, wrong, got, sizeof got);
    const char *nearest = NULL;
    if (o->choices && wrong->type == CHM_VALUE_STRING) {
        const char *names[65];
        size_t n = 0;
        char *copy = chm_arena_string(&card->arena, o->choices, strlen(o->choices));
        if (!copy) card->starved = true;
        for (char *c = copy; c && n < CHM_ARRAY_COUNT(names) - 1;) {
            names[n++] = c;
            c = strchr(c, '|');
            if (c) *c++ = 0;
        }
        names[n] = NULL;
        nearest = chm_nearest(wrong->text, names);
    }
    if (nearest)
        chm_card_problem(card, v, "expected %s, got %s (did you mean '%s'?)", accepts, got, nearest);
    else
        chm_card_problem(card, v, "expected %s, got %s", accepts, got);
}

static void expect(chm_card *card, chm_value *v, const chm_value *wrong, const char *what) {
    char got[64];
    v->invalid = true;
    chm_card_problem(card, v, "expected %s, got %s", what, quote(card, wrong, got, sizeof got));
}

/* NULL when v is a string or a list of strings, else what is not. */
static const chm_value *not_text(const chm_value *v) {
    if (v->type == CHM_VALUE_STRING) return NULL;
    if (v->type != CHM_VALUE_ARRAY) return v;
    for (const chm_value *item = v->first; item; item = item->next)
        if (item->type != CHM_VALUE_STRING) return item;
    return NULL;
}

/* Strings, lists of strings, and objects of such. */
static void check_document(chm_card *card, chm_value *v, bool deep) {
    if (v->type == CHM_VALUE_OBJECT) {
        for (chm_value *child = v->first; child; child = child->next) {
            if (!deep && child->type == CHM_VALUE_OBJECT)
                expect(card, child, child, "text or a list of texts");
            else
                check_document(card, child, deep);
        }
    } else if (not_text(v)) {
        expect(card, v, not_text(v), deep ? "text, a list of texts, or an object of such" : "text or a list of texts");
    }
}

/* One item of a tuple: "int", "float" or "text", a range behind numbers, words behind text. */
struct tuple_item {
    char type; /* i, f, t */
    bool ranged;
    double min, max;
    char words[128]; /* separated by '|'; "": any text */
};

/* Reads the item at c, which ends at a space, a '|' or the end; returns what follows it. */
static const char *read_tuple_item(const char *c, struct tuple_item *out) {
    const size_t n = strcspn(c, " |");
    const char *colon = memchr(c, ':', n);
    *out = (struct tuple_item){.type = *c};
    if (colon && *c == 't') {
        size_t length = (size_t)(c + n - colon) - 1;
        length = CHM_MIN(length, sizeof out->words - 1);
        memcpy(out->words, colon + 1, length);
        for (char *w = out->words; (w = strchr(w, '/')) != NULL;) *w = '|';
    } else if (colon) {
        char *end;
        out->ranged = true;
        out->min = strtod(colon + 1, &end);
        out->max = strtod(end + 1, NULL);
    }
    return c + n;
}

static bool fits_tuple_item(const struct tuple_item *t, const chm_value *v) {
    switch (t->type) {
    case 'i':
        return v->type == CHM_VALUE_INT && v->integer >= 0 && (!t->ranged || whole_in(t->min, t->max, v->integer));
    case 'f': {
        if (v->type != CHM_VALUE_INT && v->type != CHM_VALUE_REAL) return false;
        const double x = v->type == CHM_VALUE_INT ? (double)v->integer : v->real;
        return !t->ranged || (x >= t->min && x <= t->max);
    }
    default:
        return v->type == CHM_VALUE_STRING && (!t->words[0] || chm_has_word(t->words, '|', v->text, false));
    }
}

/* An alternative of one item is no list. */
static bool is_list(const char *alternative) { return strcspn(alternative, " ") < strcspn(alternative, "|"); }

/* Whether a value is one of the alternatives. */
static bool is_one_of_tuples(const chm_value *v, const char *types) {
    for (const char *c = types;; c++) {
        const bool list = is_list(c);
        bool good = list == (v->type == CHM_VALUE_ARRAY);
        const chm_value *item = good && list ? v->first : v;
        for (;; c++) {
            struct tuple_item t;
            c = read_tuple_item(c, &t);
            good = good && item && fits_tuple_item(&t, item);
            item = good && list ? item->next : NULL;
            if (*c != ' ') break;
        }
        if (good && !item) return true;
        if (*c != '|') return false;
    }
}

static void say_tuple(chm_card *card, const char *types, chm_string *out) {
    bool list = is_list(types);
    if (list) chm_string_add(out, "[");
    for (const char *c = types;; c++) {
        struct tuple_item t;
        c = read_tuple_item(c, &t);
        if (t.words[0]) {
            for (char *w = t.words; *w; w++) chm_string_add(out, *w == '|' ? " or " : "%c", *w);
        } else {
            chm_string_add(out, "%s", t.type == 'i' ? "integer" : t.type == 'f' ? "number" : "text");
            if (t.ranged) chm_string_add(out, " %g..%g", t.min, t.max);
        }
        if (*c == ' ') {
            chm_string_add(out, ", ");
            continue;
        }
        if (list) chm_string_add(out, "]");
        if (!*c) break;
        list = is_list(c + 1);
        chm_string_add(out, list ? " or [" : " or ");
    }
    if (out->failed || !out->text) card->starved = true;
}

/* Of a value, or of a list and its items, each must be one of the row's tuples; wrong ones are reported. */
static void check_tuples(chm_card *card, chm_value *v, bool many) {
    chm_string what = {0};
    say_tuple(card, v->row->tuple, &what);
    const char *tuple = what.text ? what.text : "a list";
    if (!many && !is_one_of_tuples(v, v->row->tuple)) expect(card, v, v, tuple);
    if (many && v->type != CHM_VALUE_ARRAY) {
        chm_string list = {0};
        chm_string_add(&list, "a list of %s", tuple);
        if (list.failed) card->starved = true;
        expect(card, v, v, list.text ? list.text : "a list");
        chm_string_finish(&list);
    } else if (many) {
        for (chm_value *item = v->first; item; item = item->next)
            if (!is_one_of_tuples(item, v->row->tuple)) {
                expect(card, item, item, tuple);
                v->invalid = true;
            }
    }
    chm_string_finish(&what);
}

static void check_unknown(chm_card *card, chm_value *object, chm_value *child) {
    child->invalid = true;
    /* the options of an optimiser that is not loaded */
    if (card->trained && child->type == CHM_VALUE_OBJECT && object->row && strcmp(object->row->path, "training") == 0)
        return;
    if (card->problem_count >= CHM_MAX_PROBLEMS) { /* counted, not shown: no need to look for a name */
        card->problem_count++;
        return;
    }
    chm_string section = {0};
    chm_value_path(object, &section);
    if (section.failed) card->starved = true;
    const char *const *names = chm_card_names(card, object);
    const char *nearest = names ? chm_nearest(child->key, names) : NULL;
    const char *where = section.length > 0 ? section.text : "a model card";
    if (nearest)
        chm_card_problem(card, child, "unknown key in %s (did you mean '%s'?)", where, nearest);
    else if (names && names[0] && names[1]) {
        chm_string list = {0};
        chm_card_say_names(card, names, &list);
        chm_card_problem(card, child, "unknown key in %s, which has %s", where, list.text ? list.text : "");
        chm_string_finish(&list);
    } else
        chm_card_problem(card, child, "unknown key in %s", where);
    chm_string_finish(&section);
}

static void check_object(chm_card *card, chm_value *v) {
    if (v->type != CHM_VALUE_OBJECT) {
        expect(card, v, v, "an object { ... }");
        return;
    }
    for (chm_value *child = v->first; child; child = child->next) {
        if (!child->row && !child->option && !child->plugin)
            check_unknown(card, v, child);
        else
            chm_card_check_rows(card, child);
    }
    if (v->plugin || !v->where) return;
    const struct chm_schema_row *row;
    size_t cursor = 0;
    while ((row = chm_schema_next(v->where, &cursor)) != NULL)
        if ((row->flags & CHM_ROW_REQUIRED) && !chm_value_member(v, chm_schema_name(row)))
            chm_card_problem_at(card, card->name, v->line, row->path, "missing; %s", row->option.doc);
}

void chm_card_check_rows(chm_card *card, chm_value *v) {
    if (!v->parent || v->plugin) {
        check_object(card, v);
        return;
    }
    if (v->option) {
        check_option(card, v, v->option);
        return;
    }
    if (!v->row) return;
    switch (v->row->shape) {
    case CHM_SHAPE_VALUE:
        return;
    case CHM_SHAPE_SECTION:
    case CHM_SHAPE_MAP:
        check_object(card, v);
        return;
    case CHM_SHAPE_ITEMS:
    case CHM_SHAPE_PHASES:
        if (v->type != CHM_VALUE_ARRAY) {
            expect(card, v, v, "a list of objects");
            return;
        }
        for (chm_value *item = v->first; item; item = item->next) check_object(card, item);
        return;
    case CHM_SHAPE_TEXTS:
        if (not_text(v)) expect(card, v, not_text(v), "text or a list of texts");
        return;
    case CHM_SHAPE_TUPLE:
    case CHM_SHAPE_TUPLES:
        check_tuples(card, v, v->row->shape == CHM_SHAPE_TUPLES);
        return;
    case CHM_SHAPE_SOURCES:
        check_document(card, v, false);
        return;
    case CHM_SHAPE_DOCUMENT:
        if (v->type != CHM_VALUE_OBJECT)
            expect(card, v, v, "an object { ... }");
        else
            check_document(card, v, true);
        return;
    }
}

/* ---- text to values ---- */

static chm_value *read_item(chm_card *card, const char *text, size_t length, bool words) {
    while (length > 0 && strchr(" \t", *text)) text++, length--;
    while (length > 0 && strchr(" \t", text[length - 1])) length--;
    chm_value *v = chm_value_string(text, length, &card->arena);
    if (!v) return NULL;
    if (!words || *v->text == '"') {
        chm_value *json = chm_value_scalar(v->text, &card->arena, &card->starved);
        if (json) return json;
    }
    return v;
}

static chm_value *read_list(chm_card *card, const char *text, bool words) {
    while (*text == ' ' || *text == '\t') text++;
    if (*text == '[') {
        chm_value *json = chm_value_scalar(text, &card->arena, &card->starved);
        if (json || card->starved) return json;
    }
    size_t length = strlen(text);
    while (length > 0 && strchr(" \t", text[length - 1])) length--;
    if (length >= 2 && text[0] == '[' && text[length - 1] == ']') text++, length -= 2;
    chm_value *list = chm_value_new(CHM_VALUE_ARRAY, &card->arena);
    for (size_t begin = 0; list && length > 0 && begin <= length;) {
        size_t end = begin;
        while (end < length && text[end] != ',') end++;
        chm_value *item = read_item(card, text + begin, end - begin, words);
        if (!item) return NULL;
        chm_value_append(list, item);
        begin = end + 1;
    }
    return list;
}

chm_value *chm_card_read_text(chm_card *card, const chm_value *v, const char *text) {
    chm_value *read = NULL;
    enum chm_option_type type = v->option ? v->option->type : 0;
    switch (type) {
    case CHM_OPT_ENUM:
    case CHM_OPT_STRING:
        if (*text == '"') {
            read = chm_value_scalar(text, &card->arena, &card->starved);
            if (read && read->type != CHM_VALUE_STRING) read = NULL;
        }
        break;
    case CHM_OPT_INT_LIST:
    case CHM_OPT_FLOAT_LIST:
    case CHM_OPT_STRING_LIST:
        read = read_list(card, text, type == CHM_OPT_STRING_LIST);
        break;
    case CHM_OPT_BOOL:
    case CHM_OPT_INT:
    case CHM_OPT_FLOAT:
    default:
        read = chm_value_scalar(text, &card->arena, &card->starved);
        break;
    }
    if (!read && !card->starved) read = chm_value_string(text, strlen(text), &card->arena);
    if (!read) card->starved = true;
    return read;
}

/* ---- defaults ---- */

chm_value *chm_card_add(chm_card *card, chm_value *object, const char *key, enum chm_value_type type) {
    chm_value *v = chm_value_new(type, &card->arena);
    char *name = v ? chm_arena_string(&card->arena, key, strlen(key)) : NULL;
    if (!name) {
        card->starved = true;
        return NULL;
    }
    v->key = name;
    v->origin = "default";
    chm_value_append(object, v);
    annotate_child(card, object, v);
    return v;
}

static void add_default(chm_card *card, chm_value *object, const char *key, const char *text) {
    chm_value *v = chm_card_add(card, object, key, CHM_VALUE_NULL);
    chm_value *read = v ? chm_card_read_text(card, v, text) : NULL;
    if (read) chm_value_assign(v, read);
}

void chm_card_fill(chm_card *card, chm_value *v) {
    if (v->type == CHM_VALUE_ARRAY && v->row &&
        (v->row->shape == CHM_SHAPE_ITEMS || v->row->shape == CHM_SHAPE_PHASES)) {
        for (chm_value *item = v->first; item; item = item->next) chm_card_fill(card, item);
        return;
    }
    if (v->type != CHM_VALUE_OBJECT) return;
    for (chm_value *child = v->first; child; child = child->next) chm_card_fill(card, child);
    if (v->plugin) {
        for (uint32_t i = 0; i < v->plugin->option_count; i++) {
            const struct chm_option *o = &v->plugin->options[i];
            if (!o->def || strchr(o->name, '.') || chm_value_member(v, o->name)) continue;
            const chm_value *dim = chm_card_find(card, "head_dim");
            bool delta = strcmp(v->plugin->section, "gated_deltanet") == 0 && strcmp(o->name, "state_size") == 0;
            if (delta && dim && dim->type == CHM_VALUE_INT && !dim->invalid) {
                /* the state of the delta rule is as wide as a head */
                chm_value *size = chm_card_add(card, v, o->name, CHM_VALUE_INT);
                if (size) size->integer = dim->integer;
            } else {
                add_default(card, v, o->name, o->def);
            }
        }
    } else if (v->where && (!v->row || v->row->shape == CHM_SHAPE_SECTION)) {
        const struct chm_schema_row *row;
        size_t cursor = 0;
        while ((row = chm_schema_next(v->where, &cursor)) != NULL)
            if (row->shape == CHM_SHAPE_VALUE && row->option.def && !chm_value_member(v, chm_schema_name(row)))
                add_default(card, v, chm_schema_name(row), row->option.def);
    }
}

/* ---- finding values ---- */

chm_value *chm_card_find(const chm_card *card, const char *path) {
    chm_value *v = card->root;
    while (v && *path) {
        size_t n = strcspn(path, ".");
        chm_value *child = v->first;
        if (v->type == CHM_VALUE_ARRAY) {
            long i = strtol(path, NULL, 10);
            for (; child && i > 0; i--) child = child->next;
        } else {
            while (child && !(child->key && strncmp(child->key, path, n) == 0 && child->key[n] == 0))
                child = child->next;
        }
        v = child;
        path += n + (path[n] == '.');
    }
    return v;
}

static bool same(const char *a, const char *b, unsigned how) {
    return (how & CHM_LOCATE_ANY_CASE ? strcasecmp(a, b) : strcmp(a, b)) == 0;
}

/* An item of a list of objects, by index or by its name. */
static chm_value *step_item(const chm_value *list, const char *name, unsigned how) {
    size_t digits = strspn(name, "0123456789");
    if (digits > 0 && digits < 6 && !name[digits]) {
        long i = strtol(name, NULL, 10);
        chm_value *item = list->first;
        for (; item && i > 0; i--) item = item->next;
        return item;
    }
    for (chm_value *item = list->first; item; item = item->next) {
        const chm_value *given = chm_value_member(item, "name");
        if (!given && item->row) { /* a phase without a name goes by its kind */
            if (same(chm_schema_name(item->row), name, how)) return item;
        } else if (given && given->type == CHM_VALUE_STRING && same(given->text, name, how)) {
            return item;
        }
    }
    return NULL;
}

static chm_value *child_of(chm_card *card, chm_value *at, const char *key, unsigned how) {
    chm_value *child = chm_value_member(at, key);
    if (child || !(how & CHM_LOCATE_CREATE)) return child;
    child = chm_card_add(card, at, key, CHM_VALUE_NULL);
    if (child && (child->plugin ||
                  (child->row && (child->row->shape == CHM_SHAPE_SECTION || child->row->shape == CHM_SHAPE_MAP))))
        child->type = CHM_VALUE_OBJECT;
    return child;
}

chm_value *chm_card_section(chm_card *card, const char *section, unsigned how) {
    chm_value *v = card->root;
    char name[128];
    while (v && *section) {
        size_t n = strcspn(section, ".");
        if (n >= sizeof name) return NULL;
        memcpy(name, section, n);
        name[n] = 0;
        v = v->type == CHM_VALUE_OBJECT ? child_of(card, v, name, how) : NULL;
        section += n + (section[n] == '.');
    }
    return v;
}

/* A key that may stand below `at`, as the schema or a plugin spells it; NULL: there is none of this name. */
static const char *known_key(const chm_card *card, const chm_value *at, const char *name, unsigned how) {
    for (uint32_t i = 0; at->plugin && i < at->plugin->option_count; i++)
        if (same(at->plugin->options[i].name, name, how)) return at->plugin->options[i].name;
    const struct chm_schema_row *row;
    size_t cursor = 0;
    while ((row = chm_schema_next(at->plugin ? at->plugin->section : at->where, &cursor)) != NULL)
        if ((!at->plugin || row->shape == CHM_SHAPE_SECTION) && same(chm_schema_name(row), name, how))
            return chm_schema_name(row);
    if (at->plugin) return NULL;
    const struct chm_plugin *p;
    for (size_t i = 0; (p = chm_registry_at(card->registry, 0, i)) != NULL; i++) {
        const char *section = section_name(p, at->where);
        if (section && same(section, name, how)) return section;
    }
    return NULL;
}

chm_value *chm_card_step(chm_card *card, chm_value *at, const char *name, unsigned how) {
    if (!*name) return NULL;
    if (at->type == CHM_VALUE_ARRAY) {
        bool items = at->row && (at->row->shape == CHM_SHAPE_ITEMS || at->row->shape == CHM_SHAPE_PHASES);
        return items ? step_item(at, name, how) : NULL;
    }
    if (at->type != CHM_VALUE_OBJECT) return NULL;
    for (chm_value *child = at->first; child; child = child->next)
        if (same(child->key, name, how)) return child;
    if (!at->plugin && !at->where) return NULL;
    if (how & CHM_LOCATE_CREATE) {
        const char *key = known_key(card, at, name, how);
        if (key) return child_of(card, at, key, how);
        if (at->row && at->row->shape == CHM_SHAPE_MAP && !(how & CHM_LOCATE_ANY_CASE))
            return child_of(card, at, name, how);
    }
    if (!at->parent) {
        const struct chm_plugin *p = chm_find_plugin(card->registry, 0, name, how & CHM_LOCATE_ANY_CASE);
        return p && p->section ? chm_card_section(card, p->section, how) : NULL;
    }
    const chm_value *items = named_items(at);
    return items ? step_item(items, name, how) : NULL;
}
