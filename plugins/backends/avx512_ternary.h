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
    MOST_ROWS = 4,         /* whose sums the registers hold */
    MOST_FIELDS = 5,       /* blocks in a superblock */
    PREFETCH_BYTES = 8192, /* codes stream from memory once; the hardware's prefetcher alone leaves half unused */
    PANEL_ROWS = 64,
    PANEL_TILES = 4,
    TURNED = 2048, /* inputs of a row turned at a time, sherry */
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

/* scales of the 16 rows for one group */
ALWAYS_INLINE __m512 tile_scales(const uint8_t *record, int64_t group) {
    const __m128i code = _mm_loadu_si128((const __m128i *)(record + 64 + 16 * group));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(code)),
                         _mm512_loadu_ps((const float *)(const void *)record));
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
#define SHERRY_PLUS(n, place) ((place) == 2 ? 2 : (n) >> (place)&1 ? 2 : 0)
#define SHERRY_CODE(n, i)     ((i) == (n) / 4 ? 1 : SHERRY_PLUS(n, (i) < (n) / 4 ? (i) : (i)-1))
#define SHERRY_FIELDS(n)                                                                                               \
    (uint8_t)(SHERRY_CODE((n) % 16, 0) | SHERRY_CODE((n) % 16, 1) << 2 | SHERRY_CODE((n) % 16, 2) << 4 |               \
              SHERRY_CODE((n) % 16, 3) << 6)
static const uint8_t sherry_fields[64] __attribute__((aligned(64))) = {
    SIXTEEN(SHERRY_FIELDS, 0), SIXTEEN(SHERRY_FIELDS, 0), SIXTEEN(SHERRY_FIELDS, 0), SIXTEEN(SHERRY_FIELDS, 0)};
#endif

ALWAYS_INLINE __m512i multiply_add(__m512i sum, __m512i field, __m512i activations) {
#if defined(AVX512_VNNI)
    return _mm512_dpbusd_epi32(sum, field, activations);
#else
    return _mm512_add_epi16(sum, _mm512_maddubs_epi16(field, activations));
#endif
}

/* int32 sums of codes times activations, out of the sums of field f */
ALWAYS_INLINE __m512i finish_sum(__m512i sum, const int f) {
#if defined(AVX512_VNNI)
    if (f == 4) /* 84 = 4 * 21, and the inverse of 21 modulo 2^32 divides what 21 divides */
        return _mm512_mullo_epi32(_mm512_srai_epi32(sum, 2), _mm512_set1_epi32(0x3cf3cf3d));
    return f > 0 ? _mm512_srai_epi32(sum, 2 * f) : sum;
#else
    const __m512i wide = _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
    return f & 1 ? _mm512_srai_epi32(wide, 2) : wide;
#endif
}

/* Activation rows from some block on: codes (sherry: turned), and for each block scale and sum. */
struct rows {
    const int8_t *q[MOST_ROWS];
    const float *scale[MOST_ROWS];
    const int32_t *sum[MOST_ROWS];
};

/* One superblock of T2 (4 blocks) or T5 (5), whose scales are weight_scale[], for `rows` rows, added to acc. T2 with
 * one row has two sums a field, since each waits for the one before. */
ALWAYS_INLINE void superblock(const int32_t encoding, const uint8_t *codes, const struct rows *x,
                              const __m512 weight_scale[MOST_FIELDS], __m512 acc[MOST_ROWS], const int rows,
                              const bool prefetch) {
    const int fields = encoding == CHM_ENCODING_T5 ? 5 : 4, sets = rows == 1 && fields == 4 ? 2 : 1;
    __m512i sum[MOST_ROWS][MOST_FIELDS][2];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < fields; f++) UNROLL for (int s = 0; s < sets; s++)
        sum[r][f][s] = _mm512_setzero_si512();
    UNROLL4 for (int j = 0; j < 16; j += sets) {
        UNROLL for (int s = 0; s < sets; s++) {
            __m512i field[MOST_FIELDS];
            const uint8_t *at = codes + 64 * (j + s);
            if (prefetch) _mm_prefetch((const char *)(at + PREFETCH_BYTES), _MM_HINT_T0);
#if defined(AVX512_VBMI)
            if (encoding == CHM_ENCODING_T5)
                split5(_mm512_loadu_si512(at), field);
            else
#endif
                split(_mm512_loadu_si512(at), field);
            UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < fields; f++) {
                sum[r][f][s] = multiply_add(sum[r][f][s], field[f], broadcast4(x->q[r] + 64 * f + 4 * (j + s)));
                KEEP(sum[r][f][s]);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < fields; f++) {
        __m512i dot = finish_sum(sum[r][f][0], f);
        if (sets == 2) dot = _mm512_add_epi32(dot, finish_sum(sum[r][f][1], f));
        dot = _mm512_sub_epi32(dot, _mm512_set1_epi32(x->sum[r][f]));
        acc[r] = apply_block(acc[r], dot, x->scale[r][f], weight_scale[f]);
    }
}

