/* study.c: a study file: its sections and keys, each refused with its place, and written again. */
#include "train/ablate/ablate.h"
#include "config/ini.h"
#include "config/value.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 1 << 20, MOST_FILES = 1000, MOST_TASKS = 16, NAME = 32 };

static const char *const study_keys[] = {
    "title", "card",     "data", "validation", "held_out",           "seeds", "tokens", "seconds", "flops",
    "match", "baseline", "jobs", "threads",    "checkpoint_seconds", NULL};
static const char *const task_keys[] = {"task",    "documents", "least",    "most", "seed",
                                        "rebound", "queries",   "alphabet", NULL};
static const char *const kinds[] = {"study", "card", "variant", "grid", "task", "score", NULL};

/* What `chimera data` has, with its defaults. */
static const struct {
    const char *name;
    chm_task task;
    int64_t least, most;
} tasks[] = {
    {"mqar", CHM_TASK_MQAR, 16, 32}, {"parity", CHM_TASK_PARITY, 1, 40}, {"majority", CHM_TASK_MAJORITY, 1, 64}};
static const char *const task_names[] = {"mqar", "parity", "majority", NULL};

/* One line of the file, or a word of the caller. */
typedef struct entry {
    const char *section, *key, *value, *place; /* key NULL: the section begins */
} entry;

typedef struct reading {
    chm_study *study;
    entry *entry;
    size_t count, capacity;
    int status;
} reading;

static char *keep(chm_study *s, const char *text) { return chm_arena_string(&s->arena, text, strlen(text)); }

static char *keep_format(chm_study *s, const char *format, ...) CHM_PRINTF(2, 3);
static char *keep_format(chm_study *s, const char *format, ...) {
    char text[PATH_MAX + 64];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return chm_arena_string(&s->arena, text, n < 0 ? 0 : CHM_MIN((size_t)n, sizeof text - 1));
}

/* ---- reading ---- */

/* "variant  a " is "variant a". */
static void squeeze(char *section) {
    char *to = section;
    for (const char *from = section; *from; from++) {
        const bool blank = *from == ' ' || *from == '\t';
        if (!blank) *to++ = *from;
        if (blank && to > section && to[-1] != ' ') *to++ = ' ';
    }
    if (to > section && to[-1] == ' ') to--;
    *to = '\0';
}

static int add_entry(reading *r, const char *section, const char *key, const char *value, const char *place) {
    if (r->count == r->capacity) {
        const size_t capacity = r->capacity ? 2 * r->capacity : 64;
        entry *more = chm_realloc(r->entry, capacity * sizeof *more);
        if (more == NULL) return CHM_E_MEMORY;
        r->entry = more;
        r->capacity = capacity;
    }
    entry *e = &r->entry[r->count++];
    char *name = keep(r->study, section);
    if (name != NULL) squeeze(name);
    *e = (entry){name, key ? keep(r->study, key) : NULL, value ? keep(r->study, value) : NULL, keep(r->study, place)};
    return e->section && e->place && (!key || (e->key && e->value)) ? CHM_OK : CHM_E_MEMORY;
}

static int on_entry(void *user, const char *section, const char *key, const char *value, int line) {
    reading *r = user;
    char place[PATH_MAX + 32];
    snprintf(place, sizeof place, "%s:%d", r->study->file, line);
    if (value != NULL && value[0] == ';')
        return chm_fail(CHM_E_CONFIG, "%s: %s: the value begins with ';'; a comment has a blank before it", place, key);
    return add_entry(r, section, key, value, place);
}

static int unknown_key(const entry *e, const char *const *keys) {
    const char *near = chm_nearest(e->key, keys);
    chm_string all = {0};
    for (int i = 0; keys[i]; i++) chm_string_add(&all, "%s%s", i ? ", " : "", keys[i]);
    const int status = near ? chm_fail(CHM_E_CONFIG, "%s: no key '%s' in [%s] (did you mean '%s'?)", e->place, e->key,
                                       e->section, near)
                            : chm_fail(CHM_E_CONFIG, "%s: no key '%s' in [%s], which has %s", e->place, e->key,
                                       e->section, all.text ? all.text : "others");
    chm_string_finish(&all);
    return status;
}

static bool among(const char *name, const char *const *list) {
    for (; *list; list++)
        if (strcmp(name, *list) == 0) return true;
    return false;
}

