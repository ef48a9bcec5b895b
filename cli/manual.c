/* manual.c: manual pages (man macros) and the tables of docs/reference.md, from the command table. */
#include "cli.h"
#include <string.h>

#ifndef CLI_DATE
#error "the build defines CLI_DATE, the date of the manual pages"
#endif

/* ---- roff -------------------------------------------------------------------------------------------------------- */

/* Text as it shall stand on the page: no requests at the beginning of a line, hyphens that can be pasted. */
static void roff(FILE *out, const char *text) {
    bool start = true;
    for (const char *s = text; *s; s++) {
        if (start && (*s == '.' || *s == '\'')) fputs("\\&", out);
        if (*s == '\\')
            fputs("\\e", out);
        else if (*s == '-')
            fputs("\\-", out);
        else if (*s == '^')
            fputs("\\(ha", out);
        else if (*s == '~')
            fputs("\\(ti", out);
        else
            putc(*s, out);
        start = *s == '\n';
    }
}

static void roff_option(const struct cli_option *o, FILE *out) {
    char letter[64], name[64], range[96];
    cli_spellings(o, letter, name);
    fputs(".TP\n\\fB", out);
    roff(out, letter);
    fputs(letter[0] && name[0] ? "\\fR, \\fB" : "", out);
    roff(out, name);
    fputs("\\fR", out);
    if (o->type != CLI_FLAG) {
        fputs(" \\fI", out);
        roff(out, o->value);
        fprintf(out, "\\fR%s", o->type == CLI_FILES ? " ..." : "");
    }
    putc('\n', out);
    roff(out, o->doc);
    if (o->type == CLI_CHOICE) {
        fputs(": ", out);
        for (const char *c = o->choices; *c; c++) {
            if (*c == '|')
                fputs(", ", out);
            else
                putc(*c, out);
        }
    }
    cli_range(o, range, sizeof(range));
    if (range[0]) {
        fputs(" (", out);
        roff(out, range);
        putc(')', out);
    }
    if (o->required) fputs(" (required)", out);
    putc('\n', out);
}

static void roff_synopsis(const struct cli_command *k, FILE *out) {
    fprintf(out, ".B chimera %s\n", k->name);
    if (k->arguments[0]) {
        fputs(".I ", out);
        roff(out, k->arguments);
        putc('\n', out);
    }
    fputs(k->option_count ? ".RI [ OPTIONS ]\n" : "", out);
}

static void roff_examples(const struct cli_command *k, FILE *out) {
    for (size_t i = 0; i < k->example_count; i++) {
        fputs(".TP\n.B ", out);
        /* a macro's argument: quotes of its own are doubled */
        putc('"', out);
        for (const char *s = k->examples[i].line; *s; s++) {
            const char one[2] = {*s, '\0'};
            if (*s == '"')
                fputs("\"\"", out);
            else
                roff(out, one);
        }
        fputs("\"\n", out);
        roff(out, k->examples[i].what);
        putc('\n', out);
    }
}

static void roff_exit_codes(FILE *out) {
    fputs(".SH EXIT STATUS\n", out);
    for (size_t i = 0; i < cli_exit_code_count; i++) {
        fprintf(out, ".TP\n.B %d\n", cli_exit_codes[i].code);
        roff(out, cli_exit_codes[i].meaning);
        putc('\n', out);
    }
}

static void roff_head(const char *name, const char *summary, FILE *out) {
    char upper[64];
    size_t n = 0;
    for (; name[n] && n + 1 < sizeof(upper); n++)
        upper[n] = name[n] >= 'a' && name[n] <= 'z' ? (char)(name[n] - 32) : name[n];
    upper[n] = '\0';
    fputs(".\\\" Made by `chimera help -o man` from the command table.\n.TH ", out);
    roff(out, upper);
    fprintf(out, " 1 " CLI_DATE " \"chimera %s\" \"User Commands\"\n.SH NAME\n", chm_version());
    roff(out, name);
    fputs(" \\- ", out);
    roff(out, summary);
    putc('\n', out);
}

