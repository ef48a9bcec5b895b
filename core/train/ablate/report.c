/* report.c: chm_report(): tables of what the cells of a study left behind. */
#include "train/ablate/report.h"
#include "model/json.h"
#include "train/ablate/statistics.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double level = 0.05; /* of the corrected test that a verdict is based on */

static const char *const state_name[] = {[CHM_CELL_WAITING] = "not run",
                                         [CHM_CELL_RUNNING] = "running",
                                         [CHM_CELL_FINISHED] = "finished",
                                         [CHM_CELL_DIVERGED] = "diverged",
                                         [CHM_CELL_FAILED] = "failed"};

/* ---- reading the directory ---- */

static int find_variant(const chm_report_page *p, const char *name) {
    for (int i = 0; name != NULL && i < p->variant_count; i++)
        if (strcmp(chm_report_variant(p, i), name) == 0) return i;
    return -1;
}

static int read_cell(chm_report_page *p, const json_t *x, chm_report_cell *c) {
    c->name = chm_json_word(x, "name");
    c->variant = find_variant(p, chm_json_word(x, "variant"));
    c->point = (int)chm_json_number(x, "point") - 1;
    c->seed = (int64_t)chm_json_number(x, "seed");
    if (c->variant < 0 || c->point < 0 || c->point >= p->points || strchr(c->name, '/'))
        return chm_fail(CHM_E_DATA, "%s/manifest.json: the cell '%s' is of no variant of the study", p->directory,
                        c->name);
    int status = chm_cell_result(p->directory, c->name, &c->result);
    if (status != CHM_OK) return status;
    char *log = chm_format("%s/cells/%s/log.jsonl", p->directory, c->name);
    char *failed = chm_format("%s/cells/%s/failed.json", p->directory, c->name);
    status = log == NULL || failed == NULL ? CHM_E_MEMORY : chm_cell_log_read(log, &c->log);
    if (c->result != NULL) {
        const bool diverged = strcmp(chm_json_word(c->result, "status"), "diverged") == 0;
        c->state = diverged ? CHM_CELL_DIVERGED : CHM_CELL_FINISHED;
        const char *message = chm_json_word(c->result, "message");
        if (diverged && message != NULL && (c->failure = chm_strdup(message)) == NULL) status = CHM_E_MEMORY;
    } else if (chm_cell_is_locked(p->directory, c->name)) {
        c->state = CHM_CELL_RUNNING;
    } else if (status == CHM_OK && access(failed, F_OK) == 0) {
        json_t *why = NULL;
        c->state = CHM_CELL_FAILED;
        if (chm_json_read(failed, &why) == CHM_OK && chm_json_word(why, "message"))
            c->failure = chm_strdup(chm_json_word(why, "message"));
        json_decref(why);
    }
    chm_free(log);
    chm_free(failed);
    return status;
}

static int read_directory(chm_report_page *p) {
    int status = chm_manifest_load(p->directory, &p->manifest);
    if (status != CHM_OK) return status;
    p->study = json_object_get(p->manifest, "study");
    p->variants = json_object_get(p->study, "variants");
    p->grid = json_object_get(p->study, "grid");
    p->variant_count = (int)json_array_size(p->variants);
    p->seeds = (int)json_array_size(json_object_get(p->study, "seeds"));
    p->points = 1;
    for (size_t a = 0; a < json_array_size(p->grid); a++)
        p->points *= (int)json_array_size(json_object_get(json_array_get(p->grid, a), "values"));
    p->baseline = find_variant(p, chm_json_word(p->study, "baseline"));
    for (int i = 0; i < p->variant_count; i++)
        if (chm_report_variant(p, i)[0] == '\0') p->baseline = -1;
    if (p->baseline < 0 || p->points < 1)
        return chm_fail(CHM_E_DATA, "%s/manifest.json: its study has no baseline; begin the study in another directory",
                        p->directory);
    const json_t *cells = json_object_get(p->manifest, "cells"), *scores = json_object_get(p->manifest, "scores");
    p->cell = chm_alloc(json_array_size(cells) * sizeof *p->cell);
    p->best = chm_alloc((size_t)p->variant_count * sizeof *p->best);
    if (p->cell == NULL || p->best == NULL) return CHM_E_MEMORY;
    for (size_t i = 0; i < json_array_size(scores); i++) {
        const char *name = chm_json_word(json_array_get(scores, i), "name");
        bool seen = false;
        for (int k = 0; k < p->scores; k++) seen |= strcmp(p->score[k], name) == 0;
        if (!seen && p->scores < CHM_REPORT_SCORES) p->score[p->scores++] = name;
    }
    for (size_t i = 0; i < json_array_size(cells) && status == CHM_OK; i++)
        status = read_cell(p, json_array_get(cells, i), &p->cell[p->cells++]);
    for (int i = 0; i < p->cells; i++) p->answers |= isfinite(chm_report_value(p, &p->cell[i], 0, true));
    return status;
}

