/*
 * test_includes.c: reads the #include lines of the tree and fails on an arrow that goes back.
 *
 *   core/      a room includes itself and the rooms before it, by path from core/, and the public headers
 *   plugins/   <chimera/tensor.h>, <chimera/plugin.h>, the C library, vector intrinsics, and headers beside the file
 *   cli/       <chimera/chimera.h>, the C library and POSIX, and headers beside the file
 *   include/   the public headers and those of the C language
 */
#include "base/base.h"

#include <ctype.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

/* Rooms of equal rank do not include one another. Files of core/ itself stand above all rooms. */
static const struct {
    const char *room;
    int rank;
} rooms[] = {{"base", 0},  {"plugin", 1}, {"config", 2}, {"graph", 3},
             {"model", 4}, {"train", 5},  {"decode", 5}, {"safety", 5}};
enum { ABOVE_ROOMS = 6 };

static const char *const c_headers[] = {"assert.h",    "ctype.h",   "errno.h",  "float.h",    "inttypes.h",
                                        "limits.h",    "locale.h",  "math.h",   "stdalign.h", "stdarg.h",
                                        "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h",   "stdio.h",
                                        "stdlib.h",    "string.h",  "time.h",   NULL};
static const char *const vector_headers[] = {"immintrin.h", "arm_neon.h", "wasm_simd128.h", NULL};
static const char *const posix_headers[] = {
    "dirent.h",  "fcntl.h",   "getopt.h",    "langinfo.h",     "libgen.h",   "poll.h",      "pthread.h",
    "signal.h",  "strings.h", "sys/ioctl.h", "sys/file.h",     "sys/stat.h", "sys/types.h", "sys/wait.h",
    "termios.h", "unistd.h",  "sys/time.h",  "sys/resource.h", "wchar.h",    "wctype.h",    NULL};
static const char *const public_headers[] = {"chimera/chimera.h", "chimera/plugin.h", "chimera/tensor.h", NULL};
static const char *const plugin_headers[] = {"chimera/plugin.h", "chimera/tensor.h", NULL};
static const char *const embedding_headers[] = {"chimera/chimera.h", NULL};
/* A library that a plugin, or a part of the command, is there to bring in. */
static const struct {
    const char *file, *header;
} granted[] = {{"plugins/backends/openblas.c", "cblas.h"},
               {"plugins/backends/openblas.c", "openblas_config.h"},
               {"plugins/tokenizers/o200k.c", "pcre2.h"},
               {"cli/converse.c", "histedit.h"}};

static bool is_granted(const char *file, const char *header) {
    for (size_t i = 0; i < CHM_ARRAY_COUNT(granted); i++)
        if (strcmp(file, granted[i].file) == 0 && strcmp(header, granted[i].header) == 0) return true;
    return false;
}

static bool among(const char *name, const char *const *list) {
    for (; *list; list++)
        if (strcmp(name, *list) == 0) return true;
    return false;
}

/* Of "base/base.h" or "base/arena.c"; -1 for an unknown room. */
static int rank_of(const char *path) {
    const char *slash = strchr(path, '/');
    if (!slash) return ABOVE_ROOMS;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(rooms); i++)
        if (strlen(rooms[i].room) == (size_t)(slash - path) && memcmp(rooms[i].room, path, (size_t)(slash - path)) == 0)
            return rooms[i].rank;
    return -1;
}

static bool same_room(const char *a, const char *b) {
    size_t n = strcspn(a, "/");
    return n == strcspn(b, "/") && memcmp(a, b, n) == 0;
}

