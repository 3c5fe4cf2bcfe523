"""Each setting: its range, its default, and what it means in a group of parameters. Schedules are read here, too."""

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from rmsfast._core import steps

Array = np.ndarray[Any, np.dtype[Any]]


class Schedule:
    """A function of the number of steps taken so far, which a file can hold. `rmsfast.schedules` has all of them."""

    def __call__(self, step: int) -> float:
        """Return the number for the step that comes after this many steps."""
        raise NotImplementedError


class Number:
    """A setting that is a real number from 0 to `high`.

    With `above`, 0 itself is not allowed. With `optional`, None is; without a `high`, it means the same as infinity.
    """

    def __init__(
        self, default: float | None, high: float = np.inf, above: bool = False, optional: bool = False
    ) -> None:
        self.default: float | None = default
        self.high: float = high
        self.above: bool = above
        self.optional: bool = optional

    def read(self, value: Any, label: str) -> Any:
        """Return the value as a float, or raise. Messages call it `label`."""
        if value is None and self.optional:
            return None
        number = value if type(value) is float else as_float(value)
        if number == self.high == np.inf and self.optional:
            return None  # one way to say "no limit"
        if number is not None and 0 <= number <= self.high and not (self.above and number == 0):
            return number
        error = TypeError if number is None else ValueError
        remedy = ""
        if isinstance(value, Mapping):
            remedy = ": settings of a dialect are keywords, RMSProp(params, **settings)"
        elif isinstance(value, type) and issubclass(value, Schedule):
            remedy = f": rmsfast.schedules.{value.__name__}(...) makes a schedule"
        raise error(f"{label}: {value!r:.60}, expected {self}{remedy}")

    def __str__(self) -> str:
        numbers = f"from 0 to {self.high:g}" if self.high < np.inf else f"{'>' if self.above else '≥'} 0"
        return f"a number {numbers}{' or None' if self.optional else ''}"


class Choice:
    """A setting that is one of a few values. The first is the default."""

    def __init__(self, *values: Any) -> None:
        self.values: tuple[Any, ...] = values
        self.default: Any = values[0]

    def read(self, value: Any, label: str) -> Any:
        """Return the value, or raise. Messages call it `label`."""
        given = bool(value) if isinstance(value, np.bool_) else value
        for choice in self.values:
            if isinstance(given, type(choice)) and given == choice:
                return choice
        error = ValueError if isinstance(value, type(self.values[-1])) else TypeError
        raise error(f"{label}: {value!r:.60}, expected {' or '.join(map(repr, self.values))}")


class Seed:
    """A setting that is an integer from 0 to 2**63 - 1."""

    default: int = 0

    def read(self, value: Any, label: str) -> int:
        """Return the value as an int, or raise. Messages call it `label`."""
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            if 0 <= value < 2**63:
                return int(value)
            raise ValueError(f"{label}: {value!r:.60}, expected {self}")
        raise TypeError(f"{label}: {value!r:.60}, expected {self}")

    def __str__(self) -> str:
        return "an integer from 0 to 2**63 - 1"


class Format(Choice):
    """A setting that names a dtype. The dtype itself is taken for its name."""

    def read(self, value: Any, label: str) -> Any:
        """Return the name or None, or raise. Messages call it `label`."""
        if value is not None and not isinstance(value, str):
            name = getattr(value, "__name__", None) or getattr(value, "name", None) or str(value)
            if name.removeprefix("torch.") in self.values:
                return name.removeprefix("torch.")
            raise TypeError(f"{label}: {value!r:.60}, expected {' or '.join(map(repr, self.values))}")
        return super().read(value, label)


SWITCH = Choice(False, True)
LIMIT = Number(None, above=True, optional=True)

# The settings of a parameter group.
SETTINGS: dict[str, Number | Choice | Seed] = {
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
    "clip_weights": LIMIT,
    "nonfinite": Choice("propagate", "raise", "skip"),
    "ema_decay": Number(None, high=1.0, optional=True),
    "state_dtype": Format(None, "bfloat16", "uint8"),
    "master_weights": SWITCH,
    "rounding": Choice("nearest", "stochastic"),
    "seed": Seed(),
}

# Those that cannot change once a group is made, and why.
FIXED = {
    "initial_square_avg": "where its state began",
    "state_dtype": "as its state is stored",
    "master_weights": "as its parameters are stored",
}

# Those that may be a function of the number of steps taken so far.
SCHEDULED = ("lr", "beta")

