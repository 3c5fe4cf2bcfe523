"""The steps of an optimizer on arrays, one call at a time: its plan, lock and settings, and its state as of one moment.

A call of `rmsfast.RMSProp.step` comes here first.
"""

cimport cython
cimport numpy as cnp
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_GET_SIZE
from libc.math cimport INFINITY

from rmsfast._core.arrays cimport ArrayPlan, zeros_beside
from rmsfast._core.kernel cimport EMA, RMSFAST_PROPAGATE, RMSFAST_RAISE, RMSFAST_SKIP, SCALED, cut, start_of
from rmsfast._core.memory cimport overlap
from rmsfast._core.plan cimport FINE, MOVED, refuse, refuse_nonfinite
from rmsfast._core.threads cimport Lock, as_threads, most_threads

import numpy as np

from rmsfast._core.formats import layout
from rmsfast._core.plan import STATE_NAMES


cdef extern from "csrc/atomic.h" nogil:
    size_t rmsfast_atomic_load(size_t *place)
    size_t rmsfast_atomic_exchange(size_t *place, size_t value)


cdef inline int verify(ArrayPlan plan) except -1:
    """Check everything, or raise."""
    return 0 if plan.check() == FINE else refuse(plan)


@cython.final
cdef class Flag:
    """Raised by a parameter group whose settings changed, lowered by the front that reads them.

    It is raised after the change and lowered before the settings are read, each in one operation that nothing passes. So a
    change that a reader misses leaves the flag up for the next one, also without a GIL.
    """
    cdef size_t raised

    cdef inline bint is_up(self) noexcept:
        return rmsfast_atomic_load(&self.raised) != 0

    cdef inline void turn(self, bint up) noexcept:
        rmsfast_atomic_exchange(&self.raised, up)

    @property
    def up(self):
        return self.is_up()

    @up.setter
    def up(self, bint up):
        self.turn(up)

    def put(self, list held not None, dict settings not None):
        """Change settings that groups hold, and raise the flag: here, where no signal can come between. Each group's
        settings change in one operation."""
        cdef dict each
        for each in held:
            each.update(settings)
        self.turn(True)


@cython.final
cdef class Snapshot:
    """An optimizer as of one moment."""
    cdef readonly ArrayPlan plan
    cdef readonly list entries          # what `ArrayFront.state` returns, with copies
    cdef readonly list settings         # of each group
    cdef readonly Py_ssize_t steps      # taken, …
    cdef readonly Py_ssize_t skipped    # … and skipped
    cdef readonly list fresh            # keys of parameters whose average did not move and was not loaded
    cdef readonly list params           # copies of the parameters, or none


