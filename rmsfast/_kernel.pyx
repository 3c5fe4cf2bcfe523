"""The one door to the C kernel: memory is checked here, then updated by OpenMP threads with the GIL released.

The elements of all parameters form one line. A step points every item of the line to its gradient, refuses what does
not fit before anything is touched, and gives each thread one contiguous stretch. Behind this file there are pointers,
lengths and settings only.
"""

import operator
import os

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_CheckExact, PyDict_Size
from cpython.list cimport PyList_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
    PyThread_get_thread_ident, PyThread_release_lock, PyThread_type_lock,
)
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_CheckExact
from cython.parallel cimport prange

cnp.import_array()

import numpy as np


cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(PyObject *sequence)
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject *sequence)
    PyObject *PyDict_GetItemWithError(object mapping, object key) except? NULL
    PyObject *PyList_GET_ITEM(object list, Py_ssize_t i)

cdef extern from "numpy/arrayobject.h":
    bint is_exact_array "PyArray_CheckExact"(PyObject *)

cdef extern from "csrc/rmsfast.h" nogil:
    ctypedef struct rmsfast_settings:
        double lr
        double beta
        double eps
    ctypedef void (*rmsfast_update)(void *w, void *v, const void *g, Py_ssize_t n,
                                    const rmsfast_settings *settings) noexcept
    ctypedef struct rmsfast_isa:
        const char *name
        rmsfast_update *update
    const rmsfast_isa *rmsfast_usable_isa(int k)
    int RMSFAST_FLOAT32, RMSFAST_FLOAT64
    void rmsfast_gather(void *out, const char *g, Py_ssize_t start, Py_ssize_t n, Py_ssize_t itemsize, int ndim,
                        const Py_ssize_t *shape, const Py_ssize_t *strides, bint fortran)
    bint rmsfast_strides_into(Py_ssize_t start, Py_ssize_t stop, Py_ssize_t itemsize, int ndim,
                              const Py_ssize_t *shape, const Py_ssize_t *strides)