/* ---- numbers ---- */

const char *chm_report_variant(const chm_report_page *p, int variant) {
    const char *name = chm_json_word(json_array_get(p->variants, (size_t)variant), "name");
    return name ? name : "";
}

double chm_report_value(const chm_report_page *p, const chm_report_cell *c, int score, bool accuracy) {
    const json_t *list = json_object_get(c->result, "scores");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = chm_json_word(json_array_get(list, i), "name");
        if (name != NULL && strcmp(name, p->score[score]) == 0)
            return chm_json_number(json_array_get(list, i), accuracy ? "accuracy" : "bits_per_byte");
    }
    return NAN;
}

static double bits(const chm_report_page *p, const chm_report_cell *c) { return chm_report_value(p, c, 0, false); }

static double mean_at(const chm_report_page *p, int variant, int point,
                      double (*of)(const chm_report_page *, const chm_report_cell *), double *deviation, int *count) {
    double value[CHM_STUDY_SEEDS];
    int n = 0;
    for (int i = 0; i < p->cells; i++) {
        const chm_report_cell *c = &p->cell[i];
        if (c->variant != variant || c->point != point || c->state != CHM_CELL_FINISHED) continue;
        const double x = of(p, c);
        if (isfinite(x) && n < CHM_STUDY_SEEDS) value[n++] = x;
    }
    if (deviation != NULL) *deviation = chm_deviation(value, n);
    if (count != NULL) *count = n;
    return chm_mean(value, n);
}

double chm_report_mean(const chm_report_page *p, int variant,
                       double (*of)(const chm_report_page *, const chm_report_cell *), double *deviation, int *n) {
    return mean_at(p, variant, p->best[variant], of, deviation, n);
}

static int count_state(const chm_report_page *p, int variant, int point, chm_cell_state state) {
    int n = 0;
    for (int i = 0; i < p->cells; i++)
        n += (variant < 0 || p->cell[i].variant == variant) && (point < 0 || p->cell[i].point == point) &&
             p->cell[i].state == state;
    return n;
}

/* Of every variant the point of the grid with the fewest bits; one where a cell diverged comes after all others. */
static void choose_points(chm_report_page *p) {
    for (int v = 0; v < p->variant_count; v++) {
        double best = INFINITY;
        int least = p->seeds + 1;
        for (int point = 0; point < p->points; point++) {
            const double mean = mean_at(p, v, point, bits, NULL, NULL);
            const int diverged = count_state(p, v, point, CHM_CELL_DIVERGED);
            if (isnan(mean) || diverged > least || (diverged == least && mean >= best)) continue;
            best = mean;
            least = diverged;
            p->best[v] = point;
        }
    }
}

/* The value of an axis at a point. */
static const char *axis_value(const chm_report_page *p, size_t axis, int point) {
    for (size_t a = json_array_size(p->grid); --a > axis;)
        point /= (int)json_array_size(json_object_get(json_array_get(p->grid, a), "values"));
    const json_t *values = json_object_get(json_array_get(p->grid, axis), "values");
    return json_string_value(json_array_get(values, (size_t)point % json_array_size(values)));
}

static const char *axis_key(const chm_report_page *p, size_t axis) {
    const char *key = chm_json_word(json_array_get(p->grid, axis), "key");
    return key ? key : "";
}

