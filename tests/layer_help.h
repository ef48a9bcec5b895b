/*
 * layer_help.h: runtimes over the plugins of the build, files of tensors, and reports of the generated layer tests;
 * shared by the tests of layers.
 */
#ifndef LAYER_HELP_H
#define LAYER_HELP_H

#include "model/layer_alone.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static char scratch[4096], *plugin_path;
static const char *const backends[] = {"scalar", "avx2", "avx512", "openblas"};

static inline chm_runtime *open_runtime(int threads, const char *backend) {
    const chm_runtime_options options = {
        .size = sizeof options, .threads = threads, .plugin_path = plugin_path, .backend = backend, .verbosity = -1};
    chm_runtime *r = NULL;
    if (chm_runtime_create(&options, &r) != CHM_OK) fail_msg("%s", chm_error());
    return r;
}

/* A backend that is not built, or that this CPU cannot run, is left out. */
static inline chm_runtime *try_runtime(const char *backend, int threads) {
    chm_registry registry;
    const struct chm_registry_options options = {.plugin_path = plugin_path};
    assert_int_equal(chm_registry_init(&registry, &options), CHM_OK);
    const bool found = chm_registry_find(&registry, CHM_KIND_BACKEND, backend) != NULL;
    chm_registry_finish(&registry);
    return found ? open_runtime(threads, backend) : NULL;
}

/* A folder of the test's own in the build, removed by the test. */
static inline int layer_set_up(const char *test) {
    unsetenv("CHIMERA_PLUGIN_PATH");
    unsetenv("CHIMERA_BACKEND");
    unsetenv("CHIMERA_THREADS");
    const char *root = getenv("CHM_BUILD_ROOT");
    snprintf(scratch, sizeof scratch, "%s/tests/%s test XXXXXX", root, test);
    if (!mkdtemp(scratch)) return -1;
    plugin_path = chm_format("%s/plugins/backends:%s/plugins/layers:%s/plugins/tokenizers", root, root, root);
    return plugin_path ? 0 : -1;
}

struct file {
    chm_map map;
    chm_safetensors *st;
};

static inline void open_file(struct file *f, const char *path) {
    if (chm_map_open(&f->map, path) || chm_safetensors_parse(path, f->map.data, f->map.size, &f->st))
        fail_msg("%s", chm_error());
}
static inline void close_file(struct file *f) {
    chm_safetensors_destroy(f->st);
    chm_map_close(&f->map);
}

static inline const float *floats(const struct file *f, const char *name, int64_t *count) {
    const chm_st_tensor *t = chm_safetensors_find(f->st, name);
    if (!t || t->dtype != CHM_ST_F32) fail_msg("no f32 tensor %s", name);
    if (count) *count = (int64_t)(t->bytes / sizeof(float));
    return (const float *)(const void *)t->data;
}

static inline bool is_result(const char *name) {
    return !strcmp(name, "y") || !strcmp(name, "dx") || !strncmp(name, "final.", 6) || !strncmp(name, "grad.", 5) ||
           !strncmp(name, "gradstate.", 10);
}

static inline char *report_of(chm_runtime *r, const char *plugin, const char *const *sets, uint32_t count, int64_t rows,
                              int *status) {
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = count, .set = sets, .no_environment = 1};
    const chm_layer_options options = {.size = sizeof options, .plugin = plugin, .overlay = &overlay, .rows = rows};
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    *status = chm_layer_test(r, &options, CHM_OUTPUT_JSON, out);
    fclose(out);
    return text;
}

/* Has the report a test of this name and mode with this status? Names in full, or up to a colon. */
static inline bool says(const char *report, const char *name, const char *mode, const char *status) {
    for (const char *line = report; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        const char *end = strchr(line, '\n'), *at = strstr(line, "{\"name\": \"");
        char rest[160];
        if (!end || !at || at > end || strncmp(at + 10, name, strlen(name)) != 0) continue;
        const char *after = at + 10 + strlen(name);
        if (*after != '"' && *after != ':') continue;
        snprintf(rest, sizeof rest, "\"mode\": \"%s\", \"status\": \"%s\"", mode, status);
        const char *found = strstr(after, rest);
        if (found && found < end) return true;
    }
    return false;
}

#endif
