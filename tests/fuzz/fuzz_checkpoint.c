/*
 * Resuming a run (core/train/checkpoint.c) from a checkpoint of arbitrary bytes whose own hash is right: a step is
 * trained from what was accepted.
 */
#include "runtime.h"
#include "mend.h"
#include "model/b158.h"

#include <chimera/chimera.h>

static char folder[64], *card_path, *data_path, *run_path;
static volatile int stop;

static void clean_up(void) { fuzz_folder_gone(folder); }

static void prepare(void) {
    static const char text[] = "A checkpoint is all that a run needs to go on, and nothing else of it is kept.\n";
    if (folder[0]) return;
    fuzz_folder(folder);
    atexit(clean_up);
    card_path = fuzz_write_in(folder, "card.json", fuzz_card(0), strlen(fuzz_card(0)));
    data_path = fuzz_write_in(folder, "data.txt", text, strlen(text));
    run_path = chm_format("%s/run", folder);
    CHECK(run_path != NULL);
}

/* One report is one step. */
static void report(void *user, const chm_progress *p) {
    (void)user;
    if (!p->message) stop = 1;
}

static int train(bool resume, bool whole) {
    static const char *data[1];
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1};
    const chm_train_options options = {.size = sizeof options,
                                       .card = card_path,
                                       .overlay = &overlay,
                                       .data_count = 1,
                                       .data = data,
                                       .out = run_path,
                                       .resume = resume,
                                       .progress = report,
                                       .stop = whole ? NULL : &stop};
    data[0] = data_path;
    stop = 0;
    return chm_train(fuzz_runtime(), &options, NULL);
}

static void mend_checkpoint(chm_string *file) {
    chm_safetensors *s = NULL;
    uint64_t hash = 0;
    if (chm_safetensors_parse("fuzz", (const uint8_t *)file->text, file->length, &s)) return;
    for (int i = 0; i < s->count; i++)
        if (!chm_b158_is_padding(s->tensor[i].name))
            hash = chm_hash64_seed(s->tensor[i].data, s->tensor[i].bytes, hash);
    for (int i = 0; i < s->metas; i++) {
        if (strcmp(s->meta_key[i], "hash") == 0) continue;
        hash = chm_hash64_seed(s->meta_key[i], strlen(s->meta_key[i]) + 1, hash);
        hash = chm_hash64_seed(s->meta_value[i], strlen(s->meta_value[i]) + 1, hash);
    }
    chm_safetensors_destroy(s);
    mend_hash(file, "hash", hash);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static char log_text[4000]; /* as long as a log may be that is cut back; what is in it is not read */
    chm_string mended = {0};
    prepare();
    CHECK(chm_make_directory(run_path) == CHM_OK);
    if (mend_header(data, bytes, &mended))
        mend_checkpoint(&mended);
    else
        chm_string_add_bytes(&mended, data, bytes);
    chm_free(fuzz_write_in(run_path, "checkpoint.safetensors", mended.text ? mended.text : "", mended.length));
    chm_free(fuzz_write_in(run_path, "log.jsonl", log_text, sizeof log_text));
    const int status = train(true, false);
    CHECK(status == CHM_OK || status == CHM_E_INTERRUPTED || status == CHM_E_DATA || status == CHM_E_CONFIG ||
          status == CHM_E_VERDICT);
    CHECK(status == CHM_OK || chm_error()[0]);
    chm_string_finish(&mended);
    return 0;
}

/* A run after its first step, and one that has ended. */
static bool make(size_t i, chm_string *seed) {
    static chm_string kept[2];
    if (i > 1) return false;
    prepare();
    if (!kept[i].length) {
        char *path = chm_format("%s/checkpoint.safetensors", run_path), *text = NULL;
        size_t bytes = 0;
        CHECK(train(i > 0, i > 0) == (i ? CHM_OK : CHM_E_INTERRUPTED));
        CHECK(chm_read_file(path, 1 << 24, &text, &bytes) == CHM_OK);
        chm_string_add_bytes(&kept[i], text, bytes);
        chm_free(text);
        chm_free(path);
    }
    chm_string_add_bytes(seed, kept[i].text, kept[i].length);
    return true;
}

static const char *const words[] = {"{",         "}",         ",",
                                    ":",         "\"",        "0",
                                    "-1",        "3",         "9223372036854775807",
                                    "0x1p+1023", "nan",       "-inf",
                                    "1e400",     "\"F32\"",   "\"I64\"",
                                    "value/",    "adam_m/",   "adam_v/",
                                    "stream/",   "position",  "step",
                                    "steps",     "settled",   "applied",
                                    "skipped",   "log_bytes", "loss",
                                    "seconds",   "rate",      "budget",
                                    "closing",   "schema",    "chimera-checkpoint-2",
                                    NULL};
static const struct fuzz fuzz = {.make = make, .words = words, .runs = 300};
