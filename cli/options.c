/* options.c: the command line against the command table. */
#include "cli.h"
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const struct cli_option cli_global_options[] = {
    {.name = "plugin-path",
     .type = CLI_TEXT,
     .value = "DIRS",
     .doc = "absolute directories with plugins, colon-separated, searched first (CHIMERA_PLUGIN_PATH)"},
    {.name = "backend",
     .type = CLI_TEXT,
     .value = "BACKEND",
     .doc = "run the kernels of this backend; what it lacks falls to scalar (CHIMERA_BACKEND)"},
    {.name = "require-backend", .type = CLI_FLAG, .doc = "refuse to run when the backend lacks an inference kernel"},
    {.name = "threads",
     .type = CLI_INT,
     .value = "N",
     .min = 1,
     .max = 256,
     .unit = "threads",
     .doc = "threads to use; the CPUs of this process otherwise (CHIMERA_THREADS)"},
    {.name = "cpu-mask",
     .type = CLI_TEXT,
     .value = "FEATURES",
     .doc = "CPU features to do without, with commas between, or all: plays an older machine (CHIMERA_CPU_MASK)"},
    {.name = "quiet", .letter = 'q', .type = CLI_FLAG, .doc = "errors only on standard error"},
    {.name = "verbose", .letter = 'v', .type = CLI_FLAG, .doc = "more on standard error"},
};
const size_t cli_global_count = CLI_COUNT_OF(cli_global_options);

/* ---- names ------------------------------------------------------------------------------------------------------- */

/* Edits (insert, delete, replace, swap neighbours) from a to b, case aside. */
static size_t edit_distance(const char *a, const char *b) {
    enum { LONGEST = 48 };
    size_t row[3][LONGEST + 1];
    const size_t n = strlen(a), m = strlen(b);
    if (n > LONGEST || m > LONGEST) return LONGEST;
    size_t *two = row[0], *one = row[1], *now = row[2];
    for (size_t j = 0; j <= m; j++) one[j] = two[j] = j;
    for (size_t i = 1; i <= n; i++) {
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            const int x = tolower((unsigned char)a[i - 1]), y = tolower((unsigned char)b[j - 1]);
            size_t d = one[j - 1] + (x != y);
            if (one[j] + 1 < d) d = one[j] + 1;
            if (now[j - 1] + 1 < d) d = now[j - 1] + 1;
            if (i > 1 && j > 1 && x == tolower((unsigned char)b[j - 2]) && y == tolower((unsigned char)a[i - 2]) &&
                two[j - 2] + 1 < d)
                d = two[j - 2] + 1;
            now[j] = d;
        }
        size_t *old = two;
        two = one;
        one = now;
        now = old;
    }
    return one[m];
}

const char *cli_nearest(const char *word, const char *(*at)(const void *list, size_t i), const void *list, size_t n) {
    const char *best = NULL;
    size_t best_distance = strlen(word) / 3 + 2; /* farther than this helps nobody */
    for (size_t i = 0; i < n; i++) {
        const char *name = at(list, i); /* NULL: not a word here */
        const size_t d = name ? edit_distance(word, name) : best_distance;
        if (d < best_distance) {
            best = name;
            best_distance = d;
        }
    }
    return best;
}

/* The i-th word that may stand behind `list`, a group; NULL: behind chimera itself. NULL for commands elsewhere. */
static const char *command_at(const void *list, size_t i) {
    const struct cli_command *k = cli_commands[i];
    if (list == NULL) return cli_is_top(k) ? k->name : NULL;
    return cli_verb_of(list, k);
}

