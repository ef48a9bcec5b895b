/*
 * b158.h: the parts of the .b158 reader and writer that stand without a model, shared with inspect and the tests.
 *
 * A .b158 is a valid safetensors file. A ternary parameter NAME is two tensors, `NAME.codes` U8 [tiles, bytes of
 * codes] and `NAME.scales` U8 [tiles, 64 + 16 * groups] (struct chm_ternary says what is in them); an int8 one is
 * `NAME.q` I8 [out, blocks * 64] and `NAME.scale` F32 [out]; any other is NAME, F32 with its own shape. Largest first,
 * every tensor on 64 bytes, gaps filled by zeros named `_pad.N`.
 *
 * __metadata__: format "chimera.b158"; format_version "2"; parameters and embedding_parameters, counts of weights;
 * tokenizer, its name; tokenizer_hash, what it does (model/tokenizer.h), 16 hex digits; trained.KEY, what is known of
 * the training; encoding.NAME of every parameter
 * ("t5;out=O;in=I;group=G", t2 or sherry for t5, "i8;out=O;in=I;block=64" or "f32"); hash.TENSOR, XXH3 64 of its bytes
 * as 16 hex digits; card_hash, the same of card; card, the resolved card as JSON; header_hash, of all of the header
 * (chm_safetensors_seal). A tokenizer with a file has it in the
 * tensor `tokenizer.file` U8 [bytes].
 *
 * The matrices of a mixture of experts lie in a second file beside the first: a .b158 too, with the same card and
 * `part` "experts". The first names it in `experts` and knows it by `experts_hash`, which is made of every encoding and
 * hash in its metadata: 16 hex digits.
 */
#ifndef CHM_B158_H
#define CHM_B158_H

#include "graph/encoding.h"
#include "model/model.h"

#include <float.h>

#define CHM_B158_FORMAT    "chimera.b158"
#define CHM_B158_VERSION   "2"
#define CHM_B158_TOKENIZER "tokenizer.file"

/* One more entry of __metadata__. */
typedef struct chm_b158_note {
    const char *key, *value;
} chm_b158_note;

/* chm_model_save() with what is known of the training. Keys begin "trained." ("trained.tokens"); those of the file that
 * the model was opened from are kept unless given anew. */
int chm_b158_save(const chm_model *m, const char *path, const chm_b158_note *note, int notes);

/* Writes packed parameters (names unique) and the card's text, atomically. */
int chm_b158_write(const char *path, chm_param *const *param, int params, const char *card_json,
                   const chm_b158_note *note, int notes);
/* The same with the tokenizer's file, NULL: it has none. */
int chm_b158_write_with(const char *path, chm_param *const *param, int params, const char *card_json,
                        const chm_b158_note *note, int notes, const void *tokenizer, uint64_t tokenizer_bytes);
/* The same, left for the caller to commit (on failure abandoned); fingerprint (NULL: not wanted) gets that of the file.
 */
int chm_b158_begin(chm_writer *writer, const char *path, chm_param *const *param, int params, const char *card_json,
                   const chm_b158_note *note, int notes, const void *tokenizer, uint64_t tokenizer_bytes,
                   uint64_t *fingerprint);
/* What a file holds, from the encodings and hashes in its metadata. */
uint64_t chm_b158_fingerprint(const char *const *key, const char *const *value, int count);
/* Is this safetensors file a .b158 of a version we read, with a card whose hash is right? */
int chm_b158_check(const char *name, const chm_safetensors *file);
/* Points every parameter's packed form (or value) into the file, once encoding, shape, place and scales are as the
 * declaration (name, format, shape, out, in; `group` for ternary) wants them, and nothing is left over. The hashes of
 * the header and of scales are checked; with verify every hash and every weight. On failure some parameters point into
 * the file already. */
int chm_b158_bind(const char *name, const chm_safetensors *file, chm_param *const *param, int params, int64_t group,
                  bool verify);
/* Is this the metadata key of a parameter, "encoding.NAME"? */
bool chm_b158_is_encoding(const char *key);
/* Declares *p (zeros) as entry `meta` of the file's metadata, one of those, says: name (which stays the file's),
 * format, shape and stored encoding. *group is the one of all ternary parameters, 0 until one is met. */
