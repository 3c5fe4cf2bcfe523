"""RMSProp on NumPy arrays: parameters, groups, schedules, state. The arithmetic on elements is in the kernel.

A step goes from `RMSProp.step` straight to its plan in `_kernel.pyx`, which checks the gradients and runs. What stands
here is what happens when an optimizer is made, changed, saved or restored.
"""

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from rmsfast import _kernel
from rmsfast.rows import Rows, is_sparse, whole_rows

Array = np.ndarray[Any, np.dtype[Any]]

# ---- Settings: what each may be, and how it reaches the kernel ----


class Number(NamedTuple):
    """A setting that is a real number in a range, with or without its lowest value, or perhaps None, as is infinity."""

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

    def read(self, value: Any, label: str) -> Any:
        """Return the value, or raise; messages call it `label`."""
        given = bool(value) if isinstance(value, np.bool_) else value
        for choice in self.values:
            if isinstance(given, type(choice)) and given == choice:
                return choice
        error = ValueError if isinstance(value, type(self.values[0])) else TypeError
        raise error(f"{label}: {value!r:.60}, expected {' or '.join(map(repr, self.values))}")


SWITCH = Choice((False, True))
LIMIT = Number(above=True, optional=True)

# What a parameter group holds, and what each may be.
SETTINGS: dict[str, Number | Choice] = {
    "lr": Number(),
    "beta": Number(high=1.0),
    "eps": Number(),
    "momentum": Number(),
    "nesterov": SWITCH,
    "centered": SWITCH,
    "weight_decay": Number(),
    "decoupled_weight_decay": SWITCH,
    "eps_inside_sqrt": SWITCH,
    "lr_in_momentum": SWITCH,
    "bias_correction": SWITCH,
    "initial_square_avg": Number(),
    "maximize": SWITCH,
    "clip_value": LIMIT,
    "clip_norm": LIMIT,
    "clip_global_norm": LIMIT,
    "nonfinite": Choice(("propagate", "raise", "skip")),
}

# What one step is given.
GRAD_SCALE = Number(high=sys.float_info.max)


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


# The largest step count that can be loaded: up to here every count is a float of its own, as PyTorch has it, and no run
# gets from here to where the kernel's counter ends.
MOST_STEPS = min(2**53, sys.maxsize)


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
        shown = [name for name, value in self._settings.items() if value != DEFAULTS.get(name)]
        listed = ", ".join(f"{name}={self._settings[name]!r}" for name in shown)
        return f"{count_of(len(arrays), 'array')}, {count_of(sum(a.size for a in arrays), 'element')}, {listed}"


# ---- Arrays, and the forms they come in ----


def as_array(label: str, value: Any) -> Array:
    """Return an ndarray as it is, or one over the memory that another object hands over; never a copy."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):
        if "numpy.ma" in sys.modules and isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{label}: a masked array, expected an array without a mask, such as its .filled(0)")
        return value
    wanted = "expected a NumPy array, or an object that hands its memory over by DLPack or the buffer protocol"
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(memoryview(value))
    except Exception as error:
        raise TypeError(f"{label}: {type(value).__name__}, {wanted} ({error})") from error


def is_array(value: Any) -> bool:
    """Whether a value is meant as one array."""
    if isinstance(value, np.ndarray) or hasattr(value, "__dlpack__"):
        return True
    try:
        memoryview(value).release()
    except Exception:
        return False
    return True


def is_gradient(value: Any) -> bool:
    """Whether a value is meant as the gradient of one parameter."""
    return isinstance(value, Rows) or is_sparse(value) or is_array(value)


def as_gradient(label: str, value: Any, w: Array, erases: bool) -> Array | _kernel.SummedRows | None:
    """Return one gradient as the plan wants it: an ndarray of no subclass, the rows of the parameter w, or None.

    Where the step `erases` gradients, no copy of what was given will do.
    """
    if value is None:
        return None
    if is_sparse(value):
        if erases:
            raise TypeError(f"{label}: a sparse matrix, expected an array or Rows, because zero_grads sets it to zero")
        value = whole_rows(label, value, w.shape)
    if isinstance(value, Rows):
        return _kernel.SummedRows(label, w, value.indices, np.asarray(as_array(f"{label}.values", value.values)))
    return np.asarray(as_array(label, value))


def as_sequence(label: str, value: Any, expected: str) -> list[Any]:
    """Return the elements of a sequence or iterator as a list, or raise."""
    if isinstance(value, (str, bytes, set, frozenset)) or not isinstance(value, Iterable):
        raise TypeError(f"{label}: {type(value).__name__}, expected {expected}")
    return list(value)


def as_params(params: Any, first: int = 0, alone: bool = False) -> tuple[list[str] | None, list[Array]]:
    """Return the names, if there are any, and the arrays of one group, of which messages call the first by its index.

    An array `alone` is all that the optimizer has, and has no index.
    """
    if isinstance(params, Mapping):
        names = [as_name(name) for name in params]
        return names, [as_array(f"params[{name!r}]", value) for name, value in zip(names, params.values(), strict=True)]
    if is_array(params):
        return None, [as_array("params" if alone else f"params[{first}]", params)]
    arrays = as_sequence("params", params, "an array, a sequence or mapping of arrays, or a sequence of groups")
    return None, [as_array(f"params[{i}]", value) for i, value in enumerate(arrays, first)]


def as_name(name: Any) -> str:
    """Return a parameter's name as a str of no subclass, or raise."""
    if not isinstance(name, str):
        raise TypeError(f"params: a name {name!r:.60}, expected a str")
    return str.__str__(name)


