"""Garbage at every public call: the documented effect, or a documented exception with nothing changed.

Here the same few examples run each time. `RMSFAST_FUZZ=20000 pytest -k garbage` runs so many new ones of each kind
instead, and says how many calls that were.
"""

import array
import contextlib
import copy
import decimal
import fractions
import itertools
import os
import pickle
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import SHORT_STRETCHES, assert_same_bits, every_kind_of_number, misaligned
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import rmsfast
from rmsfast._core.threads import _tune

pytestmark = [
    pytest.mark.thread_unsafe(reason="sets the process's number of threads, and its current folder"),
    # NumPy would rather not have shapes and the like set; these tests do it because users do.
    pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array has been deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.* returned non-(int|float):DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
    pytest.mark.filterwarnings("ignore:grads. no gradient of:UserWarning"),
]

EXAMPLES = int(os.environ.get("RMSFAST_FUZZ", 0))
calls = itertools.count()


def budget(few, **kwargs):
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # making a failure smaller takes minutes
        suppress_health_check=list(HealthCheck),
        **kwargs,
    )


@pytest.fixture(scope="module", autouse=True)
def threads_share_even_a_handful_of_elements(request, tmp_path_factory):
    old, threads = _tune(**SHORT_STRETCHES), rmsfast.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("files"))
        patch.setattr(os, "fsync", lambda descriptor: None)  # nothing crashes here, and disks are slow
        yield
    _tune(**old)
    rmsfast.set_num_threads(threads)
    if EXAMPLES:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{next(calls)} calls")


class Mischief(Exception):
    """What the objects here raise; it may come through."""


class Missing(Mischief, KeyError, IndexError, AttributeError):
    """The same, where a protocol gives it a meaning."""


def allowed(call, *args, **kwargs):
    """Whether a call came to its end; it may raise what is allowed. Returns that, and what came."""
    next(calls)
    try:
        return True, call(*args, **kwargs)
    except (TypeError, ValueError, FloatingPointError, Mischief) as error:
        return False, f"{type(error).__name__}: {error}"


# ---- Recipes for garbage. What is made of one is new each time, and does the same each time ----


class Lie(NamedTuple):
    """An object whose special methods answer from lists, and stay with the last answer. Exceptions are raised."""

    base: type
    answers: dict


class Pairs(NamedTuple):
    """A dict, whose keys may be recipes, too."""

    pairs: list


class Twist(NamedTuple):
    """An array: that of a parameter but for what is not None, with random numbers, in some layout; or rows of one."""

    layout: str = "plain"
    dtype: Any = None
    shape: Any = None
    seed: int = 0
    indices: Any = None


def made(recipe, w=None):
    """Make what a recipe stands for, beside a parameter w."""
    if isinstance(recipe, Lie):
        answers = made({"__getattr__": [Missing], "__missing__": [Missing]} | recipe.answers)
        if "__eq__" in answers:
            answers.setdefault("__hash__", [0])
        return type("Liar", (recipe.base,), {name: lying_method(name, answers[name]) for name in answers})()
    if isinstance(recipe, Pairs):
        pairs = {}
        for key, value in recipe.pairs:
            with contextlib.suppress(TypeError, ValueError, Mischief):  # no key, or one that will not be
                pairs[made(key)] = made(value, w)
        return pairs
    if isinstance(recipe, Twist):
        w = np.zeros(3, np.float32) if w is None else w
        shape = recipe.shape
        if shape is None:
            shape = w.shape if recipe.indices is None else (len(recipe.indices), *w.shape[1:])
        a = LAYOUTS[recipe.layout](numbers(recipe.seed, np.dtype(recipe.dtype or w.dtype), shape))
        return a if recipe.indices is None else rmsfast.Rows(recipe.indices, a)
    if type(recipe) in (list, tuple):
        return type(recipe)(made(part, w) for part in recipe)
    if type(recipe) is dict:
        return {key: made(value, w) for key, value in recipe.items()}
    return copy.copy(recipe) if isinstance(recipe, (bytearray, array.array, np.ndarray)) else recipe


def lying_method(name, rest):
    def answer(self, *args, **kwargs):
        value = rest.pop(0) if len(rest) > 1 else rest[0]
        if isinstance(value, type) and issubclass(value, Exception):
            raise value
        return iter(value) if name == "__iter__" and isinstance(value, tuple) else value

    return property(answer) if name in PROPERTIES else answer


