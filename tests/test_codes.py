"""The simulation behind docs/formats.md: our codes are those of rmsfast, and the others what their sources say."""

import numpy as np
import pytest

from bench.codes import BFloat16, Companding, DynamicMap, Float8, dynamic_map
from rmsfast import formats

BLOCKS = 50


@pytest.fixture
def numbers():
    """Numbers over eight decades within each block of 64, and some that are equal or exact."""
    rng = np.random.default_rng(0)
    x = 10.0 ** rng.uniform(-8, 0, (BLOCKS, 64)) * rng.choice([1e-9, 1.0, 1e6], (BLOCKS, 1))
    x[0] = 1.0
    x[1] = 2.0 ** np.arange(-32, 32)
    return x.astype(np.float32).ravel()


def stored(kind, x):
    """Return what rmsfast reads again of what it stored, rounded to nearest."""
    data = np.zeros(len(x), np.uint16 if kind == "bfloat16" else np.uint8)
    more = np.zeros(len(x) // formats.SCALED, np.uint8)
    formats.store(kind, x, data, more)
    return formats.load(kind, data, more)


def test_the_simulated_codes_are_those_of_rmsfast(numbers):
    signed = numbers * np.resize(np.float32([1, -1, 1]), numbers.size)
    assert np.array_equal(Float8(4, 4, 64, stochastic=False)(numbers, None), stored("unsigned8", numbers))
    assert np.array_equal(Float8(3, 4, 64, stochastic=False, signed=True)(signed, None), stored("signed8", signed))
    assert np.array_equal(BFloat16(stochastic=False)(signed, None), stored("bfloat16", signed))


@pytest.mark.parametrize("code", [Float8(4, 4, 64), Float8(5, 3, 32), Float8(3, 4, 64, signed=True), BFloat16()])
def test_stochastic_codes_have_no_bias_within_their_range(code):
    """The mean of many roundings is within 4 standard errors, and no rounding is off by more than a step."""
    rng = np.random.default_rng(1)
    x = np.resize(rng.uniform(0.1, 1, 256).astype(np.float32), 256)
    repeats = 4000
    errors = np.array([code(x, rng) - x.astype(float) for _ in range(repeats)]) / x
    assert np.abs(errors).max() < 2.0 ** -(getattr(code, "mantissa", 7))
    assert abs(errors.mean()) < 4 * errors.std() / np.sqrt(errors.size)


@pytest.mark.parametrize("signed", [True, False])
def test_the_dynamic_map_has_256_values_of_seven_decades(signed):
    values = dynamic_map(signed)
    assert len(np.unique(values)) == 256
    assert values.max() == 1
    assert 0 in values
    positive = values[values > 0]
    assert positive.min() == np.float32(5.5e-7 if signed else 3.25e-7)
    decades = np.bincount(np.floor(np.log10(positive[:-1].astype(float)) + 1e-6).astype(int) + 7)
    assert decades.tolist() == [2**i * (1 if signed else 2) for i in range(7)]


def test_the_dynamic_map_takes_the_nearest_value_of_its_block():
    x = np.random.default_rng(2).standard_normal(1024).astype(np.float32)
    scale = np.abs(x.reshape(-1, 256)).max(axis=1).repeat(256)
    nearest = np.abs(x[:, None] / scale[:, None] - dynamic_map(True)).min(axis=1)
    assert np.allclose(np.abs(DynamicMap(True)(x, None) / scale - x / scale), nearest, atol=1e-6)  # float32's rounding


def test_companding_rounds_the_root_and_the_softsign_to_steps_of_eight_bits():
    x = np.random.default_rng(3).uniform(0, 1, 320).astype(np.float32)
    scale = np.sqrt(x).reshape(-1, 32).max(axis=1).astype(np.float16).astype(float).repeat(32)
    code = np.sqrt(Companding()(x, None).astype(float)) / scale * 255
    assert np.allclose(code, np.rint(code), atol=1e-3)  # float32's rounding
    assert np.abs(code - np.sqrt(x) / scale * 255).max() <= 0.501

    both = x * np.resize(np.float32([1, -1]), 320)
    scale = x.reshape(-1, 32).max(axis=1).astype(np.float16).astype(float).repeat(32)
    was, got = (np.abs(m) / scale for m in (both, Companding(signed=True)(both, None)))
    code = 127 * 2 * got / (1 + got)
    assert np.allclose(code, np.rint(code), atol=1e-3)
    assert np.abs(code - 127 * 2 * was / (1 + was)).max() <= 0.501
