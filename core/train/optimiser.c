/*
 * optimiser.c: what is kept of every parameter, and how a gradient moves it. AdamW and SGD work on pieces of fixed
 * size, Muon (muon.c) on whole matrices; MeZO has no gradient and a file of its own.
 */
#include "train/trainer.h"

#include <math.h>
#include <string.h>

static const float deep_zero = 0.3f; /* of the scale */

static int64_t padded(const chm_param *p) { return (p->count + 15) / 16 * 16; }

/* ---- what is kept ---- */

int chm_optimiser_open(chm_trainer *t) {
    const chm_model *m = t->model;
    const struct chm_plugin *plugin = t->config->optimiser;
    chm_arena_init(&t->arena);
    if (plugin == NULL) return CHM_OK;
    t->optimiser_self = chm_arena_zero(&t->arena, CHM_MAX(plugin->instance_size, 1));
    t->told = chm_arena_zero(&t->arena, (size_t)m->params * sizeof *t->told);
    if (t->optimiser_self == NULL || t->told == NULL) return CHM_E_MEMORY;
    const int status = chm_card_plugin_options(m->card, plugin, t->optimiser_self, &t->arena);
    if (status != CHM_OK) return status;
    for (int i = 0; i < m->params; i++) {
        const chm_param *p = m->param[i];
        t->told[i] = (struct chm_optimiser_param){.size = sizeof *t->told,
                                                  .role = (int32_t)p->role,
                                                  .name = p->name,
                                                  .out = p->out,
                                                  .in = p->in,
                                                  .rank = p->rank,
                                                  .decay = p->decay};
    }
    t->optimiser = plugin->ops;
    for (int i = 0; i < m->params; i++) {
        const int arrays = chm_optimiser_arrays(t, i);
        if (arrays < 0 || arrays > CHM_OPTIMISER_ARRAYS)
            return chm_fail(CHM_E_PLUGIN, "optimiser %s keeps %d arrays of %s, expected 0..%d", plugin->name, arrays,
                            m->param[i]->name, CHM_OPTIMISER_ARRAYS);
    }
    return CHM_OK;
}

/* Whether the plugin moves it. */
static bool takes(const chm_trainer *t, int param) {
    const struct chm_optimiser_ops *ops = t->optimiser;
    if (ops == NULL || t->model->param[param]->role == CHM_ROLE_OWN) return false;
    return ops->takes == NULL || ops->takes(t->optimiser_self, &t->told[param]);
}

int chm_optimiser_arrays(const chm_trainer *t, int param) {
    if (t->model->param[param]->role == CHM_ROLE_OWN || t->config->mezo.samples > 0) return 0;
    return takes(t, param) ? t->optimiser->arrays(t->optimiser_self, &t->told[param]) : 2;
}

const char *chm_optimiser_array_name(const chm_trainer *t, int param, int k) {
    static const char *const adam[] = {"adam_m", "adam_v"};
    static const char *const plain[CHM_OPTIMISER_ARRAYS] = {"state_0", "state_1", "state_2", "state_3"};
    return takes(t, param) ? plain[k] : adam[k];
}

static size_t state_floats(const chm_trainer *t) {
    size_t floats = 0;
    for (int i = 0; i < t->model->params; i++)
        floats += (size_t)(chm_optimiser_arrays(t, i) * padded(t->model->param[i]));
    return floats;
}

/* Of the plugin's steps on one parameter. */
static size_t scratch_of(const chm_trainer *t, int param) {
    if (!takes(t, param) || t->optimiser->scratch == NULL) return 0;
    return (t->optimiser->scratch(t->optimiser_self, &t->told[param]) + 15) / 16 * 16;
}

/* Of one worker; a whole parameter that is held as it was is kept behind what the step needs. */
static size_t scratch_floats(const chm_trainer *t) {
    size_t most = 0;
    for (int i = 0; i < t->model->params; i++)
        if (takes(t, i))
            most = CHM_MAX(most, scratch_of(t, i) + (t->optimiser->whole ? (size_t)padded(t->model->param[i]) : 0));
    return most;
}

