/* corpus.c: all documents of some files as tokens, made once and mapped. */
#include "train/data.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * The file of tokens, in the order of this machine's bytes: a head, the tokens (16 bits each where the vocabulary fits,
 * else 32), zeros up to 64 bytes, and where documents begin. Another machine's order makes another magic.
 */
typedef struct head {
    uint64_t magic, key;
    int64_t width; /* bytes of a token */
    int64_t tokens, documents, bytes, held_documents, held_bytes;
    uint64_t contents;  /* hash of all behind the head */
    uint64_t unused[6]; /* zero */
    uint64_t hash;      /* of the head before it */
} head;
static const uint64_t magic = UINT64_C(0x316b6f742d6d6863); /* "chm-tok1" */
enum { PIECE = 1 << 16, BLOCK = 1 << 22, MOST_TOKENS_LOG = 48 };

/* ---- survey ---- */

static int stopped(const chm_corpus_request *q) {
    return q->stop != NULL && *q->stop != 0 ? chm_fail(CHM_E_INTERRUPTED, "stopped while the data were read") : CHM_OK;
}

static int survey_file(chm_corpus *c, const chm_corpus_request *q, uint32_t i, uint8_t *buffer) {
    chm_contents in = {0};
    int64_t got = 1;
    int status = chm_contents_open(&in, q->files[i], true);
    while (status == CHM_OK && got > 0 && (status = stopped(q)) == CHM_OK)
        if ((got = chm_contents_read(&in, buffer, PIECE)) < 0) status = chm_failed(CHM_E_DATA);
    if (status == CHM_OK) {
        c->file_bytes[i] = in.bytes;
        c->file_hash[i] = chm_contents_hash(&in);
        c->source_bytes += in.bytes;
    }
    chm_contents_close(&in);
    return status;
}

int chm_corpus_survey(chm_corpus *c, const chm_corpus_request *q) {
    int status = CHM_OK;
    memset(c, 0, sizeof *c);
    if (q->count == 0) return chm_fail(CHM_E_CONFIG, "no data: name at least one file of text");
    c->file_bytes = chm_alloc(q->count * sizeof *c->file_bytes);
    c->file_hash = chm_alloc(q->count * sizeof *c->file_hash);
    uint8_t *buffer = chm_alloc(PIECE);
    if (c->file_bytes == NULL || c->file_hash == NULL || buffer == NULL) status = CHM_E_MEMORY;
    for (uint32_t i = 0; i < q->count && status == CHM_OK; i++) status = survey_file(c, q, i, buffer);
    c->files = q->count;
    if (status == CHM_OK) c->hash = chm_hash64(c->file_hash, q->count * sizeof *c->file_hash);
    chm_free(buffer);
    if (status != CHM_OK) chm_corpus_finish(c);
    return status;
}

bool chm_corpus_is_kept(const chm_corpus *c, const chm_corpus_request *q) {
    return q->directory != NULL && (q->always || c->source_bytes > CHM_CORPUS_IN_MEMORY);
}

/* Of all that decides which tokens there are. */
static uint64_t key_of(const chm_corpus *c, const chm_corpus_request *q) {
    const chm_corpus_rules *r = &q->rules;
    uint64_t key = chm_hash64(chm_version(), strlen(chm_version()));
    key = chm_hash64_seed(&q->tokenizer_hash, sizeof q->tokenizer_hash, key);
    key = chm_hash64_seed(c->file_bytes, (size_t)c->files * sizeof *c->file_bytes, key);
    key = chm_hash64_seed(c->file_hash, (size_t)c->files * sizeof *c->file_hash, key);
    const uint8_t lines = r->lines, part = r->holdout > 0 ? (uint8_t)r->part : CHM_PART_ALL;
    key = chm_hash64_seed(&lines, 1, key);
    key = chm_hash64_seed(&part, 1, key);
    if (part != CHM_PART_ALL) key = chm_hash64_seed(&r->holdout, sizeof r->holdout, key);
    for (uint32_t i = 0; i < q->count; i++) {
        const uint8_t objects = chm_contents_are_objects(q->files[i]);
        key = chm_hash64_seed(&objects, 1, key);
        if (objects && r->text_field != NULL) key = chm_hash64_seed(r->text_field, strlen(r->text_field), key);
    }
    return key;
}

/* ---- making ---- */

/* Where the image is written to, and the hash of what was. */
typedef struct sink {
    FILE *file; /* NULL: memory */
    const char *name;
    uint8_t *memory;
    size_t bytes, room;
    chm_hasher *hasher;
} sink;

static int cannot_write(const sink *s) {
    return chm_fail_system("%s: cannot write the tokens of the data (--shards DIR keeps them elsewhere)", s->name);
}

