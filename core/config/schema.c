/* schema.c: the rows. Defaults are the seed card's values wherever they do not depend on the size of the model. */
#include "config/card.h"
#include "config/schema.h"
#include "plugin/registry.h"
#include <chimera/chimera.h> /* ranges of sampling */
#include <string.h>

#define VALUE(path_, type_, def_, min_, max_, choices_, lmin_, lmax_, doc_)                                            \
    {                                                                                                                  \
        .path = path_, .shape = CHM_SHAPE_VALUE, .option = {                                                           \
            .name = path_,                                                                                             \
            .type = type_,                                                                                             \
            .offset = CHM_OPTION_CHECKED,                                                                              \
            .def = def_,                                                                                               \
            .min = min_,                                                                                               \
            .max = max_,                                                                                               \
            .choices = choices_,                                                                                       \
            .doc = doc_,                                                                                               \
            .list_min = lmin_,                                                                                         \
            .list_max = lmax_                                                                                          \
        }                                                                                                              \
    }
#define SHAPE(path_, shape_, doc_, ...)                                                                                \
    { .path = path_, .shape = shape_, .option = {.name = path_, .doc = doc_}, __VA_ARGS__ }

#define BOOL(path, def, doc)                       VALUE(path, CHM_OPT_BOOL, def, 0, 0, NULL, 0, 0, doc)
#define INT(path, def, min, max, doc)              VALUE(path, CHM_OPT_INT, def, min, max, NULL, 0, 0, doc)
#define FLOAT(path, def, min, max, doc)            VALUE(path, CHM_OPT_FLOAT, def, min, max, NULL, 0, 0, doc)
#define ENUM(path, def, choices, doc)              VALUE(path, CHM_OPT_ENUM, def, 0, 0, choices, 0, 0, doc)
#define TEXT(path, def, doc)                       VALUE(path, CHM_OPT_STRING, def, 0, 0, NULL, 0, 0, doc)
#define INTS(path, def, min, max, lmin, lmax, doc) VALUE(path, CHM_OPT_INT_LIST, def, min, max, NULL, lmin, lmax, doc)
#define FLOATS(path, def, min, max, lmin, lmax, doc)                                                                   \
    VALUE(path, CHM_OPT_FLOAT_LIST, def, min, max, NULL, lmin, lmax, doc)
#define WORDS(path, def, choices, lmax, doc) VALUE(path, CHM_OPT_STRING_LIST, def, 0, 0, choices, 0, lmax, doc)
#define SECTION(path, doc)                   SHAPE(path, CHM_SHAPE_SECTION, doc, .flags = 0)
#define ALWAYS(path, doc)                    SHAPE(path, CHM_SHAPE_SECTION, doc, .flags = CHM_ROW_ALWAYS)
#define PLANNED(path, what, doc)             SHAPE(path, CHM_SHAPE_SECTION, doc, .planned = what)
#define NEEDED(path, what, doc)              SHAPE(path, CHM_SHAPE_SECTION, doc, .planned = what, .flags = CHM_ROW_NUMBERS)
#define REQUIRED_INT(path_, min_, max_, doc_)                                                                          \
    {                                                                                                                  \
        .path = path_, .shape = CHM_SHAPE_VALUE, .flags = CHM_ROW_REQUIRED, .option = {                                \
            .name = path_,                                                                                             \
            .type = CHM_OPT_INT,                                                                                       \
            .offset = CHM_OPTION_CHECKED,                                                                              \
            .min = min_,                                                                                               \
            .max = max_,                                                                                               \
            .doc = doc_                                                                                                \
        }                                                                                                              \
    }

#define TERM(name, method)                                                                                             \
    SHAPE("tsp_knot.energy_terms." name, CHM_SHAPE_TUPLE, "Weight and method, or the weight.",                         \
          .tuple = "float:0:1000 text:" method "|float:0:1000")
#define LEVEL(name)                                                                                                    \
    SECTION("entropy_valve.levels." name, "A level."),                                                                 \
        INT("entropy_valve.levels." name ".loops", NULL, 1, 64, "Passes."),                                            \
        INT("entropy_valve.levels." name ".min_span", NULL, 1, 64, "Fewest tokens of a span."),                        \
        FLOAT("entropy_valve.levels." name ".audit", NULL, 0, 1, "Part of the spans that are verified.")

#define COUNT_MAX 1e18 /* tokens, parameters */
#define MB_MAX    1e9

