"""The plan of steps on tensors: their groups, parameters and state belong to a `torch.optim.Optimizer`.

Any Python code may change those between two steps. So each step looks at all of them: whether the dicts still hold
what they held, and whether each tensor still is where and as it was. PyTorch shows a tensor's memory through DLPack's
exchange API, from 2.10 on, in some 20 ns; before, through its methods.
"""

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from rmsfast._kernel cimport (
    GRAD_AVG, ITEM_COST, MOMENTUM_BUFFER, RMSFAST_FLOAT32, RMSFAST_FLOAT64, STATE_ARRAYS, Gradient, Item, Lock, Record,
    Span, SummedRows, Work, as_struct, as_threads, most_threads, overlap, put, rmsfast_settings, run,
)


cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(object list, Py_ssize_t i)
    Py_ssize_t PyList_GET_SIZE(object list)
    PyObject *PyTuple_GET_ITEM(object tuple, Py_ssize_t i)
    PyObject *type_of "Py_TYPE"(PyObject *)

cdef extern from *:
    """
    static PyObject *rmsfast_get_through(PyObject *descriptor, PyObject *instance) {
        return Py_TYPE(descriptor)->tp_descr_get(descriptor, instance, (PyObject *)Py_TYPE(instance));
    }
    """
    object get_through "rmsfast_get_through"(object descriptor, PyObject *instance)


# ---- Looking at a tensor ----

cdef extern from *:
    """
    /* DLPack 1.3: what a tensor shows of itself, and the functions of a framework, as far as they matter here. */
    typedef struct {
        void *data;
        int32_t device_type, device_id;
        int32_t ndim;
        uint8_t code, bits;
        uint16_t lanes;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } rmsfast_tensor;
    typedef struct {
        uint32_t major, minor;
        void *older;
        void *allocate, *export_tensor, *import_tensor;
        int (*look)(void *, rmsfast_tensor *);
    } rmsfast_exchange;
    """
    ctypedef struct rmsfast_tensor:
        void *data
        int32_t device_type
        int32_t ndim
        uint8_t code
        uint8_t bits
        uint16_t lanes
        int64_t *shape
        int64_t *strides    # in elements
        uint64_t byte_offset
    ctypedef struct rmsfast_exchange:
        uint32_t major
        int (*look)(void *, rmsfast_tensor *)

cdef enum:
    DLPACK_MAJOR = 1
    ON_CPU = 1
    FLOAT = 2
    COMPLEX = 5
    MOST_AXES = 64

cdef double MOST_STEPS = 2.0**53

cdef const rmsfast_exchange *exchange = NULL
cdef PyObject *tensor_type = NULL
cdef dict dtypes = {}       # without the exchange API: DLPack's code and bits of a torch.dtype
cdef object increment_version = None
cdef object grad_getter = None      # the descriptor of `tensor.grad`


def set_up(tensor, dict known_dtypes, increment):
    """Meet a framework: its type of tensors, DLPack's code and bits of its dtypes, and a function that raises the
    version counters of a sequence of tensors. Returns whether tensors show themselves through the exchange API."""
    global tensor_type, dtypes, exchange, increment_version, grad_getter
    tensor_type = <PyObject *>tensor
    Py_INCREF(tensor)
    dtypes = known_dtypes
    increment_version = increment
    grad_getter = tensor.grad
    exchange = NULL
    capsule = getattr(tensor, "__dlpack_c_exchange_api__", None)
    if capsule is not None:
        exchange = <const rmsfast_exchange *>PyCapsule_GetPointer(capsule, "dlpack_exchange_api")
        if exchange.major != DLPACK_MAJOR or exchange.look == NULL:
            exchange = NULL
    return exchange != NULL


def check_num_threads(value):
    """Raise unless `value` is a number of threads that steps can have, or None."""
    as_threads(value)


def _forget_exchange():
    """Look at tensors through their methods from now on. For tests."""
    global exchange
    exchange = NULL


cdef struct View:
    rmsfast_tensor shown
    int64_t room[2 * MOST_AXES]     # for shape and strides that come through methods


