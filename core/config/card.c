/* card.c: loading a card, and what the rest of the library asks of it. */
#include "config/card_internal.h"
#include "plugin/search.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* ---- loading ---- */

/* Sections every card has, with their defaults, and the first training phase. */
static void add_sections(chm_card *card) {
    const struct chm_schema_row *row;
    size_t cursor = 0;
    while ((row = chm_schema_next("", &cursor)) != NULL && !card->starved)
        if ((row->flags & CHM_ROW_ALWAYS) && !chm_value_member(card->root, row->path))
            chm_card_add(card, card->root, row->path, CHM_VALUE_OBJECT);
    chm_value *training = chm_value_member(card->root, "training");
    if (card->starved || !training || training->type != CHM_VALUE_OBJECT || chm_value_member(training, "phases"))
        return;
    chm_value *phases = chm_card_add(card, training, "phases", CHM_VALUE_ARRAY);
    chm_value *phase = phases ? chm_value_new(CHM_VALUE_OBJECT, &card->arena) : NULL;
    if (!phase) {
        card->starved = true;
        return;
    }
    phase->origin = "default";
    chm_value_append(phases, phase);
    chm_card_annotate(card, phases);
    chm_value *name = chm_card_add(card, phase, "name", CHM_VALUE_STRING);
    if (name) name->text = "pretrain";
}

/* Defaults of the options of the layers the pattern uses, also when the card has no section for them. */
static void add_plugin_sections(chm_card *card) {
    const chm_model_config *m = &card->model;
    for (int64_t i = 0; i < 2 * m->layers && !card->starved; i++) {
        const char *name = i % 2 ? m->ffn[i / 2] : m->mixer[i / 2];
        const struct chm_plugin *p = name ? chm_find_plugin(card->registry, CHM_KIND_LAYER, name, false) : NULL;
        if (!p || !p->section || p->option_count == 0) continue;
        chm_value *at = chm_card_section(card, p->section, CHM_LOCATE_CREATE);
        if (!at || at->plugin != p || at->type != CHM_VALUE_OBJECT) continue;
        chm_card_fill(card, at);
    }
}

/* Text and origin of every value but objects, so that asking for them needs no memory. */
static void show(chm_card *card, chm_value *v) {
    if (v->type != CHM_VALUE_OBJECT && !card->starved) {
        chm_string text = {0};
        chm_value_write(v, -1, &text);
        v->shown = text.failed ? NULL : chm_arena_string(&card->arena, text.text, text.length);
        chm_string_finish(&text);
        if (!v->shown) card->starved = true;
    }
    v->shown_origin = v->origin;
    if (v->line > 0 && !card->starved) {
        char line[32];
        int n = snprintf(line, sizeof line, ":%d", v->line);
        size_t length = strlen(v->origin);
        char *origin = chm_arena_take(&card->arena, length + (size_t)n + 1);
        if (origin) {
            memcpy(origin, v->origin, length);
            memcpy(origin + length, line, (size_t)n + 1);
        } else {
            card->starved = true;
        }
        v->shown_origin = origin;
    }
    if (v->type == CHM_VALUE_OBJECT ||
        (v->row && (v->row->shape == CHM_SHAPE_ITEMS || v->row->shape == CHM_SHAPE_PHASES)))
        for (chm_value *child = v->first; child && !card->starved; child = child->next) show(card, child);
}

static int verdict(chm_card *card) {
    if (card->starved || card->problems.failed)
        return chm_fail(CHM_E_MEMORY, "%s: out of memory while reading the card", card->name);
    if (card->problem_count == 0) return CHM_OK;
    if (card->problem_count > CHM_MAX_PROBLEMS)
        return chm_fail_lines(CHM_E_CONFIG, "%s\n%s: %d more problems", card->problems.text, card->name,
                              card->problem_count - CHM_MAX_PROBLEMS);
    return chm_fail_lines(CHM_E_CONFIG, "%s", card->problems.text);
}

int chm_card_parse(const char *name, const char *text, size_t bytes, const struct chm_card_options *options,
                   chm_card **out) {
    *out = NULL;
    chm_card *card = chm_alloc(sizeof *card);
    if (!card) return CHM_E_MEMORY;
    chm_arena_init(&card->arena);
    card->registry = options->registry;
    card->one_layer = options->one_layer;
    card->trained = options->trained;
    card->name = chm_arena_string(&card->arena, name, strlen(name));
    int status = CHM_E_MEMORY;
    if (!card->name) goto out;
    status = chm_value_parse(card->name, text, bytes, &card->arena, &card->root);
    if (status) goto out;

    chm_card_annotate(card, card->root);
    add_sections(card);
    if (!card->starved) {
        status = chm_card_overlays(card, options);
        if (status) goto out;
    }
    /* Only now: an overlay may mend what the card has wrong, and may have changed what kind a phase is. */
    chm_card_annotate(card, card->root);
    if (!card->starved) chm_card_check_rows(card, card->root);
    if (!card->starved) chm_card_fill(card, card->root);
    if (!card->starved) chm_card_resolve(card);
    if (!card->starved) add_plugin_sections(card);
    if (!card->starved) chm_card_contradictions(card);
    status = verdict(card);
    if (status) goto out;
    chm_card_list_unbuilt(card);
    show(card, card->root);
    status = verdict(card);
    if (status) goto out;
    *out = card;
    card = NULL;
out:
    chm_card_destroy(card);
    return status;
}

