"""What each format costs and keeps beside float32: `python -m bench.formats`.

One large parameter out of the cache on all threads, one in the cache on one thread, and two cases between. Beside stand
what a user would have instead: PyTorch's RMSprop in float32 and bfloat16, and bitsandbytes' RMSprop8bit, where they are
installed. In one process, in turn, minima. Bytes are those of a parameter and all of its state, counted in the arrays
themselves; "moved" are the bytes that a step must read and write for an element, its gradient included. Needs
`pip install ".[bench]"`.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import rmsfast
from bench import looks
from bench.__main__ import cpu_name
from bench.contenders import BETA, EPS, LR
from bench.pages import DOCS, put
from bench.timing import BUSY, rounds, unrest

FLOAT32, BFLOAT16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
PLAIN = "float32"
# Arrays, elements of each, and threads: None are all.
CASES = {
    "1x16M": (1, 1 << 24, None),
    "1x16k": (1, 1 << 14, 1),
    "1x1M": (1, 1 << 20, None),
    "20x64k": (20, 1 << 16, None),
}


class Format(NamedTuple):
    dtype: np.dtype
    settings: dict[str, Any]
    moved: int  # bytes an element
    mirror: bool = False


FORMATS = {
    PLAIN: Format(FLOAT32, {}, 20),
    "float32, bfloat16 state": Format(FLOAT32, {"state_dtype": "bfloat16"}, 16),
    "float32, 8-bit state": Format(FLOAT32, {"state_dtype": "uint8"}, 14),
    "bfloat16, masters, bfloat16 state": Format(BFLOAT16, {"master_weights": True, "state_dtype": "bfloat16"}, 14),
    "bfloat16, masters, 8-bit state": Format(BFLOAT16, {"master_weights": True, "state_dtype": "uint8"}, 12),
    "bfloat16, stochastic, bfloat16 state": Format(BFLOAT16, {"rounding": "stochastic", "state_dtype": "bfloat16"}, 10),
    "bfloat16, stochastic, 8-bit state": Format(BFLOAT16, {"rounding": "stochastic", "state_dtype": "uint8"}, 8),
    "bfloat16, nearest, float32 state": Format(BFLOAT16, {}, 14),
    "float32, mirror in bfloat16": Format(FLOAT32, {}, 22, mirror=True),
}


class Contender(NamedTuple):
    step: Callable[[], Any]
    kept: float  # bytes an element: the parameter and its state
    moved: int | None


def ours(name: str, params: list[np.ndarray], grads: list[np.ndarray], threads: int) -> Contender:
    chosen = FORMATS[name]
    params, grads = [w.astype(chosen.dtype) for w in params], [g.astype(chosen.dtype) for g in grads]
    opt = rmsfast.RMSProp(params, LR, BETA, EPS, num_threads=threads, **chosen.settings)
    copies = [np.zeros(w.shape, BFLOAT16) for w in params] if chosen.mirror else []
    if copies:
        opt.mirror(copies)
    opt.step(grads)
    moves_as_it_should(name, grads[0])
    state = [a for entry in opt.state.values() for a in entry.values() if isinstance(a, np.ndarray)]
    elements = sum(w.size for w in params)
    kept = sum(a.nbytes for a in (*params, *copies, *state)) / elements
    return Contender(lambda: opt.step(grads), kept, chosen.moved)


def moves_as_it_should(name: str, g: np.ndarray) -> None:
    """Raise an error if the reference, which is the specification, moves a copy of some elements otherwise."""
    before = np.ones(100, g.dtype)
    after = before.copy()
    twin = rmsfast.reference.RMSProp(after, LR, BETA, EPS, **FORMATS[name].settings)
    kernel = before.copy()
    rmsfast.RMSProp(kernel, LR, BETA, EPS, **FORMATS[name].settings).step(g[:100])
    twin.step(g[:100])
    if kernel.tobytes() != after.tobytes():
        raise AssertionError(f"{name}: another result than the reference's")


def torch_contenders(
    params: list[np.ndarray], grads: list[np.ndarray], threads: int
) -> Iterable[tuple[str, Contender]]:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(threads)

    def with_class(cls: type, dtype: Any, **settings: Any) -> Contender:
        tensors = [torch.nn.Parameter(torch.from_numpy(w.copy()).to(dtype)) for w in params]
        for p, g in zip(tensors, grads, strict=True):
            p.grad = torch.from_numpy(g.copy()).to(dtype)
        optimizer = cls(tensors, lr=LR, alpha=BETA, eps=EPS, **settings)
        optimizer.step()
        states = [
            t
            for entry in optimizer.state.values()
            for k, t in entry.items()
            if torch.is_tensor(t) and k not in ("qmap1", "step")
        ]
        kept = sum(t.nbytes for t in (*tensors, *states)) / sum(p.numel() for p in tensors)
        return Contender(optimizer.step, kept, None)

    yield "PyTorch, float32", with_class(torch.optim.RMSprop, torch.float32, foreach=True)
    yield "PyTorch, bfloat16", with_class(torch.optim.RMSprop, torch.bfloat16, foreach=True)
    try:
        from bitsandbytes.optim import RMSprop8bit
    except ImportError:
        return
    yield "bitsandbytes, float32, 8-bit state", with_class(RMSprop8bit, torch.float32)


def measure(count: int, size: int, threads: int, seconds: float) -> dict[str, Any]:
    """Return what each contender takes and keeps in one case, and how busy the machine was."""
    rng = np.random.default_rng(0)
    params = [rng.uniform(-1, 1, size).astype(np.float32) for _ in range(count)]
    grads = [rng.uniform(0.05, 0.5, size).astype(np.float32) for _ in range(count)]
    contenders = {name: ours(name, params, grads, threads) for name in FORMATS}
    contenders.update(torch_contenders(params, grads, threads))
    rest = partial(sleep, 0.005)  # the idle threads of other pools go to sleep
    times = rounds({"": rest, **{name: one.step for name, one in contenders.items()}}, seconds)
    del times[""]
    found = {
        name: {"seconds": min(times[name]), "kept": one.kept, "moved": one.moved, "ours": name in FORMATS}
        for name, one in contenders.items()
    }
    return {"size": count * size, "threads": threads, "unrest": unrest(times), "found": found}


def title(case: str, run: dict) -> str:
    threads = "1 thread" if run["threads"] == 1 else f"{run['threads']} threads"
    return f"{case}, {threads}{' (busy)' if run['unrest'] > BUSY else ''}"


def table_of(case: str, run: dict) -> Table:
    table = Table("format", title=title(case, run))
    for column in "bytes kept", "bytes moved", "µs", "ns an element", "float32's time ÷ this":
        table.add_column(column, justify="right")
    for row in rows_of(run["found"], run["size"]):
        table.add_row(*row)
    return table


def rows_of(found: dict, size: int) -> list[list[str]]:
    plain = found[PLAIN]["seconds"]
    return [
        [
            name,
            f"{one['kept']:.2f}".rstrip("0").rstrip("."),
            "" if one["moved"] is None else str(one["moved"]),
            f"{one['seconds'] * 1e6:,.1f}",
            f"{one['seconds'] / size * 1e9:.3f}",
            f"{plain / one['seconds']:.2f}" if plain / one["seconds"] >= 0.01 else f"{plain / one['seconds']:.4f}",
        ]
        for name, one in found.items()
    ]


def markdown_of(case: str, run: dict) -> str:
    lines = [
        f"{title(f'`{case}`', run)}:",
        "",
        "| format | bytes kept | moved | µs | ns an element | float32's time ÷ this |",
        f"|---|{'---:|' * 5}",
        *(f"| {' | '.join(row)} |" for row in rows_of(run["found"], run["size"])),
    ]
    return "\n".join([*lines, ""])


def draw(report: dict) -> Figure:
    """One row for each format: the bytes that it keeps, and its time in the first two cases."""
    shown = dict(list(report.items())[:2])
    found = next(iter(shown.values()))["found"]
    names = sorted(found, key=lambda name: (not found[name]["ours"], -found[name]["kept"]))  # rmsfast's, then others'
    figure = looks.picture(1.3 + 0.21 * len(names))
    bars, *panels = figure.subplots(1, 1 + len(shown), sharey=True, width_ratios=[1, *[1.7] * len(shown)])
    for row, name in enumerate(names):
        kept = found[name]["kept"]
        bars.barh(row, kept, 0.6, color=looks.colour_of(name if not found[name]["ours"] else "rmsfast"))
        bars.annotate(f"{kept:.3g}", (kept, row), (3, 0), textcoords="offset points", va="center", size=8)
    bars.set(xlim=(0, 13), xticks=[], yticks=range(len(names)), yticklabels=names)
    bars.set_title("Bytes kept for\na parameter")
    bars.invert_yaxis()
    for label, name in zip(bars.get_yticklabels(), names, strict=True):
        label.set(weight="bold" if name == PLAIN else "normal")
    for axes, (case, run) in zip(panels, shown.items(), strict=True):
        times = {name: run["found"][name]["seconds"] / run["size"] * 1e9 for name in names}
        axes.axvline(times[PLAIN], color="0.8", zorder=0)
        for row, name in enumerate(names):
            ours = found[name]["ours"]
            marker, colour = ("o", looks.OURS) if ours else ("D", looks.colour_of(name))
            axes.plot(times[name], row, marker, color=colour, markersize=6)
            text = f"{times[name]:#.2g}".rstrip(".")
            axes.annotate(text, (times[name], row), (6, 0), textcoords="offset points", va="center", size=8)
        axes.set(xscale="log", xlim=(min(times.values()) / 1.2, max(times.values()) * 2), xlabel="ns an element")
        axes.set_title(f"{run['size']:,} elements,\n{title(case, run).partition(', ')[2]}")
        axes.axhline(sum(found[name]["ours"] for name in names) - 0.5, color=looks.SHADE, linewidth=0.8)
        looks.plain_numbers(axes.xaxis, subs=(1, 2, 5))
        axes.tick_params(left=False)
    bars.tick_params(left=False)
    bars.spines["bottom"].set_visible(False)
    figure.suptitle(message(next(iter(shown.values()))))
    return figure


def message(run: dict) -> str:
    """Say what the format with the fewest bytes of all that are faster than float32 keeps and gains."""
    found = run["found"]
    faster = [one for one in found.values() if one["ours"] and one["seconds"] < found[PLAIN]["seconds"]]
    where = f"On {run['size']:,} elements, "
    if not faster:
        return f"{where}fewer bytes a parameter take as long as float32, or longer"
    least = min(faster, key=lambda one: one["kept"])
    gain = found[PLAIN]["seconds"] / least["seconds"]
    return f"{where}{least['kept']:.3g} bytes a parameter are {gain:.2g} times as fast as {found[PLAIN]['kept']:.3g}"


def main() -> None:
    every = rmsfast.get_num_threads()
    parser = argparse.ArgumentParser(prog="python -m bench.formats", description=__doc__)
    parser.add_argument("--threads", type=int, default=every, help="out of the cache (default: all, %(default)s here)")
    parser.add_argument("--seconds", type=float, default=60, help="for each case, about (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("formats.png"), help="picture (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures to this file, too")
    parser.add_argument("--publish", action="store_true", help="put tables and picture into docs/, if it was not busy")
    options = parser.parse_args()

    console = Console(highlight=False, width=120)
    report: dict[str, dict[str, Any]] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=len(CASES))
        for case, (count, size, threads) in CASES.items():
            report[case] = measure(count, size, threads or options.threads, options.seconds)
            progress.advance(task)
    for case, run in report.items():
        console.print(table_of(case, run))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"{rmsfast.config()['isa']}; minimum of the rounds")
    if busy := [case for case, run in report.items() if run["unrest"] > BUSY]:
        console.print(f"the machine was busy in {' and '.join(busy)}: no picture is drawn of that")
        return
    picture = DOCS / "formats.png" if options.publish else options.output
    with looks.styled():
        looks.save(draw(report), picture, "circles: rmsfast; diamonds: others; the gray line: rmsfast in float32")
    if options.publish:
        tables = "\n".join(markdown_of(case, run) for case, run in report.items())
        image = f"![What each format keeps, and how long its step takes]({picture.name})"
        machine = f"({cpu_name()}, {rmsfast.config()['isa']}.)\n\n{image}\n"
        put(DOCS / "formats.md", "python -m bench.formats", f"{tables}\n{machine}")
    console.print(f"picture: {picture}")


if __name__ == "__main__":
    main()
