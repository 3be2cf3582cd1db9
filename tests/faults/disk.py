"""Disks that fill up, and disks that forget what was not synced."""

import errno
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whence.cache import ArraySpec, Store, errors
from whence.cache.store.layout import Shard

from .world import SHARD_ROWS, SPECS, check, content, orphans, part, scratch, system

STEP = 4096
WIDE = {"x": ArraySpec((64, 1024), "float32")}


def _wide(shard: Shard) -> dict[str, np.ndarray]:
    return {"x": np.arange(shard.start * 1024, shard.stop * 1024, dtype=np.float32).reshape(-1, 1024)}


def _write(store: Store) -> None:
    """Build 256 KiB in eight shards, or finish it, and check every byte."""
    with store.writer("gradients", {}, WIDE, 8) as w:
        for shard in w.todo():
            w.write(shard, _wide(shard))
        entry = w.seal()
    assert entry.read("x").tobytes() == _wide(Shard(0, 0, 64))["x"].tobytes()
    entry.close()


def _nothing_lost(store: Store) -> None:
    """What was committed before the disk was full is there and right."""
    if any(True for _ in store.contents()):
        entry = store.open("gradients", {}, partial=True)
        mask = entry.mask
        assert entry.read("x")[mask].tobytes() == _wide(Shard(0, 0, 64))["x"][mask].tobytes()
        entry.close()


def disk_full(long: bool) -> str:
    """Space runs out at every 4 KiB of a job: an error that says so, nothing lost, resumed with space again."""
    steps = 0
    for budget in range(0, 1 << 20, STEP if long else 8 * STEP):
        with scratch() as root:
            store, left = Store(root), [budget]

            def before(name: str, arguments: tuple, left: list[int] = left) -> None:
                if name not in ("writev", "write"):
                    return
                pieces = arguments[1] if name == "writev" else [arguments[1]]
                size = sum(len(piece) for piece in pieces)
                if size > left[0]:
                    os.write(arguments[0], b"".join(pieces)[: left[0]])
                    left[0] = 0
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                left[0] -= size

            full = False
            with system(before):
                try:
                    _write(store)
                except errors.ResourceError as error:
                    full = "is full" in error.cause
            _nothing_lost(store)
            _write(store)
            assert orphans(root) == []
            if not full:
                break
            steps += 1
    mounted = _real_disk_full() if long else "in the long form"
    return f"{steps} steps until the job fits, every one resumed to the right bytes; on a real tmpfs: {mounted}"


def _real_disk_full() -> str:
    """The same on tmpfs mounts of 64 sizes, where the right to mount is had."""
    sizes = 0
    with scratch() as root:
        place = root / "small"
        place.mkdir()
        for pages in range(8, 8 + 64):
            mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * STEP}", "tmpfs", str(place)]
            if subprocess.run(mount, capture_output=True).returncode != 0:
                return "not run, mounting is not allowed here"
            try:
                store, stopped = Store(place), False
                try:
                    _write(store)
                except errors.ResourceError:
                    stopped = True
                _nothing_lost(store)
                subprocess.run(["mount", "-o", "remount,size=16M", str(place)], check=True, capture_output=True)
                _write(store)
                sizes += stopped
            finally:
                subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)
    return f"{sizes} sizes stopped and resumed"


# -- power cuts


@dataclass
class Inode:
    """A file's bytes: as written, and as far as they were synced."""

    written: bytes = b""
    synced: bytes = b""


