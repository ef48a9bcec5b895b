/*
 * skeleton.c: chimera plugins new: a plugin that works, to change from there, and what builds it outside of the source
 * tree. In the texts below @ stands for the plugin's name.
 */
#include "cli.h"
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- sources ----------------------------------------------------------------------------------------------------- */

static const char layer_source[] =
    "/*\n"
    " * @: a layer for Chimera. What it starts as: every column keeps a running mean of what it was shown, which "
    "fades\n"
    " * at a rate the column has learnt, and a gate decides how much of it is told. Written with the host's operators\n"
    " * alone, so there is no backward pass to write. <chimera/tensor.h> lists the operators.\n"
    " */\n"
    "#include <chimera/plugin.h>\n"
    "\n"
    "/* The instance: options at the offsets of the table below, then what declare keeps. The host's, zeroed. */\n"
    "struct @_layer {\n"
    "    double slowest; /* option */\n"
    "    chm_param *in, *gate, *fade, *out, *norm;\n"
    "    int mean; /* the state */\n"
    "};\n"
    "\n"
    "/* Parameters and state. Names in files, initial values, optimiser groups and quantisation follow from these. */\n"
    "static int @_declare(void *self, chm_declare *d, const chm_layer_info *info) {\n"
    "    struct @_layer *m = self;\n"
    "    const int64_t width = info->width, per_head = width / info->heads;\n"
    "    m->in = chm_declare_matrix(d, \"in\", CHM_ROLE_TERNARY, chm_normal(0), width, width);\n"
    "    m->gate = chm_declare_matrix(d, \"gate\", CHM_ROLE_TERNARY, chm_normal(0), width, width);\n"
    "    m->out = chm_declare_matrix(d, \"out\", CHM_ROLE_TERNARY, chm_residual(), width, width);\n"
    "    m->fade = chm_declare_vector(d, \"fade\", CHM_ROLE_NORM, chm_linspace((float)m->slowest, 1), width);\n"
    "    /* the card may want a norm before every ternary linear; the host has already normalised x */\n"
    "    if (info->norm_before_linear) m->norm = chm_declare_vector(d, \"norm\", CHM_ROLE_NORM, chm_constant(1), "
    "width);\n"
    "    m->mean = chm_declare_state(d, \"mean\", CHM_F32, info->heads, 1, &per_head);\n"
    "    return CHM_OK;\n"
    "}\n"
    "\n"
    "/* x [rows, width], normalised -> y [rows, width], which the host adds to the residual stream. Operators that "
    "fail\n"
    " * return NULL and pass NULL on: the host reports the first sentence. */\n"
    "static chm_tensor *@_forward(const void *self, chm_graph *g, chm_tensor *x) {\n"
    "    const struct @_layer *m = self;\n"
    "    /* what each column forgets at this row, sigmoid(x + fade): mean = (1 - forget) mean + forget in(x) */\n"
    "    chm_tensor *forget = chm_sigmoid(g, chm_add(g, x, chm_param_tensor(g, m->fade)));\n"
    "    chm_tensor *news = chm_mul(g, forget, chm_linear(g, x, m->in));\n"
    "    chm_tensor *mean = chm_diag_scan(g, chm_affine(g, forget, -1, 1), news, m->mean);\n"
    "    chm_tensor *y = chm_mul(g, chm_sigmoid(g, chm_linear(g, x, m->gate)), mean);\n"
    "    if (m->norm) y = chm_rmsnorm(g, y, m->norm, 0);\n"
    "    return chm_linear(g, y, m->out);\n"
    "}\n"
    "\n"
    "/* The card's section \"@\" is checked against this table, and `chimera plugins show @` prints it. */\n"
    "static const struct chm_option options[] = {\n"
    "    {\"slowest\", CHM_OPT_FLOAT, offsetof(struct @_layer, slowest), \"-5\", -20, 1, NULL,\n"
    "     \"initial fade of the column that remembers longest, before the sigmoid\", 0, 0},\n"
    "};\n"
    "\n"
    "static const struct chm_layer_ops ops = {.size = sizeof ops, .declare = @_declare, .forward = @_forward};\n"
    "\n"
    "CHM_PLUGIN(@, .kind = CHM_KIND_LAYER, .section = \"@\", .version = \"0.1.0\", .licence = \"Apache-2.0\",\n"
    "           .summary = \"say here what @ does\", CHM_OPTIONS(options), .instance_size = sizeof(struct @_layer),\n"
    "           .ops = &ops);\n";

