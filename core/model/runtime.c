/* runtime.c: the runtime behind chimera.h: plugins found, kernels chosen, threads started; reports. */
#include "model/runtime.h"
#include "config/schema.h"
#include "model/report.h"
#include "plugin/report.h"
#include <chimera/chimera.h>
#include <stdlib.h>
#include <string.h>

#ifndef CHM_VERSION
#error "the build defines CHM_VERSION"
#endif

const char *chm_version(void) { return CHM_VERSION; }
uint32_t chm_plugin_abi(void) { return CHM_ABI; }

/* ---- runtime ----------------------------------------------------------------------------------------------------- */

enum { CHM_MAX_THREADS = 256 };

/* CHIMERA_THREADS when set, else the CPUs of this process. */
static int default_threads(int *out) {
    const char *text = getenv("CHIMERA_THREADS");
    if (text == NULL || text[0] == '\0') {
        *out = CHM_MIN(chm_cpu_count(), CHM_MAX_THREADS);
        return CHM_OK;
    }
    int n = 0;
    for (const char *c = text; *c; c++) {
        if (*c < '0' || *c > '9' || n > CHM_MAX_THREADS) {
            n = 0;
            break;
        }
        n = n * 10 + (*c - '0');
    }
    if (n < 1 || n > CHM_MAX_THREADS)
        return chm_fail(CHM_E_CONFIG, "CHIMERA_THREADS is '%s': a number of threads is 1..%d", text, CHM_MAX_THREADS);
    *out = n;
    return CHM_OK;
}

int chm_runtime_create(const chm_runtime_options *options, chm_runtime **out) {
    static const chm_runtime_options none = {.size = sizeof(none)};
    *out = NULL;
    if (options == NULL) options = &none;
    if (options->size != sizeof(*options))
        return chm_fail(CHM_E_CONFIG, "chm_runtime_options has size %u, this library expects %zu", options->size,
                        sizeof(*options));
    if (options->threads < 0 || options->threads > CHM_MAX_THREADS)
        return chm_fail(CHM_E_CONFIG, "%d threads: 1..%d, or 0 for the CPUs of this process", options->threads,
                        CHM_MAX_THREADS);
    chm_log_set_level(options->verbosity < 0 ? CHM_LOG_ERROR : options->verbosity > 0 ? CHM_LOG_DEBUG : CHM_LOG_INFO);
    chm_log_to(options->log);
    chm_runtime *r = chm_alloc(sizeof(*r));
    if (r == NULL) return CHM_E_MEMORY;
    int status = CHM_OK;
    r->threads = options->threads;
    if (r->threads == 0 && (status = default_threads(&r->threads)) != CHM_OK) goto fail;
    struct chm_registry_options registry = {.plugin_path = options->plugin_path,
                                            .check_section = chm_schema_check_section};
    if (options->cpu_mask != NULL && (status = chm_cpu_mask(options->cpu_mask, &registry.cpu_mask)) != CHM_OK) {
        status = chm_fail_prefix(status, "--cpu-mask");
        goto fail;
    }
    if ((status = chm_registry_init(&r->registry, &registry)) != CHM_OK) goto fail;
    status = chm_kernels_choose(&r->registry, options->backend, options->require_backend, &r->kernels);
    if (status != CHM_OK && !options->reports_only) goto fail;
    r->ready = status == CHM_OK;
    r->require_backend = options->require_backend;
    if (options->backend != NULL && (r->backend = chm_strdup(options->backend)) == NULL) {
        status = CHM_E_MEMORY;
        goto fail;
    }
    if ((status = chm_pool_create(r->threads, &r->pool)) != CHM_OK) goto fail;
    *out = r;
    return CHM_OK;
fail:
    chm_runtime_destroy(r);
    return status;
}

void chm_runtime_destroy(chm_runtime *r) {
    if (r == NULL) return;
    chm_pool_destroy(r->pool);
    chm_free(r->backend);
    chm_registry_finish(&r->registry);
    chm_free(r);
}

int chm_runtime_threads(const chm_runtime *r) { return r->threads; }

static char *name_kernels(const chm_runtime *r, bool exact) {
    chm_string s = {0};
    for (size_t i = 0; i < r->kernels.slots; i++)
        if (r->kernels.exact[i] == exact)
            chm_string_add(&s, "%s%s=%s", s.length ? " " : "", r->kernels.slot[i],
                           r->kernels.backend[i] ? r->kernels.backend[i] : "none");
    if (s.failed || s.text == NULL) {
        chm_string_finish(&s);
        chm_fail(CHM_E_MEMORY, "out of memory while naming the kernels");
        return NULL;
    }
    return s.text;
}

char *chm_kernels_used(chm_runtime *r) { return name_kernels(r, true); }
char *chm_kernels_training(chm_runtime *r) { return name_kernels(r, false); }

int chm_doctor(chm_runtime *r, chm_output format, FILE *out) {
    char *environment = NULL;
    int status = chm_card_environment(&r->registry, &environment);
    if (status == CHM_OK)
        status = chm_report_doctor(&r->registry, r->backend, r->require_backend, environment, out, format);
    chm_free(environment);
    return status;
}

int chm_plugins_list(chm_runtime *r, const char *kind, chm_output format, FILE *out) {
    enum chm_kind only = 0;
    if (kind != NULL && (only = chm_kind_parse(kind)) == 0) return CHM_E_CONFIG;
    return chm_report_plugins(&r->registry, only, out, format);
}

int chm_plugins_show(chm_runtime *r, const char *name, chm_output format, FILE *out) {
    return chm_report_plugin(&r->registry, name, out, format);
}

int chm_plugins_check_name(chm_runtime *r, const char *name) {
    if (chm_registry_find(&r->registry, 0, name) != NULL)
        return chm_fail(CHM_E_CONFIG, "there is a plugin '%s' already (chimera plugins show %s): choose another name",
                        name, name);
    return chm_registry_check_section(&r->registry, name, CHM_KIND_LAYER) == CHM_OK ? CHM_OK : CHM_E_CONFIG;
}

int chm_inspect(chm_runtime *r, const char *path, bool verify, chm_output format, FILE *out) {
    return chm_report_inspect(path, &r->registry, verify, out, format);
}

int chm_runtime_ready(const chm_runtime *r) {
    if (r->ready) return CHM_OK;
    return chm_fail(CHM_E_PLUGIN, "this runtime was made for reports only and has no kernels; chimera doctor says why");
}

void chm_text_free(char *text) { chm_free(text); }
