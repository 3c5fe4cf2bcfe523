"""The fastest RMSProp step for arrays in CPU memory, with the bits of plain NumPy.

`RMSProp` is the optimizer and `Rows` a gradient of some rows only; `schedules` has rates as functions of the step, and
`dialects` each framework's settings; `rmsprop_update` is one step on one array with state of your own; `reference` is
the same in plain NumPy; and `config` says what is installed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmsfast import dialects, reference, schedules

__version__ = "0.1.0"

try:
    import rmsfast._core.kernel as _kernel
except ModuleNotFoundError as _error:
    if _error.name != "rmsfast._core.kernel":
        raise
    from rmsfast.checkout import step_aside

    step_aside(__path__[0])  # from here on, `rmsfast` is the installed package

from rmsfast._core.threads import get_num_threads, set_num_threads, usable_threads
from rmsfast.optimizer import RMSProp, rmsprop_update
from rmsfast.rows import Rows

__all__ = [
    "RMSProp",
    "Rows",
    "config",
    "dialects",
    "get_num_threads",
    "reference",
    "rmsprop_update",
    "schedules",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    """Import these when they are first asked for: most programs use none of them."""
    if name in ("dialects", "reference", "schedules"):
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def config() -> dict[str, Any]:
    """Return what is installed and how it runs, as a bug report wants it.

    Returns
    -------
    dict
        ``version``; ``isa``, the instruction set in use, and ``isas``, those that this CPU and this build have (the
        environment variable ``RMSFAST_ISA`` forces one of them); ``root``, where square roots come from, with the same
        bits each: the CPU's ``divider``, fused multiply-adds (``fma``) or both in turn (``mixed``). At import the
        fastest is chosen by a measurement of some 40 µs, for each rule and type; this is that of the plain rule in
        float32 (``RMSFAST_ROOT`` forces one for all). ``openmp``, whether steps can use threads; ``num_threads``, how
        many they may use unless told otherwise: what `get_num_threads` returns, but no more than the cores that this
        process may use; ``numpy``, its version.
    """
    import numpy as np

    return {
        "version": __version__,
        "isa": _kernel.ISA,
        "isas": _kernel.ISAS,
        "root": _kernel.ROOT,
        "openmp": _kernel.OPENMP,
        "num_threads": usable_threads(),
        "numpy": np.__version__,
    }
