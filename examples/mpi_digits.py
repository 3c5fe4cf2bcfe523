"""Train a small network on handwritten digits in several processes, and compare it with one process and whole batches.

    mpiexec -n 2 python -m mpi4py examples/mpi_digits.py

Each rank computes the gradient of its share of every batch. `ShardedRMSProp` averages the gradients, and keeps a share
of the optimizer's state on each rank. Afterwards rank 0 trains the same network alone. Needs
`pip install ".[demo,mpi]"`, and takes a few seconds.
"""

import sys
from itertools import pairwise

import numpy as np
from mpi4py import MPI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import rmsfast
from rmsfast.mpi import ShardedRMSProp

LAYERS = (64, 256, 128, 10)
EPOCHS = 15
BATCH = 60
EXPECTED_ACCURACY = 0.95
SETTINGS = {"lr": 1e-3, "beta": 0.9, "clip_global_norm": 5.0}

comm = MPI.COMM_WORLD
console = Console(highlight=False, quiet=comm.rank > 0)


# ---- The network: ReLU layers, softmax, cross-entropy ----


def initial_params():
    rng = np.random.default_rng(0)
    sizes = list(pairwise(LAYERS))
    return [
        {"W": (rng.standard_normal(size) * np.sqrt(2 / size[0])).astype(np.float32), "b": np.zeros(size[1], np.float32)}
        for size in sizes
    ]


def forward(params, x):
    """Return every layer's input, and the output."""
    inputs = []
    for layer in params:
        inputs.append(x)
        x = x @ layer["W"] + layer["b"]
        if layer is not params[-1]:
            x = np.maximum(x, 0)
    return inputs, x


def gradients(params, x, labels, count):
    """Return the gradients of the loss, summed over these samples and divided by a count."""
    inputs, logits = forward(params, x)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = exponentials / exponentials.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= np.float32(count)
    grads = []
    for layer, entered in zip(reversed(params), reversed(inputs), strict=True):
        grads.append({"W": entered.T @ error, "b": error.sum(axis=0)})
        error = (error @ layer["W"].T) * (entered > 0)
    return grads[::-1]


def accuracy(params, x, labels):
    return float(np.mean(forward(params, x)[1].argmax(axis=1) == labels))


# ---- Training ----


def batches(x, labels):
    """The same on all ranks."""
    rng = np.random.default_rng(1)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield x[chosen], labels[chosen]


def train(params, optimizer, data, rank, size, title):
    """Train on this rank's share of every batch. The average over the ranks is that over the batch."""
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn()
    steps = EPOCHS * (len(data[0]) // BATCH)
    with Progress(*columns, console=console, disable=comm.rank > 0) as progress:
        for x, labels in progress.track(batches(*data), total=steps):
            optimizer.step(gradients(params, x[rank::size], labels[rank::size], BATCH / size))


def load_data():
    """Return images and labels for training, and held out."""
    digits = load_digits()
    order = np.random.default_rng(2).permutation(len(digits.target))
    x, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    return (x[:1500], labels[:1500]), (x[1500:], labels[1500:])


def flat(params):
    return np.concatenate([layer[name].reshape(-1) for layer in params for name in ("W", "b")])


def main() -> int:
    data, held_out = load_data()
    params = initial_params()
    optimizer = ShardedRMSProp(params, **SETTINGS)
    with threadpool_limits(1, "blas"):
        train(params, optimizer, data, comm.rank, comm.size, f"{comm.size} rank{'s' if comm.size > 1 else ''}")
    optimizer.check_synced()
    state = np.zeros(comm.size, np.int64)
    comm.Gather(np.array([optimizer.state_bytes]), state)
    if comm.rank > 0:
        return 0  # rank 0 goes on alone

    alone = initial_params()
    with threadpool_limits(1, "blas"):
        train(alone, rmsfast.RMSProp(alone, **SETTINGS), data, 0, 1, "alone")
    score, score_alone = accuracy(params, *held_out), accuracy(alone, *held_out)
    difference = np.abs(flat(params) - flat(alone)).max()
    count = flat(params).size
    shares = ", ".join(f"{n:,}" for n in state[:8]) + ", …" * (comm.size > 8)
    console.print(f"\nheld-out accuracy    {score:.3f} on {len(held_out[1])} digits; alone {score_alone:.3f}")
    console.print(f"{count:,} parameters    those trained alone differ by {difference:.1e} at most")
    console.print(f"bytes sent a step    {optimizer.sent_bytes:,} by each rank; gradients have {4 * count:,}")
    console.print(f"bytes of state       {shares} by rank; the whole has {4 * count:,}")
    if score < EXPECTED_ACCURACY or score_alone < EXPECTED_ACCURACY:
        console.print(f"[bold red]the network learned less than it should: accuracy {EXPECTED_ACCURACY} is usual")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
