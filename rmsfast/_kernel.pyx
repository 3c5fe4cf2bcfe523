"""The one door to the C kernel: memory is checked here, then updated by OpenMP threads with the GIL released.

The elements of all parameters form one line. A step points every item of the line to its gradient, refuses what does
not fit before anything is touched, and gives each thread one contiguous stretch. Behind this file there are pointers,
lengths and settings only.
"""

import operator
import os
import typing

cimport cython
cimport numpy as cnp
from libc.math cimport INFINITY, isinf, ldexp, pow, sqrt
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset
from cpython.dict cimport PyDict_CheckExact, PyDict_Size
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
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
    int RMSFAST_PROPAGATE, RMSFAST_RAISE, RMSFAST_SKIP
    int RMSFAST_BLOCK
    ctypedef union rmsfast_scalars:
        pass
    ctypedef int (*rmsfast_form)(rmsfast_scalars *scalars, const rmsfast_settings *settings, double grad_scale,
                                 double clip_factor, double correction) noexcept
    ctypedef void (*rmsfast_measure)(rmsfast_block *blocks, const void *g, Py_ssize_t n, double grad_scale,
                                     double shrink) noexcept
    ctypedef void (*rmsfast_update)(void *w, void *v, void *m, void *b, const void *g, Py_ssize_t n,
                                    const rmsfast_scalars *scalars) noexcept
    ctypedef struct rmsfast_stages:
        rmsfast_form form
        rmsfast_measure measure
        rmsfast_update update[2][3][2]
    ctypedef struct rmsfast_isa:
        const char *name
        const rmsfast_stages *stages[3][2]
    const rmsfast_isa *rmsfast_usable_isa(int k)
    int rmsfast_choose_roots(rmsfast_stages *stages, const rmsfast_isa *isa)
    int RMSFAST_NO_MOMENTUM, RMSFAST_MOMENTUM, RMSFAST_NESTEROV
    void RMSFAST_PREFETCH(const void *)
    void rmsfast_gather(void *out, const char *g, Py_ssize_t start, Py_ssize_t n, Py_ssize_t itemsize, int ndim,
                        const Py_ssize_t *shape, const Py_ssize_t *strides, bint fortran)
    void rmsfast_zero(char *g, Py_ssize_t start, Py_ssize_t n, Py_ssize_t itemsize, int ndim, const Py_ssize_t *shape,
                      const Py_ssize_t *strides, bint fortran)
    Py_ssize_t rmsfast_distinct(Py_ssize_t *distinct, const char **grads, const Py_ssize_t *rows, Py_ssize_t n,
                                Py_ssize_t limit, const char *first, Py_ssize_t size, cnp.int32_t *table, int bits)
    void rmsfast_sum_repeated(char *sums, Py_ssize_t *distinct, Py_ssize_t count, const char **grads,
                              const Py_ssize_t *rows, Py_ssize_t n, const char *first, Py_ssize_t size,
                              cnp.int32_t *table, int bits, bint is_float64)
    bint rmsfast_strides_into(Py_ssize_t start, Py_ssize_t stop, Py_ssize_t itemsize, int ndim,
                              const Py_ssize_t *shape, const Py_ssize_t *strides)

cdef extern from "csrc/fpmode.h" nogil:
    ctypedef struct rmsfast_fpmode:
        pass
    rmsfast_fpmode rmsfast_fpmode_enter()
    void rmsfast_fpmode_leave(rmsfast_fpmode)

cdef extern from "csrc/system.h" nogil:
    bint rmsfast_can_start(int count)
    int rmsfast_own_limit()
    bint rmsfast_prepare_fork()
    int rmsfast_last_team
    bint rmsfast_fork_is_safe

cdef extern from *:
    """
    #ifdef _OPENMP
    #include <omp.h>
    enum { HAS_OPENMP = 1 };
    #else
    enum { HAS_OPENMP = 0 };
    static double omp_get_wtime(void) { return 0; }
    static int omp_in_parallel(void) { return 0; }
    static int omp_get_max_threads(void) { return 1; }
    #endif
    """
    bint HAS_OPENMP
    double omp_get_wtime() nogil
    bint omp_in_parallel() nogil
    int omp_get_max_threads() nogil

OPENMP = HAS_OPENMP


# ---- Instruction sets and roots: the choice is made once, here ----

cdef const rmsfast_isa *isa = NULL
cdef rmsfast_stages stages_of[2]     # float32, float64


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
        raise ImportError(f"RMSFAST_ISA: {wanted!r}, expected one that this CPU and this build have: "
                          f"{', '.join(names)}")
    return tuple(names)


ISAS = choose_isa(os.environ.get("RMSFAST_ISA"))
ISA = isa.name.decode()


cdef choose_root(wanted):
    """Take the fastest square root for each update, or the one called `wanted` for all; return its name."""
    cdef int k, dtype
    names = [name for k, name in enumerate(("divider", "fma", "mixed")) if isa.stages[k][0] != NULL]
    if not wanted:
        return names[rmsfast_choose_roots(stages_of, isa)]
    if wanted not in names:
        raise ImportError(f"RMSFAST_ROOT: {wanted!r}, expected one that {ISA} has here: {', '.join(names)}")
    for dtype in range(2):
        stages_of[dtype] = isa.stages[<int>names.index(wanted)][dtype][0]
    return wanted


ROOT = choose_root(os.environ.get("RMSFAST_ROOT"))


# ---- Threads: how many, decided in one place ----

cdef struct Tuning:
    # A thread is worth starting for this many bytes of parameters: 32 768 float32 elements take 3 to 17 µs on the CPUs
    # tried. To start a team of two costs 1 to 6 µs, and in a training loop about 10 more, because the other cores have
    # to fetch the gradients that the calling thread has just computed. Below twice as much, a step stays on that one.
    size_t bytes_per_thread
    # No team is larger than the number of cores that the process may use, as it was when the first was wanted after
    # the last call of `set_num_threads`: threads that take turns on a core wait for each other at the end of every
    # step. 0: not asked for yet.
    int cores
    # What starting a team costs here: measured once, before the first team works. A thread has to be worth that, too.
    double dispatch_seconds
    # The runtime keeps idle threads for each thread that has called it, and lets them spin for a while. So that they
    # stay few, one thread's steps have teams at a time; another's may when the first has had none for so many seconds.
    double seconds_to_inherit
    # Another Python thread gets the GIL during a step on this many bytes; below, handing it over costs too much of it.
    size_t bytes_to_release_gil
    # What a byte takes on the calling thread alone, as last measured; 0: not yet, and the next step finds out.
    double seconds_a_byte_alone
    # A team that takes longer than this, and than this many times what one thread takes alone, has waited for a core
    # that someone keeps busy. Idle threads of OpenBLAS do, for some milliseconds after each matrix product, and then a
    # step on two threads can take a hundred times as long as on one. What was lost, times `patience`, is a debt: steps
    # stay on the calling thread until teams would have gained as much. So what is lost stays small beside what is
    # gained, whatever others do. Of what one step lost, no more counts than `most_seconds_lost`: one that took longer
    # stood still, as when the process was stopped, which says nothing about teams.
    double slack_seconds
    double slack_factor
    double patience
    double most_seconds_lost

cdef Tuning tuning = Tuning(
    bytes_per_thread=1 << 17,
    cores=0,
    dispatch_seconds=0,
    seconds_to_inherit=1,
    bytes_to_release_gil=1 << 16,
    seconds_a_byte_alone=0,
    slack_seconds=5e-6,
    slack_factor=1,
    patience=2,
    most_seconds_lost=0.1,
)
cdef double slowest_byte = 2e-9     # no CPU takes longer alone; a longer measurement was disturbed
cdef double debt = 0                # seconds that slow teams lost, and that others have to gain first
cdef double alone_until = 0         # while new threads settle, or there can be none, on the clock of omp_get_wtime
cdef unsigned long team_owner = 0   # the thread that had the last team, or 0; …
cdef double last_team = 0           # … and when
cdef int dispatch_attempts = 0      # to measure what it costs to start a team
cdef double SECONDS_TO_MEASURE = 2e-4
cdef double SLOW_DISPATCH = 5e-5    # no runtime takes longer, once its threads run
cdef double SECONDS_TO_SETTLE = 1e-2
cdef double SECONDS_TO_START = 1    # until it is tried again, where the system had no thread left

