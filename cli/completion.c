/* completion.c: chimera completion bash|zsh|fish: what the shells complete, from the command table. */
#include "cli.h"
#include <string.h>

/* What stands at a place of the line. */
enum thing { NOTHING, A_FILE, A_CARD, A_DIRECTORY, A_BACKEND, A_LAYER, A_PLUGIN, A_COMMAND, WORDS };

/* A row of chimera doctor has the names of the cards that come with it. */
static const char card_names[] = "chimera doctor -o csv 2>/dev/null | sed -n 's/^cards,.*,\\([^,]*\\),$/\\1/p'";

/* The words of a thing that has a fixed set go to *words, separated by '|'. */
static enum thing thing_of(const char *placeholder, const char **words) {
    static const struct {
        const char *part; /* of the placeholder */
        enum thing thing;
    } known[] = {{"FILE", A_FILE},      {"STUDY", A_FILE},      {"OUT", A_FILE},       {"CARD", A_CARD},
                 {"TOKENIZER", A_FILE}, {"MODEL", A_FILE},      {"TOKENIZER", A_FILE}, {"safetensors", A_FILE},
                 {"DIR", A_DIRECTORY},  {"BACKEND", A_BACKEND}, {"PLUGIN", A_LAYER},   {"COMMAND", A_COMMAND},
                 {"NAME", A_PLUGIN}};
    *words = NULL;
    if (strcmp(placeholder, "KIND") == 0) {
        *words = "layer|backend|tokenizer";
        return WORDS;
    }
    if (strchr(placeholder, '|')) {
        *words = placeholder;
        return WORDS;
    }
    for (size_t i = 0; i < CLI_COUNT_OF(known); i++)
        if (strstr(placeholder, known[i].part)) return known[i].thing;
    return NOTHING;
}

static enum thing value_of(const struct cli_option *o, const char **words) {
    if (o->type == CLI_CHOICE) {
        *words = o->choices;
        return WORDS;
    }
    return thing_of(o->value, words);
}

/* a plugin that is made has no name yet */
static enum thing argument_of(const struct cli_command *k, const char **words) {
    *words = NULL;
    return strcmp(k->name, "plugins new") == 0 ? NOTHING : thing_of(k->arguments, words);
}

static bool has_verbs(const struct cli_command *k) {
    for (size_t i = 0; cli_commands[i]; i++)
        if (cli_verb_of(k, cli_commands[i])) return true;
    return false;
}

static void put_words(const char *words, FILE *out) {
    for (const char *c = words; *c; c++) putc(*c == '|' ? ' ' : *c, out);
}

static void put_verbs(const struct cli_command *k, FILE *out) {
    for (size_t i = 0, n = 0; cli_commands[i]; i++) {
        const char *verb = cli_verb_of(k, cli_commands[i]);
        if (verb) fprintf(out, "%s%s", n++ ? " " : "", verb);
    }
}

static void put_commands(FILE *out) {
    for (size_t i = 0, n = 0; cli_commands[i]; i++)
        if (cli_is_top(cli_commands[i])) fprintf(out, "%s%s", n++ ? " " : "", cli_commands[i]->name);
}

static void put_spellings(const struct cli_option *o, const char *between, FILE *out) {
    char letter[64], name[64];
    cli_spellings(o, letter, name);
    fprintf(out, "%s%s%s", letter, letter[0] && name[0] ? between : "", name);
}

/* Text between single quotes of a POSIX shell or of fish; `escape`: characters that get a backslash before them. */
static void put_quoted(const char *text, const char *escape, FILE *out) {
    for (const char *c = text; *c; c++) {
        if (*c == '\'')
            fputs("'\\''", out);
        else if (strchr(escape, *c))
            fprintf(out, "\\%c", *c);
        else
            putc(*c, out);
    }
}

/* ---- bash -------------------------------------------------------------------------------------------------------- */

