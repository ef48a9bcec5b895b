/*
 * ref_sk.h: sketches, mosaics and relaxation of the layer sk, and what the layer adds to gd, in f64 from the
 * definitions: one number a bit, full sorts, energies summed anew. Slow and plain on purpose.
 */
#ifndef REF_SK_H
#define REF_SK_H

#include "ref_gd.h"

enum { REF_MOSAICS = 3 };

/* Mosaics [3][bits] of +-1 that row t sees: block j of the one of period P holds the bits of the last row before t
 * whose position is j modulo P, or the pattern's. signs [t][bits]; row r stands at position first + r, nothing before
 * it. */
void ref_sk_mosaics(int64_t bits, const int8_t *signs, int64_t t, int64_t first, int8_t *mosaics);

struct ref_relax {
    int64_t bits, rounds, flips;
    double own, memory, exit;
};
/* -own/n sum z_i b_i + memory min Ham(b, m) / n */
double ref_sk_energy(const struct ref_relax *r, const double *z, const int8_t *mosaics, const int8_t *b);
/* b: signs of z in, relaxed out. energy[rounds + 1]: before and after each round; flipped[rounds]; field [bits]:
 * memory/2 m of the last round, zero when there was none. h is rounded to f32 where the layer rounds, so that equal
 * ones are equal. Returns the rounds. */
int64_t ref_sk_relax(const struct ref_relax *r, const float *z, const int8_t *mosaics, int8_t *b, double *energy,
                     int64_t *flipped, double *field);

/* The layer: y = core + gamma (b decode^T) / sqrt(bits), z = RMSNorm(RMSNorm(core) norm encode^T), b given. */
struct ref_sk {
    struct ref_gd core; /* x, params and states set; its y, dy and dx are used here */
    int64_t bits;
    const double *encode, *decode, *gamma, *norm;
    const int8_t *b;     /* [rows][bits], for y and gradients */
    const double *field; /* [rows][bits]: the gradient passes where |own z + field| <= 1 */
    double own;
    double *z, *y; /* out */
    const double *dy;
    double *dencode, *ddecode, *dgamma, *dnorm; /* out; the core's gradients where it has them */
};
void ref_sk_forward(struct ref_sk *r); /* z from the core; y when b is there */
void ref_sk_backward(struct ref_sk *r);

#endif
