"""What the recipes in this folder share: train with PyTorch's optimizer and with ours in its place, and compare."""

import sys
import warnings
from collections.abc import Callable
from time import perf_counter

import torch

import rmsfast.torch

warnings.filterwarnings("ignore")  # what the frameworks say about themselves, machines and trial sizes
ROUNDS = 3


def compare(
    train: Callable[[type], torch.nn.Module],
    theirs: type = torch.optim.RMSprop,
    ours: type = rmsfast.torch.RMSprop,
    tolerance: float = 1e-3,
) -> None:
    """Train a model with each of the two classes, in turn; print how much faster ours is. Exit if the models differ."""
    best: dict[type, float] = {}
    weights: dict[type, torch.Tensor] = {}
    for _ in range(ROUNDS):
        for cls in theirs, ours:
            torch.manual_seed(0)
            start = perf_counter()
            model = train(cls)
            seconds = perf_counter() - start
            best[cls] = min(seconds, best.get(cls, seconds))
            weights[cls] = torch.cat([p.detach().flatten().double() for p in model.parameters()])
    difference = ((weights[ours] - weights[theirs]).norm() / weights[theirs].norm()).item()
    names = [f"{cls.__module__.split('.')[0]}'s {cls.__name__} {best[cls]:.2f} s" for cls in (theirs, ours)]
    print(f"{', '.join(names)}: {best[theirs] / best[ours]:.2f} times as fast; weights differ by {difference:.0e}")
    if not difference <= tolerance:
        sys.exit(f"expected at most {tolerance:.0e}")
