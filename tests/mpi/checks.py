"""What ranks check together: `mpiexec -n 3 python -m mpi4py tests/mpi/checks.py`, which test_mpi.py starts.

Each function `check_...` runs on all ranks. Rank 0 prints a line of JSON for each: its name, and what went wrong or "".
"""

import contextlib
import copy
import errno
import faulthandler
import json
import pickle
import sys
import tempfile
import traceback
import tracemalloc
from pathlib import Path
from time import perf_counter as clock
from unittest import mock

import ml_dtypes
import numpy as np
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helpers
from helpers import assert_says_all, fleeting

import rmsfast
from rmsfast import Rows, mpi_layout, mpi_norms, schedules
from rmsfast.mpi import ShardedRMSProp
from rmsfast.mpi_bucket import Lane

comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size
bfloat16 = np.dtype(ml_dtypes.bfloat16)

SHAPES = [(7, 5), (), (0, 3), (64, 33), (1,), (1500,), (3, 2, 128), (2300,)]
FORTRAN = (3, 6)  # of these, those in Fortran order

VARIANTS = [
    {},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "lr_in_momentum": True, "centered": True},
    {"centered": True, "bias_correction": True, "eps_inside_sqrt": True, "eps": 1e-2},
    {"weight_decay": 0.01, "maximize": True, "clip_value": 0.7},
    {"weight_decay": 0.01, "decoupled_weight_decay": True, "initial_square_avg": 1.0},
    {"clip_norm": 0.9},
    {"clip_global_norm": 2.5, "momentum": 0.5},
    {"nonfinite": "skip", "beta": 0.0},
    {"nonfinite": "raise", "lr": schedules.cosine(0.1, 10)},
]
FORMATS = [
    (np.float32, {"state_dtype": "bfloat16", "momentum": 0.9, "seed": 3}),
    (np.float32, {"state_dtype": "uint8", "centered": True, "momentum": 0.9}),
    (np.float16, {"master_weights": True, "clip_global_norm": 1.0}),
    (np.float16, {"rounding": "stochastic", "seed": 9}),
    (bfloat16, {"master_weights": True, "state_dtype": "uint8"}),
    (bfloat16, {"rounding": "stochastic", "state_dtype": "bfloat16"}),
    (bfloat16, {"nonfinite": "skip"}),
]


def numbers(rng, shape, dtype, order="C"):
    """Multiples of 1/8 from -4 to 4: their sums and squares are exact in every type, in any order."""
    x = rng.integers(-32, 33, shape) / 8
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.integers(-32, 33, shape) / 8
    return np.asarray(x).astype(dtype).copy(order=order)


def arrays(seed, dtype, make=numbers):
    rng = np.random.default_rng(seed)
    return [make(rng, shape, dtype, "F" if i in FORTRAN else "C") for i, shape in enumerate(SHAPES)]


def any_numbers(rng, shape, dtype, order="C"):
    return np.asarray(fleeting(rng, shape, np.float64)).astype(dtype).copy(order=order)


def gradients(step, dtype, make=numbers, ranks=size):
    """Those of each rank."""
    return [arrays((step, r), dtype, make) for r in range(ranks)]


def summed(each):
    """The sum of the gradients of all ranks, in float32 at least."""
    wide = {np.dtype(np.float16): np.float32, bfloat16: np.float32}
    total = []
    for parts in zip(*each, strict=True):
        sum_of = parts[0].astype(wide.get(parts[0].dtype, parts[0].dtype))
        for g in parts[1:]:
            sum_of = np.asarray(sum_of + g.astype(sum_of.dtype))
        total.append(np.asarray(sum_of))
    return total


def pair(dtype=np.float32, make=numbers, average=True, bucket_bytes=4096, **settings):
    """Parameters and a divided optimizer of them, and the same in one process."""
    ours, plain = arrays(1, dtype, make), arrays(1, dtype, make)
    if rank > 0:
        for w in ours:
            w[...] = 0  # until rank 0's come
    opt = ShardedRMSProp(ours, average=average, bucket_bytes=bucket_bytes, **settings)
    return ours, opt, plain, rmsfast.RMSProp(plain, **settings)


