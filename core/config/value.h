/*
 * value.h: a card as a tree of values that remember where they were written. JSON comes in through jansson; a walk over
 * the accepted text gives every value its line. Everything lives in one arena.
 */
#ifndef CHM_VALUE_H
#define CHM_VALUE_H

#include "config/schema.h"

enum chm_value_type {
    CHM_VALUE_NULL,
    CHM_VALUE_BOOL,
    CHM_VALUE_INT,
    CHM_VALUE_REAL,
    CHM_VALUE_STRING,
    CHM_VALUE_ARRAY,
    CHM_VALUE_OBJECT,
};

typedef struct chm_value {
    struct chm_value *parent, *next, *first, *last; /* children in the order written */
    const char *key;                                /* NULL in lists and at the root */
    enum chm_value_type type;
    bool invalid; /* a problem was reported: nothing may rely on it */
    union {
        bool boolean;
        int64_t integer;
        double real;
        const char *text;
    };
    int64_t count;      /* children */
    const char *origin; /* a file, "default", "--set" or a variable */
    int line;           /* in that file; 0: not a file */
    int round;          /* which source set it last: 0 the card, then one number per ini file, then the environment */

    /* what the schema says; set by the card */
    const struct chm_schema_row *row;
    const struct chm_option *option;
    const struct chm_plugin *plugin; /* a section described by a plugin's options */
    const char *where;               /* row path of an object's keys; NULL: not described by rows */
    const char *shown;               /* the value as JSON, once resolved */
    const char *shown_origin;        /* "file:line" */
} chm_value;

enum { CHM_CARD_MAX_BYTES = 1 << 20, CHM_CARD_MAX_DEPTH = 64, CHM_CARD_MAX_VALUES = 10000 };

/* A JSON object of at most 1 MiB, 64 levels deep, 10,000 values, UTF-8, no duplicate keys, nothing after it. `name`
 * stands for the file in sentences and origins and must live as long as the arena. */
int chm_value_parse(const char *name, const char *text, size_t bytes, chm_arena *arena, chm_value **out);
/* One JSON value of any type; NULL when `text` is none (no sentence is recorded then) or out of memory (*failed). */
chm_value *chm_value_scalar(const char *text, chm_arena *arena, bool *failed);
/* A new value, or NULL when out of memory. Strings are copied. */
chm_value *chm_value_new(enum chm_value_type type, chm_arena *arena);
chm_value *chm_value_string(const char *text, size_t length, chm_arena *arena);
char *chm_arena_string(chm_arena *arena, const char *text, size_t length);
void chm_value_append(chm_value *parent, chm_value *child);
/* Moves the content of `from` into `to`, which keeps its place and its key. */
void chm_value_assign(chm_value *to, const chm_value *from);
chm_value *chm_value_member(const chm_value *object, const char *key);

/* Dotted path of a value, list items by index: "training.phases.0.lr". */
void chm_value_path(const chm_value *v, chm_string *out);
/* JSON text; indent < 0: on one line. */
void chm_value_write(const chm_value *v, int indent, chm_string *out);
/* The shortest JSON number that reads back as x; false when out of memory. */
bool chm_value_number(double x, chm_string *out);

#endif
