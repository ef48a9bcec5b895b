/* test_ablate.c: studies: what a study file is refused for, what is solved for, and the statistics of reports. Cells as
 * processes are the matter of test_ablate.py. */
#include "train/ablate/ablate.h"
#include "train/ablate/statistics.h"

#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
/* after the standard headers */
#include <cmocka.h>

static char folder[256];
static chm_runtime *runtime;

static const char card[] =
    "{\"token_ids\": [256, 257], \"hidden_size\": 32, \"intermediate_size\": 64, \"num_hidden_layers\": 2,\n"
    " \"num_heads\": 2, \"head_dim\": 16, \"vocab_size\": 258,\n"
    " \"quantization\": {\"method\": \"bitnet\", \"embedding\": \"int8\"},\n"
    " \"backbone\": {\"layer_pattern\": \"gd\"}, \"gated_deltanet\": {\"state_size\": 16, \"chunk_size\": 16},\n"
    " \"tokenizer\": {\"type\": \"bytes\"},\n"
    " \"training\": {\"phases\": [{\"name\": \"pretrain\", \"tokens\": 1024, \"seq_len\": 32, \"batch_tokens\": "
    "256}]}}\n";

/* ---- helpers ---- */

static void write_file(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
    (void)st, (void)type, (void)walk;
    return remove(path);
}

static int set_up(void **state) {
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/chimera-ablate-XXXXXX", base && *base ? base : "/tmp");
    const chm_runtime_options options = {.size = sizeof options, .threads = 1, .verbosity = -1};
    if (mkdtemp(folder) == NULL || chm_runtime_create(&options, &runtime) != CHM_OK) return -1;
    write_file("card.json", card);
    write_file("text.txt", "the cat sat on the mat\nand then it ran\nover the hill and far away\n");
    write_file("empty.txt", "");
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    chm_runtime_destroy(runtime);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}

/* What chm_ablate() says of a study without running it; *json, unless NULL, is the caller's. */
static int look_at(const char *text, const char *set, json_t **json) {
    char path[512], *report = NULL;
    size_t bytes = 0;
    write_file("study.ini", text);
    snprintf(path, sizeof path, "%s/study.ini", folder);
    const chm_ablate_options o = {
        .size = sizeof o, .study = path, .dry_run = true, .set = &set, .set_count = set != NULL};
    FILE *out = open_memstream(&report, &bytes);
    assert_non_null(out);
    const int status = chm_ablate(runtime, &o, CHM_OUTPUT_JSON, out);
    assert_int_equal(fclose(out), 0);
    if (json != NULL) {
        *json = status == CHM_OK ? chm_json_load(report, bytes, NULL) : NULL;
        if (status == CHM_OK) assert_non_null(*json);
    }
    free(report);
    return status;
}

static const json_t *row(const json_t *json, size_t i) { return json_array_get(json_object_get(json, "cells"), i); }

/* ---- study files ---- */

#define STUDY    "[study]\ncard = card.json\ndata = text.txt\nheld_out = 0.2\nseeds = 1, 2\ntokens = 1K\n"
#define VARIANTS "[variant a]\nunchanged = true\n[variant b]\nbackbone.layer_pattern = attn\n"

