"""One suite for every method: its models stay finite, its compute is counted, and the caller's models come back as
they were."""

import numpy as np
import pytest
import torch

from tests.unlearn import cases
from whence.cache import Classification, DataError, Examples, LanguageModelling, ModelError, TrainedModel, UsageError
from whence.cache.errors import Interrupted
from whence.cache.retrain.recipe import SGD, AdamW
from whence.unlearn import audit
from whence.unlearn.datamodels import Influence, exact, ridge
from whence.unlearn.loop import run
from whence.unlearn.lora import lora, merge
from whence.unlearn.methods import (
    DMM,
    NPO,
    RMU,
    DescentAscent,
    DMDirect,
    FineTune,
    GradDiff,
    GradientAscent,
    L1Sparse,
    Matching,
    NegGradPlus,
    Newton,
    OracleMatching,
    Retrain,
    SalUn,
    Scrub,
    SimNPO,
)
from whence.unlearn.request import UnlearningRequest

MATCHING = Matching(steps=60, batch_size=24, optimiser=AdamW(1e-2))


def exact_of(trained: TrainedModel):
    return exact(trained, damping=0.3)


METHODS = {
    "retrain": lambda: Retrain(seed=7),
    "fine-tune": FineTune,
    "ascent": lambda: GradientAscent(3),
    "descent-ascent": lambda: DescentAscent(10, 4, 16),
    "neggrad": lambda: NegGradPlus(0.9, 10, 4, 16),
    "scrub": lambda: Scrub(2, 1, forget_batch=4, retain_batch=16),
    "salun": lambda: SalUn(0.5, 10, 4, 16),
    "l1": lambda: L1Sparse(epochs=2),
    "newton": lambda: Newton(exact_of, 0.5),
    "om": lambda: OracleMatching(cases.oracles(), MATCHING),
    "om, mean": lambda: OracleMatching(cases.oracles(), MATCHING, one_each=False),
    "dm-direct": lambda: DMDirect(ridge(cases.subsets())),
    "dmm": lambda: DMM(ridge(cases.subsets()), MATCHING),
}
MOVES = {"newton", "ascent", "descent-ascent", "scrub", "om", "dmm", "salun", "neggrad", "l1", "fine-tune"}


def distance(unlearned) -> float:
    """Of mean logits on the forget set from the oracles' mean, root mean square."""
    forgotten = cases.train().select(cases.FORGET)
    own = unlearned.outputs(forgotten, ("logits",))["logits"].mean(0)
    oracle = cases.oracles()["logits"][:, cases.FORGET].mean(0)
    return float(np.sqrt(np.square(own - oracle).mean()))


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    request = cases.request()
    before = request.models.flat.clone()
    unlearned = run(METHODS[name](), request)
    torch.testing.assert_close(request.models.flat, before)
    assert torch.isfinite(unlearned.models.flat).all()
    assert len(unlearned.models) == cases.MODELS
    assert not unlearned.stopped
    assert unlearned.ratio == pytest.approx(unlearned.passes / (30 * 36))
    assert unlearned.log.entries[0].forgotten == tuple(cases.FORGET)
    unlearned.log.check()
    moved = float((unlearned.models.flat - before).abs().max()) if name != "retrain" else 1.0
    assert (moved > 1e-4) == (name != "dm-direct")  # SCRUB's student too
    out = unlearned.outputs(cases.points())
    assert out["logits"].shape == (cases.MODELS, 60, 3)
    np.testing.assert_allclose(  # margins are those of the logits
        out["margins"][0, 0], _margin(out["logits"][0, 0], int(cases.points().columns["y"][0])), rtol=1e-3
    )


def _margin(logits: np.ndarray, y: int) -> float:
    return float(logits[y] - np.log(np.exp(np.delete(logits, y)).sum()))


def test_matching_comes_nearest_the_oracle():
    nothing = distance(run(FineTune(0.01, optimiser=SGD(0.0)), cases.request()))
    found = {name: distance(run(METHODS[name](), cases.request())) for name in ("om", "dmm", "ascent")}
    assert found["om"] < 0.3 * nothing
    assert found["dmm"] < 0.7 * nothing
    assert found["om"] < found["dmm"]


def test_saliency_leaves_the_other_weights_alone():
    unlearned = run(SalUn(0.25, 5, 4, 16), cases.request())
    moved = (unlearned.models.flat != cases.models().flat).float().mean(1)
    assert (moved <= 0.27).all()


def test_a_model_is_what_it_would_be_alone():
    alone = UnlearningRequest(
        cases.models().select([3]),
        Classification(),
        cases.train(),
        cases.FORGET,
        cases.RECIPE,
        cases.net,
        np.array([103]),
    )
    method = DescentAscent(10, 4, 16)
    torch.testing.assert_close(
        run(method, alone).models.flat[0], run(method, cases.request()).models.flat[3], atol=1e-5, rtol=1e-4
    )


