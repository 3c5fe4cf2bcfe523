"""State dicts in PyTorch's layout: made from a plan, and checked before a plan takes them over."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmsfast._core.formats import SCALED, exact, is_half, layout, numbers_of, store_in
from rmsfast._core.steps import ArrayFront, Snapshot
from rmsfast.arguments import as_array
from rmsfast.settings import (
    SCHEDULED,
    Array,
    as_float,
    as_settings,
    check_formats,
    check_together,
    count_of,
    is_own,
    is_schedule,
)

# The largest step count that can be loaded. PyTorch keeps counts as floats, and up to here each count is a float of its
# own. The kernel's counter goes on from here for longer than any run.
MOST_STEPS = min(2**53, sys.maxsize)

# Of a group in a state dict, what is no setting, and what says how its state is stored there; here it stays as it is.
NOT_LOADED = ("params", "param_names", "step", "state_dtype", "master_weights")

NUMBERS = ("square_avg", "grad_avg", "momentum_buffer")


def as_state_dict(taken: Snapshot) -> dict[str, Any]:
    """Return a snapshot of a plan in PyTorch's layout, with all state arrays that the settings need."""
    state: dict[Any, dict[str, Any]] = {key: {"step": step, **arrays} for key, step, arrays in taken.entries}
    params = dict(zip(taken.plan.keys, map(np.asarray, taken.plan.params), strict=True))
    groups, rest = [], iter(state)
    for group, values in zip(taken.plan.groups, taken.settings, strict=True):
        settings = values.copy()
        keys = [next(rest) for _ in group["params"]]
        for key in keys:
            for name, (dtype, shape) in layout(params[key], settings).items():
                if name not in state[key]:  # the setting is new: the next step would begin with these
                    if name == "ema":
                        numbers = exact(params[key], state[key].get("remainder"), state[key].get("master"))
                        state[key][name] = numbers.astype(dtype)
                        continue
                    c_order = params[key].flags.c_contiguous
                    state[key][name] = np.zeros(shape, dtype, order="C" if c_order else "F")
        if any(is_schedule(settings[name]) for name in SCHEDULED):
            settings["step"] = taken.steps
        for name in SCHEDULED:
            if is_own(settings[name]):
                del settings[name]
        groups.append({**settings, "params": keys})
    return {"state": state, "param_groups": groups}


def as_stored(
    label: str, entry: Mapping[str, Any], w: Array, settings: Mapping[str, Any], is_complete: bool
) -> dict[str, Array]:
    """Return the arrays of a loaded entry as the state of w with these settings stores them, or raise.

    What is stored otherwise is converted. A state that has no master begins with the parameter as it is. One that is
    not complete begins with zeros, but for v. An average that is missing stays so: it begins with the new parameter.
    """
    forms = layout(w, settings)
    arrays: dict[str, Array] = {}
    for name in [*forms, *(name for name in entry if name != "step" and name not in forms)]:
        part_label = f"{label}[{name!r}]"
        if name in ("remainder", "master"):
            if name in entry and name not in forms:
                raise ValueError(f"{part_label}: of master weights, expected none: make the optimizer with them")
            if name in entry:
                arrays[name] = as_like(part_label, entry[name], w, forms[name])
            elif name == "master":
                arrays[name] = w.astype(np.float32)
            else:
                arrays[name] = np.zeros(w.shape, np.int16)
        elif name == "ema":
            if name in entry:
                form = layout(w, {**settings, "ema_decay": 1})[name]
                arrays[name] = as_like(part_label, entry[name], w, form)
        elif name in NUMBERS and not is_complete and name != "square_avg" and name not in entry:
            dtype, shape = forms[name]
            arrays[name] = np.zeros(shape, dtype)
            if f"{name}_scale" in forms:
                arrays[f"{name}_scale"] = np.zeros(forms[f"{name}_scale"][1], np.uint8)
        elif name in NUMBERS:
            given = part(entry, name, object, label)
            form = layout(w, {**settings, "centered": True, "momentum": 1})[name]
            scale = entry.get(f"{name}_scale")
            arrays |= converted(part_label, name, given, scale, w, form)
        elif name not in forms and not (name.endswith("_scale") and name.removesuffix("_scale") in entry):
            raise ValueError(f"{part_label}: no such state, expected step, {', '.join(forms)}")
    return arrays


