/*
 * tensor.h: tensors, parameters, operators and recurrences; what a layer is written with.
 *
 * Ownership: everything a layer touches here belongs to the host. Tensors live in the arena of the pass that made them
 * and die with it; parameters live as long as the model; states live in the stream. A layer frees nothing.
 *
 * Errors: an operator that fails (wrong shape, out of memory) records one sentence in its graph and returns NULL. An
 * operator handed NULL returns NULL. So a layer need not check: it returns what it got and the host reports the
 * sentence.
 *
 * Shapes: an activation is [rows, width], row-major f32, 64-byte aligned. Rows are tokens; which row follows which is
 * the topology of the pass and only recurrences look at it. "group" splits the width into equal heads.
 */
#ifndef CHIMERA_TENSOR_H
#define CHIMERA_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Status of every function that can fail; also the exit code of the `chimera` command. chm_error() has the sentence. */
enum chm_status {
    CHM_OK = 0,
    CHM_E_VERDICT = 1,       /* ran, and the answer is no (a test failed, a gate did not pass) */
    CHM_E_CONFIG = 2,        /* usage, card, ini, option */
    CHM_E_PLUGIN = 3,        /* a plugin is missing or refused */
    CHM_E_DATA = 4,          /* a file is missing, short, corrupt, or cannot be written */
    CHM_E_SAFETY = 5,        /* the supervisor froze the run */
    CHM_E_MEMORY = 6,        /* out of memory */
    CHM_E_INTERNAL = 7,      /* a bug of ours */
    CHM_E_INTERRUPTED = 130, /* interrupted after a checkpoint was saved */
};

typedef struct chm_tensor {
    float *data; /* [rows][width] */
    float *grad; /* same shape; NULL until something accumulates into it: use chm_grad() */
    int64_t rows, width;
    uint32_t flags; /* CHM_TENSOR_GRAD: wanted by the backward pass */
    uint32_t reserved;
    void *host; /* the host's: int8 form of the rows, shared by the linears that read them */
} chm_tensor;

enum { CHM_TENSOR_GRAD = 1u };

typedef struct chm_param chm_param; /* a declared parameter */
typedef struct chm_graph chm_graph; /* one pass being executed */
struct chm_kernels;                 /* plugin.h */

/* Elementwise functions. */
enum chm_unary {
    CHM_SILU, /* x*sigmoid(x) */
    CHM_SIGMOID,
    CHM_TANH,
    CHM_EXP,
    CHM_SOFTPLUS,    /* log(1+e^x), x itself above 20 */
    CHM_LOG_SIGMOID, /* -softplus(-x) */
    CHM_RELU2,       /* max(x,0)^2 */
    CHM_UNARY_COUNT,
};

/* ---- Recurrences ------------------------------------------------------------------------------------------------ */

enum { CHM_MAX_INPUTS = 8, CHM_MAX_STATES = 4, CHM_MAX_PARAMS = 4 };

/*
 * One head of one recurrence. Every function below is handed one: the widths are per head, `in` pointers already point
 * at this head's columns, and in_stride/out_stride are the distance in floats from one row to the next.
 */
typedef struct chm_head {
    const void *layer; /* the instance that called chm_recur() */
    const struct chm_kernels *kernels;
    int64_t head, heads;
    int64_t position; /* of the first row in its document, from 0 */
    int64_t rows;     /* chunk forms: rows in this chunk; step and read: 1 */
    int64_t in_width[CHM_MAX_INPUTS], in_stride[CHM_MAX_INPUTS];
    int64_t out_width, out_stride;
    const float *param[CHM_MAX_PARAMS]; /* this head's slice of each parameter: param_shape[0]/heads leading rows */
    int64_t param_count[CHM_MAX_PARAMS];
    void *saved;   /* chunk forms: saved_bytes() kept from chunk to chunk_backward, else NULL */
    void *scratch; /* scratch_bytes() of this thread's, contents undefined */
} chm_head;

/* Gradients that chunk_backward fills. All of them accumulate (+=) except dstate, which is in/out. NULL: not wanted. */
typedef struct chm_chunk_grad {
    const float *dout;                  /* gradient of the write pass's output, out_stride; never NULL */
    uint32_t n_reads;                   /* later read passes over these rows */
    const float *const *const *read_in; /* [n_reads][n_inputs]: their questions; NULL for inputs not asked */
    const float *const *read_dout;      /* [n_reads] */
    float *din[CHM_MAX_INPUTS];         /* in_stride */
    float *dparam[CHM_MAX_PARAMS];      /* this head's slice */
    float *dstate[CHM_MAX_STATES];      /* in: gradient of the state after the chunk; out: before it */
} chm_chunk_grad;

