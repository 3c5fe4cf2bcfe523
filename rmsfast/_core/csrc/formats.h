/* How float32 numbers are stored in fewer bytes, and brought back: one pair of loops for each format. Bringing back is exact.
   Storing rounds to nearest, or up with the probability of the part cut off: then `random` has 16 bits for each number. A
   NaN stays a NaN. rmsfast/formats.py has the same in NumPy.

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

static const uint32_t INFINITE = 0x7f800000, A_NAN = 0x7fc00000, MAGNITUDE = 0x7fffffff;

#define LOAD(format)                                                                                                   \
    static void load_##format(float *RMSFAST_RESTRICT x, const void *RMSFAST_RESTRICT data,                            \
                              const void *RMSFAST_RESTRICT more, ptrdiff_t start, ptrdiff_t n)
#define STORE(name)                                                                                                    \
    static void name(void *RMSFAST_RESTRICT data, void *RMSFAST_RESTRICT more, ptrdiff_t start, ptrdiff_t n,           \
                     const float *RMSFAST_RESTRICT x, const uint16_t *RMSFAST_RESTRICT random)

/* ---- float16 ---- */

/* A subnormal one is a multiple of 2⁻²⁴. */
RMSFAST_INLINE float of_float16(uint16_t h)
{
    const uint32_t size = h & 0x7fffu, scale = size >= 0x7c00 ? 224u << 23 : 112u << 23;
    const uint32_t bits = size < 0x400 ? bits_of((float)(int)size * 0x1p-24f) : (size << 13) + scale;
    return float_of(bits | (h & 0x8000u) << 16);
}

