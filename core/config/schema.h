/*
 * schema.h: what a model card may say, as data. One row a key: where it stands, its shape, and a chm_option (type,
 * default, range, accepted words, one sentence). Sections whose plugin is loaded are described by the plugin's own
 * option table instead; the rows of such a section here serve only while the plugin does not exist.
 *
 * A path is dotted; "*" stands for any key of a map or any item of a list of objects. The items of training.phases are
 * told apart by their kind: their rows stand under training.phases.KIND. The key "§" (sources) is allowed in every
 * section and is not listed.
 */
#ifndef CHM_SCHEMA_H
#define CHM_SCHEMA_H

#include "base/base.h"

enum chm_shape {
    CHM_SHAPE_VALUE,    /* what chm_option describes */
    CHM_SHAPE_SECTION,  /* an object with the keys the rows below it name */
    CHM_SHAPE_MAP,      /* an object whose keys are free; the row "PATH.*" describes each value */
    CHM_SHAPE_ITEMS,    /* a list of objects, each described by the rows under "PATH.*" */
    CHM_SHAPE_PHASES,   /* a list of objects, each described by the rows under "PATH.KIND" */
    CHM_SHAPE_TEXTS,    /* a string or a list of strings */
    CHM_SHAPE_TUPLE,    /* a list of fixed items: `tuple` has their types, "int:1:64 float text:some/words"; an
                         * alternative behind '|' may be one item, which then stands alone */
    CHM_SHAPE_TUPLES,   /* a list of such lists; alternatives separated by '|' */
    CHM_SHAPE_SOURCES,  /* strings, lists of strings or an object of strings: references to papers */
    CHM_SHAPE_DOCUMENT, /* documentation: objects, strings and lists of strings, to any depth */
};

enum {
    CHM_ROW_REQUIRED = 1u, /* a card without it is refused */
    CHM_ROW_ALWAYS = 2u,   /* a section that exists, with its defaults, in every resolved card */
    CHM_ROW_NUMBERS = 4u,  /* planned, and would change the numbers of training or inference when on */
};

struct chm_schema_row {
    const char *path;
    enum chm_shape shape;
    unsigned flags;
    struct chm_option option; /* name: the path; for other shapes than VALUE only `doc` counts */
    const char *tuple;        /* items: "int", "float", "text", or the very word that must stand there */
    const char *planned;      /* what the section drives while nothing built reads it: "layer plugin" */
};

/* All rows, in the order of the card. */
const struct chm_schema_row *chm_schema(size_t *count);
/* The row of `key` under the object described by row path `where` ("" for the card itself), or NULL. */
const struct chm_schema_row *chm_schema_key(const char *where, const char *key);
/* The i-th row that stands directly under `where`, wildcards left out, or NULL past the end. Start with *cursor = 0. */
const struct chm_schema_row *chm_schema_next(const char *where, size_t *cursor);
/* CHM_OK when a plugin of this kind may have the section: one that no row describes, or that is there for its kind. */
int chm_schema_check_section(const char *section, enum chm_kind kind);
/* The part of a row's path after its last dot. */
const char *chm_schema_name(const struct chm_schema_row *row);

/* Layer and ffn plugins a card may name although they may not be loaded. */
struct chm_planned_layer {
    const char *name;    /* "titans" */
    const char *aliases; /* separated by spaces */
};
const struct chm_planned_layer *chm_planned_layers(size_t *count);
/* Names of tokenizers a card may ask for, NULL-terminated. */
const char *const *chm_planned_tokenizers(void);
/* CHIMERA_* variables that are no card keys, without the prefix, NULL-terminated. */
const char *const *chm_reserved_variables(void);

#endif
