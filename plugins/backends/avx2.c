/*
 * avx2.c: the backend for x86 with AVX2. Most slots are portable.h compiled for 256-bit vectors; the products and the
 * quantiser are written with intrinsics. All of it gives scalar's bytes: integer dots are exact, and every float result
 * goes through the same operations in the same order.
 */
#include "portable.h"
#include "avx2_train.h"

#include <immintrin.h>

/* Constant arguments decide how these are unrolled, so they must be inlined whatever the compiler thinks of it. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Keeps a running sum running: gcc would collect the terms of an unrolled integer sum, spill them all and add them up
 * in the end. */
#define KEEP(v) __asm__("" : "+x"(v))

/* ---- Quantise ---------------------------------------------------------------------------------------------------- */

ALWAYS_INLINE void quantise_block(const float *v, int8_t *q, float *scale, int32_t *sum) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i top = _mm256_setzero_si256();
    __m256 x[8];
    UNROLL for (int i = 0; i < 8; i++) {
        x[i] = _mm256_loadu_ps(v + 8 * i);
        top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(x[i]), magnitude));
    }
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1));
    const uint32_t bits = (uint32_t)_mm_cvtsi128_si32(most);
    const float absmax = portable_float(bits);
    if (bits >= 0x7f800000u || absmax < PORTABLE_ABSMAX_MIN) {
        _mm256_storeu_si256((__m256i *)q, _mm256_setzero_si256());
        _mm256_storeu_si256((__m256i *)(q + 32), _mm256_setzero_si256());
        *scale = bits >= 0x7f800000u ? NAN : 0.0f;
        *sum = 0;
        return;
    }
    const __m256 inverse = _mm256_set1_ps(127.0f / absmax);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i total = _mm256_setzero_si256();
    UNROLL for (int h = 0; h < 2; h++) {
        __m256i n[4];
        UNROLL for (int i = 0; i < 4; i++) {
            n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(x[4 * h + i], inverse)); /* nearest, ties to even */
            total = _mm256_add_epi32(total, n[i]);
        }
        const __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
        _mm256_storeu_si256((__m256i *)(q + 32 * h), _mm256_permutevar8x32_epi32(p, order));
    }
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    *scale = absmax / 127.0f;
    *sum = _mm_cvtsi128_si32(t);
}

static void quantise(const float *x, int64_t rows, int64_t width, int8_t *q, float *scale, int32_t *sum) {
    const int64_t blocks = portable_blocks(width);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t b = 0; b < blocks; b++) {
            const float *v = x + row * width + 64 * b;
            const int64_t n = portable_min(64, width - 64 * b), at = row * blocks + b;
            float padded[64];
            if (n < 64) {
                memset(padded, 0, sizeof padded);
                memcpy(padded, v, (size_t)n * sizeof *v);
                v = padded;
            }
            quantise_block(v, q + 64 * at, scale + at, sum + at);
        }
    }
}

/* ---- Ternary products --------------------------------------------------------------------------------------------
 *
 * A 32-byte vector holds 8 rows of a tile x 4 inputs, so one maddubs with 4 activations broadcast makes 8 x 2 partial
 * sums of two products, lane pair r belonging to row r, and there are no horizontal sums. Codes are w + 1 in 0..2; the
 * sum of the activations is subtracted from the dot. int16 holds a whole block of 64: 16 steps of at most 4 * 127 for
 * plain codes, of at most 16 * 127 (sum 32512) for codes left shifted by two, whose dot is then divided exactly.
 */

ALWAYS_INLINE __m256i broadcast4(const int8_t *q) {
    int32_t four;
    memcpy(&four, q, sizeof four);
    return _mm256_set1_epi32(four);
}

/* scales of 8 rows for one group */
ALWAYS_INLINE __m256 tile_scales(const uint8_t *record, int64_t group, int half) {
    const __m128i code = _mm_loadl_epi64((const __m128i *)(record + 64 + 16 * group + 8 * half));
    const __m256 row_scale = _mm256_loadu_ps((const float *)(const void *)record + 8 * half);
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(code)), row_scale);
}

/* acc + float(dot) * (act_scale * weight_scale) */
ALWAYS_INLINE __m256 apply_block(__m256 acc, __m256i dot, float act_scale, __m256 weight_scale) {
    const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(act_scale), weight_scale);
    return _mm256_add_ps(acc, _mm256_mul_ps(_mm256_cvtepi32_ps(dot), scale));
}

