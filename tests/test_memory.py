"""Nothing is read or written beside an array, nothing is kept, and nothing is half-made where memory runs out."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from helpers import textbook

import rmsfast

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses Linux's mprotect or /proc")
sanitized = pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="ASan keeps memory of its own")


def run(program, *arguments, timeout=120):
    """Run a program in a process of its own: what it may die of must not end the tests."""
    command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


# ---- Beside an array ----

FENCED = """
import ctypes, mmap
import numpy as np
import rmsfast
from rmsfast._core.threads import _tune

PAGE = mmap.PAGESIZE
NONE = 0
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
maps = []

def fenced(values, at_end):
    \"\"\"An array between two pages that nobody may touch, at the end of what lies between, or at its beginning.\"\"\"
    inside = -(-max(values.nbytes, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, inside + 2 * PAGE)
    maps.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for place in start, start + PAGE + inside:
        assert libc.mprotect(place, PAGE, NONE) == 0
    offset = PAGE + (inside - values.nbytes if at_end else 0)
    a = np.frombuffer(memory, values.dtype, values.size, offset)
    a[...] = values.ravel()
    return a.reshape(values.shape)

_tune(forced=True, cores=8, seconds_to_inherit=0)
rng = np.random.default_rng(0)
count = 0
for at_end in True, False:
    for dtype in np.float32, np.float64, np.complex64:
        for n in [*range(70), 255, 256, 257, 1023, 1024, 1025]:
            def numbers(*shape):
                return rng.uniform(0.1, 1, shape).astype(dtype)
            w, v, g = (fenced(numbers(n), at_end) for _ in range(3))
            rmsfast.set_num_threads(1 + n % 3)
            rmsfast.rmsprop_update(w, v, g)
            opt = rmsfast.RMSProp(w, clip_norm=1.0, nonfinite="raise", momentum=0.9, centered=True)
            opt.step(g, zero_grads=True)
            strided = fenced(numbers(n, 3), at_end)     # the last column ends where the memory does
            opt.step(strided[:, 2 if at_end else 0])
            opt.step(g[::-1])
            count += 4
            maps.clear()
print(count)
"""


@linux
def test_arrays_between_pages_without_access():
    """Every length modulo the vector width, in each instruction set that these tests run under."""
    result = run(FENCED)
    assert result.returncode == 0, f"died of {result.returncode}: {result.stderr}"
    assert int(result.stdout) == 2 * 3 * 76 * 4


# ---- What stays ----


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@linux
@sanitized
@pytest.mark.thread_unsafe(reason="measures the memory of the whole process")
@pytest.mark.parametrize("count", [20_000, pytest.param(98_000, marks=pytest.mark.slow)])
def test_many_optimizers_leave_nothing_behind(count):
    w, g = np.ones((8, 4), np.float32), np.ones((8, 4), np.float32)
    rows = rmsfast.Rows([1, 3, 1], np.ones((3, 4), np.float32))
    references = [sys.getrefcount(a) for a in (w, g, rows.values)]

    def cycles(count):
        for k in range(count):
            opt = rmsfast.RMSProp([w], momentum=0.9, clip_norm=1.0)
            opt.step([g])
            opt.step([rows if k % 10 == 0 else g.T.copy().T])
            with pytest.raises(ValueError, match="shape"):
                opt.step([g[:2]])

    cycles(2_000)
    gc.collect()
    before = resident()
    cycles(count)
    gc.collect()
    assert resident() - before < 2**20
    assert [sys.getrefcount(a) for a in (w, g, rows.values)] == references


def test_an_optimizer_that_is_part_of_a_cycle_is_collected():
    class Holder:
        pass

    holder = Holder()
    holder.opt = rmsfast.RMSProp(np.ones(3), lr=lambda step, holder=holder: 0.1)
    gone = weakref.ref(holder)
    del holder
    gc.collect()
    assert gone() is None


SHORT_OF_MEMORY = """
import resource
import numpy as np
import rmsfast

w = np.ones(4_000_000, np.float32)
opt = rmsfast.RMSProp(w)
opt.step(w.copy())
before, v = w.copy(), opt.state[0]["square_avg"].copy()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
for attempt in (
    lambda: rmsfast.RMSProp(w),
    lambda: opt.add_param_group({"params": [np.ones(3_000_000, np.float32)]}),
    lambda: (opt.param_groups[0].update(momentum=0.9), opt.step(before)),
    lambda: opt.state_dict(),
):
    resource.setrlimit(resource.RLIMIT_AS, (used + 4_000_000, most))
    try:
        attempt()
    except MemoryError:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        print("MemoryError", len(opt.param_groups), (w == before).all(), (opt.state[0]["square_avg"] == v).all())
opt.param_groups[0]["momentum"] = 0.0
opt.step(before)
print(opt.state[0]["step"])
"""


@linux
@sanitized
def test_where_memory_runs_out_nothing_is_half_made():
    result = run(SHORT_OF_MEMORY)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["MemoryError 1 True True"] * 4 + ["2"]


# ---- Many, and empty ones ----


def test_a_hundred_thousand_parameters_of_one_element(rng):
    w = rng.uniform(-1, 1, 100_000)
    g = rng.uniform(0.1, 1, 100_000)
    expected, v = w.copy(), np.zeros_like(w)
    textbook(expected, v, g)
    params, grads = list(w.reshape(-1, 1)), list(g.reshape(-1, 1))
    opt = rmsfast.RMSProp(params)
    opt.step(grads)
    assert w.tobytes() == expected.tobytes()
    assert opt.state[99_999]["square_avg"][0] == v[-1]


def test_parameters_without_elements_among_others(rng):
    shapes = [(0,), (3,), (0, 4), (2, 2), (5, 0, 3)]
    params = [rng.uniform(-1, 1, shape) for shape in shapes]
    grads = [rng.uniform(0.1, 1, shape) for shape in shapes]
    expected = [w.copy() for w in params]
    for w, g in zip(expected, grads, strict=True):
        textbook(w, np.zeros_like(w), g)
    opt = rmsfast.RMSProp(params, nonfinite="raise")
    opt.step(grads, zero_grads=True)
    for w, e in zip(params, expected, strict=True):
        assert w.tobytes() == e.tobytes()
    assert [entry["step"] for entry in opt.state.values()] == [1] * 5
