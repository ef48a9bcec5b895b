/* string.c: strings that grow. */
#include "base/base.h"

#include <string.h>

static bool make_room(chm_string *s, size_t more) {
    if (s->failed) return false;
    if (more > SIZE_MAX / 4 || s->length > SIZE_MAX / 4) {
        s->failed = true;
        return false;
    }
    size_t needed = s->length + more + 1;
    if (needed <= s->capacity) return true;
    size_t capacity = CHM_MAX(needed, CHM_MAX((size_t)64, s->capacity * 2));
    char *text = chm_realloc(s->text, capacity);
    if (!text) {
        s->failed = true;
        return false;
    }
    s->text = text;
    s->capacity = capacity;
    return true;
}

void chm_string_add(chm_string *s, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0 || !make_room(s, (size_t)n)) {
        s->failed = true;
        return;
    }
    va_start(args, format);
    vsnprintf(s->text + s->length, (size_t)n + 1, format, args);
    va_end(args);
    s->length += (size_t)n;
}

void chm_string_add_bytes(chm_string *s, const void *bytes, size_t n) {
    if (!make_room(s, n)) return;
    if (n) memcpy(s->text + s->length, bytes, n);
    s->length += n;
    s->text[s->length] = 0;
}

void chm_string_finish(chm_string *s) {
    chm_free(s->text);
    memset(s, 0, sizeof *s);
}
