"""One measurement: all contenders on one case, in turn, after they were seen to do the same step."""

from collections.abc import Iterable

import numpy as np

from bench.contenders import CONTENDERS, OURS, SLOW_TO_START, make_arrays
from bench.limits import bounds, loops
from bench.timing import rounds, unrest

BOUND = "bound"


def measure(
    shapes, dtype: str, threads: int, names: Iterable[str], seconds: float, bounded: bool = False
) -> tuple[dict[str, float], float]:
    """Return each contender's least time for a step, in seconds, and how restless the machine was (`unrest`).

    Contenders that are not installed or too slow have none. With `bounded`, BOUND is less than a step on the one array
    can take.
    """
    arrays, steps = {}, {}
    for name in names:
        if len(shapes) > SLOW_TO_START.get(name, len(shapes)):
            continue
        arrays[name] = make_arrays(shapes, dtype)
        try:
            steps[name] = CONTENDERS[name](arrays[name], threads)
        except ImportError:
            del arrays[name]
    for name, step in steps.items():
        step()
        results = step.result() if hasattr(step, "result") else arrays[name].w
        for w, expected in zip(results, arrays[OURS].w, strict=True):
            # The peers round otherwise; another rule, or a rate that is not applied, is a thousand times farther off.
            if not np.allclose(w, expected, rtol=0, atol=2e-6):
                raise AssertionError(f"{name}: another result than {OURS}")
    for name, make in loops().items():
        steps[name] = make(arrays[OURS], threads)
    lower = bounds(arrays[OURS], threads) if bounded else []
    steps |= {f"{BOUND} {k}": step for k, (step, _) in enumerate(lower)}
    times = rounds(steps, seconds)
    least = {name: min(each) for name, each in times.items()}
    if lower:
        least[BOUND] = min(least.pop(f"{BOUND} {k}") / divisor for k, (_, divisor) in enumerate(lower))
    return least, unrest(times)


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages behind the contenders that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {"NumPy": "numpy", "numexpr": "numexpr", "Numba": "numba", "JAX": "optax", "PyTorch": "torch"}
    found = {}
    for label, package in packages.items():
        if any(name.startswith(label) for name in names):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
            if package == "optax":
                found["jax"] = version("jax")
    return found
