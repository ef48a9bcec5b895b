/* step.c: one step of training: passes forward and backward, the norm of the gradient, the optimiser. */
#include "train/trainer.h"

#include <math.h>
#include <string.h>

void chm_train_plan(chm_trainer *t, int64_t step) {
    const struct chm_loop_config *loop = &t->model->config->loop;
    int64_t n = 0;
    const int most = loop->enabled ? (int)CHM_MAX(loop->most, loop->passes) : 1;
    for (int depth = 1; depth <= most; depth++)
        for (int64_t s = 0; s < t->batch.streams; s++)
            if (chm_loop_depth(loop, t->config->seed, step, s) == depth) {
                t->depth[n] = depth;
                t->pick[n++] = s;
            }
}

int64_t chm_train_group(const chm_trainer *t, int64_t first) {
    int64_t count = 1;
    while (count < t->micro && first + count < t->batch.streams && t->depth[first + count] == t->depth[first]) count++;
    return count;
}

static chm_tensor *on_tap(void *user, chm_graph *g, const char *name, chm_tensor *x) {
    chm_run_state *run = &((chm_trainer *)user)->run;
    const int64_t n = x ? x->rows * x->width : 0;
    (void)g;
#define ADD_UP(metric, shown_as, logarithm)                                                                            \
    if (strcmp(name, shown_as) == 0) {                                                                                 \
        for (int64_t i = 0; i < n; i++)                                                                                \
            run->shown.metric.sum += (logarithm) ? exp((double)x->data[i]) : (double)x->data[i];                       \
        run->shown.metric.count += n;                                                                                  \
        return x;                                                                                                      \
    }
    CHM_TAP_METRICS(ADD_UP)
#undef ADD_UP
    return x;
}

void chm_train_watch(chm_trainer *t) {
#define WANTED(metric, tap, logarithm) || chm_card_wants_metric(t->model->card, #metric)
    if (false CHM_TAP_METRICS(WANTED)) chm_context_on_tap(t->context, on_tap, t);
#undef WANTED
}

int chm_train_micro(chm_trainer *t, int64_t step, int64_t first, int64_t count, int64_t rows, float scale, double *loss,
                    int64_t *targets) {
    const chm_batch *b = &t->batch;
    const int64_t n = count * rows;
    int status;
    *loss = 0;
    *targets = 0;
    for (int64_t s = 0; s < count; s++) {
        const int64_t at = s * rows;
        /* rows < b->rows: the start of the segment only, for measuring */
        const chm_batch whole = {b->corpus, b->seed, b->streams, rows, b->carry};
        chm_batch_segment(rows == b->rows ? b : &whole, step, t->pick[first + s], t->id + at, t->target + at,
                          t->position + at);
        for (int64_t r = 0; r < rows; r++) t->parent[at + r] = r == 0 ? ~(int32_t)s : (int32_t)(at + r - 1);
    }
    const chm_rows pass = {.count = n, .parent = t->parent, .position = t->position};
    const bool carries = t->stream != NULL && !t->peek;
    const uint32_t flags = CHM_PASS_TRAIN | (carries ? (uint32_t)CHM_PASS_CARRY : 0);
    chm_stream_state **slots = t->stream != NULL ? t->slot : NULL;
    for (int64_t s = 0; slots != NULL && s < count; s++) slots[s] = &t->stream[t->pick[first + s]];
    if ((status = chm_context_begin(t->context, &pass, slots, (int)count, flags)) != CHM_OK) return status;
    chm_depth depth = {.passes = t->depth[first], .whole = true};
    chm_tensor *logits = chm_model_forward(t->model, t->context, t->id, NULL, NULL, &depth);
    if ((status = chm_context_status(t->context)) != CHM_OK) return status;
    if (logits == NULL) return chm_fail(CHM_E_INTERNAL, "the model gave no logits");
    status = chm_cross_entropy(t->context, logits, t->target, t->model->config->vocab, scale, loss, targets);
    if (status != CHM_OK) return status;
    if (t->mezo == NULL && (status = chm_backward(t->context)) != CHM_OK) return status;
    t->run.depth.rows += depth.rows;
    t->run.depth.sum += depth.sum;
    for (int64_t s = 0; slots != NULL && carries && s < count; s++)
        slots[s]->position = t->position[(s + 1) * rows - 1] + 1;
    return CHM_OK;
}

