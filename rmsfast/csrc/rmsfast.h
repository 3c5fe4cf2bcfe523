/* What the C side offers to _kernel.pyx: the settings of a step, a table of functions for each instruction set, and
   what strided gradients need. */
#ifndef RMSFAST_H
#define RMSFAST_H

#include <float.h>
#include <stddef.h>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(_M_FP_FAST)
#error "rmsfast promises NumPy's bits: build it without -ffast-math, -Ofast or /fp:fast"
#endif
#if FLT_EVAL_METHOD != 0
#error "rmsfast rounds each operation to the arrays' type: build it for 32-bit x86 with -msse2 -mfpmath=sse"
#endif

#ifdef _MSC_VER
#define RMSFAST_RESTRICT __restrict
#else
#define RMSFAST_RESTRICT restrict
#endif

/* The settings of one parameter group. What an update needs of them, it forms in double and rounds to the arrays' type
   once, in the floating-point mode in which it computes. */
typedef struct {
    double lr;
    double beta;
    double eps;
} rmsfast_settings;

/* One step on n elements: w and v are updated in place. No two of the three arrays overlap. */
typedef void (*rmsfast_update)(void *w, void *v, const void *g, ptrdiff_t n, const rmsfast_settings *settings);

enum { RMSFAST_FLOAT32, RMSFAST_FLOAT64, RMSFAST_DTYPES };

typedef struct {
    const char *name;
    rmsfast_update update[RMSFAST_DTYPES];
} rmsfast_isa;

/* The k-th instruction set, narrowest first, that this build holds and this CPU runs; NULL past the last. */
const rmsfast_isa *rmsfast_usable_isa(int k);

/* Copy n elements of a strided array to out, from element `start` on, counted in Fortran order if `fortran`, else in C
   order. Strides are in bytes and may have any sign; elements may be misaligned. */
void rmsfast_gather(void *out, const char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim,
                    const ptrdiff_t *shape, const ptrdiff_t *strides, int fortran);

/* Whether some element of a strided array has a byte in [start, stop), counted from the array's lowest byte. */
int rmsfast_strides_into(ptrdiff_t start, ptrdiff_t stop, ptrdiff_t itemsize, int ndim, const ptrdiff_t *shape,
                         const ptrdiff_t *strides);

#endif
