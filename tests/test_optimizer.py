"""rmsfast.RMSProp and rmsprop_update: the forms of their arguments, schedules, state, and every refusal."""

import array
import copy
import pickle
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from helpers import assert_same_bits, fleeting, misaligned, textbook
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import rmsfast
import rmsfast.optimizer

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
    "nonfinite": "propagate",
}


def after_one_step(w, g, **settings):
    w, v = w.copy(), np.zeros_like(w)
    textbook(w.reshape(-1), v.reshape(-1), g.reshape(-1), **settings)
    return w


# ---- Forms ----


shared_arrays = pytest.mark.thread_unsafe(reason="all threads of a test have the same fixtures, and would train them")


@pytest.fixture
def pair(rng):
    """Two parameters and their gradients."""
    params = [fleeting(rng, (3, 4), np.float32), fleeting(rng, 5, np.float64)]
    return params, [fleeting(rng, w.shape, w.dtype) for w in params]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("form_of_params", "form_of_grads"),
    [
        (list, list),
        (tuple, tuple),
        (list, tuple),
        (iter, iter),
        (lambda a: (x for x in a), lambda a: (x for x in a)),
        (lambda a: dict(zip("wb", a, strict=True)), lambda a: dict(zip("bw", reversed(a), strict=True))),
        (lambda a: dict(zip("wb", a, strict=True)), lambda a: list(a)),
        (lambda a: [{"params": x} for x in a], list),
        (lambda a: [{"params": [x]} for x in a], lambda a: [[x] for x in a]),
        (lambda a: [{"params": a}], lambda a: [a]),
        (lambda a: [{"params": a}], lambda a: [{"params": a}]),
        (lambda a: [{"params": {"w": a[0]}}, {"params": {"b": a[1]}}], lambda a: {"w": a[0], "b": a[1]}),
        (lambda a: [{"params": {"w": a[0]}}, {"params": {"b": a[1]}}], lambda a: [{"w": a[0]}, {"b": a[1]}]),
        (lambda a: [{"params": []}, {"params": a}], lambda a: [None, a]),
    ],
)
@shared_arrays
def test_forms_of_params_and_grads(pair, cls, form_of_params, form_of_grads):
    params, grads = pair
    expected = [after_one_step(w, g) for w, g in zip(params, grads, strict=True)]
    opt = cls(form_of_params(params))
    opt.step(form_of_grads(grads))
    for w, e in zip(params, expected, strict=True):
        assert_same_bits(w, e)
    assert [entry["step"] for entry in opt.state.values()] == [1, 1]


@shared_arrays
def test_a_single_array(pair):
    (w, _), (g, _) = pair
    expected = after_one_step(w, g)
    rmsfast.RMSProp(w).step(g)
    assert_same_bits(w, expected)


@pytest.mark.parametrize("grads", [None, 1.0, "g", {}, {"w": np.ones(3)}])
def test_a_single_array_needs_a_gradient(grads):
    opt = rmsfast.RMSProp(np.ones(3))
    with pytest.raises(TypeError, match="^grads: .*, expected (a sequence of|gradients)"):
        opt.step(grads)
    opt.step([None])
    assert opt.state[0]["step"] == 0


@pytest.mark.parametrize("grads", [[None, 1], {"b": 1}, {"w": None, "b": 1}])
@shared_arrays
def test_no_gradient_leaves_a_parameter_alone(pair, grads):
    params, given = pair
    before, expected = params[0].copy(), after_one_step(params[1], given[1])
    opt = rmsfast.RMSProp(params if isinstance(grads, list) else dict(zip("wb", params, strict=True)))
    if isinstance(grads, list):
        opt.step([None, given[1]])
    else:
        opt.step({**grads, "b": given[1]})
    assert_same_bits(params[0], before)
    assert_same_bits(params[1], expected)
    assert [entry["step"] for entry in opt.state.values()] == [0, 1]


def test_groups_have_their_own_settings(rng):
    params = [fleeting(rng, 10, np.float32) for _ in range(4)]
    grads = [fleeting(rng, 10, np.float32) for _ in range(4)]
    settings = [dict(lr=0.1), dict(beta=0.5, eps=0.0), dict(lr=0.2, beta=0.1, eps=1.0)]
    common = dict(lr=0.01, beta=0.9, eps=1e-3)
    expected = [
        after_one_step(w, g, **{**common, **settings[i]}) for w, g, i in zip(params, grads, [0, 0, 1, 2], strict=True)
    ]
    opt = rmsfast.RMSProp([{"params": params[:2], **settings[0]}, {"params": params[2], **settings[1]}], **common)
    opt.add_param_group({"params": params[3:], **settings[2]})
    opt.step(grads)
    for w, e in zip(params, expected, strict=True):
        assert_same_bits(w, e)
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.01, 0.2]
    assert [len(group["params"]) for group in opt.param_groups] == [2, 1, 1]


def test_adding_a_group_keeps_the_state(rng):
    params = [fleeting(rng, 10, np.float32) for _ in range(2)]
    grads = [fleeting(rng, 10, np.float32) for _ in range(2)]
    opt = rmsfast.RMSProp(params[0], lr=0.1)
    opt.step(grads[0])
    before = opt.state[0]["square_avg"].copy()
    opt.add_param_group({"params": params[1]})
    assert_same_bits(opt.state[0]["square_avg"], before)
    opt.step(grads)
    assert [entry["step"] for entry in opt.state.values()] == [2, 1]


def test_memory_without_a_copy(rng):
    """What has the buffer protocol or DLPack is trained in its own memory."""

    class OverDLPack:
        def __init__(self, values):
            self.values = values

        def __dlpack__(self, **kwargs):
            return self.values.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.values.__dlpack_device__()

    values = fleeting(rng, 20, np.float32)
    g = fleeting(rng, 20, np.float32)
    expected = after_one_step(values, g)
    buffer = array.array("f", values)
    rmsfast.RMSProp(buffer).step(array.array("f", g))
    assert_same_bits(np.array(buffer, np.float32), expected)

    view = memoryview(bytearray(values.tobytes())).cast("f")
    rmsfast.RMSProp([view]).step([memoryview(g)])
    assert_same_bits(np.array(view, np.float32), expected)

    if np.lib.NumpyVersion(np.__version__) >= "2.2.0":
        rmsfast.RMSProp(OverDLPack(values)).step(OverDLPack(g))
        assert_same_bits(values, expected)
    else:  # NumPy 2.0 and 2.1 take all that comes by DLPack for read-only
        with pytest.raises(ValueError, match="params: read-only"):
            rmsfast.RMSProp(OverDLPack(values))


def test_subclasses_are_arrays(rng, tmp_path):
    values, g = fleeting(rng, (4, 5), np.float64), fleeting(rng, (4, 5), np.float64)
    expected = after_one_step(values, g)
    matrix = values.view(type("Plain", (np.ndarray,), {}))
    rmsfast.RMSProp([matrix]).step([g.copy().view(type(matrix))])
    assert_same_bits(matrix.view(np.ndarray), expected)

    mapped = np.memmap(tmp_path / "w", np.float64, "w+", shape=(4, 5))
    mapped[...] = fleeting(np.random.default_rng(1), (4, 5), np.float64)
    expected = after_one_step(np.array(mapped), g)
    rmsfast.RMSProp({"w": mapped}).step({"w": g})
    assert_same_bits(np.array(mapped), expected)


