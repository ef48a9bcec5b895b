/*
 * search.h: the parts of the registry, for its own room and its tests.
 */
#ifndef CHM_SEARCH_H
#define CHM_SEARCH_H

#include "plugin/registry.h"

/* The folder of its build's plugins when the library runs from the build tree, else NULL. */
const char *chm_build_tree_plugins(void);
/* The directory of installed plugins, which need not exist; chm_free() it. NULL: out of memory. */
char *chm_installed_plugins(void);
/* The directory of the cards that come with this library, which need not exist; chm_free() it. NULL: out of memory.
 * Their names, without .json and with a space between, are added to `names`. */
char *chm_shipped_cards(chm_string *names);

/* What can be read before anything is loaded: numbers. `cpu`: features at hand. */
int chm_check_numbers(const struct chm_plugin *p, uint64_t cpu);
/* Everything else in a descriptor that is in memory: names, option table, ops. Calls nothing in it. */
int chm_check_descriptor(const struct chm_plugin *p);

#endif
