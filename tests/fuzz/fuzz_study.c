/* Study files of arbitrary bytes; what is accepted, written again, is the same study. */
#include "fuzz.h"
#include "train/ablate/ablate.h"

#include <unistd.h>

static void write_bytes(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f)) abort();
}

/* inlined, gcc 12 takes the text for a local */
__attribute__((noinline)) static char *slurp(const char *path) {
    char *text = NULL;
    size_t bytes;
    if (chm_read_file(path, 64 << 20, &text, &bytes) != CHM_OK || !text) abort();
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static char in[64], out[80], again[80];
    if (!in[0]) {
        /* in memory where that can be: what is written is synced */
        snprintf(in, sizeof in, "%s/fuzz-study-%ld.ini", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp",
                 (long)getpid());
        snprintf(out, sizeof out, "%s.out", in);
        snprintf(again, sizeof again, "%s.again", in);
    }
    const chm_ablate_options options = {.size = sizeof options};
    chm_study study;
    write_bytes(in, data, bytes);
    const int status = chm_study_read(&study, &options, in);
    if (status && status != CHM_E_CONFIG) abort();
    if (!status) {
        chm_study other;
        if (study.seeds < 1 || study.variants < 1 || study.baseline_index < 0 ||
            (int64_t)study.variants * chm_study_points(&study) * study.seeds > CHM_CELLS)
            abort();
        for (int p = 0; p < chm_study_points(&study); p++)
            for (int a = 0; a < study.axes; a++)
                if (!chm_study_value(&study, p, a)) abort();
        if (chm_study_write(&study, out) || chm_study_read(&other, &options, out) || chm_study_write(&other, again))
            abort();
        /* but for the line that names the file */
        char *x = slurp(out), *y = slurp(again);
        if (strcmp(strchr(x, '\n'), strchr(y, '\n')) != 0) abort();
        chm_free(x);
        chm_free(y);
        chm_study_finish(&other);
        unlink(out);
        unlink(again);
    }
    chm_study_finish(&study);
    unlink(in);
    return 0;
}

#define HEAD "[study]\ncard = chimera-nano\ndata = /a.txt\nheld_out = 0.1\nseeds = 1, 2\ntokens = 5K\n"
static const char *const seeds[] = {
    HEAD "match = parameters\n[variant a]\nunchanged = true\n[variant b]\ngd.short_conv = 0 ; why\n",
    HEAD "title = x\nbaseline = b\njobs = 2\n[card]\nnum_heads = 2\n[variant a]\nx = 1\n[variant b]\nx = [1, 2]\n"
         "[grid]\ntraining.pretrain.lr = 1e-3, 0.003\nlooping.loop = [1, 2], [2, 3]\n",
    "[study]\ncard = a.json\nseeds = 7\nseconds = 1.5\ncheckpoint_seconds = 3\n[task]\ntask = mqar\nleast = 3\nmost = "
    "9\n"
    "rebound = 0.25\n[task more]\ntask = parity\n[score in]\n[score beyond]\nleast = 40\nseed = 3\n"
    "[variant a]\nunchanged = true\n[variant b]\nnum_heads = 1\n",
    "[study]\ncard = x\ndata = /a\nvalidation = /b\nvalidation = /c\nseeds = 1\nflops = 1e12\n[grid]\nnum_heads = 1, "
    "2\n",
    NULL,
};
static const char *const words[] = {"[study]\n",
                                    "[variant c]\n",
                                    "[grid]\n",
                                    "[task]\n",
                                    "[score s]\n",
                                    "[card]\n",
                                    "unchanged",
                                    "= true\n",
                                    ", ",
                                    "[",
                                    "]",
                                    ";",
                                    "\n",
                                    "task = mqar\n",
                                    "1e9",
                                    "18446744073709551615",
                                    "-1",
                                    "K",
                                    "seeds = 1, 2\n",
                                    "\xff",
                                    "\xc3\xa9",
                                    "a.b = 1\n",
                                    " ",
                                    NULL};
static const struct fuzz fuzz = {.seeds = seeds, .words = words, .runs = 5000};
