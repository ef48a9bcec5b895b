/*
 * graph.h: the host's side of tensor.h. Parameters with storage, streams of state, one pass (context) at a time, the
 * tape.
 *
 * Ownership: a context owns its arena; tensors and tape nodes die at the next chm_context_begin(). Streams own their
 * state blob. Parameters belong to whoever declared them (core/model).
 */
#ifndef CHM_GRAPH_H
#define CHM_GRAPH_H

#include "base/base.h"

/* ---- parameters ---- */
enum chm_format { CHM_FORMAT_F32 = 0, CHM_FORMAT_TERNARY, CHM_FORMAT_INT8 };

struct chm_param {
    char *name; /* "layers.3.mixer.q" */
    enum chm_role role;
    enum chm_format format; /* what the linear runs */
    chm_init init;
    int rank;
    int64_t shape[4];
    int64_t count, out, in; /* out = shape[0], in = count / out */
    int layer;              /* -1: not in a layer */
    bool decay;             /* weight decay applies */
    bool expert;            /* a matrix of a mixture of experts: lies in the model's second file */
    uint32_t stream;        /* Philox stream of its initialiser */

    float *value;               /* training: the latent f32; inference: the f32 value, NULL for packed formats */
    float *grad;                /* training only; NULL for CHM_ROLE_OWN */
    float *tally;               /* training, CHM_ROLE_OWN: what the passes of a step add up */
    float *dequant;             /* training, packed formats: what the file would give back, [out][in] */
    struct chm_ternary ternary; /* CHM_FORMAT_TERNARY; in training T2 */
    chm_param
        *correction[3]; /* of a ternary linear: A [rank, in], B [out, rank], gate [1]; or NULL (arXiv:2602.05269) */
    int32_t stored;     /* enum chm_encoding that a file written now has it in */
    bool sparse;        /* one weight of four is 0, as sherry needs it (training) */
    struct chm_int8_matrix int8; /* CHM_FORMAT_INT8 */
};

/* ---- state ---- */
typedef struct chm_state_item {
    char *name; /* "layers.3.mixer.memory" */
    enum chm_dtype type;
    int64_t heads, elements; /* per head */
    int rank;
    int64_t shape[4];  /* of one head */
    size_t head_bytes; /* padded to 64 */
    size_t offset;     /* in the blob, 64-byte aligned; head h at offset + h * head_bytes */
    int layer;
    bool ring; /* shape [entries, width]: the entry of position p at p modulo entries */
} chm_state_item;

typedef struct chm_state_layout {
    chm_state_item *item;
    int count;
    size_t bytes; /* of one stream's blob */
} chm_state_layout;
size_t chm_dtype_bytes(enum chm_dtype type);

/* One stream: a blob of every layer's state, and how far it has read. */
typedef struct chm_stream_state {
    const chm_state_layout *layout;
    uint8_t *blob;
    int64_t position; /* tokens read since the document began; kept by whoever feeds the stream, not by passes */
} chm_stream_state;
int chm_stream_init(chm_stream_state *s, const chm_state_layout *layout);
void chm_stream_finish(chm_stream_state *s);
void chm_stream_reset(chm_stream_state *s);
void chm_stream_copy(chm_stream_state *to, const chm_stream_state *from); /* fork: same layout */

/* ---- rows ---- */
/* Parents come before their children. parent[r] is a row, or ~slot: the committed state of streams[slot]. A row at
 * position 0 starts a document: its state is zero whatever its parent is. */
typedef struct chm_rows {
    int64_t count;
    const int32_t *parent;
    const int64_t *position;
} chm_rows;

enum chm_pass_flags {
    CHM_PASS_COMMIT = 1, /* rows of a stream are one chain and accepted at once: states advance in place */
    CHM_PASS_TRAIN = 2,  /* chunk forms and a tape; rows of a slot are contiguous and in order */
    CHM_PASS_CARRY = 4,  /* with TRAIN: the slots' states are advanced too (detached) */
    CHM_PASS_STEP = 8,   /* with TRAIN: forward through step and no tape for recurrences (tests) */
};

/* ---- context ---- */
typedef struct chm_context chm_context;
typedef chm_tensor *(*chm_tap_hook)(void *user, chm_graph *g, const char *name, chm_tensor *x);

int chm_context_create(const struct chm_kernels *kernels, chm_pool *pool, const chm_state_layout *layout,
                       float norm_eps, chm_context **out);
void chm_context_destroy(chm_context *c);
chm_graph *chm_context_graph(chm_context *c); /* what a layer's forward is handed */
void chm_context_on_tap(chm_context *c, chm_tap_hook hook, void *user);
size_t chm_context_bytes(const chm_context *c); /* arena high-water mark */

