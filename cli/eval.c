/* eval.c: chimera eval. */
#include "cli.h"
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const struct cli_option options[] = {
    {.name = "data",
     .type = CLI_FILES,
     .value = "DATA",
     .doc =
         "text to score: files, directories, quoted patterns, .jsonl, .zst; - is standard input; several, repeatable",
     .required = true},
    {.name = "holdout",
     .type = CLI_FLAG,
     .doc = "score only the documents that training held out (training.holdout of the model's card)"},
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
    CLI_TIMING_OPTION,
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera eval run/book/model.b158 --data held-out.txt", "bits per byte of a file"},
    {"chimera eval model.b158 --data held-out.txt -o json", "the same, for a program"},
    {"chimera eval run/*/model.b158 --data held-out.txt -o md", "several models side by side, a row each"},
    {"chimera eval run/y/model.b158 --data corpus/ --holdout", "what the run did not train on"},
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

/* A pipe, or standard input for "-", copied to a file without a name, since the data is looked at twice, but for no
 * more than `limit` bytes (0: to its end). *path becomes what opens it. */
static int spool(const char **path, char *name, size_t n, int64_t limit) {
    enum { PIECE = 1 << 16 };
    struct stat st;
    const bool standard = strcmp(*path, "-") == 0;
    if (!standard && (stat(*path, &st) != 0 || !(S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) || S_ISCHR(st.st_mode))))
        return CHM_OK; /* a file, or something whose opening has a sentence of its own */
    const char *shown = standard ? "standard input" : *path;
    FILE *in = standard ? stdin : fopen(*path, "rb"), *copy = tmpfile();
    char *piece = malloc(PIECE);
    size_t got = 1;
    int64_t copied = 0;
    int status = CHM_OK;
    if (in == NULL || copy == NULL || piece == NULL)
        status = cli_fail(CHM_E_DATA, "%s: cannot be copied to a temporary file: %s", shown, strerror(errno));
    while (status == CHM_OK && got > 0) {
        got = fread(piece, 1, limit > 0 && limit - copied < PIECE ? (size_t)(limit - copied) : PIECE, in);
        copied += (int64_t)got;
        if (ferror(in) || fwrite(piece, 1, got, copy) != got)
            status = cli_fail(CHM_E_DATA, "%s: copying it to a temporary file: %s", shown, strerror(errno));
    }
    if (status == CHM_OK && copied == 0)
        status = cli_fail(CHM_E_DATA, "%s: is empty; a file of text has at least one byte", shown);
    if (status == CHM_OK && fflush(copy) != 0)
        status = cli_fail(CHM_E_DATA, "%s: copying it to a temporary file: %s", shown, strerror(errno));
    free(piece);
    if (in != NULL && !standard) fclose(in);
    if (status != CHM_OK) {
        if (copy != NULL) fclose(copy);
        return status;
    }
    snprintf(name, n, "/dev/fd/%d", fileno(copy)); /* open until the program ends */
    *path = name;
    return CHM_OK;
}

static double share(int64_t part, int64_t all) { return (double)part / (double)all; }

/* Bits of an answer; nats are natural. */
static double bits(double nats, int64_t answers) { return nats / log(2.0) / (double)answers; }

/* What a class of lengths is called: "33..64", and "8388609.." of the last. */
static void length_name(int k, char *text, size_t n) {
    const long long from = k ? (1LL << (k - 1)) + 1 : 0, to = 1LL << k;
    if (k == CHM_EVAL_LENGTHS - 1)
        snprintf(text, n, "%lld..", from);
    else if (from == to)
        snprintf(text, n, "%lld", to);
    else
        snprintf(text, n, "%lld..%lld", from, to);
}

static void print_json_answers(const chm_eval_result *r) {
    printf(", \"answers\": %lld, \"accuracy\": ", (long long)r->answers);
    cli_json_real(stdout, share(r->right, r->answers));
    fputs(", \"bits_per_answer\": ", stdout);
    cli_json_real(stdout, r->bits_per_byte);
    fputs(", \"lengths\": [", stdout);
    for (int k = 0, n = 0; k < CHM_EVAL_LENGTHS; k++) {
        const chm_eval_length *l = &r->length[k];
        if (l->answers == 0) continue;
        char name[48];
        length_name(k, name, sizeof(name));
        printf("%s{\"length\": \"%s\", \"answers\": %lld, \"accuracy\": ", n++ ? ", " : "", name,
               (long long)l->answers);
        cli_json_real(stdout, share(l->right, l->answers));
        fputs(", \"bits_per_answer\": ", stdout);
        cli_json_real(stdout, bits(l->nats, l->answers));
        putchar('}');
    }
    putchar(']');
}

