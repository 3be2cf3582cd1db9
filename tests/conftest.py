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
# compiling takes most of the time that JAX takes, since arrays are small here: programs are compiled quickly, and once
# for all processes of a run, which inherit the folder of the first; without a limit of its size, JAX locks nothing
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["WHENCE_CACHE"] + "-compiled")
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import typechecks as typechecks  # before the packages whose annotations it checks
from whence.cache import Store

torch.set_num_threads(1)


# files of few tests that take half a minute and more: first, so that no worker waits for them at the end
LONGEST = (
    "test_devices",
    "test_sanity",
    "test_demo",
    "test_notebooks",
    "test_golden",
    "test_faults",
    "test_attrib_commands",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


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
    shutil.rmtree(os.environ["WHENCE_CACHE"] + "-compiled", ignore_errors=True)
