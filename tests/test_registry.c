/* test_registry.c: what is found, what is refused and in which words, options, and the choice of kernels. */
#include "base/table.h"
#include "config/schema.h"
#include "plugin/elf.h"
#include "plugin/report.h"
#include "plugin/search.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <setjmp.h>
#include <cmocka.h>

static char scratch[4096]; /* a fresh folder, its name with a space in it */

static char *join(const char *a, const char *b) {
    char *path = chm_format("%s/%s", a, b);
    assert_non_null(path);
    return path;
}

static char *bad_plugins(void) { return join(getenv("CHM_BUILD_ROOT"), "tests/plugins_bad"); }

static void copy_file(const char *from, const char *to, size_t at_most) {
    char *data;
    size_t n;
    chm_writer w;
    assert_int_equal(chm_read_file(from, 1 << 30, &data, &n), CHM_OK);
    assert_int_equal(chm_writer_open(&w, to), CHM_OK);
    assert_int_equal(chm_writer_write(&w, data, CHM_MIN(n, at_most)), CHM_OK);
    assert_int_equal(chm_writer_commit(&w), CHM_OK);
    chm_free(data);
}

static int set_up(void **state) {
    (void)state;
    snprintf(scratch, sizeof scratch, "%s/tests/registry test XXXXXX", getenv("CHM_BUILD_ROOT"));
    unsetenv("CHIMERA_PLUGIN_PATH");
    unsetenv("CHIMERA_BACKEND");
    return mkdtemp(scratch) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    char *command = chm_format("rm -rf '%s'", scratch);
    int bad = system(command);
    chm_free(command);
    return bad;
}

static void open_registry(chm_registry *r, const char *path) {
    struct chm_registry_options options = {.plugin_path = path, .check_section = chm_schema_check_section};
    assert_int_equal(chm_registry_init(r, &options), CHM_OK);
}

static const struct chm_plugin_file *entry(const chm_registry *r, const char *path) {
    for (size_t i = 0; i < r->file_count; i++)
        if (strcmp(r->files[i].path, path) == 0) return &r->files[i];
    return NULL;
}

/* ---- refusals ---- */

static const struct {
    const char *file, *sentence; /* "%" at the end: the beginning of it */
} refusals[] = {
    {"good", NULL},
    {"tokenizer_good", NULL},
    {"magic", "wrong magic number 0x12345678 in its descriptor, expected 0x314d4843"},
    {"abi_older", "built for the older plugin ABI 1, this host has 2: build it again with these headers"},
    {"abi_newer", "built for the newer plugin ABI 3, this host has 2: build it again with these headers"},
    {"size", "its descriptor says it has %"},
    {"size_odd", "its descriptor says it has %"},
    {"size_large", "its descriptor says it has %"},
    {"kind_unknown", "unknown kind 99, expected 1..11"},
    {"kind_unused", "this version has no use for plugins of kind 'grammar' yet"},
    {"cpu", "this CPU lacks unknown:0x4000000000000"},
    {"capabilities", "it asks for taps, energy, unknown:40, which this version grants to no plugin"},
    {"no_symbol", "it exports no 'chimera_plugin', so it is not a Chimera plugin"},
    {"no_data", "its 'chimera_plugin' is not constant data in the file"},
    {"too_small", "its 'chimera_plugin' has 4 bytes, too few for a descriptor"},
    {"undefined", "cannot be loaded: %"},
    {"no_name", "its descriptor has no name"},
    {"empty_name", "its descriptor has no name"},
    {"bad_name", "its name '../../etc' is not made of letters, digits and underscores"},
    {"bad_alias", "its alias 'f@ul' is not made of letters, digits and underscores"},
    {"bad_section", "its card section 'two words' is not made of letters, digits and underscores"},
    {"no_version", "its descriptor has no version"},
    {"no_ops", "its descriptor has no ops"},
    {"ops_size", "its layer ops say they have 8 bytes, expected %"},
    {"ops_size_large", "its layer ops say they have 4096 bytes, expected %"},
    {"layer_declare", "its layer ops have no 'declare', which is mandatory"},
    {"layer_forward", "its layer ops have no 'forward', which is mandatory"},
    {"tokenizer_init", "its tokenizer ops have no 'init', which is mandatory"},
    {"tokenizer_vocab_size", "its tokenizer ops have no 'vocab_size', which is mandatory"},
    {"tokenizer_end_of_text", "its tokenizer ops have no 'end_of_text', which is mandatory"},
    {"tokenizer_encode", "its tokenizer ops have no 'encode', which is mandatory"},
    {"tokenizer_decode", "its tokenizer ops have no 'decode', which is mandatory"},
    {"optimiser_good", NULL},
    {"optimiser_arrays", "its optimiser ops have no 'arrays', which is mandatory"},
    {"optimiser_step", "its optimiser ops have no 'step', which is mandatory"},
    {"optimiser_size", "its optimiser ops say they have 24 bytes, expected %"},
    {"optimiser_mezo",
     "'training.mezo' is a key of the host's in every card: an optimiser's section needs another name"},
    {"backend_empty", "its backend ops fill no kernel slot"},
    {"backend_size", "its backend ops say they have 16 bytes, expected %"},
    {"option_name", "option 1 has no name of letters, digits and underscores"},
    {"option_twice", "two options are called 'number'"},
    {"option_type", "option 'x' has unknown type 77"},
    {"option_doc", "option 'x' has no doc sentence"},
    {"option_default", "the default of an option is wrong: x: '10' is not accepted: expected integer 1..9"},
    {"option_no_default", "option 'x' has no default"},
    {"option_choices", "option 'x' is an enumeration without choices"},
    {"option_range", "option 'x' has an empty range"},
    {"option_offset", "option 'x' would be stored at 16 of an instance of 16 bytes"},
    {"option_alignment", "option 'x' would be stored at 4 of an instance of 16 bytes"},
    {"host_section", "'training' is a key of the host's in every card: a layer's section needs another name"},
    {"host_value", "'generation.temperature' is a key of the host's in every card: %"},
    {"other_kind_section", "'titans' is a key of the host's in every card: a tokenizer's section needs another name"},
    {"twin", "the name 'good' is taken: %"},
    {"twin_section", "the card section 'goodness' is taken: %"},
    {"twin_alias", "its alias 'fine' is taken: %"},
};

