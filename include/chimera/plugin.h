/*
 * plugin.h: write a plugin. Descriptor, options, host services, the kernel table, and one ops struct per kind.
 *
 * A plugin is a shared object with one exported symbol, a constant descriptor made by CHM_PLUGIN(). The host reads and
 * checks the descriptor before it calls anything, so it must be plain data: no constructors, no code that runs at load.
 *
 * Ownership: the descriptor and what it points to live as long as the object is loaded. Instances are the host's memory
 * (zeroed, instance_size bytes, options filled in from the card); a plugin that keeps more asks chm_host for it.
 *
 * ABI. CHM_ABI is one number for this header and tensor.h. A host loads plugins of its own number and refuses others by
 * name. Under one number no struct here changes its size, no member moves and none changes its meaning: what is new
 * takes the place of `reserved` members, which are zero (NULL) in everything built before. So a plugin leaves reserved
 * members alone, and one that uses a younger member of a table the host fills looks first whether it is NULL. Anything
 * else raises CHM_ABI. tests/abi has the sizes and offsets of every number, and a test that fails when they change.
 *
 * Foreseen, so that this number need not be raised for it (docs/plugins.md has more):
 *   - kinds without an ops struct yet: the host refuses them by name. Their instances, options, capabilities and modes
 *     are as here. Those that may run in a process of their own (memory, evolution, encoder, drafter) will speak in
 *     messages without pointers: fixed-width little-endian members, places as offsets from the start of the message;
 *   - capabilities: enum chm_capability, none granted by this host;
 *   - enum chm_mode: how far a plugin that changes what a model does is let in;
 *   - named taps, chm_tap() of tensor.h: "mlp.w_down.in" and "titans.surprise" are there; "loop.residual" is taken;
 *   - a low-rank addend of one stream to a ternary linear, terms of the energy that SK minimises, hooks on logits and
 * on the depth of the loop: members of the ops structs that have `reserved` room for them;
 *   - places in files are 64 bits wide; collectives reduce in a fixed order, that of the ranks.
 */
#ifndef CHIMERA_PLUGIN_H
#define CHIMERA_PLUGIN_H

#include <chimera/tensor.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CHM_MAGIC 0x314d4843u /* "CHM1" */
#define CHM_ABI   2u

enum chm_kind {
    CHM_KIND_LAYER = 1,
    CHM_KIND_BACKEND,
    CHM_KIND_TOKENIZER,
    CHM_KIND_GRAMMAR,
    CHM_KIND_MEMORY,
    CHM_KIND_EVOLUTION,
    CHM_KIND_ENCODER,
    CHM_KIND_DRAFTER,
    CHM_KIND_COLLECTIVE,
    CHM_KIND_OPTIMISER,
    CHM_KIND_DATA,
    CHM_KIND_COUNT,
};

/* What a plugin may ask for beyond its own options and what its kind is handed. A host that does not grant all of it
 * refuses the plugin by name; this one grants nothing. */
enum chm_capability {
    CHM_CAPABILITY_TAPS = 1u << 0,    /* to see named tensors of a pass */
    CHM_CAPABILITY_ADDEND = 1u << 1,  /* to add a low-rank term to a ternary linear of one stream */
    CHM_CAPABILITY_ENERGY = 1u << 2,  /* to provide terms of SK's energy */
    CHM_CAPABILITY_LOGITS = 1u << 3,  /* to change logits before the draw */
    CHM_CAPABILITY_DEPTH = 1u << 4,   /* to choose how often a token goes through the loop */
    CHM_CAPABILITY_STORE = 1u << 5,   /* to keep bytes from run to run, in the host's state file */
    CHM_CAPABILITY_PROCESS = 1u << 6, /* to run in a process of its own */
};

/* How far a plugin that changes what a model does is let in: not called; called, its answers recorded and not used;
 * used. The option `mode` of such plugins, with these words. */
enum chm_mode { CHM_MODE_OFF, CHM_MODE_SHADOW, CHM_MODE_ON };

