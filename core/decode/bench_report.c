/* bench_report.c: what was measured as text, Markdown, CSV or JSON, beside an earlier report and beside the card. */
#include "decode/bench.h"
#include "graph/encoding.h"
#include "model/declared.h"
#include "model/json.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

static const double megabyte = 1e6;

enum { SCHEMA_VERSION = 1 };

/* ---- what ran ---------------------------------------------------------------------------------------------------- */

/* "t5", or "t5 as t2" where the codes were repacked when the model was opened; "f32" without ternary layers */
static void encoding_text(const chm_model *m, char text[40]) {
    const chm_param *p = chm_bench_matrix(m);
    const char *stored = p ? chm_encoding_name(p->stored) : "f32",
               *ran = p ? chm_encoding_name(p->ternary.encoding) : "";
    if (p == NULL || p->stored == p->ternary.encoding)
        snprintf(text, 40, "%s", stored);
    else
        snprintf(text, 40, "%s as %s", stored, ran);
}

/* The backend of the kernel that multiplies the layers' matrices. */
static const char *backend_of(const chm_bench_subject *s) {
    const chm_param *p = chm_bench_matrix(s->model);
    const chm_kernel_choice *k = &s->runtime->kernels;
    char slot[32] = "f32_matmul";
    if (p) snprintf(slot, sizeof(slot), "%s_matmul", chm_encoding_name(p->ternary.encoding));
    for (size_t i = 0; i < k->slots; i++)
        if (!strcmp(k->slot[i], slot) && k->backend[i]) return k->backend[i];
    return "none";
}

/* The slots that inference runs. */
static void write_kernels(const chm_runtime *r, FILE *out) {
    bool first = true;
    putc('{', out);
    for (size_t i = 0; i < r->kernels.slots; i++) {
        if (!r->kernels.exact[i]) continue;
        if (!first) fputs(", ", out);
        first = false;
        chm_json_string(out, r->kernels.slot[i]);
        fputs(": ", out);
        chm_json_string(out, r->kernels.backend[i] ? r->kernels.backend[i] : "none");
    }
    putc('}', out);
}

/* ---- an earlier report ------------------------------------------------------------------------------------------- */

static const char *kind_of(const json_t *value) {
    static const char *const name[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "a list", [JSON_STRING] = "a string", [JSON_INTEGER] = "a number",
        [JSON_REAL] = "a number",    [JSON_TRUE] = "true",    [JSON_FALSE] = "false",     [JSON_NULL] = "null"};
    return value ? name[json_typeof(value)] : "not there";
}

/* What rows are found by and compared in. */
static int check_row(const char *path, size_t i, const json_t *row) {
    static const struct {
        const char *key, *expected;
    } of[] = {{"name", "a string"}, {"encoding", "a string"},  {"backend", "a string"},          {"loops", "a number"},
              {"rows", "a number"}, {"deviation", "a number"}, {"tokens_per_second", "a number"}};
    if (!json_is_object(row))
        return chm_fail(CHM_E_DATA, "%s: rows[%zu] is %s, expected an object", path, i, kind_of(row));
    for (size_t k = 0; k < CHM_ARRAY_COUNT(of); k++) {
        const char *kind = kind_of(json_object_get(row, of[k].key));
        if (strcmp(kind, of[k].expected) != 0)
            return chm_fail(CHM_E_DATA, "%s: rows[%zu].%s is %s, expected %s", path, i, of[k].key, kind,
                            of[k].expected);
    }
    return CHM_OK;
}

static int check_report(const char *path, const json_t *root) {
    const json_t *rows = json_object_get(root, "rows"), *version = json_object_get(root, "schema_version"), *row;
    size_t i;
    if (!json_is_array(rows) || !version)
        return chm_fail(CHM_E_DATA,
                        "%s: is no report of `chimera bench -o json`: expected an object with schema_version and rows",
                        path);
    if (!json_is_integer(version))
        return chm_fail(CHM_E_DATA, "%s: schema_version is %s, expected %d", path, kind_of(version),
                        (int)SCHEMA_VERSION);
    if (json_integer_value(version) != SCHEMA_VERSION)
        return chm_fail(CHM_E_DATA, "%s: a report of schema_version %lld; this Chimera reads %d", path,
                        (long long)json_integer_value(version), (int)SCHEMA_VERSION);
    json_array_foreach(rows, i, row) {
        const int status = check_row(path, i, row);
        if (status != CHM_OK) return status;
    }
    return CHM_OK;
}

