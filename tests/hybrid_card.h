/*
 * hybrid_card.h: the smallest card that has every kind of layer: the hybrid pattern, experts in two of its layers, all
 * mixers inside the loop. Windows, chunks and segments are short, so that few tokens cross their edges.
 */
#ifndef HYBRID_CARD_H
#define HYBRID_CARD_H

/* %d: hidden_size, head_dim (half of it); %s: quantization.method, quantization.embedding, what `looping` has besides,
 * further members of the card. The last two begin with a comma, or are empty. */
#define HYBRID_CARD                                                                                                    \
    "{\"model_type\": \"chimera51\", \"token_ids\": [256, 257], \"vocab_size\": 258, \"hidden_size\": %d,\n"           \
    " \"num_heads\": 2, \"head_dim\": %d, \"intermediate_size\": 40, \"num_hidden_layers\": 9,\n"                      \
    " \"initializer_range\": 0.3, \"rms_norm_eps\": 1e-6, \"tokenizer\": {\"type\": \"bytes\"},\n"                     \
    " \"quantization\": {\"method\": \"%s\", \"embedding\": \"%s\"},\n"                                                \
    " \"backbone\": {\"layer_pattern\": \"GD XM GD TM GD XM GD SK\",\n"                                                \
    "  \"layer_aliases\": {\"GD\": \"gd\", \"XM\": \"xlstm\", \"TM\": \"titans\", \"SK\": \"sk\"},\n"                  \
    "  \"moe\": {\"enabled\": true, \"layers\": [3, 7], \"n_routed_experts\": 4, \"n_shared_experts\": 1,\n"           \
    "   \"num_experts_per_tok\": 2, \"moe_intermediate_size\": 24}},\n"                                                \
    " \"xlstm\": {\"igate_bias\": -2}, \"titans\": {\"local_window_size\": 32, \"persistent_memory_slots\": 6},\n"     \
    " \"tsp_knot\": {\"sketch_bits\": 1024},\n"                                                                        \
    " \"looping\": {\"enabled\": true, \"prelude\": [0, 1], \"loop\": [2, 7], \"coda\": [8, 8],\n"                     \
    "  \"loop_range\": [1, 4]%s}%s}\n"

#endif
