"""Writing an entry: shard by shard, each whole, durable and committed before the next; then the seal.

The order of one commit: every file of the shard is written under a temporary name, synced and renamed; folders are
synced; then the commit record, with the digests of what was written, is created once. A process that dies at any
point leaves either a committed shard or a missing one.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError, StoreError
from .backend import Backend
from .commit import Commit, commits_digest, sign
from .entry import Entry
from .header import Header, check_metadata, read_header, read_seal, zarr_metadata
from .keys import plain
from .layout import COMPLETE, ENTRY, FORMAT, Shard, Stored, commit_path
from .local import TEMPORARY
from .locks import FileLock
from .shardfile import encode

OLD_TEMPORARY_SECONDS = 3600.0
# lock files per entry for its shards; shards that share one are published one after the other
LEASES = 16


@dataclass
class Work:
    """What a writer, or workers on its behalf, have written so far."""

    rows: int = 0
    bytes: int = 0


class Writer:
    """Writes one entry. From `Store.writer`, which has the right to build it, or `Store.join` in a worker process.

    complete: it is sealed already, and `seal()` just opens it.
    """

    def __init__(self, backend: Backend, header: Header, in_use: FileLock | None = None):
        self.backend, self.header, self._in_use = backend, header, in_use
        self._base = header.base
        self.key, self.kind, self.grid = header.key, header.kind, header.grid
        self.complete = backend.exists(f"{self._base}/{COMPLETE}")
        self.work = Work()

    def committed(self, shard: Shard) -> bool:
        """Whether the shard is durable already."""
        return self.backend.exists(f"{self._base}/{commit_path(shard.index)}")

    def todo(self) -> Iterator[Shard]:
        """The shards that are not committed, in order, each checked when its turn comes."""
        if not self.complete:
            yield from (shard for shard in self.grid if not self.committed(shard))

    @property
    def missing(self) -> int:
        """How many shards are not committed."""
        if self.complete:
            return 0
        committed = set(self.backend.list(f"{self._base}/commits"))
        return sum(commit_path(shard.index).rpartition("/")[2] not in committed for shard in self.grid)

    def write(self, shard: Shard, arrays: Mapping[str, np.ndarray]) -> Commit | None:
        """Commit one shard: all its rows of all arrays, durable when this returns.

        arrays: name -> [rows of the shard, ...] in exactly the spec's dtype; bfloat16 as ml_dtypes.bfloat16.
        Returns the commit; None when another worker has committed the same shard, whose rows are kept.
        Raises DataError for a wrong name, shape or dtype, without writing anything.
        """
        shard = self.header.grid.shard(shard.index)
        rows = self._checked(shard, arrays)
        where = f"{self._base}/{commit_path(shard.index)}"
        if self.complete or self.backend.exists(where):
            return None
        with self._lease(shard) as alone:
            if self.backend.exists(where):
                return None
            pieces = {
                f"{self._base}/{path}": encode(self.header.stored[name], shard.index, rows[name])
                for name, path in self.header.shard_files(shard.index).items()
            }
            published = self.backend.publish(pieces, once=not alone)
            written = {path.removeprefix(f"{self._base}/"): file for path, file in published.items()}
            commit = Commit(self.key, shard, written)
            won = self.backend.create(where, commit.to_bytes())
        if not won:
            return None
        self.work.rows += len(shard)
        self.work.bytes += commit.bytes
        return commit

    @contextlib.contextmanager
    def _lease(self, shard: Shard) -> Iterator[bool]:
        """Wait until no other live worker publishes this shard. Yields whether that is certain: without locks, files
        are published once and the second worker keeps those of the first."""
        if self.backend.remote:
            yield False
            return
        lock = FileLock(self.backend.local(f"{self._base}/leases/{shard.index % LEASES:02d}"))
        try:
            while not lock.try_exclusive():
                time.sleep(0.005)
            yield lock.works
        finally:
            lock.release()

    def _checked(self, shard: Shard, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = self.header.stored
        if set(arrays) != set(wanted):
            raise DataError(
                f"A shard of this {self.kind} has arrays {', '.join(wanted)}; given: {', '.join(arrays)}.",
                "Give every array of the entry, under its name.",
            )
        return {name: _checked_rows(stored, shard, arrays[name]) for name, stored in wanted.items()}

    def seal(self, about: Mapping[str, Any] | None = None) -> Entry:
        """Declare the entry complete and open it. about: added to the entry's own `about`.

        Raises StoreError when shards are missing. A sealed entry is just opened.
        """
        if not self.complete:
            records = []
            for shard in self.grid:
                where = f"{self._base}/{commit_path(shard.index)}"
                try:
                    data = self.backend.read(where)
                except FileNotFoundError:
                    raise StoreError(
                        f"{self.missing} of {self.grid.count} shards of this {self.kind} are not written, "
                        f"the first is shard {shard.index}.",
                        "Write every shard of todo() before seal().",
                    ) from None
                Commit.from_bytes(data, self.key, shard, self.header.shard_paths(shard), where)
                records.append(data)
            seal = {
                "format": FORMAT,
                "key": self.key,
                "entry": self.header.digest,
                "commits": commits_digest(records),
                "about": plain(about or {}, "about", nan=True),
                "sealed": time.time(),
            }
            self.backend.create(f"{self._base}/{COMPLETE}", sign(seal))
            self.complete = True
        return Entry.open(self.backend, self.kind, self.key)

    def close(self) -> None:
        if self._in_use is not None:
            self._in_use.release()


def as_array(values: Any, name: str) -> np.ndarray:
    """The values as an array. Raises DataError when they form none."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name!r} is not an array: {error}.", "Give rows of one shape.") from error


