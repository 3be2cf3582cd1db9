"""EK-FAC: eigenvalue-corrected Kronecker-factored curvature (George et al. 2018; Grosse et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from torch import nn

from cache import Entry, Examples, Sites, Store, Task
from cache.build import Replay, memory_limit

from .. import kernels
from ..factors import Damping, Factors, SiteFactors, sites_from_json, sites_to_json
from ..fit import eigenbases, first_frame, fold_sites, moments
from ..method import FitOptions, inputs_of, make_run


@dataclass(frozen=True)
class EKFAC:
    """The eigenbasis of K-FAC with the Fisher's own second moments in it.

    Pass one: A = E[a a^T], S = E[g g^T] over positions, as if they were independent, and their eigenvectors.
    Pass two: lambda = E over examples of (Q_S^T G Q_A)^2 with G summed over the example's positions, which puts the
    dependence between positions back on the diagonal. The frames of pass one serve pass two as far as memory goes.

    labels: "sampled" from the model (the Fisher matrix, equal to the Gauss-Newton matrix), or "true" (the empirical
    Fisher, which the paper advises against). seed: of the draws. eigen: precision of the eigenvectors; float32 is
    checked for orthogonality and done again in float64 where it falls short.
    """

    damping: Damping = Damping()
    labels: Literal["sampled", "true"] = "sampled"
    seed: int = 0
    eigen: Literal["float32", "float64"] = "float32"
    name = "ekfac"

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
        """Fit, resume, or read from the store.

        Raises ModelError where no site is called, DataError for no data, NumericalError where a loss or a sum is
        not finite, ResourceError where one example does not fit the memory limit.
        """
        objective = "sampled" if self.labels == "sampled" else "loss"
        run = make_run(model, task, examples, sites, objective, self.seed, options)
        inputs = {**inputs_of(run), "method": self.name, "eigen": self.eigen}
        if store is not None and store.has("factors", inputs):
            return from_entry(store.open("factors", inputs), self.damping)
        replay = Replay(run, memory_limit(options.memory) // 2)
        per_site = self._per_site(replay, store, inputs_of(run), options.quiet)
        if store is None:
            return Factors(self.name, run.sites, per_site, len(examples), self.damping, inputs)
        arrays = {f"{name}/{part}": value for name, f in per_site.items() for part, value in f._asdict().items()}
        about = {"sites": sites_to_json(run.sites), "count": len(examples), "coverage": run.sites.coverage}
        return from_entry(store.put("factors", inputs, arrays, about=about), self.damping)

    def _per_site(
        self, replay: Replay, store: Store | None, inputs: Mapping[str, Any], quiet: bool
    ) -> dict[str, SiteFactors]:
        found, _ = moments(replay, store, inputs, quiet)
        qa = {name: basis for name, (_, basis) in eigenbases({n: m.a for n, m in found.items()}, self.eigen).items()}
        qs = {name: basis for name, (_, basis) in eigenbases({n: m.s for n, m in found.items()}, self.eigen).items()}
        frame = first_frame(replay)
        dtype = next(iter(frame.inputs.values())).dtype
        bases = {name: (jnp.asarray(qa[name], dtype), jnp.asarray(qs[name], dtype)) for name in qa}
        order = {
            site.name: kernels.rotation_order(frame.inputs[site.name].shape[1], *site.shape)
            for site in replay.run.sites
        }

        def add(site: str, total: kernels.Sum, a: Any, g: Any) -> kernels.Sum:
            return kernels.add_rotated_squares(total, a, g, *bases[site], order=order[site])

        stage = {**inputs, "stage": "eigenvalues", "eigen": self.eigen}
        values, _ = fold_sites(replay, store, stage, add, "eigenvalues", quiet)
        replay.forget()
        return {name: SiteFactors(qa[name], qs[name], values[name].astype(np.float64)) for name in values}


def from_entry(entry: Entry, damping: Damping) -> Factors:
    """Factors as they were stored."""
    sites = sites_from_json(entry.about["sites"])
    per_site = {
        site.name: SiteFactors(*(entry.read(f"{site.name}/{part}") for part in SiteFactors._fields)) for site in sites
    }
    return Factors("ekfac", sites, per_site, int(entry.about["count"]), damping, entry.inputs, entry.key)
