"""rmsfast.torch.RMSprop beside torch.optim.RMSprop at its best setting: `python -m bench.torch_optim`.

One step in float32 on each case; rows of a large table with a sparse gradient beside a dense step; and the whole
training loop of a small network. In one process, in turn, minima.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from time import sleep

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import rmsfast
import rmsfast.torch
from bench.contenders import BETA, CASES, EPS, LR, make_arrays
from bench.timing import minima

OURS = "rmsfast.torch"
CLASSES: dict[str, tuple[type, dict]] = {
    OURS: (rmsfast.torch.RMSprop, {}),
    "torch for-loop": (torch.optim.RMSprop, {"foreach": False}),
    "torch foreach": (torch.optim.RMSprop, {"foreach": True}),
}
ROWS, WIDTH, TOUCHED = 1_000_000, 64, 10_000
LAYERS = 64, 128, 128, 10
BATCH = 32


def rest() -> None:
    """Let the idle threads of PyTorch's pool go to sleep before the next contender's turn."""
    sleep(0.005)


def case_steps(case: str) -> dict[str, Callable[[], None]]:
    steps: dict[str, Callable[[], None]] = {"": rest}
    for name, (cls, settings) in CLASSES.items():
        arrays = make_arrays(CASES[case], "float32")
        params = [torch.nn.Parameter(torch.from_numpy(w)) for w in arrays.w]
        for p, g in zip(params, arrays.g, strict=True):
            p.grad = torch.from_numpy(g)
        steps[name] = cls(params, lr=LR, alpha=BETA, eps=EPS, **settings).step
    return steps


def row_steps() -> dict[str, Callable[[], None]]:
    """Steps on some rows of a table, and on all of them."""
    rows = torch.randint(ROWS, (TOUCHED,))
    values = torch.rand(TOUCHED, WIDTH) + 0.05
    table = torch.nn.Parameter(torch.rand(ROWS, WIDTH))
    optimizer = rmsfast.torch.RMSprop([table], lr=LR, alpha=BETA, eps=EPS)
    sparse = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True)
    dense = torch.rand(ROWS, WIDTH) + 0.05

    def with_gradient(grad: torch.Tensor) -> Callable[[], None]:
        def step() -> None:
            table.grad = grad
            optimizer.step()

        return step

    return {"dense": with_gradient(dense), "sparse": with_gradient(sparse)}


def loop_steps() -> dict[str, Callable[[], None]]:
    """One turn of a training loop: zero_grad, forward, backward, step."""
    x, labels = torch.randn(BATCH, LAYERS[0]), torch.randint(LAYERS[-1], (BATCH,))
    steps: dict[str, Callable[[], None]] = {}
    for name, (cls, settings) in CLASSES.items():
        layers: list[torch.nn.Module] = []
        for inputs, outputs in pairwise(LAYERS):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        optimizer = cls(model.parameters(), lr=1e-5, **settings)

        def turn(model=model, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()

        steps[name] = turn
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.torch_optim", description=__doc__)
    parser.add_argument("--threads", type=int, default=rmsfast.get_num_threads(), help="default: all, %(default)s here")
    parser.add_argument("--seconds", type=float, default=8, help="for each line, about (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    console = Console(highlight=False)
    table = Table(
        "µs", title=f"float32, {options.threads} threads, {rmsfast.config()['isa']}, torch {torch.__version__}"
    )
    for name in (*CLASSES, "best ÷ ours"):
        table.add_column(name, justify="right")
    lines = {**{case: (case_steps, case) for case in CASES}, "training loop": (loop_steps,)}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(lines) + 1)
        for label, (make, *arguments) in lines.items():
            times = minima(make(*arguments), options.seconds)
            best = min(seconds for name, seconds in times.items() if name not in (OURS, ""))
            cells = [f"{times[name] * 1e6:,.2f}" for name in CLASSES]
            table.add_row(label, *cells, f"{best / times[OURS]:.2f}")
            progress.advance(task)
        rows = minima(row_steps(), options.seconds)
        progress.advance(task)
    console.print(table)
    console.print(
        f"{TOUCHED:,} rows of {ROWS:,} × {WIDTH}: dense {rows['dense'] * 1e6:,.0f} µs, sparse "
        f"{rows['sparse'] * 1e6:,.0f} µs: {rows['dense'] / rows['sparse']:.1f}"
    )


if __name__ == "__main__":
    main()