@dataclass
class Disk:
    """What the system calls of a run did: names in folders, seen and synced, and the inodes behind them."""

    root: Path
    handles: dict[Any, Any] = field(default_factory=dict)
    names: dict[str, dict[str, Any]] = field(default_factory=dict)
    synced: dict[str, dict[str, Any]] = field(default_factory=dict)

    def folder(self, path: str) -> dict[str, Any]:
        return self.names.setdefault(path, {})

    def after(self, name: str, arguments: tuple, result: Any) -> None:
        """Follow one call that succeeded."""
        first = arguments[0]
        if name == "open":
            path = str(first)
            if arguments[1] & os.O_CREAT:
                self.folder(os.path.dirname(path))[os.path.basename(path)] = self.handles[result] = Inode()
            elif os.path.isdir(path):
                self.handles[result] = path
            else:
                self.handles[result] = self.folder(os.path.dirname(path)).get(os.path.basename(path))
        elif name in ("writev", "write"):
            pieces = arguments[1] if name == "writev" else [arguments[1]]
            self.handles[first].written += b"".join(bytes(piece) for piece in pieces)[: int(result)]
        elif name == "fsync":
            inode = self.handles[first]
            if isinstance(inode, str):
                self.synced[inode] = dict(self.folder(inode))
            else:
                inode.synced = inode.written
        elif name == "close":
            self.handles.pop(first, None)
        elif name in ("rename", "link"):
            old, new = str(first), str(arguments[1])
            inode = self.folder(os.path.dirname(old))[os.path.basename(old)]
            self.folder(os.path.dirname(new))[os.path.basename(new)] = inode
            if name == "rename":
                del self.folder(os.path.dirname(old))[os.path.basename(old)]
        elif name == "unlink":
            self.folder(os.path.dirname(str(first))).pop(os.path.basename(str(first)), None)
        elif name == "mkdir":
            self.folder(os.path.dirname(str(first)))[os.path.basename(str(first))] = "folder"

    def survives(self, to: Path, names_survive: bool) -> None:
        """Write what a power cut leaves: synced bytes under synced names, or under all names (a disk may well
        have written the names and not the bytes)."""
        self._write(str(self.root), to, self.names if names_survive else self.synced)

    def _write(self, folder: str, to: Path, names: dict[str, dict[str, Any]]) -> None:
        to.mkdir(exist_ok=True)
        for name, inode in names.get(folder, {}).items():
            if isinstance(inode, Inode):
                (to / name).write_bytes(inode.synced)
            else:
                self._write(f"{folder}/{name}", to / name, names)


def power_cuts(long: bool) -> str:
    """The power goes after each system call of a build: what was acknowledged is there, nothing is wrong."""
    cuts = 0
    calls: list[tuple[str, tuple, object, int]] = []
    with scratch() as folder:
        root = (folder / "store").resolve()
        root.mkdir()
        store, acknowledged = Store(root), 0

        def after(name: str, arguments: tuple, result: Any) -> None:
            if name == "writev":
                arguments = (arguments[0], [bytes(piece) for piece in arguments[1]])
            calls.append((name, arguments, result, acknowledged))

        with (
            system(lambda name, arguments: None, after),
            store.writer("gradients", {"seed": 0}, SPECS, SHARD_ROWS) as w,
        ):
            for shard in w.todo():
                w.write(shard, part(0, shard))
                acknowledged += 1
            w.seal().close()
        disk = Disk(root)
        for at, (name, arguments, result, known) in enumerate(calls):
            disk.after(name, arguments, result)
            if at % (1 if long else 8):
                continue
            for names_survive in (False, True):
                left = folder / "left"
                disk.survives(left, names_survive)
                _check_survivors(Store(left), set(range(known)))
                shutil.rmtree(left)
                cuts += 1
    return f"{cuts} states after power cuts, every acknowledged shard there, every visible row right"


def _check_survivors(store: Store, acknowledged: set[int]) -> None:
    if not any(True for _ in store.contents()):
        assert not acknowledged
        return
    try:
        check(store, 0, acknowledged)
    except errors.CorruptEntry:
        # a header or commit whose name was written before its bytes tells on itself, and vouches for nothing
        assert not acknowledged or _all_readable(store, acknowledged)


def _all_readable(store: Store, acknowledged: set[int]) -> bool:
    entry = store.open("gradients", {"seed": 0}, partial=True)
    expected = content(0)
    for index in acknowledged:
        rows = slice(index * SHARD_ROWS, (index + 1) * SHARD_ROWS)
        for name in SPECS:
            assert entry.slice(name, rows.start, rows.stop).tobytes() == expected[name][rows].tobytes()
    return True
