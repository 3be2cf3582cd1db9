"""The solvers against dense solves: Gauss-Newton products, CG, LiSSA and ASTRA in their limit, DataInf's formula."""

import jax
import numpy as np
import pytest
import torch

from tests import cases
from tests.attrib import oracles
from whence import attrib
from whence.attrib import KFAC, Damping
from whence.attrib.methods import Diagonal
from whence.attrib.methods.cg import CG
from whence.attrib.methods.datainf import DataInf
from whence.attrib.methods.ekfac import EKFAC
from whence.attrib.methods.neumann import ASTRA, LiSSA
from whence.attrib.solvers.gauss_newton import GaussNewton
from whence.attrib.solvers.solved import inverse_in_torch
from whence.cache import DataError, NumericalError, UsageError


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ["repeated", "convolutions", "attention with prompts", "tied", "regression"])
def test_products_equal_the_dense_matrix(name: str) -> None:
    case = cases.build(name)
    sites = case.sites
    run = case.trained().run("loss", sites)
    generator = torch.Generator().manual_seed(0)
    v = {s.name: torch.randn(3, *s.shape, generator=generator, dtype=torch.float64) for s in sites}
    found = GaussNewton(run).product(v)
    dense = oracles.dense_gauss_newton(case)
    flat = np.concatenate([v[s.name].reshape(3, -1).numpy() for s in sites], 1)
    got = np.concatenate([found[s.name].reshape(3, -1).numpy() for s in sites], 1)
    np.testing.assert_allclose(got, flat @ dense.T, atol=1e-10 * np.abs(dense).max() * 100)
    assert all(p.requires_grad for p in case.model.parameters())


def exact(case: cases.Case, base: attrib.Factors, matrix: np.ndarray) -> np.ndarray:
    """Influence of every example on the first three queries by a dense solve with the same damping."""
    values = {s.name: base.damping.at(s.name, base.per_site[s.name].eigenvalues) for s in case.sites}
    damping = np.concatenate([np.full(s.shape[0] * s.shape[1], values[s.name]) for s in case.sites])
    f = oracles.flat_gradients(case, case.examples.select(range(3)), case.task.measurement)
    g = oracles.flat_gradients(case, case.examples, case.task.loss)
    return -f @ np.linalg.solve(matrix + np.diag(damping), g.T) / len(case.examples)


def scores(case: cases.Case, method) -> np.ndarray:
    return method.fit(case.trained()).score(case.examples.select(range(3))).values


@pytest.mark.parametrize("name", ["attention", "regression"])
def test_cg_reaches_the_dense_solve(name: str) -> None:
    case = cases.build(name)
    ekfac = EKFAC(damping=Damping(10.0))
    base = ekfac.fit(case.trained())
    wanted = exact(case, base, oracles.dense_gauss_newton(case))
    cg = scores(case, CG(ekfac, tolerance=1e-5, iterations=400))
    np.testing.assert_allclose(cg, wanted, atol=1e-3 * np.abs(wanted).max())
    np.testing.assert_allclose(scores(case, CG(ekfac, iterations=0)), scores(case, ekfac), rtol=1e-5)


def test_astra_reaches_the_dense_solve() -> None:
    case = cases.build("regression")
    ekfac = EKFAC(damping=Damping(10.0))
    base = ekfac.fit(case.trained())
    wanted = exact(case, base, oracles.dense_gauss_newton(case))
    astra = scores(case, ASTRA(ekfac, iterations=60, batch=10**6))
    np.testing.assert_allclose(astra, wanted, atol=1e-3 * np.abs(wanted).max())
    noisy = scores(case, ASTRA(ekfac, iterations=200, batch=5))
    assert np.abs(noisy - wanted).max() < 0.7 * np.abs(scores(case, ekfac) - wanted).max()


def test_lissa_reaches_the_dense_solve() -> None:
    case = cases.build("regression")
    method = LiSSA(damping=Damping(10.0), depth=100, batch=10**6)
    state = method.fit(case.trained())
    wanted = exact(case, state.base, oracles.dense_gauss_newton(case))
    np.testing.assert_allclose(scores(case, method), wanted, atol=1e-2 * np.abs(wanted).max())
    stochastic = LiSSA(damping=Damping(10.0), depth=60, batch=6, repeats=2)
    assert np.corrcoef(scores(case, stochastic).ravel(), wanted.ravel())[0, 1] > 0.95
    with pytest.raises(NumericalError, match="diverged"):
        scores(case, LiSSA(depth=60, batch=10**6, scale=1e-4))


def test_datainf_is_its_formula() -> None:
    case = cases.build("attention")
    g = oracles.flat_gradients(case, case.examples, case.task.loss)
    f = oracles.flat_gradients(case, case.examples.select(range(3)), case.task.measurement)
    wanted = np.zeros((3, len(g)))
    for part in oracles.site_slices(case.sites).values():
        own, query = g[:, part], f[:, part]
        damping = 0.1 * np.square(own).mean()
        for q in range(3):
            for n in range(len(g)):
                swapped = [query[q] @ own[n] - (own[i] @ own[n]) * (own[i] @ query[q]) / (damping + own[i] @ own[i])
                           for i in range(len(g))]  # fmt: skip
                wanted[q, n] -= np.mean(swapped) / damping / len(g)
    np.testing.assert_allclose(scores(case, DataInf()), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("method", [EKFAC(), KFAC(damping=Damping(1e-3, "absolute")), Diagonal()])
def test_torch_and_jax_precondition_alike(method: attrib.CurvatureMethod) -> None:
    case = cases.build("attention")
    factors = method.fit(case.trained())
    generator = torch.Generator().manual_seed(0)
    v = {s.name: torch.randn(2, *s.shape, generator=generator, dtype=torch.float64) for s in case.sites}
    found = inverse_in_torch(factors, v)(v)
    wanted = factors.inverse_product({name: jax.numpy.asarray(value.numpy()) for name, value in v.items()})
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), np.asarray(wanted[name]), rtol=1e-9)


def test_what_a_solver_cannot_do_is_said() -> None:
    case = cases.build("mlp")
    state = CG().fit(case.trained())
    with pytest.raises(UsageError, match="no closed form"):
        state.self_influence()
    with pytest.raises(DataError, match="all 3 sites together"):
        state.inverse_product({case.sites[0].name: jax.numpy.zeros((1, *case.sites[0].shape))})
    weaker = state.with_damping(0.5)
    assert weaker.base.damping.value == 0.5
    v = {s.name: jax.numpy.ones((2, *s.shape)) for s in case.sites}
    tight = CG(tolerance=1e-10, iterations=200).fit(case.trained()).with_damping(0.5)
    back = weaker.system(weaker.in_torch(tight.inverse_product(v)))
    for name, value in back.items():
        np.testing.assert_allclose(value.numpy(), np.asarray(v[name]), atol=1e-6)
