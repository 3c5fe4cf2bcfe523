"""The machine's limits as contenders: limits.c, compiled for this machine.

Where memory happens to lie makes a difference of some percent, so that a limit on one array uses rmsfast's own. Many
arrays count as one with as many elements.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from bench.contenders import Arrays

FLAGS = ["-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
SHARED = ["-shared", "-fPIC"]
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
            command = [compiler, *FLAGS, *SHARED, *width, str(source), "-o", str(target), "-lm"]
            if subprocess.run(command, capture_output=True).returncode == 0:
                return ctypes.CDLL(str(target))
    return None


def limit(kind: str) -> Callable[[Arrays, int], Callable[[], None]]:
    """Return the contender that runs the loop called `kind`, with the threads of the same OpenMP pool."""

    def make(arrays: Arrays, threads: int) -> Callable[[], None]:
        w, v, g = (
            part[0].reshape(-1) if len(part) == 1 else np.concatenate([a.ravel() for a in part]) for part in arrays
        )
        loop = getattr(library(), f"{kind}_{w.dtype}")
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (w, v, g)]
        size = ctypes.c_ssize_t(w.size)
        threads = threads if w.size >= WORTH_THREADS else 1

        def step(keep=(w, v, g)):
            loop(*pointers, size, threads)

        return step

    return make


def limits() -> dict[str, Callable[[Arrays, int], Callable[[], None]]]:
    if library() is None:
        return {}
    return {"memory limit": limit("memory"), "divider limit": limit("divider")}