/*
 * A recurrence: state, and rules to advance it. `step` is the definition and all that inference runs; the chunk forms
 * are for training. `state[i]` is this head's slice of the i-th state handed to chm_recur().
 *
 * read_inputs: bit i is set when input i is a question, which a later loop pass asks again of the state after a row
 * (q of a linear attention). The other inputs of a read come from the rows that pass 1 logged.
 */
typedef struct chm_recurrence {
    uint32_t size; /* sizeof(chm_recurrence) */
    uint32_t n_inputs, n_states, n_params;
    uint32_t read_inputs;
    uint32_t flags;   /* CHM_REC_ALIGNED */
    const char *name; /* in messages and taps */

    /* mandatory: advance the state by one row; out (out_width floats) is NULL when rows are only replayed */
    void (*step)(const chm_head *h, void *const *state, const float *const *in, float *out);
    /* ask the state after a row a new question; `state` is the state after that row and is not written. NULL: the layer
     * cannot stand inside a loop */
    void (*read)(const chm_head *h, void *const *state, const float *const *in, float *out);

    /* Training. NULL chunk: the recurrence cannot be trained. chunk advances `state` over h->rows rows. */
    int64_t (*chunk_rows)(const void *layer); /* most rows a chunk may have; NULL: 64 */
    size_t (*saved_bytes)(const chm_head *h);
    size_t (*scratch_bytes)(const chm_head *h); /* for rows = chunk_rows; NULL: 0 */
    void (*chunk)(const chm_head *h, void *const *state, const float *const *in, float *out);
    /* outputs of a read pass over the chunk whose starting state is `state` (not written) */
    void (*chunk_read)(const chm_head *h, void *const *state, const float *const *in, const float *const *read_in,
                       float *out);
    /* the part of a read pass's gradient that its own questions need (dread_in +=); what flows to the writes is given
     * to chunk_backward later, which a reverse sweep reaches after every read */
    void (*chunk_read_backward)(const chm_head *h, void *const *state, const float *const *in,
                                const float *const *read_in, const float *dout, float *const *dread_in);
    /* `state` is the state before the chunk and is not written */
    void (*chunk_backward)(const chm_head *h, void *const *state, const float *const *in, const chm_chunk_grad *grad);
    void *reserved[4];
} chm_recurrence;

enum { CHM_REC_ALIGNED = 1u }; /* chunks never cross a multiple of chunk_rows in document positions */

/* ---- Windows over rings ------------------------------------------------------------------------------------------ */

/*
 * A ring is an append-only state: every row adds one entry, and a row sees the last `entries` of them up to its own,
 * through its ancestors. The rows of a pass are found in the pass, older ones in the stream, where the host keeps each
 * entry at (position modulo entries). So nothing is copied for a tree of rows and trying costs nothing to forget.
 * An entry is `width` floats which the host copies and never computes with: bits may travel in them.
 */
enum { CHM_MAX_RINGS = 4 };

/* Training: what the rows of one head see of one ring. Entries count from the oldest: `before` of them precede the
 * rows, and row r's own is number before + r; row r sees the last `entries` up to that one. */
typedef struct chm_ring_rows {
    int64_t entries, width;
    int64_t before;              /* less than `entries`: what the first row can still see */
    int64_t stride;              /* floats from one entry to the next, in all four arrays */
    const float *carried, *rows; /* [before], [h->rows] */
    float *dcarried, *drows;     /* their gradients, +=; NULL: not wanted. Only in chunk_backward */
} chm_ring_rows;

/*
 * A rule that reads rings. `look` is the definition and all that inference runs; the chunk forms are for training. The
 * asks are the row's own questions; a later loop pass asks anew of the entries that the first pass wrote. In chm_head,
 * in_width and in_stride count the asks first, then the entries.
 */
