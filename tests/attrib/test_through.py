"""Influence by atom adds up to the site's influence, and an activation as a measurement has the right gradient."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests import cases
from whence import attrib
from whence.attrib import EKFAC, FitOptions, kernels
from whence.attrib.queries import prepared_queries
from whence.cache import DataError, ModelError, UsageError, capture

QUIET = FitOptions(quiet=True)


@dataclass(frozen=True)
class Toy:
    """Any code will do: the three atoms of largest correlation, with their correlations."""

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


def setting(dtype: torch.dtype) -> tuple:
    case = cases.build("attention")
    model = case.model.to(dtype)
    examples = cases.sequences(7, seed=3)
    sites = cases.Case("", model, examples, case.task, {"pattern": ["qkv", "up", "down", "head"]}).sites
    factors = EKFAC().fit(model, case.task, examples, sites=sites, options=QUIET)
    return factors, model, case.task, cases.sequences(2, seed=9), examples


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("site", ["up", "head"])
def test_parts_add_up_to_the_site_s_influence_in_float64(x64, centre, site) -> None:
    """With a bias (up) and without (head), with the dictionary's centre and without."""
    asked = setting(torch.float64)
    parts = attrib.through_atoms(*asked, toy(centre=centre), site=site, options=QUIET)
    whole = attrib.score(*asked, per_site=True, options=QUIET).sel(site=site)
    scale = np.abs(parts.values).max()
    np.testing.assert_allclose(
        parts.sum("atom").values, whole.values.astype(float), atol=2e-7 * scale
    )  # kept as float32
    exact = attrib.token_scores(*only(asked, site), options=QUIET)
    np.testing.assert_allclose(parts.sum("atom").values, np.nansum(exact.values, -1), atol=2e-7 * scale)
    direct = by_hand(asked, toy(centre=centre), site)
    for number, values in direct.items():
        np.testing.assert_allclose(parts.sel(atom=number).values, values, atol=1e-10 * scale)
    np.testing.assert_allclose(parts.sum("atom").values, sum(direct.values()), atol=1e-10 * scale)


def only(asked: tuple, site: str) -> tuple:
    factors, *rest = asked
    return (replace(factors, sites=factors.sites.only([site])), *rest)


def by_hand(asked: tuple, dictionary: Toy, site: str) -> dict[int, np.ndarray]:
    """Every part from formed gradients, one example, position and step at a time, in float64."""
    factors, model, task, queries, train = asked
    p = np.asarray(prepared_queries(only(asked, site)[0], model, task, queries, QUIET)[site])
    out: dict[int, np.ndarray] = {}
    for n in range(len(train)):
        seen = capture(model, factors.sites.only([site]), train.batch([n]), task.loss)
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
            for number, vector in [*parts, (attrib.RESIDUAL, rest), (attrib.CONSTANT, constant)]:
                each = out.setdefault(number, np.zeros((len(queries), len(train))))
                each[:, n] -= np.einsum("o,qoi,i->q", g[s], p, vector) / factors.count
    return out


def test_parts_add_up_in_float32() -> None:
    asked = setting(torch.float32)
    parts = attrib.through_atoms(*asked, toy(), options=QUIET)
    whole = attrib.score(*asked, per_site=True, options=QUIET).sel(site="up")
    assert parts.attrs["site"] == "up"
    assert parts.dtype == np.float32
    np.testing.assert_allclose(parts.sum("atom").values, whole.values, atol=1e-5 * np.abs(whole.values).max())


