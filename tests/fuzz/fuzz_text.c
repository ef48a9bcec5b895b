/*
 * Text as it comes out of a model, piece by piece: whole characters of a stream (the first byte says how it is cut),
 * JSON strings of any bytes, and what a terminal is shown.
 */
#include "model/json.h"
#include "model/tokenizer.h"
#include "fuzz.h"

#include <jansson.h>

void cli_put_text(const void *text, size_t bytes, bool terminal); /* cli/cli.h */
void cli_json_string(FILE *out, const char *text);

/* Bytes of the well-formed character at s, 0: none; as Table 3-7 of the Unicode standard has them. */
static size_t character(const uint8_t *s, size_t n) {
    static const struct {
        uint8_t first, last, low, high, bytes;
    } rows[] = {{0x00, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
                {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
                {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(rows); i++) {
        if (s[0] < rows[i].first || s[0] > rows[i].last || rows[i].bytes > n) continue;
        if (rows[i].bytes > 1 && (s[1] < rows[i].low || s[1] > rows[i].high)) return 0;
        for (size_t k = 2; k < rows[i].bytes; k++)
            if ((s[k] & 0xc0) != 0x80) return 0;
        return rows[i].bytes;
    }
    return 0;
}

/* Cut in any way, a stream comes out whole, and no cut parts a well-formed character. */
static void try_stream(const uint8_t *text, size_t n, unsigned step) {
    chm_utf8 u = {0};
    uint8_t *out = malloc(n + 8);
    bool *boundary = calloc(n + 1, sizeof *boundary);
    size_t at = 0, done = 0;
    CHECK(out && boundary);
    for (size_t i = 0, whole; i < n; i += whole ? whole : 1) {
        whole = character(text + i, n - i);
        for (size_t k = 0; k < (whole ? whole : 1); k++) boundary[i + k] = k == 0;
    }
    boundary[n] = true;
    while (at < n) {
        const size_t some = CHM_MIN(n - at, 1 + at * step % 5);
        uint8_t *piece = malloc(some + 3); /* the room that is asked for, and no more */
        CHECK(piece != NULL);
        const size_t got = chm_utf8_take(&u, text + at, some, piece);
        CHECK(got <= some + 3 && u.count <= 3);
        memcpy(out + done, piece, got);
        free(piece);
        at += some;
        done += got;
        CHECK(done + u.count == at && boundary[done]);
    }
    done += chm_utf8_flush(&u, out + done);
    CHECK(done == n && (n == 0 || memcmp(out, text, n) == 0));
    free(out);
    free(boundary);
}

/* Both writers give JSON that reads back, and well-formed text as it was. */
static void try_json(const char *text, bool sound) {
    for (int i = 0; i < 2; i++) {
        char *json = NULL;
        size_t bytes = 0;
        FILE *out = open_memstream(&json, &bytes);
        CHECK(out != NULL);
        if (i)
            cli_json_string(out, text);
        else
            chm_json_string(out, text);
        fclose(out);
        json_t *value = json_loadb(json, bytes, JSON_DECODE_ANY, NULL);
        CHECK(json_is_string(value));
        CHECK(!sound || strcmp(json_string_value(value), text) == 0);
        json_decref(value);
        free(json);
    }
}

/* A terminal is shown nothing that it would obey, and elsewhere every byte arrives. */
static void try_terminal(const uint8_t *text, size_t n) {
    for (int terminal = 0; terminal < 2; terminal++) {
        char *shown = NULL;
        size_t bytes = 0;
        FILE *before = stdout;
        stdout = open_memstream(&shown, &bytes);
        CHECK(stdout != NULL);
        cli_put_text(text, n, terminal);
        fclose(stdout);
        stdout = before;
        if (!terminal) CHECK(bytes == n && (n == 0 || memcmp(shown, text, n) == 0));
        for (size_t i = 0; terminal && i < bytes; i++) {
            const uint8_t c = (uint8_t)shown[i];
            CHECK((c >= 0x20 || c == '\n' || c == '\t') && c != 0x7f);
            CHECK(c != 0xc2 || i + 1 == bytes || (uint8_t)shown[i + 1] >= 0xa0 || (uint8_t)shown[i + 1] < 0x80);
        }
        free(shown);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes == 0) return 0;
    const uint8_t *text = data + 1;
    const size_t n = bytes - 1;
    try_stream(text, n, data[0]);
    try_terminal(text, n);
    char *words = chm_format("%.*s", (int)n, (const char *)text);
    CHECK(words != NULL);
    bool sound = true;
    const size_t length = strlen(words);
    for (size_t i = 0, whole; i < length && sound; i += whole) {
        whole = character((const uint8_t *)words + i, length - i);
        sound = whole > 0;
    }
    try_json(words, sound);
    chm_free(words);
    return 0;
}

static const char *const seeds[] = {
    "0plain text\nof two lines\t\"quoted\" \\",
    "1\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80 whole characters",
    "2\x1b[31mred\x07 \xc2\x9b[2J \x7f",
    "3\xff\xc3\x28\xe2\x82\xf0\x9f\x98 \xed\xa0\x80 \xc0\xaf \xf4\x90\x80\x80 broken ones",
    NULL,
};
static const char *const words[] = {"\xc3",
                                    "\xa9",
                                    "\xe2\x82",
                                    "\xe2\x82\xac",
                                    "\xf0\x9f\x98\x80",
                                    "\xf0\x9f",
                                    "\xed\xa0\x80",
                                    "\xe0\x80\x80",
                                    "\xf4\x8f\xbf\xbf",
                                    "\xf5",
                                    "\xc2\x9b",
                                    "\xc2",
                                    "\x1b]0;",
                                    "\x80",
                                    "\xef\xbf\xbf",
                                    "\r",
                                    "\x01",
                                    "\"",
                                    "\\",
                                    "/",
                                    NULL};
static const struct fuzz fuzz = {.seeds = seeds, .words = words, .runs = 50000};
