"""The pages: their programs run and print what stands beside them; tables are true; every public name is there."""

import ast
import builtins
import gzip
import inspect
import os
import re
import sys
import traceback
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

import rmsfast
from rmsfast import dialects, schedules
from rmsfast.attributes import Absent
from rmsfast.settings import FOREIGN, SETTINGS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in [*sorted(DOCS.glob("*.md")), ROOT / "README.md"]}
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Packages that a page may need.
OTHERS = {"jax", "keras", "ml_dtypes", "mpi4py", "scipy", "sklearn", "stable_baselines3", "torch"}


def programs_of(text):
    """Return the Python of a page, on its lines, and what the page says that some of its blocks print."""
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
    """One after another: `print(x)  # 1` prints 1, and a block of text is what the block of Python before it prints."""
    program, blocks = programs_of(PAGES[page])
    lines = program.split("\n")
    tree = ast.parse(program, page)
    output, stop, missing = [], len(lines), None

    def note(*values, sep=" "):
        output.append((sys._getframe(1).f_lineno, sep.join(map(str, values))))

    try:
        exec(compile(tree, page, "exec"), {"__name__": "page", "__builtins__": vars(builtins) | {"print": note}})
    except ImportError as error:
        missing = (error.__cause__ or error).name  # rmsfast.torch's own error is from PyTorch's
        if missing not in OTHERS:
            raise
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


def test_every_block_is_of_a_kind_that_is_checked():
    kinds = {fence[1] for text in PAGES.values() for fence in FENCE.finditer(text)}
    directives = {kind for kind in kinds if kind.startswith("{")}
    assert kinds - directives <= {"python", "text", "sh"}


def test_files_that_pages_name_are_there():
    pattern = r"\b(?:bench|examples|tools)/\w+(?:/\w+)*\.\w+"
    named = {name for text in PAGES.values() for name in re.findall(pattern, text)}
    assert len(named) > 5
    folders = {path.name for path in ROOT.iterdir()}  # the tests of a wheel have no tools
    here = [name for name in sorted(named) if name.split("/")[0] in folders]
    assert not [name for name in here if not (ROOT / name).exists()]


def test_every_example_is_shown_or_linked():
    """In the gallery, or from a page."""
    shown = (DOCS / "programs.py").read_text(encoding="utf-8") + "".join(PAGES.values())
    programs = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
    assert [name for name in programs if not re.search(rf'"{name}": "|examples/{name}\.py', shown)] == []


# ---- Names ----


def documented():
    return set(re.findall(r"\.\. auto\w+:: (\S+)", PAGES["api.md"]))


def functions_of(module):
    members = vars(module).items()
    return {
        name
        for name, member in members
        if name[0] != "_" and inspect.isfunction(member) and member.__module__ == module.__name__
    }