/* A block by itself, block `b` of x, whose four fields are of the same 64 inputs: one that T2 and T5 have left over, or
 * one of sherry. */
ALWAYS_INLINE void lone_block(const int32_t encoding, const uint8_t *codes, const uint8_t *mirrors,
                              const struct rows *x, const int b, __m512 weight_scale, __m512 acc[MOST_ROWS],
                              const int rows) {
    __m512i sum[MOST_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < 4; f++) sum[r][f] = _mm512_setzero_si512();
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
            sum[r][f] = multiply_add(sum[r][f], field[f], broadcast4(x->q[r] + 64 * b + at));
            KEEP(sum[r][f]);
        }
    }
    (void)mirrors;
    UNROLL for (int r = 0; r < rows; r++) {
        __m512i dot = _mm512_sub_epi32(finish_sum(sum[r][0], 0), _mm512_set1_epi32(x->sum[r][b]));
        UNROLL for (int f = 1; f < 4; f++) dot = _mm512_add_epi32(dot, finish_sum(sum[r][f], f));
        acc[r] = apply_block(acc[r], dot, x->scale[r][b], weight_scale);
    }
}

/* `blocks` blocks from block `first` on, which begin a superblock at `codes`: a whole superblock, or one left over. */
ALWAYS_INLINE void unit(const int32_t encoding, const uint8_t *codes, const uint8_t *record, int64_t group,
                        int64_t first, const bool whole, const struct rows *x, __m512 acc[MOST_ROWS], const int rows,
                        const bool prefetch) {
    if (encoding == CHM_ENCODING_SHERRY) {
        if (prefetch)
            UNROLL for (int i = 0; i < 5; i++)
                _mm_prefetch((const char *)(codes + 64 * i + PREFETCH_BYTES), _MM_HINT_T0);
        lone_block(encoding, codes, codes + (whole ? 256 : 128), x, 0, tile_scales(record, 64 * first / group), acc,
                   rows);
        if (whole)
            lone_block(encoding, codes + 128, codes + 288, x, 1, tile_scales(record, 64 * (first + 1) / group), acc,
                       rows);
        return;
    }
    if (!whole) {
        lone_block(encoding, codes, NULL, x, 0, tile_scales(record, 64 * first / group), acc, rows);
        return;
    }
    const int fields = encoding == CHM_ENCODING_T5 ? 5 : 4;
    __m512 weight_scale[MOST_FIELDS];
    UNROLL for (int f = 0; f < fields; f++) weight_scale[f] = tile_scales(record, 64 * (first + f) / group);
    superblock(encoding, codes, x, weight_scale, acc, rows, prefetch);
}

/* The bytes 4i + f of 16 to 4f + i: a dword then has the inputs that field f of four bytes of sherry multiplies. */
ALWAYS_INLINE __m512i turn(__m512i q) {
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    return _mm512_shuffle_epi8(q, order);
}

/* 1 to 4 rows: the codes stream by and the sums stay in registers. Blocks block0..block1; q: of the rows from block0
 * on, q_stride bytes apart. The sums so far are in y, unless block0 is 0. */
