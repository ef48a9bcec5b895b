/*
 * runtime.h: a runtime over plugins that are linked in, files that are only memory, and a folder that is gone again
 * when the fuzzer is: for fuzzers that open models.
 */
#ifndef CHM_FUZZ_RUNTIME_H
#define CHM_FUZZ_RUNTIME_H

#include "fuzz.h"
#include "model/runtime.h"

#include <ftw.h>
#include <sys/mman.h>

extern const struct chm_plugin CHM_PLUGIN_SYMBOL(scalar), CHM_PLUGIN_SYMBOL(attn), CHM_PLUGIN_SYMBOL(gd),
    CHM_PLUGIN_SYMBOL(mlp), CHM_PLUGIN_SYMBOL(bytes);

static inline chm_runtime *fuzz_runtime(void) {
    static chm_runtime r;
    static struct chm_plugin_file files[] = {{.plugin = &CHM_PLUGIN_SYMBOL(scalar)},
                                             {.plugin = &CHM_PLUGIN_SYMBOL(attn)},
                                             {.plugin = &CHM_PLUGIN_SYMBOL(gd)},
                                             {.plugin = &CHM_PLUGIN_SYMBOL(mlp)},
                                             {.plugin = &CHM_PLUGIN_SYMBOL(bytes)}};
    if (r.ready) return &r;
    r.registry.files = files;
    r.registry.file_count = CHM_ARRAY_COUNT(files);
    r.threads = 1;
    CHECK(chm_kernels_choose(&r.registry, "scalar", true, &r.kernels) == CHM_OK);
    CHECK(chm_pool_create(1, &r.pool) == CHM_OK);
    chm_log_set_level(CHM_LOG_ERROR);
    r.ready = true;
    return &r;
}

/* The path of a file with these bytes, until the next call. */
static inline const char *fuzz_file(const void *data, size_t bytes) {
    static int fd = -1;
    static char path[40];
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    CHECK(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, bytes, 0) == (ssize_t)bytes);
    return path;
}

static inline int fuzz_remove_one(const char *path, const struct stat *st, int type, struct FTW *where) {
    (void)st, (void)type, (void)where;
    return remove(path);
}

/* A new folder for files that must have names; in memory where there is such a place. */
static inline void fuzz_folder(char path[64]) {
    snprintf(path, 64, "%s/chimera-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(path) != NULL);
}
static inline void fuzz_folder_gone(const char *path) { nftw(path, fuzz_remove_one, 8, FTW_DEPTH | FTW_PHYS); }

static inline char *fuzz_write_in(const char *folder, const char *name, const char *text, size_t bytes) {
    char *path = chm_format("%s/%s", folder, name);
    FILE *out = path ? fopen(path, "wb") : NULL;
    CHECK(out && fwrite(text, 1, bytes, out) == bytes && fclose(out) == 0);
    return path;
}

/* The least cards that exercise every form of a weight: ternary and int8 with gd; floats, an untied head and a window
 * with attn. */
static inline const char *fuzz_card(size_t i) {
    static const char *const cards[] = {
        "{\"token_ids\": [256, 257], \"hidden_size\": 16, \"intermediate_size\": 20, \"num_hidden_layers\": 1,\n"
        "\"num_heads\": 2, \"head_dim\": 8, \"vocab_size\": 258,\n"
        "\"quantization\": {\"method\": \"bitnet\", \"group_size\": 128, \"embedding\": \"int8\"},\n"
        "\"backbone\": {\"layer_pattern\": \"gd\"}, \"gated_deltanet\": {\"state_size\": 8, \"chunk_size\": 16},\n"
        "\"training\": {\"phases\": [{\"name\": \"pretrain\", \"tokens\": 48, \"seq_len\": 8, \"batch_tokens\": 16,\n"
        "\"carry_segments\": 2, \"lr\": 0.01, \"warmup_steps\": 1}]}, \"diagnostics\": {\"report_interval_tokens\": "
        "1}}",
        "{\"token_ids\": [256, 257], \"hidden_size\": 8, \"intermediate_size\": 8, \"num_hidden_layers\": 1,\n"
        "\"num_heads\": 1, \"head_dim\": 8, \"vocab_size\": 258, \"tie_word_embeddings\": false,\n"
        "\"quantization\": {\"method\": \"none\", \"embedding\": \"f32\"},\n"
        "\"backbone\": {\"layer_pattern\": \"attn\"}, \"attention\": {\"window\": 4}}",
    };
    return i < CHM_ARRAY_COUNT(cards) ? cards[i] : NULL;
}

#endif
