/* state.c: chimera state. */
#include "cli.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* " (its card says 30 MB a stream)", or nothing. */
static const char *stated(const chm_stream *stream, char text[64]) {
    const size_t bytes = chm_stream_stated_bytes(stream);
    if (bytes == 0) return "";
    snprintf(text, 64, " (its card says %g MB a stream)", (double)bytes / 1e6);
    return text;
}

const struct cli_command cli_state = {
    .name = "state",
    .arguments = "",
    .summary = "keeps where a model stands in a text: saves, loads, copies and shows streams",
    .text = "A stream's file has one size, however much was read, and belongs to one model: its weights and its card.",
    .reports_only = true};

#define OUT_OPTION                                                                                                     \
    { .name = "out", .letter = 'o', .type = CLI_TEXT, .value = "FILE", .doc = "the stream to write", .required = true }

static const struct cli_option save_options[] = {
    OUT_OPTION,
    {.name = "from", .type = CLI_TEXT, .value = "STREAM", .doc = "go on from this stream; else a new document"},
    CLI_OVERLAY_OPTIONS,
};

static const struct cli_example save_examples[] = {
    {"chimera state save model.b158 book.txt -o book.stream", "reads the book once and keeps where it stands"},
    {"chimera state save model.b158 more.txt --from book.stream -o longer.stream", "reads on"},
};

static int run_save(struct cli *c) {
    char *text = NULL, declared[64];
    size_t bytes = 0;
    chm_model *model = NULL;
    chm_stream *stream = NULL;
    const struct cli_value *from = cli_get(c, "from");
    int status = cli_check_stream_out(c, cli_get(c, "out")->text, c->arguments[1]);
    if (status != CHM_OK || (status = cli_read_text("", c->arguments[1], &text, &bytes)) != CHM_OK) return status;
    if ((status = cli_open_model(c, 0, &model)) != CHM_OK) goto out;
    status = from->given ? chm_stream_load(c->runtime, model, from->text, &stream)
                         : chm_stream_open(c->runtime, model, &stream);
    if (status == CHM_OK) status = chm_stream_read(stream, text, bytes);
    if (status == CHM_OK) status = chm_stream_save(stream, cli_get(c, "out")->text);
    if (cli_report(status) == CHM_OK)
        cli_message(c, "%s: a stream after %lld tokens, %zu bytes of state%s", cli_get(c, "out")->text,
                    (long long)chm_stream_position(stream), chm_stream_bytes(stream), stated(stream, declared));
out:
    chm_stream_close(stream);
    chm_close(model);
    free(text);
    return status;
}

const struct cli_command cli_state_save = {.name = "state save",
                                           .arguments = "MODEL FILE",
                                           .summary = "reads a text and keeps the stream",
                                           .text = "FILE is the text; - is standard input. `chimera run MODEL --state "
                                                   "STREAM` and `chimera state load` go on from it.",
                                           .min_arguments = 2,
                                           .max_arguments = 2,
                                           .options = save_options,
                                           .option_count = CLI_COUNT_OF(save_options),
                                           .examples = save_examples,
                                           .example_count = CLI_COUNT_OF(save_examples),
                                           .run = run_save};

static const struct cli_option load_options[] = {
    CLI_OVERLAY_OPTIONS,
};

static const struct cli_example load_examples[] = {
    {"chimera state load model.b158 book.stream", "whether the stream is whole and the model's"},
};

static int run_load(struct cli *c) {
    char declared[64];
    chm_model *model = NULL;
    chm_stream *stream = NULL;
    int status = cli_open_model(c, 0, &model);
    if (status != CHM_OK) return status;
    status = cli_report(chm_stream_load(c->runtime, model, c->arguments[1], &stream));
    if (status == CHM_OK)
        printf("%s: a stream of %s after %lld tokens, %zu bytes of state%s\n", c->arguments[1], c->arguments[0],
               (long long)chm_stream_position(stream), chm_stream_bytes(stream), stated(stream, declared));
    chm_stream_close(stream);
    chm_close(model);
    return status;
}

const struct cli_command cli_state_load = {.name = "state load",
                                           .arguments = "MODEL STREAM",
                                           .summary = "loads a stream into its model, and says where it stands",
                                           .text = "To write on from it: chimera run MODEL --state STREAM.",
                                           .min_arguments = 2,
                                           .max_arguments = 2,
                                           .options = load_options,
                                           .option_count = CLI_COUNT_OF(load_options),
                                           .examples = load_examples,
                                           .example_count = CLI_COUNT_OF(load_examples),
                                           .run = run_load};

static const struct cli_option fork_options[] = {
    OUT_OPTION,
};

static const struct cli_example fork_examples[] = {
    {"chimera state fork book.stream -o other.stream", "a second stream that begins where the first stands"},
};

static int run_fork(struct cli *c) {
    return cli_report(chm_stream_copy_file(c->arguments[0], cli_get(c, "out")->text));
}

const struct cli_command cli_state_fork = {.name = "state fork",
                                           .arguments = "STREAM",
                                           .summary = "copies a stream, once it is found whole",
                                           .min_arguments = 1,
                                           .max_arguments = 1,
                                           .options = fork_options,
                                           .option_count = CLI_COUNT_OF(fork_options),
                                           .examples = fork_examples,
                                           .example_count = CLI_COUNT_OF(fork_examples),
                                           .reports_only = true,
                                           .run = run_fork};

static const struct cli_option show_options[] = {
    CLI_OUTPUT_OPTION,
};

static const struct cli_example show_examples[] = {
    {"chimera state show book.stream", "its position, and every state with its size"},
};

static int run_show(struct cli *c) { return cli_report(chm_stream_show(c->arguments[0], cli_format(c), stdout)); }

const struct cli_command cli_state_show = {.name = "state show",
                                           .arguments = "STREAM",
                                           .summary = "shows what is in a saved stream",
                                           .text = "csv has one table, the states.",
                                           .min_arguments = 1,
                                           .max_arguments = 1,
                                           .options = show_options,
                                           .option_count = CLI_COUNT_OF(show_options),
                                           .examples = show_examples,
                                           .example_count = CLI_COUNT_OF(show_examples),
                                           .reports_only = true,
                                           .run = run_show};