static void refuses_each_for_its_reason(void **state) {
    (void)state;
    chm_registry r;
    char *directory = bad_plugins();
    size_t seen = 0;
    open_registry(&r, directory);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(refusals); i++) {
        char *path = chm_format("%s/%s.so", directory, refusals[i].file);
        const struct chm_plugin_file *f = entry(&r, path);
        if (!f) fail_msg("%s was not looked at", path);
        assert_string_equal(f->origin, "--plugin-path");
        if (!refusals[i].sentence) {
            if (f->refused) fail_msg("%s: %s", path, f->refused);
            assert_non_null(f->plugin);
        } else {
            size_t n = strcspn(refusals[i].sentence, "%");
            if (!f->refused) fail_msg("%s was not refused", path);
            if (strncmp(f->refused, refusals[i].sentence, n) != 0 || (!refusals[i].sentence[n] && f->refused[n]))
                fail_msg("%s: '%s' is not '%s'", refusals[i].file, f->refused, refusals[i].sentence);
            assert_null(f->plugin);
            assert_null(f->handle);
        }
        chm_free(path);
    }
    for (size_t i = 0; i < r.file_count; i++)
        if (!r.files[i].is_directory && strncmp(r.files[i].path, directory, strlen(directory)) == 0) seen++;
    assert_int_equal(seen, CHM_ARRAY_COUNT(refusals)); /* none that this table forgot */
    chm_registry_finish(&r);
    chm_free(directory);
}

static void refuses_what_is_no_shared_object(void **state) {
    (void)state;
    chm_registry r;
    char *source = bad_plugins(), *good = join(source, "good.so"), *layers = join(scratch, "layers");
    char *text = join(layers, "text.so"), *empty = join(layers, "empty.so"), *half = join(layers, "half.so");
    char *folder = join(layers, "folder.so"), *open = join(layers, "writable.so"), *twin = join(layers, "twin.so");
    char *moved = join(layers, "moved.so");
    chm_writer w;
    assert_int_equal(chm_make_directory(folder), CHM_OK);
    assert_int_equal(chm_writer_open(&w, text), CHM_OK);
    assert_int_equal(chm_writer_write(&w, "hello\n", 6), CHM_OK);
    assert_int_equal(chm_writer_commit(&w), CHM_OK);
    copy_file(good, empty, 0);
    copy_file(good, half, 2000);
    copy_file(good, open, SIZE_MAX);
    copy_file(good, moved, SIZE_MAX);
    copy_file(good, twin, SIZE_MAX);
    assert_int_equal(chmod(open, 0666), 0);
    open_registry(&r, scratch);
    assert_string_equal(entry(&r, text)->refused, "not a shared object (no ELF header)");
    assert_string_equal(entry(&r, empty)->refused, "not a shared object (no ELF header)");
    assert_non_null(strstr(entry(&r, half)->refused, "short or corrupt"));
    assert_string_equal(entry(&r, folder)->refused, "not a regular file");
    assert_string_equal(entry(&r, open)->refused, "everybody may write this file: chmod o-w it");
    assert_null(entry(&r, moved)->refused);
    char *taken = chm_format("the name 'good' is taken: %s was found first", moved);
    assert_string_equal(entry(&r, twin)->refused, taken);
    assert_string_equal(chm_registry_path(&r, chm_registry_find(&r, CHM_KIND_LAYER, "fine")), moved);
    chm_registry_finish(&r);

    /* The same folder, open to everybody: nothing in it is looked at. */
    assert_int_equal(chmod(layers, 0777), 0);
    open_registry(&r, scratch);
    assert_string_equal(entry(&r, layers)->refused, "everybody may write to this directory: chmod o-w it");
    assert_null(entry(&r, moved));
    chm_registry_finish(&r);
    assert_int_equal(chmod(layers, 0755), 0);
    /* nor by a link from elsewhere, or below what everybody may write to; with the sticky bit, below it is fine */
    char *deep = join(scratch, "deep"), *wide = join(deep, "wide"), *below = join(wide, "below");
    char *far = join(below, "far.so"), *linked = join(layers, "linked.so");
    assert_int_equal(chm_make_directory(below), CHM_OK);
    copy_file(good, far, SIZE_MAX);
    assert_int_equal(unlink(moved), 0);
    assert_int_equal(symlink(far, linked), 0);
    const struct {
        mode_t below, wide;
        const char *refused;
    } modes[] = {{0755, 0777, wide}, {01777, 0755, below}, {0777, 0755, below}, {0755, 01777, NULL}};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(modes); i++) {
        assert_int_equal(chmod(below, modes[i].below), 0);
        assert_int_equal(chmod(wide, modes[i].wide), 0);
        open_registry(&r, layers);
        const char *refused = entry(&r, linked)->refused;
        if (!modes[i].refused && refused) fail_msg("%s", refused);
        if (modes[i].refused &&
            (!refused || !strstr(refused, "everybody may write to") || !strstr(refused, modes[i].refused)))
            fail_msg("%zu: %s", i, refused ? refused : "not refused");
        chm_registry_finish(&r);
    }
    char *names[] = {deep, wide, below, far, linked};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(names); i++) chm_free(names[i]);
    char *all[] = {source, good, layers, text, empty, half, folder, open, twin, moved, taken};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(all); i++) chm_free(all[i]);
}

