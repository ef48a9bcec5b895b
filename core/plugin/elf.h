/*
 * elf.h: reading a plugin's descriptor out of its file, without loading it.
 */
#ifndef CHM_ELF_H
#define CHM_ELF_H

#include "base/base.h"

/*
 * The bytes of the descriptor `chimera_plugin` as they lie in the shared object `data`. Numbers are what they will be
 * once loaded; pointers are not (they are relocated) and are set to NULL here. Members past the end of the descriptor
 * in the file are zero. CHM_E_PLUGIN and a sentence without the file's name when this is no plugin for this machine.
 */
int chm_elf_descriptor(const uint8_t *data, uint64_t size, struct chm_plugin *out);

#endif
