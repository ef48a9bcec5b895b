#include "ref_kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double sigmoid(double x) { return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x)); }

double ref_unary(enum chm_unary op, double x) {
    switch (op) {
    case CHM_SILU:
        return isinf(x) && x < 0 ? -0.0 : x * sigmoid(x);
    case CHM_SIGMOID:
        return sigmoid(x);
    case CHM_TANH:
        return tanh(x);
    case CHM_EXP:
        return exp(x);
    case CHM_SOFTPLUS:
        return x > 20 ? x : log1p(exp(x));
    case CHM_LOG_SIGMOID:
        return x < -20 ? x : -log1p(exp(-x));
    case CHM_RELU2:
        return x < 0 ? 0 : x * x;
    case CHM_UNARY_COUNT:
        break;
    }
    return NAN;
}

double ref_unary_derivative(enum chm_unary op, double x) {
    const double s = sigmoid(x);
    switch (op) {
    case CHM_SILU:
        return s * (1 + x * (1 - s));
    case CHM_SIGMOID:
        return s * (1 - s);
    case CHM_TANH:
        return 1 / (cosh(x) * cosh(x));
    case CHM_EXP:
        return exp(x);
    case CHM_SOFTPLUS:
        return s;
    case CHM_LOG_SIGMOID:
        return sigmoid(-x);
    case CHM_RELU2:
        return x < 0 ? 0 : 2 * x;
    case CHM_UNARY_COUNT:
        break;
    }
    return NAN;
}

void ref_norm(const float *x, int64_t n, int64_t width, double eps, bool mean, const float *weight, int64_t weight_rows,
              double *y) {
    for (int64_t v = 0; v < n; v++) {
        double s = 0;
        for (int64_t i = 0; i < width; i++) s += (double)x[v * width + i] * x[v * width + i];
        const double r = 1 / sqrt(s / (mean ? (double)width : 1.0) + eps);
        for (int64_t i = 0; i < width; i++)
            y[v * width + i] = x[v * width + i] * r * (weight ? weight[(v % weight_rows) * width + i] : 1.0);
    }
}

/* y_i = x_i r w_i, dr/dx_j = -r^3 x_j / m with m = width or 1 */
void ref_norm_backward(const float *x, int64_t n, int64_t width, double eps, bool mean, const float *weight,
                       int64_t weight_rows, const float *dy, double *dx, double *dweight) {
    const double m = mean ? (double)width : 1.0;
    if (dweight != NULL) memset(dweight, 0, (size_t)(weight_rows * width) * sizeof *dweight);
    for (int64_t v = 0; v < n; v++) {
        const float *xv = x + v * width, *dyv = dy + v * width;
        double s = 0, dot = 0;
        for (int64_t i = 0; i < width; i++) s += (double)xv[i] * xv[i];
        const double r = 1 / sqrt(s / m + eps);
        for (int64_t i = 0; i < width; i++)
            dot += (double)dyv[i] * xv[i] * (weight ? weight[(v % weight_rows) * width + i] : 1.0);
        for (int64_t i = 0; i < width; i++) {
            const double w = weight ? weight[(v % weight_rows) * width + i] : 1.0;
            dx[v * width + i] = dyv[i] * w * r - dot * r * r * r * xv[i] / m;
            if (dweight != NULL) dweight[(v % weight_rows) * width + i] += dyv[i] * (xv[i] * r);
        }
    }
}

double ref_logsumexp(const float *x, int64_t n) {
    double top = -INFINITY, s = 0;
    for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    if (isinf(top)) return top;
    for (int64_t i = 0; i < n; i++) s += exp(x[i] - top);
    return top + log(s);
}

void ref_quantise(const float *x, int64_t width, int8_t *q, float *scale, int32_t *sum) {
    for (int64_t b = 0; b < (width + 63) / 64; b++) {
        float absmax = 0;
        bool finite = true;
        for (int64_t i = 64 * b; i < width && i < 64 * b + 64; i++) {
            if (!isfinite(x[i])) finite = false;
            if (fabsf(x[i]) > absmax) absmax = fabsf(x[i]);
        }
        const bool zero = !finite || absmax < ldexpf(1, -120);
        scale[b] = !finite ? NAN : zero ? 0 : absmax / 127;
        sum[b] = 0;
        for (int64_t i = 64 * b; i < 64 * b + 64; i++) {
            q[i] = zero || i >= width ? 0 : (int8_t)nearbyintf(x[i] * (127 / absmax));
            sum[b] += q[i];
        }
    }
}

