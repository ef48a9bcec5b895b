/* What is laid over a card: each line is a --set, or a variable of the environment when it begins with CHIMERA_. */
#include "config/card.h"
#include "fuzz.h"

enum { MOST = 64 };

static const char card_text[] = "{\"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 6,"
                                "\"num_heads\": 2, \"head_dim\": 32, \"vocab_size\": 258, \"efla\": {},"
                                "\"modes\": {\"fast\": {\"loops\": 1}},"
                                "\"backbone\": {\"layer_pattern\": \"GD\", \"layer_aliases\": {\"XM\": \"xlstm\"}},"
                                "\"training\": {\"phases\": [{\"name\": \"pretrain\"}, {\"name\": \"sft\"}]}}";

extern char **environ;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static char *variable[MOST + 1]; /* the environment while it is read */
    const char *set[MOST];
    size_t sets = 0, variables = 0;
    char *text = chm_format("%.*s", (int)bytes, (const char *)data), *rest = text, *line;
    if (!text) abort();
    while ((line = strsep(&rest, "\n")) && sets + variables < MOST)
        if (strncmp(line, "CHIMERA_", 8) == 0)
            variable[variables++] = line;
        else
            set[sets++] = line;
    variable[variables] = NULL;

    chm_registry registry = {0};
    const struct chm_card_options options = {
        .registry = &registry, .read_environment = true, .set = set, .set_count = sets};
    char **before = environ;
    chm_card *card = NULL;
    environ = variable;
    const int status = chm_card_parse("card", card_text, sizeof card_text - 1, &options, &card);
    environ = before;
    if (status && (card || status != CHM_E_CONFIG || !chm_error()[0])) abort();
    if (card) {
        /* what was accepted is a card by itself */
        const struct chm_card_options plain = {.registry = &registry};
        chm_card *again = NULL;
        char *json = chm_card_json(card);
        if (!json || chm_card_parse("again", json, strlen(json), &plain, &again)) {
            fprintf(stderr, "%s\n", chm_error());
            abort();
        }
        chm_free(json);
        chm_card_destroy(again);
    }
    chm_card_destroy(card);
    chm_free(text);
    return 0;
}

static const char *const seeds[] = {
    "training.phases[0].lr=1e-3\ntraining.phases.pretrain.epochs=2\nbackbone.layer_aliases.NEW=gd",
    "CHIMERA_HIDDEN_SIZE=64\nCHIMERA_BACKBONE__LAYER_PATTERN=GD XM\nCHIMERA_THREADS=3\nCHIMERA_TEST_X=1",
    "token_ids=[256, 257]\nefla.enabled=false\nquantization.weight_values=[-1,0,1]",
    "modes.fast.loops=2\nCHIMERA_MODES__FAST__LOOPS=3\nvocab_size=300",
    NULL,
};
static const char *const words[] = {"=",    ".",   "..",   "[0]", "[",        "]",   "\n",   "CHIMERA_", "__",
                                    "_",    "0",   "\xff", "§",   "\xc3\xa9", "4M",  "true", "null",     "\"",
                                    "[1, ", "1e9", "gd.",  "gd",  "training", "-1.", NULL};
static const struct fuzz fuzz = {.seeds = seeds, .words = words, .runs = 5000};
