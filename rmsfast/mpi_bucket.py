"""One bucket at work on one rank: add the gradients up, update this rank's part, gather the new parameters.

What MPI does is begun and ended by calls of its own, so that the caller lets the work on two buckets overlap. The
update is that of a `RMSProp` over views of this rank's elements.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from rmsfast._core.formats import is_half
from rmsfast._core.rows import SummedRows
from rmsfast.mpi_layout import Bucket, Piece, flat, pieces_of, reals_of, reduced
from rmsfast.optimizer import RMSProp
from rmsfast.settings import Array, ParamGroup

REAL: dict[np.dtype[Any], MPI.Datatype] = {np.dtype(np.float32): MPI.FLOAT, np.dtype(np.float64): MPI.DOUBLE}
BUFFERS = 2  # of copied gradients or parameters: while one bucket is packed or reduced, the one before is at work


class Lane:
    """One rank's part of a bucket, with its state.

    Parameters
    ----------
    bucket : Bucket
        What is moved.
    comm : MPI.Intracomm
        The ranks.
    params : sequence of ndarray
        All parameters.
    group : ParamGroup
        The bucket's group.
    scaled : sequence of bool
        For each parameter, whether its numbers belong together by 64.
    num_threads : int or None
        The most threads of an update.
    """

    def __init__(
        self,
        bucket: Bucket,
        comm: MPI.Intracomm,
        params: Sequence[Array],
        group: ParamGroup,
        scaled: Sequence[bool],
        num_threads: int | None,
    ) -> None:
        self.bucket: Bucket = bucket
        self.comm: MPI.Intracomm = comm
        self.params: Sequence[Array] = params
        self.reals: int = reals_of(bucket.dtype)
        self.real: np.dtype[Any] = reduced(bucket.dtype)
        part = bucket.parts[comm.rank]
        self.pieces: list[Piece] = [p for s in part for p in pieces_of(params[s.parameter], s, scaled[s.parameter])]
        self.counts: list[int] = [count * self.reals for count in bucket.counts]
        self.reduced_bytes: int = self.counts[comm.rank] * self.real.itemsize
        self.request: Any = None
        self.sent: Any = None  # what MPI reads and writes now
        views, origins = [], []
        for stretch, shape in self.pieces:
            views.append(flat(params[stretch.parameter])[stretch.start : stretch.stop].reshape(shape))
            origins.append((stretch.parameter, stretch.start if scaled[stretch.parameter] else 0))
        self.views: list[Array] = views
        self.optimizer: RMSProp | None = None
        if views:
            self.optimizer = RMSProp([{"params": views, **self.own(group.settings())}], num_threads=num_threads)
            self.optimizer._front.place(origins)

    def take_settings(self, settings: dict[str, Any]) -> None:
        """Update by these settings from now on."""
        if self.optimizer is not None:
            self.optimizer._changed.put([self.optimizer.param_groups[0].held()], self.own(settings))

    def own(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return a group's settings without those that concern its parameters of 16 bits, if this bucket has none."""
        return settings if is_half(self.bucket.dtype) else {**settings, "master_weights": False, "rounding": "nearest"}

    # ---- Add the gradients up ----

    def reduce_into(self, room: Array) -> None:
        """Let `room`, of `reduced_bytes` at least, hold this rank's part of the reduced gradients from now on."""
        self.reduced: Array = room[: self.reduced_bytes].view(self.real)
        self.grads: list[Array] = []  # of each piece
        begin = 0
        for stretch, shape in self.pieces:
            numbers = self.reduced[begin : begin + len(stretch) * self.reals]
            self.grads.append((numbers.view(self.bucket.dtype) if self.reals == 2 else numbers).reshape(shape))
            begin += len(stretch) * self.reals

    def begin_reducing(self, line: Sequence[Any], room: Array) -> None:
        """Begin to add up the gradients of all ranks, from where they are or from `room`."""
        stretches = self.bucket.stretches
        g = line[stretches[0].parameter]
        numbers: Any = None
        if self.bucket.is_own and is_direct(g, self.params[stretches[0].parameter]):
            numbers = flat(g)[stretches[0].start : stretches[0].stop]
            if numbers.dtype != self.bucket.dtype or self.bucket.dtype.itemsize < 4:
                numbers = None
            elif self.reals == 2:
                numbers = numbers.view(self.real)
        if numbers is None:
            numbers = room[: self.bucket.n * self.reals * self.real.itemsize].view(self.real)
            self.pack(line, numbers.view(self.bucket.dtype) if self.reals == 2 else numbers)
        self.sent = numbers
        kind = REAL[self.real]
        self.request = self.comm.Ireduce_scatter([numbers, kind], [self.reduced, kind], self.counts)

    def pack(self, line: Sequence[Any], room: Array) -> None:
        """Copy gradients to one place, each as its parameter lies in memory, in the type in which they are added up."""
        begin = 0
        for parameter, start, stop in self.bucket.stretches:
            g, w = line[parameter], self.params[parameter]
            part = room[begin : begin + stop - start]
            begin += stop - start
            if not isinstance(g, np.ndarray):
                part[...] = 0
            elif stop - start == w.size:
                np.copyto(part.reshape(w.shape, order="C" if w.flags.c_contiguous else "F"), g)
            elif is_direct(g, w):
                np.copyto(part, flat(g)[start:stop])
            else:
                np.copyto(part, elements_of(g if w.flags.c_contiguous else g.T, start, stop))

    def end(self) -> None:
        """Wait for what was begun."""
        self.request.Wait()
        self.request = self.sent = None

    # ---- Update ----

    def update(self, gradients: Sequence[Any], grad_scale: float, factors: list[float] | None) -> None:
        """Take a step on this rank's part, with the gradient of each piece, and clip by a factor for each parameter."""
        if self.optimizer is None or all(g is None for g in gradients):
            return
        self.optimizer._front.clip(factors and [factors[piece.stretch.parameter] for piece in self.pieces])
        self.optimizer.step(gradients, grad_scale=grad_scale)

    # ---- Gather the new parameters ----

    def begin_gathering(self, room: Array) -> None:
        """Begin to bring the parameters of the bucket from the ranks that updated them."""
        size = self.bucket.dtype.itemsize
        if self.bucket.is_own:
            parameter, start, stop = self.bucket.stretches[0]
            numbers = flat(self.params[parameter])[start:stop].view(np.uint8)
        else:
            numbers = room[: self.bucket.n * size]
            place = self.bucket.places[self.comm.rank] * size
            for view in self.views:
                numbers[place : place + view.nbytes] = view.reshape(-1).view(np.uint8)
                place += view.nbytes
        self.sent = numbers
        counts, places = ([size * k for k in elements] for elements in (self.bucket.counts, self.bucket.places))
        self.request = self.comm.Iallgatherv(MPI.IN_PLACE, [numbers, counts, places, MPI.BYTE])

    def end_gathering(self, line: Sequence[Any]) -> None:
        """Wait for the parameters, and put those where they belong that had a gradient."""
        numbers = self.sent
        self.end()
        if self.bucket.is_own:
            return
        begin, size = 0, self.bucket.dtype.itemsize
        for parameter, start, stop in self.bucket.stretches:
            count = (stop - start) * size
            if isinstance(line[parameter], np.ndarray):
                flat(self.params[parameter]).view(np.uint8)[:] = numbers[begin : begin + count]
            begin += count

    @property
    def room(self) -> int:
        """The bytes that gradients and parameters need while they are copied."""
        return self.bucket.n * self.reals * self.real.itemsize


def is_direct(g: Any, w: Array) -> bool:
    """Whether the elements of a gradient lie as those of its parameter do."""
    if not isinstance(g, np.ndarray) or not g.flags.aligned:
        return False
    return bool(g.flags.c_contiguous if w.flags.c_contiguous else g.flags.f_contiguous)


def elements_of(g: Array, start: int, stop: int) -> Array:
    """Return some elements of an array, counted in C order. Only the rows that have them are copied."""
    row = g.size // g.shape[0]
    first = start // row
    rows: Array = g[first : -(-stop // row)].reshape(-1)
    return rows[start - first * row : stop - first * row]


def is_dense(g: Any) -> bool:
    """Whether a gradient of the line is an array, neither None nor rows."""
    return g is not None and not isinstance(g, SummedRows)
