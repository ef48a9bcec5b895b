/* plugins.c: chimera plugins list|show. */
#include "cli.h"
#include <string.h>

static const struct cli_option options[] = {
    {.name = "kind",
     .type = CLI_TEXT,
     .value = "KIND",
     .doc = "list: only plugins of this kind (layer, backend, tokenizer)"},
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera plugins list", "every plugin that was loaded"},
    {"chimera plugins list --kind layer", "the layers a card may name"},
    {"chimera plugins show gd", "one plugin, with every option: type, default, range, meaning"},
};

static int run_plugins(struct cli *c) {
    const struct cli_value *kind = cli_get(c, "kind");
    const char *verb = c->arguments[0];
    if (strcmp(verb, "list") == 0) {
        if (c->argument_count > 1)
            return cli_fail(CHM_E_CONFIG, "plugins list: '%s' is one argument too many (show takes a name)",
                            c->arguments[1]);
        return cli_report(chm_plugins_list(c->runtime, kind->text, cli_format(c), stdout));
    }
    if (strcmp(verb, "show") == 0) {
        if (c->argument_count < 2)
            return cli_fail(CHM_E_CONFIG, "plugins show: which one? chimera plugins list names them");
        if (kind->given) return cli_fail(CHM_E_CONFIG, "plugins show takes no --kind: names are enough");
        return cli_report(chm_plugins_show(c->runtime, c->arguments[1], cli_format(c), stdout));
    }
    return cli_fail(CHM_E_CONFIG, "plugins: no '%s': expected list or show", verb);
}

const struct cli_command cli_plugins = {.name = "plugins",
                                        .arguments = "list | show NAME",
                                        .summary = "lists plugins, or shows one with its options",
                                        .min_arguments = 1,
                                        .max_arguments = 2,
                                        .options = options,
                                        .option_count = CLI_COUNT_OF(options),
                                        .examples = examples,
                                        .example_count = CLI_COUNT_OF(examples),
                                        .reports_only = true,
                                        .run = run_plugins};
