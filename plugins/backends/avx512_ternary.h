/*
 * avx512_ternary.h: ternary products with 512-bit vectors. Included by avx512.c for T2; by avx512_vnni.c with
 * AVX512_VNNI, where vpdpbusd multiplies and adds four bytes to an int32 at once; and by avx512_vbmi.c with AVX512_VBMI
 * too, for the encodings that a permutation of bytes takes apart.
 *
 * A vector of codes is the 16 rows of a tile x 4 bytes: multiplied by 4 activations broadcast it adds to 16 sums, lane
 * r belonging to row r, and there are no horizontal sums. Codes are w + 1 in 0..2; the sum of the activations is
 * subtracted from the dot. With the dot product the fields of a byte stay where they are in it, their sums carry
 * factors 1, 4, 16, 64 (and 84) and are divided exactly. Without it int16 holds a whole block: 16 steps of at most 4 *
 * 127 for plain codes, of at most 16 * 127 (sum 32512) for codes left shifted by two.
 */
#include "avx512.h"

enum {
    MOST_ROWS = 4,   /* whose sums the registers hold */
    MOST_FIELDS = 5, /* blocks in a superblock */
    /* Codes stream from memory once. On some CPUs the hardware's prefetcher alone leaves half the bandwidth unused, on
     * others asking for every line costs more than it brings: every fourth is within a twentieth of the best on both.
     */
    PREFETCH_BYTES = 4096,
    BAND_BYTES = 192 << 10,
    MOST_BLOCKS = 160, /* that a tile is multiplied by at a time; whole superblocks of every encoding */
};

ALWAYS_INLINE __m512i broadcast4(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm512_set1_epi32(four);
}

/* acc + float(dot) * (act_scale * weight_scale) */
ALWAYS_INLINE __m512 apply_block(__m512 acc, __m512i dot, float act_scale, __m512 weight_scale) {
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(act_scale), weight_scale);
    return _mm512_add_ps(acc, _mm512_mul_ps(_mm512_cvtepi32_ps(dot), scale));
}

/* scales of the 16 rows of a tile for a group */
ALWAYS_INLINE void tile_scales(const uint8_t *record, int64_t group, float scale[16]) {
    const __m128i code = _mm_loadu_si128((const __m128i *)(record + 64 + 16 * group));
    const __m512 row_scale = _mm512_loadu_ps((const float *)(const void *)record);
    _mm512_storeu_ps(scale, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(code)), row_scale));
}

/* Four 2-bit fields of each byte, ready for multiply_add(). */
ALWAYS_INLINE void split(__m512i codes, __m512i field[MOST_FIELDS]) {
#if defined(AVX512_VNNI)
    UNROLL for (int f = 0; f < 4; f++) field[f] = _mm512_and_si512(codes, _mm512_set1_epi8((char)(3 << 2 * f)));
#else
    const __m512i low = _mm512_set1_epi8(3), high = _mm512_set1_epi8(12), shifted = _mm512_srli_epi16(codes, 4);
    field[0] = _mm512_and_si512(codes, low);
    field[1] = _mm512_and_si512(codes, high);
    field[2] = _mm512_and_si512(shifted, low);
    field[3] = _mm512_and_si512(shifted, high);
#endif
}

#if defined(AVX512_VBMI)
/*
 * T5: 84 c4 + r. 84 and 168 are multiples of four, so the six upper bits of the byte tell c4 (a permutation ignores the
 * two bits that a shift of 16 brings over from the next byte), and 84 c4 is both what leaves r and what is multiplied.
 * r < 81 then finds its four codes in a table of 128 bytes.
 */
