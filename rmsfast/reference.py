"""RMSProp in plain NumPy: the specification, written to be read.

The classes and functions here have the signatures, the checks and the state of `rmsfast`'s own. Only the arithmetic
is NumPy's, and its bits are what the kernel promises.
"""

from typing import Any

import numpy as np

from rmsfast import optimizer
from rmsfast.optimizer import Array


def update(w: Array, v: Array, g: Array, lr: float, beta: float, eps: float) -> None:
    """Update w and v in place: flat arrays of one dtype, settings as Python floats.

    Every operation on arrays rounds to their dtype once. What is formed of settings alone is formed in double, and
    rounded where it meets an array.
    """
    with np.errstate(all="ignore"):
        v[:] = beta * v + (1 - beta) * (g * g)
        w -= lr * g / (np.sqrt(v) + eps)


class RMSProp(optimizer.RMSProp):
    """`rmsfast.RMSProp` with its arithmetic in plain NumPy, for comparison and study. `num_threads` has no effect."""

    _rule = staticmethod(update)


def rmsprop_update(
    w: Any,
    v: Any,
    g: Any,
    *,
    lr: float = 1e-3,
    beta: float = 0.9,
    eps: float = 1e-8,
    num_threads: int | None = None,
) -> None:
    """`rmsfast.rmsprop_update` with its arithmetic in plain NumPy. `num_threads` has no effect."""
    optimizer.update_with(update, w, v, g, lr, beta, eps, num_threads)
