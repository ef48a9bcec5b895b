/*
 * converse.c: chimera run on a terminal: what is typed is read by the model, which writes on; then it is your turn.
 *
 * There is one stream from the first turn to the last: its state is of one size and nothing is read twice. The model
 * reads what stands on the screen: a turn with the newline that ended it, its own answer, and a newline after an answer
 * that did not end with one.
 *
 * Lines are edited with libedit when it was there at build time, and by the terminal itself otherwise or when TERM is
 * dumb. libedit gets Ctrl-C as a key (it throws the line away) and restores the terminal on every other signal.
 */
#include "cli.h"
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef CLI_HAVE_LIBEDIT
#include <histedit.h>
const char *cli_editor_name(void) { return "libedit"; }
#else
const char *cli_editor_name(void) { return "none"; }
#endif

/* ---- lines ------------------------------------------------------------------------------------------------------- */

struct reader {
    const char *prompt;
    bool interrupted; /* by Ctrl-C, during the line */
#ifdef CLI_HAVE_LIBEDIT
    EditLine *edit; /* NULL: the terminal edits */
    History *history;
    char history_path[4096]; /* "": not kept */
#endif
};

#ifdef CLI_HAVE_LIBEDIT
static char *prompt_of(EditLine *edit) {
    struct reader *r = NULL;
    el_get(edit, EL_CLIENTDATA, &r);
    return (char *)(uintptr_t)r->prompt; /* libedit does not write to it */
}

static unsigned char on_interrupt_key(EditLine *edit, int key) {
    struct reader *r = NULL;
    (void)key;
    el_get(edit, EL_CLIENTDATA, &r);
    r->interrupted = true;
    return CC_EOF;
}

static unsigned char on_suspend_key(EditLine *edit, int key) {
    (void)edit, (void)key;
    raise(SIGTSTP); /* libedit's handler hands the terminal back, and takes it again on SIGCONT */
    return CC_REDISPLAY;
}

/* $XDG_STATE_HOME/chimera/history, its folders made; "" where there is no such place. */
static void find_history(char *path, size_t n) {
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    path[0] = '\0';
    int used = -1;
    if (state && state[0] == '/')
        used = snprintf(path, n, "%s/chimera/history", state);
    else if (home && home[0] == '/')
        used = snprintf(path, n, "%s/.local/state/chimera/history", home);
    if (used < 0 || (size_t)used >= n) {
        path[0] = '\0';
        return;
    }
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        const bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        *slash = '/';
        if (!made) {
            path[0] = '\0';
            return;
        }
    }
}

enum { HISTORY_LINES = 1000 };

/* The history's file, other conversations kept out until it is closed; NULL: there is none, or it cannot be written. */
static FILE *open_history(const struct reader *r, int flags) {
    const int fd = r->history_path[0] ? open(r->history_path, O_RDWR | O_APPEND | O_CLOEXEC | flags, 0600) : -1;
    if (fd < 0) return NULL;
    FILE *file = flock(fd, LOCK_EX) == 0 ? fdopen(fd, "a") : NULL;
    if (file == NULL) close(fd);
    return file;
}

/* What was typed before; and the file is cut to the last lines again. */
static void load_history(struct reader *r) {
    HistEvent event;
    FILE *file = open_history(r, 0);
    if (file == NULL) return;
    if (history(r->history, &event, H_LOAD, r->history_path) > HISTORY_LINES)
        history(r->history, &event, H_SAVE, r->history_path);
    fclose(file);
}

/* Each line when it is typed: no signal takes it, and conversations side by side keep theirs. */
static void keep_line(const struct reader *r, const char *line) {
    HistEvent event;
    FILE *file = open_history(r, O_CREAT);
    History *one = file ? history_init() : NULL;
    if (one != NULL) {
        history(one, &event, H_SETSIZE, 1);
        history(one, &event, H_ENTER, line);
        fseek(file, 0, SEEK_END); /* an empty file gets libedit's first line */
        history(one, &event, H_SAVE_FP, file);
        history_end(one);
    }
    if (file) fclose(file);
}

