/* report.c: `chimera plugins list`, `chimera plugins show` and `chimera doctor`. */
#include "plugin/report.h"
#include "base/json.h"
#include "base/table.h"
#include "plugin/search.h"

#include <string.h>

static void put(json_t *object, const char *key, const char *value) {
    json_object_set_new(object, key, chm_json_text(value));
}

static json_t *words(const char *text) {
    json_t *array = json_array();
    for (const char *at = text; at && *at;) {
        size_t n = strcspn(at, " ");
        if (n) json_array_append_new(array, json_stringn(at, n));
        at += n + (at[n] == ' ');
    }
    return array;
}

static json_t *cpu_json(uint64_t features) {
    char names[256];
    chm_cpu_names(features, names, sizeof names);
    return words(names);
}

/* ---- plugins list ---- */

enum chm_kind chm_kind_parse(const char *name) {
    const char *known[CHM_KIND_COUNT];
    chm_string list = {0};
    size_t count = 0;
    for (int kind = 1; kind < CHM_KIND_COUNT; kind++) {
        const char *word = chm_kind_name((enum chm_kind)kind);
        size_t n = strlen(word);
        if (strncmp(name, word, n) == 0 && (!name[n] || strcmp(name + n, "s") == 0)) {
            chm_string_finish(&list);
            return (enum chm_kind)kind;
        }
        known[count++] = word;
        chm_string_add(&list, "%s%s", count > 1 ? ", " : "", word);
    }
    known[count] = NULL;
    const char *nearest = chm_nearest(name, known);
    if (nearest) {
        chm_fail(CHM_E_CONFIG, "no kind of plugin '%s' (did you mean '%s'?)", name, nearest);
    } else {
        chm_fail(CHM_E_CONFIG, "no kind of plugin '%s': there are %s", name, list.text ? list.text : "others");
    }
    chm_string_finish(&list);
    return (enum chm_kind)0;
}

int chm_report_plugins(const chm_registry *r, enum chm_kind kind, FILE *out, chm_output format) {
    const struct chm_plugin *p;
    if (format == CHM_OUTPUT_JSON) {
        chm_json_begin();
        json_t *plugins = json_array();
        for (size_t i = 0; (p = chm_registry_at(r, kind, i)); i++) {
            json_t *one = json_object();
            put(one, "kind", chm_kind_name((enum chm_kind)p->kind));
            put(one, "name", p->name);
            put(one, "version", p->version);
            put(one, "summary", p->summary);
            put(one, "path", chm_registry_path(r, p));
            json_array_append_new(plugins, one);
        }
        return chm_json_print(json_pack("{s:i, s:o}", "schema_version", 1, "plugins", plugins), "the plugins", out);
    }
    chm_table t;
    chm_table_init(&t);
    chm_table_column(&t, "kind");
    chm_table_column(&t, "name");
    chm_table_column(&t, "version");
    chm_table_column(&t, "summary");
    chm_table_column(&t, "path");
    for (size_t i = 0; (p = chm_registry_at(r, kind, i)); i++) {
        chm_table_cell(&t, "%s", chm_kind_name((enum chm_kind)p->kind));
        chm_table_cell(&t, "%s", p->name);
        chm_table_cell(&t, "%s", p->version);
        chm_table_cell(&t, "%s", p->summary);
        chm_table_cell(&t, "%s", chm_registry_path(r, p));
    }
    int status = chm_table_print(&t, format, out);
    chm_table_finish(&t);
    return status;
}

/* ---- plugins show ---- */

static bool answers_to(const struct chm_plugin *p, const char *name) {
    size_t n = strlen(name);
    if (strcmp(p->name, name) == 0) return true;
    for (const char *at = p->aliases; at && *at;) {
        size_t m = strcspn(at, " ");
        if (m == n && memcmp(at, name, n) == 0) return true;
        at += m + (at[m] == ' ');
    }
    return false;
}

static const char *type_name(enum chm_option_type type) {
    static const char *const names[] = {
        [CHM_OPT_BOOL] = "bool",
        [CHM_OPT_INT] = "int",
        [CHM_OPT_FLOAT] = "float",
        [CHM_OPT_ENUM] = "enum",
        [CHM_OPT_STRING] = "string",
        [CHM_OPT_INT_LIST] = "int list",
        [CHM_OPT_FLOAT_LIST] = "float list",
        [CHM_OPT_STRING_LIST] = "string list",
    };
    return names[type]; /* the registry has checked the type */
}

