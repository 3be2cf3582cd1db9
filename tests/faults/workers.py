"""Dask workers that hang or die in the middle of a fit: replaced in time, the same bits in the end."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whence.cache import ArraySpec, Store
from whence.cache.jobs.cluster import connect
from whence.cache.jobs.partitions import ordered_sum, run_job
from whence.cache.store.layout import Shard

from .world import scratch

HEARTBEAT = 10
ARRAYS = {"a": ArraySpec((12, 6, 6), "float64")}


@dataclass(frozen=True)
class Slow:
    """A covariance that leaves the number of its process in a folder, and takes its time."""

    folder: str
    seconds: float = 0.05

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        Path(self.folder, f"{os.getpid()}").touch()
        time.sleep(self.seconds)
        rows = np.random.default_rng(shard.index).normal(size=(50, 6))
        return {"a": (rows.T @ rows)[None]}


def _fit(store: Store, work: Slow, cluster: object) -> bytes:
    entry = run_job(store, "factors", {}, ARRAYS, work, shard_rows=1, cluster=cluster)
    return ordered_sum(entry, "a").tobytes()


def _struck(root: Path, cluster: object, how: int) -> tuple[bytes, float]:
    """Run the fit and strike one of its workers in the middle; (result, seconds from the blow to the end)."""
    seen = root / "seen"
    seen.mkdir(parents=True)
    struck = []

    def strike() -> None:
        while not list(seen.iterdir()):
            time.sleep(0.005)
        struck.append(time.monotonic())
        os.kill(int(next(iter(seen.iterdir())).name), how)

    thread = threading.Thread(target=strike)
    thread.start()
    result = _fit(Store(root / "store"), Slow(str(seen)), cluster)
    thread.join()
    return result, time.monotonic() - struck[0]


def workers_die_and_hang(long: bool) -> str:
    """SIGKILL and SIGSTOP to workers of a local cluster in the middle of a fit."""
    kills, hangs = (10, 20) if long else (1, 0)
    seconds: dict[int, list[float]] = {signal.SIGKILL: [], signal.SIGSTOP: []}
    with scratch() as root:
        (root / "seen").mkdir()
        expected = _fit(Store(root / "inline"), Slow(str(root / "seen"), 0.0), "inline")
        with connect("local:2", heartbeat=HEARTBEAT) as cluster:
            for number, how in enumerate([signal.SIGKILL] * kills + [signal.SIGSTOP] * hangs):
                result, after = _struck(root / str(number), cluster, how)
                assert result == expected, "another result after a worker was lost"
                seconds[how].append(after)
    figures = f"{kills} killed, finished at most {max(seconds[signal.SIGKILL]):.1f} s after; {hangs} hung"
    if hangs:
        hung = seconds[signal.SIGSTOP]
        figures += (
            f", finished at most {max(hung):.1f} s after, {sum(s <= HEARTBEAT + 5 for s in hung)} of them within "
        )
        figures += f"the heartbeat of {HEARTBEAT} s and 5 more"
    return figures + ": bit-identical"
