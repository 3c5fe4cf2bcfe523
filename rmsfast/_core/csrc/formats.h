/* How float32 numbers are stored in fewer bytes, and brought back: one pair of loops for each format. Bringing back is exact.
   Storing rounds to nearest, or up with the probability of the part cut off: then `random` has 16 bits for each number. A
   NaN stays a NaN, but in 8 bits. rmsfast/formats.py has the same in NumPy.

   Every function works on n numbers from the element `start` on. `more` is what a format keeps beside the elements. */
#include <string.h>

RMSFAST_INLINE uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

RMSFAST_INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

enum { MANTISSA = 4, CUT = 23 - MANTISSA }; /* bits of mantissa in an element of 8 bits; how many fewer than a float32 has */
#define INFINITE 0x7f800000u
#define A_NAN 0x7fc00000u
#define MAGNITUDE 0x7fffffffu

#define NAME(what) what##_one
#define FLOATS float
#define WORDS uint32_t
#define BITS(x) bits_of(x)
#define NUMBERS(words) float_of(words)
#define ALL(word) ((uint32_t)(word))
#define LESS(x, y) (0u - (uint32_t)((x) < (y)))
#define LOWER(x, y) ((x) < (y) ? (x) : (y))
#define HIGHER(x, y) ((x) > (y) ? (x) : (y))
#define AS_FLOATS(words) ((float)(int32_t)(words))
#define AS_WORDS(floats) ((uint32_t)(int32_t)(floats))
#include "coding.h"
#undef NAME
#undef FLOATS
#undef WORDS
#undef BITS
#undef NUMBERS
#undef ALL
#undef LESS
#undef LOWER
#undef HIGHER
#undef AS_FLOATS
#undef AS_WORDS

#if VECTOR_BITS
typedef uint32_t words __attribute__((vector_size(VECTOR_BITS / 8)));
typedef int32_t integers __attribute__((vector_size(VECTOR_BITS / 8)));
enum { PACK = VECTOR_BITS / 32 };
#if VECTOR_BITS == 512
#define WORD(name) _mm512_##name
typedef __m512i word_pack;
#define WIDEN_HALF(h) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(h)))
#define NARROW_HALF(h, x) _mm256_storeu_si256((__m256i *)(h), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT))
#define WIDEN_16(p) ((words)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p))))
#define NARROW_16(p, w) _mm256_storeu_si256((__m256i *)(p), _mm512_cvtepi32_epi16((__m512i)(w)))
#define WIDEN_8(p) ((words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define NARROW_8(p, w) _mm_storeu_si128((__m128i *)(p), _mm512_cvtepi32_epi8((__m512i)(w)))
#define HALVES(x) ((words)_mm512_cvtepu16_epi32(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)))
#define LARGEST_WORD(words) _mm512_reduce_max_epu32((__m512i)(words))
#else
#define WORD(name) _mm256_##name
#define LARGEST_WORD(words) largest_word((__m256i)(words))
typedef __m256i word_pack;
#define WIDEN_HALF(h) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h)))
#define NARROW_HALF(h, x) _mm_storeu_si128((__m128i *)(h), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT))
#define WIDEN_16(p) ((words)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define NARROW_16(p, w) _mm_storeu_si128((__m128i *)(p), narrow_16((__m256i)(w)))
#define WIDEN_8(p) ((words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#define NARROW_8(p, w) _mm_storel_epi64((__m128i *)(p), _mm_packus_epi16(narrow_16((__m256i)(w)), _mm_setzero_si128()))
#define HALVES(x) ((words)_mm256_cvtepu16_epi32(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)))
RMSFAST_INLINE uint32_t largest_word(__m256i words)
{
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(1, 0, 3, 2)));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(2, 3, 0, 1)));
    return (uint32_t)_mm_cvtsi128_si32(most);
}
RMSFAST_INLINE __m128i narrow_16(__m256i words)
{
    const __m256i low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
    return _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
}
#endif

#define NAME(what) what##_pack
#define FLOATS pack_float32
#define WORDS words
#define BITS(x) ((words)(x))
#define NUMBERS(words) ((pack_float32)(words))
#define ALL(word) ((words){0} + (uint32_t)(word))
#define LESS(x, y) ((words)((x) < (y)))
#define LOWER(x, y) ((words)WORD(min_epu32)((word_pack)(x), (word_pack)(y)))
#define HIGHER(x, y) ((words)WORD(max_epu32)((word_pack)(x), (word_pack)(y)))
#define AS_FLOATS(words) WORD(cvtepi32_ps)((word_pack)(words))
#define AS_WORDS(floats) ((words)WORD(cvttps_epi32)(floats))
#include "coding.h"

/* What is done for packs, then what is done for single numbers, at element i. */
#define FOR_EACH(n, packs, ones)                                                                                       \
    ptrdiff_t i = 0;                                                                                                   \
    for (; i <= (n) - PACK; i += PACK)                                                                                 \
        packs;                                                                                                         \
    for (; i < (n); i++)                                                                                               \
        ones
#else
#define FOR_EACH(n, packs, ones)                                                                                       \
    for (ptrdiff_t i = 0; i < (n); i++)                                                                                \
        ones
