/* check.c: chimera check. */
#include "cli.h"

static const struct cli_option options[] = {
    {.name = "resolved", .type = CLI_FLAG, .doc = "every value too, and where it came from"},
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera check chimera-nano", "is this card sound, and how big is its model"},
    {"chimera check card.json --set gd.chunk_size=32 --resolved", "what a run would use, and why"},
};

static int run_check(struct cli *c) {
    const chm_overlay overlay = cli_overlay(c);
    return cli_report(
        chm_check(c->runtime, c->arguments[0], &overlay, cli_get(c, "resolved")->given, cli_format(c), stdout));
}

const struct cli_command cli_check = {
    .name = "check",
    .arguments = "CARD",
    .summary = "checks a model card: verdict, layers, parameters, bytes",
    .text = "CARD is a file, or the name of a card that comes with Chimera (chimera doctor lists them).\n"
            "Values are taken from the card, then each --ini, then CHIMERA_* variables, then each --set.",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .reports_only = true,
    .run = run_check};