def as_groups(params: Any) -> list[Mapping[str, Any]]:
    """Return params, in any of its forms, as a list of groups."""
    if is_array(params):
        return [{"params": params}]
    members: Any = params
    if not isinstance(params, Mapping):
        members = as_sequence("params", params, "an array, a sequence or mapping of arrays, or a sequence of groups")
    if len(members) == 0:
        raise ValueError("params: empty, expected at least one array")
    if isinstance(params, Mapping) or not any(isinstance(member, Mapping) for member in members):
        return [{"params": members}]
    return list(members)


def count_of(n: int, noun: str) -> str:
    """Return a number with its noun, for a message."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def in_line(grads: Any, keys: Sequence[Any], named: bool, label: str = "grads") -> list[Any]:
    """Return the gradients of the parameters called `keys`, in their order, from one of the forms of `params`."""
    count = count_of(len(keys), "gradient")
    if isinstance(grads, Mapping):
        if not named:
            raise TypeError(f"{label}: a mapping, expected a sequence of {count}, because the parameters have no names")
        known = set(keys)
        for name in grads:
            if name not in known:
                names = ", ".join(map(repr, keys[:10])) + ", …" * (len(keys) > 10)
                raise ValueError(f"{label}[{name!r}]: no parameter has this name, expected some of {names}")
        return [grads.get(key) for key in keys]
    if len(keys) == 1 and is_gradient(grads):
        return [grads]
    if is_gradient(grads):
        raise TypeError(f"{label}: one array, expected a sequence of {count}")
    line = as_sequence(label, grads, f"a {'mapping' if named else 'sequence'} of {count}")
    if len(line) != len(keys):
        raise ValueError(
            f"{label}: {count_of(len(line), 'gradient')}, expected {len(keys)}: one, or None, for each parameter"
        )
    return line


def in_line_by_group(grads: Sequence[Any], groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return gradients that were given group by group as one for each parameter."""
    line: list[Any] = []
    for i, (entry, group) in enumerate(zip(grads, groups, strict=True)):
        names, size = group.get("param_names"), len(group["params"])
        if isinstance(entry, Mapping) and "params" in entry and "params" not in (names or ()):
            entry = entry["params"]
        if entry is None:
            line += [None] * size
        else:
            keys = range(size) if names is None else names
            line += in_line(entry, keys, names is not None, f"grads (param_groups[{i}])")
    return line


# ---- The optimizer ----


