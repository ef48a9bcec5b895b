/*
 * trainer.h: the inside of a training run, shared by the files of core/train.
 */
#ifndef CHM_TRAINER_H
#define CHM_TRAINER_H

#include "model/runtime.h"
#include "train/train.h"

enum { CHM_PIECE = 1 << 14, CHM_MOST_SKIPPED = 50 };

/* What the optimiser keeps of one parameter: arrays of as many floats; NULL: fewer of them. */
typedef struct chm_param_state {
    float *array[CHM_OPTIMISER_ARRAYS];
} chm_param_state;

/* Floats of one parameter that are reduced and updated as one: fixed, so that no sum depends on the threads. */
typedef struct chm_piece {
    chm_param *param;
    int number; /* of the parameter in the model */
    int64_t first, count;
} chm_piece;

/* What a checkpoint keeps besides tensors. */
typedef struct chm_run_state {
    int64_t step;    /* steps done */
    int64_t steps;   /* of the whole run; an estimate until it is settled */
    int64_t settled; /* whether steps is final */
    int64_t applied; /* steps that moved the weights: the t of Adam */
    int64_t skipped, skipped_in_a_row;
    int64_t log_bytes;    /* length of log.jsonl */
    double loss;          /* summed since the last report, nats */
    int64_t loss_targets; /* and over how many targets */
    int64_t reported;     /* step of the last report */
    chm_depth depth;      /* passes of the loop since the last report */
#define SUM(metric, tap, logarithm)                                                                                    \
    struct {                                                                                                           \
        double sum;                                                                                                    \
        int64_t count;                                                                                                 \
    } metric;
    struct {
        CHM_TAP_METRICS(SUM)
    } shown; /* of what layers showed since the last report */
#undef SUM
    double gradient_norm; /* of the last step that had one */
    double frozen;        /* share of the ternary weights that the last step left alone because they are near 0 */
    double reported_loss; /* nats per token of the last report; NaN: none yet */
    double seconds;       /* wall time of all sessions up to this checkpoint */
    double rate;          /* tokens per second of the calibration */
    double budget;        /* in seconds, over all sessions; 0: the run is of a number of tokens */
    double closing;       /* seconds that the last validation and checkpoint take */
} chm_run_state;

typedef struct chm_mezo chm_mezo; /* mezo.c */

typedef struct chm_trainer {
    chm_runtime *runtime;
    const struct chm_kernels *kernels;
    chm_pool *pool;
    const chm_train_options *options;
    chm_model *model;
    const chm_train_config *config;
    chm_tokenizer tokenizer;
    chm_sources data, validation; /* of a holdout the latter are the former */
    bool validates;
    chm_corpus corpus;
    chm_context *context;
    chm_batch batch;
    int64_t micro;                          /* segments of one pass */
    char *card;                             /* resolved, JSON */
    char *exact_kernels, *training_kernels; /* "slot=backend ..." */
    uint64_t card_hash;

    chm_piece *piece;
    int64_t pieces;
    double *partial;        /* [pieces] */
    chm_param_state *state; /* [model->params], in state_storage */
    float *state_storage;
    /* of the card's optimiser plugin: */
    const struct chm_optimiser_ops *optimiser; /* NULL: AdamW or MeZO */
    void *optimiser_self;
    struct chm_optimiser_param *told; /* [model->params] */
    float **scratch;                  /* [threads]; NULL: none is needed */
    chm_arena arena;                  /* all three, and the texts in them */
    chm_mezo *mezo;                   /* NULL: another optimiser */
    bool peek;                        /* passes leave their streams where they were */

    chm_stream_state *stream; /* [batch.streams]; NULL when no state is carried */
    chm_stream_state **slot;  /* [micro], those of a pass */
    int64_t *pick;            /* [batch.streams], of the step under way: chm_train_plan() */
    int *depth;               /* [batch.streams], passes of the loop of each of `pick` */
    int32_t *parent, *id, *target;
    int64_t *position; /* [micro * rows] */

    chm_run_state run;
    double started, resumed_seconds; /* chm_now() of this session; seconds of those before it */
    double last_report_at;
    int64_t last_report_step;
    double checkpoint_cost; /* seconds that writing one takes */
    double stepping_since;  /* chm_now() when this session's steps began */
    int64_t first_step;     /* and which that was */

    bool metrics_wanted; /* the step at hand will be reported */
    chm_string metrics;  /* what its layers said of it: JSON, without the braces */
    double violation;    /* of even loads, summed over its mixtures of experts */
    int mixtures;        /* and over how many */

    char *log_path, *checkpoint_path, *model_path, *card_path, *lock_path;
    char *tokenizer_path; /* of the run's copy; NULL: the tokenizer has no file */
    FILE *log;
    int lock;
} chm_trainer;

