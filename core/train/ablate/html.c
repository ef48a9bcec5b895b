/* html.c: the report as one file that asks the network for nothing. */
#include "train/ablate/report.h"

#include <string.h>

static const char style[] =
    "body{font:16px/1.5 Georgia,serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}"
    "h1,h2{font-family:system-ui,sans-serif;line-height:1.2}h2{margin-top:2em;font-size:1.2em}"
    "table{border-collapse:collapse;font:13px/1.4 system-ui,sans-serif;display:block;overflow-x:auto}"
    "th,td{padding:.25em .6em;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}"
    "th{border-bottom:2px solid #666}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    "code{font-size:.85em;background:#f2f2f2;padding:.1em .3em;overflow-wrap:anywhere}"
    "li{overflow-wrap:anywhere}p.again{font-size:.85em;color:#666}svg{max-width:100%;height:auto}"
    "@media print{body{margin:0;max-width:none;font-size:10pt}table{display:table;font-size:7.5pt}"
    "h2,tr,svg{break-inside:avoid}h2{break-after:avoid}}";

static void put(const char *text, FILE *out) {
    for (; *text; text++) switch (*text) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        case '\'':
            fputs("&#39;", out);
            break;
        default:
            putc(*text, out);
        }
}

static void put_row(const chm_table *t, const char *const *cells, const char *tag, FILE *out) {
    fputs("<tr>", out);
    for (int i = 0; i < t->columns; i++) {
        fprintf(out, "<%s%s>", tag, t->right[i] ? " class=\"n\"" : "");
        put(cells[i], out);
        fprintf(out, "</%s>", tag);
    }
    fputs("</tr>\n", out);
}

static void put_table(const chm_table *t, FILE *out) {
    const size_t columns = (size_t)t->columns;
    fputs("<table>\n<thead>", out);
    put_row(t, t->head, "th", out);
    fputs("</thead>\n<tbody>\n", out);
    for (size_t row = 0; row < t->count / columns; row++)
        put_row(t, (const char *const *)t->cells + row * columns, "td", out);
    fputs("</tbody>\n</table>\n", out);
}

void chm_report_html(const chm_report_page *p, FILE *out) {
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
          "<meta name=\"viewport\" content=\"width=device-width\"/>\n<title>",
          out);
    put(p->title, out);
    fprintf(out, "</title>\n<style>%s</style>\n</head>\n<body>\n<h1>", style);
    put(p->title, out);
    fputs("</h1>\n<ul>\n", out);
    for (int i = 0; i < p->facts; i++) {
        fputs("<li>", out);
        put(p->fact[i], out);
        fputs("</li>\n", out);
    }
    fputs("</ul>\n", out);
    for (int i = 0; i < p->blocks; i++) {
        const chm_report_block *b = &p->block[i];
        fputs("<h2>", out);
        put(b->title, out);
        fputs("</h2>\n", out);
        if (b->table.columns > 0) put_table(&b->table, out);
        if (b->svg) fprintf(out, "%s\n", b->svg); /* made by gnuplot, of text it was given without markup */
        if (b->text) {
            fputs("<p>", out);
            put(b->text, out);
            fputs("</p>\n", out);
        }
        fputs("<p class=\"again\">Again: <code>", out);
        put(b->command, out);
        fputs("</code></p>\n", out);
    }
    fputs("</body>\n</html>\n", out);
}
