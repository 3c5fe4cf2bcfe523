"""The kernel's bits are NumPy's: for every length, alignment, layout, value, setting, thread count, instruction set."""

import ctypes
import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    SHORT_STRETCHES,
    assert_same_bits,
    every_kind_of_number,
    fleeting,
    misaligned,
    offset_array,
    textbook,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import rmsfast
from rmsfast._core.threads import _team_size, _tune

DTYPES = [np.float32, np.float64]


def arrays(rng, shape, dtype):
    """A parameter, its average of squares, and a gradient."""
    return fleeting(rng, shape, dtype), np.square(fleeting(rng, shape, dtype)), fleeting(rng, shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [*range(201), 1023, 1024, 1025, 4096, 65_537, 1_000_003])
def test_every_length(rng, n, dtype):
    w, v, g = arrays(rng, n, dtype)
    expected_w, expected_v = w.copy(), v.copy()
    textbook(expected_w, expected_v, g)
    reference_w, reference_v = w.copy(), v.copy()
    rmsfast.reference.rmsprop_update(reference_w, reference_v, g)
    rmsfast.rmsprop_update(w, v, g)
    assert_same_bits(w, expected_w)
    assert_same_bits(v, expected_v)
    assert_same_bits(w, reference_w)
    assert_same_bits(v, reference_v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_alignment(rng, dtype):
    size = np.dtype(dtype).itemsize
    for offset_w in range(0, 64, size):
        for offset_g in range(0, 64, size):
            w, v, g = arrays(rng, 77, dtype)
            expected_w, expected_v = w.copy(), v.copy()
            textbook(expected_w, expected_v, g)
            w = offset_array(w, offset_w)
            v = offset_array(v, (offset_w * 5 + offset_g) % 64)
            rmsfast.rmsprop_update(w, v, offset_array(g, offset_g))
            assert_same_bits(w, expected_w)
            assert_same_bits(v, expected_v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1.0])
