/*
 * From a card to a model: plugins instantiated and asked what they need, storage laid out, one forward for training,
 * prompt and decoding alike.
 */
#include "model/loop.h"
#include <math.h>
#include <string.h>

struct declaring {
    chm_declare declare; /* first: what the plugin holds */
    chm_model *m;
    int layer;
    const char *part; /* "layers.3.mixer" */
    int first_param, first_state;
    int status;
};

static struct declaring *declaring_of(chm_declare *d) { return (struct declaring *)(void *)d; }

static char *arena_format(chm_arena *a, const char *format, ...) CHM_PRINTF(2, 3);
static char *arena_format(chm_arena *a, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    char *copy = chm_arena_take(a, (size_t)n + 1);
    if (copy) memcpy(copy, text, CHM_MIN((size_t)n + 1, sizeof text));
    if (copy && (size_t)n >= sizeof text) copy[sizeof text - 1] = 0;
    return copy;
}

static bool plain_name(const char *name) {
    if (!name || !*name || strlen(name) > 64) return false;
    for (const char *p = name; *p; p++)
        if (!((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || *p == '_'))
            return false;
    return true;
}

/* Grows an array kept in the model's arena; the old one is left behind, which declaration can afford. */
static void *arena_grow(chm_arena *a, void *old, int count, size_t item) {
    if (count & (count - 1)) return old; /* grows at powers of two */
    void *p = chm_arena_zero(a, (size_t)(count ? 2 * count : 1) * item);
    if (p && count) memcpy(p, old, (size_t)count * item);
    return p;
}

static int declare_fail(chm_declare *d, const char *format, ...) {
    struct declaring *s = declaring_of(d);
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (s->status == CHM_OK) s->status = chm_fail(CHM_E_CONFIG, "%s: %s", s->part, text);
    return s->status;
}

/* chm_fail once, keeping the first sentence. */
#define REFUSE(s, status_, ...)                                                                                        \
    do {                                                                                                               \
        if ((s)->status == CHM_OK) (s)->status = chm_fail((status_), __VA_ARGS__);                                     \
    } while (0)

static enum chm_format format_of(const chm_model_config *config, enum chm_role role) {
    if (config->quant == CHM_QUANT_NONE) return CHM_FORMAT_F32;
    if (role == CHM_ROLE_TERNARY) return CHM_FORMAT_TERNARY;
    if (role != CHM_ROLE_EMBEDDING) return CHM_FORMAT_F32;
    switch (config->embedding) {
    case CHM_EMBED_TERNARY:
        return CHM_FORMAT_TERNARY;
    case CHM_EMBED_INT8:
        return CHM_FORMAT_INT8;
    case CHM_EMBED_F32:
        break;
    }
    return CHM_FORMAT_F32;
}

static chm_param *add_param(struct declaring *s, const char *full_name, enum chm_role role, chm_init init, int rank,
                            const int64_t *shape) {
    chm_model *m = s->m;
    int64_t count = 1;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 1 || shape[i] > INT64_MAX / 64 / count) {
            REFUSE(s, CHM_E_CONFIG, "%s: dimension %d is %lld", full_name, i, (long long)shape[i]);
            return NULL;
        }
        count *= shape[i];
    }
    chm_param *p = chm_arena_zero(&m->arena, sizeof *p);
    chm_param **all = arena_grow(&m->arena, m->param, m->params, sizeof *all);
    if (!p || !all) {
        s->status = CHM_E_MEMORY;
        return NULL;
    }
    m->param = all;
    m->param[m->params++] = p;
    p->name = (char *)(uintptr_t)full_name;
    p->role = role;
    p->format = format_of(m->config, role);
    p->init = init;
    p->rank = rank;
    memcpy(p->shape, shape, (size_t)rank * sizeof *shape);
    p->count = count;
    p->out = shape[0];
    p->in = count / shape[0];
    p->layer = s->layer;
    p->decay = (role == CHM_ROLE_TERNARY || role == CHM_ROLE_FULL) && rank > 1;
    p->stream = (uint32_t)chm_hash64(full_name, strlen(full_name));
    p->ternary.out = p->int8.out = p->out;
    p->ternary.in = p->int8.in = p->in;
    p->ternary.group = m->config->weight_group;
    p->stored = m->config->encoding;
    p->sparse = m->config->sparse;
    p->int8.blocks = (p->in + 63) / 64;
    return p;
}