int ref_trit(const struct chm_ternary *w, int64_t out, int64_t in) {
    const int64_t blocks = (w->in + 63) / 64, b = in / 64, r = out % 16;
    const int at = (int)(in % 64);
    if (w->encoding == CHM_ENCODING_SHERRY) {
        const int64_t pairs = blocks / 2, tile = pairs * 320 + blocks % 2 * 192;
        const uint8_t *codes = w->codes + out / 16 * tile + b / 2 * 320;
        const uint8_t *nibbles = codes + b % 2 * 128, *mirrors = codes + (b / 2 < pairs ? 256 + b % 2 * 32 : 128);
        const int p = at / 16, lane = (int)(4 * r) + at % 16 / 4, n = at % 4;
        const int nibble = nibbles[p / 2 * 64 + lane] >> (p % 2 * 4) & 15, zero = nibble >> 2;
        if (n == zero) return 0;
        const int place = n - (n > zero), plus = place == 2 ? 1 : nibble >> place & 1;
        const int mirror = mirrors[p * 8 + lane / 8] >> (lane % 8) & 1;
        return plus != mirror ? 1 : -1;
    }
    const int64_t each = w->encoding == CHM_ENCODING_T5 ? 5 : 4, full = blocks / each;
    const uint8_t *codes = w->codes + out / 16 * (full * 1024 + blocks % each * 256) + b / each * 1024;
    if (b / each == full) {
        const uint8_t byte = codes[b % each * 256 + at % 16 / 4 * 64 + 4 * r + at % 4];
        return (byte >> (at / 16 * 2) & 3) - 1;
    }
    int byte = codes[at / 4 * 64 + 4 * r + at % 4];
    const int f = (int)(b % each);
    if (w->encoding == CHM_ENCODING_T2) return (byte >> (2 * f) & 3) - 1;
    const int high = byte / 84;
    if (f == 4) return high - 1;
    byte -= 84 * high;
    for (int n = 0; n < f; n++) byte /= 3;
    return byte % 3 - 1;
}

float ref_ternary_scale(const struct chm_ternary *w, int64_t out, int64_t in) {
    const int64_t groups = (w->in + w->group - 1) / w->group;
    const uint8_t *record = w->scales + out / 16 * (64 + 16 * groups);
    float row_scale;
    memcpy(&row_scale, record + 4 * (out % 16), sizeof row_scale);
    return (float)record[64 + 16 * (in / w->group) + out % 16] * row_scale;
}

float ref_ternary_product(const struct chm_ternary *w, int64_t out, const struct chm_activation *x, int64_t row) {
    float acc = 0;
    for (int64_t b = 0; b < (w->in + 63) / 64; b++) {
        int dot = 0;
        for (int64_t i = 64 * b; i < 64 * b + 64 && i < w->in; i++)
            dot += ref_trit(w, out, i) * x->q[row * x->blocks * 64 + i];
        const float scale = x->scale[row * x->blocks + b] * ref_ternary_scale(w, out, 64 * b);
        const float term = (float)dot * scale;
        acc = acc + term;
    }
    return acc;
}

float ref_int8_product(const struct chm_int8_matrix *w, int64_t out, const struct chm_activation *x, int64_t row) {
    float acc = 0;
    for (int64_t b = 0; b < w->blocks; b++) {
        int dot = 0;
        for (int64_t i = 64 * b; i < 64 * b + 64; i++)
            dot += w->q[out * w->blocks * 64 + i] * x->q[row * x->blocks * 64 + i];
        const float scale = x->scale[row * x->blocks + b] * w->scale[out];
        const float term = (float)dot * scale;
        acc = acc + term;
    }
    return acc;
}

static float fold(float *lane) {
    for (int apart = 8; apart >= 1; apart /= 2)
        for (int l = 0; l < apart; l++) lane[l] = lane[l] + lane[l + apart];
    return lane[0];
}

float ref_lanes_product(const float *a, const float *b, int64_t n) {
    float lane[16] = {0};
    for (int64_t i = 0; i < n; i++) {
        const float term = a[i] * b[i];
        lane[i % 16] = lane[i % 16] + term;
    }
    return fold(lane);
}

