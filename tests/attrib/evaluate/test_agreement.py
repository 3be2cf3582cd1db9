"""LDS where scores are the truth, noise, or of something else."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.attrib.evaluate.problems import additive_bank, labelled
from whence.attrib.evaluate import (
    compare,
    lds,
)
from whence.cache import (
    DataError,
)


def test_lds_is_one_for_the_truth_and_nothing_for_noise() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(6, 30))
    bank = additive_bank(truth)
    perfect = lds(labelled(truth), bank, resamples=50)
    assert perfect.value == pytest.approx(1.0)
    assert perfect.low == pytest.approx(1.0)
    assert lds(labelled(truth), bank, "losses", resamples=20).value == pytest.approx(1.0)
    shuffled = rng.permutation(30)
    again = labelled(truth[:, shuffled], train=shuffled)  # the order of the training examples does not matter
    assert lds(again, bank, resamples=20).value == pytest.approx(1.0)
    chance = lds(labelled(rng.normal(size=(6, 30))), bank, resamples=200)
    assert chance.low < 0 < chance.high
    noisy = truth + rng.normal(size=truth.shape)
    found = lds(labelled(noisy), bank, resamples=200)
    by_hand = [spearmanr(bank.masks @ noisy[q], bank["measurements"][:, q])[0] for q in range(6)]
    np.testing.assert_allclose(found.per_query, by_hand)
    assert found.low < found.value < found.high
    better = compare(labelled(noisy), labelled(rng.normal(size=(6, 30))), bank, resamples=200)
    assert better.low > 0
    assert compare(labelled(noisy), labelled(noisy), bank, resamples=20).value == 0
    assert "LDS" in str(found)
    assert "difference" in str(better)


def test_models_of_one_subset_are_averaged() -> None:
    truth = np.random.default_rng(2).normal(size=(3, 20))
    noisy = additive_bank(truth, 30, noise=3.0)
    calmer = additive_bank(truth, 30, noise=3.0, seeds=8)
    assert lds(labelled(truth), calmer, resamples=20).subsets == 30
    assert lds(labelled(truth), calmer, resamples=20).value > lds(labelled(truth), noisy, resamples=20).value


def test_lds_of_what_does_not_match_is_refused() -> None:
    truth = np.random.default_rng(3).normal(size=(3, 20))
    with pytest.raises(DataError, match="too few"):
        lds(labelled(truth), additive_bank(truth, 8))
    with pytest.raises(DataError, match="20 training examples"):
        lds(labelled(truth), additive_bank(truth[:, :18]))
    with pytest.raises(DataError, match="no outputs for some of these points: 1 ids"):
        lds(labelled(truth, queries=[0, 1, 9]), additive_bank(truth))
    with pytest.raises(DataError, match="kept no"):
        lds(labelled(truth), additive_bank(truth), "margins")
    with pytest.raises(DataError, match="other queries"):
        compare(labelled(truth), labelled(truth[::-1], queries=[2, 1, 0]), additive_bank(truth))
    broken = truth.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        lds(labelled(broken), additive_bank(truth))
