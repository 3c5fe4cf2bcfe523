"""The front for NumPy: where arrays lie, and who keeps them alive. The optimizer owns the state.

`ArrayPlan` is the plan of an optimizer, which `steps.pyx` uses; `update` is one step on one array.
"""

cimport cython
cimport numpy as cnp
from cpython.dict cimport PyDict_CheckExact, PyDict_Size
from cpython.list cimport PyList_CheckExact
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_CheckExact
from libc.math cimport INFINITY
from libc.stdlib cimport qsort
from libc.string cimport memset

from rmsfast._core.kernel cimport (
    CACHE_LINE, EMA, MASTER, NUMBERS, REMAINDER, RMSFAST_AS_THEY_ARE, RMSFAST_NEAREST, RMSFAST_PROPAGATE, RMSFAST_RAISE,
    SQUARE_AVG, Item, Storage, rmsfast_settings, store_numbers,
)
from rmsfast._core.memory cimport (
    ALIGNED, BFLOAT16, FLOAT16, UINT8, UINT16, WRITABLE, Memory, Span, folds, is_half, is_taken, reach_of, same_form,
)
from rmsfast._core.ndarray cimport format_of, is_exact_array, show
from rmsfast._core.plan cimport FINE, OWNERS, Plan, as_struct, calloc, keep, name_of, refuse, stored_as
from rmsfast._core.rows cimport SummedRows, turned
from rmsfast._core.threads cimport as_threads, most_threads

cnp.import_array()

import numpy as np

from rmsfast._core.formats import exact, layout, store_in
from rmsfast._core.plan import STATE_NAMES


cdef extern from "csrc/atomic.h" nogil:
    void *rmsfast_atomic_swap(void **place, void *value)

cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(PyObject *sequence)
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject *sequence)
    PyObject *PyDict_GetItemWithError(object mapping, object key) except? NULL


# ---- Arrays: which can be updated, and how new state lies ----

cdef int check_updatable(str name, cnp.ndarray a) except -1:
    """Refuse an array whose elements cannot be updated in place."""
    if not is_taken(format_of(a)):
        raise TypeError(f"{name}: dtype {(<object>a).dtype}, expected float32, float64, complex64, complex128, float16 "
                        f"or bfloat16 in native byte order: {name}.astype('float32')")
    if not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError(f"{name}: read-only, expected a writable array, because it is updated in place: np.array(x) "
                         "makes a copy that can be trained")
    if not cnp.PyArray_IS_C_CONTIGUOUS(a) and not cnp.PyArray_IS_F_CONTIGUOUS(a):
        raise ValueError(f"{name}: strides {(<object>a).strides} with shape {(<object>a).shape}, expected a C- or "
                         "F-contiguous array: x.copy() is one")
    if not cnp.PyArray_ISALIGNED(a):
        raise ValueError(f"{name}: misaligned memory, expected an address that is a multiple of "
                         f"{(<object>a).dtype.alignment}: x.copy() has one")
    return 0


cdef cnp.ndarray zeros_beside(cnp.ndarray w, tuple form):
    """New zeros of a form, a dtype and a shape, with w's memory order and, where it has that dtype, its offset from a
    cache line."""
    dtype, shape = form
    cdef Py_ssize_t nbytes = dtype.itemsize * int(np.prod(shape, dtype=object))
    cdef cnp.ndarray memory = np.zeros(nbytes + CACHE_LINE, np.uint8)
    start = <size_t>cnp.PyArray_DATA(w) if dtype == (<object>w).dtype else 0
    shift = (start - <size_t>cnp.PyArray_DATA(memory)) % CACHE_LINE
    flat = memory[shift:shift + nbytes].view(dtype)
    return flat.reshape(shape, order="C" if cnp.PyArray_IS_C_CONTIGUOUS(w) else "F")


cdef int begin_state(cnp.ndarray w, list state, double start) except -1:
    """Give new arrays, which are zeros, the numbers at the start: v that of the setting, of complex numbers both parts; a
    master and an average the parameter."""
    v = state[SQUARE_AVG]
    if start != 0:
        with np.errstate(all="ignore"):     # as everywhere: what the type cannot hold is infinite, or 0
            if format_of(v) in (UINT8, UINT16, BFLOAT16):
                store_in("unsigned8" if format_of(v) == UINT8 else "bfloat16", np.full(v.shape, start, np.float32), v,
                         state[NUMBERS + SQUARE_AVG])
            else:
                v[...] = complex(start, start) if np.iscomplexobj(v) else start
    for k in (MASTER, EMA):
        if state[k] is not None:
            copy_numbers(np.asarray(w), state[k])
    return 0


