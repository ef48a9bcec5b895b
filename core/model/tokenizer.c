/* tokenizer.c: tokenizers opened, whole characters, text in pieces; those of chimera.h by themselves. */
#include "model/tokenizer.h"
#include "base/json.h"
#include "base/table.h"
#include "model/b158.h"
#include "model/runtime.h"
#include "model/stream.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PIECE = 1 << 16,   /* bytes encoded at once */
    LONGEST = 1 << 20, /* the same, while looking for a place to cut */
    SENTENCE = 1 << 14 /* most bytes of a sentence to train on */
};
static const uint64_t most_file = UINT64_C(1) << 30;

/* ---- host services ----------------------------------------------------------------------------------------------- */

static void *host_alloc(size_t bytes) { return chm_alloc(bytes); }

static void host_log(enum chm_log_level level, const char *format, ...) {
    char line[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    chm_log(level, "%s", line);
}

static int host_fail(int status, const char *format, ...) {
    char line[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    return chm_fail(status, "%s", line);
}

const struct chm_host *chm_host_services(void) {
    static const struct chm_host host = {
        .size = sizeof(host), .alloc = host_alloc, .free = chm_free, .log = host_log, .fail = host_fail};
    return &host;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static bool exists(const char *path) { return access(path, F_OK) == 0; }

/* The folder of the file in "FILE:LINE", with its slash, and `name` in it. */
static char *beside(const char *origin, const char *name) {
    const char *colon = strrchr(origin, ':'), *slash = NULL;
    for (const char *c = origin; c < colon; c++)
        if (*c == '/') slash = c;
    return chm_format("%.*s%s", slash ? (int)(slash - origin + 1) : 0, origin, name);
}

char *chm_tokenizer_path(const chm_card *card, int *status) {
    const char *name = chm_card_model(card)->tokenizer_file, *origin = NULL;
    *status = CHM_OK;
    if (name == NULL || name[0] == '\0') return NULL;
    chm_card_get(card, "files.tokenizer", &origin);
    char *path;
    if (name[0] == '/' || origin == NULL || strrchr(origin, ':') == NULL) {
        path = chm_strdup(name);
    } else {
        path = beside(origin, name);
        const char *last = strrchr(name, '/');
        if (path != NULL && last != NULL && !exists(path)) {
            char *other = beside(origin, last + 1);
            if (other != NULL && exists(other)) {
                chm_free(path);
                path = other;
            } else {
                chm_free(other);
            }
        }
    }
    if (path == NULL) *status = CHM_E_MEMORY;
    return path;
}

/* Sets t->hash, and lists the specials. */
static int describe(chm_tokenizer *t) {
    const int32_t vocab = t->ops->vocab_size(t->self), end = t->ops->end_of_text(t->self);
    if (vocab < 1 || vocab > 1 << 24)
        return chm_fail(CHM_E_PLUGIN, "tokenizer '%s' says it has %d ids; 1..%d are possible", t->plugin->name, vocab,
                        1 << 24);
    const int32_t head[2] = {vocab, end};
    uint64_t hash = chm_hash64(t->plugin->name, strlen(t->plugin->name));
    hash = chm_hash64_seed(head, sizeof head, hash);
    size_t room = 0;
    for (int32_t id = 0; t->ops->special != NULL && id < vocab; id++) {
        const char *text = t->ops->special(t->self, id);
        if (text == NULL) continue;
        if (t->specials == room) {
            room = room ? 2 * room : 64;
            struct chm_special_token *more = chm_realloc(t->special, room * sizeof *more);
            if (more == NULL) return CHM_E_MEMORY;
            t->special = more;
        }
        const size_t n = strlen(text);
        t->special[t->specials++] = (struct chm_special_token){text, n, id};
        t->longest_special = CHM_MAX(t->longest_special, n);
        hash = chm_hash64_seed(&id, sizeof id, hash);
        hash = chm_hash64_seed(text, n + 1, hash);
    }
    t->hash = t->file_bytes ? chm_hash64_seed(t->file, t->file_bytes, hash) : hash;
    return CHM_OK;
}

/* With t->file and t->name set; closes t on failure. card NULL: the options' defaults. */
static int start(chm_tokenizer *t, const struct chm_plugin *plugin, const chm_card *card) {
    int status = CHM_E_MEMORY;
    t->plugin = plugin;
    t->ops = plugin->ops;
    void *self = chm_arena_zero(&t->arena, plugin->instance_size ? plugin->instance_size : 1);
    if (self == NULL) goto fail;
    if (card != NULL)
        status = chm_card_plugin_options(card, plugin, self, &t->arena);
    else
        status = chm_option_defaults(plugin->options, plugin->option_count, self, &t->arena);
    if (status != CHM_OK) goto fail;
    status = t->ops->init(self, chm_host_services(), t->file_bytes ? t->file : NULL, t->file_bytes);
    if (status != CHM_OK) {
        /* plugins begin with ":LINE: " where they know the line */
        if (t->name != NULL) {
            char *why = chm_strdup(chm_error());
            if (why != NULL) status = chm_fail(status, "%s%s%s", t->name, why[0] == ':' ? "" : ": ", why);
            chm_free(why);
        }
        goto fail;
    }
    t->self = self;
    if ((status = describe(t)) == CHM_OK) return CHM_OK;
fail:
    chm_tokenizer_close(t);
    return status;
}

static int agree(const chm_tokenizer *t, const chm_card *card) {
    const chm_model_config *config = chm_card_model(card);
    const int32_t vocab = t->ops->vocab_size(t->self), end = t->ops->end_of_text(t->self);
    if (vocab > config->vocab)
        return chm_fail(CHM_E_CONFIG, "tokenizer '%s' has %d ids, the card's vocab_size is %lld: set it to at least %d",
                        t->plugin->name, vocab, (long long)config->vocab, vocab);
    if (end >= 0 && config->eos != end)
        return chm_fail(CHM_E_CONFIG,
                        "the end of text of tokenizer '%s' is %d, the card's token_ids say %d: set token_ids to [%d, "
                        "P], P its padding (`chimera tokenizer show` lists the specials)",
                        t->plugin->name, end, config->eos, end);
    return CHM_OK;
}

int chm_tokenizer_open(chm_tokenizer *t, const chm_registry *r, const chm_card *card) {
    const chm_model_config *config = chm_card_model(card);
    memset(t, 0, sizeof(*t));
    chm_arena_init(&t->arena);
    int status = CHM_OK;
    const struct chm_plugin *plugin = chm_registry_find(r, CHM_KIND_TOKENIZER, config->tokenizer);
    if (plugin == NULL) return chm_fail_prefix(CHM_E_PLUGIN, "tokenizer");
    if ((t->name = chm_tokenizer_path(card, &status)) != NULL) {
        status = chm_read_file(t->name, most_file, &t->owned, &t->file_bytes);
        t->file = t->owned;
        if (status == CHM_OK && t->file_bytes == 0)
            status = chm_fail(CHM_E_DATA, "%s: is empty; expected the file of tokenizer '%s'", t->name, plugin->name);
    }
    if (status == CHM_OK && (status = start(t, plugin, card)) == CHM_OK) status = agree(t, card);
    if (status != CHM_OK) chm_tokenizer_close(t); /* fine when start() has done so */
    return status;
}

int chm_tokenizer_open_model(chm_tokenizer *t, const chm_model *m) {
    const chm_card *card = m->card;
    const chm_st_tensor *inside = m->file ? chm_safetensors_find(m->file, CHM_B158_TOKENIZER) : NULL;
    const char *stated = m->file ? chm_safetensors_meta(m->file, "tokenizer_hash") : NULL, *origin = NULL;
    int status;
    chm_card_get(card, "files.tokenizer", &origin);
    /* the card inside is "MODEL (the card inside)" */
    const bool overridden = origin == NULL || m->path == NULL || strncmp(origin, m->path, strlen(m->path)) != 0;
    if (inside == NULL || overridden) {
        if ((status = chm_tokenizer_open(t, m->registry, card)) != CHM_OK) return status;
    } else {
        memset(t, 0, sizeof(*t));
        chm_arena_init(&t->arena);
        const struct chm_plugin *plugin =
            chm_registry_find(m->registry, CHM_KIND_TOKENIZER, chm_card_model(card)->tokenizer);
        if (plugin == NULL) return chm_fail_prefix(CHM_E_PLUGIN, "tokenizer");
        t->name = chm_format("%s (the tokenizer inside)", m->path);
        if (t->name == NULL) return CHM_E_MEMORY;
        t->file = inside->data;
        t->file_bytes = inside->bytes;
        if ((status = start(t, plugin, card)) != CHM_OK) return status;
        if ((status = agree(t, card)) != CHM_OK) goto fail;
    }
    char hash[24];
    snprintf(hash, sizeof hash, "%016" PRIx64, t->hash);
    if (stated == NULL || strcmp(stated, hash) == 0) return CHM_OK;
    status = chm_fail(CHM_E_DATA,
                      "the model was made with another tokenizer: its hash is %s, that of %s is %s; give the file the "
                      "model was trained with, or none",
                      chm_quote(stated).text, t->name ? t->name : t->plugin->name, hash);
fail:
    chm_tokenizer_close(t);
    return status;
}

void chm_tokenizer_close(chm_tokenizer *t) {
    if (t == NULL) return;
    if (t->self != NULL && t->ops->finish != NULL) t->ops->finish(t->self);
    chm_arena_finish(&t->arena);
    chm_free(t->special);
    chm_free(t->owned);
    chm_free(t->name);
    chm_map_close(&t->map);
    memset(t, 0, sizeof(*t));
}

/* ---- whole characters -------------------------------------------------------------------------------------------- */

size_t chm_utf8_unfinished(const void *text, size_t n) {
    const uint8_t *s = text;
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        const uint8_t *c = s + n - back;
        if ((c[0] & 0xc0) == 0x80) continue;
        const size_t length = c[0] >= 0xf0 && c[0] <= 0xf4 ? 4 : c[0] >= 0xe0 && c[0] < 0xf0 ? 3 : c[0] >= 0xc2 ? 2 : 1;
        if (c[0] < 0xc2 || c[0] > 0xf4 || length <= back) return 0;
        /* second bytes that no character has: nothing is to come */
        if (back > 1 && ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) ||
                         (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f)))
            return 0;
        return back;
    }
    return 0;
}