typedef struct chm_window {
    uint32_t size; /* sizeof(chm_window) */
    uint32_t n_asks, n_rings;
    uint32_t flags; /* none defined: 0 */
    const char *name;

    size_t (*scratch_bytes)(const chm_head *h); /* NULL: 0 */
    /* mandatory: the output of one row. entry[i] lists the count[i] entries of ring i it sees, oldest first; the last
     * is its own */
    void (*look)(const chm_head *h, const float *const *ask, const int64_t *count, const float *const *const *entry,
                 float *out);

    /* Training, over h->rows rows of one document. NULL chunk: the window cannot be trained. */
    size_t (*saved_bytes)(const chm_head *h); /* h->saved from chunk to chunk_backward; NULL: 0 */
    void (*chunk)(const chm_head *h, const float *const *ask, const chm_ring_rows *ring, float *out);
    /* dask and the gradients in `ring` += ; dask[i] NULL: not wanted */
    void (*chunk_backward)(const chm_head *h, const float *const *ask, const chm_ring_rows *ring, const float *out,
                           const float *dout, float *const *dask);
    void *reserved[4];
} chm_window;

/* ---- Operators of one's own -------------------------------------------------------------------------------------- */

/* A row-wise operator with its gradient: out[r] = f(in_0[r], ...). Called on blocks of rows, from several threads. */
typedef struct chm_operator {
    uint32_t size, n_inputs;
    const char *name;
    void (*forward)(const void *self, int64_t rows, const int64_t *width, const float *const *in, int64_t out_width,
                    float *out);
    /* din[i] += ...; din[i] NULL: not wanted. NULL backward: the operator cannot be trained through */
    void (*backward)(const void *self, int64_t rows, const int64_t *width, const float *const *in, int64_t out_width,
                     const float *out, const float *dout, float *const *din);
    void *reserved[2];
} chm_operator;

/* ---- The host's operators ---------------------------------------------------------------------------------------- */

/* Filled by the host; layers use the inline functions below. */
struct chm_graph_ops {
    uint32_t size;
    chm_tensor *(*linear)(chm_graph *g, chm_tensor *x, chm_param *w);
    chm_tensor *(*param)(chm_graph *g, chm_param *p);
    chm_tensor *(*rmsnorm)(chm_graph *g, chm_tensor *x, chm_param *w, int64_t group);
    chm_tensor *(*l2norm)(chm_graph *g, chm_tensor *x, int64_t group);
    chm_tensor *(*unary)(chm_graph *g, enum chm_unary op, chm_tensor *x);
    chm_tensor *(*add)(chm_graph *g, chm_tensor *a, chm_tensor *b);
    chm_tensor *(*mul)(chm_graph *g, chm_tensor *a, chm_tensor *b);
    chm_tensor *(*affine)(chm_graph *g, chm_tensor *x, float scale, float offset);
    chm_tensor *(*swiglu)(chm_graph *g, chm_tensor *gate, chm_tensor *up);
    chm_tensor *(*concat)(chm_graph *g, chm_tensor *const *parts, int n);
    chm_tensor *(*slice)(chm_graph *g, chm_tensor *x, int64_t first, int64_t width);
    chm_tensor *(*short_conv)(chm_graph *g, chm_tensor *x, chm_param *taps, int state);
    chm_tensor *(*diag_scan)(chm_graph *g, chm_tensor *decay, chm_tensor *input, int state);
    chm_tensor *(*recur)(chm_graph *g, const chm_recurrence *r, const void *layer, chm_tensor *const *in,
                         chm_param *const *params, const int *states, int64_t heads, int64_t out_width);
    chm_tensor *(*apply)(chm_graph *g, const chm_operator *op, const void *self, chm_tensor *const *in,
                         int64_t out_width);
    chm_tensor *(*tap)(chm_graph *g, const char *name, chm_tensor *x);
    float *(*grad)(chm_graph *g, chm_tensor *x);
    const struct chm_kernels *(*kernels)(chm_graph *g);
    chm_tensor *(*look)(chm_graph *g, const chm_window *w, const void *layer, chm_tensor *const *ask,
                        chm_tensor *const *entry, const int *rings, int64_t heads, int64_t out_width);
    chm_tensor *(*rope)(chm_graph *g, chm_tensor *x, int64_t group, int64_t rotary, double theta);
    void *(*memory)(chm_graph *g, size_t bytes);
    chm_tensor *(*gather_rows)(chm_graph *g, chm_tensor *x, const int32_t *row, int64_t rows);
    chm_tensor *(*scatter_rows)(chm_graph *g, chm_tensor *base, chm_tensor *const *part, int64_t parts,
                                const int32_t *row, chm_tensor *weight, const int32_t *column);
    float *(*tally)(chm_graph *g, chm_param *p);
    void *reserved[12];
};

struct chm_graph {
    const struct chm_graph_ops *ops; /* the rest is the host's */
};

/* y[rows, out] = x[rows, in] W^T, W declared [out, in]. A ternary parameter runs int8 x ternary, a full one f32. Put an
 * RMSNorm before a ternary linear; linears that read the same tensor share its int8 form. */
