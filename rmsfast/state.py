"""State dicts in PyTorch's layout: made from a plan, and checked before a plan takes them over."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmsfast._core.plan import STATE_NAMES
from rmsfast._core.steps import ArrayFront, Snapshot
from rmsfast.arguments import as_array
from rmsfast.settings import SCHEDULED, Array, as_float, as_settings, check_together, count_of, is_own, is_schedule

# The largest step count that can be loaded. PyTorch keeps counts as floats, and up to here each count is a float of its
# own. The kernel's counter goes on from here for longer than any run.
MOST_STEPS = min(2**53, sys.maxsize)


def as_state_dict(taken: Snapshot) -> dict[str, Any]:
    """Return a snapshot of a plan in PyTorch's layout, with all state arrays that the settings need."""
    state = {key: {"step": step, **arrays} for key, step, arrays in taken.entries}
    groups, rest = [], iter(state)
    for group, values in zip(taken.plan.groups, taken.settings, strict=True):
        settings = values.copy()
        keys = [next(rest) for _ in group["params"]]
        for key in keys:
            for name in arrays_of(settings):
                if name not in state[key]:  # the setting is new: the next step would begin with zeros
                    state[key][name] = np.zeros_like(state[key]["square_avg"])
        if any(is_schedule(settings[name]) for name in SCHEDULED):
            settings["step"] = taken.steps
        for name in SCHEDULED:
            if is_own(settings[name]):
                del settings[name]
        groups.append({**settings, "params": keys})
    return {"state": state, "param_groups": groups}


def arrays_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the state arrays that a group's settings need."""
    needed = (True, settings["centered"], settings["momentum"] != 0)
    return tuple(name for name, is_needed in zip(STATE_NAMES, needed, strict=True) if is_needed)


def as_like(label: str, value: Any, w: Array) -> Array:
    """Return a loaded array, or raise if its dtype or its shape are not those of the parameter w."""
    array = np.asarray(as_array(label, value))
    if array.dtype != w.dtype:
        raise TypeError(
            f"{label}: dtype {array.dtype}, expected {w.dtype}, as the parameter: .astype(np.{w.dtype}) converts it"
        )
    if array.shape != w.shape:
        raise ValueError(f"{label}: shape {array.shape}, expected {w.shape}, as the parameter")
    return array


def part(mapping: Any, key: Any, kind: Any, label: str = "state_dict") -> Any:
    """Return one part of a state dict, or raise if it is missing or not of this kind."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{label}: {type(mapping).__name__}, expected a mapping")
    missing = object()
    value = mapping.get(key, missing)  # read once: the next answer may be another
    if value is missing:
        raise ValueError(f"{label}: {key!r} is missing, expected it, as state_dict() returns it")
    if not isinstance(value, kind):
        expected = "a mapping" if kind is Mapping else "a list"
        raise TypeError(f"{label}[{key!r}]: {type(value).__name__}, expected {expected}")
    return value


def as_count(label: str, value: Any) -> int:
    """Return a step count as an int. PyTorch's are floats."""
    number = value if type(value) is int else as_float(value)
    if number is None or (type(number) is float and not (number.is_integer() or np.isnan(number))):
        raise TypeError(f"{label}: {value!r:.60}, expected an integer")
    if not 0 <= number <= MOST_STEPS:
        raise ValueError(f"{label}: {value!r:.60}, expected a count from 0 to {MOST_STEPS}")
    return int(number)


def check_schedule(label: str, here: Any, saved: Any, was_own: bool) -> None:
    """Raise if a saved number would take the place of a schedule here, or a schedule that of another kind.

    A schedule that `was_own`, the user's, was not saved.
    """
    if was_own:
        if not is_schedule(here):
            raise ValueError(
                f"{label}: saved while it was a function of your own, which a file cannot hold, expected a function "
                f"here, too, but this optimizer has {here!r}: set it to the function before you load, or load with "
                "settings=False to keep the settings that are here"
            )
    elif is_own(here) if is_schedule(saved) and not is_own(saved) else is_schedule(here) and not is_schedule(saved):
        raise ValueError(
            f"{label}: {saved!r:.200}, expected {'a function of your own' if is_own(here) else 'a schedule'}, as this "
            f"optimizer has {here!r:.200}: set it to the saved one before you load, or load with settings=False to "
            "keep the settings that are here"
        )


def as_restored(
    front: ArrayFront, state_dict: Any, with_settings: bool = True
) -> tuple[Any, Any, Any, Any, int | None]:
    """Return the arguments of `ArrayFront.restore` from a state dict, or raise.

    Without settings, those that are here stay, and state that they need and the state dict lacks begins with zeros.
    """
    plan, _ = front.state()
    groups, keys = plan.groups, plan.keys
    entries = part(state_dict, "state", Mapping)
    packed = list(part(state_dict, "param_groups", (list, tuple)))
    if len(packed) != len(groups):
        raise ValueError(f"param_groups: {count_of(len(packed), 'group')}, expected {len(groups)}, as here")
    settings: list[dict[str, Any]] = []
    needed: list[tuple[str, ...]] = []  # for each parameter, the state arrays that its group's settings need
    steps_taken, rest = None, iter(keys)
    for i, group in enumerate(packed):
        members = part(group, "params", (list, tuple), f"param_groups[{i}]")
        expected = [next(rest) for _ in groups[i]["params"]]
        if list(members) != expected:
            raise ValueError(f"param_groups[{i}]['params']: {list(members)!r:.200}, expected {expected!r:.200}")
        values = {key: value for key, value in group.items() if key not in ("params", "param_names", "step")}
        settings.append(as_settings(values, f"param_groups[{i}][{{!r:.60}}]") if with_settings else {})
        here = groups[i].settings()
        for name in SCHEDULED if with_settings else ():
            was_own = name not in values and "step" in group
            label = f"param_groups[{i}][{name!r}]"
            check_schedule(label, here[name], settings[i].get(name, here[name]), was_own)
        complete = {**here, **settings[i]}
        check_together(complete, f"param_groups[{i}]: ")
        needed += [arrays_of(complete)] * len(expected)
        if "step" in group:
            count = as_count(f"param_groups[{i}]['step']", group["step"])
            steps_taken = max(count, steps_taken or 0)

    known = set(keys)
    unknown = [key for key in entries if key not in known]
    if unknown:
        raise ValueError(f"state[{unknown[0]!r:.60}]: no such parameter, expected one of {keys!r:.200}")
    steps, states = [], []
    for key, w, names in zip(keys, plan.params, needed, strict=True):
        entry = part(entries, key, Mapping, "state")
        surplus = [name for name in entry if name not in ("step", *STATE_NAMES)]
        if surplus:
            raise ValueError(f"state[{key!r}][{surplus[0]!r:.60}]: no such state, expected step, {', '.join(names)}")
        steps.append(as_count(f"state[{key!r}]['step']", part(entry, "step", object, f"state[{key!r}]")))
        required = names if with_settings else names[:1]
        arrays = {name: part(entry, name, object, f"state[{key!r}]") for name in (*required, *entry) if name != "step"}
        arrays |= {name: np.zeros(w.shape, w.dtype) for name in names if name not in arrays}
        states.append({name: as_like(f"state[{key!r}][{name!r}]", a, w) for name, a in arrays.items()})
    held = [group.held() for group in groups]
    return plan, steps, states, list(zip(held, settings, strict=True)), steps_taken
