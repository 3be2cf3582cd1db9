"""What every test has: a store of its own, the same seeds, one thread.

Threads: the problems are tiny, and on a machine where several processes compute, a waiting OpenMP thread that
spins costs ten times the work itself; the suite runs in parallel processes instead.
"""

import os
import tempfile

# before torch and jax are imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["WHENCE_QUIET"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# nothing that forgets to ask for `store` may write to the user's cache
os.environ["WHENCE_CACHE"] = tempfile.mkdtemp(prefix="whence-tests-")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from whence.cache import Store

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store, which is also the default one while the test runs."""
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX in float64 for one test."""
    import jax

    with jax.enable_x64(True):
        yield


def pytest_sessionfinish() -> None:
    import shutil

    shutil.rmtree(os.environ["WHENCE_CACHE"], ignore_errors=True)