#endif

#define LOAD(format)                                                                                                   \
    static void load_##format(float *RMSFAST_RESTRICT x, const void *RMSFAST_RESTRICT data,                            \
                              const void *RMSFAST_RESTRICT more, ptrdiff_t start, ptrdiff_t n)
#define STORE(name)                                                                                                    \
    static void name(void *RMSFAST_RESTRICT data, void *RMSFAST_RESTRICT more, ptrdiff_t start, ptrdiff_t n,           \
                     const float *RMSFAST_RESTRICT x, const uint16_t *RMSFAST_RESTRICT random)
#define PUT(y, pack) OP_float32(storeu)(y, pack)
#define GET(x) OP_float32(loadu)(x)

/* ---- float16: the CPU's own conversion, where it has one ---- */

LOAD(float16)
{
    const uint16_t *h = (const uint16_t *)data + start;
    (void)more;
    FOR_EACH(n, PUT(x + i, WIDEN_HALF(h + i)), x[i] = of_half_one(h[i]));
}

STORE(store_float16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more, (void)random;
    FOR_EACH(n, NARROW_HALF(h + i, GET(x + i)), h[i] = (uint16_t)as_half_one(x[i]));
}

STORE(draw_float16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more;
    FOR_EACH(n, NARROW_16(h + i, towards_half_pack(GET(x + i), WIDEN_16(random + i))),
             h[i] = (uint16_t)towards_half_one(x[i], random[i]));
}

/* ---- bfloat16 ---- */

LOAD(bfloat16)
{
    const uint16_t *h = (const uint16_t *)data + start;
    (void)more;
    FOR_EACH(n, PUT(x + i, NUMBERS(WIDEN_16(h + i) << 16)), x[i] = float_of((uint32_t)h[i] << 16));
}

STORE(store_bfloat16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more, (void)random;
    FOR_EACH(n, NARROW_16(h + i, as_upper_pack(GET(x + i))), h[i] = (uint16_t)as_upper_one(x[i]));
}

STORE(draw_bfloat16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more;
    FOR_EACH(n, NARROW_16(h + i, towards_upper_pack(GET(x + i), WIDEN_16(random + i))),
             h[i] = (uint16_t)towards_upper_one(x[i], random[i]));
}

/* ---- Masters: the float32 whose rounding the parameter is ---- */

/* bfloat16, and in `more` 16 bits: the master's bits less the parameter's. */
LOAD(split)
{
    const uint16_t *h = (const uint16_t *)data + start, *rest = (const uint16_t *)more + start;
    FOR_EACH(n, PUT(x + i, joined_pack(WIDEN_16(h + i), WIDEN_16(rest + i))), x[i] = joined_one(h[i], rest[i]));
}

STORE(store_split)
{
    uint16_t *h = (uint16_t *)data + start, *rest = (uint16_t *)more + start;
    (void)random;
#define SPLIT(words, kind, get, put)                                                                                   \
    {                                                                                                                  \
        const words bits = to_cut_##kind(get);                                                                         \
        put(h, (bits + 0x8000) >> 16);                                                                                 \
        put(rest, bits & 0xffff);                                                                                      \
    }
#define PUT_PACK(place, word) NARROW_16(place + i, word)
#define PUT_ONE(place, word) place[i] = (uint16_t)(word)
    FOR_EACH(n, SPLIT(words, pack, GET(x + i), PUT_PACK), SPLIT(uint32_t, one, x[i], PUT_ONE));
}

/* float16, and in `more` the master itself. Where the user changed the parameter, it is the master. */
LOAD(mastered)
{
    const float *master = (const float *)more + start;
    const uint16_t *h = (const uint16_t *)data + start;
#define CHOOSE_PACK                                                                                                    \
    {                                                                                                                  \
        const words same = (words)(HALVES(GET(master + i)) == WIDEN_16(h + i));                                        \
        PUT(x + i, NUMBERS((same & BITS(GET(master + i))) | (~same & BITS(WIDEN_HALF(h + i)))));                       \
    }
    FOR_EACH(n, CHOOSE_PACK, x[i] = as_half_one(master[i]) == h[i] ? master[i] : of_half_one(h[i]));
}

STORE(store_mastered)
{
    memcpy((float *)more + start, x, (size_t)n * sizeof(float));
    store_float16(data, NULL, start, n, x, random);
}

/* ---- 8 bits: blocks of numbers with one scale ----

   `more` has for each block of RMSFAST_SCALED numbers the exponent of its largest one, as float32 has it. The elements have
   MANTISSA bits of mantissa and, above them, the exponent less that of the block's smallest. Without a sign, for v, the least
   element stands for the smallest number and for all below it, never for 0. With a sign, for m and b, numbers below the
   smallest power of two are evenly spaced, down to 0. Infinite numbers and NaNs are stored as the largest. */

