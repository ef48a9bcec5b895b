/* ablate.c: chimera ablate, and chimera report. */
#include "cli.h"
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct cli_option options[] = {
    {.name = "out",
     .type = CLI_TEXT,
     .value = "DIR",
     .doc = "directory of the study (run/NAME of NAME.ini): its cells, results.csv, report.md, report.html"},
    {.name = "data",
     .type = CLI_FILES,
     .value = "FILE",
     .doc = "text to learn from, in place of the study's; several, repeatable"},
    {.name = "validation",
     .type = CLI_FILES,
     .value = "FILE",
     .doc = "held-out text, in place of the study's; several, repeatable"},
    {.name = "set",
     .type = CLI_REPEAT,
     .value = "KEY=VALUE",
     .doc = "a key of [study] (seeds=1,2); a budget takes the place of the study's; repeatable"},
    {.name = "dry-run", .type = CLI_FLAG, .doc = "check everything and show what the cells would be"},
    {.name = "slurm", .type = CLI_FLAG, .doc = "write DIR/slurm.sh, a job array for sbatch, and run nothing"},
    {.name = "cell",
     .type = CLI_INT,
     .value = "N",
     .min = 0,
     .max = 1e6,
     .doc = "run only this cell of the study that was begun in the directory STUDY, here: what job arrays do"},
    CLI_OUTPUT_OPTION,
};

static const struct cli_example examples[] = {
    {"chimera ablate study.ini", "everything in it: cells, then run/study/report.html"},
    {"chimera ablate run/study", "the same, after Ctrl-C or a power cut"},
    {"chimera ablate mixers.ini --data book.txt --set seconds=60 --out run/quick", "a study on another text, shorter"},
    {"chimera ablate study.ini --dry-run", "is it sound, and what would run"},
};

/* ---- progress ---- */

typedef struct watch {
    const struct cli *c;
    int lines;    /* of the table on the terminal */
    double said;  /* when a line was last written elsewhere */
    double first; /* part of the study that was done when it began; < 0: not known yet */
} watch;

static const char *const state_name[] = {[CHM_CELL_WAITING] = "waiting",
                                         [CHM_CELL_RUNNING] = "running",
                                         [CHM_CELL_FINISHED] = "finished",
                                         [CHM_CELL_DIVERGED] = "diverged",
                                         [CHM_CELL_FAILED] = "failed"};

static void say_summary(watch *w, const chm_ablate_progress *p, char *line, size_t n) {
    int count[CHM_CELL_FAILED + 1] = {0};
    double done = 0;
    char time[24], left[24] = "?";
    for (int i = 0; i < p->cells; i++) {
        const chm_ablate_cell_progress *s = &p->cell[i];
        count[s->state]++;
        if (s->state != CHM_CELL_WAITING && s->state != CHM_CELL_RUNNING)
            done += 1.0 / p->cells;
        else if (s->state == CHM_CELL_RUNNING && s->total_tokens > 0)
            done += (double)s->tokens / (double)s->total_tokens / p->cells;
    }
    if (w->first < 0) w->first = done;
    if (done > w->first) cli_duration(p->seconds / (done - w->first) * fmax(1 - done, 0), left, sizeof(left));
    cli_duration(p->seconds, time, sizeof(time));
    snprintf(line, n, "%d cells: %d finished, %d diverged, %d failed, %d running, %d waiting  %s  ETA %s", p->cells,
             count[CHM_CELL_FINISHED], count[CHM_CELL_DIVERGED], count[CHM_CELL_FAILED], count[CHM_CELL_RUNNING],
             count[CHM_CELL_WAITING], time, left);
}

static void say_cell(const chm_ablate_cell_progress *s, char *line, size_t n) {
    char done[24], total[24], rate[24], bits[32] = "";
    cli_count((double)s->tokens, done, sizeof(done));
    cli_count((double)s->total_tokens, total, sizeof(total));
    cli_count(s->tokens_per_second, rate, sizeof(rate));
    if (isfinite(s->bits_per_byte)) snprintf(bits, sizeof(bits), "  %.4f bits", s->bits_per_byte);
    const bool rated = isfinite(s->tokens_per_second);
    snprintf(line, n, "%-20s %-8s %s%s%s tokens%s%s%s", s->name, state_name[s->state], done,
             s->total_tokens > 0 ? "/" : "", s->total_tokens > 0 ? total : "", bits, rated ? "  " : "",
             rated ? rate : "");
    if (rated) strncat(line, " tok/s", n - strlen(line) - 1);
}

/* The lines of the last table are written over. */
static void draw(watch *w, const chm_ablate_progress *p) {
    char line[256];
    int lines = 1;
    if (w->lines > 0) fprintf(stderr, "\033[%dA", w->lines);
    say_summary(w, p, line, sizeof(line));
    fprintf(stderr, "\r\033[K%.*s\n", cli_columns(), line);
    for (int i = 0; i < p->cells; i++) {
        if (p->cell[i].state != CHM_CELL_RUNNING) continue;
        say_cell(&p->cell[i], line, sizeof(line));
        fprintf(stderr, "\r\033[K%.*s\n", cli_columns(), line);
        lines++;
    }
    fputs("\033[J", stderr);
    w->lines = lines;
}

