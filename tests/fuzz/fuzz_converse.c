/*
 * A conversation (chimera run on a terminal) whose typist types anything: fences, backslashes, /commands. The answers
 * are played; what the model would read must be whole lines of what was typed.
 */
#include "cli.h"
#include "fuzz.h"

#include <fcntl.h>
#include <unistd.h>

static int played_generate(chm_stream *s, const void *prompt, size_t bytes, int64_t n, const chm_sampling *sampling,
                           int (*emit)(void *user, const void *text, size_t bytes), void *user,
                           chm_generate_result *result);
static void played_restart(chm_stream *s);

#define chm_generate       played_generate
#define chm_stream_restart played_restart
#include "converse.c" /* NOLINT(bugprone-suspicious-include): with another model behind it */
#undef chm_generate
#undef chm_stream_restart

static size_t turns, read_bytes;

static int played_generate(chm_stream *s, const void *prompt, size_t bytes, int64_t n, const chm_sampling *sampling,
                           int (*emit)(void *user, const void *text, size_t bytes), void *user,
                           chm_generate_result *result) {
    const char *text = prompt;
    (void)s, (void)n, (void)sampling;
    CHECK(bytes == 0 || (bytes > 1 && text[bytes - 1] == '\n' && !memchr(text, 0, bytes)));
    turns++;
    read_bytes += bytes;
    result->prompt_tokens = (int64_t)bytes;
    return emit(user, "answer\n", turns % 3 ? 6 : 7) ? CHM_E_INTERRUPTED : CHM_OK;
}

static void played_restart(chm_stream *s) { (void)s; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const int nothing = -1;
    static int terminal = -1;
    if (terminal == nothing) { /* what is typed comes out of a stream; the descriptor only has to be readable */
        terminal = open("/dev/null", O_RDONLY);
        CHECK(terminal >= 0 && dup2(terminal, STDIN_FILENO) == STDIN_FILENO);
    }
    char *shown = NULL, *said = NULL, first[] = "model.b158";
    size_t shown_bytes = 0, said_bytes = 0, lines = 1;
    char *argv[] = {(char[]){"chimera"}, (char[]){"run"}, first};
    struct cli c;
    chm_sampling sampling = {.size = sizeof sampling};
    FILE *in = stdin, *out = stdout, *error = stderr;
    for (size_t i = 0; i < bytes; i++) lines += data[i] == '\n';
    turns = read_bytes = 0;
    stdin = bytes ? fmemopen((void *)(uintptr_t)data, bytes, "r") : fopen("/dev/null", "r");
    stdout = open_memstream(&shown, &shown_bytes);
    stderr = open_memstream(&said, &said_bytes);
    CHECK(stdin && stdout && stderr && cli_parse(&c, 3, argv) == CHM_OK);
    const int status = cli_converse(&c, NULL, 5, &sampling);
    cli_finish(&c);
    fclose(stdin);
    fclose(stdout);
    fclose(stderr);
    stdin = in;
    stdout = out;
    stderr = error;
    CHECK(status == CHM_OK);
    CHECK(turns <= lines && read_bytes <= bytes + 2 * lines); /* a line is read once, with newlines at its ends */
    free(shown);
    free(said);
    return 0;
}

static const char *const seeds[] = {
    "Hello\nand you?\n\n/help\n/reset\n/exit\nnever read\n",
    "one \\\ntwo \\\nthree\n\"\"\"a\n/not a command\nb\"\"\"\nend",
    "\"\"\"\nfenced\n\"\"\"\n/rest\n\\\n\\",
    "\"\"\"\"\"\"\n\"\"\"x\"\"\"\n\"\"\"unclosed\nto the end\n",
    NULL,
};
static const char *const words[] = {"\n",      "\"\"\"", "\"\"\"\n", "\\\n", "\\",   "/",  "/reset\n", "/exit",
                                    "/help\n", "\n\n",   " ",        "\xff", "\r\n", "\"", "x",        NULL};
static const struct fuzz fuzz = {.seeds = seeds, .words = words, .runs = 20000};
