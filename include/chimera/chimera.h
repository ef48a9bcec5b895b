/*
 * chimera.h: embed Chimera. Open a runtime, check cards, train, open models, score, generate; the `chimera` command is
 * written with nothing else.
 *
 * Ownership: what a *_create or *_open gives is yours to *_destroy (NULL is fine). Strings handed out stay the
 * library's and live as long as the object they came from, unless a function says "free with chm_text_free".
 *
 * Errors: functions return enum chm_status (also the exit code of the command); chm_error() has this thread's sentence.
 * Threads: a runtime and what was made from it is used by one thread at a time; it runs threads of its own.
 */
#ifndef CHIMERA_CHIMERA_H
#define CHIMERA_CHIMERA_H

#include <chimera/tensor.h> /* enum chm_status */
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) && !defined(CHM_PUBLIC)
#define CHM_PUBLIC __attribute__((visibility("default")))
#endif

/* The last failure's sentence of this thread, "" when there was none. Several problems are separated by newlines. */
CHM_PUBLIC const char *chm_error(void);
CHM_PUBLIC const char *chm_version(void); /* "0.1.0" */
CHM_PUBLIC uint32_t chm_plugin_abi(void); /* CHM_ABI of plugin.h, as this library was built */

/* Format of a table or report: "text", "json", "csv" or "md". */
typedef enum chm_output { CHM_OUTPUT_TEXT, CHM_OUTPUT_JSON, CHM_OUTPUT_CSV, CHM_OUTPUT_MD } chm_output;

/* ---- runtime: plugins, kernels, threads -------------------------------------------------------------------------- */

typedef struct chm_runtime chm_runtime;
typedef struct chm_runtime_options {
    uint32_t size;           /* sizeof(chm_runtime_options) */
    int32_t threads;         /* 1..256; 0: CHIMERA_THREADS, else the CPUs this process may use */
    const char *plugin_path; /* colon-separated absolute directories, searched first; NULL: none */
    const char *backend;     /* force one kernel backend; NULL: CHIMERA_BACKEND, else the best of each slot */
    bool require_backend;    /* refuse when `backend` leaves an inference slot to another */
    int32_t verbosity;       /* -1 quiet, 0, 1 */
    bool reports_only;       /* made even where no kernels can be chosen: chm_doctor, chm_plugins_*, chm_check */
    /* gets what would go to stderr, a line without its newline; NULL: stderr. Of the last runtime that was created */
    void (*log)(const char *line);
    const char *cpu_mask; /* CPU features to do without, "avx512,avx_vnni" or "all": plays an older machine; or NULL */
} chm_runtime_options;
CHM_PUBLIC int chm_runtime_create(const chm_runtime_options *options, chm_runtime **out);
CHM_PUBLIC void chm_runtime_destroy(chm_runtime *r);
CHM_PUBLIC int chm_runtime_threads(const chm_runtime *r);

/* Reports write to `out`. */
CHM_PUBLIC int chm_doctor(chm_runtime *r, chm_output format, FILE *out);
CHM_PUBLIC int chm_plugins_list(chm_runtime *r, const char *kind /* NULL: all */, chm_output format, FILE *out);
CHM_PUBLIC int chm_plugins_show(chm_runtime *r, const char *name, chm_output format, FILE *out);
/* May a new plugin have this name, and a section of that name in cards? */
CHM_PUBLIC int chm_plugins_check_name(chm_runtime *r, const char *name);

/* ---- cards ---------------------------------------------------------------------------------------------------------
 */

/* How a card is resolved: card, then ini files in order, then CHIMERA_* variables, then sets. */
typedef struct chm_overlay {
    uint32_t size;
    uint32_t ini_count, set_count;
    uint32_t no_environment; /* 1: leave CHIMERA_* alone */
    const char *const *ini;
    const char *const *set; /* "section.key=value" */
} chm_overlay;
/* Wherever a card is asked for: its path, or the name of one that comes with the library ("chimera-nano").
 * Checks a card: the verdict, the layer table, parameters and bytes per part, what is checked but not built.
 * resolved: every value with its origin too. A refused card: CHM_E_CONFIG. */
CHM_PUBLIC int chm_check(chm_runtime *r, const char *card, const chm_overlay *overlay, bool resolved, chm_output format,
                         FILE *out);