cdef bint look(PyObject *tensor, View *view) noexcept:
    """See a tensor as it is now. False if it has no strided memory."""
    cdef rmsfast_tensor *shown = &view.shown
    if exchange == NULL:
        try:
            ask(<object>tensor, view)
        except Exception:
            return False
    elif exchange.look(tensor, shown) != 0:
        PyErr_Clear()
        return False
    shown.data = <char *>shown.data + shown.byte_offset
    return shown.lanes == 1 and shown.ndim <= MOST_AXES


cdef int ask(tensor, View *view) except -1:
    """The same through the methods of a tensor."""
    cdef rmsfast_tensor *shown = &view.shown
    cdef int axis
    shape, strides = tuple(tensor.shape), tensor.stride()
    shown.data = <void *><size_t>tensor.data_ptr()
    shown.byte_offset = 0
    shown.device_type = ON_CPU if tensor.device.type == "cpu" else 0
    shown.lanes = 1
    shown.code, shown.bits = dtypes[tensor.dtype]
    shown.ndim = len(shape)
    shown.shape = view.room
    shown.strides = view.room + MOST_AXES
    for axis in range(shown.ndim):
        shown.shape[axis] = shape[axis]
        shown.strides[axis] = strides[axis]
    return 0


cdef inline Py_ssize_t size_of(const rmsfast_tensor *shown) noexcept:
    cdef Py_ssize_t size = 1
    cdef int axis
    for axis in range(shown.ndim):
        size *= shown.shape[axis]
    return size


cdef int dense_order(const rmsfast_tensor *shown, int *axes) noexcept:
    """Find the order of axes in which a tensor's elements lie one after another. False if there is none."""
    cdef int i, k, axis
    cdef int64_t expected = 1
    for i in range(shown.ndim):     # insertion by falling stride; an axis of length 1 may be anywhere
        axis = i
        k = i
        while k > 0 and (shown.strides[axes[k - 1]] < shown.strides[axis]
                         or (shown.strides[axes[k - 1]] == shown.strides[axis] and shown.shape[axes[k - 1]] == 1)):
            axes[k] = axes[k - 1]
            k -= 1
        axes[k] = axis
    for i in range(shown.ndim - 1, -1, -1):
        if shown.shape[axes[i]] != 1:
            if shown.strides[axes[i]] != expected:
                return size_of(shown) == 0
            expected *= shown.shape[axes[i]]
    return True


def memory_of(tensor):
    """Return where the elements of a tensor begin and end, if the kernel can update them: float32, float64, complex64
    or complex128 on the CPU, one after another in some order of the axes. None otherwise."""
    cdef View view
    cdef int axes[MOST_AXES]
    cdef Py_ssize_t size
    if not look(<PyObject *>tensor, &view) or view.shown.device_type != ON_CPU or not is_real(&view.shown):
        return None
    size = size_of(&view.shown)
    if not dense_order(&view.shown, axes) or (size > 0 and view.shown.data == NULL):
        return None
    return <size_t>view.shown.data, <size_t>view.shown.data + size * view.shown.bits // 8


cdef inline bint is_real(const rmsfast_tensor *shown) noexcept:
    """Whether elements are made of float32 or float64."""
    return (shown.code == FLOAT and shown.bits in (32, 64)) or (shown.code == COMPLEX and shown.bits in (64, 128))


# ---- What is remembered, to be compared ----

@cython.final
cdef class Seen:
    """What a dict held when it was seen."""
    cdef object mapping
    cdef tuple pairs

    def __cinit__(self, mapping):
        if not isinstance(mapping, dict):
            raise TypeError(f"{type(mapping).__name__}, expected a dict")
        self.mapping = mapping
        self.pairs = tuple([each for pair in mapping.items() for each in pair])

    cdef bint holds(self) noexcept:
        """Whether it still has the same objects, in the same order."""
        cdef PyObject *key
        cdef PyObject *value
        cdef Py_ssize_t place = 0, k = 0
        if 2 * PyDict_Size(self.mapping) != len(self.pairs):
            return False
        while PyDict_Next(self.mapping, &place, &key, &value):
            if key != PyTuple_GET_ITEM(self.pairs, k) or value != PyTuple_GET_ITEM(self.pairs, k + 1):
                return False
            k += 2
        return True