size_t chm_utf8_take(chm_utf8 *u, const void *in, size_t n, void *out) {
    uint8_t *to = out;
    const size_t before = u->count;
    if (n > 0) memmove(to + before, in, n);
    memcpy(to, u->held, before);
    u->count = chm_utf8_unfinished(to, before + n);
    memcpy(u->held, to + before + n - u->count, u->count);
    return before + n - u->count;
}

size_t chm_utf8_flush(chm_utf8 *u, void *out) {
    const size_t n = u->count;
    memcpy(out, u->held, n);
    u->count = 0;
    return n;
}

/* ---- text in pieces ---------------------------------------------------------------------------------------------- */

size_t chm_tokenizer_cut(const struct chm_tokenizer_ops *ops, const void *self, const uint8_t *text, size_t n) {
    if (ops->splits_anywhere) return n;
    if (ops->cut != NULL) return CHM_MIN(ops->cut(self, text, n), n);
    for (size_t i = n; i > 0; i--)
        if (text[i - 1] == '\n') return i;
    return 0;
}

size_t chm_tokenizer_cut_anyhow(const uint8_t *text, size_t n) {
    const size_t unfinished = chm_utf8_unfinished(text, n);
    return unfinished < n ? n - unfinished : n;
}

/* ---- a tokenizer by itself (chimera.h) --------------------------------------------------------------------------- */

