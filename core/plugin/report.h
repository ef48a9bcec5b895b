/*
 * report.h: what is said about plugins, this CPU and the kernels it runs. Every JSON report carries schema_version 1.
 */
#ifndef CHM_REPORT_H
#define CHM_REPORT_H

#include "plugin/registry.h"
#include <chimera/chimera.h> /* chm_output */

/* The loaded plugins of a kind (0: all): kind, name, version, summary, path. */
int chm_report_plugins(const chm_registry *r, enum chm_kind kind, FILE *out, chm_output format);
/* One plugin (every one of that name or alias, whatever its kind): its descriptor and its option table. CSV: options.
 */
int chm_report_plugin(const chm_registry *r, const char *name, FILE *out, chm_output format);
/* CPU, every path tried and why a file was refused, the backend of every kernel slot, and what is wrong with the
 * environment (one sentence a line, "" for nothing). CSV: all of it as one table. When the kernels cannot be chosen the
 * rest is printed all the same, and the failure returned. */
int chm_report_doctor(const chm_registry *r, const char *force, bool require, const char *environment, FILE *out,
                      chm_output format);
/* "layer" or "layers" -> CHM_KIND_LAYER; 0 and a sentence with the known kinds when there is no such. */
enum chm_kind chm_kind_parse(const char *name);

#endif
