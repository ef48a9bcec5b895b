/* generate.c: a prompt read, then tokens drawn and read back one at a time. */
#include "decode/sampler.h"
#include "model/stream.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A number of the card's generation section; `otherwise` when the card says nothing. */
static double card_number(const chm_model *m, const char *key, double otherwise) {
    const char *text = chm_card_get(m->card, key, NULL);
    if (text == NULL) return otherwise;
    char *end = NULL;
    const double value = strtod(text, &end);
    return end == text ? otherwise : value;
}

void chm_sampling_defaults(const chm_model *m, chm_sampling *out) {
    const char *sample = chm_card_get(m->card, "generation.do_sample", NULL);
    memset(out, 0, sizeof(*out));
    out->size = sizeof(*out);
    out->temperature = card_number(m, "generation.temperature", 1);
    if (sample != NULL && strcmp(sample, "false") == 0) out->temperature = 0;
    out->top_p = card_number(m, "generation.top_p", 1);
    out->repeat_penalty = card_number(m, "generation.repetition_penalty", 1);
    out->repeat_last = 64;
}

/* The tokens to read before the first draw: end-of-text where a document begins, then the prompt. */
static int encode_prompt(chm_stream *s, const void *prompt, size_t bytes, int32_t **ids_out, int64_t *n_out) {
    const chm_model *m = s->model;
    const int32_t begin = m->tokenizer->ops->end_of_text(m->tokenizer->self);
    const bool mark = s->state.position == 0 && begin >= 0;
    const int64_t n = bytes ? chm_encode(m, prompt, bytes, NULL, 0) : 0;
    if (n < 0) return chm_failed(CHM_E_DATA);
    int32_t *ids = chm_alloc((size_t)(n + 1) * sizeof(*ids));
    if (ids == NULL) return CHM_E_MEMORY;
    if (mark) ids[0] = begin;
    const int64_t again = n > 0 ? chm_encode(m, prompt, bytes, ids + mark, (size_t)n) : n;
    if (again != n) {
        chm_free(ids);
        if (again < 0) return chm_failed(CHM_E_DATA);
        return chm_fail(CHM_E_INTERNAL, "tokenizer '%s' counted its tokens differently the second time",
                        m->tokenizer->plugin->name);
    }
    *ids_out = ids;
    *n_out = n + mark;
    return CHM_OK;
}

int chm_stream_read(chm_stream *s, const void *text, size_t bytes) {
    int32_t *ids = NULL;
    int64_t count = 0;
    const float *logits = NULL;
    int status = encode_prompt(s, text, bytes, &ids, &count);
    if (status == CHM_OK && count > 0) status = chm_stream_feed(s, ids, count, &logits);
    chm_free(ids);
    return status;
}

int chm_generate(chm_stream *s, const void *prompt, size_t bytes, int64_t n, const chm_sampling *sampling,
                 int (*emit)(void *user, const void *text, size_t bytes), void *user, chm_generate_result *result) {
    const chm_model *m = s->model;
    chm_sampler sampler = {0};
    chm_sampling defaults;
    int32_t *ids = NULL;
    int64_t count = 0;
    uint8_t *text = NULL;
    const float *logits = NULL;
    chm_generate_result done = {.size = sizeof(done)};

    if (result != NULL && result->size != sizeof(*result))
        return chm_fail(CHM_E_CONFIG, "chm_generate_result has size %u, this library expects %zu", result->size,
                        sizeof(*result));
    if (n < 0) return chm_fail(CHM_E_CONFIG, "%lld tokens to generate: 0 (the card's number) or more", (long long)n);
    if (n == 0) n = (int64_t)card_number(m, "generation.max_new_tokens", 256);
    if (sampling == NULL) {
        chm_sampling_defaults(m, &defaults);
        sampling = &defaults;
    }
    int status = chm_sampler_init(&sampler, &s->runtime->kernels.kernels, sampling, m->config->vocab);
    if (status != CHM_OK) return status;
    chm_sampler_mask(&sampler, m->config->pad);
    /* ids that the card's vocabulary has and the tokenizer has not stand for nothing */
    for (int64_t id = m->tokenizer->ops->vocab_size(m->tokenizer->self); id < m->config->vocab; id++)
        chm_sampler_mask(&sampler, (int32_t)id);
    const int32_t end = chm_end_of_text(m);
    size_t text_size = 4096;
    chm_utf8 unfinished = {.count = 0};
    bool stop = false;
    enum { HELD = 4 }; /* room before a token's bytes for those held back */
    if ((text = chm_alloc(text_size + HELD)) == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }

    double start = chm_now();
    if ((status = encode_prompt(s, prompt, bytes, &ids, &count)) != CHM_OK) goto out;
    if (count == 0 && !s->have_logits) {
        status = chm_fail(CHM_E_CONFIG, "there is nothing to go on from: give a prompt of at least one byte");
        goto out;
    }
    if (count == 0) logits = s->logits;
    /* in pieces of one pass, which changes no byte, so that a reader who has had enough is heard */
    bool stopped = false;
    for (int64_t at = 0; at < count && !stopped; at += CHM_PASS_ROWS) {
        const int64_t piece = CHM_MIN(CHM_PASS_ROWS, count - at);
        const bool last = at + piece == count;
        if ((status = chm_stream_feed(s, ids + at, piece, last ? &logits : NULL)) != CHM_OK) goto out;
        done.prompt_tokens += piece;
        stopped = !last && emit != NULL && emit(user, "", 0) != 0;
    }
    if (stopped) {
        done.prefill_seconds = chm_now() - start;
        goto out;
    }
    for (int64_t i = CHM_MAX(0, count - sampling->repeat_last); i < count; i++) chm_sampler_saw(&sampler, ids[i]);
    done.prefill_seconds = chm_now() - start;

    start = chm_now();
    while (done.tokens < n) {
        int32_t id = -1;
        sampler.allowed = s->allowed.count > 0 ? s->allow : NULL;
        if ((status = chm_sampler_draw(&sampler, logits, s->state.position, &id)) != CHM_OK) goto out;
        if (id == end) {
            done.ended = true;
            break;
        }
        int64_t length = chm_decode(m, id, text + HELD, text_size);
        if (length > (int64_t)text_size) { /* a token longer than any seen: grows rarely */
            chm_free(text);
            text_size = (size_t)length;
            if ((text = chm_alloc(text_size + HELD)) == NULL) {
                status = CHM_E_MEMORY;
                goto out;
            }
            length = chm_decode(m, id, text + HELD, text_size);
        }
        if (length < 0) {
            status = CHM_E_DATA;
            goto out;
        }
        done.tokens++;
        const size_t whole = chm_utf8_take(&unfinished, text + HELD, (size_t)length, text);
        stop = emit != NULL && whole > 0 && emit(user, text, whole) != 0;
        chm_sampler_saw(&sampler, id);
        /* the last token is read too, so that the stream stands after all it wrote */
        if ((status = chm_stream_feed(s, &id, 1, &logits)) != CHM_OK) goto out;
        if (stop) break;
    }
    if (emit != NULL && !stop && unfinished.count > 0) {
        const size_t rest = chm_utf8_flush(&unfinished, text);
        emit(user, text, rest);
    }
    done.decode_seconds = chm_now() - start;
out:
    if (result != NULL) *result = done;
    chm_free(text);
    chm_free(ids);
    chm_sampler_finish(&sampler);
    return status;
}
