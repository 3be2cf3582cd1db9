"""The top k against the sorted scores."""

import numpy as np
import pytest

from whence.attrib.scoring.top import largest
from whence.cache import Store, UsageError


@pytest.mark.parametrize("stored", [False, True])
def test_top_is_the_extremes_of_the_sorted_scores(fitted, tmp_path, monkeypatch, stored) -> None:
    monkeypatch.setattr("whence.attrib.scoring.top.SHARD_ROWS", 11)
    store = Store(tmp_path) if stored else None
    factors, exact, ids = fitted.factors.on(fitted.trained.replace(store=store)), fitted.exact, fitted.trained.train.ids
    found = factors.top(fitted.queries, 4)
    order = np.argsort(-exact, axis=1)
    np.testing.assert_array_equal(found.helpful_id.values, ids[order[:, :4]])
    np.testing.assert_array_equal(found.harmful_id.values, ids[order[:, ::-1][:, :4]])
    np.testing.assert_allclose(found.helpful.values, np.take_along_axis(exact, order[:, :4], 1), rtol=1e-4)
    if store is not None:
        factors.top(fitted.queries, 4)
        assert store.events[-1].what == "hit"
    with pytest.raises(UsageError, match="k = 0"):
        factors.top(fitted.queries, 0)


def test_largest_pads_short_rows() -> None:
    values, places = largest(np.array([[1.0, 3.0, 3.0]]), 5)
    np.testing.assert_array_equal(values, [[3, 3, 1, -np.inf, -np.inf]])
    np.testing.assert_array_equal(places, [[1, 2, 0, -1, -1]])


@pytest.mark.parametrize("k", [1, 3, 20, 40])
def test_largest_is_a_stable_sort_of_everything(k: int) -> None:
    """Ties, infinities and what is no number among them."""
    scores = np.random.default_rng(0).integers(0, 5, (6, 20)).astype(np.float32)
    scores[1, :18], scores[2, 3:9], scores[3] = np.nan, -np.inf, 2.0
    places = largest(scores, k)[1]
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(places[:, : wanted.shape[1]], wanted)
