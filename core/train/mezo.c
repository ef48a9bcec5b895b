/*
 * mezo.c: steps without a gradient (arXiv:2305.17333). A step draws a direction z, measures the loss at w + e z and at
 * w - e z, and goes along z by the slope between them. z is a function of (seed, step, sample, parameter, index), so it
 * is drawn again wherever it is needed and never kept, and the weights are moved in place: nothing is needed besides
 * what the passes need.
 *
 * Every parameter has its own e: epsilon, or for a ternary matrix ternary_epsilon times the mean of its |w|, since a
 * smaller one turns no trit. With D = (loss(w + e z) - loss(w - e z)) / 2 the estimate of the gradient is D z / e,
 * whose mean is the gradient whatever e is. Reported as its norm, and held to grad_clip, is D / epsilon: with one e
 * everywhere its root mean square is the norm of the gradient.
 */
#include "graph/encoding.h"
#include "train/trainer.h"

#include <math.h>
#include <string.h>

struct chm_mezo {
    double *epsilon;  /* [params], of the step at hand */
    uint8_t **chosen; /* [params]: a bit for every weight that moves, rows of whole bytes; NULL: all do */
    int64_t *zeros;   /* [params]: of those, how many do not */
    uint64_t *key;    /* [samples], of their directions */
    double *slope;    /* [samples]: D */
    uint64_t revive;  /* key of what is revived */
    uint8_t *storage; /* of the bits */
};

static int64_t row_bytes(const chm_param *p) { return (p->in + 7) / 8; }

static bool chooses(const chm_trainer *t, const chm_param *p) {
    return t->config->mezo.skip_zeros && p->format == CHM_FORMAT_TERNARY;
}

static size_t bit_bytes(const chm_trainer *t) {
    size_t bytes = 0;
    for (int i = 0; i < t->model->params; i++)
        if (chooses(t, t->model->param[i])) bytes += (size_t)(t->model->param[i]->out * row_bytes(t->model->param[i]));
    return bytes;
}

uint64_t chm_mezo_bytes(const chm_trainer *t) { return bit_bytes(t); }

int chm_mezo_allocate(chm_trainer *t) {
    const size_t params = (size_t)t->model->params, samples = (size_t)t->config->mezo.samples;
    chm_mezo *z = t->mezo = chm_alloc(sizeof *z);
    if (z == NULL) return CHM_E_MEMORY;
    z->epsilon = chm_alloc(params * sizeof *z->epsilon);
    z->chosen = chm_alloc(params * sizeof *z->chosen);
    z->key = chm_alloc(samples * sizeof *z->key);
    z->slope = chm_alloc(samples * sizeof *z->slope);
    z->storage = chm_alloc(CHM_MAX(bit_bytes(t), 1));
    if (!z->epsilon || !z->chosen || !z->key || !z->slope || !z->storage) return CHM_E_MEMORY;
    uint8_t *at = z->storage;
    for (size_t i = 0; i < params; i++) {
        const chm_param *p = t->model->param[i];
        if (!chooses(t, p)) continue;
        z->chosen[i] = at;
        at += p->out * row_bytes(p);
    }
    return CHM_OK;
}

void chm_mezo_finish(chm_trainer *t) {
    if (t->mezo == NULL) return;
    chm_free(t->mezo->epsilon);
    chm_free(t->mezo->chosen);
    chm_free(t->mezo->key);
    chm_free(t->mezo->slope);
    chm_free(t->mezo->storage);
    chm_free(t->mezo);
}

/* ---- what a step begins with ---- */

static uint64_t key_of(const chm_trainer *t, int64_t sample) {
    uint32_t r[4];
    chm_philox(t->config->seed, CHM_RANDOM_DIRECTION, (uint32_t)sample, (uint64_t)t->run.step, r);
    return (uint64_t)r[0] << 32 | r[1];
}

static void sum_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const chm_trainer *t = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const chm_piece *p = &t->piece[i];
        double sum = 0;
        for (int64_t k = 0; k < p->count && p->param->format == CHM_FORMAT_TERNARY; k++)
            sum += (double)fabsf(p->param->value[p->first + k]);
        t->partial[i] = sum;
    }
}

