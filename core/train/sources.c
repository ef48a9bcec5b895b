/* sources.c: which files a word of DATA names: itself, those below a directory, those that a pattern matches. */
#include "train/data.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct search {
    chm_sources *found;
    struct stat except; /* a directory that is not looked into */
    bool has_except;
} search;

static int add(chm_sources *s, const char *path, int64_t bytes) {
    if (s->count == s->capacity) {
        const uint32_t wanted = s->capacity + s->capacity / 2 + 16;
        char **more = chm_realloc(s->path, wanted * sizeof *more);
        if (more == NULL) return CHM_E_MEMORY;
        s->path = more;
        s->capacity = wanted;
    }
    if ((s->path[s->count] = chm_strdup(path)) == NULL) return CHM_E_MEMORY;
    s->count++;
    s->bytes += bytes;
    return CHM_OK;
}

static char *join(const char *directory, const char *name) {
    const size_t n = strlen(directory);
    return chm_format("%s%s%s", directory, n == 0 || directory[n - 1] == '/' ? "" : "/", name);
}

/* What is done with the entry `name` of a directory; `path` is both together. */
typedef int (*visitor)(const search *f, const char *path, const char *name, const void *user);

static int each_entry(const search *f, const char *directory, visitor visit, const void *user) {
    int status = CHM_OK;
    DIR *d = opendir(*directory ? directory : ".");
    if (d == NULL) return chm_fail_system("%s: cannot open the directory", *directory ? directory : ".");
    while (status == CHM_OK) {
        errno = 0;
        const struct dirent *entry = readdir(d);
        if (entry == NULL) {
            if (errno != 0) status = chm_fail_system("%s: cannot read the directory", *directory ? directory : ".");
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        char *path = join(directory, entry->d_name);
        status = path != NULL ? visit(f, path, entry->d_name, user) : CHM_E_MEMORY;
        chm_free(path);
    }
    closedir(d);
    return status;
}

static int visit_below(const search *f, const char *path, const char *name, const void *user);

/* A path that was found, not named. Left out are empty files and what is neither file nor directory; a link is what it
 * leads to, unless that is a directory, of which there may be a circle. */
static int take(const search *f, const char *path, bool below) {
    struct stat st;
    if (lstat(path, &st) != 0) return chm_fail_system("%s: cannot stat", path);
    if (S_ISLNK(st.st_mode)) {
        if (stat(path, &st) != 0)
            return chm_fail_system("%s: a link that leads to nothing readable; mend it, or take it out of the data",
                                   path);
        if (S_ISDIR(st.st_mode) && below) return CHM_OK;
    }
    if (S_ISDIR(st.st_mode)) {
        if (f->has_except && st.st_dev == f->except.st_dev && st.st_ino == f->except.st_ino) return CHM_OK;
        return each_entry(f, path, visit_below, NULL);
    }
    return S_ISREG(st.st_mode) && st.st_size > 0 ? add(f->found, path, st.st_size) : CHM_OK;
}

static int visit_below(const search *f, const char *path, const char *name, const void *user) {
    (void)user;
    return name[0] == '.' ? CHM_OK : take(f, path, true);
}

/* ---- patterns ---- */

static bool is_directory(const char *path, bool through_links) {
    struct stat st;
    return (through_links ? stat(*path ? path : ".", &st) : lstat(*path ? path : ".", &st)) == 0 && S_ISDIR(st.st_mode);
}

static int match(const search *f, const char *base, const char *pattern);

/* The first part of a pattern, and what comes behind its slash. */
typedef struct step {
    char *part;
    const char *rest;
} step;

static int visit_matching(const search *f, const char *path, const char *name, const void *user) {
    const step *s = user;
    if (fnmatch(s->part, name, FNM_PERIOD) != 0) return CHM_OK;
    if (*s->rest == '\0') return take(f, path, false);
    return is_directory(path, true) ? match(f, path, s->rest) : CHM_OK;
}

/* Below a directory for "**": the pattern with it once more. */
static int visit_deeper(const search *f, const char *path, const char *name, const void *user) {
    return name[0] != '.' && is_directory(path, false) ? match(f, path, user) : CHM_OK;
}

/* What matches `pattern` below `base`, a directory ("" is the one at hand). */
static int match(const search *f, const char *base, const char *pattern) {
    const size_t n = strcspn(pattern, "/");
    const char *rest = pattern + n + strspn(pattern + n, "/");
    int status;
    if (f->has_except) {
        struct stat st;
        if (stat(*base ? base : ".", &st) == 0 && st.st_dev == f->except.st_dev && st.st_ino == f->except.st_ino)
            return CHM_OK;
    }
    if (n == 2 && strncmp(pattern, "**", 2) == 0) {
        if (*rest == '\0') return is_directory(base, true) ? take(f, *base ? base : ".", false) : CHM_OK;
        if (strncmp(rest, "**", 2) == 0 && (rest[2] == '/' || rest[2] == '\0')) return match(f, base, rest);
        status = match(f, base, rest);
        return status == CHM_OK ? each_entry(f, base, visit_deeper, pattern) : status;
    }
    step s = {.part = chm_format("%.*s", (int)n, pattern), .rest = rest};
    if (s.part == NULL) return CHM_E_MEMORY;
    if (strpbrk(s.part, "*?[") != NULL) {
        status = each_entry(f, base, visit_matching, &s);
    } else {
        char *path = join(base, s.part);
        struct stat st;
        status = path == NULL               ? CHM_E_MEMORY
                 : lstat(path, &st) != 0    ? CHM_OK
                 : *rest == '\0'            ? take(f, path, false)
                 : is_directory(path, true) ? match(f, path, rest)
                                            : CHM_OK;
        chm_free(path);
    }
    chm_free(s.part);
    return status;
}

/* ---- words ---- */

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Those from the first-th on in the order of their bytes, each once. */
static void put_in_order(chm_sources *s, uint32_t first) {
    uint32_t kept = first;
    if (s->count - first < 2) return;
    qsort(s->path + first, s->count - first, sizeof *s->path, by_bytes);
    for (uint32_t i = first; i < s->count; i++) {
        if (i > first && strcmp(s->path[i], s->path[kept - 1]) == 0)
            chm_free(s->path[i]);
        else
            s->path[kept++] = s->path[i];
    }
    s->count = kept;
}

int chm_sources_find(chm_sources *s, const char *const *words, uint32_t count, const char *except) {
    search f = {.found = s};
    struct stat st;
    int status = CHM_OK;
    memset(s, 0, sizeof *s);
    if (count == 0) return chm_fail(CHM_E_CONFIG, "no data: name at least one file of text");
    f.has_except = except != NULL && stat(except, &f.except) == 0;
    for (uint32_t i = 0; i < count && status == CHM_OK; i++) {
        const char *word = words[i];
        const uint32_t first = s->count;
        const bool there = stat(word, &st) == 0, pattern = !there && strpbrk(word, "*?[") != NULL;
        if (there && S_ISDIR(st.st_mode)) {
            status = take(&f, word, false);
            if (status == CHM_OK && s->count == first)
                status = chm_fail(CHM_E_DATA,
                                  "%s: this directory holds no text (hidden names, empty files and what is no file are "
                                  "left out); name one that does",
                                  word);
        } else if (pattern) {
            const size_t root = strspn(word, "/");
            status = match(&f, root > 0 ? "/" : "", word + root);
            if (status == CHM_OK && s->count == first)
                status = chm_fail(CHM_E_DATA,
                                  "%s: no file has such a name and no file with text matches such a pattern", word);
        } else {
            /* named: what is wrong with it is said when it is opened */
            status = add(s, word, there && S_ISREG(st.st_mode) ? st.st_size : 0);
        }
        if (status == CHM_OK) put_in_order(s, first);
    }
    if (status != CHM_OK) chm_sources_finish(s);
    return status;
}

void chm_sources_finish(chm_sources *s) {
    for (uint32_t i = 0; i < s->count; i++) chm_free(s->path[i]);
    chm_free(s->path);
    memset(s, 0, sizeof *s);
}
