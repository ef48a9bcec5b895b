/*
 * optimiser.c: what is kept of every parameter, and how a gradient moves it. AdamW and SGD work on pieces of fixed
 * size, Muon (muon.c) on whole matrices; MeZO has no gradient and a file of its own.
 */
#include "train/trainer.h"

#include <math.h>
#include <string.h>

static const float deep_zero = 0.3f; /* of the scale */

static int64_t padded(const chm_param *p) { return (p->count + 15) / 16 * 16; }

int chm_optimiser_arrays(const chm_train_config *c, const chm_param *p, const char *name[CHM_OPTIMISER_ARRAYS]) {
    if (p->role == CHM_ROLE_OWN || c->optimiser == CHM_OPTIMISER_MEZO) return 0;
    const bool muon = c->optimiser == CHM_OPTIMISER_MUON && chm_muon_takes(p);
    if (muon || c->optimiser == CHM_OPTIMISER_SGD) {
        name[0] = "momentum";
        return muon || c->momentum > 0 ? 1 : 0;
    }
    name[0] = "adam_m";
    name[1] = "adam_v";
    return 2;
}

static size_t state_floats(const chm_trainer *t) {
    const char *name[CHM_OPTIMISER_ARRAYS];
    size_t floats = 0;
    for (int i = 0; i < t->model->params; i++)
        floats += (size_t)(chm_optimiser_arrays(t->config, t->model->param[i], name) * padded(t->model->param[i]));
    return floats;
}

/* Of one worker; 0: none is needed. */
static size_t scratch_floats(const chm_trainer *t) {
    size_t most = 0;
    for (int i = 0; i < t->model->params && t->config->optimiser == CHM_OPTIMISER_MUON; i++)
        if (chm_muon_takes(t->model->param[i])) most = CHM_MAX(most, chm_muon_scratch(t->model->param[i]));
    return most;
}

uint64_t chm_optimiser_bytes(const chm_trainer *t) {
    if (t->config->optimiser == CHM_OPTIMISER_MEZO) return chm_mezo_bytes(t);
    return sizeof(float) * (state_floats(t) + scratch_floats(t) * (size_t)chm_pool_threads(t->pool));
}

int chm_optimiser_allocate(chm_trainer *t) {
    const chm_model *m = t->model;
    const size_t scratch = scratch_floats(t);
    for (int i = 0; i < m->params; i++)
        if (m->param[i]->role != CHM_ROLE_OWN) t->pieces += (m->param[i]->count + CHM_PIECE - 1) / CHM_PIECE;
    t->piece = chm_alloc((size_t)t->pieces * sizeof *t->piece);
    t->partial = chm_alloc((size_t)t->pieces * sizeof *t->partial);
    t->state = chm_alloc((size_t)m->params * sizeof *t->state);
    t->state_storage = chm_alloc_aligned(CHM_MAX(state_floats(t), 1) * sizeof *t->state_storage);
    if (t->piece == NULL || t->partial == NULL || t->state == NULL || t->state_storage == NULL) return CHM_E_MEMORY;
    if (scratch > 0) {
        t->muon_scratch = chm_alloc((size_t)chm_pool_threads(t->pool) * sizeof *t->muon_scratch);
        if (t->muon_scratch == NULL) return CHM_E_MEMORY;
        for (int i = 0; i < chm_pool_threads(t->pool); i++)
            if ((t->muon_scratch[i] = chm_alloc_aligned(scratch * sizeof(float))) == NULL) return CHM_E_MEMORY;
    }
    float *at = t->state_storage;
    int64_t n = 0;
    for (int i = 0; i < m->params; i++) {
        chm_param *p = m->param[i];
        const char *name[CHM_OPTIMISER_ARRAYS];
        const int arrays = chm_optimiser_arrays(t->config, p, name);
        for (int k = 0; k < arrays; k++, at += padded(p)) t->state[i].array[k] = at;
        for (int64_t first = 0; p->role != CHM_ROLE_OWN && first < p->count; first += CHM_PIECE)
            t->piece[n++] = (chm_piece){p, i, first, CHM_MIN(p->count - first, CHM_PIECE)};
    }
    return t->config->optimiser == CHM_OPTIMISER_MEZO ? chm_mezo_allocate(t) : CHM_OK;
}