/* CPU features a plugin needs before any of its code may run. */
enum chm_cpu {
    CHM_CPU_AVX2 = 1u << 0, /* with OS support for ymm */
    CHM_CPU_FMA = 1u << 1,
    CHM_CPU_F16C = 1u << 2,
    CHM_CPU_AVX_VNNI = 1u << 3,
    CHM_CPU_AVX512 = 1u << 4, /* F, BW, DQ, VL, with OS support for zmm */
    CHM_CPU_AVX512_VNNI = 1u << 5,
    CHM_CPU_AVX512_VBMI = 1u << 6,
    CHM_CPU_AVX512_BF16 = 1u << 7,
    CHM_CPU_AMX_INT8 = 1u << 8,
    CHM_CPU_BMI2 = 1u << 9, /* PDEP, PEXT */
    CHM_CPU_NEON = 1u << 16,
    CHM_CPU_DOTPROD = 1u << 17,
    CHM_CPU_I8MM = 1u << 18,
};

/* ---- Options ----------------------------------------------------------------------------------------------------- */

enum chm_option_type {
    CHM_OPT_BOOL = 1,    /* bool */
    CHM_OPT_INT,         /* int64_t; a card may write "4M", "2T" */
    CHM_OPT_FLOAT,       /* double */
    CHM_OPT_ENUM,        /* int32_t: index into `choices` */
    CHM_OPT_STRING,      /* const char *, the host's */
    CHM_OPT_INT_LIST,    /* struct chm_int_list */
    CHM_OPT_FLOAT_LIST,  /* struct chm_float_list */
    CHM_OPT_STRING_LIST, /* struct chm_string_list; with choices: each from that set */
};

struct chm_int_list {
    const int64_t *item;
    int64_t count;
};
struct chm_float_list {
    const double *item;
    int64_t count;
};
struct chm_string_list {
    const char *const *item;
    int64_t count;
};

/*
 * One option. The table is the only source for checking a card, `chimera plugins show`, overrides and docs. `offset` is
 * where the host stores the value in the plugin's instance; CHM_OPTION_CHECKED marks a key that is accepted and checked
 * but read by nobody (a fixed property that the card spells out). A name "object.member" is a member of an object in
 * the section that the host's schema of cards has there; of a list [0.3, "how"] the option is the number. The host
 * looks for two names: a boolean `efla`, which it sets where the card's section efla names the layer, and a boolean
 * `smooth`, which the generated tests set where they compare numbers, for layers that round by themselves.
 */
struct chm_option {
    const char *name;
    enum chm_option_type type;
    size_t offset;
    const char *def; /* default, as text in JSON spelling: "256", "true", "mlstm", "[64, 64]"; NULL: a text or a list
                        stays empty, a key that is only checked stays unset */
    double min, max; /* numbers and list items; both 0: any. list_min, list_max: the same for the length */
    const char *choices; /* "a|b|c" */
    const char *doc;     /* one sentence: meaning, unit, source */
    int32_t list_min, list_max;
};
#define CHM_OPTION_CHECKED ((size_t)-1)

/* ---- Host services ----------------------------------------------------------------------------------------------- */

enum chm_log_level { CHM_LOG_ERROR = 1, CHM_LOG_WARN, CHM_LOG_INFO, CHM_LOG_DEBUG };

/* What kinds other than layers and backends are handed. Layers get their graph, backends nothing. */
struct chm_host {
    uint32_t size;
    uint32_t reserved;
    void *(*alloc)(size_t bytes); /* zeroed; NULL when out of memory */
    void (*free)(void *p);        /* NULL is fine */
    void (*log)(enum chm_log_level level, const char *format, ...);
    int (*fail)(int status, const char *format, ...); /* records the sentence, returns status */
    void *reserved_services[8];
};

/* ---- Kernels ------------------------------------------------------------------------------------------------------
 */

/* Rows of activations quantised for ternary and int8 products. Blocks of 64 inputs; the last is padded with zeros. */
struct chm_activation {
    const int8_t *q;    /* [rows][blocks * 64], in -127..127 */
    const float *scale; /* [rows][blocks]: absmax / 127 */
    const int32_t *sum; /* [rows][blocks]: sum of q over the block */
    int64_t rows, blocks;
};