static const struct chm_schema_row rows[] = {
    TEXT("_name_or_path", NULL, "Name of the model."),
    TEXT("_v", NULL, "Version of the card, for people."),
    WORDS("architectures", NULL, NULL, 8, "Class names for other tools; not read here."),
    SHAPE("auto_map", CHM_SHAPE_MAP, "Python classes for other tools; not read here.", .flags = 0),
    TEXT("auto_map.*", NULL, "A Python class."),
    TEXT("model_type", NULL, "Family name for other tools; not read here."),
    INTS("token_ids", NULL, 0, 16777215, 2, 2,
         "End-of-text and padding token. Default with the bytes tokenizer: 256, 257."),
    REQUIRED_INT("hidden_size", 1, 65536, "Width of the residual stream; num_heads x head_dim."),
    REQUIRED_INT("intermediate_size", 1, 262144, "Inner width of the feed-forward layers."),
    REQUIRED_INT("num_hidden_layers", 1, 256, "Number of layers."),
    REQUIRED_INT("num_heads", 1, 1024, "Heads of every sequence mixer."),
    REQUIRED_INT("head_dim", 1, 1024, "Width of one head."),
    ENUM("hidden_act", "swiglu", "swiglu", "Activation of the feed-forward layers (arXiv:2002.05202)."),
    FLOAT("initializer_range", "0.006", 1e-6, 1, "Standard deviation of initial weights."),
    FLOAT("rms_norm_eps", "1e-06", 1e-12, 0.01, "Added to the mean square inside every RMSNorm (arXiv:1910.07467)."),
    BOOL("rms_norm_before_every_linear", "true", "An RMSNorm stands before every ternary linear."),
    REQUIRED_INT("vocab_size", 2, 16777216, "Number of token ids."),
    INT("max_position_embeddings", "4194304", 1, COUNT_MAX, "Longest document trained on; no positions are embedded."),
    BOOL("tie_word_embeddings", "true", "Embedding and output head share one table."),
    ENUM("torch_dtype", "bfloat16", "bfloat16|float16|float32", "Number format for other tools; not read here."),
    BOOL("use_cache", "false", "Key/value cache in other tools; not read here."),
    TEXT("transformers_version", NULL, "Written by other tools; not read here."),

    ALWAYS("quantization", "How weights and activations are quantised (arXiv:2402.17764)."),
    ENUM("quantization.method", "bitnet", "bitnet|none", "bitnet: ternary linears; none: f32 linears, for comparison."),
    ENUM("quantization.linear_class", "ternary_bitplane", "ternary_bitplane", "Class of the linears."),
    FLOAT("quantization.weight_bits", "1.58", 1.58, 1.58, "Information per ternary weight: log2(3)."),
    INTS("quantization.weight_values", "[-1, 0, 1]", -1, 1, 3, 3, "Values a weight can take: -1, 0, 1."),
    ENUM("quantization.weight_scale", "absmean_per_group", "absmean_per_group",
         "Scale of a weight group: mean of the absolute values."),
    INT("quantization.group_size", "128", 64, 65536, "Inputs that share a weight scale; a multiple of 64."),
    INT("quantization.activation_bits", "8", 8, 8, "Bits of a quantised activation."),
    ENUM("quantization.activation_method", "absmax_per_block", "absmax_per_block", "Scale of a block of activations."),
    INT("quantization.activation_block_size", "64", 64, 64, "Activations that share a scale."),
    ENUM("quantization.accumulator_dtype", "int32", "int32", "Sums of products inside a block."),
    ENUM("quantization.norm_dtype", "float32", "float32", "Arithmetic of norms."),
    ENUM("quantization.runtime_kernel", "TL2_bitnet_cpp", "TL2_bitnet_cpp|auto",
         "Either name means the fastest exact kernel here; what ran is reported."),
    ENUM("quantization.embedding", "ternary", "ternary|int8|f32", "Format of the tied embedding and head."),
    ENUM("quantization.encoding", "auto", "auto|t2|t5|sherry",
         "How files hold ternary codes: 2, 1.6 or 1.25 bits a weight; auto: sherry in its mode, else t5."),
    ALWAYS("quantization.sherry_mode", "Of every four weights one is 0, which takes 1.25 bits (arXiv:2601.07892)."),
    BOOL("quantization.sherry_mode.enabled", "false", "On or off."),
    FLOAT("quantization.sherry_mode.bits", "1.25", 1.25, 1.25, "Bits per weight."),
    ALWAYS("quantization.hgf_correction",
           "A gated product of low rank and higher precision is added to ternary linears (arXiv:2602.05269)."),
    BOOL("quantization.hgf_correction.enabled", "false", "On or off."),
    INT("quantization.hgf_correction.rank", "32", 1, 4096, "Rank of the product."),
    FLOAT("quantization.hgf_correction.gate", "0.1", -16, 16, "What the gate of a linear is before training."),
    INTS("quantization.hgf_correction.layers", "[]", 0, CHM_MAX_LAYERS - 1, 0, CHM_MAX_LAYERS,
         "Layers whose linears have it; none named: all."),

    SHAPE("backbone", CHM_SHAPE_SECTION, "Which layers, in which order.", .flags = CHM_ROW_REQUIRED | CHM_ROW_ALWAYS),
    ENUM("backbone.type", "hybrid_recurrent_no_attention", "hybrid_recurrent_no_attention", "Kind of stack."),
    {.path = "backbone.layer_pattern",
     .flags = CHM_ROW_REQUIRED,
     .option = {.name = "backbone.layer_pattern",
                .type = CHM_OPT_STRING,
                .offset = CHM_OPTION_CHECKED,
                .doc = "Mixers from the first layer up, separated by spaces: layer_aliases, or layer plugins. Repeated "
                       "to num_hidden_layers."}},
    FLOAT("backbone.layer_pattern_repeat", NULL, 0.001, 256,
          "How often the pattern runs; default: as often as needed."),
    SHAPE("backbone.layer_aliases", CHM_SHAPE_MAP, "Names the pattern uses, and the layer plugin of each.", .flags = 0),
    TEXT("backbone.layer_aliases.*", NULL, "A layer plugin, by name or alias."),
    SHAPE("backbone.layer_counts", CHM_SHAPE_MAP,
          "How many layers of each name the stack has; checked against the pattern.", .flags = 0),
    INT("backbone.layer_counts.*", NULL, 0, 256, "Layers of this name."),
    ENUM("backbone.kv_cache", "none", "none", "State is recurrent: no key/value cache."),
    PLANNED("backbone.moe", "layer plugin", "Sparse feed-forward layers (arXiv:2408.15664)."),
    BOOL("backbone.moe.enabled", "true", "On or off."),
    INTS("backbone.moe.layers", NULL, 0, 255, 0, 256, "Layers whose feed-forward is a mixture of experts, from 0."),
    INT("backbone.moe.n_routed_experts", "16", 1, 4096, "Experts to choose from."),
    INT("backbone.moe.n_shared_experts", "1", 0, 64, "Experts every token visits."),
    INT("backbone.moe.num_experts_per_tok", "2", 1, 64, "Experts chosen per token."),
    INT("backbone.moe.moe_intermediate_size", "1728", 1, 262144, "Inner width of one expert."),
    ENUM("backbone.moe.routing", "noaux_bias", "noaux_bias", "Load balance by a bias, without auxiliary loss."),
    INT("backbone.moe.total_params", NULL, 0, COUNT_MAX, "Stated count; the computed one is reported."),
    INT("backbone.moe.active_params_per_tok", NULL, 0, COUNT_MAX, "Stated count; the computed one is reported."),

    SHAPE("gated_deltanet", CHM_SHAPE_DOCUMENT, "Options of the layer plugin gd.", .planned = "layer plugin"),
    SHAPE("attention", CHM_SHAPE_DOCUMENT, "Options of the layer plugin attn.", .planned = "layer plugin"),

    SECTION("efla", "Exact solution of the delta rule in some layers, with raw keys (arXiv:2512.12602)."),
    BOOL("efla.enabled", "false", "On or off."),
    TEXT("efla.target_layers", "SK", "Names of the pattern it applies to, or numbers of layers, separated by spaces."),

    PLANNED("xlstm", "layer plugin", "Options of the layer plugin xlstm (arXiv:2405.04517)."),
    ENUM("xlstm.variant", "mLSTM", "mLSTM|sLSTM", "Matrix or scalar memory."),
    BOOL("xlstm.exponential_gating", "true", "Exponential input gate."),
    INTS("xlstm.memory_size_per_head", NULL, 1, 1024, 2, 2, "Keys and values of a head's memory: head_dim, head_dim."),
    BOOL("xlstm.covariance_update", "true", "Memory update by outer products."),
    ENUM("xlstm.normalizer_state", "max_stabilized", "max_stabilized", "How the normaliser is kept in range."),

    PLANNED("titans", "layer plugin", "Options of the layer plugin titans (arXiv:2501.00663)."),
    ENUM("titans.memory_type", "MAC", "MAC", "Memory as context."),
    INT("titans.memory_depth", "2", 1, 2, "Layers of the memory network."),
    ENUM("titans.surprise_metric", "gradient_with_momentum", "gradient_with_momentum", "What is remembered."),
    TEXT("titans.surprise_formula", NULL, "The update of the surprise, for people."),
    TEXT("titans.forgetting_formula", NULL, "The update of the memory, for people."),
    INT("titans.persistent_memory_slots", "64", 0, 4096, "Learned slots read by every token."),
    INT("titans.local_window_size", "1024", 16, 1048576, "Tokens of a segment."),

    SECTION("looping", "Layers that run several times per token (arXiv:2604.12946)."),
    BOOL("looping.enabled", "true", "On or off."),
    ENUM("looping.method", "parcae_zoh_stable", "parcae_zoh_stable", "How the input enters each pass."),
    INTS("looping.prelude", NULL, 0, 255, 2, 2, "First and last layer before the loop."),
    INTS("looping.loop", NULL, 0, 255, 2, 2, "First and last layer of the loop."),
    INTS("looping.coda", NULL, 0, 255, 2, 2, "First and last layer after the loop."),
    INTS("looping.loop_range", "[1, 6]", 1, 64, 2, 2, "Fewest and most passes."),
    INT("looping.loop_default", "2", 1, 64, "Passes when nothing asks otherwise."),
    ENUM("looping.stability_A", "diag_negative_exp", "diag_negative_exp", "Form of the residual decay."),
    FLOAT("looping.spectral_radius_bound", "1.0", 0.01, 1, "Strict upper bound of the decay."),
    ENUM("looping.depth_selection", "stochastic_per_sequence", "stochastic_per_sequence|fixed", "Passes in training."),
    FLOAT("looping.adaptive_exit_threshold", "0.01", 0, 1, "Relative change under which a token stops."),
    FLOAT("looping.depth_mean", "2", 0.01, 64, "Mean of the Poisson that training draws its passes from."),
    ENUM("looping.backward_truncation", "half", "half|none",
         "Passes the gradient goes through: the first and the later half, or all."),
    ENUM("looping.state", "write_first", "write_first|per_pass",
         "The first pass writes and later ones read; or every pass has a state of its own and no token stops early."),
    ENUM("looping.gain", "zoh", "zoh|euler", "How the input enters: exact for an input held still, or Euler's rule."),

    PLANNED("span_inference", "decoder", "Generation by spans (arXiv:2503.01840, 2411.15100)."),
    BOOL("span_inference.enabled", "true", "On or off."),
    INT("span_inference.bank_entries", "524288", 1, 1e9, "Spans in the bank."),
    FLOAT("span_inference.bank_avg_tokens", "5", 1, 64, "Mean tokens of a span."),
    INT("span_inference.bank_max_tokens", "64", 1, 64, "Most tokens of a span."),
    INT("span_inference.bank_memory_mb", "384", 1, MB_MAX, "Size of the bank."),
    INTS("span_inference.candidate_sources", NULL, 0, 65536, 0, 16, "Candidates of each source, in fast mode."),
    WORDS("span_inference.candidate_source_keys", NULL, "semantic_lsh|grammar_allowed|cache_hits|neural_novel", 16,
          "Names of the sources."),
    INT("span_inference.candidates_fast", NULL, 1, 65536, "Candidates in fast mode; the sum of candidate_sources."),
    INT("span_inference.candidates_reason", "512", 1, 65536, "Candidates in reasoning mode."),
    SECTION("span_inference.tree_verify", "Verification of several continuations at once (arXiv:2505.14969)."),
    BOOL("span_inference.tree_verify.enabled", "true", "On or off."),
    ENUM("span_inference.tree_verify.method", "STree", "STree", "How the tree is run."),
    INT("span_inference.tree_verify.tree_width", "4", 1, 64, "Branches."),
    INT("span_inference.tree_verify.tree_depth", "5", 1, 64, "Tokens of a branch."),
    BOOL("span_inference.tree_verify.hardware_aware", "true", "Shape of the tree follows measured cost."),
    WORDS("span_inference.certificate_fields", NULL,
          "span_id_u32|semantic_delta_8192b|grammar_delta_128b|entity_delta_512b|debt_delta_64b|boundary_logprob_i16|"
          "interior_risk_u8",
          16, "Fields of a certificate."),
    INT("span_inference.certificate_verify_max_us", "100", 1, 1e9, "Longest verification of a certificate."),
    BOOL("span_inference.adaptive_mask_cache", "true", "Grammar masks are cached."),
    INT("span_inference.render_queue_target", "256", 1, 1048576, "Tokens the queue aims for."),
    INT("span_inference.render_queue_max", "2048", 1, 1048576, "Most tokens in the queue."),
    FLOAT("span_inference.fallback_below_acceptance", "0.5", 0, 1, "Acceptance under which spans are left off."),
    WORDS("span_inference.scoring_keys", NULL, "semantic|grammar|memory|debt|boundary", 16, "Terms of a span's score."),
    FLOATS("span_inference.scoring_weights_fast", NULL, 0, 1000, 0, 16, "Weight of each term, in fast mode."),

    PLANNED("tsp_knot", "layer plugin", "Options of the layer plugin sk, the span-knot."),
    SECTION("tsp_knot.energy_terms", "Terms of the energy: weight and how it is computed."),
    TERM("autoregressive", "embedding_inner_product"),
    TERM("memory_coherence", "hamming_to_semantic_sketch"),
    TERM("binding_fidelity", "xor_unbind_popcount"),
    TERM("grammar", "fst_transition_cost"),
    TERM("debt", "obligation_delta"),
    ENUM("tsp_knot.relaxation_phase1", "gated_deltanet_update", "gated_deltanet_update", "First relaxation."),
    INT("tsp_knot.relaxation_phase2_max_iters", "3", 0, 64, "Rounds of the second relaxation."),
    FLOAT("tsp_knot.relaxation_phase2_flip_fraction", "0.02", 0, 1, "Part of the bits a round may flip."),
    FLOAT("tsp_knot.early_exit_delta_e", "0.0001", 0, 1e6, "Change of energy under which relaxation stops."),

    PLANNED("grammar", "decoder", "Grammars that constrain generation (arXiv:2411.15100, 2601.04426)."),
    BOOL("grammar.enabled", "true", "On or off."),
    WORDS("grammar.modes", NULL, "plain_text|dialogue|markdown|json|python|javascript|sql|math_latex|shell", 64,
          "Grammars to load."),
    ENUM("grammar.representation", "deterministic_fst_plus_weighted", "deterministic_fst_plus_weighted", "Form."),
    INT("grammar.storage_mb", "64", 1, MB_MAX, "Size of the compiled grammars."),
    WORDS("grammar.hard_constraints", NULL,
          "balanced_brackets|valid_json_in_json_mode|fence_closure|string_literal_closure", 64,
          "Rules that are never broken."),
    WORDS("grammar.soft_constraints", NULL, "sentence_rhythm|repetition_avoidance|paragraph_length", 64,
          "Rules that cost."),
    BOOL("grammar.adaptive_mask_cache", "true", "Masks are cached."),
    BOOL("grammar.jit_compilation", "true", "Grammars are compiled when first used."),

    PLANNED("semantic_memory", "memory plugin", "Associative memory of bit vectors (arXiv:2602.02369, 2402.04624)."),
    INT("semantic_memory.vector_bits", "8192", 64, 1048576, "Bits of a vector."),
    TEXT("semantic_memory.vector_storage", NULL, "Storage of a vector: uint64_xN, N words of 64 bits each."),
    INT("semantic_memory.capacity", "200000", 1, 1e9, "Vectors."),
    INT("semantic_memory.relations", "500000", 0, 1e9, "Relations."),
    INT("semantic_memory.memory_mb", "320", 1, MB_MAX, "Size."),
    WORDS("semantic_memory.ops", NULL, "xor_bind|xor_unbind|majority_bundle|popcnt_hamming|rotate_permute", 16,
          "Operations."),
    INT("semantic_memory.lsh_tables", "64", 1, 4096, "Hash tables."),
    INT("semantic_memory.lsh_bits_per_table", "14", 1, 32, "Bits of a table's index."),
    INT("semantic_memory.hot_cache_entries", "16384", 0, 1e9, "Cached vectors."),
    BOOL("semantic_memory.read_at_every_knot", "true", "Read once per span."),
    ENUM("semantic_memory.write_policy", "surprise_threshold_plus_contrastive_validation",
         "surprise_threshold_plus_contrastive_validation", "When a vector is written."),
    ENUM("semantic_memory.forgetting_policy", "fixed_pool_exponential_decay", "fixed_pool_exponential_decay",
         "What is forgotten."),
    BOOL("semantic_memory.pool_size_fixed", "true", "The memory does not grow."),

    PLANNED("entropy_valve", "decoder", "Computation by difficulty (arXiv:2510.11170)."),
    BOOL("entropy_valve.enabled", "true", "On or off."),
    WORDS("entropy_valve.metrics", NULL,
          "span_energy_margin|grammar_branching|sketch_instability|entity_conflicts|debt_pressure|queue_depth", 16,
          "What difficulty is read from."),
    FLOAT("entropy_valve.threshold_bits", "2.0", 0, 64, "Entropy that opens the valve."),
    ENUM("entropy_valve.type", "inference_time_compute_allocation", "inference_time_compute_allocation", "Kind."),
    SECTION("entropy_valve.loop_depth_router", "Predicts the passes a token needs (arXiv:2404.02258)."),
    ENUM("entropy_valve.loop_depth_router.method", "mod_causal_predictor", "mod_causal_predictor", "Method."),
    FLOAT("entropy_valve.loop_depth_router.accuracy_target", "0.97", 0, 1, "Wanted accuracy."),
    SECTION("entropy_valve.levels", "Settings per level of difficulty."),
    LEVEL("low"),
    LEVEL("medium"),
    LEVEL("high"),

    PLANNED("debt_ledger", "decoder", "Obligations the text has opened."),
    BOOL("debt_ledger.enabled", "true", "On or off."),
    WORDS("debt_ledger.obligations", NULL,
          "close_bracket|close_string|close_fence|resolve_pronoun|finish_list|maintain_tense|complete_sentence|"
          "end_json_object",
          64, "Kinds of obligation."),
    INT("debt_ledger.max_outstanding", "64", 1, 4096, "Most open obligations."),
    FLOAT("debt_ledger.pressure_weight", "0.3", 0, 1000, "Weight in the score."),

    PLANNED("self_evolution", "evolution plugins", "What is learnt at run time."),
    INT("self_evolution.num_mechanisms", NULL, 0, 7, "Mechanisms listed below."),
    SECTION("self_evolution.tier1", "Mechanisms that act within a session."),
    SECTION("self_evolution.tier1.ttt", "Test-time training (arXiv:2604.06169)."),
    BOOL("self_evolution.tier1.ttt.enabled", "true", "On or off."),
    INTS("self_evolution.tier1.ttt.target_layers", NULL, 0, 255, 0, 256, "Layers it adapts."),
    ENUM("self_evolution.tier1.ttt.target_param", "mlp_w_down", "mlp_w_down", "Matrix it adapts."),
    FLOAT("self_evolution.tier1.ttt.inner_lr", "0.0003", 0, 1, "Learning rate."),
    ENUM("self_evolution.tier1.ttt.inner_optimizer", "sgd_momentum", "sgd_momentum", "Optimiser."),
    FLOAT("self_evolution.tier1.ttt.momentum", "0.9", 0, 1, "Momentum."),
    ENUM("self_evolution.tier1.ttt.objective", "next_token_prediction", "next_token_prediction", "Loss."),
    INT("self_evolution.tier1.ttt.chunk_size", "1024", 1, 1048576, "Tokens per update."),
    ENUM("self_evolution.tier1.ttt.update_scope", "full_w_down", "full_w_down", "What is updated."),
    FLOAT("self_evolution.tier1.ttt.reset_decay", "0.95", 0, 1, "Decay towards the trained weights."),
    ENUM("self_evolution.tier1.ttt.persistence", "per_user_session_file", "per_user_session_file", "Where it is kept."),
    SECTION("self_evolution.tier1.memory_growth", "Writes surprising facts to memory."),
    BOOL("self_evolution.tier1.memory_growth.enabled", "true", "On or off."),
    ENUM("self_evolution.tier1.memory_growth.surprise_threshold", "titans_gradient_magnitude_above_2_sigma",
         "titans_gradient_magnitude_above_2_sigma", "What counts as surprising."),
    BOOL("self_evolution.tier1.memory_growth.contrastive_validation", "true", "A fact must help before it is kept."),
    BOOL("self_evolution.tier1.memory_growth.user_explicit_store", "true", "A user may ask to store."),
    INT("self_evolution.tier1.memory_growth.max_per_session", "1000", 0, 1e9, "Most facts a session."),
    BOOL("self_evolution.tier1.memory_growth.pool_fixed", "true", "The pool does not grow."),
    ENUM("self_evolution.tier1.memory_growth.forgetting", "random_drop_k_append_k", "random_drop_k_append_k",
         "What makes room."),
    BOOL("self_evolution.tier1.memory_growth.persistent", "true", "Kept between sessions."),
    ENUM("self_evolution.tier1.memory_growth.pruning", "low_retrieval_weight_eviction", "low_retrieval_weight_eviction",
         "What is evicted."),
    SECTION("self_evolution.tier2", "Mechanisms that act between sessions."),
    SECTION("self_evolution.tier2.meta_guidelines", "Guidelines as bit vectors (arXiv:2602.02369)."),
    BOOL("self_evolution.tier2.meta_guidelines.enabled", "true", "On or off."),
    INT("self_evolution.tier2.meta_guidelines.max", "256", 0, 1e6, "Most guidelines."),
    ENUM("self_evolution.tier2.meta_guidelines.format", "8192bit_xor", "8192bit_xor", "Storage."),
    ENUM("self_evolution.tier2.meta_guidelines.trigger", "contrastive_eval_negative", "contrastive_eval_negative",
         "When one is written."),
    SECTION("self_evolution.tier2.episodic_cases", "Past cases (arXiv:2508.16153)."),
    BOOL("self_evolution.tier2.episodic_cases.enabled", "true", "On or off."),
    ENUM("self_evolution.tier2.episodic_cases.retrieval", "soft_q_learning", "soft_q_learning",
         "How cases are chosen."),
    INT("self_evolution.tier2.episodic_cases.max_cases", "4096", 0, 1e9, "Most cases."),
    INT("self_evolution.tier2.episodic_cases.case_bytes", "2048", 64, 1e9, "Size of a case."),
    ENUM("self_evolution.tier2.episodic_cases.weight_update", "outcome_based_ema", "outcome_based_ema",
         "How a case gains weight."),
    SECTION("self_evolution.tier2.self_feedback", "Another try when unsure (arXiv:2310.00533)."),
    BOOL("self_evolution.tier2.self_feedback.enabled", "true", "On or off."),
    FLOAT("self_evolution.tier2.self_feedback.confidence_threshold", "0.6", 0, 1,
          "Confidence that needs no other try."),
    INT("self_evolution.tier2.self_feedback.max_refinement_rounds", "1", 0, 64, "Most tries."),
    SECTION("self_evolution.tier3", "Mechanisms that change how text is made."),
    SECTION("self_evolution.tier3.span_bank_expansion", "New spans from use."),
    BOOL("self_evolution.tier3.span_bank_expansion.enabled", "true", "On or off."),
    INT("self_evolution.tier3.span_bank_expansion.min_span_len", "4", 1, 64, "Fewest tokens."),
    INT("self_evolution.tier3.span_bank_expansion.max_new_per_session", "256", 0, 1e9, "Most new spans a session."),
    TEXT("self_evolution.tier3.span_bank_expansion.acceptance", NULL, "What a span must show, for people."),
    BOOL("self_evolution.tier3.span_bank_expansion.persistent", "true", "Kept between sessions."),
    ENUM("self_evolution.tier3.span_bank_expansion.compression", "merge_similar_periodic", "merge_similar_periodic",
         "How the bank is kept small."),
    SECTION("self_evolution.tier3.loop_depth_learning", "Learns the passes a token needs."),
    BOOL("self_evolution.tier3.loop_depth_learning.enabled", "true", "On or off."),
    ENUM("self_evolution.tier3.loop_depth_learning.classifier", "int8_2layer_mlp", "int8_2layer_mlp", "Classifier."),
    INT("self_evolution.tier3.loop_depth_learning.classifier_params", "500000", 1, COUNT_MAX, "Its size."),
    ENUM("self_evolution.tier3.loop_depth_learning.signal", "parcae_convergence_speed", "parcae_convergence_speed",
         "What it learns from."),
    BOOL("self_evolution.tier3.loop_depth_learning.persistent", "true", "Kept between sessions."),
    SECTION("self_evolution.safety", "Limits of everything learnt at run time."),
    SECTION("self_evolution.safety.max_growth_mb", "Most growth of each store."),
    INT("self_evolution.safety.max_growth_mb.memory", "512", 0, MB_MAX, "Semantic memory."),
    INT("self_evolution.safety.max_growth_mb.span_bank", "128", 0, MB_MAX, "Span bank."),
    INT("self_evolution.safety.max_growth_mb.episodic", "8", 0, MB_MAX, "Cases."),
    INT("self_evolution.safety.max_growth_mb.guidelines", "2", 0, MB_MAX, "Guidelines."),
    BOOL("self_evolution.safety.rollback_on_degradation", "true", "Undo what made things worse."),
    ENUM("self_evolution.safety.monitor", "certificate_failure_rate_and_rollback_rate",
         "certificate_failure_rate_and_rollback_rate", "What is watched."),
    FLOAT("self_evolution.safety.freeze_threshold", "0.05", 0, 1, "Rate that stops learning."),
    BOOL("self_evolution.safety.user_reset", "true", "A user may forget everything."),
    TEXT("self_evolution.safety.state_file", NULL, "Where it is kept; the same as files.evolution."),

    PLANNED("braid_state", "streams of spans", "What one stream of text remembers."),
    SHAPE("braid_state.continuous_hidden", CHM_SHAPE_TUPLE, "Width and format.",
          .tuple = "int:1:65536 text:float32/float16/bfloat16/int8"),
    SHAPE("braid_state.fast_hidden", CHM_SHAPE_TUPLE, "Width and format.",
          .tuple = "int:1:65536 text:float32/float16/bfloat16/int8"),
    SHAPE("braid_state.semantic_sketch", CHM_SHAPE_TUPLE, "Bits and format: uint64_xN, N words of 64 bits each.",
          .tuple = "int:64:1048576 text"),
    SECTION("braid_state.entity_table", "Entities of the text."),
    INT("braid_state.entity_table.slots", "256", 1, 65536, "Entities."),
    INT("braid_state.entity_table.slot_bits", "512", 64, 65536, "Bits of an entity."),
    ENUM("braid_state.entity_table.binding", "xor_role_filler", "xor_role_filler", "How roles are bound."),
    SECTION("braid_state.grammar_stack", "Open constructs."),
    INT("braid_state.grammar_stack.slots", "64", 1, 65536, "Depth."),
    INT("braid_state.grammar_stack.width_bits", "128", 8, 65536, "Bits of an entry."),
    INT("braid_state.debt_ledger_slots", "64", 1, 4096, "Obligations."),
    INT("braid_state.per_stream_mb", "30", 1, MB_MAX, "Size of a stream."),
    INT("braid_state.kv_growth_per_token", "0", 0, 0, "State does not grow."),

    SHAPE("modes", CHM_SHAPE_MAP, "Named trade-offs of speed and care.", .planned = "decoder"),
    SECTION("modes.*", "A mode."),
    FLOAT("modes.*.tps", NULL, 0, 1e9, "Tokens per second on the surface."),
    FLOAT("modes.*.neural_hz", NULL, 0, 1e9, "Passes of the network per second."),
    FLOAT("modes.*.span_avg", NULL, 1, 64, "Mean tokens of a span."),
    INT("modes.*.loops", NULL, 1, 64, "Passes through the loop."),
    FLOAT("modes.*.audit", NULL, 0, 1, "Part of the spans that are verified."),

    ALWAYS("generation", "How tokens are chosen."),
    FLOAT("generation.temperature", "0.7", 0, CHM_TEMPERATURE_MAX, "Divides the logits; 0 takes the best token."),
    FLOAT("generation.top_p", "0.92", CHM_TOP_P_MIN, 1, "Smallest set of tokens with this probability; 1: all."),
    FLOAT("generation.repetition_penalty", "1.08", CHM_REPEAT_PENALTY_MIN, CHM_REPEAT_PENALTY_MAX,
          "Divides the logits of tokens already written; 1: none."),
    INT("generation.max_new_tokens", "4096", 1, CHM_NEW_TOKENS_MAX, "Most tokens to write."),
    BOOL("generation.do_sample", "true", "Sample; otherwise take the best token."),
    BOOL("generation.stream", "true", "Not read yet: text is always written as it comes."),

    ALWAYS("training", "How the model is trained."),
    ENUM("training.documents", "file", "file|line",
         "What is read from a fresh state, in training and by eval: every file, or every line (without its newline)."),
    ENUM("training.loss_on", "all", "all|answers",
         "Which predictions count: all, or only the byte that follows a '='; answers needs tokenizer.type = bytes."),
    TEXT("training.text_field", "text", "The member of an object of .jsonl that is a document."),
    FLOAT("training.holdout", "0", 0, 0.9,
          "Share of the documents that is not trained on but scored, by a hash of how they begin; 0: none."),
    BOOL("training.deep_zero_mask", "false",
         "Ternary weights below 0.3 of their group's scale get no gradient and are not moved; the share is logged."),
    BOOL("training.gradient_checkpointing", "false",
         "Of what a block computes only its ends are kept; the way back computes it again. Not inside the loop."),
    SECTION("training.mezo", "Options of the optimizer MeZO, which has no gradient (arXiv:2305.17333)."),
    FLOAT("training.mezo.epsilon", "0.001", 1e-6, 1, "How far parameters are moved to measure the loss."),
    FLOAT("training.mezo.ternary_epsilon", "0.1", 1e-4, 10,
          "The same for a ternary matrix, as part of the mean of its absolute weights."),
    INT("training.mezo.samples", "1", 1, 1000, "Directions measured in a step, two passes each."),
    ENUM("training.mezo.directions", "normal", "normal|signs",
         "Numbers of a direction: normally distributed, or plus and minus one, which are cheaper."),
    ENUM("training.mezo.parameters", "all", "all|unpacked",
         "What is trained: everything, or only what is stored in f32 (norms, gates and the like)."),
    BOOL("training.mezo.skip_zeros", "false", "Ternary weights that are 0 are left alone."),
    FLOAT("training.mezo.revive", "0.01", 0, 1,
          "skip_zeros: share of the zeros, drawn anew in every step, that is not."),
    SHAPE("training.phases", CHM_SHAPE_PHASES, "The phases, in order; the first of kind pretrain is what `train` runs.",
          .flags = 0),
    SECTION("training.phases.pretrain", "Next-token training on text."),
    TEXT("training.phases.pretrain.name", "pretrain", "Name of the phase; overrides may use it."),
    ENUM("training.phases.pretrain.kind", "pretrain", "pretrain|ctx_extend|sft|dpo",
         "What kind of phase; default: its name when that is a kind, else pretrain."),
    INT("training.phases.pretrain.tokens", "10000000", 1, CHM_TRAIN_TOKENS_MAX,
        "Budget when the command line gives none."),
    SHAPE("training.phases.pretrain.data", CHM_SHAPE_TEXTS, "Data sets, for people; the command line names files.",
          .flags = 0),
    INT("training.phases.pretrain.seq_len", "256", 1, 1048576, "Tokens of one segment."),
    INT("training.phases.pretrain.batch_tokens", "4096", 1, 1e9, "Tokens of one optimiser step."),
    INT("training.phases.pretrain.micro_tokens", "0", 0, 1e9,
        "Most tokens run at once, in whole segments and at least one; gradients accumulate. 0: chosen here."),
    INT("training.phases.pretrain.carry_segments", "1", 1, 1e9,
        "Segments a stream reads in a row, its state carried, before it jumps; 1: none."),
    TEXT("training.phases.pretrain.optimizer", "AdamW",
         "AdamW (arXiv:1711.05101), MeZO, or an optimiser plugin: SGD, Muon."),
    FLOAT("training.phases.pretrain.lr", "0.0003", 0, 10, "Peak learning rate."),
    FLOAT("training.phases.pretrain.min_lr_ratio", "0.1", 0, 1, "Last learning rate, as part of the peak."),
    ENUM("training.phases.pretrain.schedule", "cosine_warmup", "cosine_warmup|wsd|linear|bitnet_two_stage|constant",
         "Course of the learning rate."),
    INT("training.phases.pretrain.warmup_steps", "0", 0, 1e9, "Steps of linear warm-up."),
    FLOAT("training.phases.pretrain.decay_fraction", "0.2", 0, 1,
          "wsd: last part of the run, in which the rate falls."),
    FLOAT("training.phases.pretrain.stage_split", "0.5", 0, 1, "bitnet_two_stage: part of the run in stage one."),
    FLOAT("training.phases.pretrain.stage2_lr", "0.0001", 0, 10, "bitnet_two_stage: rate at the start of stage two."),
    FLOAT("training.phases.pretrain.stage2_weight_decay", "0", 0, 10, "bitnet_two_stage: weight decay of stage two."),
    FLOAT("training.phases.pretrain.weight_decay", "0.1", 0, 10, "Decoupled weight decay."),
    FLOAT("training.phases.pretrain.grad_clip", "1.0", 0, 1e6, "Largest global norm of the gradient; 0: no limit."),
    FLOAT("training.phases.pretrain.beta1", "0.9", 0, 0.9999999, "AdamW's first decay."),
    FLOAT("training.phases.pretrain.beta2", "0.95", 0, 0.9999999, "AdamW's second decay."),
    FLOAT("training.phases.pretrain.eps", "1e-08", 1e-30, 1, "AdamW's epsilon."),
    ENUM("training.phases.pretrain.ternary", "native_qat_ste", "native_qat_ste",
         "Quantisation-aware from the first step, straight-through gradient (arXiv:2402.17764)."),
    INT("training.phases.pretrain.seed", "1", 0, 9007199254740992.0, "Seed of initialisation and data order."),
    SHAPE("training.phases.ctx_extend", CHM_SHAPE_SECTION, "Training on longer and longer segments.",
          .planned = "training of kind ctx_extend"),
    TEXT("training.phases.ctx_extend.name", "ctx_extend", "Name of the phase."),
    ENUM("training.phases.ctx_extend.kind", "ctx_extend", "pretrain|ctx_extend|sft|dpo", "What kind of phase."),
    SHAPE("training.phases.ctx_extend.stages", CHM_SHAPE_TUPLES,
          "Segment length, steps and learning rate of each stage.",
          .tuple = "int:1:1e18 text:main|int:1:1e18 int:1:1e9 float:0:10"),
    SHAPE("training.phases.sft", CHM_SHAPE_SECTION, "Supervised fine-tuning.", .planned = "training of kind sft"),
    TEXT("training.phases.sft.name", "sft", "Name of the phase."),
    ENUM("training.phases.sft.kind", "sft", "pretrain|ctx_extend|sft|dpo", "What kind of phase."),
    SHAPE("training.phases.sft.data", CHM_SHAPE_TEXTS, "Data sets.", .flags = 0),
    INT("training.phases.sft.epochs", "3", 1, 1000, "Passes over the data."),
    FLOAT("training.phases.sft.lr", "2e-05", 0, 10, "Peak learning rate."),
    SHAPE("training.phases.dpo", CHM_SHAPE_SECTION, "Direct preference optimisation (arXiv:2305.18290).",
          .planned = "training of kind dpo"),
    TEXT("training.phases.dpo.name", "dpo", "Name of the phase."),
    ENUM("training.phases.dpo.kind", "dpo", "pretrain|ctx_extend|sft|dpo", "What kind of phase."),
    SHAPE("training.phases.dpo.data", CHM_SHAPE_TEXTS, "Data sets.", .flags = 0),
    INT("training.phases.dpo.epochs", "1", 1, 1000, "Passes over the data."),
    FLOAT("training.phases.dpo.lr", "5e-07", 0, 10, "Peak learning rate."),
    FLOAT("training.phases.dpo.beta", "0.1", 0, 100, "Strength of the preference."),
    NEEDED("training.distillation_init", "distillation", "Initialisation from a teacher (arXiv:2501.15570)."),
    BOOL("training.distillation_init.enabled", "false", "On or off."),
    ENUM("training.distillation_init.method", "ARWKV_style", "ARWKV_style", "Method."),
    TEXT("training.distillation_init.teacher", NULL, "The teacher."),
    INT("training.distillation_init.tokens", NULL, 1, COUNT_MAX, "Tokens."),

    NEEDED("byte_level", "byte-level encoder", "Bytes in patches instead of tokens (arXiv:2412.09871)."),
    BOOL("byte_level.enabled", "false", "On or off."),
    INT("byte_level.encoder_params", NULL, 1, COUNT_MAX, "Parameters of the encoder."),
    INT("byte_level.encoder_depth", "8", 1, 256, "Layers of the encoder."),
    ENUM("byte_level.patching", "entropy_threshold", "entropy_threshold", "Where a patch ends."),
    INT("byte_level.decoder_params", NULL, 1, COUNT_MAX, "Parameters of the decoder."),

    PLANNED("memory_budget_mb", "memory supervisor", "Memory of each part, in MB."),
    WORDS("memory_budget_mb._keys", NULL,
          "ternary_weights|moe_experts|embedding|span_bank|grammar|semantic_mem|episodic|guidelines|braid|activations|"
          "render_queue|evolution|runtime_os",
          64, "The parts."),
    INTS("memory_budget_mb._vals", NULL, 0, MB_MAX, 0, 64, "Their sizes, in the same order."),
    INT("memory_budget_mb.total", NULL, 0, MB_MAX, "Sum of _vals."),
    INT("memory_budget_mb.headroom_8gb", NULL, 0, MB_MAX, "Left on a machine with 8 GB."),
    INT("memory_budget_mb.growth_ceiling", NULL, 0, MB_MAX, "Most growth at run time."),
    INT("memory_budget_mb.max_with_growth", NULL, 0, MB_MAX, "total + growth_ceiling."),

    PLANNED("deployment", "supervisor", "How the model is served."),
    INT("deployment.batch_size", "1", 1, 65536, "Streams per pass."),
    INT("deployment.max_streams", "16", 1, 65536, "Most streams at once."),
    INT("deployment.per_stream_mb", "30", 1, MB_MAX, "Size of a stream."),
    WORDS("deployment.shared", NULL, "weights|span_bank|grammar|memory_seed|moe", 16, "What streams share."),
    WORDS("deployment.mmap", NULL, "weights|span_bank|grammar|memory_seed|moe", 16, "What is mapped from files."),
    FLOAT("deployment.cold_start_s", "2.5", 0, 1e6, "Longest start."),
    INT("deployment.watchdog_tick_ms", "20", 1, 1e9, "Interval of the watchdog."),
    INT("deployment.watchdog_max_overruns", "8", 0, 1e9, "Overruns before it acts."),
    BOOL("deployment.deterministic", "true", "The same input gives the same output."),
    BOOL("deployment.seed_controls_all", "true", "One seed fixes every random choice."),
    WORDS("deployment.platforms", NULL, "x86_64_avx2|x86_64_avx512|aarch64_neon|wasm_simd128|apple_silicon_amx|scalar",
          16, "Where it is to run."),

    ALWAYS("diagnostics", "What is measured while running."),
    BOOL("diagnostics.telemetry", "true", "Not read yet: a run always writes its log, and nothing leaves the machine."),
    INT("diagnostics.report_interval_tokens", "256", 1, 1e12, "Tokens between two reports."),
    WORDS("diagnostics.metrics", NULL,
          "surface_tps|neural_knot_tps|mean_span_length|span_acceptance_rate|certificate_failure_rate|rollback_count|"
          "queue_depth|loop_count_mean|memory_mb|evolution_events|grammar_violations_prevented|contrastive_eval_ratio|"
          "self_refinement_trigger_rate|episodic_case_hit_rate|moe_expert_load_balance|gd_alpha_mean|gd_beta_mean|"
          "ttt_loss_delta|xlstm_input_log_mean|xlstm_forget_mean|titans_alpha_mean|titans_eta_mean|titans_theta_mean|"
          "titans_gamma_mean|titans_surprise_mean|sk_flips_mean|sk_bit_balance",
          64, "What is reported; of those that are measured, into log.jsonl."),
    PLANNED("diagnostics.thresholds", "supervisor", "Limits that stop a run."),
    FLOAT("diagnostics.thresholds.min_span_accept", "0.7", 0, 1, "Least acceptance of spans."),
    FLOAT("diagnostics.thresholds.max_cert_fail", "0.05", 0, 1, "Most failing certificates."),
    FLOAT("diagnostics.thresholds.max_rollback", "0.02", 0, 1, "Most rollbacks."),
    FLOAT("diagnostics.thresholds.min_contrastive_benefit", "0.0", -1e6, 1e6, "Least benefit of a memory."),
    FLOAT("diagnostics.thresholds.max_moe_imbalance", "0.15", 0, 1e6,
          "Most imbalance of experts: (max - mean) / mean."),

    SHAPE("context_tiers", CHM_SHAPE_ITEMS, "Where context is kept, from near to far.", .planned = "memory plugins"),
    SECTION("context_tiers.*", "A tier."),
    ENUM("context_tiers.*.name", NULL,
         "recent_ring|braid_state|semantic_memory|ttt_compressed|span_trace|episodic_cases", "Name."),
    INT("context_tiers.*.tokens", NULL, 0, COUNT_MAX, "Tokens it holds."),
    INT("context_tiers.*.entries", NULL, 0, COUNT_MAX, "Entries it holds."),
    INT("context_tiers.*.mb", NULL, 0, MB_MAX, "Size."),

    PLANNED("multimodal", "encoder plugins", "Images and sound."),
    BOOL("multimodal.enabled", "true", "On or off."),
    WORDS("multimodal.modalities", NULL, "text|image|audio", 8, "What the model reads."),
    SECTION("multimodal.vision", "Encoder of images."),
    ENUM("multimodal.vision.type", "gated_deltanet_tiny", "gated_deltanet_tiny", "Kind."),
    INT("multimodal.vision.depth", "12", 1, 256, "Layers."),
    INT("multimodal.vision.hidden", "384", 1, 65536, "Width."),
    INT("multimodal.vision.patch", "16", 1, 1024, "Pixels of a patch's side."),
    INT("multimodal.vision.out", NULL, 1, 65536, "Width handed on: hidden_size."),
    ENUM("multimodal.vision.quant", "ternary", "ternary|int8|f32", "Format of its weights."),
    SECTION("multimodal.audio", "Encoder of sound."),
    ENUM("multimodal.audio.type", "gated_deltanet_audio_tiny", "gated_deltanet_audio_tiny", "Kind."),
    INT("multimodal.audio.depth", "6", 1, 256, "Layers."),
    INT("multimodal.audio.hidden", "256", 1, 65536, "Width."),
    INT("multimodal.audio.out", NULL, 1, 65536, "Width handed on: hidden_size."),
    ENUM("multimodal.audio.quant", "ternary", "ternary|int8|f32", "Format of its weights."),

    PLANNED("safety", "supervisor", "What is never allowed to happen."),
    WORDS("safety.format_guards", NULL, "json_strict|code_fence_closure|markdown_table_guard", 16,
          "Guards of formats."),
    BOOL("safety.memory_limit_enforced", "true", "The memory budget is a limit."),
    BOOL("safety.crash_only_allocator", "true", "Nothing is allocated while running."),
    BOOL("safety.user_facts_override_weak_memory", "true", "What the user says wins."),
    BOOL("safety.state_uncertainty_when_unsure", "true", "Say so when unsure."),

    ALWAYS("files", "Files that belong to the model, beside the weights."),
    TEXT("files.weights", NULL, "Weights (.b158)."),
    TEXT("files.moe", NULL, "Experts (.b158)."),
    TEXT("files.spans", NULL, "Span bank (.sfpack)."),
    TEXT("files.grammar", NULL, "Compiled grammars (.fstpack)."),
    TEXT("files.memory_seed", NULL, "First content of the memory (.seedpack)."),
    TEXT("files.tokenizer", NULL, "The tokenizer's vocabulary."),
    TEXT("files.evolution", NULL, "Everything learnt at run time."),

    ALWAYS("tokenizer", "How text becomes tokens."),
    TEXT("tokenizer.type", NULL, "A tokenizer plugin. Default: bytes up to a vocabulary of 258, else o200k."),

    SECTION("params", "Stated parameter counts; the computed ones are reported."),
    INT("params.base", NULL, 0, COUNT_MAX, "Without experts."),
    INT("params.moe_total", NULL, 0, COUNT_MAX, "Experts."),
    INT("params.physical", NULL, 0, COUNT_MAX, "All."),
    INT("params.effective_2loops", NULL, 0, COUNT_MAX, "Counted once per pass, two passes."),
    INT("params.effective_6loops", NULL, 0, COUNT_MAX, "Counted once per pass, six passes."),
    INT("params.active_per_token", NULL, 0, COUNT_MAX, "Read for one token."),
    INT("params.weight_mb", NULL, 0, MB_MAX, "Size of the weights."),
    INT("params.total_mb", NULL, 0, MB_MAX, "Size of everything."),

    SECTION("P3_ternary_compute", "Notes on ternary arithmetic; documentation."),
    TEXT("P3_ternary_compute._note", NULL, "What the section is."),
    TEXT("P3_ternary_compute.thesis", NULL, "What is claimed."),
    SHAPE("P3_ternary_compute.implemented_optimizations", CHM_SHAPE_MAP, "What is done.", .flags = 0),
    SHAPE("P3_ternary_compute.implemented_optimizations.*", CHM_SHAPE_DOCUMENT, "One of them.", .flags = 0),
    SHAPE("P3_ternary_compute.not_implemented", CHM_SHAPE_MAP, "What is not, and why.", .flags = 0),
    TEXT("P3_ternary_compute.not_implemented.*", NULL, "Why."),
    SHAPE("P3_ternary_compute.realistic_performance", CHM_SHAPE_DOCUMENT, "What to expect.", .flags = 0),
    SHAPE("P3_ternary_compute.§_paradigm", CHM_SHAPE_SOURCES, "Papers.", .flags = 0),
};

