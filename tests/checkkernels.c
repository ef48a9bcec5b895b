/*
 * checkkernels: every slot of every backend against scalar, and scalar against references written from the formulas.
 *
 *   checkkernels [DIR..]                check the backends found there (default: plugins/backends of the build)
 *   checkkernels --only NAME [DIR..]    of them those whose name contains NAME
 *   checkkernels --bench [NAME] [DIR..] time every slot, or those whose name starts with NAME
 *
 * A backend's levels count as backends.
 * Exact slots must give scalar's bytes (any NaN equals any NaN). Training slots must agree with the f64 references
 * within TOLERANCE below, rms of the error over rms of the reference. Every buffer a kernel is given lies between
 * canaries. Exit status 1 when a check failed.
 */
#include <chimera/plugin.h>

#include "reference/ref_kernels.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <dirent.h>
#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#include <time.h>

/* rms error / rms of the reference. f32 arithmetic over up to 256 terms; the delta rule's chunk form solves a 64 x 64
 * triangular system, its gradients sum over three such products */
#define TOLERANCE_FORWARD  1e-6
#define TOLERANCE_SUM      2e-6
#define TOLERANCE_CHUNK    2e-6
#define TOLERANCE_BACKWARD 1e-5
/* an error of a score, up to a few tens here, becomes a relative error of its weight */
#define TOLERANCE_ATTEND 5e-6
/* functions of one number: largest error in units of the last place */
#define TOLERANCE_ULP 3.0

/* ---- Random numbers and fills ------------------------------------------------------------------------------------ */

static uint64_t random_state = 1;

static uint64_t random_bits(void) {
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static double uniform(void) { return ((double)(random_bits() >> 11) + 0.5) * 0x1p-53; }
static float normal(void) { return (float)(sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform())); }

enum fill { NORMAL, ZEROS, HUGE_VALUES, TINY, DENORMAL, MINUS_ZERO, ALL_EQUAL, MIXED, NOT_FINITE, FILLS };
static const char *const fill_name[FILLS] = {"normal", "zeros",     "huge",  "tiny",      "denormal",
                                             "-0",     "all equal", "mixed", "not finite"};

static void fill(float *x, int64_t n, enum fill kind) {
    for (int64_t i = 0; i < n; i++) {
        const float v = normal();
        switch (kind) {
        case ZEROS:
            x[i] = 0;
            break;
        case HUGE_VALUES:
            x[i] = v * 1e30f;
            break;
        case TINY:
            x[i] = v * 1e-30f;
            break;
        case DENORMAL:
            x[i] = v * 1e-40f;
            break;
        case MINUS_ZERO:
            x[i] = i % 3 ? -0.0f : v;
            break;
        case ALL_EQUAL:
            x[i] = -0.75f;
            break;
        case MIXED:
            x[i] = v * powf(10, (float)(random_bits() % 13) - 6);
            break;
        case NOT_FINITE:
            x[i] = i % 97 == 5 ? INFINITY : i % 89 == 80 ? NAN : i % 131 == 99 ? -INFINITY : v;
            break;
        default:
            x[i] = v;
            break;
        }
    }
}

/* ---- One slot of one backend ------------------------------------------------------------------------------------- */

enum { GUARD = 256, CANARY = 0xa5, MOST_BUFFERS = 128 };

struct run {
    int64_t compared, failed;
    double worst; /* error / tolerance */
    double least; /* a reference smaller than this counts as this: what is left of larger numbers that cancelled */
    char first[256];
    struct {
        unsigned char *base;
        size_t bytes, shift;
    } buffer[MOST_BUFFERS];
    int buffers;
};

static void __attribute__((format(printf, 2, 3))) fail(struct run *run, const char *format, ...) {
    if (run->failed++ == 0) {
        va_list args;
        va_start(args, format);
        vsnprintf(run->first, sizeof run->first, format, args);
        va_end(args);
    }
}

/* `bytes` bytes of canary between canaries, `shift` bytes off a cache line */
static void *take(struct run *run, int64_t bytes, size_t shift) {
    const size_t whole = ((size_t)bytes + shift + 2 * GUARD + 63) / 64 * 64;
    if (run->buffers == MOST_BUFFERS) abort();
    unsigned char *base = aligned_alloc(64, whole);
    if (base == NULL) abort();
    memset(base, CANARY, whole);
    run->buffer[run->buffers].base = base;
    run->buffer[run->buffers].bytes = (size_t)bytes;
    run->buffer[run->buffers++].shift = shift;
    return base + GUARD + shift;
}
static float *take_floats(struct run *run, int64_t n) { return take(run, n * (int64_t)sizeof(float), 0); }
static float *take_slice(struct run *run, int64_t n) { return take(run, n * (int64_t)sizeof(float), 20); }
static double *take_doubles(struct run *run, int64_t n) { return take(run, n * (int64_t)sizeof(double), 0); }

static void release(struct run *run) {
    for (int i = 0; i < run->buffers; i++) {
        const unsigned char *base = run->buffer[i].base;
        const size_t first = GUARD + run->buffer[i].shift, last = first + run->buffer[i].bytes;
        for (size_t j = 0; j < first; j++)
            if (base[j] != CANARY) {
                fail(run, "wrote %zu bytes before a buffer", first - j);
                break;
            }
        for (size_t j = last; j < last + GUARD - 64; j++)
            if (base[j] != CANARY) {
                fail(run, "wrote %zu bytes after a buffer", j - last + 1);
                break;
            }
        free(run->buffer[i].base);
    }
    run->buffers = 0;
}

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static void __attribute__((format(printf, 5, 6)))
same_floats(struct run *run, const float *got, const float *want, int64_t n, const char *format, ...) {
    run->compared += n;
    for (int64_t i = 0; i < n; i++) {
        if (bits_of(got[i]) == bits_of(want[i]) || (isnan(got[i]) && isnan(want[i]))) continue;
        char what[160];
        va_list args;
        va_start(args, format);
        vsnprintf(what, sizeof what, format, args);
        va_end(args);
        fail(run, "%s: [%lld] is %.9g (%08x), not %.9g (%08x)", what, (long long)i, (double)got[i], bits_of(got[i]),
             (double)want[i], bits_of(want[i]));
        return;
    }
}

static void __attribute__((format(printf, 5, 6)))
same_bytes(struct run *run, const void *got, const void *want, int64_t n, const char *format, ...) {
    run->compared += n;
    const unsigned char *g = got, *w = want;
    for (int64_t i = 0; i < n; i++) {
        if (g[i] == w[i]) continue;
        char what[160];
        va_list args;
        va_start(args, format);
        vsnprintf(what, sizeof what, format, args);
        va_end(args);
        fail(run, "%s: byte [%lld] is %d, not %d", what, (long long)i, g[i], w[i]);
        return;
    }
}

static void __attribute__((format(printf, 6, 7)))
close_to(struct run *run, const float *got, const double *want, int64_t n, double tolerance, const char *format, ...) {
    double error = 0, size = 0;
    bool foreign = false;
    run->compared += n;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(got[i]) != isnan(want[i])) foreign = true;
        if (!isfinite((float)want[i])) {
            foreign = foreign || (!isnan(want[i]) && got[i] != (float)want[i]);
            continue;
        }
        error += (got[i] - want[i]) * (got[i] - want[i]);
        size += want[i] * want[i];
    }
    const double least = run->least * run->least * (double)n;
    const double ratio = error == 0 ? 0 : sqrt(error / (size > least ? size : least));
    if (ratio / tolerance > run->worst) run->worst = ratio / tolerance;
    if (ratio <= tolerance && !foreign) return;
    char what[160];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    fail(run, "%s: rms error %.3g of the reference, %.3g allowed%s", what, ratio, tolerance,
         foreign ? ", and NaN or infinity where the other has none" : "");
}

/* within `most` units in the last place, and `slack` denormals more */
static void close_ulp(struct run *run, float got, double want, double most, double slack, const char *what, double at) {
    run->compared++;
    const float nearest = (float)want;
    if (isnan(want) ? isnan(got) : got == nearest) return;
    int exponent = 0;
    if (isfinite(want)) frexp(want, &exponent);
    const double ulp = ldexp(1, exponent - 24 < -149 ? -149 : exponent - 24);
    const double error = fmax(0, fabs((double)got - want) - slack * 0x1p-149) / ulp;
    if (error / most > run->worst) run->worst = error / most;
    if (!(error <= most)) fail(run, "%s(%.9g) = %.9g, not %.9g", what, at, (double)got, want);
}

static void widen(const float *from, double *to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

/* nothing was written between the rows of y */
static void gaps_intact(struct run *run, const float *y, int64_t rows, int64_t ldy, int64_t first, int64_t last) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < ldy; i++)
            if ((i < first || i >= last) && bits_of(y[r * ldy + i]) != 0xa5a5a5a5u) {
                fail(run, "column %lld of row %lld was written, outside %lld..%lld", (long long)i, (long long)r,
                     (long long)first, (long long)last);
                return;
            }
}

/* ---- Inputs shared by several slots ------------------------------------------------------------------------------ */

static const int64_t in_widths[] = {1, 63, 64, 65, 127, 128, 192, 257, 2560, 6912};
static const int64_t outs[] = {1, 15, 16, 17, 40};
static const int64_t row_counts[] = {1, 2, 3, 4, 5, 7, 17, 64};
static const int64_t widths[] = {1, 7, 15, 16, 17, 32, 63, 64, 65, 192, 257, 2560};
#define COUNT(a) ((int)(sizeof(a) / sizeof(a)[0]))

static struct chm_activation make_activation(struct run *run, int64_t rows, int64_t in, enum fill kind) {
    const int64_t blocks = (in + 63) / 64;
    float *x = take_floats(run, rows * in), *scale = take_floats(run, rows * blocks);
    int8_t *q = take(run, rows * blocks * 64, 0);
    int32_t *sum = take(run, rows * blocks * 4, 0);
    fill(x, rows * in, kind);
    for (int64_t r = 0; r < rows; r++)
        ref_quantise(x + r * in, in, q + r * blocks * 64, scale + r * blocks, sum + r * blocks);
    const struct chm_activation a = {q, scale, sum, rows, blocks};
    return a;
}

/* random codes; `worst`: all +1 (of sherry three in four), for the sums that come closest to the end of int16 */
static struct chm_ternary make_ternary(struct run *run, int32_t encoding, int64_t out, int64_t in, int64_t group,
                                       bool worst) {
    const int64_t tiles = chm_ternary_tiles(out), bytes = chm_ternary_code_stride(encoding, in);
    const int64_t stride = chm_ternary_scale_stride(in, group), blocks = (in + 63) / 64;
    uint8_t *codes = take(run, tiles * bytes, 0), *scales = take(run, tiles * stride, 0);
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t i = 0; i < bytes; i++) {
            const int64_t end = encoding == CHM_ENCODING_T5 ? blocks / 5 * 1024 : 0; /* where five share a byte */
            int byte = 0;
            if (encoding == CHM_ENCODING_SHERRY)
                byte = worst ? (i % 320 < 256 ? 0x33 : 0) : (int)(random_bits() & 255);
            else if (i < end)
                byte = worst ? 248 : (int)(84 * (random_bits() % 3) + random_bits() % 81);
            else
                for (int f = 0; f < 4; f++) byte |= (worst ? 2 : (int)(random_bits() % 3)) << 2 * f;
            codes[t * bytes + i] = (uint8_t)byte;
        }
    for (int64_t t = 0; t < tiles; t++) {
        float row_scale[16];
        for (int r = 0; r < 16; r++) row_scale[r] = 16 * t + r < out ? (float)(0.0001 * (1 + uniform())) : 0;
        memcpy(scales + t * stride, row_scale, sizeof row_scale);
        for (int64_t i = 64; i < stride; i++) scales[t * stride + i] = (uint8_t)(1 + random_bits() % 255);
    }
    const struct chm_ternary w = {codes, scales, out, in, group, encoding, 0};
    return w;
}

/* ---- Checks: exact slots ----------------------------------------------------------------------------------------- */

#define CHECK(slot)                                                                                                    \
    static void check_##slot(struct run *run, const struct chm_kernels *scalar, const struct chm_kernels *k)

CHECK(quantise) {
    for (int c = 0; c < COUNT(in_widths); c++)
        for (int kind = 0; kind < FILLS; kind++) {
            const int64_t in = in_widths[c], rows = 3, blocks = (in + 63) / 64;
            float *x = take_slice(run, rows * in), *scale = take_floats(run, rows * blocks);
            int8_t *q = take(run, rows * blocks * 64, 0), *q2 = take(run, rows * blocks * 64, 0);
            int32_t *sum = take(run, rows * blocks * 4, 0), *sum2 = take(run, rows * blocks * 4, 0);
            float *scale2 = take_floats(run, rows * blocks);
            fill(x, rows * in, (enum fill)kind);
            if (k == scalar)
                for (int64_t r = 0; r < rows; r++)
                    ref_quantise(x + r * in, in, q2 + r * blocks * 64, scale2 + r * blocks, sum2 + r * blocks);
            else
                scalar->quantise(x, rows, in, q2, scale2, sum2);
            k->quantise(x, rows, in, q, scale, sum);
            same_bytes(run, q, q2, rows * blocks * 64, "%s, in %lld: codes", fill_name[kind], (long long)in);
            same_floats(run, scale, scale2, rows * blocks, "%s, in %lld: scales", fill_name[kind], (long long)in);
            same_bytes(run, sum, sum2, rows * blocks * 4, "%s, in %lld: sums", fill_name[kind], (long long)in);
            release(run);
        }
    /* ties: multiples of one half, absmax 127 */
    float *x = take_floats(run, 64), scale[2];
    int8_t q[64], q2[64];
    int32_t sum[2];
    for (int i = 0; i < 64; i++) x[i] = (float)(i - 30) * 0.5f;
    x[63] = 127;
    k->quantise(x, 1, 64, q, scale, sum);
    ref_quantise(x, 64, q2, scale + 1, sum + 1);
    same_bytes(run, q, q2, 64, "ties");
    release(run);
}

