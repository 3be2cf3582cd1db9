"""Sketches against the whitened gradients that they compress."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from tests import cases
from whence.attrib import EKFAC, Factors
from whence.attrib.index import Sketch
from whence.attrib.index.sketches import Coordinates, Ranked, plan_sketch
from whence.cache import DataError, TrainedModel, UsageError


@pytest.fixture(scope="module")
def factors() -> Factors:
    case = cases.build("attention")
    train = cases.sequences(40, seed=1)
    return EKFAC().fit(TrainedModel(case.model.float(), train, case.task, sites=["qkv", "up"], quiet=True))


def test_pairs_of_a_gradient(factors) -> None:
    """All pairs of a site are its gradient; fewer are the best approximation of that rank; a row of zeros stays so."""
    site = max(factors.sites, key=lambda s: min(s.shape))
    o, i = site.shape
    state, rng = factors.per_site[site.name], np.random.default_rng(0)
    a, g = (jnp.asarray(rng.normal(size=(3, 9, w)), jnp.float32) for w in (i, o))
    g = g.at[2].set(0)
    whitened = np.einsum("op,bso,bsi,ij->bpj", state.qs, g, a, state.qa) * np.sqrt(factors.inverse(site.name))
    cut = plan_sketch(factors, Sketch(width=10**6))[site.name].cut
    queries = np.asarray(Ranked(cut, 1).for_queries()(a, g))
    np.testing.assert_allclose(queries, whitened.reshape(3, -1), atol=1e-4 * np.abs(whitened).max())
    for count in (1, 2, min(o, i)):
        ranked = Ranked(cut, count)
        rows = np.asarray(ranked.rows()(a, g))
        assert rows.shape == (3, ranked.width) == (3, count * (o + i))
        assert not rows[2].any()
        u, s, v = np.linalg.svd(whitened)
        best = np.einsum("bok,bk,bki->boi", u[..., :count], s[:, :count], v[:, :count])
        wanted = np.einsum("qoi,boi->qb", whitened, best)
        np.testing.assert_allclose(ranked.scores(queries, rows), wanted, atol=1e-4 * np.abs(wanted).max())


def test_ranks_follow_the_width(factors, monkeypatch) -> None:
    """No width is too small for a site: fewer rows and columns; where it is no smaller than the site, all of it."""
    sizes = {site.name: site.shape for site in factors.sites}
    for width in (4, 60, 120, 300):
        plan = plan_sketch(factors, Sketch(width=width))
        assert sum(part.width for part in plan.values()) <= width
        for name, part in plan.items():
            if isinstance(part, Ranked):
                assert all(1 <= kept <= whole for kept, whole in zip(part.cut.shape, sizes[name]))
                assert part.count < min(sizes[name])
    assert all(isinstance(part, Coordinates) for part in plan_sketch(factors, Sketch(width=10**6)).values())
    monkeypatch.setattr("whence.attrib.index.sketches.SIDES_PER_PAIR", 1)
    assert max(part.count for part in plan_sketch(factors, Sketch(width=120)).values()) > 1


def test_a_sketch_that_is_too_narrow_is_refused(factors) -> None:
    with pytest.raises(UsageError, match="A width of 1 for 2 sites"):
        plan_sketch(factors, Sketch("largest", width=1))
    with pytest.raises(UsageError, match="Keep at least 4: a row and a column per site"):
        plan_sketch(factors, Sketch(width=3))
    flat = {n: f._replace(eigenvalues=np.zeros_like(f.eigenvalues)) for n, f in factors.per_site.items()}
    with pytest.raises(DataError, match="no curvature in any direction"):
        plan_sketch(replace(factors, per_site=flat), Sketch())
