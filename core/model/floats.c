/*
 * floats.c: parameters out of plain tensors: floats that are trit * scale or int8 * scale get their codes and scales
 * back, ternary matrices of other people's checkpoints get ours.
 */
#include "model/b158.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

enum { TILE = 16 };

/* ---- numbers of a tensor ---- */

static bool is_float(const chm_st_tensor *t) {
    return t->dtype == CHM_ST_F32 || t->dtype == CHM_ST_F16 || t->dtype == CHM_ST_BF16;
}

static float half(uint16_t h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? ldexpf((float)(fraction | 1024), exponent - 25)
                                      : ldexpf((float)fraction, -24);
    return h >> 15 ? -size : size;
}

/* n numbers from `first` on; the bytes of a tensor need not be aligned. */
static void numbers(const chm_st_tensor *t, int64_t first, int64_t n, float *out) {
    if (t->dtype == CHM_ST_F32) {
        memcpy(out, t->data + 4 * first, (size_t)n * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, t->data + 2 * (first + i), sizeof bits);
        if (t->dtype == CHM_ST_F16) {
            out[i] = half(bits);
        } else {
            const uint32_t wide = (uint32_t)bits << 16;
            memcpy(&out[i], &wide, sizeof wide);
        }
    }
}

/* x as the type of the tensor would hold it: rounded to the nearest, ties to even. */
static float rounded(float x, enum chm_st_dtype type) {
    const int bits = type == CHM_ST_BF16 ? 8 : type == CHM_ST_F16 ? 11 : 24;
    int exponent;
    const float fraction = frexpf(x, &exponent);
    return ldexpf(rintf(ldexpf(fraction, bits)), exponent - bits);
}

/* The tensor of a name, NULL where there is none. */
static int find(struct chm_floats *f, const char *name, const char *suffix, const chm_st_tensor **out) {
    char *key = chm_format("%s%s", name, suffix);
    *out = key ? chm_safetensors_find(f->file, key) : NULL;
    if (*out) f->used[*out - f->file->tensor] = true;
    chm_free(key);
    return key ? CHM_OK : CHM_E_MEMORY;
}

static int all_finite(const char *path, const chm_param *p, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabsf(x[i]) <= FLT_MAX))
            return chm_fail(CHM_E_DATA, "%s: tensor '%s': a number is %g, expected finite numbers", path,
                            chm_quote(p->name).text, (double)x[i]);
    return CHM_OK;
}

/* ---- rows on the grid ---- */

/* One matrix being taken. */
struct taking {
    const chm_param *p;
    const chm_st_tensor *t;
    const uint8_t *record; /* stored scales: ternary [tiles][64 + 16 * groups], int8 f32 [out]; NULL: there are none */
    uint8_t *codes, *scales;
    float *row;    /* [workers][in] */
    uint8_t *code; /* [workers][TILE][in] */
    bool trits;    /* what `t` holds are packed codes, all of scale `scale` */
    bool absmean;
    float scale, inverse;
    _Atomic int64_t bad; /* the first row that is not on the grid; out: none */
    _Atomic bool anew;   /* some stored scale did not fit, and another was found */
};

static void is_bad(struct taking *k, int64_t row) {
    int64_t worst = atomic_load(&k->bad);
    while (row < worst && !atomic_compare_exchange_weak(&k->bad, &worst, row)) {}
}

/* Are these weights trits times these scales? Writes the codes. */
static bool fits(const float *w, int64_t in, int64_t group, float row_scale, const uint8_t *record, uint8_t *code) {
    if (!chm_b158_sane_scale(row_scale)) return false;
    for (int64_t i = 0; i < in; i++) {
        const int64_t g = i / group;
        const float scale = (float)record[TILE * g] * row_scale;
        code[i] = (uint8_t)(1 + (w[i] > 0) - (w[i] < 0));
        if ((float)(code[i] - 1) * scale != w[i]) return false;
    }
    return true;
}

/* The size of the first weight that is not 0. */
static float group_size(const float *w, int64_t begin, int64_t end) {
    while (begin < end && w[begin] == 0) begin++;
    return begin < end ? fabsf(w[begin]) : 0;
}

/* Scales for a row that has lost them: a byte for each group such that bytes times the row's scale are the sizes of its
 * weights. The largest is 255 of the row's scale as training has it, else any other number of it. */
