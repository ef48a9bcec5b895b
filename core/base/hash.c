/* hash.c: XXH3, 64 bits. Not a defence against malice: it finds accidents. */
#include "base/base.h"

#define XXH_STATIC_LINKING_ONLY /* for the size of its state */
#include <xxhash.h>

uint64_t chm_hash64(const void *data, size_t bytes) { return XXH3_64bits(data, bytes); }
uint64_t chm_hash64_seed(const void *data, size_t bytes, uint64_t seed) {
    return XXH3_64bits_withSeed(data, bytes, seed);
}

/* ---- in pieces ---- */

struct chm_hasher {
    XXH3_state_t state;
};

chm_hasher *chm_hasher_create(void) {
    chm_hasher *h = chm_alloc_aligned(sizeof *h);
    if (h != NULL) XXH3_64bits_reset(&h->state);
    return h;
}
void chm_hasher_add(chm_hasher *h, const void *data, size_t bytes) { XXH3_64bits_update(&h->state, data, bytes); }
uint64_t chm_hasher_end(const chm_hasher *h) { return XXH3_64bits_digest(&h->state); }
