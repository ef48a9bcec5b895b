/* help.c: help written from the command table; `chimera help`, `chimera version`. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

const struct cli_command *const cli_commands[] = {
    &cli_train, &cli_eval,      &cli_run,     &cli_init,   &cli_inspect, &cli_check, &cli_bench,
    &cli_layer, &cli_tokenizer, &cli_plugins, &cli_doctor, &cli_version, &cli_help,  NULL};

void cli_print_commands(FILE *out) {
    fputs("chimera: train, run and take apart recurrent language models with ternary weights\n\n"
          "usage: chimera COMMAND [ARGUMENTS] [OPTIONS]\n\n",
          out);
    for (size_t i = 0; cli_commands[i]; i++)
        fprintf(out, "  %-9s  %s\n", cli_commands[i]->name, cli_commands[i]->summary);
    fputs("\nchimera COMMAND -h lists its options, chimera COMMAND --help shows examples too.\n", out);
}

static void print_option(const struct cli_option *o, bool full, FILE *out) {
    char left[96];
    const bool is_long = o->name[1] != '\0';
    const char letter = o->letter ? o->letter : is_long ? '\0' : o->name[0];
    int n = 0;
    if (letter)
        n = snprintf(left, sizeof(left), "-%c%s", letter, is_long ? ", " : "");
    else
        n = snprintf(left, sizeof(left), "    ");
    if (is_long) n += snprintf(left + n, sizeof(left) - (size_t)n, "--%s", o->name);
    if (o->type != CLI_FLAG)
        snprintf(left + n, sizeof(left) - (size_t)n, " %s%s", o->value, o->type == CLI_FILES ? "..." : "");
    fprintf(out, "  %-26s  %s%s", left, o->doc, o->required ? " (required)" : "");
    if (o->type == CLI_CHOICE) fprintf(out, ": %s", o->choices);
    if (full && (o->type == CLI_INT || o->type == CLI_TOKENS || o->type == CLI_REAL)) {
        if (o->max > o->min)
            fprintf(out, " [%.15g..%.15g%s%s]", o->min, o->max, o->unit ? " " : "", o->unit ? o->unit : "");
        else
            fprintf(out, " [%.15g or more%s%s]", o->min, o->unit ? " " : "", o->unit ? o->unit : "");
    }
    putc('\n', out);
}

void cli_print_help(const struct cli_command *k, bool full, FILE *out) {
    fprintf(out, "chimera %s: %s\n\n", k->name, k->summary);
    if (full && k->example_count) {
        fputs("examples\n", out);
        for (size_t i = 0; i < k->example_count; i++)
            fprintf(out, "  %s\n      %s\n", k->examples[i].line, k->examples[i].what);
        putc('\n', out);
    }
    fprintf(out, "usage: chimera %s%s%s%s", k->name, k->arguments[0] ? " " : "", k->arguments,
            k->option_count ? " [OPTIONS]" : "");
    fputs("\n", out);
    if (full && k->text) fprintf(out, "\n%s\n", k->text);
    if (k->option_count) {
        fputs("\noptions\n", out);
        for (size_t i = 0; i < k->option_count; i++) print_option(&k->options[i], full, out);
    }
    fputs("\noptions of every command\n", out);
    for (size_t i = 0; i < cli_global_count; i++) print_option(&cli_global_options[i], full, out);
    fputs("  -h, --help                  this, short or with examples\n", out);
    if (full)
        fputs("\nexit codes\n"
              "  0 done   1 ran, and the answer is no   2 usage, card or option   3 a plugin is missing or refused\n"
              "  4 a file is missing, corrupt or cannot be written   5 the supervisor froze the run\n"
              "  6 out of memory   7 a bug of ours   130 interrupted, with everything saved\n",
              out);
}

static int run_help(struct cli *c) {
    if (c->argument_count == 0) {
        cli_print_commands(stdout);
        return CHM_OK;
    }
    for (size_t i = 0; cli_commands[i]; i++)
        if (strcmp(cli_commands[i]->name, c->arguments[0]) == 0) {
            cli_print_help(cli_commands[i], true, stdout);
            return CHM_OK;
        }
    return cli_fail(CHM_E_CONFIG, "help: no command '%s'; chimera help lists them", c->arguments[0]);
}

static const struct cli_example help_examples[] = {{"chimera help train", "what train does, with examples"}};
const struct cli_command cli_help = {.name = "help",
                                     .arguments = "[COMMAND]",
                                     .summary = "lists the commands, or explains one",
                                     .max_arguments = 1,
                                     .examples = help_examples,
                                     .example_count = CLI_COUNT_OF(help_examples),
                                     .no_runtime = true,
                                     .run = run_help};

static int run_version(struct cli *c) {
    (void)c;
    printf("chimera %s\n", chm_version());
    return CHM_OK;
}

const struct cli_command cli_version = {
    .name = "version", .arguments = "", .summary = "prints the version", .no_runtime = true, .run = run_version};