class Untouchable(np.ndarray):
    """An array whose elements only NumPy itself may read and write."""

    def refuse(self, *args):
        raise RuntimeError

    __getitem__ = __setitem__ = __array_function__ = refuse


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_that_a_subclass_redefines_is_called(cls, tmp_path):
    w, v = np.ones((3, 2)), np.ones((3, 2))
    opt, twin = cls([w.view(Untouchable)]), cls([v])
    for each in (opt, twin):
        each.step([rmsfast.Rows([2, 0], np.ones((2, 2)))])
    opt.save(tmp_path / "saved")
    w[...] = 0
    opt.load(tmp_path / "saved")
    assert_same_bits(w, v)
    clone = copy.deepcopy(opt)
    assert_same_bits(np.asarray(clone.param_groups[0]["params"][0]), v)


# ---- Bound gradients ----


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "form", [list, lambda grads: dict(zip("wb", grads, strict=True)), lambda grads: [grads[0], None]]
)
@shared_arrays
def test_bound_gradients_are_those_of_every_step_without_any(pair, cls, form):
    params, grads = pair
    twins = [w.copy() for w in params]
    named = isinstance(form(grads), dict)
    opt, twin = (cls(dict(zip("wb", each, strict=True)) if named else each) for each in (params, twins))
    opt.bind(form(grads))
    for step in range(6):
        for g in grads:
            g += 0.5 * step
        arguments = [{}, {"grad_scale": np.float64(0.5)}, {"zero_grads": True}][step % 3]
        copies = form([g.copy() for g in grads])
        opt.step(**arguments)
        twin.step(copies, **arguments)
        assert (grads[0] == 0).all() or step % 3 != 2
    for w, t in zip(params, twins, strict=True):
        assert_same_bits(w, t)
    assert [entry["step"] for entry in opt.state.values()] == [entry["step"] for entry in twin.state.values()]


def test_a_step_with_gradients_of_its_own_leaves_the_bound_ones():
    w, g, other = np.zeros(2), np.ones(2), np.full(2, 3.0)
    opt = rmsfast.RMSProp(w, lr=1.0, beta=1.0, eps=1.0)
    opt.bind(g)
    opt.step(other)
    opt.step()
    assert w.tolist() == [-4.0, -4.0]
    opt.bind(None)
    with pytest.raises(TypeError, match="grads: None, expected gradients, or arrays that were bound before"):
        opt.step()


@pytest.mark.parametrize("cls", CLASSES)
def test_bound_gradients_are_checked_when_they_are_bound_and_at_every_step(cls):
    w, other = np.ones(1000), np.ones(3)
    g = np.ones(1000)
    opt = cls([w, other])
    for grads, error, message in [
        ([np.ones(999), None], ValueError, r"grads\[0\]: shape \(999,\), expected \(1000,\)"),
        ([w, None], ValueError, r"grads\[0\]: shares memory with params\[0\]"),
        ([g], ValueError, "grads: 1 gradient, expected 2"),
        (
            [rmsfast.Rows([0], np.ones(1)), None],
            TypeError,
            r"grads\[0\]: rows, expected an array that is filled in place",
        ),
    ]:
        with pytest.raises(error, match=message):
            opt.bind(grads)
    with pytest.raises(TypeError, match="grads: None"):
        opt.step()

    opt.bind([g, np.ones(3)])
    opt.step()
    before = w.copy()
    g.resize(2000, refcheck=False)
    with pytest.raises(ValueError, match=r"grads\[0\]: shape \(2000,\), expected \(1000,\)"):
        opt.step()
    g.resize(1_000_000, refcheck=False)
    _taken = [np.ones(1000) for _ in range(50)]  # among them, where it was
    g.resize(1000, refcheck=False)
    with pytest.raises(ValueError, match=r"grads\[0\]: resized or moved after it was bound"):
        opt.step()
    assert_same_bits(w, before)
    opt.add_param_group({"params": np.ones(2)})
    with pytest.raises(TypeError, match="grads: None"):
        opt.step()


def test_bound_gradients_stay_alive():
    opt = rmsfast.RMSProp(w := np.zeros(10_000), lr=1.0, beta=1.0, eps=1.0)
    opt.bind(array.array("d", [2.0] * 10_000))
    opt.step()
    assert (w == -2).all()


# ---- Settings and schedules ----


def test_settings_change_between_steps(rng):
    w, v = fleeting(rng, 30, np.float32), np.zeros(30, np.float32)
    actual = w.copy()
    opt = rmsfast.RMSProp(actual)
    for step in range(30):
        lr, beta, eps = 0.1 / (step + 1), 1 - 1 / (step + 1), 10.0**-step
        g = fleeting(rng, 30, np.float32)
        if step % 3 == 0:
            opt.param_groups[0].update(lr=lr, beta=beta, eps=eps)
        elif step % 3 == 1:
            opt.lr = lr
            opt.param_groups[0]["beta"] = np.float64(beta)
            opt.param_groups[0]["eps"] = eps
        else:
            lr, beta, eps = (opt.param_groups[0][name] for name in ("lr", "beta", "eps"))
        opt.step(g)
        textbook(w, v, g, float(lr), beta, eps)
        assert_same_bits(actual, w)
        assert_same_bits(opt.state[0]["square_avg"], v)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_schedule_is_called_once_per_step_with_the_count(cls):
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.5**step

    params = [np.zeros(3), np.zeros(3), np.zeros(3)]
    opt = cls([{"params": params[:2]}, {"params": params[2], "lr": 1.0}, {"params": np.zeros(2)}], lr=schedule)
    expected = np.zeros(3)
    v = np.zeros(3)
    for step in range(4):
        opt.step(iter([np.ones(3), np.ones(3), np.ones(3), np.ones(2)]))  # an uncommon form asks no second time
        textbook(expected, v, np.ones(3), lr=0.5**step)
    assert asked == [0, 1, 2, 3]
    assert_same_bits(params[0], expected)
    assert opt.param_groups[0]["lr"] is schedule
    assert opt.param_groups[1]["lr"] == 1.0


def test_a_refused_step_asks_no_schedule_and_counts_nothing():
    asked = []
    opt = rmsfast.RMSProp(np.zeros(3), lr=lambda step: asked.append(step) or 0.1)
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.zeros(4))
    assert asked == []
    assert opt.state[0]["step"] == 0


@pytest.mark.parametrize("patience", range(0, 120, 5))
def test_a_setting_whose_name_will_not_be_compared_changes_nothing(patience):
    """After some comparisons, it raises."""

    class Moody(str):
        __slots__ = ("compared",)
        __hash__ = str.__hash__

        def __eq__(self, other):
            self.compared = getattr(self, "compared", 0) + 1
            if self.compared > patience:
                raise RuntimeError("no more")
            return str.__eq__(self, other)

    opt, _ = trained()
    before = opt.state[0]["square_avg"].copy()
    saved = opt.state_dict()
    saved["state"][0]["square_avg"] += 1
    values = {name: value for name, value in saved["param_groups"][0].items() if name != "lr"}
    saved["param_groups"][0] = {**values, Moody("lr"): 0.5}
    try:
        opt.load_state_dict(saved)
    except RuntimeError:
        assert opt.lr == 1e-3
        assert_same_bits(opt.state[0]["square_avg"], before)
    else:
        assert opt.lr == 0.5
        assert_same_bits(opt.state[0]["square_avg"], before + 1)


def test_lr_is_the_same_number_for_all_groups():
    """It is asked for once: another answer, or none, comes too late."""

    class Moody(float):
        answers = iter([0.5, 0.25])

        def __float__(self):
            return next(self.answers)

    opt = rmsfast.RMSProp([{"params": np.ones(1)}, {"params": np.ones(1)}, {"params": np.ones(1)}])
    opt.lr = Moody()
    assert opt.lr == 0.5


