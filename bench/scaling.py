"""How a step's time grows: with the elements of one array, with the number of arrays, and with threads.

`python -m bench.scaling` prints the three series with the lines through them, and draws scaling.png.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import rmsfast
from bench import looks
from bench.contenders import OURS, Arrays, make_arrays, rmsfast_step
from bench.limits import COPY, loops, teams
from bench.timing import minima

ELEMENTS = [10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7, 3 * 10**7, 10**8]
ARRAYS = [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000]
ELEMENTS_OF_EACH = 100
ELEMENTS_FOR_THREADS = 16_777_216


def measure(arrays: Arrays, threads: int, seconds: float) -> dict[str, float]:
    """Return the seconds of a step, and of the copy loop on the same arrays where there is one array."""
    steps = {OURS: rmsfast_step(arrays, threads)}
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
    slope, offset = line_through(ARRAYS, [p[OURS] for p in found["arrays"]])
    console.print(
        f"{slope * 1e9:.1f} ns for each array of {ELEMENTS_OF_EACH}, beside {offset * 1e9:.0f} ns for the step"
    )
    with looks.styled():
        looks.save(draw(found), options.output)
    console.print(f"written: {options.output}")


def measure_all(threads: int, seconds: float) -> dict:
    """Return the three series: points with a count, and the seconds of rmsfast and of the copy loop."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**33
    sizes = [n for n in ELEMENTS if 20 * n < memory / 2]
    tried = teams(threads)
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=len(sizes) + len(ARRAYS) + len(tried))

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
            "teams": series(tried, lambda team: [(ELEMENTS_FOR_THREADS,)], lambda team: team),
        }


def draw(found: dict) -> Figure:
    """Draw what an element, an array and a thread cost or gain; each title says it."""
    figure = looks.picture(3.3)
    left, middle, right = figure.subplots(1, 3)
    draw_elements(left, found["elements"], found["threads"])
    draw_arrays(middle, found["arrays"])
    draw_teams(right, found["teams"])
    return figure


def draw_elements(axes, points: list[dict], threads: int) -> None:
    counts = [point["count"] / 1e6 for point in points]
    names = [name for name in (OURS, COPY) if name in points[0]]
    lines = {name: [point[name] / point["count"] * 1e9 for point in points] for name in names}
    top = max(map(max, lines.values())) * 1.25
    axes.plot(counts, lines[OURS], "o-", color=looks.OURS, linewidth=2, markersize=4)
    if COPY in lines:
        axes.plot(counts, lines[COPY], "--", color=looks.FAINT, linewidth=1.2)
    # The names stand at the first point: at the last, both wait for the memory.
    places = looks.apart([line[0] for line in lines.values()], 0.16 * top)
    for (name, line), place in zip(lines.items(), places, strict=True):
        away = 0.08 * top if line[0] == max(each[0] for each in lines.values()) else -0.05 * top
        style = {"color": looks.OURS, "weight": "bold"} if name == OURS else {}
        axes.annotate(name, (counts[0], place + away), va="center", size=8, **style)
    axes.set(xscale="log", ylim=(0, top), xlabel="million elements of one array", ylabel="ns an element")
    looks.plain_numbers(axes.xaxis)
    axes.set_title(f"An element costs\n{min(lines[OURS]):.2g} to {max(lines[OURS]):.2g} ns")
    axes.annotate(threads_named(threads), (1, 0.03), xycoords="axes fraction", ha="right", size=8, color=looks.SMALL)


def draw_arrays(axes, points: list[dict]) -> None:
    counts = np.array([point["count"] for point in points])
    times = np.array([point[OURS] for point in points]) * 1e9
    slope, offset = line_through(counts, times)
    smooth = np.geomspace(counts[0], counts[-1], 200)
    axes.plot(smooth, slope + offset / smooth, color=looks.FAINT, linestyle=":")
    axes.plot(counts, times / counts, "o", color=looks.OURS, markersize=4.5)
    words = f"dotted: {slope:.0f} ns an array\nand {offset:.0f} ns for the step"
    axes.annotate(words, (0.97, 0.97), xycoords="axes fraction", ha="right", va="top", size=8)
    axes.set(xscale="log", ylim=(0, (times / counts).max() * 1.4), ylabel="ns an array")
    axes.set(xlabel=f"arrays of {ELEMENTS_OF_EACH} elements")
    looks.plain_numbers(axes.xaxis)
    axes.set_title(f"One more small array\ncosts {slope:.0f} ns")
    last = (counts[-1], times[-1] / counts[-1])
    axes.annotate(f"{last[1]:.0f}", last, (3, 5), textcoords="offset points", ha="right", va="bottom", size=8)
    axes.annotate("1 thread", (1, 0.03), xycoords="axes fraction", ha="right", size=8, color=looks.SMALL)


def draw_teams(axes, points: list[dict]) -> None:
    counts = [point["count"] for point in points]
    milliseconds = [point[OURS] * 1e3 for point in points]
    bars = axes.bar(range(len(counts)), milliseconds, 0.6, color=looks.OURS)
    axes.bar_label(bars, [f"{each:.3g}" for each in milliseconds], label_type="center", color="white", weight="bold")
    copies = [(k, point[COPY] * 1e3) for k, point in enumerate(points) if COPY in point]
    for k, copy in copies:
        axes.plot([k - 0.4, k + 0.4], [copy, copy], "--", color=looks.TEXT, linewidth=1.2)
    if copies:
        axes.annotate(f"dashed: {COPY}", (1, 0.97), xycoords="axes fraction", ha="right", va="top", size=8)
    highest = max([*milliseconds, *(copy for _, copy in copies)])
    axes.set(xlabel=f"threads, {ELEMENTS_FOR_THREADS:,} elements", ylabel="ms a step", ylim=(0, highest * 1.25))
    axes.set_xticks(range(len(counts)), counts)
    best = int(np.argmin(milliseconds))
    gain = f"{milliseconds[0] / milliseconds[best]:.2g} times as fast as one"
    axes.set_title(f"{threads_named(counts[best])}:\n{gain}" if best else "One thread is as fast\nas more")


def threads_named(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


if __name__ == "__main__":
    main()
