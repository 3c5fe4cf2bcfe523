"""Gradients that touch some rows of a parameter only, as those of embedding tables do."""

import sys
from typing import Any

import numpy as np


class Rows:
    r"""The gradient of some rows of a parameter, in the place of an array.

    Only these rows, and their state, move. That is what TensorFlow's sparse updates do, and not the same as a dense
    step with zeros elsewhere: there the averages of the other rows would decay, and momentum and weight decay move
    them. A norm, as for clipping, is that of the rows given, each row once.

    Parameters
    ----------
    indices : array-like of integers, shape (k,)
        Which rows, along the first axis: from 0 on, of any integer type, in any order. Rows that appear more than once
        count with the sum of their gradients, added up in the order in which they appear, in the parameter's type.
    values : array, shape (k, \*w.shape[1:])
        Their gradients, of the parameter's dtype.

    Notes
    -----
    The indices are copied when a step begins, and everything is checked then.

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
    sparse = sys.modules.get("scipy.sparse")  # if it was not imported, there are none
    return sparse is not None and bool(sparse.issparse(value))


def whole_rows(label: str, matrix: Any, shape: tuple[int, ...]) -> Rows:
    """Return the rows of a sparse matrix that has some rows in full and nothing else; messages call it `label`.

    Entries that appear more than once are rows that do, the n-th of an entry belonging to the n-th of its row.
    """
    if matrix.shape != shape:
        raise ValueError(f"{label}: shape {matrix.shape}, expected {shape}")
    if len(shape) != 2:
        raise ValueError(f"{label}: a sparse array of shape {shape}, expected one with rows and columns")
    entries = matrix.tocoo()
    row, column, values = (np.array(part) for part in (entries.row, entries.col, entries.data))
    order = np.lexsort((column, row))
    row, column, values = row[order], column[order], values[order]
    new = np.concatenate([[True], (row[1:] != row[:-1]) | (column[1:] != column[:-1])])[: len(row)]
    place = np.arange(len(row))
    time = place - np.maximum.accumulate(np.where(new, place, 0))  # how often the entry appeared before
    order = np.lexsort((column, row, time))
    row, column, values = row[order], column[order], values[order]
    count, width = len(row) // max(shape[1], 1), shape[1]
    if count * width == len(row):
        row, column, values = (part.reshape(count, width) for part in (row, column, values))
        if (row == row[:, :1]).all() and (column == np.arange(width)).all():
            return Rows(row[:, 0] if width else [], values)
    raise ValueError(f"{label}: a sparse matrix with a part of a row, expected each row to be whole or empty")