def test_lr_of_all_groups():
    opt = rmsfast.RMSProp([{"params": np.zeros(2)}, {"params": np.zeros(2), "lr": 0.5}], lr=0.25)
    with pytest.raises(ValueError, match=r"lr: the groups have \[0.25, 0.5\], expected one rate"):
        _ = opt.lr
    opt.lr = 2
    assert opt.lr == 2.0
    assert [group["lr"] for group in opt.param_groups] == [2.0, 2.0]


def test_a_schedule_that_steps_is_refused():
    w, g = np.zeros(3), np.ones(3)
    opt = rmsfast.RMSProp(w, lr=lambda step: opt.step(g) or 0.1)
    with pytest.raises(RuntimeError, match="from inside one of its own calls"):
        opt.step(g)
    assert_same_bits(w, np.zeros(3))


def test_a_schedule_that_fails_is_asked_again():
    answers = [KeyError("not yet"), "soon", 0.5, 0.25]

    def schedule(step):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    w, expected = np.zeros(3), np.zeros(3)
    opt = rmsfast.RMSProp(w, lr=schedule)
    with pytest.raises(KeyError, match="not yet"):
        opt.step(np.ones(3))
    with pytest.raises(TypeError, match=r"lr\(0\): 'soon', expected a number ≥ 0"):
        opt.step(np.ones(3))
    assert_same_bits(w, expected)
    v = np.zeros(3)
    for lr in 0.5, 0.25:
        opt.step(np.ones(3))
        textbook(expected, v, np.ones(3), lr=lr)
        assert_same_bits(w, expected)


def test_a_schedule_that_changes_the_arrays_is_refused():
    w = np.ones(1000)
    opt = rmsfast.RMSProp([w], lr=lambda step: w.resize(10_000_000, refcheck=False) or 0.1)
    with pytest.raises(ValueError, match=r"params\[0\]: resized or changed"):
        opt.step([np.ones(1000)])
    assert w[0] == 1.0


# ---- Refusals: the message, and everything as it was ----


def trained(names=None):
    """An optimizer after one step on three arrays, and the arrays."""
    params = [np.arange(50, dtype=np.float32).reshape(5, 10), np.ones(7, np.float64), np.ones((3, 4), np.float32)]
    opt = rmsfast.RMSProp(params if names is None else dict(zip(names, params, strict=True)))
    opt.step([np.full_like(w, 0.5) for w in params])
    return opt, params


def readonly(a):
    a.flags.writeable = False
    return a


def overlapping(params):
    """A gradient inside a memory that also holds the parameter before it."""
    return params[0].reshape(-1)[:12].reshape(3, 4)


GRADS = [np.ones((5, 10), np.float32), np.ones(7), np.ones((3, 4), np.float32)]


def with_grad(i, g):
    return lambda opt, params: [*GRADS[:i], g(opt, params) if callable(g) else g, *GRADS[i + 1 :]]


REFUSED_GRADS = {
    "shape": (with_grad(0, np.ones((10, 5), np.float32)), ValueError, r"grads\[0\]: shape (10, 5), expected (5, 10)"),
    "rank": (with_grad(1, np.ones((7, 1))), ValueError, "grads[1]: shape (7, 1), expected (7,)"),
    "0-d": (with_grad(1, np.array(1.0)), ValueError, "grads[1]: shape (), expected (7,)"),
    "dtype": (with_grad(1, np.ones(7, np.float32)), TypeError, "grads[1]: dtype float32, expected float64, as the"),
    "integers": (with_grad(1, np.ones(7, int)), TypeError, "grads[1]: dtype int64, expected float64"),
    "objects": (with_grad(1, np.ones(7, object)), TypeError, "grads[1]: dtype object, expected float64"),
    "complex": (with_grad(1, np.ones(7, complex)), TypeError, "grads[1]: dtype complex128, expected float64"),
    "half": (with_grad(0, np.ones((5, 10), np.float16)), TypeError, "grads[0]: dtype float16, expected float32"),
    "longdouble": (with_grad(1, np.ones(7, np.longdouble)), TypeError, "expected float64"),
    "byte order": (with_grad(1, np.ones(7, ">f8")), TypeError, "grads[1]: dtype >f8, expected float64"),
    "list": (with_grad(1, [1.0] * 7), TypeError, "grads[1]: list, expected a NumPy array"),
    "number": (with_grad(1, 1.0), TypeError, "grads[1]: float, expected a NumPy array"),
    "masked": (with_grad(1, np.ma.ones(7)), TypeError, "grads[1]: a masked array"),
    "too few": (lambda opt, params: GRADS[:2], ValueError, "grads: 2 gradients, expected 3"),
    "too many": (lambda opt, params: [*GRADS, None], ValueError, "grads: 4 gradients, expected 3"),
    "none at all": (lambda opt, params: None, TypeError, "grads: None, expected gradients, or arrays that"),
    "a string": (lambda opt, params: "abc", TypeError, "grads: str, expected a sequence of"),
    "a set": (lambda opt, params: {1, 2, 3}, TypeError, "grads: set, expected a sequence of"),
    "one array": (lambda opt, params: np.ones((3, 7)), TypeError, "grads: one array, expected a sequence of 3"),
    "a mapping": (lambda opt, params: {"w": GRADS[0]}, TypeError, "grads: a mapping, expected a sequence of 3"),
    "the parameter": (
        with_grad(0, lambda opt, params: params[0]),
        ValueError,
        "grads[0]: shares memory with params[0]: pass a copy",
    ),
    "another parameter": (
        with_grad(2, lambda opt, params: overlapping(params)),
        ValueError,
        "grads[2]: shares memory with params[0]: pass a copy",
    ),
    "state": (
        with_grad(1, lambda opt, params: opt.state[1]["square_avg"][::-1]),
        ValueError,
        "grads[1]: shares memory with state[1]['square_avg']: pass a copy",
    ),
    "strided parameter": (
        with_grad(2, lambda opt, params: params[0][1:4, ::3]),
        ValueError,
        "grads[2]: shares memory with params[0]: pass a copy",
    ),
    "broadcast parameter": (
        with_grad(2, lambda opt, params: np.broadcast_to(params[0][4, 9:], (3, 4))),
        ValueError,
        "grads[2]: shares memory with params[0]: pass a copy",
    ),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("make", "error", "message"), REFUSED_GRADS.values(), ids=REFUSED_GRADS)
def test_refused_gradients_change_nothing(cls, make, error, message):
    opt, params = trained()
    grads = make(opt, params)
    if cls is rmsfast.reference.RMSProp:
        opt = cls(params)
        grads = make(opt, params)
    before = [w.copy() for w in params], opt.state_dict()
    with pytest.raises(error) as caught:
        opt.step(grads)
    assert message.replace("\\", "") in str(caught.value)
    assert_unchanged(opt, params, before)


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


@pytest.mark.parametrize("form", [dict, lambda grads: type("Other", (dict,), {})(grads)])
def test_refused_names(form):
    opt, params = trained("abc")
    before = [w.copy() for w in params], opt.state_dict()
    grads = dict(zip("abd", GRADS, strict=True))
    with pytest.raises(ValueError, match=r"grads\['d'\]: no parameter has this name, expected some of 'a', 'b', 'c'"):
        opt.step(form(grads))
    with pytest.raises(ValueError, match=r"grads\['b'\]: shape \(8,\), expected \(7,\)"):
        opt.step(form({"a": GRADS[0], "b": np.ones(8)}))
    with pytest.raises(ValueError, match=r"grads\['b'\]: shares memory with params\['b'\]"):
        opt.step(form({"a": GRADS[0], "b": params[1]}))
    assert_unchanged(opt, params, before)


