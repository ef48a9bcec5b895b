/* help.c: help written from the command table; `chimera help`, `chimera version`. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

const struct cli_command *const cli_commands[] = {&cli_train,
                                                  &cli_ablate,
                                                  &cli_report_command,
                                                  &cli_eval,
                                                  &cli_run,
                                                  &cli_init,
                                                  &cli_inspect,
                                                  &cli_convert,
                                                  &cli_check,
                                                  &cli_bench,
                                                  &cli_layer,
                                                  &cli_layer_test,
                                                  &cli_tokenizer,
                                                  &cli_tokenizer_train,
                                                  &cli_tokenizer_encode,
                                                  &cli_tokenizer_decode,
                                                  &cli_tokenizer_show,
                                                  &cli_data,
                                                  &cli_data_mqar,
                                                  &cli_data_parity,
                                                  &cli_data_majority,
                                                  &cli_state,
                                                  &cli_state_save,
                                                  &cli_state_load,
                                                  &cli_state_fork,
                                                  &cli_state_show,
                                                  &cli_plugins,
                                                  &cli_plugins_list,
                                                  &cli_plugins_show,
                                                  &cli_plugins_new,
                                                  &cli_doctor,
                                                  &cli_completion,
                                                  &cli_version,
                                                  &cli_help,
                                                  NULL};

/* The meanings of enum chm_status, as a reader of the command's exit code needs them. */
const struct cli_exit_code cli_exit_codes[] = {
    {CHM_OK, "done"},
    {CHM_E_VERDICT,
     "it ran, and the answer is no: a layer test failed, or training stopped because steps were not finite"},
    {CHM_E_CONFIG, "usage, card, overlay or option"},
    {CHM_E_PLUGIN, "a plugin is missing or refused"},
    {CHM_E_DATA, "a file is missing, short, corrupt, or cannot be written"},
    {CHM_E_SAFETY, "the supervisor froze the run (reserved)"},
    {CHM_E_MEMORY, "out of memory"},
    {CHM_E_INTERNAL, "a bug of Chimera: please report it"},
    {CHM_E_INTERRUPTED, "interrupted, with everything saved"},
};
const size_t cli_exit_code_count = CLI_COUNT_OF(cli_exit_codes);

const struct cli_variable cli_variables[] = {
    {"CHIMERA_PLUGIN_PATH", "directories with plugins, searched after --plugin-path; absolute, separated by colons"},
    {"CHIMERA_BACKEND", "as --backend, which wins"},
    {"CHIMERA_THREADS", "as --threads, which wins"},
    {"CHIMERA_CPU_MASK", "CPU features to do without, besides those of --cpu-mask; a mask only takes away"},
    {"CHIMERA_SECTION__KEY", "a value of the card, in capitals, a double underscore for each dot: "
                             "CHIMERA_GATED_DELTANET__CHUNK_SIZE=32"},
    {"NO_COLOR", "when set and not empty: no colours in messages; there are none outside a terminal anyway"},
};
const size_t cli_variable_count = CLI_COUNT_OF(cli_variables);

void cli_range(const struct cli_option *o, char *text, size_t n) {
    text[0] = '\0';
    if (o->type == CLI_SEED) snprintf(text, n, "0..18446744073709551615");
    if (o->type != CLI_INT && o->type != CLI_TOKENS && o->type != CLI_REAL) return;
    const char *unit = o->unit ? o->unit : "";
    if (o->max > o->min)
        snprintf(text, n, "%.15g..%.15g%s%s", o->min, o->max, unit[0] ? " " : "", unit);
    else
        snprintf(text, n, "%.15g or more%s%s", o->min, unit[0] ? " " : "", unit);
}

void cli_spellings(const struct cli_option *o, char *letter, char *name) {
    enum { SIZE = 64 };
    const bool is_long = o->name[1] != '\0';
    const char c = o->letter ? o->letter : is_long ? '\0' : o->name[0];
    letter[0] = name[0] = '\0';
    if (c) snprintf(letter, SIZE, "-%c", c);
    if (is_long) snprintf(name, SIZE, "--%s", o->name);
}

void cli_print_commands(FILE *out) {
    fputs("chimera: train, run and take apart recurrent language models with ternary weights\n\n"
          "usage: chimera COMMAND [ARGUMENTS] [OPTIONS]\n\n",
          out);
    for (size_t i = 0; cli_commands[i]; i++)
        if (cli_is_top(cli_commands[i])) fprintf(out, "  %-10s  %s\n", cli_commands[i]->name, cli_commands[i]->summary);
    fputs("\nchimera COMMAND -h lists its options, chimera COMMAND --help shows examples too.\n", out);
}

static void print_option(const struct cli_option *o, bool full, FILE *out) {
    char letter[64], name[64], left[160], range[96];
    cli_spellings(o, letter, name);
    snprintf(left, sizeof(left), "%s%s%s%s%s%s", letter[0] ? letter : "    ", letter[0] && name[0] ? ", " : "", name,
             o->type == CLI_FLAG ? "" : " ", o->type == CLI_FLAG ? "" : o->value, o->type == CLI_FILES ? "..." : "");
    fprintf(out, "  %-26s  %s%s", left, o->doc, o->required ? " (required)" : "");
    if (o->type == CLI_CHOICE) fprintf(out, ": %s", o->choices);
    cli_range(o, range, sizeof(range));
    if (full && range[0]) fprintf(out, " [%s]", range);
    putc('\n', out);
}

static void print_usage(const struct cli_command *k, FILE *out) {
    fprintf(out, "usage: chimera %s%s%s%s\n", k->name, k->arguments[0] ? " " : "", k->arguments,
            k->option_count ? " [OPTIONS]" : "");
}

