"""The help screen of a command: usage, an example, its common options first, and the others under headings.

Options are the fields of the command's dataclass. The text of an option is the string below its field; the heading of
an inherited one is the first sentence of the class that declares it.
"""

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, Literal

import tyro

COMMON = (
    "model", "models", "data", "sites", "at", "prompt", "completion", "queries", "method", "methods", "set", "document",
    "forget", "scale", "network", "builder", "size", "k", "per_class", "outer", "top", "out",
)  # fmt: skip
LAST = ("device", "store", "json")  # of the common options
FEW = 8  # options of a command's own that are all common
POSITIONAL = typing.get_args(tyro.conf.Positional[str])[1]


def help_screen(command: type[Any], program: str, width: int | None = None) -> str:
    """What `whence GROUP COMMAND --help` prints.

    Args:
        command: the dataclass of the command.
        program: how it is called.
        width: characters in a line; by default the terminal's, at most 110.
    """
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 110)
    texts, owner = _texts(command), _owners(command)
    fields = {field.name: field for field in dataclasses.fields(command) if field.init}
    hints = typing.get_type_hints(command, include_extras=True)
    first = [name for name in fields if POSITIONAL in typing.get_args(hints[name])]
    own = [name for name in fields if owner[name] is command and name not in first]
    few = [n for n in own if len(own) <= FEW and n not in (*COMMON, *LAST)]
    common = [*first, *(n for n in (*COMMON, *few, *LAST) if n in fields and n not in first)]
    usage = " ".join([f"usage: {program}", *(_called(n, hints[n], first, fields[n]) for n in first), "[options]"])
    lines = [usage, "", *_prose(inspect.cleandoc(command.__doc__ or ""), width)]
    sections = {"Common options" if len(common) < len(fields) else "Options": common}
    for name in sorted(fields, key=lambda name: owner[name] is not command):  # the command's own come first
        if name not in common:
            sections.setdefault(_heading(command, owner[name]), []).append(name)
    for heading, names in sections.items():
        lines += ["", heading]
        for name in names:
            flag = _called(name, hints[name], first, fields[name])
            text = " ".join(texts.get(name, "").split()) + _default(fields[name])
            head = f"  {flag.ljust(24)}"
            if len(flag) > 23:
                lines.append(f"  {flag}")
                head = " " * 26
            lines += textwrap.wrap(text, width, initial_indent=head, subsequent_indent=" " * 26) or [head.rstrip()]
    return "\n".join(lines)


def flags(command: type[Any]) -> list[str]:
    """Every option of a command as it is typed, without its value."""
    hints = typing.get_type_hints(command, include_extras=True)
    each = [field for field in dataclasses.fields(command) if POSITIONAL not in typing.get_args(hints[field.name])]
    return [_called(field.name, hints[field.name], [], field).split()[0] for field in each]


def _prose(text: str, width: int) -> Iterator[str]:
    """Paragraphs filled, indented ones as they are, without the marks of literal blocks."""
    for number, block in enumerate(text.replace("::\n", ":\n").split("\n\n")):
        if number and not block.startswith("    "):
            yield ""
        yield from block.splitlines() if block.startswith("    ") else textwrap.wrap(block, width)


def _owners(command: type[Any]) -> dict[str, type[Any]]:
    """name -> the class that declares the option."""
    return {name: kind for kind in reversed(command.__mro__) for name in inspect.get_annotations(kind)}


def _texts(command: type[Any]) -> dict[str, str]:
    """name -> the string below its field."""
    found: dict[str, str] = {}
    for kind in reversed(command.__mro__):
        if not inspect.get_annotations(kind):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:]):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = str(text.value.value)  # type: ignore[attr-defined]
    return found


def _heading(command: type[Any], owner: type[Any]) -> str:
    if owner is command:
        return "More options of this command"
    first = inspect.cleandoc(owner.__doc__ or owner.__name__).split("\n\n")[0].replace("\n", " ")
    return re.split(r"[.:](?: |$)", first)[0]


def _called(name: str, hint: Any, positional: list[str], field: Any = None) -> str:
    """An option as it is typed: `--top N`, `--no-loss`, `FOLDER ...`."""
    value = _value(hint)
    if name in positional:
        called = name.upper().replace("_", "-") + (" ..." if value.endswith("...") else "")
        return called if field is None or field.default is dataclasses.MISSING else f"[{called}]"
    flag = "--" + name.replace("_", "-")
    if value == "FLAG":
        return flag.replace("--", "--no-", 1) if field is not None and field.default is True else flag
    return f"{flag} {value}"


def _value(hint: Any) -> str:
    """What stands after an option, from its type."""
    if typing.get_origin(hint) is typing.Annotated:
        return _value(typing.get_args(hint)[0])
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"{_value(typing.get_args(hint)[0])} ..."
    inner = [each for each in typing.get_args(hint) if each is not type(None)]
    if inner:
        return _value(inner[0])
    return {bool: "FLAG", int: "N", float: "X", str: "TEXT"}.get(hint, "PATH")


def _default(field: Any) -> str:
    value = field.default
    if value is dataclasses.MISSING or value is None or isinstance(value, bool) or value in ((), ""):
        return (
            ""
            if value is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
            else " (required)"
        )
    return f" ({' '.join(map(str, value)) if isinstance(value, tuple) else value})"
