"""RMSprop for PyTorch: `torch.optim.RMSprop` with rmsfast's kernel underneath.

A step goes from `RMSprop.step` straight to its plan in `_tensors.pyx`, which looks at every tensor and runs the kernel.
What stands here is what happens when the plan is made, and the same rule in PyTorch's operations, for parameters that
the kernel does not take: on other devices, of other dtypes, of subclasses with a memory of their own kind.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np

try:
    import torch
except ImportError as _error:
    raise ImportError("rmsfast.torch needs PyTorch, 2.5 or newer: pip install torch") from _error

from torch import Tensor
from torch.optim import optimizer as base
from torch.optim.optimizer import Optimizer

import rmsfast._kernel as _kernel
import rmsfast._tensors as _tensors
from rmsfast.optimizer import SETTINGS, check_together
from rmsfast.optimizer import RMSProp as NativeRMSProp

__all__ = ["RMSprop", "RMSpropTFLike", "from_native", "to_native"]

# ---- What a group holds ----

# Our settings, and what a group that comes from PyTorch has of them.
OURS: dict[str, Any] = {
    "eps_inside_sqrt": False,
    "lr_in_momentum": False,
    "initial_square_avg": 0.0,
    "decoupled_weight_decay": False,
    "nesterov": False,
    "bias_correction": False,
}
# Those of PyTorch that a group from an older version may lack.
LATER: dict[str, Any] = {"momentum": 0, "centered": False, "foreach": None, "maximize": False}
# Those that have no effect here, and are refused.
REFUSED = {
    "capturable": "the step runs on the CPU, where there are no graphs to capture",
    "differentiable": "no gradient flows through a step",
}
# The kernel's names of the settings that have others here.
NATIVE_NAMES = {"alpha": "beta"}
NUMBERS = ("lr", "alpha", "eps", "weight_decay", "momentum", "initial_square_avg")
SWITCHES = ("centered", "maximize", *(name for name, value in OURS.items() if value is False))
NATIVE_DEFAULTS = {
    name: default for name, default in (NativeRMSProp.__init__.__kwdefaults__ or {}).items() if name in SETTINGS
}


def read_settings(group: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the kernel's settings of a group, and whether they may change without the group showing it."""
    settings = dict(NATIVE_DEFAULTS)
    for name in NUMBERS:
        settings[NATIVE_NAMES.get(name, name)] = float(group[name])
    for name in SWITCHES:
        settings[name] = bool(group[name])
    if settings["momentum"] < 0:  # PyTorch asks whether it is > 0
        settings["momentum"] = 0.0
    check_together(settings)
    return settings, any(isinstance(group[name], Tensor) for name in NUMBERS)


# ---- Tensors that the kernel can take ----

DTYPES = {  # DLPack's code and bits
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.complex64: (5, 64),
    torch.complex128: (5, 128),
}
PLAIN = (Tensor, torch.nn.Parameter)
STEP = len(_kernel.STATE_NAMES)  # where a parameter's step count stands among its tensors
profiler_enabled = torch._C._autograd._profiler_enabled


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


increment_version: Callable[[Any], None] = torch.autograd.graph.increment_version
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
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__ and isinstance(tensor, torch.nn.Parameter):
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


# ---- The optimizer ----

Loss = Any
Entry = dict[str, Any]


