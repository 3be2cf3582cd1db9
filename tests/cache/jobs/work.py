"""Tasks for the job engine's tests, importable by worker processes."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whence.cache.store.layout import Shard


def rows_of(start: int, stop: int, width: int = 5) -> np.ndarray:
    """Made-up activations [rows, width], each row a function of its number alone."""
    return np.stack([np.random.default_rng(row).normal(size=width) for row in range(start, stop)])


@dataclass(frozen=True)
class Covariance:
    """The uncentred covariance of the partition's own rows, ten of them each, in float64."""

    rows: int = 10

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        x = rows_of(shard.start * self.rows, shard.stop * self.rows)
        return {"a": (x.T @ x)[None], "count": np.array([len(x)])}


@dataclass(frozen=True)
class DiesOnce(Covariance):
    """Kills its own worker process the first time it computes partition `at`."""

    marker: str = ""
    at: int = 3
    how: int = signal.SIGKILL

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        if shard.index == self.at and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), self.how)
        time.sleep(0.02)
        return super().__call__(shard)


@dataclass(frozen=True)
class Fails(Covariance):
    """A bug in one partition."""

    at: int = 2

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        if shard.index == self.at:
            raise ZeroDivisionError("no rows")
        return super().__call__(shard)
