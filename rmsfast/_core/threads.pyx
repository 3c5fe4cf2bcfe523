"""How many threads a step gets, and what a fork does to them.

A step asks `team_for`, and says to `record` how long it took. All that is learned belongs to the plan of the step. The
process shares only what the OpenMP runtime itself shares: which Python thread has its idle threads, and how many the
system has left.
"""

import operator
import os

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_get_thread_ident,
    PyThread_release_lock, PyThread_type_lock,
)
from libc.string cimport memset


cdef extern from "csrc/system.h" nogil:
    bint rmsfast_can_start(int count)
    int rmsfast_own_limit()
    bint rmsfast_prepare_fork()
    int rmsfast_last_team
    bint rmsfast_fork_is_safe

cdef extern from "csrc/atomic.h" nogil:
    size_t rmsfast_atomic_load(size_t *place)
    void rmsfast_atomic_store(size_t *place, size_t value)

cdef extern from *:
    """
    #ifdef _OPENMP
    enum { HAS_OPENMP = 1 };
    #else
    enum { HAS_OPENMP = 0 };
    static double omp_get_wtime(void) { return 0; }
    static int omp_in_parallel(void) { return 0; }
    static int omp_get_max_threads(void) { return 1; }
    #endif
    static int rmsfast_wait_for_lock(PyThread_type_lock lock) { return PyThread_acquire_lock_timed(lock, -1, 1); }
    """
    bint HAS_OPENMP
    double omp_get_wtime() nogil
    bint omp_in_parallel() nogil
    int omp_get_max_threads() nogil
    int rmsfast_wait_for_lock(PyThread_type_lock lock) nogil
    int PY_LOCK_ACQUIRED


include "policy.pxi"


# ---- What all threads of the process share ----

cdef PyThread_type_lock new_lock() except NULL:
    cdef PyThread_type_lock lock = PyThread_allocate_lock()
    if lock == NULL:
        raise MemoryError("no memory for a lock")
    return lock


# Lets one thread at a time change what all share, also where there is no GIL. Who has it runs no Python code, and keeps the
# GIL where there is one. So others wait for nanoseconds, and no fork falls in between.
cdef PyThread_type_lock gate = new_lock()


# ---- Limits: how many threads a step may use ----

cdef Tuning tuning = Tuning(
    smallest_work=1 << 18,
    bytes_to_release_gil=1 << 16,
    cores=0,
    forced=False,
    # The runtime keeps idle threads for each thread that has called it, and lets them spin for a while. So that they
    # stay few, one Python thread has teams at a time.
    seconds_to_inherit=1,
)
cdef int MOST_THREADS = 1024
cdef double SECONDS_TO_START = 1    # until threads are tried again, where the system had none left

# Written behind the gate, but for `unlimited`, for which all threads find the same number. Read there, or as one word.
cdef int default_threads = 0        # of `get_num_threads`; 0: not asked for yet
cdef int recounts = 0               # of the cores, that somebody asked for
cdef int unlimited = 0              # the runtime's own limit, where nobody has set another; 0: not asked for yet
cdef double alone_until = 0         # on `clock`: there were no threads left
cdef unsigned long team_owner = 0   # the Python thread that had the last team, or 0, …
cdef double last_team = 0           # … and when


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


def check_num_threads(value):
    """Raise unless `value` is a number of threads that steps can have, or None."""
    as_threads(value)


def get_num_threads():
    """Return how many threads a step may use where no `num_threads` is given.

    Returns
    -------
    int
        What `set_num_threads` was given last; before that, ``OMP_NUM_THREADS``; without it, the cores that this
        process may use (CPU affinity, cgroup quota).
    """
    global default_threads
    cdef int found
    if default_threads == 0:
        from rmsfast.threads import default_num_threads
        found = default_num_threads(MOST_THREADS)
        PyThread_acquire_lock(gate, WAIT_LOCK)
        if default_threads == 0:    # nobody set it meanwhile
            default_threads = found
        PyThread_release_lock(gate)
    return default_threads


def set_num_threads(n):
    """Set how many threads a step may use where no `num_threads` is given.

    Parameters
    ----------
    n : int
        From 1 to 1024. Small steps use fewer, because a thread has to be worth its start. No step uses more than the
        cores that this process may use. They are counted when they first matter, and again after each call of this
        function: call it where the CPU affinity or the cgroup quota changes. A limit that was set for the calling
        thread with ``omp_set_num_threads``, as threadpoolctl's ``threadpool_limits`` does, holds as well, if it is
        lower than what the OpenMP runtime began with: ``OMP_NUM_THREADS``, or all cores.

    Raises
    ------
    TypeError, ValueError
        If `n` is no integer, or out of range.
    """
    global default_threads, recounts
    cdef int count
    if n is None:
        raise TypeError(f"num_threads: None, expected an integer from 1 to {MOST_THREADS}")
    count = as_threads(n)
    PyThread_acquire_lock(gate, WAIT_LOCK)
    default_threads = count
    tuning.cores = 0
    recounts += 1
    PyThread_release_lock(gate)


cdef int count_cores() except -1:
    """The cores that this process may use. They are noted, unless somebody asked meanwhile to count them anew."""
    cdef int asked = recounts, cores
    from rmsfast.threads import usable_cores
    cores = usable_cores()
    PyThread_acquire_lock(gate, WAIT_LOCK)
    if recounts == asked:
        tuning.cores = cores
    PyThread_release_lock(gate)
    return cores


