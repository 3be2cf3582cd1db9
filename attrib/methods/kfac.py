"""K-FAC: Kronecker-factored curvature (Martens and Grosse 2015)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from whence.cache import Examples, Sites, Store, Task

from ..factors import Damping, Factors, SiteFactors
from ..fit import eigenbases, moments
from ..method import FitOptions, inputs_of, make_run


@dataclass(frozen=True)
class KFAC:
    """G at a site is taken to be (positions per example) A x S, as if positions were independent: eigenvalues are
    the outer product of the factors'. One pass. labels, seed and eigen as for EKFAC."""

    damping: Damping = Damping()
    labels: Literal["sampled", "true"] = "sampled"
    seed: int = 0
    eigen: Literal["float32", "float64"] = "float32"
    name = "kfac"

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
        """Raises as EKFAC.fit."""
        objective = "sampled" if self.labels == "sampled" else "loss"
        run = make_run(model, task, examples, sites, objective, self.seed, options)
        inputs = inputs_of(run)
        found, key = moments(run, store, inputs, options)
        a = eigenbases({name: m.a for name, m in found.items()}, self.eigen)
        s = eigenbases({name: m.s for name, m in found.items()}, self.eigen)
        per_site = {
            name: SiteFactors(a[name][1], s[name][1], m.per_example * np.outer(s[name][0], a[name][0]))
            for name, m in found.items()
        }
        return Factors(self.name, run.sites, per_site, len(examples), self.damping, inputs, key)
