/*
 * layer_alone.h: one layer plugin outside any stack: no residual, no norm before it. For `chimera layer` and its tests.
 */
#ifndef CHM_LAYER_ALONE_H
#define CHM_LAYER_ALONE_H

#include "model/runtime.h"
#include <chimera/chimera.h>

typedef struct chm_layer_alone {
    chm_model *model; /* owned; its mixer[0] is the layer, its parameters are allocated and have gradients */
    chm_layer *layer;
    chm_param **param; /* [params], the layer's own */
    int params;
    chm_state_item *state; /* [states], f32 or not */
    int states;
} chm_layer_alone;

/* A card as small as the layer allows, under the caller's overlay. `file` (NULL: none) gives defaults: each entry of
 * its metadata that names an option of the plugin, or hidden_size, intermediate_size, num_heads, head_dim,
 * rms_norm_eps, rms_norm_before_every_linear or group_size. width 0: num_heads x head_dim. init_range 0: the card's
 * default. plain: no quantisation, whatever the overlay says. */
int chm_layer_alone_open(chm_layer_alone *l, const chm_runtime *r, const chm_layer_options *options,
                         const chm_safetensors *file, int64_t width, double init_range, bool plain);
void chm_layer_alone_close(chm_layer_alone *l); /* also after a failed open, or of zeros */
/* The parameter's or state's name inside the layer: "q" of "layers.0.mixer.q". */
const char *chm_layer_alone_name(const chm_layer_alone *l, const char *full);
/* x through the layer in a begun pass. */
chm_tensor *chm_layer_alone_forward(const chm_layer_alone *l, chm_context *c, chm_tensor *x);

#endif
