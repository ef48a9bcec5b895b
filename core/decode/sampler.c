/* sampler.c: see sampler.h for the order of the filters and why. */
#include "decode/sampler.h"
#include <math.h>
#include <string.h>

int chm_sampling_check(const chm_sampling *s) {
    if (s->size != sizeof(*s))
        return chm_fail(CHM_E_CONFIG, "chm_sampling has size %u, this library expects %zu", s->size, sizeof(*s));
    /* written so that NaN is refused */
    if (!(s->temperature >= 0 && s->temperature <= CHM_TEMPERATURE_MAX))
        return chm_fail(CHM_E_CONFIG, "temperature %g: a number 0..%d (0 takes the most likely token)", s->temperature,
                        CHM_TEMPERATURE_MAX);
    if (s->top_k < 0 || s->top_k > CHM_TOP_K_MAX)
        return chm_fail(CHM_E_CONFIG, "top_k %d: 0 (off) .. %d tokens to keep", s->top_k, CHM_TOP_K_MAX);
    if (!(s->top_p >= CHM_TOP_P_MIN && s->top_p <= 1))
        return chm_fail(CHM_E_CONFIG, "top_p %g: a probability %g..1 (1 is off)", s->top_p, CHM_TOP_P_MIN);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return chm_fail(CHM_E_CONFIG, "min_p %g: a probability 0 (off) .. 1", s->min_p);
    if (!(s->repeat_penalty >= CHM_REPEAT_PENALTY_MIN && s->repeat_penalty <= CHM_REPEAT_PENALTY_MAX))
        return chm_fail(CHM_E_CONFIG, "repeat_penalty %g: a factor %g..%d (1 is off)", s->repeat_penalty,
                        CHM_REPEAT_PENALTY_MIN, CHM_REPEAT_PENALTY_MAX);
    if (s->repeat_last < 0 || s->repeat_last > CHM_REPEAT_LAST_MAX)
        return chm_fail(CHM_E_CONFIG, "repeat_last %d: 0 (off) .. %d tokens", s->repeat_last, CHM_REPEAT_LAST_MAX);
    return CHM_OK;
}

int chm_sampler_init(chm_sampler *s, const struct chm_kernels *kernels, const chm_sampling *settings, int64_t vocab) {
    memset(s, 0, sizeof(*s));
    int status = chm_sampling_check(settings);
    if (status != CHM_OK) return status;
    s->kernels = kernels;
    s->settings = *settings;
    s->vocab = vocab;
    const size_t n = (size_t)vocab;
    s->z = chm_alloc_aligned(n * sizeof(*s->z));
    s->p = chm_alloc_aligned(n * sizeof(*s->p));
    s->heap = chm_alloc(n * sizeof(*s->heap));
    s->kept = chm_alloc(n * sizeof(*s->kept));
    s->kept_p = chm_alloc(n * sizeof(*s->kept_p));
    s->masked = chm_alloc(n * sizeof(*s->masked));
    s->times = chm_alloc(n * sizeof(*s->times));
    s->recent = chm_alloc((size_t)CHM_MAX(settings->repeat_last, 1) * sizeof(*s->recent));
    if (!s->z || !s->p || !s->heap || !s->kept || !s->kept_p || !s->masked || !s->times || !s->recent) {
        chm_sampler_finish(s);
        return CHM_E_MEMORY;
    }
    return CHM_OK;
}

void chm_sampler_finish(chm_sampler *s) {
    chm_free(s->z);
    chm_free(s->p);
    chm_free(s->heap);
    chm_free(s->kept);
    chm_free(s->kept_p);
    chm_free(s->masked);
    chm_free(s->times);
    chm_free(s->recent);
    memset(s, 0, sizeof(*s));
}

void chm_sampler_mask(chm_sampler *s, int32_t id) {
    if (id >= 0 && id < s->vocab) s->masked[id] = true;
}

void chm_sampler_saw(chm_sampler *s, int32_t id) {
    const int64_t last = s->settings.repeat_last;
    if (last == 0 || id < 0 || id >= s->vocab) return;
    if (s->recent_count == last)
        s->times[s->recent[s->recent_at]]--;
    else
        s->recent_count++;
    s->recent[s->recent_at] = id;
    s->times[id]++;
    s->recent_at = (s->recent_at + 1) % last;
}

/* ---- a heap of ids, the most likely (lowest id on ties) on top --------------------------------------------------- */

static bool before(const float *z, int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); }

static void sift(const float *z, int32_t *heap, int64_t n, int64_t i) {
    const int32_t id = heap[i];
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && before(z, heap[child + 1], heap[child])) child++;
        if (!before(z, heap[child], id)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = id;
}

static int32_t pop(const float *z, int32_t *heap, int64_t *n) {
    const int32_t top = heap[0];
    heap[0] = heap[--*n];
    if (*n > 0) sift(z, heap, *n, 0);
    return top;
}