/* A ternary linear's product of low rank, where the card has one. B begins at zero: the linear is what it would be
 * without. */
static chm_param *add_correction(struct declaring *s, chm_param *p) {
    const chm_model_config *config = s->m->config;
    if (config->hgf_rank == 0 || p->layer < 0 || !config->hgf[p->layer]) return p;
    static const char *const suffix[3] = {"a", "b", "gate"};
    const int64_t shape[3][2] = {{config->hgf_rank, p->in}, {p->out, config->hgf_rank}, {1, 0}};
    const chm_init init[3] = {{CHM_INIT_NORMAL, 0, 0, NULL},
                              {CHM_INIT_CONSTANT, 0, 0, NULL},
                              {CHM_INIT_CONSTANT, (float)config->hgf_gate, 0, NULL}};
    for (int k = 0; k < 3; k++) {
        const char *name = arena_format(&s->m->arena, "%s_hgf_%s", p->name, suffix[k]);
        if (!name) {
            s->status = CHM_E_MEMORY;
            return NULL;
        }
        chm_param *c = add_param(s, name, CHM_ROLE_FULL, init[k], k < 2 ? 2 : 1, shape[k]);
        if (!c) return NULL;
        if (k < 2 && config->quant == CHM_QUANT_BITNET) c->format = CHM_FORMAT_INT8;
        p->correction[k] = c;
    }
    return p;
}

static bool layer_role(enum chm_role role) {
    return role == CHM_ROLE_TERNARY || role == CHM_ROLE_FULL || role == CHM_ROLE_NORM || role == CHM_ROLE_OWN;
}

static chm_param *declare_param(chm_declare *d, const char *name, enum chm_role role, chm_init init, int rank,
                                const int64_t *shape) {
    struct declaring *s = declaring_of(d);
    if (s->status) return NULL;
    if (!plain_name(name) || rank < 1 || rank > 4 || !layer_role(role) || (role == CHM_ROLE_TERNARY && rank != 2)) {
        REFUSE(s, CHM_E_PLUGIN,
               "%s: parameter '%s': names are letters, digits and _, ranks 1..4, ternary parameters are matrices",
               s->part, name ? name : "");
        return NULL;
    }
    const char *full = arena_format(&s->m->arena, "%s.%s", s->part, name);
    if (!full) {
        s->status = CHM_E_MEMORY;
        return NULL;
    }
    for (int i = s->first_param; i < s->m->params; i++)
        if (!strcmp(s->m->param[i]->name, full)) {
            REFUSE(s, CHM_E_PLUGIN, "%s is declared twice", full);
            return NULL;
        }
    chm_param *p = add_param(s, full, role, init, rank, shape);
    return p && role == CHM_ROLE_TERNARY ? add_correction(s, p) : p;
}

static int declare_state(chm_declare *d, const char *name, enum chm_dtype type, int64_t heads, int rank,
                         const int64_t *shape) {
    struct declaring *s = declaring_of(d);
    chm_state_layout *layout = &s->m->layout;
    if (s->status) return -1;
    int64_t elements = 1;
    bool sane = plain_name(name) && rank >= 1 && rank <= 4 && heads >= 1 && heads <= 65536 && type >= CHM_F32 &&
                type <= CHM_U64;
    for (int i = 0; sane && i < rank; i++) {
        /* an empty history (a convolution of one tap) is a state of no elements */
        sane = shape[i] >= 0 && (shape[i] == 0 || elements <= (INT64_C(1) << 40) / shape[i]);
        if (sane) elements *= shape[i];
    }
    if (!sane) {
        REFUSE(s, CHM_E_PLUGIN, "%s: state '%s' has an impossible shape, type or number of heads", s->part,
               name ? name : "");
        return -1;
    }
    chm_state_item *all = arena_grow(&s->m->arena, layout->item, layout->count, sizeof *all);
    char *full = arena_format(&s->m->arena, "%s.%s", s->part, name);
    if (!all || !full) {
        s->status = CHM_E_MEMORY;
        return -1;
    }
    layout->item = all;
    for (int i = s->first_state; i < layout->count; i++)
        if (!strcmp(all[i].name, full)) {
            REFUSE(s, CHM_E_PLUGIN, "state %s is declared twice", full);
            return -1;
        }
    chm_state_item *item = &all[layout->count];
    *item = (chm_state_item){.name = full, .type = type, .heads = heads, .elements = elements, .rank = rank};
    memcpy(item->shape, shape, (size_t)rank * sizeof *shape);
    item->layer = s->layer;
    item->head_bytes = chm_align64((size_t)elements * chm_dtype_bytes(type));
    item->offset = layout->bytes;
    layout->bytes += item->head_bytes * (size_t)heads;
    return layout->count++ - s->first_state;
}

