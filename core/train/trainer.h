/*
 * trainer.h: the inside of a training run, shared by the files of core/train.
 */
#ifndef CHM_TRAINER_H
#define CHM_TRAINER_H

#include "model/runtime.h"
#include "train/train.h"

enum { CHM_PIECE = 1 << 14, CHM_MOST_SKIPPED = 50 };

/* Floats of one parameter that are reduced and updated as one: fixed, so that no sum depends on the threads. */
typedef struct chm_piece {
    chm_param *param;
    int64_t first, count;
    int64_t offset; /* in m and v */
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
    double reported_loss; /* nats per token of the last report; NaN: none yet */
    double seconds;       /* wall time of all sessions up to this checkpoint */
    double rate;          /* tokens per second of the calibration */
    double budget;        /* in seconds, over all sessions; 0: the run is of a number of tokens */
    double closing;       /* seconds that the last validation and checkpoint take */
} chm_run_state;

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
    int64_t pieces, floats;
    double *partial; /* [pieces] */
    float *m, *v;    /* [floats], every parameter padded to 16 */

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
/* Forward and backward over the segments of streams t->pick[first .. first+count), all of one depth; gradients
 * accumulate. */
int chm_train_micro(chm_trainer *t, int64_t step, int64_t first, int64_t count, int64_t rows, float scale, double *loss,
                    int64_t *targets);
/* Adds up what diagnostics.metrics asks for of the values that layers show. */
void chm_train_watch(chm_trainer *t);
double chm_train_norm(chm_trainer *t);    /* of the gradient, over all parameters */
void chm_train_clear(chm_trainer *t);     /* gradients and tallies to zero */
void chm_train_clear_all(chm_trainer *t); /* and the optimiser, and the streams */
/* AdamW with the gradient times gscale; clears the gradient. rehearse: everything but the weights. */
void chm_train_update(chm_trainer *t, float gscale, double lr, double weight_decay, int64_t applied, bool rehearse);
int chm_train_step(chm_trainer *t, double *lr);

/* ---- forecast.c ---- */
/* Refuses when what is known to be needed is not there; before anything large is allocated. */
int chm_train_check_memory(chm_trainer *t);
/* Measures on throw-away work that leaves no trace: seconds of a step, bytes of a pass. */
int chm_train_calibrate(chm_trainer *t, double seconds, double *step_seconds);
void chm_train_forecast(chm_trainer *t, double step_seconds, double other_seconds);

#endif
