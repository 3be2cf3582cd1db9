"""Stores for tests lie in memory where the system has a file system for that: syncing a disk takes milliseconds,
and what survives a power cut is tested elsewhere (tests/faults)."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from whence.cache import Store

MEMORY = "/dev/shm"


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, or on the disk where there is no such thing."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path / "quick"
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def place(quick: Path) -> Store:
    """An empty store."""
    return Store(quick / "store")