RMSFAST_INLINE uint16_t as_float16(float x)
{
    const uint32_t bits = bits_of(x), size = bits & MAGNITUDE;
    const uint32_t small = bits_of(float_of(size) + 0.5f) - bits_of(0.5f); /* the sum rounds to multiples of 2⁻²⁴ */
    const uint32_t usual = (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13;
    uint32_t half = size < 113u << 23 ? small : usual;
    half = size >= 143u << 23 ? (size > INFINITE ? 0x7e00 : 0x7c00) : half;
    return (uint16_t)(half | (bits >> 16 & 0x8000));
}

RMSFAST_INLINE uint16_t towards_float16(float x, uint16_t random)
{
    const uint32_t bits = bits_of(x), size = bits & MAGNITUDE;
    const float within = size < 113u << 23 ? float_of(size) : 0;
    const uint32_t small = ((uint32_t)(int32_t)(within * 0x1p40f) + random) >> 16;
    const uint32_t usual = (size + (random >> 3) - (112u << 23)) >> 13;
    uint32_t half = size < 113u << 23 ? small : usual;
    half = size >= 143u << 23 ? (size > INFINITE ? 0x7e00 : 0x7c00) : half;
    return (uint16_t)(half | (bits >> 16 & 0x8000));
}

#if VECTOR_BITS == 512
#define WIDEN(h) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(h)))
#define NARROW(h, pack) _mm256_storeu_si256((__m256i *)(h), _mm512_cvtps_ph(pack, _MM_FROUND_TO_NEAREST_INT))
#elif VECTOR_BITS == 256
#define WIDEN(h) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h)))
#define NARROW(h, pack) _mm_storeu_si128((__m128i *)(h), _mm256_cvtps_ph(pack, _MM_FROUND_TO_NEAREST_INT))
#endif

LOAD(float16)
{
    const uint16_t *h = (const uint16_t *)data + start;
    ptrdiff_t i = 0;
    (void)more;
#if VECTOR_BITS
    for (; i <= n - LANES_float32; i += LANES_float32)
        OP_float32(storeu)(x + i, WIDEN(h + i));
#endif
    for (; i < n; i++)
        x[i] = of_float16(h[i]);
}

STORE(store_float16)
{
    uint16_t *h = (uint16_t *)data + start;
    ptrdiff_t i = 0;
    (void)more, (void)random;
#if VECTOR_BITS
    for (; i <= n - LANES_float32; i += LANES_float32)
        NARROW(h + i, OP_float32(loadu)(x + i));
#endif
    for (; i < n; i++)
        h[i] = as_float16(x[i]);
}

STORE(draw_float16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more;
    for (ptrdiff_t i = 0; i < n; i++)
        h[i] = towards_float16(x[i], random[i]);
}

/* ---- bfloat16: the upper half of a float32 ---- */

LOAD(bfloat16)
{
    const uint16_t *h = (const uint16_t *)data + start;
    (void)more;
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = float_of((uint32_t)h[i] << 16);
}

/* Such bits of a number that what carries into their upper half cannot make it another kind of number. */
RMSFAST_INLINE uint32_t bits_to_cut(float x)
{
    const uint32_t bits = bits_of(x);
    return (bits & MAGNITUDE) > INFINITE ? A_NAN : bits;
}

STORE(store_bfloat16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more, (void)random;
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t bits = bits_to_cut(x[i]);
        h[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

STORE(draw_bfloat16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more;
    for (ptrdiff_t i = 0; i < n; i++)
        h[i] = (uint16_t)((bits_to_cut(x[i]) + random[i]) >> 16);
}

/* ---- Masters: the float32 whose rounding the parameter is ---- */

/* bfloat16, and in `more` 16 bits: the master's bits less the parameter's. A zero that the user wrote has no smaller bits. */
LOAD(split)
{
    const uint16_t *h = (const uint16_t *)data + start;
    const int16_t *remainder = (const int16_t *)more + start;
    for (ptrdiff_t i = 0; i < n; i++) {
        const int32_t rest = (h[i] & 0x7fff) == 0 && remainder[i] < 0 ? 0 : remainder[i];
        x[i] = float_of(((uint32_t)h[i] << 16) + (uint32_t)rest);
    }
}

STORE(store_split)
{
    uint16_t *h = (uint16_t *)data + start;
    int16_t *remainder = (int16_t *)more + start;
    (void)random;
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t bits = bits_to_cut(x[i]), upper = (bits + 0x8000) >> 16;
        h[i] = (uint16_t)upper;
        remainder[i] = (int16_t)(bits - (upper << 16));
    }
}

/* float16, and in `more` the master itself. Where the user changed the parameter, it is the master. */
LOAD(mastered)
{
    const float *master = (const float *)more + start;
    const uint16_t *h = (const uint16_t *)data + start;
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = as_float16(master[i]) == h[i] ? master[i] : of_float16(h[i]);
}

STORE(store_mastered)
{
    memcpy((float *)more + start, x, (size_t)n * sizeof(float));
    store_float16(data, NULL, start, n, x, random);
}

/* ---- 8 bits: blocks of numbers with one scale ----

   `more` has for each block of RMSFAST_SCALED numbers the exponent of its largest one, as float32 has it. The elements have
   MANTISSA bits of mantissa and, above them, the exponent less that of the block's smallest. Infinite numbers and NaNs are
   stored as the largest. */

enum { MANTISSA = 4, CUT = 23 - MANTISSA };

/* The exponent that a block needs: one higher where its largest number may be rounded up to a power of two. */
RMSFAST_INLINE uint32_t exponent_of_largest(const float *x, ptrdiff_t n)
{
    uint32_t largest = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t size = bits_of(x[i]) & MAGNITUDE, finite = size < INFINITE ? size : 0;
        largest = finite > largest ? finite : largest;
    }
    const uint32_t exponent = (largest + (1u << CUT) - 1) >> 23;
    return exponent > 254 ? 254 : exponent;
}

/* What is added before CUT bits are cut off, and before 16 are. */
#define ROUND(random, i) (random != NULL ? (uint32_t)random[i] << (CUT - 16) | 1u << (CUT - 17) : 1u << (CUT - 1))
#define ROUND_16(random, i) (random != NULL ? (uint32_t)random[i] : 0x8000u)

#define FOR_EACH_BLOCK(start, n)                                                                                       \
    for (ptrdiff_t first = 0, size; size = n - first < RMSFAST_SCALED ? n - first : RMSFAST_SCALED, first < n;         \
         first += RMSFAST_SCALED)

/* Without a sign, for v, which is never stored as 0: the least element stands for the smallest number, and for all below. */
enum { UNSIGNED_RANGE = (256 >> MANTISSA) - 1 };

RMSFAST_INLINE uint32_t unsigned_base(uint32_t exponent)
{
    return (exponent > UNSIGNED_RANGE ? exponent - UNSIGNED_RANGE : 1) << MANTISSA;
}

LOAD(unsigned8)
{
    const uint8_t *scale = (const uint8_t *)more + start / RMSFAST_SCALED, *codes = (const uint8_t *)data + start;
    FOR_EACH_BLOCK(start, n)
    {
        const uint32_t base = unsigned_base(*scale++);
        for (ptrdiff_t i = 0; i < size; i++)
            x[first + i] = float_of((codes[first + i] + base) << CUT);
    }
}

RMSFAST_INLINE void code_unsigned8(uint8_t *RMSFAST_RESTRICT codes, uint8_t *RMSFAST_RESTRICT scale,
                                   const float *RMSFAST_RESTRICT x, const uint16_t *RMSFAST_RESTRICT random, ptrdiff_t n)
{
    const uint32_t exponent = exponent_of_largest(x, n);
    const int32_t base = (int32_t)unsigned_base(exponent);
    *scale = (uint8_t)exponent;
    for (ptrdiff_t i = 0; i < n; i++) {
        int32_t code = (int32_t)(((bits_of(x[i]) & MAGNITUDE) + ROUND(random, i)) >> CUT) - base;
        code = code < 0 ? 0 : code;
        codes[i] = (uint8_t)(code > 255 ? 255 : code);
    }
}

/* With a sign, for m and b. Below the smallest power of two the numbers are evenly spaced, down to 0. */
enum { SIGNED_RANGE = (128 >> MANTISSA) - 2, SIGNED_LEAST = 20 };

RMSFAST_INLINE uint32_t signed_base(uint32_t exponent)
{
    return exponent > SIGNED_RANGE + SIGNED_LEAST ? exponent - SIGNED_RANGE : SIGNED_LEAST;
}

LOAD(signed8)
{
    const uint8_t *scale = (const uint8_t *)more + start / RMSFAST_SCALED, *codes = (const uint8_t *)data + start;
    FOR_EACH_BLOCK(start, n)
    {
        const uint32_t base = signed_base(*scale++), above = (base - 1) << MANTISSA;
        const float unit = float_of((base - MANTISSA) << 23);
        for (ptrdiff_t i = 0; i < size; i++) {
            const uint32_t code = codes[first + i], c = code & 127;
            const uint32_t bits = c < 1 << MANTISSA ? bits_of((float)(int)c * unit) : (c + above) << CUT;
            x[first + i] = float_of(bits | (code & 128) << 24);
        }
    }
}

RMSFAST_INLINE void code_signed8(uint8_t *RMSFAST_RESTRICT codes, uint8_t *RMSFAST_RESTRICT scale,
                                 const float *RMSFAST_RESTRICT x, const uint16_t *RMSFAST_RESTRICT random, ptrdiff_t n)
{
    const uint32_t exponent = exponent_of_largest(x, n);
    const uint32_t base = signed_base(exponent), least = base << 23, above = (base - 1) << MANTISSA;
    const float units_16 = float_of((254 + 16 + MANTISSA - base) << 23); /* 2¹⁶ over the spacing of small numbers */
    *scale = (uint8_t)exponent;
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t bits = bits_of(x[i]), size = bits & MAGNITUDE;
        const float within = size < least ? float_of(size) : 0;
        const uint32_t small = ((uint32_t)(int32_t)(within * units_16) + ROUND_16(random, i)) >> 16;
        const uint32_t usual = ((size + ROUND(random, i)) >> CUT) - above;
        uint32_t code = size < least ? small : usual;
        code = code > 127 ? 127 : code;
        codes[i] = (uint8_t)(code | (size > INFINITE ? 0 : bits >> 24 & 128));
    }
}