/* Writes an untrained model, and of one with experts their file beside it. Takes the memory that the files take. */
CHM_PUBLIC int chm_init_model(chm_runtime *r, const char *card_path, const chm_overlay *overlay, uint64_t seed,
                              const char *path);
/* What the card calls its model: files.weights; CHM_E_CONFIG where it says nothing. Free with chm_text_free. */
CHM_PUBLIC int chm_weights_name(chm_runtime *r, const char *card, const chm_overlay *overlay, char **out);

/* ---- tokenizers ----------------------------------------------------------------------------------------------------
 */

typedef struct chm_tokenizer chm_tokenizer;
/* A tokenizer by itself. source: a card, a .b158 model, a tokenizer's own file (a sentencepiece model, a rank file), or
 * the name of one that has no file ("bytes"). type: the plugin that reads the file; NULL: by its first bytes. */
CHM_PUBLIC int chm_tokenizer_create(chm_runtime *r, const char *source, const char *type, const chm_overlay *overlay,
                                    chm_tokenizer **out);
CHM_PUBLIC void chm_tokenizer_destroy(chm_tokenizer *t);
/* Encodes what `in` holds up to its end, in constant memory; `name` stands for it in messages. specials: their names in
 * the text become their ids; else all is text. emit gets the ids in pieces; non-zero stops (CHM_E_INTERRUPTED). */
CHM_PUBLIC int chm_tokenizer_encode(const chm_tokenizer *t, FILE *in, const char *name, bool specials,
                                    int (*emit)(void *user, const int32_t *ids, int64_t n), void *user);
/* The bytes of n ids, token by token. first: these begin a text. specials: their names too, else they are nothing. */
CHM_PUBLIC int chm_tokenizer_decode(const chm_tokenizer *t, const int32_t *ids, int64_t n, bool first, bool specials,
                                    int (*emit)(void *user, const void *text, size_t bytes), void *user);
/* Kind, hash, vocabulary, specials, and the bytes per token of `count` files. csv: the files, or without any the
 * specials. */
CHM_PUBLIC int chm_tokenizer_show(const chm_tokenizer *t, const char *const *data, uint32_t count, chm_output format,
                                  FILE *out);
typedef struct chm_tokenizer_train_options {
    uint32_t size, data_count;
    const char *const *data; /* files of text, a sentence a line */
    const char *out;         /* the file to write */
    const char *type;        /* NULL: "sentencepiece" */
    const char *method;      /* "bpe", "unigram"; NULL: the plugin's choice */
    int32_t vocab;           /* ids, specials included */
} chm_tokenizer_train_options;
/* The same text and options give the same file. */
CHM_PUBLIC int chm_tokenizer_train(chm_runtime *r, const chm_tokenizer_train_options *options);

/* ---- training ------------------------------------------------------------------------------------------------------
 */

typedef struct chm_progress {
    uint32_t size;
    int64_t step, tokens, total_tokens;
    double loss;          /* nats per token, mean since the last report */
    double bits_per_byte; /* of the same */
    double learning_rate, gradient_norm;
    double tokens_per_second, seconds, eta_seconds;
    double validation_bits_per_byte; /* NaN between validations */
    const char *message; /* a line for the log instead of numbers (forecast, calibration, checkpoint); or NULL */
} chm_progress;

/* The longest run; the card's phases and the command accept the same. */
#define CHM_TRAIN_TOKENS_MAX 1e18

typedef struct chm_train_options {
    uint32_t size;
    uint32_t data_count, validation_count;
    const char *card;
    const chm_overlay *overlay;
    const char *const *data; /* files, directories and patterns (docs/reference.md) */
    const char *const
        *validation;    /* the same, to score; none: the card's training.holdout of the data, if that is set */
    const char *out;    /* run directory: model.b158, checkpoint, log.jsonl, card.json */
    const char *shards; /* directory that keeps the data as tokens; NULL: the run directory, if they are many */
    double seconds;     /* wall budget, calibrated and frozen into tokens; 0: none */
    int64_t tokens;     /* 0: the card's */
    bool resume;
    bool dry_run;              /* forecast only */
    double checkpoint_seconds; /* interval; 0: 60 */
    void (*progress)(void *user, const chm_progress *p);
    void *user;
    const volatile int *stop; /* becomes non-zero to stop after the step and save; or NULL */
} chm_train_options;
typedef struct chm_train_result {
    uint32_t size;
    int64_t steps, tokens, parameters;
    double loss, seconds, validation_bits_per_byte; /* NaN: no validation */
    bool finished;                                  /* false: stopped before its budget */
    char model[4096];                               /* path of the packed model */
} chm_train_result;
/* CHM_E_INTERRUPTED when stopped by `stop` with everything saved. */
CHM_PUBLIC int chm_train(chm_runtime *r, const chm_train_options *options, chm_train_result *result);

