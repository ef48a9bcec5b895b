/*
 * o200k: byte-pair merging by a rank file, with the pre-splitting pattern of the public o200k_base encoding.
 *
 * A rank file has a token a line, its bytes in base64, a space, and its rank; ranks are 0, 1, 2, ... and are the ids.
 * The specials follow in a layout that is counted from the number of ranks n, so that with o200k_base (n = 199,998)
 * they get the ids of the encoding and of the agent tokens that extend it to 200,073: n + 1 end of text (199,999), n +
 * 20 end of prompt (200,018), n + 21 .. n + 74 agent tokens (200,019 .. 200,072). The other ids up to there stand for
 * nothing.
 *
 * The text is cut into pieces by the pattern; a piece that is a token is that token, any other starts as bytes, of
 * which the neighbours whose union has the lowest rank are merged, the leftmost first, until no union is a token
 * (arXiv:1508.07909). Bytes that are no UTF-8 are pieces by themselves, each unbroken run of them one.
 */
#include <chimera/plugin.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string.h>

enum {
    LONGEST_TOKEN = 4096, /* bytes */
    SHORT_PIECE = 48,     /* bytes; up to here the lowest rank is looked for in turn, from here in a heap */
    END_OF_TEXT = 1,
    END_OF_PROMPT = 20,
    AGENT = 21, /* specials, from the number of ranks on */
};
static const uint32_t none = UINT32_MAX;

/* White space as Unicode has it: \s of PCRE2 has U+180E too. */
#define SPACE                                                                                                          \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define ENDS  "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
/* Words (one sign may lead; "don't" is one piece), numbers of up to three digits, signs, ends of lines, white space. */
static const char pattern[] = "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+" ENDS "|"
                              "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]+[" LOWER "]*" ENDS "|"
                              "\\p{N}{1,3}|"
                              " ?[^" SPACE "\\p{L}\\p{N}]+[\\r\\n/]*|"
                              "[" SPACE "]*[\\r\\n]+|"
                              "[" SPACE "]+(?![^" SPACE "])|"
                              "[" SPACE "]+";

#define PAIR(name) "<|" name "|>", "<|/" name "|>"
static const char *const agent[] = {
    "<|system|>",   "<|user|>",      "<|assistant|>", "<|im_start|>",   "<|im_end|>",   PAIR("think"),  PAIR("plan"),
    PAIR("step"),   PAIR("act"),     PAIR("observe"), PAIR("function"), PAIR("result"), PAIR("error"),  PAIR("code"),
    PAIR("output"), PAIR("lang"),    PAIR("context"), PAIR("quote"),    PAIR("cite"),   PAIR("source"), PAIR("memory"),
    PAIR("recall"), "<|pad|>",       "<|stop|>",      "<|sep|>",        PAIR("image"),  PAIR("audio"),  PAIR("video"),
    PAIR("title"),  PAIR("section"), PAIR("summary"),
};
enum { AGENTS = sizeof agent / sizeof agent[0] };
_Static_assert(AGENTS == 54, "54 agent tokens");

struct o200k {
    const struct chm_host *host;
    uint8_t *pool;   /* bytes of the tokens, in the order of their ranks */
    uint32_t *start; /* [ranks + 1] in the pool */
    uint32_t ranks;
    uint32_t *slot; /* hash table of ranks; none: empty */
    uint32_t mask;
    uint32_t longest;
    uint32_t byte[256]; /* rank of each byte */
    pcre2_general_context *memory;
    pcre2_code *code;
    bool jit;
};

/* ---- tokens by their bytes ---- */

static uint64_t hash_of(const uint8_t *s, size_t n) {
    uint64_t h = UINT64_C(0x9e3779b97f4a7c15) ^ n, word;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&word, s, 8);
        h = (h ^ word) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 32;
    }
    word = 0;
    memcpy(&word, s, n);
    h = (h ^ word) * UINT64_C(0xc4ceb9fe1a85ec53);
    return h ^ h >> 29;
}

