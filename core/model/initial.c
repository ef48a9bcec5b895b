/* initial.c: what parameters are before anything was learnt. */
#include "graph/encoding.h"
#include "model/model.h"

#include <math.h>
#include <string.h>

/* Initial values first .. first + n - 1 of a parameter; a custom initialiser gives them all at once. */
static int initial_values(const chm_model *m, const chm_param *p, uint64_t seed, int64_t first, int64_t n, float *out) {
    const chm_init *init = &p->init;
    const float range = init->a > 0 ? init->a : (float)m->config->init_range;
    switch (init->kind) {
    case CHM_INIT_NORMAL:
    case CHM_INIT_RESIDUAL: {
        const float depth = 2.0f * (float)m->config->effective_depth;
        const float scale = init->kind == CHM_INIT_RESIDUAL ? range / sqrtf(depth) : range;
        chm_normals_from(seed, CHM_RANDOM_INIT, p->stream, first, n, out);
        for (int64_t k = 0; k < n; k++) out[k] *= scale;
        return CHM_OK;
    }
    case CHM_INIT_UNIFORM:
        for (int64_t k = 0; k < n; k++)
            out[k] = init->a + (init->b - init->a) *
                                   (float)chm_uniform_at(seed, CHM_RANDOM_INIT, p->stream, (uint64_t)(first + k));
        return CHM_OK;
    case CHM_INIT_CONSTANT:
        for (int64_t k = 0; k < n; k++) out[k] = init->a;
        return CHM_OK;
    case CHM_INIT_LINSPACE:
        for (int64_t k = 0; k < n; k++)
            out[k] =
                p->count > 1 ? init->a + (init->b - init->a) * (float)(first + k) / (float)(p->count - 1) : init->a;
        return CHM_OK;
    case CHM_INIT_FORGET: {
        const int64_t group = init->b > 1 ? (int64_t)init->b : 1;
        for (int64_t k = 0; k < n; k++) {
            const double u = group > 1 ? (double)((first + k) % group) / (double)(group - 1) : 0;
            out[k] = (float)(5 - 12 * pow(u, (double)init->a));
        }
        return CHM_OK;
    }
    case CHM_INIT_CUSTOM: {
        double *uniform = chm_alloc((size_t)p->count * sizeof *uniform);
        if (!uniform) return CHM_E_MEMORY;
        for (int64_t k = 0; k < p->count; k++)
            uniform[k] = chm_uniform_at(seed, CHM_RANDOM_INIT, p->stream, (uint64_t)k);
        init->fill(uniform, p->count, out);
        chm_free(uniform);
        return CHM_OK;
    }
    }
    return chm_fail(CHM_E_PLUGIN, "%s has an unknown initialiser %d", p->name, (int)init->kind);
}

int chm_model_randomise(chm_model *m, uint64_t seed) {
    int status = CHM_OK;
    for (int i = 0; i < m->params && !status; i++)
        status = initial_values(m, m->param[i], seed, 0, m->param[i]->count, m->param[i]->value);
    return status;
}

/* ---- straight to the packed forms ---- */

/* Sixteen rows at a time: a tile of a ternary matrix, and as many rows of an int8 one. */
enum { ROWS = 16 };

struct packing {
    const chm_model *m;
    chm_param *p;
    const struct chm_kernels *kernels;
    uint64_t seed;
    const float *all; /* the parameter's values, where a custom initialiser made them; else NULL */
    uint8_t *scratch; /* [workers][scratch_bytes]: f32 of the rows, then their codes as T2 */
    size_t scratch_bytes;
};

static size_t value_bytes(const chm_param *p) { return chm_align64((size_t)p->in * ROWS * sizeof(float)); }

