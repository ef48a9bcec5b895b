/*
 * muon.c: Muon (K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024) on one matrix:
 *
 *   m = momentum m + g;  u = g + momentum m (Nesterov) or m
 *   X = u / |u|, then `iterations` times X = a X + b (X X') X + c (X X')^2 X with a, b, c = 3.4445, -4.7750, 2.0315,
 * which brings every singular value near 1 w = w - lr (decay w + 0.2 sqrt(max(out, in)) X)
 *
 * The last factor is that of arXiv:2502.16982: a step is then about as long as AdamW's, so that one learning rate and
 * one decay serve the matrices and the rest. Products are f32.
 */
#include "train/trainer.h"

#include <math.h>
#include <string.h>

bool chm_muon_takes(const chm_param *p) {
    return p->role == CHM_ROLE_TERNARY && p->rank == 2 && p->out > 1 && p->in > 1;
}

/* X once more, two squares of the shorter side, and the weights as they were (optimiser.c). */
size_t chm_muon_scratch(const chm_param *p) {
    const int64_t side = (CHM_MIN(p->out, p->in) * CHM_MIN(p->out, p->in) + 15) / 16 * 16;
    return (size_t)((p->count + 15) / 16 * 16 + 2 * side + p->count);
}

void chm_muon_step(const struct chm_kernels *k, const chm_train_config *c, float *w, float *g, float *momentum,
                   int64_t out, int64_t in, float gscale, float lr, float weight_decay, float *scratch) {
    static const float a = 3.4445f, b = -4.7750f, d = 2.0315f;
    const int64_t n = out * in, side = CHM_MIN(out, in);
    const float mu = (float)c->momentum;
    float *x = g, *next = scratch, *gram = next + (n + 15) / 16 * 16, *square = gram + (side * side + 15) / 16 * 16;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const float by = g[i] * gscale;
        momentum[i] = mu * momentum[i] + by;
        x[i] = c->nesterov ? by + mu * momentum[i] : momentum[i];
        sum += (double)x[i] * (double)x[i];
    }
    const float inverse = (float)(1 / (sqrt(sum) + 1e-7));
    for (int64_t i = 0; i < n; i++) x[i] *= inverse;
    const bool tall = out > in;
    for (int64_t turn = 0; turn < c->iterations; turn++) {
        /* the smaller of X X' and X' X; the other side of X takes the same polynomial */
        k->sgemm(tall, !tall, side, side, tall ? out : in, x, in, x, in, 0, gram, side);
        k->sgemm(false, false, side, side, side, gram, side, gram, side, 0, square, side);
        for (int64_t i = 0; i < side * side; i++) gram[i] = b * gram[i] + d * square[i];
        for (int64_t i = 0; i < n; i++) next[i] = a * x[i];
        if (tall)
            k->sgemm(false, false, out, in, in, x, in, gram, in, 1, next, in);
        else
            k->sgemm(false, false, out, in, out, gram, out, x, in, 1, next, in);
        float *was = x;
        x = next;
        next = was;
    }
    const float scale = 0.2f * sqrtf((float)CHM_MAX(out, in));
    for (int64_t i = 0; i < n; i++) w[i] -= lr * (weight_decay * w[i] + scale * x[i]);
}