static int put(sink *s, const void *data, size_t bytes) {
    if (bytes == 0) return CHM_OK;
    if (s->file == NULL && bytes > s->room - s->bytes) {
        const size_t room = s->room + s->room / 2 + bytes;
        uint8_t *more = chm_realloc(s->memory, room);
        if (more == NULL) return chm_fail_prefix(CHM_E_MEMORY, "%s: tokens of the data", s->name);
        s->memory = more;
        s->room = room;
    }
    if (s->file == NULL)
        memcpy(s->memory + s->bytes, data, bytes);
    else if (fwrite(data, 1, bytes, s->file) != bytes)
        return cannot_write(s);
    s->bytes += bytes;
    if (s->hasher != NULL) chm_hasher_add(s->hasher, data, bytes);
    return CHM_OK;
}

/* The tokens of the document at hand. */
static int put_document(sink *s, const chm_corpus_request *q, chm_text *text, int32_t *token, bool narrow,
                        int64_t *tokens) {
    for (;;) {
        if (stopped(q) != CHM_OK) return CHM_E_INTERRUPTED;
        const int64_t n = chm_text_take(text, token, PIECE);
        if (n < 0) return chm_failed(CHM_E_DATA);
        if (n == 0) return CHM_OK;
        /* in place: a narrow token lies before the wide one that it comes from */
        uint16_t *half = (uint16_t *)(void *)token;
        for (int64_t i = 0; narrow && i < n; i++) {
            const int32_t wide = token[i];
            memcpy(half + i, &(uint16_t){(uint16_t)wide}, sizeof *half);
        }
        const int status = put(s, token, (size_t)n * (narrow ? sizeof *half : sizeof *token));
        if (status != CHM_OK) return status;
        *tokens += n;
    }
}

static int make(const chm_corpus *c, const chm_corpus_request *q, uint64_t key, sink *s) {
    static const uint8_t zeros[64];
    const bool narrow = q->tokenizer->vocab_size(q->tokenizer_self) <= 1 << 16;
    head h = {.magic = magic, .key = key, .width = narrow ? 2 : 4};
    chm_text text = {0};
    int32_t *token = chm_alloc(PIECE * sizeof *token);
    int64_t *document = NULL, room = 0;
    int status = token != NULL ? put(s, &h, sizeof h) : CHM_E_MEMORY, more;
    if (status == CHM_OK && (s->hasher = chm_hasher_create()) == NULL) status = CHM_E_MEMORY;
    for (uint32_t i = 0; i < q->count && status == CHM_OK; i++) {
        status = chm_text_open(&text, q->files[i], q->tokenizer, q->tokenizer_self, &q->rules, 0, true);
        if (status != CHM_OK) break;
        while ((more = chm_text_next(&text)) > 0) {
            if (h.documents + 1 >= room) {
                room += room / 2 + 1024;
                int64_t *longer = chm_realloc(document, (size_t)room * sizeof *document);
                if (longer == NULL) {
                    status = CHM_E_MEMORY;
                    goto out;
                }
                document = longer;
            }
            document[h.documents] = h.tokens;
            if ((status = put_document(s, q, &text, token, narrow, &h.tokens)) != CHM_OK) goto out;
            /* a tokenizer without a mark may make nothing of a text */
            h.documents += h.tokens > document[h.documents];
        }
        if (more < 0)
            status = chm_failed(CHM_E_DATA);
        else if (text.in.bytes != c->file_bytes[i] || chm_contents_hash(&text.in) != c->file_hash[i])
            status = chm_fail(CHM_E_DATA, "%s: changed while it was read; train on files that nobody writes to",
                              q->files[i]);
        h.bytes += text.bytes;
        h.held_documents += text.skipped;
        h.held_bytes += text.skipped_bytes;
        chm_text_close(&text);
    }
    if (status != CHM_OK) goto out;
    const int64_t end = h.tokens;
    if ((status = put(s, zeros, (size_t)(-h.tokens * h.width & 63))) != CHM_OK) goto out;
    status = put(s, document, (size_t)h.documents * sizeof *document);
    if (status != CHM_OK) goto out;
    if ((status = put(s, &end, sizeof end)) != CHM_OK) goto out;
    h.contents = chm_hasher_end(s->hasher);
    h.hash = chm_hash64(&h, offsetof(head, hash));
    if (s->file == NULL)
        memcpy(s->memory, &h, sizeof h);
    else if (fseeko(s->file, 0, SEEK_SET) != 0 || fwrite(&h, sizeof h, 1, s->file) != 1 || fflush(s->file) != 0)
        status = cannot_write(s);
out:
    chm_text_close(&text);
    chm_free(s->hasher);
    s->hasher = NULL;
    chm_free(document);
    chm_free(token);
    return status;
}