static const char backend_source[] =
    "/*\n"
    " * @: kernels for Chimera. A backend fills the slots of struct chm_kernels it does better and leaves the others "
    "to\n"
    " * the backends below it; `scalar` has all. What it starts as: the int8 product, plainly written. Slots that say\n"
    " * \"exact\" must give the bytes of `scalar`: the order of their sums is in <chimera/plugin.h>, and nothing may "
    "be\n"
    " * fused (-ffp-contract=off).\n"
    " */\n"
    "#include <chimera/plugin.h>\n"
    "\n"
    "/* Outputs out0 <= o < out1 of every row. Called from several threads, on parts that do not overlap. */\n"
    "static void @_int8_matmul(const struct chm_int8_matrix *w, int64_t out0, int64_t out1, const struct "
    "chm_activation *x,\n"
    "                          float *y, int64_t ldy) {\n"
    "    for (int64_t row = 0; row < x->rows; row++) {\n"
    "        for (int64_t o = out0; o < out1; o++) {\n"
    "            float sum = 0;\n"
    "            for (int64_t block = 0; block < x->blocks; block++) {\n"
    "                const int8_t *a = x->q + (row * x->blocks + block) * 64, *b = w->q + (o * w->blocks + block) * "
    "64;\n"
    "                int32_t dot = 0;\n"
    "                for (int i = 0; i < 64; i++) dot += a[i] * b[i];\n"
    "                sum = sum + (float)dot * (x->scale[row * x->blocks + block] * w->scale[o]);\n"
    "            }\n"
    "            y[row * ldy + o] = sum;\n"
    "        }\n"
    "    }\n"
    "}\n"
    "\n"
    "/* rank: the highest wins a slot. scalar has 0, openblas 100, avx2 200: until this one is faster it stays below. "
    "*/\n"
    "static const struct chm_backend_ops ops = {\n"
    "    .size = sizeof ops,\n"
    "    .rank = 50,\n"
    "    .kernels = {.size = sizeof(struct chm_kernels), .int8_matmul = @_int8_matmul},\n"
    "};\n"
    "\n"
    "/* .cpu = CHM_CPU_AVX2 | ...: what the code needs. Where it is missing the host refuses the file, unloaded. */\n"
    "CHM_PLUGIN(@, .kind = CHM_KIND_BACKEND, .version = \"0.1.0\", .licence = \"Apache-2.0\",\n"
    "           .summary = \"say here what @ is fast on\", .ops = &ops);\n";