@cython.final
cdef class ArrayFront:
    """The steps of an optimizer on arrays, one call at a time.

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
        A Python function in the kernel's place: see `ArrayPlan.apply`.
    stateless : bool
        True for parameters that others update: they have no state here, and `check` takes the place of `step`.
    """
    cdef Lock lock
    cdef readonly ArrayPlan plan
    cdef readonly Py_ssize_t steps      # taken, whichever parameters had gradients
    cdef readonly Py_ssize_t skipped    # for their nonfinite gradients
    cdef Flag changed
    cdef bint scheduled
    cdef object read_settings
    cdef object rule
    cdef int wanted_threads
    cdef public list loans              # memory that others own: each step asks them to `check` it
    cdef dict away                      # own numbers, by index, of parameters that hold their averages now; or None
    cdef list factors                   # what `clip` was given, or None

    def __cinit__(self, Flag changed not None, read_settings, num_threads, rule, bint stateless=False):
        self.wanted_threads = as_threads(num_threads)
        self.changed = changed
        self.read_settings = read_settings
        self.rule = rule
        self.plan = ArrayPlan(None, [], False, stateless)
        self.lock = Lock()
        self.loans = []

    cdef int begin(self) except -1:
        """Take this optimizer's lock. If a fork cut off the thread that had it, drop the references to its gradients, and
        have the settings read again, because that thread may have been changing them."""
        if self.lock.acquire():
            self.plan.let_go()
            self.changed.turn(True)
        return 0

    def add_groups(self, list groups, bint single):
        """Take more groups with new state for their parameters, or raise and change nothing."""
        cdef ArrayPlan plan
        self.begin()
        try:
            self.verify_unmoved()
            plan = ArrayPlan(self.plan, groups, single)
            plan.learn_from(self.plan)
            with cython.critical_section(self):     # for those that read it without the lock
                self.plan = plan
            self.changed.turn(True)
        finally:
            self.lock.release()

    def bind(self, list grads):
        """Let steps without gradients take these, one ndarray (of no subclass) or None for each parameter; None instead
        of them ends that. Raises if a step would; returns False if they are not in this form."""
        cdef ArrayPlan plan
        cdef Py_ssize_t i
        self.begin()
        plan = self.plan
        try:
            if grads is not None:
                if not plan.collect(grads):
                    return False
                verify(plan)
                for i in range(plan.count):
                    plan.records[i].bound = plan.items[i].gradient.g
            plan.bound = grads
            return True
        finally:
            plan.let_go()
            self.lock.release()

    def mirror(self, list copies):
        """Write each parameter to its array among these, rounded, now and in each step; None instead of them ends that. An
        array is None where a parameter has no copy. Returns False if there are more or fewer than parameters."""
        self.begin()
        try:
            if copies is not None and len(copies) != len(self.plan.keys):
                return False
            self.plan.take_copies(copies or [])
            self.changed.turn(True)     # how numbers are rounded is said with the settings
            return True
        finally:
            self.lock.release()

    def check(self, list grads not None, bint zero_grads):
        """Raise if a step with these gradients would, whatever the settings are. Returns False if they are not in the form
        of an ndarray (of no subclass), `SummedRows` or None for each parameter."""
        cdef ArrayPlan plan
        self.begin()
        plan = self.plan
        try:
            self.check_loans(False)
            if not plan.collect(grads):
                return False
            verify(plan)
            if zero_grads:
                plan.check_erasable()
            return True
        finally:
            plan.let_go()
            self.lock.release()

    def place(self, list origins not None):
        """Say of what each parameter is a part: the other parameter's index, and the element with which this part begins, in
        memory order and a multiple of 64. The random bits of stochastic rounding are those of the whole then."""
        cdef ArrayPlan plan
        self.begin()
        plan = self.plan
        try:
            if len(origins) != plan.count or any([element % SCALED for _, element in origins]):
                raise ValueError("origins: expected one for each parameter, beginning at a multiple of 64")
            plan.origins = origins
            plan.point()
            self.changed.turn(True)     # how numbers are rounded is said with the settings
        finally:
            self.lock.release()

    def clip(self, list factors):
        """Let the steps from now on multiply the gradients by these factors, one float for each parameter, where settings ask
        for norms or for nonfinite numbers: others have measured them. None ends that."""
        self.begin()
        try:
            if factors is not None and len(factors) != self.plan.count:
                raise ValueError(f"factors: {len(factors)}, expected {self.plan.count}")
            self.factors = factors
        finally:
            self.lock.release()

    def step(self, grads, grad_scale, zero_grads):
        """Take one step, or raise and change nothing.

        Returns False, with nothing done, if an argument is not in the common form: grads a list or tuple with an
        ndarray (of no subclass), `SummedRows` or None for each parameter, a dict of such by name, the ndarray of a
        single parameter, or None where gradients are bound; grad_scale a finite float, not negative; zero_grads a bool.
        """
        cdef int most = most_threads(self.wanted_threads), answer = RMSFAST_PROPAGATE
        cdef ArrayPlan plan
        cdef Py_ssize_t i
        cdef double scale
        cdef bint bound, erases = zero_grads is True
        if not PyFloat_CheckExact(grad_scale) or not (erases or zero_grads is False):
            return False
        scale = PyFloat_AS_DOUBLE(grad_scale)
        if not 0 <= scale < INFINITY:
            return False
        self.begin()
        plan = self.plan
        try:
            if self.away is not None:
                self.refuse_averages("step")
            bound = grads is None and plan.bound is not None
            self.check_loans(bound)
            if not plan.collect(plan.bound if bound else grads):
                return False
            verify(plan)
            if self.changed.is_up() or self.scheduled:
                self.refresh()
                verify(plan)       # again, because Python code ran
            if len(plan.fresh) > 0:
                plan.begin_averages([i for i in plan.fresh if plan.records[i].grad != NULL])
                verify(plan)
            if erases and plan.check_erasable():
                verify(plan)
            if bound:
                plan.check_bound()
            plan.prepare(scale, erases, most)
            if self.rule is not None:
                answer = plan.apply(self.rule, scale)
            elif plan.measures and self.factors is None:
                answer = plan.measure()
            elif plan.measures:
                for i in range(plan.count):
                    plan.items[i].gradient.clip_factor = self.factors[i]
            if answer == RMSFAST_RAISE:
                refuse_nonfinite(plan)
            if answer == RMSFAST_SKIP:
                self.skipped += 1
            else:
                if self.rule is None:
                    plan.update()
                else:
                    plan.count_step()
                self.steps += 1
                if len(plan.fresh) > 0:
                    plan.note_moves()
            if erases:
                plan.erase_gradients(answer == RMSFAST_PROPAGATE and self.rule is None)
            return True
        finally:
            plan.let_go()
            self.lock.release()

    cdef int check_loans(self, bint bound) except -1:
        """Raise if memory of the parameters, or of gradients that are `bound`, was moved or freed by its owner."""
        cdef list loans
        with cython.critical_section(self):     # others may put another list there
            loans = self.loans
        if PyList_GET_SIZE(loans) > 0:
            for loan in loans:
                if bound or not loan.bound:
                    loan.check()
        return 0

    cdef int refresh(self) except -1:
        """Read the settings of all groups, or raise and keep those from before."""
        if self.plan.stateless:
            raise RuntimeError("step: parameters without state, expected an optimizer that keeps some")
        self.changed.turn(False)
        try:
            self.scheduled, values = self.read_settings(self.plan.groups, self.steps)
            self.plan.take_values(values)
        except BaseException:
            self.changed.turn(True)
            raise
        return 0

    @property
    def num_threads(self):
        return self.wanted_threads or None

    def _stretches(self, grads, int threads):
        """Return what each thread of a team would update: a list of (parameter, first element, last + 1). For tests."""
        cdef ArrayPlan plan
        cdef Py_ssize_t i, first, last
        cdef size_t begin, start, stop, length
        cdef int t
        self.begin()
        plan = self.plan
        try:
            plan.collect(grads)
            verify(plan)
            length = plan.items[plan.count - 1].gradient.end
            stretches = []
            for t in range(threads):
                start = start_of(length, t, threads)
                stop = start_of(length, t + 1, threads)
                stretches.append([])
                begin = 0
                for i in range(plan.count):
                    first = cut(&plan.items[i], begin, start)
                    last = cut(&plan.items[i], begin, stop)
                    if first < last:
                        stretches[t].append((i, first, last))
                    begin = plan.items[i].gradient.end
            return stretches
        finally:
            plan.let_go()
            self.lock.release()

    # ---- State, as of one moment ----

    def state(self):
        """Return the plan, and the key, step count and state arrays by name of each of its parameters.

        The arrays are views: what is done to such an array, but for its elements, does nothing to ours.
        """
        cdef ArrayPlan plan
        cdef list states
        with cython.critical_section(self):     # this may be called without the lock
            plan = self.plan
        with cython.critical_section(plan):
            states = plan.states
        return plan, [
            (
                key,
                plan.records[i].steps,
                {name: a.view() for name, a in zip(STATE_NAMES, states[i]) if a is not None},
            )
            for i, key in enumerate(plan.keys)
        ]

    def snapshot(self, bint with_params=False):
        """Return copies of everything as of one moment, of the parameters if asked for."""
        cdef Snapshot taken
        self.begin()
        try:
            self.check_loans(False)
            if with_params and self.away is not None:
                self.refuse_averages("a copy of the parameters")
            if len(self.plan.fresh) > 0 and self.plan.check() != MOVED:
                self.plan.begin_averages(self.plan.fresh.difference(self.away or ()))
            taken = Snapshot()
            taken.plan, entries = self.state()
            taken.entries = [
                (key, steps, {name: a.copy(order="K") for name, a in arrays.items()})
                for key, steps, arrays in entries
            ]
            taken.settings = [group.settings() for group in taken.plan.groups]
            taken.steps = self.steps
            taken.skipped = self.skipped
            taken.fresh = [taken.plan.keys[i] for i in taken.plan.fresh]
            taken.params = [np.asarray(w).copy(order="K") for w in taken.plan.params] if with_params else []
            return taken
        finally:
            self.lock.release()

    def restore(self, ArrayPlan plan not None, list steps, list states, list settings, steps_taken, params=None,
                skipped=None):
        """Take over what was checked against a plan: of each parameter its step count and a dict of its state arrays,
        perhaps this optimizer's own; for each group the dict that holds its settings, and what to put there; the number
        of steps taken, or None for the largest step count; and perhaps the parameters, and the number of steps skipped.
        Or, if a parameter changed, raise and change nothing."""
        cdef Py_ssize_t i, all_steps = -1 if steps_taken is None else steps_taken
        cdef Py_ssize_t all_skipped = self.skipped if skipped is None else skipped
        self.begin()
        try:
            self.check_loans(False)
            if self.away is not None:
                self.refuse_averages("load")
            given = [[state.get(name) for name in STATE_NAMES] for state in states]
            forms = [layout(w, {**group.settings(), "centered": True, "momentum": 1, "ema_decay": 1})
                     for group in plan.groups for w in map(np.asarray, group["params"])]
            for i in range(plan.count):
                for k, a in enumerate(given[i]):
                    if a is not None and shares_any(a, plan):
                        given[i][k] = a.copy()
            if plan.check() == MOVED:       # here, because other threads may have run until now
                refuse(plan)
            for i, w in enumerate(plan.params):
                form = {"params": (w.dtype, w.shape), **forms[i]}
                for kind, a in zip(("params", *STATE_NAMES), (None if params is None else params[i], *given[i])):
                    if a is not None and (a.dtype, a.shape) != form[kind]:
                        raise ValueError(f"{plan.label(kind, i)}: {a.dtype} of shape {a.shape}, expected {form[kind][0]} "
                                         f"of shape {form[kind][1]}")
            own = []
            for i in range(plan.count):
                own.append([
                    None if a is None else zeros_beside(plan.params[i], forms[i][name]) if old is None else old
                    for name, a, old in zip(STATE_NAMES, given[i], self.plan.states[i])
                ])
            own += self.plan.states[plan.count:]
            # From here on no Python code runs, so that a signal takes effect before or after all of it.
            self.plan.take_states(own)
            for i in range(plan.count):
                self.plan.records[i].steps = steps[i]
                for a, old in zip(given[i], own[i]):
                    if a is not None:
                        old[...] = a
                if params is not None:
                    np.asarray(self.plan.params[i])[...] = params[i]    # whatever a subclass makes of [...]
            self.plan.write_copies()
            for held, values in settings:
                self.changed.put([held], values)
            self.plan.fresh.difference_update(range(plan.count))
            self.skipped = all_skipped
            self.steps = self.plan.most_steps() if steps_taken is None else all_steps
            self.plan.complete_states(self.plan.groups)     # an average that was not given begins as the parameter is
        finally:
            self.lock.release()

    # ---- Averages in the place of the parameters ----

    cdef int refuse_averages(self, str what) except -1:
        raise RuntimeError(f"{what}: inside averages(), where the parameters hold their averages, expected after it")

    cdef int swap_in(self) except -1:
        """Let the parameters hold their averages, where their groups have some now, or raise and change nothing."""
        cdef ArrayPlan plan
        cdef Py_ssize_t i
        self.begin()
        plan = self.plan
        try:
            if self.away is not None:
                self.refuse_averages("averages")
            self.check_loans(False)
            chosen = [i for i in range(plan.count) if plan.groups[plan.items[i].group]["ema_decay"] is not None]
            if not any([group["ema_decay"] is not None for group in plan.groups]):
                raise ValueError("averages: no group has an ema_decay, expected it in one at least: "
                                 "RMSProp(params, ema_decay=0.999)")
            self.verify_unmoved()
            plan.complete_states(plan.groups)
            plan.begin_averages(plan.fresh)
            away = {i: np.asarray(plan.params[i]).copy(order="K") for i in chosen}
            with np.errstate(all="ignore"):
                rounded = {i: plan.states[i][EMA].astype(w.dtype, copy=False) for i, w in away.items()}
            self.verify_unmoved()
            # From here on no Python code runs, so that a signal takes effect before or after all of it.
            self.away = away
            for i, average in rounded.items():
                np.asarray(plan.params[i])[...] = average
            plan.write_copies()
        finally:
            self.lock.release()
        return 0

    cdef int swap_out(self) except -1:
        """Give the parameters back the numbers that they had before `swap_in`. Then raise for the first that cannot have
        them, because it changed meanwhile."""
        cdef ArrayPlan plan
        cdef Py_ssize_t i
        self.begin()
        plan = self.plan
        try:
            if self.away is None:
                return 0
            gone, interruption = complaints_of([loan for loan in self.loans if not loan.bound])
            # From here on no Python code runs, so that a signal takes effect before or after all of it.
            lost = []
            for i, own in self.away.items():
                w = np.asarray(plan.params[i])
                if plan.label("params", i) in gone or not is_like(w, own):
                    lost.append(i)
                    continue
                w[...] = own
                if plan.label("copies", i) not in gone:
                    plan.write_copy(i)
            self.away = None
            if lost:
                reason = gone.get(plan.label("params", lost[0]))
                if reason is None:
                    plan.find_fault(MOVED, lost[0])
                    try:
                        refuse(plan)
                    except ValueError as error:
                        reason = error
                raise ValueError(f"{reason}. It did not get its own numbers back")
            for reason in gone.values():
                raise reason
            if interruption is not None:
                raise interruption
            self.verify_unmoved()
        finally:
            self.lock.release()
        return 0

    cdef int verify_unmoved(self) except -1:
        """Raise if a parameter is not where and as it was."""
        if self.plan.check() == MOVED:
            refuse(self.plan)
        return 0


