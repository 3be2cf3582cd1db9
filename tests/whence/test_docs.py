"""Every room has its page, every page has the parts it should, and what their examples import is there."""

import ast
import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
ROOMS = ("cache", "attrib", "decomp", "unlearn", "condense")
MODULES = {name: f"whence.{name}" for name in (*ROOMS[:4], "corpora")}  # as the examples call them
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_page_says_units_limits_and_source(room: str) -> None:
    page = (DOCS / f"{room}.md").read_text("utf-8")
    heads = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert {"Conventions and units", "When not to trust it"} <= set(heads)
    assert room == "cache" or "The equation" in heads
    assert "arXiv" in page


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples_import_what_is_there(path: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")
            elif isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in MODULES:
                assert hasattr(importlib.import_module(MODULES[node.value.id]), node.attr), f"{path.name}: {node.attr}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")):
        name, _, anchor = target.partition("#")
        assert name.startswith("http") or (DOCS / name).exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", (DOCS / name).read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9]+", "-", head.lower()).strip("-") for head in heads}, target


@pytest.mark.parametrize("room", [*ROOMS[:4], "unlearn.condense"])
def test_every_public_name_is_documented(room: str) -> None:
    """Functions and classes say what they take and give; a room's index exports nothing that does not."""
    package = importlib.import_module(f"whence.{room}")
    public = {name: value for name, value in vars(package).items() if not name.startswith("_") and callable(value)}
    bare = [name for name, value in public.items() if not _own_words(name, value)]
    assert not bare


def _own_words(name: str, value: object) -> bool:
    text = (getattr(value, "__doc__", None) or "").strip()
    return bool(text) and not text.startswith(f"{name}(")  # what dataclasses and tuples write by themselves
