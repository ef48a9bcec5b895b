/*
 * ref_gd.h: the gated delta rule and the gd layer around it in f64, row by row from the formula, with gradients. Slow
 * and plain on purpose: what the kernels and the plugin are held against. arXiv:2412.06464
 */
#ifndef REF_GD_H
#define REF_GD_H

#include <stdbool.h>
#include <stdint.h>

/* One head: S_t = alpha_t S_{t-1}; u = beta_t (v_t - k_t S_t); S_t += k_t^T u; o_t = scale * q_t S_t. Row-major: q, k
 * [rows][dk], v, o [rows][dv], log_alpha, beta [rows], S [dk][dv]. */
struct ref_delta {
    int64_t rows, dk, dv;
    double scale;
    const double *q, *k, *v, *log_alpha, *beta, *S0;
    double *o, *S;                                     /* out; S: after the last row */
    const double *d_o, *dS;                            /* gradients of o and S */
    double *dq, *dk_, *dv_, *dlog_alpha, *dbeta, *dS0; /* out: overwritten */
};
void ref_delta_forward(const struct ref_delta *r);
void ref_delta_backward(const struct ref_delta *r);

/* The exact step (arXiv:2512.12602): the rule above with c = (1 - e^(-beta |k|^2)) / |k|^2 for beta, beta for a zero
 * key. d[0], d[1]: dc/dbeta and dc/d|k|^2 */
double ref_efla(double beta, double length2, double d[2]);
/* One such step without that formula: the exponential of beta times the generator of dS/dtau = k^T (v - k S), by Taylor
 * and squaring in long double. S [dk][dv] in place */
void ref_efla_flow(int64_t dk, int64_t dv, double beta, const double *k, const double *v, double *S);

/* The layer. Shapes as the plugin declares them; NULL o_norm: without that norm; b_bias: with the exact step. */
enum ref_gd_param {
    REF_Q,
    REF_K,
    REF_V,
    REF_G,
    REF_O,
    REF_A,
    REF_B,
    REF_A_LOG,
    REF_DT_BIAS,
    REF_CONV_Q,
    REF_CONV_K,
    REF_CONV_V,
    REF_HEAD_NORM,
    REF_O_NORM,
    REF_B_BIAS,
    REF_PARAMS
};
enum ref_gd_state { REF_MEMORY, REF_STATE_Q, REF_STATE_K, REF_STATE_V, REF_STATES };
extern const char *const ref_gd_param_name[REF_PARAMS], *const ref_gd_state_name[REF_STATES];

struct ref_gd {
    int64_t rows, width, heads, dk, dv, taps;
    bool neg_eigval;
    double eps; /* of both RMS norms; the l2 norm has 1e-6 */
    const double *x, *param[REF_PARAMS];
    const double *state[REF_STATES]; /* before the rows: memory [heads][dk][dv], others [heads][taps - 1][dk or dv] */
    double *y, *final[REF_STATES];   /* out */
    const double *dy, *dfinal[REF_STATES];
    double *dx, *grad[REF_PARAMS], *dstate[REF_STATES]; /* out: overwritten */
};
int64_t ref_gd_param_count(const struct ref_gd *r, enum ref_gd_param p);
int64_t ref_gd_state_count(const struct ref_gd *r, enum ref_gd_state s);
/* Forward, then backward when dx is not NULL. */
void ref_gd_run(const struct ref_gd *r);

#endif