enum source { SOURCE_CARD, SOURCE_MODEL, SOURCE_FILE, SOURCE_NONE };

/* By its first bytes: a model card is JSON, a .b158 begins with a length and JSON, anything else is a tokenizer's own.
 */
static enum source sniff(const char *path, const char **type) {
    unsigned char head[64] = {0};
    errno = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) return SOURCE_NONE;
    const size_t n = fread(head, 1, sizeof head - 1, file);
    const bool directory = n == 0 && errno == EISDIR;
    fclose(file);
    if (directory) {
        errno = EISDIR;
        return SOURCE_NONE;
    }
    const char *text = (const char *)head + strspn((const char *)head, " \t\r\n");
    if (*text == '{') return SOURCE_CARD;
    if (n > 9 && head[8] == '{' && head[7] == 0) return SOURCE_MODEL;
    *type = head[0] == 0x0a && head[1] != '\n' && head[1] != '\r' ? "sentencepiece" : "o200k";
    return SOURCE_FILE;
}

static int create_from_card(chm_tokenizer *t, const chm_runtime *r, const char *path, const chm_overlay *overlay) {
    struct chm_card_options options;
    chm_card *card = NULL;
    int status = chm_card_options_from(r, overlay, &options);
    if (status == CHM_OK) status = chm_card_load(path, &options, &card);
    if (status != CHM_OK) return status;
    if ((status = chm_tokenizer_open(t, &r->registry, card)) != CHM_OK) chm_fail_prefix(status, "%s", path);
    chm_card_destroy(card);
    return status;
}

