/*
 * ref_xlstm.h: the two cells of xLSTM in f64, row by row as the formulas read, with gradients. One head.
 *
 * Question set 0 is that of the rows themselves; later ones are asked of the state after each row. Gradients are exact
 * also in the stabiliser m. Results are assigned, not added.
 */
#ifndef REF_XLSTM_H
#define REF_XLSTM_H

#include <stdbool.h>
#include <stdint.h>

enum { REF_ASKS = 3 };

/* m' = max(log f + m, log i); C' = e^(log f + m - m') C + e^(log i - m') k^T v, n' likewise with k;
 * h = s q C' / (max(|s q n'|, e^-m') + 1e-6), s = 1 / sqrt(d) */
struct ref_mlstm {
    int64_t rows, d;
    int asks;
    const double *q[REF_ASKS], *k, *v, *log_i, *log_f, *C0, *n0, *m0; /* [rows][d], [rows], [d][d], [d], [1] */
    double *h[REF_ASKS], *C, *n, *m;                                  /* out: outputs and the state after the rows */
    const double *dh[REF_ASKS], *dC, *dn, *dm;
    double *dq[REF_ASKS], *dk, *dv, *dlog_i, *dlog_f, *dC0, *dn0, *dm0;
};

void ref_mlstm_forward(const struct ref_mlstm *r);
void ref_mlstm_backward(const struct ref_mlstm *r);

/* raw_g = in_g + R_g h, g = i, f, z, o; m' = max(log f + m, i), or i where n is 0; c' = F c + I tanh(z); n' = F n + I;
 * h' = sigmoid(o) c' / n'. A state is five rows of d: h, c, n, m and R_o h of the row before. A question is another
 * in_o: sigmoid(in_o + R_o h) c' / n'. */
struct ref_slstm {
    int64_t rows, d;
    int asks;
    bool exponential;                             /* log f is raw_f, else its log sigmoid */
    const double *in[4], *ask[REF_ASKS], *R, *S0; /* [rows][d]; ask[0] is in[3]; [4][d][d]; [5][d] */
    double *h[REF_ASKS], *S;
    const double *dh[REF_ASKS], *dS;
    double *din[4], *dask[REF_ASKS], *dR, *dS0; /* dask[0] is not filled: it is din[3] */
};

void ref_slstm_forward(const struct ref_slstm *r);
void ref_slstm_backward(const struct ref_slstm *r);

#endif
