"""The front for PyTorch: where tensors lie, and who keeps them alive. Groups, parameters and state belong to a
`torch.optim.Optimizer`.

Any Python code may change those between two steps. So each step looks at all of them: whether the dicts still hold what
they held, and whether each tensor still is where and as it was. PyTorch shows a tensor's memory through DLPack's
exchange API, from 2.10 on, in some 20 ns; before, through its methods.
"""

cimport cython
from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from rmsfast._core.kernel cimport (
    EMA, GRAD_AVG, MOMENTUM_BUFFER, REMAINDER, RMSFAST_PROPAGATE, RMSFAST_RAISE, RMSFAST_SKIP, SCALES, SQUARE_AVG,
    STATE_ARRAYS,
)
from rmsfast._core.memory cimport (
    ALIGNED, BFLOAT16, COMPLEX64, COMPLEX128, FLOAT16, FLOAT32, FLOAT64, INT16, MOST_AXES, OTHER, UINT8, WRITABLE, Memory,
    is_dense, is_half, itemsize_of, reals_of, size_of,
)
from rmsfast._core.plan cimport FINE, OWNERS, Plan, as_struct, calloc, keep, refuse_nonfinite
from rmsfast._core.rows cimport SummedRows
from rmsfast._core.threads cimport Lock, most_threads


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
    INT = 0
    UINT = 1
    FLOAT = 2
    BFLOAT = 4
    COMPLEX = 5

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
        if exchange.major != DLPACK_MAJOR or exchange.look == NULL or sizeof(Py_ssize_t) != sizeof(int64_t):
            exchange = NULL
    return exchange != NULL


def _forget_exchange():
    """Look at tensors through their methods from now on. For tests."""
    global exchange
    exchange = NULL


cdef struct Room:
    # For shapes and strides that come through methods.
    Py_ssize_t shape[MOST_AXES]
    Py_ssize_t strides[MOST_AXES]


cdef inline int format_of(int code, int bits) noexcept:
    if code == FLOAT:
        return FLOAT32 if bits == 32 else FLOAT64 if bits == 64 else FLOAT16 if bits == 16 else OTHER
    if code == BFLOAT:
        return BFLOAT16 if bits == 16 else OTHER
    if code == UINT:
        return UINT8 if bits == 8 else OTHER
    if code == INT:
        return INT16 if bits == 16 else OTHER
    if code == COMPLEX:
        return COMPLEX64 if bits == 64 else COMPLEX128 if bits == 128 else OTHER
    return OTHER