/* Only its header is read: a tokenizer needs no weights, and no layer plugins. */
static int create_from_model(chm_tokenizer *t, const chm_runtime *r, const char *path, const chm_overlay *overlay) {
    struct chm_card_options options;
    chm_map map = {0};
    chm_safetensors *file = NULL;
    chm_card *card = NULL;
    char *name = NULL;
    int status = chm_card_options_from(r, overlay, &options);
    if (status == CHM_OK) status = chm_map_open(&map, path);
    if (status != CHM_OK) return status;
    if ((status = chm_safetensors_parse(path, map.data, map.size, &file)) != CHM_OK) goto out;
    if ((status = chm_b158_check(path, file)) != CHM_OK) goto out;
    if ((name = chm_format("%s (the card inside)", path)) == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }
    options.trained = true;
    const char *text = chm_safetensors_meta(file, "card");
    if ((status = chm_card_parse(name, text, strlen(text), &options, &card)) != CHM_OK) goto out;
    const chm_model m = {.card = card, .registry = &r->registry, .file = file, .path = (char *)(uintptr_t)path};
    if ((status = chm_tokenizer_open_model(t, &m)) != CHM_OK) {
        chm_fail_prefix(status, "%s", path);
        goto out;
    }
    t->map = map; /* its file may lie in there */
    map = (chm_map){0};
out:
    chm_card_destroy(card);
    chm_free(name);
    chm_safetensors_destroy(file);
    chm_map_close(&map);
    return status;
}

int chm_tokenizer_create(chm_runtime *r, const char *source, const char *type, const chm_overlay *overlay,
                         chm_tokenizer **out) {
    const char *sniffed = NULL;
    const enum source kind = sniff(source, &sniffed);
    int status = CHM_OK;
    *out = NULL;
    if (kind == SOURCE_NONE && errno == ENOMEM) return chm_fail_system("%s: cannot open", source);
    if (type == NULL) type = sniffed;
    if (kind == SOURCE_NONE && type == NULL) {
        if (strchr(source, '/') == NULL && strchr(source, '.') == NULL)
            type = source;
        else
            return chm_fail(CHM_E_DATA,
                            "%s: cannot open: %s; expected a card, a model, a tokenizer's file, or the name of a "
                            "tokenizer that has none (bytes)",
                            source, strerror(errno));
    }
    chm_tokenizer *t = chm_alloc(sizeof *t);
    if (t == NULL) return CHM_E_MEMORY;
    if (kind == SOURCE_CARD) {
        status = create_from_card(t, r, source, overlay);
    } else if (kind == SOURCE_MODEL) {
        status = create_from_model(t, r, source, overlay);
    } else {
        const struct chm_plugin *plugin = chm_registry_find(&r->registry, CHM_KIND_TOKENIZER, type);
        chm_arena_init(&t->arena);
        if (plugin == NULL) status = chm_fail_prefix(CHM_E_PLUGIN, "%s", source);
        if (status == CHM_OK && kind == SOURCE_FILE) {
            status = chm_read_file(source, most_file, &t->owned, &t->file_bytes);
            t->file = t->owned;
            if (status == CHM_OK && (t->name = chm_strdup(source)) == NULL) status = CHM_E_MEMORY;
        }
        if (plugin != NULL && status == CHM_OK)
            status = start(t, plugin, NULL);
        else
            chm_tokenizer_close(t);
    }
    if (status != CHM_OK) {
        chm_free(t);
        return status;
    }
    *out = t;
    return CHM_OK;
}

void chm_tokenizer_destroy(chm_tokenizer *t) {
    chm_tokenizer_close(t);
    chm_free(t);
}

struct encoder {
    const chm_tokenizer *t;
    const char *name;
    int32_t *ids;
    size_t room;
    int (*emit)(void *user, const int32_t *ids, int64_t n);
    void *user;
};

