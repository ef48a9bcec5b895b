/* tokenizer.c: chimera tokenizer train, encode, decode, show. */
#include "cli.h"
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TYPE_OPTION                                                                                                    \
    {                                                                                                                  \
        .name = "type", .type = CLI_TEXT, .value = "TYPE",                                                             \
        .doc = "the tokenizer plugin that reads the file; else its first bytes say"                                    \
    }

const struct cli_command cli_tokenizer = {
    .name = "tokenizer",
    .arguments = "",
    .summary = "trains a tokenizer, or turns text into tokens and back",
    .text = "TOKENIZER is a card, a model, a tokenizer's own file (a sentencepiece model, a rank file of o200k), or a "
            "name:\n"
            "bytes. FILE may be -, standard input. In text the names of specials are text unless --specials asks for "
            "their ids.",
    .reports_only = true};

/* ---- encode ---- */

struct ids_out {
    bool raw;
    int on_line;
};

static int put_ids(void *user, const int32_t *ids, int64_t n) {
    struct ids_out *o = user;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t id = (uint32_t)ids[i];
        if (o->raw) {
            const unsigned char bytes[4] = {(unsigned char)id, (unsigned char)(id >> 8), (unsigned char)(id >> 16),
                                            (unsigned char)(id >> 24)};
            fwrite(bytes, 1, sizeof(bytes), stdout);
        } else {
            printf("%s%u", o->on_line ? " " : "", (unsigned)id);
            if (++o->on_line == 16) {
                putchar('\n');
                o->on_line = 0;
            }
        }
    }
    return cli_stop || ferror(stdout);
}

static FILE *open_input(const struct cli *c, const char *path) {
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (file == NULL) cli_fail(CHM_E_DATA, "tokenizer %s: %s: %s", c->arguments[0], path, strerror(errno));
    return file;
}

static int encode(struct cli *c, const chm_tokenizer *t, FILE *in, const char *path) {
    struct ids_out out = {.raw = cli_get(c, "raw")->given};
    int status = chm_tokenizer_encode(t, in, path, cli_get(c, "specials")->given, put_ids, &out);
    if (out.on_line) putchar('\n');
    if (status == CHM_E_INTERRUPTED && !cli_stop) status = CHM_OK; /* the output failed, and says so at the end */
    return cli_report(status);
}

/* ---- decode ---- */

static int put_text(void *user, const void *text, size_t bytes) {
    (void)user;
    fwrite(text, 1, bytes, stdout);
    return cli_stop || ferror(stdout);
}

/* The next id: 1, 0 at the end, -1 with a sentence. */
static int next_id(FILE *in, const char *path, bool raw, int64_t at, int32_t *id) {
    if (raw) {
        unsigned char bytes[4];
        const size_t n = fread(bytes, 1, sizeof(bytes), in);
        if (n == 0) return 0;
        if (n < sizeof(bytes)) {
            cli_fail(CHM_E_DATA, "%s: ends inside token %lld: raw ids have 4 bytes each", path, (long long)at);
            return -1;
        }
        const uint32_t value = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
        *id = value > INT32_MAX ? -1 : (int32_t)value;
        return 1;
    }
    char word[24];
    if (fscanf(in, "%23s", word) != 1) return 0;
    const int next = ungetc(getc(in), in); /* more of the word: it is too long for a number */
    char *end = NULL;
    const long value = strtol(word, &end, 10);
    if (*end || value < 0 || value > INT32_MAX || (next != EOF && !isspace(next))) {
        cli_fail(CHM_E_DATA, "%s: token %lld is '%s': ids are whole numbers with spaces between them (or --raw)", path,
                 (long long)at, word);
        return -1;
    }
    *id = (int32_t)value;
    return 1;
}

static int decode(struct cli *c, const chm_tokenizer *t, FILE *in, const char *path) {
    const bool raw = cli_get(c, "raw")->given, specials = cli_get(c, "specials")->given;
    int32_t id = 0;
    int more;
    int64_t at = 0;
    while ((more = next_id(in, path, raw, at, &id)) > 0) {
        const int status = chm_tokenizer_decode(t, &id, 1, at == 0, specials, put_text, NULL);
        if (status == CHM_E_INTERRUPTED) return cli_stop ? cli_report(status) : CHM_OK;
        if (status != CHM_OK) return cli_report(status);
        at++;
    }
    if (ferror(in)) return cli_fail(CHM_E_DATA, "%s: %s", path, errno ? strerror(errno) : "cannot be read");
    return more < 0 ? CHM_E_DATA : CHM_OK;
}

/* Makes the tokenizer of the first argument, opens the second when there is one, and lets `work` do its part. */
static int with_tokenizer(struct cli *c,
                          int (*work)(struct cli *c, const chm_tokenizer *t, FILE *in, const char *path)) {
    const chm_overlay overlay = cli_overlay(c);
    const char *path = c->argument_count > 1 ? c->arguments[1] : NULL;
    chm_tokenizer *t = NULL;
    FILE *in = NULL;
    if (path != NULL && (in = open_input(c, path)) == NULL) return CHM_E_DATA;
    int status = cli_report(chm_tokenizer_create(c->runtime, c->arguments[0], cli_get(c, "type")->text, &overlay, &t));
    if (status == CHM_OK) {
        cli_catch_interrupts();
        status = work(c, t, in, path);
    }
    chm_tokenizer_destroy(t);
    if (in != NULL && in != stdin) fclose(in);
    return status;
}

/* ---- the commands ---- */