static void check_ternary(struct run *run, int32_t encoding, const struct chm_kernels *scalar,
                          const struct chm_kernels *k, int64_t out, int64_t in, int64_t rows, int64_t group,
                          enum fill kind) {
    const struct chm_ternary w = make_ternary(run, encoding, out, in, group, kind == ALL_EQUAL);
    const struct chm_activation x = make_activation(run, rows, in, kind);
    const int64_t ldy = out + 3, tiles = chm_ternary_tiles(out);
    float *y = take_floats(run, rows * ldy), *want = take_floats(run, rows * ldy);
    const int64_t tile0 = tiles > 2 ? 1 : 0; /* a range that begins in the middle */
    chm_ternary_kernel(k, encoding)(&w, tile0, tiles, &x, y, ldy);
    gaps_intact(run, y, rows, ldy, 16 * tile0, out);
    if (k != scalar) {
        chm_ternary_kernel(scalar, encoding)(&w, tile0, tiles, &x, want, ldy);
        same_floats(run, y, want, rows * ldy, "out %lld, in %lld, rows %lld, group %lld, %s", (long long)out,
                    (long long)in, (long long)rows, (long long)group, fill_name[kind]);
    }
    /* the naive evaluation of the contract: all of it where it is small, else every seventh output */
    const int64_t step = out * in * rows > 100000 ? 7 : 1;
    for (int64_t o = 16 * tile0; o < out; o += step)
        for (int64_t r = 0; r < rows; r += step) {
            const float naive = ref_ternary_product(&w, o, &x, r);
            same_floats(run, y + r * ldy + o, &naive, 1,
                        "against the naive sum: out %lld of %lld, in %lld, row %lld of %lld", (long long)o,
                        (long long)out, (long long)in, (long long)r, (long long)rows);
        }
    release(run);
}

static void check_encoding(struct run *run, int32_t encoding, const struct chm_kernels *scalar,
                           const struct chm_kernels *k) {
    for (int a = 0; a < COUNT(in_widths); a++)
        for (int b = 0; b < COUNT(outs); b++)
            for (int c = 0; c < COUNT(row_counts); c++)
                check_ternary(run, encoding, scalar, k, outs[b], in_widths[a], row_counts[c],
                              (a + b + c) % 3 ? 128 : 64, NORMAL);
    for (int64_t blocks = 1; blocks <= 11; blocks++) /* every number of blocks left over, once and after others */
        for (int64_t rows = 1; rows <= 9; rows++)
            check_ternary(run, encoding, scalar, k, 19, 64 * blocks - (rows % 2 ? 0 : 3), rows, 128, NORMAL);
    for (int kind = 0; kind < FILLS; kind++) {
        check_ternary(run, encoding, scalar, k, 33, 320, 1, 128, (enum fill)kind);
        check_ternary(run, encoding, scalar, k, 33, 320, 2, 64, (enum fill)kind);
        check_ternary(run, encoding, scalar, k, 33, 576, 6, 256, (enum fill)kind);
    }
    check_ternary(run, encoding, scalar, k, 200, 300, 131, 128, NORMAL); /* more than any blocking holds */
    check_ternary(run, encoding, scalar, k, 33, 17000, 3, 128, NORMAL);
}

CHECK(t2_matmul) { check_encoding(run, CHM_ENCODING_T2, scalar, k); }
CHECK(t5_matmul) { check_encoding(run, CHM_ENCODING_T5, scalar, k); }
CHECK(sherry_matmul) { check_encoding(run, CHM_ENCODING_SHERRY, scalar, k); }

static void check_int8(struct run *run, const struct chm_kernels *scalar, const struct chm_kernels *k, int64_t out,
                       int64_t in, int64_t rows, enum fill kind) {
    const struct chm_activation x = make_activation(run, rows, in, kind);
    int8_t *q = take(run, out * x.blocks * 64, 0);
    float *scale = take_floats(run, out);
    memset(q, 0, (size_t)(out * x.blocks * 64));
    for (int64_t o = 0; o < out; o++) {
        scale[o] = (float)(0.001 * (1 + uniform()));
        for (int64_t i = 0; i < in; i++)
            q[o * x.blocks * 64 + i] =
                (int8_t)(kind == ALL_EQUAL ? (o % 2 ? 127 : -127) : (int)(random_bits() % 255) - 127);
    }
    const struct chm_int8_matrix w = {q, scale, out, in, x.blocks};
    const int64_t ldy = out + 3, out0 = out > 20 ? 3 : 0;
    float *y = take_floats(run, rows * ldy), *want = take_floats(run, rows * ldy);
    k->int8_matmul(&w, out0, out, &x, y, ldy);
    gaps_intact(run, y, rows, ldy, out0, out);
    if (k != scalar) {
        scalar->int8_matmul(&w, out0, out, &x, want, ldy);
    } else {
        memcpy(want, y, (size_t)(rows * ldy) * sizeof *y);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t o = out0; o < out; o++) want[r * ldy + o] = ref_int8_product(&w, o, &x, r);
    }
    same_floats(run, y, want, rows * ldy, "out %lld, in %lld, rows %lld, %s", (long long)out, (long long)in,
                (long long)rows, fill_name[kind]);
    release(run);
}

CHECK(int8_matmul) {
    for (int a = 0; a < COUNT(in_widths); a++)
        for (int b = 0; b < COUNT(outs); b++)
            for (int c = 0; c < COUNT(row_counts); c += 2)
                check_int8(run, scalar, k, outs[b], in_widths[a], row_counts[c], NORMAL);
    for (int kind = 0; kind < FILLS; kind++) check_int8(run, scalar, k, 19, 320, 3, (enum fill)kind);
}

static void check_f32(struct run *run, const struct chm_kernels *scalar, const struct chm_kernels *k, int64_t out,
                      int64_t in, int64_t rows, enum fill kind) {
    float *w = take_slice(run, out * in), *x = take_slice(run, rows * in);
    const int64_t ldy = out + 3, out0 = out > 20 ? 3 : 0;
    float *y = take_floats(run, rows * ldy), *want = take_floats(run, rows * ldy);
    fill(w, out * in, kind == NOT_FINITE || kind == HUGE_VALUES ? NORMAL : kind);
    fill(x, rows * in, kind);
    k->f32_matmul(w, out0, out, in, x, rows, y, ldy);
    gaps_intact(run, y, rows, ldy, out0, out);
    if (k != scalar) {
        scalar->f32_matmul(w, out0, out, in, x, rows, want, ldy);
    } else {
        memcpy(want, y, (size_t)(rows * ldy) * sizeof *y);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t o = out0; o < out; o++) want[r * ldy + o] = ref_lanes_product(x + r * in, w + o * in, in);
    }
    same_floats(run, y, want, rows * ldy, "out %lld, in %lld, rows %lld, %s", (long long)out, (long long)in,
                (long long)rows, fill_name[kind]);
    release(run);
}

CHECK(f32_matmul) {
    for (int a = 0; a < COUNT(in_widths); a++)
        for (int b = 0; b < COUNT(outs); b++)
            for (int c = 0; c < COUNT(row_counts); c++)
                if (in_widths[a] * outs[b] * row_counts[c] < 1000000)
                    check_f32(run, scalar, k, outs[b], in_widths[a], row_counts[c], NORMAL);
    for (int a = 0; a < COUNT(widths); a++)
        for (int kind = 0; kind < FILLS; kind++) check_f32(run, scalar, k, 5, widths[a], 4, (enum fill)kind);
}

CHECK(rmsnorm) {
    for (int a = 0; a < COUNT(widths); a++)
        for (int kind = 0; kind < FILLS; kind++)
            for (int weighted = 0; weighted < 3; weighted++) {
                const int64_t width = widths[a], n = 6, weight_rows = weighted == 2 ? 3 : 1;
                float *x = take_slice(run, n * width), *w = weighted ? take_slice(run, weight_rows * width) : NULL;
                float *y = take_floats(run, n * width), *y2 = take_floats(run, n * width);
                float *r = take_floats(run, n), *r2 = take_floats(run, n);
                double *want = take_doubles(run, n * width);
                fill(x, n * width, (enum fill)kind);
                if (w != NULL) fill(w, weight_rows * width, NORMAL);
                k->rmsnorm(x, n, width, 1e-5f, w, weight_rows, y, weighted == 1 ? NULL : r);
                if (k != scalar) {
                    scalar->rmsnorm(x, n, width, 1e-5f, w, weight_rows, y2, weighted == 1 ? NULL : r2);
                    same_floats(run, y, y2, n * width, "width %lld, %s", (long long)width, fill_name[kind]);
                    same_floats(run, r, r2, n, "width %lld, %s: rstd", (long long)width, fill_name[kind]);
                } else if (kind != HUGE_VALUES && kind != NOT_FINITE) { /* the square of 1e30 overflows, as it may */
                    ref_norm(x, n, width, 1e-5f, true, w, weight_rows, want);
                    close_to(run, y, want, n * width, TOLERANCE_FORWARD, "width %lld, %s", (long long)width,
                             fill_name[kind]);
                }
                release(run);
            }
}

CHECK(l2norm) {
    for (int a = 0; a < COUNT(widths); a++)
        for (int kind = 0; kind < FILLS; kind++) {
            const int64_t width = widths[a], n = 5;
            float *x = take_slice(run, n * width), *y = take_floats(run, n * width), *y2 = take_floats(run, n * width);
            float *r = take_floats(run, n), *r2 = take_floats(run, n);
            double *want = take_doubles(run, n * width);
            fill(x, n * width, (enum fill)kind);
            k->l2norm(x, n, width, 1e-6f, y, kind % 2 ? NULL : r);
            if (k != scalar) {
                scalar->l2norm(x, n, width, 1e-6f, y2, kind % 2 ? NULL : r2);
                same_floats(run, y, y2, n * width, "width %lld, %s", (long long)width, fill_name[kind]);
                same_floats(run, r, r2, n, "width %lld, %s: rnorm", (long long)width, fill_name[kind]);
            } else if (kind != HUGE_VALUES && kind != NOT_FINITE) {
                ref_norm(x, n, width, 1e-6f, false, NULL, 1, want);
                close_to(run, y, want, n * width, TOLERANCE_FORWARD, "width %lld, %s", (long long)width,
                         fill_name[kind]);
            }
            release(run);
        }
}

static const char *const unary_name[] = {"silu", "sigmoid", "tanh", "exp", "softplus", "log_sigmoid", "relu2"};

/* numbers spread over every exponent, a fine grid over -110..110, and the edges */
static int64_t unary_inputs(float *x, int64_t n) {
    static const float edges[] = {0.0f,       -0.0f,   INFINITY,  -INFINITY, NAN,         20.0f,
                                  20.000002f, -20.0f,  88.72283f, 88.7229f,  89.0f,       104.0f,
                                  -103.9f,    -104.0f, -200.0f,   1e-45f,    -1e-45f,     1e38f,
                                  -1e38f,     0.625f,  -0.625f,   0.62499f,  -87.336548f, 3.4028235e38f};
    int64_t at = 0;
    for (; at < COUNT(edges); at++) x[at] = edges[at];
    for (; at < n / 2; at++) x[at] = (float)(uniform() * 220 - 110);
    for (; at < n; at++) {
        const uint32_t u = (uint32_t)random_bits();
        memcpy(x + at, &u, 4);
    }
    return n;
}

CHECK(unary) {
    enum { N = 200003 };
    float *x = take_floats(run, N), *y = take_floats(run, N), *y2 = take_floats(run, N);
    unary_inputs(x, N);
    for (int op = 0; op < CHM_UNARY_COUNT; op++) {
        k->unary((enum chm_unary)op, x, N, y);
        if (k != scalar) {
            scalar->unary((enum chm_unary)op, x, N, y2);
            same_floats(run, y, y2, N, "%s", unary_name[op]);
            continue;
        }
        for (int i = 0; i < N; i++) /* silu: x times a sigmoid that was rounded among the denormals */
            close_ulp(run, y[i], ref_unary((enum chm_unary)op, x[i]), TOLERANCE_ULP,
                      op == CHM_SILU ? fabs((double)x[i]) : 0, unary_name[op], x[i]);
    }
    for (int n = 0; n < 40; n++) { /* every tail */
        float *short_y = take_slice(run, n);
        k->unary(CHM_SILU, x + 30, n, short_y);
        scalar->unary(CHM_SILU, x + 30, n, y2);
        same_floats(run, short_y, y2, n, "silu of %d numbers", n);
    }
    release(run);
}

