/* Which instruction sets this CPU and its operating system run. setup.py defines RMSFAST_WIDE where it compiles the
   wide ones, which is on x86-64. */
#include "rmsfast.h"

extern const rmsfast_isa rmsfast_isa_baseline;

#ifdef RMSFAST_WIDE
extern const rmsfast_isa rmsfast_isa_avx2, rmsfast_isa_avx512;

#ifdef _MSC_VER
#include <intrin.h>

/* MSVC's /arch switches allow the whole family, so all of it is asked for. */
static int cpu_has(int leaf1_ecx, int leaf7_ebx, unsigned long long saved_registers)
{
    int r[4];
    __cpuid(r, 0);
    if (r[0] < 7)
        return 0;
    __cpuid(r, 1);
    if ((r[2] & leaf1_ecx) != leaf1_ecx || (_xgetbv(0) & saved_registers) != saved_registers)
        return 0;
    __cpuidex(r, 7, 0);
    return (r[1] & leaf7_ebx) == leaf7_ebx;
}

enum {
    OSXSAVE_AVX_FMA = 1 << 27 | 1 << 28 | 1 << 12,
    AVX2_BMI = 1 << 5 | 1 << 3 | 1 << 8,
    AVX512_F_DQ_CD_BW_VL = (int)(1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31)
};

static int cpu_has_avx2(void) { return cpu_has(OSXSAVE_AVX_FMA, AVX2_BMI, 0x06); }
static int cpu_has_avx512(void) { return cpu_has(OSXSAVE_AVX_FMA, AVX2_BMI | AVX512_F_DQ_CD_BW_VL, 0xe6); }

#else

static int cpu_has_avx2(void) { return __builtin_cpu_supports("avx2"); }
static int cpu_has_avx512(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"); }

#endif
#endif

const rmsfast_isa *rmsfast_usable_isa(int k)
{
    const rmsfast_isa *usable[3] = {&rmsfast_isa_baseline};
    int count = 1;
#ifdef RMSFAST_WIDE
    if (cpu_has_avx2())
        usable[count++] = &rmsfast_isa_avx2;
    if (cpu_has_avx512())
        usable[count++] = &rmsfast_isa_avx512;
#endif
    return k < count ? usable[k] : NULL;
}