/*
 * A ternary matrix [out, in] in the tiles of .b158: a tile is 16 output rows, its inputs come in blocks of 64, and a
 * code is w + 1 in 0..2. Rows and inputs that pad hold code 1 (w = 0; sherry: whatever its form allows). Bytes come in
 * vectors of 64: byte 4r + i of a vector belongs to row r of the tile. chm_ternary_block() below is all of this as
 * code.
 *
 *   T2, 2 bits a weight. A superblock is 4 blocks in 16 vectors: bits 2f..2f+1 of byte 4r + i of vector j are input
 *      4j + i of block f. The 1 to 3 blocks that are left over are 4 vectors each: bits 2f..2f+1 of byte 4r + i of
 *      vector j are input 16f + 4j + i of the block.
 *   T5, 1.6 bits. A superblock is 5 blocks in 16 vectors: byte 4r + i of vector j is c0 + 3 c1 + 9 c2 + 27 c3 + 84 c4,
 *      cf the code of input 4j + i of block f. The 1 to 4 blocks left over are as those of T2.
 *   SHERRY, 1.25 bits: of four inputs that begin at a multiple of four exactly one has weight 0 (arXiv:2601.07892). A
 *      superblock is 2 blocks: 128 bytes of nibbles for each, then 32 bytes of mirrors for each; a block left over is
 *      its 128 bytes, its 32 and 32 zeros. A block is four parts of 16 inputs. Part p has its nibbles in bits 4(p % 2)
 *      and up of vector p / 2: byte 4r + i has the inputs 16p + 4i..16p + 4i + 3, and its mirror is bit 4r + i of the 8
 *      bytes (little-endian) p of the mirrors. Bits 2..3 of a nibble: which of the four is zero; bit 0: the first of
 * the other three is +1 (else -1), bit 1: the second is; the third is +1. With the mirror set all three change sign.
 *
 * Scales of a tile: 16 f32 row scales, then for every group of `group` inputs 16 bytes u8; the scale of (row, group) is
 * float(u8) * row_scale.
 */
enum chm_encoding { CHM_ENCODING_T2, CHM_ENCODING_T5, CHM_ENCODING_SHERRY, CHM_ENCODINGS };

struct chm_ternary {
    const uint8_t *codes;  /* [tiles][bytes of codes] */
    const uint8_t *scales; /* [tiles][64 + 16 * groups] */
    int64_t out, in;       /* unpadded */
    int64_t group;         /* inputs per weight scale, a multiple of 64 */
    int32_t encoding;      /* enum chm_encoding */
    uint32_t reserved;
};
static inline int64_t chm_ternary_tiles(int64_t out) { return (out + 15) / 16; }
static inline int64_t chm_ternary_blocks(int64_t in) { return (in + 63) / 64; }
static inline int64_t chm_ternary_groups(int64_t in, int64_t group) { return (in + group - 1) / group; }
static inline int64_t chm_ternary_scale_stride(int64_t in, int64_t group) {
    return 64 + 16 * chm_ternary_groups(in, group);
}
/* blocks in a superblock, its bytes, and the bytes of a block left over */
static inline int64_t chm_ternary_superblock(int32_t encoding) {
    return encoding == CHM_ENCODING_T5 ? 5 : encoding == CHM_ENCODING_SHERRY ? 2 : 4;
}
static inline int64_t chm_ternary_superblock_bytes(int32_t encoding) {
    return encoding == CHM_ENCODING_SHERRY ? 320 : 1024;
}
static inline int64_t chm_ternary_tail_bytes(int32_t encoding) { return encoding == CHM_ENCODING_SHERRY ? 192 : 256; }
static inline int64_t chm_ternary_code_stride(int32_t encoding, int64_t in) {
    const int64_t blocks = chm_ternary_blocks(in), each = chm_ternary_superblock(encoding);
    return blocks / each * chm_ternary_superblock_bytes(encoding) + blocks % each * chm_ternary_tail_bytes(encoding);
}
/* The codes of block b of a tile, one a byte: tile is where its codes begin, blocks how many it has. Not fast. */
static inline void chm_ternary_block(int32_t encoding, const uint8_t *tile, int64_t blocks, int64_t b,
                                     uint8_t code[16][64]) {
    static const uint8_t power[4] = {1, 3, 9, 27};
    const int64_t each = chm_ternary_superblock(encoding), s = b / each, f = b % each;
    const int whole = s < blocks / each;
    tile += s * chm_ternary_superblock_bytes(encoding);
    if (encoding == CHM_ENCODING_SHERRY) {
        const uint8_t *nibbles = tile + 128 * f, *mirrors = tile + (whole ? 256 + 32 * f : 128);
        for (int p = 0; p < 4; p++)
            for (int at = 0; at < 64; at++) {
                const int nibble = nibbles[64 * (p / 2) + at] >> (4 * (p % 2)) & 15, zero = nibble >> 2;
                const int mirror = mirrors[8 * p + at / 8] >> (at % 8) & 1;
                int sign = (nibble & 3) | 4; /* bit n: the nth of those that are not zero is +1 */
                if (mirror) sign ^= 7;
                uint8_t *to = code[at / 4] + 16 * p + 4 * (at % 4);
                for (int i = 0; i < 4; i++) {
                    to[i] = (uint8_t)(i == zero ? 1 : 2 * (sign & 1));
                    if (i != zero) sign >>= 1;
                }
            }
        return;
    }
    if (!whole) tile += 256 * f;
    for (int j = 0; j < 16; j++)
        for (int at = 0; at < 64; at++) {
            const uint8_t byte = tile[64 * (whole ? j : j % 4) + at];
            int c = byte >> 2 * (whole ? f : j / 4) & 3;
            if (whole && encoding == CHM_ENCODING_T5) c = f == 4 ? byte / 84 : byte % 84 / power[f] % 3;
            code[at / 4][4 * j + at % 4] = (uint8_t)c;
        }
}

