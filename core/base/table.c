/* table.c: tables of text. */
#include "base/table.h"

#include <string.h>

void chm_table_init(chm_table *t) { memset(t, 0, sizeof *t); }

void chm_table_column(chm_table *t, const char *head) {
    if (t->columns == CHM_TABLE_COLUMNS) {
        t->failed = true;
        return;
    }
    t->right[t->columns] = head[0] == '#';
    t->head[t->columns++] = head + (head[0] == '#');
}

void chm_table_cell(chm_table *t, const char *format, ...) {
    if (t->failed) return;
    if (t->count == t->capacity) {
        size_t capacity = t->capacity ? t->capacity * 2 : 64;
        char **cells = chm_realloc(t->cells, capacity * sizeof *cells);
        if (!cells) {
            t->failed = true;
            return;
        }
        t->cells = cells;
        t->capacity = capacity;
    }
    chm_string s = {0};
    char text[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n < sizeof text) {
        chm_string_add_bytes(&s, text, (size_t)n);
    } else if (n >= 0) {
        char *longer = chm_alloc((size_t)n + 1);
        if (longer) {
            va_start(args, format);
            vsnprintf(longer, (size_t)n + 1, format, args);
            va_end(args);
            chm_string_add_bytes(&s, longer, (size_t)n);
        }
        chm_free(longer);
    }
    if (!s.text) {
        t->failed = true;
        chm_string_finish(&s);
        return;
    }
    t->cells[t->count++] = s.text;
}

/* Columns on the screen: code points, not bytes. */
static int shown(const char *s) {
    int n = 0;
    for (; *s; s++) n += (*s & 0xc0) != 0x80;
    return n;
}

static void print_padded(const char *s, int width, bool right, FILE *out) {
    int gap = CHM_MAX(0, width - shown(s));
    if (right) fprintf(out, "%*s", gap, "");
    fputs(s, out);
    if (!right) fprintf(out, "%*s", gap, "");
}

static void print_csv(const char *s, FILE *out) {
    if (!strpbrk(s, ",\"\r\n")) {
        fputs(s, out);
        return;
    }
    fputc('"', out);
    for (; *s; s++) {
        if (*s == '"') fputc('"', out);
        fputc(*s, out);
    }
    fputc('"', out);
}

static void print_md(const char *s, FILE *out) {
    for (; *s; s++) {
        if (*s == '|') fputc('\\', out);
        fputc(*s == '\n' ? ' ' : *s, out);
    }
}

static void print_row(const chm_table *t, const char *const *cells, const int *widths, chm_output format, FILE *out) {
    for (int i = 0; i < t->columns; i++) {
        switch (format) {
        case CHM_OUTPUT_CSV:
            if (i) fputc(',', out);
            print_csv(cells[i], out);
            break;
        case CHM_OUTPUT_MD:
            fputs(i ? " " : "| ", out);
            print_md(cells[i], out);
            fputs(" |", out);
            break;
        default:
            if (i) fputs("  ", out);
            /* no blanks at the end of a line */
            print_padded(cells[i], i == t->columns - 1 && !t->right[i] ? 0 : widths[i], t->right[i], out);
            break;
        }
    }
    fputc('\n', out);
}

int chm_table_print(const chm_table *t, chm_output format, FILE *out) {
    if (t->failed) return chm_fail(CHM_E_MEMORY, "out of memory making a table");
    /* names may be anything: what a terminal would obey, or is not UTF-8, is shown as '?' */
    for (size_t i = 0; i < t->count; i++) chm_printable(t->cells[i], format == CHM_OUTPUT_CSV);
    int widths[CHM_TABLE_COLUMNS] = {0};
    size_t rows = t->columns ? t->count / (size_t)t->columns : 0;
    for (int i = 0; i < t->columns; i++) {
        widths[i] = shown(t->head[i]);
        for (size_t row = 0; row < rows; row++)
            widths[i] = CHM_MAX(widths[i], shown(t->cells[row * (size_t)t->columns + (size_t)i]));
    }
    print_row(t, t->head, widths, format, out);
    if (format == CHM_OUTPUT_MD) {
        for (int i = 0; i < t->columns; i++) fprintf(out, "%s%s", i ? "" : "|", t->right[i] ? "---:|" : "---|");
        fputc('\n', out);
    }
    for (size_t row = 0; row < rows; row++)
        print_row(t, (const char *const *)t->cells + row * (size_t)t->columns, widths, format, out);
    return CHM_OK;
}

void chm_table_finish(chm_table *t) {
    for (size_t i = 0; i < t->count; i++) chm_free(t->cells[i]);
    chm_free(t->cells);
    memset(t, 0, sizeof *t);
}
