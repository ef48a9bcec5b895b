/*
 * ref_kernels.h: slow twins of the kernels, in f64 and from the formulas. They share nothing with plugins/backends.
 * The quantised products, whose bytes are promised, are evaluated in exact integers and plain float instead.
 */
#ifndef CHM_REF_KERNELS_H
#define CHM_REF_KERNELS_H

#include <chimera/plugin.h>

double ref_unary(enum chm_unary op, double x);
double ref_unary_derivative(enum chm_unary op, double x);

/* y[n][width]; kind of norm by `mean`: sum / width (RMS) or plain sum (l2). weight may be NULL */
void ref_norm(const float *x, int64_t n, int64_t width, double eps, bool mean, const float *weight, int64_t weight_rows,
              double *y);
/* gradient of sum(y dy): dx[n][width], dweight[weight_rows * width] (NULL: not wanted) */
void ref_norm_backward(const float *x, int64_t n, int64_t width, double eps, bool mean, const float *weight,
                       int64_t weight_rows, const float *dy, double *dx, double *dweight);

double ref_logsumexp(const float *x, int64_t n);

/* the numeric contract of the quantiser and the products, element by element */
void ref_quantise(const float *x, int64_t width, int8_t *q, float *scale, int32_t *sum);
int ref_trit(const struct chm_ternary *w, int64_t out, int64_t in);
float ref_ternary_scale(const struct chm_ternary *w, int64_t out, int64_t in);
float ref_ternary_product(const struct chm_ternary *w, int64_t out, const struct chm_activation *x, int64_t row);
float ref_int8_product(const struct chm_int8_matrix *w, int64_t out, const struct chm_activation *x, int64_t row);
/* 16 sums by index mod 16, folded pairwise */
float ref_lanes_product(const float *a, const float *b, int64_t n);
/* the stored scale of one row's group and its row scale, from the definition */
/* sparse: 3 of 4 as sherry has them, ref_sparse_trit() the trit of input i */
int ref_sparse_trit(const float *w, int64_t in, int64_t i);
void ref_ternary_grid(const float *w, int64_t in, int64_t group, bool sparse, float *row_scale, uint8_t *codes);

/*
 * The delta rule one row after another: q[a][rows][dk], v, o[a][rows][dv]. S[dk][dv] is advanced.
 * The backward form is the adjoint of that recurrence, state by state (none of the chunk algebra). All gradients are
 * written, not added; dS is in/out.
 */
void ref_delta(double *S, int64_t dk, int64_t dv, int64_t rows, int n_ask, const float *const *q, const float *k,
               const float *v, const float *log_alpha, const float *beta, double scale, double *const *o);
void ref_delta_backward(const double *S, int64_t dk, int64_t dv, int64_t rows, int n_ask, const float *const *q,
                        const float *k, const float *v, const float *log_alpha, const float *beta, double scale,
                        const float *const *dout, double *const *dq, double *dk_, double *dv_, double *dlog_alpha,
                        double *dbeta, double *dS);

/*
 * Softmax attention over a window, score by score: o[rows][dv], side by side, lse[rows] (NULL: not wanted). With dout
 * (o's layout) the gradients too: dq[rows][dk], and for all before + rows entries dk_[...][dk], dv_[...][dv]; written,
 * not added.
 */
void ref_attend(const struct chm_attend *a, double *o, double *lse, const double *dout, double *dq, double *dk_,
                double *dv_);

#endif
