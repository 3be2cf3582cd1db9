"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = ("cache", "attrib", "decomp", "unlearn", "whence")


def name_of(folder: Path) -> str:
    """The import name of a folder of the repository: cache/store is whence.cache.store."""
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "whence" else ("whence", *parts))


def test_every_package_is_shipped() -> None:
    """Packages are listed by hand so that tests and notebooks are not shipped; none may be forgotten."""
    there = {name_of(path.parent) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    there = {name for name in there if name.count("whence") == 1}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == there


def test_every_data_file_is_shipped() -> None:
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert path.parent.name == "templates", path
                assert "templates/*" in shipped[name_of(path.parent.parent)], path


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