/* A positive number; K, M, B, T or an exponent may follow. */
static int read_amount(const entry *e, double least, double most, bool whole, double *out) {
    char *end = NULL;
    errno = 0;
    double x = isdigit((unsigned char)e->value[0]) || e->value[0] == '.' ? strtod(e->value, &end) : NAN;
    static const char suffix[] = "KMBT";
    const char *s = end && *end ? strchr(suffix, toupper((unsigned char)*end)) : NULL;
    if (s != NULL && *s) {
        for (const char *c = suffix; c <= s; c++) x *= 1e3;
        end++;
    }
    if (end == NULL || *end || e->value[strspn(e->value, "0123456789.eE+-KMBTkmbt")] || !(x >= least) || x > most ||
        (whole && x != floor(x)))
        return chm_fail(CHM_E_CONFIG, "%s: %s = %s: expected a %snumber, %.15g..%.15g%s", e->place, e->key, e->value,
                        whole ? "whole " : "", least, most, whole ? " (K, M, B or T may follow)" : "");
    *out = x;
    return CHM_OK;
}

static int read_integer(const entry *e, int64_t least, int64_t most, int64_t *out) {
    double x = 0;
    const int status = read_amount(e, (double)least, (double)most, true, &x);
    if (status == CHM_OK) *out = (int64_t)x;
    return status;
}

static int read_seeds(chm_study *s, const entry *e) {
    const char *c = e->value;
    s->seeds = 0;
    s->seed = chm_arena_take(&s->arena, CHM_STUDY_SEEDS * sizeof *s->seed);
    if (s->seed == NULL) return CHM_E_MEMORY;
    for (;;) {
        char *end;
        c += strspn(c, " \t");
        errno = 0;
        const unsigned long long x = strtoull(c, &end, 10);
        /* what a card's seed may be */
        if (!isdigit((unsigned char)*c) || errno || x > 9007199254740991ULL)
            return chm_fail(CHM_E_CONFIG, "%s: seeds = %s: expected whole numbers with commas between, as 1, 2, 3",
                            e->place, e->value);
        if (s->seeds == CHM_STUDY_SEEDS)
            return chm_fail(CHM_E_CONFIG, "%s: more than %d seeds", e->place, CHM_STUDY_SEEDS);
        for (int i = 0; i < s->seeds; i++)
            if (s->seed[i] == x)
                return chm_fail(CHM_E_CONFIG, "%s: the seed %llu stands there twice; runs of one seed are the same run",
                                e->place, x);
        s->seed[s->seeds++] = x;
        c = end + strspn(end, " \t");
        if (*c == '\0') return CHM_OK;
        if (*c != ',')
            return chm_fail(CHM_E_CONFIG, "%s: seeds = %s: expected whole numbers with commas between, as 1, 2, 3",
                            e->place, e->value);
        c++;
    }
}

/* A path of the file begins in its folder; one of the caller where he is. */
static const char *resolve(chm_study *s, const entry *e) {
    const bool here = e->value[0] == '/' || strncmp(e->place, "--", 2) == 0;
    char *path = here ? keep(s, e->value) : keep_format(s, "%s/%s", s->folder, e->value);
    char real[PATH_MAX];
    return path != NULL && realpath(path, real) != NULL ? keep(s, real) : path;
}

static int add_path(chm_study *s, const entry *e, const char ***list, const char ***place, int *count) {
    if (e->value[0] == '\0') return chm_fail(CHM_E_CONFIG, "%s: %s names no file", e->place, e->key);
    if (*list == NULL) {
        *list = chm_arena_take(&s->arena, MOST_FILES * sizeof **list);
        *place = chm_arena_take(&s->arena, MOST_FILES * sizeof **place);
    }
    if (*list == NULL || *place == NULL) return CHM_E_MEMORY;
    if (*count == MOST_FILES) return chm_fail(CHM_E_CONFIG, "%s: more than %d files", e->place, MOST_FILES);
    (*place)[*count] = e->place;
    if (((*list)[(*count)++] = resolve(s, e)) == NULL) return CHM_E_MEMORY;
    return CHM_OK;
}

/* The last line that set a key, and whether another of the file did before. */
static int once(const reading *r, const entry *e) {
    for (const entry *x = r->entry; x < e; x++)
        if (x->key && strcmp(x->section, e->section) == 0 && strcmp(x->key, e->key) == 0 &&
            strncmp(e->place, "--", 2) != 0)
            return chm_fail(CHM_E_CONFIG, "%s: %s was already set in [%s] (%s)", e->place, e->key, e->section,
                            x->place);
    return CHM_OK;
}

