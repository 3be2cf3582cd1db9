"""What commands there are, told without importing any of them: `whence --help` must not wait for torch."""

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMANDS_DIR = Path(__file__).parent / "commands"
ORDER = ("demo", "cache", "attrib", "decomp", "bank", "unlearn", "condense", "run")


@dataclass(frozen=True)
class Room:
    """A module of commands. summary: first line of its docstring; commands: names, in its order."""

    name: str
    summary: str
    commands: tuple[str, ...]

    @property
    def single(self) -> bool:
        """Whether the room is one command of its own name."""
        return self.commands == (self.name,)

    def load(self) -> dict[str, type[Any]]:
        """Import the room and return its commands."""
        return importlib.import_module(f"whence.commands.{self.name}").COMMANDS


def rooms() -> dict[str, Room]:
    """Every room there is, by name, read from the source of its module."""
    found = {path.stem: path for path in COMMANDS_DIR.glob("*.py") if not path.stem.startswith("_")}
    order = [name for name in ORDER if name in found] + sorted(set(found) - set(ORDER))
    return {name: _read(name, found[name]) for name in order}


def _read(name: str, path: Path) -> Room:
    tree = ast.parse(path.read_text("utf-8"))
    summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    commands: tuple[str, ...] = ()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if any(getattr(t, "id", "") == "COMMANDS" for t in targets) and isinstance(value, ast.Dict):
            commands = tuple(key.value for key in value.keys if isinstance(key, ast.Constant))  # type: ignore[misc]
    return Room(name, summary, commands)
