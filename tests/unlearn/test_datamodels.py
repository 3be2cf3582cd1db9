"""Datamodels: every fast form against an exact one, and none rewards being judged on what it was tuned on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.unlearn import cases
from whence import attrib
from whence.cache import Classification, DataError, Examples, Regression, TrainedModel, UsageError
from whence.cache.retrain.retrained import Retrained, subset_masks
from whence.unlearn import datamodels
from whence.unlearn.datamodels import Influence, Pilot, calibrate, exact, lasso, lds, projected, ridge


def linear_bank(
    models: int = 120, n: int = 20, p: int = 5, c: int = 2, noise: float = 0.01
) -> tuple[Retrained, np.ndarray]:
    """Outputs that are linear in the mask, and their true weights."""
    models, n, p, c = 120, 20, 5, 2
    generator = np.random.default_rng(0)
    masks, weights = subset_masks(n, models, 0.6), generator.normal(size=(n, p, c))
    weights -= weights.mean(0)  # masks of one size say nothing of the effect of size
    logits = np.einsum("en,npc->epc", masks, weights) + noise * generator.normal(size=(models, p, c))
    ids = np.arange(n)
    return Retrained(masks, np.arange(models), ids, np.arange(p), {"logits": logits.astype(np.float32)}), weights


def spots(count: int) -> Examples:
    return Examples.of({"x": np.zeros((count, 1), np.float32)})


@pytest.mark.parametrize("fit", [ridge, lasso])
def test_regression_finds_linear_weights(fit):
    bank, weights = linear_bank()
    model = fit(bank)
    assert model.lds.value > 0.98
    assert model.lds.subsets == 12
    delta = model.predict_delta(np.array([3, 7]), spots(5))
    assert np.corrcoef(delta.ravel(), -weights[[3, 7]].sum(0).ravel())[0, 1] > 0.95


def test_ridge_is_sklearns_for_every_output():
    from sklearn.linear_model import Ridge

    bank, _ = linear_bank(noise=0.5)
    model = ridge(bank, [3.0])
    plain = Ridge(3.0 * 120 / 96).fit(bank.masks, bank["logits"].reshape(120, -1))
    np.testing.assert_allclose(model.weights.reshape(20, -1), plain.coef_.T, atol=1e-3)


def test_lasso_is_sklearns():
    from sklearn.linear_model import Lasso

    bank, _ = linear_bank(noise=0.5)
    centred = bank.masks - bank.masks.mean(0)
    y = bank["logits"].reshape(120, -1)
    top = np.abs(centred.T @ (y - y.mean(0))).max(0)
    model = lasso(bank, [0.1])
    for k in (0, 7):
        plain = Lasso(0.1 * top[k] / 120, tol=1e-8).fit(bank.masks, y[:, k])
        np.testing.assert_allclose(model.weights.reshape(20, -1)[:, k], plain.coef_, atol=5e-3)


def test_a_regression_saves_and_says_what_it_does_not_know(tmp_path):
    from whence.cache import Store

    bank, _ = linear_bank()
    model = ridge(bank)
    key = model.save(Store(tmp_path), {"bank": "tiny"})
    again = type(model).of(Store(tmp_path).get(key))
    forget = np.array([1, 4])
    np.testing.assert_array_equal(again.predict_delta(forget, spots(5)), model.predict_delta(forget, spots(5)))
    assert (again.lds, again.penalty, again.choices, again.cost) == (
        model.lds, model.penalty, model.choices, model.cost,
    )  # fmt: skip
    with pytest.raises(DataError, match="no regression datamodel"):
        type(model).of(Store(tmp_path).put("scores", {"of": "others"}, {"values": np.zeros(3)}))
    with pytest.raises(DataError, match="no weights for 2 points"):
        model.predict_delta(np.array([1]), spots(7))
    with pytest.raises(DataError, match="not among"):
        model.predict_delta(np.array([99]), spots(5))
    with pytest.raises(DataError, match="hold out masks"):
        ridge(bank.select(np.arange(20)))
    same = Retrained(
        np.ones((50, 20), bool), np.arange(50), np.arange(20), np.arange(5), {"logits": np.zeros((50, 5, 2))}
    )
    with pytest.raises(DataError, match="one mask"):
        ridge(same)


def ridge_problem(n: int = 60, d: int = 4) -> tuple[nn.Module, Examples, float]:
    """A linear model at the minimum of mean half squared error + l2/2 |θ|²."""
    generator, l2 = np.random.default_rng(0), 0.05
    x = generator.normal(size=(n, d))
    y = x @ generator.normal(size=(d, 1)) + 0.3 * generator.normal(size=(n, 1))
    model = nn.Linear(d, 1, bias=False).double()
    solve_ridge(model, x, y, l2)
    return model, Examples.of((x, y)), l2


def solve_ridge(model: nn.Linear, x: np.ndarray, y: np.ndarray, l2: float) -> None:
    weights = np.linalg.solve(x.T @ x / len(x) + l2 * np.eye(x.shape[1]), x.T @ y / len(x))
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(weights.T))


def test_newton_with_retained_curvature_is_exact_for_ridge_and_group_terms_approach_it():
    model, data, l2 = ridge_problem()
    forget = np.arange(8)
    kept = data.without(forget)
    # the mean loss of what is kept weighs the penalty anew: at n examples it is l2 * n / (n - f) of the sum
    again = nn.Linear(4, 1, bias=False).double()
    x, y = (np.asarray(kept.columns[name]) for name in "xy")
    solve_ridge(again, x, y, l2 * len(data) / len(kept))
    inputs = torch.as_tensor(np.asarray(data.columns["x"]))
    wanted = (again(inputs) - model(inputs)).detach().numpy()
    share = len(kept) / len(data)
    trained = TrainedModel(model, data, Regression(), quiet=True)
    retained = exact(trained, kept, l2=l2 / share)
    scaled = replace(retained, apply=lambda g: {n: v / share for n, v in retained(g).items()})
    newton = Influence(scaled).predict_delta(forget, data)
    np.testing.assert_allclose(newton, wanted, atol=1e-10)
    whole = exact(trained, l2=l2)
    errors = [np.abs(Influence(whole, group=k).predict_delta(forget, data) - wanted).max() for k in (0, 1, 4)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_exact_curvature_is_the_hessian_of_a_linear_classifier():
    torch.manual_seed(0)
    model, data = nn.Linear(6, 3).double(), cases.train()
    x = torch.as_tensor(np.asarray(data.columns["x"])).double()
    data = Examples.of((x.numpy(), data.columns["y"]))
    inverse = exact(TrainedModel(model, data, Classification(), quiet=True), l2=0.1)
    y = torch.as_tensor(np.asarray(data.columns["y"]))

    def objective(flat: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(x @ flat[:18].view(3, 6).T + flat[18:], y) + 0.05 * flat.square().sum()

    flat = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    hessian = torch.func.hessian(objective)(flat)
    vector = torch.randn(21, dtype=torch.float64)
    found = inverse({"weight": vector[:18].view(3, 6), "bias": vector[18:]})
    expected = torch.linalg.solve(hessian, vector)
    torch.testing.assert_close(torch.cat([found["weight"].flatten(), found["bias"]]), expected)


def test_ekfac_projection_and_exact_curvature_all_predict_removals():
    trained = cases.request().trained(quiet=True)
    model, data = trained.model, trained.train
    before = {n: p.clone() for n, p in model.named_parameters()}
    factors = attrib.EKFAC().fit(trained)
    curvatures = [
        factors.with_damping(1.0),
        exact(trained, damping=1.0),
        projected(trained, width=64, damping=1.0),
    ]
    deltas = [Influence(each).predict_delta(cases.FORGET, data) for each in curvatures]
    flat = np.stack([d.ravel() for d in deltas])
    assert (np.corrcoef(flat) > 0.5).all()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name])
    mean = datamodels.Averaged([Influence(each) for each in curvatures])
    np.testing.assert_allclose(mean.predict_delta(cases.FORGET, data), np.mean(deltas, 0), rtol=1e-4, atol=1e-5)
    assert mean.cost.passes > 0


def test_lds_ranks_datamodels_by_what_they_know():
    bank = cases.subsets()
    held = bank.select(np.arange(160, 200))
    found = ridge(bank.select(np.arange(160)))
    good = lds(found, held, cases.points())

    class Blind:
        cost = found.cost

        def predict_delta(self, forget, points):
            return np.random.default_rng(len(forget) + int(forget.sum())).normal(size=(len(points), 3))

    assert good.value > 0.3 > abs(lds(Blind(), held, cases.points()).value) + 0.15
    with pytest.raises(DataError, match="too few"):
        lds(found, held.select(np.arange(4)), cases.points())


def test_calibration_finds_the_scale_and_refuses_its_own_pilots():
    bank, weights = linear_bank()
    found = ridge(bank)
    pilot = Pilot(np.array([0, 1]), spots(5), (-weights[:2].sum(0) / 3).astype(np.float32))

    class Scaled:
        def __init__(self, scale):
            self.scale, self.cost = scale, found.cost

        def predict_delta(self, forget, points):
            return self.scale * found.predict_delta(forget, points)

    chosen = calibrate(Scaled, [1.0, 0.3, 0.1], [pilot])
    assert chosen.setting == 0.3
    np.testing.assert_allclose(
        chosen.predict_delta(np.array([5]), spots(5)), 0.3 * found.predict_delta(np.array([5]), spots(5))
    )
    with pytest.raises(DataError, match="used to calibrate"):
        chosen.predict_delta(np.array([1, 5]), spots(5))
    with pytest.raises(UsageError, match="nothing to calibrate"):
        calibrate(Scaled, [], [pilot])


def test_exact_curvature_refuses_large_models():
    with pytest.raises(DataError, match="Use EK-FAC"):
        exact(TrainedModel(nn.Linear(200, 200), cases.train(), Classification()))
