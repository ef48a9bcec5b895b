/*
 * train.h: data, optimiser, schedule, checkpoints and the training loop behind chm_train(); evaluation behind
 * chm_eval().
 */
#ifndef CHM_TRAIN_H
#define CHM_TRAIN_H

#include "model/model.h"
#include <chimera/chimera.h>

/* ---- text: one file as tokens, read in pieces (corpus.c) ---- */

/*
 * A document is a file, or a line of it: end-of-text first (where the tokenizer has one), then its tokens. Memory is
 * constant: a piece
 * of the file and its tokens. Pieces end where the tokenizer says that a text may be cut, so the tokens are those of
 * the whole file; only a megabyte without such a place is cut anyhow. Training and evaluation read through this, so
 * they see the same tokens.
 */
typedef struct chm_text {
    const char *path;
    const struct chm_tokenizer_ops *ops;
    const void *self;
    int fd;
    int64_t size;  /* bytes that will be read: of the file, or the limit */
    int64_t read;  /* bytes read so far */
    uint64_t hash; /* of the bytes tokenised so far */
    uint8_t *buffer;
    size_t first, held, capacity; /* bytes first .. first + held of the buffer are still to be tokenised */
    int32_t *token;
    size_t token_capacity;
    int64_t tokens, next;
    int64_t token_bytes; /* of text, that these tokens were made of */
    bool leading;        /* end-of-text is still to come */
    bool lines;          /* set before the first chm_text_next(): every line is a document, without its newline */
    bool begun, ended;   /* the first document; the one at hand, whose line is tokenised to its end */
} chm_text;
/* Refused by name: what cannot be read, is not a regular file, or is empty. limit: most bytes, 0: all. */
int chm_text_open(chm_text *t, const char *path, const struct chm_tokenizer_ops *ops, const void *self, int64_t limit);
/* Moves on to the next document, at first to the first: 1; 0: there is none; < 0: chm_error(). A file that is one
 * document may be read without it. */
int chm_text_next(chm_text *t);
/* Up to n tokens, fewer only at the end of the document, 0 after it; < 0: chm_error(). */
int64_t chm_text_take(chm_text *t, int32_t *out, int64_t n);
/* Bytes of text behind the tokens taken so far; within the piece at hand an estimate, for progress. */
int64_t chm_text_bytes_taken(const chm_text *t);
void chm_text_close(chm_text *t);

/* How a corpus is read, from the card: training.documents and training.loss_on. */
typedef struct chm_corpus_rules {
    bool lines;        /* every line a document */
    bool answers_only; /* only the byte behind a '=' counts; the card has seen to it that tokens are bytes */
} chm_corpus_rules;
chm_corpus_rules chm_corpus_rules_of(const chm_train_config *t);
/* Whether what is predicted where token `id` was read counts. */
static inline bool chm_counts(bool answers_only, int32_t id) { return !answers_only || id == '='; }

/* A tokenised corpus: documents that begin with end-of-text (where the tokenizer has one). */
typedef struct chm_corpus {
    int32_t *token;
    int64_t tokens;    /* end-of-text marks included */
    int64_t *document; /* first token of each document, and `tokens` at the end */
    int64_t documents;
    int64_t longest; /* tokens of a document */
    int64_t targets; /* tokens that are predicted and count */
    int64_t bytes;   /* of text */
    uint64_t hash;   /* of the text */
    int64_t files;
    int64_t *file_bytes; /* of each file */
    uint64_t *file_hash;
    bool marked;       /* documents begin with end-of-text */
    bool whole;        /* runs begin with a document */
    bool answers_only; /* chm_corpus_rules */
} chm_corpus;
int chm_corpus_load(chm_corpus *c, const char *const *files, uint32_t count, const struct chm_plugin *tokenizer,
                    const void *tokenizer_self, const chm_corpus_rules *rules);
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

/* ---- schedules (schedule.c) ---- */

/*
 * Learning rate and weight decay at step 0..steps-1 of a run. Every schedule begins with a linear warm-up of
 * warmup_steps, at most a fifth of the run; least = lr * min_lr_ratio.
 *   constant          lr
 *   linear            lr to least in a line
 *   cosine_warmup     lr to least in half a cosine
 *   wsd               lr, and over the last decay_fraction of the run in a line to least
 *   bitnet_two_stage  up to stage_split of the run a line from lr that would reach 0 at its end; from there a line from
 *                     stage2_lr to stage2_lr * min_lr_ratio, with stage2_weight_decay
 */
void chm_schedule_at(const chm_train_config *t, int64_t step, int64_t steps, double *lr, double *weight_decay);
/*
 * The first step whose rates depend on the length of the run: before it, every run of `steps` steps or more has the
 * same ones. A budget in seconds is turned into steps there and not earlier, from the pace of the steps already taken.
 */
int64_t chm_schedule_free(const chm_train_config *t, int64_t steps);

/* ---- scores (eval.c) ---- */

enum { CHM_SCORE_SPLIT = 64 };
/* What chm_eval() and the validations of a training run share: the same code on the packed values, so that both give
 * the same bytes. */
typedef struct chm_score_request {
    chm_model *model;
    const struct chm_kernels *kernels;
    chm_pool *pool;
    const struct chm_tokenizer_ops *tokenizer;
    const void *tokenizer_self;
    const char *const *files;
    uint32_t count;
    int64_t split;       /* rows per pass; 0: CHM_SCORE_SPLIT */
    int64_t limit_bytes; /* over all files; 0: everything */
    chm_corpus_rules rules;
    FILE *logits; /* raw f32 [tokens, vocab]; NULL: none */
    void (*progress)(void *user, int64_t done, int64_t total);
    void *user;
    const volatile int *stop;
} chm_score_request;
typedef struct chm_score {
    double nats, bits_per_byte;
    int64_t bytes, tokens, documents;
    int64_t counted, right; /* predictions that count; those whose likeliest token came */
    chm_eval_length length[CHM_EVAL_LENGTHS];
    int64_t total_bytes; /* of the files, whatever the limit */
    chm_depth depth;     /* passes of the loop over all tokens */
    size_t arena_bytes;  /* high-water mark of the passes */
} chm_score;
int chm_score_files(const chm_score_request *q, chm_score *out);

#endif