int chm_bench_load(const char *path, json_t **out) {
    enum { LIMIT = 1 << 24 };
    char *text = NULL;
    size_t bytes = 0;
    json_error_t error;
    int status = chm_read_file(path, LIMIT, &text, &bytes);
    if (status != CHM_OK) return status;
    json_t *root = chm_json_load(text, bytes, &error);
    chm_free(text);
    if (root == NULL && chm_json_starved()) return chm_fail(CHM_E_MEMORY, "%s: out of memory reading it", path);
    status = check_report(path, root);
    if (status == CHM_OK)
        *out = root;
    else
        json_decref(root);
    return status;
}

static bool same_text(const json_t *row, const char *key, const char *text) {
    const char *other = json_string_value(json_object_get(row, key));
    return other && !strcmp(other, text);
}

static bool same_number(const json_t *row, const char *key, int64_t n) {
    const json_t *other = json_object_get(row, key);
    return json_is_integer(other) && json_integer_value(other) == n;
}

/* The other report's row of the same work: with the same encoding and backend where it has such, or else its first. */
static const json_t *counterpart(const json_t *report, const chm_bench_row *row) {
    const json_t *best = NULL;
    char encoding[40];
    int points = -1;
    size_t i;
    json_t *other;
    encoding_text(row->subject->model, encoding);
    json_array_foreach(json_object_get(report, "rows"), i, other) {
        if (!same_text(other, "name", row->name) || !same_number(other, "loops", row->loops) ||
            !same_number(other, "rows", row->rows))
            continue;
        const int here =
            2 * same_text(other, "encoding", encoding) + same_text(other, "backend", backend_of(row->subject));
        if (here > points) best = other;
        points = CHM_MAX(points, here);
    }
    return best;
}

