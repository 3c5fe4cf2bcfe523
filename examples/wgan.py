"""Train a Wasserstein GAN on eight Gaussians: the critic by RMSProp with clipped weights, the generator with averages.

The generator turns noise into points of the plane. The critic says how far its points are from the real ones: it learns
a function that is large on real points and small on others, and its weights are limited so that this function cannot be
steep. Arjovsky, Chintala and Bottou train so in "Wasserstein GAN" (arXiv:1701.07875): RMSProp, five steps of the critic
for one of the generator, and `clip_weights` after each. The two networks chase each other and never come to rest. So
the points are drawn with the average of the generator's weights as well: `ema_decay` and `opt.averages()`. Networks and
gradients are written out in NumPy below. Needs `pip install ".[demo]"`, takes five seconds, ten beside other work, and
saves a picture, wgan.png, in the current folder.
"""

import sys
from collections import deque
from itertools import pairwise

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

import rmsfast

STEPS = 2500  # of the generator
CRITIC_STEPS = 5  # for each of them
BATCH = 128
NOISE, HIDDEN = 2, 48
LIMIT = 0.5  # of the critic's weights
DECAY = 0.995  # of the average of the generator's weights
SHOWN = 2000  # points in a picture
PICTURES = 50, 300  # after so many steps, and at the end

SPREAD = 0.1
ANGLES = np.arange(8) * np.pi / 4
CENTERS = 2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)


def real_points(rng, n):
    return (CENTERS[rng.integers(8, size=n)] + SPREAD * rng.standard_normal((n, 2))).astype(np.float32)


# ---- Two networks with ReLU layers ----


def network(rng, *sizes):
    return [
        ((rng.standard_normal(size) * np.sqrt(2 / size[0])).astype(np.float32), np.zeros(size[1], np.float32))
        for size in pairwise(sizes)
    ]


def forward(params, x):
    """Return the input of every layer, and the output."""
    layers = [x]
    for W, b in params[:-1]:
        layers.append(np.maximum(layers[-1] @ W + b, 0))
    W, b = params[-1]
    return layers, layers[-1] @ W + b


def backward(params, layers, error):
    """Return the gradients of the parameters and of the input, from that of the output."""
    grads = []
    for i in reversed(range(len(params))):
        W, _ = params[i]
        grads.append((layers[i].T @ error, error.sum(axis=0)))
        error = error @ W.T
        if i > 0:
            error *= layers[i] > 0
    return grads[::-1], error


class Gan:
    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.generator = network(self.rng, NOISE, HIDDEN, HIDDEN, 2)
        self.critic = network(self.rng, 2, HIDDEN, HIDDEN, 1)
        self.generator_opt = rmsfast.RMSProp(self.generator, lr=0.005, ema_decay=DECAY)
        self.critic_opt = rmsfast.RMSProp(self.critic, lr=0.003, clip_weights=LIMIT)

    def noise(self, n):
        return self.rng.standard_normal((n, NOISE), np.float32)

    def draw(self, n):
        return forward(self.generator, self.noise(n))[1]

    def train_critic(self):
        """Take the critic's steps. Return how far it finds the generator's points from the real ones."""
        drawn, real = self.draw(CRITIC_STEPS * BATCH), real_points(self.rng, CRITIC_STEPS * BATCH)
        error = np.full((2 * BATCH, 1), 1 / BATCH, np.float32)
        error[BATCH:] *= -1  # it is to fall on drawn points, and to grow on real ones
        for part in np.split(np.arange(len(drawn)), CRITIC_STEPS):
            layers, value = forward(self.critic, np.concatenate([drawn[part], real[part]]))
            grads, _ = backward(self.critic, layers, error)
            self.critic_opt.step(grads)
        return float(value[BATCH:].mean() - value[:BATCH].mean())

    def train_generator(self):
        layers, points = forward(self.generator, self.noise(BATCH))
        critic_layers, _ = forward(self.critic, points)
        _, error = backward(self.critic, critic_layers, np.full((BATCH, 1), -1 / BATCH, np.float32))
        grads, _ = backward(self.generator, layers, error)
        self.generator_opt.step(grads)


# ---- What is seen of it ----


def distances(points):
    return np.linalg.norm(points[:, None] - CENTERS, axis=2)


def near(points):
    """Say of each point whether it is as near to a Gaussian as nearly all real points are."""
    return distances(points).min(axis=1) < 3.5 * SPREAD


def gaussians_found(points):
    """Return how many Gaussians have at least a third of their share of the points near them."""
    return sum(np.bincount(distances(points).argmin(axis=1)[near(points)], minlength=8) > len(points) / 8 / 3)


def train(gan):
    """Return points that were drawn during the training and, twice, at the end, by the titles of their pictures."""
    pictures = {}
    numbers = TextColumn("distance {task.fields[distance]:.2f}, {task.fields[share]:.0%} near a Gaussian")
    columns = TextColumn("training"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), numbers
    with Progress(*columns) as progress:
        seen = {"distance": gan.train_critic(), "share": near(gan.draw(SHOWN)).mean()}
        bar = progress.add_task("", total=STEPS, **seen)
        recent = deque(maxlen=100)
        for step in range(1, STEPS + 1):
            recent.append(gan.train_critic())
            gan.train_generator()
            if step in PICTURES:
                pictures[f"after {step} steps"] = gan.draw(SHOWN)
            if step % 50 == 0:
                progress.update(bar, completed=step, distance=np.mean(recent), share=near(gan.draw(SHOWN)).mean())
    pictures[f"after {STEPS} steps"] = gan.draw(SHOWN)
    with gan.generator_opt.averages():
        pictures["averages of the weights"] = gan.draw(SHOWN)
    return pictures


def draw_pictures(pictures, path):
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, all_axes = plt.subplots(1, len(pictures), figsize=(8.2, 3), layout="constrained", sharey=True)
    for axes, (title, points) in zip(all_axes, pictures.items(), strict=True):
        is_near = near(points)
        for center in CENTERS:
            axes.add_patch(plt.Circle(center, 3.5 * SPREAD, color="0.85", zorder=0))
        axes.scatter(*points[~is_near].T, s=2, linewidths=0, color="#d55e00")
        axes.scatter(*points[is_near].T, s=2, linewidths=0, color="#0072b2")
        axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        axes.set_title(f"{title}:\n{is_near.mean():.0%} near a Gaussian", size=8.5)
    found = gaussians_found(points)
    figure.suptitle(
        f"A GAN, trained by RMSProp with clip_weights, finds {found} of 8 Gaussians", size=12, weight="bold"
    )
    figure.supxlabel("gray: where a Gaussian's points are; blue: points near one; orange: elsewhere", size=8)
    figure.savefig(path, dpi=200)


def main() -> int:
    gan = Gan()
    with threadpool_limits(1, "blas"):
        pictures = train(gan)
    console = Console(highlight=False)
    *_, last, averaged = pictures.values()
    for name, points in ("last", last), ("averaged", averaged):
        console.print(
            f"{name + ' weights:':17} {near(points).mean():.0%} of the points near a Gaussian, "
            f"{gaussians_found(points)} of 8 Gaussians found"
        )
    largest = max(np.abs(array).max() for layer in gan.critic for array in layer)
    console.print(f"largest weight of the critic: {largest:g}, its limit {LIMIT:g}")
    draw_pictures(pictures, "wgan.png")
    console.print("picture: wgan.png")
    return 0 if gaussians_found(averaged) == 8 and near(averaged).mean() > 0.75 else 1


if __name__ == "__main__":
    sys.exit(main())