/* The best of a learning rate, or of any number, may lie beyond the values that were tried. */
static void add_edges(const chm_report_page *p, int variant, chm_string *out) {
    for (size_t a = 0; a < json_array_size(p->grid); a++) {
        const json_t *values = json_object_get(json_array_get(p->grid, a), "values");
        const char *chosen = axis_value(p, a, p->best[variant]);
        char *end;
        const double best = chosen ? strtod(chosen, &end) : NAN;
        bool below = false, above = false, numbers = chosen && end != chosen && *end == '\0';
        for (size_t i = 0; i < json_array_size(values); i++) {
            const char *text = json_string_value(json_array_get(values, i));
            const double x = text ? strtod(text, &end) : NAN;
            numbers = numbers && text && end != text && *end == '\0';
            below |= x < best;
            above |= x > best;
        }
        if (numbers && json_array_size(values) > 1 && !(below && above))
            chm_string_add(out, "%s%s %s lies at the edge of its grid", out->length ? "; " : "", axis_key(p, a),
                           chosen);
    }
}

/* ---- blocks ---- */

chm_report_block *chm_report_add(chm_report_page *p, const char *title) {
    /* the last one is overwritten where there are too many, which a study cannot ask for */
    chm_report_block *b = &p->block[CHM_MIN(p->blocks, CHM_REPORT_BLOCKS - 1)];
    if (p->blocks < CHM_REPORT_BLOCKS) p->blocks++;
    b->title = chm_strdup(title);
    b->command = chm_strdup(p->again);
    p->failed |= b->title == NULL || b->command == NULL;
    chm_table_init(&b->table);
    return b;
}

static void columns(chm_table *t, const char *const *heads) {
    for (; *heads; heads++) chm_table_column(t, *heads);
}

/* A number, or nothing. */
static void cell_number(chm_table *t, const char *format, double x) {
    char text[64] = "";
    /* format is one of ours, below */
    if (isfinite(x)) {
        if (strcmp(format, "bits") == 0) snprintf(text, sizeof text, "%.4f", x);
        if (strcmp(format, "p") == 0) snprintf(text, sizeof text, "%.3g", x);
        if (strcmp(format, "whole") == 0) snprintf(text, sizeof text, "%.0f", x);
        if (strcmp(format, "exact") == 0) snprintf(text, sizeof text, "%.17g", x);
        if (strcmp(format, "rate") == 0) snprintf(text, sizeof text, "%.1f", x);
    }
    chm_table_cell(t, "%s", text);
}

/* Differences of a variant from the baseline, seed by seed. */
static int pairs(const chm_report_page *p, int variant, int score, bool accuracy, double *difference) {
    int n = 0;
    for (int i = 0; i < p->cells; i++) {
        const chm_report_cell *a = &p->cell[i];
        if (a->variant != variant || a->point != p->best[variant] || a->state != CHM_CELL_FINISHED) continue;
        for (int k = 0; k < p->cells; k++) {
            const chm_report_cell *b = &p->cell[k];
            if (b->variant != p->baseline || b->point != p->best[p->baseline] || b->seed != a->seed ||
                b->state != CHM_CELL_FINISHED)
                continue;
            const double d = chm_report_value(p, a, score, accuracy) - chm_report_value(p, b, score, accuracy);
            if (isfinite(d) && n < CHM_STUDY_SEEDS) difference[n++] = d;
        }
    }
    return n;
}

typedef struct comparison {
    double mean, deviation, difference, low, high, p, holm;
    int n, pairs;
} comparison;

static comparison compare(const chm_report_page *p, int v, int score, bool accuracy) {
    double value[CHM_STUDY_SEEDS], difference[CHM_STUDY_SEEDS];
    comparison c = {.low = NAN, .high = NAN, .p = NAN};
    for (int i = 0; i < p->cells; i++) {
        const chm_report_cell *x = &p->cell[i];
        if (x->variant != v || x->point != p->best[v] || x->state != CHM_CELL_FINISHED) continue;
        const double y = chm_report_value(p, x, score, accuracy);
        if (isfinite(y) && c.n < CHM_STUDY_SEEDS) value[c.n++] = y;
    }
    c.mean = chm_mean(value, c.n);
    c.deviation = chm_deviation(value, c.n);
    c.difference = NAN;
    if (v == p->baseline) return c;
    c.pairs = pairs(p, v, score, accuracy, difference);
    c.difference = chm_mean(difference, c.pairs);
    if (c.pairs < 2) return c;
    const double error = chm_deviation(difference, c.pairs) / sqrt(c.pairs);
    const double half = chm_t_quantile(0.95, c.pairs - 1) * error;
    c.low = c.difference - half;
    c.high = c.difference + half;
    /* differences that are all the same leave nothing to chance, or are none */
    c.p = error > 0 ? chm_t_two_sided(c.difference / error, c.pairs - 1) : c.difference == 0 ? 1 : 0;
    return c;
}

