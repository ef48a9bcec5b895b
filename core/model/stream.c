/* stream.c: models opened and closed, text and tokens, and streams: reading, trying, accepting, forking. */
#include "model/declared.h"
#include "model/stream.h"
#include <string.h>

/* ---- models ------------------------------------------------------------------------------------------------------ */

int chm_card_options_from(const chm_runtime *r, const chm_overlay *overlay, struct chm_card_options *out) {
    memset(out, 0, sizeof(*out));
    out->registry = &r->registry;
    out->read_environment = true;
    if (overlay == NULL) return CHM_OK;
    if (overlay->size != sizeof(*overlay))
        return chm_fail(CHM_E_CONFIG, "chm_overlay has size %u, this library expects %zu", overlay->size,
                        sizeof(*overlay));
    out->ini = overlay->ini;
    out->ini_count = overlay->ini_count;
    out->set = overlay->set;
    out->set_count = overlay->set_count;
    out->read_environment = overlay->no_environment == 0;
    return CHM_OK;
}

int chm_open(chm_runtime *r, const char *path, const chm_overlay *overlay, bool verify, chm_model **out) {
    struct chm_card_options options;
    chm_model *m = NULL;
    const double begun = chm_now();
    *out = NULL;
    int status = chm_runtime_ready(r);
    if (status == CHM_OK) status = chm_card_options_from(r, overlay, &options);
    if (status != CHM_OK) return status;
    if ((status = chm_model_open(path, &r->registry, &options, verify, &m)) != CHM_OK) return status;
    const double packing = chm_now();
    if ((status = chm_model_repack(m, &r->kernels, r->pool, &m->repacked_bytes)) != CHM_OK) goto fail;
    m->repack_seconds = m->repacked_bytes > 0 ? chm_now() - packing : 0;
    if (m->repacked_bytes > 0) /* said where it is felt: every start pays for it again */
        chm_log(m->repack_seconds < 0.1 ? CHM_LOG_DEBUG : CHM_LOG_INFO,
                "%s: codes repacked to t2 in %.2f s and %.1f MB of memory: no kernel here is fast at their encoding",
                path, m->repack_seconds, (double)m->repacked_bytes / 1e6);
    m->tokenizer = chm_alloc(sizeof(*m->tokenizer));
    if (m->tokenizer == NULL) {
        status = CHM_E_MEMORY;
        goto fail;
    }
    if ((status = chm_tokenizer_open_model(m->tokenizer, m)) != CHM_OK) {
        chm_free(m->tokenizer);
        m->tokenizer = NULL;
        status = chm_fail_prefix(status, "%s", path);
        goto fail;
    }
    chm_card_say_unused(m->card);
    m->open_seconds = chm_now() - begun;
    *out = m;
    return CHM_OK;
fail:
    chm_close(m);
    return status;
}

void chm_close(chm_model *m) {
    if (m == NULL) return;
    if (m->tokenizer != NULL) {
        chm_tokenizer_close(m->tokenizer);
        chm_free(m->tokenizer);
        m->tokenizer = NULL;
    }
    chm_model_destroy(m);
}

int32_t chm_vocab(const chm_model *m) { return (int32_t)m->config->vocab; }

int32_t chm_end_of_text(const chm_model *m) {
    const int32_t end = m->tokenizer->ops->end_of_text(m->tokenizer->self);
    return end >= 0 ? end : m->config->eos;
}

int64_t chm_encode(const chm_model *m, const void *text, size_t bytes, int32_t *ids, size_t cap) {
    const int64_t n = m->tokenizer->ops->encode(m->tokenizer->self, text, bytes, ids, cap);
    if (n < 0) chm_fail_prefix(chm_failed(CHM_E_DATA), "tokenizer '%s': %zu bytes", m->tokenizer->plugin->name, bytes);
    return n;
}

