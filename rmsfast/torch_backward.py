"""A step inside of backward: each parameter is updated as soon as its gradient is there, and the gradient is freed.

A hook of autograd's has an optimizer of one parameter alone take a step, with the state and the settings of the whole
one. So the state dict, schedulers and all else see one optimizer.
"""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from rmsfast._core.tensors import Seen
from rmsfast.settings import count_of
from rmsfast.torch_averages import refuse
from rmsfast.torch_groups import setting_of

# What needs the gradients of all parameters at once.
NEEDS_ALL: dict[str, tuple[str | None, str]] = {
    "clip_global_norm": (
        None,
        "the norm of all gradients is not known before the last: clip_norm, of each, or clip_value",
    ),
    "nonfinite": ("propagate", "the first parameters have moved when a gradient is found nonfinite"),
}


def step_in_backward(optimizer: Any, *, every: int = 1) -> "StepInBackward":
    """Have each parameter updated during backward, as soon as its gradient is complete, and free the gradient.

    The gradients' memory is gone from the peak: at most those of one layer exist at a time. The training loop stays as
    it is. ``optimizer.step()`` ends a turn and ``optimizer.zero_grad()`` has nothing to do; both cost next to nothing.
    Learning-rate schedulers, state dicts and closures work as before.

    Parameters
    ----------
    optimizer : RMSprop
        No gradients may be there yet: call ``optimizer.zero_grad()`` first. Parameters that are added later take part.
    every : int, default 1
        After how many gradients a parameter is updated, where a turn of the loop has so many calls of backward. In
        between, its gradient stays. ``optimizer.step()`` updates each parameter that has had fewer, as it always does.

    Returns
    -------
    StepInBackward
        Its `remove()` ends this: from then on ``optimizer.step()`` takes the steps.

    Raises
    ------
    TypeError
        If it is not an optimizer of this package, or `every` is not an integer.
    ValueError
        If `every` is less than 1, if a parameter has a gradient or stands in the optimizer twice, if it was called for
        this optimizer before, or for settings that need all gradients at once: `clip_global_norm`, `nonfinite`.
    RuntimeError
        In backward, if a parameter gets more than `every` gradients before ``optimizer.step()``: the loop accumulates
        gradients. In ``GradScaler.step``, because the parameters moved before their gradients could be unscaled.

    Notes
    -----
    ``torch.nn.utils.clip_grad_norm_`` finds no gradients. `DistributedDataParallel` averages gradients after the hooks
    ran: use ``fully_shard``, which calls them with averages.

    Examples
    --------
    >>> import torch, rmsfast.torch
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = rmsfast.torch.RMSprop(model.parameters(), lr=1e-3)
    >>> handle = rmsfast.torch.step_in_backward(optimizer)
    >>> model(torch.ones(8, 3)).square().mean().backward()  # updates the parameters
    >>> model.weight.grad is None
    True
    >>> optimizer.step()
    >>> handle.remove()
    """
    if not hasattr(optimizer, "_backward"):
        raise TypeError(f"optimizer: {type(optimizer).__name__}, expected rmsfast.torch.RMSprop or RMSpropTFLike")
    if type(every) is not int:
        raise TypeError(f"every: {every!r:.60}, expected an integer ≥ 1")
    if every < 1:
        raise ValueError(f"every: {every}, expected an integer ≥ 1")
    if optimizer._backward is not None:
        raise ValueError("optimizer: steps in backward already, expected its handle's remove() first")
    optimizer._backward = StepInBackward(optimizer, every)
    handle: StepInBackward = optimizer._backward
    return handle


class StepInBackward:
    """What `step_in_backward` returns. `remove()` ends the steps in backward."""

    def __init__(self, optimizer: Any, every: int) -> None:
        for i, group in enumerate(optimizer.param_groups):
            check_group(group, f"param_groups[{i}]: ")
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for i, p in enumerate(params):
            if p.grad is not None:
                raise ValueError(f"parameter {i}: has a gradient, expected none: call optimizer.zero_grad() first")
        if len(set(map(id, params))) < len(params):
            raise ValueError("optimizer: a parameter is given twice, expected each once")
        self.optimizer: Any = optimizer
        self.every: int = every
        self.turn: int = 0  # of the loop: each optimizer.step() ends one
        self.waiting: dict[OneParameter, None] = {}  # those with gradients that have moved nothing yet
        self.frozen: list[OneParameter] = []  # those that require no gradient so far
        self.ones: list[OneParameter] = []
        for p in params:
            self.watch(p)

    def watch(self, p: Tensor) -> None:
        """Update a parameter from now on."""
        one = OneParameter(self, len(self.ones), p)
        self.ones.append(one)
        if not one.hook():
            self.frozen.append(one)

    def step(self) -> None:
        """End a turn: update what has gradients that moved nothing yet."""
        for one in self.frozen:
            if one.p.grad is not None:
                self.waiting[one] = None
        self.frozen = [one for one in self.frozen if not one.hook()]
        for one in [*self.waiting]:
            one.update()
        self.turn += 1

    def forget_gradients(self) -> bool:
        """Begin the turn anew. Returns whether there are gradients to be freed."""
        found = bool(self.waiting or self.frozen)
        if found:
            self.waiting.clear()
            self.turn += 1
        return found

    def remove(self) -> None:
        """Have ``optimizer.step()`` update the parameters again, and backward none."""
        for one in self.ones:
            one.unhook()
        self.ones, self.frozen = [], []
        if self.optimizer._backward is self:
            self.optimizer._backward = None

    def __repr__(self) -> str:
        return f"StepInBackward({count_of(len(self.ones), 'parameter')}, every={self.every})"


