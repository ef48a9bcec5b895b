/* cpu.c: what this CPU can do, and the operating system lets it. */
#include "plugin/registry.h"

#include <string.h>

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

void chm_cpu_names(uint64_t features, char *text, size_t n) {
    static const struct {
        uint64_t bit;
        const char *name;
    } names[] = {
        {CHM_CPU_AVX2, "avx2"},
        {CHM_CPU_FMA, "fma"},
        {CHM_CPU_F16C, "f16c"},
        {CHM_CPU_AVX_VNNI, "avx_vnni"},
        {CHM_CPU_AVX512, "avx512"},
        {CHM_CPU_AVX512_VNNI, "avx512_vnni"},
        {CHM_CPU_AVX512_VBMI, "avx512_vbmi"},
        {CHM_CPU_AVX512_BF16, "avx512_bf16"},
        {CHM_CPU_AMX_INT8, "amx_int8"},
        {CHM_CPU_NEON, "neon"},
        {CHM_CPU_DOTPROD, "dotprod"},
        {CHM_CPU_I8MM, "i8mm"},
    };
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
