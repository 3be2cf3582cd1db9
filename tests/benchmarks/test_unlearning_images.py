"""The benchmark of images: forget sets that share nothing, a control that knows only sizes, fair budgets."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import unlearning_images
from benchmarks.harness import Run
from benchmarks.unlearning_images import CPU, KINDS, AverageShift, candidates, judged, setting
from benchmarks.unlearning_planner import KINDS as KINDS_OF_DIGITS
from benchmarks.unlearning_planner import calibration, forget_set
from whence.cache import SGD, DataError
from whence.unlearn.forget_sets import principal
from whence.unlearn.loop import run
from whence.unlearn.methods import DMM

TINY = replace(CPU, train=80, held=20, models=8, subsets=48, forget=16, side=8, width=8, blocks=1, epochs=3)


@pytest.fixture(scope="module")
def on(tmp_path_factory):
    return setting(Run(store_folder=str(tmp_path_factory.mktemp("store"))), None, 2, TINY)


@pytest.mark.parametrize("kind", KINDS)
def test_pilots_and_reported_sets_share_no_image(on, kind) -> None:
    pilot, *reported = (on.forget_set(kind, number) for number in (None, 0, 1))
    assert not np.intersect1d(pilot, np.concatenate(reported)).size
    labels = np.asarray(on.train.select(on.train.rows_of(reported[0])).columns["y"])
    if kind == "class half":
        assert len(reported[0]) == 20
        assert (labels == 1).all()
        assert not np.intersect1d(*reported).size
    else:
        assert len(reported[0]) == TINY.forget


def test_a_principal_set_among_some_is_the_top_of_those(on) -> None:
    every = principal(on.dense, len(on.train) - 1)
    some = on.train.ids[::2]
    chosen = principal(on.dense, 5, among=some)
    assert np.isin(chosen, some).all()
    top = {size: set(principal(on.dense, size).tolist()) for size in range(5, len(every))}
    first = next(size for size in top if len(top[size] & set(some.tolist())) == 5)
    assert set(chosen.tolist()) == top[first] & set(some.tolist())
    with pytest.raises(DataError, match="of 4 examples"):
        principal(on.dense, 5, among=some[:3])


def test_the_control_moves_forgotten_images_alike_by_the_mean_and_no_other(on) -> None:
    forget, points = on.forget_set("random", 0), on.models.bank.points
    own = on.train.select(on.train.rows_of(forget))
    found = AverageShift(on.datamodel, on.train).predict_delta(forget, points)
    gone = np.isin(points.ids, forget)
    assert not found[~gone].any()
    y, expected = np.asarray(own.columns["y"]), on.datamodel.predict_delta(forget, own)
    at = np.arange(len(y))
    np.testing.assert_allclose(found[gone][at, y], expected[at, y].mean(), rtol=1e-5)
    np.testing.assert_allclose(found[gone][at, 1 - y], expected[at, 1 - y].mean(), rtol=1e-5)


def test_every_setting_costs_about_a_sixth_of_a_retraining_or_less(on) -> None:
    request, long = on.models.request(on.forget_set("random", 0)), replace(on, size=replace(on.size, epochs=60))
    budget = 60 * len(on.train)
    for grid in candidates(long).values():
        assert max(run(method, request).passes for method in (grid[0], grid[-1])) <= 0.175 * budget


def test_tables_claims_and_calibration_are_complete(on, monkeypatch) -> None:
    monkeypatch.setattr(unlearning_images, "OPTIMISERS", (SGD(0.01),))
    report = Run()
    found = judged(report, on, "tiny", ("random",), 1)
    assert [row.method for row in found[0].rows[:4]] == ["oracles (null)", "no-op", "DMM", "DM-Direct"]
    assert len(found[0].rows) == 14
    assert len(report.claims) == 4
    half = on.train.select(np.arange(40, 80))
    sets = {kind: forget_set(kind, half, on.dense, 5, 0) for kind in KINDS_OF_DIGITS}
    assert all(len(forget) == 5 and np.isin(forget, half.ids).all() for forget in sets.values())
    del sets["neighbours"], sets["part of a class"]  # each needs oracles of its own
    dmm = candidates(on)["DMM"][0]
    assert isinstance(dmm, DMM)
    calibration(report, on.models, on.datamodel, dmm, {"pilot": on.forget_set("random", None)}, sets)
    assert [len(table.rows) for table in report.tables[-2:]] == [3 * len(sets), 2]
