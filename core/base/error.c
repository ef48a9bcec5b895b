/* error.c: the sentence of the last failure, one a thread, and the log. */
#include "base/base.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 2000, SENTENCE = 8192 }; /* a card may have twenty problems, one a line */

static _Thread_local char sentence[SENTENCE];
static _Thread_local int sentence_status;
static _Atomic int log_level = CHM_LOG_INFO;

void chm_fit(char *text, size_t room, const char *format, va_list args) {
    static const char gap[] = " ... ";
    va_list again;
    va_copy(again, args);
    const int n = vsnprintf(text, room, format, args);
    char *whole = n >= 0 && (size_t)n >= room ? malloc((size_t)n + 1) : NULL;
    if (whole) {
        vsnprintf(whole, (size_t)n + 1, format, again);
        const size_t end = room / 3;
        memcpy(text + room - 1 - end, whole + n - end, end);
        memcpy(text + room - 1 - end - (sizeof gap - 1), gap, sizeof gap - 1);
    }
    free(whole);
    va_end(again);
}

static int record(int status, bool lines, const char *format, va_list args) {
    /* By way of a second buffer: an argument may be chm_error() itself. */
    char text[SENTENCE];
    if (lines)
        vsnprintf(text, sizeof text, format, args);
    else
        chm_fit(text, LINE, format, args);
    chm_printable(text, lines);
    memcpy(sentence, text, strlen(text) + 1);
    return sentence_status = status;
}

int chm_fail(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(status, false, format, args);
    va_end(args);
    return status;
}

int chm_fail_system(const char *format, ...) {
    const int error = errno;
    char text[LINE];
    va_list args;
    va_start(args, format);
    chm_fit(text, sizeof text, format, args);
    va_end(args);
    return chm_fail(error == ENOMEM ? CHM_E_MEMORY : CHM_E_DATA, "%s: %s", text, error ? strerror(error) : "an error");
}

int chm_fail_lines(int status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    record(status, true, format, args);
    va_end(args);
    return status;
}

int chm_fail_prefix(int status, const char *format, ...) {
    char prefix[LINE], text[SENTENCE];
    va_list args;
    va_start(args, format);
    chm_fit(prefix, sizeof prefix, format, args);
    va_end(args);
    chm_printable(prefix, false);
    size_t n = strlen(prefix), rest = strlen(sentence);
    memcpy(text, prefix, n);
    for (const char *c = ": "; *c && n < sizeof text - 1; c++) text[n++] = *c;
    rest = CHM_MIN(rest, sizeof text - 1 - n); /* what does not fit is cut */
    memcpy(text + n, sentence, rest);
    text[n + rest] = 0;
    memcpy(sentence, text, n + rest + 1);
    return sentence_status = status;
}

int chm_failed(int otherwise) { return sentence_status == CHM_E_MEMORY ? CHM_E_MEMORY : otherwise; }

/* Public (chimera.h). */
CHM_EXPORT const char *chm_error(void) { return sentence; }

void chm_log_set_level(enum chm_log_level level) { atomic_store(&log_level, (int)level); }

static _Atomic(chm_log_writer) log_writer;
void chm_log_to(chm_log_writer writer) { atomic_store(&log_writer, writer); }

void chm_log(enum chm_log_level level, const char *format, ...) {
    static const char *const names[] = {
        [CHM_LOG_ERROR] = "error: ", [CHM_LOG_WARN] = "warning: ", [CHM_LOG_INFO] = "", [CHM_LOG_DEBUG] = "debug: "};
    if ((int)level < CHM_LOG_ERROR || (int)level > CHM_LOG_DEBUG || (int)level > atomic_load(&log_level)) return;
    char text[SENTENCE];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    chm_printable(text, false);
    const chm_log_writer writer = atomic_load(&log_writer);
    if (writer) {
        char line[SENTENCE + 16];
        snprintf(line, sizeof line, "%s%s", names[level], text);
        writer(line);
        return;
    }
    /* One call a line, so that lines of several threads do not mix. */
    fprintf(stderr, "chimera: %s%s\n", names[level], text);
}
