/* text.c: a file as documents, and these as tokens, piece by piece. */
#include "base/json.h"
#include "train/data.h"

#include <string.h>

enum {
    PIECE = 1 << 16,         /* bytes tokenised at once */
    LONGEST_PIECE = 1 << 20, /* the same, while looking for a place to cut */
    LONGEST_LINE = 64 << 20, /* of .jsonl */
    JUDGED = 4096            /* bytes of a document that say whether it is held out */
};

chm_corpus_rules chm_corpus_rules_of(const chm_train_config *t, enum chm_part part) {
    return (chm_corpus_rules){.lines = t->line_documents,
                              .answers_only = t->answers_only,
                              .text_field = t->text_field,
                              .holdout = t->holdout,
                              .part = part};
}

int chm_text_open(chm_text *t, const char *path, const struct chm_tokenizer_ops *ops, const void *self,
                  const chm_corpus_rules *rules, int64_t limit, bool hashed) {
    memset(t, 0, sizeof *t);
    t->ops = ops;
    t->self = self;
    t->rules = *rules;
    t->limit = limit;
    const int status = chm_contents_open(&t->in, path, hashed);
    if (status != CHM_OK) return status;
    t->capacity = PIECE;
    t->buffer = chm_alloc(t->capacity);
    t->token_capacity = PIECE;
    t->token = chm_alloc(t->token_capacity * sizeof *t->token);
    if (t->buffer != NULL && t->token != NULL) return CHM_OK;
    chm_text_close(t);
    return CHM_E_MEMORY;
}

void chm_text_close(chm_text *t) {
    chm_contents_close(&t->in);
    json_decref(t->object);
    chm_free(t->buffer);
    chm_free(t->token);
    memset(t, 0, sizeof *t);
}

/* Reads until the buffer holds `wanted` bytes or more, or the file ends. */
static int fill(chm_text *t, size_t wanted) {
    if (t->held >= wanted || t->drained) return CHM_OK;
    if (t->first > 0) memmove(t->buffer, t->buffer + t->first, t->held);
    t->first = 0;
    if (wanted > t->capacity) {
        uint8_t *more = chm_realloc(t->buffer, wanted);
        if (more == NULL) return CHM_E_MEMORY;
        t->buffer = more;
        t->capacity = wanted;
    }
    const int64_t got = chm_contents_read(&t->in, t->buffer + t->held, t->capacity - t->held);
    if (got < 0) return chm_failed(CHM_E_DATA);
    t->held += (size_t)got;
    t->drained = t->held < t->capacity;
    return CHM_OK;
}

/* What of the document at hand is still to be tokenised, as far as it is in memory; *last: that is all of it. */
static const uint8_t *ahead(const chm_text *t, size_t *n, bool *last) {
    if (t->object != NULL) {
        *n = t->object_bytes;
        *last = true;
        return t->object_text;
    }
    const uint8_t *text = t->buffer + t->first;
    const uint8_t *newline = t->rules.lines && t->held > 0 ? memchr(text, '\n', t->held) : NULL;
    *n = newline != NULL ? (size_t)(newline - text) : t->held;
    *last = newline != NULL || t->drained;
    return text;
}

/* n bytes of the document are done with. */
static void drop(chm_text *t, size_t n) {
    if (t->object != NULL) {
        t->object_text += n;
        t->object_bytes -= n;
    } else {
        t->first += n;
        t->held -= n;
    }
    *(t->skipping ? &t->skipped_bytes : &t->bytes) += (int64_t)n;
}

/* The document ends here; of a line its newline goes too. */
static void end(chm_text *t) {
    t->ended = true;
    if (t->object == NULL && t->rules.lines && t->held > 0) drop(t, 1);
}

static bool at_limit(const chm_text *t) { return t->limit > 0 && t->bytes >= t->limit; }

static int tokenise(chm_text *t) {
    size_t n, window = PIECE, piece = 0;
    bool last;
    const uint8_t *text;
    for (;;) {
        text = ahead(t, &n, &last);
        if (!last && n < window) {
            const int status = fill(t, window);
            if (status != CHM_OK) return status;
            text = ahead(t, &n, &last);
        }
        if (t->limit > 0 && (int64_t)n >= t->limit - t->bytes) {
            n = (size_t)(t->limit - t->bytes);
            last = true;
        }
        if (last && n <= window) {
            piece = n;
            break;
        }
        const size_t seen = CHM_MIN(n, window);
        piece = chm_tokenizer_cut(t->ops, t->self, text, seen);
        if (piece == 0 && window >= LONGEST_PIECE) piece = chm_tokenizer_cut_anyhow(text, seen);
        last = false;
        if (piece > 0) break;
        window *= 2;
    }
    int64_t count = t->ops->encode(t->self, text, piece, t->token, t->token_capacity);
    if (count > (int64_t)t->token_capacity) {
        int32_t *more = chm_realloc(t->token, (size_t)count * sizeof *more);
        if (more == NULL) return CHM_E_MEMORY;
        t->token = more;
        t->token_capacity = (size_t)count;
        count = t->ops->encode(t->self, text, piece, t->token, t->token_capacity);
    }
    if (count < 0) return chm_fail_prefix(chm_failed(CHM_E_DATA), "%s", t->in.path);
    t->tokens = count;
    t->next = 0;
    t->token_bytes = (int64_t)piece;
    drop(t, piece);
    if (last) {
        if (at_limit(t))
            t->ended = true; /* the newline is beyond it */
        else
            end(t);
    }
    return CHM_OK;
}

