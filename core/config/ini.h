/* ini.h: reading an overlay file. */
#ifndef CHM_INI_H
#define CHM_INI_H

#include "base/base.h"

/* One "key = value": section "" before the first [section]; non-zero stops the reading with that status. */
typedef int (*chm_ini_entry)(void *user, const char *section, const char *key, const char *value, int line);

/* Reads `text` (UTF-8, at most 1 MiB): [section], key = value, comments from ; or # at the start of a line or after
 * " ;". Calls entry for every key in order. A malformed line is refused with "name:line: ...". */
int chm_ini_parse(const char *name, const char *text, size_t bytes, chm_ini_entry entry, void *user);
/* The same, but entry is called for every [section] too, with key and value NULL: one may be empty, or come twice. */
int chm_ini_parse_sections(const char *name, const char *text, size_t bytes, chm_ini_entry entry, void *user);

#endif