ALWAYS_INLINE void store_columns(float *y, const float *from, int64_t columns) {
    if (columns >= 16) {
        _mm256_storeu_ps(y, _mm256_loadu_ps(from));
        _mm256_storeu_ps(y + 8, _mm256_loadu_ps(from + 8));
    } else {
        memcpy(y, from, (size_t)columns * sizeof *y);
    }
}

/* Codes stream from memory once and the hardware prefetcher alone leaves half the bandwidth unused. */
enum { PREFETCH_BYTES = 4096 };

/* One superblock, `fields` of its four blocks, for `halves` x 8 rows of the tile and `rows` activation rows. */
ALWAYS_INLINE void stream_superblock(const uint8_t *codes, const uint8_t *record, int64_t group, int64_t super,
                                     const struct chm_activation *x, int64_t row0, int half0, __m256 acc[3][2],
                                     const int fields, const int halves, const int rows) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12), one = _mm256_set1_epi16(1);
    const int64_t at = 4 * super;
    const int8_t *q[3];
    __m256i sum[3][2][4];
    UNROLL for (int r = 0; r < rows; r++) {
        q[r] = x->q + 64 * ((row0 + r) * x->blocks + at);
        UNROLL for (int h = 0; h < halves; h++) UNROLL for (int f = 0; f < fields; f++) sum[r][h][f] =
            _mm256_setzero_si256();
    }
#if defined(__clang__)
#pragma clang loop unroll_count(4)
#else
#pragma GCC unroll 4
#endif
    for (int j = 0; j < 16; j++) {
        if (half0 == 0) _mm_prefetch((const char *)(codes + 64 * j + PREFETCH_BYTES), _MM_HINT_T0);
        __m256i field[2][4];
        UNROLL for (int h = 0; h < halves; h++) {
            const __m256i c = _mm256_loadu_si256((const __m256i *)(codes + 64 * j + 32 * (half0 + h)));
            field[h][0] = _mm256_and_si256(c, low);
            if (fields > 1) field[h][1] = _mm256_and_si256(c, high);
            if (fields > 2) {
                const __m256i d = _mm256_srli_epi16(c, 4);
                field[h][2] = _mm256_and_si256(d, low);
                if (fields > 3) field[h][3] = _mm256_and_si256(d, high);
            }
        }
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < fields; f++) {
            const __m256i a = broadcast4(q[r] + 64 * f + 4 * j);
            UNROLL for (int h = 0; h < halves; h++) {
                sum[r][h][f] = _mm256_add_epi16(sum[r][h][f], _mm256_maddubs_epi16(field[h][f], a));
                KEEP(sum[r][h][f]);
            }
        }
    }
    UNROLL for (int f = 0; f < fields; f++) {
        const int64_t g = 64 * (at + f) / group;
        UNROLL for (int h = 0; h < halves; h++) {
            const __m256 weight_scale = tile_scales(record, g, half0 + h);
            UNROLL for (int r = 0; r < rows; r++) {
                const int64_t b = (row0 + r) * x->blocks + at + f;
                __m256i dot = _mm256_madd_epi16(sum[r][h][f], one);
                if (f & 1) dot = _mm256_srai_epi32(dot, 2);
                dot = _mm256_sub_epi32(dot, _mm256_set1_epi32(x->sum[b]));
                acc[r][h] = apply_block(acc[r][h], dot, x->scale[b], weight_scale);
            }
        }
    }
}