def public_names():
    """Return the public names."""
    names = {f"rmsfast.{name}" for name in rmsfast.__all__}
    names |= {f"rmsfast.schedules.{name}" for name in schedules.__all__}
    names |= {f"rmsfast.dialects.{name}" for name in functions_of(dialects) - {"refuse"}}
    for module in ("torch", "mpi"):  # read: to import them takes PyTorch and MPI
        source = (Path(rmsfast.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        exported = re.findall(r'"(\w+)"', re.search(r"^__all__ = \[(.*?)\]", source, re.MULTILINE | re.DOTALL)[1])
        names |= {f"rmsfast.{module}.{name}" for name in exported}
    return names


def members_of(thing):
    return {name for name in dir(thing) if name[0] != "_" and not isinstance(vars_of(thing).get(name), Absent)}


def vars_of(thing):
    return {name: member for kind in reversed(thing.__mro__) for name, member in vars(kind).items()}


def test_every_public_name_is_on_the_page_of_the_api():
    assert public_names() - documented() == set()


def test_every_public_member_is_documented():
    """Methods by their docstrings, which the page shows because of `:members:`; settings in its table."""
    assert re.search(r"autoclass:: rmsfast.RMSProp\n +:members:\n", PAGES["api.md"])
    for name in members_of(rmsfast.RMSProp) - set(SETTINGS):
        assert inspect.getdoc(getattr(rmsfast.RMSProp, name)), name


# ---- Tables ----


def table(page, header):
    """Return the rows of the table whose first line begins with these cells."""
    lines = PAGES[page].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| {header}"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert rows
    return rows


def number(cell):
    """Return a number as the pages write it."""
    power = re.fullmatch(r"(?:([\d.]+)·)?10([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", cell)
    if power:
        return float(power[1] or 1) * 10.0 ** int(power[2].translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")))
    percent = cell.endswith("%")
    value = float(cell.replace("−", "-").replace(" ", "").rstrip("%"))
    return value / 100 if percent else value


def test_the_table_of_settings():
    rows = table("api.md", "setting")
    assert [(row[0], row[1]) for row in rows] == [
        (f"`{name}`", f"`{kind.default!r}`") for name, kind in SETTINGS.items()
    ]
    elsewhere = {(theirs, row[0].strip("`")) for row in rows for theirs in re.findall(r"`(\w+)`", row[3])}
    assert elsewhere == {(theirs, ours) for theirs, (ours, _) in FOREIGN.items()}


CONTEXTS = {  # what an argument needs to have an effect
    "ema_momentum": {"use_ema": True},
    "ema_overwrite_frequency": {"use_ema": True},
    "gamma2": {"centered": True},
    "nesterov": {"momentum": 0.5},
}
OTHER_VALUES = {"learning_rate": 0.5, "lr": 0.5, "weight_decay": 0.25, "momentum": 0.25, "clip_gradient": 0.25}


@pytest.mark.parametrize("name", sorted(functions_of(dialects) - {"refuse"}))
def test_the_table_of_a_dialect(name):
    """It has the framework's arguments and defaults, and each argument does what the table says."""
    dialect = getattr(dialects, name)
    parameters = inspect.signature(dialect).parameters
    rows = table("from_another_framework.md", f"`{name}` | default")
    assert [row[0] for row in rows] == [f"`{parameter}`" for parameter in parameters]
    required = {key: 0.125 for key, parameter in parameters.items() if parameter.default is parameter.empty}
    usual, ours = dialect(**required), set()
    for key, default, meaning in rows:
        given = parameters[key.strip("`")].default
        assert default == ("required" if given is inspect.Parameter.empty else f"`{given!r}`")
        value = {False: True, True: False}[given] if isinstance(given, bool) else OTHER_VALUES.get(key.strip("`"), 0.25)
        changed = required | {key.strip("`"): value}
        changed |= CONTEXTS.get(key.strip("`"), {})
        if meaning.startswith("refused"):
            with pytest.raises(ValueError, match=key.strip("`")):
                dialect(**changed)
            continue
        before = dialect(**{**changed, **required, key.strip("`"): required.get(key.strip("`"), given)})
        moved = {setting for setting, new in dialect(**changed).items() if new != before[setting]}
        said = set(re.findall(r"`(\w+)`", meaning)) & set(SETTINGS)
        assert moved == said if meaning != "no effect" else not moved
        ours |= said
    fixed = {setting for setting, value in usual.items() if setting not in ours and value != SETTINGS[setting].default}
    section = PAGES["from_another_framework.md"].split(f"| `{name}` |")[0].rsplit("\n## ", 1)[1]
    sentence = re.search(r"It fixes ([^.:]*)", section)
    assert fixed == set(re.findall(r"`(\w+)`", sentence[1] if sentence else ""))


def lengths(gradients, **settings):
    """Return v and the move after each step, in units of lr."""
    w, rows = np.zeros(1), []
    opt = rmsfast.RMSProp(w, lr=1.0, eps=0, **settings)
    for g in gradients:
        before = w[0]
        opt.step(np.array([g]))
        rows.append((opt.state[0]["square_avg"][0], w[0] - before))
    return rows


def test_the_table_of_memories():
    for row in table("learn.md", "β | memory 1/(1 − β), in steps"):
        beta, *numbers = map(number, row)
        share = 1 - beta**40
        first = -lengths([7.0], beta=beta)[0][1]
        expected = [1 / (1 - beta), np.log(0.5) / np.log(beta), 1 - beta, share, first]
        assert numbers == pytest.approx(expected, rel=0.01, abs=0.0005)


def test_the_table_of_two_parameters():
    rows = np.array([[number(cell) for cell in row] for row in table("worked_numbers.md", "step | g₁")])
    for gradients, columns in [([0.1, 0.1, 0.1], (1, 2, 3)), ([10.0, -8.0, 12.0], (4, 5, 6))]:
        assert rows[:, columns[0]].tolist() == gradients
        assert rows[:, columns[1:]] == pytest.approx(np.array(lengths(gradients)), abs=0.0005)


def test_the_table_of_a_spike():
    steps = lengths([1.0] * 200 + [1e6] + [1.0] * 300)
    for when, v, length in table("explosion.md", "when | v"):
        k = {"before": -1, "the gradient of 10⁶": 0}.get(when)
        k = int(re.match(r"\d+", when)[0]) if k is None else k
        assert (number(v), -number(length)) == pytest.approx(steps[200 + k], rel=0.03)


@pytest.mark.thread_unsafe(reason="packages that are imported are the process's")
def test_the_tables_of_the_exercise_on_digits():
    """Up to what other roundings of the matrix products do to a training."""
    pytest.importorskip("sklearn")
    page = {"print": lambda *values: None}
    exec(programs_of(PAGES["exercises.md"])[0], page)
    rows = {
        name: (number(loss), number(accuracy))
        for name, loss, accuracy in table("exercises.md", "lr | loss of the last epoch")
    }
    assert [name.split(", from")[0].split(" from")[0] for name in rows] == [
        name.split(" ")[0] for name in page["results"]
    ]
    for (loss, accuracy), (losses, measured) in zip(rows.values(), page["results"].values(), strict=True):
        assert (loss, accuracy) == (pytest.approx(losses[-1], rel=0.3), pytest.approx(measured, abs=0.03))
    for beta, first, last in table("exercises.md", "β, with lr = 0.001 |"):
        losses = page["decays"][float(beta)]
        assert (number(first), number(last)) == (pytest.approx(losses[0], rel=0.1), pytest.approx(losses[-1], rel=0.2))


@pytest.mark.thread_unsafe(reason="the environment is the process's")
def test_the_loader_of_the_exercise_reads_the_format_of_mnist(tmp_path, monkeypatch):
    program = programs_of(PAGES["exercises.md"])[0].split("def train(")[0]
    page = {"print": lambda *values: None}
    exec(program, page)
    images, labels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 9], np.uint8)
    for part in ("train", "t10k"):
        for kind, array in [("images-idx3", images), ("labels-idx1", labels)]:
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    x, y, x_test, y_test = page["load"]()
    assert (x * 255).round().tolist() == images.reshape(2, 12).tolist() == (x_test * 255).round().tolist()
    assert y.tolist() == y_test.tolist() == [7, 9]


def test_the_number_of_home_is_that_of_the_report():
    """The table of `python -m bench --publish`."""
    report = PAGES["performance.md"]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in report.splitlines() if row.startswith("| ")]
    names = next(row for row in rows if "`1x1M`" in row)
    column = names.index("`1x1M`")
    ours = next(row[column] for row in rows if row[0] == "rmsfast" and len(row) == len(names)).strip("*")
    numpy = next(row[column] for row in rows if row[0] == "NumPy textbook")
    said = re.search(
        r"takes \*\*([\d,]+) µs\*\*: ([\d.]+) times as fast as the same two lines of NumPy", PAGES["index.md"]
    )
    assert said[1] == ours
    assert f"({said[2]}×)" in numpy