#define T5_FIELDS(r)   (uint8_t)((r) % 3 | (r) / 3 % 3 << 2 | (r) / 9 % 3 << 4 | (r) / 27 % 3 << 6)
#define FOUR(of, n)    of(n), of((n) + 1), of((n) + 2), of((n) + 3)
#define SIXTEEN(of, n) FOUR(of, n), FOUR(of, (n) + 4), FOUR(of, (n) + 8), FOUR(of, (n) + 12)
#define T5_HIGH(n)     (uint8_t)((n) < 21 ? 0 : (n) < 42 ? 84 : 168)
static const uint8_t t5_fields[128] __attribute__((aligned(64))) = {
    SIXTEEN(T5_FIELDS, 0),  SIXTEEN(T5_FIELDS, 16), SIXTEEN(T5_FIELDS, 32), SIXTEEN(T5_FIELDS, 48),
    SIXTEEN(T5_FIELDS, 64), SIXTEEN(T5_FIELDS, 80), SIXTEEN(T5_FIELDS, 96), SIXTEEN(T5_FIELDS, 112),
};
static const uint8_t t5_high[64] __attribute__((aligned(64))) = {SIXTEEN(T5_HIGH, 0), SIXTEEN(T5_HIGH, 16),
                                                                 SIXTEEN(T5_HIGH, 32), SIXTEEN(T5_HIGH, 48)};

ALWAYS_INLINE void split5(__m512i codes, __m512i field[MOST_FIELDS]) {
    const __m512i high = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 2), _mm512_load_si512(t5_high));
    split(_mm512_permutex2var_epi8(_mm512_load_si512(t5_fields), _mm512_sub_epi8(codes, high),
                                   _mm512_load_si512(t5_fields + 64)),
          field);
    field[4] = high;
}

/* Sherry: the four codes of a nibble's inputs, not mirrored; the mirror of code c is 2 - c. Repeated, because the
 * permutation reads two bits above the nibble. */
#define SHERRY_FIELDS 0x81, 0x89, 0xa1, 0xa9, 0x84, 0x86, 0xa4, 0xa6, 0x90, 0x92, 0x98, 0x9a, 0x60, 0x62, 0x68, 0x6a
static const uint8_t sherry_fields[64]
    __attribute__((aligned(64))) = {SHERRY_FIELDS, SHERRY_FIELDS, SHERRY_FIELDS, SHERRY_FIELDS};
#endif

ALWAYS_INLINE __m512i multiply_add(__m512i sum, __m512i field, const int8_t *four) {
#if defined(AVX512_VNNI)
    DOT_BROADCAST(sum, field, four);
#else
    sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(field, broadcast4(four)));
    KEEP(sum);
#endif
    return sum;
}

/*
 * Codes are 1 too large, so a sum of codes times activations is too large by the sum of the activations. With the dot
 * product a sum begins that far below zero, times the factor that its field carries; else the excess is taken off at
 * the end.
 */
ALWAYS_INLINE int32_t first_sum(int32_t activations, int64_t field) {
#if defined(AVX512_VNNI)
    return -activations * (field == 4 ? 84 : 1 << 2 * field);
#else
    (void)field;
    return activations;
#endif
}

ALWAYS_INLINE __m512i begin_sum(int32_t first) {
#if defined(AVX512_VNNI)
    return _mm512_set1_epi32(first);
#else
    (void)first;
    return _mm512_setzero_si512();
#endif
}

/* The dots of field f out of its sums */
ALWAYS_INLINE __m512i finish_sum(__m512i sum, const int f, int32_t first) {
#if defined(AVX512_VNNI)
    (void)first;
    if (f == 4) /* 84 = 4 * 21, and the inverse of 21 modulo 2^32 divides what 21 divides */
        return _mm512_mullo_epi32(_mm512_srai_epi32(sum, 2), _mm512_set1_epi32(0x3cf3cf3d));
    return f > 0 ? _mm512_srai_epi32(sum, 2 * f) : sum;
#else
    const __m512i wide = _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
    return _mm512_sub_epi32(f & 1 ? _mm512_srai_epi32(wide, 2) : wide, _mm512_set1_epi32(first));
#endif
}

/* Activation rows from some block on: codes (sherry: turned), and for each block scale and first_sum(). */
struct rows {
    const int8_t *q[MOST_ROWS];
    const float *scale[MOST_ROWS];
    const int32_t *first[MOST_ROWS];
};

