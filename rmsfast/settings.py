"""Each setting: its range, its default, and what it means in a group."""

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmsfast import _kernel

Array = np.ndarray[Any, np.dtype[Any]]


class Number(NamedTuple):
    """A setting that is a real number in a range, with or without its lowest value, or perhaps None, as is infinity."""

    default: float | None
    low: float = 0.0
    high: float = np.inf
    above: bool = False
    optional: bool = False

    def read(self, value: Any, label: str) -> Any:
        """Return the value as a float, or raise; messages call it `label`."""
        if value is None and self.optional:
            return None
        number = value if type(value) is float else as_float(value)
        if number == np.inf and self.optional:
            return None  # of two ways to say "no limit", one is left
        if number is not None and self.low <= number <= self.high and not (self.above and number == self.low):
            return number
        error = TypeError if number is None else ValueError
        raise error(f"{label}: {value!r:.60}, expected {self}")

    def __str__(self) -> str:
        if self.high < np.inf:
            return f"a number from {self.low:g} to {self.high:g}"
        return f"a number {'>' if self.above else '≥'} {self.low:g}{' or None' if self.optional else ''}"


class Choice(NamedTuple):
    """A setting that is one of a few values."""

    values: tuple[Any, ...]

    @property
    def default(self) -> Any:
        """Return the first one."""
        return self.values[0]

    def read(self, value: Any, label: str) -> Any:
        """Return the value, or raise; messages call it `label`."""
        given = bool(value) if isinstance(value, np.bool_) else value
        for choice in self.values:
            if isinstance(given, type(choice)) and given == choice:
                return choice
        error = ValueError if isinstance(value, type(self.values[0])) else TypeError
        raise error(f"{label}: {value!r:.60}, expected {' or '.join(map(repr, self.values))}")


SWITCH = Choice((False, True))
LIMIT = Number(None, above=True, optional=True)

# What a parameter group holds, and what each may be.
SETTINGS: dict[str, Number | Choice] = {
    "lr": Number(1e-3),
    "beta": Number(0.9, high=1.0),
    "eps": Number(1e-8),
    "momentum": Number(0.0),
    "nesterov": SWITCH,
    "centered": SWITCH,
    "weight_decay": Number(0.0),
    "decoupled_weight_decay": SWITCH,
    "eps_inside_sqrt": SWITCH,
    "lr_in_momentum": SWITCH,
    "bias_correction": SWITCH,
    "initial_square_avg": Number(0.0),
    "maximize": SWITCH,
    "clip_value": LIMIT,
    "clip_norm": LIMIT,
    "clip_global_norm": LIMIT,
    "nonfinite": Choice(("propagate", "raise", "skip")),
}

# What one step is given.
GRAD_SCALE = Number(1.0, high=sys.float_info.max)


def as_float(value: Any) -> float | None:
    """Return a real number of any type as a float, NaN if no double can hold it; None if it is no real number."""
    if isinstance(value, (np.generic, np.ndarray)):
        is_number = value.ndim == 0 and value.dtype.kind in "iuf"
    else:
        is_number = not isinstance(value, (bool, complex, str, bytes)) and getattr(value, "ndim", 0) == 0
    try:
        return float(value) if is_number else None
    except OverflowError:
        return np.nan
    except (TypeError, ValueError):
        return None


def as_settings(values: Mapping[str, Any], label: str = "{!s:.60}") -> dict[str, Any]:
    """Return settings with each number as a float in its range, or raise. `lr` may be a callable instead."""
    values = {str.__str__(name) if isinstance(name, str) else name: value for name, value in values.items()}
    for name in values:
        if name not in SETTINGS:
            raise ValueError(f"{label.format(name)}: no such setting, expected some of {', '.join(SETTINGS)}")
    return {
        name: value if name == "lr" and is_schedule(value) else SETTINGS[name].read(value, label.format(name))
        for name, value in values.items()
    }


