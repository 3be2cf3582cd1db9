"""The project's own files agree with each other."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS = ("cache", "attrib", "decomp", "unlearn", "whence")  # the first four are whence.cache, ... when imported


def files() -> list[tuple[str, Path]]:
    """Every file of the packages with the name of the package that it is in."""
    found = []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT)
            if path.is_file() and path.suffix != ".pyc" and not any(p.is_symlink() for p in path.parents):
                name = ".".join(inside.parent.parts)
                found.append((name if folder == "whence" else f"whence.{name}", path))
    return found


def test_every_package_is_shipped() -> None:
    """Packages are listed by hand so that tests and notebooks are not; none may be forgotten."""
    there = {package for package, path in files() if path.suffix == ".py"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == there


def test_every_data_file_is_shipped() -> None:
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    others = [(package, path) for package, path in files() if path.suffix != ".py"]
    assert others
    for package, path in others:
        assert "templates/*" in shipped[package.removesuffix(".templates")], path


def test_every_requirement_is_pinned() -> None:
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.!]+", version) for version in pins.values())  # no local suffix
    known = {normal(name) for name in pins}
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in [*PROJECT["project"]["dependencies"], *(r for rs in extras.values() for r in rs)]:
        name = normal(re.match(r"[\w.-]+", requirement)[0])  # type: ignore[index]
        assert name in known | {"whence"}, f"{name} is not in constraints.txt"


def test_every_requirement_is_imported() -> None:
    """A package that nothing imports is not required."""
    own = {
        "google-crc32c": "google_crc32c",
        "pillow": "PIL",
        "scikit-learn": "sklearn",
        "ml-dtypes": "ml_dtypes",
        "dask[array]": "dask",
    }
    loaded = {"dask-jobqueue", "bokeh"}  # by dask.distributed, by name
    imported = set()
    for _, path in files():
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
                imported |= {name.partition(".")[0] for name in names}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["cluster"], *extras["remote"]]
    for requirement in wanted:
        name = re.match(r"[\w.\[\]-]+", requirement)[0]  # type: ignore[index]
        assert name in loaded or own.get(name, name.replace("-", "_")) in imported, f"nothing imports {name}"
