"""Locks on files: one builder at a time, and nothing is collected while it is open.

They are flock(2) locks, which are free the moment their process dies. The commit protocol does not depend on them
(commits are written once, whoever writes first), so a file system or platform without locks works too.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # pragma: no cover - not on Windows
    fcntl = None  # type: ignore[assignment]

from ..errors import StoreError

log = logging.getLogger("whence.cache")

POLL_SECONDS = 0.05
AGAIN_SECONDS = 30.0


class FileLock:
    """A flock on an open file, until `release` or the object's end.

    works: false once the file system has turned out to have no such locks; every lock is then granted.
    """

    _close = staticmethod(os.close)  # an object may outlive the module's names when Python ends

    def __init__(self, path: Path):
        self.path = path
        self.works = fcntl is not None
        self._handle: int | None = None

    def try_exclusive(self) -> bool:
        """Take the lock alone; False when anyone else has it."""
        return self._lock(shared=False)

    def try_shared(self) -> bool:
        """Share the lock; False when someone has it alone."""
        return self._lock(shared=True)

    def _lock(self, shared: bool) -> bool:
        while True:
            if self._handle is None:
                self._handle = self._open()
            if not self._flock(self._handle, shared):
                return False
            if self._current(self._handle):
                return True
            self.release()  # the entry was collected in the meantime: this is no longer its lock

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or not self.path.exists():
                raise
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def _flock(self, handle: int, shared: bool) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self.works = False
        return True

    def _current(self, handle: int) -> bool:
        """Whether the locked file still has its name."""
        try:
            here, there = os.fstat(handle), os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def note(self, holder: dict[str, Any] | None) -> None:
        """Write down who has the lock, for the messages of those that wait."""
        if self._handle is not None:
            text = "" if holder is None else json.dumps(holder)
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, text.encode(), 0)

    def noted(self) -> dict[str, Any]:
        """What was written down last; empty when that cannot be read."""
        try:
            note = json.loads(self.path.read_text())
            return {"pid": int(note["pid"]), "host": str(note["host"]), "since": float(note["since"])} | note
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def holder(self) -> str:
        """Who has the lock: "process 123 on host x, for 12 s"."""
        note = self.noted()
        if not note:
            return "another process"
        return f"process {note['pid']} on {note['host']}, for {time.time() - note['since']:.0f} s"

    def release(self) -> None:
        if self._handle is not None:
            self._close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()


class BuildLock:
    """The right to build one entry. It waits, with a message, while another process builds it."""

    def __init__(self, path: Path, what: str):
        self.what = what
        self._lock = FileLock(path)

    def acquire(self) -> None:
        """Take the lock. Raises StoreError when this very thread has it already."""
        me = {"pid": os.getpid(), "host": socket.gethostname(), "thread": threading.get_ident()}
        said = float("-inf")
        while not self._lock.try_exclusive():
            now = time.monotonic()
            if me.items() <= self._lock.noted().items():
                raise StoreError(
                    f"{self.what} is being built by this very thread already.",
                    "Finish (or leave) the first `with store.writer(...)` before opening a second.",
                )
            if now - said > AGAIN_SECONDS:
                log.warning("Waiting: %s is being built by %s.", self.what, self._lock.holder())
                said = now
            time.sleep(POLL_SECONDS)
        self._lock.note(me | {"since": time.time()})

    def release(self) -> None:
        self._lock.note(None)
        self._lock.release()
