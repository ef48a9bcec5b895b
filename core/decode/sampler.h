/*
 * sampler.h: from logits to a token.
 *
 * A token is a function of (logits, settings, recent tokens, seed, position) and of nothing else: the draw is Philox at
 * (seed, SAMPLE, position), exp is the kernel table's exact one and sums run in f64 in a fixed order. So the same seed
 * gives the same text on any machine, thread count and backend.
 *
 * Order: repeat penalty, mask, temperature, top-k, top-p, min-p, draw. The penalty works on logits and must see them
 * before anything scales them; the cuts work on probabilities and must see the ones that will be drawn from, so
 * temperature comes before them; each cut looks at what the one before it left. top-k and top-p renormalise, min-p
 * compares with the most likely token, which no cut removes.
 */
#ifndef CHM_SAMPLER_H
#define CHM_SAMPLER_H

#include "base/base.h"
#include <chimera/chimera.h>

typedef struct chm_sampler {
    const struct chm_kernels *kernels;
    chm_sampling settings;
    int64_t vocab;
    float *z, *p;   /* [vocab]: penalised logits of what is left, (z - max) / temperature and its exp */
    int32_t *heap;  /* [vocab] ids */
    double *kept_p; /* [vocab] */
    int32_t *kept;  /* [vocab] ids, most likely first */
    bool *masked;   /* [vocab]: never drawn */
    const bool
        *allowed; /* [vocab]: of the next draw, the caller's; the logits of others are not looked at. NULL: all */
    /* the last settings.repeat_last tokens, and how often each id is among them */
    int32_t *recent, *times;
    int64_t recent_at, recent_count;
} chm_sampler;

/* CHM_E_CONFIG for settings out of the ranges that chimera.h gives beside chm_sampling. */
int chm_sampling_check(const chm_sampling *s);
int chm_sampler_init(chm_sampler *s, const struct chm_kernels *kernels, const chm_sampling *settings, int64_t vocab);
void chm_sampler_finish(chm_sampler *s);
void chm_sampler_mask(chm_sampler *s, int32_t id); /* ids outside the vocabulary are ignored */
void chm_sampler_saw(chm_sampler *s, int32_t id);  /* the text goes on with id: for the repeat penalty */
/* The token at `position` of its document. CHM_E_DATA for a logit that is not finite. Allocates nothing. */
int chm_sampler_draw(chm_sampler *s, const float *logits, int64_t position, int32_t *id);
/* The distribution the draw would use, p[vocab] summing to 1; temperature 0 gives its one token 1. For tests. */
int chm_sampler_distribution(chm_sampler *s, const float *logits, double *p);

#endif
