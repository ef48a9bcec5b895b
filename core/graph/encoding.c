/*
 * encoding.c: ternary codes from one encoding to another. In between a block of a tile is 16 vectors of 64 bytes: byte
 * 4r + i of vector j is the code of row r, input 4j + i. That is how T2 has its fields, so the loops are plain.
 */
#include "graph/encoding.h"

#include <string.h>

enum { STEPS = 16, LANES = 64 };
typedef uint8_t block[STEPS][LANES];

static const char *const names[CHM_ENCODINGS] = {"t2", "t5", "sherry"};

const char *chm_encoding_name(int32_t encoding) {
    return encoding >= 0 && encoding < CHM_ENCODINGS ? names[encoding] : "?";
}

int32_t chm_encoding_find(const char *name, size_t n) {
    for (int32_t e = 0; e < CHM_ENCODINGS; e++)
        if (strlen(names[e]) == n && !memcmp(names[e], name, n)) return e;
    return -1;
}

/* The codes of four inputs of sherry by nibble + 16 * mirror, and back from c0 + 3 c1 + 9 c2 + 27 c3. */
static void sherry_quad(int form, uint8_t code[4]) {
    const int zero = form >> 2 & 3, mirror = form >> 4;
    int sign = ((form & 3) | 4) ^ (mirror ? 7 : 0);
    for (int i = 0; i < 4; i++) {
        code[i] = (uint8_t)(i == zero ? 1 : 2 * (sign & 1));
        if (i != zero) sign >>= 1;
    }
}

/* -1: not exactly one of the four is 0 */
static int sherry_form(const uint8_t code[4]) {
    int zero = -1, sign = 0, place = 0;
    for (int i = 0; i < 4; i++)
        if (code[i] == 1 && zero < 0)
            zero = i;
        else if (code[i] == 1 || place == 3)
            return -1;
        else
            sign |= (code[i] >> 1) << place++;
    if (zero < 0) return -1;
    const int mirror = !(sign >> 2);
    return ((sign ^ (mirror ? 7 : 0)) & 3) | zero << 2 | mirror << 4;
}

static void take_sherry(const uint8_t *nibbles, const uint8_t *mirrors, block to) {
    uint8_t quad[32][4];
    for (int form = 0; form < 32; form++) sherry_quad(form, quad[form]);
    for (int p = 0; p < 4; p++)
        for (int lane = 0; lane < LANES; lane++) {
            const int nibble = nibbles[64 * (p / 2) + lane] >> 4 * (p % 2) & 15;
            const int mirror = mirrors[8 * p + lane / 8] >> lane % 8 & 1;
            memcpy(&to[4 * p + lane % 4][lane / 4 * 4], quad[nibble + 16 * mirror], 4);
        }
}

/* How often n goes into x < 3n; the products below stay in a byte. */
static inline uint8_t thrice(uint8_t x, uint8_t n) { return (uint8_t)((x >= n) + (x >= 2 * n)); }

/* The codes of five trits by the byte; of a byte that no five make, those of its remainders: byte / 84, and of the rest
 * r / 1, 3, 9, 27 modulo 3. By comparisons alone, which the compiler does for many bytes at once: models are repacked
 * when they are opened. */
static void take_t5(const uint8_t *from, int f, block to) {
    for (int j = 0; j < STEPS; j++)
        for (int lane = 0; lane < LANES; lane++) {
            uint8_t r = from[64 * j + lane];
            const uint8_t h = (uint8_t)(thrice(r, 84) + (r >= 252));
            r = (uint8_t)(r - 84 * h);
            r = (uint8_t)(r >= 81 ? r - 81 : r);
            const uint8_t t3 = thrice(r, 27);
            r = (uint8_t)(r - 27 * t3);
            const uint8_t t2 = thrice(r, 9);
            r = (uint8_t)(r - 9 * t2);
            const uint8_t t1 = thrice(r, 3);
            r = (uint8_t)(r - 3 * t1);
            to[j][lane] = f == 4 ? h : f == 3 ? t3 : f == 2 ? t2 : f == 1 ? t1 : r;
        }
}

/* Block b of the tile whose codes begin at `tile`. */
static void take(int32_t encoding, const uint8_t *tile, int64_t blocks, int64_t b, block to) {
    const int64_t each = chm_ternary_superblock(encoding), f = b % each;
    const bool whole = b / each < blocks / each;
    tile += b / each * chm_ternary_superblock_bytes(encoding);
    if (encoding == CHM_ENCODING_SHERRY)
        take_sherry(tile + 128 * f, tile + (whole ? 256 + 32 * f : 128), to);
    else if (encoding == CHM_ENCODING_T5 && whole)
        take_t5(tile, (int)f, to);
    else if (whole)
        for (int j = 0; j < STEPS; j++)
            for (int lane = 0; lane < LANES; lane++) to[j][lane] = tile[64 * j + lane] >> 2 * f & 3;
    else
        for (int j = 0; j < STEPS; j++)
            for (int lane = 0; lane < LANES; lane++)
                to[j][lane] = tile[256 * f + 64 * (j % 4) + lane] >> 2 * (j / 4) & 3;
}

