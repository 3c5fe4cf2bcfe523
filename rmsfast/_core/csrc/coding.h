/* What the numbers of a pack are as elements of each format. formats.h includes this file twice: for the packs of pack.h, and
   for one number, to finish with. WORDS are as many unsigned integers of 32 bits as FLOATS has numbers. A comparison has
   all bits where it holds. */

#define EITHER(holds, x, y) (((holds) & (x)) | (~(holds) & (y)))

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
    const WORDS bits = BITS(x), size = bits & MAGNITUDE, is_small = LESS(size, ALL(113u << 23));
    const WORDS small = (AS_WORDS(NUMBERS(is_small & size) * 0x1p40f) + random) >> 16;
    const WORDS usual = (size + (random >> 3) - (112u << 23)) >> 13;
    return NAME(finish_half)(EITHER(is_small, small, usual), bits, size);
}

/* ---- bfloat16, the upper half of a float32, and with it the rest of a master's bits ---- */

/* Bits of which the upper half is a NaN as they are. */
RMSFAST_INLINE WORDS NAME(to_cut)(FLOATS x)
{
    const WORDS bits = BITS(x);
    return EITHER(LESS(ALL(INFINITE), bits & MAGNITUDE), ALL(A_NAN), bits);
}

RMSFAST_INLINE WORDS NAME(as_upper)(FLOATS x)
{
    const WORDS bits = NAME(to_cut)(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

RMSFAST_INLINE WORDS NAME(towards_upper)(FLOATS x, WORDS random) { return (NAME(to_cut)(x) + random) >> 16; }

/* No smaller bits belong to a zero, which the user may have written, than its own. */
RMSFAST_INLINE FLOATS NAME(joined)(WORDS upper, WORDS rest)
{
    const WORDS is_negative = 0 - (rest >> 15), is_zero = LESS(upper & 0x7fff, ALL(1));
    return NUMBERS((upper << 16) + (~(is_zero & is_negative) & (rest - (is_negative & 0x10000))));
}

/* ---- 8 bits. A number's `exponent` is that of its block's smallest power of two ---- */

RMSFAST_INLINE WORDS NAME(finite)(FLOATS x)
{
    const WORDS size = BITS(x) & MAGNITUDE;
    return size & LESS(size, ALL(INFINITE));
}

/* The bits without the CUT lowest, rounded: to nearest, or by 16 random bits, which are centered among those cut off. */
RMSFAST_INLINE WORDS NAME(cut)(WORDS size, const int draws, WORDS random)
{
    return (size + (draws ? random << (CUT - 16) | 1u << (CUT - 17) : ALL(1u << (CUT - 1)))) >> CUT;
}

RMSFAST_INLINE FLOATS NAME(of_unsigned8)(WORDS code, uint32_t exponent)
{
    return NUMBERS((code + (exponent << MANTISSA)) << CUT);
}

RMSFAST_INLINE WORDS NAME(as_unsigned8)(FLOATS x, uint32_t exponent, const int draws, WORDS random)
{
    const WORDS cut = NAME(cut)(BITS(x) & MAGNITUDE, draws, random), least = ALL(exponent << MANTISSA);
    return LOWER(HIGHER(cut, least) - least, ALL(255));
}

RMSFAST_INLINE FLOATS NAME(of_signed8)(WORDS code, uint32_t exponent)
{
    const WORDS size = code & 127, usual = (size + ((exponent - 1) << MANTISSA)) << CUT;
    const WORDS small = BITS(AS_FLOATS(size) * float_of((exponent - MANTISSA) << 23));
    return NUMBERS(EITHER(LESS(size, ALL(1 << MANTISSA)), small, usual) | (code & 128) << 24);
}

RMSFAST_INLINE WORDS NAME(as_signed8)(FLOATS x, uint32_t exponent, const int draws, WORDS random)
{
    const float units_16 = float_of((254 + 16 + MANTISSA - exponent) << 23); /* 2¹⁶ over the spacing of small numbers */
    const WORDS bits = BITS(x), size = bits & MAGNITUDE, is_small = LESS(size, ALL(exponent << 23));
    const WORDS small = (AS_WORDS(NUMBERS(is_small & size) * units_16) + (draws ? random : ALL(0x8000))) >> 16;
    const WORDS usual = NAME(cut)(size, draws, random) - ((exponent - 1) << MANTISSA);
    const WORDS is_number = LESS(size, ALL(INFINITE + 1));
    return LOWER(EITHER(is_small, small, usual), ALL(127)) | (bits >> 24 & 128 & is_number);
}

#undef EITHER