def test_nan_stops_a_model_at_its_last_good_state(capsys):
    unlearned = run(GradientAscent(200, optimiser=SGD(1e38, 0.99)), cases.request())
    assert len(unlearned.stopped) == cases.MODELS
    assert torch.isfinite(unlearned.models.flat).all()
    assert "not finite" in unlearned.stopped[0].why
    phases = run(Scrub(3, 2, forget_batch=4, retain_batch=16, optimiser=SGD(1e38, 0.99)), cases.request())
    assert sorted(stop.model for stop in phases.stopped) == list(range(cases.MODELS))  # once each: later phases rest
    assert torch.isfinite(phases.models.flat).all()


def test_requests_compose_and_the_log_shows_it():
    first = run(DMM(ridge(cases.subsets()), MATCHING), cases.request())
    second = first.then(FineTune(1), np.array([20, 21]))
    assert second.request.left.sum() == 34
    assert not np.isin([1, 5, 20], second.request.kept.ids).any()
    assert [entry.method for entry in second.log.entries] == ["DMM", "fine-tune"]
    second.log.check()
    with pytest.raises(DataError, match="does not follow"):
        type(second.log)(second.log.entries[1:]).check()
    with pytest.raises(DataError, match="deleted before"):
        second.then(FineTune(1), np.array([1]))


@pytest.mark.parametrize(
    ("forget", "more", "words"),
    [
        (np.array([], int), {}, "is empty"),
        (np.arange(40), {}, "whole training set"),
        (np.array([77]), {}, "not among"),
        (cases.FORGET, {"validation": cases.points().select([0, 5])}, "are in the validation set"),
    ],
)
def test_impossible_requests(forget, more, words):
    with pytest.raises(DataError, match=words):
        cases.request(forget, **more)


def test_oracles_must_be_oracles():
    with pytest.raises(DataError, match="trained on what should be forgotten"):
        run(OracleMatching(cases.oracles(), MATCHING), cases.request(np.array([2, 3])))
    with pytest.raises(DataError, match="cannot be matched one each"):
        run(OracleMatching(cases.oracles().select(np.arange(4)), MATCHING), cases.request())
    with pytest.raises(UsageError, match="build"):
        run(Retrain(), UnlearningRequest(cases.models(), Classification(), cases.train(), cases.FORGET, cases.RECIPE))


def test_dmm_uses_other_retained_data():
    stand_in = Examples.of(
        (np.asarray(cases.train().columns["x"])[20:26] + 0.1, np.asarray(cases.train().columns["y"])[20:26]),
        ids=range(1000, 1006),
    )
    unlearned = run(DMM(ridge(cases.subsets()), MATCHING), cases.request(retain=stand_in))
    nothing = distance(run(FineTune(0.01, optimiser=SGD(0.0)), cases.request()))
    assert distance(unlearned) < nothing


def test_a_model_whose_outputs_do_not_match_is_refused():
    class Wide:
        cost = None

        def predict_delta(self, forget, points):
            return np.zeros((len(points), 5), np.float32)

    with pytest.raises(DataError, match="outputs of shape"):
        run(DMM(Wide(), MATCHING), cases.request())


