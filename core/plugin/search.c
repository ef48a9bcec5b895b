/* search.c: where plugins and cards are looked for by default. The only file that knows where it was built. */
#include "plugin/search.h"
#include "plugin/build_paths.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* The rest of `path` below `directory`, or NULL. */
static const char *below(const char *path, const char *directory) {
    size_t n = strlen(directory);
    while (n > 0 && directory[n - 1] == '/') n--;
    return strncmp(path, directory, n) == 0 && path[n] == '/' ? path + n + 1 : NULL;
}

/* The file this code was loaded from. A library is known by its whole path; the main program by argv[0], which may be
 * anything. */
static bool own_file(char self[PATH_MAX]) {
    Dl_info info;
    if (!dladdr((const void *)(uintptr_t)&chm_build_tree_plugins, &info) || !info.dli_fname) return false;
    return realpath(info.dli_fname[0] == '/' ? info.dli_fname : "/proc/self/exe", self) != NULL;
}

/*
 * A library belongs to the build tree when the file it was loaded from (or the program it is linked into) lies where
 * the build puts such files: at most two folders down. An installation that happens to be staged inside the build
 * directory (DESTDIR, a prefix of its own) is deeper or beside the installed plugins, and does not count.
 */
const char *chm_build_tree_plugins(void) {
    char self[PATH_MAX], root[PATH_MAX], installed[PATH_MAX];
    if (!own_file(self) || !realpath(CHM_BUILD_ROOT, root)) return NULL;
    const char *rest = below(self, root);
    if (!rest || (realpath(CHM_INSTALLED_PLUGINS "/../..", installed) && below(self, installed))) return NULL;
    int folders = 0;
    for (const char *c = rest; *c; c++) folders += *c == '/';
    return folders <= 2 ? CHM_BUILD_PLUGINS : NULL;
}

/*
 * `below` of the prefix in use: what lies above the library, since an installation may be moved as a whole (a package's
 * DESTDIR, an archive unpacked elsewhere). A library that does not lie where an installed one does (linked into a
 * program, a libdir outside of the prefix) gets `configured`.
 */
static char *in_prefix(const char *below, const char *configured) {
    char self[PATH_MAX];
    char *end = own_file(self) ? strrchr(self, '/') : NULL;
    const size_t n = strlen("/" CHM_LIBDIR);
    if (end && (size_t)(end - self) >= n && strncmp(end - n, "/" CHM_LIBDIR, n) == 0 && below[0] != '/')
        return chm_format("%.*s/%s", (int)(end - n - self), self, below);
    return chm_strdup(configured);
}

char *chm_installed_plugins(void) { return in_prefix(CHM_LIBDIR "/chimera/plugins", CHM_INSTALLED_PLUGINS); }

/* ---- cards ---- */

static int json_files(const struct dirent *e) {
    const size_t n = strlen(e->d_name);
    return n > 5 && e->d_name[0] != '.' && strcmp(e->d_name + n - 5, ".json") == 0;
}

static int by_bytes(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

char *chm_shipped_cards(chm_string *names) {
    char *directory = chm_build_tree_plugins() ? chm_strdup(CHM_SOURCE_CARDS)
                                               : in_prefix(CHM_DATADIR "/chimera", CHM_INSTALLED_CARDS);
    struct dirent **list = NULL;
    const int n = directory ? scandir(directory, &list, json_files, by_bytes) : 0;
    for (int i = 0; i < n; i++) {
        chm_string_add(names, "%s%.*s", i ? " " : "", (int)strlen(list[i]->d_name) - 5, list[i]->d_name);
        free(list[i]);
    }
    free(list);
    if (directory && ((n < 0 && errno == ENOMEM) || names->failed)) {
        chm_fail(CHM_E_MEMORY, "out of memory for the names of cards");
        chm_free(directory);
        directory = NULL;
    }
    return directory;
}
