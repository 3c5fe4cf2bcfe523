"""Train a small network on handwritten digits, once with rmsfast and once with plain NumPy, and compare the two.

The network, its gradients and the plain optimizer are written out in NumPy below. Needs `pip install ".[demo]"`, takes
a few seconds, and saves a picture, digits.png, in the current folder.
"""

import sys
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits

import rmsfast

LAYERS = (64, 256, 128, 10)
EPOCHS = 30
BATCH = 32
EXPECTED_ACCURACY = 0.96
SETTINGS = {"lr": 1e-3, "beta": 0.9, "eps": 1e-8}

console = Console(highlight=False)


class PlainRMSProp:
    """RMSProp as a textbook has it."""

    def __init__(self, params, lr, beta, eps):
        self.params, self.lr, self.beta, self.eps = params, lr, beta, eps
        self.square_avgs = [np.zeros_like(w) for w in params]

    def step(self, grads):
        for w, v, g in zip(self.params, self.square_avgs, grads, strict=True):
            v[:] = self.beta * v + (1 - self.beta) * g**2
            w -= self.lr * g / (np.sqrt(v) + self.eps)


# ---- The network: ReLU layers, softmax, cross-entropy ----


def initial_params():
    rng = np.random.default_rng(0)
    params = []
    for inputs, outputs in pairwise(LAYERS):
        weights = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        params += [weights.astype(np.float32), np.zeros(outputs, np.float32)]
    return params


def forward(params, x):
    """Return every layer's input, and the output."""
    activations = [x]
    for i in range(0, len(params), 2):
        x = x @ params[i] + params[i + 1]
        if i < len(params) - 2:
            x = np.maximum(x, 0)
        activations.append(x)
    return activations


def probabilities(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def loss_and_gradients(params, x, labels):
    *inputs, logits = forward(params, x)
    p = probabilities(logits)
    rows = np.arange(len(labels))
    loss = -np.log(p[rows, labels]).mean()
    error = p
    error[rows, labels] -= 1
    error /= len(labels)
    grads = [None] * len(params)
    for layer in reversed(range(len(inputs))):
        grads[2 * layer] = inputs[layer].T @ error
        grads[2 * layer + 1] = error.sum(axis=0)
        if layer > 0:
            error = (error @ params[2 * layer].T) * (inputs[layer] > 0)
    return loss, grads


def accuracy(params, x, labels):
    return np.mean(forward(params, x)[-1].argmax(axis=1) == labels)


# ---- Training ----


@dataclass
class Run:
    """What a training run leaves behind."""

    params: list
    losses: list
    seconds: float  # of the whole training loop
    step_seconds: list  # of each optimizer step


def train(name, make_optimizer, data) -> Run:
    (x, labels), validation = data
    params = initial_params()
    optimizer = make_optimizer(params, **SETTINGS)
    rng = np.random.default_rng(1)
    losses, step_seconds = [], []
    seconds = 0.0
    columns = (TextColumn(f"{name:8}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn())
    numbers = TextColumn("loss {task.fields[loss]:.4f}, validation accuracy {task.fields[accuracy]:.3f}")
    with Progress(*columns, numbers, console=console) as progress:
        task = progress.add_task(name, total=EPOCHS, loss=np.nan, accuracy=np.nan)
        for _ in range(EPOCHS):
            start = perf_counter()
            order = rng.permutation(len(x))
            for first in range(0, len(x), BATCH):
                batch = order[first : first + BATCH]
                loss, grads = loss_and_gradients(params, x[batch], labels[batch])
                before = perf_counter()
                optimizer.step(grads)
                step_seconds.append(perf_counter() - before)
                losses.append(loss)
            seconds += perf_counter() - start
            progress.update(task, advance=1, loss=np.mean(losses[-40:]), accuracy=accuracy(params, *validation))
    return Run(params, losses, seconds, step_seconds)


def load_data():
    """Return images and labels for training, for validation, and held out for the end."""
    digits = load_digits()
    order = np.random.default_rng(2).permutation(len(digits.target))
    x, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    return [(x[part], labels[part]) for part in (slice(0, 1350), slice(1350, 1500), slice(1500, None))]


# ---- What came out ----


def report(fast, plain, score, count):
    fast_step, plain_step = np.median(fast.step_seconds), np.median(plain.step_seconds)
    console.print(f"\nheld-out accuracy       {score:.3f} on {count} digits")
    for name, run in ("rmsfast", fast), ("NumPy", plain):
        share = sum(run.step_seconds) / run.seconds
        console.print(f"with {name:8}           {run.seconds:.2f} s of training, {share:.0%} of it in the optimizer")
    console.print(
        f"one optimizer step      rmsfast {fast_step * 1e6:.1f} µs, NumPy {plain_step * 1e6:.1f} µs: "
        f"[bold]{plain_step / fast_step:.1f} times faster[/bold] (medians)"
    )


def draw(fast, plain, test, path):
    x, labels = test
    p = probabilities(forward(fast.params, x)[-1])
    answers = p.argmax(axis=1)
    wrong_first = np.argsort(answers == labels, kind="stable")[:24]
    figure = plt.figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subfigures(1, 2)

    axes = left.subplots()
    axes.semilogy(fast.losses, color="tab:blue", linewidth=3, alpha=0.4, label="rmsfast")
    axes.semilogy(plain.losses, color="black", linewidth=0.6, label="plain NumPy (the same bits)")
    axes.set(xlabel="step", ylabel="loss of the batch", title="Training")
    axes.legend()

    right.suptitle("Held-out digits and the model's answers: mistakes first, in red")
    for cell, i in zip(right.subplots(4, 6).flat, wrong_first, strict=True):
        cell.imshow(x[i].reshape(8, 8), cmap="gray_r")
        cell.set_title(f"{answers[i]} ({p[i].max():.0%})", color="black" if answers[i] == labels[i] else "red", size=9)
        cell.axis("off")
    figure.savefig(path, dpi=120)


def main() -> int:
    *data, test = load_data()
    config = rmsfast.config()
    console.print(f"rmsfast {config['version']}: {config['isa']}, {config['num_threads']} threads\n")
    fast = train("rmsfast", rmsfast.RMSProp, data)
    plain = train("NumPy", PlainRMSProp, data)
    score = accuracy(fast.params, *test)
    report(fast, plain, score, len(test[1]))
    draw(fast, plain, test, "digits.png")
    console.print("picture                 digits.png")
    equal = all(a.tobytes() == b.tobytes() for a, b in zip(fast.params, plain.params, strict=True))
    if not equal:
        console.print("[bold red]the two runs' weights differ: please report this, with rmsfast.config()")
        return 1
    count = sum(w.size for w in fast.params)
    console.print(f"[bold green]the weights of the two runs are equal, bit for bit[/bold green] ({count:,} numbers)")
    if score < EXPECTED_ACCURACY:
        console.print(f"[bold red]but the network learned less than it should: accuracy {EXPECTED_ACCURACY} is usual")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
