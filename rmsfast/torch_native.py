"""State dicts of `rmsfast.torch.RMSprop` as those of `rmsfast.RMSProp`, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmsfast._core.plan import STATE_NAMES
from rmsfast.settings import SCHEDULED, is_schedule
from rmsfast.torch_groups import CHECKED, NATIVE_NAMES, NUMBERS, OURS, REFUSED, SWITCHES, as_loaded, read_settings
from rmsfast.torch_tensors import DTYPES, Entry, step_tensor


def to_native(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of `RMSprop`, or of `torch.optim.RMSprop`, as one of `rmsfast.RMSProp`.

    Parameters
    ----------
    state_dict : dict
        What ``optimizer.state_dict()`` returned. Where its groups have names for the parameters, so has the result.

    Returns
    -------
    dict
        For `rmsfast.RMSProp.load_state_dict`: copies of the state as NumPy arrays, step counts as ints, and the
        settings under our names. What a schedule or PyTorch itself keeps in a group is left out.

    Raises
    ------
    TypeError
        If state has a dtype that NumPy has not.
    ValueError
        If a parameter has no state yet, because it never had a gradient.
    """
    state, groups = {}, []
    for i, group in enumerate(state_dict["param_groups"]):
        keys = group.get("param_names", group["params"])
        settings, _ = read_settings(as_loaded(group, OURS, f"param_groups[{i}]"))
        groups.append({**settings, "params": list(keys)})
        for index, key in zip(group["params"], keys, strict=True):
            entry = state_dict["state"].get(index)
            if not entry:
                raise ValueError(f"state[{index}]: none yet, expected each parameter to have had a gradient")
            label = f"state[{index}]"
            state[key] = {"step": int(entry["step"])} | {
                name: as_numpy(f"{label}[{name!r}]", entry[name]) for name in STATE_NAMES if name in entry
            }
    return {"state": state, "param_groups": groups}


def from_native(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of `rmsfast.RMSProp` as one of `RMSprop`, which `torch.optim.RMSprop` loads as well.

    Parameters
    ----------
    state_dict : dict
        What ``RMSProp.state_dict()`` returned. Names become ``param_names``.

    Returns
    -------
    dict
        Copies of the state as tensors, step counts as PyTorch has them, and the settings under PyTorch's names.

    Raises
    ------
    ValueError
        If a group has a schedule, which an optimizer of PyTorch's leaves to others.
    """
    state: dict[int, Entry] = {}
    groups = []
    for i, group in enumerate(state_dict["param_groups"]):
        for name in SCHEDULED:
            if name not in group or is_schedule(group[name]):
                raise ValueError(
                    f"param_groups[{i}][{name!r}]: a schedule, expected a number: set one before state_dict()"
                )
        settings = {name: group[NATIVE_NAMES.get(name, name)] for name in (*NUMBERS, *SWITCHES, *CHECKED)}
        keys = group["params"]
        indices = list(range(len(state), len(state) + len(keys)))
        names = {"param_names": list(keys)} if any(isinstance(key, str) for key in keys) else {}
        groups.append({**settings, "foreach": None, **dict.fromkeys(REFUSED, False), **names, "params": indices})
        for index, key in zip(indices, keys, strict=True):
            entry = state_dict["state"][key]
            state[index] = {"step": step_tensor(entry["step"])} | {
                name: as_tensor(entry[name]) for name in STATE_NAMES if name in entry
            }
    return {"state": state, "param_groups": groups}


def as_numpy(label: str, tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a copy of a tensor as an array."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{label}: {tensor.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16).copy()
    return tensor.numpy().copy()


def as_tensor(array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """Return a copy of an array of the state as a tensor. A bfloat16 comes as uint16, or in a dtype of its own."""
    if array.dtype == np.uint16 or array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.tensor(array)