static const char *option_at(const void *list, size_t i) {
    const struct cli_command *command = list;
    if (command && i < command->option_count) return command->options[i].name;
    i -= command ? command->option_count : 0;
    return i < cli_global_count ? cli_global_options[i].name : "help";
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static void shown_name(const struct cli_option *o, char *text, size_t n) {
    if (o->name[0] && o->name[1])
        snprintf(text, n, "--%s", o->name);
    else
        snprintf(text, n, "-%s", o->name);
}

static int wrong_number(const struct cli_option *o, const char *text, const char *kind) {
    char name[64], range[96] = "";
    shown_name(o, name, sizeof(name));
    if (o->min > -HUGE_VAL && o->max < HUGE_VAL && o->max > o->min)
        snprintf(range, sizeof(range), ", %.15g..%.15g", o->min, o->max);
    else if (o->min > -HUGE_VAL)
        snprintf(range, sizeof(range), ", %.15g or more", o->min);
    return cli_fail(CHM_E_CONFIG, "%s '%s': expected %s%s%s%s", name, text, kind, o->unit ? " of " : "",
                    o->unit ? o->unit : "", range);
}

static int parse_value(const struct cli_option *o, const char *text, struct cli_value *v) {
    char *end = NULL;
    v->text = text;
    errno = 0;
    switch (o->type) {
    case CLI_INT:
    case CLI_TOKENS: {
        const bool tokens = o->type == CLI_TOKENS;
        const char *kind = tokens ? "a whole number (K, M, B or T may follow)" : "a whole number";
        if (!isdigit((unsigned char)text[0]) && text[0] != '-') return wrong_number(o, text, kind);
        long long x = strtoll(text, &end, 10);
        if (errno || end == text) return wrong_number(o, text, kind);
        int decimals = 0; /* 1.5M is whole, as in a card */
        if (tokens && *end == '.' && text[0] != '-')
            for (end++; isdigit((unsigned char)*end); end++, decimals++)
                if (__builtin_mul_overflow(x, 10LL, &x) || __builtin_add_overflow(x, *end - '0', &x))
                    return wrong_number(o, text, kind);
        if (tokens && *end) {
            static const char suffix[] = "KMBT";
            const char *at = strchr(suffix, toupper((unsigned char)*end));
            if (at == NULL || end[-1] == '.') return wrong_number(o, text, kind);
            int zeros = 3 * (int)(at - suffix + 1);
            for (; decimals > 0 && x % 10 == 0; decimals--) x /= 10;
            for (; zeros > decimals; zeros--)
                if (__builtin_mul_overflow(x, 10LL, &x)) return wrong_number(o, text, kind);
            decimals -= zeros;
            end++;
        }
        if (decimals > 0 || end[-1] == '.') return wrong_number(o, text, kind);
        if (*end || (double)x < o->min || (o->max > o->min && (double)x > o->max)) return wrong_number(o, text, kind);
        v->integer = x;
        return CHM_OK;
    }
    case CLI_SEED:
        v->seed = strtoull(text, &end, 10);
        if (!isdigit((unsigned char)text[0]) || errno || *end)
            return cli_fail(CHM_E_CONFIG, "--%s '%s': expected a whole number, 0..18446744073709551615", o->name, text);
        return CHM_OK;
    case CLI_REAL:
        v->real = strtod(text, &end);
        /* decimal: strtod would also take 0x10, nan, and blanks */
        if (end == text || text[strspn(text, "+-.0123456789eE")] || *end || !isfinite(v->real) || v->real < o->min ||
            (o->max > o->min && v->real > o->max))
            return wrong_number(o, text, "a number");
        return CHM_OK;
    case CLI_CHOICE: {
        int64_t index = 0;
        for (const char *c = o->choices; *c; index++) {
            const size_t n = strcspn(c, "|");
            if (strlen(text) == n && strncmp(text, c, n) == 0) {
                v->integer = index;
                return CHM_OK;
            }
            c += n + (c[n] == '|');
        }
        char accepted[128];
        size_t used = 0;
        for (const char *c = o->choices; *c && used + 3 < sizeof(accepted); c++) {
            if (*c == '|') {
                accepted[used++] = ',';
                accepted[used++] = ' ';
            } else {
                accepted[used++] = *c;
            }
        }
        accepted[used] = '\0';
        char name[64];
        shown_name(o, name, sizeof(name));
        return cli_fail(CHM_E_CONFIG, "%s '%s': expected one of %s", name, text, accepted);
    }
    case CLI_TEXT:
        return CHM_OK;
    case CLI_FLAG:
    case CLI_REPEAT:
    case CLI_FILES:
        break;
    }
    const char **items = realloc(v->items, (v->count + 1) * sizeof(*items));
    if (items == NULL) return cli_fail(CHM_E_MEMORY, "out of memory while reading the command line");
    v->items = items;
    v->items[v->count++] = text;
    return CHM_OK;
}

/* ---- the line ---------------------------------------------------------------------------------------------------- */

struct found {
    const struct cli_option *option;
    struct cli_value *value;
    const char *attached; /* after '=' or right behind a letter; NULL: none */
};

static bool matches(const struct cli_option *o, const char *word, const char **attached) {
    *attached = NULL;
    if (word[0] != '-') return false;
    if (word[1] == '-') {
        const size_t n = strlen(o->name);
        if (n < 2 || strncmp(word + 2, o->name, n) != 0 || (word[2 + n] != '\0' && word[2 + n] != '=')) return false;
        if (word[2 + n] == '=') *attached = word + 3 + n;
        return true;
    }
    const char letter = o->letter ? o->letter : o->name[1] == '\0' ? o->name[0] : '\0';
    if (letter == '\0' || word[1] != letter) return false;
    if (word[2] != '\0' && o->type == CLI_FLAG) return false;
    if (word[2] != '\0') *attached = word + 2 + (word[2] == '=');
    return true;
}

static bool find_option(struct cli *c, const char *word, struct found *f) {
    if (c->command)
        for (size_t i = 0; i < c->command->option_count; i++)
            if (matches(&c->command->options[i], word, &f->attached)) {
                f->option = &c->command->options[i];
                f->value = &c->values[i];
                return true;
            }
    for (size_t i = 0; i < cli_global_count; i++)
        if (matches(&cli_global_options[i], word, &f->attached)) {
            f->option = &cli_global_options[i];
            f->value = &c->global[i];
            return true;
        }
    return false;
}

/* Another command behind the same word that has this option, or NULL. */
static const struct cli_command *owner_nearby(const struct cli_command *command, const char *word) {
    const char *attached;
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *k = cli_commands[i];
        if (cli_verb_of(command, k) == NULL && cli_verb_of(k, command) == NULL) continue;
        for (size_t j = 0; j < k->option_count; j++)
            if (matches(&k->options[j], word, &attached)) return k;
    }
    return NULL;
}