static const struct cli_option train_options[] = {
    {.name = "data",
     .type = CLI_FILES,
     .value = "FILE",
     .doc = "text to learn the tokens of; several, repeatable",
     .required = true},
    {.name = "out", .type = CLI_TEXT, .value = "FILE", .doc = "where the tokenizer goes", .required = true},
    {.name = "vocab",
     .type = CLI_INT,
     .value = "N",
     .min = 2,
     .max = 1 << 24,
     .unit = "ids",
     .doc = "size of the vocabulary, specials included",
     .required = true},
    {.name = "method", .type = CLI_CHOICE, .value = "METHOD", .choices = "bpe|unigram", .doc = "what is learnt"},
    {.name = "type", .type = CLI_TEXT, .value = "TYPE", .doc = "the tokenizer plugin that learns (sentencepiece)"},
};

static const struct cli_example train_examples[] = {
    {"chimera tokenizer train --data book.txt --vocab 4096 --out book.model", "learns one from text"},
};

static int run_train(struct cli *c) {
    const struct cli_value *data = cli_get(c, "data");
    const chm_tokenizer_train_options o = {.size = sizeof(o),
                                           .data_count = data->count,
                                           .data = data->items,
                                           .out = cli_get(c, "out")->text,
                                           .type = cli_get(c, "type")->text,
                                           .method = cli_get(c, "method")->text,
                                           .vocab = (int32_t)cli_get(c, "vocab")->integer};
    const int status = chm_tokenizer_train(c->runtime, &o);
    if (status == CHM_OK) cli_message(c, "wrote %s; chimera tokenizer show %s says what a card needs", o.out, o.out);
    return cli_report(status);
}

const struct cli_command cli_tokenizer_train = {.name = "tokenizer train",
                                                .arguments = "",
                                                .summary = "learns a tokenizer from text",
                                                .options = train_options,
                                                .option_count = CLI_COUNT_OF(train_options),
                                                .examples = train_examples,
                                                .example_count = CLI_COUNT_OF(train_examples),
                                                .reports_only = true,
                                                .run = run_train};

static const struct cli_option encode_options[] = {
    {.name = "specials", .type = CLI_FLAG, .doc = "names of specials in the text become their ids"},
    {.name = "raw", .type = CLI_FLAG, .doc = "ids as little-endian 32-bit numbers"},
    TYPE_OPTION,
    CLI_OVERLAY_OPTIONS,
};

static const struct cli_example encode_examples[] = {
    {"chimera tokenizer encode book.model letter.txt | chimera tokenizer decode book.model -", "there and back"},
    {"chimera tokenizer encode card.json -", "the tokenizer of a card or model, on standard input"},
};

static int run_encode(struct cli *c) { return with_tokenizer(c, encode); }

const struct cli_command cli_tokenizer_encode = {.name = "tokenizer encode",
                                                 .arguments = "TOKENIZER FILE",
                                                 .summary = "turns text into ids: one list, 16 a line",
                                                 .min_arguments = 2,
                                                 .max_arguments = 2,
                                                 .options = encode_options,
                                                 .option_count = CLI_COUNT_OF(encode_options),
                                                 .examples = encode_examples,
                                                 .example_count = CLI_COUNT_OF(encode_examples),
                                                 .reports_only = true,
                                                 .run = run_encode};

static const struct cli_option decode_options[] = {
    {.name = "specials", .type = CLI_FLAG, .doc = "write the names of specials"},
    {.name = "raw", .type = CLI_FLAG, .doc = "ids as little-endian 32-bit numbers"},
    TYPE_OPTION,
    CLI_OVERLAY_OPTIONS,
};

static const struct cli_example decode_examples[] = {
    {"chimera tokenizer decode book.model ids.txt", "the text again"},
};

static int run_decode(struct cli *c) { return with_tokenizer(c, decode); }

const struct cli_command cli_tokenizer_decode = {.name = "tokenizer decode",
                                                 .arguments = "TOKENIZER FILE",
                                                 .summary = "turns ids into text",
                                                 .min_arguments = 2,
                                                 .max_arguments = 2,
                                                 .options = decode_options,
                                                 .option_count = CLI_COUNT_OF(decode_options),
                                                 .examples = decode_examples,
                                                 .example_count = CLI_COUNT_OF(decode_examples),
                                                 .reports_only = true,
                                                 .run = run_decode};

static const struct cli_option show_options[] = {
    {.name = "data", .type = CLI_FILES, .value = "FILE", .doc = "text to count the tokens of; several, repeatable"},
    TYPE_OPTION,
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example show_examples[] = {
    {"chimera tokenizer show book.model --data book.txt", "its specials, what a card needs, bytes per token"},
};

static int show(struct cli *c, const chm_tokenizer *t, FILE *in, const char *path) {
    const struct cli_value *data = cli_get(c, "data");
    (void)in, (void)path;
    return cli_report(chm_tokenizer_show(t, data->items, data->count, cli_format(c), stdout));
}

static int run_show(struct cli *c) { return with_tokenizer(c, show); }

const struct cli_command cli_tokenizer_show = {.name = "tokenizer show",
                                               .arguments = "TOKENIZER",
                                               .summary = "shows a tokenizer: specials, hash, what a card needs",
                                               .text = "csv has one table: the files of --data, or without them the "
                                                       "specials.",
                                               .min_arguments = 1,
                                               .max_arguments = 1,
                                               .options = show_options,
                                               .option_count = CLI_COUNT_OF(show_options),
                                               .examples = show_examples,
                                               .example_count = CLI_COUNT_OF(show_examples),
                                               .reports_only = true,
                                               .run = run_show};