/* CHM_OK, an error, or CHM_E_INTERRUPTED when emit wants no more. */
static int encode_piece(struct encoder *e, const uint8_t *text, size_t n) {
    if (n == 0) return CHM_OK;
    int64_t count = e->t->ops->encode(e->t->self, text, n, e->ids, e->room);
    if (count > (int64_t)e->room) {
        chm_free(e->ids);
        e->room = (size_t)count;
        if ((e->ids = chm_alloc(e->room * sizeof *e->ids)) == NULL) return CHM_E_MEMORY;
        count = e->t->ops->encode(e->t->self, text, n, e->ids, e->room);
    }
    if (count < 0) return chm_fail_prefix(chm_failed(CHM_E_DATA), "%s", e->name);
    return count > 0 && e->emit(e->user, e->ids, count) != 0 ? CHM_E_INTERRUPTED : CHM_OK;
}

/* The first special in text[0..n), the longest that begins there; *at = n when there is none. */
static const struct chm_special_token *find_special(const chm_tokenizer *t, const uint8_t *text, size_t n, size_t *at) {
    bool first[256] = {false};
    for (size_t i = 0; i < t->specials; i++) first[(uint8_t)t->special[i].text[0]] = true;
    for (size_t i = 0; i < n; i++) {
        const struct chm_special_token *best = NULL;
        if (!first[text[i]]) continue;
        for (size_t k = 0; k < t->specials; k++) {
            const struct chm_special_token *s = &t->special[k];
            if (s->bytes > 0 && s->bytes <= n - i && memcmp(text + i, s->text, s->bytes) == 0 &&
                (best == NULL || s->bytes > best->bytes))
                best = s;
        }
        if (best != NULL) {
            *at = i;
            return best;
        }
    }
    *at = n;
    return NULL;
}

int chm_tokenizer_encode(const chm_tokenizer *t, FILE *in, const char *name, bool specials,
                         int (*emit)(void *user, const int32_t *ids, int64_t n), void *user) {
    struct encoder e = {t, name, NULL, PIECE, emit, user};
    size_t capacity = PIECE, held = 0;
    bool ended = false;
    int status = CHM_OK;
    const size_t longest = specials ? t->longest_special : 0;
    uint8_t *buffer = chm_alloc(capacity);
    e.ids = chm_alloc(e.room * sizeof *e.ids);
    if (buffer == NULL || e.ids == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }
    while (status == CHM_OK && (!ended || held > 0)) {
        size_t got = 1, n = 0, at = 0;
        while (held < capacity && !ended) {
            got = fread(buffer + held, 1, capacity - held, in);
            held += got;
            ended = got == 0;
        }
        if (ferror(in)) {
            status = chm_fail_system("%s: cannot read", name);
            break;
        }
        const struct chm_special_token *special = longest ? find_special(t, buffer, held, &at) : NULL;
        if (special != NULL) {
            if ((status = encode_piece(&e, buffer, at)) != CHM_OK) break;
            if (emit(user, &special->id, 1) != 0) status = CHM_E_INTERRUPTED;
            n = at + special->bytes;
        } else {
            /* a special may begin in what is held and end in what is to come */
            const size_t known = ended ? held : held - CHM_MIN(held, longest ? longest - 1 : 0);
            n = ended ? held : chm_tokenizer_cut(t->ops, t->self, buffer, known);
            if (n == 0 && held == capacity && capacity < LONGEST) {
                uint8_t *more = chm_realloc(buffer, capacity * 2);
                if (more == NULL) {
                    status = CHM_E_MEMORY;
                    break;
                }
                buffer = more;
                capacity *= 2;
                continue;
            }
            if (n == 0) n = chm_tokenizer_cut_anyhow(buffer, known);
            status = encode_piece(&e, buffer, n);
        }
        held -= n;
        memmove(buffer, buffer + n, held);
    }
    if (status == CHM_E_INTERRUPTED) chm_fail(status, "%s: stopped", name);
out:
    chm_free(buffer);
    chm_free(e.ids);
    return status;
}

