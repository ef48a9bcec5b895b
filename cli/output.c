/* output.c: messages, progress, JSON, and a standard output that is watched. */
#include "cli.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* A descriptor closed by the caller would be handed to the first file opened. Opened the wrong way round, so that
 * writing to it still fails. */
void cli_open_standard_files(void) {
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) == -1 && errno == EBADF && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd)
            abort();
}

bool cli_on_terminal(void) {
    const char *term = getenv("TERM");
    return isatty(STDERR_FILENO) && term != NULL && strcmp(term, "dumb") != 0;
}

static bool stderr_has_colour(void) {
    const char *no = getenv("NO_COLOR");
    return (no == NULL || no[0] == '\0') && cli_on_terminal();
}

static int progress_width; /* characters of the line now on the terminal, 0: none */

void cli_progress_end(void) {
    if (progress_width > 0) fputc('\n', stderr);
    progress_width = 0;
}

int cli_columns(void) {
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col - 1 : 79;
}

void cli_progress(const struct cli *c, const char *line) {
    if (c->verbosity < 0) return;
    if (!cli_on_terminal()) {
        fprintf(stderr, "%s\n", line);
        return;
    }
    const int columns = cli_columns();
    int width = (int)strlen(line);
    if (width > columns) width = columns;
    fprintf(stderr, "\r%.*s", width, line);
    for (int i = width; i < progress_width; i++) fputc(' ', stderr);
    progress_width = width > 0 ? width : 1;
    fflush(stderr);
}

bool cli_progress_due(double *last) {
    const double now = cli_now();
    if (*last > 0 && now - *last < (cli_on_terminal() ? 0.2 : 10)) return false;
    *last = now;
    return true;
}

/* Bytes at s that a terminal would obey instead of showing them, 0: none. Unicode has its second set of control
 * characters (U+0080..U+009F) for the same. */
static size_t obeyed(const char *s, size_t n) {
    const unsigned char a = (unsigned char)s[0], b = n > 1 ? (unsigned char)s[1] : 0;
    if ((a < 0x20 && a != '\n' && a != '\t') || a == 0x7f) return 1;
    return a == 0xc2 && b >= 0x80 && b < 0xa0 ? 2 : 0;
}

/* With '?' for each of those. */
static void put_harmless(const char *text, size_t n, FILE *out) {
    for (size_t i = 0; i < n; i++) {
        const size_t bad = obeyed(text + i, n - i);
        putc(bad ? '?' : text[i], out);
        i += bad > 1;
    }
}