# ---- The built site ----

SITE = os.environ.get("RMSFAST_SITE")  # where `sphinx-build` wrote it


class Page(HTMLParser):
    """What a page has: the addresses that a browser fetches by itself, those that one can click on, and places."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.links, self.places = set(), set(), {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.places.add(given.get("id"))
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev", "index", "search", "genindex"):
            self.fetched.add(given["href"])
        self.fetched |= {given[name] for name in ("src", "poster", "data") if given.get(name)}
        self.fetched |= {part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()}


@pytest.fixture(scope="module")
def site():
    if SITE is None:
        pytest.skip("RMSFAST_SITE does not say where the site was built")
    folder = Path(SITE).resolve()
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def parsed(site):
    return {name: Page(path.read_text(encoding="utf-8")) for name, path in site.items() if name.endswith(".html")}


def test_a_browser_fetches_nothing_from_elsewhere(site, parsed):
    fetched = {(name, address) for name, page in parsed.items() for address in page.fetched}
    for name, path in site.items():
        if name.endswith((".css", ".svg")):
            text = path.read_text(encoding="utf-8")
            fetched |= {(name, address) for address in re.findall(r"(?:url\(|@import )\s*[\"']?([^\"')\s]+)", text)}
    assert len(fetched) > 100
    assert [
        where for where in sorted(fetched) if urlsplit(where[1]).scheme not in ("", "data") or where[1][:2] == "//"
    ] == []


def test_every_link_inside_of_the_site_leads_somewhere(site, parsed):
    broken = []
    for name, page in parsed.items():
        for address in page.links | page.fetched:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = os.path.normpath(Path(name).parent / unquote(parts.path)) if parts.path else name
            if parts.path.endswith("/"):  # a folder, of which a server shows this
                target = os.path.normpath(Path(target) / "index.html")
            if target not in site or (target in parsed and unquote(parts.fragment) not in parsed[target].places):
                broken.append((name, address))
    assert broken == []


def test_every_public_name_can_be_looked_up(site):
    """In the inventory, which the search and other projects' sites use, methods included."""
    header, _, compressed = site["objects.inv"].read_bytes().partition(b"zlib.\n")
    assert header.startswith(b"# Sphinx inventory version 2")
    found = {line.split(" ", 1)[0] for line in zlib.decompress(compressed).decode().splitlines()}
    methods = {f"rmsfast.RMSProp.{name}" for name in members_of(rmsfast.RMSProp) - set(SETTINGS)}
    assert (public_names() | methods) - found == set()