int chm_tokenizer_decode(const chm_tokenizer *t, const int32_t *ids, int64_t n, bool first, bool specials,
                         int (*emit)(void *user, const void *text, size_t bytes), void *user) {
    size_t room = 256;
    uint8_t small[256], *text = small;
    int status = CHM_OK;
    const uint64_t properties = t->ops->properties ? t->ops->properties(t->self) : 0;
    for (int64_t i = 0; i < n && status == CHM_OK; i++) {
        int64_t bytes = t->ops->decode(t->self, ids[i], text, room);
        if (bytes > (int64_t)room) {
            if (text != small) chm_free(text);
            room = (size_t)bytes;
            if ((text = chm_alloc(room)) == NULL) return CHM_E_MEMORY;
            bytes = t->ops->decode(t->self, ids[i], text, room);
        }
        if (bytes < 0) {
            status = chm_fail(CHM_E_DATA, "tokenizer '%s' has no token %d: its ids are 0..%d", t->plugin->name, ids[i],
                              t->ops->vocab_size(t->self) - 1);
            break;
        }
        const char *name = specials && bytes == 0 && t->ops->special ? t->ops->special(t->self, ids[i]) : NULL;
        const size_t skip = first && bytes > 0 && text[0] == ' ' && (properties & CHM_TOKENIZER_SPACE_PREFIX);
        if (bytes > 0) first = false;
        if (name != NULL ? emit(user, name, strlen(name)) != 0
                         : (size_t)bytes > skip && emit(user, text + skip, (size_t)bytes - skip) != 0)
            status = chm_fail(CHM_E_INTERRUPTED, "decoding was stopped");
    }
    if (text != small) chm_free(text);
    return status;
}

/* ---- chimera tokenizer show ---- */

struct measured {
    const char *path;
    int64_t bytes, tokens;
};

static int count_ids(void *user, const int32_t *ids, int64_t n) {
    struct measured *m = user;
    (void)ids;
    m->tokens += n;
    return 0;
}

static int measure(const chm_tokenizer *t, struct measured *m) {
    FILE *file = fopen(m->path, "rb");
    if (file == NULL) return chm_fail_system("%s: cannot open", m->path);
    int status = chm_tokenizer_encode(t, file, m->path, false, count_ids, m);
    if (status == CHM_OK) {
        m->bytes = (int64_t)ftello(file);
        if (m->bytes < 0) status = chm_fail(CHM_E_DATA, "%s: not a regular file; text is read from files", m->path);
    }
    fclose(file);
    return status;
}

static double ratio(const struct measured *m) { return m->tokens ? (double)m->bytes / (double)m->tokens : 0; }

static const char *special_name(const chm_tokenizer *t, int32_t id) {
    return t->ops->special != NULL && id >= 0 ? t->ops->special(t->self, id) : NULL;
}

/* A padding for the card: the special called so, else the end of text; the bytes tokenizer's own, which has no name. */
static int32_t padding_of(const chm_tokenizer *t) {
    static const char *const names[] = {"<|pad|>", "<pad>", "[PAD]"};
    if (strcmp(t->plugin->name, "bytes") == 0) return t->ops->end_of_text(t->self) + 1;
    for (size_t n = 0; n < CHM_ARRAY_COUNT(names); n++)
        for (size_t i = 0; i < t->specials; i++)
            if (strcmp(t->special[i].text, names[n]) == 0) return t->special[i].id;
    return t->ops->end_of_text(t->self);
}

static int show_json(const chm_tokenizer *t, const struct measured *m, uint32_t count, FILE *out) {
    char hash[24];
    const uint64_t properties = t->ops->properties ? t->ops->properties(t->self) : 0;
    const bool lossless = t->ops->splits_anywhere || (properties & CHM_TOKENIZER_LOSSLESS);
    snprintf(hash, sizeof hash, "%016" PRIx64, t->hash);
    chm_json_begin();
    json_t *root = json_object(), *specials = json_array(), *data = json_array();
    json_object_set_new(root, "schema_version", json_integer(1));
    json_object_set_new(root, "tokenizer", chm_json_text(t->plugin->name));
    json_object_set_new(root, "version", chm_json_text(t->plugin->version));
    json_object_set_new(root, "file", chm_json_text(t->name));
    json_object_set_new(root, "file_bytes", json_integer((json_int_t)t->file_bytes));
    json_object_set_new(root, "hash", chm_json_text(hash));
    json_object_set_new(root, "vocab_size", json_integer(t->ops->vocab_size(t->self)));
    json_object_set_new(root, "end_of_text", json_integer(t->ops->end_of_text(t->self)));
    json_object_set_new(root, "padding", json_integer(padding_of(t)));
    json_object_set_new(root, "lossless", json_boolean(lossless));
    for (size_t i = 0; i < t->specials; i++) {
        json_t *one = json_object();
        json_object_set_new(one, "id", json_integer(t->special[i].id));
        json_object_set_new(one, "text", chm_json_text(t->special[i].text));
        json_array_append_new(specials, one);
    }
    json_object_set_new(root, "specials", specials);
    for (uint32_t i = 0; i < count; i++) {
        json_t *one = json_object();
        json_object_set_new(one, "file", chm_json_text(m[i].path));
        json_object_set_new(one, "bytes", json_integer(m[i].bytes));
        json_object_set_new(one, "tokens", json_integer(m[i].tokens));
        json_object_set_new(one, "bytes_per_token", json_real(ratio(&m[i])));
        json_array_append_new(data, one);
    }
    json_object_set_new(root, "data", data);
    return chm_json_print(root, t->name ? t->name : t->plugin->name, out);
}