class RMSProp:
    """RMSProp on arrays in CPU memory, updated in place: the plain rule, and the variants of every framework.

    For each parameter w with gradient g, and the running average v of its squared gradient, which starts at 0::

        v ← beta·v + (1 − beta)·g²
        w ← w − lr·g / (√v + eps)

    The keywords after `eps` change this rule; `rmsfast.dialects` has them as each framework combines them. The result
    has the same bits as `rmsfast.reference.RMSProp`, for any number of threads and on every CPU.

    Parameters
    ----------
    params : array, sequence or mapping of arrays, or sequence of groups
        The arrays to train: float32, float64, complex64 or complex128, C- or F-contiguous, aligned, writable, of any
        shape, none sharing memory with another. A complex array is trained as its real and imaginary parts, side by
        side. Objects that hand over their memory by the buffer protocol or, from NumPy 2.2 on, by DLPack will do. A
        mapping gives names. A group is a mapping with ``"params"`` and with settings of its own for some of the
        keywords below, but for `num_threads`.
    lr : float or callable, default 1e-3
        The learning rate η ≥ 0. A callable is given the number of steps taken so far (0 at the first step) and returns
        the rate. It is called once per step, while the optimizer is locked: it must not use the optimizer.
    beta : float, default 0.9
        The decay of the average, from 0 to 1. PyTorch calls it alpha, Keras rho.
    eps : float, default 1e-8
        Added to the root, ≥ 0.
    momentum : float, default 0
        μ ≥ 0. Where it is not 0, w moves by a buffer b, which starts at 0: b ← μ·b + g/(√v + eps), w ← w − lr·b.
    nesterov : bool, default False
        Look ahead: w moves by g/(√v + eps) + μ·b, with the new b.
    centered : bool, default False
        Divide by the standard deviation: keep the average m ← beta·m + (1 − beta)·g as well, and use v − m² in the
        place of v, or 0 where rounding makes that negative.
    weight_decay : float, default 0
        λ ≥ 0: λ·w is added to the gradient, after clipping.
    decoupled_weight_decay : bool, default False
        Subtract lr·λ·w from w before the step instead, and leave the gradient alone.
    eps_inside_sqrt : bool, default False
        Divide by √(v + eps). With an eps of 1e-3 to 1, as in reinforcement learning, training differs visibly.
    lr_in_momentum : bool, default False
        b ← μ·b + lr·g/(√v + eps), w ← w − b: a change of the rate then acts on future gradients only.
    bias_correction : bool, default False
        Use v/(1 − betaᵗ) in the place of v, and m likewise, where t counts the parameter's steps, this one included.
        Needs a beta < 1.
    initial_square_avg : float, default 0
        What v starts at, ≥ 0; fixed once the group is made. From 1, as in TensorFlow 1, the first steps are small.
    maximize : bool, default False
        Ascend: turn the gradient round, after clipping and before weight decay.
    clip_value, clip_norm, clip_global_norm : float, optional
        Limit each element of the gradient to this size; or the norm of each parameter's gradient; or the norm of all of
        this optimizer's gradients together. > 0, and one of the three at most; an infinite one is read as None. Norms
        are of gradients after `grad_scale`.
    nonfinite : {"propagate", "raise", "skip"}, default "propagate"
        What to do when a gradient has infinite or NaN elements: compute with them; raise FloatingPointError; or skip
        the step for all parameters, and count it in `skipped_steps`. Either way, nothing else has changed then.
    num_threads : int, optional
        The most threads that a step may use, of which it uses no more than there are cores for this process (see
        `set_num_threads` for when they are counted). Without it, `get_num_threads` says.

    Raises
    ------
    TypeError
        If an argument or an array has a wrong type or dtype.
    ValueError
        If a shape, a memory layout or a setting is not allowed, settings have no meaning together, or parameters share
        memory.

    Notes
    -----
    The order of operations, with everything switched on, is that of `rmsfast.reference.step`.

    Threads that call one optimizer at the same time are served one after another. Pickling and `copy.deepcopy` take the
    parameters along, as NumPy arrays, with the values that they and the state had at one moment; together with a model
    that has the same arrays, it shares the copies.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5 - RMSProp: divide the gradient by a running average of its recent
    magnitude", COURSERA: Neural Networks for Machine Learning, 2012.

    A. Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, 2013 (centered, momentum).

    Examples
    --------
    >>> import numpy as np, rmsfast
    >>> w = np.zeros(3)
    >>> opt = rmsfast.RMSProp(w, lr=0.1)
    >>> for _ in range(1000):
    ...     opt.step(2 * (w - [1, 2, 3]))       # the gradient of (w - target)²
    >>> bool(np.allclose(w, [1, 2, 3], atol=0.1))
    True
    """

    _rule: Callable[..., Any] | None = None  # a Python function in the kernel's place: see reference.py

    def __init__(
        self,
        params: Any,
        lr: float | Callable[[int], float] = 1e-3,
        beta: float = 0.9,
        eps: float = 1e-8,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        centered: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        eps_inside_sqrt: bool = False,
        lr_in_momentum: bool = False,
        bias_correction: bool = False,
        initial_square_avg: float = 0.0,
        maximize: bool = False,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
        nonfinite: str = "propagate",
        num_threads: int | None = None,
    ) -> None:
        given = locals()
        self._defaults = as_settings({name: given[name] for name in SETTINGS})
        self._changed = _kernel.Flag()
        self._plan = _kernel.Plan(self._changed, read_settings, num_threads, type(self)._rule)
        single = is_array(params)
        groups: list[ParamGroup] = []
        for i, group in enumerate(as_groups(params)):
            groups.append(self._as_group(group, i, sum(len(g["params"]) for g in groups), single))
        self._plan.add_groups(groups, single)

    def step(self, grads: Any = None, *, grad_scale: float = 1.0, zero_grads: bool = False) -> None:
        """Update every parameter by its gradient, in place.

        Parameters
        ----------
        grads : array, sequence or mapping of arrays
            The gradients in the form that `params` had, with the parameters' shapes and dtypes, in any memory layout;
            or none, for those that `bind` remembers. None in the place of a gradient leaves its parameter alone, and a
            mapping may omit names. With groups: one entry for each parameter, or for each group. No gradient may share
            memory with a parameter or its state.
            `Rows` in the place of an array are the gradient of some rows alone, and so are SciPy's sparse matrices of
            which each row is whole or empty.
        grad_scale : float, default 1
            What to multiply each gradient by, before all else: finite, ≥ 0. One over a loss scale, or over the number
            of gradients that were added up.
        zero_grads : bool, default False
            Set the gradients to zero in the same pass, also when the step is skipped. They must be writable and share
            no memory with each other. SciPy's sparse matrices are refused: what is read are copies of theirs.

        Raises
        ------
        TypeError
            If a gradient is no array or has another dtype than its parameter, or with `zero_grads` is a sparse matrix.
        ValueError
            If a gradient's shape differs, if there are too few or too many, if a name is unknown, if memory is shared,
            or if a parameter was resized or changed since it was given.
        FloatingPointError
            If a gradient has infinite or NaN elements and its group's `nonfinite` is "raise".

        Notes
        -----
        Everything is checked before the first element changes: a call that raises has changed nothing.
        """
        if not self._plan.step(grads, grad_scale, zero_grads):
            self._step(grads, grad_scale, zero_grads)

    def bind(self, grads: Any) -> None:
        """Remember gradient arrays that are filled in place: from now on, `step()` takes what is in them.

        Parameters
        ----------
        grads : array, sequence or mapping of arrays
            As for `step`, but for `Rows`; or None, to forget them. The arrays must stay where they are. Parameters that
            are added later need a new call.

        Raises
        ------
        TypeError, ValueError
            As `step` would. Nothing has changed then.

        Notes
        -----
        Every step checks the arrays again. Copies and pickles of the optimizer have none bound.

        Examples
        --------
        >>> import numpy as np, rmsfast
        >>> w, g = np.ones(3), np.zeros(3)
        >>> opt = rmsfast.RMSProp(w)
        >>> opt.bind(g)
        >>> for _ in range(10):
        ...     g[:] = 2 * w            # the gradient of w²
        ...     opt.step()
        """
        if grads is None:
            self._plan.bind(None)
            return
        line = self._in_line(grads)
        for key, g in zip(self._plan.line.keys, line, strict=True):
            if isinstance(g, _kernel.SummedRows):
                raise TypeError(
                    f"grads[{key!r}]: rows, expected an array that is filled in place: give rows to each step"
                )
        if not self._plan.bind(line):
            raise RuntimeError("grads: the parameters changed during the call, expected them to stay")

    def _step(self, grads: Any, grad_scale: Any, zero_grads: Any) -> None:
        """Take a step with arguments of any form that is allowed."""
        scale = GRAD_SCALE.read(grad_scale, "grad_scale")
        erases = SWITCH.read(zero_grads, "zero_grads")
        if grads is None:
            if not self._plan.step(None, scale, erases):
                raise TypeError("grads: None, expected gradients, or arrays that were bound before")
            return
        if not self._plan.step(self._in_line(grads, erases), scale, erases):
            raise RuntimeError("grads: changed during the step, as did the parameters, expected them to stay")

    def _in_line(self, grads: Any, erases: bool = False) -> list[Any]:
        """Return the gradients, in any form that is allowed, in the plan's own: one for each parameter, or None.

        See `as_gradient` for `erases`.
        """
        line = self._plan.line
        if isinstance(grads, Iterable) and not isinstance(grads, Mapping) and not is_gradient(grads):
            grads = as_sequence("grads", grads, "a sequence of gradients")
            if len(grads) == len(line.groups) and any(isinstance(entry, (list, tuple, Mapping)) for entry in grads):
                grads = in_line_by_group(grads, line.groups)
        label = "grads" if line.single else "grads[{!r}]"
        return [
            as_gradient(label.format(key), g, w, erases)
            for key, g, w in zip(line.keys, in_line(grads, line.keys, line.named), line.params, strict=True)
        ]

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Train more parameters from the next step on.

        Parameters
        ----------
        group : mapping
            ``"params"``, as in the constructor, and settings where they differ from the constructor's. Its parameters
            have names if, and only if, those of the other groups have.

        Raises
        ------
        TypeError, ValueError
            As the constructor.
        """
        line = self._plan.line
        self._plan.add_groups([self._as_group(group, len(line.groups), len(line.keys))], single=False)

    def _as_group(self, group: Any, index: int, first: int, alone: bool = False) -> ParamGroup:
        """Return a group that a user gave as one of ours, with settings from the constructor where it has none.

        `index` is its own, `first` that of its first parameter; an array `alone` is all that there is.
        """
        label = f"param_groups[{index}]"
        given = dict(group) if isinstance(group, Mapping) else {}  # looked at once: it may answer otherwise next time
        if "params" not in given:
            raise TypeError(f"{label}: {group!r:.60}, expected a mapping with 'params' and settings")
        own = {name: value for name, value in given.items() if name not in ("params", "param_names")}
        settings = {**self._defaults, **as_settings(own, f"{label}[{{!r:.60}}]")}
        check_together(settings, "" if settings == self._defaults else f"{label}: ")
        names, arrays = as_params(given["params"], first, alone)
        if names is None and given.get("param_names") is not None:
            names = [as_name(name) for name in as_sequence(f"{label}['param_names']", given["param_names"], "names")]
            if len(names) != len(arrays):
                raise ValueError(f"{label}['param_names']: {count_of(len(names), 'name')}, expected {len(arrays)}")
        return ParamGroup(arrays, names, settings, self._changed)

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:
        """The parameter groups; ``opt.param_groups[0]["lr"] = 0.01`` changes a setting between two steps."""
        return tuple(self._plan.line.groups)

    @property
    def lr(self) -> float | Callable[[int], float]:
        """The learning rate of all groups (ValueError if they differ); setting it sets that of every group."""
        rates = [group["lr"] for group in self._plan.line.groups]
        if any(rate != rates[0] for rate in rates):
            raise ValueError(f"lr: the groups have {rates}, expected one rate; see param_groups")
        return rates[0]  # type: ignore[no-any-return]

    @lr.setter
    def lr(self, value: float | Callable[[int], float]) -> None:
        self._changed.put([group.held() for group in self._plan.line.groups], as_settings({"lr": value}))

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because of nonfinite gradients (see `nonfinite`)."""
        return self._plan.skipped

    @property
    def state(self) -> Mapping[Any, Mapping[str, Any]]:
        """By name or index of each parameter: ``step``, its count, and the live arrays.

        ``square_avg`` is v; ``grad_avg``, m, is there once the parameter's group was centered, and ``momentum_buffer``,
        b, once it had a momentum. The mapping is for reading; `load_state_dict` replaces what it shows.
        """
        _, entries = self._plan.state()
        return MappingProxyType({key: MappingProxyType({"step": step, **arrays}) for key, step, arrays in entries})

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state and the settings, in PyTorch's layout.

        Returns
        -------
        dict
            ``state``: for each parameter, by name or index, a dict of ``step``, an int, and the arrays ``square_avg``
            and, where there are any, ``grad_avg`` and ``momentum_buffer``. ``param_groups``: for each group, a dict of
            its settings and of ``params``, the names or indices of its parameters. A callable ``lr`` is left out; in
            its place stands ``step``, the number of steps taken.
        """
        return _as_state_dict(self._plan.snapshot())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, into the arrays that the optimizer has, or raise and change nothing.

        Parameters
        ----------
        state_dict : mapping
            With the same groups and the same parameters, by name or index, of the same shapes and dtypes. A setting
            that a group lacks, as a callable ``lr``, stays as it is.

        Raises
        ------
        TypeError, ValueError
            If something is missing, unknown, of a wrong type, or does not fit, or if a parameter was resized or changed
            since it was given.
        """
        self._plan.restore(*self._as_restored(state_dict))

    def _as_restored(self, state_dict: Any) -> tuple[Any, Any, Any, Any, int | None]:
        """Return what `Plan.restore` wants of a state dict, or raise."""
        line, _ = self._plan.state()
        groups, keys = line.groups, line.keys
        entries = _part(state_dict, "state", Mapping)
        packed = list(_part(state_dict, "param_groups", (list, tuple)))
        if len(packed) != len(groups):
            raise ValueError(f"param_groups: {len(packed)} groups, expected {len(groups)}")
        settings: list[dict[str, Any]] = []
        needed: list[tuple[str, ...]] = []  # of each parameter, the state arrays that its group's settings ask for
        steps_taken, rest = None, iter(keys)
        for i, group in enumerate(packed):
            members = _part(group, "params", (list, tuple), f"param_groups[{i}]")
            expected = [next(rest) for _ in groups[i]["params"]]
            if list(members) != expected:
                raise ValueError(f"param_groups[{i}]['params']: {list(members)!r:.200}, expected {expected!r:.200}")
            values = {key: value for key, value in group.items() if key not in ("params", "param_names", "step")}
            settings.append(as_settings(values, f"param_groups[{i}][{{!r:.60}}]"))
            complete = {**groups[i].settings(), **settings[i]}
            check_together(complete, f"param_groups[{i}]: ")
            needed += [_state_arrays(complete)] * len(expected)
            if "step" in group:
                count = _as_count(f"param_groups[{i}]['step']", group["step"])
                steps_taken = max(count, steps_taken or 0)

        known = set(keys)
        unknown = [key for key in entries if key not in known]
        if unknown:
            raise ValueError(f"state[{unknown[0]!r:.60}]: no such parameter, expected {keys!r:.200}")
        steps, states = [], []
        for key, w, names in zip(keys, line.params, needed, strict=True):
            entry = _part(entries, key, Mapping, "state")
            surplus = [name for name in entry if name not in ("step", *_kernel.STATE_NAMES)]
            if surplus:
                raise ValueError(f"state[{key!r}][{surplus[0]!r:.60}]: unknown, expected step, {', '.join(names)}")
            steps.append(_as_count(f"state[{key!r}]['step']", _part(entry, "step", object, f"state[{key!r}]")))
            arrays = {
                name: _part(entry, name, object, f"state[{key!r}]") for name in (*names, *entry) if name != "step"
            }
            states.append({name: _as_like(f"state[{key!r}][{name!r}]", a, w) for name, a in arrays.items()})
        held = [group.held() for group in groups]
        return line, steps, states, list(zip(held, settings, strict=True)), steps_taken

    def save(self, path: str | PathLike[str]) -> None:
        """Write the parameters, their state and the settings to one file, from which `load` goes on.

        Parameters
        ----------
        path : str or path
            Where to; ``.npz`` is the usual ending. A file that is there is replaced at once, when the new one is
            complete and on the disk: a crash leaves one or the other. The new one has the old one's permissions.

        Raises
        ------
        OSError
            If the file cannot be written, or `path` is a folder or a device. What was there stays.

        Notes
        -----
        The file is one of `numpy.savez`, without pickles. A callable ``lr`` is not part of it.

        A process that is killed while it saves leaves a part of the new file beside the old one, under a name such as
        ``.rmsfast.0123456789abcdef.tmp``. Nothing reads such a file: once no process saves there, it may be deleted.
        """
        from rmsfast import checkpoint  # here, because it would double the time that `import rmsfast` takes

        taken = self._plan.snapshot(with_params=True)
        checkpoint.write(path, _as_state_dict(taken), taken.params, taken.skipped)

    def load(self, path: str | PathLike[str]) -> None:
        """Take over what `save` wrote: parameters, state and settings, or raise and change nothing.

        Parameters
        ----------
        path : str or path
            A file from `save`, of an optimizer with the same groups of parameters, with the same names (if any), shapes
            and dtypes. A callable ``lr`` stays as it is.

        Raises
        ------
        OSError
            If the file cannot be read.
        TypeError, ValueError
            If the file is damaged, or not from `save`, or of a version that is not known, or does not fit, or if a
            parameter was resized or changed since it was given.

        Notes
        -----
        The file may come from anyone: nothing in it is executed, and to read it takes memory in proportion to its size,
        which is what the arrays take. Its digest tells damage, not forgery.
        """
        from rmsfast import checkpoint

        state_dict, saved, skipped = checkpoint.read(path)
        line, steps, states, settings, steps_taken = self._as_restored(state_dict)
        params = [_as_like(f"params[{key!r}]", saved[key], w) for key, w in zip(line.keys, line.params, strict=True)]
        skipped = _as_count("skipped_steps", skipped)
        self._plan.restore(line, steps, states, settings, steps_taken, params, skipped)

    def __copy__(self) -> "RMSProp":
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)  # the same parameters, so the same state, too
        return twin

    def __getstate__(self) -> dict[str, Any]:
        taken = self._plan.snapshot(with_params=True)
        line = taken.line
        return {
            # The arrays themselves, as a model that is copied along has them; until it is their turn, they may change.
            "params": line.params[0]
            if line.single
            else [{**group, **values} for group, values in zip(line.groups, taken.settings, strict=True)],
            "settings": taken.settings[0] if line.single else {},
            "defaults": self._defaults,
            "num_threads": self._plan.num_threads,
            "steps_taken": taken.steps,
            "skipped_steps": taken.skipped,
            "state_dict": _as_state_dict(taken),
            "values": taken.params,
            "attributes": {name: value for name, value in vars(self).items() if name not in _OWN_ATTRIBUTES},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        RMSProp.__init__(self, state["params"], **state["settings"], num_threads=state["num_threads"])
        self._defaults = state["defaults"]
        line, steps, states, settings, _ = self._as_restored(state["state_dict"])
        self._plan.restore(line, steps, states, settings, state["steps_taken"], state["values"], state["skipped_steps"])
        self.__dict__.update(state["attributes"])

    def __repr__(self) -> str:
        groups = "".join(f"\n    {group!r}" for group in self._plan.line.groups)
        return f"{type(self).__name__}({groups}\n)"


# What the settings after `eps` are, where nothing else is given.
DEFAULTS: Mapping[str, Any] = RMSProp.__init__.__kwdefaults__ or {}

# What __setstate__ makes anew; all else in an instance is a subclass's.
_OWN_ATTRIBUTES = ("_defaults", "_changed", "_plan")


def _as_state_dict(taken: _kernel.Snapshot) -> dict[str, Any]:
    """Return a snapshot of a plan in PyTorch's layout, with all state arrays that the settings ask for."""
    state = {key: {"step": step, **arrays} for key, step, arrays in taken.entries}
    groups, rest = [], iter(state)
    for group, values in zip(taken.line.groups, taken.settings, strict=True):
        settings = values.copy()
        keys = [next(rest) for _ in group["params"]]
        for key in keys:
            for name in _state_arrays(settings):
                if name not in state[key]:  # the setting is new, and the next step would begin with zeros
                    state[key][name] = np.zeros_like(state[key]["square_avg"])
        if is_schedule(settings["lr"]):
            del settings["lr"]
            settings["step"] = taken.steps
        groups.append({**settings, "params": keys})
    return {"state": state, "param_groups": groups}


def _state_arrays(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the state arrays that a group's settings ask for."""
    asked = (True, settings["centered"], settings["momentum"] != 0)
    return tuple(name for name, wanted in zip(_kernel.STATE_NAMES, asked, strict=True) if wanted)


def _as_like(label: str, value: Any, w: Array) -> Array:
    """Return a loaded array, or raise if its dtype or its shape are not those of the parameter w."""
    array = np.asarray(as_array(label, value))
    if array.dtype != w.dtype:
        raise TypeError(f"{label}: dtype {array.dtype}, expected {w.dtype}")
    if array.shape != w.shape:
        raise ValueError(f"{label}: shape {array.shape}, expected {w.shape}")
    return array


def _part(mapping: Any, key: Any, kind: Any, label: str = "state_dict") -> Any:
    """Return one part of a state dict that has to be there and of a kind, or raise."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{label}: {type(mapping).__name__}, expected a mapping")
    missing = object()
    part = mapping.get(key, missing)  # looked at once: it may answer otherwise next time
    if part is missing:
        raise ValueError(f"{label}: has no {key!r}, expected one")
    if not isinstance(part, kind):
        wanted = "a mapping" if kind is Mapping else "a list"
        raise TypeError(f"{label}[{key!r}]: {type(part).__name__}, expected {wanted}")
    return part


def _as_count(label: str, value: Any) -> int:
    """Return a step count as an int; PyTorch has it as a float."""
    number = value if type(value) is int else as_float(value)
    if number is None or (type(number) is float and not (number.is_integer() or np.isnan(number))):
        raise TypeError(f"{label}: {value!r:.60}, expected an integer")
    if not 0 <= number <= MOST_STEPS:
        raise ValueError(f"{label}: {value!r:.60}, expected a count from 0 to {MOST_STEPS}")
    return int(number)


def rmsprop_update(
    w: Any,
    v: Any,
    g: Any,
    *,
    lr: float = 1e-3,
    beta: float = 0.9,
    eps: float = 1e-8,
    num_threads: int | None = None,
) -> None:
    """Take one RMSProp step on one array, with state that the caller keeps; w and v are updated in place.

    ::

        v ← beta·v + (1 − beta)·g²
        w ← w − lr·g / (√v + eps)

    Parameters
    ----------
    w, v : array
        The parameter and the running average of its squared gradient: float32, float64, complex64 or complex128, of one
        shape and dtype, both in C or both in Fortran order, aligned, writable, not sharing memory.
    g : array
        The gradient: the same shape and dtype, in any memory layout, sharing no memory with w or v.
    lr, beta, eps : float
        Learning rate (≥ 0), decay (from 0 to 1), and what is added to the root (≥ 0).
    num_threads : int, optional
        The most threads to use, of which no more are used than there are cores for this process (see `set_num_threads`
        for when they are counted). Without it, `get_num_threads` says.

    Raises
    ------
    TypeError
        If an argument or an array has a wrong type or dtype.
    ValueError
        If a shape, a memory layout or a setting is not allowed, or arrays share memory.

    References
    ----------
    T. Tieleman and G. Hinton, "Lecture 6.5 - RMSProp", COURSERA: Neural Networks for Machine Learning, 2012.
    """
    update_with(None, w, v, g, lr, beta, eps, num_threads)


def update_with(
    rule: Callable[..., None] | None,
    w: Any,
    v: Any,
    g: Any,
    lr: float,
    beta: float,
    eps: float,
    num_threads: int | None,
) -> None:
    """Check the arguments of `rmsprop_update` and let a rule(w, v, g), or without one the kernel, do the arithmetic."""
    _kernel.update(
        as_array("w", w),
        as_array("v", v),
        as_array("g", g),
        SETTINGS["lr"].read(lr, "lr"),
        SETTINGS["beta"].read(beta, "beta"),
        SETTINGS["eps"].read(eps, "eps"),
        num_threads,
        rule,
    )
