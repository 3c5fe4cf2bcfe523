"""How the pictures look: a colour for each contender, the same in all; sizes for a page 800 pixels wide."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

WIDTH = 8.2  # inches, of 200 pixels, which a page shows at half of that size
OURS, TEXT, SMALL, FAINT, SHADE = "#0072b2", "#24292f", "#57606a", "#6b737c", "#e4e7eb"
# Okabe and Ito's colours, which the colour-blind can tell apart (a gray for their black), by how a name begins.
COLOURS = {
    "rmsfast": OURS,
    "NumPy": "#cc79a7",
    "numexpr": "#444444",
    "Numba": "#009e73",
    "JAX": "#56b4e9",
    "PyTorch": "#d55e00",
    "bitsandbytes": "#e69f00",
}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "figure.dpi": 200,
    "legend.frameon": False,
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], TEXT),
}


def styled():
    """Return the context in which a picture is drawn."""
    return matplotlib.rc_context(STYLE)


def picture(height: float) -> Figure:
    """Return an empty figure as wide as a page, and so many inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def save(figure: Figure, path: Path, note: str = "") -> None:
    """Write a figure to a file, with a note in small letters below it."""
    if note:
        figure.supxlabel(note, fontsize=6.5, color=SMALL, fontweight="normal")
    figure.savefig(path, pil_kwargs={"optimize": True})


def colour_of(name: str) -> str:
    """Return a contender's colour; gray, where it is a loop."""
    return next((colour for beginning, colour in COLOURS.items() if name.startswith(beginning)), FAINT)


def plain(value: float, _: object = None) -> str:
    """Return a number as people write it: 0.3, 20, 1,000, 2 million."""
    for unit, word in (1e9, "billion"), (1e6, "million"):
        if value >= unit:
            return f"{value / unit:g} {word}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def plain_numbers(*axes: Axis, subs: Sequence[float] = (1,)) -> None:
    """Let the ticks of logarithmic axes be plain numbers: these multiples of powers of ten."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=subs, numticks=20))
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Return places in the same order that are at least a gap apart, and moved as little as possible."""
    order = np.argsort(places, kind="stable")
    # Of neighbours that touch: the sum of their places, less the gaps before each, and how many they are.
    groups: list[list[float]] = []
    for k, i in enumerate(order):
        groups.append([places[i] - k * gap, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
    moved = [total / count for total, count in groups for _ in range(int(count))]
    found = [0.0] * len(places)
    for k, i in enumerate(order):
        found[i] = float(moved[k] + k * gap)
    return found