static int unknown_option(const struct cli *c, const char *word) {
    char name[64];
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(word, "="), word);
    const char *bare = name + strspn(name, "-");
    const size_t n = (c->command ? c->command->option_count : 0) + cli_global_count + 1;
    const char *near = cli_nearest(bare, option_at, c->command, n);
    char hint[96] = "";
    if (near) snprintf(hint, sizeof(hint), " (did you mean '%s%s'?)", near[1] ? "--" : "-", near);
    if (c->command == NULL)
        return cli_fail(CHM_E_CONFIG, "no option '%s'%s; chimera help lists the commands", name, hint);
    const struct cli_command *other = owner_nearby(c->command, word);
    if (other) snprintf(hint, sizeof(hint), " (chimera %s has it)", other->name);
    return cli_fail(CHM_E_CONFIG, "%s: no option '%s'%s; chimera %s -h lists them", c->command->name, name, hint,
                    c->command->name);
}

static size_t command_count(void) {
    size_t n = 0;
    while (cli_commands[n]) n++;
    return n;
}

const char *cli_verb_of(const struct cli_command *group, const struct cli_command *k) {
    const size_t n = strlen(group->name);
    return strncmp(k->name, group->name, n) == 0 && k->name[n] == ' ' ? k->name + n + 1 : NULL;
}

bool cli_is_top(const struct cli_command *k) { return strchr(k->name, ' ') == NULL; }

