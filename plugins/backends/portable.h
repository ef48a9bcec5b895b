/*
 * portable.h: every kernel slot in plain C.
 *
 * This file is the definition of right. It is included by each backend and compiled with that backend's flags, so the
 * loops are written to vectorise at any width and to give the same bytes at every width: no fused multiply-add (the
 * build says -ffp-contract=off), no reassociation, every float reduction in 16 lanes (index mod 16) folded 8, 4, 2, 1
 * apart, and no function of libm but the correctly rounded square root. Functions are static inline: a backend names
 * those it wants in its table and the others vanish.
 */
#ifndef CHM_BACKENDS_PORTABLE_H
#define CHM_BACKENDS_PORTABLE_H

#include <chimera/plugin.h>

#include <float.h>
#include <math.h>
#include <string.h>

_Static_assert(FLT_EVAL_METHOD == 0,
               "the numeric contract needs float arithmetic in float (on 32-bit x86: -mfpmath=sse)");

/* ---- Bits and rounding ------------------------------------------------------------------------------------------- */

static inline uint32_t portable_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float portable_float(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
static inline float portable_abs(float x) { return portable_float(portable_bits(x) & 0x7fffffffu); }

/* Adding 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even, and leaves it in the low mantissa bits. */
#define PORTABLE_ROUND      12582912.0f
#define PORTABLE_ROUND_BITS 0x4b400000u

/* ---- Functions of one number ------------------------------------------------------------------------------------- */

/* e^x, within 1 ulp. x = n ln 2 + r, |r| <= ln 2 / 2; 2^n is applied in two halves so that the result may overflow to
 * infinity or round once into the denormals. */
static inline float portable_exp(float x) {
    float c = x < -110.0f ? -110.0f : x;
    c = c > 89.0f ? 89.0f : c;
    const float shifted = c * 1.44269504f + PORTABLE_ROUND;
    const uint32_t n = portable_bits(shifted) - PORTABLE_ROUND_BITS;
    const float nf = shifted - PORTABLE_ROUND;
    float r = c - nf * 0.693359375f; /* 9 bits of ln 2: the product is exact */
    r = r - nf * -2.12194440e-4f;
    float p = 1.9910252e-4f;
    p = p * r + 1.39354542e-3f;
    p = p * r + 8.33328255e-3f;
    p = p * r + 4.16664481e-2f;
    p = p * r + 1.66666672e-1f;
    p = p * r + 0.5f;
    p = 1.0f + (r + r * r * p);
    const uint32_t half = (uint32_t)((int32_t)n >> 1);
    return p * portable_float((half + 127u) << 23) * portable_float((n - half + 127u) << 23);
}

/* log(1 + t) for 0 <= t <= 1, relative error within 2 ulp: 2 atanh(t / (2 + t)) */
static inline float portable_log1p_unit(float t) {
    const float s = t / (2.0f + t);
    const float z = s * s;
    float p = 0.116298854f;
    p = p * z + 0.108494364f;
    p = p * z + 0.142964408f;
    p = p * z + 0.199998468f;
    p = p * z + 0.333333343f;
    return 2.0f * (s + s * z * p);
}

/* natural logarithm, within 2 ulp; log(0) = -inf, NaN below */
static inline float portable_log(float x) {
    const bool tiny = x < FLT_MIN;
    const float y = tiny ? x * 8388608.0f : x;
    const uint32_t b = portable_bits(y);
    const uint32_t e = (uint32_t)((int32_t)(b - 0x3f3504f3u) >> 23); /* mantissa into [sqrt 1/2, sqrt 2) */
    const float f = portable_float(b - (e << 23)) - 1.0f;
    const float n = (float)(int32_t)e - (tiny ? 23.0f : 0.0f);
    const float s = f / (2.0f + f);
    const float z = s * s;
    float p = 0.116778374f;
    p = p * z + 0.142749354f;
    p = p * z + 0.200000659f;
    p = p * z + 0.333333343f;
    float r = 2.0f * (s + s * z * p);
    r = n * 0.693359375f + (r + n * -2.12194440e-4f);
    r = x == 0.0f ? -INFINITY : r;
    r = x < 0.0f ? NAN : r;
    return x < INFINITY ? r : x; /* NaN and +inf are their own */
}

/* 1 / (1 + e^-x), within 2 ulp for every x: the exponential never overflows */
static inline float portable_sigmoid(float x) {
    const float e = portable_exp(-portable_abs(x));
    const float top = x >= 0.0f ? 1.0f : e;
    return top / (1.0f + e);
}

/* x sigmoid(x); the limit -0 where the factor has vanished, so that -inf gives no NaN */
static inline float portable_silu(float x) {
    const float y = x * portable_sigmoid(x);
    return x < -200.0f ? -0.0f : y;
}

static inline float portable_tanh(float x) {
    const float a = portable_abs(x);
    const float z = a * a;
    float p = 2.25263229e-3f;
    p = p * z + -8.30849633e-3f;
    p = p * z + 2.17581429e-2f;
    p = p * z + -5.3957954e-2f;
    p = p * z + 1.33332983e-1f;
    p = p * z + -3.33333343e-1f;
    const float near = a + a * z * p;
    const float t = portable_exp(-2.0f * a);
    const float far = (1.0f - t) / (1.0f + t);
    const float r = a < 0.625f ? near : far;
    return portable_float(portable_bits(r) | (portable_bits(x) & 0x80000000u));
}

static inline float portable_softplus(float x) {
    const float l = portable_log1p_unit(portable_exp(-portable_abs(x)));
    const float y = (x > 0.0f ? x : 0.0f) + l;
    return x > 20.0f ? x : y;
}

static inline float portable_relu2(float x) {
    const float m = x < 0.0f ? 0.0f : x;
    return m * m;
}

/* ---- Reductions in 16 lanes -------------------------------------------------------------------------------------- */

enum { PORTABLE_LANES = 16 };

static inline float portable_fold(float *s) {
    for (int l = 0; l < 8; l++) s[l] = s[l] + s[l + 8];
    for (int l = 0; l < 4; l++) s[l] = s[l] + s[l + 4];
    return (s[0] + s[2]) + (s[1] + s[3]);
}

static inline float portable_dot(const float *a, const float *b, int64_t n) {
    float s[PORTABLE_LANES] = {0};
    int64_t i = 0;
    for (; i + PORTABLE_LANES <= n; i += PORTABLE_LANES)
        for (int l = 0; l < PORTABLE_LANES; l++) s[l] += a[i + l] * b[i + l];
    for (int l = 0; i + l < n; l++) s[l] += a[i + l] * b[i + l];
    return portable_fold(s);
}

static inline float portable_sum_abs(const float *x, int64_t n) {
    float s[PORTABLE_LANES] = {0};
    int64_t i = 0;
    for (; i + PORTABLE_LANES <= n; i += PORTABLE_LANES)
        for (int l = 0; l < PORTABLE_LANES; l++) s[l] += portable_abs(x[i + l]);
    for (int l = 0; i + l < n; l++) s[l] += portable_abs(x[i + l]);
    return portable_fold(s);
}

/* ---- Quantised products ------------------------------------------------------------------------------------------ */

static inline int64_t portable_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t portable_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t portable_blocks(int64_t width) { return (width + 63) / 64; }

/* Below this, 127/absmax would overflow; such a block counts as zeros. */
#define PORTABLE_ABSMAX_MIN 0x1p-120f

/* A block that holds an infinity or a NaN gets scale NaN and codes 0, so that it shows in everything computed from it.
 */
static inline void portable_quantise(const float *x, int64_t rows, int64_t width, int8_t *q, float *scale,
                                     int32_t *sum) {
    const int64_t blocks = portable_blocks(width);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t b = 0; b < blocks; b++) {
            const float *v = x + row * width + 64 * b;
            const int64_t n = portable_min(64, width - 64 * b);
            float padded[64];
            if (n < 64) {
                memset(padded, 0, sizeof padded);
                memcpy(padded, v, (size_t)n * sizeof *v);
                v = padded;
            }
            uint32_t top = 0; /* non-negative floats order as their bits do, infinities and NaNs last */
            for (int i = 0; i < 64; i++) {
                const uint32_t u = portable_bits(v[i]) & 0x7fffffffu;
                top = u > top ? u : top;
            }
            const float absmax = portable_float(top);
            int8_t *out = q + (row * blocks + b) * 64;
            int32_t total = 0;
            float s = 0.0f;
            if (top >= 0x7f800000u) {
                memset(out, 0, 64);
                s = NAN;
            } else if (absmax < PORTABLE_ABSMAX_MIN) {
                memset(out, 0, 64);
            } else {
                const float inverse = 127.0f / absmax;
                s = absmax / 127.0f;
                for (int i = 0; i < 64; i++) {
                    const float t = v[i] * inverse + PORTABLE_ROUND;
                    const int32_t code = (int32_t)(portable_bits(t) - PORTABLE_ROUND_BITS);
                    out[i] = (int8_t)code;
                    total += code;
                }
            }
            scale[row * blocks + b] = s;
            sum[row * blocks + b] = total;
        }
    }
}

