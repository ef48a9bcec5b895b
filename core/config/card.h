/*
 * card.h: model cards. JSON card, then ini overlays, then CHIMERA_* variables, then --set, checked against one schema
 * and the option tables of the loaded plugins; every value remembers where it came from.
 */
#ifndef CHM_CARD_H
#define CHM_CARD_H

#include "plugin/registry.h"

typedef struct chm_card chm_card;

enum { CHM_MAX_LAYERS = 256 };

enum chm_quant_method { CHM_QUANT_BITNET, CHM_QUANT_NONE };
enum chm_embedding { CHM_EMBED_TERNARY, CHM_EMBED_INT8, CHM_EMBED_F32 };
enum chm_schedule {
    CHM_SCHEDULE_COSINE,
    CHM_SCHEDULE_WSD,
    CHM_SCHEDULE_LINEAR,
    CHM_SCHEDULE_TWO_STAGE,
    CHM_SCHEDULE_CONSTANT
};

/* looping: layers first..last run several times per token */
struct chm_loop_config {
    bool enabled;
    int64_t first, last;
    int64_t least, most, passes; /* loop_range, loop_default */
    double exit_threshold;       /* relative change under which a row stops */
    bool stochastic;             /* training draws its passes per sequence, Poisson of `mean` */
    double mean;
    bool truncate; /* no gradient through the first half of the passes but the first */
    double bound;  /* every decay is below it; 0: below 1 */
    bool per_pass; /* every pass has a state of its own, instead of reading what the first wrote */
    bool euler;    /* input gain by Euler's rule instead of the zero-order hold */
};

/* What the runtime reads of a resolved card; chm_card_get() has the rest. Strings live as long as the card. */
typedef struct chm_model_config {
    int64_t width, ffn_width, layers, heads, head_dim, vocab;
    double norm_eps, init_range;
    bool norm_before_linear, tie_embeddings;
    enum chm_quant_method quant;
    int64_t weight_group, activation_block; /* 128, 64 */
    enum chm_embedding embedding;           /* quantization.embedding: ternary | int8 | f32 */
    int32_t encoding;                       /* quantization.encoding: enum chm_encoding, of ternary codes in files */
    int64_t hgf_rank;                       /* quantization.hgf_correction.rank; 0: off */
    double hgf_gate;
    bool hgf[CHM_MAX_LAYERS];          /* layers whose ternary linears are corrected */
    bool sparse;                       /* quantization.sherry_mode.enabled: of four weights one is 0 */
    const char *mixer[CHM_MAX_LAYERS]; /* plugin name of each layer, aliases resolved: "gd" */
    const char *ffn[CHM_MAX_LAYERS];   /* "mlp" (or "moe") */
    bool in_loop[CHM_MAX_LAYERS];
    struct chm_loop_config loop;
    bool efla[CHM_MAX_LAYERS];  /* named by efla.target_layers, and efla is on */
    int64_t effective_depth;    /* residual writes: layers with those in the loop counted loop_default times */
    const char *tokenizer;      /* tokenizer.type: "bytes" */
    const char *tokenizer_file; /* files.tokenizer, or NULL */
    const char *weights_file;   /* files.weights, or NULL */
    const char *experts_file;   /* files.moe, or NULL */
    int32_t eos, pad;           /* token_ids */
} chm_model_config;

struct chm_mezo_config {
    double epsilon, ternary_epsilon, revive;
    int64_t samples; /* 0: another optimiser */
    bool signs;    /* directions of plus and minus one */
    bool unpacked; /* nothing but f32 parameters */
    bool skip_zeros;
};

typedef struct chm_train_config { /* training.phases[0], kind pretrain */
    const char *name;
    int64_t tokens;       /* default budget */
    int64_t seq_len;      /* rows of one segment */
    int64_t batch_tokens; /* rows of one optimiser step */
    int64_t micro_tokens; /* most rows run at once (gradients accumulate); 0: chosen */
    int64_t carry;        /* segments a stream reads in a row with its state carried, before it jumps; 1: none */
    double lr, min_lr_ratio, weight_decay, grad_clip, beta1, beta2, adam_eps;
    const struct chm_plugin *optimiser; /* NULL: AdamW, or MeZO where mezo.samples > 0 */
    struct chm_mezo_config mezo;
    bool deep_zero_mask;         /* training.deep_zero_mask */
    bool gradient_checkpointing; /* training.gradient_checkpointing */
    enum chm_schedule schedule;
    int64_t warmup_steps;
    double decay_fraction;                              /* wsd: last part of the run */
    double stage_split, stage2_lr, stage2_weight_decay; /* bitnet_two_stage */
    uint64_t seed;
    int64_t report_interval_tokens; /* diagnostics.report_interval_tokens */
    bool line_documents;            /* training.documents = line */
    bool answers_only;              /* training.loss_on = answers */
    const char *text_field;         /* training.text_field */
    double holdout;                 /* training.holdout; 0: none */
} chm_train_config;

