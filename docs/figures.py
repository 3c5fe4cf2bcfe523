"""The figures of the site, drawn at each build, for light pages and for dark ones. Every curve of RMSProp is a run.

`python docs/figures.py FOLDER` draws them without a site.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

import rmsfast

Array = Any

# Okabe and Ito's colours, which the colour-blind can tell apart; two of them lighter on a dark page.
LIGHT = {"text": "#24292f", "faint": "#b8bec6", "ours": "#0072b2", "other": "#d55e00", "third": "#007a5a"}
DARK = {"text": "#d5d9de", "faint": "#565d66", "ours": "#56b4e9", "other": "#f09040", "third": "#2fc49a"}
Colours = dict[str, str]


# ---- Runs ----


def walk(step: Callable[[Array, Array], Any], x: Array, steps: int = 20) -> Array:
    """Return the points of a walk down the ravine, one row each. A step changes x in place."""
    points = [x.copy()]
    for _ in range(steps):
        step(x, ravine_gradient(x))
        points.append(x.copy())
    return np.array(points)


def gradient_descent(x: Array, g: Array) -> None:
    """Take a step of plain gradient descent."""
    x -= 0.48 * g


def ravine(x: Array) -> Array:
    """Return 0.1·x₁² + 2·x₂²."""
    return 0.1 * x[0] ** 2 + 2 * x[1] ** 2


def ravine_gradient(x: Array) -> Array:
    """Return its gradient."""
    return np.array([0.2 * x[0], 4 * x[1]])


def lengths(gradients: Array, **settings: Any) -> Array:
    """Return how far each step moves a parameter, in units of lr."""
    w, before = np.zeros(1), 0.0
    opt, taken = rmsfast.RMSProp(w, lr=1.0, **settings), []
    for g in gradients:
        opt.step(np.array([float(g)]))
        taken.append(abs(w[0] - before))
        before = w[0]
    return np.array(taken)


# ---- Figures ----


def draw_ravine(figure: Figure, c: Colours) -> None:
    """Draw two walks down the same ravine."""
    axes = figure.subplots(1, 2, sharey=True)
    x1, x2 = np.meshgrid(np.linspace(-6, 2, 200), np.linspace(-3, 3, 200))
    levels = [0.05, 0.3, 1, 2.5, 5, 9, 14]
    start = np.array([-5.0, -2.0])
    x = start.copy()
    opt = rmsfast.RMSProp(x, **rmsfast.dialects.d2l(lr=0.4))
    walks = [
        ("Gradient descent jumps across", walk(gradient_descent, start.copy()), c["other"]),
        ("RMSProp walks along", walk(lambda _, g: opt.step(g), x), c["ours"]),
    ]
    for ax, (title, points, colour) in zip(axes, walks, strict=True):
        ax.contour(x1, x2, ravine((x1, x2)), levels=levels, colors=c["faint"], linewidths=0.8)
        ax.plot(*points.T, color=colour, marker="o", markersize=3.5, linewidth=1.6)
        ax.plot(0, 0, marker="*", color=c["text"], markersize=11, linestyle="none")
        ax.annotate("start", points[0], (-5.8, -2.7), color=c["text"])
        ax.set(xlim=(-6, 2), ylim=(-3, 3), xlabel="w₁", title=title)
    axes[0].set(ylabel="w₂")


def draw_weights(figure: Figure, c: Colours) -> None:
    """Draw how much of v comes from the gradient of k steps ago."""
    ax = figure.subplots()
    k = np.arange(41)
    for beta, colour, marker in [(0.9, c["ours"], "o"), (0.99, c["other"], "s"), (0.5, c["third"], "^")]:
        ax.plot(k, (1 - beta) * beta**k, color=colour, marker=marker, markersize=3.5, linewidth=1.2)
        spot = {0.9: (7.5, 0.055), 0.99: (30, 0.017), 0.5: (2.3, 0.16)}[beta]
        ax.annotate(f"β = {beta:g}", spot, color=colour)
    ax.set(xlim=(-0.5, 40.5), ylim=(0, 0.52), xlabel="k, steps ago", ylabel="weight of that squared gradient")
    ax.set_title("A larger β remembers more gradients, each one less")


def draw_first_steps(figure: Figure, c: Colours) -> None:
    """Draw the first steps under a constant gradient."""
    ax = figure.subplots()
    t = np.arange(1, 61)
    for beta, colour, spot in [(0.99, c["other"], (7, 4.4)), (0.9, c["ours"], (9, 1.75))]:
        taken = lengths(np.ones(60), beta=beta)
        ax.plot(t, taken, color=colour, marker="o", markersize=3)
        ax.annotate(f"β = {beta:g}: starts at {taken[0]:.3g} · lr", spot, color=colour)
    ax.plot(t, lengths(np.ones(60), bias_correction=True), color=c["third"], linewidth=2)
    ax.annotate("with bias correction", (38, 0.25), color=c["third"])
    ax.set(xlim=(0, 61), ylim=(0, 10.5), xlabel="step", ylabel="step ÷ lr")
    ax.set_title("From v = 0, the first steps are long")


def draw_two(figure: Figure, c: Colours) -> None:
    """Draw two parameters with gradients of very different size."""
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, 31)
    small, large = np.full(30, 0.1), np.tile([10.0, -8.0, 12.0], 10)
    for gradients, colour, marker, label in [(small, c["ours"], "o", "w₁"), (large, c["other"], "s", "w₂")]:
        left.semilogy(steps, abs(gradients), color=colour, marker=marker, markersize=3.5, label=label)
        right.plot(steps, lengths(gradients), color=colour, marker=marker, markersize=3.5, label=label)
    left.annotate("w₁: always 0.1", (3, 0.13), color=c["ours"])
    left.annotate("w₂: +10, −8, +12, …", (3, 17), color=c["other"])
    left.set(xlabel="step", ylabel="|gradient|", ylim=(0.05, 40), title="Gradients differ a hundredfold …")
    right.set(xlabel="step", ylabel="|move| ÷ lr", ylim=(0, 3.4), title="… and moves do not")
    right.legend(frameon=False)


def draw_spike(figure: Figure, c: Colours) -> None:
    """Draw the steps around one gradient of 10⁶ among ones."""
    ax = figure.subplots()
    steps = np.arange(-20, 300)
    gradients = np.concatenate([np.ones(120), [1e6], np.ones(299)])  # the first 100 fill the average
    for label, style, colour, settings in [
        ("β = 0.9", "-", c["ours"], {}),
        ("β = 0.99", "-", c["other"], {"beta": 0.99}),
        ("β = 0.9, clip_value = 5", "--", c["third"], {"clip_value": 5.0}),
    ]:
        ax.semilogy(steps, lengths(gradients, **settings)[100:], style, color=colour, linewidth=1.8, label=label)
    line = {"arrowstyle": "-", "color": c["text"]}
    ax.annotate("2.6e-5 · lr, 40 steps later", (40, 2.6e-5), (70, 3e-6), arrowprops=line)
    ax.set(xlabel="steps after the gradient of 10⁶", ylabel="step ÷ lr", ylim=(1e-6, 40))
    ax.set_title("The step itself is bounded; the standstill after it is long")
    ax.legend(frameon=False, loc="center right")


def draw_epsilon(figure: Figure, c: Colours) -> None:
    """Draw the length of a step by the size of the gradient, for some ε."""
    ax = figure.subplots()
    g = np.logspace(-6, 2, 161)
    for eps, colour in [(1e-8, c["text"]), (1e-3, c["ours"]), (0.1, c["other"]), (1.0, c["third"])]:
        ax.loglog(g, g / (g + eps), color=colour, label=f"ε = {eps:g}")
    ax.set(xlabel="size of the gradients, g = √v", ylabel="step ÷ lr", ylim=(1e-6, 3))
    ax.set_title("Gradients smaller than ε move as in gradient descent")
    ax.legend(frameon=False)


FIGURES: dict[str, tuple[Callable[[Figure, Colours], None], tuple[float, float]]] = {
    "ravine": (draw_ravine, (6.4, 2.9)),
    "weights": (draw_weights, (6.4, 3.2)),
    "first_steps": (draw_first_steps, (6.4, 3.2)),
    "two": (draw_two, (6.4, 2.9)),
    "spike": (draw_spike, (6.4, 3.4)),
    "epsilon": (draw_epsilon, (6.4, 3.4)),
}


def draw_all(folder: Path) -> None:
    """Draw each figure into a folder, as NAME_light.svg and NAME_dark.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, colours in [("light", LIGHT), ("dark", DARK)]:
        text = colours["text"]
        style = dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], text)
        style |= {"font.size": 10, "axes.titlesize": 10.5, "axes.spines.top": False, "axes.spines.right": False}
        style |= {"svg.hashsalt": "rmsfast"}
        for name, (draw, size) in FIGURES.items():
            with matplotlib.rc_context(style):
                figure = Figure(figsize=size, layout="constrained")
                draw(figure, colours)
                figure.savefig(folder / f"{name}_{suffix}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