CHECK(swiglu) {
    for (int kind = 0; kind < FILLS; kind++) {
        enum { N = 1027 };
        float *a = take_slice(run, N), *b = take_slice(run, N), *y = take_slice(run, N), *y2 = take_slice(run, N);
        double *want = take_doubles(run, N);
        fill(a, N, (enum fill)kind);
        fill(b, N, kind == NOT_FINITE ? NORMAL : (enum fill)kind);
        k->swiglu(a, b, N, y);
        if (k != scalar) {
            scalar->swiglu(a, b, N, y2);
            same_floats(run, y, y2, N, "%s", fill_name[kind]);
        } else if (kind != HUGE_VALUES) {
            for (int i = 0; i < N; i++) want[i] = ref_unary(CHM_SILU, a[i]) * b[i];
            close_to(run, y, want, N, TOLERANCE_FORWARD, "%s", fill_name[kind]);
        }
        release(run);
    }
}

CHECK(logsumexp) {
    for (int a = 0; a < COUNT(widths); a++)
        for (int kind = 0; kind < FILLS; kind++) {
            const int64_t n = widths[a];
            float *x = take_slice(run, n);
            fill(x, n, (enum fill)kind);
            const float got = k->logsumexp(x, n);
            const float other = scalar->logsumexp(x, n);
            same_floats(run, &got, &other, 1, "n %lld, %s", (long long)n, fill_name[kind]);
            if (k == scalar && kind != NOT_FINITE) {
                const double want = ref_logsumexp(x, n);
                close_to(run, &got, &want, 1, TOLERANCE_FORWARD, "n %lld, %s", (long long)n, fill_name[kind]);
            }
            release(run);
        }
    /* masked logits */
    float x[5] = {-INFINITY, 1.0f, -INFINITY, 2.0f, -INFINITY};
    const float got = k->logsumexp(x, 5), none = k->logsumexp(x + 2, 1), most = k->logsumexp((float[]){1, INFINITY}, 2);
    close_ulp(run, got, log(exp(1.0) + exp(2.0)), TOLERANCE_ULP, 0, "masked logsumexp", 0);
    close_ulp(run, none, -INFINITY, TOLERANCE_ULP, 0, "logsumexp of -inf", 0);
    close_ulp(run, most, INFINITY, TOLERANCE_ULP, 0, "logsumexp with inf", 0);
}

/* ---- Checks: the delta rule -------------------------------------------------------------------------------------- */

static const int64_t head_shapes[][2] = {{1, 1},   {3, 5},   {16, 24},  {32, 32}, {33, 17},
                                         {63, 65}, {64, 64}, {64, 128}, {256, 40}};

struct delta {
    int64_t dk, dv, rows;
    float *S, *q, *k, *v, *log_alpha, *beta;
};

/* l2-normalised questions and keys, as layers make them; gates from 1 to e^-30 in `gates` = 1, near-equal keys in 2 */
static struct delta make_delta(struct run *run, int64_t dk, int64_t dv, int64_t rows, int gates) {
    struct delta d = {dk,
                      dv,
                      rows,
                      take_floats(run, dk * dv),
                      take_floats(run, rows * dk),
                      take_floats(run, rows * dk),
                      take_floats(run, rows * dv),
                      take_floats(run, rows),
                      take_floats(run, rows)};
    fill(d.S, dk * dv, NORMAL);
    fill(d.q, rows * dk, NORMAL);
    fill(d.k, rows * dk, NORMAL);
    fill(d.v, rows * dv, NORMAL);
    for (int64_t t = 0; t < rows; t++) {
        double a = 1e-6, b = 1e-6;
        if (gates == 2)
            for (int64_t i = 0; i < dk; i++) d.k[t * dk + i] = 1 + 0.01f * d.k[t * dk + i];
        for (int64_t i = 0; i < dk; i++) {
            a += (double)d.q[t * dk + i] * d.q[t * dk + i];
            b += (double)d.k[t * dk + i] * d.k[t * dk + i];
        }
        for (int64_t i = 0; i < dk; i++) {
            d.q[t * dk + i] /= (float)sqrt(a);
            d.k[t * dk + i] /= (float)sqrt(b);
        }
        d.log_alpha[t] = gates == 1 && random_bits() % 8 == 0 ? -30.0f : (float)(-0.2 * uniform());
        d.beta[t] = (float)uniform();
    }
    return d;
}

static void check_step(struct run *run, const struct chm_kernels *scalar, const struct chm_kernels *k, bool read) {
    for (int s = 0; s < COUNT(head_shapes); s++)
        for (int variant = 0; variant < 4; variant++) {
            const int64_t dk = head_shapes[s][0], dv = head_shapes[s][1];
            const struct delta d = make_delta(run, dk, dv, 1, variant == 1);
            float *S = take_floats(run, dk * dv), *S2 = take_floats(run, dk * dv), *o = take_slice(run, dv);
            float *o2 = take_slice(run, dv);
            double *wide = take_doubles(run, dk * dv), *want = take_doubles(run, dv);
            if (variant == 2) d.log_alpha[0] = 0;
            if (variant == 3) fill(d.S, dk * dv, DENORMAL);
            const size_t bytes = (size_t)(dk * dv) * sizeof *S;
            memcpy(S, d.S, bytes);
            memcpy(S2, d.S, bytes);
            widen(d.S, wide, dk * dv);
            const float scale = 0.125f;
            if (read) {
                k->delta_read(S, dk, dv, d.q, scale, o);
                scalar->delta_read(S2, dk, dv, d.q, scale, o2);
                d.log_alpha[0] = 0;
                d.beta[0] = 0;
            } else {
                k->delta_step(S, dk, dv, d.q, d.k, d.v, d.log_alpha[0], d.beta[0], scale, o);
                scalar->delta_step(S2, dk, dv, d.q, d.k, d.v, d.log_alpha[0], d.beta[0], scale, o2);
            }
            same_floats(run, S, S2, dk * dv, "dk %lld, dv %lld: state", (long long)dk, (long long)dv);
            same_floats(run, o, o2, dv, "dk %lld, dv %lld: output", (long long)dk, (long long)dv);
            if (k == scalar) {
                ref_delta(wide, dk, dv, 1, 1, (const float *const[]){d.q}, d.k, d.v, d.log_alpha, d.beta, scale,
                          (double *const[]){want});
                close_to(run, S, wide, dk * dv, TOLERANCE_FORWARD, "dk %lld, dv %lld: state", (long long)dk,
                         (long long)dv);
                close_to(run, o, want, dv, TOLERANCE_SUM, "dk %lld, dv %lld: output", (long long)dk, (long long)dv);
            }
            if (!read) { /* without an output the state is the same */
                memcpy(S2, d.S, bytes);
                k->delta_step(S2, dk, dv, d.q, d.k, d.v, d.log_alpha[0], d.beta[0], scale, NULL);
                same_floats(run, S2, S, dk * dv, "dk %lld, dv %lld: replay", (long long)dk, (long long)dv);
            }
            release(run);
        }
}

CHECK(delta_step) { check_step(run, scalar, k, false); }
CHECK(delta_read) { check_step(run, scalar, k, true); }

CHECK(outer_step) {
    for (int s = 0; s < COUNT(head_shapes); s++)
        for (int variant = 0; variant < 4; variant++) {
            const int64_t dk = head_shapes[s][0], dv = head_shapes[s][1];
            const struct delta d = make_delta(run, dk, dv, 1, false);
            float *S = take_floats(run, dk * dv), *S2 = take_floats(run, dk * dv), *o = take_slice(run, dv);
            float *o2 = take_slice(run, dv);
            double *wide = take_doubles(run, dk * dv), *want = take_doubles(run, dv);
            const float decay = variant == 1 ? 0.0f : variant == 2 ? 1.0f : 0.75f, scale = 0.125f;
            if (variant == 3) fill(d.S, dk * dv, DENORMAL);
            const size_t bytes = (size_t)(dk * dv) * sizeof *S;
            memcpy(S, d.S, bytes);
            memcpy(S2, d.S, bytes);
            k->outer_step(S, dk, dv, d.q, d.k, d.v, decay, scale, o);
            scalar->outer_step(S2, dk, dv, d.q, d.k, d.v, decay, scale, o2);
            same_floats(run, S, S2, dk * dv, "dk %lld, dv %lld: state", (long long)dk, (long long)dv);
            same_floats(run, o, o2, dv, "dk %lld, dv %lld: output", (long long)dk, (long long)dv);
            if (k == scalar) {
                for (int64_t j = 0; j < dv; j++) want[j] = 0;
                for (int64_t i = 0; i < dk; i++)
                    for (int64_t j = 0; j < dv; j++) {
                        wide[i * dv + j] = (double)d.S[i * dv + j] * decay + (double)d.k[i] * d.v[j];
                        want[j] += scale * (double)d.q[i] * wide[i * dv + j];
                    }
                close_to(run, S, wide, dk * dv, TOLERANCE_FORWARD, "dk %lld, dv %lld: state", (long long)dk,
                         (long long)dv);
                close_to(run, o, want, dv, TOLERANCE_SUM, "dk %lld, dv %lld: output", (long long)dk, (long long)dv);
            }
            memcpy(S2, d.S, bytes); /* without an output the state is the same */
            k->outer_step(S2, dk, dv, d.q, d.k, d.v, decay, scale, NULL);
            same_floats(run, S2, S, dk * dv, "dk %lld, dv %lld: replay", (long long)dk, (long long)dv);
            release(run);
        }
}

/* rows of `width` floats, `stride` apart, from side by side */
static float *spread(struct run *run, const float *from, int64_t rows, int64_t width, int64_t stride) {
    float *to = take_slice(run, (rows - 1) * stride + width);
    for (int64_t t = 0; t < rows; t++) memcpy(to + t * stride, from + t * width, (size_t)width * sizeof *to);
    return to;
}
static void gather(const float *from, int64_t rows, int64_t width, int64_t stride, float *to) {
    for (int64_t t = 0; t < rows; t++) memcpy(to + t * width, from + t * stride, (size_t)width * sizeof *to);
}

static const int64_t chunk_rows[] = {1, 2, 5, 6, 13, 31, 60, 63, 64};

static void check_chunk_form(struct run *run, const struct chm_kernels *k, bool read) {
    run->least = 1; /* the size of what goes in */
    for (int s = 0; s < COUNT(head_shapes); s++)
        for (int r = 0; r < COUNT(chunk_rows); r++) {
            const int64_t dk = head_shapes[s][0], dv = head_shapes[s][1], rows = chunk_rows[r];
            const struct delta d = make_delta(run, dk, dv, rows, (s + r) % 3);
            const int64_t qs = dk + 3, vs = dv + 5, gs = 3;
            float *q = spread(run, d.q, rows, dk, qs), *kk = spread(run, d.k, rows, dk, qs);
            float *v = spread(run, d.v, rows, dv, vs), *la = spread(run, d.log_alpha, rows, 1, gs);
            float *b = spread(run, d.beta, rows, 1, gs), *o = take_slice(run, (rows - 1) * vs + dv);
            float *out = take_floats(run, rows * dv), *S = take_floats(run, dk * dv);
            float *scratch = take_floats(run, (int64_t)chm_delta_scratch(dk, dv));
            double *wide = take_doubles(run, dk * dv), *want = take_doubles(run, rows * dv);
            memcpy(S, d.S, (size_t)(dk * dv) * sizeof *S);
            widen(d.S, wide, dk * dv);
            if (read)
                k->delta_chunk_read(S, dk, dv, rows, q, qs, kk, qs, v, vs, la, b, gs, 0.125f, o, vs, scratch);
            else
                k->delta_chunk(S, dk, dv, rows, q, qs, kk, qs, v, vs, la, b, gs, 0.125f, o, vs, scratch);
            gather(o, rows, dv, vs, out);
            ref_delta(wide, dk, dv, rows, 1, (const float *const[]){d.q}, d.k, d.v, d.log_alpha, d.beta, 0.125,
                      (double *const[]){want});
            close_to(run, out, want, rows * dv, TOLERANCE_CHUNK, "dk %lld, dv %lld, rows %lld: output", (long long)dk,
                     (long long)dv, (long long)rows);
            for (int64_t t = 0; t + 1 < rows; t++)
                for (int64_t i = dv; i < vs; i++)
                    if (bits_of(o[t * vs + i]) != 0xa5a5a5a5u) fail(run, "wrote between rows of the output");
            if (read)
                same_floats(run, S, d.S, dk * dv, "state written by a read");
            else
                close_to(run, S, wide, dk * dv, TOLERANCE_CHUNK, "dk %lld, dv %lld, rows %lld: state", (long long)dk,
                         (long long)dv, (long long)rows);
            release(run);
        }
}

CHECK(delta_chunk) {
    (void)scalar;
    check_chunk_form(run, k, false);
}
CHECK(delta_chunk_read) {
    (void)scalar;
    check_chunk_form(run, k, true);
}

