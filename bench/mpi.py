"""What a step of `rmsfast.mpi` costs, beside plain all-reduce and beside a model: `python -m bench.mpi`.

This starts mpiexec itself: two ranks over shared memory and, as root, two and four hosts as network namespaces whose
links `tc` limits. In each place the contenders take turns, and minima count. The model's latency and bandwidth are
fitted to the collectives alone; what it says of whole steps is compared with measurements. `--publish` writes the
tables and the picture of docs/distributed.md. Needs `pip install ".[bench,mpi]"`.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

from bench import hosts, looks, mpi_model
from bench.__main__ import cpu_name
from bench.mpi_model import Cost, Link, memory, step
from bench.pages import DOCS, put

SIZES = [10_000, 100_000, 1 << 20, 1 << 22, 1 << 24]
QUICK_SIZES = [10_000, 1 << 20]
LARGE = 1 << 20  # parameters, from which on the model is compared with measurements
MODELS = [10**9, 10**10, 10**11]
RANKS = [8, 64, 512, 4096]
FAST = Link(latency=5e-6, seconds_a_byte=1 / 12.5e9)  # 100 Gbit/s; the latency of a message is taken, not measured
PAGE = DOCS / "distributed.md"


# ---- On the ranks ----


def work(sizes: list[int], seconds: float) -> None:
    """Measure on this rank; rank 0 prints what was found."""
    from mpi4py import MPI

    import rmsfast
    from rmsfast.mpi import ShardedRMSProp
    from rmsfast.mpi_bucket import BUFFERS

    comm = MPI.COMM_WORLD
    found: list[dict[str, Any]] = []
    for n in sizes:
        w, whole = np.zeros(n, np.float32), np.zeros(n, np.float32)
        g = np.random.default_rng(comm.rank).uniform(0.1, 1, n).astype(np.float32)
        total = np.zeros(n, np.float32)
        opt = ShardedRMSProp(w)
        one, smallest = np.ones(1, np.float32), ShardedRMSProp(np.ones(1, np.float32), comm=MPI.COMM_SELF)
        part = np.zeros(-(-n // comm.size), np.float32)
        of_a_part = g[: len(part)]
        of_part = rmsfast.RMSProp(part, num_threads=threads_of(opt))
        of_all = rmsfast.RMSProp(whole, num_threads=threads_of(opt))
        alone = rmsfast.RMSProp(whole)

        def collectives(opt: Any = opt, g: Any = g) -> None:
            lanes, before = opt._engine.lanes, None
            for k, lane in enumerate(lanes):
                room = opt._engine.rooms[k % BUFFERS]
                lane.begin_reducing([g], room)
                lane.end()
                if before is not None:
                    before.end()
                lane.begin_gathering(room)
                before = lane
            before.end()

        even = n // comm.size * comm.size
        all_sent, all_received, own = g[:even], np.zeros(even, np.float32), np.zeros(n // comm.size, np.float32)

        def whole_arrays(sent: Any = all_sent, received: Any = all_received, own: Any = own) -> None:
            comm.Reduce_scatter_block(sent, own)
            comm.Allgather(MPI.IN_PLACE, received)

        def plain(of_all: Any = of_all, g: Any = g, total: Any = total) -> None:
            comm.Allreduce(g, total)
            of_all.step(total, grad_scale=1 / comm.size)

        contenders = {
            "sharded": lambda opt=opt, g=g: opt.step(g),
            "collectives": collectives,
            "collectives of whole arrays": whole_arrays,
            "plain": plain,
            "update of a part": lambda opt=of_part, g=of_a_part: opt.step(g),
            "update of all": lambda opt=of_all, g=g: opt.step(g),
            "python": lambda opt=smallest, g=one: opt.step(g),
            "one process": lambda opt=alone, g=g: opt.step(g),
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        end, rounds = perf_counter() + seconds, 0
        going = np.ones(1)
        while going[0]:
            for name, call in contenders.items():
                for _ in range(2):  # the first call brings its own arrays into the cache, where they fit
                    elapsed = timed(comm, call, name == "one process")
                times[name].append(elapsed)
            rounds += 1
            going[0] = rounds < 4 or perf_counter() < end
            comm.Bcast(going)
        least = {name: min(each[1:]) for name, each in times.items()}
        found.append({"size": n, "seconds": least})
    if comm.rank == 0:
        name, version = MPI.get_vendor()
        print(json.dumps({"ranks": comm.size, "mpi": f"{name} {'.'.join(map(str, version))}", "points": found}))


def threads_of(opt: Any) -> int | None:
    """The threads of one rank's update."""
    return next(lane.optimizer._front.num_threads for lane in opt._engine.lanes if lane.optimizer is not None)