static void bad_studies(void **state) {
    (void)state;
    static const struct {
        const char *text, *set;
        int status;
        const char *says;
    } bad[] = {
        {"", NULL, CHM_E_CONFIG, "study.ini: [study] has no card"},
        {"card = x\n", NULL, CHM_E_CONFIG, "study.ini:1: 'card' stands before the first section"},
        {"[study\n", NULL, CHM_E_CONFIG, "study.ini:1: expected [section] or key = value"},
        {STUDY "sedes = 1\n" VARIANTS, NULL, CHM_E_CONFIG,
         "study.ini:7: no key 'sedes' in [study] (did you mean 'seeds'?)"},
        {STUDY "zebra = 1\n" VARIANTS, NULL, CHM_E_CONFIG,
         "study.ini:7: no key 'zebra' in [study], which has title, card"},
        {STUDY "[varaint a]\n", NULL, CHM_E_CONFIG,
         "study.ini:7: no section [varaint a] in a study (did you mean 'variant'?)"},
        {STUDY "[variant]\n", NULL, CHM_E_CONFIG, "study.ini:7: [variant] needs a name"},
        {STUDY "[grid x]\n", NULL, CHM_E_CONFIG, "study.ini:7: [grid] takes no name"},
        {STUDY "[variant ../a]\n", NULL, CHM_E_CONFIG, "study.ini:7: the name '../a'"},
        {STUDY "[variant .a]\n", NULL, CHM_E_CONFIG, "study.ini:7: the name '.a'"},
        {STUDY, NULL, CHM_E_CONFIG, "no variant: a study compares two"},
        {STUDY "[variant a]\nunchanged = true\n", NULL, CHM_E_CONFIG, "one variant: a study compares two"},
        {STUDY VARIANTS "[variant c]\n", NULL, CHM_E_CONFIG, "study.ini:11: [variant c] is empty; give it a key"},
        {STUDY VARIANTS "[variant c]\nunchanged = perhaps\n", NULL, CHM_E_CONFIG, "study.ini:12: unchanged = perhaps"},
        {STUDY VARIANTS "[variant c]\nunchanged = true\nnum_heads = 1\n", NULL, CHM_E_CONFIG,
         "says unchanged = true and changes num_heads"},
        {STUDY VARIANTS "[variant a]\nnum_heads = 1\n", NULL, CHM_E_CONFIG,
         "study.ini:11: [variant a] was there already"},
        {STUDY VARIANTS "[variant  a]\nnum_heads = 1\n", NULL, CHM_E_CONFIG,
         "study.ini:11: [variant a] was there already"},
        {STUDY VARIANTS "[variant c]\nbackbone.layer_pattern = gd\n", NULL, CHM_E_CONFIG,
         "study.ini:11: [variant c] gives the same card as [variant a]"},
        {STUDY VARIANTS "[variant c]\nbackbone.layer_patern = gd\n", NULL, CHM_E_CONFIG,
         "study.ini:12: backbone.layer_patern: no key 'layer_patern' in backbone (did you mean "
         "'backbone.layer_pattern'?)"},
        {STUDY VARIANTS "[variant c]\nbackbone.layer_pattern = gdd\n", NULL, CHM_E_CONFIG,
         "study.ini:12: backbone.layer_pattern: no layer 'gdd'"},
        {STUDY VARIANTS "[variant c]\nnum_heads =\n", NULL, CHM_E_CONFIG, "study.ini:12: num_heads has no value"},
        {STUDY VARIANTS "[variant c]\nnum_heads = 1\nnum_heads = 2\n", NULL, CHM_E_CONFIG,
         "study.ini:13: num_heads was already set"},
        {STUDY VARIANTS "[variant c]\ntraining.pretrain.seed = 4\n", NULL, CHM_E_CONFIG,
         "study.ini:12: the seed is the study's"},
        {STUDY "baseline = aa\n" VARIANTS, NULL, CHM_E_CONFIG,
         "study.ini:7: baseline = aa: there is no such [variant aa] (did you mean 'a'?)"},
        {STUDY "match = width\n" VARIANTS, NULL, CHM_E_CONFIG, "study.ini:7: match = width: expected parameters"},
        {STUDY "match = parameters\n" VARIANTS "[variant c]\nnum_hidden_layers = 40\n", NULL, CHM_E_CONFIG,
         "study.ini:12: [variant c] cannot match: with intermediate_size 1 it has"},
        {STUDY "match = parameters\n" VARIANTS "[variant c]\nintermediate_size = 40\n", NULL, CHM_E_CONFIG,
         "study.ini:13: match = parameters solves for intermediate_size"},
        {STUDY "seconds = 3\n" VARIANTS, NULL, CHM_E_CONFIG, "study.ini:7: seconds is a second budget beside tokens"},
        {STUDY "tokens = 3\n" VARIANTS, NULL, CHM_E_CONFIG, "study.ini:7: tokens was already set in [study]"},
        {STUDY VARIANTS, "tokens=1.5", CHM_E_CONFIG, "--set: tokens = 1.5: expected a whole number"},
        {STUDY VARIANTS, "tokens", CHM_E_CONFIG, "--set: 'tokens' is not KEY=VALUE"},
        {STUDY VARIANTS, "seconds=-1", CHM_E_CONFIG, "--set: seconds = -1: expected a number"},
        {STUDY VARIANTS, "flops=1e60", CHM_E_CONFIG, "--set: flops = 1e60"},
        {STUDY VARIANTS, "flops=10", CHM_E_CONFIG, "flops = 10 is no budget"},
        {STUDY VARIANTS, "seeds=1, 1", CHM_E_CONFIG, "the seed 1 stands there twice"},
        {STUDY VARIANTS, "seeds=1 2", CHM_E_CONFIG, "expected whole numbers with commas between"},
        {STUDY VARIANTS, "seeds=-1", CHM_E_CONFIG, "expected whole numbers with commas between"},
        {STUDY VARIANTS, "seeds=99999999999999999999", CHM_E_CONFIG, "expected whole numbers with commas between"},
        {STUDY VARIANTS, "held_out=0.99", CHM_E_CONFIG, "held_out = 0.99: expected a number, 0.001..0.9"},
        {STUDY VARIANTS, "jobs=0", CHM_E_CONFIG, "jobs = 0: expected a whole number, 1..256"},
        {STUDY VARIANTS, "card=none.json", CHM_E_DATA, "card: none.json"},
        {STUDY VARIANTS, "data=none.txt", CHM_E_DATA, "--set: none.txt: cannot open"},
        {STUDY "data = empty.txt\n" VARIANTS, NULL, CHM_E_DATA, "study.ini:7: "},
        {STUDY "data =\n" VARIANTS, NULL, CHM_E_CONFIG, "study.ini:7: data names no file"},
        {STUDY "validation = text.txt\n" VARIANTS, NULL, CHM_E_CONFIG, "validation and held_out both say"},
        {"[study]\ncard = card.json\ndata = text.txt\nseeds = 1\ntokens = 1K\n" VARIANTS, NULL, CHM_E_CONFIG,
         "nothing is held out"},
        {"[study]\ncard = card.json\nheld_out = 0.1\nseeds = 1\ntokens = 1K\n" VARIANTS, NULL, CHM_E_CONFIG,
         "no text to learn from"},
        {"[study]\ncard = card.json\ntokens = 1K\n" VARIANTS, NULL, CHM_E_CONFIG, "[study] has no seeds"},
        {"[study]\ncard = card.json\nseeds = 1\n" VARIANTS, NULL, CHM_E_CONFIG, "[study] has no budget"},
        {STUDY VARIANTS "[grid]\nbackbone.layer_pattern = gd, attn\n", NULL, CHM_E_CONFIG,
         "study.ini:10: backbone.layer_pattern is a key of [grid]"},
        {STUDY VARIANTS "[grid]\ntraining.pretrain.lr = 0.1, 50\n", NULL, CHM_E_CONFIG,
         "study.ini:12: training.phases.0.lr: expected number 0..10, got 50"},
        {STUDY VARIANTS "[grid]\ntraining.pretrain.lr = 0.1,, 0.2\n", NULL, CHM_E_CONFIG,
         "study.ini:12: training.pretrain.lr: a value is missing"},
        {STUDY VARIANTS "[grid]\ntraining.pretrain.lr = 0.1, 0.1\n", NULL, CHM_E_CONFIG,
         "the value 0.1 stands there twice"},
        {STUDY VARIANTS "[task]\ntask = mqar\n", NULL, CHM_E_CONFIG,
         "study.ini:11: [task] makes the text, and [study] names data"},
        {STUDY VARIANTS "[score x]\n", NULL, CHM_E_CONFIG, "study.ini:11: [score x] goes with a [task]"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(bad); i++) {
        (void)chm_fail(CHM_OK, "-");
        const int status = look_at(bad[i].text, bad[i].set, NULL);
        if (status != bad[i].status || strstr(chm_error(), bad[i].says) == NULL)
            fail_msg("%zu: expected status %d and '%s', got %d: %s\n%s", i, bad[i].status, bad[i].says, status,
                     chm_error(), bad[i].text);
    }
}

#define TASK "[study]\ncard = card.json\nseeds = 1\ntokens = 1K\n"

static void bad_tasks(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"[task]\n", "study.ini:5: no task: say task = mqar"},
        {"[task]\ntask = mqarr\n", "study.ini:6: no task 'mqarr' (did you mean 'mqar'?)"},
        {"[task]\ntask = mqar\nleast = 4\nmost = 30\nrebound = 0\n",
         "study.ini:5: 30 bindings of which 0 bind again need 30 keys"},
        {"[task]\ntask = mqar\nleats = 4\n", "study.ini:7: no key 'leats' in [task] (did you mean 'least'?)"},
        {"[task]\ntask = parity\nmost = 0\n", "study.ini:7: most = 0: expected a whole number"},
        {"[task]\ntask = parity\nrebound = 2\n", "study.ini:7: rebound = 2: expected a number"},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(bad); i++) {
        char text[1024];
        snprintf(text, sizeof text, "%s%s%s", TASK, bad[i].text, VARIANTS);
        const int status = look_at(text, NULL, NULL);
        if (status != CHM_E_CONFIG || strstr(chm_error(), bad[i].says) == NULL)
            fail_msg("%zu: expected '%s', got %d: %s", i, bad[i].says, status, chm_error());
    }
    assert_int_equal(
        look_at(TASK "[task]\ntask = parity\n[score in]\n[score beyond]\nleast = 41\nmost = 60\n" VARIANTS, NULL, NULL),
        CHM_OK);
}

