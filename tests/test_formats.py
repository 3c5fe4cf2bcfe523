"""Numbers in fewer bytes: in every format the bits of the reference, rounding without bias, and state that goes on."""

import copy
import os
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import CLASSES, assert_same_bits, assert_says_all, every_kind_of_number, fleeting, misaligned
from test_kernel import GLIBC_X86, Mode
from test_variants import SWITCHES, assert_same_run, copy_of, merged, pairwise_cover, values_of

import rmsfast
from rmsfast import formats
from rmsfast._core.formats import numbers_of, store_in

FLOAT16, BFLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
HALVES = [FLOAT16, BFLOAT16]
STATES = [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "uint8"}]
KEPT = [{}, {"rounding": "stochastic", "seed": 7}, {"master_weights": True}]
FORMATS = [(FLOAT32, state) for state in STATES]
FORMATS += [(dtype, state | kept) for dtype, state, kept in product(HALVES, STATES, KEPT)]
NAMES = [" ".join(map(str, [dtype, *settings.values()])) for dtype, settings in FORMATS]

every_format = pytest.mark.parametrize(("dtype", "settings"), FORMATS, ids=NAMES)
ALL = {"momentum": 0.9, "centered": True, "ema_decay": 0.9, "lr": 0.1}  # with which there is every kind of state


def some(rng, shape, dtype, order="C"):
    """Random numbers over many magnitudes."""
    return np.asarray(np.array(fleeting(rng, shape, np.float32)).astype(dtype), order=order)


def other(dtype, k=0):
    """The dtype that gradients have where it is not the parameter's; of a float32 parameter, there are two."""
    return FLOAT32 if dtype in HALVES else HALVES[k % 2]


def raw(array):
    """The numbers of an array as `rmsfast.formats` has them: flat, bfloat16 as 16 bits."""
    flat = array.reshape(-1, order="A")
    return flat.view(np.uint16) if flat.dtype == BFLOAT16 else flat


def numbers(opt, name, key=0):
    """The float32 numbers of a state, in memory order."""
    entry = opt.state[key]
    kind = {"uint8": "unsigned8" if name == "square_avg" else "signed8", "float32": "float32"}
    kind = kind.get(entry[name].dtype.name, "bfloat16")
    stored = raw(entry[name])
    return stored if kind == "float32" else formats.load(kind, stored, entry.get(f"{name}_scale"))


def run(opt, gradients):
    for g in gradients:
        opt.step(g.copy(order="K"))


# ---- The bits of the reference ----

FORMAT_SWITCHES = [
    *SWITCHES,
    [{"w": dtype, **settings} for dtype, settings in FORMATS],
    [{"own": True}, {"own": False}],  # whether gradients have the parameter's dtype
    [{"table": None}, {"table": ((20, 128), "C")}, {"table": ((20, 41), "C")}, {"table": ((20, 41), "F")}],
]
SHAPES = [(), (0, 3), (1,), (63,), (64,), (65,), (1000,), (30, 41), (3, 4, 5)]


def compare(rng, positions, threads):
    """Three steps of the kernel and of the reference on arrays of many shapes, orders and layouts."""
    settings, arguments = merged(positions)
    dtype, own, table = (settings.pop(name) for name in ("w", "own", "table"))
    params = [some(rng, shape, dtype, "CF"[i % 2]) for i, shape in enumerate(SHAPES)]
    params += [] if table is None else [some(rng, table[0], dtype, table[1])]
    twins = [w.copy(order="K") for w in params]
    opt = rmsfast.RMSProp(params, **settings, num_threads=threads)
    twin = rmsfast.reference.RMSProp(twins, **settings)
    for step in range(3):
        grads = []
        for i, w in enumerate(params):
            of = dtype if own else other(dtype, i + step)
            g = some(rng, w.shape, of)
            if i == len(SHAPES):  # of rows, some of them twice
                g = some(rng, (12, *w.shape[1:]), of)
                g = rmsfast.Rows(rng.integers(0, 20, 12), misaligned(g) if step else g)
            elif step == 1 and w.ndim > 0:
                g = np.repeat(g, 2, axis=0)[::2]
            elif step == 2:
                g = np.asarray(g, order="F")
            grads.append(g if (i + step) % 6 else None)
        copies = [copy_of(g) for g in grads]
        opt.step(grads, **arguments)
        twin.step(copies, **arguments)
        for g, c in zip(grads, copies, strict=True):
            if g is not None:
                assert_same_bits(values_of(g), values_of(c))
                assert (values_of(g) == 0).all() or not arguments.get("zero_grads")
    assert_same_run(opt, params, twin, twins)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_format_with_every_setting(rng, short_stretches, threads):
    for positions in pairwise_cover(FORMAT_SWITCHES):
        compare(rng, positions, threads)


