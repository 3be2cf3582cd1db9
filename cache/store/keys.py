"""Keys: what an artefact is computed from, as canonical JSON and its sha256, and how two of them differ.

A key covers the schema, the kind and the inputs: change one and it is another artefact. What may vary without
making another result (library versions, device, batch size) is provenance and stays outside.
"""

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from ..errors import UsageError

SCHEMA = "whence/1"


def plain(value: Any, where: str = "inputs", nan: bool = False) -> Any:
    """The JSON form of a value: mappings, sequences, numbers, text, None, enums, dtypes, paths, numpy values,
    dataclasses (their fields under their class's name), objects that give their own form by `__key__()`.

    Raises UsageError naming the field of any other, and of NaN or infinity unless `nan`.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value, where, nan)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if not nan and not math.isfinite(value):
            raise UsageError(f"{where} is {value}, which has no place in a key.", "Give a finite number.")
        return float(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), where, nan)
    if hasattr(type(value), "__key__"):
        return plain(value.__key__(), where, nan)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
        return {"class": type(value).__name__} | plain(fields, where, nan)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise UsageError(f"{where} has the name {name!r}, which is not text.", "Use text for names.")
        return {name: plain(item, f"{where}.{name}", nan) for name, item in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(item, f"{where}[{at}]", nan) for at, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item, where, nan) for item in value), key=lambda item: json.dumps(item))
    if str(type(value)) == "<class 'torch.dtype'>":
        return str(value).removeprefix("torch.")
    raise UsageError(
        f"{where} is a {type(value).__name__}, which has no canonical form.",
        "Give numbers, text, lists, mappings or dataclasses of them; for data or a model, its fingerprint.",
    )


def canonical(value: Any) -> str:
    """Canonical JSON: sorted names, no spaces, ASCII, finite numbers; equal inputs give equal text.

    >>> canonical({"b": 1, "a": 0.5})
    '{"a":0.5,"b":1}'
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def key_of(kind: str, inputs: Mapping[str, Any]) -> str:
    """The key of an artefact: sha256, in hex, of the canonical JSON of {schema, kind, inputs}.

    >>> key_of("scores", {"a": 1, "b": 2}) == key_of("scores", {"b": 2, "a": 1})
    True
    """
    text = canonical({"schema": SCHEMA, "kind": kind, "inputs": inputs})
    return hashlib.sha256(text.encode()).hexdigest()


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of a JSON value."""
    if isinstance(value, Mapping) and value:
        for field in sorted(value):
            yield from leaves(value[field], f"{name}.{field}" if name else field)
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for at, item in enumerate(value):
            yield from leaves(item, f"{name}[{at}]")
    else:
        yield name, value


def differences(asked: Any, found: Any) -> list[tuple[str, Any, Any]]:
    """(field, asked, found) for every leaf that differs; a field that one side lacks is shown as None."""
    left, right = dict(leaves(plain(asked))), dict(leaves(plain(found)))
    names = sorted({*left, *right})
    return [(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)]


def describe(differing: list[tuple[str, Any, Any]], limit: int = 4) -> str:
    """One line for people: `model: 1f3a… here, 77b0… there; seed: 1 here, 2 there`."""
    parts = [f"{name}: {_short(asked)} asked, {_short(found)} there" for name, asked, found in differing[:limit]]
    rest = len(differing) - limit
    return "; ".join(parts) + (f"; and {rest} more" if rest > 0 else "")


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:16] + "…"
