/*
 * bad.c: one descriptor, spoilt in one place by the macro its build defines. The registry must refuse each for that
 * reason alone, so everything else in it is right.
 */
#include <chimera/plugin.h>
#include <stdlib.h>

struct instance {
    int64_t number;
    int32_t choice;
};

#ifndef MAGIC
#define MAGIC CHM_MAGIC
#endif
#ifndef ABI
#define ABI CHM_ABI
#endif
#ifndef SIZE
#define SIZE sizeof(struct chm_plugin)
#endif
#ifndef KIND
#define KIND CHM_KIND_LAYER
#endif
#ifndef NAME
#define NAME "good"
#endif
#ifndef ALIASES
#define ALIASES NULL
#endif
#ifndef SECTION
#define SECTION NULL
#endif
#ifndef VERSION
#define VERSION "1.0.0"
#endif
#ifndef CPU
#define CPU 0
#endif
#ifndef CAPABILITIES
#define CAPABILITIES 0
#endif
#ifndef OPS_SIZE
#define OPS_SIZE sizeof ops
#endif
#ifndef OPTIONS
#define OPTIONS
#endif

/* What must be refused before the object is loaded shows here that it was not. */
#ifdef CONSTRUCTOR
__attribute__((constructor)) static void loaded(void) { abort(); }
#endif

#ifdef UNDEFINED
int nobody_defines_this_function(void);
#define DECLARE nobody_defines_this_function()
#else
#define DECLARE 0
#endif

#if defined(BACKEND)
static const struct chm_backend_ops ops = {.size = OPS_SIZE, .kernels = {.size = sizeof(struct chm_kernels)}};
#elif defined(TOKENIZER)
static int init(void *self, const struct chm_host *host, const void *data, size_t bytes) {
    (void)self, (void)host, (void)data, (void)bytes;
    return 0;
}
static int32_t size(const void *self) {
    (void)self;
    return 1;
}
static int64_t encode(const void *self, const uint8_t *text, size_t bytes, int32_t *ids, size_t cap) {
    (void)self, (void)text, (void)bytes, (void)ids, (void)cap;
    return 0;
}
static int64_t decode(const void *self, int32_t id, uint8_t *out, size_t cap) {
    (void)self, (void)id, (void)out, (void)cap;
    return 0;
}
/* TOKENIZER is the number of the member to leave out. */
#define UNLESS(n, f) (TOKENIZER == (n) ? NULL : (f))
static const struct chm_tokenizer_ops ops = {.size = OPS_SIZE,
                                             .init = UNLESS(1, init),
                                             .vocab_size = UNLESS(2, size),
                                             .end_of_text = UNLESS(3, size),
                                             .encode = UNLESS(4, encode),
                                             .decode = UNLESS(5, decode)};
#elif defined(OPTIMISER)
static int arrays(const void *self, const struct chm_optimiser_param *p) {
    (void)self, (void)p;
    return 0;
}
static void step(const void *self, const struct chm_optimiser_step *s) { (void)self, (void)s; }
/* OPTIMISER is the number of the member to leave out. */
#define UNLESS(n, f) (OPTIMISER == (n) ? NULL : (f))
static const struct chm_optimiser_ops ops = {.size = OPS_SIZE, .arrays = UNLESS(1, arrays), .step = UNLESS(2, step)};
#else
static int declare(void *self, chm_declare *d, const chm_layer_info *info) {
    (void)self, (void)d, (void)info;
    return DECLARE;
}
static chm_tensor *forward(const void *self, chm_graph *g, chm_tensor *x) {
    (void)self, (void)g;
    return x;
}
static const struct chm_layer_ops ops = {
    .size = OPS_SIZE,
#ifndef NO_DECLARE
    .declare = declare,
#endif
#ifndef NO_FORWARD
    .forward = forward,
#endif
};
/* Used, also where they are left out. */
void *used_by_nobody[2];
__attribute__((used)) static void use(void) {
    used_by_nobody[0] = (void *)(uintptr_t)&declare;
    used_by_nobody[1] = (void *)(uintptr_t)&forward;
}
#endif

#ifdef NO_OPS
#define OPS NULL
__attribute__((used)) static const void *unused_ops(void) { return &ops; }
#else
#define OPS &ops
#endif

/* The option every variant has, and one that OPTIONS spoils. */
#define NUMBER                                                                                                         \
    .name = "number", .type = CHM_OPT_INT, .offset = offsetof(struct instance, number), .def = "4", .min = 1,          \
    .max = 9, .doc = "A number."
static const struct chm_option options[] = {{NUMBER}, OPTIONS};

#if defined(NO_SYMBOL)
CHM_EXPORT const void *chimera_plugging(int i);
const void *chimera_plugging(int i) { return i ? (const void *)options : (const void *)&ops; }
#elif defined(NO_DATA)
CHM_EXPORT extern struct chm_plugin chimera_plugin;
struct chm_plugin chimera_plugin;
__attribute__((used)) static const void *unused(int i) { return i ? (const void *)options : (const void *)&ops; }
#elif defined(TOO_SMALL)
/* A sanitizer would put its red zone into the symbol, which is then no longer too small. */
#ifdef __clang__
__attribute__((no_sanitize("address")))
#endif
CHM_EXPORT extern const int chimera_plugin;
const int chimera_plugin = (int)CHM_MAGIC;
__attribute__((used)) static const void *unused(int i) { return i ? (const void *)options : (const void *)&ops; }
#else
CHM_EXPORT extern const struct chm_plugin chimera_plugin;
const struct chm_plugin chimera_plugin = {
    .magic = MAGIC,
    .abi = ABI,
    .size = SIZE,
    .kind = KIND,
    .name = NAME,
    .aliases = ALIASES,
    .section = SECTION,
    .version = VERSION,
    .licence = "Apache-2.0",
    .summary = "A plugin for the tests of the registry",
    .options = options,
    .option_count = sizeof options / sizeof options[0],
    .instance_size = sizeof(struct instance),
    .cpu = CPU,
    .capabilities = CAPABILITIES,
    .ops = OPS,
};
#endif