def anything(rng, shape, dtype):
    """Every kind of number, infinite ones, NaNs and subnormal ones too; of integers, every one."""
    n = int(np.prod(shape))
    if dtype == FLOAT32:
        return every_kind_of_number(rng, n, np.float32).reshape(shape)
    bits = rng.integers(0, 256, n * dtype.itemsize, np.uint8).view(dtype)
    if dtype in HALVES:
        with np.errstate(all="ignore"):
            bits = np.where(rng.random(n) < 0.5, bits, every_kind_of_number(rng, n, np.float32).astype(dtype))
    return bits.reshape(shape)


@every_format
@pytest.mark.parametrize("variant", [{}, {"momentum": 0.5}, {**ALL, "nesterov": True, "weight_decay": 0.1}])
def test_every_kind_of_number(rng, dtype, settings, variant):
    """In parameters, gradients, masters and state; of 8 bits, each code with each scale."""
    params = [anything(rng, (n,), dtype) for n in (4000, 300)]
    twins = [w.copy() for w in params]
    opt, twin = (cls(each, **settings, **variant) for cls, each in zip(CLASSES, (params, twins), strict=True))
    state = opt.state_dict()
    for entry in state["state"].values():
        for name in list(entry)[1:]:
            entry[name] = anything(rng, entry[name].shape, entry[name].dtype)
    for each in opt, twin:
        each.load_state_dict(state)
    for step in range(2):
        grads = [anything(rng, w.shape, other(dtype, step) if step else dtype) for w in params]
        opt.step(grads)
        twin.step(grads)
    assert_same_run(opt, params, twin, twins)


def test_groups_of_every_format(rng, short_stretches):
    """All formats in one step, which clips by the norm of all gradients together."""
    layouts = [*FORMATS, (np.dtype(np.float64), {}), (np.dtype(np.complex64), {})]
    params = [some(rng, (5, 67), dtype, "CF"[i % 2]) for i, (dtype, _) in enumerate(layouts)]
    twins = [w.copy(order="K") for w in params]
    opt, twin = (
        cls([{"params": w, **layout[1]} for w, layout in zip(each, layouts, strict=True)], clip_global_norm=2.0, **ALL)
        for cls, each in zip(CLASSES, (params, twins), strict=True)
    )
    for step in range(3):
        grads = [some(rng, w.shape, w.dtype) if (i + step) % 5 else None for i, w in enumerate(params)]
        opt.step(grads)
        twin.step(grads)
    assert_same_run(opt, params, twin, twins)


@every_format
@pytest.mark.parametrize("cls", CLASSES)
def test_nonfinite_gradients_of_every_format(rng, cls, dtype, settings):
    """They are found in 16 bits as well, and the step changes nothing."""
    w = some(rng, 100, dtype)
    for of in dtype, other(dtype), other(dtype, 1):
        opt = cls(w, **settings, **ALL, nonfinite="raise")
        before = w.copy(), opt.state_dict()
        g = some(rng, 100, of)
        g[[3, 70]] = np.inf, np.nan
        with pytest.raises(FloatingPointError, match="grads: 2 of 100 numbers are infinite or NaN, exp") as caught:
            opt.step(g)
        assert_says_all(caught.value)
        opt.nonfinite = "skip"
        opt.step(g, zero_grads=True)
        assert opt.skipped_steps == 1 and not g.any()
        assert_same_bits(w, before[0])
        for name, array in before[1]["state"][0].items():
            assert_same_bits(opt.state[0][name], array)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_one_array_with_a_gradient_of_16_bits(rng, dtype):
    """`rmsprop_update` brings it in exactly. Arrays of 16 bits are for an optimizer, which has the state for them."""
    g = some(rng, 1000, dtype)
    results = []
    for update in rmsfast.rmsprop_update, rmsfast.reference.rmsprop_update:
        for gradient in g, g.astype(np.float32):
            w, v = np.ones(1000, np.float32), np.zeros(1000, np.float32)
            update(w, v, gradient)
            results.append((w, v))
        with pytest.raises(TypeError, match=f"w: dtype {dtype}, expected float32, float64, complex64 or") as caught:
            update(g, g.copy(), g.copy())
        assert_says_all(caught.value)
    for w, v in results[1:]:
        assert_same_bits(w, results[0][0])
        assert_same_bits(v, results[0][1])


