/*
 * report.h: what is said about model files.
 */
#ifndef CHM_MODEL_REPORT_H
#define CHM_MODEL_REPORT_H

#include "plugin/registry.h"
#include <chimera/chimera.h> /* chm_output */

/*
 * A .b158 or any other safetensors file: its parameters (shape, encoding, bytes, share of zeros), totals of each part
 * (norms: every parameter whose name says so) and, of a .b158, the card in short and the hashes. CSV: the parameters
 * alone. The file's own account of itself is checked first, with `verify` down to every byte: an unsound file is
 * refused and nothing printed. With a registry it is opened as a model too; a sound file that cannot be opened here (a
 * plugin is missing) is reported as such.
 */
int chm_report_inspect(const char *path, const chm_registry *r, bool verify, FILE *out, chm_output format);

#endif
