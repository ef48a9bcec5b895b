/* tokenizer.c: chimera tokenizer train, encode, decode, show. */
#include "cli.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct cli_option options[] = {
    {.name = "data",
     .type = CLI_FILES,
     .value = "FILE",
     .doc = "train: text to learn from; show: text to count tokens of; several, repeatable"},
    {.name = "out", .type = CLI_TEXT, .value = "FILE", .doc = "train: where the tokenizer goes"},
    {.name = "vocab",
     .type = CLI_INT,
     .value = "N",
     .min = 2,
     .max = 1 << 24,
     .unit = "ids",
     .doc = "train: ids, specials included"},
    {.name = "method", .type = CLI_CHOICE, .value = "METHOD", .choices = "bpe|unigram", .doc = "train: what is learnt"},
    {.name = "type",
     .type = CLI_TEXT,
     .value = "NAME",
     .doc = "the tokenizer plugin that reads the file; else its first bytes say"},
    {.name = "specials",
     .type = CLI_FLAG,
     .doc = "encode: names of specials become their ids; decode: they are written"},
    {.name = "raw", .type = CLI_FLAG, .doc = "encode, decode: ids as little-endian 32-bit numbers"},
    CLI_OVERLAY_OPTIONS,
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera tokenizer train --data book.txt --vocab 4096 --out book.model", "learns one from text"},
    {"chimera tokenizer show book.model --data book.txt", "its specials, what a card needs, bytes per token"},
    {"chimera tokenizer encode book.model letter.txt | chimera tokenizer decode book.model -", "there and back"},
    {"chimera tokenizer encode card.json -", "the tokenizer of a card or model, on standard input"},
};

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
    char *end = NULL;
    const long value = strtol(word, &end, 10);
    if (*end || value < 0 || value > INT32_MAX) {
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

/* ---- the verb ---- */

static int train(struct cli *c) {
    const struct cli_value *data = cli_get(c, "data"), *out = cli_get(c, "out"), *vocab = cli_get(c, "vocab");
    if (!data->given || !out->given || !vocab->given)
        return cli_fail(CHM_E_CONFIG, "tokenizer train: --data FILE..., --vocab N and --out FILE are all needed");
    if (c->argument_count > 1)
        return cli_fail(CHM_E_CONFIG, "tokenizer train: '%s' is one argument too many; text is named by --data",
                        c->arguments[1]);
    const chm_tokenizer_train_options o = {.size = sizeof(o),
                                           .data_count = data->count,
                                           .data = data->items,
                                           .out = out->text,
                                           .type = cli_get(c, "type")->text,
                                           .method = cli_get(c, "method")->text,
                                           .vocab = (int32_t)vocab->integer};
    const int status = chm_tokenizer_train(c->runtime, &o);
    if (status == CHM_OK) cli_message(c, "wrote %s; chimera tokenizer show %s says what a card needs", o.out, o.out);
    return cli_report(status);
}

enum verb { TRAIN, ENCODE, DECODE, SHOW, VERBS };
static const char *const verb_name[] = {"train", "encode", "decode", "show"};

static int run_tokenizer(struct cli *c) {
    static const struct {
        const char *option;
        unsigned verbs;
    } belongs[] = {{"data", 1u << TRAIN | 1u << SHOW},
                   {"out", 1u << TRAIN},
                   {"vocab", 1u << TRAIN},
                   {"method", 1u << TRAIN},
                   {"specials", 1u << ENCODE | 1u << DECODE},
                   {"raw", 1u << ENCODE | 1u << DECODE},
                   {"output", 1u << SHOW}};
    int verb = 0;
    while (verb < VERBS && strcmp(c->arguments[0], verb_name[verb]) != 0) verb++;
    if (verb == VERBS)
        return cli_fail(CHM_E_CONFIG, "tokenizer: no '%s': there are train, encode, decode and show", c->arguments[0]);
    for (size_t i = 0; i < CLI_COUNT_OF(belongs); i++)
        if (cli_get(c, belongs[i].option)->given && !(belongs[i].verbs >> verb & 1))
            return cli_fail(CHM_E_CONFIG, "tokenizer %s takes no --%s", verb_name[verb], belongs[i].option);
    if (verb == TRAIN) return train(c);
    const int wanted = verb == SHOW ? 2 : 3;
    if (c->argument_count != wanted)
        return cli_fail(CHM_E_CONFIG, "tokenizer %s: usage: chimera tokenizer %s TOKENIZER%s", verb_name[verb],
                        verb_name[verb], verb == SHOW ? " [--data FILE...]" : " FILE (- is standard input)");
    const chm_overlay overlay = cli_overlay(c);
    chm_tokenizer *t = NULL;
    FILE *in = NULL;
    int status = CHM_OK;
    if (verb != SHOW && (in = open_input(c, c->arguments[2])) == NULL) return CHM_E_DATA;
    status = chm_tokenizer_create(c->runtime, c->arguments[1], cli_get(c, "type")->text, &overlay, &t);
    if (cli_report(status) != CHM_OK) goto out;
    cli_catch_interrupts();
    if (verb == ENCODE) {
        status = encode(c, t, in, c->arguments[2]);
    } else if (verb == DECODE) {
        status = decode(c, t, in, c->arguments[2]);
    } else {
        const struct cli_value *data = cli_get(c, "data");
        status = cli_report(chm_tokenizer_show(t, data->items, data->count, cli_format(c), stdout));
    }
out:
    chm_tokenizer_destroy(t);
    if (in != NULL && in != stdin) fclose(in);
    return status;
}

const struct cli_command cli_tokenizer = {
    .name = "tokenizer",
    .arguments = "train | encode TOKENIZER FILE | decode TOKENIZER FILE | show TOKENIZER",
    .summary = "trains a tokenizer, or turns text into tokens and back",
    .text =
        "TOKENIZER is a card, a model, a tokenizer's own file (a sentencepiece model, a rank file of o200k), or a "
        "name:\n"
        "bytes. FILE may be -, standard input. What encode writes is one list of ids, 16 a line. In text the names of\n"
        "specials are text unless --specials asks for their ids.",
    .min_arguments = 1,
    .max_arguments = 3,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .reports_only = true,
    .run = run_tokenizer};