static inline void portable_dequantise(const struct chm_activation *a, int64_t width, float *x) {
    for (int64_t row = 0; row < a->rows; row++) {
        for (int64_t b = 0; b < portable_blocks(width); b++) {
            const int8_t *q = a->q + (row * a->blocks + b) * 64;
            const float s = a->scale[row * a->blocks + b];
            float *out = x + row * width + 64 * b;
            const int64_t n = portable_min(64, width - 64 * b);
            for (int64_t i = 0; i < n; i++) out[i] = (float)q[i] * s;
        }
    }
}

/* scales of 16 rows for one group of inputs, out of a tile's scale record */
static inline void portable_tile_scales(const uint8_t *record, int64_t group, float *scale) {
    float row_scale[16];
    memcpy(row_scale, record, sizeof row_scale);
    const uint8_t *code = record + 64 + 16 * group;
    for (int r = 0; r < 16; r++) scale[r] = (float)code[r] * row_scale[r];
}

static inline int32_t portable_dot_i16(const int16_t *a, const int16_t *b) {
    int32_t d = 0;
    for (int i = 0; i < 64; i++) d += (int32_t)a[i] * (int32_t)b[i];
    return d;
}

static inline void portable_ternary_matmul(int32_t encoding, const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                                           const struct chm_activation *x, float *y, int64_t ldy) {
    enum { CHUNK = 32 }; /* activation rows between two looks at the same codes */
    const int64_t blocks = chm_ternary_blocks(w->in), code_stride = chm_ternary_code_stride(encoding, w->in);
    const int64_t stride = chm_ternary_scale_stride(w->in, w->group);
    for (int64_t tile = tile0; tile < tile1; tile++) {
        const uint8_t *record = w->scales + tile * stride, *codes = w->codes + tile * code_stride;
        const int64_t columns = portable_min(16, w->out - 16 * tile);
        for (int64_t row0 = 0; row0 < x->rows; row0 += CHUNK) {
            const int64_t rows = portable_min(CHUNK, x->rows - row0);
            float acc[CHUNK][16];
            memset(acc, 0, sizeof acc);
            for (int64_t b = 0; b < blocks; b++) {
                uint8_t code[16][64];
                int16_t trit[16][64];
                float scale[16];
                chm_ternary_block(encoding, codes, blocks, b, code);
                for (int r = 0; r < 16; r++)
                    for (int i = 0; i < 64; i++) trit[r][i] = (int16_t)(code[r][i] - 1);
                portable_tile_scales(record, 64 * b / w->group, scale);
                for (int64_t row = 0; row < rows; row++) {
                    const int64_t at = (row0 + row) * x->blocks + b;
                    int16_t q[64];
                    for (int i = 0; i < 64; i++) q[i] = x->q[64 * at + i];
                    int32_t dot[16];
                    for (int r = 0; r < 16; r++) dot[r] = portable_dot_i16(q, trit[r]);
                    for (int r = 0; r < 16; r++) acc[row][r] = acc[row][r] + (float)dot[r] * (x->scale[at] * scale[r]);
                }
            }
            for (int64_t row = 0; row < rows; row++)
                memcpy(y + (row0 + row) * ldy + 16 * tile, acc[row], (size_t)columns * sizeof(float));
        }
    }
}

