"""Where measurements stand in README.md and docs/: between two comments that name the command."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def put(page: Path, command: str, text: str) -> None:
    """Put text in the place of what stands between the comments `<!-- command: begin -->` and `<!-- command: end -->`.

    Raises
    ------
    ValueError
        If the page has no such comments.
    """
    begin, end = f"<!-- {command}: begin -->\n", f"<!-- {command}: end -->\n"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_too, after = rest.partition(end)
    if not (found and found_too):
        raise ValueError(f"{page.name}: has no lines {begin.strip()!r} and {end.strip()!r}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
