/*
 * layer_help.h: runtimes over the plugins of the build, files of tensors, and reports of the generated layer tests;
 * shared by the tests of layers.
 */
#ifndef LAYER_HELP_H
#define LAYER_HELP_H

#include "model/layer_alone.h"

#include <math.h>
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

/* rms(a - want) / rms(want) */
static inline double relative_error(const float *a, const float *want, int64_t n) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)want[i];
        error += d * d;
        size += (double)want[i] * (double)want[i];
    }
    if (!isfinite(error)) return INFINITY;
    return error == 0 ? 0 : size > 0 ? sqrt(error / size) : INFINITY;
}

static inline void golden_path(const char *name, char path[4096]) {
    snprintf(path, 4096, "%s/tests/golden/%s.safetensors", getenv("CHM_SOURCE_ROOT"), name);
}

/* A layer over the rows of a file; plain: without quantisation. */
static inline void run_layer_file(chm_runtime *r, const char *plugin, const char *in, const char *out, bool step,
                                  bool grad, bool plain) {
    static const char *const sets[] = {"quantization.method=none"};
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = plain, .set = sets, .no_environment = 1};
    const chm_layer_options options = {.size = sizeof options,
                                       .plugin = plugin,
                                       .overlay = &overlay,
                                       .in = in,
                                       .out = out,
                                       .grad = grad,
                                       .step = step};
    if (chm_layer_run(r, &options)) fail_msg("%s", chm_error());
}

/* Largest rms error over rms of a golden file's outputs and final states, and of its gradients. `restate`, where it is
 * not NULL, may change a result that says the same in other numbers. */
struct golden_bounds {
    double forward, gradient;
    void (*restate)(const struct file *got, const struct file *golden, const char *result, float *value, int64_t n);
};

/* Every result of a golden file, with gradients, in chunk and step form on every backend; `out` is written over. */
static inline void expect_golden(const char *plugin, const char *name, const char *out, struct golden_bounds bounds) {
    char path[4096];
    golden_path(name, path);
    for (size_t b = 0; b < CHM_ARRAY_COUNT(backends); b++) {
        chm_runtime *r = try_runtime(backends[b], 2);
        for (int step = 0; r && step < 2; step++) {
            struct file golden, got;
            double worst[2] = {0, 0};
            int compared = 0;
            open_file(&golden, path);
            run_layer_file(r, plugin, path, out, step, true, true);
            open_file(&got, out);
            for (int i = 0; i < golden.st->count; i++) {
                const char *result = golden.st->tensor[i].name;
                int64_t n, m;
                if (!is_result(result)) continue;
                const float *a = floats(&got, result, &n), *c = floats(&golden, result, &m);
                assert_int_equal(n, m);
                float *value = malloc((size_t)n * sizeof *value);
                assert_non_null(value);
                memcpy(value, a, (size_t)n * sizeof *value);
                if (bounds.restate) bounds.restate(&got, &golden, result, value, n);
                const bool gradient = strcmp(result, "y") != 0 && strncmp(result, "final.", 6) != 0;
                const double error = relative_error(value, c, n);
                free(value);
                if (!(error <= (gradient ? bounds.gradient : bounds.forward)))
                    fail_msg("%s, %s, %s: %s is off by %.2g", name, step ? "step" : "chunk", backends[b], result,
                             error);
                worst[gradient] = error > worst[gradient] ? error : worst[gradient];
                compared++;
            }
            assert_int_equal(compared, got.st->count);
            print_message("%-19s %-5s %-8s %d tensors: outputs and states %.1e, gradients %.1e\n", name,
                          step ? "step" : "chunk", backends[b], compared, worst[0], worst[1]);
            close_file(&got);
            close_file(&golden);
        }
        chm_runtime_destroy(r);
    }
}

/* The numeric contract: the bytes of inference do not depend on backend or threads, in f32 and in the card's
 * arithmetic. */
static inline void expect_same_bytes(const char *plugin, const char *name, const char *out) {
    char path[4096];
    golden_path(name, path);
    for (int plain = 0; plain < 2; plain++) {
        float *first = NULL;
        int64_t count = 0;
        for (size_t b = 0; b < CHM_ARRAY_COUNT(backends); b++)
            for (int threads = 1; threads <= 4; threads++) {
                chm_runtime *r = try_runtime(backends[b], threads);
                if (!r) continue;
                struct file got;
                int64_t n;
                run_layer_file(r, plugin, path, out, true, false, plain);
                open_file(&got, out);
                const float *y = floats(&got, "y", &n);
                if (!first) {
                    first = malloc((size_t)n * sizeof *first);
                    assert_non_null(first);
                    memcpy(first, y, (size_t)n * sizeof *first);
                    count = n;
                }
                assert_int_equal(n, count);
                if (memcmp(first, y, (size_t)n * sizeof *first) != 0)
                    fail_msg("%s: %s with %d threads gives other bytes", name, backends[b], threads);
                close_file(&got);
                chm_runtime_destroy(r);
            }
        free(first);
    }
}

/* The report of the generated tests, to be freed; `sets` are the overlay. */
static inline char *report_with(chm_runtime *r, chm_layer_options options, const char *const *sets, uint32_t count,
                                int *status) {
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = count, .set = sets, .no_environment = 1};
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    options.size = sizeof options;
    options.overlay = &overlay;
    *status = chm_layer_test(r, &options, CHM_OUTPUT_JSON, out);
    fclose(out);
    return text;
}

static inline char *report_of(chm_runtime *r, const char *plugin, const char *const *sets, uint32_t count, int64_t rows,
                              int *status) {
    return report_with(r, (chm_layer_options){.plugin = plugin, .rows = rows}, sets, count, status);
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
