from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex, final

from rmsfast.optimizer import Array, ParamGroup

OPENMP: bool
STATE_NAMES: tuple[str, str, str]
ISAS: tuple[str, ...]
ISA: str
ROOT: str
__pyx_capi__: dict[str, object]  # what _tensors.pyx uses

def get_num_threads() -> int: ...
def set_num_threads(n: SupportsIndex) -> None: ...
def usable_threads() -> int: ...
def _tune(**changes: float) -> dict[str, float]: ...
def _team_size(length: int, wanted: SupportsIndex | None) -> int: ...

@final
class Lock:
    def __new__(cls) -> Lock: ...

@final
class Flag:
    up: bool
    def put(self, held: list[dict[str, Any]], settings: dict[str, Any]) -> None: ...

@final
class SummedRows:
    def __new__(cls, name: str, w: Array, indices: Any, given: Array) -> SummedRows: ...
    @property
    def given(self) -> Array: ...
    @property
    def indices(self) -> Array: ...

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
    @property
    def params(self) -> list[Array]: ...

class Snapshot(NamedTuple):
    line: Line
    entries: list[tuple[Any, int, dict[str, Array]]]
    settings: list[dict[str, Any]]
    steps: int
    skipped: int
    params: list[Array]

@final
class Plan:
    def __new__(
        cls,
        changed: Flag,
        read_settings: Callable[[Sequence[ParamGroup], int], tuple[bool, list[dict[str, Any]]]],
        num_threads: SupportsIndex | None,
        rule: Callable[[list[Any], float], list[int]] | None,
    ) -> Plan: ...
    def add_groups(self, groups: list[ParamGroup], single: bool) -> None: ...
    def bind(self, grads: list[Array | None] | None) -> bool: ...
    def step(self, grads: Any, grad_scale: Any, zero_grads: Any) -> bool: ...
    @property
    def num_threads(self) -> int | None: ...
    def _stretches(self, grads: Any, threads: int) -> list[list[tuple[int, int, int]]]: ...
    @property
    def line(self) -> Line: ...
    @property
    def steps(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    def state(self) -> tuple[Line, list[tuple[Any, int, dict[str, Array]]]]: ...
    def snapshot(self, with_params: bool = False) -> Snapshot: ...
    def restore(
        self,
        line: Line,
        steps: list[int],
        states: list[dict[str, Array]],
        settings: list[tuple[dict[str, Any], dict[str, Any]]],
        steps_taken: int | None,
        params: list[Array] | None = None,
        skipped: int | None = None,
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