/* "plugins list" is explained by chimera-plugins(1) */
static void roff_command(const struct cli_command *k, FILE *out) {
    char name[64];
    snprintf(name, sizeof(name), "chimera-%s", k->name);
    roff_head(name, k->summary, out);
    fputs(".SH SYNOPSIS\n", out);
    bool first = true;
    if (k->run) roff_synopsis(k, out), first = false;
    for (size_t i = 0; cli_commands[i]; i++) {
        if (cli_verb_of(k, cli_commands[i]) == NULL) continue;
        fputs(first ? "" : ".br\n", out);
        first = false;
        roff_synopsis(cli_commands[i], out);
    }
    fputs(".SH DESCRIPTION\n", out);
    if (k->text) {
        roff(out, k->text);
        putc('\n', out);
    } else {
        fprintf(out, ".B chimera %s\n", k->name);
        roff(out, k->summary);
        fputs(".\n", out);
    }
    bool group = false;
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *v = cli_commands[i];
        if (cli_verb_of(k, v) == NULL) continue;
        group = true;
        fprintf(out, ".SS chimera %s\n", v->name);
        roff(out, v->summary);
        fputs(".\n", out);
        if (v->text) {
            fputs(".PP\n", out);
            roff(out, v->text);
            putc('\n', out);
        }
        for (size_t j = 0; j < v->option_count; j++) roff_option(&v->options[j], out);
    }
    fputs(".SH OPTIONS\n", out);
    if (k->option_count) {
        if (group) fprintf(out, "Of \\fBchimera %s\\fR itself:\n", k->name);
        for (size_t i = 0; i < k->option_count; i++) roff_option(&k->options[i], out);
        fputs(".PP\n", out);
    }
    fputs("Options of every command are in\n.BR chimera (1).\n", out);
    bool examples = k->example_count > 0;
    for (size_t i = 0; cli_commands[i]; i++)
        examples = examples || (cli_verb_of(k, cli_commands[i]) && cli_commands[i]->example_count);
    if (examples) {
        fputs(".SH EXAMPLES\n", out);
        roff_examples(k, out);
        for (size_t i = 0; cli_commands[i]; i++)
            if (cli_verb_of(k, cli_commands[i])) roff_examples(cli_commands[i], out);
    }
    roff_exit_codes(out);
    fputs(".SH SEE ALSO\n.BR chimera (1)\n", out);
}

void cli_print_manual(const struct cli_command *command, FILE *out) {
    if (command) {
        roff_command(command, out);
        return;
    }
    roff_head("chimera", "train, run and take apart recurrent language models with ternary weights", out);
    fputs(".SH SYNOPSIS\n.B chimera\n.I COMMAND\n.RI [ ARGUMENTS ]\n.RI [ OPTIONS ]\n"
          ".SH DESCRIPTION\n"
          "One program runs model cards: it checks them, trains them on text, packs the result with ternary weights,\n"
          "runs and scores it. Layers, kernels and tokenizers are plugins.\n"
          ".PP\n"
          "Data goes to standard output, messages and progress to standard error. \\fB\\-\\-opt value\\fR and\n"
          "\\fB\\-\\-opt=value\\fR are the same; \\fB\\-\\-\\fR ends the options.\n"
          ".SH COMMANDS\n",
          out);
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *k = cli_commands[i];
        if (!cli_is_top(k)) continue;
        fprintf(out, ".TP\n.BR chimera\\-%s (1)\n", k->name);
        roff(out, k->summary);
        putc('\n', out);
    }
    fputs(".SH OPTIONS\nEvery command takes these.\n", out);
    for (size_t i = 0; i < cli_global_count; i++) roff_option(&cli_global_options[i], out);
    fputs(".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nhelp, short or with examples\n", out);
    roff_exit_codes(out);
    fputs(".SH ENVIRONMENT\n", out);
    for (size_t i = 0; i < cli_variable_count; i++) {
        fprintf(out, ".TP\n.B %s\n", cli_variables[i].name);
        roff(out, cli_variables[i].meaning);
        putc('\n', out);
    }
    fputs(".SH EXAMPLES\n", out);
    for (size_t i = 0; cli_commands[i]; i++)
        if (cli_is_top(cli_commands[i]) && cli_commands[i]->example_count) {
            struct cli_command one = *cli_commands[i];
            one.example_count = 1;
            roff_examples(&one, out);
        }
    fputs(".SH SEE ALSO\n", out);
    for (size_t i = 0, n = 0; cli_commands[i]; i++)
        if (cli_is_top(cli_commands[i]))
            fprintf(out, "%s.BR chimera\\-%s (1)", n++ ? ",\n" : "", cli_commands[i]->name);
    putc('\n', out);
}

