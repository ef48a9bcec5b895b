/* runner.c: chm_ablate(): a study checked, its cells as processes, and the reports. */
#include "train/ablate/ablate.h"
#include "model/json.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const double look_seconds = 0.1, progress_seconds = 0.5, elsewhere_seconds = 1;

/* ---- processes ---- */

int chm_process_start(const char *const *argv, const char *out, const char *errors, int *pid) {
    const pid_t parent = getpid();
    const int write = O_WRONLY | O_CREAT | O_CLOEXEC, nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    const int file = open(out, write | (errors ? O_TRUNC : O_APPEND), 0666);
    const int second = errors && file >= 0 ? open(errors, write, 0666) : -1;
    const bool open_all = nothing >= 0 && file >= 0 && (errors == NULL || second >= 0);
    const pid_t child = open_all ? fork() : -1;
    if (child == 0) {
        /* Ctrl-C on the terminal is for the parent, which passes it on once */
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() == parent && dup2(nothing, 0) == 0 && dup2(file, 1) == 1 && dup2(errors ? second : file, 2) == 2)
            execvp(argv[0], (char *const *)argv);
        _exit(127);
    }
    const int error = errno;
    if (file >= 0) close(file);
    if (second >= 0) close(second);
    if (nothing >= 0) close(nothing);
    if (child < 0) {
        errno = error;
        return open_all ? chm_fail_system("%s: cannot start", argv[0]) : chm_fail_system("%s: cannot write", out);
    }
    *pid = (int)child;
    return CHM_OK;
}

/* ---- cells ---- */

typedef struct job {
    int pid, cell;
} job;

typedef struct runner {
    chm_plan *plan;
    const chm_ablate_options *options;
    chm_ablate_cell_progress *seen;
    bool *elsewhere; /* another process runs it */
    job *job;
    int jobs, running, threads;
    double begun, shown, looked; /* times */
    bool stopping;
} runner;

static void show(runner *r, int changed, const char *message) {
    if (r->options->progress == NULL) return;
    const chm_ablate_progress p = {.size = sizeof p,
                                   .cells = r->plan->cells,
                                   .changed = changed,
                                   .cell = r->seen,
                                   .seconds = chm_now() - r->begun,
                                   .message = message};
    r->options->progress(r->options->user, &p);
    r->shown = chm_now();
}

/* What result.json says; false: there is none. */
static int look_at_result(runner *r, int i, bool *done) {
    json_t *result = NULL;
    const int status = chm_cell_result(r->plan->directory, r->plan->cell[i].name, &result);
    *done = result != NULL;
    if (result != NULL) {
        chm_ablate_cell_progress *s = &r->seen[i];
        s->state = strcmp(chm_json_word(result, "status"), "diverged") == 0 ? CHM_CELL_DIVERGED : CHM_CELL_FINISHED;
        s->tokens = s->total_tokens = (int64_t)chm_json_number(result, "tokens");
        s->bits_per_byte = chm_json_number(json_array_get(json_object_get(result, "scores"), 0), "bits_per_byte");
        s->tokens_per_second = chm_json_number(result, "training_tokens_per_second");
        json_decref(result);
    }
    return status;
}

/* The last report of a cell that runs. */
static void look_at_log(runner *r, int i) {
    enum { END = 1 << 15 };
    char *path = chm_format("%s/cells/%s/log.jsonl", r->plan->directory, r->plan->cell[i].name);
    FILE *f = path != NULL ? fopen(path, "rbe") : NULL;
    char *text = f != NULL ? chm_alloc(END + 1) : NULL;
    if (text != NULL) {
        if (fseek(f, -END, SEEK_END) != 0) rewind(f);
        text[fread(text, 1, END, f)] = '\0';
        char *last = NULL;
        for (char *at = text; (at = strstr(at, "\"event\":\"report\"")) != NULL; at++)
            if (strchr(at, '\n')) last = at;
        long long tokens;
        double bits, rate;
        char *field;
        if (last != NULL) {
            last[strcspn(last, "\n")] = '\0';
            if ((field = strstr(last, "\"tokens\":")) && sscanf(field + 9, "%lld", &tokens) == 1)
                r->seen[i].tokens = tokens;
            if ((field = strstr(last, "\"bits_per_byte\":")) && sscanf(field + 16, "%lf", &bits) == 1)
                r->seen[i].bits_per_byte = bits;
            if ((field = strstr(last, "\"tokens_per_second\":")) && sscanf(field + 20, "%lf", &rate) == 1)
                r->seen[i].tokens_per_second = rate;
        }
    }
    chm_free(text);
    if (f != NULL) fclose(f);
    chm_free(path);
}