void chm_optimiser_finish(chm_trainer *t) {
    for (int i = 0; t->muon_scratch != NULL && i < chm_pool_threads(t->pool); i++) chm_free(t->muon_scratch[i]);
    chm_free(t->muon_scratch);
    chm_free(t->state_storage);
    chm_free(t->state);
    chm_free(t->piece);
    chm_free(t->partial);
    chm_mezo_finish(t);
}

void chm_optimiser_clear(chm_trainer *t) { memset(t->state_storage, 0, state_floats(t) * sizeof *t->state_storage); }

/* ---- the norm ---- */

static void norm_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const chm_trainer *t = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const float *g = t->piece[i].param->grad + t->piece[i].first;
        double sum[8] = {0};
        int64_t k = 0;
        for (; k + 8 <= t->piece[i].count; k += 8)
            for (int j = 0; j < 8; j++) sum[j] += (double)g[k + j] * (double)g[k + j];
        for (; k < t->piece[i].count; k++) sum[0] += (double)g[k] * (double)g[k];
        t->partial[i] = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
    }
}

double chm_optimiser_norm(chm_trainer *t) {
    chm_parallel(t->pool, t->pieces, 4, norm_pieces, t);
    double sum = 0;
    for (int64_t i = 0; i < t->pieces; i++) sum += t->partial[i];
    return sqrt(sum);
}

/* ---- weights near zero ---- */

/* The scale that a weight was last quantised with, and how many behind it in its row share it. */
static float scale_at(const chm_param *p, int64_t index, int64_t *run) {
    const struct chm_ternary *t = &p->ternary;
    const int64_t row = index / t->in, column = index % t->in, group = column / t->group;
    const uint8_t *scales = t->scales + row / 16 * chm_ternary_scale_stride(t->in, t->group);
    float row_scale;
    memcpy(&row_scale, scales + 4 * (row % 16), sizeof row_scale);
    *run = CHM_MIN((group + 1) * t->group, t->in) - column;
    return (float)scales[64 + 16 * group + row % 16] * row_scale;
}

/* Puts `kept` (NULL: zeros) in place of those of x that belong to weights w near zero; returns how many. */
static int64_t put_back(const chm_piece *p, const float *w, float *x, const float *kept) {
    int64_t count = 0;
    for (int64_t i = 0, run; i < p->count; i += run) {
        const float most = deep_zero * scale_at(p->param, p->first + i, &run);
        run = CHM_MIN(run, p->count - i);
        for (int64_t k = i; k < i + run; k++)
            if (fabsf(w[k]) < most) {
                x[k] = kept ? kept[k] : 0;
                count++;
            }
    }
    return count;
}

static bool masked(const chm_trainer *t, const chm_param *p) {
    return t->config->deep_zero_mask && p->format == CHM_FORMAT_TERNARY;
}

static void mask_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const chm_trainer *t = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const chm_piece *p = &t->piece[i];
        t->partial[i] =
            masked(t, p->param) ? (double)put_back(p, p->param->value + p->first, p->param->grad + p->first, NULL) : 0;
    }
}

void chm_optimiser_mask(chm_trainer *t) {
    if (!t->config->deep_zero_mask) return;
    chm_parallel(t->pool, t->pieces, 4, mask_pieces, t);
    double frozen = 0;
    int64_t all = 0;
    for (int64_t i = 0; i < t->pieces; i++) {
        frozen += t->partial[i];
        if (masked(t, t->piece[i].param)) all += t->piece[i].count;
    }
    t->run.frozen = frozen / (double)CHM_MAX(all, 1);
}

/* ---- the step ---- */

typedef struct update {
    chm_trainer *t;
    float gscale, lr, weight_decay, bc1, bc2;
    bool rehearse;
} update;

