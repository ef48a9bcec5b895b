/*
 * recompute.c: gradient checkpointing. A part of a pass runs, and all that it took of the arena but its output is given
 * back; on the way back it runs again from the same input and the same states, this time onto a tape of its own, which
 * is run backwards at once and given back too. Operators are functions of their inputs, so both runs make the same
 * bytes.
 */
#include "graph/context.h"

#include <string.h>

typedef struct part {
    chm_run run;
    const void *user;
    int first_state, states;
    uint8_t *before; /* of the states, slot by slot; NULL: none is advanced */
} part;

/* What the pass remembers of operators; a run that is to be forgotten leaves all of it as it was. */
typedef struct memory {
    chm_arena_mark mark;
    chm_node *tape;
    chm_spare *spare;
    chm_logged **log_end;
    struct chm_turns *turns;
    bool unrecorded, again;
} memory;

static memory remember(const chm_context *c) {
    return (memory){chm_arena_here(&c->arena), c->tape, c->spare, c->log_end, c->turns, c->unrecorded, c->again};
}

static void forget(chm_context *c, const memory *m) {
    chm_arena_back(&c->arena, m->mark);
    c->tape = m->tape;
    c->spare = m->spare;
    c->log_end = m->log_end;
    *c->log_end = NULL;
    c->turns = m->turns;
    c->unrecorded = m->unrecorded;
    c->again = m->again;
}

/* The states of a part in all slots, out of the streams or back into them; returns the bytes of it. There are streams.
 */
static size_t copy_states(chm_context *c, const part *p, bool back) {
    size_t bytes = 0;
    for (int slot = 0; slot < c->slots; slot++)
        for (int i = p->first_state; i < p->first_state + p->states; i++) {
            const chm_state_item *item = &c->layout->item[i];
            const size_t n = (size_t)item->heads * item->head_bytes;
            uint8_t *state = c->streams[slot] ? c->streams[slot]->blob + item->offset : NULL;
            if (p->before && state && back) memcpy(state, p->before + bytes, n);
            if (p->before && state && !back) memcpy(p->before + bytes, state, n);
            bytes += n;
        }
    return bytes;
}

/* x as it was, without what an earlier run hung on it. */
static chm_tensor *input_again(chm_context *c, const chm_tensor *x) {
    chm_tensor *t = chm_take_zero(c, sizeof *t);
    if (!t) return NULL;
    t->data = x->data;
    t->rows = x->rows;
    t->width = x->width;
    t->flags = x->flags;
    return t;
}

static void run_again(chm_context *c, chm_node *n) {
    const part *p = n->data;
    /* before anything is taken that will be given back */
    float *dx = chm_grad(c, n->in[0]);
    if (c->status) return;
    const memory m = remember(c);
    chm_tensor *x = input_again(c, n->in[0]);
    if (x) {
        x->grad = dx;
        c->tape = NULL;
        c->spare = NULL;
        c->again = true;
        c->unrecorded = false;
        if (p->before) copy_states(c, p, true);
        chm_tensor *y = p->run(p->user, c, x);
        if (y && !c->status) {
            y->grad = n->out->grad;
            chm_run_tape(c);
        }
    }
    forget(c, &m);
}

chm_tensor *chm_recompute(chm_context *c, chm_tensor *x, int first_state, int states, chm_run run, const void *user) {
    if (!x || !c->recompute || !c->train || c->unrecorded || c->loop) return run(user, c, x);
    chm_tensor *y = chm_tensor_new(c, x->rows, x->width);
    part *p = chm_take_zero(c, sizeof *p);
    if (!y || !p) return NULL;
    *p = (part){.run = run, .user = user, .first_state = first_state, .states = states};
    if (c->streams && (c->flags & CHM_PASS_CARRY) && (x->flags & CHM_TENSOR_GRAD)) {
        const size_t bytes = copy_states(c, p, false);
        if (bytes > 0 && !(p->before = chm_take_zero(c, bytes))) return NULL;
        copy_states(c, p, false);
    }
    const memory m = remember(c);
    c->unrecorded = true;
    chm_tensor *input = input_again(c, x), *made = input ? run(user, c, input) : NULL;
    if (made) memcpy(y->data, made->data, (size_t)(y->rows * y->width) * sizeof(float));
    forget(c, &m);
    if (!made) return NULL;
    chm_node *n = chm_record(c, y, &x, 1, NULL, run_again);
    if (n) n->data = p;
    return y;
}