def numbers(seed, dtype, shape):
    """Numbers of every kind, or of ordinary size, of a dtype that can be trained; zeros of any other."""
    if dtype.newbyteorder("=") not in map(np.dtype, FLOATS):
        return np.zeros(shape, dtype)
    rng, real = np.random.default_rng(seed), dtype.type(0).real.dtype
    size = int(np.prod(shape)) * dtype.itemsize // real.itemsize
    flat = rng.standard_normal(size).astype(real) if seed % 4 else every_kind_of_number(rng, size, real)
    return flat.view(dtype.newbyteorder("=")).astype(dtype).reshape(shape)


class Holder:
    """Hands its memory over by DLPack."""

    def __init__(self, a, line=None):
        self.a = a
        self.line = [] if line is None else line  # a list that is emptied on the way

    def __dlpack__(self, **kwargs):
        self.line[:] = []
        return self.a.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.a.__dlpack_device__()


class Touchy(np.ndarray):
    """An array that nobody may read, write or compute with as Python does."""

    def refuse(self, *args, **kwargs):
        raise Mischief

    __getitem__ = __setitem__ = __array_function__ = __array_ufunc__ = __eq__ = __len__ = __iter__ = refuse
    __hash__ = None


def mapped(a):
    with tempfile.TemporaryFile() as file:
        memory = np.memmap(file, a.dtype, "w+", shape=(max(a.size, 1),))
    memory = memory[: a.size].reshape(a.shape, order="F" if a.flags.fnc else "C")
    memory[...] = a
    return memory


