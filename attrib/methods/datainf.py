"""DataInf: the inverse of a mean taken as the mean of the inverses (Kwon et al. 2023, arXiv 2310.00902, Eq. 5)."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from torch import Tensor, nn

from whence.cache import Examples, Sites, Store, Task
from whence.cache.model.bridge import to_jax, to_torch

from .. import kernels
from ..factors import Damping
from ..iterative import Solved, inputs_with
from ..method import FitOptions, make_run
from ..scores import site_products
from ..solvers import Solution
from .diagonal import Diagonal


@dataclass(frozen=True, kw_only=True, repr=False)
class SwappedInverse(Solved):
    def solve(self, b: dict[str, Tensor]) -> Solution:
        """Site by site, with g_n the loss gradients and d the damping:
        (1/d) (b - (1/N) sum_n g_n <g_n, b> / (d + |g_n|^2)); one pass over the examples."""
        vectors = {name: to_jax(value) for name, value in b.items()}
        taken = {name: jnp.zeros_like(value) for name, value in vectors.items()}
        for batch in self.run.batches(desc="DataInf", quiet=True):
            for site in self.run.sites:
                name, a, g = site.name, batch.inputs[site.name], batch.grads[site.name]
                v = vectors[name].astype(a.dtype)
                norms = kernels.weighted_squares_unrotated(a, g, jnp.ones(site.shape, a.dtype))
                share = site_products(v, batch, name) / (self.damping_at(name) + norms)
                taken[name] += jnp.einsum("qb,bso,bsi->qoi", share, g, a, optimize="optimal")
        x = {}
        for name, value in vectors.items():
            solved = (value - taken[name] / len(self.run.examples)) / self.damping_at(name)
            x[name] = to_torch(solved).to(b[name])
        return Solution(x, np.full(len(next(iter(b.values()))), np.nan), 1)


@dataclass(frozen=True)
class DataInf:
    """(1/N) sum_n (g_n g_n^T + damping)^-1 in place of ((1/N) sum_n g_n g_n^T + damping)^-1, each site alone and each
    term by Sherman and Morrison's formula; g are loss gradients under the data's own labels. The relative damping of
    0.1 is the paper's: a tenth of the mean squared gradient entry. Meant for few parameters (adapters)."""

    damping: Damping = Damping()
    name = "datainf"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> SwappedInverse:
        """Raises as EKFAC.fit."""
        true = Diagonal(damping=self.damping, labels="true")
        base = true.fit(model, task, examples, sites=sites, store=store, options=options)
        run = make_run(model, task, examples, base.sites, "loss", 0, options)
        inputs = inputs_with(base, {"name": self.name})
        return SwappedInverse(
            self.name, base.sites, base.per_site, base.count, base.damping, inputs, base=base, run=run
        )
