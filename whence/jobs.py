"""Jobs from TOML: the same dataclass is the Python call, the command's options and the file.

    command = "attrib fit"          or        [[step]]
    model = "demo"                            command = "attrib fit"
    sites = ["*.mlp.*"]                       [[step]]
                                              command = "attrib score"

The command line's parser reads every value, so a file accepts exactly what the options accept.
"""

import contextlib
import dataclasses
import io
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.cache.errors import DataError, UsageError, did_you_mean

from .cli import FORMER_OPTIONS, parse
from .files import read_text
from .help import POSITIONAL
from .packages import command_groups


@dataclass(frozen=True)
class Step:
    """One command of a job, ready to run: its name and its dataclass."""

    command: str
    work: Any


def read_job(path: str | Path) -> list[Step]:
    """The steps of a job file, each checked. Raises UsageError that names a wrong key and the nearest right one."""
    path = Path(path)
    try:
        document = tomllib.loads(read_text(path))
    except DataError as error:
        raise UsageError(error.cause, error.cure) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}.", "Fix this line.") from error
    if "step" not in document:
        return [step_of(document, str(path))]
    alone = sorted(set(document) - {"step"})
    steps = document["step"]
    if alone or not isinstance(steps, list) or not all(isinstance(table, dict) for table in steps):
        where = ", ".join(alone) or "step"
        raise UsageError(f"{path}: {where} is outside the [[step]] tables.", "Move it into a step.")
    return [step_of(table, f"{path}, step {number}") for number, table in enumerate(steps, 1)]


def step_of(table: Mapping[str, Any], where: str) -> Step:
    """One table of options, with `command` among them, as a command ready to run."""
    values = dict(table)
    name = values.pop("command", None)
    if not isinstance(name, str):
        raise UsageError(f"{where}: there is no `command`.", 'Add one, for instance command = "demo".')
    command = find(name, where)
    printed = io.StringIO()
    try:
        arguments = [*_options(command, values, where)]
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return Step(name, parse(command, f"whence {name}", arguments))
    except SystemExit as stop:
        reason = " ".join(word for word in printed.getvalue().split() if word.strip("-─╭╮╰╯│"))
        raise UsageError(
            f"{where}: {reason.partition(' For full helptext')[0]}", f"See `whence {name} --help`."
        ) from stop
    except UsageError as error:
        cause = error.cause if error.cause.startswith(where) else f"{where}: {error.cause}"
        raise UsageError(cause, error.cure) from error


def find(name: str, where: str) -> type[Any]:
    """The dataclass of a command such as "demo" or "cache ls"."""
    known = command_groups()
    names = [g.name if g.single else f"{g.name} {command}" for g in known.values() for command in g.commands]
    names.remove("run")
    if name not in names:
        raise UsageError(f"{where}: there is no command {name!r}.", did_you_mean(name, names, "There are"))
    group, _, rest = name.partition(" ")
    return known[group].load()[rest or group]


def plan(path: str | Path, steps: list[Step]) -> str:
    """The plan as text: every step with all its options, defaults included."""
    lines = [f"{path}: {len(steps)} step{'s' * (len(steps) != 1)}"]
    for number, step in enumerate(steps, 1):
        lines.append(f"  {number}. whence {step.command}")
        lines += [f"       {f.name} = {getattr(step.work, f.name)!r}" for f in dataclasses.fields(step.work)]
    return "\n".join(lines)


def _options(command: type[Any], values: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[str]:
    """`values` as command-line arguments: positional ones first, in the order of the fields."""
    hints = typing.get_type_hints(command, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(command)}
    given = {key.replace("-", "_"): value for key, value in values.items()}
    given = {key if key in fields else FORMER_OPTIONS.get(f"--{key}", key).lstrip("-"): v for key, v in given.items()}
    for key in given:
        if key not in fields:
            raise UsageError(f"{where}: unknown key {prefix}{key!r}.", did_you_mean(key, fields, "It takes"))
    named = [name for name in fields if name in given]
    for name in sorted(named, key=lambda name: not _is_positional(hints[name])):  # an option could swallow them
        value, flag = given[name], f"--{prefix}{name}".replace("_", "-")
        if isinstance(value, Mapping):
            if not dataclasses.is_dataclass(_plain_type(hints[name])):
                raise UsageError(f"{where}: {prefix}{name} cannot be a table.", "Give a value, or a list of values.")
            yield from _options(_plain_type(hints[name]), value, where, f"{name}.")
        elif _is_positional(hints[name]):
            yield from _words(value, where, name, alone=True)
        elif isinstance(value, bool):
            if value != fields[name].default:
                yield flag if value else flag.replace("--", "--no-", 1)
        else:
            words = _words(value, where, name)
            yield from [f"{flag}={words[0]}"] if not isinstance(value, list) and words else [flag, *words]


def _words(value: Any, where: str, name: str, alone: bool = False) -> list[str]:
    """A value, or a list of values, as arguments. alone: no flag stands before them. Raises UsageError for what the
    parser could take for something else."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, (list, Mapping)):
            raise UsageError(f"{where}: {name} has a {type(one).__name__} in it.", "Give plain values.")
        if (alone or isinstance(value, list)) and isinstance(one, str) and one.startswith("-"):
            raise UsageError(f"{where}: {name} has {one!r}, which reads as an option.", "Give values without a dash.")
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _plain_type(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _is_positional(hint: Any) -> bool:
    return POSITIONAL in typing.get_args(hint)
