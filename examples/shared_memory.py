"""Train one model from several processes that share it without locks, as asynchronous reinforcement learning does.

Parameters and the averages of their squared gradients lie in shared memory (as in the "shared RMSProp" of Mnih et al.
2016, arXiv:1602.01783); each process computes gradients from data of its own and steps whenever it has one ("Hogwild!",
Niu et al. 2011, arXiv:1106.5730). Steps may overlap and overwrite a few of each other's elements, which costs no more
than a little noise. Needs `pip install ".[demo]"`, takes a few seconds, and saves shared_memory.png in the current
folder.
"""

import multiprocessing
import sys
from multiprocessing.shared_memory import SharedMemory

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

import rmsfast

WORKERS = 2
FEATURES = 500
STEPS = 3000
BATCH = 50
NOISE = 0.1  # in what the processes observe
SETTINGS = {"beta": 0.99, "eps": 1e-6}


def target() -> np.ndarray:
    """What all have to find out."""
    return np.random.default_rng(0).uniform(-1, 1, FEATURES)


def rate(step: int) -> float:
    """The learning rate falls to a hundredth of what it begins with."""
    return 1e-2 * 0.01 ** (step / STEPS)


def work(name: str, seed: int, start, losses) -> None:
    """Look at random points, and step on what all processes share."""
    memory = SharedMemory(name)
    w, v = np.ndarray((2, FEATURES), np.float64, memory.buf)
    rng = np.random.default_rng(seed)
    truth = target()
    noted = []
    start.wait()  # until all are there
    for step in range(STEPS):
        x = rng.standard_normal((BATCH, FEATURES))
        error = x @ w - x @ truth + NOISE * rng.standard_normal(BATCH)
        rmsfast.rmsprop_update(w, v, 2 * x.T @ error / BATCH, lr=rate(step), **SETTINGS)
        noted.append(np.mean(error**2))
    losses.put((seed, noted))
    del w, v  # nothing may refer to the memory when it is closed
    memory.close()


def train(workers: int) -> tuple[np.ndarray, dict[int, list[float]]]:
    """Return the shared parameters after training, and the losses that each process saw."""
    memory = SharedMemory(create=True, size=2 * FEATURES * 8)
    shared = np.ndarray((2, FEATURES), np.float64, memory.buf)
    shared[:] = 0
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    start = context.Barrier(workers)
    processes = [context.Process(target=work, args=(memory.name, 1 + k, start, queue)) for k in range(workers)]
    for process in processes:
        process.start()
    losses = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    w = shared[0].copy()
    del shared
    memory.close()
    memory.unlink()
    return w, losses


def draw(losses: dict[int, list[float]], error: float) -> None:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(8.2, 4), layout="constrained")
    for (seed, noted), color in zip(sorted(losses.items()), ["#0072b2", "#e69f00", "#009e73"] * WORKERS, strict=False):
        axes.semilogy(noted, color=color, linewidth=0.7, label=f"process {seed}")
    axes.axhline(NOISE**2, color="black", linestyle="--", linewidth=1)
    axes.annotate("noise that no model explains", (0, NOISE**2), (0, -14), textcoords="offset points", va="top")
    axes.set(xlabel="its own steps", ylabel="loss of the batch", ylim=(NOISE**2 / 4, None))
    axes.legend(frameon=False)
    message = f"{WORKERS} processes train one model without locks: its largest error is {error:.4f}"
    figure.suptitle(message, size=11, weight="bold")
    figure.savefig("shared_memory.png", dpi=200)


def main() -> int:
    console = Console(highlight=False)
    with console.status(f"{WORKERS} processes train one model"):
        w, losses = train(WORKERS)
    error = np.abs(w - target()).max()
    console.print(f"{WORKERS} processes, {STEPS:,} steps each, no locks")
    for seed, noted in sorted(losses.items()):
        console.print(f"loss seen by process {seed}: {noted[0]:.1f} at first, {np.mean(noted[-100:]):.4f} in the end")
    console.print(f"noise that no model explains: {NOISE**2:.4f}")
    console.print(f"largest error of a parameter: {error:.1e}")
    draw(losses, error)
    console.print("picture: shared_memory.png")
    return 0 if error < 0.05 else 1


if __name__ == "__main__":
    sys.exit(main())
