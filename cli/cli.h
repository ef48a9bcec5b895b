/*
 * cli.h: the command table of `chimera`. One description of each command (options, types, ranges, words, examples)
 * drives parsing, -h, --help, the manual pages, the shells' completion, the tables of docs/reference.md and the
 * suggestions for what was mistyped.
 *
 * Every file here includes <chimera/chimera.h> and libc, and nothing else of the library.
 */
#ifndef CHIMERA_CLI_H
#define CHIMERA_CLI_H

#include <chimera/chimera.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#define CLI_COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

enum cli_type {
    CLI_FLAG,   /* no value */
    CLI_TEXT,   /* one value; the last stands */
    CLI_REPEAT, /* one value each time; all are kept */
    CLI_FILES,  /* values up to the next option, and again; all are kept */
    CLI_INT,    /* a whole number */
    CLI_TOKENS, /* a whole number that may end in K, M, B or T (powers of a thousand) */
    CLI_SEED,   /* 0 .. 2^64 - 1 */
    CLI_REAL,
    CLI_CHOICE, /* one of `choices` */
};

struct cli_option {
    const char *name; /* "data": --data */
    char letter;      /* 'o': -o; 0: none */
    enum cli_type type;
    /* placeholder in help; it also says what a shell completes: "FILE", "OUT", "X.safetensors", "MODEL.b158": files;
     * "DIR": directories; "BACKEND", "KIND", "PLUGIN": such names; anything else: nothing */
    const char *value;
    const char *choices; /* "text|json" */
    double min, max;
    const char *unit; /* "seconds"; in messages */
    const char *doc;  /* one line */
    bool required;
};

struct cli_value {
    bool given;
    const char *text;   /* as typed */
    const char **items; /* CLI_REPEAT, CLI_FILES */
    uint32_t count;
    int64_t integer; /* CLI_INT, CLI_TOKENS; CLI_CHOICE: its index */
    uint64_t seed;
    double real;
};

struct cli_example {
    const char *line, *what;
};

struct cli;
struct cli_command {
    /* "train", "CARD"; "plugins list" is a command of its own, found behind "plugins". Arguments complete as the
     * placeholders of options do; "CARD" and "MODEL" are files, "a|b" are words */
    const char *name, *arguments;
    const char *summary; /* one line */
    const char *text;    /* a paragraph or two for --help */
    int min_arguments, max_arguments;
    const struct cli_option *options;
    size_t option_count;
    const struct cli_example *examples;
    size_t example_count;
    bool no_runtime;           /* runs without looking for plugins */
    bool reports_only;         /* runs no model */
    int (*run)(struct cli *c); /* NULL: a group, of which only the commands behind it run */
};

struct cli {
    const struct cli_command *command;
    struct cli_value *values; /* of the command's options */
    struct cli_value *global; /* of cli_global_options */
    const char **arguments;
    int argument_count;
    chm_runtime *runtime;
    int verbosity; /* -1, 0, 1 */
};

extern const struct cli_command cli_train, cli_ablate, cli_report_command, cli_eval, cli_run, cli_init, cli_inspect,
    cli_convert, cli_check, cli_bench, cli_layer, cli_layer_test, cli_tokenizer, cli_tokenizer_train,
    cli_tokenizer_encode, cli_tokenizer_decode, cli_tokenizer_show, cli_data, cli_data_mqar, cli_data_parity,
    cli_data_majority, cli_state, cli_state_save, cli_state_load, cli_state_fork, cli_state_show, cli_plugins,
    cli_plugins_list, cli_plugins_show, cli_plugins_new, cli_doctor, cli_completion, cli_version, cli_help;
extern const struct cli_command *const cli_commands[]; /* NULL-terminated, in the order of the help */
extern const struct cli_option cli_global_options[];
extern const size_t cli_global_count;
extern const struct cli_exit_code {
    int code; /* enum chm_status */
    const char *meaning;
} cli_exit_codes[];
extern const size_t cli_exit_code_count;
extern const struct cli_variable { const char *name, *meaning; } cli_variables[]; /* of the environment */
extern const size_t cli_variable_count;

/* options.c: fills *c; CHM_OK, CHM_E_CONFIG (the sentence is printed), or -1: help was asked for and printed */
int cli_parse(struct cli *c, int argc, char **argv);
void cli_finish(struct cli *c);
/* The value of an option of this command, or a global one; the name must exist. */
const struct cli_value *cli_get(const struct cli *c, const char *name);
chm_output cli_format(const struct cli *c);
/* The overlay of --ini, --set and --no-environment. */
chm_overlay cli_overlay(const struct cli *c);
/* The nearest of n names (at(list, i) gives the i-th), or NULL when none is near. */
const char *cli_nearest(const char *word, const char *(*at)(const void *list, size_t i), const void *list, size_t n);

/* The command of these words ("plugins", "list"; verb may be NULL), or NULL. */
const struct cli_command *cli_find_command(const char *word, const char *verb);
/* Is `k` found behind `group`? "plugins list" is behind "plugins". Its last word then, else NULL. */
const char *cli_verb_of(const struct cli_command *group, const struct cli_command *k);
/* "train", "eval" and so on, not what is behind them */
bool cli_is_top(const struct cli_command *k);

/* help.c */
void cli_print_commands(FILE *out);
void cli_print_help(const struct cli_command *k, bool full, FILE *out);
/* "1..256 threads", "0 or more"; empty for options that are no numbers */
void cli_range(const struct cli_option *o, char *text, size_t n);
/* "-o", "--output" of an option, "" for what it has not; each at least 64 bytes */
void cli_spellings(const struct cli_option *o, char *letter, char *name);

