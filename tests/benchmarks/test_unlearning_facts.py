"""The benchmark of facts: the error that settings are chosen by, and the control that fixes what is kept."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.people import GROUPS, Answers, Measured
from benchmarks.people_judged import DRIFT, OFF
from benchmarks.unlearning_facts import METHODS, KeptFixed, Pilot
from whence.cache import Examples


def measured(forgotten: float, kept: float, text: float = 6.0) -> Measured:
    levels = dict(zip(GROUPS, (forgotten, kept, kept)))
    answers = {g: Answers(np.full((2, 4, 1), level), np.ones((4, 1))) for g, level in levels.items()}
    return Measured(answers, np.full(2, text))


def test_the_error_is_one_where_one_thing_is_off_by_all_that_is_allowed() -> None:
    request: Any = None
    pilot = Pilot("", request, measured(0.0, -1.0), measured(-8.0, -0.4))
    assert pilot.error(measured(-8.0, -1.0)) == 0.0
    assert pilot.error(measured(-8.0, -0.4, 5.0)) == 0.0  # what becomes better is no error
    assert pilot.error(measured(-8.0 + 8.0 * OFF, -1.0)) == pytest.approx(1.0)
    assert pilot.error(measured(-8.0 - 8.0 * OFF, -1.0)) == pytest.approx(1.0)
    assert pilot.error(measured(-8.0, -1.0 - DRIFT)) == pytest.approx(2.0)  # of two groups


def test_a_prediction_with_kept_passages_fixed_changes_the_forgotten_alone() -> None:
    points = Examples.of((np.zeros((4, 3), np.float32), np.zeros(4, np.int64)))
    influence: Any = SimpleNamespace(predict_delta=lambda forget, at: np.ones((len(at), 5, 7)))
    found = KeptFixed(influence).predict_delta(points.ids[1:3], points)
    assert found.shape == (4, 5, 7)
    assert found.sum((1, 2)).tolist() == [0, 35, 35, 0]


def test_names_can_be_listed_with_commas_and_every_method_has_a_grid() -> None:
    assert not any("," in name for name in METHODS)
    assert all(len(settings) >= 12 for _, settings in METHODS.values())
