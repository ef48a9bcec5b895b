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

/*
 * Box and Muller: numbers 2i and 2i + 1 come from counter i. LANES counters at a time, operation by operation, so that
 * the compiler can take several in one instruction: a large model has some 10^9 of them. What each operation does, and
 * so every bit, is that of chm_philox, unit and chm_natural_log for one counter alone.
 */
enum { LANES = 32 };

static void philox_lanes(uint64_t seed, uint32_t purpose, uint32_t a, uint64_t b, uint32_t c0[LANES],
                         uint32_t c1[LANES], uint32_t c2[LANES], uint32_t c3[LANES]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < LANES; i++) {
        c0[i] = (uint32_t)(b + (uint64_t)i);
        c1[i] = (uint32_t)((b + (uint64_t)i) >> 32);
        c2[i] = a;
        c3[i] = purpose;
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < LANES; i++) {
            const uint64_t p0 = (uint64_t)0xD2511F53u * c0[i], p1 = (uint64_t)0xCD9E8D57u * c2[i];
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c1[i] = (uint32_t)p1;
            c3[i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static void unit_lanes(const uint32_t high[LANES], const uint32_t low[LANES], double out[LANES]) {
    for (int i = 0; i < LANES; i++) {
        /* 2^52 + n for n below 2^52 is those bits */
        const uint64_t bits = ((uint64_t)high[i] << 32 | low[i]) >> 12 | 0x4330000000000000u;
        double x;
        memcpy(&x, &bits, sizeof x);
        out[i] = (x - 0x1p52 + 0.5) * 0x1p-52;
    }
}

static void log_lanes(const double x[LANES], double out[LANES]) {
    double s[LANES], s2[LANES], sum[LANES], exponent[LANES];
    for (int i = 0; i < LANES; i++) {
        uint64_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        const uint64_t power = (bits >> 52 & 0x7ff) | 0x4330000000000000u;
        bits = (bits & 0xfffffffffffffull) | 0x3ff0000000000000ull;
        double m, e;
        memcpy(&m, &bits, sizeof m);
        memcpy(&e, &power, sizeof e);
        e = e - 0x1p52 - 1023;
        exponent[i] = m > 1.4142135623730951 ? e + 1 : e;
        m = m > 1.4142135623730951 ? m * 0.5 : m;
        s[i] = (m - 1) / (m + 1);
        s2[i] = s[i] * s[i];
        sum[i] = 0;
    }
    for (int k = 23; k >= 1; k -= 2)
        for (int i = 0; i < LANES; i++) sum[i] = sum[i] * s2[i] + 1.0 / k;
    for (int i = 0; i < LANES; i++) out[i] = exponent[i] * 0.6931471805599453 + 2 * s[i] * sum[i];
}

/* cos and sin of 2 pi u, 0 <= u <= 1 */
static void circle_lanes(const double u[LANES], double cosine[LANES], double sine[LANES]) {
    int quarter[LANES];
    double t[LANES], t2[LANES], c[LANES] = {0}, s[LANES] = {0};
    for (int i = 0; i < LANES; i++) {
        quarter[i] = (int)(u[i] * 4 + 0.5);
        t[i] = (u[i] * 4 - quarter[i]) * 1.5707963267948966; /* |t| <= pi/4 */
        t2[i] = t[i] * t[i];
    }
    for (int k = 18; k >= 0; k -= 2)
        for (int i = 0; i < LANES; i++) c[i] = 1 - (c[i] * t2[i]) / ((k + 1) * (k + 2));
    for (int k = 17; k >= 1; k -= 2)
        for (int i = 0; i < LANES; i++) s[i] = 1 - (s[i] * t2[i]) / ((k + 1) * (k + 2));
    for (int i = 0; i < LANES; i++) {
        s[i] *= t[i];
        const double x = quarter[i] & 1 ? s[i] : c[i], y = quarter[i] & 1 ? c[i] : s[i];
        cosine[i] = (quarter[i] + 1) & 2 ? -x : x; /* of the quarters 0..3: c, -s, -c, s */
        sine[i] = quarter[i] & 2 ? -y : y;         /* s, c, -s, -c */
    }
}

void chm_normals_from(uint64_t seed, uint32_t purpose, uint32_t a, int64_t first, int64_t n, float *out) {
    for (int64_t at = first & ~(int64_t)1; at < first + n; at += 2 * LANES) {
        uint32_t r0[LANES], r1[LANES], r2[LANES], r3[LANES];
        double u[LANES], radius[LANES], cosine[LANES], sine[LANES];
        float pair[2 * LANES];
        philox_lanes(seed, purpose, a, (uint64_t)at / 2, r0, r1, r2, r3);
        unit_lanes(r0, r1, u);
        log_lanes(u, radius);
        unit_lanes(r2, r3, u);
        circle_lanes(u, cosine, sine);
        for (int i = 0; i < LANES; i++) {
            const double r = sqrt(-2 * radius[i]);
            pair[2 * i] = (float)(r * cosine[i]);
            pair[2 * i + 1] = (float)(r * sine[i]);
        }
        const int64_t from = CHM_MAX(first, at), to = CHM_MIN(first + n, at + 2 * LANES);
        memcpy(out + (from - first), pair + (from - at), (size_t)(to - from) * sizeof *out);
    }
}

void chm_normals(uint64_t seed, uint32_t purpose, uint32_t a, int64_t n, float *out) {
    chm_normals_from(seed, purpose, a, 0, n, out);
}
