from typing import Any

import numpy as np

BLOCK: int

def measure(
    g: np.ndarray[Any, Any], grad_scale: float, shrink: float, squares: np.ndarray[Any, Any], threads: int = 1
) -> int: ...
