"""PyTorch's tensors: which of them the kernel takes, and the same rule in PyTorch's operations for all others.

Others are on other devices, of other dtypes, of subclasses with a memory of their own kind, or views that stand for
their conjugates or negatives.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from rmsfast import torch_formats as formats
from rmsfast._core import tensors as _tensors
from rmsfast._core.plan import STATE_NAMES
from rmsfast._core.rows import SummedRows
from rmsfast.state import NUMBERS

Entry = dict[str, Any]

Function = TypeVar("Function", bound=Callable[..., Any])


def opaque(function: Function) -> Function:
    """Have `torch.compile` leave a function alone, and all that it calls: a graph break in its place, and no tracing.

    `torch.compiler.disable` does the same by a wrapper, which costs 0.6 µs at each call, compiled or not. So it is only
    for versions of PyTorch that do not have what it uses inside.
    """
    try:
        inside: Any = importlib.import_module("torch._C._dynamo.eval_frame")
        skip = inside._FrameAction.SKIP
        inside.set_code_exec_strategy(function.__code__, inside._FrameExecStrategy(skip, skip))
    except (ImportError, AttributeError):
        return cast(Function, cast(Any, torch.compiler).disable(function))
    marked: Any = function
    marked._torchdynamo_disable = True
    marked._torchdynamo_disable_msg = "it runs compiled code already"
    return function


# ---- Tensors that the kernel can take ----

DTYPES = {  # DLPack's code and bits
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.complex64: (5, 64),
    torch.complex128: (5, 128),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.uint8: (1, 8),  # this and the next are of state alone
    torch.int16: (0, 16),
}
PLAIN = (Tensor, torch.nn.Parameter)
STEP = len(STATE_NAMES)  # where a parameter's step count stands among its tensors


def increment_one_by_one(tensors: Iterable[Tensor]) -> None:
    """Raise the version counters, as an operation in place does: what autograd has saved of these is stale."""
    for tensor in tensors:
        torch.autograd.graph.increment_version(tensor)


def takes_several(increment: Callable[[Any], None]) -> bool:
    """Whether a version of PyTorch raises the counters of several tensors in one call."""
    try:
        increment([])
    except TypeError:
        return False
    return True


# What the function of torch.autograd.graph calls, which asks first what it was given.
increment_version: Callable[[Any], None] = torch._C._increment_version
_tensors.set_up(Tensor, DTYPES, increment_version if takes_several(increment_version) else increment_one_by_one)


def local(tensor: Tensor) -> Tensor | None:
    """Return a tensor with the memory of the elements that this process has; None for an unknown kind of tensor."""
    kind: Any = type(tensor)
    if kind in PLAIN:
        return tensor
    if is_distributed(tensor):
        with torch.no_grad():
            mine: Tensor = cast(Any, tensor).to_local()
        return mine if type(mine) in PLAIN else None
    own = kind.__torch_dispatch__ is Tensor.__torch_dispatch__ and kind.grad is Tensor.grad
    if own and isinstance(tensor, torch.nn.Parameter):
        return tensor
    return None


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def kind_of(tensor: Tensor) -> Any:
    """Return what decides whether a parameter is the kernel's, as far as it changes in a parameter's life."""
    return type(tensor), tensor.dtype, tensor.device, tensor.shape


def placement(tensor: Tensor) -> Any:
    """Return how a DTensor is spread over processes; None for all others."""
    return (cast(Any, tensor).device_mesh, cast(Any, tensor).placements) if is_distributed(tensor) else None


def as_plain(value: Tensor) -> Tensor:
    """Return a tensor of class Tensor, and of no subclass, with the same memory."""
    return value if type(value) is Tensor else value.detach()


def step_tensor(count: float) -> Tensor:
    """Return a step count as PyTorch keeps it."""
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.tensor(float(count), dtype=dtype)


def check_memory(tensor: Any) -> None:
    """Refuse a tensor whose memory was taken away: PyTorch's own operations would crash on it."""
    if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return
    if tensor.numel() > 0 and tensor.data_ptr() == 0 and not tensor._is_zerotensor():
        raise RuntimeError(f"a tensor of shape {tuple(tensor.shape)}: no memory, because its storage was resized")