/* ---- reading ---- */

/* Bytes of a mapped image were looked at and are not needed soon: they count as this process's memory no longer. */
static void let_go(const chm_corpus *c, uint64_t from, uint64_t to) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), first = from / page * page;
    if (c->map.mapping != NULL) (void)madvise((uint8_t *)c->map.mapping + first, to - first, MADV_DONTNEED);
}

int chm_corpus_read(chm_corpus *c, const char *name, const uint8_t *data, uint64_t size, uint64_t key, int32_t vocab) {
    static const char rest[] = "is not a sound file of tokens";
    head h;
    if (size < sizeof h) return chm_fail(CHM_E_DATA, "%s: %s: it is cut short", name, rest);
    memcpy(&h, data, sizeof h);
    if (h.magic != magic) return chm_fail(CHM_E_DATA, "%s: %s: it begins otherwise", name, rest);
    if (h.hash != chm_hash64(&h, offsetof(head, hash)))
        return chm_fail(CHM_E_DATA, "%s: %s: its head is damaged", name, rest);
    if (h.key != key) return chm_fail(CHM_E_DATA, "%s: holds the tokens of other data", name);
    const int64_t most = INT64_C(1) << MOST_TOKENS_LOG;
    if ((h.width != 2 && h.width != 4) || h.tokens < 0 || h.tokens > most || h.documents < 0 || h.documents > most ||
        h.bytes < 0 || h.held_documents < 0 || h.held_bytes < 0)
        return chm_fail(CHM_E_DATA, "%s: %s: its numbers are absurd", name, rest);
    const uint64_t behind = sizeof h + chm_align64((uint64_t)h.tokens * (uint64_t)h.width);
    if (size != behind + ((uint64_t)h.documents + 1) * sizeof(int64_t))
        return chm_fail(CHM_E_DATA, "%s: %s: it has %" PRIu64 " bytes, not those it says", name, rest, size);
    chm_hasher *hasher = chm_hasher_create();
    if (hasher == NULL) return CHM_E_MEMORY;
    for (uint64_t at = sizeof h; at < size; at += BLOCK) {
        const uint64_t end = CHM_MIN(at + BLOCK, size);
        chm_hasher_add(hasher, data + at, end - at);
        let_go(c, at, end);
    }
    const uint64_t contents = chm_hasher_end(hasher);
    chm_free(hasher);
    if (h.contents != contents) return chm_fail(CHM_E_DATA, "%s: %s: its contents do not have their hash", name, rest);
    c->token = data + sizeof h;
    c->narrow = h.width == 2;
    c->tokens = h.tokens;
    c->document = (const int64_t *)(const void *)(data + behind);
    c->documents = h.documents;
    c->bytes = h.bytes;
    c->held_documents = h.held_documents;
    c->held_bytes = h.held_bytes;
    /* whoever wrote it: no number leads outside */
    bool sound = c->document[c->documents] == c->tokens && c->document[0] == 0;
    for (int64_t d = 0; d < c->documents; d++) {
        const int64_t from = c->document[d], to = c->document[d + 1];
        sound = sound && from < to && to <= c->tokens;
        if (sound) c->longest = CHM_MAX(c->longest, to - from);
    }
    for (int64_t i = 0; i < c->tokens;) {
        const int64_t first = i, end = CHM_MIN(i + BLOCK, c->tokens);
        for (; i < end; i++) {
            const int32_t id = chm_corpus_token(c, i);
            sound = sound && id >= 0 && id < vocab;
        }
        let_go(c, sizeof h + (uint64_t)(first * h.width), sizeof h + (uint64_t)(end * h.width));
    }
    return sound ? CHM_OK : chm_fail(CHM_E_DATA, "%s: %s: a number of it is out of range", name, rest);
}

/* The image that is mapped, or else in memory; forgotten if it does not fit. */
static int take_image(chm_corpus *c, const chm_corpus_request *q, const char *name, uint64_t key, uint64_t bytes) {
    const uint8_t *image = c->memory != NULL ? c->memory : c->map.data;
    const int status = chm_corpus_read(c, name, image, bytes, key, q->tokenizer->vocab_size(q->tokenizer_self));
    if (status != CHM_OK) chm_map_close(&c->map);
    return status;
}

/* ---- both ---- */

static void say(const chm_corpus_request *q, const char *format, ...) CHM_PRINTF(2, 3);
static void say(const chm_corpus_request *q, const char *format, ...) {
    char text[1024];
    va_list args;
    if (q->say == NULL) return;
    va_start(args, format);
    chm_fit(text, sizeof text, format, args);
    va_end(args);
    q->say(q->user, text);
}

