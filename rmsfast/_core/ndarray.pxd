"""An ndarray as `Memory`: the one place that reads NumPy's structures."""

cimport numpy as cnp
from cpython.object cimport PyObject

from rmsfast._core.memory cimport OTHER, Memory


cdef extern from "numpy/arrayobject.h":
    bint is_exact_array "PyArray_CheckExact"(PyObject *)


cdef inline int format_of(cnp.ndarray a) noexcept:
    return cnp.PyArray_TYPE(a) if cnp.PyArray_ISNOTSWAPPED(a) else OTHER


cdef inline void show(cnp.ndarray a, Memory *memory) noexcept:
    memory.data = <char *>cnp.PyArray_DATA(a)
    memory.shape = <const Py_ssize_t *>cnp.PyArray_DIMS(a)
    memory.strides = <const Py_ssize_t *>cnp.PyArray_STRIDES(a)
    memory.ndim = cnp.PyArray_NDIM(a)
    memory.format = format_of(a)
    memory.unit = 1
    memory.flags = cnp.PyArray_FLAGS(a)