static int declare_ring(chm_declare *d, const char *name, int64_t heads, int64_t entries, int64_t width) {
    struct declaring *s = declaring_of(d);
    if (!s->status && (entries < 1 || width < 1))
        REFUSE(s, CHM_E_PLUGIN, "%s: ring '%s' has %lld entries of %lld numbers: at least one of each", s->part,
               name ? name : "", (long long)entries, (long long)width);
    const int64_t shape[2] = {entries, width};
    const int number = declare_state(d, name, CHM_F32, heads, 2, shape);
    if (number >= 0) s->m->layout.item[s->first_state + number].ring = true;
    return number;
}

/* The layer's states once more, for another pass of the loop. */
static void repeat_states(struct declaring *s, const chm_layer *layer, int pass) {
    chm_state_layout *layout = &s->m->layout;
    for (int i = 0; i < layer->states && !s->status; i++) {
        chm_state_item *all = arena_grow(&s->m->arena, layout->item, layout->count, sizeof *all);
        if (all) layout->item = all;
        char *name = all ? arena_format(&s->m->arena, "%s.pass%d", all[layer->first_state + i].name, pass) : NULL;
        if (!name) {
            s->status = CHM_E_MEMORY;
            return;
        }
        chm_state_item *item = &all[layout->count++];
        *item = all[layer->first_state + i];
        item->name = name;
        item->offset = layout->bytes;
        layout->bytes += item->head_bytes * (size_t)item->heads;
    }
}

static const struct chm_declare_ops declare_table = {.size = sizeof(struct chm_declare_ops),
                                                     .param = declare_param,
                                                     .state = declare_state,
                                                     .fail = declare_fail,
                                                     .ring = declare_ring};