int ref_sparse_trit(const float *w, int64_t in, int64_t i) {
    int64_t zero = -1;
    for (int64_t n = i / 4 * 4; n < i / 4 * 4 + 4; n++) {
        const float size = n < in ? fabsf(w[n]) : 0;
        if (zero < 0 || size < (zero < in ? fabsf(w[zero]) : 0)) zero = n;
    }
    return i == zero ? 0 : w[i] < 0 ? -1 : 1;
}

void ref_ternary_grid(const float *w, int64_t in, int64_t group, bool sparse, float *row_scale, uint8_t *codes) {
    const int64_t groups = (in + group - 1) / group;
    float most = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t g = 0; g < groups; g++) {
            const int64_t n = in - g * group < group ? in - g * group : group;
            float lane[16] = {0}, sum = 0;
            int64_t kept = 0;
            for (int64_t i = 0; i < n; i++) {
                const float size = fabsf(w[g * group + i]);
                if (!sparse)
                    lane[i % 16] = lane[i % 16] + size;
                else if (ref_sparse_trit(w, in, g * group + i) != 0)
                    sum = sum + size;
                kept += !sparse || ref_sparse_trit(w, in, g * group + i) != 0;
            }
            float mean = kept == 0 ? 0 : (sparse ? sum : fold(lane)) / (float)kept;
            if (!(mean > 1e-5f)) mean = 1e-5f;
            if (pass == 0) {
                if (mean > most) most = mean;
            } else {
                const float code = nearbyintf(mean / *row_scale);
                codes[g] = code < 1 ? 1 : code > 255 ? 255 : (uint8_t)code;
            }
        }
        if (pass == 0) *row_scale = most / 255;
    }
}

/* one row: S in, S after in place; u[dv] out */
static void delta_row(double *S, int64_t dk, int64_t dv, const float *k, const float *v, double log_alpha, double beta,
                      double *u) {
    const double a = exp(log_alpha);
    for (int64_t i = 0; i < dk * dv; i++) S[i] *= a;
    for (int64_t j = 0; j < dv; j++) {
        double s = 0;
        for (int64_t i = 0; i < dk; i++) s += k[i] * S[i * dv + j];
        u[j] = beta * (v[j] - s);
    }
    for (int64_t i = 0; i < dk; i++)
        for (int64_t j = 0; j < dv; j++) S[i * dv + j] += k[i] * u[j];
}

void ref_delta(double *S, int64_t dk, int64_t dv, int64_t rows, int n_ask, const float *const *q, const float *k,
               const float *v, const float *log_alpha, const float *beta, double scale, double *const *o) {
    double *u = malloc((size_t)dv * sizeof *u);
    if (u == NULL) abort();
    for (int64_t t = 0; t < rows; t++) {
        delta_row(S, dk, dv, k + t * dk, v + t * dv, log_alpha[t], beta[t], u);
        for (int a = 0; a < n_ask; a++)
            for (int64_t j = 0; j < dv; j++) {
                double s = 0;
                for (int64_t i = 0; i < dk; i++) s += q[a][t * dk + i] * S[i * dv + j];
                o[a][t * dv + j] = scale * s;
            }
    }
    free(u);
}