static void bash_thing(enum thing thing, const char *words, FILE *out) {
    switch (thing) {
    case A_FILE:
        fputs("return", out); /* bash completes files when this function finds nothing */
        break;
    case A_CARD: /* and files, as above, where none begins so */
        fputs("[[ -z $cur ]] || words=$(_chimera_cards)", out);
        break;
    case A_DIRECTORY:
        fputs("compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- \"$cur\"))", out);
        break;
    case A_BACKEND:
        fputs("words=$(_chimera_plugins backend)", out);
        break;
    case A_LAYER:
        fputs("words=$(_chimera_plugins layer)", out);
        break;
    case A_PLUGIN:
        fputs("words=$(_chimera_plugins)", out);
        break;
    case A_COMMAND:
        fputs("words=\"", out);
        put_commands(out);
        fputs("\"", out);
        break;
    case WORDS:
        fputs("words=\"", out);
        put_words(words, out);
        fputs("\"", out);
        break;
    case NOTHING:
        fputs("compopt +o default 2>/dev/null", out);
        break;
    }
}

static void bash_values(const char *command, const struct cli_option *options, size_t count, FILE *out) {
    for (size_t i = 0; i < count; i++) {
        const char *words = NULL;
        if (options[i].type == CLI_FLAG) continue;
        const enum thing thing = value_of(&options[i], &words);
        char letter[64], name[64];
        cli_spellings(&options[i], letter, name);
        fputs("    ", out);
        if (letter[0]) fprintf(out, "\"%s\":%s%s", command, letter, name[0] ? " | " : "");
        if (name[0]) fprintf(out, "\"%s\":%s", command, name);
        fputs(") ", out);
        bash_thing(thing, words, out);
        fputs(" ;;\n", out);
    }
}

static void print_bash(FILE *out) {
    fputs("# bash completion for chimera, made by `chimera completion bash`\n"
          "_chimera_plugins() {\n"
          "    chimera plugins list ${1:+--kind $1} -o csv 2>/dev/null | sed 1d | cut -d, -f2\n"
          "}\n"
          "_chimera_cards() {\n"
          "    ",
          out);
    fputs(card_names, out);
    fputs("\n"
          "}\n"
          "_chimera() {\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command= words= options= i\n"
          "    COMPREPLY=()\n"
          "    # bash takes --output=json apart at the sign\n"
          "    if [[ $cur == = ]]; then\n"
          "        cur=\n"
          "    elif [[ $prev == = ]]; then\n"
          "        prev=${COMP_WORDS[COMP_CWORD - 2]}\n"
          "    fi\n"
          "    for ((i = 1; i < COMP_CWORD; i++)); do\n"
          "        case \"$command\":${COMP_WORDS[i]} in\n        ",
          out);
    const char *bar = "";
    for (size_t i = 0; cli_commands[i]; i++) {
        if (!cli_is_top(cli_commands[i])) continue;
        fprintf(out, "%s:%s", bar, cli_commands[i]->name);
        bar = " | ";
    }
    fputs(") command=${COMP_WORDS[i]} ;;\n        ", out);
    bar = "";
    for (size_t i = 0; cli_commands[i]; i++)
        for (size_t j = 0; cli_commands[j]; j++) {
            const char *verb = cli_verb_of(cli_commands[i], cli_commands[j]);
            if (verb == NULL) continue;
            fprintf(out, "%s%s:%s", bar, cli_commands[i]->name, verb);
            bar = " | ";
        }
    fputs(") command+=\" ${COMP_WORDS[i]}\" ;;\n"
          "        esac\n"
          "    done\n"
          "    case $command:$prev in\n",
          out);
    for (size_t i = 0; cli_commands[i]; i++)
        bash_values(cli_commands[i]->name, cli_commands[i]->options, cli_commands[i]->option_count, out);
    for (size_t i = 0; i < cli_global_count; i++) {
        const char *words = NULL;
        if (cli_global_options[i].type == CLI_FLAG) continue;
        fputs("    *:", out);
        put_spellings(&cli_global_options[i], " | *:", out);
        fputs(") ", out);
        const enum thing thing = value_of(&cli_global_options[i], &words);
        bash_thing(thing, words, out);
        fputs(" ;;\n", out);
    }
    fputs("    *)\n"
          "        case $command in\n"
          "        '')\n            options=\"--version\"\n            words=\"",
          out);
    put_commands(out);
    fputs("\"\n            ;;\n", out);
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *k = cli_commands[i];
        const char *words;
        fprintf(out, "        \"%s\")\n            options=\"", k->name);
        for (size_t j = 0; j < k->option_count; j++) {
            fputs(j ? " " : "", out);
            put_spellings(&k->options[j], " ", out);
        }
        fputs("\"\n            ", out);
        const enum thing thing = argument_of(k, &words);
        if (thing == A_FILE)
            fputs(":", out);
        else
            bash_thing(k->run ? thing : NOTHING, words, out);
        putc('\n', out);
        if (has_verbs(k)) {
            fputs("            words+=\" ", out);
            put_verbs(k, out);
            fputs("\"\n", out);
        }
        fputs("            ;;\n", out);
    }
    fputs("        esac\n"
          "        if [[ $cur == -* ]]; then\n"
          "            words=\"$options",
          out);
    for (size_t i = 0; i < cli_global_count; i++) {
        putc(' ', out);
        put_spellings(&cli_global_options[i], " ", out);
    }
    fputs(" -h --help\"\n"
          "        fi\n"
          "        ;;\n"
          "    esac\n"
          "    [[ -z $words ]] || COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
          "}\n"
          "complete -o default -F _chimera chimera\n",
          out);
}