static void pack_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct packing *job = arg;
    const chm_param *p = job->p;
    for (int64_t t = begin; t < end; t++) {
        const int64_t first = t * ROWS, rows = CHM_MIN(p->out - first, (int64_t)ROWS);
        uint8_t *scratch = job->scratch + (size_t)worker * job->scratch_bytes, *codes = scratch + value_bytes(p);
        const float *value = job->all ? job->all + first * p->in : (const float *)(const void *)scratch;
        /* the initialisers that come here cannot fail: what makes values all at once has been called */
        if (!job->all)
            (void)initial_values(job->m, p, job->seed, first * p->in, rows * p->in, (float *)(void *)scratch);
        if (p->format == CHM_FORMAT_INT8) {
            chm_int8_rows(value, rows, p->in, (int8_t *)(uintptr_t)p->int8.q + first * p->int8.blocks * 64,
                          (float *)(uintptr_t)p->int8.scale + first, NULL);
            continue;
        }
        const struct chm_ternary *w = &p->ternary;
        const struct chm_ternary tile = {codes, NULL, rows, w->in, w->group, CHM_ENCODING_T2, 0};
        struct chm_misfit none = {0}; /* a card with sherry is one that makes weights for it */
        job->kernels->ternarise(value, rows, w->in, w->group, p->sparse, 0, 1, codes,
                                (uint8_t *)(uintptr_t)w->scales + t * chm_ternary_scale_stride(w->in, w->group), NULL);
        chm_ternary_repack(&tile, w->encoding, 0, 1,
                           (uint8_t *)(uintptr_t)w->codes + t * chm_ternary_code_stride(w->encoding, w->in), &none);
    }
}

static int pack_param(struct packing *job, chm_pool *pool) {
    chm_param *p = job->p;
    int status = CHM_OK;
    if (p->format == CHM_FORMAT_F32) return initial_values(job->m, p, job->seed, 0, p->count, p->value);
    float *all = NULL;
    if (p->init.kind == CHM_INIT_CUSTOM || p->init.kind > CHM_INIT_FORGET) {
        all = chm_alloc((size_t)p->count * sizeof *all);
        status = all ? initial_values(job->m, p, job->seed, 0, p->count, all) : CHM_E_MEMORY;
    }
    job->all = all;
    if (!status) chm_parallel(pool, (p->out + ROWS - 1) / ROWS, 1, pack_rows, job);
    chm_free(all);
    return status;
}

int chm_model_init(chm_model *m, uint64_t seed, const struct chm_kernels *k, chm_pool *pool) {
    struct packing job = {.m = m, .kernels = k, .seed = seed};
    int status = CHM_OK;
    for (int pass = 0; pass < 2; pass++) {
        size_t used = 0;
        for (int i = 0; i < m->params; i++) {
            chm_param *p = m->param[i];
            if (p->format == CHM_FORMAT_F32) {
                p->value = chm_carve(m->storage, &used, (size_t)p->count * sizeof(float));
                continue;
            }
            void *codes = chm_carve(m->storage, &used, chm_param_code_bytes(p, p->stored));
            void *scales = chm_carve(m->storage, &used, chm_param_scale_bytes(p, p->ternary.group));
            job.scratch_bytes =
                CHM_MAX(job.scratch_bytes, value_bytes(p) + (size_t)chm_ternary_code_stride(CHM_ENCODING_T2, p->in));
            if (p->format == CHM_FORMAT_TERNARY) {
                p->ternary.codes = codes;
                p->ternary.scales = scales;
                p->ternary.encoding = p->stored;
            } else {
                p->int8.q = codes;
                p->int8.scale = scales;
            }
        }
        if (pass) break;
        m->storage = chm_alloc_aligned(used);
        if (!m->storage) return CHM_E_MEMORY;
    }
    job.scratch_bytes = chm_align64(job.scratch_bytes);
    job.scratch = chm_alloc_aligned((size_t)chm_pool_threads(pool) * job.scratch_bytes);
    if (!job.scratch) status = CHM_E_MEMORY;
    for (int i = 0; i < m->params && !status; i++) {
        job.p = m->param[i];
        status = pack_param(&job, pool);
    }
    chm_free(job.scratch);
    return status;
}
