"""What a front shows of an array or tensor: where its elements lie, how, and of what type. And questions about that.

NumPy and PyTorch are not known here. Functions that are used by several modules are inline, so this room has no code of
its own.
"""

cdef extern from "csrc/rmsfast.h" nogil:
    bint rmsfast_strides_into(Py_ssize_t start, Py_ssize_t stop, Py_ssize_t itemsize, int ndim,
                              const Py_ssize_t *shape, const Py_ssize_t *strides, Py_ssize_t unit)


cdef enum:
    # What an element is: NumPy's type numbers, so that an array shows its own; bfloat16 has none. OTHER is a type that has
    # no number here, or whose bytes have the other order.
    OTHER = -1
    UINT8 = 2
    INT16 = 3
    UINT16 = 4
    FLOAT32 = 11
    FLOAT64 = 12
    COMPLEX64 = 14
    COMPLEX128 = 15
    FLOAT16 = 23
    BFLOAT16 = 1000

cdef enum:
    MOST_AXES = 64

cdef enum:
    # Flags of a Memory, in NumPy's numbers.
    ALIGNED = 0x0100
    WRITABLE = 0x0400


cdef struct Memory:
    char *data              # the first element
    const Py_ssize_t *shape
    const Py_ssize_t *strides
    int ndim
    int format              # a number from above, or another one of NumPy's
    int unit                # what strides count: 1, as in NumPy, or the bytes of an element, as in PyTorch
    int flags


cdef struct Span:
    # Memory that a step writes, and whose it is.
    size_t start
    size_t stop
    Py_ssize_t owner


cdef inline bint is_taken(int format) noexcept nogil:
    """Whether the kernel takes parameters of a format."""
    return format == FLOAT32 or format == FLOAT64 or format == COMPLEX64 or format == COMPLEX128 or is_half(format)


cdef inline bint is_half(int format) noexcept nogil:
    return format == FLOAT16 or format == BFLOAT16


cdef inline bint fits(int format, int parameter) noexcept nogil:
    """Whether a parameter takes gradients of a format: its own, or one is float32 and the other half of that."""
    return format == parameter or (format == FLOAT32 and is_half(parameter)) or (is_half(format) and parameter == FLOAT32)


cdef inline int itemsize_of(int format) noexcept nogil:
    if format == FLOAT32:
        return 4
    if is_half(format) or format == INT16 or format == UINT16:
        return 2
    return 16 if format == COMPLEX128 else 1 if format == UINT8 else 8


cdef inline int reals_of(int format) noexcept nogil:
    """How many numbers an element has."""
    return 2 if format == COMPLEX64 or format == COMPLEX128 else 1


cdef inline Py_ssize_t size_of(const Memory *memory) noexcept nogil:
    """How many elements there are."""
    cdef Py_ssize_t size = 1
    cdef int axis
    for axis in range(memory.ndim):
        size *= memory.shape[axis]
    return size


cdef inline bint same_form(const Memory *seen, const Memory *shown, bint *direct) noexcept nogil:
    """Whether an array has the shape of a parameter; and whether its elements lie as that one's, whatever their size."""
    cdef int axis
    cdef Py_ssize_t size = 1, other = 1
    if seen.format != shown.format:
        size = seen.unit * itemsize_of(shown.format)
        other = shown.unit * itemsize_of(seen.format)
    direct[0] = True
    if seen.ndim != shown.ndim:
        return False
    for axis in range(seen.ndim):
        if seen.shape[axis] != shown.shape[axis]:
            return False
        if seen.strides[axis] * size != shown.strides[axis] * other and seen.shape[axis] != 1:
            direct[0] = False
    return True


cdef inline Span reach_of(const Memory *memory) noexcept nogil:
    """The memory between the lowest and the highest byte of elements, of which there is one at least."""
    cdef Span reach = Span(<size_t>memory.data, <size_t>memory.data + itemsize_of(memory.format), 0)
    cdef Py_ssize_t along
    cdef int axis
    for axis in range(memory.ndim):
        along = memory.strides[axis] * memory.unit * (memory.shape[axis] - 1)
        if along < 0:
            reach.start += along
        else:
            reach.stop += along
    return reach


cdef inline bint is_dense(const Memory *memory, int *axes) noexcept nogil:
    """Whether the elements lie one after another along some order of the axes. `axes` gets it, the slowest first."""
    cdef Py_ssize_t expected = itemsize_of(memory.format)
    cdef int i, k, axis
    for i in range(memory.ndim):    # insertion by falling stride. An axis of length 1 may be anywhere
        k = i
        while k > 0 and (memory.strides[axes[k - 1]] < memory.strides[i]
                         or (memory.strides[axes[k - 1]] == memory.strides[i] and memory.shape[axes[k - 1]] == 1)):
            axes[k] = axes[k - 1]
            k -= 1
        axes[k] = i
    for i in range(memory.ndim - 1, -1, -1):
        axis = axes[i]
        if memory.shape[axis] != 1:
            if memory.strides[axis] * memory.unit != expected:
                return size_of(memory) == 0
            expected *= memory.shape[axis]
    return True


cdef inline bint is_in_c_order(const Memory *memory) noexcept nogil:
    """Whether the elements lie one after another, the last axis moving fastest."""
    cdef Py_ssize_t expected = itemsize_of(memory.format)
    cdef int axis
    for axis in range(memory.ndim - 1, -1, -1):
        if memory.shape[axis] != 1:
            if memory.strides[axis] * memory.unit != expected:
                return size_of(memory) == 0
            expected *= memory.shape[axis]
    return True


cdef inline Py_ssize_t step_of(const Memory *memory, int axis) noexcept nogil:
    """How many bytes lie between two neighbours along an axis, in either direction."""
    cdef Py_ssize_t stride = memory.strides[axis] * memory.unit
    return -stride if stride < 0 else stride


cdef inline bint folds(const Memory *memory) noexcept nogil:
    """Whether elements, of which there is one at least, may share memory with each other."""
    cdef Py_ssize_t stride, other, reach
    cdef int axis, k
    for axis in range(memory.ndim):
        if memory.shape[axis] == 1:
            continue
        stride = step_of(memory, axis)
        reach = itemsize_of(memory.format)
        for k in range(memory.ndim):    # what the axes reach that are no slower than this one
            other = step_of(memory, k)
            if k != axis and other <= stride:
                reach += other * (memory.shape[k] - 1)
        if stride < reach:
            return True
    return False


cdef inline const Span *overlap(const Span *spans, Py_ssize_t count, size_t start, size_t stop) noexcept nogil:
    """The first of the sorted, disjoint spans that has a byte in [start, stop). NULL if none has."""
    cdef Py_ssize_t low = 0, high = count, i
    while low < high:       # the first span that stops after start
        i = (low + high) // 2
        if spans[i].stop > start:
            high = i
        else:
            low = i + 1
    return &spans[low] if low < count and spans[low].start < stop else NULL


cdef inline const Span *shared_with(const Memory *memory, bint dense, const Span *spans,
                                    Py_ssize_t count) noexcept nogil:
    """The first span with which elements share memory, or NULL. To stride over a span is not to share it: a column of a
    table may be a gradient while another column is its parameter."""
    cdef Span reach = reach_of(memory)
    cdef const Span *span = overlap(spans, count, reach.start, reach.stop)
    while span != NULL and not dense and not rmsfast_strides_into(
            span.start - reach.start, span.stop - reach.start, itemsize_of(memory.format), memory.ndim,
            memory.shape, memory.strides, memory.unit):
        span = overlap(spans, count, span.stop, reach.stop)
    return span