/* 1 to 3 rows: decode in registers while the codes stream by */
ALWAYS_INLINE void stream_tile(const struct chm_ternary *w, int64_t tile, const struct chm_activation *x, int64_t row0,
                               float *y, int64_t ldy, const int rows) {
    const int64_t supers = chm_ternary_superblocks(w->in), blocks = portable_blocks(w->in);
    const int64_t full = blocks / 4, columns = portable_min(16, w->out - 16 * tile);
    const uint8_t *record = w->scales + tile * chm_ternary_scale_stride(w->in, w->group);
    const uint8_t *codes = w->codes + tile * supers * 1024;
    const int halves = rows == 1 ? 2 : 1; /* what the 16 registers hold */
    float out[3][16];
    for (int half = 0; half < 2; half += halves) {
        __m256 acc[3][2];
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int h = 0; h < halves; h++) acc[r][h] = _mm256_setzero_ps();
        for (int64_t s = 0; s < full; s++)
            stream_superblock(codes + 1024 * s, record, w->group, s, x, row0, half, acc, 4, halves, rows);
        switch (blocks % 4) {
        case 1:
            stream_superblock(codes + 1024 * full, record, w->group, full, x, row0, half, acc, 1, halves, rows);
            break;
        case 2:
            stream_superblock(codes + 1024 * full, record, w->group, full, x, row0, half, acc, 2, halves, rows);
            break;
        case 3:
            stream_superblock(codes + 1024 * full, record, w->group, full, x, row0, half, acc, 3, halves, rows);
            break;
        default:
            break;
        }
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int h = 0; h < halves; h++)
            _mm256_storeu_ps(out[r] + 8 * (half + h), acc[r][h]);
    }
    UNROLL for (int r = 0; r < rows; r++) store_columns(y + (row0 + r) * ldy + 16 * tile, out[r], columns);
}

static void stream_rows1(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                         float *y, int64_t ldy) {
    for (int64_t tile = tile0; tile < tile1; tile++) stream_tile(w, tile, x, 0, y, ldy, 1);
}
static void stream_rows2(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                         float *y, int64_t ldy) {
    for (int64_t tile = tile0; tile < tile1; tile++) stream_tile(w, tile, x, 0, y, ldy, 2);
}
static void stream_rows3(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                         float *y, int64_t ldy) {
    for (int64_t tile = tile0; tile < tile1; tile++) stream_tile(w, tile, x, 0, y, ldy, 3);
}

/*
 * 4 rows and more: a superblock is expanded to bytes (4 KB, in L1) and every activation row runs over it. Rows go in
 * chunks, whose activations are copied side by side because rows a power of two apart would share cache sets, and tiles
 * in bands, so that the copy is made once for several tiles.
 */
enum { PANEL_ROWS = 64, PANEL_TILES = 8, PANEL_BLOCK = 4 };

struct panel {
    uint8_t code[4][16][64];        /* [field][step][8 rows x 4 inputs, twice] */
    float weight_scale[4][16];      /* [field][row of the tile] */
    int8_t q[PANEL_ROWS][256];      /* activations of this superblock */
    float act_scale[PANEL_ROWS][4]; /* [row][field] */
    int32_t act_sum[PANEL_ROWS][4];
    float acc[PANEL_TILES][PANEL_ROWS][16];
} __attribute__((aligned(64)));

ALWAYS_INLINE void expand(const uint8_t *codes, struct panel *p, const int fields) {
    const __m256i low = _mm256_set1_epi8(3);
    for (int j = 0; j < 32; j++) {
        const __m256i c = _mm256_loadu_si256((const __m256i *)(codes + 32 * j));
        UNROLL for (int f = 0; f < fields; f++)
            _mm256_store_si256((__m256i *)&p->code[f][j / 2][32 * (j % 2)],
                               _mm256_and_si256(f > 0 ? _mm256_srli_epi16(c, 2 * f) : c, low));
    }
}

