"""What the measurements look like: a table on the screen, JSON, Markdown, pictures, and the README's table."""

import json
import math
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from bench import looks, scaling
from bench.contenders import CASES, OURS
from bench.limits import COPY, LOOPS
from bench.pages import put
from bench.timing import BUSY


def tables(report: dict) -> list[Table]:
    """Return one table for each dtype and number of threads: microseconds, and contender ÷ rmsfast."""
    found = []
    for run in report["runs"]:
        title = f"{run['dtype']}, {threads_of(run)}: µs a step, and how many times as long as {OURS}"
        table = Table("contender", title=title)
        for case in run["seconds"]:
            table.add_column(f"{case} (busy)" if is_busy(run, case) else case, justify="right")
        for name in contenders_of(run):
            table.add_row(name, *[cell(times, name) for times in run["seconds"].values()])
        found.append(table)
    return found


def is_busy(measured: dict, case: str | None = None) -> bool:
    """Whether the machine was busy during a case of a run, or during a point."""
    unrest = measured.get("unrest", {})
    return (unrest.get(case, 1.0) if isinstance(unrest, dict) else unrest) > BUSY


def busy(report: dict) -> str:
    """Return what to say about a machine that was busy, or nothing."""
    cases = [f"{case} ({run['dtype']}, {threads_of(run)})" for run in report["runs"] for case in busy_cases(run)]
    points = report["roofline"].get("points", [])
    cases += [f"{point['size']:,} elements" for point in points if is_busy(point)]
    if not cases:
        return ""
    return (
        f"the machine was busy: usual rounds took more than {BUSY} times as long as the shortest, with "
        f"{', '.join(cases)}. These figures say little, and are in no picture: end other programs, and measure again"
    )


def busy_cases(run: dict) -> list[str]:
    """Return the cases of a run during which the machine was busy."""
    return [case for case in run["seconds"] if is_busy(run, case)]


def contenders_of(run: dict) -> list[str]:
    return list(dict.fromkeys(name for times in run["seconds"].values() for name in times))


def threads_of(run: dict) -> str:
    return "1 thread" if run["threads"] == 1 else f"{run['threads']} threads"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}" if seconds >= 1e-3 else f"{seconds * 1e6:.3g}"


def cell(times: dict[str, float], name: str) -> str:
    """Return time and ratio. Where a peer wins, its ratio is below 1 and stands out."""
    if name not in times:
        return "–"
    ratio = times[name] / times[OURS]
    text = f"{microseconds(times[name])} {ratio:.2f}×"
    return f"[bold red]{text}[/]" if ratio < 1 and name not in LOOPS else text


def markdown(report: dict) -> str:
    """Return the tables in Markdown."""
    tables = [f"{run['dtype']}, {threads_of(run)}\n\n{markdown_table(run)}" for run in report["runs"]]
    return "\n".join([*tables, machine(report), *filter(None, [busy(report)]), ""])


