/* layer_alone.c: a layer plugin without a model around it. */
#include "model/layer_alone.h"
#include "base/json.h"
#include "model/stream.h"
#include <string.h>

/* Values of metadata are text: numbers and booleans go into the card bare, the rest as a string. */
static void add_value(chm_string *s, const char *key, const char *text) {
    json_t *value = chm_json_load(text, strlen(text), NULL);
    const bool bare = json_is_number(value) || json_is_boolean(value);
    if (!value && chm_json_starved()) s->failed = true;
    json_decref(value);
    chm_string_add(s, ", \"%s\": %s", key, bare ? text : "\"");
    if (bare) return;
    for (const char *c = text; *c; c++)
        if (*c == '"' || *c == '\\' || (unsigned char)*c < 0x20)
            chm_string_add(s, "\\u%04x", (unsigned)(unsigned char)*c);
        else
            chm_string_add_bytes(s, c, 1);
    chm_string_add(s, "\"");
}

static void add_option(chm_string *s, const chm_safetensors *file, const char *key) {
    const char *text = file ? chm_safetensors_meta(file, key) : NULL;
    if (text) add_value(s, key, text);
}

static void card_text(chm_string *s, const struct chm_plugin *plugin, const chm_safetensors *file, int64_t width,
                      double init_range) {
    const char *heads = file ? chm_safetensors_meta(file, "num_heads") : NULL;
    const char *dim = file ? chm_safetensors_meta(file, "head_dim") : NULL;
    const char *ffn = file ? chm_safetensors_meta(file, "intermediate_size") : NULL;
    chm_string_add(s, "{\"hidden_size\": %lld, \"num_hidden_layers\": 1, \"vocab_size\": 258", (long long)width);
    add_value(s, "intermediate_size", ffn ? ffn : "80");
    add_value(s, "num_heads", heads ? heads : "3");
    add_value(s, "head_dim", dim ? dim : "16");
    if (init_range > 0) chm_string_add(s, ", \"initializer_range\": %.9g", init_range);
    add_option(s, file, "rms_norm_eps");
    add_option(s, file, "rms_norm_before_every_linear");
    /* the plugin's section; those of backbone stand inside it */
    static const char inside[] = "backbone.";
    chm_string section = {0};
    for (uint32_t i = 0; plugin->section && file && i < plugin->option_count; i++)
        add_option(&section, file, plugin->options[i].name);
    const bool nested = section.text && !strncmp(plugin->section, inside, sizeof inside - 1);
    chm_string_add(s, ", \"backbone\": {\"layer_pattern\": \"%s\"", plugin->name);
    if (nested) chm_string_add(s, ", \"%s\": {%s}", plugin->section + sizeof inside - 1, section.text + 2);
    chm_string_add(s, "}, \"tokenizer\": {\"type\": \"bytes\"}");
    if (section.text && !nested) chm_string_add(s, ", \"%s\": {%s}", plugin->section, section.text + 2);
    if (section.failed) s->failed = true;
    chm_string_finish(&section);
    const char *group = file ? chm_safetensors_meta(file, "group_size") : NULL;
    if (group) {
        chm_string_add(s, ", \"quantization\": {\"activation_bits\": 8");
        add_value(s, "group_size", group);
        chm_string_add(s, "}");
    }
    chm_string_add(s, "}\n");
}

static int parse_card(const struct chm_plugin *plugin, const chm_safetensors *file, int64_t width, double init_range,
                      const struct chm_card_options *options, chm_card **out) {
    chm_string text = {0};
    card_text(&text, plugin, file, width, init_range);
    const int status = text.failed ? chm_fail(CHM_E_MEMORY, "out of memory while writing a card")
                                   : chm_card_parse("card of one layer", text.text, text.length, options, out);
    chm_string_finish(&text);
    return status;
}

