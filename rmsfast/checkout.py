"""A checkout's source folder, which has no compiled kernel, and the installed package that it hides.

Python finds the source folder first where a program, or `python -m rmsfast`, is started in a checkout.
"""

import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from pathlib import Path


def step_aside(folder: str) -> None:
    """Put the installed package in the place of the one in this source folder, or raise ImportError."""
    here = Path(folder).resolve()
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != here.parent]
    spec = PathFinder.find_spec("rmsfast", elsewhere)
    found = None if spec is None or spec.origin is None else Path(spec.origin).parent
    if spec is None or spec.loader is None or found is None or not has_kernel(found):
        raise ImportError(
            f"rmsfast: its compiled kernel is not in {folder}, which looks like a checkout's source folder, expected "
            "an installed package: run `pip install .` there, or build in place with `pip install -e .`",
            name="rmsfast",
        ) from None
    for name in [name for name in sys.modules if name == "rmsfast" or name.startswith("rmsfast.")]:
        del sys.modules[name]
    sys.modules["rmsfast"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def has_kernel(folder: Path) -> bool:
    """Whether a folder has the compiled kernel."""
    return any((folder / "_core" / f"kernel{suffix}").exists() for suffix in EXTENSION_SUFFIXES)