@cython.final
cdef class Averages:
    """A context in which the parameters of an optimizer hold their averages. It is compiled, so that no signal comes
    between the swap and the block.

    Parameters
    ----------
    front : ArrayFront
        The optimizer's.
    """
    cdef ArrayFront front

    def __cinit__(self, ArrayFront front not None):
        self.front = front

    def __enter__(self):
        self.front.swap_in()

    def __exit__(self, *error):
        self.front.swap_out()


cdef bint shares_any(a, ArrayPlan plan):
    """Whether an array reaches over some memory that steps write."""
    start, stop = np.lib.array_utils.byte_bounds(a)
    return overlap(plan.spans, plan.n_spans, start, stop) != NULL


cdef tuple complaints_of(list loans):
    """What loans say of memory that was moved or freed, by their labels; and what a signal raised meanwhile, or None."""
    found, interruption = {}, None
    for loan in loans:
        for _ in range(2):      # again after a signal, which says nothing of the memory
            try:
                loan.check()
            except ValueError as error:
                found[loan.label] = error
            except BaseException as error:
                interruption = error
                continue
            break
        else:
            found[loan.label] = interruption
    return found, interruption


cdef bint is_like(w, own):
    """Whether a parameter can take numbers of its own back."""
    return w.flags.writeable and w.dtype == own.dtype and w.shape == own.shape