static int read_study_key(reading *r, const entry *e) {
    chm_study *s = r->study;
    int64_t n = 0;
    int status = CHM_OK;
    if (!among(e->key, study_keys)) return unknown_key(e, study_keys);
    if (strcmp(e->key, "data") == 0) return add_path(s, e, &s->data, &s->data_place, &s->data_count);
    if (strcmp(e->key, "validation") == 0)
        return add_path(s, e, &s->validation, &s->validation_place, &s->validation_count);
    if ((status = once(r, e)) != CHM_OK) return status;
    if (strcmp(e->key, "title") == 0) {
        s->title = e->value;
    } else if (strcmp(e->key, "card") == 0) {
        const size_t length = strlen(e->value);
        const bool path = strchr(e->value, '/') || (length > 5 && strcmp(e->value + length - 5, ".json") == 0);
        s->card = path ? resolve(s, e) : e->value;
        s->card_place = e->place;
        if (s->card == NULL) return CHM_E_MEMORY;
    } else if (strcmp(e->key, "seeds") == 0) {
        status = read_seeds(s, e);
    } else if (strcmp(e->key, "held_out") == 0) {
        status = read_amount(e, 0.001, 0.9, false, &s->held_out);
    } else if (strcmp(e->key, "tokens") == 0 || strcmp(e->key, "seconds") == 0 || strcmp(e->key, "flops") == 0) {
        double x = 0;
        const bool seconds = e->key[0] == 's';
        if (strncmp(e->place, "--", 2) == 0) s->tokens = s->seconds = s->flops = 0; /* in place of the file's */
        if ((status = read_amount(e, seconds ? 0.001 : 1,
                                  seconds            ? 1e8
                                  : e->key[0] == 'f' ? 1e30
                                                     : CHM_TRAIN_TOKENS_MAX,
                                  e->key[0] == 't', &x)) != CHM_OK)
            return status;
        if (s->tokens > 0 || s->seconds > 0 || s->flops > 0)
            return chm_fail(CHM_E_CONFIG, "%s: %s is a second budget beside %s; keep one of them", e->place, e->key,
                            s->tokens > 0    ? "tokens"
                            : s->seconds > 0 ? "seconds"
                                             : "flops");
        *(seconds ? &s->seconds : e->key[0] == 't' ? &s->tokens : &s->flops) = x;
    } else if (strcmp(e->key, "match") == 0) {
        if (strcmp(e->value, "parameters") != 0 && strcmp(e->value, "none") != 0)
            return chm_fail(CHM_E_CONFIG, "%s: match = %s: expected parameters or none", e->place, e->value);
        s->match = e->value[0] == 'p';
    } else if (strcmp(e->key, "baseline") == 0) {
        s->baseline = e->value;
        s->baseline_place = e->place;
    } else if (strcmp(e->key, "jobs") == 0) {
        if ((status = read_integer(e, 1, 256, &n)) == CHM_OK) s->jobs = (int)n;
    } else if (strcmp(e->key, "threads") == 0) {
        if ((status = read_integer(e, 1, 256, &n)) == CHM_OK) s->threads = (int)n;
    } else {
        status = read_amount(e, 0.001, 1e8, false, &s->checkpoint_seconds);
    }
    return status;
}

/* ---- sections with keys of the card ---- */

static int add_setting(chm_study *s, const reading *r, const entry *e, chm_setting **list, int *count) {
    const int status = once(r, e);
    if (status != CHM_OK) return status;
    const size_t n = strlen(e->key);
    if (n >= 5 && strcmp(e->key + n - 5, ".seed") == 0 && strncmp(e->key, "training", 8) == 0)
        return chm_fail(CHM_E_CONFIG, "%s: the seed is the study's: seeds = ... in [study]", e->place);
    if (e->value[0] == '\0') return chm_fail(CHM_E_CONFIG, "%s: %s has no value", e->place, e->key);
    chm_setting *more = chm_arena_take(&s->arena, ((size_t)*count + 1) * sizeof *more);
    if (more == NULL) return CHM_E_MEMORY;
    if (*count > 0) memcpy(more, *list, (size_t)*count * sizeof *more);
    more[(*count)++] = (chm_setting){e->key, e->value, e->place};
    *list = more;
    return CHM_OK;
}