const struct chm_schema_row *chm_schema(size_t *count) {
    *count = CHM_ARRAY_COUNT(rows);
    return rows;
}

/* The name of `row` when it stands directly under `where`, else NULL. */
static const char *name_under(const struct chm_schema_row *row, const char *where, size_t length) {
    const char *name = row->path;
    if (length > 0) {
        if (name[0] != where[0] || strncmp(name, where, length) != 0 || name[length] != '.') return NULL;
        name += length + 1;
    }
    return strchr(name, '.') ? NULL : name;
}

const struct chm_schema_row *chm_schema_key(const char *where, const char *key) {
    static const struct chm_schema_row sources = SHAPE("§", CHM_SHAPE_SOURCES, "Papers this rests on.", .flags = 0);
    if (strcmp(key, sources.path) == 0) return &sources;
    const struct chm_schema_row *any = NULL;
    size_t length = strlen(where);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(rows); i++) {
        const char *name = name_under(&rows[i], where, length);
        if (!name) continue;
        if (strcmp(name, key) == 0 && strcmp(name, "*") != 0) return &rows[i];
        if (strcmp(name, "*") == 0) any = &rows[i];
    }
    return any;
}

int chm_schema_check_section(const char *section, enum chm_kind kind) {
    char where[256] = "";
    const char *dot = strrchr(section, '.'), *of = chm_kind_name(kind);
    if (dot) snprintf(where, sizeof where, "%.*s", (int)(dot - section), section);
    const struct chm_schema_row *row = chm_schema_key(where, dot ? dot + 1 : section);
    if (!row || (row->planned && strncmp(row->planned, of, strlen(of)) == 0)) return CHM_OK;
    return chm_fail(CHM_E_PLUGIN, "'%.80s' is a key of the host's in every card: %s's section needs another name",
                    section, chm_kind_one(kind));
}

