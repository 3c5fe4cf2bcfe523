"""Time contenders side by side: in one process, in turn, the minimum of many rounds."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

BATCH = 200e-6  # seconds: short steps are timed in batches at least this long
IN_A_ROW = 5  # batches of one contender before the next one's turn, so that its arrays are back in the cache


# A machine is busy where a usual batch takes so many times as long as the shortest one. Alone, it is 1.0 to 1.2.
BUSY = 1.5


def minima(steps: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Return each contender's least time for a step, in seconds, from rounds that last about `seconds` in all."""
    return {name: min(times) for name, times in rounds(steps, seconds).items()}


def rounds(steps: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """Return each contender's times for a step, in seconds: of every batch, in rounds that last about `seconds`."""
    calls = {name: calls_per_batch(step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = perf_counter() + seconds
    count = 0
    while perf_counter() < end or count < 3:
        for name, step in steps.items():
            times[name] += [batch(step, calls[name]) / calls[name] for _ in range(IN_A_ROW)]
        count += 1
    return times


def unrest(times: dict[str, list[float]]) -> float:
    """Return how much longer a usual batch takes than the shortest: the median of medians ÷ minima."""
    return median(median(each) / min(each) for each in times.values())


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
