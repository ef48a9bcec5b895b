/* open.c: models to .b158 files and back: the card, and what belongs to it, on top of b158.c. */
#include "graph/encoding.h"
#include "model/b158.h"
#include "model/tokenizer.h"

#include <inttypes.h>
#include <string.h>

static bool is_training_note(const char *key) { return !strncmp(key, "trained.", 8); }

int chm_b158_save(const chm_model *m, const char *path, const chm_b158_note *note, int notes) {
    int status = CHM_OK, count = 0;
    const int kept = m->file ? m->file->metas : 0;
    chm_b158_note *all = NULL;
    char *card = chm_card_json(m->card);
    if (!card) return CHM_E_MEMORY;
    all = chm_alloc((size_t)(4 + notes + kept) * sizeof *all);
    if (!all) {
        status = CHM_E_MEMORY;
        goto out;
    }
    if (m->config->tokenizer) all[count++] = (chm_b158_note){"tokenizer", m->config->tokenizer};
    const chm_st_tensor *inside = m->file ? chm_safetensors_find(m->file, CHM_B158_TOKENIZER) : NULL;
    const void *tokenizer = inside ? inside->data : NULL;
    uint64_t tokenizer_bytes = inside ? inside->bytes : 0;
    const char *hash = m->file ? chm_safetensors_meta(m->file, "tokenizer_hash") : NULL;
    char text[24];
    if (m->made_with) {
        snprintf(text, sizeof text, "%016" PRIx64, m->made_with->hash);
        hash = text;
        tokenizer = m->made_with->file;
        tokenizer_bytes = m->made_with->file_bytes;
    }
    if (hash) all[count++] = (chm_b158_note){"tokenizer_hash", hash};
    for (int i = 0; i < notes; i++) {
        if (!is_training_note(note[i].key)) {
            status = chm_fail(CHM_E_INTERNAL, "%s: note '%s' must begin with 'trained.'", path, note[i].key);
            goto out;
        }
        all[count++] = note[i];
    }
    const int given = count;
    for (int i = 0; i < kept; i++) {
        bool again = false;
        for (int j = 0; j < given; j++) again = again || !strcmp(all[j].key, m->file->meta_key[i]);
        if (is_training_note(m->file->meta_key[i]) && !again)
            all[count++] = (chm_b158_note){m->file->meta_key[i], m->file->meta_value[i]};
    }
    bool experts = false;
    for (int i = 0; i < m->params; i++) experts = experts || m->param[i]->expert;
    const struct chm_experts_names names = {m->config->weights_file, m->config->experts_file, NULL};
    status = experts ? chm_experts_save(&names, path, m->param, m->params, card, all, count, tokenizer, tokenizer_bytes)
                     : chm_b158_write_with(path, m->param, m->params, card, all, count, tokenizer, tokenizer_bytes);
out:
    chm_free(all);
    chm_free(card);
    return status;
}

int chm_model_save(const chm_model *m, const char *path) { return chm_b158_save(m, path, NULL, 0); }

/* Every parameter to its place: in one file, or the experts in the one beside it. */
static int bind(const char *path, const chm_safetensors *file, const chm_experts *experts, chm_model *m, bool verify) {
    const int64_t group = m->config->weight_group;
    if (!experts->file) return chm_b158_bind(path, file, m->param, m->params, group, verify);
    chm_param **list = chm_alloc(2 * (size_t)m->params * sizeof *list);
    if (!list) return CHM_E_MEMORY;
    chm_param **second = list + m->params;
    int ours = 0, theirs = 0;
    for (int i = 0; i < m->params; i++)
        if (m->param[i]->expert)
            second[theirs++] = m->param[i];
        else
            list[ours++] = m->param[i];
    int status = chm_b158_bind(path, file, list, ours, group, verify);
    if (!status) status = chm_b158_bind(experts->path, experts->file, second, theirs, group, verify);
    chm_free(list);
    return status;
}