cdef enum:
    STEP = STATE_ARRAYS     # among the tensors of a parameter, after its state arrays; the parameter comes last
    PARAM
    TENSORS

cdef enum Kind:
    IDLE        # has had no gradient yet, and has no state
    OURS        # updated by the kernel
    OTHER       # updated by someone else, and never looked at here

cdef struct Native:
    # What is known of one parameter.
    Kind kind
    PyObject *tensors[TENSORS]  # NULL where there is none; the plan's `kept` has the references
    char *data[TENSORS]         # where they were
    bint has_step64             # the step count is a float64, not a float32
    int code
    int bits
    Py_ssize_t *shape           # in the framework's order of axes
    Py_ssize_t *strides         # in elements
    Py_ssize_t *order           # of the axes, along which the elements lie


cdef inline bint same_strides(const Native *native, const rmsfast_tensor *shown) noexcept:
    cdef int axis
    for axis in range(shown.ndim):
        if shown.shape[axis] != 1 and shown.strides[axis] != native.strides[axis]:
            return False
    return True


cdef inline bint same_form(const Native *native, int ndim, const rmsfast_tensor *shown) noexcept:
    """Whether a tensor has the parameter's device, dtype and shape."""
    cdef int axis
    if shown.device_type != ON_CPU or shown.ndim != ndim or shown.code != native.code or shown.bits != native.bits:
        return False
    for axis in range(ndim):
        if shown.shape[axis] != native.shape[axis]:
            return False
    return True


cdef bint is_unmoved(const Native *native, int ndim, int k) noexcept:
    """Whether a tensor of a parameter is where and as it was when the plan was made."""
    cdef View view
    if not look(native.tensors[k], &view) or view.shown.data != native.data[k]:
        return False
    if k == STEP:
        return is_count(&view.shown) and view.shown.bits == (64 if native.has_step64 else 32)
    return same_form(native, ndim, &view.shown) and same_strides(native, &view.shown)


cdef inline bint is_count(const rmsfast_tensor *shown) noexcept:
    return shown.device_type == ON_CPU and shown.code == FLOAT and shown.bits in (32, 64) and size_of(shown) == 1


def is_step(tensor):
    """Return whether a tensor can count steps here: one float32 or float64 on the CPU."""
    cdef View view
    return look(<PyObject *>tensor, &view) and is_count(&view.shown) and view.shown.data != NULL


# ---- The plan ----

cdef void *calloc(Py_ssize_t count, size_t size) except NULL:
    """Zeroed memory for `PyMem_Free`."""
    cdef void *memory = PyMem_Calloc(count, size)
    if memory == NULL:
        raise MemoryError(f"no memory for {count} × {size} bytes")
    return memory