cdef int begin_average(w, list state) except -1:
    """Let an average be as its parameter is, or as the parameter's master."""
    return copy_numbers(exact(w, state[REMAINDER], state[MASTER]), state[EMA])


cdef int copy_numbers(w, a) except -1:
    """Copy a parameter's numbers to an array of as many bits or more, whatever NumPy says of a NaN among them."""
    with np.errstate(all="ignore"):
        a[...] = w
    return 0


cdef int check_formats(str name, w, settings) except -1:
    """Refuse a format of the state that a parameter cannot have."""
    if settings["state_dtype"] is not None and w.dtype != np.float32 and not is_half(format_of(w)):
        raise ValueError(f"{name}: {w.dtype} with state_dtype={settings['state_dtype']!r}, expected float32, float16 or "
                         "bfloat16, because such a state has less precision than float32: leave state_dtype out here, "
                         "or put this parameter in a group of its own")
    return 0


cdef cnp.ndarray in_memory_order(a, bint c_order):
    """An array's numbers in C order or in Fortran order, flat; a copy where needed."""
    flat = np.asarray(a).reshape(-1, order="C" if c_order else "F")
    return flat.view(np.uint16 if flat.dtype.name == "bfloat16" else flat.real.dtype)


cdef cnp.ndarray memory_of(PyObject *g):
    """The array that a user gave for a gradient."""
    return <cnp.ndarray>g if is_exact_array(g) else (<SummedRows>g).given


cdef int by_start(const void *a, const void *b) noexcept nogil:
    cdef size_t first = (<const Span *>a).start, second = (<const Span *>b).start
    return -1 if first < second else first > second


cdef bint shares_memory(g, h) except -1:
    """Whether two gradients share memory; True where that would take long to find out."""
    try:
        return np.shares_memory(memory_of(<PyObject *>g), memory_of(<PyObject *>h), max_work=10_000)
    except np.exceptions.TooHardError:
        return True


# ---- The plan ----

