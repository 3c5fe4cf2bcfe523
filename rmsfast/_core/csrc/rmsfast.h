/* What the C side offers: the settings of a step, a table of stages for each instruction set, and what
   strided gradients need. */
#ifndef RMSFAST_H
#define RMSFAST_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(_M_FP_FAST)
#error "rmsfast promises NumPy's bits: build it without -ffast-math, -Ofast or /fp:fast"
#endif
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16 /* 16: as 0, with a _Float16 of its own */
#error "rmsfast rounds each operation to the arrays' type: build it for 32-bit x86 with -msse2 -mfpmath=sse"
#endif

#ifdef _MSC_VER
#define RMSFAST_RESTRICT __restrict
#define RMSFAST_INLINE static __forceinline
#define RMSFAST_PREFETCH(address, writes) ((void)(address)) /* no hint */
#else
#define RMSFAST_RESTRICT restrict
#define RMSFAST_INLINE static inline __attribute__((always_inline))
#define RMSFAST_PREFETCH(address, writes) __builtin_prefetch(address, writes)
#endif

/* The settings of one parameter group, as a user gave them; INFINITY where there is no clipping. */
typedef struct {
    double lr;
    double beta;
    double eps;
    double momentum;
    double weight_decay;
    double clip_value;
    double clip_norm;
    double clip_global_norm;
    double clip_weights;
    double ema_decay; /* negative where there are no averages */
    int nesterov;
    int centered;
    int decoupled_weight_decay;
    int eps_inside_sqrt;
    int lr_in_momentum;
    int bias_correction;
    int maximize;
    int nonfinite;
    int stochastic; /* rounding */
    uint64_t seed;
} rmsfast_settings;

enum { RMSFAST_PROPAGATE, RMSFAST_RAISE, RMSFAST_SKIP }; /* what `nonfinite` can be */

/* The numbers that an update works with: those of a step on one parameter, formed in double and rounded to the arrays'
   type once, in the floating-point mode of the update. What a setting leaves out is left out by ·1 or +0, which round
   nothing, by a limit of infinity, or by a switch where these would change some special value. `maximize` is in the sign
   of `scale`: to turn round first changes no bit, since rounding and clipping treat both signs alike. */
#define RMSFAST_SCALARS(REAL)                                                                                          \
    typedef struct {                                                                                                   \
        int changes_grad, decays;                                                                                      \
        REAL scale, factor, limit, decay, beta, one_minus_beta, correction, lr_of_quotient;                            \
        REAL eps_inside, eps_outside, mu, lr_of_step, weight_limit, ema_decay, one_minus_ema_decay;                    \
    } rmsfast_scalars_##REAL;
RMSFAST_SCALARS(float)
RMSFAST_SCALARS(double)
#undef RMSFAST_SCALARS

typedef union {
    rmsfast_scalars_float of_float32;
    rmsfast_scalars_double of_float64;
} rmsfast_scalars;

enum { RMSFAST_INTO_GRAD = 1, RMSFAST_DECOUPLED }; /* what `decays` can be, but for 0 */

/* A stage works on n real numbers; in an array of complex ones, the real and the imaginary part are two. No two of its
   arrays overlap. */

/* Form the numbers. `clip_factor` is what a norm asks for; `correction` is that of the bias: 1, or 1/(1−βᵗ). Returns whether
   a step does more than momentum and centered ask for. */
typedef int (*rmsfast_form)(rmsfast_scalars *scalars, const rmsfast_settings *settings, double grad_scale,
                            double clip_factor, double correction);

/* One step: w, v and, where it has them, m and b are updated in place. */
typedef void (*rmsfast_update)(void *w, void *v, void *m, void *b, const void *g, ptrdiff_t n,
                               const rmsfast_scalars *scalars);

/* What follows an update, where `clip_weights` or `ema_decay` asks for it. `a` is the average of w, or NULL. */
typedef void (*rmsfast_settle)(void *w, void *a, ptrdiff_t n, const rmsfast_scalars *scalars);

/* What the norm of a gradient, and `nonfinite`, have to know about each RMSFAST_BLOCK numbers of it: the sum of the
   squares of g·grad_scale·shrink, and how many elements of g are infinite or NaN. */
enum { RMSFAST_BLOCK = 1024 };
typedef struct {
    double squares;
    ptrdiff_t nonfinite;
} rmsfast_block;
typedef void (*rmsfast_measure)(rmsfast_block *blocks, const void *g, ptrdiff_t n, double grad_scale, double shrink);

enum { RMSFAST_FLOAT32, RMSFAST_FLOAT64, RMSFAST_DTYPES };
enum { RMSFAST_NO_MOMENTUM, RMSFAST_MOMENTUM, RMSFAST_NESTEROV, RMSFAST_MOMENTA };

typedef struct {
    rmsfast_form form;
    rmsfast_measure measure;
    rmsfast_settle settle;
    rmsfast_update update[2][RMSFAST_MOMENTA][2]; /* [centered][kind of momentum][what `form` returned] */
} rmsfast_stages;

/* How numbers are stored: as they are, in which case no stage works on them; in fewer bytes; a parameter together with its
   float32 master, of which a part, or all, is elsewhere; or in 8 bits and a scale for each block. */