/* An int8 matrix [out, in], one scale a row (absmax / 127). */
struct chm_int8_matrix {
    const int8_t *q;    /* [out][blocks * 64], zero-padded */
    const float *scale; /* [out] */
    int64_t out, in, blocks;
};

/*
 * Rows of one head that attend to a window of keys and values: `before` entries of an earlier segment, then one per
 * row. Row r sees entries before + r - window + 1 .. before + r, those that exist. Strides in floats from row to row.
 */
struct chm_attend {
    int64_t rows, before, window, dk, dv;
    const float *q, *k_before, *k, *v_before, *v;
    int64_t qs, ks, vs, os; /* of q; of both k; of both v; of the output and its gradient */
    float scale;
    uint32_t reserved;
};

/*
 * The kernel table. A backend fills what it does better and leaves the rest NULL; `scalar` fills all and is the
 * definition of right. "exact": the same bytes from every backend (the numeric contract, docs/design.md). The others
 * serve training only, where a backend may differ within the tolerance tests/checkkernels states.
 * Row-wise kernels may be called from several threads on disjoint rows. All pointers 64-byte aligned unless they are
 * slices; no kernel allocates.
 */
struct chm_kernels {
    uint32_t size, reserved;

    /* -- exact -- */
    /* scale = absmax/127, q = rne(x * (127/absmax)) per 64 inputs; a block of zeros gets scale 0 */
    void (*quantise)(const float *x, int64_t rows, int64_t width, int8_t *q, float *scale, int32_t *sum);
    /* y[row][16*tile0 ..] for tiles tile0 <= t < tile1: acc += float(dot) * (act_scale * weight_scale), blocks of 64 in
     * index order. ldy: floats from row to row. Columns past `out` are not written */
    void (*t2_matmul)(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                      float *y, int64_t ldy);
    void (*int8_matmul)(const struct chm_int8_matrix *w, int64_t out0, int64_t out1, const struct chm_activation *x,
                        float *y, int64_t ldy);
    /* y[row][o] = sum_i x[row][i] * w[o][i], 16 partial sums (i mod 16) folded pairwise: 8, 4, 2, 1 apart */
    void (*f32_matmul)(const float *w, int64_t out0, int64_t out1, int64_t in, const float *x, int64_t rows, float *y,
                       int64_t ldy);
    /* each of n vectors of `width`: y = x * rstd * weight, rstd = 1/sqrt(sum(x^2)/width + eps); the weight of vector v
     * starts at weight[(v % weight_rows) * width]; weight NULL: ones; rstd_out NULL: not wanted */
    void (*rmsnorm)(const float *x, int64_t n, int64_t width, float eps, const float *weight, int64_t weight_rows,
                    float *y, float *rstd_out);
    /* y = x * rnorm, rnorm = 1/sqrt(sum(x^2) + eps) */
    void (*l2norm)(const float *x, int64_t n, int64_t width, float eps, float *y, float *rnorm_out);
    void (*unary)(enum chm_unary op, const float *x, int64_t n, float *y);
    void (*swiglu)(const float *gate, const float *up, int64_t n, float *y);
    /* log(sum(exp(x))) of n numbers, max subtracted */
    float (*logsumexp)(const float *x, int64_t n);
    /* S[dk][dv] *= e^log_alpha; u = beta (v - k S); S += k^T u; o = scale * q S (o NULL: not wanted). Sums over the key
     * index run in index order, one accumulator per value column. arXiv:2412.06464 */
    void (*delta_step)(float *S, int64_t dk, int64_t dv, const float *q, const float *k, const float *v,
                       float log_alpha, float beta, float scale, float *o);
    /* o = scale * q S, in the same order */
    void (*delta_read)(const float *S, int64_t dk, int64_t dv, const float *q, float scale, float *o);

