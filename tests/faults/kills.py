"""Processes that die: at random moments, two at a time, and at every single system call of a commit."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from whence.cache import ArraySpec, Store
from whence.cache.jobs.partitions import ordered_sum
from whence.cache.store.writer import open_writer

from .world import (
    ROWS,
    SHARD_ROWS,
    SPECS,
    Acks,
    build,
    check,
    content,
    ended,
    fork,
    kill_soon,
    orphans,
    part,
    scratch,
    system,
)


def _until_built(root: Path, count: int, start: Callable, workers: int, chance: random.Random) -> str:
    """Kill until `count` have died; finish each build, check it, go on with the next."""
    killed = built = acknowledged = 0
    seed, acks, known, within = 0, Acks(), set(), 0.2
    store = Store(root)
    while killed < count or built < 3:
        pids = [fork(start, root, seed, n, acks) for n in range(workers)]
        killed += kill_soon(pids, chance, within)
        news = acks.received()
        within *= 0.7 if len(news) > 3 else 1.15  # so that a build takes a handful of lives
        known |= news
        if not any(store.header(*at).inputs["seed"] == seed for at in store.contents()):
            assert not known
            continue
        if check(store, seed, known) * SHARD_ROWS == ROWS:
            entry = build(store, seed)  # what is left: the seal, and sweeping up
            assert all(entry.read(name).tobytes() == rows.tobytes() for name, rows in content(seed).items())
            entry.close()
            assert orphans(root) == [], "the next start left an orphan"
            built, acknowledged, seed, known = built + 1, acknowledged + len(known), seed + 1, set()
    acks.close()
    return f"{killed} kills over {built} complete builds, {acknowledged} acknowledged shards, 0 lost, 0 wrong"


def writer_kills(long: bool) -> str:
    """A writer is killed at random moments and run again until its entry is complete."""

    def start(root: Path, seed: int, _: int, acks: Acks) -> None:
        build(Store(root), seed, acks)

    with scratch() as root:
        return _until_built(root, 500 if long else 50, start, 1, random.Random(1))


def two_worker_kills(long: bool) -> str:
    """Two workers claim shards in shuffled order and are killed."""

    def start(root: Path, seed: int, number: int, acks: Acks) -> None:
        store = Store(root)
        key = _prepared(store, seed)
        writer = store.join("gradients", key)
        shards = list(writer.grid)
        random.Random(time.time_ns() + number).shuffle(shards)
        for shard in shards:
            if not writer.committed(shard):
                writer.write(shard, part(seed, shard))
                acks(shard.index)

    with scratch() as root:
        return _until_built(root, 300 if long else 30, start, 2, random.Random(2))


def _prepared(store: Store, seed: int) -> str:
    """The key of an entry whose header exists, created if need be."""
    from whence.cache.store.header import new_header
    from whence.cache.store.keys import key_of
    from whence.cache.store.layout import Grid
    from whence.cache.store.writer import create_or_resume

    key = key_of("gradients", {"seed": seed})
    grid = Grid.of(SPECS, SHARD_ROWS)
    create_or_resume(store.backend, new_header("gradients", key, {"seed": seed}, grid, SPECS, None, None))
    return key


def every_system_call(long: bool) -> str:
    """The writer of one shard dies before, and after, each of its system calls; torn ones in the long form."""
    points = 0
    for torn in (False, True) if long else (False,):
        at = 0
        while True:
            with scratch() as root:
                store = Store(root)
                with store.writer("gradients", {"seed": 0}, SPECS, SHARD_ROWS) as w:
                    w.write(w.grid.shard(0), part(0, w.grid.shard(0)))
                pid = fork(_dies, root, at, torn)
                code = ended(pid)
                assert code in (0, -signal.SIGKILL), code
                check(store, 0, {0} | ({1} if code == 0 else set()))
                entry = build(store, 0)
                assert entry.read("x").tobytes() == content(0)["x"].tobytes()
                assert orphans(root) == []
            if code == 0:
                break
            at, points = at + 1, points + 1
    return f"{points} points of one commit, each resumed to the right bytes"


def _dies(root: Path, at: int, torn: bool) -> None:
    store, calls = Store(root), [0]
    key = next(key for _, key in store.contents())
    writer = open_writer(store.backend, "gradients", key)

    def before(name: str, arguments: tuple) -> None:
        if calls[0] == at:
            if torn and name == "writev":
                os.write(arguments[0], bytes(arguments[1][0])[:7])
            os.kill(os.getpid(), signal.SIGKILL)
        calls[0] += 1

    with system(before):
        writer.write(writer.grid.shard(1), part(0, writer.grid.shard(1)))


def build_races(long: bool) -> str:
    """Two processes build the same key from bytes of their own: one of them makes the whole entry."""
    rounds, freed = (300 if long else 25), []
    winners = {0: 0, 1: 0}
    with scratch() as root:
        for number in range(rounds):
            pids = [fork(_race, root, number, n) for n in range(2)]
            assert [ended(pid) for pid in pids] == [0, 0]
            entry = Store(root).open("bank", {"round": number})
            seen = np.unique(entry.read("who"))
            assert len(seen) == 1, "two builders' rows in one entry"
            winners[int(seen[0])] += 1
        for number in range(max(3, rounds // 30)):
            pid = fork(_hold, root, number)
            while not (root / f"locked-{number}").exists():
                time.sleep(0.002)
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            began = time.monotonic()
            _race(root, 10_000 + number, 1)
            freed.append(time.monotonic() - began)
    assert max(freed) < 1.0
    return f"{rounds} races ({winners[0]}:{winners[1]}), no mixture; a dead builder's lock free in {max(freed):.3f} s"


def _race(root: Path, number: int, who: int) -> None:
    specs = {"who": ArraySpec((6,), "int64")}
    with Store(root).writer("bank", {"round": number}, specs, 1) as w:
        for shard in w.todo():
            w.write(shard, {"who": np.array([who])})
        w.seal().close()


def _hold(root: Path, number: int) -> None:
    specs = {"who": ArraySpec((6,), "int64")}
    with Store(root).writer("bank", {"round": 10_000 + number}, specs, 1):
        (root / f"locked-{number}").touch()
        time.sleep(60)


def worker_counts(long: bool) -> str:
    """A covariance begun by two workers, killed, finished by one and by three: the same bits."""
    seeds = 20 if long else 4
    killed = 0
    for seed in range(seeds):
        chance = random.Random(seed)
        with scratch() as folder:
            _fit_worker(folder / "whole", seed, 0, 1, None)
            expected = _covariance(folder / "whole", seed)
            for finishers in (1, 3):
                root = folder / str(finishers)
                pids = [fork(_fit_worker, root, seed, n, 2, 0.002) for n in range(2)]
                killed += kill_soon(pids, chance, 0.06)
                pids = [fork(_fit_worker, root, seed, n, finishers, None) for n in range(finishers)]
                assert [ended(pid) for pid in pids] == [0] * finishers
                assert _covariance(root, seed) == expected, "another number of workers gave other bits"
    return f"{seeds} seeds, 2 workers then 1 and then 3, {killed} killed: bit-identical sums"


FIT = {"a": ArraySpec((16, 8, 8), "float64")}


def _fit_worker(root: Path, seed: int, number: int, of: int, pause: float | None) -> None:
    from whence.cache.store.header import new_header
    from whence.cache.store.keys import key_of
    from whence.cache.store.layout import Grid
    from whence.cache.store.writer import create_or_resume

    store, key = Store(root), key_of("factors", {"seed": seed})
    create_or_resume(store.backend, new_header("factors", key, {"seed": seed}, Grid.of(FIT, 1), FIT, None, None))
    writer = store.join("factors", key)
    for shard in writer.grid:
        if shard.index % of == number and not writer.committed(shard):
            rows = np.random.default_rng((seed, shard.index)).normal(size=(64, 8))
            writer.write(shard, {"a": (rows.T @ rows)[None]})
            if pause is not None:
                time.sleep(pause)


def _covariance(root: Path, seed: int) -> bytes:
    with Store(root).writer("factors", {"seed": seed}, FIT, 1) as w:
        assert w.missing == 0
        return ordered_sum(w.seal(), "a").tobytes()
