from typing import Any

from typing_extensions import disjoint_base

STATE_NAMES: tuple[str, ...]
NONFINITE: list[str]
__pyx_capi__: dict[str, object]

@disjoint_base
class Plan:
    def _learned(self) -> dict[tuple[str, int], dict[str, Any]]: ...