# Other frameworks' names of settings: ours, and the dialect that takes theirs.
FOREIGN = {
    "learning_rate": ("lr", "keras"),
    "alpha": ("beta", "torch"),
    "rho": ("beta", "keras"),
    "decay": ("beta", "optax"),
    "gamma": ("beta", "d2l"),
    "gamma1": ("beta", "mxnet"),
    "gamma2": ("momentum", "mxnet"),
    "epsilon": ("eps", "keras"),
    "wd": ("weight_decay", "mxnet"),
    "decoupled_decay": ("decoupled_weight_decay", "timm"),
    "eps_in_sqrt": ("eps_inside_sqrt", "optax"),
    "initial_scale": ("initial_square_avg", "optax"),
    "clipnorm": ("clip_norm", "keras"),
    "clipvalue": ("clip_value", "keras"),
    "clip_gradient": ("clip_value", "mxnet"),
    "global_clipnorm": ("clip_global_norm", "keras"),
    "use_ema": ("ema_decay", "keras"),
    "ema_momentum": ("ema_decay", "keras"),
}

# A setting of one step.
GRAD_SCALE = Number(1.0, high=sys.float_info.max)


def as_float(value: Any) -> float | None:
    """Return a real number of any type as a float, or None for anything else. NaN means that no double can hold it."""
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
    """Return settings with each number as a float in its range, or raise. `lr` and `beta` may be callables."""
    values = {str.__str__(name) if isinstance(name, str) else name: value for name, value in values.items()}
    for name in values:
        if name not in SETTINGS:
            raise ValueError(no_such_setting(name, label.format(name)))
    return {
        name: value if name in SCHEDULED and is_schedule(value) else SETTINGS[name].read(value, label.format(name))
        for name, value in values.items()
    }


def no_such_setting(name: Any, label: str) -> str:
    """Return the message about a wrong name, which it calls `label`: with the right one, where it is known."""
    ours, dialect = FOREIGN.get(name, ("", ""))
    if ours:
        return (
            f"{label}: another framework's name, expected {ours}. rmsfast.dialects.{dialect}({name}=...) returns that "
            "framework's settings under our names"
        )
    return f"{label}: no such setting, expected one of {', '.join(SETTINGS)}{did_you_mean(name, list(SETTINGS))}"


def did_you_mean(name: Any, names: Sequence[str], likeness: float = 0.6) -> str:
    """Return the end of a message about a wrong name: a question with the nearest right one, or nothing."""
    if not isinstance(name, str):
        return ""
    from difflib import get_close_matches  # here, so that `import rmsfast` does not load it

    close = get_close_matches(str.__str__(name)[:100], names, 1, likeness)
    return f". Did you mean {close[0]!r}?" if close else ""


def check_together(settings: Mapping[str, Any], label: str = "") -> None:
    """Raise if settings of one group contradict each other. Messages begin with `label`."""
    if settings["nesterov"] and settings["momentum"] == 0:
        raise ValueError(
            f"{label}nesterov: True with momentum 0, expected momentum > 0, without which nesterov has no effect"
        )
    if settings["bias_correction"] and settings["beta"] == 1:
        raise ValueError(
            f"{label}bias_correction: True with beta 1, expected beta < 1: the correction divides by 1 - beta**t"
        )
    clips = [name for name in ("clip_value", "clip_norm", "clip_global_norm") if settings[name] is not None]
    if len(clips) > 1:
        raise ValueError(
            f"{label}{' and '.join(clips)}: set together, expected one of them at most: set the others to None"
        )
    if settings["master_weights"] and settings["rounding"] == "stochastic":
        raise ValueError(
            f"{label}rounding: 'stochastic' with master_weights, expected 'nearest': each step rounds the exact master "
            "anew, so nothing is lost by rounding to nearest"
        )


def check_formats(settings: Mapping[str, Any], parameters: Sequence[Any], label: str = "") -> None:
    """Raise if a group asks for masters or for stochastic rounding and has no parameter that is rounded.

    The parameters are arrays or tensors. Messages begin with `label`.
    """
    names = sorted({str(w.dtype).removeprefix("torch.") for w in parameters})
    if not names or "float16" in names or "bfloat16" in names:
        return
    dtypes = ", ".join(names)
    expected = f"with {dtypes} parameters, expected float16 or bfloat16 among them"
    if settings["master_weights"]:
        raise ValueError(f"{label}master_weights: True {expected}: parameters of {dtypes} are their own masters")
    if settings["rounding"] == "stochastic":
        raise ValueError(f"{label}rounding: 'stochastic' {expected}: parameters of {dtypes} are not rounded")