    /* -- training -- */
    /* C[m][n] = op(A) op(B) + beta C, row-major; ta: A is [k][m], tb: B is [n][k]; beta 0 or 1 */
    void (*sgemm)(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                  int64_t ldb, float beta, float *c, int64_t ldc);
    /* tiles tile0..tile1 of w[out][in]: per-group absmean rounded to the stored grid, then the trits; `dequant` (NULL:
     * not wanted) gets trit * scale as [out][in]. Exact */
    void (*ternarise)(const float *w, int64_t out, int64_t in, int64_t group, bool sparse, int64_t tile0, int64_t tile1,
                      uint8_t *codes, uint8_t *scales, float *dequant);
    /* x[row][i] = q * scale. Exact */
    void (*dequantise)(const struct chm_activation *a, int64_t width, float *x);
    /* dx += dy * f'(x), y = f(x) at hand */
    void (*unary_backward)(enum chm_unary op, const float *x, const float *y, const float *dy, int64_t n, float *dx);
    void (*swiglu_backward)(const float *gate, const float *up, const float *dy, int64_t n, float *dgate, float *dup);
    /* dx += ...; dweight[weight_rows * width] += ... (NULL: not wanted) */
    void (*rmsnorm_backward)(const float *x, int64_t n, int64_t width, const float *weight, int64_t weight_rows,
                             const float *rstd, const float *dy, float *dx, float *dweight);
    void (*l2norm_backward)(const float *y, int64_t n, int64_t width, const float *rnorm, const float *dy, float *dx);
    /* logits [rows][ld] become scale * (softmax - onehot) in place, and loss[row] gets -log p(target), in nats; a
     * target < 0 is masked: zero loss and gradient */
    void (*softmax_xent)(float *logits, int64_t rows, int64_t vocab, int64_t ld, const int32_t *target, float scale,
                         float *loss);
    /* one step of AdamW on n numbers; g is multiplied by gscale first; bc1 = 1 - beta1^t, bc2 = 1 - beta2^t */
    void (*adamw)(float *w, const float *g, float *m, float *v, int64_t n, float gscale, float lr, float beta1,
                  float beta2, float eps, float weight_decay, float bc1, float bc2);
    /* The delta rule over `rows` <= 64 rows of one head, chunk form, S advanced in place. Strides in floats between
     * rows; log_alpha and beta have stride gs. Gate sums in f64 */
    void (*delta_chunk)(float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs, const float *k,
                        int64_t ks, const float *v, int64_t vs, const float *log_alpha, const float *beta, int64_t gs,
                        float scale, float *o, int64_t os, float *scratch);
    /* outputs of other questions over the same rows; S is the state before them */
    void (*delta_chunk_read)(const float *S, int64_t dk, int64_t dv, int64_t rows, const float *q, int64_t qs,
                             const float *k, int64_t ks, const float *v, int64_t vs, const float *log_alpha,
                             const float *beta, int64_t gs, float scale, float *o, int64_t os, float *scratch);
    /* Gradients, all += except dS (in: after the rows, out: before them). n_ask question sets q[a] with gradients
     * do_[a]; the first is the write pass, later ones the reads; dq[a] NULL: not wanted; dS NULL: zero in, not wanted
     * out. Any of dk.. NULL: not wanted */
    void (*delta_chunk_backward)(const float *S, int64_t dk, int64_t dv, int64_t rows, int n_ask, const float *const *q,
                                 int64_t qs, const float *k, int64_t ks, const float *v, int64_t vs,
                                 const float *log_alpha, const float *beta, int64_t gs, float scale,
                                 const float *const *do_, int64_t os, float *const *dq, float *dk_, float *dv_,
                                 float *dlog_alpha, float *dbeta, float *dS, float *scratch);