static const char tokenizer_source[] =
    "/*\n"
    " * @: a tokenizer for Chimera. What it starts as: every byte is a token, with one token more for a newline that\n"
    " * follows a newline. Any bytes at all come back as they were, which is what to keep when changing it.\n"
    " */\n"
    "#include <chimera/plugin.h>\n"
    "\n"
    "enum { @_END = 256, @_PAD, @_BLANK_LINE, @_VOCAB };\n"
    "\n"
    "/* The instance. The host's, zeroed; what more is needed comes from host->alloc and goes in `finish`. */\n"
    "struct @_tokenizer {\n"
    "    bool ready;\n"
    "};\n"
    "\n"
    "/* data: the file that the card's files.tokenizer names, NULL and 0 when it names none. */\n"
    "static int @_init(void *self, const struct chm_host *host, const void *data, size_t bytes) {\n"
    "    struct @_tokenizer *t = self;\n"
    "    (void)data;\n"
    "    if (bytes > 0) return host->fail(CHM_E_CONFIG, \"tokenizer '@' reads no file\");\n"
    "    t->ready = true;\n"
    "    return CHM_OK;\n"
    "}\n"
    "\n"
    "static int32_t @_vocab_size(const void *self) {\n"
    "    (void)self;\n"
    "    return @_VOCAB;\n"
    "}\n"
    "\n"
    "/* Begins and ends every document. */\n"
    "static int32_t @_end_of_text(const void *self) {\n"
    "    (void)self;\n"
    "    return @_END;\n"
    "}\n"
    "\n"
    "/* Writes at most `cap` ids and returns how many the text has. Several threads may call it. */\n"
    "static int64_t @_encode(const void *self, const uint8_t *text, size_t bytes, int32_t *ids, size_t cap) {\n"
    "    int64_t n = 0;\n"
    "    (void)self;\n"
    "    for (size_t i = 0; i < bytes; i++) {\n"
    "        const bool blank = text[i] == '\\n' && i + 1 < bytes && text[i + 1] == '\\n';\n"
    "        if ((size_t)n < cap) ids[n] = blank ? @_BLANK_LINE : text[i];\n"
    "        n++;\n"
    "        i += blank;\n"
    "    }\n"
    "    return n;\n"
    "}\n"
    "\n"
    "/* The bytes of one id, at most `cap` of them; returns their number. 0 for specials, -1 for what is no id. */\n"
    "static int64_t @_decode(const void *self, int32_t id, uint8_t *out, size_t cap) {\n"
    "    (void)self;\n"
    "    if (id < 0 || id >= @_VOCAB) return -1;\n"
    "    if (id == @_END || id == @_PAD) return 0;\n"
    "    const int64_t n = id == @_BLANK_LINE ? 2 : 1;\n"
    "    for (int64_t i = 0; i < n && (size_t)i < cap; i++) out[i] = id == @_BLANK_LINE ? '\\n' : (uint8_t)id;\n"
    "    return n;\n"
    "}\n"
    "\n"
    "/* Where a text may be cut without changing its tokens: behind its last byte that is no newline. 0: nowhere yet. "
    "*/\n"
    "static size_t @_cut(const void *self, const uint8_t *text, size_t bytes) {\n"
    "    (void)self;\n"
    "    while (bytes > 0 && text[bytes - 1] == '\\n') bytes--;\n"
    "    return bytes;\n"
    "}\n"
    "\n"
    "static uint64_t @_properties(const void *self) {\n"
    "    (void)self;\n"
    "    return CHM_TOKENIZER_LOSSLESS;\n"
    "}\n"
    "\n"
    "static const struct chm_tokenizer_ops ops = {\n"
    "    .size = sizeof ops,\n"
    "    .init = @_init,\n"
    "    .vocab_size = @_vocab_size,\n"
    "    .end_of_text = @_end_of_text,\n"
    "    .encode = @_encode,\n"
    "    .decode = @_decode,\n"
    "    .cut = @_cut,\n"
    "    .properties = @_properties,\n"
    "};\n"
    "\n"
    "CHM_PLUGIN(@, .kind = CHM_KIND_TOKENIZER, .version = \"0.1.0\", .licence = \"Apache-2.0\",\n"
    "           .summary = \"say here what @ is for\", .instance_size = sizeof(struct @_tokenizer), .ops = &ops);\n";

static const char optimiser_source[] =
    "/*\n"
    " * @: an optimiser for Chimera. What it starts as: every weight goes by the sign of a running mean of its "
    "gradients,\n"
    " * one step of `lr` long, and decays as AdamW's do. <chimera/plugin.h> says what it is handed.\n"
    " */\n"
    "#include <chimera/plugin.h>\n"
    "\n"
    "/* The instance: options at the offsets of the table below. The host's, zeroed. */\n"
    "struct @_optimiser {\n"
    "    double momentum; /* option */\n"
    "};\n"
    "\n"
    "/* The card's section \"training.@\" is checked against this table, and `chimera plugins show @` prints it. */\n"
    "static const struct chm_option options[] = {\n"
    "    {\"momentum\", CHM_OPT_FLOAT, offsetof(struct @_optimiser, momentum), \"0.9\", 0, 0.9999, NULL,\n"
    "     \"part of the mean that stays in a step\", 0, 0},\n"
    "};\n"
    "\n"
    "/* Which parameters are moved here; AdamW moves the others. Here: what is no vector. */\n"
    "static bool @_takes(const void *self, const struct chm_optimiser_param *p) {\n"
    "    (void)self;\n"
    "    return p->rank > 1;\n"
    "}\n"
    "\n"
    "/* How many numbers are kept of every weight. The host keeps them, in checkpoints too. */\n"
    "static int @_arrays(const void *self, const struct chm_optimiser_param *p) {\n"
    "    (void)self;\n"
    "    (void)p;\n"
    "    return 1;\n"
    "}\n"
    "\n"
    "/* One step on some weights of one parameter. Called from several threads, and a run must not depend on them: "
    "use\n"
    " * nothing but what is handed over. */\n"
    "static void @_step(const void *self, const struct chm_optimiser_step *s) {\n"
    "    const struct @_optimiser *o = self;\n"
    "    const float keep = (float)o->momentum, scale = (float)s->gradient_scale;\n"
    "    const float lr = (float)s->lr, decay = (float)s->weight_decay;\n"
    "    float *mean = s->state[0];\n"
    "    for (int64_t i = 0; i < s->count; i++) {\n"
    "        mean[i] = keep * mean[i] + (1 - keep) * scale * s->gradient[i];\n"
    "        const float sign = mean[i] > 0 ? 1.0f : mean[i] < 0 ? -1.0f : 0.0f;\n"
    "        s->value[i] -= lr * (decay * s->value[i] + sign);\n"
    "    }\n"
    "}\n"
    "\n"
    "static const struct chm_optimiser_ops ops = {\n"
    "    .size = sizeof ops, .takes = @_takes, .arrays = @_arrays, .step = @_step};\n"
    "\n"
    "CHM_PLUGIN(@, .kind = CHM_KIND_OPTIMISER, .section = \"training.@\", .version = \"0.1.0\", .licence = "
    "\"Apache-2.0\",\n"
    "           .summary = \"say here what @ does\", CHM_OPTIONS(options), .instance_size = sizeof(struct "
    "@_optimiser),\n"
    "           .ops = &ops);\n";

