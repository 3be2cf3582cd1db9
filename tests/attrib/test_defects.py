"""Defects found in other libraries (see the research behind the design), each shown not to be here.

Sampled labels outside the loss, and dropped uses of shared layers in capture, are in tests/cache.
"""

import jax
import numpy as np
import pytest
import torch

from tests import cases, reference
from whence import attrib
from whence.attrib import EKFAC, KFAC, Damping, Identity
from whence.cache import Examples


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


def fit(case: cases.Case, method: attrib.Method, examples: Examples | None = None) -> attrib.Factors:
    return method.fit(case.trained(train=case.examples if examples is None else examples))


@pytest.mark.parametrize("name", ["repeated", "tied", "convolutions"])
def test_every_use_of_a_shared_layer_scores(name: str) -> None:
    """kronfluence's pairwise hooks keep the first backward call only; grouped convolutions are averaged there."""
    case = cases.build(name)
    scores = fit(case, Identity()).score(case.examples.select([0, 3]))
    g = reference.flat(reference.site_gradients(case.model, case.sites, case.examples, case.task.loss), case.sites)
    np.testing.assert_allclose(scores.values, g[[0, 3]] @ g.T / len(g), rtol=1e-5, atol=1e-7)


def test_eigenvalues_are_means_over_examples() -> None:
    """Left as sums, absolute damping would mean something else for every amount of data."""
    case = cases.build("linear regression")
    once = fit(case, EKFAC())
    columns = {name: np.concatenate([v, v]) for name, v in case.examples.columns.items()}
    twice = fit(case, EKFAC(), Examples.of(columns))
    (site,) = case.sites.names
    np.testing.assert_allclose(once.per_site[site].eigenvalues, twice.per_site[site].eigenvalues, rtol=1e-6)


def test_default_damping_is_a_tenth_of_the_mean_eigenvalue_of_each_site() -> None:
    """Elsewhere: an absolute 1e-8; or the first layer's damping reused for all later ones."""
    factors = fit(cases.build("mlp"), EKFAC())
    added = {}
    for site, state in factors.per_site.items():
        added[site] = 1 / factors.inverse(site) - state.eigenvalues
        np.testing.assert_allclose(added[site], 0.1 * state.eigenvalues.mean(), rtol=1e-9)
    assert len({float(a.flat[0]) for a in added.values()}) == len(added)


def test_damping_does_not_compound() -> None:
    """Damped in place, every further call would damp again."""
    case = cases.build("mlp")
    factors = fit(case, EKFAC())
    runs = [factors.score(case.examples).values for _ in range(2)]
    np.testing.assert_array_equal(*runs)


def test_labels_come_from_the_model() -> None:
    """Curvature from the data's labels is the empirical Fisher, computed on request only."""
    case = cases.build("mlp")
    other = Examples.of({"x": case.examples.columns["x"], "y": (case.examples.columns["y"] + 1) % 3})
    (a, b), (c, d) = [
        [fit(case, EKFAC(labels=labels), e).per_site["0"].eigenvalues for e in (case.examples, other)]
        for labels in ("sampled", "true")
    ]
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(c, d)


def test_rotation_goes_the_right_way_and_the_bias_is_the_last_column() -> None:
    """With the transposed rotation, or weights and biases flattened one after the other, the Fisher matrix that the
    factors stand for is far from the true one."""
    case = cases.build("linear regression")
    factors = fit(case, EKFAC(eigen="float64"))
    (site,) = case.sites.names
    state = factors.per_site[site]
    assert state.qa is not None
    x = np.concatenate([case.examples.columns["x"], np.ones((500, 1))], 1)
    fisher = state.qa @ np.diag(state.eigenvalues[0]) @ state.qa.T
    np.testing.assert_allclose(fisher, x.T @ x / 500, rtol=1e-8, atol=1e-10)
    transposed = state.qa.T @ np.diag(state.eigenvalues[0]) @ state.qa
    assert np.linalg.norm(transposed - fisher) > 0.5 * np.linalg.norm(fisher)


def test_three_dimensional_inputs() -> None:
    case = cases.build("attention")
    factors = fit(case, EKFAC())
    assert {site.name for site in case.sites} == set(factors.per_site)
    assert all(np.isfinite(state.eigenvalues).all() for state in factors.per_site.values())


def test_bias_is_part_of_the_site() -> None:
    assert cases.build("mlp").sites[0].shape == (6, 5)


def test_half_precision_models_keep_whole_precision_factors() -> None:
    """Covariances stored in bfloat16 have bfloat16 eigenvectors, which are not orthogonal."""
    case = cases.build("mlp")
    model = case.model.to(torch.bfloat16)
    x = torch.as_tensor(case.examples.columns["x"]).bfloat16().float().numpy()
    examples = Examples.of({"x": x, "y": case.examples.columns["y"]})

    class Bfloat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.bfloat16())

    whole = Bfloat()
    factors = EKFAC().fit(case.trained(model=whole, train=examples, sites="*"))
    for state in factors.per_site.values():
        assert state.qa is not None
        assert state.qa.dtype == np.float32
        np.testing.assert_allclose(state.qa.T @ state.qa, np.eye(len(state.qa)), atol=2e-5)


def test_inverse_is_taken_in_double_precision() -> None:
    factors = fit(cases.build("mlp"), KFAC(damping=Damping(1e-12, "absolute")))
    for site in factors.per_site:
        assert factors.inverse(site).dtype == np.float64
