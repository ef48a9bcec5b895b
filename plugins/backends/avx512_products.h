/*
 * avx512_products.h: the ternary and the int8 product with 512-bit vectors. Included twice: by avx512.c, and by
 * avx512_vnni.c with AVX512_VNNI defined, where vpdpbusd multiplies and adds four bytes to an int32 at once.
 */
#include "avx512.h"

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

/* ---- Ternary products --------------------------------------------------------------------------------------------
 *
 * A 64-byte vector holds the 16 rows of a tile x 4 inputs: multiplied by 4 activations broadcast it adds to 16 sums,
 * lane r belonging to row r, and there are no horizontal sums. Codes are w + 1 in 0..2; the sum of the activations is
 * subtracted from the dot. The four fields of a byte belong to four blocks of 64 inputs. With the dot product they stay
 * where they are in the byte, the sums carry factors 1, 4, 16, 64 and are divided exactly. Without it int16 holds a
 * whole block: 16 steps of at most 4 * 127 for plain codes, of at most 16 * 127 (sum 32512) for codes left shifted by
 * two.
 */

/* scales of the 16 rows for one group */
ALWAYS_INLINE __m512 tile_scales(const uint8_t *record, int64_t group) {
    const __m128i code = _mm_loadu_si128((const __m128i *)(record + 64 + 16 * group));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(code)),
                         _mm512_loadu_ps((const float *)(const void *)record));
}

/* The four fields of a vector of codes, ready for multiply_add(). */
ALWAYS_INLINE void split(__m512i codes, __m512i field[4], const int fields) {
#if defined(AVX512_VNNI)
    UNROLL for (int f = 0; f < fields; f++) field[f] = _mm512_and_si512(codes, _mm512_set1_epi8((char)(3 << 2 * f)));
#else
    const __m512i low = _mm512_set1_epi8(3), high = _mm512_set1_epi8(12);
    field[0] = _mm512_and_si512(codes, low);
    if (fields > 1) field[1] = _mm512_and_si512(codes, high);
    if (fields > 2) {
        const __m512i shifted = _mm512_srli_epi16(codes, 4);
        field[2] = _mm512_and_si512(shifted, low);
        if (fields > 3) field[3] = _mm512_and_si512(shifted, high);
    }
#endif
}

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
    return f > 0 ? _mm512_srai_epi32(sum, 2 * f) : sum;
#else
    const __m512i wide = _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
    return f & 1 ? _mm512_srai_epi32(wide, 2) : wide;
#endif
}

enum { MOST_ROWS = 4 };

/* Activation rows of one superblock: codes, and for each of its blocks scale and sum. */
struct rows {
    const int8_t *q[MOST_ROWS];
    const float *scale[MOST_ROWS];
    const int32_t *sum[MOST_ROWS];
};

/* Codes stream from memory once and the hardware prefetcher alone leaves half the bandwidth unused. */
enum { PREFETCH_BYTES = 8192 };

/* `rows` rows times `fields` blocks of one superblock, added to acc. One row alone has two sums a field, since each
 * waits for the one before. */
