"""The square root by fused multiply-add is the correctly rounded one: docs/exactness.md's proof, carried out.

The C of csrc/root.h is compiled here for each instruction set of this CPU, and tried apart from the formula.
"""

import ctypes
import os
import shutil
import subprocess
from fractions import Fraction
from math import isqrt, nextafter
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, every_kind_of_number

import rmsfast

CSRC = next(Path(rmsfast.__file__).parent.rglob("root.h")).parent
CC = shutil.which(os.environ.get("CC", "cc"))
FLAGS = ["-O2", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-DVECTOR_BITS=256"],
    "avx512": ["-mavx512f", "-mavx512vl", "-DVECTOR_BITS=512"],
}
ISAS = [isa for isa in rmsfast.config()["isas"] if isa in ISA_FLAGS]
DTYPES = [np.float32, np.float64]

# How far the estimates of 1/√v may be off, relatively, as the CPU's makers document it; float64's under AVX2 has the
# rounding of v besides.
BOUND = {
    ("avx512", np.float32): 2.0**-14,
    ("avx512", np.float64): 2.0**-14,
    ("avx2", np.float32): 1.5 * 2.0**-12,
    ("avx2", np.float64): 1.5 * 2.0**-12 + 2.0**-25,
}
# What is_usual says: zero, or from 2 to the first to 2 to the second.
RANGE = {
    ("avx512", np.float32): (-100, 126),
    ("avx512", np.float64): (-960, 1022),
    ("avx2", np.float32): (-100, 126),
    ("avx2", np.float64): (-100, 100),
}

pytestmark = pytest.mark.skipif(CC is None or os.name == "nt" or not ISAS, reason="no such roots, or no compiler")