void ref_delta_backward(const double *S, int64_t dk, int64_t dv, int64_t rows, int n_ask, const float *const *q,
                        const float *k, const float *v, const float *log_alpha, const float *beta, double scale,
                        const float *const *dout, double *const *dq, double *dk_, double *dv_, double *dlog_alpha,
                        double *dbeta, double *dS) {
    const size_t n = (size_t)(dk * dv);
    double *state = malloc((size_t)(rows + 1) * n * sizeof *state);
    double *u = malloc((size_t)(rows * dv) * sizeof *u), *du = malloc((size_t)dv * sizeof *du);
    if (state == NULL || u == NULL || du == NULL) abort();
    memcpy(state, S, n * sizeof *state);
    for (int64_t t = 0; t < rows; t++) {
        memcpy(state + (size_t)(t + 1) * n, state + (size_t)t * n, n * sizeof *state);
        delta_row(state + (size_t)(t + 1) * n, dk, dv, k + t * dk, v + t * dv, log_alpha[t], beta[t], u + t * dv);
    }
    for (int64_t t = rows - 1; t >= 0; t--) {
        const double *before = state + (size_t)t * n, *after = before + n, alpha = exp(log_alpha[t]);
        const float *kt = k + t * dk, *vt = v + t * dv;
        for (int a = 0; a < n_ask; a++)
            for (int64_t i = 0; i < dk; i++) {
                double s = 0;
                for (int64_t j = 0; j < dv; j++) {
                    s += after[i * dv + j] * dout[a][t * dv + j];
                    dS[i * dv + j] += scale * q[a][t * dk + i] * dout[a][t * dv + j];
                }
                dq[a][t * dk + i] = scale * s;
            }
        dbeta[t] = 0;
        for (int64_t j = 0; j < dv; j++) {
            double s = 0, ks = 0;
            for (int64_t i = 0; i < dk; i++) {
                s += kt[i] * dS[i * dv + j];
                ks += kt[i] * alpha * before[i * dv + j];
            }
            du[j] = s;
            dv_[t * dv + j] = beta[t] * s;
            dbeta[t] += s * (vt[j] - ks);
        }
        double dalpha = 0;
        for (int64_t i = 0; i < dk; i++) {
            double s = 0;
            for (int64_t j = 0; j < dv; j++) {
                s += dS[i * dv + j] * u[t * dv + j] - alpha * before[i * dv + j] * beta[t] * du[j];
                dS[i * dv + j] -= kt[i] * beta[t] * du[j];
                dalpha += dS[i * dv + j] * before[i * dv + j];
                dS[i * dv + j] *= alpha;
            }
            dk_[t * dk + i] = s;
        }
        dlog_alpha[t] = alpha * dalpha;
    }
    free(state);
    free(u);
    free(du);
}

void ref_attend(const struct chm_attend *a, double *o, double *lse, const double *dout, double *dq, double *dk_,
                double *dv_) {
    const int64_t all = a->before + a->rows;
    double *p = malloc((size_t)all * sizeof *p);
    if (p == NULL) abort();
    for (int64_t i = 0; dout != NULL && i < all * a->dk; i++) dk_[i] = 0;
    for (int64_t i = 0; dout != NULL && i < all * a->dv; i++) dv_[i] = 0;
    for (int64_t r = 0; r < a->rows; r++) {
        const int64_t last = a->before + r, first = last - a->window + 1 > 0 ? last - a->window + 1 : 0;
        const float *q = a->q + r * a->qs;
        double most = -INFINITY, sum = 0;
        for (int64_t e = first; e <= last; e++) {
            const float *k = e < a->before ? a->k_before + e * a->ks : a->k + (e - a->before) * a->ks;
            p[e] = 0;
            for (int64_t i = 0; i < a->dk; i++) p[e] += (double)q[i] * k[i];
            p[e] *= a->scale;
            most = fmax(most, p[e]);
        }
        for (int64_t e = first; e <= last; e++) sum += exp(p[e] - most);
        if (lse != NULL) lse[r] = most + log(sum);
        for (int64_t e = first; e <= last; e++) p[e] = exp(p[e] - most) / sum;
        for (int64_t j = 0; j < a->dv; j++) {
            o[r * a->dv + j] = 0;
            for (int64_t e = first; e <= last; e++)
                o[r * a->dv + j] +=
                    p[e] * (e < a->before ? a->v_before[e * a->vs + j] : a->v[(e - a->before) * a->vs + j]);
        }
        if (dout == NULL) continue;
        double along = 0; /* sum of p dp */
        for (int64_t j = 0; j < a->dv; j++) along += dout[r * a->dv + j] * o[r * a->dv + j];
        for (int64_t i = 0; i < a->dk; i++) dq[r * a->dk + i] = 0;
        for (int64_t e = first; e <= last; e++) {
            const float *k = e < a->before ? a->k_before + e * a->ks : a->k + (e - a->before) * a->ks;
            const float *v = e < a->before ? a->v_before + e * a->vs : a->v + (e - a->before) * a->vs;
            double dp = 0;
            for (int64_t j = 0; j < a->dv; j++) {
                dp += dout[r * a->dv + j] * v[j];
                dv_[e * a->dv + j] += p[e] * dout[r * a->dv + j];
            }
            const double ds = p[e] * (dp - along) * a->scale;
            for (int64_t i = 0; i < a->dk; i++) {
                dq[r * a->dk + i] += ds * k[i];
                dk_[e * a->dk + i] += ds * q[i];
            }
        }
    }
    free(p);
}
