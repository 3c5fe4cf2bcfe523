"""rmsfast.torch.RMSprop beside torch.optim.RMSprop at its best setting: `python -m bench.torch_optim`.

One step in float32 on each case; whole training loops; rows of a large table with a sparse gradient beside a dense
step; steps in backward. In one process, in turn, minima; once with OMP_NUM_THREADS=1, as on machines that are shared,
and once with all.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from time import sleep

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import rmsfast
import rmsfast.torch
from bench.contenders import BETA, CASES, EPS, LR, make_arrays
from bench.timing import minima
from bench.torch_loops import LOOPS, Loss, large
from rmsfast.settings import count_of

OURS = "rmsfast.torch"
CLASSES: dict[str, tuple[type, dict]] = {
    OURS: (rmsfast.torch.RMSprop, {}),
    "PyTorch for-loop": (torch.optim.RMSprop, {"foreach": False}),
    "PyTorch foreach": (torch.optim.RMSprop, {"foreach": True}),
}
ROWS, WIDTH, TOUCHED = 1_000_000, 64, 10_000
WITHOUT = "no step"


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


def turns(make: Callable[[], tuple[torch.nn.Module, Loss]]) -> dict[str, Callable[[], None]]:
    """One turn of a training loop: zero_grad, forward, backward, step; and the same without a step."""
    steps: dict[str, Callable[[], None]] = {}
    for name, (cls, settings) in {**CLASSES, WITHOUT: (torch.optim.RMSprop, {})}.items():
        torch.manual_seed(0)
        model, loss = make()
        optimizer = cls(model.parameters(), lr=1e-5, **settings)

        def turn(loss=loss, optimizer=optimizer, step=(lambda: None) if name == WITHOUT else optimizer.step) -> None:
            optimizer.zero_grad()
            loss().backward()
            step()

        steps[name] = turn
    return steps


def turns_in_backward() -> dict[str, Callable[[], None]]:
    """One turn with the ordinary step, with steps in backward, and with an optimizer of PyTorch's in each hook."""
    steps: dict[str, Callable[[], None]] = {}
    for name in "ordinary", "step_in_backward":
        model, loss = large()
        optimizer = rmsfast.torch.RMSprop(model.parameters(), lr=1e-5)
        if name == "step_in_backward":
            rmsfast.torch.step_in_backward(optimizer)

        def turn(loss=loss, optimizer=optimizer) -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        steps[name] = turn
    model, loss = large()
    for p in model.parameters():
        own = torch.optim.RMSprop([p], lr=1e-5)

        def hook(p, own=own) -> None:
            own.step()
            own.zero_grad()

        p.register_post_accumulate_grad_hook(hook)
    steps["torch in hooks"] = lambda loss=loss: loss().backward()
    return steps


def best_of_theirs(times: dict[str, float]) -> float:
    return min(times[name] for name in CLASSES if name != OURS)


def measure(console: Console, seconds: float) -> None:
    """Measure everything with as many threads as this process has."""
    threads = count_of(torch.get_num_threads(), "thread")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(CASES) + len(LOOPS) + 2)

        def timed(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
            times = minima(steps, seconds)
            progress.advance(task)
            return times

        one = Table("µs a step", title=f"float32, {threads}, {rmsfast.config()['isa']}, torch {torch.__version__}")
        for name in (*CLASSES, "best ÷ ours"):
            one.add_column(name, justify="right")
        for case in CASES:
            times = timed(case_steps(case))
            cells = [f"{times[name] * 1e6:,.2f}" for name in CLASSES]
            one.add_row(case, *cells, f"{best_of_theirs(times) / times[OURS]:.2f}")

        loop = Table("µs a turn", title=f"training loops, {threads}")
        for name in (*CLASSES, "best ÷ ours", "the optimizer's share, before", "and after"):
            loop.add_column(name, justify="right")
        for label, make in LOOPS.items():
            times = timed(turns(make))
            best = best_of_theirs(times)
            cells = [f"{times[name] * 1e6:,.0f}" for name in CLASSES]
            shares = [f"{max(0.0, 1 - times[WITHOUT] / turn):.0%}" for turn in (best, times[OURS])]
            loop.add_row(label, *cells, f"{best / times[OURS]:.2f}", *shares)
        rows, backward = timed(row_steps()), timed(turns_in_backward())
    console.print(one, loop)
    console.print(
        f"{TOUCHED:,} rows of {ROWS:,} × {WIDTH}: dense {rows['dense'] * 1e6:,.0f} µs, sparse "
        f"{rows['sparse'] * 1e6:,.0f} µs: {rows['dense'] / rows['sparse']:.1f}"
    )
    console.print(
        "a turn of 8 M parameters:", ", ".join(f"{name} {time * 1e3:.1f} ms" for name, time in backward.items())
    )


def main() -> None:
    everything = rmsfast.get_num_threads()
    parser = argparse.ArgumentParser(prog="python -m bench.torch_optim", description=__doc__)
    parser.add_argument("--threads", type=int, help=f"default: 1, and then all, {everything} here")
    parser.add_argument("--seconds", type=float, default=8, help="for each line, about (default %(default)s)")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
        measure(Console(highlight=False, width=120), options.seconds)
        return
    for threads in sorted({1, everything}):  # each in a process of its own, as people set it
        command = [sys.executable, "-m", "bench.torch_optim", f"--threads={threads}", f"--seconds={options.seconds}"]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=True)


if __name__ == "__main__":
    main()
