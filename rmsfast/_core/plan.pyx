"""The plan of a step: what is known of the parameters, and check, measure, update, count. One plan for everybody.

A front (`arrays.pyx`, `tensors.pyx`) derives its plan from `Plan`, and answers one question: where do a parameter, its
state and its gradient lie, how, and who keeps them alive? The plan knows pointers, lengths, strides, types and
settings. All checks are here, so both fronts have the same ones.

In a step the front keeps a reference to each gradient (`keep`). `check` looks at everything and points the items to the
gradients. `prepare` says what the threads do. `measure` finds norms and nonfinite numbers, where settings ask for them.
`update` runs and counts the step. `let_go` drops the references. No element changes before `update`.
"""

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.ref cimport Py_DECREF
from libc.math cimport INFINITY, isinf, ldexp, pow, sqrt
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from rmsfast._core.kernel cimport (
    ITEM_COST, MASTER, NUMBERS, REMAINDER, RMSFAST_AS_THEY_ARE, RMSFAST_BFLOAT16, RMSFAST_FLOAT16, RMSFAST_FLOAT32,
    RMSFAST_FLOAT64, RMSFAST_MASTERED, RMSFAST_PROPAGATE, RMSFAST_RAISE, RMSFAST_SIGNED8, RMSFAST_SPLIT,
    RMSFAST_UNSIGNED8, SCALED, SCALES, SQUARE_AVG, asks_for_measures, blocks_of, measure_item, put, work_line,
)
from rmsfast._core.memory cimport (
    ALIGNED, BFLOAT16, COMPLEX64, COMPLEX128, FLOAT16, FLOAT32, FLOAT64, MOST_AXES, UINT8, UINT16, WRITABLE, fits, is_dense, is_half,
    is_in_c_order, itemsize_of, reals_of, same_form, shared_with, size_of,
)
from rmsfast._core.rows cimport SummedRows
from rmsfast._core.threads cimport clock, record, team_for, tuning

from math import prod


cdef extern from "Python.h":
    PyObject *type_of "Py_TYPE"(PyObject *)

cdef extern from "csrc/fpmode.h" nogil:
    ctypedef struct rmsfast_fpmode:
        pass
    rmsfast_fpmode rmsfast_fpmode_enter()
    void rmsfast_fpmode_leave(rmsfast_fpmode)


# In the order of `kernel.pxd`.
STATE_NAMES = (
    "square_avg", "grad_avg", "momentum_buffer", "square_avg_scale", "grad_avg_scale", "momentum_buffer_scale",
    "remainder", "master", "ema",
)
NONFINITE = ["propagate", "raise", "skip"]

cdef PyObject *ROWS = <PyObject *>SummedRows


cdef void *calloc(Py_ssize_t count, size_t size) except NULL:
    """Zeroed memory for `PyMem_Free`."""
    cdef void *memory = PyMem_Calloc(count, size)
    if memory == NULL:
        raise MemoryError(f"no memory for {count} × {size} bytes")
    return memory


cdef rmsfast_settings as_struct(dict s) except *:
    """A group's settings for the stages. Those of a schedule are numbers by now."""
    cdef rmsfast_settings settings
    settings.lr = s["lr"]
    settings.beta = s["beta"]
    settings.eps = s["eps"]
    settings.momentum = s["momentum"]
    settings.weight_decay = s["weight_decay"]
    settings.clip_value = INFINITY if s["clip_value"] is None else s["clip_value"]
    settings.clip_norm = INFINITY if s["clip_norm"] is None else s["clip_norm"]
    settings.clip_global_norm = INFINITY if s["clip_global_norm"] is None else s["clip_global_norm"]
    settings.clip_weights = INFINITY if s["clip_weights"] is None else s["clip_weights"]
    settings.ema_decay = -1 if s["ema_decay"] is None else s["ema_decay"]
    settings.nesterov = <bint>s["nesterov"]
    settings.centered = <bint>s["centered"]
    settings.decoupled_weight_decay = <bint>s["decoupled_weight_decay"]
    settings.eps_inside_sqrt = <bint>s["eps_inside_sqrt"]
    settings.lr_in_momentum = <bint>s["lr_in_momentum"]
    settings.bias_correction = <bint>s["bias_correction"]
    settings.maximize = <bint>s["maximize"]
    settings.nonfinite = NONFINITE.index(s["nonfinite"])
    settings.stochastic = s["rounding"] == "stochastic"
    settings.seed = s["seed"]
    return settings