def assert_same_bits(actual, expected):
    """As the helper, which knows no complex numbers."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if actual.dtype.kind == "c":
        helpers.assert_same_bits(actual.imag, expected.imag)
        actual, expected = actual.real, expected.real
    helpers.assert_same_bits(actual, expected)


def assert_same(ours, opt, plain, expected):
    for w, e in zip(ours, plain, strict=True):
        assert_same_bits(w, e)
    actual, wanted = opt.state_dict(), expected.state_dict()
    assert actual["param_groups"] == wanted["param_groups"]
    assert list(actual["state"]) == list(wanted["state"])
    for key, entry in wanted["state"].items():
        assert sorted(actual["state"][key]) == sorted(entry)
        assert actual["state"][key]["step"] == entry["step"]
        for name in entry.keys() - {"step"}:
            assert_same_bits(actual["state"][key][name], entry[name])
            assert actual["state"][key][name].flags.c_contiguous == entry[name].flags.c_contiguous
    assert (opt.steps, opt.skipped_steps) == (expected.steps, expected.skipped_steps)


def assert_all_raise(call, *kinds):
    """All ranks raise the same error. Returns it."""
    caught = None
    try:
        call()
    except Exception as error:
        caught = error
    said = comm.allgather((type(caught).__name__, str(caught)))
    assert caught is not None and len(set(said)) == 1, said
    assert isinstance(caught, kinds), said
    if not isinstance(caught, OSError):
        assert_says_all(caught)
    return caught


# ---- The same result as one process with the mean gradient ----


def check_every_variant_has_the_bits_of_one_process():
    """The gradients add up exactly, so the order in which MPI adds makes no difference."""
    for settings in VARIANTS:
        for dtype in (np.float32, np.float64, np.complex64, np.complex128) if size < 3 else (np.float32, np.complex128):
            ours, opt, plain, expected = pair(dtype, **{"lr": 0.05, **settings})
            for step in range(3):
                each = gradients(step, dtype)
                opt.step(each[rank])
                expected.step(summed(each), grad_scale=1 / size)
            assert_same(ours, opt, plain, expected)


def check_every_format_has_the_bits_of_one_process():
    for dtype, settings in FORMATS:
        ours, opt, plain, expected = pair(dtype, lr=0.05, **settings)
        for step in range(3):
            each = gradients(step, dtype)
            opt.step(each[rank])
            expected.step(summed(each), grad_scale=1 / size)
        assert_same(ours, opt, plain, expected)


def check_a_group_with_parameters_of_16_and_32_bits():
    for settings in ({"master_weights": True}, {"rounding": "stochastic"}):
        ours, plain = ([np.ones(700, np.float16), np.ones(900, np.float32), np.ones(80, bfloat16)] for _ in range(2))
        opt, expected = ShardedRMSProp(ours, **settings), rmsfast.RMSProp(plain, **settings)
        for _ in range(2):
            opt.step([np.full(w.shape, rank + 1, w.dtype) for w in ours])
            total = sum(range(1, size + 1))
            expected.step([np.full(w.shape, total, w.dtype) for w in ours], grad_scale=1 / size)
        assert_same(ours, opt, plain, expected)


def check_two_ranks_have_the_bits_of_one_process_for_any_numbers():
    if size > 2:
        return
    for settings in VARIANTS:
        for dtype in (np.float32, np.float64):
            ours, opt, plain, expected = pair(dtype, any_numbers, **{"lr": 0.05, **settings})
            for step in range(3):
                each = gradients(step, dtype, any_numbers)
                opt.step(each[rank], grad_scale=0.3)
                expected.step(summed(each), grad_scale=0.3 / size)
            assert_same(ours, opt, plain, expected)


def check_more_ranks_are_within_4_units_in_the_last_place():
    """Gradients of one sign, because no error bound holds where sums cancel."""
    for dtype in (np.float32, np.float64):
        for settings in ({}, {"momentum": 0.5}, {"clip_global_norm": 1.0}):
            rng = np.random.default_rng(5)
            ours = [rng.uniform(1, 2, n).astype(dtype) for n in (5000, 3, 401)]
            plain = [w.copy() for w in ours]
            opt = ShardedRMSProp(ours, lr=0.01, bucket_bytes=4096, **settings)
            expected = rmsfast.RMSProp(plain, lr=0.01, **settings)
            for _ in range(3):
                each = [[rng.uniform(0.5, 1, w.shape).astype(dtype) for w in ours] for _ in range(size)]
                opt.step(each[rank])
                expected.step(summed(each), grad_scale=1 / size)
            for w, e in zip(ours, plain, strict=True):
                assert (np.abs(w - e) <= 4 * np.spacing(e)).all()


def check_gradients_in_any_layout():
    """Large parameters are moved where they are, small ones are copied together: here also all of one kind."""
    old = mpi_layout.OWN
    for share in (old, 0, np.inf):
        mpi_layout.OWN = share
        try:
            for dtype in (np.float32, np.float64, np.complex64, bfloat16):
                ours, opt, plain, expected = pair(dtype, lr=0.05, momentum=0.9, clip_norm=20.0)
                for step, layout in enumerate((lambda g: g, turned, strided, read_only)):
                    each = gradients(step, dtype)
                    opt.step([layout(g) for g in each[rank]])
                    expected.step(summed(each), grad_scale=1 / size)
                assert_same(ours, opt, plain, expected)
        finally:
            mpi_layout.OWN = old


def turned(g):
    return np.asarray(g).copy(order="F" if g.flags.c_contiguous else "C")


def strided(g):
    wide = np.zeros((*g.shape, 2), g.dtype)
    wide[..., 0] = g
    return wide[..., 0]


def read_only(g):
    g.flags.writeable = False
    return g


def check_gradients_of_another_precision():
    for dtype, other in ((np.float32, np.float16), (np.float32, bfloat16), (np.float16, np.float32)):
        ours, opt, plain, expected = pair(dtype, lr=0.05)
        each = gradients(0, other)
        opt.step(each[rank])
        expected.step(
            summed(each) if dtype != np.float32 else [g.astype(dtype) for g in summed(each)], grad_scale=1 / size
        )
        assert_same(ours, opt, plain, expected)


def check_the_sum_instead_of_the_average():
    ours, opt, plain, expected = pair(average=False, lr=0.05)
    each = gradients(0, np.float32)
    opt.step(each[rank], grad_scale=0.5)
    expected.step(summed(each), grad_scale=0.5)
    assert_same(ours, opt, plain, expected)


def check_fewer_elements_than_ranks():
    for shapes in ([()], [(1,)], [(2,), (1,)], [(0,), (3,)], [(0,)]):
        for settings in ({}, {"clip_global_norm": 0.1, "momentum": 0.9}, {"state_dtype": "uint8"}):
            ours = [np.full(shape, 2, np.float32) for shape in shapes]
            plain = [w.copy() for w in ours]
            opt, expected = ShardedRMSProp(ours, **settings), rmsfast.RMSProp(plain, **settings)
            for step in range(2):
                opt.step([np.full(w.shape, rank + step, np.float32) for w in ours])
                total = sum(r + step for r in range(size))
                expected.step([np.full(w.shape, total, np.float32) for w in ours], grad_scale=1 / size)
            assert_same(ours, opt, plain, expected)


def check_one_array_names_trees_and_groups():
    w = np.ones((3, 3), np.float32)
    opt = ShardedRMSProp(w, lr=0.5)
    opt.step(np.full((3, 3), rank + 1, np.float32))
    expected = np.ones((3, 3), np.float32)
    rmsfast.RMSProp(expected, lr=0.5).step(np.full((3, 3), sum(range(1, size + 1)), np.float32), grad_scale=1 / size)
    assert_same_bits(w, expected)
    w2 = w.copy()
    other = ShardedRMSProp(w2)
    other.load_state_dict(opt.state_dict())
    for each in (opt, other):
        each.step(w * 0 + 1)
    assert_same_bits(w, w2)
    named = {"W": np.ones((4, 70)), "b": np.ones(3)}
    ShardedRMSProp(named, lr=0.1).step({"b": np.ones(3), "W": np.full((4, 70), 2.0)})
    assert len(np.unique(named["W"])) == 1 and named["W"][0, 0] != 1 and named["b"][0] != 1
    tree = {"layers": [{"W": np.ones((40, 70)), "b": np.zeros(70)}], "out": np.ones(9)}
    groups = [{"params": tree, "momentum": 0.9}, {"params": {"last": np.ones(5)}, "lr": schedules.linear(0.1, 5)}]
    opt, other = ShardedRMSProp(groups), rmsfast.RMSProp(copy.deepcopy(groups))
    for _ in range(2):
        opt.step([{"layers": [{"W": np.ones((40, 70)), "b": None}], "out": np.ones(9)}, {"last": np.full(5, 2.0)}])
        other.step([{"layers": [{"W": np.ones((40, 70)), "b": None}], "out": np.ones(9)}, {"last": np.full(5, 2.0)}])
    assert opt.param_groups[1]["lr"] == schedules.linear(0.1, 5)
    assert_same(opt._plan.params, opt, other._front.plan.params, other)


def check_parameters_without_gradients_stay():
    for settings in ({"momentum": 0.9}, {"clip_global_norm": 1.0, "bias_correction": True}):
        ours, opt, plain, expected = pair(lr=0.05, **settings)
        for step in range(4):
            each = gradients(step, np.float32)
            total = summed(each)
            for i in range(step % 3, len(SHAPES), 3 if step < 3 else 1):
                each[rank][i] = total[i] = None
            opt.step(each[rank])
            expected.step(total, grad_scale=1 / size)
        assert_same(ours, opt, plain, expected)


def check_a_parameter_without_gradient_is_not_copied_from_another_rank():
    w, b = np.ones(5), np.ones(6)
    opt = ShardedRMSProp([w, b])
    b[...] = rank  # somebody's mistake, which a step must not hide
    opt.step([np.ones(5), None])
    assert (b == rank).all()


def check_settings_that_change_and_state_that_begins_later():
    ours, opt, plain, expected = pair(lr=0.05)
    for step, change in enumerate([{}, {"momentum": 0.9}, {"centered": True}, {"momentum": 0.0}, {"lr": 0.01}]):
        for name, value in change.items():
            setattr(opt, name, value)
            setattr(expected, name, value)
        if step == 2:
            assert_same(ours, opt, plain, expected)  # also between the change and the step
        each = gradients(step, np.float32)
        opt.step(each[rank])
        expected.step(summed(each), grad_scale=1 / size)
        assert opt.momentum == expected.momentum
    assert_same(ours, opt, plain, expected)


def check_an_average_begins_with_its_parameters_first_step():
    for first in ([1.0, None], [None, 1.0], [1.0, Rows([0], np.ones(1))]):
        ours, plain = [np.zeros(200), np.zeros(300)], [np.zeros(200), np.zeros(300)]
        opt, expected = (c(w, lr=0.0, ema_decay=0.5) for c, w in ((ShardedRMSProp, ours), (rmsfast.RMSProp, plain)))
        for o, params in ((opt, ours), (expected, plain)):
            o.step(
                [
                    g if g is None or isinstance(g, Rows) else np.ones(w.shape)
                    for w, g in zip(params, first, strict=True)
                ]
            )
            for w in params:
                w[...] = 8  # a user fills an array after the optimizer was made
            o.step([np.ones(w.shape) for w in params])
        assert_same(ours, opt, plain, expected)


def check_zero_grads():
    ours, opt, plain, expected = pair(lr=0.05)
    each = gradients(0, np.float32)
    mine, total = each[rank], summed(each)
    mine[3] = Rows([1, 1], np.ones((2, 33), np.float32))
    opt.step(mine, zero_grads=True)
    total[3] = Rows([1], np.full((1, 33), 2 * size, np.float32))
    expected.step(total, grad_scale=1 / size)
    assert not any((g.values if isinstance(g, Rows) else g).any() for g in mine)
    assert_same(ours, opt, plain, expected)


# ---- Rows ----


def check_rows_have_the_bits_of_one_process():
    rng = np.random.default_rng(8)
    cases = [
        ((40, 6), np.float32, "C"),
        ((40, 6), np.float32, "F"),
        ((500,), np.float64, "C"),
        ((30, 3, 4), np.complex64, "C"),
        ((30, 3, 4), np.complex64, "F"),
        ((9, 700), np.float32, "C"),
        ((25, 64), bfloat16, "C"),
        ((25, 3), np.float16, "C"),
    ]
    for share in (np.inf, 1 / 8) if size < 4 else (1 / 8,):
        old, mpi_layout.OWN = mpi_layout.OWN, share
        try:
            for shape, dtype, order in cases:
                for settings in ({"momentum": 0.9}, {"clip_norm": 3.0}, {"clip_global_norm": 3.0, "nonfinite": "skip"}):
                    start = numbers(rng, shape, dtype, order)
                    ours, plain = [start.copy(order="K"), np.ones(3, dtype)], [start.copy(order="K"), np.ones(3, dtype)]
                    opt = ShardedRMSProp(ours, lr=0.05, bucket_bytes=4096, **settings)
                    expected = rmsfast.RMSProp(plain, lr=0.05, **settings)
                    for step in range(3):
                        each = [rows_of(rng, shape, dtype, 0 if r == step else 5 + r) for r in range(size)]
                        opt.step([each[rank], np.ones(3, dtype)])
                        together = Rows(
                            np.concatenate([g.indices for g in each]), np.concatenate([g.values for g in each])
                        )
                        expected.step([together, np.full(3, size, dtype)], grad_scale=1 / size)
                    assert_same(ours, opt, plain, expected)
        finally:
            mpi_layout.OWN = old


def rows_of(rng, shape, dtype, k):
    return Rows(rng.integers(0, shape[0], k), numbers(rng, (k, *shape[1:]), dtype))


def check_rows_with_state_of_8_bits():
    rng = np.random.default_rng(8)
    ours, plain = [np.ones((50, 64), np.float32)], [np.ones((50, 64), np.float32)]
    opt, expected = (make(w, state_dtype="uint8") for make, w in ((ShardedRMSProp, ours), (rmsfast.RMSProp, plain)))
    for _ in range(2):
        each = [rows_of(rng, (50, 64), np.float32, 4) for _ in range(size)]
        opt.step([each[rank]])
        together = Rows(np.concatenate([g.indices for g in each]), np.concatenate([g.values for g in each]))
        expected.step([together], grad_scale=1 / size)
    assert_same(ours, opt, plain, expected)
    narrow = ShardedRMSProp(np.ones((50, 5), np.float32), state_dtype="uint8")
    error = assert_all_raise(lambda: narrow.step(rows_of(rng, (50, 5), np.float32, 2)), ValueError)
    assert "multiple of 64" in str(error)


def check_rows_are_not_made_dense():
    w = np.zeros((200_000, 16), np.float32)
    opt = ShardedRMSProp(w)
    g = Rows([rank, 5], np.ones((2, 16), np.float32))
    opt.step(g)
    assert peak_of(lambda: opt.step(g)) < w.nbytes / 100


# ---- Norms and nonfinite numbers ----


def check_norms_of_huge_gradients():
    for settings in ({"clip_norm": 1.0}, {"clip_global_norm": 1.0}):
        ours, plain = ([np.ones(3001), np.ones(70, np.float32)] for _ in range(2))
        opt, expected = ShardedRMSProp(ours, **settings), rmsfast.RMSProp(plain, **settings)
        g = [(1 + np.arange(3001) % 7) * 2.0**900, np.full(70, 2, np.float32)]
        opt.step(g)
        expected.step([x * x.dtype.type(size) for x in g], grad_scale=1 / size)
        for w, e in zip(ours, plain, strict=True):
            assert_same_bits(w, e)
    for kind in ("clip_norm", "clip_global_norm"):
        ours, plain = ([np.ones(3001), np.ones(70)] for _ in range(2))
        opt, expected = ShardedRMSProp(ours, **{kind: 1.0}), rmsfast.RMSProp(plain, **{kind: 1.0})
        g = [(1 + np.arange(3001) % 7) * 2.0**900, np.array([np.inf, *np.ones(69)])]
        opt.step(g)
        expected.step([x * size for x in g], grad_scale=1 / size)
        for w, e in zip(ours, plain, strict=True):
            assert_same_bits(w, e)
    w, e = np.ones((50, 4)), np.ones((50, 4))
    opt, expected = ShardedRMSProp(w, clip_norm=1.0), rmsfast.RMSProp(e, clip_norm=1.0)
    opt.step(Rows([3], np.full((1, 4), 2.0**900)))
    expected.step(Rows([3], np.full((1, 4), size * 2.0**900)), grad_scale=1 / size)
    assert_same_bits(w, e)


def check_norms_on_many_ranks():
    """As on more than 8, which add up the sums of divided blocks."""
    old, mpi_norms.EXACT = mpi_norms.EXACT, 1
    try:
        for dtype in (np.float32, np.float64):
            ours, opt, plain, expected = pair(dtype, lr=0.05, clip_global_norm=0.5)
            for step in range(3):
                each = gradients(step, dtype)
                opt.step(each[rank])
                expected.step(summed(each), grad_scale=1 / size)
            for w, e in zip(ours, plain, strict=True):
                assert (np.abs(w - e) <= 4 * np.spacing(np.abs(e)) + np.finfo(dtype).eps).all()
    finally:
        mpi_norms.EXACT = old


def check_nonfinite_numbers_on_one_rank():
    for bad in (np.nan, np.inf):
        for kind in ("skip", "raise", "propagate"):
            ours, opt, plain, expected = pair(lr=0.05, nonfinite=kind, clip_global_norm=2.0)
            each = gradients(0, np.float32)
            opt.step(each[rank])
            expected.step(summed(each), grad_scale=1 / size)
            each = gradients(1, np.float32)
            each[size - 1][5][77] = bad
            if kind == "raise":
                error = assert_all_raise(lambda opt=opt, mine=each[rank]: opt.step(mine), FloatingPointError)
                assert str(error).startswith("grads[5]: 1 of 1500 numbers")
            else:
                opt.step(each[rank])
                expected.step(summed(each), grad_scale=1 / size)
            assert opt.skipped_steps == (kind == "skip")
            assert_same(ours, opt, plain, expected)
            each = gradients(2, np.float32)
            opt.step(each[rank])
            expected.step(summed(each), grad_scale=1 / size)
            assert_same(ours, opt, plain, expected)


# ---- All ranks the same, or the same error ----


def check_ranks_that_differ_at_the_start():
    if size == 1:
        return
    last = rank == size - 1
    one = np.ones(3, np.float32)
    cases = [
        (lambda: ShardedRMSProp(np.ones(4 if last else 3, np.float32)), "params: float32 of shape"),
        (lambda: ShardedRMSProp({"b" if last else "a": one}), "params: ['"),
        (lambda: ShardedRMSProp(np.ones(3, np.float64 if last else np.float32)), "params: float"),
        (lambda: ShardedRMSProp(np.ones((3, 2), np.float32, order="F" if last else "C")), "params: float32 of"),
        (lambda: ShardedRMSProp(one, lr=0.1 if last else 0.2), "param_groups[0]['lr']: "),
        (lambda: ShardedRMSProp(one, average=not last), "average: "),
        (lambda: ShardedRMSProp(one, bucket_bytes=4096 + last), "bucket_bytes: "),
        (lambda: ShardedRMSProp([one] * 2 if last else [one]), "params"),
        (
            lambda: ShardedRMSProp(
                [{"params": [one, one + 0]}] if last else [{"params": [one]}, {"params": [one + 0]}]
            ),
            "",
        ),
    ]
    for call, begins in cases:
        error = assert_all_raise(call, ValueError)
        assert str(error).startswith(begins), error
        assert "rank" in str(error), error


def check_arguments_that_are_refused_on_one_rank():
    last = rank == size - 1
    one = np.ones(3, np.float32)
    cases = [
        (lambda: ShardedRMSProp(one, **({"alpha": 0.9} if last else {})), TypeError, "expected beta"),
        (lambda: ShardedRMSProp(one, **({"momentun": 0.9} if last else {})), TypeError, "Did you mean 'momentum'"),
        (lambda: ShardedRMSProp(one, lr=-1 if last else 1), ValueError, "lr: -1"),
        (lambda: ShardedRMSProp([] if last else one), ValueError, "params: empty"),
        (lambda: ShardedRMSProp(one, bucket_bytes=1 if last else 1 << 20), ValueError, "bucket_bytes: 1,"),
        (lambda: ShardedRMSProp(one, bucket_bytes=1e6 if last else 1 << 20), TypeError, "bucket_bytes: 1000000.0"),
        (lambda: ShardedRMSProp(one, average="yes" if last else True), TypeError, "average: 'yes'"),
        (lambda: ShardedRMSProp(one, momentum=0, nesterov=last), ValueError, "nesterov"),
    ]
    for call, kind, says in cases:
        error = assert_all_raise(call, kind)
        assert says in str(error), error
        assert size == 1 or f"(on rank {size - 1})" in str(error), error
    try:
        ShardedRMSProp(one, comm="world")
    except TypeError as error:
        assert "Intracomm" in str(error)
    else:
        raise AssertionError("not refused")


def check_a_step_that_is_refused_on_one_rank_changes_nothing():
    ours, opt, plain, expected = pair(lr=0.05, momentum=0.9)
    each = gradients(0, np.float32)
    opt.step(each[rank])
    expected.step(summed(each), grad_scale=1 / size)
    last = rank == size - 1
    faults = [
        (lambda g: [*g[:3], g[3].T, *g[4:]], ValueError, "grads[3]: shape"),
        (lambda g: [*g[:3], g[3].astype(np.float64), *g[4:]], TypeError, "grads[3]: dtype"),
        (lambda g: g[:-1], ValueError, "grads: 7 gradients, expected 8"),
        (lambda g: [*g[:5], ours[5], *g[6:]], ValueError, "shares memory with params[5]"),
        (lambda g: None, TypeError, "grads: None"),
        (lambda g: 3, TypeError, "grads"),
    ]
    for spoil, kind, says in faults:
        g = gradients(1, np.float32)[rank]
        error = assert_all_raise(lambda g=g, spoil=spoil: opt.step(spoil(g) if last else g), kind)
        assert says in str(error), error
    if size > 1:
        g = gradients(1, np.float32)[rank]
        for spoil, says in [
            (lambda: opt.step([None if last else g[0], *g[1:]]), "grads[0]: None on rank"),
            (lambda: opt.step(g, grad_scale=2.0 if last else 1.0), "grad_scale: 2.0 on rank"),
            (lambda: opt.step(g, zero_grads=last), "zero_grads: True on rank"),
            (
                lambda: opt.step([rows_of(np.random.default_rng(0), (7, 5), np.float32, 2) if last else g[0], *g[1:]]),
                "rows",
            ),
        ]:
            assert says in str(assert_all_raise(spoil, ValueError))
        if last:
            opt.lr = 0.9
        error = assert_all_raise(lambda: opt.step(g), ValueError)
        assert f"param_groups[0]['lr']: 0.9 on rank {size - 1}, expected 0.05" in str(error)
        opt.lr = 0.05
        error = assert_all_raise(lambda: opt.sync() if last else opt.step(g), RuntimeError)
        assert "called on rank" in str(error)
    assert_same(ours, opt, plain, expected)
    each = gradients(2, np.float32)
    opt.step(each[rank])
    expected.step(summed(each), grad_scale=1 / size)
    assert_same(ours, opt, plain, expected)


def check_a_thousand_faults():
    """One rank does something wrong in each round, chosen at random. No rank waits, and all raise the same error."""
    rng = np.random.default_rng(77)  # the same on all ranks
    ours, opt, plain, expected = pair(lr=0.01, nonfinite="raise", clip_global_norm=5.0)
    good = gradients(0, np.float32)
    lr = opt.lr
    for round_ in range(1000 if size < 4 else 300):
        culprit, kind, i = int(rng.integers(size)), int(rng.integers(6)), int(rng.choice([0, 3, 5, 6, 7]))
        g = list(good[rank])
        if rank == culprit:
            if kind == 0:
                g[i] = np.ones((*g[i].shape, 1), np.float32)
            elif kind == 1:
                g[i] = g[i].copy(order="K")
                g[i].reshape(-1, order="A")[int(rng.integers(g[i].size))] = np.nan
            elif kind == 2:
                g[i] = None
            elif kind == 3:
                opt.lr = 0.02
            elif kind == 4:
                g = g[:-1]
            else:
                g[i] = g[i].astype(np.float64)
        elif kind == 1:
            rng.integers(g[i].size)  # so that all draw the same numbers
        if size == 1 and kind in (2, 3):
            opt.lr = lr
            continue
        assert_all_raise(lambda g=g: opt.step(g), TypeError, ValueError, FloatingPointError)
        opt.lr = lr
        if round_ % 100 == 99:
            opt.check_synced()
            opt.step(good[rank])
            expected.step(summed(good), grad_scale=1 / size)
            assert_same(ours, opt, plain, expected)


def check_the_same_parameters_everywhere():
    w, b = np.full((30, 4), rank + 1.0), np.full(5, rank + 1.0, np.float32)
    opt = ShardedRMSProp({"W": w, "b": b})
    assert (w == 1).all() and (b == 1).all()
    opt.check_synced()
    if size > 1:
        if rank == size - 1:
            b[2] = 7
        error = assert_all_raise(opt.check_synced, ValueError)
        assert str(error).startswith("params['b']: ") and f"on rank {size - 1}, expected" in str(error), error
        opt.sync()
        opt.check_synced()
        assert (b == 1).all()


def check_a_call_that_was_cut_off_is_the_last_one():
    opt = ShardedRMSProp(np.ones(5))
    engine = opt._engine
    run, engine.run = engine.run, lambda *args: 1 / 0
    with contextlib.suppress(ZeroDivisionError):
        opt.step(np.ones(5))
    engine.run = run
    for call in (lambda: opt.step(np.ones(5)), opt.sync, opt.state_dict):
        assert "cut off" in str(assert_all_raise(call, RuntimeError))


# ---- State and files ----


def check_state_dicts():
    for dtype, settings in [(np.float32, {"momentum": 0.9, "centered": True}), *FORMATS]:
        _, opt, plain, expected = pair(dtype, lr=0.05, **settings)
        for step in range(2):
            each = gradients(step, dtype)
            opt.step(each[rank])
            expected.step(summed(each), grad_scale=1 / size)
        at_root = opt.state_dict(root=size - 1)
        assert (at_root is not None) == (rank == size - 1)
        others = arrays(1, dtype)
        for w, e in zip(others, plain, strict=True):
            w[...] = e
        resumed = ShardedRMSProp(others, lr=0.7, bucket_bytes=8192, **settings)
        given = expected.state_dict() if rank == 0 else None
        resumed.load_state_dict(given)
        assert resumed.lr == 0.05 and resumed.steps == 2
        each = gradients(3, dtype)
        resumed.step(each[rank])
        expected.step(summed(each), grad_scale=1 / size)
        assert_same(others, resumed, plain, expected)
    assert "root: 99" in str(assert_all_raise(lambda: opt.state_dict(root=99), ValueError))


def check_an_average_that_is_not_in_the_state_begins_with_the_next_step():
    before = rmsfast.RMSProp([np.zeros(200), np.zeros(300)])
    before.step([np.ones(200), np.ones(300)])
    ours, plain = [np.zeros(200), np.zeros(300)], [np.zeros(200), np.zeros(300)]
    opt, expected = (c(w, lr=0.0, ema_decay=0.5) for c, w in ((ShardedRMSProp, ours), (rmsfast.RMSProp, plain)))
    for o, params in ((opt, ours), (expected, plain)):
        o.step([np.ones(200), np.ones(300)])
        o.load_state_dict(before.state_dict(), settings=False)
        for w in params:
            w[...] = 8  # a user fills an array after the state was loaded
    assert_same(ours, opt, plain, expected)
    for o in (opt, expected):
        o.step([np.ones(200), None])
    assert_same(ours, opt, plain, expected)


def check_an_average_that_was_asked_for_between_steps_is_its_parameter():
    ours, plain = [np.full(200, 8.0), np.full(300, 8.0)], [np.full(200, 8.0), np.full(300, 8.0)]
    opt, expected = (c([{"params": w} for w in each]) for c, each in ((ShardedRMSProp, ours), (rmsfast.RMSProp, plain)))
    for ema_decay in (0.5, None):
        for o in (opt, expected):
            o.param_groups[1]["ema_decay"] = ema_decay
            o.step([np.ones(200), None])
        assert_same(ours, opt, plain, expected)


def check_state_that_only_some_parameters_of_a_bucket_have():
    before = rmsfast.RMSProp([np.ones(200), np.ones(300)], ema_decay=0.5, momentum=0.9)
    before.step([np.ones(200), np.ones(300)])
    for first, second in (("ema", None), (None, "ema"), ("ema", "momentum_buffer")):
        given = before.state_dict()
        for i, name in enumerate((first, second)):
            if name is not None:
                del given["state"][i][name]
        ours, plain = [np.ones(200), np.ones(300)], [np.ones(200), np.ones(300)]
        opt, expected = ShardedRMSProp(ours), rmsfast.RMSProp(plain)
        for o in (opt, expected):
            o.load_state_dict(given, settings=False)
        assert_same(ours, opt, plain, expected)
        for o in (opt, expected):
            o.step([np.ones(200), np.ones(300)])
        assert_same(ours, opt, plain, expected)


def check_files():
    folder = Path(comm.bcast(tempfile.mkdtemp() if rank == 0 else None))
    path = folder / "run.npz"
    settings = {"lr": schedules.linear(0.1, 9), "momentum": 0.9, "clip_norm": 3.0}
    ours, opt, plain, expected = pair(**settings)
    for step in range(2):
        each = gradients(step, np.float32)
        opt.step(each[rank])
        expected.step(summed(each), grad_scale=1 / size)
    opt.save(path if rank == 0 else None, {"epoch": 3} if rank == 0 else object())
    # One process loads what the ranks saved …
    w = arrays(2, np.float32)
    alone = rmsfast.RMSProp(w, lr=schedules.linear(0.5, 3))
    assert alone.load(path) == {"epoch": 3}
    assert_same(ours, opt, w, alone)
    # … and goes on as they do; and the ranks load what one process saved.
    each = gradients(2, np.float32)
    expected.step(summed(each), grad_scale=1 / size)
    alone.step(summed(each), grad_scale=1 / size)
    comm.Barrier()
    if rank == 0:
        alone.save(path, [1, 2])
    comm.Barrier()
    others = arrays(4, np.float32)
    resumed = ShardedRMSProp(others, lr=schedules.linear(0.7, 2))
    assert resumed.load(path if rank == 0 else "ignored") == [1, 2]
    assert resumed.lr == schedules.linear(0.1, 9) and resumed.momentum == 0.9 and resumed.steps == 3
    assert_same(others, resumed, plain, expected)
    resumed.check_synced()
    each = gradients(3, np.float32)
    resumed.step(each[rank])
    expected.step(summed(each), grad_scale=1 / size)
    assert_same(others, resumed, plain, expected)
    # Without the settings.
    kept = ShardedRMSProp(arrays(5, np.float32), lr=0.25, centered=True)
    kept.load(path, settings=False)
    assert kept.lr == 0.25 and kept.momentum == 0 and kept.steps == 3
    kept.step(each[rank])
    # What cannot be loaded or saved is refused on all ranks, and changes nothing.
    before = [w.copy() for w in others]
    error = assert_all_raise(lambda: resumed.load(folder / "none.npz"), FileNotFoundError)
    assert error.errno == errno.ENOENT and error.filename == str(folder / "none.npz")
    (folder / f"bad{rank}.npz").write_bytes(b"nothing")
    assert_all_raise(lambda: resumed.load(folder / f"bad{rank}.npz"), ValueError)
    assert_all_raise(lambda: resumed.save(folder / "none" / "run.npz"), FileNotFoundError)
    if rank == 0:
        rmsfast.RMSProp(np.ones(3, np.float32)).save(folder / "other.npz")
    assert_all_raise(lambda: resumed.load(folder / "other.npz"), ValueError)
    assert_all_raise(lambda: resumed.save(path, extra=object()), TypeError)
    assert_same(others, resumed, plain, expected)
    for w, e in zip(others, before, strict=True):
        assert_same_bits(w, e)


def check_functions_of_the_users_own():
    ours, opt, plain, expected = pair(lr=lambda step: 0.1 / (1 + step))
    for step in range(2):
        each = gradients(step, np.float32)
        opt.step(each[rank])
        expected.step(summed(each), grad_scale=1 / size)
    assert opt.current_lr == 0.1 / 3
    own = opt.lr
    opt.load_state_dict(opt.state_dict())
    assert opt.lr is own
    assert_same(ours, opt, plain, expected)
    if size > 1:
        opt.lr = own if rank == 0 else 0.5
        error = assert_all_raise(opt.sync, ValueError)
        assert "param_groups[0]['lr']: 0.5 on rank" in str(error), error
        assert "expected a function of your own, as on rank 0" in str(error), error


def check_a_finished_run_is_loaded_though_its_schedule_ends():
    """A schedule is asked when a step needs its number, and not before."""
    folder = Path(comm.bcast(tempfile.mkdtemp() if rank == 0 else None))
    last = 3

    def schedule(step):
        if step == last:
            raise IndexError("lr: no number, expected fewer steps")
        return 0.1 / (1 + step)

    _, opt, plain, expected = pair(lr=schedule, momentum=0.9)
    for step in range(last):
        each = gradients(step, np.float32)
        opt.step(each[rank])
        expected.step(summed(each), grad_scale=1 / size)
    opt.save(folder / "run.npz")
    for with_settings in (True, False):
        loaded = arrays(4, np.float32)
        resumed = ShardedRMSProp(loaded, lr=schedule, momentum=0.9)
        resumed.load(folder / "run.npz", settings=with_settings)
        assert_same(loaded, resumed, plain, expected)
        resumed.save(folder / "again.npz")
        resumed.sync()
        resumed.check_synced()
        assert_all_raise(lambda r=resumed, g=each[rank]: r.step(g), IndexError)
        assert_same(loaded, resumed, plain, expected)
    again = arrays(5, np.float32)
    alone = rmsfast.RMSProp(again, lr=schedule)
    alone.load(folder / "again.npz")
    assert_same(loaded, resumed, again, alone)
    other = ShardedRMSProp(arrays(5, np.float32), lr=schedule, momentum=0.9)
    other.load_state_dict(opt.state_dict())
    assert other.steps == last
    for each_opt in (resumed, expected):
        each_opt.lr = 0.02
    each = gradients(9, np.float32)
    resumed.step(each[rank])
    expected.step(summed(each), grad_scale=1 / size)
    assert_same(loaded, resumed, plain, expected)


def check_a_schedule_that_fails_on_one_rank():
    folder = Path(comm.bcast(tempfile.mkdtemp() if rank == 0 else None))
    faults = [
        (ValueError("lr: none, expected one"), ValueError, "lr: none, expected one"),
        (ExceptionGroup("lr: none, expected one", [KeyError(1)]), RuntimeError, "ExceptionGroup: lr: none"),
        (UnicodeDecodeError("ascii", b"\xff", 0, 1, "x, expected y"), RuntimeError, "UnicodeDecodeError: 'ascii'"),
    ]
    ours, opt, plain, expected = pair()
    each = gradients(0, np.float32)
    opt.step(each[rank])
    expected.step(summed(each), grad_scale=1 / size)
    opt.save(folder / "run.npz")
    state = opt.state_dict(root=0)
    for fault, kind, says in faults:

        def schedule(step, fault=fault):
            if rank == 0 and step == 1:
                raise fault
            return 0.1

        for load in (
            lambda opt: opt.load(folder / "run.npz", settings=False),
            lambda opt: opt.load_state_dict(state, settings=False),
        ):
            loaded = [w.copy() for w in ours]
            resumed = ShardedRMSProp(loaded, lr=schedule)
            load(resumed)
            assert resumed.steps == 1
            error = assert_all_raise(lambda r=resumed, g=each[rank]: r.step(g), kind)
            assert says in str(error), error
            assert size == 1 or str(error).endswith("(on rank 0)"), error
            resumed.check_synced()
            for w, e in zip(loaded, plain, strict=True):
                assert_same_bits(w, e)


def check_num_threads_on_one_rank_alone():
    """Who gives none finds out how many ranks share the machine's cores, and needs all of them for that."""
    w = np.ones(10)
    opt = ShardedRMSProp(w, lr=0.1, num_threads=1 if rank == size - 1 else None)
    opt.step(np.full(10, 2.0))
    expected = np.ones(10)
    rmsfast.RMSProp(expected, lr=0.1).step(np.full(10, 2.0))
    assert_same_bits(w, expected)