def check_together(settings: Mapping[str, Any], label: str = "") -> None:
    """Refuse the settings of a group that have no meaning together. Messages begin with `label`."""
    if settings["nesterov"] and settings["momentum"] == 0:
        raise ValueError(f"{label}nesterov: True with momentum 0, expected a momentum > 0 to look ahead with")
    if settings["bias_correction"] and settings["beta"] == 1:
        raise ValueError(
            f"{label}bias_correction: True with beta 1, expected beta < 1: the average never leaves its start"
        )
    clips = [name for name in ("clip_value", "clip_norm", "clip_global_norm") if settings[name] is not None]
    if len(clips) > 1:
        raise ValueError(f"{label}{' and '.join(clips)}: expected one way to clip at most")


def is_schedule(lr: Any) -> bool:
    """Whether a learning rate is a function of the step count."""
    return callable(lr) and not isinstance(lr, type)


def read_settings(groups: Sequence["ParamGroup"], steps: int) -> tuple[bool, list[dict[str, Any]]]:
    """Return whether to ask again at every step, and each group's settings, with a number for a schedule.

    A schedule is called once, however many groups it serves.
    """
    all_settings = [group.settings() for group in groups]  # at once, before a schedule or another thread changes them
    rates: dict[Any, Any] = {}
    for settings in all_settings:
        lr = settings["lr"]
        if is_schedule(lr):
            key = lr if isinstance(lr, Hashable) else id(lr)
            if key not in rates:
                rates[key] = SETTINGS["lr"].read(lr(steps), f"lr({steps})")
            settings["lr"] = rates[key]
    return bool(rates), all_settings


class ParamGroup(MutableMapping[str, Any]):
    """Some parameters and the settings that they share, as a mapping.

    ``group["lr"] = 0.01`` changes a setting from the next step on, once the value has been checked. The keys stay as
    they are, and so do ``group["params"]``, a tuple of arrays, and, where names were given, ``group["param_names"]``.
    """

    def __init__(
        self, params: Sequence[Array], names: Sequence[str] | None, settings: dict[str, Any], flag: _kernel.Flag
    ) -> None:
        self._fixed: dict[str, Any] = {"params": tuple(params)}
        if names is not None:
            self._fixed["param_names"] = tuple(names)
        self._settings = settings
        self._changed = flag

    # As a dict would, a group compares its arrays with ==, which has no answer: two groups are equal if they are one.
    __eq__: Callable[[object, object], bool] = object.__eq__
    __hash__ = object.__hash__

    def settings(self) -> dict[str, Any]:
        """Return a copy of the settings, all as of one moment."""
        return self._settings.copy()

    def __getitem__(self, key: str) -> Any:
        return self._settings[key] if key in self._settings else self._fixed[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._fixed
        yield from self._settings

    def __len__(self) -> int:
        return len(self._fixed) + len(self._settings)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Change several settings, or raise and change none."""
        values = dict(*args, **kwargs)
        for key in self._fixed:
            if key in values:
                raise ValueError(f"{key!r}: fixed once the group is made; add_param_group adds parameters")
        values = as_settings(values)
        start = self._settings["initial_square_avg"]
        if values.get("initial_square_avg", start) != start:
            raise ValueError(f"initial_square_avg: fixed once the group is made, because its state began at {start:g}")
        check_together({**self._settings, **values})
        self._changed.put([self._settings], values)

    def held(self) -> dict[str, Any]:
        """Return the settings themselves, for `Flag.put`, once what is put there was checked."""
        return self._settings

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"{key!r}: a parameter group keeps all its settings, expected a new value")

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # a copy belongs to no optimizer

    def __repr__(self) -> str:
        arrays = self._fixed["params"]
        usual = {name: setting.default for name, setting in SETTINGS.items() if name not in ("lr", "beta", "eps")}
        shown = [name for name, value in self._settings.items() if value != usual.get(name)]
        listed = ", ".join(f"{name}={self._settings[name]!r}" for name in shown)
        return f"{count_of(len(arrays), 'array')}, {count_of(sum(a.size for a in arrays), 'element')}, {listed}"


def count_of(n: int, noun: str) -> str:
    """Return a number with its noun, for a message."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
