"""K-FAC: Kronecker-factored curvature (Martens and Grosse 2015)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.cache.model.trained import ModelPass

from ..curvature import SiteFactors
from ..fit import bases_of, moments
from ..method import CurvatureMethod, Eigen, in_key


@dataclass(frozen=True)
class KFAC(CurvatureMethod):
    """G at a site is (positions per example) A x S, as if positions were independent: its eigenvalues are the outer
    product of the eigenvalues of A and S. One pass.

    Args:
        damping, labels, seed: as for CurvatureMethod.
        eigen: precision of the eigendecompositions.
    """

    eigen: Eigen = in_key("float32", unless="float32")
    name = "kfac"

    def inputs(self, run: ModelPass) -> dict[str, Any]:
        return {**run.inputs(), **self.settings()}

    def curvature(self, run: ModelPass, inputs: dict[str, Any]) -> tuple[dict[str, SiteFactors], str]:
        found, key = moments(run, run.inputs())
        a, s = bases_of(found, self.eigen)
        grids = {name: m.per_example * np.outer(s[name].values, a[name].values) for name, m in found.items()}
        return {name: SiteFactors(a[name].vectors, s[name].vectors, grid) for name, grid in grids.items()}, key
