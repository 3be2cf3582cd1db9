"""Exact products with the Gauss-Newton matrix: G v = (1/N) sum_n J_n^T H_n J_n v, J_n the Jacobian of the model's
outputs on example n with respect to the sites' parameters, H_n the Hessian of its loss with respect to them
(Schraudolph 2002; Martens 2020). For cross-entropy and squared error G is the Fisher matrix.

Forward mode for J v, reverse mode for H u and J^T w, every vector of a block at once. The model's code runs once per
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

from whence.cache import Task
from whence.cache.model.borrowing import borrowed
from whence.cache.model.sites import matrices_of, parameters_of
from whence.cache.model.stateless import call_with, named_parameters
from whence.cache.model.trained import ModelPass

Vectors = Mapping[str, Tensor]  # site -> [q o i]
TANGENT_POSITIONS = 1 << 14  # positions times vectors that are in memory at once


class Answered(nn.Module):
    """A model that returns these outputs for every input. It makes a task's loss a function of the outputs alone."""

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


def gauss_newton_product(
    model: nn.Module, task: Task, batch: dict[str, Tensor], vectors: Mapping[str, Tensor], at_once: int | None = None
) -> dict[str, Tensor]:
    """Sum over a batch of J^T H J times each vector.

    Args:
        model, task, batch: what the outputs and the loss are of. The caller wraps the model in `borrowed` and, if it
            has attention, in `sdpa_kernel(SDPBackend.MATH)`.
        vectors: parameter name -> [q *shape of the parameter]; the parameters that J is with respect to.
        at_once: vectors whose products are in memory at once; by default all.
    """
    own, wrapped = named_parameters(model), _Outputs(model, task)
    theta = {name: own[name].detach() for name in vectors}

    def outputs(theta: dict[str, Tensor]) -> Tensor:
        return call_with(wrapped, {f"model.{name}": value for name, value in theta.items()}, (batch,))

    def loss(z: Tensor) -> Tensor:
        return task.loss(Answered(z), batch).sum()

    at_z: Any = vjp(outputs, theta)
    z, pull = at_z
    curve: Any = vjp(grad(loss), z.detach())[1]

    def one(vector: dict[str, Tensor]) -> dict[str, Tensor]:
        pushed = jvp(outputs, (theta,), (vector,))[1]
        return pull(curve(pushed)[0])[0]

    return vmap(one, chunk_size=at_once)(dict(vectors))


@dataclass(frozen=True)
class GaussNewton:
    """The Gauss-Newton matrix of a pass: its model, its examples and its sites. Only the pass is kept."""

    run: ModelPass

    def product(self, vectors: Vectors, rows: np.ndarray | None = None) -> dict[str, Tensor]:
        """G times each vector, site -> [q o i], over these rows of the examples (all by default), their mean."""
        trained, sites = self.run.trained, self.run.sites
        rows = np.arange(len(self.run.examples)) if rows is None else rows
        own = named_parameters(trained.model)
        tangents = vmap(lambda v: parameters_of(trained.model, sites, v))(dict(vectors))
        tangents = {name: value.to(own[name].device) for name, value in tangents.items()}
        total: dict[str, Tensor] = {}
        with borrowed(trained.model), sdpa_kernel(SDPBackend.MATH):
            for planned in self.run.plan(rows):
                batch = trained.batch(self.run.examples, planned.rows, pad_to=planned.width)
                at_once = max(1, TANGENT_POSITIONS // max(planned.rows.size * planned.width, 1))
                for name, value in gauss_newton_product(trained.model, trained.task, batch, tangents, at_once).items():
                    total[name] = total[name] + value if name in total else value
        found = vmap(lambda v: matrices_of(trained.model, sites, v))(total)
        return {name: value.to(vectors[name].device) / len(rows) for name, value in found.items()}
