/* What update.h works on at a time: a pack of numbers. It is a vector register where an isa_*.c file asks for VECTOR_BITS,
   else one number, of which the compiler makes vectors. GCC and clang have +, -, *, / for both; MSVC has them for numbers
   only. load and store take the whole pack, or else the first `count` numbers of it. */
#if defined(_MSC_VER) && !defined(__clang__)
#undef VECTOR_BITS
#endif
#ifndef VECTOR_BITS
#define VECTOR_BITS 0
#else
#include <immintrin.h>
#endif

#if VECTOR_BITS == 512

typedef __m512 pack_float32;
typedef __m512d pack_float64;
#define OP_float32(name) _mm512_##name##_ps
#define OP_float64(name) _mm512_##name##_pd
#define FIRST(count) ((1u << (count)) - 1)
#define LOAD_FIRST_float32(x, count) _mm512_maskz_loadu_ps((__mmask16)FIRST(count), x)
#define LOAD_FIRST_float64(x, count) _mm512_maskz_loadu_pd((__mmask8)FIRST(count), x)
#define STORE_FIRST_float32(x, count, pack) _mm512_mask_storeu_ps(x, (__mmask16)FIRST(count), pack)
#define STORE_FIRST_float64(x, count, pack) _mm512_mask_storeu_pd(x, (__mmask8)FIRST(count), pack)

#elif VECTOR_BITS == 256

typedef __m256 pack_float32;
typedef __m256d pack_float64;
#define OP_float32(name) _mm256_##name##_ps
#define OP_float64(name) _mm256_##name##_pd
#define FIRST_float32(count) _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define FIRST_float64(count) _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3))
#define LOAD_FIRST_float32(x, count) _mm256_maskload_ps(x, FIRST_float32(count))
#define LOAD_FIRST_float64(x, count) _mm256_maskload_pd(x, FIRST_float64(count))
#define STORE_FIRST_float32 store_first_float32
#define STORE_FIRST_float64 store_first_float64

/* By fours, twos and ones, of fewer than LANES numbers: a masked store takes AMD's CPUs some 20 cycles. */
RMSFAST_INLINE void store_first_float32(float *x, int count, __m256 pack)
{
    __m128 rest = _mm256_castps256_ps128(pack);
    if (count & 4) {
        _mm_storeu_ps(x, rest);
        rest = _mm256_extractf128_ps(pack, 1);
        x += 4;
    }
    if (count & 2) {
        _mm_storel_pi((__m64 *)x, rest);
        rest = _mm_movehl_ps(rest, rest);
        x += 2;
    }
    if (count & 1)
        _mm_store_ss(x, rest);
}

RMSFAST_INLINE void store_first_float64(double *x, int count, __m256d pack)
{
    __m128d rest = _mm256_castpd256_pd128(pack);
    if (count & 2) {
        _mm_storeu_pd(x, rest);
        rest = _mm256_extractf128_pd(pack, 1);
        x += 2;
    }
    if (count & 1)
        _mm_store_sd(x, rest);
}

#endif

/* at_most and at_least leave a NaN and a zero of either sign as they are. So do the vectors' min and max, which return
   their second argument when they see one. */
#if VECTOR_BITS
#define PACKS(type, real)                                                                                              \
    enum { LANES_##type = sizeof(pack_##type) / sizeof(real) };                                                        \
    RMSFAST_INLINE pack_##type load_##type(const real *x, const int whole, int count)                                  \
    {                                                                                                                  \
        return whole ? OP_##type(loadu)(x) : LOAD_FIRST_##type(x, count);                                              \
    }                                                                                                                  \
    RMSFAST_INLINE void store_##type(real *x, pack_##type pack, const int whole, int count)                            \
    {                                                                                                                  \
        if (whole)                                                                                                     \
            OP_##type(storeu)(x, pack);                                                                                \
        else                                                                                                           \
            STORE_FIRST_##type(x, count, pack);                                                                        \
    }                                                                                                                  \
    RMSFAST_INLINE pack_##type at_most_##type(pack_##type x, real most)                                                \
    {                                                                                                                  \
        return OP_##type(min)(OP_##type(set1)(most), x);                                                               \
    }                                                                                                                  \
    RMSFAST_INLINE pack_##type at_least_##type(pack_##type x, real least)                                              \
    {                                                                                                                  \
        return OP_##type(max)(OP_##type(set1)(least), x);                                                              \
    }
#else
#define PACKS(type, real)                                                                                              \
    typedef real pack_##type;                                                                                          \
    enum { LANES_##type = 1 };                                                                                         \
    RMSFAST_INLINE real load_##type(const real *x, const int whole, int count) { return (void)whole, (void)count, *x; } \
    RMSFAST_INLINE void store_##type(real *x, real pack, const int whole, int count)                                   \
    {                                                                                                                  \
        (void)whole, (void)count;                                                                                      \
        *x = pack;                                                                                                     \
    }                                                                                                                  \
    RMSFAST_INLINE real at_most_##type(real x, real most) { return x > most ? most : x; }                              \
    RMSFAST_INLINE real at_least_##type(real x, real least) { return x < least ? least : x; }
#endif
PACKS(float32, float)
PACKS(float64, double)
#undef PACKS
