"""Train a small convolutional network on handwritten digits, with PyTorch's RMSprop and with rmsfast's in its place.

Needs `pip install ".[demo,torch]"`, takes some seconds, and saves a picture, torch_training.png, in the current folder.
"""

import sys
from time import perf_counter

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits

import rmsfast.torch

EPOCHS = 25
BATCH = 32
SETTINGS = {"lr": 5e-4, "alpha": 0.9, "momentum": 0.5}
EXPECTED_ACCURACY = 0.95

console = Console(highlight=False, soft_wrap=True)
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 16, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )


def load_data():
    """Return images and labels for training, and held out for the end."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = torch.tensor(digits.images[order, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target[order])
    return (x[:1400], labels[:1400]), (x[1400:], labels[1400:])


class Run:
    """A network in training, and what is noted of it."""

    def __init__(self, name, optimizer_class):
        self.name = name
        self.model = make_model()
        self.optimizer = optimizer_class(self.model.parameters(), **SETTINGS)
        self.generator = torch.Generator().manual_seed(1)
        self.losses: list[float] = []
        self.seconds: list[float] = []  # of each turn of the training loop
        self.step_seconds: list[float] = []  # of the optimizer's part of it

    def epoch(self, x, labels):
        for batch in torch.randperm(len(x), generator=self.generator).split(BATCH):
            start = perf_counter()
            self.optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(self.model(x[batch]), labels[batch])
            loss.backward()
            before = perf_counter()
            self.optimizer.step()
            stop = perf_counter()
            self.losses.append(loss.item())
            self.seconds.append(stop - start)
            self.step_seconds.append(stop - before)

    def accuracy(self, x, labels):
        with torch.no_grad():
            return (self.model(x).argmax(1) == labels).float().mean().item()


def train(runs, x, labels):
    """Train all, epoch by epoch in turn, so that whatever else the machine does falls on each."""
    columns = TextColumn("{task.description:22}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs")
    numbers = TextColumn("loss {task.fields[loss]:.4f}")
    with Progress(*columns, TimeElapsedColumn(), numbers, console=console) as progress:
        tasks = [progress.add_task(run.name, total=EPOCHS, loss=np.nan) for run in runs]
        for _ in range(EPOCHS):
            for run, task in zip(runs, tasks, strict=True):
                run.epoch(x, labels)
                progress.update(task, advance=1, loss=np.mean(run.losses[-40:]))


def draw(runs, path):
    theirs, ours = runs
    bold = {"loc": "left", "size": 9.5, "weight": "bold"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.7), layout="constrained", width_ratios=(1.5, 1))
    left.semilogy(ours.losses, label=ours.name, color="#0072b2", linewidth=3, alpha=0.5)
    left.semilogy(theirs.losses, label=theirs.name, color="black", linewidth=0.7)
    left.set(xlabel="step", ylabel="loss of the batch")
    left.set_title("The same training", **bold)
    left.legend(frameon=False)

    turn = np.array([np.median(run.seconds) for run in runs]) * 1e6
    step = np.array([np.median(run.step_seconds) for run in runs]) * 1e6
    names = [run.name.replace(".RMSprop", "") for run in runs]
    right.bar(names, turn - step, 0.6, color="0.85")
    right.bar(names, step, 0.6, bottom=turn - step, color=["#d55e00", "#0072b2"])
    for k in range(len(runs)):
        right.annotate(f"network\n{turn[k] - step[k]:.0f}", (k, (turn[k] - step[k]) / 2), ha="center", va="center")
        words = f"optimizer {step[k]:.0f}"
        right.annotate(words, (k, turn[k]), (0, 3), textcoords="offset points", ha="center", weight="bold")
    right.set(ylabel="µs, median", ylim=(0, turn.max() * 1.1))
    right.set_title("One turn of the training loop", **bold)
    loop = turn[0] / turn[1]
    figure.suptitle(
        f"The same losses, and the whole loop is {loop:.2f} times as fast: "
        f"the step takes {step[1]:.0f} µs, not {step[0]:.0f}",
        size=11,
        weight="bold",
    )
    figure.savefig(path, dpi=200)


def main() -> int:
    training, held_out = load_data()
    runs = [Run("torch.optim.RMSprop", torch.optim.RMSprop), Run("rmsfast.torch.RMSprop", rmsfast.torch.RMSprop)]
    train(runs, *training)
    for run in runs:
        turn, step = np.median(run.seconds) * 1e6, np.median(run.step_seconds) * 1e6
        console.print(
            f"{run.name:22} {turn:4.0f} µs a turn, {step:5.1f} of them in the optimizer; held-out accuracy "
            f"{run.accuracy(*held_out):.3f}"
        )
    theirs, ours = runs
    step = np.median(theirs.step_seconds) / np.median(ours.step_seconds)
    loop = np.median(theirs.seconds) / np.median(ours.seconds)
    console.print(
        f"the optimizer is [bold]{step:.0f} times[/bold] as fast, the training loop [bold]{loop:.2f} times[/bold]"
    )
    draw(runs, "torch_training.png")
    console.print("picture: torch_training.png")
    if ours.accuracy(*held_out) < EXPECTED_ACCURACY:
        console.print(f"[bold red]the network learned less than it should: accuracy {EXPECTED_ACCURACY} is usual")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