int64_t chm_decode(const chm_model *m, int32_t id, void *out, size_t cap) {
    const int64_t n = m->tokenizer->ops->decode(m->tokenizer->self, id, out, cap);
    if (n < 0) chm_fail(CHM_E_DATA, "tokenizer '%s' has no token %d", m->tokenizer->plugin->name, id);
    return n;
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */

static int reserve_rows(chm_stream *s, int64_t n) {
    if (n <= s->capacity) return CHM_OK;
    int32_t *parent = chm_alloc((size_t)n * sizeof(*parent));
    int64_t *position = chm_alloc((size_t)n * sizeof(*position));
    bool *want = chm_alloc((size_t)n * sizeof(*want));
    if (parent == NULL || position == NULL || want == NULL) {
        chm_free(parent);
        chm_free(position);
        chm_free(want);
        return CHM_E_MEMORY;
    }
    chm_free(s->parent);
    chm_free(s->position);
    chm_free(s->want);
    s->parent = parent;
    s->position = position;
    s->want = want;
    s->capacity = n;
    return CHM_OK;
}

int chm_stream_open(chm_runtime *r, chm_model *m, chm_stream **out) {
    *out = NULL;
    chm_stream *s = chm_alloc(sizeof(*s));
    if (s == NULL) return CHM_E_MEMORY;
    s->runtime = r;
    s->model = m;
    s->streams[0] = &s->state;
    int status = chm_context_create(&r->kernels.kernels, r->pool, &m->layout, (float)m->config->norm_eps, &s->context);
    if (status != CHM_OK) goto fail;
    if ((status = chm_stream_init(&s->state, &m->layout)) != CHM_OK) goto fail;
    if ((status = reserve_rows(s, CHM_PASS_ROWS)) != CHM_OK) goto fail;
    s->logits = chm_alloc_aligned((size_t)m->config->vocab * sizeof(float));
    if (s->logits == NULL) {
        status = CHM_E_MEMORY;
        goto fail;
    }
    *out = s;
    return CHM_OK;
fail:
    chm_stream_close(s);
    return status;
}

void chm_stream_close(chm_stream *s) {
    if (s == NULL) return;
    chm_context_destroy(s->context);
    if (s->state.blob != NULL) chm_stream_finish(&s->state);
    chm_free(s->parent);
    chm_free(s->position);
    chm_free(s->want);
    chm_free(s->logits);
    chm_free(s->allow);
    chm_free((void *)(uintptr_t)s->allowed.id);
    chm_free(s);
}

int chm_stream_allow(chm_stream *s, const int32_t *ids, int64_t n) {
    const int64_t vocab = s->model->config->vocab;
    if (n < 0)
        return chm_fail(CHM_E_CONFIG, "%lld tokens to allow: 1 or more, or 0 for all of the vocabulary", (long long)n);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return chm_fail(CHM_E_DATA, "token %d at index %lld of those allowed is not in the vocabulary 0..%lld",
                            ids[i], (long long)i, (long long)vocab - 1);
    if (n > 0 && s->allow == NULL) {
        bool *allow = chm_alloc((size_t)vocab * sizeof(*allow));
        int32_t *list = chm_alloc((size_t)vocab * sizeof(*list));
        if (allow == NULL || list == NULL) {
            chm_free(allow);
            chm_free(list);
            return CHM_E_MEMORY;
        }
        s->allow = allow;
        s->allowed.id = list;
    }
    int32_t *list = (int32_t *)(uintptr_t)s->allowed.id;
    s->allowed.count = 0;
    if (n == 0) return CHM_OK;
    memset(s->allow, 0, (size_t)vocab * sizeof(*s->allow));
    for (int64_t i = 0; i < n; i++) s->allow[ids[i]] = true;
    for (int64_t id = 0; id < vocab; id++)
        if (s->allow[id]) list[s->allowed.count++] = (int32_t)id;
    return CHM_OK;
}

void chm_stream_restart(chm_stream *s) {
    chm_stream_reset(&s->state);
    s->state.position = 0;
    s->tried = 0;
    s->have_logits = false;
    s->broken = false;
}

int chm_stream_fork(const chm_stream *s, chm_stream **out) {
    *out = NULL;
    if (s->broken) return chm_fail(CHM_E_CONFIG, "a stream whose last pass failed cannot be forked: restart it");
    chm_stream *t = NULL;
    int status = chm_stream_open(s->runtime, s->model, &t);
    if (status == CHM_OK) status = chm_stream_allow(t, s->allowed.id, s->allowed.count);
    if (status != CHM_OK) {
        chm_stream_close(t);
        return status;
    }
    chm_stream_copy(&t->state, &s->state);
    t->state.position = s->state.position;
    t->have_logits = s->have_logits;
    if (s->have_logits) memcpy(t->logits, s->logits, (size_t)s->model->config->vocab * sizeof(float));
    *out = t;
    return CHM_OK;
}

int64_t chm_stream_position(const chm_stream *s) { return s->state.position; }

size_t chm_stream_bytes(const chm_stream *s) { return s->model->layout.bytes; }

size_t chm_stream_stated_bytes(const chm_stream *s) {
    return (size_t)(1e6 * chm_card_number(s->model->card, "braid_state.per_stream_mb", 0));
}

static int check_ids(const chm_stream *s, const int32_t *ids, int64_t n) {
    if (s->broken)
        return chm_fail(CHM_E_CONFIG, "the stream's last pass failed and left its state half-way: restart it");
    if (n < 0) return chm_fail(CHM_E_CONFIG, "%lld tokens to read: the number must be 0 or more", (long long)n);
    const int64_t vocab = s->model->config->vocab;
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return chm_fail(CHM_E_DATA, "token %d at index %lld is not in the vocabulary 0..%lld", ids[i], (long long)i,
                            (long long)vocab - 1);
    return CHM_OK;
}

/* Runs rows 0..n-1 of s->parent and s->position; s->want says which get logits. NULL result only on failure. */
static int run_pass(chm_stream *s, const int32_t *ids, int64_t n, const bool *want, uint32_t flags,
                    chm_tensor **logits) {
    const chm_rows rows = {.count = n, .parent = s->parent, .position = s->position};
    int status = chm_context_begin(s->context, &rows, s->streams, 1, flags);
    if (status != CHM_OK) return status;
    *logits = chm_model_forward(s->model, s->context, ids, want, &s->allowed, &s->depth);
    if ((status = chm_context_status(s->context)) != CHM_OK) return status;
    if (*logits == NULL) return chm_fail(CHM_E_INTERNAL, "the model's forward gave no logits and no reason");
    return CHM_OK;
}

/* Reads n tokens in passes of at most CHM_PASS_ROWS. all: logits of every row go there, else only the last row's are
 * computed, and only when `last`. */
static int feed(chm_stream *s, const int32_t *ids, int64_t n, float *all, bool last) {
    int status = check_ids(s, ids, n);
    if (status != CHM_OK) return status;
    s->tried = 0;
    if (n > 0) s->have_logits = false;
    const size_t row_bytes = (size_t)s->model->config->vocab * sizeof(float);
    for (int64_t done = 0; done < n;) {
        const int64_t rows = CHM_MIN(n - done, CHM_PASS_ROWS), base = s->state.position;
        const bool ends = done + rows == n;
        for (int64_t i = 0; i < rows; i++) {
            s->parent[i] = i ? (int32_t)(i - 1) : ~0;
            s->position[i] = base + i;
            s->want[i] = last && ends && i == rows - 1;
        }
        chm_tensor *logits = NULL;
        status = run_pass(s, ids + done, rows, all ? NULL : s->want, CHM_PASS_COMMIT, &logits);
        if (status != CHM_OK) {
            s->broken = true;
            return status;
        }
        s->state.position = base + rows;
        if (all != NULL) {
            memcpy(all + done * s->model->config->vocab, logits->data, (size_t)rows * row_bytes);
            if (ends) memcpy(s->logits, logits->data + (rows - 1) * s->model->config->vocab, row_bytes);
        } else if (last && ends) {
            memcpy(s->logits, logits->data, row_bytes);
        }
        done += rows;
        if (ends) s->have_logits = all != NULL || last;
    }
    return CHM_OK;
}

int chm_stream_feed(chm_stream *s, const int32_t *ids, int64_t n, const float **logits) {
    const int status = feed(s, ids, n, NULL, logits != NULL);
    if (logits == NULL) return status;
    *logits = NULL;
    if (status != CHM_OK) return status;
    if (!s->have_logits)
        return chm_fail(CHM_E_CONFIG, "no tokens were read, so there are no logits: feed at least one token");
    *logits = s->logits;
    return CHM_OK;
}

int chm_stream_feed_all(chm_stream *s, const int32_t *ids, int64_t n, float *logits) {
    return feed(s, ids, n, logits, true);
}

int chm_stream_try(chm_stream *s, const int32_t *ids, const int32_t *parent, int64_t n, float *logits) {
    int status = check_ids(s, ids, n);
    if (status != CHM_OK) return status;
    s->tried = 0;
    if (n < 1 || n > CHM_TRY_ROWS)
        return chm_fail(CHM_E_CONFIG, "a tree of %lld rows to try: 1..%d", (long long)n, CHM_TRY_ROWS);
    if ((status = reserve_rows(s, n)) != CHM_OK) return status;
    for (int64_t i = 0; i < n; i++) {
        if (parent[i] < -1 || parent[i] >= i)
            return chm_fail(CHM_E_CONFIG, "row %lld of the tree has parent %d: -1 (the stream) or an earlier row",
                            (long long)i, parent[i]);
        s->parent[i] = parent[i] < 0 ? ~0 : parent[i];
        s->position[i] = parent[i] < 0 ? s->state.position : s->position[parent[i]] + 1;
    }
    chm_tensor *out = NULL;
    if ((status = run_pass(s, ids, n, NULL, 0, &out)) != CHM_OK) return status;
    memcpy(logits, out->data, (size_t)n * (size_t)s->model->config->vocab * sizeof(float));
    s->tried = n;
    return CHM_OK;
}

int chm_stream_accept(chm_stream *s, const int32_t *path, int64_t n) {
    if (n == 0) {
        s->tried = 0;
        return CHM_OK;
    }
    if (s->tried == 0) return chm_fail(CHM_E_CONFIG, "nothing was tried since the stream last moved");
    if (n < 0 || n > s->tried)
        return chm_fail(CHM_E_CONFIG, "a path of %lld rows among the %lld tried", (long long)n, (long long)s->tried);
    for (int64_t i = 0; i < n; i++) {
        if (path[i] < 0 || path[i] >= s->tried)
            return chm_fail(CHM_E_CONFIG, "row %d at step %lld of the path is not one of the %lld rows tried", path[i],
                            (long long)i, (long long)s->tried);
        const int32_t expected = i ? path[i - 1] : ~0;
        if (s->parent[path[i]] != expected)
            return chm_fail(CHM_E_CONFIG, "row %d at step %lld of the path does not follow %s", path[i], (long long)i,
                            i ? "the row before it" : "the stream");
    }
    const int64_t base = s->state.position;
    s->tried = 0;
    s->have_logits = false;
    const int status = chm_accept(s->context, path, n);
    if (status != CHM_OK) {
        s->broken = true;
        return status;
    }
    s->state.position = base + n;
    return CHM_OK;
}
