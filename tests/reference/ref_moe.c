#include "ref_moe.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *zeros(int64_t n) {
    double *p = calloc((size_t)(n > 0 ? n : 1), sizeof *p);
    if (!p) {
        fprintf(stderr, "ref_moe: out of memory\n");
        abort();
    }
    return p;
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* out = W in, W [rows][columns] */
static void product(const double *w, int64_t rows, int64_t columns, const double *in, double *out) {
    for (int64_t o = 0; o < rows; o++) {
        out[o] = 0;
        for (int64_t i = 0; i < columns; i++) out[o] += w[o * columns + i] * in[i];
    }
}

/* dW += dout in^T, din += W^T dout */
static void product_back(const double *w, int64_t rows, int64_t columns, const double *in, const double *dout,
                         double *dw, double *din) {
    for (int64_t o = 0; o < rows; o++)
        for (int64_t i = 0; i < columns; i++) {
            dw[o * columns + i] += dout[o] * in[i];
            din[i] += w[o * columns + i] * dout[o];
        }
}

/* One expert on one row. backward: also the gradients, from dout; out [width] is filled either way. */
static void expert(const struct ref_moe *r, int64_t e, const double *x, double *out, const double *dout, double *dx) {
    const int64_t n = r->inner;
    double *gate = zeros(n), *up = zeros(n), *h = zeros(n), *normed = zeros(n), *d = zeros(n), *dgate = zeros(n),
           *dup = zeros(n), rstd = 1;
    product(r->gate[e], n, r->width, x, gate);
    product(r->up[e], n, r->width, x, up);
    for (int64_t i = 0; i < n; i++) normed[i] = h[i] = gate[i] * sigmoid(gate[i]) * up[i];
    if (r->norm) {
        double square = 0;
        for (int64_t i = 0; i < n; i++) square += h[i] * h[i];
        rstd = 1 / sqrt(square / (double)n + r->eps);
        for (int64_t i = 0; i < n; i++) normed[i] = h[i] * rstd * r->norm[e][i];
    }
    product(r->down[e], r->width, n, normed, out);
    if (dout) {
        product_back(r->down[e], r->width, n, normed, dout, r->ddown[e], d);
        if (r->norm) {
            double along = 0;
            for (int64_t i = 0; i < n; i++) {
                r->dnorm[e][i] += d[i] * h[i] * rstd;
                along += d[i] * r->norm[e][i] * h[i];
            }
            for (int64_t i = 0; i < n; i++)
                d[i] = rstd * (d[i] * r->norm[e][i] - h[i] * along * rstd * rstd / (double)n);
        }
        for (int64_t i = 0; i < n; i++) {
            const double s = sigmoid(gate[i]);
            dup[i] = d[i] * gate[i] * s;
            dgate[i] = d[i] * up[i] * s * (1 + gate[i] * (1 - s));
        }
        product_back(r->gate[e], n, r->width, x, dgate, r->dgate[e], dx);
        product_back(r->up[e], n, r->width, x, dup, r->dup[e], dx);
    }
    double *const all[] = {gate, up, h, normed, d, dgate, dup};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void run_row(const struct ref_moe *r, int64_t t) {
    const double *x = r->x + t * r->width, *dy = r->dx ? r->dy + t * r->width : NULL;
    double *y = r->y + t * r->width, *dx = r->dx ? r->dx + t * r->width : NULL, *w = r->weight + t * r->chosen;
    int64_t *choice = r->choice + t * r->chosen, count = 0;
    double *score = zeros(r->routed), *out = zeros(r->width), *scaled = zeros(r->width), *dw = zeros(r->chosen);
    product(r->router, r->routed, r->width, x, score);
    for (int64_t e = 0; e < r->routed; e++) score[e] = sigmoid(score[e]);
    /* chosen: those that fewer than `chosen` others stand before */
    double sum = 1e-20;
    for (int64_t e = 0; e < r->routed; e++) {
        int64_t before = 0;
        for (int64_t o = 0; o < r->routed; o++) {
            const double mine = score[e] + r->bias[e], other = score[o] + r->bias[o];
            before += other > mine || (other == mine && o < e);
        }
        if (before >= r->chosen) continue;
        choice[count++] = e;
        sum += score[e];
    }
    for (int64_t e = r->routed; e < r->routed + r->shared; e++) {
        expert(r, e, x, out, dy, dx);
        for (int64_t i = 0; i < r->width; i++) y[i] += out[i];
    }
    double along = 0;
    for (int64_t k = 0; k < r->chosen; k++) {
        w[k] = score[choice[k]] / sum;
        for (int64_t i = 0; dy && i < r->width; i++) scaled[i] = w[k] * dy[i];
        expert(r, choice[k], x, out, dy ? scaled : NULL, dx);
        for (int64_t i = 0; i < r->width; i++) {
            y[i] += w[k] * out[i];
            if (dy) dw[k] += dy[i] * out[i];
        }
        along += w[k] * dw[k];
    }
    for (int64_t k = 0; dy && k < r->chosen; k++) {
        const int64_t e = choice[k];
        const double d = (dw[k] - along) / sum * score[e] * (1 - score[e]);
        product_back(r->router + e * r->width, 1, r->width, x, &d, r->drouter + e * r->width, dx);
    }
    free(score);
    free(out);
    free(scaled);
    free(dw);
}

void ref_moe_run(const struct ref_moe *r) {
    const size_t row = (size_t)(r->rows * r->width) * sizeof(double);
    const size_t matrix = (size_t)(r->inner * r->width) * sizeof(double);
    memset(r->y, 0, row);
    if (r->dx) {
        memset(r->dx, 0, row);
        memset(r->drouter, 0, (size_t)(r->routed * r->width) * sizeof(double));
        for (int64_t e = 0; e < r->routed + r->shared; e++) {
            memset(r->dgate[e], 0, matrix);
            memset(r->dup[e], 0, matrix);
            memset(r->ddown[e], 0, matrix);
            if (r->norm) memset(r->dnorm[e], 0, (size_t)r->inner * sizeof(double));
        }
    }
    for (int64_t t = 0; t < r->rows; t++) run_row(r, t);
}