static inline void portable_t2_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                                      const struct chm_activation *x, float *y, int64_t ldy) {
    portable_ternary_matmul(CHM_ENCODING_T2, w, tile0, tile1, x, y, ldy);
}

static inline void portable_t5_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                                      const struct chm_activation *x, float *y, int64_t ldy) {
    portable_ternary_matmul(CHM_ENCODING_T5, w, tile0, tile1, x, y, ldy);
}

static inline void portable_sherry_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                                          const struct chm_activation *x, float *y, int64_t ldy) {
    portable_ternary_matmul(CHM_ENCODING_SHERRY, w, tile0, tile1, x, y, ldy);
}

/* A product of 1 to `most` rows at a time: of_rows[n - 1] takes n. More rows than that go over a band of tiles whose
 * codes, band_bytes of them, a cache holds meanwhile, so that they come from memory once. */
static inline void portable_by_rows(const chm_ternary_product *of_rows, int64_t most, int64_t band_bytes,
                                    int64_t code_stride, const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                                    const struct chm_activation *x, float *y, int64_t ldy) {
    const int64_t band = x->rows > most ? portable_max(band_bytes / code_stride, 1) : tile1 - tile0;
    for (int64_t t = tile0; t < tile1; t += band)
        for (int64_t r = 0; r < x->rows; r += most) {
            struct chm_activation some = *x;
            some.q += 64 * r * x->blocks;
            some.scale += r * x->blocks;
            some.sum += r * x->blocks;
            some.rows = portable_min(most, x->rows - r);
            of_rows[some.rows - 1](w, t, portable_min(t + band, tile1), &some, y + r * ldy, ldy);
        }
}

static inline void portable_int8_matmul(const struct chm_int8_matrix *w, int64_t out0, int64_t out1,
                                        const struct chm_activation *x, float *y, int64_t ldy) {
    for (int64_t o = out0; o < out1; o++) {
        for (int64_t row = 0; row < x->rows; row++) {
            float acc = 0.0f;
            for (int64_t b = 0; b < w->blocks; b++) {
                const int8_t *p = w->q + (o * w->blocks + b) * 64;
                const int8_t *q = x->q + (row * x->blocks + b) * 64;
                int32_t dot = 0;
                for (int i = 0; i < 64; i++) dot += (int32_t)p[i] * (int32_t)q[i];
                acc = acc + (float)dot * (x->scale[row * x->blocks + b] * w->scale[o]);
            }
            y[row * ldy + o] = acc;
        }
    }
}

/* Which of the four inputs from i on sherry makes zero: the smallest, the first of equals. Inputs past the end are 0.
 */
static inline int portable_sparse_zero(const float *w, int64_t in, int64_t i) {
    int zero = 0;
    float least = INFINITY;
    for (int n = 0; n < 4; n++) {
        const float size = i + n < in ? portable_abs(w[i + n]) : 0.0f;
        if (size < least) {
            least = size;
            zero = n;
        }
    }
    return zero;
}

/* The mean of |w| over a group: `sparse`: over those that sherry does not make zero, summed in index order. */
static inline float portable_group_mean(const float *w, int64_t in, int64_t first, int64_t n, bool sparse) {
    float mean = 0.0f;
    if (!sparse) {
        mean = portable_sum_abs(w + first, n) / (float)n;
    } else {
        int64_t kept = 0;
        for (int64_t i = first; i < first + n; i += 4) {
            const int zero = portable_sparse_zero(w, in, i);
            for (int m = 0; m < 4; m++)
                if (m != zero && i + m < in) {
                    mean += portable_abs(w[i + m]);
                    kept++;
                }
        }
        mean = kept > 0 ? mean / (float)kept : 0.0f;
    }
    return mean > 1e-5f ? mean : 1e-5f;
}