def test_a_reversed_gradient_that_reaches_back_into_a_parameter():
    memory = np.ones(30)
    opt = rmsfast.RMSProp([memory[:10]])
    with pytest.raises(ValueError, match=r"grads\[0\]: shares memory with params\[0\]"):
        opt.step([memory[18:8:-1]])
    opt.step([memory[19:9:-1]])
    assert memory[:10].tolist() == [memory[0]] * 10
    assert memory[10:].tolist() == [1.0] * 20


def test_a_gradient_beside_a_parameter_is_no_overlap(rng):
    """Two columns of one table: the gradient's reach covers the parameter, but they share no element."""
    table = fleeting(rng, (8, 16), np.float32)
    w, g = table[3, 4:12], table[:, 2]
    expected = after_one_step(w, g)
    rmsfast.RMSProp([w]).step([g])
    assert_same_bits(w, expected)


def structured(values):
    table = np.zeros(values.shape, [("a", values.dtype), ("b", "f8")])
    return table["a"]


ONE = np.ones(6)
REFUSED_PARAMS = {
    "integers": (
        lambda: [np.ones(3, int)],
        TypeError,
        "params[0]: dtype int64, expected float32, float64, complex64 or complex128 in native",
    ),
    "objects": (lambda: [np.ones(3, object)], TypeError, "params[0]: dtype object, expected float32"),
    "half": (lambda: [ONE, np.ones(3, np.float16)], TypeError, "params[1]: dtype float16, expected float32, "),
    "longdouble": (lambda: [np.ones(3, np.longdouble)], TypeError, "expected float32, float64, complex64 or"),
    "complex": (lambda: [np.ones(3, np.clongdouble)], TypeError, "expected float32, float64, complex64 or"),
    "byte order": (
        lambda: [np.ones(3, ">f4")],
        TypeError,
        "params[0]: dtype >f4, expected float32, float64, complex64 or complex128 in native",
    ),
    "read-only": (lambda: [readonly(np.ones(3))], ValueError, "params[0]: read-only, expected a writable array"),
    "scalar": (lambda: [np.float32(1)], ValueError, "params[0]: read-only, expected a writable array"),
    "bytes": (lambda: b"abcd", TypeError, "params: dtype uint8, expected float32, "),
    "strided": (lambda: [np.ones(6)[::2]], ValueError, "params[0]: strides (16,) with shape (3,), expected a C- or"),
    "reversed": (lambda: [np.ones(6)[::-1]], ValueError, "params[0]: strides (-8,) with shape (6,), expected"),
    "transposed": (lambda: [np.ones((2, 3, 4)).swapaxes(0, 1)], ValueError, "expected a C- or F-contiguous array"),
    "field": (lambda: [structured(np.ones(3))], ValueError, "params[0]: strides (16,) with shape (3,)"),
    "misaligned": (
        lambda: [misaligned(np.ones(1))],
        ValueError,
        "params[0]: misaligned memory, expected an address that is a multiple of 8",
    ),
    "masked": (lambda: [np.ma.ones(3)], TypeError, "params[0]: a masked array, expected an array without a mask"),
    "list": (lambda: [[1.0, 2.0]], TypeError, "params[0]: list, expected a NumPy array"),
    "number": (lambda: 1.0, TypeError, "params: float, expected an array, a sequence or mapping of arrays, or"),
    "none": (lambda: None, TypeError, "params: NoneType, expected an array, a sequence or mapping"),
    "string": (lambda: "abc", TypeError, "params: str, expected an array, a sequence or mapping"),
    "set": (lambda: {1.0}, TypeError, "params: set, expected an array, a sequence or mapping of arrays"),
    "empty": (list, ValueError, "params: empty, expected at least one array"),
    "empty mapping": (dict, ValueError, "params: empty, expected at least one array"),
    "twice": (lambda: [ONE, np.ones(2), ONE], ValueError, "params[2]: shares memory with params[0]"),
    "overlap": (lambda: [ONE[:4], ONE[3:]], ValueError, "params[1]: shares memory with params[0]"),
    "overlap by name": (
        lambda: {"a": ONE[3:], "b": ONE[:4]},
        ValueError,
        "params['b']: shares memory with params['a']",
    ),
    "names": (lambda: {"a": ONE, 1: np.ones(2)}, TypeError, "params: a name 1, expected a str"),
    "half a group": (
        lambda: [{"params": ONE}, np.ones(2)],
        TypeError,
        "param_groups[1]: array([1., 1.]), expected a mapping",
    ),
    "no params": (lambda: [{"lr": 0.1}], TypeError, "param_groups[0]: {'lr': 0.1}, expected a mapping"),
    "unknown setting": (
        lambda: [{"params": ONE, "momentun": 1}],
        ValueError,
        "param_groups[0]['momentun']: no such setting",
    ),
    "setting of a group": (
        lambda: [{"params": ONE, "lr": -1}],
        ValueError,
        "param_groups[0]['lr']: -1, expected a number",
    ),
    "some names": (lambda: [{"params": {"a": ONE}}, {"params": [np.ones(2)]}], ValueError, "params: names in some"),
    "no names": (lambda: [{"params": [ONE]}, {"params": {"a": np.ones(2)}}], ValueError, "params: names in some"),
    "one name": (
        lambda: [{"params": {"a": ONE}}, {"params": {"a": np.ones(2)}}],
        ValueError,
        "params['a']: a name of two parameters",
    ),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("make", "error", "message"), REFUSED_PARAMS.values(), ids=REFUSED_PARAMS)
def test_refused_params(cls, make, error, message):
    with pytest.raises(error) as caught:
        cls(make())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        (
            {"params": [np.ones(2)], "beta": 2},
            ValueError,
            r"param_groups\[1\]\['beta'\]: 2, expected a number from 0 to 1",
        ),
        ({"params": [np.ones(2, int)]}, TypeError, r"params\[3\]: dtype int64"),
        ({"params": {"a": np.ones(2)}}, ValueError, "names in some groups"),
        ([np.ones(2)], TypeError, r"param_groups\[1\]: .*, expected a mapping with 'params'"),
    ],
)
def test_a_refused_group_changes_nothing(group, error, message):
    opt, params = trained()
    before = [w.copy() for w in params], opt.state_dict()
    with pytest.raises(error, match=message):
        opt.add_param_group(group)
    with pytest.raises(ValueError, match=r"params\[3\]: shares memory with params\[0\]"):
        opt.add_param_group({"params": params[0][1:2]})
    assert len(opt.param_groups) == 1
    assert_unchanged(opt, params, before)
    opt.step(GRADS)


NOT_ALLOWED = {
    "lr": [-1e-9, -np.inf, np.nan, np.float32(-1), -(10**400), 10**400],
    "beta": [-1e-9, 1.0000001, 2, np.nan, np.inf],
    "eps": [-1e-9, np.nan, -5],
}
NOT_NUMBERS = ["0.1", None, True, np.True_, 1j, [0.1], np.array([0.1]), np.zeros((1, 1)), object(), b"1"]
NOT_NUMBERS += [np.complex128(0.1), np.str_("0.1"), np.bytes_(b"1"), np.timedelta64(1, "s"), float]
NOT_NUMBERS += [np.array(value) for value in ("0.1", "abc", True, None, 1j)]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [(name, value, ValueError) for name, values in NOT_ALLOWED.items() for value in values]
    + [(name, value, TypeError) for name in NOT_ALLOWED for value in NOT_NUMBERS],
)
def test_refused_settings(name, value, error):
    w = np.ones(3)
    for cls in CLASSES:
        with pytest.raises(error, match=f"^{name}: .*expected a number"):
            cls(w, **{name: value})
        with pytest.raises(error, match=rf"^param_groups\[1\]\['{name}'\]: .*expected a number"):
            cls([{"params": np.ones(2)}, {"params": w, name: value}])
    for update in rmsfast.rmsprop_update, rmsfast.reference.rmsprop_update:
        v = np.ones(3)
        with pytest.raises(error, match=f"^{name}: .*expected a number"):
            update(w, v, np.ones(3), **{name: value})
        assert_same_bits(v, np.ones(3))

    opt, params = trained()
    before = [p.copy() for p in params], opt.state_dict()
    with pytest.raises(error, match=f"^{name}: "):
        opt.param_groups[0][name] = value
    with pytest.raises(error, match=f"^{name}: "):
        opt.param_groups[0].update({"lr": 0.5, "beta": 0.5, "eps": 0.5, name: value})
    if name == "lr":
        with pytest.raises(error, match="^lr: "):
            opt.lr = value
        opt.lr = lambda step: value
        with pytest.raises(error, match=r"^lr\(1\): .*expected a number ≥ 0"):
            opt.step(GRADS)
        opt.lr = 1e-3
    assert_unchanged(opt, params, before)


