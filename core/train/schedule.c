/* schedule.c: learning rate and weight decay over a run. */
#include "train/train.h"

#include <math.h>

int64_t chm_schedule_free(const chm_train_config *t, int64_t steps) {
    if (t->warmup_steps > steps / 5) return 0; /* the warm-up itself is cut to the run */
    switch (t->schedule) {
    case CHM_SCHEDULE_CONSTANT:
        return steps;
    case CHM_SCHEDULE_WSD:
        return CHM_MAX((int64_t)ceil((double)steps * (1 - t->decay_fraction)), t->warmup_steps);
    case CHM_SCHEDULE_LINEAR:
    case CHM_SCHEDULE_COSINE:
    case CHM_SCHEDULE_TWO_STAGE:
        break;
    }
    return t->warmup_steps;
}

void chm_schedule_at(const chm_train_config *t, int64_t step, int64_t steps, double *lr, double *weight_decay) {
    const double pi = 3.14159265358979323846;
    const double peak = t->lr, least = t->lr * t->min_lr_ratio;
    /* A run cut short by its budget must not be all warm-up: a fifth of it at most. */
    const int64_t warmup = CHM_MIN(t->warmup_steps, steps / 5);
    *weight_decay = t->weight_decay;
    if (step < warmup) {
        *lr = peak * (double)(step + 1) / (double)warmup;
        return;
    }
    const double done = steps > warmup ? (double)(step - warmup) / (double)(steps - warmup) : 1;
    switch (t->schedule) {
    case CHM_SCHEDULE_CONSTANT:
        *lr = peak;
        return;
    case CHM_SCHEDULE_LINEAR:
        *lr = peak + (least - peak) * done;
        return;
    case CHM_SCHEDULE_WSD: {
        const double first = (double)steps * (1 - t->decay_fraction), length = (double)steps * t->decay_fraction;
        *lr = (double)step < first || length <= 0 ? peak : peak + (least - peak) * (((double)step - first) / length);
        return;
    }
    case CHM_SCHEDULE_TWO_STAGE: {
        /* arXiv:2504.12285: a high rate that falls slowly, then at the split a lower one that falls to the least, and
         * no more decay of the latents, which would pull them to the rounding boundary */
        const double split = (double)steps * t->stage_split;
        if ((double)step < split) {
            *lr = CHM_MAX(peak * (1 - done), least);
            return;
        }
        const double second = ((double)step - split) / CHM_MAX((double)steps - split, 1.0);
        *lr = t->stage2_lr * (1 + (t->min_lr_ratio - 1) * second);
        *weight_decay = t->stage2_weight_decay;
        return;
    }
    case CHM_SCHEDULE_COSINE:
        break;
    }
    *lr = least + (peak - least) * 0.5 * (1 + cos(pi * done)); /* arXiv:1608.03983, one period */
}
