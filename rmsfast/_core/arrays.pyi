from collections.abc import Callable
from typing import Any, SupportsIndex, final

from rmsfast._core.plan import STATE_NAMES as STATE_NAMES
from rmsfast._core.plan import Plan
from rmsfast.settings import Array, ParamGroup

__pyx_capi__: dict[str, object]

@final
class ArrayPlan(Plan):
    may_omit: bool
    def __new__(
        cls, shorter: ArrayPlan | None, groups: list[ParamGroup], single: bool, stateless: bool = False
    ) -> ArrayPlan: ...
    @property
    def groups(self) -> tuple[ParamGroup, ...]: ...
    @property
    def keys(self) -> tuple[Any, ...]: ...
    @property
    def named(self) -> bool: ...
    @property
    def single(self) -> bool: ...
    @property
    def params(self) -> list[Array]: ...
    @property
    def stateless(self) -> bool: ...
    @property
    def fresh(self) -> set[int]: ...

@final
class OneArray(Plan):
    def __new__(cls) -> OneArray: ...

def update(
    w: Array,
    v: Array,
    g: Array,
    lr: float,
    beta: float,
    eps: float,
    num_threads: SupportsIndex | None = None,
    rule: Callable[..., None] | None = None,
) -> None: ...
