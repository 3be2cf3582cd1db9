"""Retraining without the top examples, on a problem where they help."""

import numpy as np
import pytest
import xarray

from tests.attrib.evaluate.problems import small_bank, trained_net
from whence.attrib import EKFAC, Damping
from whence.attrib.evaluate import (
    brittleness,
    brittleness_of_all,
    compare,
    lds,
    qld,
)
from whence.cache import (
    DataError,
    TrainedModel,
    UsageError,
)
from whence.cache.retrain.retrained import subset_masks


def test_influence_predicts_retraining_and_removals_hurt() -> None:
    bank = small_bank()
    trained = TrainedModel(trained_net(bank), bank.train, bank.task, quiet=True)
    retrained = bank.run(subset_masks(42, 40, 0.5), np.zeros(40, int), quiet=True)
    scores = EKFAC(damping=Damping(0.03)).fit(trained).score(bank.points)
    found = lds(scores, retrained, resamples=100)
    assert found.value > 0.6
    chance = scores.copy(data=np.random.default_rng(0).normal(size=scores.shape))
    assert compare(scores, chance, retrained, resamples=100).low > 0
    removals = brittleness(scores, bank, [2, 6], seeds=1, random=3, quiet=True)
    assert all(excess.value > 0 for excess in removals.excess)
    assert removals.excess[1].value > removals.excess[0].value
    assert "left out" in str(removals)
    rise = qld(scores, bank, share=0.1, seeds=1, random=3, quiet=True)
    assert rise.removed.tolist() == [4]
    assert rise.excess[0].value > 0
    np.testing.assert_allclose(  # log-probability falls by what the loss rises
        brittleness(scores, bank, [4], seeds=1, random=3, quiet=True).top, rise.top, rtol=1e-4
    )
    with pytest.raises(UsageError, match="Cannot leave"):
        brittleness(scores, bank, [42], quiet=True)
    with pytest.raises(DataError, match="keeps no 'losses'"):
        qld(scores, small_bank(("measurements",)), quiet=True)


def test_methods_share_the_models_that_leave_out_the_same(monkeypatch) -> None:
    bank, trained_models = small_bank(), []
    ids, points = bank.train.ids, bank.points.ids
    values = np.random.default_rng(0).normal(size=(len(points), len(ids)))
    scores = xarray.DataArray(values, dims=("query", "train"), coords={"query": points, "train": ids})
    own_run = type(bank).run

    def counted(self, masks, *rest, **options):
        trained_models.append(len(masks))
        return own_run(self, masks, *rest, **options)

    monkeypatch.setattr(type(bank), "run", counted)
    options = {"seeds": 1, "random": 3, "quiet": True}
    every = brittleness_of_all({"a": scores, "twice a": 2 * scores, "-a": -scores}, bank, [2], **options)
    alone = brittleness(-scores, bank, [2], **options)
    assert trained_models[0] == 4 + 2 * len(points)
    np.testing.assert_allclose(every["-a"].top, alone.top, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(every["-a"].random, alone.random, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(every["a"].top, every["twice a"].top)
    assert np.abs(every["a"].top - every["-a"].top).max() > 1e-3
