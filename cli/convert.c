/* convert.c: chimera convert. */
#include "cli.h"
#include <string.h>

static const struct cli_option options[] = {
    {.name = "encoding",
     .type = CLI_CHOICE,
     .value = "ENCODING",
     .choices = "t2|t5|sherry",
     .doc = "of ternary codes in a .b158: 2, 1.6 or 1.25 bits a weight; as they are otherwise, new ones in t5"},
    {.name = "lossy",
     .type = CLI_FLAG,
     .doc = "take what does not fit as near as it goes, and say how much that was, instead of refusing it"},
    {.name = "data",
     .type = CLI_FILES,
     .value = "FILE",
     .doc = "score both models on this text, as chimera eval does; several, repeatable"},
    {.name = "card", .type = CLI_TEXT, .value = "CARD", .doc = "the model card whose parameters a plain file holds"},
    {.name = "import",
     .type = CLI_CHOICE,
     .value = "KIND",
     .choices = "autobitlinear|bitlinear|absmean",
     .doc = "read a BitNet checkpoint: packed, its scale multiplies (autobitlinear) or divides; or master weights"},
    CLI_OVERLAY_OPTIONS,
};

static const struct cli_example examples[] = {
    {"chimera convert model.b158 small.b158 --encoding sherry --lossy --data held-out.txt",
     "in 1.25 bits a weight, and what that costs a model that was not trained for it"},
    {"chimera convert model.b158 model.safetensors", "plain F32 tensors, for other programs"},
    {"chimera convert model.safetensors again.b158", "and back, to the same bytes"},
    {"chimera convert bitnet.safetensors bitnet.b158 --import autobitlinear", "the tensors of a BitNet checkpoint"},
};

static bool is_model(const char *path) {
    const size_t n = strlen(path);
    return n > 5 && strcmp(path + n - 5, ".b158") == 0;
}

/* Bits per byte of the i-th argument on the data; *scored: it is a model. */
static int score(struct cli *c, int i, double *bits, bool *scored) {
    const struct cli_value *data = cli_get(c, "data");
    const chm_eval_options o = {.size = sizeof(o), .data_count = data->count, .data = data->items, .stop = &cli_stop};
    chm_eval_result result = {.size = sizeof(result)};
    chm_model *model = NULL;
    *scored = is_model(c->arguments[i]);
    if (!*scored) return CHM_OK;
    int status = cli_report(chm_open(c->runtime, c->arguments[i], NULL, false, &model));
    if (status != CHM_OK) return status;
    status = cli_report(chm_eval(c->runtime, model, &o, &result));
    *bits = result.bits_per_byte;
    chm_close(model);
    return status;
}

/* Also with --quiet: nothing is lost silently. */
static void say_losses(const chm_convert_result *r, bool scored) {
    char line[256];
    if (r->unfit > 0) {
        snprintf(line, sizeof(line),
                 "lost: of %lld fours of weights %lld had not exactly one zero, and %lld weights were changed%s",
                 (long long)r->fours, (long long)r->unfit, (long long)r->changed,
                 scored ? "" : "; --data FILE shows what that does to bits per byte");
        cli_log(line);
    }
    if (r->rescaled > 0) {
        snprintf(line, sizeof(line),
                 "scales: those stored with %d matrices did not fit their weights; others were found, the weights are "
                 "the same",
                 r->rescaled);
        cli_log(line);
    }
    if (r->quantised > 0) {
        snprintf(line, sizeof(line), "lost: %d parameters were quantised, with an rms error of %.4f of their rms",
                 r->quantised, r->rms_error);
        cli_log(line);
    }
}

static int run_convert(struct cli *c) {
    const chm_overlay overlay = cli_overlay(c);
    const struct cli_value *data = cli_get(c, "data"), *encoding = cli_get(c, "encoding"),
                           *import = cli_get(c, "import");
    const chm_convert_options o = {.size = sizeof(o),
                                   .lossy = cli_get(c, "lossy")->given,
                                   .encoding = encoding->given ? encoding->text : NULL,
                                   .card = cli_get(c, "card")->text,
                                   .overlay = &overlay,
                                   .import = import->given ? import->text : NULL};
    chm_convert_result r = {.size = sizeof(r)};
    if (data->count > 0 && !is_model(c->arguments[0]) && !is_model(c->arguments[1]))
        return cli_fail(CHM_E_CONFIG, "convert: --data scores models, and neither file is called .b158");
    int status = cli_report(chm_convert(c->runtime, c->arguments[0], c->arguments[1], &o, &r));
    if (status != CHM_OK) return status;
    cli_message(c, "wrote %s: %d parameters, %lld weights", c->arguments[1], r.parameters, (long long)r.weights);
    say_losses(&r, data->count > 0);
    if (data->count == 0) return CHM_OK;
    static const char *const when[] = {"before", "after"};
    cli_catch_interrupts();
    for (int i = 0; i < 2; i++) {
        double bits = 0;
        bool scored;
        if ((status = score(c, i, &bits, &scored)) != CHM_OK) return status;
        if (scored) printf("%.4f bits per byte %s\n", bits, when[i]);
    }
    return CHM_OK;
}

const struct cli_command cli_convert = {
    .name = "convert",
    .arguments = "IN OUT",
    .summary = "writes a model file in another form",
    .text = "From one encoding of ternary codes to another, to plain safetensors (OUT is called .safetensors) and "
            "back, and\n"
            "from the ternary checkpoints of others. What is lost is said; without --lossy nothing is.",
    .min_arguments = 2,
    .max_arguments = 2,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .run = run_convert};
