"""The cases, and everyone who takes an RMSProp step on them, each at its best setting.

A contender is a function of `Arrays` and the number of threads that returns a function without arguments: one step of
the plain rule, with ε outside the root. It raises ImportError where its package is not installed. The values are the
same for all, and no gradient is zero, because zeros and subnormals take other times.
"""

import os
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

Step = Callable[[], None]


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


def rmsfast_step(arrays: Arrays, threads: int) -> Step:
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


def numpy_textbook(arrays: Arrays, threads: int) -> Step:
    def step():
        for w, v, g in zip(*arrays, strict=True):
            v[:] = BETA * v + (1 - BETA) * g**2
            w -= LR * g / (np.sqrt(v) + EPS)

    return step


def numpy_out(arrays: Arrays, threads: int) -> Step:
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


def numexpr(arrays: Arrays, threads: int) -> Step:
    import numexpr as ne

    ne.set_num_threads(threads)
    real = arrays.w[0].dtype.type
    numbers = {"beta": real(BETA), "rest": real(1 - BETA), "lr": real(LR), "eps": real(EPS)}

    def step():
        for w, v, g in zip(*arrays, strict=True):
            ne.evaluate("beta * v + rest * (g * g)", {"v": v, "g": g, **numbers}, out=v, casting="same_kind")
            ne.evaluate("w - lr * g / (sqrt(v) + eps)", {"w": w, "v": v, "g": g, **numbers}, out=w, casting="same_kind")

    return step


def numba(arrays: Arrays, threads: int) -> Step:
    """One parallel loop over each array, with the compiler's leave to round as it likes."""
    from numba import njit, prange, set_num_threads

    set_num_threads(threads)
    real = arrays.w[0].dtype.type
    lr, beta, rest, eps = real(LR), real(BETA), real(1 - BETA), real(EPS)

    @njit(parallel=threads > 1, fastmath=True)
    def update(w, v, g):
        for i in prange(w.size):
            v[i] = beta * v[i] + rest * g[i] * g[i]
            w[i] -= lr * g[i] / (np.sqrt(v[i]) + eps)

    flat = [[a.reshape(-1) for a in part] for part in arrays]

    def step():
        for w, v, g in zip(*flat, strict=True):
            update(w, v, g)

    return step


def optax(arrays: Arrays, threads: int) -> Step:
    """Jitted, with parameters and state donated, so that they are updated in place."""
    import jax
    import jax.numpy as jnp
    import optax

    jax.config.update("jax_enable_x64", True)
    optimizer = optax.rmsprop(LR, BETA, EPS, eps_in_sqrt=False)
    params, grads = ([jnp.array(a) for a in part] for part in (arrays.w, arrays.g))
    state = optimizer.init(params)
    state = (state[0]._replace(nu=[jnp.array(v) for v in arrays.v]), *state[1:])

    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    update = jax.jit(update, donate_argnums=(0, 1))
    current = [params, state]

    def step():
        current[:] = update(*current, grads)
        jax.block_until_ready(current)

    step.result = lambda: [np.asarray(w) for w in current[0]]
    return step


def torch_with(compiled: bool = False, **settings) -> Callable[[Arrays, int], Step]:
    """Return the contender that is PyTorch's optimizer with settings that change no number."""

    def make(arrays: Arrays, threads: int) -> Step:
        import torch

        torch.set_num_threads(threads)
        params = [torch.nn.Parameter(torch.from_numpy(w)) for w in arrays.w]
        for p, g in zip(params, arrays.g, strict=True):
            p.grad = torch.from_numpy(g)
        optimizer = torch.optim.RMSprop(params, lr=LR, alpha=BETA, eps=EPS, **settings)
        for p, v in zip(params, arrays.v, strict=True):
            optimizer.state[p] = {"step": torch.tensor(0.0), "square_avg": torch.from_numpy(v)}
        if compiled:
            torch._dynamo.reset()  # it stops to compile after some cases
        return torch.compile(optimizer.step) if compiled else optimizer.step

    return make


OURS = "rmsfast"
CONTENDERS: dict[str, Callable[[Arrays, int], Step]] = {
    OURS: rmsfast_step,
    "NumPy textbook": numpy_textbook,
    "NumPy in place": numpy_out,
    "numexpr": numexpr,
    "Numba": numba,
    "JAX (Optax)": optax,
    "PyTorch for-loop": torch_with(foreach=False),
    "PyTorch foreach": torch_with(foreach=True),
    "PyTorch compile": torch_with(compiled=True, foreach=True),
}

# What compiles for tens of seconds, and how many arrays at most it can take without taking minutes.
SLOW_TO_START = {"PyTorch compile": 50}


def limit_threads(threads: int) -> None:
    """Keep this process, and the pools that its packages are going to make, to so many threads."""
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_MAX_THREADS",
        "NUMBA_NUM_THREADS",
    ):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # the only way to tell XLA
