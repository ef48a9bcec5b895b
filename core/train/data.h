/*
 * data.h: from the words of DATA to the tokens of a step: files, their bytes, their documents, a corpus of them, and
 * the order that training reads it in.
 */
#ifndef CHM_DATA_H
#define CHM_DATA_H

#include "config/card.h"
#include "model/tokenizer.h"
#include <chimera/chimera.h>

/* ---- files (sources.c) ---- */

typedef struct chm_sources {
    char **path;
    uint32_t count, capacity;
    int64_t bytes; /* of all files, as they are on disk */
} chm_sources;
/*
 * What `words` name, in their order: a file; a directory, which is all files below it; or a pattern (* ? [...] within a
 * name, ** for any directories), which is what it matches, a directory again all below it. The files of a word come in
 * the order of the bytes of their paths, each once. Hidden names, empty files, links to directories and what is neither
 * file nor directory are left out where they were not named, and the directory `except` (NULL: none). Refused: a word
 * that comes to no file, a directory that cannot be read, a link to nothing.
 */
int chm_sources_find(chm_sources *s, const char *const *words, uint32_t count, const char *except);
void chm_sources_finish(chm_sources *s);

/* ---- bytes (contents.c) ---- */

/* A file's contents from beginning to end, in constant memory; of a file called .zst, what is packed in it. */
typedef struct chm_contents {
    const char *path; /* NULL: closed */
    bool objects;     /* it is called .jsonl (or .jsonl.zst): every line is a JSON object */
    int fd;
    int64_t file_bytes, file_read; /* of the file on disk */
    int64_t bytes;                 /* of contents read so far */
    chm_hasher *hasher;            /* of these; NULL: not wanted */
    void *unpacker;                /* of zstd; NULL: the file is plain */
    uint8_t *block;
    size_t first, held; /* bytes of the block that are still to be unpacked */
    bool within;        /* a frame is not at its end */
} chm_contents;
bool chm_contents_are_objects(const char *path); /* by its name */
/* Refused by name: what cannot be read, is not a regular file, or is empty. */
int chm_contents_open(chm_contents *in, const char *path, bool hashed);
/* Up to n bytes, fewer only at the end; < 0: chm_error(). */
int64_t chm_contents_read(chm_contents *in, void *to, size_t n);
uint64_t chm_contents_hash(const chm_contents *in); /* of what was read; opened `hashed` only */
void chm_contents_close(chm_contents *in);          /* fine when it is closed, or zero */

/* ---- documents (text.c) ---- */

enum chm_part { CHM_PART_ALL, CHM_PART_KEPT, CHM_PART_HELD };

/* How data are read, from the card. */
typedef struct chm_corpus_rules {
    bool lines;             /* training.documents = line: every line a document */
    bool answers_only;      /* training.loss_on: only the byte behind a '=' counts; the card has seen to it that tokens
                             * are bytes */
    const char *text_field; /* training.text_field: where an object of .jsonl has its text; NULL: "text" */
    double holdout;         /* training.holdout: share of the documents that is held out */
    enum chm_part part;     /* which documents are read: all, those not held out, those that are */
} chm_corpus_rules;
chm_corpus_rules chm_corpus_rules_of(const chm_train_config *t, enum chm_part part);
/* Whether what is predicted where token `id` was read counts. */
static inline bool chm_counts(bool answers_only, int32_t id) { return !answers_only || id == '='; }

/*
 * A file as documents and their tokens. A document is the file, a line of it (without its newline), or an object of
 * .jsonl; end-of-text comes first (where the tokenizer has one), then its tokens. An empty line is no document, nor is
 * an object with an empty text. Memory is constant: a piece of the file and its tokens; of .jsonl, a line. Pieces end
 * where the tokenizer says that a text may be cut, so the tokens are those of the whole document; only a megabyte
 * without such a place is cut anyhow. Training and evaluation read through this, so they see the same tokens.
 *
 * Held out is a document whose first 4096 bytes have a hash below `holdout`: neither names nor order matter, and
 * documents that begin alike are on one side.
 */
typedef struct chm_text {
    chm_contents in;
    const struct chm_tokenizer_ops *ops;
    const void *self;
    chm_corpus_rules rules;
    int64_t limit;                  /* most bytes of text taken; 0: none */
    int64_t bytes;                  /* of text, tokenised so far */
    int64_t skipped, skipped_bytes; /* documents that are not of the part, and their text */
    uint8_t *buffer;
    size_t first, held, capacity; /* bytes first .. first + held of the buffer are still to be used */
    bool drained;                 /* the file has given all */
    int64_t line;                 /* of .jsonl, from 1 */
    void *object;                 /* json_t, whose text is the document; NULL: the document is in the buffer */
    const uint8_t *object_text;
    size_t object_bytes; /* of it that are still to be tokenised */
    int32_t *token;
    size_t token_capacity;
    int64_t tokens, next;
    int64_t token_bytes; /* of text, that these tokens were made of */
    bool leading;        /* end-of-text is still to come */
    bool begun, ended;   /* the first document; the one at hand, which is tokenised to its end */
    bool skipping;       /* the latest document was not of the part */
} chm_text;
/* Refused as by chm_contents_open(). limit: most bytes of text that are read; 0: all. */
int chm_text_open(chm_text *t, const char *path, const struct chm_tokenizer_ops *ops, const void *self,
                  const chm_corpus_rules *rules, int64_t limit, bool hashed);