# ---- Masters ----


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_masters_are_those_of_a_run_in_float32(rng, dtype):
    """With the same gradients, of either dtype; and the parameter is the nearest number that its dtype has."""
    w = some(rng, (30, 41), dtype)
    exact = w.astype(np.float32)
    opt = rmsfast.RMSProp(w, **ALL, master_weights=True)
    twin = rmsfast.RMSProp(exact, **ALL)
    for step in range(50):
        g = some(rng, w.shape, FLOAT32 if step % 2 else dtype)
        opt.step(g)
        twin.step(g)
    assert_same_bits(master_of(opt, w), exact.reshape(-1))
    for name in "square_avg", "grad_avg", "momentum_buffer":
        assert_same_bits(opt.state[0][name], twin.state[0][name])
    nearest, stored = exact.astype(dtype).astype(np.float64), w.astype(np.float64)
    assert (abs(exact - stored) == abs(exact - nearest)).all()
    assert (stored != exact).mean() > 0.9, "the numbers of the test need a master"


def master_of(opt, w):
    if w.dtype == FLOAT16:
        return formats.load("mastered", raw(w), raw(opt.state[0]["master"]))
    return formats.load("split", raw(w), raw(opt.state[0]["remainder"]))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_parameter_that_the_user_writes_is_the_master(rng, cls, dtype):
    """Zeros, as pruning writes them, are zeros. Other bfloat16 numbers are within half a unit of what was written."""
    w = some(rng, 1000, dtype)
    opt = cls(w, lr=0.1, master_weights=True)
    run(opt, [some(rng, 1000, dtype) for _ in range(3)])
    w[:500], w[500:] = 0, 3
    written = w.astype(np.float32)
    opt.lr = 0.0
    opt.step(some(rng, 1000, dtype))
    master = master_of(opt, w)
    assert (abs(master[:500]) < 1e-38).all()
    if dtype == FLOAT16:
        assert_same_bits(master, written)
    assert_same_bits(w, written.astype(dtype))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_state_without_masters_is_loaded_where_there_are_some(rng, cls, dtype):
    """They begin with the parameter as it is. The other way round, a master has no place, and the message says so."""
    w = some(rng, 100, dtype)
    opt, without = cls(w, lr=0.0, master_weights=True), cls(w.copy(), lr=0.0)
    run(opt, [some(rng, 100, dtype)])
    before, state = without.state_dict(), opt.state_dict()
    opt.load_state_dict(before)
    assert_same_bits(master_of(opt, w), w.astype(np.float32))
    with pytest.raises(ValueError, match="of master weights, expected none: make the optimizer with them") as caught:
        without.load_state_dict(state)
    assert_says_all(caught.value)


# ---- Rounding without bias ----

N = 10**6


def rounded_often(case, x, largest):
    """10⁶ roundings of the number x, which the kernel makes. Where 64 have one scale, one of them is larger."""
    x = np.full(N, x, np.float32)
    x[::64] *= largest
    settings = {"lr": 1.0, "beta": 1.0, "eps": 1.0, "rounding": "stochastic"}
    if case in ("float16", "bfloat16"):
        w = np.zeros(N, dict(zip(["float16", "bfloat16"], HALVES, strict=True))[case])
        rmsfast.RMSProp(w, **settings).step(-x)  # w ← 0 + x / (0 + 1)
        return x, w.astype(np.float64)
    name, state = case.split()
    opt = rmsfast.RMSProp(np.zeros(N, np.float32), beta=0.0, centered=True, state_dtype=state)
    opt.step(x)  # m ← x, v ← x²
    return x * x if name == "square_avg" else x, numbers(opt, name).astype(np.float64)


ROUNDINGS = [
    *product(["float16", "bfloat16"], [1.00001, -1.37, 1.9999, 3.3e-6, 1e-7], [1]),
    *product(["square_avg bfloat16", "grad_avg bfloat16"], [1.00001, 1.37, -1.9999, 3.3e-6], [1]),
    *product(["square_avg uint8", "grad_avg uint8"], [1.001, 1.37, -1.9999, 3.3e-6], [1, 7, 90]),
]


@pytest.mark.parametrize(("case", "x", "largest"), ROUNDINGS)
def test_the_mean_of_many_roundings_is_the_number(case, x, largest):
    expected, found = rounded_often(case, x, largest)
    expected, found = (np.delete(a, slice(None, None, 64)) for a in (expected, found))
    assert len(np.unique(found)) == 2, "the two neighbours"
    assert abs(found.mean() - expected[0].astype(np.float64)) <= 4 * found.std() / len(found) ** 0.5