class OneParameter:
    """A parameter, the hook that its gradient calls, and the optimizer of it alone."""

    def __init__(self, handle: StepInBackward, index: int, p: Tensor) -> None:
        self.handle: StepInBackward = handle
        self.index: int = index
        self.p: Tensor = p
        self.given: int = 0  # gradients in the handle's turn of this number
        self.turn: int = -1
        self.registered: Any = None
        self.place: int = 0  # of its group among the whole optimizer's
        self.group: dict[str, Any] | None = None
        self.alone: Any = None  # the optimizer of this parameter
        self.seen: Seen | None = None  # what the group held when its settings were taken over

    def hook(self) -> bool:
        """Have autograd call this object. False, with nothing done, for a parameter that requires no gradient."""
        if self.p.requires_grad:
            self.registered = cast(Any, self.p).register_post_accumulate_grad_hook(self)
        return self.p.requires_grad

    def unhook(self) -> None:
        """Have autograd call this object no more."""
        if self.registered is not None:
            self.registered.remove()

    def __call__(self, p: Tensor) -> None:
        """Take note of a gradient that is complete, and update the parameter if it is time."""
        handle = self.handle
        if self.turn != handle.turn:
            self.turn, self.given = handle.turn, 0
        self.given += 1
        handle.waiting[self] = None
        if self.given == handle.every:
            self.update()
        elif self.given > handle.every:
            raise RuntimeError(
                f"parameter {self.index}: gradient {self.given} of this turn, expected {handle.every}, and then "
                "optimizer.step(): the parameter has moved. To accumulate the gradients of k calls of backward, "
                "step_in_backward(optimizer, every=k)"
            )

    def update(self) -> None:
        """Update the parameter by its gradient, and free that."""
        whole = self.handle.optimizer
        refuse(whole, "step in backward")
        if not self.is_part_of(whole):
            self.join(whole)
        if self.seen is None or not self.seen.holds():
            self.take_settings(whole.param_groups[self.place])
        self.alone.num_threads = whole.num_threads
        self.alone._step()
        if self.p in self.alone.state:
            whole.state[self.p] = self.alone.state[self.p]
        self.p.grad = None
        del self.handle.waiting[self]

    def is_part_of(self, whole: Any) -> bool:
        """Whether the whole optimizer has the group and the state that it had when this parameter joined it."""
        groups = whole.param_groups
        if self.place >= len(groups) or groups[self.place] is not self.group:
            return False
        return whole.state.get(self.p) is self.alone.state.get(self.p)

    def join(self, whole: Any) -> None:
        """Have an optimizer of this parameter alone, with the whole one's state of it."""
        for self.place, self.group in enumerate(whole.param_groups):
            if any(p is self.p for p in self.group["params"]):
                self.alone = whole._optimizer_of(self.p, self.group)
                self.seen = None
                return
        self.group = None
        raise RuntimeError(
            f"parameter {self.index}: in no group of the optimizer any more, expected it there: the handle's remove() "
            "ends its steps in backward"
        )

    def take_settings(self, group: dict[str, Any]) -> None:
        """Take over the settings of the group, which may have changed."""
        check_group(group, f"parameter {self.index}: ")
        mine = self.alone.param_groups[0]
        params = mine["params"]
        mine.clear()
        mine.update({**group, "params": params})
        self.seen = Seen(group)


def check_group(group: Mapping[str, Any], label: str) -> None:
    """Refuse settings that need the gradients of all parameters."""
    for name, (neutral, reason) in NEEDS_ALL.items():
        value = setting_of(group, name)
        if value != neutral:
            raise ValueError(f"{label}{name}: {value!r}, expected {neutral!r} with step_in_backward: {reason}")
