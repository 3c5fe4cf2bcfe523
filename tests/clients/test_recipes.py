"""The recipes in examples/clients run, and train as they do with PyTorch's own optimizer."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "clients"
RECIPES = {
    "sb3_a2c": "stable_baselines3",
    "lightning_loop": "lightning",
    "accelerate_loop": "accelerate",
    "transformers_trainer": "transformers",
    "skorch_search": "skorch",
}


def test_each_recipe_is_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == RECIPES.keys() | {"beside"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name, tmp_path):
    if importlib.util.find_spec(RECIPES[name]) is None:
        pytest.skip(f"{RECIPES[name]} is not installed")
    command = [sys.executable, FOLDER / f"{name}.py"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert re.search(r"rmsfast's \w+ \d+\.\d\d s: \d+\.\d\d times as fast; weights differ by \de-\d\d", run.stdout)


def test_a_recipe_whose_models_differ_fails(tmp_path):
    pytest.importorskip("torch")
    program = tmp_path / "other_rate.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n"
        "import torch\n"
        "from beside import compare\n"
        "def train(cls):\n"
        "    model = torch.nn.Linear(2, 1)\n"
        "    optimizer = cls(model.parameters(), lr=0.1 if cls is torch.optim.RMSprop else 0.2)\n"
        "    model(torch.ones(1, 2)).sum().backward()\n"
        "    optimizer.step()\n"
        "    return model\n"
        "compare(train)\n",
        encoding="utf-8",
    )
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "expected at most 1e-03" in run.stderr
