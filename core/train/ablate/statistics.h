/*
 * statistics.h: what a report says of a few numbers: Student's t, and Holm's correction.
 */
#ifndef CHM_STATISTICS_H
#define CHM_STATISTICS_H

#include <stdint.h>

double chm_mean(const double *x, int64_t n);      /* NaN for none */
double chm_deviation(const double *x, int64_t n); /* of a sample, over n - 1; NaN below two */
/* P(|T| > |t|) with `freedom` > 0 degrees of freedom. */
double chm_t_two_sided(double t, double freedom);
/* The t that |T| exceeds with probability 1 - share: chm_t_quantile(0.95, 2) is 4.302653. share in (0, 1). */
double chm_t_quantile(double share, double freedom);
/* Holm (1979), in place: adjusted p values of a family of n tests. NaN: no test, left as it is and not counted. */
void chm_holm(double *p, int64_t n);

#endif
