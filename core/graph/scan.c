/*
 * The diagonal scan h_t = decay_t * h_{t-1} + input_t, written with the public recurrence interface: the smallest
 * example of one, and what a layer of operators alone mixes rows with.
 */
#include "graph/context.h"
#include <string.h>

static void scan_step(const chm_head *h, void *const *state, const float *const *in, float *out) {
    float *s = state[0];
    for (int64_t i = 0; i < h->out_width; i++) {
        s[i] = in[0][i] * s[i] + in[1][i];
        if (out) out[i] = s[i];
    }
}

static void scan_read(const chm_head *h, void *const *state, const float *const *in, float *out) {
    (void)in;
    memcpy(out, state[0], (size_t)h->out_width * sizeof(float));
}

static void scan_chunk(const chm_head *h, void *const *state, const float *const *in, float *out) {
    for (int64_t r = 0; r < h->rows; r++) {
        const float *row[2] = {in[0] + r * h->in_stride[0], in[1] + r * h->in_stride[1]};
        scan_step(h, state, row, out + r * h->out_stride);
    }
}

static size_t scan_scratch(const chm_head *h) { return (size_t)((h->rows + 1) * h->out_width) * sizeof(float); }

static void scan_chunk_read(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                            float *out) {
    (void)ask;
    float *s = h->scratch;
    memcpy(s, state[0], (size_t)h->out_width * sizeof(float));
    void *const copy[] = {s};
    scan_chunk(h, copy, in, out);
}

static void scan_read_backward(const chm_head *h, void *const *state, const float *const *in, const float *const *ask,
                               const float *dout, float *const *dask) {
    /* A read asks nothing of its own: all of its gradient flows to the rows that wrote. */
    (void)h, (void)state, (void)in, (void)ask, (void)dout, (void)dask;
}

static void scan_backward(const chm_head *h, void *const *state, const float *const *in, const chm_chunk_grad *grad) {
    const int64_t width = h->out_width;
    float *before = h->scratch, *dh = grad->dstate[0]; /* before: h_{t-1} of every row */
    memcpy(before, state[0], (size_t)width * sizeof(float));
    for (int64_t r = 0; r + 1 < h->rows; r++)
        for (int64_t i = 0; i < width; i++)
            before[(r + 1) * width + i] =
                in[0][r * h->in_stride[0] + i] * before[r * width + i] + in[1][r * h->in_stride[1] + i];
    for (int64_t r = h->rows - 1; r >= 0; r--)
        for (int64_t i = 0; i < width; i++) {
            float g = dh[i] + grad->dout[r * h->out_stride + i];
            for (uint32_t p = 0; p < grad->n_reads; p++) g += grad->read_dout[p][r * h->out_stride + i];
            if (grad->din[0]) grad->din[0][r * h->in_stride[0] + i] += g * before[r * width + i];
            if (grad->din[1]) grad->din[1][r * h->in_stride[1] + i] += g;
            dh[i] = g * in[0][r * h->in_stride[0] + i];
        }
}

static const chm_recurrence diag_scan = {
    .size = sizeof(chm_recurrence),
    .n_inputs = 2,
    .n_states = 1,
    .name = "diag_scan",
    .step = scan_step,
    .read = scan_read,
    .scratch_bytes = scan_scratch,
    .chunk = scan_chunk,
    .chunk_read = scan_chunk_read,
    .chunk_read_backward = scan_read_backward,
    .chunk_backward = scan_backward,
};

chm_tensor *chm_op_diag_scan(chm_graph *g, chm_tensor *decay, chm_tensor *input, int state) {
    chm_context *c = chm_context_of(g);
    if (!decay || !input) return NULL;
    const int at = c->first_state + state;
    if (state < 0 || at >= c->layout->count || decay->width != input->width ||
        c->layout->item[at].heads * c->layout->item[at].elements != input->width)
        return chm_refuse(c, CHM_E_PLUGIN,
                          "%s: a diagonal scan of %lld columns needs as many decays and a state of as many "
                          "numbers",
                          c->part, (long long)input->width);
    chm_tensor *const in[] = {decay, input};
    return chm_op_recur(g, &diag_scan, NULL, in, NULL, &state, c->layout->item[at].heads, c->layout->item[at].elements);
}