@cython.final
cdef class ArrayPlan(Plan):
    """The parameters of an optimizer, group by group, with their state. A longer plan takes the place of a shorter one.
    """
    def __cinit__(self, ArrayPlan shorter, list groups, bint single, bint stateless=False):
        """Go on from a shorter plan, or from None, with more groups; each has "params" and perhaps "param_names"."""
        cdef Py_ssize_t i, kept = 0 if shorter is None else shorter.count
        cdef Py_ssize_t *axes
        cdef Memory shown
        self.single = single
        self.stateless = stateless if shorter is None else shorter.stateless
        self.groups = tuple(groups) if shorter is None else shorter.groups + tuple(groups)
        self.params = [w for group in self.groups for w in group["params"]]
        self.name()
        for i in range(kept, len(self.params)):
            check_updatable(self.label("params", i), self.params[i])
        group_of = [g for g, group in enumerate(self.groups) for _ in group["params"]]
        self.reserve(len(self.params), len(self.groups), sum([cnp.PyArray_NDIM(w) for w in self.params]))
        self.reaches = <Span *>calloc(self.count, sizeof(Span))
        axes = self.axes
        for i in range(self.count):
            show(self.params[i], &shown)
            shown.flags = WRITABLE | ALIGNED
            axes = self.describe(i, group_of[i], &shown, axes)
            self.watch(i, <PyObject *>self.params[i], &shown, -1)
            if i < kept:
                self.records[i].steps = shorter.records[i].steps
        self.fresh = set() if shorter is None else shorter.fresh.copy()
        states = [] if shorter is None else shorter.states.copy()
        for i in range(kept, self.count):
            w, settings = np.asarray(self.params[i]), self.groups[group_of[i]]
            check_formats(self.label("params", i), w, settings)
            arrays = {} if self.stateless else layout(w, settings)
            states.append([zeros_beside(w, arrays[name]) if name in arrays else None for name in STATE_NAMES])
            if not self.stateless:
                begin_state(w, states[i], settings["initial_square_avg"])
                if states[i][EMA] is not None:
                    self.fresh.add(i)
        self.copies = [] if shorter is None else shorter.copies + [None] * (self.count - kept if shorter.copies else 0)
        self.watch_copies()
        self.take_states(states)
        self.complete_states(self.groups)

    def __dealloc__(self):
        PyMem_Free(self.reaches)

    cdef bint look(self, PyObject *owner, Memory *seen) noexcept:
        show(<cnp.ndarray>owner, seen)
        return True

    cdef str label(self, str kind, Py_ssize_t i):
        if kind in STATE_NAMES:
            return f"state[{self.keys[i]!r}][{kind!r}]"
        return kind if self.single else f"{kind}[{self.keys[i]!r}]"

    cdef int name(self) except -1:
        """Find the keys: names in all groups, or in none. A group without parameters does not matter."""
        groups = [group for group in self.groups if group["params"]]
        named = [group for group in groups if "param_names" in group]
        self.named = len(named) > 0
        self.keys = tuple([key for group in named for key in group["param_names"]] if named
                          else range(len(self.params)))
        if self.named and len(named) < len(groups):
            raise ValueError("params: names in some groups and none in others, expected them in all groups or in none")
        if len(set(self.keys)) < len(self.params):
            twice = next(key for key in self.keys if self.keys.count(key) > 1)
            raise ValueError(f"params[{twice!r}]: a name of two parameters, expected one name for each")
        return 0

    # ---- State and settings ----

    cdef int complete_states(self, groups) except -1:
        """Make what the settings of the groups ask for and is not there yet: an average as the parameter is, all else as
        zeros."""
        cdef Py_ssize_t i
        states, begun = None, []
        if self.stateless:
            return 0
        for i in range(self.count):
            w = np.asarray(self.params[i])  # whatever a subclass says of dtype and shape
            for name, form in layout(w, groups[self.items[i].group]).items():
                k = STATE_NAMES.index(name)
                if self.states[i][k] is None:
                    if states is None:
                        states = [state.copy() for state in self.states]
                    states[i][k] = zeros_beside(w, form)
                    if k == EMA:
                        begin_average(w, states[i])
                        begun.append(i)
        if states is not None:
            self.take_states(states)
            self.fresh.update(begun)
        return 0

    cdef int begin_averages(self, which) except -1:
        """Let averages of these parameters be as the parameters are: before a first step, somebody may have written these.
        """
        for i in which:
            begin_average(np.asarray(self.params[i]), self.states[i])
        return 0

    cdef void note_moves(self):
        """Note which averages have moved in this step."""
        self.fresh = {i for i in self.fresh
                      if self.records[i].grad == NULL or self.settings[self.items[i].group].ema_decay < 0}

    cdef int take_states(self, list states) except -1:
        """Work on these state arrays from now on, or raise and keep those from before."""
        self.find_spans(states, self.copies)
        with cython.critical_section(self):     # for those that read them without the lock
            self.states = states
        self.warm = False
        self.point()
        return 0

    cdef int take_copies(self, list copies) except -1:
        """Write the parameters to these arrays as well, now and in each step, or raise and keep those from before."""
        cdef Py_ssize_t i
        cdef Memory shown
        cdef bint direct
        for i, copy in enumerate(copies):
            if copy is None:
                continue
            w, label = np.asarray(self.params[i]), self.label("copies", i)
            if not isinstance(copy, np.ndarray):
                raise TypeError(f"{label}: rows, expected an array")
            if w.dtype != np.float32 or not is_half(format_of(copy)):
                raise TypeError(f"{label}: dtype {copy.dtype} for a {w.dtype} parameter, expected float16 or bfloat16 for a "
                                "float32 one: np.zeros_like(w, dtype=np.float16)")
            show(copy, &shown)
            if not same_form(&shown, &self.records[i].shown, &direct):
                raise ValueError(f"{label}: shape {copy.shape}, expected {w.shape}, as the parameter")
            if (not direct and copy.size > 0) or not shown.flags & WRITABLE or not shown.flags & ALIGNED:
                raise ValueError(f"{label}: strides {copy.strides}, writable: {copy.flags.writeable}, expected the "
                                 "parameter's memory order, and writable, aligned memory")
        self.find_spans(self.states, copies)
        self.copies = copies
        self.watch_copies()
        self.point()
        self.write_copies()
        return 0

    cdef void write_copies(self) noexcept:
        """Write the parameters to their copies, rounded to nearest."""
        cdef Py_ssize_t i
        for i in range(self.count):
            self.write_copy(i)

    cdef void write_copy(self, Py_ssize_t i) noexcept:
        """Write a parameter to its copy, if it has one and both are where they were; else the next step refuses them."""
        cdef const Item *item = &self.items[i]
        if item.storage != NULL and item.storage.copy != NULL and self.is_in_place(i):
            store_numbers(item.storage.mirror, RMSFAST_NEAREST, item.storage.copy, NULL, item.n,
                          <const float *>item.w, NULL)

    cdef int watch_copies(self) except -1:
        """Look at the copies in each step, and at those from before no longer."""
        cdef Py_ssize_t i
        cdef Memory shown
        for i in range(self.count):
            self.records[i].n_places = 1        # the parameter itself
            if self.copies and self.copies[i] is not None:
                show(self.copies[i], &shown)
                self.watch(i, <PyObject *>self.copies[i], &shown, -1)
        return 0

    cdef int find_spans(self, list states, list copies) except -1:
        """Take note of the memory of all that steps write, or raise and keep what was noted before."""
        cdef Py_ssize_t i, nbytes
        found = []
        for i in range(self.count):
            for k, a in enumerate([self.params[i], *states[i], copies[i] if copies else None]):
                nbytes = 0 if a is None else cnp.PyArray_NBYTES(a)
                if nbytes > 0:
                    start = <size_t>cnp.PyArray_DATA(a)
                    found.append((start, start + nbytes, OWNERS * i + k))
        return self.take_spans(found)

    cdef int point(self) except -1:
        """Point the items to the arrays of the state and to copies, and say how the numbers in them are stored."""
        cdef Py_ssize_t i, k
        cdef int v
        cdef Storage *storage
        for i in range(self.count):
            state, copy = self.states[i], self.copies[i] if self.copies else None
            for k, a in enumerate(state):
                self.items[i].state[k] = NULL if a is None else <char *>cnp.PyArray_DATA(a)
            if self.stateless:
                continue
            v = format_of(state[SQUARE_AVG])
            if copy is None and not is_half(self.records[i].shown.format) and v not in (UINT8, UINT16, BFLOAT16):
                self.items[i].storage = NULL
                continue
            storage = self.store(i, v)
            if self.origins is not None:
                storage.parameter, storage.element = self.origins[i]
            storage.copy = NULL if copy is None else <char *>cnp.PyArray_DATA(copy)
            storage.mirror = RMSFAST_AS_THEY_ARE if copy is None else stored_as(format_of(copy))
        return 0

    cdef int take_values(self, list values) except -1:
        """Go by these settings from now on, one dict for each group, or raise and keep those from before."""
        structs = [as_struct(settings) for settings in values]
        self.complete_states(values)
        self.values = values
        return self.take_settings(structs)

    # ---- The gradients of a step ----

    cdef bint collect(self, grads) except -1:
        """Take a reference to every gradient. False if `grads` has an uncommon form.

        Looking up a name may run Python code. Nothing is read from any array here. Without a GIL, another thread could
        drop what is found in the list or dict before there is a reference to it.
        """
        with cython.critical_section(grads):
            return self.collect_held(grads)

    cdef bint collect_held(self, grads) except -1:
        cdef PyObject *g = <PyObject *>grads
        cdef PyObject **given = &g
        cdef Py_ssize_t i, found = 0
        if PyDict_CheckExact(grads) and self.named:
            for i in range(self.count):
                g = PyDict_GetItemWithError(grads, self.keys[i])
                if g != NULL:
                    found += 1
                    if not self.take(i, g):
                        return False
            return found == PyDict_Size(grads) and (found == self.count or self.may_omit)
        if PyList_CheckExact(grads) or PyTuple_CheckExact(grads):
            if PySequence_Fast_GET_SIZE(<PyObject *>grads) != self.count:
                return False
            given = PySequence_Fast_ITEMS(<PyObject *>grads)
        elif not self.single or not is_exact_array(g):
            return False
        for i in range(self.count):
            if not self.take(i, given[i]):
                return False
        return True

    cdef inline bint take(self, Py_ssize_t i, PyObject *g) noexcept:
        """Keep one gradient, unless it is None. False if it is no ndarray, or of a subclass, and no `SummedRows`."""
        if g != <PyObject *>None:
            if not is_exact_array(g) and type(<object>g) is not SummedRows:
                return False
            keep(self, i, g)
        return True

    cdef int check_bound(self) except -1:
        """Refuse bound gradients that are no longer where they were."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.items[i].gradient.g != self.records[i].bound:
                raise ValueError(f"{self.label('grads', i)}: resized or moved after it was bound, expected the same "
                                 "memory: bind the gradients again")
        return 0

    cdef bint check_erasable(self) except -1:
        """Refuse gradients that cannot be set to zero: read-only ones, and ones that share memory with each other.

        Returns whether Python code may have run.
        """
        cdef Py_ssize_t i, j, n = 0
        cdef Memory seen
        cdef bint ran = False
        for i in range(self.count):
            if self.records[i].grad == NULL:
                continue
            g = memory_of(self.records[i].grad)
            show(g, &seen)
            if not seen.flags & WRITABLE:
                raise ValueError(f"{self.label('grads', i)}: read-only, expected a writable array, because zero_grads "
                                 "sets it to zero")
            if cnp.PyArray_SIZE(g) > 0:
                if folds(&seen):
                    raise ValueError(f"{self.label('grads', i)}: strides {(<object>g).strides} with shape "
                                     f"{(<object>g).shape}, expected "
                                     "elements that share no memory, because zero_grads sets them to zero")
                self.reaches[n] = reach_of(&seen)
                self.reaches[n].owner = i
                n += 1
        qsort(self.reaches, n, sizeof(Span), &by_start)
        for i in range(n):
            for j in range(i + 1, n):
                if self.reaches[j].start >= self.reaches[i].stop:
                    break
                ran = True
                first, second = sorted([self.reaches[i].owner, self.reaches[j].owner])
                if shares_memory(<object>self.records[first].grad, <object>self.records[second].grad):
                    raise ValueError(f"{self.label('grads', second)}: shares memory with "
                                     f"{self.label('grads', first)}, expected memory of its own, because zero_grads "
                                     "sets it to zero")
        return ran

    cdef int erase_gradients(self, bint rows_only) except -1:
        """Set to zero what a step has not: the gradients by rows, or all of them."""
        cdef Py_ssize_t i
        cdef PyObject *g
        for i in range(self.count):
            g = self.records[i].grad
            if g != NULL and not (rows_only and is_exact_array(g)):
                memory_of(g)[...] = 0
        return 0

    cdef Py_ssize_t most_steps(self) noexcept:
        """The largest step count of all parameters."""
        cdef Py_ssize_t i, most = 0
        for i in range(self.count):
            most = max(most, self.records[i].steps)
        return most

    # ---- A Python function in the kernel's place ----

    cdef int apply(self, rule, double grad_scale) except -1:
        """Let a Python function do what the kernel does. Returns the answer to nonfinite numbers, as `Plan.measure`.

        It is called with a tuple for each parameter that has a gradient, and with the scale. The tuple holds the
        settings, the step's number, the parameter's index, a dict of its arrays ("w", those of the state by name, and
        "copy" where there is one), its gradient, and a list of which elements to update, one part after another. All
        arrays are flat, in the order in which the parameter lies in memory, of real numbers; bfloat16 ones are uint16. It
        works in place and returns, for each parameter, how many nonfinite numbers kept it from doing anything.
        """
        cdef Py_ssize_t i
        cdef int answer = RMSFAST_PROPAGATE
        stepping = []
        parameters = []
        for i in range(self.count):
            self.records[i].nonfinite = 0
            if self.records[i].grad != NULL:
                stepping.append(i)
        for i in stepping:
            arrays = {"w": self.params[i], **dict(zip(STATE_NAMES, self.states[i]))}
            if self.copies:
                arrays["copy"] = self.copies[i]
            g, parts = self.taken_apart(i)
            flat = {name: in_memory_order(a, self.items[i].c_order) for name, a in arrays.items() if a is not None}
            parameters.append((self.values[self.items[i].group], self.records[i].steps + 1, i, flat, g, parts))
        for i, nonfinite in zip(stepping, rule(parameters, grad_scale)):
            self.records[i].nonfinite = nonfinite
            if nonfinite > 0 and answer != RMSFAST_RAISE:
                answer = self.settings[self.items[i].group].nonfinite
        return answer

    cdef tuple taken_apart(self, Py_ssize_t i):
        """A gradient, flat, and the list of which elements belong to it: all at once; or those of rows, one after another
        where rows share a block with one scale, 256 at a time."""
        cdef Item *item = &self.items[i]
        g = <object>self.records[i].grad
        if not isinstance(g, SummedRows):
            return in_memory_order(g, item.c_order), [slice(None)]
        w = np.asarray(self.params[i])
        order = np.arange(w.size).reshape(w.shape, order="C" if item.c_order else "F")
        rows = turned(order, item.c_order)[(<SummedRows>g).indices].reshape(-1, item.row or 1)
        places = (rows.reshape(-1, 1) * item.reals + np.arange(item.reals)).reshape(-1)
        parts = [places]
        if self.alone and item.state[NUMBERS + SQUARE_AVG] != NULL:
            most = 256 if item.c_order else 1
            parts = [row[k:k + most] for row in rows for k in range(0, rows.shape[1], most)]
        return in_memory_order((<SummedRows>g).values(), True), parts


# ---- One array, with the user's own state ----

@cython.final
cdef class OneArray(Plan):
    """The plan of `rmsprop_update`. It is used again and again, because to make one takes longer than a small step."""

    def __cinit__(self):
        self.reserve(1, 1, 64)      # NumPy's arrays have at most 64 axes
        self.spans = <Span *>calloc(2, sizeof(Span))
        self.n_spans = 2
        self.warm = True

    cdef bint look(self, PyObject *owner, Memory *seen) noexcept:
        show(<cnp.ndarray>owner, seen)
        return True

    cdef str label(self, str kind, Py_ssize_t i):
        return {"params": "w", "square_avg": "v", "grads": "g"}[kind]

    cdef int aim(self, cnp.ndarray w, cnp.ndarray v, cnp.ndarray g) except -1:
        """Check the arrays, and point the item to them."""
        cdef Memory shown, other
        cdef bint direct
        cdef Item *item = &self.items[0]
        cdef size_t nbytes, w_start, v_start
        if is_half(format_of(w)):
            raise TypeError(f"w: dtype {(<object>w).dtype}, expected float32, float64, complex64 or complex128: "
                            "rmsfast.RMSProp updates arrays of 16 bits, with state in float32")
        check_updatable("w", w)
        check_updatable("v", v)
        show(w, &shown)
        self.describe(0, 0, &shown, self.axes)
        item.state[SQUARE_AVG] = <char *>cnp.PyArray_DATA(v)
        if format_of(v) != shown.format:
            raise TypeError(f"v: dtype {(<object>v).dtype}, expected {name_of(shown.format)}, as w: "
                            "v.astype(w.dtype)")
        show(v, &other)
        if not same_form(&other, &self.records[0].shown, &direct):
            raise ValueError(f"v: shape {(<object>v).shape}, expected {(<object>w).shape}, as w")
        if not direct and item.n > 0:
            raise ValueError("v: memory order differs, expected that of w: both arrays in C order, or both in Fortran "
                             "order")
        nbytes = item.n * item.itemsize
        w_start, v_start = <size_t>item.w, <size_t>item.state[SQUARE_AVG]
        self.spans[w_start > v_start] = Span(w_start, w_start + nbytes, 0)
        self.spans[w_start <= v_start] = Span(v_start, v_start + nbytes, 1)
        if self.spans[0].stop > self.spans[1].start and nbytes > 0:
            raise ValueError("v: shares memory with w, expected memory of its own")
        self.changes += 1
        keep(self, 0, <PyObject *>g)
        if self.check() != FINE:
            refuse(self)
        return 0


cdef void *spare = NULL     # a plan that nobody uses, with a reference of its own


cdef OneArray take_spare():
    cdef void *found = rmsfast_atomic_swap(&spare, NULL)
    if found == NULL:
        return OneArray()
    plan = <OneArray>found
    Py_DECREF(plan)
    return plan


cdef void give_back(OneArray plan) noexcept:
    cdef void *found
    Py_INCREF(plan)
    found = rmsfast_atomic_swap(&spare, <void *>plan)
    if found != NULL:       # another thread's
        Py_DECREF(<OneArray>found)


def update(cnp.ndarray w not None, cnp.ndarray v not None, cnp.ndarray g not None,
           double lr, double beta, double eps, num_threads=None, rule=None):
    """Update w and v in place. A `rule`, called with them and g as flat arrays of real numbers, takes the kernel's
    place. See `rmsfast.rmsprop_update`."""
    cdef int most = most_threads(as_threads(num_threads))
    cdef rmsfast_settings *s
    cdef OneArray plan = take_spare()
    try:
        plan.aim(w, v, g)
        if rule is not None:
            rule(*[in_memory_order(a, plan.items[0].c_order) for a in (w, v, g)])
            return
        s = plan.settings
        memset(s, 0, sizeof(rmsfast_settings))
        s.lr = lr
        s.beta = beta
        s.eps = eps
        s.clip_value = s.clip_norm = s.clip_global_norm = s.clip_weights = INFINITY
        s.ema_decay = -1
        plan.prepare(1, False, most)
        plan.update()
    finally:
        plan.let_go()
        give_back(plan)