CHECK(delta_chunk_backward) {
    (void)scalar;
    run->least = 1; /* the size of what goes in */
    for (int s = 0; s < COUNT(head_shapes); s++)
        for (int r = 0; r < COUNT(chunk_rows); r++)
            for (int ends = 0; ends < 2; ends++) {
                const int64_t dk = head_shapes[s][0], dv = head_shapes[s][1], rows = chunk_rows[r];
                const int n_ask = 1 + (s + r) % 3;
                const struct delta d = make_delta(run, dk, dv, rows, (s + r) % 3);
                const int64_t qs = dk + 3, vs = dv + 5, gs = 2;
                float *q[3], *dense_q[3], *dout[3], *dense_dout[3], *dq[3];
                double *want_dq[3];
                for (int a = 0; a < n_ask; a++) {
                    dense_q[a] = take_floats(run, rows * dk);
                    dense_dout[a] = take_floats(run, rows * dv);
                    fill(dense_q[a], rows * dk, NORMAL);
                    for (int64_t i = 0; i < rows * dk; i++) dense_q[a][i] /= sqrtf((float)dk);
                    fill(dense_dout[a], rows * dv, NORMAL);
                    q[a] = spread(run, dense_q[a], rows, dk, qs);
                    dout[a] = spread(run, dense_dout[a], rows, dv, vs);
                    dq[a] = take_slice(run, rows * qs);
                    for (int64_t i = 0; i < rows * qs; i++) dq[a][i] = 0.5f; /* must be added to */
                    want_dq[a] = take_doubles(run, rows * dk);
                }
                float *kk = spread(run, d.k, rows, dk, qs), *v = spread(run, d.v, rows, dv, vs);
                float *la = spread(run, d.log_alpha, rows, 1, gs), *b = spread(run, d.beta, rows, 1, gs);
                float *dkk = take_slice(run, rows * qs), *dvv = take_slice(run, rows * vs);
                float *dla = take_slice(run, rows * gs), *db = take_slice(run, rows * gs);
                float *dS = take_floats(run, dk * dv), *scratch = take_floats(run, (int64_t)chm_delta_scratch(dk, dv));
                float *dense = take_floats(run, rows * (dk > dv ? dk : dv));
                double *want_dk = take_doubles(run, rows * dk), *want_dv = take_doubles(run, rows * dv);
                double *want_dla = take_doubles(run, rows), *want_db = take_doubles(run, rows);
                double *want_dS = take_doubles(run, dk * dv), *wide = take_doubles(run, dk * dv);
                for (int64_t i = 0; i < rows * qs; i++) dkk[i] = 0.5f;
                for (int64_t i = 0; i < rows * vs; i++) dvv[i] = 0.5f;
                for (int64_t i = 0; i < rows * gs; i++) dla[i] = db[i] = 0.5f;
                fill(dS, dk * dv, ends ? NORMAL : ZEROS);
                widen(dS, want_dS, dk * dv);
                widen(d.S, wide, dk * dv);
                ref_delta_backward(wide, dk, dv, rows, n_ask, (const float *const *)dense_q, d.k, d.v, d.log_alpha,
                                   d.beta, 0.125, (const float *const *)dense_dout, want_dq, want_dk, want_dv, want_dla,
                                   want_db, want_dS);
                k->delta_chunk_backward(d.S, dk, dv, rows, n_ask, (const float *const *)q, qs, kk, qs, v, vs, la, b, gs,
                                        0.125f, (const float *const *)dout, vs, dq, dkk, dvv, dla, db, ends ? dS : NULL,
                                        scratch);
#define COMPARE(got, want, width, stride, what)                                                                        \
    do {                                                                                                               \
        gather(got, rows, width, stride, dense);                                                                       \
        for (int64_t i = 0; i < rows * (width); i++) (want)[i] += 0.5;                                                 \
        close_to(run, dense, want, rows *(width), TOLERANCE_BACKWARD, "dk %lld, dv %lld, rows %lld, %d asks: " what,   \
                 (long long)dk, (long long)dv, (long long)rows, n_ask);                                                \
    } while (0)
                for (int a = 0; a < n_ask; a++) COMPARE(dq[a], want_dq[a], dk, qs, "dq");
                COMPARE(dkk, want_dk, dk, qs, "dk");
                COMPARE(dvv, want_dv, dv, vs, "dv");
                run->least = 0.25 * sqrt((double)(dk * dv)); /* inner products over the whole state */
                COMPARE(dla, want_dla, 1, gs, "dlog_alpha");
                COMPARE(db, want_db, 1, gs, "dbeta");
#undef COMPARE
                run->least = 1;
                if (ends)
                    close_to(run, dS, want_dS, dk * dv, TOLERANCE_BACKWARD, "dk %lld, dv %lld, rows %lld, %d asks: dS",
                             (long long)dk, (long long)dv, (long long)rows, n_ask);
                /* nothing wanted, nothing written */
                if (r % 4 == 0) {
                    float *none[3] = {NULL, NULL, NULL};
                    k->delta_chunk_backward(d.S, dk, dv, rows, n_ask, (const float *const *)q, qs, kk, qs, v, vs, la, b,
                                            gs, 0.125f, (const float *const *)dout, vs, none, NULL, NULL, NULL, NULL,
                                            NULL, scratch);
                }
                release(run);
            }
}

/* ---- Checks: training -------------------------------------------------------------------------------------------- */

CHECK(sgemm) {
    (void)scalar;
    static const int64_t shapes[][3] = {{1, 1, 1},  {5, 7, 3},    {16, 16, 16},  {17, 33, 65}, {64, 64, 64},
                                        {65, 1, 9}, {1, 130, 70}, {96, 40, 128}, {3, 4, 0}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int form = 0; form < 8; form++) {
            const bool ta = form & 1, tb = form & 2;
            const float beta = form & 4 ? 1.0f : 0.0f;
            const int64_t m = shapes[s][0], n = shapes[s][1], kk = shapes[s][2];
            const int64_t lda = (ta ? m : kk) + 2, ldb = (tb ? kk : n) + 1, ldc = n + 3;
            float *a = take_floats(run, (ta ? kk : m) * lda), *b = take_floats(run, (tb ? n : kk) * ldb);
            float *c = take_floats(run, m * ldc), *dense = take_floats(run, m * n);
            double *want = take_doubles(run, m * n);
            fill(a, (ta ? kk : m) * lda, NORMAL);
            fill(b, (tb ? n : kk) * ldb, NORMAL);
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < n; j++) {
                    double sum = 0;
                    if (beta != 0) sum = c[i * ldc + j] = normal();
                    for (int64_t p = 0; p < kk; p++)
                        sum += (double)(ta ? a[p * lda + i] : a[i * lda + p]) * (tb ? b[j * ldb + p] : b[p * ldb + j]);
                    want[i * n + j] = sum;
                }
            if (beta == 0) /* what C held must not matter */
                for (int64_t i = 0; i < m; i++)
                    for (int64_t j = 0; j < n; j++) c[i * ldc + j] = NAN;
            k->sgemm(ta, tb, m, n, kk, a, lda, b, ldb, beta, c, ldc);
            gather(c, m, n, ldc, dense);
            close_to(run, dense, want, m * n, TOLERANCE_SUM, "%lld x %lld x %lld, form %d", (long long)m, (long long)n,
                     (long long)kk, form);
            gaps_intact(run, c, m, ldc, 0, n);
            release(run);
        }
}

CHECK(block_matmul) {
    (void)scalar;
    static const int64_t shapes[][3] = {{1, 1, 1},    {5, 7, 3},   {16, 16, 16}, {64, 64, 64}, {17, 33, 65},
                                        {64, 65, 64}, {40, 96, 1}, {3, 4, 0},    {1, 64, 64},  {16, 128, 15}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int form = 0; form < 6; form++) {
            const bool transposed = form & 1;
            const int add = form / 2 - 1;
            const int64_t m = shapes[s][0], n = shapes[s][1], kk = shapes[s][2];
            const int64_t row = transposed ? 1 : kk + 3, col = transposed ? m + 2 : 1, ldb = n + 1, ldc = n + 3;
            float *a = take_floats(run, m * (kk + 3) + (m + 2) * kk), *b = take_floats(run, kk * ldb);
            float *c = take_floats(run, m * ldc), *dense = take_floats(run, m * n);
            double *want = take_doubles(run, m * n);
            fill(a, m * (kk + 3) + (m + 2) * kk, NORMAL);
            fill(b, kk * ldb, NORMAL);
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < n; j++) {
                    double sum = 0;
                    for (int64_t p = 0; p < kk; p++) sum += (double)a[i * row + p * col] * b[p * ldb + j];
                    /* what C held must not matter to add 0 */
                    c[i * ldc + j] = add ? normal() : NAN;
                    want[i * n + j] = add ? (double)c[i * ldc + j] + add * sum : sum;
                }
            k->block_matmul(m, n, kk, a, row, col, b, ldb, c, ldc, add);
            gather(c, m, n, ldc, dense);
            close_to(run, dense, want, m * n, TOLERANCE_SUM, "%lld x %lld x %lld, form %d", (long long)m, (long long)n,
                     (long long)kk, form);
            gaps_intact(run, c, m, ldc, 0, n);
            release(run);
        }
}

/* Operands may be rounded to bf16, by at most 2^-8 of each: so much of the sum of the magnitudes, twice, is allowed.
 * Small whole numbers are bf16 already, and their sums must be right to the last bit. */
CHECK(gradient_matmul) {
    (void)scalar;
    static const int64_t shapes[][3] = {{1, 1, 1},    {5, 7, 3},       {16, 16, 16},  {17, 33, 65},
                                        {64, 64, 64}, {65, 1, 9},      {1, 130, 70},  {96, 40, 128},
                                        {3, 4, 0},    {130, 300, 515}, {64, 257, 257}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int form = 0; form < 4; form++) {
            const bool ta = form & 1, whole = form & 2;
            const int64_t m = shapes[s][0], n = shapes[s][1], kk = shapes[s][2];
            const int64_t lda = (ta ? m : kk) + 2, ldb = n + 1, ldc = n + 3;
            float *a = take_floats(run, (ta ? kk : m) * lda), *b = take_floats(run, kk * ldb);
            float *c = take_floats(run, m * ldc), *dense = take_floats(run, m * n);
            double *want = take_doubles(run, m * n), *room = take_doubles(run, m * n);
            fill(a, (ta ? kk : m) * lda, NORMAL);
            fill(b, kk * ldb, NORMAL);
            if (whole) {
                for (int64_t i = 0; i < (ta ? kk : m) * lda; i++) a[i] = rintf(16 * a[i]);
                for (int64_t i = 0; i < kk * ldb; i++) b[i] = rintf(16 * b[i]);
            }
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = 0; j < n; j++) {
                    c[i * ldc + j] = whole ? rintf(16 * (float)normal()) : (float)normal();
                    double sum = c[i * ldc + j], size = fabs(sum) * 1e-5;
                    for (int64_t p = 0; p < kk; p++) {
                        const double term = (double)(ta ? a[p * lda + i] : a[i * lda + p]) * b[p * ldb + j];
                        sum += term;
                        size += fabs(term);
                    }
                    want[i * n + j] = sum;
                    room[i * n + j] = whole ? 0 : size * 0x1.02p-7;
                }
            k->gradient_matmul(ta, m, n, kk, a, lda, b, ldb, c, ldc);
            gather(c, m, n, ldc, dense);
            run->compared += m * n;
            for (int64_t i = 0; i < m * n; i++)
                if (!(fabs((double)dense[i] - want[i]) <= room[i])) {
                    fail(run, "%lld x %lld x %lld, form %d, %lld of row %lld: %.9g, not %.9g", (long long)m,
                         (long long)n, (long long)kk, form, (long long)(i % n), (long long)(i / n), (double)dense[i],
                         want[i]);
                    break;
                }
            gaps_intact(run, c, m, ldc, 0, n);
            release(run);
        }
}

