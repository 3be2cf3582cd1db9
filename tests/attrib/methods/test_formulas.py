"""The methods that score in their own way against their formulas, written out naively."""

import copy
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from tests.attrib import oracles
from whence.attrib import methods
from whence.attrib.lexical import token_counts
from whence.attrib.methods.ekfac import FRESH
from whence.attrib.methods.features import random_projection
from whence.attrib.methods.shampoo import Shampoo
from whence.attrib.methods.source import SOURCE, Segment
from whence.cache import (
    Classification,
    DataError,
    Examples,
    ModelError,
    NumericalError,
    Regression,
    ResourceError,
    TrainedModel,
    UsageError,
)
from whence.cache.retrain.loop import weighted_loss
from whence.cache.retrain.recipe import SGD, AdamW, Recipe, Schedule
from whence.cache.retrain.trajectory import Trajectory


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def scored(case: cases.Case, method, queries: Examples) -> np.ndarray:
    return method.fit(case.trained()).score(queries).values


def test_tracin_sums_rates_times_dot_products() -> None:
    case = cases.build("repeated")
    early = cases.build("repeated")
    with torch.no_grad():
        for p in early.model.parameters():
            p.mul_(0.5)
    queries = case.examples.select(range(3))
    wanted = 0.0
    for at, rate in ((early, 0.3), (case, 0.1)):
        f = oracles.flat_gradients(at, queries, case.task.measurement)
        wanted = wanted - rate * f @ oracles.flat_gradients(at, case.examples, case.task.loss).T / len(case.examples)
    found = scored(case, methods.TracIn([early.model.state_dict(), case.model], [0.3, 0.1]), queries)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-7)


def test_trak_is_its_formula_with_the_projection_written_out() -> None:
    case = cases.build("mlp")
    task = Classification("margin")
    queries = case.examples.select(range(3))
    directions = [np.asarray(random_projection(s, place, 8, 3)).reshape(8, -1) for place, s in enumerate(case.sites)]
    projection = np.concatenate(directions, 1)
    kernel, doubt = 0.0, 0.0
    other = cases.build("mlp")
    with torch.no_grad():
        other.model[0].weight.mul_(-1.0)
    for at in (case, other):
        phi = oracles.flat_gradients(at, case.examples, task.measurement) @ projection.T
        projected = oracles.flat_gradients(at, queries, case.task.measurement) @ projection.T
        gram = phi.T @ phi
        kernel = kernel + projected @ np.linalg.inv(gram + 1e-3 * np.trace(gram) / 8 * np.eye(8)) @ phi.T
        p = at.model(torch.as_tensor(case.examples.columns["x"])).softmax(-1).detach().numpy()
        doubt = doubt + 1 - p[np.arange(len(p)), case.examples.columns["y"]]
    found = scored(case, methods.TRAK([case.model, other.model], width=8, seed=3), queries)
    np.testing.assert_allclose(found, kernel / 2 * doubt / 2, rtol=1e-3, atol=1e-4)


def test_logra_with_full_rank_is_the_dense_site_by_site_solve() -> None:
    case = cases.build("mlp")
    queries = case.examples.select(range(3))
    f = oracles.flat_gradients(case, queries, case.task.measurement)
    g = oracles.flat_gradients(case, case.examples, case.task.loss)
    wanted = np.zeros((3, len(g)))
    for part in oracles.site_slices(case.sites).values():
        fisher = g[:, part].T @ g[:, part] / len(g)
        damped = fisher + 0.1 * np.trace(fisher) / len(fisher) * np.eye(len(fisher))
        wanted -= f[:, part] @ np.linalg.solve(damped, g[:, part].T) / len(g)
    found = scored(case, methods.LoGra(rank=99, start="pca"), queries)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
    approximate = scored(case, methods.LoGra(rank=4, start="random"), queries)
    assert np.corrcoef(approximate.ravel(), wanted.ravel())[0, 1] > 0.5


