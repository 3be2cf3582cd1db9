"""The audit of a request: a no-op is no way, an oracle is all of it, and atoms are compared place by place."""

import numpy as np
import pytest

from whence.decomp import ITDA
from whence.unlearn.evaluate import OracleSplit
from whence.unlearn.loop import run
from whence.unlearn.methods import DMM, FineTune, Matching, Retrain
from whence.unlearn.metrics import KLoM
from whence.unlearn.traces import traces

from . import cases

BUILDER = ITDA(size=40, k=3, unexplained=0.02)


@pytest.fixture(scope="module")
def retrained():
    return run(Retrain(seed=50), cases.document())


def test_an_oracle_has_gone_all_the_way_and_nothing_none(retrained) -> None:
    oracle = retrained.module(0)
    found = traces(cases.document().trained(), np.arange(4), oracle, oracle, at="mix", builder=BUILDER)
    assert found.share == pytest.approx(1.0, rel=1e-5)
    assert found.atoms["agreement"].values == pytest.approx(1.0)
    idle = run(FineTune(epochs=1e-9), cases.document())
    still = traces(cases.document().trained(), np.arange(4), idle.module(), oracle, at="mix", builder=BUILDER)
    before, after, gone = still.influence.mean("query").values
    assert gone > before  # what was never learned has more to teach
    assert abs(after - before) < 0.5 * (gone - before)
    assert still.atoms["agreement"].sel(group="forgotten", model="oracle") == 1.0
    assert set(still.atoms["status"].values) == {"removed", "added", "moved", "kept"}


def test_beside_klom() -> None:
    """A classifier's ensemble: its row of an evaluation stands beside the traces."""
    from whence.cache.retrain.recipe import AdamW
    from whence.unlearn.datamodels import ridge

    request = cases.request()
    done = run(DMM(ridge(cases.subsets()), Matching(steps=20, batch_size=16, optimiser=AdamW(1e-2))), request)
    split = OracleSplit.of(request, cases.oracles(), cases.points(), KLoM(bins=4))
    oracle = run(Retrain(seed=50), request).module(0)
    row = split.score(done.method, split.margins(done), about=done)
    builder = ITDA(size=12, k=3, unexplained=0.01)
    found = traces(request.trained(), request.forget, done.module(), oracle, at="1", builder=builder, row=row)
    assert found.klom is not None
    assert found.klom.method == "DMM"
    assert found.influence.shape == (3, 4)
    assert np.isfinite(found.share)
    text = str(found)
    assert "KLoM p95" in text
    assert "| forgotten | oracle |" in text
    assert "KLoM p95" in found._repr_html_()
    assert "\n" not in repr(found)