CHECK(ternarise) {
    static const int64_t many_outs[] = {1, 15, 16, 17, 40};
    for (int a = 0; a < COUNT(in_widths); a++)
        for (int b = 0; b < COUNT(many_outs); b++)
            for (int form = 0; form < 2 * FILLS; form++) {
                const int kind = form % FILLS;
                const bool sparse = form >= FILLS;
                const int64_t in = in_widths[a], out = many_outs[b], group = (a + b) % 2 ? 128 : 64;
                if (kind != NORMAL && in * out > 10000) continue;
                const int64_t tiles = chm_ternary_tiles(out), bytes = chm_ternary_code_stride(CHM_ENCODING_T2, in);
                const int64_t stride = chm_ternary_scale_stride(in, group), groups = chm_ternary_groups(in, group);
                float *w = take_slice(run, out * in), *dequant = take_slice(run, out * in);
                float *dequant2 = take_slice(run, out * in);
                uint8_t *codes = take(run, tiles * bytes, 0), *scales = take(run, tiles * stride, 0);
                uint8_t *codes2 = take(run, tiles * bytes, 0), *scales2 = take(run, tiles * stride, 0);
                fill(w, out * in, (enum fill)kind);
                if (kind == NORMAL)
                    for (int64_t i = 0; i < out * in; i++) w[i] *= 0.02f;
                if (kind == ALL_EQUAL) /* exactly half a scale: ties to 0 where every other group is alike */
                    for (int64_t i = 0; i < out * in; i++) w[i] = i / in % 2 ? -0.5f : 1.0f;
                k->ternarise(w, out, in, group, sparse, 0, tiles, codes, scales, dequant);
                if (k != scalar) {
                    scalar->ternarise(w, out, in, group, sparse, 0, tiles, codes2, scales2, dequant2);
                    same_bytes(run, codes, codes2, tiles * bytes, "out %lld, in %lld, %s: codes", (long long)out,
                               (long long)in, fill_name[kind]);
                    same_bytes(run, scales, scales2, tiles * stride, "out %lld, in %lld, %s: scales", (long long)out,
                               (long long)in, fill_name[kind]);
                    same_floats(run, dequant, dequant2, out * in, "out %lld, in %lld, %s: dequant", (long long)out,
                                (long long)in, fill_name[kind]);
                }
                /* from the definition */
                const struct chm_ternary t = {codes, scales, out, in, group, CHM_ENCODING_T2, 0};
                if (kind != NOT_FINITE) {
                    for (int64_t o = 0; o < out; o++) {
                        uint8_t grid[256];
                        float row_scale, stored;
                        ref_ternary_grid(w + o * in, in, group, sparse, &row_scale, grid);
                        memcpy(&stored, scales + o / 16 * stride + 4 * (o % 16), 4);
                        same_floats(run, &stored, &row_scale, 1, "in %lld, %s: row scale", (long long)in,
                                    fill_name[kind]);
                        for (int64_t g = 0; g < groups; g++)
                            same_bytes(run, scales + o / 16 * stride + 64 + 16 * g + o % 16, grid + g, 1,
                                       "in %lld, %s: scale code", (long long)in, fill_name[kind]);
                        for (int64_t i = 0; i < in; i++) {
                            const float scale = ref_ternary_scale(&t, o, i);
                            const float x = nearbyintf(w[o * in + i] * (1 / scale));
                            const int trit = sparse   ? ref_sparse_trit(w + o * in, in, i)
                                             : x > 1  ? 1
                                             : x < -1 ? -1
                                                      : (int)x;
                            const float value = (float)trit * scale;
                            if (ref_trit(&t, o, i) != trit)
                                fail(run, "in %lld, %s: trit", (long long)in, fill_name[kind]);
                            same_floats(run, dequant + o * in + i, &value, 1, "in %lld, %s: trit * scale",
                                        (long long)in, fill_name[kind]);
                        }
                    }
                }
                /* what pads is weight 0 */
                for (int64_t o = 0; o < 16 * tiles; o++)
                    for (int64_t i = 0; i < (in + 63) / 64 * 64; i++)
                        if ((o >= out || i >= in) && ref_trit(&t, o, i) != 0) fail(run, "a padded trit is not 0");
                for (int64_t o = out; o < 16 * tiles; o++) {
                    float row_scale;
                    memcpy(&row_scale, scales + o / 16 * stride + 4 * (o % 16), 4);
                    if (bits_of(row_scale) != 0) fail(run, "a padded row has a scale");
                }
                /* tile by tile, without dequant */
                memset(codes2, 0, (size_t)(tiles * bytes));
                memset(scales2, 0, (size_t)(tiles * stride));
                for (int64_t i = tiles - 1; i >= 0; i--)
                    k->ternarise(w, out, in, group, sparse, i, i + 1, codes2, scales2, NULL);
                same_bytes(run, codes2, codes, tiles * bytes, "tile by tile: codes");
                same_bytes(run, scales2, scales, tiles * stride, "tile by tile: scales");
                release(run);
            }
}

CHECK(dequantise) {
    for (int c = 0; c < COUNT(in_widths); c++)
        for (int kind = 0; kind < FILLS; kind++) {
            const int64_t in = in_widths[c], rows = 3;
            const struct chm_activation a = make_activation(run, rows, in, (enum fill)kind);
            float *x = take_slice(run, rows * in), *x2 = take_slice(run, rows * in);
            k->dequantise(&a, in, x);
            if (k != scalar)
                scalar->dequantise(&a, in, x2);
            else
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t i = 0; i < in; i++)
                        x2[r * in + i] = (float)a.q[r * a.blocks * 64 + i] * a.scale[r * a.blocks + i / 64];
            same_floats(run, x, x2, rows * in, "in %lld, %s", (long long)in, fill_name[kind]);
            release(run);
        }
}

CHECK(unary_backward) {
    (void)scalar;
    enum { N = 2051 };
    for (int op = 0; op < CHM_UNARY_COUNT; op++) {
        float *x = take_slice(run, N), *y = take_slice(run, N), *dy = take_slice(run, N), *dx = take_slice(run, N);
        double *want = take_doubles(run, N);
        fill(x, N, NORMAL);
        fill(dy, N, NORMAL);
        for (int i = 0; i < N; i++) {
            x[i] *= 4;
            if (i < 8) x[i] = (float[]){0, -0.0f, 30, -30, 85, -85, 1e-40f, 1e-30f}[i];
            y[i] = (float)ref_unary((enum chm_unary)op, x[i]);
            dx[i] = 0.25f;
            if (op == CHM_EXP && x[i] > 10) x[i] = 1, y[i] = (float)exp(1.0);
            want[i] = 0.25 + dy[i] * ref_unary_derivative((enum chm_unary)op, x[i]);
        }
        k->unary_backward((enum chm_unary)op, x, y, dy, N, dx);
        close_to(run, dx, want, N, TOLERANCE_SUM, "%s", unary_name[op]);
        release(run);
    }
}

CHECK(swiglu_backward) {
    (void)scalar;
    enum { N = 2051 };
    float *g = take_slice(run, N), *u = take_slice(run, N), *dy = take_slice(run, N);
    float *dg = take_slice(run, N), *du = take_slice(run, N);
    double *want_g = take_doubles(run, N), *want_u = take_doubles(run, N);
    fill(g, N, NORMAL);
    fill(u, N, NORMAL);
    fill(dy, N, NORMAL);
    for (int i = 0; i < N; i++) {
        g[i] *= 4;
        dg[i] = du[i] = 0.25f;
        want_g[i] = 0.25 + (double)dy[i] * u[i] * ref_unary_derivative(CHM_SILU, g[i]);
        want_u[i] = 0.25 + dy[i] * ref_unary(CHM_SILU, g[i]);
    }
    k->swiglu_backward(g, u, dy, N, dg, du);
    close_to(run, dg, want_g, N, TOLERANCE_SUM, "dgate");
    close_to(run, du, want_u, N, TOLERANCE_SUM, "dup");
    release(run);
}

CHECK(rmsnorm_backward) {
    (void)scalar;
    run->least = 0.1;
    for (int a = 0; a < COUNT(widths); a++)
        for (int weighted = 0; weighted < 3; weighted++) {
            const int64_t width = widths[a], n = 6, weight_rows = weighted == 2 ? 3 : 1;
            float *x = take_slice(run, n * width), *w = weighted ? take_slice(run, weight_rows * width) : NULL;
            float *dy = take_slice(run, n * width), *dx = take_slice(run, n * width), *rstd = take_floats(run, n);
            float *dw = weighted ? take_slice(run, weight_rows * width) : NULL;
            double *want = take_doubles(run, n * width), *want_w = take_doubles(run, weight_rows * width);
            fill(x, n * width, NORMAL);
            fill(dy, n * width, NORMAL);
            if (w != NULL) fill(w, weight_rows * width, NORMAL);
            for (int64_t v = 0; v < n; v++) {
                double s = 0;
                for (int64_t i = 0; i < width; i++) s += (double)x[v * width + i] * x[v * width + i];
                rstd[v] = (float)(1 / sqrt(s / (double)width + 1e-5));
            }
            for (int64_t i = 0; i < n * width; i++) dx[i] = 0.25f;
            for (int64_t i = 0; dw != NULL && i < weight_rows * width; i++) dw[i] = 0.25f;
            k->rmsnorm_backward(x, n, width, w, weight_rows, rstd, dy, dx, dw);
            ref_norm_backward(x, n, width, 1e-5, true, w, weight_rows, dy, want, want_w);
            for (int64_t i = 0; i < n * width; i++) want[i] += 0.25;
            for (int64_t i = 0; i < weight_rows * width; i++) want_w[i] += 0.25;
            close_to(run, dx, want, n * width, TOLERANCE_SUM, "width %lld: dx", (long long)width);
            if (dw != NULL)
                close_to(run, dw, want_w, weight_rows * width, TOLERANCE_SUM, "width %lld: dweight", (long long)width);
            release(run);
        }
}

CHECK(l2norm_backward) {
    (void)scalar;
    run->least = 0.1;
    for (int a = 0; a < COUNT(widths); a++) {
        const int64_t width = widths[a], n = 5;
        float *x = take_slice(run, n * width), *y = take_slice(run, n * width), *dy = take_slice(run, n * width);
        float *dx = take_slice(run, n * width), *rnorm = take_floats(run, n);
        double *want = take_doubles(run, n * width);
        fill(x, n * width, NORMAL);
        fill(dy, n * width, NORMAL);
        for (int64_t v = 0; v < n; v++) {
            double s = 0;
            for (int64_t i = 0; i < width; i++) s += (double)x[v * width + i] * x[v * width + i];
            const double r = 1 / sqrt(s + 1e-6);
            rnorm[v] = (float)r;
            for (int64_t i = 0; i < width; i++) y[v * width + i] = (float)(x[v * width + i] * r);
        }
        for (int64_t i = 0; i < n * width; i++) dx[i] = 0.25f;
        k->l2norm_backward(y, n, width, rnorm, dy, dx);
        ref_norm_backward(x, n, width, 1e-6, false, NULL, 1, dy, want, NULL);
        for (int64_t i = 0; i < n * width; i++) want[i] += 0.25;
        close_to(run, dx, want, n * width, TOLERANCE_SUM, "width %lld", (long long)width);
        release(run);
    }
}

CHECK(softmax_xent) {
    (void)scalar;
    for (int a = 0; a < COUNT(widths); a++) {
        const int64_t vocab = widths[a], rows = 7, ld = vocab + 3;
        float *x = take_slice(run, rows * ld), *dense = take_floats(run, rows * vocab), *loss = take_floats(run, rows);
        int32_t *target = take(run, rows * 4, 0);
        double *want = take_doubles(run, rows * vocab), *want_loss = take_doubles(run, rows);
        for (int64_t r = 0; r < rows; r++) {
            fill(x + r * ld, vocab, NORMAL);
            for (int64_t i = 0; i < vocab; i++) x[r * ld + i] *= r == 1 ? 40 : 3;
            if (r == 2 && vocab > 2) x[r * ld + 1] = -INFINITY;
            target[r] = r == 3 ? -1 : (int32_t)(r == 2 ? 0 : random_bits() % (uint64_t)vocab);
            const double all = ref_logsumexp(x + r * ld, vocab);
            for (int64_t i = 0; i < vocab; i++)
                want[r * vocab + i] = target[r] < 0 ? 0 : 0.5 * (exp(x[r * ld + i] - all) - (i == target[r]));
            want_loss[r] = target[r] < 0 ? 0 : all - x[r * ld + target[r]];
        }
        k->softmax_xent(x, rows, vocab, ld, target, 0.5f, loss);
        gather(x, rows, vocab, ld, dense);
        close_to(run, dense, want, rows * vocab, TOLERANCE_SUM, "vocab %lld: gradient", (long long)vocab);
        close_to(run, loss, want_loss, rows, TOLERANCE_SUM, "vocab %lld: loss", (long long)vocab);
        gaps_intact(run, x, rows, ld, 0, vocab);
        release(run);
    }
}

CHECK(adamw) {
    (void)scalar;
    for (int n = 1; n < 300; n += 13) {
        float *w = take_slice(run, n), *g = take_slice(run, n), *m = take_slice(run, n), *v = take_slice(run, n);
        double *ww = take_doubles(run, n), *mm = take_doubles(run, n), *vv = take_doubles(run, n);
        fill(w, n, NORMAL);
        fill(g, n, NORMAL);
        fill(m, n, NORMAL);
        fill(v, n, NORMAL);
        const float gscale = 0.7f, lr = 0.01f, b1 = 0.9f, b2 = 0.95f, eps = 1e-8f, wd = 0.1f;
        const float bc1 = 1 - 0.9f * 0.9f, bc2 = 1 - 0.95f * 0.95f;
        for (int i = 0; i < n; i++) {
            v[i] = v[i] * v[i] * 0.1f;
            const double d = (double)g[i] * gscale;
            mm[i] = (double)b1 * m[i] + (1 - (double)b1) * d;
            vv[i] = (double)b2 * v[i] + (1 - (double)b2) * d * d;
            ww[i] = w[i] - (double)lr * (mm[i] / bc1 / (sqrt(vv[i] / bc2) + eps) + (double)wd * w[i]);
        }
        k->adamw(w, g, m, v, n, gscale, lr, b1, b2, eps, wd, bc1, bc2);
        close_to(run, w, ww, n, TOLERANCE_SUM, "%d numbers: w", n);
        close_to(run, m, mm, n, TOLERANCE_SUM, "%d numbers: m", n);
        close_to(run, v, vv, n, TOLERANCE_SUM, "%d numbers: v", n);
        release(run);
    }
}

/* ---- Checks: attention ------------------------------------------------------------------------------------------- */

static const int64_t entry_counts[] = {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 200, 513};

/* entries lie anywhere: the list is in another order than memory */
static const float **scattered(struct run *run, const float *from, int64_t n, int64_t width) {
    const float **list = take(run, n * (int64_t)sizeof *list, 0);
    for (int64_t e = 0; e < n; e++) list[e] = from + (e * 7 % n + (n % 7 == 0 ? e - e * 7 % n : 0)) * width;
    return list;
}

