"""How `rmsfast.torch` stores state and masters: in tensors of the dtypes that a group's settings ask for.

State that came in another form, from a checkpoint or from PyTorch's own optimizer, is converted. A float16 or bfloat16
parameter has float32 state unless `state_dtype` says otherwise.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmsfast._core.formats import SCALED, numbers_of, store_in
from rmsfast._core.plan import STATE_NAMES
from rmsfast._core.tensors import memory_of
from rmsfast.state import NUMBERS

HALF = torch.float16, torch.bfloat16
STORED = {"bfloat16": torch.bfloat16, "uint8": torch.uint8}

Array = np.ndarray[Any, np.dtype[Any]]


def wants(p: Tensor, settings: Mapping[str, Any]) -> bool:
    """Whether settings ask for a format of a parameter or of its state that only the kernel has."""
    if settings["state_dtype"] is not None:
        return True
    return p.dtype in HALF and (settings["master_weights"] or settings["rounding"] == "stochastic")


def dtype_of(name: str, p: Tensor, settings: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype of a state tensor by name."""
    if name in ("remainder", "master"):
        return torch.int16 if name == "remainder" else torch.float32
    if settings["state_dtype"] is not None and name != "ema":
        return STORED[settings["state_dtype"]]
    return torch.float32 if p.dtype in HALF else p.dtype


def check(p: Tensor, i: int, settings: Mapping[str, Any], is_native: bool) -> None:
    """Refuse formats that a parameter cannot have."""
    if settings["state_dtype"] is not None and p.dtype not in (torch.float32, *HALF):
        raise ValueError(
            f"parameter {i}: {p.dtype} with state_dtype={settings['state_dtype']!r}, expected float32, float16 or "
            "bfloat16: put this parameter in a group without state_dtype"
        )
    if not is_native and wants(p, settings):
        raise ValueError(
            f"parameter {i}: on {p.device}, or a tensor of a kind that the kernel does not take, with state_dtype, "
            "master_weights or stochastic rounding, expected a dense tensor in CPU memory of its own"
        )


def bring_in_form(p: Tensor, entry: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Convert the state of a parameter that is not stored as settings say, and make or drop its master."""
    for name in (*NUMBERS, "ema"):
        value, scale = entry.get(name), entry.get(f"{name}_scale")
        dtype = dtype_of(name, p, settings)
        if not torch.is_tensor(value) or type(value) not in (Tensor, torch.nn.Parameter) or value.shape != p.shape:
            continue
        check_scale(f"{name}_scale", scale, value)
        if value.dtype == dtype and (value.stride() == p.stride() or dtype != torch.uint8):
            continue
        if value.device != p.device or not (value.dtype in STORED.values() or value.dtype in (torch.float32, *HALF)):
            continue
        kind = "unsigned8" if name == "square_avg" else "signed8"
        numbers = as_numbers(kind, value, scale, p)
        entry.pop(f"{name}_scale", None)
        entry[name] = stored = torch.zeros_like(p, dtype=dtype, requires_grad=False)
        if dtype == torch.uint8:
            scales = entry[f"{name}_scale"] = torch.zeros(-(-p.numel() // SCALED), dtype=torch.uint8)
            store_in(kind, flat(numbers), flat(stored), scales.numpy())
        else:  # to bfloat16, PyTorch rounds to nearest as we do
            stored.copy_(numbers)
    wanted = settings["master_weights"] and {torch.bfloat16: "remainder", torch.float16: "master"}.get(p.dtype)
    for name in ("remainder", "master"):
        if name != wanted:
            entry.pop(name, None)
        elif name not in entry or entry[name].shape != p.shape:
            begin = torch.zeros_like(p, dtype=torch.int16) if name == "remainder" else p.detach().to(torch.float32)
            entry[name] = begin.requires_grad_(False)


def exact(p: Tensor, entry: Mapping[str, Any]) -> Tensor:
    """Return the numbers that a parameter stands for: those of its master, if it has one."""
    name = {torch.bfloat16: "remainder", torch.float16: "master"}.get(p.dtype, "")
    more = entry.get(name)
    if more is None or (more.dtype, more.shape, more.stride()) != (dtype_of(name, p, {}), p.shape, p.stride()):
        return p.detach()
    numbers = torch.empty_like(p, dtype=torch.float32, requires_grad=False)
    bits = p.detach().view(torch.int16) if name == "remainder" else p
    flat(numbers)[:] = numbers_of("split" if name == "remainder" else "mastered", flat(bits), flat(more))
    return numbers


def take_back(entry: dict[str, Any], saved: Mapping[str, Any]) -> None:
    """Put saved state in the place of what PyTorch made of it, where it has another dtype: float64 becomes float32."""
    for name, value in saved.items():
        if name in STATE_NAMES and torch.is_tensor(value) and value.dtype != entry[name].dtype:
            dtype = torch.float32 if value.dtype is torch.float64 else value.dtype
            entry[name] = value.detach().to("cpu", dtype, copy=True)


def as_numbers(kind: str, value: Tensor, scale: Tensor | None, p: Tensor) -> Tensor:
    """Return the numbers that a state tensor stores, as float32 that lies as p does."""
    numbers = torch.empty_like(p, dtype=torch.float32, requires_grad=False)
    if value.dtype == torch.uint8 and scale is not None:  # the blocks go by the memory order of the codes
        if memory_of(value) is None:
            value = value.contiguous()
        decoded = torch.empty_like(value, dtype=torch.float32)
        flat(decoded)[:] = numbers_of(kind, flat(value), scale.numpy())
        value = decoded
    return numbers.copy_(value)


def check_scale(name: str, scale: Any, value: Tensor) -> None:
    """Refuse scales that do not fit the elements of 8 bits that they belong to."""
    if value.dtype != torch.uint8 and scale is None:
        return
    blocks = -(-value.numel() // SCALED)
    is_plain = type(scale) is Tensor and scale.device.type == "cpu" and scale.layout is torch.strided
    if value.dtype != torch.uint8 or not is_plain or scale.dtype != torch.uint8 or scale.shape != (blocks,):
        came = f"{scale.dtype} of shape {tuple(scale.shape)}" if torch.is_tensor(scale) else type(scale).__name__
        expected = f"torch.uint8 of shape ({blocks},)" if value.dtype == torch.uint8 else "none"
        raise ValueError(f"state: {name}: {came}, expected {expected} beside {value.dtype} of {value.numel()} elements")
    if not scale.is_contiguous():
        raise ValueError(f"state: {name}: strides {scale.stride()}, expected contiguous elements: scale.contiguous()")


def flat(tensor: Tensor) -> Array:
    """Return the elements of a dense tensor in memory order as an array over its memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).numpy()
