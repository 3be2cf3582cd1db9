"""How the golden store was made (`python -m tests.cache.golden.make FOLDER`); kept as it is for ever, so that a
store written by this version stays readable by every later one. A new format gets a new folder beside it."""

import sys

import ml_dtypes
import numpy as np

from whence.cache import ArraySpec, Store

BF16 = np.dtype(ml_dtypes.bfloat16)


def arrays() -> dict[str, np.ndarray]:
    """What the entry `rows` holds: 20 rows in shards of 8, of several dtypes."""
    row = np.arange(20)
    return {
        "blocks.0/mlp in": (row[:, None] * 1.5 + np.arange(4)).astype(np.float32),
        "g": (row[:, None] / 8 - np.arange(3)).astype(BF16),
        "half": (row / 16).astype(np.float16),
        "n": row.astype(np.int64) ** 2,
        "mask": row % 3 == 0,
    }


def whole() -> dict[str, np.ndarray]:
    """What the entry `whole` holds: arrays of their own shapes."""
    return {
        "a": np.arange(6.0).reshape(2, 3),
        "damping": np.float64(0.1),
        "wide": np.arange(2048, dtype=np.uint8).reshape(2, 1024),
        "empty": np.zeros((0, 2), np.float32),
    }


def make(folder: str) -> None:
    store, rows = Store(folder), arrays()
    specs = {name: ArraySpec(array.shape, array.dtype) for name, array in rows.items()}
    inputs = {"model": "golden", "rank": 8, "damping": 0.1, "sites": ["a", "b"]}
    with store.writer("gradients", inputs, specs, 8, about={"title": "gölden"}) as w:
        for shard in w.todo():
            w.write(shard, {name: array[shard.rows] for name, array in rows.items()})
        store.name("rows", w.seal(about={"note": "sealed"}))
    store.name("whole", store.put("factors", inputs, whole(), dims={"a": ("i", "o")}))


if __name__ == "__main__":
    make(sys.argv[1])