struct choosing {
    chm_trainer *t;
    int number;
};

static void choose_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct choosing *c = arg;
    const chm_param *p = c->t->model->param[c->number];
    const double revive = c->t->config->mezo.revive;
    (void)worker;
    for (int64_t row = begin; row < end; row++) {
        uint8_t *bits = c->t->mezo->chosen[c->number] + row * row_bytes(p), code[512];
        memset(bits, 0, (size_t)row_bytes(p));
        for (int64_t i = 0; i < p->in; i++) {
            if (i % (int64_t)sizeof code == 0) chm_ternary_codes(&p->ternary, row, i, sizeof code, code);
            bool moves = code[i % (int64_t)sizeof code] != 1;
            if (!moves && revive > 0)
                moves = chm_uniform_at(c->t->mezo->revive, CHM_RANDOM_REVIVE, p->stream, (uint64_t)(row * p->in + i)) <
                        revive;
            if (moves) bits[i / 8] |= (uint8_t)(1u << i % 8);
        }
    }
}

static void choose(chm_trainer *t) {
    int64_t still = 0, all = 0;
    t->mezo->revive = key_of(t, 0);
    for (int i = 0; i < t->model->params; i++) {
        const chm_param *p = t->model->param[i];
        if (!t->mezo->chosen[i]) continue;
        chm_parallel(t->pool, p->out, 16, choose_rows, &(struct choosing){t, i});
        all += p->count;
        still += p->count;
        for (int64_t k = 0; k < p->out * row_bytes(p); k++) still -= __builtin_popcount(t->mezo->chosen[i][k]);
    }
    t->run.frozen = (double)still / (double)CHM_MAX(all, 1);
}

/* Of the weights as they stand now. */
static void begin_step(chm_trainer *t) {
    chm_mezo *z = t->mezo;
    const struct chm_mezo_config *c = &t->config->mezo;
    for (int64_t s = 0; s < c->samples; s++) z->key[s] = key_of(t, s);
    chm_parallel(t->pool, t->pieces, 4, sum_pieces, t);
    memset(z->epsilon, 0, (size_t)t->model->params * sizeof *z->epsilon);
    for (int64_t i = 0; i < t->pieces; i++) z->epsilon[t->piece[i].number] += t->partial[i];
    for (int i = 0; i < t->model->params; i++) {
        const chm_param *p = t->model->param[i];
        /* a matrix of zeros has no scale yet */
        z->epsilon[i] = p->format == CHM_FORMAT_TERNARY && z->epsilon[i] > 0
                            ? c->ternary_epsilon * (z->epsilon[i] / (double)p->count)
                            : c->epsilon;
    }
    if (c->skip_zeros) choose(t);
}

/* ---- moving ---- */

void chm_mezo_direction(const chm_trainer *t, int64_t sample, const chm_param *p, int64_t first, int64_t n, float *z) {
    const uint64_t key = t->mezo->key[sample];
    if (!t->config->mezo.signs) {
        chm_normals_from(key, CHM_RANDOM_DIRECTION, p->stream, first, n, z);
        return;
    }
    uint32_t r[4];
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = first + i;
        if (i == 0 || at % 128 == 0) chm_philox(key, CHM_RANDOM_DIRECTION, p->stream, (uint64_t)at / 128, r);
        z[i] = r[at / 32 % 4] >> at % 32 & 1 ? 1.0f : -1.0f;
    }
}

typedef struct moving {
    chm_trainer *t;
    int64_t sample;
    double by;     /* of e z: 1, -2; 0: not */
    double follow; /* of -(D / e) z, D that of the sample: the learning rate; 0: not */
    float decay;   /* lr times weight decay */
    bool rehearse;
} moving;

