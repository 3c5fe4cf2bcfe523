"""Make trajectories.json: a few steps of the real PyTorch, Keras and Optax, for tests where they are not installed.

Run in an environment that has them (`pip install ".[peers]"`), from the checkout: `python tests/data/make_golden.py`.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from peers.frameworks import RUN, draw  # noqa: E402

STEPS, SIZE, CASES = 8, 3, 8


def main() -> None:
    rng = np.random.default_rng(1)
    rates = (0.05 * rng.uniform(0.1, 1, STEPS)).round(4).tolist()
    start = rng.standard_normal(SIZE).round(4)
    gradients = rng.standard_normal((STEPS, SIZE)).round(4)
    cases = []
    for name, run in RUN.items():
        for i in range(CASES):
            kwargs = {} if i == 0 else draw(rng, name)
            after = run(kwargs, rates, [start], [[g] for g in gradients])
            cases.append({"dialect": name, "kwargs": kwargs, "after": [w.tolist() for (w,) in after]})
    made_by = {name: version(name) for name in ("torch", "keras", "optax", "jax", "numpy")}
    table = {"made_by": made_by, "rates": rates, "start": start.tolist(), "gradients": gradients.tolist()}
    text = json.dumps(table)[:-1] + ', "cases": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]}\n"
    (FOLDER / "trajectories.json").write_text(text)


if __name__ == "__main__":
    main()