cdef extern from "csrc/fpmode.h" nogil:
    ctypedef struct rmsfast_fpmode:
        pass
    rmsfast_fpmode rmsfast_fpmode_enter()
    void rmsfast_fpmode_leave(rmsfast_fpmode)

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    enum { HAS_OPENMP = 1 };
    #else
    enum { HAS_OPENMP = 0 };
    static double omp_get_wtime(void) { return 0; }
    #endif
    """
    bint HAS_OPENMP
    double omp_get_wtime() nogil

OPENMP = HAS_OPENMP


# ---- Instruction sets: the choice is made once, here ----

cdef const rmsfast_isa *isa = NULL


cdef tuple choose_isa(wanted):
    """Take the widest usable instruction set, or the one called `wanted`; return all usable names."""
    global isa
    cdef const rmsfast_isa *candidate
    cdef int k = 0
    names = []
    while (candidate := rmsfast_usable_isa(k)) != NULL:
        k += 1
        names.append(candidate.name.decode())
        if not wanted or names[-1] == wanted:
            isa = candidate
    if isa == NULL:
        raise ImportError(f"RMSFAST_ISA: {wanted!r}, expected one that this CPU and this build have: {', '.join(names)}")
    return tuple(names)


ISAS = choose_isa(os.environ.get("RMSFAST_ISA"))
ISA = isa.name.decode()


# ---- Threads: how many, decided in one place ----

cdef struct Tuning:
    # A thread is worth starting for this many bytes of parameters: 32 768 float32 elements take 3 to 17 µs on the CPUs
    # tried. To start a team costs 1 to 6 µs, and in a training loop about 10 more, because the other cores have to fetch
    # the gradients that the calling thread has just computed. Below twice as much, a step stays on that thread.
    size_t bytes_per_thread
    # Another Python thread gets the GIL during a step on this many bytes; below, handing it over costs too much of it.
    size_t bytes_to_release_gil
    # What a byte takes on the calling thread alone, as last measured; 0: not yet, and the next step finds out.
    double seconds_a_byte_alone
    # A team that takes longer than this, and than this many times what one thread takes alone, has waited for a core
    # that someone keeps busy. Idle threads of OpenBLAS do, for some milliseconds after each matrix product, and then a
    # step on two threads can take a hundred times as long as on one.
    double slack_seconds
    double slack_factor
    # After such a team, steps stay on the calling thread for this many times as long as it took, or the longest pause.
    double patience
    double longest_pause

cdef Tuning tuning = Tuning(
    bytes_per_thread=1 << 17,
    bytes_to_release_gil=1 << 16,
    seconds_a_byte_alone=0,
    slack_seconds=5e-4,
    slack_factor=4,
    patience=100,
    longest_pause=1,
)
cdef double slowest_byte = 2e-9     # no CPU takes longer alone; a longer measurement was disturbed
cdef double alone_until = 0         # on the clock of omp_get_wtime

cdef int default_threads = 0    # 0: not asked for yet
cdef int MOST_THREADS = 1024


cdef int as_threads(value) except -1:
    """`value`, the num_threads of a call, as a count; 0 for None, which stands for get_num_threads()."""
    if value is None:
        return 0
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"num_threads: {value!r}, expected an integer from 1 to {MOST_THREADS}") from None
    if not 1 <= count <= MOST_THREADS:
        raise ValueError(f"num_threads: {count}, expected an integer from 1 to {MOST_THREADS}")
    return count


def get_num_threads():
    """Return how many threads a step may use where no `num_threads` is given.

    Returns
    -------
    int
        What `set_num_threads` was given last; before that, ``OMP_NUM_THREADS``; without it, the cores that this
        process may use (CPU affinity, cgroup quota).
    """
    global default_threads
    if default_threads == 0:
        from rmsfast.threads import default_num_threads
        default_threads = default_num_threads(MOST_THREADS)
    return default_threads


def set_num_threads(n):
    """Set how many threads a step may use where no `num_threads` is given.

    Parameters
    ----------
    n : int
        From 1 to 1024. Small steps use fewer: a thread has to be worth its start.

    Raises
    ------
    TypeError, ValueError
        If `n` is no integer, or out of range.
    """
    global default_threads
    if n is None:
        raise TypeError(f"num_threads: None, expected an integer from 1 to {MOST_THREADS}")
    default_threads = as_threads(n)


cdef inline int most_threads(int wanted) except -1:
    """How many threads a call may use that wants so many, or 0 for the default."""
    if wanted != 0:
        return wanted
    return default_threads if default_threads != 0 else get_num_threads()


cdef int team_size(size_t length, int most, bint ordinary) noexcept:
    """How many threads a step on `length` bytes of parameters uses, of those that it may use."""
    cdef size_t worth_it = length // tuning.bytes_per_thread
    if not HAS_OPENMP or most == 1 or worth_it < 2 or omp_get_wtime() < alone_until:
        return 1
    if ordinary and tuning.seconds_a_byte_alone == 0:
        return 1
    return most if <size_t>most < worth_it else <int>worth_it


cdef void judge(size_t length, int threads, double start, double stop) noexcept:
    """Learn from how long an ordinary step took that was large enough for a team."""
    global alone_until
    cdef double seconds = stop - start
    if threads == 1:
        tuning.seconds_a_byte_alone = min(seconds / length, slowest_byte)
    elif seconds > tuning.slack_seconds + tuning.slack_factor * tuning.seconds_a_byte_alone * length:
        alone_until = stop + min(tuning.patience * seconds, tuning.longest_pause)


def _tune(**changes):
    """Change measured constants, and forget slow teams; return the constants from before. For tests."""
    global tuning, alone_until
    old = dict(tuning)
    tuning = {**old, **changes}
    alone_until = 0
    return old


def _team_size(length, wanted):
    """Return how many threads a step on `length` bytes would use now. For tests."""
    return team_size(length, most_threads(as_threads(wanted)), True)


# ---- The line of elements, and the loops over it ----

cdef struct Item:
    # One parameter on the line. What a step changes:
    const char *g           # NULL: this step leaves the parameter alone
    bint direct             # the gradient lies as the parameter does; else it is gathered with `strides`
    size_t end              # bytes on the line up to the end of this item
    PyObject *grad          # the reference that keeps g's memory
    # What stays:
    char *w
    char *v
    Py_ssize_t n            # elements
    int itemsize            # bytes
    int dtype               # RMSFAST_FLOAT32 or RMSFAST_FLOAT64
    int type_num            # NumPy's number for it
    int layout              # NumPy's flags of a gradient that lies as the parameter does
    int group
    int ndim
    Py_ssize_t *shape
    Py_ssize_t *strides     # the gradient's, where it is not direct
    Py_ssize_t steps

cdef enum:
    CACHE_LINE = 64
    TILE = 1024     # elements that are gathered at a time: 8 KiB at most, which leaves L1 room for w and v


cdef inline Py_ssize_t cut(const Item *item, size_t begin, size_t at) noexcept nogil:
    """The element at which a cut of the line falls into an item that begins at `begin`, moved to a cache line."""
    cdef size_t inside
    if at <= begin:
        return 0
    if at >= item.end:
        return item.n
    inside = at - begin
    inside -= min(inside, (<size_t>item.w + inside) % CACHE_LINE)
    return <Py_ssize_t>inside // item.itemsize


cdef void update_item(const Item *item, Py_ssize_t start, Py_ssize_t stop,
                      const rmsfast_settings *settings) noexcept nogil:
    """Update elements [start, stop) of one parameter."""
    cdef double tile[TILE]
    cdef Py_ssize_t n
    cdef rmsfast_update update = isa.update[item.dtype]
    if item.direct:
        update(item.w + start * item.itemsize, item.v + start * item.itemsize, item.g + start * item.itemsize,
               stop - start, settings)
        return
    while start < stop:
        n = min(<Py_ssize_t>TILE, stop - start)
        rmsfast_gather(tile, item.g, start, n, item.itemsize, item.ndim, item.shape, item.strides,
                       not item.layout & cnp.NPY_ARRAY_C_CONTIGUOUS)
        update(item.w + start * item.itemsize, item.v + start * item.itemsize, tile, n, settings)
        start += n


cdef void update_stretch(const Item *items, Py_ssize_t count, const rmsfast_settings *settings,
                         size_t start, size_t stop) noexcept nogil:
    """Update the elements of the line between two places, counted in bytes; `settings` are by group."""
    cdef rmsfast_fpmode mode = rmsfast_fpmode_enter()
    cdef Py_ssize_t low = 0, high = count, i
    cdef size_t begin
    while low < high:       # the first item that ends after start
        i = (low + high) // 2
        if items[i].end > start:
            high = i
        else:
            low = i + 1
    begin = items[low - 1].end if low > 0 else 0
    for i in range(low, count):
        if begin >= stop:
            break
        if items[i].g != NULL:
            update_item(&items[i], cut(&items[i], begin, start), cut(&items[i], begin, stop),
                        &settings[items[i].group])
        begin = items[i].end
    rmsfast_fpmode_leave(mode)


cdef void update_line(const Item *items, Py_ssize_t count, const rmsfast_settings *settings,
                      size_t length, int threads) noexcept nogil:
    """Update every element of the line with a team. A smaller one than asked for shares the stretches."""
    cdef int t
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        update_stretch(items, count, settings, length // threads * t,
                       length if t == threads - 1 else length // threads * (t + 1))


cdef void run(const Item *items, Py_ssize_t count, const rmsfast_settings *settings, int most,
              bint ordinary) noexcept:
    """Update every element of the line, with as many threads of those allowed as it is worth.

    An ordinary step is one whose time says something: it gathers no gradient, and touches no memory for the first time.
    """
    cdef size_t length = items[count - 1].end if count > 0 else 0
    cdef int threads = team_size(length, most, ordinary)
    cdef double start, stop
    if length < tuning.bytes_to_release_gil and threads == 1:
        update_stretch(items, count, settings, 0, length)
        return
    with nogil:
        start = omp_get_wtime()
        if threads == 1:
            update_stretch(items, count, settings, 0, length)
        else:
            update_line(items, count, settings, length, threads)
        stop = omp_get_wtime()
    if ordinary and length // tuning.bytes_per_thread >= 2:
        judge(length, threads, start, stop)


# ---- Checks: each kind of memory in one function, used by every caller ----

cdef struct Span:
    # The memory of a parameter (owner 2 i) or of its state (owner 2 i + 1).
    size_t start
    size_t stop
    Py_ssize_t owner


cdef str label(Line line, str kind, Py_ssize_t i):
    """What a message calls the i-th array of a kind. Without a line: the arguments of `rmsprop_update`."""
    if line is None:
        return {"params": "w", "square_avg": "v", "grads": "g"}[kind]
    if kind == "square_avg":
        return f"state[{line.keys[i]!r}]['square_avg']"
    return kind if line.single else f"{kind}[{line.keys[i]!r}]"


cdef str owner_of(Line line, const Span *span):
    return label(line, "square_avg" if span.owner % 2 else "params", span.owner // 2)


cdef tuple shape_of(cnp.ndarray a):
    return tuple([cnp.PyArray_DIMS(a)[axis] for axis in range(cnp.PyArray_NDIM(a))])


cdef int check_updatable(str name, cnp.ndarray a) except -1:
    """Refuse an array whose elements cannot be updated in place."""
    if not (cnp.PyArray_TYPE(a) in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE) and cnp.PyArray_ISNOTSWAPPED(a)):
        raise TypeError(f"{name}: dtype {a.dtype}, expected float32 or float64 in native byte order")
    if not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError(f"{name}: read-only, expected a writable array, because it is updated in place")
    if not cnp.PyArray_IS_C_CONTIGUOUS(a) and not cnp.PyArray_IS_F_CONTIGUOUS(a):
        raise ValueError(f"{name}: strides {(<object>a).strides} with shape {shape_of(a)}, expected a C- or F-contiguous array")
    if not cnp.PyArray_ISALIGNED(a):
        raise ValueError(f"{name}: misaligned memory, expected an address that is a multiple of {a.itemsize}")
    return 0


cdef void place(Item *item, cnp.ndarray w, cnp.ndarray v, int group) noexcept:
    """Fill in what stays of an item; its `shape` and `strides` already point to room for the axes."""
    cdef bint c_order = cnp.PyArray_IS_C_CONTIGUOUS(w)
    cdef int axis
    item.w = <char *>cnp.PyArray_DATA(w)
    item.v = <char *>cnp.PyArray_DATA(v)
    item.n = cnp.PyArray_SIZE(w)
    item.itemsize = <int>cnp.PyArray_ITEMSIZE(w)
    item.type_num = cnp.PyArray_TYPE(w)
    item.dtype = RMSFAST_FLOAT32 if item.type_num == cnp.NPY_FLOAT else RMSFAST_FLOAT64
    item.layout = cnp.NPY_ARRAY_ALIGNED | (cnp.NPY_ARRAY_C_CONTIGUOUS if c_order else cnp.NPY_ARRAY_F_CONTIGUOUS)
    item.group = group
    item.ndim = cnp.PyArray_NDIM(w)
    for axis in range(item.ndim):
        item.shape[axis] = cnp.PyArray_DIMS(w)[axis]


cdef inline bint same_dtype(const Item *item, cnp.ndarray a) noexcept:
    return cnp.PyArray_TYPE(a) == item.type_num and cnp.PyArray_ISNOTSWAPPED(a)


cdef inline bint same_shape(const Item *item, cnp.ndarray a) noexcept:
    cdef int axis
    if cnp.PyArray_NDIM(a) != item.ndim:
        return False
    for axis in range(item.ndim):
        if cnp.PyArray_DIMS(a)[axis] != item.shape[axis]:
            return False
    return True


cdef inline int check_unmoved(const Item *item, cnp.ndarray w, Line line, Py_ssize_t i) except -1:
    """Refuse a parameter that is no longer where and as it was when its item was made."""
    cdef int needed = item.layout | cnp.NPY_ARRAY_WRITEABLE
    if (cnp.PyArray_DATA(w) != <void *>item.w or not same_dtype(item, w) or not same_shape(item, w)
            or cnp.PyArray_FLAGS(w) & needed != needed):
        raise ValueError(f"{label(line, 'params', i)}: resized or changed after it was given to the optimizer: now "
                         f"{w.dtype} of shape {shape_of(w)}, expected the same memory, writable, as "
                         f"{dtype_name(item)} of shape {expected_shape(item)}")
    return 0


cdef str dtype_name(const Item *item):
    return "float32" if item.dtype == RMSFAST_FLOAT32 else "float64"


cdef tuple expected_shape(const Item *item):
    return tuple([item.shape[axis] for axis in range(item.ndim)])


cdef int aim(Item *item, cnp.ndarray g, const Span *spans, Py_ssize_t count, Line line, Py_ssize_t i) except -1:
    """Check a gradient against its parameter and all memory that the step writes; point the item to it.

    No Python code runs here, unless to raise: whatever was checked stays as it is until the step is done with it.
    """
    cdef size_t start = <size_t>cnp.PyArray_DATA(g), stop = start + item.itemsize
    cdef Py_ssize_t reach
    cdef int axis
    if not same_dtype(item, g):
        raise TypeError(f"{label(line, 'grads', i)}: dtype {g.dtype}, expected {dtype_name(item)}, as the parameter")
    if not same_shape(item, g):
        raise ValueError(f"{label(line, 'grads', i)}: shape {shape_of(g)}, expected {expected_shape(item)}")
    item.direct = True
    if item.n == 0:
        return 0
    item.direct = cnp.PyArray_FLAGS(g) & item.layout == item.layout
    if item.direct:
        stop = start + item.n * item.itemsize
    else:
        for axis in range(item.ndim):
            item.strides[axis] = cnp.PyArray_STRIDES(g)[axis]
            reach = item.strides[axis] * (item.shape[axis] - 1)
            if reach < 0:
                start += reach
            else:
                stop += reach
    if overlap(spans, count, start, stop) != NULL:
        refuse_shared(item, start, stop, spans, count, line, i)
    item.g = <const char *>cnp.PyArray_DATA(g)
    return 0


cdef const Span *overlap(const Span *spans, Py_ssize_t count, size_t start, size_t stop) noexcept:
    """The first of the sorted, disjoint spans that has a byte in [start, stop); NULL if none has."""
    cdef Py_ssize_t low = 0, high = count, i
    while low < high:       # the first span that stops after start
        i = (low + high) // 2
        if spans[i].stop > start:
            high = i
        else:
            low = i + 1
    return &spans[low] if low < count and spans[low].start < stop else NULL


cdef int refuse_shared(const Item *item, size_t start, size_t stop, const Span *spans, Py_ssize_t count, Line line,
                       Py_ssize_t i) except -1:
    """Raise if a gradient that reaches from start to stop shares memory with a span. One that merely strides over a
    span, such as a column of a table that holds a parameter in another column, does not."""
    cdef const Span *span = overlap(spans, count, start, stop)
    cdef size_t unseen = start
    while span != NULL:
        if item.direct or rmsfast_strides_into(span.start - start, span.stop - start, item.itemsize, item.ndim,
                                               item.shape, item.strides):
            raise ValueError(f"{label(line, 'grads', i)}: shares memory with {owner_of(line, span)}: pass a copy")
        unseen = span.stop
        span = overlap(spans, count, unseen, stop)
    return 0


# ---- The line of an optimizer, and its plan ----

cdef cnp.ndarray zeros_beside(cnp.ndarray w):
    """New zeros with w's dtype, shape and memory order, and its offset from a cache line."""
    cdef cnp.ndarray memory = np.zeros(cnp.PyArray_NBYTES(w) + CACHE_LINE, np.uint8)
    shift = (<size_t>cnp.PyArray_DATA(w) - <size_t>cnp.PyArray_DATA(memory)) % CACHE_LINE
    flat = memory[shift:shift + cnp.PyArray_NBYTES(w)].view(w.dtype)
    return flat.reshape(shape_of(w), order="C" if cnp.PyArray_IS_C_CONTIGUOUS(w) else "F")


