/* The roots of csrc/root.h for one instruction set, as test_root.py tries them. */
#include <math.h>
#include <string.h>

#include "rmsfast.h"

#include "pack.h"
#include "root.h"

/* n is a multiple of 16 in all of these. */
#define ARRAYS(type, real)                                                                                             \
    void roots_##type(real *root, const real *v, ptrdiff_t n)                                                          \
    {                                                                                                                  \
        for (ptrdiff_t i = 0; i < n; i += LANES_##type)                                                                \
            OP_##type(storeu)(root + i, root_##type(OP_##type(loadu)(v + i), 1));                                      \
    }                                                                                                                  \
    void refined_##type(real *root, const real *v, const real *estimate, ptrdiff_t n)                                  \
    {                                                                                                                  \
        for (ptrdiff_t i = 0; i < n; i += LANES_##type)                                                                \
            OP_##type(storeu)(root + i, refine_##type(OP_##type(loadu)(v + i), OP_##type(loadu)(estimate + i)));       \
    }                                                                                                                  \
    void estimates_##type(real *estimate, const real *v, ptrdiff_t n)                                                  \
    {                                                                                                                  \
        for (ptrdiff_t i = 0; i < n; i += LANES_##type)                                                                \
            OP_##type(storeu)(estimate + i, estimate_##type(OP_##type(loadu)(v + i)));                                 \
    }                                                                                                                  \
    /* Which packs do not go to the divider. */                                                                        \
    void usual_##type(int *usual, const real *v, ptrdiff_t n)                                                          \
    {                                                                                                                  \
        for (ptrdiff_t i = 0; i < n; i += LANES_##type)                                                                \
            usual[i / LANES_##type] = is_usual_##type(OP_##type(loadu)(v + i));                                        \
    }
ARRAYS(float32, float)
ARRAYS(float64, double)

void finished_float64(double *root, const double *v, const double *h, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i += LANES_float64)
        OP_float64(storeu)(root + i, finish_float64(OP_float64(loadu)(v + i), OP_float64(loadu)(h + i)));
}

#if VECTOR_BITS == 512
static int differ(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ) != 0; }
static __m512 numbers(int32_t bits, __m512i lanes) { return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_set1_epi32(bits), lanes)); }
#define ASCENDING _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#else
static int differ(__m256 a, __m256 b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ)) != 0; }
static __m256 numbers(int32_t bits, __m256i lanes) { return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_set1_epi32(bits), lanes)); }
#define ASCENDING _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)
#endif

/* Of n numbers, how many have a wrong root from some estimate? All numbers from `low` to `high` are tried, given as bits,
   and up to LANES - 1 more. */
ptrdiff_t wrong_from_any_estimate(const float *v, const float *root, const int32_t *low, const int32_t *high, ptrdiff_t n)
{
    ptrdiff_t wrong = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const pack_float32 number = OP_float32(set1)(v[i]), expected = OP_float32(set1)(root[i]);
        int differs = 0;
        for (int32_t bits = low[i]; bits <= high[i]; bits += LANES_float32)
            differs |= differ(refine_float32(number, numbers(bits, ASCENDING)), expected);
        wrong += differs;
    }
    return wrong;
}

/* The same for `count` random numbers of two binades, with the CPU's estimate. (xorshift64) */
ptrdiff_t wrong_of_random_float64(uint64_t seed, ptrdiff_t count)
{
    ptrdiff_t wrong = 0;
    for (ptrdiff_t i = 0; i < count; i += LANES_float64) {
        int64_t bits[LANES_float64];
        double v[LANES_float64], root[LANES_float64];
        for (int k = 0; k < LANES_float64; k++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bits[k] = BITS_float64(0) + (int64_t)(seed >> 11);
        }
        memcpy(v, bits, sizeof v);
        OP_float64(storeu)(root, root_float64(OP_float64(loadu)(v), 1));
        for (int k = 0; k < LANES_float64; k++)
            wrong += root[k] != sqrt(v[k]);
    }
    return wrong;
}
