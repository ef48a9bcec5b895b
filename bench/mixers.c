/*
 * mixers: how fast each mixer trains, as a whole layer: projections, convolution, gates, norm, output.
 *
 *   mixers [options]       mixers --help lists them
 *
 * One document of --rows rows goes forward and backward: every gradient of inputs and parameters, no optimiser. In
 * turns, so that what else the machine does meets all alike; medians of the turns are printed. The chunk form is what
 * trains; the step form is what inference runs, here with the same backward pass behind it, for there is no other. A
 * turn runs everything once unmeasured. Rounding of ternary matrices is left out: it is per step, not per row.
 *
 * bench/mixers.py holds the same layers of public PyTorch code beside this.
 */
#include "base/table.h"
#include "model/layer_alone.h"
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct mixer {
    const char *name, *plugin, *set; /* set: of the card, or NULL. %lld: the rows */
    bool ask;                        /* runs only when named */
} mixers[] = {
    {"gd", "gd", NULL, false},
    {"efla", "gd", "gd.efla=true", false},
    {"xlstm", "xlstm", NULL, false},
    {"slstm", "xlstm", "xlstm.variant=slstm", false},
    {"titans", "titans", NULL, false},
    {"titans-window", "titans", "titans.core=window_softmax", true},
    {"sk", "sk", NULL, false},
    {"attn", "attn", NULL, false},
    {"attn-full", "attn", "attention.window=%lld", false}, /* sees every row before it */
};
enum { MIXERS = CHM_ARRAY_COUNT(mixers), MOST_SETS = 32 };

enum { PLAIN, TERNARY, QUANTISATIONS };
static const char *const quantisation_name[] = {"none", "ternary"}, *const quantisation_value[] = {"none", "bitnet"};
enum { CHUNK, STEP, FORMS };
static const char *const form_name[] = {"chunk", "step"};

static struct {
    int64_t rows, heads, head_dim, threads, repeats;
    bool mixer[MIXERS], quantisation[QUANTISATIONS], form[FORMS];
    const char *set[MOST_SETS];
    int sets;
    bool json;
    chm_output format;
} want = {.rows = 4096, .heads = 8, .head_dim = 64, .repeats = 5};

struct result {
    double *forward, *backward, *both, *cpu; /* [repeats], seconds; cpu: of forward and backward, all threads */
    int64_t parameters;
};
enum { TIMES = 4 };
static struct result results[MIXERS][QUANTISATIONS][FORMS];

static double cpu_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One pass of the rows, timed, as turn `repeat`. */
static int pass(const chm_layer_alone *l, chm_context *c, chm_stream_state *stream, int form, const float *x,
                const float *dy, const struct result *into, int64_t repeat) {
    int32_t *parent = chm_alloc((size_t)want.rows * sizeof *parent);
    int64_t *position = chm_alloc((size_t)want.rows * sizeof *position);
    int status = parent && position ? CHM_OK : CHM_E_MEMORY;
    for (int64_t r = 0; r < want.rows && !status; r++) {
        parent[r] = r ? (int32_t)(r - 1) : ~0;
        position[r] = r;
    }
    const int64_t width = l->model->config->width;
    const chm_rows rows = {want.rows, parent, position};
    const double start = chm_now(), cpu = cpu_now();
    double middle = start;
    chm_tensor *y = NULL;
    if (!status)
        status = chm_context_begin(c, &rows, &stream, 1,
                                   CHM_PASS_TRAIN | CHM_PASS_CARRY | (form == STEP ? CHM_PASS_STEP : 0));
    if (!status) {
        y = chm_layer_alone_forward(l, c, chm_input(c, want.rows, width, x, CHM_TENSOR_GRAD));
        status = chm_context_status(c);
        middle = chm_now();
    }
    if (!status) {
        chm_graph *g = chm_context_graph(c);
        float *grad = g->ops->grad(g, y);
        if (grad) memcpy(grad, dy, (size_t)(want.rows * width) * sizeof *grad);
        status = chm_backward(c);
    }
    into->forward[repeat] = middle - start;
    into->backward[repeat] = chm_now() - middle;
    into->both[repeat] = into->forward[repeat] + into->backward[repeat];
    into->cpu[repeat] = cpu_now() - cpu;
    chm_free(parent);
    chm_free(position);
    return status;
}

