"""Rates and decays as functions of the step: `rmsfast.RMSProp(params, lr=rmsfast.schedules.cosine(0.01, 10_000))`.

A schedule is called with the number of steps taken so far, which is 0 at the first step. It returns the number for the
next step. It never changes, equals a schedule with the same numbers, and is pickled, saved and loaded with the
optimizer. `lr` and `beta` may have one. Below, t is the number of steps taken so far.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from rmsfast.settings import Schedule, as_float, count_of

__all__ = ["cosine", "exponential", "linear", "piecewise", "warmup"]


@dataclass(frozen=True)
class linear(Schedule):
    """A straight line from `start` to `end`, and `end` from then on.

    ::

        start + (end − start)·min(t, steps)/steps

        t                   0    25    50   100   200
        linear(0.4, 100)  0.4   0.3   0.2     0     0

    Parameters
    ----------
    start : float
        The number at the first step, ≥ 0.
    steps : int
        After how many steps the line ends, ≥ 1.
    end : float, default 0
        The number from then on, ≥ 0.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of its range.

    References
    ----------
    `optax.linear_schedule(start, end, steps)`; Keras's `PolynomialDecay` with a power of 1.
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        take(self, start=as_number, steps=as_length, end=as_number)

    def __call__(self, step: int) -> float:
        """Return the number for the step that comes after this many steps."""
        return self.start + (self.end - self.start) * (step / self.steps) if step < self.steps else self.end


