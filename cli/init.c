/* init.c: chimera init. */
#include "cli.h"

static const struct cli_option options[] = {
    {.name = "out",
     .letter = 'o',
     .type = CLI_TEXT,
     .value = "MODEL.b158",
     .doc = "the file to write; else files.weights of the card, here"},
    {.name = "seed", .type = CLI_SEED, .value = "N", .doc = "seed of the initial values (0)"},
    CLI_OVERLAY_OPTIONS,
};

static const struct cli_example examples[] = {
    {"chimera init chimera-nano -o untrained.b158 --seed 1", "a model that has learnt nothing"},
    {"chimera init chimera-5.1 --set files.tokenizer=o200k_base.tiktoken",
     "the seed model of 4.2 billion weights, and its experts"},
};

static int run_init(struct cli *c) {
    const chm_overlay overlay = cli_overlay(c);
    const struct cli_value *given = cli_get(c, "out");
    char *named = NULL;
    int status = given->given ? CHM_OK : chm_weights_name(c->runtime, c->arguments[0], &overlay, &named);
    const char *out = given->given ? given->text : named;
    if (status == CHM_OK) status = chm_init_model(c->runtime, c->arguments[0], &overlay, cli_get(c, "seed")->seed, out);
    if (status == CHM_OK) cli_message(c, "wrote %s", out);
    chm_text_free(named);
    return cli_report(status);
}

const struct cli_command cli_init = {
    .name = "init",
    .arguments = "CARD",
    .summary = "writes an untrained model",
    .text =
        "Initial values depend on the card and the seed only: every machine and thread count writes the same bytes.\n"
        "Takes the memory that the files take.",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .run = run_init};