/* One superblock of T2 (4 blocks) or T5 (5) for `rows` rows, added to acc; the scales of block f are
 * scales[place[f]]. */
ALWAYS_INLINE void superblock(const int32_t encoding, const uint8_t *codes, const struct rows *x,
                              const float (*scales)[16], const int32_t *place, __m512 acc[MOST_ROWS], const int rows,
                              const bool prefetch) {
    const int fields = encoding == CHM_ENCODING_T5 ? 5 : 4;
    __m512i sum[MOST_ROWS][MOST_FIELDS];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < fields; f++) sum[r][f] = begin_sum(x->first[r][f]);
    UNROLL4 for (int j = 0; j < 16; j++) {
        __m512i field[MOST_FIELDS];
        const uint8_t *at = codes + 64 * j;
        if (prefetch) _mm_prefetch((const char *)(at + PREFETCH_BYTES), _MM_HINT_T0);
#if defined(AVX512_VBMI)
        if (encoding == CHM_ENCODING_T5)
            split5(_mm512_loadu_si512(at), field);
        else
#endif
            split(_mm512_loadu_si512(at), field);
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < fields; f++) sum[r][f] =
            multiply_add(sum[r][f], field[f], x->q[r] + 64 * f + 4 * j);
    }
    UNROLL for (int f = 0; f < fields; f++) {
        const __m512 weight_scale = _mm512_loadu_ps(scales[place[f]]);
        UNROLL for (int r = 0; r < rows; r++) acc[r] =
            apply_block(acc[r], finish_sum(sum[r][f], f, x->first[r][f]), x->scale[r][f], weight_scale);
    }
}

/* A block by itself, block `b` of x, whose four fields are of the same 64 inputs: one that T2 and T5 have left over, or
 * one of sherry. */
ALWAYS_INLINE void lone_block(const int32_t encoding, const uint8_t *codes, const uint8_t *mirrors,
                              const struct rows *x, const int b, const float *scale, __m512 acc[MOST_ROWS],
                              const int rows) {
    __m512i sum[MOST_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < 4; f++) sum[r][f] =
        begin_sum(f == 0 ? x->first[r][b] : 0);
    UNROLL for (int j = 0; j < 4; j++) {
        __m512i field[MOST_FIELDS];
#if defined(AVX512_VBMI)
        if (encoding == CHM_ENCODING_SHERRY) {
            const __m512i nibbles = _mm512_loadu_si512(codes + 64 * (j / 2));
            __mmask64 mirror;
            memcpy(&mirror, mirrors + 8 * j, sizeof mirror);
            __m512i four = _mm512_permutexvar_epi8(j % 2 ? _mm512_srli_epi16(nibbles, 4) : nibbles,
                                                   _mm512_load_si512(sherry_fields));
            four = _mm512_mask_sub_epi8(four, mirror, _mm512_set1_epi8((char)170), four);
            split(four, field);
        } else
#endif
            split(_mm512_loadu_si512(codes + 64 * j), field);
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < 4; f++) {
            const int at = encoding == CHM_ENCODING_SHERRY ? 16 * j + 4 * f : 16 * f + 4 * j;
            sum[r][f] = multiply_add(sum[r][f], field[f], x->q[r] + 64 * b + at);
        }
    }
    (void)mirrors;
    const __m512 weight_scale = _mm512_loadu_ps(scale);
    UNROLL for (int r = 0; r < rows; r++) {
        __m512i dot = finish_sum(sum[r][0], 0, x->first[r][b]);
        UNROLL for (int f = 1; f < 4; f++) dot = _mm512_add_epi32(dot, finish_sum(sum[r][f], f, 0));
        acc[r] = apply_block(acc[r], dot, x->scale[r][b], weight_scale);
    }
}