/* manual.c: the same as a manual page; command NULL: chimera.1. And every table as Markdown, for docs/reference.md. */
void cli_print_manual(const struct cli_command *command, FILE *out);
void cli_print_markdown(FILE *out);

/* output.c */
void cli_open_standard_files(void);               /* none of 0, 1, 2 is closed from here on */
int cli_fail(int status, const char *format, ...) /* prints "chimera: ..."; returns status */
    __attribute__((format(printf, 2, 3)));
void cli_log(const char *line);                                /* a line of the library's log, on stderr */
int cli_report(int status);                                    /* prints chm_error() unless CHM_OK */
void cli_message(const struct cli *c, const char *format, ...) /* stderr, unless quiet */
    __attribute__((format(printf, 2, 3)));
void cli_verbose(const struct cli *c, const char *format, ...) /* the same, with --verbose only */
    __attribute__((format(printf, 2, 3)));
int cli_close_stdout(int status); /* what was written must have arrived */
/* All of a file (- is standard input), at most 1 GiB, the caller's to free; `what` names it in messages. */
int cli_read_text(const char *what, const char *path, char **text, size_t *bytes);
/* Refuses to write a stream to `out` where that is a file the command reads: the model that is its first argument, an
 * ini file, or the text (NULL: none). */
int cli_check_stream_out(const struct cli *c, const char *out, const char *text);
/* A runtime as the global options want it, but with this backend (NULL: theirs); a failure is reported. */
int cli_open_runtime(struct cli *c, const char *backend, chm_runtime **out);
/* Opens the model that is the i-th argument, with the overlay of the options; a failure is reported. */
int cli_open_model(struct cli *c, int i, chm_model **out);
/* Progress: one line rewritten on a terminal, a line each time elsewhere. */
void cli_progress(const struct cli *c, const char *line);
void cli_progress_end(void);
/* What chm_train() and chm_ablate_cell() have to say; user: the struct cli. */
void cli_show_training(void *user, const chm_progress *p);
bool cli_on_terminal(void); /* is standard error one that obeys? */
int cli_columns(void);      /* characters of a line there */
/* Is it time for a line again (a fifth of a second on a terminal, else ten)? *last is when one was last due, 0: now. */
bool cli_progress_due(double *last);
void cli_duration(double seconds, char *text, size_t n); /* "1:02", "3:04:05" */
void cli_count(double x, char *text, size_t size);       /* "12.3k", "4.0M" */
char *cli_printable(const char *text); /* a copy, to free, with '?' for what is not UTF-8 or a terminal would obey */
void cli_json_string(FILE *out, const char *text);
void cli_csv_string(FILE *out, const char *text);      /* quoted where it must be */
void cli_json_kernels(FILE *out, const char *kernels); /* "slot=backend ..." as an object */
void cli_json_real(FILE *out, double x);               /* null when not finite; reads back exactly */
double cli_now(void);                                  /* seconds, of a clock that only goes forward */
/* With --timing a block on standard error: a heading, then rows, then the kernels and threads that ran. */
bool cli_wants_timing(const struct cli *c);
void cli_timing(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
void cli_timing_rate(const char *name, int64_t tokens, double seconds);
void cli_timing_end(const struct cli *c, bool training);
/* Ctrl-C, TERM and HUP set cli_stop; the second one quits. */
extern volatile int cli_stop;
void cli_catch_interrupts(void);
/* A mapped file that was made shorter: a sentence and CHM_E_DATA. */
void cli_catch_lost_pages(void);
/* Ctrl-C sets cli_stop, as often as it comes, and interrupts what waits for input; TERM quits. */
void cli_catch_interrupts_always(void);

/* converse.c: questions and answers on a terminal */
int cli_converse(struct cli *c, chm_stream *stream, int64_t n, const chm_sampling *sampling);
const char *cli_editor_name(void); /* "libedit" or "none" */
/* The bytes of a token on standard output; bytes a terminal would obey are shown as '?'. */
void cli_put_text(const void *text, size_t bytes, bool terminal);

/* Options several commands share. */
#define CLI_TIMING_OPTION                                                                                              \
    {                                                                                                                  \
        .name = "timing", .type = CLI_FLAG,                                                                            \
        .doc = "afterwards, on standard error: seconds, tokens a second, and the kernels that ran"                     \
    }
#define CLI_OUTPUT_OPTION                                                                                              \
    {                                                                                                                  \
        .name = "output", .letter = 'o', .type = CLI_CHOICE, .value = "FORMAT", .choices = "text|json|csv|md",         \
        .doc = "how the report is written"                                                                             \
    }
#define CLI_OVERLAY_OPTIONS                                                                                            \
    {.name = "ini",                                                                                                    \
     .type = CLI_REPEAT,                                                                                               \
     .value = "FILE",                                                                                                  \
     .doc = "lay an ini file over the card; repeatable, in order"},                                                    \
        {.name = "set",                                                                                                \
         .type = CLI_REPEAT,                                                                                           \
         .value = "KEY=VALUE",                                                                                         \
         .doc = "override one value of the card (gd.chunk_size=64); repeatable, comes last"},                          \
    {                                                                                                                  \
        .name = "no-environment", .type = CLI_FLAG, .doc = "leave CHIMERA_* variables out of the card"                 \
    }

#endif
