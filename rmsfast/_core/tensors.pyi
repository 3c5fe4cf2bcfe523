from collections.abc import Callable, Sequence
from typing import Any, final

from rmsfast._core.plan import Plan
from rmsfast._core.rows import SummedRows
from rmsfast._core.threads import Lock

def set_up(tensor: type, known_dtypes: dict[Any, tuple[int, int]], increment: Callable[[Any], None]) -> bool: ...
def memory_of(tensor: Any) -> tuple[int, int] | None: ...
def is_step(tensor: Any) -> bool: ...
def _forget_exchange() -> None: ...

@final
class Seen:
    def __new__(cls, mapping: Any) -> Seen: ...
    def holds(self) -> bool: ...

@final
class TensorPlan(Plan):
    def __new__(
        cls,
        lock: Lock,
        groups: list[dict[str, Any]],
        state: dict[Any, Any],
        natives: Sequence[tuple[Any, ...] | bool | None],
        read_settings: Callable[[dict[str, Any]], tuple[dict[str, Any], bool]],
        older: TensorPlan | None,
        first: int = 0,
    ) -> TensorPlan: ...
    def step(
        self,
        groups: list[Any],
        state: Any,
        threads: int,
        grads: Sequence[Any | SummedRows | None] | None = None,
        measured: dict[int, tuple[float, float, int]] | None = None,
    ) -> bool | None: ...
    def factor(self, i: int) -> float: ...
