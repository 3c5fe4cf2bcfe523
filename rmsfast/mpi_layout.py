"""How elements are divided among ranks: buckets, and each rank's part of every bucket. No MPI here.

The elements of a parameter are numbered as they lie in memory. A `Stretch` is some that lie side by side. A bucket is
what one reduction and one gathering move: a stretch of one large parameter, or several small parameters, one after
another. Each rank owns one part of each bucket: it keeps the state there and updates it. All ranks compute the same
layout.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from rmsfast._core.formats import SCALED, is_half
from rmsfast._core.measures import BLOCK
from rmsfast.settings import Array

# A parameter that fills this part of a bucket has buckets of its own, whose elements MPI reads and writes where they
# are. Smaller ones are copied to a bucket together, which costs less than a reduction and a gathering for each.
OWN = 1 / 8

# A part begins with a whole block of squares where that unbalances the ranks by less than 1 %.
BLOCKS_A_RANK = 128


class Stretch(NamedTuple):
    """Some elements of a parameter: from `start` to `stop`, as they lie in memory."""

    parameter: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Bucket:
    """Stretches that are reduced and gathered together. All have one dtype and belong to one group."""

    def __init__(
        self, group: int, params: Sequence[Array], stretches: list[Stretch], size: int, scaled: bool, is_own: bool
    ) -> None:
        self.group: int = group
        self.dtype: np.dtype[Any] = params[stretches[0].parameter].dtype
        self.stretches: list[Stretch] = stretches
        self.n: int = sum(map(len, stretches))
        self.is_own: bool = is_own  # one stretch of a large parameter
        self.parts: list[list[Stretch]] = self.divide(size, SCALED if scaled else 1)
        self.counts: list[int] = [sum(map(len, part)) for part in self.parts]
        self.places: list[int] = [0, *accumulate(self.counts[:-1])]  # where the parts begin

    def divide(self, size: int, grain: int) -> list[list[Stretch]]:
        """Return each rank's part. A part begins at a multiple of `grain` elements of its parameter."""
        grain = BLOCK if self.n >= BLOCKS_A_RANK * BLOCK * size else grain
        cuts = [self.cut(self.n * rank // size, grain) for rank in range(size)] + [self.n]
        return [self.between(first, last) for first, last in pairwise(cuts)]

    def cut(self, at: int, grain: int) -> int:
        """Return the place nearest to `at`, counted in elements of the bucket, where a part may begin."""
        before = 0
        for _, start, stop in self.stretches:
            if at < before + stop - start:
                element = (start + at - before + grain // 2) // grain * grain
                return before + min(max(element, start), stop) - start
            before += stop - start
        return self.n

    def between(self, first: int, last: int) -> list[Stretch]:
        """Return the stretches between two places of the bucket."""
        found, before = [], 0
        for parameter, start, stop in self.stretches:
            begin, end = max(start, start + first - before), min(stop, start + last - before)
            if begin < end:
                found.append(Stretch(parameter, begin, end))
            before += stop - start
        return found


class Piece(NamedTuple):
    """What a rank updates as one parameter: whole rows of a parameter, or part of one row, or elements on one axis."""

    stretch: Stretch
    shape: tuple[int, ...]


def make_buckets(
    params: Sequence[Array], groups: Sequence[int], scaled: Sequence[bool], size: int, bucket_bytes: int
) -> list[Bucket]:
    """Return the buckets of some parameters, each in one of the groups.

    Parts of those that are `scaled` begin at a multiple of 64 elements.
    """
    buckets: list[Bucket] = []
    waiting: dict[Any, list[Stretch]] = {}  # small parameters, by group and dtype
    filled: dict[Any, int] = {}

    def close(kind: Any) -> None:
        stretches = waiting.pop(kind, [])
        if stretches:
            buckets.append(Bucket(kind[0], params, stretches, size, any(scaled[s.parameter] for s in stretches), False))
        filled[kind] = 0

    for i, w in enumerate(params):
        most = max(BLOCK, bucket_bytes // reduced(w.dtype).itemsize // reals_of(w.dtype) // BLOCK * BLOCK)
        kind = groups[i], w.dtype
        if w.size > 0 and w.nbytes >= OWN * bucket_bytes:
            count = -(-w.size // most)
            each = -(-w.size // count // BLOCK) * BLOCK
            for start in range(0, w.size, each):
                own = [Stretch(i, start, min(w.size, start + each))]
                buckets.append(Bucket(groups[i], params, own, size, scaled[i], True))
        elif w.size > 0:
            if filled.get(kind, 0) + w.size > most:
                close(kind)
            waiting.setdefault(kind, []).append(Stretch(i, 0, w.size))
            filled[kind] = filled.get(kind, 0) + w.size
    for kind in list(waiting):
        close(kind)
    return buckets


def is_scaled(w: Array, settings: dict[str, Any]) -> bool:
    """Whether numbers of a parameter or its state may share a scale or random bits, which they do by 64."""
    return is_half(w.dtype) or settings["state_dtype"] is not None


def takes_rows(w: Array, scaled: bool) -> bool:
    """Whether a part of a parameter can be divided at the ends of its rows, so that rows are updated as rows."""
    return w.ndim > 1 and w.flags.c_contiguous and w.size > w.shape[0] and not (scaled and row_of(w) % SCALED)


def row_of(w: Array) -> int:
    """Return the elements in a row of a parameter, along the first axis."""
    return w.size // w.shape[0] if w.size and w.ndim else 1


def pieces_of(w: Array, stretch: Stretch, scaled: bool) -> list[Piece]:
    """Return a stretch of a parameter as pieces: the end of a row, whole rows, the beginning of a row; or as one."""
    parameter, start, stop = stretch
    if not takes_rows(w, scaled):
        return [Piece(stretch, (stop - start,))]
    row = row_of(w)
    first, last = -(-start // row) * row, stop // row * row
    cuts = [start, stop] if first > last else [start, first, last, stop]
    return [
        Piece(Stretch(parameter, begin, end), (-(-(end - begin) // row), min(row, end - begin)))
        for begin, end in pairwise(cuts)
        if begin < end
    ]


def reduced(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which gradients of parameters of this dtype are added up: float32 or float64."""
    return np.dtype(np.float64 if dtype in (np.float64, np.complex128) else np.float32)


def reals_of(dtype: np.dtype[Any]) -> int:
    """Return how many numbers an element has."""
    return 2 if dtype.kind == "c" else 1


def flat(array: Any) -> Array:
    """Return a contiguous array's elements on one axis, as they lie in memory: a view."""
    a = np.asarray(array)
    return a.reshape(-1, order="C" if a.flags.c_contiguous else "F")
