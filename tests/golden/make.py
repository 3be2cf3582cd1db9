"""Freezes what today's code computes: python -m tests.golden.make FOLDER

Writes keys.json, values.npz and store.zip. Those that lie here were written at commit ef539b1, before the redesign,
and are never written again: a later version is held against them.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tests import conftest  # noqa: F401  the threads of the tests, before torch and jax are there

# isort: split
from whence.cache import Store

from . import artefacts
from .frozen import FILES, KEYS, STORE, VALUES, entry_arrays, shape_of, thinned


def make(folder: Path) -> None:
    if (folder / KEYS).exists():
        raise SystemExit(f"{folder / KEYS} is there already: what is frozen is never written again.")
    if not (artefacts.HERE / "inputs.npz").exists():
        np.savez(artefacts.HERE / "inputs.npz", **artefacts.replayed_weights())  # type: ignore[arg-type]
    rows: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}

    def keep(name: str, kind: str, key: str, stored: bool, inputs: Any, found: dict[str, np.ndarray]) -> None:
        assert name not in rows, name
        shapes = {part: shape_of(array) for part, array in found.items()}
        rows[name] = {"kind": kind, "key": key, "stored": stored, "inputs": inputs, "shapes": shapes}
        values.update({f"{name}|{part}": thinned(array) for part, array in found.items()})

    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "store")
        known: set[str] = set()
        for name, make_one in artefacts.ARTEFACTS.items():
            made = make_one(store)
            stored = made.kind not in ("settings", "values")
            own = entry_arrays(store, made.kind, made.key) if stored else {}
            keep(name, made.kind, made.key, stored, made.inputs, made.values | own)
            new = [(kind, key) for kind, key in store.contents() if key not in known | {made.key}]
            known |= {made.key, *(key for _, key in new)}
            for kind, key in new:
                inputs, found = store.header(kind, key).inputs, entry_arrays(store, kind, key)
                keep(f"{name} + {stage(inputs, kind, rows, name)}", kind, key, True, inputs, found)
        files = Path(place) / FILES
        files.mkdir()
        artefacts.write_files(files)
        pack(folder / STORE, {"": Path(place) / "store", FILES: files})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEYS).write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(folder / VALUES, **values)  # type: ignore[arg-type]
    print(f"{len(rows)} artefacts, {sum(row['stored'] for row in rows.values())} of them in the store")


def stage(inputs: Any, kind: str, rows: dict[str, Any], name: str) -> str:
    """A name for an entry that was made on the way to another."""
    part = next((part for part in ("stage", "what", "outer", "width") if part in inputs), "")
    told = {"": kind, "stage": inputs.get("stage"), "what": inputs.get("what")}.get(part, f"{part} {inputs.get(part)}")
    label, number = told, 2
    while f"{name} + {label}" in rows:
        label, number = f"{told} {number}", number + 1
    return label


def pack(path: Path, folders: dict[str, Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for prefix, folder in folders.items():
            for each in sorted(folder.rglob("*")):
                if each.is_file() and each.name not in ("building", "in-use"):
                    info = zipfile.ZipInfo(str(Path(prefix) / each.relative_to(folder)))
                    info.compress_type = zipfile.ZIP_DEFLATED
                    file.writestr(info, each.read_bytes())


if __name__ == "__main__":
    make(Path(sys.argv[1]))