/* ---- documents ---- */

/* The next object of .jsonl: as chm_text_next(). */
static int next_object(chm_text *t) {
    json_decref(t->object);
    t->object = NULL;
    for (;;) {
        const uint8_t *newline = NULL;
        size_t looked = 0; /* bytes without a newline */
        for (;;) {
            if (t->held > looked) newline = memchr(t->buffer + t->first + looked, '\n', t->held - looked);
            if (newline != NULL || t->drained) break;
            looked = t->held;
            if (looked > LONGEST_LINE) {
                chm_fail(CHM_E_DATA, "%s:%lld: this line is longer than %d MiB; a line of .jsonl is one document",
                         t->in.path, (long long)t->line + 1, LONGEST_LINE >> 20);
                return -1;
            }
            /* a buffer that is full grows by half, else it is filled again */
            const size_t wanted = t->held < t->capacity ? t->held + 1 : t->capacity + t->capacity / 2;
            if (fill(t, wanted) != CHM_OK) return -1;
        }
        if (t->held == 0) return 0;
        const char *line = (const char *)t->buffer + t->first;
        const size_t n = newline != NULL ? (size_t)(newline - (t->buffer + t->first)) : t->held;
        t->first += n + (newline != NULL);
        t->held -= n + (newline != NULL);
        t->line++;
        if (n == 0 || (n == 1 && line[0] == '\r')) continue;
        const char *field = t->rules.text_field != NULL ? t->rules.text_field : "text";
        json_error_t error;
        json_t *object = chm_json_load(line, n, &error);
        const json_t *text = json_object_get(object, field);
        if (object == NULL && chm_json_starved())
            chm_fail(CHM_E_MEMORY, "%s:%lld: out of memory for this line", t->in.path, (long long)t->line);
        else if (object == NULL)
            chm_fail(CHM_E_DATA, "%s:%lld: no JSON (%s); a line of .jsonl is an object with its text as \"%s\"",
                     t->in.path, (long long)t->line, error.text, field);
        else if (!json_is_object(object))
            chm_fail(CHM_E_DATA, "%s:%lld: no object; a line of .jsonl is an object with its text as \"%s\"",
                     t->in.path, (long long)t->line, field);
        else if (!json_is_string(text))
            chm_fail(CHM_E_DATA,
                     "%s:%lld: \"%s\" is %s; a line of .jsonl has its text there (training.text_field says where)",
                     t->in.path, (long long)t->line, field, text == NULL ? "missing" : "no string");
        if (!json_is_string(text)) {
            json_decref(object);
            return -1;
        }
        t->object_text = (const uint8_t *)json_string_value(text);
        t->object_bytes = json_string_length(text);
        if (t->object_bytes > 0) {
            t->object = object;
            return 1;
        }
        json_decref(object);
    }
}

/* To where the next document begins: as chm_text_next(). */
static int advance(chm_text *t) {
    if (t->in.objects) return next_object(t);
    if (!t->rules.lines) {
        if (t->begun) return 0;
        if (fill(t, 1) != CHM_OK) return -1;
        if (t->held > 0) return 1;
        chm_fail(CHM_E_DATA, "%s: is empty; a file of text has at least one byte", t->in.path);
        return -1;
    }
    for (;;) {
        if (fill(t, 1) != CHM_OK) return -1;
        if (t->held == 0) return 0;
        if (t->buffer[t->first] != '\n') return 1;
        if (at_limit(t)) return 0;
        drop(t, 1); /* an empty line is no document; it counts with the one before it */
    }
}

/* Whether the document at hand is held out: 1, 0; < 0: chm_error(). */
static int is_held(chm_text *t) {
    size_t n;
    bool last;
    const uint8_t *text = ahead(t, &n, &last);
    if (!last && n < JUDGED) {
        if (fill(t, JUDGED) != CHM_OK) return -1;
        text = ahead(t, &n, &last);
    }
    const uint64_t hash = chm_hash64(text, CHM_MIN(n, (size_t)JUDGED));
    return (double)(hash >> 11) * 0x1p-53 < t->rules.holdout;
}

static int skip(chm_text *t) {
    size_t n;
    bool last;
    t->skipped++;
    do {
        if (t->held == 0 && t->object == NULL && fill(t, 1) != CHM_OK) return -1;
        ahead(t, &n, &last);
        drop(t, n);
    } while (!last);
    end(t);
    return 0;
}

int chm_text_next(chm_text *t) {
    t->tokens = t->next = 0;
    for (;;) {
        if (at_limit(t)) return 0;
        const int more = advance(t);
        if (more <= 0) return more;
        t->begun = true;
        t->ended = false;
        t->skipping = false;
        if (t->rules.part == CHM_PART_ALL || !(t->rules.holdout > 0)) break;
        const int held = is_held(t);
        if (held < 0) return -1;
        if (held == (t->rules.part == CHM_PART_HELD)) break;
        t->skipping = true;
        if (skip(t) < 0) return -1;
    }
    t->leading = t->ops->end_of_text(t->self) >= 0;
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
            if (t->ended) break;
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
    return t->bytes - (int64_t)(left * (double)t->token_bytes);
}
