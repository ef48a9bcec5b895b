#include "ref_xlstm.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *zeros(int64_t n) {
    double *p = calloc((size_t)(n > 0 ? n : 1), sizeof *p);
    if (!p) {
        fprintf(stderr, "ref_xlstm: out of memory\n");
        abort();
    }
    return p;
}

static const double epsilon = 1e-6;

/* ---- mLSTM ---- */

struct mlstm_state {
    double *C, *n, m;
};

struct mlstm_weights {
    double f, i, m;
    bool input_wins;
};

static struct mlstm_weights mlstm_weights(const struct ref_mlstm *r, int64_t t, double m) {
    const double kept = r->log_f[t] + m;
    struct mlstm_weights w = {.input_wins = !(kept > r->log_i[t])};
    w.m = w.input_wins ? r->log_i[t] : kept;
    w.f = exp(kept - w.m);
    w.i = exp(r->log_i[t] - w.m);
    return w;
}

static void mlstm_row(const struct ref_mlstm *r, int64_t t, struct mlstm_state *s) {
    const int64_t d = r->d;
    const struct mlstm_weights w = mlstm_weights(r, t, s->m);
    for (int64_t a = 0; a < d; a++) {
        const double k = r->k[t * d + a];
        for (int64_t b = 0; b < d; b++) s->C[a * d + b] = w.f * s->C[a * d + b] + w.i * k * r->v[t * d + b];
        s->n[a] = w.f * s->n[a] + w.i * k;
    }
    s->m = w.m;
}

/* num [d], returns den */
static double mlstm_ask(const struct ref_mlstm *r, const double *q, const struct mlstm_state *s, double *num) {
    const int64_t d = r->d;
    const double scale = 1 / sqrt((double)d);
    double den = 0;
    for (int64_t b = 0; b < d; b++) num[b] = 0;
    for (int64_t a = 0; a < d; a++) {
        for (int64_t b = 0; b < d; b++) num[b] += scale * q[a] * s->C[a * d + b];
        den += scale * q[a] * s->n[a];
    }
    return den;
}

void ref_mlstm_forward(const struct ref_mlstm *r) {
    const int64_t d = r->d;
    struct mlstm_state s = {.C = r->C, .n = r->n, .m = *r->m0};
    double *num = zeros(d);
    memcpy(r->C, r->C0, (size_t)(d * d) * sizeof *num);
    memcpy(r->n, r->n0, (size_t)d * sizeof *num);
    for (int64_t t = 0; t < r->rows; t++) {
        mlstm_row(r, t, &s);
        for (int p = 0; p < r->asks; p++) {
            const double den = mlstm_ask(r, r->q[p] + t * d, &s, num);
            for (int64_t b = 0; b < d; b++) r->h[p][t * d + b] = num[b] / (fmax(fabs(den), exp(-s.m)) + epsilon);
        }
    }
    *r->m = s.m;
    free(num);
}