@cython.final
cdef class Line:
    """The parameters of an optimizer in a row, group by group, with their state. A longer line takes the place of a
    shorter one; neither changes in length."""
    cdef readonly tuple groups
    cdef readonly tuple keys            # of the parameters: names, or else 0, 1, 2, …
    cdef readonly bint named
    cdef readonly bint single           # one array, given as itself
    cdef list params, square_avgs
    cdef Py_ssize_t count
    cdef Item *items
    cdef Py_ssize_t *axes               # room for the shape and strides of every item
    cdef Span *spans                    # of all memory that steps write, sorted
    cdef Py_ssize_t n_spans
    cdef rmsfast_settings *settings     # by group
    cdef bint gathers                   # this step has a gradient that does not lie as its parameter does
    cdef bint warm                      # a step has touched the state before

    def __cinit__(self, Line shorter, list groups, bint single):
        """Go on from a shorter line, or from None, with more groups; each has "params" and perhaps "param_names"."""
        cdef Py_ssize_t i, kept = 0 if shorter is None else shorter.count, room = 0
        cdef Py_ssize_t *axes
        cdef cnp.ndarray w
        self.single = single
        self.groups = tuple(groups) if shorter is None else shorter.groups + tuple(groups)
        self.params = [w for group in self.groups for w in group["params"]]
        self.count = len(self.params)
        self.name()
        for i in range(kept, self.count):
            check_updatable(label(self, "params", i), self.params[i])
        self.square_avgs = [] if shorter is None else list(shorter.square_avgs)
        self.square_avgs += [zeros_beside(w) for w in self.params[kept:]]
        for w in self.params:
            room += 2 * cnp.PyArray_NDIM(w)
        group_of = [g for g, group in enumerate(self.groups) for _ in group["params"]]

        self.settings = <rmsfast_settings *>calloc(len(self.groups), sizeof(rmsfast_settings))
        self.items = <Item *>calloc(self.count, sizeof(Item))
        self.axes = axes = <Py_ssize_t *>calloc(room, sizeof(Py_ssize_t))
        for i in range(self.count):
            w = self.params[i]
            self.items[i].shape = axes
            self.items[i].strides = axes + cnp.PyArray_NDIM(w)
            axes += 2 * cnp.PyArray_NDIM(w)
            place(&self.items[i], w, self.square_avgs[i], group_of[i])
            if i < kept:
                self.items[i].steps = shorter.items[i].steps
        self.lay_spans()

    def __dealloc__(self):
        PyMem_Free(self.items)
        PyMem_Free(self.axes)
        PyMem_Free(self.spans)
        PyMem_Free(self.settings)

    cdef int name(self) except -1:
        """Find the keys: names in all groups, or in none; a group without parameters does not matter."""
        groups = [group for group in self.groups if group["params"]]
        named = [group for group in groups if "param_names" in group]
        self.named = len(named) > 0
        self.keys = tuple([key for group in named for key in group["param_names"]] if named else range(self.count))
        if self.named and len(named) < len(groups):
            raise ValueError("params: names in some groups and none in others, expected them in all groups or in none")
        if len(set(self.keys)) < self.count:
            twice = next(key for key in self.keys if self.keys.count(key) > 1)
            raise ValueError(f"params[{twice!r}]: a name of two parameters, expected one name for each")
        return 0

    cdef int lay_spans(self) except -1:
        """Sort all memory that steps write, and refuse parameters that share some."""
        cdef Py_ssize_t i, nbytes
        found = []
        for i in range(self.count):
            nbytes = self.items[i].n * self.items[i].itemsize
            if nbytes > 0:
                found.append((<size_t>self.items[i].w, 2 * i, nbytes))
                found.append((<size_t>self.items[i].v, 2 * i + 1, nbytes))
        found.sort()
        self.spans = <Span *>calloc(len(found), sizeof(Span))
        self.n_spans = len(found)
        for i, (start, owner, nbytes) in enumerate(found):
            self.spans[i] = Span(start, <size_t>start + nbytes, owner)
            if i > 0 and self.spans[i - 1].stop > self.spans[i].start:
                first, second = sorted([self.spans[i - 1].owner, self.spans[i].owner])
                raise ValueError(f"{label(self, 'params', second // 2)}: shares memory with "
                                 f"{label(self, 'params', first // 2)}, expected each parameter once")
        return 0

    cdef bint collect(self, grads) except -1:
        """Take a reference to every gradient. False if `grads` has an uncommon form.

        Looking up a name may run Python code: nothing is read from any array here.
        """
        cdef PyObject *g = <PyObject *>grads
        cdef PyObject **given = &g
        cdef Py_ssize_t i, found = 0
        if PyDict_CheckExact(grads) and self.named:
            for i in range(self.count):
                g = PyDict_GetItemWithError(grads, self.keys[i])
                if g != NULL:
                    found += 1
                    if not self.keep(i, g):
                        return False
            return found == PyDict_Size(grads)
        if PyList_CheckExact(grads) or PyTuple_CheckExact(grads):
            if PySequence_Fast_GET_SIZE(<PyObject *>grads) != self.count:
                return False
            given = PySequence_Fast_ITEMS(<PyObject *>grads)
        elif not self.single or not is_exact_array(g):
            return False
        for i in range(self.count):
            if not self.keep(i, given[i]):
                return False
        return True

    cdef inline bint keep(self, Py_ssize_t i, PyObject *g) noexcept:
        """Keep one gradient, unless it is None. False if it is no ndarray, or one of a subclass."""
        if g != <PyObject *>None:
            if not is_exact_array(g):
                return False
            Py_INCREF(<object>g)
            self.items[i].grad = g
        return True

    cdef int verify(self) except -1:
        """Check every parameter and the gradients collected, and point the items to these.

        No Python code runs here, unless to raise: what was checked stays as it is until the step is done with it.
        """
        cdef Py_ssize_t i
        cdef size_t end = 0
        cdef Item *item
        for i in range(self.count):     # first, since the spans are right only if no parameter moved
            check_unmoved(&self.items[i], <cnp.ndarray>PyList_GET_ITEM(self.params, i), self, i)
        self.gathers = False
        for i in range(self.count):
            item = &self.items[i]
            item.g = NULL
            if item.grad != NULL:
                aim(item, <cnp.ndarray>item.grad, self.spans, self.n_spans, self, i)
                self.gathers |= not item.direct
                end += item.n * item.itemsize
            item.end = end
        return 0

    cdef void let_go(self) noexcept:
        """Drop the references to the gradients."""
        cdef Py_ssize_t i
        cdef PyObject *g
        for i in range(self.count):
            g = self.items[i].grad
            if g != NULL:
                self.items[i].grad = NULL
                Py_DECREF(<object>g)

    cdef void count_step(self) noexcept:
        """Count this step for each parameter that has a gradient."""
        cdef Py_ssize_t i
        for i in range(self.count):
            self.items[i].steps += self.items[i].grad != NULL

    cdef Py_ssize_t most_steps(self) noexcept:
        """The largest step count of all parameters."""
        cdef Py_ssize_t i, most = 0
        for i in range(self.count):
            most = max(most, self.items[i].steps)
        return most

    cdef int apply(self, rule) except -1:
        """Let a Python function do what the kernel does: rule(w, v, g, lr, beta, eps) on flat views."""
        cdef Py_ssize_t i
        cdef const rmsfast_settings *s
        for i in range(self.count):
            if self.items[i].grad != NULL:
                s = &self.settings[self.items[i].group]
                arrays = self.params[i], self.square_avgs[i], <object>self.items[i].grad
                rule(*in_memory_order(&self.items[i], arrays), s.lr, s.beta, s.eps)
        return 0


