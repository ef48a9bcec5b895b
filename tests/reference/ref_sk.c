#include "ref_sk.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *zeros(int64_t n, size_t size) {
    void *p = calloc((size_t)(n > 0 ? n : 1), size);
    if (!p) {
        fprintf(stderr, "ref_sk: out of memory\n");
        abort();
    }
    return p;
}

/* SplitMix64 from seed 0, one bit at a time: the lowest of the first word is bit 0 */
static void pattern(int64_t bits, int8_t *to) {
    uint64_t state = 0, word = 0;
    for (int64_t i = 0; i < bits; i++) {
        if (i % 64 == 0) {
            state += UINT64_C(0x9e3779b97f4a7c15);
            word = state;
            word = (word ^ (word >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
            word = (word ^ (word >> 27)) * UINT64_C(0x94d049bb133111eb);
            word ^= word >> 31;
        }
        to[i] = word >> (i % 64) & 1 ? 1 : -1;
    }
}

void ref_sk_mosaics(int64_t bits, const int8_t *signs, int64_t t, int64_t first, int8_t *mosaics) {
    static const int64_t period[REF_MOSAICS] = {8, 32, 128};
    pattern(REF_MOSAICS * bits, mosaics);
    for (int m = 0; m < REF_MOSAICS; m++)
        for (int64_t i = 0; i < bits; i++) {
            const int64_t block = i / (bits / period[m]);
            for (int64_t r = t - 1; r >= 0; r--) {
                if ((first + r) % period[m] != block) continue;
                mosaics[m * bits + i] = signs[r * bits + i];
                break;
            }
        }
}

static int64_t distance(const int8_t *a, const int8_t *b, int64_t bits) {
    int64_t d = 0;
    for (int64_t i = 0; i < bits; i++) d += a[i] != b[i];
    return d;
}

static int nearest(const struct ref_relax *r, const int8_t *mosaics, const int8_t *b) {
    int best = 0;
    for (int m = 1; m < REF_MOSAICS; m++)
        if (distance(mosaics + m * r->bits, b, r->bits) < distance(mosaics + best * r->bits, b, r->bits)) best = m;
    return best;
}

double ref_sk_energy(const struct ref_relax *r, const double *z, const int8_t *mosaics, const int8_t *b) {
    double agreement = 0;
    for (int64_t i = 0; i < r->bits; i++) agreement += z[i] * b[i];
    const int m = nearest(r, mosaics, b);
    return (-r->own * agreement + r->memory * (double)distance(mosaics + m * r->bits, b, r->bits)) / (double)r->bits;
}

struct costed {
    double cost;
    int64_t index;
};

static int by_cost(const void *a, const void *b) {
    const struct costed *x = a, *y = b;
    if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

int64_t ref_sk_relax(const struct ref_relax *r, const float *z, const int8_t *mosaics, int8_t *b, double *energy,
                     int64_t *flipped, double *field) {
    struct costed *all = zeros(r->bits, sizeof *all);
    double *wide = zeros(r->bits, sizeof *wide);
    int64_t round = 0;
    for (int64_t i = 0; i < r->bits; i++) wide[i] = (double)z[i];
    memset(field, 0, (size_t)r->bits * sizeof *field);
    energy[0] = ref_sk_energy(r, wide, mosaics, b);
    while (round < r->rounds) {
        const int8_t *m = mosaics + nearest(r, mosaics, b) * r->bits;
        for (int64_t i = 0; i < r->bits; i++) {
            field[i] = (double)(0.5f * (float)r->memory) * m[i];
            const float own = (float)r->own * z[i], h = own + (float)field[i];
            all[i] = (struct costed){b[i] * (double)h, i};
        }
        qsort(all, (size_t)r->bits, sizeof *all, by_cost);
        int64_t flips = 0;
        for (; flips < r->flips && flips < r->bits && all[flips].cost < 0; flips++) b[all[flips].index] *= -1;
        flipped[round++] = flips;
        energy[round] = ref_sk_energy(r, wide, mosaics, b);
        if (!flips || energy[round - 1] - energy[round] < r->exit) break;
    }
    free(all);
    free(wide);
    return round;
}

/* ---- the layer ---- */

struct rms {
    double *value, *factor; /* x * factor, without a weight */
};

static struct rms rms_norm(int64_t rows, int64_t n, double eps, const double *x) {
    struct rms o = {zeros(rows * n, sizeof(double)), zeros(rows, sizeof(double))};
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += x[t * n + i] * x[t * n + i];
        o.factor[t] = 1 / sqrt(sum / (double)n + eps);
        for (int64_t i = 0; i < n; i++) o.value[t * n + i] = x[t * n + i] * o.factor[t];
    }
    return o;
}

/* dx from the gradient of x * factor */
static void rms_backward(int64_t rows, int64_t n, const struct rms *o, const double *dy, double *dx) {
    for (int64_t t = 0; t < rows; t++) {
        double dot = 0;
        for (int64_t i = 0; i < n; i++) dot += o->value[t * n + i] * dy[t * n + i];
        for (int64_t i = 0; i < n; i++)
            dx[t * n + i] += o->factor[t] * (dy[t * n + i] - o->value[t * n + i] * dot / (double)n);
    }
}

static void free_rms(struct rms *o) {
    free(o->value);
    free(o->factor);
}

static double weight(const struct ref_sk *r, int64_t i) { return r->norm ? r->norm[i] : 1; }

/* z before its norm */
static double *encoded(const struct ref_sk *r, const struct rms *y) {
    const int64_t T = r->core.rows, D = r->core.width, n = r->bits;
    double *z = zeros(T * n, sizeof(double));
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < n; k++)
            for (int64_t i = 0; i < D; i++) z[t * n + k] += y->value[t * D + i] * weight(r, i) * r->encode[k * D + i];
    return z;
}

void ref_sk_forward(struct ref_sk *r) {
    const int64_t T = r->core.rows, D = r->core.width, n = r->bits;
    double *dx = r->core.dx;
    r->core.dx = NULL;
    ref_gd_run(&r->core);
    r->core.dx = dx;
    struct rms y = rms_norm(T, D, r->core.eps, r->core.y);
    double *raw = encoded(r, &y);
    struct rms z = rms_norm(T, n, r->core.eps, raw);
    memcpy(r->z, z.value, (size_t)(T * n) * sizeof(double));
    for (int64_t t = 0; t < T && r->b; t++)
        for (int64_t i = 0; i < D; i++) {
            double sum = 0;
            for (int64_t k = 0; k < n; k++) sum += r->b[t * n + k] * r->decode[i * n + k];
            r->y[t * D + i] = r->core.y[t * D + i] + r->gamma[i] * sum / sqrt((double)n);
        }
    free(raw);
    free_rms(&y);
    free_rms(&z);
}

void ref_sk_backward(struct ref_sk *r) {
    const int64_t T = r->core.rows, D = r->core.width, n = r->bits;
    struct rms y = rms_norm(T, D, r->core.eps, r->core.y);
    double *raw = encoded(r, &y), *draw = zeros(T * n, sizeof(double)), *dz = zeros(T * n, sizeof(double));
    double *dscaled = zeros(T * D, sizeof(double)), *dcore = zeros(T * D, sizeof(double));
    struct rms z = rms_norm(T, n, r->core.eps, raw);
    memset(r->dencode, 0, (size_t)(n * D) * sizeof(double));
    memset(r->ddecode, 0, (size_t)(n * D) * sizeof(double));
    memset(r->dgamma, 0, (size_t)D * sizeof(double));
    if (r->dnorm) memset(r->dnorm, 0, (size_t)D * sizeof(double));
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < D; i++) {
            const double d = r->dy[t * D + i], root = sqrt((double)n);
            double sum = 0;
            for (int64_t k = 0; k < n; k++) {
                sum += r->b[t * n + k] * r->decode[i * n + k];
                r->ddecode[i * n + k] += d * r->gamma[i] / root * r->b[t * n + k];
                dz[t * n + k] += d * r->gamma[i] / root * r->decode[i * n + k];
            }
            r->dgamma[i] += d * sum / root;
            dcore[t * D + i] = d;
        }
    for (int64_t i = 0; i < T * n; i++)
        if (fabs(r->own * z.value[i] + r->field[i]) > 1) dz[i] = 0;
    rms_backward(T, n, &z, dz, draw);
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < D; i++) {
            double back = 0;
            for (int64_t k = 0; k < n; k++) {
                back += draw[t * n + k] * r->encode[k * D + i];
                r->dencode[k * D + i] += draw[t * n + k] * y.value[t * D + i] * weight(r, i);
            }
            if (r->dnorm) r->dnorm[i] += back * y.value[t * D + i];
            dscaled[t * D + i] = back * weight(r, i);
        }
    rms_backward(T, D, &y, dscaled, dcore);
    r->core.dy = dcore;
    ref_gd_run(&r->core);
    r->core.dy = NULL;
    free(raw);
    free(draw);
    free(dz);
    free(dscaled);
    free(dcore);
    free_rms(&y);
    free_rms(&z);
}
