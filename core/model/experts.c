/* experts.c: the second file of a model, with the matrices of its mixtures of experts. */
#include "model/b158.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char part_key[] = "part", part_name[] = "experts", name_key[] = "experts", hash_key[] = "experts_hash";

bool chm_experts_is_part(const chm_safetensors *file) {
    const char *part = chm_safetensors_meta(file, part_key);
    return part && !strcmp(part, part_name);
}

/* The path of `name` in the directory of `path`; NULL: out of memory. */
static char *beside(const char *path, const char *name) {
    const char *slash = strrchr(path, '/');
    return slash ? chm_format("%.*s/%s", (int)(slash - path), path, name) : chm_strdup(name);
}

static bool is_there(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

/* ---- reading ---- */

/* Where the file of a name lies: a model may be called by a link, with its experts beside the link or the model. */
static char *find(const char *path, const char *name) {
    char *here = beside(path, name), *real = here && !is_there(here) ? realpath(path, NULL) : NULL;
    char *there = real ? beside(real, name) : NULL;
    free(real);
    if (there && is_there(there)) {
        chm_free(here);
        return there;
    }
    chm_free(there);
    return here;
}

int chm_experts_open(const char *path, const chm_safetensors *file, chm_experts *out) {
    static const char again[] = "copy both files anew, or write the model again (`chimera train --resume`, `chimera "
                                "init`)";
    const char *name = chm_safetensors_meta(file, name_key), *expected = chm_safetensors_meta(file, hash_key);
    char hash[17], why[1024];
    memset(out, 0, sizeof *out);
    if (!name && !expected) return CHM_OK;
    if (!name || !expected || !*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
        return chm_fail(CHM_E_DATA, "%s: __metadata__ names its experts '%s' of hash '%s': the file is damaged", path,
                        name ? chm_quote(name).text : "", expected ? chm_quote(expected).text : "");
    if (!(out->path = find(path, name))) return CHM_E_MEMORY;
    int status;
    if (!is_there(out->path)) {
        status = chm_fail(CHM_E_DATA,
                          "%s: its experts are in a second file, %s, which is not there; put the two beside "
                          "each other under the names they were written with",
                          path, out->path);
        goto out;
    }
    status = chm_map_open(&out->map, out->path);
    if (!status) status = chm_safetensors_parse(out->path, out->map.data, out->map.size, &out->file);
    if (!status) status = chm_b158_check(out->path, out->file);
    if (status) {
        snprintf(why, sizeof why, "%s", chm_error());
        if (status == CHM_E_DATA) chm_fail(status, "%s: its experts cannot be read: %s; %s", path, why, again);
        goto out;
    }
    snprintf(hash, sizeof hash, "%016" PRIx64,
             chm_b158_fingerprint(out->file->meta_key, out->file->meta_value, out->file->metas));
    if (!chm_experts_is_part(out->file) || strcmp(hash, expected) != 0)
        status = chm_fail(CHM_E_DATA,
                          "%s: %s is not the file that was written with it (%s); put that one beside it, or write the "
                          "model again (`chimera train --resume`, `chimera init`)",
                          path, out->path,
                          chm_experts_is_part(out->file) ? "the experts are of another model or another time"
                                                         : "it holds no experts");
out:
    if (status) chm_experts_close(out);
    return status;
}

void chm_experts_close(chm_experts *e) {
    chm_safetensors_destroy(e->file);
    chm_map_close(&e->map);
    chm_free(e->path);
    memset(e, 0, sizeof *e);
}

/* ---- writing ---- */

/* files.moe is the name beside a model that is called as the card says; beside any other it would be taken by the next
 * model of the same card. */
static char *name_of(const struct chm_experts_names *names, const char *path) {
    static const char ending[] = ".b158";
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    if (names->experts && (!names->weights || !strcmp(base, names->weights))) return chm_strdup(names->experts);
    size_t n = strlen(base);
    const size_t tail = sizeof ending - 1;
    if (n > tail && !strcmp(base + n - tail, ending)) n -= tail;
    return chm_format("%.*s_experts.b158", (int)n, base);
}

/* May the experts of `path` be written to `experts`? Not in place of anything but experts. */
static int check_place(const char *path, const char *experts) {
    struct stat st;
    chm_map map = {0};
    chm_safetensors *file = NULL;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return chm_fail(CHM_E_DATA, "%s: is no regular file, and a model with experts is two of them, side by side",
                        path);
    if (stat(experts, &st) != 0) return CHM_OK;
    int status = chm_map_open(&map, experts);
    if (!status) status = chm_safetensors_parse(experts, map.data, map.size, &file);
    const bool ours = !status && chm_experts_is_part(file);
    chm_safetensors_destroy(file);
    chm_map_close(&map);
    if (ours || status == CHM_E_MEMORY) return ours ? CHM_OK : status;
    return chm_fail(CHM_E_DATA,
                    "%s: is where the experts of %s go, and holds something else; move it away, or give the model "
                    "another name",
                    experts, path);
}

int chm_experts_save(const struct chm_experts_names *names, const char *path, chm_param *const *param, int params,
                     const char *card_json, chm_b158_note *note, int notes, const void *tokenizer,
                     uint64_t tokenizer_bytes) {
    const chm_b158_note part = {part_key, part_name};
    chm_writer first = {0}, second = {0};
    uint64_t fingerprint;
    char hash[17], *real = realpath(path, NULL);
    const char *place = real ? real : path; /* a link's file is replaced, not the link */
    char *name = name_of(names, place), *experts = name ? beside(place, name) : NULL;
    chm_param **list = chm_alloc(2 * (size_t)params * sizeof *list);
    int ours = 0, theirs = 0, status = CHM_E_MEMORY;
    if (!experts || !list) goto out;
    chm_param **of_experts = list + params;
    for (int i = 0; i < params; i++)
        if (param[i]->expert)
            of_experts[theirs++] = param[i];
        else
            list[ours++] = param[i];
    if (!strcmp(place, experts))
        status = chm_fail(CHM_E_CONFIG,
                          "%s: is the name that files.moe gives to the experts; give the model another one", path);
    else if (names->keep && chm_same_file(names->keep, experts))
        status = chm_fail(CHM_E_CONFIG,
                          "%s: its experts would replace %s, which are those of the model that is read; write it to "
                          "another directory",
                          path, experts);
    else
        status = check_place(path, experts);
    if (!status)
        status = chm_b158_begin(&second, experts, of_experts, theirs, card_json, &part, 1, NULL, 0, &fingerprint);
    if (status) goto out;
    snprintf(hash, sizeof hash, "%016" PRIx64, fingerprint);
    note[notes++] = (chm_b158_note){name_key, name};
    note[notes++] = (chm_b158_note){hash_key, hash};
    status = chm_b158_begin(&first, path, list, ours, card_json, note, notes, tokenizer, tokenizer_bytes, NULL);
    if (!status) status = chm_writer_sync(&second);
    if (!status) status = chm_writer_sync(&first);
    if (!status) status = chm_writer_commit(&second);
    if (!status) status = chm_writer_commit(&first);
out:
    chm_writer_abandon(&second);
    chm_writer_abandon(&first);
    chm_free(list);
    chm_free(experts);
    chm_free(name);
    free(real);
    return status;
}
