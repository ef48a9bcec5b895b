/* search.c: where plugins are looked for by default. The only file that knows where it was built. */
#include "plugin/search.h"
#include "plugin/build_paths.h"

#include <dlfcn.h>
#include <limits.h>
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
    char self[PATH_MAX], root[PATH_MAX], installed[PATH_MAX];
    if (!dladdr((const void *)(uintptr_t)&chm_build_tree_plugins, &info) || !info.dli_fname) return NULL;
    /* A library is known by its whole path; the main program by argv[0], which may be anything. */
    if (!realpath(info.dli_fname[0] == '/' ? info.dli_fname : "/proc/self/exe", self) ||
        !realpath(CHM_BUILD_ROOT, root))
        return NULL;
    const char *rest = below(self, root);
    if (!rest || (realpath(CHM_INSTALLED_PLUGINS "/../..", installed) && below(self, installed))) return NULL;
    int folders = 0;
    for (const char *c = rest; *c; c++) folders += *c == '/';
    return folders <= 2 ? CHM_BUILD_PLUGINS : NULL;
}

const char *chm_installed_plugins(void) { return CHM_INSTALLED_PLUGINS; }
