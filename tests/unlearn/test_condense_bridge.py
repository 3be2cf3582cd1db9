"""A condensed retain set stands in for real retained data (protocol J): a quarter of the storage or less, validation
KLoM within 1 of the real thing."""

import numpy as np

from unlearn.condense import MLP, Pool, Settings, condense
from unlearn.datamodels import ridge
from unlearn.loop import run
from unlearn.methods import DMM, Matching

from . import cases


def test_datamodel_matching_with_a_condensed_retain_set():
    from cache.training import AdamW
    from unlearn.evaluate import Panel
    from unlearn.metrics import KLoM

    kept = cases.deletion().kept
    settings = Settings("dcc", MLP((8,)), per_class=3, outer=10, inner=3, epochs=2, real_batch=16, warm_outer=0)
    (made,) = condense(Pool.of(kept), settings, quiet=True)
    retain = made.examples
    assert 4 * len(retain) <= len(kept)
    assert not np.isin(retain.ids, cases.points().ids).any()
    method, found = DMM(ridge(cases.subsets()), Matching(steps=30, batch_size=16, optimiser=AdamW(1e-2))), {}
    for name, deletion in {"real": cases.deletion(), "condensed": cases.deletion(retain=retain)}.items():
        panel = Panel.of(deletion, cases.oracles(), cases.points(), KLoM(bins=4))
        found[name] = panel.score(name, panel.margins(run(method, deletion))).klom["validation"].p95
    assert found["condensed"] <= found["real"] + 1
