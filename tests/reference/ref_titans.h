/*
 * ref_titans.h: one head of the Titans memory, row by row from the definition, in complex f64. Slow and plain on
 * purpose: what the plugin's recurrence is held against. arXiv:2501.00663
 *
 * Numbers are complex so that derivatives need no second program: every function here is analytic, so with an imaginary
 * part of 1e-100 times a direction on the inputs, that of an output over 1e-100 is its derivative along the direction,
 * exact to the last bits (no difference is taken).
 */
#ifndef REF_TITANS_H
#define REF_TITANS_H

#include <complex.h>
#include <stdbool.h>
#include <stdint.h>

typedef double _Complex ref_number;

/* the inputs row by row, then what all rows share, then the states, in the plugin's order and shapes */
enum {
    REF_Q,         /* [rows][d] */
    REF_K,         /* [rows][d] */
    REF_V,         /* [rows][d] */
    REF_LOG_GAMMA, /* [rows] */
    REF_ETA,       /* [rows] */
    REF_ALPHA,     /* [rows] */
    REF_THETA,     /* [rows] */
    REF_CONTEXT,   /* [rows][d] */
    REF_MAPS,      /* [5][d][d] */
    REF_W1,        /* [d][d] */
    REF_W2,        /* [d][d] */
    REF_FAST,      /* [4][d][d] */
    REF_CORE,      /* [d][d] */
    REF_LOG,       /* [4][chunk][d] */
    REF_GATES,     /* [3][chunk] */
    REF_LEAVES
};

struct ref_titans {
    int64_t rows, d, chunk, segment, position;
    bool tokens;   /* core = decay */
    bool before;   /* update = before */
    char retrieve; /* 'a'nchor, 'c'urrent, 'n'one */
    double carry, eps;
    const ref_number *in[REF_LEAVES];
    const ref_number *again_q, *again_context; /* questions of a second pass, or NULL */
    ref_number *y, *m;                         /* [rows][d] */
    ref_number *surprise;                      /* [rows]: squared norm of the gradient */
    ref_number *again_y, *again_m;
    ref_number *state[4]; /* after the rows: fast, core, log, gates */
};

int64_t ref_titans_count(const struct ref_titans *r, int leaf);
void ref_titans_run(const struct ref_titans *r);

/* M(u) = u + silu(u A1) A2 on a key and a value: delta, p, e [d], whose outer products are the gradients of half the
 * squared error, kappa^T delta and p^T e */
void ref_titans_gradient(int64_t d, const ref_number *kappa, const ref_number *nu, const ref_number *a1,
                         const ref_number *a2, ref_number *delta, ref_number *p, ref_number *e);
/* out = u + silu(u A1) A2 */
void ref_titans_memory(int64_t d, const ref_number *u, const ref_number *a1, const ref_number *a2, ref_number *out);
/* momentum = eta momentum - theta x^T y; deviation = (1 - alpha) deviation + momentum */
void ref_titans_update(int64_t d, const ref_number *x, const ref_number *y, ref_number eta, ref_number theta,
                       ref_number alpha, ref_number *momentum, ref_number *deviation);

#endif
