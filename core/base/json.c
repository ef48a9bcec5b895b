/* json.c: jansson's memory, its texts, and what it prints. */
#include "base/json.h"

#include <pthread.h>
#include <string.h>

static _Thread_local bool starved;

/*
 * After one refusal nothing more is given: jansson does not look at every allocation of its own (its lexer goes on with
 * a text that is short of a byte), and what it does then is safe only as long as the next one fails too.
 */
static void *take(size_t bytes) {
    void *p = starved ? NULL : chm_alloc(bytes);
    if (!p) starved = true;
    return p;
}

static void use_our_allocator(void) { json_set_alloc_funcs(take, chm_free); }

void chm_json_begin(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, use_our_allocator);
    starved = false;
}

bool chm_json_starved(void) { return starved; }

/* ---- reading ---- */

/* Bytes of the longest word of the text: a string with its quotes, a number, anything between punctuation. */
static size_t longest_word(const char *text, size_t bytes) {
    size_t longest = 0, run = 0;
    bool quoted = false;
    for (size_t i = 0; i < bytes; i++) {
        const char c = text[i];
        if (quoted) {
            run++;
            if (c == '\\' && i + 1 < bytes) {
                i++;
                run++;
            }
            if (c != '"') continue;
            quoted = false;
        } else if (c == '"') {
            longest = CHM_MAX(longest, run);
            run = 1;
            quoted = true;
            continue;
        } else if (c && !strchr(" \t\r\n{}[],:", c)) {
            run++;
            continue;
        }
        longest = CHM_MAX(longest, run);
        run = 0;
    }
    return CHM_MAX(longest, run);
}

/* What jansson is given to read: pieces, one after the other. */
struct reading {
    struct piece {
        const char *at;
        size_t bytes;
    } piece[5];
    size_t next;
};

static size_t read_piece(void *buffer, size_t room, void *user) {
    struct reading *r = user;
    while (r->next < CHM_ARRAY_COUNT(r->piece) && r->piece[r->next].bytes == 0) r->next++;
    if (r->next == CHM_ARRAY_COUNT(r->piece)) return 0;
    struct piece *p = &r->piece[r->next];
    const size_t n = CHM_MIN(room, p->bytes);
    memcpy(buffer, p->at, n);
    p->at += n;
    p->bytes -= n;
    return n;
}

static size_t past_blanks(const char *text, size_t bytes, size_t at) {
    while (at < bytes && (text[at] == ' ' || text[at] == '\t' || text[at] == '\r' || text[at] == '\n')) at++;
    return at;
}

/*
 * jansson keeps a word in a buffer that grows, goes on when it cannot grow, and ends the program by an assertion once
 * it puts back a byte that was not kept. So the buffer is made to grow at once: the first word it reads is longer than
 * all of the text's. In an object that is the name of one more member, before the others and taken out again; anything
 * else is read as the second member of such an object.
 */
json_t *chm_json_load(const char *text, size_t bytes, json_error_t *error) {
    static const char begin[] = "{", alone[] = "\":0", with_more[] = "\":0,", with_value[] = "\":0,\"\":", end[] = "}";
    json_t *json = NULL;
    json_error_t unused;
    if (!error) error = &unused;
    memset(error, 0, sizeof *error);
    chm_json_begin();
    size_t head = past_blanks(text, bytes, 0);
    const bool object = head < bytes && text[head] == '{';
    const size_t longest = longest_word(text, bytes) + 2;
    char *name = take(longest + 2);
    if (!name) return NULL;
    memset(name, ' ', longest);
    name[0] = '"';
    struct reading r = {{{begin, 1}, {name, longest}, {with_value, sizeof with_value - 1}, {text, bytes}, {end, 1}}, 0};
    if (object) {
        head++;
        const size_t second = past_blanks(text, bytes, head);
        const char *after = second < bytes && text[second] == '}' ? alone : with_more;
        r = (struct reading){
            {{text, head}, {name, longest}, {after, strlen(after)}, {text + head, bytes - head}, {NULL, 0}}, 0};
    }
    const int added = (int)(r.piece[1].bytes + r.piece[2].bytes);
    json_t *root = json_load_callback(read_piece, &r, JSON_REJECT_DUPLICATES, error);
    if (error->position > added) error->position -= added;
    if (root && object) {
        json_object_del(root, name + 1);
        json = root;
    } else if (root) {
        /* one value, and not the rest of an object */
        if (json_object_size(root) == 2) json = json_incref(json_object_get(root, ""));
        json_decref(root);
    }
    chm_free(name);
    return json;
}

/* ---- printing ---- */

json_t *chm_json_text(const char *s) {
    json_t *json = s ? json_string(s) : json_null();
    char *copy = s && !json ? take(strlen(s) + 1) : NULL;
    if (!copy) return json;
    strcpy(copy, s);
    for (char *c = copy; *c; c++)
        if (*c & 0x80) *c = '?';
    json = json_string(copy);
    chm_free(copy);
    return json;
}

int chm_json_print(json_t *json, const char *what, FILE *out) {
    int status = CHM_OK;
    if (starved || !json || json_dumpf(json, out, JSON_INDENT(2) | JSON_ENSURE_ASCII))
        status = starved || !json ? chm_fail(CHM_E_MEMORY, "%s: out of memory making the report", what)
                                  : chm_fail(CHM_E_DATA, "%s: the report cannot be written", what);
    else
        fputc('\n', out);
    json_decref(json);
    return status;
}