/* One row's stored scales: row_scale = (largest group absmean) / 255, code = clamp(rne(absmean / row_scale), 1, 255),
 * where absmean is over the group's real inputs and at least 1e-5. */
static inline float portable_row_scales(const float *w, int64_t in, int64_t group, bool sparse, uint8_t *codes,
                                        int64_t stride) {
    const int64_t groups = chm_ternary_groups(in, group);
    float most = 0.0f;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t n = portable_min(group, in - g * group);
        const float mean = portable_group_mean(w, in, g * group, n, sparse);
        most = mean > most ? mean : most;
    }
    const float row_scale = most / 255.0f;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t n = portable_min(group, in - g * group);
        const float mean = portable_group_mean(w, in, g * group, n, sparse);
        float code = mean / row_scale;
        code = code > 1.0f ? code : 1.0f;
        code = code < 255.0f ? code : 255.0f;
        codes[g * stride] = (uint8_t)(portable_bits(code + PORTABLE_ROUND) - PORTABLE_ROUND_BITS);
    }
    return row_scale;
}

/* The scales of a tile: 16 of rows, then a code per group and row; a row past the end has scale 0 and codes 1. */
static inline void portable_measure_tile(const float *w, int64_t out, int64_t in, int64_t group, bool sparse,
                                         int64_t tile, uint8_t *record, float row_scale[16]) {
    memset(record + 64, 1, (size_t)(16 * chm_ternary_groups(in, group)));
    for (int r = 0; r < 16; r++) {
        const int64_t row = 16 * tile + r;
        row_scale[r] = row < out ? portable_row_scales(w + row * in, in, group, sparse, record + 64 + r, 16) : 0.0f;
    }
    memcpy(record, row_scale, 16 * sizeof *row_scale);
}

/* Codes of n <= 64 weights from w[first], and trit * scale: trit = rne(clamp(w * (1/scale), -1, 1)), which is 0 exactly
 * where |w/scale| <= 1/2; `sparse`: the sign, but 0 for the one of four that sherry makes zero. */
static inline void portable_ternarise_block(const float *w, int64_t in, int64_t first, bool sparse, float scale,
                                            uint8_t code[64], float *dequant) {
    const int64_t n = portable_min(64, in - first);
    memset(code, 1, 64);
    if (sparse) {
        for (int64_t i = 0; i < n; i += 4) {
            const int zero = portable_sparse_zero(w, in, first + i);
            for (int m = 0; m < 4; m++)
                if (m != zero && first + i + m < in) code[i + m] = w[first + i + m] < 0.0f ? 0 : 2;
        }
    } else {
        const float inverse = 1.0f / scale;
        for (int64_t i = 0; i < n; i++) {
            const float t = w[first + i] * inverse;
            code[i] = (uint8_t)(1 + (t > 0.5f) - (t < -0.5f));
        }
    }
    if (dequant != NULL)
        for (int64_t i = 0; i < n; i++) dequant[first + i] = (float)((int)code[i] - 1) * scale;
}

static inline void portable_ternarise(const float *w, int64_t out, int64_t in, int64_t group, bool sparse,
                                      int64_t tile0, int64_t tile1, uint8_t *codes, uint8_t *scales, float *dequant) {
    const int64_t blocks = chm_ternary_blocks(in), full = blocks / 4;
    const int64_t stride = chm_ternary_scale_stride(in, group);
    for (int64_t tile = tile0; tile < tile1; tile++) {
        uint8_t *record = scales + tile * stride, *to = codes + tile * 256 * blocks;
        float row_scale[16];
        portable_measure_tile(w, out, in, group, sparse, tile, record, row_scale);
        memset(to, 0, (size_t)(256 * blocks));
        for (int64_t b = 0; b < blocks; b++)
            for (int r = 0; r < 16; r++) {
                const int64_t row = 16 * tile + r;
                uint8_t code[64];
                memset(code, 1, sizeof code);
                const int64_t g = 64 * b / group;
                if (row < out)
                    portable_ternarise_block(w + row * in, in, 64 * b, sparse,
                                             (float)record[64 + 16 * g + r] * row_scale[r], code,
                                             dequant != NULL ? dequant + row * in : NULL);
                for (int j = 0; j < 16; j++) {
                    const int shift = b < 4 * full ? 2 * (int)(b % 4) : 2 * (j / 4);
                    uint8_t *at = to + (b < 4 * full ? 1024 * (b / 4) + 64 * j : 256 * b + 64 * (j % 4)) + 4 * r;
                    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(at[i] | code[4 * j + i] << shift);
                }
            }
    }
}

/* ---- Float products and norms ------------------------------------------------------------------------------------ */

static inline void portable_f32_matmul(const float *w, int64_t out0, int64_t out1, int64_t in, const float *x,
                                       int64_t rows, float *y, int64_t ldy) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t o = out0; o < out1; o++) y[row * ldy + o] = portable_dot(x + row * in, w + o * in, in);
}

