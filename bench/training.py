"""Training in each format beside float32, from five seeds: `python -m bench.training`.

Three networks: the digits of examples/digits.py, the word vectors of examples/word_vectors.py, and a character-level
LSTM in PyTorch on Python's own help text. A format is as good as float32 if its final loss lies within the spread of
the seeds. Beside the formats of rmsfast stand nearest rounding of its 8-bit v, simulated, and bitsandbytes' optimizer.
Needs `pip install ".[bench,demo]" torch`, and `bitsandbytes` for its row.
"""

import argparse
import importlib.util
import pydoc_data.topics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from threadpoolctl import threadpool_limits

import rmsfast
from bench import looks
from bench.codes import Float8
from bench.pages import DOCS, put

SEEDS = 5
SEEDS_COLOR = "0.8"
DIVERGED = "diverged"
FINAL = 10  # the last tenth of the steps gives the final loss


@dataclass(frozen=True)
class Format:
    """The dtype of the parameters and the optimizer's settings; or a code of bench.codes for v; or a peer."""

    dtype: str = "float32"
    settings: dict = field(default_factory=dict)
    code: Float8 | None = None
    bitsandbytes: bool = False


FLOAT32 = "float32"
FORMATS: dict[str, Format] = {
    FLOAT32: Format(),
    "bfloat16 state": Format(settings={"state_dtype": "bfloat16"}),
    "8-bit state": Format(settings={"state_dtype": "uint8"}),
    "bfloat16, masters, bfloat16 state": Format("bfloat16", {"master_weights": True, "state_dtype": "bfloat16"}),
    "bfloat16, masters, 8-bit state": Format("bfloat16", {"master_weights": True, "state_dtype": "uint8"}),
    "bfloat16, stochastic, bfloat16 state": Format("bfloat16", {"rounding": "stochastic", "state_dtype": "bfloat16"}),
    "bfloat16, nearest": Format("bfloat16"),
}
OTHERS: dict[str, Format] = {
    "8-bit v, nearest": Format(code=Float8(4, 4, 64, stochastic=False)),
    "bitsandbytes, 8-bit v": Format(bitsandbytes=True),
}
SPLITS: dict[str, Format] = {
    f"8-bit v, {e}+{m} bits": Format(code=Float8(e, m, 64)) for e, m in ((3, 5), (4, 4), (5, 3))
}