def check_others(others: Iterable[tuple[int, Tensor, Tensor, Entry, Any]]) -> None:
    """Refuse a step on parameters that are not for the kernel, as far as can be known beforehand."""
    for i, p, grad, entry, _ in others:
        if grad.shape != p.shape:
            raise RuntimeError(
                f"parameter {i}: a gradient of shape {tuple(grad.shape)}, expected {tuple(p.shape)}, as its parameter"
            )
        if p.layout is torch.strided and type(p) in PLAIN and torch._debug_has_internal_overlap(p) == 1:
            raise RuntimeError(f"parameter {i}: its elements share memory, expected memory of their own: p.clone()")
        for name in (*NUMBERS, "ema"):
            value = entry.get(name, p)
            if value.shape != p.shape or value.is_complex() != p.is_complex() or value.device != p.device:
                raise RuntimeError(
                    f"parameter {i}: {name} is {value.dtype} of shape {tuple(value.shape)} on {value.device}, expected "
                    f"{p.dtype} of shape {tuple(p.shape)} on {p.device}, as its parameter"
                )
        for tensor in (p, grad, *entry.values()):
            check_memory(tensor)
        for tensor in (p, *entry.values()):
            if torch.is_tensor(tensor) and tensor.is_inference() and not torch.is_inference_mode_enabled():
                raise RuntimeError(
                    f"parameter {i}: it or its state is an inference tensor, expected ordinary ones outside of "
                    "torch.inference_mode(): tensor.clone() makes one"
                )


def is_lazy(tensor: Tensor) -> bool:
    """Whether a tensor stands for the conjugates or negatives of the numbers in its memory."""
    return tensor.is_conj() or tensor.is_neg()


def as_native(p: Tensor, entry: Entry, settings: Mapping[str, Any]) -> tuple[Tensor | None, ...] | None:
    """Return the tensors of a parameter as `TensorPlan` wants them, or None if the kernel does not take it.

    State that lies otherwise than the parameter, or that is stored otherwise than the settings say, is replaced.
    """
    mine = local(p)
    if mine is None or p.is_inference() or is_lazy(mine) or _tensors.memory_of(mine) is None:
        return None
    if mine.dtype in (torch.uint8, torch.int16):
        return None
    if not _tensors.is_step(entry["step"]) or entry["step"].is_inference():
        return None
    if mine is p:
        formats.bring_in_form(p, entry, settings)
    elif formats.wants(mine, settings):
        return None
    tensors: list[Tensor | None] = []
    for name in STATE_NAMES:
        value = entry.get(name)
        if value is None:
            tensors.append(None)
            continue
        part = local(value)
        if name.endswith("_scale") and part is value and _tensors.memory_of(part) is not None:
            tensors.append(part)
            continue
        dtype = formats.dtype_of(name, mine, settings)
        if part is None or part.dtype != dtype or part.shape != mine.shape or part.device != mine.device:
            return None
        if part.is_inference() or is_lazy(part):
            return None
        check_memory(part)
        if part.stride() != mine.stride() or _tensors.memory_of(part) is None:
            if part is not value:
                return None
            part = entry[name] = torch.empty_like(mine, dtype=dtype, requires_grad=False).copy_(value)
        tensors.append(part)
    return (*tensors, entry["step"], mine)


def as_gradient(p: Tensor, grad: Tensor) -> Tensor | SummedRows | None:
    """Return the gradient of one of the kernel's parameters as `TensorPlan` wants it, or None if it is not for it."""
    if is_distributed(grad) != is_distributed(p) or placement(grad) != placement(p):
        return None
    mine, w = local(grad), local(p)
    if mine is None or w is None:
        return None
    if mine.shape != w.shape:
        raise RuntimeError(f"a gradient of shape {tuple(mine.shape)}, expected {tuple(w.shape)}, as its parameter")
    if mine.layout is torch.sparse_coo and mine.sparse_dim() == 1 and w.stride() == strides_in_c_order(w):
        indices = mine._indices()[0].numpy()
        values = mine._values().resolve_conj().resolve_neg()
        if w.dtype in formats.HALF:  # of the parameter, only the form matters
            return SummedRows("grad", np.empty(w.shape, np.float32), indices, values.float().numpy())
        return SummedRows("grad", np.from_dlpack(w.detach()), indices, values.to(w.dtype).numpy())
    if mine.layout is not torch.strided:
        return None
    check_memory(mine)
    mine = as_plain(mine.resolve_conj().resolve_neg())
    if not {mine.dtype, w.dtype} - {torch.float32} < set(formats.HALF):  # float32 beside half of it is taken as it is
        mine = mine.to(w.dtype)
    return mine.clone() if mine._is_zerotensor() else mine


