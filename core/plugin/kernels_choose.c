/* kernels_choose.c: which backend runs each slot of the kernel table. */
#include "plugin/registry.h"

#include <stdlib.h>
#include <string.h>

typedef void (*kernel)(void);

/* Every slot of struct chm_kernels, in its order: one line each. */
#define EXACT(name)                                                                                                    \
    { #name, offsetof(struct chm_kernels, name), true, false }
/* a form of weights that models are not left in where nothing is fast at it */
#define ENCODED(name)                                                                                                  \
    { #name, offsetof(struct chm_kernels, name), true, true }
#define TRAINING(name)                                                                                                 \
    { #name, offsetof(struct chm_kernels, name), false, false }
static const struct {
    const char *name;
    size_t offset;
    bool exact, encoded;
} slots[] = {
    EXACT(quantise),
    EXACT(t2_matmul),
    EXACT(int8_matmul),
    EXACT(f32_matmul),
    EXACT(rmsnorm),
    EXACT(l2norm),
    EXACT(unary),
    EXACT(swiglu),
    EXACT(logsumexp),
    EXACT(delta_step),
    EXACT(delta_read),
    TRAINING(sgemm),
    EXACT(ternarise),
    EXACT(dequantise),
    TRAINING(unary_backward),
    TRAINING(swiglu_backward),
    TRAINING(rmsnorm_backward),
    TRAINING(l2norm_backward),
    TRAINING(softmax_xent),
    TRAINING(adamw),
    TRAINING(delta_chunk),
    TRAINING(delta_chunk_read),
    TRAINING(delta_chunk_backward),
    EXACT(attend),
    TRAINING(attend_chunk),
    TRAINING(attend_chunk_backward),
    TRAINING(gradient_matmul),
    EXACT(outer_step),
    TRAINING(block_matmul),
    ENCODED(t5_matmul),
    ENCODED(sherry_matmul),
};
_Static_assert(CHM_ARRAY_COUNT(slots) <= CHM_MAX_SLOTS, "CHM_MAX_SLOTS is too small");
/* A slot forgotten above shows here: the table ends where the reserved ones begin. */
_Static_assert(offsetof(struct chm_kernels, reserved_slots) ==
                   offsetof(struct chm_kernels, quantise) + CHM_ARRAY_COUNT(slots) * sizeof(kernel),
               "slots[] and struct chm_kernels differ");

/* A kernel, who has it, and what reports call it. */
struct candidate {
    kernel run;
    const char *name;
    int32_t rank;
};

/* The kernel of a table for a slot; an older one's may end before it. */
static kernel in_table(const struct chm_kernels *table, size_t i) {
    kernel k = NULL;
    if (slots[i].offset + sizeof k <= table->size) memcpy(&k, (const char *)table + slots[i].offset, sizeof k);
    return k;
}

/* The lowest rank above scalar's, for what this CPU does badly. */
enum { LAST_RANK = 1 };

/* What a backend has for a slot: of its levels the first that this CPU can run and does well, then its table. A level
 * to be avoided is none; a backend to be avoided comes last. */
static struct candidate slot_of(const chm_registry *r, const struct chm_plugin *p, size_t i) {
    const struct chm_backend_ops *ops = p->ops;
    struct candidate c = {NULL, p->name, ops->rank};
    if ((p->cpu & r->cpu_avoid) && c.rank > LAST_RANK) c.rank = LAST_RANK;
    const bool levels = ops->size >= sizeof *ops && ops->levels;
    for (uint32_t l = 0; levels && l < ops->level_count && !c.run; l++) {
        const struct chm_backend_level *level = ops->levels[l];
        if ((level->cpu & ~r->cpu) || (level->cpu & ~p->cpu & r->cpu_avoid)) continue;
        if ((c.run = in_table(&level->kernels, i))) c.name = level->name;
    }
    if (!c.run) c.run = in_table(&ops->kernels, i);
    return c;
}

static const struct chm_plugin *by_name(const chm_registry *r, const char *name) {
    const struct chm_plugin *p;
    for (size_t i = 0; (p = chm_registry_at(r, CHM_KIND_BACKEND, i)); i++)
        if (strcmp(p->name, name) == 0) return p;
    return NULL;
}

static struct candidate best(const chm_registry *r, size_t slot) {
    const struct chm_plugin *p;
    struct candidate found = {NULL, NULL, 0};
    for (size_t i = 0; (p = chm_registry_at(r, CHM_KIND_BACKEND, i)); i++) {
        const struct candidate c = slot_of(r, p, slot);
        if (c.run && (!found.run || c.rank > found.rank)) found = c;
    }
    return found;
}

int chm_kernels_choose(const chm_registry *r, const char *force, bool require, chm_kernel_choice *out) {
    const char *source = "--backend";
    memset(out, 0, sizeof *out);
    if (!force) {
        force = getenv("CHIMERA_BACKEND");
        source = "CHIMERA_BACKEND";
        if (force && !*force) force = NULL;
    }
    if (require && !force)
        return chm_fail(CHM_E_CONFIG, "--require-backend needs a backend to require: give --backend NAME or set "
                                      "CHIMERA_BACKEND");
    const struct chm_plugin *forced = NULL, *scalar = by_name(r, "scalar"), *openblas = by_name(r, "openblas");
    if (force) {
        forced = chm_registry_find(r, CHM_KIND_BACKEND, force);
        if (!forced) return chm_fail_prefix(CHM_E_PLUGIN, "%s", source);
    }
    out->kernels.size = sizeof out->kernels;
    out->slots = CHM_ARRAY_COUNT(slots);
    for (size_t i = 0; i < out->slots; i++) {
        struct candidate c = forced ? slot_of(r, forced, i) : best(r, i);
        if (forced && !c.run) {
            if (require && slots[i].exact && !slots[i].encoded)
                return chm_fail(CHM_E_PLUGIN,
                                "backend '%s' has no '%s', which --require-backend asks of it: choose another backend "
                                "or leave --require-backend out",
                                forced->name, slots[i].name);
            if (!slots[i].exact && openblas && forced != scalar) c = slot_of(r, openblas, i);
            if (!c.run && scalar) c = slot_of(r, scalar, i);
        }
        if (!c.run)
            return chm_fail(CHM_E_PLUGIN,
                            "no backend here has the kernel '%s': the plugin 'scalar' has all of them; `chimera "
                            "doctor` shows where plugins were looked for",
                            slots[i].name);
        memcpy((char *)&out->kernels + slots[i].offset, &c.run, sizeof c.run);
        out->slot[i] = slots[i].name;
        out->backend[i] = c.name;
        out->exact[i] = slots[i].exact;
        out->rank[i] = c.rank;
    }
    return CHM_OK;
}
