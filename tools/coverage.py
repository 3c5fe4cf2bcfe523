"""How much of the package the tests run: lines and branches of its Python, lines of its Cython and C.

From the repository's folder, where the package itself is not installed, which would be tested instead:

    pip install ".[test,coverage,torch]" && pip uninstall --yes rmsfast
    python tools/coverage.py [paths and options of pytest]

A copy of what git knows is built in a temporary folder, with counters, and tested there. Fails below 95 %.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

LEAST = 95
OMITTED = "rmsfast/mpi*"  # runs under mpiexec: the gate's part `mpi` counts it


def run(*command, **kwargs):
    """Run a program that has to succeed."""
    return subprocess.run(command, check=True, **kwargs)


def count_of_c(build):
    """Of each file of Cython or C, how often each line ran, from what gcc's counters have written."""
    counts = defaultdict(lambda: defaultdict(int))
    for data in build.rglob("*.gcda"):
        report = run("gcov", "--json-format", "--stdout", data, capture_output=True, cwd=build.parent).stdout
        for file in json.loads(report)["files"]:
            name = file["file"].removeprefix(f"{build.parent}/")
            if name.startswith("rmsfast/"):
                for line in file["lines"]:
                    counts[name][line["line_number"]] += line["count"]
    return counts


def code_of(path, counts):
    """Yield the lines that are code, with their counts. The C that Cython adds goes by the numbers of other lines."""
    text, inside = path.read_text().splitlines(), False
    for number, line in enumerate(text, 1):
        stripped = line.strip()
        quotes = stripped.count('"""')
        declared = stripped.startswith(("cdef readonly", "cdef public", "cdef class"))
        if number in counts and stripped and not inside and not quotes and not declared:
            yield number, counts[number]
        inside ^= quotes == 1


def main():
    """Build, test and count; return whether that is too little."""
    if find_spec("rmsfast") is not None:
        sys.exit("rmsfast is installed here, and would be tested in the place of a copy with counters: uninstall it")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "rmsfast-coverage")
        for name in run("git", "ls-files", capture_output=True, text=True).stdout.splitlines():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, copy / name)
        environment = {**os.environ, "RMSFAST_COVERAGE": "1", "PYTHONPATH": str(copy)}  # for the tests' processes, too
        build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--build-temp", "build"]
        run(*build, cwd=copy, env=environment)
        tests = [sys.executable, "-m", "coverage", "run", "--branch", "--source", "rmsfast", "-m", "pytest"]
        run(*tests, *sys.argv[1:], cwd=copy, env=environment)
        rest = f"--omit={OMITTED}"
        done = subprocess.run(
            [sys.executable, "-m", "coverage", "report", "--show-missing", rest, f"--fail-under={LEAST}"], cwd=copy
        )
        files = count_of_c(copy / "build")
        if not files:
            sys.exit("nothing counted: expected gcc, and its gcov")
        total = executed = 0
        for name, counts in sorted(files.items()):
            lines = dict(code_of(copy / name, counts))
            if not lines:  # as in a file of declarations
                continue
            missing = [number for number, count in lines.items() if count == 0]
            total, executed = total + len(lines), executed + len(lines) - len(missing)
            print(
                f"{name:32} {len(lines):5} {len(missing):5}  {100 - 100 * len(missing) / len(lines):4.0f}%  {missing}"
            )
        print(f"{'Cython and C':32} {total:5} {total - executed:5}  {100 * executed / total:4.0f}%")
    return done.returncode or 100 * executed < LEAST * total


if __name__ == "__main__":
    sys.exit(main())
