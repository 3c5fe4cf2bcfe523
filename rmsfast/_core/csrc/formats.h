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
#define MASK int
#define LESS(x, y) ((x) < (y))
#define IS_NAN(x) ((x) != (x))
#define EITHER(mask, x, y) ((mask) ? (x) : (y))
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
#undef MASK
#undef LESS
#undef IS_NAN
#undef EITHER
#undef LOWER
#undef HIGHER
#undef AS_FLOATS
#undef AS_WORDS

#define LOAD(format)                                                                                                   \
    static void load_##format(float *RMSFAST_RESTRICT x, const void *RMSFAST_RESTRICT data,                            \
                              const void *RMSFAST_RESTRICT more, ptrdiff_t start, ptrdiff_t n)
#define STORE(name)                                                                                                    \
    static void name(void *RMSFAST_RESTRICT data, void *RMSFAST_RESTRICT more, ptrdiff_t start, ptrdiff_t n,           \
                     const float *RMSFAST_RESTRICT x, const uint16_t *RMSFAST_RESTRICT random)

/* ---- float16 ---- */

LOAD(float16)
{
    const uint16_t *h = (const uint16_t *)data + start;
    (void)more;
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = of_half_one(h[i]);
}

STORE(store_float16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more, (void)random;
    for (ptrdiff_t i = 0; i < n; i++)
        h[i] = (uint16_t)as_half_one(x[i]);
}

STORE(draw_float16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more;
    for (ptrdiff_t i = 0; i < n; i++)
        h[i] = (uint16_t)towards_half_one(x[i], random[i]);
}

/* ---- bfloat16 ---- */

LOAD(bfloat16)
{
    const uint16_t *h = (const uint16_t *)data + start;
    (void)more;
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = float_of((uint32_t)h[i] << 16);
}

STORE(store_bfloat16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more, (void)random;
    for (ptrdiff_t i = 0; i < n; i++)
        h[i] = (uint16_t)as_upper_one(to_cut_one(x[i]));
}

STORE(draw_bfloat16)
{
    uint16_t *h = (uint16_t *)data + start;
    (void)more;
    for (ptrdiff_t i = 0; i < n; i++)
        h[i] = (uint16_t)towards_upper_one(to_cut_one(x[i]), random[i]);
}

/* ---- Masters: the float32 whose rounding the parameter is ---- */

/* bfloat16, and in `more` 16 bits: the master's bits less the parameter's. */
LOAD(split)
{
    const uint16_t *h = (const uint16_t *)data + start;
    const int16_t *rest = (const int16_t *)more + start;
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = joined_one((uint32_t)h[i] << 16, (uint32_t)rest[i]);
}

STORE(store_split)
{
    uint16_t *h = (uint16_t *)data + start, *rest = (uint16_t *)more + start;
    (void)random;
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t bits = to_cut_one(x[i]);
        h[i] = (uint16_t)away_from_zero_one(bits);
        rest[i] = (uint16_t)bits;
    }
}

/* float16, and in `more` the master itself. Where the user changed the parameter, it is the master. */
LOAD(mastered)
{
    const float *master = (const float *)more + start;
    const uint16_t *h = (const uint16_t *)data + start;
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = as_half_one(master[i]) == h[i] ? master[i] : of_half_one(h[i]);
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
RMSFAST_INLINE uint32_t exponent_of(uint32_t largest)
{
    const uint32_t exponent = (largest + (1u << CUT) - 1) >> 23;
    return exponent > 254 ? 254 : exponent;
}

RMSFAST_INLINE uint32_t exponent_of_largest(const float *x, ptrdiff_t n)
{
    uint32_t largest = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t size = finite_one(x[i]);
        largest = size > largest ? size : largest;
    }
    return exponent_of(largest);
}

RMSFAST_INLINE uint32_t base_unsigned8(uint32_t exponent) { return exponent > 16 ? exponent - 15 : 1; }
RMSFAST_INLINE uint32_t base_signed8(uint32_t exponent) { return exponent > 26 ? exponent - 6 : 20; }

