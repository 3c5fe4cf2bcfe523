"""What the loops work on: a line of items. It has pointers, lengths and settings, and no types of NumPy or PyTorch.

All parameters of a step form one line of elements. An item of it is one parameter with its state and its gradient.
"""

from libc.math cimport INFINITY
from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcmp, memcpy


cdef extern from "csrc/rmsfast.h" nogil:
    ctypedef struct rmsfast_settings:
        double lr
        double beta
        double eps
        double momentum
        double weight_decay
        double clip_value
        double clip_norm
        double clip_global_norm
        double clip_weights
        double ema_decay
        int nesterov
        int centered
        int decoupled_weight_decay
        int eps_inside_sqrt
        int lr_in_momentum
        int bias_correction
        int maximize
        int nonfinite
        int stochastic
        uint64_t seed
    ctypedef struct rmsfast_block:
        double squares
        Py_ssize_t nonfinite
    int RMSFAST_FLOAT32, RMSFAST_FLOAT64
    int RMSFAST_PROPAGATE, RMSFAST_RAISE, RMSFAST_SKIP
    int RMSFAST_BLOCK
    int RMSFAST_AS_THEY_ARE, RMSFAST_FLOAT16, RMSFAST_BFLOAT16, RMSFAST_SPLIT, RMSFAST_MASTERED, RMSFAST_UNSIGNED8
    int RMSFAST_SIGNED8
    int RMSFAST_NEAREST, RMSFAST_STOCHASTIC


cdef enum:
    # The state of a parameter: arrays of numbers; with those of 8 bits, the scales of their blocks; with a bfloat16
    # parameter, the rest of its float32 master's bits, or with a float16 one that master; the average of the parameter.
    SQUARE_AVG, GRAD_AVG, MOMENTUM_BUFFER, NUMBERS
    SCALES = NUMBERS
    REMAINDER = SCALES + NUMBERS
    MASTER, EMA, STATE_ARRAYS

cdef enum:
    CACHE_LINE = 64
    SCALED = 64     # numbers that share a scale: RMSFAST_SCALED
    # An item costs this much beside its elements, in bytes of elements in the cache: 15 ns.
    ITEM_COST = 512


cdef struct Storage:
    # How the numbers of one parameter are stored, where they are float32 and not all are stored as they are.
    int w                   # RMSFAST_AS_THEY_ARE and so on
    int state[NUMBERS]
    bint draws              # some are rounded by random bits, …
    bint draws_w            # … also those of w; of these numbers:
    uint64_t seed
    uint64_t parameter      # its index, …
    Py_ssize_t element      # … and which of its elements is the first one here: a multiple of SCALED
    uint64_t step
    int mirror              # how w is stored once more, …
    char *copy              # … here, or NULL


cdef struct Gradient:
    # What a step takes for one parameter.
    char *g                 # NULL: this step leaves the parameter alone
    int format              # RMSFAST_AS_THEY_ARE and so on
    int itemsize            # bytes
    Py_ssize_t active       # elements that this step updates: all, or those of `rows`
    const Py_ssize_t *rows  # NULL: all; else those that have a gradient, and where it is
    const char *const *row_grads
    size_t end              # on the line: bytes up to the end of this item, and what items cost beside them
    Py_ssize_t first_block  # of the measured blocks, this item's first
    double clip_factor
    Py_ssize_t direct       # the gradient lies as the parameter does; else it is gathered with the item's `strides`


cdef struct Item:
    # One parameter on the line. All threads read it, so a step writes to it only what differs: see `put`.
    Gradient gradient
    double correction       # of the bias, in this step: 1, or 1/(1−βᵗ)
    char *w
    char *state[STATE_ARRAYS]   # NULL where the settings ask for none
    Py_ssize_t n            # elements
    Py_ssize_t row          # elements in one row, along the first axis
    int itemsize            # bytes
    int weight              # of an element on the line, in bytes
    int reals               # numbers in an element: two in a complex one
    int dtype               # RMSFAST_FLOAT32 or RMSFAST_FLOAT64
    int group
    int ndim
    Storage *storage        # NULL: all numbers are stored as they are
    bint c_order            # the first axis is the slowest in memory; else, for rows, it is the fastest
    Py_ssize_t *shape       # from the axis that is slowest in memory to the fastest
    Py_ssize_t *strides     # those of the gradient, in bytes, where it is not direct


cdef struct Work:
    # What the threads do: update the items, or, where there are `blocks`, measure their gradients.
    const Item *items
    Py_ssize_t count
    const rmsfast_settings *settings    # by group
    double grad_scale
    bint zero_grads
    rmsfast_block *blocks
    double shrink
    bint measure_all                    # a norm over all parameters is asked for


cdef inline void put(void *place, const void *new, size_t size) noexcept nogil:
    """Write what all threads read, but only if it differs.

    Other cores have to fetch a line of memory again that one core wrote, at 50 to 200 ns each.
    """
    if memcmp(place, new, size) != 0:
        memcpy(place, new, size)


cdef inline Py_ssize_t blocks_of(const Item *item, Py_ssize_t active) noexcept nogil:
    """How many blocks a gradient is measured in."""
    return (active * item.reals + RMSFAST_BLOCK - 1) // RMSFAST_BLOCK


cdef inline bint asks_for_measures(const rmsfast_settings *s) noexcept nogil:
    """Whether settings need a norm, or the count of nonfinite numbers."""
    return s.clip_norm != INFINITY or s.clip_global_norm != INFINITY or s.nonfinite != RMSFAST_PROPAGATE


cdef inline size_t start_of(size_t length, int t, int threads) noexcept nogil:
    """Where the stretch of the t-th thread begins. The stretch of the thread before ends there."""
    return length if t == threads else length // threads * t


cdef void store_numbers(int format, int rounding, void *data, void *more, Py_ssize_t n, const float *x,
                        uint16_t *random) noexcept nogil
cdef void load_numbers(int format, float *x, const void *data, const void *more, Py_ssize_t n) noexcept nogil
cdef Py_ssize_t cut(const Item *item, size_t begin, size_t at) noexcept nogil
cdef void measure_item(const Work *work, const Item *item, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
cdef void work_line(const Work *work, size_t length, int threads) noexcept nogil
