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
     .doc = "runs to take the mean of (5)"},
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
    {.name = "streams",
     .type = CLI_INT,
     .value = "N",
     .min = 1,
     .max = 32,
     .unit = "streams",
     .doc = "most streams that write a token each in one pass, by powers of two (32)"},
    {.name = "backends",
     .type = CLI_FILES,
     .value = "BACKEND",
     .doc = "measure with each of these kernel backends in turn, in one run; several, repeatable"},
    {.name = "compare",
     .type = CLI_TEXT,
     .value = "OTHER.json",
     .doc = "set the rows beside those of an earlier report in JSON"},
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera bench model.b158", "tokens per second here, and what of the machine they use"},
    {"chimera bench model.b158 --streams 1 --backends avx2 scalar -o json", "one stream, two backends in turns"},
    {"chimera bench t5.b158 sherry.b158 --compare before.json", "two encodings, and how they were before"},
};

static int run_bench(struct cli *c) {
    enum { MOST = 64 };
    const struct cli_value *backends = cli_get(c, "backends");
    const int models = c->argument_count, each = backends->count ? (int)backends->count : 1;
    chm_runtime *runtimes[MOST] = {NULL};
    chm_bench_subject subject[MOST] = {{NULL, NULL}};
    const chm_overlay overlay = cli_overlay(c);
    int status = CHM_OK, count = 0;
    if (models * each > MOST)
        return cli_fail(CHM_E_CONFIG, "bench: %d models with %d backends are more than %d to measure", models, each,
                        (int)MOST);
    for (int b = 0; b < each && status == CHM_OK; b++) {
        if (backends->count) status = cli_open_runtime(c, backends->items[b], &runtimes[b]);
        for (int i = 0; i < models && status == CHM_OK; i++, count++) {
            subject[count].runtime = backends->count ? runtimes[b] : c->runtime;
            status =
                cli_report(chm_open(subject[count].runtime, c->arguments[i], &overlay, false, &subject[count].model));
        }
    }
    const chm_bench_options o = {.size = sizeof(o),
                                 .repeats = (int32_t)cli_get(c, "repeats")->integer,
                                 .prefill_tokens = cli_get(c, "prefill")->integer,
                                 .decode_tokens = cli_get(c, "decode")->integer,
                                 .streams = (int32_t)cli_get(c, "streams")->integer,
                                 .compare = cli_get(c, "compare")->text};
    if (status == CHM_OK) status = cli_report(chm_bench(subject, (uint32_t)count, &o, cli_format(c), stdout));
    for (int i = 0; i < count; i++) chm_close(subject[i].model);
    for (int b = 0; b < each; b++) chm_runtime_destroy(runtimes[b]);
    return status;
}

const struct cli_command cli_bench = {
    .name = "bench",
    .arguments = "MODEL...",
    .summary = "measures reading and writing speed",
    .text =
        "Reads a prompt (prefill), writes one stream with 1, 2 and 4 passes of the loop (decode) and several streams "
        "in\n"
        "one pass (streams), all of them once in every repeat. For each: tokens a second, mean and deviation; bytes\n"
        "that one token reads (packed weights and state), and how much of the memory's read rate that is; how much of\n"
        "the speed that the ternary kernel has with its weights in the cache. Rate and speed are measured in the same\n"
        "run. Above 1 the caches help. Then what the first model's card declares, beside what was measured.",
    .min_arguments = 1,
    .max_arguments = 64,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .run = run_bench};
