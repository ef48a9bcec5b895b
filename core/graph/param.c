#include "graph/encoding.h"
#include "graph/graph.h"
#include <math.h>
#include <string.h>

size_t chm_param_code_bytes(const chm_param *p, int32_t encoding) {
    switch (p->format) {
    case CHM_FORMAT_TERNARY:
        return (size_t)(chm_ternary_tiles(p->out) * chm_ternary_code_stride(encoding, p->in));
    case CHM_FORMAT_INT8:
        return (size_t)(p->out * ((p->in + 63) / 64) * 64);
    case CHM_FORMAT_F32:
        break;
    }
    return 0;
}

size_t chm_param_scale_bytes(const chm_param *p, int64_t group) {
    switch (p->format) {
    case CHM_FORMAT_TERNARY:
        return chm_align64((size_t)(chm_ternary_tiles(p->out) * chm_ternary_scale_stride(p->in, group)));
    case CHM_FORMAT_INT8:
        return chm_align64((size_t)p->out * sizeof(float));
    case CHM_FORMAT_F32:
        break;
    }
    return 0;
}

struct quantise_job {
    chm_param *p;
    const struct chm_kernels *k;
};

static void quantise_ternary(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct quantise_job *job = arg;
    const struct chm_ternary *t = &job->p->ternary;
    /* The table types its arrays const because inference maps them; in training they are this parameter's own. */
    job->k->ternarise(job->p->value, t->out, t->in, t->group, job->p->sparse, begin, end,
                      (uint8_t *)(uintptr_t)t->codes, (uint8_t *)(uintptr_t)t->scales, job->p->dequant);
}

void chm_int8_rows(const float *w, int64_t rows, int64_t in, int8_t *q, float *scale, float *dequant) {
    const int64_t stride = (in + 63) / 64 * 64;
    for (int64_t r = 0; r < rows; r++, w += in, q += stride) {
        float top = 0;
        for (int64_t i = 0; i < in; i++) top = fabsf(w[i]) > top ? fabsf(w[i]) : top;
        const float s = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0;
        scale[r] = s;
        for (int64_t i = 0; i < in; i++) {
            float v = rintf(w[i] * inverse);
            v = v > 127 ? 127 : v < -127 ? -127 : v;
            q[i] = (int8_t)v;
            /* through the byte, which has no -0: what training sees is what the file gives back */
            if (dequant) dequant[r * in + i] = (float)q[i] * s;
        }
        memset(q + in, 0, (size_t)(stride - in));
    }
}

static void quantise_int8(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct quantise_job *job = arg;
    const chm_param *p = job->p;
    chm_int8_rows(p->value + begin * p->in, end - begin, p->in,
                  (int8_t *)(uintptr_t)p->int8.q + begin * p->int8.blocks * 64,
                  (float *)(uintptr_t)p->int8.scale + begin, p->dequant ? p->dequant + begin * p->in : NULL);
}

int chm_param_quantise(chm_param *p, const struct chm_kernels *k, chm_pool *pool) {
    struct quantise_job job = {p, k};
    switch (p->format) {
    case CHM_FORMAT_TERNARY:
        chm_parallel(pool, chm_ternary_tiles(p->out), 4, quantise_ternary, &job);
        break;
    case CHM_FORMAT_INT8:
        chm_parallel(pool, p->out, 64, quantise_int8, &job);
        break;
    case CHM_FORMAT_F32:
        break;
    }
    return CHM_OK;
}

void chm_param_row(const chm_param *p, int64_t row, float *out) {
    switch (p->format) {
    case CHM_FORMAT_F32:
        memcpy(out, p->value + row * p->in, (size_t)p->in * sizeof(float));
        break;
    case CHM_FORMAT_INT8: {
        const int8_t *q = p->int8.q + row * p->int8.blocks * 64;
        const float scale = p->int8.scale[row];
        for (int64_t i = 0; i < p->in; i++) out[i] = (float)q[i] * scale;
        break;
    }
    case CHM_FORMAT_TERNARY: {
        const struct chm_ternary *t = &p->ternary;
        const uint8_t *scales = t->scales + row / 16 * chm_ternary_scale_stride(t->in, t->group);
        const int64_t lane = row % 16;
        uint8_t code[512];
        float row_scale;
        memcpy(&row_scale, scales + 4 * lane, sizeof row_scale);
        for (int64_t i = 0; i < t->in; i++) {
            if (i % (int64_t)sizeof code == 0) chm_ternary_codes(t, row, i, sizeof code, code);
            const uint8_t at = code[i % (int64_t)sizeof code];
            const int64_t group = i / t->group;
            out[i] = (float)(at - 1) * ((float)scales[64 + 16 * group + lane] * row_scale);
        }
        break;
    }
    }
}
