"""The planner: its formulas are what runs count, its simulation can be inverted, and its advice follows its rule."""

import numpy as np
import pytest

from whence.cache import UsageError
from whence.cache.retrain.recipe import AdamW
from whence.cache.retrain.retrained import oracle_masks
from whence.unlearn.datamodels import exact, ridge
from whence.unlearn.evaluate import OracleSplit
from whence.unlearn.loop import run
from whence.unlearn.methods import DMM, Matching, Newton, Retrain
from whence.unlearn.metrics import KLoM
from whence.unlearn.planner import (
    candidates,
    expected_klom,
    pilot_factors,
    plan_deletion,
    predicted_shift,
    remaining_share,
)

from . import cases

METRIC = KLoM(bins=4)


@pytest.fixture(scope="module")
def ways():
    request = cases.request()
    newton = Newton(lambda trained: exact(trained, request.kept, damping=1.0))
    dmm = DMM(ridge(cases.subsets()), Matching(steps=20, batch_size=16, optimiser=AdamW(1e-2)))
    return candidates(request, newton=newton, dmm=dmm)


@pytest.fixture(scope="module")
def pilot():
    forget = np.array([0, 2, 4, 6])
    masks = oracle_masks(cases.train().ids, forget, 2 * cases.MODELS)
    oracles = cases.bank().run(masks, 700 + np.arange(2 * cases.MODELS), quiet=True)
    return OracleSplit.of(cases.request(forget), oracles, cases.points(), METRIC)


def test_passes_are_what_the_runs_count(ways) -> None:
    request = cases.request()
    for way in ways:
        method = Retrain(seed=50) if way.name == "retrain" else way.method
        if method is not None:
            assert run(method, request).passes == pytest.approx(way.passes), way.name


def test_the_simulation_is_inverted() -> None:
    shift = np.linspace(0.5, 2.0, 12)
    floor = expected_klom(0 * shift, 32, METRIC).mean
    values = [expected_klom(f * shift, 32, METRIC).mean for f in (0.5, 1.0, 2.0)]
    assert floor < values[0] < values[1] < values[2]
    for factor, value in zip((0.5, 1.0, 2.0), values):
        assert remaining_share(value, shift, 32, METRIC) == pytest.approx(factor, abs=0.05)
    assert remaining_share(0.5 * floor, shift, 32, METRIC) == 0.0


def test_advice_follows_the_rule(ways, pilot) -> None:
    datamodel = ridge(cases.subsets())
    factors = pilot_factors([pilot], ways, datamodel)
    assert factors["retrain"] == (0.0,)
    request = cases.request()
    assert predicted_shift(request, datamodel).shape == (4,)
    plan = plan_deletion(request, ways, factors, datamodel, metric=METRIC)
    assert [o.candidate.name for o in plan.options] == ["no-op", "Newton", "DMM", "retrain"]
    assert plan["retrain"].klom == pytest.approx(plan.floor)
    assert plan["retrain"].ratio == pytest.approx(1.0)
    assert plan_deletion(request, ways, factors, datamodel, metric=METRIC, slack=1e9).chosen == "no-op"
    poor = {**factors, **dict.fromkeys(("no-op", "Newton", "DMM"), (60.0,))}
    strict = plan_deletion(request, ways, poor, datamodel, metric=METRIC, slack=0.5)
    assert strict.chosen == "retrain"
    assert "no-op would leave" in str(strict)
    with pytest.raises(UsageError, match="No pilot shows what Newton leaves"):
        plan_deletion(request, ways, {"no-op": (1.0,)}, datamodel, metric=METRIC)
    with pytest.raises(UsageError, match="no pilot request"):
        pilot_factors([], ways, datamodel)
