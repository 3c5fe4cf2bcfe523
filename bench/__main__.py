"""Compare rmsfast with every peer that is installed, and with loops of its parts; write a report.

Each number of threads has a process of its own. In it the contenders take turns, and the least time of many rounds
counts. `--publish` makes the README's table and all pictures in docs/ of the same report.
"""

import argparse
import json
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import rmsfast
from bench import report as reports
from bench import scaling
from bench.contenders import CASES, CONTENDERS, OURS, SLOW_TO_START, limit_threads
from bench.measure import BOUND, measure, versions

SIZES = [10**2, 10**3, 10**4, 10**5, 10**6, 10**7, 10**8]
BYTES = {"float32": 4, "float64": 8}
CHECKOUT = Path(__file__).parents[1]


def main() -> None:
    options = parse()
    console = Console()
    if options.published:
        for path in reports.publish(json.loads(options.published.read_text()), CHECKOUT):
            console.print(f"written: {path}", highlight=False)
        return
    runs = [(dtype, threads) for threads in options.threads for dtype in options.dtypes]
    sizes = [] if options.no_roofline else [size for size in options.sizes if fits(size, 1)]
    report = {"machine": describe(options.peers), "runs": [], "roofline": {}}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(runs) * len(options.cases) + len(sizes))

        def in_turn(worker, name, shapes, dtype, threads, peers=options.peers, bounded=False):
            progress.update(task, description=f"{name}, {dtype}, {threads} threads")
            times = worker.submit(measure, shapes, dtype, threads, peers, options.seconds, bounded).result()
            progress.advance(task)
            return times

        for threads in options.threads:
            with fresh_process(threads) as worker:
                for dtype in options.dtypes:
                    found = {case: in_turn(worker, case, CASES[case], dtype, threads) for case in options.cases}
                    seconds, unrest = ({case: pair[k] for case, pair in found.items()} for k in (0, 1))
                    report["runs"].append({"dtype": dtype, "threads": threads, "seconds": seconds, "unrest": unrest})
                if threads == options.threads[0] and sizes:
                    dtype = options.dtypes[0]
                    points = []
                    for n in sizes:
                        peers = options.peers if fits(n, len(options.peers)) else [OURS]
                        times, unrest = in_turn(worker, f"{n:,}", [(n,)], dtype, threads, peers, bounded=True)
                        bound = {BOUND: times.pop(BOUND)} if BOUND in times else {}
                        points.append({"size": n, "seconds": times, "unrest": unrest, **bound})
                    report["roofline"] = {"dtype": dtype, "threads": threads, "points": points}
    busy = reports.busy(report)
    if options.publish and not busy:
        with fresh_process(options.threads[0]) as worker:
            report["scaling"] = worker.submit(scaling.measure_all, options.threads[0], options.seconds).result()
    for table in reports.tables(report):
        console.print(table)
    console.print(reports.machine(report), highlight=False)
    published = reports.publish(report, CHECKOUT) if options.publish and not busy else []
    for path in [*reports.write(report, options.output), *published]:
        console.print(f"written: {path}", highlight=False)
    if busy:
        console.print(f"[bold red]{busy}[/]", highlight=False)
        if options.publish:
            raise SystemExit("nothing is published of a busy machine")


def fresh_process(threads: int) -> ProcessPoolExecutor:
    """Return a new process that may use so many threads."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), limit_threads, (threads,))


def parse() -> argparse.Namespace:
    every = rmsfast.get_num_threads()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="float32, all threads, no torch.compile: under a minute")
    parser.add_argument("--peers", help=f"comma-separated beginnings of: {', '.join(CONTENDERS)} (default: all)")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--dtypes", "--dtype", default="float32,float64", help="comma-separated (default: %(default)s)")
    parser.add_argument("--threads", default=f"{every},1", help="comma-separated (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="for each case, about (default: %(default)s)")
    every_size = ",".join(map(str, SIZES))
    parser.add_argument(
        "--sizes", type=counts, default=every_size, help="of the roofline, comma-separated (default: %(default)s)"
    )
    parser.add_argument("--no-roofline", action="store_true", help="leave out the sizes")
    parser.add_argument("--output", type=Path, default=Path("bench-report"), help="folder (default: %(default)s)")
    parser.add_argument("--publish", action="store_true", help="also measure scaling, and renew README.md and docs/")
    parser.add_argument(
        "--published", type=Path, metavar="BENCH.JSON", help="measure nothing: renew them from a report"
    )
    options = parser.parse_args()
    if options.quick:
        options.dtypes, options.threads, options.seconds, options.no_roofline = "float32", str(every), 2, True
    wanted = [beginning.strip().lower() for beginning in (options.peers or "").split(",")]
    options.peers = [
        name
        for name in CONTENDERS
        if name == OURS
        or (
            any(name.lower().startswith(beginning) for beginning in wanted)
            and not (options.quick and name in SLOW_TO_START)
        )
    ]
    options.cases = chosen(parser, "--cases", options.cases, CASES)
    options.dtypes = chosen(parser, "--dtypes", options.dtypes, BYTES)
    options.threads = list(dict.fromkeys(int(threads) for threads in options.threads.split(",")))
    return options


def counts(text: str) -> list[int]:
    """Return different numbers in order, of a text with commas between them."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}, expected whole numbers from 1, with commas between them")
    return sorted({int(part) for part in parts})


def chosen(parser: argparse.ArgumentParser, option: str, text: str, known) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{option}: {unknown[0]!r} is none of {', '.join(known)}")
    return names


def fits(size: int, contenders: int) -> bool:
    """Whether each contender can have arrays of so many elements, with scratch, in half of the memory."""
    if not hasattr(os, "sysconf"):
        return size <= 10**7
    return size * 4 * 5 * contenders < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def describe(peers) -> dict:
    """Return what a reader of the figures has to know about the machine."""
    config = rmsfast.config()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "isa": config["isa"],
        "root": config["root"],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "rmsfast": config["version"],
        "versions": versions(peers),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
