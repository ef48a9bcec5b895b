/*
 * sketch.h: sketches of bits, mosaics of earlier sketches, and the relaxation of a sketch towards them. Bit i of a
 * sketch is bit i mod 8 of byte i / 8, so that words may be compared by xor and popcount in any byte order; set means
 * +1.
 */
#ifndef SKETCH_H
#define SKETCH_H

#include <chimera/plugin.h>
#include <string.h>

/* A mosaic of period P has P blocks; a row at position t replaces block t mod P by that block of its own sketch. */
enum { SKETCH_MOSAICS = 3, SKETCH_STEP = 1024 /* bits: so every block is whole bytes */, SKETCH_MOST = 32768 };
static const int64_t sketch_period[SKETCH_MOSAICS] = {8, 32, 128};

static inline uint64_t sketch_word(const uint8_t *bytes) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static inline bool sketch_bit(const uint8_t *bits, int64_t i) { return bits[i / 8] >> (i % 8) & 1; }

/* The signs of numbers; of zeros of either sign, and of what is no number: +1. */
static inline void sketch_signs(const float *x, int64_t bits, uint8_t *to) {
    for (int64_t i = 0; i < bits; i += 8) {
        unsigned byte = 0;
        for (unsigned j = 0; j < 8; j++) byte |= (unsigned)!(x[i + j] < 0) << j;
        to[i / 8] = (uint8_t)byte;
    }
}

/* x_i times bit i of `byte` as +-1, for eight of them: exact, a change of signs */
static inline void sketch_times(const float *x, uint8_t byte, float *to) {
    uint32_t raw[8];
    memcpy(raw, x, sizeof raw);
    for (unsigned j = 0; j < 8; j++) raw[j] ^= byte & 1u << j ? 0 : 0x80000000u;
    memcpy(to, raw, sizeof raw);
}

static inline int64_t sketch_distance(const uint8_t *a, const uint8_t *b, int64_t bits) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < bits / 8; i += 8) {
        uint64_t x = sketch_word(a + i) ^ sketch_word(b + i);
        x -= x >> 1 & 0x5555555555555555u;
        x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
        x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
        sum += x * 0x0101010101010101u >> 56;
    }
    return (int64_t)sum;
}

/* ---- mosaics ---- */

/* Word `i` of all mosaics' first content, lowest byte first: SplitMix64, seed 0. */
static inline uint64_t sketch_pattern(int64_t i) {
    uint64_t x = ((uint64_t)i + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static inline void sketch_xor_pattern(uint8_t *bytes, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count;) {
        uint64_t word = sketch_pattern((first + i) / 8) >> (first + i) % 8 * 8;
        do {
            bytes[i++] ^= (uint8_t)word;
            word >>= 8;
        } while (i < count && (first + i) % 8);
    }
}

/* Where the block of `position` lies, in bytes from the first mosaic's start. */
static inline int64_t sketch_block(int m, int64_t bits, int64_t position, int64_t *bytes) {
    *bytes = bits / sketch_period[m] / 8;
    return m * (bits / 8) + position % sketch_period[m] * *bytes;
}

static inline int64_t sketch_replaced_bytes(int64_t bits) {
    int64_t sum = 0, bytes;
    for (int m = 0; m < SKETCH_MOSAICS; m++) {
        sketch_block(m, bits, 0, &bytes);
        sum += bytes;
    }
    return sum;
}

/* ---- relaxation ---- */

struct sketch_rule {
    int64_t bits, rounds, flips; /* flips: most in a round */
    float own, memory;           /* weights of -(1/n) sum z_i b_i and of min over mosaics of Ham(b, m) / n */
    double exit;                 /* a round that lowers the energy by less is the last */
};

static inline uint32_t sketch_magnitude(float x) {
    uint32_t raw;
    memcpy(&raw, &x, sizeof raw);
    return raw & 0x7fffffffu;
}

/* Of `count` numbers x[index[..]] the `wanted`-th largest magnitude, and how many of that very magnitude are wanted. */
static inline uint32_t sketch_threshold(const float *x, const uint16_t *index, int64_t count, int64_t wanted,
                                        int64_t *of_it) {
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t bin[256] = {0}, at = 255;
        const uint32_t above = shift == 24 ? 0 : ~UINT32_C(0) << (shift + 8);
        for (int64_t i = 0; i < count; i++) {
            const uint32_t m = sketch_magnitude(x[index[i]]);
            if ((m & above) == prefix) bin[m >> shift & 255]++;
        }
        for (; wanted > bin[at]; at--) wanted -= bin[at];
        prefix |= (uint32_t)at << shift;
    }
    *of_it = wanted;
    return prefix;
}

/* The mosaic nearest to b, the first of equals. */
static inline int sketch_nearest(const uint8_t *b, const uint8_t *mosaics, int64_t bits, int64_t *distance) {
    int nearest = 0;
    *distance = bits + 1;
    for (int m = 0; m < SKETCH_MOSAICS; m++) {
        const int64_t d = sketch_distance(b, mosaics + m * (bits / 8), bits);
        if (d >= *distance) continue;
        nearest = m;
        *distance = d;
    }
    return nearest;
}

/*
 * b, the signs of z, is relaxed in place: in each round h = own z + memory/2 m, m the nearest mosaic, and at most
 * `flips` bits with the smallest b_i h_i change (flipping one costs 2/n b_i h_i), of those where it is negative, by
 * index where it is equal. The energy is a minimum over mosaics, so it falls at least by what the flips save under this
 * one: it never rises. product: `bits` floats of scratch. Returns the mosaic of the last round, -1 when there was none.
 */
static inline int sketch_relax(const struct sketch_rule *r, const float *z, const uint8_t *mosaics, uint8_t *b,
                               float *product) {
    uint16_t candidate[SKETCH_MOST];
    int64_t distance, count = 0;
    int nearest = sketch_nearest(b, mosaics, r->bits, &distance), used = -1;
    for (int64_t round = 0; round < r->rounds; round++) {
        /* while the nearest stays, all that changes are the signs of what was flipped */
        if (nearest != used) {
            static const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
            const uint8_t *m = mosaics + nearest * (r->bits / 8);
            used = nearest;
            for (int64_t i = 0; i < r->bits; i += 8) {
                float h[8];
                sketch_times(ones, m[i / 8], h);
                for (int j = 0; j < 8; j++) h[j] = r->own * z[i + j] + 0.5f * r->memory * h[j];
                sketch_times(h, b[i / 8], product + i);
            }
            count = 0;
            for (int64_t i = 0; i < r->bits; i++) {
                candidate[count] = (uint16_t)i;
                count += product[i] < 0;
            }
        }
        const int64_t before = distance, flips = count < r->flips ? count : r->flips;
        if (!flips) break;
        int64_t of_it, kept = 0;
        const uint32_t least = sketch_threshold(product, candidate, count, flips, &of_it);
        double own = 0; /* n/2 times what the flips cost in the first term */
        for (int64_t c = 0; c < count; c++) {
            const int64_t i = candidate[c];
            const uint32_t size = sketch_magnitude(product[i]);
            if (size < least || (size == least && of_it-- <= 0)) {
                candidate[kept++] = (uint16_t)i;
                continue;
            }
            own += (double)(sketch_bit(b, i) ? r->own * z[i] : -(r->own * z[i]));
            b[i / 8] ^= (uint8_t)(1u << i % 8);
        }
        count = kept;
        nearest = sketch_nearest(b, mosaics, r->bits, &distance);
        const double cost = 2 * own + (double)r->memory * (double)(distance - before);
        if (-cost / (double)r->bits < r->exit) break;
    }
    return used;
}

#endif
