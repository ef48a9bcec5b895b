/* Encodings of ternary codes: the same weights are the same bytes whatever they come from, and nothing is lost unsaid.
 */
#include "reference/ref_kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "graph/encoding.h"

#include <string.h>

static uint64_t draw(uint64_t *at, uint64_t bound) { return chm_below_at(11, CHM_RANDOM_TEST, 1, (*at)++, bound); }

/* A matrix of random codes in `encoding`, padding included, without scales. */
static struct chm_ternary make(int32_t encoding, int64_t out, int64_t in, uint64_t *at) {
    const int64_t tiles = chm_ternary_tiles(out), stride = chm_ternary_code_stride(encoding, in);
    const int64_t blocks = chm_ternary_blocks(in), each = chm_ternary_superblock(encoding);
    const int64_t whole = blocks / each * chm_ternary_superblock_bytes(encoding);
    uint8_t *codes = chm_alloc((size_t)(tiles * stride));
    assert_non_null(codes);
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t i = 0; i < stride; i++) {
            int byte = 0;
            if (encoding == CHM_ENCODING_SHERRY)
                byte = i < whole || i - whole < 160 ? (int)draw(at, 256) : 0;
            else if (encoding == CHM_ENCODING_T5 && i < whole)
                byte = 84 * (int)draw(at, 3) + (int)draw(at, 81);
            else
                for (int f = 0; f < 4; f++) byte |= (int)draw(at, 3) << 2 * f;
            codes[t * stride + i] = (uint8_t)byte;
        }
    return (struct chm_ternary){.codes = codes, .out = out, .in = in, .group = 64, .encoding = encoding};
}

static struct chm_ternary repacked(const struct chm_ternary *w, int32_t encoding, int64_t *quads) {
    const int64_t tiles = chm_ternary_tiles(w->out);
    struct chm_ternary to = *w;
    struct chm_misfit misfit = {0};
    uint8_t *codes = chm_alloc((size_t)(tiles * chm_ternary_code_stride(encoding, w->in)));
    assert_non_null(codes);
    /* in two parts, the later first */
    chm_ternary_repack(w, encoding, tiles / 2, tiles, codes, &misfit);
    chm_ternary_repack(w, encoding, 0, tiles / 2, codes, &misfit);
    to.codes = codes;
    to.encoding = encoding;
    assert_int_equal(chm_ternary_unsound(&to, 0, tiles), -1);
    if (quads)
        *quads = misfit.quads;
    else
        assert_int_equal(misfit.quads, 0);
    return to;
}

static void drop(struct chm_ternary *w) { chm_free((void *)(uintptr_t)w->codes); }

static void same_weights(const struct chm_ternary *a, const struct chm_ternary *b) {
    for (int64_t o = 0; o < a->out; o++)
        for (int64_t i = 0; i < a->in; i++)
            if (ref_trit(a, o, i) != ref_trit(b, o, i))
                fail_msg("%s to %s, %lld x %lld: weight %lld, %lld", chm_encoding_name(a->encoding),
                         chm_encoding_name(b->encoding), (long long)a->out, (long long)a->in, (long long)o,
                         (long long)i);
}

static void same_bytes(const struct chm_ternary *a, const struct chm_ternary *b) {
    assert_int_equal(a->encoding, b->encoding);
    assert_memory_equal(a->codes, b->codes,
                        (size_t)(chm_ternary_tiles(a->out) * chm_ternary_code_stride(a->encoding, a->in)));
}

static const int64_t outs[] = {1, 15, 16, 33}, ins[] = {1,   3,   62,  63,  64,  65,  66,  127, 128, 129, 192,
                                                        250, 256, 257, 319, 320, 321, 384, 448, 576, 640, 700};

/* Every way from one lossless encoding to another and back. What pads is the same bytes in the end, whatever it was. */
static void there_and_back(void **state) {
    (void)state;
    uint64_t at = 0;
    for (size_t o = 0; o < CHM_ARRAY_COUNT(outs); o++)
        for (size_t i = 0; i < CHM_ARRAY_COUNT(ins); i++)
            for (int32_t first = 0; first < CHM_ENCODINGS; first++) {
                struct chm_ternary w = make(first, outs[o], ins[i], &at);
                struct chm_ternary clean = repacked(&w, first, NULL);
                same_weights(&w, &clean);
                for (int32_t via = 0; via < CHM_ENCODINGS; via++) {
                    if (via == CHM_ENCODING_SHERRY && first != CHM_ENCODING_SHERRY) continue;
                    struct chm_ternary there = repacked(&w, via, NULL), back = repacked(&there, first, NULL);
                    struct chm_ternary round = repacked(&clean, via, NULL);
                    same_weights(&w, &there);
                    same_bytes(&back, &clean);
                    same_bytes(&round, &there);
                    drop(&there);
                    drop(&back);
                    drop(&round);
                }
                drop(&clean);
                drop(&w);
            }
}