cdef int most_threads(int wanted) except -1:
    """How many threads a call may use that wants so many, or 0 for the default."""
    cdef int most = wanted if wanted != 0 else default_threads if default_threads != 0 else get_num_threads()
    cdef int cores
    if most == 1:
        return 1
    cores = tuning.cores        # once: another thread may ask for a new count
    return min(most, cores if cores != 0 else count_cores())


cdef int within_limit(int threads) noexcept:
    """No more of some threads than the limit that someone set for this thread with `omp_set_num_threads`: one that is
    lower than the runtime's own, which knows nothing of `set_num_threads`."""
    global unlimited
    cdef int limit = omp_get_max_threads(), own = unlimited
    if own == 0:
        own = unlimited = rmsfast_own_limit()
    return min(threads, limit) if limit < own else threads


def usable_threads():
    """Return how many threads a step of this thread may really use where no `num_threads` is given."""
    return within_limit(most_threads(0))


cdef double clock() noexcept nogil:
    """Seconds, for what is measured."""
    return omp_get_wtime()


cdef int team_for(const Learned *learned, size_t length, int *most, int *kept) noexcept:
    """How many threads a step on so many bytes gets, of those that it may use.

    `most` falls to the limit that someone set for this thread. `kept` is how many threads its last team had, of which
    the runtime keeps the threads.
    """
    cdef double now
    cdef int threads
    kept[0] = max(rmsfast_last_team, 1)
    if not HAS_OPENMP or most[0] == 1 or teams_were_lost:
        return 1
    most[0] = within_limit(most[0])
    if omp_in_parallel():
        return 1
    threads = most[0] if tuning.forced else decide(learned, length, most[0])
    now = clock()
    return threads if threads > 1 and take_teams(now) and there_is_room(threads, now) else 1


cdef bint take_teams(double now) noexcept:
    """Whether the calling thread may have teams. Then, for a while, no other thread may."""
    global team_owner, last_team
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef bint free
    PyThread_acquire_lock(gate, WAIT_LOCK)
    free = now >= alone_until and (team_owner == me or now >= last_team + tuning.seconds_to_inherit)
    if free:
        team_owner = me
        last_team = now
    PyThread_release_lock(gate)
    return free


cdef bint there_is_room(int threads, double now) noexcept:
    """Whether the system has the threads that a team of the calling thread needs."""
    global alone_until, rmsfast_last_team
    if threads > rmsfast_last_team and not rmsfast_can_start(threads - max(rmsfast_last_team, 1)):
        PyThread_acquire_lock(gate, WAIT_LOCK)
        alone_until = now + SECONDS_TO_START
        PyThread_release_lock(gate)
        return False
    rmsfast_last_team = threads     # what a smaller team does not need, the runtime lets go
    return True


def _tune(**changes):
    """Change constants, and forget who had teams. Returns the constants from before. For tests."""
    global tuning, alone_until, last_team
    cdef Tuning changed
    old = dict(tuning)
    changed = {**old, **changes}
    PyThread_acquire_lock(gate, WAIT_LOCK)
    tuning = changed
    alone_until = last_team = 0
    PyThread_release_lock(gate)
    return old


def _team_size(length, wanted):
    """Return how many threads a step on `length` bytes would use now, if it were the first. For tests."""
    cdef Learned nothing
    cdef int kept
    cdef int most = most_threads(as_threads(wanted))
    memset(&nothing, 0, sizeof(nothing))
    return team_for(&nothing, length, &most, &kept)


# ---- Fork: a child process has, of all threads, the one that forked ----

# Written in a new process, which has one thread.
cdef size_t forks = 0               # that led to this process
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


@cython.final
cdef class Lock:
    """Lets one thread at a time use an optimizer. Refuses a thread that comes back while it has it."""

    def __cinit__(self):
        self.lock = new_lock()
        self.forks = forks

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef bint acquire(self) except -1:
        """Returns whether a thread that a fork left behind had the lock, and what it was at remains as it was."""
        cdef size_t me = PyThread_get_thread_ident(), left_behind
        if rmsfast_atomic_load(&self.forks) != forks and self.renew(me, &left_behind):
            return left_behind != 0
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            if rmsfast_atomic_load(&self.owner) == me:
                raise RuntimeError("the optimizer was called from inside one of its own calls")
            self.wait()
        rmsfast_atomic_store(&self.owner, me)
        return False

    cdef bint renew(self, size_t me, size_t *left_behind) except -1:
        """Begin with a new lock after a fork, unless its thread has the lock still, or another thread has begun.

        Returns whether the calling thread has the lock now. `left_behind` is the thread that had it, or 0. The lock that was
        there is left as it is: the fork can have fallen into the middle of its work.
        """
        cdef PyThread_type_lock lock = new_lock()
        cdef bint taken = False
        PyThread_acquire_lock(lock, NOWAIT_LOCK)
        PyThread_acquire_lock(gate, WAIT_LOCK)
        if self.forks != forks:
            taken = self.owner == 0 or self.owner != survivor
            if taken:
                left_behind[0] = self.owner
                self.lock = lock
                rmsfast_atomic_store(&self.owner, me)
            rmsfast_atomic_store(&self.forks, forks)
        PyThread_release_lock(gate)
        if not taken:
            PyThread_release_lock(lock)
            PyThread_free_lock(lock)
        return taken

    cdef int wait(self) except -1:
        """Wait for the lock. A signal is handled meanwhile, and what its handler raises ends the wait."""
        cdef int answer
        while True:
            with nogil:
                answer = rmsfast_wait_for_lock(self.lock)
            if answer == PY_LOCK_ACQUIRED:
                return 0
            PyErr_CheckSignals()

    cdef void release(self) noexcept:
        rmsfast_atomic_store(&self.owner, 0)
        PyThread_release_lock(self.lock)
