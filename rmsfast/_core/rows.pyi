from typing import Any, final

import numpy as np

__pyx_capi__: dict[str, object]

@final
class SummedRows:
    def __new__(cls, name: str, w: np.ndarray[Any, Any], indices: Any, given: np.ndarray[Any, Any]) -> SummedRows: ...
    @property
    def given(self) -> np.ndarray[Any, Any]: ...
    @property
    def indices(self) -> np.ndarray[Any, Any]: ...
    def values(self) -> np.ndarray[Any, Any]: ...
