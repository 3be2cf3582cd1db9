"""Identity: the dot product of gradients, TracIn at one checkpoint (Pruthi et al. 2020, Eq. 1)."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from whence.cache import Examples, Sites, Store, Task

from ..factors import Damping, Factors, SiteFactors
from ..method import FitOptions, inputs_of, make_run


@dataclass(frozen=True)
class Identity:
    """No curvature at all: G + damping I is taken to be I."""

    name = "identity"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> Factors:
        """Looks at one batch only, to see which sites are called."""
        run = make_run(model, task, examples, sites, "loss", 0, options)
        per_site = {site.name: SiteFactors(None, None, np.ones(site.shape)) for site in run.sites}
        damping = Damping(0.0, "absolute")
        return Factors(self.name, run.sites, per_site, len(examples), damping, inputs_of(run, method=self.name))
