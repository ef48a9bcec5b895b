/*
 * logits: logits MODEL, the logits of a model after each token of a fixed text, as floats to standard output. For
 * comparing machines: backend, CPU features and threads are those of CHIMERA_BACKEND, CHIMERA_CPU_MASK,
 * CHIMERA_THREADS.
 */
#include <chimera/chimera.h>

#include <stdio.h>
#include <stdlib.h>

enum { TEXT = 96 };

static int refused(const char *what) {
    fprintf(stderr, "logits: %s: %s\n", what, chm_error());
    return 1;
}

int main(int argc, char **argv) {
    const chm_runtime_options options = {.size = sizeof options, .verbosity = -1};
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1};
    chm_runtime *r = NULL;
    chm_model *m = NULL;
    chm_stream *s = NULL;
    if (argc != 2) {
        fprintf(stderr, "usage: logits MODEL\n");
        return 2;
    }
    if (chm_runtime_create(&options, &r)) return refused("no runtime");
    if (chm_open(r, argv[1], &overlay, true, &m) || chm_stream_open(r, m, &s)) return refused(argv[1]);
    const size_t vocab = (size_t)chm_vocab(m);
    float *logits = malloc(TEXT * vocab * sizeof *logits);
    if (logits == NULL) return 1;
    int32_t ids[TEXT];
    for (int i = 0; i < TEXT; i++) ids[i] = i * 37 % 251;
    /* a prompt, then a row at a time, then a few */
    static const int until[] = {70, 71, 72, 75, 80, TEXT};
    int at = 0;
    for (size_t p = 0; p < sizeof until / sizeof *until; at = until[p++])
        if (chm_stream_feed_all(s, ids + at, until[p] - at, logits + (size_t)at * vocab)) return refused("feeding");
    const bool written = fwrite(logits, vocab * sizeof *logits, TEXT, stdout) == TEXT && fflush(stdout) == 0;
    free(logits);
    chm_stream_close(s);
    chm_close(m);
    chm_runtime_destroy(r);
    return !written;
}