def strides_in_c_order(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides that a tensor of this shape has if its last axis moves fastest."""
    return torch.empty(tensor.shape, device="meta").stride()


# ---- The same in PyTorch's operations ----


def measure(grad: Tensor) -> tuple[float, float, int]:
    """Return the sum of the squares of a gradient, in double, and how many of its numbers are infinite or NaN.

    Between them stands the sum for numbers that are 2⁶⁰⁰ times smaller, of which none overflows.
    """
    if grad.layout is torch.sparse_coo:
        grad = grad.coalesce().values()
    elif grad.layout is not torch.strided:
        grad = grad.to_dense()
    numbers = torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad
    exact = numbers.to(torch.float64)
    return float(exact.square().sum()), float((exact * 2.0**-600).square().sum()), int((~numbers.isfinite()).sum())


def update(p: Tensor, grad: Tensor, entry: Entry, settings: Mapping[str, Any], factor: float = 1.0) -> None:
    """Update one parameter and its state in place, by PyTorch's operations, which round as they like.

    Parameters
    ----------
    p : tensor
    grad : tensor
        Of the same shape; a sparse one updates what it has elements for.
    entry : dict
        The parameter's state: step, this one counted, square_avg and, where they are asked for, grad_avg,
        momentum_buffer and ema.
    settings : dict
        The kernel's settings.
    factor : float, default 1
        What the gradient is multiplied by, because a norm is clipped.
    """
    if is_lazy(p):
        part = p.resolve_conj().resolve_neg()
        update(part, grad, entry, settings, factor)
        p.copy_(part)
        return
    names = [name for name in (*NUMBERS, "ema") if name in entry]
    if grad.layout is torch.sparse_coo and grad.sparse_dim() > 0:
        grad = grad.coalesce()
        place = tuple(grad.indices())
        parts = {name: entry[name][place] for name in names}
        part = p[place]
        update(part, grad.values(), {**parts, "step": entry["step"]}, settings, factor)
        for name in names:
            entry[name][place] = parts[name]
        p[place] = part
        return
    if grad.layout is not torch.strided:
        grad = grad.to_dense()
    arrays = {name: entry[name] for name in names}
    if p.is_complex():
        p, grad = torch.view_as_real(p), torch.view_as_real(grad.resolve_conj())
        arrays = {name: torch.view_as_real(value) for name, value in arrays.items()}
    lr, beta, eps, momentum = (settings[name] for name in ("lr", "beta", "eps", "momentum"))
    grad = grad.to(arrays["square_avg"].dtype)

    if factor != 1:
        grad = grad * factor
    clip_value, clip_weights = (limit_in(settings[name], t) for name, t in (("clip_value", grad), ("clip_weights", p)))
    if clip_value is not None:
        grad = grad.clamp(-clip_value, clip_value)
    if settings["maximize"]:
        grad = -grad
    if settings["weight_decay"] != 0:
        if settings["decoupled_weight_decay"]:
            p.mul_(1 - lr * settings["weight_decay"])
        else:
            grad = grad.add(p.to(grad.dtype), alpha=settings["weight_decay"])
    average = arrays["square_avg"].mul_(beta).addcmul_(grad, grad, value=1 - beta)
    correction = 1 / (1 - beta ** float(entry["step"])) if settings["bias_correction"] else 1.0
    if settings["bias_correction"]:
        average = average * correction
    if settings["centered"]:
        mean = arrays["grad_avg"].lerp_(grad, 1 - beta) * correction
        average = average.addcmul(mean, mean, value=-1).clamp_(min=0)
    divisor = (average + eps).sqrt_() if settings["eps_inside_sqrt"] else average.sqrt().add_(eps)
    if momentum == 0:
        p.addcdiv_(grad, divisor, value=-lr)
    else:
        inside, outside = (lr, 1.0) if settings["lr_in_momentum"] else (1.0, lr)
        buffer = arrays["momentum_buffer"].mul_(momentum).addcdiv_(grad, divisor, value=inside)
        if settings["nesterov"]:
            p.add_(grad.div(divisor).mul_(inside).add_(buffer, alpha=momentum), alpha=-outside)
        else:
            p.add_(buffer, alpha=-outside)
    if clip_weights is not None:
        p.clamp_(-clip_weights, clip_weights)
    if settings["ema_decay"] is not None:
        arrays["ema"].mul_(settings["ema_decay"]).add_(p, alpha=1 - settings["ema_decay"])


def limit_in(limit: float | None, numbers: Tensor) -> float | None:
    """Return a limit for numbers of a dtype, or None if it is infinite there. PyTorch refuses one that does not fit."""
    form = torch.finfo(numbers.dtype)
    if limit is None or limit < form.max:
        return limit
    half_a_unit = form.max / (2 / form.eps - 1) / 2  # in the last place of the largest number
    return None if limit - form.max >= half_a_unit else form.max
