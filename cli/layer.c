/* layer.c: chimera layer PLUGIN, chimera layer test PLUGIN. */
#include "cli.h"
#include <string.h>

static const struct cli_option options[] = {
    {.name = "in",
     .type = CLI_TEXT,
     .value = "X.safetensors",
     .doc = "x, parameters, initial state, and dy with --grad"},
    {.name = "out", .type = CLI_TEXT, .value = "Y.safetensors", .doc = "where y, the final state and gradients go"},
    {.name = "grad", .type = CLI_FLAG, .doc = "also dx and the gradient of every parameter and initial state"},
    {.name = "mode",
     .type = CLI_CHOICE,
     .value = "MODE",
     .choices = "chunk|step",
     .doc = "the form of the recurrence that runs"},
    {.name = "tolerance",
     .type = CLI_REAL,
     .value = "E",
     .min = 0,
     .max = 1,
     .doc = "test: largest rms error over rms; 0 takes each test's own"},
    {.name = "rows",
     .type = CLI_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 20,
     .unit = "rows",
     .doc = "test: rows of the text it makes up (77)"},
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera layer test gd", "split, causality, gradients, fork: the tests every layer must pass"},
    {"chimera layer gd --in x.safetensors --out y.safetensors --grad --set quantization.method=none",
     "run one layer on tensors made elsewhere, to hold it against another implementation"},
};

static int run_layer(struct cli *c) {
    const chm_overlay overlay = cli_overlay(c);
    const struct cli_value *in = cli_get(c, "in"), *out = cli_get(c, "out");
    const bool test = strcmp(c->arguments[0], "test") == 0;
    if (test && c->argument_count < 2)
        return cli_fail(CHM_E_CONFIG, "layer test: which plugin? chimera plugins list --kind layer names them");
    if (!test && c->argument_count > 1)
        return cli_fail(CHM_E_CONFIG, "layer: '%s' is one argument too many; usage: chimera layer %s", c->arguments[1],
                        c->command->arguments);
    const chm_layer_options o = {.size = sizeof(o),
                                 .plugin = c->arguments[test ? 1 : 0],
                                 .overlay = &overlay,
                                 .in = in->text,
                                 .out = out->text,
                                 .grad = cli_get(c, "grad")->given,
                                 .step = cli_get(c, "mode")->integer == 1,
                                 .tolerance = cli_get(c, "tolerance")->real,
                                 .rows = cli_get(c, "rows")->integer};
    if (test) {
        static const char *const unused[] = {"in", "out", "grad", "mode"};
        for (size_t i = 0; i < CLI_COUNT_OF(unused); i++)
            if (cli_get(c, unused[i])->given)
                return cli_fail(CHM_E_CONFIG, "layer test takes no --%s: it makes up its own tensors", unused[i]);
        return cli_report(chm_layer_test(c->runtime, &o, cli_format(c), stdout));
    }
    static const char *const unused[] = {"tolerance", "rows", "output"};
    for (size_t i = 0; i < CLI_COUNT_OF(unused); i++)
        if (cli_get(c, unused[i])->given)
            return cli_fail(CHM_E_CONFIG, "layer %s takes no --%s: that is for layer test", o.plugin, unused[i]);
    if (!in->given || !out->given)
        return cli_fail(CHM_E_CONFIG, "layer: --in X.safetensors and --out Y.safetensors are both needed");
    const int status = chm_layer_run(c->runtime, &o);
    if (status == CHM_OK) cli_message(c, "wrote %s", o.out);
    return cli_report(status);
}

const struct cli_command cli_layer = {
    .name = "layer",
    .arguments = "PLUGIN | test PLUGIN",
    .summary = "runs one layer plugin alone, or tests it",
    .text = "Names and shapes of the tensors are in docs/reference.md. layer test ends with code 1 when a test fails.",
    .min_arguments = 1,
    .max_arguments = 2,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .run = run_layer};