static inline void portable_rmsnorm(const float *x, int64_t n, int64_t width, float eps, const float *weight,
                                    int64_t weight_rows, float *y, float *rstd_out) {
    for (int64_t v = 0; v < n; v++) {
        const float *from = x + v * width;
        float *to = y + v * width;
        const float rstd = 1.0f / sqrtf(portable_dot(from, from, width) / (float)width + eps);
        if (weight != NULL) {
            const float *gain = weight + (v % weight_rows) * width;
            for (int64_t i = 0; i < width; i++) to[i] = from[i] * rstd * gain[i];
        } else {
            for (int64_t i = 0; i < width; i++) to[i] = from[i] * rstd;
        }
        if (rstd_out != NULL) rstd_out[v] = rstd;
    }
}

static inline void portable_l2norm(const float *x, int64_t n, int64_t width, float eps, float *y, float *rnorm_out) {
    for (int64_t v = 0; v < n; v++) {
        const float *from = x + v * width;
        float *to = y + v * width;
        const float rnorm = 1.0f / sqrtf(portable_dot(from, from, width) + eps);
        for (int64_t i = 0; i < width; i++) to[i] = from[i] * rnorm;
        if (rnorm_out != NULL) rnorm_out[v] = rnorm;
    }
}

static inline void portable_unary(enum chm_unary op, const float *x, int64_t n, float *y) {
    switch (op) {
    case CHM_SILU:
        for (int64_t i = 0; i < n; i++) y[i] = portable_silu(x[i]);
        break;
    case CHM_SIGMOID:
        for (int64_t i = 0; i < n; i++) y[i] = portable_sigmoid(x[i]);
        break;
    case CHM_TANH:
        for (int64_t i = 0; i < n; i++) y[i] = portable_tanh(x[i]);
        break;
    case CHM_EXP:
        for (int64_t i = 0; i < n; i++) y[i] = portable_exp(x[i]);
        break;
    case CHM_SOFTPLUS:
        for (int64_t i = 0; i < n; i++) y[i] = portable_softplus(x[i]);
        break;
    case CHM_LOG_SIGMOID:
        for (int64_t i = 0; i < n; i++) y[i] = -portable_softplus(-x[i]);
        break;
    case CHM_RELU2:
        for (int64_t i = 0; i < n; i++) y[i] = portable_relu2(x[i]);
        break;
    case CHM_UNARY_COUNT:
        break;
    }
}

static inline void portable_swiglu(const float *gate, const float *up, int64_t n, float *y) {
    for (int64_t i = 0; i < n; i++) y[i] = portable_silu(gate[i]) * up[i];
}

/* the number to subtract before exp: the largest, or 0 where that is infinite (NaN shows in the sum) */
static inline float portable_shift(const float *x, int64_t n) {
    float top[PORTABLE_LANES];
    for (int l = 0; l < PORTABLE_LANES; l++) top[l] = -INFINITY;
    int64_t i = 0;
    for (; i + PORTABLE_LANES <= n; i += PORTABLE_LANES)
        for (int l = 0; l < PORTABLE_LANES; l++) top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
    for (int l = 0; i + l < n; l++) top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
    for (int l = 1; l < PORTABLE_LANES; l++) top[0] = top[l] > top[0] ? top[l] : top[0];
    return portable_abs(top[0]) < INFINITY ? top[0] : 0.0f;
}

static inline float portable_logsumexp(const float *x, int64_t n) {
    const float shift = portable_shift(x, n);
    float s[PORTABLE_LANES] = {0};
    int64_t i = 0;
    for (; i + PORTABLE_LANES <= n; i += PORTABLE_LANES)
        for (int l = 0; l < PORTABLE_LANES; l++) s[l] += portable_exp(x[i + l] - shift);
    for (int l = 0; i + l < n; l++) s[l] += portable_exp(x[i + l] - shift);
    return shift + portable_log(portable_fold(s));
}

/* ---- The delta rule, one row ------------------------------------------------------------------------------------- */

/* Value columns at a time; a whole strip has its sums in registers. */
enum { PORTABLE_STRIP = 32 };

/* sum[j] = sum_i x_i S_ij, S row-major from column 0 with `stride` floats a row */
static inline void portable_strip_sum(const float *S, int64_t dk, int64_t stride, const float *x, const int n,
                                      float *sum) {
    float s[PORTABLE_STRIP] = {0};
    for (int64_t i = 0; i < dk; i++)
        for (int j = 0; j < n; j++) s[j] = s[j] + x[i] * S[i * stride + j];
    for (int j = 0; j < n; j++) sum[j] = s[j];
}

/* S *= a, sum = k S */
static inline void portable_strip_decay(float *S, int64_t dk, int64_t stride, float a, const float *k, const int n,
                                        float *sum) {
    float s[PORTABLE_STRIP] = {0};
    for (int64_t i = 0; i < dk; i++) {
        float *row = S + i * stride;
        const float ki = k[i];
        for (int j = 0; j < n; j++) {
            const float d = row[j] * a;
            row[j] = d;
            s[j] = s[j] + ki * d;
        }
    }
    for (int j = 0; j < n; j++) sum[j] = s[j];
}

