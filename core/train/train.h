/*
 * train.h: optimiser, schedule, checkpoints and the training loop behind chm_train(); evaluation behind chm_eval().
 */
#ifndef CHM_TRAIN_H
#define CHM_TRAIN_H

#include "model/model.h"
#include "train/data.h"
#include <chimera/chimera.h>

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
    int64_t split;          /* rows per pass; 0: CHM_SCORE_SPLIT */
    int64_t limit_bytes;    /* over all files; 0: everything */
    int64_t expected_bytes; /* of text, where it is known better than by the sizes of the files; 0: it is not */
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
    int64_t total_bytes; /* of text, whatever the limit; beyond that a guess */
    chm_depth depth;     /* passes of the loop over all tokens */
    size_t arena_bytes;  /* high-water mark of the passes */
} chm_score;
int chm_score_files(const chm_score_request *q, chm_score *out);

#endif