# ---- What it costs ----


def peak_of(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check_a_step_allocates_nothing_in_proportion():
    for settings in ({}, {"clip_global_norm": 1.0, "momentum": 0.9, "nonfinite": "skip"}):
        params = [np.ones(1 << 20, np.float32), *(np.ones((10, 100), np.float32) for _ in range(50))]
        grads = [np.ones_like(w) for w in params]
        opt = ShardedRMSProp(params, bucket_bytes=1 << 20, **settings)
        for _ in range(2):
            opt.step(grads)
        peak = peak_of(lambda opt=opt, grads=grads: opt.step(grads))
        assert peak < 200_000, peak  # Python's own objects, and the sums of blocks


def check_all_buckets_share_the_memory_of_reduced_gradients():
    w, g = np.ones(1 << 23, np.float32), np.ones(1 << 23, np.float32)
    part = w.nbytes // size

    def train(clip_norm):
        opt = ShardedRMSProp(w, bucket_bytes=1 << 19, clip_norm=clip_norm)
        opt.step(g)
        return opt

    peak = peak_of(lambda: train(None))
    assert 0.8 < peak / part < 1.5, peak  # the state
    peak = peak_of(lambda: train(1.0))
    assert 1.6 < peak / part < 3, peak  # all is measured before the first update
    opt = train(1.0)
    opt.clip_norm = None
    assert peak_of(lambda: opt.step(g)) < part / 4
    before = w.copy()
    opt.step(g)
    assert (w < before).all()


def check_a_step_without_memory_for_its_norms_can_be_repeated():
    ours, opt, plain, expected = pair(lr=0.05)
    opt.clip_norm = expected.clip_norm = 0.5
    each = gradients(0, np.float32)
    none_left = MemoryError("memory: none left, expected some")
    with (
        mock.patch.object(Lane, "reduce_into", side_effect=none_left) if rank == size - 1 else contextlib.nullcontext()
    ):
        assert_all_raise(lambda: opt.step(each[rank]), MemoryError)
    opt.step(each[rank])
    expected.step(summed(each), grad_scale=1 / size)
    assert_same(ours, opt, plain, expected)


def check_state_is_divided_evenly():
    for shapes in (
        [(1 << 20,)],
        [(1000,)] * 200,
        [(784, 256), (256,), (256, 256), (256,), (256, 10), (10,)],
        [(10_007,)],
    ):
        params = [np.ones(shape, np.float32) for shape in shapes]
        opt = ShardedRMSProp(params, momentum=0.9)
        opt.step(params_like(params))
        every = comm.allgather(opt.state_bytes)
        whole = sum(2 * w.nbytes for w in params)
        assert sum(every) == whole
        assert max(every) <= whole * (1 / size + 0.01), (every, whole)
        sent = sum(comm.allgather(opt.sent_bytes))
        assert sent == 2 * (size - 1) * sum(w.nbytes for w in params)


def params_like(params):
    return [np.ones_like(w) for w in params]


# ---- What it is ----


def check_what_it_says_of_itself():
    opt = ShardedRMSProp([np.ones((20, 3)), np.ones(1)], momentum=0.5)
    assert f"rank {rank} of {size}, 2 arrays, 61 elements, 0 steps" in repr(opt) and "momentum=0.5" in repr(opt)
    assert opt.comm == comm
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        try:
            copied(opt)
        except TypeError as error:
            assert "expected save or state_dict" in str(error)
        else:
            raise AssertionError("not refused")
    for wrong in ("alpha", "momentun"):
        try:
            setattr(opt, wrong, 1)
        except AttributeError as error:
            assert "expected" in str(error)
        else:
            raise AssertionError("not refused")


def check_a_part_of_the_ranks():
    half = comm.Split(rank % 2, rank)
    w = np.ones(10)
    opt = ShardedRMSProp(w, lr=0.1, comm=half)
    opt.step(np.full(10, 1.0 + rank))
    expected = np.ones(10)
    total = sum(1.0 + r for r in range(size) if r % 2 == rank % 2)
    rmsfast.RMSProp(expected, lr=0.1).step(np.full(10, total), grad_scale=1 / half.size)
    assert_same_bits(w, expected)
    half.Free()


def main():
    wanted = sys.argv[1:]
    for name, check in list(globals().items()):
        if not name.startswith("check_") or (wanted and name not in wanted):
            continue
        faulthandler.dump_traceback_later(100, exit=True)
        problem, start = "", clock()
        try:
            check()
        except Exception:
            problem = f"rank {rank} of {size}:\n{traceback.format_exc()}"
        problems = comm.gather(problem)
        faulthandler.cancel_dump_traceback_later()
        if rank == 0:
            print(
                json.dumps({"check": name, "problem": "\n".join(filter(None, problems)), "seconds": clock() - start}),
                flush=True,
            )


if __name__ == "__main__":
    main()
