/* main.c: one command, run and reported. */
#include "cli.h"
#include <string.h>

static int open_runtime(struct cli *c) {
    const struct cli_value *threads = cli_get(c, "threads");
    const chm_runtime_options options = {.size = sizeof(options),
                                         .threads = threads->given ? (int32_t)threads->integer : 0,
                                         .plugin_path = cli_get(c, "plugin-path")->text,
                                         .backend = cli_get(c, "backend")->text,
                                         .require_backend = cli_get(c, "require-backend")->given,
                                         .verbosity = c->verbosity,
                                         .log = cli_log,
                                         .cpu_mask = cli_get(c, "cpu-mask")->text,
                                         .reports_only = c->command->reports_only};
    return cli_report(chm_runtime_create(&options, &c->runtime));
}

int main(int argc, char **argv) {
    struct cli c;
    cli_open_standard_files();
    /* a reader that goes away and a file that may not grow are errors of the write, and get a sentence */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    cli_catch_lost_pages();
    int status = cli_parse(&c, argc, argv);
    if (status == CHM_OK && !c.command->no_runtime) status = open_runtime(&c);
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