/* Any change of any byte of the headers, any length: a refusal or a descriptor, never a stray access. */
static void reads_any_file(void **state) {
    (void)state;
    char *directory = bad_plugins(), *path = join(directory, "good.so"), *text;
    size_t n;
    struct chm_plugin p;
    assert_int_equal(chm_read_file(path, 1 << 30, &text, &n), CHM_OK);
    assert_int_equal(chm_elf_descriptor((uint8_t *)text, n, &p), CHM_OK);
    assert_int_equal(p.magic, CHM_MAGIC);
    assert_int_equal(p.kind, CHM_KIND_LAYER);
    assert_int_equal(p.option_count, 1);
    assert_null(p.name);
    uint64_t section_table;
    memcpy(&section_table, text + 40, sizeof section_table);
    for (size_t length = 0; length < n; length += 1 + length / 61) {
        uint8_t *part = malloc(length ? length : 1); /* so that a sanitizer sees its end */
        memcpy(part, text, length);
        int status = chm_elf_descriptor(part, length, &p);
        /* cut within the last entries of the table, it may still have all that is needed */
        assert_true(status == CHM_E_PLUGIN || (status == CHM_OK && length > section_table));
        free(part);
    }
    for (uint32_t i = 0; i < 20000; i++) {
        /* in the file header, the segment table and the section table by turns */
        size_t at = (size_t)chm_below_at(1, CHM_RANDOM_TEST, 0, i, i % 2 ? 1024 : n - section_table);
        if (i % 2 == 0) at += section_table;
        if (at >= n) continue;
        char kept = text[at];
        text[at] = (char)chm_below_at(2, CHM_RANDOM_TEST, 0, i, 256);
        int status = chm_elf_descriptor((uint8_t *)text, n, &p);
        assert_true(status == CHM_OK || status == CHM_E_PLUGIN);
        text[at] = kept;
    }
    chm_free(text);
    chm_free(path);
    chm_free(directory);
}

/* ---- search path ---- */

static void searches_in_order_and_never_here(void **state) {
    (void)state;
    chm_registry r;
    char *directory = bad_plugins(), *good = join(directory, "good.so");
    char *first = join(scratch, "a b"), *second = join(scratch, "second"), *nowhere = join(scratch, "nowhere");
    char *in_first = join(first, "one.so"), *in_second = join(second, "two.so"), *build;
    assert_int_equal(chm_make_directory(first), CHM_OK);
    assert_int_equal(chm_make_directory(second), CHM_OK);
    copy_file(good, in_first, SIZE_MAX);
    copy_file(good, in_second, SIZE_MAX);
    char *path = chm_format("%s:%s::relative/path:.:%s", nowhere, first, first);
    setenv("CHIMERA_PLUGIN_PATH", second, 1);
    open_registry(&r, path);
    size_t i = 0;
    assert_string_equal(r.files[i].path, nowhere);
    assert_string_equal(r.files[i++].refused, "no such directory");
    assert_string_equal(r.files[i].path, first);
    assert_null(r.files[i++].refused);
    assert_string_equal(r.files[i].path, in_first);
    assert_null(r.files[i++].refused);
    assert_string_equal(r.files[i].path, "");
    assert_string_equal(r.files[i++].refused, "an empty entry would be the current directory, which is never searched");
    assert_string_equal(r.files[i++].refused, "relative paths are not searched: give the whole path, beginning with /");
    assert_string_equal(r.files[i].path, ".");
    assert_string_equal(r.files[i++].refused, "relative paths are not searched: give the whole path, beginning with /");
    assert_string_equal(r.files[i].path, first);
    assert_string_equal(r.files[i++].refused, "searched already");
    assert_string_equal(r.files[i].path, second);
    assert_string_equal(r.files[i++].origin, "CHIMERA_PLUGIN_PATH");
    assert_string_equal(r.files[i].path, in_second);
    assert_non_null(strstr(r.files[i++].refused, "the name 'good' is taken"));
    build = join(getenv("CHM_BUILD_ROOT"), "plugins");
    assert_string_equal(r.files[i].path, build);
    assert_string_equal(r.files[i].origin, "build tree");
    assert_string_equal(r.files[r.file_count - 1].origin, "install directory");
    assert_string_equal(chm_registry_path(&r, chm_registry_find(&r, CHM_KIND_LAYER, "good")), in_first);
    chm_registry_finish(&r);
    unsetenv("CHIMERA_PLUGIN_PATH");
    char *all[] = {directory, good, first, second, nowhere, in_first, in_second, build, path};
    for (i = 0; i < CHM_ARRAY_COUNT(all); i++) chm_free(all[i]);
}

static void finds_by_name_alias_and_section(void **state) {
    (void)state;
    chm_registry r;
    char *directory = bad_plugins();
    open_registry(&r, directory);
    const struct chm_plugin *good = chm_registry_find(&r, CHM_KIND_LAYER, "good");
    assert_non_null(good);
    assert_ptr_equal(chm_registry_find(&r, CHM_KIND_LAYER, "GOOD"), good);
    assert_ptr_equal(chm_registry_find(&r, CHM_KIND_LAYER, "fine"), good);
    assert_ptr_equal(chm_registry_section(&r, "goodness"), good);
    assert_null(chm_registry_section(&r, "badness"));
    const struct chm_plugin *other = chm_registry_find(&r, CHM_KIND_TOKENIZER, "good");
    assert_non_null(other); /* kinds have names of their own */
    assert_ptr_not_equal(other, good);
    assert_null(chm_registry_find(&r, CHM_KIND_LAYER, "goof"));
    assert_string_equal(chm_error(), "no layer 'goof' (did you mean 'good'?)");
    assert_null(chm_registry_find(&r, CHM_KIND_GRAMMAR, "json"));
    assert_non_null(strstr(chm_error(), "no grammar 'json', nor any other grammar"));
    assert_null(chm_registry_find(&r, CHM_KIND_LAYER, "abi_newer"));
    assert_non_null(strstr(chm_error(), "was refused: built for the newer plugin ABI 3"));
    chm_registry_finish(&r);

    /* what a build leaves out is no unknown name */
    const struct chm_registry none = {0};
    assert_null(chm_registry_find(&none, CHM_KIND_TOKENIZER, "sentencepiece"));
    assert_string_equal(chm_error(), "no tokenizer 'sentencepiece' in this build, which has none: building it takes "
                                     "libsentencepiece-dev and g++");
    assert_null(chm_registry_find(&none, CHM_KIND_LAYER, "sentencepiece"));
    assert_non_null(strstr(chm_error(), "no layer 'sentencepiece', nor any other layer"));
    chm_free(directory);
}

