/*
 * table.h: tables of text, for every report: aligned columns, Markdown, CSV.
 */
#ifndef CHM_TABLE_H
#define CHM_TABLE_H

#include "base/base.h"
#include <chimera/chimera.h> /* chm_output */

enum { CHM_TABLE_COLUMNS = 64 };
typedef struct chm_table {
    const char *head[CHM_TABLE_COLUMNS]; /* the caller's, while the table lives */
    bool right[CHM_TABLE_COLUMNS];       /* align to the right: numbers */
    int columns;
    char **cells; /* rows * columns */
    size_t count, capacity;
    bool failed; /* out of memory on the way: print says so */
} chm_table;

void chm_table_init(chm_table *t);
/* Columns first, all of them; "#tokens" is a column of numbers called "tokens". */
void chm_table_column(chm_table *t, const char *head);
/* Cells row by row, left to right. */
void chm_table_cell(chm_table *t, const char *format, ...) CHM_PRINTF(2, 3);
/* CHM_OUTPUT_TEXT, _MD or _CSV. An unfinished last row is not printed. */
int chm_table_print(const chm_table *t, chm_output format, FILE *out);
void chm_table_finish(chm_table *t);

#endif
