/*
 * neon_products.h: the ternary and the int8 products with 128-bit vectors. Included twice: by neon.c, and by
 * neon_dotprod.c with NEON_DOTPROD, where sdot multiplies and adds four bytes to an int32 at once.
 *
 * A vector of codes is four quarters, each 4 rows of a tile x 4 bytes: multiplied by 4 activations broadcast it adds to
 * 4 sums, one of each row. Codes are w + 1 in 0..2; the sum of the activations is subtracted from the dot. Sums of
 * fields that stay where they are in the byte carry 4 or 16 and are divided exactly. Without the dot product the sums
 * are int16, which hold a superblock: 16 steps of at most 127 * 8, where every product has a sum of its own.
 */
#include "neon.h"

enum {
#if defined(NEON_DOTPROD)
    MOST_ROWS = 4, /* whose sums the registers hold */
#else
    MOST_ROWS = 2,
#endif
    MOST_FIELDS = 5,       /* blocks in a superblock */
    PREFETCH_BYTES = 2048, /* codes stream from memory once */
    BAND_BYTES = 128 << 10,
};

#if defined(NEON_DOTPROD)
typedef int32x4_t partial;
ALWAYS_INLINE partial no_sum(void) { return vdupq_n_s32(0); }
/* sum + codes times the four bytes q[4 * lane ..] */
ALWAYS_INLINE partial multiply_add(partial sum, int8x16_t codes, int8x16_t q, const int lane) {
    switch (lane) { /* instructions have the lane in them */
    case 0:
        return vdotq_laneq_s32(sum, codes, q, 0);
    case 1:
        return vdotq_laneq_s32(sum, codes, q, 1);
    case 2:
        return vdotq_laneq_s32(sum, codes, q, 2);
    default:
        return vdotq_laneq_s32(sum, codes, q, 3);
    }
}
ALWAYS_INLINE int32x4_t four_sums(partial sum) { return sum; }
#else
typedef int16x8x2_t partial; /* two rows in each */
ALWAYS_INLINE partial no_sum(void) { return (partial){{vdupq_n_s16(0), vdupq_n_s16(0)}}; }
ALWAYS_INLINE int8x16_t broadcast4(int8x16_t q, const int lane) {
    const int32x4_t fours = vreinterpretq_s32_s8(q);
    switch (lane) {
    case 0:
        return vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 0));
    case 1:
        return vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 1));
    case 2:
        return vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 2));
    default:
        return vreinterpretq_s8_s32(vdupq_laneq_s32(fours, 3));
    }
}
ALWAYS_INLINE partial multiply_add(partial sum, int8x16_t codes, int8x16_t q, const int lane) {
    const int8x16_t a = broadcast4(q, lane);
    sum.val[0] = vmlal_s8(sum.val[0], vget_low_s8(codes), vget_low_s8(a));
    sum.val[1] = vmlal_high_s8(sum.val[1], codes, a);
    return sum;
}
ALWAYS_INLINE int32x4_t four_sums(partial sum) { return vpaddq_s32(vpaddlq_s16(sum.val[0]), vpaddlq_s16(sum.val[1])); }
#endif

/* Four 2-bit fields of each byte, ready for multiply_add(): the second four times its code, the third, if sums are
 * int32, sixteen times. */
ALWAYS_INLINE void split(uint8x16_t codes, int8x16_t field[MOST_FIELDS]) {
    field[0] = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(3)));
    field[1] = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(12)));
#if defined(NEON_DOTPROD)
    field[2] = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(48)));
#else
    field[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 4), vdupq_n_u8(3)));
#endif
    field[3] = vreinterpretq_s8_u8(vshrq_n_u8(codes, 6));
}

/* codes times activations out of the sums of field f as split() and split5() have it */
ALWAYS_INLINE int32x4_t field_sum(partial sum, const int f) {
    const int32x4_t s = four_sums(sum);
    if (f == 1) return vshrq_n_s32(s, 2);
#if defined(NEON_DOTPROD)
    if (f == 2) return vshrq_n_s32(s, 4);
#endif
    return f == 4 ? vnegq_s32(s) : s;
}

#define FOUR(of, n)    of(n), of((n) + 1), of((n) + 2), of((n) + 3)
#define SIXTEEN(of, n) FOUR(of, n), FOUR(of, (n) + 4), FOUR(of, (n) + 8), FOUR(of, (n) + 12)

