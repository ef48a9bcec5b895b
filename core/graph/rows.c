/*
 * Rows taken out and put back. Several rows may go to one place, and their order there is part of the result: work is
 * cut by columns where rows meet, and by rows where they do not.
 */
#include "graph/context.h"
#include <string.h>

enum { ROW_PIECE = 64, COLUMN_PIECE = 64 };

static bool rows_exist(chm_context *c, const char *what, const int32_t *row, int64_t rows, int64_t limit) {
    for (int64_t i = 0; i < rows; i++)
        if (row[i] < 0 || row[i] >= limit) {
            chm_refuse(c, CHM_E_PLUGIN, "%s: %s names row %d of %lld", c->part, what, row[i], (long long)limit);
            return false;
        }
    return true;
}

/* ---- gather ---- */

struct gather_job {
    const int32_t *row;
    chm_tensor *x, *y;
    float *dx;
};

static void gather_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct gather_job *j = arg;
    const int64_t width = j->x->width;
    for (int64_t i = begin; i < end; i++)
        memcpy(j->y->data + i * width, j->x->data + j->row[i] * width, (size_t)width * sizeof(float));
}

static void gather_backward_columns(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct gather_job *j = arg;
    const int64_t width = j->x->width;
    for (int64_t i = 0; i < j->y->rows; i++) {
        const float *dy = j->y->grad + i * width;
        float *dx = j->dx + j->row[i] * width;
        for (int64_t k = begin; k < end; k++) dx[k] += dy[k];
    }
}

static void gather_backward(chm_context *c, chm_node *n) {
    struct gather_job *j = n->data;
    j->dx = chm_grad(c, j->x);
    if (j->dx) chm_spread(c, j->x->width, COLUMN_PIECE, (double)j->y->rows * 0.5, gather_backward_columns, j);
}

chm_tensor *chm_op_gather_rows(chm_graph *g, chm_tensor *x, const int32_t *row, int64_t rows) {
    chm_context *c = chm_context_of(g);
    if (!x) return NULL;
    if (rows < 0 || (rows > 0 && !row))
        return chm_refuse(c, CHM_E_PLUGIN, "%s: gather_rows of %lld rows and no list of them", c->part,
                          (long long)rows);
    if (!rows_exist(c, "gather_rows", row, rows, x->rows)) return NULL;
    struct gather_job *j = chm_take_zero(c, sizeof *j);
    chm_tensor *y = chm_tensor_new(c, rows, x->width);
    if (!j || !y) return NULL;
    *j = (struct gather_job){.row = row, .x = x, .y = y};
    chm_spread(c, rows, ROW_PIECE, (double)x->width * 0.2, gather_forward, j);
    chm_node *n = chm_record(c, y, &x, 1, NULL, gather_backward);
    if (n) n->data = j;
    return y;
}

/* ---- scatter ---- */

struct scatter_job {
    chm_tensor *base, *weight, *y;
    chm_tensor **part; /* [parts] */
    int64_t *first;    /* [parts + 1]: where a part begins in row and column */
    int64_t parts;
    const int32_t *row, *column;
    float *dbase, **dpart, *dot;
};

static float weight_of(const struct scatter_job *j, int64_t i) {
    return j->weight ? j->weight->data[j->row[i] * j->weight->width + j->column[i]] : 1.0f;
}

static void scatter_forward(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct scatter_job *j = arg;
    const int64_t width = j->y->width;
    const size_t bytes = (size_t)(end - begin) * sizeof(float);
    for (int64_t r = 0; r < j->y->rows; r++) {
        float *y = j->y->data + r * width + begin;
        if (j->base)
            memcpy(y, j->base->data + r * width + begin, bytes);
        else
            memset(y, 0, bytes);
    }
    for (int64_t p = 0; p < j->parts; p++)
        for (int64_t i = j->first[p]; i < j->first[p + 1]; i++) {
            const float *from = j->part[p]->data + (i - j->first[p]) * width, w = weight_of(j, i);
            float *y = j->y->data + j->row[i] * width;
            for (int64_t k = begin; k < end; k++) y[k] += w * from[k];
        }
}