    /* -- attention -- */
    /* one row over n >= 1 entries, oldest first, given by their addresses: w_e = e^(scale q.k_e - largest), o = sum(w_e
     * v_e) * (1 / sum(w_e)). Dots and the sum of w in 16 lanes, the sum over v in order, one accumulator per column;
     * weight: n floats of scratch. Exact */
    void (*attend)(const float *q, const float *const *k, const float *const *v, int64_t n, int64_t dk, int64_t dv,
                   float scale, float *weight, float *o);
    /* The same for many rows at once, for training: o, and lse[rows] = log(sum e^(scale q.k_e)) for the way back */
    void (*attend_chunk)(const struct chm_attend *a, float *o, float *lse, float *scratch);
    /* Gradients, all +=; any of them NULL: not wanted. Laid out as what they are gradients of; o and dout like q with
     * a->os */
    void (*attend_chunk_backward)(const struct chm_attend *a, const float *o, const float *lse, const float *dout,
                                  float *dq, float *dk_before, float *dk_, float *dv_before, float *dv_,
                                  float *scratch);

    /* C[m][n] += op(A) B, row-major; ta: A is [k][m]; B is [k][n]. What flows back through a packed linear, whose
     * gradient passes a rounding as if it were not there: the operands may be rounded to bf16, products and sums are
     * f32. Training */
    void (*gradient_matmul)(bool ta, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                            int64_t ldb, float *c, int64_t ldc);
    /* S[dk][dv] = S * decay + k^T v; o = scale * q S (o NULL: not wanted), each operation rounded, sums over the key
     * index in index order as in delta_step: the memory of linear attention, which delta_read reads too. Exact */
    void (*outer_step)(float *S, int64_t dk, int64_t dv, const float *q, const float *k, const float *v, float decay,
                       float scale, float *o);
    /* C[m][n] = A B (add 0), C + A B (1) or C - A B (-1); element (i, p) of A is a[i * row + p * col], B is [k][n]. For
     * the blocks of a chunk, where every side is a few dozen: nothing is packed. Training */
    void (*block_matmul)(int64_t m, int64_t n, int64_t k, const float *a, int64_t row, int64_t col, const float *b,
                         int64_t ldb, float *c, int64_t ldc, int add);
    /* t2_matmul for codes in these encodings. A backend that has no fast form leaves them NULL, and models are repacked
     * to T2 when they are opened. Exact */
    void (*t5_matmul)(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                      float *y, int64_t ldy);
    void (*sherry_matmul)(const struct chm_ternary *w, int64_t tile0, int64_t tile1, const struct chm_activation *x,
                          float *y, int64_t ldy);
    void *reserved_slots[24];
};
/* the product for codes in an encoding */
typedef void (*chm_ternary_product)(const struct chm_ternary *w, int64_t tile0, int64_t tile1,
                                    const struct chm_activation *x, float *y, int64_t ldy);
static inline chm_ternary_product chm_ternary_kernel(const struct chm_kernels *k, int32_t encoding) {
    return encoding == CHM_ENCODING_T5       ? k->t5_matmul
           : encoding == CHM_ENCODING_SHERRY ? k->sherry_matmul
                                             : k->t2_matmul;
}
/* scratch floats of the two attention chunk kernels */
static inline size_t chm_attend_scratch(int64_t dk, int64_t dv) {
    return (size_t)(64 * 64 * 2 + 64 * (dk + dv) * 2 + 64 * 8);
}
/* scratch floats of the three chunk kernels */
static inline size_t chm_delta_scratch(int64_t dk, int64_t dv) {
    return (size_t)(64 * 64 * 8 + 64 * (dk + dv) * 6 + dk * dv * 2 + 64 * 32);
}

/* Kernels of a backend that need more of the CPU than its descriptor says. */
struct chm_backend_level {
    uint32_t size, reserved;
    const char *name; /* what reports call it: "avx512_vnni" */
    uint64_t cpu;     /* enum chm_cpu, all of them needed besides the descriptor's */
    struct chm_kernels kernels;
};

struct chm_backend_ops {
    uint32_t size;
    int32_t rank; /* higher wins where several fill a slot: scalar 0, avx2 200, avx512 500 */
    struct chm_kernels kernels;
    /* Best first; a slot is the first level's that has it and that the CPU can run, else the one above. */
    uint32_t level_count, reserved;
    const struct chm_backend_level *const *levels;
    void *reserved_ops[4];
};