LAYOUTS = {
    "plain": lambda a: a,
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a[..., None], 2, -1)[..., 0],
    "reversed": lambda a: a.reshape(-1)[::-1].copy()[::-1].reshape(a.shape),
    "misaligned": lambda a: misaligned(a) if a.size and a.dtype.alignment > 1 and not a.dtype.hasobject else a,
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "folded": lambda a: np.lib.stride_tricks.as_strided(a, a.shape, [0] * a.ndim),
    "swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "matrix": lambda a: a.view(np.matrix) if a.ndim == 2 else a,
    "masked": np.ma.array,
    "memmap": mapped,
    "recarray": lambda a: a.view(np.recarray),
    "touchy": lambda a: a.view(Touchy),
    "memoryview": lambda a: memoryview(a) if a.dtype.kind in "iuf" else a,
    "bytearray": lambda a: bytearray(a.tobytes()),
    "array.array": lambda a: array.array("d" if a.dtype == "f8" else "f", bytes(a.nbytes // 8 * 8)),
    "DLPack": Holder,
    "list": np.ndarray.tolist,
    "scalar": lambda a: a.reshape(-1)[0] if a.size and a.dtype.kind in "fc" else None,
    "__array__": lambda a: type("Arrayish", (), {"__array__": lambda self, *args, **kwargs: a})(),
}
GOOD_LAYOUTS = ["plain", "plain", "Fortran", "strided", "reversed", "misaligned", "read-only", "folded"]
SHAPES = [(), (0,), (1,), (3,), (7,), (2, 3), (3, 2), (0, 3), (3, 0), (70,), (5, 1, 3), (1, 1)]
FLOATS = ["f4", "f8", "c8", "c16"]
DTYPES = [*FLOATS, ">f4", ">c16", "f2", "g", "G", "?", "i1", "i4", "u8", "M8[s]", "S3", "U2", "O", "V5", "f4,i2"]

ORDINARY = [0, 0.0, -0.0, 1, 0.5, 1e-3, 3, True, False, None, fractions.Fraction(1, 3), decimal.Decimal("0.1")]
EXTREME = [1e300, 1e-320, 5e-324, sys.float_info.max, np.nextafter(1, 0), np.inf, np.nan, decimal.Decimal("sNaN")]
TOO_LARGE = [2**53 + 1, 2**62, 2**63, 2**1024, -(2**1024), 10**4000]
NEGATIVE = [-1, -5, -0.1, -1e-320, -np.inf]
OF_NUMPY = [np.float32(0.1), np.float64(0.1), np.float16(1), np.longdouble("0.1"), np.int8(1), np.uint64(2**64 - 1)]
ARRAYS = [np.array(0.5), np.array([0.5]), np.array("1"), np.array(b"1"), np.array(1, object), np.array(1, ">f8")]
NO_NUMBERS = [np.complex64(1), np.bool_(True), np.datetime64(1, "s"), np.str_("1"), np.bytes_(b"1"), 1j, "0.1", b"1"]
OBJECTS = [bytearray(b"1"), array.array("B", b"1"), memoryview(b"1"), (), [], {}, object(), float, len, Ellipsis]
VALUES = [*ORDINARY, *EXTREME, *TOO_LARGE, *NEGATIVE, *OF_NUMPY, *ARRAYS, *NO_NUMBERS, *OBJECTS]
WORDS = ["propagate", "raise", "skip", "", "lr", "params", "param_names", "step", "state", "a", "b", "\ud800", "é/../x"]

REALS = ["lr", "beta", "eps", "momentum", "weight_decay", "initial_square_avg"]
LIMITS = ["clip_value", "clip_norm", "clip_global_norm"]
SWITCHES = ["nesterov", "centered", "decoupled_weight_decay", "eps_inside_sqrt", "lr_in_momentum", "bias_correction"]
SETTINGS = {
    **{name: [0, 0.5, 1e-3, 1.0, np.float32(2)] for name in REALS},
    **{name: [None, None, 0.5, 3, np.inf] for name in [*LIMITS, "clip_weights"]},
    **{name: [False, True, np.bool_(True)] for name in [*SWITCHES, "maximize"]},
    "beta": [0, 0.5, 0.9, 1],
    "nonfinite": ["propagate", "raise", "skip"],
    "ema_decay": [None, None, 0, 0.9, 1],
    "state_dtype": [None, None, None, "bfloat16", "uint8"],
    "master_weights": [False, False, True],
    "rounding": ["nearest", "nearest", "stochastic"],
    "seed": [0, 1, np.int64(2**62)],
}
PROPERTIES = ["__class__", "ndim", "dtype", "shape", "indices", "values"]
LOOKS = ["__len__", "__iter__", "__getitem__", "__contains__", "__bool__", "__length_hint__", "keys", "items", "get"]
CONVERSIONS = ["__float__", "__index__", "__int__", "__call__", "__hash__", "__eq__", "__ne__", "__fspath__"]
HANDOVERS = ["__array__", "__array_interface__", "__dlpack__", "__dlpack_device__"]
CLASSES = [np.ndarray, np.ma.MaskedArray, dict, Mapping, list, tuple, str, float, int, bool, rmsfast.Rows, np.float64]
ERRORS = [Mischief, TypeError, ValueError, Missing]


def lists_of(strategy, least=0, most=3):
    return st.lists(strategy, min_size=least, max_size=most)


@st.composite
def mostly(draw, usual, odd):
    return draw(odd if draw(st.integers(0, 9)) == 9 else usual)


def twists_of(layouts):
    dtypes, shapes = (mostly(st.none(), st.sampled_from(odd)) for odd in (DTYPES, SHAPES))
    all_layouts = mostly(st.sampled_from(layouts), st.sampled_from(list(LAYOUTS)))
    return st.builds(Twist, all_layouts, dtypes, shapes, st.integers(0, 999), st.none())


twists = twists_of(GOOD_LAYOUTS)
answers = st.sampled_from([*VALUES, *WORDS, *ERRORS, *CLASSES]) | twists
answers |= st.tuples(twists, twists) | st.tuples(*[st.sampled_from(WORDS)] * 2)
lies = st.builds(
    Lie,
    st.sampled_from([object, object, list, dict, str, float, int, OrderedDict]),
    st.dictionaries(
        st.sampled_from([*LOOKS, *CONVERSIONS, *HANDOVERS, *PROPERTIES]), lists_of(answers, 1), min_size=1, max_size=4
    ),
)
garbled = st.sampled_from(VALUES) | lies  # in the place of a setting
leaves = garbled | st.sampled_from(WORDS) | twists
keys = leaves | st.sampled_from([*SETTINGS, "params", "param_names"])
junk = st.recursive(
    leaves,
    lambda inner: lists_of(inner) | st.builds(Pairs, lists_of(st.tuples(keys, inner))),
    max_leaves=5,
)


@st.composite
def some_settings(draw, most=4, odd=garbled):
    """Settings, most of them allowed."""
    names = draw(st.lists(st.sampled_from(list(SETTINGS)), max_size=most, unique=True))
    return {name: draw(mostly(st.sampled_from(SETTINGS[name]), odd)) for name in names}


# ---- What has to hold ----


def assert_legal(values):
    """What a group holds is what the documentation allows, each value of one type."""
    assert set(values) == set(SETTINGS)
    for name, value in values.items():
        assert type(name) is str
        if name in REALS:
            assert (name == "lr" and callable(value)) or (type(value) is float and value >= 0)
        elif name in [*LIMITS, "clip_weights"]:
            assert value is None or (type(value) is float and 0 < value < np.inf)
        elif name == "ema_decay":
            assert value is None or (type(value) is float and 0 <= value <= 1)
        elif name == "seed":
            assert type(value) is int
            assert 0 <= value < 2**63
        elif name in ("nonfinite", "state_dtype", "rounding"):
            assert value in SETTINGS[name]
            assert type(value) in (str, type(None))
        else:
            assert type(value) is bool
    assert values["beta"] <= 1
    assert values["momentum"] > 0 or not values["nesterov"]
    assert values["beta"] < 1 or not values["bias_correction"]
    assert sum(values[name] is not None for name in LIMITS) <= 1


def flat(a):
    """A copy of an array's real numbers, in the order of its elements."""
    a = np.array(np.asarray(a), order="C").reshape(-1)
    return a.view(a.real.dtype)


def params_of(opt):
    """The parameters, as arrays of no subclass, and of their own: changes of shape and the like leave these alone."""
    return [np.asarray(w)[...] for group in opt.param_groups for w in group["params"]]


def written_by(opt):
    """All memory that steps of an optimizer write."""
    return params_of(opt) + [a for entry in opt.state.values() for name, a in entry.items() if name != "step"]


def contents_of(opt):
    """The arrays of an optimizer, and all else that it holds. Of schedules only that they are there."""
    saved = opt.state_dict()
    arrays, state = params_of(opt), []
    for key, entry in saved["state"].items():
        names = sorted(set(entry) - {"step"})
        arrays += [entry[name] for name in names]
        state.append((key, entry["step"], names))
    return arrays, (state, saved["param_groups"], opt.skipped_steps)


def everything(opt):
    """All that a refused call leaves as it is, to be compared."""
    arrays, rest = contents_of(opt)
    return [a.tobytes() for a in arrays], rest


def assert_same(opt, twin):
    """Two optimizers are at the same place, with the same bits."""
    (arrays, rest), (expected_arrays, expected) = contents_of(opt), contents_of(twin)
    assert rest == expected
    for a, b in zip(arrays, expected_arrays, strict=True):
        assert_same_bits(flat(a), flat(b))


def memory(value):
    """The array of which a gradient is made, or None."""
    value = value.values if isinstance(value, rmsfast.Rows) else value
    if isinstance(value, (Holder, np.ndarray)):
        return np.asarray(value.a if isinstance(value, Holder) else value)
    try:
        return np.asarray(memoryview(value))
    except (TypeError, RuntimeError):
        return None


def bytes_of(grads):
    return [a.tobytes() for a in map(memory, grads) if a is not None]


def counts_of(grads):
    return [sys.getrefcount(g) for g in grads if isinstance(g, np.ndarray)]


def plain_gradient(value, w, own):
    """A copy of the gradient of w that a value stands for, or False where it has to be refused.

    This is the documentation once more, in NumPy. `own` is the optimizer's memory.
    """
    if value is None:
        return None
    a = memory(value)
    masked = isinstance(getattr(value, "values", value), np.ma.MaskedArray)
    halves = {a.dtype, w.dtype} == {np.dtype("f2"), np.dtype("f4")} if a is not None else False
    if a is None or masked or not (a.dtype == w.dtype or halves) or any(np.shares_memory(a, other) for other in own):
        return False
    if not isinstance(value, rmsfast.Rows):
        return a.copy() if a.shape == w.shape else False
    rows = np.array(value.indices)
    if w.ndim == 0 or a.shape != (len(rows), *w.shape[1:]):
        return False
    if len(rows) and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(w)):
        return False
    return rmsfast.Rows(value.indices, a.copy())


