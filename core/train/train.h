/*
 * train.h: data, optimiser, schedule, checkpoints and the training loop behind chm_train(); evaluation behind
 * chm_eval().
 */
#ifndef CHM_TRAIN_H
#define CHM_TRAIN_H

#include "model/model.h"
#include <chimera/chimera.h>

/* A tokenised corpus: every file one document that begins with end-of-text (where the tokenizer has one). */
typedef struct chm_corpus {
    int32_t *token;
    int64_t tokens;    /* end-of-text marks included */
    int64_t *document; /* first token of each document, and `tokens` at the end */
    int64_t documents;
    int64_t bytes; /* of text */
    uint64_t hash; /* of the text */
} chm_corpus;
int chm_corpus_load(chm_corpus *c, const char *const *files, uint32_t count, const struct chm_plugin *tokenizer,
                    const void *tokenizer_self);
void chm_corpus_finish(chm_corpus *c);

/* Learning rate and weight decay at a step of a run of `steps`. spec of each schedule in docs/reference.md */
void chm_schedule_at(const chm_train_config *t, int64_t step, int64_t steps, double *lr, double *weight_decay);

#endif
