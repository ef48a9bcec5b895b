/* layer.c: chimera layer PLUGIN, chimera layer test PLUGIN. */
#include "cli.h"
#include <string.h>

static const struct cli_option options[] = {
    {.name = "in",
     .type = CLI_TEXT,
     .value = "X.safetensors",
     .doc = "x, parameters, initial state, and dy with --grad",
     .required = true},
    {.name = "out",
     .type = CLI_TEXT,
     .value = "Y.safetensors",
     .doc = "where y, the final state and gradients go",
     .required = true},
    {.name = "grad", .type = CLI_FLAG, .doc = "also dx and the gradient of every parameter and initial state"},
    {.name = "mode",
     .type = CLI_CHOICE,
     .value = "MODE",
     .choices = "chunk|step",
     .doc = "the form of the recurrence that runs (chunk)"},
    CLI_OVERLAY_OPTIONS,
};

static const struct cli_example examples[] = {
    {"chimera layer gd --in x.safetensors --out y.safetensors --grad --set quantization.method=none",
     "run one layer on tensors made elsewhere, to hold it against another implementation"},
};

static int run_layer(struct cli *c) {
    const chm_overlay overlay = cli_overlay(c);
    const chm_layer_options o = {.size = sizeof(o),
                                 .plugin = c->arguments[0],
                                 .overlay = &overlay,
                                 .in = cli_get(c, "in")->text,
                                 .out = cli_get(c, "out")->text,
                                 .grad = cli_get(c, "grad")->given,
                                 .step = cli_get(c, "mode")->integer == 1};
    const int status = chm_layer_run(c->runtime, &o);
    if (status == CHM_OK) cli_message(c, "wrote %s", o.out);
    return cli_report(status);
}

const struct cli_command cli_layer = {.name = "layer",
                                      .arguments = "PLUGIN",
                                      .summary = "runs one layer plugin alone",
                                      .text = "Names and shapes of the tensors are in docs/reference.md.",
                                      .min_arguments = 1,
                                      .max_arguments = 1,
                                      .options = options,
                                      .option_count = CLI_COUNT_OF(options),
                                      .examples = examples,
                                      .example_count = CLI_COUNT_OF(examples),
                                      .run = run_layer};

/* ---- chimera layer test ------------------------------------------------------------------------------------------ */

static const struct cli_option test_options[] = {
    {.name = "tolerance",
     .type = CLI_REAL,
     .value = "E",
     .min = 0,
     .max = 1,
     .doc = "largest rms error over rms; 0 takes each test's own"},
    {.name = "rows",
     .type = CLI_INT,
     .value = "N",
     .min = 8,
     .max = 4096,
     .unit = "rows",
     .doc = "rows of the text it makes up (77)"},
    {.name = "trees",
     .type = CLI_INT,
     .value = "N",
     .min = 1,
     .max = 1000000,
     .unit = "trees",
     .doc = "random trees in each test of trees (16)"},
    {.name = "only",
     .type = CLI_CHOICE,
     .value = "TEST",
     .choices = "split|batch|threads|fork|tree|reset|memory|chunk|causality|carry|read|gradient",
     .doc = "that group of tests and no other"},
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example test_examples[] = {
    {"chimera layer test gd", "split, causality, gradients, fork: the tests every layer must pass"},
    {"chimera layer test gd --only tree --trees 10000", "many random trees of rows, each against decoding row by row"},
};

static int run_layer_test(struct cli *c) {
    const chm_overlay overlay = cli_overlay(c);
    const chm_layer_options o = {.size = sizeof(o),
                                 .plugin = c->arguments[0],
                                 .overlay = &overlay,
                                 .tolerance = cli_get(c, "tolerance")->real,
                                 .rows = cli_get(c, "rows")->integer,
                                 .trees = cli_get(c, "trees")->integer,
                                 .only = cli_get(c, "only")->text};
    return cli_report(chm_layer_test(c->runtime, &o, cli_format(c), stdout));
}

const struct cli_command cli_layer_test = {.name = "layer test",
                                           .arguments = "PLUGIN",
                                           .summary = "tests a layer plugin; ends with code 1 when a test fails",
                                           .min_arguments = 1,
                                           .max_arguments = 1,
                                           .options = test_options,
                                           .option_count = CLI_COUNT_OF(test_options),
                                           .examples = test_examples,
                                           .example_count = CLI_COUNT_OF(test_examples),
                                           .run = run_layer_test};