ALWAYS_INLINE void stream(const int32_t encoding, const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                          int64_t block0, int64_t block1, const int8_t *q, int64_t q_stride,
                          const struct chm_activation *x, float *y, int64_t ldy, const int rows) {
    const int64_t blocks = chm_ternary_blocks(w->in), each = encoding == CHM_ENCODING_SHERRY ? 2
                                                             : encoding == CHM_ENCODING_T5   ? 5
                                                                                             : 4;
    const int64_t code_stride = chm_ternary_code_stride(encoding, w->in);
    const int64_t stride = chm_ternary_scale_stride(w->in, w->group),
                  whole = portable_min(block1, blocks / each * each);
    for (int64_t tile = tile0; tile < tile1; tile++) {
        const uint8_t *record = w->scales + tile * stride;
        const uint8_t *codes = w->codes + tile * code_stride + block0 / each * chm_ternary_superblock_bytes(encoding);
        const __mmask16 columns = lanes(w->out - 16 * tile);
        __m512 acc[MOST_ROWS];
        struct rows at;
        UNROLL for (int r = 0; r < rows; r++) {
            acc[r] = block0 > 0 ? _mm512_maskz_loadu_ps(columns, y + r * ldy + 16 * tile) : _mm512_setzero_ps();
            at.q[r] = q + r * q_stride;
            at.scale[r] = x->scale + r * x->blocks + block0;
            at.sum[r] = x->sum + r * x->blocks + block0;
        }
        int64_t b = block0;
        for (; b < whole; b += each) {
            unit(encoding, codes, record, w->group, b, true, &at, acc, rows, true);
            codes += chm_ternary_superblock_bytes(encoding);
            UNROLL for (int r = 0; r < rows; r++) {
                at.q[r] += 64 * each;
                at.scale[r] += each;
                at.sum[r] += each;
            }
        }
        for (; b < block1; b++) {
            unit(encoding, codes, record, w->group, b, false, &at, acc, rows, false);
            codes += chm_ternary_tail_bytes(encoding);
            UNROLL for (int r = 0; r < rows; r++) {
                at.q[r] += 64;
                at.scale[r]++;
                at.sum[r]++;
            }
        }
        UNROLL for (int r = 0; r < rows; r++) _mm512_mask_storeu_ps(y + r * ldy + 16 * tile, columns, acc[r]);
    }
}

ALWAYS_INLINE void stream_rows(const int32_t encoding, const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                               const struct chm_activation *x, float *y, int64_t ldy, const int rows) {
    const int64_t blocks = chm_ternary_blocks(w->in);
    if (encoding != CHM_ENCODING_SHERRY) {
        stream(encoding, w, tile0, tile1, 0, blocks, x->q, 64 * x->blocks, x, y, ldy, rows);
        return;
    }
    int8_t turned[MOST_ROWS][TURNED] __attribute__((aligned(64)));
    for (int64_t b0 = 0; b0 < blocks; b0 += TURNED / 64) {
        const int64_t b1 = portable_min(b0 + TURNED / 64, blocks);
        for (int r = 0; r < rows; r++)
            for (int64_t b = b0; b < b1; b++)
                _mm512_store_si512(turned[r] + 64 * (b - b0),
                                   turn(_mm512_loadu_si512(x->q + 64 * (r * x->blocks + b))));
        stream(encoding, w, tile0, tile1, b0, b1, turned[0], TURNED, x, y, ldy, rows);
    }
}

/*
 * 5 rows and more: superblock by superblock, for a chunk of rows and a band of tiles. The activations of the superblock
 * are copied side by side, because rows a power of two apart would share cache sets, and serve every tile of the band;
 * its codes (1 KB) serve all the rows, four at a time; the results wait in `acc`.
 */
struct panel {
    int8_t q[PANEL_ROWS][64 * MOST_FIELDS];
    float scale[PANEL_ROWS][8];
    int32_t sum[PANEL_ROWS][8];
    float acc[PANEL_TILES][PANEL_ROWS][16];
} __attribute__((aligned(64)));

ALWAYS_INLINE void panel_rows(const int32_t encoding, const uint8_t *codes, const uint8_t *record, int64_t group,
                              int64_t first, const bool whole, const struct panel *p, int64_t row0, float (*to)[16],
                              const int rows) {
    struct rows at;
    __m512 acc[MOST_ROWS];
    UNROLL for (int r = 0; r < rows; r++) {
        at.q[r] = p->q[row0 + r];
        at.scale[r] = p->scale[row0 + r];
        at.sum[r] = p->sum[row0 + r];
        acc[r] = _mm512_loadu_ps(to[row0 + r]);
    }
    unit(encoding, codes, record, group, first, whole, &at, acc, rows, false);
    UNROLL for (int r = 0; r < rows; r++) _mm512_storeu_ps(to[row0 + r], acc[r]);
}

