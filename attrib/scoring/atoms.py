"""Influence through atoms: which features of a training example carried its influence.

If a dictionary writes the input of a site as a[s] = sum over k of c[s k] d_k + e[s] (+ the dictionary's centre, and
the 1 of the bias), the example's gradient sum over s of g[s] a[s]^T is a sum of the same parts, and the influence,
which is linear in it, splits exactly:

    influence[q, n] at the site = sum over atoms k of -(1/N) sum over s of c[s k] g[s]^T P_q d_k
                                  + the residual's part + the constant's part.

The split is exact for any code; if the dictionary explains little, most is in the residual. A dictionary is anything
with unit rows `atoms` [a d] and `encode(x [b d])` that returns `indices` and `values` [b k].
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from whence.cache import Examples, ModelError, UsageError
from whence.cache.model.batches import CapturedBatch
from whence.cache.model.names import site_names

from .. import kernels
from ..curvature import Curvature
from .queries import exact_queries

if TYPE_CHECKING:
    import xarray

RESIDUAL, CONSTANT = -1, -2  # on the atom axis: what no atom explains; the bias's 1 and the dictionary's centre


@runtime_checkable
class Encoder(Protocol):
    """A dictionary. It may also have `centre` [d], taken off before encoding, and `origin.site`, the
    hook point that it was built at."""

    @property
    def atoms(self) -> Any: ...

    def encode(self, x: np.ndarray) -> Any: ...


def through_atoms(
    factors: Curvature,
    queries: Examples,
    train: Examples,
    dictionary: Encoder,
    site: str | None = None,
) -> "xarray.DataArray":
    """Influence at one site by atom of the training examples' inputs, [query, train, atom], in nats: what
    Factors.score(through=...) returns.

    Memory grows with queries times atoms of the dictionary times examples in a batch.

    Args:
        dictionary: of inputs of the site.
        site: by default the one whose input the dictionary was built at (its hook point is `<site>.hook_in`).

    Raises UsageError if the factors do not have the site or if the dictionary does not name one; ModelError if the
    site's inputs are not as wide as the atoms.
    """
    factors.check_model()
    name = chosen_site(factors, dictionary, site)
    only = replace(factors, sites=factors.sites.only([name]))
    atoms = np.asarray(dictionary.atoms)
    bias = check_width(only.sites[0].shape[1], atoms.shape[1], name)
    prepared = exact_queries(only, queries)[name]
    run = factors.trained.run("loss", only.sites, train)
    found = np.zeros((len(queries), len(train), len(atoms) + 2))
    for batch in run.batches(desc="scores by atom"):
        parts = decomposed(batch, name, dictionary, bias)
        each = products(prepared, batch.grads[name], parts, atoms)
        found[:, batch.rows] = each[:, : len(batch.rows)]
    size = factors.train_size
    used = np.flatnonzero(found[..., : len(atoms)].any((0, 1)))
    numbers = np.concatenate([used, [RESIDUAL, CONSTANT]])
    array = factors.labelled(-found[..., numbers].astype(prepared.dtype) / size, queries, train, last="atom")
    return array.assign_coords(atom=numbers).assign_attrs(site=name, residual=RESIDUAL, constant=CONSTANT)


def chosen_site(factors: Curvature, dictionary: Any, site: str | None) -> str:
    """The site whose input the dictionary decomposes. Raises UsageError if it is unknown."""
    origin = getattr(getattr(dictionary, "origin", None), "site", "")
    name = site or origin.removesuffix(".hook_in")
    others = site_names(factors.trained.model)
    name = next((own for own in factors.sites.names if name in others.get(own, ())), name)
    if name in factors.sites.names:
        return name
    if site is None:
        raise UsageError(
            f"The dictionary was built at {origin or 'an unknown hook point'}, not the input of a fitted site.",
            f"Name the site whose input it decomposes (site=, --site), one of {', '.join(factors.sites.names)}.",
        )
    raise UsageError(
        f"The factors have no site {site!r}.", f"Use one of {', '.join(factors.sites.names)}, or fit it as well."
    )


def check_width(inputs: int, width: int, name: str) -> bool:
    """Whether the inputs have a 1 for the bias. Raises ModelError if they are not as wide as the atoms."""
    if inputs - width not in (0, 1):
        raise ModelError(
            f"Inputs of {name} are {inputs} wide (the bias's 1 counted), the atoms {width}.",
            f"Build the dictionary at this site's input, {name}.hook_in.",
        )
    return inputs == width + 1


class Parts(NamedTuple):
    """Inputs [b s i] as atoms (indices, values [b s k]), what no atom explains, and what is the same for all. The three
    sum to the inputs."""

    indices: jax.Array
    values: jax.Array
    left: jax.Array
    constant: jax.Array


def decomposed(batch: CapturedBatch, site: str, dictionary: Encoder, bias: bool) -> Parts:
    """The inputs of one batch as parts. Only positions at which the loss has a gradient are encoded: the others have no
    influence."""
    a, g = np.asarray(batch.inputs[site]), np.asarray(batch.grads[site])
    x = a[..., :-1] if bias else a
    live = (g != 0).any(-1)
    code = dictionary.encode(x[live])
    chosen, strength = np.asarray(code.indices), np.asarray(code.values)
    indices = np.zeros((*live.shape, chosen.shape[1]), np.int32)
    values = np.zeros(indices.shape, a.dtype)
    indices[live], values[live] = chosen, strength
    constant = np.zeros_like(a)
    centre = getattr(dictionary, "centre", None)
    if centre is not None:
        constant[..., : x.shape[-1]] = centre
    explained = np.zeros_like(a)
    atoms = np.asarray(dictionary.atoms, a.dtype)
    for step in range(indices.shape[2]):
        explained[..., : x.shape[-1]] += values[..., step, None] * atoms[indices[..., step]]
    if bias:
        constant[..., -1] = a[..., -1]
    return Parts(*map(jnp.asarray, (indices, values, a - explained - constant, constant)))


def products(prepared: jax.Array, g: jax.Array, parts: Parts, atoms: np.ndarray) -> np.ndarray:
    """<P_q, G_b> by part, [q b a+2]: atoms, then the constant at CONSTANT and the residual at RESIDUAL from the end."""
    padded = jnp.pad(jnp.asarray(atoms, g.dtype), ((0, 0), (0, prepared.shape[2] - atoms.shape[1])))
    by_atom = kernels.atom_products(prepared, g, parts.indices, parts.values, padded)
    rest = [kernels.position_products(prepared, a, g).sum(-1) for a in (parts.constant, parts.left)]
    return np.concatenate([np.asarray(by_atom), np.stack([np.asarray(r) for r in rest], -1)], -1)