static inline chm_tensor *chm_linear(chm_graph *g, chm_tensor *x, chm_param *w) { return g->ops->linear(g, x, w); }
/* a parameter as a [1, n] tensor, for add and mul */
static inline chm_tensor *chm_param_tensor(chm_graph *g, chm_param *p) { return g->ops->param(g, p); }
/* x / sqrt(mean(x^2) + rms_norm_eps) * w over each `group` columns (0: the whole width); w [group], [width] or NULL.
 * arXiv:1910.07467 */
static inline chm_tensor *chm_rmsnorm(chm_graph *g, chm_tensor *x, chm_param *w, int64_t group) {
    return g->ops->rmsnorm(g, x, w, group);
}
/* x / sqrt(sum(x^2) + 1e-6) over each `group` columns */
static inline chm_tensor *chm_l2norm(chm_graph *g, chm_tensor *x, int64_t group) { return g->ops->l2norm(g, x, group); }
static inline chm_tensor *chm_unary(chm_graph *g, enum chm_unary op, chm_tensor *x) { return g->ops->unary(g, op, x); }
static inline chm_tensor *chm_silu(chm_graph *g, chm_tensor *x) { return g->ops->unary(g, CHM_SILU, x); }
static inline chm_tensor *chm_sigmoid(chm_graph *g, chm_tensor *x) { return g->ops->unary(g, CHM_SIGMOID, x); }
static inline chm_tensor *chm_tanh(chm_graph *g, chm_tensor *x) { return g->ops->unary(g, CHM_TANH, x); }
static inline chm_tensor *chm_exp(chm_graph *g, chm_tensor *x) { return g->ops->unary(g, CHM_EXP, x); }
static inline chm_tensor *chm_softplus(chm_graph *g, chm_tensor *x) { return g->ops->unary(g, CHM_SOFTPLUS, x); }
/* a + b and a * b, elementwise; b may be [1, width] (one row for all) or [rows, width / k] with k whole (each column of
 * b serves k neighbouring columns of a: one gate per head) */
static inline chm_tensor *chm_add(chm_graph *g, chm_tensor *a, chm_tensor *b) { return g->ops->add(g, a, b); }
static inline chm_tensor *chm_mul(chm_graph *g, chm_tensor *a, chm_tensor *b) { return g->ops->mul(g, a, b); }
/* x*scale + offset */
static inline chm_tensor *chm_affine(chm_graph *g, chm_tensor *x, float scale, float offset) {
    return g->ops->affine(g, x, scale, offset);
}
/* silu(gate) * up. arXiv:2002.05202 */
static inline chm_tensor *chm_swiglu(chm_graph *g, chm_tensor *gate, chm_tensor *up) {
    return g->ops->swiglu(g, gate, up);
}
/* side by side along the width */
static inline chm_tensor *chm_concat(chm_graph *g, chm_tensor *const *parts, int n) {
    return g->ops->concat(g, parts, n);
}
static inline chm_tensor *chm_slice(chm_graph *g, chm_tensor *x, int64_t first, int64_t width) {
    return g->ops->slice(g, x, first, width);
}
/* y_t = sum_j taps[c][j] * x_{t-j}, per column, causal; taps [width, n] in lag order; state as declared by
 * chm_declare_conv_state() holds the last n-1 inputs, newest first */
static inline chm_tensor *chm_short_conv(chm_graph *g, chm_tensor *x, chm_param *taps, int state) {
    return g->ops->short_conv(g, x, taps, state);
}
/* h_t = decay_t * h_{t-1} + input_t per column; returns h. The state is one f32 per column, shape {width / heads} */
static inline chm_tensor *chm_diag_scan(chm_graph *g, chm_tensor *decay, chm_tensor *input, int state) {
    return g->ops->diag_scan(g, decay, input, state);
}
/* Run a recurrence. in[i] is [rows, heads * in_width], params[i] and states[i] as the recurrence counts them, the
 * result [rows, heads * out_width]. On loop passes after the first only the read form runs. */
static inline chm_tensor *chm_recur(chm_graph *g, const chm_recurrence *r, const void *layer, chm_tensor *const *in,
                                    chm_param *const *params, const int *states, int64_t heads, int64_t out_width) {
    return g->ops->recur(g, r, layer, in, params, states, heads, out_width);
}
/* Look back through a window: ask[i] is [rows, heads * ask_width], entry[i] [rows, heads * width of rings[i]], which is
 * appended to that ring; the result is [rows, heads * out_width]. */