class RMSprop(Optimizer):
    """`torch.optim.RMSprop`, with a fused step for parameters in CPU memory.

    Parameters, state, groups, hooks and state dicts are PyTorch's, and so is the rule: for each parameter w with
    gradient g and the running average v of its squared gradient::

        v ← alpha·v + (1 − alpha)·g²
        w ← w − lr·g / (√v + eps)

    Parameters
    ----------
    params : iterable of tensors, of pairs of names and tensors, or of dicts
        The parameters, or groups of them. The kernel takes float32, float64, complex64 and complex128 on the CPU, in
        any dense layout, and shards of them (DTensor); all others go through the same rule in PyTorch's operations. A
        sparse gradient updates the rows that it has, and leaves all others, and their state, alone.
    lr : float or tensor of one element, default 1e-2
        The learning rate.
    alpha : float, default 0.99
        The decay of the average: `beta` in `rmsfast.RMSProp`.
    eps : float, default 1e-8
        Added to the root.
    weight_decay, momentum, centered, maximize
        As PyTorch's.
    capturable, differentiable : bool
        Refused: a step on the CPU has no graph to capture, and no gradient flows through it.
    foreach : bool, optional
        PyTorch's choice of an implementation: here for the sake of `zero_grad`, which asks for it. There is one step.
    eps_inside_sqrt, lr_in_momentum, initial_square_avg, decoupled_weight_decay, nesterov, bias_correction
        As those of `rmsfast.RMSProp`. They are settings of groups, too.
    num_threads : int, optional
        The most threads that a step may use. Without it, ``torch.get_num_threads()`` says.

    Raises
    ------
    TypeError, ValueError
        As PyTorch's, with its messages; ValueError for `capturable` and `differentiable`.

    Notes
    -----
    Results differ from PyTorch's in the last place, because it contracts some operations; where `centered` cancels, by
    as much as v − m² loses. Where rounding makes that negative, its root is 0 here, and NaN there.
    `rmsfast.reference.step` has the order of operations.

    State is in ordinary tensors under PyTorch's names, so that `state_dict` moves in both directions between PyTorch's
    optimizer and this one. State that lies otherwise than its parameter is replaced by state that lies as it does.

    References
    ----------
    PyTorch, torch/optim/rmsprop.py, https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html; for all
    else, `rmsfast.RMSProp`.

    Examples
    --------
    >>> import torch, rmsfast.torch
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = rmsfast.torch.RMSprop(model.parameters(), lr=1e-3)
    >>> loss = model(torch.ones(8, 3)).square().mean()
    >>> loss.backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        eps_inside_sqrt: bool = False,
        lr_in_momentum: bool = False,
        initial_square_avg: float = 0.0,
        decoupled_weight_decay: bool = False,
        nesterov: bool = False,
        bias_correction: bool = False,
        num_threads: int | None = None,
    ) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        for what, value in (
            ("learning rate", lr),
            ("epsilon value", eps),
            ("momentum value", momentum),
            ("weight_decay value", weight_decay),
            ("alpha value", alpha),
            ("initial_square_avg value", initial_square_avg),
        ):
            if not value >= 0:
                raise ValueError(f"Invalid {what}: {value}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "eps_inside_sqrt": eps_inside_sqrt,
            "lr_in_momentum": lr_in_momentum,
            "initial_square_avg": initial_square_avg,
            "decoupled_weight_decay": decoupled_weight_decay,
            "nesterov": nesterov,
            "bias_correction": bias_correction,
        }
        refuse(defaults)
        read_settings(defaults)
        _tensors.check_num_threads(num_threads)
        self.num_threads = num_threads
        self._forget()
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Have no plan: the next step makes one."""
        self._lock = getattr(self, "_lock", None) or _kernel.Lock()
        self._plan: _tensors.TensorPlan | None = None
        self._line: list[tuple[Tensor, Entry, bool | None]] = []  # parameter, group, whether the kernel takes it
        self._others: list[tuple[Tensor, Entry, Any]] = []  # those that it does not take, of what kind they are
        self._held: list[Tensor] = []
        self._unusual = False  # the last step had gradients that the plan does not take as they are

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters; see `torch.optim.Optimizer.add_param_group`."""
        if isinstance(param_group, dict):
            refuse(param_group)
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "num_threads": self.num_threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("num_threads", None)
        self._forget()
        for group in self.param_groups:
            for name, value in {**LATER, **OURS}.items():
                group.setdefault(name, value)
            group.update(dict.fromkeys(REFUSED, False))  # a run on a GPU may go on here
            for p in group["params"]:
                entry = self.state.get(p, {})
                if "step" in entry and not torch.is_tensor(entry["step"]):
                    entry["step"] = step_tensor(float(entry["step"]))

    # ---- A step ----

    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model anew, with gradients, and returns the loss.

        Returns
        -------
        The closure's loss, or None.
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or base._global_optimizer_pre_hooks
            or base._global_optimizer_post_hooks
            or profiler_enabled()
        ):
            return self._observed_step() if closure is None else self._observed_step(closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # the base class would wrap it, which costs 20 µs

    def _step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        threads = self.num_threads or torch.get_num_threads()
        plan = self._plan
        if plan is None or self._unusual or not plan.step(self.param_groups, self.state, threads):
            self._step_anew(threads)
        elif self._others:
            self._update_others([(p, p.grad, group) for p, group, _ in self._others if p.grad is not None])
            if any(kind_of(p) != kind for p, _, kind in self._others):  # perhaps it is the kernel's from now on
                self._plan = None
        return loss

    _observed_step = Optimizer.profile_hook_step(_step)  # with hooks and, for the profiler, a name

    @torch.no_grad()
    def _step_anew(self, threads: int) -> None:
        """Take a step for which the plan did not suffice: because of the gradients, or of all else."""
        if self._plan is not None and self._step_with_any_gradients(threads):
            return
        self._make_plan()
        if self._step_with_any_gradients(threads):
            return
        # What is left is a gradient that shares memory with a parameter or its state.
        if not self._step_with_any_gradients(threads, clone=True):
            raise RuntimeError("a parameter, its state or its gradient changed during the step")

    def _step_with_any_gradients(self, threads: int, clone: bool = False) -> bool:
        """Take a step with gradients of all kinds. False, with nothing done, if the plan does not fit."""
        grads: list[Tensor | _kernel.SummedRows | None] = []
        others = []
        unusual = clone
        for p, group, ours in self._line:
            given = p.grad
            mine = given if given is None or ours is None else as_gradient(p, given) if ours else None
            if given is not None and mine is None:
                others.append((p, given, group))
            unusual |= mine is not given and ours is True
            grads.append(mine.clone() if clone and isinstance(mine, Tensor) else mine)
        assert self._plan is not None
        if not self._plan.step(self.param_groups, self.state, threads, grads):
            return False
        self._unusual = unusual
        self._update_others(others)
        return True

    @torch.no_grad()
    def _update_others(self, others: list[tuple[Tensor, Tensor, Entry]]) -> None:
        """Update what is not for the kernel: other parameters, and those with gradients of other kinds."""
        for p, grad, group in others:
            settings, _ = read_settings(group)
            entry = self._state_of(p, group)
            for tensor in (p, grad, *entry.values()):
                check_memory(tensor)
            entry["step"] += 1
            update(p, grad, entry, settings)

    def _state_of(self, p: Tensor, group: Entry) -> Entry:
        """Return a parameter's state, with all that its group's settings ask for."""
        entry: Entry = self.state[p]
        if "step" not in entry:
            entry["step"] = step_tensor(0)
        if "square_avg" not in entry:
            start = float(group["initial_square_avg"])
            value = complex(start, start) if p.is_complex() else start
            entry["square_avg"] = torch.full_like(p, value, memory_format=torch.preserve_format, requires_grad=False)
        for name, wanted in (("momentum_buffer", group["momentum"] > 0), ("grad_avg", group["centered"])):
            if wanted and name not in entry:
                entry[name] = torch.zeros_like(p, memory_format=torch.preserve_format, requires_grad=False)
        return entry

    def _make_plan(self) -> None:
        """Sort the parameters into the kernel's and others, and plan the steps of the former."""
        natives: list[tuple[Tensor | None, ...] | bool | None] = []
        memory = []  # where each of the kernel's tensors begins and ends, and whose it is
        line = [(p, group) for group in self.param_groups for p in group["params"]]
        for i, (p, group) in enumerate(line):
            if p.grad is None and not self.state.get(p):
                natives.append(None)
                continue
            check_memory(p)
            tensors = as_native(p, self._state_of(p, group))
            natives.append(tensors or False)
            places = [_tensors.memory_of(t) for k, t in enumerate(tensors or ()) if t is not None and k != STEP]
            memory += [(*place, i) for place in places if place and place[0] < place[1]]
        farthest, owner = 0, -1
        for start, stop, i in sorted(memory):
            if start < farthest:  # not for threads that share the line of elements; PyTorch updates one after the other
                natives[i] = natives[owner] = False
            if stop > farthest:
                farthest, owner = stop, i
        self._plan = _tensors.TensorPlan(self._lock, self.param_groups, self.state, natives, read_settings)
        # A view refers to its base: PyTorch shows a tensor twice as fast to which C++ refers, too. Not to parameters:
        # torch.utils.swap_tensors refuses those then.
        state = [t for tensors in natives if isinstance(tensors, tuple) for t in tensors[: STEP + 1] if t is not None]
        self._held = [t.view_as(t) for t in state]
        self._line = [
            (p, group, None if tensors is None else bool(tensors))
            for (p, group), tensors in zip(line, natives, strict=True)
        ]
        self._others = [(p, group, kind_of(p)) for p, group, ours in self._line if ours is False]