/* A whole superblock, or a block left over; place: of its blocks. */
ALWAYS_INLINE void unit(const int32_t encoding, const uint8_t *codes, const float (*scales)[16], const int32_t *place,
                        const bool whole, const struct rows *x, __m512 acc[MOST_ROWS], const int rows,
                        const bool prefetch) {
    if (encoding == CHM_ENCODING_SHERRY) {
        if (prefetch)
            UNROLL for (int i = 0; i < 5; i++)
                _mm_prefetch((const char *)(codes + 64 * i + PREFETCH_BYTES), _MM_HINT_T0);
        lone_block(encoding, codes, codes + (whole ? 256 : 128), x, 0, scales[place[0]], acc, rows);
        if (whole) lone_block(encoding, codes + 128, codes + 288, x, 1, scales[place[1]], acc, rows);
    } else if (whole)
        superblock(encoding, codes, x, scales, place, acc, rows, prefetch);
    else
        lone_block(encoding, codes, NULL, x, 0, scales[place[0]], acc, rows);
}

/* The field that block b of `blocks` is in its superblock; 0 where it is by itself. */
ALWAYS_INLINE int64_t field_of(const int32_t encoding, int64_t blocks, int64_t b) {
    const int64_t each = encoding == CHM_ENCODING_T5 ? 5 : 4;
    return encoding != CHM_ENCODING_SHERRY && b < blocks / each * each ? b % each : 0;
}

/* The bytes 4i + f of 16 to 4f + i: a dword then has the inputs that field f of four bytes of sherry multiplies. */
ALWAYS_INLINE __m512i turn(__m512i q) {
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm512_shuffle_epi8(q, order);
}

/* What is the same for every tile: blocks block0..block1 of the rows. */
struct chunk {
    int64_t block0, block1, group0, group1;
    const int8_t *q; /* of the rows from block0 on, q_stride bytes apart */
    int64_t q_stride;
    int32_t place[MOST_BLOCKS + MOST_FIELDS]; /* of the scales of a block among those of groups group0..group1 */
    int32_t first[MOST_ROWS][MOST_BLOCKS];
};

/* 1 to 4 rows: the codes stream by and the sums stay in registers. The sums so far are in y, unless block0 is 0. */
ALWAYS_INLINE void stream(const int32_t encoding, const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                          const struct chunk *c, const struct chm_activation *x, float *y, int64_t ldy,
                          const int rows) {
    const int64_t blocks = chm_ternary_blocks(w->in), each = encoding == CHM_ENCODING_SHERRY ? 2
                                                             : encoding == CHM_ENCODING_T5   ? 5
                                                                                             : 4;
    const int64_t code_stride = chm_ternary_code_stride(encoding, w->in);
    const int64_t stride = chm_ternary_scale_stride(w->in, w->group);
    const int64_t whole = portable_min(c->block1, blocks / each * each);
    for (int64_t tile = tile0; tile < tile1; tile++) {
        const uint8_t *record = w->scales + tile * stride;
        const uint8_t *codes =
            w->codes + tile * code_stride + c->block0 / each * chm_ternary_superblock_bytes(encoding);
        const __mmask16 columns = lanes(w->out - 16 * tile);
        float scales[MOST_BLOCKS][16];
        for (int64_t g = c->group0; g < c->group1; g++) tile_scales(record, g, scales[g - c->group0]);
        __m512 acc[MOST_ROWS];
        struct rows at;
        UNROLL for (int r = 0; r < rows; r++) {
            acc[r] = c->block0 > 0 ? _mm512_maskz_loadu_ps(columns, y + r * ldy + 16 * tile) : _mm512_setzero_ps();
            at.q[r] = c->q + r * c->q_stride;
            at.scale[r] = x->scale + r * x->blocks + c->block0;
            at.first[r] = c->first[r];
        }
        const int32_t *place = c->place;
        for (int64_t b = c->block0; b < whole; b += each) {
            unit(encoding, codes, scales, place, true, &at, acc, rows, true);
            codes += chm_ternary_superblock_bytes(encoding);
            place += each;
            UNROLL for (int r = 0; r < rows; r++) {
                at.q[r] += 64 * each;
                at.scale[r] += each;
                at.first[r] += each;
            }
        }
        for (int64_t b = whole; b < c->block1; b++) {
            unit(encoding, codes, scales, place, false, &at, acc, rows, false);
            codes += chm_ternary_tail_bytes(encoding);
            place++;
            UNROLL for (int r = 0; r < rows; r++) {
                at.q[r] += 64;
                at.scale[r]++;
                at.first[r]++;
            }
        }
        UNROLL for (int r = 0; r < rows; r++) _mm512_mask_storeu_ps(y + r * ldy + 16 * tile, columns, acc[r]);
    }
}