cdef int default_threads = 0    # 0: not asked for yet
cdef int unlimited = 0          # the OpenMP runtime's own limit, where nobody has set another; 0: not asked for
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
        From 1 to 1024. Small steps use fewer, because a thread has to be worth its start, and no step uses more than
        the cores that this process may use. These are counted when they first matter, and anew after each call of this
        function: call it where the CPU affinity or the cgroup quota changes. What was set for the calling thread with
        ``omp_set_num_threads``, as by threadpoolctl's ``threadpool_limits``, holds as well if it is less than what the
        OpenMP runtime began with, which is ``OMP_NUM_THREADS`` or all cores.

    Raises
    ------
    TypeError, ValueError
        If `n` is no integer, or out of range.
    """
    global default_threads
    if n is None:
        raise TypeError(f"num_threads: None, expected an integer from 1 to {MOST_THREADS}")
    default_threads = as_threads(n)
    tuning.cores = 0


cdef inline int most_threads(int wanted) except -1:
    """How many threads a call may use that wants so many, or 0 for the default."""
    cdef int most = wanted if wanted != 0 else default_threads if default_threads != 0 else get_num_threads()
    if most == 1:
        return 1
    if tuning.cores == 0:
        from rmsfast.threads import usable_cores
        tuning.cores = usable_cores()
    return min(most, tuning.cores)


cdef inline int within_limit(int threads) noexcept:
    """No more of some threads than the limit that someone set for this thread with `omp_set_num_threads`, as
    threadpoolctl does: one that is lower than the runtime's own, which takes no notice of `set_num_threads`."""
    global unlimited
    cdef int limit = omp_get_max_threads()
    if unlimited == 0:
        unlimited = rmsfast_own_limit()
    return min(threads, limit) if limit < unlimited else threads


def usable_threads():
    """Return how many threads a step of this thread may really use where no `num_threads` is given: no more than there
    are cores, or than someone has limited it to."""
    return within_limit(most_threads(0))


cdef int team_size(size_t length, int most, bint ordinary) noexcept:
    """How many threads a step on `length` bytes of parameters uses, of those that it may use."""
    global debt
    cdef size_t worth_it = length // tuning.bytes_per_thread
    cdef unsigned long me
    cdef double now
    if not HAS_OPENMP or most == 1 or worth_it < 2 or teams_were_lost:
        return 1
    worth_it = min(worth_it, <size_t>within_limit(most))
    if worth_it < 2:
        return 1
    now = omp_get_wtime()
    me = PyThread_get_thread_ident()
    if now < alone_until or omp_in_parallel() or (team_owner != me and now < last_team + tuning.seconds_to_inherit):
        return 1
    if ordinary and tuning.seconds_a_byte_alone == 0:
        return 1
    if tuning.dispatch_seconds == 0 and not find_dispatch(<int>worth_it, now):
        return 1
    if tuning.seconds_a_byte_alone > 0:
        worth_it = min(worth_it, <size_t>(length * tuning.seconds_a_byte_alone / tuning.dispatch_seconds))
    if worth_it < 2:
        return 1
    if debt > 0:
        debt -= length * tuning.seconds_a_byte_alone * (1 - 1.0 / worth_it)
        return 1
    return <int>worth_it if there_is_room(<int>worth_it, now) else 1


cdef bint there_is_room(int threads, double now) noexcept:
    """Whether the system has the threads that a team of the calling thread needs. Then the teams are that thread's."""
    global team_owner, last_team, alone_until, rmsfast_last_team
    if threads > rmsfast_last_team and not rmsfast_can_start(threads - max(rmsfast_last_team, 1)):
        alone_until = now + SECONDS_TO_START
        return False
    rmsfast_last_team = threads     # what a smaller team does not need, the runtime lets go
    team_owner = PyThread_get_thread_ident()
    last_team = now
    return True


cdef bint find_dispatch(int threads, double now) noexcept:
    """Measure what it costs to start a team and wait for its end: the least of some times. False if it is too early.

    New threads begin on the core of the one that starts them, and take turns with it until they have slept once. Then
    steps stay alone for a little while, and the next one tries again.
    """
    global alone_until, dispatch_attempts
    cdef double least = INFINITY, start = now, stop
    cdef int t, sum = 0
    if not there_is_room(threads, now):
        return False
    while start < now + SECONDS_TO_MEASURE:
        with nogil:
            for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                sum += t
        stop = omp_get_wtime()
        least = min(least, stop - start)
        start = stop
    dispatch_attempts += 1
    if least > SLOW_DISPATCH and dispatch_attempts < 10:
        alone_until = start + SECONDS_TO_SETTLE
        return False
    tuning.dispatch_seconds = min(max(least, 1e-7), SLOW_DISPATCH)
    return True


cdef void judge(size_t length, int threads, double start, double stop) noexcept:
    """Learn from how long an ordinary step took that was large enough for a team."""
    global debt
    cdef double seconds = stop - start, alone = tuning.seconds_a_byte_alone * length
    if threads == 1:
        tuning.seconds_a_byte_alone = min(seconds / length, slowest_byte)
    elif seconds > tuning.slack_seconds + tuning.slack_factor * alone:
        debt = tuning.patience * min(seconds - alone, tuning.most_seconds_lost)


def _tune(**changes):
    """Change measured constants, and forget slow teams; return the constants from before. For tests."""
    global tuning, alone_until, last_team, debt
    old = dict(tuning)
    tuning = {**old, **changes}
    alone_until = last_team = debt = 0
    return old


def _team_size(length, wanted):
    """Return how many threads a step on `length` bytes would use now. For tests."""
    return team_size(length, most_threads(as_threads(wanted)), True)


# ---- Fork: a child process has, of all threads, the one that forked ----

cdef int forks = 0                  # that led to this process
cdef unsigned long survivor = 0     # the thread that came here by the last one
cdef bint teams_were_lost = False   # in a fork that was not safe: steps stay on the calling thread


def _before_fork():
    global rmsfast_fork_is_safe, rmsfast_last_team
    with nogil:     # for which threads that go home may ask
        rmsfast_fork_is_safe = rmsfast_prepare_fork()
    rmsfast_last_team = 0


def _after_fork():
    """In the process that forked, and in the other."""
    global rmsfast_fork_is_safe
    rmsfast_fork_is_safe = False    # until it is prepared again: an embedding program may forget to ask


def _after_fork_in_child():
    global forks, survivor, teams_were_lost, team_owner, last_team
    forks += 1
    survivor = PyThread_get_thread_ident()
    if not rmsfast_fork_is_safe:
        teams_were_lost = True
    team_owner = 0
    last_team = 0
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child, after_in_parent=_after_fork)


# ---- The line of elements, and the loops over it ----

STATE_NAMES = "square_avg", "grad_avg", "momentum_buffer"


cdef enum:
    CACHE_LINE = 64
    # Numbers that go from stage to stage at a time, where there is more than one. So few that the end of one tile's
    # update, which waits for the divider, overlaps with the next tile's gathering.
    TILE = 256
    # How many rows ahead to begin to read, and how many bytes of one.
    ROWS_AHEAD = 8
    FETCHED = 512


cdef inline Py_ssize_t cut(const Item *item, size_t begin, size_t at) noexcept nogil:
    """The element at which a cut of the line falls into an item that begins at `begin`, moved to a cache line."""
    cdef size_t inside
    if at <= begin:
        return 0
    if at >= item.gradient.end:
        return item.gradient.active
    inside = min(at - begin, <size_t>(item.gradient.active * item.itemsize))
    if inside == <size_t>(item.gradient.active * item.itemsize):
        return item.gradient.active
    inside -= min(inside, (<size_t>item.w + inside) % CACHE_LINE)
    return <Py_ssize_t>inside // item.itemsize


cdef inline char *at_byte(char *memory, Py_ssize_t offset) noexcept nogil:
    """A place in some memory, if there is any."""
    return NULL if memory == NULL else memory + offset


cdef inline void fetch_row(const Item *item, Py_ssize_t row) noexcept nogil:
    """Begin to read a row, or how it begins: rows lie anywhere in memory, and each would have to be waited for."""
    cdef Py_ssize_t place = row * (item.row if in_c_order(item) else 1) * item.itemsize
    cdef Py_ssize_t stop = place + min(item.row * item.itemsize, <Py_ssize_t>FETCHED)
    while place < stop:
        RMSFAST_PREFETCH(item.w + place)
        RMSFAST_PREFETCH(item.state[SQUARE_AVG] + place)
        place += CACHE_LINE


cdef inline const char *bring_in(const Item *item, Py_ssize_t start, Py_ssize_t *n, Py_ssize_t *place,
                                 void *room) noexcept nogil:
    """Where n elements of the gradient lie, from the `start`-th on, in the parameter's order, or else in `room`.

    They belong to those of the parameter that begin at `place`. Of rows, n falls to what lies side by side.
    """
    cdef Py_ssize_t k, inside
    place[0] = start
    if item.gradient.direct:
        return item.gradient.g + start * item.itemsize
    if item.gradient.rows == NULL:
        rmsfast_gather(room, item.gradient.g, start, n[0], item.itemsize, item.ndim, item.shape, item.strides,
                       not in_c_order(item))
        return <const char *>room
    k = start // item.row
    inside = start % item.row
    if inside == 0 and (k + ROWS_AHEAD + 1) * item.row <= item.gradient.active:
        fetch_row(item, item.gradient.rows[k + ROWS_AHEAD])
    if in_c_order(item):
        place[0] = item.gradient.rows[k] * item.row + inside
        n[0] = min(n[0], item.row - inside)
    else:
        place[0] = item.gradient.rows[k] + item.shape[0] * inside
        n[0] = 1
    return item.gradient.row_grads[k] + inside * item.itemsize


