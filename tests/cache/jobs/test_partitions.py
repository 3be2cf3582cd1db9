"""The job engine: any number of workers, deaths in the middle, errors with the partition named, signals."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import distributed
import numpy as np
import pytest

import whence
from tests import cases
from whence.cache import ArraySpec, Store, activations, errors
from whence.cache.jobs import broadcast
from whence.cache.jobs.cluster import connect
from whence.cache.jobs.partitions import ordered_sum, run_job
from whence.cache.jobs.signals import stop_if_signalled, watch_signals
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import Recipe
from whence.cache.retrain.retrained import subset_masks

from .work import Covariance, DiesOnce, Fails, rows_of

ARRAYS = {"a": ArraySpec((12, 5, 5), "float64"), "count": ArraySpec((12,), "int64")}


def fit(place: Store, work, cluster="inline", **options):
    return run_job(place, "factors", {"x": 1}, ARRAYS, work, shard_rows=1, cluster=cluster, **options)


@pytest.fixture(scope="module")
def workers():
    with connect("local:2", heartbeat=5) as cluster:
        yield cluster


def bits(entry) -> bytes:
    return ordered_sum(entry, "a").tobytes()


def test_partitions_add_up(place, tmp_path):
    entry = fit(place, Covariance(), log=tmp_path / "log.jsonl")
    x = rows_of(0, 120)
    np.testing.assert_allclose(ordered_sum(entry, "a"), x.T @ x, rtol=1e-12)
    assert ordered_sum(entry, "count") == 120
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["partition"] for line in lines] == list(range(12))
    assert lines[-1]["done"] == lines[-1]["of"] == 12
    assert fit(place, Fails()).key == entry.key  # complete: nothing is called


def test_any_number_of_workers_gives_the_same_bits(place, quick, workers):
    spread = fit(Store(quick / "two"), Covariance(), workers)
    assert bits(spread) == bits(fit(place, Covariance()))
    assert spread.read("count").tolist() == [10] * 12


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced(place, quick, tmp_path, workers, how):
    other = Store(quick / "two")
    entry = fit(other, DiesOnce(marker=str(tmp_path / "died"), how=how), workers)
    assert (tmp_path / "died").exists()
    assert bits(entry) == bits(fit(place, Covariance()))
    assert other.events[-1].rows == 12


def test_an_error_names_its_partition_and_keeps_the_rest(place, workers):
    with pytest.raises(errors.WhenceError, match=r"Partition 2 \(rows 2 to 3\) failed .*ZeroDivisionError: no rows"):
        fit(place, Fails())
    with pytest.raises(errors.WhenceError, match=r"Partition 2 .*ZeroDivisionError"):
        fit(place, Fails(), workers)
    before = int(place.open("factors", {"x": 1}, partial=True).mask.sum())
    assert before >= 2
    fit(place, Covariance(), workers)
    assert place.events[-1].what == "resumed"
    assert place.events[-1].rows <= 12 - before  # a task under way then may have committed since


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_says_how_to_resume(place, number):
    former = signal.getsignal(number)

    def work(shard):
        if shard.index == 4:
            os.kill(os.getpid(), number)
        return Covariance()(shard)

    with pytest.raises(errors.Interrupted, match=r"factors: 4 of 12 partitions are committed(.|\n)*same command"):
        fit(place, work)
    assert signal.getsignal(number) is former
    assert fit(place, Covariance()).sealed


def test_elsewhere_than_the_main_thread(place):
    out = []
    thread = threading.Thread(target=lambda: out.append(fit(place, Covariance())))
    thread.start()
    thread.join()
    assert out[0].sealed


def test_a_running_scheduler(place, workers):
    address = workers.client.scheduler.address
    workers.client.wait_for_workers(2, timeout=60)  # one may be about to come back from a death above
    with connect(f"dask:{address}") as cluster:
        assert cluster.workers == 2
        assert fit(place, Covariance(), cluster).sealed


@dataclass(frozen=True)
class Heavy(Covariance):
    """Work as large as a model."""

    weights: np.ndarray = field(default_factory=lambda: np.ones(1 << 18))

    def __call__(self, shard):
        assert self.weights.sum() == 1 << 18
        return super().__call__(shard)


def test_work_that_carries_a_model(place, quick, workers, monkeypatch):
    """It is sent to each worker once; too much is refused."""
    assert bits(fit(place, Heavy(), workers)) == bits(fit(Store(quick / "one"), Covariance()))
    monkeypatch.setattr("whence.cache.jobs.partitions.WORK_BYTES", 1 << 20)
    with pytest.raises(errors.UsageError, match="carries 2 MiB"):
        fit(Store(quick / "refused"), Heavy(), workers)


def test_activations_and_banks_on_workers(quick, workers, monkeypatch):
    """Other long jobs run the same way, with the same bits."""
    monkeypatch.setattr("whence.cache.model.activations.SHARD_BYTES", 7 * 16 * 4)
    monkeypatch.setattr("whence.cache.retrain.bank.MODELS_IN_A_SHARD", 2)
    case, vectors = cases.build("attention"), cases.build("mlp")
    bank = Bank(vectors.model, vectors.task, vectors.examples, vectors.examples, Recipe(1, 5))
    masks = subset_masks(len(vectors.examples), 4, 0.5)
    found = []
    for name, cluster in (("one", "inline"), ("two", workers)):
        store = Store(quick / name)
        seen = activations(case.trained(store=store, cluster=cluster), "up")
        models = bank.run(masks, store=store, cluster=cluster, quiet=True)
        found.append((seen.read("up").tobytes(), models["logits"][:].tobytes()))
    assert found[0] == found[1]


def test_a_signal_that_a_library_swallows_stops_the_job_before_the_next_partition(place):
    def work(shard):
        if shard.index == 4:
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)
        return Covariance()(shard)

    with pytest.raises(errors.Interrupted, match="SIGTERM"):
        fit(place, work)
    assert place.open("factors", {"x": 1}, partial=True).mask.sum() in (4, 5)


def test_no_handler_of_exceptions_catches_an_interruption():
    assert not issubclass(errors.Interrupted, Exception)
    assert errors.Interrupted("a", "b").exit_code == 130


def test_a_loop_inside_a_loop_stops_both():
    def outer():
        with watch_signals():
            with contextlib.suppress(errors.Interrupted), watch_signals():
                signal.raise_signal(signal.SIGTERM)
            stop_if_signalled()
            raise AssertionError("the outer loop ran on")

    with pytest.raises(errors.Interrupted):
        outer()
    stop_if_signalled()  # no block is open


def test_a_worker_of_other_code_is_refused(place, tmp_path):
    """It would commit its own numbers under the key of this code."""
    here = Path(whence.__file__).parent
    shutil.copytree(here, tmp_path / "whence", ignore=shutil.ignore_patterns("__pycache__"))
    changed = tmp_path / "whence/cache/retrain/scan.py"
    changed.write_text(changed.read_text() + "\n# another version\n")
    with distributed.LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as cluster:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        command += ["--no-nanny", "--no-dashboard", "--nthreads", "1"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        worker = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        try:
            with connect(f"dask:{cluster.scheduler_address}") as workers:
                workers.client.wait_for_workers(1, timeout=60)
                with pytest.raises(errors.ResourceError, match=r"runs other code of whence(.|\n)*same version"):
                    fit(place, Covariance(), workers)
        finally:
            worker.kill()
            worker.wait()


def test_a_worker_that_comes_later_checks_its_code(monkeypatch):
    import types

    plugin = broadcast.CheckedBroadcast("job", b"", "0.1 of another day")
    monkeypatch.setattr(broadcast.distributed, "get_worker", lambda: types.SimpleNamespace(address="tcp://it"))
    with pytest.raises(errors.ResourceError, match="tcp://it runs other code"):
        _ = plugin.work
