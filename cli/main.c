/* main.c: one command, run and reported. */
#include "cli.h"
#include <string.h>

int main(int argc, char **argv) {
    struct cli c;
    cli_open_standard_files();
    /* a reader that goes away and a file that may not grow are errors of the write, and get a sentence */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    cli_catch_lost_pages();
    int status = cli_parse(&c, argc, argv);
    if (status == CHM_OK && !c.command->no_runtime) status = cli_open_runtime(&c, NULL, &c.runtime);
    if (status == CHM_OK)
        status = c.command->run(&c);
    else if (status == -1)
        status = CHM_OK;
    cli_progress_end();
    status = cli_close_stdout(status);
    chm_runtime_destroy(c.runtime);
    cli_finish(&c);
    return status;
}
