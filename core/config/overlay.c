/* overlay.c: what is laid over a card: ini files, CHIMERA_* variables, --set. Each becomes a value with its origin. */
#include "config/card_internal.h"
#include "config/ini.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

static const char prefix[] = "CHIMERA_";

static bool is_utf8(const char *text) {
    for (int n; *text; text += n)
        if ((n = chm_utf8_length(text)) == 0) return false;
    return true;
}

/* "a.b[0].c" becomes the names a, b, 0, c in place; 0 when it is no such thing. */
static size_t split(char *key, const char **names, size_t capacity) {
    size_t n = 0;
    for (char *c = key; *c; c++) {
        if (*c == '[') *c = '.';
        if (*c == ']') {
            if (c[1] && c[1] != '.') return 0;
            memmove(c, c + 1, strlen(c));
            c--;
        }
    }
    for (char *c = key; c;) {
        char *end = strchr(c, '.');
        if (end) *end = 0;
        if (!*c || n == capacity) return 0;
        names[n++] = c;
        c = end ? end + 1 : NULL;
    }
    return n;
}

/* The variable that sets the key `name` below `at`: upper case, a double underscore for each dot. */
static void say_variable(chm_card *card, const chm_value *at, const char *name, chm_string *out) {
    chm_string path = {0};
    chm_value_path(at, &path);
    chm_string_add(out, "%s", prefix);
    if (path.length > 0) {
        for (const char *c = path.text; *c; c++) {
            if (*c == '.')
                chm_string_add(out, "__");
            else
                chm_string_add(out, "%c", toupper((unsigned char)*c));
        }
        chm_string_add(out, "__");
    }
    for (const char *c = name; *c; c++) chm_string_add(out, "%c", toupper((unsigned char)*c));
    if (path.failed || out->failed) card->starved = true;
    chm_string_finish(&path);
}

struct setting {
    const char *origin; /* lives as long as the card */
    int line;
    int round;     /* a key may be set once a round; 0: any number of times */
    bool variable; /* from the environment: names compare without case, hints are variables */
};

static void unknown(chm_card *card, const struct setting *from, const char *key, const chm_value *at,
                    const char *name) {
    if (card->problem_count >= CHM_MAX_PROBLEMS) { /* counted, not shown: no need to look for a name */
        card->problem_count++;
        return;
    }
    const char *const *names = chm_card_names(card, at);
    const char *nearest = names ? chm_nearest(name, names) : NULL;
    chm_string where = {0}, hint = {0};
    chm_value_path(at, &where);
    if (from->variable) {
        const char *reserved = at->parent ? NULL : chm_nearest(name, chm_reserved_variables());
        if (reserved && (!nearest || chm_edit_distance(name, reserved) <= chm_edit_distance(name, nearest)))
            chm_string_add(&hint, "%s%s", prefix, reserved);
        else if (nearest)
            say_variable(card, at, nearest, &hint);
    } else if (nearest) {
        chm_string_add(&hint, "%s%s%s", where.length > 0 ? where.text : "", where.length > 0 ? "." : "", nearest);
    }
    if (where.failed || hint.failed) card->starved = true;
    const char *section = where.length > 0 ? where.text : "a model card";
    const char *path = from->variable ? NULL : key;
    if (at->type != CHM_VALUE_OBJECT && at->type != CHM_VALUE_ARRAY)
        chm_card_problem_at(card, from->origin, from->line, path, "%s is a value and has no keys", section);
    else if (hint.length > 0)
        chm_card_problem_at(card, from->origin, from->line, path, "no key '%s' in %s (did you mean '%s'?)", name,
                            section, hint.text);
    else if (names && names[0] && at->parent) {
        chm_card_say_names(card, names, &hint);
        chm_card_problem_at(card, from->origin, from->line, path, "no key '%s' in %s, which has %s", name, section,
                            hint.text ? hint.text : "");
    } else
        chm_card_problem_at(card, from->origin, from->line, path, "no key '%s' in %s", name, section);
    chm_string_finish(&where);
    chm_string_finish(&hint);
}

static void set(chm_card *card, const struct setting *from, const char *key, const char *const *names, size_t count,
                const char *text) {
    unsigned how = CHM_LOCATE_CREATE | (from->variable ? CHM_LOCATE_ANY_CASE : 0);
    const char *path = from->variable ? NULL : key; /* a variable's name says it already */
    chm_value *v = card->root;
    for (size_t i = 0; i < count; i++) {
        chm_value *next = chm_card_step(card, v, names[i], how);
        if (card->starved) return;
        if (!next) {
            unknown(card, from, key, v, names[i]);
            return;
        }
        v = next;
    }
    if (!is_utf8(text)) {
        chm_card_problem_at(card, from->origin, from->line, path, "the value is not UTF-8 text");
        return;
    }
    bool section = v->plugin || v->where || v->type == CHM_VALUE_OBJECT ||
                   (v->row && (v->row->shape == CHM_SHAPE_ITEMS || v->row->shape == CHM_SHAPE_PHASES));
    if (section) {
        chm_card_problem_at(card, from->origin, from->line, path, "a section, not a value; set one of its keys");
        return;
    }
    if (from->round > 0 && v->round == from->round) {
        if (from->line > 0)
            chm_card_problem_at(card, from->origin, from->line, path, "already set on line %d", v->line);
        else
            chm_card_problem_at(card, from->origin, from->line, path, "already set by %s", v->origin);
        return;
    }
    chm_value *read = chm_card_read_text(card, v, text);
    if (!read) return;
    chm_value_assign(v, read);
    v->origin = from->origin;
    v->line = from->line;
    v->round = from->round;
}