static void on_progress(void *user, const chm_ablate_progress *p) {
    enum { EVERY = 60 };
    watch *w = user;
    char line[256];
    if (w->c->verbosity < 0) return;
    if (cli_on_terminal()) {
        if (p->message != NULL || (p->changed >= 0 && p->cell[p->changed].state != CHM_CELL_RUNNING)) {
            /* what is over stays on the screen, above the table */
            if (w->lines > 0) fprintf(stderr, "\033[%dA", w->lines);
            if (p->message != NULL)
                snprintf(line, sizeof(line), "%s", p->message);
            else
                say_cell(&p->cell[p->changed], line, sizeof(line));
            fprintf(stderr, "\r\033[J%.*s\n", cli_columns(), line);
            w->lines = 0;
        }
        draw(w, p);
        return;
    }
    if (p->message != NULL) {
        cli_message(w->c, "%s", p->message);
    } else if (p->changed >= 0) {
        say_cell(&p->cell[p->changed], line, sizeof(line));
        cli_message(w->c, "%s", line);
    } else if (cli_now() - w->said >= EVERY) {
        say_summary(w, p, line, sizeof(line));
        cli_message(w->c, "%s", line);
        w->said = cli_now();
    }
}

/* ---- chimera ablate ---- */

/* What of this command's words goes to the processes of its cells. */
static uint32_t add_words(const struct cli *c, const char **word, uint32_t n) {
    static const struct {
        const char *name, *option;
    } texts[] = {{"plugin-path", "--plugin-path"}, {"backend", "--backend"}, {"cpu-mask", "--cpu-mask"}};
    for (size_t i = 0; i < CLI_COUNT_OF(texts); i++) {
        const struct cli_value *v = cli_get(c, texts[i].name);
        if (!v->given) continue;
        word[n++] = texts[i].option;
        word[n++] = v->text;
    }
    if (cli_get(c, "require-backend")->given) word[n++] = "--require-backend";
    return n;
}

static int run_ablate(struct cli *c) {
    const struct cli_value *data = cli_get(c, "data"), *validation = cli_get(c, "validation"), *set = cli_get(c, "set"),
                           *cell = cli_get(c, "cell");
    watch w = {.c = c, .said = cli_now(), .first = -1};
    char program[PATH_MAX];
    const char *word[16];
    uint32_t words = 0;
    cli_catch_interrupts();
    if (cell->given) {
        static const char *const others[] = {"out", "data", "validation", "set", "dry-run", "slurm"};
        for (size_t i = 0; i < CLI_COUNT_OF(others); i++)
            if (cli_get(c, others[i])->given)
                return cli_fail(CHM_E_CONFIG, "ablate: --cell runs a cell as it was planned; leave --%s away",
                                others[i]);
        const int status = chm_ablate_cell(c->runtime, c->arguments[0], cell->integer, cli_show_training, c, &cli_stop);
        cli_progress_end();
        return cli_report(status);
    }
    /* where this very program lies; its cells are to run nothing else */
    const ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (length <= 0) return cli_fail(CHM_E_DATA, "ablate: /proc/self/exe does not say which program this is");
    program[length] = '\0';
    word[words++] = program;
    word[words++] = "ablate";
    words = add_words(c, word, words);
    const chm_ablate_options o = {.size = sizeof(o),
                                  .data_count = data->count,
                                  .validation_count = validation->count,
                                  .set_count = set->count,
                                  .command_count = words,
                                  .study = c->arguments[0],
                                  .out = cli_get(c, "out")->text,
                                  .data = data->items,
                                  .validation = validation->items,
                                  .set = set->items,
                                  .command = word,
                                  .dry_run = cli_get(c, "dry-run")->given,
                                  .slurm = cli_get(c, "slurm")->given,
                                  .progress = on_progress,
                                  .user = &w,
                                  .stop = &cli_stop};
    return cli_report(chm_ablate(c->runtime, &o, cli_format(c), stdout));
}

const struct cli_command cli_ablate = {
    .name = "ablate",
    .arguments = "STUDY",
    .summary = "runs a study: variants of a card, seeds and grids, and reports",
    .text =
        "STUDY is an ini file: a card, text, a budget, seeds, and [variant NAME] sections with the keys of the card "
        "that\n"
        "change; docs/reference.md has all of it. Everything is checked before anything is trained. Each variant and\n"
        "seed is a cell, a run directory of its own under DIR/cells, trained by a process of its own, as many at "
        "once as\n"
        "there are threads (--threads). Finished cells are never run again: Ctrl-C, kill and power cuts cost no more "
        "than\n"
        "the time since a cell's last checkpoint, and `chimera ablate DIR` goes on. A directory takes cells of one "
        "study,\n"
        "one text and one commit of Chimera. CHIMERA_* variables do not change the card of a study.",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .run = run_ablate};

/* ---- chimera report ---- */

static const struct cli_option report_options[] = {CLI_OUTPUT_OPTION};

static const struct cli_example report_examples[] = {
    {"chimera report run/study", "the comparison; run/study/report.html has everything"},
    {"chimera report run/study -o csv", "a row for each cell"},
};

static int run_report(struct cli *c) { return cli_report(chm_report(c->arguments[0], cli_format(c), stdout)); }

const struct cli_command cli_report_command = {
    .name = "report",
    .arguments = "DIR",
    .summary = "reports on a study from what its cells left behind",
    .text = "Writes report.html, report.md and results.csv into DIR, the directory of a study, finished or not, and "
            "prints\n"
            "the comparison of its variants. Nothing is trained or measured. Drawings need gnuplot.",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = report_options,
    .option_count = CLI_COUNT_OF(report_options),
    .examples = report_examples,
    .example_count = CLI_COUNT_OF(report_examples),
    .no_runtime = true,
    .run = run_report};