static int start(runner *r, int i) {
    const chm_ablate_options *o = r->options;
    const char *name = r->plan->cell[i].name;
    char number[24], threads[24];
    const char **argv = chm_alloc((o->command_count + 6) * sizeof *argv);
    char *folder = chm_format("%s/cells/%s", r->plan->directory, name);
    char *messages = chm_format("%s/cells/%s/messages.txt", r->plan->directory, name);
    int status = argv == NULL || folder == NULL || messages == NULL ? CHM_E_MEMORY : chm_make_directory(folder);
    if (status == CHM_OK) {
        uint32_t n = 0;
        snprintf(number, sizeof number, "%d", i);
        snprintf(threads, sizeof threads, "%d", r->threads);
        for (; n < o->command_count; n++) argv[n] = o->command[n];
        argv[n++] = r->plan->directory;
        argv[n++] = "--cell";
        argv[n++] = number;
        argv[n++] = "--threads";
        argv[n++] = threads;
        chm_cell_note_failure(r->plan->directory, name, NULL);
        status = chm_process_start(argv, messages, NULL, &r->job[r->running].pid);
    }
    if (status == CHM_OK) {
        r->job[r->running++].cell = i;
        r->seen[i].state = CHM_CELL_RUNNING;
        show(r, i, NULL);
    }
    chm_free(argv);
    chm_free(folder);
    chm_free(messages);
    return status;
}

/* A process ended: what became of its cell? */
static int ended(runner *r, int i, int how) {
    const char *name = r->plan->cell[i].name;
    bool done = false;
    int status = look_at_result(r, i, &done);
    if (status == CHM_OK && !done) {
        chm_ablate_cell_progress *s = &r->seen[i];
        const bool interrupted = WIFEXITED(how) && WEXITSTATUS(how) == CHM_E_INTERRUPTED;
        if (r->stopping && (interrupted || WIFSIGNALED(how))) {
            s->state = CHM_CELL_WAITING;
        } else if (chm_cell_is_locked(r->plan->directory, name)) {
            r->elsewhere[i] = true;
        } else {
            char message[160];
            s->state = CHM_CELL_FAILED;
            if (WIFSIGNALED(how))
                snprintf(message, sizeof message, "its process was ended by signal %d (%s)", WTERMSIG(how),
                         strsignal(WTERMSIG(how)));
            else if (interrupted)
                snprintf(message, sizeof message, "it was stopped, its checkpoint is saved");
            else
                snprintf(message, sizeof message, "its process ended with code %d; messages.txt has its words",
                         WEXITSTATUS(how));
            char *path = chm_format("%s/cells/%s/failed.json", r->plan->directory, name);
            if (path != NULL && access(path, F_OK) != 0) chm_cell_note_failure(r->plan->directory, name, message);
            chm_free(path);
        }
    }
    if (status == CHM_OK) show(r, i, NULL);
    return status;
}

/* Seeds one after another, so that what was stopped early has whole pairs. -1: none waits. */
static int next_waiting(const runner *r) {
    const int seeds = r->plan->study.seeds;
    for (int k = 0; k < seeds; k++)
        for (int i = k; i < r->plan->cells; i += seeds)
            if (r->seen[i].state == CHM_CELL_WAITING && !r->elsewhere[i]) return i;
    return -1;
}

static int look_elsewhere(runner *r) {
    int status = CHM_OK;
    for (int i = 0; i < r->plan->cells && status == CHM_OK; i++) {
        bool done = false;
        if (!r->elsewhere[i]) continue;
        status = look_at_result(r, i, &done);
        if (status == CHM_OK && !done && chm_cell_is_locked(r->plan->directory, r->plan->cell[i].name)) {
            r->seen[i].state = CHM_CELL_RUNNING;
            continue;
        }
        r->elsewhere[i] = false;
        if (!done) r->seen[i].state = CHM_CELL_WAITING;
        if (status == CHM_OK) show(r, i, NULL);
    }
    return status;
}

static bool any_elsewhere(const runner *r) {
    for (int i = 0; i < r->plan->cells; i++)
        if (r->elsewhere[i]) return true;
    return false;
}

static void pause_for(double seconds) {
    const struct timespec t = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    nanosleep(&t, NULL);
}

