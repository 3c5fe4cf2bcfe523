"""Benchmarks: `python -m bench` compares side by side in one process, `pytest bench` uses pytest-benchmark."""

import sys
from pathlib import Path

# `python -m bench` puts the checkout first on the path, where its source folder would hide the installed package. At
# the end it hides nothing.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT] + [str(_ROOT)]