static void add_comparison(chm_report_page *p, int score, bool accuracy) {
    char title[160];
    const char *what = accuracy ? "Share of right answers" : p->answers ? "Bits per answer" : "Bits per byte";
    snprintf(title, sizeof title, "%s, %s", what, p->score[score]);
    chm_report_block *b = chm_report_add(p, title);
    b->main = true;
    static const char *const heads[] = {"variant", "#n", "#mean",      "#sd",          "#difference", "#95 % from",
                                        "#to",     "#p", "#p by Holm", "what it says", NULL};
    columns(&b->table, heads);
    comparison *all = chm_alloc((size_t)p->variant_count * sizeof *all);
    double *holm = chm_alloc((size_t)p->variant_count * sizeof *holm);
    if (all == NULL || holm == NULL) {
        p->failed = true;
        goto out;
    }
    for (int v = 0; v < p->variant_count; v++) {
        all[v] = compare(p, v, score, accuracy);
        holm[v] = all[v].p;
    }
    chm_holm(holm, p->variant_count);
    for (int v = 0; v < p->variant_count; v++) {
        const comparison *c = &all[v];
        chm_string says = {0};
        if (v == p->baseline)
            chm_string_add(&says, "baseline");
        else if (c->pairs == 0)
            chm_string_add(&says, "no pair with the baseline");
        else if (c->pairs == 1)
            chm_string_add(&says, "one pair: nothing can be said");
        else if (holm[v] < level)
            chm_string_add(&says, "%s", (c->difference < 0) != accuracy ? "better" : "worse");
        else
            chm_string_add(&says, "no difference shown");
        const int diverged = count_state(p, v, p->best[v], CHM_CELL_DIVERGED);
        const int failed = count_state(p, v, p->best[v], CHM_CELL_FAILED);
        const int open =
            count_state(p, v, p->best[v], CHM_CELL_WAITING) + count_state(p, v, p->best[v], CHM_CELL_RUNNING);
        if (diverged > 0) chm_string_add(&says, "; %d diverged", diverged);
        if (failed > 0) chm_string_add(&says, "; %d failed", failed);
        if (open > 0) chm_string_add(&says, "; %d not finished", open);
        if (score == 0 && p->points > 1) add_edges(p, v, &says);
        chm_table_cell(&b->table, "%s", chm_report_variant(p, v));
        chm_table_cell(&b->table, "%d", c->n);
        cell_number(&b->table, "bits", c->mean);
        cell_number(&b->table, "bits", c->deviation);
        cell_number(&b->table, "bits", c->difference);
        cell_number(&b->table, "bits", c->low);
        cell_number(&b->table, "bits", c->high);
        cell_number(&b->table, "p", c->p);
        cell_number(&b->table, "p", holm[v]);
        chm_table_cell(&b->table, "%s", says.text ? says.text : "");
        p->failed |= says.failed;
        chm_string_finish(&says);
    }
    const comparison *base = &all[p->baseline];
    chm_string text = {0};
    chm_string_add(&text,
                   "Differences are paired: the same seed, so the same order of data and, where shapes agree, the same "
                   "initial values, as %s. The interval is Student's t over the pairs, p a paired t-test of two sides, "
                   "corrected by Holm over this table; a verdict needs a corrected p below %g. ",
                   chm_report_variant(p, p->baseline), level);
    if (isfinite(base->deviation))
        chm_string_add(&text, "Noise floor: the baseline's standard deviation over %d seeds is %.4f.", base->n,
                       base->deviation);
    else
        chm_string_add(&text, "The noise floor is not known: the baseline has %d finished seed%s, and two are needed.",
                       base->n, base->n == 1 ? "" : "s");
    if (p->seeds < 3) chm_string_add(&text, " Fewer than three seeds: read nothing into this table.");
    if (p->points > 1)
        chm_string_add(&text, " Each variant stands there at its best point of the grid, chosen by the same numbers: "
                              "that flatters all of them alike.");
    p->failed |= text.failed;
    b->text = text.text;
out:
    chm_free(all);
    chm_free(holm);
}

