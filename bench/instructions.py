"""Count the instructions of one step with callgrind: a guard of what a step costs, on machines too noisy for a clock.

`python -m bench.instructions` fails where a step needs 3 % more instructions than `instructions.json` says, which
`--commit` writes anew. It counts whole calls of `opt.step(grads)`, on one thread, with the AVX2 loops and the divider's
roots (valgrind knows no AVX-512): the difference of two runs that differ in their number of steps. Compilers and
interpreters count otherwise, so the figures name theirs.
"""

import argparse
import json
import os
import platform
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


def count(case: str, steps: int) -> dict[str, int]:
    """Return how many instructions each function took in a process of its own."""
    alone = {"RMSFAST_ISA": "avx2", "RMSFAST_ROOT": "divider", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
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


def count_step(case: str) -> dict[str, int]:
    """Return how many instructions each function takes in one step."""
    few, many = (count(case, steps) for steps in (WARM_UP, WARM_UP + STEPS[case]))
    each = {name: round((many[name] - few.get(name, 0)) / STEPS[case]) for name in many}
    return {name: n for name, n in sorted(each.items(), key=lambda item: -item[1]) if n > 0}


def tools() -> dict[str, str]:
    """Return what the counts depend on."""
    compiler = os.environ.get("CC", "cc")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {"compiler": version, "python": platform.python_version(), "numpy": np.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--commit", action="store_true", help=f"write what was counted into {COMMITTED.name}")
    parser.add_argument("--run", nargs=2, metavar=("CASE", "STEPS"), help="only take steps, uncounted")
    options = parser.parse_args()
    if options.run:
        run(options.run[0], int(options.run[1]))
        return

    console = Console(highlight=False)
    committed = json.loads(COMMITTED.read_text()) if COMMITTED.exists() else {"steps": {}}
    counted = {}
    for case in STEPS:
        functions = count_step(case)
        counted[case] = functions.pop(ALL)
        table = Table(title=f"instructions of one step of {case}")
        table.add_column("function")
        table.add_column("", justify="right")
        for name, n in list(functions.items())[:FUNCTIONS]:
            table.add_row(name, f"{n:,}")
        table.add_section()
        table.add_row("all", f"{counted[case]:,}")
        table.add_row("committed", f"{committed['steps'].get(case, 0):,}")
        console.print(table)
    if options.commit:
        COMMITTED.write_text(json.dumps({"steps": counted, "tools": tools()}, indent=2) + "\n")
        console.print(f"written: {COMMITTED}")
        return
    grown = [case for case in counted if counted[case] > MOST * committed["steps"].get(case, 0)]
    if grown:
        console.print(f"counted with {tools()}, committed with {committed.get('tools')}")
        sys.exit(
            f"{', '.join(grown)}: more than {MOST - 1:.0%} above the committed count. If something is worth it, "
            "run `python -m bench.instructions --commit`, and say in the commit's message what it is"
        )


if __name__ == "__main__":
    main()