/* ---- zsh --------------------------------------------------------------------------------------------------------- */

static void zsh_thing(enum thing thing, const char *words, FILE *out) {
    switch (thing) {
    case A_FILE:
        fputs("_files", out);
        break;
    case A_CARD:
        fputs("_chimera_cards", out);
        break;
    case A_DIRECTORY:
        fputs("_files -/", out);
        break;
    case A_BACKEND:
        fputs("_chimera_plugins backend", out);
        break;
    case A_LAYER:
        fputs("_chimera_plugins layer", out);
        break;
    case A_PLUGIN:
        fputs("_chimera_plugins", out);
        break;
    case A_COMMAND:
        fputs("(", out);
        put_commands(out);
        fputs(")", out);
        break;
    case WORDS:
        fputs("(", out);
        put_words(words, out);
        fputs(")", out);
        break;
    case NOTHING:
        putc(' ', out); /* a message and nothing to choose from */
        break;
    }
}

static void zsh_option(const struct cli_option *o, FILE *out) {
    char letter[64], name[64];
    const char *words = NULL;
    const bool value = o->type != CLI_FLAG;
    const char *repeat = o->type == CLI_REPEAT || o->type == CLI_FILES ? "*" : "";
    cli_spellings(o, letter, name);
    fputs("        ", out);
    if (letter[0] && name[0] && repeat[0])
        fprintf(out, "'*'{%s,%s%s}'", letter, name, value ? "=" : "");
    else if (letter[0] && name[0])
        fprintf(out, "'(%s %s)'{%s,%s%s}'", letter, name, letter, name, value ? "=" : "");
    else
        fprintf(out, "'%s%s%s", repeat, letter[0] ? letter : name, value && name[0] ? "=" : "");
    putc('[', out);
    put_quoted(o->doc, "[]:\\", out);
    putc(']', out);
    if (value) {
        putc(':', out);
        put_quoted(o->value, ":\\", out);
        putc(':', out);
        const enum thing thing = value_of(o, &words);
        zsh_thing(thing, words, out);
    }
    fputs("' \\\n", out);
}