static int show_text(const chm_tokenizer *t, const struct measured *m, uint32_t count, chm_output format, FILE *out) {
    const int32_t end = t->ops->end_of_text(t->self), vocab = t->ops->vocab_size(t->self);
    const uint64_t properties = t->ops->properties ? t->ops->properties(t->self) : 0;
    const bool lossless = t->ops->splits_anywhere || (properties & CHM_TOKENIZER_LOSSLESS);
    const char *item = format == CHM_OUTPUT_MD ? "- " : "", *name = special_name(t, end);
    int status = CHM_OK;
    chm_table table;
    if (format != CHM_OUTPUT_CSV) {
        fprintf(out, "%stokenizer: %s %s\n", item, t->plugin->name, t->plugin->version);
        if (t->name) fprintf(out, "%sfile: %s, %zu bytes\n", item, t->name, t->file_bytes);
        fprintf(out, "%shash: %016" PRIx64 "\n", item, t->hash);
        fprintf(out, "%svocabulary: %d\n", item, vocab);
        if (end >= 0)
            fprintf(out, "%send of text: %d%s%s\n", item, end, name ? " " : "", name ? chm_quote(name).text : "");
        fprintf(out, "%sany bytes come back: %s\n", item, lossless ? "yes" : "no, this model rewrites text");
        fprintf(out, "%sin a card: \"vocab_size\": %d, \"token_ids\": [%d, %d], \"tokenizer\": {\"type\": \"%s\"}\n",
                item, vocab, end, padding_of(t), t->plugin->name);
    }
    if (t->specials > 0 && (format != CHM_OUTPUT_CSV || count == 0)) {
        chm_table_init(&table);
        chm_table_column(&table, "#id");
        chm_table_column(&table, "special");
        for (size_t i = 0; i < t->specials; i++) {
            chm_table_cell(&table, "%d", t->special[i].id);
            chm_table_cell(&table, "%s", chm_quote(t->special[i].text).text);
        }
        if (format != CHM_OUTPUT_CSV) fputc('\n', out);
        status = chm_table_print(&table, format, out);
        chm_table_finish(&table);
    }
    if (count > 0 && status == CHM_OK) {
        chm_table_init(&table);
        chm_table_column(&table, "file");
        chm_table_column(&table, "#bytes");
        chm_table_column(&table, "#tokens");
        chm_table_column(&table, "#bytes_per_token");
        for (uint32_t i = 0; i < count; i++) {
            chm_table_cell(&table, "%s", m[i].path);
            chm_table_cell(&table, "%" PRId64, m[i].bytes);
            chm_table_cell(&table, "%" PRId64, m[i].tokens);
            chm_table_cell(&table, "%.4f", ratio(&m[i]));
        }
        if (format != CHM_OUTPUT_CSV) fputc('\n', out);
        status = chm_table_print(&table, format, out);
        chm_table_finish(&table);
    }
    return status;
}

int chm_tokenizer_show(const chm_tokenizer *t, const char *const *data, uint32_t count, chm_output format, FILE *out) {
    int status = CHM_OK;
    struct measured *m = chm_alloc((count + 1) * sizeof *m);
    if (m == NULL) return CHM_E_MEMORY;
    for (uint32_t i = 0; i < count && status == CHM_OK; i++) {
        m[i].path = data[i];
        status = measure(t, &m[i]);
    }
    if (status == CHM_OK)
        status = format == CHM_OUTPUT_JSON ? show_json(t, m, count, out) : show_text(t, m, count, format, out);
    chm_free(m);
    return status;
}

/* ---- chimera tokenizer train ---- */

struct teacher {
    const chm_tokenizer_train_options *options;
    uint32_t file; /* the next to open */
    FILE *in;
    uint8_t text[SENTENCE];
    size_t used, length; /* text[used..length) is still to be handed out: the start of a character */
    bool failed;
    chm_writer writer;
    int64_t bytes;
};

