/* kernels_choose.c: which backend runs each slot of the kernel table. */
#include "plugin/registry.h"

#include <stdlib.h>
#include <string.h>

typedef void (*kernel)(void);

/* Every slot of struct chm_kernels, in its order: one line each. */
#define EXACT(name)                                                                                                    \
    { #name, offsetof(struct chm_kernels, name), true }
#define TRAINING(name)                                                                                                 \
    { #name, offsetof(struct chm_kernels, name), false }
static const struct {
    const char *name;
    size_t offset;
    bool exact;
} slots[] = {
    EXACT(quantise),
    EXACT(ternary_matmul),
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
};
_Static_assert(CHM_ARRAY_COUNT(slots) <= CHM_MAX_SLOTS, "CHM_MAX_SLOTS is too small");
/* A slot forgotten above shows here: the table ends where the reserved ones begin. */
_Static_assert(offsetof(struct chm_kernels, reserved_slots) ==
                   offsetof(struct chm_kernels, quantise) + CHM_ARRAY_COUNT(slots) * sizeof(kernel),
               "slots[] and struct chm_kernels differ");

/* The kernel a backend has for a slot; an older one's table may end before it. */
static kernel slot_of(const struct chm_plugin *p, size_t i) {
    const struct chm_backend_ops *ops = p->ops;
    kernel k = NULL;
    if (slots[i].offset + sizeof k <= ops->kernels.size)
        memcpy(&k, (const char *)&ops->kernels + slots[i].offset, sizeof k);
    return k;
}

static int32_t rank_of(const struct chm_plugin *p) { return ((const struct chm_backend_ops *)p->ops)->rank; }

static const struct chm_plugin *by_name(const chm_registry *r, const char *name) {
    const struct chm_plugin *p;
    for (size_t i = 0; (p = chm_registry_at(r, CHM_KIND_BACKEND, i)); i++)
        if (strcmp(p->name, name) == 0) return p;
    return NULL;
}

static const struct chm_plugin *best(const chm_registry *r, size_t slot) {
    const struct chm_plugin *p, *found = NULL;
    for (size_t i = 0; (p = chm_registry_at(r, CHM_KIND_BACKEND, i)); i++)
        if (slot_of(p, slot) && (!found || rank_of(p) > rank_of(found))) found = p;
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
        const struct chm_plugin *p = forced ? forced : best(r, i);
        if (forced && !slot_of(forced, i)) {
            if (require && slots[i].exact)
                return chm_fail(CHM_E_PLUGIN,
                                "backend '%s' has no '%s', which --require-backend asks of it: choose another backend "
                                "or leave --require-backend out",
                                forced->name, slots[i].name);
            p = scalar;
            if (!slots[i].exact && openblas && forced != scalar && slot_of(openblas, i)) p = openblas;
        }
        if (!p || !slot_of(p, i))
            return chm_fail(CHM_E_PLUGIN,
                            "no backend here has the kernel '%s': the plugin 'scalar' has all of them; `chimera "
                            "doctor` shows where plugins were looked for",
                            slots[i].name);
        kernel k = slot_of(p, i);
        memcpy((char *)&out->kernels + slots[i].offset, &k, sizeof k);
        out->slot[i] = slots[i].name;
        out->backend[i] = p->name;
        out->exact[i] = slots[i].exact;
    }
    return CHM_OK;
}