class Roots:
    """What roots.c offers, for arrays of any length."""

    def __init__(self, isa, folder):
        self.isa = isa
        target = folder / f"roots_{isa}.so"
        source = Path(__file__).with_name("roots.c")
        command = [CC, *FLAGS, *ISA_FLAGS[isa], f"-I{CSRC}", str(source), "-o", str(target), "-lm"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        self.library = ctypes.CDLL(str(target))
        self.library.wrong_from_any_estimate.restype = ctypes.c_ssize_t
        self.library.wrong_of_random_float64.restype = ctypes.c_ssize_t

    def call(self, name, *arrays, result=None):
        """Call a function of n numbers; arrays are lengthened with ones to whole packs."""
        n = arrays[0].size
        padded = [np.concatenate([a, np.ones(-n % 16, a.dtype)]) for a in arrays]
        out = np.empty(n + -n % 16, result or arrays[0].dtype)
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (out, *padded)]
        getattr(self.library, f"{name}_{arrays[0].dtype}")(*pointers, ctypes.c_ssize_t(out.size))
        return out[:n]

    def roots(self, v):
        return self.call("roots", v)

    def estimates(self, v):
        return self.call("estimates", v)

    def refined(self, v, estimate):
        return self.call("refined", v, estimate)

    def finished(self, v, h):
        return self.call("finished", v, h)

    def is_usual(self, v):
        """Whether each number stays away from the divider, in packs of its own."""
        packs = np.repeat(v, 16)
        lanes = (512 if self.isa == "avx512" else 256) // 8 // v.itemsize
        return self.call("usual", packs, result=np.int32)[: packs.size // lanes : 16 // lanes].astype(bool)

    def wrong_from_any_estimate(self, v, bound):
        """Count the float32 whose root is wrong from some estimate: all floats within the bound are tried."""
        exact = 1 / np.sqrt(v.astype(np.float64))
        low = np.nextafter((exact * (1 - bound)).astype(np.float32), np.float32(0)).view(np.int32)
        high = np.nextafter((exact * (1 + bound)).astype(np.float32), np.float32(9)).view(np.int32)
        arrays = [np.ascontiguousarray(a) for a in (v, np.sqrt(v), low, high)]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
        return self.library.wrong_from_any_estimate(*pointers, ctypes.c_ssize_t(v.size))

    def wrong_of_random_float64(self, seed, count):
        return self.library.wrong_of_random_float64(ctypes.c_uint64(seed), ctypes.c_ssize_t(count))


@pytest.fixture(scope="module", params=ISAS)
def roots(request, tmp_path_factory):
    return Roots(request.param, tmp_path_factory.mktemp("roots"))


def two_binades():
    """All float32 from 1 to 4: any other one is one of these times a power of four, and so is its root."""
    return np.arange(0x3F800000, 0x40800000, dtype=np.int32).view(np.float32)


# ---- float32: exhausted ----


@pytest.mark.parametrize("exponent", [-100, 0, 122])
def test_every_float32(roots, exponent):
    v = two_binades() * np.float32(2.0**exponent)
    assert_same_bits(roots.roots(v), np.sqrt(v))


def test_the_estimates_are_as_documented(roots):
    v = two_binades()
    for dtype in DTYPES:
        v = v.astype(dtype)
        off = roots.estimates(v).astype(np.float64) * np.sqrt(v.astype(np.float64)) - 1
        assert np.abs(off).max() <= BOUND[roots.isa, dtype] * (1 + 2.0**-20)


def test_every_float32_from_a_moved_estimate(roots):
    """As far off as it may be, and for AVX-512 three times as far."""
    v = two_binades()
    for moved in (-1, 1) if roots.isa == "avx2" else (-3, -1, 1, 3):
        estimate = (1 + moved * BOUND[roots.isa, np.float32]) / np.sqrt(v.astype(np.float64))
        assert_same_bits(roots.refined(v, estimate.astype(np.float32)), np.sqrt(v))


def test_hard_float32_from_every_estimate(roots):
    """Those whose roots lie closest to a midpoint between two floats, five times as far as the proof needs."""
    v = np.array([v for v, _ in hard_cases(24, 400)], np.float32)
    assert v.size > 100
    assert roots.wrong_from_any_estimate(v, BOUND[roots.isa, np.float32]) == 0


def test_many_float32_from_every_estimate(roots):
    """Under AVX-512 all of them, and this is its proof; under AVX2 there are six times as many estimates to try."""
    v = two_binades()[:: 1 if roots.isa == "avx512" else 61]
    assert roots.wrong_from_any_estimate(v, BOUND[roots.isa, np.float32]) == 0


@pytest.mark.slow
def test_every_float32_from_every_estimate(roots):
    """1.5·10¹¹ roots. AVX-512's sequence holds from estimates that are three times as far off as documented."""
    margin = 3 if roots.isa == "avx512" else 1
    assert roots.wrong_from_any_estimate(two_binades(), margin * BOUND[roots.isa, np.float32]) == 0


# ---- float64: a bound, and the cases within it ----


def square_roots(c, bits):
    """All m from 0 to 2**bits - 1 with m² ≡ c modulo 2**bits, for c ≡ 1 modulo 8, lifted from bit to bit (Hensel)."""
    found = [1, 3, 5, 7]  # modulo 8
    for k in range(4, bits + 1):
        lifted = {(m + d) % (1 << k) for m in found for d in (0, 1 << (k - 2), 1 << (k - 1), 3 << (k - 2))}
        found = [m for m in lifted if (m * m - c) % (1 << k) == 0]
    return sorted(found)


def hard_cases(precision, most):
    """All v from 1 to 4 of so many bits whose root lies next to a midpoint m between two numbers of so many bits.

    In units of half the spacing of the roots m is odd, and v = m² + k with |k| ≤ most. A number of so many bits
    that large is a multiple of 2**(precision + 1), or of twice as much from 2 on: so m² ≡ -k modulo that.
    """
    for k in range(-most, most + 1):
        if -k % 8 != 1:  # the squares of odd numbers
            continue
        for bits in precision + 1, precision + 2:
            for m in square_roots(-k % (1 << bits), bits):
                n = (m * m + k) >> bits
                if 1 << precision < m < 2 << precision and 1 << (precision - 1) <= n < 1 << precision:
                    yield Fraction(n, 1 << (precision - 1)) * (bits - precision), k


def test_the_hard_cases_are_all_there_are():
    """For numbers of 12 bits they are counted one by one."""
    precision, most = 12, 50
    expected = []
    for n in range(1 << (precision - 1), 1 << precision):
        for bits in precision + 1, precision + 2:
            m = isqrt(n << bits)
            m += m % 2 == 0  # the odd ones on both sides
            for midpoint in m - 2, m, m + 2:
                if abs((n << bits) - midpoint**2) <= most:
                    expected.append((Fraction(n, 1 << (precision - 1)) * (bits - precision), (n << bits) - midpoint**2))
    assert sorted(hard_cases(precision, most)) == sorted(expected)


HARD = list(hard_cases(53, 200))  # 112 is what the proof asks for


def half_reciprocals(v, below, above):
    """All doubles to which something from (1 - below·u)/(2·√v) to (1 + above·u)/(2·√v) rounds, u = 2⁻⁵³."""
    exact = Fraction(1 << 200, 2 * isqrt((v.numerator << 400) // v.denominator))
    h = float(exact * (1 - Fraction(below) / (1 << 53)))
    last = float(exact * (1 + Fraction(above) / (1 << 53)))
    while h <= last:
        yield h
        h = nextafter(h, 9)


def test_hard_float64_from_every_reciprocal(roots):
    """Whatever the estimate was, refinement ends at one of a few doubles: each makes the right root."""
    pairs = np.array([(float(v), h) for v, _ in HARD for h in half_reciprocals(v, 1, 1)])
    v, h = pairs.T.copy()
    assert np.unique(v).size == 72
    assert_same_bits(roots.finished(v, h), np.sqrt(v))


def test_refinement_ends_where_the_proof_says(roots, rng):
    """Hard cases and others, from estimates all over the bound: h lies in the set of the test above."""
    bound = BOUND[roots.isa, np.float64]
    for v, _ in HARD:
        n = 2000
        off = np.concatenate([np.linspace(-bound, bound, n), rng.uniform(-bound, bound, n)])
        numbers = np.full(2 * n, float(v))
        assert_same_bits(roots.refined(numbers, (1 + off) / np.sqrt(numbers)), np.sqrt(numbers))


def test_random_float64(roots):
    """RMSFAST_ROOTS asks for other than 10⁷."""
    assert roots.wrong_of_random_float64(88172645463325252, int(float(os.environ.get("RMSFAST_ROOTS", "1e7")))) == 0


def test_float64_from_random_estimates(roots, rng):
    bound = BOUND[roots.isa, np.float64]
    v = rng.uniform(1, 4, 1_000_000)
    estimate = (1 + rng.uniform(-bound, bound, v.size)) / np.sqrt(v)
    assert_same_bits(roots.refined(v, estimate), np.sqrt(v))


# ---- Where the sequences end and the divider begins ----


def edges(dtype, low, high):
    """Numbers at both ends of the range, each once inside and once outside."""
    least, most = dtype(2.0**low), dtype(2.0**high)
    inside = [least, np.nextafter(least, dtype(1)), np.nextafter(most, dtype(1)), most, dtype(1), dtype(0), -dtype(0)]
    info = np.finfo(dtype)
    outside = [
        *(np.nextafter(least, dtype(0)), np.nextafter(most, dtype(np.inf)), info.max, info.tiny),
        *(info.smallest_subnormal, dtype(np.inf), dtype(np.nan), -least, -dtype(1), -most, -info.max),
        *(-info.smallest_subnormal, dtype(-np.inf), -info.tiny, np.nextafter(info.tiny, dtype(0))),
    ]
    return np.array(inside, dtype), np.array(outside, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_range(roots, dtype):
    inside, outside = edges(dtype, *RANGE[roots.isa, dtype])
    assert roots.is_usual(inside).all()
    assert not roots.is_usual(outside).any()
    with np.errstate(invalid="ignore"):
        for v in inside, outside:
            assert_same_bits(roots.roots(np.repeat(v, 16)), np.repeat(np.sqrt(v), 16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_unusual_number_in_a_pack(roots, dtype):
    """At every place, beside usual ones and zeros."""
    inside, outside = edges(dtype, *RANGE[roots.isa, dtype])
    with np.errstate(invalid="ignore"):
        for place in range(16):
            for beside in inside:
                v = np.full((outside.size, 16), beside)
                v[:, place] = outside
                assert_same_bits(roots.roots(v.ravel()), np.sqrt(v.ravel()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_from_every_estimate(roots, dtype):
    zeros = np.array([0.0, -0.0] * 8, dtype)
    low, high = RANGE[roots.isa, dtype]
    for estimate in 2.0 ** (-low / 2), 1.0, 2.0 ** (-high / 2):
        assert_same_bits(roots.refined(zeros, np.full(16, estimate, dtype)), zeros)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_number_has_its_root(roots, rng, dtype):
    v = every_kind_of_number(rng, 1 << 16, dtype)
    with np.errstate(invalid="ignore"):
        assert_same_bits(roots.roots(v), np.sqrt(v))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_power_of_two(roots, rng, dtype):
    """The sequences do the same at every magnitude in their range."""
    low, high = RANGE[roots.isa, dtype]
    hard = [float(v) for v, _ in hard_cases(24 if dtype is np.float32 else 53, 100)]
    for exponent in range(low, high - 2, 2):
        v = np.array(hard, dtype) * dtype(2.0**exponent)
        assert roots.is_usual(v).all()
        assert_same_bits(roots.roots(v), np.sqrt(v))
