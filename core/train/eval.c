/* eval.c: the score of files under a model, by the inference path, in constant memory. */
#include "train/train.h"
#include "model/runtime.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_SPLIT = 1 << 16 }; /* rows per pass; more is clamped, since nothing depends on it */

typedef struct row_scores {
    const struct chm_kernels *kernels;
    const chm_tensor *logits;
    const int32_t *target; /* -1: not counted */
    int64_t vocab;
    double *nats;
    bool *right; /* the target is the likeliest token, the first of equals */
} row_scores;

static void score_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const row_scores *s = arg;
    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        const float *row = s->logits->data + r * s->logits->width;
        if (s->target[r] < 0) continue;
        s->nats[r] = (double)s->kernels->logsumexp(row, s->vocab) - (double)row[s->target[r]];
        int64_t best = 0;
        for (int64_t i = 1; i < s->vocab; i++)
            if (row[i] > row[best]) best = i;
        s->right[r] = best == s->target[r];
    }
}

/* The last entry has what is longer than all others. */
static int length_class(int64_t length) {
    int k = 0;
    while (k < CHM_EVAL_LENGTHS - 1 && length > INT64_C(1) << k) k++;
    return k;
}

/* What a pass works on, all of `split` rows. */
typedef struct scratch {
    int32_t *token; /* one more: the row's target follows it */
    int32_t *target, *parent;
    int64_t *position;
    double *nats;
    bool *right;
} scratch;

/* One document from a fresh state. `total` gains its nats, row after row, whatever the split is. */
static int score_document(const chm_score_request *q, chm_context *context, chm_stream_state *stream, chm_text *text,
                          int64_t split, const scratch *x, chm_score *total, int64_t done_bytes, int64_t all_bytes) {
    const int64_t vocab = q->model->config->vocab;
    const int32_t mark = q->tokenizer->end_of_text(q->tokenizer_self);
    const bool answers_only = q->rules.answers_only;
    chm_stream_state *streams[1] = {stream};
    bool closed = !q->rules.lines || mark < 0;
    chm_stream_reset(stream);
    /* the token that is read next; its successors are predicted */
    int64_t got = chm_text_take(text, x->token, 1);
    if (got < 0) return chm_failed(CHM_E_DATA);
    for (int64_t at = 0; got > 0;) {
        int64_t n = chm_text_take(text, x->token + 1, split);
        if (n < 0) return chm_failed(CHM_E_DATA);
        for (int64_t r = 0; r < n; r++) x->target[r] = chm_counts(answers_only, x->token[r]) ? x->token[r + 1] : -1;
        if (n < split && !closed) {
            /* a line's end is foretold in place of its newline, but no answer */
            x->target[n] = answers_only ? -1 : mark;
            x->token[++n] = mark;
            closed = true;
        }
        if (n == 0) break;
        for (int64_t r = 0; r < n; r++) {
            x->parent[r] = r == 0 ? ~0 : (int32_t)(r - 1);
            x->position[r] = at + r;
        }
        const chm_rows rows = {.count = n, .parent = x->parent, .position = x->position};
        int status = chm_context_begin(context, &rows, streams, 1, CHM_PASS_COMMIT);
        if (status != CHM_OK) return status;
        const chm_tensor *logits = chm_model_forward(q->model, context, x->token, NULL, NULL, &total->depth);
        if ((status = chm_context_status(context)) != CHM_OK) return status;
        if (logits == NULL || logits->rows != n || logits->width < vocab)
            return chm_fail(CHM_E_INTERNAL, "the model gave no logits for %lld rows", (long long)n);
        row_scores scores = {q->kernels, logits, x->target, vocab, x->nats, x->right};
        chm_parallel(q->pool, n, 16, score_rows, &scores);
        for (int64_t r = 0; r < n; r++) {
            if (x->target[r] < 0) continue;
            total->nats += x->nats[r];
            total->counted++;
            total->right += x->right[r];
            if (!answers_only) continue;
            /* bytes of the document before the '=' */
            chm_eval_length *l = &total->length[length_class(at + r - (mark >= 0))];
            l->answers++;
            l->right += x->right[r];
            l->nats += x->nats[r];
        }
        for (int64_t r = 0; q->logits != NULL && r < n; r++)
            if (fwrite(logits->data + r * logits->width, sizeof(float), (size_t)vocab, q->logits) != (size_t)vocab)
                return chm_fail_system("cannot write logits");
        if (!isfinite(total->nats))
            return chm_fail(CHM_E_DATA,
                            "%s: token %lld has no finite probability: the model is damaged or its training diverged "
                            "(chimera inspect --verify says which)",
                            text->in.path, (long long)at);
        total->tokens += n;
        at += n;
        stream->position = at;
        x->token[0] = x->token[n];
        if (q->progress != NULL) q->progress(q->user, done_bytes + chm_text_bytes_taken(text), all_bytes);
        if (q->stop != NULL && *q->stop != 0)
            return chm_fail(CHM_E_INTERRUPTED, "%s: evaluation stopped after %lld tokens", text->in.path,
                            (long long)total->tokens);
    }
    total->documents++;
    return CHM_OK;
}