# ---- The life of one optimizer, beside its twin in NumPy ----


class Form(NamedTuple):
    """Parameters: shapes, dtypes, orders and layouts, in groups with settings, with names or without."""

    named: bool
    groups: list
    names: str

    def groups_of(self, plain=False):
        rng, names = np.random.default_rng(0), iter(self.names)
        for members, values in self.groups:
            arrays = []
            for shape, dtype, order, layout in members:
                a = np.array(rng.standard_normal(shape), order=order).astype(dtype, order="K")
                arrays.append(LAYOUTS["plain" if plain else layout](a))
            yield {"params": {next(names): w for w in arrays} if self.named else arrays, **values}

    def make(self, plain=False):
        groups = list(self.groups_of(plain))
        alone = len(groups) == len(groups[0]) == len(groups[0]["params"]) == 1 and not self.named
        return groups[0]["params"][0] if alone else groups


class Schedule:
    """A learning rate that answers from a list, over and over; exceptions are raised."""

    def __init__(self, answers):
        self.answers = answers
        self.calls = 0

    def __call__(self, step):
        self.last = self.answers[self.calls % len(self.answers)]
        self.calls += 1
        if self.last is Mischief:
            raise Mischief
        return self.last


TAMPERING = {
    "write": lambda w: w.setflags(write=False),
    "shape": lambda w: setattr(w, "shape", (*w.shape, 1)),
    "byte order": lambda w: setattr(w, "dtype", w.dtype.newbyteorder("S")),
    "dtype": lambda w: setattr(w, "dtype", np.dtype(f"V{w.itemsize}")),
}
PLACES = ["list", "tuple", "generator", "emptied", "dict", "ordered", "groups", "one"]