static void clear_pieces(void *arg, int64_t begin, int64_t end, int worker) {
    const chm_trainer *t = arg;
    (void)worker;
    for (int64_t i = begin; i < end; i++)
        memset(t->piece[i].param->grad + t->piece[i].first, 0, (size_t)t->piece[i].count * sizeof(float));
}

void chm_train_clear(chm_trainer *t) {
    if (t->mezo == NULL) chm_parallel(t->pool, t->pieces, 4, clear_pieces, t);
    chm_model_clear_tallies(t->model);
}

static void clear_streams(chm_trainer *t) {
    for (int64_t s = 0; t->stream != NULL && s < t->batch.streams; s++) {
        const int64_t position = t->stream[s].position;
        chm_stream_reset(&t->stream[s]);
        t->stream[s].position = position;
    }
}

void chm_train_clear_all(chm_trainer *t) {
    chm_train_clear(t);
    t->run.depth = (chm_depth){0};
    memset(&t->run.shown, 0, sizeof t->run.shown);
    chm_optimiser_clear(t);
    for (int64_t s = 0; t->stream != NULL && s < t->batch.streams; s++) chm_stream_reset(&t->stream[s]);
}

/* The gradient of the step at hand: its loss, summed over its targets, and its norm. */
static int gradient_passes(chm_trainer *t, int64_t all, double *loss, int64_t *targets, double *norm) {
    *loss = 0;
    *targets = 0;
    for (int64_t s = 0, count; s < t->batch.streams; s += count) {
        double part;
        int64_t counted;
        count = chm_train_group(t, s);
        const int status =
            chm_train_micro(t, t->run.step, s, count, t->batch.rows, 1.0f / (float)CHM_MAX(all, 1), &part, &counted);
        if (status != CHM_OK) return status;
        *loss += part;
        *targets += counted;
    }
    chm_optimiser_mask(t);
    *norm = chm_optimiser_norm(t);
    return CHM_OK;
}

int chm_train_step(chm_trainer *t, double *lr) {
    chm_run_state *run = &t->run;
    double weight_decay, loss, norm;
    int64_t targets;
    int status = chm_model_quantise(t->model, t->kernels, t->pool);
    if (status != CHM_OK) return status;
    chm_schedule_at(t->config, run->step, run->steps, lr, &weight_decay);
    const int64_t all = chm_batch_targets(&t->batch, run->step);
    chm_train_plan(t, run->step);
    status =
        t->mezo ? chm_mezo_passes(t, all, &loss, &targets, &norm) : gradient_passes(t, all, &loss, &targets, &norm);
    if (status != CHM_OK) return status;
    run->step++;
    if (isfinite(norm) && isfinite(loss)) {
        const double most = t->config->grad_clip;
        const double gscale = most > 0 && norm > most ? most / norm : 1;
        run->applied++;
        if (t->mezo)
            chm_mezo_update(t, gscale, *lr, weight_decay);
        else
            chm_optimiser_update(t, (float)gscale, *lr, weight_decay, run->applied, false);
        chm_string_finish(&t->metrics);
        t->violation = 0;
        t->mixtures = 0;
        chm_model_after_step(t->model, t->metrics_wanted ? chm_train_metric : NULL, t);
        run->loss += loss;
        run->loss_targets += targets;
        run->gradient_norm = norm;
        run->skipped_in_a_row = 0;
        return CHM_OK;
    }
    /* The weights stay; a state that overflowed would poison every later segment of its stream. */
    if (t->mezo) chm_mezo_undo(t);
    chm_train_clear(t);
    clear_streams(t);
    run->skipped++;
    run->skipped_in_a_row++;
    return chm_train_log_skip(t);
}
