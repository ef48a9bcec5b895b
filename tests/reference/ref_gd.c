#include "ref_gd.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *zeros(int64_t n) {
    double *p = calloc((size_t)(n > 0 ? n : 1), sizeof *p);
    if (!p) {
        fprintf(stderr, "ref_gd: out of memory\n");
        abort();
    }
    return p;
}

/* ---- one head ---- */

/* The state after the decay of row t, before its write, is what the write's error is measured on. */
static void delta_row(const struct ref_delta *r, int64_t t, double *S, double *u) {
    const double alpha = exp(r->log_alpha[t]);
    for (int64_t i = 0; i < r->dk * r->dv; i++) S[i] *= alpha;
    for (int64_t c = 0; c < r->dv; c++) {
        double seen = 0;
        for (int64_t i = 0; i < r->dk; i++) seen += r->k[t * r->dk + i] * S[i * r->dv + c];
        u[c] = r->beta[t] * (r->v[t * r->dv + c] - seen);
    }
    for (int64_t i = 0; i < r->dk; i++)
        for (int64_t c = 0; c < r->dv; c++) S[i * r->dv + c] += r->k[t * r->dk + i] * u[c];
}

void ref_delta_forward(const struct ref_delta *r) {
    double *u = zeros(r->dv);
    memcpy(r->S, r->S0, (size_t)(r->dk * r->dv) * sizeof *r->S);
    for (int64_t t = 0; t < r->rows; t++) {
        delta_row(r, t, r->S, u);
        for (int64_t c = 0; c < r->dv; c++) {
            double sum = 0;
            for (int64_t i = 0; i < r->dk; i++) sum += r->q[t * r->dk + i] * r->S[i * r->dv + c];
            r->o[t * r->dv + c] = r->scale * sum;
        }
    }
    free(u);
}

void ref_delta_backward(const struct ref_delta *r) {
    const int64_t dk = r->dk, dv = r->dv, size = dk * dv;
    double *all = zeros((r->rows + 1) * size), *us = zeros(r->rows * dv); /* S_{t-1}, and S_t after it; u_t */
    memcpy(all, r->S0, (size_t)size * sizeof *all);
    for (int64_t t = 0; t < r->rows; t++) {
        memcpy(all + (t + 1) * size, all + t * size, (size_t)size * sizeof *all);
        delta_row(r, t, all + (t + 1) * size, us + t * dv);
    }
    double *D = r->dS0; /* gradient of the state after row t, then before it */
    memcpy(D, r->dS, (size_t)size * sizeof *D);
    for (int64_t t = r->rows - 1; t >= 0; t--) {
        const double *before = all + t * size, *after = before + size, *u = us + t * dv;
        const double *q = r->q + t * dk, *k = r->k + t * dk, *v = r->v + t * dv, *d_o = r->d_o + t * dv;
        const double alpha = exp(r->log_alpha[t]), beta = r->beta[t];
        double *dq = r->dq + t * dk, *dkey = r->dk_ + t * dk, *dval = r->dv_ + t * dv, dbeta = 0, dalpha = 0;
        for (int64_t i = 0; i < dk; i++) {
            dq[i] = 0;
            for (int64_t c = 0; c < dv; c++) {
                dq[i] += r->scale * after[i * dv + c] * d_o[c];
                D[i * dv + c] += r->scale * q[i] * d_o[c];
            }
        }
        /* after = decayed + k^T u, u = beta (v - k decayed), decayed = alpha before */
        for (int64_t i = 0; i < dk; i++) dkey[i] = 0;
        for (int64_t c = 0; c < dv; c++) {
            double du = 0, seen = 0;
            for (int64_t i = 0; i < dk; i++) {
                du += k[i] * D[i * dv + c];
                seen += k[i] * alpha * before[i * dv + c];
            }
            dbeta += du * (v[c] - seen);
            dval[c] = beta * du;
            for (int64_t i = 0; i < dk; i++) {
                dkey[i] += D[i * dv + c] * u[c] - beta * du * alpha * before[i * dv + c];
                const double ddecayed = D[i * dv + c] - beta * du * k[i];
                dalpha += ddecayed * before[i * dv + c];
                D[i * dv + c] = alpha * ddecayed;
            }
        }
        r->dbeta[t] = dbeta;
        r->dlog_alpha[t] = dalpha * alpha;
    }
    free(all);
    free(us);
}