/* Tokens that no name leads to: in memory, or of a corpus that is large in a temporary file. */
static int load_nameless(chm_corpus *c, const chm_corpus_request *q, uint64_t key) {
    sink s = {.name = q->files[0]};
    const bool small = c->source_bytes <= CHM_CORPUS_IN_MEMORY;
    if (!small && (s.file = tmpfile()) == NULL)
        return chm_fail_system("%s: cannot make a temporary file for the tokens (--shards DIR keeps them elsewhere)",
                               s.name);
    int status = make(c, q, key, &s);
    c->memory = s.memory;
    if (status == CHM_OK && !small) status = chm_map_descriptor(&c->map, fileno(s.file), s.name);
    if (status == CHM_OK) status = take_image(c, q, s.name, key, s.bytes);
    if (s.file != NULL) fclose(s.file);
    return status;
}

static int load_named(chm_corpus *c, const chm_corpus_request *q, uint64_t key) {
    chm_writer w = {0};
    int status = chm_make_directory(q->directory);
    if (status != CHM_OK) return status;
    if ((c->file = chm_format("%s/corpus-%016" PRIx64 ".tokens", q->directory, key)) == NULL) return CHM_E_MEMORY;
    if (access(c->file, F_OK) == 0) {
        status = chm_map_open(&c->map, c->file);
        if (status == CHM_OK) status = take_image(c, q, c->file, key, c->map.size);
        if (status == CHM_OK) {
            say(q, "data: tokens from %s", c->file);
            return CHM_OK;
        }
        if (status == CHM_E_MEMORY) return status;
        say(q, "%s; it is made anew", chm_error());
    } else {
        say(q, "data: %.1f MB are made into tokens once, kept in %s", (double)c->source_bytes / 1e6, c->file);
    }
    if ((status = chm_writer_open(&w, c->file)) != CHM_OK) return status;
    sink s = {.file = w.file, .name = c->file};
    if ((status = make(c, q, key, &s)) == CHM_OK) status = chm_writer_commit(&w);
    chm_writer_abandon(&w);
    if (status == CHM_OK) status = chm_map_open(&c->map, c->file);
    return status == CHM_OK ? take_image(c, q, c->file, key, c->map.size) : status;
}

static void count_targets(chm_corpus *c) {
    if (!c->answers_only) { /* every token but those that begin, and the mark behind each document */
        c->targets = c->tokens - c->documents + (c->marked ? c->documents : 0);
        return;
    }
    for (int64_t d = 0; d < c->documents; d++)
        for (int64_t i = c->document[d]; i < c->document[d + 1] - 1; i++)
            c->targets += chm_counts(true, chm_corpus_token(c, i));
}

int chm_corpus_load(chm_corpus *c, const chm_corpus_request *q) {
    const chm_corpus_rules *r = &q->rules;
    const uint64_t key = key_of(c, q);
    c->marked = q->tokenizer->end_of_text(q->tokenizer_self) >= 0;
    c->whole = r->lines;
    c->answers_only = r->answers_only;
    int status = chm_corpus_is_kept(c, q) ? load_named(c, q, key) : load_nameless(c, q, key);
    if (status != CHM_OK) goto out;
    count_targets(c);
    if (r->part != CHM_PART_ALL && r->holdout > 0 && (c->documents == 0 || c->held_documents == 0)) {
        const long long all = (long long)(c->documents + c->held_documents);
        status = chm_fail(CHM_E_DATA,
                          "%s: training.holdout = %g of %lld document%s leaves nothing to %s: a document is a file, a "
                          "line of .jsonl or, with training.documents=line, any line; give more of them, change the "
                          "share, or leave it and name a text to score by --validation",
                          q->files[0], r->holdout, all, all == 1 ? "" : "s", c->documents == 0 ? "train on" : "score");
    } else if (c->tokens < 2) {
        status = chm_fail(CHM_E_DATA, "%s: the data is one token long; there is nothing to predict", q->files[0]);
    } else if (c->targets == 0 && c->answers_only) {
        status = chm_fail(CHM_E_DATA,
                          "%s: no byte follows a '=', and with training.loss_on = \"answers\" only those count: give "
                          "data with answers, or set training.loss_on=all",
                          q->files[0]);
    }
out:
    if (status != CHM_OK) chm_corpus_finish(c);
    return status;
}

void chm_corpus_finish(chm_corpus *c) {
    chm_map_close(&c->map);
    chm_free(c->memory);
    chm_free(c->file);
    chm_free(c->file_bytes);
    chm_free(c->file_hash);
    memset(c, 0, sizeof *c);
}
