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


# Each at a rate at which it does well on both; gradient descent leaves the rotated ravine from 0.25 on.
OPTIMIZERS = {
    "gradient descent, η 0.2": lambda x: GradientDescent(x, 0.2),
    "momentum, η 0.2, μ 0.5": lambda x: Momentum(x, 0.2),
    "AdaGrad, η 2": lambda x: AdaGrad(x, 2.0),
    "AdaDelta, ε 0.01": AdaDelta,
    "Adam, η 0.8": lambda x: Adam(x, 0.8),
    "RMSProp, η 0.4, γ 0.9": rmsprop(),
}


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


def draw_paths(axes, f, paths, title):
    x1, x2 = np.meshgrid(np.linspace(-6.2, 4.2, 300), np.linspace(-4.6, 3.2, 300))
    axes.contour(
        x1, x2, np.log(f((x1, x2)) + 0.02), levels=14, colors="0.8", linestyles="solid", linewidths=0.8, zorder=0
    )
    for k, (name, path) in enumerate(paths.items()):
        ours = name.startswith("RMSProp")
        axes.plot(
            *path.T,
            color=f"C{k}",
            marker="o",
            markersize=5 if ours else 3,
            linewidth=2.6 if ours else 1.1,
            zorder=3 if ours else 2,
            label=name,
        )
    axes.plot(0, 0, marker="*", color="black", markersize=14, zorder=4)
    axes.set(xlim=(-6.2, 4.2), ylim=(-4.6, 3.2), xlabel="x₁", ylabel="x₂", title=title)


def draw_decay(axes):
    for k, gamma in enumerate([0.0, 0.5, 0.9, 0.99, 1.0]):
        values = [ravine(x) for x in walk(rmsprop(gamma), ravine_gradient)]
        axes.semilogy(values, color=f"C{k + 1}", marker="o", markersize=3, label=f"γ = {gamma:g}")
    axes.annotate("γ = 1: v stays at 0, so that the\nstep is η·g/√ε, a thousand times η·g", (1, 1e7), (4, 1e10))
    axes.set(
        xlabel="step",
        ylabel="f(x)",
        title="RMSProp by its decay γ, on the ravine",
        ylim=(1e-12, 1e14),
        xticks=range(0, STEPS + 1, 5),
    )
    axes.legend(loc="lower left", fontsize=8)


def draw(paths, path):
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    draw_paths(left, ravine, paths["ravine"], "f(x) = 0.1·x₁² + 2·x₂²")
    draw_paths(middle, rotated, paths["rotated"], "f(x) = 0.1·(x₁ + x₂)² + 2·(x₁ − x₂)²")
    draw_decay(right)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=110)


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
        table.add_row(label.split(",")[0], *cells, style="bold" if label.startswith("RMSProp") else None)
    console = Console(width=100)
    console.print(table)
    console.print(
        "Along the axes, dividing each coordinate by the size of its gradient evens the ravine out.\n"
        "Across them it cannot: both coordinates see gradients of one size."
    )
    draw(paths, "ravine.png")
    console.print("picture: ravine.png")
    return 0 if ravine(paths["ravine"]["RMSProp, η 0.4, γ 0.9"][-1]) < 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
