"""What a data-parallel step costs by a model with four numbers: latency, bandwidth, the update, and memory.

A step of P parameters on N ranks reduces the gradients and gathers the parameters, in k buckets:

    plain all-reduce   2(N − 1)·k·α + 2(N − 1)/N · 4P·β + P·u
    sharded            2(N − 1)·k·α + 2(N − 1)/N · 4P·β + P/N·u + 2⌈log₂ N⌉·α

α is what a message costs however short it is, β what each byte costs that a rank sends, and u what one rank's update of
an element costs. Both ways send the same bytes, as a ring or pairwise exchange does. The last term is the small
all-reduce by which the ranks agree. The model is Hockney's, with the counts of R. Thakur, R. Rabenseifner and W. Gropp,
"Optimization of Collective Communication Operations in MPICH", 2005.
"""

import math
from dataclasses import dataclass

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Link:
    """How ranks are connected."""

    latency: float  # α, seconds for each message
    seconds_a_byte: float  # β


@dataclass(frozen=True)
class Cost:
    """The terms of a step, in seconds."""

    latency: float
    bandwidth: float
    update: float

    @property
    def seconds(self) -> float:
        return self.latency + self.bandwidth + self.update

    @property
    def largest(self) -> str:
        return max(("latency", "bandwidth", "update"), key=lambda name: getattr(self, name))


def buckets_of(parameters: int, ranks: int) -> int:
    """How many buckets the default `bucket_bytes` makes of one large array."""
    return math.ceil(BYTES * parameters / min(ranks * (4 << 20), 1 << 30))


def step(parameters: int, ranks: int, link: Link, update: float, sharded: bool) -> Cost:
    """What a step costs where an update of one element takes `update` seconds on a rank."""
    messages = 2 * (ranks - 1) * buckets_of(parameters, ranks)
    messages += 2 * math.ceil(math.log2(ranks)) if sharded else 0
    sent = 2 * (ranks - 1) / ranks * BYTES * parameters
    part = parameters / ranks if sharded else parameters
    return Cost(messages * link.latency, sent * link.seconds_a_byte, part * update)


def memory(parameters: int, ranks: int, sharded: bool) -> float:
    """Bytes a rank: parameters, gradients and one array of state; sharded, a part of the reduced gradients as well."""
    if not sharded:
        return 3 * BYTES * parameters
    return 2 * BYTES * parameters + 2 * BYTES * parameters / ranks


def fitted(sizes: list[int], seconds: list[float], ranks: int) -> Link:
    """The link that best explains how long it took to reduce and gather so many parameters, by relative errors."""
    import numpy as np

    n = np.asarray(sizes, float)
    messages = np.array([2 * (ranks - 1) * buckets_of(k, ranks) for k in sizes], float)
    sent = 2 * (ranks - 1) / ranks * BYTES * n
    t = np.asarray(seconds)
    rows = np.stack([messages / t, sent / t], axis=1)
    latency, seconds_a_byte = np.linalg.lstsq(rows, np.ones(len(n)), rcond=None)[0]
    return Link(max(float(latency), 0.0), max(float(seconds_a_byte), 0.0))
