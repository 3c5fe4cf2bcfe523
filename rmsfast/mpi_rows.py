"""Gradients by rows, gathered from all ranks, and the updated rows, gathered from the ranks that own them.

A dense gradient of the whole parameter is never made. What moves is, for each rank, its rows and their indices, and
then the new values of all rows that any rank has named.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from rmsfast._core.rows import SummedRows
from rmsfast.mpi_bucket import REAL
from rmsfast.mpi_layout import Bucket, Piece, Stretch, flat, reals_of, reduced, row_of
from rmsfast.settings import Array


class SharedRows:
    """The rows that the ranks have named of one parameter, each once, with the sum of their gradients.

    Parameters
    ----------
    comm : MPI.Intracomm
        The ranks.
    label : str
        What messages call the gradient.
    index : int
        Which parameter it is.
    w : ndarray
        The parameter.
    mine : SummedRows
        This rank's rows.
    """

    def __init__(self, comm: MPI.Intracomm, label: str, index: int, w: Array, mine: SummedRows) -> None:
        self.comm: MPI.Intracomm = comm
        self.index: int = index
        self.label: str = label
        self.w: Array = w
        self.c_order: bool = bool(w.flags.c_contiguous)
        self.real: np.dtype[Any] = reduced(w.dtype)
        self.dtype: np.dtype[Any] = w.dtype if reals_of(w.dtype) == 2 else self.real
        row = row_of(w) if w.size else 0
        lengths = np.zeros(comm.size, np.int64)
        comm.Allgather(np.array([len(mine.indices)], np.int64), lengths)
        counts = lengths.tolist()
        indices = np.zeros(sum(counts), np.int64)
        comm.Allgatherv([mine.indices.astype(np.int64), MPI.INT64_T], [indices, counts, None, MPI.INT64_T])
        values = np.zeros((len(indices), row), self.dtype)
        own = np.ascontiguousarray(mine.values(), self.dtype).reshape(len(mine.indices), row)
        numbers = [count * row * reals_of(w.dtype) for count in counts]
        kind = REAL[self.real]
        comm.Allgatherv([own.view(self.real), kind], [values.view(self.real), numbers, None, kind])
        shape = w.shape[1:] if self.c_order else w.shape[:0:-1]
        given = values.reshape(len(indices), *shape)
        if not self.c_order:
            given = given.transpose(0, *range(given.ndim - 1, 0, -1))
        summed = SummedRows(label, w, indices, given)
        rows = np.asarray(summed.indices)
        sums = np.ascontiguousarray(summed.values()).reshape(len(rows), row)
        self.measured: Array = sums.view(self.real).reshape(-1)  # as the rows first appear
        order = np.argsort(rows)
        rows, sums = rows[order].astype(np.int64), sums[order]
        columns = np.arange(row, dtype=np.int64)
        # The elements that change, as they lie in memory, and the gradient of each.
        if self.c_order:
            self.elements: Array = (rows[:, None] * row + columns).reshape(-1)
            self.gradient: Array = sums.reshape(-1)
        else:
            self.elements = (columns[:, None] * w.shape[0] + rows).reshape(-1)
            self.gradient = np.ascontiguousarray(sums.T).reshape(-1)

    def between(self, stretch: Stretch) -> slice:
        """Return which of the elements that change are in a stretch."""
        first, last = np.searchsorted(self.elements, [stretch.start, stretch.stop])
        return slice(int(first), int(last))

    def gradient_of(self, piece: Piece, view: Array) -> SummedRows:
        """Return the gradient of a piece of the parameter."""
        inside = self.between(piece.stretch)
        width = piece.shape[1] if len(piece.shape) > 1 else 1
        rows = (self.elements[inside][::width] - piece.stretch.start) // width
        return SummedRows(self.label, view, rows, self.gradient[inside].reshape(len(rows), *piece.shape[1:]))

    def gather(self, buckets: Sequence[Bucket]) -> None:
        """Bring the new values of the rows from the ranks that own them."""
        numbers = flat(self.w)
        parts = [
            [
                self.elements[self.between(s)]
                for bucket in buckets
                for s in bucket.parts[rank]
                if s.parameter == self.index
            ]
            for rank in range(self.comm.size)
        ]
        places = np.concatenate([np.zeros(0, np.int64), *(place for part in parts for place in part)])
        size = self.w.dtype.itemsize
        kind = MPI.BYTE.Create_contiguous(size).Commit()
        try:
            counts = [sum(map(len, part)) for part in parts]
            new = numbers[places]
            self.comm.Allgatherv(MPI.IN_PLACE, [new.view(np.uint8), counts, None, kind])
        finally:
            kind.Free()
        numbers[places] = new