static void put_sherry(block from, int64_t row0, int64_t input0, const struct chm_ternary *w, uint8_t *nibbles,
                       uint8_t *mirrors, struct chm_misfit *misfit) {
    for (int p = 0; p < 4; p++)
        for (int lane = 0; lane < LANES; lane++) {
            const int64_t row = row0 + lane / 4, input = input0 + 16 * p + 4 * (lane % 4);
            const int64_t real = row < w->out ? CHM_MIN(CHM_MAX(w->in - input, 0), 4) : 0;
            uint8_t code[4];
            memcpy(code, &from[4 * p + lane % 4][lane / 4 * 4], 4);
            int zeros = 0;
            for (int64_t i = 0; i < real; i++) zeros += code[i] == 1;
            for (int64_t i = real; i < 4; i++) code[i] = zeros == 0 && i == real ? 1 : 2; /* what pads is free */
            int form = sherry_form(code);
            if (form < 0) {
                if (!misfit->quads++) {
                    misfit->row = row;
                    misfit->input = input;
                }
                bool zero = false;
                for (int i = 0; i < 4; i++) {
                    if (code[i] == 1 && zero) {
                        code[i] = 2;
                        misfit->weights += i < real;
                    }
                    zero = zero || code[i] == 1;
                }
                if (!zero) {
                    code[0] = 1;
                    misfit->weights++;
                }
                form = sherry_form(code);
            }
            const int at = 64 * (p / 2) + lane;
            nibbles[at] = (uint8_t)(nibbles[at] | (form & 15) << 4 * (p % 2));
            mirrors[8 * p + lane / 8] = (uint8_t)(mirrors[8 * p + lane / 8] | (form >> 4) << lane % 8);
        }
}

/* Adds block b to the tile, whose bytes began as zeros. */
static void put(int32_t encoding, block from, const struct chm_ternary *w, int64_t t, int64_t b, uint8_t *tile,
                struct chm_misfit *misfit) {
    static const uint8_t power[5] = {1, 3, 9, 27, 84};
    const int64_t blocks = chm_ternary_blocks(w->in), each = chm_ternary_superblock(encoding), f = b % each;
    const bool whole = b / each < blocks / each;
    tile += b / each * chm_ternary_superblock_bytes(encoding);
    if (encoding == CHM_ENCODING_SHERRY) {
        put_sherry(from, 16 * t, 64 * b, w, tile + 128 * f, tile + (whole ? 256 + 32 * f : 128), misfit);
        return;
    }
    const int factor = encoding == CHM_ENCODING_T5 ? power[f] : 1 << 2 * f;
    for (int j = 0; j < STEPS; j++) {
        uint8_t *to = tile + (whole ? 64 * j : 256 * f + 64 * (j % 4));
        const int by = whole ? factor : 1 << 2 * (j / 4);
        for (int lane = 0; lane < LANES; lane++) to[lane] = (uint8_t)(to[lane] + by * from[j][lane]);
    }
}

/* What pads is weight 0: inputs from w->in on, rows from w->out on. */
static void blank_padding(const struct chm_ternary *w, int64_t t, int64_t b, block codes) {
    const int64_t rows = CHM_MIN(w->out - 16 * t, 16), inputs = CHM_MIN(w->in - 64 * b, 64);
    if (rows == 16 && inputs == 64) return;
    for (int j = 0; j < STEPS; j++)
        for (int lane = 0; lane < LANES; lane++)
            if (lane / 4 >= rows || 4 * j + lane % 4 >= inputs) codes[j][lane] = 1;
}

void chm_ternary_repack(const struct chm_ternary *w, int32_t encoding, int64_t tile0, int64_t tile1, uint8_t *codes,
                        struct chm_misfit *misfit) {
    const int64_t blocks = chm_ternary_blocks(w->in), from = chm_ternary_code_stride(w->encoding, w->in);
    const int64_t to = chm_ternary_code_stride(encoding, w->in);
    block codes_of;
    memset(codes + tile0 * to, 0, (size_t)((tile1 - tile0) * to));
    for (int64_t t = tile0; t < tile1; t++)
        for (int64_t b = 0; b < blocks; b++) {
            take(w->encoding, w->codes + t * from, blocks, b, codes_of);
            blank_padding(w, t, b, codes_of);
            put(encoding, codes_of, w, t, b, codes + t * to, misfit);
        }
}

