/*
 * amx.c: the backend for x86 with tile registers (AMX-INT8), for products of 16 rows and more; fewer are those of
 * avx512_vbmi.c. A block of a tile of codes, expanded to bytes, is just what the second operand of a tile product is:
 * row k of the register has, for each of the 16 outputs, the codes of inputs 4k .. 4k + 3. One instruction multiplies
 * it by 64 inputs of 16 rows of activations; its sums are one block's, so scales are applied after every one and
 * nothing is rounded that scalar does not round.
 *
 * No machine with tiles was at hand when this was written: tests run it on a model of the registers in C
 * (tests/emulated/amx_emulated.h). Linux hands out tiles on request; the host asks when it looks at the CPU.
 */
#define AVX512_VNNI
#define AVX512_VBMI
#include "avx512_ternary.h"

#if defined(CHM_AMX_EMULATED)
#include CHM_AMX_EMULATED
#else
#define AMX_NAME                amx
#define AMX_RANK                600
#define AMX_CPU                 (CHM_CPU_AVX512 | CHM_CPU_AVX512_VNNI | CHM_CPU_AVX512_VBMI | CHM_CPU_AMX_INT8)
#define TILES_BEGIN(config)     _tile_loadconfig(config)
#define TILES_END()             _tile_release()
#define TILE_ZERO(t)            _tile_zero(t)
#define TILE_LOAD(t, from, row) _tile_loadd(t, from, row)
#define TILE_STORE(t, to, row)  _tile_stored(t, to, row)
#define TILE_DOT(sum, a, b)     _tile_dpbsud(sum, a, b) /* signed activations, unsigned codes */
#endif

TERNARY_KERNEL(t2, CHM_ENCODING_T2)
TERNARY_KERNEL(t5, CHM_ENCODING_T5)
TERNARY_KERNEL(sherry, CHM_ENCODING_SHERRY)

enum {
    TILE_ROWS = 16,
    CHUNK_ROWS = 128, /* whose results wait while a superblock is expanded */
};
/* registers: gcc's intrinsics want the number itself */
#define SUMS        0
#define ACTIVATIONS 1
#define CODES       2

