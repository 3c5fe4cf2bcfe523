"""The examples as sphinx-gallery shows them: copies with a title, and with what a run printed and drew."""

import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT
from textwrap import indent
from time import perf_counter

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
FOLDER = DOCS / "generated" / "examples"

# The examples with a picture, in the order of the page.
TITLES = {
    "ravine": "Six optimizers in a ravine",
    "linear_regression": "Linear regression",
    "digits": "Handwritten digits",
    "word_vectors": "Word vectors, trained by rows",
    "resume": "Killed at random, and resumed",
    "shared_memory": "One model in shared memory",
    "wgan": "A Wasserstein GAN",
    "torch_training": "In the place of PyTorch's RMSprop",
}
HEADER = """\
Examples
========

Each program runs as it stands: ``pip install ".[demo]"``, then ``python examples/ravine.py``. A page shows the picture
that the program drew, what it printed, how long it took when this site was built, and the program.
"""


def copy_all() -> None:
    """Run each example, and write the copies that sphinx-gallery takes."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "GALLERY_HEADER.rst").write_text(HEADER, encoding="utf-8")
    for name in TITLES:
        copy(name, run(name))


def copy(name: str, text: str) -> None:
    """Write the copy of an example, with its picture and a text in reStructuredText after its docstring's own."""
    picture = f"generated/examples/{name}.png"
    title, program = TITLES[name], (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    intro, code = program.removeprefix('"""').split('"""', 1)
    parts = [f"{title}\n{'=' * len(title)}", intro.strip(), f".. image:: /{picture}\n   :alt: {title}", text]
    joined = "\n\n".join(parts).replace("\\", "\\\\")
    thumbnail = f'# sphinx_gallery_thumbnail_path = "{picture}"\n'
    (FOLDER / f"{name}.py").write_text(f'"""{joined}\n"""{code}\n{thumbnail}', encoding="utf-8")


def in_order(file: str) -> int:
    """Return the place of an example on the page."""
    return list(TITLES).index(Path(file).stem)


def run(name: str) -> str:
    """Run an example, and return what it printed and how long it took, or what it did when it was run before.

    Raises
    ------
    subprocess.CalledProcessError
        If it fails.
    """
    program, picture, text = EXAMPLES / f"{name}.py", FOLDER / f"{name}.png", FOLDER / f"{name}.txt"
    if not (picture.exists() and text.exists() and text.stat().st_mtime > program.stat().st_mtime):
        start = perf_counter()
        command = [sys.executable, "-P", str(program)]
        # Threads that wait sleep, so that the build ends soon on a busy machine, too.
        around = os.environ | {"COLUMNS": "100", "OMP_WAIT_POLICY": "passive", "PYTHONIOENCODING": "utf-8"}
        result = subprocess.run(
            command, cwd=FOLDER, env=around, stdout=PIPE, stderr=STDOUT, text=True, encoding="utf-8"
        )
        seconds = perf_counter() - start
        if result.returncode:
            raise subprocess.CalledProcessError(result.returncode, command, result.stdout)
        printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.stdout).rstrip()
        block = f".. code-block:: none\n\n{indent(printed, '    ')}"
        text.write_text(f"It took {seconds:.1f} seconds and printed:\n\n{block}", encoding="utf-8")
    return text.read_text(encoding="utf-8")