const struct cli_command *cli_find_command(const char *word, const char *verb) {
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *k = cli_commands[i];
        if (!cli_is_top(k) || strcmp(k->name, word) != 0) continue;
        if (verb == NULL) return k;
        for (size_t j = 0; cli_commands[j]; j++) {
            const char *last = cli_verb_of(k, cli_commands[j]);
            if (last && strcmp(last, verb) == 0) return cli_commands[j];
        }
    }
    return NULL;
}

static int no_command(const struct cli_command *group, const char *word) {
    const char *near = word ? cli_nearest(word, command_at, group, command_count()) : NULL;
    if (group == NULL)
        return cli_fail(CHM_E_CONFIG, "no command '%s'%s%s%s; chimera help lists them", word,
                        near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    char verbs[160] = "";
    for (size_t i = 0, used = 0; cli_commands[i] && used < sizeof(verbs); i++) {
        const char *verb = cli_verb_of(group, cli_commands[i]);
        if (verb) used += (size_t)snprintf(verbs + used, sizeof(verbs) - used, "%s%s", used ? ", " : "", verb);
    }
    if (word == NULL)
        return cli_fail(CHM_E_CONFIG, "%s: one of %s comes next; chimera %s -h explains them", group->name, verbs,
                        group->name);
    return cli_fail(CHM_E_CONFIG, "%s: no '%s'%s%s%s: expected one of %s", group->name, word,
                    near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "", verbs);
}

/* The command `argv[*at]` and, where there is one, its second word; *at moves behind them. */
static int take_command(struct cli *c, int argc, char **argv, int *at) {
    const char *word = argv[*at];
    c->command = cli_find_command(word, NULL);
    if (c->command == NULL) return no_command(NULL, word);
    const struct cli_command *behind = *at + 1 < argc ? cli_find_command(word, argv[*at + 1]) : NULL;
    if (behind) {
        c->command = behind;
        ++*at;
    }
    c->values = calloc(c->command->option_count + 1, sizeof(*c->values));
    return c->values ? CHM_OK : cli_fail(CHM_E_MEMORY, "out of memory while reading the command line");
}

static int take_option(struct cli *c, int argc, char **argv, int *at) {
    struct found f, other;
    const char *word = argv[*at];
    if (!find_option(c, word, &f)) return unknown_option(c, word);
    char name[64];
    shown_name(f.option, name, sizeof(name));
    if (f.option->type == CLI_FLAG) {
        if (f.attached) return cli_fail(CHM_E_CONFIG, "%s takes no value, it was given '%s'", name, f.attached);
        f.value->given = true;
        return CHM_OK;
    }
    f.value->given = true;
    if (f.attached) return parse_value(f.option, f.attached, f.value);
    const bool missing = *at + 1 >= argc || find_option(c, argv[*at + 1], &other) ||
                         (f.option->type == CLI_FILES && strcmp(argv[*at + 1], "--") == 0);
    if (missing) return cli_fail(CHM_E_CONFIG, "%s needs a value: %s %s", name, name, f.option->value);
    if (f.option->type != CLI_FILES) return parse_value(f.option, argv[++*at], f.value);
    while (*at + 1 < argc && (argv[*at + 1][0] != '-' || argv[*at + 1][1] == '\0')) {
        const int status = parse_value(f.option, argv[++*at], f.value);
        if (status != CHM_OK) return status;
    }
    return f.value->count ? CHM_OK : unknown_option(c, argv[*at + 1]);
}

static int check_complete(const struct cli *c) {
    const struct cli_command *k = c->command;
    if (k->run == NULL) return no_command(k, c->argument_count ? c->arguments[0] : NULL);
    if (c->argument_count > k->max_arguments)
        return cli_fail(CHM_E_CONFIG, "%s: '%s' is one argument too many; usage: chimera %s%s%s", k->name,
                        c->arguments[k->max_arguments], k->name, k->arguments[0] ? " " : "", k->arguments);
    if (c->argument_count < k->min_arguments) {
        const char *greedy = NULL; /* the likely thief of an argument */
        for (size_t i = 0; i < k->option_count; i++)
            if (k->options[i].type == CLI_FILES && c->values[i].count > 1) greedy = k->options[i].name;
        if (greedy)
            return cli_fail(CHM_E_CONFIG,
                            "%s: %s is missing; --%s takes every word up to the next option, so write %s before it",
                            k->name, k->arguments, greedy, k->arguments);
        return cli_fail(CHM_E_CONFIG, "%s: %s is missing; chimera %s -h shows how it is used", k->name, k->arguments,
                        k->name);
    }
    for (size_t i = 0; i < k->option_count; i++)
        if (k->options[i].required && !c->values[i].given)
            return cli_fail(CHM_E_CONFIG, "%s: %s%s %s is missing (%s)", k->name, k->options[i].name[1] ? "--" : "-",
                            k->options[i].name, k->options[i].value, k->options[i].doc);
    return CHM_OK;
}

int cli_parse(struct cli *c, int argc, char **argv) {
    memset(c, 0, sizeof(*c));
    c->global = calloc(cli_global_count, sizeof(*c->global));
    c->arguments = calloc((size_t)argc + 1, sizeof(*c->arguments));
    if (c->global == NULL || c->arguments == NULL)
        return cli_fail(CHM_E_MEMORY, "out of memory while reading the command line");
    bool options_end = false, want_help = false, want_full = false, want_version = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        int status = CHM_OK;
        if (!options_end && strcmp(word, "--") == 0) {
            options_end = true;
        } else if (!options_end && strcmp(word, "-h") == 0) {
            want_help = true;
        } else if (!options_end && strcmp(word, "--help") == 0) {
            want_full = true;
        } else if (!options_end && c->command == NULL && strcmp(word, "--version") == 0) {
            want_version = true;
        } else if (!options_end && word[0] == '-' && word[1] != '\0') {
            if (!want_help && !want_full) status = take_option(c, argc, argv, &i);
        } else if (c->command == NULL) {
            status = take_command(c, argc, argv, &i);
        } else {
            c->arguments[c->argument_count++] = word;
        }
        if (status != CHM_OK) return status;
    }
    if (want_help || want_full) {
        if (c->command)
            cli_print_help(c->command, want_full, stdout);
        else
            cli_print_commands(stdout);
        return -1;
    }
    if (want_version && c->command == NULL) {
        char *words[] = {(char[]){"version"}};
        int at = 0;
        const int status = take_command(c, 1, words, &at);
        if (status != CHM_OK) return status;
    }
    c->verbosity = cli_get(c, "quiet")->given ? -1 : cli_get(c, "verbose")->given ? 1 : 0;
    if (c->command == NULL) {
        cli_print_commands(stderr);
        return CHM_E_CONFIG;
    }
    return check_complete(c);
}

