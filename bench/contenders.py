"""The cases, and everyone who takes an RMSProp step on them.

A contender is a function of `Arrays` and the number of threads that returns a function without arguments: one step.
Each has arrays of its own; the values are the same, and no gradient is zero, because zeros and subnormals take other
times.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import rmsfast

CASES = {
    "1x1k": [(1_000,)],
    "1x64k": [(65_536,)],
    "1x1M": [(1_048_576,)],
    "1x16M": [(16_777_216,)],
    "200x1k": [(1_000,)] * 200,
    "mlp6": [(784, 256), (256,), (256, 256), (256,), (256, 10), (10,)],
}

LR, BETA, EPS = 1e-3, 0.9, 1e-8


class Arrays(NamedTuple):
    """Parameters, averages of squares and gradients, every page touched."""

    w: list[np.ndarray]
    v: list[np.ndarray]
    g: list[np.ndarray]


def make_arrays(shapes, dtype) -> Arrays:
    rng = np.random.default_rng(0)
    arrays = Arrays([], [], [])
    for shape in shapes:
        arrays.w.append(rng.uniform(-1, 1, shape).astype(dtype))
        arrays.v.append(rng.uniform(0.01, 0.1, shape).astype(dtype))
        arrays.g.append(rng.uniform(0.05, 0.5, shape).astype(dtype))
    return arrays


def rmsfast_step(arrays: Arrays, threads: int) -> Callable[[], None]:
    opt = rmsfast.RMSProp(arrays.w, LR, BETA, EPS, num_threads=threads)
    state = opt.state_dict()
    for i, v in enumerate(arrays.v):
        state["state"][i]["square_avg"] = v
    opt.load_state_dict(state)
    arrays.v[:] = [entry["square_avg"] for entry in opt.state.values()]
    grads = arrays.g

    def step():
        opt.step(grads)

    return step


def numpy_textbook(arrays: Arrays, threads: int) -> Callable[[], None]:
    def step():
        for w, v, g in zip(*arrays, strict=True):
            v[:] = BETA * v + (1 - BETA) * g**2
            w -= LR * g / (np.sqrt(v) + EPS)

    return step


def numpy_out(arrays: Arrays, threads: int) -> Callable[[], None]:
    """The same with scratch memory kept, and no temporary array."""
    scratch = [(np.empty_like(w), np.empty_like(w)) for w in arrays.w]

    def step():
        for w, v, g, (a, b) in zip(*arrays, scratch, strict=True):
            np.multiply(g, g, out=a)
            np.multiply(1 - BETA, a, out=a)
            np.multiply(BETA, v, out=v)
            np.add(v, a, out=v)
            np.sqrt(v, out=a)
            np.add(a, EPS, out=a)
            np.multiply(LR, g, out=b)
            np.divide(b, a, out=b)
            np.subtract(w, b, out=w)

    return step


CONTENDERS = {
    "rmsfast": rmsfast_step,
    "NumPy textbook": numpy_textbook,
    "NumPy out=": numpy_out,
}
