"""How the documents are built: Markdown by MyST, the reference from docstrings, warnings as errors (`make docs`)."""

import re
import shutil
from pathlib import Path

project = "Whence"
author = "The Whence authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
root_doc = "README"
myst_heading_anchors = 3  # links to headings are checked
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["toc.not_included"]  # README.md lists the pages
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes are in the text; signatures stay short
html_theme = "alabaster"
html_theme_options = {"description": "Where a model's behaviour comes from", "page_width": "1000px"}
html_show_copyright = False


def setup(app):
    """The tables of benchmarks/results as pages, and a reference that documents each name of this project once."""
    documented, here = set(), Path(__file__).parent
    shutil.rmtree(here / "results", ignore_errors=True)
    shutil.copytree(here.parent / "benchmarks" / "results", here / "results")

    def skip(app, what, name, thing, skip, options):
        if what != "module" or not callable(thing):
            return skip
        own = str(getattr(thing, "__module__", "")).startswith("whence.")
        if not own or id(thing) in documented:
            return True
        documented.add(id(thing))
        return skip

    def linked(app, page, source):
        source[0] = source[0].replace("](../benchmarks/results/", "](results/")

    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon reads the sections
    app.connect("source-read", linked)


def plain_text(app, what, name, thing, options, lines):
    """Docstrings are plain text: bars and stars are themselves, and "name: what it is" lines are a list."""
    out, listed, literal = [], False, False
    for line in lines:
        depth = len(line) - len(line.lstrip())
        literal = line.lstrip().startswith((">>>", "...")) or (literal and bool(line.strip()))
        if literal:
            out.append(line)
            continue
        parts = re.split(r"(`[^`]*`)", line)
        line = "".join(part if n % 2 else re.sub(r"([|*])", r"\\\1", part) for n, part in enumerate(parts))
        if depth == 0 and re.match(r"[a-z_][\w, ]*: \S", line):
            out += [*([""] if not listed else []), f"- {line}"]
            listed = True
        elif listed and line.strip():
            out += [f"  {line.strip()}"] if depth else ["", line]
            listed = depth > 0
        else:
            listed = listed and bool(line.strip())
            out.append(line)
    lines[:] = out
