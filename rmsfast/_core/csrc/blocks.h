/* Whole blocks of RMSFAST_SCALED stored numbers, in packs: the same bits as with the loops of formats.h, in less time. A block is
   worked on two packs at a time. Where it is `paired`, the first of them has the numbers with an even index and the second
   those with an odd one, so that 16 bits go into a register of 32 and back without a permutation. That is possible where
   all arrays of a parameter have elements of 16 or 8 bits. */
#if VECTOR_BITS

typedef uint32_t words __attribute__((vector_size(VECTOR_BITS / 8)));
typedef int32_t integers __attribute__((vector_size(VECTOR_BITS / 8)));
enum { PACK = VECTOR_BITS / 32 };

#if VECTOR_BITS == 512
#define WORD(name) _mm512_##name
typedef __m512i word_pack;
typedef __m256i half_pack;
#define GET_WORDS(p) ((words)_mm512_loadu_si512(p))
#define PUT_WORDS(p, w) _mm512_storeu_si512(p, (__m512i)(w))
#define GET_HALF(p) _mm256_loadu_si256((const __m256i *)(p))
#define PUT_HALF(p, half) _mm256_storeu_si256((__m256i *)(p), half)
#define GET_QUARTER(p) _mm_loadu_si128((const __m128i *)(p))
#define NARROW_16(p, w) PUT_HALF(p, _mm512_cvtepi32_epi16((__m512i)(w)))
#define NARROW_8(p, w) _mm_storeu_si128((__m128i *)(p), _mm512_cvtepi32_epi8((__m512i)(w)))
#define SWAP_1(x) _mm512_shuffle_epi32((__m512i)(x), _MM_PERM_CDAB)
#define SWAP_2(x) _mm512_shuffle_epi32((__m512i)(x), _MM_PERM_BADC)
#define SWAP_4(x) _mm512_shuffle_i32x4((__m512i)(x), (__m512i)(x), _MM_SHUFFLE(2, 3, 0, 1))
#define SWAP_8(x) _mm512_shuffle_i32x4((__m512i)(x), (__m512i)(x), _MM_SHUFFLE(1, 0, 3, 2))
#define MASK __mmask16
#define LESS(x, y) _mm512_cmplt_epi32_mask((__m512i)(x), (__m512i)(y))
#define SAME(x, y) _mm512_cmpeq_epi32_mask((__m512i)(x), (__m512i)(y))
#define IS_NAN(x) _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q)
#define SOME_NAN(x, y) (_mm512_cmp_ps_mask(x, y, _CMP_UNORD_Q) != 0)
#define EITHER(mask, x, y) ((words)_mm512_mask_blend_epi32(mask, (__m512i)(y), (__m512i)(x)))

#else
#define WORD(name) _mm256_##name
typedef __m256i word_pack;
typedef __m128i half_pack;
#define GET_WORDS(p) ((words)_mm256_loadu_si256((const __m256i *)(p)))
#define PUT_WORDS(p, w) _mm256_storeu_si256((__m256i *)(p), (__m256i)(w))
#define GET_HALF(p) _mm_loadu_si128((const __m128i *)(p))
#define PUT_HALF(p, half) _mm_storeu_si128((__m128i *)(p), half)
#define GET_QUARTER(p) _mm_loadl_epi64((const __m128i *)(p))
#define NARROW_16(p, w) PUT_HALF(p, narrow_16((__m256i)(w)))
#define NARROW_8(p, w) _mm_storel_epi64((__m128i *)(p), _mm_packus_epi16(narrow_16((__m256i)(w)), _mm_setzero_si128()))
#define SWAP_1(x) _mm256_shuffle_epi32((__m256i)(x), _MM_SHUFFLE(2, 3, 0, 1))
#define SWAP_2(x) _mm256_shuffle_epi32((__m256i)(x), _MM_SHUFFLE(1, 0, 3, 2))
#define SWAP_4(x) _mm256_permute2x128_si256((__m256i)(x), (__m256i)(x), 1)
#define SWAP_8(x) (x)
#define MASK __m256i
#define LESS(x, y) _mm256_cmpgt_epi32((__m256i)(y), (__m256i)(x))
#define SAME(x, y) _mm256_cmpeq_epi32((__m256i)(x), (__m256i)(y))
#define IS_NAN(x) _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q))
#define SOME_NAN(x, y) (_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_UNORD_Q)) != 0)
#define EITHER(mask, x, y) ((words)_mm256_blendv_epi8((__m256i)(y), (__m256i)(x), mask))

