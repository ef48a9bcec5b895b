/*
 * avx2_products.h: the ternary and the int8 product with 256-bit vectors. Included twice: by avx2.c, and by avx2_vnni.c
 * with AVX_VNNI defined, where vpdpbusd multiplies and adds four bytes to an int32 at once.
 */
#include "avx2.h"

/* ---- Ternary products --------------------------------------------------------------------------------------------
 *
 * A 32-byte vector holds 8 rows of a tile x 4 inputs, so one maddubs with 4 activations broadcast makes 8 x 2 partial
 * sums of two products, lane pair r belonging to row r, and there are no horizontal sums. Codes are w + 1 in 0..2; the
 * sum of the activations is subtracted from the dot. int16 holds a whole block of 64: 16 steps of at most 4 * 127 for
 * plain codes, of at most 16 * 127 (sum 32512) for codes left shifted by two, whose dot is then divided exactly. With
 * the dot product the sums are int32 and codes stay where they are in the byte: sums carry 1, 4, 16, 64.
 */

/* The four fields of a vector of codes, ready for multiply_add(). */
ALWAYS_INLINE void split(__m256i codes, __m256i field[4]) {
#if defined(AVX_VNNI)
    UNROLL for (int f = 0; f < 4; f++) field[f] = _mm256_and_si256(codes, _mm256_set1_epi8((char)(3 << 2 * f)));
#else
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12), shifted = _mm256_srli_epi16(codes, 4);
    field[0] = _mm256_and_si256(codes, low);
    field[1] = _mm256_and_si256(codes, high);
    field[2] = _mm256_and_si256(shifted, low);
    field[3] = _mm256_and_si256(shifted, high);
#endif
}

ALWAYS_INLINE __m256i multiply_add(__m256i sum, __m256i codes, __m256i activations) {
#if defined(AVX_VNNI)
    return BYTE_DOT(sum, codes, activations);
#else
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, activations));
#endif
}

/* int32 sums of codes times activations, out of the sums of codes that are not shifted, or of field f as split() has it
 */
ALWAYS_INLINE __m256i plain_sum(__m256i sum) {
#if defined(AVX_VNNI)
    return sum;
#else
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
#endif
}
ALWAYS_INLINE __m256i field_sum(__m256i sum, const int f) {
#if defined(AVX_VNNI)
    return f > 0 ? _mm256_srai_epi32(sum, 2 * f) : sum;
#else
    return f & 1 ? _mm256_srai_epi32(plain_sum(sum), 2) : plain_sum(sum);
#endif
}

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

/* A whole superblock, or one block left over whose fields are its own quarters: for `halves` x 8 rows of the tile and
 * `rows` activation rows. */
ALWAYS_INLINE void stream_unit(const uint8_t *codes, const uint8_t *record, int64_t group, int64_t first,
                               const struct chm_activation *x, int64_t row0, int half0, __m256 acc[3][2],
                               const bool whole, const int halves, const int rows) {
    const int steps = whole ? 16 : 4, dots = whole ? 4 : 1;
    const int8_t *q[3];
    __m256i sum[3][2][4];
    UNROLL for (int r = 0; r < rows; r++) {
        q[r] = x->q + 64 * ((row0 + r) * x->blocks + first);
        UNROLL for (int h = 0; h < halves; h++) UNROLL for (int f = 0; f < 4; f++) sum[r][h][f] =
            _mm256_setzero_si256();
    }
#if defined(__clang__)
#pragma clang loop unroll_count(4)
#else
#pragma GCC unroll 4
#endif
    for (int j = 0; j < steps; j++) {
        if (half0 == 0 && whole) _mm_prefetch((const char *)(codes + 64 * j + PREFETCH_BYTES), _MM_HINT_T0);
        __m256i field[2][4];
        UNROLL for (int h = 0; h < halves; h++) {
            split(_mm256_loadu_si256((const __m256i *)(codes + 64 * j + 32 * (half0 + h))), field[h]);
        }
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int f = 0; f < 4; f++) {
            const __m256i a = broadcast4(q[r] + (whole ? 64 : 16) * f + 4 * j);
            UNROLL for (int h = 0; h < halves; h++) {
                sum[r][h][f] = multiply_add(sum[r][h][f], field[h][f], a);
                KEEP(sum[r][h][f]);
            }
        }
    }
    UNROLL for (int f = 0; f < dots; f++) {
        const int64_t g = 64 * (first + f) / group;
        UNROLL for (int h = 0; h < halves; h++) {
            const __m256 weight_scale = tile_scales(record, g, half0 + h);
            UNROLL for (int r = 0; r < rows; r++) {
                const int64_t b = (row0 + r) * x->blocks + first + f;
                __m256i dot = _mm256_sub_epi32(field_sum(sum[r][h][f], f), _mm256_set1_epi32(x->sum[b]));
                if (!whole) UNROLL for (int i = 1; i < 4; i++) dot = _mm256_add_epi32(dot, field_sum(sum[r][h][i], i));
                acc[r][h] = apply_block(acc[r][h], dot, x->scale[b], weight_scale);
            }
        }
    }
}

