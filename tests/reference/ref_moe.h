/*
 * ref_moe.h: a mixture of SwiGLU experts in f64, row by row from the formula, with gradients. Slow and plain on
 * purpose: what the plugin is held against. arXiv:2412.19437, arXiv:2408.15664
 */
#ifndef REF_MOE_H
#define REF_MOE_H

#include <stdint.h>

/* score = sigmoid(x W_router^T); the `chosen` experts of highest score + bias, the lower number of equal ones; weight =
 * score / (sum of the chosen scores + 1e-20); y = sum of the shared experts + sum of weight * expert, each expert
 * W_down norm(silu(x W_gate^T) * (x W_up^T)). Experts 0..routed-1 are chosen from, the next `shared` always run. */
struct ref_moe {
    int64_t rows, width, routed, shared, chosen, inner;
    double eps; /* of the norm */
    const double *x, *router, *bias;
    const double *const *gate, *const *up, *const *down; /* [routed + shared] */
    const double *const *norm;                           /* NULL: without */
    double *y, *weight;                                  /* out; weight [rows][chosen] */
    int64_t *choice;                                     /* out: [rows][chosen], rising */
    const double *dy;
    double *dx, *drouter, *const *dgate, *const *dup, *const *ddown, *const *dnorm; /* out: overwritten */
};
/* Forward, then backward when dx is not NULL. */
void ref_moe_run(const struct ref_moe *r);

#endif