static int declare_layer(chm_model *m, int index, const char *part, const char *plugin_name, chm_layer *layer) {
    const chm_model_config *config = m->config;
    struct declaring s = {.declare = {&declare_table}, .m = m, .layer = index};
    layer->plugin = chm_registry_find(m->registry, CHM_KIND_LAYER, plugin_name);
    if (!layer->plugin) return chm_fail_prefix(CHM_E_PLUGIN, "layer %d (%s)", index, part);
    layer->ops = layer->plugin->ops;
    const char *norm = arena_format(&m->arena, "layers.%d.%s_norm", index, part);
    s.part = arena_format(&m->arena, "layers.%d.%s", index, part);
    layer->self = chm_arena_zero(&m->arena, CHM_MAX(layer->plugin->instance_size, 1u));
    if (!norm || !s.part || !layer->self) return CHM_E_MEMORY;
    const int status = strcmp(part, "mixer") == 0
                           ? chm_card_mixer_options(m->card, index, layer->plugin, layer->self, &m->arena)
                           : chm_card_plugin_options(m->card, layer->plugin, layer->self, &m->arena);
    if (status) return status;
    layer->part = s.part;
    layer->norm = add_param(&s, norm, CHM_ROLE_NORM, chm_constant(1), 1, &config->width);
    layer->first_param = s.first_param = m->params;
    layer->first_state = s.first_state = m->layout.count;
    const chm_layer_info info = {.size = sizeof info,
                                 .layer = index,
                                 .layers = (int32_t)config->layers,
                                 .width = config->width,
                                 .ffn_width = config->ffn_width,
                                 .heads = config->heads,
                                 .head_dim = config->head_dim,
                                 .norm_eps = (float)config->norm_eps,
                                 .norm_before_linear = config->norm_before_linear,
                                 .in_loop = config->in_loop[index]};
    const int declared = s.status ? s.status : layer->ops->declare(layer->self, &s.declare, &info);
    layer->params = m->params - layer->first_param;
    layer->states = m->layout.count - layer->first_state;
    for (int pass = 2; !s.status && config->loop.per_pass && info.in_loop && pass <= config->loop.most; pass++)
        repeat_states(&s, layer, pass);
    const bool mixture = !strcmp(part, "ffn") && !strcmp(config->ffn[index], "moe");
    for (int i = layer->first_param; mixture && i < m->params; i++) {
        chm_param *p = m->param[i];
        if (p->role != CHM_ROLE_TERNARY) continue;
        p->expert = true;
        for (int k = 0; k < 3 && p->correction[k]; k++) p->correction[k]->expert = true;
    }
    if (s.status) return s.status;
    if (declared) return chm_fail(CHM_E_PLUGIN, "%s: plugin %s failed to declare itself", s.part, layer->plugin->name);
    return CHM_OK;
}

static chm_param *add_loop_vector(void *user, const char *name, chm_init init) {
    struct declaring *s = user;
    return add_param(s, name, CHM_ROLE_NORM, init, 1, &s->m->config->width);
}

int chm_model_create(chm_card *card, const chm_registry *registry, chm_model **out) {
    *out = NULL;
    chm_model *m = chm_alloc(sizeof *m);
    if (!m) {
        chm_card_destroy(card);
        return CHM_E_MEMORY;
    }
    m->card = card;
    m->config = chm_card_model(card);
    m->registry = registry;
    chm_arena_init(&m->arena);
    const chm_model_config *config = m->config;
    struct declaring s = {.m = m, .layer = -1, .part = "model"};
    int status = chm_card_buildable(card);
    if (status) goto out;
    m->mixer = chm_arena_zero(&m->arena, (size_t)config->layers * sizeof *m->mixer);
    m->ffn = chm_arena_zero(&m->arena, (size_t)config->layers * sizeof *m->ffn);
    if (!m->mixer || !m->ffn) {
        status = CHM_E_MEMORY;
        goto out;
    }
    const int64_t table[] = {config->vocab, config->width};
    m->embedding = add_param(&s, "embedding", CHM_ROLE_EMBEDDING, chm_normal(0), 2, table);
    for (int i = 0; i < config->layers && !status && !s.status; i++) {
        status = declare_layer(m, i, "mixer", config->mixer[i], &m->mixer[i]);
        if (!status) status = declare_layer(m, i, "ffn", config->ffn[i], &m->ffn[i]);
    }
    if (status) goto out;
    status = chm_loop_declare(m, add_loop_vector, &s);
    if (status) goto out;
    m->final_norm = add_param(&s, "final_norm", CHM_ROLE_NORM, chm_constant(1), 1, &config->width);
    m->head =
        config->tie_embeddings ? m->embedding : add_param(&s, "head", CHM_ROLE_EMBEDDING, chm_normal(0), 2, table);
    status = s.status;
out:
    if (status) {
        chm_model_destroy(m);
        return status;
    }
    *out = m;
    return CHM_OK;
}

int chm_model_create_layer(chm_card *card, const chm_registry *registry, const char *plugin, chm_model **out) {
    *out = NULL;
    chm_model *m = chm_alloc(sizeof *m);
    if (!m) {
        chm_card_destroy(card);
        return CHM_E_MEMORY;
    }
    m->card = card;
    m->config = chm_card_model(card);
    m->registry = registry;
    chm_arena_init(&m->arena);
    m->mixer = chm_arena_zero(&m->arena, sizeof *m->mixer);
    const int status = m->mixer ? declare_layer(m, 0, "mixer", plugin, m->mixer) : CHM_E_MEMORY;
    if (status) {
        chm_model_destroy(m);
        return status;
    }
    *out = m;
    return CHM_OK;
}

