"""rmsfast with types: `mypy --strict` and `pyright` find nothing in this program, and would find a wrong name or type.

It fits a line, once with one rate for all and once with groups and a schedule.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

import rmsfast

Array = NDArray[np.float32]


class Line(TypedDict):
    """The parameters, by name."""

    slope: Array
    offset: Array


def batches(count: int) -> Iterator[tuple[Array, Array]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        x = rng.standard_normal(64, np.float32)
        yield x, 3 * x - 1


def gradients(line: Line, x: Array, y: Array) -> tuple[dict[str, Array], float]:
    error = line["slope"] * x + line["offset"] - y
    slope = np.array([2 * np.mean(error * x)], np.float32)
    offset = np.array([2 * np.mean(error)], np.float32)
    return {"slope": slope, "offset": offset}, float(np.mean(error**2))


def schedule(step: int) -> float:
    return 0.1 / (1 + step / 100)


def train(line: Line, optimizer: rmsfast.RMSProp, steps: int) -> float:
    loss = np.inf
    for x, y in batches(steps):
        grads, loss = gradients(line, x, y)
        optimizer.step(grads, grad_scale=1.0)
    return loss


def main() -> None:
    line = Line(slope=np.zeros(1, np.float32), offset=np.zeros(1, np.float32))
    optimizer = rmsfast.RMSProp(line, lr=schedule, centered=True, clip_global_norm=10.0)
    print(f"loss {train(line, optimizer, 1000):.1e} at {line['slope'][0]:.3f} x {line['offset'][0]:+.3f}")

    with TemporaryDirectory() as folder:
        path = Path(folder, "line.npz")
        optimizer.save(path)
        restored = rmsfast.RMSProp(line, lr=schedule)
        restored.load(path)
    moments: Array = restored.state["slope"]["square_avg"]
    print("average of squares:", moments, "after", restored.state["slope"]["step"], "steps")

    table = np.zeros((10, 2), np.float32)
    groups = rmsfast.RMSProp([{"params": [table], "lr": 0.5}, {"params": [np.zeros(3)]}], **rmsfast.dialects.keras())
    groups.param_groups[1]["lr"] = 0.01
    groups.step([rmsfast.Rows([1, 4], np.ones((2, 2), np.float32)), np.ones(3)])
    isa: str = rmsfast.config()["isa"]
    print("rows moved:", np.flatnonzero(table.any(axis=1)), "with", isa, "on", rmsfast.get_num_threads(), "threads")


if __name__ == "__main__":
    main()