/* Values with commas between; those inside brackets belong to a value. */
static int read_axis(chm_study *s, const reading *r, const entry *e) {
    int depth = 0, status = once(r, e);
    if (status != CHM_OK) return status;
    if (s->axes == CHM_STUDY_AXES)
        return chm_fail(CHM_E_CONFIG, "%s: more than %d keys in [grid]", e->place, CHM_STUDY_AXES);
    if (s->axis == NULL && (s->axis = chm_arena_zero(&s->arena, CHM_STUDY_AXES * sizeof *s->axis)) == NULL)
        return CHM_E_MEMORY;
    chm_axis *a = &s->axis[s->axes++];
    a->key = e->key;
    a->place = e->place;
    for (const char *c = e->value, *begin = c;; c++) {
        if (*c == '[') depth++;
        if (*c == ']') depth--;
        if (*c && !(*c == ',' && depth <= 0)) continue;
        const char *end = c;
        while (begin < end && *begin == ' ') begin++;
        while (begin < end && end[-1] == ' ') end--;
        if (begin == end || *begin == ';')
            return chm_fail(CHM_E_CONFIG, "%s: %s: a value is missing; expected values with commas between", e->place,
                            e->key);
        if (a->values == CHM_STUDY_VALUES)
            return chm_fail(CHM_E_CONFIG, "%s: %s: more than %d values", e->place, e->key, CHM_STUDY_VALUES);
        const char *value = chm_arena_string(&s->arena, begin, (size_t)(end - begin));
        if (value == NULL) return CHM_E_MEMORY;
        for (int i = 0; i < a->values; i++)
            if (strcmp(a->value[i], value) == 0)
                return chm_fail(CHM_E_CONFIG, "%s: %s: the value %s stands there twice", e->place, e->key, value);
        a->value[a->values++] = value;
        if (*c == '\0') return CHM_OK;
        begin = c + 1;
    }
}