uint64_t chm_optimiser_bytes(const chm_trainer *t) {
    return chm_mezo_bytes(t) +
           sizeof(float) * (state_floats(t) + scratch_floats(t) * (size_t)chm_pool_threads(t->pool));
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
        t->scratch = chm_alloc((size_t)chm_pool_threads(t->pool) * sizeof *t->scratch);
        if (t->scratch == NULL) return CHM_E_MEMORY;
        for (int i = 0; i < chm_pool_threads(t->pool); i++)
            if ((t->scratch[i] = chm_alloc_aligned(scratch * sizeof(float))) == NULL) return CHM_E_MEMORY;
    }
    float *at = t->state_storage;
    int64_t n = 0;
    for (int i = 0; i < m->params; i++) {
        chm_param *p = m->param[i];
        for (int k = 0; k < chm_optimiser_arrays(t, i); k++, at += padded(p)) t->state[i].array[k] = at;
        for (int64_t first = 0; p->role != CHM_ROLE_OWN && first < p->count; first += CHM_PIECE)
            t->piece[n++] = (chm_piece){p, i, first, CHM_MIN(p->count - first, CHM_PIECE)};
    }
    return t->config->mezo.samples > 0 ? chm_mezo_allocate(t) : CHM_OK;
}

void chm_optimiser_finish(chm_trainer *t) {
    for (int i = 0; t->scratch != NULL && i < chm_pool_threads(t->pool); i++) chm_free(t->scratch[i]);
    chm_free(t->scratch);
    chm_free(t->state_storage);
    chm_free(t->state);
    chm_free(t->piece);
    chm_free(t->partial);
    chm_mezo_finish(t);
    chm_arena_finish(&t->arena);
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
    float gscale, bc1, bc2;
    double lr, weight_decay;
    int64_t applied;
    bool rehearse;
} update;

/* One step of whoever moves the parameter, on a piece of it or all of it. `kept` has room for as many floats. */
static void update_part(const update *u, const chm_piece *p, float *scratch, float *kept) {
    const chm_trainer *t = u->t;
    const chm_train_config *c = t->config;
    const chm_param_state *state = &t->state[p->number];
    float *w = p->param->value + p->first, *g = p->param->grad + p->first;
    const size_t bytes = (size_t)p->count * sizeof *w;
    const double decay = p->param->decay ? u->weight_decay : 0;
    const bool hold = masked(t, p->param);
    if (hold || u->rehearse) memcpy(kept, w, bytes);
    if (takes(t, p->number)) {
        struct chm_optimiser_step step = {
            .size = sizeof step,
            .param = &t->told[p->number],
            .first = p->first,
            .count = p->count,
            .value = w,
            .gradient = g,
            .scratch = scratch,
            .gradient_scale = (double)u->gscale,
            .lr = u->lr,
            .weight_decay = decay,
            .step = u->applied,
            .kernels = t->kernels,
        };
        for (int k = 0; k < CHM_OPTIMISER_ARRAYS; k++)
            step.state[k] = state->array[k] ? state->array[k] + p->first : NULL;
        t->optimiser->step(t->optimiser_self, &step);
    } else {
        t->kernels->adamw(w, g, state->array[0] + p->first, state->array[1] + p->first, p->count, u->gscale,
                          (float)u->lr, (float)c->beta1, (float)c->beta2, (float)c->adam_eps, (float)decay, u->bc1,
                          u->bc2);
    }
    if (u->rehearse)
        memcpy(w, kept, bytes);
    else if (hold)
        put_back(p, kept, w, kept);
    memset(g, 0, bytes);
}

static bool whole(const chm_trainer *t, int param) { return takes(t, param) && t->optimiser->whole; }

static void update_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const update *u = arg;
    for (int64_t i = begin; i < end; i++) {
        _Alignas(64) float kept[CHM_PIECE];
        if (!whole(u->t, u->t->piece[i].number))
            update_part(u, &u->t->piece[i], u->t->scratch ? u->t->scratch[worker] : NULL, kept);
    }
}

/* Each is one worker's from beginning to end. */
static void update_wholes(void *arg, int64_t begin, int64_t end, int worker) {
    const update *u = arg;
    for (int64_t i = begin; i < end; i++) {
        chm_param *p = u->t->model->param[i];
        float *scratch = u->t->scratch[worker];
        if (whole(u->t, (int)i))
            update_part(u, &(chm_piece){p, (int)i, 0, p->count}, scratch, scratch + scratch_of(u->t, (int)i));
    }
}

void chm_optimiser_update(chm_trainer *t, float gscale, double lr, double weight_decay, int64_t applied,
                          bool rehearse) {
    update u = {
        .t = t,
        .gscale = gscale,
        .lr = lr,
        .weight_decay = weight_decay,
        .applied = applied,
        .bc1 = (float)(1 - pow(t->config->beta1, (double)applied)),
        .bc2 = (float)(1 - pow(t->config->beta2, (double)applied)),
        .rehearse = rehearse,
    };
    if (t->optimiser != NULL && t->optimiser->whole) chm_parallel(t->pool, t->model->params, 1, update_wholes, &u);
    chm_parallel(t->pool, t->pieces, 2, update_pieces, &u);
}
