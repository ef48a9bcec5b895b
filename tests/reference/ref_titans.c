#include "ref_titans.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ref_number *zeros(int64_t n) {
    ref_number *p = calloc((size_t)(n > 0 ? n : 1), sizeof *p);
    if (!p) {
        fprintf(stderr, "ref_titans: out of memory\n");
        abort();
    }
    return p;
}

int64_t ref_titans_count(const struct ref_titans *r, int leaf) {
    const int64_t d = r->d;
    switch (leaf) {
    case REF_Q:
    case REF_K:
    case REF_V:
    case REF_CONTEXT:
        return r->rows * d;
    case REF_MAPS:
        return 5 * d * d;
    case REF_W1:
    case REF_W2:
    case REF_CORE:
        return d * d;
    case REF_FAST:
        return 4 * d * d;
    case REF_LOG:
        return 4 * r->chunk * d;
    case REF_GATES:
        return 3 * r->chunk;
    default:
        return r->rows;
    }
}

static ref_number sigmoid(ref_number z) { return 1 / (1 + cexp(-z)); }

/* out = u A, A [d][d] */
static void times(int64_t d, const ref_number *u, const ref_number *a, ref_number *out) {
    for (int64_t j = 0; j < d; j++) {
        out[j] = 0;
        for (int64_t i = 0; i < d; i++) out[j] += u[i] * a[i * d + j];
    }
}

static void mapped(int64_t d, const ref_number *u, const ref_number *map, ref_number *out) {
    times(d, u, map, out);
    for (int64_t i = 0; i < d; i++) out[i] += u[i];
}

/* x / sqrt(sum(x^2) * part + eps); squares, not moduli, so that it stays analytic */
static void normalised(int64_t d, double part, double eps, ref_number *x) {
    ref_number sum = 0;
    for (int64_t i = 0; i < d; i++) sum += x[i] * x[i];
    const ref_number factor = 1 / csqrt(sum * part + eps);
    for (int64_t i = 0; i < d; i++) x[i] *= factor;
}

void ref_titans_gradient(int64_t d, const ref_number *kappa, const ref_number *nu, const ref_number *a1,
                         const ref_number *a2, ref_number *delta, ref_number *p, ref_number *e) {
    ref_number *z = zeros(d);
    times(d, kappa, a1, z);
    for (int64_t i = 0; i < d; i++) p[i] = z[i] * sigmoid(z[i]);
    times(d, p, a2, e);
    for (int64_t i = 0; i < d; i++) e[i] += kappa[i] - nu[i];
    for (int64_t j = 0; j < d; j++) {
        const ref_number s = sigmoid(z[j]);
        delta[j] = 0;
        for (int64_t c = 0; c < d; c++) delta[j] += e[c] * a2[j * d + c];
        delta[j] *= s * (1 + z[j] * (1 - s));
    }
    free(z);
}

void ref_titans_memory(int64_t d, const ref_number *u, const ref_number *a1, const ref_number *a2, ref_number *out) {
    ref_number *z = zeros(d);
    times(d, u, a1, z);
    for (int64_t i = 0; i < d; i++) z[i] *= sigmoid(z[i]);
    times(d, z, a2, out);
    for (int64_t i = 0; i < d; i++) out[i] += u[i];
    free(z);
}

void ref_titans_update(int64_t d, const ref_number *x, const ref_number *y, ref_number eta, ref_number theta,
                       ref_number alpha, ref_number *momentum, ref_number *deviation) {
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) {
            momentum[i * d + j] = eta * momentum[i * d + j] - theta * x[i] * y[j];
            deviation[i * d + j] = (1 - alpha) * deviation[i * d + j] + momentum[i * d + j];
        }
}

/* The memory while rows go by: as the chunk found it, and as it is now. */
struct now {
    const struct ref_titans *r;
    ref_number *edge, *fast, *core, *log, *gates, *a1, *a2; /* a1, a2: trained plus deviation, of either */
};

static void trained_plus(const struct now *n, const ref_number *fast) {
    const int64_t size = n->r->d * n->r->d;
    for (int64_t i = 0; i < size; i++) n->a1[i] = n->r->in[REF_W1][i] + fast[i];
    for (int64_t i = 0; i < size; i++) n->a2[i] = n->r->in[REF_W2][i] + fast[size + i];
}

/* Row `row` of the log has its turn. */
static void advance(const struct now *n, int64_t row) {
    const int64_t d = n->r->d, chunk = n->r->chunk;
    const ref_number *log = n->log + row * d, *gates = n->gates + row;
    for (int layer = 0; layer < 2; layer++)
        ref_titans_update(d, log + (layer ? 2 : 0) * chunk * d, log + (layer ? 3 : 1) * chunk * d, gates[0],
                          gates[chunk], gates[2 * chunk], n->fast + (2 + layer) * d * d, n->fast + layer * d * d);
}