def _checked_rows(stored: Stored, shard: Shard, rows: Any) -> np.ndarray:
    """The rows as an array of exactly the stored dtype and shape. Raises DataError: values are never cast."""
    rows = as_array(rows, stored.name)
    spec = stored.spec
    shape = spec.shape if not spec.shape else (stored.rows_in(shard.index), *spec.shape[1:])
    if rows.dtype.newbyteorder("=") != spec.dtype:
        raise DataError(
            f"{stored.name!r} is stored as {spec.dtype.name}; the rows given are {rows.dtype.name}.",
            f"If the values fit, convert them: .astype({spec.dtype.name!r}).",
        )
    if rows.shape != shape:
        raise DataError(
            f"Shard {shard.index} of {stored.name!r} has shape {shape}; the rows given have shape {rows.shape}.",
            "Give rows shard.start to shard.stop, no more and no fewer.",
        )
    return rows


def create_or_resume(backend: Backend, header: Header) -> Header:
    """Make the entry's folder, metadata and header durable, or read those that exist.

    Raises StoreError when the same inputs were stored with other arrays, CorruptEntry when what exists is damaged.
    """
    base = header.base
    if not backend.exists(f"{base}/{ENTRY}"):
        metadata = zarr_metadata(header.arrays, header.grid)
        published = backend.publish({f"{base}/{path}": [content] for path, content in metadata.items()})
        digests = {path.removeprefix(f"{base}/"): file for path, file in published.items()}
        backend.make_folder(f"{base}/commits")
        backend.make_folder(f"{base}/leases")
        backend.create(f"{base}/{ENTRY}", replace(header, metadata=digests).to_bytes())
    found = read_header(backend, header.kind, header.key)
    if dict(found.arrays) != dict(header.arrays):
        differing = [n for n in {**found.arrays, **header.arrays} if found.arrays.get(n) != header.arrays.get(n)]
        raise StoreError(
            f"The same inputs were stored with other arrays: {', '.join(map(repr, differing))} differ "
            f"({_shapes(found, differing)} stored, {_shapes(header, differing)} given).",
            "Whatever decides shapes, names and dtypes belongs in the inputs; or remove the old entry: "
            f"`whence cache rm {header.key[:12]}`.",
        )
    check_metadata(backend, found)
    return found


def _shapes(header: Header, names: list[str]) -> str:
    specs = [header.arrays.get(name) for name in names]
    return ", ".join("none" if s is None else f"{list(s.shape)} {s.dtype.name}" for s in specs)


def sweep(backend: Backend, folder: str, alone: bool) -> None:
    """Delete temporary files below a folder that dead writers left; unless `alone`, when other writers may live, only
    those older than an hour."""
    for path, _ in list(backend.walk(folder)):
        if path.rpartition("/")[2].startswith(TEMPORARY):
            with contextlib.suppress(FileNotFoundError):
                if alone or time.time() - backend.used(path) > OLD_TEMPORARY_SECONDS:
                    backend.remove(path)


def open_writer(backend: Backend, kind: str, key: str, in_use: FileLock | None = None) -> Writer:
    """A writer for an entry whose header exists. Raises NotCached when it does not."""
    header = read_header(backend, kind, key)
    read_seal(backend, header)
    return Writer(backend, header, in_use)