/* Bytes of the UTF-8 character at s, 0 when there is none. */
static int utf8_length(const unsigned char *s) {
    static const struct {
        unsigned char low, high, second_low, second_high;
        int length;
    } form[] = {{0x01, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
                {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
                {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    for (size_t i = 0; i < CLI_COUNT_OF(form); i++) {
        if (s[0] < form[i].low || s[0] > form[i].high) continue;
        if (form[i].length > 1 && (s[1] < form[i].second_low || s[1] > form[i].second_high)) return 0;
        for (int k = 2; k < form[i].length; k++)
            if ((s[k] & 0xc0) != 0x80) return 0;
        return form[i].length;
    }
    return 0;
}

/* Words of the command line may be anything: what a terminal would obey, and what is not UTF-8, becomes '?'. */
static void make_printable(char *text) {
    for (unsigned char *s = (unsigned char *)text; *s;) {
        const int n = utf8_length(s);
        if (n == 0 || *s < 0x20 || *s == 0x7f || (*s == 0xc2 && s[1] < 0xa0)) *s = '?';
        s += n > 1 && *s != '?' ? n : 1;
    }
}

char *cli_printable(const char *text) {
    char *copy = strdup(text);
    if (copy != NULL) make_printable(copy);
    return copy;
}

static void print_prefixed(const char *text) {
    const bool colour = stderr_has_colour();
    cli_progress_end();
    while (*text) { /* each problem on a line of its own */
        const char *end = strchr(text, '\n');
        const size_t n = end ? (size_t)(end - text) : strlen(text);
        fprintf(stderr, "%schimera:%s ", colour ? "\033[1;31m" : "", colour ? "\033[0m" : "");
        put_harmless(text, n, stderr); /* names and values out of files stand in these sentences */
        putc('\n', stderr);
        text += n + (end != NULL);
    }
}

int cli_fail(int status, const char *format, ...) {
    char text[4096];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof(text), format, list);
    va_end(list);
    make_printable(text);
    print_prefixed(text);
    return status;
}

void cli_log(const char *line) {
    cli_progress_end();
    fprintf(stderr, "chimera: %s\n", line);
}

int cli_report(int status) {
    if (status == CHM_OK) return status;
    const char *text = chm_error();
    print_prefixed(text[0] ? text : "it failed and gave no reason: please report this as a bug");
    return status;
}

static void say(const char *format, va_list list) {
    char text[4096];
    vsnprintf(text, sizeof(text), format, list);
    make_printable(text);
    cli_progress_end();
    fprintf(stderr, "%s\n", text);
}

void cli_message(const struct cli *c, const char *format, ...) {
    if (c->verbosity < 0) return;
    va_list list;
    va_start(list, format);
    say(format, list);
    va_end(list);
}

void cli_verbose(const struct cli *c, const char *format, ...) {
    if (c->verbosity < 1) return;
    va_list list;
    va_start(list, format);
    say(format, list);
    va_end(list);
}

int cli_read_text(const char *what, const char *path, char **text, size_t *bytes) {
    enum { STEP = 1 << 16 };
    const bool standard = strcmp(path, "-") == 0;
    FILE *file = standard ? stdin : fopen(path, "rb");
    if (file == NULL) return cli_fail(CHM_E_DATA, "%s%s: %s", what, path, strerror(errno));
    char *data = NULL;
    size_t size = 0, got = 0;
    int status = CHM_OK;
    do {
        char *more = size < (size_t)1 << 30 ? realloc(data, size + STEP) : NULL;
        if (more == NULL) {
            status = cli_fail(CHM_E_MEMORY, "%s%s: too long for this machine, or over 1 GiB", what, path);
            break;
        }
        data = more;
        got = fread(data + size, 1, STEP, file);
        size += got;
    } while (got == STEP);
    if (status == CHM_OK && ferror(file))
        status = cli_fail(CHM_E_DATA, "%s%s: %s", what, path, errno ? strerror(errno) : "it cannot be read");
    if (!standard) fclose(file);
    if (status != CHM_OK) {
        free(data);
        return status;
    }
    *text = data;
    *bytes = size;
    return CHM_OK;
}

static bool is_same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int cli_check_stream_out(const struct cli *c, const char *out, const char *text) {
    const struct cli_value *ini = cli_get(c, "ini");
    const char *what = NULL;
    if (is_same_file(out, c->arguments[0])) what = "model";
    if (text && strcmp(text, "-") != 0 && is_same_file(out, text)) what = "text";
    for (uint32_t i = 0; i < ini->count; i++)
        if (is_same_file(out, ini->items[i])) what = "ini file";
    if (what == NULL) return CHM_OK;
    return cli_fail(CHM_E_CONFIG, "%s: the stream would replace the %s, which is read; give it another name", out,
                    what);
}

int cli_open_runtime(struct cli *c, const char *backend, chm_runtime **out) {
    const struct cli_value *threads = cli_get(c, "threads");
    const chm_runtime_options options = {.size = sizeof(options),
                                         .threads = threads->given ? (int32_t)threads->integer : 0,
                                         .plugin_path = cli_get(c, "plugin-path")->text,
                                         .backend = backend ? backend : cli_get(c, "backend")->text,
                                         .require_backend = cli_get(c, "require-backend")->given,
                                         .verbosity = c->verbosity,
                                         .log = cli_log,
                                         .cpu_mask = cli_get(c, "cpu-mask")->text,
                                         .reports_only = c->command->reports_only};
    return cli_report(chm_runtime_create(&options, out));
}

int cli_open_model(struct cli *c, int i, chm_model **out) {
    const chm_overlay overlay = cli_overlay(c);
    return cli_report(chm_open(c->runtime, c->arguments[i], &overlay, false, out));
}

int cli_close_stdout(int status) {
    errno = 0;
    const bool bad = ferror(stdout) != 0;
    if (fflush(stdout) == 0 && !bad) return status;
    const int why = errno;
    if (status != CHM_OK) return status;
    return cli_fail(CHM_E_DATA, "standard output: %s",
                    why == EPIPE ? "its reader has gone, the output is cut short"
                    : why        ? strerror(why)
                                 : "a write failed, the output is cut short");
}

void cli_duration(double seconds, char *text, size_t n) {
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e9) {
        snprintf(text, n, "?");
        return;
    }
    const long s = (long)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, n, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, n, "%ld:%02ld", s / 60, s % 60);
}

void cli_count(double x, char *text, size_t size) {
    if (x < 10000)
        snprintf(text, size, "%.0f", x);
    else if (x < 1e6)
        snprintf(text, size, "%.1fk", x / 1e3);
    else if (x < 1e9)
        snprintf(text, size, "%.2fM", x / 1e6);
    else
        snprintf(text, size, "%.2fG", x / 1e9);
}

void cli_put_text(const void *text, size_t bytes, bool terminal) {
    if (terminal)
        put_harmless(text, bytes, stdout);
    else
        fwrite(text, 1, bytes, stdout);
}

/* ---- timing ------------------------------------------------------------------------------------------------------ */

double cli_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

bool cli_wants_timing(const struct cli *c) { return cli_get(c, "timing")->given; }

static bool timing_begun;

static void timing_name(const char *name) {
    cli_progress_end();
    if (!timing_begun) fputs("timing\n", stderr);
    timing_begun = true;
    fprintf(stderr, "  %-20s  ", name);
}

void cli_timing(const char *name, const char *format, ...) {
    char text[4200];
    va_list list;
    timing_name(name);
    va_start(list, format);
    vsnprintf(text, sizeof(text), format, list);
    va_end(list);
    put_harmless(text, strlen(text), stderr); /* a model's name */
    fputc('\n', stderr);
}

void cli_timing_rate(const char *name, int64_t tokens, double seconds) {
    cli_timing(name, "%.1f tokens/s (%lld in %.3f s)", seconds > 0 ? (double)tokens / seconds : 0, (long long)tokens,
               seconds);
}

void cli_timing_end(const struct cli *c, bool training) {
    cli_timing("threads", "%d", chm_runtime_threads(c->runtime));
    char *both[2] = {chm_kernels_used(c->runtime), training ? chm_kernels_training(c->runtime) : NULL};
    for (int i = 0; i < 2; i++) {
        const char *at = both[i];
        char slot[64], backend[64];
        int used = 0;
        while (at && sscanf(at, " %63[^= ]=%63[^ ]%n", slot, backend, &used) == 2) {
            cli_timing(slot, "%s", backend);
            at += used;
        }
        chm_text_free(both[i]);
    }
    timing_begun = false;
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

void cli_json_string(FILE *out, const char *text) {
    putc('"', out);
    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        const int n = utf8_length(s);
        if (n > 1 || (n == 1 && *s >= 0x20 && *s != '"' && *s != '\\'))
            fwrite(s, 1, (size_t)n, out);
        else if (n == 0)
            fputs("\\ufffd", out);
        else
            fprintf(out, "\\u%04x", *s);
        s += n ? n : 1;
    }
    putc('"', out);
}

void cli_csv_string(FILE *out, const char *text) {
    if (strpbrk(text, ",\"\r\n") == NULL) {
        fputs(text, out);
        return;
    }
    putc('"', out);
    for (const char *s = text; *s; s++) {
        if (*s == '"') putc('"', out);
        putc(*s, out);
    }
    putc('"', out);
}

void cli_json_kernels(FILE *out, const char *kernels) {
    bool first = true;
    putc('{', out);
    while (*kernels) {
        char slot[64], backend[64];
        int used = 0;
        if (sscanf(kernels, " %63[^= ]=%63[^ ]%n", slot, backend, &used) != 2) break;
        fputs(first ? "" : ", ", out);
        cli_json_string(out, slot);
        fputs(": ", out);
        cli_json_string(out, backend);
        first = false;
        kernels += used;
    }
    putc('}', out);
}

void cli_json_real(FILE *out, double x) {
    if (isfinite(x))
        fprintf(out, "%.17g", x);
    else
        fputs("null", out);
}

/* ---- Ctrl-C ------------------------------------------------------------------------------------------------------ */

volatile int cli_stop;

static void on_interrupt(int signal) {
    (void)signal;
    cli_stop = 1;
}

void cli_catch_interrupts(void) {
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = on_interrupt;
    action.sa_flags = (int)SA_RESETHAND | SA_RESTART; /* the second one finds the default: it quits */
    sigemptyset(&action.sa_mask);
    struct sigaction old; /* a job that runs unattended has it ignored, and keeps it so */
    if (sigaction(SIGINT, NULL, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    /* a closed terminal, unless under nohup */
    if (sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, NULL);
}

/* Models and checkpoints are read where the system maps them: one that is made shorter meanwhile ends the program, but
 * with a sentence. */
static void on_lost_page(int signal, siginfo_t *info, void *context) {
    static const char sentence[] =
        "chimera: a file was made shorter while it was read, or its disk failed; run it again "
        "when the file is whole\n";
    (void)signal, (void)context;
    if (info->si_code != BUS_ADRERR) return; /* and here again, without this handler */
    if (progress_width > 0) (void)!write(STDERR_FILENO, "\n", 1);
    (void)!write(STDERR_FILENO, sentence, sizeof(sentence) - 1);
    _exit(CHM_E_DATA);
}

void cli_catch_lost_pages(void) {
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_lost_page;
    action.sa_flags = (int)(SA_SIGINFO | SA_RESETHAND);
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}

void cli_catch_interrupts_always(void) {
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART; /* else one that comes amid a write to the terminal is an error of stdout */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}