/* ---- the exact step ---- */

double ref_efla(double beta, double length2, double d[2]) {
    const double x = beta * length2;
    if (d) {
        d[0] = exp(-x);
        /* -beta^2 times (1 - (1 + x) e^-x) / x^2, whose series is sum (-x)^n (n + 1) / (n + 2)! */
        double sum = 0, term = 0.5;
        for (int n = 0; n < 40 && x < 1; n++, term *= -x / (n + 2)) sum += term * n + term;
        d[1] = -(x < 1 ? beta * beta * sum : (-expm1(-x) - x * exp(-x)) / (length2 * length2));
    }
    return length2 > 0 && x > 0 ? -expm1(-x) / length2 : beta;
}

static void multiply(int64_t n, const long double *a, const long double *b, long double *to) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            to[i * n + j] = 0;
            for (int64_t k = 0; k < n; k++) to[i * n + j] += a[i * n + k] * b[k * n + j];
        }
}

void ref_efla_flow(int64_t dk, int64_t dv, double beta, const double *k, const double *v, double *S) {
    enum { TERMS = 24 };
    const int64_t n = dk + dv;
    long double *all = calloc((size_t)(4 * n * n), sizeof *all), *A = all, *E = all + n * n, *P = all + 2 * n * n,
                *next = all + 3 * n * n;
    if (!all) abort();
    long double size = 0;
    int squarings = 0;
    for (int64_t i = 0; i < dk; i++) size += (long double)k[i] * k[i];
    for (size *= beta; size > 0.25L; size /= 2) squarings++;
    for (int64_t i = 0; i < dk; i++) {
        for (int64_t j = 0; j < dk; j++) A[i * n + j] = ldexpl(-(long double)beta * k[i] * k[j], -squarings);
        for (int64_t j = 0; j < dv; j++) A[i * n + dk + j] = ldexpl((long double)beta * k[i] * v[j], -squarings);
    }
    for (int64_t i = 0; i < n; i++) E[i * n + i] = P[i * n + i] = 1;
    for (int term = 1; term < TERMS; term++) {
        multiply(n, P, A, next);
        for (int64_t i = 0; i < n * n; i++) E[i] += P[i] = next[i] / term;
    }
    for (; squarings > 0; squarings--) {
        multiply(n, E, E, next);
        memcpy(E, next, (size_t)(n * n) * sizeof *E);
    }
    for (int64_t c = 0; c < dv; c++) {
        for (int64_t i = 0; i < dk; i++) {
            A[i] = E[i * n + dk + c];
            for (int64_t j = 0; j < dk; j++) A[i] += E[i * n + j] * S[j * dv + c];
        }
        for (int64_t i = 0; i < dk; i++) S[i * dv + c] = (double)A[i];
    }
    free(all);
}

/* ---- the layer ---- */

const char *const ref_gd_param_name[REF_PARAMS] = {"q",      "k",      "v",         "g",       "o",
                                                   "a",      "b",      "A_log",     "dt_bias", "conv_q",
                                                   "conv_k", "conv_v", "head_norm", "o_norm",  "b_bias"};
const char *const ref_gd_state_name[REF_STATES] = {"memory", "conv_q", "conv_k", "conv_v"};

int64_t ref_gd_param_count(const struct ref_gd *r, enum ref_gd_param p) {
    const int64_t keys = r->heads * r->dk, values = r->heads * r->dv;
    switch (p) {
    case REF_Q:
    case REF_K:
        return keys * r->width;
    case REF_V:
    case REF_G:
    case REF_O:
        return values * r->width;
    case REF_A:
    case REF_B:
        return r->heads * r->width;
    case REF_A_LOG:
    case REF_DT_BIAS:
    case REF_B_BIAS:
        return r->heads;
    case REF_CONV_Q:
    case REF_CONV_K:
        return keys * r->taps;
    case REF_CONV_V:
        return values * r->taps;
    case REF_HEAD_NORM:
        return r->dv;
    case REF_O_NORM:
        return values;
    case REF_PARAMS:
        break;
    }
    return 0;
}

int64_t ref_gd_state_count(const struct ref_gd *r, enum ref_gd_state s) {
    return s == REF_MEMORY    ? r->heads * r->dk * r->dv
           : s == REF_STATE_V ? r->heads * (r->taps - 1) * r->dv
                              : r->heads * (r->taps - 1) * r->dk;
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

/* y [rows][out] = x [rows][in] w^T */
static double *linear(int64_t rows, int64_t in, int64_t out, const double *x, const double *w) {
    double *y = zeros(rows * out);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++) y[t * out + o] += x[t * in + i] * w[o * in + i];
    return y;
}

