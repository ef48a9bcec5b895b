/*
 * test_o200k_reference.c: the o200k tokenizer against tiktoken, the public implementation, on real text:
 * tests/golden/o200k.txt, made by tests/golden/make_o200k.py. The rank file and tinyshakespeare.txt are in no package:
 * they are looked for in CHIMERA_TEST_DATA, else in shared/data beside the checkout. What is not there, or is there in
 * another version, is named and the test counts as skipped.
 */
#include "tokenizer_help.h"

enum { SKIPPED = 77 };
static char *data_folder;
static int missing, compared;

static char *slurp(const char *name, size_t *bytes) {
    char *path = name[0] == '/' ? chm_strdup(name) : chm_format("%s/%s", data_folder, name), *text = NULL;
    const size_t n = strlen(path);
    *bytes = 0;
    if (access(path, R_OK) != 0) {
        /* said by the caller */
    } else if (n > 3 && strcmp(path + n - 3, ".gz") == 0) {
        char *command = chm_format("gzip -dc '%s'", path);
        FILE *pipe = popen(command, "r");
        text = chm_alloc(1 << 22);
        *bytes = pipe ? fread(text, 1, 1 << 22, pipe) : 0;
        if (pipe) pclose(pipe);
        chm_free(command);
    } else if (chm_read_file(path, 1 << 26, &text, bytes) != CHM_OK) {
        fprintf(stderr, "%s\n", chm_error());
    }
    chm_free(path);
    return text;
}

static void tokens_are_those_of_tiktoken(void **state) {
    (void)state;
    size_t bytes, text_bytes;
    char *ranks = slurp("o200k_base.tiktoken", &bytes);
    if (ranks == NULL) {
        printf("SKIPPED: no %s/o200k_base.tiktoken; set CHIMERA_TEST_DATA to the folder that has it\n", data_folder);
        missing++;
        return;
    }
    void *self = instance(ranks, bytes);
    assert_int_equal(ops->vocab_size(self), 200073);
    assert_int_equal(ops->end_of_text(self), 199999);
    assert_string_equal(ops->special(self, 200058), "<|pad|>");
    char *table_path = chm_format("%s/tests/golden/o200k.txt", getenv("CHM_SOURCE_ROOT"));
    FILE *table = fopen(table_path, "r");
    assert_non_null(table);
    char line[512], name[256];
    while (fgets(line, sizeof line, table)) {
        unsigned long long size, hash, tokens, digest;
        if (line[0] == '#') continue;
        assert_int_equal(sscanf(line, "%255s %llu %llx %llu %llx", name, &size, &hash, &tokens, &digest), 5);
        char *text = slurp(name, &text_bytes);
        if (text == NULL || text_bytes != size || chm_hash64(text, text_bytes) != hash) {
            printf("SKIPPED: %s is %s\n", name, text ? "another version of the file" : "not there");
            missing++;
            chm_free(text);
            continue;
        }
        const struct tokens t = encode(self, text, text_bytes);
        if ((unsigned long long)t.count != tokens || chm_hash64(t.id, (size_t)t.count * sizeof *t.id) != digest)
            fail_msg("%s: %lld tokens, not the %llu of tiktoken", name, (long long)t.count, tokens);
        assert_decodes_to(self, &t, text, text_bytes);
        assert_streams_as_whole(self, text, text_bytes);
        compared++;
        chm_free(t.id);
        chm_free(text);
    }
    fclose(table);
    chm_free(table_path);
    drop(self);
    chm_free(ranks);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tokens_are_those_of_tiktoken)};
    const char *given = getenv("CHIMERA_TEST_DATA");
    data_folder = given ? chm_strdup(given) : chm_format("%s/../shared/data", getenv("CHM_SOURCE_ROOT"));
    if (open_plugin("o200k") != 0) return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    chm_registry_finish(&registry);
    chm_free(data_folder);
    printf("%d texts compared, %d SKIPPED\n", compared, missing);
    return failed ? 1 : missing ? SKIPPED : 0;
}