/* One turn of one mixer. */
static int turn(chm_runtime *r, int m, int q, int64_t repeat) {
    char heads[64], dim[64], method[64], own[128];
    const char *set[MOST_SETS + 4];
    int sets = 0;
    snprintf(heads, sizeof heads, "num_heads=%lld", (long long)want.heads);
    snprintf(dim, sizeof dim, "head_dim=%lld", (long long)want.head_dim);
    snprintf(method, sizeof method, "quantization.method=%s", quantisation_value[q]);
    set[sets++] = heads;
    set[sets++] = dim;
    set[sets++] = method;
    if (mixers[m].set) {
        const char *number = strstr(mixers[m].set, "%lld");
        if (number)
            snprintf(own, sizeof own, "%.*s%lld", (int)(number - mixers[m].set), mixers[m].set, (long long)want.rows);
        set[sets++] = number ? own : mixers[m].set;
    }
    for (int i = 0; i < want.sets; i++) set[sets++] = want.set[i];
    const chm_overlay overlay = {.size = sizeof overlay, .set_count = (uint32_t)sets, .set = set, .no_environment = 1};
    const chm_layer_options options = {.size = sizeof options, .plugin = mixers[m].plugin, .overlay = &overlay};
    const int64_t width = want.heads * want.head_dim, n = want.rows * width;
    chm_layer_alone l = {0};
    chm_context *c = NULL;
    chm_stream_state stream = {0};
    float *x = chm_alloc((size_t)n * sizeof *x), *dy = chm_alloc((size_t)n * sizeof *dy);
    int status = x && dy ? CHM_OK : CHM_E_MEMORY;
    if (!status) {
        chm_normals(1, CHM_RANDOM_TEST, 1, n, x);
        chm_normals(1, CHM_RANDOM_TEST, 2, n, dy);
        status = chm_layer_alone_open(&l, r, &options, NULL, width, 0, false);
    }
    if (!status) status = chm_model_randomise(l.model, 1);
    if (!status) status = chm_model_quantise(l.model, &r->kernels.kernels, r->pool);
    if (!status)
        status =
            chm_context_create(&r->kernels.kernels, r->pool, &l.model->layout, (float)l.model->config->norm_eps, &c);
    if (!status) status = chm_stream_init(&stream, &l.model->layout);
    for (int form = 0; form < FORMS && !status; form++) {
        if (!want.form[form]) continue;
        struct result *into = &results[m][q][form];
        status = pass(&l, c, &stream, form, x, dy, into, repeat); /* warms up */
        if (!status) status = pass(&l, c, &stream, form, x, dy, into, repeat);
        into->parameters = 0;
        for (int i = 0; i < l.params; i++) into->parameters += l.param[i]->count;
    }
    chm_context_destroy(c);
    chm_stream_finish(&stream);
    chm_layer_alone_close(&l);
    chm_free(x);
    chm_free(dy);
    return status;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(double *of) {
    qsort(of, (size_t)want.repeats, sizeof *of, ascending);
    return (of[(want.repeats - 1) / 2] + of[want.repeats / 2]) / 2;
}

static void print_json(int threads) {
    const char *comma = "";
    printf("{\"rows\": %lld, \"heads\": %lld, \"head_dim\": %lld, \"threads\": %d, \"repeats\": %lld, \"mixers\": [",
           (long long)want.rows, (long long)want.heads, (long long)want.head_dim, threads, (long long)want.repeats);
    for (int m = 0; m < MIXERS; m++)
        for (int q = 0; q < QUANTISATIONS; q++)
            for (int f = 0; f < FORMS; f++) {
                struct result *one = &results[m][q][f];
                if (!want.mixer[m] || !want.quantisation[q] || !want.form[f]) continue;
                printf("%s\n  {\"mixer\": \"%s\", \"quantization\": \"%s\", \"form\": \"%s\", \"parameters\": %lld, "
                       "\"forward_seconds\": %.6f, \"backward_seconds\": %.6f, \"cpu_seconds\": %.6f, "
                       "\"rows_per_second\": %.1f}",
                       comma, mixers[m].name, quantisation_name[q], form_name[f], (long long)one->parameters,
                       median(one->forward), median(one->backward), median(one->cpu),
                       (double)want.rows / median(one->both));
                comma = ",";
            }
    printf("]}\n");
}

static int print_table(void) {
    chm_table t;
    chm_table_init(&t);
    static const char *const heads[] = {"mixer",       "quantization", "form",    "#parameters",
                                        "#forward ms", "#backward ms", "#CPU ms", "#rows/s"};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(heads); i++) chm_table_column(&t, heads[i]);
    for (int m = 0; m < MIXERS; m++)
        for (int q = 0; q < QUANTISATIONS; q++)
            for (int f = 0; f < FORMS; f++) {
                struct result *one = &results[m][q][f];
                if (!want.mixer[m] || !want.quantisation[q] || !want.form[f]) continue;
                chm_table_cell(&t, "%s", mixers[m].name);
                chm_table_cell(&t, "%s", quantisation_name[q]);
                chm_table_cell(&t, "%s", form_name[f]);
                chm_table_cell(&t, "%lld", (long long)one->parameters);
                chm_table_cell(&t, "%.1f", median(one->forward) * 1e3);
                chm_table_cell(&t, "%.1f", median(one->backward) * 1e3);
                chm_table_cell(&t, "%.1f", median(one->cpu) * 1e3);
                chm_table_cell(&t, "%.0f", (double)want.rows / median(one->both));
            }
    const int status = chm_table_print(&t, want.format, stdout);
    chm_table_finish(&t);
    return status;
}

