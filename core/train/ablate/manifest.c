/* manifest.c: what the cells of a directory have in common, written down, and held against what would join them. */
#include "train/commit.h"
#include "train/ablate/ablate.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

enum { MANIFEST_SCHEMA = 1, MOST_BYTES = 64 << 20 };

const char *chm_commit(void) { return CHM_COMMIT; }

int chm_build_hash(const chm_runtime *r, uint64_t *out) {
    Dl_info info;
    int64_t bytes;
    uint64_t hash = 0;
    /* the file this code is in: the library, or a program it was linked into */
    const bool known = dladdr((const void *)(uintptr_t)chm_commit, &info) != 0 && info.dli_fname != NULL;
    int status = known && strchr(info.dli_fname, '/') ? chm_material_look(info.dli_fname, &bytes, &hash)
                                                      : chm_material_look("/proc/self/exe", &bytes, &hash);
    for (size_t i = 0; i < r->registry.file_count && status == CHM_OK; i++) {
        const struct chm_plugin_file *f = &r->registry.files[i];
        uint64_t one = 0;
        if (f->plugin == NULL || f->path == NULL || f->is_directory) continue;
        if (chm_material_look(f->path, &bytes, &one) == CHM_OK) hash = chm_hash64_seed(&one, sizeof one, hash);
    }
    *out = hash;
    return status;
}

/* ---- making ---- */

/* Sets a member and takes it over; a failure shows in chm_json_starved() or a missing member. */
static void put(json_t *object, const char *key, json_t *value) { (void)json_object_set_new(object, key, value); }

static json_t *hexadecimal(uint64_t x) {
    char text[20];
    snprintf(text, sizeof text, "%016" PRIx64, x);
    return json_string(text);
}

static json_t *settings_json(const chm_setting *s, int count) {
    json_t *list = json_array();
    for (int i = 0; i < count; i++) (void)json_array_append_new(list, json_sprintf("%s=%s", s[i].key, s[i].value));
    return list;
}

static json_t *task_json(const chm_study_task *t, int count) {
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        const chm_task_options *o = &t[i].options;
        json_t *x = json_object();
        put(x, "name", json_string(t[i].name));
        put(x, "task", json_string(t[i].task));
        put(x, "documents", json_integer(o->documents));
        put(x, "least", json_integer(o->least));
        put(x, "most", json_integer(o->most));
        put(x, "seed", json_integer((json_int_t)o->seed));
        put(x, "rebound", json_real(o->rebound));
        put(x, "queries", json_integer(o->queries));
        put(x, "alphabet", json_integer(o->alphabet));
        (void)json_array_append_new(list, x);
    }
    return list;
}

static json_t *study_json(const chm_study *s) {
    json_t *x = json_object(), *list = json_array(), *variants = json_array(), *grid = json_array();
    put(x, "title", chm_json_text(s->title));
    put(x, "path", chm_json_text(s->file));
    for (int i = 0; i < s->seeds; i++) (void)json_array_append_new(list, json_integer((json_int_t)s->seed[i]));
    put(x, "seeds", list);
    put(x, "tokens", json_real(s->tokens));
    put(x, "seconds", json_real(s->seconds));
    put(x, "flops", json_real(s->flops));
    put(x, "match", json_string(s->match ? "parameters" : "none"));
    put(x, "baseline", json_string(s->baseline));
    put(x, "held_out", json_real(s->held_out));
    put(x, "card", settings_json(s->base, s->bases));
    put(x, "tasks", task_json(s->task, s->tasks));
    put(x, "scores", task_json(s->score, s->scores));
    for (int i = 0; i < s->variants; i++) {
        json_t *v = json_object();
        put(v, "name", json_string(s->variant[i].name));
        put(v, "settings", settings_json(s->variant[i].setting, s->variant[i].settings));
        (void)json_array_append_new(variants, v);
    }
    put(x, "variants", variants);
    for (int a = 0; a < s->axes; a++) {
        json_t *v = json_object(), *values = json_array();
        for (int i = 0; i < s->axis[a].values; i++)
            (void)json_array_append_new(values, chm_json_text(s->axis[a].value[i]));
        put(v, "key", chm_json_text(s->axis[a].key));
        put(v, "values", values);
        (void)json_array_append_new(grid, v);
    }
    put(x, "grid", grid);
    return x;
}

static json_t *material_json(const chm_material *m, int count) {
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        json_t *x = json_object();
        put(x, "name", json_string(m[i].name));
        put(x, "path", chm_json_text(m[i].path));
        put(x, "bytes", json_integer(m[i].bytes));
        put(x, "hash", hexadecimal(m[i].hash));
        (void)json_array_append_new(list, x);
    }
    return list;
}

