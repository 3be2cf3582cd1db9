"""The job engine: the partitions of an entry, each computed by an idempotent task, on any number of workers.

A partition is a shard of the entry that the job builds, fixed when the entry is created. `work(shard)` computes its
arrays; the worker commits them, durably, before it reports. So a job that is killed at any point resumes, a dead
worker's partitions are computed by another, and the result is bit for bit the same for any number of workers:
nothing is summed across partitions while they run.

What must be summed (a covariance) is stored as one row per partition, in float64, and reduced from disk in a fixed
order by `ordered_sum` when all are committed.

`work` is sent to every worker process once, by cloudpickle, also to those that are started later: make it a frozen
dataclass with `__call__`. It may contain a model and its data; it loads by name what is larger than memory:

    @dataclass(frozen=True)
    class Covariance:
        data: str

        def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
            x = load(self.data)[shard.rows]
            return {"a": (x.T @ x)[None]}
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ..errors import Interrupted, WhenceError, enough_memory
from ..store.entry import Entry
from ..store.layout import ArraySpec, Shard
from ..store.store import Store
from ..store.writer import Writer
from .cluster import Cluster, connect
from .progress import progress, say
from .signals import SignalWatch, stop_if_signalled, watch_signals

Work = Callable[[Shard], Mapping[str, np.ndarray]]
# work that carries more than this should load it by name instead
WORK_BYTES = 2 << 30
SUPERVISE_SECONDS = 5.0


@dataclass(frozen=True)
class Record:
    """One partition that was committed: by which worker, its bytes, and how long it took."""

    shard: Shard
    worker: str
    seconds: float
    bytes: int


def run_job(
    store: Store,
    kind: str,
    inputs: Mapping[str, Any],
    arrays: Mapping[str, ArraySpec],
    work: Work,
    *,
    shard_rows: int | None = None,
    about: Mapping[str, Any] | None = None,
    cluster: str | Cluster = "inline",
    log: str | os.PathLike[str] | None = None,
    desc: str = "",
    quiet: bool = False,
) -> Entry:
    """The entry of these inputs: opened when it exists, else computed partition by partition and sealed.

    Arguments as in `Store.writer` and `run_partitions`.
    """
    with store.writer(kind, inputs, arrays, shard_rows, about) as writer:
        if not writer.complete:
            run_partitions(writer, work, cluster, log=log, desc=desc or kind, quiet=quiet)
        return writer.seal()


def run_partitions(
    writer: Writer,
    work: Work,
    cluster: str | Cluster = "inline",
    *,
    log: str | os.PathLike[str] | None = None,
    desc: str = "partitions",
    quiet: bool = False,
) -> list[Record]:
    """Compute and commit every partition of the entry that is not committed; returns those computed now.

    Args:
        writer: of the entry.
        work: shard -> {array name: rows of the shard}, a pure function of the shard.
        cluster: where; see `cache.jobs.cluster`.
        log: a file that gets one JSON line per partition; $WHENCE_LOG by default.
        desc: the name on the progress bar.
        quiet: no progress bar.

    SIGINT, SIGTERM and SIGUSR1 raise Interrupted between commits. An error in `work` is raised with the partition
    named. Everything committed is kept in both cases.
    """
    count, missing = writer.grid.count, writer.missing
    if missing == 0:
        return []
    if missing < count and not quiet:
        say(f"{desc}: {count - missing} of {count} partitions are committed already.")
    done: list[Record] = []
    with connect(cluster) as workers, watch_signals() as watch, _journal(log, writer) as journal:
        source = _inline(writer, work, watch) if workers.client is None else _spread(writer, work, workers)
        try:
            for record in progress(source, total=missing, desc=desc, unit="part", quiet=quiet):
                done.append(record)
                journal(record, count - missing + len(done))
        except (Interrupted, KeyboardInterrupt) as error:
            reason = error.cause if isinstance(error, Interrupted) else "Stopped."
            raise Interrupted(
                f"{reason} {desc}: {count - writer.missing} of {count} partitions are committed.",
                "Run the same command again: it resumes.",
            ) from None
    return done


def _inline(writer: Writer, work: Work, watch: SignalWatch) -> Iterator[Record]:
    for shard in writer.todo():
        watch.check()
        began = time.monotonic()
        with _named(shard, "this process"):
            arrays = work(shard)
            with watch.deferred():
                writer.write(shard, arrays)
        size = writer.header.shard_bytes(shard.index)
        yield Record(shard, _here(), time.monotonic() - began, size)


def _spread(writer: Writer, work: Work, cluster: Cluster) -> Iterator[Record]:
    from .broadcast import broadcast, withdraw

    name = f"whence-{writer.key}"
    broadcast(cluster.client, name, PartitionTask(writer.backend.address, writer.kind, writer.key, work), WORK_BYTES)
    shards = list(writer.todo())
    futures = cluster.client.map(compute, [shard.index for shard in shards], name=name, key=writer.key[:12], pure=False)
    shard_of = {future.key: shard for future, shard in zip(futures, shards)}
    finished: SimpleQueue = SimpleQueue()
    for future in futures:
        future.add_done_callback(finished.put)
    try:
        for _ in futures:
            future = _next(finished, cluster)
            with _named(shard_of[future.key], "a worker"):
                record = future.result()
            writer.work.rows += len(record.shard)
            writer.work.bytes += record.bytes
            yield record
            future.release()
    finally:
        cluster.client.cancel(futures, force=True)
        withdraw(cluster.client, name)


def _next(finished: "SimpleQueue[Any]", cluster: Cluster) -> Any:
    """The next future that is done; after some seconds without any, lost workers are restarted."""
    while True:
        try:
            stop_if_signalled()
            return finished.get(timeout=SUPERVISE_SECONDS)
        except Empty:
            cluster.revive()
            if cluster.workers == 0:
                say("Waiting for a worker to appear.")


@dataclass(frozen=True)
class PartitionTask:
    """What a worker runs for one partition: compute it unless it is committed, commit it, report."""

    root: str
    kind: str
    key: str
    work: Work

    def __call__(self, index: int) -> Record:
        began = time.monotonic()
        writer = Store(self.root).join(self.kind, self.key)
        try:
            shard = writer.grid.shard(index)
            if not writer.committed(shard):  # it is, if a worker died between commit and report
                writer.write(shard, self.work(shard))
            size = writer.header.shard_bytes(index)
            return Record(shard, _here(), time.monotonic() - began, size)
        finally:
            writer.close()


def compute(index: int, name: str) -> Record:
    """One partition, on a worker that has received the job's task."""
    from .broadcast import received

    return received(name)(index)