cdef inline void erase(const Item *item, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """Set elements of a gradient to zero."""
    if item.gradient.direct:
        memset(item.gradient.g + start * item.itemsize, 0, n * item.itemsize)
    elif item.gradient.rows == NULL:
        rmsfast_zero(item.gradient.g, start, n, item.itemsize, item.ndim, item.shape, item.strides,
                     not in_c_order(item))


cdef inline bint in_c_order(const Item *item) noexcept nogil:
    return item.layout & cnp.NPY_ARRAY_C_CONTIGUOUS != 0


cdef struct Update:
    # The function that updates, and its numbers. They stay from item to item where nothing differs.
    const rmsfast_settings *settings
    int dtype
    double clip_factor
    Py_ssize_t step             # the number of the step that is being taken, where it matters
    rmsfast_scalars scalars
    rmsfast_update function


cdef inline void choose_update(Update *update, const Work *work, Py_ssize_t i) noexcept nogil:
    """Choose how to update the i-th item, unless it is as the item before."""
    cdef const Item *item = &work.items[i]
    cdef const rmsfast_settings *s = &work.settings[item.group]
    cdef Py_ssize_t step = work.records[i].steps + 1 if s.bias_correction else 0
    cdef const rmsfast_stages *all_stages = &stages_of[item.dtype]
    cdef int more
    if (update.settings == s and update.dtype == item.dtype and update.clip_factor == item.gradient.clip_factor
            and update.step == step):
        return
    update.settings = s
    update.dtype = item.dtype
    update.clip_factor = item.gradient.clip_factor
    update.step = step
    more = all_stages.form(&update.scalars, s, work.grad_scale, item.gradient.clip_factor,
                           1 / (1 - pow(s.beta, <double>step)) if s.bias_correction else 1)
    update.function = all_stages.update[s.centered][
        RMSFAST_NO_MOMENTUM if s.momentum == 0 else RMSFAST_NESTEROV if s.nesterov else RMSFAST_MOMENTUM][more]


cdef void update_item(const Work *work, const Item *item, const Update *update, Py_ssize_t start,
                      Py_ssize_t stop) noexcept nogil:
    """Update elements [start, stop) of those of a parameter that this step updates, tile by tile, stage by stage."""
    cdef double gathered[TILE]
    cdef Py_ssize_t tile = TILE // item.reals
    cdef Py_ssize_t most = stop if item.gradient.direct and not work.zero_grads else tile
    cdef Py_ssize_t n, place
    cdef const char *g
    if stop - start > 4 * tile:     # worth it: the first tile ends, and all others begin, at a cache line
        tile -= <Py_ssize_t>(<size_t>item.w + start * item.itemsize) % CACHE_LINE // item.itemsize
    else:
        tile = most
    while start < stop:
        n = min(tile, stop - start)
        tile = most
        g = bring_in(item, start, &n, &place, gathered)
        place *= item.itemsize
        update.function(item.w + place, item.state[SQUARE_AVG] + place, at_byte(item.state[GRAD_AVG], place),
                        at_byte(item.state[MOMENTUM_BUFFER], place), g, n * item.reals, &update.scalars)
        if work.zero_grads:
            erase(item, start, n)
        start += n


cdef void measure_item(const Work *work, const Item *item, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Measure the blocks of a gradient that begin in [start, stop)."""
    cdef double numbers[1024]
    cdef double room[1024]
    cdef const rmsfast_stages *stages = &stages_of[item.dtype]
    cdef Py_ssize_t size = RMSFAST_BLOCK // item.reals, filled, n, place
    cdef rmsfast_block *block
    cdef const char *g
    if start == stop:   # at the end, of which the last block would begin before
        return
    start -= start % size
    stop -= 0 if stop == item.gradient.active else stop % size
    block = work.blocks + item.gradient.first_block + start // size
    if item.gradient.direct:
        g = item.gradient.g + start * item.itemsize
        stages.measure(block, g, (stop - start) * item.reals, work.grad_scale, work.shrink)
        return
    while start < stop:
        filled = 0
        while filled < min(size, stop - start):
            n = min(size, stop - start) - filled
            g = bring_in(item, start + filled, &n, &place, room)
            memcpy(<char *>numbers + filled * item.itemsize, g, n * item.itemsize)
            filled += n
        stages.measure(block, numbers, filled * item.reals, work.grad_scale, work.shrink)
        block += 1
        start += filled


cdef inline bint asks_for_measures(const rmsfast_settings *s) noexcept nogil:
    return s.clip_norm != INFINITY or s.clip_global_norm != INFINITY or s.nonfinite != RMSFAST_PROPAGATE


cdef void work_stretch(const Work *work, size_t start, size_t stop) noexcept nogil:
    """Do the work on the elements of the line between two places, counted in bytes."""
    cdef rmsfast_fpmode mode = rmsfast_fpmode_enter()
    cdef Py_ssize_t low = 0, high = work.count, i, first, last
    cdef size_t begin
    cdef const Item *item
    cdef Update update
    update.settings = NULL
    while low < high:       # the first item that ends after start
        i = (low + high) // 2
        if work.items[i].gradient.end > start:
            high = i
        else:
            low = i + 1
    begin = work.items[low - 1].gradient.end if low > 0 else 0
    for i in range(low, work.count):
        if begin >= stop:
            break
        item = &work.items[i]
        if item.gradient.g != NULL:
            first = cut(item, begin, start)
            last = cut(item, begin, stop)
            if work.blocks == NULL:
                choose_update(&update, work, i)
                update_item(work, item, &update, first, last)
            elif work.measure_all or asks_for_measures(&work.settings[item.group]):
                measure_item(work, item, first, last)
        begin = item.gradient.end
    rmsfast_fpmode_leave(mode)


cdef inline size_t start_of(size_t length, int t, int threads) noexcept nogil:
    """Where the stretch of the t-th thread begins, and that of the one before it ends."""
    return length if t == threads else length // threads * t


cdef void work_line(const Work *work, size_t length, int threads) noexcept nogil:
    """Do the work on the whole line with a team. A smaller one than asked for shares the stretches."""
    cdef int t
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        work_stretch(work, start_of(length, t, threads), start_of(length, t + 1, threads))


cdef void run(const Work *work, int most, bint ordinary) noexcept:
    """Do the work on the whole line, with as many threads of those allowed as it is worth.

    Ordinary work is an update whose time says something: it gathers no gradient, and touches no memory for the first
    time.
    """
    cdef size_t length = work.items[work.count - 1].gradient.end if work.count > 0 else 0
    cdef int threads = team_size(length, most, ordinary)
    cdef double start, stop
    if length < tuning.bytes_to_release_gil and threads == 1:
        work_stretch(work, 0, length)
        return
    with nogil:
        start = omp_get_wtime()
        if threads == 1:
            work_stretch(work, 0, length)
        else:
            work_line(work, length, threads)
        stop = omp_get_wtime()
    if ordinary and length // tuning.bytes_per_thread >= 2:
        judge(length, threads, start, stop)


# ---- Norms: what is concluded from the measures ----

cdef rmsfast_block measure_of(const Work *work, const Item *item) noexcept nogil:
    """The measure of a gradient: that of its blocks, from the first to the last."""
    cdef rmsfast_block whole = rmsfast_block(0, 0)
    cdef Py_ssize_t k
    for k in range(item.gradient.first_block, item.gradient.first_block + blocks_of(item, item.gradient.active)):
        whole.squares += work.blocks[k].squares
        whole.nonfinite += work.blocks[k].nonfinite
    return whole


cdef inline Py_ssize_t blocks_of(const Item *item, Py_ssize_t active) noexcept nogil:
    return (active * item.reals + RMSFAST_BLOCK - 1) // RMSFAST_BLOCK


cdef inline double factor(double norm, double most) noexcept nogil:
    """What a gradient is scaled by so that its norm is `most` at most; NaN for a norm of NaN."""
    return 1 if norm <= most else most / norm


# Squares of doubles can be larger than any double. After multiplication by this, none of them are, nor is their sum.
cdef int SHRINK = -600


cdef double norm_after_overflow(Work *work, const Item *item) noexcept nogil:
    """The norm of one gradient, or of all for NULL, where the sum of squares of finite numbers is infinite.

    Beside such numbers those of a float32 gradient make no difference; they are left out, unless they became infinite
    when they were scaled.
    """
    cdef const Item *each
    cdef double squares = 0, part
    cdef Py_ssize_t i
    work.shrink = ldexp(1, SHRINK)
    for i in range(work.count):
        each = &work.items[i]
        if each.gradient.g == NULL or not (item == NULL or item == each):
            continue
        if each.dtype == RMSFAST_FLOAT64:
            measure_item(work, each, 0, each.gradient.active)
        part = measure_of(work, each).squares
        if each.dtype == RMSFAST_FLOAT64 or isinf(part):
            squares += part
    work.shrink = 1
    return ldexp(sqrt(squares), -SHRINK)


# ---- Checks: each kind of memory in one function, used by every caller ----

cdef enum:
    OWNERS = STATE_ARRAYS + 1


cdef str label(Line line, str kind, Py_ssize_t i):
    """What a message calls the i-th array of a kind. Without a line: the arguments of `rmsprop_update`."""
    if line is None:
        return {"params": "w", "square_avg": "v", "grads": "g"}[kind]
    if kind in STATE_NAMES:
        return f"state[{line.keys[i]!r}][{kind!r}]"
    return kind if line.single else f"{kind}[{line.keys[i]!r}]"


cdef str owner_of(Line line, const Span *span):
    kind = span.owner % OWNERS
    return label(line, STATE_NAMES[kind - 1] if kind > 0 else "params", span.owner // OWNERS)


cdef tuple shape_of(cnp.ndarray a):
    return tuple([cnp.PyArray_DIMS(a)[axis] for axis in range(cnp.PyArray_NDIM(a))])


# By NumPy's number of each type that can be updated: the type of its numbers, and how many an element has.
cdef dict NUMBERS = {
    cnp.NPY_FLOAT: (RMSFAST_FLOAT32, 1),
    cnp.NPY_DOUBLE: (RMSFAST_FLOAT64, 1),
    cnp.NPY_CFLOAT: (RMSFAST_FLOAT32, 2),
    cnp.NPY_CDOUBLE: (RMSFAST_FLOAT64, 2),
}


cdef int check_updatable(str name, cnp.ndarray a) except -1:
    """Refuse an array whose elements cannot be updated in place."""
    if cnp.PyArray_TYPE(a) not in NUMBERS or not cnp.PyArray_ISNOTSWAPPED(a):
        raise TypeError(f"{name}: dtype {a.dtype}, expected float32, float64, complex64 or complex128 in native byte "
                        "order")
    if not cnp.PyArray_ISWRITEABLE(a):
        raise ValueError(f"{name}: read-only, expected a writable array, because it is updated in place")
    if not cnp.PyArray_IS_C_CONTIGUOUS(a) and not cnp.PyArray_IS_F_CONTIGUOUS(a):
        raise ValueError(f"{name}: strides {(<object>a).strides} with shape {shape_of(a)}, expected a C- or "
                         "F-contiguous array")
    if not cnp.PyArray_ISALIGNED(a):
        raise ValueError(f"{name}: misaligned memory, expected an address that is a multiple of {a.dtype.alignment}")
    return 0


cdef int describe(Item *item, cnp.ndarray w, int group) except -1:
    """Fill in what stays of an item, but for its state; its `shape` and `strides` already have room for the axes."""
    cdef bint c_order = cnp.PyArray_IS_C_CONTIGUOUS(w)
    cdef int axis
    item.w = <char *>cnp.PyArray_DATA(w)
    item.n = cnp.PyArray_SIZE(w)
    item.itemsize = <int>cnp.PyArray_ITEMSIZE(w)
    item.type_num = cnp.PyArray_TYPE(w)
    item.dtype, item.reals = NUMBERS[item.type_num]
    item.layout = cnp.NPY_ARRAY_ALIGNED | (cnp.NPY_ARRAY_C_CONTIGUOUS if c_order else cnp.NPY_ARRAY_F_CONTIGUOUS)
    item.group = group
    item.ndim = cnp.PyArray_NDIM(w)
    for axis in range(item.ndim):
        item.shape[axis] = cnp.PyArray_DIMS(w)[axis]
    item.row = item.n // item.shape[0] if item.n > 0 and item.ndim > 0 else item.n
    return 0


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
    return f"{'float' if item.reals == 1 else 'complex'}{8 * item.itemsize}"


cdef tuple expected_shape(const Item *item):
    return tuple([item.shape[axis] for axis in range(item.ndim)])


cdef int aim(const Item *item, Gradient *found, cnp.ndarray g, const Span *spans, Py_ssize_t count, Line line,
             Py_ssize_t i) except -1:
    """Check a gradient against its parameter and all memory that the step writes, and note where it was found.

    No Python code runs here, unless to raise: whatever was checked stays as it is until the step is done with it.
    """
    cdef Span reach
    if not same_dtype(item, g):
        raise TypeError(f"{label(line, 'grads', i)}: dtype {g.dtype}, expected {dtype_name(item)}, as the parameter")
    if not same_shape(item, g):
        raise ValueError(f"{label(line, 'grads', i)}: shape {shape_of(g)}, expected {expected_shape(item)}")
    found.direct = item.n == 0 or cnp.PyArray_FLAGS(g) & item.layout == item.layout
    found.active = item.n
    found.clip_factor = 1
    if item.n == 0:
        return 0
    found.g = <char *>cnp.PyArray_DATA(g)
    if found.direct and item.gradient.direct and found.g == item.gradient.g:
        return 0    # the memory that the step before took, and checked
    reach = reach_of(g)
    refuse_shared(item, g, &reach, spans, count, line, i)
    if not found.direct:
        for axis in range(item.ndim):
            item.strides[axis] = cnp.PyArray_STRIDES(g)[axis]
    return 0


cdef Span reach_of(cnp.ndarray a) noexcept:
    """The memory between the lowest and the highest byte of an array that is not empty."""
    cdef Span reach = Span(<size_t>cnp.PyArray_DATA(a), <size_t>cnp.PyArray_DATA(a) + cnp.PyArray_ITEMSIZE(a), 0)
    cdef Py_ssize_t along
    cdef int axis
    for axis in range(cnp.PyArray_NDIM(a)):
        along = cnp.PyArray_STRIDES(a)[axis] * (cnp.PyArray_DIMS(a)[axis] - 1)
        if along < 0:
            reach.start += along
        else:
            reach.stop += along
    return reach


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


cdef int refuse_shared(const Item *item, cnp.ndarray g, const Span *reach, const Span *spans, Py_ssize_t count,
                       Line line, Py_ssize_t i) except -1:
    """Raise if a gradient shares memory with a span. One that merely strides over a span, such as a column of a table
    that holds a parameter in another column, does not."""
    cdef const Span *span = overlap(spans, count, reach.start, reach.stop)
    while span != NULL:
        if cnp.PyArray_IS_C_CONTIGUOUS(g) or cnp.PyArray_IS_F_CONTIGUOUS(g) or rmsfast_strides_into(
                span.start - reach.start, span.stop - reach.start, item.itemsize, cnp.PyArray_NDIM(g),
                <const Py_ssize_t *>cnp.PyArray_DIMS(g), <const Py_ssize_t *>cnp.PyArray_STRIDES(g)):
            raise ValueError(f"{label(line, 'grads', i)}: shares memory with {owner_of(line, span)}: pass a copy")
        span = overlap(spans, count, span.stop, reach.stop)
    return 0


# ---- Gradients by rows ----

cdef int MOST_ROWS = 2**31 - 1      # that one gradient has

@cython.final
cdef class SummedRows:
    """The gradient of some rows of a parameter, each row once: where rows were given more than once, their sum.

    Parameters
    ----------
    name : str
        What messages call the gradient.
    w : ndarray
        The parameter.
    indices : array-like of integers, shape (k,)
        Which rows of w; they are copied before anything is looked at.
    given : ndarray, shape (k, \*w.shape[1:])
        Their gradients. Repeated rows are summed in the order in which they appear, in w's type.
    """
    def __cinit__(self, str name, cnp.ndarray w not None, indices, cnp.ndarray given not None):
        asked = np.array(indices)
        self.source = given
        self.given = given = given.view()
        if asked.size == 0 and not isinstance(indices, np.ndarray):
            asked = asked.astype(np.intp)
        if asked.dtype.kind not in "iu":
            raise TypeError(f"{name}.indices: dtype {asked.dtype}, expected integers")
        if asked.ndim != 1:
            raise ValueError(f"{name}.indices: shape {asked.shape}, expected one axis")
        if cnp.PyArray_NDIM(w) == 0:
            raise ValueError(f"{name}: rows, expected an array without any axis, as the parameter")
        if given.dtype != w.dtype or not cnp.PyArray_ISNOTSWAPPED(given):
            raise TypeError(f"{name}.values: dtype {given.dtype}, expected {w.dtype}, as the parameter")
        expected = (len(asked), *shape_of(w)[1:])
        if shape_of(given) != expected:
            raise ValueError(f"{name}.values: shape {shape_of(given)}, expected {expected}: a row for each index")
        self.c_order = cnp.PyArray_IS_C_CONTIGUOUS(w)
        self.limit = cnp.PyArray_DIMS(w)[0]
        self.rows = np.require(turned(given, self.c_order), requirements=["C_CONTIGUOUS", "ALIGNED"])

        self.sum_rows(name, asked)

    def __dealloc__(self):
        PyMem_Free(self.grads)

    cdef int sum_rows(self, str name, cnp.ndarray asked) except -1:
        """Find where the gradient of each distinct row is, and add up those that repeat."""
        cdef Py_ssize_t n = len(asked), size = cnp.PyArray_NBYTES(self.rows) // max(n, 1)
        cdef cnp.ndarray rows = asked.astype(np.intp, copy=False)
        cdef const Py_ssize_t *wanted = <const Py_ssize_t *>cnp.PyArray_DATA(rows)
        cdef int bits = (2 * n).bit_length()
        cdef cnp.ndarray distinct = np.empty(n, np.intp), table = np.zeros(1 << bits, np.int32)
        cdef Py_ssize_t *found = <Py_ssize_t *>cnp.PyArray_DATA(distinct)
        cdef cnp.int32_t *slots = <cnp.int32_t *>cnp.PyArray_DATA(table)
        cdef rmsfast_fpmode mode
        if n > MOST_ROWS:
            raise ValueError(f"{name}: {n} rows, expected {MOST_ROWS} at most")
        self.grads = <const char **>PyMem_Malloc(max(n, 1) * sizeof(char *))
        if self.grads == NULL:
            raise MemoryError(f"no memory for {n} rows")
        self.first = <const char *>cnp.PyArray_DATA(self.rows)
        self.count = rmsfast_distinct(found, self.grads, wanted, n, self.limit, self.first, size, slots, bits)
        if self.count < 0:
            i = -1 - self.count
            raise ValueError(f"{name}.indices[{i}]: {asked[i]}, expected a row from 0 to {self.limit - 1}")
        if self.count < n:
            self.sums = np.empty((n - self.count) * size, np.uint8)
            mode = rmsfast_fpmode_enter()
            rmsfast_sum_repeated(<char *>cnp.PyArray_DATA(self.sums), found, self.count, self.grads, wanted, n,
                                 self.first, size, slots, bits,
                                 NUMBERS[cnp.PyArray_TYPE(self.rows)][0] == RMSFAST_FLOAT64)
            rmsfast_fpmode_leave(mode)
        self.indices = distinct[:self.count]
        return 0

    cdef cnp.ndarray values(self):
        """The distinct rows as an array, `turned`."""
        cdef Py_ssize_t k, size = cnp.PyArray_ITEMSIZE(self.rows)
        shape = shape_of(self.rows)[1:]
        for axis in shape:
            size *= axis
        rows = np.empty((self.count, *shape), self.rows.dtype)
        for k in range(self.count):
            memcpy(<char *>cnp.PyArray_DATA(rows) + k * size, self.grads[k], size)
        return rows


cdef cnp.ndarray turned(cnp.ndarray rows, bint c_order):
    """Rows of an array in C order or in Fortran order, as a view whose own C order, row by row, is that of the elements
    in memory."""
    return rows if c_order else rows.transpose(0, *range(rows.ndim - 1, 0, -1))


cdef int aim_at_rows(const Item *item, Gradient *found, SummedRows g, const Span *spans, Py_ssize_t count, Line line,
                     Py_ssize_t i) except -1:
    """As `aim`. The rows were checked when they were summed; here, that this was done for a parameter such as this, and
    that their memory is where it was, and as large."""
    cdef Span reach
    if (cnp.PyArray_NDIM(g.rows) != item.ndim or not same_dtype(item, g.rows)
            or g.limit != item.shape[0] or g.c_order != in_c_order(item)
            or cnp.PyArray_SIZE(g.rows) != cnp.PyArray_DIMS(g.rows)[0] * item.row
            or cnp.PyArray_DATA(g.source) != cnp.PyArray_DATA(g.given)
            or cnp.PyArray_NBYTES(g.source) != cnp.PyArray_NBYTES(g.given)):
        raise ValueError(f"{label(line, 'grads', i)}: rows of another parameter, or moved since they were given, "
                         "expected rows of this one, and their memory to stay")
    found.rows = <const Py_ssize_t *>cnp.PyArray_DATA(g.indices)
    found.row_grads = g.grads
    found.active = g.count * item.row
    found.clip_factor = 1
    if found.active > 0:
        reach = reach_of(g.given)
        refuse_shared(item, g.given, &reach, spans, count, line, i)
        found.g = <char *>g.grads[0]
    return 0


# ---- The line of an optimizer, and its plan ----

cdef cnp.ndarray zeros_beside(cnp.ndarray w):
    """New zeros with w's dtype, shape and memory order, and its offset from a cache line."""
    cdef cnp.ndarray memory = np.zeros(cnp.PyArray_NBYTES(w) + CACHE_LINE, np.uint8)
    shift = (<size_t>cnp.PyArray_DATA(w) - <size_t>cnp.PyArray_DATA(memory)) % CACHE_LINE
    flat = memory[shift:shift + cnp.PyArray_NBYTES(w)].view(w.dtype)
    return flat.reshape(shape_of(w), order="C" if cnp.PyArray_IS_C_CONTIGUOUS(w) else "F")


cdef cnp.ndarray new_square_avg(cnp.ndarray w, double start):
    """The array v at the start; of complex numbers, both parts."""
    v = zeros_beside(w)
    if start != 0:
        with np.errstate(all="ignore"):     # as everywhere: what the type cannot hold is infinite, or 0
            v[...] = start if NUMBERS[cnp.PyArray_TYPE(w)][1] == 1 else complex(start, start)
    return v


cdef list NONFINITE = ["propagate", "raise", "skip"]


cdef rmsfast_settings as_struct(dict s) except *:
    """A group's settings for the stages; those of a schedule are numbers by now."""
    cdef rmsfast_settings settings
    settings.lr = s["lr"]
    settings.beta = s["beta"]
    settings.eps = s["eps"]
    settings.momentum = s["momentum"]
    settings.weight_decay = s["weight_decay"]
    settings.clip_value = INFINITY if s["clip_value"] is None else s["clip_value"]
    settings.clip_norm = INFINITY if s["clip_norm"] is None else s["clip_norm"]
    settings.clip_global_norm = INFINITY if s["clip_global_norm"] is None else s["clip_global_norm"]
    settings.nesterov = <bint>s["nesterov"]
    settings.centered = <bint>s["centered"]
    settings.decoupled_weight_decay = <bint>s["decoupled_weight_decay"]
    settings.eps_inside_sqrt = <bint>s["eps_inside_sqrt"]
    settings.lr_in_momentum = <bint>s["lr_in_momentum"]
    settings.bias_correction = <bint>s["bias_correction"]
    settings.maximize = <bint>s["maximize"]
    settings.nonfinite = NONFINITE.index(s["nonfinite"])
    return settings


@cython.final
cdef class Line:
    """The parameters of an optimizer in a row, group by group, with their state. A longer line takes the place of a
    shorter one; neither changes in length."""
    cdef readonly tuple groups
    cdef readonly tuple keys            # of the parameters: names, or else 0, 1, 2, …
    cdef readonly bint named
    cdef readonly bint single           # one array, given as itself
    cdef readonly list params
    cdef list states                    # of each parameter, a list of STATE_ARRAYS arrays, or None for one
    cdef Py_ssize_t count
    cdef Item *items
    cdef Record *records
    cdef Work *work
    cdef Py_ssize_t *axes               # room for the shape and strides of every item
    cdef Span *spans                    # of all memory that steps write, sorted
    cdef Py_ssize_t n_spans
    cdef Span *reaches                  # of the gradients, where they are to be set to zero
    cdef rmsfast_settings *settings     # by group
    cdef list values                    # the same as dicts
    cdef bint measures                  # a group asks for norms or for nonfinite elements, …
    cdef bint measures_all              # … or for the norm of all gradients
    cdef rmsfast_block *blocks          # room for what is measured, …
    cdef Py_ssize_t room_of_blocks      # … for so many, …
    cdef Py_ssize_t n_blocks            # … of which this step needs these
    cdef list bound                     # the gradients that a step without any takes, or None
    cdef bint plain                     # all gradients of this step lie as their parameters do
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
        for w in self.params:
            room += 2 * cnp.PyArray_NDIM(w)
        group_of = [g for g, group in enumerate(self.groups) for _ in group["params"]]

        self.settings = <rmsfast_settings *>calloc(len(self.groups), sizeof(rmsfast_settings))
        self.items = <Item *>calloc(self.count, sizeof(Item))
        self.records = <Record *>calloc(self.count, sizeof(Record))
        self.work = <Work *>calloc(1, sizeof(Work))
        self.reaches = <Span *>calloc(self.count, sizeof(Span))
        self.axes = axes = <Py_ssize_t *>calloc(room, sizeof(Py_ssize_t))
        for i in range(self.count):
            w = self.params[i]
            self.items[i].shape = axes
            self.items[i].strides = axes + cnp.PyArray_NDIM(w)
            axes += 2 * cnp.PyArray_NDIM(w)
            describe(&self.items[i], w, group_of[i])
            if i < kept:
                self.records[i].steps = shorter.records[i].steps
        states = [] if shorter is None else shorter.states.copy()
        for i in range(kept, self.count):
            square_avg = new_square_avg(self.params[i], self.groups[group_of[i]]["initial_square_avg"])
            states.append([square_avg, None, None])
        self.take_states(states)
        self.complete_states(self.groups)

    def __dealloc__(self):
        PyMem_Free(self.items)
        PyMem_Free(self.records)
        PyMem_Free(self.work)
        PyMem_Free(self.axes)
        PyMem_Free(self.spans)
        PyMem_Free(self.reaches)
        PyMem_Free(self.settings)
        PyMem_Free(self.blocks)

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

    cdef int complete_states(self, groups) except -1:
        """Make, as zeros, what the settings of the groups ask for and is not there yet."""
        cdef Py_ssize_t i, k
        states = None
        for i in range(self.count):
            group = groups[self.items[i].group]
            for k, wanted in ((GRAD_AVG, group["centered"]), (MOMENTUM_BUFFER, group["momentum"] != 0)):
                if wanted and self.states[i][k] is None:
                    if states is None:
                        states = [state.copy() for state in self.states]
                    states[i][k] = zeros_beside(self.params[i])
        if states is not None:
            self.take_states(states)
        return 0

    cdef int take_states(self, list states) except -1:
        """Work on these state arrays from now on, or raise and keep those from before.

        Sorts all memory that steps write, and refuses parameters that share some.
        """
        cdef Py_ssize_t i, k, nbytes
        cdef Span *spans
        found = []
        for i in range(self.count):
            nbytes = self.items[i].n * self.items[i].itemsize
            for k, a in enumerate([self.params[i], *states[i]]):
                if nbytes > 0 and a is not None:
                    found.append((<size_t>cnp.PyArray_DATA(a), <size_t>cnp.PyArray_DATA(a) + nbytes, OWNERS * i + k))
        found.sort()
        for (_, stop, first), (start, _, second) in zip(found, found[1:]):
            if stop > start:
                first, second = sorted([first // OWNERS, second // OWNERS])
                raise ValueError(f"{label(self, 'params', second)}: shares memory with {label(self, 'params', first)}, "
                                 "expected each parameter once")
        spans = <Span *>calloc(len(found), sizeof(Span))
        for i, (start, stop, owner) in enumerate(found):
            spans[i] = Span(start, stop, owner)
        PyMem_Free(self.spans)
        self.spans = spans
        self.n_spans = len(found)
        self.states = states
        self.warm = False
        for i in range(self.count):
            self.items[i].gradient.g = NULL     # it was checked against the spans from before
            for k, a in enumerate(states[i]):
                self.items[i].state[k] = NULL if a is None else <char *>cnp.PyArray_DATA(a)
        return 0

    cdef int take_settings(self, list values) except -1:
        """Go by these settings from now on, one dict for each group, or raise and keep those from before."""
        cdef Py_ssize_t i
        cdef const rmsfast_settings *s
        new = [as_struct(settings) for settings in values]
        self.complete_states(values)
        self.values = values
        self.measures = self.measures_all = False
        for i, settings in enumerate(new):
            self.settings[i] = settings
            s = &self.settings[i]
            self.measures |= asks_for_measures(s)
            self.measures_all |= s.clip_global_norm != INFINITY
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
        """Keep one gradient, unless it is None. False if it is no ndarray, or of a subclass, and no `SummedRows`."""
        if g != <PyObject *>None:
            if not is_exact_array(g) and type(<object>g) is not SummedRows:
                return False
            Py_INCREF(<object>g)
            self.records[i].grad = g
        return True

    cdef int verify(self) except -1:
        """Check every parameter and the gradients collected, and point the items to these.

        No Python code runs here, unless to raise: what was checked stays as it is until the step is done with it.
        """
        cdef Py_ssize_t i
        cdef size_t end = 0
        cdef const Item *item
        cdef PyObject *grad
        cdef Gradient found
        for i in range(self.count):     # first, since the spans are right only if no parameter moved
            check_unmoved(&self.items[i], <cnp.ndarray>PyList_GET_ITEM(self.params, i), self, i)
        self.plain = True
        self.n_blocks = 0
        for i in range(self.count):
            item = &self.items[i]
            grad = self.records[i].grad
            memset(&found, 0, sizeof(found))
            if grad != NULL:
                if is_exact_array(grad):
                    aim(item, &found, <cnp.ndarray>grad, self.spans, self.n_spans, self, i)
                else:
                    aim_at_rows(item, &found, <SummedRows>grad, self.spans, self.n_spans, self, i)
                self.plain &= found.direct
                end += found.active * item.itemsize + ITEM_COST
                found.first_block = self.n_blocks
                self.n_blocks += blocks_of(item, found.active)
            found.end = end
            put(&self.items[i].gradient, &found, sizeof(found))
        return 0

    cdef int check_bound(self) except -1:
        """Refuse bound gradients that are no longer where they were."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.items[i].gradient.g != self.records[i].bound:
                raise ValueError(f"{label(self, 'grads', i)}: resized or moved after it was bound, expected the same "
                                 "memory: bind the gradients again")
        return 0

    cdef bint check_erasable(self) except -1:
        """Refuse gradients that cannot be set to zero: read-only ones, and ones that share memory with each other.

        Returns whether Python code may have run.
        """
        cdef Py_ssize_t i, j, n = 0
        cdef cnp.ndarray g
        ran = False
        for i in range(self.count):
            if self.records[i].grad == NULL:
                continue
            g = memory_of(self.records[i].grad)
            if not cnp.PyArray_ISWRITEABLE(g):
                raise ValueError(f"{label(self, 'grads', i)}: read-only, expected a writable array, because zero_grads "
                                 "sets it to zero")
            if cnp.PyArray_SIZE(g) > 0:
                if folds(g):
                    raise ValueError(f"{label(self, 'grads', i)}: strides {(<object>g).strides} with shape "
                                     f"{shape_of(g)}, expected elements that share no memory, because zero_grads sets "
                                     "them to zero")
                self.reaches[n] = reach_of(g)
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
                    raise ValueError(f"{label(self, 'grads', second)}: shares memory with "
                                     f"{label(self, 'grads', first)}, expected memory of its own, because zero_grads "
                                     "sets it to zero")
        return ran

    cdef void let_go(self) noexcept:
        """Drop the references to the gradients."""
        cdef Py_ssize_t i
        cdef PyObject *g
        for i in range(self.count):
            g = self.records[i].grad
            if g != NULL:
                self.records[i].grad = NULL
                Py_DECREF(<object>g)

    cdef int make_room_for_blocks(self) except -1:
        if self.n_blocks > self.room_of_blocks:
            blocks = calloc(self.n_blocks, sizeof(rmsfast_block))
            PyMem_Free(self.blocks)
            self.blocks = <rmsfast_block *>blocks
            self.room_of_blocks = self.n_blocks
        return 0

    cdef int conclude(self, Work *work) noexcept:
        """Set the factors that clip, from what was measured. Returns the strictest answer to nonfinite elements that
        there are: RMSFAST_PROPAGATE, that is to go on, RMSFAST_SKIP or RMSFAST_RAISE."""
        cdef rmsfast_fpmode mode = rmsfast_fpmode_enter()
        cdef rmsfast_block measure
        cdef const rmsfast_settings *s
        cdef Item *item
        cdef double squares = 0, norm
        cdef Py_ssize_t i, nonfinite = 0
        cdef int answer = RMSFAST_PROPAGATE
        for i in range(self.count):
            item = &self.items[i]
            s = &self.settings[item.group]
            self.records[i].nonfinite = 0
            if item.gradient.g == NULL or not (self.measures_all or asks_for_measures(s)):
                continue
            measure = measure_of(work, item)
            squares += measure.squares
            nonfinite += measure.nonfinite
            self.records[i].nonfinite = measure.nonfinite
            if measure.nonfinite > 0 and s.nonfinite != RMSFAST_PROPAGATE and answer != RMSFAST_RAISE:
                answer = s.nonfinite
            if s.clip_norm != INFINITY:
                norm = sqrt(measure.squares)
                if isinf(norm) and measure.nonfinite == 0:
                    norm = norm_after_overflow(work, item)
                item.gradient.clip_factor = factor(norm, s.clip_norm)
        if self.measures_all and answer == RMSFAST_PROPAGATE:
            norm = sqrt(squares)
            if isinf(norm) and nonfinite == 0:
                norm = norm_after_overflow(work, NULL)
            for i in range(self.count):
                s = &self.settings[self.items[i].group]
                if s.clip_global_norm != INFINITY:
                    self.items[i].gradient.clip_factor = factor(norm, s.clip_global_norm)
        rmsfast_fpmode_leave(mode)
        return answer

    cdef int refuse_nonfinite(self) except -1:
        """Raise for the first parameter whose gradient has nonfinite elements and that wants it so."""
        cdef Py_ssize_t i
        cdef const Item *item
        for i in range(self.count):
            item = &self.items[i]
            if (self.records[i].grad != NULL and self.records[i].nonfinite > 0
                    and self.settings[item.group].nonfinite == RMSFAST_RAISE):
                raise FloatingPointError(f"{label(self, 'grads', i)}: {self.records[i].nonfinite} of "
                                         f"{item.gradient.active * item.reals} numbers are infinite or NaN, expected "
                                         "finite numbers (nonfinite='raise')")
        return 0

    cdef int count_step(self) noexcept:
        """Count this step for each parameter that has a gradient."""
        cdef Py_ssize_t i
        for i in range(self.count):
            self.records[i].steps += self.records[i].grad != NULL
        return 0

    cdef Py_ssize_t most_steps(self) noexcept:
        """The largest step count of all parameters."""
        cdef Py_ssize_t i, most = 0
        for i in range(self.count):
            most = max(most, self.records[i].steps)
        return most

    cdef int apply(self, rule, double grad_scale) except -1:
        """Let a Python function do what the kernel does. Returns the answer to nonfinite elements, as `conclude`.

        It is called with a tuple for each parameter that has a gradient, and with the scale. The tuple holds the
        settings, the step's number, and w, v, m, b and g as flat arrays of real numbers, of rows one after another. It
        works in place and returns, for each of them, how many nonfinite numbers kept it from doing anything.
        """
        cdef Py_ssize_t i
        cdef int answer = RMSFAST_PROPAGATE, wanted
        cdef Item *item
        stepping = [i for i in range(self.count) if self.records[i].grad != NULL]
        parameters = []
        for i in stepping:
            item = &self.items[i]
            c_order = in_c_order(item)
            g = <object>self.records[i].grad
            arrays = [np.asarray(self.params[i]), *self.states[i]]
            if isinstance(g, SummedRows):
                arrays = [None if a is None else turned(a, c_order)[(<SummedRows>g).indices] for a in arrays]
                g = (<SummedRows>g).values()
                c_order = True
            flat = [None if a is None else in_memory_order(a, c_order) for a in [*arrays, g]]
            parameters.append((self.values[item.group], self.records[i].steps + 1, *flat))
        for i, nonfinite in zip(stepping, rule(parameters, grad_scale)):
            self.records[i].nonfinite = nonfinite
            wanted = self.settings[self.items[i].group].nonfinite
            if nonfinite > 0 and answer != RMSFAST_RAISE:
                answer = wanted
        if answer == RMSFAST_PROPAGATE:
            for i, (_, _, *flat, _) in zip(stepping, parameters):
                g = <object>self.records[i].grad
                if isinstance(g, SummedRows):
                    indices = (<SummedRows>g).indices
                    for a, rows in zip([np.asarray(self.params[i]), *self.states[i]], flat):
                        if a is not None:
                            a = turned(a, in_c_order(&self.items[i]))
                            a[indices] = rows.view(a.dtype).reshape(len(indices), *a.shape[1:])
        return answer

    cdef int erase_gradients(self, bint rows_only) except -1:
        """Set to zero what a step has not: the gradients by rows, or all of them."""
        cdef Py_ssize_t i
        cdef PyObject *g
        for i in range(self.count):
            g = self.records[i].grad
            if g != NULL and not (rows_only and is_exact_array(g)):
                memory_of(g)[...] = 0
        return 0


cdef cnp.ndarray memory_of(PyObject *g):
    """The array that a user gave for a gradient."""
    return <cnp.ndarray>g if is_exact_array(g) else (<SummedRows>g).given


cdef bint folds(cnp.ndarray a) noexcept:
    """Whether elements of an array that is not empty may share memory with each other."""
    cdef int ndim = cnp.PyArray_NDIM(a), axis, other
    cdef Py_ssize_t stride, reach
    for axis in range(ndim):
        if cnp.PyArray_DIMS(a)[axis] == 1:
            continue
        stride = abs(cnp.PyArray_STRIDES(a)[axis])
        reach = cnp.PyArray_ITEMSIZE(a)
        for other in range(ndim):       # what the axes reach that are no slower than this one
            if other != axis and abs(cnp.PyArray_STRIDES(a)[other]) <= stride:
                reach += abs(cnp.PyArray_STRIDES(a)[other]) * (cnp.PyArray_DIMS(a)[other] - 1)
        if stride < reach:
            return True
    return False


cdef int by_start(const void *a, const void *b) noexcept nogil:
    cdef size_t first = (<const Span *>a).start, second = (<const Span *>b).start
    return -1 if first < second else first > second


cdef bint shares_memory(g, h) except -1:
    """Whether two gradients share memory; True where that would take long to find out."""
    try:
        return np.shares_memory(memory_of(<PyObject *>g), memory_of(<PyObject *>h), max_work=10_000)
    except np.exceptions.TooHardError:
        return True


cdef void *calloc(Py_ssize_t count, size_t size) except NULL:
    """Zeroed memory for `PyMem_Free`."""
    cdef void *memory = PyMem_Calloc(count, size)
    if memory == NULL:
        raise MemoryError(f"no memory for {count} × {size} bytes")
    return memory


cdef cnp.ndarray in_memory_order(a, bint c_order):
    """An array's numbers in C order or in Fortran order, flat; a copy where needed."""
    flat = np.asarray(a).reshape(-1, order="C" if c_order else "F")
    return flat.view(flat.real.dtype)


@cython.final
cdef class Lock:
    """Lets one thread at a time use an optimizer; refuses a thread that comes back while it has it."""

    def __cinit__(self):
        self.make()

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef int make(self) except -1:
        """Begin with a free lock. One that was there is left as it is: a fork can fall into the middle of its work."""
        cdef PyThread_type_lock lock = PyThread_allocate_lock()
        if lock == NULL:
            raise MemoryError("no memory for a lock")
        self.lock = lock
        self.busy = False
        self.forks = forks
        return 0

    cdef bint acquire(self) except -1:
        """Returns whether a thread that a fork left behind had the lock, and what it was at remains as it was."""
        cdef bint abandoned = False
        if self.forks != forks:
            if self.busy and self.owner == survivor:
                self.forks = forks      # it has the lock still
            else:
                abandoned = self.busy
                self.make()
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            if self.busy and self.owner == PyThread_get_thread_ident():
                raise RuntimeError("the optimizer was called from inside one of its own calls")
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
        self.owner = PyThread_get_thread_ident()
        self.busy = True
        return abandoned

    cdef void release(self) noexcept:
        self.busy = False
        PyThread_release_lock(self.lock)


@cython.final
cdef class Flag:
    """Raised by a parameter group whose settings changed, lowered by the plan that reads them."""
    cdef public bint up

    def put(self, list held not None, dict settings not None):
        """Change settings that groups hold, and raise the flag: here, where no signal and no other thread can come
        between."""
        cdef dict each
        for each in held:
            each.update(settings)
        self.up = True


class Snapshot(typing.NamedTuple):
    """A plan as of one moment: what `Plan.state` returns, with copies; each group's settings; the numbers of steps
    taken and skipped; and copies of the parameters, or none."""
    line: object
    entries: list
    settings: list
    steps: int
    skipped: int
    params: list


@cython.final
cdef class Plan:
    """Everything about an optimizer's steps that is known beforehand, and the step itself, one call at a time.

    Parameters
    ----------
    changed : Flag
        Raised whenever the settings have to be read again.
    read_settings : callable
        Called with the groups and the number of steps taken so far. Returns a bool, whether to ask again at every step,
        and for each group a dict of its settings, with a number for a schedule.
    num_threads : int or None
        None follows `get_num_threads`.
    rule : callable or None
        A Python function in the kernel's place: see `Line.apply`.
    """
    cdef Lock lock
    cdef readonly Line line
    cdef readonly Py_ssize_t steps      # taken, whichever parameters had gradients
    cdef readonly Py_ssize_t skipped    # for their nonfinite gradients
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
        self.lock = Lock()

    cdef int begin(self) except -1:
        """Wait for this plan's turn. Drop what a thread that a fork left behind held for its step, and read the
        settings again, which it may have been at."""
        if self.lock.acquire():
            self.line.let_go()
            self.changed.up = True
        return 0

    def add_groups(self, list groups, bint single):
        """Take more groups with new state for their parameters, or raise and change nothing."""
        self.begin()
        try:
            self.line = Line(self.line, groups, single)
            self.changed.up = True
        finally:
            self.lock.release()

    def bind(self, list grads):
        """Let steps without gradients take these, one ndarray (of no subclass) or None for each parameter; None instead
        of them ends that. Raises if a step would; returns False if they are not in this form."""
        cdef Line line
        cdef Py_ssize_t i
        self.begin()
        line = self.line
        try:
            if grads is not None:
                if not line.collect(grads):
                    return False
                line.verify()
                for i in range(line.count):
                    line.records[i].bound = line.items[i].gradient.g
            line.bound = grads
            return True
        finally:
            line.let_go()
            self.lock.release()

    def step(self, grads, grad_scale, zero_grads):
        """Take one step, or raise and change nothing.

        Returns False, with nothing done, if an argument is not in the common form: grads a list or tuple with an
        ndarray (of no subclass), `SummedRows` or None for each parameter, a dict of such by name, the ndarray of a
        single parameter, or None where gradients are bound; grad_scale a finite float, not negative; zero_grads a bool.
        """
        cdef int most = most_threads(self.wanted_threads)
        cdef Line line
        cdef Work work
        cdef bint bound
        memset(&work, 0, sizeof(work))
        if not PyFloat_CheckExact(grad_scale) or not (zero_grads is False or zero_grads is True):
            return False
        work.grad_scale = PyFloat_AS_DOUBLE(grad_scale)
        work.zero_grads = zero_grads is True
        if not 0 <= work.grad_scale < INFINITY:
            return False
        self.begin()
        line = self.line
        try:
            bound = grads is None and line.bound is not None
            if not line.collect(line.bound if bound else grads):
                return False
            line.verify()
            if self.changed.up or self.scheduled:
                self.refresh()
                line.verify()       # again, because Python code ran
            if work.zero_grads and line.check_erasable():
                line.verify()
            if bound:
                line.check_bound()
            if line.measures:
                line.make_room_for_blocks()
            work.items = line.items
            work.records = line.records
            work.count = line.count
            work.settings = line.settings
            work.measure_all = line.measures_all
            work.shrink = 1
            put(line.work, &work, sizeof(work))
            self.take(line, most)
            return True
        finally:
            line.let_go()
            self.lock.release()

    cdef int take(self, Line line, int most) except -1:
        """Take a step for which everything was checked."""
        cdef Work *work = line.work
        cdef int answer = RMSFAST_PROPAGATE
        if self.rule is not None:
            answer = line.apply(self.rule, work.grad_scale)
        elif line.measures:
            work.blocks = line.blocks
            run(work, most, False)
            answer = line.conclude(work)
            work.blocks = NULL
        if answer == RMSFAST_RAISE:
            line.refuse_nonfinite()
        elif answer == RMSFAST_SKIP:
            self.skipped += 1
        else:
            if self.rule is None:
                run(work, most, line.warm and line.plain)
                line.warm = True
            line.count_step()
            self.steps += 1
        if work.zero_grads:
            line.erase_gradients(answer == RMSFAST_PROPAGATE and self.rule is None)
        return 0

    cdef int refresh(self) except -1:
        """Read the settings of all groups, or raise and keep those from before."""
        self.changed.up = False
        try:
            self.scheduled, values = self.read_settings(self.line.groups, self.steps)
            self.line.take_settings(values)
        except BaseException:
            self.changed.up = True
            raise
        return 0

    @property
    def num_threads(self):
        return self.wanted_threads or None

    def _stretches(self, grads, int threads):
        """Return what each thread of a team would update: a list of (parameter, first element, last + 1). For tests."""
        cdef Line line
        cdef Py_ssize_t i, first, last
        cdef size_t begin, start, stop
        cdef int t
        self.begin()
        line = self.line
        try:
            line.collect(grads)
            line.verify()
            stretches = []
            for t in range(threads):
                start = start_of(line.items[line.count - 1].gradient.end, t, threads)
                stop = start_of(line.items[line.count - 1].gradient.end, t + 1, threads)
                stretches.append([])
                begin = 0
                for i in range(line.count):
                    first = cut(&line.items[i], begin, start)
                    last = cut(&line.items[i], begin, stop)
                    if first < last:
                        stretches[t].append((i, first, last))
                    begin = line.items[i].gradient.end
            return stretches
        finally:
            line.let_go()
            self.lock.release()

    def state(self):
        """Return the line, and the key, step count and state arrays by name of each of its parameters.

        The arrays are views: what is done to such an array, but for its elements, does nothing to ours.
        """
        cdef Line line = self.line
        return line, [
            (
                key,
                line.records[i].steps,
                {name: a.view() for name, a in zip(STATE_NAMES, line.states[i]) if a is not None},
            )
            for i, key in enumerate(line.keys)
        ]

    def snapshot(self, bint with_params=False):
        """Return copies of everything as of one moment, of the parameters if asked for."""
        self.begin()
        try:
            line, entries = self.state()
            return Snapshot(
                line,
                [
                    (key, steps, {name: a.copy(order="K") for name, a in arrays.items()})
                    for key, steps, arrays in entries
                ],
                [group.settings() for group in line.groups],
                self.steps,
                self.skipped,
                [np.asarray(w).copy(order="K") for w in (<Line>line).params] if with_params else [],
            )
        finally:
            self.lock.release()

    def restore(self, Line line not None, list steps, list states, list settings, steps_taken, params=None,
                skipped=None):
        """Take over what was checked against a line: of each parameter its step count and a dict of its state arrays,
        perhaps this optimizer's own; for each group the dict that holds its settings, and what to put there; the number
        of steps taken, or None for the largest step count; and perhaps the parameters, and the number of steps skipped.
        Or, if a parameter changed, raise and change nothing."""
        cdef Py_ssize_t i, all_steps = -1 if steps_taken is None else steps_taken
        cdef Py_ssize_t all_skipped = self.skipped if skipped is None else skipped
        cdef const Item *item
        self.begin()
        try:
            given = [[state.get(name) for name in STATE_NAMES] for state in states]
            for i in range(line.count):
                for k, a in enumerate(given[i]):
                    if a is not None and shares_any(a, line.spans, line.n_spans):
                        given[i][k] = a.copy()
            for i in range(line.count):     # here, because other threads may have run until now
                item = &line.items[i]
                check_unmoved(item, line.params[i], line, i)
                for kind, a in zip(("params", *STATE_NAMES), (None if params is None else params[i], *given[i])):
                    if a is not None and not (same_dtype(item, a) and same_shape(item, a)):
                        raise ValueError(f"{label(line, kind, i)}: {a.dtype} of shape {shape_of(a)}, expected "
                                         f"{dtype_name(item)} of shape {expected_shape(item)}")
            own = []
            for i in range(line.count):
                own.append([
                    None if a is None else zeros_beside(line.params[i]) if old is None else old
                    for a, old in zip(given[i], self.line.states[i])
                ])
            own += self.line.states[line.count:]
            # From here on no Python code runs, so that a signal takes effect before or after all of it.
            self.line.take_states(own)
            for i in range(line.count):
                self.line.records[i].steps = steps[i]
                for a, old in zip(given[i], own[i]):
                    if a is not None:
                        old[...] = a
                if params is not None:
                    np.asarray(self.line.params[i])[...] = params[i]    # whatever a subclass makes of [...]
            for held, values in settings:
                self.changed.put([held], values)
            self.skipped = all_skipped
            self.steps = self.line.most_steps() if steps_taken is None else all_steps
        finally:
            self.lock.release()


cdef bint shares_any(a, const Span *spans, Py_ssize_t count):
    """Whether an array reaches over some memory that steps write."""
    start, stop = np.lib.array_utils.byte_bounds(a)
    return overlap(spans, count, start, stop) != NULL


# ---- One array, with the user's own state ----

def update(cnp.ndarray w not None, cnp.ndarray v not None, cnp.ndarray g not None,
           double lr, double beta, double eps, num_threads=None, rule=None):
    """Update w and v in place. A `rule`, called with them and g as flat arrays of real numbers, takes the kernel's
    place. See `rmsfast.rmsprop_update`."""
    cdef Item item
    cdef Gradient found
    cdef Span spans[2]
    cdef Py_ssize_t axes[2 * 64]        # NumPy's arrays have at most 64 axes
    cdef rmsfast_settings settings
    cdef Work work
    cdef int most = most_threads(as_threads(num_threads))
    check_updatable("w", w)
    check_updatable("v", v)
    memset(&item, 0, sizeof(item))
    item.shape = axes
    item.strides = axes + 64
    describe(&item, w, 0)
    if not same_dtype(&item, v):
        raise TypeError(f"v: dtype {v.dtype}, expected {dtype_name(&item)}, as w")
    if not same_shape(&item, v):
        raise ValueError(f"v: shape {shape_of(v)}, expected {shape_of(w)}, as w")
    if cnp.PyArray_FLAGS(v) & item.layout != item.layout:
        raise ValueError("v: memory order differs, expected that of w: both arrays in C order, or both in Fortran "
                         "order")
    item.state[SQUARE_AVG] = <char *>cnp.PyArray_DATA(v)

    cdef size_t nbytes = item.n * item.itemsize
    cdef bint w_first = item.w < item.state[SQUARE_AVG]
    spans[0 if w_first else 1] = Span(<size_t>item.w, <size_t>item.w + nbytes, 0)
    spans[1 if w_first else 0] = Span(<size_t>item.state[SQUARE_AVG], <size_t>item.state[SQUARE_AVG] + nbytes, 1)
    if spans[0].stop > spans[1].start and nbytes > 0:
        raise ValueError("v: shares memory with w, expected memory of its own")
    memset(&found, 0, sizeof(found))
    aim(&item, &found, g, spans, 2, None, 0)
    found.end = nbytes
    item.gradient = found
    if rule is not None:
        rule(*[in_memory_order(a, in_c_order(&item)) for a in (w, v, g)])
        return
    memset(&settings, 0, sizeof(settings))
    settings.lr = lr
    settings.beta = beta
    settings.eps = eps
    settings.clip_value = settings.clip_norm = settings.clip_global_norm = INFINITY
    memset(&work, 0, sizeof(work))
    work.items = &item
    work.count = 1
    work.settings = &settings
    work.grad_scale = 1
    run(&work, most, item.gradient.direct)
