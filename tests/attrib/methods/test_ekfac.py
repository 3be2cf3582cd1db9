"""EK-FAC and its relatives against dense curvature: exact if it must be, ordered if it approximates."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

from tests import cases, reference
from whence.attrib import EKFAC, KFAC, Damping, Identity, Method
from whence.attrib.methods import Diagonal
from whence.cache import Classification, Examples
from whence.cache.model.capture import capture


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def dense_influence(
    case: cases.Case, fisher: np.ndarray, damping: float, queries: Examples, train: Examples
) -> np.ndarray:
    """(1/N) grad f^T (G + damping I)^-1 (-grad L), solved densely."""
    sites = case.sites
    f = reference.flat(reference.site_gradients(case.model, sites, queries, case.task.measurement), sites)
    g = reference.flat(reference.site_gradients(case.model, sites, train, case.task.loss), sites)
    return -f @ np.linalg.solve(fisher + damping * np.eye(len(fisher)), g.T) / len(train)


def test_exact_for_one_output_linear_regression() -> None:
    case = cases.build("linear regression")
    factors = EKFAC(damping=Damping(0.3, "absolute"), eigen="float64").fit(case.trained())
    queries = case.examples.select(range(5))
    scores = factors.score(queries)
    x = np.concatenate([case.examples.columns["x"], np.ones((500, 1))], 1)
    wanted = dense_influence(case, x.T @ x / 500, 0.3, queries, case.examples)
    np.testing.assert_allclose(scores.values, wanted, rtol=1e-6)  # scores are float32
    prepared = factors.inverse_product({case.sites[0].name: jax.numpy.asarray(x[:7, None, :])})[case.sites[0].name]
    exact = np.linalg.solve(x.T @ x / 500 + 0.3 * np.eye(21), x[:7].T).T
    np.testing.assert_allclose(np.asarray(prepared)[:, 0], exact, rtol=1e-8)


class Pooled(nn.Module):
    """A tanh network at each of six positions, its outputs added: positions of an example have related gradients,
    which is what separates EK-FAC from K-FAC."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 20), nn.Linear(20, 20), nn.Linear(20, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x))))).sum(1)


def tanh_network(seed: int) -> cases.Case:
    torch.manual_seed(seed)
    model, rng = Pooled().double(), np.random.default_rng(seed)
    centres, y = rng.normal(size=(4, 12)), rng.integers(0, 4, 500)
    shared = rng.normal(size=(500, 1, 12)) * np.linspace(0.2, 1.5, 12)
    x = 0.4 * centres[y][:, None] + shared + 0.3 * rng.normal(size=(500, 6, 12)) * np.linspace(1.5, 0.2, 12)
    y = np.where(rng.random(500) < 0.3, rng.integers(0, 4, 500), y)
    examples = Examples.of({"x": x, "y": y})
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        Classification().loss(model, examples.batch(range(500))).mean().backward()
        optimizer.step()
    return cases.Case("tanh", model, examples, Classification())


def exact_fisher(case: cases.Case) -> np.ndarray:
    """Every label of every example, weighted by its probability."""
    x = case.examples.columns["x"]
    probability = case.model(torch.as_tensor(x)).softmax(-1).detach().numpy()
    total = np.zeros((sum(site.count for site in case.sites),) * 2)
    for label in range(probability.shape[1]):
        relabelled = Examples.of({"x": x, "y": np.full(len(x), label)})
        seen = capture(case.model, case.sites, relabelled.batch(range(len(x))), case.task.loss)
        formed = {n: torch.einsum("bso,bsi->boi", seen.grads[n], seen.inputs[n]).numpy() for n in case.sites.names}
        g = reference.flat(formed, case.sites)
        total += (g * probability[:, label, None]).T @ g / len(x)
    return total


@pytest.mark.parametrize("seed", [0, 1])
def test_order_of_methods_against_the_dense_gauss_newton_solve(seed: int) -> None:
    case = tanh_network(seed)
    fisher = exact_fisher(case)
    damping = 0.1 * np.trace(fisher) / len(fisher)
    queries = case.examples.select(range(20))
    exact = dense_influence(case, fisher, damping, queries, case.examples).ravel()

    def correlation(method: Method) -> float:
        scores = method.fit(case.trained()).score(queries)
        return float(np.corrcoef(scores.values.ravel(), exact)[0, 1])

    by = Damping(damping, "absolute")
    found = [correlation(m) for m in (EKFAC(damping=by), KFAC(damping=by), Diagonal(damping=by), Identity())]
    assert found[0] > 0.8
    assert found[0] > found[1] + 0.05 > found[2] + 0.1 > found[3] + 0.1


def test_a_basis_from_part_of_the_data_keeps_eigenvalues_and_scores() -> None:
    case = tanh_network(0)
    queries = case.examples.select(range(20))
    factors = [EKFAC(basis_examples=count).fit(case.trained()) for count in (None, 100)]
    for site in case.sites.names:  # a rotation keeps the trace of the Fisher matrix
        traces = [f.per_site[site].eigenvalues.sum() for f in factors]
        np.testing.assert_allclose(traces[1], traces[0], rtol=1e-6)
    scores = [f.score(queries).values for f in factors]
    assert np.corrcoef(scores[0].ravel(), scores[1].ravel())[0, 1] > 0.95
    assert not np.allclose(*scores, rtol=1e-3)