cdef bint see(PyObject *tensor, Memory *seen, Room *room) noexcept:
    """See a tensor as it is now. False if it has no strided memory on the CPU."""
    cdef rmsfast_tensor shown
    if exchange == NULL:
        try:
            ask(<object>tensor, seen, room)
        except Exception:
            return False
    else:
        if exchange.look(tensor, &shown) != 0:
            PyErr_Clear()
            return False
        if shown.lanes != 1 or shown.ndim > MOST_AXES or shown.device_type != ON_CPU:
            return False
        seen.data = <char *>shown.data + shown.byte_offset
        seen.shape = <const Py_ssize_t *>shown.shape
        seen.strides = <const Py_ssize_t *>shown.strides
        seen.ndim = shown.ndim
        seen.format = format_of(shown.code, shown.bits)
    seen.unit = itemsize_of(seen.format)
    seen.flags = WRITABLE | (ALIGNED if <size_t>seen.data % <size_t>(seen.unit // reals_of(seen.format)) == 0 else 0)
    return True


cdef int ask(tensor, Memory *seen, Room *room) except -1:
    """The same through the methods of a tensor."""
    cdef int axis
    shape, strides = tuple(tensor.shape), tensor.stride()
    if tensor.device.type != "cpu" or len(shape) > MOST_AXES:
        raise TypeError
    seen.data = <char *><size_t>tensor.data_ptr()
    code, bits = dtypes.get(tensor.dtype, (0, 0))
    seen.format = format_of(code, bits)
    seen.ndim = len(shape)
    seen.shape = room.shape
    seen.strides = room.strides
    for axis in range(seen.ndim):
        room.shape[axis] = shape[axis]
        room.strides[axis] = strides[axis]
    return 0


def memory_of(tensor):
    """Return where the elements of a tensor begin and end, if the kernel can update them: of a dtype that `set_up` was
    told, on the CPU, aligned, one after another in some order of the axes. None otherwise."""
    cdef Memory seen
    cdef Room room
    cdef int axes[MOST_AXES]
    cdef size_t start
    cdef Py_ssize_t size
    if not see(<PyObject *>tensor, &seen, &room) or seen.format == OTHER:
        return None
    start = <size_t>seen.data
    size = size_of(&seen)
    if not is_dense(&seen, axes) or not seen.flags & ALIGNED or (size > 0 and start == 0):
        return None
    return start, start + size * itemsize_of(seen.format)


def is_step(tensor):
    """Return whether a tensor can count steps here: one float32 or float64 on the CPU."""
    cdef Memory seen
    cdef Room room
    return (see(<PyObject *>tensor, &seen, &room) and seen.format in (FLOAT32, FLOAT64) and size_of(&seen) == 1
            and seen.data != NULL)


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

    cpdef bint holds(self) noexcept:
        """Return whether it still has the same objects, in the same order."""
        with cython.critical_section(self.mapping):     # without a GIL, others may change it meanwhile
            return self.compare()

    cdef bint compare(self) noexcept:
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


# ---- The plan ----

cdef enum:
    STEP = STATE_ARRAYS     # among the tensors of a parameter, after its state arrays; the parameter comes last
    PARAM

cdef enum Use:
    IDLE        # has had no gradient yet, and has no state
    OURS        # updated by the kernel
    OTHERS      # updated by somebody else

cdef struct Native:
    # What this front keeps of a parameter.
    Use use
    bint has[STATE_ARRAYS]  # which state arrays there are; those of no elements have no memory
    # The real gradient that was asked last whether it stands for its negative, and its memory. To ask takes 70 ns, so
    # one with the same address and the same memory is not asked again. There is no reference to it: it may be gone.
    PyObject *plain
    char *plain_data


@cython.final
cdef class TensorPlan(Plan):
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
    older : TensorPlan or None
        The plan before this one, from which it takes over what was learned about threads.
    first : int
        Where the first parameter stands among those that share random bits.
    """
    cdef Lock lock
    cdef list groups
    cdef list lists             # of each group, its list of parameters, …
    cdef list seen              # … what its dict held, …
    cdef list structs           # … the settings read from it, …
    cdef list volatile          # … and whether to read them at every step
    cdef list formats           # … how it wants state and masters to be stored, …
    cdef object read_settings
    cdef object state
    cdef Seen seen_state
    cdef list seen_states       # of each parameter of ours, what its state held
    cdef tuple params
    cdef list natives_kept      # keeps all tensors alive
    cdef Native *natives
    cdef tuple ours             # the parameters that the kernel updates
    cdef bint all_active        # all of them have a gradient in this step
    cdef Room room

    def __cinit__(self, Lock lock not None, list groups not None, state, list natives not None, read_settings,
                  TensorPlan older, Py_ssize_t first=0):
        cdef Py_ssize_t i, k
        cdef Py_ssize_t *axes
        cdef Memory shown
        self.lock = lock
        self.groups = groups
        self.lists = [group["params"] for group in groups]
        for params in self.lists:
            if type(params) is not list:
                raise TypeError(f"param_groups: params is a {type(params).__name__}, expected a list, as PyTorch makes it")
        self.seen = [None] * len(groups)
        self.volatile = [False] * len(groups)
        self.structs = [None] * len(groups)
        self.formats = [None] * len(groups)
        self.read_settings = read_settings
        self.state = state
        self.seen_state = Seen(state)
        self.params = tuple([p for params in self.lists for p in params])
        self.natives_kept = natives
        self.seen_states = [Seen(state[p]) if tensors else None for p, tensors in zip(self.params, natives)]
        self.ours = tuple([p for p, tensors in zip(self.params, natives) if tensors])
        axes_in_all = 0
        for tensors in natives:
            if tensors:
                self.see_now(tensors[PARAM], &shown)
                axes_in_all += shown.ndim
        self.reserve(len(self.params), len(groups), axes_in_all)
        self.natives = <Native *>calloc(self.count, sizeof(Native))
        axes = self.axes
        spans = []
        group_of = [g for g, params in enumerate(self.lists) for _ in params]
        for i, tensors in enumerate(natives):
            self.items[i].group = group_of[i]
            self.natives[i].use = IDLE if tensors is None else OURS if tensors else OTHERS
            if self.natives[i].use != OURS:
                continue
            self.see_now(tensors[PARAM], &shown)
            axes = self.describe(i, group_of[i], &shown, axes)
            for k in (PARAM, *range(PARAM)):    # the parameter first, because messages speak of it
                tensor = tensors[k]
                if tensor is None:
                    continue
                self.see_now(tensor, &shown)
                has_own_shape = k == STEP or SCALES <= k < REMAINDER
                self.watch(i, <PyObject *>tensor, &shown, size_of(&shown) if has_own_shape else -1)
                if k == STEP:
                    self.records[i].count = shown.data
                    self.records[i].count_format = shown.format
                if k < STEP:
                    self.items[i].state[k] = shown.data
                    self.natives[i].has[k] = True
                if k != STEP:
                    start, stop = memory_of(tensor)
                    if stop > start:
                        spans.append((start, stop, OWNERS * i + (k + 1 if k < STEP else 0)))
            self.see_now(tensors[SQUARE_AVG], &shown)
            if is_half(self.records[i].shown.format) or is_half(shown.format) or shown.format == UINT8:
                self.store(i, shown.format).parameter += first
        self.take_spans(spans)
        if older is not None:
            lock.acquire()
            self.learn_from(older)
            lock.release()

    def __dealloc__(self):
        PyMem_Free(self.natives)

    cdef int see_now(self, tensor, Memory *shown) except -1:
        """See a tensor that was found to be the kernel's."""
        if not see(<PyObject *>tensor, shown, &self.room):
            raise RuntimeError("a parameter or its state changed while the step was planned, expected it to stay")
        return 0

    cdef bint look(self, PyObject *owner, Memory *seen) noexcept:
        return see(owner, seen, &self.room)

    def step(self, list groups not None, state, int threads, list grads=None, dict measured=None):
        """Take one step on the optimizer's groups and state, or raise and change nothing.

        `grads` has, for each parameter, a tensor with strided memory, a `SummedRows` or None. Without it, each
        parameter's own `grad` is taken. `measured` has, by the index of a parameter that is not for the kernel, what
        `torch_tensors.measure` returned, where settings ask for it.

        Returns True if it was taken, and None if it was skipped because of nonfinite gradients. False, with nothing
        done, says that something is not as it was when the plan was made, or a gradient is unusual.
        """
        cdef int most = most_threads(threads), answer = RMSFAST_PROPAGATE
        if groups is not self.groups or state is not self.state:
            return False
        if self.lock.acquire():
            self.let_go()       # of a step that a fork cut off
        try:
            if not self.collect(grads) or not self.refresh() or not self.take_measured(measured):
                return False
            if not self.look_at_all() and not (self.ask_again() and self.look_at_all()):
                return False
            # No Python code ran since all was looked at, and none does until the step is done with it.
            self.prepare(1, False, most)
            if self.measures:
                answer = self.measure()
            if answer == RMSFAST_RAISE:
                refuse_nonfinite(self)
            if answer == RMSFAST_SKIP:
                return None
            self.update()
            if self.all_active:
                increment_version(self.ours)
            else:
                increment_version([p for i, p in enumerate(self.params) if self.records[i].grad != NULL])
            return True
        finally:
            self.let_go()
            self.lock.release()

    def factor(self, Py_ssize_t i):
        """Return what the gradient of the i-th parameter was multiplied by in the last step, to clip a norm; 1 without."""
        return self.items[i].gradient.clip_factor

    cdef bint collect(self, list grads) except -1:
        """Take a reference to every gradient of ours. False if one is unusual, or a parameter has its first.

        Python code may run here: nothing is looked at yet.
        """
        cdef Py_ssize_t i
        cdef Native *native
        cdef object grad
        if grads is not None and len(grads) != self.count:
            return False
        self.all_active = True
        for i in range(self.count):
            native = &self.natives[i]
            if native.use == OTHERS:
                continue
            if grads is None:
                grad = get_through(grad_getter, PyTuple_GET_ITEM(self.params, i))
            else:
                grad = <object>PyList_GET_ITEM(grads, i)
            if grad is None:
                self.all_active &= native.use != OURS
                continue
            if native.use == IDLE or (type_of(<PyObject *>grad) != tensor_type and type(grad) is not SummedRows):
                return False
            if (<PyObject *>grad != native.plain or self.items[i].reals == 2) and not self.is_plain(i, grad):
                return False
            keep(self, i, <PyObject *>grad)
        return True

    cdef bint is_plain(self, Py_ssize_t i, grad) except -1:
        """Whether the numbers of a gradient are those in its memory: a view may stand for its conjugate or negative."""
        cdef Native *native = &self.natives[i]
        native.plain = NULL
        native.plain_data = NULL
        if type(grad) is not SummedRows and (grad.is_neg() or (self.items[i].reals == 2 and grad.is_conj())):
            return False
        native.plain = <PyObject *>grad
        return True

    cdef bint look_at_all(self) noexcept:
        """Look at everything. False if something is not as it was planned, or a gradient has to be asked again."""
        cdef Py_ssize_t i
        cdef bint is_known = True
        cdef Native *native
        if not self.is_as_planned() or self.check() != FINE:
            return False
        for i in range(self.count):
            native = &self.natives[i]
            if native.plain_data == NULL:
                native.plain_data = self.items[i].gradient.g
            elif native.plain_data != self.items[i].gradient.g and self.records[i].grad != NULL:
                native.plain = NULL     # another gradient that is where a former one was
                is_known = False
        return is_known

    cdef bint ask_again(self) except -1:
        """Ask the gradients that are unknown. False if there are none, or one stands for other numbers."""
        cdef Py_ssize_t i
        cdef bint asked = False
        for i in range(self.count):
            if self.records[i].grad != NULL and self.natives[i].plain == NULL:
                asked = True
                if not self.is_plain(i, <object>self.records[i].grad):
                    return False
        return asked

    cdef bint refresh(self) except -1:
        """Read the settings of the groups that changed. False if they have other parameters now.

        All are taken together, or none: where one raises, the next step reads them again.
        """
        cdef Py_ssize_t g
        cdef Seen seen
        cdef list read = []
        for g in range(len(self.seen)):
            seen = <Seen>self.seen[g]
            if seen is not None and seen.holds() and not self.volatile[g]:
                continue
            group = self.groups[g] if g < len(self.groups) else None
            if group is None or group.get("params") is not self.lists[g] or (seen is not None and seen.mapping is not group):
                return False
            seen = Seen(group)
            settings, is_volatile = self.read_settings(group)
            if self.formats[g] not in (None, (settings["state_dtype"], settings["master_weights"])):
                return False
            self.formats[g] = settings["state_dtype"], settings["master_weights"]
            read.append((g, seen, as_struct(settings), is_volatile))
        for g, seen, struct, is_volatile in read:
            self.seen[g], self.structs[g], self.volatile[g] = seen, struct, is_volatile
        if read:
            self.take_settings(self.structs)
        return True

    cdef bint take_measured(self, dict measured) except -1:
        """Take note of what was measured of gradients that are not for the kernel. False if such a one was not."""
        cdef Py_ssize_t i
        if not self.measures and measured is None:
            return True
        for i in range(self.count):
            found = None if measured is None else measured.get(i)
            self.records[i].is_measured = found is not None
            if found is not None:
                self.records[i].squares, self.records[i].shrunk, self.records[i].nonfinite = found
        return True

    cdef bint is_as_planned(self) noexcept:
        """Whether groups, parameters and state are the objects that they were, and each parameter with a gradient has
        the state that its settings ask for."""
        cdef Py_ssize_t i = 0, g, n
        with cython.critical_section(self.groups):      # here and below: without a GIL, others may change it meanwhile
            if not self.has_its_groups():
                return False
        for g in range(len(self.seen)):
            params = self.lists[g]
            with cython.critical_section(params):
                n = self.count_same(params, i)
            if n < 0:
                return False
            i += n
        if i != self.count or not self.seen_state.holds():
            return False
        for i in range(self.count):
            if self.records[i].grad == NULL:
                continue
            s = &self.settings[self.items[i].group]
            if ((s.centered and not self.natives[i].has[GRAD_AVG])
                    or (s.momentum != 0 and not self.natives[i].has[MOMENTUM_BUFFER])
                    or (s.ema_decay >= 0 and not self.natives[i].has[EMA])):
                return False
            if not (<Seen>PyList_GET_ITEM(self.seen_states, i)).holds():
                return False
        return True

    cdef bint has_its_groups(self) noexcept:
        """Whether the list of groups holds the dicts that were seen."""
        cdef Py_ssize_t g
        if PyList_GET_SIZE(self.groups) != len(self.seen):
            return False
        for g in range(len(self.seen)):
            if PyList_GET_ITEM(self.groups, g) != <PyObject *>(<Seen>self.seen[g]).mapping:
                return False
        return True

    cdef Py_ssize_t count_same(self, params, Py_ssize_t i) noexcept:
        """How many parameters a group's list has, which are those from the i-th on. -1 if it has others."""
        cdef Py_ssize_t k, n = PyList_GET_SIZE(params)
        if i + n > self.count:
            return -1
        for k in range(n):
            if PyList_GET_ITEM(params, k) != PyTuple_GET_ITEM(self.params, i + k):
                return -1
        return n