/* One row's codes, the count of zeros and the header's own decoder against the reference. */
static void read_singly(void **state) {
    (void)state;
    uint64_t at = 1000000;
    for (size_t o = 0; o < CHM_ARRAY_COUNT(outs); o++)
        for (size_t i = 0; i < CHM_ARRAY_COUNT(ins); i++)
            for (int32_t encoding = 0; encoding < CHM_ENCODINGS; encoding++) {
                struct chm_ternary w = make(encoding, outs[o], ins[i], &at);
                const int64_t blocks = chm_ternary_blocks(w.in), stride = chm_ternary_code_stride(encoding, w.in);
                int64_t zeros = 0;
                for (int64_t row = 0; row < w.out; row++) {
                    uint8_t code[768], part[64];
                    chm_ternary_codes(&w, row, 0, 768, code);
                    for (int64_t k = 0; k < w.in; k++) {
                        if (k % 64 == 0) chm_ternary_codes(&w, row, k, 64, part);
                        assert_int_equal(code[k], ref_trit(&w, row, k) + 1);
                        assert_int_equal(part[k % 64], code[k]);
                        zeros += code[k] == 1;
                    }
                    for (int64_t b = 0; b < blocks; b++) {
                        uint8_t of_block[16][64];
                        chm_ternary_block(encoding, w.codes + row / 16 * stride, blocks, b, of_block);
                        assert_memory_equal(of_block[row % 16], code + 64 * b, (size_t)CHM_MIN(w.in - 64 * b, 64));
                    }
                }
                assert_int_equal(chm_ternary_zeros(&w), zeros);
                drop(&w);
            }
}

/* Weights that sherry cannot hold are counted, and the first is named. */
static void misfits(void **state) {
    (void)state;
    uint64_t at = 2000000;
    struct chm_ternary sparse = make(CHM_ENCODING_SHERRY, 40, 390, &at), w = repacked(&sparse, CHM_ENCODING_T2, NULL);
    int64_t quads;
    /* row 17, input 129: block 2 of tile 1, vector 0, lane 4 + 1, field 2 */
    uint8_t *byte = (uint8_t *)(uintptr_t)w.codes + chm_ternary_code_stride(CHM_ENCODING_T2, 390) + 4 + 1;
    const int was = *byte >> 4 & 3;
    *byte = (uint8_t)((*byte & ~(3 << 4)) | (was == 1 ? 2 : 1) << 4);
    struct chm_misfit misfit = {0};
    uint8_t *codes = chm_alloc((size_t)(3 * chm_ternary_code_stride(CHM_ENCODING_SHERRY, 390)));
    chm_ternary_repack(&w, CHM_ENCODING_SHERRY, 0, 3, codes, &misfit);
    assert_int_equal(misfit.quads, 1);
    assert_int_equal(misfit.row, 17);
    assert_int_equal(misfit.input, 128);
    chm_free(codes);
    struct chm_ternary lossy = repacked(&w, CHM_ENCODING_SHERRY, &quads);
    int64_t differ = 0;
    for (int64_t o = 0; o < 40; o++)
        for (int64_t i = 0; i < 390; i++)
            if (ref_trit(&lossy, o, i) != ref_trit(&w, o, i)) {
                assert_int_equal(o, 17);
                assert_int_equal(i / 4, 32);
                differ++;
            }
    assert_int_equal(differ, 1);
    drop(&lossy);
    drop(&w);
    drop(&sparse);
}

/* Bytes that no codes make are found where they are. */
static void unsound(void **state) {
    (void)state;
    uint64_t at = 3000000;
    for (int32_t encoding = 0; encoding < CHM_ENCODINGS; encoding++) {
        struct chm_ternary w = make(encoding, 33, 64 * 7, &at);
        const int64_t stride = chm_ternary_code_stride(encoding, w.in);
        static const int64_t places[] = {0, 1023, 1024};
        uint8_t *codes = (uint8_t *)(uintptr_t)w.codes;
        for (size_t k = 0; k < CHM_ARRAY_COUNT(places); k++) {
            const int64_t place =
                encoding == CHM_ENCODING_SHERRY ? stride + 3 * 320 + 160 + 8 * (int64_t)k : stride + places[k];
            const uint8_t was = codes[place];
            codes[place] = encoding == CHM_ENCODING_SHERRY ? 1 : 255;
            assert_int_equal(chm_ternary_unsound(&w, 0, 3), place);
            assert_int_equal(chm_ternary_unsound(&w, 2, 3), -1);
            if (encoding == CHM_ENCODING_T5 && k == 0) { /* a remainder of 81 and more, then one too large */
                codes[place] = 81;
                assert_int_equal(chm_ternary_unsound(&w, 0, 3), place);
                codes[place] = 249;
                assert_int_equal(chm_ternary_unsound(&w, 0, 3), place);
                codes[place] = 248;
                assert_int_equal(chm_ternary_unsound(&w, 0, 3), -1);
            }
            codes[place] = was;
        }
        drop(&w);
    }
}

static void names(void **state) {
    (void)state;
    for (int32_t e = 0; e < CHM_ENCODINGS; e++)
        assert_int_equal(chm_encoding_find(chm_encoding_name(e), strlen(chm_encoding_name(e))), e);
    assert_int_equal(chm_encoding_find("t", 1), -1);
    assert_int_equal(chm_encoding_find("t22", 3), -1);
    assert_int_equal(chm_encoding_find("sherry;out", 6), CHM_ENCODING_SHERRY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back), cmocka_unit_test(read_singly), cmocka_unit_test(misfits),
        cmocka_unit_test(unsound),        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests_name("encoding", tests, NULL, NULL);
}
