/* run.c: chimera run. */
#include "cli.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct cli_option options[] = {
    {.name = "prompt", .letter = 'p', .type = CLI_TEXT, .value = "TEXT", .doc = "text to go on from"},
    {.name = "prompt-file", .type = CLI_TEXT, .value = "FILE", .doc = "the same from a file; - is standard input"},
    {.name = "n",
     .type = CLI_TOKENS,
     .value = "N",
     .min = 1,
     .max = CHM_NEW_TOKENS_MAX,
     .unit = "tokens",
     .doc = "most tokens to write; else the card's generation.max_new_tokens"},
    {.name = "temp",
     .type = CLI_REAL,
     .value = "T",
     .min = 0,
     .max = CHM_TEMPERATURE_MAX,
     .doc = "temperature; 0 takes the most likely token"},
    {.name = "top-k",
     .type = CLI_INT,
     .value = "K",
     .min = 0,
     .max = CHM_TOP_K_MAX,
     .unit = "tokens",
     .doc = "keep the K most likely; 0 is off"},
    {.name = "top-p",
     .type = CLI_REAL,
     .value = "P",
     .min = CHM_TOP_P_MIN,
     .max = 1,
     .doc = "keep the most likely that make up P together; 1 is off"},
    {.name = "min-p",
     .type = CLI_REAL,
     .value = "P",
     .min = 0,
     .max = 1,
     .doc = "drop what is less than P times as likely as the best; 0 is off"},
    {.name = "repeat-penalty",
     .type = CLI_REAL,
     .value = "R",
     .min = CHM_REPEAT_PENALTY_MIN,
     .max = CHM_REPEAT_PENALTY_MAX,
     .doc = "divide the logits of recent tokens by R; 1 is off"},
    {.name = "repeat-last",
     .type = CLI_INT,
     .value = "N",
     .min = 0,
     .max = CHM_REPEAT_LAST_MAX,
     .unit = "tokens",
     .doc = "how far back that looks (64)"},
    {.name = "seed",
     .type = CLI_SEED,
     .value = "N",
     .doc = "the same seed writes the same text; else one is drawn and shown"},
    {.name = "echo", .type = CLI_FLAG, .doc = "write the prompt too"},
    {.name = "state", .type = CLI_TEXT, .value = "FILE", .doc = "go on from a saved stream (chimera state save)"},
    {.name = "save-state", .type = CLI_TEXT, .value = "FILE", .doc = "save the stream when the text is written"},
    {.name = "no-history", .type = CLI_FLAG, .doc = "in a conversation: read and keep no history of what was typed"},
    CLI_TIMING_OPTION,
    CLI_OVERLAY_OPTIONS,
};

static const struct cli_example examples[] = {
    {"chimera run model.b158 -p \"Once upon a time\"", "goes on from there"},
    {"chimera run model.b158", "a conversation, on a terminal"},
    {"chimera run model.b158 -p ROMEO: -n 500 --temp 0.8 --top-p 0.95 --seed 7", "500 tokens that can be had again"},
    {"chimera run model.b158 --state book.stream -n 200", "writes on where a stream stands that was saved"},
    {"chimera run model.b158 --prompt-file - -n 100 --temp 0 < letter.txt", "the most likely end of a letter"},
};

struct output {
    bool terminal;
    double first; /* when its first text came; 0: none has */
};

static int on_text(void *user, const void *text, size_t bytes) {
    struct output *o = user;
    if (bytes > 0 && o->first == 0) o->first = cli_now();
    cli_put_text(text, bytes, o->terminal);
    return cli_stop || (bytes > 0 && fflush(stdout) != 0);
}

