/* plan.c: the cells of a study, each with a card that was resolved and checked. */
#include "train/ablate/ablate.h"
#include "model/declared.h"
#include "model/loop.h"

#include <math.h>
#include <string.h>

enum { MOST_WIDTH = 1 << 16, DEPTH_SAMPLES = 1 << 12 };
static const double match_share = 0.01;

/* What one cell lays over the card, in order: what tasks need, [card], the point of the grid, the variant, a width, the
 * seed. */
typedef struct laid {
    struct chm_override item[2048];
    int count;
    char width[24], seed[24];
} laid;

static void lay(laid *l, const char *key, const char *value, const char *place) {
    if (l->count < (int)CHM_ARRAY_COUNT(l->item)) l->item[l->count++] = (struct chm_override){key, value, place};
}

static int lay_all(const chm_plan *p, laid *l, int variant, int point, int64_t width, uint64_t seed) {
    const chm_study *s = &p->study;
    const chm_variant *v = &s->variant[variant];
    l->count = 0;
    if (s->tasks > 0) {
        lay(l, "training.documents", "line", s->task[0].place);
        lay(l, "training.loss_on", "answers", s->task[0].place);
    }
    for (int i = 0; i < s->bases; i++) lay(l, s->base[i].key, s->base[i].value, s->base[i].place);
    for (int a = 0; a < s->axes; a++) lay(l, s->axis[a].key, chm_study_value(s, point, a), s->axis[a].place);
    for (int i = 0; i < v->settings; i++) lay(l, v->setting[i].key, v->setting[i].value, v->setting[i].place);
    snprintf(l->width, sizeof l->width, "%lld", (long long)width);
    snprintf(l->seed, sizeof l->seed, "%llu", (unsigned long long)seed);
    if (width > 0) lay(l, "intermediate_size", l->width, s->file);
    lay(l, "training.phases.pretrain.seed", l->seed, s->file);
    if (l->count == (int)CHM_ARRAY_COUNT(l->item))
        return chm_fail(CHM_E_CONFIG, "%s: [variant %s] changes more keys than a study may", v->place, v->name);
    return CHM_OK;
}

static int load_card(const chm_plan *p, const laid *l, chm_card **out) {
    const struct chm_card_options how = {
        .registry = &p->runtime->registry, .override = l->item, .override_count = (size_t)l->count};
    const int status = chm_card_load(p->study.card, &how, out);
    return status == CHM_E_DATA ? chm_fail_prefix(status, "%s: card", p->study.card_place) : status;
}

static int load_model(const chm_plan *p, const laid *l, int variant, chm_model **out) {
    chm_card *card = NULL;
    int status = load_card(p, l, &card);
    if (status != CHM_OK) return status;
    status = chm_model_create(card, &p->runtime->registry, out);
    const chm_variant *v = &p->study.variant[variant];
    return status == CHM_OK ? CHM_OK : chm_fail_prefix(status, "%s: [variant %s]", v->place, v->name);
}

/* ---- parameters ---- */

static int count_parameters(const chm_plan *p, int variant, int point, int64_t width, laid *l, int64_t *count) {
    chm_model *m = NULL;
    int64_t embedding;
    int status = lay_all(p, l, variant, point, width, p->study.seed[0]);
    if (status == CHM_OK) status = load_model(p, l, variant, &m);
    if (status == CHM_OK) status = chm_model_parameter_count(m, count, &embedding);
    chm_model_destroy(m);
    return status;
}

/* The intermediate_size with which a variant has as many parameters as wanted; they grow with it. */
static int solve_width(const chm_plan *p, int variant, int point, int64_t wanted, laid *l, int64_t *width) {
    const chm_variant *v = &p->study.variant[variant];
    int64_t low = 1, high = MOST_WIDTH, least, most;
    int status = count_parameters(p, variant, point, low, l, &least);
    if (status == CHM_OK) status = count_parameters(p, variant, point, high, l, &most);
    if (status != CHM_OK) return status;
    if ((double)least > (1 + match_share) * (double)wanted)
        return chm_fail(CHM_E_CONFIG,
                        "%s: [variant %s] cannot match: with intermediate_size 1 it has %lld parameters, the baseline "
                        "'%s' %lld; give it fewer layers, or leave match = parameters out",
                        v->place, v->name, (long long)least, p->study.baseline, (long long)wanted);
    if ((double)most < (1 - match_share) * (double)wanted)
        return chm_fail(CHM_E_CONFIG,
                        "%s: [variant %s] cannot match: with intermediate_size %d it has %lld parameters, the baseline "
                        "'%s' %lld; give it more layers, or leave match = parameters out",
                        v->place, v->name, MOST_WIDTH, (long long)most, p->study.baseline, (long long)wanted);
    while (high - low > 1) { /* low: not above what is wanted, if 1 is not */
        const int64_t middle = low + (high - low) / 2;
        int64_t n;
        if ((status = count_parameters(p, variant, point, middle, l, &n)) != CHM_OK) return status;
        if (n <= wanted) {
            low = middle;
            least = n;
        } else {
            high = middle;
            most = n;
        }
    }
    const bool below = llabs(wanted - least) <= llabs(most - wanted);
    const int64_t nearest = below ? least : most;
    *width = below ? low : high;
    if (fabs((double)(nearest - wanted)) > match_share * (double)wanted)
        return chm_fail(CHM_E_CONFIG,
                        "%s: [variant %s] cannot match within 1 %%: with intermediate_size %lld it has %lld "
                        "parameters, the baseline '%s' %lld; change its layers, or leave match = parameters out",
                        v->place, v->name, (long long)*width, (long long)nearest, p->study.baseline, (long long)wanted);
    return CHM_OK;
}