ALWAYS_INLINE void panel_rows(const struct panel *p, int field, int64_t row0, float (*acc)[16], const int rows) {
    const __m256i one = _mm256_set1_epi16(1);
    __m256i sum[PANEL_BLOCK][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    const int8_t *q = p->q[row0] + 64 * field;
    UNROLL for (int j = 0; j < 16; j++) {
        const __m256i w0 = _mm256_load_si256((const __m256i *)p->code[field][j]);
        const __m256i w1 = _mm256_load_si256((const __m256i *)(p->code[field][j] + 32));
        UNROLL for (int r = 0; r < rows; r++) {
            const __m256i a = broadcast4(q + 256 * r + 4 * j);
            sum[r][0] = _mm256_add_epi16(sum[r][0], _mm256_maddubs_epi16(w0, a));
            sum[r][1] = _mm256_add_epi16(sum[r][1], _mm256_maddubs_epi16(w1, a));
            KEEP(sum[r][0]);
            KEEP(sum[r][1]);
        }
    }
    const __m256 s0 = _mm256_loadu_ps(p->weight_scale[field]), s1 = _mm256_loadu_ps(p->weight_scale[field] + 8);
    UNROLL for (int r = 0; r < rows; r++) {
        const float act_scale = p->act_scale[row0 + r][field];
        const __m256i act_sum = _mm256_set1_epi32(p->act_sum[row0 + r][field]);
        float *to = acc[row0 + r];
        const __m256i d0 = _mm256_sub_epi32(_mm256_madd_epi16(sum[r][0], one), act_sum);
        const __m256i d1 = _mm256_sub_epi32(_mm256_madd_epi16(sum[r][1], one), act_sum);
        _mm256_storeu_ps(to, apply_block(_mm256_loadu_ps(to), d0, act_scale, s0));
        _mm256_storeu_ps(to + 8, apply_block(_mm256_loadu_ps(to + 8), d1, act_scale, s1));
    }
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
                    for (int f = 0; f < fields; f++) {
                        p.act_scale[r][f] = x->scale[at + f];
                        p.act_sum[r][f] = x->sum[at + f];
                    }
                }
                for (int64_t t = 0; t < tiles; t++) {
                    const uint8_t *codes = w->codes + ((band + t) * supers + s) * 1024;
                    const uint8_t *record = w->scales + (band + t) * stride;
                    switch (fields) {
                    case 1:
                        expand(codes, &p, 1);
                        break;
                    case 2:
                        expand(codes, &p, 2);
                        break;
                    case 3:
                        expand(codes, &p, 3);
                        break;
                    default:
                        expand(codes, &p, 4);
                        break;
                    }
                    for (int f = 0; f < fields; f++)
                        for (int half = 0; half < 2; half++)
                            _mm256_storeu_ps(p.weight_scale[f] + 8 * half,
                                             tile_scales(record, 64 * (4 * s + f) / w->group, half));
                    for (int f = 0; f < fields; f++) {
                        int64_t r = 0;
                        for (; r + PANEL_BLOCK <= rows; r += PANEL_BLOCK) panel_rows(&p, f, r, p.acc[t], PANEL_BLOCK);
                        switch (rows - r) {
                        case 1:
                            panel_rows(&p, f, r, p.acc[t], 1);
                            break;
                        case 2:
                            panel_rows(&p, f, r, p.acc[t], 2);
                            break;
                        case 3:
                            panel_rows(&p, f, r, p.acc[t], 3);
                            break;
                        default:
                            break;
                        }
                    }
                }
            }
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t first = 16 * (band + t), columns = portable_min(16, w->out - first);
                for (int64_t r = 0; r < rows; r++) store_columns(y + (row0 + r) * ldy + first, p.acc[t][r], columns);
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
    default:
        panel_matmul(w, tile0, tile1, x, y, ldy);
        break;
    }
}

/* ---- Ternarise --------------------------------------------------------------------------------------------------- */

/* 8 trits, as -1, 0, 1, of w * (1/scale) */
ALWAYS_INLINE __m256i trits(__m256 w, __m256 inverse) {
    const __m256 t = _mm256_mul_ps(w, inverse);
    const __m256 above = _mm256_cmp_ps(t, _mm256_set1_ps(0.5f), _CMP_GT_OQ);
    const __m256 below = _mm256_cmp_ps(t, _mm256_set1_ps(-0.5f), _CMP_LT_OQ);
    return _mm256_sub_epi32(_mm256_castps_si256(below), _mm256_castps_si256(above));
}

/* 64 weights to codes 0..2, and to trit * scale */
ALWAYS_INLINE void ternarise_block(const float *w, float scale, uint8_t *code, float *dequant) {
    const __m256 inverse = _mm256_set1_ps(1.0f / scale), factor = _mm256_set1_ps(scale);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    UNROLL for (int h = 0; h < 2; h++) {
        __m256i t[4];
        UNROLL for (int i = 0; i < 4; i++) {
            t[i] = trits(_mm256_loadu_ps(w + 32 * h + 8 * i), inverse);
            if (dequant != NULL)
                _mm256_storeu_ps(dequant + 32 * h + 8 * i, _mm256_mul_ps(_mm256_cvtepi32_ps(t[i]), factor));
        }
        const __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(t[0], t[1]), _mm256_packs_epi32(t[2], t[3]));
        const __m256i c = _mm256_add_epi8(_mm256_permutevar8x32_epi32(p, order), _mm256_set1_epi8(1));
        _mm256_storeu_si256((__m256i *)(code + 32 * h), c);
    }
}