def test_the_keys_of_a_group_are_fixed():
    opt, _ = trained("abc")
    group = opt.param_groups[0]
    assert list(group) == ["params", "param_names", *SETTINGS]
    assert group["param_names"] == ("a", "b", "c")
    with pytest.raises(ValueError, match="'params': fixed"):
        group["params"] = []
    with pytest.raises(ValueError, match="momentun: no such setting"):
        group["momentun"] = 0.9
    with pytest.raises(TypeError, match="'lr': a parameter group keeps all its settings"):
        del group["lr"]
    with pytest.raises(TypeError, match="keeps all its settings"):
        group.clear()
    assert list(group) == ["params", "param_names", *SETTINGS]
    with pytest.raises(TypeError):
        opt.state["a"] = {}
    with pytest.raises(TypeError):
        opt.state["a"]["step"] = 5


def test_an_unknown_keyword():
    for cls in CLASSES:
        with pytest.raises(TypeError, match="'momentun'"):
            cls(np.ones(3), momentun=0.9)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.resize(1_000_000, refcheck=False),
        lambda w: w.resize(2, refcheck=False),
        lambda w: setattr(w, "shape", (2, 500)),
        lambda w: setattr(w, "dtype", np.float32),
        lambda w: setattr(w, "dtype", np.int64),
        lambda w: setattr(w, "dtype", ">f8"),
        lambda w: w.setflags(write=False),
    ],
)
@pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array has been deprecated:DeprecationWarning")
def test_a_parameter_that_changed_is_refused(change):
    other, w = np.ones(1000), np.ones(1000)
    opt = rmsfast.RMSProp([other, w])
    change(w)
    before = w.tobytes()
    with pytest.raises(ValueError, match=r"params\[1\]: resized or changed after it was given .* shape \(1000,\)"):
        opt.step([np.ones(1000), np.ones(1000)])
    assert_same_bits(other, np.ones(1000))
    assert w.tobytes() == before
    assert opt.state[0]["step"] == 0


def table(w=ONE, v=ONE, g=ONE):
    return lambda: (w.copy(), v.copy(), g.copy())


def two_in_one():
    memory = np.ones(10)
    return memory[:6], memory[4:], np.ones(6)


def all_one():
    w = np.ones(6)
    return w, np.ones(6), w


REFUSED_UPDATES = {
    "w": (lambda: ([1.0], ONE, ONE), TypeError, "w: list, expected a NumPy array"),
    "v": (lambda: (ONE, None, ONE), TypeError, "v: NoneType, expected a NumPy array"),
    "g": (lambda: (ONE, np.ones(6), 1.0), TypeError, "g: float, expected a NumPy array"),
    "w dtype": (table(w=np.ones(6, int)), TypeError, "w: dtype int64, expected float32, "),
    "v dtype": (table(v=np.ones(6, np.float32)), TypeError, "v: dtype float32, expected float64, as w"),
    "g dtype": (table(g=np.ones(6, np.float32)), TypeError, "g: dtype float32, expected float64, as the parameter"),
    "v shape": (table(v=np.ones(7)), ValueError, "v: shape (7,), expected (6,), as w"),
    "g shape": (table(g=np.ones(7)), ValueError, "g: shape (7,), expected (6,)"),
    "w read-only": (lambda: (readonly(np.ones(6)), ONE, ONE), ValueError, "w: read-only"),
    "v read-only": (lambda: (np.ones(6), readonly(np.ones(6)), ONE), ValueError, "v: read-only"),
    "order": (
        lambda: (np.ones((2, 3)), np.ones((2, 3), order="F"), np.ones((2, 3))),
        ValueError,
        "v: memory order differs, expected that of w",
    ),
    "v in w": (two_in_one, ValueError, "v: shares memory with w"),
    "g is w": (all_one, ValueError, "g: shares memory with w: pass a copy"),
    "masked": (lambda: (np.ones(6), np.ma.ones(6), ONE), TypeError, "v: a masked array"),
}


@pytest.mark.parametrize("update", [rmsfast.rmsprop_update, rmsfast.reference.rmsprop_update])
@pytest.mark.parametrize(("make", "error", "message"), REFUSED_UPDATES.values(), ids=REFUSED_UPDATES)
def test_refused_updates_change_nothing(update, make, error, message):
    arrays = make()
    before = copy.deepcopy(arrays)
    with pytest.raises(error) as caught:
        update(*arrays)
    assert message in str(caught.value)
    for a, b in zip(arrays, before, strict=True):
        assert np.array_equal(a, b)


# ---- State ----


@pytest.mark.parametrize("names", [None, "abc"])
def test_a_run_goes_on_from_its_state_dict(rng, names):
    opt, params = trained(names)
    opt.param_groups[0].update(lr=0.05, beta=0.8, eps=1e-4)
    saved, weights = opt.state_dict(), [w.copy() for w in params]
    grads = [[fleeting(rng, w.shape, w.dtype) for w in params] for _ in range(5)]
    for g in grads:
        opt.step(g)

    again = rmsfast.RMSProp(weights if names is None else dict(zip(names, weights, strict=True)))
    again.load_state_dict(saved)
    for g in grads:
        again.step(g)
    for a, b in zip(weights, params, strict=True):
        assert_same_bits(a, b)
    assert_same_state(again.state_dict(), opt.state_dict())


@pytest.mark.parametrize("cls", CLASSES)
def test_a_state_dict_has_what_new_settings_ask_for(cls, tmp_path):
    """As zeros, with which the next step begins."""
    w = np.ones(3)
    opt = cls(w)
    opt.step(np.ones(3))
    opt.param_groups[0].update(momentum=0.5, centered=True)
    saved = opt.state_dict()
    assert list(saved["state"][0]) == ["step", "square_avg", "grad_avg", "momentum_buffer"]
    opt.save(tmp_path / "saved")
    clone = copy.deepcopy(opt)
    again = cls(clone.param_groups[0]["params"][0].copy())
    again.load_state_dict(saved)
    third = cls(np.zeros(3))
    third.load(tmp_path / "saved")
    for each in (opt, clone, again, third):
        each.step(np.ones(3))
        assert_same_bits(each.param_groups[0]["params"][0], w)
        assert_same_state(each.state_dict(), opt.state_dict())


