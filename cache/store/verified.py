"""Memory maps of files that were checked against their commits: once, while nobody touches them.

The pages that the check reads are the pages that are handed out, so reading a store the first time costs one
pass over the mapping. Every map holds a file descriptor, so only the last few stay open.
"""

import mmap
import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import xxhash

from ..errors import CorruptEntry
from .backend import Files, Written

KEPT = 128
# read the whole file at once when it is mapped: it is about to be checked, byte by byte
POPULATE = getattr(mmap, "MAP_POPULATE", 0)
Stamp = tuple[int, int, int]


class Verified:
    """The files of one entry. base: the entry's folder."""

    def __init__(self, files: Files, base: str):
        self._files, self._base = files, base
        self._seen: dict[str, tuple[Path, Stamp]] = {}
        self._open: OrderedDict[str, np.ndarray] = OrderedDict()
        self._guard = threading.Lock()

    def path(self, path: str, expected: Written) -> Path:
        """Where the file can be read from, checked. Raises CorruptEntry when it is not what was committed."""
        self.bytes(path, expected)
        return self._seen[path][0]

    def bytes(self, path: str, expected: Written) -> np.ndarray:
        """uint8 [bytes], a read-only map of the file, checked. Raises CorruptEntry as `path` does."""
        with self._guard:
            known = self._seen.get(path)
            if known is not None and _stamp(known[0]) == known[1]:
                view = self._open.get(path)
                if view is None:
                    view = mapped(known[0], expected.bytes)
                return self._keep(path, view)
            self._open.pop(path, None)
            view = self._checked(path, expected)
            if view is None and self._files.forget(f"{self._base}/{path}"):
                view = self._checked(path, expected)  # the local copy of a remote file was damaged
            if view is None:
                raise CorruptEntry(
                    f"{self._base}/{path} is not what was committed.",
                    "Run `whence cache repair`, then the job again: only this shard is computed again.",
                )
            return self._keep(path, view)

    def _checked(self, path: str, expected: Written) -> np.ndarray | None:
        try:
            local = self._files.local(f"{self._base}/{path}")
            stamp = _stamp(local)
            if stamp is None:
                raise FileNotFoundError(path)
        except FileNotFoundError as error:
            raise CorruptEntry(f"{self._base}/{path} is missing.", "Run `whence cache repair`.") from error
        if stamp[1] != expected.bytes:
            return None
        view = mapped(local, expected.bytes)
        if xxhash.xxh3_128_hexdigest(view.data) != expected.xxh3_128:
            return None
        self._seen[path] = (local, stamp)
        return view

    def _keep(self, path: str, view: np.ndarray) -> np.ndarray:
        self._open[path] = view
        self._open.move_to_end(path)
        while len(self._open) > KEPT:
            self._open.popitem(last=False)
        return view

    def close(self) -> None:
        """Let go of the maps; what was handed out stays good."""
        self._open.clear()


def mapped(path: Path, size: int) -> np.ndarray:
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