int chm_score_files(const chm_score_request *q, chm_score *out) {
    const int64_t split = q->split > 0 ? CHM_MIN(q->split, MOST_SPLIT) : CHM_SCORE_SPLIT;
    chm_context *context = NULL;
    chm_stream_state stream = {0};
    chm_text text = {0};
    scratch x = {0};
    int64_t skipped = 0;
    int status = CHM_OK, more;
    memset(out, 0, sizeof *out);
    if (q->count == 0) return chm_fail(CHM_E_CONFIG, "no data: name at least one file of text");
    /* all of them first: a bad name should not cost the time of those before it */
    for (uint32_t i = 0; i < q->count; i++) {
        if ((status = chm_contents_open(&text.in, q->files[i], false)) != CHM_OK) return status;
        out->total_bytes += text.in.file_bytes;
        chm_contents_close(&text.in);
    }
    if (q->rules.part == CHM_PART_HELD) out->total_bytes = (int64_t)((double)out->total_bytes * q->rules.holdout) + 1;
    if (q->expected_bytes > 0) out->total_bytes = q->expected_bytes;
    const int64_t most = q->limit_bytes > 0 ? q->limit_bytes : INT64_MAX, all = CHM_MIN(most, out->total_bytes);
    x.token = chm_alloc((size_t)(split + 1) * sizeof *x.token);
    x.target = chm_alloc((size_t)split * sizeof *x.target);
    x.parent = chm_alloc((size_t)split * sizeof *x.parent);
    x.position = chm_alloc((size_t)split * sizeof *x.position);
    x.nats = chm_alloc((size_t)split * sizeof *x.nats);
    x.right = chm_alloc((size_t)split * sizeof *x.right);
    if (x.token == NULL || x.target == NULL || x.parent == NULL || x.position == NULL || x.nats == NULL ||
        x.right == NULL) {
        status = CHM_E_MEMORY;
        goto out;
    }
    status = chm_context_create(q->kernels, q->pool, &q->model->layout, (float)q->model->config->norm_eps, &context);
    if (status != CHM_OK) goto out;
    if ((status = chm_stream_init(&stream, &q->model->layout)) != CHM_OK) goto out;
    for (uint32_t i = 0; i < q->count && out->bytes < most; i++) {
        const int64_t limit = q->limit_bytes > 0 ? most - out->bytes : 0;
        status = chm_text_open(&text, q->files[i], q->tokenizer, q->tokenizer_self, &q->rules, limit, false);
        if (status != CHM_OK) goto out;
        while ((more = chm_text_next(&text)) > 0) {
            status = score_document(q, context, &stream, &text, split, &x, out, out->bytes, all);
            if (status != CHM_OK) goto out;
        }
        if (more < 0) {
            status = chm_failed(CHM_E_DATA);
            goto out;
        }
        out->bytes += text.bytes;
        skipped += text.skipped;
        chm_text_close(&text);
    }
    if (out->bytes < most) out->total_bytes = out->bytes;
    if (out->documents == 0 && q->rules.part == CHM_PART_HELD) {
        status = chm_fail(CHM_E_DATA,
                          "%s: training.holdout = %g of %lld document%s holds out none, so there is nothing to score: "
                          "give the data that the model was trained on, or score all of this without --holdout",
                          q->files[0], q->rules.holdout, (long long)skipped, skipped == 1 ? "" : "s");
        goto out;
    }
    if (out->tokens == 0) {
        status = chm_fail(CHM_E_DATA, "%s: the data is one token long; there is nothing to predict", q->files[0]);
        goto out;
    }
    if (out->counted == 0) {
        status = chm_fail(CHM_E_DATA,
                          "%s: no byte follows a '=', and with training.loss_on = \"answers\" only those count: give "
                          "data with answers, or set training.loss_on=all",
                          q->files[0]);
        goto out;
    }
    /* an answer is one byte */
    out->bits_per_byte = out->nats / log(2.0) / (double)(q->rules.answers_only ? out->counted : out->bytes);
    out->arena_bytes = chm_context_bytes(context);
out:
    chm_text_close(&text);
    if (stream.blob != NULL) chm_stream_finish(&stream);
    chm_context_destroy(context);
    chm_free(x.token);
    chm_free(x.target);
    chm_free(x.parent);
    chm_free(x.position);
    chm_free(x.nats);
    chm_free(x.right);
    return status;
}

