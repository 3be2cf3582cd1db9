"""Selection by hand."""

import numpy as np
import pytest

from tests.attrib.evaluate.problems import clusters, labelled
from whence.attrib.selection import bids, dsir, hashed_ngrams, top_k
from whence.cache import (
    DataError,
    Examples,
    UsageError,
)


def test_top_k_and_balance_by_hand() -> None:
    # one task dwarfs the other: top-k serves only it, balance serves both
    values = np.array([[10.0, 9.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.1, 0.3, 0.2]])
    scores = labelled(values, train=[50, 51, 52, 53, 54])
    assert top_k(scores, 2).tolist() == [50, 51]
    assert top_k(scores, 1, by="max").tolist() == [50]
    a = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    chosen = [int(np.argmax(a.max(0)))]
    while len(chosen) < 3:
        gain = (a - a[:, chosen].mean(1, keepdims=True)).max(0)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
    assert bids(scores, 3).tolist() == (50 + np.array(chosen)).tolist()
    assert set(bids(scores, 2).tolist()) == {50, 53}
    assert len(set(bids(scores, 5, tasks=["a", "a"]).tolist())) == 5
    with pytest.raises(UsageError, match="Cannot choose 6"):
        bids(scores, 6)
    with pytest.raises(DataError, match="1 tasks for 2"):
        bids(scores, 2, tasks=["a"])


def test_importance_resampling_prefers_what_looks_like_the_target() -> None:
    rng = np.random.default_rng(0)
    raw = Examples.of({"input_ids": [rng.integers(0, 50, 20) + (50 if row < 10 else 0) for row in range(60)]})
    target = Examples.of({"input_ids": [rng.integers(50, 100, 20) for _ in range(10)]})
    assert set(dsir(target, raw, 10, seed=None).tolist()) == set(range(10))
    drawn = dsir(target, raw, 10, seed=1)
    assert len(set(drawn.tolist())) == 10
    assert np.isin(drawn, np.arange(10)).mean() > 0.8
    counts = hashed_ngrams(Examples.of({"input_ids": [np.array([1, 2, 1])]}), 1000)
    assert counts.sum() == 5
    assert counts.max() == 2
    with pytest.raises(DataError, match="compares tokens"):
        dsir(clusters()[0], raw, 2)