/* ---- what builds them -------------------------------------------------------------------------------------------- */

/* %s: the folder of the kind */
static const char makefile[] =
    "# make; make install, make uninstall (as root where Chimera is root's, or with DESTDIR). Needs a C compiler,\n"
    "# pkg-config and Chimera's headers.\n"
    "# eval, because pkg-config quotes for a shell what has a space in it.\n"
    "CFLAGS ?= -O2 -g\n"
    "PKG_CONFIG ?= pkg-config\n"
    "\n"
    "@.so: @.c Makefile\n"
    "\tflags=$$($(PKG_CONFIG) --cflags chimera) && \\\n"
    "\t    eval \"$(CC) -std=c17 -Wall -Wextra -ffp-contract=off $(CFLAGS) $$flags\" \\\n"
    "\t    -fvisibility=hidden -fPIC -shared $(LDFLAGS) -o $@ $<\n"
    "\n"
    "install: @.so\n"
    "\tplugins=$$($(PKG_CONFIG) --variable=plugindir chimera) && eval \"plugins=$$plugins\" && \\\n"
    "\t    install -D -m 644 $< \"$(DESTDIR)$$plugins/%s/$<\"\n"
    "\n"
    "uninstall:\n"
    "\tplugins=$$($(PKG_CONFIG) --variable=plugindir chimera) && eval \"plugins=$$plugins\" && \\\n"
    "\t    rm -f \"$(DESTDIR)$$plugins/%s/@.so\"\n"
    "\n"
    "clean:\n"
    "\trm -f @.so\n"
    "\n"
    ".PHONY: install uninstall clean\n";

static const char meson_build[] =
    "# meson setup build && ninja -C build; build/@.so is the plugin.\n"
    "project('@', 'c', version: '0.1.0', default_options: ['c_std=c17', 'warning_level=2', "
    "'buildtype=debugoptimized'])\n"
    "chimera = dependency('chimera')\n"
    "shared_module('@', '@.c',\n"
    "  name_prefix: '',\n"
    "  c_args: '-ffp-contract=off',\n"
    "  dependencies: chimera.partial_dependency(compile_args: true, includes: true), # there is nothing to link with\n"
    "  gnu_symbol_visibility: 'hidden',\n"
    "  install: true,\n"
    "  install_dir: chimera.get_variable(pkgconfig: 'plugindir') / '%s')\n";

static const char readme_start[] = "# @\n"
                                   "\n"
                                   "A plugin for Chimera of the kind %s, made by `chimera plugins new`.\n";

static const char readme_build[] = "\n"
                                   "## Build\n"
                                   "\n"
                                   "    make            # or: meson setup build && ninja -C build\n"
                                   "\n"
                                   "It needs the headers and nothing to link against. If pkg-config does not find "
                                   "`chimera`, set `PKG_CONFIG_PATH` to the\n"
                                   "folder of `chimera.pc`.\n"
                                   "\n"
                                   "## Use\n"
                                   "\n"
                                   "    chimera plugins show @ --plugin-path \"$PWD\"\n";

