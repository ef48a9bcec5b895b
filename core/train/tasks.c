/*
 * tasks.c: synthetic tasks as text, one document a line, in which the byte behind a '=' is an answer. A document is a
 * function of (task, its options, seed, index), so a longer file begins with the shorter ones.
 *
 *   mqar      aQbRaS b=Ra=S   bindings of a key to a value, then keys and the value each was bound to last
 *                             (arXiv:2312.04927; keys bound again as in its forgetting variant)
 *   parity    0110101=0       whether the number of ones is odd
 *   majority  0110101=1       whether there are more ones than zeros; never as many
 */
#include "base/base.h"

#include <chimera/chimera.h>
#include <math.h>
#include <string.h>

/* The random numbers of one document, in the order of asking. */
typedef struct draws {
    uint64_t seed, index;
    uint32_t next;
} draws;

static int64_t below(draws *d, int64_t bound) {
    return (int64_t)chm_below_at(d->seed, CHM_RANDOM_TASK, d->next++, d->index, (uint64_t)bound);
}

static char *put_parity(draws *d, int64_t bits, char *out) {
    int64_t ones = 0;
    for (int64_t i = 0; i < bits; i++) {
        const int64_t one = below(d, 2);
        ones += one;
        *out++ = (char)('0' + one);
    }
    *out++ = '=';
    *out++ = (char)('0' + ones % 2);
    return out;
}

static char *put_majority(draws *d, int64_t bits, char *out) {
    int64_t ones = 0;
    for (int64_t i = 0; i < bits; i++) {
        const int64_t one = below(d, 2);
        ones += one;
        out[i] = (char)('0' + one);
    }
    if (2 * ones == bits) { /* a tie is broken by turning one of the bits */
        char *bit = &out[below(d, bits)];
        *bit = *bit == '0' ? '1' : '0';
        ones += *bit == '1' ? 1 : -1;
    }
    out += bits;
    *out++ = '=';
    *out++ = 2 * ones > bits ? '1' : '0';
    return out;
}

/* How many of n bindings are of a key that was bound before. */
static int64_t rebound(const chm_task_options *o, int64_t n) {
    return CHM_MIN((int64_t)(o->rebound * (double)n), n - 1);
}

static char *put_mqar(const chm_task_options *o, draws *d, int64_t bindings, char *out) {
    char key[CHM_TASK_ALPHABET], value[CHM_TASK_ALPHABET] = {0}; /* key[0 .. bound) are bound, to value[] */
    int64_t bound = 0, again = rebound(o, bindings);
    for (int64_t i = 0; i < o->alphabet; i++) key[i] = (char)('a' + i);
    for (int64_t left = bindings; left > 0; left--) {
        int64_t k = bound, new = below(d, o->alphabet);
        if (bound > 0 && below(d, left) < again) {
            k = below(d, bound);
            again--;
            /* another value than before, so that to forget the old one is needed */
            new = (value[k] - 'A' + 1 + below(d, o->alphabet - 1)) % o->alphabet;
        } else {
            const int64_t other = bound + below(d, o->alphabet - bound);
            const char letter = key[other];
            key[other] = key[bound];
            key[bound++] = letter;
        }
        value[k] = (char)('A' + new);
        *out++ = key[k];
        *out++ = value[k];
    }
    *out++ = ' ';
    for (int64_t i = 0; i < o->queries; i++) { /* without replacement */
        const int64_t k = i + below(d, bound - i);
        const char letter = key[k], is = value[k];
        key[k] = key[i];
        value[k] = value[i];
        key[i] = letter;
        value[i] = is;
        *out++ = letter;
        *out++ = '=';
        *out++ = is;
    }
    return out;
}