static int read_task_key(const reading *r, const entry *e, chm_study_task *t) {
    int64_t n = 0;
    int status;
    if (!among(e->key, task_keys)) return unknown_key(e, task_keys);
    if ((status = once(r, e)) != CHM_OK) return status;
    chm_task_options *o = &t->options;
    if (strcmp(e->key, "task") == 0) {
        for (size_t i = 0; i < CHM_ARRAY_COUNT(tasks); i++) {
            if (strcmp(e->value, tasks[i].name) != 0) continue;
            t->task = tasks[i].name;
            o->task = tasks[i].task;
            return CHM_OK;
        }
        const char *near = chm_nearest(e->value, task_names);
        return chm_fail(CHM_E_CONFIG, "%s: no task '%s'%s%s%s; chimera data lists them", e->place, e->value,
                        near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    if (strcmp(e->key, "rebound") == 0) return read_amount(e, 0, 1, false, &o->rebound);
    const bool seed = strcmp(e->key, "seed") == 0, documents = e->key[0] == 'd';
    status = read_integer(e, seed ? 0 : 1,
                          seed        ? INT64_C(9007199254740991)
                          : documents ? CHM_TASK_DOCUMENTS_MAX
                                      : CHM_TASK_LENGTH_MAX,
                          &n);
    if (status != CHM_OK) return status;
    if (seed) o->seed = (uint64_t)n;
    if (documents) o->documents = n;
    if (strcmp(e->key, "least") == 0) o->least = n;
    if (strcmp(e->key, "most") == 0) o->most = n;
    if (strcmp(e->key, "queries") == 0) o->queries = n;
    if (strcmp(e->key, "alphabet") == 0) o->alphabet = n;
    return CHM_OK;
}

/* ---- sections ---- */

/* "variant", and *name behind it, "" where there is none. */
static const char *kind_of(const char *section, const char **name) {
    const size_t n = strcspn(section, " ");
    *name = section + n + (section[n] == ' ');
    for (int i = 0; kinds[i]; i++)
        if (strlen(kinds[i]) == n && strncmp(kinds[i], section, n) == 0) return kinds[i];
    return NULL;
}

static int check_section(const reading *r, const entry *e, const char *kind, const char *name) {
    if (kind == NULL) {
        char word[64];
        snprintf(word, sizeof word, "%.*s", (int)strcspn(e->section, " "), e->section);
        const char *near = chm_nearest(word, kinds);
        return chm_fail(CHM_E_CONFIG,
                        "%s: no section [%s] in a study%s%s%s; it has [study], [card], [variant NAME], [grid], [task], "
                        "[score NAME]",
                        e->place, e->section, near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    for (const entry *x = r->entry; x < e; x++)
        if (x->key == NULL && strcmp(x->section, e->section) == 0)
            return chm_fail(CHM_E_CONFIG, "%s: [%s] was there already (%s); give one of them another name", e->place,
                            e->section, x->place);
    const bool named = strcmp(kind, "variant") == 0 || strcmp(kind, "score") == 0;
    if (named && name[0] == '\0')
        return chm_fail(CHM_E_CONFIG, "%s: [%s] needs a name: [%s NAME]", e->place, kind, kind);
    if (!named && strcmp(kind, "task") != 0 && name[0])
        return chm_fail(CHM_E_CONFIG, "%s: [%s] takes no name", e->place, kind);
    if (strlen(name) > NAME ||
        name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")] ||
        (name[0] && !isalnum((unsigned char)name[0])))
        return chm_fail(CHM_E_CONFIG,
                        "%s: the name '%s': expected at most %d of A-Z a-z 0-9 _ . + -, a letter or digit first; it "
                        "becomes the name of a folder",
                        e->place, name, NAME);
    return CHM_OK;
}

static int begin_variant(chm_study *s, const entry *e, const char *name) {
    if (s->variant == NULL && (s->variant = chm_arena_zero(&s->arena, CHM_STUDY_VARIANTS * sizeof *s->variant)) == NULL)
        return CHM_E_MEMORY;
    if (s->variants == CHM_STUDY_VARIANTS)
        return chm_fail(CHM_E_CONFIG, "%s: more than %d variants", e->place, CHM_STUDY_VARIANTS);
    s->variant[s->variants++] = (chm_variant){.name = name, .place = e->place};
    return CHM_OK;
}

/* The tasks' own defaults come once it is known which task it is. */
static int begin_task(chm_study *s, const entry *e, const char *name, chm_study_task **list, int *count) {
    if (*list == NULL && (*list = chm_arena_zero(&s->arena, MOST_TASKS * sizeof **list)) == NULL) return CHM_E_MEMORY;
    if (*count == MOST_TASKS) return chm_fail(CHM_E_CONFIG, "%s: more than %d such sections", e->place, MOST_TASKS);
    (*list)[(*count)++] = (chm_study_task){
        .name = name,
        .place = e->place,
        .options = {.size = sizeof(chm_task_options), .rebound = -1, .seed = UINT64_MAX},
    };
    return CHM_OK;
}

static int read_entries(reading *r) {
    chm_study *s = r->study;
    for (size_t i = 0; i < r->count; i++) {
        const entry *e = &r->entry[i];
        const char *name;
        if (e->section[0] == '\0')
            return chm_fail(CHM_E_CONFIG, "%s: '%s' stands before the first section; put it under [study]", e->place,
                            e->key);
        const char *kind = kind_of(e->section, &name);
        int status = e->key == NULL ? check_section(r, e, kind, name) : CHM_OK;
        if (status != CHM_OK) return status;
        const bool variant = strcmp(kind, "variant") == 0, task = strcmp(kind, "task") == 0;
        if (e->key == NULL) {
            if (variant) status = begin_variant(s, e, name);
            if (task) status = begin_task(s, e, name, &s->task, &s->tasks);
            if (strcmp(kind, "score") == 0) status = begin_task(s, e, name, &s->score, &s->scores);
        } else if (strcmp(kind, "study") == 0) {
            status = read_study_key(r, e);
        } else if (strcmp(kind, "card") == 0) {
            status = add_setting(s, r, e, &s->base, &s->bases);
        } else if (strcmp(kind, "grid") == 0) {
            status = read_axis(s, r, e);
        } else if (variant) {
            chm_variant *v = &s->variant[s->variants - 1];
            if (strcmp(e->key, "unchanged") == 0) {
                if (strcmp(e->value, "true") != 0)
                    return chm_fail(CHM_E_CONFIG, "%s: unchanged = %s: expected true, or no such line", e->place,
                                    e->value);
                v->unchanged = true;
            } else {
                status = add_setting(s, r, e, &v->setting, &v->settings);
            }
        } else {
            status = read_task_key(r, e, task ? &s->task[s->tasks - 1] : &s->score[s->scores - 1]);
        }
        if (status != CHM_OK) return status;
    }
    return CHM_OK;
}

/* ---- what only the whole can say ---- */

static int complete_task(const chm_study *s, chm_study_task *t, bool score, int index) {
    chm_task_options *o = &t->options;
    if (t->task == NULL && score && s->tasks > 0) {
        /* a score is like the first task but for what it says itself */
        const chm_task_options *first = &s->task[0].options;
        t->task = s->task[0].task;
        o->task = first->task;
        if (o->least == 0 && (o->most == 0 || o->most >= first->least)) o->least = first->least;
        if (o->most == 0) o->most = CHM_MAX(first->most, o->least);
        if (o->rebound < 0) o->rebound = first->rebound;
        if (o->queries == 0) o->queries = first->queries;
        if (o->alphabet == 0) o->alphabet = first->alphabet;
    }
    if (t->task == NULL) return chm_fail(CHM_E_CONFIG, "%s: no task: say task = mqar, parity or majority", t->place);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(tasks); i++) {
        if (tasks[i].task != o->task) continue;
        if (o->least == 0) o->least = o->most > 0 ? CHM_MIN(tasks[i].least, o->most) : tasks[i].least;
        if (o->most == 0) o->most = CHM_MAX(tasks[i].most, o->least);
    }
    if (o->rebound < 0) o->rebound = 0.5;
    if (o->queries == 0) o->queries = 4;
    if (o->alphabet == 0) o->alphabet = CHM_TASK_ALPHABET;
    if (o->documents == 0) o->documents = score ? 1000 : 100000;
    /* no file has the documents of another, unless it is asked for */
    if (o->seed == UINT64_MAX) o->seed = (uint64_t)(score ? 1001 + index : 1 + index);
    return CHM_OK;
}

static int check_whole(chm_study *s) {
    int status;
    if (s->card == NULL)
        return chm_fail(CHM_E_CONFIG, "%s: [study] has no card: say card = chimera-nano, or the path of one", s->file);
    if (s->seeds == 0) return chm_fail(CHM_E_CONFIG, "%s: [study] has no seeds: say seeds = 1, 2, 3", s->file);
    if (s->tokens == 0 && s->seconds == 0 && s->flops == 0)
        return chm_fail(CHM_E_CONFIG, "%s: [study] has no budget: say tokens, seconds or flops of one cell", s->file);
    if (s->variants < 2 && s->axes == 0)
        return chm_fail(CHM_E_CONFIG, "%s: %s: a study compares two [variant NAME] at least, or the points of a [grid]",
                        s->file, s->variants == 0 ? "no variant" : "one variant");
    if (s->variants == 0) {
        /* a grid alone */
        s->variant = chm_arena_zero(&s->arena, sizeof *s->variant);
        if (s->variant == NULL) return CHM_E_MEMORY;
        s->variant[s->variants++] = (chm_variant){.name = "card", .place = s->file, .unchanged = true};
    }
    for (int i = 0; i < s->variants; i++) {
        const chm_variant *v = &s->variant[i];
        if (v->settings == 0 && !v->unchanged)
            return chm_fail(CHM_E_CONFIG,
                            "%s: [variant %s] is empty; give it a key of the card, or unchanged = true for the card as "
                            "it is",
                            v->place, v->name);
        if (v->settings > 0 && v->unchanged)
            return chm_fail(CHM_E_CONFIG, "%s: [variant %s] says unchanged = true and changes %s", v->place, v->name,
                            v->setting[0].key);
        for (int k = 0; k < v->settings; k++) {
            for (int a = 0; a < s->axes; a++)
                if (strcmp(v->setting[k].key, s->axis[a].key) == 0)
                    return chm_fail(CHM_E_CONFIG, "%s: %s is a key of [grid] (%s); a key is varied in one place",
                                    v->setting[k].place, v->setting[k].key, s->axis[a].place);
            if (s->match && strcmp(v->setting[k].key, "intermediate_size") == 0)
                return chm_fail(CHM_E_CONFIG,
                                "%s: match = parameters solves for intermediate_size; leave it out of the variant",
                                v->setting[k].place);
        }
    }
    if (s->baseline == NULL) {
        s->baseline = s->variant[0].name;
        s->baseline_place = s->file;
    }
    s->baseline_index = -1;
    for (int i = 0; i < s->variants; i++)
        if (strcmp(s->variant[i].name, s->baseline) == 0) s->baseline_index = i;
    if (s->baseline_index < 0) {
        const char *names[CHM_STUDY_VARIANTS + 1] = {NULL};
        for (int i = 0; i < s->variants; i++) names[i] = s->variant[i].name;
        const char *near = chm_nearest(s->baseline, names);
        return chm_fail(CHM_E_CONFIG, "%s: baseline = %s: there is no such [variant %s]%s%s%s", s->baseline_place,
                        s->baseline, s->baseline, near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    if ((int64_t)s->variants * chm_study_points(s) * s->seeds > CHM_CELLS)
        return chm_fail(CHM_E_CONFIG, "%s: %d variants, %d points of the grid and %d seeds are more than %d cells",
                        s->file, s->variants, chm_study_points(s), s->seeds, CHM_CELLS);
    if (s->tasks > 0 && (s->data_count > 0 || s->validation_count > 0 || s->held_out > 0))
        return chm_fail(CHM_E_CONFIG, "%s: [task] makes the text, and [study] names %s; keep one of them",
                        s->task[0].place,
                        s->data_count > 0 ? "data"
                        : s->held_out > 0 ? "held_out"
                                          : "validation");
    if (s->scores > 0 && s->tasks == 0)
        return chm_fail(CHM_E_CONFIG, "%s: [score %s] goes with a [task]; for text say validation = FILE in [study]",
                        s->score[0].place, s->score[0].name);
    if (s->tasks == 0) {
        if (s->data_count == 0)
            return chm_fail(CHM_E_CONFIG,
                            "%s: no text to learn from: say data = FILE in [study], --data FILE, or a [task]", s->file);
        if (s->validation_count > 0 && s->held_out > 0)
            return chm_fail(CHM_E_CONFIG, "%s: validation and held_out both say what is held out; keep one of them",
                            s->file);
        if (s->validation_count == 0 && s->held_out == 0)
            return chm_fail(CHM_E_CONFIG,
                            "%s: nothing is held out: say validation = FILE, or held_out = 0.1 for a tenth of the data",
                            s->file);
    } else if (s->scores == 0) {
        const entry like = {.place = s->task[0].place};
        if ((status = begin_task(s, &like, "held-out", &s->score, &s->scores)) != CHM_OK) return status;
    }
    for (int i = 0; i < s->tasks; i++)
        if ((status = complete_task(s, &s->task[i], false, i)) != CHM_OK) return status;
    for (int i = 0; i < s->scores; i++)
        if ((status = complete_task(s, &s->score[i], true, i)) != CHM_OK) return status;
    return CHM_OK;
}

/* ---- all of it ---- */

/* Words of the caller stand behind those of the file. */
static int add_words(reading *r, const chm_ablate_options *o) {
    int status = CHM_OK;
    const struct {
        const char *const *file;
        uint32_t count;
        const char *key, *place;
    } files[] = {{o->data, o->data_count, "data", "--data"},
                 {o->validation, o->validation_count, "validation", "--validation"}};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(files); k++) {
        if (files[k].count == 0) continue;
        for (size_t i = 0; i < r->count; i++)
            if (r->entry[i].key && strcmp(r->entry[i].section, "study") == 0 &&
                (strcmp(r->entry[i].key, files[k].key) == 0 || (k == 1 && strcmp(r->entry[i].key, "held_out") == 0)))
                memmove(&r->entry[i], &r->entry[i + 1], (--r->count - i) * sizeof *r->entry), i--;
        for (uint32_t i = 0; i < files[k].count && status == CHM_OK; i++)
            status = add_entry(r, "study", files[k].key, files[k].file[i], files[k].place);
    }
    for (uint32_t i = 0; i < o->set_count && status == CHM_OK; i++) {
        const char *equals = strchr(o->set[i], '=');
        if (equals == NULL || equals == o->set[i])
            return chm_fail(CHM_E_CONFIG, "--set: '%s' is not KEY=VALUE of [study]", o->set[i]);
        char *key = chm_format("%.*s", (int)(equals - o->set[i]), o->set[i]);
        status = key ? add_entry(r, "study", key, equals + 1, "--set") : CHM_E_MEMORY;
        chm_free(key);
    }
    return status;
}

int chm_study_read(chm_study *s, const chm_ablate_options *o, const char *file) {
    char *text = NULL;
    size_t bytes = 0;
    reading r = {.study = s};
    memset(s, 0, sizeof *s);
    chm_arena_init(&s->arena);
    const char *slash = strrchr(file, '/');
    s->file = keep(s, file);
    s->folder = slash == file ? "/" : slash ? chm_arena_string(&s->arena, file, (size_t)(slash - file)) : ".";
    if (s->file == NULL || s->folder == NULL) return CHM_E_MEMORY;
    int status = chm_read_file(file, MOST_BYTES, &text, &bytes);
    if (status == CHM_OK) status = chm_ini_parse_sections(file, text ? text : "", bytes, on_entry, &r);
    if (status == CHM_OK) status = add_words(&r, o);
    if (status == CHM_OK) status = read_entries(&r);
    if (status == CHM_OK) status = check_whole(s);
    chm_free(r.entry);
    chm_free(text);
    return status;
}

void chm_study_finish(chm_study *s) { chm_arena_finish(&s->arena); }

int chm_study_points(const chm_study *s) {
    int64_t n = 1;
    for (int a = 0; a < s->axes; a++) n = CHM_MIN(n * s->axis[a].values, CHM_CELLS + 1);
    return (int)n;
}

/* The last axis turns fastest. */
const char *chm_study_value(const chm_study *s, int point, int axis) {
    for (int a = s->axes - 1; a > axis; a--) point /= s->axis[a].values;
    return s->axis[axis].value[point % s->axis[axis].values];
}

/* ---- writing ---- */

static void write_task(chm_string *t, const char *kind, const chm_study_task *x) {
    const chm_task_options *o = &x->options;
    chm_string_add(t, "\n[%s%s%s]\ntask = %s\ndocuments = %lld\nleast = %lld\nmost = %lld\nseed = %llu\n", kind,
                   x->name[0] ? " " : "", x->name, x->task, (long long)o->documents, (long long)o->least,
                   (long long)o->most, (unsigned long long)o->seed);
    if (o->task == CHM_TASK_MQAR)
        chm_string_add(t, "rebound = %.17g\nqueries = %lld\nalphabet = %lld\n", o->rebound, (long long)o->queries,
                       (long long)o->alphabet);
}

int chm_study_write(const chm_study *s, const char *path) {
    chm_string t = {0};
    chm_string_add(&t, "; %s, as it was resolved\n[study]\n", s->file);
    if (s->title) chm_string_add(&t, "title = %s\n", s->title);
    chm_string_add(&t, "card = %s\n", s->card);
    for (int i = 0; i < s->data_count; i++) chm_string_add(&t, "data = %s\n", s->data[i]);
    for (int i = 0; i < s->validation_count; i++) chm_string_add(&t, "validation = %s\n", s->validation[i]);
    if (s->held_out > 0) chm_string_add(&t, "held_out = %.17g\n", s->held_out);
    chm_string_add(&t, "seeds =");
    for (int i = 0; i < s->seeds; i++) chm_string_add(&t, "%s %llu", i ? "," : "", (unsigned long long)s->seed[i]);
    if (s->tokens > 0) chm_string_add(&t, "\ntokens = %.17g\n", s->tokens);
    if (s->seconds > 0) chm_string_add(&t, "\nseconds = %.17g\n", s->seconds);
    if (s->flops > 0) chm_string_add(&t, "\nflops = %.17g\n", s->flops);
    if (s->match) chm_string_add(&t, "match = parameters\n");
    chm_string_add(&t, "baseline = %s\n", s->baseline);
    if (s->jobs > 0) chm_string_add(&t, "jobs = %d\n", s->jobs);
    if (s->threads > 0) chm_string_add(&t, "threads = %d\n", s->threads);
    if (s->checkpoint_seconds > 0) chm_string_add(&t, "checkpoint_seconds = %.17g\n", s->checkpoint_seconds);
    if (s->bases > 0) chm_string_add(&t, "\n[card]\n");
    for (int i = 0; i < s->bases; i++) chm_string_add(&t, "%s = %s\n", s->base[i].key, s->base[i].value);
    for (int i = 0; i < s->tasks; i++) write_task(&t, "task", &s->task[i]);
    for (int i = 0; i < s->scores; i++) write_task(&t, "score", &s->score[i]);
    for (int i = 0; i < s->variants; i++) {
        const chm_variant *v = &s->variant[i];
        chm_string_add(&t, "\n[variant %s]\n", v->name);
        if (v->unchanged) chm_string_add(&t, "unchanged = true\n");
        for (int k = 0; k < v->settings; k++) chm_string_add(&t, "%s = %s\n", v->setting[k].key, v->setting[k].value);
    }
    if (s->axes > 0) chm_string_add(&t, "\n[grid]\n");
    for (int a = 0; a < s->axes; a++) {
        chm_string_add(&t, "%s = ", s->axis[a].key);
        for (int i = 0; i < s->axis[a].values; i++) chm_string_add(&t, "%s%s", i ? ", " : "", s->axis[a].value[i]);
        chm_string_add(&t, "\n");
    }
    const int status =
        t.failed ? chm_fail(CHM_E_MEMORY, "out of memory for %s", path) : chm_write_file(path, t.text, t.length);
    chm_string_finish(&t);
    return status;
}