static void teacher_fails(struct teacher *q, const char *path, const char *doing) {
    chm_fail_system("%s: cannot %s", path, doing);
    q->failed = true;
}

/* A line, or as much of a long one as there is room for, in whole characters. Tabs end a sentence too: the library
 * keeps them for itself, and spelled in bytes they are one token as it is. */
static const uint8_t *next_sentence(void *user, size_t *bytes) {
    struct teacher *q = user;
    *bytes = 0;
    while (!q->failed) {
        if (q->in == NULL) {
            if (q->file == q->options->data_count) return NULL;
            const char *path = q->options->data[q->file++];
            if ((q->in = fopen(path, "rb")) == NULL) {
                teacher_fails(q, path, "open");
                return NULL;
            }
        }
        int c = 0;
        size_t n = q->length - q->used;
        memmove(q->text, q->text + q->used, n);
        q->used = q->length = 0;
        while (n < sizeof q->text && (c = getc(q->in)) != EOF && c != '\n' && c != '\t') q->text[n++] = (uint8_t)c;
        if (c == EOF && ferror(q->in)) {
            teacher_fails(q, q->options->data[q->file - 1], "read");
            return NULL;
        }
        if (c == EOF) {
            fclose(q->in);
            q->in = NULL;
        }
        if (n == 0) continue;
        if (n == sizeof q->text) {
            q->length = n;
            q->used = n = chm_tokenizer_cut_anyhow(q->text, n);
        }
        q->bytes += (int64_t)n;
        *bytes = n;
        return q->text;
    }
    return NULL;
}

static int write_vocabulary(void *user, const void *data, size_t bytes) {
    struct teacher *q = user;
    const int status = q->writer.file ? CHM_OK : chm_writer_open(&q->writer, q->options->out);
    return status ? status : chm_writer_write(&q->writer, data, bytes);
}

int chm_tokenizer_train(chm_runtime *r, const chm_tokenizer_train_options *options) {
    if (options->size != sizeof *options)
        return chm_fail(CHM_E_CONFIG, "chm_tokenizer_train_options has size %u, this library expects %zu",
                        options->size, sizeof *options);
    const char *type = options->type ? options->type : "sentencepiece";
    const struct chm_plugin *plugin = chm_registry_find(&r->registry, CHM_KIND_TOKENIZER, type);
    if (plugin == NULL) return CHM_E_PLUGIN;
    const struct chm_tokenizer_ops *ops = plugin->ops;
    if (ops->train == NULL)
        return chm_fail(CHM_E_CONFIG, "tokenizer '%s' cannot be trained; sentencepiece can", plugin->name);
    if (options->vocab < 2 || options->vocab > 1 << 24)
        return chm_fail(CHM_E_CONFIG, "a vocabulary of %d: 2..%d ids are possible", options->vocab, 1 << 24);
    if (options->data_count == 0) return chm_fail(CHM_E_CONFIG, "no data: name at least one file of text");
    for (uint32_t i = 0; i < options->data_count; i++)
        if (chm_same_file(options->data[i], options->out))
            return chm_fail(CHM_E_CONFIG,
                            "%s: the tokenizer would replace the text it is made of; give it another name",
                            options->out);
    struct teacher *q = chm_alloc(sizeof *q);
    if (q == NULL) return CHM_E_MEMORY;
    q->options = options;
    /* whether it can be written is known before the training, which a signal may end: that leaves nothing behind */
    int status = chm_writer_open(&q->writer, options->out);
    if (q->writer.temporary) chm_writer_abandon(&q->writer);
    if (status == CHM_OK) {
        const struct chm_tokenizer_training training = {.size = sizeof training,
                                                        .vocab = options->vocab,
                                                        .method = options->method,
                                                        .next = next_sentence,
                                                        .write = write_vocabulary,
                                                        .user = q,
                                                        .failed = &q->failed};
        status = ops->train(chm_host_services(), &training);
        if (status == CHM_OK && !q->writer.file)
            status = chm_fail(CHM_E_PLUGIN, "tokenizer '%s' was trained and wrote nothing", plugin->name);
        if (status == CHM_OK) status = chm_writer_commit(&q->writer);
    }
    chm_writer_abandon(&q->writer);
    if (q->in != NULL) fclose(q->in);
    chm_free(q);
    return status;
}
