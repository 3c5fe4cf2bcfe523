"""What several test files need: the formula as a user writes it, equality of bits, and an optimizer after one step."""

import re

import numpy as np
import pytest

import rmsfast

CLASSES = [rmsfast.RMSProp, rmsfast.reference.RMSProp]

# The settings of a group, and what they are by default: the contract.
SETTINGS = {
    "lr": 1e-3,
    "beta": 0.9,
    "eps": 1e-8,
    "momentum": 0.0,
    "nesterov": False,
    "centered": False,
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "eps_inside_sqrt": False,
    "lr_in_momentum": False,
    "bias_correction": False,
    "initial_square_avg": 0.0,
    "maximize": False,
    "clip_value": None,
    "clip_norm": None,
    "clip_global_norm": None,
    "clip_weights": None,
    "nonfinite": "propagate",
    "ema_decay": None,
    "state_dtype": None,
    "master_weights": False,
    "rounding": "nearest",
    "seed": 0,
}

# Constants with which threads share even a handful of elements, however long that takes them.
SHORT_STRETCHES = {"forced": True, "cores": 1024, "seconds_to_inherit": 0}


def textbook(w, v, g, lr=1e-3, beta=0.9, eps=1e-8):
    """The two lines that a user of NumPy 2 writes. `g * g` for `g**2` makes no difference but for 0-d arrays."""
    with np.errstate(all="ignore"):
        v[:] = beta * v + (1 - beta) * g**2
        w -= lr * g / (np.sqrt(v) + eps)


def assert_same_bits(actual, expected):
    """Equal dtype, shape and bits; any NaN equals any NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    bits = f"u{actual.itemsize}"
    with np.errstate(invalid="ignore"):  # of bfloat16, signaling NaNs would warn
        same = (np.ascontiguousarray(actual).view(bits) == np.ascontiguousarray(expected).view(bits)) | (
            np.isnan(actual) & np.isnan(expected)
        )
    if not same.all():
        where = tuple(axis[0] for axis in np.nonzero(~same))
        raise AssertionError(
            f"{np.count_nonzero(~same)} of {same.size} elements differ, first at {where}: "
            f"{actual[where]!r}, expected {expected[where]!r}"
        )


def assert_says_all(error):
    """A message says what it is about, what came, and what was expected: `grads[3]: shape (4,), expected (5,)`."""
    assert re.match(r"[^:]+: .+, expected .+", str(error), re.DOTALL), str(error)


def offset_array(values, offset):
    """A copy of flat values that begins `offset` bytes past a cache line."""
    values = np.asarray(values)
    memory = np.zeros(values.nbytes + 128, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64 + offset
    array = memory[start : start + values.nbytes].view(values.dtype)
    array[:] = values
    return array


def misaligned(values):
    """A copy of values at an odd address."""
    packed = np.zeros(values.shape, np.dtype([("pad", "u1"), ("value", values.dtype)]))
    packed["value"] = values
    assert not packed["value"].flags.aligned
    return packed["value"]


def fleeting(rng, shape, dtype):
    """Random numbers over many magnitudes."""
    return (rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 3, shape)).astype(dtype)


def every_kind_of_number(rng, n, dtype):
    """Random bit patterns: normal and subnormal numbers of every magnitude, infinities, NaNs; and signed zeros."""
    dtype = np.dtype(dtype)
    bits = np.dtype(f"u{dtype.itemsize}")
    numbers = rng.integers(0, np.iinfo(bits).max, n, bits, endpoint=True).view(dtype)
    info = np.finfo(dtype)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny, info.smallest_subnormal, 1.0]
    chosen = rng.random(n) < 0.25
    numbers[chosen] = rng.choice(np.array(special, dtype), np.count_nonzero(chosen))
    return numbers


def after_one_step(w, g, **settings):
    w, v = w.copy(), np.zeros_like(w)
    textbook(w.reshape(-1), v.reshape(-1), g.reshape(-1), **settings)
    return w


shared_arrays = pytest.mark.thread_unsafe(reason="all threads of a test have the same fixtures, and would train them")


def trained(names=None):
    """An optimizer after one step on three arrays, and the arrays."""
    params = [np.arange(50, dtype=np.float32).reshape(5, 10), np.ones(7, np.float64), np.ones((3, 4), np.float32)]
    opt = rmsfast.RMSProp(params if names is None else dict(zip(names, params, strict=True)))
    opt.step([np.full_like(w, 0.5) for w in params])
    return opt, params


GRADS = [np.ones((5, 10), np.float32), np.ones(7), np.ones((3, 4), np.float32)]


def assert_unchanged(opt, params, before):
    for w, e in zip(params, before[0], strict=True):
        assert_same_bits(w, e)
    assert_same_state(opt.state_dict(), before[1])


def assert_same_state(actual, expected):
    assert actual["param_groups"] == expected["param_groups"]
    assert list(actual["state"]) == list(expected["state"])
    for key, entry in expected["state"].items():
        assert actual["state"][key]["step"] == entry["step"]
        assert_same_bits(actual["state"][key]["square_avg"], entry["square_avg"])