static uint64_t drawn_seed(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t x = (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec + ((uint64_t)getpid() << 40);
    x ^= x >> 31;
    x *= UINT64_C(0x9e3779b97f4a7c15);
    return (x ^ x >> 29) % 1000000000; /* short enough to type */
}

static void fill_sampling(const struct cli *c, chm_sampling *s) {
    if (cli_get(c, "temp")->given) s->temperature = cli_get(c, "temp")->real;
    if (cli_get(c, "top-k")->given) s->top_k = (int32_t)cli_get(c, "top-k")->integer;
    if (cli_get(c, "top-p")->given) s->top_p = cli_get(c, "top-p")->real;
    if (cli_get(c, "min-p")->given) s->min_p = cli_get(c, "min-p")->real;
    if (cli_get(c, "repeat-penalty")->given) s->repeat_penalty = cli_get(c, "repeat-penalty")->real;
    if (cli_get(c, "repeat-last")->given) s->repeat_last = (int32_t)cli_get(c, "repeat-last")->integer;
    s->seed = cli_get(c, "seed")->given ? cli_get(c, "seed")->seed : drawn_seed();
}

static int run_run(struct cli *c) {
    const struct cli_value *text = cli_get(c, "prompt"), *file = cli_get(c, "prompt-file");
    const char *prompt = text->given ? text->text : "";
    char *owned = NULL;
    size_t bytes = strlen(prompt);
    chm_model *model = NULL;
    chm_stream *stream = NULL;
    if (text->given && file->given)
        return cli_fail(CHM_E_CONFIG, "run: --prompt and --prompt-file are two prompts; give one of them");
    const struct cli_value *from = cli_get(c, "state"), *to = cli_get(c, "save-state");
    int status = to->given ? cli_check_stream_out(c, to->text, file->given ? file->text : NULL) : CHM_OK;
    if (status != CHM_OK) return status;
    if (file->given) {
        if ((status = cli_read_text("--prompt-file ", file->text, &owned, &bytes)) != CHM_OK) return status;
        prompt = owned;
    }
    chm_sampling sampling = {.size = sizeof(sampling)};
    chm_generate_result result = {.size = sizeof(result)};
    struct output output = {.terminal = isatty(STDOUT_FILENO)};
    const double begun = cli_now();
    if ((status = cli_open_model(c, 0, &model)) != CHM_OK) goto out;
    status = from->given ? chm_stream_load(c->runtime, model, from->text, &stream)
                         : chm_stream_open(c->runtime, model, &stream);
    if (cli_report(status) != CHM_OK) goto out;
    chm_sampling_defaults(model, &sampling);
    fill_sampling(c, &sampling);
    const double opened = cli_now();
    if (!text->given && !file->given && output.terminal && isatty(STDIN_FILENO)) {
        status = cli_converse(c, stream, cli_get(c, "n")->integer, &sampling);
        if (status == CHM_OK && to->given) status = cli_report(chm_stream_save(stream, to->text));
        goto out;
    }
    cli_catch_interrupts();
    if (cli_get(c, "echo")->given) fwrite(prompt, 1, bytes, stdout);
    status = chm_generate(stream, prompt, bytes, cli_get(c, "n")->integer, &sampling, on_text, &output, &result);
    /* a text ends its line on a terminal; a file gets the model's bytes and no more */
    if (output.terminal) putchar('\n');
    if (cli_report(status) != CHM_OK) goto out;
    if (to->given && (status = cli_report(chm_stream_save(stream, to->text))) != CHM_OK) goto out;
    if (cli_stop) {
        status = cli_fail(CHM_E_INTERRUPTED, "interrupted after %lld token%s (seed %llu)", (long long)result.tokens,
                          result.tokens == 1 ? "" : "s", (unsigned long long)sampling.seed);
        goto out;
    }
    fflush(stdout);
    cli_message(c, "read %lld tokens (%.1f/s), wrote %lld (%.1f/s)%s, seed %llu", (long long)result.prompt_tokens,
                result.prefill_seconds > 0 ? (double)result.prompt_tokens / result.prefill_seconds : 0,
                (long long)result.tokens, result.decode_seconds > 0 ? (double)result.tokens / result.decode_seconds : 0,
                result.ended ? " to the end of its text" : "", (unsigned long long)sampling.seed);
    if (cli_wants_timing(c)) {
        cli_timing("load", "%.3f s", opened - begun);
        if (output.first > 0) cli_timing("first token", "%.3f s", output.first - opened);
        cli_timing_rate("prefill", result.prompt_tokens, result.prefill_seconds);
        cli_timing_rate("decode", result.tokens, result.decode_seconds);
        cli_timing_end(c, false);
    } else if (c->verbosity > 0) {
        char *kernels = chm_kernels_used(c->runtime);
        if (kernels != NULL) cli_message(c, "%d threads, kernels: %s", chm_runtime_threads(c->runtime), kernels);
        chm_text_free(kernels);
    }
out:
    chm_stream_close(stream);
    chm_close(model);
    free(owned);
    return status;
}

const struct cli_command cli_run = {.name = "run",
                                    .arguments = "MODEL",
                                    .summary = "writes text with a model",
                                    .text = "Reads the prompt and writes what follows, byte for byte, as it comes. "
                                            "What is not given comes from the card's\n"
                                            "generation section. Filters work in this order: repeat penalty, "
                                            "temperature, top-k, top-p, min-p. A seed gives\n"
                                            "the same text on any machine, thread count and backend.\n"
                                            "\n"
                                            "On a terminal and without a prompt it is a conversation: each turn is "
                                            "read, and the model writes on, with one\n"
                                            "state from the first turn to the last. Ctrl-C stops an answer, Ctrl-D "
                                            "leaves, /help lists what else there is.\n"
                                            "What was typed is kept in $XDG_STATE_HOME/chimera/history, or below "
                                            "~/.local/state.",
                                    .min_arguments = 1,
                                    .max_arguments = 1,
                                    .options = options,
                                    .option_count = CLI_COUNT_OF(options),
                                    .examples = examples,
                                    .example_count = CLI_COUNT_OF(examples),
                                    .run = run_run};
