"""Writing an entry: shard by shard, each whole, durable and committed before the next; then the seal.

The order of one commit: every file of the shard is written under a temporary name, synced and renamed; folders
are synced; then the commit record, which holds the digests of what was written, is created once. A process that
dies anywhere leaves either a committed shard or a shard that is still to do.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError, NotCached, StoreError
from .backend import Files
from .commit import Commit, commits_digest, sign
from .entry import Entry, check_metadata, read_seal
from .header import Header, shard_paths, zarr_metadata
from .keys import plain
from .layout import COMPLETE, ENTRY, FORMAT, Shard, Stored, commit_path, entry_path
from .local import TEMPORARY, digest_bytes
from .locks import FileLock
from .shardfile import encode

OLD_TEMPORARY_SECONDS = 3600.0
# lock files an entry has for its shards; shards that share one are published one after the other
LEASES = 16


@dataclass
class Work:
    """What a writer, or workers on its behalf, have written so far."""

    rows: int = 0
    bytes: int = 0


class Writer:
    """Writes one entry. Made by `Store.writer` (which holds the right to build it) or, in a worker process, by
    `Store.join`.

    complete: it is sealed already; there is nothing to do but `seal()`, which then just opens it.
    """

    def __init__(self, files: Files, header: Header, in_use: FileLock | None = None):
        self._files, self._header, self._in_use = files, header, in_use
        self._base = entry_path(header.kind, header.key)
        self.key, self.kind, self.grid = header.key, header.kind, header.grid
        self.complete = files.exists(f"{self._base}/{COMPLETE}")
        self.work = Work()

    @property
    def header(self) -> Header:
        return self._header

    @property
    def files(self) -> Files:
        return self._files

    def committed(self, shard: Shard) -> bool:
        """Whether the shard is durable already."""
        return self._files.exists(f"{self._base}/{commit_path(shard.index)}")

    def todo(self) -> Iterator[Shard]:
        """The shards that are not committed, in order, each looked up when its turn comes."""
        if not self.complete:
            yield from (shard for shard in self.grid if not self.committed(shard))

    @property
    def missing(self) -> int:
        """How many shards are still to do."""
        if self.complete:
            return 0
        committed = set(self._files.list(f"{self._base}/commits"))
        return sum(commit_path(shard.index).rpartition("/")[2] not in committed for shard in self.grid)

    def write(self, shard: Shard, arrays: Mapping[str, np.ndarray]) -> Commit | None:
        """Commit one shard: all its rows of all arrays, durable when this returns.

        arrays: name -> [rows of the shard, ...] in exactly the spec's dtype; bfloat16 as ml_dtypes.bfloat16.
        Returns the commit; None when another worker had committed the same shard, whose rows then stand.
        Raises DataError for a wrong name, shape or dtype, and nothing is written.
        """
        shard = self._header.grid.shard(shard.index)
        rows = self._checked(shard, arrays)
        where = f"{self._base}/{commit_path(shard.index)}"
        if self.complete or self._files.exists(where):
            return None
        with self._lease(shard) as alone:
            if self._files.exists(where):
                return None
            pieces = {
                f"{self._base}/{path}": encode(self._header.stored[name], shard.index, rows[name])
                for name, path in self._header.shard_files(shard.index).items()
            }
            published = self._files.publish(pieces, once=not alone)
            written = {path.removeprefix(f"{self._base}/"): file for path, file in published.items()}
            commit = Commit(self.key, shard, written)
            won = self._files.create(where, commit.to_bytes())
        if not won:
            return None
        self.work.rows += len(shard)
        self.work.bytes += commit.bytes
        return commit

    @contextlib.contextmanager
    def _lease(self, shard: Shard) -> Iterator[bool]:
        """Wait until no other live worker publishes this shard. Yields whether that is certain: where there are
        no locks, files are published once and whoever comes second takes what lies there."""
        if self._files.remote:
            yield False
            return
        lock = FileLock(self._files.local(f"{self._base}/leases/{shard.index % LEASES:02d}"))
        try:
            while not lock.try_exclusive():
                time.sleep(0.005)
            yield lock.works
        finally:
            lock.release()

    def _checked(self, shard: Shard, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = self._header.stored
        if set(arrays) != set(wanted):
            raise DataError(
                f"A shard of this {self.kind} has arrays {', '.join(wanted)}; given: {', '.join(arrays)}.",
                "Give every array of the entry, under its name.",
            )
        return {name: _checked_rows(stored, shard, arrays[name]) for name, stored in wanted.items()}

    def seal(self, about: Mapping[str, Any] | None = None) -> Entry:
        """Declare the entry complete and open it. about: more to tell people, found while computing.

        Raises StoreError when shards are missing. Sealing twice is opening twice.
        """
        if not self.complete:
            records = []
            for shard in self.grid:
                where = f"{self._base}/{commit_path(shard.index)}"
                try:
                    data = self._files.read(where)
                except FileNotFoundError:
                    raise StoreError(
                        f"{self.missing} of {self.grid.count} shards of this {self.kind} are not written, "
                        f"the first is shard {shard.index}.",
                        "Write every shard of todo() before seal().",
                    ) from None
                Commit.from_bytes(data, self.key, shard, shard_paths(self._header, shard), where)
                records.append(data)
            seal = {
                "format": FORMAT,
                "key": self.key,
                "entry": digest_bytes(self._files.read(f"{self._base}/{ENTRY}")).xxh3_128,
                "commits": commits_digest(records),
                "about": plain(about or {}, "about", nan=True),
                "sealed": time.time(),
            }
            self._files.create(f"{self._base}/{COMPLETE}", sign(seal))
            self.complete = True
        return Entry.open(self._files, self.kind, self.key)

    def close(self) -> None:
        if self._in_use is not None:
            self._in_use.release()


def as_array(values: Any, name: str) -> np.ndarray:
    """The values as an array. Raises DataError where they form none."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name!r} was given what forms no array: {error}.", "Give rows of one shape.") from error