static json_t *cells_json(const chm_plan *p) {
    const chm_study *s = &p->study;
    json_t *list = json_array();
    for (int i = 0; i < p->cells; i++) {
        const chm_cell *c = &p->cell[i];
        json_t *x = json_object(), *set = json_array(), *point = json_object();
        put(x, "name", json_string(c->name));
        put(x, "variant", json_string(s->variant[c->variant].name));
        put(x, "point", json_integer(c->point + 1));
        for (int a = 0; a < s->axes; a++) put(point, s->axis[a].key, chm_json_text(chm_study_value(s, c->point, a)));
        put(x, "grid", point);
        put(x, "seed", json_integer((json_int_t)c->seed));
        for (int k = 0; k < c->sets; k++) (void)json_array_append_new(set, chm_json_text(c->set[k]));
        put(x, "set", set);
        put(x, "parameters", json_integer(c->parameters));
        put(x, "active_parameters", json_integer(c->active));
        put(x, "flops_per_token", json_real(c->flops));
        put(x, "tokens", json_integer(c->tokens));
        put(x, "config_hash", hexadecimal(c->card_hash));
        (void)json_array_append_new(list, x);
    }
    return list;
}

char *chm_cpu_model(void) {
    char line[512] = "", *at = NULL;
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f != NULL && at == NULL && fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, "model name", 10) == 0) at = strchr(line, ':');
    if (f != NULL) fclose(f);
    if (at == NULL) return chm_strdup("unknown");
    line[strcspn(line, "\n")] = '\0';
    return chm_strdup(at + 1 + strspn(at + 1, " "));
}

json_t *chm_manifest_make(const chm_plan *p) {
    uint64_t build = 0;
    if (chm_build_hash(p->runtime, &build) != CHM_OK) return NULL;
    chm_json_begin();
    json_t *m = json_object(), *machine = json_object();
    char *cpu = chm_cpu_model(), *kernels = chm_kernels_used(p->runtime), *training = chm_kernels_training(p->runtime);
    put(m, "schema_version", json_integer(MANIFEST_SCHEMA));
    put(m, "version", json_string(chm_version()));
    put(m, "commit", json_string(chm_commit()));
    put(m, "build", hexadecimal(build));
    put(m, "card", chm_json_text(p->study.card));
    put(m, "study", study_json(&p->study));
    put(m, "data", material_json(p->data, p->data_count));
    put(m, "scores", material_json(p->score, p->score_count));
    put(m, "checkpoint_seconds", json_real(p->study.checkpoint_seconds));
    put(machine, "cpu", chm_json_text(cpu));
    put(machine, "kernels", chm_json_text(kernels));
    put(machine, "training_kernels", chm_json_text(training));
    put(m, "machine", machine);
    put(m, "cells", cells_json(p));
    const bool named = cpu != NULL && kernels != NULL && training != NULL;
    chm_free(cpu);
    chm_text_free(kernels);
    chm_text_free(training);
    if (named && !chm_json_starved() && json_object_get(m, "cells") != NULL) return m;
    json_decref(m);
    chm_fail(CHM_E_MEMORY, "out of memory for %s/manifest.json", p->directory);
    return NULL;
}

int chm_json_save(const json_t *json, const char *path) {
    chm_writer w;
    char *text = json_dumps(json, JSON_INDENT(1));
    if (text == NULL) return chm_fail(CHM_E_MEMORY, "out of memory for %s", path);
    int status = chm_writer_open(&w, path);
    if (status == CHM_OK) {
        status = chm_writer_write(&w, text, strlen(text));
        if (status == CHM_OK) status = chm_writer_write(&w, "\n", 1);
        if (status == CHM_OK) status = chm_writer_commit(&w);
        chm_writer_abandon(&w);
    }
    chm_free(text);
    return status;
}

/* ---- reading ---- */

int chm_json_read(const char *path, json_t **out) {
    char *text = NULL;
    size_t bytes = 0;
    json_error_t error;
    *out = NULL;
    int status = chm_read_file(path, MOST_BYTES, &text, &bytes);
    if (status != CHM_OK) return status;
    *out = chm_json_load(text ? text : "", bytes, &error);
    if (*out == NULL && chm_json_starved())
        status = chm_fail(CHM_E_MEMORY, "%s: out of memory", path);
    else if (*out == NULL)
        status = chm_fail(CHM_E_DATA, "%s:%d: %s; it was damaged: move the directory away and begin again", path,
                          error.line, error.text);
    chm_free(text);
    return status;
}

