"""Loops of limits.c, compiled for this machine, as contenders: what a step is made of, and nothing else.

The copy loop moves a step's bytes; the divider loop and the FMA loop compute a root and a quotient besides. None is a
limit: rmsfast can beat the latter two with the divider and the multipliers at work at the same time, and the first with
a shorter call. `bounds` make one: they do a part of what each step must do, without the calls. Where memory
happens to lie makes a difference of some percent, so that a loop on one array uses rmsfast's own. Many arrays count as
one with as many elements.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

import rmsfast
from bench.contenders import Arrays

COPY = "copy loop"
LOOPS = {COPY: "copy", "divider loop": "divider", "FMA loop": "fma"}

FLAGS = ["-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
SHARED = ["-shared", "-fPIC"]
CSRC = next(Path(rmsfast.__file__).parent.rglob("root.h")).parent
WORTH_THREADS = 32_768  # elements: below, one thread is faster than any team


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled loops, or None where no compiler of the GNU kind is found."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "limits.so")
        source = Path(__file__).with_name("limits.c")
        for width in ["-mprefer-vector-width=512"], []:
            command = [compiler, *FLAGS, *SHARED, *width, f"-I{CSRC}", str(source), "-o", str(target), "-lm"]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return ctypes.CDLL(str(target))
    return None


def loop(kind: str) -> Callable[[Arrays, int], Callable[[], None]]:
    """Return the contender that runs the loop called `kind`, with the threads of the same OpenMP pool."""

    def make(arrays: Arrays, threads: int) -> Callable[[], None]:
        w, v, g = (
            part[0].reshape(-1) if len(part) == 1 else np.concatenate([a.ravel() for a in part]) for part in arrays
        )
        function = getattr(library(), f"{kind}_{w.dtype}")
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (w, v, g)]
        size = ctypes.c_ssize_t(w.size)
        threads = threads if w.size >= WORTH_THREADS else 1

        def step(keep=(w, v, g)):
            function(*pointers, size, threads)

        return step

    return make


def loops() -> dict[str, Callable[[Arrays, int], Callable[[], None]]]:
    """Return the loops that this machine can run, by name."""
    return {name: loop(kind) for name, kind in LOOPS.items() if hasattr(library(), f"{kind}_float32")}


def bounds(arrays: Arrays, threads: int) -> list[tuple[Callable[[], None], float]]:
    """Return functions that read and write w and v, each with what to divide its time by: no step can take less than
    the least of them.

    Each goes over one parameter many times in a call, with a team of its own. A parameter that is small has one thread,
    whose time counts as if all shared it. There are none where the loops cannot be compiled.
    """
    w, v = (part[0].reshape(-1) for part in arrays[:2])
    if library() is None:
        return []
    number = {"float32": ctypes.c_float, "float64": ctypes.c_double}[w.dtype.name]
    function = getattr(library(), f"bound_{w.dtype}")
    passes = max(1, 200_000 // w.size)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (w, v)]

    def touch(team, keep=(w, v)):
        function(*pointers, ctypes.c_ssize_t(w.size), team, ctypes.c_ssize_t(passes), number(0))

    if w.size < WORTH_THREADS:
        return [(partial(touch, 1), passes * threads)]
    return [(partial(touch, team), passes) for team in teams(threads)]


def teams(threads: int) -> list[int]:
    """Return the numbers of threads to try: 1, 2, 4, and so on, and all."""
    return sorted({*(2**k for k in range(threads.bit_length())), threads})
