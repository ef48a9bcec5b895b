/*
 * layer_run.c: one plugin on tensors of a safetensors file, so that it can be held against any other implementation.
 *
 * In: `x` [rows, width], `params.NAME` for every parameter, `state.NAME` [heads, ...] (missing: a document's start),
 * and for gradients `dy` and `dstate.NAME` (missing: zero). Out: `y`, `final.NAME`, and with gradients `dx`,
 * `grad.NAME` and, where the file gave a state, `gradstate.NAME`.
 */
#include "model/b158.h"
#include "model/layer_alone.h"
#include <stdlib.h>
#include <errno.h>
#include <string.h>

/* Where a carried state stands in its document when the file does not say (metadata `position`): far from the start,
 * on a multiple of every chunk length. */
enum { CARRIED_POSITION = 1 << 20 };
static const int64_t last_position = INT64_C(1) << 62; /* of a first row: the others come behind it */

struct layer_run {
    const chm_layer_options *options;
    const char *path;
    chm_map map;
    chm_safetensors *file;
    chm_layer_alone layer;
    chm_context *context;
    chm_stream_state stream, gradient; /* gradient: of the state after the rows, then before them */
    const chm_st_tensor *x, *dy;
    float *x_values, *dy_values;
    int64_t rows, first;
    bool carried;    /* the file has state.* */
    chm_arena arena; /* arrays of the pass and of the result */
    chm_st_tensor *out;
    int outs, capacity;
};

/* ---- reading ---- */

static int refuse_shape(const struct layer_run *run, const chm_st_tensor *t, const char *wanted) {
    char shape[160];
    chm_st_shape_text(t, shape, sizeof shape);
    return chm_fail(CHM_E_DATA, "%s: '%s' is %s %s, expected %s", run->path, chm_quote(t->name).text,
                    chm_st_dtype_name(t->dtype), shape, wanted);
}

/* Floats of an F32 or F64 tensor (F64 rounded once). */
static int read_floats(const struct layer_run *run, const chm_st_tensor *t, int64_t count, float *to) {
    if (t->dtype == CHM_ST_F32)
        memcpy(to, t->data, (size_t)count * sizeof *to);
    else if (t->dtype == CHM_ST_F64)
        for (int64_t i = 0; i < count; i++) {
            double v;
            memcpy(&v, t->data + (size_t)i * sizeof v, sizeof v);
            to[i] = (float)v;
        }
    else
        return refuse_shape(run, t, "F32 or F64");
    return CHM_OK;
}

static bool same_shape(const chm_st_tensor *t, int rank, const int64_t *shape) {
    return t->rank == rank && !memcmp(t->shape, shape, (size_t)rank * sizeof *shape);
}

static void shape_words(int rank, const int64_t *shape, char *text, size_t n) {
    chm_st_tensor t = {.rank = rank};
    memcpy(t.shape, shape, (size_t)rank * sizeof *shape);
    chm_st_shape_text(&t, text, n);
}

static const chm_st_tensor *find(const struct layer_run *run, const char *group, const char *name) {
    char full[192];
    snprintf(full, sizeof full, "%s%s", group, name);
    return chm_safetensors_find(run->file, full);
}

static int read_param(struct layer_run *run, chm_param *p) {
    const char *name = chm_layer_alone_name(&run->layer, p->name);
    const chm_st_tensor *t = find(run, "params.", name);
    char shape[160];
    shape_words(p->rank, p->shape, shape, sizeof shape);
    if (!t)
        return chm_fail(CHM_E_DATA, "%s: 'params.%s' %s is missing, which layer %s declares", run->path, name, shape,
                        run->layer.layer->plugin->name);
    if (!same_shape(t, p->rank, p->shape)) return refuse_shape(run, t, shape);
    return read_floats(run, t, p->count, p->value);
}

static void item_shape(const chm_state_item *item, int64_t shape[5]) {
    shape[0] = item->heads;
    memcpy(shape + 1, item->shape, (size_t)item->rank * sizeof *shape);
}