def test_shampoo_keeps_the_trace_and_corrects_to_measured_squares() -> None:
    case = cases.build("mlp")
    plain = Shampoo(corrected=False, eigen="float64").fit(case.trained())
    right = Shampoo(eigen="float64").fit(case.trained())
    sampled = oracles.flat_gradients(case, case.examples, lambda m, b: case.task.sampled_loss(m, b, 0))
    for site, part in oracles.site_slices(case.sites).items():
        shape = plain.per_site[site].eigenvalues.shape
        g = sampled[:, part].reshape(-1, *shape)
        trace = np.square(g).sum() / len(g)
        np.testing.assert_allclose(plain.per_site[site].eigenvalues.sum(), trace, rtol=1e-8)
        left = np.einsum("noi,npi->op", g, g) / len(g)
        q = right.per_site[site].qs
        np.testing.assert_allclose(q.T @ left @ q, np.diag(np.diag(q.T @ left @ q)), atol=1e-9 * trace)
        rotated = np.einsum("op,noi,ij->npj", q, g, right.per_site[site].qa)
        np.testing.assert_allclose(right.per_site[site].eigenvalues, np.square(rotated).mean(0), atol=1e-9 * trace)


def test_redrawn_eigenvalues_are_of_labels_that_the_basis_has_not_seen() -> None:
    case = cases.build("mlp")
    plain = methods.EKFAC(eigen="float64").fit(case.trained())
    anew = methods.EKFAC(eigen="float64", redraw=True).fit(case.trained())
    sampled = oracles.flat_gradients(case, case.examples, lambda m, b: case.task.sampled_loss(m, b, FRESH))
    for site, part in oracles.site_slices(case.sites).items():
        own = anew.per_site[site]
        np.testing.assert_allclose(own.qa, plain.per_site[site].qa)
        g = sampled[:, part].reshape(-1, *own.eigenvalues.shape)
        squares = np.square(np.einsum("op,noi,ij->npj", own.qs, g, own.qa)).mean(0)
        np.testing.assert_allclose(own.eigenvalues, squares, atol=1e-9 * squares.max())


def test_daunce_is_a_covariance_over_models() -> None:
    case = cases.build("mlp")
    models = [copy.deepcopy(case.model) for _ in range(5)]
    with torch.no_grad():
        for number, model in enumerate(models):
            model[0].weight.mul_(1 + 0.1 * number**2)
    queries = case.examples.select([2, 5])
    batch, own = case.examples.batch(range(12)), queries.batch([0, 1])
    losses = np.stack([case.task.loss(m, batch).detach().numpy() for m in models])
    measured = np.stack([case.task.measurement(m, own).detach().numpy() for m in models])
    wanted = -np.array([[np.cov(measured[:, q], losses[:, n])[0, 1] for n in range(12)] for q in range(2)])
    np.testing.assert_allclose(scored(case, methods.Daunce(models), queries), wanted, rtol=1e-4, atol=1e-9)
    with pytest.raises(UsageError, match="at least two"):
        methods.Daunce(models[:1]).fit(case.trained())


def test_bayesian_influence_is_damped_influence_where_losses_are_quadratic() -> None:
    """Linear regression: the sampled weights are normal around the solution, so the covariance is known."""
    rng = np.random.default_rng(0)
    x, model = rng.normal(size=(40, 3)), nn.Linear(3, 1, bias=False).double()
    y = x @ np.array([1.0, -2.0, 0.5]) + 0.5 * rng.normal(size=40)
    solution = np.linalg.solve(x.T @ x, x.T @ y)
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(solution[None]))
    case = cases.Case("solved", model, Examples.of((x, y)), Regression())
    method = methods.BIF(draws=300, every=12, burn_in=60, rate=1e-2, locality=4.0, beta=0.5, batch=None)
    found = scored(case, method, case.examples.select(range(4)))
    damped = x.T @ x / 40 + 4.0 / (0.5 * 40) * np.eye(3)
    wanted = -x[:4] @ np.linalg.solve(damped, (x * (x @ solution - y)[:, None]).T) / 40
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.97
    assert np.polyfit(wanted.ravel(), found.ravel(), 1)[0] == pytest.approx(1, abs=0.2)
    with pytest.raises(NumericalError, match="diverged"):
        methods.BIF(rate=1e3, locality=1.0).fit(case.trained())
    with pytest.raises(UsageError, match="two draws"):
        methods.BIF(draws=1).fit(case.trained())