/* Gradients of the streams' states, one blob a slot in the state's layout (f32 items only): before chm_backward the
 * gradient of the state after the pass, afterwards that of the state before it. Call after begin; NULL: zero, not
 * wanted */
void chm_context_state_gradients(chm_context *c, uint8_t *const *blob);
/* Starts a pass; everything of the pass before is gone. `rows` and the arrays in it must stay until the next begin.
 * `streams` may be NULL when no row names a slot whose position is not 0. */
int chm_context_begin(chm_context *c, const chm_rows *rows, chm_stream_state *const *streams, int slots,
                      uint32_t flags);
/* Tells operators which layer's code runs now: states[] numbers are resolved against it. first_state: index in the
 * layout of the layer's state 0. */
void chm_context_enter(chm_context *c, int layer, const char *part, int first_state);
/* While off, operators of a training pass leave no trace on the tape: what they make is a constant to those after. */
void chm_context_record(chm_context *c, bool on);
/* Gradient checkpointing: training passes to come keep of what goes through chm_recompute() its input and output, and
 * the states that it read. */
void chm_context_recompute(chm_context *c, bool on);
/* y = run(user, c, x), of x's shape, and where the context recomputes: what run() makes is forgotten, and made once
 * more on the way back, to the same bytes. states: how many of the layout, from first_state on, it may advance. Not
 * inside a loop. `user` must stay until the pass is over. */
typedef chm_tensor *(*chm_run)(const void *user, chm_context *c, chm_tensor *x);
chm_tensor *chm_recompute(chm_context *c, chm_tensor *x, int first_state, int states, chm_run run, const void *user);
/* Bytes that live as long as the pass; NULL: out of memory, which the pass remembers. */
void *chm_context_take(chm_context *c, size_t bytes);
/* Loop pass, from 1. On passes after the first recurrences only read what pass 1 wrote at the same place. */
void chm_context_loop(chm_context *c, int pass);
int64_t chm_context_rows(const chm_context *c); /* of the pass */
bool chm_context_trains(const chm_context *c);
/* A leaf: copies data (NULL: zeros). flags: CHM_TENSOR_GRAD. */
chm_tensor *chm_input(chm_context *c, int64_t rows, int64_t width, const float *data, uint32_t flags);
/* Rows ids of a [vocab, width] embedding, as its stored format gives them back. */
chm_tensor *chm_embed(chm_context *c, chm_param *table, const int32_t *ids, int64_t rows);
/* chm_linear, of whose outputs only those of a list are wanted, ascending and each once: these have the same bytes, the
 * others are -infinity. Reads only the tiles of the matrix that the list meets. Not in training. */
chm_tensor *chm_linear_some(chm_context *c, chm_tensor *x, chm_param *w, const int32_t *id, int64_t ids);
/* Mean cross-entropy of logits [rows, vocab] against targets (< 0: masked), times `scale` in the gradient. Writes the
 * summed loss (nats, f64 over rows in order) and starts the tape's gradient at the logits. Columns past `vocab` ignored
 */
int chm_cross_entropy(chm_context *c, chm_tensor *logits, const int32_t *target, int64_t vocab, float scale,
                      double *loss_sum, int64_t *counted);
/* Runs the tape backwards from the gradients set so far; parameter gradients accumulate into chm_param.grad. */
int chm_backward(chm_context *c);
/* After a pass without COMMIT: replays these rows (a path: each the parent of the next, the first one's parent a slot)
 * into that slot's stream. The rest is forgotten; accepting nothing rewinds for free. */
int chm_accept(chm_context *c, const int32_t *rows, int64_t count);
/* Records the first failure of the pass; returns NULL for `return chm_refuse(...)`. */
void *chm_refuse(chm_context *c, int status, const char *format, ...) CHM_PRINTF(3, 4);
/* The sentence of the first operator that failed in this pass goes to chm_error(); CHM_OK when none did. */
int chm_context_status(chm_context *c);

/* ---- storage of packed formats ---- */
/* bytes of the two arrays of a packed parameter (codes or q; scales), 64-byte padded */
size_t chm_param_code_bytes(const chm_param *p, int32_t encoding);
size_t chm_param_scale_bytes(const chm_param *p, int64_t group);
/* value -> packed form and dequant, in parallel; exact */
int chm_param_quantise(chm_param *p, const struct chm_kernels *k, chm_pool *pool);
/* rows of an int8 matrix from theirs in f32: q [rows][in rounded up to 64], scale [rows], dequant (NULL: not wanted) */
void chm_int8_rows(const float *w, int64_t rows, int64_t in, int8_t *q, float *scale, float *dequant);
/* row `row` of a parameter as the file gives it back */
void chm_param_row(const chm_param *p, int64_t row, float *out);

#endif