static void reader_init(struct reader *r, bool keep_history) {
    HistEvent event;
    const char *term = getenv("TERM");
    memset(r, 0, sizeof(*r));
    if (term == NULL || strcmp(term, "dumb") == 0) return;
    if (setlocale(LC_CTYPE, "") == NULL || MB_CUR_MAX == 1) setlocale(LC_CTYPE, "C.UTF-8");
    r->edit = el_init("chimera", stdin, stdout, stderr);
    if (r->edit == NULL) return;
    el_set(r->edit, EL_CLIENTDATA, r);
    el_set(r->edit, EL_PROMPT, prompt_of);
    el_set(r->edit, EL_EDITOR, "emacs");
    el_set(r->edit, EL_SIGNAL, 1);
    /* keys that would be signals are keys while a line is edited */
    el_set(r->edit, EL_SETTY, "-d", "-isig", NULL);
    el_wset(r->edit, EL_ADDFN, L"chimera-interrupt", L"throws the line away", on_interrupt_key); /* el_set leaks */
    el_wset(r->edit, EL_ADDFN, L"chimera-suspend", L"stops the program until fg", on_suspend_key);
    el_set(r->edit, EL_BIND, "^C", "chimera-interrupt", NULL);
    el_set(r->edit, EL_BIND, "^Z", "chimera-suspend", NULL);
    el_set(r->edit, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(r->edit, EL_BIND, "^I", "ed-insert", NULL); /* there is nothing to complete */
    r->history = history_init();
    if (r->history == NULL) return;
    history(r->history, &event, H_SETSIZE, HISTORY_LINES);
    history(r->history, &event, H_SETUNIQUE, 1);
    el_set(r->edit, EL_HIST, history, r->history);
    if (!keep_history) return;
    find_history(r->history_path, sizeof(r->history_path));
    load_history(r);
}

static void reader_finish(struct reader *r) {
    if (r->history) history_end(r->history);
    if (r->edit) el_end(r->edit);
}

static char *edited_line(struct reader *r) {
    HistEvent event;
    int n = 0;
    const char *line = el_gets(r->edit, &n);
    if (line == NULL || n <= 0) return NULL;
    if (line[0] != '\n' && history(r->history, &event, H_ENTER, line) > 0) keep_line(r, line);
    return strndup(line, line[n - 1] == '\n' ? (size_t)n - 1 : (size_t)n);
}
#else
static void reader_init(struct reader *r, bool keep_history) {
    (void)keep_history;
    memset(r, 0, sizeof(*r));
}
static void reader_finish(struct reader *r) { (void)r; }
#endif

/* The next line without its newline, the caller's to free. NULL at the end of the input, or with r->interrupted. */
static char *read_line(struct reader *r, const char *prompt) {
    r->prompt = prompt;
    r->interrupted = false;
#ifdef CLI_HAVE_LIBEDIT
    if (r->edit && r->history) {
        char *line = edited_line(r);
        if (line == NULL) putchar('\n');
        return line;
    }
#endif
    char *line = NULL;
    size_t size = 0;
    fputs(prompt, stdout);
    fflush(stdout);
    /* Ctrl-C is let through only while waiting, so that none comes between looking and waiting. A terminal hands out
     * whole lines: what is waiting is not in stdin's buffer, and then reading does not wait. */
    sigset_t interrupt, before;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, &before);
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    while (!cli_stop && ppoll(&input, 1, NULL, &before) < 0 && errno == EINTR) {}
    sigprocmask(SIG_SETMASK, &before, NULL);
    const ssize_t n = cli_stop ? -1 : getline(&line, &size, stdin);
    if (n < 0) {
        r->interrupted = cli_stop != 0;
        clearerr(stdin);
        free(line);
        putchar('\n');
        return NULL;
    }
    if (n > 0 && line[n - 1] == '\n') line[n - 1] = '\0';
    return line;
}

/* ---- turns ------------------------------------------------------------------------------------------------------- */

/* Appends a line and a newline to *text; false when out of memory, and then *text is gone. */
static bool append_line(char **text, size_t *bytes, const char *line, size_t n) {
    char *more = realloc(*text, *bytes + n + 2);
    if (more == NULL) {
        free(*text);
        *text = NULL;
        return false;
    }
    memcpy(more + *bytes, line, n);
    memcpy(more + *bytes + n, "\n", 2);
    *text = more;
    *bytes += n + 1;
    return true;
}

static bool ends_with_fence(const char *line, size_t n) { return n >= 3 && memcmp(line + n - 3, "\"\"\"", 3) == 0; }

/*
 * One turn, with its newlines: a line; lines joined by a backslash at their end; or all between two fences of three
 * quotation marks (*fenced: never a command). NULL at the end of the input, when interrupted, or (*failed) when out of
 * memory.
 */
static char *read_turn(struct reader *r, size_t *bytes, bool *fenced, bool *failed) {
    char *text = NULL, *line = read_line(r, "> ");
    *bytes = 0;
    *fenced = *failed = false;
    if (line == NULL) return NULL;
    bool more = true;
    *fenced = strncmp(line, "\"\"\"", 3) == 0;
    size_t skip = *fenced ? 3 : 0;
    while (line && more) {
        size_t n = strlen(line) - skip;
        if (*fenced) {
            more = !ends_with_fence(line + skip, n);
            if (!more) n -= 3;
        } else {
            more = n > 0 && line[n - 1] == '\\';
            if (more) n--;
        }
        /* a fence alone on its line is no line of the turn */
        const bool bare = *fenced && n == 0 && (skip || !more);
        if (!bare && !append_line(&text, bytes, line + skip, n)) {
            *failed = true;
            free(line);
            return NULL;
        }
        free(line);
        line = more ? read_line(r, ". ") : NULL;
        skip = 0;
    }
    if (more && (line == NULL || r->interrupted)) { /* left in the middle */
        free(text);
        return NULL;
    }
    if (text == NULL) text = calloc(1, 1);
    *failed = text == NULL;
    return text;
}

