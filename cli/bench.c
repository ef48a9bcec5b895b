/* bench.c: chimera bench. */
#include "cli.h"

static const struct cli_option options[] = {
    {.name = "repeats",
     .letter = 'r',
     .type = CLI_INT,
     .value = "N",
     .min = 1,
     .max = 1000,
     .unit = "repeats",
     .doc = "runs to take the median of (5)"},
    {.name = "prefill",
     .type = CLI_TOKENS,
     .value = "N",
     .min = 1,
     .max = 1e9,
     .unit = "tokens",
     .doc = "length of the prompt read (256)"},
    {.name = "decode",
     .type = CLI_TOKENS,
     .value = "N",
     .min = 1,
     .max = 1e9,
     .unit = "tokens",
     .doc = "tokens written one by one (64)"},
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera bench model.b158", "tokens per second here"},
    {"chimera bench model.b158 --threads 1 --backend scalar -o json", "one thread of the reference kernels"},
};

static int run_bench(struct cli *c) {
    chm_model *model = NULL;
    int status = cli_open_model(c, 0, &model);
    if (status != CHM_OK) return status;
    const chm_bench_options o = {.size = sizeof(o),
                                 .repeats = (int32_t)cli_get(c, "repeats")->integer,
                                 .prefill_tokens = cli_get(c, "prefill")->integer,
                                 .decode_tokens = cli_get(c, "decode")->integer};
    status = cli_report(chm_bench(c->runtime, model, &o, cli_format(c), stdout));
    chm_close(model);
    return status;
}

const struct cli_command cli_bench = {
    .name = "bench",
    .arguments = "MODEL",
    .summary = "measures reading and writing speed",
    .text = "Rows prefill and decode: median tokens a second, bytes that one token touches (packed weights and state), "
            "and\n"
            "how much of the memory's read rate, measured in the same run, that comes to; above 1, the caches help.",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .run = run_bench};