class RMSpropTFLike(RMSprop):
    """`RMSprop` with ε inside the root and an average that starts at 1, as TensorFlow 1 has it.

    The defaults are those of Stable-Baselines3's class of this name. timm's `RMSpropTF` is
    ``RMSpropTFLike(params, alpha=0.9, eps=1e-10, lr_in_momentum=True)``, with ``decoupled_weight_decay`` for its
    `decoupled_decay`.

    Parameters
    ----------
    params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize, differentiable
        As for `RMSprop`.
    **settings
        The keywords of `RMSprop`; of these, ``eps_inside_sqrt=True`` and ``initial_square_avg=1.0`` are the defaults.

    References
    ----------
    Stable-Baselines3, stable_baselines3/common/sb2_compat/rmsprop_tf_like.py; timm, timm/optim/rmsprop_tf.py.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(
            params,
            lr,
            alpha,
            eps,
            weight_decay,
            momentum,
            centered,
            capturable,
            foreach,
            maximize,
            differentiable,
            **{"eps_inside_sqrt": True, "initial_square_avg": 1.0, **settings},
        )


def refuse(group: Mapping[str, Any]) -> None:
    """Raise for settings that have no effect here."""
    for name, reason in REFUSED.items():
        if group.get(name):
            raise ValueError(f"{name}: True, expected False: {reason}")


def step_tensor(count: float) -> Tensor:
    """Return a step count as PyTorch keeps it."""
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    return torch.tensor(float(count), dtype=dtype)


def check_memory(tensor: Any) -> None:
    """Refuse a tensor whose memory was taken away: PyTorch's own operations would crash."""
    if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return
    if tensor.numel() > 0 and tensor.data_ptr() == 0 and not tensor._is_zerotensor():
        raise RuntimeError(f"a tensor of shape {tuple(tensor.shape)}: no memory, because its storage was resized")


