"""Export of an entry to safetensors or npy files, for programs that do not read the store.

`entry.json` beside the arrays says what they were computed from. Nothing is pickled.
"""

import json
import os
import secrets
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ..errors import StoreError, UsageError
from .entry import Entry
from .layout import BFLOAT16, escape

FORMATS = ("safetensors", "npy")
BLOCK_BYTES = 64 << 20


def export(entry: Entry, folder: str | os.PathLike[str], format: str = "safetensors") -> list[Path]:
    """Write an entry into a new folder, which appears whole or not at all; returns its files.

    Args:
        entry: what is exported.
        folder: the new folder.
        format: "safetensors": one file with all arrays under their names, bfloat16 as such. "npy": one file per array,
            written in blocks; bfloat16 as the uint16 of its bits, in NAME.bfloat16.npy.

    Raises StoreError when the folder exists already, UsageError for another format.
    """
    if format not in FORMATS:
        raise UsageError(f"{format!r} is not an export format.", f"Use {' or '.join(FORMATS)}.")
    target = Path(folder)
    if target.exists():
        raise StoreError(f"{target} exists already.", "Name a new folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        if format == "safetensors":
            tensors = {name: entry.read(name) for name in entry.arrays}
            save_file(tensors, temporary / "arrays.safetensors", {"kind": entry.kind, "key": entry.key})
        else:
            for name in entry.arrays:
                _npy(entry, name, temporary)
        described = {
            "kind": entry.kind,
            "key": entry.key,
            "inputs": entry.inputs,
            "about": entry.about,
            "provenance": entry.provenance,
            "arrays": {name: spec.to_json() for name, spec in entry.arrays.items()},
        }
        (temporary / "entry.json").write_text(json.dumps(described, indent=1, sort_keys=True))
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted(target.iterdir())


def _npy(entry: Entry, name: str, folder: Path) -> None:
    spec = entry.arrays[name]
    bits = spec.dtype == BFLOAT16
    path = folder / f"{escape(name)}{'.bfloat16' if bits else ''}.npy"
    dtype = np.dtype(np.uint16) if bits else spec.dtype
    if not spec.shape or spec.nbytes == 0:
        np.save(path, entry.read(name).view(dtype), allow_pickle=False)
        return
    out = np.lib.format.open_memmap(path, "w+", dtype, spec.shape)
    rows = max(1, BLOCK_BYTES // spec.row_bytes)
    for start in range(0, spec.shape[0], rows):
        stop = min(spec.shape[0], start + rows)
        out[start:stop] = entry.slice(name, start, stop).view(dtype)
    out.flush()
