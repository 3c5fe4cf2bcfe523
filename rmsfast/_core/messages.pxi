# What is said of what `check` found, and of nonfinite numbers: a part of plan.pyx.

cdef str owner_kind(Py_ssize_t owner):
    """What the owner of a span is to its parameter."""
    return ("params", *STATE_NAMES, "copies")[owner % OWNERS]


cdef str name_of(int format):
    """A dtype by NumPy's name."""
    return {FLOAT32: "float32", FLOAT64: "float64", COMPLEX64: "complex64", COMPLEX128: "complex128",
            FLOAT16: "float16", BFLOAT16: "bfloat16"}[format]


cdef tuple shape_of(const Memory *memory):
    return tuple([memory.shape[axis] for axis in range(memory.ndim)])


cdef int refuse(Plan plan) except -1:
    """Raise for the fault that `check` found."""
    cdef Py_ssize_t i = plan.fault_at
    cdef const Memory *shown = &plan.records[i].shown
    cdef Memory now
    cdef object g = <object>plan.records[i].grad if plan.records[i].grad != NULL else None
    cdef str expected = f"{name_of(shown.format)} of shape {shape_of(shown)}"
    if plan.fault == MOVED:
        kind = "params"
        if is_unmoved(plan, &plan.records[i], &plan.records[i].places[0]):
            kind, expected = "copies", "before"
        w = <object>plan.records[i].places[kind == "copies"].owner
        how = "" if plan.look(<PyObject *>w, &now) and now.flags & WRITABLE else "read-only "
        raise ValueError(f"{plan.label(kind, i)}: resized or changed after it was given to the optimizer: now "
                         f"{how}{w.dtype} of shape {tuple(w.shape)}, expected the same memory, writable, as {expected}")
    name = plan.label("grads", i)
    if plan.fault == WRONG_ROWS:
        raise ValueError(f"{name}: rows of another parameter, or moved since they were given, expected rows of "
                         "this one, and their memory to stay")
    if plan.fault == SHARED:
        owner = plan.fault_span.owner
        raise ValueError(f"{name}: shares memory with {plan.label(owner_kind(owner), owner // OWNERS)}, expected "
                         "memory of its own: pass a copy")
    if plan.fault == NO_MEMORY:
        raise ValueError(f"{name}: has no memory of its own, expected {expected} in this process's memory")
    if plan.fault == WRONG_TYPE:
        other = " (or float32)" if is_half(shown.format) else ""
        raise TypeError(f"{name}: dtype {g.dtype}, expected {name_of(shown.format)}, as the parameter{other}: "
                        "g.astype(w.dtype)")
    raise ValueError(f"{name}: shape {tuple(g.shape)}, expected {shape_of(shown)}, as the parameter"
                     f"{remedy_of(tuple(g.shape), shape_of(shown))}")


cdef str remedy_of(tuple shape, tuple expected):
    """What makes a gradient of the expected shape from one of another, or nothing where that is not known."""
    if len(shape) > 1 and shape[::-1] == expected:
        return ": g.T has it"
    if len(shape) > 0 and shape[1:] == expected and shape[0] != 1:
        return ": g.sum(axis=0) has it, if the first axis is that of a batch"
    if prod(shape) == prod(expected):
        return ": g.reshape(w.shape) has it"
    return ""


cdef int refuse_nonfinite(Plan plan) except -1:
    """Raise for the first parameter whose gradient has nonfinite numbers and that wants it so."""
    cdef Py_ssize_t i
    cdef const Item *item
    cdef const Record *record
    for i in range(plan.count):
        item = &plan.items[i]
        record = &plan.records[i]
        if record.nonfinite > 0 and plan.settings[item.group].nonfinite == RMSFAST_RAISE:
            of_all = "of its " if record.is_measured else f"of {item.gradient.active * item.reals} "
            raise FloatingPointError(f"{plan.label('grads', i)}: {record.nonfinite} {of_all}numbers are infinite or "
                                     "NaN, expected finite numbers (nonfinite='raise')")
    return 0