ALWAYS_INLINE void stream_rows(const int32_t encoding, const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                               const struct chm_activation *x, float *y, int64_t ldy, const int rows) {
    const int64_t blocks = chm_ternary_blocks(w->in);
    int8_t turned[encoding == CHM_ENCODING_SHERRY ? MOST_ROWS : 1][64 * MOST_BLOCKS] __attribute__((aligned(64)));
    struct chunk c;
    for (c.block0 = 0; c.block0 < blocks; c.block0 = c.block1) {
        c.block1 = portable_min(c.block0 + MOST_BLOCKS, blocks);
        c.group0 = 64 * c.block0 / w->group;
        c.group1 = (64 * c.block1 + w->group - 1) / w->group;
        c.q = x->q + 64 * c.block0;
        c.q_stride = 64 * x->blocks;
        for (int64_t b = c.block0; b < c.block1; b++) {
            c.place[b - c.block0] = (int32_t)(64 * b / w->group - c.group0);
            for (int r = 0; r < rows; r++)
                c.first[r][b - c.block0] = first_sum(x->sum[r * x->blocks + b], field_of(encoding, blocks, b));
        }
        if (encoding == CHM_ENCODING_SHERRY) {
            for (int r = 0; r < rows; r++)
                for (int64_t b = c.block0; b < c.block1; b++)
                    _mm512_store_si512(turned[r] + 64 * (b - c.block0),
                                       turn(_mm512_loadu_si512(x->q + 64 * (r * x->blocks + b))));
            c.q = turned[0];
            c.q_stride = sizeof turned[0];
        }
        stream(encoding, w, tile0, tile1, &c, x, y, ldy, rows);
    }
}

/* The kernel of an encoding: a function for each of 1 to 4 rows. More rows go four at a time over a band of tiles that
 * the second cache holds meanwhile, so that its codes come from memory once. */
#define TERNARY_KERNEL(name, encoding)                                                                                 \
    static void name##_rows1(const struct chm_ternary *w, int64_t tile0, int64_t tile1,                                \
                             const struct chm_activation *x, float *y, int64_t ldy) {                                  \
        stream_rows(encoding, w, tile0, tile1, x, y, ldy, 1);                                                          \
    }                                                                                                                  \
    static void name##_rows2(const struct chm_ternary *w, int64_t tile0, int64_t tile1,                                \
                             const struct chm_activation *x, float *y, int64_t ldy) {                                  \
        stream_rows(encoding, w, tile0, tile1, x, y, ldy, 2);                                                          \
    }                                                                                                                  \
    static void name##_rows3(const struct chm_ternary *w, int64_t tile0, int64_t tile1,                                \
                             const struct chm_activation *x, float *y, int64_t ldy) {                                  \
        stream_rows(encoding, w, tile0, tile1, x, y, ldy, 3);                                                          \
    }                                                                                                                  \
    static void name##_rows4(const struct chm_ternary *w, int64_t tile0, int64_t tile1,                                \
                             const struct chm_activation *x, float *y, int64_t ldy) {                                  \
        stream_rows(encoding, w, tile0, tile1, x, y, ldy, 4);                                                          \
    }                                                                                                                  \
    static void name##_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1,                               \
                              const struct chm_activation *x, float *y, int64_t ldy) {                                 \
        static const chm_ternary_product of_rows[] = {name##_rows1, name##_rows2, name##_rows3, name##_rows4};         \
        portable_by_rows(of_rows, MOST_ROWS, BAND_BYTES, chm_ternary_code_stride(encoding, w->in), w, tile0, tile1, x, \
                         y, ldy);                                                                                      \
    }
