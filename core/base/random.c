/*
 * random.c: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC11). A number
 * is a function of where it is wanted (seed, purpose, a, b), so nothing depends on the order of asking.
 */
#include "base/base.h"

#include <math.h>
#include <string.h>

void chm_philox(uint64_t seed, uint32_t purpose, uint32_t a, uint64_t b, uint32_t out[4]) {
    uint32_t c0 = (uint32_t)b, c1 = (uint32_t)(b >> 32), c2 = a, c3 = purpose;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Odd multiples of 2^-53, so that neither 0 nor 1 can come out of rounding. */
static double unit(uint32_t high, uint32_t low) {
    uint64_t bits = (uint64_t)high << 32 | low;
    return ((double)(bits >> 12) + 0.5) * 0x1p-52;
}

double chm_uniform_at(uint64_t seed, uint32_t purpose, uint32_t a, uint64_t b) {
    uint32_t r[4];
    chm_philox(seed, purpose, a, b, r);
    return unit(r[0], r[1]);
}

/* The top 64 bits of (random 128 bits) * bound: the bias is below bound / 2^128. */
uint64_t chm_below_at(uint64_t seed, uint32_t purpose, uint32_t a, uint64_t b, uint64_t bound) {
    uint32_t r[4];
    chm_philox(seed, purpose, a, b, r);
    __extension__ typedef unsigned __int128 wide;
    uint64_t high = (uint64_t)r[0] << 32 | r[1], low = (uint64_t)r[2] << 32 | r[3];
    wide carry = ((wide)low * bound) >> 64;
    return (uint64_t)(((wide)high * bound + carry) >> 64);
}

/*
 * log and cos of our own: the C library's differ from version to version in the last bit, and a fresh model is a
 * function of its seed alone. Only + - * / and sqrt, which IEEE 754 fixes. Both are within 1e-15 of the true value.
 */
double chm_natural_log(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t exponent = (int64_t)(bits >> 52 & 0x7ff) - 1023;
    bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    double m;
    memcpy(&m, &bits, sizeof m); /* [1, 2) */
    if (m > 1.4142135623730951) {
        m *= 0.5;
        exponent++;
    }
    /* log m = 2 atanh(s), |s| <= 0.1716: the first term left out is below 1e-18 */
    double s = (m - 1) / (m + 1), s2 = s * s, sum = 0;
    for (int k = 23; k >= 1; k -= 2) sum = sum * s2 + 1.0 / k;
    return (double)exponent * 0.6931471805599453 + 2 * s * sum;
}

/* cos and sin of 2 pi u, 0 <= u <= 1 */
static void circle(double u, double *cosine, double *sine) {
    int quarter = (int)(u * 4 + 0.5);
    double t = (u * 4 - quarter) * 1.5707963267948966, t2 = t * t; /* |t| <= pi/4 */
    double c = 0, s = 0;
    for (int k = 18; k >= 0; k -= 2) c = 1 - (c * t2) / ((k + 1) * (k + 2));
    for (int k = 17; k >= 1; k -= 2) s = 1 - (s * t2) / ((k + 1) * (k + 2));
    s *= t;
    switch (quarter & 3) {
    case 0:
        *cosine = c, *sine = s;
        break;
    case 1:
        *cosine = -s, *sine = c;
        break;
    case 2:
        *cosine = -c, *sine = -s;
        break;
    default:
        *cosine = s, *sine = -c;
        break;
    }
}

/* Box and Muller: numbers 2i and 2i + 1 come from counter i. */
void chm_normals(uint64_t seed, uint32_t purpose, uint32_t a, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += 2) {
        uint32_t r[4];
        double cosine, sine;
        chm_philox(seed, purpose, a, (uint64_t)i / 2, r);
        double radius = sqrt(-2 * chm_natural_log(unit(r[0], r[1])));
        circle(unit(r[2], r[3]), &cosine, &sine);
        out[i] = (float)(radius * cosine);
        if (i + 1 < n) out[i + 1] = (float)(radius * sine);
    }
}
