/*
 * context.h: the inside of a pass, shared by the files of core/graph.
 */
#ifndef CHM_CONTEXT_H
#define CHM_CONTEXT_H

#include "graph/graph.h"

enum { CHM_NODE_INPUTS = CHM_MAX_INPUTS };

/* One executed operator on the tape. */
typedef struct chm_node {
    struct chm_node *previous;
    void (*backward)(chm_context *c, struct chm_node *n);
    chm_tensor *out, *in[CHM_NODE_INPUTS];
    int inputs;
    chm_param *param;
    bool keep_grad; /* out's gradient is needed after this node's turn */
    void *data;     /* the operator's, in the arena */
} chm_node;

/* A gradient buffer whose node has had its turn: the next tensor of the same size takes it, warm from the cache. */
typedef struct chm_spare {
    struct chm_spare *next;
    size_t bytes;
} chm_spare;

/* The int8 form of a tensor's rows, made by the first quantised linear that reads it. */
typedef struct chm_quantised_rows {
    struct chm_activation activation;
    float *dequant; /* as the linears saw the rows; made by the first backward that needs it */
} chm_quantised_rows;

/* A run of rows, each the parent of the next. Training: also where states restart. */
typedef struct chm_chain {
    int64_t first, count, position;
    int slot;
    bool fresh; /* starts a document: zero state */
} chm_chain;

/* A subtree that starts from a slot's committed state: order[first .. first+count). */
typedef struct chm_root {
    int64_t first, count;
    int slot;
} chm_root;

enum { CHM_FROM_PREVIOUS = -1, CHM_FROM_SLOT = -2 };

/* One stateful operator met in this pass: what replay and read passes need. */
typedef struct chm_logged {
    struct chm_logged *next;
    const chm_recurrence *recurrence; /* NULL, and so is window: a short convolution */
    const chm_window *window;         /* in[] and state[] are the entries and their rings */
    void *detail;                     /* of a window: window.c */
    const void *layer;
    int layer_index, ordinal; /* the ordinal-th stateful operator of that layer part */
    const char *part;
    int64_t heads, out_width; /* per head */
    chm_tensor *in[CHM_MAX_INPUTS];
    chm_param *param[CHM_MAX_PARAMS];
    int state[CHM_MAX_STATES]; /* layout items */
    chm_tensor *out;
    bool looped;               /* met inside a loop: written when the loop is left */
    float *history, *dhistory; /* short convolution: [slots][taps - 1][width] before the pass, and its gradient */
    /* training */
    int64_t *chunk_first, *chunk_rows; /* [chunks], slot by slot */
    bool *chunk_fresh;
    int64_t *slot_chunk; /* [slots + 1] */
    int64_t chunks;
    size_t start_bytes, saved_bytes; /* per head and chunk */
    uint8_t *start, *saved;          /* [chunks][heads] */
    int reads, reads_planned;
    struct chm_logged *read[16]; /* later loop passes over these rows, training */
    float *read_dout[16];
    struct chm_logged *write; /* of a read: the pass that wrote */
} chm_logged;

struct chm_context {
    chm_graph graph; /* first: what plugins hold */
    const struct chm_kernels *kernels;
    chm_pool *pool;
    const chm_state_layout *layout;
    float norm_eps;
    chm_arena arena;

    chm_rows rows;
    chm_stream_state *const *streams;
    int slots;
    uint32_t flags;
    bool train, unrecorded;
    bool recompute; /* chm_context_recompute */
    bool again;     /* operators run a second time, on the way back: what they told and tallied stands */
    int status;
    char error[512];

    chm_node *tape;
    chm_spare *spare;
    chm_logged *log, **log_end;
    int layer, first_state, ordinal, loop;
    const char *part;

    chm_chain *chain;
    int64_t chains;
    chm_root *root;
    int64_t roots;
    int32_t *order, *from, *save; /* [rows], step passes */
    int levels;
    struct chm_turns *turns; /* rotary positions computed in this pass: rope.c */

    uint8_t *const *state_grad; /* [slots] or NULL */

    uint8_t **scratch; /* [threads] */
    size_t scratch_bytes;

    chm_tap_hook tap;
    void *tap_user;
};

static inline chm_context *chm_context_of(chm_graph *g) { return (chm_context *)(void *)g; }

void *chm_take(chm_context *c, size_t bytes); /* from the arena, recording failure */
void *chm_take_zero(chm_context *c, size_t bytes);
chm_tensor *chm_tensor_new(chm_context *c, int64_t rows, int64_t width);
/* Puts an operator on the tape when the pass trains and an input (or the parameter) wants a gradient. */
chm_node *chm_record(chm_context *c, chm_tensor *out, chm_tensor *const *in, int inputs, chm_param *param,
                     void (*backward)(chm_context *, chm_node *));
float *chm_grad(chm_context *c, chm_tensor *t);     /* zeroed on first use; NULL when not wanted or out of memory */
void chm_run_tape(chm_context *c);                  /* from c->tape backwards */
int chm_need_scratch(chm_context *c, size_t bytes); /* at least this much for every worker */
/* Parallel over [0, count) unless the whole is too small to be worth waking anyone; cost in rough nanoseconds each. */
void chm_spread(chm_context *c, int64_t count, int64_t grain, double cost, chm_body body, void *arg);

/* recur.c, conv.c, window.c, rope.c, rows.c */
chm_tensor *chm_op_recur(chm_graph *g, const chm_recurrence *r, const void *layer, chm_tensor *const *in,
                         chm_param *const *params, const int *states, int64_t heads, int64_t out_width);
chm_tensor *chm_op_short_conv(chm_graph *g, chm_tensor *x, chm_param *taps, int state);
chm_tensor *chm_op_diag_scan(chm_graph *g, chm_tensor *decay, chm_tensor *input, int state);
chm_tensor *chm_op_look(chm_graph *g, const chm_window *w, const void *layer, chm_tensor *const *ask,
                        chm_tensor *const *entry, const int *rings, int64_t heads, int64_t out_width);
chm_tensor *chm_op_rope(chm_graph *g, chm_tensor *x, int64_t group, int64_t rotary, double theta);
chm_tensor *chm_op_gather_rows(chm_graph *g, chm_tensor *x, const int32_t *row, int64_t rows);
chm_tensor *chm_op_scatter_rows(chm_graph *g, chm_tensor *base, chm_tensor *const *part, int64_t parts,
                                const int32_t *row, chm_tensor *weight, const int32_t *column);
int chm_window_replay(chm_context *c, const chm_logged *l, const int32_t *rows, int64_t count, chm_stream_state *s);
int chm_conv_replay(chm_context *c, const chm_logged *l, const int32_t *rows, int64_t count, chm_stream_state *s);
/* The logged operator of pass 1 at the place where this pass now stands, or NULL. */
chm_logged *chm_log_find(chm_context *c);
chm_logged *chm_log_add(chm_context *c);
extern const struct chm_graph_ops chm_graph_table;

#endif
