"""Schedules: the formulas and tables of their docstrings, Optax's numbers, what they refuse, copies and files."""

import copy
import inspect
import math
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
from helpers import CLASSES, assert_same_bits, assert_says_all, textbook

import rmsfast
from rmsfast import schedules
from rmsfast.schedules import cosine, exponential, linear, piecewise, warmup

KINDS = [linear, cosine, exponential, piecewise, warmup]
EXAMPLES = [
    linear(0.4, 100),
    linear(0.1, 7, end=0.3),
    cosine(0.4, 100, 0.01),
    exponential(0.4, 0.5, 10),
    exponential(0.4, 1.01),
    piecewise([0.4, 0.2, 0.1], [100, 200]),
    piecewise([0.4], []),
    warmup(10, 0.4),
    warmup(10, cosine(0.4, 90)),
]


def test_the_module_has_what_it_says():
    assert sorted(kind.__name__ for kind in KINDS) == sorted(schedules.__all__)
    assert list(schedules.KINDS.values()) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_docstrings_have_a_formula_and_a_table_that_is_true(kind):
    text = inspect.getdoc(kind)
    assert re.search(rf"Parameters\n-+\n(.*\n)*{next(iter(inspect.signature(kind).parameters))} : ", text)
    assert re.search(r"Raises\n-+\n(.*\n)*References\n-+\n", text)
    steps = [int(t) for t in re.search(r"^ +t((?: +\d+)+)$", text, re.MULTILINE)[1].split()]
    rows = re.findall(rf"^ +({kind.__name__}\(.*\)) +((?:[\d.]+ *)+)$", text, re.MULTILINE)
    assert rows
    for call, numbers in rows:
        expected = [float(number) for number in numbers.split()]
        assert [eval(call)(t) for t in steps] == pytest.approx(expected, abs=5e-7)


def as_optax(schedule):
    """The same schedule as Optax has it."""
    optax = pytest.importorskip("optax")
    match schedule:
        case linear(start, steps, end):
            return optax.linear_schedule(start, end, steps)
        case cosine(start, steps, end):
            return optax.cosine_decay_schedule(start, steps, end / start)
        case exponential(start, decay, steps):
            return optax.exponential_decay(start, steps, decay)
        case piecewise(values, boundaries):
            scales = [b / a for a, b in pairwise(values)]
            return optax.piecewise_constant_schedule(values[0], dict(zip(boundaries, scales, strict=True)))
        case warmup(steps, then):
            after = as_optax(then) if callable(then) else optax.constant_schedule(then)
            return optax.join_schedules([optax.linear_schedule(0, float(after(0)), steps), after], [steps])
    raise AssertionError(schedule)


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_the_numbers_are_those_of_optax(schedule):
    """Which computes in float32."""
    theirs = as_optax(schedule)
    for t in [*range(13), 50, 99, 100, 101, 199, 200, 201, 300]:
        assert schedule(t) == pytest.approx(float(theirs(t)), rel=2e-5, abs=1e-8), t


@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_schedules_are_values(schedule):
    assert eval(repr(schedule)) == schedule
    twins = copy.copy(schedule), copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))
    for twin in twins:
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert repr(twin) == repr(schedule)
    assert schedules.from_plain("lr", schedules.as_plain(schedule)) == schedule
    for name in inspect.signature(type(schedule)).parameters:
        with pytest.raises(AttributeError):
            setattr(schedule, name, 1.0)
    assert schedule(np.int64(3)) == schedule(3)


def test_ends_are_exact_and_growth_has_no_end():
    assert linear(0.1, 3, 0.7)(3) == cosine(0.1, 3, 0.7)(3) == 0.7
    assert linear(0.1, 3, 0.7)(0) == 0.1
    assert cosine(0.1, 3, 0.7)(0) == pytest.approx(0.1, rel=1e-15)
    assert exponential(1.0, 2.0)(10_000) == math.inf
    assert exponential(0.0, 2.0)(10_000) == 0
    assert exponential(1.0, 0.5)(10_000) == 0.0