def test_the_layout_of_a_state_dict():
    opt = rmsfast.RMSProp([{"params": {"w": np.zeros(3)}}, {"params": {"b": np.zeros(2)}, "lr": lambda step: 0.1}])
    opt.step({"w": np.ones(3), "b": None})
    saved = opt.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert saved["param_groups"] == [
        {**SETTINGS, "params": ["w"]},
        {**{name: value for name, value in SETTINGS.items() if name != "lr"}, "step": 1, "params": ["b"]},
    ]
    assert {key: entry["step"] for key, entry in saved["state"].items()} == {"w": 1, "b": 0}
    assert list(saved["state"]["w"]) == ["step", "square_avg"]
    assert not np.shares_memory(saved["state"]["w"]["square_avg"], opt.state["w"]["square_avg"])


def test_the_names_of_a_group_are_taken_over():
    """A group of another optimizer, or in PyTorch's form, has its names beside its arrays."""
    a, b = np.ones(2), np.ones(3)
    named = rmsfast.RMSProp({"a": a, "b": b}, lr=0.5)
    again = rmsfast.RMSProp(named.param_groups)
    assert list(again.state) == ["a", "b"]
    assert again.lr == 0.5
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['param_names'\]: 1 name, expected 2"):
        rmsfast.RMSProp([{"params": [a, b], "param_names": ["a"]}])


def test_two_groups_are_equal_if_they_are_one():
    first, second = rmsfast.RMSProp([{"params": np.ones(2)}, {"params": np.ones(2)}]).param_groups
    assert (first, second).index(second) == 1


def test_messages_count_parameters_across_groups():
    a, b = np.ones(2), np.ones(3)
    with pytest.raises(TypeError, match=r"params\[2\]: list, expected"):
        rmsfast.RMSProp([{"params": [a, b]}, {"params": [[1.0]]}])
    opt = rmsfast.RMSProp([{"params": [a]}, {"params": [b]}])
    with pytest.raises(TypeError, match=r"params\[2\]: int, expected"):
        opt.add_param_group({"params": [5]})
    with pytest.raises(ValueError, match=r"grads \(param_groups\[1\]\): 2 gradients, expected 1"):
        opt.step([[a.copy()], [b.copy(), b.copy()]])


def test_an_empty_named_group():
    w, g = np.ones(3), np.ones(3)
    expected = after_one_step(w, g)
    opt = rmsfast.RMSProp([{"params": {}}, {"params": {"a": w}}])
    opt.step([{}, {"a": g}])
    assert_same_bits(w, expected)


def test_the_longest_count():
    opt, _ = trained()
    saved = opt.state_dict()
    saved["state"][0]["step"] = 2**53
    opt.load_state_dict(saved)
    opt.step(GRADS)
    assert opt.state[0]["step"] == 2**53 + 1


def test_a_schedule_counts_steps_not_gradients():
    """Two parameters trained in turn: the rate falls at every step, also over a save and a load."""
    asked = []
    schedule = lambda step: asked.append(step) or 0.1  # noqa: E731
    opt = rmsfast.RMSProp([np.ones(2), np.ones(2)], lr=schedule)
    for step in range(6):
        if step == 3:
            saved = opt.state_dict()
            opt = rmsfast.RMSProp([np.ones(2), np.ones(2)], lr=schedule)
            opt.load_state_dict(saved)
        opt.step([np.ones(2), None] if step % 2 else [None, np.ones(2)])
    assert asked == [0, 1, 2, 3, 4, 5]


def test_a_method_as_the_schedule_of_two_groups():
    class Schedule:
        calls = 0

        def rate(self, step):
            self.calls += 1
            return 0.1

    schedule = Schedule()
    opt = rmsfast.RMSProp([{"params": np.ones(2), "lr": schedule.rate}, {"params": np.ones(2), "lr": schedule.rate}])
    opt.step([np.ones(2), np.ones(2)])
    assert schedule.calls == 1


def test_a_schedule_that_replaces_itself_rules_to_the_end_of_the_step():
    w, v, expected = np.zeros(3), np.zeros(3), np.zeros(3)

    def schedule(step):
        opt.lr = 0.25
        return 0.5

    opt = rmsfast.RMSProp(w, lr=schedule)
    for lr in 0.5, 0.25:
        opt.step(np.ones(3))
        textbook(expected, v, np.ones(3), lr=lr)
        assert_same_bits(w, expected)


def test_settings_are_read_when_they_changed(monkeypatch):
    reads = []
    read_settings = rmsfast.optimizer.read_settings
    monkeypatch.setattr(rmsfast.optimizer, "read_settings", lambda *args: reads.append(1) or read_settings(*args))
    opt, _ = trained()
    for _ in range(3):
        opt.step(GRADS)
    assert len(reads) == 1
    opt.param_groups[0]["eps"] = 0.5
    for _ in range(3):
        opt.step(GRADS)
    assert len(reads) == 2


def test_a_name_that_runs_code_while_it_is_looked_up():
    """Whatever a name's == does to the arrays, a step sees it, and refuses or takes them as they are."""
    w, g = np.ones(10_000), np.ones(10_000)
    meddle = []

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            for meddled in meddle:
                meddled.resize(1, refcheck=False)
            return str.__eq__(self, other)

    opt = rmsfast.RMSProp({Name("a"): w, "b": np.ones(3)})
    assert [type(key) for key in opt.state] == [str, str]
    opt.step({"a": g, Name("b"): np.ones(3)})
    meddle.append(g)
    with pytest.raises(ValueError, match=r"grads\['a'\]: shape \(1,\), expected \(10000,\)"):
        opt.step({"a": g, Name("b"): np.ones(3)})
    meddle[:] = [w]
    with pytest.raises(ValueError, match=r"params\['a'\]: resized or changed"):
        opt.step({"a": np.ones(10_000), Name("b"): np.ones(3)})


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_shared_memory_is_found_as_numpy_finds_it(data):
    """Random strided gradients over a memory that holds the parameter are refused if, and only if, they share some."""
    memory = np.ones(400, np.float32)
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5))
    size = int(np.prod(shape))
    first = data.draw(st.integers(0, 400 - size))
    w = memory[first : first + size].reshape(shape)
    strides = [data.draw(st.integers(-80, 80)) for _ in shape]  # in bytes, so that elements may be misaligned
    low = sum(min(0, s * (n - 1)) for s, n in zip(strides, shape, strict=True))
    high = sum(max(0, s * (n - 1)) for s, n in zip(strides, shape, strict=True))
    start = data.draw(st.integers(-low, memory.nbytes - 4 - high))
    g = np.ndarray(shape, np.float32, memory, start, strides)
    opt = rmsfast.RMSProp([w])
    if np.shares_memory(w, g):
        with pytest.raises(ValueError, match=r"grads\[0\]: shares memory with params\[0\]: pass a copy"):
            opt.step([g])
        assert (memory == 1).all()
    else:
        expected = after_one_step(w, g.copy())
        opt.step([g])
        assert_same_bits(w, expected)


def test_a_schedule_stays_when_a_state_dict_is_loaded():
    rates = []
    opt = rmsfast.RMSProp(np.zeros(3), lr=lambda step: rates.append(step) or 0.1)
    for _ in range(3):
        opt.step(np.ones(3))
    saved = opt.state_dict()
    again = rmsfast.RMSProp(np.zeros(3), lr=lambda step: rates.append(step) or 0.1)
    again.load_state_dict(saved)
    again.step(np.ones(3))
    assert rates == [0, 1, 2, 3]


def test_state_swapped_with_itself():
    """Loading live arrays in another order copies before it writes."""
    opt = rmsfast.RMSProp([np.zeros(3), np.zeros(3)])
    opt.step([np.full(3, 1.0), np.full(3, 2.0)])
    first, second = (opt.state[i]["square_avg"].copy() for i in range(2))
    live = opt.state
    live[0]["square_avg"].flags.writeable = False  # of this view, which is nobody's way to ours
    opt.load_state_dict({**opt.state_dict(), "state": {0: live[1], 1: live[0]}})
    assert_same_bits(opt.state[0]["square_avg"], second)
    assert_same_bits(opt.state[1]["square_avg"], first)


