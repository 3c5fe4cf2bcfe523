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
    assert float(error) < 1e-6
    commands = re.search(r"## Quick start\n.*?```sh\n(.*?)```", text, re.DOTALL)[1]
    assert commands == 'pip install ".[demo]" && python examples/digits.py\npip install ".[test]" && pytest\n'


def test_the_page_of_training():
    """Its table has every schedule."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)\(", text, re.MULTILINE) == list(rmsfast.schedules.KINDS)


def test_the_page_of_formats():
    """Its table says how many bytes a parameter and its state have."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    kinds = [
        (np.float32, dict(state_dtype="bfloat16")),
        (np.float32, dict(state_dtype="uint8")),
        (bfloat16, dict(master_weights=True)),
        (bfloat16, dict(master_weights=True, state_dtype="uint8")),
        (bfloat16, dict(rounding="stochastic", state_dtype="bfloat16")),
        (bfloat16, dict(rounding="stochastic", state_dtype="uint8")),
    ]
    documented = re.findall(r"^\| .* \| .* \| (\d)[ ,]", text, re.MULTILINE)
    kept = []
    for dtype, settings in kinds:
        w = np.ones(6400, dtype)
        opt = rmsfast.RMSProp(w, **settings)
        opt.step(w / 2)
        arrays = [w, *(array for array in opt.state[0].values() if isinstance(array, np.ndarray))]
        kept.append(sum(array.nbytes for array in arrays) / w.size)
    assert documented[: len(kept)] == [str(round(number)) for number in kept]
    assert all(number % 1 in (0, 1 / 64) for number in kept)


def test_the_page_of_variants():
    """Its table has every dialect."""
    text = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)`", text, re.MULTILINE)[:8]) == sorted(DIALECTS)


@pytest.fixture
def checkout(tmp_path):
    """A folder with the source folder in it, without a kernel; one with the installed package; and one with NumPy."""
    installed, packages = Path(rmsfast.__file__).parent, Path(np.__file__).parents[1]
    leave_out = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(installed, tmp_path / "checkout" / "rmsfast", ignore=leave_out)
    shutil.copytree(installed, tmp_path / "site" / "rmsfast", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "numpy").mkdir()
    for folder in packages.glob("numpy*"):
        try:
            (tmp_path / "numpy" / folder.name).symlink_to(folder)
        except OSError:
            pytest.skip("this system lets nobody make links")
    return tmp_path / "checkout", tmp_path / "site", tmp_path / "numpy"


def run_in(folder, *arguments, path):
    """Run Python in a folder, which is first on the path. With -S, it has no other packages than those at `path`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")


def test_in_a_checkout_the_installed_package_is_imported(checkout):
    folder, site, numpy = checkout
    (folder / "rmsfast" / "optimizer.py").write_text("raise RuntimeError('a file of the source folder')")
    program = (
        "import rmsfast, numpy; from rmsfast import RMSProp, schedules; import rmsfast.optimizer as o; "
        "RMSProp(numpy.ones(3)).step(numpy.ones(3)); print(rmsfast.__file__, o.__file__, schedules.__file__)"
    )
    for arguments in ["-m", "rmsfast"], ["-c", program]:
        result = run_in(folder, *arguments, path=[site, numpy])
        assert result.returncode == 0, result.stderr
        assert str(site) in result.stdout
        assert str(folder) not in result.stdout


def test_a_checkout_without_an_installed_package_says_what_to_do(checkout):
    folder, _, numpy = checkout
    for path in [numpy], [folder, numpy]:  # a second checkout is none
        result = run_in(folder, "-c", "import rmsfast", path=path)
        assert result.returncode != 0
        assert result.stderr.splitlines()[-1].startswith("ImportError: rmsfast: its compiled kernel is not in ")
        assert "run `pip install .` there" in result.stderr
        result = run_in(folder, "-m", "rmsfast", path=path)
        assert result.returncode != 0
        assert len(result.stderr.splitlines()) == 1
        assert "run `pip install .` there" in result.stderr


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
