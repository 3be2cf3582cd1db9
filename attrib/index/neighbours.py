"""Finding candidates without reading every row: faiss's inverted lists over the sketches of an index.

Rows are grouped around `lists` centres, and a query compares itself with the rows of its `probes` nearest centres only.
What it finds is approximate; its scores are those of the scan. A scan of a million rows of 2048 numbers reads 4 GB, so
from about there on lists pay. They are read from the store once, and are in memory then: two bytes a number.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import Entry, Store
from whence.cache.errors import ResourceError, UsageError

SAMPLE = 64  # rows per list that centres are fitted to
ROWS = 65536  # added at once


@dataclass(frozen=True)
class Lists:
    """Inverted lists.

    Args:
        lists: how many; by default 4 sqrt(rows).
        probes: lists that a query reads; by default an eighth of them. More find more and read more.
    """

    lists: int | None = None
    probes: int | None = None

    def count(self, rows: int) -> int:
        wanted = round(4 * np.sqrt(rows)) if self.lists is None else self.lists
        return int(np.clip(wanted, 1, max(1, rows // 2)))

    def read(self, rows: int) -> int:
        count = self.count(rows)
        return min(count, max(1, -(-count // 8)) if self.probes is None else self.probes)


def load_faiss() -> Any:
    """The package. Raises ResourceError if it is not installed."""
    if importlib.util.find_spec("faiss") is None:
        raise ResourceError("Inverted lists need faiss, which is not installed.", "pip install 'whence[faiss]'.")
    import faiss

    return faiss


def build_lists(store: Store, entry: Entry, settings: Lists) -> Entry:
    """The lists of an index's rows, opened or built. Memory: the rows, in 16 bits. Raises ResourceError without
    faiss, UsageError for counts below one."""
    faiss = load_faiss()
    if min(settings.lists or 1, settings.probes or 1) < 1:
        raise UsageError("Lists and probes count things.", "Give whole numbers from 1.")
    rows, width = entry.arrays["rows"].shape
    lists = settings.count(rows)
    inputs = {"what": "lists", "index": entry.key, "lists": lists}
    if store.has("gradients", inputs):
        return store.open("gradients", inputs)
    unit = float(np.median(entry.read("scale"))) or 1.0  # keeps 16 bits in their range
    index = faiss.index_factory(width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.min_points_per_centroid = 0, 1
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[: SAMPLE * lists])
    index.train(_values(entry.rows("rows", chosen), entry.rows("scale", chosen), unit))
    for start, part in _blocks(entry, unit):
        index.add_with_ids(part, np.arange(start, start + len(part)))
    arrays = {"lists": faiss.serialize_index(index), "unit": np.array([unit], np.float32)}
    return store.put("gradients", inputs, arrays, about=asdict(settings))


def _blocks(entry: Entry, unit: float) -> Iterator[tuple[int, np.ndarray]]:
    total = entry.arrays["rows"].shape[0]
    for start in range(0, total, ROWS):
        stop = min(start + ROWS, total)
        yield start, _values(entry.slice("rows", start, stop), entry.slice("scale", start, stop), unit)


def _values(rows: np.ndarray, scale: np.ndarray, unit: float) -> Float[np.ndarray, "n w"]:
    return rows.astype(np.float32) * (scale / np.float32(unit))[:, None]


@dataclass(frozen=True)
class Opened:
    """Lists in memory, and the number that their rows were divided by."""

    index: Any
    unit: np.float32

    @staticmethod
    def of(entry: Entry) -> "Opened":
        index = load_faiss().deserialize_index(entry.read("lists"))
        return Opened(index, np.float32(entry.read("unit")[0]))

    def nearest(
        self, queries: Float[np.ndarray, "q w"], candidates: int, probes: int
    ) -> tuple[Int64[np.ndarray, "q c"], Float[np.ndarray, "q c"]]:
        """Rows with the largest inner products, best first, and the products; row -1 and minus infinity where the lists
        that were read have no more."""
        self.index.nprobe = probes
        products, rows = self.index.search(np.ascontiguousarray(queries, np.float32), candidates)
        found = np.where(rows >= 0, products, 0) * self.unit
        return rows, np.where(rows >= 0, found, -np.inf).astype(np.float32)