/* ---- Layers --------------------------------------------------------------------------------------------------------
 */

/* What after_step is handed: one parameter of CHM_ROLE_OWN. */
typedef struct chm_after_step {
    uint32_t size, reserved;
    const chm_param *param;
    int64_t count;
    float *value;       /* [count], to be changed */
    const float *tally; /* [count]: what the step's passes added with chm_tally() */
    /* numbers for the log, by a name such as "moe.load"; copied */
    void (*report)(const struct chm_after_step *s, const char *name, int64_t count, const float *value);
    void *reserved_members[4];
} chm_after_step;

struct chm_layer_ops {
    uint32_t size, reserved;
    /* mandatory: declare parameters and state, keep the handles in `self`. Non-zero: chm_declare->fail was called */
    int (*declare)(void *self, chm_declare *d, const chm_layer_info *info);
    /* mandatory: x [rows, width], already normalised -> y [rows, width], to be added to the residual */
    chm_tensor *(*forward)(const void *self, chm_graph *g, chm_tensor *x);
    /* may be NULL: once for every parameter of CHM_ROLE_OWN, after the optimiser moved the others; never between the
     * passes of a step whose gradient accumulates, nor for a step that was skipped */
    void (*after_step)(const void *self, const chm_after_step *s);
    void *reserved_ops[7];
};

/* ---- Tokenizers ----------------------------------------------------------------------------------------------------
 */

/* What a tokenizer learns its vocabulary from; the host's. */
struct chm_tokenizer_training {
    uint32_t size;
    int32_t vocab;      /* ids wanted, specials included */
    const char *method; /* the plugin's word for it ("bpe"); NULL: its choice */
    /* the next sentence: a line of text, or a part of a long one, without its newline and never empty; valid until the
     * next call. NULL: there are no more, or `failed` is set and the sentence of the failure recorded */
    const uint8_t *(*next)(void *user, size_t *bytes);
    int (*write)(void *user, const void *data, size_t bytes); /* the finished file, once */
    void *user;
    const bool *failed; /* of `next` */
    void *reserved[4];
};

enum chm_tokenizer_property {
    CHM_TOKENIZER_LOSSLESS = 1u << 0, /* decode(encode(text)) is the text, for any bytes at all */
    /* encode puts a space before a text, so whoever decodes a text from its start leaves a first space out */
    CHM_TOKENIZER_SPACE_PREFIX = 1u << 1,
};

struct chm_tokenizer_ops {
    uint32_t size, reserved;
    /* mandatory; data: the tokenizer's file, valid as long as the instance, NULL and 0 when the card names none. self
     * is instance_size bytes. Not 0: host->fail was called, and finish will not be */
    int (*init)(void *self, const struct chm_host *host, const void *data, size_t bytes);
    void (*finish)(void *self); /* may be NULL */
    int32_t (*vocab_size)(const void *self);
    int32_t (*end_of_text)(const void *self); /* begins and ends documents; -1: none */
    /* mandatory: writes at most `cap` ids, returns how many the text has (call again if more), or < 0 after host->fail.
     * Names of specials in the text are text. May be called from several threads */
    int64_t (*encode)(const void *self, const uint8_t *text, size_t bytes, int32_t *ids, size_t cap);
    /* mandatory: the bytes of one id into out (at most cap), returns their number; 0 for specials; -1 for no such id */
    int64_t (*decode)(const void *self, int32_t id, uint8_t *out, size_t cap);
    /* bytes that concatenation may split: true when encode(a)+encode(b) = encode(ab) for every a, b */
    bool splits_anywhere;
    /* may be NULL: the largest place found where a text that begins with these bytes may be cut, whatever follows them:
     * encode(text[0..n)) + encode(the rest) = encode(all). 0: there is none yet. NULL: after a newline */
    size_t (*cut)(const void *self, const uint8_t *text, size_t bytes);
    /* may be NULL: the name of a special, "<|endoftext|>"; NULL for an id that is text or unused */
    const char *(*special)(const void *self, int32_t id);
    uint64_t (*properties)(const void *self); /* enum chm_tokenizer_property; may be NULL: none */
    /* may be NULL: learns a vocabulary and writes the file that `init` reads; needs no instance */
    int (*train)(const struct chm_host *host, const struct chm_tokenizer_training *training);
    void *reserved_ops[4];
};