LANGUAGE = {
    "GradDiff": lambda: GradDiff(steps=6, optimiser=AdamW(1e-3)),
    "NPO": lambda: NPO(steps=6, optimiser=AdamW(1e-3)),
    "SimNPO": lambda: SimNPO(steps=6, optimiser=AdamW(1e-3)),
    "RMU": lambda: RMU("mix", steps=6, optimiser=AdamW(1e-3)),
    "SCRUB": lambda: Scrub(2, 1, forget_batch=2, retain_batch=8),
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_every_method_for_language(name):
    unlearned = run(LANGUAGE[name](), cases.document())
    moved = (unlearned.models.flat - cases.readers().flat).abs().max()
    assert 1e-4 < float(moved) < 10
    margins = unlearned.outputs(cases.text(), ("margins",))["margins"]
    assert margins.shape == (2, 30, 8)
    assert np.isnan(margins).any()  # where a shorter piece predicts nothing


def test_language_methods_name_what_does_not_fit():
    with pytest.raises(ModelError, match="no module or hook point 'layer9'"):
        run(RMU("layer9"), cases.document())
    with pytest.raises(DataError, match="integer labels"):
        run(SalUn(), cases.document())


def test_a_document_is_forgotten_without_retraining_in_full_and_low_rank():
    document = cases.document()
    task = LanguageModelling()

    def own(trained: TrainedModel) -> Influence:
        return Influence(exact(trained, damping=1.0))

    matching = Matching(steps=30, batch_size=8, retain_multiplier=3, optimiser=AdamW(5e-3))
    before = audit.loss_per_token([document.trained(e) for e in range(2)], document.forgotten)
    full = run(DMM(own, matching), document)
    after = audit.loss_per_token([full.trained(e) for e in range(2)], document.forgotten)
    assert (after > before + 0.01).all()
    plain = own(document.trained())
    low = lora(cases.readers().module(0), rank=2, layers="mix|head")
    assert low.flat.shape[1] == 2 * 16 + 2 * 16 + 2 * 16 + 2 * 12
    one = UnlearningRequest(low, task, cases.text(), np.arange(4), cases.LM_RECIPE)
    forgot = run(DMM(plain, matching), one)
    assert audit.loss_per_token(forgot.trained(), document.forgotten)[0] > before[0] + 0.005
    merged = merge(forgot.module())
    batch = cases.text().batch([0, 1])
    torch.testing.assert_close(task.logits(merged, batch), task.logits(forgot.module(), batch))
    with pytest.raises(ModelError, match="No linear layer"):
        lora(cases.readers().module(0), layers="nothing")


def test_matching_may_begin_at_the_predicted_parameters():
    document, task = cases.document(), LanguageModelling()
    first = document.models.module(0)
    own = Influence(exact(document.trained(), damping=1.0))
    still = Matching(steps=1, batch_size=8, retain_multiplier=1, optimiser=SGD(0.0))
    one = UnlearningRequest(document.models.select([0]), task, cases.text(), np.arange(4), cases.LM_RECIPE)
    done = run(DMM(own, still, scale=0.5, ahead=0.5), one)
    step = own.step(one.forget)
    for name, before in one.models.views().items():
        torch.testing.assert_close(done.models.views()[name], before + 0.25 * step[name])
    assert done.passes == pytest.approx(4 + 8 * (2 / 3 + 1 / 3) + 8)  # one gradient, prediction, own logits, a step
    with pytest.raises(UsageError, match="predicts outputs, not parameters"):
        run(DMM(ridge(cases.subsets()), still, ahead=1.0), cases.request())
    low = UnlearningRequest(lora(first, rank=2), task, cases.text(), np.arange(4), cases.LM_RECIPE)
    with pytest.raises(UsageError, match="do not train"):
        run(DMM(own, still, ahead=1.0), low)


def test_attack_curves_start_where_the_model_is():
    document, text = cases.document(), cases.text()
    both, task = [document.trained(e) for e in range(2)], document.task
    start = audit.loss_per_token(both, text)
    model, batch = both[1].model, text.batch(np.arange(30))
    slow = task.loss(model, batch).sum().detach() / task.positions(batch).sum()
    assert start[1] == pytest.approx(float(slow), rel=1e-5)
    curve = audit.relearning_curve(both, text.select([0, 1]), text.select([0, 1]), steps=4, optimiser=AdamW(1e-2))
    assert (curve[-1] < curve[0]).all()
    rounded = audit.quantisation_curve(both, text, (16, 2))
    np.testing.assert_allclose(rounded[0], start, atol=1e-3)
    assert (rounded[1] > start).all()
    assert (audit.extraction(both, text, prefix=3, length=3) >= 0).all()
    with pytest.raises(UsageError, match="bits"):
        audit.quantisation_curve(both, text, (1,))
    with pytest.raises(UsageError, match="tokens to continue"):
        audit.extraction(both, text)


def test_a_signal_that_a_library_swallowed_stops_the_next_step(monkeypatch):
    monkeypatch.setattr("whence.unlearn.loop.stop_if_signalled", lambda: (_ for _ in ()).throw(Interrupted("x", "y")))
    with pytest.raises(Interrupted):
        run(FineTune(), cases.request())


@pytest.mark.parametrize(
    "settings",
    [
        (FineTune, {"epochs": 0}),
        (FineTune, {"epochs": float("nan")}),
        (FineTune, {"batch_size": 0}),
        (NegGradPlus, {"steps": -1}),
        (NegGradPlus, {"alpha": float("inf")}),
        (GradDiff, {"retain_batch": 0}),
        (NPO, {"beta": 0.0}),
    ],
)
def test_a_setting_that_no_method_can_use_is_refused_by_name(settings) -> None:
    method, given = settings
    with pytest.raises(UsageError, match=f"{next(iter(given))} of {method.name} is"):
        method(**given)


def test_fractions_of_an_epoch_are_a_setting() -> None:
    assert FineTune(epochs=0.5).settings()["epochs"] == 0.5
