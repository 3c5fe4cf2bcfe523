"""What the measurements look like: a table on the screen, JSON, Markdown, pictures, and the README's table."""

import json
import textwrap
from pathlib import Path

from rich.table import Table

from bench import scaling
from bench.contenders import CASES, OURS
from bench.limits import LOOPS
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


SHORT_ROWS = {
    OURS: OURS,
    "NumPy out=": "NumPy, in place",
    "Numba": "Numba",
    "Optax": "JAX (Optax)",
    "torch foreach": "PyTorch (`foreach`)",
    "torch.compile": "PyTorch (`torch.compile`)",
}
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
    for name in filter(SHORT_ROWS.get, contenders_of(run)):
        times = [run["seconds"][case].get(name) for case in cases]
        cells = ["–" if seconds is None else microseconds(seconds) for seconds in times]
        lines.append(f"| {SHORT_ROWS[name]} | {' | '.join(f'**{c}**' if name == OURS else c for c in cells)} |")
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
    import matplotlib

    matplotlib.use("Agg")
    paths = []
    if len(busy_cases(report["runs"][0])) < len(report["runs"][0]["seconds"]):
        paths.append(folder / "speedup.png")
        draw_speedup(report, paths[-1])
    for part, function in ("roofline", draw_roofline), ("scaling", scaling.draw):
        if part == "roofline" and all(map(is_busy, report.get("roofline", {}).get("points", []))):
            continue
        if report.get(part):
            paths.append(folder / f"{part}.png")
            function(report if part == "roofline" else report[part], paths[-1])
    return paths


def publish(report: dict, checkout: Path) -> list[Path]:
    """Put the first run's tables into the README and docs/performance.md, and the pictures into docs/."""
    readme, page, run = checkout / "README.md", checkout / "docs" / "performance.md", report["runs"][0]
    m = report["machine"]
    put(readme, "python -m bench", f"{markdown_short(run)}\n({m['cpu']}, {threads_of(run)}, {m['isa']}.)\n")
    put(page, "python -m bench", f"{markdown_table(run)}\n({machine(report)})\n")
    return [readme, page, *draw(report, checkout / "docs")]


def draw_speedup(report: dict, path: Path) -> None:
    """Bars: how many times as long as rmsfast each peer takes, by case, in the first run."""
    import matplotlib.pyplot as plt
    import numpy as np

    run = report["runs"][0]
    names = [name for name in contenders_of(run) if name != OURS and name not in LOOPS]
    cases = [case for case in CASES if case in run["seconds"] and not is_busy(run, case)]
    figure, axes = plt.subplots(figsize=(12, 5), layout="constrained")
    width = 0.85 / max(len(names), 1)
    for k, name in enumerate(names):
        times = [run["seconds"][case] for case in cases]
        ratios = [t.get(name, np.nan) / t[OURS] for t in times]
        axes.bar(np.arange(len(cases)) + (k - (len(names) - 1) / 2) * width, ratios, width, label=name, color=f"C{k}")
    axes.axhline(1, color="black", linewidth=1.5)
    axes.annotate(OURS, (len(cases) - 0.52, 1.08), fontsize=9)
    axes.set_yscale("log")
    axes.set_xticks(range(len(cases)), cases)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set(ylabel=f"time of a step ÷ {OURS}'s", title=f"One RMSProp step, {run['dtype']}, {threads_of(run)}")
    axes.legend(ncols=4, fontsize=9)
    figure.supxlabel(machine(report), fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def floor(points: list[dict]) -> list[float]:
    """Return what nothing can beat: the seconds of each point at the best bandwidth that anyone had there, or with more
    elements, where it is harder to have. The loops and rmsfast move the same bytes an element, others no fewer."""
    best, seconds = float("inf"), []
    for point in sorted(points, key=lambda point: -point["size"]):
        best = min(best, min(point["seconds"].values()) / point["size"])
        seconds.append(best * point["size"])
    return seconds[::-1]


def draw_roofline(report: dict, path: Path) -> None:
    """Lines: time per element against size, with the loops, and the bandwidth's limit. The peers end where they do not
    all fit into memory."""
    import matplotlib.pyplot as plt

    roofline = report["roofline"]
    quiet = [point for point in roofline["points"] if not is_busy(point)]
    figure, axes = plt.subplots(figsize=(11, 5.5), layout="constrained")
    names = list(dict.fromkeys(name for point in quiet for name in point["seconds"]))
    for k, name in enumerate(names):
        points = [(p["size"], p["seconds"][name] / p["size"] * 1e9) for p in quiet if name in p["seconds"]]
        dashes = dict(zip(LOOPS, ("--", ":", "-."), strict=True))
        style = {"color": "black", "linestyle": dashes[name]} if name in LOOPS else {"color": f"C{k}"}
        axes.loglog(
            *zip(*points, strict=True),
            label=name,
            marker="o",
            markersize=3,
            linewidth=2.5 if name == OURS else 1.2,
            **style,
        )
    sizes = sorted(point["size"] for point in quiet)
    limit = [seconds / size * 1e9 for seconds, size in zip(floor(quiet), sizes, strict=True)]
    bottom = axes.get_ylim()[0]
    axes.fill_between(sizes, limit, bottom, color="0.85", label="less than the bytes take at best")
    axes.set_ylim(bottom=bottom)
    title = f"Time per element, {roofline['dtype']}, {roofline['threads']} threads"
    axes.set(xlabel="elements of one parameter", ylabel="ns an element", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    figure.supxlabel("\n".join(textwrap.wrap(machine(report), 130)), fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