/* T5: 84 c4 + r, where r finds its four codes in a table. The fifth field is -c4, what two comparisons make. */
#define T5_FIELDS(r) (uint8_t)((r) % 3 | (r) / 3 % 3 << 2 | (r) / 9 % 3 << 4 | (r) / 27 % 3 << 6)
static const uint8_t t5_fields[96] = {SIXTEEN(T5_FIELDS, 0),  SIXTEEN(T5_FIELDS, 16), SIXTEEN(T5_FIELDS, 32),
                                      SIXTEEN(T5_FIELDS, 48), SIXTEEN(T5_FIELDS, 64), SIXTEEN(T5_FIELDS, 80)};

ALWAYS_INLINE void split5(uint8x16_t codes, int8x16_t field[MOST_FIELDS]) {
    const uint8x16x4_t low = vld1q_u8_x4(t5_fields);
    const uint8x16x2_t high = vld1q_u8_x2(t5_fields + 64);
    const uint8x16_t one = vcgeq_u8(codes, vdupq_n_u8(84)), two = vcgeq_u8(codes, vdupq_n_u8(168));
    const uint8x16_t c4 = vaddq_u8(one, two), r = vmlaq_u8(codes, c4, vdupq_n_u8(84));
    split(vqtbx2q_u8(vqtbl4q_u8(low, r), high, vsubq_u8(r, vdupq_n_u8(64))), field);
    field[4] = vreinterpretq_s8_u8(c4);
}

/* Sherry: the four codes of a nibble's inputs, not mirrored; the mirror of code c is 2 - c. */
#define SHERRY_PLUS(n, place) ((place) == 2 ? 2 : (n) >> (place)&1 ? 2 : 0)
#define SHERRY_CODE(n, i)     ((i) == (n) / 4 ? 1 : SHERRY_PLUS(n, (i) - ((i) > (n) / 4)))
#define SHERRY_FIELDS(n)                                                                                               \
    (uint8_t)(SHERRY_CODE(n, 0) | SHERRY_CODE(n, 1) << 2 | SHERRY_CODE(n, 2) << 4 | SHERRY_CODE(n, 3) << 6)
static const uint8_t sherry_fields[16] = {SIXTEEN(SHERRY_FIELDS, 0)};
static const uint8_t sherry_bits[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};

/* mirrors: the 16 bits of these bytes */
ALWAYS_INLINE void split_sherry(uint8x16_t nibbles, const uint8_t *mirrors, const bool upper,
                                int8x16_t field[MOST_FIELDS]) {
    const uint8x16_t nibble = upper ? vshrq_n_u8(nibbles, 4) : vandq_u8(nibbles, vdupq_n_u8(15));
    const uint8x16_t four = vqtbl1q_u8(vld1q_u8(sherry_fields), nibble);
    const uint8x16_t both = vcombine_u8(vdup_n_u8(mirrors[0]), vdup_n_u8(mirrors[1]));
    const uint8x16_t mirror = vtstq_u8(both, vld1q_u8(sherry_bits));
    split(vbslq_u8(mirror, vsubq_u8(vdupq_n_u8(170), four), four), field);
}

/* The bytes 4i + f of 16 to 4f + i: a lane then has the inputs that field f of four bytes of sherry multiplies. */
ALWAYS_INLINE int8x16_t turn(int8x16_t q) {
    static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return vqtbl1q_s8(q, vld1q_u8(order));
}

/* ---- Ternary products -------------------------------------------------------------------------------------------- */

/* acc + float(dot) * (act_scale * weight_scale) */
ALWAYS_INLINE float32x4_t apply_block(float32x4_t acc, int32x4_t dot, float act_scale, float32x4_t weight_scale) {
    return vaddq_f32(acc, vmulq_f32(vcvtq_f32_s32(dot), vmulq_n_f32(weight_scale, act_scale)));
}

/* scales of a quarter's 4 rows for a group */
ALWAYS_INLINE float32x4_t tile_scales(const uint8_t *record, int64_t group, int quarter) {
    const float32x4_t row_scale = vreinterpretq_f32_u8(vld1q_u8(record + 16 * quarter));
    uint32_t four;
    memcpy(&four, record + 64 + 16 * group + 4 * quarter, sizeof four);
    const uint16x8_t code = vmovl_u8(vcreate_u8(four));
    return vmulq_f32(vcvtq_f32_u32(vmovl_u16(vget_low_u16(code))), row_scale);
}

/* A whole superblock of T2 or T5, or one block: one left over, or one of sherry, whose four fields are of the same 64
 * inputs. For `quarters` of the tile and `rows` activation rows, from block b on. */