static const char layer_use[] =
    "    chimera layer test @ --plugin-path \"$PWD\"\n"
    "    chimera train chimera-shakespeare --plugin-path \"$PWD\" --set backbone.layer_pattern=@ \\\n"
    "        --data book.txt --seconds 60 --out run/@\n"
    "    chimera run run/@/model.b158 --plugin-path \"$PWD\" -p \"Once upon a time\"\n"
    "\n"
    "`layer test` holds it to what every layer owes: the same bytes however a text is split, batched or threaded, no "
    "row\n"
    "sees a later one, streams fork and rewind, and gradients are derivatives. A model that was trained with it needs "
    "it\n"
    "wherever it runs.\n";

static const char backend_use[] =
    "    chimera eval model.b158 --plugin-path \"$PWD\" --data text.txt --backend @ --timing\n"
    "    chimera eval model.b158 --data text.txt --backend scalar\n"
    "\n"
    "Both must print the same score, to the last digit of `-o json`. `chimera bench` says which is faster.\n";

static const char tokenizer_use[] =
    "    chimera tokenizer show @ --plugin-path \"$PWD\"\n"
    "    chimera tokenizer encode @ letter.txt --plugin-path \"$PWD\" | chimera tokenizer decode @ - --plugin-path "
    "\"$PWD\"\n"
    "    chimera train chimera-shakespeare --plugin-path \"$PWD\" --set tokenizer.type=@ --set vocab_size=259 \\\n"
    "        --set token_ids='[256, 257]' --data book.txt --seconds 60 --out run/@\n"
    "\n"
    "A model that was trained with it needs it wherever it runs.\n";

static const char optimiser_use[] =
    "    chimera train chimera-shakespeare --plugin-path \"$PWD\" --set training.phases.pretrain.optimizer=@ \\\n"
    "        --set training.phases.pretrain.lr=0.0005 --data book.txt --seconds 60 --out run/@\n"
    "\n"
    "A run is resumed with the plugin it was begun with. The model it makes needs the plugin no more.\n";

static const char readme_end[] = "\n"
                                 "`make install` puts it beside Chimera's own plugins, and `--plugin-path` is no "
                                 "longer needed. `chimera doctor` says\n"
                                 "where plugins were looked for, and why a file was refused.\n";

static const struct {
    const char *kind, *folder, *source, *use;
} kinds[] = {{"layer", "layers", layer_source, layer_use},
             {"backend", "backends", backend_source, backend_use},
             {"tokenizer", "tokenizers", tokenizer_source, tokenizer_use},
             {"optimiser", "optimisers", optimiser_source, optimiser_use}};

/* ---- writing ----------------------------------------------------------------------------------------------------- */

/* @ becomes the name (in capitals before _CAPITALS), one %s the word; $@ of make stays. */
static void fill_in(FILE *out, const char *text, const char *name, const char *word) {
    for (const char *c = text; *c; c++) {
        if (*c == '@' && !(c > text && c[-1] == '$')) {
            const bool capitals = c[1] == '_' && isupper((unsigned char)c[2]);
            for (const char *n = name; *n; n++) putc(capitals ? toupper((unsigned char)*n) : *n, out);
        } else if (c[0] == '%' && c[1] == 's') {
            fputs(word, out);
            c++;
        } else {
            putc(*c, out);
        }
    }
}

/* Writes one new file of the given texts, NULL-terminated; nothing is overwritten. */
static int write_file(const char *directory, const char *file, const char *name, const char *word,
                      const char *const *texts) {
    char path[4096];
    if (snprintf(path, sizeof(path), "%s/%s", directory, file) >= (int)sizeof(path))
        return cli_fail(CHM_E_DATA, "plugins new: %s/%s: the path is too long", directory, file);
    FILE *out = fopen(path, "wx");
    if (out == NULL) return cli_fail(CHM_E_DATA, "plugins new: %s: %s", path, strerror(errno));
    for (; *texts; texts++) fill_in(out, *texts, name, word);
    const bool bad = ferror(out) != 0;
    if (fclose(out) != 0 || bad) return cli_fail(CHM_E_DATA, "plugins new: %s: %s", path, strerror(errno));
    return CHM_OK;
}

static bool is_plugin_name(const char *s) {
    const size_t n = strlen(s);
    if (n > 63 || !isalpha((unsigned char)s[0])) return false;
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)s[i]) && s[i] != '_') return false;
    return true;
}