enum {
    RMSFAST_AS_THEY_ARE,
    RMSFAST_FLOAT16,
    RMSFAST_BFLOAT16,
    RMSFAST_SPLIT,
    RMSFAST_MASTERED,
    RMSFAST_UNSIGNED8,
    RMSFAST_SIGNED8,
    RMSFAST_FORMATS
};
enum { RMSFAST_SCALED = 64 }; /* numbers that share a scale, and random bits */
enum { RMSFAST_NEAREST, RMSFAST_STOCHASTIC, RMSFAST_ROUNDINGS };

typedef void (*rmsfast_load)(float *x, const void *data, const void *more, ptrdiff_t start, ptrdiff_t n);
typedef void (*rmsfast_store)(void *data, void *more, ptrdiff_t start, ptrdiff_t n, const float *x,
                              const uint16_t *random);

/* Where the numbers of one kind are, how they are stored, and, where random bits round them, the key of these and the index
   that the first element has there, a multiple of RMSFAST_SCALED. */
typedef struct {
    void *data; /* NULL: there are none */
    void *more;
    int format;
    int draws;
    uint64_t key;
    ptrdiff_t element;
} rmsfast_stored;
enum { RMSFAST_COPY = 4, RMSFAST_EMA, RMSFAST_KINDS }; /* after w, v, m and b: what w is written to once more; its average */

/* As rmsfast_update, and rmsfast_settle unless it is NULL, for n elements from `place` on of a parameter of `length` elements whose numbers are not all stored as
   they are. */
typedef void (*rmsfast_update_stored)(const rmsfast_stored numbers[RMSFAST_KINDS], ptrdiff_t length,
                                      const rmsfast_stored *grad, ptrdiff_t place, ptrdiff_t n, rmsfast_update update,
                                      rmsfast_settle settle, const rmsfast_scalars *scalars);

typedef struct {
    const rmsfast_load *load;                      /* [format] */
    const rmsfast_store (*store)[RMSFAST_FORMATS]; /* [rounding][format] */
    rmsfast_update_stored update;
} rmsfast_storage;

/* A hash of 64 bits (Vigna's splitmix64). */
RMSFAST_INLINE uint64_t rmsfast_mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* The key of the random bits of one array, `stream`, of a parameter in a step. */
RMSFAST_INLINE uint64_t rmsfast_key(uint64_t seed, uint64_t parameter, uint64_t step, uint64_t stream)
{
    return rmsfast_mix(rmsfast_mix(rmsfast_mix(rmsfast_mix(seed) + parameter) + step) + stream);
}

/* Where the square root comes from: the CPU's divider, or its estimate and fused multiply-add, or both in turn. They give
   the same bits. */
enum { RMSFAST_DIVIDER, RMSFAST_FMA, RMSFAST_MIXED, RMSFAST_ROOTS };

typedef struct {
    const char *name;
    const rmsfast_storage *storage;
    const rmsfast_stages *stages[RMSFAST_ROOTS][RMSFAST_DTYPES]; /* NULL for roots that it does not have */
} rmsfast_isa;

/* The k-th instruction set, narrowest first, that this build holds and this CPU runs; NULL past the last. */
const rmsfast_isa *rmsfast_usable_isa(int k);

/* The stages of an instruction set, each update with the root that is fastest on this CPU, measured in some 60 µs; the last
   stages are those for float32 numbers that are not all stored as they are. Returns the root of the plain rule in float32. */
enum { RMSFAST_STORED = RMSFAST_DTYPES };
int rmsfast_choose_roots(rmsfast_stages stages[RMSFAST_STORED + 1], const rmsfast_isa *isa);

/* Copy n elements of a strided array to out, from element `start` on, the last axis moving fastest. Strides are in bytes
   and may have any sign. Elements may be misaligned. */
void rmsfast_gather(void *out, const char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim,
                    const ptrdiff_t *shape, const ptrdiff_t *strides);

/* Set the same elements to zero. */
void rmsfast_zero(char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim, const ptrdiff_t *shape,
                  const ptrdiff_t *strides);

/* Write the distinct ones of n rows to `distinct`, in the order in which they first appear, and to `grads` where the
   gradient of each is, if that of row i is at first + i·size. Returns how many there are, or -1 - i if the i-th is not from 0
   to limit - 1. Behind them, from the end on, `distinct` gets the places of the rows that appeared before. `table` has
   2^bits zeros, more than n. */
ptrdiff_t rmsfast_distinct(ptrdiff_t *distinct, const char **grads, const ptrdiff_t *rows, ptrdiff_t n, ptrdiff_t limit,
                           const char *first, ptrdiff_t size, int32_t *table, int bits);

/* With what the function above left behind: add up the gradients of the rows that repeat, in the order in which they
   appear, in `sums`, which has room for n - count rows, and point `grads` there. */
void rmsfast_sum_repeated(char *sums, ptrdiff_t *distinct, ptrdiff_t count, const char **grads, const ptrdiff_t *rows,
                          ptrdiff_t n, const char *first, ptrdiff_t size, int32_t *table, int bits, int is_float64);

/* Whether some element of a strided array has a byte in [start, stop), counted from the array's lowest byte. Here strides
   count `unit` bytes. */
int rmsfast_strides_into(ptrdiff_t start, ptrdiff_t stop, ptrdiff_t itemsize, int ndim, const ptrdiff_t *shape,
                         const ptrdiff_t *strides, ptrdiff_t unit);

#endif
