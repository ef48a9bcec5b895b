/*
 * json.h: jansson on our allocator. It says nothing useful when it runs out of memory, so that is noticed here.
 */
#ifndef CHM_JSON_H
#define CHM_JSON_H

#include "base/base.h"

#include <jansson.h>

/* Before a piece of work with jansson on this thread; then: has an allocation of its failed since? */
void chm_json_begin(void);
bool chm_json_starved(void);

#endif