static int read_state(struct layer_run *run, const char *group, const chm_state_item *item, uint8_t *blob) {
    const chm_st_tensor *t = find(run, group, chm_layer_alone_name(&run->layer, item->name));
    if (!t) return CHM_OK;
    int64_t shape[5];
    char words[160];
    item_shape(item, shape);
    shape_words(item->rank + 1, shape, words, sizeof words);
    if (!same_shape(t, item->rank + 1, shape)) return refuse_shape(run, t, words);
    const bool gradient = strcmp(group, "state.") != 0;
    if (gradient && item->type != CHM_F32)
        return chm_fail(CHM_E_DATA, "%s: '%s': only f32 states have gradients", run->path, chm_quote(t->name).text);
    if (item->type == CHM_U64 && t->dtype != CHM_ST_U64) return refuse_shape(run, t, "U64");
    if (item->type == CHM_F64 && t->dtype != CHM_ST_F64) return refuse_shape(run, t, "F64");
    for (int64_t h = 0; h < item->heads; h++) {
        uint8_t *to = blob + item->offset + (size_t)h * item->head_bytes;
        if (item->type != CHM_F32) {
            const size_t bytes = (size_t)item->elements * 8;
            memcpy(to, t->data + (size_t)h * bytes, bytes);
            continue;
        }
        chm_st_tensor part = *t;
        part.data += (size_t)(h * item->elements) * chm_st_dtype_bytes(t->dtype);
        const int status = read_floats(run, &part, item->elements, (float *)(void *)to);
        if (status) return status;
    }
    return CHM_OK;
}

static const char *const groups[] = {"params.", "state.", "dstate.", "final.", "grad.", "gradstate."};
static const char *const singles[] = {"x", "dy", "y", "dx"};

/* Everything in the file must be something: a misspelt name would silently mean "zero". Expected results may lie
 * beside the inputs. */
static int check_names(const struct layer_run *run) {
    const chm_layer_alone *l = &run->layer;
    for (int i = 0; i < run->file->count; i++) {
        const char *name = run->file->tensor[i].name;
        const chm_quoted quoted = chm_quote(name);
        bool known = chm_b158_is_padding(name);
        for (size_t k = 0; k < CHM_ARRAY_COUNT(singles); k++) known = known || !strcmp(name, singles[k]);
        if (known) continue;
        size_t g = 0;
        while (g < CHM_ARRAY_COUNT(groups) && strncmp(name, groups[g], strlen(groups[g])) != 0) g++;
        if (g == CHM_ARRAY_COUNT(groups))
            return chm_fail(CHM_E_DATA,
                            "%s: '%s' is no tensor of a layer file; expected x, params.NAME, state.NAME, dy, "
                            "dstate.NAME (and y, dx, final.NAME, grad.NAME, gradstate.NAME, which are ignored)",
                            run->path, quoted.text);
        const bool of_state = strstr(groups[g], "state.") || !strcmp(groups[g], "final.");
        const int count = of_state ? l->states : l->params;
        const char *inside = name + strlen(groups[g]);
        const char **names = chm_alloc(((size_t)count + 1) * sizeof *names);
        if (!names) return CHM_E_MEMORY;
        for (int k = 0; k < count; k++) {
            names[k] = chm_layer_alone_name(l, of_state ? l->state[k].name : l->param[k]->name);
            known = known || !strcmp(names[k], inside);
        }
        const char *nearest = known ? NULL : chm_nearest(inside, names);
        chm_free(names);
        if (known) continue;
        if (nearest)
            return chm_fail(CHM_E_DATA, "%s: layer %s has no '%s' for '%s' (did you mean '%s%s'?)", run->path,
                            l->layer->plugin->name, of_state ? "state" : "parameter", quoted.text, groups[g], nearest);
        return chm_fail(CHM_E_DATA, "%s: layer %s has no %s for '%s'", run->path, l->layer->plugin->name,
                        of_state ? "state" : "parameter", quoted.text);
    }
    return CHM_OK;
}

/* Names what of the metadata nothing reads. Notes may stand there, so it is no error; a misspelt key would otherwise
 * pass for one. */
