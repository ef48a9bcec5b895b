/* corpus.c: files as tokens, streamed piece by piece or all at once. */
#include "train/train.h"
#include "model/tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    TEXT_PIECE = 1 << 16,  /* bytes tokenised at once */
    TEXT_LONGEST = 1 << 20 /* the same, while looking for a place to cut */
};

int chm_text_open(chm_text *t, const char *path, const struct chm_tokenizer_ops *ops, const void *self, int64_t limit) {
    struct stat st;
    int status = CHM_OK;
    memset(t, 0, sizeof *t);
    t->path = path;
    t->ops = ops;
    t->self = self;
    /* NONBLOCK: a pipe must be refused below, not waited for */
    t->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (t->fd < 0) return chm_fail_system("%s: cannot open", path);
    if (fstat(t->fd, &st) != 0) {
        status = chm_fail_system("%s: cannot stat", path);
        goto fail;
    }
    if (S_ISDIR(st.st_mode)) {
        status = chm_fail(CHM_E_DATA, "%s: is a directory; name the files of text in it", path);
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) {
        status = chm_fail(CHM_E_DATA, "%s: not a regular file; text is read from files", path);
        goto fail;
    }
    if (st.st_size == 0) {
        status = chm_fail(CHM_E_DATA, "%s: is empty; a file of text has at least one byte", path);
        goto fail;
    }
    t->size = limit > 0 && limit < st.st_size ? limit : (int64_t)st.st_size;
    t->capacity = TEXT_PIECE;
    t->buffer = chm_alloc(t->capacity);
    t->token_capacity = TEXT_PIECE;
    t->token = chm_alloc(t->token_capacity * sizeof *t->token);
    if (t->buffer == NULL || t->token == NULL) {
        status = CHM_E_MEMORY;
        goto fail;
    }
    t->leading = ops->end_of_text(self) >= 0;
    return CHM_OK;
fail:
    chm_text_close(t);
    return status;
}

void chm_text_close(chm_text *t) {
    if (t->fd >= 0 && t->path != NULL) close(t->fd);
    chm_free(t->buffer);
    chm_free(t->token);
    memset(t, 0, sizeof *t);
    t->fd = -1;
}

/* Reads until the buffer is full or the text ends. */
static int fill(chm_text *t) {
    if (t->first > 0) memmove(t->buffer, t->buffer + t->first, t->held);
    t->first = 0;
    while (t->held < t->capacity && t->read < t->size) {
        const size_t want = (size_t)CHM_MIN((int64_t)(t->capacity - t->held), t->size - t->read);
        const ssize_t n = read(t->fd, t->buffer + t->held, want);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return chm_fail_system("%s: cannot read", t->path);
        if (n == 0)
            return chm_fail(CHM_E_DATA, "%s: ended at byte %lld of %lld: it became shorter while it was read", t->path,
                            (long long)t->read, (long long)t->size);
        t->held += (size_t)n;
        t->read += n;
    }
    return CHM_OK;
}

/* Bytes of the buffer that may be tokenised without knowing what follows; 0: more is needed. Of a line the last piece
 * ends before its newline, and *ends says so. */
static size_t piece(const chm_text *t, bool *ends) {
    const uint8_t *newline = t->lines ? memchr(t->buffer + t->first, '\n', t->held) : NULL;
    *ends = newline != NULL;
    if (newline != NULL) return (size_t)(newline - (t->buffer + t->first));
    if (t->read == t->size) return t->held;
    const uint8_t *text = t->buffer + t->first;
    const size_t n = chm_tokenizer_cut(t->ops, t->self, text, t->held);
    return n > 0 || t->capacity < TEXT_LONGEST ? n : chm_tokenizer_cut_anyhow(text, t->held);
}

/* n bytes at the front of the buffer are done with */
static void drop(chm_text *t, size_t n) {
    t->hash = chm_hash64_seed(t->buffer + t->first, n, t->hash);
    t->first += n;
    t->held -= n;
}

static int tokenise(chm_text *t) {
    int status;
    bool ends = false;
    size_t n = t->lines ? piece(t, &ends) : 0; /* most lines are in the buffer already */
    while (n == 0 && !ends) {
        if ((status = fill(t)) != CHM_OK) return status;
        n = piece(t, &ends);
        if (n == 0 && !ends) {
            uint8_t *more = chm_realloc(t->buffer, t->capacity * 2);
            if (more == NULL) return CHM_E_MEMORY;
            t->buffer = more;
            t->capacity *= 2;
        }
    }
    const uint8_t *text = t->buffer + t->first;
    int64_t count = t->ops->encode(t->self, text, n, t->token, t->token_capacity);
    if (count > (int64_t)t->token_capacity) {
        int32_t *more = chm_realloc(t->token, (size_t)count * sizeof *more);
        if (more == NULL) return CHM_E_MEMORY;
        t->token = more;
        t->token_capacity = (size_t)count;
        count = t->ops->encode(t->self, text, n, t->token, t->token_capacity);
    }
    if (count < 0) return chm_fail_prefix(chm_failed(CHM_E_DATA), "%s", t->path);
    t->tokens = count;
    t->next = 0;
    t->token_bytes = (int64_t)n;
    t->ended = ends;
    drop(t, n + ends);
    return CHM_OK;
}

int chm_text_next(chm_text *t) {
    if (!t->begun) {
        t->begun = true;
        if (!t->lines) return 1;
    }
    if (!t->lines) return 0;
    for (;;) {
        if (t->held == 0 && fill(t) != CHM_OK) return -1;
        if (t->held == 0) return 0;
        if (t->buffer[t->first] != '\n') break;
        drop(t, 1); /* an empty line is no document */
    }
    t->leading = t->ops->end_of_text(t->self) >= 0;
    t->ended = false;
    return 1;
}

