"""A release: all that names its version agrees, and what is not to be published is not."""

import datetime
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rmsfast

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "wheels.yml"
VERSION = rmsfast.__version__
DATE = r"\d{4}-\d{2}-\d{2}"

of_the_checkout = pytest.mark.skipif(not WORKFLOW.exists(), reason="a checkout's files are not here")


def jobs():
    """The text of each job of the release workflow."""
    text = WORKFLOW.read_text(encoding="utf-8").split("\njobs:\n")[1]
    _, *parts = re.split(r"^  (\w+):.*\n", text, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def changelog():
    """The heading of the newest section of the changelog, and its text."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    _, heading, section, *_ = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return heading, section


def test_the_installed_package_has_the_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", VERSION)
    try:
        installed = importlib.metadata.version("rmsfast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("rmsfast is not installed: its sources are tested")
    assert installed == VERSION


def test_the_changelog_has_the_version():
    """As the newest section, with its date; or as what the changes that are not released will be."""
    heading, section = changelog()
    if heading == "[Unreleased]":
        assert f", {VERSION}, will contain:" in section.strip().splitlines()[0]
    else:
        date = re.fullmatch(rf"\[{re.escape(VERSION)}\] - ({DATE})", heading)[1]
        assert datetime.date.fromisoformat(date)


@of_the_checkout
def test_the_citation_has_the_version():
    """And the date, once there is one."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", text, re.MULTILINE) == [VERSION]
    assert re.findall(rf"^date-released: ({DATE})$", text, re.MULTILINE) == re.findall(DATE, changelog()[0])


@of_the_checkout
def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "rmsfast.__version__"}
    assert f'__version__ = "{VERSION}"\n' in (ROOT / "rmsfast" / "__init__.py").read_text(encoding="utf-8")


@of_the_checkout
@pytest.mark.skipif(sys.platform == "win32", reason="runs a step of the workflow that runs on Linux")
@pytest.mark.parametrize(("tag", "published"), [("v" + VERSION, True), ("v0.0.1", False), (VERSION + "rc1", False)])
def test_the_workflow_publishes_the_tag_that_is_the_version(tmp_path, tag, published):
    """Its own check is run, with the source distribution that there would be."""
    assert '    tags: ["v*"]\n' in WORKFLOW.read_text(encoding="utf-8")
    check = re.search(r"name: The tag is the version\n +run: (.*)\n", jobs()["publish"])[1]
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / f"rmsfast-{VERSION}.tar.gz").touch()
    environment = {**os.environ, "GITHUB_REF_NAME": tag}
    result = subprocess.run(["bash", "-c", check], cwd=tmp_path, env=environment, capture_output=True)
    assert (result.returncode == 0) == published


@of_the_checkout
def test_free_threaded_wheels_are_tested_and_not_published():
    """The workflow's one job that builds them declares that they need no GIL, keeps no wheel, and stops nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"cp\d+-\*", selected) for selected in project["tool"]["cibuildwheel"]["build"])
    text = jobs()
    assert [job for job in text if "RMSFAST_FREE_THREADED" in text[job]] == ["free_threaded"]
    assert "upload-artifact" not in text["free_threaded"]
    assert "CIBW_BUILD: cp314t-*\n" in text["free_threaded"]
    assert "needs: [wheels, sdist]\n" in text["publish"]
    for path in (ROOT / ".ci" / "run", *ROOT.glob("tools/*.*")):
        assert "FREE_THREADED" not in path.read_text(encoding="utf-8")


DIRECTIVES = """
import json, runpy, setuptools, Cython.Build
def cythonize(modules, **options):
    print(json.dumps([options["compiler_directives"], options["build_dir"]]))
    return []
Cython.Build.cythonize, setuptools.setup = cythonize, lambda **_: None
runpy.run_path("setup.py")
"""


@of_the_checkout
def test_only_a_switch_declares_that_no_gil_is_needed(tmp_path):
    """What Cython is told is off by default. Its C says so; and a build takes no C of the other kind."""
    pytest.importorskip("setuptools", minversion="77.0.3")
    pytest.importorskip("Cython", minversion="3.1")
    answers = {}
    for switch in None, "0", "1":
        environment = {name: value for name, value in os.environ.items() if name != "RMSFAST_FREE_THREADED"}
        environment |= {} if switch is None else {"RMSFAST_FREE_THREADED": switch}
        command = [sys.executable, "-P", "-c", DIRECTIVES]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        directives, folder = json.loads(result.stdout)
        answers[switch] = directives["freethreading_compatible"], folder
        source = tmp_path / f"module_{switch}.pyx"
        source.write_text("x = 1\n")
        settings = [argument for name, value in directives.items() for argument in ("-X", f"{name}={value}")]
        subprocess.run([sys.executable, "-m", "cython", "-3", *settings, source], check=True)
        text = source.with_suffix(".c").read_text(encoding="utf-8")
        declared = re.findall(r"define __Pyx_FREETHREADING_COMPATIBLE (\w+)\n", text)
        assert declared[-1] == ("Py_MOD_GIL_NOT_USED" if switch == "1" else "Py_MOD_GIL_USED")
    assert answers[None] == answers["0"]
    assert [answers[switch][0] for switch in (None, "1")] == [False, True]
    assert answers["1"][1] != answers[None][1]