static inline chm_tensor *chm_look(chm_graph *g, const chm_window *w, const void *layer, chm_tensor *const *ask,
                                   chm_tensor *const *entry, const int *rings, int64_t heads, int64_t out_width) {
    return g->ops->look(g, w, layer, ask, entry, rings, heads, out_width);
}
/* Rotary positions: in each `group` columns, columns i and i + rotary/2 of the first `rotary` (even, at most group)
 * turn by position * theta^(-2i / rotary), i < rotary/2; the rest stay. arXiv:2104.09864 */
static inline chm_tensor *chm_rope(chm_graph *g, chm_tensor *x, int64_t group, int64_t rotary, double theta) {
    return g->ops->rope(g, x, group, rotary, theta);
}
static inline chm_tensor *chm_apply(chm_graph *g, const chm_operator *op, const void *self, chm_tensor *const *in,
                                    int64_t out_width) {
    return g->ops->apply(g, op, self, in, out_width);
}
/* Rows chosen while the pass runs, and put back. For layers that send rows different ways: read the data of a tensor,
 * write lists into chm_memory(), gather. Lists and memory live as long as the pass's tensors. */
/* 64-byte aligned, contents undefined; also for the `self` of an operator. NULL: out of memory, and the host knows */
static inline void *chm_memory(chm_graph *g, size_t bytes) { return g->ops->memory(g, bytes); }
/* y[i] = x[row[i]], i < rows; rows may repeat, be left out, and be none */
static inline chm_tensor *chm_gather_rows(chm_graph *g, chm_tensor *x, const int32_t *row, int64_t rows) {
    return g->ops->gather_rows(g, x, row, rows);
}
/* y = base; then part by part and row by row y[row[i]] += weight[row[i]][column[i]] * part[i], each operation rounded.
 * row and column run on from part to part. base NULL: zeros, as many rows as weight; weight (and column) NULL: ones */
static inline chm_tensor *chm_scatter_rows(chm_graph *g, chm_tensor *base, chm_tensor *const *part, int64_t parts,
                                           const int32_t *row, chm_tensor *weight, const int32_t *column) {
    return g->ops->scatter_rows(g, base, part, parts, row, weight, column);
}
/* Numbers that the passes of a training step add up, as many as a parameter of CHM_ROLE_OWN has, for after_step of
 * plugin.h to read. NULL: this pass is no training. */
static inline float *chm_tally(chm_graph *g, chm_param *p) { return g->ops->tally(g, p); }
/* Name a tensor so that diagnostics, test-time training and tests can see (or replace) it; returns the tensor to go on
 * with. Costs nothing when nobody listens. A name that ends in ".choice" marks what a comparison decided, which tests
 * of gradients hold still. */
static inline chm_tensor *chm_tap(chm_graph *g, const char *name, chm_tensor *x) { return g->ops->tap(g, name, x); }

/* ---- Declaration --------------------------------------------------------------------------------------------------
 */

enum chm_role {
    CHM_ROLE_TERNARY = 1, /* the card's quantisation; shape [out, in] */
    CHM_ROLE_FULL,        /* f32: gates, convolutions, routers; weight decay applies to matrices */
    CHM_ROLE_NORM,        /* f32, no weight decay: norm gains, biases, A_log */
    CHM_ROLE_EMBEDDING,   /* the host's own: quantization.embedding */
    CHM_ROLE_OWN,         /* f32, no gradient: the layer's own to change, in after_step of plugin.h */
};

enum chm_init_kind {
    CHM_INIT_NORMAL,   /* N(0, a^2); a = 0 takes the card's initializer_range */
    CHM_INIT_RESIDUAL, /* as NORMAL, divided by sqrt(2 * effective depth): matrices that write to the residual */
    CHM_INIT_UNIFORM,  /* U(a, b) */
    CHM_INIT_CONSTANT, /* a */
    CHM_INIT_LINSPACE, /* a .. b over the elements */
    CHM_INIT_CUSTOM,   /* fill(self, uniform, n, out): from n uniforms in (0,1) */
    CHM_INIT_FORGET,   /* 5 - 12 u^a, u from 0 to 1 over every b elements: logits of forget gates, arXiv:2405.04517 */
};

typedef struct chm_init {
    enum chm_init_kind kind;
    float a, b;
    void (*fill)(const double *uniform, int64_t n, float *out);
} chm_init;

enum chm_dtype { CHM_F32 = 1, CHM_F64, CHM_U64 /* bits */ };

