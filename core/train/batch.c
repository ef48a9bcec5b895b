/* batch.c: which tokens a step reads, as a function of (seed, step, stream). */
#include "train/train.h"

/* A permutation of [0, count): a Feistel network over the next even number of bits, walked until it lands inside. */
static int64_t permute(uint64_t seed, int64_t epoch, int64_t count, int64_t index) {
    int half = 1;
    while ((INT64_C(1) << (2 * half)) < count) half++;
    const uint64_t mask = (UINT64_C(1) << half) - 1;
    uint64_t x = (uint64_t)index;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint32_t round = 1; round <= 4; round++) {
            uint32_t out[4];
            chm_philox(seed, CHM_RANDOM_DATA, round, ((uint64_t)epoch << 32) | right, out);
            const uint64_t next = left ^ (out[0] & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= (uint64_t)count);
    return (int64_t)x;
}

/* The document that token `index` belongs to. */
static int64_t document_of(const chm_corpus *c, int64_t index) {
    int64_t low = 0, high = c->documents - 1;
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        if (c->document[middle] <= index)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* First token of a stream's run. */
static int64_t run_start(const chm_batch *b, int64_t stream, int64_t run) {
    const int64_t length = b->rows * b->carry;
    const int64_t places = (b->corpus->tokens + length - 1) / length; /* runs of an epoch */
    const int64_t number = run * b->streams + stream;
    const int64_t epoch = number / places;
    const int64_t place = permute(b->seed, epoch, places, number % places);
    const int64_t shift =
        (int64_t)chm_below_at(b->seed, CHM_RANDOM_DATA, 0, (uint64_t)epoch, (uint64_t)b->corpus->tokens);
    const int64_t start = (place * length + shift) % b->corpus->tokens;
    if (!b->corpus->whole) return start;
    const int64_t *document = b->corpus->document + document_of(b->corpus, start);
    return document[1] - document[0] <= length ? document[0] : start;
}

void chm_batch_segment(const chm_batch *b, int64_t step, int64_t stream, int32_t *id, int32_t *target,
                       int64_t *position) {
    const chm_corpus *c = b->corpus;
    const int64_t phase = stream * b->carry / b->streams;
    const int64_t run = (step + phase) / b->carry;
    const int64_t segment = (step + phase) % b->carry;
    /* a stream's first run starts late, at its phase */
    const int64_t begun = run == 0 ? phase : 0;
    int64_t read = (segment - begun) * b->rows; /* tokens of this run before this segment */
    int64_t at = (run_start(b, stream, run) + segment * b->rows) % c->tokens;
    int64_t document = document_of(c, at);
    for (int64_t r = 0; r < b->rows; r++) {
        const int64_t inside = at - c->document[document];
        const int64_t end = c->document[document + 1];
        id[r] = chm_corpus_token(c, at);
        position[r] = CHM_MIN(read, inside);
        read = position[r] + 1;
        at++;
        if (at == end) {
            document = document + 1 < c->documents ? document + 1 : 0;
            at = c->document[document];
            /* the end of a document is foretold by the mark that begins the next */
            target[r] = c->marked && !c->answers_only ? chm_corpus_token(c, at) : -1;
        } else {
            target[r] = chm_counts(c->answers_only, id[r]) ? chm_corpus_token(c, at) : -1;
        }
    }
}

int64_t chm_batch_targets(const chm_batch *b, int64_t step) {
    const chm_corpus *c = b->corpus;
    int64_t count = b->streams * b->rows;
    if (c->marked && !c->answers_only) return count;
    for (int64_t s = 0; s < b->streams; s++) {
        const int64_t phase = s * b->carry / b->streams;
        int64_t at = run_start(b, s, (step + phase) / b->carry) + (step + phase) % b->carry * b->rows;
        at %= c->tokens;
        int64_t document = document_of(c, at);
        for (int64_t r = 0; r < b->rows; r++) {
            const bool last = at + 1 == c->document[document + 1];
            count -= last || !chm_counts(c->answers_only, chm_corpus_token(c, at));
            at++;
            if (!last) continue;
            document = document + 1 < c->documents ? document + 1 : 0;
            at = c->document[document];
        }
    }
    return count;
}