int chm_bench_comparable(const chm_bench_run *b) {
    for (int i = 0; i < b->rows; i++)
        if (counterpart(b->other, &b->row[i])) return CHM_OK;
    return chm_fail(CHM_E_DATA,
                    "%s: none of its %zu rows goes with what is measured here: none has the same name, loops and rows",
                    b->compare, json_array_size(json_object_get(b->other, "rows")));
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

static void number_cell(chm_table *t, const char *format, double x) CHM_PRINTF(2, 0);
static void number_cell(chm_table *t, const char *format, double x) {
    char text[64] = "";
    if (x >= 0) snprintf(text, sizeof(text), format, x);
    chm_table_cell(t, "%s", text);
}

static int fill_rows(const chm_bench_run *b, chm_table *t, bool exact, bool kernels) {
    const char *const number = exact ? "%.6g" : "%.4g";
    const json_t *other = b->other;
    int status = CHM_OK;
    static const char *const head[] = {"name",
                                       "#loops",
                                       "#rows",
                                       "encoding",
                                       "backend",
                                       "#tokens",
                                       "#pass_ms",
                                       "#tokens_per_second",
                                       "#deviation",
                                       "#bytes_per_token",
                                       "#gigabytes_per_second",
                                       "#bandwidth_fraction",
                                       "#compute_fraction"};
    if (b->subjects > 1 || exact) chm_table_column(t, "model");
    for (size_t i = 0; i < CHM_ARRAY_COUNT(head); i++) chm_table_column(t, head[i]);
    if (other) {
        chm_table_column(t, "#other");
        chm_table_column(t, "#other_deviation");
        chm_table_column(t, "#ratio");
    }
    if (kernels) chm_table_column(t, "kernels");
    for (int i = 0; i < b->rows; i++) {
        const chm_bench_row *row = &b->row[i];
        char encoding[40];
        encoding_text(row->subject->model, encoding);
        if (b->subjects > 1 || exact) chm_table_cell(t, "%s", row->subject->model->path);
        chm_table_cell(t, "%s", row->name);
        chm_table_cell(t, "%d", row->loops);
        chm_table_cell(t, "%" PRId64, row->rows);
        chm_table_cell(t, "%s", encoding);
        chm_table_cell(t, "%s", backend_of(row->subject));
        chm_table_cell(t, "%" PRId64, row->tokens);
        number_cell(t, number, 1e3 * (double)row->rows / row->speed.mean);
        number_cell(t, number, row->speed.mean);
        number_cell(t, number, row->speed.deviation);
        number_cell(t, "%.0f", row->bytes);
        number_cell(t, number, row->bytes_per_second / 1e9);
        number_cell(t, number, row->bandwidth_fraction);
        number_cell(t, number, row->compute_fraction);
        if (other) {
            const json_t *match = counterpart(other, row);
            const json_t *speed = json_object_get(match, "tokens_per_second"),
                         *by = json_object_get(match, "deviation");
            const double theirs = match ? json_number_value(speed) : -1;
            number_cell(t, number, theirs);
            number_cell(t, number, match ? json_number_value(by) : -1);
            number_cell(t, "%.3f", theirs > 0 ? row->speed.mean / theirs : -1);
        }
        if (kernels) {
            char *used = chm_kernels_used(row->subject->runtime);
            if (used == NULL) status = CHM_E_MEMORY;
            chm_table_cell(t, "%s", used ? used : "");
            chm_text_free(used);
        }
    }
    return status;
}

/* ---- declared and measured --------------------------------------------------------------------------------------- */

static void line(chm_table *t, const char *key, double declared, double measured, const char *unit, bool most,
                 const char *note) {
    if (isnan(declared) || measured < 0) return;
    const bool kept = most ? measured <= declared : measured >= declared;
    chm_table_cell(t, "%s", key);
    chm_table_cell(t, "%.4g", declared);
    chm_table_cell(t, "%.4g", measured);
    chm_table_cell(t, "%s", unit);
    chm_table_cell(t, "%s", kept ? "kept" : "missed");
    chm_table_cell(t, "%s", note);
}

/* Passes a second of one stream at that depth; < 0: not measured. */
static double rate_at(const chm_bench_run *b, double loops) {
    for (int i = 0; i < b->rows; i++)
        if (b->row[i].subject == b->subject && !strcmp(b->row[i].name, "decode") &&
            CHM_MAX(b->row[i].loops, 1) == loops)
            return b->row[i].speed.mean;
    return -1;
}

static void fill_declared(const chm_bench_run *b, chm_table *t) {
    const chm_model *m = b->subject->model;
    const chm_card *card = m->card;
    const chm_bench_start *s = &b->start;
    const double weights = chm_budget_row(card, "ternary_weights"), experts = chm_budget_row(card, "moe_experts");
    static const char *const modes[] = {"fast", "balanced", "reasoning"};
    char key[64], note[160];
    chm_table_column(t, "key");
    chm_table_column(t, "#declared");
    chm_table_column(t, "#measured");
    chm_table_column(t, "unit");
    chm_table_column(t, "verdict");
    chm_table_column(t, "note");
    line(t, "deployment.cold_start_s", chm_card_number(card, "deployment.cold_start_s", NAN), s->seconds, "s", true,
         "model opened and one token read");
    line(t, "memory_budget_mb ternary_weights", weights, (double)(s->files - s->experts) / megabyte, "MB", true,
         "the model's file: codes, scales, f32, embedding and tokenizer");
    line(t, "memory_budget_mb moe_experts", experts, s->experts ? (double)s->experts / megabyte : -1, "MB", true,
         "the experts' file");
    line(t, "memory_budget_mb activations", chm_budget_row(card, "activations"), (double)s->pass / megabyte, "MB", true,
         "what a pass of one row keeps while it runs, logits included");
    line(t, "braid_state.per_stream_mb", chm_card_number(card, "braid_state.per_stream_mb", NAN),
         (double)m->layout.bytes / megabyte, "MB", true, "state of one stream");
    snprintf(note, sizeof(note), "resident after the first token: %.1f MB mapped from files, %.1f MB else",
             (double)s->mapped / megabyte, (double)s->own / megabyte);
    line(t, "memory_budget_mb total", chm_card_number(card, "memory_budget_mb.total", NAN),
         s->own ? (double)(s->mapped + s->own) / megabyte : -1, "MB", true, note);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(modes); i++) {
        snprintf(key, sizeof(key), "modes.%s.loops", modes[i]);
        const double loops = chm_card_number(card, key, NAN);
        snprintf(key, sizeof(key), "modes.%s.neural_hz", modes[i]);
        snprintf(note, sizeof(note), "tokens decoded by one stream with %.0f passes of the loop", loops);
        if (!isnan(loops)) line(t, key, chm_card_number(card, key, NAN), rate_at(b, loops), "tokens/s", false, note);
    }
}

/* ---- the report -------------------------------------------------------------------------------------------------- */

