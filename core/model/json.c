/* json.c: see json.h. */
#include "model/json.h"
#include <errno.h>
#include <string.h>

void chm_json_string(FILE *out, const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    putc('"', out);
    while (*s) {
        const int n = chm_utf8_length((const char *)s);
        if (n == 0) {
            fputs("\\ufffd", out);
            s++;
        } else if (*s == '"' || *s == '\\') {
            fprintf(out, "\\%c", *s++);
        } else if (*s == '\n') {
            fputs("\\n", out);
            s++;
        } else if (*s < 0x20) {
            fprintf(out, "\\u%04x", *s++);
        } else {
            fwrite(s, 1, (size_t)n, out);
            s += n;
        }
    }
    putc('"', out);
}

int chm_table_json(const chm_table *t, int indent, FILE *out) {
    if (t->failed) return chm_fail(CHM_E_MEMORY, "out of memory making a table");
    const size_t rows = t->columns ? t->count / (size_t)t->columns : 0;
    putc('[', out);
    for (size_t r = 0; r < rows; r++) {
        fprintf(out, "%s\n%*s{", r ? "," : "", indent + 2, "");
        for (int c = 0; c < t->columns; c++) {
            const char *s = t->cells[r * (size_t)t->columns + (size_t)c];
            if (c) fputs(", ", out);
            chm_json_string(out, t->head[c]);
            fputs(": ", out);
            if (t->right[c])
                fputs(s[0] ? s : "null", out);
            else
                chm_json_string(out, s);
        }
        putc('}', out);
    }
    if (rows) fprintf(out, "\n%*s", indent, "");
    putc(']', out);
    return CHM_OK;
}

int chm_report_end(FILE *out) {
    errno = 0;
    if (fflush(out) != 0 || ferror(out))
        return chm_fail(CHM_E_DATA, "the report could not be written: %s", errno ? strerror(errno) : "write error");
    return CHM_OK;
}
