/*
 * ref_optimisers.h: the steps of optimisers in f64, written from their formulas. Slow and plain on purpose: what the
 * trainer and its plugins are held against.
 */
#ifndef REF_OPTIMISERS_H
#define REF_OPTIMISERS_H

#include <stdbool.h>
#include <stdint.h>

/* arXiv:1711.05101, algorithm 2, with the schedule in lr and decay multiplied by it; t from 1 */
void ref_adamw(double *w, const double *g, double *m, double *v, int64_t n, double lr, double beta1, double beta2,
               double eps, double decay, int64_t t);
/* m may be NULL: no momentum */
void ref_sgd(double *w, const double *g, double *m, int64_t n, double lr, double momentum, bool nesterov, double decay);
/* plugins/optimisers/muon.c has the formula */
void ref_muon(double *w, const double *g, double *m, int64_t out, int64_t in, double lr, double momentum, bool nesterov,
              int64_t iterations, double decay);
/* The singular values of x [rows, columns], rows <= columns, by Jacobi rotations of its rows, which x becomes. */
void ref_singular_values(double *x, int64_t rows, int64_t columns, double *value);

#endif