static void linear_backward(int64_t rows, int64_t in, int64_t out, const double *x, const double *w, const double *dy,
                            double *dx, double *dw) {
    memset(dw, 0, (size_t)(in * out) * sizeof *dw);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++) {
                dw[o * in + i] += dy[t * out + o] * x[t * in + i];
                dx[t * in + i] += dy[t * out + o] * w[o * in + i];
            }
}

/* y = x * factor: factor = 1 / sqrt(sum(x^2) * part + eps) over groups of n; l2 norm: part 1, RMS norm: part 1/n */
static void norm(int64_t groups, int64_t n, double part, double eps, const double *x, double *y, double *factor) {
    for (int64_t g = 0; g < groups; g++) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += x[g * n + i] * x[g * n + i];
        factor[g] = 1 / sqrt(sum * part + eps);
        for (int64_t i = 0; i < n; i++) y[g * n + i] = x[g * n + i] * factor[g];
    }
}

/* dx = factor * dy - x * factor^3 * part * (x . dy) */
static void norm_backward(int64_t groups, int64_t n, double part, const double *x, const double *factor,
                          const double *dy, double *dx) {
    for (int64_t g = 0; g < groups; g++) {
        double dot = 0;
        for (int64_t i = 0; i < n; i++) dot += x[g * n + i] * dy[g * n + i];
        for (int64_t i = 0; i < n; i++)
            dx[g * n + i] = factor[g] * dy[g * n + i] - x[g * n + i] * factor[g] * factor[g] * factor[g] * part * dot;
    }
}

/* A projection through its convolution and SiLU. */
struct path {
    int64_t dim; /* of a head */
    enum ref_gd_param w, conv;
    enum ref_gd_state state;
    double *u, *mixed, *out; /* [rows][heads * dim]: before the taps, after them, after SiLU */
    double *dout;
};

/* u_{t - lag} of column c, and where its gradient goes */
static const double *tap(const struct ref_gd *r, const struct path *p, int64_t t, int64_t lag, int64_t c) {
    const int64_t h = c / p->dim, i = c % p->dim, columns = r->heads * p->dim;
    if (t >= lag) return p->u + (t - lag) * columns + c;
    return r->state[p->state] + (h * (r->taps - 1) + lag - t - 1) * p->dim + i;
}

static void path_forward(const struct ref_gd *r, struct path *p) {
    const int64_t columns = r->heads * p->dim, lags = r->taps - 1;
    p->u = linear(r->rows, r->width, columns, r->x, r->param[p->w]);
    p->mixed = zeros(r->rows * columns);
    p->out = zeros(r->rows * columns);
    p->dout = zeros(r->rows * columns);
    for (int64_t t = 0; t < r->rows; t++)
        for (int64_t c = 0; c < columns; c++) {
            double sum = 0;
            for (int64_t lag = 0; lag < r->taps; lag++)
                sum += r->param[p->conv][c * r->taps + lag] * *tap(r, p, t, lag, c);
            p->mixed[t * columns + c] = sum;
            p->out[t * columns + c] = sum * sigmoid(sum);
        }
    for (int64_t lag = 0; lag < lags; lag++)
        for (int64_t c = 0; c < columns; c++)
            r->final[p->state][(c / p->dim * lags + lag) * p->dim + c % p->dim] = *tap(r, p, r->rows - 1, lag, c);
}