def random_pairs(n=2**18):
    """Random bits that must have nothing in common, by what they differ in."""
    first = formats.random_bits(0, 0, 1, 0, n + 64)
    yield from ((f"elements {k} apart", first[:n], first[k : k + n]) for k in (1, 2, 3, 4, 16, 32, 64))
    yield "the halves of words", first[0:n:2], first[1:n:2]
    for what, key in {
        "seeds": (1, 0, 1, 0),
        "seeds far apart": (2**62, 0, 1, 0),
        "parameters": (0, 1, 1, 0),
        "steps": (0, 0, 2, 0),
        "streams": (0, 0, 1, 1),
        "parameters and steps": (0, 1, 0, 0),
        "seeds and parameters": (1, 2**20, 1, 0),
    }.items():
        yield what, first[:n], formats.random_bits(*key, n)


@pytest.mark.parametrize(("first", "second"), [pytest.param(*p[1:], id=p[0]) for p in random_pairs()])
def test_random_bits_have_nothing_in_common(first, second):
    """Neither the numbers nor any two bits. 256 pairs of bits are looked at, so 5 standard errors are allowed."""
    x, y = (np.unpackbits(a.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1) - 0.5 for a in (first, second))
    allowed = 1 / len(first) ** 0.5
    assert abs(x.mean(axis=0)).max() <= 4 * allowed / 2
    assert abs(np.corrcoef(first, second)[0, 1]) <= 4 * allowed
    assert abs(4 * x.T @ y / len(x)).max() <= 5 * allowed


def test_random_bits_differ_from_each_other_wherever_something_differs(rng):
    """Two parameters, steps or seeds with the same numbers are not rounded alike; the same one always is."""
    g = np.full(1000, 0.3, np.float32)

    def after(steps, index, **settings):
        params = [np.ones(1000, FLOAT16) for _ in range(2)]
        opt = rmsfast.RMSProp(params, rounding="stochastic", beta=1.0, eps=1.0, lr=1e-3, **settings)
        for _ in range(steps):
            opt.step([g, g])
        return params[index].copy()

    base = after(1, 0)
    assert_same_bits(after(1, 0), base)
    for differing in after(1, 1), after(1, 0, seed=1), after(1, 0, seed=2**63 - 1):
        assert 0.2 < (differing != base).mean() < 0.8
    assert len(np.unique(after(2, 0))) == 3, "the second step rounds anew"


# ---- Every pattern ----

KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16}


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_16_bits_comes_back(kind):
    """All 2¹⁶: loaded exactly, and stored as they were, whether by nearest rounding or by random bits."""
    patterns = np.arange(2**16, dtype=np.uint16).view(KINDS[kind])
    loaded = numbers_of(kind, patterns)
    assert_same_bits(loaded, patterns.astype(np.float32))
    assert_same_bits(formats.load(kind, raw(patterns)), loaded)
    stored = np.zeros_like(patterns)
    store_in(kind, loaded, stored)
    assert_same_bits(stored, patterns)
    w = patterns.copy()
    rmsfast.RMSProp(w, lr=0.0, rounding="stochastic").step(np.ones(2**16, np.float32))
    assert_same_bits(w, patterns)


