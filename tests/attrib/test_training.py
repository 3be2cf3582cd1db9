"""Damping that follows training: rates from a recorded run, and what they predict where training is understood."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import cases
from whence.attrib import Damping, methods
from whence.attrib.training import PER_SITE, damping_of
from whence.cache import Examples, LanguageModelling, ModelError, Regression, TrainedModel, UsageError
from whence.cache.retrain.recipe import SGD, AdamW, Recipe
from whence.cache.retrain.trajectory import Trajectory


class Words(nn.Module):
    """Trained at its linear layers only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7)
        self.embed.requires_grad_(False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(input_ids))))


def start(**more: Any) -> TrainedModel:
    torch.manual_seed(0)
    data = cases.sequences(count=9, vocabulary=7)
    return TrainedModel(Words().double(), data, LanguageModelling(), quiet=True, **more)


def recipe(optimiser: Any, epochs: int = 40) -> Recipe:
    return Recipe(epochs, 9, optimiser, batches="shared")


def trained(optimiser: Any, epochs: int = 40) -> TrainedModel:
    return Trajectory.record(start(), recipe(optimiser, epochs), 0).finished()


def centred(scores: np.ndarray) -> np.ndarray:
    """A mean over positions is the same if all examples weigh more alike, in proportion to their positions."""
    lengths = cases.sequences(count=9, vocabulary=7).lengths - 1.0
    return scores - scores.sum(1, keepdims=True) * lengths / lengths.sum()


@pytest.mark.parametrize("optimiser", [SGD(2e-4, momentum=0.0), SGD(1e-4, momentum=0.5), AdamW(2e-3, eps=10.0)])
def test_a_short_run_moves_by_its_summed_rates(optimiser: Any) -> None:
    """So early that curvature does not count, the scores are the exact derivative of training, in nats."""
    with jax.enable_x64(True):
        end = trained(optimiser)
        queries = end.train.select([0, 3, 4])
        exact = methods.MAGIC(start().model, recipe(optimiser)).fit(end).score(queries).values
        for method in (methods.EKFAC(), methods.TracIn(), methods.SOURCE()):
            ours = method.fit(end).score(queries).values
            np.testing.assert_allclose(centred(ours), centred(exact), atol=0.06 * np.abs(exact).max())


def test_tracin_of_a_recorded_run_weighs_every_parameter_by_adams_rate() -> None:
    with jax.enable_x64(True):
        end = trained(AdamW(1e-2), epochs=6)
        queries = end.train.select([0, 3])
        found = methods.TracIn().fit(end).score(queries).values
    run = end.training
    assert run is not None
    names = ("mix.weight", "mix.bias", "head.weight", "head.bias")
    unit, wanted = 9 / float(sum(end.train.lengths - 1)), np.zeros((2, 9))
    for before, after in zip(run.checkpoints, run.checkpoints[1:]):
        at = end.at(before.read())
        rate = unit * run.rates[before.step : after.step].sum()
        v = torch.cat([after.read("exp_avg_sq")[n].ravel() for n in names]) / (1 - 0.999**after.step)
        f = gradients(at, at.task.measurement, queries, names)
        g = gradients(at, at.task.loss, end.train, names)
        wanted -= (rate * (f / (v.sqrt() + 1e-8)) @ g.T / 9).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())


def test_a_run_without_much_curvature_is_the_optimisers_own_dynamics() -> None:
    """Adam's state is followed exactly: momentum, bias correction, and that a gradient moves its own second moment."""
    with jax.enable_x64(True):
        end = trained(AdamW(1e-5, eps=1e-3, weight_decay=0.1), epochs=12)
        queries = end.train.select([0, 3, 4])
        ours = methods.AdamWInfluence().fit(end).score(queries)
        exact = methods.MAGIC().fit(end).score(queries).values
    np.testing.assert_allclose(ours.values, exact, atol=0.01 * np.abs(exact).max())
    assert 0 < ours.attrs["error_proxy"] < 0.01
    assert ours.attrs["unpredicted"] < 0.02


