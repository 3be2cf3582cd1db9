"""Diagonal: the Fisher matrix's diagonal in the weights' own basis."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from whence.cache import Examples, Sites, Store, Task

from .. import kernels
from ..factors import Damping, Factors, SiteFactors
from ..fit import fold_sites
from ..method import FitOptions, inputs_of, make_run


def add_squares(site: str, total: kernels.Sum, a: Any, g: Any) -> kernels.Sum:
    return kernels.add_squares(total, a, g)


@dataclass(frozen=True)
class Diagonal:
    """Mean over examples of squared gradients, one pass. labels and seed as for EKFAC."""

    damping: Damping = Damping()
    labels: Literal["sampled", "true"] = "sampled"
    seed: int = 0
    name = "diagonal"

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
        inputs = inputs_of(run, method=self.name)
        squares, key = fold_sites(run, store, inputs, add_squares, self.name, options)
        per_site = {name: SiteFactors(None, None, value) for name, value in squares.items()}
        return Factors(self.name, run.sites, per_site, len(examples), self.damping, inputs, key)
