/* plugins.c: chimera plugins list|show. */
#include "cli.h"

const struct cli_command cli_plugins = {.name = "plugins",
                                        .arguments = "",
                                        .summary = "lists plugins, shows one with its options, starts a new one",
                                        .reports_only = true};

/* ---- list -------------------------------------------------------------------------------------------------------- */

static const struct cli_option list_options[] = {
    {.name = "kind", .type = CLI_TEXT, .value = "KIND", .doc = "only plugins of this kind (layer, backend, tokenizer)"},
    CLI_OUTPUT_OPTION,
};

static const struct cli_example list_examples[] = {
    {"chimera plugins list", "every plugin that was loaded"},
    {"chimera plugins list --kind layer", "the layers a card may name"},
};

static int run_list(struct cli *c) {
    return cli_report(chm_plugins_list(c->runtime, cli_get(c, "kind")->text, cli_format(c), stdout));
}

const struct cli_command cli_plugins_list = {.name = "plugins list",
                                             .arguments = "",
                                             .summary = "lists the plugins that were loaded",
                                             .text = "chimera doctor lists those that were refused, and why.",
                                             .options = list_options,
                                             .option_count = CLI_COUNT_OF(list_options),
                                             .examples = list_examples,
                                             .example_count = CLI_COUNT_OF(list_examples),
                                             .reports_only = true,
                                             .run = run_list};

/* ---- show -------------------------------------------------------------------------------------------------------- */

static const struct cli_option show_options[] = {CLI_OUTPUT_OPTION};

static const struct cli_example show_examples[] = {
    {"chimera plugins show gd", "one plugin, with every option: type, default, range, meaning"},
};

static int run_show(struct cli *c) {
    return cli_report(chm_plugins_show(c->runtime, c->arguments[0], cli_format(c), stdout));
}

const struct cli_command cli_plugins_show = {.name = "plugins show",
                                             .arguments = "NAME",
                                             .summary = "shows a plugin with its options",
                                             .min_arguments = 1,
                                             .max_arguments = 1,
                                             .options = show_options,
                                             .option_count = CLI_COUNT_OF(show_options),
                                             .examples = show_examples,
                                             .example_count = CLI_COUNT_OF(show_examples),
                                             .reports_only = true,
                                             .run = run_show};
