/*
 * json.h: what the reports of this room and of core/decode write besides tables.
 */
#ifndef CHM_MODEL_JSON_H
#define CHM_MODEL_JSON_H

#include "base/table.h"

/* text as a JSON string, quotes included; bytes that are not UTF-8 become U+FFFD */
void chm_json_string(FILE *out, const char *text);
/* A table as an array of objects, keys from its head; a column of numbers is written bare and "" is null. `indent`
 * spaces stand before each line but the first; no newline at the end. */
int chm_table_json(const chm_table *t, int indent, FILE *out);
/* CHM_OK, or CHM_E_DATA when anything written to `out` did not arrive */
int chm_report_end(FILE *out);

#endif