/* Why `file` (path from the root) may not include `name`, or NULL. */
static const char *wrong(const char *root, const char *file, const char *name, bool quoted) {
    if (strncmp(file, "core/", 5) == 0) {
        const char *from = file + 5;
        if (!quoted) {
            if (strncmp(name, "chimera/", 8) == 0 && !among(name, public_headers)) return "there is no such header";
            return NULL;
        }
        int to = strchr(name, '/') ? rank_of(name) : -1, own = rank_of(from);
        if (own < 0) return "this room has no place in the order";
        if (to < 0) return "write the path from core/, beginning with a room";
        if (strstr(name, "..")) return "write the path from core/";
        if (to > own) return "the arrow goes back";
        if (to == own && own != ABOVE_ROOMS && !same_room(from, name)) return "these rooms do not know each other";
        return NULL;
    }
    if (quoted && strncmp(file, "include/", 8) != 0) {
        char *folder = chm_strdup(file), *path;
        *strrchr(folder, '/') = 0;
        path = chm_format("%s/%s/%s", root, folder, name);
        bool beside = !strchr(name, '/') && access(path, F_OK) == 0;
        chm_free(path);
        chm_free(folder);
        return beside ? NULL : "only headers beside the file are included with quotes";
    }
    if (strncmp(file, "plugins/", 8) == 0) {
        if (is_granted(file, name)) return NULL;
        if (among(name, plugin_headers) || among(name, c_headers) || among(name, vector_headers)) return NULL;
        return "a plugin includes <chimera/plugin.h>, <chimera/tensor.h> and the C library";
    }
    if (strncmp(file, "cli/", 4) == 0) {
        if (is_granted(file, name)) return NULL;
        if (among(name, embedding_headers) || among(name, c_headers) || among(name, posix_headers)) return NULL;
        return "the command includes <chimera/chimera.h> and the C library";
    }
    if (!quoted && (among(name, public_headers) || among(name, c_headers))) return NULL;
    return "a public header includes public headers and the C language's";
}

/* The name in an #include line, with its brackets taken off. */
static bool include_line(const char *line, char *name, size_t n, bool *quoted) {
    line += strspn(line, " \t");
    if (*line++ != '#') return false;
    line += strspn(line, " \t");
    if (strncmp(line, "include", 7) != 0) return false;
    line += 7;
    line += strspn(line, " \t");
    if (*line != '<' && *line != '"') return false;
    *quoted = *line == '"';
    size_t length = strcspn(line + 1, *quoted ? "\"\n" : ">\n");
    if (length >= n) length = n - 1;
    memcpy(name, line + 1, length);
    name[length] = 0;
    return true;
}

struct count {
    int files, lines, problems;
    chm_string text;
};

static void check_file(const char *root, const char *file, struct count *count) {
    char *path = chm_format("%s/%s", root, file), line[1024], name[512];
    FILE *f = fopen(path, "r");
    bool quoted;
    assert_non_null(f);
    count->files++;
    for (int number = 1; fgets(line, sizeof line, f); number++) {
        if (!include_line(line, name, sizeof name, &quoted)) continue;
        count->lines++;
        const char *why = wrong(root, file, name, quoted);
        if (!why) continue;
        count->problems++;
        chm_string_add(&count->text, "%s:%d: includes '%s': %s\n", file, number, name, why);
    }
    fclose(f);
    chm_free(path);
}

static void check_folder(const char *root, const char *folder, struct count *count) {
    char *path = chm_format("%s/%s", root, folder);
    DIR *d = opendir(path);
    if (d) {
        for (struct dirent *e; (e = readdir(d));) {
            struct stat st;
            size_t n = strlen(e->d_name);
            if (e->d_name[0] == '.') continue;
            char *file = chm_format("%s/%s", folder, e->d_name), *whole = chm_format("%s/%s", root, file);
            assert_int_equal(stat(whole, &st), 0);
            if (S_ISDIR(st.st_mode)) {
                check_folder(root, file, count);
            } else if (n > 2 && e->d_name[n - 2] == '.' && (e->d_name[n - 1] == 'c' || e->d_name[n - 1] == 'h')) {
                check_file(root, file, count);
            }
            chm_free(whole);
            chm_free(file);
        }
        closedir(d);
    }
    chm_free(path);
}

static void check_tree(const char *root, struct count *count) {
    static const char *const folders[] = {"include", "core", "plugins", "cli"};
    memset(count, 0, sizeof *count);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(folders); i++) check_folder(root, folders[i], count);
}

static void arrows_go_one_way(void **state) {
    (void)state;
    struct count count;
    check_tree(getenv("CHM_SOURCE_ROOT"), &count);
    assert_true(count.files > 20 && count.lines > 50); /* it did find the tree */
    if (count.problems) fail_msg("%d wrong includes:\n%s", count.problems, count.text.text);
    chm_string_finish(&count.text);
}