def every_exponent(rng, each=96):
    """Both signs, all exponents: the first, last and middle mantissas, those beside ties of each format, and others."""
    ends = [(1 << k) + d for k in (12, 13, 15, 16, 18, 19, 20, 22, 23) for d in (-1, 0, 1)]
    ties = [(odd << k) + d for k in (12, 15, 18) for odd in (1, 3) for d in (-1, 0, 1)]
    fixed = sorted({0, *(m for m in ends + ties if m < 2**23)})
    mantissas = np.concatenate([np.broadcast_to(fixed, (512, len(fixed))), rng.integers(0, 2**23, (512, each))], axis=1)
    bits = (np.arange(512, dtype=np.uint32)[:, None] << np.uint32(23)) | mantissas.astype(np.uint32)
    return bits.reshape(-1).view(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_every_exponent_are_rounded_as_numpy_rounds(rng, kind):
    x = every_exponent(rng)
    stored, specified = np.zeros(len(x), KINDS[kind]), np.zeros(len(x), KINDS[kind])
    store_in(kind, x, stored)
    formats.store(kind, x, raw(specified))
    with np.errstate(all="ignore"):
        assert_same_bits(stored, x.astype(KINDS[kind]))
    assert_same_bits(specified, stored)


@pytest.mark.skipif(not GLIBC_X86, reason="sets the mode through glibc's functions on x86-64")
@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_floating_point_mode_is_not_that_of_conversions(rng, kind):
    """As in steps: here it rounds upwards and flushes subnormal numbers."""
    x = every_exponent(rng)
    expected, found = np.zeros(len(x), KINDS[kind]), [np.zeros(1, KINDS[kind]) for _ in x[::97]]
    store_in(kind, x, expected)
    mode = Mode()
    default = mode.mxcsr()
    try:
        mode.set(0x1F80 | 0x4000 | 0x8040)
        for number, stored in zip(x[::97], found, strict=True):  # one at a time: vectors have another instruction
            store_in(kind, np.array([number]), stored)
    finally:
        mode.set(default)
    assert_same_bits(np.concatenate(found), expected[::97])


@pytest.mark.parametrize("kind", ["unsigned8", "signed8"])
def test_blocks_of_every_exponent(rng, kind):
    """Numbers that are near each other, and numbers of all sizes together: the kernel's loops as the specification."""
    near = every_exponent(rng, 128 - 36)
    for x in near, rng.permutation(near), near[: 64 * 7 + 5]:
        blocks = -(-len(x) // 64)
        found, expected = ((np.zeros(len(x), np.uint8), np.zeros(blocks, np.uint8)) for _ in range(2))
        store_in(kind, x, *found)
        formats.store(kind, x, *expected)
        assert_same_bits(found[0], expected[0])
        assert_same_bits(found[1], expected[1])
        assert_same_bits(numbers_of(kind, *found), formats.load(kind, *expected))


@pytest.mark.parametrize("kind", ["unsigned8", "signed8"])
def test_every_code_with_every_scale(kind):
    codes, scales = np.tile(np.arange(256, dtype=np.uint8), 256), np.repeat(np.arange(256, dtype=np.uint8), 4)
    loaded = numbers_of(kind, codes, scales)
    with np.errstate(invalid="ignore"):  # the scale 255, which no step makes, says NaNs
        assert_same_bits(loaded, formats.load(kind, codes, scales))
    by_scale = loaded.reshape(256, 256)[:255]
    if kind == "unsigned8":
        assert (by_scale > 0).all(), "the root divides"
        assert (np.diff(by_scale) > 0).all()
        assert np.isfinite(by_scale).all()
    else:
        assert (np.diff(by_scale[:, :128]) > 0).all()
        assert_same_bits(by_scale[:, 128:], -by_scale[:, :128])
        assert np.isfinite(by_scale).all()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["square_avg", "grad_avg"])
def test_every_code_comes_back(cls, name):
    """A step that changes no number changes no code, though it rounds by random bits."""
    kind = "unsigned8" if name == "square_avg" else "signed8"
    # In each block the code that says its scale, and 63 others.
    top = 255 if kind == "unsigned8" else 127
    codes = np.concatenate([np.append(np.arange(256, dtype=np.uint8)[k : k + 63], top) for k in (0, 63, 126, 189, 193)])
    scales = np.repeat(np.arange(26, 255, dtype=np.uint8), 5)
    opt = cls(np.zeros(64 * len(scales), np.float32), beta=1.0, centered=True, state_dtype="uint8")
    state = opt.state_dict()
    state["state"][0] |= {name: np.tile(codes.astype(np.uint8), 229), f"{name}_scale": scales}
    opt.load_state_dict(state)
    opt.step(np.zeros(64 * len(scales), np.float32))
    expected = state["state"][0][name]
    if kind == "signed8":
        expected = np.where(expected == 128, 0, expected).astype(np.uint8)  # −0 + 0 is 0
    assert_same_bits(opt.state[0][name], expected)
    assert_same_bits(opt.state[0][f"{name}_scale"], scales)


# ---- State that goes on ----


@every_format
@pytest.mark.parametrize("cls", CLASSES)
def test_a_run_that_is_resumed_has_the_same_bits(rng, tmp_path, cls, dtype, settings):
    """From a state dict, a file, a deep copy and a pickle."""
    w = some(rng, (7, 41), dtype, order="F")
    opt = cls({"w": w}, **settings, **ALL)
    gradients = [{"w": some(rng, (7, 41), dtype)} for _ in range(5)]
    for g in gradients[:3]:
        opt.step(g)
    opt.save(tmp_path / "run.npz")
    resumed = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    for w_at_first in np.zeros_like(w), w.copy(order="K"):
        resumed.append(cls({"w": w_at_first}, **settings, **ALL))
    resumed[-2].load(tmp_path / "run.npz")
    resumed[-1].load_state_dict(opt.state_dict())
    for each in [opt, *resumed]:
        for g in gradients[3:]:
            each.step(g)
    for each in resumed:
        assert_same_run(each, [each.param_groups[0]["params"][0]], opt, [w])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [FLOAT32, *HALVES], ids=str)
