/*
 * registry.c: finding, checking and holding plugins.
 *
 * dlopen() itself runs code (constructors of the object and of what it depends on), so as much as can be is checked
 * before it: that neither the file nor its folder can be written by everybody, that the file is a shared object for
 * this machine which defines `chimera_plugin`, and the numbers of that descriptor, read out of the file: magic, ABI,
 * size, kind, CPU features, capabilities. After it: the same numbers once more, as they are in memory, then names, the
 * option table and the members of the ops struct that must be there. Nothing of the plugin is called for any of this.
 * That keeps out accidents. It does not keep out malice: a hostile object has its constructors.
 */
#include "plugin/elf.h"
#include "plugin/search.h"

#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Names of kinds, with their article, and the folders they are kept in. */
static const struct {
    const char *name, *one, *folder;
} kinds[CHM_KIND_COUNT] = {
    [CHM_KIND_LAYER] = {"layer", "a layer", "layers"},
    [CHM_KIND_BACKEND] = {"backend", "a backend", "backends"},
    [CHM_KIND_TOKENIZER] = {"tokenizer", "a tokenizer", "tokenizers"},
    [CHM_KIND_GRAMMAR] = {"grammar", "a grammar", "grammar"},
    [CHM_KIND_MEMORY] = {"memory", "a memory", "memory"},
    [CHM_KIND_EVOLUTION] = {"evolution", "an evolution", "evolution"},
    [CHM_KIND_ENCODER] = {"encoder", "an encoder", "encoders"},
    [CHM_KIND_DRAFTER] = {"drafter", "a drafter", "drafters"},
    [CHM_KIND_COLLECTIVE] = {"collective", "a collective", "collectives"},
    [CHM_KIND_OPTIMISER] = {"optimiser", "an optimiser", "optimisers"},
    [CHM_KIND_DATA] = {"data", "data", "data"},
};

const char *chm_kind_name(enum chm_kind kind) {
    return (unsigned)kind < CHM_KIND_COUNT && kinds[kind].name ? kinds[kind].name : "unknown";
}

const char *chm_kind_one(enum chm_kind kind) {
    return (unsigned)kind < CHM_KIND_COUNT && kinds[kind].one ? kinds[kind].one : "unknown";
}

/* ---- checks ---- */

static void capability_names(uint64_t wanted, char *text, size_t n) {
    static const char *const names[] = {"taps", "addend", "energy", "logits", "depth", "store", "process"};
    size_t used = 0;
    text[0] = 0;
    for (size_t i = 0; i < 64 && used + 24 < n; i++) {
        if (!(wanted >> i & 1)) continue;
        if (used) used += (size_t)snprintf(text + used, n - used, ", ");
        if (i < CHM_ARRAY_COUNT(names))
            used += (size_t)snprintf(text + used, n - used, "%s", names[i]);
        else
            used += (size_t)snprintf(text + used, n - used, "unknown:%zu", i);
    }
}

int chm_check_numbers(const struct chm_plugin *p, uint64_t cpu) {
    if (p->magic != CHM_MAGIC)
        return chm_fail(CHM_E_PLUGIN, "wrong magic number 0x%08x in its descriptor, expected 0x%08x", p->magic,
                        CHM_MAGIC);
    if (p->abi != CHM_ABI)
        return chm_fail(CHM_E_PLUGIN,
                        "built for the %s plugin ABI %u, this host has %u: build it again with these headers",
                        p->abi < CHM_ABI ? "older" : "newer", p->abi, CHM_ABI);
    /* Under one ABI number sizes are fixed: another one comes of headers that are neither. */
    if (p->size != sizeof *p)
        return chm_fail(CHM_E_PLUGIN, "its descriptor says it has %u bytes, expected %zu", p->size, sizeof *p);
    if (p->kind == 0 || p->kind >= CHM_KIND_COUNT)
        return chm_fail(CHM_E_PLUGIN, "unknown kind %u, expected 1..%d", p->kind, CHM_KIND_COUNT - 1);
    if (p->capabilities) {
        char wanted[256];
        capability_names(p->capabilities, wanted, sizeof wanted);
        return chm_fail(CHM_E_PLUGIN, "it asks for %s, which this version grants to no plugin", wanted);
    }
    if (p->cpu & ~cpu) {
        char missing[256];
        chm_cpu_names(p->cpu & ~cpu, missing, sizeof missing);
        return chm_fail(CHM_E_PLUGIN, "this CPU lacks %s", missing);
    }
    return CHM_OK;
}

