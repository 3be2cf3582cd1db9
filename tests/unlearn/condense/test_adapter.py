"""A condensed retain set stands in for real retained data (protocol J): a quarter of the storage or less, validation
KLoM within 1 of the real thing."""

import numpy as np
import pytest
import xarray

from whence.cache import DataError, UsageError
from whence.unlearn.condense import MLP, Pool, Settings, Training, at_equal_size, condensed_retain, select
from whence.unlearn.datamodels import ridge
from whence.unlearn.loop import run
from whence.unlearn.methods import DMM, Matching

from .. import cases

SETTINGS = Settings("dcc", MLP((8,)), per_class=3, outer=10, inner=3, epochs=2, real_batch=16, warm_outer=0)


def test_datamodel_matching_with_a_condensed_retain_set():
    from whence.cache.retrain.recipe import AdamW
    from whence.unlearn.evaluate import OracleSplit
    from whence.unlearn.metrics import KLoM

    condensed = condensed_retain(cases.request(), SETTINGS)
    assert 4 * len(condensed.kept) <= len(cases.request().kept)
    assert not np.isin(condensed.kept.ids, cases.points().ids).any()
    with pytest.raises(UsageError, match="replaced already"):
        condensed_retain(condensed, SETTINGS)
    method, found = DMM(ridge(cases.subsets()), Matching(steps=30, batch_size=16, optimiser=AdamW(1e-2))), {}
    for name, request in {"real": cases.request(), "condensed": condensed}.items():
        split = OracleSplit.of(request, cases.oracles(), cases.points(), KLoM(bins=4))
        found[name] = split.score(name, split.margins(run(method, request))).klom["validation"].p95
    assert found["condensed"] <= found["real"] + 1


def test_selection_by_influence_and_condensation_at_equal_size():
    train = cases.train()
    pool = Pool.of(train)
    held_out = cases.points().select(np.arange(cases.TRAIN, cases.TRAIN + cases.VALIDATION))
    test = Pool.of(held_out, pool.classes, pool.scaling)
    values = np.random.default_rng(0).normal(size=(2, len(train)))
    scores = xarray.DataArray(values, dims=("query", "train"), coords={"query": [0, 1], "train": train.ids})
    chosen = select(pool, "influence", 3, scores=scores)
    for c in range(pool.classes):
        mine = pool.ids[pool.y == c]
        best = mine[np.argsort(-values.mean(0)[pool.y == c])[:3]]
        assert set(chosen.ids[chosen.y == c]) == set(best)
    found = at_equal_size(pool, test, scores, SETTINGS, Training(5), seeds=(0, 1), networks=2)
    assert {name: a.values.shape for name, a in found.items()} == {
        "random": (2, 2), "herding": (1, 2), "influence": (1, 2), "dcc": (2, 2)
    }  # fmt: skip
    with pytest.raises(DataError, match="has no score"):
        select(pool, "influence", 3, scores=scores[:, 1:])