/* With names that Meson keeps for its own targets, or that begin as the host's functions do, it would not build. */
static bool builds_as(const char *name) {
    static const char *const targets[] = {"all",  "benchmark", "clean",     "coverage", "dist",  "distcheck",
                                          "test", "install",   "uninstall", "phony",    "PHONY", "reconfigure"};
    for (size_t i = 0; i < CLI_COUNT_OF(targets); i++)
        if (strcmp(name, targets[i]) == 0) return false;
    return strncasecmp(name, "chm", 3) != 0 || (name[3] && name[3] != '_');
}

static const char *kind_at(const void *list, size_t i) {
    (void)list;
    return kinds[i].kind;
}

static int run_new(struct cli *c) {
    const char *name = c->arguments[0], *word = cli_get(c, "kind")->text;
    const struct cli_value *place = cli_get(c, "dir");
    const char *directory = place->given ? place->text : name;
    size_t kind = 0;
    char source[80], object[80];
    while (kind < CLI_COUNT_OF(kinds) && strcmp(kinds[kind].kind, word) != 0) kind++;
    if (kind == CLI_COUNT_OF(kinds)) {
        const char *near = cli_nearest(word, kind_at, NULL, CLI_COUNT_OF(kinds));
        return cli_fail(CHM_E_CONFIG,
                        "plugins new: no skeleton of kind '%s'%s%s%s: there are layer, backend, tokenizer, optimiser",
                        word, near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    if (!is_plugin_name(name))
        return cli_fail(CHM_E_CONFIG, "plugins new: '%s' is no name for a plugin: a letter, then letters, digits and _",
                        name);
    if (!builds_as(name))
        return cli_fail(CHM_E_CONFIG,
                        "plugins new: '%s' is a name that Meson or Chimera's own functions have: choose another", name);
    if (chm_plugins_check_name(c->runtime, name) != CHM_OK)
        return cli_fail(CHM_E_CONFIG, "plugins new: %s", chm_error());
    if (mkdir(directory, 0777) != 0) {
        if (errno == EEXIST)
            return cli_fail(
                CHM_E_DATA,
                "plugins new: %s is there already, and nothing is overwritten: choose another name or --dir",
                directory);
        return cli_fail(CHM_E_DATA, "plugins new: %s: %s", directory, strerror(errno));
    }
    snprintf(source, sizeof(source), "%s.c", name);
    snprintf(object, sizeof(object), "/%s.so\n/build/\n", name);
    int status = write_file(directory, source, name, "", (const char *const[]){kinds[kind].source, NULL});
    if (status == CHM_OK)
        status = write_file(directory, "Makefile", name, kinds[kind].folder, (const char *const[]){makefile, NULL});
    if (status == CHM_OK)
        status =
            write_file(directory, "meson.build", name, kinds[kind].folder, (const char *const[]){meson_build, NULL});
    if (status == CHM_OK)
        status = write_file(directory, "README.md", name, kinds[kind].kind,
                            (const char *const[]){readme_start, readme_build, kinds[kind].use, readme_end, NULL});
    if (status == CHM_OK) status = write_file(directory, ".gitignore", name, "", (const char *const[]){object, NULL});
    if (status == CHM_OK)
        cli_message(c, "wrote %s/%s, Makefile, meson.build and README.md, which says how to go on", directory, source);
    return status;
}

static const struct cli_option options[] = {
    {.name = "kind",
     .type = CLI_TEXT,
     .value = "KIND",
     .doc = "what it shall be: layer, backend, tokenizer or optimiser",
     .required = true},
    {.name = "dir", .type = CLI_TEXT, .value = "DIR", .doc = "the directory to make (NAME)"},
};

static const struct cli_example examples[] = {
    {"chimera plugins new mean --kind layer", "writes mean/mean.c, a layer that works, and what builds it"},
    {"make -C mean && chimera layer test mean --plugin-path $PWD/mean", "builds and tests it"},
};

const struct cli_command cli_plugins_new = {
    .name = "plugins new",
    .arguments = "NAME",
    .summary = "writes a plugin to start from",
    .text = "The directory has a plugin that works, a Makefile and a meson.build for it, and a README.md with the next "
            "steps.\n"
            "It builds against the installed headers (pkg-config chimera), with no need of Chimera's sources.",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = CLI_COUNT_OF(options),
    .examples = examples,
    .example_count = CLI_COUNT_OF(examples),
    .reports_only = true,
    .run = run_new};