int chm_b158_describe(const char *path, const chm_safetensors *file, int meta, chm_param *p, int64_t *group);
const char *chm_b158_form(const chm_param *p); /* "t5", "i8", "f32" */
/* What is written under that key, in the arena; NULL: out of memory */
const char *chm_b158_encoding(chm_arena *arena, const chm_param *p);
/* The sentence of what does not fit sherry; CHM_E_DATA. */
int chm_b158_unfit(const char *path, const char *param, const struct chm_misfit *misfit);
/* One tensor against its hash; padding against zero. */
int chm_b158_verify_tensor(const char *name, const chm_safetensors *file, const chm_st_tensor *t);

/* ---- the second file (experts.c) ---- */
typedef struct chm_experts {
    chm_map map;
    chm_safetensors *file; /* NULL: the model has no second file */
    char *path;
} chm_experts;
/* The file that `file`, read from `path`, names, beside it (or beside what `path` links to), checked to be the one it
 * was written with. Missing, damaged or another's: refused with both names and what to do. */
int chm_experts_open(const char *path, const chm_safetensors *file, chm_experts *out);
void chm_experts_close(chm_experts *e); /* also of zeros */
/* Is this the second file of a model? */
bool chm_experts_is_part(const chm_safetensors *file);
/* How the card calls the two (files.weights, files.moe; NULL: it does not), and a file of experts that stays. */
struct chm_experts_names {
    const char *weights, *experts, *keep;
};
/* Writes both files of a model with experts. Both are complete on disk before the first gets its name, and the experts
 * get theirs first: no new model ever stands beside old experts. `note` has room for two more. */
int chm_experts_save(const struct chm_experts_names *names, const char *path, chm_param *const *param, int params,
                     const char *card_json, chm_b158_note *note, int notes, const void *tokenizer,
                     uint64_t tokenizer_bytes);

bool chm_b158_is_padding(const char *tensor_name); /* "_pad.0" */

/* A scale multiplies an activation scale and, in a ternary matrix, stands for up to 255 times itself. */
#define CHM_B158_SCALE_MAX (FLT_MAX / 256)
static inline bool chm_b158_sane_scale(float x) { return x >= 0 && x <= CHM_B158_SCALE_MAX; }

/* ---- parameters from plain tensors (floats.c) ---- */
/* How another's checkpoint holds its ternary matrices; T is the tensor of one. */
enum chm_import {
    CHM_IMPORT_NONE,
    CHM_IMPORT_AUTOBITLINEAR, /* T is U8, four rows in one, a weight is trit * T_scale */
    CHM_IMPORT_BITLINEAR,     /* the same, trit / T_scale */
    CHM_IMPORT_ABSMEAN,       /* T holds what is ternarised by its mean of absolute values */
};
struct chm_floats {
    const char *path;
    const chm_safetensors *file;
    enum chm_import import;
    bool lossy;
    const struct chm_kernels *kernels; /* for lossy */
    chm_pool *pool;
    chm_arena *arena; /* where what is made lives */
    bool *used;       /* of each tensor of the file */
    int32_t quantised;
    int32_t rescaled; /* matrices of which some stored scale did not fit: another was found for the same weights */
    double squares, squared_error; /* over the parameters that were quantised */
};
/* Its packed form, or value, out of the tensor of its name: exactly, or with `lossy` as training quantises. A matrix is
 * exact when every weight is trit (or int8) * scale, with the scales of `NAME.scales` (`NAME.scale`) where that is
 * there and fits, else with such as can be found. */
int chm_floats_take(struct chm_floats *f, chm_param *p);

/* A name out of a file, fit for a sentence: control characters and what is not ASCII replaced, cut at 80 bytes. */
typedef struct chm_quoted {
    char text[84];
} chm_quoted;
chm_quoted chm_quote(const char *name);
const char *chm_st_dtype_name(enum chm_st_dtype type); /* "F32" */
size_t chm_st_dtype_bytes(enum chm_st_dtype type);
/* "[3, 4]" */
void chm_st_shape_text(const chm_st_tensor *t, char *text, size_t n);

#endif
