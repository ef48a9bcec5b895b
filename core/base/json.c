/* json.c: jansson's memory. */
#include "base/json.h"

#include <pthread.h>

static _Thread_local bool starved;

static void *take(size_t bytes) {
    void *p = chm_alloc(bytes);
    if (!p) starved = true;
    return p;
}

static void use_our_allocator(void) { json_set_alloc_funcs(take, chm_free); }

void chm_json_begin(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, use_our_allocator);
    starved = false;
}

bool chm_json_starved(void) { return starved; }
