"""What norms and `nonfinite` need to know of a part of a gradient, where the parameter is divided among processes.

In comes one contiguous array, a part that begins with a block. Out go the squares of each block and the count of numbers
that are infinite or NaN. Whoever has the blocks of all parts adds them up in the order of `rmsfast.reference.norm`.
"""

cimport numpy as cnp
from cpython.mem cimport PyMem_Free
from libc.string cimport memset

from rmsfast._core.kernel cimport (
    RMSFAST_BLOCK, RMSFAST_FLOAT32, RMSFAST_FLOAT64, Item, Work, rmsfast_block, work_line,
)
from rmsfast._core.plan cimport calloc

cnp.import_array()

import numpy as np

BLOCK = RMSFAST_BLOCK       # numbers


def measure(cnp.ndarray g not None, double grad_scale, double shrink, double[::1] squares not None, int threads=1):
    """Write the sum of the squares of g·grad_scale·shrink in each block of a gradient.

    Parameters
    ----------
    g : ndarray of float32 or float64, C-contiguous, one axis
        The gradient.
    grad_scale, shrink : float
        What each number is multiplied by: first by `grad_scale`, rounded to its type, then in double by `shrink`, for
        float64 alone.
    squares : array of float64, one axis
        Where the sums go, one for each block of `BLOCK` numbers.
    threads : int
        How many threads to use.

    Returns
    -------
    int
        How many numbers of g are infinite or NaN.
    """
    cdef Py_ssize_t n = cnp.PyArray_SIZE(g), i, count, nonfinite = 0
    cdef Item item
    cdef Work work
    count = (n + RMSFAST_BLOCK - 1) // RMSFAST_BLOCK
    if g.dtype not in (np.float32, np.float64) or not cnp.PyArray_ISCARRAY_RO(g) or g.ndim != 1:
        raise TypeError(f"g: {g.dtype} of shape {(<object>g).shape}, expected contiguous float32 or float64 numbers on one "
                        "axis")
    if squares.shape[0] != count:
        raise ValueError(f"squares: {squares.shape[0]} numbers, expected {count}, one for each block")
    if n == 0:
        return 0
    memset(&item, 0, sizeof(Item))
    memset(&work, 0, sizeof(Work))
    item.gradient.g = <char *>cnp.PyArray_DATA(g)
    item.gradient.direct = True
    item.gradient.itemsize = item.itemsize = item.weight = cnp.PyArray_ITEMSIZE(g)
    item.gradient.active = item.n = n
    item.gradient.end = n * item.weight
    item.w = item.gradient.g
    item.reals = 1
    item.dtype = RMSFAST_FLOAT64 if item.itemsize == 8 else RMSFAST_FLOAT32
    work.items = &item
    work.count = 1
    work.grad_scale = grad_scale
    work.shrink = shrink
    work.measure_all = True
    work.blocks = <rmsfast_block *>calloc(count, sizeof(rmsfast_block))
    try:
        with nogil:
            work_line(&work, item.gradient.end, max(1, min(threads, <int>min(count, <Py_ssize_t>1024))))
        for i in range(count):
            squares[i] = work.blocks[i].squares
            nonfinite += work.blocks[i].nonfinite
    finally:
        PyMem_Free(work.blocks)
    return nonfinite