/* Of words below 2¹⁶. */
RMSFAST_INLINE __m128i narrow_16(__m256i words)
{
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
#endif

#define NAME(what) what##_pack
#define FLOATS pack_float32
#define WORDS words
#define BITS(x) ((words)(x))
#define NUMBERS(words) ((pack_float32)(words))
#define ALL(word) ((words){0} + (uint32_t)(word))
#define LOWER(x, y) ((words)WORD(min_epu32)((word_pack)(x), (word_pack)(y)))
#define HIGHER(x, y) ((words)WORD(max_epu32)((word_pack)(x), (word_pack)(y)))
#define AS_FLOATS(words) WORD(cvtepi32_ps)((word_pack)(words))
#define AS_WORDS(floats) ((words)WORD(cvttps_epi32)(floats))
#include "coding.h"

#define GET(x) OP_float32(loadu)(x)
#define PUT(x, pack) OP_float32(storeu)(x, (pack_float32)(pack))

/* The largest word, in all. */
RMSFAST_INLINE words largest_of(words most)
{
    most = HIGHER(most, SWAP_1(most));
    most = HIGHER(most, SWAP_2(most));
    most = HIGHER(most, SWAP_4(most));
    return HIGHER(most, SWAP_8(most));
}

/* ---- Elements to two packs of words, and back ---- */

typedef struct {
    words first, second;
} two;

RMSFAST_INLINE two take_16(const uint16_t *p, const int paired)
{
    if (!paired)
        return (two){(words)WORD(cvtepu16_epi32)(GET_HALF(p)), (words)WORD(cvtepu16_epi32)(GET_HALF(p + PACK))};
    const words both = GET_WORDS(p);
    return (two){both & 0xffff, both >> 16};
}

/* Each is moved to the upper half of its word. */
RMSFAST_INLINE two take_upper_16(const uint16_t *p, const int paired)
{
    if (!paired) {
        const two t = take_16(p, 0);
        return (two){t.first << 16, t.second << 16};
    }
    const words both = GET_WORDS(p);
    return (two){both << 16, both & 0xffff0000};
}

RMSFAST_INLINE two take_signed_16(const uint16_t *p, const int paired)
{
    if (!paired)
        return (two){(words)WORD(cvtepi16_epi32)(GET_HALF(p)), (words)WORD(cvtepi16_epi32)(GET_HALF(p + PACK))};
    const integers both = (integers)GET_WORDS(p);
    return (two){(words)((integers)((words)both << 16) >> 16), (words)(both >> 16)};
}

RMSFAST_INLINE void put_16(uint16_t *p, two t, const int paired)
{
    if (paired) {
        PUT_WORDS(p, t.first | t.second << 16);
    } else {
        NARROW_16(p, t.first);
        NARROW_16(p + PACK, t.second);
    }
}

RMSFAST_INLINE two take_8(const uint8_t *p, const int paired)
{
    if (!paired)
        return (two){(words)WORD(cvtepu8_epi32)(GET_QUARTER(p)), (words)WORD(cvtepu8_epi32)(GET_QUARTER(p + PACK))};
    const words both = (words)WORD(cvtepu16_epi32)(GET_HALF(p));
    return (two){both & 0xff, both >> 8};
}

RMSFAST_INLINE void put_8(uint8_t *p, two t, const int paired)
{
    if (paired) {
        NARROW_16(p, t.first | t.second << 8);
    } else {
        NARROW_8(p, t.first);
        NARROW_8(p + PACK, t.second);
    }
}

/* ---- A block of numbers ---- */

#define FOR_TWO for (int i = 0; i < RMSFAST_SCALED; i += 2 * PACK)
#define PUT_TWO(x, one, other) (PUT(x, one), PUT(x + PACK, other))

RMSFAST_INLINE void load_block(float *x, const int format, const rmsfast_stored *s, ptrdiff_t start, const int paired)
{
    const uint16_t *h = (const uint16_t *)s->data + start;
    const uint8_t *codes = (const uint8_t *)s->data + start;
    const uint32_t exponent = format >= RMSFAST_UNSIGNED8 ? ((const uint8_t *)s->more)[start / RMSFAST_SCALED] : 0;
    switch (format) {
    case RMSFAST_BFLOAT16:
        FOR_TWO {
            const two t = take_upper_16(h + i, paired);
            PUT_TWO(x + i, t.first, t.second);
        }
        break;
    case RMSFAST_SPLIT:
        FOR_TWO {
            const two t = take_upper_16(h + i, paired);
            const two rest = take_signed_16((const uint16_t *)s->more + start + i, paired);
            PUT_TWO(x + i, joined_pack(t.first, rest.first), joined_pack(t.second, rest.second));
        }
        break;
    case RMSFAST_UNSIGNED8:
        FOR_TWO {
            const two t = take_8(codes + i, paired);
            const words base = ALL(base_unsigned8(exponent));
            PUT_TWO(x + i, of_unsigned8_pack(t.first, base), of_unsigned8_pack(t.second, base));
        }
        break;
    case RMSFAST_SIGNED8:
        FOR_TWO {
            const two t = take_8(codes + i, paired);
            const uint32_t base = base_signed8(exponent);
            PUT_TWO(x + i, of_signed8_pack(t.first, base), of_signed8_pack(t.second, base));
        }
        break;
    default: /* by the CPU's own conversion */
        for (int i = 0; i < RMSFAST_SCALED; i += PACK) {
            const half_pack half = GET_HALF(h + i);
            pack_float32 pack = WORD(cvtph_ps)(half);
            if (format == RMSFAST_MASTERED) { /* where the user changed the parameter, it is the master */
                const words master = GET_WORDS((const float *)s->more + start + i);
                const half_pack of_master = WORD(cvtps_ph)((pack_float32)master, _MM_FROUND_TO_NEAREST_INT);
                const MASK same = SAME(WORD(cvtepu16_epi32)(half), WORD(cvtepu16_epi32)(of_master));
                pack = NUMBERS(EITHER(same, master, BITS(pack)));
            }
            PUT(x + i, pack);
        }
    }
}

/* Replace NaNs by one of which the upper half is a NaN, too. They are rare: so a block is searched for them first. */
RMSFAST_INLINE void make_cuttable(float *x)
{
    int some = 0;
    FOR_TWO some |= SOME_NAN(GET(x + i), GET(x + i + PACK));
    if (__builtin_expect(some, 0))
        for (int i = 0; i < RMSFAST_SCALED; i += PACK)
            PUT(x + i, to_cut_pack(GET(x + i)));
}

/* The exponent that a block needs, in all words. Its numbers lose their sign and what has no room. */
RMSFAST_INLINE words exponent_of_block(float *x)
{
    words most = GET_WORDS(x);
    for (int i = PACK; i < RMSFAST_SCALED; i += PACK)
        most = HIGHER(most, GET_WORDS(x + i));
    most = largest_of(most);
    if (__builtin_expect(most[0] > INFINITE - (1u << CUT), 0)) { /* or some are negative */
        const uint32_t exponent = exponent_of_largest(x, RMSFAST_SCALED);
        for (int i = 0; i < RMSFAST_SCALED; i += PACK)
            PUT(x + i, LOWER(GET_WORDS(x + i) & MAGNITUDE, ALL(most_unsigned8(base_unsigned8(exponent)))));
        return ALL(exponent);
    }
    return (most + (1u << CUT) - 1) >> 23;
}

RMSFAST_INLINE uint32_t exponent_of_signed_block(const float *x)
{
    words most = ALL(0);
    for (int i = 0; i < RMSFAST_SCALED; i += PACK)
        most = HIGHER(most, finite_pack(GET(x + i)));
    return exponent_of(largest_of(most)[0]);
}

/* What `code` makes of two packs, and of the random words r that belong to them. */
#define WORDS_AT(i) GET_WORDS(x + i)
#define CODED(code) ((two){code(WORDS_AT(i)), code(WORDS_AT(i + PACK))})
#define DRAWN(code) ((two){code(WORDS_AT(i), r.first), code(WORDS_AT(i + PACK), r.second)})

RMSFAST_INLINE void store_block(float *x, const int format, const int draws, const rmsfast_stored *s, ptrdiff_t start,
                                const int paired)
{
    _Alignas(64) uint16_t random[RMSFAST_SCALED];
    uint16_t *h = (uint16_t *)s->data + start;
    uint8_t *codes = (uint8_t *)s->data + start;
    const ptrdiff_t block = start / RMSFAST_SCALED;
    if (draws)
        randomize(random, s->key, s->element + start);
    switch (format) {
    case RMSFAST_BFLOAT16:
        make_cuttable(x);
        FOR_TWO {
            const two r = draws ? take_16(random + i, paired) : (two){ALL(0), ALL(0)};
            put_16(h + i, draws ? DRAWN(towards_upper_pack) : CODED(as_upper_pack), paired);
        }
        break;
    case RMSFAST_SPLIT:
        make_cuttable(x);
        FOR_TWO {
            put_16(h + i, CODED(away_from_zero_pack), paired);
            put_16((uint16_t *)s->more + start + i, CODED(0xffff &), paired);
        }
        break;
    case RMSFAST_UNSIGNED8: {
        const words exponent = exponent_of_block(x), least = HIGHER(exponent, ALL(16)) - 15;
        ((uint8_t *)s->more)[block] = (uint8_t)exponent[0];
        FOR_TWO {
            const two r = take_16(random + i, paired);
#define UNSIGNED(size, random) as_unsigned8_pack(size, least, 1, random)
            put_8(codes + i, DRAWN(UNSIGNED), paired);
        }
        break;
    }
    case RMSFAST_SIGNED8: {
        const uint32_t exponent = exponent_of_signed_block(x), base = base_signed8(exponent);
        ((uint8_t *)s->more)[block] = (uint8_t)exponent;
        FOR_TWO {
            const two r = take_16(random + i, paired);
#define SIGNED(bits, random) as_signed8_pack(bits, base, 1, random)
            put_8(codes + i, DRAWN(SIGNED), paired);
        }
        break;
    }
    case RMSFAST_MASTERED:
        memcpy((float *)s->more + start, x, RMSFAST_SCALED * sizeof(float));
        /* fall through */
    default:
        if (draws)
            FOR_TWO {
                const two r = take_16(random + i, 0);
#define HALF(bits, random) towards_half_pack(NUMBERS(bits), random)
                put_16(h + i, DRAWN(HALF), 0);
            }
        else /* by the CPU's own conversion */
            for (int i = 0; i < RMSFAST_SCALED; i += PACK)
                PUT_HALF(h + i, WORD(cvtps_ph)(GET(x + i), _MM_FROUND_TO_NEAREST_INT));
    }
}

/* With any format. These are called, so that they are compiled once. */
static __attribute__((noinline)) void load_any(float *x, const rmsfast_stored *s, ptrdiff_t start, int paired)
{
    if (paired)
        load_block(x, s->format, s, start, 1);
    else
        load_block(x, s->format, s, start, 0);
}

static __attribute__((noinline)) void store_any(float *x, const rmsfast_stored *s, ptrdiff_t start, int paired)
{
    if (paired)
        store_block(x, s->format, s->draws, s, start, 1);
    else
        store_block(x, s->format, s->draws, s, start, 0);
}

#define LOAD_BLOCK(x, format, s, start)                                                                                \
    (common ? load_block(x, format, s, start, paired) : load_any(x, s, start, paired))
#define STORE_BLOCK(x, format, draws, s, start)                                                                        \
    (common ? store_block(x, format, draws, s, start, paired) : store_any(x, s, start, paired))

/* Begin to read a block that is needed later. */
enum { BLOCKS_AHEAD = 8 * RMSFAST_SCALED };
RMSFAST_INLINE void fetch_block(const rmsfast_stored *s, const int format, ptrdiff_t start)
{
    const ptrdiff_t size = format == RMSFAST_AS_THEY_ARE ? 4 : format >= RMSFAST_UNSIGNED8 ? 1 : 2;
    const ptrdiff_t size_of_more = format == RMSFAST_SPLIT ? 2 : format == RMSFAST_MASTERED ? 4 : 0;
    for (ptrdiff_t byte = 0; byte < RMSFAST_SCALED * size; byte += 64)
        RMSFAST_PREFETCH((const char *)s->data + start * size + byte, 0);
    for (ptrdiff_t byte = 0; byte < RMSFAST_SCALED * size_of_more; byte += 64)
        RMSFAST_PREFETCH((const char *)s->more + start * size_of_more + byte, 0);
}

/* Update n elements from `place` on, which are whole blocks. The CPU rounds a block's numbers while the divider works on those
   of the next: more at a time would be slower. Where it is `common`, the formats are constants, and there is no state but v. */
RMSFAST_INLINE void update_whole(const rmsfast_stored numbers[RMSFAST_KINDS], const rmsfast_stored *grad, ptrdiff_t done,
                                 ptrdiff_t place, ptrdiff_t n, rmsfast_update update, rmsfast_settle settle,
                                 const rmsfast_scalars *scalars, const int common, const int paired, const int of_grad, const int of_w,
                                 const int draws_w, const int of_v)
{
    const rmsfast_stored *copy = &numbers[RMSFAST_COPY];
    _Alignas(64) float at_hand[RMSFAST_COPY + 1][RMSFAST_SCALED];
    for (const ptrdiff_t stop = place + n; place < stop; place += RMSFAST_SCALED, done += RMSFAST_SCALED) {
        float *x[RMSFAST_COPY] = {(float *)numbers[0].data + place, (float *)numbers[1].data + place};
        const float *g = (const float *)grad->data + done;
        if (stop - place > BLOCKS_AHEAD) {
            fetch_block(grad, of_grad, done + BLOCKS_AHEAD);
            fetch_block(&numbers[0], of_w, place + BLOCKS_AHEAD);
            fetch_block(&numbers[1], of_v, place + BLOCKS_AHEAD);
            for (int k = 2; k < RMSFAST_COPY && !common; k++)
                if (numbers[k].data != NULL)
                    fetch_block(&numbers[k], numbers[k].format, place + BLOCKS_AHEAD);
        }
        if (of_grad != RMSFAST_AS_THEY_ARE) {
            g = at_hand[RMSFAST_COPY];
            LOAD_BLOCK(at_hand[RMSFAST_COPY], of_grad, grad, done);
        }
        if (of_w != RMSFAST_AS_THEY_ARE) {
            x[0] = at_hand[0];
            LOAD_BLOCK(at_hand[0], of_w, &numbers[0], place);
        }
        if (of_v != RMSFAST_AS_THEY_ARE) {
            x[1] = at_hand[1];
            LOAD_BLOCK(at_hand[1], of_v, &numbers[1], place);
        }
        for (int k = 2; k < RMSFAST_COPY && !common; k++) {
            const rmsfast_stored *s = &numbers[k];
            x[k] = s->format != RMSFAST_AS_THEY_ARE ? at_hand[k] : s->data == NULL ? NULL : (float *)s->data + place;
            if (s->format != RMSFAST_AS_THEY_ARE)
                load_any(at_hand[k], s, place, paired);
        }
        update(x[0], x[1], x[2], x[3], g, RMSFAST_SCALED, scalars);
        if (!common && settle != NULL)
            settle(x[0], average_at(numbers, place), RMSFAST_SCALED, scalars);
        if (!common && copy->data != NULL) {
            memcpy(at_hand[RMSFAST_COPY], x[0], sizeof at_hand[RMSFAST_COPY]); /* over the gradient: NaNs are replaced */
            store_any(at_hand[RMSFAST_COPY], copy, place, 0);
        }
        if (of_v != RMSFAST_AS_THEY_ARE)
            STORE_BLOCK(at_hand[1], of_v, 1, &numbers[1], place);
        if (of_w != RMSFAST_AS_THEY_ARE)
            STORE_BLOCK(at_hand[0], of_w, draws_w, &numbers[0], place);
        for (int k = 2; k < RMSFAST_COPY && !common; k++)
            if (numbers[k].format != RMSFAST_AS_THEY_ARE)
                store_any(at_hand[k], &numbers[k], place, paired);
    }
}

/* Loops without conditions for what is used most, and one for all else. */
static void update_blocks(const rmsfast_stored numbers[RMSFAST_KINDS], const rmsfast_stored *grad, ptrdiff_t done,
                          ptrdiff_t place, ptrdiff_t n, rmsfast_update update, rmsfast_settle settle,
                          const rmsfast_scalars *scalars)
{
    const int of_grad = grad->format, of_w = numbers[0].format, draws_w = numbers[0].draws, of_v = numbers[1].format;
    const int others = numbers[2].data || numbers[3].data || numbers[RMSFAST_COPY].data || settle;
    int paired = !numbers[RMSFAST_COPY].data && !numbers[RMSFAST_EMA].data && of_grad == RMSFAST_BFLOAT16;
    for (int k = 0; k < RMSFAST_COPY; k++) {
        const int format = numbers[k].format;
        paired &= numbers[k].data == NULL || format == RMSFAST_BFLOAT16 || format == RMSFAST_SPLIT ||
                  format >= RMSFAST_UNSIGNED8;
    }
#define UPDATE(common, paired, of_grad, of_w, draws_w, of_v)                                                           \
    update_whole(numbers, grad, done, place, n, update, settle, scalars, common, paired, of_grad, of_w, draws_w, of_v)
#define COMMON(is_paired, grads, parameters, draws, square_avgs)                                                       \
    if (!others && of_grad == RMSFAST_##grads && of_w == RMSFAST_##parameters && draws_w == (draws) &&                 \
        of_v == RMSFAST_##square_avgs)                                                                                 \
        UPDATE(1, is_paired, RMSFAST_##grads, RMSFAST_##parameters, draws, RMSFAST_##square_avgs);                     \
    else
    COMMON(0, AS_THEY_ARE, AS_THEY_ARE, 0, BFLOAT16)
    COMMON(0, AS_THEY_ARE, AS_THEY_ARE, 0, UNSIGNED8)
    COMMON(0, BFLOAT16, BFLOAT16, 0, AS_THEY_ARE)
    COMMON(1, BFLOAT16, BFLOAT16, 0, BFLOAT16)
    COMMON(1, BFLOAT16, BFLOAT16, 1, BFLOAT16)
    COMMON(1, BFLOAT16, BFLOAT16, 1, UNSIGNED8)
    COMMON(1, BFLOAT16, SPLIT, 0, BFLOAT16)
    COMMON(1, BFLOAT16, SPLIT, 0, UNSIGNED8)
    UPDATE(0, paired, of_grad, of_w, draws_w, of_v);
#undef COMMON
#undef UPDATE
}
#endif
