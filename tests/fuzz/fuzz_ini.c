/* The ini reader on arbitrary bytes, and what it reads laid over a card. */
#include "config/card.h"
#include "config/ini.h"
#include "fuzz.h"

static const char card_text[] = "{\"hidden_size\": 64, \"intermediate_size\": 128, \"num_hidden_layers\": 6,"
                                "\"num_heads\": 2, \"head_dim\": 32, \"vocab_size\": 258, \"efla\": {},"
                                "\"modes\": {\"fast\": {\"loops\": 1}},"
                                "\"backbone\": {\"layer_pattern\": \"GD\", \"layer_aliases\": {\"XM\": \"xlstm\"}},"
                                "\"training\": {\"phases\": [{\"name\": \"pretrain\"}, {\"name\": \"sft\"}]}}";

enum { MOST = 64 };

struct entries {
    char *set[MOST];
    size_t count, bytes;
    int line;
};

static int keep(void *user, const char *section, const char *key, const char *value, int line) {
    struct entries *e = user;
    if (line < 1 || line < e->line || !section || !key || !value) abort();
    e->line = line;
    e->bytes += strlen(section) + strlen(key) + strlen(value);
    if (e->count == MOST) return CHM_OK;
    e->set[e->count] = chm_format("%s%s%s=%s", section, section[0] ? "." : "", key, value);
    if (!e->set[e->count++]) abort();
    return CHM_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct entries e = {0};
    int status = chm_ini_parse("fuzz", (const char *)data, bytes, keep, &e);
    if (status && (status != CHM_E_CONFIG || strncmp(chm_error(), "fuzz:", 5) != 0)) abort();
    if (e.count > 0) {
        chm_registry registry = {0};
        struct chm_card_options options = {
            .registry = &registry, .set = (const char *const *)e.set, .set_count = e.count};
        chm_card *card = NULL;
        status = chm_card_parse("card", card_text, sizeof card_text - 1, &options, &card);
        if (status && (card || status != CHM_E_CONFIG)) abort();
        char *json = card ? chm_card_json(card) : NULL;
        if (card && !json) abort();
        chm_free(json);
        chm_card_destroy(card);
    }
    for (size_t i = 0; i < e.count; i++) chm_free(e.set[i]);
    return 0;
}

static const char *const seeds[] = {
    "; comment\n[training.pretrain]\nlr = 0.5 ; inline\nschedule: wsd\ntokens = 20M\n",
    "hidden_size = 64\n[backbone]\nlayer_pattern = GD XM\nlayer_aliases.NEW = gd\n[efla]\nenabled=false\n",
    "# x\r\n  [quantization]\r\n  weight_values = [-1, 0, 1]\r\n  embedding = \"int8\"\r\n[modes.fast]\r\nloops=2",
    "training.phases[0].lr = 1e-3\ntraining.phases.1.epochs = 2\ntoken_ids = 256, 257\n",
    NULL,
};
static const char *const words[] = {"[",   "]",   "=",      ":",        ";",    " ;",           "#", "\n", "\r",
                                    ".",   "..",  "\"",     "[]",       "\xff", "\xc3\xa9",     "§", "4M", "true",
                                    "[1,", "1e9", "[gd]\n", "_v = 1\n", "\t",   "[training]\n", NULL};
static const struct fuzz fuzz = {.seeds = seeds, .words = words, .runs = 5000};