@pytest.mark.parametrize(("here", "there"), list(product(STATES, STATES)))
@pytest.mark.parametrize("order", "CF")
def test_state_of_one_format_is_loaded_into_another(rng, cls, dtype, here, there, order):
    """Its numbers are rounded to nearest; into as many bits or more they are exact."""
    w = some(rng, (5, 67), dtype, order)
    opt, other_opt = cls(w, **ALL, **here), cls(w.copy(order="K"), **ALL, **there)
    run(opt, [some(rng, w.shape, dtype) for _ in range(3)])
    other_opt.load_state_dict(opt.state_dict())
    assert other_opt.state[0]["step"] == 3
    for name in "square_avg", "grad_avg", "momentum_buffer":
        x, found = numbers(opt, name), numbers(other_opt, name)
        kind = {"bfloat16": "bfloat16", "uint8": "unsigned8" if name == "square_avg" else "signed8"}
        kind = kind.get(there.get("state_dtype"))
        if kind is None or here == there:
            assert_same_bits(found, x)
            continue
        data, scale = np.zeros(w.size, np.uint8 if kind[-1] == "8" else np.uint16), np.zeros(-(-w.size // 64), np.uint8)
        formats.store(kind, x, data, scale)
        assert_same_bits(found, formats.load(kind, data, scale))
    run(other_opt, [some(rng, w.shape, dtype)])


def test_a_file_of_one_format_is_loaded_into_another(rng, tmp_path):
    w = some(rng, 100, FLOAT32)
    opt = rmsfast.RMSProp(w, **ALL)
    opt.step(rng.uniform(1, 2, 100).astype(np.float32))
    opt.save(tmp_path / "float32.npz")
    fresh = np.zeros(100, np.float32)
    other_opt = rmsfast.RMSProp(fresh, **ALL, state_dtype="uint8")
    other_opt.load(tmp_path / "float32.npz")
    assert_same_bits(fresh, w)
    assert other_opt.state[0]["square_avg"].dtype == np.uint8
    assert numbers(other_opt, "square_avg") == pytest.approx(numbers(opt, "square_avg"), rel=1 / 32)


@pytest.mark.parametrize("cls", CLASSES)
@every_format
def test_state_that_a_new_setting_needs_begins_with_zeros(rng, cls, dtype, settings):
    w = some(rng, 70, dtype)
    opt = cls(w, **settings)
    opt.step(some(rng, 70, dtype))
    opt.momentum = 0.5
    state = opt.state_dict()
    for entry in state["state"][0]["momentum_buffer"], state["state"][0].get("momentum_buffer_scale", np.zeros(1)):
        assert not entry.any()
    opt.step(some(rng, 70, dtype))
    assert numbers(opt, "momentum_buffer").any()


@pytest.mark.parametrize("start", [0.0, 1.0, 0.3, 1e-30, 1e300])
@pytest.mark.parametrize("cls", CLASSES)
@every_format
def test_where_state_starts(cls, dtype, settings, start):
    opt = cls(np.ones(70, dtype), **settings, initial_square_avg=start)
    found = numbers(opt, "square_avg")
    if "state_dtype" not in settings:
        with np.errstate(over="ignore"):
            assert_same_bits(found, np.full(70, start, np.float32))
    elif start == 0:
        assert (found < 1e-37).all()
    elif start < 1e38:
        assert found == pytest.approx(start, rel=1 / 32)


@pytest.mark.parametrize(
    ("dtype", "settings", "expected"),
    [
        (FLOAT32, {}, 4),
        (FLOAT32, {"state_dtype": "bfloat16"}, 2),
        (FLOAT32, {"state_dtype": "uint8"}, 1 + 1 / 64),
        (FLOAT32, {"state_dtype": "uint8", "momentum": 0.9, "centered": True}, 3 + 3 / 64),
        (BFLOAT16, {}, 4),
        (BFLOAT16, {"state_dtype": "bfloat16"}, 2),
        (BFLOAT16, {"state_dtype": "bfloat16", "master_weights": True}, 4),
        (BFLOAT16, {"state_dtype": "uint8", "master_weights": True}, 3 + 1 / 64),
        (FLOAT16, {"state_dtype": "uint8"}, 1 + 1 / 64),
        (FLOAT16, {"master_weights": True}, 8),
    ],
)
def test_bytes_of_state_for_each_element(dtype, settings, expected):
    opt = rmsfast.RMSProp(np.zeros((64, 100), dtype), **settings)
    opt.step(np.ones((64, 100), dtype))
    assert sum(a.nbytes for name, a in opt.state[0].items() if name != "step") == 6400 * expected


# ---- Refusals ----

REFUSED = [
    ((np.float32, {"master_weights": True}), ValueError, "master_weights: True with float32 parameters, expected"),
    ((np.float64, {"rounding": "stochastic"}), ValueError, "rounding: 'stochastic' with float64 parameters, expected"),
    ((np.float64, {"state_dtype": "uint8"}), ValueError, "params: float64 with state_dtype='uint8', expected float32"),
    (
        (np.complex64, {"state_dtype": "bfloat16"}),
        ValueError,
        "params: complex64 with state_dtype='bfloat16', expected",
    ),
    (
        (np.float16, {"master_weights": True, "rounding": "stochastic"}),
        ValueError,
        "rounding: 'stochastic' with master_weights, expected 'nearest'",
    ),
    ((np.float16, {"state_dtype": "float16"}), ValueError, "state_dtype: 'float16', expected None or 'bfloat16' or"),
    ((np.float16, {"state_dtype": np.float16}), TypeError, "state_dtype: <class 'numpy.float16'>, expected None or"),
    ((np.float16, {"state_dtype": 8}), TypeError, "state_dtype: 8, expected None or 'bfloat16' or 'uint8'"),
    ((np.float16, {"rounding": "up"}), ValueError, "rounding: 'up', expected 'nearest' or 'stochastic'"),
    ((np.float16, {"master_weights": 1}), TypeError, "master_weights: 1, expected False or True"),
    ((np.float16, {"seed": -1}), ValueError, "seed: -1, expected an integer from 0 to 2**63 - 1"),
    ((np.float16, {"seed": 2**63}), ValueError, "seed: 9223372036854775808, expected an integer from 0 to 2**63 - 1"),
    ((np.float16, {"seed": 1.5}), TypeError, "seed: 1.5, expected an integer from 0 to 2**63 - 1"),
    ((np.float16, {"seed": True}), TypeError, "seed: True, expected an integer from 0 to 2**63 - 1"),
    ((">f2", {}), TypeError, "params: dtype >f2, expected float32, float64, complex64, complex128, float16 or"),
    ((ml_dtypes.float8_e4m3fn, {}), TypeError, "params: dtype float8_e4m3fn, expected float32"),
    ((np.uint16, {}), TypeError, "params: dtype uint16, expected float32"),
]


@pytest.mark.parametrize(("given", "error", "message"), REFUSED)
def test_formats_that_make_no_sense(given, error, message):
    with pytest.raises(error) as caught:
        rmsfast.RMSProp(np.ones(3, given[0]), **given[1])
    assert str(caught.value).startswith(message)
    assert_says_all(caught.value)


@pytest.mark.parametrize("name", ["bfloat16", "uint8"])
def test_a_dtype_is_taken_for_its_name(name):
    for given in name, np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name), getattr(ml_dtypes, name, np.uint8):
        assert rmsfast.RMSProp(np.ones(3, np.float32), state_dtype=given).state_dtype == name


@pytest.mark.parametrize(
    ("dtype", "of"), [(FLOAT16, BFLOAT16), (BFLOAT16, FLOAT16), (FLOAT16, np.float64), (np.float64, FLOAT16)]
)
@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_of_a_dtype_that_does_not_fit(cls, dtype, of):
    w = np.ones(3, dtype)
    opt = cls(w)
    for g in np.ones(3, of), rmsfast.Rows([0], np.ones(1, of)):
        with pytest.raises(TypeError, match=rf"grads.*: dtype {np.dtype(of)}, expected {np.dtype(dtype)}") as caught:
            opt.step(g)
        assert_says_all(caught.value)
    assert (w == 1).all() and opt.state[0]["step"] == 0


@pytest.mark.parametrize("setting", [{"state_dtype": "uint8"}, {"master_weights": True}])
def test_formats_stay_as_they_were_made(setting):
    opt = rmsfast.RMSProp(np.ones(3, FLOAT16))
    name = next(iter(setting))
    with pytest.raises(ValueError, match=f"{name}: cannot change once the group is made, expected") as caught:
        opt.param_groups[0].update(setting)
    assert_says_all(caught.value)
    opt.param_groups[0].update({"rounding": "stochastic", "seed": 3})
    opt.step(np.ones(3, FLOAT16))


def damaged_states():
    good = np.zeros(70, np.uint8)
    yield "no scale", {"square_avg": good}, "square_avg_scale"
    yield "short scale", {"square_avg": good, "square_avg_scale": good[:1]}, "square_avg_scale"
    yield "scale of floats", {"square_avg": good, "square_avg_scale": np.zeros(2)}, "square_avg_scale"
    yield "a scale alone", {"square_avg": np.zeros(70, np.float32), "grad_avg_scale": good[:2]}, "grad_avg_scale"
    yield "a scale too many", {"square_avg": np.zeros(70, np.float32), "square_avg_scale": good[:2]}, "square_avg_scale"
    yield "shape", {"square_avg": good[:3], "square_avg_scale": good[:2]}, "square_avg"
    yield "doubles", {"square_avg": np.zeros(70)}, "square_avg"
    yield "integers", {"square_avg": np.zeros(70, np.int8)}, "square_avg"
    yield "half", {"square_avg": np.zeros(70, np.float16)}, "square_avg"
    yield "none", {"square_avg": None}, "square_avg"
    yield "remainder", {"square_avg": np.zeros(70, np.float32), "remainder": np.zeros(70, np.int16)}, "remainder"
    yield "master", {"square_avg": np.zeros(70, np.float32), "master": np.zeros(70, np.float32)}, "master"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("entry", "name"), [pytest.param(*d[1:], id=d[0]) for d in damaged_states()])
