"""RMSProp.mirror: each step also writes the new parameters, rounded, to arrays of a lower precision."""

import copy
import pickle

import numpy as np
import pytest
from helpers import CLASSES, assert_same_bits, assert_says_all
from test_formats import ALL, FLOAT32, HALVES, STATES, some
from test_variants import assert_same_run

import rmsfast


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_each_step_writes_the_copies(rng, short_stretches, cls, dtype, state):
    """Those of all layouts, of rows, beside parameters without a copy; rounded to nearest, also at the start."""
    layouts = [
        ((), "C"),
        ((0, 3), "C"),
        ((65,), "C"),
        ((20, 41), "F"),
        ((20, 41), "C"),
        ((20, 128), "C"),
        ((1000,), "C"),
    ]
    params = [some(rng, *layout[:1], FLOAT32, layout[1]) for layout in layouts] + [np.ones(5)] * (not state)
    twins = [w.copy(order="K") for w in params]
    opt, twin = cls(params, **ALL, **state, num_threads=3), cls(twins, **ALL, **state)
    copies = [np.zeros_like(w, dtype=dtype) if w.dtype == FLOAT32 else None for w in params]
    copies[2] = None
    opt.mirror(copies)
    for step in range(4):
        for w, mirrored in zip(params, copies, strict=True):
            if mirrored is not None:
                assert_same_bits(mirrored, w.astype(dtype))
        grads = [some(rng, w.shape, w.dtype) if (i + step) % 5 else None for i, w in enumerate(params)]
        for i in 3, 4, 5:
            grads[i] = rmsfast.Rows(rng.integers(0, 20, 9), some(rng, (9, params[i].shape[1]), FLOAT32))
        opt.step(grads)
        twin.step(grads)
    assert_same_run(opt, params, twin, twins)


@pytest.mark.parametrize("cls", CLASSES)
def test_copies_are_given_in_the_form_of_the_parameters(rng, cls):
    params = {"a": some(rng, 5, FLOAT32), "b": some(rng, 70, FLOAT32)}
    opt = cls(params)
    copies = {"b": np.zeros(70, np.float16)}
    opt.mirror(copies)
    opt.step({name: some(rng, w.shape, FLOAT32) for name, w in params.items()})
    assert_same_bits(copies["b"], params["b"].astype(np.float16))
    opt.mirror(None)
    before = copies["b"].copy()
    opt.step({name: some(rng, w.shape, FLOAT32) for name, w in params.items()})
    assert_same_bits(copies["b"], before)


@pytest.mark.parametrize("cls", CLASSES)
def test_copies_after_everything_else_that_changes_parameters(rng, tmp_path, cls):
    """A group that is added, a file that is loaded; copies of the optimizer have no copies of the parameters."""
    w, sent = some(rng, 100, FLOAT32), np.zeros(100, np.float16)
    opt = cls(w)
    opt.mirror(sent)
    opt.save(tmp_path / "w.npz")
    opt.add_param_group({"params": some(rng, 5, FLOAT32)})
    opt.step([some(rng, 100, FLOAT32), some(rng, 5, FLOAT32)])
    assert_same_bits(sent, w.astype(np.float16))
    before = sent.copy()
    for twin in copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)):
        twin.step([some(rng, 100, FLOAT32), None])
    assert_same_bits(sent, before)
    one = cls(w)
    one.mirror(sent)
    one.load(tmp_path / "w.npz")
    assert_same_bits(sent, w.astype(np.float16))


def refused_copies():
    w = np.ones((4, 5), np.float32)
    f16 = np.zeros((4, 5), np.float16)
    frozen = f16.copy()
    frozen.flags.writeable = False
    wide = np.zeros((4, 10), np.float16)
    yield (
        "float32",
        w,
        np.zeros((4, 5), np.float32),
        TypeError,
        "copies: dtype float32 for a float32 parameter",
    )
    yield "half", f16.copy(), f16, TypeError, "copies: dtype float16 for a float16 parameter, expected"
    yield "double", np.ones((4, 5)), f16, TypeError, "copies: dtype float16 for a float64 parameter, expected"
    yield (
        "shape",
        w,
        np.zeros((5, 4), np.float16),
        ValueError,
        "copies: shape (5, 4), expected (4, 5), as",
    )
    yield "order", w, np.asfortranarray(f16), ValueError, "copies: strides (2, 8), writable: True, expected"
    yield "strided", w, wide[:, ::2], ValueError, "copies: strides (20, 4), writable: True, expected"
    yield "read-only", w, frozen, ValueError, "copies: strides (10, 2), writable: False, expected"
    yield "overlap", w, w.view(np.float16)[:, :5], ValueError, "copies: "
    own = w.reshape(-1).view(np.float16)[:20].reshape(4, 5)
    yield "own memory", w, own, ValueError, "copies: shares memory with params, expected memory of its own"
    yield "rows", w, rmsfast.Rows([0], np.zeros((1, 5), np.float32)), TypeError, "copies: rows, expected an array"
    yield "swapped", w, f16.astype(">f2"), TypeError, "copies: dtype >f2 for a float32 parameter, expected"
    yield "number", w, 3, TypeError, "copies: "
    yield "too many", w, [f16, f16.copy()], ValueError, "copies: 2 arrays, expected 1"


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("case", [case for case, *_ in refused_copies()])
def test_copies_that_do_not_fit(cls, case):
    """The mirror that was there stays."""
    w, copies, error, message = next(fresh for name, *fresh in refused_copies() if name == case)
    opt = cls(w)
    kept = np.zeros(w.shape, np.float16)
    if w.dtype == FLOAT32:
        opt.mirror(kept)
    with pytest.raises(error) as caught:
        opt.mirror(copies)
    assert message in str(caught.value)
    assert_says_all(caught.value)
    opt.step(np.ones(w.shape, w.dtype))
    if w.dtype == FLOAT32:
        assert_same_bits(kept, w.astype(np.float16))


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_copy_that_is_resized(cls, added):
    """The step is refused, and nothing has changed; also where a group was added since."""
    w, sent = np.ones(1000, np.float32), np.zeros(1000, np.float16)
    opt = cls({"w": w})
    opt.mirror({"w": sent})
    if added:
        opt.add_param_group({"params": {"b": np.ones(3, np.float32)}})
    sent.resize(3, refcheck=False)
    with pytest.raises(ValueError, match=r"copies\['w'\]: resized or changed after it was given") as caught:
        opt.step({"w": np.ones(1000, np.float32), **({"b": None} if added else {})})
    assert_says_all(caught.value)
    assert (w == 1).all()
    assert opt.state["w"]["step"] == 0
    opt.mirror(None)
    opt.step({"w": np.ones(1000, np.float32), **({"b": None} if added else {})})


@pytest.mark.parametrize("cls", CLASSES)
def test_memory_of_copies_is_nobody_elses(cls):
    w, sent = np.ones(64, np.float32), np.zeros(64, np.float16)
    opt = cls([w, np.ones(64, np.float32)])
    with pytest.raises(ValueError, match="shares memory with"):
        opt.mirror([sent, sent])
    opt.mirror([sent, None])
    with pytest.raises(ValueError, match=r"grads\[1\]: shares memory with copies\[0\], expected memory of its own"):
        opt.step([None, sent])
    with pytest.raises(ValueError, match=r"shares memory"):
        opt.add_param_group({"params": sent})
    assert (w == 1).all()
