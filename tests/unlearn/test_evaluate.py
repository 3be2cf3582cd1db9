"""The evaluation: a null row in every table, one number of models in every row, rules declared before scoring."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.pages import Tags
from tests.unlearn import cases
from whence.cache import DataError, UsageError
from whence.cache.retrain.recipe import AdamW
from whence.cache.retrain.retrained import oracle_masks
from whence.unlearn import forget_sets
from whence.unlearn.datamodels import ridge
from whence.unlearn.evaluate import OracleSplit, Rule, evaluate, sweep, tried
from whence.unlearn.loop import run
from whence.unlearn.methods import DMM, DescentAscent, FineTune, GradientAscent, Matching, OracleMatching
from whence.unlearn.metrics import KLoM
from whence.unlearn.report import page, save
from whence.unlearn.request import UnlearningRequest
from whence.unlearn.results import NO_OP, NULL, from_json, to_dataset, to_json

MATCHING = Matching(steps=60, batch_size=24, optimiser=AdamW(1e-2))


def split() -> OracleSplit:
    return OracleSplit.of(cases.request(), cases.oracles(), cases.points(), KLoM(bins=4))


@pytest.fixture(scope="module")
def evaluation():
    methods = [OracleMatching(cases.oracles(), MATCHING), GradientAscent(30, optimiser=AdamW(1e-1))]
    return evaluate(split(), methods, resamples=5, title="four points")


def test_null_and_no_op_stand_first_and_order_is_right(evaluation):
    assert [row.method for row in evaluation.rows] == [NULL, NO_OP, "oracle matching", "gradient ascent"]
    mean = {row.method: row.klom["forget"].mean for row in evaluation.rows}
    assert mean["oracle matching"] < mean["gradient ascent"]
    assert mean[NULL] < mean[NO_OP]
    assert evaluation.models == 8
    with pytest.raises(UsageError, match="No row"):
        evaluation["SCRUB"]


def test_tables_datasets_and_pages_hold_every_row(evaluation, tmp_path):
    text = str(evaluation)
    assert text.count("\n") == 5
    data = to_dataset(evaluation)
    assert float(data.klom.sel(row=NULL, part="forget", statistic="p95")) == evaluation[NULL].klom["forget"].p95
    where = save([evaluation], tmp_path / "out" / "report.html")
    html = where.read_text()
    assert "oracles (null)" in html
    assert html.count("<svg") == 3
    assert "four points" in page([evaluation])
    assert str(evaluation) == text
    seen = Tags(evaluation._repr_html_())
    assert seen.tags.count("tr") == 5
    assert "2 models a side" not in repr(evaluation)
    assert "oracles (null)" in repr(evaluation)


def test_json_has_the_whole_evaluation(evaluation):
    other = replace(evaluation, metric=KLoM(bins=7, clip_oracles=False))
    again = from_json(to_json(other))
    assert again.metric == other.metric
    assert again.about == other.about
    assert str(again) == str(other)
    with pytest.raises(DataError, match="no evaluation"):
        from_json("{}")
    earlier = json.loads(to_json(other))  # a file of a version without these two
    for row in earlier["rows"]:
        for klom in row["klom"].values():
            del klom["hidden"], klom["diverged"]
    assert str(from_json(json.dumps(earlier))) == str(other)


def test_a_row_whose_klom_is_hidden_is_warned_about_in_every_form(evaluation):
    null, *others = evaluation.rows
    doubted = null._replace(klom={**null.klom, "forget": null.klom["forget"]._replace(diverged=2)})
    found = replace(evaluation, rows=(doubted, *others))
    wanted = f"KLoM of {NULL}, forget: models that diverged: 2"
    assert not evaluation.warnings
    assert wanted in str(found)
    assert wanted in found._repr_html_()
    assert wanted in str(from_json(to_json(found)))


def test_plots_use_the_given_axes(evaluation):
    left, right = Figure().subplots(1, 2)
    assert evaluation.plot("retain", left) is left
    assert left.get_title() == "retain"
    assert len(left.texts) == 2
    split = OracleSplit.of(cases.request(), cases.oracles(), cases.points())
    assert split.plot_margins(run(FineTune(0.1), cases.request()), 3, right) is right
    assert "nats" in right.get_xlabel()


def test_a_request_of_a_bank_has_the_models_it_trains(store):
    made = UnlearningRequest.of_bank(cases.bank(), cases.FORGET, 3, seed=100, store=store)
    again = UnlearningRequest.of_bank(cases.bank(), cases.FORGET, 3, seed=100, store=store)
    np.testing.assert_array_equal(made.models.flat, again.models.flat)
    np.testing.assert_allclose(made.models.flat, cases.models().flat[:3], atol=1e-6)
    assert [event.what for event in store.events] == ["built", "hit"]


def test_a_request_and_its_result_have_a_repr():
    done = run(FineTune(epochs=1), cases.request())
    assert repr(done.request).startswith("UnlearningRequest(4 of ")
    assert "4 examples forgotten" in repr(done)
    assert "of retraining" in done._repr_html_()
    assert "oracles" in repr(split())


def test_a_setting_with_which_a_model_diverged_is_not_admissible() -> None:
    row = split().no_op()
    assert Rule().admissible(row, row)
    assert not Rule().admissible(row._replace(stopped=1), row)
    far = {part: klom._replace(diverged=1) for part, klom in row.klom.items()}
    assert not Rule().admissible(row._replace(klom=far), row)


def test_a_setting_whose_margins_are_not_finite_is_not_admissible() -> None:
    done = run(FineTune(epochs=1), cases.request())
    flat = done.models.flat.clone()
    flat[2] = float("nan")
    row = tried(split(), replace(done, models=done.models.with_flat(flat)))
    assert row.klom["forget"].p95 == np.inf
    assert row.klom["retain"].diverged == 1
    assert not Rule(slack=20.0).admissible(row, split().no_op())
    assert Rule(slack=20.0).admissible(tried(split(), done), split().no_op())


def test_methods_with_other_settings_are_not_equal() -> None:
    def own(trained: Any) -> Any:
        raise AssertionError("no method is run here")

    first, second = (DMM(own, Matching(steps)) for steps in (5, 6))
    assert first != second
    assert [first, second].index(second) == 1
    assert FineTune(1) == FineTune(1) != FineTune(2)
    assert len({FineTune(1), FineTune(1), first, second}) == 3


def test_a_sweep_declares_its_rule_and_refuses_its_own_forget_set():
    candidates = [DescentAscent(s, 4, 16, optimiser=AdamW(1e-2)) for s in (2, 60)]
    chosen = sweep(split(), candidates, Rule(slack=2.0))
    assert len(chosen.rows) == len(chosen.admissible) == 2
    allowed = [row.klom["forget"].p95 for row, ok in zip(chosen.rows, chosen.admissible) if ok]
    if chosen.method is None:
        assert not allowed
    else:
        assert chosen.rows[candidates.index(chosen.method)].klom["forget"].p95 == min(allowed)
    assert chosen.on(cases.request(np.array([2, 3]))) is chosen.method
    with pytest.raises(UsageError, match="this very forget set"):
        chosen.on(cases.request())
    nothing_allowed = sweep(split(), [GradientAscent(50, optimiser=AdamW(1.0))], Rule(slack=-20.0))
    assert nothing_allowed.method is None
    with pytest.raises(UsageError, match="nothing to choose"):
        sweep(split(), [])
    other = np.array([2, 6, 10, 14])
    masks = oracle_masks(cases.train().ids, other, 2 * cases.MODELS)
    second = OracleSplit.of(cases.request(other), cases.bank().run(masks, quiet=True), cases.points())
    both = sweep([split(), second], candidates, Rule(slack=2.0))
    assert len(both.rows) == 4
    assert [row.klom["forget"].p95 for row in both.rows[:2]] == [row.klom["forget"].p95 for row in chosen.rows]
    for forget in (other, cases.FORGET):
        with pytest.raises(UsageError, match="this very forget set"):
            both.on(cases.request(forget))


def test_splits_refuse_what_would_mislead():
    with pytest.raises(DataError, match="trained on what should be forgotten"):
        OracleSplit.of(cases.request(np.array([2, 3])), cases.oracles(), cases.points())
    with pytest.raises(DataError, match="cannot be split"):
        OracleSplit.of(cases.request(), cases.oracles().select(np.arange(10)), cases.points())
    with pytest.raises(DataError, match="validation part"):
        OracleSplit.of(cases.request(), cases.oracles(), cases.train())
    other = cases.points().select(np.arange(3))
    strange = type(other)(other.columns, other.ids + 500)
    with pytest.raises(DataError, match="no outputs for"):
        OracleSplit.of(cases.request(), cases.oracles(), strange)


def test_an_effect_below_noise_is_warned_about():
    hidden = cases.request()
    models = cases.bank().train_replicas(
        ~np.isin(cases.train().ids, cases.FORGET)[None].repeat(8, 0), 900 + np.arange(8)
    )
    fresh = UnlearningRequest(models, hidden.task, hidden.train, hidden.forget, hidden.recipe)
    same = OracleSplit.of(fresh, cases.oracles(), cases.points(), KLoM(bins=4))
    with pytest.warns(UserWarning, match="within noise"):
        evaluate(same, [], resamples=0)


def test_language_is_judged_token_by_token():
    from whence.cache import LanguageModelling
    from whence.cache.retrain.bank import Bank

    text = cases.text()
    train = text.select(np.arange(24))
    bank = Bank(lambda seed: cases.Reader(), LanguageModelling(), train, text, cases.LM_RECIPE, keep=("margins",))
    oracles = bank.run(oracle_masks(train.ids, np.arange(4), 16), quiet=True)
    models = bank.train_replicas(np.ones((8, 24), bool), 40 + np.arange(8))
    one = OracleSplit.of(
        UnlearningRequest(models, LanguageModelling(), train, np.arange(4), cases.LM_RECIPE), oracles, text
    )
    assert sum(len(c) for c in one.columns.values()) == int((text.lengths - 1).sum())
    assert one.no_op().klom["forget"].mean > one.null().klom["forget"].mean


def test_forget_sets():
    train = cases.train()
    assert len(forget_sets.random_set(train, 5, 1)) == 5
    near = forget_sets.neighbours(train, 7, 4, within="y")
    assert 7 in near
    assert len(set(np.asarray(train.columns["y"])[near])) == 1
    top = forget_sets.principal(ridge(cases.subsets()), 6)
    both = forget_sets.principal(ridge(cases.subsets()), 6, ends="both")
    assert len(set(top)) == len(set(both)) == 6
    assert set(np.asarray(train.columns["y"])[forget_sets.class_slice(train, 2, 4)]) == {2}
    assert forget_sets.document(cases.text(), "secret").tolist() == [0, 1, 2, 3]
    for wrong in (
        lambda: forget_sets.random_set(train, 40),
        lambda: forget_sets.document(cases.text(), "missing"),
        lambda: forget_sets.document(cases.text(), "secret", "author"),
        lambda: forget_sets.neighbours(train, 7, 30, within="y"),
        lambda: forget_sets.class_slice(train, 9, 2),
    ):
        with pytest.raises(DataError):
            wrong()


def test_dmm_beats_the_no_op_in_the_table():
    unlearned = run(DMM(ridge(cases.subsets()), MATCHING), cases.request())
    here = split()
    assert here.score("DMM", here.margins(unlearned)).klom["forget"].mean < here.no_op().klom["forget"].mean
    assert isinstance(run(FineTune(1), cases.request()).seconds, float)