/* Fills kept and kept_p with what may be drawn: *count of them, summing to *total. */
static int survivors(chm_sampler *s, const float *logits, int64_t *count_out, double *total) {
    const chm_sampling *o = &s->settings;
    const float penalty = (float)o->repeat_penalty;
    int32_t best = -1;
    int64_t left = 0;
    for (int64_t i = 0; i < s->vocab; i++) {
        const float l = logits[i];
        if (s->allowed && !s->allowed[i]) continue;
        if (!isfinite(l))
            return chm_fail(
                CHM_E_DATA,
                "the model's logit of token %lld is %s: its weights or state are damaged (chimera inspect --verify)",
                (long long)i, isnan(l) ? "not a number" : "infinite");
        s->z[i] = l;
        if (s->masked[i]) continue;
        /* away from likely, whatever the sign */
        if (s->times[i] > 0 && penalty != 1.0f) s->z[i] = l > 0 ? l / penalty : l * penalty;
        if (!isfinite(s->z[i])) s->z[i] = s->z[i] > 0 ? 3.0e38f : -3.0e38f;
        if (best < 0 || s->z[i] > s->z[best]) best = (int32_t)i;
        s->heap[left++] = (int32_t)i;
    }
    if (best < 0)
        return chm_fail(CHM_E_CONFIG, "no token may come that can be drawn: every one of those allowed is masked");
    if (o->temperature == 0) {
        s->kept[0] = best;
        s->kept_p[0] = *total = 1;
        *count_out = 1;
        return CHM_OK;
    }
    /* exp of what is left only, gathered so that masked tokens take no part */
    const double top = s->z[best];
    for (int64_t i = 0; i < left; i++) {
        const double x = ((double)s->z[s->heap[i]] - top) / o->temperature;
        s->p[i] = x < -1000 ? -1000.0f : (float)x;
    }
    s->kernels->unary(CHM_EXP, s->p, left, s->p);
    double sum = 0;
    for (int64_t i = 0; i < left; i++) sum += s->p[i];

    if (o->top_k == 0 && o->top_p == 1 && o->min_p == 0) { /* nothing to cut, so no order is needed */
        for (int64_t i = 0; i < left; i++) {
            s->kept[i] = s->heap[i];
            s->kept_p[i] = s->p[i];
        }
        *total = sum;
        *count_out = left;
        return CHM_OK;
    }

    /* p by id, so that it can be found after the heap has moved things: from the back, as heap[i] >= i */
    for (int64_t i = left - 1; i >= 0; i--) s->p[s->heap[i]] = s->p[i];
    int64_t n = left;
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift(s->z, s->heap, n, i);
    const int64_t most = o->top_k > 0 ? CHM_MIN((int64_t)o->top_k, left) : left;
    if (o->top_k > 0) {
        sum = 0;
        for (int64_t i = 0; i < most; i++) {
            s->kept[i] = pop(s->z, s->heap, &n);
            s->kept_p[i] = s->p[s->kept[i]];
            sum += s->kept_p[i];
        }
    }
    /* where top-p may stop; off must not depend on how sums round */
    const double enough = o->top_p < 1 ? o->top_p * sum : HUGE_VAL;
    double kept_sum = 0;
    int64_t count = 0;
    for (; count < most; count++) {
        if (o->top_k == 0) {
            s->kept[count] = pop(s->z, s->heap, &n);
            s->kept_p[count] = s->p[s->kept[count]];
        }
        /* the first always stays; top-p keeps the token that crosses the line */
        if (count > 0 && (kept_sum >= enough || s->kept_p[count] < o->min_p * s->kept_p[0])) break;
        kept_sum += s->kept_p[count];
    }
    *total = kept_sum;
    *count_out = count;
    return CHM_OK;
}

int chm_sampler_draw(chm_sampler *s, const float *logits, int64_t position, int32_t *id) {
    double total = 0;
    int64_t n = 0;
    const int status = survivors(s, logits, &n, &total);
    if (status != CHM_OK) return status;
    const double u = chm_uniform_at(s->settings.seed, CHM_RANDOM_SAMPLE, 0, (uint64_t)position) * total;
    double sum = 0;
    int64_t chosen = -1;
    for (int64_t i = 0; i < n; i++) {
        if (s->kept_p[i] <= 0) continue;
        chosen = i; /* rounding may leave u above the last sum: then the last that has any chance */
        sum += s->kept_p[i];
        if (u < sum) break;
    }
    *id = s->kept[chosen];
    return CHM_OK;
}

int chm_sampler_distribution(chm_sampler *s, const float *logits, double *p) {
    double total = 0;
    int64_t n = 0;
    const int status = survivors(s, logits, &n, &total);
    if (status != CHM_OK) return status;
    memset(p, 0, (size_t)s->vocab * sizeof(*p));
    for (int64_t i = 0; i < n; i++) p[s->kept[i]] = s->kept_p[i] / total;
    return CHM_OK;
}