def test_the_error_proxy_is_rate_times_curvature() -> None:
    """One squared error of one parameter, of curvature 4: the path's x is the steps' rate times 4, and scores are too
    large by x / (1 - exp(-x))."""
    model = nn.Linear(1, 1, bias=False).double()
    data = Examples.of((np.full((3, 1), 2.0), np.array([0.5, 1.0, 2.5])))
    begun = TrainedModel(model, data, Regression(), quiet=True)
    end = Trajectory.record(begun, Recipe(200, 3, SGD(1e-3, momentum=0.0), batches="shared"), 0).finished()
    with jax.enable_x64(True):
        found = methods.AdamWInfluence().fit(end).score(data)
        exact = methods.MAGIC().fit(end).score(data).values
    x = 200 * 1e-3 * 4.0
    assert found.attrs["error_proxy"] == pytest.approx(x, rel=1e-3)
    theta = [float(model.weight.detach())]
    for _ in range(200):
        theta.append(theta[-1] - 1e-3 * (4.0 * theta[-1] - 2.0 * 4.0 / 3))
    ends = {
        n: sum(2.0 * (2.0 * t - y) - (4.0 * t - 8.0 / 3) for t in theta[:-1]) for n, y in enumerate((0.5, 1.0, 2.5))
    }
    np.testing.assert_allclose(found.values[0], [-2.0 * 1e-3 / 3 * ends[n] for n in range(3)], rtol=1e-6)
    assert np.abs(found.values).max() > 1.2 * np.abs(exact).max()