const struct chm_schema_row *chm_schema_next(const char *where, size_t *cursor) {
    size_t length = strlen(where);
    while (*cursor < CHM_ARRAY_COUNT(rows)) {
        const struct chm_schema_row *row = &rows[(*cursor)++];
        const char *name = name_under(row, where, length);
        if (name && strcmp(name, "*") != 0) return row;
    }
    return NULL;
}

const char *chm_schema_name(const struct chm_schema_row *row) {
    const char *dot = strrchr(row->path, '.');
    return dot ? dot + 1 : row->path;
}

static const struct chm_planned_layer planned_layers[] = {
    {"gd", "GD gated_deltanet"},
    {"xlstm", "XM xlstm_m"},
    {"titans", "TM titans_mac"},
    {"sk", "SK tsp_span_knot tsp_knot"},
    {"attn", "AT attention"},
    {"mlp", "MLP"},
    {"moe", "MOE"},
};

const struct chm_planned_layer *chm_planned_layers(size_t *count) {
    *count = CHM_ARRAY_COUNT(planned_layers);
    return planned_layers;
}

const char *const *chm_planned_tokenizers(void) {
    static const char *const names[] = {"bytes", "o200k", "sentencepiece", NULL};
    return names;
}

const char *const *chm_reserved_variables(void) {
    static const char *const names[] = {"BACKEND", "REQUIRE_BACKEND", "PLUGIN_PATH", "THREADS", "CONFIG",
                                        "LOG",     "SHAKESPEARE",     "CPU_MASK",    NULL};
    return names;
}