void chm_model_destroy(chm_model *m) {
    if (!m) return;
    chm_safetensors_destroy(m->file);
    chm_map_close(&m->map);
    chm_safetensors_destroy(m->experts);
    chm_map_close(&m->experts_map);
    chm_free(m->storage);
    chm_free(m->path);
    chm_free(m->experts_path);
    chm_arena_finish(&m->arena);
    chm_card_destroy(m->card);
    chm_free(m);
}

void *chm_carve(uint8_t *storage, size_t *used, size_t bytes) {
    void *p = storage ? storage + *used : NULL;
    *used += chm_align64(bytes);
    return p;
}

static int allocate(chm_model *m, bool gradients) {
    for (int pass = 0; pass < 2; pass++) {
        uint8_t *at = m->storage;
        size_t used = 0;
        for (int i = 0; i < m->params; i++) {
            chm_param *p = m->param[i];
            const size_t bytes = (size_t)p->count * sizeof(float);
            float *value = chm_carve(at, &used, bytes), *grad = NULL, *dequant = NULL;
            void *codes = NULL, *scales = NULL;
            if (gradients || p->role == CHM_ROLE_OWN) grad = chm_carve(at, &used, bytes);
            if (p->format != CHM_FORMAT_F32) {
                if (gradients) dequant = chm_carve(at, &used, bytes);
                codes = chm_carve(at, &used, chm_param_code_bytes(p, CHM_ENCODING_T2));
                scales = chm_carve(at, &used, chm_param_scale_bytes(p, p->ternary.group));
            }
            if (!pass) continue;
            p->value = value;
            if (p->role == CHM_ROLE_OWN)
                p->tally = grad;
            else
                p->grad = grad;
            p->dequant = dequant;
            if (p->format == CHM_FORMAT_TERNARY) {
                p->ternary.codes = codes;
                p->ternary.scales = scales;
            } else if (p->format == CHM_FORMAT_INT8) {
                p->int8.q = codes;
                p->int8.scale = scales;
            }
        }
        if (pass) break;
        m->storage = chm_alloc_aligned(used);
        if (!m->storage) return CHM_E_MEMORY;
    }
    m->trainable = true;
    return CHM_OK;
}

int chm_model_allocate(chm_model *m) { return allocate(m, true); }

int chm_model_allocate_forward(chm_model *m) { return allocate(m, false); }

int chm_model_quantise(chm_model *m, const struct chm_kernels *k, chm_pool *pool) {
    int status = CHM_OK;
    for (int i = 0; i < m->params && !status; i++) status = chm_param_quantise(m->param[i], k, pool);
    return status;
}

void chm_model_clear_tallies(chm_model *m) {
    for (int i = 0; i < m->params; i++)
        if (m->param[i]->tally) memset(m->param[i]->tally, 0, (size_t)m->param[i]->count * sizeof(float));
}

struct stepping {
    chm_after_step step; /* first: what the plugin holds */
    const char *part;
    chm_layer_report report;
    void *user;
};

static void pass_on(const chm_after_step *s, const char *name, int64_t count, const float *value) {
    const struct stepping *of = (const struct stepping *)(const void *)s;
    if (of->report) of->report(of->user, of->part, name, count, value);
}

void chm_model_after_step(chm_model *m, chm_layer_report report, void *user) {
    for (int64_t i = 0; i < 2 * m->config->layers; i++) {
        const chm_layer *layer = i % 2 ? &m->ffn[i / 2] : &m->mixer[i / 2];
        for (int k = layer->first_param; layer->ops->after_step && k < layer->first_param + layer->params; k++) {
            chm_param *p = m->param[k];
            if (p->role != CHM_ROLE_OWN) continue;
            const struct stepping s = {.step = {.size = sizeof s.step,
                                                .param = p,
                                                .count = p->count,
                                                .value = p->value,
                                                .tally = p->tally,
                                                .report = pass_on},
                                       .part = layer->part,
                                       .report = report,
                                       .user = user};
            layer->ops->after_step(layer->self, &s.step);
        }
    }
    chm_model_clear_tallies(m);
}