/* ---- the command line ---- */

static void usage(FILE *to) {
    fprintf(to, "usage: mixers [options]\n\n"
                "  --mixers A,B          of");
    for (int m = 0; m < MIXERS; m++) fprintf(to, "%s%s", m ? ", " : " ", mixers[m].name);
    fprintf(to, "\n                        (all but titans-window)\n"
                "  --quantization A,B    of none, ternary (both)\n"
                "  --forms A,B           of chunk, step (both)\n"
                "  --rows N              4096\n"
                "  --heads N             8\n"
                "  --head-dim N          64; the layer is heads x head-dim wide\n"
                "  --threads N           as many as there are CPUs\n"
                "  --repeats N           5: turns that each has\n"
                "  --set KEY=VALUE       of the card; repeatable\n"
                "  -o, --output FORMAT   text, json, csv, md\n"
                "  -h, --help\n");
}

static void refuse(const char *option, const char *value, const char *wanted) {
    fprintf(stderr, "mixers: %s: '%s' is not %s; mixers --help lists what is\n", option, value, wanted);
    exit(2);
}

static int64_t number(const char *option, const char *text, int64_t most) {
    char *end;
    const long long n = strtoll(text, &end, 10);
    char wanted[64];
    snprintf(wanted, sizeof wanted, "a number from 1 to %lld", (long long)most);
    if (end == text || *end || n < 1 || n > most) refuse(option, text, wanted);
    return n;
}

/* Marks the names of a list that commas part; name(i) is NULL after the last. */
static void choose(const char *option, const char *list, const char *(*name)(int), bool *chosen) {
    for (int i = 0; name(i); i++) chosen[i] = false;
    for (const char *at = list;; at++) {
        const size_t length = strcspn(at, ",");
        int i = 0;
        while (name(i) && (strlen(name(i)) != length || strncmp(name(i), at, length) != 0)) i++;
        if (!name(i)) refuse(option, list, "a list of its names, with commas");
        chosen[i] = true;
        at += length;
        if (!*at) return;
    }
}
static const char *mixer_of(int i) { return i < MIXERS ? mixers[i].name : NULL; }
static const char *quantisation_of(int i) { return i < QUANTISATIONS ? quantisation_name[i] : NULL; }
static const char *form_of(int i) { return i < FORMS ? form_name[i] : NULL; }