static int64_t layer_parameters(const chm_model *m, const chm_layer *l) {
    int64_t n = l->norm ? l->norm->count : 0;
    for (int i = 0; i < l->params; i++)
        if (m->param[l->first_param + i] != l->norm) n += m->param[l->first_param + i]->count;
    return n;
}

/*
 * Two operations for every parameter that a token meets going forward and four going back; a table that is only read is
 * met by nobody, the one that writes logits by everybody. Passes of the loop count as often as training makes them, and
 * those through which no gradient goes have no way back. Recurrences are not counted: layers do not declare them.
 */
static void count_work(const chm_model *m, chm_cell *cell) {
    const chm_model_config *config = m->config;
    int64_t total = 0, embedding = 0, skipped = 0, looped = 0;
    chm_model_parameter_count(m, &total, &embedding);
    for (int i = 0; i < config->layers; i++) {
        const int64_t out = strcmp(config->ffn[i], "moe") == 0 ? chm_experts_skipped(m->card) : 0;
        skipped += out;
        if (config->in_loop[i]) looped += layer_parameters(m, &m->mixer[i]) + layer_parameters(m, &m->ffn[i]) - out;
    }
    cell->parameters = total;
    cell->active = total - skipped;
    cell->state_bytes = (int64_t)m->layout.bytes;
    const int64_t met = cell->active - (m->head != m->embedding ? m->embedding->count : 0);
    double loops = 6;
    if (config->loop.enabled) {
        int64_t forward = 0, back = 0;
        for (int i = 0; i < DEPTH_SAMPLES; i++) {
            const int passes = chm_loop_depth(&config->loop, 0, i, 0);
            forward += passes;
            for (int k = 1; k <= passes; k++) back += chm_loop_kept(k, passes, config->loop.truncate);
        }
        loops = (2.0 * (double)forward + 4.0 * (double)back) / DEPTH_SAMPLES;
    } else {
        looped = 0;
    }
    cell->flops = 6.0 * (double)(met - looped) + loops * (double)looped;
}

/* ---- cells ---- */

static const char *keep(chm_plan *p, const char *text) {
    char *kept = chm_arena_take(&p->arena, strlen(text) + 1);
    return kept != NULL ? strcpy(kept, text) : NULL;
}

static int keep_sets(chm_plan *p, const laid *l, chm_cell *cell) {
    cell->set = chm_arena_take(&p->arena, (size_t)l->count * sizeof *cell->set);
    if (cell->set == NULL) return CHM_E_MEMORY;
    for (int i = 0; i < l->count; i++) {
        const size_t n = strlen(l->item[i].key) + strlen(l->item[i].value) + 2;
        char *text = chm_arena_take(&p->arena, n);
        if (text == NULL) return CHM_E_MEMORY;
        snprintf(text, n, "%s=%s", l->item[i].key, l->item[i].value);
        cell->set[cell->sets++] = text;
    }
    return CHM_OK;
}

/* What training asks of a card. */
static int check_trainable(chm_plan *p, const chm_model *m, const chm_variant *v) {
    const chm_train_config *t = chm_card_train(m->card);
    if (t == NULL || t->seq_len < 1 || t->batch_tokens < 1)
        return chm_fail(CHM_E_CONFIG, "%s: training.phases has no phase 'pretrain' with seq_len and batch_tokens",
                        p->study.card);
    chm_tokenizer tokenizer = {0};
    int status = chm_tokenizer_open(&tokenizer, &p->runtime->registry, m->card);
    if (status != CHM_OK) return chm_fail_prefix(status, "%s: [variant %s]", v->place, v->name);
    const int64_t run_tokens = t->seq_len * CHM_MAX(t->carry, 1);
    if (p->run_tokens == 0 || run_tokens < p->run_tokens) p->run_tokens = run_tokens;
    chm_tokenizer_close(&tokenizer);
    return status;
}

