/* collect.c: what cells left on disk. */
#include "train/ablate/ablate.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { MOST_LOG = 256 << 20 };

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void chm_shell_word(chm_string *s, const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+=,:@%-";
    if (word[0] && word[strspn(word, plain)] == '\0') {
        chm_string_add(s, "%s", word);
        return;
    }
    chm_string_add(s, "'");
    for (; *word; word++) chm_string_add(s, *word == '\'' ? "'\\''" : "%c", *word);
    chm_string_add(s, "'");
}

int chm_cell_log_read(const char *path, chm_cell_log *out) {
    char *text = NULL;
    size_t bytes = 0, capacity = 0, rates = 0;
    double *rate = NULL;
    *out = (chm_cell_log){.tokens_per_second = NAN};
    if (access(path, F_OK) != 0) return CHM_OK;
    int status = chm_read_file(path, MOST_LOG, &text, &bytes);
    for (char *line = text, *end; status == CHM_OK && line != NULL && (end = strchr(line, '\n')) != NULL;
         line = end + 1) {
        *end = '\0';
        if (strstr(line, "\"event\":\"report\"") == NULL) continue;
        json_t *x = chm_json_load(line, (size_t)(end - line), NULL);
        if (x == NULL && chm_json_starved()) {
            status = chm_fail(CHM_E_MEMORY, "%s: out of memory", path);
            break;
        }
        const double tokens = chm_json_number(x, "tokens"), bits = chm_json_number(x, "bits_per_byte"),
                     speed = chm_json_number(x, "tokens_per_second");
        json_decref(x); /* NULL: a line that is none says nothing */
        if (!isfinite(tokens)) continue;
        if ((size_t)out->lines == capacity) {
            capacity = capacity ? 2 * capacity : 64;
            chm_log_line *more = chm_realloc(out->line, capacity * sizeof *more);
            if (more != NULL) out->line = more;
            double *faster = more != NULL ? chm_realloc(rate, capacity * sizeof *rate) : NULL;
            if (faster == NULL) {
                status = CHM_E_MEMORY;
                break;
            }
            rate = faster;
        }
        out->line[out->lines++] = (chm_log_line){tokens, bits};
        if (isfinite(speed)) rate[rates++] = speed;
    }
    if (rates > 0) {
        qsort(rate, rates, sizeof *rate, ascending);
        out->tokens_per_second = rates % 2 ? rate[rates / 2] : (rate[rates / 2 - 1] + rate[rates / 2]) / 2;
    }
    chm_free(rate);
    chm_free(text);
    if (status != CHM_OK) chm_cell_log_finish(out);
    return status;
}

void chm_cell_log_finish(chm_cell_log *log) {
    chm_free(log->line);
    *log = (chm_cell_log){0};
}

int chm_cell_result(const char *directory, const char *name, json_t **result) {
    char *path = chm_format("%s/cells/%s/result.json", directory, name);
    *result = NULL;
    int status = path == NULL ? CHM_E_MEMORY : CHM_OK;
    if (status == CHM_OK && access(path, F_OK) == 0) status = chm_json_read(path, result);
    const char *state = chm_json_word(*result, "status");
    if (status == CHM_OK && *result != NULL &&
        (state == NULL || chm_json_word(*result, "kernels") == NULL ||
         json_array_size(json_object_get(*result, "scores")) == 0)) {
        json_decref(*result);
        *result = NULL;
        status = chm_fail(CHM_E_DATA, "%s: is no result of a cell; remove it, and the cell is measured again", path);
    }
    chm_free(path);
    return status;
}

bool chm_cell_is_locked(const char *directory, const char *name) {
    char *path = chm_format("%s/cells/%s/cell.lock", directory, name);
    const int lock = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
    const bool locked = lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (lock >= 0) close(lock);
    chm_free(path);
    return locked;
}
