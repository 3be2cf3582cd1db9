"""The interface of a storage backend, a disk or an object store: whole files, some of them written once.

Paths are relative to the root and separated by "/". A path that leaves the root raises StoreError. A backend
raises StoreError or ResourceError when it refuses, and FileNotFoundError for a file that does not exist.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from ..errors import StoreError

Piece = memoryview | bytes


@dataclass(frozen=True)
class Written:
    """A file's length and its xxh3-128, in hex."""

    bytes: int
    xxh3_128: str


def digest_bytes(data: bytes) -> Written:
    return Written(len(data), xxhash.xxh3_128_hexdigest(data))


def parts_of(path: str) -> list[str]:
    """The path's parts. Raises StoreError for a path that could leave the root."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise StoreError(f"{path!r} is not a path inside a store.", "Run `whence cache verify`.")
    return parts


class Backend(abc.ABC):
    """A root and the files below it.

    remote: arrays are read through local copies, and there are no locks.
    address: what Store() takes to open the root again.
    """

    remote: bool

    @property
    @abc.abstractmethod
    def address(self) -> str: ...

    @abc.abstractmethod
    def read(self, path: str) -> bytes:
        """The whole file."""

    @abc.abstractmethod
    def local(self, path: str) -> Path:
        """Where the file can be mapped from: itself, or a copy fetched now."""

    @abc.abstractmethod
    def forget(self, path: str) -> bool:
        """Delete the local copy of a remote file; whether there was one."""

    @abc.abstractmethod
    def exists(self, path: str) -> bool: ...

    @abc.abstractmethod
    def size(self, path: str) -> int: ...

    @abc.abstractmethod
    def list(self, path: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; empty when it does not exist."""

    @abc.abstractmethod
    def walk(self, path: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of every file below a folder; links are not followed."""

    @abc.abstractmethod
    def publish(self, files: Mapping[str, Iterable[Piece]], once: bool = False) -> dict[str, Written]:
        """Write whole files, replacing those of the same names; each is durable under its name on return.

        once: replace no whole file that exists under a name; its digest is returned instead.
        """

    @abc.abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a file once, whole and durable; False, without any change, when the name is taken."""

    @abc.abstractmethod
    def make_folder(self, path: str) -> None: ...

    @abc.abstractmethod
    def remove(self, path: str) -> None:
        """Delete a file if it exists."""

    @abc.abstractmethod
    def rename(self, path: str, to: str) -> None:
        """Move a folder with everything in it."""

    @abc.abstractmethod
    def remove_tree(self, path: str) -> None:
        """Delete a folder with everything in it, following no link."""

    @abc.abstractmethod
    def touch(self, path: str) -> None:
        """Record that the file is in use, if that can be written."""

    @abc.abstractmethod
    def used(self, path: str) -> float:
        """When the file was last written or touched (unix time)."""

    @abc.abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that can still be written; None when unknown."""