ALWAYS_INLINE void panel_unit(const int32_t encoding, const uint8_t *codes, const uint8_t *record, int64_t group,
                              int64_t first, const bool whole, const struct panel *p, float (*to)[16], int64_t rows) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) panel_rows(encoding, codes, record, group, first, whole, p, r, to, 4);
    switch (rows - r) {
    case 1:
        panel_rows(encoding, codes, record, group, first, whole, p, r, to, 1);
        break;
    case 2:
        panel_rows(encoding, codes, record, group, first, whole, p, r, to, 2);
        break;
    case 3:
        panel_rows(encoding, codes, record, group, first, whole, p, r, to, 3);
        break;
    default:
        break;
    }
}

ALWAYS_INLINE void panel_matmul(const int32_t encoding, const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                                const struct chm_activation *x, float *y, int64_t ldy) {
    const int64_t blocks = chm_ternary_blocks(w->in), each = chm_ternary_superblock(encoding);
    const int64_t code_stride = chm_ternary_code_stride(encoding, w->in);
    const int64_t stride = chm_ternary_scale_stride(w->in, w->group);
    struct panel p;
    for (int64_t row0 = 0; row0 < x->rows; row0 += PANEL_ROWS) {
        const int64_t rows = portable_min(PANEL_ROWS, x->rows - row0);
        for (int64_t band = tile0; band < tile1; band += PANEL_TILES) {
            const int64_t tiles = portable_min(PANEL_TILES, tile1 - band);
            for (int64_t t = 0; t < tiles; t++) memset(p.acc[t], 0, (size_t)rows * sizeof p.acc[t][0]);
            int64_t offset = 0;
            for (int64_t b = 0; b < blocks;) {
                const bool whole = b + each <= blocks;
                const int64_t n = whole ? each : 1;
                for (int64_t r = 0; r < rows; r++) {
                    const int64_t at = (row0 + r) * x->blocks + b;
                    for (int64_t i = 0; i < n; i++) {
                        const __m512i q = _mm512_loadu_si512(x->q + 64 * (at + i));
                        _mm512_store_si512(p.q[r] + 64 * i, encoding == CHM_ENCODING_SHERRY ? turn(q) : q);
                    }
                    memcpy(p.scale[r], x->scale + at, (size_t)n * sizeof(float));
                    memcpy(p.sum[r], x->sum + at, (size_t)n * sizeof(int32_t));
                }
                for (int64_t t = 0; t < tiles; t++) {
                    const uint8_t *codes = w->codes + (band + t) * code_stride + offset;
                    const uint8_t *record = w->scales + (band + t) * stride;
                    if (whole)
                        panel_unit(encoding, codes, record, w->group, b, true, &p, p.acc[t], rows);
                    else
                        panel_unit(encoding, codes, record, w->group, b, false, &p, p.acc[t], rows);
                }
                offset += whole ? chm_ternary_superblock_bytes(encoding) : chm_ternary_tail_bytes(encoding);
                b += n;
            }
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t first = 16 * (band + t);
                const __mmask16 columns = lanes(w->out - first);
                for (int64_t r = 0; r < rows; r++)
                    _mm512_mask_storeu_ps(y + (row0 + r) * ldy + first, columns, _mm512_loadu_ps(p.acc[t][r]));
            }
        }
    }
}

/* The kernel of an encoding: a function for each of 1 to 4 rows, and one for more. */
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
    static void name##_many(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x, \
                            float *y, int64_t ldy) {                                                                   \
        panel_matmul(encoding, w, tile0, tile1, x, y, ldy);                                                            \
    }                                                                                                                  \
    static void name##_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1,                               \
                              const struct chm_activation *x, float *y, int64_t ldy) {                                 \
        switch (x->rows) {                                                                                             \
        case 0:                                                                                                        \
            break;                                                                                                     \
        case 1:                                                                                                        \
            name##_rows1(w, tile0, tile1, x, y, ldy);                                                                  \
            break;                                                                                                     \
        case 2:                                                                                                        \
            name##_rows2(w, tile0, tile1, x, y, ldy);                                                                  \
            break;                                                                                                     \
        case 3:                                                                                                        \
            name##_rows3(w, tile0, tile1, x, y, ldy);                                                                  \
            break;                                                                                                     \
        case 4:                                                                                                        \
            name##_rows4(w, tile0, tile1, x, y, ldy);                                                                  \
            break;                                                                                                     \
        default:                                                                                                       \
            name##_many(w, tile0, tile1, x, y, ldy);                                                                   \
            break;                                                                                                     \
        }                                                                                                              \
    }
