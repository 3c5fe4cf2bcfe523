"""What each variant costs beside the plain rule, in one run: `python -m bench.variants`.

All variants share one parameter and one gradient, and take turns. With PyTorch installed, its three calls to clip, step
and zero are timed as well.
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import rmsfast
from bench.timing import minima

# Each variant: settings, arguments of the step, and the bytes that it moves for each float32 element; the plain rule
# reads g, w and v, and writes w and v.
PLAIN = 20
VARIANTS: dict[str, tuple[dict, dict, int]] = {
    "plain": ({}, {}, PLAIN),
    "ε inside √": ({"eps_inside_sqrt": True}, {}, PLAIN),
    "bias correction": ({"bias_correction": True}, {}, PLAIN),
    "weight decay": ({"weight_decay": 0.01}, {}, PLAIN),
    "decoupled weight decay": ({"weight_decay": 0.01, "decoupled_weight_decay": True}, {}, PLAIN),
    "maximize": ({"maximize": True}, {}, PLAIN),
    "clip by value": ({"clip_value": 0.3}, {}, PLAIN),
    "clip weights": ({"clip_weights": 0.3}, {}, PLAIN),
    "grad_scale": ({}, {"grad_scale": 0.5}, PLAIN),
    "all of these": (
        {"eps_inside_sqrt": True, "bias_correction": True, "weight_decay": 0.01, "maximize": True, "clip_value": 0.3},
        {"grad_scale": 0.5},
        PLAIN,
    ),
    "momentum": ({"momentum": 0.9}, {}, 28),
    "nesterov": ({"momentum": 0.9, "nesterov": True}, {}, 28),
    "centered": ({"centered": True}, {}, 28),
    "averages of the weights": ({"ema_decay": 0.99}, {}, 28),
    "centered, momentum": ({"centered": True, "momentum": 0.9}, {}, 36),
    "zero_grads": ({}, {"zero_grads": True}, 24),
    "nonfinite": ({"nonfinite": "skip"}, {}, 24),
    "clip by global norm": ({"clip_global_norm": 1.0}, {}, 24),
    "clip, step, zero": ({"clip_global_norm": 1.0}, {"zero_grads": True}, 28),
}


def make_steps(size: int, threads: int) -> dict[str, Callable[[], None]]:
    """Return a step of each variant. Gradients that were set to zero stay: v is kept from decaying to subnormals."""
    rng = np.random.default_rng(0)
    w = rng.uniform(-1, 1, size).astype(np.float32)
    g = rng.uniform(0.05, 0.5, size).astype(np.float32)
    zeros = np.zeros_like(g)
    steps: dict[str, Callable[[], None]] = {}
    for name, (settings, arguments, _) in VARIANTS.items():
        erases = arguments.get("zero_grads", False)
        opt = rmsfast.RMSProp(w, num_threads=threads, beta=1.0 if erases else 0.9, initial_square_avg=0.1, **settings)
        steps[name] = partial(opt.step, zeros if erases else g, **arguments)
    return steps


def torch_steps(size: int, threads: int) -> dict[str, Callable[[], None]]:
    """Return PyTorch's three calls, if it is installed."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    w = torch.nn.Parameter(torch.rand(size))
    w.grad = torch.rand(size)
    optimizer = torch.optim.RMSprop([w], lr=1e-3, foreach=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_([w], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return {"PyTorch: clip, step, zero": step}


def rows_steps(threads: int) -> dict[str, Callable[[], None]]:
    """Return a dense step on a table of 1 000 000 × 64, and steps on 10 000 random rows: the same, and fresh ones."""
    rng = np.random.default_rng(0)
    table = rng.uniform(-1, 1, (1_000_000, 64)).astype(np.float32)
    g = rng.uniform(0.05, 0.5, table.shape).astype(np.float32)
    opt = rmsfast.RMSProp(table, num_threads=threads)
    opt.step(g)
    sets = [
        rmsfast.Rows(rng.integers(0, len(table), 10_000), rng.uniform(0.05, 0.5, (10_000, 64)).astype(np.float32))
        for _ in range(16)
    ]

    def fresh() -> None:
        sets.append(sets.pop(0))
        opt.step(sets[0])

    return {
        "dense step": partial(opt.step, g),
        "10 000 random rows, the same each time": partial(opt.step, sets[0]),
        "10 000 random rows, others each time": fresh,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.variants", description=__doc__)
    parser.add_argument("--sizes", default="65536,16777216", help="of the parameter (default %(default)s)")
    parser.add_argument("--threads", type=int, default=rmsfast.get_num_threads(), help="default: all, %(default)s here")
    parser.add_argument("--seconds", type=float, default=20, help="for each size, about (default %(default)s)")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]

    console = Console(highlight=False)
    table = Table("variant", "bytes", title="µs a step, and how many times as long as the plain rule")
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(sizes) + 1)
        times = []
        for size in sizes:
            steps = make_steps(size, options.threads) | torch_steps(size, options.threads)
            times.append(minima(steps, options.seconds))
            progress.advance(task)
        rows = minima(rows_steps(options.threads), options.seconds / 2)
        progress.advance(task)
    for name in times[0]:
        allowed = f"{VARIANTS[name][2] / PLAIN:.2f}×" if name in VARIANTS else ""
        table.add_row(name, allowed, *[f"{t[name] * 1e6:,.2f}  {t[name] / t['plain']:.2f}×" for t in times])
    console.print(table)
    for name, seconds in rows.items():
        console.print(f"1 000 000 × 64, {name:40} {seconds * 1e6:8.1f} µs {rows['dense step'] / seconds:6.1f}")
    console.print(f"float32, {options.threads} threads, {rmsfast.config()['isa']}, minimum of the rounds")


if __name__ == "__main__":
    main()