def timed(comm: Any, call: Any, alone: bool) -> float:
    """Seconds of a call on all ranks together, or on rank 0 while the others sleep."""
    comm.Barrier()
    start = perf_counter()
    if not alone or comm.rank == 0:
        call()
    if alone:
        request = comm.Ibarrier()
        elapsed = perf_counter() - start
        while not request.Test():
            sleep(0.002)
        return elapsed
    comm.Barrier()
    return perf_counter() - start


# ---- The ranks, started ----


def measure(place: str, ranks: int, sizes: list[int], seconds: float) -> dict[str, Any]:
    """Start ranks in a place, "memory" or the rate of links, and return what they found."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    command = [str(mpiexec) if mpiexec.exists() else "mpiexec"]
    program = [sys.executable, "-m", "mpi4py", "-m", "bench.mpi", "--worker", json.dumps([sizes, seconds])]
    root = Path(__file__).resolve().parent.parent
    if place == "memory":
        command += ["-n", str(ranks)]
        done = subprocess.run([*command, *program], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    else:
        with hosts.hosts(ranks, place) as where:
            environment = {**os.environ, **hosts.ENVIRONMENT}
            command += [*where, "-n", str(ranks)]
            done = subprocess.run(
                [*command, *program], cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
    report = json.loads(done.stdout.splitlines()[-1])
    points = report["points"]
    link = mpi_model.fitted([p["size"] for p in points], [p["seconds"]["collectives"] for p in points], ranks)
    return {"place": place, **report, "link": [link.latency, link.seconds_a_byte]}


def predicted(run: dict[str, Any], point: dict[str, Any], sharded: bool) -> float:
    """What the model says of a step, with the measured update of these ranks."""
    seconds, link = point["seconds"], Link(*run["link"])
    update = seconds["update of a part"] * run["ranks"] if sharded else seconds["update of all"]
    return step(point["size"], run["ranks"], link, update / point["size"], sharded, seconds["python"]).seconds


# ---- What came out ----


def named(run: dict[str, Any]) -> str:
    rate = run["place"].replace("gbit", " Gbit/s")
    return f"{run['ranks']} ranks, shared memory" if run["place"] == "memory" else f"{run['ranks']} hosts, {rate}"


def table_of_steps(runs: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["where", "parameters", "sharded, ms", "by the model", "all-reduce, ms", "by the model"]]
    for run in runs:
        for point in run["points"]:
            cells = [named(run), f"{point['size']:,}"]
            for name, sharded in (("sharded", True), ("plain", False)):
                cells += [f"{point['seconds'][name] * 1e3:,.2f}", f"{predicted(run, point, sharded) * 1e3:,.2f}"]
            rows.append(cells)
    return rows


def table_of_links(runs: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["where", "latency α, µs", "1/β, GB/s", "update u, ns", "Python c, µs"]]
    for run in runs:
        last = run["points"][-1]
        update = last["seconds"]["update of a part"] / last["size"] * run["ranks"]
        latency, seconds_a_byte = run["link"]
        python = min(point["seconds"]["python"] for point in run["points"])
        cells = f"{latency * 1e6:,.1f}", f"{1e-9 / seconds_a_byte:.2f}", f"{update * 1e9:.2f}", f"{python * 1e6:,.0f}"
        rows.append([named(run), *cells])
    return rows


def figure_of(run: dict[str, Any]) -> str:
    """Compare a step with the collectives alone and a part of one process's step, in words."""
    point, ranks = run["points"][-1], run["ranks"]
    seconds = point["seconds"]
    step, alone, whole, in_buckets = (
        seconds[name] for name in ("sharded", "one process", "collectives of whole arrays", "collectives")
    )
    return (
        f"A step of {point['size']:,} float32 on {ranks} ranks over shared memory took {step * 1e3:.1f} ms. What moves "
        f"in it takes MPI alone {whole * 1e3:.1f} ms by one call each for the whole arrays "
        f"(`MPI_Reduce_scatter_block`, `MPI_Allgather`), and {in_buckets * 1e3:.1f} ms by the step's calls for each "
        f"bucket. A step of one process with all cores took {alone * 1e3:.1f} ms, of which 1/{ranks} is to be done. So "
        f"the step took {step / (whole + alone / ranks):.2f} times as long as the calls for the whole arrays and that "
        f"part, and {step / (in_buckets + alone / ranks):.2f} times as long as the calls for each bucket and that part."
    )


