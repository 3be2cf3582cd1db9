"""Shampoo: Kronecker factors of the gradients themselves (Gupta et al. 2018), with or without corrected eigenvalues."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.cache.model.batches import BatchSource
from whence.cache.model.trained import ModelPass

from .. import kernels
from ..curvature import SiteFactors
from ..fit import (
    Moments,
    bases_of,
    finished,
    fold_sites,
    partition_count,
    partition_rows,
    sum_partitions,
)
from ..method import CurvatureMethod, Eigen, in_key
from .ekfac import Bases, RotatedSquares, batches_twice


@dataclass(frozen=True)
class Shampoo(CurvatureMethod):
    """L = E[G G^T] and R = E[G^T G] over examples, G an example's gradient [o i] (summed over its positions, so
    that nothing depends on the batch size, as it would with gradients of batches).

    Args:
        damping, labels, seed: as for CurvatureMethod.
        corrected: measure the eigenvalues in the eigenbasis of (R, L), as EK-FAC does in its own. Otherwise they are
            the outer product of L's and R's over the trace of L, the best Kronecker product of the Fisher matrix by
            one step of power iteration (Morwani et al. 2024).
        eigen: precision of the eigendecompositions.
    """

    corrected: bool = in_key(True)
    eigen: Eigen = in_key("float32")
    name = "shampoo"

    def curvature(self, run: ModelPass, inputs: dict[str, Any]) -> tuple[dict[str, SiteFactors], str]:
        source = batches_twice(run)
        found, key = gradient_moments(source, run.inputs())
        if self.corrected:
            bases = Bases.of(found, self.eigen, run.trained.store, inputs)
            stage = {**inputs, "stage": "eigenvalues"}
            values, key = fold_sites(source, stage, RotatedSquares.of(bases, source), "eigenvalues")
            return {name: SiteFactors(*bases.at(name), value) for name, value in values.items()}, key
        right, left = bases_of(found, self.eigen)
        grids = {n: np.outer(left[n].values, right[n].values) / max(left[n].values.sum(), 1e-300) for n in found}
        return {n: SiteFactors(right[n].vectors, left[n].vectors, grid) for n, grid in grids.items()}, key


@dataclass(frozen=True)
class GramSums:
    """Sums of G G^T and G^T G over one of `count` partitions at every site."""

    source: BatchSource
    count: int

    def __call__(self, partition: int) -> dict[str, np.ndarray]:
        sums: dict[str, kernels.Sum] = {}
        rows = partition_rows(len(self.source.examples), partition, self.count)
        for batch in self.source.batches(rows, "gradient moments"):
            for site in self.source.sites:
                a, g = batch.inputs[site.name], batch.grads[site.name]
                for side, width in zip("LR", site.shape):
                    name = f"{site.name}/{side}"
                    start = sums.pop(name) if name in sums else kernels.zero_sum((width, width), a.dtype)
                    sums[name] = kernels.add_gram(start, a, g, side=side)
        out = finished(sums)
        return out


def gradient_moments(source: BatchSource, inputs: Mapping[str, Any]) -> tuple[dict[str, Moments], str]:
    """site -> E[G^T G] [i i] as `a` and E[G G^T] [o o] as `s`, means over examples."""
    count = len(source.examples)
    shapes: dict[str, tuple[int, ...]] = {}
    for site in source.sites:
        o, i = site.shape
        shapes |= {f"{site.name}/L": (o, o), f"{site.name}/R": (i, i)}
    stage, parts = {**inputs, "stage": "gradient moments"}, partition_count(count)
    totals, key = sum_partitions(source.trained, stage, shapes, parts, GramSums(source, parts), "gradient moments")
    names = source.sites.names
    return {n: Moments(totals[f"{n}/R"] / count, totals[f"{n}/L"] / count, 1.0) for n in names}, key
