"""Bytes that change behind the store's back: eight kinds of damage to data and to every metadata file."""

import random
import shutil
from pathlib import Path

import numpy as np

from whence.cache import Store, errors
from whence.cache.store.maintenance import verify

from .world import build, content, scratch

KINDS = ("flip", "truncate", "zero tail", "garbage", "delete", "swap", "duplicate", "append")
METADATA = ("entry.json", "data.zarr/zarr.json", "data.zarr/x/zarr.json", "commits/*.json", "COMPLETE.json")


def corruption(long: bool) -> str:
    """Every damage is found by verify; a read gives the right bytes or an error, never wrong ones."""
    times, counts = (150 if long else 8), {"data": [0, 0], "metadata": [0, 0]}
    chance = random.Random(4)
    with scratch() as root:
        keys = [build(Store(root / "whole"), seed).key for seed in (0, 1)]
        for kind in KINDS:
            for pattern in ("data.zarr/*/c.*", *METADATA):
                for _ in range(times if pattern.startswith("data.zarr/*") or long else max(2, times // 3)):
                    tally = counts["data" if "c.*" in pattern else "metadata"]
                    tally[0] += 1
                    tally[1] += _one(root, keys, kind, pattern, chance)
    assert all(done == found for done, found in counts.values()), counts
    return (
        f"{counts['data'][0]} faults in data and {counts['metadata'][0]} in metadata, {len(KINDS)} kinds: "
        "all found by verify, no read silently wrong"
    )


def _one(root: Path, keys: list[str], kind: str, pattern: str, chance: random.Random) -> bool:
    copy = root / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root / "whole", copy)
    store = Store(copy)
    entries = [copy / "v1/gradients" / key[:2] / key for key in keys]
    files = sorted(entries[0].glob(pattern))
    file = chance.choice(files)
    _harm(kind, file, files, entries, chance)
    try:
        entry = store.open("gradients", {"seed": 0})
        for name, rows in content(0).items():
            assert entry.read(name).tobytes() == rows.tobytes(), f"{kind} of {file.name}: a read was silently wrong"
            assert entry[name][...].tobytes() == rows.tobytes(), f"{kind} of {file.name}: zarr read wrong bytes"
            picked = np.array([95, 0, 40, 17])
            assert entry.rows(name, picked).tobytes() == rows[picked].tobytes()
        entry.close()
    except errors.StoreError:
        pass
    if file.name == "COMPLETE.json" and kind == "delete":  # an entry without its seal is whole and unsealed
        return not store.has("gradients", {"seed": 0})
    return bool(verify(store, "gradients", keys[0]))


def _harm(kind: str, file: Path, files: list[Path], entries: list[Path], chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    size = len(data)
    if kind == "flip":
        data[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del data[chance.randrange(size) :]
    elif kind == "zero tail":
        start = chance.randrange(size // 2, size - 1)
        data[start:] = bytes(size - start)
    elif kind == "garbage":
        start = chance.randrange(size)
        data[start : start + 64] = chance.randbytes(len(data[start : start + 64]))
    elif kind == "append":
        data += chance.randbytes(chance.randrange(1, 64))
    if kind == "delete":
        file.unlink()
    elif kind in ("swap", "duplicate"):
        same = [f for f in files if f != file and f.parent == file.parent and f.read_bytes() != data]
        other = chance.choice(same) if same else entries[1] / file.relative_to(entries[0])
        if other.read_bytes() == bytes(data):  # Zarr metadata of twins is the same: take another array's
            other = entries[0] / "data.zarr/blocks.0%2Fy/zarr.json"
        theirs = other.read_bytes()
        if kind == "swap":
            other.write_bytes(data)
        file.write_bytes(theirs)
    else:
        file.write_bytes(data)
