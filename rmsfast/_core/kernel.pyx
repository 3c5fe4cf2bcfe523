"""The loops: a stretch of the line of elements, tile by tile, stage by stage.

In come pointers, lengths and settings, which `plan.pyx` has checked. Each thread takes one stretch, and each tile of it
goes through the stages: bring the gradient in, update, set the gradient to zero if that was asked for.
"""

import os

cimport cython
from cython.parallel cimport prange
from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcpy, memset


cdef extern from "csrc/rmsfast.h" nogil:
    ctypedef union rmsfast_scalars:
        pass
    ctypedef int (*rmsfast_form)(rmsfast_scalars *scalars, const rmsfast_settings *settings, double grad_scale,
                                 double clip_factor, double correction) noexcept
    ctypedef void (*rmsfast_measure)(rmsfast_block *blocks, const void *g, Py_ssize_t n, double grad_scale,
                                     double shrink) noexcept
    ctypedef void (*rmsfast_update)(void *w, void *v, void *m, void *b, const void *g, Py_ssize_t n,
                                    const rmsfast_scalars *scalars) noexcept
    ctypedef void (*rmsfast_settle)(void *w, void *a, Py_ssize_t n, const rmsfast_scalars *scalars) noexcept
    ctypedef struct rmsfast_stages:
        rmsfast_form form
        rmsfast_measure measure
        rmsfast_settle settle
        rmsfast_update update[2][3][2]
    ctypedef void (*rmsfast_load)(float *x, const void *data, const void *more, Py_ssize_t start, Py_ssize_t n) noexcept
    ctypedef void (*rmsfast_store)(void *data, void *more, Py_ssize_t start, Py_ssize_t n, const float *x,
                                   const uint16_t *random) noexcept
    ctypedef struct rmsfast_stored:
        void *data
        void *more
        int format
        int draws
        uint64_t key
        Py_ssize_t element
    ctypedef void (*rmsfast_update_stored)(const rmsfast_stored *numbers, Py_ssize_t length, const rmsfast_stored *grad,
                                           Py_ssize_t place, Py_ssize_t n, rmsfast_update update, rmsfast_settle settle,
                                           const rmsfast_scalars *scalars) noexcept
    ctypedef struct rmsfast_storage:
        rmsfast_load load[7]
        rmsfast_store store[2][7]
        rmsfast_update_stored update
    uint64_t rmsfast_key(uint64_t seed, uint64_t parameter, uint64_t step, uint64_t stream)
    ctypedef struct rmsfast_isa:
        const char *name
        const rmsfast_storage *storage
        const rmsfast_stages *stages[3][2]
    const rmsfast_isa *rmsfast_usable_isa(int k)
    int rmsfast_choose_roots(rmsfast_stages *stages, const rmsfast_isa *isa)
    int RMSFAST_STORED
    int RMSFAST_NO_MOMENTUM, RMSFAST_MOMENTUM, RMSFAST_NESTEROV
    void RMSFAST_PREFETCH(const void *, int writes)
    void rmsfast_gather(void *out, const char *g, Py_ssize_t start, Py_ssize_t n, Py_ssize_t itemsize, int ndim,
                        const Py_ssize_t *shape, const Py_ssize_t *strides)
    void rmsfast_zero(char *g, Py_ssize_t start, Py_ssize_t n, Py_ssize_t itemsize, int ndim, const Py_ssize_t *shape,
                      const Py_ssize_t *strides)

cdef extern from "csrc/fpmode.h" nogil:
    ctypedef struct rmsfast_fpmode:
        pass
    rmsfast_fpmode rmsfast_fpmode_enter()
    void rmsfast_fpmode_leave(rmsfast_fpmode)

cdef extern from *:
    """
    _Static_assert(RMSFAST_SCALED == 64 && RMSFAST_KINDS == 6, "as here");
    #ifdef _OPENMP
    enum { HAS_OPENMP = 1 };
    #else
    enum { HAS_OPENMP = 0 };
    #endif
    """
    bint HAS_OPENMP