/* S += k^T u, sum = q S */
static inline void portable_strip_write(float *S, int64_t dk, int64_t stride, const float *k, const float *update,
                                        const float *q, const int n, float *sum) {
    float s[PORTABLE_STRIP] = {0}, u[PORTABLE_STRIP];
    for (int j = 0; j < n; j++) u[j] = update[j];
    for (int64_t i = 0; i < dk; i++) {
        float *row = S + i * stride;
        const float ki = k[i], qi = q[i];
        for (int j = 0; j < n; j++) {
            const float d = row[j] + ki * u[j];
            row[j] = d;
            s[j] = s[j] + qi * d;
        }
    }
    for (int j = 0; j < n; j++) sum[j] = s[j];
}

/*
 * For every value column j, with a = e^log_alpha and rounding after each operation:
 *   S_ij = S_ij * a;  kS = sum_i k_i * S_ij;  u = beta * (v_j - kS);  S_ij = S_ij + k_i * u;
 *   o_j = scale * sum_i q_i * S_ij
 */
static inline void portable_delta_step(float *S, int64_t dk, int64_t dv, const float *q, const float *k, const float *v,
                                       float log_alpha, float beta, float scale, float *o) {
    const float a = portable_exp(log_alpha);
    const float *ask = o != NULL ? q : k; /* without a question the sums are made and not used */
    for (int64_t j0 = 0; j0 < dv; j0 += PORTABLE_STRIP) {
        const int n = (int)portable_min(PORTABLE_STRIP, dv - j0);
        float u[PORTABLE_STRIP], sum[PORTABLE_STRIP];
        if (n == PORTABLE_STRIP)
            portable_strip_decay(S + j0, dk, dv, a, k, PORTABLE_STRIP, u);
        else
            portable_strip_decay(S + j0, dk, dv, a, k, n, u);
        for (int j = 0; j < n; j++) u[j] = beta * (v[j0 + j] - u[j]);
        if (n == PORTABLE_STRIP)
            portable_strip_write(S + j0, dk, dv, k, u, ask, PORTABLE_STRIP, sum);
        else
            portable_strip_write(S + j0, dk, dv, k, u, ask, n, sum);
        if (o != NULL)
            for (int j = 0; j < n; j++) o[j0 + j] = scale * sum[j];
    }
}

/* S = S * decay + k^T v, sum = q S */
static inline void portable_strip_outer(float *S, int64_t dk, int64_t stride, const float *k, const float *v,
                                        const float *q, float decay, const int n, float *sum) {
    float s[PORTABLE_STRIP] = {0}, u[PORTABLE_STRIP];
    for (int j = 0; j < n; j++) u[j] = v[j];
    for (int64_t i = 0; i < dk; i++) {
        float *row = S + i * stride;
        const float ki = k[i], qi = q[i];
        for (int j = 0; j < n; j++) {
            const float d = row[j] * decay + ki * u[j];
            row[j] = d;
            s[j] = s[j] + qi * d;
        }
    }
    for (int j = 0; j < n; j++) sum[j] = s[j];
}

static inline void portable_outer_step(float *S, int64_t dk, int64_t dv, const float *q, const float *k, const float *v,
                                       float decay, float scale, float *o) {
    const float *ask = o != NULL ? q : k; /* without a question the sums are made and not used */
    for (int64_t j0 = 0; j0 < dv; j0 += PORTABLE_STRIP) {
        const int n = (int)portable_min(PORTABLE_STRIP, dv - j0);
        float sum[PORTABLE_STRIP];
        if (n == PORTABLE_STRIP)
            portable_strip_outer(S + j0, dk, dv, k, v + j0, ask, decay, PORTABLE_STRIP, sum);
        else
            portable_strip_outer(S + j0, dk, dv, k, v + j0, ask, decay, n, sum);
        if (o != NULL)
            for (int j = 0; j < n; j++) o[j0 + j] = scale * sum[j];
    }
}

static inline void portable_delta_read(const float *S, int64_t dk, int64_t dv, const float *q, float scale, float *o) {
    for (int64_t j0 = 0; j0 < dv; j0 += PORTABLE_STRIP) {
        const int n = (int)portable_min(PORTABLE_STRIP, dv - j0);
        float sum[PORTABLE_STRIP];
        if (n == PORTABLE_STRIP)
            portable_strip_sum(S + j0, dk, dv, q, PORTABLE_STRIP, sum);
        else
            portable_strip_sum(S + j0, dk, dv, q, n, sum);
        for (int j = 0; j < n; j++) o[j0 + j] = scale * sum[j];
    }
}

/* ---- Attention, one row ------------------------------------------------------------------------------------------ */

/* weight[e] becomes e^(weight[e] - largest); returns the sum */
static inline float portable_softmax_weights(float *weight, int64_t n) {
    const float shift = portable_shift(weight, n);
    float s[PORTABLE_LANES] = {0};
    for (int64_t e = 0; e < n; e++) weight[e] = portable_exp(weight[e] - shift);
    int64_t e = 0;
    for (; e + PORTABLE_LANES <= n; e += PORTABLE_LANES)
        for (int l = 0; l < PORTABLE_LANES; l++) s[l] += weight[e + l];
    for (int l = 0; e + l < n; l++) s[l] += weight[e + l];
    return portable_fold(s);
}

