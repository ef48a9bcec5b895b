/*
 * elf.c: the part of ELF that says where a data symbol lies in the file. Every offset is checked against the file's
 * size before it is followed: the file may be anything.
 */
#include "plugin/elf.h"

#include <elf.h>
#include <link.h>
#include <string.h>

#if defined(__x86_64__)
#define MACHINE EM_X86_64
#elif defined(__i386__)
#define MACHINE EM_386
#elif defined(__aarch64__)
#define MACHINE EM_AARCH64
#elif defined(__arm__)
#define MACHINE EM_ARM
#elif defined(__riscv)
#define MACHINE EM_RISCV
#elif defined(__powerpc64__)
#define MACHINE EM_PPC64
#elif defined(__s390x__)
#define MACHINE EM_S390
#else
#error "elf.c: name this machine's e_machine"
#endif

/* A copy of `n` bytes at `offset`, since nothing in a file need be aligned. */
static bool get(const uint8_t *data, uint64_t size, uint64_t offset, void *out, uint64_t n) {
    if (offset > size || n > size - offset) return false;
    memcpy(out, data + offset, (size_t)n);
    return true;
}

static int bad(const char *what) { return chm_fail(CHM_E_PLUGIN, "the file is short or corrupt (%s)", what); }

static int find_symbol(const uint8_t *data, uint64_t size, const ElfW(Ehdr) * header, ElfW(Sym) * out) {
    static const char wanted[] = "chimera_plugin";
    for (unsigned i = 0; i < header->e_shnum; i++) {
        ElfW(Shdr) section, names;
        if (!get(data, size, header->e_shoff + (uint64_t)i * sizeof section, &section, sizeof section))
            return bad("section table");
        if (section.sh_type != SHT_DYNSYM) continue;
        if (section.sh_link >= header->e_shnum ||
            !get(data, size, header->e_shoff + (uint64_t)section.sh_link * sizeof names, &names, sizeof names) ||
            names.sh_offset > size || names.sh_size > size - names.sh_offset)
            return bad("names of symbols");
        for (uint64_t at = 0; at + sizeof *out <= section.sh_size; at += sizeof *out) {
            if (section.sh_offset > size || !get(data, size, section.sh_offset + at, out, sizeof *out))
                return bad("symbol table");
            if (out->st_shndx == SHN_UNDEF || out->st_name >= names.sh_size) continue;
            if (names.sh_size - out->st_name >= sizeof wanted &&
                memcmp(data + names.sh_offset + out->st_name, wanted, sizeof wanted) == 0)
                return CHM_OK;
        }
    }
    return chm_fail(CHM_E_PLUGIN, "it exports no 'chimera_plugin', so it is not a Chimera plugin");
}

int chm_elf_descriptor(const uint8_t *data, uint64_t size, struct chm_plugin *out) {
    ElfW(Ehdr) header;
    ElfW(Sym) symbol = {0};
    memset(out, 0, sizeof *out);
    if (size < SELFMAG || memcmp(data, ELFMAG, SELFMAG) != 0)
        return chm_fail(CHM_E_PLUGIN, "not a shared object (no ELF header)");
    if (!get(data, size, 0, &header, sizeof header)) return bad("ELF header");
    int order = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? ELFDATA2LSB : ELFDATA2MSB;
    if (header.e_ident[EI_CLASS] != (__ELF_NATIVE_CLASS == 64 ? ELFCLASS64 : ELFCLASS32) ||
        header.e_ident[EI_DATA] != order || header.e_machine != MACHINE)
        return chm_fail(CHM_E_PLUGIN, "built for another kind of machine (ELF machine %u, this one is %u)",
                        (unsigned)header.e_machine, (unsigned)MACHINE);
    if (header.e_type != ET_DYN) return chm_fail(CHM_E_PLUGIN, "an ELF file, but not a shared object");
    if (header.e_shentsize != sizeof(ElfW(Shdr)) || header.e_shoff > size || header.e_phentsize != sizeof(ElfW(Phdr)) ||
        header.e_phoff > size)
        return bad("tables");
    int status = find_symbol(data, size, &header, &symbol);
    if (status) return status;

    for (unsigned i = 0; i < header.e_phnum; i++) {
        ElfW(Phdr) segment;
        if (!get(data, size, header.e_phoff + (uint64_t)i * sizeof segment, &segment, sizeof segment))
            return bad("segment table");
        if (segment.p_type != PT_LOAD || symbol.st_value < segment.p_vaddr ||
            symbol.st_value - segment.p_vaddr >= segment.p_filesz || segment.p_offset > size)
            continue;
        uint64_t inside = symbol.st_value - segment.p_vaddr;
        uint64_t n = CHM_MIN((uint64_t)symbol.st_size, (uint64_t)sizeof *out);
        if (n > segment.p_filesz - inside || !get(data, size, segment.p_offset + inside, out, n))
            return bad("descriptor");
        if (n < offsetof(struct chm_plugin, name))
            return chm_fail(CHM_E_PLUGIN, "its 'chimera_plugin' has %llu bytes, too few for a descriptor",
                            (unsigned long long)n);
        out->name = out->section = out->aliases = out->version = out->licence = out->summary = NULL;
        out->options = NULL;
        out->ops = NULL;
        memset((void *)out->reserved, 0, sizeof out->reserved);
        return CHM_OK;
    }
    return chm_fail(CHM_E_PLUGIN, "its 'chimera_plugin' is not constant data in the file");
}
