/* options.c: option tables. Text in, typed values out, and every refusal says what would have been accepted. */
#include "base/json.h"
#include "plugin/registry.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char blanks[] = " \t\r\n";

/* ---- numbers ---- */

int chm_parse_count(const char *text, int64_t *out) {
    static const struct {
        char letter;
        int zeros;
    } units[] = {{'M', 6}, {'B', 9}, {'T', 12}};
    const char *c = text;
    bool negative = *c == '-';
    if (*c == '-' || *c == '+') c++;
    uint64_t value = 0;
    int digits = 0, decimals = 0, zeros = 0;
    bool point = false;
    for (;; c++) {
        if (*c == '.' && !point && digits > 0) {
            point = true;
            continue;
        }
        if (*c < '0' || *c > '9') break;
        if (value > (uint64_t)INT64_MAX / 10 - 1) goto refuse;
        value = value * 10 + (uint64_t)(*c - '0');
        digits++;
        decimals += point;
    }
    if (digits == 0 || (point && decimals == 0)) goto refuse;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(units); i++) {
        if (*c == units[i].letter) {
            zeros = units[i].zeros;
            c++;
            break;
        }
    }
    if (*c || (point && zeros == 0)) goto refuse;
    for (; decimals > 0 && value % 10 == 0; decimals--) value /= 10;
    if (decimals > zeros) goto refuse; /* not a whole number */
    for (zeros -= decimals; zeros > 0; zeros--) {
        if (value > (uint64_t)INT64_MAX / 10) goto refuse;
        value *= 10;
    }
    *out = negative ? -(int64_t)value : (int64_t)value;
    return CHM_OK;
refuse:
    return chm_fail(CHM_E_CONFIG, "'%s' is not a whole number (digits, or with M, B or T for 1e6, 1e9, 1e12)", text);
}

/* Decimal, whatever the locale of the program we are part of. */
static bool parse_float(const char *text, double *out) {
    if (!*text || text[strspn(text, "+-.0123456789eE")]) return false;
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!c) return false;
    char *end;
    *out = strtod_l(text, &end, c);
    freelocale(c);
    return *end == 0 && end != text && isfinite(*out);
}

/* ---- choices ---- */

/* The number of `word` in "a|b|c", or -1. */
static int32_t choice(const char *choices, const char *word) {
    size_t n = strlen(word);
    int32_t i = 0;
    for (const char *c = choices; c; i++) {
        const char *end = strchr(c, '|');
        size_t length = end ? (size_t)(end - c) : strlen(c);
        if (n == length && memcmp(c, word, n) == 0) return i;
        c = end ? end + 1 : NULL;
    }
    return -1;
}

/* Copies "a|b|c" into text as "a, b, c". */
static void say_choices(const char *choices, char *text, size_t n) {
    size_t used = 0;
    for (const char *c = choices; *c && used + 3 < n; c++) {
        text[used++] = *c == '|' ? ',' : *c;
        if (*c == '|') text[used++] = ' ';
    }
    text[used] = 0;
}

static const char *nearest_choice(const char *choices, const char *word, char *buffer, size_t n) {
    const char *list[65];
    size_t count = 0;
    if (!choices || strlen(choices) >= n) return NULL;
    strcpy(buffer, choices);
    for (char *c = buffer; c && count < 64;) {
        list[count++] = c;
        c = strchr(c, '|');
        if (c) *c++ = 0;
    }
    list[count] = NULL;
    return chm_nearest(word, list);
}

/* ---- what an option accepts ---- */

static bool is_list(enum chm_option_type type) {
    return type == CHM_OPT_INT_LIST || type == CHM_OPT_FLOAT_LIST || type == CHM_OPT_STRING_LIST;
}

static bool bounded(const struct chm_option *o) { return o->min != 0 || o->max != 0; }

static void say_range(const struct chm_option *o, char *text, size_t n) {
    text[0] = 0;
    if (!bounded(o)) return;
    bool low = o->min > -HUGE_VAL, high = o->max < HUGE_VAL;
    if (low && high) {
        snprintf(text, n, " %.10g..%.10g", o->min, o->max);
    } else if (low) {
        snprintf(text, n, " >= %.10g", o->min);
    } else if (high) {
        snprintf(text, n, " <= %.10g", o->max);
    }
}