static void add_points(chm_report_page *p) {
    chm_report_block *b = chm_report_add(p, "Every point of the grid");
    chm_table_column(&b->table, "variant");
    for (size_t a = 0; a < json_array_size(p->grid); a++) chm_table_column(&b->table, axis_key(p, a));
    static const char *const heads[] = {"#n", "#diverged", "#mean", "#sd", "best", NULL};
    columns(&b->table, heads);
    for (int v = 0; v < p->variant_count; v++)
        for (int point = 0; point < p->points; point++) {
            double deviation;
            int n;
            const double mean = mean_at(p, v, point, bits, &deviation, &n);
            chm_table_cell(&b->table, "%s", chm_report_variant(p, v));
            for (size_t a = 0; a < json_array_size(p->grid); a++) {
                const char *value = axis_value(p, a, point);
                chm_table_cell(&b->table, "%s", value ? value : "");
            }
            chm_table_cell(&b->table, "%d", n);
            chm_table_cell(&b->table, "%d", count_state(p, v, point, CHM_CELL_DIVERGED));
            cell_number(&b->table, "bits", mean);
            cell_number(&b->table, "bits", deviation);
            chm_table_cell(&b->table, "%s", n > 0 && point == p->best[v] ? "best" : "");
        }
}

#define FIELD(name)                                                                                                    \
    static double of_##name(const chm_report_page *p, const chm_report_cell *c) {                                      \
        (void)p;                                                                                                       \
        return chm_json_number(c->result, #name);                                                                      \
    }
FIELD(parameters)
FIELD(active_parameters)
FIELD(state_bytes)
FIELD(packed_bytes)
FIELD(tokens)
FIELD(flops)
FIELD(seconds)
FIELD(training_tokens_per_second)
FIELD(decode_tokens_per_second)
FIELD(peak_bytes)
#undef FIELD

static const struct {
    const char *name, *format, *head;
    double (*of)(const chm_report_page *, const chm_report_cell *);
} fields[] = {{"parameters", "whole", "#parameters", of_parameters},
              {"active_parameters", "whole", "#active", of_active_parameters},
              {"state_bytes", "whole", "#state, bytes", of_state_bytes},
              {"packed_bytes", "whole", "#packed, bytes", of_packed_bytes},
              {"tokens", "whole", "#tokens", of_tokens},
              {"flops", "p", "#FLOPs", of_flops},
              {"seconds", "rate", "#seconds", of_seconds},
              {"training_tokens_per_second", "rate", "#training tokens/s", of_training_tokens_per_second},
              {"decode_tokens_per_second", "rate", "#decode tokens/s", of_decode_tokens_per_second},
              {"peak_bytes", "whole", "#peak memory, bytes", of_peak_bytes}};

static void add_cost(chm_report_page *p) {
    chm_report_block *b = chm_report_add(p, "Size and cost");
    chm_table_column(&b->table, "variant");
    for (size_t i = 0; i < CHM_ARRAY_COUNT(fields); i++) chm_table_column(&b->table, fields[i].head);
    for (int v = 0; v < p->variant_count; v++) {
        chm_table_cell(&b->table, "%s", chm_report_variant(p, v));
        for (size_t i = 0; i < CHM_ARRAY_COUNT(fields); i++)
            cell_number(&b->table, fields[i].format, chm_report_mean(p, v, fields[i].of, NULL, NULL));
    }
    b->text = chm_strdup(
        "Means over the finished seeds. FLOPs are 6 for every parameter that a token meets (2 forward, 4 back), loops "
        "as "
        "often as training made them, recurrences not counted. Seconds and rates were measured while other cells ran "
        "beside.");
    p->failed |= b->text == NULL;
}

/* The commands that make a cell's score again need nothing of the study. */
static void add_cells(chm_report_page *p) {
    chm_report_block *b = chm_report_add(p, "Cells");
    static const char *const heads[] = {"cell", "state", "#seed", "#steps", "#training loss, nats", NULL};
    columns(&b->table, heads);
    for (int s = 0; s < p->scores; s++) {
        chm_table_column(&b->table, p->score[s]);
        b->table.right[b->table.columns - 1] = true;
    }
    for (int i = 0; i < p->cells; i++) {
        const chm_report_cell *c = &p->cell[i];
        chm_table_cell(&b->table, "%s", c->name);
        chm_table_cell(&b->table, "%s", state_name[c->state]);
        chm_table_cell(&b->table, "%lld", (long long)c->seed);
        cell_number(&b->table, "whole", chm_json_number(c->result, "steps"));
        cell_number(&b->table, "bits", chm_json_number(c->result, "loss"));
        for (int s = 0; s < p->scores; s++) cell_number(&b->table, "bits", chm_report_value(p, c, s, false));
    }
    chm_free(b->command);
    b->command = chm_format("chimera eval %s/cells/NAME/model.b158 --data FILES", p->place);
    p->failed |= b->command == NULL;
}