/* ---- studies: variants of a card against each other ----------------------------------------------------------------
 */

typedef enum chm_cell_state {
    CHM_CELL_WAITING,
    CHM_CELL_RUNNING,
    CHM_CELL_FINISHED,
    CHM_CELL_DIVERGED, /* it ran to an end that is no model: counted, not dropped */
    CHM_CELL_FAILED,   /* it could not run; the next call tries again */
} chm_cell_state;
typedef struct chm_ablate_cell_progress {
    const char *name; /* its run directory is DIR/cells/NAME */
    chm_cell_state state;
    int64_t tokens, total_tokens; /* total 0: not known yet */
    double bits_per_byte;         /* of training, lately; of a finished cell: of the first text it is scored on */
    double tokens_per_second;
} chm_ablate_cell_progress;
typedef struct chm_ablate_progress {
    uint32_t size;
    int32_t cells, changed; /* changed: the cell that began or ended; -1: time passed */
    const chm_ablate_cell_progress *cell;
    double seconds;
    const char *message; /* a line instead, or NULL */
} chm_ablate_progress;
typedef struct chm_ablate_options {
    uint32_t size;
    uint32_t data_count, validation_count, set_count, command_count;
    const char *study; /* an ini file (docs/reference.md), or the directory of a study that was begun */
    const char *out;   /* directory of the study; NULL: run/NAME of NAME.ini */
    const char *const *data, *const *validation; /* in place of the study's */
    const char *const *set;                      /* "key=value" of [study]; a budget takes the place of another */
    /* the words that run one cell when DIR, --cell, N, --threads and T are put behind them */
    const char *const *command;
    bool dry_run; /* check everything and show the cells */
    bool slurm;   /* write DIR/slurm.sh, a job array, and run nothing */
    void (*progress)(void *user, const chm_ablate_progress *p);
    void *user;
    const volatile int *stop; /* becomes non-zero to stop all cells with their checkpoints saved; or NULL */
} chm_ablate_options;
/* Checks the study and everything in it, runs its cells as processes, as many at once as the runtime has threads,
 * and reports: DIR/results.csv, report.md and report.html; `out` gets the comparison. Finished cells are never run
 * again, and unfinished ones go on from their checkpoints. CHM_E_VERDICT: cells failed. */
CHM_PUBLIC int chm_ablate(chm_runtime *r, const chm_ablate_options *options, chm_output format, FILE *out);
/* One cell of a study that was begun, in this process. */
CHM_PUBLIC int chm_ablate_cell(chm_runtime *r, const char *directory, int64_t cell,
                               void (*progress)(void *user, const chm_progress *p), void *user,
                               const volatile int *stop);
/* The reports of a study, finished or not, from what its cells left on disk. */
CHM_PUBLIC int chm_report(const char *directory, chm_output format, FILE *out);
/* The commit this library was built from, "-dirty" behind it where files were changed; "unknown" outside of git. */
CHM_PUBLIC const char *chm_commit(void);

/* ---- models --------------------------------------------------------------------------------------------------------
 */

typedef struct chm_model chm_model;
CHM_PUBLIC int chm_open(chm_runtime *r, const char *path, const chm_overlay *overlay, bool verify, chm_model **out);
CHM_PUBLIC void chm_close(chm_model *m);
CHM_PUBLIC int chm_inspect(chm_runtime *r, const char *path, bool verify, chm_output format, FILE *out);