/* A letter, then letters, digits and underscores: what cards, files and commands can spell alike. */
static bool is_name(const char *s, size_t n) {
    if (n == 0 || n > 63 || !isalpha((unsigned char)s[0])) return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)s[i]) && s[i] != '_') return false;
    return true;
}

/* The next of a list of words separated by spaces: advances *at, returns NULL at the end. */
static const char *next_word(const char **at, size_t *n) {
    if (!*at) return NULL;
    const char *word = *at + strspn(*at, " ");
    *n = strcspn(word, " ");
    *at = word + *n;
    return *n ? word : NULL;
}

static int check_options(const struct chm_plugin *p) {
    static const struct {
        size_t size, alignment;
    } stored[] = {
        [CHM_OPT_BOOL] = {sizeof(bool), _Alignof(bool)},
        [CHM_OPT_INT] = {sizeof(int64_t), _Alignof(int64_t)},
        [CHM_OPT_FLOAT] = {sizeof(double), _Alignof(double)},
        [CHM_OPT_ENUM] = {sizeof(int32_t), _Alignof(int32_t)},
        [CHM_OPT_STRING] = {sizeof(char *), _Alignof(char *)},
        [CHM_OPT_INT_LIST] = {sizeof(struct chm_int_list), _Alignof(struct chm_int_list)},
        [CHM_OPT_FLOAT_LIST] = {sizeof(struct chm_float_list), _Alignof(struct chm_float_list)},
        [CHM_OPT_STRING_LIST] = {sizeof(struct chm_string_list), _Alignof(struct chm_string_list)},
    };
    if (p->option_count && !p->options)
        return chm_fail(CHM_E_PLUGIN, "it counts %u options and has no table of them", p->option_count);
    if (p->option_count > 1000) return chm_fail(CHM_E_PLUGIN, "%u options are too many", p->option_count);
    for (uint32_t i = 0; i < p->option_count; i++) {
        const struct chm_option *o = &p->options[i];
        /* "object.member": the schema of cards says which objects a section may hold */
        const size_t object = o->name ? strcspn(o->name, ".") : 0;
        if (!o->name || !is_name(o->name, object) ||
            (o->name[object] && !is_name(o->name + object + 1, strlen(o->name + object + 1))))
            return chm_fail(CHM_E_PLUGIN, "option %u has no name of letters, digits and underscores", i);
        if (chm_option_find(p->options, i, o->name))
            return chm_fail(CHM_E_PLUGIN, "two options are called '%s'", o->name);
        if ((int)o->type < CHM_OPT_BOOL || (int)o->type > CHM_OPT_STRING_LIST)
            return chm_fail(CHM_E_PLUGIN, "option '%s' has unknown type %d", o->name, (int)o->type);
        if (!o->doc || !*o->doc) return chm_fail(CHM_E_PLUGIN, "option '%s' has no doc sentence", o->name);
        if (o->type == CHM_OPT_ENUM && (!o->choices || !*o->choices))
            return chm_fail(CHM_E_PLUGIN, "option '%s' is an enumeration without choices", o->name);
        if (!(o->min <= o->max) || o->list_min > o->list_max + (o->list_max == 0 ? o->list_min : 0))
            return chm_fail(CHM_E_PLUGIN, "option '%s' has an empty range", o->name);
        if (o->offset != CHM_OPTION_CHECKED &&
            (o->offset > p->instance_size || stored[o->type].size > p->instance_size - o->offset ||
             o->offset % CHM_MAX(stored[o->type].alignment, 1)))
            return chm_fail(CHM_E_PLUGIN, "option '%s' would be stored at %zu of an instance of %u bytes", o->name,
                            o->offset, p->instance_size);
        bool may_be_empty = o->offset == CHM_OPTION_CHECKED || o->type == CHM_OPT_STRING ||
                            o->type == CHM_OPT_INT_LIST || o->type == CHM_OPT_FLOAT_LIST ||
                            o->type == CHM_OPT_STRING_LIST;
        if (!o->def && !may_be_empty) return chm_fail(CHM_E_PLUGIN, "option '%s' has no default", o->name);
        const int status = o->def ? chm_option_parse(o, o->def, NULL, NULL) : CHM_OK;
        if (status == CHM_E_MEMORY) return status;
        if (status) return chm_fail_prefix(CHM_E_PLUGIN, "the default of an option is wrong");
    }
    return CHM_OK;
}

