/* statistics.c: Student's t by the incomplete beta function, and Holm's correction. */
#include "train/ablate/statistics.h"

#include <float.h>
#include <math.h>

double chm_mean(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return n > 0 ? sum / (double)n : NAN;
}

double chm_deviation(const double *x, int64_t n) {
    const double mean = chm_mean(x, n);
    double squares = 0;
    for (int64_t i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    return n > 1 ? sqrt(squares / (double)(n - 1)) : NAN;
}

/* The continued fraction of the incomplete beta function, by Lentz's method (Abramowitz and Stegun 26.5.8). */
static double fraction(double a, double b, double x) {
    enum { MOST = 10000 };
    double c = 1, d = 1 / (1 - (a + b) * x / (a + 1)), value = d;
    for (int m = 1; m <= MOST; m++) {
        const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        d = 1 / (1 + even * d);
        c = 1 + even / c;
        value *= d * c;
        const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        d = 1 / (1 + odd * d);
        c = 1 + odd / c;
        value *= d * c;
        if (fabs(d * c - 1) < 2 * DBL_EPSILON) break;
    }
    return value;
}

/* I_x(a, b) */
static double incomplete_beta(double a, double b, double x) {
    if (x <= 0) return 0;
    if (x >= 1) return 1;
    const double front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x));
    /* where it converges fast */
    return x < (a + 1) / (a + b + 2) ? front * fraction(a, b, x) / a : 1 - front * fraction(b, a, 1 - x) / b;
}

double chm_t_two_sided(double t, double freedom) {
    if (isnan(t)) return NAN;
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t));
}

double chm_t_quantile(double share, double freedom) {
    const double wanted = 1 - share;
    double low = 0, high = 1;
    while (chm_t_two_sided(high, freedom) > wanted && high < 1e300) high *= 2;
    for (int i = 0; i < 200 && high - low > DBL_EPSILON * high; i++) {
        const double middle = low + (high - low) / 2;
        if (chm_t_two_sided(middle, freedom) > wanted)
            low = middle;
        else
            high = middle;
    }
    return low + (high - low) / 2;
}

void chm_holm(double *p, int64_t n) {
    int64_t tests = 0, done = 0;
    double least = 0; /* adjusted values never fall */
    for (int64_t i = 0; i < n; i++) tests += !isnan(p[i]);
    /* Families are small. What is adjusted already is marked by its sign, 0 too. */
    while (done < tests) {
        int64_t next = -1;
        for (int64_t i = 0; i < n; i++)
            if (!isnan(p[i]) && !signbit(p[i]) && (next < 0 || p[i] < p[next])) next = i;
        least = fmax(least, fmin(1, p[next] * (double)(tests - done)));
        p[next] = -least;
        done++;
    }
    for (int64_t i = 0; i < n; i++)
        if (!isnan(p[i])) p[i] = fabs(p[i]);
}