ALWAYS_INLINE void unit(const int32_t encoding, const uint8_t *codes, const uint8_t *mirrors, const uint8_t *record,
                        int64_t group, const struct chm_activation *x, int64_t b, const bool whole, const int quarter0,
                        float32x4_t acc[MOST_ROWS][4], const int rows, const int quarters) {
    const bool sherry = encoding == CHM_ENCODING_SHERRY, five = whole && encoding == CHM_ENCODING_T5;
    const int fields = five ? 5 : 4, dots = whole ? fields : 1;
    partial sum[MOST_ROWS][4][MOST_FIELDS];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int h = 0; h < quarters; h++)
        UNROLL for (int f = 0; f < fields; f++) sum[r][h][f] = no_sum();
    for (int j = 0; j < (whole ? 4 : 1); j++) {
        /* 16 activations of each field; of sherry, of each vector */
        int8x16_t q[MOST_ROWS][MOST_FIELDS];
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < fields; f++) {
            q[r][f] = vld1q_s8(x->q + 64 * (r * x->blocks + b) + (whole ? 64 * f + 16 * j : 16 * f));
            if (sherry) q[r][f] = turn(q[r][f]);
        }
        UNROLL for (int l = 0; l < 4; l++) {
            const uint8_t *at = codes + 64 * (sherry ? l / 2 : 4 * j + l) + 16 * quarter0;
            if (quarter0 == 0 && !(sherry && l % 2)) __builtin_prefetch(at + PREFETCH_BYTES);
            UNROLL for (int h = 0; h < quarters; h++) {
                int8x16_t field[MOST_FIELDS];
                const uint8x16_t bytes = vld1q_u8(at + 16 * h);
                if (sherry)
                    split_sherry(bytes, mirrors + 8 * l + 2 * (quarter0 + h), l % 2, field);
                else if (five)
                    split5(bytes, field);
                else
                    split(bytes, field);
                UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < fields; f++) sum[r][h][f] =
                    multiply_add(sum[r][h][f], field[f], q[r][sherry ? l : f], sherry ? f : l);
            }
        }
    }
    UNROLL for (int d = 0; d < dots; d++) UNROLL for (int h = 0; h < quarters; h++) {
        const float32x4_t weight_scale = tile_scales(record, 64 * (b + d) / group, quarter0 + h);
        UNROLL for (int r = 0; r < rows; r++) {
            const int64_t at = r * x->blocks + b + d;
            int32x4_t dot = vsubq_s32(field_sum(sum[r][h][d], d), vdupq_n_s32(x->sum[at]));
            if (!whole) UNROLL for (int f = 1; f < 4; f++) dot = vaddq_s32(dot, field_sum(sum[r][h][f], f));
            acc[r][h] = apply_block(acc[r][h], dot, x->scale[at], weight_scale);
        }
    }
}

/* x->rows is `rows`; quarters: of a tile at a time, as many as have room for their sums in the registers */
ALWAYS_INLINE void stream(const int32_t encoding, const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                          const struct chm_activation *x, float *y, int64_t ldy, const int rows, const int quarters) {
    const bool sherry = encoding == CHM_ENCODING_SHERRY;
    const int64_t blocks = chm_ternary_blocks(w->in), each = chm_ternary_superblock(encoding);
    const int64_t whole = blocks / each * each;
    for (int64_t tile = tile0; tile < tile1; tile++) {
        const uint8_t *record = w->scales + tile * chm_ternary_scale_stride(w->in, w->group);
        float out[MOST_ROWS][16];
        for (int quarter = 0; quarter < 4; quarter += quarters) {
            const uint8_t *codes = w->codes + tile * chm_ternary_code_stride(encoding, w->in);
            float32x4_t acc[MOST_ROWS][4];
            UNROLL for (int r = 0; r < rows; r++) UNROLL for (int h = 0; h < quarters; h++) acc[r][h] =
                vdupq_n_f32(0.0f);
            for (int64_t b = 0; b < whole; b += each) {
                if (sherry)
                    UNROLL for (int f = 0; f < 2; f++) unit(encoding, codes + 128 * f, codes + 256 + 32 * f, record,
                                                            w->group, x, b + f, false, quarter, acc, rows, quarters);
                else
                    unit(encoding, codes, NULL, record, w->group, x, b, true, quarter, acc, rows, quarters);
                codes += chm_ternary_superblock_bytes(encoding);
            }
            for (int64_t b = whole; b < blocks; b++) {
                unit(encoding, codes, codes + 128, record, w->group, x, b, false, quarter, acc, rows, quarters);
                codes += chm_ternary_tail_bytes(encoding);
            }
            UNROLL for (int r = 0; r < rows; r++) UNROLL for (int h = 0; h < quarters; h++)
                vst1q_f32(out[r] + 4 * (quarter + h), acc[r][h]);
        }
        const size_t bytes = (size_t)portable_min(16, w->out - 16 * tile) * sizeof(float);
        UNROLL for (int r = 0; r < rows; r++) memcpy(y + r * ldy + 16 * tile, out[r], bytes);
    }
}

