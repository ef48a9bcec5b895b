/*
 * json.h: jansson on our allocator. It says nothing useful when it runs out of memory, so that is noticed here.
 */
#ifndef CHM_JSON_H
#define CHM_JSON_H

#include "base/base.h"

#include <jansson.h>

/* Before a piece of work with jansson on this thread. Once an allocation of its has failed it gets no more until the
 * next chm_json_begin(), so whatever comes of that work is to be thrown away: chm_json_starved(). */
void chm_json_begin(void);
bool chm_json_starved(void);
/* One JSON value, duplicate keys refused; begins by itself. NULL: out of memory (starved), or `error` (may be NULL)
 * says why not; its place is that in `text` where that is an object. */
json_t *chm_json_load(const char *text, size_t bytes, json_error_t *error);
/* A string, null for NULL. Text that need not be UTF-8 (paths): of what is not, bytes above ASCII become '?'. */
json_t *chm_json_text(const char *s);
/* The report `json`, which it releases, indented and with a newline. `what` begins the sentence of a failure. */
int chm_json_print(json_t *json, const char *what, FILE *out);

#endif