static void ternarise(const float *w, int64_t out, int64_t in, int64_t group, int64_t tile0, int64_t tile1,
                      uint8_t *codes, uint8_t *scales, float *dequant) {
    const int64_t supers = chm_ternary_superblocks(in);
    const int64_t stride = chm_ternary_scale_stride(in, group);
    for (int64_t tile = tile0; tile < tile1; tile++) {
        uint8_t *record = scales + tile * stride;
        float row_scale[16];
        portable_measure_tile(w, out, in, group, tile, record, row_scale);
        for (int64_t s = 0; s < supers; s++) {
            uint32_t packed[16][16]; /* [row][step]: four fields of four bytes */
            for (int r = 0; r < 16; r++) {
                const int64_t row = 16 * tile + r;
                uint8_t code[4][64];
                memset(code, 1, sizeof code);
                for (int f = 0; f < 4 && row < out; f++) {
                    const int64_t first = 256 * s + 64 * f, n = portable_min(64, in - first), block = first / group;
                    if (n <= 0) break;
                    const float scale = (float)record[64 + 16 * block + r] * row_scale[r];
                    const float *v = w + row * in + first;
                    float *d = dequant != NULL ? dequant + row * in + first : NULL;
                    if (n == 64) {
                        ternarise_block(v, scale, code[f], d);
                    } else { /* what pads is zero and becomes code 1 */
                        float padded[64] = {0}, out64[64];
                        memcpy(padded, v, (size_t)n * sizeof *v);
                        ternarise_block(padded, scale, code[f], out64);
                        if (d != NULL) memcpy(d, out64, (size_t)n * sizeof *d);
                    }
                }
                UNROLL for (int h = 0; h < 2; h++) {
                    __m256i c = _mm256_loadu_si256((const __m256i *)(code[0] + 32 * h));
                    UNROLL for (int f = 1; f < 4; f++) /* codes are at most 2: no bit crosses into the next byte */
                        c = _mm256_or_si256(
                            c, _mm256_slli_epi16(_mm256_loadu_si256((const __m256i *)(code[f] + 32 * h)), 2 * f));
                    _mm256_storeu_si256((__m256i *)(packed[r] + 8 * h), c);
                }
            }
            uint8_t *to = codes + (tile * supers + s) * 1024;
            for (int j = 0; j < 16; j++)
                for (int r = 0; r < 16; r++) memcpy(to + 64 * j + 4 * r, &packed[r][j], 4);
        }
    }
}

/* ---- int8 products ----------------------------------------------------------------------------------------------- */

/* sums of 8 vectors of 8 int32, one in each lane */
ALWAYS_INLINE __m256i sum_lanes(const __m256i v[8]) {
    __m256i a[4], b[2];
    UNROLL for (int i = 0; i < 4; i++) /* v[i], v[i + 4] side by side */
        a[i] = _mm256_add_epi32(_mm256_permute2x128_si256(v[i], v[i + 4], 0x20),
                                _mm256_permute2x128_si256(v[i], v[i + 4], 0x31));
    UNROLL for (int i = 0; i < 2; i++) b[i] =
        _mm256_add_epi32(_mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]), _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(b[0], b[1]), _mm256_unpackhi_epi64(b[0], b[1]));
}

/* 8 outputs at a time: |w| times a carrying the sign of w, so that maddubs sees an unsigned and a signed operand; two
 * products of 127 * 127 fit int16 */