ALWAYS_INLINE void superblock(const uint8_t *codes, const struct rows *x, const __m512 weight_scale[4],
                              __m512 acc[MOST_ROWS], const int fields, const int rows, const bool prefetch) {
    const int sets = rows == 1 ? 2 : 1;
    __m512i sum[MOST_ROWS][4][2];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < fields; f++) UNROLL for (int s = 0; s < sets; s++)
        sum[r][f][s] = _mm512_setzero_si512();
    UNROLL4 for (int j = 0; j < 16; j += sets) {
        UNROLL for (int s = 0; s < sets; s++) {
            __m512i field[4];
            if (prefetch) _mm_prefetch((const char *)(codes + 64 * (j + s) + PREFETCH_BYTES), _MM_HINT_T0);
            split(_mm512_loadu_si512(codes + 64 * (j + s)), field, fields);
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

ALWAYS_INLINE void superblock_of(const uint8_t *codes, const struct rows *x, const __m512 weight_scale[4],
                                 __m512 acc[MOST_ROWS], int fields, const int rows, const bool prefetch) {
    switch (fields) {
    case 1:
        superblock(codes, x, weight_scale, acc, 1, rows, prefetch);
        break;
    case 2:
        superblock(codes, x, weight_scale, acc, 2, rows, prefetch);
        break;
    case 3:
        superblock(codes, x, weight_scale, acc, 3, rows, prefetch);
        break;
    default:
        superblock(codes, x, weight_scale, acc, 4, rows, prefetch);
        break;
    }
}

ALWAYS_INLINE void superblock_scales(const struct chm_ternary *w, const uint8_t *record, int64_t super, int fields,
                                     __m512 weight_scale[4]) {
    for (int f = 0; f < fields; f++) weight_scale[f] = tile_scales(record, 64 * (4 * super + f) / w->group);
}

/* 1 to 4 rows: the codes stream by and the sums stay in registers */
ALWAYS_INLINE void stream(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                          float *y, int64_t ldy, const int rows) {
    const int64_t supers = chm_ternary_superblocks(w->in), blocks = portable_blocks(w->in);
    const int64_t stride = chm_ternary_scale_stride(w->in, w->group), full = blocks / 4;
    for (int64_t tile = tile0; tile < tile1; tile++) {
        const uint8_t *record = w->scales + tile * stride, *codes = w->codes + tile * supers * 1024;
        __m512 acc[MOST_ROWS], weight_scale[4];
        struct rows at;
        UNROLL for (int r = 0; r < rows; r++) {
            acc[r] = _mm512_setzero_ps();
            at.q[r] = x->q + 64 * r * x->blocks;
            at.scale[r] = x->scale + r * x->blocks;
            at.sum[r] = x->sum + r * x->blocks;
        }
        for (int64_t s = 0; s < full; s++) {
            UNROLL for (int f = 0; f < 4; f++) weight_scale[f] = tile_scales(record, 64 * (4 * s + f) / w->group);
            superblock(codes + 1024 * s, &at, weight_scale, acc, 4, rows, true);
            UNROLL for (int r = 0; r < rows; r++) {
                at.q[r] += 256;
                at.scale[r] += 4;
                at.sum[r] += 4;
            }
        }
        if (blocks % 4 != 0) {
            superblock_scales(w, record, full, (int)(blocks % 4), weight_scale);
            superblock_of(codes + 1024 * full, &at, weight_scale, acc, (int)(blocks % 4), rows, false);
        }
        const __mmask16 columns = lanes(w->out - 16 * tile);
        UNROLL for (int r = 0; r < rows; r++) _mm512_mask_storeu_ps(y + r * ldy + 16 * tile, columns, acc[r]);
    }
}

static void stream_rows1(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                         float *y, int64_t ldy) {
    stream(w, tile0, tile1, x, y, ldy, 1);
}
static void stream_rows2(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                         float *y, int64_t ldy) {
    stream(w, tile0, tile1, x, y, ldy, 2);
}
static void stream_rows3(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                         float *y, int64_t ldy) {
    stream(w, tile0, tile1, x, y, ldy, 3);
}
static void stream_rows4(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                         float *y, int64_t ldy) {
    stream(w, tile0, tile1, x, y, ldy, 4);
}

/*
 * 5 rows and more: superblock by superblock, for a chunk of rows and a band of tiles. The activations of the superblock
 * are copied side by side, because rows a power of two apart would share cache sets, and serve every tile of the band;
 * its codes (1 KB) serve all the rows, four at a time; the results wait in `acc`.
 */
enum { PANEL_ROWS = 64, PANEL_TILES = 4 };

struct panel {
    int8_t q[PANEL_ROWS][256];
    float scale[PANEL_ROWS][4];
    int32_t sum[PANEL_ROWS][4];
    float acc[PANEL_TILES][PANEL_ROWS][16];
} __attribute__((aligned(64)));

ALWAYS_INLINE void panel_rows(const uint8_t *codes, const struct panel *p, int64_t row0, const __m512 weight_scale[4],
                              float (*to)[16], int fields, const int rows) {
    struct rows at;
    __m512 acc[MOST_ROWS];
    UNROLL for (int r = 0; r < rows; r++) {
        at.q[r] = p->q[row0 + r];
        at.scale[r] = p->scale[row0 + r];
        at.sum[r] = p->sum[row0 + r];
        acc[r] = _mm512_loadu_ps(to[row0 + r]);
    }
    superblock_of(codes, &at, weight_scale, acc, fields, rows, false);
    UNROLL for (int r = 0; r < rows; r++) _mm512_storeu_ps(to[row0 + r], acc[r]);
}

static void panel_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                         float *y, int64_t ldy) {
    const int64_t supers = chm_ternary_superblocks(w->in), blocks = portable_blocks(w->in);
    const int64_t stride = chm_ternary_scale_stride(w->in, w->group);
    struct panel p;
    for (int64_t row0 = 0; row0 < x->rows; row0 += PANEL_ROWS) {
        const int64_t rows = portable_min(PANEL_ROWS, x->rows - row0);
        for (int64_t band = tile0; band < tile1; band += PANEL_TILES) {
            const int64_t tiles = portable_min(PANEL_TILES, tile1 - band);
            for (int64_t t = 0; t < tiles; t++) memset(p.acc[t], 0, (size_t)rows * sizeof p.acc[t][0]);
            for (int64_t s = 0; s < supers; s++) {
                const int fields = (int)portable_min(4, blocks - 4 * s);
                for (int64_t r = 0; r < rows; r++) {
                    const int64_t at = (row0 + r) * x->blocks + 4 * s;
                    memcpy(p.q[r], x->q + 64 * at, (size_t)fields * 64);
                    memcpy(p.scale[r], x->scale + at, (size_t)fields * sizeof(float));
                    memcpy(p.sum[r], x->sum + at, (size_t)fields * sizeof(int32_t));
                }
                for (int64_t t = 0; t < tiles; t++) {
                    const uint8_t *codes = w->codes + ((band + t) * supers + s) * 1024;
                    __m512 weight_scale[4];
                    superblock_scales(w, w->scales + (band + t) * stride, s, fields, weight_scale);
                    int64_t r = 0;
                    for (; r + 4 <= rows; r += 4) panel_rows(codes, &p, r, weight_scale, p.acc[t], fields, 4);
                    switch (rows - r) {
                    case 1:
                        panel_rows(codes, &p, r, weight_scale, p.acc[t], fields, 1);
                        break;
                    case 2:
                        panel_rows(codes, &p, r, weight_scale, p.acc[t], fields, 2);
                        break;
                    case 3:
                        panel_rows(codes, &p, r, weight_scale, p.acc[t], fields, 3);
                        break;
                    default:
                        break;
                    }
                }
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

static void ternary_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                           float *y, int64_t ldy) {
    switch (x->rows) {
    case 0:
        break;
    case 1:
        stream_rows1(w, tile0, tile1, x, y, ldy);
        break;
    case 2:
        stream_rows2(w, tile0, tile1, x, y, ldy);
        break;
    case 3:
        stream_rows3(w, tile0, tile1, x, y, ldy);
        break;
    case 4:
        stream_rows4(w, tile0, tile1, x, y, ldy);
        break;
    default:
        panel_matmul(w, tile0, tile1, x, y, ldy);
        break;
    }
}

/* ---- int8 products -----------------------------------------------------------------------------------------------
 *
 * One operand must be unsigned. With the dot product it is the weight + 128, and 128 times the sum of the activations
 * is subtracted; without it |w| times a that carries the sign of w, of which two products of 127 * 127 fit int16.
 */

struct weight {
    __m512i bytes;
    __mmask64 negative;
};

ALWAYS_INLINE struct weight take_weight(__m512i w) {
#if defined(AVX512_VNNI)
    return (struct weight){_mm512_xor_si512(w, _mm512_set1_epi8(-128)), 0};
#else
    return (struct weight){_mm512_abs_epi8(w), _mm512_movepi8_mask(w)};
#endif
}

ALWAYS_INLINE __m512i multiply_weight(__m512i sum, struct weight w, __m512i a) {
#if defined(AVX512_VNNI)
    return _mm512_dpbusd_epi32(sum, w.bytes, a);
#else
    const __m512i b = _mm512_mask_sub_epi8(a, w.negative, _mm512_setzero_si512(), a);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w.bytes, b), _mm512_set1_epi16(1)));
#endif
}

ALWAYS_INLINE __m512i finish_dot(__m512i sum, int32_t activations) {
#if defined(AVX512_VNNI)
    return _mm512_sub_epi32(sum, _mm512_set1_epi32(128 * activations));
#else
    (void)activations;
    return sum;
#endif
}

/* sums of 16 vectors of 16 int32, one in each lane */
ALWAYS_INLINE __m512i sum_lanes(const __m512i v[16]) {
    __m512i a[8], b[4];
    UNROLL for (int i = 0; i < 8; i++) a[i] =
        _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    UNROLL for (int i = 0; i < 4; i++) b[i] =
        _mm512_add_epi32(_mm512_unpacklo_epi64(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
    const __m512i c = _mm512_add_epi32(_mm512_shuffle_i32x4(b[0], b[1], 0x88), _mm512_shuffle_i32x4(b[0], b[1], 0xdd));
    const __m512i d = _mm512_add_epi32(_mm512_shuffle_i32x4(b[2], b[3], 0x88), _mm512_shuffle_i32x4(b[2], b[3], 0xdd));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xdd));
}

/* 16 outputs of few rows: a dot product of 64 bytes each, summed across */
static void int8_few(const int8_t *const w[16], __m512 weight_scale, int64_t blocks, const struct chm_activation *x,
                     float *y, int64_t ldy, __mmask16 columns) {
    for (int64_t row = 0; row < x->rows; row++) {
        __m512 acc = _mm512_setzero_ps();
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t at = row * x->blocks + b;
            const __m512i a = _mm512_loadu_si512(x->q + 64 * at);
            __m512i dot[16];
            UNROLL for (int i = 0; i < 16; i++) dot[i] =
                multiply_weight(_mm512_setzero_si512(), take_weight(_mm512_loadu_si512(w[i] + 64 * b)), a);
            acc = apply_block(acc, finish_dot(sum_lanes(dot), x->sum[at]), x->scale[at], weight_scale);
        }
        _mm512_mask_storeu_ps(y + row * ldy, columns, acc);
    }
}

