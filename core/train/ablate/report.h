/* report.h: what collect makes of a study's directory, and what writes it. */
#ifndef CHM_ABLATE_REPORT_H
#define CHM_ABLATE_REPORT_H

#include "base/table.h"
#include "train/ablate/ablate.h"

enum { CHM_REPORT_SCORES = 16, CHM_REPORT_BLOCKS = 48, CHM_REPORT_FACTS = 64 };

typedef struct chm_report_cell {
    const char *name;
    int variant, point; /* from 0 */
    int64_t seed;
    chm_cell_state state;
    json_t *result; /* NULL: none */
    char *failure;  /* why it could not run; NULL */
    chm_cell_log log;
} chm_report_cell;

/* A part of the page: a heading, sentences, a table or a drawing, and the command that makes it again. */
typedef struct chm_report_block {
    char *title, *text, *command;
    chm_table table; /* without columns: none */
    char *svg;       /* NULL: none */
    bool main;       /* belongs to the short answer on standard output */
} chm_report_block;

typedef struct chm_report_page {
    const char *directory;
    char *place, *again; /* the directory as a word of a shell; the command that makes tables */
    json_t *manifest;
    const json_t *study, *variants, *grid;
    chm_report_cell *cell;
    int cells, variant_count, points, seeds, baseline;
    const char *score[CHM_REPORT_SCORES]; /* distinct names */
    int scores;
    bool answers; /* of a synthetic task: scored by their share that is right, too */
    int *best;    /* [variants], the point that is compared */
    char *title;
    char *fact[CHM_REPORT_FACTS]; /* sentences on top */
    int facts;
    chm_report_block block[CHM_REPORT_BLOCKS];
    int blocks;
    bool failed; /* out of memory on the way */
} chm_report_page;

/* The number of a cell: bits per byte or the accuracy of a score. NaN: it has none. */
double chm_report_value(const chm_report_page *p, const chm_report_cell *c, int score, bool accuracy);
/* Mean of what `of` says of the cells of a variant at its best point, over those with a number; *n: how many. */
double chm_report_mean(const chm_report_page *p, int variant,
                       double (*of)(const chm_report_page *, const chm_report_cell *), double *deviation, int *n);
const char *chm_report_variant(const chm_report_page *p, int variant);
chm_report_block *chm_report_add(chm_report_page *p, const char *title);

/* plot.c: adds the drawings, by gnuplot, or the sentence that there are none. */
int chm_report_plots(chm_report_page *p);
/* html.c */
void chm_report_html(const chm_report_page *p, FILE *out);

#endif
