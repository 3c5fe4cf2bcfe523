"""What the measurements look like: a table on the screen, JSON, Markdown, and two pictures."""

import json
from pathlib import Path

from rich.table import Table

from bench.contenders import CASES, OURS

LIMITS = ("memory limit", "divider limit")


def tables(report: dict) -> list[Table]:
    """Return one table for each dtype and number of threads: microseconds, and contender ÷ rmsfast."""
    found = []
    for run in report["runs"]:
        names = contenders_of(run)
        table = Table(
            "case",
            title=f"{run['dtype']}, {threads_of(run)}: µs a step, and how many times as long as {OURS}",
        )
        for name in names:
            table.add_column(name, justify="right")
        for case, times in run["seconds"].items():
            table.add_row(case, *[cell(times, name) for name in names])
        found.append(table)
    return found


def contenders_of(run: dict) -> list[str]:
    return list(dict.fromkeys(name for times in run["seconds"].values() for name in times))


def threads_of(run: dict) -> str:
    return "1 thread" if run["threads"] == 1 else f"{run['threads']} threads"


def cell(times: dict[str, float], name: str) -> str:
    """Where a peer wins, its ratio is below 1 and stands out."""
    if name not in times:
        return "–"
    ratio = times[name] / times[OURS]
    text = f"{times[name] * 1e6:,.2f}\n{ratio:.2f}×"
    return f"[bold red]{text}[/]" if ratio < 1 and name not in LIMITS else text


def markdown(report: dict) -> str:
    """Return the tables in Markdown; a ratio in bold italics is one by which a peer wins."""
    lines = []
    for run in report["runs"]:
        names = contenders_of(run)
        lines += [f"{run['dtype']}, {threads_of(run)}", ""]
        lines += [f"| case | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
        for case, times in run["seconds"].items():
            cells = []
            for name in names:
                if name not in times:
                    cells.append("–")
                    continue
                micro, ratio = f"{times[name] * 1e6:,.4g}", times[name] / times[OURS]
                wins = ratio < 1 and name not in LIMITS
                cells.append(f"**{micro}**" if name == OURS else f"{micro} ({'***' * wins}{ratio:.2f}×{'***' * wins})")
            lines.append(f"| `{case}` | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, machine(report), ""])


def machine(report: dict) -> str:
    m = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    ours = f"{m['cpu']}, {m['cores']} cores, {m['isa']}; rmsfast {m['rmsfast']}"
    return f"{ours}, Python {m['python']}, {packages}; {m['system']}."


def write(report: dict, folder: Path) -> list[Path]:
    """Write all forms of the report to a folder; return their paths."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "bench.md").write_text(markdown(report))
    paths = [folder / "bench.json", folder / "bench.md", folder / "speedup.png"]
    draw_speedup(report, paths[-1])
    if report["roofline"]:
        paths.append(folder / "roofline.png")
        draw_roofline(report, paths[-1])
    return paths


def draw_speedup(report: dict, path: Path) -> None:
    """Bars: how many times as long as rmsfast each peer takes, by case, in the first run."""
    import matplotlib.pyplot as plt
    import numpy as np

    run = report["runs"][0]
    names = [name for name in contenders_of(run) if name != OURS and name not in LIMITS]
    cases = [case for case in CASES if case in run["seconds"]]
    figure, axes = plt.subplots(figsize=(12, 5), layout="constrained")
    width = 0.85 / max(len(names), 1)
    for k, name in enumerate(names):
        times = [run["seconds"][case] for case in cases]
        ratios = [t.get(name, np.nan) / t[OURS] for t in times]
        axes.bar(np.arange(len(cases)) + (k - (len(names) - 1) / 2) * width, ratios, width, label=name, color=f"C{k}")
    axes.axhline(1, color="black", linewidth=1.5)
    axes.annotate(OURS, (-0.47, 1.06), fontsize=9)
    axes.set_yscale("log")
    axes.set_xticks(range(len(cases)), cases)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.set(ylabel=f"time of a step ÷ {OURS}'s", title=f"One RMSProp step, {run['dtype']}, {threads_of(run)}")
    axes.legend(ncols=4, fontsize=9)
    figure.supxlabel(machine(report), fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_roofline(report: dict, path: Path) -> None:
    """Lines: time per element against size, with the limits."""
    import matplotlib.pyplot as plt

    roofline = report["roofline"]
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    names = list(dict.fromkeys(name for point in roofline["points"] for name in point["seconds"]))
    for k, name in enumerate(names):
        points = [(p["size"], p["seconds"][name] / p["size"] * 1e9) for p in roofline["points"] if name in p["seconds"]]
        style = (
            {"color": "black", "linestyle": "--" if "memory" in name else ":"} if name in LIMITS else {"color": f"C{k}"}
        )
        axes.loglog(
            *zip(*points, strict=True),
            label=name,
            marker="o",
            markersize=3,
            linewidth=2.5 if name == OURS else 1.2,
            **style,
        )
    title = f"Time per element, {roofline['dtype']}, {roofline['threads']} threads"
    axes.set(xlabel="elements of one parameter", ylabel="ns an element", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    figure.supxlabel(machine(report), fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