static void path_backward(const struct ref_gd *r, struct path *p) {
    const int64_t columns = r->heads * p->dim, lags = r->taps - 1;
    double *du = zeros(r->rows * columns), *dconv = r->grad[p->conv], *dstate = r->dstate[p->state];
    memset(dconv, 0, (size_t)(columns * r->taps) * sizeof *dconv);
    memset(dstate, 0, (size_t)(columns * lags) * sizeof *dstate);
    for (int64_t c = 0; c < columns; c++) {
        const int64_t h = c / p->dim, i = c % p->dim;
        for (int64_t lag = 0; lag < lags; lag++) {
            const double d = r->dfinal[p->state][(h * lags + lag) * p->dim + i];
            const int64_t t = r->rows - 1 - lag;
            if (t >= 0)
                du[t * columns + c] += d;
            else
                dstate[(h * lags - t - 1) * p->dim + i] += d;
        }
        for (int64_t t = 0; t < r->rows; t++) {
            const double d = p->dout[t * columns + c] * silu_slope(p->mixed[t * columns + c]);
            for (int64_t lag = 0; lag < r->taps; lag++) {
                dconv[c * r->taps + lag] += d * *tap(r, p, t, lag, c);
                const double back = d * r->param[p->conv][c * r->taps + lag];
                if (t >= lag)
                    du[(t - lag) * columns + c] += back;
                else
                    dstate[(h * lags + lag - t - 1) * p->dim + i] += back;
            }
        }
    }
    linear_backward(r->rows, r->width, columns, r->x, r->param[p->w], du, r->dx, r->grad[p->w]);
    free(du);
}

/* head h's columns of [rows][heads * n], and back */
static void gather(int64_t rows, int64_t heads, int64_t n, int64_t h, const double *from, double *to) {
    for (int64_t t = 0; t < rows; t++) memcpy(to + t * n, from + (t * heads + h) * n, (size_t)n * sizeof *to);
}
static void scatter(int64_t rows, int64_t heads, int64_t n, int64_t h, const double *from, double *to) {
    for (int64_t t = 0; t < rows; t++) memcpy(to + (t * heads + h) * n, from + t * n, (size_t)n * sizeof *to);
}

struct gd_work {
    struct path q, k, v;
    double *qn, *kn, *q_factor, *k_factor; /* after the l2 norm */
    double *dt, *log_alpha, *beta, *b;     /* [rows][heads]; dt before softplus, b before the sigmoid */
    double *o, *normed, *o_factor, *gate;  /* [rows][heads * dv] */
    double *mixed, *last, *last_factor;    /* after the gate; after o_norm without its weight */
};

static double softplus(double x) { return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)); }

/* One head's rows in the shape of ref_delta; backward: gradients scattered to where they belong. */
static void run_head(const struct ref_gd *r, struct gd_work *w, int64_t h, double *d_o, double *dq, double *dk,
                     double *dv, double *dlog_alpha, double *dbeta) {
    const int64_t T = r->rows, H = r->heads, size = r->dk * r->dv;
    double *q = zeros(T * r->dk), *k = zeros(T * r->dk), *v = zeros(T * r->dv), *o = zeros(T * r->dv);
    double *la = zeros(T), *beta = zeros(T);
    gather(T, H, r->dk, h, w->qn, q);
    gather(T, H, r->dk, h, w->kn, k);
    gather(T, H, r->dv, h, w->v.out, v);
    gather(T, H, 1, h, w->log_alpha, la);
    gather(T, H, 1, h, w->beta, beta);
    struct ref_delta d = {.rows = T,
                          .dk = r->dk,
                          .dv = r->dv,
                          .scale = 1 / sqrt((double)r->dk),
                          .q = q,
                          .k = k,
                          .v = v,
                          .log_alpha = la,
                          .beta = beta,
                          .S0 = r->state[REF_MEMORY] + h * size,
                          .o = o,
                          .S = r->final[REF_MEMORY] + h * size};
    if (!d_o) {
        ref_delta_forward(&d);
        scatter(T, H, r->dv, h, o, w->o);
    } else {
        double *head = zeros(T * r->dv);
        gather(T, H, r->dv, h, d_o, head);
        d.d_o = head;
        d.dS = r->dfinal[REF_MEMORY] + h * size;
        d.dS0 = r->dstate[REF_MEMORY] + h * size;
        d.dq = zeros(T * r->dk);
        d.dk_ = zeros(T * r->dk);
        d.dv_ = zeros(T * r->dv);
        d.dlog_alpha = zeros(T);
        d.dbeta = zeros(T);
        ref_delta_backward(&d);
        scatter(T, H, r->dk, h, d.dq, dq);
        scatter(T, H, r->dk, h, d.dk_, dk);
        scatter(T, H, r->dv, h, d.dv_, dv);
        scatter(T, H, 1, h, d.dlog_alpha, dlog_alpha);
        scatter(T, H, 1, h, d.dbeta, dbeta);
        free(head);
        free(d.dq);
        free(d.dk_);
        free(d.dv_);
        free(d.dlog_alpha);
        free(d.dbeta);
    }
    free(q);
    free(k);
    free(v);
    free(o);
    free(la);
    free(beta);
}