void ref_mlstm_backward(const struct ref_mlstm *r) {
    const int64_t d = r->d, size = d * d + d, rows = r->rows;
    const double scale = 1 / sqrt((double)d);
    double *all = zeros((rows + 1) * size), *m = zeros(rows + 1), *num = zeros(d),
           *dnum = zeros(d); /* C, n after row t - 1 */
    memcpy(all, r->C0, (size_t)(d * d) * sizeof *all);
    memcpy(all + d * d, r->n0, (size_t)d * sizeof *all);
    m[0] = *r->m0;
    for (int64_t t = 0; t < rows; t++) {
        double *after = all + (t + 1) * size;
        memcpy(after, after - size, (size_t)size * sizeof *all);
        struct mlstm_state s = {after, after + d * d, m[t]};
        mlstm_row(r, t, &s);
        m[t + 1] = s.m;
    }
    double *gC = r->dC0, *gn = r->dn0, gm = *r->dm; /* of the state after row t, then before it */
    memcpy(gC, r->dC, (size_t)(d * d) * sizeof *gC);
    memcpy(gn, r->dn, (size_t)d * sizeof *gn);
    for (int64_t t = rows - 1; t >= 0; t--) {
        const double *before = all + t * size, *n_before = before + d * d, *k = r->k + t * d, *v = r->v + t * d;
        double *C = all + (t + 1) * size, *n = C + d * d;
        const struct mlstm_state s = {C, n, m[t + 1]};
        for (int p = 0; p < r->asks; p++) {
            const double *q = r->q[p] + t * d, *dh = r->dh[p] + t * d, den = mlstm_ask(r, q, &s, num);
            const double floor = exp(-s.m), by = fmax(fabs(den), floor) + epsilon;
            double x = 0;
            for (int64_t b = 0; b < d; b++) {
                dnum[b] = dh[b] / by;
                x += dh[b] * num[b] / by;
            }
            const double dby = -x / by, dden = fabs(den) > floor ? (den < 0 ? -dby : dby) : 0;
            if (!(fabs(den) > floor)) gm -= dby * floor;
            for (int64_t a = 0; a < d; a++) {
                double sum = n[a] * dden;
                for (int64_t b = 0; b < d; b++) {
                    sum += C[a * d + b] * dnum[b];
                    gC[a * d + b] += scale * q[a] * dnum[b];
                }
                r->dq[p][t * d + a] = scale * sum;
                gn[a] += scale * q[a] * dden;
            }
        }
        const struct mlstm_weights w = mlstm_weights(r, t, m[t]);
        double df = 0, di = 0;
        for (int64_t b = 0; b < d; b++) r->dv[t * d + b] = 0;
        for (int64_t a = 0; a < d; a++) {
            double sum = gn[a];
            for (int64_t b = 0; b < d; b++) {
                sum += gC[a * d + b] * v[b];
                r->dv[t * d + b] += w.i * gC[a * d + b] * k[a];
                df += gC[a * d + b] * before[a * d + b];
                gC[a * d + b] *= w.f;
            }
            r->dk[t * d + a] = w.i * sum;
            di += k[a] * sum;
            df += gn[a] * n_before[a];
            gn[a] *= w.f;
        }
        df *= w.f;
        di *= w.i;
        const double owed = gm - df - di;
        r->dlog_i[t] = di + (w.input_wins ? owed : 0);
        r->dlog_f[t] = gm = df + (w.input_wins ? 0 : owed);
    }
    *r->dm0 = gm;
    free(all);
    free(m);
    free(num);
    free(dnum);
}

/* ---- sLSTM ---- */

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double log_sigmoid(double x) { return x < 0 ? x - log1p(exp(x)) : -log1p(exp(-x)); }

enum { H, CELL, N, M, PAST, STATE };

/* gates [4][d]: I, F, tanh(z), sigmoid(o); raw [4][d]; wins [d] */
static void slstm_row(const struct ref_slstm *r, int64_t t, double *s, double *gates, double *raw, bool *wins) {
    const int64_t d = r->d;
    for (int g = 0; g < 4; g++)
        for (int64_t j = 0; j < d; j++) {
            double sum = 0;
            for (int64_t i = 0; i < d; i++) sum += r->R[(g * d + j) * d + i] * s[H * d + i];
            raw[g * d + j] = r->in[g][t * d + j] + sum;
            if (g == 3) s[PAST * d + j] = sum;
        }
    for (int64_t j = 0; j < d; j++) {
        const double i = raw[j], f = raw[d + j], log_f = r->exponential ? f : log_sigmoid(f);
        const bool empty = s[N * d + j] == 0;
        wins[j] = empty || !(log_f + s[M * d + j] > i);
        const double m = wins[j] ? i : log_f + s[M * d + j];
        gates[j] = exp(i - m);
        gates[d + j] = empty ? 0 : exp(log_f + s[M * d + j] - m);
        gates[2 * d + j] = tanh(raw[2 * d + j]);
        gates[3 * d + j] = sigmoid(raw[3 * d + j]);
        s[M * d + j] = m;
        s[CELL * d + j] = gates[d + j] * s[CELL * d + j] + gates[j] * gates[2 * d + j];
        s[N * d + j] = gates[d + j] * s[N * d + j] + gates[j];
    }
    for (int64_t j = 0; j < d; j++) s[H * d + j] = gates[3 * d + j] * s[CELL * d + j] / s[N * d + j];
}