def as_native(p: Tensor, entry: Entry) -> tuple[Tensor | None, ...] | None:
    """Return the tensors of a parameter as `TensorPlan` wants them, or None if the kernel does not take it.

    State that lies otherwise than the parameter is replaced by state that lies as it does.
    """
    mine = local(p)
    if mine is None or p.is_inference() or _tensors.memory_of(mine) is None or not _tensors.is_step(entry["step"]):
        return None
    tensors: list[Tensor | None] = []
    for name in _kernel.STATE_NAMES:
        value = entry.get(name)
        if value is None:
            tensors.append(None)
            continue
        part = local(value)
        if part is None or part.dtype != mine.dtype or part.shape != mine.shape or part.device != mine.device:
            return None
        check_memory(part)
        if part.stride() != mine.stride() or _tensors.memory_of(part) is None:
            if part is not value:
                return None
            part = entry[name] = torch.empty_like(mine, requires_grad=False).copy_(value)
        tensors.append(part)
    return (*tensors, entry["step"], mine)


def as_gradient(p: Tensor, grad: Tensor) -> Tensor | _kernel.SummedRows | None:
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
        return _kernel.SummedRows("grad", np.from_dlpack(w.detach()), indices, mine._values().to(w.dtype).numpy())
    if mine.layout is not torch.strided:
        return None
    check_memory(mine)
    mine = as_plain(mine.resolve_conj().resolve_neg()).to(w.dtype)
    return mine.clone() if mine._is_zerotensor() else mine


