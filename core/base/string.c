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

/* ---- UTF-8 ---- */

int chm_utf8_length(const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80) return 1;
    const int n = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
                  : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                  : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                : 0;
    for (int i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if (n == 3 && ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] >= 0xa0))) return 0;
    if (n == 4 && ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] >= 0x90))) return 0;
    return n;
}

void chm_printable(char *text, bool lines) {
    char *to = text;
    for (const char *from = text; *from;) {
        const int n = chm_utf8_length(from);
        const unsigned char first = (unsigned char)from[0], second = (unsigned char)from[n > 1];
        const bool control = n == 1 ? (first < 0x20 && !(lines && first == '\n')) || first == 0x7f
                                    : n == 2 && first == 0xc2 && second < 0xa0; /* U+0080 to U+009F */
        if (n == 0 || control) {
            *to++ = '?';
            from += n ? n : 1;
        } else {
            memmove(to, from, (size_t)n);
            to += n;
            from += n;
        }
    }
    *to = 0;
}
