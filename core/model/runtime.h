/*
 * runtime.h: what chm_runtime holds. Implemented in core/model/runtime.c, with the model-level half of chimera.h.
 */
#ifndef CHM_RUNTIME_H
#define CHM_RUNTIME_H

#include "model/model.h"
#include "model/tokenizer.h"

struct chm_runtime {
    chm_registry registry;
    chm_kernel_choice kernels;
    chm_pool *pool;
    int threads;
    bool ready;    /* kernels were chosen; false only in a runtime for reports */
    char *backend; /* as asked for, for chm_doctor; NULL: none */
    bool require_backend;
};
/* CHM_OK, or a sentence when this runtime cannot run models. */
int chm_runtime_ready(const struct chm_runtime *r);

#endif
