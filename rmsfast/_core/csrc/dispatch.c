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
    OSXSAVE_AVX_FMA_F16C = 1 << 27 | 1 << 28 | 1 << 12 | 1 << 29,
    AVX2_BMI = 1 << 5 | 1 << 3 | 1 << 8,
    AVX512_F_DQ_CD_BW_VL = (int)(1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31)
};

static int cpu_has_avx2(void) { return cpu_has(OSXSAVE_AVX_FMA_F16C, AVX2_BMI, 0x06); }
static int cpu_has_avx512(void) { return cpu_has(OSXSAVE_AVX_FMA_F16C, AVX2_BMI | AVX512_F_DQ_CD_BW_VL, 0xe6); }

#else

#include <cpuid.h>
#include <x86intrin.h>

/* Clang's __builtin_cpu_supports of old (14, at least) does not know F16C. */
static int cpu_has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}

static int cpu_has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c(); }
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

/* ---- Roots ---- */

#if defined(RMSFAST_WIDE) && !(defined(_MSC_VER) && !defined(__clang__))

enum { ELEMENTS = 1024, ROUNDS = 5 };

/* Another root than the divider's has to take less than this of its time: what is measured is off by some percent. */
static const double MOST = 0.95;

/* ELEMENTS float32, or half as many float64. All arrays fit in L1. A gap of 13 cache lines follows each, because a load
   waits for an earlier store to the same offset in another page. */
typedef union {
    float of_float32[ELEMENTS + 208];
    double of_float64[ELEMENTS / 2 + 104];
    uint16_t of_bfloat16[2 * ELEMENTS + 416];
} numbers;
enum { W, V, M, B, G, ARRAYS };

static void fill(numbers arrays[ARRAYS], int dtype)
{
    for (int k = 0; k < ARRAYS; k++)
        for (int i = 0; i < ELEMENTS >> dtype; i++) {
            const double x = 0.1 + 1e-3 * (i * 37 % 101);
            if (dtype == RMSFAST_FLOAT32)
                arrays[k].of_float32[i] = (float)x;
            else
                arrays[k].of_float64[i] = x;
        }
}

enum { PLAIN, MOST_TO_DO, STORED };

/* The ticks of the plain rule, of the one with the most to do, or of the plain one with all numbers stored as bfloat16, with
   roots that are listed up to RMSFAST_ROOTS. */
static void measure(double least[RMSFAST_ROOTS], const rmsfast_isa *isa, int dtype, int what, const int *roots,
                    numbers a[ARRAYS])
{
    const int most = what == MOST_TO_DO;
    const rmsfast_stored stored[RMSFAST_KINDS] = {
        {.data = &a[W], .format = RMSFAST_BFLOAT16, .draws = 1},
        {.data = &a[V], .format = RMSFAST_BFLOAT16, .draws = 1},
    };
    const rmsfast_stored grad = {.data = &a[G], .format = RMSFAST_BFLOAT16};
    const rmsfast_settings settings = {
        .lr = 1e-3,
        .beta = 0.9,
        .eps = 1e-8,
        .momentum = most ? 0.9 : 0,
        .weight_decay = most ? 0.01 : 0,
        .clip_value = most ? 1 : INFINITY,
        .clip_norm = INFINITY,
        .clip_global_norm = INFINITY,
        .clip_weights = INFINITY,
        .ema_decay = -1,
    };
    rmsfast_scalars scalars;
    isa->stages[RMSFAST_DIVIDER][dtype]->form(&scalars, &settings, 1, 1, 1);
    for (int round = 0; round < ROUNDS; round++)
        for (int k = 0; roots[k] != RMSFAST_ROOTS; k++) {
            const rmsfast_update update =
                isa->stages[roots[k]][dtype]->update[most][most ? RMSFAST_NESTEROV : RMSFAST_NO_MOMENTUM][most];
            const unsigned long long start = __rdtsc();
            if (what == STORED)
                isa->storage->update(stored, ELEMENTS, &grad, 0, ELEMENTS, update, NULL, &scalars);
            else
                update(&a[W], &a[V], &a[M], &a[B], &a[G], ELEMENTS >> dtype, &scalars);
            const double ticks = (double)(__rdtsc() - start);
            if (round == 0 || ticks < least[roots[k]])
                least[roots[k]] = ticks;
        }
}

