/*
 * Models (.b158) on arbitrary bytes: as they are, and with the hashes that guard card and tensors put right. What opens
 * must run; what does not must say why; `inspect` must write JSON and nothing that a terminal would obey.
 */
#include "runtime.h"
#include "mend.h"
#include "model/b158.h"

#include <chimera/chimera.h>
#include <jansson.h>

static int hear(void *user, const void *text, size_t bytes) {
    (void)text;
    *(size_t *)user += bytes;
    return 0;
}

static void run(chm_runtime *r, chm_model *m) {
    enum { MOST_STATE = 1 << 22 };
    chm_stream *s = NULL;
    size_t heard = 0;
    chm_generate_result result = {.size = sizeof result};
    chm_sampling sampling = {.size = sizeof sampling, .top_p = 1, .repeat_penalty = 1};
    if (m->layout.bytes > MOST_STATE) return; /* a card may ask for more than a fuzzer has */
    CHECK(chm_stream_open(r, m, &s) == CHM_OK);
    const int status = chm_generate(s, "ab", 2, 3, &sampling, hear, &heard, &result);
    CHECK(status == CHM_OK || chm_error()[0]);
    chm_stream_close(s);
}

static void inspect(chm_runtime *r, const char *path, chm_output format) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    CHECK(out != NULL);
    const int status = chm_inspect(r, path, true, format, out);
    fclose(out);
    if (status == CHM_OK && format == CHM_OUTPUT_JSON) {
        json_t *report = json_loadb(text, bytes, 0, NULL);
        CHECK(json_is_object(report));
        json_decref(report);
    }
    for (size_t i = 0; i < bytes; i++) CHECK((unsigned char)text[i] >= 0x20 || text[i] == '\n');
    free(text);
}

static void try_file(const void *data, size_t bytes, unsigned how) {
    chm_runtime *r = fuzz_runtime();
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1};
    const char *path = fuzz_file(data, bytes);
    chm_model *m = NULL;
    const int status = chm_open(r, path, &overlay, how % 2, &m);
    if (status == CHM_OK) {
        run(r, m);
        chm_close(m);
    } else {
        CHECK(!m && (status == CHM_E_DATA || status == CHM_E_CONFIG || status == CHM_E_PLUGIN));
        CHECK(chm_error()[0]);
    }
    if (how % 8 == 0) inspect(r, path, how % 16 ? CHM_OUTPUT_JSON : CHM_OUTPUT_TEXT);
}

/* With every hash as it must be. */
static void mend_all(chm_string *file) {
    chm_safetensors *s = NULL;
    if (chm_safetensors_parse("fuzz", (const uint8_t *)file->text, file->length, &s)) return;
    const char *card = chm_safetensors_meta(s, "card");
    uint64_t card_hash = card ? chm_hash64(card, strlen(card)) : 0;
    if (card) mend_hash(file, "card_hash", card_hash);
    for (int i = 0; i < s->count; i++) {
        char *key = chm_format("hash.%s", s->tensor[i].name);
        CHECK(key != NULL);
        mend_hash(file, key, chm_hash64(s->tensor[i].data, s->tensor[i].bytes));
        chm_free(key);
    }
    chm_safetensors_seal((uint8_t *)file->text, s->header_bytes);
    chm_safetensors_destroy(s);
}

/* The first byte, of a length that is put right, says what is tried. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    chm_string mended = {0};
    const bool header = mend_header(data, bytes, &mended);
    if (header) {
        mend_all(&mended);
        try_file(mended.text, mended.length, data[0]);
    }
    if (!header || data[0] % 8 == 7) try_file(data, bytes, 0); /* a hash stops most of these */
    chm_string_finish(&mended);
    return 0;
}

static bool make(size_t number, chm_string *seed) {
    static const char how[] = {8, 0, 1, 7};
    static chm_string kept[2];
    const size_t i = number % 2, mode = number / 2;
    const char *text = fuzz_card(i);
    if (mode >= sizeof how) return false;
    if (!kept[i].length) {
        char folder[64], *written = NULL;
        size_t bytes = 0;
        const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1};
        fuzz_folder(folder);
        char *card = fuzz_write_in(folder, "card.json", text, strlen(text)), *model = chm_format("%s/m", folder);
        CHECK(chm_init_model(fuzz_runtime(), card, &overlay, 1, model) == CHM_OK);
        CHECK(chm_read_file(model, 1 << 24, &written, &bytes) == CHM_OK);
        chm_string_add_bytes(&kept[i], written, bytes);
        fuzz_folder_gone(folder);
        chm_free(written);
        chm_free(model);
        chm_free(card);
    }
    chm_string_add_bytes(seed, kept[i].text, kept[i].length);
    if (!seed->failed) seed->text[0] = how[mode];
    return true;
}

static const char *const words[] = {"{",
                                    "}",
                                    "[",
                                    "]",
                                    ",",
                                    ":",
                                    "\"",
                                    "0",
                                    "-1",
                                    "16",
                                    "258",
                                    "9223372036854775807",
                                    "1e400",
                                    "\\\"",
                                    "\\u001b",
                                    "\"F32\"",
                                    "\"U8\"",
                                    "hash.",
                                    "encoding.",
                                    "t2;out=16;in=16;group=128",
                                    "i8;",
                                    "f32",
                                    "card",
                                    "_pad.0",
                                    "tokenizer.file",
                                    "gd",
                                    "attn",
                                    "mlp",
                                    "\xff",
                                    NULL};
static const struct fuzz fuzz = {.make = make, .words = words, .runs = 500};
