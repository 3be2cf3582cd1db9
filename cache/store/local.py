"""The backend on a local disk: files are published whole and durable.

`publish` writes temporary files, syncs them, gives them their names, and syncs the folders. `create` does the same
for a file that must be written once: link(2) gives the name, which one of several racing processes wins. A process
killed at any point leaves at most temporary files, which the next builder deletes.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from ..errors import ResourceError, StoreError
from .backend import Backend, Piece, Written, digest_bytes, parts_of

TEMPORARY = ".tmp-"
# how many pieces go into one system call
BATCH_PIECES = 8
# how many files are synced at once
TOGETHER = 8
# how file systems without hard links refuse them
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@contextlib.contextmanager
def explained(root: Path | str, doing: str, how: str = "written") -> Iterator[None]:
    """Turn the operating system's refusals into errors that name the cure; a file that does not exist stays a
    FileNotFoundError. how: what cannot be done, in the message."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"The disk under {root} is full ({doing}).",
                "Free some space (`whence cache gc`) and run the same job again; it resumes.",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StoreError(
                f"The store at {root} cannot be {how} ({doing}: {error.strerror}).",
                "Change its permissions, or point WHENCE_CACHE at a folder of your own.",
            ) from error
        raise StoreError(
            f"The store at {root} failed ({doing}: {error.strerror}).", "Look at its disk, or use another folder."
        ) from error


