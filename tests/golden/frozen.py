"""What was frozen, and how something new is held against it."""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from whence.cache import Store

HERE = Path(__file__).parent
KEYS, VALUES, STORE = "keys.json", "values.npz", "store.zip"
FILES = "files"  # the folder of STORE that is no part of the store
MOST = 48  # numbers kept of an array
RELATIVE, ABSOLUTE = 1e-4, 1e-4  # the latter times the largest frozen number
SINGULAR = 2e-3  # in place of both, for singular and eigenvectors


class Frozen(NamedTuple):
    """kind, key, inputs: as in `artefacts.Made`; a name with " + " in it is a stage that was kept on the way to the
    artefact before the sign. shapes: name of a value -> [dtype, *shape]. values: some of the numbers of each."""

    kind: str
    key: str
    stored: bool
    inputs: Any
    shapes: Mapping[str, list[Any]]
    values: Mapping[str, np.ndarray]


def thinned(array: np.ndarray) -> np.ndarray:
    """At most MOST numbers, evenly apart."""
    flat = np.asarray(array).ravel()
    if flat.dtype.name in ("bfloat16", "float16"):
        flat = flat.astype(np.float32)
    return flat if len(flat) <= MOST else flat[np.linspace(0, len(flat) - 1, MOST).astype(int)]


def shape_of(array: np.ndarray) -> list[Any]:
    return [array.dtype.name, *array.shape]


def entry_arrays(store: Store, kind: str, key: str) -> dict[str, np.ndarray]:
    """The arrays of an entry, as `stored NAME`."""
    entry = store.get(key)
    assert entry.kind == kind
    return {f"stored {name}": np.asarray(entry.read(name)) for name in entry.arrays}


def load() -> dict[str, Frozen]:
    found = {}
    with np.load(HERE / VALUES) as values:
        for name, row in json.loads((HERE / KEYS).read_text()).items():
            own = {part: values[f"{name}|{part}"] for part in row["shapes"]}
            found[name] = Frozen(**row, values=own)
    return found


def unpack(folder: Path) -> Store:
    """The store that was frozen, in this folder; FILES lies beside its entries."""
    with zipfile.ZipFile(HERE / STORE) as file:
        file.extractall(folder)
    return Store(folder)


def compare(found: Mapping[str, np.ndarray], frozen: Frozen, made_anew: bool) -> None:
    """Assert that these values are the frozen ones, by name; there may be fewer.

    made_anew: computed here, not read: rounding may differ, and so may what is told about the rounded numbers (a
    dictionary's manifest has their hash) and the signs of vectors.
    """
    for name, array in found.items():
        assert name in frozen.values, f"{name} was not frozen"
        array, expected = np.asarray(array), frozen.values[name]
        assert shape_of(array) == frozen.shapes[name], name
        if made_anew and name == "stored manifest":
            continue
        array = thinned(array)
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(array, expected, name)
        elif not made_anew:
            np.testing.assert_allclose(array, expected, 1e-6, 0, err_msg=name)
        else:
            relative, absolute = RELATIVE, ABSOLUTE
            if vectors(name, frozen):
                array, expected = np.abs(array), np.abs(expected)
                relative = absolute = SINGULAR
            largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
            np.testing.assert_allclose(array, expected, relative, absolute * largest + 1e-12, err_msg=name)


def vectors(name: str, frozen: Frozen) -> bool:
    """Whether these are vectors whose signs mean nothing: eigenvectors, or an index's singular vectors."""
    if frozen.kind == "factors":
        return frozen.inputs.get("stage") == "bases" or name.endswith(("/qa", "/qs"))
    return name == "stored rows" and frozen.inputs.get("sketch", {}).get("kind") == "rank"


def former_forward(model: nn.Module) -> str:
    """What stood for the forward pass in a model's fingerprint when the keys were frozen: classes and printed settings,
    so that all else in them can be compared."""
    lines = []
    for name, module in model.named_modules():
        printed = re.sub(r"\b0x[0-9a-fA-F]+", "", module.extra_repr())
        lines.append(f"{name}:{type(module).__name__}({printed})")
    return "\n".join(lines)
