"""Shampoo: Kronecker factors of the gradients themselves (Gupta et al. 2018), with or without corrected eigenvalues."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.cache.model.batches import BatchSource
from whence.cache.model.trained import ModelPass

from .. import kernels
from ..curvature import SiteFactors
from ..fit import Moments, bases_of, fold_sites
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


def add_gram(name: str, total: kernels.Sum, a: Any, g: Any) -> kernels.Sum:
    return kernels.add_gram(total, a, g, side=name[-1])


def gradient_moments(source: BatchSource, inputs: Mapping[str, Any]) -> tuple[dict[str, Moments], str]:
    """site -> E[G^T G] [i i] as `a` and E[G G^T] [o o] as `s`, means over examples."""
    parts = {f"{s.name}/{side}": (s.name, (width, width)) for s in source.sites for side, width in zip("LR", s.shape)}
    found, key = fold_sites(source, {**inputs, "stage": "gradient moments"}, add_gram, "gradient moments", parts)
    return {name: Moments(found[f"{name}/R"], found[f"{name}/L"], 1.0) for name in source.sites.names}, key