const char *chm_json_word(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

double chm_json_number(const json_t *object, const char *key) {
    const json_t *x = json_object_get(object, key);
    return json_is_number(x) ? json_number_value(x) : NAN;
}

int chm_manifest_load(const char *directory, json_t **out) {
    char *path = chm_format("%s/manifest.json", directory);
    int status = path == NULL ? CHM_E_MEMORY : CHM_OK;
    *out = NULL;
    if (status == CHM_OK && access(path, F_OK) != 0)
        status = chm_fail(
            CHM_E_DATA, "%s: no study was begun there (it has no manifest.json); chimera ablate begins one", directory);
    if (status == CHM_OK) status = chm_json_read(path, out);
    if (status == CHM_OK) {
        static const char *const lists[] = {"cells", "data", "scores"};
        bool sound = chm_json_number(*out, "schema_version") == MANIFEST_SCHEMA &&
                     chm_json_word(*out, "commit") != NULL && chm_json_word(*out, "card") != NULL &&
                     json_is_object(json_object_get(*out, "study"));
        for (size_t k = 0; k < CHM_ARRAY_COUNT(lists); k++) {
            const json_t *list = json_object_get(*out, lists[k]);
            sound = sound && json_array_size(list) > 0;
            for (size_t i = 0; sound && i < json_array_size(list); i++)
                sound = chm_json_word(json_array_get(list, i), "name") != NULL &&
                        chm_json_word(json_array_get(list, i), k == 0 ? "config_hash" : "path") != NULL;
        }
        if (!sound) {
            json_decref(*out);
            *out = NULL;
            status = chm_fail(CHM_E_DATA,
                              "%s: is not a study's manifest of this version; begin the study in another "
                              "directory",
                              path);
        }
    }
    chm_free(path);
    return status;
}

/* ---- comparing ---- */

static char *shown(const json_t *x) {
    if (x == NULL) return chm_strdup("nothing");
    char *text = json_dumps(x, JSON_ENCODE_ANY | JSON_COMPACT);
    if (text != NULL && strlen(text) > 200) strcpy(text + 196, "...");
    return text;
}

/* The first place where two values differ, as "study.tokens"; false: they are the same. Where files lie does not count,
 * only what is in them. */
static bool differs(const json_t *a, const json_t *b, chm_string *where, const json_t **left, const json_t **right) {
    const size_t length = where->length;
    *left = a;
    *right = b;
    if (json_is_object(a) && json_is_object(b)) {
        const json_t *const both[] = {a, b};
        for (int k = 0; k < 2; k++)
            for (void *it = json_object_iter((json_t *)both[k]); it;
                 it = json_object_iter_next((json_t *)both[k], it)) {
                const char *key = json_object_iter_key(it);
                if (strcmp(key, "path") == 0) continue;
                chm_string_add(where, "%s%s", length ? "." : "", key);
                if (differs(json_object_get(a, key), json_object_get(b, key), where, left, right)) return true;
                where->length = length;
                if (where->text != NULL) where->text[length] = '\0';
            }
        return false;
    }
    if (json_is_array(a) && json_is_array(b) && json_array_size(a) == json_array_size(b)) {
        for (size_t i = 0; i < json_array_size(a); i++) {
            const char *name = chm_json_word(json_array_get(a, i), "name");
            if (name && name[0])
                chm_string_add(where, ".%s", name);
            else
                chm_string_add(where, "[%zu]", i);
            if (differs(json_array_get(a, i), json_array_get(b, i), where, left, right)) return true;
            where->length = length;
            if (where->text != NULL) where->text[length] = '\0';
        }
        return false;
    }
    if (json_is_number(a) && json_is_number(b)) return json_number_value(a) != json_number_value(b);
    return !json_equal(a, b);
}

int chm_manifest_compare(const char *directory, const json_t *there, const json_t *here) {
    /* in the order in which they explain each other */
    static const struct {
        const char *key, *what;
    } part[] = {{"commit", "another commit"},
                {"version", "another version"},
                {"study", "another study"},
                {"data", "other text"},
                {"scores", "other text"},
                {"cells", "another card"},
                {"build", "another build of this commit"}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(part); i++) {
        chm_string where = {0};
        const json_t *a, *b;
        chm_string_add(&where, "%s", part[i].key);
        chm_json_begin();
        const bool other =
            differs(json_object_get(there, part[i].key), json_object_get(here, part[i].key), &where, &a, &b);
        int status = CHM_OK;
        if (other) {
            char *left = shown(a), *right = shown(b);
            status = chm_fail(CHM_E_CONFIG,
                              "%s: its cells are of %s: %s is %s there and %s here; results of both do not go into one "
                              "table: name another --out, or move the directory away",
                              directory, part[i].what, where.text ? where.text : part[i].key, left ? left : "?",
                              right ? right : "?");
            chm_free(left);
            chm_free(right);
        }
        chm_string_finish(&where);
        if (status != CHM_OK) return status;
    }
    return CHM_OK;
}