param_layouts = st.sampled_from(["plain", "plain", "plain", "touchy", "memmap", "recarray", "matrix", "memoryview"])
members = lists_of(st.tuples(st.sampled_from(SHAPES), st.sampled_from(FLOATS), st.sampled_from("CF"), param_layouts), 1)
forms = st.builds(
    Form, st.booleans(), lists_of(st.tuples(members, some_settings(3, odd=st.just(0.5))), 1, 2), st.just("abcdefgh")
)
indices = lists_of(st.sampled_from([*[0, 1, 2] * 6, -1, 99, 2**63, 2**70, 0.5, "1"]), 0, 4)
rows = st.builds(lambda twist, indices: twist._replace(indices=indices), twists, indices)
aliases = st.sampled_from(["param", "first param", "reversed", "square_avg", "first gradient"])
kinds_of_gradients = lists_of(mostly(mostly(twists, rows), st.none() | rows | aliases), 1)
places = st.sampled_from([*PLACES * 4, "too few", "too many", "unknown", "with junk"])
scales = mostly(st.sampled_from([1.0, 1.0, 0.25, 3, 0, np.float32(0.5)]), garbled)
damages = lists_of(
    st.tuples(st.integers(0, 99), st.sampled_from(["delete", "replace", "rename", "twist"]), garbled | junk, twists),
    least=1,
)


def damaged(saved, damage):
    """A state dict with some of its parts gone, changed or under another key."""
    for place, what, other, twist in damage:
        parts = list(parts_of(saved))
        with contextlib.suppress(TypeError, ValueError, IndexError, Mischief):  # no parts left, or keys that lie
            container, key = parts[place % max(len(parts), 1)]
            part = container[key]
            if what == "twist" and type(part) is np.ndarray:
                container[key] = made(twist, part)
            elif what == "rename" and type(container) is dict:
                del container[key]
                container[made(other)] = part
            elif what == "replace":
                container[key] = made(other)
            else:
                del container[key]
    return saved


def parts_of(container):
    """Every place in nested dicts and lists, as container and key."""
    for key, part in list(container.items() if type(container) is dict else enumerate(container)):
        yield container, key
        if type(part) in (dict, list):
            yield from parts_of(part)


