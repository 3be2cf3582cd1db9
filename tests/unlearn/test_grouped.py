"""Group terms: the fast solution against plain ridge, and a coherent removal that no linear datamodel foresees."""

import numpy as np
import pytest

from whence.cache import DataError, Examples
from whence.cache.retrain.retrained import Retrained
from whence.unlearn.datamodels import grouped, nearest, neighbourhood_masks, ridge
from whence.unlearn.datamodels.grouped import POWERS, SIZES, _shares

N, POINTS, MODELS = 60, 4, 400


@pytest.fixture(scope="module")
def data() -> tuple[Examples, Examples]:
    x = np.random.default_rng(0).normal(size=(N + POINTS, 2)).astype(np.float32)
    everything = Examples.of({"x": x, "y": np.arange(N + POINTS) % 2})
    return everything.select(np.arange(N)), everything.select(np.arange(N, N + POINTS))


@pytest.fixture(scope="module")
def bank(data) -> Retrained:
    """Logits that fall with the square of the share of the 10 nearest that is missing, and a little by each."""
    train, points = data
    masks = neighbourhood_masks(nearest(train, train), MODELS)
    missing = 1 - masks[:, nearest(train, points, 10)].mean(-1)
    alone = masks @ np.random.default_rng(1).normal(size=(N, POINTS)) * 0.05
    logits = np.stack([alone - 4 * missing**2, alone], -1).astype(np.float32)
    return Retrained(masks, np.arange(MODELS), train.ids, points.ids, {"logits": logits})


def test_it_is_plain_ridge_on_both_kinds_of_features(bank, data):
    near = nearest(*data)
    found = grouped(bank, near, penalty=2.0)
    shares = _shares(bank.masks, near)[:, 1]
    features = np.c_[bank.masks - bank.masks.mean(0), (shares - shares.mean(0)) / shares.std(0)].astype(np.float64)
    y = bank["logits"][:, 1] - bank["logits"][:, 1].mean(0)
    plain = np.linalg.solve(features.T @ features + 2.0 * np.eye(features.shape[1]), features.T @ y)
    np.testing.assert_allclose(found.linear.weights[:, 1], plain[:N], atol=2e-3)
    np.testing.assert_allclose(found.terms[1], plain[N:], atol=2e-3)
    assert found.terms.shape == (POINTS, len(SIZES) * len(POWERS), 2)


def test_a_neighbourhood_that_goes_at_once_is_foreseen(bank, data):
    train, points = data
    near = nearest(train, points)
    terms, plain = grouped(bank, near, 1.0), ridge(bank, [1.0])
    alone = 0.05 * np.random.default_rng(1).normal(size=(N, POINTS))[:, 0]
    off = {"terms": 0.0, "plain": 0.0}
    for size in (2, 5, 10):
        gone = near[0, :size]
        wanted = -4.0 * (size / 10) ** 2 - alone[gone].sum()
        for name, datamodel in (("terms", terms), ("plain", plain)):
            off[name] += abs(datamodel.predict_delta(train.ids[gone], points)[0, 0] - wanted)
    assert off["terms"] < 0.5 * off["plain"]
    assert terms.lds.value > plain.lds.value
    assert terms.cost.trainings == MODELS


def test_masks_lose_whole_neighbourhoods(data):
    near = nearest(data[0], data[0], 20, within="y")
    assert (near[:, 0] == np.arange(N)).all()
    labels = np.asarray(data[0].columns["y"])
    assert (labels[near] == labels[:, None]).all()
    masks = neighbourhood_masks(near, 50, most=1, share=1.0, smallest=20)
    for mask in masks:
        assert sorted(np.flatnonzero(~mask)) in [sorted(row) for row in near]


def test_what_does_not_fit_is_named(bank, data):
    train, points = data
    with pytest.raises(DataError, match="do not go with a bank"):
        grouped(bank, nearest(train, points, 5))
    with pytest.raises(DataError, match="no 61 nearest"):
        nearest(train, points, 61)
    with pytest.raises(DataError, match="no weights for"):
        grouped(bank, nearest(train, points)).predict_delta(train.ids[:2], train)
