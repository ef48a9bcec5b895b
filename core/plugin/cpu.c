/* cpu.c: what this CPU can do, and the operating system lets it. */
#include "plugin/registry.h"

#include <string.h>

#define AVX512_FAMILY (CHM_CPU_AVX512 | CHM_CPU_AVX512_VNNI | CHM_CPU_AVX512_VBMI | CHM_CPU_AVX512_BF16)

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Which register files the system saves when it switches tasks. Only where CPUID says OSXSAVE. */
static uint64_t saved_registers(void) {
    uint32_t low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux hands out the tile registers only to those who ask: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA). */
static bool ask_for_tiles(void) {
#if defined(__x86_64__) && defined(SYS_arch_prctl)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}

uint64_t chm_cpu_features(void) {
    enum { YMM = 0x06, ZMM = 0xe6, TILES = 0x60000 };
    uint32_t a, b, c, d, leaf1_c;
    uint64_t features = 0;
    if (!__get_cpuid(1, &a, &b, &leaf1_c, &d) || !(leaf1_c & 1u << 27) || !(leaf1_c & 1u << 28)) return 0;
    uint64_t saved = saved_registers();
    if ((saved & YMM) != YMM || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    uint32_t subleaves = a, a1 = 0, b1, c1, d1;
    if (subleaves >= 1) __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1);
    if (b & 1u << 5) features |= CHM_CPU_AVX2;
    if (b & 1u << 8) features |= CHM_CPU_BMI2;
    if (leaf1_c & 1u << 12) features |= CHM_CPU_FMA;
    if (leaf1_c & 1u << 29) features |= CHM_CPU_F16C;
    if (a1 & 1u << 4) features |= CHM_CPU_AVX_VNNI;
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F DQ BW VL */
    if ((b & avx512) == avx512 && (saved & ZMM) == ZMM) {
        features |= CHM_CPU_AVX512;
        if (c & 1u << 11) features |= CHM_CPU_AVX512_VNNI;
        if (c & 1u << 1) features |= CHM_CPU_AVX512_VBMI;
        if (a1 & 1u << 5) features |= CHM_CPU_AVX512_BF16;
    }
    const uint32_t amx = 1u << 24 | 1u << 25; /* TILE INT8 */
    if ((d & amx) == amx && (saved & TILES) == TILES && ask_for_tiles()) features |= CHM_CPU_AMX_INT8;
    return features;
}

void chm_cpu_identify(chm_cpu_identity *out) {
    uint32_t a, b, c, d;
    memset(out, 0, sizeof *out);
    if (!__get_cpuid(0, &a, &b, &c, &d)) return;
    memcpy(out->vendor, &b, 4);
    memcpy(out->vendor + 4, &d, 4);
    memcpy(out->vendor + 8, &c, 4);
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    out->family = a >> 8 & 15;
    out->model = a >> 4 & 15;
    out->stepping = a & 15;
    if (out->family == 6 || out->family == 15) out->model |= a >> 12 & 0xf0;
    if (out->family == 15) out->family += a >> 20 & 0xff;
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

uint64_t chm_cpu_features(void) {
    uint64_t features = 0;
    unsigned long one = getauxval(AT_HWCAP), two = getauxval(AT_HWCAP2);
    if (one & 1ul << 1) features |= CHM_CPU_NEON;     /* HWCAP_ASIMD */
    if (one & 1ul << 20) features |= CHM_CPU_DOTPROD; /* HWCAP_ASIMDDP */
    if (two & 1ul << 13) features |= CHM_CPU_I8MM;    /* HWCAP2_I8MM */
    return features;
}

#else
uint64_t chm_cpu_features(void) { return 0; }
#endif

#if !defined(__x86_64__) && !defined(__i386__)
void chm_cpu_identify(chm_cpu_identity *out) { memset(out, 0, sizeof *out); }
#endif

/* ---- names and masks ---- */

/* A feature comes after those it needs, so that one pass masks all that goes with it. */
static const struct {
    uint64_t bit;
    const char *name;
    uint64_t needs;
} names[] = {
    {CHM_CPU_AVX2, "avx2", 0},
    {CHM_CPU_FMA, "fma", 0},
    {CHM_CPU_F16C, "f16c", 0},
    {CHM_CPU_BMI2, "bmi2", 0},
    {CHM_CPU_AVX_VNNI, "avx_vnni", CHM_CPU_AVX2},
    {CHM_CPU_AVX512, "avx512", CHM_CPU_AVX2 | CHM_CPU_FMA},
    {CHM_CPU_AVX512_VNNI, "avx512_vnni", CHM_CPU_AVX512},
    {CHM_CPU_AVX512_VBMI, "avx512_vbmi", CHM_CPU_AVX512},
    {CHM_CPU_AVX512_BF16, "avx512_bf16", CHM_CPU_AVX512},
    {CHM_CPU_AMX_INT8, "amx_int8", 0},
    {CHM_CPU_NEON, "neon", 0},
    {CHM_CPU_DOTPROD, "dotprod", CHM_CPU_NEON},
    {CHM_CPU_I8MM, "i8mm", CHM_CPU_NEON},
};

int chm_cpu_mask(const char *text, uint64_t *mask) {
    const char *known[CHM_ARRAY_COUNT(names) + 2];
    size_t count = 0;
    *mask = 0;
    for (size_t n; *(text += strspn(text, ", \t")); text += n) {
        size_t i = 0;
        n = strcspn(text, ", \t");
        if (n == 3 && memcmp(text, "all", 3) == 0) {
            *mask = ~(uint64_t)0;
            continue;
        }
        while (i < CHM_ARRAY_COUNT(names) && !(strlen(names[i].name) == n && memcmp(names[i].name, text, n) == 0)) i++;
        if (i < CHM_ARRAY_COUNT(names)) {
            *mask |= names[i].bit;
            continue;
        }
        char word[64];
        chm_string list = {0};
        snprintf(word, sizeof word, "%.*s", (int)CHM_MIN(n, sizeof word - 1), text);
        for (i = 0; i < CHM_ARRAY_COUNT(names); i++) {
            known[count++] = names[i].name;
            chm_string_add(&list, "%s, ", names[i].name);
        }
        known[count++] = "all";
        known[count] = NULL;
        const char *nearest = chm_nearest(word, known);
        int status = nearest ? chm_fail(CHM_E_CONFIG, "no CPU feature '%s' (did you mean '%s'?)", word, nearest)
                             : chm_fail(CHM_E_CONFIG, "no CPU feature '%s': there are %sall", word,
                                        list.text ? list.text : "others, and ");
        chm_string_finish(&list);
        return status;
    }
    for (size_t i = 0; i < CHM_ARRAY_COUNT(names); i++)
        if (names[i].needs & *mask) *mask |= names[i].bit;
    return CHM_OK;
}

void chm_cpu_names(uint64_t features, char *text, size_t n) {
    size_t used = 0;
    if (n == 0) return;
    text[0] = 0;
    for (size_t i = 0; i <= CHM_ARRAY_COUNT(names); i++) {
        /* After the known ones, whatever bits have no name here. */
        uint64_t bit = i < CHM_ARRAY_COUNT(names) ? names[i].bit : features;
        if (!(features & bit)) continue;
        features &= ~bit;
        int m = i < CHM_ARRAY_COUNT(names)
                    ? snprintf(text + used, n - used, "%s%s", used ? " " : "", names[i].name)
                    : snprintf(text + used, n - used, "%sunknown:0x%llx", used ? " " : "", (unsigned long long)bit);
        if (m < 0 || (size_t)m >= n - used) return;
        used += (size_t)m;
    }
}

/* ---- what a CPU has and does badly ---- */

/*
 * Sources: Intel 64 and IA-32 Architectures Optimization Reference Manual (frequency licences, ports); Software
 * Optimization Guides for AMD Family 17h models 00h-2Fh and 30h and greater; A. Fog, Instruction tables.
 */
static const chm_cpu_weakness lowers_clock = {
    AVX512_FAMILY, "512-bit instructions lower the clock of this CPU (Skylake-X), which has no VNNI to make up for it: "
                   "256-bit kernels go first, --backend avx512 takes the others"};
static const chm_cpu_weakness one_multiplier = {
    AVX512_FAMILY, "this CPU (Cannon Lake) has one 512-bit multiplier where it has two of 256 bits, and no VNNI: "
                   "256-bit kernels go first, --backend avx512 takes the others"};
static const chm_cpu_weakness slow_gather = {0, "gather is slow on this CPU (Haswell): no kernel here uses it"};
static const chm_cpu_weakness halves = {0, "this CPU (Zen 1) runs each 256-bit instruction as two of 128 bits"};
static const chm_cpu_weakness microcode = {
    CHM_CPU_BMI2, "PDEP, PEXT and gather are slow microcode on this CPU (Zen 1, Zen 2): backends that need BMI2 go "
                  "last, and no kernel here uses them"};

static const struct weak {
    const char *vendor;
    uint32_t family, first_model, last_model, last_stepping;
    const chm_cpu_weakness *weakness;
} weak[] = {
    {"GenuineIntel", 6, 0x55, 0x55, 4, &lowers_clock}, /* from stepping 5 on it is Cascade Lake, with VNNI */
    {"GenuineIntel", 6, 0x66, 0x66, 15, &one_multiplier}, {"GenuineIntel", 6, 0x3c, 0x3c, 15, &slow_gather},
    {"GenuineIntel", 6, 0x3f, 0x3f, 15, &slow_gather},    {"GenuineIntel", 6, 0x45, 0x46, 15, &slow_gather},
    {"AuthenticAMD", 0x17, 0x00, 0x2f, 15, &halves},      {"AuthenticAMD", 0x17, 0x00, 0xff, 15, &microcode},
    {"HygonGenuine", 0x18, 0x00, 0x03, 15, &halves},      {"HygonGenuine", 0x18, 0x00, 0x03, 15, &microcode},
};

bool chm_cpu_weakness_at(const chm_cpu_identity *cpu, size_t i, chm_cpu_weakness *out) {
    for (size_t w = 0; w < CHM_ARRAY_COUNT(weak); w++) {
        const struct weak *e = &weak[w];
        if (strcmp(e->vendor, cpu->vendor) != 0 || cpu->family != e->family || cpu->model < e->first_model ||
            cpu->model > e->last_model || cpu->stepping > e->last_stepping)
            continue;
        if (i-- > 0) continue;
        *out = *e->weakness;
        return true;
    }
    return false;
}