CHECK(attend) {
    run->least = 1; /* the size of what goes in */
    for (int s = 0; s < COUNT(head_shapes); s++)
        for (int c = 0; c < COUNT(entry_counts); c++)
            for (int kind = 0; kind < 4; kind++) {
                static const enum fill fills[] = {NORMAL, ALL_EQUAL, NOT_FINITE, HUGE_VALUES};
                const int64_t dk = head_shapes[s][0], dv = head_shapes[s][1], n = entry_counts[c];
                if (kind && c % 3) continue;
                float *q = take_slice(run, dk), *key = take_slice(run, n * dk), *value = take_slice(run, n * dv);
                float *weight = take_floats(run, n), *o = take_slice(run, dv), *o2 = take_slice(run, dv);
                fill(q, dk, NORMAL);
                fill(key, n * dk, fills[kind]);
                fill(value, n * dv, fills[kind] == HUGE_VALUES ? NORMAL : fills[kind]);
                const float **keys = scattered(run, key, n, dk), **values = scattered(run, value, n, dv);
                const float scale = s % 2 ? 0.125f : 2.0f;
                k->attend(q, keys, values, n, dk, dv, scale, weight, o);
                if (k != scalar) {
                    scalar->attend(q, keys, values, n, dk, dv, scale, weight, o2);
                    same_floats(run, o, o2, dv, "dk %lld, dv %lld, %lld entries, %s", (long long)dk, (long long)dv,
                                (long long)n, fill_name[fills[kind]]);
                } else if (fills[kind] == NORMAL || fills[kind] == ALL_EQUAL) {
                    float *flat_k = take_floats(run, n * dk), *flat_v = take_floats(run, n * dv);
                    double *want = take_doubles(run, dv);
                    for (int64_t e = 0; e < n; e++) {
                        memcpy(flat_k + e * dk, keys[e], (size_t)dk * sizeof *flat_k);
                        memcpy(flat_v + e * dv, values[e], (size_t)dv * sizeof *flat_v);
                    }
                    const struct chm_attend a = {.rows = 1,
                                                 .before = n - 1,
                                                 .window = n,
                                                 .dk = dk,
                                                 .dv = dv,
                                                 .q = q,
                                                 .k_before = flat_k,
                                                 .k = flat_k + (n - 1) * dk,
                                                 .v_before = flat_v,
                                                 .v = flat_v + (n - 1) * dv,
                                                 .ks = dk,
                                                 .vs = dv,
                                                 .scale = scale};
                    ref_attend(&a, want, NULL, NULL, NULL, NULL, NULL);
                    close_to(run, o, want, dv, TOLERANCE_ATTEND, "dk %lld, dv %lld, %lld entries", (long long)dk,
                             (long long)dv, (long long)n);
                }
                release(run);
            }
}

/* rows, before, window: smaller than, equal to and larger than the rows; tiles cut at odd places */
static const int64_t attend_shapes[][3] = {{1, 0, 1},    {1, 4, 5},     {2, 0, 512},    {5, 3, 2},      {17, 40, 9},
                                           {64, 0, 64},  {64, 63, 64},  {65, 12, 13},   {70, 130, 131}, {100, 99, 128},
                                           {130, 0, 64}, {150, 10, 11}, {200, 7, 1000}, {4096, 20, 30}};

static void check_attend_chunk_form(struct run *run, const struct chm_kernels *k, bool backward) {
    run->least = 1;
    for (int s = 0; s < COUNT(head_shapes); s++)
        for (int r = 0; r < COUNT(attend_shapes); r++) {
            const int64_t dk = head_shapes[s][0], dv = head_shapes[s][1];
            const int64_t rows = attend_shapes[r][0], before = attend_shapes[r][1], all = rows + before;
            if (rows > 1000 && s != 2) continue; /* one shape of heads says enough of so many rows */
            const int64_t qs = dk + 3, ks = dk + 1, vs = dv + 2, os = dv + 5;
            struct chm_attend a = {.rows = rows,
                                   .before = before,
                                   .window = attend_shapes[r][2],
                                   .dk = dk,
                                   .dv = dv,
                                   .qs = qs,
                                   .ks = ks,
                                   .vs = vs,
                                   .os = os,
                                   .scale = 1.0f / sqrtf((float)dk)};
            float *q = take_slice(run, rows * qs), *key = take_slice(run, rows * ks),
                  *value = take_slice(run, rows * vs);
            float *key0 = take_slice(run, before * ks + 1), *value0 = take_slice(run, before * vs + 1);
            float *o = take_slice(run, (rows - 1) * os + dv), *lse = take_floats(run, rows);
            float *scratch = take_floats(run, (int64_t)chm_attend_scratch(dk, dv));
            double *want = take_doubles(run, rows * dv), *want_lse = take_doubles(run, rows);
            fill(q, rows * qs, NORMAL);
            fill(key, rows * ks, NORMAL);
            fill(value, rows * vs, NORMAL);
            fill(key0, before * ks, NORMAL);
            fill(value0, before * vs, NORMAL);
            if (r % 4 == 1)
                for (int64_t i = 0; i < rows * qs; i++) q[i] *= 6; /* a few entries take all */
            for (int64_t t = 0; r % 4 == 2 && t < rows; t += 2)    /* keys of no length */
                memset(key + t * ks, 0, (size_t)dk * sizeof *key);
            a.q = q;
            a.k = key;
            a.v = value;
            a.k_before = key0;
            a.v_before = value0;
            float *out = take_floats(run, rows * dv);
            if (!backward) {
                ref_attend(&a, want, want_lse, NULL, NULL, NULL, NULL);
                k->attend_chunk(&a, o, lse, scratch);
                gather(o, rows, dv, os, out);
                close_to(run, out, want, rows * dv, TOLERANCE_ATTEND, "rows %lld, before %lld, window %lld, dv %lld",
                         (long long)rows, (long long)before, (long long)a.window, (long long)dv);
                close_to(run, lse, want_lse, rows, TOLERANCE_ATTEND, "rows %lld, before %lld: lse", (long long)rows,
                         (long long)before);
                for (int64_t t = 0; t + 1 < rows; t++)
                    for (int64_t i = dv; i < os; i++)
                        if (bits_of(o[t * os + i]) != 0xa5a5a5a5u) fail(run, "wrote between rows of the output");
                release(run);
                continue;
            }
            float *dout = take_slice(run, rows * os);
            double *wide = take_doubles(run, rows * dv), *dq = take_doubles(run, rows * dk);
            double *dkey = take_doubles(run, all * dk), *dvalue = take_doubles(run, all * dv);
            fill(dout, rows * os, NORMAL);
            for (int64_t t = 0; t < rows; t++) widen(dout + t * os, wide + t * dv, dv);
            ref_attend(&a, want, NULL, wide, dq, dkey, dvalue);
            k->attend_chunk(&a, o, lse, scratch);
            /* 0: dq, 1: earlier keys, 2: keys, 3: earlier values, 4: values */
            const int64_t count[5] = {rows, before, rows, before, rows}, stride[5] = {qs, ks, ks, vs, vs};
            const int64_t width[5] = {dk, dk, dk, dv, dv};
            const double *wants[5] = {dq, dkey, dkey + before * dk, dvalue, dvalue + before * dv};
            for (int only = -1; only < 5; only++) { /* all of them, then each alone */
                float *got[5];
                for (int g = 0; g < 5; g++) {
                    got[g] = take_slice(run, count[g] * stride[g] + 1);
                    for (int64_t i = 0; i < count[g] * stride[g]; i++) got[g][i] = 0.5f;
                }
#define WANTED(g) (only < 0 || only == (g) ? got[g] : NULL)
                k->attend_chunk_backward(&a, o, lse, dout, WANTED(0), WANTED(1), WANTED(2), WANTED(3), WANTED(4),
                                         scratch);
#undef WANTED
                for (int g = 0; g < 5; g++) {
                    float *flat = take_floats(run, count[g] * width[g] + 1);
                    double *sum = take_doubles(run, count[g] * width[g] + 1);
                    const bool wanted = only < 0 || only == g;
                    for (int64_t i = 0; i < count[g] * width[g]; i++) sum[i] = 0.5 + (wanted ? wants[g][i] : 0);
                    gather(got[g], count[g], width[g], stride[g], flat);
                    close_to(run, flat, sum, count[g] * width[g], TOLERANCE_BACKWARD,
                             "rows %lld, before %lld, window %lld, dk %lld, dv %lld: gradient %d", (long long)rows,
                             (long long)before, (long long)a.window, (long long)dk, (long long)dv, g);
                }
            }
            release(run);
        }
}

CHECK(attend_chunk) {
    (void)scalar;
    check_attend_chunk_form(run, k, false);
}
CHECK(attend_chunk_backward) {
    (void)scalar;
    check_attend_chunk_form(run, k, true);
}

/* ---- The slots --------------------------------------------------------------------------------------------------- */

#define SLOT(name, exact)                                                                                              \
    { #name, exact, offsetof(struct chm_kernels, name), check_##name }

static const struct slot {
    const char *name;
    bool exact;
    size_t offset;
    void (*check)(struct run *run, const struct chm_kernels *scalar, const struct chm_kernels *k);
} slots[] = {
    SLOT(quantise, true),
    SLOT(t2_matmul, true),
    SLOT(t5_matmul, true),
    SLOT(sherry_matmul, true),
    SLOT(int8_matmul, true),
    SLOT(f32_matmul, true),
    SLOT(rmsnorm, true),
    SLOT(l2norm, true),
    SLOT(unary, true),
    SLOT(swiglu, true),
    SLOT(logsumexp, true),
    SLOT(delta_step, true),
    SLOT(delta_read, true),
    SLOT(sgemm, false),
    SLOT(ternarise, true),
    SLOT(dequantise, true),
    SLOT(unary_backward, false),
    SLOT(swiglu_backward, false),
    SLOT(rmsnorm_backward, false),
    SLOT(l2norm_backward, false),
    SLOT(softmax_xent, false),
    SLOT(adamw, false),
    SLOT(delta_chunk, false),
    SLOT(delta_chunk_read, false),
    SLOT(delta_chunk_backward, false),
    SLOT(attend, true),
    SLOT(attend_chunk, false),
    SLOT(attend_chunk_backward, false),
    SLOT(gradient_matmul, false),
    SLOT(outer_step, true),
    SLOT(block_matmul, false),
};

static bool filled(const struct chm_kernels *k, size_t offset) {
    void (*f)(void);
    memcpy(&f, (const char *)k + offset, sizeof f);
    return f != NULL;
}

/* ---- Backends ---------------------------------------------------------------------------------------------------- */

enum { MOST_BACKENDS = 16 };
struct backend {
    const char *name;
    const struct chm_kernels *kernels;
    bool wanted; /* to be checked or timed itself */
};
static struct backend backends[MOST_BACKENDS];
static const char *only = "";
static int backend_count, skipped, failed, passed;

/* the first CPU feature that is missing, or NULL */
static const char *missing_feature(uint64_t needed) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    if ((needed & CHM_CPU_AVX2) && !__builtin_cpu_supports("avx2")) return "AVX2";
    if ((needed & CHM_CPU_FMA) && !__builtin_cpu_supports("fma")) return "FMA";
    if ((needed & CHM_CPU_AVX512) && !(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")))
        return "AVX-512";
    if ((needed & CHM_CPU_AVX512_VNNI) && !__builtin_cpu_supports("avx512vnni")) return "AVX512-VNNI";
    if ((needed & CHM_CPU_AVX512_VBMI) && !__builtin_cpu_supports("avx512vbmi")) return "AVX512-VBMI";
    uint32_t a = 0, b, c, d;
    if ((needed & CHM_CPU_AVX_VNNI) &&
        !(__builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4)))
        return "AVX-VNNI";
    if ((needed & CHM_CPU_AVX512_BF16) && !__builtin_cpu_supports("avx512bf16")) return "AVX512-BF16";
    const uint32_t tiles = 1u << 24 | 1u << 25; /* AMX-TILE, AMX-INT8; Linux hands tiles out on request */
    if ((needed & CHM_CPU_AMX_INT8) &&
        !(__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tiles) == tiles && syscall(SYS_arch_prctl, 0x1023, 18) == 0))
        return "AMX-INT8";
    if (needed & ~(uint64_t)(CHM_CPU_AVX2 | CHM_CPU_FMA | CHM_CPU_AVX512 | CHM_CPU_AVX512_VNNI | CHM_CPU_AVX512_VBMI |
                             CHM_CPU_AVX_VNNI | CHM_CPU_AVX512_BF16 | CHM_CPU_AMX_INT8))
        return "a feature this program cannot detect";
    return NULL;
#elif defined(__aarch64__) && defined(__linux__)
    if ((needed & CHM_CPU_DOTPROD) && !(getauxval(AT_HWCAP) & HWCAP_ASIMDDP)) return "DotProd";
    return needed & ~(uint64_t)(CHM_CPU_NEON | CHM_CPU_DOTPROD) ? "a feature this program cannot detect" : NULL;
#else
    return needed != 0 ? "a feature this program cannot detect" : NULL;
#endif
}

static int by_name(const void *a, const void *b) {
    const struct backend *x = a, *y = b; /* scalar first: the others are held against it */
    const bool sx = strcmp(x->name, "scalar") == 0, sy = strcmp(y->name, "scalar") == 0;
    return sx != sy ? sy - sx : strcmp(x->name, y->name);
}

