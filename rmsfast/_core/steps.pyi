from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex, final

from rmsfast._core.arrays import ArrayPlan
from rmsfast._core.plan import STATE_NAMES as STATE_NAMES
from rmsfast.settings import Array, ParamGroup

@final
class Flag:
    up: bool
    def put(self, held: list[dict[str, Any]], settings: dict[str, Any]) -> None: ...

class Snapshot(NamedTuple):
    plan: ArrayPlan
    entries: list[tuple[Any, int, dict[str, Array]]]
    settings: list[dict[str, Any]]
    steps: int
    skipped: int
    params: list[Array]

@final
class ArrayFront:
    loans: list[Any]
    def __new__(
        cls,
        changed: Flag,
        read_settings: Callable[[Sequence[ParamGroup], int], tuple[bool, list[dict[str, Any]]]],
        num_threads: SupportsIndex | None,
        rule: Callable[[list[Any], float], list[int]] | None,
    ) -> ArrayFront: ...
    def add_groups(self, groups: list[ParamGroup], single: bool) -> None: ...
    def bind(self, grads: list[Array | None] | None) -> bool: ...
    def step(self, grads: Any, grad_scale: Any, zero_grads: Any) -> bool: ...
    @property
    def num_threads(self) -> int | None: ...
    def _stretches(self, grads: Any, threads: int) -> list[list[tuple[int, int, int]]]: ...
    @property
    def plan(self) -> ArrayPlan: ...
    @property
    def steps(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    def state(self) -> tuple[ArrayPlan, list[tuple[Any, int, dict[str, Array]]]]: ...
    def snapshot(self, with_params: bool = False) -> Snapshot: ...
    def restore(
        self,
        plan: ArrayPlan,
        steps: list[int],
        states: list[dict[str, Array]],
        settings: list[tuple[dict[str, Any], dict[str, Any]]],
        steps_taken: int | None,
        params: list[Array] | None = None,
        skipped: int | None = None,
    ) -> None: ...