class Life(RuleBasedStateMachine):
    @initialize(form=forms)
    def begin(self, form):
        ok, self.opt = allowed(rmsfast.RMSProp, form.make())
        if not ok:  # settings that have no meaning together
            form = form._replace(groups=[(members, {}) for members, _ in form.groups])
            self.opt = rmsfast.RMSProp(form.make())
        self.twin = rmsfast.reference.RMSProp(form.make(plain=True))
        self.bound = None
        assert_same(self.opt, self.twin)

    def attempt(self, call, *args, **kwargs):
        """Whether a call came to its end. If not, nothing changed."""
        before = everything(self.opt)
        ok, self.answer = allowed(call, *args, **kwargs)
        if not ok:
            assert everything(self.opt) == before
        return ok

    def gradients(self, kinds):
        """A gradient of each parameter, of these kinds in turn; a str names memory that is in use."""
        params, grads = params_of(self.opt), []
        for w, entry, kind in zip(params, self.opt.state.values(), itertools.cycle(kinds)):
            aliases = {"param": w, "first param": params[0], "reversed": w.T[::-1].T if w.ndim else w}
            aliases |= {"square_avg": entry["square_avg"], "first gradient": grads[0] if grads else None}
            grads.append(aliases[kind] if type(kind) is str else made(kind, w))
        return grads

    def put_in(self, place, grads):
        """Gradients in a form of `params`, and whether the form will do."""
        by_name, rest = dict(zip(self.opt.state, grads, strict=True)), iter(grads)
        named = isinstance(next(iter(by_name)), str)
        if place == "one" and grads[0] is not None:
            return grads[0], len(grads) == 1
        if place == "emptied" and isinstance(grads[0], np.ndarray):
            line = [None, *grads[1:]]
            line[0] = grads[0] = Holder(grads[0], line)
            return line, True
        forms = {
            "tuple": (tuple(grads), True),
            "generator": (iter(grads), True),
            "dict": (by_name, named),
            "ordered": (OrderedDict(by_name), named),
            "groups": ([[next(rest) for _ in group["params"]] for group in self.opt.param_groups], True),
            "too few": (grads[1:], False),
            "too many": ([*grads, grads[0]], False),
            "unknown": ({**by_name, "?": grads[0]}, False),
            "with junk": ([*grads[1:], object()], False),
        }
        return forms.get(place, (list(grads), True))

    def given(self, kinds, place):
        """Gradients, the same in a form of `params`, and copies of them as plain arrays: False where there is none."""
        grads = self.gradients(kinds)
        form, fits = self.put_in(place, grads)
        own = written_by(self.opt)
        plain = [plain_gradient(g, w, own) for g, w in zip(grads, params_of(self.opt), strict=True)]
        return grads, form, False if not fits or any(g is False for g in plain) else plain

    def follow_step(self, ok, plain, scale, sure):
        """Take a step with the twin as well; where there is no reason to refuse one, it has to fail likewise."""
        scheduled = any(callable(group["lr"]) for group in self.opt.param_groups)
        if ok:
            self.twin.step(plain, grad_scale=scale)
        elif sure:
            with pytest.raises((FloatingPointError, *[TypeError, ValueError] * scheduled)):
                self.twin.step(plain, grad_scale=scale)
        assert_same(self.opt, self.twin)

    @rule(kinds=kinds_of_gradients, place=places, scale=scales, zero=st.sampled_from([False] * 4 + [True, np.True_, 1]))
    def step(self, kinds, place, scale, zero):
        grads, form, plain = self.given(kinds, place)
        before, counts = bytes_of(grads), counts_of(grads)
        ok = self.attempt(self.opt.step, form, grad_scale=made(scale), zero_grads=zero)
        assert all(after <= count for after, count in zip(counts_of(grads), counts, strict=True))
        assert bytes_of(grads) == ([bytes(len(g)) for g in before] if ok and zero else before)
        if ok:
            assert plain is not False
            assert zero is not 1  # noqa: F632
            scale = float(made(scale))
            assert 0 <= scale < np.inf
        exotic = zero or type(scale) is not float or not 0 <= scale < np.inf or any(type(g) is Holder for g in grads)
        self.follow_step(ok, plain, scale, sure=plain is not False and not exotic)

    @rule(kinds=kinds_of_gradients, place=places)
    def bind(self, kinds, place):
        grads, form, plain = self.given(kinds, place)
        if self.attempt(self.opt.bind, form):
            assert plain is not False
            self.bound = [None if g is None else memory(g) for g in grads]
        else:
            assert plain is False or any(isinstance(g, (rmsfast.Rows, Holder)) for g in grads)

    @rule(seed=st.integers(0, 99), zero=st.booleans(), refill=st.booleans())
    def step_with_bound_gradients(self, seed, zero, refill):
        bound = [g for g in self.bound or [] if g is not None]
        for g in bound:
            if g.flags.writeable and refill:
                g[...] = numbers(seed, g.dtype, g.shape)
        plain = None if self.bound is None else [None if g is None else g.copy() for g in self.bound]
        before = bytes_of(bound)
        ok = self.attempt(self.opt.step, zero_grads=zero)
        assert bytes_of(bound) == ([bytes(len(g)) for g in before] if ok and zero else before)
        self.follow_step(ok, plain, 1.0, sure=plain is not None and not zero)

    @rule(how=st.sampled_from(list(TAMPERING)))
    def change_a_parameter(self, how):
        arrays = [w for group in self.opt.param_groups for w in group["params"] if type(w) is np.ndarray]
        arrays = [w for w in arrays if w.flags.owndata]
        if not arrays:  # of memory that belongs to others, not every change could be undone
            return
        w, grads, saved = arrays[0], self.gradients([Twist()]), self.opt.state_dict()
        shape, dtype = w.shape, w.dtype
        self.opt.save("saved")
        TAMPERING[how](w)
        calls = {self.opt.step: grads, self.opt.bind: grads, self.opt.load_state_dict: saved, self.opt.load: "saved"}
        taken = [self.attempt(call, argument) for call, argument in calls.items()]
        w.setflags(write=True)
        w.dtype = dtype
        w.shape = shape
        assert not any(taken)
        assert_same(self.opt, self.twin)

    @rule(values=some_settings(3), how=st.integers(0, 6), key=keys, other=garbled)
    def change_settings(self, values, how, key, other):
        group, values = self.opt.param_groups[-1], made(values)
        name = next(iter(values), "lr")
        forbidden = [(group.__delitem__, "lr"), (group.pop, "lr"), (group.clear,)]
        changes = [(group.__setitem__, name, values.get(name, 0.5)), (group.__setitem__, made(key), made(other))]
        changes += [(setattr, self.opt, "lr", made(other)), (group.update, values)]
        ok = self.attempt(*[*forbidden, *changes][how])
        assert not ok or how > 2
        for name, value in values.items() if ok and how == 6 else ():
            if type(value) in (int, float):
                assert group[name] == value or (name in LIMITS and value == np.inf)
        self.follow_settings()

    def follow_settings(self):
        """Give the twin the settings that were taken, once they are legal; take schedules of no use away."""
        for group, other in zip(self.opt.param_groups, self.twin.param_groups, strict=True):
            assert_legal(group.settings())
            rate = group["lr"]
            if callable(rate) and not isinstance(rate, Schedule):
                rate = group["lr"] = 0.1
            other.update(group.settings(), lr=(lambda step, rate=rate: rate.last) if callable(rate) else rate)
        assert_same(self.opt, self.twin)

    @rule(
        answers=lists_of(mostly(st.sampled_from([0.1, 0, np.float32(0.5)]), st.sampled_from([-1, None, Mischief])), 1)
    )
    def schedule(self, answers):
        self.opt.lr = schedule = Schedule(answers)
        assert self.opt.lr is schedule
        self.follow_settings()

    @rule(named=st.booleans(), members=members, values=some_settings(2), names=st.sampled_from(["ijk", "aij", "xyz"]))
    def add_group(self, named, members, values, names):
        form = Form(named, [(members, {})], names)
        (group,), (plain,) = form.groups_of(), form.groups_of(plain=True)
        few = len(self.opt.param_groups) < 5
        if few and self.attempt(self.opt.add_param_group, {**group, **made(values)}):
            self.bound = None
            self.twin.add_param_group({**plain, **self.opt.param_groups[-1].settings()})
            self.follow_settings()

    @rule(damage=st.just([]) | damages, seed=st.integers(0, 99), lr=st.sampled_from([0, 0.5]))
    def load_state(self, damage, seed, lr):
        saved = self.opt.state_dict()
        if "lr" in saved["param_groups"][0]:  # it may not take the place of a schedule
            saved["param_groups"][0]["lr"] = lr
        for entry in saved["state"].values():
            entry["step"] += seed
            for name in list(entry)[1:]:
                entry[name][...] = numbers(seed, entry[name].dtype, entry[name].shape)
        copies = copy.deepcopy(saved)
        if self.attempt(self.opt.load_state_dict, damaged(saved, damage)):
            self.twin.load_state_dict(damaged(copies, damage))
            self.follow_settings()
            for key, entry in self.opt.state.items():
                for name, value in list(entry.items())[1:]:
                    if isinstance(saved["state"], dict) and type(saved["state"][key].get(name)) is np.ndarray:
                        assert_same_bits(flat(value), flat(saved["state"][key][name]))
        else:
            assert damage, self.answer

    @rule(damage=st.just([]) | lists_of(st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 99]), st.binary(max_size=3))))
    def load_file(self, damage):
        self.opt.save("saved")
        saved, content = everything(self.opt), bytearray(Path("saved").read_bytes())
        for place, length, replacement in damage:
            i = int(place * len(content))
            content[i : i + length] = replacement
        Path("damaged").write_bytes(content)
        self.step([Twist(seed=1)], "list", 1.0, False)
        if self.attempt(self.opt.load, "damaged"):
            assert everything(self.opt) == saved
            self.twin.load("saved")
        else:
            assert damage, self.answer
        assert_same(self.opt, self.twin)

    @rule()
    def averages(self):
        next(calls)
        before = everything(self.opt)
        if all(group["ema_decay"] is None for group in self.opt.param_groups):
            with pytest.raises(ValueError, match="^averages: no group has an ema_decay"):
                self.opt.averages().__enter__()
        else:
            with self.opt.averages(), pytest.raises(RuntimeError, match=r"^load: inside averages\(\)"):
                self.opt.load_state_dict(self.opt.state_dict())
        assert everything(self.opt) == before

    @rule(clone=st.sampled_from([copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))]))
    def clone(self, clone):
        next(calls)
        other = clone(self.opt)
        assert everything(other) == everything(self.opt)
        self.opt, self.bound = other, None
        self.follow_settings()

    @rule(name=st.sampled_from(["step", "bind", "add_param_group", "load_state_dict", "load", "save"]), argument=junk)
    def call_with_junk(self, name, argument):
        if argument is None:  # forgets what was bound, or steps with it
            return
        with contextlib.suppress(OSError if name in ("load", "save") else ()):
            ok = self.attempt(getattr(self.opt, name), made(argument))
            if ok and name in ("bind", "add_param_group"):
                self.opt.bind(None)
                self.bound = None
            if name not in ("bind", "save"):
                assert allowed(getattr(self.twin, name), made(argument))[0] == ok
        self.follow_settings()


