"""How float32 numbers are stored in fewer bytes, in NumPy: the specification, written to be read.

`rmsfast.reference` uses it; the kernel promises the same bits. To load is exact. To store rounds: to nearest, or, with
random bits, up with the probability of the part that is cut off. A NaN stays a NaN. docs/formats.md says when to use
what.

Each format has its arrays as flat unsigned integers (float16 as NumPy has it):

========== ============================================ =============================================
name       `data`                                       `more`
========== ============================================ =============================================
float16    float16
bfloat16   uint16, the upper half of a float32
split      uint16, a bfloat16                           int16, the master's bits less the parameter's
mastered   float16                                      float32, the master
unsigned8  uint8, 4 bits of exponent, 4 of mantissa     uint8, an exponent for each block of 64
signed8    uint8, a sign, 3 bits of exponent, 4 of ...  uint8, an exponent for each block of 64
========== ============================================ =============================================
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

INFINITE, A_NAN, MAGNITUDE = 0x7F800000, 0x7FC00000, 0x7FFFFFFF  # of a float32: bits of two numbers; all but the sign
MANTISSA = 4  # bits of mantissa in an element of 8 bits, …
CUT = 23 - MANTISSA  # … and how many fewer that is than a float32 has
SCALED = 64  # elements that share a scale


def bits_of(x: Array) -> Array:
    """Return the bits of float32 numbers as int64, which has room for sums."""
    return np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.int64)


def float_of(bits: Array) -> Array:
    """Return the float32 numbers of some bits."""
    return bits.astype(np.uint32).view(np.float32)


def power(exponent: Any) -> Array:
    """Return the power of two that has this exponent field in float32."""
    return float_of(np.asarray(exponent) << 23)


def load(kind: str, data: Array, more: Any = None) -> Array:
    """Return the float32 numbers that all of an array stores."""
    if kind == "float16":
        return data.astype(np.float32)
    if kind == "bfloat16":
        return float_of(data.astype(np.int64) << 16)
    if kind == "split":
        is_zero = (data & 0x7FFF) == 0  # perhaps written by the user: then no smaller bits belong to it
        return float_of((data.astype(np.int64) << 16) + np.where(is_zero & (more < 0), 0, more))
    if kind == "mastered":  # where the user changed the parameter, it is the master
        return np.where(as_float16(more).view(np.uint16) == data.view(np.uint16), more, data.astype(np.float32))
    exponent = np.repeat(more.astype(np.int64), SCALED)[: len(data)]
    code = data.astype(np.int64)
    if kind == "unsigned8":
        return float_of((code + (unsigned_base(exponent) << MANTISSA)) << CUT)
    base, size = signed_base(exponent), code & 127
    small = size.astype(np.float32) * power(base - MANTISSA)
    usual = float_of((size + ((base - 1) << MANTISSA)) << CUT)
    return np.copysign(np.where(size < 1 << MANTISSA, small, usual), np.where(code & 128, -1.0, 1.0)).astype(np.float32)


def store(kind: str, x: Array, data: Array, more: Any = None, places: Any = slice(None), random: Any = None) -> None:
    """Store float32 numbers in some `places` of an array; `random` has 16 bits for each element of all of it.

    In 8 bits, whole blocks are stored, because their scale may change: other numbers in them keep their values, unless
    they are below the block's range now.
    """
    if kind in ("unsigned8", "signed8"):
        numbers = load(kind, data, more)
        numbers[places] = x
        for block in np.unique(np.arange(len(data))[places] // SCALED):
            part = slice(block * SCALED, (block + 1) * SCALED)
            rounds = None if random is None else random[part].astype(np.int64)
            code = code_unsigned if kind == "unsigned8" else code_signed
            data[part], more[block] = code(numbers[part], rounds)
        return
    if kind == "float16":
        data[places] = as_float16(x) if random is None else towards_float16(x, random[places].astype(np.int64))
        return
    if kind == "mastered":
        data[places], more[places] = as_float16(x), x
        return
    bits = np.where(np.isnan(x), A_NAN, bits_of(x))
    if kind == "split":  # a tie rounds away from zero, so that 16 bits suffice for the rest
        upper = (bits + 0x8000) >> 16
        data[places], more[places] = upper, bits - (upper << 16)
    elif random is None:  # a tie rounds to the even one
        data[places] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    else:
        data[places] = (bits + random[places]) >> 16


# ---- float16 ----


def as_float16(x: Array) -> Array:
    """Return numbers rounded to nearest, ties to even; NaNs all alike."""
    with np.errstate(all="ignore"):
        return np.where(np.isnan(x), np.float16(np.nan), x.astype(np.float16))


def towards_float16(x: Array, random: Array) -> Array:
    """Return numbers rounded up or down by random bits. A subnormal float16 is a multiple of 2⁻²⁴."""
    bits = bits_of(x)
    size, least = bits & MAGNITUDE, 113 << 23  # of the smallest number that is not subnormal
    within = np.where(size < least, float_of(size), np.float32(0)) * np.float32(2.0**40)
    small = within.astype(np.int64) + random >> 16
    usual = size + (random >> 3) - (112 << 23) >> 13
    half = np.where(size < least, small, usual)
    half = np.where(size >= 143 << 23, np.where(size > INFINITE, 0x7E00, 0x7C00), half)
    signed: Array = (half | bits >> 16 & 0x8000).astype(np.uint16)
    return signed.view(np.float16)


# ---- 8 bits ----


def exponent_of_largest(x: Array) -> int:
    """Return the exponent that a block needs: one more where its largest number may be rounded up to a power of two."""
    size = bits_of(x) & MAGNITUDE
    largest = int(size[size < INFINITE].max(initial=0))
    return min(largest + (1 << CUT) - 1 >> 23, 254)


def unsigned_base(exponent: Any) -> Any:
    """Return the exponent of the smallest number in a block without signs: there are 16 exponents."""
    return np.maximum(exponent - 15, 1)


def signed_base(exponent: Any) -> Any:
    """Return the exponent of the smallest power of two in a block with signs: there are 7, and numbers down to 0."""
    return np.maximum(exponent - 6, 20)


def rounded(size: Array, random: Any) -> Array:
    """Return the bits of numbers without the CUT lowest, rounded. 16 random bits are centered among those cut off."""
    return size + (1 << CUT - 1 if random is None else (random << CUT - 16) + (1 << CUT - 17)) >> CUT


def code_unsigned(x: Array, random: Any) -> tuple[Array, int]:
    """Return a block of v as elements and its scale. The least element stands for all that is smaller, never for 0."""
    exponent = exponent_of_largest(x)
    code = rounded(bits_of(x) & MAGNITUDE, random) - (unsigned_base(exponent) << MANTISSA)
    return np.clip(code, 0, 255), exponent


def code_signed(x: Array, random: Any) -> tuple[Array, int]:
    """Return a block of m or b as elements and its scale. Below the smallest power of two, they are evenly spaced."""
    exponent = exponent_of_largest(x)
    base = signed_base(exponent)
    bits = bits_of(x)
    size, least = bits & MAGNITUDE, base << 23
    within = np.where(size < least, float_of(size), np.float32(0)) * power(254 + 16 + MANTISSA - base)
    small = within.astype(np.int64) + (0x8000 if random is None else random) >> 16
    usual = rounded(size, random) - (base - 1 << MANTISSA)
    code = np.minimum(np.where(size < least, small, usual), 127)
    return code | np.where(size > INFINITE, 0, bits >> 24 & 128), exponent


# ---- Random bits ----


def random_bits(seed: int, parameter: int, step: int, stream: int, n: int) -> Array:
    """Return 16 random bits for each of n elements: a function of the arguments and of the element alone.

    The streams 0, 1, 2, 3 are those of w, v, m, b. Two elements share a word: the first has its lower half, the second
    its upper half. The hash is lowbias32 by C. Wellons
    (https://nullprogram.com/blog/2018/07/31/), with a second key between its multiplications.
    """
    key = mix(mix(mix(mix(seed) + parameter) + step) + stream)
    number = np.arange((n + 1) // 2, dtype=np.uint64)
    keys = np.array([mix(key + high) for high in range(len(number) // 2**32 + 1)], np.uint64)
    keys = keys[(number >> np.uint64(32)).astype(np.intp)]
    before, between = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    x = number.astype(np.uint32) ^ before
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x = (x ^ x >> np.uint32(15) ^ between) * np.uint32(0x846CA68B)
    x = x ^ x >> np.uint32(16)
    return np.stack([x & np.uint32(0xFFFF), x >> np.uint32(16)], axis=1).reshape(-1)[:n].astype(np.uint16)


def mix(x: int) -> int:
    """Return a hash of 64 bits: splitmix64 by S. Vigna (https://prng.di.unimi.it/splitmix64.c)."""
    most = 2**64 - 1
    x = x + 0x9E3779B97F4A7C15 & most
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & most
    x = (x ^ x >> 27) * 0x94D049BB133111EB & most
    return x ^ x >> 31
