"""An opened entry as its readers may see it: committed shards only, each checked before its first byte is used.

A shard is checked once, when it is first read, against the digests in its commit record. The pages that the check
reads are those of the memory map that readers get, so the first read of a store costs one pass over the mapping.
Every map keeps a file descriptor open, so only the last few maps are kept.
"""

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from ..errors import CorruptEntry, NotCached
from .backend import Backend, Written
from .commit import Commit
from .header import Header, check_metadata, read_header, read_seal
from .layout import ArraySpec, Grid, commit_path, entry_path
from .local import explained
from .locks import FileLock

MAPS_KEPT = 128
# read the whole file at once when it is mapped: it is about to be checked, byte by byte
POPULATE = getattr(mmap, "MAP_POPULATE", 0)
Stamp = tuple[int, int, int]
Opened = TypeVar("Opened", bound="Committed")


class Committed:
    """What is committed of one entry.

    key, kind, inputs, about, provenance, arrays (name -> ArraySpec), sealed: what it is.
    """

    def __init__(
        self,
        backend: Backend,
        header: Header,
        seal: Mapping[str, Any] | None = None,
        lock: FileLock | None = None,
    ):
        self._backend, self.header, self._lock = backend, header, lock
        self._commits: dict[int, Commit | None] = {}
        self._checked: dict[str, tuple[Path, Stamp]] = {}
        self._maps: OrderedDict[str, np.ndarray] = OrderedDict()
        self._guard = threading.Lock()
        self.sealed = seal is not None
        self.kind, self.key, self.inputs = header.kind, header.key, header.inputs
        self.arrays: Mapping[str, ArraySpec] = header.arrays
        self.about: Mapping[str, Any] = {**header.about, **(seal or {}).get("about", {})}
        self.provenance = header.provenance

    @classmethod
    def open(cls: type[Opened], backend: Backend, kind: str, key: str, partial: bool = False) -> Opened:
        """Open an entry by kind and key.

        Raises NotCached when it does not exist, or is not sealed and not `partial`; CorruptEntry when its header,
        metadata or seal do not match their digests.
        """
        lock = _in_use(backend, entry_path(kind, key))
        header = read_header(backend, kind, key)
        check_metadata(backend, header)
        seal = read_seal(backend, header)
        if seal is None and not partial:
            raise NotCached(
                f"The {kind} {key[:12]} is not complete.",
                "Run the job that builds it again: it resumes. Or open it with partial=True and read its mask.",
            )
        return cls(backend, header, seal, lock)

    def __reduce__(self) -> Any:
        return type(self).open, (self._backend, self.kind, self.key, not self.sealed)

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays."""
        return self.header.nbytes

    @property
    def grid(self) -> Grid:
        """How its rows are cut: .rows, .shard_rows, .count, iterable of Shards."""
        return self.header.grid

    def close(self) -> None:
        """Let the entry be collected again, which it never is while open. Arrays read from it stay valid."""
        self._maps.clear()
        if self._lock is not None:
            self._lock.release()

    def commit(self, shard: int) -> Commit | None:
        """The shard's commit record; None when it is not committed. Raises CorruptEntry."""
        if self._commits.get(shard) is None:
            where = f"{self.header.base}/{commit_path(shard)}"
            at = self.grid.shard(shard)
            try:
                data = self._backend.read(where)
            except FileNotFoundError:
                if self.sealed:
                    raise CorruptEntry(
                        f"{where} is missing from a sealed entry.", "Run `whence cache repair`."
                    ) from None
                self._commits[shard] = None
            else:
                self._commits[shard] = Commit.from_bytes(data, self.key, at, self.header.shard_paths(at), where)
        return self._commits[shard]

    @property
    def mask(self) -> np.ndarray:
        """bool [rows]: the rows that are committed; all of them in a sealed entry."""
        mask = np.zeros(self.grid.rows, bool)
        for shard in self.grid:
            mask[shard.rows] = self.sealed or self.commit(shard.index) is not None
        return mask

    def metadata(self, path: str) -> bytes | None:
        """One of the entry's Zarr metadata files; None for any other path."""
        return self._backend.read(f"{self.header.base}/{path}") if path in self.header.metadata else None

    def verified(self, path: str, shard: int) -> Path | None:
        """Where a file of this shard can be read, after its check; None when the shard is not committed.

        Raises CorruptEntry when its bytes are not those that were committed.
        """
        return None if self.mapped(path, shard) is None else self._checked[path][0]

    def mapped(self, path: str, shard: int) -> np.ndarray | None:
        """uint8 [bytes], a read-only map of a file of this shard, checked; None and errors as `verified`."""
        commit = self.commit(shard)
        if commit is None:
            return None
        expected = commit.files[path]
        with self._guard, explained(self._backend.address, f"reading {path}", "read"):
            known = self._checked.get(path)
            view: np.ndarray | None
            if known is not None and _stamp(known[0]) == known[1]:
                view = self._maps.get(path)
                if view is None:
                    view = _map(known[0], expected.bytes)
            else:
                self._maps.pop(path, None)
                view = self._check(path, expected)
                if view is None and self._backend.forget(f"{self.header.base}/{path}"):
                    view = self._check(path, expected)  # the local copy of a remote file was damaged
                if view is None:
                    raise CorruptEntry(
                        f"{self.header.base}/{path} is not what was committed.",
                        "Run `whence cache repair`, then the job again: only this shard is computed again.",
                    )
            self._maps[path] = view
            self._maps.move_to_end(path)
            while len(self._maps) > MAPS_KEPT:
                self._maps.popitem(last=False)
            return view

    def _check(self, path: str, expected: Written) -> np.ndarray | None:
        """The file's map; None when its bytes are not the expected ones."""
        where = f"{self.header.base}/{path}"
        try:
            local = self._backend.local(where)
            stamp = _stamp(local)
            if stamp is None:
                raise FileNotFoundError(path)
        except FileNotFoundError as error:
            raise CorruptEntry(f"{where} is missing.", "Run `whence cache repair`.") from error
        if stamp[1] != expected.bytes:
            return None
        view = _map(local, expected.bytes)
        if xxhash.xxh3_128_hexdigest(view.data) != expected.xxh3_128:
            return None
        self._checked[path] = (local, stamp)
        return view


def _in_use(backend: Backend, base: str) -> FileLock | None:
    """A shared lock that keeps the entry from being collected while it is open."""
    if backend.remote:
        return None
    try:
        lock = FileLock(backend.local(f"{base}/in-use"))
        if lock.path.exists() and not lock.try_shared():
            raise NotCached("The entry is being collected right now.", "Build it again.")
        return lock
    except OSError:
        return None


def _map(path: Path, size: int) -> np.ndarray:
    """uint8 [bytes]: the first `size` bytes of a file, mapped read-only."""
    if size == 0:
        return np.empty(0, np.uint8)
    with open(path, "rb") as file:
        if hasattr(mmap, "PROT_READ"):
            flags = mmap.MAP_SHARED | POPULATE
            return np.frombuffer(mmap.mmap(file.fileno(), size, flags, mmap.PROT_READ), np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)


def _stamp(path: Path) -> Stamp | None:
    """(inode, bytes, modification time in ns): the same while nobody touched the file."""
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns
