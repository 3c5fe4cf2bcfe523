"""Gradients of some rows of a parameter."""

cimport numpy as cnp

from rmsfast._core.memory cimport Memory


cdef class SummedRows:
    cdef cnp.ndarray source             # the array given, whose owner may move it, …
    cdef readonly cnp.ndarray given     # … a view of it, which nobody else can change, …
    cdef Memory memory                  # … and where that lies
    cdef readonly cnp.ndarray indices   # distinct, in the order in which they first appear
    cdef cnp.ndarray rows               # each row given, its elements in the order in which the parameter's lie
    cdef cnp.ndarray sums               # of the rows that repeat
    cdef const Py_ssize_t *distinct     # what `indices` holds
    cdef const char **grads             # where each distinct row is
    cdef Py_ssize_t count               # of distinct rows
    cdef Py_ssize_t limit               # the rows of the parameter, …
    cdef Py_ssize_t row                 # … the elements of each, …
    cdef bint c_order                   # … and whether they lie in C order
    cdef int sum_rows(self, str name, cnp.ndarray asked) except -1
    cdef bint is_unmoved(self) noexcept
    cpdef cnp.ndarray values(self)


cdef cnp.ndarray turned(cnp.ndarray rows, bint c_order)