/* 1 to 3 rows: decode in registers while the codes stream by */
ALWAYS_INLINE void stream_tile(const struct chm_ternary *w, int64_t tile, const struct chm_activation *x, int64_t row0,
                               float *y, int64_t ldy, const int rows) {
    const int64_t blocks = chm_ternary_blocks(w->in), whole = blocks / 4 * 4;
    const int64_t columns = portable_min(16, w->out - 16 * tile);
    const uint8_t *record = w->scales + tile * chm_ternary_scale_stride(w->in, w->group);
    const uint8_t *codes = w->codes + tile * 256 * blocks;
    const int halves = rows == 1 ? 2 : 1; /* what the 16 registers hold */
    float out[3][16];
    for (int half = 0; half < 2; half += halves) {
        __m256 acc[3][2];
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int h = 0; h < halves; h++) acc[r][h] = _mm256_setzero_ps();
        for (int64_t b = 0; b < whole; b += 4)
            stream_unit(codes + 256 * b, record, w->group, b, x, row0, half, acc, true, halves, rows);
        for (int64_t b = whole; b < blocks; b++)
            stream_unit(codes + 256 * b, record, w->group, b, x, row0, half, acc, false, halves, rows);
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

/* a whole superblock, or a block left over, whose step j is quarter j / 4 of vector j % 4 */
ALWAYS_INLINE void expand(const uint8_t *codes, struct panel *p, const bool whole) {
    const __m256i low = _mm256_set1_epi8(3);
    for (int j = 0; j < (whole ? 32 : 8); j++) {
        const __m256i c = _mm256_loadu_si256((const __m256i *)(codes + 32 * j));
        UNROLL for (int f = 0; f < 4; f++) {
            uint8_t *to = whole ? p->code[f][j / 2] : p->code[0][4 * f + j / 2];
            _mm256_store_si256((__m256i *)(to + 32 * (j % 2)),
                               _mm256_and_si256(f > 0 ? _mm256_srli_epi16(c, 2 * f) : c, low));
        }
    }
}

ALWAYS_INLINE void panel_rows(const struct panel *p, int field, int64_t row0, float (*acc)[16], const int rows) {
    __m256i sum[PANEL_BLOCK][2];
    UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    const int8_t *q = p->q[row0] + 64 * field;
    UNROLL for (int j = 0; j < 16; j++) {
        const __m256i w0 = _mm256_load_si256((const __m256i *)p->code[field][j]);
        const __m256i w1 = _mm256_load_si256((const __m256i *)(p->code[field][j] + 32));
        UNROLL for (int r = 0; r < rows; r++) {
            const __m256i a = broadcast4(q + 256 * r + 4 * j);
            sum[r][0] = multiply_add(sum[r][0], w0, a);
            sum[r][1] = multiply_add(sum[r][1], w1, a);
            KEEP(sum[r][0]);
            KEEP(sum[r][1]);
        }
    }
    const __m256 s0 = _mm256_loadu_ps(p->weight_scale[field]), s1 = _mm256_loadu_ps(p->weight_scale[field] + 8);
    UNROLL for (int r = 0; r < rows; r++) {
        const float act_scale = p->act_scale[row0 + r][field];
        const __m256i act_sum = _mm256_set1_epi32(p->act_sum[row0 + r][field]);
        float *to = acc[row0 + r];
        const __m256i d0 = _mm256_sub_epi32(plain_sum(sum[r][0]), act_sum);
        const __m256i d1 = _mm256_sub_epi32(plain_sum(sum[r][1]), act_sum);
        _mm256_storeu_ps(to, apply_block(_mm256_loadu_ps(to), d0, act_scale, s0));
        _mm256_storeu_ps(to + 8, apply_block(_mm256_loadu_ps(to + 8), d1, act_scale, s1));
    }
}

static void panel_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                         float *y, int64_t ldy) {
    const int64_t blocks = chm_ternary_blocks(w->in);
    const int64_t stride = chm_ternary_scale_stride(w->in, w->group);
    struct panel p;
    for (int64_t row0 = 0; row0 < x->rows; row0 += PANEL_ROWS) {
        const int64_t rows = portable_min(PANEL_ROWS, x->rows - row0);
        for (int64_t band = tile0; band < tile1; band += PANEL_TILES) {
            const int64_t tiles = portable_min(PANEL_TILES, tile1 - band);
            for (int64_t t = 0; t < tiles; t++) memset(p.acc[t], 0, (size_t)rows * sizeof p.acc[t][0]);
            for (int64_t b = 0; b < blocks;) {
                const bool whole = b + 4 <= blocks;
                const int fields = whole ? 4 : 1;
                for (int64_t r = 0; r < rows; r++) {
                    const int64_t at = (row0 + r) * x->blocks + b;
                    memcpy(p.q[r], x->q + 64 * at, (size_t)fields * 64);
                    for (int f = 0; f < fields; f++) {
                        p.act_scale[r][f] = x->scale[at + f];
                        p.act_sum[r][f] = x->sum[at + f];
                    }
                }
                for (int64_t t = 0; t < tiles; t++) {
                    const uint8_t *codes = w->codes + 256 * ((band + t) * blocks + b);
                    const uint8_t *record = w->scales + (band + t) * stride;
                    if (whole)
                        expand(codes, &p, true);
                    else
                        expand(codes, &p, false);
                    for (int f = 0; f < fields; f++)
                        for (int half = 0; half < 2; half++)
                            _mm256_storeu_ps(p.weight_scale[f] + 8 * half,
                                             tile_scales(record, 64 * (b + f) / w->group, half));
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
                b += fields;
            }
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t first = 16 * (band + t), columns = portable_min(16, w->out - first);
                for (int64_t r = 0; r < rows; r++) store_columns(y + (row0 + r) * ldy + first, p.acc[t][r], columns);
            }
        }
    }
}

static void t2_matmul(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
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

/* sum + w * a in fours: |w| times a carrying the sign of w, an unsigned and a signed operand; two products of 127 * 127
 * fit int16 */
ALWAYS_INLINE __m256i signed_dot(__m256i sum, __m256i w, __m256i a) {
    const __m256i magnitude = _mm256_abs_epi8(w), carried = _mm256_sign_epi8(a, w);
#if defined(AVX_VNNI)
    return BYTE_DOT(sum, magnitude, carried);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, carried), _mm256_set1_epi16(1)));
#endif
}

/* 8 outputs at a time */
static void int8_matmul(const struct chm_int8_matrix *w, int64_t out0, int64_t out1, const struct chm_activation *x,
                        float *y, int64_t ldy) {
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
                    dot[i] = signed_dot(signed_dot(_mm256_setzero_si256(), w0, a0), w1, a1);
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
