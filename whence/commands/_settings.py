"""Settings on the command line: `--set name=value` for every kind of method, nested ones as `optimiser.lr=0.01`."""

import ast
import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from whence.cache.errors import UsageError, did_you_mean

from ._shared import Tabled


def with_settings(kind: type, texts: Sequence[str], given: Mapping[str, Any] | None = None) -> Any:
    """An instance of a dataclass: `given` by field, changed by texts of the form name=value.

    Raises UsageError for an unknown name, a text without "=", and a field without a value.
    """
    return kind(**values_of(kind, texts, given or {}))


def values_of(kind: type, texts: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of that instance, by name. Raises UsageError likewise."""
    own = {field.name: field for field in dataclasses.fields(kind)}
    values = dict(given)
    for name, inner, value in split_settings(kind, texts):
        now = values.get(name, _default(own[name]))
        values[name] = _changed(kind, now, inner, value) if inner else _value(value, now, own[name].type)
    missing = [name for name, field in own.items() if name not in values and _default(field) is dataclasses.MISSING]
    if missing:
        raise UsageError(f"{called(kind)} needs a value for {missing[0]!r}.", f"Give --set {missing[0]}=VALUE.")
    return values


def split_settings(kind: type, texts: Sequence[str]) -> list[tuple[str, str, str]]:
    """(name, name within it or "", value) of each text. Raises UsageError for an unknown name, or no "="."""
    own, found = [field.name for field in dataclasses.fields(kind)], []
    for text in texts:
        name, equals, value = text.partition("=")
        name, _, inner = name.strip().replace("-", "_").partition(".")
        if name not in own:
            cure = did_you_mean(name, own, "Its settings are")
            dotted = {each.rpartition(".")[2]: each for each in reversed(list(_dotted(kind)))}
            if not cure.startswith("Did") and (near := difflib.get_close_matches(name, dotted, n=1)):
                cure = f"Did you mean {dotted[near[0]]!r}?"
            raise UsageError(f"--set: {called(kind)} has no setting {name!r}.", cure)
        if not equals:
            raise UsageError(f"--set: {name} has no value.", f"Write {name}=VALUE.")
        found.append((name, inner, value))
    return found


def _dotted(kind: Any, prefix: str = "") -> Iterator[str]:
    """Every setting of a dataclass and of the dataclasses in it, as --set takes it; outer ones first."""
    known = {
        field.name: _default(field) if isinstance(kind, type) else getattr(kind, field.name)
        for field in dataclasses.fields(kind)
    }
    yield from (f"{prefix}{name}" for name in known)
    for name, value in known.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _dotted(value, f"{prefix}{name}.")


def registered(registry: Mapping[str, Any], name: str, texts: Sequence[str] = (), what: str = "method") -> type:
    """The method of a name. Raises UsageError for an unknown name or setting, before anything is computed for it."""
    if name not in registry:
        raise UsageError(f"There is no {what} {name!r}.", did_you_mean(name, registry, "There are"))
    kind = registry[name] if isinstance(registry[name], type) else type(registry[name])
    split_settings(kind, texts)
    return kind


def listed(registry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every registered method with the first line of its docstring and its settings."""
    rows = []
    for name, method in registry.items():
        kind = method if isinstance(method, type) else type(method)
        settings = {field.name: _shown(_default(field)) for field in dataclasses.fields(kind)}
        rows.append({"name": name, "settings": settings, "what": (inspect.getdoc(kind) or "").split("\n\n")[0]})
    return rows


def listing(registry: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """What `listed` finds, and the same as text."""
    rows, lines = listed(registry), []
    for row in rows:
        settings = (f"{name}={value}" if value else name for name, value in row["settings"].items())
        lines.append(f"{row['name']}: {' '.join(row['what'].split())}\n    {', '.join(settings)}")
    return rows, "\n".join(lines)


def methods_command(kind: str, example: str, module: str) -> type:
    """The command that lists the METHODS of a package, which is imported when it runs."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Methods(Tabled):
        def run(self) -> None:
            rows, text = listing(importlib.import_module(module).METHODS)
            table = [row | {"settings": " ".join(f"{n}={v}" for n, v in row["settings"].items())} for row in rows]
            self.show_table(rows, text, table)

    Methods.__doc__ = f"List every {kind} method with its settings.\n\nExample:\n\n    {example}\n"
    return Methods


def called(kind: Any) -> str:
    return str(getattr(kind, "name", kind.__name__))


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _shown(default: Any) -> str:
    return "" if default is dataclasses.MISSING else repr(default)


def _changed(kind: type, value: Any, inner: str, text: str) -> Any:
    """A nested dataclass with one of its fields, `inner`, set from text."""
    name, _, further = inner.partition(".")
    if not dataclasses.is_dataclass(value) or isinstance(value, type) or not hasattr(value, name):
        known = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        cure = did_you_mean(name, known, "There are") if known else "See `methods` for its settings."
        raise UsageError(f"{called(kind)} has no setting {inner!r} there.", cure)
    if further:
        return dataclasses.replace(value, **{name: _changed(kind, getattr(value, name), further, text)})
    return dataclasses.replace(value, **{name: _value(text, getattr(value, name))})


def _value(text: str, now: Any, annotation: Any = None) -> Any:
    """The text itself for a setting that is a text; else a number, True, False, None or a tuple if the text is one."""
    text = text.strip()
    if isinstance(now, str) or annotation in (str, "str"):
        return text
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