def test_atoms_that_are_inputs_leave_nothing() -> None:
    """A dictionary that explains an input whole leaves no residual."""
    asked = setting(torch.float32)
    whole = Toy(np.eye(8), origin=SimpleNamespace(site=""))
    exact = SimpleNamespace(
        atoms=np.eye(8), encode=lambda x: SimpleNamespace(indices=np.tile(np.arange(8), (len(x), 1)), values=x)
    )
    parts = attrib.through_atoms(*asked, exact, site="up", options=QUIET)
    assert np.abs(parts.sel(atom=attrib.RESIDUAL).values).max() <= 1e-6 * np.abs(parts.values).max()
    with pytest.raises(UsageError, match="Say which site"):
        attrib.through_atoms(*asked, whole, options=QUIET)
    with pytest.raises(UsageError, match="know no site 'out'"):
        attrib.through_atoms(*asked, whole, site="out", options=QUIET)
    with pytest.raises(ModelError, match="17 wide"):
        attrib.through_atoms(*asked, whole, site="down", options=QUIET)


def test_kernel_against_its_slow_twin() -> None:
    rng = np.random.default_rng(0)
    p, g, atoms = rng.normal(size=(2, 4, 3)), rng.normal(size=(5, 6, 4)), rng.normal(size=(7, 3))
    indices, values = rng.integers(0, 7, (5, 6, 2)), rng.normal(size=(5, 6, 2))
    wanted = np.zeros((2, 5, 7))
    for b in range(5):
        for s in range(6):
            for k in range(2):
                atom = indices[b, s, k]
                wanted[:, b, atom] += values[b, s, k] * np.einsum("o,qoi,i->q", g[b, s], p, atoms[atom])
    found = kernels.atom_products(*(x.astype(np.float32) for x in (p, g)), indices, *(
        x.astype(np.float32) for x in (values, atoms)
    ))  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)


def test_a_reading_s_gradient_is_that_of_the_mean_activation() -> None:
    """Directional derivative of the mean projection over real positions, against a central difference."""
    case = cases.build("attention")
    vector = np.random.default_rng(1).normal(size=8)
    who = attrib.Reading(case.task, "rms", attrib.Direction(vector, np.full(8, 0.1)))
    sites = cases.Case("", case.model, case.examples, case.task, {"pattern": ["qkv", "out", "up"]}).sites
    batch = case.examples.batch([0, 1, 2])
    seen = capture(case.model, sites, batch, who.measurement)
    gradients = {s.name: torch.einsum("bso,bsi->oi", seen.grads[s.name], seen.inputs[s.name]) for s in sites}
    assert not gradients["up"].any()  # behind the hook point
    for name in ("qkv", "out"):
        weight = case.model.get_submodule(name).weight
        step = torch.randn_like(weight) * 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * step
                values.append(float(who.measurement(case.model, batch).sum()))
                weight -= sign * step
        assert (values[0] - values[1]) / 2 == pytest.approx(float((gradients[name][:, :8] * step).sum()), rel=1e-5)
    for row in range(3):  # padding counts nothing
        alone = who.measurement(case.model, case.examples.batch([row]))
        torch.testing.assert_close(alone[0], who.measurement(case.model, batch)[row])


def test_scores_of_a_reading_say_what_they_are() -> None:
    factors, model, task, queries, examples = setting(torch.float32)
    who = attrib.Reading(task, "rms", attrib.Direction(np.eye(8, dtype=np.float32)[0]))
    found = attrib.score(factors, model, who, queries, examples, options=QUIET)
    assert found.attrs["units"] == "activation"
    assert np.isfinite(found.values).all()
    assert found.values.any()
    other = attrib.Reading(task, "rms", attrib.Direction(np.eye(8, dtype=np.float32)[1]))
    assert who.settings != other.settings
    both = attrib.Reading(task, "rms", dict(zip(queries.ids.tolist(), (who.readout, other.readout))))
    together = attrib.score(factors, model, both, queries, examples, options=QUIET).values
    apart = attrib.score(factors, model, other, queries, examples, options=QUIET).values
    np.testing.assert_allclose(together, np.stack([found.values[0], apart[1]]), rtol=1e-5, atol=1e-7)
    with pytest.raises(DataError, match="what to read in query"):
        replace(both, readout={}).measurement(model, queries.batch([0]))
