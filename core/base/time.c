/* time.c: clocks and what this process uses. */
#include "base/base.h"

#include <sys/resource.h>
#include <time.h>

double chm_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

uint64_t chm_peak_rss(void) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage)) return 0;
    return (uint64_t)usage.ru_maxrss * 1024; /* Linux counts in KiB */
}
