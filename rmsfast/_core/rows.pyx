"""Gradients of some rows of a parameter: each row once, and the sum where a row was given more than once.

In come indices and an array, of NumPy's or PyTorch's making. Out go, for the plan, the distinct rows and where the
gradient of each lies.
"""

cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memcpy

from rmsfast._core.memory cimport COMPLEX128, FLOAT64, fits, is_half
from rmsfast._core.ndarray cimport format_of, show

cnp.import_array()

import numpy as np


cdef extern from "csrc/rmsfast.h" nogil:
    Py_ssize_t rmsfast_distinct(Py_ssize_t *distinct, const char **grads, const Py_ssize_t *rows, Py_ssize_t n,
                                Py_ssize_t limit, const char *first, Py_ssize_t size, cnp.int32_t *table, int bits)
    void rmsfast_sum_repeated(char *sums, Py_ssize_t *distinct, Py_ssize_t count, const char **grads,
                              const Py_ssize_t *rows, Py_ssize_t n, const char *first, Py_ssize_t size,
                              cnp.int32_t *table, int bits, bint is_float64)

cdef extern from "csrc/fpmode.h" nogil:
    ctypedef struct rmsfast_fpmode:
        pass
    rmsfast_fpmode rmsfast_fpmode_enter()
    void rmsfast_fpmode_leave(rmsfast_fpmode)

cdef int MOST_ROWS = 2**31 - 1      # that one gradient has


@cython.final
cdef class SummedRows:
    r"""The gradient of some rows of a parameter, each row once. Rows that were given more than once are added up.

    Parameters
    ----------
    name : str
        What messages call the gradient.
    w : ndarray
        The parameter.
    indices : array-like of integers, shape (k,)
        Which rows of w. They are copied before anything is looked at.
    given : ndarray, shape (k, \*w.shape[1:])
        Their gradients. Repeated rows are added up in the order in which they appear, in w's type, or in float32 if
        that is half of it.
    """
    def __cinit__(self, str name, cnp.ndarray w not None, indices, cnp.ndarray given not None):
        cdef int parameter
        asked = np.array(indices)
        self.source = given
        self.given = given = given.view()
        if asked.size == 0 and not isinstance(indices, np.ndarray):
            asked = asked.astype(np.intp)
        if asked.dtype.kind not in "iu":
            raise TypeError(f"{name}.indices: dtype {asked.dtype}, expected integers"
                            + ": np.flatnonzero(mask) has them" * (asked.dtype.kind == "b"))
        if asked.ndim != 1:
            raise ValueError(f"{name}.indices: shape {asked.shape}, expected one axis: "
                             "Rows(indices.reshape(-1), values.reshape(-1, *w.shape[1:]))")
        if cnp.PyArray_NDIM(w) == 0:
            raise ValueError(f"{name}: rows, expected an array without any axis, as the parameter")
        show(given, &self.memory)
        parameter = format_of(w)
        if not fits(self.memory.format, parameter):
            raise TypeError(f"{name}.values: dtype {(<object>given).dtype}, expected {(<object>w).dtype}, as the "
                            f"parameter: values.astype({str((<object>w).dtype)!r})")
        expected = (len(asked), *np.asarray(w).shape[1:])
        if (<object>given).shape != expected:
            raise ValueError(f"{name}.values: shape {(<object>given).shape}, expected {expected}: a row for each index")
        self.c_order = cnp.PyArray_IS_C_CONTIGUOUS(w)
        self.limit = cnp.PyArray_DIMS(w)[0]
        self.row = cnp.PyArray_SIZE(w) // self.limit if cnp.PyArray_SIZE(w) > 0 else 0
        if is_half(parameter) or is_half(self.memory.format):
            given = (<object>given).astype(np.float32)
        self.rows = np.require(turned(given, self.c_order), requirements=["C_CONTIGUOUS", "ALIGNED"])
        self.sum_rows(name, asked)

    def __dealloc__(self):
        PyMem_Free(self.grads)

    cdef int sum_rows(self, str name, cnp.ndarray asked) except -1:
        """Find where the gradient of each distinct row is, and add up those that repeat."""
        cdef Py_ssize_t n = len(asked), size = cnp.PyArray_NBYTES(self.rows) // max(n, 1)
        cdef cnp.ndarray rows = asked.astype(np.intp, copy=False)
        cdef const Py_ssize_t *wanted = <const Py_ssize_t *>cnp.PyArray_DATA(rows)
        cdef int bits = (2 * n).bit_length()
        cdef cnp.ndarray distinct = np.empty(n, np.intp), table = np.zeros(1 << bits, np.int32)
        cdef Py_ssize_t *found = <Py_ssize_t *>cnp.PyArray_DATA(distinct)
        cdef cnp.int32_t *slots = <cnp.int32_t *>cnp.PyArray_DATA(table)
        cdef const char *first = <const char *>cnp.PyArray_DATA(self.rows)
        cdef rmsfast_fpmode mode
        if n > MOST_ROWS:
            raise ValueError(f"{name}: {n} rows, expected {MOST_ROWS} at most")
        self.grads = <const char **>PyMem_Malloc(max(n, 1) * sizeof(char *))
        if self.grads == NULL:
            raise MemoryError(f"no memory for {n} rows")
        self.count = rmsfast_distinct(found, self.grads, wanted, n, self.limit, first, size, slots, bits)
        if self.count < 0:
            i = -1 - self.count
            raise ValueError(f"{name}.indices[{i}]: {asked[i]}, expected a row from 0 to {self.limit - 1}")
        if self.count < n:
            self.sums = np.empty((n - self.count) * size, np.uint8)
            mode = rmsfast_fpmode_enter()
            rmsfast_sum_repeated(<char *>cnp.PyArray_DATA(self.sums), found, self.count, self.grads, wanted, n, first,
                                 size, slots, bits, self.memory.format in (FLOAT64, COMPLEX128))
            rmsfast_fpmode_leave(mode)
        self.indices = distinct[:self.count]
        self.distinct = <const Py_ssize_t *>cnp.PyArray_DATA(self.indices)
        return 0

    cdef bint is_unmoved(self) noexcept:
        """Whether the array given still has the memory that it had."""
        return (<char *>cnp.PyArray_DATA(self.source) == self.memory.data
                and cnp.PyArray_NBYTES(self.source) == cnp.PyArray_NBYTES(self.given))

    cpdef cnp.ndarray values(self):
        """The distinct rows as an array, `turned`."""
        cdef Py_ssize_t k, size = self.row * cnp.PyArray_ITEMSIZE(self.rows)
        rows = np.empty((self.count, *(<object>self.rows).shape[1:]), self.rows.dtype)
        for k in range(self.count):
            memcpy(<char *>cnp.PyArray_DATA(rows) + k * size, self.grads[k], size)
        return rows


cdef cnp.ndarray turned(cnp.ndarray rows, bint c_order):
    """Rows of an array in C order or in Fortran order, as a view whose own C order, row by row, is that of the elements
    in memory."""
    return rows if c_order else rows.transpose(0, *range(rows.ndim - 1, 0, -1))
