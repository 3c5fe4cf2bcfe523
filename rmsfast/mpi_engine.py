"""What a step of `ShardedRMSProp` does once all ranks agree: bucket after bucket, and what is measured of them.

A bucket is reduced while the one before is gathered, and updated at once, while its reduced gradients are in the cache.
Where settings ask for norms or for nonfinite numbers, all buckets are reduced and measured first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from rmsfast._core.formats import layout
from rmsfast._core.rows import SummedRows
from rmsfast.mpi_bucket import BUFFERS, Lane, is_dense
from rmsfast.mpi_layout import is_scaled, make_buckets, reals_of
from rmsfast.mpi_norms import SHRINK, Norms, Roots, clip_factors
from rmsfast.mpi_rows import SharedRows
from rmsfast.settings import Array, ParamGroup

# Of one state array of a parameter: its dtype and its shape.
Form = tuple[np.dtype[Any], tuple[int, ...]]


class Engine:
    """The buckets of an optimizer on one rank, with this rank's part of the state.

    Parameters
    ----------
    comm : MPI.Intracomm
        The ranks.
    arrays : list of ndarray
        All parameters.
    labels : list of str
        What messages call their gradients.
    groups : sequence of ParamGroup
        Their groups, in order.
    bucket_bytes : int
        How much is reduced and gathered at a time.
    num_threads : int or None
        The most threads of an update.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        arrays: list[Array],
        labels: list[str],
        groups: Sequence[ParamGroup],
        bucket_bytes: int,
        num_threads: int | None,
    ) -> None:
        self.comm: MPI.Intracomm = comm
        self.arrays: list[Array] = arrays
        self.labels: list[str] = labels
        self.group_of: list[int] = [g for g, group in enumerate(groups) for _ in group["params"]]
        scaled = [is_scaled(w, groups[g].settings()) for w, g in zip(arrays, self.group_of, strict=True)]
        buckets = make_buckets(arrays, self.group_of, scaled, comm.size, bucket_bytes)
        self.lanes: list[Lane] = [
            Lane(bucket, comm, arrays, groups[bucket.group], scaled, num_threads) for bucket in buckets
        ]
        room = max((lane.room for lane in self.lanes), default=0)
        # No page of them is there until it is used.
        self.rooms: list[Array] = [np.zeros(room, np.uint8) for _ in range(BUFFERS)]
        self.shared: Array = np.zeros(max((lane.reduced_bytes for lane in self.lanes), default=0), np.uint8)
        for lane in self.lanes:
            lane.reduce_into(self.shared)
        self.are_kept: bool = False  # the reduced gradients of each bucket, until all are measured
        self.norms: Norms | None = None  # until it is needed
        self.counts: Array = np.zeros(len(arrays), np.int64)  # the steps of each parameter
        self.forms: list[dict[str, Form]] = [{} for _ in arrays]  # the state of each parameter, now and from before
        self.given: list[dict[str, Any]] = []  # of each group
        self.values: list[dict[str, Any]] = []  # of each parameter
        self.measured: list[bool] = []

    def make_room(self, values: list[dict[str, Any]]) -> None:
        """Let what such settings measure stay until its update. This takes memory, so it is done before ranks agree."""
        if values is self.given:
            return
        are_kept = any(is_measured(settings) for settings in values)
        if are_kept != self.are_kept:
            rooms = [np.zeros(lane.reduced_bytes, np.uint8) if are_kept else self.shared for lane in self.lanes]
            for lane, room in zip(self.lanes, rooms, strict=True):
                lane.reduce_into(room)
            self.are_kept = are_kept

    def take_settings(self, values: list[dict[str, Any]]) -> None:
        """Go by these settings from now on, one dict for each group. There is room for what they measure."""
        if values is self.given:
            return
        self.given = values
        self.values = [values[g] for g in self.group_of]
        for w, settings, forms in zip(self.arrays, self.values, self.forms, strict=True):
            forms |= layout(w, settings)
        of_all = any(s["clip_global_norm"] is not None for s in values)
        self.measured = [of_all or is_measured(settings) for settings in self.values]
        for lane in self.lanes:
            lane.take_settings(values[lane.bucket.group])

    def run(self, line: list[Any], scale: float) -> tuple[bool, Exception | None]:
        """Take a step with a gradient, rows or None for each parameter.

        Returns whether it was taken and, if it was not because a gradient is not finite, the error to raise, or None.
        """
        dense = [is_dense(g) for g in line]
        present = [i for i, g in enumerate(line) if g is not None]
        rows = {
            i: SharedRows(self.comm, self.labels[i], i, self.arrays[i], g)
            for i, g in enumerate(line)
            if isinstance(g, SummedRows)
        }
        moved: list[Lane] = []  # those that have dense gradients, …
        rest: list[Lane] = []  # … and those that have rows or nothing
        for lane in self.lanes:
            (moved if any(dense[s.parameter] for s in lane.bucket.stretches) else rest).append(lane)
        factors = None
        if any(self.measured[i] for i in present):
            self.reduce_and_measure(moved, line, dense, scale)
            factors, fault = self.conclude(moved, present, dense, rows, scale)
            if factors is None:
                return False, fault
        self.update(moved, line, rows, scale, factors)
        for lane in rest:
            lane.update(gradients_of(lane, line, rows), scale, factors)
        for shared in rows.values():
            shared.gather([lane.bucket for lane in self.lanes])
        self.counts[present] += 1
        return True, None

    def reduce_and_measure(self, lanes: Sequence[Lane], line: list[Any], dense: Sequence[bool], scale: float) -> None:
        """Reduce one bucket, and measure the one before."""
        norms = self.norms = self.norms or Norms(self.comm, self.arrays, [lane.bucket for lane in self.lanes])
        asked = [d and m for d, m in zip(dense, self.measured, strict=True)]
        for k in range(len(lanes) + 1):
            if k < len(lanes):
                lanes[k].begin_reducing(line, self.rooms[k % BUFFERS])
            if k > 0:
                lanes[k - 1].end()
                norms.add(lanes[k - 1], asked, scale)

    def update(
        self,
        lanes: Sequence[Lane],
        line: list[Any],
        rows: Mapping[int, SharedRows],
        scale: float,
        factors: list[float] | None,
    ) -> None:
        """Reduce one bucket, unless all were, to be measured, while the one before is gathered; update it.

        To begin with the next one before the update was slower, since most MPIs get on with their work only inside of
        their own calls, and it would need a second buffer for reduced gradients.
        """
        before = None
        for k, lane in enumerate(lanes):
            room = self.rooms[k % BUFFERS]
            if factors is None:
                lane.begin_reducing(line, room)
                lane.end()
            lane.update(gradients_of(lane, line, rows), scale, factors)
            if before is not None:
                before.end_gathering(line)
            lane.begin_gathering(room)
            before = lane
        if before is not None:
            before.end_gathering(line)

    def conclude(
        self,
        lanes: Sequence[Lane],
        present: Sequence[int],
        dense: Sequence[bool],
        rows: Mapping[int, SharedRows],
        scale: float,
    ) -> tuple[list[float] | None, Exception | None]:
        """Exchange what was measured. Returns how to clip each gradient, or None and perhaps an error."""
        assert self.norms is not None
        norms = self.norms
        measured = [i for i in present if self.measured[i]]
        for i, shared in rows.items():
            norms.add_rows(i, shared.measured, scale)
        norms.exchange()
        nonfinite, sums = norms.nonfinite.astype(np.int64).tolist(), norms.sums(measured)
        shrunk: dict[int, float] = {}
        roots = Roots(sums, shrunk, nonfinite)
        if roots.overflowed():
            norms.clear()
            for lane in lanes:
                norms.add(lane, dense, scale, SHRINK)
            for i, shared in rows.items():
                norms.add_rows(i, shared.measured, scale, SHRINK)
            norms.exchange()
            # Beside numbers whose squares overflow, float32 makes no difference, unless the scale made it infinite.
            shrunk |= {i: norms.sum_of(i) for i in measured if norms.is_float64(i)}
            shrunk |= {i: s for i, s in sums.items() if not norms.is_float64(i) and np.isinf(s)}
        norms.clear()
        found = [i for i in measured if nonfinite[i] and self.values[i]["nonfinite"] != "propagate"]
        for i in found:
            if self.values[i]["nonfinite"] == "raise":
                w = self.arrays[i]
                count = len(rows[i].measured) if i in rows else w.size * reals_of(w.dtype)
                return None, FloatingPointError(
                    f"{self.labels[i]}: {nonfinite[i]} of {count} numbers, added up over all ranks, are infinite or "
                    "NaN, expected finite numbers (nonfinite='raise')"
                )
        return None if found else clip_factors(self.values, roots), None

    @property
    def state_bytes(self) -> int:
        """The bytes of state that this rank keeps."""
        states = [lane.optimizer.state for lane in self.lanes if lane.optimizer is not None]
        return sum(a.nbytes for state in states for entry in state.values() for k, a in entry.items() if k != "step")

    @property
    def sent_bytes(self) -> int:
        """The bytes that this rank has to send in a step with dense gradients."""
        rank, size = self.comm.rank, self.comm.size
        sent = 0
        for lane in self.lanes:
            own = lane.bucket.counts[rank]
            sent += (lane.bucket.n - own) * lane.reals * lane.real.itemsize  # gradients, to the ranks that update
            sent += own * (size - 1) * lane.bucket.dtype.itemsize  # parameters, to all other ranks
        return sent


def is_measured(settings: Mapping[str, Any]) -> bool:
    """Whether gradients have to be measured before the first update."""
    norms = settings["clip_norm"], settings["clip_global_norm"]
    return norms != (None, None) or settings["nonfinite"] != "propagate"


def gradients_of(lane: Lane, line: list[Any], rows: Mapping[int, SharedRows]) -> list[Any]:
    """Return the gradient of each piece of this rank's part of a bucket."""
    found: list[Any] = []
    for piece, view, reduced in zip(lane.pieces, lane.views, lane.grads, strict=True):
        i = piece.stretch.parameter
        found.append(rows[i].gradient_of(piece, view) if i in rows else None if line[i] is None else reduced)
    return found
