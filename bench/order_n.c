/*
 * order_n: what counting letters alone achieves, the yardstick beside every first training run.
 *
 *   order_n ORDER TRAIN HELD_OUT     ORDER 0..2
 *
 * Counts every byte of TRAIN after the ORDER bytes before it, then prices HELD_OUT, byte by byte, with counts that stay
 * as they are. Orders are interpolated after Witten and Bell (IEEE Trans. Inf. Theory 37(4), 1991): a context c seen
 * N(c) times with T(c) different successors gives
 *
 *   p(x | c) = (n(c, x) + T(c) * p(x | c without its oldest byte)) / (N(c) + T(c)),
 *
 * and below order 0 every byte has 1/256. So no byte is impossible and no constant was tuned. Prints one line of JSON.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ORDER = 2, BYTES = 256 };

typedef struct {
    uint32_t *count; /* [contexts][256] */
    uint32_t *total; /* [contexts] */
    uint32_t *kinds; /* [contexts]: different successors */
} table;

static table tables[MAX_ORDER + 1];

static void *allocate(size_t n, size_t size) {
    void *p = calloc(n, size);
    if (!p) {
        fprintf(stderr, "order_n: out of memory\n");
        exit(1);
    }
    return p;
}

static unsigned char *read_file(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    unsigned char *data = NULL;
    size_t used = 0, room = 0;
    if (!f) {
        perror(path);
        exit(1);
    }
    for (;;) {
        if (used == room) {
            room = room ? room * 2 : 1 << 20;
            data = realloc(data, room);
            if (!data) {
                fprintf(stderr, "order_n: %s: out of memory\n", path);
                exit(1);
            }
        }
        size_t got = fread(data + used, 1, room - used, f);
        if (!got) break;
        used += got;
    }
    if (ferror(f)) {
        perror(path);
        exit(1);
    }
    fclose(f);
    *bytes = used;
    return data;
}

/* The context of `order` bytes before position i, as an index. */
static size_t context(const unsigned char *text, size_t i, int order) {
    size_t c = 0;
    for (int k = order; k > 0; k--) {
        c = c * BYTES + text[i - (size_t)k];
    }
    return c;
}

int main(int argc, char **argv) {
    if (argc != 4 || strlen(argv[1]) != 1 || argv[1][0] < '0' || argv[1][0] > '0' + MAX_ORDER) {
        fprintf(stderr, "usage: order_n ORDER TRAIN HELD_OUT    ORDER 0..%d\n", MAX_ORDER);
        return 2;
    }
    int order = argv[1][0] - '0';
    size_t train_bytes, held_bytes;
    unsigned char *train = read_file(argv[2], &train_bytes);
    unsigned char *held = read_file(argv[3], &held_bytes);
    if (!held_bytes) {
        fprintf(stderr, "order_n: %s: no bytes to price\n", argv[3]);
        return 1;
    }

    size_t contexts = 1;
    for (int o = 0; o <= order; o++, contexts *= BYTES) {
        table *t = &tables[o];
        t->count = allocate(contexts * BYTES, sizeof *t->count);
        t->total = allocate(contexts, sizeof *t->total);
        t->kinds = allocate(contexts, sizeof *t->kinds);
        for (size_t i = (size_t)o; i < train_bytes; i++) {
            size_t c = context(train, i, o);
            if (!t->count[c * BYTES + train[i]]++) t->kinds[c]++;
            t->total[c]++;
        }
    }

    double bits = 0;
    for (size_t i = 0; i < held_bytes; i++) {
        double p = 1.0 / BYTES;
        for (int o = 0; o <= order && (size_t)o <= i; o++) {
            const table *t = &tables[o];
            size_t c = context(held, i, o);
            if (t->total[c]) {
                p = (t->count[c * BYTES + held[i]] + t->kinds[c] * p) / ((double)t->total[c] + t->kinds[c]);
            }
        }
        bits -= log2(p);
    }
    printf("{\"order\": %d, \"bits_per_byte\": %.6f, \"bytes\": %zu, \"train_bytes\": %zu}\n", order,
           bits / (double)held_bytes, held_bytes, train_bytes);

    for (int o = 0; o <= order; o++) {
        free(tables[o].count);
        free(tables[o].total);
        free(tables[o].kinds);
    }
    free(train);
    free(held);
    return 0;
}
