/* names.c: "did you mean ...?" */
#include "base/base.h"

#include <string.h>

enum { LONGEST = 128 };

static unsigned char lower(unsigned char c) { return c >= 'A' && c <= 'Z' ? (unsigned char)(c + 32) : c; }

/* Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours cost 1 each. */
size_t chm_edit_distance(const char *a, const char *b) {
    size_t n = strlen(a), m = strlen(b);
    if (n > LONGEST || m > LONGEST) return CHM_MAX(n, m);
    size_t rows[3][LONGEST + 1];
    size_t *before = rows[0], *above = rows[1], *row = rows[2];
    for (size_t j = 0; j <= m; j++) above[j] = j;
    for (size_t i = 1; i <= n; i++) {
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            unsigned char x = lower((unsigned char)a[i - 1]), y = lower((unsigned char)b[j - 1]);
            size_t best = CHM_MIN(above[j] + 1, row[j - 1] + 1);
            best = CHM_MIN(best, above[j - 1] + (x != y));
            if (i > 1 && j > 1 && x == lower((unsigned char)b[j - 2]) && lower((unsigned char)a[i - 2]) == y)
                best = CHM_MIN(best, before[j - 2] + 1);
            row[j] = best;
        }
        size_t *spare = before;
        before = above;
        above = row;
        row = spare;
    }
    return above[m];
}

const char *chm_nearest(const char *name, const char *const *list) {
    const char *nearest = NULL;
    size_t best = SIZE_MAX, length = strlen(name);
    for (; list && *list; list++) {
        size_t d = chm_edit_distance(name, *list);
        /* Near: at most a third of the longer name is wrong, and not all of a short one. */
        size_t longer = CHM_MAX(length, strlen(*list));
        if (d < best && d <= CHM_MAX((size_t)1, longer / 3) && d < longer) {
            best = d;
            nearest = *list;
        }
    }
    return nearest;
}