/* o[j] = factor * sum_e weight[e] v[e][first + j], e in order */
static inline void portable_weighted_sum(const float *weight, const float *const *v, int64_t n, int64_t first,
                                         const int columns, float factor, float *o) {
    float s[PORTABLE_STRIP] = {0};
    for (int64_t e = 0; e < n; e++) {
        const float *from = v[e] + first;
        const float w = weight[e];
        for (int j = 0; j < columns; j++) s[j] = s[j] + w * from[j];
    }
    for (int j = 0; j < columns; j++) o[first + j] = s[j] * factor;
}

static inline void portable_attend(const float *q, const float *const *k, const float *const *v, int64_t n, int64_t dk,
                                   int64_t dv, float scale, float *weight, float *o) {
    for (int64_t e = 0; e < n; e++) weight[e] = scale * portable_dot(q, k[e], dk);
    const float factor = 1.0f / portable_softmax_weights(weight, n);
    for (int64_t j = 0; j < dv; j += PORTABLE_STRIP) {
        const int columns = (int)portable_min(PORTABLE_STRIP, dv - j);
        if (columns == PORTABLE_STRIP)
            portable_weighted_sum(weight, v, n, j, PORTABLE_STRIP, factor, o);
        else
            portable_weighted_sum(weight, v, n, j, columns, factor, o);
    }
}

/* ---- Training: rows and vectors ---------------------------------------------------------------------------------- */

static inline void portable_unary_backward(enum chm_unary op, const float *x, const float *y, const float *dy,
                                           int64_t n, float *dx) {
    switch (op) {
    case CHM_SILU:
        for (int64_t i = 0; i < n; i++) {
            const float s = portable_sigmoid(x[i]);
            dx[i] += dy[i] * (s + y[i] * (1.0f - s));
        }
        break;
    case CHM_SIGMOID:
        for (int64_t i = 0; i < n; i++) dx[i] += dy[i] * (y[i] * (1.0f - y[i]));
        break;
    case CHM_TANH:
        for (int64_t i = 0; i < n; i++) dx[i] += dy[i] * (1.0f - y[i] * y[i]);
        break;
    case CHM_EXP:
        for (int64_t i = 0; i < n; i++) dx[i] += dy[i] * y[i];
        break;
    case CHM_SOFTPLUS:
        for (int64_t i = 0; i < n; i++) dx[i] += dy[i] * portable_sigmoid(x[i]);
        break;
    case CHM_LOG_SIGMOID:
        for (int64_t i = 0; i < n; i++) dx[i] += dy[i] * portable_sigmoid(-x[i]);
        break;
    case CHM_RELU2:
        for (int64_t i = 0; i < n; i++) dx[i] += dy[i] * (2.0f * (x[i] < 0.0f ? 0.0f : x[i]));
        break;
    case CHM_UNARY_COUNT:
        break;
    }
}

static inline void portable_swiglu_backward(const float *gate, const float *up, const float *dy, int64_t n,
                                            float *dgate, float *dup) {
    for (int64_t i = 0; i < n; i++) {
        const float s = portable_sigmoid(gate[i]);
        const float y = portable_silu(gate[i]);
        dgate[i] += dy[i] * up[i] * (s + y * (1.0f - s));
        dup[i] += dy[i] * y;
    }
}

static inline void portable_rmsnorm_backward(const float *x, int64_t n, int64_t width, const float *weight,
                                             int64_t weight_rows, const float *rstd, const float *dy, float *dx,
                                             float *dweight) {
    for (int64_t v = 0; v < n; v++) {
        const float *from = x + v * width, *dout = dy + v * width;
        const float *gain = weight != NULL ? weight + (v % weight_rows) * width : NULL;
        float *din = dx + v * width;
        const float r = rstd[v];
        float s[PORTABLE_LANES] = {0};
        int64_t i = 0;
        if (gain != NULL) {
            for (; i + PORTABLE_LANES <= width; i += PORTABLE_LANES)
                for (int l = 0; l < PORTABLE_LANES; l++) s[l] += dout[i + l] * gain[i + l] * from[i + l];
            for (int l = 0; i + l < width; l++) s[l] += dout[i + l] * gain[i + l] * from[i + l];
        } else {
            s[0] = portable_dot(dout, from, width);
        }
        const float c = portable_fold(s) * (r * r / (float)width);
        if (gain != NULL)
            for (i = 0; i < width; i++) din[i] += r * (dout[i] * gain[i] - from[i] * c);
        else
            for (i = 0; i < width; i++) din[i] += r * (dout[i] - from[i] * c);
        if (dweight != NULL) {
            float *dgain = dweight + (v % weight_rows) * width;
            for (i = 0; i < width; i++) dgain[i] += dout[i] * (from[i] * r);
        }
    }
}

static inline void portable_l2norm_backward(const float *y, int64_t n, int64_t width, const float *rnorm,
                                            const float *dy, float *dx) {
    for (int64_t v = 0; v < n; v++) {
        const float *out = y + v * width, *dout = dy + v * width;
        float *din = dx + v * width;
        const float r = rnorm[v], c = portable_dot(out, dout, width);
        for (int64_t i = 0; i < width; i++) din[i] += r * (dout[i] - out[i] * c);
    }
}

