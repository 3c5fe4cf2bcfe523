"""Time contenders side by side: in one process, in turn, the minimum of many rounds."""

from collections.abc import Callable
from time import perf_counter

BATCH = 200e-6  # seconds: short steps are timed in batches at least this long
IN_A_ROW = 5  # batches of one contender before the next one's turn, so that its arrays are back in the cache


def minima(steps: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Return each contender's least time for a step, in seconds, from rounds that last about `seconds` in all."""
    calls = {name: calls_per_batch(step) for name, step in steps.items()}
    least = dict.fromkeys(steps, float("inf"))
    end = perf_counter() + seconds
    rounds = 0
    while perf_counter() < end or rounds < 3:
        for name, step in steps.items():
            for _ in range(IN_A_ROW):
                least[name] = min(least[name], batch(step, calls[name]) / calls[name])
        rounds += 1
    return least


def batch(step: Callable[[], None], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        step()
    return perf_counter() - start


def calls_per_batch(step: Callable[[], None]) -> int:
    batch(step, 2)  # warms up, and touches every page
    calls = 1
    while batch(step, calls) < BATCH:
        calls *= 2
    return calls
