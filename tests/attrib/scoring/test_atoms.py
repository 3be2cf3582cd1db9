"""Influence by atom against formed gradients, and its sum against the site's influence."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests import cases
from whence import attrib
from whence.attrib import EKFAC
from whence.attrib.scoring.atoms import CONSTANT, RESIDUAL
from whence.attrib.scoring.queries import exact_queries
from whence.cache import Examples, ModelError, TrainedModel, UsageError
from whence.cache.model.capture import capture


@dataclass(frozen=True)
class Toy:
    """A dictionary with a simple code: the three atoms of largest correlation, with their correlations."""

    atoms: np.ndarray
    centre: np.ndarray | None = None
    origin: Any = field(default_factory=lambda: SimpleNamespace(site="up.hook_in"))

    def encode(self, x: np.ndarray) -> Any:
        c = (x if self.centre is None else x - self.centre) @ self.atoms.T
        indices = np.argsort(-np.abs(c), axis=1)[:, :3]
        return SimpleNamespace(indices=indices, values=np.take_along_axis(c, indices, 1))


def toy(width: int = 8, size: int = 20, centre: bool = False) -> Toy:
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(size, width))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    return Toy(atoms, rng.normal(size=width) if centre else None)


def fit(dtype: torch.dtype) -> tuple[attrib.Factors, Examples]:
    case = cases.build("attention")
    examples, sites = cases.sequences(7, seed=3), ["qkv", "up", "down", "head"]
    trained = TrainedModel(case.model.to(dtype), examples, case.task, sites=sites, quiet=True)
    return EKFAC().fit(trained), cases.sequences(2, seed=9)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("site", ["up", "head"])
def test_parts_add_up_to_the_site_s_influence_in_float64(x64, centre, site) -> None:
    """With a bias (up) and without (head), with the dictionary's centre and without."""
    factors, queries = fit(torch.float64)
    parts = factors.score(queries, through=toy(centre=centre), site=site)
    whole = factors.score(queries, per_site=True).sel(site=site)
    scale = np.abs(parts.values).max()
    np.testing.assert_allclose(parts.sum("atom").values, whole.values.astype(float), atol=2e-7 * scale)  # float32
    exact = only(factors, site).token_scores(queries)
    np.testing.assert_allclose(parts.sum("atom").values, np.nansum(exact.values, -1), atol=2e-7 * scale)
    direct = by_hand(factors, queries, toy(centre=centre), site)
    for number, values in direct.items():
        np.testing.assert_allclose(parts.sel(atom=number).values, values, atol=1e-10 * scale)
    np.testing.assert_allclose(parts.sum("atom").values, sum(direct.values()), atol=1e-10 * scale)


def only(factors: attrib.Factors, site: str) -> attrib.Factors:
    return replace(factors, sites=factors.sites.only([site]))


def by_hand(factors: attrib.Factors, queries: Examples, dictionary: Toy, site: str) -> dict[int, np.ndarray]:
    """Every part from formed gradients, one example, position and step at a time, in float64."""
    trained = factors.trained
    p = np.asarray(exact_queries(only(factors, site), queries)[site])
    out: dict[int, np.ndarray] = {}
    for n in range(len(trained.train)):
        seen = capture(trained.model, factors.sites.only([site]), trained.train.batch([n]), trained.task.loss)
        a, g = seen.inputs[site][0].numpy(), seen.grads[site][0].numpy()
        for s in range(len(a)):
            if not g[s].any():
                continue
            x = a[s, :8]
            code = dictionary.encode(x[None])
            rest = a[s].copy()
            parts = [(int(k), v * dictionary.atoms[k]) for k, v in zip(code.indices[0], code.values[0])]
            constant = np.zeros_like(a[s])
            constant[8:] = a[s, 8:]
            if dictionary.centre is not None:
                constant[:8] = dictionary.centre
            rest = rest - constant
            for _, vector in parts:
                rest[:8] -= vector
            parts = [(k, np.concatenate([v, np.zeros(len(rest) - 8)])) for k, v in parts]
            for number, vector in [*parts, (RESIDUAL, rest), (CONSTANT, constant)]:
                each = out.setdefault(number, np.zeros((len(queries), len(trained.train))))
                each[:, n] -= np.einsum("o,qoi,i->q", g[s], p, vector) / factors.count
    return out


def test_parts_add_up_in_float32() -> None:
    factors, queries = fit(torch.float32)
    parts = factors.score(queries, through=toy())
    whole = factors.score(queries, per_site=True).sel(site="up")
    assert parts.attrs["site"] == "up"
    assert parts.dtype == np.float32
    np.testing.assert_allclose(parts.sum("atom").values, whole.values, atol=1e-5 * np.abs(whole.values).max())


def test_a_dictionary_that_explains_everything_has_no_residual() -> None:
    factors, queries = fit(torch.float32)
    nowhere = Toy(np.eye(8), origin=SimpleNamespace(site=""))
    exact = SimpleNamespace(
        atoms=np.eye(8), encode=lambda x: SimpleNamespace(indices=np.tile(np.arange(8), (len(x), 1)), values=x)
    )
    parts = factors.score(queries, through=exact, site="up")
    assert np.abs(parts.sel(atom=RESIDUAL).values).max() <= 1e-6 * np.abs(parts.values).max()
    with pytest.raises(UsageError, match="Name the site"):
        factors.score(queries, through=nowhere)
    with pytest.raises(UsageError, match="have no site 'out'"):
        factors.score(queries, through=nowhere, site="out")
    with pytest.raises(ModelError, match="17 wide"):
        factors.score(queries, through=nowhere, site="down")
    with pytest.raises(UsageError, match="not both"):
        factors.score(queries, through=exact, per_site=True)
