"""Rank correlation beside scipy, and the LDS beside its definition."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from whence.cache import DataError
from whence.cache.statistics import lds, lds_difference, spearman


def test_every_column_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 4))
    a[:, 1] = a[:, 1].round()  # ties
    np.testing.assert_allclose(spearman(a, b), [spearmanr(a[:, k], b[:, k])[0] for k in range(4)])
    assert spearman(np.zeros((30, 1)), a[:, :1])[0] == 0


@pytest.mark.parametrize("over_subsets", [True, False])
def test_the_score_and_its_interval(over_subsets: bool) -> None:
    rng = np.random.default_rng(1)
    actual = rng.normal(size=(40, 6))
    found = lds(actual + rng.normal(size=(40, 6)), actual, over_subsets=over_subsets, resamples=200)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(found.per_query.mean())
    assert found.subsets == 40
    actual[:, 0] = 1.0
    assert lds(actual, actual, over_subsets=over_subsets, resamples=20).constant == 1


def test_a_difference_is_paired() -> None:
    rng = np.random.default_rng(2)
    actual = rng.normal(size=(40, 6))
    close = actual + 0.3 * rng.normal(size=(40, 6))
    assert lds_difference(close, close, actual, resamples=20).value == 0
    better = lds_difference(close, rng.normal(size=(40, 6)), actual, resamples=100)
    assert better.low > 0
    assert better.below == 0


def test_too_few_subsets() -> None:
    few = np.random.default_rng(0).normal(size=(10, 3))
    assert lds(few, few, over_subsets=False).subsets == 10
    with pytest.raises(DataError, match="too few"):
        lds(few, few)
    with pytest.raises(DataError, match="too few"):
        lds(few[:7], few[:7], over_subsets=False)