def ordered_sum(entry: Entry, name: str) -> np.ndarray:
    """The sum over an array's first axis, row by row in float64: the same bits for any number of workers."""
    spec = entry.arrays[name]
    total = np.zeros(spec.shape[1:], np.float64)
    for row in entry.blocks(name, 1):
        np.add(total, row[0].astype(np.float64), out=total)
    return total


def _here() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@contextlib.contextmanager
def _named(shard: Shard, where: str) -> Iterator[None]:
    """Adds the partition to errors raised in the block; the class of a WhenceError is kept."""
    text = f"Partition {shard.index} (rows {shard.start} to {shard.stop})"
    try:
        with enough_memory("the arrays of this partition"):
            yield
    except WhenceError as error:
        if not error.cause.startswith("Partition "):
            error.cause = f"{text}: {error.cause}"
        raise
    except Exception as error:
        if type(error).__name__ == "KilledWorker":
            raise WhenceError(
                f"{text} took down every worker that computed it (out of memory?).",
                "Give workers more memory, or make partitions smaller. What is committed is kept.",
            ) from error
        raise WhenceError(
            f"{text} failed on {where}: {type(error).__name__}: {error}",
            "Fix that, then run the same command again. What is committed is kept.",
        ) from error


@contextlib.contextmanager
def _journal(path: str | os.PathLike[str] | None, writer: Writer) -> Iterator[Callable[[Record, int], None]]:
    """What writes a JSON line per partition, with how many are done, into this file; a no-op without a path."""
    path, began = path or os.environ.get("WHENCE_LOG"), time.monotonic()
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a") if path else contextlib.nullcontext() as file:

        def line(record: Record, done: int) -> None:
            if file is None:
                return
            about = {
                "time": time.time(),
                "kind": writer.kind,
                "key": writer.key,
                "partition": record.shard.index,
                "start": record.shard.start,
                "stop": record.shard.stop,
                "seconds": round(record.seconds, 4),
                "bytes": record.bytes,
                "worker": record.worker,
                "done": done,
                "of": writer.grid.count,
                "elapsed": round(time.monotonic() - began, 4),
            }
            file.write(json.dumps(about) + "\n")
            file.flush()

        yield line
