"""How numbers are stored, array by array: which arrays the state of a parameter has, and their numbers as float32.

The loops are the kernel's own. They round to nearest here: this is for states that are made or loaded, not for steps.
"""

cimport numpy as cnp
from libc.stdint cimport uint16_t

from rmsfast._core.kernel cimport (
    RMSFAST_BFLOAT16, RMSFAST_FLOAT16, RMSFAST_MASTERED, RMSFAST_NEAREST, RMSFAST_SIGNED8, RMSFAST_SPLIT,
    RMSFAST_UNSIGNED8, load_numbers, store_numbers,
)
from rmsfast._core cimport kernel

cnp.import_array()

import numpy as np

SCALED = kernel.SCALED    # elements that share a scale
cdef dict FORMATS = {"float16": RMSFAST_FLOAT16, "bfloat16": RMSFAST_BFLOAT16, "unsigned8": RMSFAST_UNSIGNED8,
                     "signed8": RMSFAST_SIGNED8, "split": RMSFAST_SPLIT, "mastered": RMSFAST_MASTERED}


def layout(w, settings):
    """Return the arrays of a parameter's state by name: the dtype and the shape of each.

    A bfloat16 has NumPy's dtype of that name where the parameter has it, else that of its 16 bits.
    """
    half = is_half(w.dtype)
    dtype = np.dtype(np.float32) if half else w.dtype
    if settings["state_dtype"] == "bfloat16":
        dtype = w.dtype if half and w.dtype != np.float16 else np.dtype(np.uint16)
    elif settings["state_dtype"] == "uint8":
        dtype = np.dtype(np.uint8)
    names = ["square_avg", *["grad_avg"] * settings["centered"], *["momentum_buffer"] * (settings["momentum"] != 0)]
    arrays = {name: (dtype, w.shape) for name in names}
    if dtype == np.uint8:
        arrays |= {f"{name}_scale": (dtype, (-(-w.size // SCALED),)) for name in names}
    if settings["master_weights"] and half:
        if w.dtype == np.float16:
            arrays["master"] = np.dtype(np.float32), w.shape
        else:
            arrays["remainder"] = np.dtype(np.int16), w.shape
    if settings["ema_decay"] is not None:
        arrays["ema"] = np.dtype(np.float32) if half else w.dtype, w.shape
    return arrays


def is_half(dtype):
    """Whether a dtype is float16 or bfloat16."""
    return dtype == np.float16 or dtype.name == "bfloat16"


cdef cnp.ndarray flat(a):
    """The elements of a contiguous array in memory order."""
    return np.asarray(a).reshape(-1, order="A")


def numbers_of(str kind, stored, more=None):
    """Return the numbers that an array stores, as float32 in the same order. `more` has the scales of its blocks if it has
    8 bits, and of masters what `layout` calls so, in the same order."""
    cdef cnp.ndarray data = flat(stored), rest
    cdef cnp.ndarray numbers = np.empty_like(np.asarray(stored), dtype=np.float32)
    cdef void *other = NULL
    if more is not None:
        rest = more
        other = cnp.PyArray_DATA(rest)
    load_numbers(FORMATS[kind], <float *>cnp.PyArray_DATA(numbers), cnp.PyArray_DATA(data), other,
                 cnp.PyArray_SIZE(data))
    return numbers


def exact(w, remainder=None, master=None):
    """Return the numbers that a parameter stands for: those of its master, if it has one."""
    for kind, more in ("mastered", master), ("split", remainder):
        if more is not None and more.shape == w.shape:      # else w was resized
            return numbers_of(kind, w, more)
    return w


def store_in(str kind, numbers, stored, scale=None):
    """Store float32 numbers in an array of the same shape and order, rounded to nearest."""
    cdef cnp.ndarray data = flat(stored), more
    cdef cnp.ndarray x = np.require(flat(numbers), np.float32, ["C", "A"])
    cdef void *scales = NULL
    if scale is not None:
        more = scale
        scales = cnp.PyArray_DATA(more)
    store_numbers(FORMATS[kind], RMSFAST_NEAREST, cnp.PyArray_DATA(data), scales, cnp.PyArray_SIZE(data),
                  <const float *>cnp.PyArray_DATA(x), NULL)
