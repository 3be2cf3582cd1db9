"""DataInf: the inverse of a mean taken as the mean of the inverses (Kwon et al. 2023, arXiv 2310.00902, Eq. 5)."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from whence.cache import Sites, TrainedModel

from .. import kernels
from ..curvature import Damping
from ..method import Method, not_in_key
from ..scoring.scores import site_products
from ..solvers.solved import Solved
from .diagonal import Diagonal


@dataclass(frozen=True, kw_only=True, repr=False)
class SwappedInverse(Solved):
    def inverse_product(self, gradients: Mapping[str, Float[Array, "q o i"]]) -> dict[str, Float[Array, "q o i"]]:
        """Site by site, with g_n the loss gradients and d the damping:
        (1/d) (v - (1/N) sum_n g_n <g_n, v> / (d + |g_n|^2)); one pass over the examples."""
        self.check_sites(gradients)
        taken = {name: jnp.zeros_like(value) for name, value in gradients.items()}
        for batch in self.run.batches(desc="DataInf"):
            for site in self.run.sites:
                name, a, g = site.name, batch.inputs[site.name], batch.grads[site.name]
                norms = kernels.weighted_squares(a, g, None, None, jnp.ones(site.shape, a.dtype))
                products = site_products(gradients[name].astype(a.dtype), batch, name)
                share = products / (self.damping_at(name) + norms)
                taken[name] += jnp.einsum("qb,bso,bsi->qoi", share, g, a, optimize="optimal")
        count = len(self.run.examples)
        return {name: (value - taken[name] / count) / self.damping_at(name) for name, value in gradients.items()}


@dataclass(frozen=True)
class DataInf(Method):
    """(1/N) sum_n (g_n g_n^T + damping)^-1 in place of ((1/N) sum_n g_n g_n^T + damping)^-1, each site alone and each
    term by Sherman and Morrison's formula; g are loss gradients under the data's own labels. Meant for few parameters
    (adapters).

    Args:
        damping: the relative damping of 0.1 is the paper's: a tenth of the mean squared gradient entry.
    """

    damping: Damping | None = not_in_key(None, "enters the key of the scores")
    name = "datainf"

    def fit_at(self, trained: TrainedModel, sites: Sites) -> SwappedInverse:
        base = Diagonal(damping=self.damping, labels="true").fit_at(trained, sites)
        return SwappedInverse.of(base, self.name, {})