void cli_print_help(const struct cli_command *k, bool full, FILE *out) {
    fprintf(out, "chimera %s: %s\n\n", k->name, k->summary);
    if (full && k->example_count) {
        fputs("examples\n", out);
        for (size_t i = 0; i < k->example_count; i++)
            fprintf(out, "  %s\n      %s\n", k->examples[i].line, k->examples[i].what);
        putc('\n', out);
    }
    if (k->run) {
        print_usage(k, out);
    } else {
        fprintf(out, "usage: chimera %s COMMAND\n", k->name);
    }
    bool behind = false;
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *v = cli_commands[i];
        if (cli_verb_of(k, v) == NULL) continue;
        char line[128];
        snprintf(line, sizeof(line), "chimera %s%s%s", v->name, v->arguments[0] ? " " : "", v->arguments);
        fprintf(out, "%s  %-34s  %s\n", behind ? "" : k->run ? "\nalso\n" : "\ncommands\n", line, v->summary);
        behind = true;
    }
    if (full && k->text) fprintf(out, "\n%s\n", k->text);
    if (k->option_count) {
        fputs("\noptions\n", out);
        for (size_t i = 0; i < k->option_count; i++) print_option(&k->options[i], full, out);
    }
    fputs("\noptions of every command\n", out);
    for (size_t i = 0; i < cli_global_count; i++) print_option(&cli_global_options[i], full, out);
    fputs("  -h, --help                  this, short or with examples\n", out);
    if (full) {
        fputs("\nexit codes\n", out);
        for (size_t i = 0; i < cli_exit_code_count; i++)
            fprintf(out, "  %3d  %s\n", cli_exit_codes[i].code, cli_exit_codes[i].meaning);
    }
}

/* ---- chimera help ------------------------------------------------------------------------------------------------ */

static const struct cli_option help_options[] = {
    {.name = "output",
     .letter = 'o',
     .type = CLI_CHOICE,
     .value = "FORMAT",
     .choices = "text|man|md",
     .doc = "text to read, a manual page, or every table as Markdown"},
};

static int run_help(struct cli *c) {
    enum { TEXT, MAN, MD };
    const int64_t format = cli_get(c, "output")->integer;
    const struct cli_command *k = NULL;
    if (c->argument_count > 0 && (k = cli_find_command(c->arguments[0], NULL)) == NULL)
        return cli_fail(CHM_E_CONFIG, "help: no command '%s'; chimera help lists them", c->arguments[0]);
    if (c->argument_count > 1 && (k = cli_find_command(c->arguments[0], c->arguments[1])) == NULL)
        return cli_fail(CHM_E_CONFIG, "help: no command '%s %s'; chimera help %s explains what there is",
                        c->arguments[0], c->arguments[1], c->arguments[0]);
    if (format == MD && k)
        return cli_fail(CHM_E_CONFIG, "help: -o md writes the tables of every command: leave '%s' out", k->name);
    if (format == MD)
        cli_print_markdown(stdout);
    else if (format == MAN)
        cli_print_manual(k, stdout);
    else if (k)
        cli_print_help(k, true, stdout);
    else
        cli_print_commands(stdout);
    return CHM_OK;
}

static const struct cli_example help_examples[] = {{"chimera help train", "what train does, with examples"},
                                                   {"chimera help plugins show", "a command of two words"},
                                                   {"chimera help run -o man | man -l -", "its manual page"}};
const struct cli_command cli_help = {.name = "help",
                                     .arguments = "[COMMAND]",
                                     .summary = "lists the commands, or explains one",
                                     .max_arguments = 2,
                                     .options = help_options,
                                     .option_count = CLI_COUNT_OF(help_options),
                                     .examples = help_examples,
                                     .example_count = CLI_COUNT_OF(help_examples),
                                     .no_runtime = true,
                                     .run = run_help};

/* ---- chimera version --------------------------------------------------------------------------------------------- */

static const struct cli_option version_options[] = {CLI_OUTPUT_OPTION};
static const struct cli_example version_examples[] = {{"chimera version", "which one this is"},
                                                      {"chimera version -o json", "the same, for a program"}};

static int run_version(struct cli *c) {
    const unsigned abi = chm_plugin_abi();
    const char *editor = cli_editor_name();
    switch (cli_format(c)) {
    case CHM_OUTPUT_TEXT:
        printf("chimera %s\n", chm_version());
        cli_verbose(c, "plugin ABI %u, line editor %s", abi, editor);
        break;
    case CHM_OUTPUT_JSON:
        printf("{\"schema_version\": 1, \"version\": \"%s\", \"plugin_abi\": %u, \"line_editor\": \"%s\"}\n",
               chm_version(), abi, editor);
        break;
    case CHM_OUTPUT_CSV:
        printf("version,plugin_abi,line_editor\n%s,%u,%s\n", chm_version(), abi, editor);
        break;
    case CHM_OUTPUT_MD:
        printf("| version | plugin ABI | line editor |\n| --- | ---: | --- |\n| %s | %u | %s |\n", chm_version(), abi,
               editor);
        break;
    }
    return CHM_OK;
}

const struct cli_command cli_version = {.name = "version",
                                        .arguments = "",
                                        .summary = "prints the version",
                                        .options = version_options,
                                        .option_count = CLI_COUNT_OF(version_options),
                                        .examples = version_examples,
                                        .example_count = CLI_COUNT_OF(version_examples),
                                        .no_runtime = true,
                                        .run = run_version};