/* The rules themselves, on lines that break and keep them. */
static void tells_right_from_wrong(void **state) {
    (void)state;
    static const struct {
        const char *file, *name;
        bool quoted, right;
    } cases[] = {
        {"core/base/arena.c", "base/base.h", true, true},
        {"core/base/arena.c", "plugin/registry.h", true, false},
        {"core/base/arena.c", "base.h", true, false},
        {"core/base/arena.c", "../plugin/registry.h", true, false},
        {"core/base/arena.c", "string.h", false, true},
        {"core/base/arena.c", "chimera/chimera.h", false, true},
        {"core/base/arena.c", "chimera/secret.h", false, false},
        {"core/config/card.c", "plugin/registry.h", true, true},
        {"core/config/card.c", "graph/graph.h", true, false},
        {"core/train/train.c", "model/model.h", true, true},
        {"core/train/train.c", "decode/sampler.h", true, false},
        {"core/train/train.c", "train/data.h", true, true},
        {"core/unheard/of.c", "base/base.h", true, false},
        {"core/chimera.c", "train/train.h", true, true},
        {"plugins/layers/gd.c", "chimera/plugin.h", false, true},
        {"plugins/layers/gd.c", "math.h", false, true},
        {"plugins/layers/gd.c", "chimera/chimera.h", false, false},
        {"plugins/layers/gd.c", "unistd.h", false, false},
        {"plugins/layers/gd.c", "base/base.h", true, false},
        {"plugins/layers/gd.c", "../../core/base/base.h", true, false},
        {"plugins/layers/gd.c", "cblas.h", false, false},
        {"plugins/backends/openblas.c", "cblas.h", false, true},
        {"plugins/backends/avx2.c", "immintrin.h", false, true},
        {"cli/main.c", "chimera/chimera.h", false, true},
        {"cli/main.c", "unistd.h", false, true},
        {"cli/main.c", "chimera/plugin.h", false, false},
        {"cli/main.c", "jansson.h", false, false},
        {"cli/main.c", "base/base.h", true, false},
        {"include/chimera/plugin.h", "chimera/tensor.h", false, true},
        {"include/chimera/plugin.h", "stdint.h", false, true},
        {"include/chimera/plugin.h", "tensor.h", true, false},
        {"include/chimera/plugin.h", "jansson.h", false, false},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        const char *why = wrong("/nowhere", cases[i].file, cases[i].name, cases[i].quoted);
        if (!why != cases[i].right)
            fail_msg("%s includes %s: %s", cases[i].file, cases[i].name, why ? why : "accepted");
    }
    char name[512];
    bool quoted;
    assert_true(include_line("  #  include \"a/b.h\" /* x */\n", name, sizeof name, &quoted));
    assert_true(quoted);
    assert_string_equal(name, "a/b.h");
    assert_true(include_line("#include <c.h>\n", name, sizeof name, &quoted));
    assert_false(quoted);
    assert_string_equal(name, "c.h");
    assert_false(include_line("/* #include <c.h> */\n", name, sizeof name, &quoted));
    assert_false(include_line("#define X\n", name, sizeof name, &quoted));
}

/* And that a tree with one bad line is found out. */
static void finds_a_bad_line_in_a_tree(void **state) {
    (void)state;
    char root[4096];
    snprintf(root, sizeof root, "%s/tests/includes test XXXXXX", getenv("CHM_BUILD_ROOT"));
    assert_non_null(mkdtemp(root));
    char *room = chm_format("%s/core/base", root), *file = chm_format("%s/bad.c", room);
    assert_int_equal(chm_make_directory(room), CHM_OK);
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fputs("#include \"base/base.h\"\n#include \"model/model.h\"\n", f);
    fclose(f);
    struct count count;
    check_tree(root, &count);
    unlink(file);
    rmdir(room);
    *strrchr(room, '/') = 0;
    rmdir(room);
    rmdir(root);
    assert_int_equal(count.lines, 2);
    assert_int_equal(count.problems, 1);
    assert_string_equal(count.text.text, "core/base/bad.c:2: includes 'model/model.h': the arrow goes back\n");
    chm_string_finish(&count.text);
    chm_free(file);
    chm_free(room);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrows_go_one_way),
        cmocka_unit_test(tells_right_from_wrong),
        cmocka_unit_test(finds_a_bad_line_in_a_tree),
    };
    return cmocka_run_group_tests_name("includes", tests, NULL, NULL);
}