def update_of(run: dict[str, Any]) -> float:
    """Seconds an element, of one process with all cores of this machine."""
    last = run["points"][-1]
    return last["seconds"]["one process"] / last["size"]


def table_of_scale(update: float) -> list[list[str]]:
    rows = [
        [
            "parameters",
            "ranks",
            "sharded, s",
            "largest term",
            "all-reduce, s",
            "largest term",
            "GB a rank",
            "all-reduce, GB",
        ]
    ]
    for parameters in MODELS:
        for ranks in RANKS:
            costs = [step(parameters, ranks, FAST, update, sharded) for sharded in (True, False)]
            cells = [f"10^{len(str(parameters)) - 1}", f"{ranks:,}"]
            for cost in costs:
                cells += [f"{cost.seconds:,.2f}", f"{cost.largest} ({getattr(cost, cost.largest) / cost.seconds:.0%})"]
            rows.append([*cells, *(f"{memory(parameters, ranks, sharded) / 1e9:,.1f}" for sharded in (True, False))])
    return rows


def as_markdown(rows: list[list[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rest]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def show(console: Console, rows: list[list[str]]) -> None:
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def worst_of(runs: list[dict[str, Any]], sharded: bool) -> int:
    """How far the model is from measured steps, at most, from LARGE parameters on, in percent."""
    name = "sharded" if sharded else "plain"
    points = [(run, point) for run in runs for point in run["points"] if point["size"] >= LARGE]
    return math.ceil(100 * max(abs(predicted(run, p, sharded) / p["seconds"][name] - 1) for run, p in points))


PLACES = ("#009e73", "#cc79a7", "#d55e00")  # a colour for each; neither is that of sharded or plain steps


def draw(runs: list[dict[str, Any]], update: float) -> Figure:
    """Draw what was measured beside the model, and what the model says of larger clusters; each title says it."""
    figure = looks.picture(4)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
    ends = []
    for run, color in zip(runs, PLACES, strict=False):
        sizes = [p["size"] / 1e6 for p in run["points"]]
        for name, sharded, marker, style in (("sharded", True, "o", "-"), ("plain", False, "x", "--")):
            measured = [p["seconds"][name] * 1e3 for p in run["points"]]
            left.plot(sizes, measured, marker, color=color, markersize=5)
            left.plot(sizes, [predicted(run, p, sharded) * 1e3 for p in run["points"]], style, color=color, linewidth=1)
            ends.append(measured[0])
    left.set(xscale="log", yscale="log", xlabel="million parameters", ylabel="ms a step")
    left.set_title(f"From {LARGE:,} parameters,\nthe model is within {max(worst_of(runs, s) for s in (True, False))}%")
    left.set_ylim(min(ends) / 2, left.get_ylim()[1] * 20)  # with room for the names
    for k, (run, color) in enumerate(zip(runs, PLACES, strict=False)):
        left.annotate(named(run), (0.03, 0.96 - 0.065 * k), xycoords="axes fraction", va="top", color=color, size=8)
    looks.plain_numbers(left.xaxis, left.yaxis)
    left.minorticks_off()

    ranks = np.unique(np.geomspace(8, 4096, 40).astype(int))
    for sharded, style, color in ((True, "-", looks.OURS), (False, "--", looks.TEXT)):
        for parameters in MODELS:
            costs: list[Cost] = [step(parameters, int(n), FAST, update, sharded) for n in ranks]
            middle.plot(ranks, [c.seconds for c in costs], style, color=color)
            right.plot(ranks, [memory(parameters, int(n), sharded) / 1e9 for n in ranks], style, color=color)
            if not sharded:
                for axes, y in ((middle, costs[0].seconds), (right, memory(parameters, 8, False) / 1e9)):
                    words = f"{looks.plain(parameters)} parameters"
                    axes.annotate(words, (8, y), (0, 4), textcoords="offset points", size=8)
    for axes in (middle, right):
        axes.set(xscale="log", yscale="log", xlabel="ranks, by the model")
        axes.set_ylim(top=axes.get_ylim()[1] * 1.8)
        looks.plain_numbers(axes.yaxis)
        axes.set_xticks([8, 64, 512, 4096], ["8", "64", "512", "4,096"])
        axes.minorticks_off()
    times = [[step(MODELS[-1], n, FAST, update, sharded).seconds for n in RANKS] for sharded in (True, False)]
    shares = [one / other for one, other in zip(*times, strict=True)]
    middle.set(ylabel="s a step, 100 Gbit/s, 5 µs a message")
    middle.set_title(f"A sharded step takes {min(shares):.0%}\nto {max(shares):.0%} of the other's time")
    share = memory(MODELS[-1], RANKS[-1], True) / memory(MODELS[-1], RANKS[-1], False)
    right.set(ylabel="GB a rank")
    right.set_title(f"It needs {share:.0%}\nof the memory")
    handles = [
        Line2D([], [], color=color, linestyle=style, marker=marker, label=label, markersize=5)
        for style, marker, color, label in (
            ("-", "o", looks.OURS, "sharded"),
            ("--", "x", looks.TEXT, "plain all-reduce, whole update"),
        )
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle("Sharded, many ranks take less time and less memory than by plain all-reduce")
    return figure


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.mpi", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="for each size, about (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two sizes, two ranks")
    parser.add_argument("--output", type=Path, default=Path("mpi.png"), help="picture (default %(default)s)")
    parser.add_argument("--report", type=Path, help="where to write the numbers, as JSON")
    parser.add_argument("--read", type=Path, help="take numbers from such a file in the place of measuring")
    parser.add_argument(
        "--publish", action="store_true", help="write the tables and the picture of docs/distributed.md"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.worker:
        work(*json.loads(options.worker))
        return
    console = Console(highlight=False)
    if options.read:
        report = json.loads(options.read.read_text())
    else:
        report = measured(console, options)
    runs = report["runs"]
    update = update_of(runs[0])
    tables = table_of_links(runs), table_of_steps(runs), table_of_scale(update)
    for rows in tables:
        show(console, rows)
    figure = (
        f"{figure_of(runs[0])} From {LARGE:,} parameters on, the model was within {worst_of(runs, True)}% of the "
        f"sharded steps, and within {worst_of(runs, False)}% of those by all-reduce."
    )
    console.print(figure)
    if report["load"] > report["cores"] / 2:
        busy = (
            f"The machine was busy before this began, with a load average of {report['load']:.1f}: the times are rough."
        )
        console.print(f"[bold]{busy}[/bold]")
        figure = f"{figure} {busy}"
    if options.report:
        options.report.write_text(json.dumps(report, indent=1))
    picture = DOCS / "distributed.png" if options.publish else options.output
    with looks.styled():
        looks.save(draw(runs, update), picture)
    console.print(f"written: {picture}")
    if options.publish:
        where = f"On {report['cpu']}, {report['cores']} cores, {runs[0]['mpi']}:"
        put(PAGE, "python -m bench.mpi --publish: links", f"{where}\n\n{as_markdown(tables[0])}")
        put(PAGE, "python -m bench.mpi --publish: steps", f"{as_markdown(tables[1])}\n\n{figure}")
        put(PAGE, "python -m bench.mpi --publish: scale", as_markdown(tables[2]))
        console.print(f"written: {PAGE}")


def measured(console: Console, options: argparse.Namespace) -> dict[str, Any]:
    load, sizes = os.getloadavg()[0], QUICK_SIZES if options.quick else SIZES
    places = [("memory", 2)]
    if not options.quick:
        reason = hosts.why_not()
        places += [] if reason else [("4gbit", 2), ("1gbit", 4)]
        if reason:
            console.print(f"no hosts: {reason}")
    runs = []
    for place, ranks in places:
        console.print(f"measuring: {ranks} ranks, {place}")
        runs.append(measure(place, ranks, sizes, options.seconds))
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "load": load, "runs": runs}


if __name__ == "__main__":
    main()