/* `rows` rows times a block of 16 outputs x 64 inputs turned over: step j holds inputs 4j..4j+3 of each output */
ALWAYS_INLINE void int8_rows(const __m512i turned[16], __m512 weight_scale, const struct chm_activation *x,
                             int64_t row0, int64_t block, float (*to)[16], const int rows) {
    __m512i sum[4][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
    UNROLL4 for (int j = 0; j < 16; j += 2) UNROLL for (int s = 0; s < 2; s++) {
        const struct weight w = take_weight(turned[j + s]);
        UNROLL for (int r = 0; r < rows; r++) {
            const int8_t *q = x->q + 64 * ((row0 + r) * x->blocks + block);
            sum[r][s] = multiply_weight(sum[r][s], w, broadcast4(q + 4 * (j + s)));
            KEEP(sum[r][s]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        const int64_t at = (row0 + r) * x->blocks + block;
        const __m512i dot = finish_dot(_mm512_add_epi32(sum[r][0], sum[r][1]), x->sum[at]);
        _mm512_storeu_ps(to[r], apply_block(_mm512_loadu_ps(to[r]), dot, x->scale[at], weight_scale));
    }
}

static void int8_many(const int8_t *const w[16], __m512 weight_scale, int64_t blocks, const struct chm_activation *x,
                      float *y, int64_t ldy, __mmask16 columns) {
    float acc[PANEL_ROWS][16];
    for (int64_t row0 = 0; row0 < x->rows; row0 += PANEL_ROWS) {
        const int64_t rows = portable_min(PANEL_ROWS, x->rows - row0);
        memset(acc, 0, (size_t)rows * sizeof acc[0]);
        for (int64_t b = 0; b < blocks; b++) {
            __m512i turned[16];
            UNROLL for (int i = 0; i < 16; i++) turned[i] = _mm512_loadu_si512(w[i] + 64 * b);
            transpose16(turned);
            int64_t r = 0;
            for (; r + 4 <= rows; r += 4) int8_rows(turned, weight_scale, x, row0 + r, b, acc + r, 4);
            for (; r < rows; r++) int8_rows(turned, weight_scale, x, row0 + r, b, acc + r, 1);
        }
        for (int64_t r = 0; r < rows; r++)
            _mm512_mask_storeu_ps(y + (row0 + r) * ldy, columns, _mm512_loadu_ps(acc[r]));
    }
}

static void int8_matmul(const struct chm_int8_matrix *w, int64_t out0, int64_t out1, const struct chm_activation *x,
                        float *y, int64_t ldy) {
    for (int64_t o = out0; o < out1; o += 16) {
        const __mmask16 columns = lanes(out1 - o);
        const int8_t *p[16];
        for (int i = 0; i < 16; i++) p[i] = w->q + (o + portable_min(i, out1 - o - 1)) * w->blocks * 64;
        const __m512 weight_scale = _mm512_maskz_loadu_ps(columns, w->scale + o);
        if (x->rows < 4)
            int8_few(p, weight_scale, w->blocks, x, y + o, ldy, columns);
        else
            int8_many(p, weight_scale, w->blocks, x, y + o, ldy, columns);
    }
}