@dataclass(frozen=True)
class LocalBackend(Backend):
    """A root folder on a local or mounted disk."""

    root: Path
    remote: bool = field(default=False, init=False)

    @property
    def address(self) -> str:
        return str(self.root)

    def local(self, path: str) -> Path:
        return self._inside(path)

    def _inside(self, path: str) -> Path:
        parts = parts_of(path)
        full = self.root.joinpath(*parts)
        parent = os.path.realpath(full.parent)
        if parent != os.path.join(self.root, *parts[:-1]).rstrip("/") or os.path.islink(full):
            raise StoreError(
                f"{path} in the store at {self.root} is a link or is reached through one.",
                "Links are not allowed in a store: remove it and compute the artefact again.",
            )
        return full

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        with explained(self.root, f"reading {path}", "read"):
            try:
                yield
            except NotADirectoryError as error:
                raise FileNotFoundError(path) from error

    def read(self, path: str) -> bytes:
        with self._reading(path):
            handle = os.open(self._inside(path), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            with open(handle, "rb") as file:
                return file.read()

    def exists(self, path: str) -> bool:
        with self._reading(path):
            return self._inside(path).is_file()

    def list(self, path: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError), self._reading(path):
            return sorted(os.listdir(self._inside(path)))
        return []

    def publish(self, files: Mapping[str, Iterable[Piece]], once: bool = False) -> dict[str, Written]:
        targets = {path: self._inside(path) for path in files}
        temporaries: dict[str, Path] = {}
        published = {}
        with explained(self.root, f"writing {', '.join(list(files)[:2])}"):
            try:
                grown = {folder for full in targets.values() for folder in self._make_folder(full.parent)}
                for path, pieces in files.items():
                    temporaries[path], published[path] = self._write_temporary(targets[path], pieces)
                _each(self._sync, temporaries.values())
                for path, temporary in list(temporaries.items()):
                    full = targets[path]
                    if once and self._link(temporary, full):
                        continue
                    if once and os.path.lexists(full):
                        existing = digest_file(full)
                        if existing.bytes == published[path].bytes:  # else it was cut short, and is replaced
                            published[path] = existing
                            continue
                    os.rename(temporary, full)
                    del temporaries[path]
            finally:
                for temporary in temporaries.values():
                    with contextlib.suppress(OSError):
                        os.unlink(temporary)
            _each(self._sync, sorted(grown | {full.parent for full in targets.values()}))
        return published

    def create(self, path: str, data: bytes) -> bool:
        full = self._inside(path)
        with explained(self.root, f"writing {path}"):
            if os.path.lexists(full):
                return False
            for folder in sorted(self._make_folder(full.parent)):
                self._sync(folder)
            temporary, _ = self._write_temporary(full, [data])
            try:
                self._sync(temporary)
                created = self._link(temporary, full) or (
                    not os.path.lexists(full) and self._create_without_link(full, data)
                )
            finally:
                os.unlink(temporary)
            self._sync(full.parent)
        return created

    def _link(self, temporary: Path, full: Path) -> bool:
        """Give the file its name; False when the name is taken or the file system has no links."""
        try:
            os.link(temporary, full)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return False
        return True

    def _create_without_link(self, full: Path, data: bytes) -> bool:
        # exclusive creation; a torn record fails its own digest
        try:
            handle = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        return True

    def _write_temporary(self, full: Path, pieces: Iterable[Piece]) -> tuple[Path, Written]:
        temporary = full.parent / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        digest, size = xxhash.xxh3_128(), 0
        try:
            try:
                batch: list[Piece] = []
                for piece in pieces:
                    digest.update(piece)
                    size += len(piece)
                    batch.append(piece)
                    if len(batch) >= BATCH_PIECES:
                        _write_all(handle, batch)
                        batch = []
                _write_all(handle, batch)
            finally:
                os.close(handle)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return temporary, Written(size, digest.hexdigest())

    def _make_folder(self, folder: Path) -> set[Path]:
        """Create a folder and those above it; returns the folders that got a new name in them, to be synced."""
        if folder.is_dir():
            return set()
        grown = self._make_folder(folder.parent)
        try:
            os.mkdir(folder)
        except FileExistsError:
            return grown
        except FileNotFoundError as error:
            raise StoreError(
                f"The folder {folder} cannot be created.",
                "Give a folder that can be written, by --store or WHENCE_CACHE.",
            ) from error
        return grown | {folder.parent}

    def _sync(self, path: Path) -> None:
        """Write a file's bytes, or a folder's names, to the disk."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:  # a mount that cannot sync folders orders them itself
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)

    def make_folder(self, path: str) -> None:
        with explained(self.root, f"creating {path}"):
            _each(self._sync, sorted(self._make_folder(self._inside(path))))

    def remove(self, path: str) -> None:
        with explained(self.root, f"deleting {path}"), contextlib.suppress(FileNotFoundError):
            os.unlink(self._inside(path))

    def rename(self, path: str, to: str) -> None:
        target = self._inside(to)
        with explained(self.root, f"moving {path}"):
            self._make_folder(target.parent)
            os.rename(self._inside(path), target)
            self._sync(target.parent)

    def remove_tree(self, path: str) -> None:
        with explained(self.root, f"deleting {path}"):
            _remove_tree(self._inside(path))

    def size(self, path: str) -> int:
        return self._stat(path).st_size

    def _stat(self, path: str) -> os.stat_result:
        with self._reading(path):
            return os.stat(self._inside(path), follow_symlinks=False)

    def used(self, path: str) -> float:
        return self._stat(path).st_mtime

    def touch(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._inside(path))

    def forget(self, path: str) -> bool:
        return False

    def free_bytes(self) -> int | None:
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        space = os.statvfs(folder)
        return space.f_bavail * space.f_frsize

    def walk(self, path: str) -> Iterator[tuple[str, int]]:
        pending = [path]
        while pending:
            folder = pending.pop()
            for name in self.list(folder):
                below = f"{folder}/{name}"
                try:
                    with self._reading(below):
                        seen = os.stat(self.root / below, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(seen.st_mode):
                    pending.append(below)
                elif stat.S_ISREG(seen.st_mode):
                    yield below, seen.st_size


def _each(work: Callable[[Path], None], paths: Iterable[Path]) -> None:
    """Do this for every path, several at a time when there are many: a disk commits their syncs together."""
    paths = list(paths)
    if len(paths) <= TOGETHER:
        for path in paths:
            work(path)
        return
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(work, paths))


def _write_all(handle: int, pieces: list[Piece]) -> None:
    views = [memoryview(piece) for piece in pieces]
    while views:
        done = os.writev(handle, views)
        while views and done >= len(views[0]):
            done -= len(views[0])
            views.pop(0)
        if views and done:
            views[0] = views[0][done:]


def _remove_tree(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    _remove_tree(Path(entry.path))
                else:
                    os.unlink(entry.path)
        os.rmdir(folder)


def digest_file(path: Path) -> Written:
    """Length and xxh3-128 of a file as it is on the disk now."""
    size = path.stat().st_size
    if size == 0:
        return digest_bytes(b"")
    return Written(size, xxhash.xxh3_128_hexdigest(np.memmap(path, np.uint8, mode="r", shape=(size,)).data))
