"""Pairwise influence and self-influence.

influence[q, n] = (1/N) grad f_q^T (G + damping I)^-1 (-grad L_n): the predicted change of query q's measurement
when training example n is added once more to the N examples that the model was trained on (Grosse et al. 2023, Eq. 5;
Koh and Liang 2017). Positive: the example raises the measurement.

Queries are preconditioned once. The training data are passed over once for all queries together, and nothing on
their side is rotated.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from whence.cache import Examples
from whence.cache.model.batches import BatchSource, CapturedBatch

from .. import kernels
from ..curvature import Curvature
from .contraction import group_size
from .precision import Precision, products_in
from .queries import Rank, prepare_queries, resolved_rank
from .rows import Values, over_rows, row_inputs

if TYPE_CHECKING:
    import xarray


def score(
    factors: Curvature, queries: Examples, train: Examples, *, rank: Rank, precision: Precision, per_site: bool
) -> "xarray.DataArray":
    """See Factors.score."""
    factors.check_model()
    columns = len(factors.sites) if per_site else 1
    rank = resolved_rank(factors, len(queries), rank, precision)
    inputs = {**pair_inputs(factors, queries, train, rank, precision), "per_site": per_site, "what": "pairwise"}
    work = Pairwise(factors, queries, rank, precision, per_site)
    values = over_rows(factors, train, inputs, (len(queries), columns), work, "scores").transpose(1, 0, 2)
    array = labelled(values / np.float32(factors.train_size), queries, train, factors)
    return array.assign_coords(site=list(factors.sites.names)) if per_site else array[..., 0]


@dataclass(frozen=True)
class Pairwise:
    """Scores (times -N) of a batch's examples, [b q 1], or [b q m] by site."""

    factors: Curvature
    queries: Examples
    rank: int | None
    precision: Precision
    per_site: bool

    def __call__(self, source: BatchSource) -> Values:
        lengths = source.examples.lengths
        ready = prepare_queries(self.factors, self.queries, lengths, rank=self.rank, precision=self.precision)

        def values(batch: CapturedBatch) -> np.ndarray:
            with products_in(self.precision):
                if not self.per_site:
                    return -ready.total(batch).T[..., None]
                parts = [np.asarray(ready.products(batch, s.name), np.float32) for s in source.sites]
            return -np.stack(parts, -1).swapaxes(0, 1)[: len(batch.rows)]

        return values


def self_influence(factors: Curvature, train: Examples) -> "xarray.DataArray":
    """See Factors.self_influence. One rotation and a weighted sum of squares: nothing is rotated back."""
    import xarray

    return xarray.DataArray(
        squared_norms(factors, train, 1) / np.float32(factors.train_size),
        dims=("train",),
        coords={"train": train.ids},
        name="self_influence",
        attrs={"units": "nats", "method": factors.method, "damping": factors.damping.value},
    )


def squared_norms(factors: Curvature, train: Examples, power: int) -> np.ndarray:
    """grad L_n^T (G + damping I)^-power grad L_n of every training example, [n]."""
    factors.check_model()
    inputs = row_inputs(factors, train, what="self" if power == 1 else f"self, power {power}")
    return over_rows(factors, train, inputs, (), Squares(factors, power), "self-influence")


@dataclass(frozen=True)
class Squares:
    """Squared norms of a batch's gradients in the metric (G + damping I)^-power, [b]."""

    factors: Curvature
    power: int

    def __call__(self, source: BatchSource) -> Values:
        weights = {site.name: self.factors.inverse(site.name) ** self.power for site in source.sites}

        def values(batch: CapturedBatch) -> np.ndarray:
            parts = [site_squares(self.factors, weights[s.name], batch, s.name) for s in source.sites]
            return np.asarray(sum(parts[1:], parts[0]), np.float32)[: len(batch.rows)]

        return values


def pair_inputs(
    factors: Curvature, queries: Examples, train: Examples, rank: int | None, precision: Precision
) -> dict[str, Any]:
    """What scores of queries are computed from, as in their key."""
    inputs = row_inputs(factors, train, queries=queries.fingerprint)
    changed = {"rank": rank} if rank is not None else {}
    return inputs | changed | ({"precision": precision} if precision != "float32" else {})


def site_products(prepared: jax.Array, batch: CapturedBatch, site: str) -> jax.Array:
    """<prepared_q, gradient_b> at one site, [q b]."""
    a, g = batch.inputs[site], batch.grads[site]
    return kernels.pair_products(prepared, a, g, group=group_size(a, g, len(prepared)))


def site_squares(factors: Curvature, weight: np.ndarray, batch: CapturedBatch, site: str) -> jax.Array:
    """Weighted squares of the rotated gradients at one site, [b]."""
    a, g = batch.inputs[site], batch.grads[site]
    state = factors.per_site[site]
    scale = jnp.asarray(weight, a.dtype)
    if state.qa is None or state.qs is None:
        return kernels.weighted_squares_unrotated(a, g, scale)
    order = kernels.rotation_order(a.shape[1], g.shape[2], a.shape[2])
    return kernels.weighted_squares(a, g, jnp.asarray(state.qa, a.dtype), jnp.asarray(state.qs, a.dtype), scale, order)


def labelled(
    values: np.ndarray, queries: Examples, train: Examples, factors: Curvature, last: str = "site"
) -> "xarray.DataArray":
    """Scores [q n x] as a DataArray with ids, what is measured, and how."""
    return factors.labelled(values, queries, train, last).assign_attrs(
        meaning="predicted change of the query's measurement when the example is added once more",
        damping=f"{factors.damping.value:g} {factors.damping.rule}",
    )