def converted(
    label: str, name: str, given: Any, scale: Any, w: Array, form: tuple[np.dtype[Any], tuple[int, ...]]
) -> dict[str, Array]:
    """Return numbers of the state in the form that they have here: one array or, of 8 bits, two."""
    kind = "unsigned8" if name == "square_avg" else "signed8"
    dtype = np.asarray(as_array(label, given)).dtype
    if dtype == np.uint8:
        stored_in_8_bits = {"state_dtype": "uint8", "master_weights": False, "ema_decay": None}
        blocks = layout(w, {**stored_in_8_bits, "centered": True, "momentum": 1})
        given = as_like(label, given, w, (dtype, w.shape))
        scale = np.ascontiguousarray(as_like(f"{label[:-2]}_scale']", scale, w, blocks[f"{name}_scale"]))
        if not given.flags.c_contiguous and not given.flags.f_contiguous:
            given = np.ascontiguousarray(given)
        same_order = given.flags.c_contiguous if w.flags.c_contiguous else given.flags.f_contiguous
        if form[0] == np.uint8 and same_order:
            return {name: given, f"{name}_scale": scale}
        given = numbers_of(kind, given, scale)  # the blocks go by the memory order of the codes
    elif scale is not None:
        raise ValueError(f"{label[:-2]}_scale']: scales beside numbers of {dtype}, expected none, or numbers of uint8")
    elif (dtype == np.uint16 or is_half(dtype)) and dtype != np.float16:
        given = as_like(label, given, w, (dtype, w.shape))
        if form[0].itemsize == 2:
            return {name: given.view(form[0])}
        given = numbers_of("bfloat16", in_order_of(w, given))
    elif form[0] == np.uint8 or form[0].itemsize == 2:
        given = as_like(label, given, w, (np.dtype(np.float32), w.shape))
    if form[0] != np.uint8 and form[0].itemsize != 2:
        return {name: as_like(label, given, w, form)}
    stored = np.zeros(form[1], form[0], order="C" if w.flags.c_contiguous else "F")
    if form[0] == np.uint8:
        scale = np.zeros(-(-w.size // SCALED), np.uint8)
        store_in(kind, in_order_of(w, given), stored, scale)
        return {name: stored, f"{name}_scale": scale}
    store_in("bfloat16", in_order_of(w, given), stored)
    return {name: stored}


def in_order_of(w: Array, array: Array) -> Array:
    """Return an array in the memory order of w."""
    return np.asarray(array, order="C" if w.flags.c_contiguous else "F")


def as_like(label: str, value: Any, w: Array, form: tuple[np.dtype[Any], tuple[int, ...]] | None = None) -> Array:
    """Return a loaded array, or raise if it has not this dtype and shape, by default those of the parameter w.

    A bfloat16 may come as its 16 bits.
    """
    dtype, shape = form or (w.dtype, w.shape)
    array = np.asarray(as_array(label, value))
    if array.dtype == np.uint16 and dtype.name == "bfloat16":
        array = array.view(dtype)
    if array.dtype != dtype:
        raise TypeError(
            f"{label}: dtype {array.dtype}, expected {dtype}, as the parameter: .astype(np.{dtype}) converts it"
        )
    if array.shape != shape:
        raise ValueError(f"{label}: shape {array.shape}, expected {shape}, as the parameter")
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
    complete: list[dict[str, Any]] = []  # for each parameter, the settings that it will have
    steps_taken, rest = None, iter(keys)
    for i, group in enumerate(packed):
        members = part(group, "params", (list, tuple), f"param_groups[{i}]")
        expected = [next(rest) for _ in groups[i]["params"]]
        if list(members) != expected:
            raise ValueError(f"param_groups[{i}]['params']: {list(members)!r:.200}, expected {expected!r:.200}")
        values = {key: value for key, value in group.items() if key not in NOT_LOADED}
        settings.append(as_settings(values, f"param_groups[{i}][{{!r:.60}}]") if with_settings else {})
        here = groups[i].settings()
        for name in SCHEDULED if with_settings else ():
            was_own = name not in values and "step" in group
            label = f"param_groups[{i}][{name!r}]"
            check_schedule(label, here[name], settings[i].get(name, here[name]), was_own)
        loaded = {**here, **settings[i]}
        check_together(loaded, f"param_groups[{i}]: ")
        check_formats(loaded, groups[i]["params"], f"param_groups[{i}]: ")
        complete += [loaded] * len(expected)
        if "step" in group:
            count = as_count(f"param_groups[{i}]['step']", group["step"])
            steps_taken = max(count, steps_taken or 0)

    known = set(keys)
    unknown = [key for key in entries if key not in known]
    if unknown:
        raise ValueError(f"state[{unknown[0]!r:.60}]: no such parameter, expected one of {keys!r:.200}")
    steps, states = [], []
    for key, w, own in zip(keys, map(np.asarray, plan.params), complete, strict=True):
        entry = part(entries, key, Mapping, "state")
        steps.append(as_count(f"state[{key!r}]['step']", part(entry, "step", object, f"state[{key!r}]")))
        states.append(as_stored(f"state[{key!r}]", dict(entry), w, own, with_settings))
    held = [group.held() for group in groups]
    return plan, steps, states, list(zip(held, settings, strict=True)), steps_taken
