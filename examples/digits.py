"""Train a small network on handwritten digits with rmsfast and with plain NumPy at the same time, and compare the two.

Two networks start with the same weights and see the same batches. One has rmsfast's optimizer, the other a textbook's.
They take turns at every batch, so that other work on this machine slows both. The matrix products of NumPy have one
thread: more would wait for each other longer than they compute. The network, its gradients and the plain optimizer are
written out in NumPy below. Needs `pip install ".[demo]"`, takes a few seconds, and saves a picture, digits.png, in the
current folder.
"""

import sys
from itertools import pairwise
from time import perf_counter

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import rmsfast

LAYERS = (64, 256, 128, 10)
EPOCHS = 30
BATCH = 32
EXPECTED_ACCURACY = 0.96
SETTINGS = {"lr": 1e-3, "beta": 0.9, "eps": 1e-8}

console = Console(highlight=False)
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


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


class Run:
    """A network in training, and what is to be seen of it: its losses, and the seconds of each step."""

    def __init__(self, make_optimizer):
        self.params = initial_params()
        self.optimizer = make_optimizer(self.params, **SETTINGS)
        self.losses, self.step_seconds, self.gradient_seconds = [], [], []

    def train(self, x, labels):
        start = perf_counter()
        loss, grads = loss_and_gradients(self.params, x, labels)
        before = perf_counter()
        self.optimizer.step(grads)
        after = perf_counter()
        self.losses.append(loss)
        self.gradient_seconds.append(before - start)
        self.step_seconds.append(after - before)


def train(runs, data):
    """Train all runs on the same batches, in turn."""
    (x, labels), validation = data
    rng = np.random.default_rng(1)
    first = runs[0]
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn())
    numbers = TextColumn("loss {task.fields[loss]:.4f}, validation accuracy {task.fields[accuracy]:.3f}")
    loss, _ = loss_and_gradients(first.params, x, labels)
    with Progress(*columns, numbers, console=console) as progress:
        task = progress.add_task("", total=EPOCHS, loss=loss, accuracy=accuracy(first.params, *validation))
        for _ in range(EPOCHS):
            order = rng.permutation(len(x))
            for start in range(0, len(x), BATCH):
                batch = order[start : start + BATCH]
                for run in runs:
                    run.train(x[batch], labels[batch])
            loss = np.mean(first.losses[-40:])
            progress.update(task, advance=1, loss=loss, accuracy=accuracy(first.params, *validation))


def load_data():
    """Return images and labels for training, for validation, and held out for the end."""
    digits = load_digits()
    order = np.random.default_rng(2).permutation(len(digits.target))
    x, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    return [(x[part], labels[part]) for part in (slice(0, 1350), slice(1350, 1500), slice(1500, None))]


# ---- What came out ----


def report(fast, plain, score, count):
    console.print(f"\nheld-out accuracy       {score:.3f} on {count} digits")
    (fast_step, plain_step), gradients = (np.median(run.step_seconds) for run in (fast, plain)), fast.gradient_seconds
    console.print(
        f"one optimizer step      rmsfast {fast_step * 1e6:.1f} µs, NumPy {plain_step * 1e6:.1f} µs: "
        f"[bold]{plain_step / fast_step:.1f} times as fast[/bold] (medians of {len(fast.losses):,} steps, in turn)"
    )
    gradient = np.median(gradients)
    shares = [step / (step + gradient) for step in (fast_step, plain_step)]
    console.print(
        f"of the training         the optimizer is {shares[0]:.0%} with rmsfast, {shares[1]:.0%} with NumPy "
        f"(beside {gradient * 1e6:.0f} µs for a batch's gradients)"
    )


def equal_bits(fast, plain):
    return all(a.tobytes() == b.tobytes() for a, b in zip(fast.params, plain.params, strict=True))


def draw(fast, plain, test, path):
    x, labels = test
    p = probabilities(forward(fast.params, x)[-1])
    answers = p.argmax(axis=1)
    mistakes = np.count_nonzero(answers != labels)
    mistakes_first = np.argsort(answers == labels, kind="stable")
    steps = [np.median(run.step_seconds) * 1e6 for run in (fast, plain)]
    bold = {"loc": "left", "size": 9.5, "weight": "bold"}
    figure = plt.figure(figsize=(8.2, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2)

    losses, times = left.subplots(2, 1, height_ratios=[2.6, 1])
    losses.semilogy(fast.losses, color="#0072b2", linewidth=3, alpha=0.4, label="rmsfast")
    losses.semilogy(plain.losses, color="black", linewidth=0.6, label="plain NumPy")
    losses.set(xlabel="step", ylabel="loss of the batch")
    losses.set_title("The two losses lie on each other", **bold)
    losses.legend(frameon=False)

    bars = times.barh(["rmsfast", "plain NumPy"], steps, 0.6, color=["#0072b2", "#cc79a7"])
    times.bar_label(bars, [f"{step:.0f} µs" for step in steps], padding=3)
    times.invert_yaxis()
    times.set(xlim=(0, max(steps) * 1.25), xticks=[])
    times.spines["bottom"].set_visible(False)
    times.tick_params(left=False)
    times.set_title("The optimizer's step, median", **bold)

    right.suptitle(f"{mistakes} mistakes in {len(labels)} held-out digits", x=0.02, ha="left", size=9.5, weight="bold")
    for cell, i in zip(right.subplots(3, 5).flat, mistakes_first, strict=False):
        cell.imshow(x[i].reshape(8, 8), cmap="gray_r")
        if answers[i] == labels[i]:
            cell.set_title(f"{labels[i]}", size=8)
        else:
            cell.set_title(f"is {labels[i]}\nsaid {answers[i]} ({p[i].max():.0%})", color="#b34700", size=7.5)
        cell.axis("off")
    bits = "The bits of plain NumPy" if equal_bits(fast, plain) else "Other bits than plain NumPy"
    figure.suptitle(f"{bits}, and each step {steps[1] / steps[0]:.1f} times as fast", size=12, weight="bold")
    figure.savefig(path, dpi=200)


def main() -> int:
    *data, test = load_data()
    config = rmsfast.config()
    console.print(f"rmsfast {config['version']}: {config['isa']}, {config['num_threads']} threads\n")
    fast, plain = Run(rmsfast.RMSProp), Run(PlainRMSProp)
    with threadpool_limits(1, "blas"):
        train([fast, plain], data)
    score = accuracy(fast.params, *test)
    report(fast, plain, score, len(test[1]))
    draw(fast, plain, test, "digits.png")
    console.print(
        "picture                 digits.png: look at the mistakes, with what each digit is and what the network said"
    )
    if not equal_bits(fast, plain):
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