static bool recover(const float *w, int64_t in, int64_t group, float *row_scale, uint8_t *record, uint8_t *code) {
    const int64_t groups = chm_ternary_groups(in, group);
    float most = 0;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t end = CHM_MIN(in, (g + 1) * group);
        const float size = group_size(w, g * group, end);
        for (int64_t i = g * group; i < end; i++)
            if (w[i] != 0 && fabsf(w[i]) != size) return false;
        most = fmaxf(most, size);
    }
    for (int top = 255; top >= 1; top--)
        for (int near = 0; near < 5; near++) {
            float scale = most / (float)top;
            for (int i = 0; i < (near + 1) / 2; i++) scale = nextafterf(scale, near % 2 ? 0 : INFINITY);
            if ((float)top * scale != most) continue;
            for (int64_t g = 0; g < groups; g++) {
                const float size = group_size(w, g * group, CHM_MIN(in, (g + 1) * group));
                const float byte = scale > 0 ? rintf(size / scale) : 0;
                record[TILE * g] = (uint8_t)(byte < 1 ? 1 : byte > 255 ? 255 : byte);
            }
            *row_scale = scale;
            if (fits(w, in, group, scale, record, code)) return true;
        }
    return false;
}

static void take_tiles(void *arg, int64_t begin, int64_t end, int worker) {
    struct taking *k = arg;
    const struct chm_ternary *w = &k->p->ternary;
    const int64_t in = w->in, stride = chm_ternary_scale_stride(in, w->group);
    float *row = k->row + worker * in;
    uint8_t *code = k->code + worker * TILE * in;
    struct chm_misfit none = {0};
    for (int64_t tile = begin; tile < end; tile++) {
        uint8_t *record = k->scales + tile * stride;
        memset(record, 0, 64);
        memset(record + 64, 1, (size_t)(stride - 64));
        for (int64_t r = 0; r < TILE; r++) {
            const int64_t o = TILE * tile + r;
            const uint8_t *kept = k->record ? k->record + tile * stride : NULL;
            uint8_t *to = code + r * in;
            float row_scale = 0;
            if (kept) memcpy(&row_scale, kept + 4 * r, sizeof row_scale);
            if (o >= w->out) { /* padding, as it was */
                if (!chm_b158_sane_scale(row_scale)) {
                    atomic_store(&k->anew, true);
                    row_scale = 0;
                }
                for (int64_t at = 64 + r; kept && at < stride; at += TILE) record[at] = kept[at];
            } else if (k->trits) {
                const int64_t packed = k->t->shape[0];
                for (int64_t i = 0; i < in; i++) {
                    to[i] = k->t->data[o % packed * in + i] >> 2 * (o / packed) & 3;
                    if (to[i] == 3) is_bad(k, o);
                }
                row_scale = k->scale;
            } else {
                numbers(k->t, o * in, in, row);
                if (k->absmean) {
                    for (int64_t i = 0; i < in; i++) {
                        const float x = rintf(row[i] * k->inverse);
                        to[i] = (uint8_t)(1 + (x > 0) - (x < 0));
                    }
                    row_scale = k->scale;
                } else if (kept && fits(row, in, w->group, row_scale, kept + 64 + r, to)) {
                    for (int64_t at = 64 + r; at < stride; at += TILE) record[at] = kept[at];
                } else if (!recover(row, in, w->group, &row_scale, record + 64 + r, to)) {
                    is_bad(k, o);
                    memset(to, 1, (size_t)in);
                } else if (kept) {
                    atomic_store(&k->anew, true);
                }
            }
            memcpy(record + 4 * r, &row_scale, sizeof row_scale);
        }
        if (atomic_load(&k->bad) == w->out) chm_ternary_pack(w, tile, code, k->codes, &none);
    }
}

/* The same for rows of int8; `row` is [workers][in]. */
static void take_int8(void *arg, int64_t begin, int64_t end, int worker) {
    struct taking *k = arg;
    const struct chm_int8_matrix *w = &k->p->int8;
    float *row = k->row + worker * w->in;
    for (int64_t o = begin; o < end; o++) {
        int8_t *q = (int8_t *)k->codes + o * w->blocks * 64;
        float most = 0, kept = 0, scale = 0;
        numbers(k->t, o * w->in, w->in, row);
        for (int64_t i = 0; i < w->in; i++) most = fmaxf(most, fabsf(row[i]));
        if (k->record) memcpy(&kept, k->record + 4 * o, sizeof kept);
        bool fit = false;
        for (int near = k->record ? -1 : 0; near < 5 && !fit; near++) {
            scale = near < 0 ? kept : most / 127;
            for (int i = 0; i < (near + 1) / 2; i++) scale = nextafterf(scale, near % 2 ? 0 : INFINITY);
            fit = chm_b158_sane_scale(scale);
            for (int64_t i = 0; i < w->in && fit; i++) {
                const float x = scale > 0 ? rintf(row[i] / scale) : 0;
                fit = fabsf(x) <= 127 && x * scale == row[i];
                q[i] = fit ? (int8_t)x : 0;
            }
        }
        memcpy(k->scales + 4 * o, &scale, sizeof scale);
        if (!fit)
            is_bad(k, o);
        else if (k->record && scale != kept)
            atomic_store(&k->anew, true);
    }
}

