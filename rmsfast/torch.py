"""RMSprop for PyTorch: `torch.optim.RMSprop` with rmsfast's kernel underneath.

A step goes from `RMSprop.step` straight to its plan in `_core/tensors.pyx`, which looks at every tensor and runs the
kernel. What stands here is what happens when the plan is made. `torch_tensors.py` has the same rule in PyTorch's
operations, for parameters that the kernel does not take.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

try:
    import torch
except ImportError as _error:
    raise ImportError("rmsfast.torch needs PyTorch, 2.5 or newer: pip install torch") from _error

from torch import Tensor
from torch.optim import optimizer as base
from torch.optim.optimizer import Optimizer
from torch.utils import _python_dispatch as modes

from rmsfast import torch_formats as formats
from rmsfast._core import tensors as _tensors
from rmsfast._core.rows import SummedRows
from rmsfast._core.threads import Lock, check_num_threads
from rmsfast.settings import SETTINGS, check_formats
from rmsfast.torch_averages import in_their_place
from rmsfast.torch_averages import refuse as refuse_averages
from rmsfast.torch_backward import StepInBackward, step_in_backward
from rmsfast.torch_groups import (
    OURS,
    TF_LIKE,
    as_saved,
    asks_for_measures,
    load_in_place,
    read_settings,
    refuse,
    setting_of,
    without_usual,
)
from rmsfast.torch_native import from_native, to_native
from rmsfast.torch_tensors import (
    STEP,
    Entry,
    as_gradient,
    as_native,
    check_memory,
    check_others,
    is_distributed,
    kind_of,
    measure,
    opaque,
    step_tensor,
    update,
)

__all__ = ["RMSprop", "RMSpropTFLike", "from_native", "step_in_backward", "to_native"]

profiler_enabled = torch._C._autograd._profiler_enabled


# ---- The optimizer ----

Loss = Any
Other = tuple[int, Tensor, Tensor, Entry, Entry]  # index, parameter, gradient, state, group


class RMSprop(torch.optim.RMSprop):
    """`torch.optim.RMSprop`, with a fused step for parameters in CPU memory.

    Parameters, state, groups, hooks and state dicts are PyTorch's, and so is the rule: for each parameter w with
    gradient g and the running average v of its squared gradient::

        v ← alpha·v + (1 − alpha)·g²
        w ← w − lr·g / (√v + eps)

    Parameters
    ----------
    params : iterable of tensors, of pairs of names and tensors, or of dicts
        The parameters, or groups of them. The kernel takes float32, float64, complex64, complex128, float16 and
        bfloat16 on the CPU, in any dense layout, and shards of them (DTensor); all others go through the same rule in
        PyTorch's operations. A sparse gradient updates the rows that it has, and leaves all others, and their state,
        alone.
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
    clip_value, clip_norm, clip_global_norm, clip_weights, nonfinite
        As those of `rmsfast.RMSProp`, in the same pass as the step. They are settings of groups, too. The global norm
        is that of the gradients of all parameters that the optimizer has. The gradients themselves stay as they are. A
        DTensor allows no `clip_norm`, `clip_global_norm` or `nonfinite`: they would need the gradients of other
        processes.
    ema_decay : float, optional
        As that of `rmsfast.RMSProp`: averages of the parameters, in ``state[p]["ema"]``, and by `averages` in their
        place. It is a setting of groups, too.
    state_dtype, master_weights, rounding, seed
        As those of `rmsfast.RMSProp`: how the state and low-precision parameters are stored. They are settings of
        groups, too. Only for dense tensors on the CPU. Without `state_dtype`, a float16 or bfloat16 parameter has
        float32 state.
    num_threads : int, optional
        The most threads that a step may use. Without it, ``torch.get_num_threads()`` says.

    Raises
    ------
    TypeError, ValueError
        As PyTorch's, with its messages; ValueError for `capturable` and `differentiable`.

    Attributes
    ----------
    skipped_steps : int
        How many steps were skipped because of nonfinite gradients (see `nonfinite`).
    num_threads : int or None
        As the argument. It may be set.

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

    _rule: dict[str, Any] = OURS  # what a saved group means where it says nothing of a setting of ours
    _index: int | None = None  # of an optimizer of one parameter, for steps in backward: its place in the whole one
    _averaging: bool = False  # whether the parameters hold their averages now
    _backward: StepInBackward | None = None  # what updates the parameters in the place of `step`

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
        clip_value: float | None = None,
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
        clip_weights: float | None = None,
        nonfinite: str = "propagate",
        ema_decay: float | None = None,
        state_dtype: Any = None,
        master_weights: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
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
        settings = {
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
            "clip_value": clip_value,
            "clip_norm": clip_norm,
            "clip_global_norm": clip_global_norm,
            "clip_weights": clip_weights,
            "nonfinite": nonfinite,
            "ema_decay": ema_decay,
            "state_dtype": SETTINGS["state_dtype"].read(state_dtype, "state_dtype"),
            "master_weights": master_weights,
            "rounding": rounding,
            "seed": seed,
        }
        refuse(settings)
        read_settings(settings)
        self.num_threads = num_threads
        self.skipped_steps: int = 0
        self._forget()
        # Not PyTorch's own `__init__`, which takes its own settings alone.
        Optimizer.__init__(self, params, without_usual(settings, self._rule))

    def _forget(self) -> None:
        """Have no plan: the next step makes one."""
        self._lock = getattr(self, "_lock", None) or Lock()
        self._plan: _tensors.TensorPlan | None = None
        self._line: list[tuple[Tensor, Entry, bool | None]] = []  # parameter, group, whether the kernel takes it
        self._others: list[tuple[int, Tensor, Entry, Any]] = []  # those that it does not take, and what kind they are
        self._held: list[Tensor] = []
        self._alone: _tensors.TensorPlan | None = None  # the plan, where it can take the next step without more ado
        self._unusual = False  # the last step had gradients that the plan does not take as they are

    @property
    def num_threads(self) -> int | None:
        """The most threads that a step may use; None follows ``torch.get_num_threads()``."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, value: int | None) -> None:
        check_num_threads(value)
        self._num_threads = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters; see `torch.optim.Optimizer.add_param_group`."""
        if isinstance(param_group, dict):
            refuse(param_group)
            read_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        try:
            if self._index is None:
                check_formats(read_settings(added)[0], added["params"])
        except ValueError:
            self.param_groups.pop()
            raise
        if self._backward is not None:
            for p in self.param_groups[-1]["params"]:
                self._backward.watch(p)

    def __getstate__(self) -> dict[str, Any]:
        refuse_averages(self, "a copy of the parameters")
        return {**super().__getstate__(), "_num_threads": self.num_threads, "skipped_steps": self.skipped_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        load_in_place(state.get("param_groups", ()), self._rule)
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # makes step counts tensors
        self.__dict__.setdefault("_num_threads", None)
        self.__dict__.setdefault("skipped_steps", 0)
        self._forget()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; see `torch.optim.Optimizer`. State keeps its own dtype until the next step."""
        refuse_averages(self, "load")
        loaded: list[dict[str, Any]] = []
        handle = self.register_load_state_dict_pre_hook(lambda _, given: loaded.append(given))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        # PyTorch made all floating state the parameter's dtype. What is stored in another lost its precision, or worse.
        packed = [index for group in loaded[-1]["param_groups"] for index in group["params"]]
        for index, p in zip(packed, (p for group in self.param_groups for p in group["params"]), strict=True):
            if p in self.state and p.device.type == "cpu" and p.dtype in (torch.float32, *formats.HALF):
                formats.take_back(self.state[p], loaded[-1]["state"].get(index, {}))

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the settings, which `torch.optim.RMSprop` loads as well; see `torch.optim.Optimizer`."""
        saved = super().state_dict()
        return {**saved, "param_groups": [as_saved(group) for group in saved["param_groups"]]}

    def averages(self) -> AbstractContextManager[None]:
        """Let the parameters hold their averages (`ema_decay`) inside a ``with`` block: to evaluate, to export.

        After it, and also if it raises, they have their own numbers again, bit for bit. A parameter that had no
        gradient yet has no average, and stays as it is.

        Raises
        ------
        ValueError
            If no group has an `ema_decay`.
        RuntimeError
            If it is called inside of itself. Inside the block, steps, `load_state_dict`, pickling and copying raise it.
            After the block, if a parameter has another shape now: all others have their own numbers again.

        Examples
        --------
        >>> import torch, rmsfast.torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = rmsfast.torch.RMSprop(model.parameters(), ema_decay=0.999)
        >>> model(torch.ones(8, 3)).square().mean().backward()
        >>> optimizer.step()
        >>> with optimizer.averages(), torch.no_grad():
        ...     loss = model(torch.ones(8, 3)).square().mean()
        """
        return in_their_place(self)

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

    step = opaque(step)
    step.hooked = True  # type: ignore[attr-defined]  # the base class would wrap it, which costs 20 µs

    def _step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._backward is not None:
            self._backward.step()
            return loss
        threads = self._num_threads or torch.get_num_threads()
        plan = self._alone
        taken: bool | None = False
        if plan is not None and not modes._is_in_torch_dispatch_mode:
            taken = plan.step(self.param_groups, self.state, threads)
        if taken is None:
            self.skipped_steps += 1
        elif not taken:
            self._step_anew(threads)
        return loss

    @opaque
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients; see `torch.optim.Optimizer`. After `step_in_backward` there are none as a rule."""
        if self._backward is None:
            super().zero_grad(set_to_none)
        elif self._backward.forget_gradients():
            super().zero_grad()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `step` unscales gradients itself, as `torch.amp.GradScaler` asks before it does."""
        if self._backward is not None:
            raise RuntimeError(
                "GradScaler: the parameters were updated in backward, by gradients that were scaled, expected no "
                "scaling after step_in_backward: GradScaler(enabled=False), or remove() of its handle"
            )
        return False

    def _optimizer_of(self, p: Tensor, group: Entry) -> "RMSprop":
        """Return an optimizer of one parameter alone, with the settings of its group, and its state."""
        alone = RMSprop.__new__(RMSprop)
        alone._index = next(i for i, q in enumerate(q for each in self.param_groups for q in each["params"]) if q is p)
        alone.__init__([{**{name: value for name, value in group.items() if name != "param_names"}, "params": [p]}])  # type: ignore[misc]
        if p in self.state:
            alone.state[p] = self.state[p]
        return alone

    _observed_step = Optimizer.profile_hook_step(_step)  # with hooks and, for the profiler, a name

    @torch.no_grad()
    def _step_anew(self, threads: int) -> None:
        """Take a step for which the plan alone did not suffice: because of the gradients, or of all else."""
        refuse_averages(self, "step")
        self._alone = None
        if modes._is_in_torch_dispatch_mode:  # such a mode, as FakeTensorMode, has to see every operation
            self._make_plan(by_operations=True)
            try:
                self._take(threads, None, self._others_with_gradients())
            finally:
                self._forget()
            return
        fits = self._plan is not None and (
            (not self._unusual and self._take(threads, None, self._others_with_gradients()))
            or self._step_with_any_gradients(threads)
        )
        if not fits:
            self._plan_and_step(threads)
        if not self._unusual and not self._others:
            self._alone = self._plan

    def _plan_and_step(self, threads: int) -> None:
        """Make a plan and take a step by it, or raise and leave no state where there was none."""
        new = [p for group in self.param_groups for p in group["params"] if not self.state.get(p)]
        try:
            self._make_plan()
            # If it does not fit its own plan, a gradient shares memory with a parameter or its state.
            if not self._step_with_any_gradients(threads) and not self._step_with_any_gradients(threads, clone=True):
                raise RuntimeError("a parameter, its state or its gradient changed during the step")
        except BaseException:
            for p in new:
                self.state.pop(p, None)
            self._forget()
            raise

    def _others_with_gradients(self) -> list[Other]:
        """Return the parameters that the kernel does not take and that have gradients."""
        return [
            (i, p, p.grad, self._state_of(p, group), group) for i, p, group, _ in self._others if p.grad is not None
        ]

    def _step_with_any_gradients(self, threads: int, clone: bool = False) -> bool:
        """Take a step with gradients of all kinds. False, with nothing done, if the plan does not fit."""
        grads: list[Tensor | SummedRows | None] = []
        others: list[Other] = []
        unusual = clone
        for i, (p, group, ours) in enumerate(self._line):
            given = p.grad.clone() if clone and p.grad is not None else p.grad
            mine = given if given is None or ours is None else as_gradient(p, given) if ours else None
            if given is not None and mine is None:
                others.append((i, p, given, self._state_of(p, group), group))
            unusual |= mine is not given and ours is True
            grads.append(mine)
        if not self._take(threads, grads, others):
            return False
        self._unusual = unusual
        return True

    def _take(self, threads: int, grads: list[Tensor | SummedRows | None] | None, others: list[Other]) -> bool:
        """Take a step by the plan, and by PyTorch's operations on `others`.

        Everything is checked before anything changes, and `others` take part in norms and in what is decided. Returns
        False, with nothing done, if the plan does not fit.
        """
        assert self._plan is not None
        check_others(others)
        settings = {id(group): read_settings(group)[0] for *_, group in others}
        measured = None
        if others and any(asks_for_measures(group) for group in self.param_groups):
            measured = {i: measure(grad) for i, _, grad, _, _ in others}
        taken = self._plan.step(self.param_groups, self.state, threads, grads, measured)
        if taken is None:
            self.skipped_steps += 1
        elif taken:
            for i, p, grad, entry, group in others:
                factor = 1.0 if measured is None else self._plan.factor(i)
                update(p, grad, {**entry, "step": entry["step"] + 1}, settings[id(group)], factor)
                entry["step"] += 1
            if any(kind_of(p) != kind for _, p, _, kind in self._others):  # perhaps it is the kernel's from now on
                self._plan = None
        return taken is not False

    def _state_of(self, p: Tensor, group: Entry) -> Entry:
        """Return a parameter's state, with all that its group's settings ask for."""
        entry: Entry = self.state[p]
        if "step" not in entry:
            entry["step"] = step_tensor(0)
        dtype = torch.float32 if p.dtype in formats.HALF and p.device.type == "cpu" else p.dtype
        if "square_avg" not in entry:
            start = float(setting_of(group, "initial_square_avg"))
            value = complex(start, start) if p.is_complex() else start
            entry["square_avg"] = torch.full_like(
                p, value, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False
            )
        for name, wanted in (("momentum_buffer", group["momentum"] > 0), ("grad_avg", group["centered"])):
            if wanted and name not in entry:
                entry[name] = torch.zeros_like(p, memory_format=torch.preserve_format, requires_grad=False)
        if "ema" not in entry and setting_of(group, "ema_decay") is not None:
            average = torch.empty_like(p, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)
            entry["ema"] = average.copy_(formats.exact(p, entry))
        return entry

    def _make_plan(self, by_operations: bool = False) -> None:
        """Sort the parameters into the kernel's and others, and plan the steps of the former.

        None are the kernel's where all go `by_operations`.
        """
        for group in self.param_groups:
            if type(group["params"]) is not list:  # as PyTorch makes it, and the plan keeps it
                group["params"] = list(group["params"])
        natives: list[tuple[Tensor | None, ...] | bool | None] = []
        memory = []  # where each of the kernel's tensors begins and ends, and whose it is
        line = [(p, group) for group in self.param_groups for p in group["params"]]
        settings_of = {id(group): read_settings(group)[0] for group in self.param_groups}
        for i, (p, group) in enumerate(line):  # before any state is converted
            formats.check(p, i, settings_of[id(group)], True)
        for i, (p, group) in enumerate(line):
            if is_distributed(p) and any(asks_for_measures(other) for other in self.param_groups):
                raise ValueError(
                    f"parameter {i}: a DTensor, of which each process has a part, expected no clip_norm, "
                    "clip_global_norm or nonfinite: torch.nn.utils.clip_grad_norm_ knows all parts"
                )
            if p.grad is None and not self.state.get(p):
                natives.append(None)
                continue
            check_memory(p)
            settings = settings_of[id(group)]
            tensors = None if by_operations else as_native(p, self._state_of(p, group), settings)
            formats.check(p, i, settings, tensors is not None)
            natives.append(tensors or False)
            places = [_tensors.memory_of(t) for k, t in enumerate(tensors or ()) if t is not None and k != STEP]
            memory += [(*place, i) for place in places if place and place[0] < place[1]]
        farthest, owner = 0, -1
        for start, stop, i in sorted(memory):
            if start < farthest:  # not for threads that share the line of elements; PyTorch updates one after the other
                for k in i, owner:
                    formats.check(line[k][0], k, settings_of[id(line[k][1])], False)
                natives[i] = natives[owner] = False
            if stop > farthest:
                farthest, owner = stop, i
        self._plan = _tensors.TensorPlan(
            self._lock, self.param_groups, self.state, natives, read_settings, self._plan, self._index or 0
        )
        # A view refers to its base: PyTorch shows a tensor twice as fast to which C++ refers, too. Only step counts
        # have a view, because torch.utils.swap_tensors refuses tensors that others refer to.
        counts = [tensors[STEP] for tensors in natives if isinstance(tensors, tuple)]
        self._held = [count.view_as(count) for count in counts if count is not None]
        self._line = [
            (p, group, None if tensors is None else bool(tensors))
            for (p, group), tensors in zip(line, natives, strict=True)
        ]
        self._others = [(i, p, group, kind_of(p)) for i, (p, group, ours) in enumerate(self._line) if ours is False]


class RMSpropTFLike(RMSprop):
    """`RMSprop` with ε inside the root and an average that starts at 1, as TensorFlow 1 has it.

    The defaults are those of Stable-Baselines3's class of this name. timm's `RMSpropTF` is
    ``RMSpropTFLike(params, alpha=0.9, eps=1e-10, lr_in_momentum=True)``, with ``decoupled_weight_decay`` for its
    `decoupled_decay`.

    Parameters
    ----------
    params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize, differentiable
        As for `RMSprop`.
    eps_inside_sqrt, initial_square_avg
        As for `RMSprop`, with True and 1.0 for defaults.
    lr_in_momentum, decoupled_weight_decay, nesterov, bias_correction
        As for `RMSprop`.
    clip_value, clip_norm, clip_global_norm, clip_weights, nonfinite, ema_decay, state_dtype, master_weights, rounding
        As for `RMSprop`.
    seed, num_threads
        As for `RMSprop`.

    Notes
    -----
    A saved group that does not have ``eps_inside_sqrt`` or ``initial_square_avg``, such as one of
    Stable-Baselines3's, is loaded with this class's defaults for them; so is one of `torch.optim.RMSprop`'s.

    References
    ----------
    Stable-Baselines3, stable_baselines3/common/sb2_compat/rmsprop_tf_like.py; timm, timm/optim/rmsprop_tf.py.
    """

    _rule: dict[str, Any] = TF_LIKE

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
        eps_inside_sqrt: bool = True,
        lr_in_momentum: bool = False,
        initial_square_avg: float = 1.0,
        decoupled_weight_decay: bool = False,
        nesterov: bool = False,
        bias_correction: bool = False,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        clip_global_norm: float | None = None,
        clip_weights: float | None = None,
        nonfinite: str = "propagate",
        ema_decay: float | None = None,
        state_dtype: Any = None,
        master_weights: bool = False,
        rounding: str = "nearest",
        seed: int = 0,
        num_threads: int | None = None,
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
            eps_inside_sqrt=eps_inside_sqrt,
            lr_in_momentum=lr_in_momentum,
            initial_square_avg=initial_square_avg,
            decoupled_weight_decay=decoupled_weight_decay,
            nesterov=nesterov,
            bias_correction=bias_correction,
            clip_value=clip_value,
            clip_norm=clip_norm,
            clip_global_norm=clip_global_norm,
            clip_weights=clip_weights,
            nonfinite=nonfinite,
            ema_decay=ema_decay,
            state_dtype=state_dtype,
            master_weights=master_weights,
            rounding=rounding,
            seed=seed,
            num_threads=num_threads,
        )
