/* Tensors for one layer (`chimera layer`) on arbitrary bytes; the header's length, put right, says what is run. */
#include "runtime.h"
#include "mend.h"
#include "model/layer_alone.h"

#include <chimera/chimera.h>

static const char *const sets[] = {"num_heads=2", "head_dim=4"};
static const char *const plugins[] = {"gd", "attn", "mlp"};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set_count = 2, .set = sets};
    chm_string mended = {0};
    if (mend_header(data, bytes, &mended)) {
        const chm_layer_options options = {.size = sizeof options,
                                           .plugin = plugins[data[0] % 4 % CHM_ARRAY_COUNT(plugins)],
                                           .overlay = &overlay,
                                           .in = fuzz_file(mended.text, mended.length),
                                           .out = "/dev/null",
                                           .grad = data[0] / 4 % 2,
                                           .step = data[0] / 8 % 2};
        const int status = chm_layer_run(fuzz_runtime(), &options);
        CHECK(status == CHM_OK || status == CHM_E_DATA || status == CHM_E_CONFIG || status == CHM_E_PLUGIN);
        CHECK(status == CHM_OK || chm_error()[0]);
    }
    chm_string_finish(&mended);
    return 0;
}

/* A file with all that a layer can be given, of five rows; for every layer a step, a chunk, and a chunk backwards. */
static bool make(size_t number, chm_string *seed) {
    enum { ROWS = 5, MOST = 64 };
    static const char how[] = {8, 0, 4};
    const size_t i = number % CHM_ARRAY_COUNT(plugins), mode = number / CHM_ARRAY_COUNT(plugins);
    static chm_string kept[CHM_ARRAY_COUNT(plugins)];
    static float values[1 << 14];
    if (mode >= sizeof how) return false;
    if (!kept[i].length) {
        const chm_overlay overlay = {.size = sizeof overlay, .no_environment = 1, .set_count = 2, .set = sets};
        const chm_layer_options options = {.size = sizeof options, .plugin = plugins[i], .overlay = &overlay};
        chm_layer_alone l;
        chm_st_tensor tensor[MOST];
        char *name[MOST] = {chm_strdup("x"), chm_strdup("dy")}, folder[64], *written = NULL;
        size_t bytes = 0;
        int n = 2;
        for (size_t k = 0; k < CHM_ARRAY_COUNT(values); k++) values[k] = (float)(k % 13) / 16 - 0.3f;
        CHECK(chm_layer_alone_open(&l, fuzz_runtime(), &options, NULL, 0, 0, false) == CHM_OK);
        memset(tensor, 0, sizeof tensor);
        for (int k = 0; k < 2; k++) {
            tensor[k].rank = 2;
            tensor[k].shape[0] = ROWS;
            tensor[k].shape[1] = l.model->config->width;
        }
        for (int k = 0; k < l.params; k++, n++) {
            name[n] = chm_format("params.%s", chm_layer_alone_name(&l, l.param[k]->name));
            tensor[n].rank = l.param[k]->rank;
            memcpy(tensor[n].shape, l.param[k]->shape, sizeof l.param[k]->shape);
        }
        for (int k = 0; k < 2 * l.states; k++, n++) {
            const chm_state_item *s = &l.state[k / 2];
            name[n] = chm_format("%s.%s", k % 2 ? "dstate" : "state", chm_layer_alone_name(&l, s->name));
            tensor[n].rank = s->rank + 1;
            tensor[n].shape[0] = s->heads;
            memcpy(tensor[n].shape + 1, s->shape, sizeof s->shape);
        }
        for (int k = 0; k < n; k++) {
            tensor[k].name = name[k];
            tensor[k].dtype = CHM_ST_F32;
            tensor[k].data = (const uint8_t *)values;
            tensor[k].bytes = sizeof *values;
            for (int d = 0; d < tensor[k].rank; d++) tensor[k].bytes *= (uint64_t)tensor[k].shape[d];
            CHECK(tensor[k].bytes <= sizeof values && k + 1 < MOST);
        }
        const char *const keys[] = {"position", "chunk_size", "window", "state_size"}, *const texts[] = {"64", "4", "4",
                                                                                                         "4"};
        fuzz_folder(folder);
        char *path = chm_format("%s/layer", folder);
        CHECK(chm_safetensors_write(path, tensor, n, keys, texts, i == 2 ? 1 : 3, true) == CHM_OK);
        CHECK(chm_read_file(path, 1 << 24, &written, &bytes) == CHM_OK);
        chm_string_add_bytes(&kept[i], written, bytes);
        fuzz_folder_gone(folder);
        chm_free(written);
        chm_free(path);
        for (int k = 0; k < n; k++) chm_free(name[k]);
        chm_layer_alone_close(&l);
    }
    chm_string_add_bytes(seed, kept[i].text, kept[i].length);
    if (!seed->failed) seed->text[0] = (char)(how[mode] + (char)i);
    return true;
}

static const char *const words[] = {
    "{",        "}",       "[",         "]",        ",",       ":",      "\"",
    "0",        "-1",      "4",         "5",        "8",       "1024",   "9223372036854775807",
    "\"F64\"",  "\"U64\"", "x",         "dy",       "params.", "state.", "dstate.",
    "position", "window",  "num_heads", "head_dim", "rope",    "true",   "\xff",
    NULL};
static const struct fuzz fuzz = {.make = make, .words = words, .runs = 2000};