static void set_format(const char *text) {
    static const struct {
        const char *name;
        chm_output format;
    } formats[] = {{"text", CHM_OUTPUT_TEXT}, {"csv", CHM_OUTPUT_CSV}, {"md", CHM_OUTPUT_MD}};
    want.json = strcmp(text, "json") == 0;
    for (size_t i = 0; i < CHM_ARRAY_COUNT(formats); i++)
        if (strcmp(text, formats[i].name) == 0) {
            want.format = formats[i].format;
            return;
        }
    if (!want.json) refuse("--output", text, "text, json, csv or md");
}

static void read_options(int argc, char **argv) {
    static const struct option options[] = {
        {"mixers", required_argument, NULL, 'm'},  {"quantization", required_argument, NULL, 'q'},
        {"forms", required_argument, NULL, 'f'},   {"rows", required_argument, NULL, 'r'},
        {"heads", required_argument, NULL, 'n'},   {"head-dim", required_argument, NULL, 'd'},
        {"threads", required_argument, NULL, 't'}, {"repeats", required_argument, NULL, 'R'},
        {"set", required_argument, NULL, 's'},     {"output", required_argument, NULL, 'o'},
        {"help", no_argument, NULL, 'h'},          {0},
    };
    for (int m = 0; m < MIXERS; m++) want.mixer[m] = !mixers[m].ask;
    for (int q = 0; q < QUANTISATIONS; q++) want.quantisation[q] = true;
    for (int f = 0; f < FORMS; f++) want.form[f] = true;
    for (int o; (o = getopt_long(argc, argv, "o:h", options, NULL)) != -1;) switch (o) {
        case 'm':
            choose("--mixers", optarg, mixer_of, want.mixer);
            break;
        case 'q':
            choose("--quantization", optarg, quantisation_of, want.quantisation);
            break;
        case 'f':
            choose("--forms", optarg, form_of, want.form);
            break;
        case 'r':
            want.rows = number("--rows", optarg, 1 << 20);
            break;
        case 'n':
            want.heads = number("--heads", optarg, 256);
            break;
        case 'd':
            want.head_dim = number("--head-dim", optarg, 256);
            break;
        case 't':
            want.threads = number("--threads", optarg, 256);
            break;
        case 'R':
            want.repeats = number("--repeats", optarg, 1000);
            break;
        case 's':
            if (want.sets == MOST_SETS) refuse("--set", optarg, "one too many");
            want.set[want.sets++] = optarg;
            break;
        case 'o':
            set_format(optarg);
            break;
        case 'h':
            usage(stdout);
            exit(0);
        default:
            usage(stderr);
            exit(2);
        }
    if (optind < argc) refuse("argument", argv[optind], "an option");
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    chm_runtime *r = NULL;
    const chm_runtime_options options = {.size = sizeof options, .threads = (int32_t)want.threads};
    int status = chm_runtime_create(&options, &r);
    double *times = chm_alloc((size_t)(MIXERS * QUANTISATIONS * FORMS * TIMES * want.repeats) * sizeof *times);
    if (!times) status = CHM_E_MEMORY;
    double *at = times;
    for (int m = 0; m < MIXERS && !status; m++)
        for (int q = 0; q < QUANTISATIONS; q++)
            for (int f = 0; f < FORMS; f++, at += TIMES * want.repeats)
                results[m][q][f] =
                    (struct result){at, at + want.repeats, at + 2 * want.repeats, at + 3 * want.repeats, 0};
    for (int64_t repeat = 0; repeat < want.repeats && !status; repeat++)
        for (int m = 0; m < MIXERS && !status; m++)
            for (int q = 0; q < QUANTISATIONS && !status; q++)
                if (want.mixer[m] && want.quantisation[q]) status = turn(r, m, q, repeat);
    if (!status && want.json) print_json(chm_runtime_threads(r));
    if (!status && !want.json) status = print_table();
    if (status) fprintf(stderr, "mixers: %s\n", chm_error());
    chm_runtime_destroy(r);
    chm_free(times);
    return status ? 1 : 0;
}