static void move_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const moving *v = arg;
    const chm_trainer *t = v->t;
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        const chm_piece *p = &t->piece[i];
        if (t->config->mezo.unpacked && p->param->format != CHM_FORMAT_F32) continue;
        _Alignas(64) float z[CHM_PIECE], copy[CHM_PIECE];
        float *w = p->param->value + p->first;
        const double e = t->mezo->epsilon[p->number];
        const float by = (float)(v->by * e), decay = p->param->decay ? v->decay : 0;
        const float follow = (float)(v->follow * t->mezo->slope[v->sample] / e);
        const uint8_t *bits = t->mezo->chosen[p->number];
        chm_mezo_direction(t, v->sample, p->param, p->first, p->count, z);
        if (v->rehearse) w = memcpy(copy, w, (size_t)p->count * sizeof *w);
        int64_t row = p->first / p->param->in, column = p->first % p->param->in;
        for (int64_t k = 0; k < p->count; k++) {
            if (!bits || (bits[row * row_bytes(p->param) + column / 8] >> column % 8 & 1)) {
                const float x = w[k] + by * z[k];
                w[k] = x - decay * x - follow * z[k];
            }
            if (++column == p->param->in) {
                column = 0;
                row++;
            }
        }
    }
}

static void move(const moving *v) { chm_parallel(v->t->pool, v->t->pieces, 1, move_pieces, (void *)(uintptr_t)v); }

/* ---- a step ---- */

/* The loss of the whole step where the weights stand. */
static int measure(chm_trainer *t, int64_t targets, double *loss, int64_t *counted) {
    const chm_batch *b = &t->batch;
    int status = chm_model_quantise(t->model, t->kernels, t->pool);
    *loss = 0;
    *counted = 0;
    for (int64_t s = 0, count; status == CHM_OK && s < b->streams; s += count) {
        double part;
        int64_t some;
        count = chm_train_group(t, s);
        status = chm_train_micro(t, t->run.step, s, count, b->rows, 1.0f / (float)CHM_MAX(targets, 1), &part, &some);
        *loss += part;
        *counted += some;
    }
    return status;
}

int chm_mezo_passes(chm_trainer *t, int64_t targets, double *loss, int64_t *counted, double *norm) {
    chm_mezo *z = t->mezo;
    const struct chm_mezo_config *c = &t->config->mezo;
    double squares = 0;
    begin_step(t);
    *loss = 0;
    for (int64_t s = 0; s < c->samples; s++) {
        double up, down;
        /* the streams move on in the last pass, and so with weights beside those that the step begins with */
        t->peek = true;
        if (s > 0) move(&(moving){.t = t, .sample = s - 1, .by = 1});
        move(&(moving){.t = t, .sample = s, .by = 1});
        int status = measure(t, targets, &up, counted);
        if (status != CHM_OK) return status;
        move(&(moving){.t = t, .sample = s, .by = -2});
        t->peek = s + 1 < c->samples;
        if ((status = measure(t, targets, &down, counted)) != CHM_OK) return status;
        z->slope[s] = 0.5 * (up - down) / (double)CHM_MAX(*counted, 1);
        squares += z->slope[s] * z->slope[s] / (c->epsilon * c->epsilon);
        *loss += (up + down) / (2 * (double)c->samples);
    }
    *norm = sqrt(squares / (double)c->samples);
    return CHM_OK;
}

double chm_mezo_slope(const chm_trainer *t, int64_t sample) { return t->mezo->slope[sample]; }

void chm_mezo_undo(chm_trainer *t) { move(&(moving){.t = t, .sample = t->config->mezo.samples - 1, .by = 1}); }

void chm_mezo_update(chm_trainer *t, double gscale, double lr, double weight_decay) {
    const int64_t samples = t->config->mezo.samples;
    const double follow = lr * gscale / (double)samples;
    /* the last direction first: the weights stand on it */
    for (int64_t s = samples - 1; s >= 0; s--) {
        const bool back = s == samples - 1;
        move(&(moving){
            .t = t, .sample = s, .by = back ? 1 : 0, .follow = follow, .decay = back ? (float)(lr * weight_decay) : 0});
    }
}

void chm_mezo_rehearse(chm_trainer *t) {
    begin_step(t);
    for (int64_t k = 0; k < 4 * t->config->mezo.samples - 1; k++) move(&(moving){.t = t, .by = 1, .rehearse = true});
}