void ref_slstm_forward(const struct ref_slstm *r) {
    const int64_t d = r->d;
    double *work = zeros(8 * d), *s = r->S;
    bool *wins = calloc((size_t)d, sizeof *wins);
    if (!wins) abort();
    memcpy(s, r->S0, (size_t)(STATE * d) * sizeof *s);
    for (int64_t t = 0; t < r->rows; t++) {
        slstm_row(r, t, s, work, work + 4 * d, wins);
        for (int p = 0; p < r->asks; p++)
            for (int64_t j = 0; j < d; j++)
                r->h[p][t * d + j] = sigmoid(r->ask[p][t * d + j] + s[PAST * d + j]) * s[CELL * d + j] / s[N * d + j];
    }
    free(work);
    free(wins);
}

void ref_slstm_backward(const struct ref_slstm *r) {
    const int64_t d = r->d, rows = r->rows, size = STATE * d;
    double *all = zeros((rows + 1) * size), *gates = zeros(4 * d), *raw = zeros(4 * d), *draw = zeros(4 * d),
           *dpast = zeros(d), *again = zeros(size), *g = r->dS0;
    bool *wins = calloc((size_t)d, sizeof *wins);
    if (!wins) abort();
    memcpy(all, r->S0, (size_t)size * sizeof *all);
    for (int64_t t = 0; t < rows; t++) {
        memcpy(all + (t + 1) * size, all + t * size, (size_t)size * sizeof *all);
        slstm_row(r, t, all + (t + 1) * size, gates, raw, wins);
    }
    memcpy(g, r->dS, (size_t)size * sizeof *g);
    memset(r->dR, 0, (size_t)(4 * d * d) * sizeof *r->dR);
    for (int64_t t = rows - 1; t >= 0; t--) {
        const double *before = all + t * size, *after = before + size;
        memcpy(again, before, (size_t)size * sizeof *again);
        slstm_row(r, t, again, gates, raw, wins);
        for (int64_t j = 0; j < d; j++) {
            const double c = after[CELL * d + j], n = after[N * d + j];
            dpast[j] = g[PAST * d + j];
            draw[3 * d + j] = 0;
            for (int p = 0; p < r->asks; p++) {
                const double o = sigmoid(r->ask[p][t * d + j] + after[PAST * d + j]);
                const double dh = r->dh[p][t * d + j] + (p ? 0 : g[H * d + j]), slope = dh * c / n * o * (1 - o);
                if (p) {
                    r->dask[p][t * d + j] = slope;
                    dpast[j] += slope;
                } else
                    draw[3 * d + j] = slope;
                g[CELL * d + j] += dh * o / n;
                g[N * d + j] -= dh * o * c / (n * n);
            }
            const double i = gates[j], f = gates[d + j], z = gates[2 * d + j];
            const double df = f * (g[CELL * d + j] * before[CELL * d + j] + g[N * d + j] * before[N * d + j]);
            const double di = i * (g[CELL * d + j] * z + g[N * d + j]), owed = g[M * d + j] - df - di;
            draw[j] = di + (wins[j] ? owed : 0);
            g[M * d + j] = df + (wins[j] ? 0 : owed);
            draw[d + j] = g[M * d + j] * (r->exponential ? 1 : sigmoid(-raw[d + j]));
            draw[2 * d + j] = g[CELL * d + j] * i * (1 - z * z);
            g[CELL * d + j] *= f;
            g[N * d + j] *= f;
            g[PAST * d + j] = 0;
        }
        for (int64_t i = 0; i < d; i++) g[H * d + i] = 0;
        for (int q = 0; q < 4; q++)
            for (int64_t j = 0; j < d; j++) {
                const double of_matrix = draw[q * d + j] + (q == 3 ? dpast[j] : 0);
                r->din[q][t * d + j] = draw[q * d + j];
                for (int64_t i = 0; i < d; i++) {
                    r->dR[(q * d + j) * d + i] += of_matrix * before[H * d + i];
                    g[H * d + i] += of_matrix * r->R[(q * d + j) * d + i];
                }
            }
    }
    free(all);
    free(gates);
    free(raw);
    free(draw);
    free(dpast);
    free(again);
    free(wins);
}