def test_damaged_states(rng, state, entry, name):
    opt = rmsfast.RMSProp(some(rng, 70, FLOAT32), **state)
    opt.step(some(rng, 70, FLOAT32))
    before = opt.state_dict()
    with pytest.raises((TypeError, ValueError)) as caught:
        opt.load_state_dict({**before, "state": {0: {"step": 1, **entry}}})
    assert_says_all(caught.value)
    assert f"state[0][{name!r}]" in str(caught.value)
    for key, array in before["state"][0].items():
        assert_same_bits(opt.state[0][key], array)


# ---- Instruction sets ----


def run_under(isa, which):
    """Run those tests of this file, and of that of copies, under an instruction set."""
    options = ["-p", "no:cacheprovider", "-x", "-k", f"{which} and not instruction_set"]
    files = [__file__, str(Path(__file__).with_name("test_mirror.py"))]
    command = [sys.executable, "-P", "-m", "pytest", *options, *files]
    result = subprocess.run(command, env={**os.environ, "RMSFAST_ISA": isa}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert f", {isa}, " in result.stdout, "the header names it"


@pytest.mark.thread_unsafe(reason="runs all other tests once more for each of the threads")
@pytest.mark.parametrize("isa", rmsfast.config()["isas"])
def test_instruction_sets(isa):
    """Every pattern, kind of number and format under each of them."""
    run_under(isa, "every and not setting")


@pytest.mark.slow
@pytest.mark.thread_unsafe(reason="runs all other tests once more for each of the threads")
@pytest.mark.parametrize("isa", rmsfast.config()["isas"])
def test_everything_under_each_instruction_set(isa):
    run_under(isa, "test")


@pytest.mark.parametrize("state_dtype", [None, "uint8"])
def test_codes_are_loaded_into_another_memory_order(state_dtype):
    rng = np.random.default_rng(0)
    g = fleeting(rng, (40, 48), np.float32)
    source = rmsfast.RMSProp(np.asfortranarray(np.ones((40, 48), np.float32)), state_dtype="uint8")
    source.step(g)
    saved = source.state_dict()["state"][0]
    v = formats.load("unsigned8", saved["square_avg"].reshape(-1, order="F"), saved["square_avg_scale"])
    v = v.reshape((40, 48), order="F")
    saved["square_avg_scale"] = np.repeat(saved["square_avg_scale"], 2)[::2]  # with strides of its own
    target = rmsfast.RMSProp(np.ones((40, 48), np.float32), state_dtype=state_dtype)
    target.load_state_dict({"state": {0: saved}, "param_groups": target.state_dict()["param_groups"]})
    loaded = target.state[0]["square_avg"]
    if state_dtype == "uint8":
        loaded = formats.load("unsigned8", loaded.reshape(-1), target.state[0]["square_avg_scale"]).reshape(40, 48)
        assert (abs(loaded - v) <= 2.0**-4 * v + 2.0**-14 * v.max()).all()
    else:
        assert_same_bits(loaded, v)


def test_settings_that_the_parameters_cannot_have_are_not_loaded():
    source = rmsfast.RMSProp(np.ones(3, np.float16), rounding="stochastic").state_dict()
    opt = rmsfast.RMSProp(np.ones(3, np.float32))
    source["state"] = opt.state_dict()["state"]
    with pytest.raises(ValueError, match=r"^param_groups\[0\]: rounding: 'stochastic' with float32 parameters"):
        opt.load_state_dict(source)
    assert opt.rounding == "nearest"