/* ---- log.c ---- */
void chm_train_message(const chm_trainer *t, const char *format, ...) CHM_PRINTF(2, 3);
/* Opens log.jsonl: new with its header, or cut back to where the checkpoint left it. */
int chm_train_log_open(chm_trainer *t, bool resume);
/* Says that a kernel of training is another than the checkpoint's: its last bits may differ from then on. */
void chm_train_compare_kernels(const chm_trainer *t, const char *then);
int chm_train_log_line(chm_trainer *t, const chm_string *line); /* adds the newline, flushes */
int chm_train_report(chm_trainer *t, double lr);
/* A layer's number for the next report: a chm_layer_report of the trainer. */
void chm_train_metric(void *trainer, const char *part, const char *name, int64_t count, const float *value);
int chm_train_log_skip(chm_trainer *t);
int chm_train_log_budget(chm_trainer *t);
int chm_train_log_validation(chm_trainer *t, const chm_score *score);
int chm_train_log_end(chm_trainer *t);
double chm_train_bits_per_byte(const chm_trainer *t, double nats_per_token);
double chm_train_seconds(const chm_trainer *t); /* of the run, all sessions */

/* ---- checkpoint.c ---- */
int chm_train_checkpoint_save(chm_trainer *t);
int chm_train_checkpoint_load(chm_trainer *t);

/* ---- step.c ---- */
/* Which streams a step runs together: those of one depth of the loop, as many as fit a pass, one group after another.
 * Puts them in order into t->pick and t->depth; they are the same streams in the same order where there is no loop. */
void chm_train_plan(chm_trainer *t, int64_t step);
/* How many from the first-th of t->pick on make one pass. */
int64_t chm_train_group(const chm_trainer *t, int64_t first);
/* Forward over the segments of streams t->pick[first .. first+count), all of one depth, and backward where the
 * optimiser has gradients, which accumulate. */
int chm_train_micro(chm_trainer *t, int64_t step, int64_t first, int64_t count, int64_t rows, float scale, double *loss,
                    int64_t *targets);
/* Adds up what diagnostics.metrics asks for of the values that layers show. */
void chm_train_watch(chm_trainer *t);
void chm_train_clear(chm_trainer *t);     /* gradients and tallies to zero */
void chm_train_clear_all(chm_trainer *t); /* and the optimiser, and the streams */
int chm_train_step(chm_trainer *t, double *lr);

/* ---- optimiser.c ---- */
/* Makes the card's optimiser ready to be asked; chm_optimiser_finish() in any case. */
int chm_optimiser_open(chm_trainer *t);
/* Pieces, state and scratch; the model has its storage. */
int chm_optimiser_allocate(chm_trainer *t);
void chm_optimiser_finish(chm_trainer *t);
uint64_t chm_optimiser_bytes(const chm_trainer *t); /* of state and scratch, also before they are allocated */
/* How many arrays are kept of a parameter, and the k-th one's name in files. */
int chm_optimiser_arrays(const chm_trainer *t, int param);
const char *chm_optimiser_array_name(const chm_trainer *t, int param, int k);
void chm_optimiser_clear(chm_trainer *t);  /* its state to zero */
double chm_optimiser_norm(chm_trainer *t); /* of the gradient, over all parameters */
void chm_optimiser_mask(chm_trainer *t);   /* training.deep_zero_mask, on the gradient */
/* What a step does once its gradient is there, which is multiplied by gscale; clears it. applied: from 1. rehearse:
 * everything but the weights. */
void chm_optimiser_update(chm_trainer *t, float gscale, double lr, double weight_decay, int64_t applied, bool rehearse);

/* ---- mezo.c: another kind of step ---- */
int chm_mezo_allocate(chm_trainer *t); /* after chm_optimiser_allocate */
uint64_t chm_mezo_bytes(const chm_trainer *t);
void chm_mezo_finish(chm_trainer *t);
/* All passes of a step: the loss summed over its targets, their number, and the derivative of the mean loss along the
 * directions, its root mean square. The weights then stand where the last pass had them; chm_mezo_update() leads on
 * from there, and chm_mezo_undo() back. */
int chm_mezo_passes(chm_trainer *t, int64_t targets, double *loss, int64_t *counted, double *norm);
void chm_mezo_update(chm_trainer *t, double gscale, double lr, double weight_decay);
void chm_mezo_undo(chm_trainer *t);
/* Of a sample of the last step: numbers first .. first + n of a parameter's direction, and half the difference of the
 * two mean losses. */
void chm_mezo_direction(const chm_trainer *t, int64_t sample, const chm_param *p, int64_t first, int64_t n, float *z);
double chm_mezo_slope(const chm_trainer *t, int64_t sample);
void chm_mezo_rehearse(chm_trainer *t); /* the work of a step besides its passes and quantisations, without a trace */

/* ---- train.c ---- */
/* Everything that a run keeps in memory besides its corpus, of a card that was loaded; chm_train_release(). */
int chm_train_allocate(chm_trainer *t);
void chm_train_release(chm_trainer *t);

/* ---- forecast.c ---- */
/* Refuses when what is known to be needed is not there; before anything large is allocated. */
int chm_train_check_memory(chm_trainer *t);
/* Measures on throw-away work that leaves no trace: seconds of a step, bytes of a pass. */
int chm_train_calibrate(chm_trainer *t, double seconds, double *step_seconds);
void chm_train_forecast(chm_trainer *t, double step_seconds, double other_seconds);

#endif