def test_a_recorded_run_is_taken_again() -> None:
    end = trained(AdamW(1e-2, weight_decay=0.1), epochs=5)
    run = end.training
    assert run is not None
    queries = end.train.select([0, 3])
    ours = methods.MAGIC().fit(end).score(queries).values
    by_hand = methods.MAGIC(start().model, recipe(AdamW(1e-2, weight_decay=0.1), 5)).fit(end).score(queries).values
    np.testing.assert_allclose(ours, by_hand, rtol=1e-6)
    for changes, words in (
        ({"ids": None}, "order"), ({"optimiser": "Adafactor"}, "Adafactor"), ({"averaged": "nothing"}, "averaged"),
        ({"checkpoints": run.checkpoints[1:]}, "start"), ({"optimiser": "Adam"}, "decays"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=words):
            methods.MAGIC().fit(end.replace(training=replace(run, **changes)))


def test_training_that_is_not_smooth_in_its_data_is_said() -> None:
    """Steps of sign: with a tiny eps Adam's first step is the same however an example weighs, but for the sign."""
    smooth, rough = (trained(AdamW(0.1, eps=eps), epochs=30) for eps in (0.1, 1e-12))
    queries = smooth.train.select([0, 3, 4])
    good, bad = (methods.MAGIC().fit(end).score(queries).attrs for end in (smooth, rough))
    assert good["unpredicted"] < 0.05
    assert "not smooth" not in good.get("warning", "")
    assert bad["unpredicted"] > 0.25
    assert "not smooth in its data" in bad["warning"]


def gradients(at: TrainedModel, of: Any, data: Examples, names: tuple[str, ...]) -> Tensor:
    """The gradients of every example, [n parameters]."""
    rows = []
    for n in range(len(data)):
        own = [at.model.get_parameter(name) for name in names]
        found = torch.autograd.grad(of(at.model, at.batch(data, [n])).sum(), own)
        rows.append(torch.cat([x.ravel() for x in found]))
    return torch.stack(rows)


def test_source_divides_a_recorded_run() -> None:
    end = trained(AdamW(1e-2), epochs=9)
    whole = damping_of(end, end.find())
    fitted = methods.SOURCE(parts=2).fit(end)
    assert whole is not None
    assert sum(steps.per_site["mix"] for steps in fitted.steps) == pytest.approx(whole.per_site["mix"])
    assert [len(models) for models in fitted.models] == [2, 1]
    with pytest.raises(UsageError, match="needs segments"):
        methods.SOURCE().fit(end.replace(training=None))


def test_adams_rate_at_a_site_is_the_one_that_its_gradients_meet() -> None:
    end = trained(AdamW(1e-3), epochs=10)
    run = end.training
    assert run is not None
    found = damping_of(end, end.find())
    unit = 9 / float(sum(end.train.lengths - 1))
    wanted, before = 0.0, 0
    for saved in run.checkpoints[1:]:
        v = [saved.read("exp_avg_sq")[f"mix.{name}"] / (1 - 0.999**saved.step) for name in ("weight", "bias")]
        rates = run.rates[before : saved.step].sum()
        wanted += unit * rates * float(sum((x / (x.sqrt() + 1e-8)).sum() for x in v) / sum(x.sum() for x in v))
        before = saved.step
    assert found is not None
    assert (found.value, found.rule) == (2 * PER_SITE, "steps")
    assert found.per_site["mix"] == pytest.approx(wanted, rel=1e-6)
    assert str(found).endswith("curvature times 8")


def test_the_filter_goes_from_the_summed_rates_to_the_inverse() -> None:
    damping = Damping(3.0, "steps", {"a": 2.0})
    values = np.array([0.0, 1e-12, 1e-4, 0.1, 1.0, 1e6])
    found = damping.inverse("a", values)
    np.testing.assert_allclose(found[1:], -np.expm1(-6.0 * values[1:]) / (3.0 * values[1:]), rtol=1e-5)
    assert found[0] == 2.0
    assert damping.at("a", values) == 0.5
    close = 1 / (3.0 * values + 0.5)
    assert ((found >= close) & (found < 1.3 * close)).all()
    with pytest.raises(UsageError, match="no learning rate of b"):
        damping.inverse("b", values)


def test_how_the_loss_is_averaged_decides_the_unit() -> None:
    end = trained(SGD(1e-3), epochs=4)
    run = end.training
    assert run is not None

    def time(**changes: Any) -> float:
        found = damping_of(end.replace(training=replace(run, **changes)), end.find())
        assert found is not None
        return found.per_site["mix"]

    positions = float(sum(end.train.lengths - 1)) / 9
    assert time(averaged="examples") == pytest.approx(4 * 1e-3 / 0.1)
    assert time() == pytest.approx(time(averaged="examples") / positions)
    assert time(averaged="targets") == pytest.approx(time())
    assert time(averaged="nothing") == pytest.approx(9 * time(averaged="examples"))
    with pytest.raises(UsageError, match="order is unknown"):
        time(averaged="nothing", ids=None)


def test_a_known_training_is_the_default_and_a_given_damping_is_kept() -> None:
    end = trained(AdamW(1e-3), epochs=4)
    queries = end.train.select([0])
    fitted = methods.EKFAC().fit(end)
    assert fitted.damping == damping_of(end, end.find())
    assert fitted.score(queries).attrs["damping"].startswith("steps of training, c from ")
    assert methods.EKFAC(damping=Damping(0.3)).fit(end).damping == Damping(0.3)
    assert methods.EKFAC().fit(end.replace(training=None)).damping == Damping()
    assert methods.CG(iterations=1).fit(end).damping_at("mix") == pytest.approx(1 / fitted.damping.per_site["mix"])
    assert fitted.with_damping(0.5).damping == Damping(0.5)
    run = end.training
    assert run is not None
    unknown = replace(run, optimiser="Adafactor")
    assert methods.EKFAC().fit(end.replace(training=unknown)).damping == Damping()
    half = replace(run, groups=(replace(run.groups[0], names=("mix.weight", "mix.bias")),))
    with pytest.raises(UsageError, match="did not train head"):
        methods.EKFAC().fit(end.replace(training=half))