/* The faster of the roots that are not the divider's. */
static int faster(const double ticks[RMSFAST_ROOTS])
{
    return ticks[RMSFAST_FMA] < ticks[RMSFAST_MIXED] ? RMSFAST_FMA : RMSFAST_MIXED;
}

static const int all_roots[] = {RMSFAST_DIVIDER, RMSFAST_FMA, RMSFAST_MIXED, RMSFAST_ROOTS};

/* The more operations an update has beside root and quotient, the less there is to gain. So the updates with the fewest and
   with the most are measured; for those between, the ratio of times is taken to grow with the number of operations. Where
   numbers are stored otherwise, to load and store is most of the work, whatever the update. */
int rmsfast_choose_roots(rmsfast_stages stages[RMSFAST_STORED + 1], const rmsfast_isa *isa)
{
    static const int of_momentum[] = {0, 3, 5}, of_centered = 6, of_more = 8, of_all = 5 + 6 + 8;
    _Alignas(64) numbers arrays[ARRAYS];
    int of_plain = RMSFAST_DIVIDER;
    for (int dtype = 0; dtype < RMSFAST_DTYPES; dtype++) {
        stages[dtype] = *isa->stages[RMSFAST_DIVIDER][dtype];
        if (isa->stages[RMSFAST_FMA][dtype] == NULL)
            continue;
        double plain[RMSFAST_ROOTS], most[RMSFAST_ROOTS], low = MOST;
        int root = RMSFAST_DIVIDER;
        fill(arrays, dtype);
        for (int attempt = 0; attempt < 2 && low >= MOST; attempt++) { /* one may have been disturbed */
            measure(plain, isa, dtype, PLAIN, all_roots, arrays);
            root = faster(plain);
            low = plain[root] / plain[RMSFAST_DIVIDER];
        }
        if (low >= MOST)
            continue;
        measure(most, isa, dtype, MOST_TO_DO, (int[]){RMSFAST_DIVIDER, root, RMSFAST_ROOTS}, arrays);
        const double high = most[root] / most[RMSFAST_DIVIDER];
        for (int centered = 0; centered < 2; centered++)
            for (int momentum = 0; momentum < RMSFAST_MOMENTA; momentum++)
                for (int more = 0; more < 2; more++) {
                    const int operations = of_centered * centered + of_momentum[momentum] + of_more * more;
                    if (low + (high - low) * operations / of_all < MOST)
                        stages[dtype].update[centered][momentum][more] =
                            isa->stages[root][dtype]->update[centered][momentum][more];
                }
        if (dtype == RMSFAST_FLOAT32)
            of_plain = root;
    }
    stages[RMSFAST_STORED] = *isa->stages[RMSFAST_DIVIDER][RMSFAST_FLOAT32];
    if (of_plain != RMSFAST_DIVIDER) {
        double stored[RMSFAST_ROOTS];
        for (int k = 0; k < ARRAYS; k++)
            for (int i = 0; i < ELEMENTS; i++)
                arrays[k].of_bfloat16[i] = 0x3dcd; /* 0.1 */
        measure(stored, isa, RMSFAST_FLOAT32, STORED, all_roots, arrays);
        const int root = faster(stored);
        if (stored[root] < MOST * stored[RMSFAST_DIVIDER])
            stages[RMSFAST_STORED] = *isa->stages[root][RMSFAST_FLOAT32];
    }
    return of_plain;
}

#else

int rmsfast_choose_roots(rmsfast_stages stages[RMSFAST_STORED + 1], const rmsfast_isa *isa)
{
    for (int k = 0; k <= RMSFAST_STORED; k++)
        stages[k] = *isa->stages[RMSFAST_DIVIDER][k == RMSFAST_STORED ? RMSFAST_FLOAT32 : k];
    return RMSFAST_DIVIDER;
}

#endif