int chm_card_environment(const chm_registry *registry, char **problems) {
    static const struct chm_card_options options = {.read_environment = true};
    *problems = NULL;
    chm_card *card = chm_alloc(sizeof *card);
    if (!card) return CHM_E_MEMORY;
    chm_arena_init(&card->arena);
    card->registry = registry;
    card->name = "environment";
    int status = chm_value_parse(card->name, "{}", 2, &card->arena, &card->root);
    if (status) goto out;
    chm_card_annotate(card, card->root);
    add_sections(card);
    if (!card->starved) status = chm_card_overlays(card, &options);
    if (!status && (card->starved || card->problems.failed))
        status = chm_fail(CHM_E_MEMORY, "out of memory while reading the environment");
    if (!status && !(*problems = chm_strdup(card->problems.text ? card->problems.text : ""))) status = CHM_E_MEMORY;
out:
    chm_card_destroy(card);
    return status;
}

static bool is_missing(const char *path) {
    struct stat st;
    return stat(path, &st) != 0 ? errno == ENOENT : S_ISDIR(st.st_mode);
}

/* A card is named by its path; one that came with the library also by its name. *path: where it is; chm_free() it. */
static int find_card(const char *name, char **path) {
    chm_string names = {0};
    int status = CHM_OK;
    *path = chm_strdup(name);
    if (!*path || !is_missing(name)) return *path ? CHM_OK : CHM_E_MEMORY;
    const bool is_name = strchr(name, '/') == NULL;
    char *directory = chm_shipped_cards(&names);
    for (int i = 0; directory && *path && is_name && i < 2 && is_missing(*path); i++) {
        chm_free(*path);
        *path = chm_format("%s/%s%s", directory, name, i ? "" : ".json");
    }
    if (!directory || !*path || names.failed)
        status = chm_fail(CHM_E_MEMORY, "%s: out of memory while looking for the card", name);
    else if (!is_name || is_missing(*path))
        status = chm_fail(CHM_E_DATA, "%s: no such file; cards in %s go by their name: %s", name, directory,
                          names.length > 0 ? names.text : "there is none");
    if (status) {
        chm_free(*path);
        *path = NULL;
    }
    chm_free(directory);
    chm_string_finish(&names);
    return status;
}

int chm_card_load(const char *name, const struct chm_card_options *options, chm_card **out) {
    *out = NULL;
    char *text = NULL, *path = NULL;
    size_t bytes = 0;
    int status = find_card(name, &path);
    if (status == CHM_OK) status = chm_read_file(path, CHM_CARD_MAX_BYTES, &text, &bytes);
    if (status == CHM_OK) status = chm_card_parse(path, text, bytes, options, out);
    chm_free(text);
    chm_free(path);
    return status;
}

void chm_card_destroy(chm_card *card) {
    if (!card) return;
    chm_string_finish(&card->problems);
    chm_string_finish(&card->unused);
    chm_arena_finish(&card->arena);
    chm_free(card);
}

/* ---- asking ---- */

const char *chm_card_name(const chm_card *card) { return card->name; }
const chm_model_config *chm_card_model(const chm_card *card) { return &card->model; }
const chm_train_config *chm_card_train(const chm_card *card) { return &card->train; }
const char *const *chm_card_unbuilt(const chm_card *card) { return card->unbuilt; }

const char *chm_card_unused(const chm_card *card) { return card->unused.text; }

void chm_card_say_unused(const chm_card *card) {
    if (card->unused.text) chm_log(CHM_LOG_INFO, "%s: checked, not used: %s", card->name, card->unused.text);
}

int chm_card_buildable(const chm_card *card) {
    if (!card->missing) return CHM_OK;
    chm_string path = {0};
    chm_value_path(card->missing, &path);
    const char *key = path.text ? path.text : "enabled";
    const int status = chm_fail(CHM_E_CONFIG,
                                "%s: %s is true, but its %s is not built yet, and a model without it is another "
                                "model; --set %s=false makes that one",
                                card->missing->shown_origin, key, card->missing->parent->row->planned, key);
    chm_string_finish(&path);
    return status;
}

bool chm_card_wants_metric(const chm_card *card, const char *name) {
    const chm_value *metrics = chm_card_find(card, "diagnostics.metrics");
    for (const chm_value *v = metrics ? metrics->first : NULL; v; v = v->next)
        if (strcmp(v->text, name) == 0) return true;
    return false;
}