void chm_ternary_pack(const struct chm_ternary *w, int64_t t, const uint8_t *code, uint8_t *codes,
                      struct chm_misfit *misfit) {
    const int64_t stride = chm_ternary_code_stride(w->encoding, w->in);
    memset(codes + t * stride, 0, (size_t)stride);
    for (int64_t b = 0; b < chm_ternary_blocks(w->in); b++) {
        block codes_of;
        for (int j = 0; j < STEPS; j++)
            for (int lane = 0; lane < LANES; lane++) {
                const int64_t row = lane / 4, input = 64 * b + 4 * j + lane % 4;
                codes_of[j][lane] = 16 * t + row < w->out && input < w->in ? code[row * w->in + input] : 1;
            }
        put(w->encoding, codes_of, w, t, b, codes + t * stride, misfit);
    }
}

void chm_ternary_codes(const struct chm_ternary *w, int64_t row, int64_t first, int64_t n, uint8_t *code) {
    const int32_t encoding = w->encoding;
    const int64_t blocks = chm_ternary_blocks(w->in), each = chm_ternary_superblock(encoding), lane = 4 * (row % 16);
    const uint8_t *tile = w->codes + row / 16 * chm_ternary_code_stride(encoding, w->in);
    static const uint8_t power[5] = {1, 3, 9, 27, 1};
    for (int64_t b = first / 64; b < CHM_MIN(blocks, (first + n) / 64); b++) {
        const int64_t f = b % each, inputs = CHM_MIN(w->in - 64 * b, 64);
        const bool whole = b / each < blocks / each;
        const uint8_t *from = tile + b / each * chm_ternary_superblock_bytes(encoding);
        uint8_t *to = code + 64 * b - first;
        if (encoding == CHM_ENCODING_SHERRY) {
            const uint8_t *nibbles = from + 128 * f, *mirrors = from + (whole ? 256 + 32 * f : 128);
            for (int64_t i = 0; i < inputs; i += 4) {
                const int64_t p = i / 16, at = lane + i % 16 / 4;
                uint8_t quad[4];
                sherry_quad((nibbles[64 * (p / 2) + at] >> 4 * (p % 2) & 15) | (mirrors[8 * p + at / 8] >> at % 8 & 1)
                                                                                   << 4,
                            quad);
                memcpy(to + i, quad, (size_t)CHM_MIN(inputs - i, 4));
            }
            continue;
        }
        if (!whole) from += 256 * f;
        for (int64_t i = 0; i < inputs; i++) {
            const int64_t j = i / 4;
            const int byte = from[64 * (whole ? j : j % 4) + lane + i % 4];
            if (whole && encoding == CHM_ENCODING_T5)
                to[i] = (uint8_t)(f == 4 ? byte / 84 : byte % 84 / power[f] % 3);
            else
                to[i] = byte >> 2 * (whole ? f : j / 4) & 3;
        }
    }
}

int64_t chm_ternary_zeros(const struct chm_ternary *w) {
    const int64_t tiles = chm_ternary_tiles(w->out), blocks = chm_ternary_blocks(w->in);
    const int64_t stride = chm_ternary_code_stride(w->encoding, w->in);
    int64_t zeros = 0;
    block codes;
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t here = 0;
            take(w->encoding, w->codes + t * stride, blocks, b, codes);
            blank_padding(w, t, b, codes);
            for (int j = 0; j < STEPS; j++)
                for (int lane = 0; lane < LANES; lane++) here += codes[j][lane] == 1;
            const int64_t rows = CHM_MIN(w->out - 16 * t, 16), inputs = CHM_MIN(w->in - 64 * b, 64);
            zeros += here - (16 * 64 - rows * inputs);
        }
    return zeros;
}

int64_t chm_ternary_unsound(const struct chm_ternary *w, int64_t tile0, int64_t tile1) {
    const int64_t blocks = chm_ternary_blocks(w->in), each = chm_ternary_superblock(w->encoding);
    const int64_t stride = chm_ternary_code_stride(w->encoding, w->in);
    const int64_t supers = blocks / each * chm_ternary_superblock_bytes(w->encoding);
    for (int64_t t = tile0; t < tile1; t++)
        for (int64_t i = 0; i < stride; i++) {
            const uint8_t byte = w->codes[t * stride + i];
            bool sound;
            if (w->encoding == CHM_ENCODING_SHERRY) /* every nibble and mirror stands for something */
                sound = i < supers || (i - supers) % 192 < 160 || byte == 0;
            else if (w->encoding == CHM_ENCODING_T5 && i < supers)
                sound = byte <= 248 && byte % 84 <= 80;
            else /* a 2-bit code 3 has both bits set */
                sound = (byte & byte >> 1 & 0x55) == 0;
            if (!sound) return t * stride + i;
        }
    return -1;
}