def test_the_gallery_shows_pictures_and_times(site):
    pages = [name for name in site if re.fullmatch(r"gallery/(?!index)\w+\.html", name)]
    assert len(pages) >= 7
    for name in pages:
        text = site[name].read_text(encoding="utf-8")
        assert re.search(r"It took \d+\.\d seconds and printed", text), name
        assert f"_images/{Path(name).stem}.png" in text


def test_what_a_language_model_reads(site):
    listed = site["llms.txt"].read_text(encoding="utf-8")
    named = set(re.findall(r"_sources/(\w+)\.md", listed))
    assert named >= {name.removesuffix(".md") for name in PAGES} - {"README"}
    assert "v \\leftarrow" in site["llms-full.txt"].read_text(encoding="utf-8")


def test_formulas_need_no_script(site):
    text = site["learn.html"].read_text(encoding="utf-8")
    assert text.count("<math") >= 4
    assert "$$" not in text
    assert not [name for name in site if "mathjax" in name.lower()]


@pytest.mark.parametrize(("page", "language"), [("index", "en"), ("zh", "zh"), ("ru", "ru")])
def test_pages_say_which_language_they_are_in(site, page, language):
    assert f'<html class="no-js" lang="{language}"' in site[f"{page}.html"].read_text(encoding="utf-8")