void chm_option_accepts(const struct chm_option *o, char *text, size_t n) {
    char range[80], choices[400], length[64] = "";
    say_range(o, range, sizeof range);
    choices[0] = 0;
    if (o->choices) say_choices(o->choices, choices, sizeof choices);
    if (is_list(o->type) && o->list_max > 0) {
        if (o->list_min == o->list_max) {
            snprintf(length, sizeof length, " %d", o->list_max);
        } else if (o->list_min <= 0) {
            snprintf(length, sizeof length, " at most %d", o->list_max);
        } else {
            snprintf(length, sizeof length, " %d to %d", o->list_min, o->list_max);
        }
    } else if (is_list(o->type) && o->list_min > 0) {
        snprintf(length, sizeof length, " %d or more", o->list_min);
    }
    const char *plural = o->list_max == 1 ? "" : "s";
    switch (o->type) {
    case CHM_OPT_BOOL:
        snprintf(text, n, "true or false");
        return;
    case CHM_OPT_INT:
        snprintf(text, n, "integer%s", range);
        return;
    case CHM_OPT_FLOAT:
        snprintf(text, n, "number%s", range);
        return;
    case CHM_OPT_ENUM:
        snprintf(text, n, "one of %s", choices);
        return;
    case CHM_OPT_STRING:
        if (o->choices) {
            snprintf(text, n, "one of %s", choices);
        } else {
            snprintf(text, n, "text");
        }
        return;
    case CHM_OPT_INT_LIST:
        snprintf(text, n, "list of%s integer%s%s", length, plural, range);
        return;
    case CHM_OPT_FLOAT_LIST:
        snprintf(text, n, "list of%s number%s%s", length, plural, range);
        return;
    case CHM_OPT_STRING_LIST:
        if (o->choices) {
            snprintf(text, n, "list of%s from: %s", *length ? length : " names", choices);
        } else {
            snprintf(text, n, "list of%s text%s", length, plural);
        }
        return;
    }
    snprintf(text, n, "nothing (unknown type %d)", (int)o->type);
}

static int refuse(const struct chm_option *o, const char *value, const char *word) {
    char accepts[600], copy[400];
    chm_option_accepts(o, accepts, sizeof accepts);
    const char *nearest = nearest_choice(o->choices, word, copy, sizeof copy);
    if (nearest)
        return chm_fail(CHM_E_CONFIG, "%s: '%.200s' is not accepted: expected %s (did you mean '%s'?)", o->name, value,
                        accepts, nearest);
    return chm_fail(CHM_E_CONFIG, "%s: '%.200s' is not accepted: expected %s", o->name, value, accepts);
}

static bool in_range(const struct chm_option *o, double value) {
    return !bounded(o) || (value >= o->min && value <= o->max);
}

/* ---- text to values ---- */

/* The item at *at: a JSON string, or bare characters up to a comma or closing bracket (all the rest outside lists).
 * The result is the caller's to free; NULL and no sentence when it is malformed, or memory ran out (*memory set). */
static char *take_item(const char **at, bool in_list, bool *quoted, bool *memory) {
    const char *c = *at + strspn(*at, blanks), *end = c;
    char *item = NULL;
    *quoted = *c == '"';
    *memory = false;
    if (*quoted) {
        for (end = c + 1; *end && *end != '"'; end++)
            if (*end == '\\' && end[1]) end++;
        if (*end != '"') return NULL;
        end++;
        json_t *json = chm_json_load(c, (size_t)(end - c), NULL);
        const char *value = json_string_value(json);
        *memory = !json && chm_json_starved();
        if (value) {
            item = chm_strdup(value);
            *memory = !item;
        }
        json_decref(json);
    } else {
        while (*end && !(in_list && (*end == ',' || *end == ']'))) end++;
        const char *last = end;
        while (last > c && strchr(blanks, last[-1])) last--;
        item = chm_format("%.*s", (int)(last - c), c);
        *memory = !item;
    }
    *at = end + strspn(end, blanks);
    return item;
}

static int store_text(const char *text, const char **out, chm_arena *arena) {
    size_t n = strlen(text) + 1;
    char *copy = arena ? chm_arena_take(arena, n) : NULL;
    if (!copy) return chm_fail(CHM_E_MEMORY, "out of memory keeping '%s'", text);
    memcpy(copy, text, n);
    *out = copy;
    return CHM_OK;
}

/* One number or word of a list into slot `i` of `items` (NULL: only checked). */
static int list_item(const struct chm_option *o, const char *text, const char *item, bool quoted, void *items,
                     int64_t i, chm_arena *arena) {
    int64_t whole = 0;
    double number = 0;
    switch (o->type) {
    case CHM_OPT_INT_LIST:
        if (chm_parse_count(item, &whole) || !in_range(o, (double)whole)) return refuse(o, text, item);
        if (items) ((int64_t *)items)[i] = whole;
        return CHM_OK;
    case CHM_OPT_FLOAT_LIST:
        if (quoted || !parse_float(item, &number) || !in_range(o, number)) return refuse(o, text, item);
        if (items) ((double *)items)[i] = number;
        return CHM_OK;
    default:
        if (!quoted && !*item) return refuse(o, text, item);
        if (o->choices && choice(o->choices, item) < 0) return refuse(o, text, item);
        return items ? store_text(item, &((const char **)items)[i], arena) : CHM_OK;
    }
}