static int name_unread(const struct layer_run *run, const struct chm_plugin *plugin) {
    enum { SHOWN = 20 };
    static const char *const others[] = {"hidden_size", "intermediate_size", "num_heads", "head_dim", "rms_norm_eps",
                                         "rms_norm_before_every_linear", "group_size", "position",
                                         /* what this command writes, and other writers of such files */
                                         "plugin", "mode", "quantization.method", "format"};
    const size_t count = CHM_ARRAY_COUNT(others) + plugin->option_count;
    chm_string unread = {0};
    int unknown = 0;
    const char **known = chm_alloc((count + 1) * sizeof *known);
    if (!known) return CHM_E_MEMORY;
    for (uint32_t i = 0; i < plugin->option_count; i++) known[i] = plugin->options[i].name;
    memcpy(known + plugin->option_count, others, sizeof others);
    for (int i = 0; i < run->file->metas; i++) {
        const char *key = run->file->meta_key[i];
        size_t k = 0;
        while (k < count && strcmp(known[k], key) != 0) k++;
        if (k < count || unknown++ >= SHOWN) continue;
        const char *nearest = chm_nearest(key, known);
        chm_string_add(&unread, "%s'%s'", unknown > 1 ? ", " : "", chm_quote(key).text);
        if (nearest) chm_string_add(&unread, " (did you mean '%s'?)", nearest);
    }
    if (unknown > SHOWN) chm_string_add(&unread, " and %d more", unknown - SHOWN);
    if (unknown > 0 && !unread.failed)
        chm_log(CHM_LOG_WARN, "%s: metadata that is not read: %s", run->path, unread.text);
    const int status = unread.failed ? CHM_E_MEMORY : CHM_OK;
    chm_string_finish(&unread);
    chm_free(known);
    return status;
}

static int read_matrix(struct layer_run *run, const char *name, const int64_t *shape, const chm_st_tensor **tensor,
                       float **values) {
    const chm_st_tensor *t = *tensor = chm_safetensors_find(run->file, name);
    if (!t) return CHM_OK;
    char words[64] = "[rows, width]";
    if (shape) shape_words(2, shape, words, sizeof words);
    if (t->rank != 2 || t->shape[0] < 1 || t->shape[1] < 1 || (shape && !same_shape(t, 2, shape)))
        return refuse_shape(run, t, words);
    const int64_t count = t->shape[0] * t->shape[1];
    *values = chm_arena_take(&run->arena, (size_t)count * sizeof(float));
    return *values ? read_floats(run, t, count, *values) : CHM_E_MEMORY;
}

static int read_file(struct layer_run *run, const chm_runtime *r) {
    int status = chm_map_open(&run->map, run->path);
    if (!status) status = chm_safetensors_parse(run->path, run->map.data, run->map.size, &run->file);
    if (!status) status = read_matrix(run, "x", NULL, &run->x, &run->x_values);
    if (status) return status;
    if (!run->x) return chm_fail(CHM_E_DATA, "%s: 'x' [rows, width] is missing, the layer's input", run->path);
    run->rows = run->x->shape[0];
    if (run->rows > INT32_MAX) return chm_fail(CHM_E_DATA, "%s: more than %d rows", run->path, INT32_MAX);
    status = chm_layer_alone_open(&run->layer, r, run->options, run->file, run->x->shape[1], 0, false);
    if (!status) status = check_names(run);
    if (!status) status = name_unread(run, run->layer.layer->plugin);
    if (!status) status = read_matrix(run, "dy", run->x->shape, &run->dy, &run->dy_values);
    const chm_layer_alone *l = &run->layer;
    for (int i = 0; i < l->params && !status; i++) status = read_param(run, l->param[i]);
    if (!status) status = chm_stream_init(&run->stream, &l->model->layout);
    if (!status) status = chm_stream_init(&run->gradient, &l->model->layout);
    bool dstate = false;
    for (int i = 0; i < l->states && !status; i++) {
        const char *name = chm_layer_alone_name(l, l->state[i].name);
        run->carried = run->carried || find(run, "state.", name);
        dstate = dstate || find(run, "dstate.", name);
        status = read_state(run, "state.", &l->state[i], run->stream.blob);
        if (!status) status = read_state(run, "dstate.", &l->state[i], run->gradient.blob);
    }
    if (status) return status;
    if (run->options->grad && !run->dy && !dstate)
        return chm_fail(CHM_E_DATA, "%s: gradients need 'dy' [rows, width] (or a 'dstate.NAME')", run->path);
    const char *position = chm_safetensors_meta(run->file, "position");
    run->first = run->carried ? CARRIED_POSITION : 0;
    if (position) {
        char *end;
        errno = 0;
        run->first = strtoll(position, &end, 10);
        if (end == position || *end || errno != 0 || run->first < 0 || run->first > last_position)
            return chm_fail(CHM_E_DATA, "%s: metadata position '%s' is not the number of a row", run->path,
                            chm_quote(position).text);
        if (run->first > (INT64_C(1) << 52) - run->rows)
            return chm_fail(CHM_E_DATA, "%s: metadata position %lld: the last of %lld rows must be at most 2^52",
                            run->path, (long long)run->first, (long long)run->rows);
        if (run->carried && run->first == 0)
            return chm_fail(CHM_E_DATA, "%s: there is a state, but position 0 is a document's start", run->path);
    }
    return CHM_OK;
}

