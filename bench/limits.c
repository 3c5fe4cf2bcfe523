/* What this machine can do: a step's memory traffic with almost no arithmetic, and the same with one IEEE square root
   and one division for each element. bench/limits.py compiles this for the machine that it runs on. */
#include <math.h>
#include <stddef.h>

#define LOOP(name, type, statement)                                                                                    \
    static void name##_part(type *restrict w, type *restrict v, const type *restrict g, ptrdiff_t n)                   \
    {                                                                                                                  \
        for (ptrdiff_t i = 0; i < n; i++)                                                                              \
            statement                                                                                                  \
    }                                                                                                                  \
    void name(type *w, type *v, const type *g, ptrdiff_t n, int threads)                                               \
    {                                                                                                                  \
        if (threads == 1) {                                                                                            \
            name##_part(w, v, g, n);                                                                                   \
            return;                                                                                                    \
        }                                                                                                              \
        _Pragma("omp parallel for num_threads(threads) schedule(static, 1)") for (int t = 0; t < threads; t++)         \
        {                                                                                                              \
            ptrdiff_t start = n * t / threads / 16 * 16, stop = t == threads - 1 ? n : n * (t + 1) / threads / 16 * 16;\
            name##_part(w + start, v + start, g + start, stop - start);                                                \
        }                                                                                                              \
    }

LOOP(memory_float32, float, { v[i] = v[i] + g[i]; w[i] = w[i] - g[i]; })
LOOP(memory_float64, double, { v[i] = v[i] + g[i]; w[i] = w[i] - g[i]; })
LOOP(divider_float32, float, { v[i] = v[i] + g[i]; w[i] = w[i] - g[i] / sqrtf(v[i]); })
LOOP(divider_float64, double, { v[i] = v[i] + g[i]; w[i] = w[i] - g[i] / sqrt(v[i]); })
