"""RMSProp in plain NumPy: the specification, written to be read, from the plain rule to the last variant.

The class and the functions here have the same signatures, checks and state as `rmsfast`'s own. Only the arithmetic is
NumPy's. The kernel promises the same bits.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rmsfast import formats, optimizer
from rmsfast.settings import Array

Settings = Mapping[str, Any]

# One parameter in a step: its settings, the number of the step (1 for the first), its index; its arrays, as they are
# stored: "w", those of the state by name, and perhaps "copy"; its gradient; and which elements the step updates, one
# part after another. All arrays are flat, of real numbers; those of bfloat16 are uint16.
Parameter = tuple[Settings, int, int, dict[str, Array], Array, list[Any]]

STATE = {"square_avg": "unsigned8", "grad_avg": "signed8", "momentum_buffer": "signed8"}  # and its format in 8 bits


def plain_update(w: Array, v: Array, g: Array, lr: float, beta: float, eps: float) -> None:
    """Update w and v in place by the plain rule.

    Each operation on arrays rounds once, to their dtype. An expression of settings alone is computed in double, and
    rounded when it is combined with an array.
    """
    with np.errstate(all="ignore"):
        v[:] = beta * v + (1 - beta) * (g * g)
        w -= lr * g / (np.sqrt(v) + eps)


def step(parameters: list[Parameter], grad_scale: float) -> list[int]:
    """Take a step on all parameters, in place, with every setting: the order of operations.

    Returns, for each parameter, how many elements are nonfinite, or 0 if its settings let them pass. If one number is
    not 0, nothing has changed.
    """
    with np.errstate(all="ignore"):
        gradients = [load(g) for *_, g, _ in parameters]
        nonfinite = [
            0 if s["nonfinite"] == "propagate" else int(np.count_nonzero(~np.isfinite(g)))
            for (s, *_), g in zip(parameters, gradients, strict=True)
        ]
        if any(nonfinite):
            return nonfinite
        scaled = [g * g.dtype.type(grad_scale) for g in gradients]
        global_norm = norm(scaled)
        for (s, t, index, arrays, _, parts), g in zip(parameters, scaled, strict=True):
            g = clip(g, s, global_norm)
            done = 0
            for places in parts:
                n = len(g) if isinstance(places, slice) else len(places)
                update_stored(arrays, g[done : done + n], s, t, index, places)
                done += n
    return nonfinite


def load(data: Array) -> Array:
    """Return the numbers of a gradient, in the precision that the step computes in."""
    kind = {"float16": "float16", "uint16": "bfloat16"}.get(data.dtype.name)
    return data if kind is None else formats.load(kind, data)


def update_stored(arrays: dict[str, Array], g: Array, s: Settings, t: int, index: int, places: Any) -> None:
    """Load some numbers of a parameter and its state, update them, and store them."""
    stored = {"w": w_format(arrays)} | {
        name: {"uint8": in_8_bits, "uint16": "bfloat16"}.get(arrays[name].dtype.name)
        for name, in_8_bits in STATE.items()
        if name in arrays
    }
    more = {"w": arrays.get("remainder", arrays.get("master"))} | {name: arrays.get(f"{name}_scale") for name in STATE}
    numbers: dict[str, Any] = {
        name: (arrays[name] if kind is None else formats.load(kind, arrays[name], more[name]))[places]
        for name, kind in stored.items()
    }
    w = numbers["w"]
    v, m, b = numbers["square_avg"], numbers.get("grad_avg"), numbers.get("momentum_buffer")
    update(w, v, m, b, change(g, w, s), s, t)
    settle(w, arrays.get("ema"), places, s)
    for name, kind in stored.items():
        x = numbers[name]
        if kind is None:
            arrays[name][places] = x
            continue
        drawn = name != "w" or s["rounding"] == "stochastic"
        stream = ["w", *STATE].index(name)
        random = formats.random_bits(s["seed"], index, t, stream, len(arrays[name])) if drawn else None
        formats.store(kind, x, arrays[name], more[name], places, random)
    if "copy" in arrays:
        formats.store("float16" if arrays["copy"].dtype == np.float16 else "bfloat16", w, arrays["copy"], None, places)


def w_format(arrays: dict[str, Array]) -> str | None:
    """Return the format of a parameter, or None where its numbers are stored as they are."""
    if arrays["w"].dtype == np.float16:
        return "mastered" if "master" in arrays else "float16"
    if arrays["w"].dtype == np.uint16:
        return "split" if "remainder" in arrays else "bfloat16"
    return None


def clip(g: Array, s: Settings, global_norm: float) -> Array:
    """Return a whole scaled gradient, clipped by its norm or that of all, as the settings say."""
    real = g.dtype.type  # rounds a Python float once
    if s["clip_norm"] is not None:
        g = g * real(clip_factor(norm([g]), s["clip_norm"]))
    if s["clip_global_norm"] is not None:
        g = g * real(clip_factor(global_norm, s["clip_global_norm"]))
    return g


def change(g: Array, w: Array, s: Settings) -> Array:
    """Return the gradient g of w, clipped by value, negated and with weight decay, as the settings say."""
    real = g.dtype.type
    if s["clip_value"] is not None:
        g = limited(g, real(s["clip_value"]))
    if s["maximize"]:
        g = -g
    if s["weight_decay"] != 0 and not s["decoupled_weight_decay"]:
        g = g + real(s["weight_decay"]) * w
    return g


def update(w: Array, v: Array, m: Any, b: Any, g: Array, s: Settings, t: int) -> None:
    """Update w, v, m and b in place in step number t, by the gradient that `change` returned."""
    real = w.dtype.type  # rounds a Python float once
    lr, beta, eps, mu = s["lr"], s["beta"], s["eps"], s["momentum"]

    if s["weight_decay"] != 0 and s["decoupled_weight_decay"]:
        w -= real(lr * s["weight_decay"]) * w

    v[:] = real(beta) * v + real(1 - beta) * (g * g)
    correction = real(1 / (1 - beta**t)) if s["bias_correction"] else real(1)
    variance = v * correction
    if s["centered"]:
        m[:] = real(beta) * m + real(1 - beta) * g
        mean = m * correction
        variance = variance - mean * mean
        variance[variance < 0] = 0  # rounding makes no NaN, and a NaN stays NaN
    root = np.sqrt(variance + real(eps)) if s["eps_inside_sqrt"] else np.sqrt(variance) + real(eps)

    if mu == 0:
        w -= real(lr) * g / root
    elif s["lr_in_momentum"]:
        quotient = real(lr) * g / root
        b[:] = real(mu) * b + quotient
        w -= quotient + real(mu) * b if s["nesterov"] else b
    else:
        quotient = g / root
        b[:] = real(mu) * b + quotient
        w -= real(lr) * (quotient + real(mu) * b if s["nesterov"] else b)


def settle(w: Array, average: Any, places: Any, s: Settings) -> None:
    """Limit the new numbers w in place, and let the average of those places move towards them, as the settings say."""
    real = w.dtype.type  # rounds a Python float once
    if s["clip_weights"] is not None:
        w[:] = limited(w, real(s["clip_weights"]))
    if s["ema_decay"] is not None:
        average[places] = real(s["ema_decay"]) * average[places] + real(1 - s["ema_decay"]) * w


def limited(x: Array, most: Any) -> Array:
    """Return numbers from -most to most: larger ones become most, smaller ones -most. A NaN stays NaN."""
    return np.where(x > most, most, np.where(x < -most, -most, x))


def clip_factor(norm: float, most: float) -> float:
    """Return the factor after which a gradient of this norm has at most the norm `most`."""
    return 1.0 if norm <= most else most / norm


def norm(gradients: list[Array]) -> float:
    """Return the Euclidean norm of all elements of some gradients, in double."""
    squares = sum_of_squares(gradients, 1.0)
    if squares == np.inf and all(np.isfinite(g).all() for g in gradients):
        # Only squares of float64 numbers can overflow. Beside them, float32 gradients make no difference.
        shrink = 2.0**-600
        return float(np.sqrt(sum_of_squares([g for g in gradients if g.dtype == np.float64], shrink))) * 2.0**600
    return float(np.sqrt(squares))


def sum_of_squares(gradients: list[Array], shrink: float) -> float:
    """Return Σ (g·shrink)², added up in an order that fits any number of threads and any vector width.

    In each block of 1024 elements, element i goes to lane i mod 8. Then the lanes of a block are added, first to last,
    then the blocks of a gradient, then the gradients.
    """
    total = 0.0
    for g in gradients:
        squares_of_g = 0.0
        for start in range(0, len(g), 1024):
            x = np.zeros(1024)
            block = g[start : start + 1024].astype(np.float64) * shrink
            x[: len(block)] = block
            squares_of_block = 0.0
            for lane in np.add.reduce((x * x).reshape(-1, 8), axis=0).tolist():
                squares_of_block += lane
            squares_of_g += squares_of_block
        total += squares_of_g
    return total


class RMSProp(optimizer.RMSProp):
    """`rmsfast.RMSProp` with its arithmetic in plain NumPy, for comparison and study. `num_threads` has no effect."""

    _rule = staticmethod(step)


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

    def rule(w: Array, v: Array, g: Array) -> None:
        plain_update(w, v, load(g), float(lr), float(beta), float(eps))

    optimizer.update_with(rule, w, v, g, lr, beta, eps, num_threads)