static int run_cells(runner *r) {
    int status = CHM_OK, next = -1;
    for (;;) {
        for (int k = 0; k < r->running; k++) {
            int how;
            const job j = r->job[k];
            if (waitpid(j.pid, &how, WNOHANG) != j.pid) continue;
            r->job[k--] = r->job[--r->running];
            const int worse = ended(r, j.cell, how);
            if (status == CHM_OK) status = worse;
        }
        const bool asked = r->options->stop != NULL && *r->options->stop != 0;
        if (!r->stopping && (asked || status != CHM_OK)) {
            r->stopping = true;
            for (int k = 0; k < r->running; k++) kill(r->job[k].pid, SIGTERM);
            if (r->running > 0) show(r, -1, "stopping: cells save their checkpoints");
        }
        while (!r->stopping && status == CHM_OK && r->running < r->jobs && (next = next_waiting(r)) >= 0) {
            if (chm_cell_is_locked(r->plan->directory, r->plan->cell[next].name)) {
                r->elsewhere[next] = true;
                r->seen[next].state = CHM_CELL_RUNNING;
                show(r, next, NULL);
            } else {
                status = start(r, next);
            }
        }
        if (r->running == 0 && (r->stopping || (next_waiting(r) < 0 && !any_elsewhere(r)))) return status;
        if (status == CHM_OK && !r->stopping && chm_now() - r->looked > elsewhere_seconds) {
            status = look_elsewhere(r);
            r->looked = chm_now();
        }
        if (chm_now() - r->shown > progress_seconds) {
            for (int k = 0; k < r->running; k++) look_at_log(r, r->job[k].cell);
            show(r, -1, NULL);
        }
        pause_for(look_seconds);
    }
}

/* A cell on its own takes all threads, many take one each. The number of all cells counts, not of those that are left:
 * a budget of seconds is to mean the same for each. */
static void share_threads(const chm_plan *p, int *jobs, int *threads) {
    const int total = chm_runtime_threads(p->runtime), cells = p->cells;
    *jobs = p->study.jobs;
    *threads = p->study.threads;
    if (*threads == 0) *threads = CHM_MAX(total / (*jobs > 0 ? *jobs : CHM_MIN(cells, total)), 1);
    if (*jobs == 0) *jobs = CHM_MAX(total / *threads, 1);
}

/* ---- what is said instead of running ---- */

static int print_plan(const chm_plan *p, chm_output format, FILE *out) {
    const chm_study *s = &p->study;
    chm_table t;
    chm_table_init(&t);
    static const char *const heads[] = {"variant",     "#point",  "changes",      "#intermediate_size",
                                        "#parameters", "#active", "#state_bytes", "#tokens",
                                        "#flops",      "#seeds"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(heads); i++) chm_table_column(&t, heads[i]);
    for (int i = 0; i < p->cells; i += s->seeds) {
        const chm_cell *c = &p->cell[i];
        const chm_variant *v = &s->variant[c->variant];
        chm_string changes = {0};
        for (int a = 0; a < s->axes; a++)
            chm_string_add(&changes, "%s%s=%s", changes.length ? " " : "", s->axis[a].key,
                           chm_study_value(s, c->point, a));
        for (int k = 0; k < v->settings; k++)
            chm_string_add(&changes, "%s%s=%s", changes.length ? " " : "", v->setting[k].key, v->setting[k].value);
        chm_table_cell(&t, "%s", v->name);
        chm_table_cell(&t, "%d", c->point + 1);
        chm_table_cell(&t, "%s", changes.text ? changes.text : "");
        if (c->width > 0)
            chm_table_cell(&t, "%lld", (long long)c->width);
        else
            chm_table_cell(&t, "%s", "");
        chm_table_cell(&t, "%lld", (long long)c->parameters);
        chm_table_cell(&t, "%lld", (long long)c->active);
        chm_table_cell(&t, "%lld", (long long)c->state_bytes);
        if (c->tokens > 0) {
            chm_table_cell(&t, "%lld", (long long)c->tokens);
            chm_table_cell(&t, "%.3g", c->flops * (double)c->tokens);
        } else {
            chm_table_cell(&t, "%s", "");
            chm_table_cell(&t, "%s", "");
        }
        chm_table_cell(&t, "%d", s->seeds);
        t.failed |= changes.failed;
        chm_string_finish(&changes);
    }
    int status;
    if (format == CHM_OUTPUT_JSON) {
        fputs("{\n  \"schema_version\": 1,\n  \"cells\": ", out);
        status = chm_table_json(&t, 2, out);
        fputs("\n}\n", out);
    } else {
        status = chm_table_print(&t, format, out);
    }
    chm_table_finish(&t);
    return status;
}