static void int8_matmul(const struct chm_int8_matrix *w, int64_t out0, int64_t out1, const struct chm_activation *x,
                        float *y, int64_t ldy) {
    const __m256i one = _mm256_set1_epi16(1);
    for (int64_t o = out0; o < out1; o += 8) {
        const int64_t columns = portable_min(8, out1 - o);
        const int8_t *p[8];
        float scale[8];
        for (int i = 0; i < 8; i++) {
            const int64_t at = o + portable_min(i, columns - 1);
            p[i] = w->q + at * w->blocks * 64;
            scale[i] = w->scale[at];
        }
        const __m256 weight_scale = _mm256_loadu_ps(scale);
        for (int64_t row = 0; row < x->rows; row++) {
            __m256 acc = _mm256_setzero_ps();
            for (int64_t b = 0; b < w->blocks; b++) {
                const int8_t *q = x->q + 64 * (row * x->blocks + b);
                const __m256i a0 = _mm256_loadu_si256((const __m256i *)q);
                const __m256i a1 = _mm256_loadu_si256((const __m256i *)(q + 32));
                __m256i dot[8];
                UNROLL for (int i = 0; i < 8; i++) {
                    const __m256i w0 = _mm256_loadu_si256((const __m256i *)(p[i] + 64 * b));
                    const __m256i w1 = _mm256_loadu_si256((const __m256i *)(p[i] + 64 * b + 32));
                    const __m256i d0 = _mm256_maddubs_epi16(_mm256_abs_epi8(w0), _mm256_sign_epi8(a0, w0));
                    const __m256i d1 = _mm256_maddubs_epi16(_mm256_abs_epi8(w1), _mm256_sign_epi8(a1, w1));
                    dot[i] = _mm256_add_epi32(_mm256_madd_epi16(d0, one), _mm256_madd_epi16(d1, one));
                }
                acc = apply_block(acc, sum_lanes(dot), x->scale[row * x->blocks + b], weight_scale);
            }
            float *to = y + row * ldy + o;
            if (columns == 8) {
                _mm256_storeu_ps(to, acc);
            } else {
                float out[8];
                _mm256_storeu_ps(out, acc);
                memcpy(to, out, (size_t)columns * sizeof *to);
            }
        }
    }
}

/* ---- f32 products ------------------------------------------------------------------------------------------------ */

ALWAYS_INLINE float fold(__m256 a, __m256 b) {
    const __m256 eight = _mm256_add_ps(a, b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* lanes 0..n-1 */
ALWAYS_INLINE __m256i lane_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/* rows x outs sums at once, 16 lanes each. Masked lanes add a zero, which leaves a sum that began at +0 as it was. */
ALWAYS_INLINE void f32_block(const float *w, const float *x, int64_t in, float *y, int64_t ldy, const int rows,
                             const int outs) {
    __m256 s[3][4][2];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int o = 0; o < outs; o++) s[r][o][0] = s[r][o][1] =
        _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= in; i += 16) UNROLL for (int l = 0; l < 2; l++) {
            __m256 v[3];
            UNROLL for (int r = 0; r < rows; r++) v[r] = _mm256_loadu_ps(x + r * in + i + 8 * l);
            UNROLL for (int o = 0; o < outs; o++) {
                const __m256 u = _mm256_loadu_ps(w + o * in + i + 8 * l);
                UNROLL for (int r = 0; r < rows; r++) s[r][o][l] = _mm256_add_ps(s[r][o][l], _mm256_mul_ps(v[r], u));
            }
        }
    if (i < in) UNROLL for (int l = 0; l < 2; l++) {
            const __m256i mask = lane_mask(in - i - 8 * l);
            UNROLL for (int o = 0; o < outs; o++) {
                const __m256 u = _mm256_maskload_ps(w + o * in + i + 8 * l, mask);
                UNROLL for (int r = 0; r < rows; r++) s[r][o][l] =
                    _mm256_add_ps(s[r][o][l], _mm256_mul_ps(_mm256_maskload_ps(x + r * in + i + 8 * l, mask), u));
            }
        }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int o = 0; o < outs; o++) y[r * ldy + o] =
        fold(s[r][o][0], s[r][o][1]);
}

static void f32_matmul(const float *w, int64_t out0, int64_t out1, int64_t in, const float *x, int64_t rows, float *y,
                       int64_t ldy) {
    int64_t row = 0;
    for (; row + 3 <= rows; row += 3) {
        int64_t o = out0;
        for (; o + 2 <= out1; o += 2) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 3, 2);
        if (o < out1) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 3, 1);
    }
    for (; row < rows; row++) {
        int64_t o = out0;
        for (; o + 4 <= out1; o += 4) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 1, 4);
        for (; o < out1; o++) f32_block(w + o * in, x + row * in, in, y + row * ldy + o, ldy, 1, 1);
    }
}

/* ---- Attention, one row ------------------------------------------------------------------------------------------ */