static void print_json(const struct cli *c, const char *model, const chm_eval_result *r, const char *kernels) {
    fputs("\"model\": ", stdout);
    cli_json_string(stdout, model);
    fputs(", \"bits_per_byte\": ", stdout);
    cli_json_real(stdout, r->bits_per_byte);
    fputs(", \"nats\": ", stdout);
    cli_json_real(stdout, r->nats);
    if (r->answers > 0) print_json_answers(r);
    printf(", \"documents\": %lld, \"bytes\": %lld, \"tokens\": %lld, \"tokens_per_second\": ", (long long)r->documents,
           (long long)r->bytes, (long long)r->tokens);
    cli_json_real(stdout, r->tokens_per_second);
    fputs(", \"seconds\": ", stdout);
    cli_json_real(stdout, r->seconds);
    if (r->loop_count_mean > 0) {
        fputs(", \"loop_count_mean\": ", stdout);
        cli_json_real(stdout, r->loop_count_mean);
    }
    printf(", \"threads\": %d, \"kernels\": ", chm_runtime_threads(c->runtime));
    cli_json_kernels(stdout, kernels);
    putchar('}');
}

/* A table of the lengths, for people. */
static void print_text_answers(const chm_eval_result *r) {
    printf("%.4f of %lld answers right, %.4f bits an answer, %lld documents\n", share(r->right, r->answers),
           (long long)r->answers, r->bits_per_byte, (long long)r->documents);
    printf("%16s  %9s  %8s  %6s\n", "bytes before it", "answers", "right", "bits");
    for (int k = 0; k < CHM_EVAL_LENGTHS; k++) {
        const chm_eval_length *l = &r->length[k];
        char name[48];
        length_name(k, name, sizeof(name));
        if (l->answers > 0)
            printf("%16s  %9lld  %8.4f  %6.4f\n", name, (long long)l->answers, share(l->right, l->answers),
                   bits(l->nats, l->answers));
    }
}

/* One model: its numbers. Several: a row each, in JSON an object each. */
static int print_results(const struct cli *c, const chm_eval_result *results) {
    const int n = c->argument_count;
    char *kernels = chm_kernels_used(c->runtime);
    size_t width = 0;
    if (kernels == NULL) return cli_report(CHM_E_MEMORY);
    for (int i = 0; i < n; i++)
        if (strlen(c->arguments[i]) > width) width = strlen(c->arguments[i]);
    /* of several models one may count answers and another not: a column that some lack is empty */
    bool answers = false;
    for (int i = 0; i < n; i++) answers = answers || results[i].answers > 0;
    switch (cli_format(c)) {
    case CHM_OUTPUT_JSON:
        fputs(n > 1 ? "{\"schema_version\": 1, \"models\": [" : "{\"schema_version\": 1, ", stdout);
        break;
    case CHM_OUTPUT_CSV:
        printf("bits_per_byte,nats,bytes,tokens,%stokens_per_second,seconds,kernels,model\n",
               answers ? "answers,accuracy," : "");
        break;
    case CHM_OUTPUT_MD:
        printf("| model | bits per byte | nats | bytes | tokens |%s tokens/s | seconds |\n"
               "| --- | ---: | ---: | ---: | ---: |%s ---: | ---: |\n",
               answers ? " answers | accuracy |" : "", answers ? " ---: | ---: |" : "");
        break;
    case CHM_OUTPUT_TEXT:
        if (n > 1)
            printf("%-*s  bits per byte       bytes      tokens   tokens/s%s\n", (int)width, "model",
                   answers ? "   accuracy" : "");
        break;
    }
    for (int i = 0; i < n; i++) {
        const chm_eval_result *r = &results[i];
        const char *model = c->arguments[i];
        char answered[64] = "";
        char *shown = cli_printable(model);
        if (shown == NULL) {
            chm_text_free(kernels);
            return cli_fail(CHM_E_MEMORY, "out of memory for the name of a model");
        }
        switch (cli_format(c)) {
        case CHM_OUTPUT_JSON:
            if (n > 1) fputs(i ? ",\n {" : "\n {", stdout);
            print_json(c, model, r, kernels);
            break;
        case CHM_OUTPUT_CSV:
            if (answers) snprintf(answered, sizeof(answered), ",,");
            if (r->answers > 0)
                snprintf(answered, sizeof(answered), "%lld,%.9g,", (long long)r->answers, share(r->right, r->answers));
            printf("%.17g,%.17g,%lld,%lld,%s%.1f,%.3f,%s,", r->bits_per_byte, r->nats, (long long)r->bytes,
                   (long long)r->tokens, answered, r->tokens_per_second, r->seconds, kernels);
            cli_csv_string(stdout, shown);
            putchar('\n');
            break;
        case CHM_OUTPUT_MD:
            if (answers) snprintf(answered, sizeof(answered), " | |");
            if (r->answers > 0)
                snprintf(answered, sizeof(answered), " %lld | %.4f |", (long long)r->answers,
                         share(r->right, r->answers));
            fputs("| ", stdout);
            for (const char *m = shown; *m; m++) printf(*m == '|' ? "\\%c" : "%c", *m);
            printf(" | %.4f | %.2f | %lld | %lld |%s %.1f | %.2f |\n", r->bits_per_byte, r->nats, (long long)r->bytes,
                   (long long)r->tokens, answered, r->tokens_per_second, r->seconds);
            break;
        case CHM_OUTPUT_TEXT:
            if (n > 1 && r->answers > 0) snprintf(answered, sizeof(answered), "  %9.4f", share(r->right, r->answers));
            if (n > 1)
                printf("%-*s  %13.4f  %10lld  %10lld  %9.1f%s\n", (int)width, shown, r->bits_per_byte,
                       (long long)r->bytes, (long long)r->tokens, r->tokens_per_second, answered);
            else if (r->answers > 0)
                print_text_answers(r);
            else
                printf("%.4f bits per byte\n", r->bits_per_byte);
            if (n == 1)
                printf("%lld bytes, %lld tokens, %.2f nats in all\n%.2f s, %.1f tokens a second\n", (long long)r->bytes,
                       (long long)r->tokens, r->nats, r->seconds, r->tokens_per_second);
            if (n == 1 && r->loop_count_mean > 0) printf("%.2f passes of the loop a token\n", r->loop_count_mean);
            break;
        }
        free(shown);
    }
    if (cli_format(c) == CHM_OUTPUT_JSON) puts(n > 1 ? "\n]}" : "");
    if (cli_format(c) == CHM_OUTPUT_TEXT && !cli_wants_timing(c)) cli_message(c, "kernels: %s", kernels);
    chm_text_free(kernels);
    return CHM_OK;
}