/* The exponent that a block needs: one higher where its largest number may be rounded up to a power of two. */
RMSFAST_INLINE uint32_t exponent_of_largest(const float *x, ptrdiff_t n)
{
    uint32_t largest = 0;
#if VECTOR_BITS
    words most = {0};
    FOR_EACH(n, most = HIGHER(most, finite_pack(GET(x + i))), {
        const uint32_t size = finite_one(x[i]);
        largest = size > largest ? size : largest;
    });
    const uint32_t of_packs = LARGEST_WORD(most);
    largest = of_packs > largest ? of_packs : largest;
#else
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t size = finite_one(x[i]);
        largest = size > largest ? size : largest;
    }
#endif
    const uint32_t exponent = (largest + (1u << CUT) - 1) >> 23;
    return exponent > 254 ? 254 : exponent;
}

RMSFAST_INLINE uint32_t base_unsigned8(uint32_t exponent) { return exponent > 16 ? exponent - 15 : 1; }
RMSFAST_INLINE uint32_t base_signed8(uint32_t exponent) { return exponent > 26 ? exponent - 6 : 20; }

#define EIGHT_BITS(format)                                                                                             \
    LOAD(format)                                                                                                       \
    {                                                                                                                  \
        const uint8_t *scale = (const uint8_t *)more + start / RMSFAST_SCALED, *codes = (const uint8_t *)data + start; \
        for (ptrdiff_t size; n > 0; n -= size, x += size, codes += size) {                                             \
            const uint32_t base = base_##format(*scale++);                                                             \
            size = n < RMSFAST_SCALED ? n : RMSFAST_SCALED;                                                            \
            FOR_EACH(size, PUT(x + i, of_##format##_pack(WIDEN_8(codes + i), base)),                                   \
                     x[i] = of_##format##_one(codes[i], base));                                                        \
        }                                                                                                              \
    }                                                                                                                  \
    RMSFAST_INLINE void round_##format(uint8_t *RMSFAST_RESTRICT codes, uint8_t *RMSFAST_RESTRICT scale, ptrdiff_t n,  \
                                       const float *RMSFAST_RESTRICT x, const int draws,                               \
                                       const uint16_t *RMSFAST_RESTRICT random)                                        \
    {                                                                                                                  \
        for (ptrdiff_t size; n > 0; n -= size, x += size, codes += size) {                                             \
            size = n < RMSFAST_SCALED ? n : RMSFAST_SCALED;                                                            \
            const uint32_t exponent = exponent_of_largest(x, size), base = base_##format(exponent);                    \
            *scale++ = (uint8_t)exponent;                                                                              \
            FOR_EACH(size,                                                                                             \
                     NARROW_8(codes + i, as_##format##_pack(GET(x + i), base, draws,                                   \
                                                            draws ? WIDEN_16(random + i) : (words){0})),               \
                     codes[i] = (uint8_t)as_##format##_one(x[i], base, draws, draws ? random[i] : 0));                 \
            random += draws ? size : 0;                                                                                \
        }                                                                                                              \
    }                                                                                                                  \
    STORE(store_##format)                                                                                              \
    {                                                                                                                  \
        round_##format((uint8_t *)data + start, (uint8_t *)more + start / RMSFAST_SCALED, n, x, 0, random);            \
    }                                                                                                                  \
    STORE(draw_##format)                                                                                               \
    {                                                                                                                  \
        round_##format((uint8_t *)data + start, (uint8_t *)more + start / RMSFAST_SCALED, n, x, 1, random);            \
    }
EIGHT_BITS(unsigned8)
EIGHT_BITS(signed8)

/* ---- Random bits ---- */

/* 16 bits for each of n elements from `start` on, a multiple of RMSFAST_SCALED: the lower half of a word for an element with an
   even index, the upper half for the next. A word is a hash of its number (Wellons's lowbias32), with a second key between
   the multiplications. Whole blocks are written. */
static void randomize(uint16_t *RMSFAST_RESTRICT random, uint64_t key, ptrdiff_t start, ptrdiff_t n)
{
    enum { WORDS_OF_BLOCK = RMSFAST_SCALED / 2 };
    uint64_t number = (uint64_t)start / 2, keys = rmsfast_mix(key + (number >> 32));
    for (const uint16_t *end = random + n; random < end; random += RMSFAST_SCALED, number += WORDS_OF_BLOCK) {
        if ((uint32_t)number == 0)
            keys = rmsfast_mix(key + (number >> 32));
        const uint32_t before = (uint32_t)keys, between = (uint32_t)(keys >> 32);
        for (int i = 0; i < WORDS_OF_BLOCK; i++) {
            uint32_t x = ((uint32_t)number + (uint32_t)i) ^ before;
            x = (x ^ x >> 16) * 0x7feb352d;
            x = (x ^ x >> 15 ^ between) * 0x846ca68b;
            x ^= x >> 16;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            x = x << 16 | x >> 16;
#endif
            memcpy(random + 2 * i, &x, sizeof x);
        }
    }
}

static const rmsfast_storage storage_ = {
    {NULL, load_float16, load_bfloat16, load_split, load_mastered, load_unsigned8, load_signed8},
    {
        {NULL, store_float16, store_bfloat16, store_split, store_mastered, store_unsigned8, store_signed8},
        {NULL, draw_float16, draw_bfloat16, NULL, NULL, draw_unsigned8, draw_signed8},
    },
    randomize,
};