/* One variant at one point of the grid, with all its seeds. json: its resolved card, the caller's to free. */
static int plan_point(chm_plan *p, laid *l, int variant, int point, int64_t width, char **json) {
    const chm_study *s = &p->study;
    const chm_variant *v = &s->variant[variant];
    chm_cell first = {.variant = variant, .point = point, .width = width};
    chm_model *m = NULL;
    int status = lay_all(p, l, variant, point, width, s->seed[0]);
    if (status == CHM_OK) status = load_model(p, l, variant, &m);
    if (status == CHM_OK) status = check_trainable(p, m, v);
    if (status == CHM_OK) {
        count_work(m, &first);
        *json = chm_card_json(m->card);
        if (*json == NULL) status = CHM_E_MEMORY;
    }
    chm_model_destroy(m);
    if (status != CHM_OK) return status;
    if (s->tokens > 0 || s->flops > 0) {
        const double tokens = s->tokens > 0 ? s->tokens : s->flops / first.flops;
        if (tokens < 1 || tokens > CHM_TRAIN_TOKENS_MAX)
            return chm_fail(CHM_E_CONFIG, "%s: flops = %g is no budget for [variant %s], whose tokens take %g each",
                            s->file, s->flops, v->name, first.flops);
        first.tokens = (int64_t)tokens;
    }
    for (int i = 0; i < s->seeds; i++) {
        chm_card *card = NULL;
        chm_cell *cell = &p->cell[p->cells++];
        char name[128];
        *cell = first;
        cell->seed = s->seed[i];
        if (chm_study_points(s) > 1)
            snprintf(name, sizeof name, "%s-g%d-s%llu", v->name, point + 1, (unsigned long long)cell->seed);
        else
            snprintf(name, sizeof name, "%s-s%llu", v->name, (unsigned long long)cell->seed);
        if ((cell->name = keep(p, name)) == NULL) return CHM_E_MEMORY;
        status = lay_all(p, l, variant, point, width, cell->seed);
        if (status == CHM_OK) status = keep_sets(p, l, cell);
        if (status == CHM_OK) status = load_card(p, l, &card);
        if (status != CHM_OK) return status;
        char *text = chm_card_json(card);
        chm_card_destroy(card);
        if (text == NULL) return CHM_E_MEMORY;
        cell->card_hash = chm_hash64(text, strlen(text));
        chm_free(text);
    }
    return CHM_OK;
}

static int plan_cells(chm_plan *p, laid *l) {
    const chm_study *s = &p->study;
    const int points = chm_study_points(s);
    char *json[CHM_STUDY_VARIANTS] = {NULL};
    int status = CHM_OK;
    p->cell = chm_arena_zero(&p->arena, (size_t)s->variants * (size_t)points * (size_t)s->seeds * sizeof *p->cell);
    if (p->cell == NULL) return CHM_E_MEMORY;
    for (int point = 0; point < points && status == CHM_OK; point++) {
        int64_t wanted = 0;
        if (s->match) status = count_parameters(p, s->baseline_index, point, 0, l, &wanted);
        for (int v = 0; v < s->variants && status == CHM_OK; v++) {
            int64_t width = 0;
            char *text = NULL;
            if (s->match && v != s->baseline_index) status = solve_width(p, v, point, wanted, l, &width);
            if (status == CHM_OK) status = plan_point(p, l, v, point, width, &text);
            for (int other = 0; status == CHM_OK && point == 0 && other < v; other++)
                if (strcmp(json[other], text) == 0)
                    status = chm_fail(CHM_E_CONFIG,
                                      "%s: [variant %s] gives the same card as [variant %s] (%s); two names for one "
                                      "thing compare nothing",
                                      s->variant[v].place, s->variant[v].name, s->variant[other].name,
                                      s->variant[other].place);
            if (point == 0)
                json[v] = text;
            else
                chm_free(text);
        }
    }
    for (int v = 0; v < s->variants; v++) chm_free(json[v]);
    return status;
}

/* The texts that are named, before any card is looked at. */
static int check_texts(const chm_study *s) {
    const struct {
        const char **path, **place;
        int count;
    } list[] = {{s->data, s->data_place, s->data_count}, {s->validation, s->validation_place, s->validation_count}};
    for (size_t k = 0; k < CHM_ARRAY_COUNT(list); k++)
        for (int i = 0; i < list[k].count; i++) {
            chm_contents in = {0};
            const int status = chm_contents_open(&in, list[k].path[i], false);
            chm_contents_close(&in);
            if (status != CHM_OK) return chm_fail_prefix(status, "%s", list[k].place[i]);
        }
    return CHM_OK;
}

int chm_plan_make(chm_plan *p, chm_runtime *r, const chm_ablate_options *options, const char *study,
                  const char *directory) {
    memset(p, 0, sizeof *p);
    chm_arena_init(&p->arena);
    p->runtime = r;
    p->options = options;
    p->directory = directory;
    int status = chm_study_read(&p->study, options, study);
    laid *l = status == CHM_OK ? chm_alloc(sizeof *l) : NULL;
    if (status == CHM_OK && l == NULL) status = CHM_E_MEMORY;
    if (status == CHM_OK) status = check_texts(&p->study);
    if (status == CHM_OK) status = chm_material_plan(p);
    if (status == CHM_OK) status = plan_cells(p, l);
    chm_free(l);
    return status;
}

void chm_plan_finish(chm_plan *p) {
    chm_study_finish(&p->study);
    chm_arena_finish(&p->arena);
}