/* What the host tells a layer about where it stands. */
typedef struct chm_layer_info {
    uint32_t size;
    int32_t layer, layers; /* index in the stack, and how many there are */
    int64_t width;         /* hidden_size */
    int64_t ffn_width;     /* intermediate_size */
    int64_t heads, head_dim;
    float norm_eps;          /* rms_norm_eps */
    bool norm_before_linear; /* rms_norm_before_every_linear: put norms before inner ternary linears */
    bool in_loop;            /* inside looping.loop: read must exist */
    uint64_t reserved[4];
} chm_layer_info;

typedef struct chm_declare chm_declare;
struct chm_declare_ops {
    uint32_t size;
    chm_param *(*param)(chm_declare *d, const char *name, enum chm_role role, chm_init init, int rank,
                        const int64_t *shape);
    int (*state)(chm_declare *d, const char *name, enum chm_dtype type, int64_t heads, int rank, const int64_t *shape);
    int (*fail)(chm_declare *d, const char *format, ...);
    int (*ring)(chm_declare *d, const char *name, int64_t heads, int64_t entries, int64_t width);
    void *reserved[8];
};
struct chm_declare {
    const struct chm_declare_ops *ops;
};

/* A parameter of rank 1..4. The name is unique in the layer; the file calls it `layers.<i>.<mixer|ffn>.<name>`. */
static inline chm_param *chm_declare_param(chm_declare *d, const char *name, enum chm_role role, chm_init init,
                                           int rank, const int64_t *shape) {
    return d->ops->param(d, name, role, init, rank, shape);
}
static inline chm_param *chm_declare_matrix(chm_declare *d, const char *name, enum chm_role role, chm_init init,
                                            int64_t out, int64_t in) {
    const int64_t shape[2] = {out, in};
    return d->ops->param(d, name, role, init, 2, shape);
}
static inline chm_param *chm_declare_vector(chm_declare *d, const char *name, enum chm_role role, chm_init init,
                                            int64_t n) {
    return d->ops->param(d, name, role, init, 1, &n);
}
/* A state of `heads` equal parts of the given shape, zero at the start of every document. Returns its number, or -1. */
static inline int chm_declare_state(chm_declare *d, const char *name, enum chm_dtype type, int64_t heads, int rank,
                                    const int64_t *shape) {
    return d->ops->state(d, name, type, heads, rank, shape);
}
/* The state of chm_short_conv(): heads x [taps - 1, width / heads], newest first. */
static inline int chm_declare_conv_state(chm_declare *d, const char *name, int64_t heads, int64_t width, int64_t taps) {
    const int64_t shape[2] = {taps - 1, heads > 0 ? width / heads : 0};
    return d->ops->state(d, name, CHM_F32, heads, 2, shape);
}

/* A ring for chm_look(): `heads` equal parts of `entries` x `width` floats, 4 bytes each, empty at the start of every
 * document. Returns its number among the layer's states, or -1. */
static inline int chm_declare_ring(chm_declare *d, const char *name, int64_t heads, int64_t entries, int64_t width) {
    return d->ops->ring(d, name, heads, entries, width);
}

static inline chm_init chm_normal(float deviation) {
    chm_init i = {CHM_INIT_NORMAL, deviation, 0, NULL};
    return i;
}
static inline chm_init chm_residual(void) {
    chm_init i = {CHM_INIT_RESIDUAL, 0, 0, NULL};
    return i;
}
static inline chm_init chm_uniform(float low, float high) {
    chm_init i = {CHM_INIT_UNIFORM, low, high, NULL};
    return i;
}
static inline chm_init chm_constant(float value) {
    chm_init i = {CHM_INIT_CONSTANT, value, 0, NULL};
    return i;
}
static inline chm_init chm_linspace(float first, float last) {
    chm_init i = {CHM_INIT_LINSPACE, first, last, NULL};
    return i;
}
/* Logits of the forget gates of units in groups: the first of a group remembers longest. The exponent says how many of
 * them forget at once: 0.3 most of them, 1.6 few. */
static inline chm_init chm_forget_spread(float exponent, int64_t group) {
    chm_init i = {CHM_INIT_FORGET, exponent, (float)group, NULL};
    return i;
}
static inline chm_init chm_custom(void (*fill)(const double *uniform, int64_t n, float *out)) {
    chm_init i = {CHM_INIT_CUSTOM, 0, 0, fill};
    return i;
}

#ifdef __cplusplus
}
#endif
#endif