static void widths_and_budgets(void **state) {
    (void)state;
    json_t *json;
    const char *const text = STUDY "match = parameters\nbaseline = b\n" VARIANTS "[variant c]\nnum_hidden_layers = 3\n"
                                   "[grid]\ntraining.pretrain.lr = 0.001, 0.002\nquantization.group_size = 64, 128\n";
    if (look_at(text, NULL, &json) != CHM_OK) fail_msg("%s", chm_error());
    assert_int_equal(json_array_size(json_object_get(json, "cells")), 3 * 4);
    const double wanted = chm_json_number(row(json, 1), "parameters");
    for (size_t i = 0; i < 12; i++) {
        assert_true(fabs(chm_json_number(row(json, i), "parameters") / wanted - 1) <= 0.01);
        assert_int_equal((int)chm_json_number(row(json, i), "tokens"), 1000);
        /* the baseline keeps what the card says */
        assert_int_equal(isnan(chm_json_number(row(json, i), "intermediate_size")), i % 3 == 1);
    }
    json_decref(json);
    /* no loop, no experts, tied embedding: six for every parameter */
    if (look_at(STUDY VARIANTS, "flops=1e9", &json) != CHM_OK) fail_msg("%s", chm_error());
    for (size_t i = 0; i < 2; i++) {
        const double each = 6 * chm_json_number(row(json, i), "parameters");
        assert_int_equal((int64_t)chm_json_number(row(json, i), "tokens"), (int64_t)(1e9 / each));
    }
    json_decref(json);
    /* seconds: how many tokens is not known before */
    if (look_at(STUDY VARIANTS, "seconds=5", &json) != CHM_OK) fail_msg("%s", chm_error());
    assert_true(isnan(chm_json_number(row(json, 0), "tokens")));
    json_decref(json);
}