/* ---- options ---- */

struct values {
    bool flag;
    int64_t number;
    double rate;
    int32_t mode;
    const char *text;
    struct chm_int_list ints;
    struct chm_float_list floats;
    struct chm_string_list words;
};
#define AT(member) .offset = offsetof(struct values, member), .doc = "x"
static const struct chm_option table[] = {
    {.name = "flag", .type = CHM_OPT_BOOL, .def = "true", AT(flag)},
    {.name = "number", .type = CHM_OPT_INT, .def = "256", .min = 1, .max = 4096, AT(number)},
    {.name = "rate", .type = CHM_OPT_FLOAT, .def = "1e-3", .min = 0, .max = 1, AT(rate)},
    {.name = "mode", .type = CHM_OPT_ENUM, .def = "mlstm", .choices = "slstm|mlstm", AT(mode)},
    {.name = "text", .type = CHM_OPT_STRING, .def = "\"a \\\"b\\\" \\u00e9\"", AT(text)},
    {.name = "ints", .type = CHM_OPT_INT_LIST, .def = "[64, 4M]", .list_min = 2, .list_max = 2, AT(ints)},
    {.name = "floats", .type = CHM_OPT_FLOAT_LIST, .def = "[]", .min = -1, .max = 1, AT(floats)},
    {.name = "words", .type = CHM_OPT_STRING_LIST, .def = "[\"a\", b]", .choices = "a|b|c", AT(words)},
    {.name = "fixed", .type = CHM_OPT_INT, .def = "3", .min = 3, .max = 3, .offset = CHM_OPTION_CHECKED, .doc = "x"},
    {.name = "big", .type = CHM_OPT_INT, .def = "3", .offset = CHM_OPTION_CHECKED, .doc = "x"},
};

static void stores_defaults(void **state) {
    (void)state;
    struct values v = {0};
    chm_arena arena;
    chm_arena_init(&arena);
    assert_int_equal(chm_option_defaults(table, CHM_ARRAY_COUNT(table), &v, &arena), CHM_OK);
    assert_true(v.flag);
    assert_int_equal(v.number, 256);
    assert_true(v.rate == 1e-3);
    assert_int_equal(v.mode, 1);
    assert_string_equal(v.text, "a \"b\" \xc3\xa9");
    assert_int_equal(v.ints.count, 2);
    assert_int_equal(v.ints.item[0], 64);
    assert_int_equal(v.ints.item[1], 4000000);
    assert_int_equal(v.floats.count, 0);
    assert_int_equal(v.words.count, 2);
    assert_string_equal(v.words.item[0], "a");
    assert_string_equal(v.words.item[1], "b");
    chm_arena_finish(&arena);
}

static void accepts_and_refuses(void **state) {
    (void)state;
    static const struct {
        const char *option, *text, *sentence; /* NULL: accepted */
    } cases[] = {
        {"flag", " false ", NULL},
        {"flag", "yes", "flag: 'yes' is not accepted: expected true or false"},
        {"flag", "\"true\"", "flag: '\"true\"' is not accepted: expected true or false"},
        {"number", "4096", NULL},
        {"number", "\"12\"", NULL},
        {"number", "0", "number: '0' is not accepted: expected integer 1..4096"},
        {"number", "4k", "number: '4k' is not accepted: expected integer 1..4096"},
        {"number", "1.0", "number: '1.0' is not accepted: expected integer 1..4096"},
        {"number", "", "number: '' is not accepted: expected integer 1..4096"},
        {"number", "99999999999999999999", "number: '99999999999999999999' is not accepted: expected integer 1..4096"},
        {"rate", "0.25", NULL},
        {"rate", "1", NULL},
        {"rate", "nan", "rate: 'nan' is not accepted: expected number 0..1"},
        {"rate", "1e999", "rate: '1e999' is not accepted: expected number 0..1"},
        {"rate", "0x1", "rate: '0x1' is not accepted: expected number 0..1"},
        {"rate", "0,5", "rate: '0,5' is not accepted: expected number 0..1"},
        {"mode", "slstm", NULL},
        {"mode", "\"slstm\"", NULL},
        {"mode", "mlsm", "mode: 'mlsm' is not accepted: expected one of slstm, mlstm (did you mean 'mlstm'?)"},
        {"text", "bare words, with a comma", NULL},
        {"text", "null", NULL},
        {"text", "\"open", "text: '\"open' is not accepted: expected text"},
        {"text", "\"a\" b", "text: '\"a\" b' is not accepted: expected text"},
        {"ints", "1, 2", NULL},
        {"ints", "[1]", "ints: '[1]' is not accepted: expected list of 2 integers"},
        {"ints", "[1, 2, 3]", "ints: '[1, 2, 3]' is not accepted: expected list of 2 integers"},
        {"ints", "[1, 2", "ints: '[1, 2' is not accepted: expected list of 2 integers"},
        {"ints", "[1, 2] 3", "ints: '[1, 2] 3' is not accepted: expected list of 2 integers"},
        {"ints", "[1,,2]", "ints: '[1,,2]' is not accepted: expected list of 2 integers"},
        {"ints", "[1,2,]", "ints: '[1,2,]' is not accepted: expected list of 2 integers"},
        {"floats", "[0.5, -1]", NULL},
        {"floats", "[2]", "floats: '[2]' is not accepted: expected list of numbers -1..1"},
        {"words", "c", NULL},
        {"words", "[\"d\"]", "words: '[\"d\"]' is not accepted: expected list of names from: a, b, c"},
        {"fixed", "3", NULL},
        {"fixed", "4", "fixed: '4' is not accepted: expected integer 3..3"},
        {"big", "-2T", NULL},
    };
    chm_arena arena;
    chm_arena_init(&arena);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        struct values v = {0};
        const struct chm_option *o = chm_option_find(table, CHM_ARRAY_COUNT(table), cases[i].option);
        assert_non_null(o);
        for (int stored = 0; stored < 2; stored++) {
            int status = chm_option_parse(o, cases[i].text, stored ? &v : NULL, stored ? &arena : NULL);
            if (!cases[i].sentence) {
                if (status) fail_msg("%s", chm_error());
            } else {
                if (!status) fail_msg("%s = %s was accepted", cases[i].option, cases[i].text);
                assert_string_equal(chm_error(), cases[i].sentence);
            }
        }
    }
    chm_arena_finish(&arena);
}

