"""Recall of candidates, by hand."""

import numpy as np
import pytest
import xarray

from tests import cases
from whence.attrib.index.prefilter import RULES, lexical_scores
from whence.attrib.index.recall import recall_by_share, recall_of
from whence.cache import DataError


@pytest.fixture
def exact() -> xarray.DataArray:
    values = np.random.default_rng(0).normal(size=(4, 40))
    return xarray.DataArray(values, dims=("query", "train"), coords={"query": np.arange(4), "train": np.arange(40) * 3})


def test_recall_counts_what_was_found(exact) -> None:
    ids = exact["train"].values
    order = ids[np.argsort(-exact.values, axis=1)]
    np.testing.assert_array_equal(recall_of(order[:, :5], exact, 10), 0.5)
    np.testing.assert_array_equal(recall_of(ids[None].repeat(4, 0), exact, 10), 1.0)
    own = {int(q): int(order[row, 0]) for row, q in enumerate(exact["query"].values)}
    np.testing.assert_array_equal(recall_of(order[:, 1:11], exact, 10, own), 1.0)


def test_recall_rises_with_the_share_that_is_scored(exact) -> None:
    queries, train = cases.sequences(4, seed=9), cases.sequences(40, seed=1)
    for rule in RULES:
        curve = recall_by_share(lexical_scores(queries, train, rule), exact, rule=rule)
        assert curve.recall[-1] == 1.0
        assert (np.diff(curve.recall) >= 0).all()
        assert rule in str(curve)
    perfect = recall_by_share(exact.values, exact, k=10, shares=(0.25, 1.0))
    np.testing.assert_array_equal(perfect.recall, [1.0, 1.0])
    with pytest.raises(DataError, match="Score the same"):
        recall_by_share(exact.values[:1], exact)
