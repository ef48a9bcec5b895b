/*
 * hostile_malloc.c: preloaded by test_hostile.py: the n-th allocation of a process fails, whichever library it is of
 * (CHM_TEST_ALLOCATION=n); and how many there were (CHM_TEST_ALLOCATIONS=FILE). Those of the dynamic loader and of the
 * constructors that it runs are let be: they end the process by themselves and never come back to us.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *p, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);

static atomic_long count;
static long fails = -1;
static bool armed;

static bool allowed(void) {
    if (!armed || atomic_fetch_add(&count, 1) != fails) return true;
    errno = ENOMEM;
    return false;
}

void *malloc(size_t bytes) { return allowed() ? __libc_malloc(bytes) : NULL; }
void *calloc(size_t n, size_t bytes) { return allowed() ? __libc_calloc(n, bytes) : NULL; }
void *realloc(void *p, size_t bytes) { return allowed() ? __libc_realloc(p, bytes) : NULL; }
void *aligned_alloc(size_t alignment, size_t bytes) { return allowed() ? __libc_memalign(alignment, bytes) : NULL; }
int posix_memalign(void **out, size_t alignment, size_t bytes) {
    void *p = allowed() ? __libc_memalign(alignment, bytes) : NULL;
    if (p) *out = p;
    return p ? 0 : ENOMEM;
}

void *dlopen(const char *file, int how) {
    void *(*real)(const char *, int) = (void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen");
    const bool was = armed;
    armed = false;
    void *handle = real(file, how);
    armed = was;
    return handle;
}

int dlclose(void *handle) {
    int (*real)(void *) = (int (*)(void *))dlsym(RTLD_NEXT, "dlclose");
    const bool was = armed;
    armed = false;
    const int status = real(handle);
    armed = was;
    return status;
}

static int (*real_main)(int, char **, char **);

static int counted_main(int argc, char **argv, char **environment) {
    const char *which = getenv("CHM_TEST_ALLOCATION"), *where = getenv("CHM_TEST_ALLOCATIONS");
    if (which) fails = strtol(which, NULL, 10);
    armed = true;
    const int status = real_main(argc, argv, environment);
    armed = false;
    FILE *f = where ? fopen(where, "w") : NULL;
    if (f) {
        fprintf(f, "%ld\n", atomic_load(&count));
        fclose(f);
    }
    return status;
}

/* What the program's first instructions call, with its main(). */
typedef int starter(int (*)(int, char **, char **), int, char **, void (*)(void), void (*)(void), void (*)(void),
                    void *);
starter __libc_start_main;
int __libc_start_main(int (*main)(int, char **, char **), int argc, char **argv, void (*init)(void), void (*fini)(void),
                      void (*loader)(void), void *stack) {
    starter *real = (starter *)dlsym(RTLD_NEXT, "__libc_start_main");
    real_main = main;
    return real(counted_main, argc, argv, init, fini, loader, stack);
}
