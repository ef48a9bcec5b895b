/* train.c: chimera train. */
#include "cli.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const struct cli_option options[] = {
    {.name = "data",
     .type = CLI_FILES,
     .value = "DATA",
     .doc = "text to learn from: files, directories, quoted patterns, .jsonl, .zst; several, repeatable",
     .required = true},
    {.name = "out",
     .type = CLI_TEXT,
     .value = "DIR",
     .doc = "run directory: model.b158, checkpoint, log.jsonl, card.json (required without --dry-run)"},
    {.name = "validation",
     .type = CLI_FILES,
     .value = "DATA",
     .doc = "held-out text, scored as chimera eval would; several, repeatable"},
    {.name = "holdout",
     .type = CLI_REAL,
     .value = "SHARE",
     .min = 0,
     .max = 0.9,
     .doc = "hold this share of the documents out of the data, and validate on it (training.holdout)"},
    {.name = "shards",
     .type = CLI_TEXT,
     .value = "DIR",
     .doc = "keep the data as tokens there, for other runs too; else in the run directory when they are more than 16 "
            "MiB"},
    {.name = "seconds",
     .type = CLI_REAL,
     .value = "S",
     .min = 0.001,
     .max = 1e8,
     .unit = "seconds",
     .doc = "wall time to spend, settled into tokens as late as the schedule allows, and logged"},
    {.name = "tokens",
     .type = CLI_TOKENS,
     .value = "N",
     .min = 1,
     .max = CHM_TRAIN_TOKENS_MAX,
     .unit = "tokens",
     .doc = "tokens to read (5M works); else the card's number"},
    {.name = "resume",
     .type = CLI_FLAG,
     .doc = "go on from the checkpoint in DIR; gives the same bytes as not stopping"},
    {.name = "dry-run", .type = CLI_FLAG, .doc = "forecast memory and time, and stop there"},
    {.name = "checkpoint-seconds",
     .type = CLI_REAL,
     .value = "S",
     .min = 0.001,
     .max = 1e8,
     .unit = "seconds",
     .doc = "time between checkpoints (60)"},
    CLI_TIMING_OPTION,
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera train chimera-nano --data book.txt --out run/book --seconds 120",
     "two minutes on one book; run/book/model.b158 is the model"},
    {"chimera train card.json --data a.txt b.txt --validation c.txt --out run/x --tokens 5M",
     "five million tokens of two files, scored on a third"},
    {"chimera train card.json --data a.txt b.txt --validation c.txt --out run/x --tokens 5M --resume",
     "the same, after Ctrl-C"},
    {"chimera train card.json --data corpus/ 'more/**/*.jsonl.zst' --holdout 0.01 --out run/y",
     "directories and patterns; a hundredth of the documents is scored and not trained on"},
    {"chimera train card.json --data a.txt --dry-run", "what it would need"},
};

void cli_show_training(void *user, const chm_progress *p) {
    const struct cli *c = user;
    if (p->message != NULL) {
        cli_message(c, "%s", p->message);
        return;
    }
    char done[24], total[24], rate[24], eta[24], line[320];
    cli_count((double)p->tokens, done, sizeof(done));
    cli_count((double)p->total_tokens, total, sizeof(total));
    cli_count(p->tokens_per_second, rate, sizeof(rate));
    cli_duration(p->eta_seconds, eta, sizeof(eta));
    int n = snprintf(line, sizeof(line), "step %lld  %s/%s tokens  loss %.4f nats  %.4f bits/byte  %s tok/s  ETA %s",
                     (long long)p->step, done, total, p->loss, p->bits_per_byte, rate, eta);
    if (isfinite(p->validation_bits_per_byte) && n > 0 && (size_t)n < sizeof(line))
        snprintf(line + n, sizeof(line) - (size_t)n, "  held out %.4f bits/byte", p->validation_bits_per_byte);
    cli_progress(c, line);
    /* a validation is worth keeping on the screen */
    if (isfinite(p->validation_bits_per_byte)) cli_progress_end();
}

