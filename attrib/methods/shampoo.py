"""Shampoo: Kronecker factors of the gradients themselves (Gupta et al. 2018), with or without corrected eigenvalues."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from torch import nn

from whence.cache import Examples, Sites, Store, Task
from whence.cache.model.batches import BatchSource

from .. import kernels
from ..factors import Damping, Factors, SiteFactors
from ..fit import (
    Moments,
    check_finite,
    eigenbases,
    first_batch,
    fold_sites,
    partition_count,
    partition_rows,
    sum_partitions,
    to_float64,
)
from ..method import FitOptions, inputs_of, make_run
from .ekfac import Bases, RotatedSquares, batches_twice


@dataclass(frozen=True)
class Shampoo:
    """L = E[G G^T] and R = E[G^T G] over examples, G an example's gradient [o i] (summed over its positions, so
    that nothing depends on the batch size, as it would with gradients of batches).

    corrected: measure the eigenvalues in the eigenbasis of (R, L), as EK-FAC does in its own. Otherwise they are the
    outer product of L's and R's over the trace of L, the best Kronecker product of the Fisher matrix by one step of
    power iteration (Morwani et al. 2024). labels, seed and eigen as for EKFAC.
    """

    damping: Damping = Damping()
    corrected: bool = True
    labels: Literal["sampled", "true"] = "sampled"
    seed: int = 0
    eigen: Literal["float32", "float64"] = "float32"
    name = "shampoo"

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
        source = batches_twice(run, store, options)
        inputs = {**inputs_of(run), "method": self.name, "corrected": self.corrected, "eigen": self.eigen}
        found, key = gradient_moments(source, store, inputs_of(run), options)
        if self.corrected:
            batch = first_batch(source)
            bases = Bases.of(found, self.eigen, store, {**inputs, "stage": "gradient moments"})
            order = {s.name: kernels.rotation_order(batch.inputs[s.name].shape[1], *s.shape) for s in run.sites}
            add = RotatedSquares(bases, order, str(next(iter(batch.inputs.values())).dtype))
            stage = {**inputs, "stage": "eigenvalues"}
            values, key = fold_sites(source, store, stage, add, "eigenvalues", options)
            per_site = {name: SiteFactors(*bases.at(name), value) for name, value in values.items()}
        else:
            left = eigenbases({name: m.s for name, m in found.items()}, self.eigen)
            right = eigenbases({name: m.a for name, m in found.items()}, self.eigen)
            per_site = {}
            for name in found:
                grid = np.outer(left[name][0], right[name][0]) / max(left[name][0].sum(), 1e-300)
                per_site[name] = SiteFactors(right[name][1], left[name][1], grid)
        return Factors(self.name, run.sites, per_site, len(examples), self.damping, inputs, key)


@dataclass(frozen=True)
class GramSums:
    """Sums of G G^T and G^T G over one partition at every site."""

    source: BatchSource
    count: int
    quiet: bool

    def __call__(self, partition: int) -> dict[str, np.ndarray]:
        sums: dict[str, kernels.Sum] = {}
        rows = partition_rows(len(self.source.examples), partition, self.count)
        for batch in self.source.batches(rows, "gradient moments", self.quiet):
            for site in self.source.sites:
                a, g = batch.inputs[site.name], batch.grads[site.name]
                for side, width in zip("LR", site.shape):
                    name = f"{site.name}/{side}"
                    start = sums.pop(name) if name in sums else kernels.zero_sum((width, width), a.dtype)
                    sums[name] = add_gram(start, a, g, side=side)
        out = {name: to_float64(total) for name, total in sums.items()}
        check_finite(out)
        return out


def gradient_moments(
    source: BatchSource, store: Store | None, inputs: Mapping[str, Any], options: FitOptions
) -> tuple[dict[str, Moments], str]:
    """site -> E[G^T G] [i i] as `a` and E[G G^T] [o o] as `s`, means over examples."""
    count = len(source.examples)
    shapes: dict[str, tuple[int, ...]] = {}
    for site in source.sites:
        o, i = site.shape
        shapes |= {f"{site.name}/L": (o, o), f"{site.name}/R": (i, i)}
    stage = {**inputs, "stage": "gradient moments"}
    work = GramSums(source, partition_count(len(source.examples)), options.quiet)
    totals, key = sum_partitions(store, stage, shapes, partition_count(count), work, options, "gradient moments")
    names = source.sites.names
    return {n: Moments(totals[f"{n}/R"] / count, totals[f"{n}/L"] / count, 1.0) for n in names}, key


@partial(jax.jit, donate_argnums=0, static_argnames="side")
def add_gram(total: kernels.Sum, a: Float[Array, "b s i"], g: Float[Array, "b s o"], side: str) -> kernels.Sum:
    """Add sum over b of G_b G_b^T (side L) or G_b^T G_b (side R); one example's gradient is alive at a time."""

    def step(partial_sum: jax.Array, example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        formed = example[1].T @ example[0]
        return partial_sum + (formed @ formed.T if side == "L" else formed.T @ formed), None

    start = jnp.zeros_like(total.high)
    return kernels.add(total, jax.lax.scan(step, start, (a, g))[0])