def markdown_table(run: dict) -> str:
    """Return microseconds and ratios; one in bold is one by which a peer wins."""
    lines = [
        f"| | {' | '.join(f'`{case}`' for case in run['seconds'])} |",
        f"|---|{'---:|' * len(run['seconds'])}",
    ]
    for name in contenders_of(run):
        cells = []
        for times in run["seconds"].values():
            if name not in times:
                cells.append("–")
                continue
            ratio = times[name] / times[OURS]
            mark = "**" if ratio < 1 and name not in LOOPS else ""
            time = microseconds(times[name])
            cells.append(f"**{time}**" if name == OURS else f"{time} ({mark}{ratio:.3g}×{mark})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


SHORT_ROWS = [OURS, "NumPy in place", "Numba", "JAX (Optax)", "PyTorch foreach", "PyTorch compile"]
SHORT_COLUMNS = {
    "1x1k": "1 000 numbers",
    "1x1M": "1 048 576",
    "1x16M": "16 777 216",
    "200x1k": "200 arrays of 1 000",
    "mlp6": "a network of 269 322",
}


def markdown_short(run: dict) -> str:
    """Return the table of the README, which needs no other page to be read."""
    cases = [case for case in SHORT_COLUMNS if case in run["seconds"]]
    lines = [f"| µs a step | {' | '.join(SHORT_COLUMNS[case] for case in cases)} |", f"|---|{'---:|' * len(cases)}"]
    for name in (name for name in contenders_of(run) if name in SHORT_ROWS):
        times = [run["seconds"][case].get(name) for case in cases]
        cells = ["–" if seconds is None else microseconds(seconds) for seconds in times]
        lines.append(f"| {name} | {' | '.join(f'**{c}**' if name == OURS else c for c in cells)} |")
    return "\n".join([*lines, ""])


def machine(report: dict) -> str:
    m = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    ours = f"{m['cpu']}, {m['cores']} cores, {m['isa']}, root: {m['root']}; rmsfast {m['rmsfast']}"
    return f"{ours}, Python {m['python']}, {packages}; {m['system']}."


def write(report: dict, folder: Path) -> list[Path]:
    """Write all forms of the report to a folder; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "bench.md").write_text(markdown(report))
    return [folder / "bench.json", folder / "bench.md", *draw(report, folder)]


def draw(report: dict, folder: Path) -> list[Path]:
    """Draw what the report has into a folder; return the pictures' paths."""
    drawn = {}
    with looks.styled():
        if shown(report["runs"][0]):
            drawn["speedup"] = draw_speedup(report)
        if any(not is_busy(point) for point in report.get("roofline", {}).get("points", [])):
            drawn["roofline"] = draw_roofline(report["roofline"])
        if report.get("scaling"):
            drawn["scaling"] = scaling.draw(report["scaling"])
        for name, figure in drawn.items():
            looks.save(figure, folder / f"{name}.png", "\n".join(textwrap.wrap(machine(report), 150)))
    return [folder / f"{name}.png" for name in drawn]


def sentence(run: dict) -> str:
    """Return what Home says of a large array, or nothing where that was not measured."""
    times = run["seconds"].get("1x1M", {})
    if "NumPy textbook" not in times:
        return ""
    ours, ratio = microseconds(times[OURS]), times["NumPy textbook"] / times[OURS]
    return (
        f"One step on a million numbers takes **{ours} µs**: {ratio:.3g} times as fast as the same two lines of NumPy, "
        f"with the same bits\n([measured](performance.md), {threads_of(run)}).\n"
    )


def publish(report: dict, checkout: Path) -> list[Path]:
    """Put the first run's figures into the README and the docs, and the pictures into docs/."""
    docs, run = checkout / "docs", report["runs"][0]
    readme, page, home = checkout / "README.md", docs / "performance.md", docs / "index.md"
    m = report["machine"]
    put(readme, "python -m bench", f"{markdown_short(run)}\n({m['cpu']}, {threads_of(run)}, {m['isa']}.)\n")
    put(page, "python -m bench", f"{markdown_table(run)}\n({machine(report)})\n")
    put(home, "python -m bench", sentence(run))
    return [readme, page, home, *draw(report, docs)]


# ---- How much faster: bars ----

SHOWN = ["1x1k", "mlp6", "1x16M"]  # little to do for each call, a network, and more than a cache holds


def shown(run: dict) -> list[str]:
    """Return the cases of the picture: three, during which the machine was not busy."""
    quiet = [case for case in run["seconds"] if not is_busy(run, case)]
    return [case for case in SHOWN if case in quiet] or quiet[:3]


def peers_of(times: dict[str, float]) -> dict[str, float]:
    """Return how many times as long as rmsfast each peer takes; the loops are none."""
    return {name: time / times[OURS] for name, time in times.items() if name != OURS and name not in LOOPS}


def times_as_long(ratio: float) -> str:
    return f"{ratio:#.2g}".rstrip(".") + "×" if ratio < 100 else f"{ratio:,.0f}×"


def what(case: str) -> str:
    """Say how large a case is."""
    total, arrays = sum(map(math.prod, CASES[case])), len(CASES[case])
    return f"{total:,} numbers" if arrays == 1 else f"{total:,} numbers in {arrays} arrays"


def speedup_message(times: dict[str, float], case: str) -> str:
    """Say what one case shows."""
    ours = f"A step on {what(case)} takes {microseconds(times[OURS])} µs with {OURS}"
    ratios = sorted(peers_of(times).values())
    if not ratios:
        return ours
    span = f"{ratios[0]:.2g}" if len(ratios) == 1 else f"{ratios[0]:.2g} to {ratios[-1]:.3g}"
    return f"{ours},\nand {span} times as long with others"


def draw_speedup(report: dict) -> Figure:
    """Bars for some cases of the first run: microseconds, and how many times as long as rmsfast."""
    run = report["runs"][0]
    cases = shown(run)
    names = [name for name in contenders_of(run) if name not in LOOPS]
    names.sort(key=lambda name: [run["seconds"][case].get(name, 0.0) for case in cases])
    figure = looks.picture(1.5 + 0.2 * len(names))
    for axes, case in zip(figure.subplots(1, len(cases), sharey=True, squeeze=False).flat, cases, strict=True):
        times = run["seconds"][case]
        longest, ratios = max(time for name, time in times.items() if name in names), peers_of(times)
        for row, name in enumerate(names):
            if name not in times:
                axes.annotate("–", (0, row), (3, 0), textcoords="offset points", va="center")
                continue
            text, weight = f"{microseconds(times[name])} µs", "normal"
            if name == OURS:
                weight = "bold"
            else:
                text += f"   {times_as_long(ratios[name])}"
            axes.barh(row, times[name], 0.72, color=looks.colour_of(name))
            axes.annotate(
                text, (times[name], row), (3, 0), textcoords="offset points", va="center", size=8, weight=weight
            )
        axes.set(xlim=(0, longest * 1.75), xticks=[], yticks=range(len(names)), yticklabels=names)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(left=False)
        best = min(ratios, key=ratios.get, default=OURS)
        line = f"\n{'next' if ratios[best] >= 1 else 'first'}: {best}, {times_as_long(ratios[best])}" if ratios else ""
        axes.set_title(f"{what(case)}{line}", size=8.5)
    figure.axes[0].invert_yaxis()
    figure.axes[0].get_yticklabels()[names.index(OURS)].set(weight="bold", color=looks.OURS)
    figure.suptitle(f"{speedup_message(run['seconds'][cases[0]], cases[0])} ({run['dtype']}, {threads_of(run)})")
    return figure


# ---- How far from what is possible: lines ----


def roofline_message(points: list[dict]) -> str:
    """Say what the largest size shows."""
    last = max(points, key=lambda point: point["size"])
    times, size = last["seconds"], looks.plain(last["size"])
    if COPY not in times:
        return f"On {size} elements, a step of {OURS} takes {times[OURS] / last['size'] * 1e9:.2g} ns an element"
    ratio = times[OURS] / times[COPY]
    much = "as long as moving its bytes" if 0.95 < ratio < 1.05 else f"{ratio:.2f} times as long as the copy loop"
    return f"On {size} elements, a step of {OURS} takes {much}"


def draw_roofline(roofline: dict) -> Figure:
    """Lines: time per element against size, with the loops, and below them what no step can reach. The peers end where
    they do not all fit into memory."""
    quiet = sorted((point for point in roofline["points"] if not is_busy(point)), key=lambda point: point["size"])
    figure = looks.picture(5)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    markers = dict.fromkeys(LOOPS, "") | {"NumPy in place": "s", "PyTorch foreach": "s", "PyTorch compile": "^"}
    dashes = dict(zip(LOOPS, ("--", ":", "-."), strict=True))
    lines = {}
    for name in dict.fromkeys(name for point in quiet for name in point["seconds"]):
        lines[name] = [(p["size"], p["seconds"][name] / p["size"] * 1e9) for p in quiet if name in p["seconds"]]
        axes.plot(
            *zip(*lines[name], strict=True),
            color=looks.colour_of(name),
            linestyle=dashes.get(name, "-"),
            marker=markers.get(name, "o"),
            markersize=3.5,
            linewidth=2.6 if name == OURS else 1.2,
            zorder=3 if name == OURS else 2,
        )
    first = quiet[0]["size"]
    begins = {name: math.log10(line[0][1]) for name, line in lines.items() if line[0][0] == first}
    places = looks.apart(list(begins.values()), 0.2)
    for (name, begin), place in zip(begins.items(), places, strict=True):
        colour = looks.colour_of(name)
        spots = (first / 1.45, 10**place), (first / 1.05, 10**begin)
        axes.plot(*zip(*spots, strict=True), color=colour, linestyle=dashes.get(name, "-"), linewidth=0.8)
        weight = "bold" if name == OURS else "normal"
        axes.annotate(name, spots[0], (-3, 0), textcoords="offset points", ha="right", va="center", weight=weight)
    if bounds := [(p["size"], p["bound"] / p["size"] * 1e9) for p in quiet if "bound" in p]:
        sizes, bound = zip(*bounds, strict=True)
        bottom = min(bound) / 3
        axes.fill_between(sizes, bound, bottom, color=looks.SHADE, linewidth=0, zorder=0)
        words = "No step gets here: to read and write w and v alone takes longer"
        axes.annotate(words, (sizes[0], bottom), (4, 5), textcoords="offset points")
        axes.set_ylim(bottom=bottom)
    axes.set_xlim(first / 22, quiet[-1]["size"] * 2)
    looks.plain_numbers(axes.xaxis, axes.yaxis)
    axes.set_xticks([point["size"] for point in quiet])
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.25)
    axes.set(xlabel=f"elements of one parameter, {roofline['dtype']}, {threads_of(roofline)}", ylabel="ns an element")
    figure.suptitle(roofline_message(quiet))
    return figure