/* An older backend's ops end before its levels. */
static uint32_t level_count(const struct chm_backend_ops *ops) {
    return ops->size >= sizeof *ops && ops->levels ? ops->level_count : 0;
}

static json_t *plugin_json(const chm_registry *r, const struct chm_plugin *p) {
    json_t *one = json_object(), *options = json_array();
    put(one, "kind", chm_kind_name((enum chm_kind)p->kind));
    put(one, "name", p->name);
    json_object_set_new(one, "aliases", words(p->aliases));
    put(one, "section", p->section);
    put(one, "version", p->version);
    put(one, "licence", p->licence);
    put(one, "summary", p->summary);
    put(one, "path", chm_registry_path(r, p));
    json_object_set_new(one, "abi", json_integer(p->abi));
    json_object_set_new(one, "cpu", cpu_json(p->cpu));
    if (p->kind == CHM_KIND_BACKEND) {
        const struct chm_backend_ops *ops = p->ops;
        json_t *levels = json_array();
        json_object_set_new(one, "rank", json_integer(ops->rank));
        for (uint32_t i = 0; i < level_count(ops); i++)
            json_array_append_new(
                levels, json_pack("{s:s, s:o}", "name", ops->levels[i]->name, "cpu", cpu_json(ops->levels[i]->cpu)));
        json_object_set_new(one, "levels", levels);
    }
    for (uint32_t i = 0; i < p->option_count; i++) {
        char accepts[600];
        const struct chm_option *o = &p->options[i];
        json_t *option = json_object();
        chm_option_accepts(o, accepts, sizeof accepts);
        put(option, "name", o->name);
        put(option, "type", type_name(o->type));
        put(option, "default", o->def);
        put(option, "accepts", accepts);
        json_object_set_new(option, "fixed", json_boolean(o->offset == CHM_OPTION_CHECKED));
        put(option, "doc", o->doc);
        json_array_append_new(options, option);
    }
    json_object_set_new(one, "options", options);
    return one;
}

static int print_options(const struct chm_plugin *p, FILE *out, chm_output format) {
    chm_table t;
    chm_table_init(&t);
    chm_table_column(&t, "option");
    chm_table_column(&t, "type");
    chm_table_column(&t, "default");
    chm_table_column(&t, "accepts");
    chm_table_column(&t, "meaning");
    for (uint32_t i = 0; i < p->option_count; i++) {
        char accepts[600];
        const struct chm_option *o = &p->options[i];
        chm_option_accepts(o, accepts, sizeof accepts);
        chm_table_cell(&t, "%s", o->name);
        chm_table_cell(&t, "%s", type_name(o->type));
        chm_table_cell(&t, "%s", o->def ? o->def : "none");
        chm_table_cell(&t, "%s", accepts);
        chm_table_cell(&t, "%s", o->doc);
    }
    int status = chm_table_print(&t, format, out);
    chm_table_finish(&t);
    return status;
}

