/* arena.c: bump allocation. Blocks are kept in a list in the order they are filled; reset starts again at the first. */
#include "base/base.h"

#include <string.h>

struct chm_arena_block {
    struct chm_arena_block *next;
    size_t size, used;
    uint8_t *data;
};

enum { FIRST_BLOCK = 64 << 10, LARGEST_BLOCK = 64 << 20 };

void chm_arena_init(chm_arena *a) { memset(a, 0, sizeof *a); }

/* Puts a new block of at least `bytes` behind `after` (NULL: at the front). */
static struct chm_arena_block *add_block(chm_arena *a, struct chm_arena_block *after, size_t bytes) {
    /* As much again as there is, so that a pass of any size needs few blocks. */
    size_t size = CHM_MAX(bytes, CHM_MIN(CHM_MAX(a->reserved, (size_t)FIRST_BLOCK), (size_t)LARGEST_BLOCK));
    if (a->limit && a->reserved + size > a->limit) size = bytes;
    struct chm_arena_block *block = chm_alloc(sizeof *block);
    if (!block) return NULL;
    block->data = chm_alloc_aligned(size);
    if (!block->data) {
        chm_free(block);
        return NULL;
    }
    block->size = size;
    struct chm_arena_block **at = after ? &after->next : &a->first;
    block->next = *at;
    *at = block;
    a->reserved += size;
    return block;
}

void *chm_arena_take(chm_arena *a, size_t bytes) {
    if (bytes > SIZE_MAX / 2) {
        chm_fail(CHM_E_MEMORY, "out of memory: %zu bytes asked of an arena", bytes);
        return NULL;
    }
    bytes = bytes ? chm_align64(bytes) : 64;
    if (a->limit && bytes > a->limit - CHM_MIN(a->used, a->limit)) {
        chm_fail(CHM_E_MEMORY, "memory limit reached: %zu bytes more than the %zu of %zu in use", bytes, a->used,
                 a->limit);
        return NULL;
    }
    struct chm_arena_block *block = a->current ? a->current : a->first;
    struct chm_arena_block *last = NULL;
    while (block && block->size - block->used < bytes) {
        last = block;
        block = block->next;
        if (block) block->used = 0; /* left over from before the last reset */
    }
    if (!block) block = add_block(a, last, bytes);
    if (!block) return NULL;
    a->current = block;
    void *p = block->data + block->used;
    block->used += bytes;
    a->used += bytes;
    a->peak = CHM_MAX(a->peak, a->used);
    return p;
}

void *chm_arena_zero(chm_arena *a, size_t bytes) {
    void *p = chm_arena_take(a, bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

void chm_arena_reset(chm_arena *a) {
    if (a->first) a->first->used = 0;
    a->current = a->first;
    a->used = 0;
}

chm_arena_mark chm_arena_here(const chm_arena *a) {
    return (chm_arena_mark){a->current, a->current ? a->current->used : 0, a->used};
}

void chm_arena_back(chm_arena *a, chm_arena_mark mark) {
    if (!mark.block) {
        chm_arena_reset(a);
        return;
    }
    a->current = mark.block;
    a->current->used = mark.block_used;
    a->used = mark.used;
}

void chm_arena_finish(chm_arena *a) {
    for (struct chm_arena_block *block = a->first, *next; block; block = next) {
        next = block->next;
        chm_free(block->data);
        chm_free(block);
    }
    size_t limit = a->limit;
    memset(a, 0, sizeof *a);
    a->limit = limit;
}
