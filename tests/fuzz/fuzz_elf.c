/* The reader of plugin descriptors in shared objects (core/plugin/elf.c) on arbitrary bytes. */
#include "plugin/elf.h"
#include "fuzz.h"

#include <link.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct chm_plugin out;
    memset(&out, 0xff, sizeof out);
    chm_fail(CHM_OK, "%s", "");
    const int status = chm_elf_descriptor(data, bytes, &out);
    if (status != CHM_OK && (status != CHM_E_PLUGIN || strlen(chm_error()) < 10)) abort();
    /* nothing of a descriptor that lies in a file is an address here, whatever was refused on the way */
    if (out.name || out.section || out.aliases || out.version || out.licence || out.summary || out.options || out.ops)
        abort();
    for (size_t i = 0; i < CHM_ARRAY_COUNT(out.reserved); i++)
        if (out.reserved[i]) abort();
    return 0;
}

/* The least shared object with a descriptor. Seed 1 has other symbols before it and its segment last. */
static bool make(size_t i, chm_string *seed) {
    static const char names[] = "\0other\0chimera_plugin";
    static const struct chm_plugin plugin = {
        .magic = CHM_MAGIC, .abi = CHM_ABI, .size = sizeof plugin, .kind = CHM_KIND_LAYER, .name = "x"};
    if (i > 1) return false;
    struct {
        ElfW(Ehdr) header;
        ElfW(Phdr) segment[2];
        ElfW(Shdr) section[3];
        ElfW(Sym) symbol[3];
        char names[sizeof names];
        struct chm_plugin plugin;
    } f;
#define AT(member) offsetof(__typeof__(f), member)
    memset(&f, 0, sizeof f);
    f.header = (ElfW(Ehdr)) {
        .e_type = ET_DYN,
#if defined(__x86_64__)
        .e_machine = EM_X86_64,
#elif defined(__aarch64__)
        .e_machine = EM_AARCH64,
#endif
        .e_phoff = AT(segment), .e_shoff = AT(section), .e_phentsize = sizeof f.segment[0], .e_phnum = 2,
        .e_shentsize = sizeof f.section[0], .e_shnum = 3
    };
    memcpy(f.header.e_ident, ELFMAG, SELFMAG);
    f.header.e_ident[EI_CLASS] = __ELF_NATIVE_CLASS == 64 ? ELFCLASS64 : ELFCLASS32;
    f.header.e_ident[EI_DATA] = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? ELFDATA2LSB : ELFDATA2MSB;
    f.segment[i] =
        (ElfW(Phdr)){.p_type = PT_LOAD, .p_offset = 0, .p_vaddr = 0x1000, .p_filesz = sizeof f, .p_memsz = sizeof f};
    f.section[1] = (ElfW(Shdr)){.sh_type = SHT_DYNSYM,
                                .sh_link = 2,
                                .sh_offset = AT(symbol[1 - i]),
                                .sh_size = (2 + i) * sizeof f.symbol[0],
                                .sh_entsize = sizeof f.symbol[0]};
    f.section[2] = (ElfW(Shdr)){.sh_type = SHT_STRTAB, .sh_offset = AT(names), .sh_size = sizeof names};
    f.symbol[1] = (ElfW(Sym)){.st_name = 1, .st_shndx = 1, .st_value = 0x1000, .st_size = 8};
    f.symbol[2] = (ElfW(Sym)){.st_name = 7, .st_shndx = 1, .st_value = 0x1000 + AT(plugin), .st_size = sizeof f.plugin};
    memcpy(f.names, names, sizeof names);
    f.plugin = plugin;
#undef AT
    chm_string_add_bytes(seed, &f, sizeof f);
    return true;
}

static const char *const words[] = {
    "chimera_plugin", "\177ELF", "\xff\xff\xff\xff\xff\xff\xff\xff", "\xff\xff\xff\x7f", "\x01", "\x02", "\x10", NULL};
static const struct fuzz fuzz = {.make = make, .words = words, .runs = 100000};
