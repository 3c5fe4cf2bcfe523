/* Which instruction sets this CPU and its operating system run, and which root is the fastest there. setup.py defines
   RMSFAST_WIDE where it compiles the wide ones, which is on x86-64. */
#include <math.h>

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

#include <x86intrin.h>

static int cpu_has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
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

#if defined(RMSFAST_WIDE) && !(defined(_MSC_VER) && !defined(__clang__))

enum { ELEMENTS = 1024, ROUNDS = 5 };
typedef union {
    float of_float32[ELEMENTS];
    double of_float64[ELEMENTS / 2];
} numbers;

/* What a root has to gain over the divider, on average of both types: less may be chance. And no type may lose. */
static const double MOST = 0.95;

int rmsfast_fastest_root(const rmsfast_isa *isa)
{
    static const rmsfast_settings settings = {.lr = 1e-3,
                                              .beta = 0.9,
                                              .eps = 1e-8,
                                              .clip_value = INFINITY,
                                              .clip_norm = INFINITY,
                                              .clip_global_norm = INFINITY};
    double least[RMSFAST_DTYPES][RMSFAST_ROOTS];
    numbers w, v, g;

    for (int dtype = 0; dtype < RMSFAST_DTYPES; dtype++) {
        const int n = dtype == RMSFAST_FLOAT32 ? ELEMENTS : ELEMENTS / 2;
        rmsfast_scalars scalars;
        isa->stages[RMSFAST_DIVIDER][dtype]->form(&scalars, &settings, 1, 1, 1);
        for (int i = 0; i < n; i++) {
            const double x = 0.01 * (1 + i % 7);
            if (dtype == RMSFAST_FLOAT32) {
                w.of_float32[i] = g.of_float32[i] = (float)x;
                v.of_float32[i] = (float)(x * x);
            } else {
                w.of_float64[i] = g.of_float64[i] = x;
                v.of_float64[i] = x * x;
            }
        }
        for (int round = 0; round < ROUNDS; round++)
            for (int root = 0; root < RMSFAST_ROOTS && isa->stages[root][dtype] != NULL; root++) {
                const rmsfast_update update = isa->stages[root][dtype]->update[0][RMSFAST_NO_MOMENTUM];
                const unsigned long long start = __rdtsc();
                update(&w, &v, NULL, NULL, &g, n, &scalars);
                const double ticks = (double)(__rdtsc() - start);
                if (round == 0 || ticks < least[dtype][root])
                    least[dtype][root] = ticks;
            }
    }

    int fastest = RMSFAST_DIVIDER;
    double fewest = 2 * MOST;
    for (int root = RMSFAST_DIVIDER + 1; root < RMSFAST_ROOTS && isa->stages[root][0] != NULL; root++) {
        const double float32 = least[RMSFAST_FLOAT32][root] / least[RMSFAST_FLOAT32][RMSFAST_DIVIDER];
        const double float64 = least[RMSFAST_FLOAT64][root] / least[RMSFAST_FLOAT64][RMSFAST_DIVIDER];
        if (float32 <= 1 && float64 <= 1 && float32 + float64 < fewest) {
            fewest = float32 + float64;
            fastest = root;
        }
    }
    return fastest;
}

#else

int rmsfast_fastest_root(const rmsfast_isa *isa) { return (void)isa, RMSFAST_DIVIDER; }

#endif
