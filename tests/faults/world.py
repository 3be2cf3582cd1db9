"""What the proofs share: content that can be recomputed, processes that are forked and killed, and an operating
system that counts, fails or forgets."""

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import whence.cache.store.local
from whence.cache import ArraySpec, Store
from whence.cache.store.layout import Shard

BF16 = np.dtype(ml_dtypes.bfloat16)
ROWS, SHARD_ROWS = 96, 8
SPECS = {"x": ArraySpec((ROWS, 16), "float32"), "blocks.0/y": ArraySpec((ROWS, 5), "bfloat16")}


def content(seed: int, start: int = 0, stop: int = ROWS) -> dict[str, np.ndarray]:
    """Rows as a known function of the seed and the row's number."""
    row = np.arange(start, stop, dtype=np.float64)[:, None]
    x = np.sin(row * 1.7 + np.arange(16) * 0.3 + seed)
    y = np.cos(row * 0.9 - np.arange(5) + seed)
    return {"x": x.astype(np.float32), "blocks.0/y": y.astype(BF16)}


def part(seed: int, shard: Shard) -> dict[str, np.ndarray]:
    return content(seed, shard.start, shard.stop)


def build(store: Store, seed: int, acknowledge: Callable[[int], Any] = lambda index: None) -> Any:
    """Build (or finish) the entry of this seed, telling every shard that was committed."""
    with store.writer("gradients", {"seed": seed}, SPECS, SHARD_ROWS) as w:
        for shard in w.todo():
            w.write(shard, part(seed, shard))
            acknowledge(shard.index)
        return w.seal()


def check(store: Store, seed: int, acknowledged: set[int]) -> int:
    """Assert that every acknowledged shard is there and every visible row is right; returns committed shards."""
    entry = store.open("gradients", {"seed": seed}, partial=True)
    expected, mask = content(seed), entry.mask
    for index in acknowledged:
        assert mask[index * SHARD_ROWS], f"acknowledged shard {index} is lost"
    for name in SPECS:
        assert entry.read(name)[mask].tobytes() == expected[name][mask].tobytes(), f"wrong bytes in {name}"
    entry.close()
    return int(mask[::SHARD_ROWS].sum())


def orphans(root: Path) -> list[Path]:
    return list(root.rglob(".tmp-*"))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is such a thing, gone afterwards."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(dir=memory)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fork(work: Callable[..., Any], *arguments: Any) -> int:
    """Run in a forked process, which ends with 0, or 1 after an exception; returns its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn of forking with threads; the child uses none of them
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Wait for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Acks:
    """Numbers that survive their sender: a pipe that forked processes write to."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)

    def __call__(self, number: int) -> None:
        os.write(self._write, bytes([number]))

    def received(self) -> set[int]:
        with contextlib.suppress(BlockingIOError):
            return set(os.read(self._read, 1 << 16))
        return set()

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


def kill_soon(pids: list[int], chance: random.Random, within: float) -> int:
    """Kill these processes, each at a random moment; returns how many were still at work."""
    killed = 0
    for pid in pids:
        time.sleep(chance.random() * within / len(pids))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        code = ended(pid)
        assert code in (0, -signal.SIGKILL), f"a worker failed by itself: {code}"
        killed += code != 0
    return killed


class System:
    """The `os` module as the store's files see it, with every call that changes the disk reported first (and,
    with `after`, afterwards). What `before` raises the store gets to see."""

    CHANGES = ("open", "writev", "write", "fsync", "close", "rename", "link", "unlink", "mkdir")

    def __init__(self, before: Callable[..., Any], after: Callable[..., Any] = lambda *a: None):
        self._before, self._after = before, after

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CHANGES:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            replaced = self._before(name, arguments)
            result = real(*arguments, **options) if replaced is None else replaced
            self._after(name, arguments, result)
            return result

        return call


@contextlib.contextmanager
def system(before: Callable[..., Any], after: Callable[..., Any] = lambda *a: None) -> Iterator[None]:
    """Let the store's files run on another operating system inside the block."""
    real = whence.cache.store.local.os
    whence.cache.store.local.os = System(before, after)  # type: ignore[assignment]
    try:
        yield
    finally:
        whence.cache.store.local.os = real
