"""Keys: what an artefact is computed from, as canonical JSON and its sha256, and how two of them differ.

A key covers the schema, the kind and the inputs: with any of them changed it is another artefact. What may vary
without changing the result (library versions, device, batch size) is provenance and not part of the key.
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
DESCRIBED = 4  # differences that a message names


def plain(value: Any, where: str = "inputs", nan: bool = False) -> Any:
    """The JSON form of a value: mappings, sequences, numbers, text, None, enums, dtypes, paths, numpy values,
    dataclasses (their fields and the name of their class), objects with a form of their own, `__key__()`.

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
            raise UsageError(f"{where} is {value}, which cannot be part of a key.", "Give a finite number.")
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
                raise UsageError(f"{where} has the name {name!r}, which is not text.", "Use text as names.")
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


def differences(wanted: Any, found: Any) -> list[tuple[str, Any, Any]]:
    """(field, wanted, found) for every leaf that differs; None for a field that one side lacks."""
    left, right = dict(leaves(plain(wanted))), dict(leaves(plain(found)))
    names = sorted({*left, *right})
    return [(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)]


def describe(differing: list[tuple[str, Any, Any]]) -> str:
    """One line for people: `model: 1f3a… wanted, 77b0… found; seed: 1 wanted, 2 found`."""
    parts = [f"{name}: {_short(wanted)} wanted, {_short(found)} found" for name, wanted, found in differing[:DESCRIBED]]
    rest = len(differing) - DESCRIBED
    return "; ".join(parts) + (f"; and {rest} more" if rest > 0 else "")


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else text[:16] + "…"