static void add_failures(chm_report_page *p) {
    chm_report_block *b = NULL;
    for (int i = 0; i < p->cells; i++) {
        const chm_report_cell *c = &p->cell[i];
        if (c->state != CHM_CELL_FAILED && c->state != CHM_CELL_DIVERGED) continue;
        if (b == NULL) {
            static const char *const heads[] = {"cell", "state", "why", NULL};
            b = chm_report_add(p, "Cells that diverged or failed");
            columns(&b->table, heads);
        }
        chm_table_cell(&b->table, "%s", c->name);
        chm_table_cell(&b->table, "%s", state_name[c->state]);
        chm_table_cell(&b->table, "%s", c->failure ? c->failure : "");
    }
}

static void fill_results(const chm_report_page *p, chm_table *t) {
    static const char *const first[] = {"cell", "variant", NULL}, *const next[] = {"#seed", "state", NULL};
    static char heads[2 * CHM_REPORT_SCORES][96];
    columns(t, first);
    for (size_t a = 0; a < json_array_size(p->grid); a++) chm_table_column(t, axis_key(p, a));
    columns(t, next);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(fields); i++) chm_table_column(t, fields[i].name);
    for (int s = 0; s < p->scores; s++) {
        snprintf(heads[2 * s], sizeof heads[0], "#bits_per_byte:%s", p->score[s]);
        snprintf(heads[2 * s + 1], sizeof heads[0], "#accuracy:%s", p->score[s]);
        chm_table_column(t, heads[2 * s]);
        if (p->answers) chm_table_column(t, heads[2 * s + 1]);
    }
    static const char *const last[] = {"threads", "cpu", "kernels", "training_kernels", "commit", "config_hash", NULL};
    columns(t, last);
    for (int i = 0; i < p->cells; i++) {
        const chm_report_cell *c = &p->cell[i];
        chm_table_cell(t, "%s", c->name);
        chm_table_cell(t, "%s", chm_report_variant(p, c->variant));
        for (size_t a = 0; a < json_array_size(p->grid); a++) {
            const char *value = axis_value(p, a, c->point);
            chm_table_cell(t, "%s", value ? value : "");
        }
        chm_table_cell(t, "%lld", (long long)c->seed);
        chm_table_cell(t, "%s", state_name[c->state]);
        for (size_t k = 0; k < CHM_ARRAY_COUNT(fields); k++)
            cell_number(t, strcmp(fields[k].format, "rate") == 0 ? "rate" : "exact", fields[k].of(p, c));
        for (int s = 0; s < p->scores; s++) {
            cell_number(t, "exact", chm_report_value(p, c, s, false));
            if (p->answers) cell_number(t, "exact", chm_report_value(p, c, s, true));
        }
        cell_number(t, "whole", chm_json_number(c->result, "threads"));
        for (size_t k = 1; last[k] != NULL; k++) {
            const char *word = chm_json_word(c->result, last[k]);
            chm_table_cell(t, "%s", word ? word : "");
        }
    }
}

/* ---- what stands on top ---- */

static void fact(chm_report_page *p, const char *format, ...) CHM_PRINTF(2, 3);
static void fact(chm_report_page *p, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    chm_fit(text, sizeof text, format, args);
    va_end(args);
    chm_printable(text, false);
    if (p->facts == CHM_REPORT_FACTS) return;
    if ((p->fact[p->facts] = chm_strdup(text)) == NULL)
        p->failed = true;
    else
        p->facts++;
}

/* Distinct words of the results, as "A; B". */
static void say_all(chm_report_page *p, const char *what, const char *key) {
    const char *seen[8];
    int count = 0;
    for (int i = 0; i < p->cells; i++) {
        const char *word = chm_json_word(p->cell[i].result, key);
        bool before = word == NULL;
        for (int k = 0; k < count; k++) before = before || strcmp(seen[k], word) == 0;
        if (!before && count < (int)CHM_ARRAY_COUNT(seen)) seen[count++] = word;
    }
    for (int k = 0; k < count; k++) fact(p, "%s: %s", what, seen[k]);
    if (count > 1)
        fact(p, "Note: cells ran with more than one %s; rates and last bits are not those of one machine", key);
}

