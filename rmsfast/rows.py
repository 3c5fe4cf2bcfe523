"""Gradients of only some rows of a parameter, as embedding tables have."""

import sys
from typing import Any

import numpy as np


class Rows:
    r"""The gradient of some rows of a parameter, given instead of an array.

    Only these rows and their state change, as in TensorFlow's sparse updates. A dense step with zeros elsewhere is
    different: there the averages of the other rows decay, and momentum and weight decay move them. Norms, as for
    clipping, are those of the given rows, each row once.

    Parameters
    ----------
    indices : array-like of integers, shape (k,)
        Which rows, along the first axis: from 0 on, of any integer type, in any order. The gradients of a row that
        appears more than once are added up, in the order in which they appear, in the parameter's dtype.
    values : array, shape (k, \*w.shape[1:])
        Their gradients, of the parameter's dtype.

    Notes
    -----
    A step copies the indices and checks everything when it begins.

    Examples
    --------
    >>> import numpy as np, rmsfast
    >>> table = np.zeros((4, 2), np.float32)
    >>> opt = rmsfast.RMSProp(table, lr=0.5, beta=0.75, eps=0)
    >>> opt.step(rmsfast.Rows([3, 1, 3], np.ones((3, 2), np.float32)))
    >>> table.tolist()
    [[0.0, 0.0], [-1.0, -1.0], [0.0, 0.0], [-1.0, -1.0]]
    """

    __slots__ = ("indices", "values")
    indices: Any
    values: Any

    def __init__(self, indices: Any, values: Any) -> None:
        self.indices = indices
        self.values = values

    def __repr__(self) -> str:
        return f"Rows({self.indices!r}, {self.values!r})"


def is_sparse(value: Any) -> bool:
    """Whether a value is one of SciPy's sparse arrays or matrices."""
    sparse = sys.modules.get("scipy.sparse")  # if nobody imported it, there are none
    return sparse is not None and bool(sparse.issparse(value))


def whole_rows(label: str, matrix: Any, shape: tuple[int, ...]) -> Rows:
    """Return a sparse matrix in which each row is whole or empty as Rows. Messages call it `label`.

    Where each entry of a row appears n times, the row does: the first time with the first of each entry, and so on.
    """
    if matrix.shape != shape:
        raise ValueError(f"{label}: shape {matrix.shape}, expected {shape}, as the parameter")
    if len(shape) != 2:
        raise ValueError(f"{label}: a sparse array of shape {shape}, expected one with rows and columns")
    entries = matrix.tocoo()
    row, column, values = (np.array(part) for part in (entries.row, entries.col, entries.data))
    order = np.lexsort((column, row))
    row, column, values = row[order], column[order], values[order]
    new = np.concatenate([[True], (row[1:] != row[:-1]) | (column[1:] != column[:-1])])[: len(row)]
    place = np.arange(len(row))
    time = place - np.maximum.accumulate(np.where(new, place, 0))  # how many times the same entry came before
    order = np.lexsort((column, row, time))
    row, column, values = row[order], column[order], values[order]
    count, width = len(row) // max(shape[1], 1), shape[1]
    if count * width == len(row):
        row, column, values = (part.reshape(count, width) for part in (row, column, values))
        if (row == row[:, :1]).all() and (column == np.arange(width)).all():
            return Rows(row[:, 0] if width else [], values)
    raise ValueError(
        f"{label}: a sparse matrix with a part of a row, expected each row to be whole or empty: .toarray() returns a "
        "dense gradient"
    )