cdef void *calloc(Py_ssize_t count, size_t size) except NULL:
    """Zeroed memory for `PyMem_Free`."""
    cdef void *memory = PyMem_Calloc(count, size)
    if memory == NULL:
        raise MemoryError(f"no memory for {count} × {size} bytes")
    return memory


cdef list in_memory_order(const Item *item, tuple arrays):
    """Flat views of arrays, with the elements in the order in which the item's lie in memory; a copy where needed."""
    order = "C" if item.layout & cnp.NPY_ARRAY_C_CONTIGUOUS else "F"
    return [np.asarray(a).reshape(-1, order=order) for a in arrays]


@cython.final
cdef class Flag:
    """Raised by a parameter group whose settings changed, lowered by the plan that reads them."""
    cdef public bint up


@cython.final
cdef class Plan:
    """Everything about an optimizer's steps that is known beforehand, and the step itself, one call at a time.

    Parameters
    ----------
    changed : Flag
        Raised whenever the settings have to be read again.
    read_settings : callable
        Called with the groups and the number of steps taken so far. Returns a bool, whether to ask again at every step,
        and for each group a tuple of floats (lr, beta, eps).
    num_threads : int or None
        None follows `get_num_threads`.
    rule : callable or None
        A Python function in the kernel's place: rule(w, v, g, lr, beta, eps), on flat views.
    """
    cdef PyThread_type_lock lock
    cdef bint busy
    cdef unsigned long owner            # while busy: the thread that holds the lock
    cdef readonly Line line
    cdef readonly Py_ssize_t steps      # taken, whichever parameters had gradients
    cdef Flag changed
    cdef bint scheduled
    cdef object read_settings
    cdef object rule
    cdef int wanted_threads

    def __cinit__(self, Flag changed not None, read_settings, num_threads, rule):
        self.wanted_threads = as_threads(num_threads)
        self.changed = changed
        self.read_settings = read_settings
        self.rule = rule
        self.line = Line(None, [], False)
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError("no memory for a lock")

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef int acquire(self) except -1:
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            if self.busy and self.owner == PyThread_get_thread_ident():
                raise RuntimeError("the optimizer was called from inside one of its own calls")
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
        self.owner = PyThread_get_thread_ident()
        self.busy = True
        return 0

    cdef void release(self) noexcept:
        self.busy = False
        PyThread_release_lock(self.lock)

    def add_groups(self, list groups, bint single):
        """Take more groups with state of zeros for their parameters, or raise and change nothing."""
        self.acquire()
        try:
            self.line = Line(self.line, groups, single)
            self.changed.up = True
        finally:
            self.release()

    def step(self, grads):
        """Take one step, or raise and change nothing.

        Returns False, with nothing done, if `grads` is not in the common form: a list or tuple with an ndarray (of no
        subclass) or None for each parameter, a dict of such by name, or the ndarray of a single parameter.
        """
        cdef int most = most_threads(self.wanted_threads)
        cdef Line line
        self.acquire()
        line = self.line
        try:
            if not line.collect(grads):
                return False
            line.verify()
            if self.changed.up or self.scheduled:
                self.refresh()
                line.verify()       # again, because Python code ran
            if self.rule is None:
                run(line.items, line.count, line.settings, most, line.warm and not line.gathers)
                line.warm = True
            else:
                line.apply(self.rule)
            line.count_step()
            self.steps += 1
            return True
        finally:
            line.let_go()
            self.release()

    cdef int refresh(self) except -1:
        """Read the settings of all groups, or raise and keep those from before."""
        cdef Py_ssize_t i
        cdef double lr, beta, eps
        self.changed.up = False
        try:
            self.scheduled, settings = self.read_settings(self.line.groups, self.steps)
            for i, (lr, beta, eps) in enumerate(settings):
                self.line.settings[i] = rmsfast_settings(lr, beta, eps)
        except BaseException:
            self.changed.up = True
            raise
        return 0

    @property
    def num_threads(self):
        return self.wanted_threads or None

    def state(self):
        """Return the line, and the key, step count and square average of each of its parameters.

        The square averages are views: what is done to such an array, but for its elements, does nothing to ours.
        """
        cdef Line line = self.line
        return line, [(line.keys[i], line.items[i].steps, line.square_avgs[i].view()) for i in range(line.count)]

    def snapshot(self):
        """Return what `state` returns with copies of the square averages, and the steps taken, all as of one moment."""
        self.acquire()
        try:
            line, entries = self.state()
            return line, [(key, steps, v.copy(order="K")) for key, steps, v in entries], self.steps
        finally:
            self.release()

    def restore(self, Line line not None, list steps, list square_avgs, list settings, steps_taken):
        """Take over what was checked against a line: step counts, square averages, perhaps this optimizer's own, each
        group's settings, and the number of steps taken, or None for the largest step count."""
        cdef Py_ssize_t i
        self.acquire()
        try:
            for i in range(line.count):
                start, stop = np.lib.array_utils.byte_bounds(square_avgs[i])
                if overlap(line.spans, line.n_spans, start, stop) != NULL:
                    square_avgs[i] = square_avgs[i].copy()
            for i in range(line.count):
                self.line.items[i].steps = steps[i]
                self.line.square_avgs[i][...] = square_avgs[i]
            for group, values in zip(line.groups, settings):
                group.update(values)
            self.steps = self.line.most_steps() if steps_taken is None else steps_taken
        finally:
            self.release()


