"""Fit y = X·w by least squares with RMSProp, and compare with the exact solution.

100 points with two features, the mean squared error, 1000 epochs of full-batch steps with a falling learning rate.
Needs `pip install ".[demo]"`, takes a second, and saves a picture, linear_regression.png, in the current folder.
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import rmsfast

EPOCHS = 1000
TRUE_WEIGHTS = np.array([1.5, -2.0])
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def mean_squared_error(w, x, y):
    return np.mean((x @ w - y) ** 2)


def gradient(w, x, y):
    return 2 * x.T @ (x @ w - y) / len(y)


def train(x, y, console):
    """Return the fitted weights, and the loss and the weights before each epoch and after the last."""
    w = np.zeros(2)
    opt = rmsfast.RMSProp(w, lr=rmsfast.schedules.exponential(0.05, 0.99))
    losses, path = [], []
    for _ in track(range(EPOCHS), description="epochs", console=console, transient=True):
        losses.append(mean_squared_error(w, x, y))
        path.append(w.copy())
        opt.step(gradient(w, x, y))
    losses.append(mean_squared_error(w, x, y))
    path.append(w.copy())
    return w, np.array(losses), np.array(path)


def loss_table(above):
    """Every tenth loss above the least one, a hundred epochs a row."""
    table = Table(title="mean squared error above the least one, every 10 epochs")
    table.add_column("epoch", justify="right")
    for offset in range(0, 100, 10):
        table.add_column(f"+{offset}", justify="right")
    for first in range(0, EPOCHS, 100):
        table.add_row(str(first), *[f"{max(loss, 0):.0e}" for loss in above[first : first + 100 : 10]])
    return table


def draw(losses, path, solution, x, y, name):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 4), layout="constrained")
    bold = {"loc": "left", "size": 9.5, "weight": "bold"}
    least = mean_squared_error(solution, x, y)
    above = np.maximum(losses - least, 1e-17)  # where rounding has it below the minimum
    thrown = 100 + int(np.argmax(above[100:]))
    left.semilogy(above, color="#0072b2", linewidth=1.2)
    left.set(xlabel="epoch", ylabel="loss above the minimum", ylim=(1e-16, 300), xlim=(-10, EPOCHS))
    left.set_title(f"At the minimum in 100 epochs, thrown back,\nand there again: {above[-1]:.0e} above it", **bold)
    left.annotate(
        "gradients vanish, v forgets them,\nand steps grow back to the rate",
        (thrown, above[thrown]),
        (270, 0.03),
        arrowprops={"arrowstyle": "->"},
    )
    left.annotate("only the falling rate ends this", (400, 4e-6), color="#0072b2")

    w1, w2 = np.meshgrid(np.linspace(-0.3, 2.3, 120), np.linspace(-2.6, 0.3, 120))
    grid = [mean_squared_error(np.array(w), x, y) - least for w in zip(w1.ravel(), w2.ravel(), strict=True)]
    levels = [0.05, 0.25, 0.5, 1, 2, 3, 4, 5, 6]
    contours = right.contour(w1, w2, np.reshape(grid, w1.shape), levels=levels, colors="0.7", linewidths=0.8)
    right.clabel(contours, levels[2:], fmt="%g", fontsize=7, colors="0.35")
    right.plot(*path.T, color="#0072b2", marker="o", markersize=2.5, linewidth=1)
    right.plot(*path[0], marker="o", color="white", markeredgecolor="black", markersize=8)
    right.annotate("start", path[0], (8, 2), textcoords="offset points", weight="bold")
    right.plot(*solution, marker="*", markersize=14, color="black")
    right.annotate("least squares", solution, (9, -3), textcoords="offset points", weight="bold")
    right.set(xlabel="w₁", ylabel="w₂")
    right.set_title("The path of the weights, one dot an epoch\n(lines: loss above the minimum)", **bold)
    distance = np.abs(path[-1] - solution).max()
    figure.suptitle(f"RMSProp finds the least-squares solution within {distance:.6f}", size=12, weight="bold")
    figure.savefig(name, dpi=200)


def main() -> int:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 2))
    y = x @ TRUE_WEIGHTS + 0.1 * rng.standard_normal(100)
    solution = np.linalg.lstsq(x, y, rcond=None)[0]

    console = Console(highlight=False, width=110)
    w, losses, path = train(x, y, console)
    least = mean_squared_error(solution, x, y)
    console.print(loss_table(losses - least))
    console.print(f"the least      {least:.6f}, at the least-squares solution; 0 is: equal but for rounding")
    distance = np.abs(w - solution).max()
    console.print(f"true weights   {TRUE_WEIGHTS}\nleast squares  {solution}\nRMSProp        {w}")
    draw(losses, path, solution, x, y, "linear_regression.png")
    console.print("picture        linear_regression.png: the loss falls, is thrown back, and falls with the rate")
    if distance > 1e-5:
        console.print(f"[bold red]{distance:.1e} from the least-squares solution: 1e-5 is usual")
        return 1
    console.print(f"[bold green]the least-squares solution, within {distance:.0e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