/* w -= lr (decay w + u), u the gradient, or with momentum m = momentum m + g either m or, in Nesterov's form,
 * g + momentum m: PyTorch's SGD, but that the decay is decoupled as AdamW's is. */
static void sgd(float *restrict w, const float *restrict g, float *restrict m, int64_t n, const update *u,
                float decay) {
    const float momentum = (float)u->t->config->momentum;
    const bool nesterov = u->t->config->nesterov;
    for (int64_t i = 0; i < n; i++) {
        float by = g[i] * u->gscale;
        if (m) {
            m[i] = momentum * m[i] + by;
            by = nesterov ? by + momentum * m[i] : m[i];
        }
        w[i] -= u->lr * (decay * w[i] + by);
    }
}

static void update_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const update *u = arg;
    const chm_train_config *c = u->t->config;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const chm_piece *p = &u->t->piece[i];
        _Alignas(64) float scratch[CHM_PIECE];
        float *w = p->param->value + p->first, *g = p->param->grad + p->first;
        float *state[CHM_OPTIMISER_ARRAYS];
        const size_t bytes = (size_t)p->count * sizeof *w;
        const float decay = p->param->decay ? u->weight_decay : 0.0f;
        if (c->optimiser == CHM_OPTIMISER_MUON && chm_muon_takes(p->param)) continue;
        for (int k = 0; k < CHM_OPTIMISER_ARRAYS; k++) {
            float *array = u->t->state[p->number].array[k];
            state[k] = array ? array + p->first : NULL;
        }
        const bool hold = masked(u->t, p->param);
        if (hold || u->rehearse) memcpy(scratch, w, bytes);
        if (c->optimiser == CHM_OPTIMISER_SGD)
            sgd(w, g, state[0], p->count, u, decay);
        else
            u->t->kernels->adamw(w, g, state[0], state[1], p->count, u->gscale, u->lr, (float)c->beta1, (float)c->beta2,
                                 (float)c->adam_eps, decay, u->bc1, u->bc2);
        if (u->rehearse)
            memcpy(w, scratch, bytes);
        else if (hold)
            put_back(p, scratch, w, scratch);
        memset(g, 0, bytes);
    }
}

/* Matrix by matrix: each is one worker's from beginning to end. */
static void update_matrices(void *arg, int64_t begin, int64_t end, int worker) {
    const update *u = arg;
    for (int64_t i = begin; i < end; i++) {
        chm_param *p = u->t->model->param[i];
        if (!chm_muon_takes(p)) continue;
        float *scratch = u->t->muon_scratch[worker];
        const size_t bytes = (size_t)p->count * sizeof *p->value;
        const bool hold = masked(u->t, p);
        /* behind what the step itself needs */
        float *kept = scratch + chm_muon_scratch(p) - p->count;
        if (hold || u->rehearse) memcpy(kept, p->value, bytes);
        chm_muon_step(u->t->kernels, u->t->config, p->value, p->grad, u->t->state[i].array[0], p->out, p->in, u->gscale,
                      u->lr, p->decay ? u->weight_decay : 0.0f, scratch);
        if (u->rehearse)
            memcpy(p->value, kept, bytes);
        else if (hold)
            put_back(&(chm_piece){p, (int)i, 0, p->count}, kept, p->value, kept);
        memset(p->grad, 0, bytes);
    }
}

void chm_optimiser_update(chm_trainer *t, float gscale, double lr, double weight_decay, int64_t applied,
                          bool rehearse) {
    update u = {
        .t = t,
        .gscale = gscale,
        .lr = (float)lr,
        .weight_decay = (float)weight_decay,
        .bc1 = (float)(1 - pow(t->config->beta1, (double)applied)),
        .bc2 = (float)(1 - pow(t->config->beta2, (double)applied)),
        .rehearse = rehearse,
    };
    if (t->muon_scratch != NULL) chm_parallel(t->pool, t->model->params, 1, update_matrices, &u);
    chm_parallel(t->pool, t->pieces, 2, update_pieces, &u);
}