/* ---- writing ---- */

static int add_out(struct layer_run *run, const char *group, const char *name, enum chm_st_dtype dtype, int rank,
                   const int64_t *shape, const void *data, uint64_t bytes) {
    char *full = chm_arena_take(&run->arena, strlen(group) + strlen(name) + 1);
    if (!full) return CHM_E_MEMORY;
    strcpy(full, group);
    strcat(full, name);
    chm_st_tensor *t = &run->out[run->outs++];
    *t = (chm_st_tensor){.name = full, .dtype = dtype, .rank = rank, .data = data, .bytes = bytes};
    memcpy(t->shape, shape, (size_t)rank * sizeof *shape);
    return CHM_OK;
}

static int add_state(struct layer_run *run, const char *group, const chm_state_item *item, const uint8_t *blob) {
    int64_t shape[5];
    const size_t bytes = (size_t)item->elements * chm_dtype_bytes(item->type);
    uint8_t *data = chm_arena_take(&run->arena, (size_t)item->heads * bytes + 1);
    if (!data) return CHM_E_MEMORY;
    for (int64_t h = 0; h < item->heads; h++)
        memcpy(data + (size_t)h * bytes, blob + item->offset + (size_t)h * item->head_bytes, bytes);
    item_shape(item, shape);
    return add_out(run, group, chm_layer_alone_name(&run->layer, item->name),
                   item->type == CHM_F32   ? CHM_ST_F32
                   : item->type == CHM_F64 ? CHM_ST_F64
                                           : CHM_ST_U64,
                   item->rank + 1, shape, data, (uint64_t)item->heads * bytes);
}

static int write_file(struct layer_run *run, const chm_tensor *x, const chm_tensor *y) {
    const chm_layer_alone *l = &run->layer;
    const int64_t shape[] = {run->rows, y->width};
    const uint64_t bytes = (uint64_t)(run->rows * y->width) * sizeof(float);
    const bool grad = run->options->grad;
    run->capacity = 2 + 2 * l->states + l->params; /* at most */
    run->out = chm_arena_zero(&run->arena, (size_t)run->capacity * sizeof *run->out);
    if (!run->out) return CHM_E_MEMORY;
    int status = add_out(run, "", "y", CHM_ST_F32, 2, shape, y->data, bytes);
    for (int i = 0; i < l->states && !status; i++) status = add_state(run, "final.", &l->state[i], run->stream.blob);
    if (grad && !status) {
        const void *dx = x->grad ? (const void *)x->grad : chm_arena_zero(&run->arena, bytes);
        status = dx ? add_out(run, "", "dx", CHM_ST_F32, 2, shape, dx, bytes) : CHM_E_MEMORY;
    }
    for (int i = 0; i < l->params && grad && !status; i++) {
        const chm_param *p = l->param[i];
        if (!p->grad) continue;
        status = add_out(run, "grad.", chm_layer_alone_name(l, p->name), CHM_ST_F32, p->rank, p->shape, p->grad,
                         (uint64_t)p->count * sizeof(float));
    }
    for (int i = 0; i < l->states && grad && run->carried && !status; i++)
        if (l->state[i].type == CHM_F32) status = add_state(run, "gradstate.", &l->state[i], run->gradient.blob);
    if (status) return status;
    const char *const keys[] = {"plugin", "mode", "quantization.method"};
    const char *const values[] = {l->layer->plugin->name, run->options->step ? "step" : "chunk",
                                  l->model->config->quant == CHM_QUANT_NONE ? "none" : "bitnet"};
    return chm_safetensors_write(run->options->out, run->out, run->outs, keys, values, CHM_ARRAY_COUNT(keys), false);
}

