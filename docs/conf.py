"""Sphinx's settings: the pages of this folder, and the reference from the docstrings. ``make docs`` builds the site."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import nbformat  # noqa: E402
from docutils import nodes  # noqa: E402
from jupyter_cache import get_cache  # noqa: E402
from sphinx.errors import ExtensionError  # noqa: E402

import scoresde  # noqa: E402 (from this very tree)

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project, author = "scoresde", "The scoresde developers"
copyright = f"2026, {author}"
version = release = scoresde.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_design"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
exclude_patterns = ["_build"]
# Pages that name a kernel in their first lines are run, and kept by what their cells say; an error ends the build.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "cells")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
# What the kernels inherit: no progress bars, nor the remark that they could be prettier; one thread, as in the tests.
os.environ |= {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found", "OMP_NUM_THREADS": "1"}
# Formulas are drawn by a copy of MathJax within the site. With every extension, glyphs as outlines and no menu it is
# one file that asks for no other.
MATHJAX = "tex-svg-full.js"
mathjax_path = f"mathjax/{MATHJAX}"
mathjax3_config = {"options": {"enableMenu": False}}
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"scoresde {version}"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
nitpicky = False

# Rooms in the order of their floors, with what a reader looks for there.
ROOMS = {
    "diffusions": "Diffusions",
    "models": "Models",
    "solvers": "Solvers and tables",
    "chains": "Discrete chains",
    "sampling": "Sampling",
    "training": "Training",
    "likelihood": "Likelihoods and bounds",
    "nn": "Networks",
    "transforms": "Transforms",
    "data": "Data",
    "metrics": "Metrics",
    "plots": "Plots",
    "errors": "Errors",
}


def list_names() -> dict[str, dict[str, list[str]]]:
    """Return room -> page section -> public names: those of the package itself, then of its public modules."""
    found: dict[str, dict[str, list[str]]] = {room: {} for room in ROOMS}
    modules = {name: value for name in scoresde.__all__ if isinstance(value := getattr(scoresde, name), ModuleType)}
    seen = set()
    for name in scoresde.__all__:
        value = getattr(scoresde, name)
        if not isinstance(value, ModuleType):
            room = value.__module__.split(".")[1]
            found[room].setdefault("scoresde", []).append(name)
            seen.add(id(value))
    for module in modules.values():
        room = module.__name__.split(".")[1]
        own = [n for n in module.__all__ if id(getattr(module, n)) not in seen]
        if own:
            found[room][module.__name__] = own
    return found


def write_reference(folder: Path) -> None:
    """Write a page for each room, and their index."""
    folder.mkdir(exist_ok=True)
    names = list_names()
    for room, title in ROOMS.items():
        parts = [f"# {title}", ""]
        about = inspect.getdoc(importlib.import_module(f"scoresde.{room}")) or ""
        parts += [about.split("\n\n")[0], ""]
        for home, members in names[room].items():
            parts += [f"## `{home}`", ""]
            for name in members:
                value = getattr(importlib.import_module(home), name)
                if isinstance(value, Mapping):
                    parts += [f"`{home}.{name}`: " + ", ".join(f"`{key}`" for key in value), ""]
                    continue
                kind = "autoclass" if inspect.isclass(value) else "autofunction" if callable(value) else "autodata"
                options = ["   :members:", "   :inherited-members: Module, Exception"] if kind == "autoclass" else []
                parts += ["```{eval-rst}", f".. {kind}:: {home}.{name}", *options, "```", ""]
        (folder / f"{room}.md").write_text("\n".join(parts), encoding="utf-8")
    index = ["# Reference", "", "Every public name, from its docstring.", "", "```{toctree}", *ROOMS, "```", ""]
    (folder / "index.md").write_text("\n".join(index), encoding="utf-8")


CODE = re.compile(r"(``[^`]+``|`[^`]+`_?)")
EMPHASIS = re.compile(r"(?<![\w*(])\*(?=\w)([^*\n]{1,60}?)(?<=\w)\*(?![\w*])")


def escape(text: str) -> str:
    """Keep stars and bars of formulas outside of code; what stands between two stars as a word is emphasis."""
    parts = CODE.split(text)
    for k in range(0, len(parts), 2):
        # A star that begins a line is a list's.
        marked = re.sub(r"(?m)^( *)\* ", "\\1\x00 ", EMPHASIS.sub("\x00\\1\x00", parts[k]))
        parts[k] = re.sub(r"([*|])", r"\\\1", marked).replace("\x00", "*")
    return "".join(parts)


# Behind the first of what a docstring raises: further errors, a sentence each.
FURTHER = re.compile(r"(?<=\.)\s+((?:[A-Z]\w*(?:Error|Warning)(?:, )?)+):\s+")


def clean_docstring(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Read docstrings as they are meant: tables of bars and indented formulas stand as written, errors apart."""
    paragraphs = "\n".join(lines).split("\n\n")
    cleaned, before = [], ""
    for paragraph in paragraphs:
        rows = paragraph.split("\n")
        table = all(row.lstrip().startswith("|") for row in rows)
        formula = all(row.startswith("    ") for row in rows) and not re.match(r"\s*(:|\.\.)", before)
        if table or formula:
            literal = paragraph if formula and not table else re.sub("(?m)^", "    ", paragraph)
            cleaned.append(f"::\n\n{literal}")
        else:
            head, raises, tail = escape(paragraph).partition(":raises ")
            cleaned.append(head + raises + FURTHER.sub(r"\n:raises \1: ", tail))
            before = rows[0]
    lines[:] = "\n\n".join(cleaned).split("\n")