static int write_slurm(const chm_plan *p, int threads, FILE *out) {
    char here[PATH_MAX], *path = chm_format("%s/slurm.sh", p->directory);
    chm_string s = {0};
    if (path == NULL || getcwd(here, sizeof here) == NULL) {
        chm_free(path);
        return chm_fail_system("the current directory has no name");
    }
    chm_string_add(
        &s,
        "#!/bin/bash\n"
        "#SBATCH --job-name=chimera-ablate\n"
        "#SBATCH --array=0-%d\n"
        "#SBATCH --cpus-per-task=%d\n"
        "#SBATCH --output=slurm-%%A-%%a.txt\n"
        "#SBATCH --requeue\n"
        "# TERM a minute before the end: a cell saves its checkpoint, and goes on when it is submitted again\n"
        "#SBATCH --signal=TERM@60\n"
        "cd ",
        p->cells - 1, threads);
    chm_shell_word(&s, here);
    chm_string_add(&s, "\nexec");
    for (uint32_t i = 0; i < p->options->command_count; i++) {
        chm_string_add(&s, " ");
        chm_shell_word(&s, p->options->command[i]);
    }
    chm_string_add(&s, " ");
    chm_shell_word(&s, p->directory);
    chm_string_add(&s, " --cell \"$SLURM_ARRAY_TASK_ID\" --threads %d\n", threads);
    const int status =
        s.failed ? chm_fail(CHM_E_MEMORY, "out of memory for %s", path) : chm_write_file(path, s.text, s.length);
    if (status == CHM_OK) {
        s.length = 0;
        chm_shell_word(&s, p->directory);
        fprintf(out, "%s: sbatch runs its %d cells; then: chimera report %s\n", path, p->cells, s.text);
    }
    chm_string_finish(&s);
    chm_free(path);
    return status;
}

/* ---- the whole ---- */

/* The study file and the directory of a call: a directory stands for its own study. */
static int name_places(const chm_ablate_options *o, char **study, char **directory) {
    struct stat st;
    if (o->study == NULL) return chm_fail(CHM_E_CONFIG, "no study: name an ini file, or the directory of a study");
    if (stat(o->study, &st) == 0 && S_ISDIR(st.st_mode)) {
        if (o->out != NULL)
            return chm_fail(CHM_E_CONFIG, "%s: is a directory, and its study goes on there: leave --out away",
                            o->study);
        *study = chm_format("%s/study.ini", o->study);
        *directory = chm_strdup(o->study);
        if (*study != NULL && access(*study, F_OK) != 0)
            return chm_fail(CHM_E_DATA, "%s: no study was begun there (it has no study.ini)", o->study);
    } else {
        const char *name = strrchr(o->study, '/') ? strrchr(o->study, '/') + 1 : o->study, *dot = strrchr(name, '.');
        const int length = dot != NULL && dot > name ? (int)(dot - name) : (int)strlen(name);
        *study = chm_strdup(o->study);
        *directory = o->out != NULL ? chm_strdup(o->out) : chm_format("run/%.*s", length, name);
    }
    return *study == NULL || *directory == NULL ? CHM_E_MEMORY : CHM_OK;
}

/* DIR with its files, its manifest and the study as it was resolved: everything cells need. */
static int prepare(chm_plan *p) {
    char *manifest_path = chm_format("%s/manifest.json", p->directory),
         *study = chm_format("%s/study.ini", p->directory);
    char *data = chm_format("%s/data", p->directory), *cells = chm_format("%s/cells", p->directory);
    json_t *there = NULL, *here = NULL;
    bool begun = false;
    int status = !manifest_path || !study || !data || !cells ? CHM_E_MEMORY : CHM_OK;
    if (status == CHM_OK && (begun = access(manifest_path, F_OK) == 0))
        status = chm_manifest_load(p->directory, &there);
    else if (status == CHM_OK && access(cells, F_OK) == 0)
        status = chm_fail(CHM_E_CONFIG, "%s: has cells and no manifest.json; name another --out", p->directory);
    const bool made = p->study.tasks > 0 || p->study.held_out > 0;
    if (status == CHM_OK) status = chm_make_directory(made ? data : p->directory);
    if (status == CHM_OK && (status = chm_material_make(p, begun)) == CHM_OK) {
        here = chm_manifest_make(p);
        if (here == NULL) status = CHM_E_MEMORY;
    }
    if (status == CHM_OK && begun) status = chm_manifest_compare(p->directory, there, here);
    if (status == CHM_OK) {
        status = chm_json_save(here, manifest_path);
        if (status == CHM_OK && !chm_same_file(study, p->study.file)) status = chm_study_write(&p->study, study);
    }
    json_decref(there);
    json_decref(here);
    chm_free(manifest_path);
    chm_free(study);
    chm_free(data);
    chm_free(cells);
    return status;
}

