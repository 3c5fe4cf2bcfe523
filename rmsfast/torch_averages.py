"""Averages in the place of the parameters of `rmsfast.torch.RMSprop`, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rmsfast.torch_groups import setting_of


@contextmanager
def in_their_place(optimizer: Any) -> Iterator[None]:
    """Let the parameters of an optimizer hold their averages inside a ``with`` block."""
    refuse(optimizer, "averages")
    groups = [group for group in optimizer.param_groups if setting_of(group, "ema_decay") is not None]
    if not groups:
        raise ValueError(
            "averages: no group has an ema_decay, expected it in one at least: RMSprop(params, ema_decay=0.999)"
        )
    params = [p for group in groups for p in group["params"] if "ema" in optimizer.state.get(p, ())]
    kept = [p.detach().clone(memory_format=torch.preserve_format) for p in params]
    errors: list[Exception] = []
    try:
        optimizer._averaging = True
        optimizer._alone = None  # so that a step asks
        with torch.no_grad():
            for p in params:
                p.copy_(optimizer.state[p]["ema"])
        yield
    finally:
        with torch.no_grad():
            for p, own in zip(params, kept, strict=True):
                try:
                    give_back(optimizer, p, own)
                except Exception as error:  # the others come back all the same
                    errors.append(error)
        optimizer._averaging = False
        if errors:
            raise errors[0]


def give_back(optimizer: Any, p: torch.Tensor, own: torch.Tensor) -> None:
    """Give a parameter its own numbers back, or raise."""
    if p.shape != own.shape:
        i = next(i for i, q in enumerate(q for group in optimizer.param_groups for q in group["params"]) if q is p)
        raise RuntimeError(
            f"parameter {i}: now of shape {tuple(p.shape)}, expected {tuple(own.shape)}, as before averages(). It did "
            "not get its own numbers back"
        )
    p.copy_(own)


def refuse(optimizer: Any, what: str) -> None:
    """Raise if the parameters of an optimizer hold their averages."""
    if optimizer._averaging:
        raise RuntimeError(f"{what}: inside averages(), where the parameters hold their averages, expected after it")
