"""Spherical k-means: the directions that batches of activations gather around.

Lloyd's iteration on unit rows with cosine as likeness (Dhillon & Modha 2001). Centroids are no activations;
`snap` replaces each by the activation nearest to it, so that atoms keep a place in the data.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from whence.cache import progress
from whence.cache.errors import DataError

from ..activations import ActivationBatch, as_stream
from ..dictionary import Dictionary, Provenance
from ..kernels import Basis
from ..kernels.forms import product
from .growth import Grown, Rows, extended, places
from .itda import finished

ASSIGN_ROWS = 1024


@jax.jit
def _assign(x: Float[Array, "t d"], centres: Float[Array, "a d"]) -> tuple[Array, Array]:
    """Nearest centre of every row by cosine, and that cosine; 1024 rows at a time."""

    def one(part: Array) -> tuple[Array, Array]:
        near = product(part, centres)
        return near.argmax(axis=1).astype(jnp.int32), near.max(axis=1)

    label, cosine = jax.lax.map(one, x.reshape(-1, ASSIGN_ROWS, x.shape[1]))
    return label.reshape(-1), cosine.reshape(-1)


@dataclass(frozen=True)
class KMeans:
    """`size` centroids of at most `rows` first activations, `rounds` of Lloyd's iteration; snap: see above."""

    size: int
    k: int = 16
    rounds: int = 10
    rows: int = 65536
    snap: bool = True
    pursuit: str = "matching"
    seed: int = 0

    def build(self, source: "Iterable[ActivationBatch] | Any", *, quiet: bool = True) -> Dictionary:
        """Raises DataError when the stream holds fewer than `size` usable rows."""
        stream, origin = as_stream(source)
        rows = Rows(stream)
        batch = rows.take(self.rows)
        if batch is None or len(batch.x) < self.size:
            raise DataError(
                f"{0 if batch is None else len(batch.x)} usable activations for {self.size} centroids.",
                "Give more data, or a smaller size.",
            )
        unit = batch.x / np.linalg.norm(batch.x, axis=1, keepdims=True)
        count = len(unit)
        padded = np.zeros((-(-count // ASSIGN_ROWS) * ASSIGN_ROWS, unit.shape[1]), np.float32)
        padded[:count] = unit
        x = jnp.asarray(padded)
        start = np.random.default_rng(self.seed).choice(count, self.size, replace=False)
        centres = unit[np.sort(start)]
        for _ in progress(range(self.rounds), desc="k-means", unit="round", quiet=quiet):
            label, cosine = _assign(x, jnp.asarray(centres))
            centres = _means(unit, np.asarray(label)[:count], np.asarray(cosine)[:count], self.size)
        chosen = np.asarray(_assign_to_rows(jnp.asarray(centres), x))
        grown = Grown(Basis(jnp.zeros((64, unit.shape[1])), None), 0, Provenance.unknown(0), rows.taken, ())
        if self.snap:
            chosen = np.unique(chosen)
            return finished(extended(grown, batch.x[chosen], places(batch, chosen, np.nan)), self, rows, origin)
        return finished(extended(grown, centres, Provenance.unknown(self.size)), self, rows, origin)


def _means(unit: np.ndarray, label: np.ndarray, cosine: np.ndarray, size: int) -> np.ndarray:
    """Unit mean of every cluster; an empty one starts again at a row that is far from its centre."""
    total = np.zeros((size, unit.shape[1]), np.float32)
    np.add.at(total, label, unit)
    empty = np.flatnonzero(np.bincount(label, minlength=size) == 0)
    total[empty] = unit[np.argsort(cosine, kind="stable")[: len(empty)]]
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


@jax.jit
def _assign_to_rows(centres: Float[Array, "a d"], x: Float[Array, "t d"]) -> Array:
    """The row nearest to every centre, 64 centres at a time."""
    padded = -(-centres.shape[0] // 64) * 64
    all_centres = jnp.zeros((padded, centres.shape[1])).at[: centres.shape[0]].set(centres)
    found = jax.lax.map(lambda part: product(part, x).argmax(axis=1), all_centres.reshape(-1, 64, x.shape[1]))
    return found.reshape(-1)[: centres.shape[0]]