static int check(const chm_task_options *o) {
    if (o->size != sizeof *o)
        return chm_fail(CHM_E_CONFIG, "chm_task_options has size %u, this library expects %zu", o->size, sizeof *o);
    if (o->out == NULL) return chm_fail(CHM_E_CONFIG, "no file: name the file that the documents go to");
    if (o->documents < 1 || o->documents > CHM_TASK_DOCUMENTS_MAX)
        return chm_fail(CHM_E_CONFIG, "%lld documents: expected 1..%lld", (long long)o->documents,
                        (long long)CHM_TASK_DOCUMENTS_MAX);
    if (o->least < 1 || o->most > CHM_TASK_LENGTH_MAX)
        return chm_fail(CHM_E_CONFIG, "lengths %lld..%lld: expected some of 1..%d", (long long)o->least,
                        (long long)o->most, CHM_TASK_LENGTH_MAX);
    if (o->least > o->most)
        return chm_fail(CHM_E_CONFIG, "the least length %lld is above the greatest, %lld", (long long)o->least,
                        (long long)o->most);
    switch (o->task) {
    case CHM_TASK_PARITY:
    case CHM_TASK_MAJORITY:
        return CHM_OK;
    case CHM_TASK_MQAR:
        break;
    default:
        return chm_fail(CHM_E_CONFIG, "no task %d", (int)o->task);
    }
    if (o->alphabet < 2 || o->alphabet > CHM_TASK_ALPHABET)
        return chm_fail(CHM_E_CONFIG, "an alphabet of %lld: expected 2..%d", (long long)o->alphabet, CHM_TASK_ALPHABET);
    if (!(o->rebound >= 0) || o->rebound > 1)
        return chm_fail(CHM_E_CONFIG, "the share %g of bindings that bind again: expected 0..1", o->rebound);
    /* distinct keys grow with the bindings, or stay: the ends are the extremes */
    const int64_t fewest = o->least - rebound(o, o->least), keys = o->most - rebound(o, o->most);
    if (keys > o->alphabet)
        return chm_fail(CHM_E_CONFIG,
                        "%lld bindings of which %lld bind again need %lld keys, and the alphabet has %lld: fewer "
                        "bindings, a larger share that binds again, or a larger alphabet",
                        (long long)o->most, (long long)(o->most - keys), (long long)keys, (long long)o->alphabet);
    if (o->queries < 1 || o->queries > fewest)
        return chm_fail(CHM_E_CONFIG,
                        "%lld queries: a document of %lld bindings has %lld distinct keys, each asked at most once; "
                        "expected 1..%lld",
                        (long long)o->queries, (long long)o->least, (long long)fewest, (long long)fewest);
    return CHM_OK;
}

int chm_task_write(const chm_task_options *o) {
    chm_writer w;
    int status = check(o);
    if (status != CHM_OK) return status;
    const int64_t longest = 2 * o->most + 3 * CHM_TASK_ALPHABET + 4; /* of any task */
    char *line = chm_alloc((size_t)longest);
    if (line == NULL) return CHM_E_MEMORY;
    if ((status = chm_writer_open(&w, o->out)) != CHM_OK) goto out;
    for (int64_t i = 0; i < o->documents && status == CHM_OK; i++) {
        draws d = {.seed = o->seed, .index = (uint64_t)i};
        const int64_t length = o->least + below(&d, o->most - o->least + 1);
        char *end = o->task == CHM_TASK_MQAR     ? put_mqar(o, &d, length, line)
                    : o->task == CHM_TASK_PARITY ? put_parity(&d, length, line)
                                                 : put_majority(&d, length, line);
        *end++ = '\n';
        status = chm_writer_write(&w, line, (size_t)(end - line));
        if (status == CHM_OK && o->stop != NULL && *o->stop != 0)
            status = chm_fail(CHM_E_INTERRUPTED, "%s: stopped after %lld documents; nothing is kept", o->out,
                              (long long)i + 1);
    }
    if (status == CHM_OK) status = chm_writer_commit(&w);
    chm_writer_abandon(&w);
out:
    chm_free(line);
    return status;
}
