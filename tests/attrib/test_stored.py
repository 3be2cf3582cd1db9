"""Fits and scores that keep batches in the store, or spread over workers, give what the model itself gives."""

import os
from typing import Any

import numpy as np
import pytest

from tests import cases
from whence import attrib
from whence.attrib import EKFAC
from whence.cache import Examples, Store, gradients
from whence.cache.jobs.cluster import connect
from whence.cache.model.gradients import open_gradients

from .deadly import DiesTwice


@pytest.fixture(scope="module")
def case() -> cases.Case:
    found = cases.build("attention")
    return cases.Case("float32", found.model.float(), cases.sequences(12), found.task, {"pattern": ["qkv", "up"]})


def test_stored_batches_are_the_models_own(case: cases.Case, tmp_path) -> None:
    run = case.trained(positions=16).run("loss", case.sites)  # each width fills a batch, as it does in the store
    stored = gradients(run, Store(tmp_path))
    again = open_gradients(run, Store(tmp_path))
    for rows in (np.arange(12), np.array([7, 2, 3])):
        for own, saved, reopened in zip(run.batches(rows), stored.batches(rows), again.batches(rows)):
            np.testing.assert_array_equal(own.rows, saved.rows)
            for name in case.sites.names:
                for part in ("inputs", "grads", "weights"):
                    value = np.asarray(getattr(own, part)[name])
                    np.testing.assert_allclose(getattr(saved, part)[name], value, rtol=1e-5, atol=1e-7)
                    np.testing.assert_array_equal(getattr(reopened, part)[name], getattr(saved, part)[name])


def test_fit_through_the_store_when_memory_is_short(case: cases.Case, tmp_path) -> None:
    wanted = EKFAC(redraw=False).fit(case.trained())
    store = Store(tmp_path)
    found = EKFAC(redraw=False).fit(case.trained(store=store, memory=36_000, positions=40))
    assert "gradients" in {event.kind for event in store.events}
    for name, state in wanted.per_site.items():
        np.testing.assert_allclose(found.per_site[name].eigenvalues.sum(), state.eigenvalues.sum(), rtol=1e-5)


def test_scores_from_stored_gradients_do_not_run_the_model(case: cases.Case, tmp_path) -> None:
    store = Store(tmp_path)
    queries = case.examples.select(range(3))
    factors = EKFAC().fit(case.trained())
    wanted = factors.score(queries)
    gradients(case.trained().run("loss", case.sites), store)
    runs: list[int] = []
    hook = case.model.register_forward_pre_hook(lambda module, arguments: runs.append(len(arguments[0])))
    found = factors.on(case.trained(store=store, check=False)).score(queries)
    hook.remove()
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-4, atol=1e-9)
    assert sum(runs) < len(case.examples)  # queries and probes only


def test_workers_give_the_same_bits(case: cases.Case, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, one of which is killed in the middle of the fit and one in the middle of the scoring."""
    monkeypatch.setattr("whence.attrib.fit.PARTITION_EXAMPLES", 4)
    queries = case.examples.select(range(3))

    def run(name: str, **more: Any) -> tuple[attrib.Factors, np.ndarray]:
        factors = EKFAC().fit(case.trained(store=Store(tmp_path / name), positions=40, **more))
        return factors, factors.score(queries).values

    one, one_scores = run("one")
    with connect("local:2") as workers:
        deadly = DiesTwice(home=os.getpid(), markers=str(tmp_path))
        two, two_scores = run("two", task=deadly, cluster=workers)
    assert {"fit", "score"} <= {path.name for path in tmp_path.iterdir()}
    for name, state in one.per_site.items():
        np.testing.assert_array_equal(two.per_site[name].eigenvalues, state.eigenvalues)
    np.testing.assert_array_equal(two_scores, one_scores)


def test_some_of_stored_queries_are_not_scored_again(case: cases.Case, tmp_path, monkeypatch) -> None:
    queries = case.examples.select(range(5))
    factors = EKFAC().fit(case.trained(store=Store(tmp_path)))
    whole, by_site = factors.score(queries), factors.score(queries, per_site=True)
    monkeypatch.setattr("whence.attrib.factors.over_rows", lambda *_: pytest.fail("computed again"))
    some = queries.select([3, 1])
    other = Examples(some.columns, some.ids + 100, some.about)  # the same queries under other ids
    np.testing.assert_array_equal(factors.score(other).values, whole.values[[3, 1]])
    np.testing.assert_array_equal(factors.score(some, per_site=True).values, by_site.values[[3, 1]])
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        factors.score(case.examples.select([3, 7]))
