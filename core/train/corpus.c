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

/* Bytes of the buffer that may be tokenised without knowing what follows; 0: more is needed. */
static size_t piece(const chm_text *t) {
    if (t->read == t->size) return t->held;
    const size_t n = chm_tokenizer_cut(t->ops, t->self, t->buffer, t->held);
    return n > 0 || t->capacity < TEXT_LONGEST ? n : chm_tokenizer_cut_anyhow(t->buffer, t->held);
}

static int tokenise(chm_text *t) {
    int status;
    size_t n = 0;
    while (n == 0) {
        if ((status = fill(t)) != CHM_OK) return status;
        n = piece(t);
        if (n == 0) {
            uint8_t *more = chm_realloc(t->buffer, t->capacity * 2);
            if (more == NULL) return CHM_E_MEMORY;
            t->buffer = more;
            t->capacity *= 2;
        }
    }
    int64_t count = t->ops->encode(t->self, t->buffer, n, t->token, t->token_capacity);
    if (count > (int64_t)t->token_capacity) {
        int32_t *more = chm_realloc(t->token, (size_t)count * sizeof *more);
        if (more == NULL) return CHM_E_MEMORY;
        t->token = more;
        t->token_capacity = (size_t)count;
        count = t->ops->encode(t->self, t->buffer, n, t->token, t->token_capacity);
    }
    if (count < 0) return chm_fail_prefix(chm_failed(CHM_E_DATA), "%s", t->path);
    t->tokens = count;
    t->next = 0;
    t->token_bytes = (int64_t)n;
    t->hash = chm_hash64_seed(t->buffer, n, t->hash);
    t->held -= n;
    memmove(t->buffer, t->buffer + n, t->held);
    return CHM_OK;
}

int64_t chm_text_take(chm_text *t, int32_t *out, int64_t n) {
    int64_t done = 0;
    if (t->leading && n > 0) {
        out[done++] = t->ops->end_of_text(t->self);
        t->leading = false;
    }
    while (done < n) {
        if (t->next == t->tokens) {
            if (t->read == t->size && t->held == 0) break;
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

int chm_corpus_load(chm_corpus *c, const char *const *files, uint32_t count, const struct chm_plugin *tokenizer,
                    const void *tokenizer_self) {
    const struct chm_tokenizer_ops *ops = tokenizer->ops;
    chm_text text = {.fd = -1};
    int64_t capacity = 0;
    int status = CHM_OK;
    memset(c, 0, sizeof *c);
    if (count == 0) return chm_fail(CHM_E_CONFIG, "no data: name at least one file of text");
    c->document = chm_alloc((count + 1) * sizeof *c->document);
    c->document_bytes = chm_alloc(count * sizeof *c->document_bytes);
    c->document_hash = chm_alloc(count * sizeof *c->document_hash);
    if (c->document == NULL || c->document_bytes == NULL || c->document_hash == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }
    c->marked = ops->end_of_text(tokenizer_self) >= 0;
    for (uint32_t i = 0; i < count; i++) {
        if ((status = chm_text_open(&text, files[i], ops, tokenizer_self, 0)) != CHM_OK) goto out;
        c->document[i] = c->tokens;
        for (;;) {
            if (capacity - c->tokens < TEXT_PIECE) {
                /* about what this file needs with a token a byte, the most there can be for most tokenizers */
                const int64_t wanted =
                    CHM_MAX(c->tokens + (text.size - text.read) + 2 * TEXT_PIECE, capacity + capacity / 4);
                int32_t *more = chm_realloc(c->token, (size_t)wanted * sizeof *more);
                if (more == NULL) {
                    status = chm_fail_prefix(CHM_E_MEMORY, "%s: tokens of the corpus", files[i]);
                    goto out;
                }
                c->token = more;
                capacity = wanted;
            }
            const int64_t n = chm_text_take(&text, c->token + c->tokens, TEXT_PIECE);
            if (n < 0) {
                status = chm_failed(CHM_E_DATA);
                goto out;
            }
            if (n == 0) break;
            c->tokens += n;
        }
        c->document_bytes[i] = text.size;
        c->document_hash[i] = text.hash;
        c->bytes += text.size;
        chm_text_close(&text);
    }
    c->documents = count;
    c->document[count] = c->tokens;
    c->hash = chm_hash64(c->document_hash, count * sizeof *c->document_hash);
    if (c->tokens < 2)
        status = chm_fail(CHM_E_DATA, "%s: the data is one token long; there is nothing to predict", files[0]);
out:
    chm_text_close(&text);
    if (status != CHM_OK) chm_corpus_finish(c);
    return status;
}

void chm_corpus_finish(chm_corpus *c) {
    chm_free(c->token);
    chm_free(c->document);
    chm_free(c->document_bytes);
    chm_free(c->document_hash);
    memset(c, 0, sizeof *c);
}