static void add(const char *name, uint64_t cpu, const struct chm_kernels *kernels) {
    const bool wanted = strstr(name, only) != NULL;
    if (!wanted && strcmp(name, "scalar") != 0) return;
    const char *feature = missing_feature(cpu);
    if (feature != NULL) {
        printf("%-20s SKIPPED, all of it: this CPU lacks %s\n", name, feature);
        skipped++;
        return;
    }
    if (backend_count == MOST_BACKENDS) abort();
    backends[backend_count++] = (struct backend){name, kernels, wanted};
}

static void load(const char *path) {
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (object == NULL) {
        printf("%s: FAILED to load: %s\n", path, dlerror());
        failed++;
        return;
    }
    const struct chm_plugin *plugin = dlsym(object, "chimera_plugin");
    if (plugin == NULL || plugin->magic != CHM_MAGIC || plugin->abi != CHM_ABI) {
        printf("%s: FAILED: no descriptor of this ABI\n", path);
        failed++;
        return;
    }
    if (plugin->kind != CHM_KIND_BACKEND) return;
    const struct chm_backend_ops *ops = plugin->ops;
    add(plugin->name, plugin->cpu, &ops->kernels);
    for (uint32_t i = 0; ops->size >= sizeof *ops && i < ops->level_count; i++)
        add(ops->levels[i]->name, plugin->cpu | ops->levels[i]->cpu, &ops->levels[i]->kernels);
}

static bool load_all(const char *directory) {
    DIR *d = opendir(directory);
    if (d == NULL) return false;
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        const size_t n = strlen(e->d_name);
        if (n < 4 || strcmp(e->d_name + n - 3, ".so") != 0) continue;
        char path[4096];
        if (snprintf(path, sizeof path, "%s/%s", directory, e->d_name) >= (int)sizeof path) continue;
        load(path);
    }
    closedir(d);
    qsort(backends, (size_t)backend_count, sizeof backends[0], by_name);
    return true;
}

static void check_all(void) {
    static struct run run;
    for (int b = 0; b < backend_count; b++)
        for (int s = 0; s < COUNT(slots); s++) {
            if (!backends[b].wanted || !filled(backends[b].kernels, slots[s].offset)) continue;
            memset(&run, 0, sizeof run);
            run.least = 1e-30;
            random_state = 1000u + (uint64_t)s;
            random_state = s + 1; /* every backend gets the same, whatever other slots there are */
            slots[s].check(&run, backends[0].kernels, backends[b].kernels);
            printf("%-20s %-21s %-9s %9lld values", backends[b].name, slots[s].name,
                   slots[s].exact ? "exact" : "tolerance", (long long)run.compared);
            if (run.worst > 0) printf("  worst %3.0f %% of the tolerance", 100 * run.worst);
            if (run.failed > 0) {
                printf("  FAILED %lld times; first: %s", (long long)run.failed, run.first);
                failed++;
            } else {
                passed++;
            }
            printf("\n");
            fflush(stdout);
        }
}

/* ---- Timing ------------------------------------------------------------------------------------------------------ */

struct bench {
    const char *name;
    size_t offset;
    int64_t a, b, c; /* sizes, as the bench takes them */
    void (*run)(const struct chm_kernels *k, const struct bench *bench);
    double work; /* units a call */
    const char *unit;
};

/* Arguments of the bench under way; plenty of everything. */
static struct {
    struct run memory;
    float *x, *y, *z, *w, *u;
    float *scratch;
    const float **list;
    int32_t *target;
    struct chm_ternary ternary;
    struct chm_activation activation;
    struct chm_int8_matrix int8;
} at;

static void bench_quantise(const struct chm_kernels *k, const struct bench *b) {
    k->quantise(at.x, b->a, b->b, (int8_t *)at.y, at.z, (int32_t *)at.w);
}
static void bench_ternary(const struct chm_kernels *k, const struct bench *b) {
    chm_ternary_kernel(k, at.ternary.encoding)(&at.ternary, 0, chm_ternary_tiles(b->a), &at.activation, at.y, b->a);
}
static void bench_int8(const struct chm_kernels *k, const struct bench *b) {
    k->int8_matmul(&at.int8, 0, b->a, &at.activation, at.y, b->a);
}
static void bench_f32(const struct chm_kernels *k, const struct bench *b) {
    k->f32_matmul(at.w, 0, b->a, b->b, at.x, b->c, at.y, b->a);
}
static void bench_rmsnorm(const struct chm_kernels *k, const struct bench *b) {
    k->rmsnorm(at.x, b->a, b->b, 1e-5f, at.w, 1, at.y, at.z);
}
static void bench_l2norm(const struct chm_kernels *k, const struct bench *b) {
    k->l2norm(at.x, b->a, b->b, 1e-6f, at.y, at.z);
}
static void bench_unary(const struct chm_kernels *k, const struct bench *b) {
    k->unary((enum chm_unary)b->c, at.x, b->a, at.y);
}
static void bench_swiglu(const struct chm_kernels *k, const struct bench *b) { k->swiglu(at.x, at.w, b->a, at.y); }
static void bench_logsumexp(const struct chm_kernels *k, const struct bench *b) { at.z[0] = k->logsumexp(at.x, b->a); }
static void bench_step(const struct chm_kernels *k, const struct bench *b) {
    k->delta_step(at.y, b->a, b->b, at.x, at.w, at.u, -0.1f, 0.5f, 0.125f, at.z);
}
static void bench_read(const struct chm_kernels *k, const struct bench *b) {
    k->delta_read(at.x, b->a, b->b, at.w, 0.125f, at.z);
}
static void bench_outer(const struct chm_kernels *k, const struct bench *b) {
    k->outer_step(at.y, b->a, b->b, at.x, at.w, at.u, 0.9f, 0.125f, at.z);
}
static void bench_block(const struct chm_kernels *k, const struct bench *b) {
    k->block_matmul(b->a, b->b, b->c, at.x, b->c, 1, at.w, b->b, at.y, b->b, 1);
}
static void bench_sgemm_nn(const struct chm_kernels *k, const struct bench *b) {
    k->sgemm(false, false, b->a, b->b, b->c, at.x, b->c, at.w, b->b, 0, at.y, b->b);
}
static void bench_sgemm_tn(const struct chm_kernels *k, const struct bench *b) {
    k->sgemm(true, false, b->a, b->b, b->c, at.x, b->a, at.w, b->b, 1, at.y, b->b);
}
static void bench_gradient_n(const struct chm_kernels *k, const struct bench *b) {
    k->gradient_matmul(false, b->a, b->b, b->c, at.x, b->c, at.w, b->b, at.y, b->b);
}
static void bench_gradient_t(const struct chm_kernels *k, const struct bench *b) {
    k->gradient_matmul(true, b->a, b->b, b->c, at.x, b->a, at.w, b->b, at.y, b->b);
}
static void bench_sgemm_nt(const struct chm_kernels *k, const struct bench *b) {
    k->sgemm(false, true, b->a, b->b, b->c, at.x, b->c, at.w, b->c, 0, at.y, b->b);
}
static void bench_ternarise(const struct chm_kernels *k, const struct bench *b) {
    k->ternarise(at.x, b->a, b->b, 128, false, 0, chm_ternary_tiles(b->a), (uint8_t *)at.y, (uint8_t *)at.z, at.w);
}
static void bench_dequantise(const struct chm_kernels *k, const struct bench *b) {
    k->dequantise(&at.activation, b->b, at.y);
}
static void bench_unary_backward(const struct chm_kernels *k, const struct bench *b) {
    k->unary_backward((enum chm_unary)b->c, at.x, at.w, at.u, b->a, at.y);
}
static void bench_swiglu_backward(const struct chm_kernels *k, const struct bench *b) {
    k->swiglu_backward(at.x, at.w, at.u, b->a, at.y, at.z);
}
static void bench_rmsnorm_backward(const struct chm_kernels *k, const struct bench *b) {
    k->rmsnorm_backward(at.x, b->a, b->b, at.w, 1, at.u, at.w, at.y, at.z);
}
static void bench_l2norm_backward(const struct chm_kernels *k, const struct bench *b) {
    k->l2norm_backward(at.x, b->a, b->b, at.u, at.w, at.y);
}
static void bench_xent(const struct chm_kernels *k, const struct bench *b) {
    k->softmax_xent(at.y, b->a, b->b, b->b, at.target, 0.01f, at.z);
}
static void bench_adamw(const struct chm_kernels *k, const struct bench *b) {
    k->adamw(at.y, at.x, at.z, at.u, b->a, 1e-3f, 1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 0.5f);
}
/* q, k in x and w scaled to unit length, gates in target's place: all from the same buffers */
static void bench_chunk(const struct chm_kernels *k, const struct bench *b) {
    memset(at.y, 0, (size_t)(b->b * b->b) * sizeof *at.y);
    k->delta_chunk(at.y, b->b, b->b, b->a, at.x, 192, at.x + 64, 192, at.x + 128, 192, at.u, at.u + 64, 1, 0.125f, at.z,
                   192, at.scratch);
}
static void bench_chunk_read(const struct chm_kernels *k, const struct bench *b) {
    k->delta_chunk_read(at.w, b->b, b->b, b->a, at.x, 192, at.x + 64, 192, at.x + 128, 192, at.u, at.u + 64, 1, 0.125f,
                        at.z, 192, at.scratch);
}
static void bench_chunk_backward(const struct chm_kernels *k, const struct bench *b) {
    float *z = at.z;
    memset(at.y, 0, (size_t)(b->b * b->b) * sizeof *at.y);
    k->delta_chunk_backward(at.w, b->b, b->b, b->a, 1, (const float *const[]){at.x}, 192, at.x + 64, 192, at.x + 128,
                            192, at.u, at.u + 64, 1, 0.125f, (const float *const[]){at.w + 8192}, 192,
                            (float *const[]){z}, z + 64, z + 128, z + 16384, z + 16384 + 64, at.y, at.scratch);
}

/* a entries of b columns: one row */
static void bench_attend(const struct chm_kernels *k, const struct bench *b) {
    k->attend(at.u, at.list, at.list + b->a, b->a, b->b, b->b, 0.125f, at.scratch, at.y);
}
/* a rows of b columns, window c, all of it carried */
static struct chm_attend bench_rows(const struct bench *b) {
    return (struct chm_attend){.rows = b->a,
                               .before = b->c - 1,
                               .window = b->c,
                               .dk = b->b,
                               .dv = b->b,
                               .q = at.x,
                               .k_before = at.w,
                               .k = at.w + b->c * b->b,
                               .v_before = at.w + 131072,
                               .v = at.w + 131072 + b->c * b->b,
                               .qs = b->b,
                               .ks = b->b,
                               .vs = b->b,
                               .os = b->b,
                               .scale = 0.125f};
}
static void bench_attend_chunk(const struct chm_kernels *k, const struct bench *b) {
    const struct chm_attend a = bench_rows(b);
    k->attend_chunk(&a, at.y, at.z, at.scratch);
}
static void bench_attend_backward(const struct chm_kernels *k, const struct bench *b) {
    const struct chm_attend a = bench_rows(b);
    memset(at.y, 0, (size_t)(4 * (b->a + b->c) * b->b) * sizeof *at.y);
    float *y = at.y;
    k->attend_chunk_backward(&a, at.x, at.z, at.x + 65536, y, y + 65536, y + 131072, y + 196608, y + 262144,
                             at.scratch);
}

#define B(label, slot, f, a, b, c, work, unit)                                                                         \
    { label, offsetof(struct chm_kernels, slot), a, b, c, f, work, unit }
/* multiply-adds of the chunk forms, triangles counted as halves; n rows, d wide */
#define CHUNK_MACS(n, d)    (3.0 * (n) * (d) * (d) + 1.0 * (n) * (n) * (d) + 1.0 * (n) * (n) * (d))
#define READ_MACS(n, d)     (2.0 * (n) * (d) * (d) + 2.0 * (n) * (n) * (d))
#define BACKWARD_MACS(n, d) (7.0 * (n) * (d) * (d) + 5.5 * (n) * (n) * (d))

#define TERNARY_SHAPE(slot, out, in, rows)                                                                             \
    B(#slot " " #out "x" #in " rows " #rows, slot, bench_ternary, out, in, rows, (double)(rows) * (out) * (in)*1e-9,   \
      "GMAC/s")
#define TERNARY(slot)                                                                                                  \
    TERNARY_SHAPE(slot, 512, 192, 1), TERNARY_SHAPE(slot, 512, 192, 4), TERNARY_SHAPE(slot, 512, 192, 64),             \
        TERNARY_SHAPE(slot, 2560, 2560, 1), TERNARY_SHAPE(slot, 2560, 2560, 2), TERNARY_SHAPE(slot, 2560, 2560, 3),    \
        TERNARY_SHAPE(slot, 2560, 2560, 4), TERNARY_SHAPE(slot, 2560, 2560, 64), TERNARY_SHAPE(slot, 27648, 6912, 1)