/* A dotted key, with or without a section before it. */
static void set_dotted(chm_card *card, const struct setting *from, const char *section, const char *key,
                       const char *text) {
    char *path = section[0] ? chm_format("%s.%s", section, key) : chm_format("%s", key);
    char *parts = path ? chm_strdup(path) : NULL;
    const char *names[CHM_CARD_MAX_DEPTH];
    if (!parts) {
        card->starved = true;
        goto out;
    }
    if (!is_utf8(path)) {
        chm_card_problem_at(card, from->origin, from->line, NULL, "the key is not UTF-8 text");
        goto out;
    }
    size_t count = split(parts, names, CHM_ARRAY_COUNT(names));
    if (count == 0)
        chm_card_problem_at(card, from->origin, from->line, NULL, "'%s' is no key; keys are names with dots between",
                            path);
    else
        set(card, from, path, names, count, text);
out:
    chm_free(parts);
    chm_free(path);
}

/* ---- ini files ---- */

struct overlay {
    chm_card *card;
    const char *name;
    int round;
};

static int ini_entry(void *user, const char *section, const char *key, const char *value, int line) {
    struct overlay *o = user;
    struct setting from = {.origin = o->name, .line = line, .round = o->round};
    set_dotted(o->card, &from, section, key, value);
    return o->card->starved ? CHM_E_MEMORY : CHM_OK;
}

static int lay_ini(chm_card *card, const char *path, int round) {
    char *text = NULL;
    size_t bytes = 0;
    struct overlay o = {card, chm_arena_string(&card->arena, path, strlen(path)), round};
    if (!o.name) return CHM_E_MEMORY;
    int status = chm_read_file(path, 1 << 20, &text, &bytes);
    if (status) return status;
    status = chm_ini_parse(o.name, text, bytes, ini_entry, &o);
    chm_free(text);
    if (status == CHM_E_CONFIG) { /* a malformed line: one more problem beside those of the keys */
        chm_string_add(&card->problems, "%s%s", card->problems.length > 0 ? "\n" : "", chm_error());
        card->problem_count++;
        status = CHM_OK;
    }
    return status;
}

/* ---- environment ---- */

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static bool is_reserved(const char *name, size_t length) {
    if (length >= 5 && strncmp(name, "TEST_", 5) == 0) return true;
    for (const char *const *r = chm_reserved_variables(); *r; r++)
        if (strlen(*r) == length && strncmp(*r, name, length) == 0) return true;
    return false;
}

static void lay_variable(chm_card *card, const char *variable, int round) {
    const char *equals = strchr(variable, '=');
    if (!equals) return;
    char *name = chm_arena_string(&card->arena, variable, (size_t)(equals - variable));
    char *parts = name ? chm_arena_string(&card->arena, name, strlen(name)) : NULL;
    if (!parts) {
        card->starved = true;
        return;
    }
    const char *names[CHM_CARD_MAX_DEPTH];
    size_t count = 0;
    for (char *c = parts + sizeof prefix - 1; c && count < CHM_ARRAY_COUNT(names);) {
        char *end = strstr(c, "__");
        if (end == c) end = NULL; /* a key that begins with underscores */
        if (end) *end = 0;
        names[count++] = c;
        c = end ? end + 2 : NULL;
    }
    struct setting from = {.origin = name, .round = round, .variable = true};
    set(card, &from, name + sizeof prefix - 1, names, count, equals + 1);
}

static int lay_environment(chm_card *card, int round) {
    size_t n = 0;
    for (char **e = environ; e && *e; e++) n++;
    char **list = chm_alloc((n + 1) * sizeof *list);
    if (!list) return CHM_E_MEMORY;
    size_t used = 0;
    for (char **e = environ; e && *e; e++) {
        const char *name = *e + sizeof prefix - 1;
        if (strncmp(*e, prefix, sizeof prefix - 1) == 0 && !is_reserved(name, strcspn(name, "="))) list[used++] = *e;
    }
    qsort(list, used, sizeof *list, by_name); /* the environment has no order of its own */
    for (size_t i = 0; i < used; i++) lay_variable(card, list[i], round);
    chm_free(list);
    return CHM_OK;
}

/* ---- all of them ---- */

int chm_card_overlays(chm_card *card, const struct chm_card_options *options) {
    for (size_t i = 0; i < options->ini_count; i++) {
        int status = lay_ini(card, options->ini[i], (int)i + 1);
        if (status) return status;
    }
    if (options->read_environment) {
        int status = lay_environment(card, (int)options->ini_count + 1);
        if (status) return status;
    }
    if (options->set_count > CHM_CARD_MAX_VALUES)
        return chm_fail(CHM_E_CONFIG, "--set: given %zu times; at most %d", options->set_count, CHM_CARD_MAX_VALUES);
    for (size_t i = 0; i < options->set_count; i++) {
        const char *pair = options->set[i], *equals = strchr(pair, '=');
        struct setting from = {.origin = "--set"};
        if (!equals || equals == pair) {
            chm_card_problem_at(card, from.origin, 0, NULL, "'%s' is not KEY=VALUE", pair);
            continue;
        }
        char *key = chm_format("%.*s", (int)(equals - pair), pair);
        if (!key) return CHM_E_MEMORY;
        set_dotted(card, &from, "", key, equals + 1);
        chm_free(key);
    }
    for (size_t i = 0; i < options->override_count; i++) {
        const struct chm_override *o = &options->override[i];
        const struct setting from = {.origin = chm_arena_string(&card->arena, o->origin, strlen(o->origin))};
        if (!from.origin) return CHM_E_MEMORY;
        set_dotted(card, &from, "", o->key, o->value);
    }
    return card->starved ? CHM_E_MEMORY : CHM_OK;
}
