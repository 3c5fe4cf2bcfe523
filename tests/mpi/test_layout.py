"""How elements are divided among ranks: each once, evenly, and where blocks begin. This needs no MPI."""

from itertools import pairwise

import numpy as np
import pytest

from rmsfast.mpi_layout import BLOCK, SCALED, make_buckets, pieces_of, row_of


def random_params(rng):
    dtypes = [np.float32, np.float64, np.complex64, np.float16]
    shapes = [(), (0,), (1,), (77,), (30, 5), (3, 4, 10), (400, 129), (70_001,), (300, 1001), (1024, 512)]
    return [
        np.zeros(shapes[k], dtypes[int(rng.integers(4))], order="CF"[int(rng.integers(2))])
        for k in rng.integers(len(shapes), size=int(rng.integers(1, 12)))
    ]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_element_belongs_to_one_rank(seed, size):
    rng = np.random.default_rng(seed)
    params = random_params(rng)
    groups = sorted(int(g) for g in rng.integers(2, size=len(params)))
    scaled = [bool(rng.integers(2)) for _ in params]
    buckets = make_buckets(params, groups, scaled, size, int(rng.choice([4096, 100_000, 1 << 20])))
    owners = [np.zeros(w.size, int) for w in params]
    for bucket in buckets:
        assert len({(groups[s.parameter], params[s.parameter].dtype) for s in bucket.stretches}) == 1
        assert [s for part in bucket.parts for s in part] == split_as(bucket)
        assert sum(bucket.counts) == bucket.n
        for part in bucket.parts:
            for stretch in part:
                owners[stretch.parameter][stretch.start : stretch.stop] += 1
                w = params[stretch.parameter]
                if scaled[stretch.parameter]:
                    assert stretch.start % SCALED == 0
                    assert stretch.stop % SCALED == 0 or stretch.stop == w.size
        for stretch in bucket.stretches:
            assert stretch.start % BLOCK == 0
    for owned in owners:
        assert (owned == 1).all()


def split_as(bucket):
    """The bucket's stretches, divided where its parts are: all of it, in order."""
    cuts = np.cumsum([0, *bucket.counts]).tolist()
    return [s for first, last in pairwise(cuts) for s in bucket.between(first, last)]


def test_large_parameters_are_divided_where_blocks_of_squares_begin():
    w = np.zeros(3_000_000, np.float32)
    for bucket in make_buckets([w], [0], [False], 2, 8 << 20):
        assert bucket.parts[1][0].start % BLOCK == 0
        assert abs(bucket.counts[0] - bucket.counts[1]) <= bucket.n / 100


@pytest.mark.parametrize("shape", [(30, 7), (5, 4, 16), (1, 100), (100, 1), (64,)])
@pytest.mark.parametrize("scaled", [False, True])
def test_pieces_are_rows_or_parts_of_one(shape, scaled):
    w = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    buckets = make_buckets([w], [0], [scaled], 3, 4096)
    found = []
    for part in (part for bucket in buckets for part in bucket.parts):
        for piece in (p for stretch in part for p in pieces_of(w, stretch, scaled)):
            found += w.reshape(-1)[piece.stretch.start : piece.stretch.stop].tolist()
            assert int(np.prod(piece.shape)) == len(piece.stretch)
            if len(piece.shape) == 2:
                rows, width = piece.shape
                assert rows == 1 or (width == row_of(w) and piece.stretch.start % width == 0)
    assert found == w.reshape(-1).tolist()


def test_fortran_order_and_shared_scales_are_not_divided_at_rows():
    stretch = make_buckets([np.zeros((30, 7), np.float32)], [0], [False], 1, 4096)[0].stretches[0]
    assert [p.shape for p in pieces_of(np.zeros((30, 7), order="F"), stretch, False)] == [(210,)]
    assert [p.shape for p in pieces_of(np.zeros((30, 7)), stretch, True)] == [(210,)]
    assert [p.shape for p in pieces_of(np.zeros((30, 7)), stretch, False)] == [(30, 7)]