/* ---- parameters ---- */

/* A matrix that is not on the grid, as training would have it. */
static int quantise(struct chm_floats *f, chm_param *p, const chm_st_tensor *t) {
    int status = CHM_OK;
    double squares = 0, error = 0;
    p->value = chm_alloc((size_t)p->count * sizeof *p->value);
    p->dequant = chm_alloc((size_t)p->count * sizeof *p->dequant);
    if (!p->value || !p->dequant) {
        status = CHM_E_MEMORY;
        goto out;
    }
    numbers(t, 0, p->count, p->value);
    status = all_finite(f->path, p, p->value, p->count);
    if (!status) status = chm_param_quantise(p, f->kernels, f->pool);
    if (status) goto out;
    for (int64_t i = 0; i < p->count; i++) {
        const double off = (double)p->dequant[i] - p->value[i];
        squares += (double)p->value[i] * p->value[i];
        error += off * off;
    }
    f->quantised++;
    f->squares += squares;
    f->squared_error += error;
    chm_log(CHM_LOG_WARN, "%s: tensor '%s' is quantised, rms error %.4f of its rms", f->path, chm_quote(p->name).text,
            squares > 0 ? sqrt(error / squares) : 0);
out:
    chm_free(p->value);
    chm_free(p->dequant);
    p->value = p->dequant = NULL;
    return status;
}

/* The scale of a packed tensor, of which *t is found. */
static int packed_scale(struct chm_floats *f, const chm_param *p, const chm_st_tensor *t, float *scale) {
    if (f->import != CHM_IMPORT_AUTOBITLINEAR && f->import != CHM_IMPORT_BITLINEAR)
        return chm_fail(CHM_E_DATA,
                        "%s: tensor '%s' is U8; packed ternary weights are read with --import autobitlinear (the scale "
                        "multiplies) or bitlinear (it divides)",
                        f->path, chm_quote(p->name).text);
    const chm_st_tensor *s;
    if (find(f, p->name, "_scale", &s)) return CHM_E_MEMORY;
    if (!s || !is_float(s) || s->bytes != chm_st_dtype_bytes(s->dtype))
        return chm_fail(CHM_E_DATA,
                        "%s: tensor '%s' is packed, and its scale, '%s_scale', is not one number F32, F16 or BF16",
                        f->path, chm_quote(p->name).text, chm_quote(p->name).text);
    numbers(s, 0, 1, scale);
    if (f->import == CHM_IMPORT_BITLINEAR) *scale = 1 / *scale;
    if (!chm_b158_sane_scale(*scale) || *scale == 0)
        return chm_fail(CHM_E_DATA,
                        "%s: tensor '%s_scale' makes weights of size %g, expected a number above 0 and at most %g",
                        f->path, chm_quote(p->name).text, (double)*scale, (double)CHM_B158_SCALE_MAX);
    const int64_t packed = t->rank == 2 ? t->shape[0] : 0;
    if (t->rank != 2 || t->shape[1] != p->in || packed != (p->out + 3) / 4)
        return chm_fail(CHM_E_DATA,
                        "%s: tensor '%s' has not the shape of %" PRId64 " rows of %" PRId64
                        " weights, four rows in one",
                        f->path, chm_quote(p->name).text, p->out, p->in);
    return CHM_OK;
}

/* As transformers' BitNet does online: the mean in f32, weights times its inverse, the scale in the tensor's type. */
static int absmean(struct chm_floats *f, struct taking *k) {
    double sum = 0;
    float *row = k->row;
    for (int64_t o = 0; o < k->p->out; o++) {
        double of_row = 0;
        numbers(k->t, o * k->p->in, k->p->in, row);
        for (int64_t i = 0; i < k->p->in; i++) of_row += fabs((double)row[i]);
        sum += of_row;
    }
    const float mean = (float)(sum / (double)k->p->count);
    if (!(mean <= FLT_MAX))
        return chm_fail(CHM_E_DATA, "%s: tensor '%s' has numbers that are not finite", f->path,
                        chm_quote(k->p->name).text);
    k->inverse = 1 / fmaxf(mean, 1e-5f);
    k->scale = rounded(1 / k->inverse, k->t->dtype);
    k->absmean = true;
    return CHM_OK;
}