static void reads_counts(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t value; /* -7: refused */
    } cases[] = {
        {"0", 0},
        {"4096", 4096},
        {"-3", -3},
        {"4M", 4000000},
        {"350M", 350000000},
        {"1B", 1000000000},
        {"2T", 2000000000000},
        {"1.5B", 1500000000},
        {"2.50M", 2500000},
        {"9000000T", 9000000000000000000},
        {"10000000T", -7},
        {"1.0000001M", -7},
        {"4k", -7},
        {"4m", -7},
        {"M", -7},
        {"", -7},
        {"1.", -7},
        {".5M", -7},
        {"1 M", -7},
        {"1e6", -7},
        {"0x10", -7},
        {"9223372036854775808", -7},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        int64_t value = -7;
        int status = chm_parse_count(cases[i].text, &value);
        if (status != (cases[i].value == -7 ? CHM_E_CONFIG : CHM_OK) || value != cases[i].value)
            fail_msg("'%s' -> %d, %lld", cases[i].text, status, (long long)value);
    }
}

/* ---- kernels ---- */

/* Backends made here: their "kernels" are never called, only told apart. */
static void k_scalar(enum chm_unary op, const float *x, int64_t n, float *y) { (void)op, (void)x, (void)n, (void)y; }
static void k_fast(enum chm_unary op, const float *x, int64_t n, float *y) { (void)op, (void)x, (void)n, (void)y; }
static void k_wide(enum chm_unary op, const float *x, int64_t n, float *y) { (void)op, (void)x, (void)n, (void)y; }
static void k_high(enum chm_unary op, const float *x, int64_t n, float *y) { (void)op, (void)x, (void)n, (void)y; }
static void s_scalar(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                     int64_t ldb, float beta, float *c, int64_t ldc) {
    (void)ta, (void)tb, (void)m, (void)n, (void)k, (void)a, (void)lda, (void)b, (void)ldb, (void)beta, (void)c,
        (void)ldc;
}
static void s_blas(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b,
                   int64_t ldb, float beta, float *c, int64_t ldc) {
    s_scalar(ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

static struct chm_backend_ops scalar_ops = {.size = sizeof scalar_ops, .rank = 0};
static const struct chm_backend_ops fast_ops = {
    .size = sizeof fast_ops, .rank = 200, .kernels = {.size = sizeof(struct chm_kernels), .unary = k_fast}};
static const struct chm_backend_ops blas_ops = {
    .size = sizeof blas_ops, .rank = 300, .kernels = {.size = sizeof(struct chm_kernels), .sgemm = s_blas}};
static const struct chm_plugin scalar = {.kind = CHM_KIND_BACKEND, .name = "scalar", .ops = &scalar_ops};
static const struct chm_plugin fast = {.kind = CHM_KIND_BACKEND, .name = "fast", .ops = &fast_ops};
static const struct chm_plugin blas = {.kind = CHM_KIND_BACKEND, .name = "openblas", .ops = &blas_ops};

static const char *backend_of(const chm_kernel_choice *c, const char *slot) {
    for (size_t i = 0; i < c->slots; i++)
        if (strcmp(c->slot[i], slot) == 0) return c->backend[i];
    fail_msg("no slot '%s'", slot);
    return NULL;
}

static void chooses_kernels(void **state) {
    (void)state;
    chm_kernel_choice c;
    struct chm_plugin_file files[] = {
        {.path = "/f", .plugin = &fast}, {.path = "/s", .plugin = &scalar}, {.path = "/o", .plugin = &blas}};
    chm_registry r = {.files = files, .file_count = 3};
    /* Every slot of scalar filled: any pointer, then the two that are looked at. */
    for (size_t at = offsetof(struct chm_kernels, quantise); at < offsetof(struct chm_kernels, reserved_slots);
         at += sizeof(void *)) {
        void (*any)(void) = (void (*)(void))(uintptr_t)&k_scalar;
        memcpy((char *)&scalar_ops.kernels + at, &any, sizeof any);
    }
    scalar_ops.kernels.size = sizeof scalar_ops.kernels;
    scalar_ops.kernels.unary = k_scalar;
    scalar_ops.kernels.sgemm = s_scalar;

    assert_int_equal(chm_kernels_choose(&r, NULL, false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "fast");
    assert_string_equal(backend_of(&c, "sgemm"), "openblas");
    assert_string_equal(backend_of(&c, "t2_matmul"), "scalar");
    assert_true(c.kernels.unary == k_fast && c.kernels.sgemm == s_blas);
    assert_int_equal(c.kernels.size, sizeof c.kernels);

    assert_int_equal(chm_kernels_choose(&r, "scalar", true, &c), CHM_OK);
    for (size_t i = 0; i < c.slots; i++) assert_string_equal(c.backend[i], "scalar");
    assert_true(c.kernels.unary == k_scalar && c.kernels.sgemm == s_scalar);

    assert_int_equal(chm_kernels_choose(&r, "fast", false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "fast");
    assert_string_equal(backend_of(&c, "rmsnorm"), "scalar");
    assert_string_equal(backend_of(&c, "sgemm"), "openblas");

    assert_int_equal(chm_kernels_choose(&r, "fast", true, &c), CHM_E_PLUGIN);
    assert_non_null(strstr(chm_error(), "backend 'fast' has no 'quantise'"));
    assert_int_equal(chm_kernels_choose(&r, NULL, true, &c), CHM_E_CONFIG);
    assert_int_equal(chm_kernels_choose(&r, "fsat", false, &c), CHM_E_PLUGIN);
    assert_string_equal(chm_error(), "--backend: no backend 'fsat' (did you mean 'fast'?)");

    setenv("CHIMERA_BACKEND", "scalar", 1);
    assert_int_equal(chm_kernels_choose(&r, NULL, false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "scalar");
    assert_int_equal(chm_kernels_choose(&r, "fast", false, &c), CHM_OK); /* the argument goes before */
    assert_string_equal(backend_of(&c, "unary"), "fast");
    setenv("CHIMERA_BACKEND", "slow", 1);
    assert_int_equal(chm_kernels_choose(&r, NULL, false, &c), CHM_E_PLUGIN);
    assert_non_null(strstr(chm_error(), "CHIMERA_BACKEND: no backend 'slow'"));
    unsetenv("CHIMERA_BACKEND");

    /* An older backend, whose table ends before the training slots. */
    scalar_ops.kernels.size = offsetof(struct chm_kernels, sgemm);
    assert_int_equal(chm_kernels_choose(&r, "scalar", false, &c), CHM_E_PLUGIN);
    assert_non_null(strstr(chm_error(), "no backend here has the kernel 'sgemm'"));
}

/* ---- reports ---- */

static char *report(int (*print)(const chm_registry *r, FILE *out, chm_output format), const chm_registry *r,
                    chm_output format, int expected) {
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    assert_non_null(out);
    assert_int_equal(print(r, out, format), expected);
    fclose(out);
    return text;
}
static int list(const chm_registry *r, FILE *out, chm_output format) {
    return chm_report_plugins(r, CHM_KIND_LAYER, out, format);
}
static int show(const chm_registry *r, FILE *out, chm_output format) {
    return chm_report_plugin(r, "GOOD", out, format);
}
static int doctor(const chm_registry *r, FILE *out, chm_output format) {
    return chm_report_doctor(r, "nothing", false, "", out, format);
}

static void reports_in_every_format(void **state) {
    (void)state;
    chm_registry r;
    char *directory = bad_plugins(), *text;
    open_registry(&r, directory);

    text = report(list, &r, CHM_OUTPUT_CSV, CHM_OK);
    assert_memory_equal(text, "kind,name,version,summary,path\n", 31);
    assert_non_null(strstr(text, "\nlayer,good,1.0.0,A plugin for the tests of the registry,"));
    assert_null(strstr(text, "tokenizer,"));
    free(text);
    text = report(show, &r, CHM_OUTPUT_MD, CHM_OK);
    assert_non_null(strstr(text, "| number | int | 4 | integer 1..9 | A number. |"));
    free(text);
    text = report(show, &r, CHM_OUTPUT_TEXT, CHM_OK);
    assert_non_null(strstr(text, "also called GOOD fine"));
    free(text);
    text = report(show, &r, CHM_OUTPUT_JSON, CHM_OK);
    json_t *json = json_loads(text, 0, NULL), *option;
    assert_int_equal(json_integer_value(json_object_get(json, "schema_version")), 1);
    option = json_array_get(json_object_get(json_array_get(json_object_get(json, "plugins"), 0), "options"), 0);
    assert_string_equal(json_string_value(json_object_get(option, "accepts")), "integer 1..9");
    json_decref(json);
    free(text);

    /* No backend 'nothing': said in the report, and returned. */
    text = report(doctor, &r, CHM_OUTPUT_JSON, CHM_E_PLUGIN);
    json = json_loads(text, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(json, "schema_version")), 1);
    assert_non_null(strstr(json_string_value(json_object_get(json, "problem")), "--backend: no backend 'nothing'"));
    size_t refused = 0, i;
    json_t *file;
    json_array_foreach(json_object_get(json, "files"), i, file) {
        refused += json_is_string(json_object_get(file, "refused"));
    }
    assert_true(refused >= CHM_ARRAY_COUNT(refusals) - 2);
    json_decref(json);
    free(text);
    text = report(doctor, &r, CHM_OUTPUT_TEXT, CHM_E_PLUGIN);
    assert_non_null(strstr(text, "/magic.so: wrong magic number"));
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1)
        assert_false(end > line && end[-1] == ' ');
    free(text);
    text = report(doctor, &r, CHM_OUTPUT_CSV, CHM_E_PLUGIN);
    assert_non_null(strstr(text, "part,name,value,detail\n"));
    assert_non_null(strstr(text, "/magic.so,refused,"));
    assert_non_null(strstr(text, "\nkernel,,none,"));
    free(text);
    assert_int_equal(chm_kind_parse("layers"), CHM_KIND_LAYER);
    assert_int_equal(chm_kind_parse("laier"), 0);
    assert_non_null(strstr(chm_error(), "did you mean 'layer'"));
    chm_registry_finish(&r);
    chm_free(directory);
}

/* ---- CPU ---- */

static void pretends_that_features_are_missing(void **state) {
    (void)state;
    chm_registry r;
    char names[64], few[8];
    struct chm_registry_options options = {.cpu_mask = ~0ull};
    assert_int_equal(chm_registry_init(&r, &options), CHM_OK);
    assert_int_equal(r.cpu, 0);
    chm_registry_finish(&r);
    chm_cpu_names(CHM_CPU_FMA | CHM_CPU_AVX2 | 1ull << 63, names, sizeof names);
    assert_string_equal(names, "avx2 fma unknown:0x8000000000000000");
    chm_cpu_names(CHM_CPU_FMA | CHM_CPU_AVX2, few, sizeof few);
    assert_true(strlen(few) < sizeof few);
    chm_cpu_names(0, names, sizeof names);
    assert_string_equal(names, "");
}

/* Its constructor aborts: refused before it is loaded, or not at all. */
static void refuses_what_an_older_cpu_lacks(void **state) {
    (void)state;
    chm_registry r;
    char *source = bad_plugins(), *directory = join(source, "avx512"), *path = join(directory, "avx512.so");
    struct chm_registry_options options = {.plugin_path = directory, .cpu_mask = CHM_CPU_AVX512};
    assert_int_equal(chm_registry_init(&r, &options), CHM_OK);
    const struct chm_plugin_file *f = entry(&r, path);
    assert_non_null(f);
    assert_string_equal(f->refused, "this CPU lacks avx512");
    assert_null(f->handle);
    assert_null(chm_registry_find(&r, CHM_KIND_LAYER, "avx512"));
    assert_non_null(strstr(chm_error(), "this CPU lacks avx512"));
    chm_registry_finish(&r);
    chm_free(path);
    chm_free(directory);
    chm_free(source);
}

/* A tokenizer among the layers, and a name asked of the wrong kind. */
static void refuses_the_wrong_kind(void **state) {
    (void)state;
    chm_registry r;
    char *source = bad_plugins(), *tokenizer = join(source, "tokenizer_good.so"), *good = join(source, "good.so");
    char *layers = join(scratch, "layers"), *inside = join(layers, "misplaced.so"), *right = join(layers, "right.so");
    assert_int_equal(mkdir(layers, 0755), 0);
    copy_file(tokenizer, inside, SIZE_MAX);
    copy_file(good, right, SIZE_MAX);
    open_registry(&r, scratch);
    const struct chm_plugin_file *f = entry(&r, inside);
    assert_non_null(f);
    assert_string_equal(f->refused, "it is a tokenizer, and lies in the folder of layers");
    assert_null(f->handle);
    f = entry(&r, right);
    assert_non_null(f);
    assert_null(f->refused);
    assert_null(chm_registry_find(&r, CHM_KIND_TOKENIZER, "GOOD"));
    assert_string_equal(chm_error(), "no tokenizer 'GOOD': 'GOOD' is a layer");
    chm_registry_finish(&r);
    /* where no kind is said, any may lie */
    open_registry(&r, layers);
    f = entry(&r, inside);
    assert_non_null(f);
    assert_true(f->plugin || strstr(f->refused, "is taken")); /* both are called "good", and are of two kinds */
    chm_registry_finish(&r);
    chm_free(right);
    chm_free(inside);
    chm_free(layers);
    chm_free(good);
    chm_free(tokenizer);
    chm_free(source);
}

static void masks_features_by_name(void **state) {
    (void)state;
    uint64_t mask;
    assert_int_equal(chm_cpu_mask("fma, neon", &mask), CHM_OK); /* fma goes, and with it what has it inside */
    assert_true(mask & CHM_CPU_FMA && mask & CHM_CPU_AVX512 && mask & CHM_CPU_AVX512_VNNI && mask & CHM_CPU_DOTPROD);
    assert_false(mask & CHM_CPU_AVX2 || mask & CHM_CPU_F16C);
    assert_int_equal(chm_cpu_mask("avx512_vnni", &mask), CHM_OK);
    assert_int_equal(mask, CHM_CPU_AVX512_VNNI);
    assert_int_equal(chm_cpu_mask("", &mask), CHM_OK);
    assert_int_equal(mask, 0);
    assert_int_equal(chm_cpu_mask("all", &mask), CHM_OK);
    assert_true(mask == ~(uint64_t)0);
    assert_int_equal(chm_cpu_mask("fma,avx521", &mask), CHM_E_CONFIG);
    assert_string_equal(chm_error(), "no CPU feature 'avx521' (did you mean 'avx512'?)");
    assert_int_equal(chm_cpu_mask("mitochondria", &mask), CHM_E_CONFIG);
    assert_non_null(strstr(chm_error(), "no CPU feature 'mitochondria': there are avx2, fma, "));

    chm_registry all, few;
    assert_int_equal(chm_registry_init(&all, NULL), CHM_OK);
    setenv("CHIMERA_CPU_MASK", "avx2 neon", 1);
    assert_int_equal(chm_registry_init(&few, NULL), CHM_OK);
    assert_int_equal(few.cpu & ~all.cpu, 0);
    assert_int_equal(few.cpu & (CHM_CPU_AVX2 | CHM_CPU_AVX_VNNI | CHM_CPU_AVX512 | CHM_CPU_NEON), 0);
    assert_int_equal(few.cpu & CHM_CPU_FMA, all.cpu & CHM_CPU_FMA);
    if (all.cpu & CHM_CPU_AVX2) {
        char *text = report(doctor, &few, CHM_OUTPUT_TEXT, CHM_E_PLUGIN);
        assert_non_null(strstr(text, "masked, as if this CPU had none of them: avx2"));
        assert_non_null(strstr(text, "/avx2.so: this CPU lacks avx2"));
        free(text);
    }
    chm_registry_finish(&few);
    setenv("CHIMERA_CPU_MASK", "avx3", 1);
    assert_int_equal(chm_registry_init(&few, NULL), CHM_E_CONFIG);
    assert_string_equal(chm_error(), "CHIMERA_CPU_MASK: no CPU feature 'avx3' (did you mean 'avx2'?)");
    unsetenv("CHIMERA_CPU_MASK");
    chm_registry_finish(&all);
}

static void knows_what_cpus_do_badly(void **state) {
    (void)state;
    chm_cpu_weakness w;
    const chm_cpu_identity skylake_x = {"GenuineIntel", 6, 0x55, 4}, cascade_lake = {"GenuineIntel", 6, 0x55, 7};
    const chm_cpu_identity zen1 = {"AuthenticAMD", 0x17, 0x01, 1}, zen2 = {"AuthenticAMD", 0x17, 0x31, 0};
    const chm_cpu_identity zen3 = {"AuthenticAMD", 0x19, 0x01, 1}, other = {"", 6, 0x55, 4};
    assert_true(chm_cpu_weakness_at(&skylake_x, 0, &w));
    assert_true(w.avoid & CHM_CPU_AVX512);
    assert_non_null(strstr(w.sentence, "lower the clock"));
    assert_false(chm_cpu_weakness_at(&skylake_x, 1, &w));
    assert_false(chm_cpu_weakness_at(&cascade_lake, 0, &w));
    assert_true(chm_cpu_weakness_at(&zen1, 1, &w)); /* halves, and PDEP */
    assert_int_equal(w.avoid, CHM_CPU_BMI2);
    assert_true(chm_cpu_weakness_at(&zen2, 0, &w));
    assert_int_equal(w.avoid, CHM_CPU_BMI2);
    assert_false(chm_cpu_weakness_at(&zen2, 1, &w));
    assert_false(chm_cpu_weakness_at(&zen3, 0, &w));
    assert_false(chm_cpu_weakness_at(&other, 0, &w));
}

/* Levels by what the CPU has; what it does badly goes last, but before scalar, and when it is forced. */
static void chooses_levels(void **state) {
    (void)state;
    chm_kernel_choice c;
    static const struct chm_backend_level high = {.size = sizeof high,
                                                  .name = "wide_high",
                                                  .cpu = CHM_CPU_AVX512_VNNI,
                                                  .kernels = {.size = sizeof(struct chm_kernels), .unary = k_high}};
    static const struct chm_backend_level *const levels[] = {&high};
    static const struct chm_backend_ops wide_ops = {.size = sizeof wide_ops,
                                                    .rank = 500,
                                                    .kernels = {.size = sizeof(struct chm_kernels), .unary = k_wide},
                                                    .level_count = 1,
                                                    .levels = levels};
    static const struct chm_plugin wide = {
        .kind = CHM_KIND_BACKEND, .name = "wide", .cpu = CHM_CPU_AVX512, .ops = &wide_ops};
    struct chm_plugin_file files[] = {{.path = "/f", .plugin = &fast},
                                      {.path = "/s", .plugin = &scalar},
                                      {.path = "/o", .plugin = &blas},
                                      {.path = "/w", .plugin = &wide}};
    chm_registry r = {.files = files, .file_count = 4, .cpu = CHM_CPU_AVX512};
    scalar_ops.kernels.size = sizeof scalar_ops.kernels;
    assert_int_equal(chm_kernels_choose(&r, NULL, false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "wide");
    assert_true(c.kernels.unary == k_wide);
    r.cpu |= CHM_CPU_AVX512_VNNI;
    assert_int_equal(chm_kernels_choose(&r, NULL, false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "wide_high");
    assert_true(c.kernels.unary == k_high);
    assert_string_equal(backend_of(&c, "rmsnorm"), "scalar");
    assert_int_equal(chm_kernels_choose(&r, "wide", false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "wide_high");

    r.cpu_avoid = CHM_CPU_AVX512;
    assert_int_equal(chm_kernels_choose(&r, NULL, false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "fast");
    assert_int_equal(chm_kernels_choose(&r, "wide", false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "wide_high");
    r.files++, r.file_count--; /* without the fast one */
    assert_int_equal(chm_kernels_choose(&r, NULL, false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "wide_high");
    r.cpu_avoid = CHM_CPU_AVX512_VNNI; /* only the level is bad */
    assert_int_equal(chm_kernels_choose(&r, NULL, false, &c), CHM_OK);
    assert_string_equal(backend_of(&c, "unary"), "wide");
}

/* Out of memory at any point: a status and nothing lost (the sanitizers look). */
static void survives_running_out_of_memory(void **state) {
    (void)state;
    char *directory = bad_plugins();
    struct chm_registry_options options = {.plugin_path = directory};
    int failures = 0, status;
    for (long n = 0;; n += 1 + n / 16) {
        chm_registry r;
        chm_alloc_fail_after(n);
        status = chm_registry_init(&r, &options);
        chm_alloc_fail_after(-1);
        if (status == CHM_OK) {
            chm_registry_finish(&r);
            break;
        }
        assert_int_equal(status, CHM_E_MEMORY);
        failures++;
    }
    assert_true(failures > 10);
    chm_free(directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_each_for_its_reason),
        cmocka_unit_test_setup_teardown(refuses_what_is_no_shared_object, set_up, tear_down),
        cmocka_unit_test(reads_any_file),
        cmocka_unit_test_setup_teardown(searches_in_order_and_never_here, set_up, tear_down),
        cmocka_unit_test(finds_by_name_alias_and_section),
        cmocka_unit_test(stores_defaults),
        cmocka_unit_test(accepts_and_refuses),
        cmocka_unit_test(reads_counts),
        cmocka_unit_test(chooses_kernels),
        cmocka_unit_test(reports_in_every_format),
        cmocka_unit_test(pretends_that_features_are_missing),
        cmocka_unit_test(refuses_what_an_older_cpu_lacks),
        cmocka_unit_test_setup_teardown(refuses_the_wrong_kind, set_up, tear_down),
        cmocka_unit_test(masks_features_by_name),
        cmocka_unit_test(knows_what_cpus_do_badly),
        cmocka_unit_test(chooses_levels),
        cmocka_unit_test(survives_running_out_of_memory),
    };
    return cmocka_run_group_tests_name("registry", tests, NULL, NULL);
}
