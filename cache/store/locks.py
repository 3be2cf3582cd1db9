"""Locks on files, for politeness: one builder at a time, nothing collected while it is open.

They are flock(2) locks: free the moment their holder dies. Correctness never rests on them (commits are
written once whoever wins), so where a file system or platform has none, work goes on without.
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

_held_here: dict[str, int] = {}
_held_guard = threading.Lock()
POLL_SECONDS = 0.05
AGAIN_SECONDS = 30.0


class FileLock:
    """A flock on an open file, held until `release` or the object's end. works: false once the file system
    has turned out to have no such locks; every lock is then granted."""

    _close = staticmethod(os.close)  # an object may outlive the module's names when Python ends

    def __init__(self, path: Path):
        self.path = path
        self.works = fcntl is not None
        self._handle: int | None = None

    def try_exclusive(self) -> bool:
        """Take the lock alone; False when anyone else has it."""
        return self._lock(shared=False)

    def try_shared(self) -> bool:
        """Take the lock with others; False when someone has it alone."""
        return self._lock(shared=True)

    def _lock(self, shared: bool) -> bool:
        while True:
            if self._handle is None:
                self._handle = self._open()
            if not self._flock(self._handle, shared):
                return False
            if self._current(self._handle):
                return True
            self.release()  # the entry was collected while we waited: this is no longer its lock

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
        """Whether the name still stands for the file that is locked."""
        try:
            here, there = os.fstat(handle), os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def note(self, holder: dict[str, Any] | None) -> None:
        """Write down who holds the lock, for the message that others wait with."""
        if self._handle is not None:
            text = "" if holder is None else json.dumps(holder)
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, text.encode(), 0)

    def holder(self) -> str:
        """Who wrote themselves down last: "process 123 on host x, since 12 s"."""
        try:
            told = json.loads(self.path.read_text())
            return f"process {int(told['pid'])} on {told['host']}, for {time.time() - told['since']:.0f} s"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def release(self) -> None:
        if self._handle is not None:
            self._close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()


class BuildLock:
    """The right to build one entry: waits, and says so, while another process is at it."""

    def __init__(self, path: Path, what: str):
        self.what = what
        self._lock = FileLock(path)
        self._name = str(path)

    def acquire(self, timeout: int | float | None = None) -> bool:
        """True when the lock was free, False when it had to be waited for.

        Raises StoreError when this very thread holds it already, or after `timeout` seconds.
        """
        with _held_guard:
            if _held_here.get(self._name) == threading.get_ident():
                raise StoreError(
                    f"{self.what} is being built by this very thread already.",
                    "Finish (or leave) the first `with store.writer(...)` before opening a second.",
                )
        waited, began, told = False, time.monotonic(), float("-inf")
        while not self._lock.try_exclusive():
            waited = True
            now = time.monotonic()
            if timeout is not None and now - began > timeout:
                raise StoreError(
                    f"{self.what} is being built by {self._lock.holder()}.",
                    "Wait for it, or end that process; what it committed is kept.",
                )
            if now - told > AGAIN_SECONDS:
                log.warning("Waiting: %s is being built by %s.", self.what, self._lock.holder())
                told = now
            time.sleep(POLL_SECONDS)
        self._lock.note({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
        with _held_guard:
            _held_here[self._name] = threading.get_ident()
        return not waited

    def release(self) -> None:
        self._lock.note(None)
        with _held_guard:
            _held_here.pop(self._name, None)
        self._lock.release()
