/* data.c: chimera data mqar, parity, majority. */
#include "cli.h"

const struct cli_command cli_data = {
    .name = "data",
    .arguments = "",
    .summary = "writes synthetic tasks as text, to train and score layers on",
    .text = "A document is a line, and the byte behind each '=' is an answer: train and score on such files with\n"
            "--set training.documents=line --set training.loss_on=answers. A document is a function of the options, "
            "the seed\n"
            "and its number: a longer file begins with the shorter ones, and another seed gives other documents.",
    .no_runtime = true};

#define DATA_OPTIONS(what, least_, most_)                                                                              \
    {.name = "out", .letter = 'o', .type = CLI_TEXT, .value = "FILE", .doc = "the text to write", .required = true},   \
        {.name = "documents",                                                                                          \
         .type = CLI_TOKENS,                                                                                           \
         .value = "N",                                                                                                 \
         .min = 1,                                                                                                     \
         .max = CHM_TASK_DOCUMENTS_MAX,                                                                                \
         .unit = "documents",                                                                                          \
         .doc = "how many lines (10000)"},                                                                             \
        {.name = "least",                                                                                              \
         .type = CLI_INT,                                                                                              \
         .value = "N",                                                                                                 \
         .min = 1,                                                                                                     \
         .max = CHM_TASK_LENGTH_MAX,                                                                                   \
         .unit = what,                                                                                                 \
         .doc = "fewest " what " of a document (" least_ ")"},                                                         \
        {.name = "most",                                                                                               \
         .type = CLI_INT,                                                                                              \
         .value = "N",                                                                                                 \
         .min = 1,                                                                                                     \
         .max = CHM_TASK_LENGTH_MAX,                                                                                   \
         .unit = what,                                                                                                 \
         .doc = "most " what " of a document (" most_ ")"},                                                            \
    {                                                                                                                  \
        .name = "seed", .type = CLI_SEED, .value = "N", .doc = "seed of the documents (0)"                             \
    }

static int64_t or_else(const struct cli *c, const char *name, int64_t otherwise) {
    const struct cli_value *v = cli_get(c, name);
    return v->given ? v->integer : otherwise;
}

/* The options that every task has. With one end of the lengths given the other follows it where it must. */
static chm_task_options common(const struct cli *c, chm_task task, int64_t least, int64_t most) {
    chm_task_options o = {.size = sizeof(o),
                          .task = task,
                          .out = cli_get(c, "out")->text,
                          .seed = cli_get(c, "seed")->seed,
                          .documents = or_else(c, "documents", 10000),
                          .least = or_else(c, "least", least),
                          .most = or_else(c, "most", most),
                          .stop = &cli_stop};
    if (!cli_get(c, "most")->given && o.most < o.least) o.most = o.least;
    if (!cli_get(c, "least")->given && o.least > o.most) o.least = o.most;
    return o;
}

static int write_task(const struct cli *c, const chm_task_options *o) {
    cli_catch_interrupts();
    const int status = chm_task_write(o);
    if (status == CHM_OK)
        cli_message(c, "wrote %s: %lld document%s", o->out, (long long)o->documents, o->documents == 1 ? "" : "s");
    return cli_report(status);
}

/* ---- mqar ---- */

static const struct cli_option mqar_options[] = {
    DATA_OPTIONS("bindings", "16", "32"),
    {.name = "rebound",
     .type = CLI_REAL,
     .value = "SHARE",
     .min = 0,
     .max = 1,
     .doc = "share of the bindings whose key was bound before (0.5)"},
    {.name = "queries",
     .type = CLI_INT,
     .value = "N",
     .min = 1,
     .max = CHM_TASK_ALPHABET,
     .unit = "queries",
     .doc = "keys asked for at the end of a document, each once (4)"},
    {.name = "alphabet",
     .type = CLI_INT,
     .value = "N",
     .min = 2,
     .max = CHM_TASK_ALPHABET,
     .unit = "letters",
     .doc = "keys, small letters, and as many values, capitals (26)"},
};

static const struct cli_example mqar_examples[] = {
    {"chimera data mqar --documents 100K --seed 1 -o mqar.txt", "recall of keys, half of whose bindings replace one"},
    {"chimera data mqar --rebound 0 --most 16 -o recall.txt", "the same without anything to forget"},
};

static int run_mqar(struct cli *c) {
    chm_task_options o = common(c, CHM_TASK_MQAR, 16, 32);
    o.rebound = cli_get(c, "rebound")->given ? cli_get(c, "rebound")->real : 0.5;
    o.queries = or_else(c, "queries", 4);
    o.alphabet = or_else(c, "alphabet", CHM_TASK_ALPHABET);
    return write_task(c, &o);
}

const struct cli_command cli_data_mqar = {
    .name = "data mqar",
    .arguments = "",
    .summary = "associative recall: keys bound to values, some again, and asked for at the end",
    .text = "aQbRaS b=Ra=S: 'a' was bound to Q, then to S; the latest binding is the answer (arXiv:2312.04927).",
    .options = mqar_options,
    .option_count = CLI_COUNT_OF(mqar_options),
    .examples = mqar_examples,
    .example_count = CLI_COUNT_OF(mqar_examples),
    .no_runtime = true,
    .run = run_mqar};

/* ---- parity ---- */

static const struct cli_option parity_options[] = {DATA_OPTIONS("bits", "1", "40")};

static const struct cli_example parity_examples[] = {
    {"chimera data parity --documents 200K --seed 1 -o parity.txt", "to train on: up to 40 bits"},
    {"chimera data parity --least 41 --most 256 --documents 1K --seed 2 -o longer.txt", "to score on: longer ones"},
};

static int run_parity(struct cli *c) {
    const chm_task_options o = common(c, CHM_TASK_PARITY, 1, 40);
    return write_task(c, &o);
}

const struct cli_command cli_data_parity = {.name = "data parity",
                                            .arguments = "",
                                            .summary = "bits, and whether the number of ones is odd: 0110101=0",
                                            .options = parity_options,
                                            .option_count = CLI_COUNT_OF(parity_options),
                                            .examples = parity_examples,
                                            .example_count = CLI_COUNT_OF(parity_examples),
                                            .no_runtime = true,
                                            .run = run_parity};

/* ---- majority ---- */

static const struct cli_option majority_options[] = {DATA_OPTIONS("bits", "1", "64")};

static const struct cli_example majority_examples[] = {
    {"chimera data majority --documents 200K --seed 1 -o majority.txt", "to train on: up to 64 bits"},
};

static int run_majority(struct cli *c) {
    const chm_task_options o = common(c, CHM_TASK_MAJORITY, 1, 64);
    return write_task(c, &o);
}

const struct cli_command cli_data_majority = {
    .name = "data majority",
    .arguments = "",
    .summary = "bits, and whether more of them are ones than zeros, never as many: 0110101=1",
    .options = majority_options,
    .option_count = CLI_COUNT_OF(majority_options),
    .examples = majority_examples,
    .example_count = CLI_COUNT_OF(majority_examples),
    .no_runtime = true,
    .run = run_majority};