int chm_model_open(const char *path, const chm_registry *registry, const struct chm_card_options *options, bool verify,
                   chm_model **out) {
    chm_map map = {0};
    chm_safetensors *file = NULL;
    chm_card *card = NULL;
    chm_model *m = NULL;
    chm_experts experts = {0};
    char *name = NULL;
    struct chm_card_options with = {0};
    *out = NULL;
    if (options) with = *options;
    with.registry = registry;
    with.trained = true;

    int status = chm_map_open(&map, path);
    if (status) return status;
    status = chm_safetensors_parse(path, map.data, map.size, &file);
    if (status) goto out;
    status = chm_b158_check(path, file);
    if (status) goto out;
    if (chm_experts_is_part(file)) {
        status =
            chm_fail(CHM_E_DATA,
                     "%s: holds the experts of a model, not the model; name the file that was written beside it", path);
        goto out;
    }
    status = chm_experts_open(path, file, &experts);
    if (status) goto out;
    name = chm_format("%s (the card inside)", path);
    if (!name) {
        status = CHM_E_MEMORY;
        goto out;
    }
    const char *text = chm_safetensors_meta(file, "card");
    status = chm_card_parse(name, text, strlen(text), &with, &card);
    if (status) goto out;
    status = chm_model_create(card, registry, &m); /* the card is the model's now, also when this fails */
    if (status) goto out;
    const char *tokenizer = chm_safetensors_meta(file, "tokenizer"), *wanted = m->config->tokenizer;
    if (tokenizer && wanted && strcmp(tokenizer, wanted)) {
        status = chm_fail(CHM_E_DATA,
                          "%s: the model was made for the tokenizer '%s', but the card and its overrides ask for '%s'",
                          path, chm_quote(tokenizer).text, wanted);
        goto out;
    }
    status = bind(path, file, &experts, m, verify);
    if (status) goto out;
    m->path = chm_strdup(path);
    if (!m->path) {
        status = CHM_E_MEMORY;
        goto out;
    }
    m->map = map;
    m->file = file;
    m->experts_map = experts.map;
    m->experts = experts.file;
    m->experts_path = experts.path;
    experts = (chm_experts){0};
    *out = m;
out:
    chm_free(name);
    chm_experts_close(&experts);
    if (status) {
        chm_model_destroy(m);
        chm_safetensors_destroy(file);
        chm_map_close(&map);
    }
    return status;
}

/* ---- repacking ---- */

/* Is there a kernel for the encoding that is as good as that of T2? */
static bool well_served(const chm_kernel_choice *kernels, int32_t encoding) {
    char slot[32];
    snprintf(slot, sizeof slot, "%s_matmul", chm_encoding_name(encoding));
    int32_t t2 = 0, own = 0;
    for (size_t i = 0; i < kernels->slots; i++) {
        if (!strcmp(kernels->slot[i], "t2_matmul")) t2 = kernels->rank[i];
        if (!strcmp(kernels->slot[i], slot)) own = kernels->rank[i];
    }
    return own >= t2;
}

struct repacking {
    const struct chm_ternary *from;
    uint8_t *to;
};

static void repack_tiles(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct repacking *r = arg;
    struct chm_misfit none = {0};
    chm_ternary_repack(r->from, CHM_ENCODING_T2, begin, end, r->to, &none);
}

int chm_model_repack(chm_model *m, const chm_kernel_choice *kernels, chm_pool *pool, size_t *bytes) {
    size_t used = 0;
    for (int pass = 0; pass < 2; pass++) {
        used = 0;
        for (int i = 0; i < m->params; i++) {
            chm_param *p = m->param[i];
            if (p->format != CHM_FORMAT_TERNARY || well_served(kernels, p->ternary.encoding)) continue;
            struct repacking r = {&p->ternary, chm_carve(m->storage, &used, chm_param_code_bytes(p, CHM_ENCODING_T2))};
            if (!r.to) continue;
            chm_parallel(pool, chm_ternary_tiles(p->out), 16, repack_tiles, &r);
            p->ternary.codes = r.to;
            p->ternary.encoding = CHM_ENCODING_T2;
        }
        if (pass || used == 0) break;
        m->storage = chm_alloc_aligned(used);
        if (!m->storage) return CHM_E_MEMORY;
    }
    if (bytes) *bytes = used;
    return CHM_OK;
}
