/* inspect.c: chimera inspect. */
#include "cli.h"

static const struct cli_option options[] = {
    {.name = "verify", .type = CLI_FLAG, .doc = "read every byte and check it against the stored hashes"},
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera inspect model.b158", "what is in a model file"},
    {"chimera inspect model.b158 --verify", "and whether all of it is as it was written"},
};

static int run_inspect(struct cli *c) {
    return cli_report(chm_inspect(c->runtime, c->arguments[0], cli_get(c, "verify")->given, cli_format(c), stdout));
}

const struct cli_command cli_inspect = {.name = "inspect",
                                        .arguments = "MODEL",
                                        .summary = "shows what is in a model file, and checks it",
                                        .min_arguments = 1,
                                        .max_arguments = 1,
                                        .options = options,
                                        .option_count = CLI_COUNT_OF(options),
                                        .examples = examples,
                                        .example_count = CLI_COUNT_OF(examples),
                                        .reports_only = true,
                                        .run = run_inspect};