/* Scores the i-th model; *load: the seconds it took to open. */
static int eval_one(struct cli *c, int i, const chm_eval_options *o, chm_eval_result *result, double *load) {
    chm_model *model = NULL;
    const double begun = cli_now();
    int status = cli_open_model(c, i, &model);
    *load = cli_now() - begun;
    if (status != CHM_OK) return status;
    *result = (chm_eval_result){.size = sizeof(*result)};
    status = cli_report(chm_eval(c->runtime, model, o, result));
    chm_close(model);
    return status;
}

static int run_eval(struct cli *c) {
    const struct cli_value *data = cli_get(c, "data");
    struct watch watch = {c, 0};
    cli_progress_due(&watch.shown); /* a short run says nothing */
    if (c->argument_count > 1 && cli_get(c, "logits")->given)
        return cli_fail(CHM_E_CONFIG, "eval: --logits keeps the predictions of one model, and %d are named",
                        c->argument_count);
    char(*names)[32] = calloc(data->count, sizeof(*names));
    chm_eval_result *results = calloc((size_t)c->argument_count, sizeof(*results));
    double *loads = calloc((size_t)c->argument_count, sizeof(*loads));
    int status = CHM_OK;
    if (names == NULL || results == NULL || loads == NULL) {
        cli_fail(CHM_E_MEMORY, "out of memory while naming the data");
        status = CHM_E_MEMORY;
    }
    for (uint32_t i = 0; i < data->count && status == CHM_OK; i++)
        status = spool(&data->items[i], names[i], sizeof(*names), cli_get(c, "limit-bytes")->integer);
    const chm_eval_options o = {.size = sizeof(o),
                                .data_count = data->count,
                                .data = data->items,
                                .logits = cli_get(c, "logits")->text,
                                .holdout = cli_get(c, "holdout")->given,
                                .split = cli_get(c, "split")->integer,
                                .limit_bytes = cli_get(c, "limit-bytes")->integer,
                                .progress = on_progress,
                                .user = &watch,
                                .stop = &cli_stop};
    if (status == CHM_OK) cli_catch_interrupts();
    for (int i = 0; i < c->argument_count && status == CHM_OK; i++) status = eval_one(c, i, &o, &results[i], &loads[i]);
    cli_progress_end();
    if (status == CHM_OK) status = print_results(c, results);
    if (status == CHM_OK && cli_wants_timing(c)) {
        fflush(stdout);
        for (int i = 0; i < c->argument_count; i++) {
            if (c->argument_count > 1) cli_timing("model", "%s", c->arguments[i]);
            cli_timing("load", "%.3f s", loads[i]);
            cli_timing_rate("prefill", results[i].tokens, results[i].seconds);
        }
        cli_timing_end(c, false);
    }
    free(loads);
    free(results);
    free(names);
    return status;
}

const struct cli_command cli_eval = {
    .name = "eval",
    .arguments = "MODEL...",
    .summary = "scores models on text: bits per byte",
    .text = "Reads each document from a fresh state, predicting every token from those before "
            "it, in constant memory whatever the\n"
            "length. The number is the same for any --split, thread count and backend.",
    .min_arguments = 1,
    .max_arguments = INT_MAX,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .run = run_eval};