static void print_result(const struct cli *c, const chm_train_result *r) {
    const char *finished = r->finished ? "true" : "false";
    switch (cli_format(c)) {
    case CHM_OUTPUT_JSON:
        fputs("{\"schema_version\": 1, \"model\": ", stdout);
        cli_json_string(stdout, r->model);
        printf(", \"steps\": %lld, \"tokens\": %lld, \"parameters\": %lld, \"loss\": ", (long long)r->steps,
               (long long)r->tokens, (long long)r->parameters);
        cli_json_real(stdout, r->loss);
        fputs(", \"validation_bits_per_byte\": ", stdout);
        cli_json_real(stdout, r->validation_bits_per_byte);
        fputs(", \"seconds\": ", stdout);
        cli_json_real(stdout, r->seconds);
        printf(", \"finished\": %s}\n", finished);
        break;
    case CHM_OUTPUT_CSV:
        fputs("model,steps,tokens,parameters,loss,validation_bits_per_byte,seconds,finished\n", stdout);
        cli_csv_string(stdout, r->model);
        printf(",%lld,%lld,%lld,", (long long)r->steps, (long long)r->tokens, (long long)r->parameters);
        if (isfinite(r->loss)) printf("%.9g", r->loss);
        putchar(',');
        if (isfinite(r->validation_bits_per_byte)) printf("%.17g", r->validation_bits_per_byte);
        printf(",%.3f,%s\n", r->seconds, finished);
        break;
    case CHM_OUTPUT_MD:
        printf("| model | steps | tokens | parameters | loss | held out, bits per byte | seconds | finished |\n"
               "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n| %s | %lld | %lld | %lld | ",
               r->model, (long long)r->steps, (long long)r->tokens, (long long)r->parameters);
        if (isfinite(r->loss)) printf("%.4f", r->loss);
        fputs(" | ", stdout);
        if (isfinite(r->validation_bits_per_byte)) printf("%.4f", r->validation_bits_per_byte);
        printf(" | %.1f | %s |\n", r->seconds, r->finished ? "yes" : "no");
        break;
    case CHM_OUTPUT_TEXT: {
        char time[24];
        cli_duration(r->seconds, time, sizeof(time));
        printf("%s: %lld parameters, %lld step%s, %lld tokens in %s", r->model, (long long)r->parameters,
               (long long)r->steps, r->steps == 1 ? "" : "s", (long long)r->tokens, time);
        if (isfinite(r->loss)) printf(", loss %.4f nats a token", r->loss);
        if (isfinite(r->validation_bits_per_byte)) printf(", held out %.4f bits per byte", r->validation_bits_per_byte);
        printf("%s\n", r->finished ? "" : " (not finished: --resume goes on)");
        break;
    }
    }
}

static int run_train(struct cli *c) {
    const struct cli_value *data = cli_get(c, "data"), *validation = cli_get(c, "validation");
    const struct cli_value *holdout = cli_get(c, "holdout");
    chm_overlay overlay = cli_overlay(c);
    if (cli_get(c, "seconds")->given && cli_get(c, "tokens")->given)
        return cli_fail(CHM_E_CONFIG, "train: --seconds and --tokens are two budgets; give one of them");
    if (!cli_get(c, "out")->given && !cli_get(c, "dry-run")->given)
        return cli_fail(CHM_E_CONFIG, "train: --out DIR is missing: the run directory, or --dry-run for a forecast");
    const chm_train_options o = {.size = sizeof(o),
                                 .data_count = data->count,
                                 .validation_count = validation->count,
                                 .card = c->arguments[0],
                                 .overlay = &overlay,
                                 .data = data->items,
                                 .validation = validation->items,
                                 .out = cli_get(c, "out")->text,
                                 .shards = cli_get(c, "shards")->text,
                                 .seconds = cli_get(c, "seconds")->real,
                                 .tokens = cli_get(c, "tokens")->integer,
                                 .resume = cli_get(c, "resume")->given,
                                 .dry_run = cli_get(c, "dry-run")->given,
                                 .checkpoint_seconds = cli_get(c, "checkpoint-seconds")->real,
                                 .progress = cli_show_training,
                                 .user = c,
                                 .stop = &cli_stop};
    chm_train_result result = {.size = sizeof(result), .validation_bits_per_byte = NAN};
    /* the last word of --set */
    const char **set = calloc(overlay.set_count + 1, sizeof(*set));
    char held[64];
    if (set == NULL) return cli_fail(CHM_E_MEMORY, "out of memory while reading the command line");
    for (uint32_t i = 0; i < overlay.set_count; i++) set[i] = overlay.set[i];
    overlay.set = set;
    snprintf(held, sizeof(held), "training.holdout=%.9g", holdout->real);
    if (holdout->given) set[overlay.set_count++] = held;
    cli_catch_interrupts();
    const int status = chm_train(c->runtime, &o, &result);
    free(set);
    cli_progress_end();
    if (status == CHM_OK && !o.dry_run) print_result(c, &result);
    if (status == CHM_OK && !o.dry_run && cli_wants_timing(c)) {
        fflush(stdout);
        cli_timing_rate("training", result.tokens, result.seconds);
        cli_timing_end(c, true);
    }
    return cli_report(status);
}

const struct cli_command cli_train = {
    .name = "train",
    .arguments = "CARD",
    .summary = "trains a model card on text",
    .text = "Trains the model of CARD with its ternary weights in the loop. Progress goes to standard error, one line "
            "that is\n"
            "rewritten on a terminal and a line each time elsewhere; DIR/log.jsonl keeps every report. Ctrl-C saves "
            "and ends\n"
            "with code 130, --resume goes on from there. Without --seconds and --tokens the card's budget holds.\n"
            "CARD is a file, or the name of a card that comes with Chimera (chimera doctor lists them).",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .run = run_train};
