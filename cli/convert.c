/* convert.c: chimera convert. */
#include "cli.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
     .doc = "score both models on this text, as chimera eval does; several, repeatable. Of master weights with --card "
            "the model in f32 is the one before: it is written to OUT.before.b158 for that and removed"},
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

/* Prints the bits per byte of a model on the data. */
static int score(struct cli *c, const char *path, const char *when) {
    const struct cli_value *data = cli_get(c, "data");
    const chm_eval_options o = {.size = sizeof(o), .data_count = data->count, .data = data->items, .stop = &cli_stop};
    chm_eval_result result = {.size = sizeof(result)};
    chm_model *model = NULL;
    int status = cli_report(chm_open(c->runtime, path, NULL, false, &model));
    if (status != CHM_OK) return status;
    status = cli_report(chm_eval(c->runtime, model, &o, &result));
    if (status == CHM_OK) printf("%.4f bits per byte %s\n", result.bits_per_byte, when);
    chm_close(model);
    return status;
}

/* The same of master weights as they are, by way of a model file that is removed again. */
static int score_masters(struct cli *c, const chm_convert_options *options) {
    static const char *const as_they_are[] = {"quantization.method=none", "quantization.embedding=f32",
                                              "quantization.sherry_mode.enabled=false",
                                              "quantization.hgf_correction.enabled=false"};
    const uint32_t more = CLI_COUNT_OF(as_they_are), given = options->overlay->set_count;
    chm_overlay overlay = *options->overlay;
    chm_convert_options o = *options;
    const size_t bytes = strlen(c->arguments[1]) + sizeof(".before.b158");
    const char **set = malloc((given + more) * sizeof(*set));
    char *path = malloc(bytes);
    int status = CHM_OK;
    if (!set || !path) {
        status = cli_fail(CHM_E_MEMORY, "convert: out of memory");
        goto out;
    }
    snprintf(path, bytes, "%s.before.b158", c->arguments[1]);
    if (given > 0) memcpy(set, overlay.set, given * sizeof(*set));
    memcpy(set + given, as_they_are, sizeof(as_they_are));
    overlay.set = set;
    overlay.set_count = given + more;
    o.overlay = &overlay;
    o.encoding = NULL;
    if (access(path, F_OK) == 0)
        status = cli_fail(CHM_E_CONFIG, "%s: is in the way of the model in f32; move it away", path);
    if (status != CHM_OK) goto out;
    if ((status = cli_report(chm_convert(c->runtime, c->arguments[0], path, &o, NULL))) == CHM_OK) {
        status = score(c, path, "before, in f32");
        remove(path);
    }
out:
    free(path);
    free(set);
    return status;
}

/* What can be known before anything is written. */
static int check_data(struct cli *c, const chm_convert_options *o) {
    const struct cli_value *data = cli_get(c, "data");
    if (data->count == 0) return CHM_OK;
    if (!is_model(c->arguments[0]) && !is_model(c->arguments[1]))
        return cli_fail(CHM_E_CONFIG, "convert: --data scores models, and neither file is called .b158");
    if (o->import && !o->card)
        return cli_fail(CHM_E_CONFIG,
                        "convert: --data scores models, and tensors that --import reads without --card are "
                        "of none");
    for (uint32_t i = 0; i < data->count; i++)
        if (access(data->items[i], R_OK) != 0)
            return cli_fail(CHM_E_DATA, "%s: cannot be read: %s", data->items[i], strerror(errno));
    return CHM_OK;
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
    if (r->left_out > 0) {
        snprintf(line, sizeof(line), "lost: %d parameters of low-rank corrections were left out%s", r->left_out,
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
    int status = check_data(c, &o);
    if (status != CHM_OK) return status;
    cli_catch_interrupts();
    if (data->count > 0 && is_model(c->arguments[0]))
        status = score(c, c->arguments[0], "before");
    else if (data->count > 0 && o.card && o.lossy)
        status = score_masters(c, &o);
    if (status != CHM_OK) return status;
    status = cli_report(chm_convert(c->runtime, c->arguments[0], c->arguments[1], &o, &r));
    if (status != CHM_OK) return status;
    cli_message(c, "wrote %s: %d parameters, %lld weights", c->arguments[1], r.parameters, (long long)r.weights);
    say_losses(&r, data->count > 0);
    return data->count > 0 && is_model(c->arguments[1]) ? score(c, c->arguments[1], "after") : CHM_OK;
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