int chm_layer_alone_open(chm_layer_alone *l, const chm_runtime *r, const chm_layer_options *options,
                         const chm_safetensors *file, int64_t width, double init_range, bool plain) {
    memset(l, 0, sizeof *l);
    const char **set = NULL;
    char smooth[128];
    chm_card *card = NULL;
    struct chm_card_options how;
    if (options->size != sizeof *options)
        return chm_fail(CHM_E_CONFIG, "chm_layer_options has size %u, this library expects %zu", options->size,
                        sizeof *options);
    if (!options->plugin) return chm_fail(CHM_E_CONFIG, "no layer plugin was named");
    const struct chm_plugin *plugin = chm_registry_find(&r->registry, CHM_KIND_LAYER, options->plugin);
    if (!plugin) return CHM_E_PLUGIN;
    int status = chm_card_options_from(r, options->overlay, &how);
    if (status) return status;
    how.one_layer = true;
    if (plain) {
        /* a layer that rounds by itself, too, has an option to leave it */
        const struct chm_option *o = chm_option_find(plugin->options, plugin->option_count, "smooth");
        set = chm_alloc((how.set_count + 2) * sizeof *set);
        if (!set) return CHM_E_MEMORY;
        for (size_t i = 0; i < how.set_count; i++) set[i] = how.set[i];
        set[how.set_count++] = "quantization.method=none";
        if (o && o->type == CHM_OPT_BOOL) {
            snprintf(smooth, sizeof smooth, "%s.smooth=true", plugin->section);
            set[how.set_count++] = smooth;
        }
        how.set = set;
    }
    status = parse_card(plugin, file, width ? width : 48, init_range, &how, &card);
    if (!status && !width) {
        /* heads may have come from the overlay; unless it set the width too, that follows them */
        const chm_model_config *config = chm_card_model(card);
        const int64_t wanted = config->heads * config->head_dim;
        if (config->width == 48 && wanted != 48) {
            chm_card_destroy(card);
            card = NULL;
            status = parse_card(plugin, file, wanted, init_range, &how, &card);
        }
    }
    if (status) goto out;
    if (width && chm_card_model(card)->width != width) {
        status = chm_fail(CHM_E_CONFIG, "hidden_size is %lld, but the layer's input has %lld columns",
                          (long long)chm_card_model(card)->width, (long long)width);
        goto out;
    }
    status = chm_model_create_layer(card, &r->registry, plugin->name, &l->model);
    card = NULL; /* the model's, also on failure */
    if (!status) status = chm_model_allocate(l->model);
    if (status) goto out;
    l->layer = &l->model->mixer[0];
    l->param = l->model->param + l->layer->first_param;
    l->params = l->layer->params;
    l->states = l->model->layout.count - l->layer->first_state;
    l->state = l->states ? l->model->layout.item + l->layer->first_state : NULL;
out:
    chm_card_destroy(card);
    chm_free(set);
    if (status) chm_layer_alone_close(l);
    return status;
}

void chm_layer_alone_close(chm_layer_alone *l) {
    chm_model_destroy(l->model);
    memset(l, 0, sizeof *l);
}

const char *chm_layer_alone_name(const chm_layer_alone *l, const char *full) {
    return full + strlen(l->layer->part) + 1;
}

chm_tensor *chm_layer_alone_forward(const chm_layer_alone *l, chm_context *c, chm_tensor *x) {
    chm_context_enter(c, 0, l->layer->part, l->layer->first_state);
    chm_tensor *y = l->layer->ops->forward(l->layer->self, chm_context_graph(c), x);
    if (x && y && (y->rows != x->rows || y->width != x->width))
        return chm_refuse(c, CHM_E_PLUGIN, "%s: plugin %s returned [%lld, %lld] for [%lld, %lld]", l->layer->part,
                          l->layer->plugin->name, (long long)y->rows, (long long)y->width, (long long)x->rows,
                          (long long)x->width);
    if (!y && chm_context_status(c) == CHM_OK)
        chm_refuse(c, CHM_E_PLUGIN, "%s: plugin %s returned nothing and said nothing", l->layer->part,
                   l->layer->plugin->name);
    return y;
}
