"""Train in a process that is killed at random times and started again, and end with the bits of a run without a stop.

A small network tells two spirals apart. The run has what makes it hard to go on: the data comes in a random order, with
noise added to it, and the learning rate and the decay have schedules. After every epoch, `opt.save(path, extra=...)`
keeps all of it in one file: parameters, averages, step counts, schedules, the state of the random generator and the
losses. A process that is killed while it saves leaves the file of the epoch before. Needs `pip install ".[demo]"`,
takes five seconds, and saves a picture, resume.png, in the current folder.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import rmsfast
from rmsfast import schedules

EPOCHS = 150
BATCH = 50
KILLS = 5


def spirals():
    """Return points on two spirals, and -1 or 1 for which it is."""
    rng = np.random.default_rng(0)
    turn = np.sqrt(rng.random(1000)) * 3 * np.pi
    label = rng.choice([-1.0, 1.0], 1000)
    points = (label * turn * [np.cos(turn), np.sin(turn)]).T / 6 + 0.04 * rng.standard_normal((1000, 2))
    return points, label


def initial_params():
    rng = np.random.default_rng(1)
    sizes = [(2, 48), (48, 48), (48, 1)]
    return [(rng.standard_normal(size) * np.sqrt(2 / size[0]), np.zeros(size[1])) for size in sizes]


def outputs(params, x):
    """Return the input of every layer, and the score of each point: the more positive, the more surely it is 1."""
    layers = [x]
    for W, b in params[:-1]:
        layers.append(np.tanh(layers[-1] @ W + b))
    W, b = params[-1]
    return layers, (layers[-1] @ W + b)[:, 0]


def loss_and_gradients(params, x, label):
    layers, score = outputs(params, x)
    loss = np.logaddexp(0, -label * score).mean()
    error = (-label / (1 + np.exp(label * score)) / len(x))[:, None]
    grads = []
    for (W, _), layer in zip(reversed(params), reversed(layers), strict=True):
        grads.append((layer.T @ error, error.sum(axis=0)))
        error = (error @ W.T) * (1 - layer**2)
    return loss, grads[::-1]


def train(path):
    """Train to the end, from the file if there is one. Return the optimizer, and what was kept beside it."""
    x, label = spirals()
    params = initial_params()
    steps = EPOCHS * len(x) // BATCH
    rate, decay = schedules.warmup(100, schedules.cosine(0.01, steps)), schedules.linear(0.9, steps, end=0.99)
    opt = rmsfast.RMSProp(params, lr=rate, beta=decay)
    rng = np.random.default_rng(2)
    run = {"losses": [], "starts": []}
    if path.exists():
        run = opt.load(path)
        rng.bit_generator.state = run["rng"]
    run["starts"].append(len(run["losses"]))
    for _ in range(len(run["losses"]), EPOCHS):
        losses = []
        for batch in np.split(rng.permutation(len(x)), len(x) // BATCH):
            noisy = x[batch] + 0.02 * rng.standard_normal((BATCH, 2))
            loss, grads = loss_and_gradients(params, noisy, label[batch])
            opt.step(grads)
            losses.append(loss)
        run["losses"].append(np.mean(losses))
        run["rng"] = rng.bit_generator.state
        opt.save(path, extra=run)
    return opt, run


def train_and_kill(path):
    """Train in other processes: kill some of them at a random moment, and let the last one come to its end."""
    chance = random.Random()
    killed = 0
    while True:
        process = subprocess.Popen([sys.executable, "-P", __file__, str(path)])
        before = path.stat().st_mtime_ns if path.exists() else 0
        if killed < KILLS:
            while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
                time.sleep(0.01)  # it has not begun to save
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
        if process.wait() == 0:
            return killed
        killed += 1
        print(f"killed after epoch {len(read(path)['losses'])} of {EPOCHS}")


def read(path):
    """Return what was kept beside an optimizer."""
    return rmsfast.RMSProp(initial_params()).load(path)


def draw(params, run, message, name):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    x, label = spirals()
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 4.2), layout="constrained")
    left.semilogy(np.arange(1, EPOCHS + 1), run["losses"], color="#0072b2")
    for start in run["starts"][1:]:
        left.axvline(start, color="#d55e00", linestyle=":")
    left.set(xlabel="epoch", ylabel="loss")
    left.set_title("Dotted: started again after a kill", loc="left", size=9.5, weight="bold")
    a, b = np.meshgrid(np.linspace(-1.9, 1.9, 200), np.linspace(-1.9, 1.9, 200))
    _, score = outputs(params, np.stack([a.ravel(), b.ravel()], axis=1))
    right.contourf(a, b, np.tanh(score.reshape(a.shape)), levels=20, cmap="RdBu", alpha=0.7)
    right.scatter(*x.T, c=label, cmap="RdBu", s=8, edgecolors="black", linewidths=0.3)
    right.set(aspect="equal", xticks=[], yticks=[])
    right.set_title("What the network makes of the plane", loc="left", size=9.5, weight="bold")
    figure.suptitle(message, size=12, weight="bold")
    figure.savefig(name, dpi=200)


def main() -> int:
    if len(sys.argv) > 1:  # a process that is to be killed
        train(Path(sys.argv[1]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = Path(folder) / "whole.npz", Path(folder) / "stopped.npz"
        opt, _ = train(whole)
        killed = train_and_kill(stopped)
        again = rmsfast.RMSProp(initial_params())
        run = again.load(stopped)
    params, others = (each.param_groups[0]["params"] for each in (opt, again))
    tree = list(zip(params[::2], params[1::2], strict=True))
    x, label = spirals()
    right = np.mean(np.sign(outputs(tree, x)[1]) == label)
    print(f"\n{again!r}\n\nkilled {killed} times, {right:.1%} of the points on the right side")
    states = zip(opt.state.values(), again.state.values(), strict=True)
    equal = all(a.tobytes() == b.tobytes() for a, b in zip(params, others, strict=True))
    equal &= all(a["square_avg"].tobytes() == b["square_avg"].tobytes() for a, b in states)
    bits = "the bits" if equal else "other bits than those"
    draw(tree, run, f"Killed {killed} times, the training ends with {bits} of a run without a stop", "resume.png")
    print("picture: resume.png. Look for a step in the loss where it was started again: there is none")
    print(
        "the bits of the run without a stop" if equal else "other bits than the run without a stop: please report this"
    )
    return 0 if equal and right > 0.97 else 1


if __name__ == "__main__":
    with threadpool_limits(1, "blas"):
        sys.exit(main())