include "messages.pxi"


# ---- Checks ----

cdef inline Py_ssize_t steps_of(const Record *record) noexcept:
    """The steps that a parameter took. A count that is no such number says 0."""
    cdef double steps
    if record.count == NULL:
        return record.steps
    steps = (<double *>record.count)[0] if record.count_format == FLOAT64 else (<float *>record.count)[0]
    return <Py_ssize_t>steps if 0 <= steps <= 2.0**53 else 0


cdef inline bint is_unmoved(Plan plan, const Record *record, const Place *place) noexcept:
    """Whether a tensor of a parameter is where and as it was when the plan was made."""
    cdef Memory seen
    cdef bint direct
    if not plan.look(place.owner, &seen) or seen.data != place.data or seen.format != place.format:
        return False
    if place.size >= 0:
        return size_of(&seen) == place.size
    return (same_form(&seen, &record.shown, &direct) and (direct or size_of(&seen) == 0)
            and seen.flags & record.shown.flags == record.shown.flags)


cdef inline bint all_unmoved(Plan plan, const Record *record) noexcept:
    """Whether this is so of all of them."""
    cdef Py_ssize_t k
    for k in range(record.n_places):
        if not is_unmoved(plan, record, &record.places[k]):
            return False
    return True


cdef inline Fault check_gradient(Plan plan, Py_ssize_t i, Gradient *found) noexcept:
    """Check a gradient against its parameter and all memory that the step writes, and note where it was found."""
    cdef const Item *item = &plan.items[i]
    cdef Record *record = &plan.records[i]
    cdef Memory seen
    cdef bint direct
    cdef int axis
    if not plan.look(record.grad, &seen):
        return NO_MEMORY
    if seen.format != record.shown.format and not fits(seen.format, record.shown.format):
        return WRONG_TYPE
    if not same_form(&seen, &record.shown, &direct):
        return WRONG_SHAPE
    found.active = item.n
    found.itemsize = item.itemsize if seen.format == record.shown.format else itemsize_of(seen.format)
    found.format = stored_as(seen.format)
    if item.n == 0:
        found.direct = True
        return FINE
    found.direct = direct and seen.flags & ALIGNED != 0
    found.g = seen.data
    if found.g == NULL:
        return NO_MEMORY
    if (found.direct and record.checked == found.g and record.checked_at == plan.changes
            and record.checked_as == seen.format):
        return FINE     # the memory that a step before took, and checked
    plan.fault_span = shared_with(&seen, direct, plan.spans, plan.n_spans)
    if plan.fault_span != NULL:
        return SHARED
    if found.direct:
        record.checked = found.g
        record.checked_at = plan.changes
        record.checked_as = seen.format
    else:
        for axis in range(item.ndim):
            item.strides[axis] = seen.strides[record.axes[axis]] * seen.unit
    return FINE


cdef Fault check_rows(Plan plan, Py_ssize_t i, Gradient *found) noexcept:
    """As `check_gradient`. The rows were checked when they were summed; here, that this was done for a parameter
    such as this, and that their memory is where it was, and as large."""
    cdef const Item *item = &plan.items[i]
    cdef SummedRows g = <SummedRows>plan.records[i].grad
    if (not fits(g.memory.format, plan.records[i].shown.format) or g.memory.ndim != item.ndim
            or g.limit != plan.records[i].shown.shape[0] or g.row != item.row or g.c_order != item.c_order
            or not g.is_unmoved()):
        return WRONG_ROWS
    found.itemsize = 4 if item.dtype == RMSFAST_FLOAT32 and item.reals == 1 else item.itemsize
    if item.state[SCALES] != NULL and (not item.c_order or item.row % SCALED != 0):
        plan.alone = True
    found.rows = g.distinct
    found.row_grads = g.grads
    found.active = g.count * item.row
    if found.active > 0:
        found.g = <char *>g.grads[0]
        plan.fault_span = shared_with(&g.memory, False, plan.spans, plan.n_spans)
        if plan.fault_span != NULL:
            return SHARED
    return FINE


# ---- The plan ----