static int write_json(const chm_bench_run *b, const chm_table *rows, const chm_table *declared, FILE *out) {
    const chm_bench_start *s = &b->start;
    fprintf(out, "{\n  \"schema_version\": %d,\n  \"threads\": %d,\n  \"repeats\": %d,\n", (int)SCHEMA_VERSION,
            b->subject->runtime->threads, b->repeats);
    fprintf(out, "  \"read_bytes_per_second\": %.6g,\n  \"read_deviation\": %.6g,\n  \"read_buffer_bytes\": %zu,\n",
            b->bandwidth.mean, b->bandwidth.deviation, b->buffer);
    fprintf(out, "  \"cold_start_seconds\": %.6g,\n  \"resident_mapped_bytes\": %" PRIu64, s->seconds, s->mapped);
    fprintf(out, ",\n  \"resident_other_bytes\": %" PRIu64 ",\n  \"models\": [", s->own);
    for (uint32_t i = 0; i < b->subjects; i++) {
        const chm_bench_subject *of = &b->subject[i];
        char encoding[40];
        double peak = 0;
        encoding_text(of->model, encoding);
        for (int k = 0; k < b->rows; k++)
            if (b->row[k].subject == of) peak = b->row[k].peak;
        fputs(i ? ",\n    {\"model\": " : "\n    {\"model\": ", out);
        chm_json_string(out, of->model->path);
        fprintf(out, ", \"encoding\": \"%s\", \"backend\": \"%s\", \"peak_products_per_second\": %.6g", encoding,
                backend_of(of), peak);
        fprintf(out, ", \"state_bytes\": %zu, \"repacked_bytes\": %zu, \"repack_seconds\": %.6g, \"kernels\": ",
                of->model->layout.bytes, of->model->repacked_bytes, of->model->repack_seconds);
        write_kernels(of->runtime, out);
        putc('}', out);
    }
    fputs("\n  ],\n  \"rows\": ", out);
    int status = chm_table_json(rows, 2, out);
    fputs(",\n  \"declared\": ", out);
    if (status == CHM_OK) status = chm_table_json(declared, 2, out);
    fputs("\n}\n", out);
    return status;
}

static int write_text(const chm_bench_run *b, const chm_table *rows, const chm_table *declared, chm_output format,
                      FILE *out) {
    int status = chm_table_print(rows, format, out);
    if (status != CHM_OK || format == CHM_OUTPUT_CSV) return status;
    fprintf(out, "\n%d threads, %d repeats; memory reads %.2f +- %.2f GB/s here (%zu MiB)\n",
            b->subject->runtime->threads, b->repeats, b->bandwidth.mean / 1e9, b->bandwidth.deviation / 1e9,
            b->buffer >> 20);
    for (uint32_t i = 0; i < b->subjects; i++) {
        const chm_bench_row *row = NULL;
        for (int k = 0; k < b->rows && !row; k++)
            if (b->row[k].subject == &b->subject[i]) row = &b->row[k];
        char *used = chm_kernels_used(b->subject[i].runtime);
        if (used == NULL) return CHM_E_MEMORY;
        fprintf(out, "%s%s: the ternary kernel does %.4g G products a second from the cache; kernels: %s\n",
                format == CHM_OUTPUT_MD ? "\n" : "", b->subject[i].model->path, row ? row->peak / 1e9 : 0, used);
        chm_text_free(used);
    }
    if (b->compare) fprintf(out, "%sother: %s\n", format == CHM_OUTPUT_MD ? "\n" : "", b->compare);
    if (declared->count == 0) return CHM_OK;
    fputs(format == CHM_OUTPUT_MD ? "\n## Declared and measured\n\n" : "\nDeclared and measured\n", out);
    return chm_table_print(declared, format, out);
}

int chm_bench_report(const chm_bench_run *b, chm_output format, FILE *out) {
    chm_table rows, declared;
    chm_table_init(&rows);
    chm_table_init(&declared);
    const bool json = format == CHM_OUTPUT_JSON;
    int status = fill_rows(b, &rows, json || format == CHM_OUTPUT_CSV, format == CHM_OUTPUT_CSV);
    if (status == CHM_OK) {
        fill_declared(b, &declared);
        status = json ? write_json(b, &rows, &declared, out) : write_text(b, &rows, &declared, format, out);
    }
    if (status == CHM_OK) status = chm_report_end(out);
    chm_table_finish(&rows);
    chm_table_finish(&declared);
    return status;
}
