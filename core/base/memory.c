/* memory.c: the one door to the heap. Tests make the n-th allocation fail here. */
#include "base/base.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static atomic_long fail_after = -1;
static atomic_bool fail_once;
static atomic_uint_fast64_t allocations;

static void set_failure(long n, bool once) {
    atomic_store(&fail_once, once);
    atomic_store(&fail_after, n < 0 ? -1 : n);
}
void chm_alloc_fail_after(long n) { set_failure(n, false); }
void chm_alloc_fail_once(long n) { set_failure(n, true); }
uint64_t chm_alloc_count(void) { return atomic_load_explicit(&allocations, memory_order_relaxed); }

/* Whether this allocation may go ahead. Several threads share one countdown. */
static bool allowed(void) {
    long left = atomic_load_explicit(&fail_after, memory_order_relaxed);
    while (left > 0) {
        if (atomic_compare_exchange_weak(&fail_after, &left, left - 1)) break;
    }
    if (left == 0 && atomic_load_explicit(&fail_once, memory_order_relaxed)) atomic_store(&fail_after, -1);
    return left != 0;
}

static void *counted(void *p, size_t bytes) {
    if (!p) {
        chm_fail(CHM_E_MEMORY, "out of memory: %zu bytes could not be had", bytes);
        return NULL;
    }
    atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    return p;
}

/* ---- what there is ---- */

static atomic_uint_fast64_t pretended;

void chm_available_memory_pretend(uint64_t bytes) { atomic_store(&pretended, bytes); }

static bool read_number(const char *path, const char *label, uint64_t *out) {
    char line[256];
    bool found = false;
    FILE *f = fopen(path, "re");
    if (f == NULL) return false;
    while (!found && fgets(line, sizeof line, f) != NULL) {
        char *end;
        if (strncmp(line, label, strlen(label)) != 0) continue;
        *out = strtoull(line + strlen(label), &end, 10);
        found = end != line + strlen(label);
    }
    fclose(f);
    return found;
}

uint64_t chm_available_memory(bool swap) {
    uint64_t kib, most, used, bytes = atomic_load(&pretended);
    if (bytes) return bytes;
    if (read_number("/proc/meminfo", "MemAvailable:", &kib)) bytes = kib * 1024;
    if (swap && bytes && read_number("/proc/meminfo", "SwapFree:", &kib)) bytes += kib * 1024;
    /* a container may have less than the machine; "max" is no number and means no limit */
    if (read_number("/sys/fs/cgroup/memory.max", "", &most) &&
        read_number("/sys/fs/cgroup/memory.current", "", &used)) {
        const uint64_t rest = most > used ? most - used : 1;
        if (bytes == 0 || rest < bytes) bytes = rest;
    }
    return bytes;
}

/* ---- taking it ---- */

static bool fits(size_t bytes) {
    enum { LARGE = 1 << 28 }; /* less than this is not worth the look */
    const uint64_t available = bytes < LARGE ? 0 : chm_available_memory(true);
    if (available == 0 || bytes <= available) return true;
    chm_fail(CHM_E_MEMORY, "out of memory: %zu bytes are needed at once, and this machine has %" PRIu64 " free", bytes,
             available);
    return false;
}

void *chm_alloc(size_t bytes) {
    if (!fits(bytes)) return NULL;
    return counted(allowed() ? calloc(1, bytes ? bytes : 1) : NULL, bytes);
}

void *chm_alloc_aligned(size_t bytes) {
    void *p = NULL;
    if (!fits(bytes)) return NULL;
    if (bytes <= SIZE_MAX - 64) {
        /* what is large is read in long sweeps: in pages of 2 MiB, where the system gives them */
        enum { HUGE_PAGE = 2 << 20 };
        size_t rounded = bytes ? chm_align64(bytes) : 64;
        if (allowed() && posix_memalign(&p, rounded >= CHM_HUGE_FROM ? HUGE_PAGE : 64, rounded) != 0) p = NULL;
        if (p && rounded >= CHM_HUGE_FROM) madvise(p, rounded, MADV_HUGEPAGE);
        if (p) memset(p, 0, rounded);
    }
    return counted(p, bytes);
}

void *chm_realloc(void *p, size_t bytes) { return counted(allowed() ? realloc(p, bytes ? bytes : 1) : NULL, bytes); }

char *chm_strdup(const char *s) {
    size_t n = strlen(s) + 1;
    char *copy = chm_alloc(n);
    if (copy) memcpy(copy, s, n);
    return copy;
}

char *chm_format(const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0) {
        chm_fail(CHM_E_INTERNAL, "cannot format '%s'", format);
        return NULL;
    }
    char *text = chm_alloc((size_t)n + 1);
    if (!text) return NULL;
    va_start(args, format);
    vsnprintf(text, (size_t)n + 1, format, args);
    va_end(args);
    return text;
}

void chm_free(void *p) { free(p); }
