"""What is installed: the public names, their documentation, and a clear error from a folder without the kernel."""

import doctest
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rmsfast
import rmsfast.optimizer
import rmsfast.rows

PUBLIC = [
    rmsfast.RMSProp,
    rmsfast.Rows,
    rmsfast.rmsprop_update,
    rmsfast.config,
    rmsfast.get_num_threads,
    rmsfast.set_num_threads,
]
DIALECTS = ["torch", "keras", "tf1", "optax", "timm", "sb3", "mxnet", "d2l"]


def test_config():
    config = rmsfast.config()
    assert list(config) == ["version", "isa", "isas", "root", "openmp", "num_threads", "numpy"]
    assert config["version"] == rmsfast.__version__
    assert config["isas"][0] == "baseline"
    assert config["isa"] in config["isas"]
    assert config["root"] in ["divider", "fma", "mixed"]
    assert isinstance(config["openmp"], bool)
    assert config["numpy"] == np.__version__


def test_what_a_bug_report_wants():
    command = [sys.executable, "-P", "-m", "rmsfast"]
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    facts = dict(line.split(": ", 1) for line in output.splitlines())
    assert facts["version"] == rmsfast.__version__
    assert facts["numpy"] == np.__version__
    assert ("lib" in facts["openmp runtimes"]) == (rmsfast.config()["openmp"] and sys.platform.startswith("linux"))
    assert facts["installed in"] == rmsfast.__path__[0]
    assert "'OMP_NUM_THREADS': '3'" in facts["environment"]
    assert list(facts)[-4:] == ["python", "platform", "cpu", "environment"]


@pytest.mark.parametrize("thing", PUBLIC)
def test_public_names_are_documented(thing):
    assert thing.__name__ in rmsfast.__all__
    assert len(inspect.getdoc(thing).splitlines()) > 5


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_are_documented_with_their_source(name):
    text = inspect.getdoc(getattr(rmsfast.dialects, name))
    assert "https://" in text.split("References\n----------")[1]


@pytest.mark.parametrize("name", ["RMSProp", "rmsprop_update"])
def test_the_reference_has_the_same_signatures(name):
    ours, reference = getattr(rmsfast, name), getattr(rmsfast.reference, name)
    assert inspect.signature(ours) == inspect.signature(reference)


@pytest.mark.thread_unsafe(reason="doctest takes the place of sys.stdout")
@pytest.mark.parametrize("module", [rmsfast.optimizer, rmsfast.rows])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


ROOT = Path(__file__).resolve().parent.parent


def test_the_readme(capsys):
    """Its program runs and learns, and its set-up commands are those that users have been told."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    exec(program, {})
    label, error = capsys.readouterr().out.split(":")
    assert label == "largest error"
    assert float(error) < 0.1
    commands = re.search(r"## Quick start\n.*?```sh\n(.*?)```", text, re.DOTALL)[1]
    assert commands == 'pip install ".[demo]" && python examples/digits.py\npip install ".[test]" && pytest\n'


def test_the_page_of_variants():
    """Its program runs, and its table has every dialect."""
    text = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
    assert sorted(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)[:8]) == sorted(DIALECTS)


def test_a_source_folder_without_the_kernel(tmp_path):
    """As in a checkout that was not built in place, with the current folder on the path."""
    installed = Path(rmsfast.__file__).parent
    for file in installed.rglob("*.py"):
        copy = tmp_path / "rmsfast" / file.relative_to(installed)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    command = [sys.executable, "-S", "-c", "import rmsfast"]  # -S: an editable install must not help out
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith("ImportError: rmsfast: its compiled kernel is not in ")
    assert "pip install" in result.stderr


IN_A_SUBINTERPRETER = """
import sys, warnings
try:
    import _interpreters as interpreters
    other = interpreters.create("legacy")  # with the same GIL: NumPy loads in no other
except ImportError:
    import _xxsubinterpreters as interpreters
    other = interpreters.create(isolated=False)
if sys.argv[1] == "second":
    import rmsfast
interpreters.run_string(other, '''
try:
    import warnings
    warnings.simplefilter("ignore")     # NumPy's, of subinterpreters
    import numpy as np
    import rmsfast
    w = np.ones(3)
    rmsfast.RMSProp(w, lr=0.5, beta=0.0, eps=0.0).step(np.ones(3))
    print(w)
except ImportError as error:
    print(error)
''')
"""


@pytest.mark.parametrize(
    ("order", "expected"), [("first", "[0.5 0.5 0.5]"), ("second", "one interpreter per process|more than once per")]
)
def test_one_interpreter_of_a_process_has_the_package(order, expected):
    """Of those with NumPy; another gets an ImportError that says so."""
    command = [sys.executable, "-P", "-c", IN_A_SUBINTERPRETER, order]
    result = subprocess.run(command, capture_output=True, text=True)
    if "No module named '_" in result.stderr:
        pytest.skip("this Python has no subinterpreters that a program can start")
    assert result.returncode == 0, result.stderr
    assert re.search(expected if order == "second" else re.escape(expected), result.stdout), result.stdout