/* Whole blocks have a length that the compiler knows. */
#define STORE_BLOCKS(format)                                                                                           \
    RMSFAST_INLINE void code_##format##_blocks(void *data, void *more, ptrdiff_t start, ptrdiff_t n, const float *x,   \
                                               const uint16_t *random)                                                 \
    {                                                                                                                  \
        uint8_t *scale = (uint8_t *)more + start / RMSFAST_SCALED, *codes = (uint8_t *)data + start;                   \
        ptrdiff_t i = 0;                                                                                               \
        for (; i <= n - RMSFAST_SCALED; i += RMSFAST_SCALED)                                                           \
            code_##format(codes + i, scale++, x + i, random == NULL ? NULL : random + i, RMSFAST_SCALED);              \
        if (i < n)                                                                                                     \
            code_##format(codes + i, scale, x + i, random == NULL ? NULL : random + i, n - i);                         \
    }                                                                                                                  \
    STORE(store_##format)                                                                                              \
    {                                                                                                                  \
        (void)random;                                                                                                  \
        code_##format##_blocks(data, more, start, n, x, NULL);                                                         \
    }                                                                                                                  \
    STORE(draw_##format) { code_##format##_blocks(data, more, start, n, x, random); }
STORE_BLOCKS(unsigned8)
STORE_BLOCKS(signed8)

/* ---- Random bits ---- */

/* 16 bits for each of n elements from `start` on, a multiple of RMSFAST_SCALED: half of a word that two elements of such a
   block share. A word is a hash of its number (Wellons's lowbias32), with a second key between the multiplications. */
static void randomize(uint16_t *RMSFAST_RESTRICT random, uint64_t key, ptrdiff_t start, ptrdiff_t n)
{
    enum { WORDS = RMSFAST_SCALED / 2 };
    for (ptrdiff_t first = 0; first < n; first += RMSFAST_SCALED) {
        const uint64_t number = (uint64_t)(start + first) / 2, keys = rmsfast_mix(key + (number >> 32));
        const uint32_t before = (uint32_t)keys, between = (uint32_t)(keys >> 32);
        for (int i = 0; i < WORDS; i++) {
            uint32_t x = ((uint32_t)number + (uint32_t)i) ^ before;
            x = (x ^ x >> 16) * 0x7feb352d;
            x = (x ^ x >> 15 ^ between) * 0x846ca68b;
            x ^= x >> 16;
            random[first + i] = (uint16_t)x;
            random[first + i + WORDS] = (uint16_t)(x >> 16);
        }
    }
}

#undef LOAD
#undef STORE
#undef STORE_BLOCKS
#undef FOR_EACH_BLOCK
#undef ROUND
#undef ROUND_16

static const rmsfast_storage storage_ = {
    {NULL, load_float16, load_bfloat16, load_split, load_mastered, load_unsigned8, load_signed8},
    {
        {NULL, store_float16, store_bfloat16, store_split, store_mastered, store_unsigned8, store_signed8},
        {NULL, draw_float16, draw_bfloat16, NULL, NULL, draw_unsigned8, draw_signed8},
    },
    randomize,
};
