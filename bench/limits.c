/* Loops to hold a step against: its memory traffic with almost no arithmetic, and the same with one square root and one
   quotient for each element, the root by the divider or by FMA; and a bound. bench/limits.py compiles this for the machine
   that it runs on. */
#include <math.h>
#include <stddef.h>

#include "rmsfast.h"

#if defined(__AVX512F__)
#define VECTOR_BITS 512
#elif defined(__AVX2__) && defined(__FMA__)
#define VECTOR_BITS 256
#endif
#include "pack.h"
#include "root.h"

/* `loop` goes over n elements of arrays w, v, g of one type. */
#define THREADED(name, type, loop)                                                                                     \
    static void name##_part(type *restrict w, type *restrict v, const type *restrict g, ptrdiff_t n) loop              \
    void name(type *w, type *v, const type *g, ptrdiff_t n, int threads)                                               \
    {                                                                                                                  \
        if (threads == 1) {                                                                                            \
            name##_part(w, v, g, n);                                                                                   \
            return;                                                                                                    \
        }                                                                                                              \
        _Pragma("omp parallel for num_threads(threads) schedule(static, 1)") for (int t = 0; t < threads; t++)         \
        {                                                                                                              \
            ptrdiff_t start = n * t / threads / 16 * 16, stop = t == threads - 1 ? n : n * (t + 1) / threads / 16 * 16; \
            name##_part(w + start, v + start, g + start, stop - start);                                                \
        }                                                                                                              \
    }

#define ELEMENTS(statement)                                                                                            \
    {                                                                                                                  \
        for (ptrdiff_t i = 0; i < n; i++)                                                                              \
            statement                                                                                                  \
    }
THREADED(copy_float32, float, ELEMENTS({ v[i] = v[i] + g[i]; w[i] = w[i] - g[i]; }))
THREADED(copy_float64, double, ELEMENTS({ v[i] = v[i] + g[i]; w[i] = w[i] - g[i]; }))
THREADED(divider_float32, float, ELEMENTS({ v[i] = v[i] + g[i]; w[i] = w[i] - g[i] / sqrtf(v[i]); }))
THREADED(divider_float64, double, ELEMENTS({ v[i] = v[i] + g[i]; w[i] = w[i] - g[i] / sqrt(v[i]); }))

#if VECTOR_BITS
#define PACKS(type)                                                                                                    \
    {                                                                                                                  \
        for (ptrdiff_t i = 0; i < n; i += LANES_##type) {                                                              \
            const int whole = n - i >= LANES_##type, count = whole ? LANES_##type : (int)(n - i);                      \
            const pack_##type grad = load_##type(g + i, whole, count);                                                 \
            const pack_##type square = load_##type(v + i, whole, count) + grad;                                        \
            store_##type(v + i, square, whole, count);                                                                 \
            const pack_##type weight = load_##type(w + i, whole, count) - grad / root_##type(square, 1);               \
            store_##type(w + i, weight, whole, count);                                                                 \
        }                                                                                                              \
    }
THREADED(fma_float32, float, PACKS(float32))
THREADED(fma_float64, double, PACKS(float64))
#endif

/* Below what any step takes: w and v are read and written many times over, with neither g nor a root or quotient, nor a
   return to Python, nor threads that wait for each other. `zero` is 0, which the compiler does not know, so that nothing
   changes and nothing is left out. */
#define BOUND(name, type)                                                                                              \
    static void __attribute__((noinline)) touch_##name(type *restrict w, type *restrict v, ptrdiff_t n, type zero)     \
        ELEMENTS({ w[i] = w[i] + zero; v[i] = v[i] + zero; })                                                          \
    void bound_##name(type *w, type *v, ptrdiff_t n, int threads, ptrdiff_t passes, type zero)                         \
    {                                                                                                                  \
        _Pragma("omp parallel for num_threads(threads) schedule(static, 1)") for (int t = 0; t < threads; t++)         \
        {                                                                                                              \
            ptrdiff_t start = n * t / threads / 16 * 16, stop = t == threads - 1 ? n : n * (t + 1) / threads / 16 * 16; \
            for (ptrdiff_t pass = 0; pass < passes; pass++)                                                            \
                touch_##name(w + start, v + start, stop - start, zero);                                                \
        }                                                                                                              \
    }
BOUND(float32, float)
BOUND(float64, double)