def edit(path, value):
    """A change to a copy of a state dict: set what is at the path, or delete it for a value of `edit`."""

    def change(saved):
        part = saved
        for key in path[:-1]:
            part = part[key]
        if value is edit:
            del part[path[-1]]
        else:
            part[path[-1]] = value
        return saved

    return change


REFUSED_STATES = {
    "no mapping": (lambda saved: [saved], TypeError, "state_dict: list, expected a mapping"),
    "no state": (edit(["state"], edit), ValueError, "state_dict: has no 'state'"),
    "no groups": (edit(["param_groups"], edit), ValueError, "state_dict: has no 'param_groups'"),
    "state list": (edit(["state"], []), TypeError, "state_dict['state']: list, expected a mapping"),
    "groups dict": (edit(["param_groups"], {}), TypeError, "state_dict['param_groups']: dict, expected a list"),
    "fewer groups": (edit(["param_groups"], []), ValueError, "param_groups: 0 groups, expected 1"),
    "group": (edit(["param_groups", 0], 5), TypeError, "param_groups[0]: int, expected a mapping"),
    "group params": (edit(["param_groups", 0, "params"], edit), ValueError, "param_groups[0]: has no 'params'"),
    "other params": (
        edit(["param_groups", 0, "params"], [0, 2, 1]),
        ValueError,
        "param_groups[0]['params']: [0, 2, 1]",
    ),
    "lr": (edit(["param_groups", 0, "lr"], -1.0), ValueError, "param_groups[0]['lr']: -1.0, expected"),
    "setting": (edit(["param_groups", 0, "foreach"], True), ValueError, "param_groups[0]['foreach']: no such"),
    "entry": (edit(["state", 1], edit), ValueError, "state: has no 1, expected one"),
    "entry type": (edit(["state", 1], None), TypeError, "state[1]: NoneType, expected a mapping"),
    "unknown entry": (edit(["state", 7], {}), ValueError, "state[7]: no such parameter"),
    "unknown name": (edit(["state", 1, "exp_avg"], 0), ValueError, "state[1]['exp_avg']: unknown"),
    "step": (edit(["state", 1, "step"], -1), ValueError, "state[1]['step']: -1, expected a count from 0"),
    "step type": (edit(["state", 1, "step"], "3"), TypeError, "state[1]['step']: '3', expected an integer"),
    "step fraction": (edit(["state", 1, "step"], 1.5), TypeError, "state[1]['step']: 1.5, expected an integer"),
    "step nan": (edit(["state", 1, "step"], np.nan), ValueError, "state[1]['step']: nan, expected a count from 0"),
    "step huge": (edit(["state", 1, "step"], 2**63), ValueError, "state[1]['step']: 9223372036854775808, expected"),
    "step complex": (edit(["state", 1, "step"], np.complex128(3)), TypeError, "expected an integer"),
    "step text": (edit(["state", 1, "step"], np.array("3")), TypeError, "expected an integer"),
    "step too long": (edit(["state", 1, "step"], 10**400), ValueError, "state[1]['step']: 1000"),
    "steps taken": (edit(["param_groups", 0, "step"], -2), ValueError, "param_groups[0]['step']: -2, expected a count"),
    "no step": (edit(["state", 1, "step"], edit), ValueError, "state[1]: has no 'step'"),
    "no average": (edit(["state", 2, "square_avg"], edit), ValueError, "state[2]: has no 'square_avg'"),
    "list": (edit(["state", 2, "square_avg"], [1.0]), TypeError, "state[2]['square_avg']: list, expected a NumPy"),
    "dtype": (edit(["state", 2, "square_avg"], np.ones((3, 4))), TypeError, "dtype float64, expected float32"),
    "shape": (
        edit(["state", 2, "square_avg"], np.ones((4, 3), np.float32)),
        ValueError,
        "state[2]['square_avg']: shape (4, 3), expected (3, 4)",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED_STATES.values(), ids=REFUSED_STATES)
def test_refused_state_dicts_change_nothing(change, error, message):
    opt, params = trained()
    before = [w.copy() for w in params], opt.state_dict()
    saved = opt.state_dict()
    saved["param_groups"][0]["lr"] = 0.5
    for entry in saved["state"].values():
        entry["square_avg"] += 1
    with pytest.raises(error) as caught:
        opt.load_state_dict(change(saved))
    assert message in str(caught.value)
    assert_unchanged(opt, params, before)


@pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array has been deprecated:DeprecationWarning")
def test_a_state_that_fitted_for_a_moment_changes_nothing():
    """A parameter has another shape while its state is looked at, and its own again when that is taken over."""
    opt, params = trained()
    saved = opt.state_dict()
    for entry in saved["state"].values():
        entry["square_avg"] += 1

    class Reshaping(dict):
        def get(self, key, default=None):
            params[0].shape = (50,) if key == 0 else (5, 10)
            return dict.get(self, key, default)

    saved["state"][0]["square_avg"] = saved["state"][0]["square_avg"].reshape(50)
    before = [w.copy() for w in params], opt.state_dict()
    with pytest.raises(
        ValueError, match=r"state\[0\]\['square_avg'\]: float32 of shape \(50,\), expected float32 of shape \(5, 10\)"
    ):
        opt.load_state_dict({**saved, "state": Reshaping(saved["state"])})
    assert_unchanged(opt, params, before)


def test_step_counts_of_other_types():
    opt, _ = trained()
    saved = opt.state_dict()
    for i, count in enumerate([np.array(4.0, np.float32), np.int64(5), 6.0]):
        saved["state"][i]["step"] = count
    opt.load_state_dict(saved)
    assert [entry["step"] for entry in opt.state.values()] == [4, 5, 6]


def identity_schedule(step):
    return 0.1 / (1 + step)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
@pytest.mark.parametrize("cls", CLASSES)
def test_copies_and_pickles_go_on_alone(rng, clone, cls):
    for params in (
        np.ones((3, 4), order="F"),
        [np.ones(3), np.ones(4)],
        {"w": np.ones(3)},
        [{"params": {"a": np.ones(3)}, "beta": 0.5}, {"params": {"b": np.ones(4, np.float32)}}],
    ):
        opt = cls(params, lr=identity_schedule, num_threads=2)
        arrays = [w for group in opt.param_groups for w in group["params"]]
        opt.step([fleeting(rng, w.shape, w.dtype) for w in arrays])
        opt.param_groups[0]["eps"] = 0.5
        twin = clone(opt)
        assert type(twin) is cls
        assert repr(twin) == repr(opt)
        assert_same_state(twin.state_dict(), opt.state_dict())
        twins = [w for group in twin.param_groups for w in group["params"]]
        grads = [fleeting(rng, w.shape, w.dtype) for w in arrays]
        before = [w.copy() for w in arrays]
        twin.step(grads)
        for w, b in zip(arrays, before, strict=True):
            assert_same_bits(w, b)
        opt.step(grads)
        for w, t in zip(arrays, twins, strict=True):
            assert_same_bits(t, w)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_have_taken_as_many_steps(clone):
    """More than any of the parameters, for a schedule that is set later."""
    opt = rmsfast.RMSProp([np.ones(2), np.ones(2)])
    opt.step([np.ones(2), None])
    opt.step([None, np.ones(2)])
    for each in (opt, clone(opt)):
        asked = []
        each.lr = lambda step, asked=asked: asked.append(step) or 0.1
        each.step([np.ones(2), None])
        assert asked == [2]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_of_groups_whose_settings_need_each_other(clone):
    """The constructor's alone would have no meaning."""
    opt = rmsfast.RMSProp([{"params": [np.ones(3)], "momentum": 0.9}], nesterov=True)
    opt.add_param_group({"params": np.ones(2), "nesterov": False, "initial_square_avg": 4.0})
    twin = clone(opt)
    assert [group.settings() for group in twin.param_groups] == [group.settings() for group in opt.param_groups]
    with pytest.raises(ValueError, match="nesterov: True with momentum 0"):
        twin.add_param_group({"params": np.ones(1)})  # its defaults, too

    opt = rmsfast.RMSProp(np.ones(3), momentum=0.9, nesterov=True)
    opt.param_groups[0].update(momentum=0, nesterov=False)
    twin = clone(opt)
    twin.step(np.ones(3))  # one array, still
    assert twin.param_groups[0].settings() == opt.param_groups[0].settings()


def test_a_copy_of_a_group_is_a_dict():
    group = rmsfast.RMSProp({"w": np.ones(3)}).param_groups[0]
    for twin in copy.copy(group), copy.deepcopy(group), pickle.loads(pickle.dumps(group)), dict(group):
        assert type(twin) is dict
        assert list(twin.items())[1:] == [("param_names", ("w",)), *SETTINGS.items()]
        twin["lr"] = "anything"
    assert group["lr"] == 1e-3


def test_many_groups_are_made_at_once():
    """One line for all groups, not one after another: otherwise this takes minutes."""
    params = [np.ones(1) for _ in range(3000)]
    opt = rmsfast.RMSProp([{"params": w, "lr": 1 / (1 + i)} for i, w in enumerate(params)], eps=0.0)
    opt.step([np.ones(1)] * 3000)
    assert params[2999][0] == pytest.approx(1 - 1 / 3000 / 0.1**0.5)


class Tagged(rmsfast.RMSProp):
    pass


def test_copies_of_a_subclass_keep_its_attributes():
    opt = Tagged(np.ones(3))
    opt.tag = ["anything"]
    for twin in copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)):
        assert type(twin) is Tagged
        assert twin.tag == ["anything"]