int chm_eval(chm_runtime *r, chm_model *m, const chm_eval_options *options, chm_eval_result *result) {
    chm_writer logits = {0};
    chm_sources sources = {0};
    chm_score score;
    int status;
    if (options->size != sizeof *options || (result != NULL && result->size != sizeof *result))
        return chm_fail(CHM_E_CONFIG,
                        "chm_eval_options and _result have size %u and %u, this library expects %zu and %zu",
                        options->size, result ? result->size : 0, sizeof *options, sizeof *result);
    if (options->split < 0 || options->limit_bytes < 0)
        return chm_fail(CHM_E_CONFIG, "split %lld and limit %lld: both are 1 or more, or 0 for the default",
                        (long long)options->split, (long long)options->limit_bytes);
    const double start = chm_now();
    const chm_train_config *train = chm_card_train(m->card);
    if (options->holdout && !(train->holdout > 0))
        return chm_fail(CHM_E_CONFIG,
                        "%s: its card holds out nothing (training.holdout is 0): say by --set training.holdout=0.01 "
                        "which share was, or score all of the data without --holdout",
                        m->path);
    if ((status = chm_sources_find(&sources, options->data, options->data_count, NULL)) != CHM_OK) return status;
    for (uint32_t i = 0; options->logits != NULL && i <= sources.count; i++) {
        const char *input = i < sources.count ? sources.path[i] : m->path;
        if (!input || !chm_same_file(options->logits, input)) continue;
        status = chm_fail(CHM_E_CONFIG, "%s: the logits would replace %s, which is read; give them another name",
                          options->logits, i < sources.count ? "the data" : "the model");
        goto out;
    }
    if (options->logits != NULL && (status = chm_writer_open(&logits, options->logits)) != CHM_OK) goto out;
    const chm_score_request request = {
        .model = m,
        .kernels = &r->kernels.kernels,
        .pool = r->pool,
        .tokenizer = m->tokenizer->ops,
        .tokenizer_self = m->tokenizer->self,
        .files = (const char *const *)sources.path,
        .count = sources.count,
        .split = options->split,
        .limit_bytes = options->limit_bytes,
        .rules = chm_corpus_rules_of(train, options->holdout ? CHM_PART_HELD : CHM_PART_ALL),
        .logits = logits.file,
        .progress = options->progress,
        .user = options->user,
        .stop = options->stop,
    };
    if ((status = chm_score_files(&request, &score)) != CHM_OK) goto out;
    if (options->logits != NULL && (status = chm_writer_commit(&logits)) != CHM_OK) goto out;
    if (result != NULL) {
        result->bits_per_byte = score.bits_per_byte;
        result->nats = score.nats;
        result->bytes = score.bytes;
        result->tokens = score.tokens;
        result->documents = score.documents;
        if (request.rules.answers_only) {
            result->answers = score.counted;
            result->right = score.right;
            memcpy(result->length, score.length, sizeof result->length);
        }
        result->loop_count_mean = score.depth.rows > 0 ? (double)score.depth.sum / (double)score.depth.rows : 0;
        result->seconds = chm_now() - start;
        result->tokens_per_second = result->seconds > 0 ? (double)score.tokens / result->seconds : 0;
    }
out:
    chm_sources_finish(&sources);
    chm_writer_abandon(&logits);
    return status;
}
