"""Settings as attributes of an optimizer, such as `opt.beta`, and the refusal of names that are not ours."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from rmsfast.settings import FOREIGN, SETTINGS, as_settings, did_you_mean, no_such_setting

T = TypeVar("T")
P = ParamSpec("P")
Rate = float | Callable[[int], float]

# What to do instead of a method or an attribute that optimizers elsewhere have.
METHODS = {
    "zero_grad": ": the gradients are yours. opt.step(grads, zero_grads=True) sets them to zero",
    "apply_gradients": ": opt.step(grads) takes the gradients in the form of params",
    "apply": ": opt.step(grads) takes the gradients in the form of params",
    "iterations": ": opt.steps counts the calls of opt.step(grads)",
    "ema": ": opt.state[name]['ema'] is the average of a parameter, after opt.step(grads)",
    "finalize_variable_values": ": after opt.step(grads), w[...] = opt.state[name]['ema'] puts an average in the place "
    "of its parameter for good, opt.averages() for a while",
}


class Common(Generic[T]):
    """A setting as an attribute: it reads the value that all groups have, and sets the setting of each group."""

    name: str

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.__doc__ = f"`{name}` of all groups (ValueError if they differ). Setting it sets that of each group."

    @overload
    def __get__(self, optimizer: None, owner: type) -> "Common[T]": ...
    @overload
    def __get__(self, optimizer: Any, owner: type) -> T: ...
    def __get__(self, optimizer: Any, owner: type) -> Any:
        if optimizer is None:
            return self
        values = [group[self.name] for group in optimizer.param_groups]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{self.name}: the groups have {values!r:.200}, expected one value: read opt.param_groups[i]"
                f"[{self.name!r}]"
            )
        return values[0]

    def __set__(self, optimizer: Any, value: T) -> None:
        groups, values = optimizer.param_groups, as_settings({self.name: value})
        for i, group in enumerate(groups):
            group.check(values, f"param_groups[{i}]: " if len(groups) > 1 else "")
        optimizer._changed.put([group.held() for group in groups], values)


class Settings:
    """What an optimizer has of its groups' settings: each as an attribute. Any other name that is meant is refused."""

    lr: Common[Rate] = Common()
    beta: Common[Rate] = Common()
    eps: Common[float] = Common()
    momentum: Common[float] = Common()
    nesterov: Common[bool] = Common()
    centered: Common[bool] = Common()
    weight_decay: Common[float] = Common()
    decoupled_weight_decay: Common[bool] = Common()
    eps_inside_sqrt: Common[bool] = Common()
    lr_in_momentum: Common[bool] = Common()
    bias_correction: Common[bool] = Common()
    initial_square_avg: Common[float] = Common()
    maximize: Common[bool] = Common()
    clip_value: Common[float | None] = Common()
    clip_norm: Common[float | None] = Common()
    clip_global_norm: Common[float | None] = Common()
    clip_weights: Common[float | None] = Common()
    nonfinite: Common[str] = Common()
    ema_decay: Common[float | None] = Common()
    state_dtype: Common[str | None] = Common()
    master_weights: Common[bool] = Common()
    rounding: Common[str] = Common()
    seed: Common[int] = Common()

    if not TYPE_CHECKING:  # type checkers would take any name then

        def __setattr__(self, name: str, value: Any) -> None:
            if not hasattr(type(self), name):
                check_attribute(name)
            object.__setattr__(self, name, value)

        # No `__getattr__`: with it, each look at any attribute takes 50 ns longer, and a step looks at one.


class Absent:
    """The name of an attribute that optimizers elsewhere have: to read it says what is here instead."""

    def __init__(self, name: str) -> None:
        self.name: str = name

    def __get__(self, optimizer: Any, owner: type) -> Any:
        if self.name in FOREIGN:
            raise AttributeError(no_such_setting(self.name, self.name))
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}{METHODS[self.name]}")


for _name in (*FOREIGN, *METHODS):
    setattr(Settings, _name, Absent(_name))


def check_attribute(name: str) -> None:
    """Raise if the name of a new attribute is another framework's name of a setting, or nearly one of ours."""
    if name in FOREIGN or (name[0] != "_" and did_you_mean(name, list(SETTINGS), 0.8)):
        raise AttributeError(no_such_setting(name, name))


def with_our_names(init: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Let a constructor refuse names that are no settings, other frameworks' names with ours in the message."""
    known = {"params", "num_threads", *SETTINGS}

    @functools.wraps(init)
    def checked(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name not in known:
                raise TypeError(no_such_setting(name, name))
        init(self, *args, **kwargs)

    return checked
