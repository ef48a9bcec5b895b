/*
 * model.h: a card's layer pattern made real: plugins instantiated, parameters declared and stored, one forward for all.
 */
#ifndef CHM_MODEL_H
#define CHM_MODEL_H

#include "config/card.h"
#include "graph/graph.h"

typedef struct chm_layer {
    const struct chm_plugin *plugin;
    const struct chm_layer_ops *ops;
    void *self;
    chm_param *norm;  /* of the residual block */
    const char *part; /* "layers.3.mixer" */
    int first_state;  /* index in layout */
    int states;       /* of one pass; with a state per pass those of the next follow */
    int first_param, params;
} chm_layer;

/* The layer loop's vectors, each of the model's width (core/model/loop.c). */
typedef struct chm_loop {
    const struct chm_loop_config *config;
    chm_param *norm, *A_log, *dt_bias, *gain;
} chm_loop;

/* How deep one forward goes through the loop, and what came of it. */
typedef struct chm_depth {
    int passes;        /* most of any row; 0: looping.loop_default */
    bool whole;        /* no row stops early. Training never does */
    int64_t rows, sum; /* += rows, += passes over all of them */
} chm_depth;

typedef struct chm_model {
    chm_card *card; /* owned */
    const chm_model_config *config;
    const chm_registry *registry;
    chm_param **param; /* in file order: embedding, layers.0.mixer..., final norm */
    int params;
    chm_state_layout layout;
    chm_layer *mixer, *ffn; /* [layers] */
    chm_loop loop;
    chm_param *embedding, *final_norm, *head; /* head is the embedding when tied */
    chm_arena arena;                          /* declarations, instances, options */
    void *storage;                            /* of values when not mapped */
    bool trainable;
    double open_seconds;   /* that chm_open took, */
    double repack_seconds; /* of which for codes in an encoding for which it found no fast kernel, */
    size_t repacked_bytes; /* and the memory that took; 0: none were */
    chm_map map;           /* the .b158 it was opened from */
    struct chm_safetensors *file;
    chm_map experts_map; /* and the file beside it with its experts; empty: there is none */
    struct chm_safetensors *experts;
    char *path, *experts_path;
    struct chm_tokenizer *tokenizer; /* chm_open's; NULL in a model made another way. chm_close releases it */
    /* what chm_model_save() writes of the tokenizer, set by whoever made the model: not owned; NULL: what the file says
     * that the model was opened from */
    const struct chm_tokenizer *made_with;
} chm_model;

/* Takes the card over (also on failure). Declares everything; no storage yet. A layer whose plugin is missing is
 * refused by name. */
int chm_model_create(chm_card *card, const chm_registry *registry, chm_model **out);
/* One layer alone, as mixer[0]: no embedding, no head. The card is taken over all the same. */
int chm_model_create_layer(chm_card *card, const chm_registry *registry, const char *plugin, chm_model **out);
void chm_model_destroy(chm_model *m);
/* The next piece of a storage, 64-byte aligned; NULL while there is none and only its size is asked. */
void *chm_carve(uint8_t *storage, size_t *used, size_t bytes);
/* Storage for training: value, grad, dequant and packed forms of every parameter. */
int chm_model_allocate(chm_model *m);
/* The same for training passes without a way back: no gradients, and nothing that only they need. */
int chm_model_allocate_forward(chm_model *m);
/* Initial values: Philox keyed by (seed, parameter), the same on every machine and thread count. */
int chm_model_randomise(chm_model *m, uint64_t seed);
/* The model that chm_model_allocate, _randomise and _quantise would make, ready to be saved and with no values behind
 * its packed forms, which ternary codes have in the encoding of the file: it takes the memory that the file takes, not
 * the 14 times as much of a model that learns. */
int chm_model_init(chm_model *m, uint64_t seed, const struct chm_kernels *k, chm_pool *pool);
/* Latent values -> packed forms, for every quantised parameter. */
int chm_model_quantise(chm_model *m, const struct chm_kernels *k, chm_pool *pool);
/* What layers change by rules of their own, once the optimiser has moved the rest, from what the passes of the step
 * tallied; `report` (NULL: nobody listens) gets their numbers for the log. Clears the tallies. */