def bring_files(app: Sphinx) -> None:
    """Bring into the site the explorer, and MathJax 3 with its licence from the wheel that carries it."""
    package = find_spec("mathjax")
    if package is None or package.origin is None:
        raise ExtensionError("formulas need MathJax: pip install -c constraints.txt django-static-mathjax")
    source = Path(package.origin).parent / "static" / "mathjax"
    folder = Path(app.outdir) / "_static" / "mathjax"
    folder.mkdir(parents=True, exist_ok=True)
    for file in (source / "LICENSE", source / "es5" / MATHJAX):
        shutil.copyfile(file, folder / file.name)
    # Not beside the pages: docs/explorer.md makes an explorer.html there.
    shutil.copyfile(HERE.parent / "scoresde" / "cli" / "explorer.html", folder.parent / "explorer.html")


def finish_notebooks(app: Sphinx, env: object) -> None:
    """Write what cells said into the notebooks that are offered: myst-nb does so where it has just run them."""
    cache = get_cache(app.config.nb_execution_cache_path)
    for path in (Path(app.outdir).parent / "jupyter_execute").rglob("*.ipynb"):
        with suppress(KeyError):  # of a page that is no more
            _, book = cache.merge_match_into_notebook(nbformat.read(path, 4))
            nbformat.write(book, path)


def describe_figures(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Give a figure that a cell drew, and that has no text of its own, the heading under which it stands."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            place = image.parent
            while place.parent is not None and not isinstance(place, nodes.section):
                place = place.parent
            title = place.next_node(nodes.title)
            image["alt"] = f"Figure to the section {title.astext()!r}" if title else f"Figure of the page {name}"


BACK = re.compile(r'(<a class="viewcode-back" href="[^"#]*#)scoresde\.([\w.]+)')


def mend_way_back(app: Sphinx, page: str, template: str, context: dict[str, object], doctree: object) -> None:
    """Lead from a source's page to where each name is documented: viewcode takes one home for all names of a module."""
    if not page.startswith("_modules/scoresde/"):
        return
    documented = {f"{home}.{name}" for room in list_names().values() for home, own in room.items() for name in own}

    def lead(link: re.Match[str]) -> str:
        parts = link[2].split(".")
        if any(".".join(["scoresde", *parts[: k + 1]]) in documented for k in range(len(parts))):
            return link[0]
        for k, name in enumerate(parts):
            homes = [one for one in documented if one.rpartition(".")[2] == name]
            if len(homes) == 1:
                return link[1] + ".".join([homes[0], *parts[k + 1 :]])
        return link[0]

    context["body"] = BACK.sub(lead, str(context["body"]))


def setup(app: Sphinx) -> None:
    """Write the reference before anything is read."""
    write_reference(HERE / "api")
    app.connect("builder-inited", bring_files)
    app.connect("env-updated", finish_notebooks)
    app.connect("doctree-resolved", describe_figures)
    app.connect("html-page-context", mend_way_back)
    app.connect("autodoc-process-docstring", clean_docstring)
