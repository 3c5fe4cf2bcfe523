/* What the numbers of a pack are as elements of each format. formats.h includes this file twice: for the packs of pack.h, and
   for one number, to finish with. WORDS are as many unsigned integers of 32 bits as FLOATS has numbers. LESS takes those
   below 2³¹; EITHER(mask, x, y) has x where the comparison holds, and y elsewhere. */

/* ---- float16 ---- */

/* A subnormal one is a multiple of 2⁻²⁴. */
RMSFAST_INLINE FLOATS NAME(of_half)(WORDS h)
{
    const WORDS size = h & 0x7fff, scale = EITHER(LESS(ALL(0x7bff), size), ALL(224u << 23), ALL(112u << 23));
    const WORDS small = BITS(AS_FLOATS(size) * 0x1p-24f), usual = (size << 13) + scale;
    return NUMBERS(EITHER(LESS(size, ALL(0x400)), small, usual) | (h & 0x8000) << 16);
}

/* With the sign and with what is infinite or a NaN. */
RMSFAST_INLINE WORDS NAME(finish_half)(WORDS half, WORDS bits, WORDS size)
{
    const WORDS special = EITHER(LESS(ALL(INFINITE), size), ALL(0x7e00), ALL(0x7c00));
    return EITHER(LESS(ALL((143u << 23) - 1), size), special, half) | (bits >> 16 & 0x8000);
}

RMSFAST_INLINE WORDS NAME(as_half)(FLOATS x)
{
    const WORDS bits = BITS(x), size = bits & MAGNITUDE;
    const WORDS small = BITS(NUMBERS(size) + 0.5f) - (126u << 23); /* the sum rounds to multiples of 2⁻²⁴ */
    const WORDS usual = (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13;
    return NAME(finish_half)(EITHER(LESS(size, ALL(113u << 23)), small, usual), bits, size);
}

RMSFAST_INLINE WORDS NAME(towards_half)(FLOATS x, WORDS random)
{
    const WORDS bits = BITS(x), size = bits & MAGNITUDE;
    const MASK is_small = LESS(size, ALL(113u << 23));
    const WORDS small = (AS_WORDS(NUMBERS(EITHER(is_small, size, ALL(0))) * 0x1p40f) + random) >> 16;
    const WORDS usual = (size + (random >> 3) - (112u << 23)) >> 13;
    return NAME(finish_half)(EITHER(is_small, small, usual), bits, size);
}

/* ---- bfloat16, the upper half of a float32, and with it the rest of a master's bits ---- */

/* Bits of which the upper half is a NaN as they are. */
RMSFAST_INLINE WORDS NAME(to_cut)(FLOATS x)
{
    return EITHER(IS_NAN(x), ALL(A_NAN), BITS(x));
}

/* The upper half of bits that can be cut. */
RMSFAST_INLINE WORDS NAME(as_upper)(WORDS bits) { return (bits + 0x7fff + (bits >> 16 & 1)) >> 16; }
RMSFAST_INLINE WORDS NAME(away_from_zero)(WORDS bits) { return (bits + 0x8000) >> 16; }
RMSFAST_INLINE WORDS NAME(towards_upper)(WORDS bits, WORDS random) { return (bits + random) >> 16; }

/* `upper` is in the upper half, and `rest` has a sign. No smaller bits belong to a zero, which the user may have written, than its own: the sum would wrap
   around to bits that no other master has. */
RMSFAST_INLINE FLOATS NAME(joined)(WORDS upper, WORDS rest)
{
    const WORDS bits = upper + rest;
    return NUMBERS(EITHER(LESS(ALL(0x7fff7fff), bits & MAGNITUDE), upper, bits));
}

/* ---- 8 bits. A number's `exponent` is that of its block's smallest power of two ---- */

RMSFAST_INLINE WORDS NAME(finite)(FLOATS x)
{
    const WORDS size = BITS(x) & MAGNITUDE;
    return EITHER(LESS(size, ALL(INFINITE)), size, ALL(0));
}

/* The bits without the CUT lowest, rounded: to nearest, or by 16 random bits, which are centered among those cut off. */
RMSFAST_INLINE WORDS NAME(cut)(WORDS size, const int draws, WORDS random)
{
    return draws ? (size + (1u << (CUT - 17)) + (random << (CUT - 16))) >> CUT : (size + (1u << (CUT - 1))) >> CUT;
}

RMSFAST_INLINE FLOATS NAME(of_unsigned8)(WORDS code, WORDS exponent)
{
    return NUMBERS((code << CUT) + (exponent << 23));
}

/* Of bits without a sign, at most those of the largest element. */
RMSFAST_INLINE WORDS NAME(as_unsigned8)(WORDS size, WORDS exponent, const int draws, WORDS random)
{
    const WORDS least = exponent << 23;
    return NAME(cut)(HIGHER(size, least) - least, draws, random);
}

RMSFAST_INLINE FLOATS NAME(of_signed8)(WORDS code, uint32_t exponent)
{
    const WORDS size = code & 127, usual = (size + ((exponent - 1) << MANTISSA)) << CUT;
    const WORDS small = BITS(AS_FLOATS(size) * float_of((exponent - MANTISSA) << 23));
    return NUMBERS(EITHER(LESS(size, ALL(1 << MANTISSA)), small, usual) | (code & 128) << 24);
}

RMSFAST_INLINE WORDS NAME(as_signed8)(WORDS bits, uint32_t exponent, const int draws, WORDS random)
{
    const float units_16 = float_of((254 + 16 + MANTISSA - exponent) << 23); /* 2¹⁶ over the spacing of small numbers */
    const WORDS size = bits & MAGNITUDE;
    const MASK is_small = LESS(size, ALL(exponent << 23));
    const WORDS fraction = draws ? random : ALL(0x8000);
    const WORDS small = (AS_WORDS(NUMBERS(EITHER(is_small, size, ALL(0))) * units_16) + fraction) >> 16;
    const WORDS usual = NAME(cut)(size, draws, random) - ((exponent - 1) << MANTISSA);
    const WORDS sign = EITHER(LESS(ALL(INFINITE), size), ALL(0), bits >> 24 & 128);
    return LOWER(EITHER(is_small, small, usual), ALL(127)) | sign;
}
