"""Make pytest use the installed rmsfast, never this checkout's source folder by accident, and say which it is."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
COMPILED = (".pyx", ".pxd", ".pxi", ".c", ".h")

# `python -m pytest` puts the checkout first on the path, where its source folder would hide the installed package. At
# the end of the path it hides nothing, and `bench` can still be imported from it.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT] + [str(ROOT)]


def stale_files(installed: Path) -> list[str]:
    """Return the source files in which the installed package differs from this checkout, or is older than it."""
    if not (ROOT / "rmsfast").is_dir():  # tests of a wheel
        return []
    sources = sources_in(ROOT / "rmsfast")
    if installed == ROOT / "rmsfast":  # an editable install: what counts is that the kernel is newer than its sources
        import rmsfast._core.kernel

        built = Path(rmsfast._core.kernel.__file__).stat().st_mtime
        core_sources = [*(file for file in sources if file.suffix in COMPILED), Path("../setup.py")]
        return [str(file) for file in core_sources if (installed / file).stat().st_mtime > built]
    copies = sources_in(installed)
    return [
        str(file)
        for file in sorted(sources | copies)
        if file not in sources & copies or (installed / file).read_bytes() != (ROOT / "rmsfast" / file).read_bytes()
    ]


def sources_in(folder: Path) -> set[Path]:
    suffixes = (".py", ".pyi", *COMPILED)
    return {file.relative_to(folder) for file in folder.rglob("*") if file.suffix in suffixes}


def pytest_configure() -> None:
    try:
        import rmsfast
    except ImportError as error:
        raise pytest.UsageError(f"{error}. Install it: pip install '.[test]'") from None
    installed = Path(rmsfast.__file__).resolve().parent
    stale = stale_files(installed)
    if stale:
        raise pytest.UsageError(
            f"the rmsfast installed in {installed} is not this checkout's: {', '.join(stale)} changed. "
            "Remove build/, which keeps files that are gone, and install again: `pip install .` or `pip install -e .`"
        )


def pytest_report_header() -> str:
    import rmsfast

    config = rmsfast.config()
    how = f"{config['isa']}, {config['root']}, {config['num_threads']} threads"
    return f"rmsfast {config['version']} at {rmsfast.__path__[0]}, {how}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down which tests passed, for .ci/run, which looks for those that were skipped wherever they ran."""
    path = os.environ.get("RMSFAST_OUTCOMES")
    if path and (report.skipped or report.when == "call"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        with Path(path).open("a") as file:
            print(report.outcome, report.nodeid, why.replace("\n", " "), sep="\t", file=file)