static double length2(int64_t n, const double *x) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

static void gd_forward(const struct ref_gd *r, struct gd_work *w) {
    const int64_t T = r->rows, H = r->heads, keys = H * r->dk, values = H * r->dv;
    w->q = (struct path){.dim = r->dk, .w = REF_Q, .conv = REF_CONV_Q, .state = REF_STATE_Q};
    w->k = (struct path){.dim = r->dk, .w = REF_K, .conv = REF_CONV_K, .state = REF_STATE_K};
    w->v = (struct path){.dim = r->dv, .w = REF_V, .conv = REF_CONV_V, .state = REF_STATE_V};
    path_forward(r, &w->q);
    path_forward(r, &w->k);
    path_forward(r, &w->v);
    w->qn = zeros(T * keys);
    w->kn = zeros(T * keys);
    w->q_factor = zeros(T * H);
    w->k_factor = zeros(T * H);
    norm(T * H, r->dk, 1, 1e-6, w->q.out, w->qn, w->q_factor);
    const double *bias = r->param[REF_B_BIAS]; /* with the exact step keys stay as they are, and beta becomes c */
    if (bias)
        memcpy(w->kn, w->k.out, (size_t)(T * keys) * sizeof(double));
    else
        norm(T * H, r->dk, 1, 1e-6, w->k.out, w->kn, w->k_factor);
    w->dt = linear(T, r->width, H, r->x, r->param[REF_A]);
    w->b = linear(T, r->width, H, r->x, r->param[REF_B]);
    w->log_alpha = zeros(T * H);
    w->beta = zeros(T * H);
    for (int64_t i = 0; i < T * H; i++) {
        w->dt[i] += r->param[REF_DT_BIAS][i % H];
        w->log_alpha[i] = -exp(r->param[REF_A_LOG][i % H]) * softplus(w->dt[i]);
        if (bias) w->b[i] += bias[i % H];
        w->beta[i] = sigmoid(w->b[i]) * (r->neg_eigval ? 2 : 1);
        if (bias) w->beta[i] = ref_efla(w->beta[i], length2(r->dk, w->kn + i * r->dk), NULL);
    }
    w->o = zeros(T * values);
    for (int64_t h = 0; h < H; h++) run_head(r, w, h, NULL, NULL, NULL, NULL, NULL, NULL);
    w->normed = zeros(T * values);
    w->o_factor = zeros(T * H);
    norm(T * H, r->dv, 1 / (double)r->dv, r->eps, w->o, w->normed, w->o_factor);
    w->gate = linear(T, r->width, values, r->x, r->param[REF_G]);
    w->mixed = zeros(T * values);
    for (int64_t i = 0; i < T * values; i++)
        w->mixed[i] = w->normed[i] * r->param[REF_HEAD_NORM][i % r->dv] * w->gate[i] * sigmoid(w->gate[i]);
    w->last = zeros(T * values);
    w->last_factor = zeros(T);
    if (r->param[REF_O_NORM]) norm(T, values, 1 / (double)values, r->eps, w->mixed, w->last, w->last_factor);
    double *last = zeros(T * values);
    for (int64_t i = 0; i < T * values; i++)
        last[i] = r->param[REF_O_NORM] ? w->last[i] * r->param[REF_O_NORM][i % values] : w->mixed[i];
    double *y = linear(T, values, r->width, last, r->param[REF_O]);
    memcpy(r->y, y, (size_t)(T * r->width) * sizeof *y);
    free(y);
    free(last);
}

