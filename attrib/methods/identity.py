"""Identity: the dot product of gradients, TracIn at one checkpoint (Pruthi et al. 2020, Eq. 1)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.cache import Sites
from whence.cache.model.trained import ModelPass

from ..curvature import Damping, SiteFactors
from ..factors import Factors
from ..method import CurvatureMethod, Labels, not_in_key

NONE = Damping(0.0, "absolute")


@dataclass(frozen=True)
class Identity(CurvatureMethod):
    """No curvature at all: G + damping I is taken to be I. One batch is run, to see which sites are called."""

    damping: Damping | None = not_in_key(NONE, "enters the key of the scores")
    labels: Labels = not_in_key("true", "enters as the objective of the pass")
    name = "identity"

    def curvature(self, run: ModelPass, inputs: dict[str, Any]) -> tuple[dict[str, SiteFactors], str]:
        return identities(run.sites), ""


class Scaled(Factors):
    """Gradients times a positive number each, which stand in place of the eigenvalues, in the weights' own basis."""

    @property
    def caution(self) -> str:
        return ""

    def inverse(self, site: str) -> np.ndarray:
        return self.per_site[site].eigenvalues


def identities(sites: Sites) -> dict[str, SiteFactors]:
    return {site.name: SiteFactors(None, None, np.ones(site.shape)) for site in sites}