/* ---- statistics ---- */

static void near(double x, double expected, double tolerance) {
    if (!(fabs(x - expected) <= tolerance * fabs(expected))) fail_msg("%.12g, expected %.12g", x, expected);
}

/* Quantiles of published tables; the two-sided probability by its closed forms for one and two degrees of freedom. */
static void student(void **state) {
    (void)state;
    static const struct {
        double share, freedom, t;
    } table[] = {{0.95, 1, 12.7062047364}, {0.95, 2, 4.30265272991}, {0.95, 3, 3.18244630528},
                 {0.95, 4, 2.7764451052},  {0.95, 9, 2.26215716280}, {0.95, 30, 2.0422724563},
                 {0.99, 4, 4.60409487142}, {0.95, 1e7, 1.9599642},   {0.5, 1, 1}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(table); i++)
        near(chm_t_quantile(table[i].share, table[i].freedom), table[i].t, 1e-7);
    for (double t = -30; t <= 30; t += 0.37) {
        near(chm_t_two_sided(t, 1), 1 - 2 / acos(-1) * atan(fabs(t)), 1e-10);
        near(chm_t_two_sided(t, 2), 1 - fabs(t) / sqrt(2 + t * t), 1e-9);
    }
    assert_true(isnan(chm_t_two_sided(NAN, 2)));
    assert_true(chm_t_two_sided(INFINITY, 2) == 0);
    const double x[] = {2, 4, 4, 4, 5, 5, 7, 9};
    near(chm_mean(x, 8), 5, 1e-15);
    near(chm_deviation(x, 8), sqrt(32.0 / 7), 1e-15);
    assert_true(isnan(chm_deviation(x, 1)) && isnan(chm_mean(x, 0)));
}

static void holm(void **state) {
    (void)state;
    double p[] = {0.01, NAN, 0.04, 0.03, 0.005}, q[] = {1e-300, 0.9, 0.8, 0};
    const double expected[] = {0.03, NAN, 0.06, 0.06, 0.02}, more[] = {3e-300, 1, 1, 0};
    chm_holm(p, 5);
    chm_holm(q, 4);
    for (int i = 0; i < 5; i++)
        if (i == 1)
            assert_true(isnan(p[i]));
        else
            near(p[i], expected[i], 1e-12);
    for (int i = 0; i < 4; i++) near(q[i], more[i], 1e-12);
    chm_holm(p, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_studies), cmocka_unit_test(bad_tasks), cmocka_unit_test(widths_and_budgets),
        cmocka_unit_test(student),     cmocka_unit_test(holm),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