cdef inline void draw(Storage *storage, bint stochastic, uint64_t seed) noexcept:
    """Say what is rounded by random bits: state always, a parameter if its group wants it so."""
    cdef int k
    storage.draws_w = stochastic and storage.w in (RMSFAST_FLOAT16, RMSFAST_BFLOAT16)
    storage.draws = storage.draws_w
    for k in range(NUMBERS):
        storage.draws |= storage.state[k] != RMSFAST_AS_THEY_ARE
    storage.seed = seed


cdef class Plan:
    """The items, records and spans of some parameters, and a step on them. Its number of parameters never changes."""

    def _learned(self):
        """Return what is known of each kind of work, by its name and the logarithm of its bytes. For tests."""
        cdef int kind, size
        found = {}
        for kind, name in enumerate(("updating", "gathering", "measuring")):
            for size in range(SIZES):
                if self.learned[kind][size] != NULL:
                    found[name, size] = self.learned[kind][size][0]
        return found

    def __dealloc__(self):
        cdef int kind, size
        PyMem_Free(self.items)
        PyMem_Free(self.storages)
        PyMem_Free(self.records)
        PyMem_Free(self.work)
        PyMem_Free(self.settings)
        PyMem_Free(self.spans)
        PyMem_Free(self.axes)
        PyMem_Free(self.blocks)
        for kind in range(KINDS):
            for size in range(SIZES):
                PyMem_Free(self.learned[kind][size])

    # ---- What a front says ----

    cdef bint look(self, PyObject *owner, Memory *seen) noexcept:
        """See an array or tensor as it is now. False if it has no memory that the kernel could use."""
        return False

    cdef str label(self, str kind, Py_ssize_t i):
        """What messages call the array of a parameter: "params", "grads", or one of STATE_NAMES."""
        return f"{kind}[{i}]"

    # ---- What is made once ----

    cdef int reserve(self, Py_ssize_t count, Py_ssize_t groups, Py_ssize_t axes) except -1:
        """Make room for so many parameters, groups, and axes of all parameters together."""
        cdef Py_ssize_t i
        self.count = count
        self.items = <Item *>calloc(count, sizeof(Item))
        self.records = <Record *>calloc(count, sizeof(Record))
        self.work = <Work *>calloc(1, sizeof(Work))
        self.settings = <rmsfast_settings *>calloc(groups, sizeof(rmsfast_settings))
        self.axes = <Py_ssize_t *>calloc(5 * axes, sizeof(Py_ssize_t))
        for i in range(count):
            self.items[i].correction = 1
        return 0

    cdef Py_ssize_t *describe(self, Py_ssize_t i, int group, const Memory *shown, Py_ssize_t *axes) except NULL:
        """Note what stays of a parameter. `axes` has room for 5 numbers an axis; returns what is left of it."""
        cdef Item *item = &self.items[i]
        cdef Record *record = &self.records[i]
        cdef int order[MOST_AXES]
        cdef int axis, ndim = shown.ndim
        cdef Py_ssize_t *shape = axes
        cdef Py_ssize_t *strides = axes + ndim
        is_dense(shown, order)
        item.w = shown.data
        item.n = size_of(shown)
        item.itemsize = item.weight = itemsize_of(shown.format)
        item.reals = reals_of(shown.format)
        item.dtype = RMSFAST_FLOAT64 if shown.format in (FLOAT64, COMPLEX128) else RMSFAST_FLOAT32
        item.group = group
        item.ndim = ndim
        item.shape, item.strides = axes + 2 * ndim, axes + 3 * ndim
        record.axes = axes + 4 * ndim
        item.row = item.n // shown.shape[0] if item.n > 0 and ndim > 0 else item.n
        item.c_order = is_in_c_order(shown)
        for axis in range(ndim):
            shape[axis] = shown.shape[axis]
            strides[axis] = shown.strides[axis]
            item.shape[axis] = shown.shape[order[axis]]
            record.axes[axis] = order[axis]
        record.shown = shown[0]
        record.shown.data = NULL
        record.shown.shape = shape
        record.shown.strides = strides
        record.checked_at = -1
        return axes + 5 * ndim

    cdef Storage *store(self, Py_ssize_t i, int v) except NULL:
        """Say how the numbers of a parameter are stored, now that its item points to its state; `v` is the format of
        square_avg. From now on, not all of them are stored as they are."""
        cdef Storage *storage
        cdef Item *item = &self.items[i]
        cdef int k
        if self.storages == NULL:
            self.storages = <Storage *>calloc(self.count, sizeof(Storage))
        storage = item.storage = &self.storages[i]
        item.weight = sizeof(float)
        storage.parameter, storage.element = i, 0
        storage.w = (RMSFAST_SPLIT if item.state[REMAINDER] != NULL else RMSFAST_MASTERED if item.state[MASTER] != NULL
                     else stored_as(self.records[i].shown.format))
        for k in range(NUMBERS):
            storage.state[k] = (
                RMSFAST_BFLOAT16 if v in (UINT16, BFLOAT16) else RMSFAST_AS_THEY_ARE if v != UINT8
                else RMSFAST_UNSIGNED8 if k == SQUARE_AVG else RMSFAST_SIGNED8)
        return storage

    cdef int watch(self, Py_ssize_t i, PyObject *owner, const Memory *shown, Py_ssize_t size) except -1:
        """Look at this tensor of a parameter in each step, because others may move it. It has the form of the parameter, or
        else this `size`."""
        cdef Record *record = &self.records[i]
        record.places[record.n_places] = Place(owner, shown.data, shown.format, size)
        record.n_places += 1
        return 0

    cdef int take_spans(self, list found) except -1:
        """Take note of all memory that steps write: a list of (start, stop, owner). Raise if parameters share some."""
        cdef Py_ssize_t i
        cdef Span *spans
        found.sort()
        for (_, stop, first), (start, _, second) in zip(found, found[1:]):
            if stop > start:
                first, second = sorted([first, second], key=lambda owner: (owner % OWNERS == COPY, owner // OWNERS))
                kind, expected = "params", "each parameter once"
                if second % OWNERS == COPY:
                    kind, expected = "copies", "memory of its own"
                other = owner_kind(first) if kind == "copies" else kind
                raise ValueError(f"{self.label(kind, second // OWNERS)}: shares memory with "
                                 f"{self.label(other, first // OWNERS)}, expected {expected}")
        spans = <Span *>calloc(len(found), sizeof(Span))
        for i, (start, stop, owner) in enumerate(found):
            spans[i] = Span(start, stop, owner)
        PyMem_Free(self.spans)
        self.spans = spans
        self.n_spans = len(found)
        self.changes += 1
        return 0

    cdef int take_settings(self, list structs) except -1:
        """Go by these settings from now on, one struct for each group."""
        cdef Py_ssize_t i
        cdef const rmsfast_settings *s
        self.measures = self.measures_all = self.corrects = False
        for i, settings in enumerate(structs):
            self.settings[i] = settings
            s = &self.settings[i]
            self.measures |= asks_for_measures(s)
            self.measures_all |= s.clip_global_norm != INFINITY
            self.corrects |= s.bias_correction
        for i in range(self.count):
            self.items[i].correction = 1
            if self.items[i].storage != NULL:
                s = &self.settings[self.items[i].group]
                draw(&self.storages[i], s.stochastic, s.seed)
        return 0

    cdef void learn_from(self, Plan older) noexcept:
        """Take over what the plan before this one has learned. No step may be running."""
        memcpy(self.learned, older.learned, sizeof(self.learned))
        memset(older.learned, 0, sizeof(self.learned))

    # ---- A step: check ----

    cdef void let_go(self) noexcept:
        """Drop the references to the gradients."""
        cdef Py_ssize_t i
        cdef PyObject *g
        for i in range(self.count):
            g = self.records[i].grad
            if g != NULL:
                self.records[i].grad = NULL
                Py_DECREF(<object>g)

    cdef Fault check(self) noexcept:
        """Look at every parameter and the gradients kept, and point the items to these.

        No Python code runs here, but where PyTorch before 2.10 is asked through its methods. What was looked at stays
        as it is until Python code does run.
        """
        cdef Py_ssize_t i, n_blocks = 0, plain = True
        cdef size_t end = 0
        cdef const Item *item
        cdef Gradient found
        cdef Fault fault
        self.alone = False
        for i in range(self.count):     # first, since the spans are right only if nothing moved
            if not all_unmoved(self, &self.records[i]):
                return self.find_fault(MOVED, i)
        for i in range(self.count):
            item = &self.items[i]
            memset(&found, 0, sizeof(found))
            found.clip_factor = 1
            if self.records[i].grad != NULL:
                if type_of(self.records[i].grad) == ROWS:
                    fault = check_rows(self, i, &found)
                else:
                    fault = check_gradient(self, i, &found)
                if fault != FINE:
                    return self.find_fault(fault, i)
                plain &= found.direct
                end += found.active * item.weight + ITEM_COST
                if self.measures:
                    found.first_block = n_blocks
                    n_blocks += blocks_of(item, found.active)
            found.end = end
            put(&self.items[i].gradient, &found, sizeof(found))
        self.plain = plain
        self.n_blocks = n_blocks
        return FINE

    cdef bint is_in_place(self, Py_ssize_t i) noexcept:
        """Whether a parameter, and its copy, are where and as they were."""
        return all_unmoved(self, &self.records[i])

    cdef Fault find_fault(self, Fault fault, Py_ssize_t i) noexcept:
        self.fault = fault
        self.fault_at = i
        return fault

    # ---- A step: measure ----

    cdef int prepare(self, double grad_scale, bint zero_grads, int most) except -1:
        """Say what the threads, `most` of them at most, are to do with what `check` found."""
        cdef Work work
        cdef rmsfast_fpmode mode
        cdef const rmsfast_settings *s
        cdef Py_ssize_t i
        if self.measures and self.n_blocks > self.room_of_blocks:
            blocks = calloc(self.n_blocks, sizeof(rmsfast_block))
            PyMem_Free(self.blocks)
            self.blocks = <rmsfast_block *>blocks
            self.room_of_blocks = self.n_blocks
        if self.corrects:
            mode = rmsfast_fpmode_enter()
            for i in range(self.count):
                s = &self.settings[self.items[i].group]
                if s.bias_correction and self.records[i].grad != NULL:
                    self.items[i].correction = 1 / (1 - pow(s.beta, steps_of(&self.records[i]) + 1.0))
            rmsfast_fpmode_leave(mode)
        if self.storages != NULL:
            for i in range(self.count):
                if self.storages[i].draws and self.records[i].grad != NULL:
                    self.storages[i].step = steps_of(&self.records[i]) + 1
        self.most = 1 if self.alone else most
        memset(&work, 0, sizeof(work))
        work.items = self.items
        work.count = self.count
        work.settings = self.settings
        work.grad_scale = grad_scale
        work.zero_grads = zero_grads
        work.shrink = 1
        work.measure_all = self.measures_all
        put(self.work, &work, sizeof(work))
        return 0

    cdef int measure(self) noexcept:
        """Measure the gradients, where `measures` says so. Returns the answer to nonfinite numbers, as `conclude`."""
        cdef int answer
        self.work.blocks = self.blocks
        run(self, MEASURING)
        answer = conclude(self)
        self.work.blocks = NULL
        return answer

    # ---- A step: update, count ----

    cdef void update(self) noexcept:
        """Update the parameters, and count this step for each that has a gradient."""
        run(self, UPDATING if self.plain else GATHERING)
        self.warm = True
        self.count_step()

    cdef void count_step(self) noexcept:
        cdef Py_ssize_t i
        cdef Record *record
        for i in range(self.count):
            record = &self.records[i]
            if record.grad == NULL:
                continue
            record.steps += 1
            if record.count == NULL:
                continue
            if record.count_format == FLOAT64:
                (<double *>record.count)[0] += 1
            else:
                (<float *>record.count)[0] += 1


# ---- Norms and nonfinite numbers ----

cdef inline double factor(double norm, double most) noexcept nogil:
    """What a gradient is scaled by so that its norm is `most` at most. NaN for a norm of NaN."""
    return 1 if norm <= most else most / norm


cdef rmsfast_block measure_of(const Work *work, const Item *item) noexcept nogil:
    """The measure of a gradient: that of its blocks, from the first to the last."""
    cdef rmsfast_block whole = rmsfast_block(0, 0)
    cdef Py_ssize_t k
    for k in range(item.gradient.first_block, item.gradient.first_block + blocks_of(item, item.gradient.active)):
        whole.squares += work.blocks[k].squares
        whole.nonfinite += work.blocks[k].nonfinite
    return whole


cdef enum:
    # Squares of doubles can be larger than any double. Multiplied by 2 to this power, none is, nor is their sum.
    SHRINK = -600


cdef int conclude(Plan plan) noexcept:
    """Set the factors that clip, from what was measured. Returns the strictest answer to nonfinite numbers that a
    group with such numbers asks for: RMSFAST_PROPAGATE, which is to go on, RMSFAST_SKIP or RMSFAST_RAISE."""
    cdef rmsfast_fpmode mode = rmsfast_fpmode_enter()
    cdef rmsfast_block measure
    cdef const rmsfast_settings *s
    cdef Item *item
    cdef Record *record
    cdef double squares = 0, norm
    cdef Py_ssize_t i, nonfinite = 0
    cdef int answer = RMSFAST_PROPAGATE
    for i in range(plan.count):
        item = &plan.items[i]
        record = &plan.records[i]
        s = &plan.settings[item.group]
        if not record.is_measured:
            record.nonfinite = 0
            if item.gradient.g == NULL or not (plan.measures_all or asks_for_measures(s)):
                continue
            measure = measure_of(plan.work, item)
            record.squares = measure.squares
            record.nonfinite = measure.nonfinite
        squares += record.squares
        nonfinite += record.nonfinite
        if record.nonfinite > 0 and s.nonfinite != RMSFAST_PROPAGATE and answer != RMSFAST_RAISE:
            answer = s.nonfinite
        if s.clip_norm != INFINITY:
            norm = sqrt(record.squares)
            if isinf(norm) and record.nonfinite == 0:
                norm = norm_after_overflow(plan, i, i + 1)
            item.gradient.clip_factor = factor(norm, s.clip_norm)
    if plan.measures_all and answer == RMSFAST_PROPAGATE:
        norm = sqrt(squares)
        if isinf(norm) and nonfinite == 0:
            norm = norm_after_overflow(plan, 0, plan.count)
        for i in range(plan.count):
            s = &plan.settings[plan.items[i].group]
            if s.clip_global_norm != INFINITY:
                plan.items[i].gradient.clip_factor = factor(norm, s.clip_global_norm)
    rmsfast_fpmode_leave(mode)
    return answer


cdef double norm_after_overflow(Plan plan, Py_ssize_t start, Py_ssize_t stop) noexcept:
    """The norm of some gradients, where the sum of squares of finite numbers is infinite.

    Beside such numbers those of a float32 gradient make no difference. They are left out, unless they became
    infinite when they were scaled.
    """
    cdef const Item *item
    cdef double squares = 0, part
    cdef Py_ssize_t i
    plan.work.shrink = ldexp(1, SHRINK)
    for i in range(start, stop):
        item = &plan.items[i]
        if plan.records[i].is_measured:
            squares += plan.records[i].shrunk
        if item.gradient.g == NULL:
            continue
        if item.dtype == RMSFAST_FLOAT64:
            measure_item(plan.work, item, 0, item.gradient.active)
        part = measure_of(plan.work, item).squares
        if item.dtype == RMSFAST_FLOAT64 or isinf(part):
            squares += part
    plan.work.shrink = 1
    return ldexp(sqrt(squares), -SHRINK)


# ---- Threads ----

cdef void run(Plan plan, Kind kind) noexcept:
    """Do the work on the whole line, with a team if the work is worth one, and learn from how long it took."""
    cdef size_t length = plan.items[plan.count - 1].gradient.end if plan.count > 0 else 0
    cdef Learned *learned = NULL
    cdef int threads = 1, most = plan.most, kept = 1
    cdef double start, stop
    if most > 1 and (length >= tuning.smallest_work or tuning.forced):
        learned = learned_about(plan, kind, length)
        if learned != NULL:
            threads = team_for(learned, length, &most, &kept)
    if threads == 1 and length < tuning.bytes_to_release_gil:
        work_line(plan.work, length, 1)
        return
    with nogil:
        start = clock()
        work_line(plan.work, length, threads)
        stop = clock()
    if learned != NULL and plan.warm:   # where new memory is touched for the first time, the time says nothing
        record(learned, length, most, threads, stop - start, kept, stop)


cdef Learned *learned_about(Plan plan, int kind, size_t length) noexcept:
    """What was learned about this kind of work on about so many bytes. NULL if there is no memory to learn."""
    cdef int size = 0
    while length >> size > 1:
        size += 1
    if plan.learned[kind][size] == NULL:
        plan.learned[kind][size] = <Learned *>PyMem_Calloc(1, sizeof(Learned))
    return plan.learned[kind][size]