/* The rank of these bytes, or none. */
static uint32_t rank_of(const struct o200k *t, const uint8_t *s, size_t n) {
    if (n > t->longest) return none;
    for (uint32_t i = (uint32_t)hash_of(s, n) & t->mask;; i = (i + 1) & t->mask) {
        const uint32_t rank = t->slot[i];
        if (rank == none) return none;
        const uint32_t at = t->start[rank];
        if (t->start[rank + 1] - at == n && memcmp(t->pool + at, s, n) == 0) return rank;
    }
}

/* Puts a rank into the table; another rank with the same bytes, or none. */
static uint32_t insert(struct o200k *t, uint32_t rank) {
    const uint8_t *s = t->pool + t->start[rank];
    const size_t n = t->start[rank + 1] - t->start[rank];
    for (uint32_t i = (uint32_t)hash_of(s, n) & t->mask;; i = (i + 1) & t->mask) {
        const uint32_t other = t->slot[i];
        if (other == none) {
            t->slot[i] = rank;
            return none;
        }
        const uint32_t at = t->start[other];
        if (t->start[other + 1] - at == n && memcmp(t->pool + at, s, n) == 0) return other;
    }
}

/* ---- the rank file ---- */

static int value_of(uint8_t c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* n characters of base64, in the one spelling that each byte string has; returns how many bytes, -1: it is none. */
static int64_t decode_base64(const uint8_t *s, size_t n, uint8_t *out) {
    size_t bytes = 0;
    if (n == 0 || n % 4) return -1;
    const size_t pads = s[n - 1] != '=' ? 0 : s[n - 2] != '=' ? 1 : 2;
    for (size_t i = 0; i < n; i += 4) {
        const size_t pad = i + 4 == n ? pads : 0;
        uint32_t word = 0;
        for (size_t k = 0; k < 4; k++) {
            const int v = k + pad >= 4 ? 0 : value_of(s[i + k]);
            if (v < 0) return -1;
            word = word << 6 | (uint32_t)v;
        }
        if (word & ((1u << 8 * pad) - 1)) return -1;
        for (size_t k = 0; k + pad < 3; k++) out[bytes++] = (uint8_t)(word >> (16 - 8 * k));
    }
    return (int64_t)bytes;
}

struct line {
    uint32_t token, bytes, number; /* in the scratch pool; line of the file, 0: not seen */
};

struct reader {
    const struct chm_host *host;
    const uint8_t *at, *end;
    uint32_t number;
    struct line *line; /* [ranks] by rank */
    uint8_t *scratch;
    uint32_t used;
};

static const char mend[] = "take the file as it was published, or train a tokenizer of your own";

/* One line; r->at is on its first character. */
static int read_line(struct reader *r, const uint8_t *end, uint32_t ranks) {
    const struct chm_host *host = r->host;
    const uint8_t *space = memchr(r->at, ' ', (size_t)(end - r->at));
    const size_t base64 = space ? (size_t)(space - r->at) : 0;
    uint64_t rank = 0;
    if (space == NULL)
        return host->fail(CHM_E_DATA, ":%u: expected a token in base64, a space and its rank; %s", r->number, mend);
    if (base64 > LONGEST_TOKEN)
        return host->fail(CHM_E_DATA, ":%u: a token of %zu characters; at most %d are read; %s", r->number, base64,
                          LONGEST_TOKEN, mend);
    const int64_t bytes = decode_base64(r->at, base64, r->scratch + r->used);
    if (bytes < 1)
        return host->fail(CHM_E_DATA, ":%u: the %zu characters before the space are no base64; %s", r->number, base64,
                          mend);
    const uint8_t *digit = space + 1;
    for (; digit < end && *digit >= '0' && *digit <= '9' && rank <= UINT32_MAX; digit++)
        rank = rank * 10 + (uint64_t)(*digit - '0');
    if (digit == space + 1 || digit < end)
        return host->fail(CHM_E_DATA, ":%u: the rank after the space is no whole number; %s", r->number, mend);
    if (rank >= ranks)
        return host->fail(CHM_E_DATA, ":%u: rank %llu, but %u tokens have the ranks 0..%u: one is missing; %s",
                          r->number, (unsigned long long)rank, ranks, ranks - 1, mend);
    if (r->line[rank].number)
        return host->fail(CHM_E_DATA, ":%u: rank %llu was given in line %u already; %s", r->number,
                          (unsigned long long)rank, r->line[rank].number, mend);
    r->line[rank] = (struct line){r->used, (uint32_t)bytes, r->number};
    r->used += (uint32_t)bytes;
    return CHM_OK;
}

/* The tokens in the order of their ranks, and the table that finds them. */
static int build_table(struct o200k *t, const struct reader *r) {
    const struct chm_host *host = t->host;
    uint32_t slots = 16, used = 0;
    while (slots < 2 * t->ranks) slots *= 2;
    t->mask = slots - 1;
    t->pool = host->alloc(r->used ? r->used : 1);
    t->start = host->alloc(((size_t)t->ranks + 1) * sizeof *t->start);
    t->slot = host->alloc((size_t)slots * sizeof *t->slot);
    if (t->pool == NULL || t->start == NULL || t->slot == NULL) return CHM_E_MEMORY;
    memset(t->slot, 0xff, (size_t)slots * sizeof *t->slot);
    for (int b = 0; b < 256; b++) t->byte[b] = none;
    for (uint32_t rank = 0; rank < t->ranks; rank++) {
        const struct line *l = &r->line[rank];
        memcpy(t->pool + used, r->scratch + l->token, l->bytes);
        t->start[rank] = used;
        t->start[rank + 1] = used += l->bytes;
        if (l->bytes > t->longest) t->longest = l->bytes;
        if (l->bytes == 1) t->byte[r->scratch[l->token]] = rank;
        const uint32_t other = insert(t, rank);
        if (other == none) continue;
        const uint32_t a = r->line[other].number, b = l->number;
        return host->fail(CHM_E_DATA, ":%u: the same token as in line %u; %s", a > b ? a : b, a < b ? a : b, mend);
    }
    for (int b = 0; b < 256; b++)
        if (t->byte[b] == none)
            return host->fail(
                CHM_E_DATA,
                ":%u: the end, and no token is the byte 0x%02x alone: all 256 are needed, so that any text "
                "can be written; %s",
                r->number, (unsigned)b, mend);
    return CHM_OK;
}

static int read_ranks(struct o200k *t, const uint8_t *data, size_t bytes) {
    const struct chm_host *host = t->host;
    struct reader r = {.host = host, .at = data, .end = data + bytes};
    int status = CHM_OK;
    uint64_t lines = 0;
    for (const uint8_t *c = data; c < r.end; c++) lines += *c == '\n' && c > data && c[-1] != '\n';
    if (bytes > UINT32_MAX || lines > 1u << 23)
        return host->fail(CHM_E_DATA, ":1: a rank file has at most %u lines and 4 GiB; %s", 1u << 23, mend);
    if (data[bytes - 1] != '\n')
        return host->fail(CHM_E_DATA, ":%llu: the last line does not end: the file was cut short; %s",
                          (unsigned long long)lines + 1, mend);
    if (lines == 0) return host->fail(CHM_E_DATA, ":1: there is no line with a token; %s", mend);
    t->ranks = (uint32_t)lines;
    r.line = host->alloc(lines * sizeof *r.line);
    r.scratch = host->alloc(bytes);
    if (r.line == NULL || r.scratch == NULL) status = CHM_E_MEMORY;
    while (status == CHM_OK && r.at < r.end) {
        const uint8_t *end = memchr(r.at, '\n', (size_t)(r.end - r.at));
        r.number++;
        if (end > r.at) status = read_line(&r, end, t->ranks);
        r.at = end + 1;
    }
    if (status == CHM_OK) status = build_table(t, &r);
    host->free(r.line);
    host->free(r.scratch);
    return status;
}

/* ---- the pattern ---- */

static void *pcre_alloc(size_t bytes, void *host) { return ((const struct chm_host *)host)->alloc(bytes); }
static void pcre_free(void *p, void *host) { ((const struct chm_host *)host)->free(p); }

static int compile(struct o200k *t) {
    int error = 0;
    size_t offset = 0;
    t->memory = pcre2_general_context_create(pcre_alloc, pcre_free, (void *)(uintptr_t)t->host);
    pcre2_compile_context *context = t->memory ? pcre2_compile_context_create(t->memory) : NULL;
    if (context == NULL) return CHM_E_MEMORY;
    t->code = pcre2_compile((PCRE2_SPTR)pattern, sizeof pattern - 1, PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error,
                            &offset, context);
    pcre2_compile_context_free(context);
    if (t->code == NULL) {
        if (error == PCRE2_ERROR_HEAP_FAILED)
            return t->host->fail(CHM_E_MEMORY, "out of memory while compiling a pattern");
        return t->host->fail(CHM_E_INTERNAL, "PCRE2 refuses the pattern at %zu (error %d)", offset, error);
    }
    t->jit = pcre2_jit_compile(t->code, PCRE2_JIT_COMPLETE) == 0; /* where there is none it is only slower */
    return CHM_OK;
}

/* What a match needs, one a call: instances are used by several threads. */
struct matcher {
    const struct o200k *t;
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

static void matcher_finish(struct matcher *m) {
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    if (m->stack) pcre2_jit_stack_free(m->stack);
}

static int matcher_init(struct matcher *m, const struct o200k *t) {
    *m = (struct matcher){.t = t};
    m->data = pcre2_match_data_create(1, t->memory);
    m->context = m->data ? pcre2_match_context_create(t->memory) : NULL;
    if (m->context == NULL) {
        matcher_finish(m);
        return CHM_E_MEMORY;
    }
    return CHM_OK;
}

/* The end of the piece that begins at `at` of valid text[0..n); with `partial`, 0 when it is not certain because the
 * text may go on. SIZE_MAX: out of memory. */
static size_t piece_end(struct matcher *m, const uint8_t *text, size_t n, size_t at, bool partial) {
    const struct o200k *t = m->t;
    const uint32_t how = PCRE2_NO_UTF_CHECK;
    int found;
    if (partial) {
        found = pcre2_match(t->code, text, n, at, how | PCRE2_PARTIAL_HARD, m->data, m->context);
        if (found == PCRE2_ERROR_PARTIAL) return 0;
    } else {
        found = t->jit ? pcre2_jit_match(t->code, text, n, at, 0, m->data, m->context) : PCRE2_ERROR_JIT_BADOPTION;
        if (found == PCRE2_ERROR_JIT_STACKLIMIT && m->stack == NULL) {
            m->stack = pcre2_jit_stack_create(1 << 16, 1 << 24, t->memory);
            if (m->stack == NULL) return SIZE_MAX;
            pcre2_jit_stack_assign(m->context, NULL, m->stack);
            found = pcre2_jit_match(t->code, text, n, at, 0, m->data, m->context);
        }
        if (found < 0 && found != PCRE2_ERROR_NOMATCH)
            found = pcre2_match(t->code, text, n, at, how | PCRE2_NO_JIT, m->data, m->context);
    }
    if (found == PCRE2_ERROR_NOMEMORY || found == PCRE2_ERROR_HEAPLIMIT) return SIZE_MAX;
    const size_t *where = pcre2_get_ovector_pointer(m->data);
    /* every character begins a piece of some kind; were it not so, it would be one by itself */
    return found >= 0 && where[0] == at && where[1] > at ? where[1] : at + 1;
}

/* Bytes of the character at s, 0: none, or not all of it is there. */
static size_t character(const uint8_t *s, size_t n) {
    if (s[0] < 0x80) return 1;
    const size_t length = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || length > n) return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return length;
}

/* Where the valid UTF-8 that begins at `at` ends. */
static size_t valid_end(const uint8_t *text, size_t n, size_t at) {
    while (at < n) {
        uint64_t word;
        if (n - at >= 8 && (memcpy(&word, text + at, 8), (word & UINT64_C(0x8080808080808080)) == 0)) {
            at += 8;
            continue;
        }
        const size_t length = character(text + at, n - at);
        if (length == 0) break;
        at += length;
    }
    return at;
}

/* ---- merging ---- */

struct ids {
    int32_t *id;
    size_t cap;
    int64_t count;
};

static void put(struct ids *out, uint32_t id) {
    if ((uint64_t)out->count < out->cap) out->id[out->count] = (int32_t)id;
    out->count++;
}

static void merge_short(const struct o200k *t, const uint8_t *s, size_t n, struct ids *out) {
    uint8_t start[SHORT_PIECE + 1]; /* of each part; the end after the last */
    uint32_t rank[SHORT_PIECE];     /* of each part with the next */
    size_t parts = n;
    for (size_t i = 0; i <= n; i++) start[i] = (uint8_t)i;
    for (size_t i = 0; i + 1 < n; i++) rank[i] = rank_of(t, s + i, 2);
    for (;;) {
        size_t best = 0;
        uint32_t lowest = none;
        for (size_t i = 0; i + 1 < parts; i++)
            if (rank[i] < lowest) {
                lowest = rank[i];
                best = i;
            }
        if (lowest == none) break;
        parts--;
        for (size_t i = best + 1; i < parts; i++) {
            start[i] = start[i + 1];
            rank[i] = rank[i + 1];
        }
        start[parts] = (uint8_t)n;
        if (best + 1 < parts) rank[best] = rank_of(t, s + start[best], (size_t)(start[best + 2] - start[best]));
        if (best > 0) rank[best - 1] = rank_of(t, s + start[best - 1], (size_t)(start[best + 1] - start[best - 1]));
    }
    for (size_t i = 0; i < parts; i++) put(out, rank_of(t, s + start[i], (size_t)(start[i + 1] - start[i])));
}

/* Parts as a list over the bytes, and their pairs in a heap by rank, then place: n log n. A pair in the heap whose rank
 * is no longer that of its place is out of date. */
struct part {
    uint32_t before, after; /* begin of the neighbours */
    uint32_t rank;          /* with the next; none */
};

static void heap_push(uint64_t *heap, size_t *count, uint64_t key) {
    size_t i = (*count)++;
    for (; i > 0 && heap[(i - 1) / 2] > key; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = key;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count) {
    const uint64_t top = heap[0], last = heap[--*count];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *count; i = child) {
        if (child + 1 < *count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= last) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

static int merge_long(const struct o200k *t, const uint8_t *s, size_t n, struct ids *out) {
    /* n - 1 pairs to begin with, and at most two more for each of n - 1 merges */
    struct part *part = t->host->alloc((n + 1) * sizeof *part);
    uint64_t *heap = t->host->alloc(3 * n * sizeof *heap);
    size_t count = 0;
    if (part == NULL || heap == NULL) {
        t->host->free(part);
        t->host->free(heap);
        return CHM_E_MEMORY;
    }
    for (uint32_t i = 0; i < n; i++) {
        part[i] = (struct part){i - 1, i + 1, i + 1 < n ? rank_of(t, s + i, 2) : none};
        if (part[i].rank != none) heap_push(heap, &count, (uint64_t)part[i].rank << 32 | i);
    }
    part[n].rank = none;
    while (count > 0) {
        const uint64_t key = heap_pop(heap, &count);
        const uint32_t i = (uint32_t)key, j = part[i].after;
        if (part[i].rank != key >> 32) continue;
        part[i].after = part[j].after;
        part[part[j].after].before = i;
        part[j].rank = none;
        const uint32_t next = part[i].after;
        part[i].rank = next < n ? rank_of(t, s + i, part[next].after - i) : none;
        if (part[i].rank != none) heap_push(heap, &count, (uint64_t)part[i].rank << 32 | i);
        if (i == 0) continue;
        const uint32_t before = part[i].before;
        part[before].rank = rank_of(t, s + before, next - before);
        if (part[before].rank != none) heap_push(heap, &count, (uint64_t)part[before].rank << 32 | before);
    }
    for (uint32_t i = 0; i < n; i = part[i].after) put(out, rank_of(t, s + i, part[i].after - i));
    t->host->free(part);
    t->host->free(heap);
    return CHM_OK;
}

static int encode_piece(const struct o200k *t, const uint8_t *s, size_t n, struct ids *out) {
    const uint32_t whole = n == 1 ? t->byte[s[0]] : rank_of(t, s, n);
    if (whole != none)
        put(out, whole);
    else if (n <= SHORT_PIECE)
        merge_short(t, s, n, out);
    else
        return merge_long(t, s, n, out);
    return CHM_OK;
}

static int64_t o200k_encode(const void *self, const uint8_t *text, size_t bytes, int32_t *ids, size_t cap) {
    const struct o200k *t = self;
    struct ids out = {ids, cap, 0};
    struct matcher m;
    int status;
    if (bytes > UINT32_MAX / 4) {
        (void)t->host->fail(CHM_E_DATA, "%zu bytes at once; at most %u are encoded", bytes, UINT32_MAX / 4);
        return -1;
    }
    if ((status = matcher_init(&m, t)) != CHM_OK) return -1;
    for (size_t at = 0; at < bytes && status == CHM_OK;) {
        const uint8_t *run = text + at;
        const size_t n = valid_end(text, bytes, at) - at;
        for (size_t i = 0; i < n && status == CHM_OK;) {
            const size_t end = piece_end(&m, run, n, i, false);
            status = end == SIZE_MAX ? t->host->fail(CHM_E_MEMORY, "out of memory while splitting a text")
                                     : encode_piece(t, run + i, end - i, &out);
            i = end;
        }
        at += n;
        size_t broken = at;
        while (broken < bytes && character(text + broken, bytes - broken) == 0) broken++;
        if (broken > at && status == CHM_OK) status = encode_piece(t, text + at, broken - at, &out);
        at = broken;
    }
    matcher_finish(&m);
    return status == CHM_OK ? out.count : -1;
}

/* ---- where a text may be cut ---- */

/* Is the character at s white space? -1: it is none, or incomplete. */
static int is_space(const uint8_t *s, size_t n) {
    const size_t length = character(s, n);
    if (length == 0) return -1;
    if (length == 1) return s[0] == ' ' || (s[0] >= 9 && s[0] <= 13);
    if (length == 2) return s[0] == 0xc2 && (s[1] == 0x85 || s[1] == 0xa0);
    if (length == 4) return 0;
    const uint32_t c = (uint32_t)(s[0] & 15) << 12 | (uint32_t)(s[1] & 63) << 6 | (uint32_t)(s[2] & 63);
    return c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
           c == 0x3000;
}

static bool is_letter(uint8_t c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; }

static bool all_space(const uint8_t *s, size_t n) {
    for (size_t i = 0; i < n; i += character(s + i, n - i))
        if (is_space(s + i, n - i) != 1) return false;
    return true;
}

/*
 * A cut must be where the whole text has the end of a piece, whatever follows, and where the text before it gives the
 * same pieces when it ends there. The pattern looks behind itself nowhere, and ahead only in "white space not followed
 * by something else"; so the second holds after any piece but one of white space. Two places can be told by themselves:
 *   - after a newline, before something that is neither white space nor '/': no piece goes from the one to the other,
 * and white space up to a newline is one piece whether more follows or not;
 *   - between a letter and a space: no piece has a letter before a space.
 * Where there is neither (a megabyte of signs, of digits, of a script without spaces), the pattern is run from the
 * start and says itself which ends do not depend on what follows.
 */
static size_t o200k_cut(const void *self, const uint8_t *text, size_t bytes) {
    const struct o200k *t = self;
    for (size_t i = bytes; i-- > 1;) {
        if (text[i] == ' ' && is_letter(text[i - 1])) return i;
        if (text[i - 1] == '\n' && text[i] != '/' && is_space(text + i, bytes - i) == 0) return i;
    }
    struct matcher m;
    size_t last = 0;
    if (matcher_init(&m, t) != CHM_OK) return 0;
    for (size_t at = 0; at < bytes;) {
        const uint8_t *run = text + at;
        const size_t n = valid_end(text, bytes, at) - at;
        /* a run that broken UTF-8 ends, and not the character that is cut by the end of the buffer, is all there */
        const bool whole = at + n + 4 <= bytes;
        for (size_t i = 0, end; i < n; i = end) {
            end = piece_end(&m, run, n, i, !whole);
            if (end == 0 || end == SIZE_MAX) goto out;
            if (!all_space(run + i, end - i)) last = at + end;
        }
        if (!whole) break;
        at += n;
        while (at < bytes && character(text + at, bytes - at) == 0) at++;
    }
out:
    matcher_finish(&m);
    return last;
}

/* ---- the rest of the ops ---- */

static void o200k_finish(void *self) {
    struct o200k *t = self;
    if (t->host == NULL) return;
    t->host->free(t->pool);
    t->host->free(t->start);
    t->host->free(t->slot);
    pcre2_code_free(t->code);
    pcre2_general_context_free(t->memory);
    memset(t, 0, sizeof *t);
}

static int o200k_init(void *self, const struct chm_host *host, const void *data, size_t bytes) {
    struct o200k *t = self;
    t->host = host;
    if (bytes == 0)
        return host->fail(CHM_E_CONFIG, "tokenizer 'o200k' needs a rank file (o200k_base.tiktoken): name it as "
                                        "files.tokenizer in the card");
    if (((const uint8_t *)data)[0] == 0x0a && bytes > 1 && ((const uint8_t *)data)[1] < 0x80 &&
        memchr(data, 0, bytes) != NULL)
        return host->fail(CHM_E_CONFIG, "this is no rank file; it looks like a sentencepiece model: set tokenizer.type "
                                        "to sentencepiece");
    int status = read_ranks(t, data, bytes);
    if (status == CHM_OK) status = compile(t);
    if (status != CHM_OK) o200k_finish(self);
    return status;
}

static int32_t o200k_vocab_size(const void *self) {
    return (int32_t)((const struct o200k *)self)->ranks + AGENT + AGENTS;
}

static int32_t o200k_end_of_text(const void *self) {
    return (int32_t)((const struct o200k *)self)->ranks + END_OF_TEXT;
}

static int64_t o200k_decode(const void *self, int32_t id, uint8_t *out, size_t cap) {
    const struct o200k *t = self;
    if (id < 0 || id >= o200k_vocab_size(self)) return -1;
    if ((uint32_t)id >= t->ranks) return 0;
    const size_t n = t->start[id + 1] - t->start[id];
    if (cap > 0) memcpy(out, t->pool + t->start[id], n < cap ? n : cap);
    return (int64_t)n;
}

static const char *o200k_special(const void *self, int32_t id) {
    const int64_t k = (int64_t)id - ((const struct o200k *)self)->ranks;
    if (k == END_OF_TEXT) return "<|endoftext|>";
    if (k == END_OF_PROMPT) return "<|endofprompt|>";
    return k >= AGENT && k < AGENT + AGENTS ? agent[k - AGENT] : NULL;
}

static uint64_t o200k_properties(const void *self) {
    (void)self;
    return CHM_TOKENIZER_LOSSLESS;
}

static const struct chm_tokenizer_ops o200k_ops = {
    .size = sizeof(struct chm_tokenizer_ops),
    .init = o200k_init,
    .finish = o200k_finish,
    .vocab_size = o200k_vocab_size,
    .end_of_text = o200k_end_of_text,
    .encode = o200k_encode,
    .decode = o200k_decode,
    .cut = o200k_cut,
    .special = o200k_special,
    .properties = o200k_properties,
};

CHM_PLUGIN(o200k, .kind = CHM_KIND_TOKENIZER, .version = "1.0.0", .licence = "Apache-2.0",
           .summary = "byte pairs by a rank file (o200k_base), and 54 agent tokens after it",
           .instance_size = sizeof(struct o200k), .ops = &o200k_ops);