static void add_facts(chm_report_page *p) {
    const char *title = chm_json_word(p->study, "title"), *card = chm_json_word(p->manifest, "card");
    p->title = chm_strdup(title ? title : "Ablation");
    p->failed |= p->title == NULL;
    const double tokens = chm_json_number(p->study, "tokens"), seconds = chm_json_number(p->study, "seconds");
    const char *match = chm_json_word(p->study, "match");
    fact(p, "Card: %s", card);
    if (tokens > 0) fact(p, "Budget of a cell: %.0f tokens", tokens);
    if (seconds > 0) fact(p, "Budget of a cell: %g seconds", seconds);
    if (chm_json_number(p->study, "flops") > 0)
        fact(p, "Budget of a cell: %g FLOPs", chm_json_number(p->study, "flops"));
    if (match != NULL && match[0] == 'p')
        fact(p, "Parameters of all variants agree within 1 %% (intermediate_size was solved for)");
    fact(p, "%d variants, %d seeds%s, baseline %s", p->variant_count, p->seeds, p->points > 1 ? ", a grid" : "",
         chm_report_variant(p, p->baseline));
    for (int k = 0; k < 2; k++) {
        const json_t *list = json_object_get(p->manifest, k ? "scores" : "data");
        for (size_t i = 0; i < json_array_size(list) && i < 8; i++) {
            const json_t *m = json_array_get(list, i);
            const char *hash = chm_json_word(m, "hash");
            fact(p, "%s%s%s: %s, %.0f bytes, hash %s", k ? "Scored, " : "Data", k ? chm_json_word(m, "name") : "", "",
                 chm_json_word(m, "path"), chm_json_number(m, "bytes"), hash ? hash : "?");
        }
    }
    const char *version = chm_json_word(p->manifest, "version"), *build = chm_json_word(p->manifest, "build");
    fact(p, "Chimera %s, commit %s, build %s", version ? version : "?", chm_json_word(p->manifest, "commit"),
         build ? build : "?");
    say_all(p, "CPU", "cpu");
    say_all(p, "Kernels", "kernels");
    fact(p, "Cells: %d finished, %d diverged, %d failed, %d not finished, of %d",
         count_state(p, -1, -1, CHM_CELL_FINISHED), count_state(p, -1, -1, CHM_CELL_DIVERGED),
         count_state(p, -1, -1, CHM_CELL_FAILED),
         count_state(p, -1, -1, CHM_CELL_WAITING) + count_state(p, -1, -1, CHM_CELL_RUNNING), p->cells);
    fact(p, "All of it again, in another directory: chimera ablate %s/study.ini --out NEW", p->place);
}

/* ---- writing ---- */

static int write_markdown(const chm_report_page *p, FILE *out) {
    int status = CHM_OK;
    fprintf(out, "# %s\n\n", p->title);
    for (int i = 0; i < p->facts; i++) fprintf(out, "- %s\n", p->fact[i]);
    for (int i = 0; i < p->blocks && status == CHM_OK; i++) {
        const chm_report_block *b = &p->block[i];
        fprintf(out, "\n## %s\n\n", b->title);
        if (b->text) fprintf(out, "%s\n\n", b->text);
        if (b->svg) fprintf(out, "The drawing is in report.html and in plots.\n\n");
        if (b->table.columns > 0) {
            status = chm_table_print(&b->table, CHM_OUTPUT_MD, out);
            fputc('\n', out);
        }
        fprintf(out, "Again: `%s`\n", b->command);
    }
    return status;
}

static int write_json(const chm_report_page *p, const chm_table *results, FILE *out) {
    fputs("{\n  \"schema_version\": 1,\n  \"title\": ", out);
    chm_json_string(out, p->title);
    fputs(",\n  \"tables\": {", out);
    int status = CHM_OK, n = 0;
    for (int i = 0; i < p->blocks && status == CHM_OK; i++) {
        if (p->block[i].table.columns == 0) continue;
        fputs(n++ ? ",\n    " : "\n    ", out);
        chm_json_string(out, p->block[i].title);
        fputs(": ", out);
        status = chm_table_json(&p->block[i].table, 4, out);
    }
    fputs("\n  },\n  \"results\": ", out);
    if (status == CHM_OK) status = chm_table_json(results, 2, out);
    fputs("\n}\n", out);
    return status;
}