def _checked_rows(stored: Stored, shard: Shard, rows: Any) -> np.ndarray:
    """The rows as an array of exactly the stored dtype and shape. Raises DataError: nothing is ever cast."""
    rows = as_array(rows, stored.name)
    spec = stored.spec
    shape = spec.shape if not spec.shape else (stored.rows_in(shard.index), *spec.shape[1:])
    if rows.dtype.newbyteorder("=") != spec.dtype:
        raise DataError(
            f"{stored.name!r} is stored as {spec.dtype.name} and was given {rows.dtype.name}.",
            f"Convert it where the values are known to fit: .astype({spec.dtype.name!r}).",
        )
    if rows.shape != shape:
        raise DataError(
            f"Shard {shard.index} of {stored.name!r} has shape {shape} and was given {rows.shape}.",
            "Give rows shard.start to shard.stop, no more and no fewer.",
        )
    return rows


def create_or_resume(files: Files, header: Header) -> Header:
    """Make the entry's folder, metadata and header durable, or find those that lie there.

    Raises StoreError when the same inputs were written with other arrays, CorruptEntry when what lies there is
    damaged.
    """
    base = entry_path(header.kind, header.key)
    try:
        data = files.read(f"{base}/{ENTRY}")
    except FileNotFoundError:
        metadata = zarr_metadata(header.arrays, header.grid)
        published = files.publish({f"{base}/{path}": [content] for path, content in metadata.items()})
        vouched = {path.removeprefix(f"{base}/"): file for path, file in published.items()}
        files.make_folder(f"{base}/commits")
        files.make_folder(f"{base}/leases")
        files.create(f"{base}/{ENTRY}", replace(header, metadata=vouched).to_bytes())
        data = files.read(f"{base}/{ENTRY}")
    found = Header.from_bytes(data, header.kind, header.key, f"{base}/{ENTRY}")
    if dict(found.arrays) != dict(header.arrays):
        differing = [n for n in {**found.arrays, **header.arrays} if found.arrays.get(n) != header.arrays.get(n)]
        raise StoreError(
            f"The same inputs were stored with other arrays: {', '.join(map(repr, differing))} differ "
            f"({_shapes(found, differing)} there, {_shapes(header, differing)} asked).",
            "Whatever decides shapes, names and dtypes belongs into the inputs; or remove the old entry: "
            f"`whence cache rm {header.key[:12]}`.",
        )
    check_metadata(files, base, found)
    return found


def _shapes(header: Header, names: list[str]) -> str:
    specs = [header.arrays.get(name) for name in names]
    return ", ".join("none" if s is None else f"{list(s.shape)} {s.dtype.name}" for s in specs)


def sweep(files: Files, kind: str, key: str, alone: bool) -> int:
    """Delete temporary files that dead writers left; when other writers may live (`alone` is false), only
    those older than an hour. Returns how many."""
    base, swept = entry_path(kind, key), 0
    for path, _ in list(files.walk(base)):
        name = path.rpartition("/")[2]
        if not name.startswith(TEMPORARY):
            continue
        with contextlib.suppress(FileNotFoundError):
            if alone or time.time() - files.used(path) > OLD_TEMPORARY_SECONDS:
                files.remove(path)
                swept += 1
    return swept


def open_writer(files: Files, kind: str, key: str, in_use: FileLock | None = None) -> Writer:
    """A writer for an entry whose header exists. Raises NotCached when it does not."""
    base = entry_path(kind, key)
    try:
        data = files.read(f"{base}/{ENTRY}")
    except FileNotFoundError as error:
        raise NotCached(f"There is no {kind} {key[:12]} to go on with.", "Start its job first.") from error
    header = Header.from_bytes(data, kind, key, f"{base}/{ENTRY}")
    read_seal(files, base, header, data)
    return Writer(files, header, in_use)
