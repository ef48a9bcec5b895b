/*
 * ablate.h: the inside of an ablation: a study file becomes a plan of cells, each cell a run of its own, and their
 * results a report.
 *
 *   study.c     the ini file, every key with its place
 *   plan.c      variants x grid x seeds, each card checked, widths solved for, budgets turned into tokens
 *   material.c  the text that cells read: files, a part of them held out, or synthetic tasks
 *   manifest.c  DIR/manifest.json: what the cells of DIR have in common; nothing else may join them
 *   cell.c      one cell: trained, scored, measured
 *   runner.c    cells as processes
 *   collect.c   what cells left behind
 *   report.c    tables of it; html.c and plot.c: as a page, with curves
 */
#ifndef CHM_ABLATE_H
#define CHM_ABLATE_H

#include "base/json.h"
#include "model/runtime.h"
#include "train/train.h"

/* ---- study.c ---- */

enum { CHM_STUDY_SEEDS = 1000, CHM_STUDY_VARIANTS = 100, CHM_STUDY_AXES = 8, CHM_STUDY_VALUES = 50, CHM_CELLS = 4096 };

typedef struct chm_setting {
    const char *key, *value;
    const char *place; /* "study.ini:12" */
} chm_setting;

typedef struct chm_variant {
    const char *name, *place;
    bool unchanged; /* the card as it is, said in so many words */
    chm_setting *setting;
    int settings;
} chm_variant;

/* One key of the grid. */
typedef struct chm_axis {
    const char *key, *place;
    const char *value[CHM_STUDY_VALUES];
    int values;
} chm_axis;

/* A file of a synthetic task: one to learn from, or one to be scored on. */
typedef struct chm_study_task {
    const char *name; /* "", or behind the word: [score beyond] */
    const char *place;
    const char *task; /* "mqar" */
    chm_task_options options;
} chm_study_task;

typedef struct chm_study {
    chm_arena arena;
    const char *file;   /* as named */
    const char *folder; /* of the file: paths begin there */
    const char *title, *card, *card_place;
    const char **data, **validation; /* paths, resolved */
    const char **data_place, **validation_place;
    int data_count, validation_count;
    double held_out; /* part of every file of data; 0: none */
    uint64_t *seed;
    int seeds;
    double tokens, seconds, flops; /* one of them is not 0 */
    bool match;                    /* parameters, by intermediate_size */
    const char *baseline, *baseline_place;
    int jobs, threads; /* 0: chosen */
    double checkpoint_seconds;
    chm_setting *base; /* [card]: for all variants */
    int bases;
    chm_variant *variant;
    int variants, baseline_index;
    chm_axis *axis;
    int axes;
    chm_study_task *task, *score;
    int tasks, scores;
} chm_study;

/* Reads and checks what can be checked of the file alone. data, validation: in place of those of the file (paths from
 * where the process is), set: "key=value" of [study]. */
int chm_study_read(chm_study *s, const chm_ablate_options *o, const char *file);
void chm_study_finish(chm_study *s);
/* As a study file again, with whole paths and every default. */
int chm_study_write(const chm_study *s, const char *path);
/* Points of the grid; 1 where there is none. */
int chm_study_points(const chm_study *s);
/* The value of an axis at a point. */
const char *chm_study_value(const chm_study *s, int point, int axis);

/* ---- plan.c ---- */

/* A file that cells read. Those of one name are scored together; data has the name "". */
typedef struct chm_material {
    const char *name;           /* "held-out", "beyond" */
    const char *path;           /* below the study's directory where it is made */
    int64_t bytes;              /* known once it is there */
    uint64_t hash;              /* the same */
    const chm_study_task *task; /* that it is made by; NULL: none */
    const char *whole;          /* a file of the user that it is a part of; NULL: none */
} chm_material;

typedef struct chm_cell {
    const char *name; /* folder under DIR/cells */
    int variant, point;
    uint64_t seed;
    const char **set; /* "key=value" */
    int sets;
    int64_t width; /* intermediate_size that was solved for; 0: none was */
    int64_t parameters, active, state_bytes;
    double flops;   /* of a token */
    int64_t tokens; /* 0: the budget is in seconds */
    uint64_t card_hash;
} chm_cell;

typedef struct chm_plan {
    chm_runtime *runtime;
    const chm_ablate_options *options;
    chm_study study;
    const char *directory;
    chm_material *data, *score;
    int data_count, score_count;
    chm_cell *cell;
    int cells;
    int64_t run_tokens; /* the longest document of a task that the cards can read whole */
    chm_arena arena;
} chm_plan;

/* Checks everything and writes nothing: the study, the card, every variant at every point of the grid, every file. */
int chm_plan_make(chm_plan *p, chm_runtime *r, const chm_ablate_options *options, const char *study,
                  const char *directory);
void chm_plan_finish(chm_plan *p);

/* ---- material.c ---- */

/* Names the files that cells read, and checks what they are made of. */
int chm_material_plan(chm_plan *p);
/* Makes those that are to be made, unless `keep` and they are there, and looks at all of them. */
int chm_material_make(chm_plan *p, bool keep);
/* Bytes and hash of a file. */
int chm_material_look(const char *path, int64_t *bytes, uint64_t *hash);

/* ---- manifest.c ---- */

/* Hash of this library and of every plugin that was loaded: a build. */
int chm_build_hash(const chm_runtime *r, uint64_t *out);
/* What the plan is, as DIR/manifest.json has it. */
json_t *chm_manifest_make(const chm_plan *p);
int chm_manifest_load(const char *directory, json_t **out);
/* CHM_E_CONFIG, naming the first difference that forbids to go on: another commit, study or text. */
int chm_manifest_compare(const char *directory, const json_t *there, const json_t *here);
/* JSON, written atomically; and read, with a sentence for what is damaged. */
int chm_json_save(const json_t *json, const char *path);
int chm_json_read(const char *path, json_t **out);
char *chm_cpu_model(void); /* the caller's to free */

/* ---- cell.c ---- */
/* Why a cell could not run, for reports; NULL: nothing is known against it. */
void chm_cell_note_failure(const char *directory, const char *name, const char *message);

/* ---- collect.c ---- */

typedef struct chm_log_line {
    double tokens, bits_per_byte;
} chm_log_line;
typedef struct chm_cell_log {
    chm_log_line *line;
    int64_t lines;
    double tokens_per_second; /* the median of its reports; NaN: none */
} chm_cell_log;
/* The reports of a run's log.jsonl; a log that is not there has none. */
int chm_cell_log_read(const char *path, chm_cell_log *out);
void chm_cell_log_finish(chm_cell_log *log);
/* DIR/cells/NAME: does result.json say that it is done? *result is NULL when not; json_decref it. */
int chm_cell_result(const char *directory, const char *name, json_t **result);
/* Whether another process has the lock of the cell. */
bool chm_cell_is_locked(const char *directory, const char *name);

/* A member that must be there and of its kind; what is not there reads as NULL, NaN and 0. */
const char *chm_json_word(const json_t *object, const char *key);
double chm_json_number(const json_t *object, const char *key);

/* A word as a shell reads it back. */
void chm_shell_word(chm_string *s, const char *word);

/* ---- runner.c ---- */

/* Starts argv[0]. out: the file that its standard output replaces; errors: where its standard error goes, NULL: both
 * are added to `out`. Its end is waited for by waitpid(); code 127: there is no such program. It gets TERM when this
 * process ends. */
int chm_process_start(const char *const *argv, const char *out, const char *errors, int *pid);

#endif
