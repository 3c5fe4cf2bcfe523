"""What a data-parallel step costs by a model with four numbers: latency, bandwidth, the update, and memory.

A step of P parameters on N ranks reduces the gradients and gathers the parameters, in k buckets:

    plain all-reduce   2(N − 1)·k·α + 2(N − 1)/N · 4P·β + P·u
    sharded            2(N − 1)·k·α + 2(N − 1)/N · 4P·β + P/N·u + 2⌈log₂ N⌉·α + c

α is what a message costs however short it is, β what each byte costs that a rank sends, and u what one rank's update of
an element costs. Both ways send the same bytes, as a ring or pairwise exchange does. The next term is the small
all-reduce by which the ranks agree, and c is what Python takes for a step. The model is Hockney's, with the counts of
R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
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
    python: float

    @property
    def seconds(self) -> float:
        return self.latency + self.bandwidth + self.update + self.python

    @property
    def largest(self) -> str:
        return max(("latency", "bandwidth", "update", "python"), key=lambda name: getattr(self, name))


def buckets_of(parameters: int, ranks: int) -> int:
    """How many buckets the default `bucket_bytes` makes of one large array."""
    return math.ceil(BYTES * parameters / min(ranks * (4 << 20), 1 << 30))


def step(parameters: int, ranks: int, link: Link, update: float, sharded: bool, python: float = 0.0) -> Cost:
    """What a step costs where an update of one element takes `update` seconds on a rank, and `python` what it says."""
    messages = 2 * (ranks - 1) * buckets_of(parameters, ranks)
    messages += 2 * math.ceil(math.log2(ranks)) if sharded else 0
    sent = 2 * (ranks - 1) / ranks * BYTES * parameters
    part = parameters / ranks if sharded else parameters
    return Cost(messages * link.latency, sent * link.seconds_a_byte, part * update, python if sharded else 0.0)


def memory(parameters: int, ranks: int, sharded: bool) -> float:
    """Bytes a rank: parameters, gradients and one array of state, of which a sharded rank has a part."""
    return 2 * BYTES * parameters + BYTES * parameters / (ranks if sharded else 1)


def fitted(sizes: list[int], seconds: list[float], ranks: int) -> Link:
    """Return the link by which reductions and gatherings of so many parameters took so long.

    The latency is that of the smallest, and the bandwidth follows from the largest.
    """
    whole = 2 * (ranks - 1) / ranks * BYTES
    latency = seconds[0] / (2 * (ranks - 1) * buckets_of(sizes[0], ranks))
    rest = seconds[-1] - latency * 2 * (ranks - 1) * buckets_of(sizes[-1], ranks)
    return Link(latency, max(rest, 0.0) / (whole * sizes[-1]))
