"""How a step's time grows: with the elements of one array, with the number of arrays, and with threads.

`python -m bench.scaling` prints the three series with the lines through them, and draws scaling.png.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import rmsfast
from bench.contenders import Arrays, make_arrays, rmsfast_step
from bench.limits import limits
from bench.timing import minima

ELEMENTS = [10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8]
ARRAYS = [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000]
ELEMENTS_OF_EACH = 100
ELEMENTS_FOR_THREADS = 16_777_216


def measure(arrays: Arrays, threads: int, seconds: float) -> dict[str, float]:
    """Return the seconds of a step, and of the memory limit on the same arrays where there is one array."""
    steps = {"rmsfast": rmsfast_step(arrays, threads)}
    if len(arrays.w) == 1:
        steps |= {name: make(arrays, threads) for name, make in limits().items() if name == "memory limit"}
    return minima(steps, seconds)


def line_through(x, y) -> tuple[float, float]:
    """Return slope and offset of the line with the least relative errors: small counts matter as large ones do."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    rows = np.stack([x / y, 1 / y], axis=1)
    slope, offset = np.linalg.lstsq(rows, np.ones(len(x)), rcond=None)[0]
    return float(slope), float(offset)


def main() -> None:
    every = rmsfast.get_num_threads()
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--threads", type=int, default=every, help="the most threads (default: all, %(default)s here)")
    parser.add_argument("--seconds", type=float, default=2, help="for each point, about (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("scaling.png"), help="picture (default %(default)s)")
    options = parser.parse_args()

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**33
    sizes = [n for n in ELEMENTS if 20 * n < memory / 2]
    teams = sorted({*(2**k for k in range(options.threads.bit_length())), options.threads})
    console = Console(highlight=False)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(sizes) + len(ARRAYS) + len(teams))

        def series(counts, shapes_of, threads_of):
            found = []
            for count in counts:
                found.append(measure(make_arrays(shapes_of(count), "float32"), threads_of(count), options.seconds))
                progress.advance(task)
            return found

        by_elements = series(sizes, lambda n: [(n,)], lambda n: options.threads)
        by_arrays = series(ARRAYS, lambda count: [(ELEMENTS_OF_EACH,)] * count, lambda count: 1)
        by_threads = series(teams, lambda threads: [(ELEMENTS_FOR_THREADS,)], lambda threads: threads)

    table = Table("series", "count", "µs", "memory limit µs")
    for name, counts, points in (
        (f"elements, {options.threads} threads", sizes, by_elements),
        (f"arrays of {ELEMENTS_OF_EACH}, 1 thread", ARRAYS, by_arrays),
        (f"threads, {ELEMENTS_FOR_THREADS:,} elements", teams, by_threads),
    ):
        for count, point in zip(counts, points, strict=True):
            limit = f"{point['memory limit'] * 1e6:,.2f}" if "memory limit" in point else ""
            table.add_row(name, f"{count:,}", f"{point['rmsfast'] * 1e6:,.2f}", limit)
    console.print(table)
    slope, offset = line_through(ARRAYS, [p["rmsfast"] for p in by_arrays])
    console.print(
        f"{slope * 1e9:.1f} ns for each array of {ELEMENTS_OF_EACH}, beside {offset * 1e9:.0f} ns for the step"
    )
    draw(sizes, by_elements, by_arrays, (slope, offset), teams, by_threads, options)
    console.print(f"written: {options.output}")


def draw(sizes, by_elements, by_arrays, line, teams, by_threads, options) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for axes, counts, points in (left, sizes, by_elements), (right, teams, by_threads):
        for name, style in ("rmsfast", "o-"), ("memory limit", "k--"):
            if name in points[0]:
                axes.plot(counts, [p[name] * 1e6 for p in points], style, label=name)
        axes.legend()
    left.set(xscale="log", yscale="log")
    right.set(ylim=(0, None))
    middle.loglog(ARRAYS, [p["rmsfast"] * 1e6 for p in by_arrays], "o", label="rmsfast")
    slope, offset = line
    fitted = [(slope * count + offset) * 1e6 for count in ARRAYS]
    middle.loglog(ARRAYS, fitted, "k:", label=f"{slope * 1e9:.0f} ns an array + {offset * 1e9:.0f} ns")
    middle.legend()
    left.set(xlabel="elements of one array", ylabel="µs a step", title=f"{options.threads} threads")
    middle.set(xlabel=f"arrays of {ELEMENTS_OF_EACH} elements", title="1 thread")
    right.set(xlabel="threads", title=f"{ELEMENTS_FOR_THREADS:,} elements")
    right.set_xticks(teams, teams)
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
