/*
 * runtime.h: what chm_runtime holds. Implemented in core/model/runtime.c, with the model-level half of chimera.h.
 */
#ifndef CHM_RUNTIME_H
#define CHM_RUNTIME_H

#include "model/model.h"

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

/* An instance of the card's tokenizer; release with chm_tokenizer_close. */
typedef struct chm_tokenizer {
    const struct chm_plugin *plugin;
    const struct chm_tokenizer_ops *ops;
    void *self;
    chm_arena arena;
} chm_tokenizer;
int chm_tokenizer_open(chm_tokenizer *t, const chm_registry *r, const chm_card *card);
void chm_tokenizer_close(chm_tokenizer *t);
const struct chm_host *chm_host_services(void);

#endif