/* weight[e] = scale * q.k[e] for `count` entries at once, 16 lanes each; q is loaded once for all */
ALWAYS_INLINE void attend_dots(const float *q, const float *const *k, int64_t dk, float scale, float *weight,
                               const int count) {
    __m256 s[4][2];
    UNROLL for (int e = 0; e < count; e++) s[e][0] = s[e][1] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= dk; i += 16) UNROLL for (int l = 0; l < 2; l++) {
            const __m256 u = _mm256_loadu_ps(q + i + 8 * l);
            UNROLL for (int e = 0; e < count; e++) s[e][l] =
                _mm256_add_ps(s[e][l], _mm256_mul_ps(u, _mm256_loadu_ps(k[e] + i + 8 * l)));
        }
    if (i < dk) UNROLL for (int l = 0; l < 2; l++) {
            const __m256i mask = lane_mask(dk - i - 8 * l);
            const __m256 u = _mm256_maskload_ps(q + i + 8 * l, mask);
            UNROLL for (int e = 0; e < count; e++) s[e][l] =
                _mm256_add_ps(s[e][l], _mm256_mul_ps(u, _mm256_maskload_ps(k[e] + i + 8 * l, mask)));
        }
    UNROLL for (int e = 0; e < count; e++) weight[e] = scale * fold(s[e][0], s[e][1]);
}

/* 64 value columns have their sums in 8 registers */
ALWAYS_INLINE void attend_columns(const float *weight, const float *const *v, int64_t n, int64_t first, float factor,
                                  float *o, const int vectors) {
    __m256 s[8];
    UNROLL for (int j = 0; j < vectors; j++) s[j] = _mm256_setzero_ps();
    for (int64_t e = 0; e < n; e++) {
        const __m256 w = _mm256_broadcast_ss(weight + e);
        const float *from = v[e] + first;
        UNROLL for (int j = 0; j < vectors; j++) s[j] =
            _mm256_add_ps(s[j], _mm256_mul_ps(w, _mm256_loadu_ps(from + 8 * j)));
    }
    UNROLL for (int j = 0; j < vectors; j++)
        _mm256_storeu_ps(o + first + 8 * j, _mm256_mul_ps(s[j], _mm256_set1_ps(factor)));
}

static void attend(const float *q, const float *const *k, const float *const *v, int64_t n, int64_t dk, int64_t dv,
                   float scale, float *weight, float *o) {
    int64_t e = 0;
    for (; e + 4 <= n; e += 4) attend_dots(q, k + e, dk, scale, weight + e, 4);
    for (; e < n; e++) attend_dots(q, k + e, dk, scale, weight + e, 1);
    const float factor = 1.0f / portable_softmax_weights(weight, n);
    int64_t j = 0;
    for (; j + 64 <= dv; j += 64) attend_columns(weight, v, n, j, factor, o, 8);
    for (; j + 16 <= dv; j += 16) attend_columns(weight, v, n, j, factor, o, 2);
    if (j < dv) portable_weighted_sum(weight, v, n, j, (int)(dv - j), factor, o);
}

static const struct chm_backend_ops avx2_ops = {
    .size = sizeof(struct chm_backend_ops),
    .rank = 200,
    .kernels =
        {
            .size = sizeof(struct chm_kernels),
            .quantise = quantise,
            .ternary_matmul = ternary_matmul,
            .int8_matmul = int8_matmul,
            .f32_matmul = f32_matmul,
            .rmsnorm = portable_rmsnorm,
            .l2norm = portable_l2norm,
            .unary = portable_unary,
            .swiglu = portable_swiglu,
            .logsumexp = portable_logsumexp,
            .delta_step = portable_delta_step,
            .delta_read = portable_delta_read,
            .ternarise = ternarise,
            .dequantise = portable_dequantise,
            .unary_backward = portable_unary_backward,
            .swiglu_backward = portable_swiglu_backward,
            .rmsnorm_backward = portable_rmsnorm_backward,
            .l2norm_backward = portable_l2norm_backward,
            .softmax_xent = portable_softmax_xent,
            .adamw = portable_adamw,
            .delta_chunk = chm_avx2_delta_chunk,
            .delta_chunk_read = chm_avx2_delta_chunk_read,
            .delta_chunk_backward = chm_avx2_delta_chunk_backward,
            .attend = attend,
            .attend_chunk = chm_avx2_attend_chunk,
            .attend_chunk_backward = chm_avx2_attend_chunk_backward,
        },
};

CHM_PLUGIN(avx2, .kind = CHM_KIND_BACKEND, .version = "1.0.0", .licence = "Apache-2.0",
           .summary = "Kernels for x86 with AVX2; training products with fused multiply-add",
           .cpu = CHM_CPU_AVX2 | CHM_CPU_FMA, .ops = &avx2_ops);