static void print_zsh(FILE *out) {
    fputs("#compdef chimera\n"
          "# zsh completion for chimera, made by `chimera completion zsh`\n"
          "_chimera_plugins() {\n"
          "    local -a names\n"
          "    names=(${(f)\"$(_call_program plugins chimera plugins list ${1:+--kind} $1 -o csv 2>/dev/null |\n"
          "        sed 1d | cut -d, -f2)\"})\n"
          "    compadd -a names\n"
          "}\n"
          "_chimera_cards() {\n"
          "    local -a names\n"
          "    names=($(",
          out);
    fputs(card_names, out);
    fputs("))\n"
          "    compadd -a names\n"
          "    _files\n"
          "}\n"
          "_chimera() {\n"
          "    local curcontext=$curcontext state line\n"
          "    local -a every commands\n"
          "    every=(\n",
          out);
    for (size_t i = 0; i < cli_global_count; i++) {
        /* the same lines without their continuation: this is an array */
        const struct cli_option *o = &cli_global_options[i];
        zsh_option(o, out);
    }
    fputs("        '(-h --help)'{-h,--help}'[help, short or with examples]'\n"
          "    )\n"
          "    commands=(\n",
          out);
    for (size_t i = 0; cli_commands[i]; i++) {
        if (!cli_is_top(cli_commands[i])) continue;
        fprintf(out, "        '%s:", cli_commands[i]->name);
        put_quoted(cli_commands[i]->summary, "", out);
        fputs("'\n", out);
    }
    fputs("    )\n"
          "    _arguments -C $every '--version[print the version]' '1:command:->command' '*::argument:->argument' && "
          "return\n"
          "    if [[ $state == command ]]; then\n"
          "        _describe command commands\n"
          "        return\n"
          "    fi\n"
          "    local command=$words[1]\n"
          "    if (( CURRENT > 2 )); then\n"
          "        case \"$command $words[2]\" in\n",
          out);
    for (size_t i = 0; cli_commands[i]; i++)
        if (!cli_is_top(cli_commands[i]))
            fprintf(out, "        '%s') command='%s'; shift words; (( CURRENT-- )) ;;\n", cli_commands[i]->name,
                    cli_commands[i]->name);
    fputs("        esac\n"
          "    fi\n"
          "    case $command in\n",
          out);
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *k = cli_commands[i];
        const char *words;
        fprintf(out, "    '%s')\n", k->name);
        if (has_verbs(k)) {
            fputs("        if (( CURRENT == 2 )); then\n            compadd ", out);
            put_verbs(k, out);
            fputs("\n        fi\n", out);
        }
        fputs("        _arguments $every \\\n", out);
        for (size_t j = 0; j < k->option_count; j++) zsh_option(&k->options[j], out);
        const enum thing thing = argument_of(k, &words);
        if (k->run && k->arguments[0]) {
            fputs("        '*:", out);
            put_quoted(k->arguments, ":\\", out);
            putc(':', out);
            zsh_thing(thing, words, out);
            fputs("'\n", out);
        } else {
            fputs("        '*: : '\n", out);
        }
        fputs("        ;;\n", out);
    }
    fputs("    esac\n"
          "}\n"
          "if [[ $funcstack[1] == _chimera ]]; then\n"
          "    _chimera \"$@\"\n"
          "else\n"
          "    compdef _chimera chimera\n"
          "fi\n",
          out);
}

/* ---- fish -------------------------------------------------------------------------------------------------------- */

static void fish_thing(enum thing thing, const char *words, FILE *out) {
    switch (thing) {
    case A_FILE:
        fputs(" -F", out);
        break;
    case A_CARD:
        fputs(" -F -a '(__chimera_cards)'", out);
        break;
    case A_DIRECTORY:
        fputs(" -a '(__fish_complete_directories)'", out);
        break;
    case A_BACKEND:
        fputs(" -a '(__chimera_plugins --kind backend)'", out);
        break;
    case A_LAYER:
        fputs(" -a '(__chimera_plugins --kind layer)'", out);
        break;
    case A_PLUGIN:
        fputs(" -a '(__chimera_plugins)'", out);
        break;
    case A_COMMAND:
        fputs(" -a '", out);
        put_commands(out);
        fputs("'", out);
        break;
    case WORDS:
        fputs(" -a '", out);
        put_words(words, out);
        fputs("'", out);
        break;
    case NOTHING:
        break;
    }
}

/* `complete` and the condition that `k` is the command of the line; NULL: any line */
static void fish_start(const struct cli_command *k, FILE *out) {
    fputs("complete -c chimera", out);
    if (k == NULL) return;
    const char *space = strchr(k->name, ' ');
    fprintf(out, " -n '__fish_seen_subcommand_from %.*s", (int)strcspn(k->name, " "), k->name);
    if (space) fprintf(out, "; and __fish_seen_subcommand_from %s", space + 1);
    if (has_verbs(k)) {
        fputs("; and not __fish_seen_subcommand_from ", out);
        put_verbs(k, out);
    }
    putc('\'', out);
}

