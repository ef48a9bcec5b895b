/* hash.c: XXH3, 64 bits. Not a defence against malice: it finds accidents. */
#include "base/base.h"

#include <xxhash.h>

uint64_t chm_hash64(const void *data, size_t bytes) { return XXH3_64bits(data, bytes); }
uint64_t chm_hash64_seed(const void *data, size_t bytes, uint64_t seed) {
    return XXH3_64bits_withSeed(data, bytes, seed);
}
