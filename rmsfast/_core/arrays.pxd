"""The plan of an optimizer on arrays, for `steps.pyx`."""

cimport numpy as cnp
from cpython.object cimport PyObject

from rmsfast._core.memory cimport Span
from rmsfast._core.plan cimport Plan


cdef class ArrayPlan(Plan):
    cdef readonly tuple groups
    cdef readonly tuple keys            # of the parameters: names, or else 0, 1, 2, …
    cdef readonly bint named
    cdef readonly bint single           # one array, given as itself
    cdef public bint may_omit           # a mapping of gradients names: who does was told
    cdef readonly list params
    cdef readonly bint stateless        # others keep the state, and update: these parameters are only looked at
    cdef list origins                   # of each parameter, whose part it is and from which element on; or None: it is whole
    cdef readonly set fresh             # parameters whose average did not move and was not loaded: it is as they are
    cdef list states                    # of each parameter, a list of its state arrays, or None for one
    cdef list copies                    # what `mirror` was given: an array or None for each parameter; or empty
    cdef list values                    # the settings of each group, as a dict
    cdef list bound                     # the gradients that a step without any takes, or None
    cdef Span *reaches                  # of the gradients, where they are to be set to zero

    cdef int name(self) except -1
    cdef int complete_states(self, groups) except -1
    cdef int begin_averages(self, which) except -1
    cdef void note_moves(self)
    cdef int take_states(self, list states) except -1
    cdef int take_copies(self, list copies) except -1
    cdef int watch_copies(self) except -1
    cdef void write_copies(self) noexcept
    cdef void write_copy(self, Py_ssize_t i) noexcept
    cdef int find_spans(self, list states, list copies) except -1
    cdef int point(self) except -1
    cdef int take_values(self, list values) except -1
    cdef bint collect(self, grads) except -1
    cdef bint collect_held(self, grads) except -1
    cdef bint take(self, Py_ssize_t i, PyObject *g) noexcept
    cdef int check_bound(self) except -1
    cdef bint check_erasable(self) except -1
    cdef int erase_gradients(self, bint rows_only) except -1
    cdef Py_ssize_t most_steps(self) noexcept
    cdef int apply(self, rule, double grad_scale) except -1
    cdef tuple taken_apart(self, Py_ssize_t i)


cdef cnp.ndarray zeros_beside(cnp.ndarray w, tuple form)
