/* search.c: where plugins are looked for by default. The only file that knows where it was built. */
#include "plugin/search.h"
#include "plugin/build_paths.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* The rest of `path` below `directory`, or NULL. */
static const char *below(const char *path, const char *directory) {
    size_t n = strlen(directory);
    while (n > 0 && directory[n - 1] == '/') n--;
    return strncmp(path, directory, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

/*
 * A library belongs to the build tree when the file it was loaded from (or the program it is linked into) lies where
 * the build puts such files: at most two folders down. An installation that happens to be staged inside the build
 * directory (DESTDIR, a prefix of its own) is deeper or beside the installed plugins, and does not count.
 */
const char *chm_build_tree_plugins(void) {
    Dl_info info;
    const char *found = NULL;
    char *self = NULL, *root = NULL, *installed = NULL;
    if (!dladdr((const void *)(uintptr_t)&chm_build_tree_plugins, &info) || !info.dli_fname) return NULL;
    /* A library is known by its whole path; the main program by argv[0], which may be anything. */
    self = realpath(info.dli_fname[0] == '/' ? info.dli_fname : "/proc/self/exe", NULL);
    root = realpath(CHM_BUILD_ROOT, NULL);
    installed = realpath(CHM_INSTALLED_PLUGINS "/../..", NULL);
    if (!self || !root) goto out;
    const char *rest = below(self, root);
    if (!rest || (installed && below(self, installed))) goto out;
    int folders = 0;
    for (const char *c = rest; *c; c++) folders += *c == '/';
    if (folders <= 2) found = CHM_BUILD_PLUGINS;
out:
    free(installed);
    free(root);
    free(self);
    return found;
}

const char *chm_installed_plugins(void) { return CHM_INSTALLED_PLUGINS; }