static void fish_option(const struct cli_command *k, const struct cli_option *o, FILE *out) {
    char letter[64], name[64];
    const char *words = NULL;
    cli_spellings(o, letter, name);
    fish_start(k, out);
    if (letter[0]) fprintf(out, " -s %s", letter + 1);
    if (name[0]) fprintf(out, " -l %s", name + 2);
    if (o->type != CLI_FLAG) {
        const enum thing thing = value_of(o, &words);
        fputs(thing == A_FILE || thing == A_CARD ? " -r" : " -x", out); /* -x: and no files */
        fish_thing(thing, words, out);
    }
    fputs(" -d '", out);
    put_quoted(o->doc, "\\", out);
    fputs("'\n", out);
}

static void print_fish(FILE *out) {
    fputs("# fish completion for chimera, made by `chimera completion fish`\n"
          "function __chimera_plugins\n"
          "    chimera plugins list $argv -o csv 2>/dev/null | sed 1d | cut -d, -f2\n"
          "end\n"
          "function __chimera_cards\n"
          "    ",
          out);
    fputs(card_names, out);
    fputs(" | string split ' '\n"
          "end\n"
          "complete -c chimera -f\n"
          "complete -c chimera -n __fish_use_subcommand -l version -d 'print the version'\n"
          "complete -c chimera -s h -l help -d 'help, short or with examples'\n",
          out);
    for (size_t i = 0; i < cli_global_count; i++) fish_option(NULL, &cli_global_options[i], out);
    for (size_t i = 0; cli_commands[i]; i++) {
        const struct cli_command *k = cli_commands[i];
        const char *words;
        if (cli_is_top(k)) {
            fprintf(out, "complete -c chimera -n __fish_use_subcommand -a %s -d '", k->name);
            put_quoted(k->summary, "\\", out);
            fputs("'\n", out);
        }
        for (size_t j = 0; cli_commands[j]; j++) {
            const char *verb = cli_verb_of(k, cli_commands[j]);
            if (verb == NULL) continue;
            fish_start(k, out);
            fprintf(out, " -a %s -d '", verb);
            put_quoted(cli_commands[j]->summary, "\\", out);
            fputs("'\n", out);
        }
        const enum thing thing = k->run ? argument_of(k, &words) : NOTHING;
        if (thing != NOTHING) {
            fish_start(k, out);
            fish_thing(thing, words, out);
            putc('\n', out);
        }
        for (size_t j = 0; j < k->option_count; j++) fish_option(k, &k->options[j], out);
    }
}

/* ---- chimera completion ------------------------------------------------------------------------------------------ */

static const struct cli_example examples[] = {
    {"source <(chimera completion bash)", "for this shell; installed packages have it in place already"},
    {"chimera completion fish > ~/.config/fish/completions/chimera.fish", "for every fish of yours"},
};

static int run_completion(struct cli *c) {
    static const struct {
        const char *name;
        void (*print)(FILE *out);
    } shells[] = {{"bash", print_bash}, {"zsh", print_zsh}, {"fish", print_fish}};
    for (size_t i = 0; i < CLI_COUNT_OF(shells); i++)
        if (strcmp(shells[i].name, c->arguments[0]) == 0) {
            shells[i].print(stdout);
            return CHM_OK;
        }
    return cli_fail(CHM_E_CONFIG, "completion: no shell '%s': expected one of bash, zsh, fish", c->arguments[0]);
}

const struct cli_command cli_completion = {.name = "completion",
                                           .arguments = "bash|zsh|fish",
                                           .summary = "prints what a shell needs to complete the words of chimera",
                                           .min_arguments = 1,
                                           .max_arguments = 1,
                                           .examples = examples,
                                           .example_count = CLI_COUNT_OF(examples),
                                           .no_runtime = true,
                                           .run = run_completion};
