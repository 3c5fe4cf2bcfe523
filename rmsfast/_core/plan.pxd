"""The plan of a step, for whoever owns the memory: a front derives its plan from `Plan`."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

from rmsfast._core.kernel cimport (
    RMSFAST_AS_THEY_ARE, RMSFAST_BFLOAT16, RMSFAST_FLOAT16, STATE_ARRAYS, Gradient, Item, Storage, Work, rmsfast_block,
    rmsfast_settings,
)
from rmsfast._core.memory cimport BFLOAT16, FLOAT16, Memory, Span
from rmsfast._core.threads cimport Learned


cdef enum:
    COPY = STATE_ARRAYS + 1     # after a parameter and its state: what `mirror` was given
    OWNERS = COPY + 1           # of spans: parameter i itself is OWNERS·i, then come its state arrays
    PLACES = OWNERS + 1         # the same, and the step count
    SIZES = 64                  # of works, in powers of two of their bytes

cdef enum Fault:
    # What is wrong with a parameter or its gradient.
    FINE
    MOVED           # the parameter or its state is not where and as it was when the plan was made
    NO_MEMORY       # the gradient shows no memory: it lies elsewhere, or was resized to nothing
    WRONG_TYPE
    WRONG_SHAPE
    WRONG_ROWS      # rows that were made for another parameter, or whose memory moved
    SHARED          # the gradient shares memory with what the step writes

cdef enum Kind:
    # Kinds of work, which take different times for the same bytes.
    UPDATING
    GATHERING       # updating, where some gradient lies otherwise than its parameter, or has some rows only
    MEASURING
    KINDS


cdef struct Place:
    # A tensor that each step looks at: whose memory it is, and where that was when the plan was made.
    PyObject *owner
    char *data
    int format
    Py_ssize_t size         # of a tensor that has a shape of its own, as a step count; else -1


cdef struct Record:
    # What the calling thread keeps of a parameter. What each step reads comes first.
    PyObject *grad          # the reference that keeps the gradient's memory
    char *checked           # a gradient that lay here, as its parameter does, shared no memory …
    Py_ssize_t checked_at   # … when the spans had changed so often, …
    int checked_as          # … and it had this format
    Memory shown            # how the front shows the parameter and its state; `data` says nothing
    Py_ssize_t n_places     # of the next, that each step looks at
    Place places[PLACES]
    Py_ssize_t *axes        # from the slowest in memory to the fastest
    char *bound             # where the bound gradient was when it was bound
    Py_ssize_t steps        # taken
    char *count             # a float32 or float64 that counts the steps, too, or NULL
    int count_format
    double squares          # of the gradient, …
    double shrunk           # … after multiplication by 2 to the power SHRINK, where others measured it, …
    Py_ssize_t nonfinite    # … and its infinite and NaN numbers, where they were measured
    bint is_measured        # by somebody else, who updates the parameter


cdef class Plan:
    cdef Py_ssize_t count
    cdef Item *items
    cdef Storage *storages              # of items whose numbers are not all stored as they are, or NULL
    cdef Record *records
    cdef Work *work
    cdef rmsfast_settings *settings     # by group
    cdef Span *spans                    # of all memory that steps write, sorted
    cdef Py_ssize_t n_spans
    cdef Py_ssize_t changes             # of the spans
    cdef Py_ssize_t *axes               # room for the shapes and strides of all items
    cdef rmsfast_block *blocks          # room for what is measured, …
    cdef Py_ssize_t room_of_blocks      # … for so many, …
    cdef Py_ssize_t n_blocks            # … of which this step needs these
    cdef Learned *learned[KINDS][SIZES] # what each kind of work on so many bytes took; NULL: nothing yet
    cdef bint measures                  # a group asks for norms or for nonfinite elements, …
    cdef bint measures_all              # … or for the norm of all gradients
    cdef bint corrects                  # a group asks for the correction of the bias
    cdef bint plain                     # all gradients of this step lie as their parameters do
    cdef bint alone                     # a block of elements with one scale may belong to several rows: no team
    cdef bint warm                      # a step has touched the state before
    cdef int most                       # threads that this step may use
    cdef Fault fault                    # what `check` found, …
    cdef Py_ssize_t fault_at            # … with which parameter, …
    cdef const Span *fault_span         # … and with which memory the gradient shares its own

    # What a front says.
    cdef bint look(self, PyObject *owner, Memory *seen) noexcept
    cdef str label(self, str kind, Py_ssize_t i)

    # What is made once.
    cdef int reserve(self, Py_ssize_t count, Py_ssize_t groups, Py_ssize_t axes) except -1
    cdef Py_ssize_t *describe(self, Py_ssize_t i, int group, const Memory *shown, Py_ssize_t *axes) except NULL
    cdef int watch(self, Py_ssize_t i, PyObject *owner, const Memory *shown, Py_ssize_t size) except -1
    cdef Storage *store(self, Py_ssize_t i, int v) except NULL
    cdef int take_spans(self, list found) except -1
    cdef int take_settings(self, list structs) except -1
    cdef void learn_from(self, Plan older) noexcept

    # A step.
    cdef void let_go(self) noexcept
    cdef Fault check(self) noexcept
    cdef bint is_in_place(self, Py_ssize_t i) noexcept
    cdef Fault find_fault(self, Fault fault, Py_ssize_t i) noexcept
    cdef int prepare(self, double grad_scale, bint zero_grads, int most) except -1
    cdef int measure(self) noexcept
    cdef void update(self) noexcept
    cdef void count_step(self) noexcept


cdef inline void keep(Plan plan, Py_ssize_t i, PyObject *g) noexcept:
    """Keep a gradient alive for this step."""
    Py_INCREF(<object>g)
    plan.records[i].grad = g


cdef inline int stored_as(int format) noexcept nogil:
    """What the loops call a format."""
    return RMSFAST_FLOAT16 if format == FLOAT16 else RMSFAST_BFLOAT16 if format == BFLOAT16 else RMSFAST_AS_THEY_ARE


cdef void *calloc(Py_ssize_t count, size_t size) except NULL
cdef rmsfast_settings as_struct(dict s) except *
cdef str owner_kind(Py_ssize_t owner)
cdef str name_of(int format)
cdef int refuse(Plan plan) except -1
cdef int refuse_nonfinite(Plan plan) except -1
