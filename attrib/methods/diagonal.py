"""Diagonal: the Fisher matrix's diagonal in the weights' own basis."""

from dataclasses import dataclass
from typing import Any

from whence.cache.model.trained import ModelPass

from .. import kernels
from ..curvature import SiteFactors
from ..fit import fold_sites
from ..method import CurvatureMethod


def add_squares(site: str, total: kernels.Sum, a: Any, g: Any) -> kernels.Sum:
    return kernels.add_squares(total, a, g)


@dataclass(frozen=True)
class Diagonal(CurvatureMethod):
    """The mean over examples of squared gradients, in one pass. Fields are those of CurvatureMethod."""

    name = "diagonal"

    def curvature(self, run: ModelPass, inputs: dict[str, Any]) -> tuple[dict[str, SiteFactors], str]:
        squares, key = fold_sites(run, inputs, add_squares, self.name)
        return {name: SiteFactors(None, None, value) for name, value in squares.items()}, key
