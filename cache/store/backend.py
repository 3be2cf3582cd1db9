"""What a store needs of the medium it lies on, disk or object store: whole files, some of them written once.

Paths are relative to the root, parts separated by "/", and cannot leave it: StoreError otherwise. Refusals of
the medium come as StoreError or ResourceError, a file that is not there as FileNotFoundError.
"""

import abc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Piece = memoryview | bytes


@dataclass(frozen=True)
class Written:
    """What a file holds: its length and xxh3-128, in hex."""

    bytes: int
    xxh3_128: str


class Files(abc.ABC):
    """A root and the files below it. remote: whether arrays are read through local copies; there are no locks
    then. address: what Store() takes to open it again."""

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
        """Drop the local copy of a remote file; whether there was one."""

    @abc.abstractmethod
    def exists(self, path: str) -> bool: ...

    @abc.abstractmethod
    def size(self, path: str) -> int: ...

    @abc.abstractmethod
    def list(self, path: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; empty where there is none."""

    @abc.abstractmethod
    def walk(self, path: str) -> Iterator[tuple[str, int]]:
        """(path, bytes) of every file below a folder; links are not followed."""

    @abc.abstractmethod
    def publish(self, files: Mapping[str, Iterable[Piece]], once: bool = False) -> dict[str, Written]:
        """Write files whole, replacing any of their names; each durable, under its name, when this returns.

        once: replace nothing; a whole file of that name stands, and its digest is returned.
        """

    @abc.abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Write a file once, whole and durable; False, and nothing changed, when the name is taken."""

    @abc.abstractmethod
    def make_folder(self, path: str) -> None: ...

    @abc.abstractmethod
    def remove(self, path: str) -> None:
        """Delete a file; nothing happens where there is none."""

    @abc.abstractmethod
    def rename(self, path: str, to: str) -> None:
        """Move a folder with all in it."""

    @abc.abstractmethod
    def remove_tree(self, path: str) -> None:
        """Delete a folder with all in it, following no link."""

    @abc.abstractmethod
    def touch(self, path: str) -> None:
        """Note that the file is in use; nothing happens where that cannot be written."""

    @abc.abstractmethod
    def used(self, path: str) -> float:
        """When `touch` was last called for the file, or it was written (unix time)."""

    @abc.abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that can still be written; None where nobody knows."""