struct answer {
    double first; /* when its first text came; 0: none has */
    int last;     /* its last byte; -1: none */
};

static int on_text(void *user, const void *text, size_t bytes) {
    struct answer *a = user;
    if (bytes > 0) {
        if (a->first == 0) a->first = cli_now();
        a->last = ((const unsigned char *)text)[bytes - 1];
        cli_put_text(text, bytes, true);
    }
    return cli_stop || fflush(stdout) != 0;
}

static const char *const verbs[] = {"/help", "/reset", "/exit"};
static const char *verb_at(const void *list, size_t i) {
    (void)list;
    return verbs[i];
}

/* Runs "/verb"; false to leave. */
static bool run_verb(chm_stream *stream, const char *line, bool *open_line) {
    if (strcmp(line, "/exit") == 0) return false;
    if (strcmp(line, "/reset") == 0) {
        chm_stream_restart(stream);
        *open_line = false;
    } else if (strcmp(line, "/help") == 0) {
        fputs("The model reads what you write and goes on from there; an empty line lets it go on by itself.\n"
              "A line that ends with \\ goes on in the next; \"\"\" begins and ends a text of many lines.\n"
              "  /reset  forget everything: a new text\n"
              "  /exit   leave, as Ctrl-D does\n"
              "  /help   this\n"
              "Ctrl-C stops an answer, or throws away what you are typing.\n",
              stdout);
    } else {
        const char *near = cli_nearest(line, verb_at, NULL, CLI_COUNT_OF(verbs));
        cli_fail(CHM_E_CONFIG, "no command '%s'%s%s%s; /help lists them (a text that begins with / goes into \"\"\")",
                 line, near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    return true;
}

static int answer(struct cli *c, chm_stream *stream, const char *text, size_t bytes, int64_t n,
                  const chm_sampling *sampling, bool *open_line) {
    struct answer a = {.last = -1};
    chm_generate_result result = {.size = sizeof(result)};
    const double begun = cli_now();
    const int status = chm_generate(stream, text, bytes, n, sampling, on_text, &a, &result);
    if (a.last >= 0) *open_line = a.last != '\n';
    if (*open_line || cli_stop) putchar('\n');
    fflush(stdout);
    if (status != CHM_OK) return cli_report(status);
    if (cli_stop && result.tokens == 0)
        cli_message(c, "stopped while reading, after %lld tokens", (long long)result.prompt_tokens);
    else if (cli_stop)
        cli_message(c, "stopped after %lld token%s", (long long)result.tokens, result.tokens == 1 ? "" : "s");
    if (cli_wants_timing(c)) {
        if (a.first > 0) cli_timing("first token", "%.3f s", a.first - begun);
        cli_timing_rate("prefill", result.prompt_tokens, result.prefill_seconds);
        cli_timing_rate("decode", result.tokens, result.decode_seconds);
        cli_timing_end(c, false);
    }
    return CHM_OK;
}

int cli_converse(struct cli *c, chm_stream *stream, int64_t n, const chm_sampling *sampling) {
    struct reader reader;
    int status = CHM_OK;
    bool open_line = false; /* the text so far does not end with a newline */
    reader_init(&reader, !cli_get(c, "no-history")->given);
    cli_catch_interrupts_always();
    cli_message(c, "%s, seed %llu. /help explains, Ctrl-C stops an answer, Ctrl-D leaves.", c->arguments[0],
                (unsigned long long)sampling->seed);
    while (status == CHM_OK) {
        size_t bytes;
        bool fenced, failed;
        cli_stop = 0;
        char *text = read_turn(&reader, &bytes, &fenced, &failed);
        if (failed) {
            status = cli_fail(CHM_E_MEMORY, "out of memory while reading what was typed");
        } else if (text == NULL) {
            if (reader.interrupted) continue;
            break;
        } else if (!fenced && text[0] == '/' && strchr(text, '\n') == text + bytes - 1) {
            text[bytes - 1] = '\0';
            const bool stay = run_verb(stream, text, &open_line);
            free(text);
            if (!stay) break;
            continue;
        } else {
            const bool nothing = bytes <= 1; /* an empty line is no text: the model goes on */
            if (!nothing && open_line) {
                char *joined = malloc(bytes + 2);
                if (joined) {
                    joined[0] = '\n';
                    memcpy(joined + 1, text, bytes + 1);
                    bytes++;
                }
                free(text);
                text = joined;
                if (text == NULL) status = cli_fail(CHM_E_MEMORY, "out of memory for what was typed");
            }
            if (!nothing) open_line = false;
            if (status == CHM_OK) status = answer(c, stream, text, nothing ? 0 : bytes, n, sampling, &open_line);
            if (status == CHM_E_CONFIG) status = CHM_OK; /* said; the next turn may do better */
            if (ferror(stdout)) status = CHM_E_DATA;     /* main says why */
        }
        free(text);
    }
    reader_finish(&reader);
    return status;
}
