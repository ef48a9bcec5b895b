/*
 * The command line: every line of the input is a word of it. Parsed as the command does; nothing runs. What is refused
 * is refused in lines that begin with "chimera: " and hold nothing that a terminal would obey.
 */
#include "cli.h"
#include "fuzz.h"

enum { MOST = 40 };

static void check_sentences(const char *text, size_t bytes) {
    CHECK(bytes > 0 && text[bytes - 1] == '\n');
    for (const char *line = text; *line; line = strchr(line, '\n') + 1) CHECK(strncmp(line, "chimera: ", 9) == 0);
    for (size_t i = 0; i < bytes; i++) CHECK((unsigned char)text[i] >= 0x20 || text[i] == '\n' || text[i] == '\t');
}

static void check_values(const struct cli *c) {
    const struct cli_command *k = c->command;
    CHECK(k->run != NULL);
    CHECK(c->argument_count >= k->min_arguments && c->argument_count <= k->max_arguments);
    for (size_t i = 0; i < k->option_count + cli_global_count; i++) {
        const struct cli_option *o = i < k->option_count ? &k->options[i] : &cli_global_options[i - k->option_count];
        const struct cli_value *v = i < k->option_count ? &c->values[i] : &c->global[i - k->option_count];
        CHECK(cli_get(c, o->name)->given || !v->given);
        CHECK(!o->required || v->given);
        if (!v->given) continue;
        const double number = o->type == CLI_REAL ? v->real : (double)v->integer;
        if (o->type == CLI_INT || o->type == CLI_TOKENS || o->type == CLI_REAL)
            CHECK(number >= o->min && (o->max <= o->min || number <= o->max));
        if (o->type == CLI_REPEAT || o->type == CLI_FILES) CHECK(v->count > 0 && v->items[v->count - 1] != NULL);
        if (o->type == CLI_CHOICE) CHECK(v->integer >= 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char *text = chm_format("%.*s", (int)bytes, (const char *)data), *rest = text, *word;
    char *argv[MOST + 2] = {(char[]){"chimera"}};
    int argc = 1;
    CHECK(text != NULL);
    while (argc <= MOST && (word = strsep(&rest, "\n"))) argv[argc++] = word;

    char *said = NULL, *printed = NULL;
    size_t said_bytes = 0, printed_bytes = 0;
    FILE *out = stdout, *error = stderr;
    struct cli c;
    stdout = open_memstream(&printed, &printed_bytes);
    stderr = open_memstream(&said, &said_bytes);
    CHECK(stdout && stderr);
    const int status = cli_parse(&c, argc, argv);
    fclose(stdout);
    fclose(stderr);
    stdout = out;
    stderr = error;

    if (status == CHM_OK) {
        CHECK(said_bytes == 0 && printed_bytes == 0);
        check_values(&c);
    } else if (status == -1) { /* help */
        CHECK(said_bytes == 0 && printed_bytes > 0);
    } else {
        CHECK(status == CHM_E_CONFIG && printed_bytes == 0);
        if (c.command) check_sentences(said, said_bytes);
    }
    cli_finish(&c);
    free(said);
    free(printed);
    free(text);
    return 0;
}

static const char *const seeds[] = {
    "train\ncard.json\n--data\na.txt\nb.txt\n--tokens\n4M\n--out\nrun",
    "run\nmodel.b158\n-p\nOnce\n-n\n500\n--temp=0.8\n--top-p\n0.95\n--seed\n18446744073709551615\n-q",
    "eval\nm.b158\n--data\nx\n--\n-y\n--threads=2\n--cpu-mask\navx512",
    "plugins\nlist\nlayer\n-o\njson\n-v",
    "tokenizer\ntrain\n--data\nx\n--out\ny\n--vocab\n8K\n--method\nbpe",
    "layer\ntest\ngd\n--rows\n77\n--set\ngd.chunk_size=64",
    "help\ntrain\n-h",
    "--version",
    NULL,
};
static const char *const words[] = {
    "\n",     "\n--",  "--",         "-",      "=",       "K",        "9223372036854775807",
    "-1",     "1e400", "nan",        "0x10",   "\x1b[2J", "\n-h\n",   "--help",
    "--set",  "--ini", "--threads",  "--temp", "--top-k", "--seed",   "-n",
    "-p",     "-o",    "md",         "csv|",   "train",   "bench",    "inspect",
    "doctor", "check", "completion", "bash",   "\xff",    "\xc3\xa9", NULL};
static const struct fuzz fuzz = {.seeds = seeds, .words = words, .runs = 50000};
