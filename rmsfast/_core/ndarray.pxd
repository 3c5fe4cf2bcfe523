"""An ndarray as `Memory`: the one place that reads NumPy's structures."""

cimport numpy as cnp
from cpython.object cimport PyObject
from libc.string cimport strstr

from rmsfast._core.memory cimport BFLOAT16, OTHER, Memory


cdef extern from "numpy/arrayobject.h":
    bint is_exact_array "PyArray_CheckExact"(PyObject *)
    int NPY_USERDEF

cdef extern from *:
    """
    #define RMSFAST_TYPE_NAME(a) (PyArray_DESCR(a)->typeobj->tp_name)
    """
    const char *type_name "RMSFAST_TYPE_NAME"(cnp.ndarray a)


cdef inline int format_of(cnp.ndarray a) noexcept:
    cdef int number = cnp.PyArray_TYPE(a)
    if not cnp.PyArray_ISNOTSWAPPED(a):
        return OTHER
    if number < NPY_USERDEF:
        return number
    # The package ml_dtypes has bfloat16. It is known by its name, because nothing imports the package here.
    return BFLOAT16 if cnp.PyArray_ITEMSIZE(a) == 2 and strstr(type_name(a), "bfloat16") != NULL else OTHER


cdef inline void show(cnp.ndarray a, Memory *memory) noexcept:
    memory.data = <char *>cnp.PyArray_DATA(a)
    memory.shape = <const Py_ssize_t *>cnp.PyArray_DIMS(a)
    memory.strides = <const Py_ssize_t *>cnp.PyArray_STRIDES(a)
    memory.ndim = cnp.PyArray_NDIM(a)
    memory.format = format_of(a)
    memory.unit = 1
    memory.flags = cnp.PyArray_FLAGS(a)