# ---- One array, with the user's own state ----

def update(cnp.ndarray w not None, cnp.ndarray v not None, cnp.ndarray g not None,
           double lr, double beta, double eps, num_threads=None, rule=None):
    """Update w and v in place. A `rule` takes the kernel's place. See `rmsfast.rmsprop_update`."""
    cdef Item item
    cdef Span spans[2]
    cdef Py_ssize_t axes[2 * 64]        # NumPy's arrays have at most 64 axes
    cdef rmsfast_settings settings = rmsfast_settings(lr, beta, eps)
    cdef int most = most_threads(as_threads(num_threads))
    check_updatable("w", w)
    check_updatable("v", v)
    item.shape = axes
    item.strides = axes + 64
    place(&item, w, v, 0)
    if not same_dtype(&item, v):
        raise TypeError(f"v: dtype {v.dtype}, expected {dtype_name(&item)}, as w")
    if not same_shape(&item, v):
        raise ValueError(f"v: shape {shape_of(v)}, expected {shape_of(w)}, as w")
    if cnp.PyArray_FLAGS(v) & item.layout != item.layout:
        raise ValueError("v: memory order differs, expected that of w: both arrays in C order, or both in Fortran order")

    cdef size_t nbytes = item.n * item.itemsize
    cdef bint w_first = item.w < item.v
    spans[0 if w_first else 1] = Span(<size_t>item.w, <size_t>item.w + nbytes, 0)
    spans[1 if w_first else 0] = Span(<size_t>item.v, <size_t>item.v + nbytes, 1)
    if spans[0].stop > spans[1].start and nbytes > 0:
        raise ValueError("v: shares memory with w, expected memory of its own")
    item.g = NULL
    aim(&item, g, spans, 2, None, 0)
    item.end = nbytes
    if rule is None:
        run(&item, 1, &settings, most, item.direct)
    else:
        rule(*in_memory_order(&item, (w, v, g)), lr, beta, eps)
