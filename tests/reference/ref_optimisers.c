#include "ref_optimisers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void ref_adamw(double *w, const double *g, double *m, double *v, int64_t n, double lr, double beta1, double beta2,
               double eps, double decay, int64_t t) {
    for (int64_t i = 0; i < n; i++) {
        m[i] = beta1 * m[i] + (1 - beta1) * g[i];
        v[i] = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
        const double mean = m[i] / (1 - pow(beta1, (double)t)), square = v[i] / (1 - pow(beta2, (double)t));
        w[i] = w[i] - lr * decay * w[i] - lr * mean / (sqrt(square) + eps);
    }
}

void ref_sgd(double *w, const double *g, double *m, int64_t n, double lr, double momentum, bool nesterov,
             double decay) {
    for (int64_t i = 0; i < n; i++) {
        double by = g[i];
        if (m) {
            m[i] = momentum * m[i] + g[i];
            by = nesterov ? g[i] + momentum * m[i] : m[i];
        }
        w[i] = w[i] - lr * decay * w[i] - lr * by;
    }
}

/* c = a b, or a b' */
static void product(const double *a, const double *b, int64_t m, int64_t n, int64_t k, bool turned, double *c) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t p = 0; p < k; p++) sum += a[i * k + p] * (turned ? b[j * k + p] : b[p * n + j]);
            c[i * n + j] = sum;
        }
}

void ref_muon(double *w, const double *g, double *m, int64_t out, int64_t in, double lr, double momentum, bool nesterov,
              int64_t iterations, double decay) {
    const int64_t n = out * in;
    double *x = malloc((size_t)n * sizeof *x), *fifth = malloc((size_t)n * sizeof *x);
    double *third = malloc((size_t)n * sizeof *x), *gram = malloc((size_t)(out * out) * sizeof *gram);
    if (!x || !fifth || !third || !gram) abort();
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        m[i] = momentum * m[i] + g[i];
        x[i] = nesterov ? g[i] + momentum * m[i] : m[i];
        sum += x[i] * x[i];
    }
    for (int64_t i = 0; i < n; i++) x[i] /= sqrt(sum) + 1e-7;
    for (int64_t turn = 0; turn < iterations; turn++) {
        product(x, x, out, out, in, true, gram);
        product(gram, x, out, in, out, false, third);
        product(gram, third, out, in, out, false, fifth);
        for (int64_t i = 0; i < n; i++) x[i] = 3.4445 * x[i] - 4.7750 * third[i] + 2.0315 * fifth[i];
    }
    for (int64_t i = 0; i < n; i++)
        w[i] = w[i] - lr * decay * w[i] - lr * 0.2 * sqrt((double)(out > in ? out : in)) * x[i];
    free(x);
    free(fifth);
    free(third);
    free(gram);
}

void ref_singular_values(double *x, int64_t rows, int64_t columns, double *value) {
    double largest = 1;
    for (int sweep = 0; sweep < 60 && largest > 1e-14; sweep++) {
        largest = 0;
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = i + 1; j < rows; j++) {
                double a = 0, b = 0, c = 0, *p = x + i * columns, *q = x + j * columns;
                for (int64_t k = 0; k < columns; k++) {
                    a += p[k] * p[k];
                    b += q[k] * q[k];
                    c += p[k] * q[k];
                }
                if (c == 0) continue;
                largest = fmax(largest, fabs(c) / sqrt(a * b));
                const double z = (b - a) / (2 * c), t = (z < 0 ? -1 : 1) / (fabs(z) + sqrt(1 + z * z));
                const double cosine = 1 / sqrt(1 + t * t), sine = cosine * t;
                for (int64_t k = 0; k < columns; k++) {
                    const double u = p[k], v = q[k];
                    p[k] = cosine * u - sine * v;
                    q[k] = sine * u + cosine * v;
                }
            }
    }
    for (int64_t i = 0; i < rows; i++) {
        double sum = 0;
        for (int64_t k = 0; k < columns; k++) sum += x[i * columns + k] * x[i * columns + k];
        value[i] = sqrt(sum);
    }
}