/* Moves on to the next document, at first to the first: 1; 0: there is none; < 0: chm_error(). */
int chm_text_next(chm_text *t);
/* Up to n tokens, fewer only at the end of the document, 0 after it; < 0: chm_error(). */
int64_t chm_text_take(chm_text *t, int32_t *out, int64_t n);
/* Bytes of text behind the tokens taken so far; within the piece at hand an estimate, for progress. */
int64_t chm_text_bytes_taken(const chm_text *t);
void chm_text_close(chm_text *t); /* fine when it is closed, or zero */

/* ---- corpora (corpus.c) ---- */

/* More text than this is not kept in memory as tokens, but in a file that is mapped. */
enum { CHM_CORPUS_IN_MEMORY = 16 << 20 };

/* A tokenised corpus: documents that begin with end-of-text (where the tokenizer has one). */
typedef struct chm_corpus {
    const void *token;       /* chm_corpus_token() */
    bool narrow;             /* tokens have 16 bits, else 32 */
    int64_t tokens;          /* end-of-text marks included */
    const int64_t *document; /* first token of each document, and `tokens` at the end */
    int64_t documents;
    int64_t longest;                    /* tokens of a document */
    int64_t targets;                    /* tokens that are predicted and count */
    int64_t bytes;                      /* of text */
    int64_t held_documents, held_bytes; /* not among them: of the other part (chm_corpus_rules) */
    uint64_t hash;                      /* of the files' contents */
    int64_t files;
    int64_t *file_bytes;  /* contents of each file, */
    uint64_t *file_hash;  /* and their hash */
    int64_t source_bytes; /* of all of them */
    bool marked;          /* documents begin with end-of-text */
    bool whole;           /* runs begin with a document */
    bool answers_only;    /* chm_corpus_rules */
    uint8_t *memory;      /* where tokens and documents lie; NULL: they are mapped */
    chm_map map;
    char *file; /* it is mapped from; NULL: it has no name */
} chm_corpus;
static inline int32_t chm_corpus_token(const chm_corpus *c, int64_t i) {
    return c->narrow ? ((const uint16_t *)c->token)[i] : ((const int32_t *)c->token)[i];
}

typedef struct chm_corpus_request {
    const char *const *files;
    uint32_t count;
    const struct chm_tokenizer_ops *tokenizer;
    const void *tokenizer_self;
    uint64_t tokenizer_hash;
    chm_corpus_rules rules;
    const char *directory; /* for the file of tokens; NULL: it gets no name */
    bool always;           /* such a file for small corpora too */
    void (*say)(void *user, const char *sentence);
    void *user;
    const volatile int *stop;
} chm_corpus_request;
/* Reads all files once: their sizes and hashes, and that each can be read. */
int chm_corpus_survey(chm_corpus *c, const chm_corpus_request *q);
/* Whether the tokens will be in a file of the directory; after the survey. */
bool chm_corpus_is_kept(const chm_corpus *c, const chm_corpus_request *q);
/*
 * After the survey. The tokens are made, or taken from the file corpus-KEY.tokens of an earlier run where its key (of
 * the files' contents, the tokenizer and the rules), its size, its hashes and all its numbers are right; else that is
 * made anew. Fails on data without a prediction, and where one of the two parts of a holdout is empty.
 */
int chm_corpus_load(chm_corpus *c, const chm_corpus_request *q);
/* The corpus in an image of such a file, which must outlive it. Refused: anything that does not fit. */
int chm_corpus_read(chm_corpus *c, const char *name, const uint8_t *data, uint64_t size, uint64_t key, int32_t vocab);
void chm_corpus_finish(chm_corpus *c);

/* ---- order of the data (batch.c) ---- */

/*
 * A step reads one segment of `rows` tokens from each of `streams` streams. A stream plays runs of `carry` neighbouring
 * segments; where runs begin is a permutation of the corpus (cut into runs, shifted by a random amount) drawn anew for
 * every epoch, keyed by Philox. The corpus is a circle. Streams are staggered, so that only one in `carry` jumps at a
 * step. All of it is a function of (seed, step, stream). Where documents are lines a run begins with the document it
 * would have begun in, so that nothing is asked about a beginning that was not read; one longer than a run is cut.
 */
typedef struct chm_batch {
    const chm_corpus *corpus;
    uint64_t seed;
    int64_t streams, rows, carry;
} chm_batch;
/* Segment of a stream at a step: ids, targets (-1: none) and document positions, `rows` of each. Position 0 marks a
 * fresh state: the first row of a run, and the first row of a document. */
void chm_batch_segment(const chm_batch *b, int64_t step, int64_t stream, int32_t *id, int32_t *target,
                       int64_t *position);
/* Targets of all streams of a step. */
int64_t chm_batch_targets(const chm_batch *b, int64_t step);

#endif