static inline void portable_softmax_xent(float *logits, int64_t rows, int64_t vocab, int64_t ld, const int32_t *target,
                                         float scale, float *loss) {
    for (int64_t row = 0; row < rows; row++) {
        float *x = logits + row * ld;
        if (target[row] < 0) {
            memset(x, 0, (size_t)vocab * sizeof *x);
            loss[row] = 0.0f;
            continue;
        }
        const float shift = portable_shift(x, vocab), chosen = x[target[row]];
        float s[PORTABLE_LANES] = {0};
        for (int64_t i = 0; i < vocab; i++) x[i] = portable_exp(x[i] - shift);
        int64_t i = 0;
        for (; i + PORTABLE_LANES <= vocab; i += PORTABLE_LANES)
            for (int l = 0; l < PORTABLE_LANES; l++) s[l] += x[i + l];
        for (int l = 0; i + l < vocab; l++) s[l] += x[i + l];
        const float total = portable_fold(s), factor = scale / total;
        loss[row] = shift + portable_log(total) - chosen;
        for (i = 0; i < vocab; i++) x[i] = x[i] * factor;
        x[target[row]] -= scale;
    }
}

/* decoupled weight decay, arXiv:1711.05101 */
static inline void portable_adamw(float *restrict w, const float *restrict g, float *restrict m, float *restrict v,
                                  int64_t n, float gscale, float lr, float beta1, float beta2, float eps,
                                  float weight_decay, float bc1, float bc2) {
    const float keep1 = 1.0f - beta1, keep2 = 1.0f - beta2, keep = 1.0f - lr * weight_decay, step = lr / bc1;
    for (int64_t i = 0; i < n; i++) {
        const float d = g[i] * gscale;
        m[i] = beta1 * m[i] + keep1 * d;
        v[i] = beta2 * v[i] + keep2 * (d * d);
        w[i] = w[i] * keep - step * (m[i] / (sqrtf(v[i] / bc2) + eps));
    }
}

/* ---- Training: matrix products ----------------------------------------------------------------------------------- */

enum { PORTABLE_MR = 4, PORTABLE_NR = 8 };

/* C[m][n] = A B (add = 0), C + A B (1) or C - A B (-1); element (i, p) of A is a[i * row + p * col], B is [k][n] */
/* Never inlined: its callers use it a dozen times each, and copies of it were two thirds of the time to compile. */
static __attribute__((noinline, unused)) void portable_gemm(int64_t m, int64_t n, int64_t k, const float *a,
                                                            int64_t row, int64_t col, const float *b, int64_t ldb,
                                                            float *c, int64_t ldc, int add) {
    for (int64_t j0 = 0; j0 < n; j0 += PORTABLE_NR) {
        const int64_t nr = portable_min(PORTABLE_NR, n - j0);
        for (int64_t i0 = 0; i0 < m; i0 += PORTABLE_MR) {
            const int64_t mr = portable_min(PORTABLE_MR, m - i0);
            const float *ap = a + i0 * row, *bp = b + j0;
            float acc[PORTABLE_MR][PORTABLE_NR] = {{0}};
            if (mr == PORTABLE_MR && nr == PORTABLE_NR) {
                for (int64_t p = 0; p < k; p++)
                    for (int i = 0; i < PORTABLE_MR; i++)
                        for (int j = 0; j < PORTABLE_NR; j++) acc[i][j] += ap[i * row + p * col] * bp[p * ldb + j];
            } else {
                for (int64_t p = 0; p < k; p++)
                    for (int64_t i = 0; i < mr; i++)
                        for (int64_t j = 0; j < nr; j++) acc[i][j] += ap[i * row + p * col] * bp[p * ldb + j];
            }
            for (int64_t i = 0; i < mr; i++) {
                float *to = c + (i0 + i) * ldc + j0;
                if (add == 0)
                    for (int64_t j = 0; j < nr; j++) to[j] = acc[i][j];
                else if (add > 0)
                    for (int64_t j = 0; j < nr; j++) to[j] += acc[i][j];
                else
                    for (int64_t j = 0; j < nr; j++) to[j] -= acc[i][j];
            }
        }
    }
}

static inline void portable_sgemm(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                                  const float *b, int64_t ldb, float beta, float *c, int64_t ldc) {
    enum { KB = 64, NB = 64 };
    float panel[KB][NB];
    if (beta == 0.0f || k <= 0)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
    for (int64_t p0 = 0; p0 < k; p0 += KB) {
        const int64_t kb = portable_min(KB, k - p0);
        for (int64_t j0 = 0; j0 < n; j0 += NB) {
            const int64_t nb = portable_min(NB, n - j0);
            for (int64_t p = 0; p < kb; p++)
                for (int64_t j = 0; j < nb; j++)
                    panel[p][j] = tb ? b[(j0 + j) * ldb + p0 + p] : b[(p0 + p) * ldb + j0 + j];
            portable_gemm(m, nb, kb, ta ? a + p0 * lda : a + p0, ta ? 1 : lda, ta ? lda : 1, panel[0], NB, c + j0, ldc,
                          1);
        }
    }
}

static inline void portable_gradient_matmul(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                                            const float *b, int64_t ldb, float *c, int64_t ldc) {
    portable_sgemm(ta, false, m, n, k, a, lda, b, ldb, 1.0f, c, ldc);
}

#endif