void cli_finish(struct cli *c) {
    if (c->values)
        for (size_t i = 0; i < c->command->option_count; i++) free(c->values[i].items);
    if (c->global)
        for (size_t i = 0; i < cli_global_count; i++) free(c->global[i].items);
    free(c->values);
    free(c->global);
    free(c->arguments);
    memset(c, 0, sizeof(*c));
}

const struct cli_value *cli_get(const struct cli *c, const char *name) {
    if (c->command)
        for (size_t i = 0; i < c->command->option_count; i++)
            if (strcmp(c->command->options[i].name, name) == 0) return &c->values[i];
    for (size_t i = 0; i < cli_global_count; i++)
        if (strcmp(cli_global_options[i].name, name) == 0) return &c->global[i];
    abort(); /* a name that is in no table: a bug of this program */
}

chm_output cli_format(const struct cli *c) { return (chm_output)cli_get(c, "output")->integer; }

chm_overlay cli_overlay(const struct cli *c) {
    const struct cli_value *ini = cli_get(c, "ini"), *set = cli_get(c, "set");
    const chm_overlay o = {.size = sizeof(o),
                           .ini_count = ini->count,
                           .set_count = set->count,
                           .no_environment = cli_get(c, "no-environment")->given,
                           .ini = ini->items,
                           .set = set->items};
    return o;
}