/* A model file in another form. */
typedef struct chm_convert_options {
    uint32_t size;
    bool lossy;           /* take what does not fit as near as it goes, instead of refusing it by name */
    const char *encoding; /* of ternary codes in a .b158: "t2", "t5", "sherry"; NULL: as they are (new ones: t5) */
    const char *card;     /* the card that says what the tensors of a plain file are; NULL: the file says it */
    /* over that card, or over the one in a .b158: all but how its weights were trained (quantization), of which
     * hgf_correction may be turned off */
    const chm_overlay *overlay;
    /* how another's checkpoint has its ternary matrices: "autobitlinear", "bitlinear" (packed; weight_scale multiplies,
     * divides), "absmean" (master weights); NULL: it is none */
    const char *import;
} chm_convert_options;
typedef struct chm_convert_result {
    uint32_t size;
    int32_t parameters;
    int64_t weights;
    int64_t fours, unfit, changed; /* into sherry: groups of four, those without exactly one zero, weights changed */
    int32_t quantised;             /* parameters that were not on the grid of their form */
    int32_t rescaled;              /* whose stored scales did not fit: others were found, for the same weights */
    double rms_error;              /* of the weights of those quantised, relative to the rms of these */
    int32_t left_out;              /* parameters of corrections that the overrides turned off */
} chm_convert_result;
/* `in` is a .b158 or any other safetensors file, `out` is called .b158 or .safetensors: plain F32 tensors, by the names
 * of the parameters, with the scales of ternary and int8 ones beside them so that all comes back to the byte. Between
 * encodings no byte is lost either, but for sherry, which needs one zero in every four weights. Atomic. */
CHM_PUBLIC int chm_convert(chm_runtime *r, const char *in, const char *out, const chm_convert_options *options,
                           chm_convert_result *result);
CHM_PUBLIC int32_t chm_vocab(const chm_model *m);
CHM_PUBLIC int32_t chm_end_of_text(const chm_model *m);
/* Text <-> tokens. encode: writes at most cap ids, returns how many there are, < 0 on failure. decode: bytes of one id,
 * returns how many (0 for specials), < 0 for no such id. */
CHM_PUBLIC int64_t chm_encode(const chm_model *m, const void *text, size_t bytes, int32_t *ids, size_t cap);
CHM_PUBLIC int64_t chm_decode(const chm_model *m, int32_t id, void *out, size_t cap);

/* A stream: a position in some text, and a state of fixed size. */
typedef struct chm_stream chm_stream;
CHM_PUBLIC int chm_stream_open(chm_runtime *r, chm_model *m, chm_stream **out);
CHM_PUBLIC void chm_stream_close(chm_stream *s);
CHM_PUBLIC void chm_stream_restart(chm_stream *s);                     /* a new document */
CHM_PUBLIC int chm_stream_fork(const chm_stream *s, chm_stream **out); /* independent from here on */
CHM_PUBLIC int64_t chm_stream_position(const chm_stream *s);
CHM_PUBLIC size_t chm_stream_bytes(const chm_stream *s);        /* of its state */
CHM_PUBLIC size_t chm_stream_stated_bytes(const chm_stream *s); /* what the card says they are; 0: it says nothing */
/* To a file and back: state, position and the logits of the last token, in one size for each model, checksummed and
 * bound to the model's file, weights and card. A loaded stream goes on as the saved one would have, to the byte.
 * Atomic: what was at `path` stays until the new file is whole. Never over the model's own files. */
CHM_PUBLIC int chm_stream_save(const chm_stream *s, const char *path);
CHM_PUBLIC int chm_stream_load(chm_runtime *r, chm_model *m, const char *path, chm_stream **out);
CHM_PUBLIC int chm_stream_copy_file(const char *from, const char *to); /* of a saved stream, once found whole */
CHM_PUBLIC int chm_stream_show(const char *path, chm_output format, FILE *out);
/* Reads n tokens; logits of the last one (chm_vocab floats, the stream's until its next call) unless NULL. Splitting a
 * text over calls in any way gives the same bytes. */
