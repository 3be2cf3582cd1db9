"""Pairwise influence and self-influence, a batch of training examples at a time.

influence[q, n] = (1/N) grad f_q^T (G + damping I)^-1 (-grad L_n): the predicted change of query q's measurement
when training example n is added once more to the N examples that the model was trained on (Grosse et al. 2023, Eq. 5;
Koh and Liang 2017). Positive: the example raises the measurement.

Queries are preconditioned once. There is one pass over the training data for all queries together, and nothing on
their side is rotated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whence.cache import Examples
from whence.cache.model.batches import BatchSource, CapturedBatch
from whence.cache.model.bridge import to_accelerator

from .. import kernels
from ..curvature import Curvature
from .precision import Precision, products_in
from .queries import forms_of, prepare_queries
from .rows import Values, at_groups, over_rows, row_inputs


@dataclass(frozen=True)
class Pairwise:
    """Scores of a batch's examples, times -N: [b q 1], or [b q m] by site if the sites of the m columns are named."""

    factors: Curvature
    queries: Examples
    rank: int | None
    precision: Precision
    columns: Sequence[str] = ()

    def inputs(self, train: Examples) -> dict[str, Any]:
        """What the scores of these training examples are computed from, as in their key."""
        changed: dict[str, Any] = {} if self.rank is None else {"rank": self.rank}
        changed |= {} if self.precision == "float32" else {"precision": self.precision}
        return row_inputs(self.factors, train, queries=self.queries.fingerprint, **changed)

    def groups(self, train: Examples) -> list[tuple[Curvature, "Pairwise"]]:
        """The same at groups of sites whose queries fit the memory limit together."""
        works = forms_of(self.factors, len(self.queries), train.lengths, self.rank, self.precision)
        parts = at_groups(self.factors, {name: work.nbytes for name, work in works.items()})
        return [(part, replace(self, factors=part)) for part in parts]

    def __call__(self, source: BatchSource) -> Values:
        lengths = source.examples.lengths
        prepared = prepare_queries(self.factors, self.queries, lengths, rank=self.rank, precision=self.precision)

        def values(batch: CapturedBatch) -> np.ndarray:
            with products_in(self.precision):
                parts = {name: prepared.products(batch, name) for name in self.factors.sites.names}
                total = sum(parts.values())
                zero = jnp.zeros_like(total)
                found = jnp.stack([parts.get(name, zero) for name in self.columns] or [total], -1)
            return -np.asarray(found, np.float32).swapaxes(0, 1)[: len(batch.rows)]

        return values


@dataclass(frozen=True)
class Squares:
    """Squared norms of a batch's gradients in the metric (G + damping I)^-power, [b]. Each gradient is rotated once and
    never back."""

    factors: Curvature
    power: int

    def __call__(self, source: BatchSource) -> Values:
        @cache
        def on_device(site: str, dtype: Any) -> tuple[jax.Array | None, jax.Array | None, jax.Array]:
            own, weight = self.factors.per_site[site], self.factors.inverse(site) ** self.power
            qa, qs = (None if q is None else to_accelerator(q.astype(dtype, copy=False)) for q in (own.qa, own.qs))
            return qa, qs, to_accelerator(weight.astype(dtype))

        def at_site(batch: CapturedBatch, site: str) -> jax.Array:
            a, g = batch.inputs[site], batch.grads[site]
            qa, qs, weight = on_device(site, a.dtype)
            return kernels.weighted_squares(a, g, qa, qs, weight, kernels.rotation_order(a.shape[1], *weight.shape))

        def values(batch: CapturedBatch) -> np.ndarray:
            parts = [at_site(batch, name) for name in self.factors.sites.names]
            return np.asarray(sum(parts[1:], parts[0]), np.float32)[: len(batch.rows)]

        return values


def squared_norms(factors: Curvature, train: Examples, power: int) -> np.ndarray:
    """grad L_n^T (G + damping I)^-power grad L_n of every training example, [n]."""
    factors.check_model()
    inputs = row_inputs(factors, train, what="self" if power == 1 else f"self, power {power}")
    sizes = {site.name: 4 * (o * o + i * i + o * i) for site in factors.sites for o, i in [site.shape]}
    groups = [(part, Squares(part, power)) for part in at_groups(factors, sizes)]
    return over_rows(factors, train, inputs, (), groups, "self-influence")


def site_products(prepared: jax.Array, batch: CapturedBatch, site: str) -> jax.Array:
    """<prepared_q, gradient_b> at one site, [q b]."""
    return kernels.pair_products(prepared, batch.inputs[site], batch.grads[site])
