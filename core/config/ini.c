/* ini.c: inih, fed line by line so that every key knows its line and no line is cut silently. */
#include "config/ini.h"
#include <ini.h>
#include <string.h>

enum {
    MAX_BYTES = 1 << 20,
    MAX_NAME = 49, /* what inih keeps of a section's name */
    MAX_KEYS = 10000,
};

struct reading {
    const char *name, *at, *end;
    chm_ini_entry entry;
    void *user;
    int line, keys;
    bool sections; /* entry is told of them */
    int status;
};

/* inih's fgets. Blanks at the start of a line are dropped: they would make it a continuation of the one before. */
static char *next_line(char *line, int size, void *stream) {
    struct reading *r = stream;
    if (r->status || r->at == r->end) return NULL;
    r->line++;
    const char *end = memchr(r->at, '\n', (size_t)(r->end - r->at));
    const char *begin = r->at;
    r->at = end ? end + 1 : r->end;
    if (!end) end = r->end;
    while (begin < end && (*begin == ' ' || *begin == '\t')) begin++;
    while (begin < end && (end[-1] == '\r' || end[-1] == ' ' || end[-1] == '\t')) end--;
    size_t n = (size_t)(end - begin);
    if (n + 2 > (size_t)size) {
        r->status = chm_fail(CHM_E_CONFIG, "%s:%d: line of %zu characters; at most %d", r->name, r->line, n, size - 2);
        return NULL;
    }
    const char *bracket = n > 0 && *begin == '[' ? memchr(begin, ']', n) : NULL;
    if (bracket && bracket - begin - 1 > MAX_NAME) {
        r->status = chm_fail(CHM_E_CONFIG, "%s:%d: section name of %d characters; at most %d", r->name, r->line,
                             (int)(bracket - begin - 1), MAX_NAME);
        return NULL;
    }
    if (bracket && r->sections) {
        char section[MAX_NAME + 1] = "";
        memcpy(section, begin + 1, (size_t)(bracket - begin - 1));
        r->status = r->entry(r->user, section, NULL, NULL, r->line);
        if (r->status) return NULL;
    }
    memcpy(line, begin, n);
    line[n] = '\n';
    line[n + 1] = 0;
    return line;
}

static int handle(void *user, const char *section, const char *key, const char *value) {
    struct reading *r = user;
    if (r->status) return 1;
    if (++r->keys > MAX_KEYS) {
        r->status = chm_fail(CHM_E_CONFIG, "%s:%d: more than %d keys up to here; an overlay has at most that many",
                             r->name, r->line, MAX_KEYS);
        return 1;
    }
    r->status = r->entry(r->user, section, key, value ? value : "", r->line);
    return 1;
}

static int parse(const char *name, const char *text, size_t bytes, bool sections, chm_ini_entry entry, void *user) {
    if (bytes > MAX_BYTES)
        return chm_fail(CHM_E_CONFIG, "%s: %zu bytes; an overlay has at most %d", name, bytes, MAX_BYTES);
    if (bytes > 0 && memchr(text, 0, bytes))
        return chm_fail(CHM_E_CONFIG, "%s: holds a zero byte; an overlay is text", name);
    struct reading r = {
        .name = name, .at = text, .end = text + bytes, .entry = entry, .user = user, .sections = sections};
    int bad = ini_parse_stream(next_line, &r, handle, &r);
    if (r.status) return r.status;
    if (bad > 0) return chm_fail(CHM_E_CONFIG, "%s:%d: expected [section] or key = value", name, bad);
    if (bad < 0) return chm_fail(CHM_E_MEMORY, "%s: out of memory", name);
    return CHM_OK;
}

int chm_ini_parse(const char *name, const char *text, size_t bytes, chm_ini_entry entry, void *user) {
    return parse(name, text, bytes, false, entry, user);
}

int chm_ini_parse_sections(const char *name, const char *text, size_t bytes, chm_ini_entry entry, void *user) {
    return parse(name, text, bytes, true, entry, user);
}