def is_schedule(value: Any) -> bool:
    """Whether a setting is a function of the number of steps taken so far."""
    return callable(value) and not isinstance(value, type)


def is_own(value: Any) -> bool:
    """Whether a setting is a function of the user's own, which no file can hold."""
    return is_schedule(value) and type(value).__module__ != "rmsfast.schedules"


def number_at(name: str, value: Any, steps: int) -> Any:
    """Return a setting as the number that it is after so many steps."""
    return SETTINGS[name].read(value(steps), f"{name}({steps})") if is_schedule(value) else value


def read_settings(groups: Sequence["ParamGroup"], steps: int) -> tuple[bool, list[dict[str, Any]]]:
    """Return whether there is a schedule, and each group's settings, with a number in the place of a schedule.

    A schedule is called once, also where several groups have it.
    """
    all_settings = [group.settings() for group in groups]  # all before a schedule or another thread changes one
    numbers: dict[Any, Any] = {}
    for settings in all_settings:
        scheduled = [name for name in SCHEDULED if is_schedule(settings[name])]
        for name in scheduled:
            value = settings[name]
            key = name, value if isinstance(value, Hashable) else id(value)
            if key not in numbers:
                numbers[key] = number_at(name, value, steps)
            settings[name] = numbers[key]
        if scheduled:
            check_together(settings)
    return bool(numbers), all_settings


class ParamGroup(MutableMapping[str, Any]):
    """Some parameters and the settings that they share, as a mapping.

    ``group["lr"] = 0.01`` checks the value and changes the setting from the next step on. The keys are fixed. So are
    ``group["params"]``, a tuple of arrays, and, where names were given, ``group["param_names"]``.
    """

    def __init__(
        self, params: Sequence[Array], names: Sequence[str] | None, settings: dict[str, Any], flag: steps.Flag
    ) -> None:
        self._fixed: dict[str, Any] = {"params": tuple(params)}
        if names is not None:
            self._fixed["param_names"] = tuple(names)
        self._settings = settings
        self._changed = flag

    # A Mapping's == would compare arrays, which gives no single answer. A group equals itself alone.
    __eq__: Callable[[object, object], bool] = object.__eq__
    __hash__ = object.__hash__

    def settings(self) -> dict[str, Any]:
        """Return a copy of the settings, all of one moment."""
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
                raise ValueError(
                    f"{key!r}: cannot change once the group is made, expected settings alone: add_param_group adds "
                    "parameters"
                )
        values = as_settings(values)
        self.check(values)
        self._changed.put([self._settings], values)

    def check(self, values: Mapping[str, Any], label: str = "") -> None:
        """Raise if these settings, each in its range, do not fit the others. Messages begin with `label`."""
        for name, why in FIXED.items():
            fixed = self._settings[name]
            if values.get(name, fixed) != fixed:
                shown = f"{fixed:g}" if type(fixed) is float else repr(fixed)
                raise ValueError(f"{label}{name}: cannot change once the group is made, expected {shown}, {why}")
        settings = {**self._settings, **values}
        check_together(settings, label)
        check_formats(settings, self._fixed["params"], label)

    def held(self) -> dict[str, Any]:
        """Return the settings themselves, no copy, for `Flag.put`. Check a value before you put it there."""
        return self._settings

    def __delitem__(self, key: str) -> None:
        raise TypeError(f"{key!r}: cannot be removed from a group, expected a new value for it")

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # because a copy belongs to no optimizer

    def __repr__(self) -> str:
        arrays = self._fixed["params"]
        return f"{count_of(len(arrays), 'array')}, {elements_of(arrays)}, {self.listed()}"

    def listed(self) -> str:
        """Return lr, and each setting that differs from its default, as a call would have them."""
        settings = self.settings()
        shown = [name for name, value in settings.items() if name == "lr" or value != SETTINGS[name].default]
        return ", ".join(f"{name}={settings[name]!r}" for name in shown)


def elements_of(arrays: Sequence[Array]) -> str:
    """Return how many elements some arrays have, as text."""
    n = sum(a.size for a in arrays)
    return f"{n:,} element{'' if n == 1 else 's'}"


def count_of(n: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, for a message."""
    return f"{n} {noun}" if n == 1 else f"{n} {plural or noun + 's'}"
