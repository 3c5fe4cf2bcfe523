"""Compare rmsfast with NumPy and with the machine's limits: one table, from one run."""

import argparse
import platform

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import rmsfast
from bench.contenders import CASES, CONTENDERS, make_arrays
from bench.limits import limits
from bench.timing import minima


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated, of %(default)s")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--threads", type=int, default=rmsfast.get_num_threads(), help="default: all, %(default)s here")
    parser.add_argument("--seconds", type=float, default=10, help="for each case, about (default %(default)s)")
    options = parser.parse_args()
    names = options.cases.split(",")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"--cases: {unknown[0]!r} is none of {', '.join(CASES)}")

    contenders = CONTENDERS | limits()
    console = Console()
    table = Table("case", title="µs a step, and how many times as long as rmsfast")
    for label in contenders:
        table.add_column(label, justify="right")
    with Progress(console=console, transient=True) as progress:
        for name in progress.track(names, description="measuring"):
            times = measure(name, contenders, options)
            table.add_row(name, *[f"{t * 1e6:,.2f}\n{t / times['rmsfast']:.2f}×" for t in times.values()])
    console.print(table)
    config = rmsfast.config()
    console.print(
        f"{options.dtype}, {options.threads} threads, {config['isa']}, minimum of the rounds\n"
        f"rmsfast {config['version']}, NumPy {config['numpy']}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        highlight=False,
    )


def measure(name: str, contenders, options) -> dict[str, float]:
    """Check that every contender does the same step, then time them."""
    arrays = {label: make_arrays(CASES[name], options.dtype) for label in CONTENDERS}
    steps = {label: make(arrays.get(label, arrays["rmsfast"]), options.threads) for label, make in contenders.items()}
    for label in CONTENDERS:
        steps[label]()
        for w, expected in zip(arrays[label].w, arrays["rmsfast"].w, strict=True):
            if not np.array_equal(w, expected):
                raise AssertionError(f"{label}: another result than rmsfast")
    return minima(steps, options.seconds)


if __name__ == "__main__":
    main()