def test_numbers_of_other_types_are_read_once():
    start = np.array(0.5)
    schedule = linear(start, np.int64(10), np.float32(0.25))
    start[...] = 7
    assert repr(schedule) == "linear(start=0.5, steps=10, end=0.25)"
    assert linear(1, 10.0) == linear(1.0, 10)


REFUSED = {
    "negative": (lambda: linear(-1, 10), ValueError, "start: -1, expected a finite number ≥ 0"),
    "infinite": (lambda: cosine(0.1, 10, math.inf), ValueError, "end: inf, expected a finite number ≥ 0"),
    "nan": (lambda: linear(math.nan, 10), ValueError, "start: nan, expected a finite number ≥ 0"),
    "text": (lambda: linear("0.1", 10), TypeError, "start: '0.1', expected a finite number ≥ 0"),
    "no steps": (lambda: linear(0.1, 0), ValueError, "steps: 0, expected an integer ≥ 1"),
    "half a step": (lambda: cosine(0.1, 2.5), TypeError, "steps: 2.5, expected an integer ≥ 1"),
    "nan steps": (lambda: cosine(0.1, math.nan), TypeError, "steps: nan, expected an integer ≥ 1"),
    "a switch": (lambda: exponential(0.1, 0.5, True), TypeError, "steps: True, expected an integer ≥ 1"),
    "no decay": (lambda: exponential(0.1, 0), ValueError, "decay: 0, expected a finite number > 0"),
    "a number": (lambda: piecewise(0.1, [1]), TypeError, "values: 0.1, expected a sequence of numbers"),
    "one value": (lambda: piecewise([0.1, "a"], [1]), TypeError, "values[1]: 'a', expected a finite number ≥ 0"),
    "a boundary": (lambda: piecewise([0.1, 0.2], [0]), ValueError, "boundaries[0]: 0, expected an integer ≥ 1"),
    "too few": (
        lambda: piecewise([100, 200], [0.4, 0.2, 0.1]),
        TypeError,
        "boundaries[0]: 0.4, expected an integer ≥ 1",
    ),
    "as many": (
        lambda: piecewise([0.1, 0.2], [1, 2]),
        ValueError,
        "values: 2 numbers with 2 boundaries, expected one more than boundaries",
    ),
    "descending": (
        lambda: piecewise([1, 2, 3], [5, 5]),
        ValueError,
        "boundaries: [5, 5], expected each to be greater than the last",
    ),
    "two warm-ups": (
        lambda: warmup(5, warmup(5, 0.1)),
        TypeError,
        "then: warmup(steps=5, then=0.1), expected a number",
    ),
    "a function": (
        lambda: warmup(5, math.sqrt),
        TypeError,
        "then: <built-in function sqrt>, expected a number or one of",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_schedules(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert_says_all(caught.value)


# ---- In an optimizer ----


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_a_step_takes_the_number_of_the_schedule(cls, schedule):
    w, v, expected = np.ones(3), np.zeros(3), np.ones(3)
    opt = cls(w, lr=schedule)
    for step in range(12):
        assert opt.current_lr == schedule(step)
        opt.step(np.full(3, 2.0))
        textbook(expected, v, np.full(3, 2.0), lr=schedule(step))
        assert_same_bits(w, expected)


@pytest.mark.parametrize("name", ["lr", "beta"])
@pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)
def test_a_schedule_is_saved_and_restored(tmp_path, name, schedule):
    opt = rmsfast.RMSProp([np.ones(3), np.ones(2)], **{name: schedule})
    for step in range(4):
        opt.step([np.ones(3), None] if step % 2 else [None, np.ones(2)])
    opt.save(tmp_path / "run.npz")
    clones = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    for load, source in ("load", tmp_path / "run.npz"), ("load_state_dict", opt.state_dict()):
        for here in {}, {name: schedule}, {name: linear(0.5, 3)}:
            clones.append(rmsfast.RMSProp([np.ones(3), np.ones(2)], **here))
            getattr(clones[-1], load)(source)
    for clone in clones:
        assert getattr(clone, name) == schedule
        assert clone.steps == 4
        assert clone.current_lr == opt.current_lr
