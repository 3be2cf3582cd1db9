"""Trial 29: a forget set in every form that people give it, wherever ids are accepted."""

import numpy as np
import pytest

from tests.unlearn import cases
from whence.cache import Classification, DataError, Examples
from whence.cache.retrain.retrained import oracle_masks
from whence.unlearn.datamodels import Influence, Pilot, exact, grouped, nearest, ridge
from whence.unlearn.deletion_log import DeletionLog
from whence.unlearn.evaluate import OracleSplit, evaluate
from whence.unlearn.loop import run
from whence.unlearn.methods import FineTune, GradientAscent, Retrain
from whence.unlearn.request import UnlearningRequest
from whence.unlearn.traces import remaining_influence

MASK = np.isin(np.arange(cases.TRAIN), cases.FORGET)
WRONG = {
    "named twice": ([3, 3, 4], r"\b3\b"),
    "floats": ([1.0, 2.7], "cannot be an id"),
    "whole floats": (np.array([1.0, 2.0]), "cannot be an id"),
    "unknown": ([99], "99"),
    "empty": ([], "empty"),
    "everything": (np.arange(cases.TRAIN), "whole training set"),
    "mask of another length": (MASK[:10], "10"),
    "mask of nothing": (np.zeros(cases.TRAIN, bool), "empty"),
    "mask as numbers": (MASK.astype(int), "more than once|twice"),
}


def accepting():
    """Everything that is given a forget set, by what it is called."""
    trained = cases.request().trained(quiet=True)
    linear, whole = ridge(cases.subsets()), Influence(exact(trained, damping=0.3))
    some, everyone = cases.points().select([0, 1]), cases.points()
    near = nearest(cases.train(), everyone)
    log, ids = DeletionLog(), cases.train().ids
    first = run(FineTune(0.1), cases.request(np.array([0])))
    return {
        "request": cases.request,
        "a following request": lambda forget: first.then(FineTune(0.1), forget),
        "a bank's models": lambda forget: UnlearningRequest.of_bank(cases.bank(), forget, 2),
        "masks of oracles": lambda forget: oracle_masks(ids, forget, 2),
        "oracles": lambda forget: cases.oracles().oracles(forget),
        "models without": lambda forget: cases.subsets().excluding(forget),
        "regression": lambda forget: linear.predict_delta(forget, some),
        "grouped": lambda forget: grouped(cases.subsets(), near).predict_delta(forget, some),
        "influence": lambda forget: whole.predict_delta(forget, some),
        "pilot": lambda forget: Pilot.of(forget, some, cases.oracles()["logits"][:, :2], cases.oracles()),
        "log": lambda forget: log.add("x", ids, np.ones(cases.TRAIN, bool), forget, 1.0),
    }


@pytest.mark.parametrize("form", WRONG)
def test_a_wrong_forget_set_is_refused_by_name_everywhere(form):
    forget, message = WRONG[form]
    for name, call in accepting().items():
        with pytest.raises(DataError, match=message):
            print(name, call(np.asarray(forget)))


def test_a_mask_and_its_ids_are_one_forget_set():
    assert cases.request(MASK).forget.tolist() == cases.FORGET.tolist()
    assert np.flatnonzero(~cases.request(MASK).left).tolist() == cases.FORGET.tolist()
    assert cases.request(np.array([9, 1])).forget.tolist() == [9, 1]
    np.testing.assert_array_equal(oracle_masks(cases.train().ids, MASK, 1), ~MASK[None])
    assert cases.oracles().oracles(MASK) is cases.oracles()
    for name, call in accepting().items():
        one, other = call(MASK), call(cases.FORGET)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=name)
    trained = cases.request().trained(quiet=True)
    found = remaining_influence({"before": trained}, MASK)
    assert found["query"].values.tolist() == cases.FORGET.tolist()
    for method in (Retrain(), FineTune(0.1), GradientAscent(1)):
        assert run(method, cases.request(MASK)).log.forgotten.tolist() == cases.FORGET.tolist()


def test_a_forget_set_is_checked_before_a_bank_is_trained(monkeypatch):
    monkeypatch.setattr(type(cases.bank()), "models", lambda *args, **options: pytest.fail("trained"))
    with pytest.raises(DataError, match=r"more than once|twice"):
        UnlearningRequest.of_bank(cases.bank(), np.array([3, 3]), 2)


def test_a_log_refuses_what_was_deleted_before():
    log = run(FineTune(0.1), cases.request(np.array([3, 4]))).log
    with pytest.raises(DataError, match="deleted before, for instance 4"):
        log.add("x", cases.train().ids, np.ones(cases.TRAIN, bool), np.array([4]), 1.0)


def test_oracles_of_other_data_are_refused():
    fewer = cases.train().select(np.arange(30))
    request = UnlearningRequest(cases.models(), Classification(), fewer, cases.FORGET, cases.RECIPE)
    with pytest.raises(DataError, match="trained on other examples"):
        OracleSplit.of(request, cases.oracles(), cases.points())


def test_a_result_says_that_a_forgotten_example_has_a_copy():
    x, y = (np.array(cases.train().columns[name]) for name in ("x", "y"))
    x[20], y[20] = x[5], y[5]
    x[21] = x[5]
    y[21] = (y[5] + 1) % 3  # another label: another example
    train = Examples.of((x, y), cases.train().ids + 100)
    request = UnlearningRequest(cases.models(), Classification(), train, np.array([101, 105]), cases.RECIPE)
    assert request.copies.tolist() == [[105, 120]]
    result = run(FineTune(0.1), request)
    (warning,) = result.warnings
    assert "105 and 120" in warning
    assert warning in result._repr_html_()
    whole = UnlearningRequest(cases.models(), Classification(), train, np.array([101, 105, 120]), cases.RECIPE)
    assert run(FineTune(0.1), whole).warnings == ()
    texts = Examples({"input_ids": [np.array([1, 2]), np.array([1, 2]), np.array([1, 3])]}, np.arange(3))
    assert UnlearningRequest(cases.models(), Classification(), texts, np.array([0]), cases.RECIPE).copies.tolist() == [
        [0, 1]
    ]


def test_an_evaluation_names_the_forgotten_ids():
    split = OracleSplit.of(cases.request(), cases.oracles(), cases.points())
    found = evaluate(split, [], resamples=0)
    assert found.about["forget"] == cases.FORGET.tolist()
