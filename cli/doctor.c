/* doctor.c: chimera doctor. */
#include "cli.h"

static const struct cli_option options[] = {CLI_OUTPUT_OPTION};

static const struct cli_example examples[] = {
    {"chimera doctor", "what this CPU can do, which plugins were found or refused, and which kernels run"},
};

static int run_doctor(struct cli *c) { return cli_report(chm_doctor(c->runtime, cli_format(c), stdout)); }

const struct cli_command cli_doctor = {.name = "doctor",
                                       .arguments = "",
                                       .summary = "shows CPU features, plugins found and refused, kernels chosen",
                                       .options = options,
                                       .option_count = CLI_COUNT_OF(options),
                                       .examples = examples,
                                       .example_count = CLI_COUNT_OF(examples),
                                       .reports_only = true,
                                       .run = run_doctor};