/* ---- running ---- */

static int run_pass(struct layer_run *run, chm_tensor **x, chm_tensor **y) {
    const chm_layer_options *o = run->options;
    int32_t *parent = chm_arena_take(&run->arena, (size_t)run->rows * sizeof *parent);
    int64_t *position = chm_arena_take(&run->arena, (size_t)run->rows * sizeof *position);
    if (!parent || !position) return CHM_E_MEMORY;
    for (int64_t r = 0; r < run->rows; r++) {
        parent[r] = r ? (int32_t)(r - 1) : ~0;
        position[r] = run->first + r;
    }
    const chm_rows rows = {run->rows, parent, position};
    /* `step` is the inference path; with gradients the same rows run with a tape, and give the same bytes */
    const uint32_t flags = !o->step  ? CHM_PASS_TRAIN | CHM_PASS_CARRY
                           : o->grad ? CHM_PASS_TRAIN | CHM_PASS_CARRY | CHM_PASS_STEP
                                     : CHM_PASS_COMMIT;
    chm_stream_state *streams[] = {&run->stream};
    uint8_t *gradients[] = {run->gradient.blob};
    int status = chm_context_begin(run->context, &rows, streams, 1, flags);
    if (status) return status;
    if (o->grad) chm_context_state_gradients(run->context, gradients);
    *x = chm_input(run->context, run->rows, run->x->shape[1], run->x_values, o->grad ? CHM_TENSOR_GRAD : 0);
    *y = chm_layer_alone_forward(&run->layer, run->context, *x);
    if (!*y) return chm_context_status(run->context);
    if (!o->grad) return CHM_OK;
    chm_graph *g = chm_context_graph(run->context);
    float *dy = g->ops->grad(g, *y);
    if (dy && run->dy_values) memcpy(dy, run->dy_values, (size_t)(run->rows * (*y)->width) * sizeof *dy);
    return chm_backward(run->context);
}

int chm_layer_run(chm_runtime *r, const chm_layer_options *options) {
    struct layer_run run = {.options = options, .path = options->in};
    chm_tensor *x = NULL, *y = NULL;
    chm_arena_init(&run.arena);
    int status = CHM_OK;
    if (options->size != sizeof *options)
        status = chm_fail(CHM_E_CONFIG, "chm_layer_options has size %u, this library expects %zu", options->size,
                          sizeof *options);
    else if (!options->in || !options->out)
        status = chm_fail(CHM_E_CONFIG, "a layer reads one safetensors file and writes another: both names are needed");
    else if (chm_same_file(options->in, options->out))
        status = chm_fail(CHM_E_CONFIG, "%s: the result would replace the file that is read; give it another name",
                          options->out);
    if (!status) status = read_file(&run, r);
    if (status) goto out;
    const chm_model *m = run.layer.model;
    status = chm_model_quantise(run.layer.model, &r->kernels.kernels, r->pool);
    if (!status)
        status = chm_context_create(&r->kernels.kernels, r->pool, &m->layout, (float)m->config->norm_eps, &run.context);
    if (!status) status = run_pass(&run, &x, &y);
    if (!status) status = write_file(&run, x, y);
out:
    chm_context_destroy(run.context);
    chm_stream_finish(&run.stream);
    chm_stream_finish(&run.gradient);
    chm_layer_alone_close(&run.layer);
    chm_safetensors_destroy(run.file);
    chm_map_close(&run.map);
    chm_arena_finish(&run.arena);
    return status;
}
