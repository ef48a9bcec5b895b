/*
 * Rotary positions (arXiv:2104.09864). Angles, sines and cosines are computed here in f64 with nothing but the four
 * operations, so that they are the same on every machine, and rounded to f32 once.
 */
#include "graph/context.h"
#include <math.h>
#include <string.h>

enum { ROW_PIECE = 64 };

/* Cosines and sines of every row of the pass: [rows][half] each. */
typedef struct chm_turns {
    struct chm_turns *next;
    int64_t half;
    double theta;
    float *cosine, *sine;
} chm_turns;

/* ---- functions of one number, x of moderate size ---- */

static double exponential(double x) {
    const double n = rint(x * 1.4426950408889634);
    const double r = x - n * 0.69314718055994531;
    double sum = 1;
    for (int k = 16; k >= 1; k--) sum = 1 + sum * r / k;
    return ldexp(sum, (int)n);
}

/* sin and cos of an angle >= 0: pi/2 is taken off in two parts, the first with bits to spare for the product */
static void turn(double angle, float *cosine, float *sine) {
    const double n = rint(angle * 0.63661977236758134);
    const double r = (angle - n * 1.57079632673412561) - n * 6.07710050650619225e-11, z = r * r;
    double s = 0, c = 0;
    for (int k = 8; k >= 1; k--) {
        s = (1 + s) * -z / ((2 * k) * (2 * k + 1));
        c = (1 + c) * -z / ((2 * k - 1) * (2 * k));
    }
    s = r + r * s;
    c = 1 + c;
    switch ((int)(n - 4 * floor(n / 4))) {
    case 0:
        *cosine = (float)c;
        *sine = (float)s;
        break;
    case 1:
        *cosine = (float)-s;
        *sine = (float)c;
        break;
    case 2:
        *cosine = (float)-c;
        *sine = (float)-s;
        break;
    default:
        *cosine = (float)s;
        *sine = (float)-c;
        break;
    }
}

/* ---- the tables of a pass ---- */

struct turns_job {
    const chm_context *c;
    chm_turns *t;
    double *frequency;
};

static void turn_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct turns_job *j = arg;
    const int64_t half = j->t->half;
    for (int64_t r = begin; r < end; r++)
        for (int64_t i = 0; i < half; i++)
            turn((double)j->c->rows.position[r] * j->frequency[i], j->t->cosine + r * half + i,
                 j->t->sine + r * half + i);
}

static chm_turns *turns_of(chm_context *c, int64_t half, double theta) {
    for (chm_turns *t = c->turns; t; t = t->next)
        if (t->half == half && t->theta == theta) return t;
    const size_t bytes = (size_t)(c->rows.count * half) * sizeof(float);
    struct turns_job job = {.c = c, .t = chm_take_zero(c, sizeof *job.t)};
    job.frequency = chm_take(c, (size_t)half * sizeof *job.frequency);
    if (!job.t || !job.frequency) return NULL;
    job.t->half = half;
    job.t->theta = theta;
    job.t->cosine = chm_take(c, bytes);
    job.t->sine = chm_take(c, bytes);
    if (c->status) return NULL;
    const double log_theta = chm_natural_log(theta);
    for (int64_t i = 0; i < half; i++) job.frequency[i] = exponential(-log_theta * (double)i / (double)half);
    chm_spread(c, c->rows.count, ROW_PIECE, (double)half * 30, turn_rows, &job);
    job.t->next = c->turns;
    c->turns = job.t;
    return job.t;
}

/* ---- the operator ---- */

struct rope_job {
    const chm_turns *t;
    int64_t width, group;
    const float *from;
    float *to;
    float direction; /* 1: forward; -1: the gradient turns back, and is added */
};

static void rope_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct rope_job *j = arg;
    const int64_t half = j->t->half;
    for (int64_t r = begin; r < end; r++) {
        const float *restrict cosine = j->t->cosine + r * half, *restrict sine = j->t->sine + r * half;
        for (int64_t g = 0; g < j->width; g += j->group) {
            const float *restrict x = j->from + r * j->width + g;
            float *restrict y = j->to + r * j->width + g;
            if (j->direction > 0) {
                for (int64_t i = 0; i < half; i++) {
                    y[i] = x[i] * cosine[i] - x[i + half] * sine[i];
                    y[i + half] = x[i + half] * cosine[i] + x[i] * sine[i];
                }
                memcpy(y + 2 * half, x + 2 * half, (size_t)(j->group - 2 * half) * sizeof *y);
            } else {
                for (int64_t i = 0; i < half; i++) {
                    y[i] += x[i] * cosine[i] + x[i + half] * sine[i];
                    y[i + half] += x[i + half] * cosine[i] - x[i] * sine[i];
                }
                for (int64_t i = 2 * half; i < j->group; i++) y[i] += x[i];
            }
        }
    }
}

static void rope_backward(chm_context *c, chm_node *n) {
    struct rope_job job = *(const struct rope_job *)n->data;
    job.from = n->out->grad;
    job.to = chm_grad(c, n->in[0]);
    job.direction = -1;
    if (!job.to) return;
    chm_spread(c, n->out->rows, ROW_PIECE, (double)job.width, rope_rows, &job);
}

chm_tensor *chm_op_rope(chm_graph *g, chm_tensor *x, int64_t group, int64_t rotary, double theta) {
    chm_context *c = chm_context_of(g);
    if (!x) return NULL;
    if (group < 1 || x->width % group || rotary < 2 || rotary % 2 || rotary > group || !(theta >= 1) ||
        !isfinite(theta) || x->rows != c->rows.count)
        return chm_refuse(c, CHM_E_CONFIG,
                          "%s: rotary positions on %lld of every %lld of %lld columns, theta %g: an even number of "
                          "columns of a group, groups that fill the row, theta at least 1",
                          c->part, (long long)rotary, (long long)group, (long long)x->width, theta);
    const chm_turns *t = turns_of(c, rotary / 2, theta);
    chm_tensor *y = chm_tensor_new(c, x->rows, x->width);
    struct rope_job *j = chm_take(c, sizeof *j);
    if (!t || !y || !j) return NULL;
    *j = (struct rope_job){.t = t, .width = x->width, .group = group, .from = x->data, .to = y->data, .direction = 1};
    chm_spread(c, x->rows, ROW_PIECE, (double)x->width, rope_rows, j);
    chm_node *n = chm_record(c, y, &x, 1, NULL, rope_backward);
    if (n) n->data = j;
    return y;
}
