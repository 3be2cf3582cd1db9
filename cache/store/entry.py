"""An entry opened for reading: arrays whose every byte is checked against its commit before it is handed out.

`read` gives a whole array, `rows` gathers some through memory maps, `blocks` walks it in order, `entry[name]` is
a read-only zarr array, `to_xarray` a lazy Dataset. A shard is verified once, when it is first touched. Only what
was committed is ever seen; an unsealed entry opens with `partial=True` and then tells by `mask` which rows are
there.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from ..errors import CorruptEntry, DataError, NotCached, UsageError
from .backend import Files
from .commit import Commit, check, commits_digest
from .header import Header, shard_paths
from .layout import COMPLETE, DATA, ENTRY, ArraySpec, Stored, commit_path, entry_path, fill_value
from .local import digest_bytes
from .locks import FileLock
from .shardfile import rows_in
from .verified import Verified

if TYPE_CHECKING:
    import xarray


class Entry:
    """One artefact, read-only. Made by `Store.open`, `Store.get`, `Store.ref` and `Writer.seal`.

    key, kind, inputs, about, provenance, arrays (name -> ArraySpec), sealed: what it is.
    """

    def __init__(self, files: Files, header: Header, seal: Mapping[str, Any] | None, lock: FileLock | None):
        self._files, self._header, self._lock = files, header, lock
        self._base = entry_path(header.kind, header.key)
        self._commits: dict[int, Commit | None] = {}
        self._verified = Verified(files, self._base)
        self.sealed = seal is not None
        self.kind, self.key, self.inputs = header.kind, header.key, header.inputs
        self.arrays: Mapping[str, ArraySpec] = header.arrays
        self.about: Mapping[str, Any] = {**header.about, **(seal or {}).get("about", {})}
        self.provenance = header.provenance

    @staticmethod
    def open(files: Files, kind: str, key: str, partial: bool = False) -> "Entry":
        """Open an entry by kind and key. Raises NotCached when it is not there, or not sealed and not
        `partial`; CorruptEntry when its header, metadata or seal do not match their digests."""
        base = entry_path(kind, key)
        lock = _hold(files, base)
        try:
            data = files.read(f"{base}/{ENTRY}")
        except FileNotFoundError as error:
            raise NotCached(f"There is no {kind} {key[:12]} here.", "See `whence cache ls`.") from error
        header = Header.from_bytes(data, kind, key, f"{base}/{ENTRY}")
        check_metadata(files, base, header)
        seal = read_seal(files, base, header, data)
        if seal is None and not partial:
            raise NotCached(
                f"The {kind} {key[:12]} is not complete.",
                "Run the job that builds it again: it goes on where it stopped. "
                "Or open it with partial=True and mind its mask.",
            )
        return Entry(files, header, seal, lock)

    def __reduce__(self) -> Any:
        from .store import reopen

        return reopen, (self._files, self.kind, self.key, not self.sealed)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {list(a.shape)} {a.dtype.name}" for name, a in self.arrays.items())
        return f"Entry({self.kind} {self.key[:12]}{'' if self.sealed else ' (partial)'}: {arrays})"

    def _repr_html_(self) -> str:
        from ..display import facts, table

        arrays = [
            (name, " × ".join(map(str, a.shape)), a.dtype.name, ", ".join(a.dims or ()), a.nbytes)
            for name, a in self.arrays.items()
        ]
        inputs = [(name, _brief(value)) for name, value in self.inputs.items()]
        made = [(name, _brief(value)) for name, value in {**self.provenance, **self.about}.items()]
        state = "complete" if self.sealed else f"{int(self.mask.sum())} of {len(self.mask)} rows are there"
        shown = facts(f"{self.kind} {self.key[:12]}: {state}", [("computed from", ""), *inputs])
        shown += table(("array", "shape", "type", "axes", "bytes"), arrays) + facts("beside it", made)
        return shown.html

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return self._header.nbytes

    @property
    def grid(self) -> Any:
        """How its rows are cut: .rows, .shard_rows, .count, iterable of Shards."""
        return self._header.grid

    @property
    def header(self) -> Header:
        return self._header

    def close(self) -> None:
        """Let go of the files; an open entry is never collected."""
        self._verified.close()
        if self._lock is not None:
            self._lock.release()

    # -- what is there

    def commit(self, shard: int) -> Commit | None:
        """The shard's commit record, None when it was never committed. Raises CorruptEntry."""
        if self._commits.get(shard) is None:
            where = f"{self._base}/{commit_path(shard)}"
            at = self._header.grid.shard(shard)
            try:
                data = self._files.read(where)
            except FileNotFoundError:
                if self.sealed:
                    raise CorruptEntry(
                        f"{where} is missing from a sealed entry.", "Run `whence cache repair`."
                    ) from None
                self._commits[shard] = None
            else:
                paths = shard_paths(self._header, at)
                self._commits[shard] = Commit.from_bytes(data, self.key, at, paths, where)
        return self._commits[shard]

    @property
    def mask(self) -> np.ndarray:
        """bool [rows]: the rows that are committed; all of them in a sealed entry."""
        mask = np.zeros(self._header.grid.rows, bool)
        for shard in self._header.grid:
            mask[shard.rows] = self.sealed or self.commit(shard.index) is not None
        return mask

    def verified(self, path: str, shard: int) -> Path | None:
        """Where a file of this shard lies, checked against its commit; None when it is not committed.

        Raises CorruptEntry when its bytes are not those committed.
        """
        commit = self.commit(shard)
        return None if commit is None else self._verified.path(path, commit.files[path])

    # -- reading

    def _stored(self, name: str) -> Stored:
        if name not in self.arrays:
            raise UsageError(f"This {self.kind} has no array {name!r}.", f"It has {', '.join(self.arrays)}.")
        return self._header.stored[name]

    def _rows(self, stored: Stored, shard: int) -> np.ndarray | None:
        """[chunk, row, ...] of a shard, checked; None when it is not committed."""
        commit = self.commit(shard)
        if commit is None:
            return None
        path = stored.file(shard)
        return rows_in(stored, shard, self._verified.bytes(path, commit.files[path]))

    def read(self, name: str) -> np.ndarray:
        """The whole array, verified, in memory of its own. Rows not committed hold NaN (or 0)."""
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
        """The array in order as read-only views of the mapped chunks, about a megabyte each: nothing is copied.

        Rows that are not committed come as arrays of NaN (or 0).
        """
        stored = self._stored(name)
        if not stored.spec.shape:
            raise UsageError(f"{name!r} is one number and has no rows.", "Use entry.read.")
        for start, stop in self._runs(stored):
            view = self._rows(stored, start // stored.shard_rows)
            if view is None:
                yield np.full((stop - start, *stored.row_shape), fill_value(stored.spec.dtype))
                continue
            for chunk in view:
                yield chunk[: stop - start]
                start += len(chunk)

    def _runs(self, stored: Stored, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """[start, stop) cut where shards end; nothing for arrays without elements."""
        stop = stored.spec.shape[0] if stop is None else stop
        if stored.empty:
            return
        while start < stop:
            end = min(stop, (start // stored.shard_rows + 1) * stored.shard_rows)
            yield start, end
            start = end

    def _copy(self, stored: Stored, start: int, stop: int, out: np.ndarray) -> None:
        """Rows [start, stop), which lie in one shard, into `out`."""
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
        stored = self._stored(name)
        if not stored.spec.shape:
            raise UsageError(f"{name!r} is one number and has no rows.", "Use entry.read.")
        total = stored.spec.shape[0]
        ids = np.asarray(ids)
        if ids.dtype == bool:
            if ids.shape != (total,):
                raise DataError(f"A mask of shape {ids.shape} for {total} rows.", "Give one value a row.")
            ids = np.flatnonzero(ids)
        if ids.size and ids.dtype.kind not in "iu":
            raise DataError(f"Rows are numbered, {ids.dtype} is no number of a row.", "Give integers.")
        ids = ids.astype(np.int64).reshape(-1)
        ids = np.where(ids < 0, ids + total, ids)
        if ids.size and (ids.min() < 0 or ids.max() >= total):
            raise DataError(f"Row numbers outside 0 to {total - 1}.", "Ask for rows that exist.")
        out = np.empty((len(ids), *stored.row_shape), stored.spec.dtype)
        if stored.empty or not len(ids):
            return out
        shards = ids // stored.shard_rows
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            view = self._rows(stored, int(shard))
            if view is None:
                raise DataError(f"Rows {shard * stored.shard_rows} and on are not there yet.", "Mind the entry's mask.")
            chunk, row = np.divmod(ids[here] - shard * stored.shard_rows, stored.chunk_rows)
            out[here] = view[chunk, row]
        return out

    @cached_property
    def group(self) -> zarr.Group:
        """The entry as a read-only zarr group that sees committed, verified shards only."""
        from .zarrview import CommittedStore

        return zarr.open_group(CommittedStore(self), mode="r")

    def __getitem__(self, name: str) -> zarr.Array:
        array = self.group[self._stored(name).path.removeprefix(f"{DATA}/")]
        if not isinstance(array, zarr.Array):
            raise CorruptEntry(f"{name!r} is no array in its Zarr group.", "Run `whence cache verify`.")
        return array

    def to_xarray(self) -> "xarray.Dataset":
        """A lazy Dataset: one variable an array, axes named by its dims, one dask chunk a shard.

        Coordinates come from `about["coords"]`, a mapping from axis name to its values.
        """
        from .readers import to_xarray

        return to_xarray(self)

    def torch(self, names: Any = None, **options: Any) -> Any:
        """Batches as torch tensors; see `cache.store.readers.batches` for the options."""
        from .readers import torch_batches

        return torch_batches(self, names, **options)

    def jax(self, names: Any = None, **options: Any) -> Any:
        """Batches as JAX arrays; see `cache.store.readers.batches` for the options."""
        from .readers import jax_batches

        return jax_batches(self, names, **options)


def _brief(value: Any, most: int = 160) -> str:
    """A value of the header on one line."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}…"


def _hold(files: Files, base: str) -> FileLock | None:
    """A shared lock that keeps the entry from being collected while it is open."""
    if files.remote:
        return None
    try:
        lock = FileLock(files.local(f"{base}/in-use"))
        if lock.path.exists() and not lock.try_shared():
            raise NotCached("The entry is being collected right now.", "Build it again.")
        return lock
    except OSError:
        return None


def check_metadata(files: Files, base: str, header: Header) -> None:
    """Raise CorruptEntry unless every Zarr metadata file is the one that the header vouches for."""
    for path in header.metadata:
        problem = metadata_problem(files, base, header, path)
        if problem:
            raise CorruptEntry(f"{base}/{path} {problem}.", "Run `whence cache repair`.")


def metadata_problem(files: Files, base: str, header: Header, path: str) -> str:
    """What is wrong with one Zarr metadata file; empty when nothing is."""
    try:
        found = digest_bytes(files.read(f"{base}/{path}"))
    except FileNotFoundError:
        return "is missing"
    return "" if found == header.metadata[path] else "is not what was written"


def read_seal(files: Files, base: str, header: Header, header_bytes: bytes) -> dict[str, Any] | None:
    """The seal, None when there is none. Raises CorruptEntry when it is not this entry's."""
    where = f"{base}/{COMPLETE}"
    try:
        seal = check(files.read(where), where)
    except FileNotFoundError:
        return None
    if (seal.get("key"), seal.get("entry")) != (header.key, digest_bytes(header_bytes).xxh3_128):
        raise CorruptEntry(f"{where} seals another entry.", "Run `whence cache repair`.")
    return seal


def check_seal(files: Files, base: str, header: Header, seal: Mapping[str, Any]) -> None:
    """Raise CorruptEntry unless the seal's digest is that of the commits that lie there."""
    records = [files.read(f"{base}/{commit_path(shard.index)}") for shard in header.grid]
    if commits_digest(records) != seal.get("commits"):
        raise CorruptEntry(f"{base}: the commits are not the sealed ones.", "Run `whence cache repair`.")