#define MANDATORY(ops, member)                                                                                         \
    do {                                                                                                               \
        if (!(ops)->member)                                                                                            \
            return chm_fail(CHM_E_PLUGIN, "its %s ops have no '%s', which is mandatory", chm_kind_name(p->kind),       \
                            #member);                                                                                  \
    } while (0)

static int check_ops_size(const struct chm_plugin *p, uint32_t size, size_t expected) {
    if (size == expected) return CHM_OK;
    return chm_fail(CHM_E_PLUGIN, "its %s ops say they have %u bytes, expected %zu", chm_kind_name(p->kind), size,
                    expected);
}

static int check_levels(const struct chm_plugin *p) {
    const struct chm_backend_ops *ops = p->ops;
    if (ops->level_count == 0) return CHM_OK;
    if (ops->level_count > 64 || !ops->levels)
        return chm_fail(CHM_E_PLUGIN, "its backend ops count %u levels and have no list of them", ops->level_count);
    for (uint32_t i = 0; i < ops->level_count; i++) {
        const struct chm_backend_level *level = ops->levels[i];
        if (!level) return chm_fail(CHM_E_PLUGIN, "level %u of its backend ops is missing", i);
        int status = check_ops_size(p, level->size, sizeof *level);
        if (!status) status = check_ops_size(p, level->kernels.size, sizeof level->kernels);
        if (status) return status;
        if (!level->name || !is_name(level->name, strlen(level->name)))
            return chm_fail(CHM_E_PLUGIN, "level %u of its backend ops has no name of letters, digits and underscores",
                            i);
    }
    return CHM_OK;
}

static int check_ops(const struct chm_plugin *p) {
    int status;
    if (!p->ops) return chm_fail(CHM_E_PLUGIN, "its descriptor has no ops");
    switch (p->kind) {
    case CHM_KIND_LAYER: {
        const struct chm_layer_ops *ops = p->ops;
        if ((status = check_ops_size(p, ops->size, sizeof *ops))) return status;
        MANDATORY(ops, declare);
        MANDATORY(ops, forward);
        return CHM_OK;
    }
    case CHM_KIND_TOKENIZER: {
        const struct chm_tokenizer_ops *ops = p->ops;
        if ((status = check_ops_size(p, ops->size, sizeof *ops))) return status;
        MANDATORY(ops, init);
        MANDATORY(ops, vocab_size);
        MANDATORY(ops, end_of_text);
        MANDATORY(ops, encode);
        MANDATORY(ops, decode);
        return CHM_OK;
    }
    case CHM_KIND_BACKEND: {
        const struct chm_backend_ops *ops = p->ops;
        if ((status = check_ops_size(p, ops->size, sizeof *ops))) return status;
        if ((status = check_ops_size(p, ops->kernels.size, sizeof ops->kernels))) return status;
        if ((status = check_levels(p))) return status;
        for (size_t at = offsetof(struct chm_kernels, quantise); at < offsetof(struct chm_kernels, reserved_slots);
             at += sizeof(void *)) {
            static const void *const empty = NULL;
            if (memcmp((const char *)&ops->kernels + at, &empty, sizeof empty) != 0) return CHM_OK;
        }
        return chm_fail(CHM_E_PLUGIN, "its backend ops fill no kernel slot");
    }
    case CHM_KIND_OPTIMISER: {
        const struct chm_optimiser_ops *ops = p->ops;
        if ((status = check_ops_size(p, ops->size, sizeof *ops))) return status;
        MANDATORY(ops, arrays);
        MANDATORY(ops, step);
        return CHM_OK;
    }
    default:
        return chm_fail(CHM_E_PLUGIN, "this version has no use for plugins of kind '%s' yet", chm_kind_name(p->kind));
    }
}

/* Names with dots between: "backbone.moe" */
static bool is_section(const char *section) {
    for (const char *c = section;; c++) {
        const size_t n = strcspn(c, ".");
        if (!is_name(c, n)) return false;
        c += n;
        if (!*c) return true;
    }
}

int chm_check_descriptor(const struct chm_plugin *p) {
    int status;
    if (!p->name || !*p->name) return chm_fail(CHM_E_PLUGIN, "its descriptor has no name");
    if (!is_name(p->name, strlen(p->name)))
        return chm_fail(CHM_E_PLUGIN, "its name '%.80s' is not made of letters, digits and underscores", p->name);
    if (p->section && !is_section(p->section))
        return chm_fail(CHM_E_PLUGIN, "its card section '%.80s' is not made of letters, digits and underscores",
                        p->section);
    const char *at = p->aliases, *word;
    size_t n;
    while ((word = next_word(&at, &n)))
        if (!is_name(word, n))
            return chm_fail(CHM_E_PLUGIN, "its alias '%.*s' is not made of letters, digits and underscores",
                            (int)CHM_MIN(n, (size_t)80), word);
    if (!p->version || !p->licence || !p->summary)
        return chm_fail(CHM_E_PLUGIN, "its descriptor has no %s",
                        !p->version   ? "version"
                        : !p->licence ? "licence"
                                      : "summary");
    if ((status = check_options(p))) return status;
    return check_ops(p);
}

/* ---- names ---- */

static bool has_name(const struct chm_plugin *p, const char *name, size_t n) {
    const char *at = p->aliases, *word;
    size_t m;
    if (strlen(p->name) == n && memcmp(p->name, name, n) == 0) return true;
    while ((word = next_word(&at, &m)))
        if (m == n && memcmp(word, name, n) == 0) return true;
    return false;
}

/* The earlier plugin of this kind that answers to `name`. */
static const struct chm_plugin_file *taken(const chm_registry *r, const struct chm_plugin *p, const char *name,
                                           size_t n) {
    for (size_t i = 0; i < r->file_count; i++) {
        const struct chm_plugin *other = r->files[i].plugin;
        if (other && other->kind == p->kind && has_name(other, name, n)) return &r->files[i];
    }
    return NULL;
}

static int check_unique(const chm_registry *r, const struct chm_plugin *p) {
    size_t n = strlen(p->name);
    const struct chm_plugin_file *other = taken(r, p, p->name, n);
    if (other) return chm_fail(CHM_E_PLUGIN, "the name '%s' is taken: %s was found first", p->name, other->path);
    const char *at = p->aliases, *word;
    while ((word = next_word(&at, &n))) {
        other = taken(r, p, word, n);
        if (other)
            return chm_fail(CHM_E_PLUGIN, "its alias '%.*s' is taken: %s was found first", (int)n, word, other->path);
    }
    return p->section ? chm_registry_check_section(r, p->section, (enum chm_kind)p->kind) : CHM_OK;
}

int chm_registry_check_section(const chm_registry *r, const char *section, enum chm_kind kind) {
    const struct chm_plugin *other = chm_registry_section(r, section);
    if (other)
        return chm_fail(CHM_E_PLUGIN, "the card section '%s' is taken: %s was found first", section,
                        chm_registry_path(r, other));
    return r->check_section ? r->check_section(section, kind) : CHM_OK;
}

/* ---- searching ---- */

/* Adds an entry whose path is `directory`[/`name`]; NULL when out of memory. */
static struct chm_plugin_file *add_entry(chm_registry *r, const char *directory, const char *name, const char *origin) {
    struct chm_plugin_file *files = chm_realloc(r->files, (r->file_count + 1) * sizeof *files);
    if (!files) return NULL;
    r->files = files;
    struct chm_plugin_file *f = &files[r->file_count];
    memset(f, 0, sizeof *f);
    f->origin = origin;
    f->is_directory = !name;
    const char *slash = directory[0] && directory[strlen(directory) - 1] == '/' ? "" : "/";
    f->path = name ? chm_format("%s%s%s", directory, slash, name) : chm_strdup(directory);
    if (!f->path) return NULL;
    r->file_count++;
    return f;
}

/* The system's reason as a sentence. Memory that ran out is no reason to go on without a plugin. */
static int refused_by_system(const char *what) {
    return chm_fail(errno == ENOMEM ? CHM_E_MEMORY : CHM_E_PLUGIN, "%s: %s", what, strerror(errno));
}

/* Keeps chm_error() as the reason. */
static int refuse(struct chm_plugin_file *f) {
    f->refused = chm_strdup(chm_error());
    return f->refused ? CHM_OK : CHM_E_MEMORY;
}

static int check_kind(const struct chm_plugin *p, enum chm_kind kind) {
    if (kind == 0 || p->kind == (uint32_t)kind) return CHM_OK;
    return chm_fail(CHM_E_PLUGIN, "it is %s, and lies in the folder of %s", chm_kind_one((enum chm_kind)p->kind),
                    kinds[kind].folder);
}

/* The directories above the file itself, wherever links lead: in one that everybody may write to lies anybody's file,
 * and whatever is below it can be exchanged, unless it has the sticky bit. */
static int check_above(const char *path) {
    struct stat st;
    char real[PATH_MAX], *slash;
    if (!realpath(path, real)) return refused_by_system("cannot be followed");
    for (bool next = true; (slash = strrchr(real, '/')); next = false) {
        slash[slash == real] = 0;
        if (stat(real, &st)) return refused_by_system("the directory above it cannot be looked at");
        if ((st.st_mode & S_IWOTH) && (next || !(st.st_mode & S_ISVTX)))
            return chm_fail(CHM_E_PLUGIN, "everybody may write to %s, below which it lies: chmod o-w it", real);
        if (!real[1]) break;
    }
    return CHM_OK;
}

static int check_file(const chm_registry *r, const char *path, enum chm_kind kind) {
    struct stat st;
    struct chm_plugin p;
    chm_map map;
    if (stat(path, &st)) return refused_by_system("cannot stat");
    if (!S_ISREG(st.st_mode)) return chm_fail(CHM_E_PLUGIN, "not a regular file");
    if (st.st_mode & S_IWOTH) return chm_fail(CHM_E_PLUGIN, "everybody may write this file: chmod o-w it");
    int status = check_above(path);
    if (!status) status = chm_map_open(&map, path);
    if (status) return status;
    status = chm_elf_descriptor(map.data, map.size, &p);
    if (!status) status = chm_check_numbers(&p, r->cpu);
    if (!status) status = check_kind(&p, kind);
    chm_map_close(&map);
    return status;
}

/* Looks at one file, in the folder of a kind or (0) of any. Only running out of memory is a failure; all else is a
 * reason kept with the file. */
static int try_file(chm_registry *r, const char *directory, const char *name, const char *origin, enum chm_kind kind) {
    struct chm_plugin_file *f = add_entry(r, directory, name, origin);
    if (!f) return CHM_E_MEMORY;
    int status = check_file(r, f->path, kind);
    if (status) return status == CHM_E_MEMORY ? status : refuse(f);

    errno = 0;
    f->handle = dlopen(f->path, RTLD_NOW | RTLD_LOCAL);
    if (!f->handle) {
        bool memory = errno == ENOMEM;
        const char *why = dlerror();
        memory = memory || (why && (strstr(why, strerror(ENOMEM)) || strstr(why, "out of memory")));
        chm_fail(CHM_E_PLUGIN, "cannot be loaded: %s", why ? why : "no reason given");
        return memory ? chm_fail_prefix(CHM_E_MEMORY, "%s", f->path) : refuse(f);
    }
    const struct chm_plugin *p = dlsym(f->handle, "chimera_plugin");
    if (!p) {
        status = chm_fail(CHM_E_PLUGIN, "it exports no 'chimera_plugin'");
    } else if (!(status = chm_check_numbers(p, r->cpu)) && !(status = chm_check_descriptor(p))) {
        status = check_unique(r, p);
    }
    if (!status) {
        f->plugin = p;
        return CHM_OK;
    }
    if (status == CHM_E_MEMORY) return status;
    /* The sentence may quote the plugin's own text: copied before the plugin goes. */
    status = refuse(f);
    dlclose(f->handle);
    f->handle = NULL;
    return status;
}

static bool already_searched(const chm_registry *r, const struct stat *st) {
    for (size_t i = 0; i < r->file_count; i++) {
        struct stat other;
        const struct chm_plugin_file *f = &r->files[i];
        if (f->is_directory && !f->refused && stat(f->path, &other) == 0 && other.st_dev == st->st_dev &&
            other.st_ino == st->st_ino)
            return true;
    }
    return false;
}

static int plugin_names(const struct dirent *e) {
    size_t n = strlen(e->d_name);
    return n > 3 && e->d_name[0] != '.' && strcmp(e->d_name + n - 3, ".so") == 0;
}

static enum chm_kind kind_of_folder(const char *name) {
    for (int kind = 1; kind < CHM_KIND_COUNT; kind++)
        if (strcmp(name, kinds[kind].folder) == 0) return (enum chm_kind)kind;
    return (enum chm_kind)0;
}

static int folder_names(const struct dirent *e) { return kind_of_folder(e->d_name) != 0; }

/* In the order of bytes, whatever the locale. */
static int by_bytes(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

/* `kind`: whose folder this is, 0: a directory of the search path, whose folders of kinds are searched too. */
static int search_directory(chm_registry *r, const char *path, const char *origin, enum chm_kind kind) {
    struct stat st;
    int status = CHM_OK, n;
    struct dirent **list = NULL;
    char *directory = NULL;
    bool again = stat(path, &st) == 0 && already_searched(r, &st);
    struct chm_plugin_file *f = add_entry(r, path, NULL, origin);
    if (!f) return CHM_E_MEMORY;
    if (path[0] != '/') {
        if (*path) {
            chm_fail(CHM_E_PLUGIN, "relative paths are not searched: give the whole path, beginning with /");
            chm_log(CHM_LOG_WARN, "%s: %s: %s", origin, path, chm_error());
        } else {
            chm_fail(CHM_E_PLUGIN, "an empty entry would be the current directory, which is never searched");
        }
        return refuse(f);
    }
    if (stat(path, &st)) {
        chm_fail(CHM_E_PLUGIN, "%s", errno == ENOENT ? "no such directory" : strerror(errno));
        return refuse(f);
    }
    if (!S_ISDIR(st.st_mode)) {
        chm_fail(CHM_E_PLUGIN, "not a directory");
        return refuse(f);
    }
    if (st.st_mode & S_IWOTH) {
        chm_fail(CHM_E_PLUGIN, "everybody may write to this directory: chmod o-w it");
        return refuse(f);
    }
    if (again) {
        chm_fail(CHM_E_PLUGIN, "searched already");
        return refuse(f);
    }
    n = scandir(path, &list, plugin_names, by_bytes);
    if (n < 0) {
        status = refused_by_system("cannot be read");
        return status == CHM_E_MEMORY ? chm_fail_prefix(status, "%s", path) : refuse(f);
    }
    for (int i = 0; i < n && !status; i++) status = try_file(r, path, list[i]->d_name, origin, kind);
    for (int i = 0; i < n; i++) free(list[i]);
    free(list);
    if (status || kind) return status;

    n = scandir(path, &list, folder_names, by_bytes);
    if (n < 0 && errno == ENOMEM) return chm_fail_prefix(refused_by_system("cannot be read"), "%s", path);
    for (int i = 0; i < n && !status; i++) {
        directory = chm_format("%s%s%s", path, path[strlen(path) - 1] == '/' ? "" : "/", list[i]->d_name);
        status = directory ? search_directory(r, directory, origin, kind_of_folder(list[i]->d_name)) : CHM_E_MEMORY;
        chm_free(directory);
    }
    for (int i = 0; i < n; i++) free(list[i]);
    if (n >= 0) free(list);
    return status;
}

static int search_path(chm_registry *r, const char *path, const char *origin) {
    int status = CHM_OK;
    if (!path || !*path) return CHM_OK;
    for (const char *at = path; at && !status;) {
        const char *end = strchr(at, ':');
        char *entry = chm_format("%.*s", (int)(end ? end - at : (ptrdiff_t)strlen(at)), at);
        status = entry ? search_directory(r, entry, origin, 0) : CHM_E_MEMORY;
        chm_free(entry);
        at = end ? end + 1 : NULL;
    }
    return status;
}

int chm_registry_init(chm_registry *r, const struct chm_registry_options *options) {
    memset(r, 0, sizeof *r);
    const char *variable = secure_getenv("CHIMERA_CPU_MASK");
    uint64_t mask = 0;
    int status = variable ? chm_cpu_mask(variable, &mask) : CHM_OK;
    if (status) return chm_fail_prefix(status, "CHIMERA_CPU_MASK");
    r->cpu = chm_cpu_features() & ~mask;
    if (options) {
        r->cpu &= ~options->cpu_mask;
        r->check_section = options->check_section;
    }
    chm_cpu_identity cpu;
    chm_cpu_weakness weakness;
    chm_cpu_identify(&cpu);
    for (size_t i = 0; chm_cpu_weakness_at(&cpu, i, &weakness); i++) r->cpu_avoid |= weakness.avoid;
    status = search_path(r, options ? options->plugin_path : NULL, "--plugin-path");
    /* A program that runs with more rights than its caller does not take paths from the caller's environment. */
    if (!status) status = search_path(r, secure_getenv("CHIMERA_PLUGIN_PATH"), "CHIMERA_PLUGIN_PATH");
    const char *build = chm_build_tree_plugins();
    if (!status && build) status = search_directory(r, build, "build tree", 0);
    char *installed = status ? NULL : chm_installed_plugins();
    if (!status) status = installed ? search_directory(r, installed, "install directory", 0) : CHM_E_MEMORY;
    chm_free(installed);
    if (status) chm_registry_finish(r);
    return status;
}

void chm_registry_finish(chm_registry *r) {
    for (size_t i = r->file_count; i-- > 0;) {
        if (r->files[i].handle) dlclose(r->files[i].handle);
        chm_free(r->files[i].refused);
        chm_free(r->files[i].path);
    }
    chm_free(r->files);
    memset(r, 0, sizeof *r);
}

/* ---- asking ---- */

const struct chm_plugin *chm_registry_at(const chm_registry *r, enum chm_kind kind, size_t i) {
    for (size_t f = 0; f < r->file_count; f++) {
        const struct chm_plugin *p = r->files[f].plugin;
        if (p && (kind == 0 || p->kind == (uint32_t)kind) && i-- == 0) return p;
    }
    return NULL;
}

const struct chm_optional_plugin chm_optional_plugins[] = {
    {CHM_KIND_BACKEND, "openblas", "libopenblas-dev"},
    {CHM_KIND_TOKENIZER, "o200k", "libpcre2-dev"},
    {CHM_KIND_TOKENIZER, "sentencepiece", "libsentencepiece-dev and g++"},
    {0, NULL, NULL},
};

static const struct chm_optional_plugin *left_out(enum chm_kind kind, const char *name) {
    for (const struct chm_optional_plugin *o = chm_optional_plugins; o->name; o++)
        if ((kind == 0 || kind == o->kind) && strcmp(name, o->name) == 0) return o;
    return NULL;
}

/* Why a file that is called like this plugin was refused, or NULL. */
static const struct chm_plugin_file *refused_file(const chm_registry *r, const char *name) {
    size_t n = strlen(name);
    for (size_t i = 0; i < r->file_count; i++) {
        const struct chm_plugin_file *f = &r->files[i];
        if (!f->refused || f->is_directory) continue;
        const char *base = strrchr(f->path, '/') + 1;
        if (strlen(base) == n + 3 && memcmp(base, name, n) == 0) return f;
    }
    return NULL;
}

const struct chm_plugin *chm_registry_other_kind(const chm_registry *r, enum chm_kind kind, const char *name) {
    const struct chm_plugin *p;
    for (size_t i = 0; kind && (p = chm_registry_at(r, 0, i)); i++)
        if (p->kind != (uint32_t)kind && has_name(p, name, strlen(name))) return p;
    return NULL;
}

const struct chm_plugin *chm_registry_find(const chm_registry *r, enum chm_kind kind, const char *name) {
    const struct chm_plugin *p;
    const char *known[128];
    size_t count = 0, n = strlen(name);
    chm_string list = {0};
    const char *what = kind ? chm_kind_name(kind) : "plugin";
    for (size_t i = 0; (p = chm_registry_at(r, kind, i)); i++)
        if (has_name(p, name, n)) return p;
    for (size_t i = 0; (p = chm_registry_at(r, kind, i)); i++) {
        if (count < CHM_ARRAY_COUNT(known) - 1) known[count++] = p->name;
        chm_string_add(&list, "%s%s", i ? ", " : "", p->name);
    }
    known[count] = NULL;
    const char *nearest = chm_nearest(name, known);
    const struct chm_plugin_file *f = refused_file(r, name);
    const struct chm_plugin *other = chm_registry_other_kind(r, kind, name);
    const struct chm_optional_plugin *optional = left_out(kind, name);
    if (other) {
        chm_fail(CHM_E_PLUGIN, "no %s '%s': '%s' is %s", what, name, name, chm_kind_one((enum chm_kind)other->kind));
    } else if (f) {
        chm_fail(CHM_E_PLUGIN, "no %s '%s': %s was refused: %s", what, name, f->path, f->refused);
    } else if (optional) {
        chm_fail(CHM_E_PLUGIN, "no %s '%s' in this build, which has %s: building it takes %s", what, name,
                 list.text ? list.text : "none", optional->needs);
    } else if (nearest) {
        chm_fail(CHM_E_PLUGIN, "no %s '%s' (did you mean '%s'?)", what, name, nearest);
    } else if (count) {
        chm_fail(CHM_E_PLUGIN, "no %s '%s': there are %s", what, name, list.text ? list.text : "others");
    } else {
        chm_fail(CHM_E_PLUGIN, "no %s '%s', nor any other %s: `chimera doctor` shows where plugins were looked for",
                 what, name, what);
    }
    chm_string_finish(&list);
    return NULL;
}

const struct chm_plugin *chm_registry_section(const chm_registry *r, const char *section) {
    const struct chm_plugin *p;
    for (size_t i = 0; (p = chm_registry_at(r, 0, i)); i++)
        if (p->section && strcmp(p->section, section) == 0) return p;
    return NULL;
}

const char *chm_registry_path(const chm_registry *r, const struct chm_plugin *plugin) {
    for (size_t i = 0; i < r->file_count; i++)
        if (r->files[i].plugin == plugin) return r->files[i].path;
    return "built in";
}
