/* card_internal.h: what the files of this room share. */
#ifndef CHM_CARD_INTERNAL_H
#define CHM_CARD_INTERNAL_H

#include "config/card.h"
#include "config/value.h"

struct chm_card {
    chm_arena arena;
    const chm_registry *registry; /* must outlive the card */
    const char *name;             /* the file, in sentences */
    chm_value *root;
    chm_model_config model;
    chm_train_config train;
    const char **unbuilt;     /* NULL-terminated */
    chm_string unused;        /* "modes, context_tiers" */
    const chm_value *missing; /* the switch of the first section that is on, not built and would change numbers */
    chm_string problems;      /* one line each */
    int problem_count;
    bool starved;   /* out of memory on the way */
    bool one_layer, trained; /* chm_card_options */
};

/* ---- problems: all are collected, the first CHM_MAX_PROBLEMS shown ---- */
enum { CHM_MAX_PROBLEMS = 20 };
/* "file:line: path: sentence"; line 0: the origin alone; path NULL: none */
void chm_card_problem_at(chm_card *card, const char *origin, int line, const char *path, const char *format, ...)
    CHM_PRINTF(5, 6);
/* The same for a value: where it was set, and its path. A default is charged to the card. */
void chm_card_problem(chm_card *card, const chm_value *v, const char *format, ...) CHM_PRINTF(3, 4);

/* ---- tree and schema (tree.c) ---- */
/* Ties every value below v to its row or option. Idempotent. */
void chm_card_annotate(chm_card *card, chm_value *v);
/* Unknown keys, types, ranges, missing keys: everything one row can say. */
void chm_card_check_rows(chm_card *card, chm_value *v);
/* Adds the defaults of every section that exists below v. */
void chm_card_fill(chm_card *card, chm_value *v);
/* Adds key to an object as a section, a list or a value still to be set. NULL: out of memory. */
chm_value *chm_card_add(chm_card *card, chm_value *object, const char *key, enum chm_value_type type);
/* Text (JSON spelling or bare words) as the row or option of `v` reads it; NULL: out of memory. */
chm_value *chm_card_read_text(chm_card *card, const chm_value *v, const char *text);
/* The value at a dotted path, exactly, or NULL. */
chm_value *chm_card_find(const chm_card *card, const char *path);
enum {
    CHM_LOCATE_CREATE = 1u,   /* make what is missing on the way */
    CHM_LOCATE_ANY_CASE = 2u, /* names compare without case */
};
/* The value a user means by one more name below `at`: a key, a plugin's name for its section, a phase by name, an
 * index. NULL when there is none, or out of memory. */
chm_value *chm_card_step(chm_card *card, chm_value *at, const char *name, unsigned how);
/* The section at a dotted path of keys. */
chm_value *chm_card_section(chm_card *card, const char *section, unsigned how);
/* Names that may stand below `at`, NULL-terminated, in the arena. */
const char *const *chm_card_names(chm_card *card, const chm_value *at);
/* "a, b, c", cut after about 300 bytes */
void chm_card_say_names(chm_card *card, const char *const *names, chm_string *out);

/* ---- overlays (overlay.c) ---- */
int chm_card_overlays(chm_card *card, const struct chm_card_options *options);

/* ---- contradictions, and the structs (check.c) ---- */
void chm_card_resolve(chm_card *card);
void chm_card_contradictions(chm_card *card);
void chm_card_list_unbuilt(chm_card *card);

/* ---- small things ---- */
/* Plugin by name or alias, or NULL; no sentence. */
const struct chm_plugin *chm_find_plugin(const chm_registry *r, enum chm_kind kind, const char *name, bool any_case);
/* Whether `word` is one of the words of `list`, separated by `separator`. */
bool chm_has_word(const char *list, char separator, const char *word, bool any_case);

#endif
