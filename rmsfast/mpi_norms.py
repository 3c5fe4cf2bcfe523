"""Norms and nonfinite numbers of gradients that are divided among ranks: one all-reduce, the same answer on all.

The squares of a gradient are added up in the order of `rmsfast.reference.norm`: each rank has the sums of its blocks,
and the all-reduce brings those of the others. Where a block of 1024 numbers is divided, the ranks exchange the numbers
themselves, so that the norm has the same bits as in one process. More than 8 ranks add the sums of its parts instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from rmsfast._core.measures import BLOCK, measure
from rmsfast.mpi_bucket import Lane
from rmsfast.mpi_layout import Bucket, reals_of, reduced
from rmsfast.settings import Array

EXACT = 8  # ranks, at most, that exchange the numbers of divided blocks: 8 kB for each, and each bucket has one a rank
SHRINK = 2.0**-600  # squares of doubles times its square can be added up without overflow


class Norms:
    """The room for what is measured, and what follows from it.

    Parameters
    ----------
    comm : MPI.Intracomm
        The ranks.
    params : sequence of ndarray
        All parameters.
    buckets : sequence of Bucket
        How they are divided.
    """

    def __init__(self, comm: MPI.Intracomm, params: Sequence[Array], buckets: Sequence[Bucket]) -> None:
        self.comm: MPI.Intracomm = comm
        self.params: Sequence[Array] = params
        self.first: list[int] = [0]  # the first block of each parameter
        for w in params:
            self.first.append(self.first[-1] + -(-w.size * reals_of(w.dtype) // BLOCK))
        self.edges: dict[int, int] = {}  # blocks that are divided, and their places
        if comm.size <= EXACT:
            for stretch in (s for bucket in buckets for part in bucket.parts for s in part[:1]):
                begin = stretch.start * reals_of(params[stretch.parameter].dtype)
                if begin % BLOCK:
                    self.edges.setdefault(self.first[stretch.parameter] + begin // BLOCK, len(self.edges))
        blocks, edges = self.first[-1], len(self.edges) * BLOCK
        self.all: Array = np.zeros(blocks + len(params) + edges)
        self.squares: Array = self.all[:blocks]
        self.nonfinite: Array = self.all[blocks : blocks + len(params)]
        self.shared: Array = self.all[blocks + len(params) :].reshape(-1, BLOCK)
        self.of_rows: dict[int, float] = {}  # the sums of gradients by rows, which each rank has

    def clear(self) -> None:
        """Forget what was measured."""
        self.all[:] = 0
        self.of_rows.clear()

    def add(self, lane: Lane, dense: Sequence[bool], grad_scale: float, shrink: float = 1.0) -> None:
        """Measure this rank's part of a bucket, where parameters have dense gradients."""
        begin = 0
        for parameter, start, stop in lane.bucket.parts[self.comm.rank]:
            part = lane.reduced[begin : begin + (stop - start) * lane.reals]
            begin += len(part)
            if dense[parameter] and not (shrink != 1 and part.dtype == np.float32):
                self.add_part(parameter, start * lane.reals, part, grad_scale, shrink)

    def add_part(self, parameter: int, start: int, part: Array, grad_scale: float, shrink: float) -> None:
        """Measure a part of a gradient, the beginning of which may lie inside of a block."""
        while len(part):
            block = self.first[parameter] + start // BLOCK
            n = min(len(part), BLOCK - start % BLOCK) if start % BLOCK else len(part)
            sums = self.squares[block : block + -(-n // BLOCK)]
            edge = self.edges.get(block + len(sums) - 1)
            if edge is not None and n > BLOCK:  # the last block alone
                n = (len(sums) - 1) * BLOCK
                sums, edge = sums[:-1], None
            self.nonfinite[parameter] += measure(part[:n], grad_scale, shrink, sums)
            if edge is not None:
                sums[:] = 0
                scaled = part[:n] * part.dtype.type(grad_scale)
                self.shared[edge, start % BLOCK : start % BLOCK + n] = scaled * np.float64(shrink)
            part, start = part[n:], start + n

    def add_rows(self, parameter: int, values: Array, grad_scale: float, shrink: float = 1.0) -> None:
        """Measure a gradient by rows, each row once: all ranks have the same."""
        squares = np.zeros(-(-len(values) // BLOCK))
        nonfinite = measure(values, grad_scale, shrink, squares)
        if self.comm.rank == 0:
            self.nonfinite[parameter] += nonfinite
        self.of_rows[parameter] = in_order(squares)

    def exchange(self) -> None:
        """Add up what all ranks have measured."""
        self.comm.Allreduce(MPI.IN_PLACE, self.all, MPI.SUM)
        for block, edge in self.edges.items():
            x = self.shared[edge]
            self.squares[block] += in_order(np.add.reduce((x * x).reshape(-1, 8), axis=0))

    def sum_of(self, parameter: int) -> float:
        """Return the sum of squares of a gradient, from its first block to its last."""
        if parameter in self.of_rows:
            return self.of_rows[parameter]
        return in_order(self.squares[self.first[parameter] : self.first[parameter + 1]])

    def sums(self, parameters: Sequence[int]) -> dict[int, float]:
        """Return the sums of squares of some gradients."""
        return {i: self.sum_of(i) for i in parameters}

    def is_float64(self, parameter: int) -> bool:
        """Whether a gradient's squares can overflow."""
        return reduced(self.params[parameter].dtype) == np.float64


def in_order(numbers: Array) -> float:
    """Return the sum of some numbers, added from the first to the last, which `numpy.sum` does not do."""
    return float(np.add.accumulate(numbers)[-1]) if len(numbers) else 0.0


class Roots:
    """Norms of gradients, from their sums of squares and, where these overflowed, from those that were shrunk.

    A sum that is infinite because a number is stays so.
    """

    def __init__(self, sums: Mapping[int, float], shrunk: Mapping[int, float], nonfinite: Sequence[int]) -> None:
        self.sums: Mapping[int, float] = sums
        self.shrunk: Mapping[int, float] = shrunk
        self.nonfinite: Sequence[int] = nonfinite

    def overflowed(self) -> bool:
        """Whether a sum of squares of finite numbers is infinite: that of one gradient, or of all."""
        return any(self.needs_more([i]) for i in self.sums) or self.needs_more(list(self.sums))

    def needs_more(self, parameters: Sequence[int]) -> bool:
        """Whether the norm of some gradients together has to come from sums that were shrunk."""
        return np.isinf(total(self.sums, parameters)) and not any(self.nonfinite[i] for i in parameters)

    def of(self, parameters: Sequence[int]) -> float:
        """Return the norm of some gradients together."""
        if self.needs_more(parameters):
            return float(np.sqrt(total(self.shrunk, parameters))) / SHRINK
        return float(np.sqrt(total(self.sums, parameters)))


def total(sums: Mapping[int, float], parameters: Sequence[int]) -> float:
    """Return some sums together, from the first to the last, which Python's own `sum` does not promise."""
    whole = 0.0
    for i in parameters:
        whole += sums.get(i, 0.0)
    return whole


def clip_factors(settings: Sequence[Mapping[str, Any]], roots: Roots) -> list[float]:
    """Return the factor by which each gradient is clipped, by its settings."""
    factors, measured = [1.0] * len(settings), list(roots.sums)
    of_all = any(settings[i]["clip_global_norm"] is not None for i in measured)
    norm = roots.of(measured) if of_all else 0.0
    for i in measured:
        if settings[i]["clip_norm"] is not None:
            factors[i] = factor(roots.of([i]), settings[i]["clip_norm"])
        if settings[i]["clip_global_norm"] is not None:
            factors[i] = factor(norm, settings[i]["clip_global_norm"])
    return factors


def factor(norm: float, most: float) -> float:
    """Return the factor after which a gradient of this norm has at most the norm `most`. NaN for a norm of NaN."""
    return 1.0 if norm <= most else most / norm