OPENMP = HAS_OPENMP


# ---- Instruction sets and roots: the choice is made once, here ----

cdef const rmsfast_isa *isa = NULL
cdef rmsfast_stages stages_of[3]     # float32, float64, and float32 numbers that are not all stored as they are


cdef tuple choose_isa(wanted):
    """Take the widest usable instruction set, or the one called `wanted`. Returns all usable names."""
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
    """Take the fastest square root for each update, or the one called `wanted` for all. Returns its name."""
    cdef int k
    names = [name for k, name in enumerate(("divider", "fma", "mixed")) if isa.stages[k][0] != NULL]
    if not wanted:
        return names[rmsfast_choose_roots(stages_of, isa)]
    if wanted not in names:
        raise ImportError(f"RMSFAST_ROOT: {wanted!r}, expected one that {ISA} has here: {', '.join(names)}")
    for k in range(RMSFAST_STORED + 1):
        stages_of[k] = isa.stages[<int>names.index(wanted)][RMSFAST_FLOAT32 if k == RMSFAST_STORED else k][0]
    return wanted


ROOT = choose_root(os.environ.get("RMSFAST_ROOT"))


# ---- Stages ----

cdef Storage AS_THEY_ARE     # all numbers

cdef enum:
    # Numbers that go from stage to stage at a time, where there is more than one. They are so few that the end of one
    # tile's update, which waits for the divider, overlaps with the gathering for the next tile.
    TILE = 256
    # How many rows ahead to begin to read, and how many bytes of one.
    ROWS_AHEAD = 8
    FETCHED = 512


cdef Py_ssize_t cut(const Item *item, size_t begin, size_t at) noexcept nogil:
    """The element at which a cut of the line falls into an item that begins at `begin`, moved to a cache line."""
    cdef size_t inside, nbytes
    if at <= begin:
        return 0
    if at >= item.gradient.end:
        return item.gradient.active
    nbytes = item.gradient.active * item.weight
    inside = min(at - begin, nbytes)
    if inside == nbytes:
        return item.gradient.active
    if item.storage != NULL:
        return <Py_ssize_t>inside // item.weight // SCALED * SCALED
    inside -= min(inside, (<size_t>item.w + inside) % CACHE_LINE)
    return <Py_ssize_t>inside // item.itemsize


cdef inline char *at_byte(char *memory, Py_ssize_t offset) noexcept nogil:
    """A place in some memory, if there is any."""
    return NULL if memory == NULL else memory + offset


cdef inline void fetch_row(const Item *item, Py_ssize_t row) noexcept nogil:
    """Begin to read a row, or its first bytes. Rows lie anywhere in memory, and the loop would wait for each."""
    cdef Py_ssize_t place = row * (item.row if item.c_order else 1) * item.itemsize
    cdef Py_ssize_t stop = place + min(item.row * item.itemsize, <Py_ssize_t>FETCHED)
    while place < stop:
        RMSFAST_PREFETCH(item.w + place, 1)
        RMSFAST_PREFETCH(item.state[SQUARE_AVG] + place, 1)
        place += CACHE_LINE


cdef inline const char *bring_in(const Item *item, Py_ssize_t start, Py_ssize_t *n, Py_ssize_t *place,
                                 void *room) noexcept nogil:
    """Where n elements of the gradient lie, from the `start`-th on, in the parameter's order, or else in `room`.

    They belong to those of the parameter that begin at `place`. Of rows, n falls to what lies side by side.
    """
    cdef Py_ssize_t k, inside
    place[0] = start
    if item.gradient.direct:
        return item.gradient.g + start * item.gradient.itemsize
    if item.gradient.rows == NULL:
        rmsfast_gather(room, item.gradient.g, start, n[0], item.gradient.itemsize, item.ndim, item.shape, item.strides)
        return <const char *>room
    k = start // item.row
    inside = start % item.row
    if inside == 0 and (k + ROWS_AHEAD + 1) * item.row <= item.gradient.active:
        fetch_row(item, item.gradient.rows[k + ROWS_AHEAD])
    if item.c_order:
        place[0] = item.gradient.rows[k] * item.row + inside
        n[0] = min(n[0], item.row - inside)
    else:
        place[0] = item.gradient.rows[k] + item.n // item.row * inside
        n[0] = 1
    return item.gradient.row_grads[k] + inside * item.gradient.itemsize