def test_every_kind_of_number(rng, dtype, beta, eps):
    n = 20_000
    w, v, g = (every_kind_of_number(rng, n, dtype) for _ in range(3))
    expected_w, expected_v = w.copy(), v.copy()
    with np.errstate(all="ignore"):
        textbook(expected_w, expected_v, g, 0.01, beta, eps)
    rmsfast.rmsprop_update(w, v, g, lr=0.01, beta=beta, eps=eps)
    assert_same_bits(w, expected_w)
    assert_same_bits(v, expected_v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormals_are_kept(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    w, v, g = np.full(100, 3 * tiny), np.full(100, 8 * tiny), np.full(100, tiny)
    rmsfast.rmsprop_update(w, v, g, lr=0.0, beta=0.5)
    assert_same_bits(w, np.full(100, 3 * tiny))
    assert_same_bits(v, np.full(100, 4 * tiny))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_dimensions(dtype):
    w, v, g = np.array(1.5, dtype), np.array(0.25, dtype), np.array(0.3, dtype)
    flat_w, flat_v = w.reshape(1).copy(), v.reshape(1).copy()
    textbook(flat_w, flat_v, g.reshape(1))
    rmsfast.rmsprop_update(w, v, g)
    assert_same_bits(w, flat_w.reshape(()))
    assert_same_bits(v, flat_v.reshape(()))

    opt = rmsfast.RMSProp(np.array(1.5, dtype))
    opt.step(misaligned(g))
    assert opt.state[0]["square_avg"].shape == ()


SETTINGS = [
    dict(lr=np.float64(0.01), beta=np.float64(0.95), eps=np.float64(1e-6)),
    dict(lr=np.float32(0.01), beta=np.float32(0.95), eps=np.float16(1e-3)),
    dict(lr=np.array(0.01), beta=np.array(1), eps=0),
    dict(lr=1, beta=0, eps=1),
    dict(lr=1e300, beta=0.5, eps=1e300),
    dict(lr=1e-300, beta=1e-300, eps=1e-300),
    dict(lr=np.inf, beta=0.9, eps=np.inf),
    dict(lr=0.1, beta=0.9999999999, eps=1e-45),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_are_rounded_once(rng, dtype, setting):
    w, v, g = arrays(rng, 1000, dtype)
    expected_w, expected_v = w.copy(), v.copy()
    textbook(expected_w, expected_v, g, **{name: float(value) for name, value in setting.items()})
    rmsfast.rmsprop_update(w, v, g, **setting)
    assert_same_bits(w, expected_w)
    assert_same_bits(v, expected_v)


def strided_views(values, rng):
    """The same gradient in many layouts."""
    shape = values.shape
    yield np.asfortranarray(values)
    yield np.ascontiguousarray(values)
    yield misaligned(values)
    yield np.repeat(values, 3, axis=-1)[..., ::3]
    yield np.flip(np.flip(values).copy())
    for axis in range(values.ndim):
        yield np.flip(np.flip(values, axis).copy(), axis)
        yield np.moveaxis(np.moveaxis(values, axis, 0).copy(), 0, axis)
    padded = np.full([n + 2 for n in shape], np.nan, values.dtype)
    inner = padded[tuple(slice(1, -1) for _ in shape)]
    inner[...] = values
    yield inner
    order = rng.permutation(values.ndim)
    yield values.transpose(order).copy().transpose(np.argsort(order))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "shape", [(5,), (3000,), (7, 9), (50, 61), (2, 3, 4), (1, 40, 1, 33), (3, 1, 2, 5, 2), (900, 2)]
)
def test_every_layout_of_the_gradient(rng, short_stretches, shape, order, dtype):
    w, v, g = arrays(rng, shape, dtype)
    expected_w, expected_v = w.copy(), v.copy()
    textbook(expected_w, expected_v, g)
    for layout in strided_views(g, rng):
        for threads in 1, 3:
            actual_w, actual_v = w.copy(order), v.copy(order)
            rmsfast.rmsprop_update(actual_w, actual_v, layout, num_threads=threads)
            assert_same_bits(actual_w, expected_w)
            assert_same_bits(actual_v, expected_v)
            assert actual_w.flags.f_contiguous or order == "C"

            reference_w, reference_v = w.copy(order), v.copy(order)
            rmsfast.reference.rmsprop_update(reference_w, reference_v, layout)
            assert_same_bits(reference_w, expected_w)
            assert_same_bits(reference_v, expected_v)


def test_a_broadcast_gradient(rng):
    w, v, _ = arrays(rng, (40, 50), np.float32)
    expected_w, expected_v = w.copy(), v.copy()
    row = fleeting(rng, 50, np.float32)
    textbook(expected_w, expected_v, np.tile(row, (40, 1)))
    rmsfast.rmsprop_update(w, v, np.broadcast_to(row, (40, 50)))
    assert_same_bits(w, expected_w)
    assert_same_bits(v, expected_v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7])
def test_every_number_of_threads(rng, short_stretches, threads, dtype):
    """One array of every small size, and some whose stretches are cut between and inside cache lines."""
    for n in [*range(1, 70), 1000, 10_001]:
        w, v, g = arrays(rng, n, dtype)
        w = offset_array(w, n * w.itemsize % 64)
        expected_w, expected_v = w.copy(), v.copy()
        textbook(expected_w, expected_v, g)
        rmsfast.rmsprop_update(w, v, g, num_threads=threads)
        assert_same_bits(w, expected_w)
        assert_same_bits(v, expected_v)


@pytest.mark.thread_unsafe(reason="changes the constants by which teams are formed")
def test_threads_in_large_steps(rng):
    """Each of four threads has tens of thousands of elements."""
    w, v, g = arrays(rng, 300_000, np.float32)
    expected_w, expected_v = w.copy(), v.copy()
    textbook(expected_w, expected_v, g)
    old = _tune()
    for threads in range(1, 5):
        _tune(forced=True, cores=4)
        if rmsfast.config()["openmp"]:
            assert _team_size(w.nbytes, threads) == threads
        actual_w, actual_v = w.copy(), v.copy()
        rmsfast.rmsprop_update(actual_w, actual_v, g, num_threads=threads)
        assert_same_bits(actual_w, expected_w)
        assert_same_bits(actual_v, expected_v)
    _tune(**old)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_many_arrays_many_steps(rng, short_stretches, threads):
    """Sizes from nothing to much, both dtypes, both orders, some gradients absent, for hundreds of steps."""
    shapes = [(), (0,), (1,), (5,), (64,), (1000,), (3, 0, 2), (30, 40), (1,), (17, 3), (2, 3, 4), (513,)]
    params = [np.asarray(fleeting(rng, shape, DTYPES[i % 2]), order="CF"[i % 3 == 0]) for i, shape in enumerate(shapes)]
    expected = [w.reshape(-1).copy() for w in params]
    averages = [np.zeros_like(w) for w in expected]
    opt = rmsfast.RMSProp(params, lr=0.01, beta=0.95, eps=1e-6, num_threads=threads)
    for step in range(300):
        grads = [fleeting(rng, w.shape, w.dtype) if (step + i) % 5 else None for i, w in enumerate(params)]
        opt.step(grads)
        for w, v, g in zip(expected, averages, grads, strict=True):
            if g is not None:
                textbook(w, v, g.reshape(-1), 0.01, 0.95, 1e-6)
    for i, w in enumerate(params):
        assert_same_bits(w.reshape(-1), expected[i])
        assert_same_bits(opt.state[i]["square_avg"].reshape(-1), averages[i])


def test_the_line_is_cut_anywhere(rng, short_stretches):
    """Lists of arrays of random sizes on random teams: no element is left out, none is updated twice."""
    for _ in range(400):
        dtypes = rng.choice(DTYPES, rng.integers(1, 12))
        params = [offset_array(fleeting(rng, rng.integers(0, 90), t), 8 * rng.integers(8)) for t in dtypes]
        grads = [fleeting(rng, w.shape, w.dtype) if rng.random() < 0.9 else None for w in params]
        expected = [w.copy() for w in params]
        for w, g in zip(expected, grads, strict=True):
            if g is not None:
                textbook(w, np.zeros_like(w), g)
        rmsfast.RMSProp(params, num_threads=int(rng.integers(2, 6))).step(grads)
        for w, e in zip(params, expected, strict=True):
            assert_same_bits(w, e)


@st.composite
def one_step(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    elements = st.floats(width=np.dtype(dtype).itemsize * 8, allow_subnormal=True)
    w, v, g = (draw(hnp.arrays(dtype, shape, elements=elements)) for _ in range(3))
    order = draw(st.sampled_from("CF"))
    grad_order = draw(st.permutations(range(g.ndim)))
    g = g.transpose(grad_order).copy().transpose(np.argsort(grad_order)) if g.ndim else g
    numbers = dict(
        lr=draw(st.floats(0, 10)),
        beta=draw(st.floats(0, 1)),
        eps=draw(st.floats(0, 1)),
        num_threads=draw(st.integers(1, 4)),
    )
    return np.asarray(w, order=order), np.asarray(v, order=order), g, numbers


@pytest.mark.thread_unsafe(reason="changes the constants by which teams are formed")
@given(one_step())
@settings(max_examples=300, deadline=None)
def test_any_step_has_the_bits_of_the_reference(step):
    w, v, g, numbers = step
    expected_w, expected_v = w.copy(order="K"), v.copy(order="K")
    old = _tune(**SHORT_STRETCHES)
    try:
        rmsfast.reference.rmsprop_update(expected_w, expected_v, g, **numbers)
        rmsfast.rmsprop_update(w, v, g, **numbers)
    finally:
        _tune(**old)
    assert_same_bits(w, expected_w)
    assert_same_bits(v, expected_v)


GLIBC_X86 = sys.platform.startswith("linux") and os.uname().machine == "x86_64"


class Mode:
    """The floating-point mode of this thread, by glibc's functions for x86-64."""

    def __init__(self):
        self.libm = ctypes.CDLL(ctypes.util.find_library("m"))

    def get(self):
        environment = ctypes.create_string_buffer(32)
        assert self.libm.fegetenv(environment) == 0
        return environment

    def set(self, mxcsr):
        environment = self.get()
        ctypes.c_uint32.from_buffer(environment, 28).value = mxcsr
        assert self.libm.fesetenv(environment) == 0

    def mxcsr(self):
        """Without the flags for what has happened, which are no mode."""
        return ctypes.c_uint32.from_buffer(self.get(), 28).value & ~0x3F


@pytest.mark.skipif(not GLIBC_X86, reason="sets the mode through glibc's functions on x86-64")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("beta", [0.9, 0.3, 0.05])  # of these, 1 - 0.9 alone is the same in every mode
def test_the_callers_floating_point_mode(rng, short_stretches, beta, dtype, threads):
    """Rounding upwards, with subnormals flushed: our bits stay, and so does the caller's mode."""
    w, v, g = (every_kind_of_number(rng, 5000, dtype) for _ in range(3))
    expected_w, expected_v = w.copy(), v.copy()
    textbook(expected_w, expected_v, g, beta=beta)
    again_w, again_v = w.copy(), v.copy()
    opt = rmsfast.RMSProp(again_w, beta=beta, num_threads=threads)
    opt.load_state_dict({**opt.state_dict(), "state": {0: {"step": 0, "square_avg": again_v}}})
    mode = Mode()
    default = mode.mxcsr()
    try:
        mode.set(0x1F80 | 0x4000 | 0x8040)  # exceptions masked, round up, flush to zero, treat subnormals as zeros
        changed = mode.mxcsr()
        rmsfast.rmsprop_update(w, v, g, beta=beta, num_threads=threads)
        opt.step(g)
        after = mode.mxcsr()
    finally:
        mode.set(default)
    assert_same_bits(w, expected_w)
    assert_same_bits(v, expected_v)
    assert_same_bits(again_w, expected_w)
    assert_same_bits(opt.state[0]["square_avg"], expected_v)
    assert after == changed != default


@pytest.mark.skipif(not GLIBC_X86, reason="sets the mode through glibc's functions on x86-64")
@pytest.mark.parametrize("threads", [1, 2])
def test_norms_corrections_and_sums_in_the_callers_floating_point_mode(rng, short_stretches, threads):
    """What is formed once for a step, in double, and the sums of rows that repeat, are as in the default mode."""
    settings = dict(clip_global_norm=0.3, bias_correction=True, beta=0.3, weight_decay=0.1, centered=True)
    results = []
    mode = Mode()
    default = mode.mxcsr()
    for mxcsr in default, 0x1F80 | 0x4000 | 0x8040:
        rng = np.random.default_rng(0)
        params = [fleeting(rng, (50, 60), np.float32), fleeting(rng, 700, np.float64)]
        rows = rmsfast.Rows(rng.integers(0, 50, 200), fleeting(rng, (200, 60), np.float32))
        grads = [rows, fleeting(rng, 700, np.float64)]
        opt = rmsfast.RMSProp(params, **settings, num_threads=threads)
        try:
            mode.set(mxcsr)
            for _ in range(3):
                opt.step(grads, grad_scale=0.7)
        finally:
            mode.set(default)
        results.append(params)
    for actual, expected in zip(*results, strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.skipif(not GLIBC_X86, reason="sets the mode through glibc's functions on x86-64")
def test_the_floating_point_mode_of_worker_threads():
    """In a process that flushes subnormals before the team is started, so that its threads inherit that."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, rmsfast
from rmsfast._core.threads import _team_size, _tune
from test_kernel import SHORT_STRETCHES, Mode, every_kind_of_number, textbook, assert_same_bits
rng = np.random.default_rng(0)
w, v, g = (every_kind_of_number(rng, 100_000, np.float32) for _ in range(3))
expected_w, expected_v = w.copy(), v.copy()
textbook(expected_w, expected_v, g)
_tune(**SHORT_STRETCHES)
Mode().set(0x1F80 | 0x8040)
rmsfast.rmsprop_update(w, v, g, num_threads=4)
Mode().set(0x1F80)
assert_same_bits(w, expected_w)
assert_same_bits(v, expected_v)
"""
    subprocess.run([sys.executable, "-P", "-c", program], check=True)


def roots_of(isa):
    return ["divider"] if isa == "baseline" else ["divider", "fma", "mixed"]


@pytest.mark.thread_unsafe(reason="runs all other tests once more for each of the threads")
@pytest.mark.parametrize("isa, root", [(isa, root) for isa in rmsfast.config()["isas"] for root in roots_of(isa)])
def test_every_instruction_set(isa, root):
    """Run the rest of this file, and the file of variants, under each instruction set and each root of this machine."""
    options = ["-p", "no:cacheprovider", "-k", "not every_instruction_set"]
    files = [__file__, str(Path(__file__).with_name("test_variants.py"))]
    command = [sys.executable, "-P", "-m", "pytest", *options, *files]
    environment = {**os.environ, "RMSFAST_ISA": isa, "RMSFAST_ROOT": root}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert f", {isa}, {root}, " in result.stdout, "the header names both"


@pytest.mark.skipif("RMSFAST_ISA" in os.environ, reason="looks at the choice made without it")
def test_the_widest_instruction_set_is_chosen():
    assert rmsfast.config()["isa"] == rmsfast.config()["isas"][-1]


def test_an_unknown_instruction_set():
    command = [sys.executable, "-P", "-c", "import rmsfast"]
    result = subprocess.run(command, env={**os.environ, "RMSFAST_ISA": "avx1024"}, capture_output=True, text=True)
    assert result.returncode != 0
    assert "ImportError: RMSFAST_ISA: 'avx1024', expected one" in result.stderr
    assert all(isa in result.stderr for isa in rmsfast.config()["isas"])


@pytest.mark.parametrize("isa", rmsfast.config()["isas"])
def test_an_unknown_root(isa):
    command = [sys.executable, "-P", "-c", "import rmsfast"]
    environment = {**os.environ, "RMSFAST_ISA": isa, "RMSFAST_ROOT": "square"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    expected = f"ImportError: RMSFAST_ROOT: 'square', expected one that {isa} has here: {', '.join(roots_of(isa))}\n"
    assert result.stderr.endswith(expected)