#define TERNARY_ROWS(name, encoding, rows)                                                                             \
    static void name##_rows##rows(const struct chm_ternary *w, int64_t tile0, int64_t tile1,                           \
                                  const struct chm_activation *x, float *y, int64_t ldy) {                             \
        stream(encoding, w, tile0, tile1, x, y, ldy, rows, rows == 1 ? 2 : 1);                                         \
    }
#define TERNARY_MATMUL(name, encoding, ...)                                                                            \
    static void name##_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1,                               \
                              const struct chm_activation *x, float *y, int64_t ldy) {                                 \
        static const chm_ternary_product of_rows[] = {__VA_ARGS__};                                                    \
        portable_by_rows(of_rows, MOST_ROWS, BAND_BYTES, chm_ternary_code_stride(encoding, w->in), w, tile0, tile1, x, \
                         y, ldy);                                                                                      \
    }
#if defined(NEON_DOTPROD)
#define TERNARY_KERNEL(name, encoding)                                                                                 \
    TERNARY_ROWS(name, encoding, 1)                                                                                    \
    TERNARY_ROWS(name, encoding, 2)                                                                                    \
    TERNARY_ROWS(name, encoding, 3)                                                                                    \
    TERNARY_ROWS(name, encoding, 4)                                                                                    \
    TERNARY_MATMUL(name, encoding, name##_rows1, name##_rows2, name##_rows3, name##_rows4)
#else
#define TERNARY_KERNEL(name, encoding)                                                                                 \
    TERNARY_ROWS(name, encoding, 1)                                                                                    \
    TERNARY_ROWS(name, encoding, 2)                                                                                    \
    TERNARY_MATMUL(name, encoding, name##_rows1, name##_rows2)
#endif

TERNARY_KERNEL(t2, CHM_ENCODING_T2)
TERNARY_KERNEL(t5, CHM_ENCODING_T5)
TERNARY_KERNEL(sherry, CHM_ENCODING_SHERRY)

/* ---- int8 products ----------------------------------------------------------------------------------------------- */

/* products of 64 bytes, added up to four numbers; without the dot product two of 128 * 127 fit int16 */
ALWAYS_INLINE int32x4_t dot64(const int8x16_t a[4], const int8x16_t b[4]) {
    int32x4_t sum = vdupq_n_s32(0);
#if defined(NEON_DOTPROD)
    UNROLL for (int i = 0; i < 4; i++) sum = vdotq_s32(sum, a[i], b[i]);
#else
    UNROLL for (int i = 0; i < 4; i++) {
        const int16x8_t low = vmull_s8(vget_low_s8(a[i]), vget_low_s8(b[i]));
        sum = vpadalq_s16(sum, vmlal_high_s8(low, a[i], b[i]));
    }
#endif
    return sum;
}

ALWAYS_INLINE void load64(const int8_t *from, int8x16_t to[4]) {
    UNROLL for (int i = 0; i < 4; i++) to[i] = vld1q_s8(from + 16 * i);
}

/* 4 outputs at a time */
static void int8_matmul(const struct chm_int8_matrix *w, int64_t out0, int64_t out1, const struct chm_activation *x,
                        float *y, int64_t ldy) {
    for (int64_t o = out0; o < out1; o += 4) {
        const int64_t columns = portable_min(4, out1 - o);
        const int8_t *p[4];
        float scale[4];
        for (int i = 0; i < 4; i++) {
            const int64_t at = o + portable_min(i, columns - 1);
            p[i] = w->q + at * w->blocks * 64;
            scale[i] = w->scale[at];
        }
        const float32x4_t weight_scale = vld1q_f32(scale);
        for (int64_t row = 0; row < x->rows; row++) {
            float32x4_t acc = vdupq_n_f32(0.0f);
            for (int64_t b = 0; b < w->blocks; b++) {
                int8x16_t a[4];
                int32x4_t dot[4];
                load64(x->q + 64 * (row * x->blocks + b), a);
                UNROLL for (int i = 0; i < 4; i++) {
                    int8x16_t v[4];
                    load64(p[i] + 64 * b, v);
                    dot[i] = dot64(v, a);
                }
                const int32x4_t dots = vpaddq_s32(vpaddq_s32(dot[0], dot[1]), vpaddq_s32(dot[2], dot[3]));
                acc = apply_block(acc, dots, x->scale[row * x->blocks + b], weight_scale);
            }
            float out[4];
            vst1q_f32(out, acc);
            memcpy(y + row * ldy + o, out, (size_t)columns * sizeof *out);
        }
    }
}
