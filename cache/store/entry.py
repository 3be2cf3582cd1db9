"""An entry opened for reading. Only committed rows are seen, and every byte is checked before it is used.

`read` gives a whole array, `rows` gathers some through memory maps, `blocks` walks it in order, `batches` shuffles
it for training, `entry[name]` is a read-only zarr array, `to_xarray` a lazy Dataset. An entry that is not sealed
opens with `partial=True`, and its `mask` says which rows are committed.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from ..display import facts, table
from ..errors import CorruptEntry, DataError, UsageError
from .committed import Committed
from .layout import DATA, Stored, fill_value
from .shardfile import rows_in
from .zarrview import CommittedStore

if TYPE_CHECKING:
    import xarray

# bytes that `batches` mixes at once, and bytes of one run of rows
BUFFER_BYTES = 256 << 20
RUN_BYTES = 1 << 20


class Entry(Committed):
    """One artefact, read-only. `Store.open`, `Store.get` and `Writer.seal` return it.

    key, kind, inputs, about, provenance, arrays (name -> ArraySpec), sealed: what it is.
    """

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {list(a.shape)} {a.dtype.name}" for name, a in self.arrays.items())
        return f"Entry({self.kind} {self.key[:12]}{'' if self.sealed else ' (partial)'}: {arrays})"

    def _repr_html_(self) -> str:
        arrays = [
            (name, " × ".join(map(str, a.shape)), a.dtype.name, ", ".join(a.dims or ()), a.nbytes)
            for name, a in self.arrays.items()
        ]
        inputs = [(name, _brief(value)) for name, value in self.inputs.items()]
        about = [(name, _brief(value)) for name, value in {**self.provenance, **self.about}.items()]
        state = "complete" if self.sealed else f"{int(self.mask.sum())} of {len(self.mask)} rows are there"
        shown = facts(f"{self.kind} {self.key[:12]}: {state}", [("computed from", ""), *inputs])
        shown += table(("array", "shape", "type", "axes", "bytes"), arrays) + facts("about", about)
        return shown.html

    def _stored(self, name: str) -> Stored:
        if name not in self.arrays:
            raise UsageError(f"This {self.kind} has no array {name!r}.", f"It has {', '.join(self.arrays)}.")
        return self.header.stored[name]

    def _with_rows(self, name: str) -> Stored:
        stored = self._stored(name)
        if not stored.spec.shape:
            raise UsageError(f"{name!r} is one number and has no rows.", "Use entry.read.")
        return stored

    def _rows(self, stored: Stored, shard: int) -> np.ndarray | None:
        """[chunk, row, ...] of a shard, checked; None when it is not committed."""
        file = self.mapped(stored.file(shard), shard)
        return None if file is None else rows_in(stored, shard, file)

    def read(self, name: str) -> np.ndarray:
        """The whole array, verified, in memory of its own. Rows not committed are NaN (or 0)."""
        stored = self._stored(name)
        out = np.empty(stored.spec.shape, stored.spec.dtype)
        if not stored.spec.shape:
            view = self._rows(stored, 0)
            out[...] = fill_value(stored.spec.dtype) if view is None else view[0, 0]
            return out
        for start, stop in self._runs(stored):
            self._copy(stored, start, stop, out[start:stop])
        return out

    def slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) of an array, verified, in memory of their own."""
        stored = self._stored(name)
        out = np.empty((max(0, stop - start), *stored.row_shape), stored.spec.dtype)
        for low, high in self._runs(stored, start, stop):
            self._copy(stored, low, high, out[low - start : high - start])
        return out

    def blocks(self, name: str, rows: int = 1024) -> Iterator[np.ndarray]:
        """The array in order, `rows` rows at a time (the last block may have fewer)."""
        total = self._stored(name).spec.shape[0]
        for start in range(0, total, rows):
            yield self.slice(name, start, min(total, start + rows))

    def views(self, name: str) -> Iterator[np.ndarray]:
        """The array in order as read-only views of the mapped chunks, about a megabyte each, without a copy.

        Rows not committed are NaN (or 0).
        """
        stored = self._with_rows(name)
        for start, stop in self._runs(stored):
            view = self._rows(stored, start // stored.shard_rows)
            if view is None:
                yield np.full((stop - start, *stored.row_shape), fill_value(stored.spec.dtype))
                continue
            for chunk in view:
                yield chunk[: stop - start]
                start += len(chunk)

    def _runs(self, stored: Stored, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """[start, stop) cut at the ends of shards; nothing for arrays without elements."""
        stop = stored.spec.shape[0] if stop is None else stop
        if stored.empty:
            return
        while start < stop:
            end = min(stop, (start // stored.shard_rows + 1) * stored.shard_rows)
            yield start, end
            start = end

    def _copy(self, stored: Stored, start: int, stop: int, out: np.ndarray) -> None:
        """Copy rows [start, stop), all of one shard, into `out`."""
        shard, first = divmod(start, stored.shard_rows)
        view = self._rows(stored, shard)
        if view is None:
            out[...] = fill_value(stored.spec.dtype)
            return
        last, done = first + stop - start, 0
        while first < last:
            chunk, row = divmod(first, stored.chunk_rows)
            count = min(last - first, stored.chunk_rows - row)
            out[done : done + count] = view[chunk, row : row + count]
            first, done = first + count, done + count

    def rows(self, name: str, ids: Any) -> np.ndarray:
        """The array's rows at these row numbers, in their order, gathered from memory maps.

        ids: integers [k] in [-rows, rows), repeated or not, or a bool mask [rows].
        Raises DataError for a row out of range, and for one that is not committed.
        """
        stored = self._with_rows(name)
        total = stored.spec.shape[0]
        ids = np.asarray(ids)
        if ids.dtype == bool:
            if ids.shape != (total,):
                raise DataError(f"A mask of shape {ids.shape} for {total} rows.", "Give one value per row.")
            ids = np.flatnonzero(ids)
        if ids.size and ids.dtype.kind not in "iu":
            raise DataError(f"{ids.dtype} values cannot be row numbers.", "Give integers.")
        ids = ids.astype(np.int64).reshape(-1)
        ids = np.where(ids < 0, ids + total, ids)
        if ids.size and (ids.min() < 0 or ids.max() >= total):
            raise DataError(f"Row numbers outside 0 to {total - 1}.", "Give row numbers that exist.")
        out = np.empty((len(ids), *stored.row_shape), stored.spec.dtype)
        if stored.empty or not len(ids):
            return out
        shards = ids // stored.shard_rows
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            view = self._rows(stored, int(shard))
            if view is None:
                first = int(shard) * stored.shard_rows
                raise DataError(f"Rows from {first} on are not committed yet.", "Read only the rows of entry.mask.")
            chunk, row = np.divmod(ids[here] - shard * stored.shard_rows, stored.chunk_rows)
            out[here] = view[chunk, row]
        return out

    @cached_property
    def group(self) -> zarr.Group:
        """The entry as a read-only zarr group of its committed, verified shards."""
        return zarr.open_group(CommittedStore(self), mode="r")

    def __getitem__(self, name: str) -> zarr.Array:
        array = self.group[self._stored(name).path.removeprefix(f"{DATA}/")]
        if not isinstance(array, zarr.Array):
            raise CorruptEntry(f"{name!r} is not an array of its Zarr group.", "Run `whence cache verify`.")
        return array

    def to_xarray(self) -> "xarray.Dataset":
        """A lazy Dataset: one variable per array, axes named by its dims, one dask chunk per shard.

        Coordinates come from `about["coords"]`, a mapping from axis name to its values.
        """
        import dask.array
        import xarray

        variables = {}
        for name, spec in self.arrays.items():
            dims = spec.dims or tuple(f"{name}_{axis}" for axis in range(len(spec.shape)))
            stored = self.header.stored[name]
            if spec.shape and not stored.empty:
                chunks = (min(stored.shard_rows, spec.shape[0]), *spec.shape[1:])
                data = dask.array.from_array(self[name], chunks=chunks, name=f"{self.key}-{name}")
            else:
                data = self.read(name)
            variables[name] = (dims, data)
        used = {dim for dims, _ in variables.values() for dim in dims}
        coords = {dim: values for dim, values in self.about.get("coords", {}).items() if dim in used}
        plain = {name: value for name, value in self.about.items() if isinstance(value, (str, int, float))}
        return xarray.Dataset(variables, coords, {"kind": self.kind, "key": self.key} | plain)

    def batches(
        self,
        names: str | Sequence[str] | None = None,
        batch: int = 256,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> Iterator[dict[str, np.ndarray]]:
        """One epoch of {name: [batch, ...]} over the rows, in order or shuffled.

        Single rows in random order would cost a disk dearly. So short runs of rows are chosen in random order, many of
        them are kept in memory at once, and rows are chosen at random from those. Each row comes exactly once, and
        the order depends on the seed alone.

        Args:
            names: which arrays; all by default.
            batch: rows per batch.
            shuffle: whether the order is random.
            seed: of that order.
            drop_last: leave out the last, smaller batch.
            buffer_bytes: how much is mixed at once; rows closer than that in the store may be in one batch, so a larger
                buffer is more random.

        Raises UsageError for an unknown array and for arrays without common rows.
        """
        names = [names] if isinstance(names, str) else list(names or self.arrays)
        specs = [self._stored(name).spec for name in names]
        sizes = {spec.shape[0] if spec.shape else None for spec in specs}
        if len(sizes) != 1 or None in sizes:
            raise UsageError("These arrays have no common rows.", "Batch arrays with the same first axis.")
        if batch < 1:
            raise UsageError(f"A batch of {batch} rows is empty.", "Use one row or more.")
        row_bytes = max(1, sum(spec.row_bytes for spec in specs))
        left: dict[str, np.ndarray] = {}
        for buffer in self._buffers(names, row_bytes, shuffle, seed, buffer_bytes):
            joined = {n: np.concatenate([left[n], buffer[n]]) if left else buffer[n] for n in names}
            count = len(joined[names[0]])
            whole = count - count % batch
            for start in range(0, whole, batch):
                yield {n: joined[n][start : start + batch] for n in names}
            left = {n: joined[n][whole:] for n in names} if whole < count else {}
        if left and not drop_last:
            yield left

    def _buffers(
        self, names: list[str], row_bytes: int, shuffle: bool, seed: int, buffer_bytes: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """The rows in portions of the buffer's size: in order, or runs in random order with their rows mixed."""
        total = self.arrays[names[0]].shape[0]
        run = max(1, min(RUN_BYTES, buffer_bytes // 16) // row_bytes)
        starts = np.arange(0, total, run)
        rng = np.random.default_rng(seed)
        if shuffle:
            starts = rng.permutation(starts)
        runs_kept = max(1, buffer_bytes // (run * row_bytes))
        for first in range(0, len(starts), runs_kept):
            runs = [(int(s), min(total, int(s) + run)) for s in starts[first : first + runs_kept]]
            order = rng.permutation(sum(stop - start for start, stop in runs)) if shuffle else slice(None)
            yield {
                name: np.concatenate([self.slice(name, start, stop) for start, stop in runs])[order] for name in names
            }


def _brief(value: Any) -> str:
    """A value of the header on one line."""
    text = str(value)
    return text if len(text) <= 160 else f"{text[:160]}…"