class Simulated:
    """The plain rule in float32, whose v goes through a code after each step."""

    def __init__(self, params: list[np.ndarray], code: Float8, lr: float, beta: float, eps: float, seed: int) -> None:
        self.params, self.code = params, code
        self.lr, self.beta, self.eps = (np.float32(number) for number in (lr, beta, eps))
        self.rest = np.float32(1 - beta)
        self.rng = np.random.default_rng(seed)
        self.square_avgs = [np.zeros(-(-w.size // 256) * 256, np.float32) for w in params]  # whole blocks

    def step(self, grads) -> None:
        for w, padded, g in zip(self.params, self.square_avgs, grads, strict=True):
            v = padded[: w.size].reshape(w.shape)
            rows: object = slice(None)
            if isinstance(g, rmsfast.Rows):
                rows, where = np.unique(g.indices, return_inverse=True)
                total = np.zeros((len(rows), *w.shape[1:]), np.float32)
                np.add.at(total, where, g.values)
                g = total
            v[rows] = self.beta * v[rows] + self.rest * (g * g)
            padded[:] = self.code(padded, self.rng)
            w[rows] -= self.lr * g / (np.sqrt(v[rows]) + self.eps)


class Bitsandbytes:
    """bitsandbytes' own optimizer on the memory of NumPy's arrays."""

    def __init__(self, params: list[np.ndarray], lr: float, beta: float, eps: float) -> None:
        import torch
        from bitsandbytes.optim import RMSprop8bit

        self.tensor = torch.from_numpy
        self.params = [torch.nn.Parameter(torch.from_numpy(w)) for w in params]
        self.optimizer = RMSprop8bit(self.params, lr=lr, alpha=beta, eps=eps)

    def step(self, grads) -> None:
        for p, g in zip(self.params, grads, strict=True):
            p.grad = self.tensor(g)
        self.optimizer.step()


def optimizer(params: list[np.ndarray], chosen: Format, seed: int, **settings):
    if chosen.bitsandbytes:
        return Bitsandbytes(params, **settings)
    if chosen.code is not None:
        return Simulated(params, chosen.code, seed=seed, **settings)
    return rmsfast.RMSProp(params, **settings, **chosen.settings, **seed_of(chosen, seed))


def seed_of(chosen: Format, seed: int) -> dict:
    """Return the seed of what is rounded at random, where anything is."""
    random = "state_dtype" in chosen.settings or chosen.settings.get("rounding") == "stochastic"
    return {"seed": seed} if random else {}


def numpy_dtype(chosen: Format) -> np.dtype:
    if chosen.dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(chosen.dtype)


def example(name: str) -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digits(chosen: Format, seed: int, epochs: int = 10) -> list[float]:
    """Train the network of examples/digits.py; parameters in bfloat16 are read as float32, as the kernel does."""
    source = example("digits")
    (x, labels), *_ = source.load_data()
    rng = np.random.default_rng(seed)
    params = [w.astype(numpy_dtype(chosen)) for w in source.initial_params()]
    for w in params[::2]:
        w[:] = (rng.standard_normal(w.shape) * np.sqrt(2 / len(w))).astype(w.dtype)
    opt = optimizer(params, chosen, seed, **source.SETTINGS)
    losses = []
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for first in range(0, len(x), source.BATCH):
            batch = order[first : first + source.BATCH]
            loss, grads = source.loss_and_gradients(
                [np.asarray(w, np.float32) for w in params], x[batch], labels[batch]
            )
            opt.step(grads)
            losses.append(float(loss))
    return losses


def word_vectors(chosen: Format, seed: int, epochs: int = 4) -> list[float]:
    if chosen.bitsandbytes:  # it has no step for some rows
        return []
    source = example("word_vectors")
    words, vocabulary = source.words_of_python()
    size, rng = len(vocabulary), np.random.default_rng(seed)
    tables = [
        ((rng.uniform(-0.5, 0.5, (size, source.SIZE)) / source.SIZE).astype(np.float32)).astype(numpy_dtype(chosen)),
        np.zeros((size, source.SIZE), numpy_dtype(chosen)),
    ]
    opt = optimizer(tables, chosen, seed, lr=5e-3, beta=0.95, eps=1e-4)
    frequency = np.bincount(words, minlength=size) ** 0.75
    chance = np.cumsum(frequency / frequency.sum())
    losses = []
    for _ in range(epochs):
        center, context = source.near_pairs(words, rng)
        for first in range(0, len(center) - source.BATCH + 1, source.BATCH):
            batch = slice(first, first + source.BATCH)
            noise = np.searchsorted(chance, rng.random((source.BATCH, source.NEGATIVES)))
            vectors, contexts = (np.asarray(table, np.float32) for table in tables)
            loss, grads = source.loss_and_gradients(vectors, contexts, center[batch], context[batch], noise)
            opt.step([grads["vectors"], grads["contexts"]])
            losses.append(float(loss))
    return losses


def character_lstm(chosen: Format, seed: int, steps: int = 400, batch: int = 16, length: int = 48) -> list[float]:
    """Train an LSTM that tells the next character of Python's help text. In bfloat16 all of it is bfloat16."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    text = " ".join(pydoc_data.topics.topics.values())
    alphabet = sorted(set(text))
    number = {character: i for i, character in enumerate(alphabet)}
    data = torch.tensor([number[character] for character in text])
    layers = torch.nn.ModuleList(
        [
            torch.nn.Embedding(len(alphabet), 32),
            torch.nn.LSTM(32, 96, batch_first=True),
            torch.nn.Linear(96, len(alphabet)),
        ]
    ).to(getattr(torch, chosen.dtype))
    embedding, lstm, head = layers

    def as_arrays(tensors: list[torch.Tensor]) -> list[np.ndarray]:
        return [t.contiguous().view(torch.uint8).numpy().view(numpy_dtype(chosen)) for t in tensors]

    params = list(layers.parameters())
    opt = optimizer(as_arrays([p.detach() for p in params]), chosen, seed, lr=3e-3, beta=0.99, eps=1e-8)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(data) - length - 1, (batch,))
        window = data[starts[:, None] + torch.arange(length + 1)]
        logits = head(lstm(embedding(window[:, :-1]))[0]).float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        layers.zero_grad()
        loss.backward()
        opt.step(as_arrays([p.grad for p in params]))
        losses.append(loss.item())
    return losses


TASKS: dict[str, Callable[[Format, int], list[float]]] = {
    "digits": digits,
    "word vectors": word_vectors,
    "character LSTM": character_lstm,
}


def final(losses: list[float]) -> float:
    return float(np.mean(losses[-len(losses) // FINAL :]))


def table_of(found: dict, names: list[str], seeds: int) -> Table:
    """Return final losses, mean ± spread over the seeds, and how far each mean is from float32's, in its spreads."""
    table = Table("format", title=f"Final loss, mean ± spread of {seeds} seeds; distance to float32 in its spreads")
    for task in found:
        table.add_column(task, justify="right")
    for name in names:
        table.add_row(name, *(cell(runs[name], runs[FLOAT32]) for runs in found.values()))
    return table


def cell(runs: list[list[float]], exact: list[list[float]]) -> str:
    if not all(runs):
        return "–"
    ours, theirs = (np.array([final(losses) for losses in one]) for one in (runs, exact))
    if lost := np.count_nonzero(~np.isfinite(ours)):
        return f"{lost} of {len(ours)} {DIVERGED}"
    distance = "" if runs is exact else f" ({(ours.mean() - theirs.mean()) / theirs.std(ddof=1):+.1f})"
    return f"{ours.mean():.4f} ± {ours.std(ddof=1):.4f}{distance}"


def markdown_of(found: dict, names: list[str]) -> str:
    lines = [f"| format | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}"]
    lines += [
        f"| {name} | {' | '.join(cell(runs[name], runs[FLOAT32]) for runs in found.values())} |" for name in names
    ]
    return "\n".join(lines)


def draw(found: dict, names: list[str]) -> Figure:
    """Curves: the mean of the seeds for each format, smoothed, and float32's seeds in gray. Formats that are within the
    spread have one colour, the others one each."""
    off = dict(zip(off_spread(found, names), ["#d55e00", "#e69f00", "#cc79a7", "#009e73"] * len(names), strict=False))
    figure = looks.picture(3.7)
    panels = figure.subplots(1, len(found), squeeze=False)
    for axes, (task, runs) in zip(panels.flat, found.items(), strict=True):
        for losses in runs[FLOAT32]:
            axes.semilogy(smooth(losses), color=SEEDS_COLOR, linewidth=3)
        for name in sorted(names, key=lambda name: (name in off, name == FLOAT32)):
            steps = min(map(len, runs[name]))
            if steps == 0:
                continue
            mean = smooth(np.mean([losses[:steps] for losses in runs[name]], axis=0))
            color = "black" if name == FLOAT32 else off.get(name, looks.OURS)
            axes.semilogy(mean, color=color, linewidth=1)
        axes.set(xlabel="step", title=task)
        axes.yaxis.set_major_formatter(looks.plain)
        low, high = axes.get_ylim()
        if high < 10 * low:  # too short for powers of ten
            axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    panels[0, 0].set_ylabel("training loss")
    colors = {"float32": "black", "its seeds": SEEDS_COLOR}
    if within := len(names) - 1 - len(off):
        colors[f"{within} formats within the spread"] = looks.OURS
    handles = [Line2D([], [], color=color, linewidth=2, label=name) for name, color in (colors | off).items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    figure.suptitle(message(found, names))
    return figure


def off_spread(found: dict, names: list[str]) -> list[str]:
    """Return the formats that end farther from float32 than its seeds do from each other."""
    return [name for name in names if any(not distance(runs[name], runs[FLOAT32]) <= 1 for runs in found.values())]


def message(found: dict, names: list[str]) -> str:
    """Say which formats end farther from float32 than its seeds do from each other."""
    off = off_spread(found, names)
    if not off:
        return "Every format ends within the spread of float32's seeds"
    if len(off) > 2:
        return f"{len(names) - 1 - len(off)} of {len(names) - 1} formats end within the spread of float32's seeds"
    return f"All formats end within the spread of float32's seeds,\nbut for: {'; '.join(off)}"


def distance(runs: list[list[float]], exact: list[list[float]]) -> float:
    """Return how far two mean final losses are from each other, in spreads of the second; 0 where nothing was run."""
    if not all(runs):
        return 0.0
    ours, theirs = ([final(losses) for losses in one] for one in (runs, exact))
    return abs(float(np.mean(ours) - np.mean(theirs))) / float(np.std(theirs, ddof=1))


def smooth(losses) -> np.ndarray:
    width = max(len(losses) // 40, 1)
    return np.convolve(losses, np.ones(width) / width, "valid")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS), help="default %(default)s")
    parser.add_argument("--formats", help="names, separated by ; (default: all of rmsfast's, and the others)")
    parser.add_argument("--splits", action="store_true", help="how v's 8 bits may be split, simulated, beside float32")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("training.png"), help="picture (default %(default)s)")
    parser.add_argument("--publish", action="store_true", help="put table and picture into docs/")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds: {options.seeds}, expected at least 2, because they have a spread")
    known = FORMATS | OTHERS | SPLITS
    others = [name for name, one in OTHERS.items() if not one.bitsandbytes or importlib.util.find_spec("bitsandbytes")]
    every = [FLOAT32, *SPLITS] if options.splits else [*FORMATS, *others]
    names = options.formats.split(";") if options.formats else every
    for name in (name for name in names if name not in known):
        parser.error(f"--formats: {name!r} is none of {'; '.join(known)}")
    if FLOAT32 not in names:
        names.insert(0, FLOAT32)
    tasks = options.tasks.split(",")
    for name in (name for name in tasks if name not in TASKS):
        parser.error(f"--tasks: {name!r} is none of {', '.join(TASKS)}")

    console = Console(highlight=False, width=140)
    found: dict[str, dict[str, list[list[float]]]] = {}
    columns = (
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    # One thread: more would wait for each other longer than they compute, and the results would depend on them.
    with threadpool_limits(1), Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training", total=len(tasks) * len(names) * options.seeds, now="")
        for label in tasks:
            found[label] = {}
            for name in names:
                progress.update(task, now=f"{label}, {name}")
                found[label][name] = []
                for seed in range(options.seeds):
                    with np.errstate(all="ignore"):  # some codes diverge
                        found[label][name].append(TASKS[label](known[name], seed))
                    progress.advance(task)
    console.print(table_of(found, names, options.seeds))
    picture = DOCS / "formats_training.png" if options.publish else options.output
    with looks.styled():
        looks.save(draw(found, names), picture)
    console.print(f"picture: {picture}")
    if options.publish:
        put(DOCS / "formats.md", "python -m bench.training", markdown_of(found, names) + "\n")


if __name__ == "__main__":
    main()