cdef inline void erase(const Item *item, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """Set elements of a gradient to zero; those of rows are left to the front, which knows the array given."""
    if item.gradient.direct:
        memset(item.gradient.g + start * item.gradient.itemsize, 0, n * item.gradient.itemsize)
    elif item.gradient.rows == NULL:
        rmsfast_zero(item.gradient.g, start, n, item.gradient.itemsize, item.ndim, item.shape, item.strides)


cdef struct Update:
    # The function that updates, and its numbers. They stay from item to item where nothing differs.
    const rmsfast_settings *settings
    int stages
    double clip_factor
    double correction
    rmsfast_scalars scalars
    rmsfast_update function
    rmsfast_settle settle       # what follows on a tile, or NULL, …
    bint averages               # … and whether it has a part for the averages


cdef inline bint is_stored(const Item *item) noexcept nogil:
    """Whether an item has numbers that are not stored as they are."""
    return item.storage != NULL or item.gradient.format != RMSFAST_AS_THEY_ARE


cdef inline void choose_update(Update *update, const Work *work, const Item *item) noexcept nogil:
    """Choose how to update an item, unless it is as the item before."""
    cdef const rmsfast_settings *s = &work.settings[item.group]
    cdef const Gradient *gradient = &item.gradient
    cdef int which = RMSFAST_STORED if is_stored(item) else item.dtype
    cdef const rmsfast_stages *stages = &stages_of[which]
    cdef int more
    if (update.settings == s and update.stages == which and update.clip_factor == gradient.clip_factor
            and update.correction == item.correction):
        return
    update.settings = s
    update.stages = which
    update.clip_factor = gradient.clip_factor
    update.correction = item.correction
    more = stages.form(&update.scalars, s, work.grad_scale, gradient.clip_factor, item.correction)
    update.function = stages.update[s.centered][
        RMSFAST_NO_MOMENTUM if s.momentum == 0 else RMSFAST_NESTEROV if s.nesterov else RMSFAST_MOMENTUM][more]
    update.averages = s.ema_decay >= 0
    update.settle = stages.settle if update.averages or s.clip_weights != INFINITY else NULL


cdef void update_item(const Work *work, const Item *item, const Update *update, Py_ssize_t start,
                      Py_ssize_t stop) noexcept nogil:
    """Update elements [start, stop) of those of a parameter that this step updates, tile by tile, stage by stage."""
    cdef double gathered[TILE]
    cdef Py_ssize_t tile = TILE // item.reals
    cdef bint at_once = item.gradient.direct and not work.zero_grads and update.settle == NULL
    cdef Py_ssize_t most = stop if at_once else tile
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
        if update.settle != NULL:
            update.settle(item.w + place, at_byte(item.state[EMA], place) if update.averages else NULL, n * item.reals,
                          &update.scalars)
        if work.zero_grads:
            erase(item, start, n)
        start += n


cdef void update_stored(const Work *work, const Item *item, const Update *update, Py_ssize_t start,
                        Py_ssize_t stop) noexcept nogil:
    """As `update_item`, where numbers are not stored as they are."""
    cdef double gathered[TILE]
    cdef rmsfast_stored numbers[6]
    cdef char *average = item.state[EMA] if update.averages else NULL
    cdef rmsfast_stored grad
    cdef const Storage *storage = &AS_THEY_ARE if item.storage == NULL else item.storage
    cdef Py_ssize_t most = stop if item.gradient.direct and not work.zero_grads else TILE
    cdef Py_ssize_t n, place
    cdef int k
    numbers[0] = rmsfast_stored(
        item.w, item.state[MASTER if storage.w == RMSFAST_MASTERED else REMAINDER], storage.w, storage.draws_w,
        rmsfast_key(storage.seed, storage.parameter, storage.step, 0) if storage.draws_w else 0, storage.element)
    for k in range(NUMBERS):
        numbers[1 + k] = rmsfast_stored(
            item.state[k], item.state[SCALES + k],
            RMSFAST_AS_THEY_ARE if item.state[k] == NULL else storage.state[k], True,
            rmsfast_key(storage.seed, storage.parameter, storage.step, 1 + k) if storage.draws else 0, storage.element)
    numbers[4] = rmsfast_stored(storage.copy, NULL, storage.mirror, False, 0, 0)
    numbers[5] = rmsfast_stored(average, NULL, RMSFAST_AS_THEY_ARE, False, 0, 0)
    grad = rmsfast_stored(NULL, NULL, item.gradient.format, False, 0, 0)
    while start < stop:
        n = min(most, stop - start)
        grad.data = <void *>bring_in(item, start, &n, &place, gathered)
        isa.storage.update(numbers, item.n, &grad, place, n, update.function, update.settle, &update.scalars)
        if work.zero_grads:
            erase(item, start, n)
        start += n


cdef void store_numbers(int format, int rounding, void *data, void *more, Py_ssize_t n, const float *x,
                        uint16_t *random) noexcept nogil:
    """Store n numbers as a format says."""
    cdef rmsfast_fpmode mode = rmsfast_fpmode_enter()
    isa.storage.store[rounding][format](data, more, 0, n, x, random)
    rmsfast_fpmode_leave(mode)


cdef void load_numbers(int format, float *x, const void *data, const void *more, Py_ssize_t n) noexcept nogil:
    """Bring back n numbers."""
    cdef rmsfast_fpmode mode = rmsfast_fpmode_enter()
    isa.storage.load[format](x, data, more, 0, n)
    rmsfast_fpmode_leave(mode)


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
    if item.gradient.direct and item.gradient.format == RMSFAST_AS_THEY_ARE:
        g = item.gradient.g + start * item.gradient.itemsize
        stages.measure(block, g, (stop - start) * item.reals, work.grad_scale, work.shrink)
        return
    while start < stop:
        filled = 0
        while filled < min(size, stop - start):
            n = min(size, stop - start) - filled
            g = bring_in(item, start + filled, &n, &place, room)
            if item.gradient.format == RMSFAST_AS_THEY_ARE:
                memcpy(<char *>numbers + filled * item.gradient.itemsize, g, n * item.gradient.itemsize)
            else:
                isa.storage.load[item.gradient.format](<float *>numbers + filled, g, NULL, 0, n)
            filled += n
        stages.measure(block, numbers, filled * item.reals, work.grad_scale, work.shrink)
        block += 1
        start += filled


# ---- The line ----

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
                choose_update(&update, work, item)
                if is_stored(item):
                    update_stored(work, item, &update, first, last)
                else:
                    update_item(work, item, &update, first, last)
            elif work.measure_all or asks_for_measures(&work.settings[item.group]):
                measure_item(work, item, first, last)
        begin = item.gradient.end
    rmsfast_fpmode_leave(mode)


cdef void work_line(const Work *work, size_t length, int threads) noexcept nogil:
    """Do the work on the whole line with a team. A smaller team than asked for shares the stretches."""
    cdef int t
    if threads == 1:
        work_stretch(work, 0, length)
        return
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        work_stretch(work, start_of(length, t, threads), start_of(length, t + 1, threads))