static void learn(const struct now *n, int64_t t, int64_t row, const ref_number *key, const ref_number *value) {
    const struct ref_titans *r = n->r;
    const int64_t d = r->d, chunk = r->chunk;
    ref_number *nu = zeros(d), *log = n->log + row * d, *p = log + 2 * chunk * d, square = 0;
    mapped(d, key, r->in[REF_MAPS] + 2 * d * d, log);
    normalised(d, 1, 1e-6, log);
    mapped(d, value, r->in[REF_MAPS] + 3 * d * d, nu);
    trained_plus(n, n->edge);
    ref_titans_gradient(d, log, nu, n->a1, n->a2, log + chunk * d, p, log + 3 * chunk * d);
    for (int64_t i = 0; i < d; i++) square += p[i] * p[i];
    r->surprise[t] = 0;
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) {
            const ref_number first = log[i] * log[chunk * d + j], second = p[i] * log[3 * chunk * d + j];
            r->surprise[t] += first * first + second * second;
        }
    const ref_number eta = r->in[REF_ETA][t];
    n->gates[row] = eta;
    n->gates[chunk + row] = r->in[REF_THETA][t] * (1 - eta) / ((double)chunk * (1 + square));
    n->gates[2 * chunk + row] = r->in[REF_ALPHA][t];
    advance(n, row);
    free(nu);
}

static void ask(const struct now *n, const ref_number *u, ref_number *m) {
    const int64_t d = n->r->d;
    ref_number *rho = zeros(d);
    mapped(d, u, n->r->in[REF_MAPS] + 4 * d * d, rho);
    normalised(d, 1, 1e-6, rho);
    trained_plus(n, n->fast);
    ref_titans_memory(d, rho, n->a1, n->a2, m);
    free(rho);
}

static void write_core(const struct now *n, const ref_number *key, const ref_number *value) {
    const int64_t d = n->r->d;
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) n->core[i * d + j] += key[i] * value[j];
}

static void read_core(const struct now *n, const ref_number *q, const ref_number *context, ref_number *y) {
    const int64_t d = n->r->d;
    times(d, q, n->core, y);
    for (int64_t i = 0; i < d; i++) y[i] = y[i] / sqrt((double)d) + context[i];
    normalised(d, 1 / (double)d, n->r->eps, y);
}

void ref_titans_run(const struct ref_titans *r) {
    const int64_t d = r->d, chunk = r->chunk, size = d * d;
    struct now n = {.r = r,
                    .edge = r->state[0],
                    .fast = zeros(4 * size),
                    .core = r->state[1],
                    .log = r->state[2],
                    .gates = r->state[3],
                    .a1 = zeros(size),
                    .a2 = zeros(size)};
    ref_number *h = zeros(d), *key = zeros(d), *value = zeros(d);
    for (int i = 0; i < 4; i++)
        memcpy(r->state[i], r->in[REF_FAST + i], (size_t)ref_titans_count(r, REF_FAST + i) * sizeof *h);
    memcpy(n.fast, n.edge, (size_t)(4 * size) * sizeof *h);
    int64_t row = r->position ? (r->position - 1) % chunk + 1 : 0;
    for (int64_t i = 0; i < row; i++) advance(&n, i);
    for (int64_t t = 0; t < r->rows; t++) {
        const int64_t at = r->position + t;
        const ref_number *q = r->in[REF_Q] + t * d, *k = r->in[REF_K] + t * d, *v = r->in[REF_V] + t * d;
        ref_number *y = r->y + t * d, *m = r->m + t * d;
        if (row == chunk) {
            memcpy(n.edge, n.fast, (size_t)(4 * size) * sizeof *h);
            memset(n.log, 0, (size_t)(4 * chunk * d) * sizeof *h);
            memset(n.gates, 0, (size_t)(3 * chunk) * sizeof *h);
            row = 0;
        }
        if (r->before) {
            learn(&n, t, row, k, v);
            ask(&n, q, m);
        }
        const ref_number decay = cexp(r->in[REF_LOG_GAMMA][t]) * (at % r->segment ? 1 : r->carry);
        for (int64_t i = 0; i < size; i++) n.core[i] *= decay;
        if (r->tokens) write_core(&n, k, v);
        if (r->retrieve != 'n') {
            trained_plus(&n, n.edge);
            if (r->retrieve == 'a')
                ref_titans_memory(d, q, n.a1, n.a2, h);
            else
                memcpy(h, m, (size_t)d * sizeof *h);
            mapped(d, h, r->in[REF_MAPS], key);
            normalised(d, 1, 1e-6, key);
            mapped(d, h, r->in[REF_MAPS] + size, value);
            write_core(&n, key, value);
        }
        read_core(&n, q, r->in[REF_CONTEXT] + t * d, y);
        if (!r->before) {
            learn(&n, t, row, y, y);
            ask(&n, y, m);
        }
        row++;
        if (!r->again_q) continue;
        read_core(&n, r->again_q + t * d, r->again_context + t * d, r->again_y + t * d);
        ask(&n, r->before ? r->again_q + t * d : r->again_y + t * d, r->again_m + t * d);
    }
    free(n.fast);
    free(n.a1);
    free(n.a2);
    free(h);
    free(key);
    free(value);
}
