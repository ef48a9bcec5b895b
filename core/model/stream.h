/*
 * stream.h: what a chm_stream holds; shared by stream.c and core/decode.
 */
#ifndef CHM_MODEL_STREAM_H
#define CHM_MODEL_STREAM_H

#include "model/runtime.h"
#include <chimera/chimera.h>

/* Rows of one inference pass. The log of a pass is what looping re-reads, so a pass stays small. */
enum { CHM_PASS_ROWS = 64 };
/* Rows of the largest tree chm_stream_try takes. */
enum { CHM_TRY_ROWS = 4096 };

/* How this runtime resolves a card under an overlay (NULL: none). */
int chm_card_options_from(const chm_runtime *r, const chm_overlay *overlay, struct chm_card_options *out);

struct chm_stream {
    chm_runtime *runtime;
    chm_model *model;
    chm_context *context;
    chm_stream_state state;
    chm_stream_state *streams[1]; /* &state: what a pass is handed */

    /* the rows of the pass being run or tried: capacity entries each */
    int64_t capacity;
    int32_t *parent;
    int64_t *position;
    bool *want;
    int64_t tried; /* rows that chm_stream_accept may name; 0: none */

    bool *allow;         /* [vocab]: what chm_stream_allow was given; NULL until then */
    chm_id_list allowed; /* the same as a list, which has room for the vocabulary */

    chm_depth depth; /* the card's, and what came of it */
    float *logits;   /* [vocab] of the last row fed */
    bool have_logits;
    bool broken; /* a pass failed half-way: the state is of no use until a restart */
};

#endif
