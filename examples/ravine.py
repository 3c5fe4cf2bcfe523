"""Draw how six optimizers walk down a ravine, along its axes and across them, and what RMSProp's decay is for.

RMSProp is rmsfast's; the others are written out in NumPy below. The ravine is that of "Dive into Deep Learning",
f(x) = 0.1·x₁² + 2·x₂², and its rotated form. Needs `pip install ".[demo]"`, takes two seconds, and saves a picture,
ravine.png, in the current folder.
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

import rmsfast

START = (-5.0, -2.0)
STEPS = 20
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


# ---- The functions, and their gradients ----


def ravine(x):
    return 0.1 * x[0] ** 2 + 2 * x[1] ** 2


def ravine_gradient(x):
    return np.array([0.2 * x[0], 4 * x[1]])


def rotated(x):
    return 0.1 * (x[0] + x[1]) ** 2 + 2 * (x[0] - x[1]) ** 2


def rotated_gradient(x):
    along, across = 0.2 * (x[0] + x[1]), 4 * (x[0] - x[1])
    return np.array([along + across, along - across])


# ---- The optimizers: each changes x in place ----


class GradientDescent:
    def __init__(self, x, lr):
        self.x, self.lr = x, lr

    def step(self, g):
        self.x -= self.lr * g


class Momentum:
    def __init__(self, x, lr, mu=0.5):
        self.x, self.lr, self.mu, self.b = x, lr, mu, np.zeros_like(x)

    def step(self, g):
        self.b = self.mu * self.b + g
        self.x -= self.lr * self.b


class AdaGrad:
    def __init__(self, x, lr, eps=1e-6):
        self.x, self.lr, self.eps, self.v = x, lr, eps, np.zeros_like(x)

    def step(self, g):
        self.v += g**2
        self.x -= self.lr * g / np.sqrt(self.v + self.eps)


class AdaDelta:
    def __init__(self, x, rho=0.9, eps=1e-2):
        self.x, self.rho, self.eps = x, rho, eps
        self.v, self.u = np.zeros_like(x), np.zeros_like(x)

    def step(self, g):
        self.v = self.rho * self.v + (1 - self.rho) * g**2
        change = np.sqrt((self.u + self.eps) / (self.v + self.eps)) * g
        self.u = self.rho * self.u + (1 - self.rho) * change**2
        self.x -= change


class Adam:
    def __init__(self, x, lr, beta1=0.9, beta2=0.999, eps=1e-8):
        self.x, self.lr, self.beta1, self.beta2, self.eps = x, lr, beta1, beta2, eps
        self.m, self.v, self.t = np.zeros_like(x), np.zeros_like(x), 0

    def step(self, g):
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        m, v = self.m / (1 - self.beta1**self.t), self.v / (1 - self.beta2**self.t)
        self.x -= self.lr * m / (np.sqrt(v) + self.eps)


def rmsprop(gamma=0.9, lr=0.4):
    return lambda x: rmsfast.RMSProp(x, **rmsfast.dialects.d2l(lr=lr, gamma=gamma))


RMSPROP = "RMSProp, η 0.4, γ 0.9"
# Each at a rate at which it does well on both; gradient descent leaves the rotated ravine from 0.25 on.
OPTIMIZERS = {
    "gradient descent, η 0.2": lambda x: GradientDescent(x, 0.2),
    "momentum, η 0.2, μ 0.5": lambda x: Momentum(x, 0.2),
    "AdaGrad, η 2": lambda x: AdaGrad(x, 2.0),
    "AdaDelta, ε 0.01": AdaDelta,
    "Adam, η 0.8": lambda x: Adam(x, 0.8),
    RMSPROP: rmsprop(),
}
# Colours of Okabe and Ito, which the colour-blind can tell apart, and markers.
COLORS = "#444444", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2"
LOOKS = dict(zip(OPTIMIZERS, zip(COLORS, "vs^Dxo", strict=True), strict=True))


def walk(make_optimizer, gradient, steps=STEPS):
    """Return the path from the start, one row a step."""
    x = np.array(START)
    optimizer = make_optimizer(x)
    path = [x.copy()]
    for _ in range(steps):
        optimizer.step(gradient(x))
        path.append(x.copy())
    return np.array(path)


# ---- The picture ----


def style_of(name):
    """Return how an optimizer is drawn: RMSProp thick and above the others."""
    color, marker = LOOKS[name]
    ours = name == RMSPROP
    return dict(
        color=color,
        marker=marker,
        markersize=4.5 if ours else 3.5,
        linewidth=2.4 if ours else 1.1,
        zorder=4 if ours else 2,
    )


def draw_paths(axes, f, paths, title, place):
    x1, x2 = np.meshgrid(np.linspace(-6.5, 3.2, 300), np.linspace(-4.6, 2.2, 300))
    axes.contour(
        x1, x2, np.log(f((x1, x2)) + 0.02), levels=14, colors="0.85", linestyles="solid", linewidths=0.8, zorder=0
    )
    for name, path in paths.items():
        axes.plot(*path.T, **style_of(name), label=name)
    axes.plot(*START, marker="o", color="white", markeredgecolor="black", markersize=8, zorder=5)
    axes.annotate("start", START, (-8, 0), textcoords="offset points", ha="right", va="center", weight="bold")
    axes.plot(0, 0, marker="*", color="black", markersize=13, zorder=5)
    axes.annotate("minimum", (0, 0), place, weight="bold")
    axes.set(xlim=(-6.5, 3.2), ylim=(-4.6, 2.2), xlabel="x₁", ylabel="x₂")
    axes.set_title(title, loc="left", size=9.5, weight="bold")


def draw_losses(axes, f, paths, title):
    for name, path in paths.items():
        axes.semilogy([f(x) for x in path], **style_of(name))
    axes.set(xlabel="step", ylabel="f(x)", ylim=(1e-7, 40), xticks=range(0, STEPS + 1, 5))
    axes.set_title(title, loc="left", size=9.5, weight="bold")


def draw_decay(axes):
    colors = "#e69f00", "#009e73", "#0072b2", "#d55e00", "#444444"
    for gamma, color in zip([0.0, 0.5, 0.9, 0.99, 1.0], colors, strict=True):
        values = [ravine(x) for x in walk(rmsprop(gamma), ravine_gradient)]
        axes.semilogy(values, color=color, marker="o", markersize=2.5, linewidth=2.4 if gamma == 0.9 else 1.1)
        place = {0.0: (20.5, 0.02), 0.5: (20.5, 5.0), 0.99: (14.5, 3e-9), 1.0: (2.4, 1e9)}.get(
            gamma, (20.5, values[-1])
        )
        words = "γ = 1: v stays at 0, and a step\nis g·η/√ε, a thousand times g·η" if gamma == 1 else f"γ = {gamma:g}"
        axes.annotate(words, place, color=color, va="center", size=8)
    axes.set(xlabel="step", ylabel="f(x)", ylim=(1e-12, 1e12), xlim=(-1, 26), xticks=range(0, STEPS + 1, 5))
    axes.set_title("RMSProp by its decay γ,\nalong the axes: 1 explodes", loc="left", size=9.5, weight="bold")


def draw(paths, path):
    figure = plt.figure(figsize=(8.2, 7.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    left, right = top.subplots(1, 2, sharey=True)
    draw_paths(left, ravine, paths["ravine"], "Along the axes: 0.1·x₁² + 2·x₂²", (-1.6, -0.7))
    draw_paths(right, rotated, paths["rotated"], "Across them: 0.1·(x₁ + x₂)² + 2·(x₁ − x₂)²", (0.3, -0.3))
    top.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    first, second, third = bottom.subplots(1, 3)
    ends = {name: f(paths[name][RMSPROP][-1]) for name, f in (("ravine", ravine), ("rotated", rotated))}
    draw_losses(first, ravine, paths["ravine"], f"Along the axes RMSProp\nends at {ends['ravine']:.6f}")
    draw_losses(second, rotated, paths["rotated"], f"Across them, it ends\nat {ends['rotated']:.2f}")
    draw_decay(third)
    figure.suptitle("RMSProp evens out a ravine along the axes, and not one across them", size=12, weight="bold")
    figure.savefig(path, dpi=200)


def main() -> int:
    functions = {"ravine": (ravine, ravine_gradient), "rotated": (rotated, rotated_gradient)}
    paths = {
        name: {label: walk(make, gradient) for label, make in OPTIMIZERS.items()}
        for name, (_, gradient) in functions.items()
    }
    table = Table(title=f"After {STEPS} steps from {START}; the minimum is 0 at (0, 0)")
    table.add_column("optimizer")
    for name in functions:
        table.add_column(f"{name}: x", justify="right")
        table.add_column("f(x)", justify="right")
    for label in OPTIMIZERS:
        cells = []
        for name, (f, _) in functions.items():
            end = paths[name][label][-1]
            cells += [f"({end[0]:.3f}, {end[1]:.3f})", f"{f(end):.2g}"]
        table.add_row(label.split(",")[0], *cells, style="bold" if label == RMSPROP else None)
    console = Console(width=100)
    console.print(table)
    console.print(
        "Along the axes, dividing each coordinate by the size of its gradient evens the ravine out.\n"
        "Across them it cannot: both coordinates see gradients of one size."
    )
    draw(paths, "ravine.png")
    console.print("picture: ravine.png")
    return 0 if ravine(paths["ravine"][RMSPROP][-1]) < 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
