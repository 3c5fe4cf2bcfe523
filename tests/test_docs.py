"""The pages: their programs run and print what is said beside them, their tables are true, and every public name is there."""

import ast
import builtins
import inspect
import re
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

import rmsfast
from rmsfast.attributes import Absent
from rmsfast.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]}
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "text", "sh"}
OTHERS = {"jax", "ml_dtypes", "scipy", "sklearn", "stable_baselines3", "torch"}  # packages that a page may need


def programs_of(text):
    """Return the Python of a page, on the lines on which it stands there, and what each block prints by what follows it."""
    lines = [""] * text.count("\n")
    printed = {}
    fences = list(FENCE.finditer(text))
    for i, fence in enumerate(fences):
        language, block = fence.groups()
        first = text.count("\n", 0, fence.start()) + 1
        if language == "python":
            lines[first : first + block.count("\n")] = block.splitlines()
            if fences[i + 1 : i + 2] and fences[i + 1][1] == "text":
                printed[first, first + block.count("\n")] = fences[i + 1][2]
    return "\n".join(lines), printed


def expectation(lines, number):
    """Return the comment at the end of the statement that stands on this line, or None."""
    found = re.search(r"\)  # (.*)$", lines[number - 1])
    return found[1] if found else None


@pytest.mark.thread_unsafe(reason="warnings and packages that are imported are the process's")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "```python" in text])
def test_programs_print_what_the_page_says(page):
    """All blocks of a page, one after another: `print(x)  # 1` prints 1, and a block of text is what the block before prints."""
    program, blocks = programs_of(PAGES[page])
    lines = program.split("\n")
    tree = ast.parse(program, page)
    output, stop, missing = [], len(lines), None

    def note(*values, sep=" "):
        output.append((sys._getframe(1).f_lineno, sep.join(map(str, values))))

    try:
        exec(compile(tree, page, "exec"), {"__name__": "page", "__builtins__": vars(builtins) | {"print": note}})
    except ModuleNotFoundError as error:
        if error.name not in OTHERS:
            raise
        missing = error.name
        stop = next(frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == page)
    for (first, last), text in blocks.items():
        if last < stop:
            here = "".join(f"{line}\n" for number, line in output if first <= number <= last)
            assert here == text, f"{page}:{first}"
    ends = {node.lineno: node.end_lineno for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for number, line in output:
        assert expectation(lines, ends.get(number, number)) in (None, line), f"{page}:{number} printed {line!r}"
    if missing:
        pytest.skip(f"the rest of {page} needs {missing}")