static const struct bench benches[] = {
    B("quantise 64x2560", quantise, bench_quantise, 64, 2560, 0, 64 * 2560 * 4e-9, "GB/s in"),
    TERNARY(t2_matmul),
    TERNARY(t5_matmul),
    TERNARY(sherry_matmul),
    B("int8_matmul 256x192 rows 1", int8_matmul, bench_int8, 256, 192, 1, 256 * 192e-9, "GMAC/s"),
    B("int8_matmul 256x192 rows 64", int8_matmul, bench_int8, 256, 192, 64, 64 * 256 * 192e-9, "GMAC/s"),
    B("int8_matmul 16384x2560 rows 1", int8_matmul, bench_int8, 16384, 2560, 1, 16384 * 2560e-9, "GB/s"),
    B("f32_matmul 40x2560 rows 1", f32_matmul, bench_f32, 40, 2560, 1, 40 * 2560e-9, "GMAC/s"),
    B("f32_matmul 40x2560 rows 64", f32_matmul, bench_f32, 40, 2560, 64, 64 * 40 * 2560e-9, "GMAC/s"),
    B("f32_matmul 3x192 rows 64", f32_matmul, bench_f32, 3, 192, 64, 64 * 3 * 192e-9, "GMAC/s"),
    B("f32_matmul 512x192 rows 64", f32_matmul, bench_f32, 512, 192, 64, 64 * 512 * 192e-9, "GMAC/s"),
    B("rmsnorm 64x192", rmsnorm, bench_rmsnorm, 64, 192, 0, 64 * 192 * 8e-9, "GB/s"),
    B("rmsnorm 64x2560", rmsnorm, bench_rmsnorm, 64, 2560, 0, 64 * 2560 * 8e-9, "GB/s"),
    B("l2norm 256x64", l2norm, bench_l2norm, 256, 64, 0, 256 * 64 * 8e-9, "GB/s"),
    B("unary silu 8192", unary, bench_unary, 8192, 0, CHM_SILU, 8192e-9, "G/s"),
    B("unary sigmoid 8192", unary, bench_unary, 8192, 0, CHM_SIGMOID, 8192e-9, "G/s"),
    B("unary tanh 8192", unary, bench_unary, 8192, 0, CHM_TANH, 8192e-9, "G/s"),
    B("unary exp 8192", unary, bench_unary, 8192, 0, CHM_EXP, 8192e-9, "G/s"),
    B("unary softplus 8192", unary, bench_unary, 8192, 0, CHM_SOFTPLUS, 8192e-9, "G/s"),
    B("unary relu2 8192", unary, bench_unary, 8192, 0, CHM_RELU2, 8192e-9, "G/s"),
    B("swiglu 8192", swiglu, bench_swiglu, 8192, 0, 0, 8192e-9, "G/s"),
    B("logsumexp 8192", logsumexp, bench_logsumexp, 8192, 0, 0, 8192e-9, "G/s"),
    B("delta_step 64x64", delta_step, bench_step, 64, 64, 0, 3 * 64 * 64e-9, "GMAC/s"),
    B("delta_step 32x32", delta_step, bench_step, 32, 32, 0, 3 * 32 * 32e-9, "GMAC/s"),
    B("delta_read 64x64", delta_read, bench_read, 64, 64, 0, 64 * 64e-9, "GMAC/s"),
    B("outer_step 64x64", outer_step, bench_outer, 64, 64, 0, 2 * 64 * 64e-9, "GMAC/s"),
    B("block_matmul 64x64x64", block_matmul, bench_block, 64, 64, 64, 64 * 64 * 64e-9, "GMAC/s"),
    B("sgemm NN 512x192x512", sgemm, bench_sgemm_nn, 512, 192, 512, 512 * 192 * 512e-9, "GMAC/s"),
    B("sgemm TN 512x192x256", sgemm, bench_sgemm_tn, 512, 192, 256, 256 * 192 * 512e-9, "GMAC/s"),
    B("sgemm NT 256x512x192", sgemm, bench_sgemm_nt, 256, 512, 192, 256 * 192 * 512e-9, "GMAC/s"),
    B("ternarise 512x192", ternarise, bench_ternarise, 512, 192, 0, 512 * 192e-9, "G weights/s"),
    B("dequantise 64x2560", dequantise, bench_dequantise, 0, 2560, 64, 64 * 2560e-9, "G/s"),
    B("unary_backward silu 8192", unary_backward, bench_unary_backward, 8192, 0, CHM_SILU, 8192e-9, "G/s"),
    B("swiglu_backward 8192", swiglu_backward, bench_swiglu_backward, 8192, 0, 0, 8192e-9, "G/s"),
    B("rmsnorm_backward 64x192", rmsnorm_backward, bench_rmsnorm_backward, 64, 192, 0, 64 * 192e-9, "G/s"),
    B("l2norm_backward 256x64", l2norm_backward, bench_l2norm_backward, 256, 64, 0, 256 * 64e-9, "G/s"),
    B("softmax_xent 64x256", softmax_xent, bench_xent, 64, 256, 0, 64 * 256e-9, "G/s"),
    B("adamw 65536", adamw, bench_adamw, 65536, 0, 0, 65536e-9, "G/s"),
    B("delta_chunk 64 rows 64x64", delta_chunk, bench_chunk, 64, 64, 0, CHUNK_MACS(64, 64) * 1e-9, "GMAC/s"),
    B("delta_chunk 64 rows 32x32", delta_chunk, bench_chunk, 64, 32, 0, CHUNK_MACS(64, 32) * 1e-9, "GMAC/s"),
    B("delta_chunk_read 64 rows 64x64", delta_chunk_read, bench_chunk_read, 64, 64, 0, READ_MACS(64, 64) * 1e-9,
      "GMAC/s"),
    B("delta_chunk_backward 64 rows 64x64", delta_chunk_backward, bench_chunk_backward, 64, 64, 0,
      BACKWARD_MACS(64, 64) * 1e-9, "GMAC/s"),
    B("delta_chunk_backward 64 rows 32x32", delta_chunk_backward, bench_chunk_backward, 64, 32, 0,
      BACKWARD_MACS(64, 32) * 1e-9, "GMAC/s"),
    B("gradient_matmul N 256x512x1408", gradient_matmul, bench_gradient_n, 256, 512, 1408, 256 * 512 * 1408e-9,
      "GMAC/s"),
    B("gradient_matmul T 64x512x1024", gradient_matmul, bench_gradient_t, 64, 512, 1024, 64 * 512 * 1024e-9, "GMAC/s"),
    B("gradient_matmul T 64x192x1024", gradient_matmul, bench_gradient_t, 64, 192, 1024, 64 * 192 * 1024e-9, "GMAC/s"),
    B("attend 512 entries of 64", attend, bench_attend, 512, 64, 0, 2 * 512 * 64e-9, "GMAC/s"),
    B("attend 64 entries of 64", attend, bench_attend, 64, 64, 0, 2 * 64 * 64e-9, "GMAC/s"),
    B("attend 512 entries of 32", attend, bench_attend, 512, 32, 0, 2 * 512 * 32e-9, "GMAC/s"),
    B("attend_chunk 256 rows of 64 window 512", attend_chunk, bench_attend_chunk, 256, 64, 512, 2 * 256 * 512 * 64e-9,
      "GMAC/s"),
    B("attend_chunk_backward 256x64 512", attend_chunk_backward, bench_attend_backward, 256, 64, 512,
      5 * 256 * 512 * 64e-9, "GMAC/s"),
};

static void prepare(const struct bench *b) {
    const int64_t n = 1 << 20;
    at.x = take_floats(&at.memory, n);
    at.y = take_floats(&at.memory, n);
    at.z = take_floats(&at.memory, n);
    at.w = take_floats(&at.memory, n);
    at.u = take_floats(&at.memory, n);
    at.scratch = take_floats(&at.memory, (int64_t)chm_delta_scratch(256, 256));
    at.target = take(&at.memory, 65536, 0);
    fill(at.x, n, NORMAL);
    fill(at.w, n, NORMAL);
    memset(at.y, 0, (size_t)n * 4);
    memset(at.z, 0, (size_t)n * 4);
    memset(at.target, 0, 65536);
    for (int64_t i = 0; i < n; i++) at.u[i] = (float)uniform();
    if (b->run == bench_chunk || b->run == bench_chunk_read || b->run == bench_chunk_backward || b->run == bench_step) {
        for (int64_t i = 0; i < 64; i++) at.u[i] = -0.2f * at.u[i];
        for (int64_t i = 0; i < n; i++) at.x[i] *= 0.125f, at.w[i] *= 0.125f;
    }
    if (b->run == bench_attend) {
        at.list = take(&at.memory, 2 * b->a * (int64_t)sizeof *at.list, 0);
        for (int64_t e = 0; e < 2 * b->a; e++) at.list[e] = at.w + e * b->b;
    }
    if (b->run == bench_attend_chunk || b->run == bench_attend_backward) {
        const struct chm_attend a = bench_rows(b);
        backends[0].kernels->attend_chunk(&a, at.y, at.z, at.scratch);
    }
    if (b->run == bench_ternary || b->run == bench_int8 || b->run == bench_dequantise)
        at.activation = make_activation(&at.memory, b->c, b->b, NORMAL);
    if (b->run == bench_ternary) {
        const int32_t encoding = b->offset == offsetof(struct chm_kernels, t5_matmul)       ? CHM_ENCODING_T5
                                 : b->offset == offsetof(struct chm_kernels, sherry_matmul) ? CHM_ENCODING_SHERRY
                                                                                            : CHM_ENCODING_T2;
        at.ternary = make_ternary(&at.memory, encoding, b->a, b->b, 128, false);
    }
    if (b->run == bench_int8) {
        int8_t *q = take(&at.memory, b->a * b->b, 0);
        for (int64_t i = 0; i < b->a * b->b; i++) q[i] = (int8_t)(i * 37 % 127);
        at.int8 = (struct chm_int8_matrix){q, at.u, b->a, b->b, b->b / 64};
    }
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* medians of interleaved samples, each long enough for the clock; CPU time of this thread, so that a busy machine does
 * not show, except in what memory bandwidth and caches others leave */
static void bench_all(const char *prefix) {
    enum { SAMPLES = 15 };
    printf("%-36s", "median (best)");
    for (int i = 0; i < backend_count; i++) printf(" %32s", backends[i].name);
    printf("\n");
    for (int n = 0; n < COUNT(benches); n++) {
        const struct bench *b = &benches[n];
        if (strncmp(b->name, prefix, strlen(prefix)) != 0) continue;
        double sample[MOST_BACKENDS][SAMPLES];
        int64_t calls[MOST_BACKENDS];
        random_state = 7;
        prepare(b);
        for (int s = -1; s < SAMPLES; s++)
            for (int i = 0; i < backend_count; i++) {
                const struct chm_kernels *k = backends[i].kernels;
                if (!filled(k, b->offset)) continue;
                if (s < 0) { /* warm up and find how many calls take two milliseconds */
                    b->run(k, b);
                    const double start = seconds();
                    b->run(k, b);
                    calls[i] = 1 + (int64_t)(0.002 / (seconds() - start + 1e-9));
                    continue;
                }
                const double start = seconds();
                for (int64_t c = 0; c < calls[i]; c++) b->run(k, b);
                sample[i][s] = (seconds() - start) / (double)calls[i];
            }
        printf("%-36s", b->name);
        for (int i = 0; i < backend_count; i++) {
            if (!filled(backends[i].kernels, b->offset)) {
                printf(" %32s", "-");
                continue;
            }
            qsort(sample[i], SAMPLES, sizeof sample[i][0], by_value);
            const double t = sample[i][SAMPLES / 2];
            printf(" %10.0f ns %8.2f (%7.2f)", t * 1e9, b->work / t, b->work / sample[i][0]);
        }
        printf("  %s\n", b->unit);
        fflush(stdout);
        release(&at.memory);
    }
}

int main(int argc, char **argv) {
    const char *directories[8] = {NULL}, *prefix = NULL;
    int count = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--bench") == 0) {
            prefix = i + 1 < argc && strchr(argv[i + 1], '/') == NULL ? argv[++i] : "";
        } else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
            only = argv[++i];
        } else if (argv[i][0] == '-' || count == COUNT(directories)) {
            fprintf(stderr, "usage: checkkernels [--only NAME] [DIR..] | checkkernels --bench [NAME] [DIR..]\n");
            return 2;
        } else {
            directories[count++] = argv[i];
        }
    }
    char beside[4096];
    if (count == 0) { /* tests/checkkernels and plugins/backends are neighbours in the build tree */
        const char *slash = strrchr(argv[0], '/');
        snprintf(beside, sizeof beside, "%.*s/../plugins/backends", slash ? (int)(slash - argv[0]) : 1,
                 slash ? argv[0] : ".");
        directories[count++] = beside;
    }
    for (int i = 0; i < count; i++)
        if (!load_all(directories[i])) {
            fprintf(stderr, "checkkernels: cannot read the directory %s\n", directories[i]);
            return 1;
        }
    if (backend_count == 0 || strcmp(backends[0].name, "scalar") != 0) {
        fprintf(stderr, "checkkernels: no scalar backend in %s; give the directory that holds scalar.so\n",
                directories[0]);
        return 1;
    }
    if (prefix != NULL) {
        bench_all(prefix);
        return 0;
    }
    check_all();
    printf("checkkernels: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    if (passed + failed + skipped == 0) {
        fprintf(stderr, "checkkernels: no backend here has '%s' in its name\n", only);
        return 1;
    }
    return failed > 0;
}