def test_grand_and_el2n_are_their_definitions() -> None:
    case = cases.build("mlp")
    queries = case.examples.select([0])
    g = oracles.flat_gradients(case, case.examples, case.task.loss)
    np.testing.assert_allclose(scored(case, methods.GraNd(), queries)[0], np.linalg.norm(g, axis=1), rtol=1e-5)
    p = case.model(torch.as_tensor(case.examples.columns["x"])).softmax(-1).detach().numpy()
    error = np.linalg.norm(p - np.eye(3)[case.examples.columns["y"]], axis=1)
    np.testing.assert_allclose(scored(case, methods.EL2N(), queries)[0], error, rtol=1e-5)
    regression = cases.build("regression")
    with pytest.raises(DataError, match="class label"):
        methods.EL2N().fit(regression.trained())


def test_bm25_by_hand() -> None:
    train = Examples.of({"input_ids": [np.array([1, 2, 2]), np.array([3]), np.array([1, 4, 5, 6])]})
    query = Examples.of({"input_ids": [np.array([2, 1, 9])]}, ids=[7])
    found = methods.BM25().fit(TrainedModel(nn.Identity(), train, Regression())).score(query).values[0]
    mean = 8 / 3

    def part(holding: int, tf: int, length: int) -> float:
        return np.log(1 + (3 - holding + 0.5) / (holding + 0.5)) * tf * 2.5 / (tf + 1.5 * (0.25 + 0.75 * length / mean))

    np.testing.assert_allclose(found, [part(1, 2, 3) + part(2, 1, 3), 0.0, part(2, 1, 4)], rtol=1e-6)
    assert token_counts(query, 7).sum() == 2
    with pytest.raises(DataError, match="compares tokens"):
        methods.BM25().fit(TrainedModel(nn.Identity(), cases.vectors(), Regression()))


def test_representation_is_a_centred_cosine() -> None:
    case = cases.build("mlp")
    hidden = case.model[:4](torch.as_tensor(case.examples.columns["x"])).detach().numpy()
    hidden = np.concatenate([hidden, np.ones((len(hidden), 1))], 1)
    centred = hidden - hidden.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    found = scored(case, methods.Representation(), case.examples.select([2, 5]))
    np.testing.assert_allclose(found, unit[[2, 5]] @ unit.T, atol=1e-5)


# --- unrolling -------------------------------------------------------------------------------------------


RECIPES = {
    "sgd": Recipe(2, 5, SGD(0.2, 0.8, 1e-2, nesterov=True), Schedule("cosine", 0.2), batches="shared"),
    "clipped": Recipe(2, 5, SGD(0.3, 0.9), batches="shared", clip=0.5),
    "adamw": Recipe(3, 4, AdamW(0.05, weight_decay=0.1, eps=1e-4)),
}


def train_with_torch(start: nn.Module, train: Examples, recipe: Recipe, weights: np.ndarray) -> nn.Module:
    """The run as torch.optim does it, each example weighted."""
    model, o = copy.deepcopy(start), recipe.optimiser
    if isinstance(o, SGD):
        optimiser = torch.optim.SGD(
            model.parameters(), o.lr, o.momentum, weight_decay=o.weight_decay, nesterov=o.nesterov
        )
    else:
        optimiser = torch.optim.AdamW(model.parameters(), o.lr, o.betas, o.eps, o.weight_decay)
    steps = Trajectory.record(TrainedModel(start, train, Classification(), quiet=True), recipe, 3).steps
    for step in steps:
        for group in optimiser.param_groups:
            group["lr"] = step.rate
        optimiser.zero_grad()
        loss = weighted_loss(Classification())
        loss(model, train.batch(step.rows), {"weights": torch.as_tensor(weights[step.rows])}).backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
    return model


