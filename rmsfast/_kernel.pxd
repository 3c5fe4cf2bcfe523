"""The door: what a plan tells the kernel, whoever owns the memory.

`_kernel.pyx` plans for NumPy's arrays, `_tensors.pyx` for tensors.
"""

cimport numpy as cnp
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_type_lock
from libc.string cimport memcmp, memcpy


cdef extern from "csrc/rmsfast.h" nogil:
    ctypedef struct rmsfast_settings:
        double lr
        double beta
        double eps
        double momentum
        double weight_decay
        double clip_value
        double clip_norm
        double clip_global_norm
        int nesterov
        int centered
        int decoupled_weight_decay
        int eps_inside_sqrt
        int lr_in_momentum
        int bias_correction
        int maximize
        int nonfinite
    ctypedef struct rmsfast_block:
        double squares
        Py_ssize_t nonfinite
    int RMSFAST_FLOAT32, RMSFAST_FLOAT64


cdef enum:
    SQUARE_AVG, GRAD_AVG, MOMENTUM_BUFFER, STATE_ARRAYS
    # What an item costs beside its elements, in bytes of elements in the cache: 15 ns.
    ITEM_COST = 512


cdef struct Gradient:
    # What a step takes for one parameter.
    char *g                 # NULL: this step leaves the parameter alone
    Py_ssize_t active       # elements that this step updates: all, or those of `rows`
    const Py_ssize_t *rows  # NULL: all; else those that have a gradient, and where it is
    const char *const *row_grads
    size_t end              # on the line: bytes up to the end of this item, and what items cost beside them
    Py_ssize_t first_block  # of the measured blocks, this item's first
    double clip_factor
    Py_ssize_t direct       # the gradient lies as the parameter does; else it is gathered with the item's `strides`

cdef struct Item:
    # One parameter on the line, as all threads read it. What every step writes is not here but in `Record`: see `put`.
    Gradient gradient
    char *w
    char *state[STATE_ARRAYS]   # NULL where the settings ask for none
    Py_ssize_t n            # elements
    Py_ssize_t row          # elements in one row, along the first axis
    int itemsize            # bytes
    int reals               # numbers in an element: two in a complex one
    int dtype               # RMSFAST_FLOAT32 or RMSFAST_FLOAT64
    int type_num            # NumPy's number for it
    int layout              # NumPy's flags of a gradient that lies as the parameter does
    int group
    int ndim
    Py_ssize_t *shape
    Py_ssize_t *strides     # the gradient's, where it is not direct

cdef struct Record:
    # What the calling thread keeps of a parameter.
    PyObject *grad          # the reference that keeps the gradient's memory
    Py_ssize_t steps        # taken
    Py_ssize_t nonfinite    # numbers of the gradient, where they were counted
    char *bound             # where the bound gradient was when it was bound

cdef struct Work:
    # What the threads have to do: to update the items, or, where `blocks` is there, to measure their gradients.
    const Item *items
    const Record *records
    Py_ssize_t count
    const rmsfast_settings *settings    # by group
    double grad_scale
    bint zero_grads
    rmsfast_block *blocks
    double shrink
    bint measure_all                    # a norm over all parameters is asked for

cdef struct Span:
    # The memory of parameter i (owner OWNERS i), or of its k-th state array (owner OWNERS i + 1 + k).
    size_t start
    size_t stop
    Py_ssize_t owner


cdef inline void put(void *place, const void *new, size_t size) noexcept nogil:
    """Write what all threads read, but only if it differs.

    A line of memory that one core writes has to be fetched again by the others, at 50 to 200 ns each.
    """
    if memcmp(place, new, size) != 0:
        memcpy(place, new, size)


cdef int as_threads(value) except -1
cdef int most_threads(int wanted) except -1
cdef rmsfast_settings as_struct(dict s) except *
cdef const Span *overlap(const Span *spans, Py_ssize_t count, size_t start, size_t stop) noexcept
cdef void run(const Work *work, int most, bint ordinary) noexcept


cdef class Lock:
    cdef PyThread_type_lock lock
    cdef bint busy
    cdef unsigned long owner            # while busy: the thread that holds the lock
    cdef int forks                      # that had led to the process in which the lock was made
    cdef int make(self) except -1
    cdef bint acquire(self) except -1
    cdef void release(self) noexcept


cdef class SummedRows:
    cdef cnp.ndarray source             # the array given, whose owner may move it, …
    cdef readonly cnp.ndarray given     # … and a view of it, which nobody else can change
    cdef readonly cnp.ndarray indices   # distinct, in the order in which they first appear
    cdef cnp.ndarray rows               # each row given, its elements in the order in which w's lie, …
    cdef const char *first              # … from here on
    cdef cnp.ndarray sums               # of the rows that repeat
    cdef const char **grads             # where each distinct row is
    cdef Py_ssize_t count               # of distinct rows
    cdef Py_ssize_t limit               # the rows of w
    cdef bint c_order                   # of w
    cdef int sum_rows(self, str name, cnp.ndarray asked) except -1
    cdef cnp.ndarray values(self)