static int run_all(chm_plan *p, chm_output format, FILE *out, int jobs, int threads) {
    runner r = {.plan = p, .options = p->options, .jobs = jobs, .threads = threads, .begun = chm_now()};
    int status = CHM_OK, finished = 0, diverged = 0, failed = 0;
    r.seen = chm_alloc((size_t)p->cells * sizeof *r.seen);
    r.elsewhere = chm_alloc((size_t)p->cells * sizeof *r.elsewhere);
    r.job = chm_alloc((size_t)jobs * sizeof *r.job);
    if (r.seen == NULL || r.elsewhere == NULL || r.job == NULL) status = CHM_E_MEMORY;
    for (int i = 0; i < p->cells && status == CHM_OK; i++) {
        bool done;
        r.seen[i] = (chm_ablate_cell_progress){.name = p->cell[i].name,
                                               .state = CHM_CELL_WAITING,
                                               .total_tokens = p->cell[i].tokens,
                                               .bits_per_byte = NAN,
                                               .tokens_per_second = NAN};
        status = look_at_result(&r, i, &done);
    }
    if (status == CHM_OK) status = run_cells(&r);
    for (int i = 0; r.seen != NULL && i < p->cells; i++) {
        finished += r.seen[i].state == CHM_CELL_FINISHED;
        diverged += r.seen[i].state == CHM_CELL_DIVERGED;
        failed += r.seen[i].state == CHM_CELL_FAILED;
    }
    const bool stopped = r.stopping;
    chm_free(r.seen);
    chm_free(r.elsewhere);
    chm_free(r.job);
    if (status != CHM_OK) return status;
    if (stopped && finished + diverged < p->cells)
        return chm_fail(CHM_E_INTERRUPTED,
                        "stopped with %d of %d cells finished, everything is saved; go on by: chimera ablate %s",
                        finished + diverged, p->cells, p->directory);
    if ((status = chm_report(p->directory, format, out)) != CHM_OK) return status;
    if (failed > 0)
        return chm_fail(CHM_E_VERDICT,
                        "%d of %d cells failed; %s/report.md says why, and the same command tries them again", failed,
                        p->cells, p->directory);
    return CHM_OK;
}

int chm_ablate(chm_runtime *r, const chm_ablate_options *options, chm_output format, FILE *out) {
    chm_plan *p = NULL;
    char *study = NULL, *directory = NULL, real[PATH_MAX];
    int jobs, threads;
    if (options->size != sizeof *options)
        return chm_fail(CHM_E_CONFIG, "chm_ablate_options has size %u, this library expects %zu", options->size,
                        sizeof *options);
    int status = chm_runtime_ready(r);
    if (status == CHM_OK && options->command_count == 0 && !options->dry_run)
        status = chm_fail(CHM_E_CONFIG, "no command: name the words that run a cell");
    if (status == CHM_OK) status = name_places(options, &study, &directory);
    if (status == CHM_OK && (p = chm_alloc(sizeof *p)) == NULL) status = CHM_E_MEMORY;
    if (status == CHM_OK) status = chm_plan_make(p, r, options, study, directory);
    if (status != CHM_OK) goto out;
    share_threads(p, &jobs, &threads);
    if (options->dry_run) {
        status = print_plan(p, format, out);
        goto out;
    }
    if ((status = chm_make_directory(directory)) != CHM_OK) goto out;
    if (realpath(directory, real) != NULL) p->directory = real;
    if ((status = prepare(p)) != CHM_OK) goto out;
    status = options->slurm ? write_slurm(p, threads, out) : run_all(p, format, out, jobs, threads);
out:
    if (p != NULL) chm_plan_finish(p);
    chm_free(p);
    chm_free(study);
    chm_free(directory);
    return status;
}