@pytest.mark.parametrize("name", RECIPES)
def test_unrolling_is_the_derivative_of_training(name: str) -> None:
    case, recipe = cases.build("mlp"), RECIPES[name]
    task, train = Classification(), case.examples
    end = case.trained(model=Trajectory.record(case.trained(), recipe, 3).trained())
    ones = np.ones(len(train))
    by_torch = train_with_torch(case.model, train, recipe, ones)
    for p, q in zip(end.model.parameters(), by_torch.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    state = methods.MAGIC(case.model, recipe, 3).fit(end)
    queries = train.select([1, 4])
    found = state.unrolled(queries)
    for n in (0, 4, 7):
        ends = []
        for sign in (1, -1):
            weights = ones.copy()
            weights[n] += sign * 1e-4
            moved = train_with_torch(case.model, train, recipe, weights)
            ends.append(task.measurement(moved, queries.batch([0, 1])).detach().numpy())
        np.testing.assert_allclose(found[:, n], (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-6)


def test_a_run_that_ends_elsewhere_is_refused() -> None:
    case = cases.build("mlp")
    with pytest.raises(ModelError, match="away from the model"):
        methods.MAGIC(case.model, RECIPES["sgd"]).fit(case.trained())
    end = train_with_torch(case.model, case.examples, RECIPES["sgd"], np.ones(len(case.examples)))
    longer = replace(RECIPES["sgd"], epochs=RECIPES["sgd"].epochs + 1)
    with pytest.raises(ModelError, match=r"away from the model, by 0\.[0-9]+ times"):
        methods.MAGIC(case.model, longer, 3).fit(case.trained(model=end))
    with pytest.raises(DataError, match="needs its start"):
        methods.MAGIC().fit(case.trained())
    dropping = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double()
    with pytest.raises(ModelError, match="cannot be replayed"):
        methods.MAGIC(dropping).fit(case.trained(model=dropping, sites="*"))


def test_source_is_unrolled_gradient_descent_where_curvature_is_exact() -> None:
    """One-output linear regression: EK-FAC is exact and constant, so the segments multiply to plain unrolling of small
    full-batch steps, dtheta/dw_n = -(1/N) sum_k (I - rate H)^(K-1-k) rate grad L_n(theta_k)."""
    case = cases.build("linear regression")
    x = np.concatenate([case.examples.columns["x"], np.ones((500, 1))], 1)
    y, h = case.examples.columns["y"], x.T @ x / 500
    rate, steps = 2e-3, 300
    theta = np.zeros(21)
    path = []
    for _ in range(steps):
        path.append(theta)
        theta = theta - rate * (x.T @ (x @ theta - y) / 500)
    moved = np.zeros((21, 500))
    for at in path:
        moved = moved - rate * (h @ moved + x.T * (x @ at - y) / 500)
    queries = case.examples.select(range(4))
    wanted = x[:4] @ moved

    def at(theta: np.ndarray) -> nn.Module:
        model = copy.deepcopy(case.model)
        with torch.no_grad():
            model.weight.copy_(torch.as_tensor(theta[None, :-1]))
            model.bias.copy_(torch.as_tensor(theta[-1:]))
        return model

    parts = 30
    size = steps // parts
    segments = [Segment([at(path[k * size + size // 2])], rate, size) for k in range(parts)]
    final = cases.Case("end", at(theta), case.examples, case.task)
    found = scored(final, SOURCE(segments), queries)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    with pytest.raises(UsageError, match="needs segments"):
        SOURCE().fit(case.trained())


def test_trak_says_when_it_does_not_apply() -> None:
    case = cases.build("regression")
    with pytest.raises(UsageError, match="no margin"):
        methods.TRAK().fit(case.trained())
    case = cases.build("mlp")
    with pytest.raises(ResourceError, match="dense projection"):
        methods.TRAK(width=10**6).fit(case.trained(memory=10**6, positions=8))