@cython.final
cdef class TensorPlan:
    """Steps on the tensors of an optimizer, for as long as it has the same ones.

    Parameters
    ----------
    lock : Lock
        The optimizer's.
    groups : list of dict
        Its `param_groups`.
    state : dict
        Its `state`.
    natives : list
        For each parameter of each group: a tuple of plain tensors, square_avg, grad_avg, momentum_buffer (None where
        there is none), step and the parameter, all but step with one layout, in memory of their own; None where it has
        no state yet; False where it is not for the kernel.
    read_settings : callable
        Returns, from a group, a dict of the kernel's settings, and whether they may change without the group showing
        it.
    """
    cdef Lock lock
    cdef list groups
    cdef list lists             # of each group, its list of parameters, …
    cdef list seen              # … what its dict held, …
    cdef list volatile          # … and whether to read it at every step
    cdef object read_settings
    cdef object state
    cdef Seen seen_state
    cdef list seen_states       # of each parameter of ours, what its state held
    cdef tuple params
    cdef list kept
    cdef Py_ssize_t count
    cdef Native *natives
    cdef Item *items
    cdef Record *records
    cdef Work *work
    cdef rmsfast_settings *settings
    cdef Span *spans            # of the memory that steps write, sorted
    cdef Py_ssize_t n_spans
    cdef Py_ssize_t *axes       # room for what has an entry for each axis
    cdef tuple ours             # the parameters that the kernel updates
    cdef bint all_active        # all of them have a gradient in this step, …
    cdef bint plain             # … which lies as its parameter does
    cdef bint warm              # a step has touched the state before

    def __cinit__(self, Lock lock not None, list groups not None, state, list natives not None, read_settings):
        cdef Py_ssize_t i
        cdef Py_ssize_t *axes
        self.lock = lock
        self.groups = groups
        self.lists = [group["params"] for group in groups]
        self.seen = [None] * len(groups)
        self.volatile = [False] * len(groups)
        self.read_settings = read_settings
        self.state = state
        self.seen_state = Seen(state)
        self.params = tuple([p for params in self.lists for p in params])
        self.kept = natives
        self.count = len(self.params)
        group_of = [g for g, params in enumerate(self.lists) for _ in params]

        self.natives = <Native *>calloc(self.count, sizeof(Native))
        self.items = <Item *>calloc(self.count, sizeof(Item))
        self.records = <Record *>calloc(self.count, sizeof(Record))
        self.work = <Work *>calloc(1, sizeof(Work))
        self.settings = <rmsfast_settings *>calloc(len(groups), sizeof(rmsfast_settings))
        self.spans = <Span *>calloc(self.count * TENSORS, sizeof(Span))
        ndims = [tensors[PARAM].dim() if tensors else 0 for tensors in natives]
        axes = <Py_ssize_t *>calloc(5 * sum(ndims), sizeof(Py_ssize_t))
        self.axes = axes
        self.seen_states = []
        spans = []
        for i, tensors in enumerate(natives):
            self.natives[i].kind = IDLE if tensors is None else OURS if tensors else OTHER
            self.seen_states.append(Seen(state[self.params[i]]) if tensors else None)
            if tensors:
                self.items[i].group = group_of[i]
                self.describe(&self.natives[i], &self.items[i], tensors, axes, ndims[i])
                axes += 5 * <Py_ssize_t>ndims[i]
                spans += [memory_of(tensor) for k, tensor in enumerate(tensors) if k != STEP and tensor is not None]
        for start, stop in sorted(spans):
            if stop > start:
                self.spans[self.n_spans] = Span(start, stop, 0)
                self.n_spans += 1
        self.ours = tuple([p for p, tensors in zip(self.params, natives) if tensors])

    def __dealloc__(self):
        PyMem_Free(self.natives)
        PyMem_Free(self.items)
        PyMem_Free(self.records)
        PyMem_Free(self.work)
        PyMem_Free(self.settings)
        PyMem_Free(self.spans)
        PyMem_Free(self.axes)

    cdef int describe(self, Native *native, Item *item, tuple tensors, Py_ssize_t *axes, int ndim) except -1:
        """Fill in what stays of a parameter that the kernel updates."""
        cdef View view
        cdef rmsfast_tensor *shown = &view.shown
        cdef int order[MOST_AXES]
        cdef int k, axis
        for k in range(TENSORS):        # the parameter comes last, and is what `shown` shows from there on
            if tensors[k] is None:
                continue
            look(<PyObject *>tensors[k], &view)
            native.tensors[k] = <PyObject *>tensors[k]
            native.data[k] = <char *>shown.data
            if k == STEP:
                native.has_step64 = shown.bits == 64
        native.code = shown.code
        native.bits = shown.bits
        native.shape, native.strides, native.order = axes, axes + ndim, axes + 2 * ndim
        item.shape, item.strides = axes + 3 * ndim, axes + 4 * ndim
        dense_order(shown, order)
        for axis in range(ndim):
            native.shape[axis] = shown.shape[axis]
            native.strides[axis] = shown.strides[axis]
            native.order[axis] = order[axis]
            item.shape[axis] = shown.shape[order[axis]]
        item.w = native.data[PARAM]
        for k in range(STATE_ARRAYS):
            item.state[k] = native.data[k]
        item.ndim = ndim
        item.n = size_of(shown)
        item.row = item.n // item.shape[0] if item.n > 0 and ndim > 0 else item.n
        item.itemsize = shown.bits // 8
        item.reals = 2 if shown.code == COMPLEX else 1
        item.dtype = RMSFAST_FLOAT32 if item.itemsize == 4 * item.reals else RMSFAST_FLOAT64
        item.layout = cnp.NPY_ARRAY_C_CONTIGUOUS
        return 0

    def step(self, list groups not None, state, int threads, list grads=None):
        """Take one step on the optimizer's groups and state, or return False with nothing done: something is not as it
        was when the plan was made, or a gradient is unusual.

        `grads` has, for each parameter, a tensor with strided memory, a `SummedRows` or None. Without it, each
        parameter's own `grad` is taken.
        """
        cdef int most = most_threads(threads)
        cdef Work work
        if groups is not self.groups or state is not self.state:
            return False
        if self.lock.acquire():
            self.let_go()       # of a step that a fork cut off
        try:
            if not self.collect(grads) or not self.refresh() or not self.verify():
                return False
            memset(&work, 0, sizeof(work))
            work.items = self.items
            work.records = self.records
            work.count = self.count
            work.settings = self.settings
            work.grad_scale = 1
            work.shrink = 1
            put(self.work, &work, sizeof(work))
            run(self.work, most, self.warm and self.plain)
            self.warm = True
            self.count_step()
            if self.all_active:
                increment_version(self.ours)
            else:
                increment_version([p for i, p in enumerate(self.params) if self.records[i].grad != NULL])
            return True
        finally:
            self.let_go()
            self.lock.release()

    cdef bint collect(self, list grads) except -1:
        """Take a reference to every gradient of ours. False if one is unusual, or a parameter has its first.

        Python code may run here: nothing is looked at yet.
        """
        cdef Py_ssize_t i
        cdef Kind kind
        cdef object grad
        if grads is not None and len(grads) != self.count:
            return False
        for i in range(self.count):
            kind = self.natives[i].kind
            if kind == OTHER:
                continue
            if grads is None:
                grad = get_through(grad_getter, PyTuple_GET_ITEM(self.params, i))
            else:
                grad = <object>PyList_GET_ITEM(grads, i)
            if grad is None:
                continue
            if kind == IDLE or (type_of(<PyObject *>grad) != tensor_type and type(grad) is not SummedRows):
                return False
            Py_INCREF(grad)
            self.records[i].grad = <PyObject *>grad
        return True

    cdef bint refresh(self) except -1:
        """Read the settings of the groups that changed. False if they have other parameters now."""
        cdef Py_ssize_t g
        cdef Seen seen
        for g in range(len(self.seen)):
            seen = <Seen>self.seen[g]
            if seen is not None and seen.holds() and not self.volatile[g]:
                continue
            group = self.groups[g] if g < len(self.groups) else None
            if group is None or group.get("params") is not self.lists[g]:
                return False
            seen = Seen(group)
            settings, self.volatile[g] = self.read_settings(group)
            self.settings[g] = as_struct(settings)
            self.seen[g] = seen
        return True

    cdef bint verify(self) except -1:
        """Look at everything, and point the items to the gradients. False if something is not as it was.

        No Python code runs here: what was looked at stays as it is until the step is done with it.
        """
        cdef Py_ssize_t i = 0, g, k
        cdef size_t end = 0
        cdef PyObject *params
        cdef Gradient found
        cdef Native *native
        if PyList_GET_SIZE(self.groups) != len(self.seen):
            return False
        for g in range(len(self.seen)):
            if PyList_GET_ITEM(self.groups, g) != <PyObject *>(<Seen>self.seen[g]).mapping:
                return False
            params = PyList_GET_ITEM(self.lists, g)
            for k in range(PyList_GET_SIZE(<object>params)):
                if i == self.count or PyList_GET_ITEM(<object>params, k) != PyTuple_GET_ITEM(self.params, i):
                    return False
                i += 1
        if i != self.count or not self.seen_state.holds():
            return False
        self.plain = self.all_active = True
        for i in range(self.count):
            memset(&found, 0, sizeof(found))
            native = &self.natives[i]
            if self.records[i].grad != NULL:
                if not (<Seen>PyList_GET_ITEM(self.seen_states, i)).holds() or not self.aim(i, &found):
                    return False
                self.plain &= found.direct
                end += found.active * self.items[i].itemsize + ITEM_COST
            elif native.kind == OURS:
                self.all_active = False
            found.end = end
            put(&self.items[i].gradient, &found, sizeof(found))
        return True

    cdef bint aim(self, Py_ssize_t i, Gradient *found) except -1:
        """Check a parameter, its state and its gradient, and note where this was found."""
        cdef Native *native = &self.natives[i]
        cdef Item *item = &self.items[i]
        cdef const rmsfast_settings *s = &self.settings[item.group]
        cdef PyObject *grad = self.records[i].grad
        cdef int k
        if ((s.centered and native.tensors[GRAD_AVG] == NULL)
                or (s.momentum != 0 and native.tensors[MOMENTUM_BUFFER] == NULL)):
            return False
        for k in range(TENSORS):
            if native.tensors[k] != NULL and not is_unmoved(native, item.ndim, k):
                return False
        if s.bias_correction:
            self.records[i].steps = steps_of(native)
        found.clip_factor = 1
        if type_of(grad) == tensor_type:
            return self.aim_at_tensor(native, item, grad, found)
        return aim_at_rows(item, <SummedRows>grad, found)

    cdef bint aim_at_tensor(self, const Native *native, const Item *item, PyObject *grad, Gradient *found) except -1:
        cdef View view
        cdef rmsfast_tensor *shown = &view.shown
        cdef size_t start, stop
        cdef int axis
        if not look(grad, &view) or not same_form(native, item.ndim, shown):
            return False
        found.active = item.n
        found.direct = item.n == 0 or same_strides(native, shown)
        if item.n == 0:
            return True
        found.g = <char *>shown.data
        if found.g == NULL:
            return False
        # A view may stand for its conjugate or its negative. Of real numbers, a dense one of several never does.
        if (not found.direct or item.reals == 2 or item.n == 1) and is_lazy(<object>grad):
            return False
        if found.direct and item.gradient.direct and found.g == item.gradient.g:
            return True     # the memory that the step before took, and checked
        start = stop = <size_t>found.g
        for axis in range(item.ndim):   # a tensor has no negative strides
            stop += (shown.shape[axis] - 1) * shown.strides[axis] * item.itemsize
        if overlap(self.spans, self.n_spans, start, stop + item.itemsize) != NULL:
            return False
        if not found.direct:
            for axis in range(item.ndim):
                item.strides[axis] = shown.strides[native.order[axis]] * item.itemsize
        return True

    cdef void count_step(self) noexcept:
        """Count this step for each parameter that has a gradient."""
        cdef Py_ssize_t i
        cdef Native *native
        for i in range(self.count):
            native = &self.natives[i]
            if self.records[i].grad == NULL:
                continue
            if native.has_step64:
                (<double *>native.data[STEP])[0] += 1
            else:
                (<float *>native.data[STEP])[0] += 1

    cdef void let_go(self) noexcept:
        """Drop the references to the gradients."""
        cdef Py_ssize_t i
        cdef PyObject *grad
        for i in range(self.count):
            grad = self.records[i].grad
            if grad != NULL:
                self.records[i].grad = NULL
                Py_DECREF(<object>grad)


cdef inline Py_ssize_t steps_of(const Native *native) noexcept:
    """The step count that a tensor holds; 0 if it is no count."""
    cdef double steps = (<double *>native.data[STEP])[0] if native.has_step64 else (<float *>native.data[STEP])[0]
    return <Py_ssize_t>steps if 0 <= steps <= MOST_STEPS else 0


cdef bint is_lazy(grad) except -1:
    return grad.is_conj() or grad.is_neg()


cdef bint aim_at_rows(const Item *item, SummedRows rows, Gradient *found) noexcept:
    """As `aim_at_tensor`. The rows were checked when they were summed; False if not for a parameter like this."""
    if rows.limit != item.shape[0] or cnp.PyArray_SIZE(rows.rows) != cnp.PyArray_DIMS(rows.rows)[0] * item.row:
        return False
    found.rows = <const Py_ssize_t *>cnp.PyArray_DATA(rows.indices)
    found.row_grads = rows.grads
    found.active = rows.count * item.row
    if found.active > 0:
        found.g = <char *>rows.grads[0]
    return True