/* ---- Optimisers ----------------------------------------------------------------------------------------------------
 */

enum { CHM_OPTIMISER_ARRAYS = 4 };

/* What an optimiser is told of a parameter. */
struct chm_optimiser_param {
    uint32_t size;
    int32_t role;     /* enum chm_role, never CHM_ROLE_OWN */
    const char *name; /* "layers.3.mixer.q" */
    int64_t out, in;  /* of a matrix, row-major; of a vector its length and 1 */
    int32_t rank;
    bool decay; /* weight decay is meant for it */
};

/* One step on numbers first .. first + count of one parameter. */
struct chm_optimiser_step {
    uint32_t size, reserved;
    const struct chm_optimiser_param *param;
    int64_t first, count;
    float *value;    /* [count], to be changed */
    float *gradient; /* [count], to be multiplied by gradient_scale; may be used as scratch */
    float
        *state[CHM_OPTIMISER_ARRAYS]; /* [count] each, as many as `arrays` said, zeros at first: the host keeps them */
    float *scratch;                   /* as many as `scratch` said */
    double gradient_scale;            /* of the clip: at most 1 */
    double lr, weight_decay;          /* of this step; 0 decay where it is not meant for the parameter */
    int64_t step;                     /* steps that moved weights, this one included: from 1 */
    const struct chm_kernels *kernels;
    void *reserved_members[4];
};

/* Moves weights by their gradients. What it does may depend on its options and on what it is handed and on nothing
 * else: runs are resumed, and their bytes do not depend on threads. It is called from several threads at once. */
struct chm_optimiser_ops {
    uint32_t size;
    bool whole; /* steps get whole parameters; else pieces of a few thousand numbers */
    /* may be NULL: whether this parameter is moved by it; the others are AdamW's */
    bool (*takes)(const void *self, const struct chm_optimiser_param *p);
    /* mandatory: arrays of floats that are kept of a parameter, 0..CHM_OPTIMISER_ARRAYS */
    int (*arrays)(const void *self, const struct chm_optimiser_param *p);
    /* may be NULL: floats of scratch for one step on a parameter */
    size_t (*scratch)(const void *self, const struct chm_optimiser_param *p);
    void (*step)(const void *self, const struct chm_optimiser_step *s); /* mandatory */
    void *reserved_ops[4];
};

/* ---- Descriptor ----------------------------------------------------------------------------------------------------
 */

struct chm_plugin {
    uint32_t magic, abi, size, kind;
    const char *name;    /* "gd" */
    const char *section; /* its own section of the card, with its options, "gated_deltanet"; NULL: none */
    const char *aliases; /* names a card may use besides, separated by spaces: "GD gated_deltanet" */
    const char *version; /* "1.0.0" */
    const char *licence; /* SPDX: "Apache-2.0" */
    const char *summary; /* one line */
    const struct chm_option *options;
    uint32_t option_count, instance_size;
    uint64_t cpu;          /* enum chm_cpu, all of them needed */
    uint64_t capabilities; /* enum chm_capability wanted */
    const void *ops;       /* the struct of its kind */
    const void *reserved[4];
};

#if defined(_WIN32)
#define CHM_EXPORT __declspec(dllexport)
#else
#define CHM_EXPORT __attribute__((visibility("default")))
#endif
/* A static build links many plugins into one program: there each descriptor has a name of its own. */
#ifdef CHM_STATIC_PLUGINS
#define CHM_PLUGIN_SYMBOL(ident) chimera_plugin_##ident
#else
#define CHM_PLUGIN_SYMBOL(ident) chimera_plugin
#endif
#define CHM_PLUGIN(ident, ...)                                                                                         \
    CHM_EXPORT extern const struct chm_plugin CHM_PLUGIN_SYMBOL(ident);                                                \
    const struct chm_plugin CHM_PLUGIN_SYMBOL(ident) = {                                                               \
        .magic = CHM_MAGIC, .abi = CHM_ABI, .size = sizeof(struct chm_plugin), .name = #ident, __VA_ARGS__}
#define CHM_OPTIONS(table) .options = (table), .option_count = sizeof(table) / sizeof((table)[0])

#ifdef __cplusplus
}
#endif
#endif
