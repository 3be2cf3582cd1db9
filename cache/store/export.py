"""Out of the store: an entry as safetensors or npy files, for programs that know nothing of it.

Beside the arrays goes `entry.json`, with what they were computed from. Nothing written here is a pickle.
"""

import json
import os
import secrets
import shutil
from pathlib import Path

import numpy as np

from ..errors import StoreError, UsageError
from .entry import Entry
from .layout import BFLOAT16, escape

FORMATS = ("safetensors", "npy")
BLOCK_BYTES = 64 << 20


def export(entry: Entry, folder: str | os.PathLike[str], format: str = "safetensors") -> list[Path]:
    """Write an entry into a new folder, which appears whole or not at all; returns its files.

    safetensors: one file, arrays under their names, bfloat16 as such. npy: a file an array, streamed; bfloat16
    as the uint16 of its bits, in NAME.bfloat16.npy.
    Raises StoreError when the folder exists already, UsageError for another format.
    """
    if format not in FORMATS:
        raise UsageError(f"{format!r} is no format to export to.", f"Use {' or '.join(FORMATS)}.")
    target = Path(folder)
    if target.exists():
        raise StoreError(f"{target} exists already.", "Name a new folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    making = target.parent / f".{target.name}-{secrets.token_hex(4)}"
    making.mkdir()
    try:
        if format == "safetensors":
            _safetensors(entry, making / "arrays.safetensors")
        else:
            for name in entry.arrays:
                _npy(entry, name, making)
        told = {
            "kind": entry.kind,
            "key": entry.key,
            "inputs": entry.inputs,
            "about": entry.about,
            "provenance": entry.provenance,
            "arrays": {name: spec.to_json() for name, spec in entry.arrays.items()},
        }
        (making / "entry.json").write_text(json.dumps(told, indent=1, sort_keys=True))
        making.rename(target)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return sorted(target.iterdir())


def _safetensors(entry: Entry, path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, spec in entry.arrays.items():
        array = entry.read(name)
        if spec.dtype == BFLOAT16:
            tensors[name] = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(array)
    save_file(tensors, path, metadata={"kind": entry.kind, "key": entry.key})


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
