from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, final

from rmsfast.optimizer import Array, ParamGroup

OPENMP: bool
ISAS: tuple[str, ...]
ISA: str

def get_num_threads() -> int: ...
def set_num_threads(n: SupportsIndex) -> None: ...
def _tune(**changes: float) -> dict[str, float]: ...
def _team_size(length: int, wanted: SupportsIndex | None) -> int: ...

@final
class Flag:
    up: bool

@final
class Line:
    def __new__(cls, shorter: Line | None, groups: list[ParamGroup], single: bool) -> Line: ...
    @property
    def groups(self) -> tuple[ParamGroup, ...]: ...
    @property
    def keys(self) -> tuple[Any, ...]: ...
    @property
    def named(self) -> bool: ...
    @property
    def single(self) -> bool: ...

@final
class Plan:
    def __new__(
        cls,
        changed: Flag,
        read_settings: Callable[[Sequence[ParamGroup], int], tuple[bool, list[tuple[float, ...]]]],
        num_threads: SupportsIndex | None,
        rule: Callable[..., None] | None,
    ) -> Plan: ...
    def add_groups(self, groups: list[ParamGroup], single: bool) -> None: ...
    def step(self, grads: Any) -> bool: ...
    @property
    def num_threads(self) -> int | None: ...
    @property
    def line(self) -> Line: ...
    @property
    def steps(self) -> int: ...
    def state(self) -> tuple[Line, list[tuple[Any, int, Array]]]: ...
    def snapshot(self) -> tuple[Line, list[tuple[Any, int, Array]], int]: ...
    def restore(
        self,
        line: Line,
        steps: list[int],
        square_avgs: list[Array],
        settings: list[dict[str, Any]],
        steps_taken: int | None,
    ) -> None: ...

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
