/* eval.c: chimera eval. */
#include "cli.h"
#include <stdio.h>

static const struct cli_option options[] = {
    {.name = "data",
     .type = CLI_FILES,
     .value = "FILE",
     .doc = "text to score, each file a document read from a fresh state; several, repeatable",
     .required = true},
    {.name = "logits",
     .type = CLI_TEXT,
     .value = "OUT",
     .doc = "also write every prediction as raw f32, [tokens, vocabulary]"},
    {.name = "split",
     .type = CLI_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 20,
     .unit = "rows",
     .doc = "tokens read in one pass; changes no byte of the result"},
    {.name = "limit-bytes",
     .type = CLI_TOKENS,
     .value = "N",
     .min = 1,
     .unit = "bytes",
     .doc = "stop after so many bytes of text"},
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera eval run/book/model.b158 --data held-out.txt", "bits per byte of a file"},
    {"chimera eval model.b158 --data held-out.txt -o json", "the same, for a program"},
    {"chimera eval model.b158 --data short.txt --logits logits.f32", "keep every logit"},
};

struct watch {
    const struct cli *c;
    double shown; /* when; 0: never */
};

static void on_progress(void *user, int64_t done, int64_t total) {
    struct watch *w = user;
    char line[96];
    if (!cli_progress_due(&w->shown)) return;
    snprintf(line, sizeof(line), "scored %lld of %lld bytes (%lld %%)", (long long)done, (long long)total,
             (long long)(total > 0 ? done * 100 / total : 0));
    cli_progress(w->c, line);
}

static int print_result(const struct cli *c, const char *model, const chm_eval_result *r) {
    char *kernels = chm_kernels_used(c->runtime);
    if (kernels == NULL) return cli_report(CHM_E_MEMORY);
    switch (cli_format(c)) {
    case CHM_OUTPUT_JSON:
        fputs("{\"schema_version\": 1, \"model\": ", stdout);
        cli_json_string(stdout, model);
        fputs(", \"bits_per_byte\": ", stdout);
        cli_json_real(stdout, r->bits_per_byte);
        fputs(", \"nats\": ", stdout);
        cli_json_real(stdout, r->nats);
        printf(", \"bytes\": %lld, \"tokens\": %lld, \"tokens_per_second\": ", (long long)r->bytes,
               (long long)r->tokens);
        cli_json_real(stdout, r->tokens_per_second);
        fputs(", \"seconds\": ", stdout);
        cli_json_real(stdout, r->seconds);
        printf(", \"threads\": %d, \"kernels\": ", chm_runtime_threads(c->runtime));
        cli_json_kernels(stdout, kernels);
        fputs("}\n", stdout);
        break;
    case CHM_OUTPUT_CSV:
        printf(
            "bits_per_byte,nats,bytes,tokens,tokens_per_second,seconds,kernels\n%.17g,%.17g,%lld,%lld,%.1f,%.3f,%s\n",
            r->bits_per_byte, r->nats, (long long)r->bytes, (long long)r->tokens, r->tokens_per_second, r->seconds,
            kernels);
        break;
    case CHM_OUTPUT_MD:
        printf("| bits per byte | nats | bytes | tokens | tokens/s | seconds |\n"
               "| ---: | ---: | ---: | ---: | ---: | ---: |\n| %.4f | %.2f | %lld | %lld | %.1f | %.2f |\n",
               r->bits_per_byte, r->nats, (long long)r->bytes, (long long)r->tokens, r->tokens_per_second, r->seconds);
        break;
    case CHM_OUTPUT_TEXT:
        printf("%.4f bits per byte\n%lld bytes, %lld tokens, %.2f nats in all\n%.2f s, %.1f tokens a second\n",
               r->bits_per_byte, (long long)r->bytes, (long long)r->tokens, r->nats, r->seconds, r->tokens_per_second);
        cli_message(c, "kernels: %s", kernels);
        break;
    }
    chm_text_free(kernels);
    return CHM_OK;
}

static int run_eval(struct cli *c) {
    const struct cli_value *data = cli_get(c, "data");
    const chm_overlay overlay = cli_overlay(c);
    struct watch watch = {c, 0};
    cli_progress_due(&watch.shown); /* a short run says nothing */
    chm_model *model = NULL;
    int status = cli_report(chm_open(c->runtime, c->arguments[0], &overlay, false, &model));
    if (status != CHM_OK) return status;
    const chm_eval_options o = {.size = sizeof(o),
                                .data_count = data->count,
                                .data = data->items,
                                .logits = cli_get(c, "logits")->text,
                                .split = cli_get(c, "split")->integer,
                                .limit_bytes = cli_get(c, "limit-bytes")->integer,
                                .progress = on_progress,
                                .user = &watch,
                                .stop = &cli_stop};
    chm_eval_result result = {.size = sizeof(result)};
    cli_catch_interrupts();
    status = chm_eval(c->runtime, model, &o, &result);
    cli_progress_end();
    status = status == CHM_OK ? print_result(c, c->arguments[0], &result) : cli_report(status);
    chm_close(model);
    return status;
}

const struct cli_command cli_eval = {.name = "eval",
                                     .arguments = "MODEL",
                                     .summary = "scores a model on text: bits per byte",
                                     .text =
                                         "Reads each file from a fresh state, predicting every token from those before "
                                         "it, in constant memory whatever the\n"
                                         "length. The number is the same for any --split, thread count and backend.",
                                     .min_arguments = 1,
                                     .max_arguments = 1,
                                     .options = options,
                                     .option_count = CLI_COUNT_OF(options),
                                     .examples = examples,
                                     .example_count = CLI_COUNT_OF(examples),
                                     .run = run_eval};