/* "[a, b]", or the items alone. Two passes: count and check, then store. */
static int parse_list(const struct chm_option *o, const char *text, void *out, chm_arena *arena) {
    static const size_t sizes[] = {
        [CHM_OPT_INT_LIST] = sizeof(int64_t),
        [CHM_OPT_FLOAT_LIST] = sizeof(double),
        [CHM_OPT_STRING_LIST] = sizeof(char *),
    };
    int64_t count = 0;
    void *items = NULL;
    for (int pass = 0; pass < 2; pass++) {
        const char *at = text + strspn(text, blanks);
        bool bracket = *at == '[';
        if (bracket) at++;
        at += strspn(at, blanks);
        count = 0;
        while (*at && *at != ']') {
            bool quoted, memory;
            char *item = take_item(&at, true, &quoted, &memory);
            if (!item) return memory ? CHM_E_MEMORY : refuse(o, text, text);
            int status = list_item(o, text, item, quoted, items, count++, arena);
            chm_free(item);
            if (status) return status;
            if (*at == ',') {
                at++;
                at += strspn(at, blanks);
                if (!*at || *at == ']') return refuse(o, text, text); /* nothing after the comma */
            } else if (*at && *at != ']') {
                return refuse(o, text, text);
            }
        }
        if (bracket && *at == ']') {
            at++;
        } else if (bracket) {
            return refuse(o, text, text);
        }
        if (at[strspn(at, blanks)]) return refuse(o, text, text);
        if (pass == 0) {
            if ((o->list_min > 0 && count < o->list_min) || (o->list_max > 0 && count > o->list_max))
                return refuse(o, text, text);
            if (!out) return CHM_OK;
            items = arena ? chm_arena_take(arena, (size_t)CHM_MAX(count, 1) * sizes[o->type]) : NULL;
            if (!items) return chm_fail(CHM_E_MEMORY, "%s: out of memory", o->name);
        }
    }
    switch (o->type) {
    case CHM_OPT_INT_LIST:
        *(struct chm_int_list *)out = (struct chm_int_list){items, count};
        break;
    case CHM_OPT_FLOAT_LIST:
        *(struct chm_float_list *)out = (struct chm_float_list){items, count};
        break;
    default:
        *(struct chm_string_list *)out = (struct chm_string_list){items, count};
        break;
    }
    return CHM_OK;
}

int chm_option_parse(const struct chm_option *o, const char *text, void *base, chm_arena *arena) {
    void *out = base && o->offset != CHM_OPTION_CHECKED ? (char *)base + o->offset : NULL;
    if (is_list(o->type)) return parse_list(o, text, out, arena);

    int status = CHM_OK;
    bool quoted, memory;
    const char *at = text;
    char *item = take_item(&at, false, &quoted, &memory);
    if (!item) return memory ? CHM_E_MEMORY : refuse(o, text, text);
    if (*at) {
        status = refuse(o, text, item);
        goto out;
    }
    int64_t whole = 0;
    double number = 0;
    int32_t index = 0;
    switch (o->type) {
    case CHM_OPT_BOOL:
        if (quoted || (strcmp(item, "true") != 0 && strcmp(item, "false") != 0)) {
            status = refuse(o, text, item);
        } else if (out) {
            *(bool *)out = item[0] == 't';
        }
        break;
    case CHM_OPT_INT: /* a card may write "4M" as a string */
        if (chm_parse_count(item, &whole) || !in_range(o, (double)whole)) {
            status = refuse(o, text, item);
        } else if (out) {
            *(int64_t *)out = whole;
        }
        break;
    case CHM_OPT_FLOAT:
        if (quoted || !parse_float(item, &number) || !in_range(o, number)) {
            status = refuse(o, text, item);
        } else if (out) {
            *(double *)out = number;
        }
        break;
    case CHM_OPT_ENUM:
        index = o->choices ? choice(o->choices, item) : -1;
        if (index < 0) {
            status = refuse(o, text, item);
        } else if (out) {
            *(int32_t *)out = index;
        }
        break;
    case CHM_OPT_STRING:
        if (!quoted && strcmp(item, "null") == 0) {
            if (out) *(const char **)out = NULL;
        } else if (o->choices && choice(o->choices, item) < 0) {
            status = refuse(o, text, item);
        } else if (out) {
            status = store_text(item, out, arena);
        }
        break;
    default:
        status = refuse(o, text, item);
        break;
    }
out:
    chm_free(item);
    return status;
}

int chm_option_defaults(const struct chm_option *table, uint32_t count, void *base, chm_arena *arena) {
    for (uint32_t i = 0; i < count; i++) {
        if (!table[i].def) continue; /* text or list that stays empty */
        int status = chm_option_parse(&table[i], table[i].def, base, arena);
        if (status) return status;
    }
    return CHM_OK;
}

const struct chm_option *chm_option_find(const struct chm_option *table, uint32_t count, const char *name) {
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(table[i].name, name) == 0) return &table[i];
    return NULL;
}