/* ---- Markdown ---------------------------------------------------------------------------------------------------- */

static void md_text(const char *text, FILE *out) {
    for (const char *s = text; *s; s++) {
        if (*s == '|') putc('\\', out);
        putc(*s == '\n' ? ' ' : *s, out);
    }
}

static void md_option(const struct cli_option *o, FILE *out) {
    char letter[64], name[64], range[96], value[96] = "";
    cli_spellings(o, letter, name);
    if (o->type != CLI_FLAG) snprintf(value, sizeof(value), " %s%s", o->value, o->type == CLI_FILES ? "..." : "");
    if (letter[0] && name[0])
        fprintf(out, " | `%s`, `%s%s` | ", letter, name, value);
    else
        fprintf(out, " | `%s%s%s` | ", letter, name, value);
    md_text(o->doc, out);
    for (const char *c = o->type == CLI_CHOICE ? o->choices : ""; *c;) {
        const size_t n = strcspn(c, "|");
        fprintf(out, "%s`%.*s`", c == o->choices ? ": " : ", ", (int)n, c);
        c += n + (c[n] == '|');
    }
    cli_range(o, range, sizeof(range));
    if (range[0]) fprintf(out, "; %s", range);
    fputs(o->required ? " (required) |\n" : " |\n", out);
}

static bool same_option(const struct cli_option *a, const struct cli_option *b) {
    return strcmp(a->name, b->name) == 0 && a->letter == b->letter && a->type == b->type &&
           strcmp(a->doc, b->doc) == 0 && a->required == b->required;
}

static const struct cli_option *option_like(const struct cli_command *k, const struct cli_option *o) {
    for (size_t i = 0; i < k->option_count; i++)
        if (same_option(&k->options[i], o)) return &k->options[i];
    return NULL;
}

/* One row for an option that several commands have, where the first of them stands. */
static void md_options(FILE *out) {
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *k = cli_commands[i];
        for (size_t j = 0; j < k->option_count; j++) {
            const struct cli_option *o = &k->options[j];
            bool earlier = false;
            for (size_t e = 0; e < i; e++) earlier = earlier || option_like(cli_commands[e], o) != NULL;
            if (earlier) continue;
            fprintf(out, "| `%s`", k->name);
            for (size_t e = i + 1; cli_commands[e]; e++)
                if (option_like(cli_commands[e], o)) fprintf(out, " `%s`", cli_commands[e]->name);
            md_option(o, out);
        }
    }
}

void cli_print_markdown(FILE *out) {
    fputs("| command | |\n|---|---|\n", out);
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *k = cli_commands[i];
        if (k->run == NULL) continue;
        fprintf(out, "| `chimera %s%s", k->name, k->arguments[0] ? " " : "");
        md_text(k->arguments, out);
        fputs("` | ", out);
        md_text(k->summary, out);
        fputs(" |\n", out);
    }
    fputs("\n| of | option | meaning |\n|---|---|---|\n", out);
    for (size_t i = 0; i < cli_global_count; i++) {
        fputs("| every command", out);
        md_option(&cli_global_options[i], out);
    }
    fputs("| every command | `-h`, `--help` | help, short or with examples |\n", out);
    md_options(out);
    fputs("\n### Exit codes\n\n| code | meaning |\n|---|---|\n", out);
    for (size_t i = 0; i < cli_exit_code_count; i++)
        fprintf(out, "| %d | %s |\n", cli_exit_codes[i].code, cli_exit_codes[i].meaning);
    fputs("\n### Environment variables\n\n| variable | meaning |\n|---|---|\n", out);
    for (size_t i = 0; i < cli_variable_count; i++)
        fprintf(out, "| `%s` | %s |\n", cli_variables[i].name, cli_variables[i].meaning);
}
