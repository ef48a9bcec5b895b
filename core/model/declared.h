/*
 * declared.h: the numbers a card states about itself, beside those that follow from its structure.
 */
#ifndef CHM_MODEL_DECLARED_H
#define CHM_MODEL_DECLARED_H

#include "base/table.h"
#include "config/card.h"

/* Parameters of one part, and what the card's formats make of them. */
typedef struct chm_part_size {
    int64_t parameters, norms, ternary; /* norms, ternary: those of the parameters with that role */
    size_t bytes;                       /* as a .b158 stores them */
} chm_part_size;

/* What the structure of a card gives, layers that are not built counted as their description says. */
typedef struct chm_figures {
    chm_part_size embedding, base, experts; /* base: all but embedding, routers and experts; it has every norm */
    int64_t experts_active;                 /* of routers and experts, for one token */
    int64_t looped;                         /* parameters met again in every further pass of the loop */
    size_t state_bytes;                     /* of one stream */
    int planned;                            /* layers and ffns among them that are not built */
} chm_figures;

/*
 * Lines "key, declared, computed, verdict, note" for every stated number that can be computed, and lines "keys,
 * finding" for values of the card that contradict each other or a rule of arithmetic. Tables are initialised here.
 */
void chm_declared_numbers(const chm_card *card, const chm_figures *f, chm_table *out);
void chm_declared_findings(const chm_card *card, const chm_figures *f, chm_table *out);

/* ---- reading a resolved card ---- */
/* the number at key, or `otherwise` */
double chm_card_number(const chm_card *card, const char *key, double otherwise);
/* the numbers of a list, nested ones too; returns how many there are, of which at most `cap` are written */
int chm_card_numbers(const chm_card *card, const char *key, double *out, int cap);
/* megabytes in a row of memory_budget_mb, or NAN */
double chm_budget_row(const chm_card *card, const char *name);
bool chm_card_on(const chm_card *card, const char *key);
/* parameters of a mixture that one token does not meet: those of the experts it does not choose */
int64_t chm_experts_skipped(const chm_card *card);
/* whether the text at key contains `word` */
bool chm_card_says(const chm_card *card, const char *key, const char *word);

#endif
