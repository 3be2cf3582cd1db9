"""Exact products with the Gauss-Newton matrix: G v = (1/N) sum_n J_n^T H_n J_n v, J_n the Jacobian of the model's
outputs on example n with respect to the sites' parameters, H_n the Hessian of its loss with respect to them
(Schraudolph 2002; Martens 2020). For cross-entropy and squared error G is the Fisher matrix.

Forward mode for J v, reverse mode for H u and J^T w, every vector of a block at once. The model's code runs once a
batch whatever the number of vectors. Fused attention has no forward-mode derivative on a CPU, so attention runs
as plain products here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.func import grad, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.cache import Sites, borrowed, matrices_of, named_parameters, parameters_of
from whence.cache.jobs.progress import progress
from whence.cache.model.batches import ModelPass
from whence.cache.model.sites import call_with

Vectors = Mapping[str, Tensor]  # site -> [q o i]
TANGENT_POSITIONS = 1 << 15  # positions times vectors that are alive at once


class Answered(nn.Module):
    """A model that has already answered: whatever it is asked, it returns these outputs. It makes a task's loss a
    function of the outputs alone."""

    def __init__(self, outputs: Tensor):
        super().__init__()
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.outputs


class _Outputs(nn.Module):
    def __init__(self, model: nn.Module, task: Any):
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.task.logits(self.model, batch)


@dataclass(frozen=True)
class GaussNewton:
    """The Gauss-Newton matrix of a run's model over its examples at its sites; nothing is stored but the run."""

    run: ModelPass

    def product(self, vectors: Vectors, rows: np.ndarray | None = None, desc: str = "") -> dict[str, Tensor]:
        """G times each vector, [q o i] a site, over these rows of the examples (all by default), their mean."""
        rows = np.arange(len(self.run.examples)) if rows is None else rows
        total: dict[str, Tensor] = {}
        with borrowed(self.run.model), sdpa_kernel(SDPBackend.MATH):
            for batch in progress(self.run.plan(rows), desc=desc, unit="batch", quiet=not desc):
                tensors = self.run.examples.batch(batch.rows, pad_to=batch.width, device=self.run.device)
                for name, value in self._on_batch(tensors, vectors, batch.rows.size * batch.width).items():
                    total[name] = total[name] + value if name in total else value
        return {name: value / len(rows) for name, value in total.items()}

    def _on_batch(self, batch: dict[str, Tensor], vectors: Vectors, positions: int) -> dict[str, Tensor]:
        model, task, sites = self.run.model, self.run.task, self.run.sites
        wrapped = _Outputs(model, task)
        names = parameter_names(sites)
        theta = {name: p.detach() for name, p in named_parameters(model).items() if name in names}

        def outputs(theta: dict[str, Tensor]) -> Tensor:
            return call_with(wrapped, {f"model.{name}": value for name, value in theta.items()}, (batch,))

        def loss(z: Tensor) -> Tensor:
            return task.loss(Answered(z), batch).sum()

        at_z: Any = vjp(outputs, theta)
        z, pull = at_z
        curve: Any = vjp(grad(loss), z.detach())[1]

        def one(vector: dict[str, Tensor]) -> dict[str, Tensor]:
            pushed = jvp(outputs, (theta,), (parameters_of(model, sites, vector),))[1]
            pulled = pull(curve(pushed)[0])[0]
            return matrices_of(model, sites, pulled)

        at_once = max(1, TANGENT_POSITIONS // max(positions, 1))
        return vmap(one, chunk_size=at_once)(dict(vectors))


def parameter_names(sites: Sites) -> set[str]:
    return {name for site in sites for _, name in site.parameters}
