"""The document pages: required sections, working imports and links, and tables that equal the registries."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGES = ("cache", "attrib", "decomp", "unlearn", "condense")
FACADES = {
    "cache": "whence.cache",
    "attrib": "whence.attrib",
    "decomp": "whence.decomp",
    "unlearn": "whence.unlearn",
    "corpora": "whence.corpora",
}
# what documents may import from
IMPORTED = {*FACADES.values(), "whence", "whence.inputs", "whence.unlearn.condense", "whence.cache.retrain.replicas"}
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("explanation/*.md"), *DOCS.glob("reference/*.md")])
# section with the table, registry, and where the classes are
REGISTRIES = {
    "attrib": ("Methods", "whence.attrib", "METHODS", "whence.attrib"),
    "decomp": ("Building", "whence.decomp", "BUILDERS", "whence.decomp"),
    "unlearn": ("Methods", "whence.unlearn", "METHODS", "whence.unlearn.methods"),
    "condense": ("Methods", "whence.unlearn.condense", "METHODS", ""),
}


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def code() -> Iterator[tuple[str, str]]:
    """Every piece of Python that a reader pastes, with where it is from."""
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES):
        yield from ((path.name, block) for block in blocks(path.read_text("utf-8")))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        yield from ((path.name, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_page_has_units_limits_and_sources(package: str) -> None:
    page = (DOCS / "explanation" / f"{package}.md").read_text("utf-8")
    heads = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert {"Conventions and units", "When not to trust it"} <= set(heads)
    assert package == "cache" or {"The equation", "The equations"} & set(heads)
    assert "arXiv" in page


@pytest.mark.parametrize("package", REGISTRIES)
def test_the_table_equals_the_registry(package: str) -> None:
    head, module, name, classes = REGISTRIES[package]
    page = (DOCS / f"{package}.md").read_text("utf-8")
    (section,) = re.findall(rf"^## {head}\n(.*?)(?=^## )", page, re.DOTALL | re.MULTILINE)
    table = dict(re.findall(r"^\| `([^`]+)` \| (.*?) \|", section, re.MULTILINE))
    registry = getattr(importlib.import_module(module), name)
    assert set(table) == set(registry)
    if classes:  # the table lists each class beside its name; the page says where the classes are
        assert table == {key: f"`{kind.__name__}`" for key, kind in registry.items()}
        assert all(getattr(importlib.import_module(classes), kind.__name__) is kind for kind in registry.values())


def test_documents_import_from_the_facades_only() -> None:
    below = []
    for name, block in code():
        for node in ast.walk(ast.parse(block)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            below += [(name, m) for m in modules if m.split(".")[0] == "whence" and m not in IMPORTED]
    assert not below


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_names_of_examples_exist(path: Path) -> None:
    for block in blocks(path.read_text("utf-8")):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in FACADES:
                check_name(f"{node.value.id}.{node.attr}")


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_the_names_in_the_text_exist(path: Path) -> None:
    """`attrib.EKFAC`, `decomp.interop.saelens.save`: every name that the prose calls by its package."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(rf"(?<![\w./])((?:{'|'.join(FACADES)})(?:\.[A-Za-z_]+)+)(?![\w/-])", text):
        if not name.endswith((".md", ".py", ".toml", ".yaml")):
            check_name(name)


def check_name(dotted: str) -> None:
    """Resolve `attrib.methods.METHODS` and its like, importing modules on the way."""
    package, *parts = dotted.split(".")
    found, module = importlib.import_module(FACADES[package]), FACADES[package]
    for part in parts:
        module = f"{module}.{part}"
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(module)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8"))
    assert links or path.stem != "README", "no link was found on the page of links"
    for target in links:
        name, _, anchor = target.partition("#")
        assert name.startswith("http") or (path.parent / name).exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", (path.parent / name).read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9]+", "-", head.lower()).strip("-") for head in heads}, target


@pytest.mark.parametrize("package", [*list(FACADES.values())[:4], "whence.unlearn.condense"])
def test_every_public_name_is_documented(package: str) -> None:
    """Each function and class that a façade exports has a docstring of its own."""
    module = importlib.import_module(package)
    public = {n: getattr(module, n) for n in dir(module) if not n.startswith("_") and callable(getattr(module, n))}
    assert public
    assert not [name for name, value in public.items() if not has_docstring(name, value)]


def has_docstring(name: str, value: object) -> bool:
    text = (getattr(value, "__doc__", None) or "").strip()
    return bool(text) and not text.startswith(f"{name}(")  # that is what dataclasses and tuples write by themselves


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_a_how_to_an_explanation_and_a_reference(package: str) -> None:
    """Each links to the two others, and the how-to to what was measured."""
    how, explained, reference = (DOCS / folder / f"{package}.md" for folder in ("", "explanation", "reference"))
    assert f"(explanation/{package}.md)" in how.read_text("utf-8")
    assert f"(reference/{package}.md)" in how.read_text("utf-8")
    assert f"(results.md#{package})" in how.read_text("utf-8")
    for page in (explained, reference):
        assert f"(../{package}.md)" in page.read_text("utf-8")
    assert "automodule:: whence." in reference.read_text("utf-8")


def test_every_result_is_on_the_page_of_results() -> None:
    listed = set(re.findall(r"\(\.\./benchmarks/results/(\w+)\.md\)", (DOCS / "results.md").read_text("utf-8")))
    assert listed == {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.md")}