/* A line of its own, whatever a plugin's texts and path have in them. */
static void put_line(FILE *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put_line(FILE *out, const char *format, ...) {
    char text[8192];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    chm_printable(text, false);
    fprintf(out, "%s\n", text);
}

static int print_plugin(const chm_registry *r, const struct chm_plugin *p, FILE *out, chm_output format) {
    char cpu[256];
    const char *start = format == CHM_OUTPUT_MD ? "- " : "  ";
    chm_cpu_names(p->cpu, cpu, sizeof cpu);
    if (format == CHM_OUTPUT_CSV) return print_options(p, out, format);
    put_line(out, "%s%s %s: %s", format == CHM_OUTPUT_MD ? "## " : "", chm_kind_name((enum chm_kind)p->kind), p->name,
             p->summary);
    if (format == CHM_OUTPUT_MD) fputc('\n', out);
    put_line(out, "%sversion %s, %s", start, p->version, p->licence);
    if (p->aliases && *p->aliases) put_line(out, "%salso called %s", start, p->aliases);
    if (p->section) put_line(out, "%soptions in card section '%s'", start, p->section);
    if (*cpu) put_line(out, "%sneeds %s", start, cpu);
    if (p->kind == CHM_KIND_BACKEND) {
        const struct chm_backend_ops *ops = p->ops;
        put_line(out, "%srank %d", start, (int)ops->rank);
        for (uint32_t i = 0; i < level_count(ops); i++) {
            chm_cpu_names(ops->levels[i]->cpu, cpu, sizeof cpu);
            put_line(out, "%swith %s also %s", start, cpu, ops->levels[i]->name);
        }
    }
    put_line(out, "%s%s", start, chm_registry_path(r, p));
    if (!p->option_count) {
        fprintf(out, "%sno options\n", start);
        return CHM_OK;
    }
    fputc('\n', out);
    return print_options(p, out, format);
}

int chm_report_plugin(const chm_registry *r, const char *name, FILE *out, chm_output format) {
    const struct chm_plugin *p;
    size_t found = 0;
    int status = CHM_OK;
    chm_json_begin();
    json_t *plugins = format == CHM_OUTPUT_JSON ? json_array() : NULL;
    for (size_t i = 0; (p = chm_registry_at(r, 0, i)) && !status; i++) {
        if (!answers_to(p, name)) continue;
        if (format == CHM_OUTPUT_JSON) {
            json_array_append_new(plugins, plugin_json(r, p));
        } else {
            if (found) fputc('\n', out);
            status = print_plugin(r, p, out, format);
        }
        found++;
    }
    if (!found) {
        json_decref(plugins);
        chm_registry_find(r, 0, name); /* for its sentence */
        return CHM_E_PLUGIN;
    }
    if (format == CHM_OUTPUT_JSON)
        return chm_json_print(json_pack("{s:i, s:o}", "schema_version", 1, "plugins", plugins), name, out);
    return status;
}

static bool is_loaded(const chm_registry *r, enum chm_kind kind, const char *name) {
    const struct chm_plugin *p;
    for (size_t i = 0; (p = chm_registry_at(r, kind, i)); i++)
        if (strcmp(p->name, name) == 0) return true;
    return false;
}

/* ---- doctor ---- */

/* The next of the lines at *at, at most n bytes into `line`; false at the end. */
static bool next_line(const char **at, char *line, size_t n) {
    if (!**at) return false;
    size_t length = strcspn(*at, "\n");
    snprintf(line, n, "%.*s", (int)CHM_MIN(length, n - 1), *at);
    *at += length + ((*at)[length] == '\n');
    return true;
}

struct cards {
    char *directory;
    chm_string names;
};

static int doctor_json(const chm_registry *r, const chm_kernel_choice *choice, const char *problem,
                       const struct cards *cards, const char *environment, FILE *out) {
    char line[1024];
    chm_json_begin();
    json_t *variables = json_array();
    json_t *report = json_object(), *paths = json_array(), *files = json_array(), *kernels = json_array();
    json_object_set_new(report, "schema_version", json_integer(1));
    put(report, "version", CHM_VERSION);
    json_object_set_new(report, "cpus", json_integer(chm_cpu_count()));
    json_object_set_new(report, "cpu_features", cpu_json(r->cpu));
    json_object_set_new(report, "cpu_masked", cpu_json(chm_cpu_features() & ~r->cpu));
    chm_cpu_identity identity;
    chm_cpu_weakness weakness;
    json_t *weaknesses = json_array();
    chm_cpu_identify(&identity);
    for (size_t i = 0; chm_cpu_weakness_at(&identity, i, &weakness); i++)
        json_array_append_new(weaknesses, json_string(weakness.sentence));
    json_object_set_new(report, "cpu_weaknesses", weaknesses);
    for (size_t i = 0; i < r->file_count; i++) {
        const struct chm_plugin_file *f = &r->files[i];
        json_t *one = json_object();
        put(one, "path", f->path);
        put(one, "origin", f->origin);
        put(one, "refused", f->refused);
        if (!f->is_directory) {
            put(one, "kind", f->plugin ? chm_kind_name((enum chm_kind)f->plugin->kind) : NULL);
            put(one, "name", f->plugin ? f->plugin->name : NULL);
        }
        json_array_append_new(f->is_directory ? paths : files, one);
    }
    for (size_t i = 0; !problem && i < choice->slots; i++) {
        json_t *one = json_object();
        put(one, "slot", choice->slot[i]);
        put(one, "backend", choice->backend[i]);
        json_object_set_new(one, "exact", json_boolean(choice->exact[i]));
        json_array_append_new(kernels, one);
    }
    json_t *missing = json_array();
    for (const struct chm_optional_plugin *o = chm_optional_plugins; o->name; o++) {
        if (is_loaded(r, o->kind, o->name)) continue;
        json_t *one = json_object();
        put(one, "kind", chm_kind_name(o->kind));
        put(one, "name", o->name);
        put(one, "needs", o->needs);
        json_array_append_new(missing, one);
    }
    json_object_set_new(report, "not_built", missing);
    while (next_line(&environment, line, sizeof line)) json_array_append_new(variables, chm_json_text(line));
    json_object_set_new(report, "environment", variables);
    json_object_set_new(report, "paths", paths);
    json_object_set_new(report, "files", files);
    json_object_set_new(
        report, "cards",
        json_pack("{s:o, s:o}", "directory", chm_json_text(cards->directory), "names", words(cards->names.text)));
    json_object_set_new(report, "kernels", kernels);
    put(report, "problem", problem);
    return chm_json_print(report, "chimera doctor", out);
}

/* The entries that are directories, or those that are files, as a table. */
static int print_entries(const chm_registry *r, bool directories, FILE *out, chm_output format) {
    chm_table t;
    chm_table_init(&t);
    chm_table_column(&t, directories ? "from" : "plugin");
    chm_table_column(&t, directories ? "state" : "kind");
    chm_table_column(&t, "path");
    size_t count = 0;
    for (size_t i = 0; i < r->file_count; i++) {
        const struct chm_plugin_file *f = &r->files[i];
        if (f->is_directory != directories) continue;
        count++;
        if (directories) {
            chm_table_cell(&t, "%s", f->origin);
            chm_table_cell(&t, "%s", f->refused ? "not searched" : "searched");
        } else {
            chm_table_cell(&t, "%s", f->plugin ? f->plugin->name : "refused");
            chm_table_cell(&t, "%s", f->plugin ? chm_kind_name((enum chm_kind)f->plugin->kind) : "-");
        }
        chm_table_cell(&t, "%s%s%s", *f->path ? f->path : "(empty)", f->refused ? ": " : "",
                       f->refused ? f->refused : "");
    }
    int status = CHM_OK;
    if (count) {
        status = chm_table_print(&t, format, out);
    } else {
        fputs("none\n", out);
    }
    chm_table_finish(&t);
    return status;
}

/* Everything in one table: which part, what, how it is, and more about it. */
static int doctor_csv(const chm_registry *r, const chm_kernel_choice *choice, const char *problem,
                      const struct cards *cards, const char *environment, FILE *out) {
    char text[1024];
    chm_table t;
    chm_table_init(&t);
    chm_table_column(&t, "part");
    chm_table_column(&t, "name");
    chm_table_column(&t, "value");
    chm_table_column(&t, "detail");
#define ROW(part, name, value, detail)                                                                                 \
    do {                                                                                                               \
        chm_table_cell(&t, "%s", part);                                                                                \
        chm_table_cell(&t, "%s", name);                                                                                \
        chm_table_cell(&t, "%s", value);                                                                               \
        chm_table_cell(&t, "%s", detail);                                                                              \
    } while (0)
    chm_cpu_names(r->cpu, text, sizeof text);
    ROW("host", "version", CHM_VERSION, "");
    ROW("host", "features", text, "");
    while (next_line(&environment, text, sizeof text)) ROW("environment", "", "wrong", text);
    for (size_t i = 0; i < r->file_count; i++) {
        const struct chm_plugin_file *f = &r->files[i];
        if (f->is_directory)
            ROW("path", f->path, f->refused ? "not searched" : "searched", f->refused ? f->refused : f->origin);
        else
            ROW("file", f->path, f->plugin ? f->plugin->name : "refused",
                f->plugin ? chm_kind_name((enum chm_kind)f->plugin->kind) : f->refused);
    }
    for (size_t i = 0; !problem && i < choice->slots; i++)
        ROW("kernel", choice->slot[i], choice->backend[i], choice->exact[i] ? "exact" : "training");
    if (problem) ROW("kernel", "", "none", problem);
    ROW("cards", cards->directory, cards->names.text ? cards->names.text : "", "");
#undef ROW
    int status = chm_table_print(&t, CHM_OUTPUT_CSV, out);
    chm_table_finish(&t);
    return status;
}

int chm_report_doctor(const chm_registry *r, const char *force, bool require, const char *environment, FILE *out,
                      chm_output format) {
    chm_kernel_choice choice;
    char cpu[256], line[1024], *problem = NULL;
    int verdict = chm_kernels_choose(r, force, require, &choice), status;
    if (verdict && !(problem = chm_strdup(chm_error()))) return CHM_E_MEMORY;
    struct cards cards = {0};
    if (!(cards.directory = chm_shipped_cards(&cards.names))) {
        status = CHM_E_MEMORY;
        goto out;
    }
    if (format == CHM_OUTPUT_JSON) {
        status = doctor_json(r, &choice, problem, &cards, environment, out);
        goto out;
    }
    if (format == CHM_OUTPUT_CSV) {
        status = doctor_csv(r, &choice, problem, &cards, environment, out);
        goto out;
    }
    bool md = format == CHM_OUTPUT_MD;
    const char *section = md ? "\n## " : "\n", *after = md ? "\n\n" : "\n";
    chm_cpu_names(r->cpu, cpu, sizeof cpu);
    fprintf(out, "%schimera %s, %d CPU%s, features: %s\n", md ? "# " : "", CHM_VERSION, chm_cpu_count(),
            chm_cpu_count() == 1 ? "" : "s", *cpu ? cpu : "none that a backend uses");
    chm_cpu_names(chm_cpu_features() & ~r->cpu, cpu, sizeof cpu);
    if (*cpu) fprintf(out, "%smasked, as if this CPU had none of them: %s\n", md ? "\n" : "", cpu);
    chm_cpu_identity identity;
    chm_cpu_weakness weakness;
    chm_cpu_identify(&identity);
    for (size_t i = 0; chm_cpu_weakness_at(&identity, i, &weakness); i++)
        fprintf(out, "%s%s\n", md ? "\n" : "", weakness.sentence);
    if (*environment) fprintf(out, "%sEnvironment%s", section, after);
    while (next_line(&environment, line, sizeof line)) fprintf(out, "%s%s\n", md ? "- " : "", line);
    fprintf(out, "%sPlugin paths%s", section, after);
    status = print_entries(r, true, out, format);
    if (status) goto out;
    fprintf(out, "%sPlugin files%s", section, after);
    status = print_entries(r, false, out, format);
    if (status) goto out;
    for (const struct chm_optional_plugin *o = chm_optional_plugins; o->name; o++)
        if (!is_loaded(r, o->kind, o->name))
            fprintf(out, "%s%s %s is not there: building it takes %s\n", md ? "\n" : "", chm_kind_name(o->kind),
                    o->name, o->needs);
    fprintf(out, "%sCards%s", section, after);
    put_line(out, "%s: %s", cards.directory, cards.names.text ? cards.names.text : "none");
    fprintf(out, "%sKernels%s", section, after);
    if (problem) {
        fprintf(out, "%s\n", problem);
    } else {
        chm_table t;
        chm_table_init(&t);
        chm_table_column(&t, "kernel");
        chm_table_column(&t, "backend");
        chm_table_column(&t, "used for");
        for (size_t i = 0; i < choice.slots; i++) {
            chm_table_cell(&t, "%s", choice.slot[i]);
            chm_table_cell(&t, "%s", choice.backend[i]);
            chm_table_cell(&t, "%s", choice.exact[i] ? "inference and training (exact)" : "training");
        }
        status = chm_table_print(&t, format, out);
        chm_table_finish(&t);
    }
out:
    if (!status && verdict) status = chm_fail(verdict, "%s", problem);
    chm_free(problem);
    chm_free(cards.directory);
    chm_string_finish(&cards.names);
    return status;
}