/* One residual block at its place in the stack. */
typedef struct placed {
    const chm_layer *layer;
    int index, first_state;
} placed;

static chm_tensor *block(const void *user, chm_context *c, chm_tensor *x) {
    const placed *at = user;
    const chm_layer *layer = at->layer;
    chm_graph *g = chm_context_graph(c);
    chm_context_enter(c, at->index, layer->part, at->first_state);
    chm_tensor *y = layer->ops->forward(layer->self, g, chm_rmsnorm(g, x, layer->norm, 0));
    if (y && (y->rows != x->rows || y->width != x->width))
        return chm_refuse(c, CHM_E_PLUGIN, "%s: plugin %s returned [%lld, %lld] for [%lld, %lld]", layer->part,
                          layer->plugin->name, (long long)y->rows, (long long)y->width, (long long)x->rows,
                          (long long)x->width);
    return chm_add(g, x, y);
}

/* Layers first..last; copy: which set of their states, where the passes of the loop have one each */
static chm_tensor *blocks(const chm_model *m, chm_context *c, int64_t first, int64_t last, int copy, chm_tensor *x) {
    for (int64_t i = 2 * first; i < 2 * (last + 1) && x; i++) {
        const chm_layer *layer = i % 2 ? &m->ffn[i / 2] : &m->mixer[i / 2];
        placed *at = chm_context_take(c, sizeof *at);
        if (!at) return NULL;
        *at = (placed){layer, (int)(i / 2), layer->first_state + copy * layer->states};
        x = chm_recompute(c, x, at->first_state, layer->states, block, at);
    }
    return x;
}

static chm_tensor *looped_blocks(const chm_model *m, chm_context *c, int pass, chm_tensor *x) {
    const struct chm_loop_config *loop = &m->config->loop;
    return blocks(m, c, loop->first, loop->last, loop->per_pass ? pass - 1 : 0, x);
}

chm_tensor *chm_model_forward(chm_model *m, chm_context *c, const int32_t *ids, const bool *want,
                              const chm_id_list *allowed, chm_depth *depth) {
    chm_graph *g = chm_context_graph(c);
    const int64_t rows = chm_context_rows(c);
    chm_context_enter(c, -1, "embedding", 0);
    chm_tensor *x = chm_embed(c, m->embedding, ids, rows);
    const struct chm_loop_config *loop = &m->config->loop;
    if (loop->enabled) {
        x = blocks(m, c, 0, loop->first - 1, 0, x);
        if (x) x = chm_loop_forward(m, c, x, depth, looped_blocks);
        if (x) x = blocks(m, c, loop->last + 1, m->config->layers - 1, 0, x);
    } else
        x = blocks(m, c, 0, m->config->layers - 1, 0, x);
    if (!x) return NULL;
    chm_context_enter(c, -1, "head", 0);
    if (want) {
        int64_t wanted = 0;
        for (int64_t r = 0; r < rows; r++) wanted += want[r];
        chm_tensor *few = chm_input(c, wanted, x->width, NULL, 0);
        if (!few) return NULL;
        for (int64_t r = 0, at = 0; r < rows; r++)
            if (want[r]) memcpy(few->data + at++ * x->width, x->data + r * x->width, (size_t)x->width * sizeof(float));
        x = few;
    }
    x = chm_rmsnorm(g, x, m->final_norm, 0);
    return allowed && allowed->count > 0 ? chm_linear_some(c, x, m->head, allowed->id, allowed->count)
                                         : chm_linear(g, x, m->head);
}

int chm_model_parameter_count(const chm_model *m, int64_t *total, int64_t *embedding) {
    *total = *embedding = 0;
    for (int i = 0; i < m->params; i++) {
        *total += m->param[i]->count;
        if (m->param[i]->role == CHM_ROLE_EMBEDDING) *embedding += m->param[i]->count;
    }
    return CHM_OK;
}
