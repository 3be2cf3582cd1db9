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

from cache import Examples, Sites, Store, Task
from cache.build import Replay, memory_limit

from .. import kernels
from ..factors import Damping, Factors, SiteFactors
from ..fit import (
    check_finite,
    eigenbases,
    first_frame,
    fold_sites,
    partition_count,
    partition_rows,
    sum_partitions,
    to_float64,
)
from ..method import FitOptions, inputs_of, make_run


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
        replay = Replay(run, memory_limit(options.memory) // 2)
        inputs = {**inputs_of(run), "method": self.name, "corrected": self.corrected, "eigen": self.eigen}
        found = gradient_moments(replay, store, inputs_of(run), options)
        left = eigenbases({name: pair[0] for name, pair in found.items()}, self.eigen)
        right = eigenbases({name: pair[1] for name, pair in found.items()}, self.eigen)
        if self.corrected:
            values, key = self._measured(replay, store, inputs, left, right, options)
        else:
            key = ""
            values = {n: np.outer(left[n][0], right[n][0]) / max(left[n][0].sum(), 1e-300) for n in found}
        replay.forget()
        per_site = {name: SiteFactors(right[name][1], left[name][1], values[name]) for name in found}
        return Factors(self.name, run.sites, per_site, len(examples), self.damping, inputs, key)

    def _measured(
        self, replay: Replay, store: Store | None, inputs: Mapping[str, Any], left: Any, right: Any, options: FitOptions
    ) -> tuple[dict[str, np.ndarray], str]:
        frame = first_frame(replay)
        dtype = next(iter(frame.inputs.values())).dtype
        bases = {name: (jnp.asarray(right[name][1], dtype), jnp.asarray(left[name][1], dtype)) for name in left}

        def add(site: str, total: kernels.Sum, a: Any, g: Any) -> kernels.Sum:
            order = kernels.rotation_order(a.shape[1], g.shape[2], a.shape[2])
            return kernels.add_rotated_squares(total, a, g, *bases[site], order=order)

        return fold_sites(replay, store, {**inputs, "stage": "shampoo eigenvalues"}, add, "eigenvalues", options)


def gradient_moments(
    replay: Replay, store: Store | None, inputs: Mapping[str, Any], options: FitOptions
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """site -> (E[G G^T] [o o], E[G^T G] [i i]) over examples."""
    sites, examples = replay.run.sites, len(replay.run.examples)
    parts = partition_count(examples)
    shapes = {f"{s.name}/L": (s.shape[0],) * 2 for s in sites} | {f"{s.name}/R": (s.shape[1],) * 2 for s in sites}

    def work(partition: int) -> dict[str, np.ndarray]:
        sums: dict[str, kernels.Sum] = {}
        rows = partition_rows(examples, partition)
        for frame in replay.frames(rows, f"gradient moments {partition + 1}/{parts}", options.quiet):
            for site in sites:
                a, g = frame.inputs[site.name], frame.grads[site.name]
                for side, width in zip("LR", site.shape):
                    name = f"{site.name}/{side}"
                    start = sums.pop(name) if name in sums else kernels.zero_sum((width, width), a.dtype)
                    sums[name] = add_gram(start, a, g, side=side)
        out = {name: to_float64(total) for name, total in sums.items()}
        check_finite(out)
        return out

    totals, _ = sum_partitions(
        store, {**inputs, "stage": "gradient moments"}, shapes, parts, work, options, "gradient moments"
    )
    return {s.name: (totals[f"{s.name}/L"] / examples, totals[f"{s.name}/R"] / examples) for s in sites}


@partial(jax.jit, donate_argnums=0, static_argnames="side")
def add_gram(total: kernels.Sum, a: Float[Array, "b s i"], g: Float[Array, "b s o"], side: str) -> kernels.Sum:
    """Add sum over b of G_b G_b^T (side L) or G_b^T G_b (side R); one example's gradient is alive at a time."""

    def step(partial_sum: jax.Array, example: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        formed = example[1].T @ example[0]
        return partial_sum + (formed @ formed.T if side == "L" else formed.T @ formed), None

    start = jnp.zeros_like(total.high)
    return kernels.add(total, jax.lax.scan(step, start, (a, g))[0])
