"""The audit of a deletion: nothing done is no way, an oracle is all of it, and atoms are compared place by place."""

import numpy as np
import pytest

from whence.decomp import ITDA
from whence.unlearn.evaluate import Panel
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
    found = traces(retrained, oracle, at="mix", builder=BUILDER)
    assert found.share == pytest.approx(1.0, rel=1e-5)
    assert found.atoms["agreement"].values == pytest.approx(1.0)
    idle = run(FineTune(epochs=1e-9), cases.document())
    still = traces(idle, oracle, at="mix", builder=BUILDER)
    before, after, gone = still.influence.mean("query").values
    assert gone > before  # what was never learned has more to teach
    assert abs(after - before) < 0.5 * (gone - before)
    assert still.atoms["agreement"].sel(group="forgotten", model="oracle") == 1.0
    assert set(still.atoms["status"].values) == {"removed", "added", "moved", "kept"}


def test_beside_klom() -> None:
    """A classifier's ensemble: the row of its panel stands beside the traces."""
    from whence.cache.retrain.recipe import AdamW
    from whence.unlearn.datamodels import ridge

    deletion = cases.deletion()
    done = run(DMM(ridge(cases.subsets()), Matching(steps=20, batch_size=16, optimiser=AdamW(1e-2))), deletion)
    panel = Panel.of(deletion, cases.oracles(), cases.points(), KLoM(bins=4))
    oracle = run(Retrain(seed=50), deletion).module(0)
    found = traces(done, oracle, at="1", builder=ITDA(size=12, k=3, unexplained=0.01), panel=panel)
    assert found.klom is not None
    assert found.klom.method == "DMM"
    assert found.influence.shape == (3, 4)
    assert np.isfinite(found.share)
    text = str(found)
    assert "KLoM p95" in text
    assert "| forgotten | oracle |" in text
    assert "KLoM p95" in found._repr_html_()
    assert "\n" not in repr(found)
