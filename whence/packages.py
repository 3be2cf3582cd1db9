"""The groups of commands, read from source without importing them: `whence --help` must not wait for torch."""

import ast
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMANDS_DIR = Path(__file__).parent / "commands"
ORDER = ("demo", "cache", "attrib", "decomp", "bank", "unlearn", "condense", "run")


@dataclass(frozen=True)
class CommandGroup:
    """A module of commands. summary: first line of its docstring; commands: their names, in its order."""

    name: str
    summary: str
    commands: tuple[str, ...]

    @property
    def single(self) -> bool:
        """Whether the group is one command of the same name."""
        return self.commands == (self.name,)

    def load(self) -> dict[str, type[Any]]:
        """Import the module and return its commands."""
        return importlib.import_module(f"whence.commands.{self.name}").COMMANDS


def command_groups() -> dict[str, CommandGroup]:
    """Every group by name, in the order of the help."""
    found = {path.stem: path for path in COMMANDS_DIR.glob("*.py") if not path.stem.startswith("_")}
    order = [name for name in ORDER if name in found] + sorted(set(found) - set(ORDER))
    return {name: _read(name, found[name]) for name in order}


def _read(name: str, path: Path) -> CommandGroup:
    tree = ast.parse(path.read_text("utf-8"))
    summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    commands: tuple[str, ...] = ()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if any(getattr(t, "id", "") == "COMMANDS" for t in targets) and isinstance(value, ast.Dict):
            commands = tuple(key.value for key in value.keys if isinstance(key, ast.Constant))  # type: ignore[misc]
    return CommandGroup(name, summary, commands)
