/*
 * amx_emulated.h: a model of the tile registers of AMX-INT8 in C, as Intel's manual describes them (Software
 * Developer's Manual, volume 1, chapter 18, and TDPBSUD): eight registers of up to 16 rows of 64 bytes. Misuse that a
 * CPU would answer with a fault ends the program.
 */
#ifndef CHM_TESTS_AMX_EMULATED_H
#define CHM_TESTS_AMX_EMULATED_H

#include <stdlib.h>

#define AMX_NAME amx_emulated
#define AMX_RANK (-1)
#define AMX_CPU  (CHM_CPU_AVX2 | CHM_CPU_FMA)

struct emulated_tiles {
    bool configured;
    uint16_t row_bytes[8];
    uint8_t rows[8];
    uint8_t data[8][16][64];
};
static _Thread_local struct emulated_tiles emulated_tiles;

static inline void emulated_tile_config(const void *from) {
    const uint8_t *config = from;
    struct emulated_tiles *s = &emulated_tiles;
    memset(s, 0, sizeof *s);
    if (config[0] != 1 || config[1] != 0) abort();
    for (int i = 2; i < 16; i++)
        if (config[i] != 0) abort();
    for (int t = 0; t < 8; t++) {
        memcpy(&s->row_bytes[t], config + 16 + 2 * t, 2);
        s->rows[t] = config[48 + t];
        if (s->row_bytes[t] > 64 || s->rows[t] > 16) abort();
    }
    s->configured = true;
}
static inline struct emulated_tiles *emulated_tile(int t) {
    struct emulated_tiles *s = &emulated_tiles;
    if (!s->configured || t < 0 || t > 7 || s->rows[t] == 0 || s->row_bytes[t] == 0) abort();
    return s;
}
static inline void emulated_tile_zero(int t) { memset(emulated_tile(t)->data[t], 0, sizeof emulated_tiles.data[t]); }
static inline void emulated_tile_load(int t, const void *from, int64_t row) {
    struct emulated_tiles *s = emulated_tile(t);
    memset(s->data[t], 0, sizeof s->data[t]);
    for (int r = 0; r < s->rows[t]; r++) memcpy(s->data[t][r], (const uint8_t *)from + r * row, s->row_bytes[t]);
}
static inline void emulated_tile_store(int t, void *to, int64_t row) {
    struct emulated_tiles *s = emulated_tile(t);
    for (int r = 0; r < s->rows[t]; r++) memcpy((uint8_t *)to + r * row, s->data[t][r], s->row_bytes[t]);
}
/* sum[m][n] += the dot of four signed bytes of a[m] and four unsigned bytes of b, over the rows k of b */
static inline void emulated_tile_dot(int sum, int a, int b) {
    struct emulated_tiles *s = emulated_tile(sum);
    if (emulated_tile(a)->rows[a] != s->rows[sum] || emulated_tile(b)->row_bytes[b] != s->row_bytes[sum] ||
        s->row_bytes[a] != 4 * s->rows[b])
        abort();
    for (int m = 0; m < s->rows[sum]; m++)
        for (int k = 0; k < s->rows[b]; k++)
            for (int n = 0; n < s->row_bytes[sum] / 4; n++) {
                int32_t total;
                memcpy(&total, s->data[sum][m] + 4 * n, 4);
                for (int i = 0; i < 4; i++) total += (int8_t)s->data[a][m][4 * k + i] * s->data[b][k][4 * n + i];
                memcpy(s->data[sum][m] + 4 * n, &total, 4);
            }
}

#define TILES_BEGIN(config)     emulated_tile_config(config)
#define TILES_END()             (emulated_tiles.configured = false)
#define TILE_ZERO(t)            emulated_tile_zero(t)
#define TILE_LOAD(t, from, row) emulated_tile_load(t, from, row)
#define TILE_STORE(t, to, row)  emulated_tile_store(t, to, row)
#define TILE_DOT(sum, a, b)     emulated_tile_dot(sum, a, b)

#endif