/* What ldtilecfg reads: 16 rows of 64 bytes for each register used. */
struct config {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* One block's codes as bytes 0..2: what multiplies activations 4k .. 4k + 3 is vector k (sherry: of them turned). */
typedef uint8_t bytes_of[TILE_ROWS][64];

ALWAYS_INLINE void expand_fields(__m512i four, uint8_t (*to)[64], const int apart) {
    const __m512i low = _mm512_set1_epi8(3);
    _mm512_storeu_si512(to[0], _mm512_and_si512(four, low));
    _mm512_storeu_si512(to[apart], _mm512_and_si512(_mm512_srli_epi16(four, 2), low));
    _mm512_storeu_si512(to[2 * apart], _mm512_and_si512(_mm512_srli_epi16(four, 4), low));
    _mm512_storeu_si512(to[3 * apart], _mm512_and_si512(_mm512_srli_epi16(four, 6), low));
}

/* A superblock, or a block left over, to its blocks. */
ALWAYS_INLINE void expand(const int32_t encoding, const uint8_t *codes, const bool whole, bytes_of *to) {
    if (encoding == CHM_ENCODING_SHERRY) {
        for (int b = 0; b < (whole ? 2 : 1); b++)
            for (int p = 0; p < 4; p++) {
                const __m512i nibbles = _mm512_loadu_si512(codes + 128 * b + 64 * (p / 2));
                __mmask64 mirror;
                memcpy(&mirror, codes + (whole ? 256 + 32 * b : 128) + 8 * p, sizeof mirror);
                const __m512i four = _mm512_permutexvar_epi8(p % 2 ? _mm512_srli_epi16(nibbles, 4) : nibbles,
                                                             _mm512_load_si512(sherry_fields));
                expand_fields(_mm512_mask_sub_epi8(four, mirror, _mm512_set1_epi8((char)170), four), to[b] + 4 * p, 1);
            }
    } else if (!whole) {
        for (int j = 0; j < 4; j++) expand_fields(_mm512_loadu_si512(codes + 64 * j), to[0] + j, 4);
    } else {
        for (int j = 0; j < 16; j++) {
            __m512i four = _mm512_loadu_si512(codes + 64 * j);
            if (encoding == CHM_ENCODING_T5) {
                const __m512i high = _mm512_permutexvar_epi8(_mm512_srli_epi16(four, 2), _mm512_load_si512(t5_high));
                /* 84 h: bits 2 and 3 are h */
                _mm512_storeu_si512(to[4][j], _mm512_and_si512(_mm512_srli_epi16(high, 2), _mm512_set1_epi8(3)));
                four = _mm512_permutex2var_epi8(_mm512_load_si512(t5_fields), _mm512_sub_epi8(four, high),
                                                _mm512_load_si512(t5_fields + 64));
            }
            expand_fields(four, to[0] + j, TILE_ROWS);
        }
    }
}

/* Block b of up to 16 rows, where it lies or, for fewer rows and for sherry, in `copy`. */
ALWAYS_INLINE const int8_t *rows_of(const int32_t encoding, const struct chm_activation *x, int64_t row0, int64_t rows,
                                    int64_t b, int8_t (*copy)[64], int64_t *stride) {
    const int8_t *q = x->q + 64 * (row0 * x->blocks + b);
    *stride = 64 * x->blocks;
    if (rows == TILE_ROWS && encoding != CHM_ENCODING_SHERRY) return q;
    for (int64_t r = 0; r < TILE_ROWS; r++) {
        __m512i v = _mm512_setzero_si512();
        if (r < rows) v = _mm512_loadu_si512(q + r * *stride);
        _mm512_storeu_si512(copy[r], encoding == CHM_ENCODING_SHERRY ? turn(v) : v);
    }
    *stride = 64;
    return copy[0];
}

ALWAYS_INLINE void tile_matmul(const int32_t encoding, const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                               const struct chm_activation *x, float *y, int64_t ldy) {
    const int64_t blocks = chm_ternary_blocks(w->in), each = chm_ternary_superblock(encoding);
    const int64_t code_stride = chm_ternary_code_stride(encoding, w->in);
    const int64_t stride = chm_ternary_scale_stride(w->in, w->group);
    struct config config __attribute__((aligned(64)));
    bytes_of bytes[MOST_FIELDS] __attribute__((aligned(64)));
    int32_t sums[TILE_ROWS][16] __attribute__((aligned(64)));
    int8_t copy[TILE_ROWS][64] __attribute__((aligned(64)));
    float acc[CHUNK_ROWS][16] __attribute__((aligned(64))), scale[16];
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int t = SUMS; t <= CODES; t++) {
        config.rows[t] = TILE_ROWS;
        config.row_bytes[t] = 64;
    }
    TILES_BEGIN(&config);
    for (int64_t row0 = 0; row0 < x->rows; row0 += CHUNK_ROWS) {
        const int64_t rows = portable_min(CHUNK_ROWS, x->rows - row0);
        for (int64_t tile = tile0; tile < tile1; tile++) {
            const uint8_t *codes = w->codes + tile * code_stride, *record = w->scales + tile * stride;
            memset(acc, 0, (size_t)rows * sizeof acc[0]);
            for (int64_t b = 0; b < blocks;) {
                const bool whole = b + each <= blocks;
                const int64_t n = whole ? each : 1;
                expand(encoding, codes, whole, bytes);
                for (int64_t f = 0; f < n; f++, b++) {
                    tile_scales(record, 64 * b / w->group, scale);
                    const __m512 weight_scale = _mm512_loadu_ps(scale);
                    TILE_LOAD(CODES, bytes[f], 64);
                    for (int64_t r0 = 0; r0 < rows; r0 += TILE_ROWS) {
                        const int64_t some = portable_min(TILE_ROWS, rows - r0);
                        int64_t q_stride;
                        const int8_t *q = rows_of(encoding, x, row0 + r0, some, b, copy, &q_stride);
                        TILE_ZERO(SUMS);
                        TILE_LOAD(ACTIVATIONS, q, q_stride);
                        TILE_DOT(SUMS, ACTIVATIONS, CODES);
                        TILE_STORE(SUMS, sums, 64);
                        for (int64_t r = 0; r < some; r++) {
                            const int64_t at = (row0 + r0 + r) * x->blocks + b;
                            const __m512i dot =
                                _mm512_sub_epi32(_mm512_loadu_si512(sums[r]), _mm512_set1_epi32(x->sum[at]));
                            _mm512_storeu_ps(acc[r0 + r], apply_block(_mm512_loadu_ps(acc[r0 + r]), dot, x->scale[at],
                                                                      weight_scale));
                        }
                    }
                }
                codes += whole ? chm_ternary_superblock_bytes(encoding) : chm_ternary_tail_bytes(encoding);
            }
            const __mmask16 columns = lanes(w->out - 16 * tile);
            for (int64_t r = 0; r < rows; r++)
                _mm512_mask_storeu_ps(y + (row0 + r) * ldy + 16 * tile, columns, _mm512_loadu_ps(acc[r]));
        }
    }
    TILES_END();
}

#define TILE_KERNEL(name, encoding)                                                                                    \
    static void name##_tiles(const struct chm_ternary *w, int64_t tile0, int64_t tile1,                                \
                             const struct chm_activation *x, float *y, int64_t ldy) {                                  \
        if (x->rows < TILE_ROWS)                                                                                       \
            name##_matmul(w, tile0, tile1, x, y, ldy);                                                                 \
        else                                                                                                           \
            tile_matmul(encoding, w, tile0, tile1, x, y, ldy);                                                         \
    }
TILE_KERNEL(t2, CHM_ENCODING_T2)
TILE_KERNEL(t5, CHM_ENCODING_T5)
TILE_KERNEL(sherry, CHM_ENCODING_SHERRY)

static const struct chm_backend_ops amx_ops = {
    .size = sizeof(struct chm_backend_ops),
    .rank = AMX_RANK,
    .kernels = {.size = sizeof(struct chm_kernels),
                .t2_matmul = t2_tiles,
                .t5_matmul = t5_tiles,
                .sherry_matmul = sherry_tiles},
};

#define PLUGIN(...) CHM_PLUGIN(__VA_ARGS__) /* the name may be a macro */
PLUGIN(AMX_NAME, .kind = CHM_KIND_BACKEND, .version = "1.0.0", .licence = "Apache-2.0", .cpu = AMX_CPU,
       .summary = "Ternary products in tile registers (AMX-INT8), for 16 rows and more", .ops = &amx_ops);
