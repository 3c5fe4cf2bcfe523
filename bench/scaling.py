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
from bench.limits import loops
from bench.timing import minima

ELEMENTS = [10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8]
ARRAYS = [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000]
ELEMENTS_OF_EACH = 100
ELEMENTS_FOR_THREADS = 16_777_216
COPY = "copy loop"


def measure(arrays: Arrays, threads: int, seconds: float) -> dict[str, float]:
    """Return the seconds of a step, and of the copy loop on the same arrays where there is one array."""
    steps = {"rmsfast": rmsfast_step(arrays, threads)}
    if len(arrays.w) == 1:
        steps |= {name: make(arrays, threads) for name, make in loops().items() if name == COPY}
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

    console = Console(highlight=False)
    found = measure_all(options.threads, options.seconds)
    table = Table("series", "count", "µs", "copy loop µs")
    for name, points in (
        (f"elements, {options.threads} threads", found["elements"]),
        (f"arrays of {ELEMENTS_OF_EACH}, 1 thread", found["arrays"]),
        (f"threads, {ELEMENTS_FOR_THREADS:,} elements", found["teams"]),
    ):
        for point in points:
            copy = f"{point[COPY] * 1e6:,.2f}" if COPY in point else ""
            table.add_row(name, f"{point['count']:,}", f"{point['rmsfast'] * 1e6:,.2f}", copy)
    console.print(table)
    slope, offset = line_through(ARRAYS, [p["rmsfast"] for p in found["arrays"]])
    console.print(
        f"{slope * 1e9:.1f} ns for each array of {ELEMENTS_OF_EACH}, beside {offset * 1e9:.0f} ns for the step"
    )
    draw(found, options.output)
    console.print(f"written: {options.output}")


def measure_all(threads: int, seconds: float) -> dict:
    """Return the three series: points with a count, and the seconds of rmsfast and of the copy loop."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**33
    sizes = [n for n in ELEMENTS if 20 * n < memory / 2]
    teams = sorted({*(2**k for k in range(threads.bit_length())), threads})
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=len(sizes) + len(ARRAYS) + len(teams))

        def series(counts, shapes_of, threads_of):
            found = []
            for count in counts:
                times = measure(make_arrays(shapes_of(count), "float32"), threads_of(count), seconds)
                found.append({"count": count, **times})
                progress.advance(task)
            return found

        return {
            "threads": threads,
            "elements": series(sizes, lambda n: [(n,)], lambda n: threads),
            "arrays": series(ARRAYS, lambda count: [(ELEMENTS_OF_EACH,)] * count, lambda count: 1),
            "teams": series(teams, lambda team: [(ELEMENTS_FOR_THREADS,)], lambda team: team),
        }


def draw(found: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for axes, points in (left, found["elements"]), (right, found["teams"]):
        counts = [point["count"] for point in points]
        for name, style in ("rmsfast", "o-"), (COPY, "k--"):
            if name in points[0]:
                axes.plot(counts, [point[name] * 1e6 for point in points], style, label=name)
        axes.legend()
    left.set(xscale="log", yscale="log")
    right.set(ylim=(0, None))
    counts, times = zip(*[(point["count"], point["rmsfast"]) for point in found["arrays"]], strict=True)
    slope, offset = line_through(counts, times)
    middle.loglog(counts, [t * 1e6 for t in times], "o", label="rmsfast")
    fitted = [(slope * count + offset) * 1e6 for count in counts]
    middle.loglog(counts, fitted, "k:", label=f"{slope * 1e9:.0f} ns an array + {offset * 1e9:.0f} ns")
    middle.legend()
    left.set(xlabel="elements of one array", ylabel="µs a step", title=f"{found['threads']} threads")
    middle.set(xlabel=f"arrays of {ELEMENTS_OF_EACH} elements", title="1 thread")
    right.set(xlabel="threads", title=f"{ELEMENTS_FOR_THREADS:,} elements")
    teams = [point["count"] for point in found["teams"]]
    right.set_xticks(teams, teams)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