@dataclass(frozen=True)
class cosine(Schedule):
    """Half a period of a cosine from `start` to `end`, and `end` from then on.

    ::

        end + (start − end)·(1 + cos(π·min(t, steps)/steps))/2

        t                   0        25    50        75   100   200
        cosine(0.4, 100)  0.4  0.341421   0.2  0.058579     0     0

    Parameters
    ----------
    start : float
        The number at the first step, ≥ 0.
    steps : int
        After how many steps the curve ends, ≥ 1.
    end : float, default 0
        The number from then on, ≥ 0.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of its range.

    References
    ----------
    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv:1608.03983, 2016;
    `optax.cosine_decay_schedule(start, steps, end / start)`; PyTorch's `CosineAnnealingLR(T_max=steps, eta_min=end)`,
    which rises again after `steps`; Keras's `CosineDecay`.
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        take(self, start=as_number, steps=as_length, end=as_number)

    def __call__(self, step: int) -> float:
        """Return the number for the step that comes after this many steps."""
        if step >= self.steps:
            return self.end
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class exponential(Schedule):
    """Multiply by `decay` in every `steps` steps, a little at each of them.

    ::

        start·decay^(t/steps)

        t                           0        5    10    20
        exponential(0.4, 0.5, 10) 0.4 0.282843   0.2   0.1

    Parameters
    ----------
    start : float
        The number at the first step, ≥ 0.
    decay : float
        The factor, > 0. With a factor > 1 the number grows, as when you look for the largest rate.
    steps : int, default 1
        In how many steps the factor is reached, ≥ 1.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of its range.

    References
    ----------
    `optax.exponential_decay(start, steps, decay)`; Keras's `ExponentialDecay(start, steps, decay)`; PyTorch's
    `ExponentialLR(gamma=decay)`, where `steps` is 1.
    """

    start: float
    decay: float
    steps: int = 1

    def __post_init__(self) -> None:
        take(self, start=as_number, decay=as_factor, steps=as_length)

    def __call__(self, step: int) -> float:
        """Return the number for the step that comes after this many steps."""
        try:
            return self.start * math.pow(self.decay, step / self.steps)
        except OverflowError:
            return math.inf if self.start else 0.0


@dataclass(frozen=True)
class piecewise(Schedule):
    """One number after another: the next one from each boundary on.

    ::

        values[i], where i is the number of boundaries ≤ t

        t                                      0   99  100   199   200
        piecewise([0.4, 0.2, 0.1], [100, 200]) 0.4 0.4  0.2   0.2   0.1

    Parameters
    ----------
    values : sequence of float
        The numbers, each ≥ 0.
    boundaries : sequence of int
        The values of t at which the next number begins: ≥ 1, ascending, one fewer than `values`.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of its range.

    Notes
    -----
    PyTorch's `MultiStepLR` and Optax's `piecewise_constant_schedule` change at the same step. Both have factors instead
    of values. Keras's `PiecewiseConstantDecay` has the arguments in the other order and changes one step later.

    References
    ----------
    `optax.piecewise_constant_schedule`; https://keras.io/api/optimizers/learning_rate_schedules/.
    """

    values: Sequence[float]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        take(self, values=each(as_number), boundaries=each(as_length))
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"values: {count_of(len(self.values), 'number')} with {len(self.boundaries)} boundaries, expected one "
                "more than boundaries: piecewise(values, boundaries)"
            )
        if any(second <= first for first, second in pairwise(self.boundaries)):
            raise ValueError(f"boundaries: {list(self.boundaries)!r:.60}, expected each to be greater than the last")

    def __call__(self, step: int) -> float:
        """Return the number for the step that comes after this many steps."""
        return self.values[bisect_right(self.boundaries, step)]


@dataclass(frozen=True)
class warmup(Schedule):
    """Rise from 0 along a straight line, then go on with another schedule from its start.

    ::

        then(0)·t/steps  where t < steps,  else  then(t − steps)

        t                                   0    5   10    60   110
        warmup(10, linear(0.4, 100))        0  0.2  0.4   0.2     0
        warmup(10, 0.4)                     0  0.2  0.4   0.4   0.4

    The number at the first step is 0. As a rate, this means: the first step fills the averages and moves nothing.

    Parameters
    ----------
    steps : int
        How many steps the rise takes, ≥ 1.
    then : float or schedule
        What comes next: a number ≥ 0, or another schedule of this module.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of its range.

    References
    ----------
    `optax.join_schedules([optax.linear_schedule(0, then(0), steps), then], [steps])`.
    """

    steps: int
    then: float | Schedule

    def __post_init__(self) -> None:
        take(self, steps=as_length, then=as_next)

    def __call__(self, step: int) -> float:
        """Return the number for the step that comes after this many steps."""
        then = self.then
        if step >= self.steps:
            return then(step - self.steps) if isinstance(then, Schedule) else then
        return (then(0) if isinstance(then, Schedule) else then) * (step / self.steps)


# ---- What a schedule may be made of ----


def take(schedule: Any, **readers: Callable[[str, Any], Any]) -> None:
    """Replace each field of a new schedule by what its reader makes of it, or raise."""
    for name, read in readers.items():
        object.__setattr__(schedule, name, read(name, getattr(schedule, name)))


def as_number(label: str, value: Any, above: bool = False) -> float:
    """Return a finite number ≥ 0, or > 0, as a float, or raise."""
    number = as_float(value)
    expected = f"a finite number {'>' if above else '≥'} 0"
    if number is None:
        raise TypeError(f"{label}: {value!r:.60}, expected {expected}")
    if not 0 <= number < math.inf or (above and number == 0):
        raise ValueError(f"{label}: {value!r:.60}, expected {expected}")
    return number


def as_factor(label: str, value: Any) -> float:
    """Return a finite number > 0 as a float, or raise."""
    return as_number(label, value, above=True)


def as_length(label: str, value: Any) -> int:
    """Return a number of steps as an int, or raise."""
    number = value if type(value) is int else as_float(value)
    if number is None or (type(number) is float and not number.is_integer()):
        raise TypeError(f"{label}: {value!r:.60}, expected an integer ≥ 1")
    if not 1 <= number < 2**63:
        raise ValueError(f"{label}: {value!r:.60}, expected an integer ≥ 1")
    return int(number)


def each(read: Callable[[str, Any], Any]) -> Callable[[str, Any], tuple[Any, ...]]:
    """Return a reader of a sequence whose elements `read` reads."""

    def read_all(label: str, values: Any) -> tuple[Any, ...]:
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise TypeError(f"{label}: {values!r:.60}, expected a sequence of numbers")
        return tuple(read(f"{label}[{i}]", value) for i, value in enumerate(values))

    return read_all


def as_next(label: str, value: Any) -> float | Schedule:
    """Return what may come after a warm-up, or raise."""
    if isinstance(value, Schedule) and type(value) in KINDS.values() and not isinstance(value, warmup):
        return value
    if callable(value):
        raise TypeError(
            f"{label}: {value!r:.60}, expected a number or one of "
            f"{', '.join(name for name in KINDS if name != 'warmup')}, with which a file can be saved"
        )
    return as_number(label, value)


# ---- In a file ----

KINDS: dict[str, type[Schedule]] = {kind.__name__: kind for kind in (linear, cosine, exponential, piecewise, warmup)}


def as_plain(schedule: Schedule) -> dict[str, Any]:
    """Return a schedule of this module as a dict that JSON can hold."""
    parts = {field.name: getattr(schedule, field.name) for field in fields(schedule)}  # type: ignore[arg-type]
    return {
        "schedule": type(schedule).__name__,
        **{name: as_plain(part) if isinstance(part, Schedule) else part for name, part in parts.items()},
    }


def from_plain(label: str, plain: Any) -> Any:
    """Return the schedule that `as_plain` made a dict of, or anything else as it is. Raise for another dict."""
    if not isinstance(plain, dict):
        return plain
    parts = {name: from_plain(f"{label}[{name!r}]", part) for name, part in plain.items() if name != "schedule"}
    kind = KINDS.get(str(plain.get("schedule")))
    if kind is None:
        raise ValueError(f"{label}: {plain!r:.60}, expected a number or one of the schedules {', '.join(KINDS)}")
    return kind(**parts)
