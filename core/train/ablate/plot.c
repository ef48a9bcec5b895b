/* plot.c: the drawings of a report, by gnuplot. Each is a file of its language with its numbers in it:
 * DIR/plots/NAME.gp. */
#include "train/ablate/report.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_SVG = 16 << 20, MOST_CURVE = 400 };

/* A word between double quotes. */
static void add_word(chm_string *s, const char *word) {
    chm_string_add(s, "\"");
    for (; *word; word++)
        if (*word == '"' || *word == '\\')
            chm_string_add(s, "\\%c", *word);
        else if ((unsigned char)*word >= 0x20)
            chm_string_add(s, "%c", *word);
    chm_string_add(s, "\"");
}

static void begin(chm_string *s, const char *name, const char *x, const char *y) {
    chm_string_add(s,
                   "set terminal svg size 760,420 dynamic noenhanced name \"%s\" font \"sans-serif,12\"\n"
                   "set grid back lc rgb \"#dddddd\"\nset border 3\nset tics nomirror\nset key outside right\n",
                   name);
    chm_string_add(s, "set xlabel ");
    add_word(s, x);
    chm_string_add(s, "\nset ylabel ");
    add_word(s, y);
    chm_string_add(s, "\n");
}

/* What the cells of every variant said while they learnt, at the point of the grid that is compared. */
static bool write_curves(const chm_report_page *p, chm_string *s) {
    chm_string plot = {0};
    int blocks = 0;
    begin(s, "loss", "tokens", p->answers ? "training, bits per answer" : "training, bits per byte");
    for (int v = 0; v < p->variant_count; v++) {
        bool named = false;
        for (int i = 0; i < p->cells; i++) {
            const chm_report_cell *c = &p->cell[i];
            if (c->variant != v || c->point != p->best[v] || c->log.lines < 2) continue;
            const int64_t step = (c->log.lines + MOST_CURVE - 1) / MOST_CURVE;
            int64_t points = 0;
            for (int64_t k = 0; k < c->log.lines; k += step) points += isfinite(c->log.line[k].bits_per_byte);
            if (points == 0) continue;
            chm_string_add(s, "$c%d << END\n", blocks);
            for (int64_t k = 0; k < c->log.lines; k += step)
                if (isfinite(c->log.line[k].bits_per_byte))
                    chm_string_add(s, "%.9g %.6g\n", c->log.line[k].tokens, c->log.line[k].bits_per_byte);
            chm_string_add(s, "END\n");
            chm_string_add(&plot, "%s$c%d using 1:2 with lines lc %d ", blocks ? ", \\\n  " : "", blocks, v + 1);
            if (named) {
                chm_string_add(&plot, "notitle");
            } else {
                chm_string_add(&plot, "title ");
                add_word(&plot, chm_report_variant(p, v));
            }
            named = true;
            blocks++;
        }
    }
    chm_string_add(s, "plot %s\n", plot.text ? plot.text : "");
    s->failed |= plot.failed;
    chm_string_finish(&plot);
    return blocks > 0;
}

static double state_bytes(const chm_report_page *p, const chm_report_cell *c) {
    (void)p;
    return chm_json_number(c->result, "state_bytes");
}
static double packed_bytes(const chm_report_page *p, const chm_report_cell *c) {
    (void)p;
    return chm_json_number(c->result, "packed_bytes");
}
static double flops(const chm_report_page *p, const chm_report_cell *c) {
    (void)p;
    return chm_json_number(c->result, "flops");
}
static double decode_rate(const chm_report_page *p, const chm_report_cell *c) {
    (void)p;
    return chm_json_number(c->result, "decode_tokens_per_second");
}
/* The first score: the share of right answers of a task, else bits per byte. */
static double score(const chm_report_page *p, const chm_report_cell *c) {
    return chm_report_value(p, c, 0, p->answers);
}

static const struct scatter {
    const char *name, *title, *x;
    double (*of)(const chm_report_page *, const chm_report_cell *);
    bool more_is_better;
} scatters[] = {{"state", "Score against the size of the state", "state of a stream, bytes", state_bytes, false},
                {"packed", "Score against the size of the file", "packed model, bytes", packed_bytes, false},
                {"flops", "Score against the work of training", "FLOPs of training", flops, false},
                {"decode", "Score against the speed of decoding", "decoding, tokens/s", decode_rate, true}};