/* Rows of the parts, counted through: their gradients, and what each owes to its weight. */
static void scatter_backward_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct scatter_job *j = arg;
    const int64_t width = j->y->width;
    int64_t p = 0;
    for (int64_t i = begin; i < end; i++) {
        while (i >= j->first[p + 1]) p++;
        const float *dy = j->y->grad + j->row[i] * width, w = weight_of(j, i);
        const int64_t at = (i - j->first[p]) * width;
        float *d = j->dpart[p];
        for (int64_t k = 0; d && k < width; k++) d[at + k] += w * dy[k];
        if (!j->dot) continue;
        const float *x = j->part[p]->data + at;
        double sum[4] = {0};
        int64_t k = 0;
        for (; k + 4 <= width; k += 4)
            for (int lane = 0; lane < 4; lane++) sum[lane] += (double)dy[k + lane] * (double)x[k + lane];
        for (; k < width; k++) sum[0] += (double)dy[k] * (double)x[k];
        j->dot[i] = (float)((sum[0] + sum[2]) + (sum[1] + sum[3]));
    }
}

static void scatter_backward_base(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    const struct scatter_job *j = arg;
    for (int64_t i = begin; i < end; i++) j->dbase[i] += j->y->grad[i];
}

static void scatter_backward(chm_context *c, chm_node *n) {
    struct scatter_job *j = n->data;
    const int64_t rows = j->first[j->parts], numbers = j->y->rows * j->y->width;
    float *dweight = j->weight ? chm_grad(c, j->weight) : NULL;
    j->dbase = j->base ? chm_grad(c, j->base) : NULL;
    j->dpart = chm_take(c, (size_t)j->parts * sizeof *j->dpart);
    j->dot = dweight ? chm_take(c, (size_t)rows * sizeof *j->dot) : NULL;
    for (int64_t p = 0; p < j->parts && c->status == CHM_OK; p++) j->dpart[p] = chm_grad(c, j->part[p]);
    if (c->status) return;
    if (j->dbase) chm_spread(c, numbers, 8192, 0.3, scatter_backward_base, j);
    chm_spread(c, rows, ROW_PIECE, (double)j->y->width, scatter_backward_rows, j);
    for (int64_t i = 0; dweight && i < rows; i++) dweight[j->row[i] * j->weight->width + j->column[i]] += j->dot[i];
}

chm_tensor *chm_op_scatter_rows(chm_graph *g, chm_tensor *base, chm_tensor *const *part, int64_t parts,
                                const int32_t *row, chm_tensor *weight, const int32_t *column) {
    chm_context *c = chm_context_of(g);
    const chm_tensor *like = base ? base : weight; /* of whose rows there are as many */
    for (int64_t p = 0; p < parts; p++)
        if (!part[p]) return NULL;
    if (parts < 1 || !like || (base && weight && base->rows != weight->rows))
        return chm_refuse(c, CHM_E_PLUGIN, "%s: scatter_rows needs a part, and a base or weights with as many rows",
                          c->part);
    struct scatter_job *j = chm_take_zero(c, sizeof *j);
    int64_t *first = chm_take(c, (size_t)(parts + 1) * sizeof *first);
    chm_tensor **kept = chm_take(c, (size_t)parts * sizeof *kept);
    if (!j || !first || !kept) return NULL;
    first[0] = 0;
    const int64_t width = part[0]->width;
    for (int64_t p = 0; p < parts; p++) {
        kept[p] = part[p];
        first[p + 1] = first[p] + part[p]->rows;
        if (part[p]->width != width || (base && base->width != width))
            return chm_refuse(c, CHM_E_CONFIG, "%s: scatter_rows of %lld columns among %lld", c->part,
                              (long long)part[p]->width, (long long)(base ? base->width : width));
    }
    if (!rows_exist(c, "scatter_rows", row, first[parts], like->rows)) return NULL;
    for (int64_t i = 0; weight && i < first[parts]; i++)
        if (column[i] < 0 || column[i] >= weight->width)
            return chm_refuse(c, CHM_E_PLUGIN, "%s: scatter_rows names column %d of %lld weights", c->part, column[i],
                              (long long)weight->width);
    chm_tensor *y = chm_tensor_new(c, like->rows, width);
    if (!y) return NULL;
    *j = (struct scatter_job){.base = base,
                              .weight = weight,
                              .y = y,
                              .part = kept,
                              .first = first,
                              .parts = parts,
                              .row = row,
                              .column = column};
    chm_spread(c, width, COLUMN_PIECE, (double)(first[parts] + y->rows) * 0.3, scatter_forward, j);
    /* the tape asks whether anyone wants a gradient: of the parts one is enough to say so */
    chm_tensor *in[3];
    int inputs = 0;
    if (base) in[inputs++] = base;
    if (weight) in[inputs++] = weight;
    in[inputs++] = kept[0];
    for (int64_t p = 1; p < parts; p++)
        if (kept[p]->flags & CHM_TENSOR_GRAD) in[inputs - 1] = kept[p];
    chm_node *n = chm_record(c, y, in, inputs, NULL, scatter_backward);
    if (n) n->data = j;
    return y;
}
