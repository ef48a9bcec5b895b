/*
 * search.h: the parts of the registry, for its own room and its tests.
 */
#ifndef CHM_SEARCH_H
#define CHM_SEARCH_H

#include "plugin/registry.h"

/* Where the library in use lies and the folder of its build's plugins when it runs from the build tree, else NULL. */
const char *chm_build_tree_plugins(void);
const char *chm_installed_plugins(void);

/* What can be read before anything is loaded: numbers. `cpu`: features at hand. */
int chm_check_numbers(const struct chm_plugin *p, uint64_t cpu);
/* Everything else in a descriptor that is in memory: names, option table, ops. Calls nothing in it. */
int chm_check_descriptor(const struct chm_plugin *p);

#endif