CHM_PUBLIC int chm_stream_feed(chm_stream *s, const int32_t *ids, int64_t n, const float **logits);
/* Reads text: an end-of-text mark where the stream stands at 0 and the tokenizer has one, then its tokens. */
CHM_PUBLIC int chm_stream_read(chm_stream *s, const void *text, size_t bytes);
/* As feed, but logits of all n rows into the caller's n * chm_vocab floats. */
CHM_PUBLIC int chm_stream_feed_all(chm_stream *s, const int32_t *ids, int64_t n, float *logits);
/* Tries n rows (1..4096) of a tree without moving the stream: parent[i] is an earlier row or -1 (the stream). Logits of
 * every row as feed_all. chm_stream_accept then advances along a path of those rows; feeding instead forgets them. */
CHM_PUBLIC int chm_stream_try(chm_stream *s, const int32_t *ids, const int32_t *parent, int64_t n, float *logits);
CHM_PUBLIC int chm_stream_accept(chm_stream *s, const int32_t *path, int64_t n);

/* From the next pass on only these n tokens (any order) may come: their logits have the same bytes as ever, all others
 * are -infinity, and only that part of the output matrix is read. chm_generate draws none but them; it may be called
 * from its `emit`. n 0: all of the vocabulary again. A fork has the list of its stream, a saved one has none. */
CHM_PUBLIC int chm_stream_allow(chm_stream *s, const int32_t *ids, int64_t n);

/* What the members below may be; the card's generation section and the command accept the same. */
#define CHM_TEMPERATURE_MAX    100
#define CHM_TOP_K_MAX          (1 << 24)
#define CHM_TOP_P_MIN          1e-9
#define CHM_REPEAT_PENALTY_MIN 1e-3
#define CHM_REPEAT_PENALTY_MAX 100
#define CHM_REPEAT_LAST_MAX    (1 << 20)
#define CHM_NEW_TOKENS_MAX     1e12

typedef struct chm_sampling {
    uint32_t size;
    int32_t top_k;         /* 0: off */
    double temperature;    /* 0: the most likely token, lowest id on ties */
    double top_p;          /* 1: off */
    double min_p;          /* 0: off; arXiv:2407.01082 */
    double repeat_penalty; /* 1: off; arXiv:1909.05858 */
    int32_t repeat_last;   /* tokens it looks back on */
    uint64_t seed;
} chm_sampling;
/* The card's generation section. */
CHM_PUBLIC void chm_sampling_defaults(const chm_model *m, chm_sampling *out);
typedef struct chm_generate_result {
    uint32_t size;
    int64_t prompt_tokens, tokens;
    double prefill_seconds, decode_seconds;
    bool ended; /* the model ended the text itself */
} chm_generate_result;
/* Feeds the prompt (after an end-of-text mark where the stream stands at 0), then samples up to n tokens (0: the card's
 * generation.max_new_tokens) and stops at end of text. The stream reads what it wrote. emit gets whole
 * characters, as they become complete, and the rest at the end; and no bytes (0) now and then while a long prompt is
 * read. Non-zero from it stops, there and then. sampling NULL: the card's. The same seed gives the same text on every
 * machine. */
CHM_PUBLIC int chm_generate(chm_stream *s, const void *prompt, size_t bytes, int64_t n, const chm_sampling *sampling,
                            int (*emit)(void *user, const void *text, size_t bytes), void *user,
                            chm_generate_result *result);

/* ---- measuring -----------------------------------------------------------------------------------------------------
 */

typedef struct chm_eval_options {
    uint32_t size;
    uint32_t data_count;
    const char *const *data; /* files, directories and patterns; each document is read from a fresh state */
    const char *logits;      /* path: raw f32 [tokens, vocab] of every prediction; NULL: none */
    bool holdout;            /* only the documents that the card's training.holdout keeps from training */
    int64_t split;           /* rows per pass, 1..; 0: the default. The result does not depend on it */
    int64_t limit_bytes;     /* 0: everything */
    void (*progress)(void *user, int64_t done, int64_t total);
    void *user;
    const volatile int *stop;
} chm_eval_options;
/* Answers of one class of length: the bytes of their document before the '='. */
typedef struct chm_eval_length {
    int64_t answers, right;
    double nats;
} chm_eval_length;
enum { CHM_EVAL_LENGTHS = 24 };
typedef struct chm_eval_result {
    uint32_t size;
    double bits_per_byte, nats; /* of what counts, by training.loss_on of the card; nats: summed */
    int64_t bytes, tokens, documents;
    int64_t answers, right; /* training.loss_on = "answers": how many; where the likeliest token was the answer */
    chm_eval_length length[CHM_EVAL_LENGTHS]; /* [k]: lengths up to 2^k, over 2^(k-1); the last: all longer ones */
    double seconds, tokens_per_second;
    double loop_count_mean; /* passes of the loop a token took; 0: the model has none */
} chm_eval_result;
CHM_PUBLIC int chm_eval(chm_runtime *r, chm_model *m, const chm_eval_options *options, chm_eval_result *result);
/* The kernels that inference runs, as "slot=backend ..." ; free with chm_text_free. */
CHM_PUBLIC char *chm_kernels_used(chm_runtime *r);
/* Those that only training runs. */
CHM_PUBLIC char *chm_kernels_training(chm_runtime *r);
CHM_PUBLIC void chm_text_free(char *text);