static int take_matrix(struct chm_floats *f, chm_param *p, const chm_st_tensor *t) {
    const bool ternary = p->format == CHM_FORMAT_TERNARY;
    const int64_t group = p->ternary.group;
    const size_t workers = (size_t)chm_pool_threads(f->pool), in = (size_t)p->in;
    const chm_st_tensor *record = NULL;
    if (!f->import && find(f, p->name, ternary ? ".scales" : ".scale", &record)) return CHM_E_MEMORY;
    struct taking k = {.p = p, .t = t};
    const size_t scale_bytes = chm_param_scale_bytes(p, group);
    const uint64_t record_bytes =
        ternary ? (uint64_t)(chm_ternary_tiles(p->out) * chm_ternary_scale_stride(p->in, group)) : 4 * (uint64_t)p->out;
    if (record && (record->dtype != (ternary ? CHM_ST_U8 : CHM_ST_F32) || record->bytes != record_bytes))
        return chm_fail(CHM_E_DATA,
                        "%s: tensor '%s' has not the form of the scales of '%s'; leave it out to have them found",
                        f->path, chm_quote(record->name).text, chm_quote(p->name).text);
    k.record = record ? record->data : NULL;
    k.codes = chm_arena_zero(f->arena, chm_param_code_bytes(p, CHM_ENCODING_T2));
    k.scales = chm_arena_zero(f->arena, scale_bytes);
    k.row = chm_alloc(workers * in * sizeof *k.row);
    k.code = chm_alloc(workers * in * TILE);
    atomic_init(&k.bad, p->out);
    atomic_init(&k.anew, false);
    int status = k.codes && k.scales && k.row && k.code ? CHM_OK : CHM_E_MEMORY;
    if (status) goto out;
    if (ternary)
        p->ternary = (struct chm_ternary){k.codes, k.scales, p->out, p->in, group, CHM_ENCODING_T2, 0};
    else
        p->int8 = (struct chm_int8_matrix){(const int8_t *)k.codes, (const float *)k.scales, p->out, p->in,
                                           (p->in + 63) / 64};
    if (t->dtype == CHM_ST_U8) {
        status = packed_scale(f, p, t, &k.scale);
        k.trits = true;
    } else if (ternary && f->import == CHM_IMPORT_ABSMEAN) {
        status = absmean(f, &k);
    }
    if (status) goto out;
    if (ternary)
        chm_parallel(f->pool, chm_ternary_tiles(p->out), 4, take_tiles, &k);
    else
        chm_parallel(f->pool, p->out, 64, take_int8, &k);
    const int64_t bad = atomic_load(&k.bad);
    if (bad == p->out) {
        f->rescaled += atomic_load(&k.anew);
        goto out;
    }
    if (k.trits)
        status = chm_fail(CHM_E_DATA, "%s: tensor '%s': row %" PRId64 " has a 2-bit code 3, expected 0, 1 or 2",
                          f->path, chm_quote(p->name).text, bad);
    else if (f->lossy)
        status = quantise(f, p, t);
    else
        status = chm_fail(CHM_E_DATA,
                          "%s: tensor '%s' is not as %s weights are stored: row %" PRId64
                          " is not %s times a scale%s; --lossy quantises it as training does",
                          f->path, chm_quote(p->name).text, ternary ? "ternary" : "int8", bad,
                          ternary ? "-1, 0 or +1" : "-127..127", ternary ? " in each of its groups" : "");
out:
    chm_free(k.row);
    chm_free(k.code);
    return status;
}

static int take_f32(struct chm_floats *f, chm_param *p, const chm_st_tensor *t) {
    p->value = chm_arena_take(f->arena, (size_t)p->count * sizeof *p->value);
    if (!p->value) return CHM_E_MEMORY;
    numbers(t, 0, p->count, p->value);
    return all_finite(f->path, p, p->value, p->count);
}

int chm_floats_take(struct chm_floats *f, chm_param *p) {
    const chm_st_tensor *t;
    if (find(f, p->name, "", &t)) return CHM_E_MEMORY;
    if (!t)
        return chm_fail(CHM_E_DATA, "%s: there is no tensor '%s', which the model needs", f->path,
                        chm_quote(p->name).text);
    if (p->format == CHM_FORMAT_TERNARY && t->dtype == CHM_ST_U8) return take_matrix(f, p, t);
    char have[220], want[220];
    chm_st_tensor wanted = {.rank = p->rank};
    memcpy(wanted.shape, p->shape, sizeof p->shape);
    chm_st_shape_text(&wanted, want, sizeof want);
    chm_st_shape_text(t, have, sizeof have);
    if (!is_float(t) || strcmp(have, want))
        return chm_fail(CHM_E_DATA, "%s: tensor '%s' is %s %s, expected F32, F16 or BF16 %s", f->path,
                        chm_quote(p->name).text, chm_st_dtype_name(t->dtype), have, want);
    return p->format == CHM_FORMAT_F32 ? take_f32(f, p, t) : take_matrix(f, p, t);
}