/* The largest bits without a sign that have room. */
RMSFAST_INLINE uint32_t most_unsigned8(uint32_t base) { return (base << 23) + (255u << CUT); }

#define EIGHT_BITS(format, coded)                                                                                      \
    LOAD(format)                                                                                                       \
    {                                                                                                                  \
        const uint8_t *scale = (const uint8_t *)more + start / RMSFAST_SCALED, *codes = (const uint8_t *)data + start; \
        for (ptrdiff_t size; n > 0; n -= size, x += size, codes += size) {                                             \
            const uint32_t base = base_##format(*scale++);                                                             \
            size = n < RMSFAST_SCALED ? n : RMSFAST_SCALED;                                                            \
            for (ptrdiff_t i = 0; i < size; i++)                                                                       \
                x[i] = of_##format##_one(codes[i], base);                                                              \
        }                                                                                                              \
    }                                                                                                                  \
    RMSFAST_INLINE void round_##format(void *data, void *more, ptrdiff_t start, ptrdiff_t n,                           \
                                       const float *RMSFAST_RESTRICT x, const int draws,                               \
                                       const uint16_t *RMSFAST_RESTRICT random)                                        \
    {                                                                                                                  \
        uint8_t *scale = (uint8_t *)more + start / RMSFAST_SCALED, *RMSFAST_RESTRICT codes = (uint8_t *)data + start;  \
        for (ptrdiff_t size; n > 0; n -= size, x += size, codes += size) {                                             \
            size = n < RMSFAST_SCALED ? n : RMSFAST_SCALED;                                                            \
            const uint32_t exponent = exponent_of_largest(x, size), base = base_##format(exponent);                    \
            *scale++ = (uint8_t)exponent;                                                                              \
            for (ptrdiff_t i = 0; i < size; i++)                                                                       \
                codes[i] = (uint8_t)as_##format##_one(coded, base, draws, draws ? random[i] : 0);                      \
            random += draws ? size : 0;                                                                                \
        }                                                                                                              \
    }                                                                                                                  \
    STORE(store_##format) { round_##format(data, more, start, n, x, 0, random); }                                      \
    STORE(draw_##format) { round_##format(data, more, start, n, x, 1, random); }
#define ROOM(size, base) ((size) < most_unsigned8(base) ? (size) : most_unsigned8(base))
EIGHT_BITS(unsigned8, ROOM(bits_of(x[i]) & MAGNITUDE, base))
EIGHT_BITS(signed8, bits_of(x[i]))

/* ---- Random bits ---- */

/* 16 bits for each element of the block that begins at `start`: the lower half of a word for an element with an even index,
   the upper half for the next. A word is a hash of its number (Wellons's lowbias32), with a second key between the
   multiplications. */
RMSFAST_INLINE void randomize(uint16_t random[RMSFAST_SCALED], uint64_t key, ptrdiff_t start)
{
    const uint64_t number = (uint64_t)start / 2, keys = rmsfast_mix(key + (number >> 32));
    const uint32_t between = (uint32_t)(keys >> 32);
    uint32_t before = (uint32_t)number ^ (uint32_t)keys;
    before ^= before >> 16; /* the number of a word differs from the block's in the lowest bits only */
    for (uint32_t i = 0; i < RMSFAST_SCALED / 2; i++) {
        uint32_t x = (i ^ before) * 0x7feb352d;
        x = (x ^ x >> 15 ^ between) * 0x846ca68b;
        x ^= x >> 16;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        x = x << 16 | x >> 16;
#endif
        memcpy(random + 2 * i, &x, sizeof x);
    }
}

static const rmsfast_load load_[RMSFAST_FORMATS] = {
    NULL, load_float16, load_bfloat16, load_split, load_mastered, load_unsigned8, load_signed8,
};
static const rmsfast_store store_[RMSFAST_ROUNDINGS][RMSFAST_FORMATS] = {
    {NULL, store_float16, store_bfloat16, store_split, store_mastered, store_unsigned8, store_signed8},
    {NULL, draw_float16, draw_bfloat16, store_split, store_mastered, draw_unsigned8, draw_signed8},
};

/* The average of the parameter from an element on, or NULL. */
RMSFAST_INLINE float *average_at(const rmsfast_stored numbers[RMSFAST_KINDS], ptrdiff_t place)
{
    float *average = numbers[RMSFAST_EMA].data;
    return average == NULL ? NULL : average + place;
}

#include "blocks.h"

/* ---- The update ---- */

/* Update n elements of a block from `place` on. It has `size` elements, `around` of which are before `place`. Numbers of 8 bits
   are stored for the whole block, because its scale may change: those of elements that this step does not update keep their
   values, except those that fall below the block's range. */
static void update_part(const rmsfast_stored numbers[RMSFAST_KINDS], const rmsfast_stored *grad, ptrdiff_t done,
                        ptrdiff_t place, ptrdiff_t n, ptrdiff_t around, ptrdiff_t size, rmsfast_update update,
                        rmsfast_settle settle, const rmsfast_scalars *scalars)
{
    float at_hand[RMSFAST_COPY + 1][RMSFAST_SCALED], *x[RMSFAST_COPY];
    uint16_t random[RMSFAST_SCALED];
    const float *g = (const float *)grad->data + done;
    if (grad->format != RMSFAST_AS_THEY_ARE) {
        load_[grad->format](at_hand[RMSFAST_COPY], grad->data, NULL, done, n);
        g = at_hand[RMSFAST_COPY];
    }
    for (int k = 0; k < RMSFAST_COPY; k++) {
        const rmsfast_stored *s = &numbers[k];
        const int scaled = s->format >= RMSFAST_UNSIGNED8;
        x[k] = s->format != RMSFAST_AS_THEY_ARE ? at_hand[k] + around : s->data == NULL ? NULL : (float *)s->data + place;
        if (s->format != RMSFAST_AS_THEY_ARE)
            load_[s->format](scaled ? at_hand[k] : x[k], s->data, s->more, scaled ? place - around : place,
                             scaled ? size : n);
    }
    update(x[0], x[1], x[2], x[3], g, n, scalars);
    if (settle != NULL)
        settle(x[0], average_at(numbers, place), n, scalars);
    for (int k = 0; k < RMSFAST_COPY; k++) {
        const rmsfast_stored *s = &numbers[k];
        const int scaled = s->format >= RMSFAST_UNSIGNED8;
        if (s->format == RMSFAST_AS_THEY_ARE)
            continue;
        if (s->draws)
            randomize(random, s->key, s->element + place - around);
        store_[s->draws][s->format](s->data, s->more, scaled ? place - around : place, scaled ? size : n,
                                    scaled ? at_hand[k] : x[k], scaled ? random : random + around);
    }
    if (numbers[RMSFAST_COPY].data != NULL)
        store_[RMSFAST_NEAREST][numbers[RMSFAST_COPY].format](numbers[RMSFAST_COPY].data, NULL, place, n, x[0], NULL);
}

static void update_stored(const rmsfast_stored numbers[RMSFAST_KINDS], ptrdiff_t length, const rmsfast_stored *grad,
                          ptrdiff_t place, ptrdiff_t n, rmsfast_update update, rmsfast_settle settle,
                          const rmsfast_scalars *scalars)
{
    for (ptrdiff_t done = 0, some; done < n; done += some, place += some) {
        const ptrdiff_t around = place % RMSFAST_SCALED, left = length - (place - around);
        const ptrdiff_t size = left < RMSFAST_SCALED ? left : RMSFAST_SCALED;
        some = n - done < size - around ? n - done : size - around;
#if VECTOR_BITS
        if (around == 0 && n - done >= RMSFAST_SCALED) {
            some = (n - done) / RMSFAST_SCALED * RMSFAST_SCALED;
            update_blocks(numbers, grad, done, place, some, update, settle, scalars);
            continue;
        }
#endif
        update_part(numbers, grad, done, place, some, around, size, update, settle, scalars);
    }
}

static const rmsfast_storage storage_ = {load_, store_, update_stored};