static int write_text(const chm_report_page *p, FILE *out) {
    int status = CHM_OK;
    for (int i = 0; i < p->blocks && status == CHM_OK; i++) {
        const chm_report_block *b = &p->block[i];
        if (!b->main) continue;
        fprintf(out, "%s\n", b->title);
        status = chm_table_print(&b->table, CHM_OUTPUT_TEXT, out);
        fputc('\n', out);
    }
    for (int i = 0; i < p->facts; i++)
        if (strncmp(p->fact[i], "Cells:", 6) == 0 || strncmp(p->fact[i], "Note:", 5) == 0)
            fprintf(out, "%s\n", p->fact[i]);
    fprintf(out, "%s/report.html, report.md and results.csv have the rest\n", p->directory);
    return status;
}

/* One of the files of DIR, atomically. */
static int save(const chm_report_page *p, const chm_table *results, const char *name) {
    char *path = chm_format("%s/%s", p->directory, name);
    chm_writer w;
    int status = path == NULL ? CHM_E_MEMORY : chm_writer_open(&w, path);
    if (status == CHM_OK) {
        if (strcmp(name, "results.csv") == 0)
            status = chm_table_print(results, CHM_OUTPUT_CSV, w.file);
        else if (strcmp(name, "report.md") == 0)
            status = write_markdown(p, w.file);
        else
            chm_report_html(p, w.file);
        if (status == CHM_OK) status = chm_writer_commit(&w);
        chm_writer_abandon(&w);
    }
    chm_free(path);
    return status;
}

static void release(chm_report_page *p) {
    for (int i = 0; i < p->cells; i++) {
        json_decref(p->cell[i].result);
        chm_free(p->cell[i].failure);
        chm_cell_log_finish(&p->cell[i].log);
    }
    for (int i = 0; i < p->blocks; i++) {
        chm_report_block *b = &p->block[i];
        chm_free(b->title);
        chm_free(b->text);
        chm_free(b->command);
        chm_free(b->svg);
        chm_table_finish(&b->table);
    }
    for (int i = 0; i < p->facts; i++) chm_free(p->fact[i]);
    chm_free(p->title);
    chm_free(p->place);
    chm_free(p->again);
    chm_free(p->cell);
    chm_free(p->best);
    json_decref(p->manifest);
}

int chm_report(const char *directory, chm_output format, FILE *out) {
    chm_report_page *p = chm_alloc(sizeof *p);
    chm_table results;
    if (p == NULL) return CHM_E_MEMORY;
    chm_table_init(&results);
    p->directory = directory;
    chm_string place = {0};
    chm_shell_word(&place, directory);
    p->place = place.text;
    p->again = chm_format("chimera report %s", place.text ? place.text : "");
    int status = place.failed || p->again == NULL ? CHM_E_MEMORY : read_directory(p);
    if (status != CHM_OK) goto out;
    choose_points(p);
    add_facts(p);
    for (int s = 0; s < p->scores; s++) {
        if (p->answers) add_comparison(p, s, true);
        add_comparison(p, s, false);
    }
    if (p->points > 1) add_points(p);
    add_cost(p);
    add_cells(p);
    add_failures(p);
    fill_results(p, &results);
    if ((status = chm_report_plots(p)) != CHM_OK) goto out;
    if (p->failed || results.failed) {
        status = chm_fail(CHM_E_MEMORY, "out of memory for the report of %s", directory);
        goto out;
    }
    static const char *const files[] = {"results.csv", "report.md", "report.html"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(files) && status == CHM_OK; i++) status = save(p, &results, files[i]);
    if (status != CHM_OK) goto out;
    switch (format) {
    case CHM_OUTPUT_JSON:
        status = write_json(p, &results, out);
        break;
    case CHM_OUTPUT_CSV:
        status = chm_table_print(&results, format, out);
        break;
    case CHM_OUTPUT_MD:
        status = write_markdown(p, out);
        break;
    case CHM_OUTPUT_TEXT:
        status = write_text(p, out);
        break;
    }
    if (status == CHM_OK) status = chm_report_end(out);
out:
    chm_table_finish(&results);
    release(p);
    chm_free(p);
    return status;
}