TestLife = Life.TestCase
TestLife.settings = budget(80, stateful_step_count=25)


# ---- Calls that need no optimizer ----


@given(junk | lists_of(twists_of(["plain"]), 1), some_settings(), mostly(st.sampled_from([None, 1, 2]), garbled))
@budget(300)
def test_constructor(params, values, num_threads):
    outcomes = []
    for cls in (rmsfast.RMSProp, rmsfast.reference.RMSProp):
        ok, opt = allowed(cls, made(params), **made(values), num_threads=made(num_threads))
        outcomes.append(ok)
        if ok:
            for group in opt.param_groups:
                assert_legal(group.settings())
            assert all(entry["step"] == 0 for entry in opt.state.values())
            repr(opt), opt.state_dict()
    assert outcomes[0] == outcomes[1]


@given(
    st.sampled_from(SHAPES),
    mostly(st.sampled_from(FLOATS), st.sampled_from(DTYPES)),
    st.tuples(twists_of(["plain"]), twists_of(["plain"]), twists),
    mostly(st.none(), st.sampled_from(["v is w", "g is w", "g is v", "g reversed"])),
    st.dictionaries(st.sampled_from(["lr", "beta", "eps"]), mostly(st.sampled_from([0, 0.5, 1]), garbled)),
    st.sampled_from([rmsfast.rmsprop_update, rmsfast.reference.rmsprop_update]),
)
@budget(600)
def test_update(shape, dtype, recipes, alias, values, update):
    w, v, g = (made(recipe, np.zeros(shape, dtype)) for recipe in recipes)
    v = w if alias == "v is w" else v
    g = {"g is w": w, "g is v": v}.get(alias, g)
    if alias == "g reversed" and isinstance(w, np.ndarray):
        g = np.asarray(w).T[::-1].T if w.ndim else w
    arrays = [memory(a) for a in (w, v, g)]
    before = [None if a is None else a.copy() for a in arrays]
    ok, answer = allowed(update, w, v, g, **made(values))
    if not ok:
        assert bytes_of([w, v, g]) == [old.tobytes() for old in before if old is not None]
        plain = all(recipe[:3] == ("plain", None, None) for recipe in recipes)
        assert not plain or alias or values or dtype not in FLOATS, answer
        return
    assert not any(isinstance(a, np.ma.MaskedArray) for a in (w, v, g))
    assert len({(a.dtype.str, a.shape) for a in before}) == 1
    assert before[0].dtype in map(np.dtype, FLOATS)
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))
    rates = {"lr": 1e-3, "beta": 0.9, "eps": 1e-8} | {name: float(made(value)) for name, value in values.items()}
    assert min(rates.values()) >= 0
    assert rates["beta"] <= 1
    expected = [flat(a) for a in before]
    rmsfast.reference.plain_update(*expected, **rates)
    for a, b in zip(arrays, expected, strict=True):
        assert_same_bits(flat(a), b)


DIALECTS = ["torch", "keras", "tf1", "optax", "timm", "sb3", "mxnet", "d2l"]


@given(st.sampled_from(DIALECTS), lists_of(mostly(st.sampled_from([0, 0.5, False, True]), garbled), most=12))
@budget(300)
def test_dialects(dialect, arguments):
    ok, values = allowed(getattr(rmsfast.dialects, dialect), *map(made, arguments))
    if ok:
        ok, opt = allowed(rmsfast.RMSProp, np.ones(3), **values)
        if ok:
            assert_legal(opt.param_groups[0].settings())


@given(garbled)
@budget(60)
def test_threads(count):
    before = rmsfast.get_num_threads()
    ok, _ = allowed(rmsfast.set_num_threads, made(count))
    after = rmsfast.get_num_threads()
    assert type(after) is int
    assert 1 <= after <= 1024
    assert ok or after == before