def test_a_shallow_copy_shares_parameters_and_state():
    w, v, expected = np.ones(3), np.zeros(3), np.ones(3)
    opt = rmsfast.RMSProp(w)
    for each in opt, copy.copy(opt):
        each.step(np.ones(3))
        textbook(expected, v, np.ones(3))
    assert_same_bits(w, expected)
    assert opt.state[0]["step"] == 2


class Stepping(np.ndarray):
    """An array that is trained on while it is copied or pickled, as by another thread."""

    def __deepcopy__(self, memo):
        self.step()
        return np.array(self)

    def __reduce__(self):
        self.step()
        return np.array, (np.array(self),)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
@pytest.mark.parametrize("form", [list, lambda params: params[0]])
def test_copies_have_parameters_and_state_of_one_moment(clone, form):
    w = np.zeros(3).view(Stepping)
    opt = rmsfast.RMSProp(form([w]), lr=1.0, beta=0.0, eps=0.0)
    w.step = lambda: opt.step(form([np.ones(3)]))
    for steps in range(3):
        twin = clone(opt)
        assert twin.state[0]["step"] == steps
        assert (twin.param_groups[0]["params"][0] == -steps).all()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_keep_a_model_and_its_optimizer_together(clone):
    model = {"w": np.ones(3)}
    twin_model, twin = clone((model, rmsfast.RMSProp(model)))
    twin.step({"w": np.ones(3)})
    assert twin_model["w"][0] != 1.0
    assert model["w"][0] == 1.0


def test_repr():
    opt = rmsfast.RMSProp([{"params": [np.ones((2, 3)), np.ones(4)]}, {"params": np.ones(5), "lr": 0.5}])
    assert repr(opt) == (
        "RMSProp(\n"
        "    2 arrays, 10 elements, lr=0.001, beta=0.9, eps=1e-08\n"
        "    1 array, 5 elements, lr=0.5, beta=0.9, eps=1e-08\n"
        ")"
    )


# ---- Memory and threads ----


def test_state_lies_as_the_parameter_does(rng):
    for shape, order in [((3, 4), "C"), ((3, 4), "F"), ((), "C"), ((0, 3), "C"), ((7,), "C")]:
        w = np.asarray(fleeting(rng, shape, np.float32), order=order)
        square_avg = rmsfast.RMSProp([w]).state[0]["square_avg"]
        assert square_avg.strides == w.strides or w.size == 0
        if w.size > 0:
            difference = square_avg.__array_interface__["data"][0] - w.__array_interface__["data"][0]
            assert difference % 64 == 0


@pytest.mark.parametrize("shapes", [[1 << 20], [1000] * 200])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.thread_unsafe(reason="tracemalloc counts the whole process")
def test_a_step_allocates_nothing(shapes, named):
    params = {f"w{i}": np.ones(n, np.float32) for i, n in enumerate(shapes)}
    grads = {name: np.full_like(w, 0.1) for name, w in params.items()}
    opt = rmsfast.RMSProp(params if named else list(params.values()))
    grads = grads if named else list(grads.values())
    opt.step(grads)
    tracemalloc.start()
    try:
        opt.step(grads)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(1000):
            opt.step(grads)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 1000  # the loop's own integer, the frame of `step`; less than any array


def test_arrays_are_released():
    """Without the help of the garbage collector: state can be most of a program's memory."""
    import weakref

    class Array(np.ndarray):
        pass

    w, g = np.ones(10).view(Array), np.ones(10)
    alive = weakref.ref(w)
    references = sys.getrefcount(g)
    opt = rmsfast.RMSProp([w])
    opt.step([g])
    opt.add_param_group({"params": np.ones(4)})
    with pytest.raises(ValueError, match="shape"):
        opt.step([g, np.ones(5)])
    assert sys.getrefcount(g) == references
    del w, opt
    assert alive() is None


def test_threads_that_share_an_optimizer_are_serialized(rng):
    n, steps, workers = 40_000, 50, 4
    w, v = np.ones(n, np.float32), np.zeros(n, np.float32)
    g = fleeting(rng, n, np.float32)
    actual = w.copy()
    opt = rmsfast.RMSProp(actual)
    threads = [threading.Thread(target=lambda: [opt.step(g) for _ in range(steps)]) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(steps * workers):
        textbook(w, v, g)
    assert opt.state[0]["step"] == steps * workers
    assert_same_bits(actual, w)
    assert_same_bits(opt.state[0]["square_avg"], v)


@pytest.mark.parametrize(("n", "released"), [(100, False), (1 << 21, True)])
@pytest.mark.thread_unsafe(reason="sets the interval in which all threads take turns")
def test_the_gil_is_released_in_long_steps_only(n, released):
    """Without any switch but an explicit one, another thread gets to run during a step if the step lets it."""
    w, g = np.ones(n, np.float32), np.ones(n, np.float32)
    opt = rmsfast.RMSProp(w, num_threads=1)
    opt.step(g)
    go, ran = threading.Event(), []
    thread = threading.Thread(target=lambda: go.wait() and ran.append(True))
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        go.set()
        for _ in range(20):
            opt.step(g)
        during = bool(ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert during == released


def test_import_loads_nothing_heavy():
    """NumPy, and no module that NumPy has not loaded already."""
    program = "import sys, numpy; before = set(sys.modules); import rmsfast; print(*(set(sys.modules) - before))"
    output = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True).stdout
    foreign = {name for name in output.split() if not name.startswith(("rmsfast", "_cython_", "cython_runtime"))}
    assert foreign == set()
