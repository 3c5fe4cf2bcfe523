"""The site: `sphinx-build -W --keep-going docs build/site`. Nothing is fetched, neither to build it nor to read it."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.append(str(DOCS))

import figures
import programs

import rmsfast

# ---- The project ----

project = "rmsfast"
author = "The rmsfast authors"
copyright = "The rmsfast authors, BSD 3-Clause"
version = release = rmsfast.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinx_llms_txt",
    "mathml",
]
exclude_patterns = [
    "generated",
    "playground",
    "**/sg_execution_times.rst",  # sphinx-gallery's own lists of times, whose scripts come from elsewhere
    "sg_execution_times.rst",
]

# ---- Pages ----

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
default_role = "py:obj"  # `RMSProp` in a docstring is a link where there is something to link to

add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # the docstrings say more
numpydoc_show_class_members = False

# ---- Looks ----

html_theme = "furo"
html_title = f"rmsfast {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_baseurl = os.environ.get("RMSFAST_SITE_URL", "")
html_theme_options: dict[str, Any] = {}
if "GITHUB_REPOSITORY" in os.environ:  # set by GitHub on its runners: each page links to its source there, to be edited
    html_theme_options = {
        "source_repository": f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}/",
        "source_branch": "main",
        "source_directory": "docs/",
    }

llms_txt_summary = (
    "rmsfast is a fast, multi-threaded RMSProp optimizer for NumPy and PyTorch on CPUs. This site explains the rule, "
    "how to choose its numbers, and how to use the library."
)
llms_txt_exclude = ["genindex", "search", "gallery/*"]

# ---- The gallery ----

programs.copy_all()
sphinx_gallery_conf = {
    "examples_dirs": "generated/examples",
    "gallery_dirs": "gallery",
    "plot_gallery": False,  # programs.py has run them, each in a process of its own, as a user does
    "within_subsection_order": "programs.in_order",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
}


# ---- What each build does besides ----


def link_to_gallery(app: Any, docname: str, source: list[str]) -> None:
    """Let links to an example's file, which are right in a checkout, lead to its page in the gallery."""
    names = "|".join(programs.TITLES)
    source[0] = re.sub(rf"\]\((?:\.\./)?examples/({names})\.py\)", r"](gallery/\1.rst)", source[0])


def describe(app: Any, name: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Name a page's language, and leave out the link to the source of pages that are made here."""
    if name in ("ru", "zh"):
        context["language"] = name
    if name.startswith("gallery/"):
        context["page_source_suffix"] = ""


def copy_playground(app: Any, error: Exception | None) -> None:
    """Copy the playground as it is: plain files, which are no pages of Sphinx."""
    if error is None and app.tags.has("playground"):
        shutil.copytree(DOCS / "playground", Path(app.outdir) / "playground", dirs_exist_ok=True)


def setup(app: Any) -> None:
    """Draw the figures, and let Sphinx call the functions above."""
    figures.draw_all(DOCS / "generated" / "figures")
    if (DOCS / "playground" / "index.html").exists():
        app.tags.add("playground")
    app.connect("source-read", link_to_gallery)
    app.connect("html-page-context", describe)
    app.connect("build-finished", copy_playground)