typedef void (*chm_layer_report)(void *user, const char *part, const char *name, int64_t count, const float *value);
void chm_model_after_step(chm_model *m, chm_layer_report report, void *user);
void chm_model_clear_tallies(chm_model *m);
/* Passes of the loop that training takes for one sequence of one step: 1 where there is no loop. */
int chm_loop_depth(const struct chm_loop_config *config, uint64_t seed, int64_t step, int64_t stream);
/* Ids of the vocabulary, ascending and each once. */
typedef struct chm_id_list {
    const int32_t *id;
    int64_t count; /* 0: all of the vocabulary */
} chm_id_list;
/* ids [rows] -> logits [rows, vocab] inside a begun pass; NULL: chm_context_status(). `want`: only rows whose want[r]
 * is set get logits (NULL: all rows), the result has as many rows. allowed (NULL: all): the logits that are wanted, all
 * others are -infinity. depth NULL: the card's passes. */
chm_tensor *chm_model_forward(chm_model *m, chm_context *c, const int32_t *ids, const bool *want,
                              const chm_id_list *allowed, chm_depth *depth);
/* One layer or ffn alone, as the stack would run it. */
int chm_model_parameter_count(const chm_model *m, int64_t *total, int64_t *embedding);

/* ---- .b158 (core/model/b158.c) ---- */
/* Ternary codes that lie in a file in an encoding for which this choice of kernels has nothing better than the portable
 * one are repacked to T2, in memory. bytes (NULL: not wanted): how much that took, 0: nothing was repacked. */
int chm_model_repack(chm_model *m, const chm_kernel_choice *kernels, chm_pool *pool, size_t *bytes);
/* Writes the packed model, atomically: into one file, or into two when it has experts (b158.h). */
int chm_model_save(const chm_model *m, const char *path);
/* Maps a .b158; the card is inside. verify: check every tensor's hash too. */
int chm_model_open(const char *path, const chm_registry *registry, const struct chm_card_options *options, bool verify,
                   chm_model **out);

/* ---- safetensors (core/model/safetensors.c) ---- */
enum chm_st_dtype {
    CHM_ST_U8,
    CHM_ST_I8,
    CHM_ST_F32,
    CHM_ST_F64,
    CHM_ST_I32,
    CHM_ST_I64,
    CHM_ST_U64,
    CHM_ST_F16,
    CHM_ST_BF16
};
typedef struct chm_st_tensor {
    const char *name;
    enum chm_st_dtype dtype;
    int rank;
    int64_t shape[8];
    const uint8_t *data;
    uint64_t bytes;
} chm_st_tensor;
typedef struct chm_safetensors {
    chm_st_tensor *tensor; /* file order */
    int count;
    const char *const *meta_key;
    const char *const *meta_value;
    int metas;
    const uint8_t *header; /* the 8 bytes of its length, and the header */
    uint64_t header_bytes; /* of both */
    void *owned;
} chm_safetensors;
/* Every offset, overlap, gap, dtype and shape checked; `name` stands for the file in messages. data must outlive it. */
int chm_safetensors_parse(const char *name, const uint8_t *data, uint64_t bytes, chm_safetensors **out);
void chm_safetensors_destroy(chm_safetensors *s);
const chm_st_tensor *chm_safetensors_find(const chm_safetensors *s, const char *name); /* NULL: no sentence */
const char *chm_safetensors_meta(const chm_safetensors *s, const char *key);
/* A header may have its own hash in __metadata__, CHM_ST_HEADER_HASH: XXH3 64 as 16 hex digits, of the 8 bytes of the
 * length and the header up to those digits, as the seed of that of what follows them. The writer puts it in place of
 * any 16 characters under that key. */
#define CHM_ST_HEADER_HASH "header_hash"
bool chm_safetensors_sealed(const chm_safetensors *s); /* it has one, and it is right */
void chm_safetensors_seal(uint8_t *header, uint64_t bytes);
/* Atomic write. Tensors in the order given; align: pad tensors "_pad.N" keep every tensor on 64 bytes. */
int chm_safetensors_write(const char *path, const chm_st_tensor *tensor, int count, const char *const *meta_key,
                          const char *const *meta_value, int metas, bool align);
/* The same, left for the caller to commit; on failure the writer is abandoned. */
int chm_safetensors_begin(chm_writer *writer, const char *path, const chm_st_tensor *tensor, int count,
                          const char *const *meta_key, const char *const *meta_value, int metas, bool align);
/* As chm_safetensors_write, without padding; the bytes of a tensor whose data is NULL are written by `produce`. */
typedef int (*chm_st_produce)(void *user, const chm_st_tensor *t, chm_writer *writer);
int chm_safetensors_write_made(const char *path, const chm_st_tensor *tensor, int count, const char *const *meta_key,
                               const char *const *meta_value, int metas, chm_st_produce produce, void *user);

#endif
