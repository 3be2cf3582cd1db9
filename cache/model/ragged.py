"""Rows of unequal length that are read as needed: from a file of tokens, a memory-mapped Arrow table, or a spool.

A column of this kind knows where every row begins and ends (16 bytes a row); the numbers themselves stay where they are
until a row is asked for. `Derived` is the same for what people read about a row: it is made when it is shown.
"""

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
from jaxtyping import Int64

SPOOL = (
    1 << 25
)  # bytes of rows that are held in memory before they go to a file; in memory they take five times as much


@runtime_checkable
class Numbers(Protocol):
    """A flat sequence of numbers, of which a slice is read. It is pickled without them where they are in a file."""

    def __getitem__(self, part: slice) -> np.ndarray: ...


@dataclass(frozen=True)
class NumberFile:
    """The numbers of a file, memory-mapped; `keeps` holds on to what deletes the file."""

    path: str
    dtype: str
    offset: int = 0
    keeps: Any = None

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.values[part]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def values(self) -> np.ndarray:
        dtype = np.dtype(self.dtype)
        count = (Path(self.path).stat().st_size - self.offset) // dtype.itemsize
        return np.memmap(self.path, dtype, "r", self.offset, (count,)) if count else np.zeros(0, dtype)

    def __reduce__(self) -> Any:
        return NumberFile, (self.path, self.dtype, self.offset)


class Ragged:
    """Row n is numbers[starts[n] : stops[n]], whole numbers as int64.

    >>> rows = Ragged(np.arange(6, dtype=np.uint16), np.array([0, 4]), np.array([4, 6]))
    >>> rows[1].tolist(), rows.lengths.tolist(), rows.take([1, 0])[1].dtype
    ([4, 5], [4, 2], dtype('int64'))
    """

    def __init__(self, numbers: Numbers, starts: Int64[np.ndarray, " n"], stops: Int64[np.ndarray, " n"]):
        self.numbers, self.starts, self.stops = numbers, starts, stops

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        return self.stops - self.starts

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, row: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, row: slice) -> "Ragged": ...
    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        values = np.asarray(self.numbers[int(self.starts[row]) : int(self.stops[row])])
        return values.astype(np.int64) if values.dtype.kind in "iu" else np.array(values)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: Any) -> "Ragged":
        """These rows; nothing is read."""
        return Ragged(self.numbers, self.starts[rows], self.stops[rows])

    def pieces(self, length: int) -> tuple["Ragged", Int64[np.ndarray, " p"]]:
        """The rows cut at every `length` numbers, those of fewer than two left out, and the row of each piece."""
        counts = -(-self.lengths // length)
        row = np.repeat(np.arange(len(self)), counts)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = self.starts[row] + place * length
        stops = np.minimum(starts + length, self.stops[row])
        kept = stops - starts > 1
        return Ragged(self.numbers, starts[kept], stops[kept]), row[kept]


def of_arrow(column: Any) -> Ragged | None:
    """A column of lists of numbers of an Arrow table, which is not copied; None for a column of anything else."""
    import pyarrow

    kind = column.type
    lists = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    if not lists or not (pyarrow.types.is_integer(kind.value_type) or pyarrow.types.is_floating(kind.value_type)):
        return None
    chunks = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
    if any(chunk.null_count or chunk.values.null_count for chunk in chunks):
        return None
    parts, starts, stops, base = [], [], [], 0
    for chunk in chunks:
        ends = np.asarray(chunk.offsets, np.int64) + base
        starts.append(ends[:-1])
        stops.append(ends[1:])
        parts.append(chunk.values.to_numpy(zero_copy_only=True))
        base += len(parts[-1])
    empty = np.zeros(0, np.int64)
    return Ragged(_Parts(parts), np.concatenate([empty, *starts]), np.concatenate([empty, *stops]))


class _Parts:
    """Arrays end to end, without a copy; a slice lies within one of them."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])

    def __getitem__(self, part: slice) -> np.ndarray:
        at = int(np.searchsorted(self.ends, part.start, "right"))
        if part.start == part.stop:
            return self.parts[0][:0]
        base = int(self.ends[at]) - len(self.parts[at])
        return self.parts[at][part.start - base : part.stop - base]


class Spool:
    """Rows that are appended one by one: held in memory up to `SPOOL` bytes, in a temporary file beyond."""

    def __init__(self, dtype: str):
        self.dtype = np.dtype(dtype)
        self._ends = array("q")
        self._rows: list[np.ndarray] = []
        self._size = 0
        self._file: Any = None
        self._scratch: _Scratch | None = None

    def append(self, row: Any) -> None:
        values = np.asarray(row, self.dtype)
        self._size += len(values)
        self._ends.append(self._size)
        if self._file is not None:
            self._file.write(values.tobytes())
            return
        self._rows.append(values)
        if self._size * self.dtype.itemsize > SPOOL:
            self._scratch = _Scratch()
            self._file = open(self._scratch.path, "wb")  # noqa: SIM115  # closed by `rows`
            for each in self._rows:
                self._file.write(each.tobytes())
            self._rows = []

    def rows(self) -> "Ragged | list[np.ndarray]":
        """The rows, in memory (signed numbers as int64) or read from the file as needed. Nothing is appended after."""
        if self._scratch is None:
            return [row.astype(np.int64) if self.dtype.kind == "i" else row for row in self._rows]
        self._file.close()
        stops = np.array(self._ends, np.int64)
        numbers = NumberFile(self._scratch.path, self.dtype.str, keeps=self._scratch)
        return Ragged(numbers, np.concatenate([[0], stops[:-1]]), stops)


class _Scratch:
    """A temporary file that goes when nothing refers to it any more."""

    def __init__(self) -> None:
        handle, self.path = tempfile.mkstemp(prefix="whence-rows-")
        os.close(handle)
        weakref.finalize(self, os.unlink, self.path)


class Derived(Sequence[Any]):
    """What a function says of every row, when it is asked for."""

    def __init__(self, of: Callable[[int], Any], rows: Int64[np.ndarray, " n"]):
        self.of, self.rows = of, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        return self.take(np.arange(len(self))[row]) if isinstance(row, slice) else self.of(int(self.rows[row]))

    def __iter__(self) -> Iterator[Any]:
        return map(self.of, self.rows.tolist())

    def take(self, rows: Any) -> "Derived":
        return Derived(self.of, self.rows[rows])


class Stacked(Derived):
    """Rows of one shape, each read when it is asked for: images of files."""

    def __init__(
        self, of: Callable[[int], np.ndarray], rows: Int64[np.ndarray, " n"], shape: tuple[int, ...], dtype: Any
    ):
        super().__init__(of, rows)
        self.shape, self.dtype = (len(rows), *shape), np.dtype(dtype)

    def take(self, rows: Any) -> "Stacked":
        return Stacked(self.of, self.rows[rows], self.shape[1:], self.dtype)

    def whole(self) -> np.ndarray:
        """All rows as one array, in memory."""
        return np.stack(list(self)) if len(self) else np.zeros(self.shape, self.dtype)


@dataclass(frozen=True)
class Field:
    """One value of a row that is kept as JSON."""

    rows: Ragged | list[np.ndarray]
    name: str

    def __call__(self, row: int) -> Any:
        return json.loads(self.rows[row].astype(np.uint8).tobytes()).get(self.name)
