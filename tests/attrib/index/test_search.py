"""The compressed index against exact scores."""

import numpy as np
import pytest
import xarray

from tests import cases
from whence.attrib import EKFAC, Factors
from whence.attrib.index import Sketch, build_index
from whence.attrib.index.recall import recall_of
from whence.attrib.index.search import index_inputs
from whence.cache import DataError, Examples, Store, TrainedModel, UsageError
from whence.cache.store.keys import key_of


@pytest.fixture(scope="module")
def factors() -> Factors:
    case = cases.build("attention")
    train = cases.sequences(40, seed=1)
    return EKFAC().fit(TrainedModel(case.model.float(), train, case.task, sites=["qkv", "up"], quiet=True))


@pytest.fixture(scope="module")
def queries() -> Examples:
    return cases.sequences(4, seed=9)


@pytest.fixture(scope="module")
def exact(factors, queries) -> xarray.DataArray:
    return factors.score(queries)


def stored(factors: Factors, folder) -> Factors:
    return factors.on(factors.trained.replace(store=Store(folder)))


@pytest.mark.parametrize("kind", ["rank", "largest", "random"])
def test_a_wide_index_is_the_score_and_a_narrow_one_near_it(factors, queries, exact, tmp_path, kind) -> None:
    factors = stored(factors, tmp_path)
    whole = build_index(factors, sketch=Sketch(kind, 2000))
    np.testing.assert_allclose(whole.scores(queries), exact.values, atol=2e-3 * np.abs(exact.values).max())  # 16 bits
    assert whole.entry.arrays["rows"].dtype.name == "float16"
    found = []
    for seed in range(12 if kind == "random" else 1):
        narrow = build_index(factors, sketch=Sketch(kind, 120, seed))
        assert narrow.entry.arrays["rows"].shape[1] <= 120
        found.append(narrow.scores(queries))
    # random projections are right on average, the others by themselves
    assert np.corrcoef(np.mean(found, 0).ravel(), exact.values.ravel())[0, 1] > 0.6
    build_index(factors, sketch=Sketch(kind, 120))
    assert factors.trained.store.events[-1].what == "hit"


def test_search_then_rerank(factors, queries, exact, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("whence.attrib.index.search.BLOCK_ROWS", 7)
    index, train = build_index(stored(factors, tmp_path), sketch=Sketch(width=120)), factors.trained.train
    hits = index.search(queries, 20)
    scores = index.scores(queries)
    np.testing.assert_array_equal(hits.ids, train.ids[np.argsort(-scores, axis=1, kind="stable")[:, :20]])
    best = index.rerank(hits, queries, 5)
    for row in range(len(queries)):
        own = exact.values[row, train.rows_of(hits.ids[row])]
        np.testing.assert_allclose(best.scores[row], np.sort(own)[::-1][:5], rtol=1e-4)
    assert recall_of(best.ids, exact, 5).mean() > 0.8


def test_what_cannot_be_indexed_is_refused(factors, tmp_path) -> None:
    with pytest.raises(UsageError, match="kept in a store"):
        build_index(factors)
    index = build_index(stored(factors, tmp_path), sketch=Sketch(width=60))
    tokens = factors.trained.train.columns["input_ids"][:2]
    masked = Examples.of({"input_ids": tokens, "labels": [np.full(len(t), -100) for t in tokens]})
    with pytest.raises(DataError, match="have a zero gradient"):
        index.search(masked, 3)


def test_rows_of_another_layout_are_not_misread(factors, monkeypatch) -> None:
    now = index_inputs(factors, factors.trained.train, Sketch())
    monkeypatch.setattr("whence.attrib.index.search.LAYOUT", 1)
    before = index_inputs(factors, factors.trained.train, Sketch())
    assert key_of("gradients", now) != key_of("gradients", before)