/* A model and the runtime to measure it in: another backend is another runtime, with a model opened in it. */
typedef struct chm_bench_subject {
    chm_runtime *runtime;
    chm_model *model;
} chm_bench_subject;
typedef struct chm_bench_options {
    uint32_t size;
    int32_t repeats;                       /* 0: 5 */
    int64_t prefill_tokens, decode_tokens; /* 0: 256, 64 */
    int32_t streams;                       /* most in one pass, 1..32; 0: 32 */
    const char *compare;                   /* a report in JSON to set this one beside; NULL: none */
} chm_bench_options;
/* Every kind of work once in every repeat, so that what the machine does meanwhile meets all of them: a prompt,
 * decoding with 1, 2 and 4 passes of the loop, several streams in one pass. Tokens a second (mean, deviation), bytes a
 * token reads, the share of the read bandwidth and of the ternary kernel's peak, which are measured in the same run;
 * and what the first model's card declares beside what was measured. */
CHM_PUBLIC int chm_bench(const chm_bench_subject *subject, uint32_t subjects, const chm_bench_options *options,
                         chm_output format, FILE *out);

/* ---- synthetic tasks ------------------------------------------------------------------------------------------------
 */

typedef enum chm_task { CHM_TASK_MQAR, CHM_TASK_PARITY, CHM_TASK_MAJORITY } chm_task;
#define CHM_TASK_DOCUMENTS_MAX 1000000000
enum { CHM_TASK_LENGTH_MAX = 1 << 18, CHM_TASK_ALPHABET = 26 };
typedef struct chm_task_options {
    uint32_t size;
    chm_task task;
    const char *out; /* a document a line; the byte behind each '=' is an answer */
    uint64_t seed;
    int64_t documents;
    int64_t least, most; /* length of a document, drawn evenly: bits, or the bindings of mqar */
    /* mqar */
    double rebound;   /* share of the bindings whose key was bound before, rounded down */
    int64_t queries;  /* of a document */
    int64_t alphabet; /* keys, and as many values */
    const volatile int *stop;
} chm_task_options;
/* Document i is a function of the other options, the seed and i. The tasks are described in docs/reference.md. */
CHM_PUBLIC int chm_task_write(const chm_task_options *options);

/* ---- one layer alone ------------------------------------------------------------------------------------------------
 */

typedef struct chm_layer_options {
    uint32_t size;
    const char *plugin;         /* "gd" */
    const chm_overlay *overlay; /* num_heads, head_dim, quantization.method and the plugin's own options */
    const char *in, *out;       /* safetensors; names in docs/reference.md */
    bool grad;                  /* dx, parameter and initial-state gradients */
    bool step;                  /* run step, else chunk */
    double tolerance;           /* layer_test: rms error / rms; 0: the default of each test */
    int64_t rows;               /* layer_test: 0: 77 */
    int64_t trees;              /* layer_test: random trees of each test of trees, 1..1000000; 0: 16 */
    const char *only;           /* layer_test: "split", "tree", ...: that group of tests; NULL: all */
} chm_layer_options;
CHM_PUBLIC int chm_layer_run(chm_runtime *r, const chm_layer_options *options);
/* The generated tests: split, causality, finite differences, fork, read, tree. CHM_E_VERDICT when one fails. */
CHM_PUBLIC int chm_layer_test(chm_runtime *r, const chm_layer_options *options, chm_output format, FILE *out);

#ifdef __cplusplus
}
#endif
#endif