const char *chm_card_get(const chm_card *card, const char *key, const char **origin) {
    if (origin) *origin = NULL;
    chm_value *v = chm_card_find(card, key);
    char name[160];
    if (!v || v == card->root) { /* perhaps by the name of a plugin or a phase */
        v = card->root;
        for (const char *c = key; v && *c;) {
            size_t n = strcspn(c, ".[");
            if (n >= sizeof name) return NULL;
            memcpy(name, c, n);
            name[n] = 0;
            if (n > 0 && name[n - 1] == ']') name[n - 1] = 0;
            /* without CHM_LOCATE_CREATE nothing is changed */
            v = chm_card_step((chm_card *)(uintptr_t)card, v, name, 0);
            c += n + (c[n] != 0);
        }
    }
    if (!v || !v->shown) return NULL;
    if (origin) *origin = v->shown_origin;
    return v->shown;
}

/* "a.b" below an object */
static const chm_value *member_at(const chm_value *v, const char *path) {
    char key[64];
    while (v && *path) {
        const size_t n = strcspn(path, ".");
        if (n >= sizeof key || v->type != CHM_VALUE_OBJECT) return NULL;
        memcpy(key, path, n);
        key[n] = 0;
        v = chm_value_member(v, key);
        path += n + (path[n] == '.');
    }
    return v;
}

int chm_card_plugin_options(const chm_card *card, const struct chm_plugin *plugin, void *instance, chm_arena *arena) {
    int status = chm_option_defaults(plugin->options, plugin->option_count, instance, arena);
    if (status || !plugin->section) return status;
    const chm_value *section = chm_card_find(card, plugin->section);
    if (!section || section->type != CHM_VALUE_OBJECT) return CHM_OK;
    for (uint32_t i = 0; i < plugin->option_count; i++) {
        const struct chm_option *o = &plugin->options[i];
        const chm_value *v = member_at(section, o->name);
        if (!v || !v->shown) continue;
        /* [0.3, "how"]: the option is the number */
        const bool tuple = v->row && v->row->shape == CHM_SHAPE_TUPLE && v->first;
        chm_string number = {0};
        if (tuple) chm_value_write(v->first, -1, &number);
        status = number.failed ? CHM_E_MEMORY : chm_option_parse(o, tuple ? number.text : v->shown, instance, arena);
        chm_string_finish(&number);
        if (status) return chm_fail_prefix(status, "%s", v->shown_origin);
    }
    return CHM_OK;
}

int chm_card_mixer_options(const chm_card *card, int layer, const struct chm_plugin *plugin, void *instance,
                           chm_arena *arena) {
    const int status = chm_card_plugin_options(card, plugin, instance, arena);
    if (status || !card->model.efla[layer]) return status;
    const struct chm_option *o = chm_option_find(plugin->options, plugin->option_count, "efla");
    return o ? chm_option_parse(o, "true", instance, arena) : CHM_OK;
}

char *chm_card_json(const chm_card *card) {
    chm_string text = {0};
    chm_value_write(card->root, 0, &text);
    chm_string_add(&text, "\n");
    if (text.failed) {
        chm_string_finish(&text);
        chm_fail(CHM_E_MEMORY, "%s: out of memory while writing the card", card->name);
        return NULL;
    }
    return text.text;
}

/* ---- every value with its origin ---- */

static int each_value(const chm_value *v, chm_card_visit visit, void *user) {
    bool inside = v->type == CHM_VALUE_OBJECT ||
                  (v->row && (v->row->shape == CHM_SHAPE_ITEMS || v->row->shape == CHM_SHAPE_PHASES));
    int status = CHM_OK;
    if (inside) {
        for (const chm_value *child = v->first; child && status == CHM_OK; child = child->next)
            status = each_value(child, visit, user);
        return status;
    }
    chm_string path = {0};
    chm_value_path(v, &path);
    status = path.failed ? CHM_E_MEMORY : visit(user, path.text, v->shown, v->shown_origin);
    chm_string_finish(&path);
    return status;
}

int chm_card_each(const chm_card *card, chm_card_visit visit, void *user) {
    return each_value(card->root, visit, user);
}

struct listing {
    int key, value; /* widths in characters */
    chm_string *out;
};

/* printf pads by bytes, and names may hold more than ASCII */
static int characters(const char *text) {
    int n = 0;
    for (; *text; text++) n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static int measure(void *user, const char *key, const char *value, const char *origin) {
    struct listing *l = user;
    (void)origin;
    l->key = CHM_MAX(l->key, CHM_MIN(characters(key), 52));
    l->value = CHM_MAX(l->value, CHM_MIN(characters(value), 28));
    return CHM_OK;
}

static int list_value(void *user, const char *key, const char *value, const char *origin) {
    struct listing *l = user;
    chm_string_add(l->out, "%s%*s = %s%*s  %s\n", key, CHM_MAX(l->key - characters(key), 0), "", value,
                   CHM_MAX(l->value - characters(value), 0), "", origin);
    return l->out->failed ? CHM_E_MEMORY : CHM_OK;
}

int chm_card_resolved(const chm_card *card, chm_string *out) {
    struct listing l = {.out = out};
    int status = chm_card_each(card, measure, &l);
    if (status == CHM_OK) status = chm_card_each(card, list_value, &l);
    return status ? chm_fail(status, "%s: out of memory while listing the card", card->name) : CHM_OK;
}
