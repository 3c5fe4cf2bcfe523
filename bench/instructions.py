"""Count the instructions of one step with callgrind: a guard of what a step costs, on machines too noisy for a clock.

`python -m bench.instructions` fails where a step needs 3 % more instructions than `instructions.json` says. Compilers
and interpreters count otherwise, so the file has figures for each pair of them, which `--commit` writes anew. With
another pair, the commit before this one is built, and counted as well. Whole calls of `opt.step(grads)` are counted, on
one thread, with the AVX2 loops and the divider's roots (valgrind knows no AVX-512): the difference of two runs that
differ in their number of steps.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import rmsfast
from bench.contenders import CASES, make_arrays

ISA = "avx2"
STEPS = {"1x1k": 10_000, "200x1k": 300}  # counted of each case: start and end of a process differ by some thousands
WARM_UP = 20
MOST = 1.03
COMMITTED = Path(__file__).with_name("instructions.json")
FUNCTIONS = 12  # shown of each case
ALL = "PROGRAM TOTALS"  # as callgrind_annotate calls it


def run(case: str, steps: int) -> None:
    """Take steps: what the counted processes do."""
    arrays = make_arrays(CASES[case], np.float32)
    opt = rmsfast.RMSProp(arrays.w, num_threads=1)
    for _ in range(steps):
        opt.step(arrays.g)


def count(case: str, steps: int, package: str) -> dict[str, int]:
    """Return how many instructions each function took in a process of its own, with the rmsfast of a folder."""
    alone = {"RMSFAST_ISA": ISA, "RMSFAST_ROOT": "divider", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    alone["PYTHONPATH"] = package
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "callgrind.out")
        counting = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", "--quiet"]
        step = [sys.executable, "-m", "bench.instructions", "--run", case, str(steps)]
        subprocess.run([*counting, *step], env={**os.environ, **alone}, check=True)
        listing = ["callgrind_annotate", "--threshold=100", "--tree=none", "--auto=no", str(output)]
        lines = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.splitlines()
    counts: dict[str, int] = {}
    for line in lines:
        if found := re.fullmatch(r" *([0-9,]+) \( *[0-9.]+%\) +(?:[^:]+:)?(.+?)(?: \[.*\])?", line):
            counts[found[2]] = counts.get(found[2], 0) + int(found[1].replace(",", ""))
    return counts


def count_step(case: str, package: str) -> dict[str, int]:
    """Return how many instructions each function takes in one step."""
    few, many = (count(case, steps, package) for steps in (WARM_UP, WARM_UP + STEPS[case]))
    each = {name: round((many[name] - few.get(name, 0)) / STEPS[case]) for name in many}
    return {name: n for name, n in sorted(each.items(), key=lambda item: -item[1]) if n > 0}


def tools() -> str:
    """Return what the counts depend on."""
    compiler = os.environ.get("CC", "cc")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return f"{version}, CPython {sys.version_info.major}.{sys.version_info.minor}, {ISA}"


def count_before(folder: Path) -> dict[str, int]:
    """Return how many instructions each case takes in the commit before this one, built in a folder."""
    tree = folder / "tree"
    tree.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD~1"], capture_output=True)
    if archive.returncode:
        sys.exit(f"HEAD~1: {archive.stderr.decode().strip()}: to count the commit before takes a clone of two or more")
    subprocess.run(["tar", "x", "-C", tree], input=archive.stdout, check=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "package", tree]
    subprocess.run(install, check=True)
    return {case: count_step(case, str(folder / "package"))[ALL] for case in STEPS}


def print_table(console: Console, case: str, functions: dict[str, int], before: int | None) -> None:
    table = Table(title=f"instructions of one step of {case}")
    table.add_column("function")
    table.add_column("", justify="right")
    for name, n in [item for item in functions.items() if item[0] != ALL][:FUNCTIONS]:
        table.add_row(name, f"{n:,}")
    table.add_section()
    table.add_row("all", f"{functions[ALL]:,}")
    if before is not None:
        table.add_row("before", f"{before:,}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--commit", action="store_true", help=f"write what was counted into {COMMITTED.name}")
    parser.add_argument("--run", nargs=2, metavar=("CASE", "STEPS"), help="only take steps, uncounted")
    options = parser.parse_args()
    if options.run:
        run(options.run[0], int(options.run[1]))
        return

    console = Console(highlight=False)
    committed = json.loads(COMMITTED.read_text())
    before, source = committed.get(tools()), "the committed count"
    if before is None and not options.commit:
        console.print(f"{COMMITTED.name} has no counts of {tools()}: the commit before is counted")
        source = "the commit before"
        with tempfile.TemporaryDirectory() as folder:
            before = count_before(Path(folder))
    counted = {}
    for case in STEPS:
        functions = count_step(case, str(Path(rmsfast.__file__).parents[1]))
        counted[case] = functions[ALL]
        print_table(console, case, functions, before and before.get(case))
    if options.commit:
        committed[tools()] = counted
        COMMITTED.write_text(json.dumps(committed, indent=2) + "\n")
        console.print(f"written: {COMMITTED}")
        return
    grown = [case for case in counted if counted[case] > MOST * before.get(case, 0)]
    if grown:
        sys.exit(
            f"{', '.join(grown)}: more than {MOST - 1:.0%} above {source} with {tools()}. If something is worth it, "
            "run `python -m bench.instructions --commit`, and say in the commit's message what it is"
        )


if __name__ == "__main__":
    main()