static void gd_backward(const struct ref_gd *r, struct gd_work *w) {
    const int64_t T = r->rows, H = r->heads, keys = H * r->dk, values = H * r->dv;
    const double *weight = r->param[REF_O_NORM];
    double *last = zeros(T * values), *dlast = zeros(T * values), *dmixed = zeros(T * values);
    memset(r->dx, 0, (size_t)(T * r->width) * sizeof *r->dx);
    for (int64_t i = 0; i < T * values; i++) last[i] = weight ? w->last[i] * weight[i % values] : w->mixed[i];
    linear_backward(T, values, r->width, last, r->param[REF_O], r->dy, dlast, r->grad[REF_O]);
    if (weight) {
        memset(r->grad[REF_O_NORM], 0, (size_t)values * sizeof(double));
        for (int64_t i = 0; i < T * values; i++) {
            r->grad[REF_O_NORM][i % values] += dlast[i] * w->last[i];
            dlast[i] *= weight[i % values];
        }
        norm_backward(T, values, 1 / (double)values, w->mixed, w->last_factor, dlast, dmixed);
    } else
        memcpy(dmixed, dlast, (size_t)(T * values) * sizeof *dmixed);
    double *dgate = zeros(T * values), *dnormed = zeros(T * values), *d_o = zeros(T * values);
    memset(r->grad[REF_HEAD_NORM], 0, (size_t)r->dv * sizeof(double));
    for (int64_t i = 0; i < T * values; i++) {
        const double silu = w->gate[i] * sigmoid(w->gate[i]), head = r->param[REF_HEAD_NORM][i % r->dv];
        r->grad[REF_HEAD_NORM][i % r->dv] += dmixed[i] * w->normed[i] * silu;
        dnormed[i] = dmixed[i] * head * silu;
        dgate[i] = dmixed[i] * head * w->normed[i] * silu_slope(w->gate[i]);
    }
    norm_backward(T * H, r->dv, 1 / (double)r->dv, w->o, w->o_factor, dnormed, d_o);
    linear_backward(T, r->width, values, r->x, r->param[REF_G], dgate, r->dx, r->grad[REF_G]);
    double *dq = zeros(T * keys), *dk = zeros(T * keys), *da = zeros(T * H), *db = zeros(T * H);
    for (int64_t h = 0; h < H; h++) run_head(r, w, h, d_o, dq, dk, w->v.dout, da, db);
    norm_backward(T * H, r->dk, 1, w->q.out, w->q_factor, dq, w->q.dout);
    if (!r->param[REF_B_BIAS]) norm_backward(T * H, r->dk, 1, w->k.out, w->k_factor, dk, w->k.dout);
    for (int64_t i = 0; i < T * H && r->param[REF_B_BIAS]; i++) {
        const double *k = w->kn + i * r->dk;
        double d[2];
        ref_efla(sigmoid(w->b[i]), length2(r->dk, k), d);
        for (int64_t j = 0; j < r->dk; j++) w->k.dout[i * r->dk + j] = dk[i * r->dk + j] + 2 * db[i] * d[1] * k[j];
        db[i] *= d[0];
    }
    memset(r->grad[REF_A_LOG], 0, (size_t)H * sizeof(double));
    memset(r->grad[REF_DT_BIAS], 0, (size_t)H * sizeof(double));
    if (r->grad[REF_B_BIAS]) memset(r->grad[REF_B_BIAS], 0, (size_t)H * sizeof(double));
    for (int64_t i = 0; i < T * H; i++) {
        r->grad[REF_A_LOG][i % H] += da[i] * w->log_alpha[i];
        da[i] *= -exp(r->param[REF_A_LOG][i % H]) * sigmoid(w->dt[i]);
        r->grad[REF_DT_BIAS][i % H] += da[i];
        const double s = sigmoid(w->b[i]);
        db[i] *= s * (1 - s) * (r->neg_eigval ? 2 : 1);
        if (r->grad[REF_B_BIAS]) r->grad[REF_B_BIAS][i % H] += db[i];
    }
    linear_backward(T, r->width, H, r->x, r->param[REF_A], da, r->dx, r->grad[REF_A]);
    linear_backward(T, r->width, H, r->x, r->param[REF_B], db, r->dx, r->grad[REF_B]);
    path_backward(r, &w->q);
    path_backward(r, &w->k);
    path_backward(r, &w->v);
    double *all[] = {last, dlast, dmixed, dgate, dnormed, d_o, dq, dk, da, db};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

void ref_gd_run(const struct ref_gd *r) {
    struct gd_work w;
    gd_forward(r, &w);
    if (r->dx) gd_backward(r, &w);
    struct path *paths[] = {&w.q, &w.k, &w.v};
    for (int i = 0; i < 3; i++) {
        free(paths[i]->u);
        free(paths[i]->mixed);
        free(paths[i]->out);
        free(paths[i]->dout);
    }
    double *all[] = {w.qn, w.kn,     w.q_factor, w.k_factor, w.dt,    w.log_alpha, w.beta,       w.b,
                     w.o,  w.normed, w.o_factor, w.gate,     w.mixed, w.last,      w.last_factor};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}
