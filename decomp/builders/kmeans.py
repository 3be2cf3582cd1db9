"""Spherical k-means: the directions that batches of activations gather around.

Lloyd's iteration on unit rows with cosine as likeness (Dhillon & Modha 2001). Centroids are no activations;
`snap` replaces each by the activation nearest to it, so that atoms keep a place in the data.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from whence.cache.jobs.progress import progress

from ..dictionary import Dictionary
from ..kernels.clustering import ASSIGN_ROWS, nearest_centre, nearest_row
from ..provenance import Provenance
from .builder import Builder, Source, labelled
from .growth import Rows, empty, extended, places


@dataclass(frozen=True)
class KMeans(Builder[Dictionary]):
    """Spherical k-means.

    Args:
        size: centroids.
        k: pursuit steps of the dictionary's `encode`.
        rounds: of Lloyd's iteration.
        rows: activations that are clustered, the first of the stream.
        snap: replace each centroid by its nearest activation; centroids that share one count once.
        pursuit: a name of PURSUITS.
        seed: of the first centroids.
    """

    name: ClassVar[str] = "kmeans"

    size: int
    k: int = 16
    rounds: int = 10
    rows: int = 65536
    snap: bool = True
    pursuit: str = "matching"
    seed: int = 0

    def construct(self, source: Source) -> Dictionary:
        """Raises DataError if the stream has fewer than `size` different usable rows."""
        rows = Rows(source.stream)
        batch = rows.check(rows.take(self.rows), self.size, distinct=True)
        unit = batch.x / np.linalg.norm(batch.x, axis=1, keepdims=True)
        count = len(unit)
        padded = np.zeros((-(-count // ASSIGN_ROWS) * ASSIGN_ROWS, unit.shape[1]), np.float32)
        padded[:count] = unit
        x = jnp.asarray(padded)
        start = np.random.default_rng(self.seed).choice(count, self.size, replace=False)
        centres = unit[np.sort(start)]
        for _ in progress(range(self.rounds), desc="k-means", unit="round", quiet=source.quiet):
            label, cosine = nearest_centre(x, jnp.asarray(centres))
            centres = _means(unit, np.asarray(label)[:count], np.asarray(cosine)[:count], self.size)
        chosen = np.asarray(nearest_row(jnp.asarray(centres), x))
        grown = empty(unit.shape[1], gram=False)
        if self.snap:
            chosen = np.unique(chosen)
            grown = extended(grown, batch.x[chosen], places(batch, chosen, np.nan))
        else:
            grown = extended(grown, centres, Provenance.unknown(self.size))
        return labelled(self, grown, rows, source.origin)


def _means(unit: np.ndarray, label: np.ndarray, cosine: np.ndarray, size: int) -> np.ndarray:
    """Unit mean of every cluster; an empty one starts again at a row that is far from its centre."""
    total = np.zeros((size, unit.shape[1]), np.float32)
    np.add.at(total, label, unit)
    empty = np.flatnonzero(np.bincount(label, minlength=size) == 0)
    total[empty] = unit[np.argsort(cosine, kind="stable")[: len(empty)]]
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