/* One point a variant, and the steps of those that no other beats in both. */
static bool write_scatter(const chm_report_page *p, const struct scatter *q, chm_string *s) {
    double x[CHM_STUDY_VARIANTS] = {0}, y[CHM_STUDY_VARIANTS] = {0}, deviation[CHM_STUDY_VARIANTS] = {0};
    int variant[CHM_STUDY_VARIANTS] = {0}, n = 0, front = 0;
    for (int v = 0; v < p->variant_count && n < CHM_STUDY_VARIANTS; v++) {
        int count;
        x[n] = chm_report_mean(p, v, q->of, NULL, NULL);
        y[n] = chm_report_mean(p, v, score, &deviation[n], &count);
        if (!isfinite(deviation[n])) deviation[n] = 0;
        variant[n] = v;
        n += isfinite(x[n]) && isfinite(y[n]) && x[n] > 0;
    }
    begin(s, q->name, q->x, p->answers ? "share of right answers" : "bits per byte");
    /* a single value has no scale of its own */
    bool spread = false;
    for (int i = 1; i < n; i++) spread |= x[i] != x[0];
    if (spread) chm_string_add(s, "set logscale x\n");
    chm_string_add(s, "set offsets graph 0.1, graph 0.1, graph 0.1, graph 0.1\n");
    if (!spread && n > 0) chm_string_add(s, "set xrange [%.9g:%.9g]\n", x[0] * 0.5, x[0] * 1.5);
    const double better_x = q->more_is_better ? -1 : 1, better_y = p->answers ? -1 : 1;
    chm_string_add(s, "$front << END\n");
    for (double last = -INFINITY;;) { /* in the order of x */
        int next = -1;
        for (int i = 0; i < n; i++) {
            bool beaten = better_x * x[i] <= last;
            for (int k = 0; k < n && !beaten; k++)
                beaten = better_x * x[k] <= better_x * x[i] && better_y * y[k] <= better_y * y[i] &&
                         (x[k] != x[i] || y[k] != y[i]);
            if (!beaten && (next < 0 || better_x * x[i] < better_x * x[next])) next = i;
        }
        if (next < 0) break;
        chm_string_add(s, "%.9g %.9g\n", x[next], y[next]);
        last = better_x * x[next];
        front++;
    }
    chm_string_add(s, "END\n");
    for (int i = 0; i < n; i++) chm_string_add(s, "$v%d << END\n%.9g %.9g %.9g\nEND\n", i, x[i], y[i], deviation[i]);
    chm_string_add(s, "plot ");
    if (front > 1)
        chm_string_add(s, "$front using 1:2 with %s lc rgb \"#999999\" dt 2 title \"not beaten in both\", \\\n  ",
                       q->more_is_better ? "lines" : "steps");
    for (int i = 0; i < n; i++) {
        chm_string_add(s, "%s$v%d using 1:2:3 with yerrorbars pt 7 lc %d title ", i ? ", \\\n  " : "", i,
                       variant[i] + 1);
        add_word(s, chm_report_variant(p, variant[i]));
    }
    chm_string_add(s, "\n");
    return n > 0;
}

/* Runs gnuplot on DIR/plots/NAME.gp; *svg stays NULL where it did not draw. *missing: there is no gnuplot. */
static int draw(chm_report_page *p, const char *name, const chm_string *commands, char **svg, bool *missing) {
    char *source = chm_format("%s/plots/%s.gp", p->directory, name);
    char *drawing = chm_format("%s/plots/%s.svg", p->directory, name), *text = NULL;
    size_t bytes = 0;
    int pid, how = 0;
    int status = !source || !drawing || commands->failed ? chm_fail(CHM_E_MEMORY, "out of memory for a drawing")
                                                         : chm_write_file(source, commands->text, commands->length);
    *svg = NULL;
    const char *const argv[] = {"gnuplot", source, NULL};
    if (status == CHM_OK) status = chm_process_start(argv, drawing, "/dev/null", &pid);
    if (status == CHM_OK) {
        while (waitpid(pid, &how, 0) < 0 && errno == EINTR) continue;
        *missing = WIFEXITED(how) && WEXITSTATUS(how) == 127;
        const bool drawn = WIFEXITED(how) && WEXITSTATUS(how) == 0;
        if (drawn && chm_read_file(drawing, MOST_SVG, &text, &bytes) == CHM_OK && text != NULL) {
            /* in a page it needs no head of its own */
            const char *begin = strstr(text, "<svg");
            if (begin != NULL && (*svg = chm_strdup(begin)) == NULL) status = CHM_E_MEMORY;
        }
        if (!drawn && drawing != NULL) unlink(drawing);
    }
    chm_free(text);
    chm_free(source);
    chm_free(drawing);
    return status;
}

static int add_drawing(chm_report_page *p, const char *name, const char *title, const chm_string *commands,
                       bool *missing) {
    char *svg = NULL;
    const int status = draw(p, name, commands, &svg, missing);
    if (status != CHM_OK || *missing) return status;
    chm_report_block *b = chm_report_add(p, title);
    b->svg = svg;
    if (svg == NULL) {
        b->text = chm_format("gnuplot did not draw plots/%s.gp", name);
        p->failed |= b->text == NULL;
    }
    chm_free(b->command);
    b->command = chm_format("gnuplot %s/plots/%s.gp > %s.svg", p->place, name, name);
    p->failed |= b->command == NULL;
    return CHM_OK;
}

int chm_report_plots(chm_report_page *p) {
    char *folder = chm_format("%s/plots", p->directory);
    bool missing = false;
    chm_string s = {0};
    int status = folder == NULL ? CHM_E_MEMORY : chm_make_directory(folder);
    chm_free(folder);
    if (status == CHM_OK && write_curves(p, &s))
        status = add_drawing(p, "loss", "Training: bits against tokens", &s, &missing);
    chm_string_finish(&s);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(scatters) && status == CHM_OK; i++) {
        if (write_scatter(p, &scatters[i], &s))
            status = add_drawing(p, scatters[i].name, scatters[i].title, &s, &missing);
        chm_string_finish(&s);
    }
    if (status == CHM_OK && missing) {
        chm_report_block *b = chm_report_add(p, "No drawings");
        b->text = chm_strdup("gnuplot is not installed (Debian: gnuplot-nox). What it would draw is in plots/*.gp.");
        p->failed |= b->text == NULL;
    }
    return status;
}