def strides_in_c_order(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty(tensor.shape, device="meta").stride()


def update(p: Tensor, grad: Tensor, entry: Entry, settings: Mapping[str, Any]) -> None:
    """Update one parameter and its state in place, by PyTorch's operations, which round as they like.

    Parameters
    ----------
    p : tensor
    grad : tensor
        Of the same shape; a sparse one updates what it has elements for.
    entry : dict
        The parameter's state: step, this one counted, square_avg and, where they are asked for, grad_avg and
        momentum_buffer.
    settings : dict
        The kernel's settings.
    """
    names = [name for name in _kernel.STATE_NAMES if name in entry]
    if grad.layout is torch.sparse_coo and grad.sparse_dim() > 0:
        grad = grad.coalesce()
        place = tuple(grad.indices())
        parts = {name: entry[name][place] for name in names}
        part = p[place]
        update(part, grad.values(), {**parts, "step": entry["step"]}, settings)
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

    if settings["maximize"]:
        grad = -grad
    if settings["weight_decay"] != 0:
        if settings["decoupled_weight_decay"]:
            p.mul_(1 - lr * settings["weight_decay"])
        else:
            grad = grad.add(p, alpha=settings["weight_decay"])
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
        return
    inside, outside = (lr, 1.0) if settings["lr_in_momentum"] else (1.0, lr)
    buffer = arrays["momentum_buffer"].mul_(momentum).addcdiv_(grad, divisor, value=inside)
    if settings["nesterov"]:
        p.add_(grad.div(divisor).mul_(inside).add_(buffer, alpha=momentum), alpha=-outside)
    else:
        p.add_(buffer, alpha=-outside)


# ---- To and from rmsfast.RMSProp ----


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
    for group in state_dict["param_groups"]:
        keys = group.get("param_names", group["params"])
        settings, _ = read_settings({**LATER, **OURS, **group})
        groups.append({**settings, "params": list(keys)})
        for index, key in zip(group["params"], keys, strict=True):
            entry = state_dict["state"].get(index)
            if not entry:
                raise ValueError(f"state[{index}]: none yet, expected each parameter to have had a gradient")
            label = f"state[{index}]"
            state[key] = {"step": int(entry["step"])} | {
                name: as_numpy(f"{label}[{name!r}]", entry[name]) for name in _kernel.STATE_NAMES if name in entry
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
        If a group clips, asks what to do with nonfinite gradients, or has a schedule for lr, which an optimizer of
        PyTorch's leaves to others.
    """
    state: dict[int, Entry] = {}
    groups = []
    for i, group in enumerate(state_dict["param_groups"]):
        for name in ("clip_value", "clip_norm", "clip_global_norm", "nonfinite"):
            if group.get(name) not in (None, "propagate"):
                raise ValueError(
                    f"param_groups[{i}][{name!r}]: {group[name]!r}, expected none: PyTorch has no such setting"
                )
        if "lr" not in group:
            raise ValueError(f"param_groups[{i}]: a schedule for lr, expected a number")
        settings = {name: group[NATIVE_NAMES.get(name, name)] for name in (*NUMBERS, *SWITCHES)}
        keys = group["params"]
        indices = list(range(len(state), len(state) + len(keys)))
        names = {"param_names": list(keys)} if any(isinstance(key, str) for key in keys) else {}
        groups.append({**settings, "foreach": None, **dict.fromkeys(REFUSED, False), **names, "params": indices})
        for index, key in zip(indices, keys, strict=True):
            entry = state_dict["state"][key]
            state[index] = {"step": step_tensor(entry["step"])} | {
                name: torch.tensor(entry[name]) for name in _kernel.STATE_NAMES if name in entry
            }
    return {"state": state, "param_groups": groups}


def as_numpy(label: str, tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a copy of a tensor as an array."""
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{label}: {tensor.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    return tensor.detach().cpu().resolve_conj().resolve_neg().numpy().copy()