/* One way a value was given. */
struct chm_override {
    const char *key; /* "gated_deltanet.chunk_size", alias sections ("gd.chunk_size") and phases by name
                        ("training.phases.pretrain.lr" or "training.pretrain.lr") accepted */
    const char *value;
    const char *origin; /* "--set", "CHIMERA_...", "file.ini:3" */
};

struct chm_card_options {
    const chm_registry *registry; /* never NULL; must outlive the card */
    const char *const *ini;       /* overlay files, in order */
    size_t ini_count;
    const char *const *set; /* "a.b=c" */
    size_t set_count;
    const struct chm_override *override; /* after those, with a place of their own for messages */
    size_t override_count;
    bool read_environment;
    bool one_layer; /* for a layer alone: hidden_size need not be num_heads x head_dim */
    bool trained;   /* of a model that is there: an optimiser that made it may be missing */
};

/* Loads, resolves and checks. `name`: a path, or the name of a card that comes with the library. On failure the
 * sentence names file:line, the key, the accepted set and the nearest name. */
int chm_card_load(const char *name, const struct chm_card_options *options, chm_card **out);
/* The same from memory; `name` stands for the path in messages. Used for the card inside a .b158 and by the fuzzer. */
int chm_card_parse(const char *name, const char *text, size_t bytes, const struct chm_card_options *options,
                   chm_card **out);
void chm_card_destroy(chm_card *card);
/* What a card without anything of its own would say of the CHIMERA_* variables: one sentence a line, "" when nothing is
 * wrong; the caller's to free. */
int chm_card_environment(const chm_registry *registry, char **problems);

const char *chm_card_name(const chm_card *card); /* its path, or what stood for that */
const chm_model_config *chm_card_model(const chm_card *card);
const chm_train_config *chm_card_train(const chm_card *card);
/* A resolved value as JSON text ("350M" as 350000000), and where it came from ("card.json:41", "default", "--set");
 * NULL when unset, and for a section. Names as in chm_override; `origin` may be NULL. */
const char *chm_card_get(const chm_card *card, const char *key, const char **origin);
/* Fills a plugin's instance from its section: defaults, then the card's values. */
int chm_card_plugin_options(const chm_card *card, const struct chm_plugin *plugin, void *instance, chm_arena *arena);
/* The same for the mixer of a layer, which the card's section efla may name: then its option of that name is on. */
int chm_card_mixer_options(const chm_card *card, int layer, const struct chm_plugin *plugin, void *instance,
                           chm_arena *arena);
/* The resolved card as JSON, keys in the card's order, overrides applied: what a model file carries. Caller frees. */
char *chm_card_json(const chm_card *card);
/* Sections that were checked but whose module is not built: "name: why", NULL-terminated. */
const char *const *chm_card_unbuilt(const chm_card *card);
/* Names of what the card gives and nothing reads, "modes, context_tiers"; NULL: nothing. */
const char *chm_card_unused(const chm_card *card);
/* The same as one line of the log, where there is something to say. */
void chm_card_say_unused(const chm_card *card);
/* Refuses a card that switches on what is not built and would change the numbers of training or inference. */
int chm_card_buildable(const chm_card *card);
/* Numbers of diagnostics.metrics that are means over what layers show while they train: the metric, the tap (chm_tap()
 * of tensor.h), and whether the tap shows logarithms of what is meant. */
#define CHM_TAP_METRICS(METRIC)                                                                                        \
    METRIC(gd_alpha_mean, "gd.log_alpha", true)                                                                        \
    METRIC(gd_beta_mean, "gd.beta", false)                                                                             \
    METRIC(xlstm_input_log_mean, "xlstm.input", false)                                                                 \
    METRIC(xlstm_forget_mean, "xlstm.forget", true)                                                                    \
    METRIC(titans_alpha_mean, "titans.alpha", false)                                                                   \
    METRIC(titans_eta_mean, "titans.eta", false)                                                                       \
    METRIC(titans_theta_mean, "titans.theta", false)                                                                   \
    METRIC(titans_gamma_mean, "titans.log_gamma", true)                                                                \
    METRIC(titans_surprise_mean, "titans.surprise", false)                                                             \
    METRIC(sk_flips_mean, "sk.flips", false)                                                                           \
    METRIC(sk_bit_balance, "sk.balance", false)

/* Whether diagnostics.metrics asks for that number. */
bool chm_card_wants_metric(const chm_card *card, const char *name);
/* Those of diagnostics.metrics that are measured, separated by '|'. */
extern const char chm_measured_metrics[];
/* Every value in the card's order, as chm_card_get() has it, lists as one; stops at the first non-zero and returns it.
 */
typedef int (*chm_card_visit)(void *user, const char *key, const char *value, const char *origin);
int chm_card_each(const chm_card *card, chm_card_visit visit, void *user);
/* "key = value  origin" for every value, card order, into a string (chimera check --resolved). */
int chm_card_resolved(const chm_card *card, chm_string *out);

#endif
