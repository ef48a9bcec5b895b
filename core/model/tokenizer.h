/*
 * tokenizer.h: a tokenizer in use: a plugin's instance and the file it was made from. Behind the tokenizers of
 * chimera.h, and what models, training and evaluation encode with. Implemented in core/model/tokenizer.c.
 *
 * Its hash stands for what it does: XXH3 64 of the plugin's name, its end of text, its specials, its number of ids and
 * the bytes of its file. It is in the metadata of every model, and the file is in the model.
 */
#ifndef CHM_TOKENIZER_H
#define CHM_TOKENIZER_H

#include "config/card.h"
#include <chimera/chimera.h>

struct chm_model;

struct chm_tokenizer { /* chm_tokenizer, chimera.h */
    const struct chm_plugin *plugin;
    const struct chm_tokenizer_ops *ops;
    void *self;
    chm_arena arena;
    const void *file; /* its file's bytes; NULL: it has none */
    size_t file_bytes;
    char *owned; /* the same, when they are ours to free */
    char *name;  /* of the file, for messages; NULL: it has none */
    uint64_t hash;
    chm_map map; /* of the model it came out of, when opened by itself */
    struct chm_special_token *special;
    size_t specials, longest_special;
};
struct chm_special_token {
    const char *text;
    size_t bytes;
    int32_t id;
};

/* The card's tokenizer, with the card's file (chm_tokenizer_path) and options. Refused: more ids than the card's
 * vocab_size, another end of text than the card's token_ids. */
int chm_tokenizer_open(chm_tokenizer *t, const chm_registry *r, const chm_card *card);
/* The same for a model that was opened from a .b158: with the file inside the model, unless an override names another;
 * refused when its hash is not the model's. */
int chm_tokenizer_open_model(chm_tokenizer *t, const struct chm_model *m);
void chm_tokenizer_close(chm_tokenizer *t);
/* files.tokenizer as a path: one that is not absolute is beside the card or ini file that says so (as given, or else
 * its last part alone), and in the current directory when it comes from --set or the environment. NULL: the card names
 * none; or out of memory, *status. Caller frees. */
char *chm_tokenizer_path(const chm_card *card, int *status);

const struct chm_host *chm_host_services(void);

/* ---- whole characters ---- */

/* Bytes held back because the character they begin is not complete. Broken UTF-8 passes as it is. */
typedef struct chm_utf8 {
    uint8_t held[4];
    size_t count;
} chm_utf8;
/* `in` after what was held, up to the last whole character, into out (room for n + 3; `in` may lie 4 bytes or
 * more after its start); returns how many bytes. */
size_t chm_utf8_take(chm_utf8 *u, const void *in, size_t n, void *out);
/* What is held, complete or not, into out (room for 3). */
size_t chm_utf8_flush(chm_utf8 *u, void *out);
/* Bytes at the end of text that begin a character and do not complete it: 0..3. */
size_t chm_utf8_unfinished(const void *text, size_t n);

/* ---- text in pieces ---- */

/* Bytes at the start of text[0..n) that may be encoded by themselves, whatever follows; 0: more text is needed. */
size_t chm_tokenizer_cut(const struct chm_tokenizer_ops *ops, const void *self, const uint8_t *text, size_t n);
/* The same where a cut there must be: not inside a character. */
size_t chm_tokenizer_cut_anyhow(const uint8_t *text, size_t n);

#endif