int64_t chm_text_take(chm_text *t, int32_t *out, int64_t n) {
    int64_t done = 0;
    if (t->leading && n > 0) {
        out[done++] = t->ops->end_of_text(t->self);
        t->leading = false;
    }
    while (done < n) {
        if (t->next == t->tokens) {
            if (t->ended || (t->read == t->size && t->held == 0)) break;
            if (tokenise(t) != CHM_OK) return -1;
            continue;
        }
        const int64_t some = CHM_MIN(n - done, t->tokens - t->next);
        memcpy(out + done, t->token + t->next, (size_t)some * sizeof *out);
        done += some;
        t->next += some;
    }
    return done;
}

int64_t chm_text_bytes_taken(const chm_text *t) {
    const double left = t->tokens > 0 ? (double)(t->tokens - t->next) / (double)t->tokens : 0;
    return t->read - (int64_t)t->held - (int64_t)(left * (double)t->token_bytes);
}

/* ---- corpora ---- */

chm_corpus_rules chm_corpus_rules_of(const chm_train_config *t) {
    return (chm_corpus_rules){.lines = t->line_documents, .answers_only = t->answers_only};
}

/* Room for `more` documents and the end behind them. */
static int room_for_documents(chm_corpus *c, int64_t *capacity, int64_t more) {
    if (c->documents + more < *capacity) return CHM_OK;
    const int64_t wanted = c->documents + more + 1 + *capacity / 2;
    int64_t *document = chm_realloc(c->document, (size_t)wanted * sizeof *document);
    if (document == NULL) return CHM_E_MEMORY;
    c->document = document;
    *capacity = wanted;
    return CHM_OK;
}

/* Room for a piece of tokens, and by guess for the rest of the file: a token a byte is the most there can be for most
 * tokenizers. */
static int room_for_tokens(chm_corpus *c, const chm_text *text, int64_t *capacity) {
    if (*capacity - c->tokens >= TEXT_PIECE) return CHM_OK;
    const int64_t wanted = CHM_MAX(c->tokens + (text->size - text->read) + 2 * TEXT_PIECE, *capacity + *capacity / 4);
    int32_t *token = chm_realloc(c->token, (size_t)wanted * sizeof *token);
    if (token == NULL) return chm_fail_prefix(CHM_E_MEMORY, "%s: tokens of the corpus", text->path);
    c->token = token;
    *capacity = wanted;
    return CHM_OK;
}

int chm_corpus_load(chm_corpus *c, const char *const *files, uint32_t count, const struct chm_plugin *tokenizer,
                    const void *tokenizer_self, const chm_corpus_rules *rules) {
    const struct chm_tokenizer_ops *ops = tokenizer->ops;
    chm_text text = {.fd = -1};
    int64_t token_room = 0, document_room = 0;
    int status = CHM_OK, more;
    memset(c, 0, sizeof *c);
    if (count == 0) return chm_fail(CHM_E_CONFIG, "no data: name at least one file of text");
    c->file_bytes = chm_alloc(count * sizeof *c->file_bytes);
    c->file_hash = chm_alloc(count * sizeof *c->file_hash);
    if (c->file_bytes == NULL || c->file_hash == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }
    c->marked = ops->end_of_text(tokenizer_self) >= 0;
    c->whole = rules->lines;
    c->answers_only = rules->answers_only;
    for (uint32_t i = 0; i < count; i++) {
        if ((status = chm_text_open(&text, files[i], ops, tokenizer_self, 0)) != CHM_OK) goto out;
        text.lines = rules->lines;
        while ((more = chm_text_next(&text)) > 0) {
            if ((status = room_for_documents(c, &document_room, 1)) != CHM_OK) goto out;
            c->document[c->documents++] = c->tokens;
            for (;;) {
                if ((status = room_for_tokens(c, &text, &token_room)) != CHM_OK) goto out;
                const int64_t n = chm_text_take(&text, c->token + c->tokens, TEXT_PIECE);
                if (n < 0) {
                    status = chm_failed(CHM_E_DATA);
                    goto out;
                }
                if (n == 0) break;
                c->tokens += n;
            }
        }
        if (more < 0) {
            status = chm_failed(CHM_E_DATA);
            goto out;
        }
        c->file_bytes[i] = text.size;
        c->file_hash[i] = text.hash;
        c->bytes += text.size;
        chm_text_close(&text);
    }
    c->files = count;
    if ((status = room_for_documents(c, &document_room, 0)) != CHM_OK) goto out;
    c->document[c->documents] = c->tokens;
    c->hash = chm_hash64(c->file_hash, count * sizeof *c->file_hash);
    for (int64_t d = 0; d < c->documents; d++) {
        const int64_t last = c->document[d + 1] - 1;
        c->longest = CHM_MAX(c->longest, last + 1 - c->document[d]);
        for (int64_t i = c->document[d]; i < last; i++) c->targets += chm_counts(c->answers_only, c->token[i]);
        c->targets += c->marked && !c->answers_only; /* the mark behind it */
    }
    if (c->tokens < 2)
        status = chm_fail(CHM_E_DATA, "%s: the data is one token long; there is nothing to predict", files[0]);
    else if (c->targets == 0 && c->answers_only)
        status = chm_fail(CHM_E_DATA,
                          "%s: no byte follows a '=', and with training.loss_on = \"answers\" only those count: give "
                          "data with answers, or set training.loss_on=all",
                          files[0]);
out:
    chm_text_close(&text);
    if (status != CHM_OK) chm_corpus_finish(c);
    return status;
}

void chm_corpus_finish(chm_corpus *c) {
    chm_free(c->token);
    chm_free(c->document);
    chm_free(c->file_bytes);
    chm_free(c->file_hash);
    memset(c, 0, sizeof *c);
}
